//! A connection that sends exactly the bytes it is told, and reads packets with [`crate::wire`].
//! Called by tests of bad input, of odd fragments and of what a library would hide.
//!
//! Always true: it acknowledges nothing by itself; every read has a bound; the end of the connection is a
//! value, never a hang.

use crate::bound::SHORT;
use crate::wire::{self, Connect, Packet, Received, kind};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A connection to a broker.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    version: u8,
    bytes: Vec<u8>,
    ended: bool,
}

impl Raw {
    /// Opens a connection and sends nothing.
    #[track_caller]
    pub fn open(broker: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&broker, SHORT)
            .unwrap_or_else(|error| panic!("{broker} does not accept: {error}"));
        // One write is one segment: fragments of the tests must not be glued together here.
        stream.set_nodelay(true).expect("TCP has no-delay");
        stream.set_write_timeout(Some(SHORT)).expect("a bound on writes");
        Self { stream, version: wire::V5, bytes: Vec::new(), ended: false }
    }

    /// Opens a connection, sends CONNECT and requires a CONNACK that accepts.
    #[track_caller]
    pub fn connect(broker: SocketAddr, connect: &Connect<'_>) -> Self {
        let (raw, connack) = Self::connack(broker, connect);
        assert_eq!(connack.reason(), 0, "the broker refused {connect:?}: {connack:?}");
        raw
    }

    /// Opens a connection, sends CONNECT and gives the CONNACK, whatever it says.
    #[track_caller]
    pub fn connack(broker: SocketAddr, connect: &Connect<'_>) -> (Self, Packet) {
        let mut raw = Self::open(broker);
        raw.version = connect.version;
        raw.send(&connect.bytes());
        let connack = raw.expect(kind::CONNACK);
        (raw, connack)
    }

    /// The version in which packets are read, when [`Raw::connect`] was not used.
    pub fn speak(&mut self, version: u8) {
        self.version = version;
    }

    /// Writes bytes; panics when the broker has closed.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap_or_else(|error| panic!("cannot send {} bytes: {error}", bytes.len()));
    }

    /// Writes bytes to a broker that may close meanwhile.
    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// A second handle, to write from another thread while this one reads.
    pub fn writer(&self) -> TcpStream {
        self.stream.try_clone().expect("a descriptor can be doubled")
    }

    /// The next packet, or `None` when the broker closed the connection; panics after `bound`.
    #[track_caller]
    pub fn next(&mut self, bound: Duration) -> Option<Packet> {
        self.poll(bound).unwrap_or_else(|()| panic!("neither a packet nor an end within {bound:?}"))
    }

    /// Like [`Raw::next`], but a bound that passes is a value.
    #[expect(clippy::result_unit_err, reason = "the only error is that the bound has passed")]
    pub fn poll(&mut self, bound: Duration) -> Result<Option<Packet>, ()> {
        let until = Instant::now() + bound;
        loop {
            if let Some(packet) = wire::take(&mut self.bytes) {
                return Ok(Some(packet));
            }
            if self.ended {
                return Ok(None);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(());
            }
            self.read_more(left);
        }
    }

    /// Reads so many bytes as they come, packets or not.
    #[track_caller]
    pub fn read_exactly(&mut self, into: &mut Vec<u8>, count: usize) {
        let until = Instant::now() + SHORT;
        while self.bytes.len() < count {
            assert!(!self.ended, "the broker closed after {} of {count} bytes", self.bytes.len());
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {count} bytes within {SHORT:?}", self.bytes.len());
            self.read_more(left);
        }
        into.extend(self.bytes.drain(..count));
    }

    fn read_more(&mut self, bound: Duration) {
        self.stream.set_read_timeout(Some(bound.max(Duration::from_millis(1)))).expect("a bound on reads");
        let mut chunk = [0; 64 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // A reset is an end too: it is what a peer that is not read gets.
            Err(_) => self.ended = true,
        }
    }

    /// The next packet, which must be of this kind.
    #[track_caller]
    pub fn expect(&mut self, kind: u8) -> Packet {
        match self.next(SHORT) {
            Some(packet) if packet.kind == kind => packet,
            Some(packet) => panic!("packet {kind} was expected, this came: {packet:?}"),
            None => panic!("packet {kind} was expected, the broker closed the connection"),
        }
    }

    /// The next packet, which must be a PUBLISH; it is acknowledged as a client does (QoS 2 with PUBREC
    /// only, so that a test sees the release).
    #[track_caller]
    pub fn message(&mut self) -> Received {
        let publish = self.expect(kind::PUBLISH).publish(self.version);
        match (publish.qos, publish.packet_id) {
            (1, Some(id)) => self.send(&wire::ack(kind::PUBACK, id)),
            (2, Some(id)) => self.send(&wire::ack(kind::PUBREC, id)),
            _ => {}
        }
        publish
    }

    /// Subscribes and requires the grant.
    #[track_caller]
    pub fn subscribe(&mut self, filter: &str, qos: u8) {
        let bytes = wire::subscribe(self.version, 1, filter, qos);
        self.send(&bytes);
        let suback = self.expect(kind::SUBACK);
        assert_eq!(suback.reason(), qos, "the broker did not grant `{filter}`: {suback:?}");
    }

    /// Subscribes while messages come in: they are passed over.
    #[track_caller]
    pub fn subscribe_quietly(&mut self, filter: &str, qos: u8) {
        let bytes = wire::subscribe(self.version, 1, filter, qos);
        self.send(&bytes);
        while self.next(SHORT).expect("the broker stays").kind != kind::SUBACK {}
    }

    /// Publishes at QoS 1 and requires the acknowledgement.
    #[track_caller]
    pub fn publish_acked(&mut self, topic: &str, payload: &[u8], packet_id: u16) {
        let bytes = wire::Publish::new(topic, payload).acked(1, packet_id).bytes(self.version);
        self.send(&bytes);
        let puback = self.expect(kind::PUBACK);
        assert_eq!(puback.packet_id(), packet_id);
        assert!(puback.reason() < 0x80, "the broker refused the publish: {puback:?}");
    }

    /// Sends PINGREQ and requires PINGRESP as the next packet: everything before it has been handled.
    #[track_caller]
    pub fn ping(&mut self) {
        self.send(&wire::pingreq());
        self.expect(kind::PINGRESP);
    }

    /// Waits until the broker closes; gives the packets that came before.
    #[track_caller]
    pub fn closed(&mut self, bound: Duration) -> Vec<Packet> {
        let until = Instant::now() + bound;
        let mut packets = Vec::new();
        while let Some(packet) = self.next(until.saturating_duration_since(Instant::now())) {
            packets.push(packet);
        }
        packets
    }

    /// Ends our half of the connection; the broker's half stays open.
    pub fn shut_writing(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}
