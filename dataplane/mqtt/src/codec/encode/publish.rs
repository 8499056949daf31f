//! PUBLISH on its way out: the packet of every delivery, written in one pass into reserved space.
//! Called on the subscriber's home shard, and by links. Always true: [`publish_bytes`] is exact.

use alloc::vec::Vec;

use super::write::{
    binary_property, flag_property, long_property, packet, short_property, string, text_property, two, user_properties,
    var_int, var_int_len, with_length,
};
use crate::{
    codec::{Publish, PublishProperties, VAR_INT_MAX, properties::id},
    types::{PacketId, Qos, Version},
};

/// What a PUBLISH is made of. `forwarded` are property bytes as [`PublishProperties::forwarded`] or
/// [`forwarded`] make them; before version 5 they are left out, and so are alias, expiry and identifiers.
#[derive(Clone, Copy, Debug, Default)]
pub struct PublishParts<'a> {
    /// It was sent before.
    pub dup: bool,
    /// Quality of service.
    pub qos: Qos,
    /// The RETAIN flag.
    pub retain: bool,
    /// The topic; empty only with an alias that the receiver knows.
    pub topic: &'a str,
    /// The packet id; present exactly if QoS is 1 or 2.
    pub packet_id: Option<PacketId>,
    /// Topic alias.
    pub topic_alias: Option<u16>,
    /// Seconds that the message has left.
    pub message_expiry_s: Option<u32>,
    /// The subscriptions that matched.
    pub subscription_ids: &'a [u32],
    /// Property bytes that are passed on.
    pub forwarded: &'a [u8],
    /// The message.
    pub payload: &'a [u8],
}

impl PublishParts<'_> {
    #[inline]
    fn properties_len(&self) -> usize {
        let mut len = self.forwarded.len();
        if self.topic_alias.is_some() {
            len += 3;
        }
        if self.message_expiry_s.is_some() {
            len += 5;
        }
        for number in self.subscription_ids {
            len += 1 + var_int_len(*number as usize);
        }
        len
    }

    #[inline]
    fn body_len(&self, version: Version) -> usize {
        let id_len = if self.qos == Qos::AtMostOnce { 0 } else { 2 };
        let len = 2 + self.topic.len() + id_len + self.payload.len();
        if version != Version::V5 {
            return len;
        }
        let properties_len = self.properties_len();
        len + var_int_len(properties_len) + properties_len
    }
}

/// Appends a PUBLISH and returns where in `out` its packet id stands (or would stand, with QoS 0), so that a
/// copy for the next subscriber only needs other two bytes. What exceeds [`crate::codec::PACKET_BYTES_MAX`] is not written:
/// the caller compares [`publish_bytes`] with the receiver's limit, which is never above that.
#[inline]
pub fn publish(out: &mut Vec<u8>, version: Version, parts: &PublishParts<'_>) -> usize {
    debug_assert!(parts.packet_id.is_some() != (parts.qos == Qos::AtMostOnce), "QoS 1 and 2 need a packet id");
    debug_assert!(parts.topic.len() <= usize::from(u16::MAX), "a topic is parsed, so its length fits");
    let body_len = parts.body_len(version);
    if body_len > VAR_INT_MAX {
        return out.len();
    }
    out.reserve(5 + body_len);
    out.push(0x30 | u8::from(parts.dup) << 3 | (parts.qos as u8) << 1 | u8::from(parts.retain));
    var_int(out, body_len);
    string(out, parts.topic);
    let packet_id_at = out.len();
    if parts.qos != Qos::AtMostOnce {
        two(out, parts.packet_id.map_or(0, PacketId::get));
    }
    if version == Version::V5 {
        publish_properties(out, parts);
    }
    out.extend_from_slice(parts.payload);
    packet_id_at
}

#[inline]
fn publish_properties(out: &mut Vec<u8>, parts: &PublishParts<'_>) {
    var_int(out, parts.properties_len());
    if let Some(alias) = parts.topic_alias {
        short_property(out, id::TOPIC_ALIAS, Some(alias));
    }
    if let Some(expiry_s) = parts.message_expiry_s {
        long_property(out, id::MESSAGE_EXPIRY, Some(expiry_s));
    }
    for number in parts.subscription_ids {
        out.push(id::SUBSCRIPTION_ID);
        var_int(out, *number as usize);
    }
    out.extend_from_slice(parts.forwarded);
}

/// Exact size of the packet that [`publish`] writes.
#[inline]
pub fn publish_bytes(version: Version, parts: &PublishParts<'_>) -> usize {
    let body_len = parts.body_len(version);
    1 + var_int_len(body_len) + body_len
}

/// Appends the property bytes that [`PublishParts::forwarded`] takes, from the fields of `properties`.
pub fn forwarded(out: &mut Vec<u8>, properties: &PublishProperties<'_>) {
    flag_property(out, id::PAYLOAD_FORMAT, properties.payload_format_utf8);
    text_property(out, id::CONTENT_TYPE, properties.content_type);
    text_property(out, id::RESPONSE_TOPIC, properties.response_topic);
    binary_property(out, id::CORRELATION_DATA, properties.correlation_data);
    user_properties(out, properties.user);
}

/// Writes a decoded or built PUBLISH with all its properties.
pub(super) fn whole(out: &mut Vec<u8>, version: Version, from: &Publish<'_>) {
    let first = 0x30 | u8::from(from.dup) << 3 | (from.qos as u8) << 1 | u8::from(from.retain);
    packet(out, first, |out| {
        string(out, from.topic);
        if let Some(packet_id) = from.packet_id {
            two(out, packet_id.get());
        }
        if version == Version::V5 {
            with_length(out, |out| {
                short_property(out, id::TOPIC_ALIAS, from.properties.topic_alias);
                long_property(out, id::MESSAGE_EXPIRY, from.properties.message_expiry_s);
                for number in from.properties.subscription_ids {
                    out.push(id::SUBSCRIPTION_ID);
                    var_int(out, number as usize);
                }
                forwarded(out, &from.properties);
            });
        }
        out.extend_from_slice(from.payload);
    });
}
