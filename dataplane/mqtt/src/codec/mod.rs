//! Bytes to packets and back, for MQTT 3.1, 3.1.1 and 5.0, in both directions.
//! Called on the home shard for every client and by links as clients of other clusters.
//! Always true: decoding borrows and never allocates, costs time in proportion to the packet, and whatever
//! it returns is legal in itself; what is legal *now* is the business of [`crate::connection`].

mod ack;
mod connect;
mod control;
pub mod encode;
pub mod properties;
mod publish;
mod read;
mod subscribe;
#[cfg(test)]
mod tests;

pub use ack::{Ack, AckKind};
pub use connect::{Connack, ConnackProperties, Connect, ConnectProperties, Will};
pub use control::{Auth, Disconnect};
pub use properties::{PublishProperties, SubscriptionIds, UserProperties};
pub use publish::Publish;
pub use read::VAR_INT_MAX;
pub use subscribe::{Filters, Reasons, Suback, Subscribe, SubscribeEntries, SubscribeEntry, Unsubscribe};

use crate::types::{Malformed, Version};

/// Largest packet that the protocol can express: a byte, four bytes of length, and the longest body.
pub const PACKET_BYTES_MAX: usize = 5 + VAR_INT_MAX;

/// One packet's bytes, cut out of a stream and not looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Raw<'a> {
    /// Packet type and flags.
    pub first: u8,
    /// Everything after the remaining length.
    pub body: &'a [u8],
    /// Bytes of the stream that the packet takes.
    pub total: usize,
}

/// One packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packet<'a> {
    /// Opens a connection.
    Connect(Connect<'a>),
    /// Answers CONNECT.
    Connack(Connack<'a>),
    /// Carries a message.
    Publish(Publish<'a>),
    /// Ends a QoS 1 handshake.
    Puback(Ack<'a>),
    /// First answer of a QoS 2 handshake.
    Pubrec(Ack<'a>),
    /// The sender lets go of a QoS 2 message.
    Pubrel(Ack<'a>),
    /// Ends a QoS 2 handshake.
    Pubcomp(Ack<'a>),
    /// Asks for topics.
    Subscribe(Subscribe<'a>),
    /// Answers SUBSCRIBE.
    Suback(Suback<'a>),
    /// Asks for no more.
    Unsubscribe(Unsubscribe<'a>),
    /// Answers UNSUBSCRIBE.
    Unsuback(Suback<'a>),
    /// Are you there?
    Pingreq,
    /// I am.
    Pingresp,
    /// Closes a connection.
    Disconnect(Disconnect<'a>),
    /// One step of an extended authentication.
    Auth(Auth<'a>),
}

/// What the front of a stream says about its first packet.
enum Front {
    /// The length is not complete.
    Unknown,
    /// The length is known; the packet may be incomplete.
    Packet { header: usize, total: usize },
}

/// Looks at the front of `bytes`. `Ok(None)`: not complete, the caller keeps them and brings more. An error
/// is known as soon as the length is: nobody collects a packet that is too large.
#[inline]
pub fn split(bytes: &[u8], packet_bytes_max: usize) -> Result<Option<Raw<'_>>, Malformed> {
    let Front::Packet { header, total } = front(bytes)? else { return Ok(None) };
    //= MQTT-3.2.2-15
    if total > packet_bytes_max {
        return Err(Malformed::PacketTooLarge);
    }
    Ok(match (bytes.first(), bytes.get(header..total)) {
        (Some(first), Some(body)) => Some(Raw { first: *first, body, total }),
        _ => None,
    })
}

/// Bytes that are missing before [`split`] can succeed: how much to reserve. 1 while the length is unknown,
/// 0 when nothing is missing. At most `packet_bytes_max` was promised if `split` said `Ok(None)`.
pub fn missing(bytes: &[u8]) -> usize {
    match front(bytes) {
        Ok(Front::Unknown) => 1,
        Ok(Front::Packet { total, .. }) => total.saturating_sub(bytes.len()),
        Err(_) => 0,
    }
}

#[inline]
fn front(bytes: &[u8]) -> Result<Front, Malformed> {
    match bytes {
        [] => Ok(Front::Unknown),
        [first, ..] if *first < 0x10 => Err(Malformed::PacketType(0)),
        [_, len, ..] if *len < 0x80 => Ok(Front::Packet { header: 2, total: 2 + usize::from(*len) }),
        [_, rest @ ..] => long_front(rest),
    }
}

/// A remaining length of more than one byte.
fn long_front(rest: &[u8]) -> Result<Front, Malformed> {
    let mut len = 0;
    for (at, byte) in rest.iter().take(4).enumerate() {
        len |= usize::from(byte & 0x7F) << (7 * at);
        if *byte < 0x80 {
            return Ok(Front::Packet { header: 2 + at, total: 2 + at + len });
        }
    }
    //= MQTT-1.5.5-1
    if rest.len() < 4 { Ok(Front::Unknown) } else { Err(Malformed::LengthTooLong) }
}

/// Reads one packet. CONNECT brings its own version; of `version` it only matters that there is one.
#[inline]
pub fn decode<'a>(version: Version, raw: Raw<'a>) -> Result<Packet<'a>, Malformed> {
    match raw.first >> 4 {
        3 => publish::decode(version, raw).map(Packet::Publish),
        4 => ack::decode(version, AckKind::Puback, raw).map(Packet::Puback),
        kind => decode_rare(version, kind, raw),
    }
}

/// Everything that is not sent for each message, kept out of the callers' loops.
#[inline(never)]
fn decode_rare<'a>(version: Version, kind: u8, raw: Raw<'a>) -> Result<Packet<'a>, Malformed> {
    Ok(match kind {
        1 => Packet::Connect(connect::decode(raw)?),
        2 => Packet::Connack(connect::decode_connack(version, raw)?),
        5 => Packet::Pubrec(ack::decode(version, AckKind::Pubrec, raw)?),
        6 => Packet::Pubrel(ack::decode(version, AckKind::Pubrel, raw)?),
        7 => Packet::Pubcomp(ack::decode(version, AckKind::Pubcomp, raw)?),
        8 => Packet::Subscribe(subscribe::decode(version, raw)?),
        9 => Packet::Suback(subscribe::decode_suback(version, raw)?),
        10 => Packet::Unsubscribe(subscribe::decode_unsubscribe(version, raw)?),
        11 => Packet::Unsuback(subscribe::decode_unsuback(version, raw)?),
        12 => empty(raw, 0xC0, Packet::Pingreq)?,
        13 => empty(raw, 0xD0, Packet::Pingresp)?,
        14 => Packet::Disconnect(control::decode_disconnect(version, raw)?),
        15 if version == Version::V5 => Packet::Auth(control::decode_auth(raw)?),
        _ => return Err(Malformed::PacketType(kind)),
    })
}

/// A packet of nothing but its fixed header.
fn empty<'a>(raw: Raw<'a>, first: u8, packet: Packet<'a>) -> Result<Packet<'a>, Malformed> {
    //= MQTT-2.1.3-1
    if raw.first != first {
        return Err(Malformed::FixedFlags);
    }
    if raw.body.is_empty() { Ok(packet) } else { Err(Malformed::TrailingBytes) }
}
