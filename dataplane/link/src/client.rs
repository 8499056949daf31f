//! The MQTT 5 client that requester and outlet share: when to dial, CONNECT, bytes in pieces, keep-alive, ending.
//!
//! Lives inside its owner on the owner's shard. Always true: at most one connection exists at a time; after an error
//! nothing more is read or written until the shell reports `closed`; a DISCONNECT precedes every end of ours, because
//! EMQX sends unacknowledged messages again only after a DISCONNECT and counts them lost after a bare close.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use mqtt::codec::{self, Connack, Connect, ConnectProperties, Packet, encode};
use mqtt::types::{PacketId, Qos, Reason, Version};

use crate::error::LinkError;

/// Who we are on the wire, and the clocks of one connection.
#[derive(Clone)]
pub struct Login {
    /// Client id, see `names`.
    pub client_id: String,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Vec<u8>>,
    /// Keep-alive that we ask for; the remote may order another. 0: none.
    pub keep_alive_s: u16,
    /// Time from the start of one attempt to the start of the next.
    pub reconnect_ms: u64,
    /// Time for the transport and CONNACK.
    pub connect_timeout_ms: u64,
    /// Time for an answer to PINGREQ.
    pub ping_timeout_ms: u64,
    /// Largest packet that we read. The remote only sends acknowledgements and answers on these connections.
    pub packet_bytes_max: usize,
}

impl Login {
    /// EMQX's clocks, for `client_id` without credentials.
    pub fn new(client_id: String) -> Login {
        Login {
            client_id,
            username: None,
            password: None,
            keep_alive_s: 60,
            reconnect_ms: 5000,
            connect_timeout_ms: 15_000,
            ping_timeout_ms: 15_000,
            packet_bytes_max: 1 << 20,
        }
    }
}

impl fmt::Debug for Login {
    /// Without the password: settings end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("client_id", &self.client_id)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// What CONNACK told us about the remote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteLimits {
    /// Publishes of ours that may be unacknowledged at once.
    pub receive_maximum: u16,
    /// Largest packet that it takes.
    pub packet_bytes_max: usize,
    /// Largest QoS that it takes.
    pub qos_max: Qos,
}

impl Default for RemoteLimits {
    fn default() -> RemoteLimits {
        RemoteLimits { receive_maximum: u16::MAX, packet_bytes_max: codec::PACKET_BYTES_MAX, qos_max: Qos::ExactlyOnce }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// No connection.
    Down,
    /// The shell is dialling.
    Dialling,
    /// CONNECT is out.
    Connecting,
    /// CONNACK came.
    Up,
    /// Ended by us or by an error; waiting for `closed`.
    Ending,
}

/// Connection state of one requester or outlet.
#[derive(Debug)]
pub(crate) struct Client {
    login: Login,
    phase: Phase,
    stopped: bool,
    dial_at: u64,
    phase_since: u64,
    keep_alive_us: u64,
    ping_at: u64,
    ping_unanswered_since: Option<u64>,
    ping_sent_at: u64,
    ping_answered: Option<u64>,
    last_packet_id: u16,
    inbox: Inbox,
    pub(crate) remote: RemoteLimits,
}

/// What became of a packet that [`Client::packet`] looked at.
pub(crate) enum Handled {
    /// CONNACK: the connection is up.
    Up,
    /// Nothing more to do.
    Done,
    /// The owner's business.
    Other,
}

impl Client {
    pub(crate) fn new(login: Login) -> Client {
        let inbox = Inbox { bytes: Vec::new(), packet_bytes_max: login.packet_bytes_max };
        Client {
            login,
            phase: Phase::Down,
            stopped: false,
            dial_at: 0,
            phase_since: 0,
            keep_alive_us: 0,
            ping_at: 0,
            ping_unanswered_since: None,
            ping_sent_at: 0,
            ping_answered: None,
            last_packet_id: 0,
            inbox,
            remote: RemoteLimits::default(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    /// When the last answered PINGREQ of this connection left: what left before it has arrived.
    pub(crate) fn ping_answered(&self) -> Option<u64> {
        self.ping_answered
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Up)
    }

    pub(crate) fn poll_dial(&mut self, now: u64) -> bool {
        if self.phase != Phase::Down || self.stopped || now < self.dial_at {
            return false;
        }
        self.phase = Phase::Dialling;
        self.phase_since = now;
        self.dial_at = now.saturating_add(us(self.login.reconnect_ms));
        true
    }

    pub(crate) fn opened(&mut self, now: u64, out: &mut Vec<u8>) {
        if self.phase != Phase::Dialling {
            return;
        }
        self.phase = Phase::Connecting;
        self.phase_since = now;
        self.keep_alive_us = u64::from(self.login.keep_alive_s) * 1_000_000;
        self.ping_at = now.saturating_add(self.keep_alive_us);
        self.ping_unanswered_since = None;
        self.ping_answered = None;
        self.last_packet_id = 0;
        self.remote = RemoteLimits::default();
        encode::connect(
            out,
            &Connect {
                version: Version::V5,
                clean_start: true,
                keep_alive_s: self.login.keep_alive_s,
                client_id: &self.login.client_id,
                username: self.login.username.as_deref(),
                password: self.login.password.as_deref(),
                will: None,
                properties: ConnectProperties::default(),
                bridge: false,
            },
        );
    }

    /// Takes the inbox out, so that packets can be handled while the owner is borrowed mutably.
    pub(crate) fn take_inbox(&mut self) -> Inbox {
        core::mem::take(&mut self.inbox)
    }

    pub(crate) fn return_inbox(&mut self, inbox: Inbox) {
        self.inbox = inbox;
    }

    pub(crate) fn packet(&mut self, packet: &Packet<'_>) -> Result<Handled, LinkError> {
        self.ping_unanswered_since = None;
        match packet {
            Packet::Connack(connack) if self.phase == Phase::Connecting => {
                self.accepted(connack)?;
                Ok(Handled::Up)
            }
            Packet::Disconnect(disconnect) => Err(LinkError::RemoteDisconnected(disconnect.reason)),
            _ if self.phase == Phase::Connecting => Err(LinkError::PeerMisbehaved("a packet before CONNACK")),
            Packet::Pingresp => {
                self.ping_answered = Some(self.ping_sent_at);
                Ok(Handled::Done)
            }
            _ => Ok(Handled::Other),
        }
    }

    fn accepted(&mut self, connack: &Connack<'_>) -> Result<(), LinkError> {
        if connack.reason != Reason::Success {
            return Err(LinkError::ConnectRefused(connack.reason));
        }
        let properties = &connack.properties;
        self.phase = Phase::Up;
        self.remote = RemoteLimits {
            receive_maximum: properties.receive_maximum.unwrap_or(u16::MAX),
            packet_bytes_max: properties.maximum_packet_bytes.map_or(codec::PACKET_BYTES_MAX, |bytes| bytes as usize),
            qos_max: properties.maximum_qos.unwrap_or(Qos::ExactlyOnce),
        };
        if let Some(seconds) = properties.server_keep_alive_s {
            let begun = self.ping_at.saturating_sub(self.keep_alive_us);
            self.keep_alive_us = u64::from(seconds) * 1_000_000;
            self.ping_at = begun.saturating_add(self.keep_alive_us);
        }
        Ok(())
    }

    /// PINGREQ once per keep-alive whatever else is sent: heartbeats and QoS 0 publishes get no answer, so only a
    /// ping tells a dead remote from a quiet one.
    pub(crate) fn tick(&mut self, now: u64, out: &mut Vec<u8>) -> Result<(), LinkError> {
        match self.phase {
            Phase::Dialling | Phase::Connecting if now >= self.connect_deadline() => Err(LinkError::ConnectTimeout),
            Phase::Up => {
                if self.silence_deadline().is_some_and(|deadline| now >= deadline) {
                    return Err(LinkError::Silent);
                }
                if self.keep_alive_us > 0 && now >= self.ping_at {
                    encode::pingreq(out);
                    self.ping_at = now.saturating_add(self.keep_alive_us);
                    self.ping_sent_at = now;
                    self.ping_unanswered_since.get_or_insert(now);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        match self.phase {
            Phase::Down if self.stopped => None,
            Phase::Down => Some(self.dial_at),
            Phase::Dialling | Phase::Connecting => Some(self.connect_deadline()),
            Phase::Up => earliest(self.silence_deadline(), (self.keep_alive_us > 0).then_some(self.ping_at)),
            Phase::Ending => None,
        }
    }

    fn connect_deadline(&self) -> u64 {
        self.phase_since.saturating_add(us(self.login.connect_timeout_ms))
    }

    fn silence_deadline(&self) -> Option<u64> {
        self.ping_unanswered_since.map(|since| since.saturating_add(us(self.login.ping_timeout_ms)))
    }

    /// Ends the connection because of `error`, with a DISCONNECT where one is due.
    pub(crate) fn fail(&mut self, error: &LinkError, out: &mut Vec<u8>) {
        if let (Phase::Up, Some(reason)) = (self.phase, error.reason()) {
            encode::disconnect(out, Version::V5, reason, &encode::DisconnectProps::default());
        }
        self.phase = Phase::Ending;
    }

    /// Ends the connection for good. The shell closes after flushing `out`.
    pub(crate) fn stop(&mut self, out: &mut Vec<u8>) {
        if self.is_open() {
            encode::disconnect(out, Version::V5, Reason::Success, &encode::DisconnectProps::default());
        }
        self.stopped = true;
        if self.phase != Phase::Down {
            self.phase = Phase::Ending;
        }
    }

    pub(crate) fn closed(&mut self) {
        self.phase = Phase::Down;
        self.inbox.bytes.clear();
    }

    /// The id after the last one used, in the circle 1..=65535.
    pub(crate) fn next_packet_id(&self) -> PacketId {
        let next = self.last_packet_id.checked_add(1).unwrap_or(1);
        PacketId::new(next).expect("the successor of 65535 is 1, so none is 0")
    }

    /// Takes that id.
    pub(crate) fn use_packet_id(&mut self) -> PacketId {
        let id = self.next_packet_id();
        self.last_packet_id = id.get();
        id
    }
}

/// Bytes of packets that have not arrived whole.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    packet_bytes_max: usize,
}

impl Inbox {
    /// Hands every packet that `piece` completes to `handle`; keeps the rest. Holds at most one packet and one piece.
    pub(crate) fn feed(
        &mut self,
        piece: &[u8],
        mut handle: impl FnMut(Packet<'_>) -> Result<(), LinkError>,
    ) -> Result<(), LinkError> {
        let packet_bytes_max = self.packet_bytes_max;
        let mut each = |bytes: &[u8]| -> Result<usize, LinkError> {
            let mut at = 0;
            while let Some(raw) = codec::split(&bytes[at..], packet_bytes_max)? {
                handle(codec::decode(Version::V5, raw)?)?;
                at += raw.total;
            }
            Ok(at)
        };
        if self.bytes.is_empty() {
            let at = each(piece)?;
            self.bytes.extend_from_slice(&piece[at..]);
        } else {
            self.bytes.extend_from_slice(piece);
            let at = each(&self.bytes)?;
            self.bytes.drain(..at);
        }
        Ok(())
    }
}

/// Milliseconds of a setting as microseconds of the monotonic clock.
pub(crate) fn us(ms: u64) -> u64 {
    ms.saturating_mul(1000)
}

/// The earlier of two optional times.
pub(crate) fn earliest(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}
