//! Why a connection of a link must be closed, and who is to blame.
//!
//! Returned by requester and outlet to the shell, which flushes what was appended to `out` (a DISCONNECT where one
//! is due), closes, and reports back with `closed`. Always true: our own mistakes are assertions, never a value here.

use alloc::string::String;
use core::fmt;

use mqtt::types::{Malformed, Reason};

use crate::wire::WireError;

/// Bytes of a remote's words that we keep and show.
pub const REMOTE_TEXT_BYTES_MAX: usize = 128;

/// What ends a connection that we dialled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkError {
    /// The remote's bytes are no MQTT.
    Malformed(Malformed),
    /// A packet that the remote may not send now.
    PeerMisbehaved(&'static str),
    /// No connection, or no CONNACK, within the connect timeout.
    ConnectTimeout,
    /// CONNACK with a failure.
    ConnectRefused(Reason),
    /// The remote takes QoS 0 only; routes need an acknowledgement.
    RemoteLacksQos1,
    /// The remote acknowledged `actor_init` with a failure, usually an ACL.
    InitNotTaken(Reason),
    /// No answer to `actor_init` in time: not intercepted (mountpoint, link protocol off) or not delivered (ACL).
    HandshakeTimeout,
    /// The remote knows the protocol and says no, in its own words.
    InitRefused(String),
    /// The answer to our `actor_init` cannot be read.
    BadAnswer(WireError),
    /// The remote sent DISCONNECT.
    RemoteDisconnected(Reason),
    /// A publish of ours was not acknowledged in time.
    AckTimeout,
    /// PINGREQ was not answered in time.
    Silent,
}

impl LinkError {
    /// What our DISCONNECT says; None when the other side has already ended the connection or there is none.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            LinkError::Malformed(malformed) => Some(malformed.reason()),
            LinkError::PeerMisbehaved(_) | LinkError::BadAnswer(_) => Some(Reason::ProtocolError),
            LinkError::RemoteLacksQos1
            | LinkError::InitNotTaken(_)
            | LinkError::HandshakeTimeout
            | LinkError::InitRefused(_)
            | LinkError::AckTimeout
            | LinkError::Silent => Some(Reason::Success),
            LinkError::ConnectTimeout | LinkError::ConnectRefused(_) | LinkError::RemoteDisconnected(_) => None,
        }
    }

    pub(crate) fn refused(words: &str) -> LinkError {
        let end = (0..=words.len().min(REMOTE_TEXT_BYTES_MAX)).rev().find(|&end| words.is_char_boundary(end));
        LinkError::InitRefused(words[..end.unwrap_or(0)].into())
    }
}

impl From<Malformed> for LinkError {
    fn from(malformed: Malformed) -> LinkError {
        LinkError::Malformed(malformed)
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkError::Malformed(malformed) => write!(f, "remote sent malformed bytes: {malformed}"),
            LinkError::PeerMisbehaved(what) => write!(f, "remote broke the protocol: {what}"),
            LinkError::ConnectTimeout => f.write_str("remote did not answer CONNECT in time"),
            LinkError::ConnectRefused(reason) => write!(f, "remote refused the connection: 0x{:02X}", reason.code()),
            LinkError::RemoteLacksQos1 => f.write_str("remote takes QoS 0 only; a link needs QoS 1"),
            LinkError::InitNotTaken(reason) => {
                write!(f, "remote did not take actor_init: 0x{:02X}; may this user publish to $LINK/#?", reason.code())
            }
            LinkError::HandshakeTimeout => {
                f.write_str("remote did not answer actor_init; does it link, without a mountpoint on that listener?")
            }
            LinkError::InitRefused(words) => write!(f, "remote refused the link: {words}"),
            LinkError::BadAnswer(error) => write!(f, "remote's answer to actor_init cannot be read: {error}"),
            LinkError::RemoteDisconnected(reason) => write!(f, "remote disconnected: 0x{:02X}", reason.code()),
            LinkError::AckTimeout => f.write_str("remote did not acknowledge a publish in time"),
            LinkError::Silent => f.write_str("remote did not answer PINGREQ in time"),
        }
    }
}
