//! From bytes to steps: every run of bytes is a script, and few bytes say much. Packets that mean something are made here,
//! with the crate's own encoder; any other bytes can be sent, too.

use mqtt::{
    codec::{
        AckKind, Connect, ConnectProperties, PublishProperties, SubscribeEntry, UserProperties, Will,
        encode::{self, DisconnectProps, PublishParts},
    },
    types::{PacketId, Qos, Reason, RetainHandling, Version},
};

/// Clients of a script.
pub(super) const CLIENTS: usize = 4;

/// At home on shard 1, 0, 1, and on that which gives a name.
const IDS: [&str; 4] = ["a", "abc", "b", ""];
const FILTERS: [&str; 8] = ["t/1", "t/+", "#", "+/1", "$share/g/t/+", "$share/h/#", "$SYS/#", "t/#"];
const TOPICS: [&str; 8] = ["t/1", "t/2", "t", "u/1", "$SYS/x", "w", "a/b/c/d", ""];
const PASSES_MS: [u64; 8] = [1, 100, 1_000, 11_000, 60_000, 600_000, 3_600_000, 864_000_000];

/// What happens next.
pub(super) enum Step {
    /// A client connects, if it has no transport.
    Arrive(usize),
    /// A client sends.
    Send(usize, Vec<u8>),
    /// A client answers all that it was sent and has read.
    Answer(usize),
    /// A client reads no more, or again.
    Deafen(usize),
    /// A transport ends, in order or broken.
    Leave(usize, bool),
    /// So much time passes.
    Pass(u64),
    /// One shard has a turn.
    Turn(usize),
    /// All have turns until nothing moves.
    Settle,
    /// The log has what was recorded.
    Keep,
    /// The node says something.
    System,
}

pub(super) struct Script<'a> {
    rest: &'a [u8],
    /// What each client has said to speak.
    versions: [Version; CLIENTS],
}

impl<'a> Script<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Script<'a> {
        Script { rest, versions: [Version::V5; CLIENTS] }
    }

    fn byte(&mut self) -> u8 {
        let (first, rest) = self.rest.split_first().map_or((0, &[][..]), |(first, rest)| (*first, rest));
        self.rest = rest;
        first
    }

    /// The next step: two bits for the client, four for what happens, then whatever that needs. `None` at the end.
    pub(super) fn step(&mut self) -> Option<Step> {
        if self.rest.is_empty() {
            return None;
        }
        let head = self.byte();
        let client = usize::from(head) % CLIENTS;
        let sent = |bytes| Step::Send(client, bytes);
        Some(match head >> 2 & 15 {
            0 => sent(self.any_bytes()),
            1 => Step::Arrive(client),
            2 => sent(self.connect(client)),
            3 => sent(self.subscribe(client)),
            4 | 5 => sent(self.publish(client)),
            6 => sent(self.unsubscribe(client)),
            7 => Step::Answer(client),
            8 => sent(self.ack(client)),
            9 => Step::Deafen(client),
            10 => Step::Leave(client, self.byte() & 1 == 1),
            11 => Step::Pass(PASSES_MS[usize::from(self.byte()) % PASSES_MS.len()]),
            12 => Step::Turn(client % 2),
            13 => Step::Settle,
            14 => match client {
                0 => Step::System,
                _ => Step::Keep,
            },
            _ => sent(self.ending(client)),
        })
    }

    fn any_bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.byte()).min(self.rest.len());
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        bytes.to_vec()
    }

    fn connect(&mut self, client: usize) -> Vec<u8> {
        let (flags, more) = (self.byte(), self.byte());
        let version = [Version::V5, Version::V311, Version::V31, Version::V5][usize::from(flags) % 4];
        self.versions[client] = version;
        let client_id = IDS[usize::from(flags >> 2) % IDS.len()];
        let five = version == Version::V5;
        let will = Will {
            topic: TOPICS[usize::from(more) % TOPICS.len()],
            payload: b"gone",
            qos: qos(more >> 3),
            retain: more & 0x20 != 0,
            delay_s: if five && more & 0x40 != 0 { 30 } else { 0 },
            properties: PublishProperties::default(),
        };
        let connect = Connect {
            version,
            clean_start: flags & 0x10 != 0,
            keep_alive_s: if flags & 0x20 != 0 { 10 } else { 0 },
            client_id,
            username: (more & 7 == 7).then_some("user"),
            password: None,
            will: (flags & 0x40 != 0).then_some(will),
            properties: ConnectProperties {
                session_expiry_s: (five && flags & 0x80 != 0).then_some(100),
                receive_maximum: (five && more & 0x80 != 0).then_some(2),
                maximum_packet_bytes: (five && more & 0x87 == 0x81).then_some(60),
                topic_alias_maximum: (five && more & 8 != 0).then_some(3),
                request_problem_information: true,
                ..ConnectProperties::default()
            },
            bridge: false,
        };
        let mut bytes = Vec::new();
        encode::connect(&mut bytes, &connect);
        bytes
    }

    fn subscribe(&mut self, client: usize) -> Vec<u8> {
        let (which, options) = (self.byte(), self.byte());
        let entry = |filter| SubscribeEntry {
            filter,
            qos: qos(options),
            no_local: options & 4 != 0,
            retain_as_published: options & 8 != 0,
            retain_handling: RetainHandling::from_bits(options >> 4 & 3).unwrap_or(RetainHandling::Send),
        };
        let (one, two) = (usize::from(which) % 8, usize::from(which >> 3) % 8);
        let entries = [entry(FILTERS[one]), entry(FILTERS[two])];
        let number = (options & 0x40 != 0).then_some(u32::from(which) + 1);
        let mut bytes = Vec::new();
        let several = &entries[..1 + usize::from(which >> 7)];
        encode::subscribe(&mut bytes, self.versions[client], packet_id(which), number, several);
        bytes
    }

    fn unsubscribe(&mut self, client: usize) -> Vec<u8> {
        let which = self.byte();
        let mut bytes = Vec::new();
        let filters = [FILTERS[usize::from(which) % FILTERS.len()]];
        encode::unsubscribe(&mut bytes, self.versions[client], packet_id(which), &filters);
        bytes
    }

    fn publish(&mut self, client: usize) -> Vec<u8> {
        let (which, how) = (self.byte(), self.byte());
        let payload = vec![how; [0, 1, 40, 700][usize::from(how >> 6)]];
        let qos = qos(how);
        let alias = which >> 3 & 7;
        let five = self.versions[client] == Version::V5;
        let parts = PublishParts {
            dup: qos != Qos::AtMostOnce && how & 8 != 0,
            qos,
            retain: how & 4 != 0,
            topic: TOPICS[usize::from(which) % TOPICS.len()],
            packet_id: (qos != Qos::AtMostOnce).then(|| packet_id(how >> 4)),
            topic_alias: (five && alias != 0).then_some(u16::from(alias)),
            message_expiry_s: (five && which & 0x40 != 0).then_some(5),
            payload: &payload,
            ..PublishParts::default()
        };
        let mut bytes = Vec::new();
        encode::publish(&mut bytes, self.versions[client], &parts);
        bytes
    }

    fn ack(&mut self, client: usize) -> Vec<u8> {
        let how = self.byte();
        let kind = [AckKind::Puback, AckKind::Pubrec, AckKind::Pubrel, AckKind::Pubcomp][usize::from(how) % 4];
        let reason = if how & 4 == 0 { Reason::Success } else { Reason::UnspecifiedError };
        let mut bytes = Vec::new();
        encode::ack(&mut bytes, self.versions[client], kind, packet_id(how >> 3), reason);
        bytes
    }

    fn ending(&mut self, client: usize) -> Vec<u8> {
        let how = self.byte();
        let mut bytes = Vec::new();
        if how & 1 == 0 {
            encode::pingreq(&mut bytes);
        } else {
            let reason = if how & 2 == 0 { Reason::Success } else { Reason::DisconnectWithWill };
            let session_expiry_s = (how & 4 != 0).then_some(u32::from(how));
            let with =
                DisconnectProps { session_expiry_s, user: UserProperties::default(), ..DisconnectProps::default() };
            encode::disconnect(&mut bytes, self.versions[client], reason, &with);
        }
        bytes
    }
}

fn qos(bits: u8) -> Qos {
    Qos::from_bits(bits & 3).unwrap_or(Qos::ExactlyOnce)
}

/// Few, so that they are used again.
fn packet_id(bits: u8) -> PacketId {
    PacketId::new(u16::from(bits % 6) + 1).expect("not zero")
}
