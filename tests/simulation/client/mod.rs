//! A simulated client: one client id, one living connection at most (an older one may be left half open),
//! and the client's half of the session. It keeps to the protocol, so whatever the broker answers with a
//! refusal or a close is a fault, unless the client has asked for it.

mod connect;
mod crash;
mod operate;
mod publish;
mod receive;
mod subscribe;

use std::collections::{HashMap, VecDeque};

use mqtt::types::Version;

use crate::{
    rng::Rng,
    world::{Env, Event},
};

/// How a client behaves; drawn once.
#[derive(Clone)]
pub struct Profile {
    /// Version of the protocol.
    pub version: Version,
    /// It joins shared groups, and then has no plain subscription that matches their topics.
    pub groups: bool,
    /// It does nothing by itself; it only receives.
    pub watcher: bool,
    /// Acknowledgements are held back up to this long.
    pub ack_delay_us: u64,
    /// Keep alive in seconds; it pings in time.
    pub keep_alive_s: u16,
    /// Receive Maximums that it asks for, one per connection.
    pub receive_maxima: &'static [u16],
    /// Maximum Packet Size that it asks for; 0: none.
    pub packet_bytes: u32,
    /// Topic aliases that it takes.
    pub alias_max: u16,
    /// Session expiries that it asks for, in seconds.
    pub expiries: &'static [u32],
}

/// One client.
pub struct Client {
    /// Index in the world.
    pub at: usize,
    /// Index of its cluster.
    pub cluster: usize,
    /// Its client id.
    pub id: String,
    /// How it behaves.
    pub profile: Profile,
    /// The living connection.
    pub conn: Option<Conn>,
    /// The session that it believes the broker has, in the oracle.
    pub epoch: Option<usize>,
    /// Unfinished publishes, in order.
    pub out: VecDeque<Out>,
    /// QoS 2 messages received and not released: packet id -> number.
    pub received: HashMap<u16, Option<u64>>,
    next_packet: u16,
    /// Filters that were asked for and not left, as they were written.
    pub filters: Vec<String>,
    /// What is known of the broker's side of the session while no connection lives.
    pub lease: Lease,
    /// A connection that ended before its CONNACK.
    pub unanswered: Option<usize>,
    /// It will try to connect again once that one is over.
    pub connecting: bool,
    /// Connections so far.
    pub serial: u64,
    /// Publishes so far, in order.
    pub order: u64,
    /// The quiet phase: connect, acknowledge at once, ask for nothing.
    pub quiet: bool,
    /// It connects again when the broker closes its connection.
    pub comes_back: bool,
}

/// What the client knows of how long its session lives.
#[derive(Clone, Default)]
pub struct Lease {
    /// Smallest and largest expiry that the broker may believe in.
    pub expiry_s: (u32, u32),
    /// When its last connection ended here.
    pub left_us: u64,
    /// When the broker closed the last one that it is known to have closed.
    pub closed_us: u64,
    /// Connections that the broker may not have closed.
    pub pipes: Vec<usize>,
    /// A CONNECT was not answered, so the next one starts clean.
    pub must_be_clean: bool,
}

/// An unfinished publish.
pub struct Out {
    /// Packet id.
    pub packet: u16,
    /// Number in the oracle.
    pub number: u64,
    /// PUBREC came: PUBREL is what is sent again.
    pub released: bool,
    /// The connection on which it was sent first.
    pub serial: u64,
}

/// What a connection waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Awaits {
    /// The answer to CONNECT.
    Connack,
    /// The answer to a QoS 1 publish.
    Puback,
    /// The first answer to a QoS 2 publish.
    Pubrec,
    /// The second one.
    Pubcomp,
    /// The answer to SUBSCRIBE.
    Suback,
    /// The answer to UNSUBSCRIBE.
    Unsuback,
    /// The answer to PINGREQ.
    Pingresp,
}

/// A request without its answer.
#[derive(Clone, Debug)]
pub struct Asked {
    pub awaits: Awaits,
    pub packet: u16,
    pub at_us: u64,
    /// Position in the order of everything sent on the connection.
    pub index: u64,
    /// Subscriptions in the oracle that the answer concerns.
    pub subscriptions: Vec<usize>,
}

/// A connection of a client.
pub struct Conn {
    pub pipe: usize,
    pub serial: u64,
    pub open: bool,
    /// DISCONNECT was sent.
    pub leaving: bool,
    /// When its node has died; what is still on its way may arrive.
    pub crashed_us: Option<u64>,
    /// And will know nothing of it.
    pub forgotten: bool,
    /// The session was there.
    pub resumed: bool,
    /// When it was asked for, the broker surely had the session.
    pub kept: bool,
    /// CONNECT asked for a new session.
    pub clean: bool,
    pub sent_us: u64,
    pub expiry_s: u32,
    /// What this client allows the broker.
    pub receive_max: usize,
    /// Largest packet that this client takes.
    pub packet_bytes_max: usize,
    /// The will in the oracle.
    pub will: Option<u64>,
    pub unread: Vec<u8>,
    pub asked: VecDeque<Asked>,
    sent: u64,
    /// Publishes that no later answer has proved to be read: position, number.
    unproved: VecDeque<(u64, u64)>,
    /// Unfinished publishes that the broker allows; configured, and repeated by CONNACK.
    pub server_receive_max: usize,
    server_alias_max: u16,
    aliases_out: HashMap<String, u16>,
    aliases_in: HashMap<u16, String>,
    /// Packet ids of received and unfinished QoS 1 and 2 messages: the broker's use of our Receive Maximum.
    unfinished: HashMap<u16, Option<u64>>,
    acks: VecDeque<(u64, Reply)>,
    ack_free_us: u64,
    /// It does not read before this time.
    pub stalled_until_us: u64,
}

/// An acknowledgement that has not left.
#[derive(Clone, Copy)]
enum Reply {
    Puback(u16),
    Pubrec(u16),
    Pubcomp(u16, bool),
}

impl Profile {
    /// Draws one.
    pub fn draw(rng: &mut Rng, small_packets: bool) -> Profile {
        let version = *rng.pick(&[Version::V31, Version::V311, Version::V311, Version::V5, Version::V5, Version::V5]);
        Profile {
            version,
            groups: rng.percent(40),
            watcher: false,
            ack_delay_us: *rng.pick(&[0, 0, 1_000, 50_000, 600_000]),
            keep_alive_s: if rng.percent(30) { 30 } else { 0 },
            receive_maxima: rng.pick::<&[u16]>(&[&[u16::MAX][..], &[u16::MAX], &[1], &[2], &[10], &[1, 3, 20]]),
            packet_bytes: if small_packets { *rng.pick(&[0, 60, 300]) } else { 0 },
            alias_max: *rng.pick(&[0, 0, 1, 3]),
            expiries: rng.pick::<&[u32]>(&[&[7200][..], &[7200, u32::MAX], &[7200], &[0, 7200], &[1], &[0, 1, 3]]),
        }
    }

    /// The one who sees every will.
    pub fn watcher() -> Profile {
        Profile {
            version: Version::V5,
            groups: false,
            watcher: true,
            ack_delay_us: 0,
            keep_alive_s: 0,
            receive_maxima: &[u16::MAX],
            packet_bytes: 0,
            alias_max: 0,
            expiries: &[u32::MAX],
        }
    }
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(at: usize, cluster: usize, profile: Profile) -> Client {
        let quiet = profile.watcher;
        Client {
            at,
            cluster,
            id: format!("client-{cluster}-{at}"),
            profile,
            conn: None,
            epoch: None,
            out: VecDeque::new(),
            received: HashMap::new(),
            next_packet: 0,
            filters: Vec::new(),
            lease: Lease::default(),
            unanswered: None,
            connecting: false,
            serial: 0,
            order: 0,
            comes_back: quiet,
            quiet,
        }
    }

    /// Nothing is unfinished between this client and the broker.
    pub fn settled(&self) -> bool {
        let conn = self.conn.as_ref().is_some_and(|conn| conn.open && conn.asked.is_empty() && conn.acks.is_empty());
        conn && self.out.is_empty() && self.received.is_empty()
    }

    /// It has said goodbye, and the connection is gone.
    pub fn left(&self) -> bool {
        self.conn.is_none() && self.serial > 0 && self.quiet && !self.connecting
    }

    /// Why it is not settled, for the message of a failure.
    pub fn unsettled(&self) -> String {
        let conn = self
            .conn
            .as_ref()
            .map(|conn| format!("open {} asked {:?} acks {}", conn.open, conn.asked, conn.acks.len()));
        format!("{}: {conn:?}, {} unfinished out, unreleased in {:?}", self.id, self.out.len(), self.received)
    }

    fn packet(&mut self) -> u16 {
        loop {
            self.next_packet = self.next_packet.wrapping_add(1).max(1);
            let used = self.out.iter().any(|out| out.packet == self.next_packet)
                || self.conn.iter().flat_map(|conn| &conn.asked).any(|asked| asked.packet == self.next_packet);
            if !used {
                return self.next_packet;
            }
        }
    }

    /// Writes on the living connection.
    fn write(&mut self, env: &mut Env, bytes: Vec<u8>) {
        if let Some(conn) = &self.conn {
            env.net.write(conn.pipe, bytes, (env.now_us, &mut env.queue, &mut env.rng));
        }
    }

    /// Notes that an answer is due.
    fn ask(&mut self, env: &Env, awaits: Awaits, packet: u16, subscriptions: Vec<usize>) {
        if let Some(conn) = &mut self.conn {
            conn.sent += 1;
            let index = conn.sent;
            conn.asked.push_back(Asked { awaits, packet, at_us: env.now_us, index, subscriptions });
        }
    }

    /// An answer came: the request it belongs to. Whatever was sent before it was read.
    fn answered(&mut self, env: &mut Env, awaits: Awaits, packet: u16) -> Option<Asked> {
        let conn = self.conn.as_mut()?;
        let publishes = |awaits| matches!(awaits, Awaits::Puback | Awaits::Pubrec);
        let found = conn.asked.iter().position(|asked| asked.awaits == awaits && asked.packet == packet);
        let Some(at) = found else {
            env.fail(&format!("{}: {awaits:?} for {packet}, which was not asked for", self.id));
            return None;
        };
        // Acknowledgements of publishes leave in the order in which the publishes came.
        if publishes(awaits) && conn.asked.iter().take(at).any(|asked| publishes(asked.awaits)) {
            env.fail(&format!("{}: {awaits:?} {packet} out of order, {:?}", self.id, conn.asked));
        }
        let asked = conn.asked.remove(at)?;
        while conn.unproved.front().is_some_and(|(index, _)| *index <= asked.index) {
            if let Some((_, number)) = conn.unproved.pop_front() {
                env.oracle.proved(number, env.now_us);
            }
        }
        Some(asked)
    }

    /// The next operation of this client is due.
    pub fn schedule(&self, env: &mut Env) {
        let at_us = env.now_us + env.rng.between(1, env.plan.gap_us);
        env.queue.push(at_us, Event::Client(self.at));
    }
}
