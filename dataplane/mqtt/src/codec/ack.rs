//! PUBACK, PUBREC, PUBREL and PUBCOMP: one shape, four steps of the handshakes.
//! Decoded on the home shard for every QoS 1 and 2 message. Always true: the reason belongs to its packet.

use super::{
    Raw,
    properties::{List, Set, UserProperties, id},
    read::Reader,
};
use crate::types::{Malformed, PacketId, Reason, Version};

/// Which acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum AckKind {
    /// QoS 1: received.
    Puback,
    /// QoS 2, first step: received.
    Pubrec,
    /// QoS 2, second step: released.
    Pubrel,
    /// QoS 2, third step: complete.
    Pubcomp,
}

impl AckKind {
    /// First byte of the packet.
    #[inline]
    pub(super) fn first(self) -> u8 {
        match self {
            AckKind::Puback => 0x40,
            AckKind::Pubrec => 0x50,
            //= MQTT-3.6.1-1
            AckKind::Pubrel => 0x62,
            AckKind::Pubcomp => 0x70,
        }
    }

    /// May this packet carry this reason?
    //= MQTT-3.4.2-1
    //= MQTT-3.5.2-1
    //= MQTT-3.6.2-1
    //= MQTT-3.7.2-1
    #[inline]
    pub fn allows(self, reason: Reason) -> bool {
        use Reason::*;
        match self {
            AckKind::Puback | AckKind::Pubrec => matches!(
                reason,
                Success
                    | NoMatchingSubscribers
                    | UnspecifiedError
                    | ImplementationSpecific
                    | NotAuthorized
                    | TopicNameInvalid
                    | PacketIdInUse
                    | QuotaExceeded
                    | PayloadFormatInvalid
            ),
            AckKind::Pubrel | AckKind::Pubcomp => matches!(reason, Success | PacketIdNotFound),
        }
    }
}

/// One acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ack<'a> {
    /// What is acknowledged.
    pub packet_id: PacketId,
    /// How it went; `Success` before version 5.
    pub reason: Reason,
    /// Words for a human.
    pub reason_string: Option<&'a str>,
    /// User properties.
    pub user: UserProperties<'a>,
}

#[inline]
pub(super) fn decode<'a>(version: Version, kind: AckKind, raw: Raw<'a>) -> Result<Ack<'a>, Malformed> {
    // MQTT 3.1 lets PUBREL carry DUP.
    let ignored = if version == Version::V31 && kind == AckKind::Pubrel { 0x08 } else { 0 };
    if raw.first & !ignored != kind.first() {
        return Err(Malformed::FixedFlags);
    }
    let mut read = Reader::new(raw.body);
    let packet_id = read.packet_id()?;
    if read.is_empty() {
        return Ok(Ack { packet_id, reason: Reason::Success, reason_string: None, user: UserProperties::default() });
    }
    if version != Version::V5 {
        return Err(Malformed::TrailingBytes);
    }
    let code = read.u8()?;
    let reason = Reason::from_u8(code).filter(|reason| kind.allows(*reason)).ok_or(Malformed::ReasonCode(code))?;
    let (reason_string, user) = explanation(&mut read)?;
    Ok(Ack { packet_id, reason, reason_string, user })
}

/// The property list of packets that explain a reason and nothing else, if there is one, up to the end.
pub(super) fn explanation<'a>(read: &mut Reader<'a>) -> Result<(Option<&'a str>, UserProperties<'a>), Malformed> {
    if read.is_empty() {
        return Ok((None, UserProperties::default()));
    }
    let explained = reason_list(read)?;
    read.end()?;
    Ok(explained)
}

/// A list of a reason string and user properties.
pub(super) fn reason_list<'a>(read: &mut Reader<'a>) -> Result<(Option<&'a str>, UserProperties<'a>), Malformed> {
    let mut list = List::take(read, Set::of(&[id::REASON_STRING, id::USER_PROPERTY]))?;
    let mut reason_string = None;
    while let Some((property, value)) = list.next()? {
        if property == id::REASON_STRING {
            reason_string = value.text();
        }
    }
    Ok((reason_string, list.user()))
}
