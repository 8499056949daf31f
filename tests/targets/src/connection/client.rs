//! One client: what it has sent and nobody has read, what it was sent, and what that obliges it to answer. It judges every
//! packet that it is sent. Called by the world only.

use broker::surface::{Cause, ConnId};
use mqtt::{
    codec::{AckKind, Packet, decode, encode, split},
    types::{PacketId, Qos, Reason, Version},
};

/// What a client sends while nobody reads it is lost beyond this, as if its socket were full.
const UNSENT_BYTES_MAX: usize = 16 << 10;

#[derive(Default)]
pub(super) struct Client {
    /// It has a transport, maybe on its way between two shards.
    pub(super) transport: bool,
    /// Where its connection is.
    pub(super) place: Option<(usize, ConnId)>,
    /// It ended while it was on its way.
    pub(super) ending: Option<Cause>,
    pub(super) reading: bool,
    /// It does not read.
    pub(super) deaf: bool,
    pub(super) unsent: Vec<u8>,
    /// The first packet that it sent, until that says what it speaks.
    opening: Vec<u8>,
    /// Version and largest packet of its CONNECT.
    speaks: Option<(Version, usize)>,
    unread: Vec<u8>,
    greeted: bool,
    owed: Vec<(AckKind, PacketId)>,
}

impl Client {
    /// With a new transport.
    pub(super) fn at(shard: usize, conn: ConnId) -> Client {
        Client { transport: true, place: Some((shard, conn)), reading: true, ..Client::default() }
    }

    /// It sends.
    pub(super) fn sends(&mut self, bytes: &[u8]) {
        if !self.transport || self.unsent.len() + bytes.len() > UNSENT_BYTES_MAX {
            return;
        }
        self.unsent.extend_from_slice(bytes);
        if self.speaks.is_none() {
            self.opening.extend_from_slice(bytes);
            if let Ok(Some(raw)) = split(&self.opening, usize::MAX)
                && let Ok(Packet::Connect(connect)) = decode(Version::V5, raw)
            {
                let largest = connect.properties.maximum_packet_bytes.map_or(usize::MAX, |bytes| bytes as usize);
                self.speaks = Some((connect.version, largest));
            }
        }
    }

    /// It is sent these bytes.
    pub(super) fn hears(&mut self, bytes: &[u8]) {
        // Whoever never said a version that we know is told something in one that it may not know.
        let Some((version, largest)) = self.speaks else { return };
        self.unread.extend_from_slice(bytes);
        let unread = std::mem::take(&mut self.unread);
        let mut rest = &unread[..];
        while let Some(raw) = split(rest, usize::MAX).expect("a server sends packets") {
            assert!(raw.total <= largest, "{} bytes for a client that takes {largest}", raw.total);
            let packet = decode(version, raw).unwrap_or_else(|why| panic!("{why:?} from a server: {rest:02x?}"));
            self.hears_packet(&packet);
            rest = &rest[raw.total..];
        }
        self.unread = rest.to_vec();
    }

    fn hears_packet(&mut self, packet: &Packet<'_>) {
        if let Packet::Connack(_) = packet {
            assert!(!std::mem::replace(&mut self.greeted, true), "a second CONNACK");
            return;
        }
        assert!(self.greeted, "{packet:?} before CONNACK");
        match packet {
            Packet::Publish(publish) => match (publish.qos, publish.packet_id) {
                (Qos::AtMostOnce, None) => {}
                (Qos::AtLeastOnce, Some(id)) => self.owed.push((AckKind::Puback, id)),
                (Qos::ExactlyOnce, Some(id)) => self.owed.push((AckKind::Pubrec, id)),
                _ => panic!("{publish:?}"),
            },
            Packet::Pubrec(ack) if !ack.reason.is_failure() => self.owed.push((AckKind::Pubrel, ack.packet_id)),
            Packet::Pubrel(ack) => self.owed.push((AckKind::Pubcomp, ack.packet_id)),
            Packet::Pubrec(_) | Packet::Puback(_) | Packet::Pubcomp(_) => {}
            Packet::Suback(_) | Packet::Unsuback(_) | Packet::Pingresp | Packet::Disconnect(_) | Packet::Auth(_) => {}
            Packet::Connack(_)
            | Packet::Connect(_)
            | Packet::Subscribe(_)
            | Packet::Unsubscribe(_)
            | Packet::Pingreq => {
                panic!("a server does not send {packet:?}")
            }
        }
    }

    /// The acknowledgements that it owes.
    pub(super) fn answers(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let version = self.speaks.map_or(Version::V5, |(version, _)| version);
        for (kind, id) in self.owed.drain(..) {
            encode::ack(&mut bytes, version, kind, id, Reason::Success);
        }
        bytes
    }
}
