//! The accepting end of a link in memory: just enough of a broker to speak with a requester or an outlet.

use std::collections::BTreeSet;

use link::etf::Limits;
use link::forwarder::{Forwarder, Interest, Settings};
use link::inlet::Inlet;
use link::names::LinkTopic;
use link::session::{Answer, Fault, Lookup, Reaction, RoutePublish, Session};
use link::wire;
use mqtt::codec::{self, AckKind, Connack, ConnackProperties, Packet, Publish, encode};
use mqtt::types::{PacketId, Qos, Reason, Version};

/// How the acceptor behaves from now on.
#[derive(Clone)]
pub struct Manners {
    pub receive_maximum: Option<u16>,
    pub maximum_packet_bytes: Option<u32>,
    pub maximum_qos: Option<Qos>,
    pub server_keep_alive_s: Option<u16>,
    /// Reason of CONNACK.
    pub connack: Reason,
    /// `actor_init` and batches are read and nothing comes back.
    pub mute: bool,
    /// PINGREQ is not answered.
    pub deaf_to_pings: bool,
    /// Acknowledgements of routes and messages are held back.
    pub hold_acks: bool,
    /// Acknowledgements carry this.
    pub ack: Reason,
    /// The answer says that no bootstrap is needed, as EMQX does for an actor that it knows.
    pub say_no_bootstrap: bool,
    pub link_enabled: bool,
    pub own_cluster: &'static str,
}

impl Default for Manners {
    fn default() -> Manners {
        Manners {
            receive_maximum: None,
            maximum_packet_bytes: None,
            maximum_qos: None,
            server_keep_alive_s: None,
            connack: Reason::Success,
            mute: false,
            deaf_to_pings: false,
            hold_acks: false,
            ack: Reason::NoMatchingSubscribers,
            say_no_bootstrap: false,
            link_enabled: true,
            own_cluster: "beta",
        }
    }
}

/// A message as it arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrived {
    pub dup: bool,
    pub outer_qos: Qos,
    pub topic: String,
    pub payload: Vec<u8>,
}

/// The acceptor: one connection at a time, a forwarder that outlives it.
pub struct Acceptor {
    pub manners: Manners,
    pub forwarder: Forwarder,
    pub inlet: Inlet,
    pub interest: BTreeSet<String>,
    /// Every change, `+filter` or `-filter`.
    pub changes: Vec<String>,
    pub arrived: Vec<Arrived>,
    pub batches: Vec<usize>,
    pub batch_packet_bytes: Vec<usize>,
    pub heartbeats: usize,
    pub inits: usize,
    pub pings: usize,
    pub disconnects: Vec<Reason>,
    pub faults: Vec<Fault>,
    pub held: Vec<PacketId>,
    pub unacknowledged_max: usize,
    unacknowledged: usize,
    session: Session,
    inbox: Vec<u8>,
}

impl Acceptor {
    pub fn new(settings: Settings) -> Acceptor {
        Acceptor {
            manners: Manners::default(),
            forwarder: Forwarder::new(settings),
            inlet: Inlet::new(true, vec!["#".into()], 16, Limits::default()),
            interest: BTreeSet::new(),
            changes: Vec::new(),
            arrived: Vec::new(),
            batches: Vec::new(),
            batch_packet_bytes: Vec::new(),
            heartbeats: 0,
            inits: 0,
            pings: 0,
            disconnects: Vec::new(),
            faults: Vec::new(),
            held: Vec::new(),
            unacknowledged_max: 0,
            unacknowledged: 0,
            session: Session::default(),
            inbox: Vec::new(),
        }
    }

    /// A new connection.
    pub fn accept(&mut self) {
        self.session = Session::default();
        self.inbox.clear();
        self.held.clear();
        self.unacknowledged = 0;
    }

    /// Reads a piece; false when the connection is to be closed after `out` is delivered.
    pub fn read(&mut self, now: u64, piece: &[u8], out: &mut Vec<u8>) -> bool {
        self.inbox.extend_from_slice(piece);
        let inbox = std::mem::take(&mut self.inbox);
        let mut at = 0;
        let mut open = true;
        while let Some(raw) = codec::split(&inbox[at..], 16 << 20).expect("our end writes well-formed bytes") {
            let packet = codec::decode(Version::V5, raw).expect("our end writes valid packets");
            open &= self.packet(now, packet, raw.total, out);
            at += raw.total;
        }
        self.inbox = inbox[at..].to_vec();
        open
    }

    pub fn tick(&mut self, now: u64) {
        let (interest, changes) = (&mut self.interest, &mut self.changes);
        self.forwarder.tick(now, &mut |event| apply(interest, changes, event));
    }

    /// Sends the acknowledgements that were held back.
    pub fn release(&mut self, out: &mut Vec<u8>) {
        for id in std::mem::take(&mut self.held) {
            encode::ack(out, Version::V5, AckKind::Puback, id, self.manners.ack);
        }
        self.unacknowledged = 0;
    }

    fn packet(&mut self, now: u64, packet: Packet<'_>, bytes: usize, out: &mut Vec<u8>) -> bool {
        match packet {
            Packet::Connect(_) => {
                let manners = &self.manners;
                let properties = ConnackProperties {
                    receive_maximum: manners.receive_maximum,
                    maximum_packet_bytes: manners.maximum_packet_bytes,
                    maximum_qos: manners.maximum_qos,
                    server_keep_alive_s: manners.server_keep_alive_s,
                    ..ConnackProperties::default()
                };
                let connack = Connack { session_present: false, reason: manners.connack, properties };
                encode::connack(out, Version::V5, &connack);
                manners.connack == Reason::Success
            }
            Packet::Subscribe(subscribe) => {
                let granted = [Reason::GrantedQos1];
                encode::suback(out, Version::V5, subscribe.packet_id, granted.into_iter());
                true
            }
            Packet::Publish(publish) => {
                assert!(
                    self.manners.maximum_packet_bytes.is_none_or(|bound| bytes <= bound as usize),
                    "a packet of {bytes} bytes is above our Maximum Packet Size"
                );
                self.publish(now, &publish, bytes, out)
            }
            Packet::Pingreq => {
                self.pings += 1;
                if !self.manners.deaf_to_pings {
                    encode::pingresp(out);
                }
                true
            }
            Packet::Puback(_) => true,
            Packet::Disconnect(disconnect) => {
                self.disconnects.push(disconnect.reason);
                false
            }
            other => panic!("a link does not send {other:?}"),
        }
    }

    fn publish(&mut self, now: u64, publish: &Publish<'_>, bytes: usize, out: &mut Vec<u8>) -> bool {
        if publish.qos == Qos::AtLeastOnce {
            self.unacknowledged += 1;
            self.unacknowledged_max = self.unacknowledged_max.max(self.unacknowledged);
        }
        match LinkTopic::parse(publish.topic) {
            Some(LinkTopic::Route { cluster }) => self.route(now, cluster, publish, bytes, out),
            Some(LinkTopic::Msg { .. }) => {
                let mut scratch = Vec::new();
                let inbound = Inlet::receive(Some(&self.inlet), 0, publish.payload, &mut scratch).expect("our message");
                self.arrived.push(Arrived {
                    dup: publish.dup,
                    outer_qos: publish.qos,
                    topic: inbound.topic.as_str().into(),
                    payload: inbound.payload.into(),
                });
                self.acknowledge(publish, out);
                true
            }
            other => panic!("{other:?} is not sent here"),
        }
    }

    fn route(&mut self, now: u64, cluster: &str, publish: &Publish<'_>, bytes: usize, out: &mut Vec<u8>) -> bool {
        self.note(publish.payload, bytes);
        if self.manners.mute {
            return true;
        }
        let lookup = Lookup::Known { enabled: self.manners.link_enabled, forwarder: &mut self.forwarder };
        let route = RoutePublish {
            cluster,
            payload: publish.payload,
            response_topic: publish.properties.response_topic,
            correlation_data: publish.properties.correlation_data,
        };
        let (interest, changes) = (&mut self.interest, &mut self.changes);
        let own = self.manners.own_cluster;
        let mut events = |event: Interest<'_>| apply(interest, changes, event);
        match self.session.publish(now, own, &route, lookup, &Limits::default(), &mut events) {
            Reaction::Acknowledge => self.acknowledge(publish, out),
            Reaction::Answer(answer) => {
                self.acknowledge(publish, out);
                self.answer(answer, out);
            }
            Reaction::Disconnect(fault) => {
                self.faults.push(fault);
                encode::disconnect(out, Version::V5, Fault::REASON, &encode::DisconnectProps::default());
                return false;
            }
        }
        true
    }

    fn note(&mut self, payload: &[u8], bytes: usize) {
        let mut scratch = Vec::new();
        match wire::decode_route(payload, &mut scratch, &Limits::default()).expect("our payload") {
            wire::RouteMessage::Route { ops, .. } => {
                self.batches.push(ops.len());
                self.batch_packet_bytes.push(bytes);
            }
            wire::RouteMessage::Heartbeat { .. } => self.heartbeats += 1,
            wire::RouteMessage::ActorInit { .. } => self.inits += 1,
            wire::RouteMessage::ActorInitAck { .. } => panic!("a requester answers nothing"),
        }
    }

    fn acknowledge(&mut self, publish: &Publish<'_>, out: &mut Vec<u8>) {
        let Some(id) = publish.packet_id else { return };
        if self.manners.hold_acks {
            return self.held.push(id);
        }
        self.unacknowledged -= 1;
        encode::ack(out, Version::V5, AckKind::Puback, id, self.manners.ack);
    }

    fn answer(&mut self, answer: Answer, out: &mut Vec<u8>) {
        let mut payload = answer.payload;
        if self.manners.say_no_bootstrap && answer.refusal.is_none() {
            payload.clear();
            wire::put_actor_init_ack(&mut payload, "n", Ok(false));
        }
        let properties =
            wire::Properties { correlation_data: answer.correlation_data.as_deref(), ..wire::Properties::default() };
        let mut forwarded = Vec::new();
        properties.forwarded(&mut forwarded);
        let parts = encode::PublishParts {
            qos: Qos::AtLeastOnce,
            topic: &answer.topic,
            packet_id: PacketId::new(1),
            forwarded: &forwarded,
            payload: &payload,
            ..encode::PublishParts::default()
        };
        encode::publish(out, Version::V5, &parts);
    }
}

fn apply(interest: &mut BTreeSet<String>, changes: &mut Vec<String>, event: Interest<'_>) {
    match event {
        Interest::Add(filter) => {
            assert!(interest.insert(filter.into()), "{filter} was added twice");
            changes.push(format!("+{filter}"));
        }
        Interest::Remove(filter) => {
            assert!(interest.remove(filter), "{filter} was removed without being there");
            changes.push(format!("-{filter}"));
        }
    }
}
