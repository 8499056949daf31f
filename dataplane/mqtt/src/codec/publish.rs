//! PUBLISH, the packet that everything is measured by: bytes become a borrowed packet without allocation.
//! Runs on the home shard for every message that a client sends, and on an inlet for every forwarded one.
//! Always true: a decoded topic has no wildcard, and it is empty only beside a topic alias.

use super::{Raw, properties::PublishProperties, read::Reader};
use crate::types::{Malformed, PacketId, Qos, Version};

/// One PUBLISH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Publish<'a> {
    /// Its sender has sent it before.
    pub dup: bool,
    /// Quality of service.
    pub qos: Qos,
    /// To be kept for later subscribers, or kept before.
    pub retain: bool,
    /// The topic; empty when only an alias came.
    pub topic: &'a str,
    /// The packet id of QoS 1 and 2.
    pub packet_id: Option<PacketId>,
    /// Properties; the default before version 5.
    pub properties: PublishProperties<'a>,
    /// The message.
    pub payload: &'a [u8],
}

#[inline]
pub(super) fn decode<'a>(version: Version, raw: Raw<'a>) -> Result<Publish<'a>, Malformed> {
    let (dup, retain) = (raw.first & 0x08 != 0, raw.first & 0x01 != 0);
    //= MQTT-3.3.1-4
    let qos = Qos::from_bits(raw.first >> 1 & 0x03).ok_or(Malformed::QosThree)?;
    let mut read = Reader::new(raw.body);
    //= MQTT-3.3.2-1
    let topic = read.topic()?;
    let packet_id = if qos == Qos::AtMostOnce {
        //= MQTT-3.3.1-2
        if dup {
            return Err(Malformed::DupWithoutQos);
        }
        //= MQTT-2.2.1-2
        None
    } else {
        Some(read.packet_id()?)
    };
    let properties = match (version, read.rest) {
        (Version::V5, [0, payload @ ..]) => {
            read = Reader::new(payload);
            PublishProperties::default()
        }
        (Version::V5, _) => PublishProperties::decode(&mut read)?,
        _ => PublishProperties::default(),
    };
    if topic.is_empty() && properties.topic_alias.is_none() {
        return Err(if version == Version::V5 { Malformed::NoTopic } else { Malformed::TopicName });
    }
    Ok(Publish { dup, qos, retain, topic, packet_id, properties, payload: read.rest })
}
