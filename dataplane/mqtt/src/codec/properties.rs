//! The properties of MQTT 5: which exist, of which type, in which packet, and the list that carries them.
//! Decoders of this module read a list once and keep what they need; user properties and subscription
//! identifiers stay where they are and are walked again by [`UserProperties`] and [`SubscriptionIds`].
//! Always true: a list inside a decoded packet was checked to its last byte, so walking it cannot fail.

use alloc::vec::Vec;
use core::fmt;

use super::read::{Reader, utf8};
use crate::types::Malformed;

/// Identifiers of the properties (table 2-4).
pub mod id {
    macro_rules! ids {
        ($($(#[$doc:meta])* $name:ident = $id:literal,)*) => { $($(#[$doc])* pub const $name: u8 = $id;)* };
    }
    ids! {
        /// Is the payload UTF-8?
        PAYLOAD_FORMAT = 0x01,
        /// Seconds that a message lives.
        MESSAGE_EXPIRY = 0x02,
        /// Type of the content.
        CONTENT_TYPE = 0x03,
        /// Topic of the answer.
        RESPONSE_TOPIC = 0x08,
        /// What the asker recognises the answer by.
        CORRELATION_DATA = 0x09,
        /// Number of the subscription that matched.
        SUBSCRIPTION_ID = 0x0B,
        /// Seconds that a session outlives its connection.
        SESSION_EXPIRY = 0x11,
        /// The client id that the server chose.
        ASSIGNED_CLIENT_ID = 0x12,
        /// The keep alive that the server wants.
        SERVER_KEEP_ALIVE = 0x13,
        /// Name of the authentication method.
        AUTHENTICATION_METHOD = 0x15,
        /// Bytes of the authentication method.
        AUTHENTICATION_DATA = 0x16,
        /// Does the client want reason strings?
        REQUEST_PROBLEM_INFORMATION = 0x17,
        /// Seconds between the end of the connection and the will.
        WILL_DELAY = 0x18,
        /// Does the client want response information?
        REQUEST_RESPONSE_INFORMATION = 0x19,
        /// What the client makes response topics from.
        RESPONSE_INFORMATION = 0x1A,
        /// Another server.
        SERVER_REFERENCE = 0x1C,
        /// Words for a human.
        REASON_STRING = 0x1F,
        /// Unacknowledged publishes at most.
        RECEIVE_MAXIMUM = 0x21,
        /// Largest topic alias.
        TOPIC_ALIAS_MAXIMUM = 0x22,
        /// Number in place of a topic.
        TOPIC_ALIAS = 0x23,
        /// Largest QoS that the server does.
        MAXIMUM_QOS = 0x24,
        /// Does the server keep retained messages?
        RETAIN_AVAILABLE = 0x25,
        /// Name and value without a meaning to the protocol.
        USER_PROPERTY = 0x26,
        /// Largest packet.
        MAXIMUM_PACKET_SIZE = 0x27,
        /// Does the server do wildcards?
        WILDCARD_AVAILABLE = 0x28,
        /// Does the server do subscription identifiers?
        SUBSCRIPTION_IDS_AVAILABLE = 0x29,
        /// Does the server do shared subscriptions?
        SHARED_AVAILABLE = 0x2A,
    }
}

/// How a property's value is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Byte,
    TwoBytes,
    FourBytes,
    VarInt,
    Text,
    Binary,
    Pair,
}

fn shape(property: u8) -> Option<Shape> {
    Some(match property {
        id::PAYLOAD_FORMAT
        | id::REQUEST_PROBLEM_INFORMATION
        | id::REQUEST_RESPONSE_INFORMATION
        | id::MAXIMUM_QOS
        | id::RETAIN_AVAILABLE
        | id::WILDCARD_AVAILABLE
        | id::SUBSCRIPTION_IDS_AVAILABLE
        | id::SHARED_AVAILABLE => Shape::Byte,
        id::SERVER_KEEP_ALIVE | id::RECEIVE_MAXIMUM | id::TOPIC_ALIAS_MAXIMUM | id::TOPIC_ALIAS => Shape::TwoBytes,
        id::MESSAGE_EXPIRY | id::SESSION_EXPIRY | id::WILL_DELAY | id::MAXIMUM_PACKET_SIZE => Shape::FourBytes,
        id::SUBSCRIPTION_ID => Shape::VarInt,
        id::CONTENT_TYPE
        | id::RESPONSE_TOPIC
        | id::ASSIGNED_CLIENT_ID
        | id::AUTHENTICATION_METHOD
        | id::RESPONSE_INFORMATION
        | id::SERVER_REFERENCE
        | id::REASON_STRING => Shape::Text,
        id::CORRELATION_DATA | id::AUTHENTICATION_DATA => Shape::Binary,
        id::USER_PROPERTY => Shape::Pair,
        _ => return None,
    })
}

/// A property's value as it was read; of a pair only that it is whole, because [`UserProperties`] reads it again.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    Number(u32),
    Text(&'a str),
    Binary(&'a [u8]),
    Pair,
}

impl<'a> Value<'a> {
    /// 0 or 1.
    pub fn flag(self, property: u8) -> Result<bool, Malformed> {
        match self.number() {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::PropertyValue(property)),
        }
    }

    /// Anything but 0.
    pub fn non_zero(self, property: u8) -> Result<u32, Malformed> {
        if self.number() == 0 { Err(Malformed::PropertyValue(property)) } else { Ok(self.number()) }
    }

    pub fn number(self) -> u32 {
        if let Value::Number(number) = self { number } else { 0 }
    }

    /// Two-byte numbers were read from two bytes: nothing is cut.
    pub fn short(self) -> u16 {
        self.number() as u16
    }

    pub fn text(self) -> Option<&'a str> {
        if let Value::Text(text) = self { Some(text) } else { None }
    }

    pub fn binary(self) -> Option<&'a [u8]> {
        if let Value::Binary(bytes) = self { Some(bytes) } else { None }
    }
}

/// A set of property identifiers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Set(u64);

impl Set {
    pub const fn of(ids: &[u8]) -> Set {
        let (mut bits, mut at) = (0, 0);
        while at < ids.len() {
            bits |= 1 << ids[at];
            at += 1;
        }
        Set(bits)
    }

    pub fn contains(self, property: u8) -> bool {
        property < 64 && self.0 & (1 << property) != 0
    }

    fn insert(&mut self, property: u8) {
        self.0 |= 1 << property;
    }
}

/// Reads a list property by property and checks what holds for every packet: the identifier exists and
/// belongs here, the value is whole, and what may come once comes once.
pub(crate) struct List<'a> {
    read: Reader<'a>,
    allowed: Set,
    repeatable: Set,
    seen: Set,
    /// The whole list.
    pub raw: &'a [u8],
}

impl<'a> List<'a> {
    /// Takes the list with its length from the front of `read`.
    //= MQTT-2.2.2-1
    // An absent list where the specification allows none is the caller's to notice, before this.
    pub fn take(read: &mut Reader<'a>, allowed: Set) -> Result<List<'a>, Malformed> {
        let len = read.var_int()?;
        let raw = read.take(len)?;
        let repeatable = Set::of(&[id::USER_PROPERTY]);
        Ok(List { read: Reader::new(raw), allowed, repeatable, seen: Set(0), raw })
    }

    /// Lets `property` come more than once.
    pub fn repeat(mut self, property: u8) -> List<'a> {
        self.repeatable.insert(property);
        self
    }

    /// The next property, until `None`.
    pub fn next(&mut self) -> Result<Option<(u8, Value<'a>)>, Malformed> {
        if self.read.is_empty() {
            return Ok(None);
        }
        let property = self.read.u8()?;
        let shape = shape(property).ok_or(Malformed::PropertyUnknown(property))?;
        if !self.allowed.contains(property) {
            return Err(Malformed::PropertyMisplaced(property));
        }
        if self.seen.contains(property) && !self.repeatable.contains(property) {
            return Err(Malformed::PropertyTwice(property));
        }
        self.seen.insert(property);
        Ok(Some((property, value(&mut self.read, shape)?)))
    }

    /// The user properties among those already read.
    pub fn user(&self) -> UserProperties<'a> {
        let present = self.seen.contains(id::USER_PROPERTY);
        UserProperties { raw: if present { self.raw } else { &[] } }
    }

    /// The subscription identifiers among those already read.
    pub fn subscription_ids(&self) -> SubscriptionIds<'a> {
        let present = self.seen.contains(id::SUBSCRIPTION_ID);
        SubscriptionIds { raw: if present { self.raw } else { &[] } }
    }
}

fn value<'a>(read: &mut Reader<'a>, shape: Shape) -> Result<Value<'a>, Malformed> {
    Ok(match shape {
        Shape::Byte => Value::Number(read.u8()?.into()),
        Shape::TwoBytes => Value::Number(read.u16()?.into()),
        Shape::FourBytes => Value::Number(read.u32()?),
        Shape::VarInt => Value::Number(read.var_int()? as u32),
        //= MQTT-3.3.2-13
        //= MQTT-3.3.2-19
        Shape::Text => Value::Text(read.string()?),
        Shape::Binary => Value::Binary(read.binary()?),
        //= MQTT-1.5.7-1
        Shape::Pair => {
            read.string()?;
            read.string()?;
            Value::Pair
        }
    })
}

/// Reads over one property of a checked list: its identifier, and its bytes without the identifier.
#[inline]
fn step<'a>(raw: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (property, body) = raw.split_first()?;
    let mut read = Reader::new(body);
    let skipped = match shape(*property)? {
        Shape::Byte => read.take(1),
        Shape::TwoBytes => read.take(2),
        Shape::FourBytes => read.take(4),
        Shape::VarInt => read.var_int().map(|_| body),
        Shape::Text | Shape::Binary => read.binary(),
        Shape::Pair => read.binary().and_then(|_| read.binary()),
    };
    skipped.ok()?;
    *raw = read.rest;
    Some((*property, &body[..body.len() - read.rest.len()]))
}

/// User properties, in order, found in a property list. Its own iterator, free to copy.
#[derive(Clone, Copy, Default)]
pub struct UserProperties<'a> {
    raw: &'a [u8],
}

impl<'a> UserProperties<'a> {
    /// Checks a list made by [`super::encode::user_property`].
    pub fn parse(list: &'a [u8]) -> Result<UserProperties<'a>, Malformed> {
        let allowed = Set::of(&[id::USER_PROPERTY]);
        let empty = Set(0);
        let mut list = List { read: Reader::new(list), allowed, repeatable: allowed, seen: empty, raw: list };
        while list.next()?.is_some() {}
        Ok(list.user())
    }

    /// True without any. Cheap: a list without user properties is never kept.
    pub fn is_empty(self) -> bool {
        self.raw.is_empty()
    }
}

impl<'a> Iterator for UserProperties<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<(&'a str, &'a str)> {
        loop {
            let (property, body) = step(&mut self.raw)?;
            if property == id::USER_PROPERTY {
                let mut read = Reader::new(body);
                let key = read.binary().and_then(utf8).ok()?;
                return Some((key, read.binary().and_then(utf8).ok()?));
            }
        }
    }
}

/// Subscription identifiers, in order, found in a property list. Its own iterator, free to copy.
#[derive(Clone, Copy, Default)]
pub struct SubscriptionIds<'a> {
    raw: &'a [u8],
}

impl SubscriptionIds<'_> {
    /// True without any.
    pub fn is_empty(self) -> bool {
        self.raw.is_empty()
    }
}

impl Iterator for SubscriptionIds<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        loop {
            let (property, body) = step(&mut self.raw)?;
            if property == id::SUBSCRIPTION_ID {
                return Reader::new(body).var_int().ok().map(|number| number as u32);
            }
        }
    }
}

/// Two walks are equal when they yield the same, wherever their lists lie.
macro_rules! compare_and_show_items {
    ($($walk:ident),*) => {$(
        impl PartialEq for $walk<'_> {
            fn eq(&self, other: &Self) -> bool {
                self.eq_items(*other)
            }
        }

        impl Eq for $walk<'_> {}

        impl $walk<'_> {
            fn eq_items(self, other: $walk<'_>) -> bool {
                Iterator::eq(self, other)
            }
        }

        impl fmt::Debug for $walk<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_list().entries(*self).finish()
            }
        }
    )*};
}

compare_and_show_items!(UserProperties, SubscriptionIds);

/// The properties of a PUBLISH or of a will.
#[derive(Clone, Copy, Default, Debug)]
pub struct PublishProperties<'a> {
    /// The payload is UTF-8, as its sender says.
    pub payload_format_utf8: Option<bool>,
    /// Seconds that the message lives from now on.
    pub message_expiry_s: Option<u32>,
    /// Number in place of the topic; never 0.
    pub topic_alias: Option<u16>,
    /// Where the answer goes.
    pub response_topic: Option<&'a str>,
    /// What the asker recognises the answer by.
    pub correlation_data: Option<&'a [u8]>,
    /// Type of the content.
    pub content_type: Option<&'a str>,
    /// The subscriptions that matched; empty from client to server.
    pub subscription_ids: SubscriptionIds<'a>,
    /// User properties.
    pub user: UserProperties<'a>,
    /// The whole checked list without its length; empty when the properties were not decoded.
    pub raw: &'a [u8],
}

const PUBLISH: Set = Set::of(&[
    id::PAYLOAD_FORMAT,
    id::MESSAGE_EXPIRY,
    id::TOPIC_ALIAS,
    id::RESPONSE_TOPIC,
    id::CORRELATION_DATA,
    id::USER_PROPERTY,
    id::SUBSCRIPTION_ID,
    id::CONTENT_TYPE,
]);

const WILL: Set = Set::of(&[
    id::WILL_DELAY,
    id::PAYLOAD_FORMAT,
    id::MESSAGE_EXPIRY,
    id::CONTENT_TYPE,
    id::RESPONSE_TOPIC,
    id::CORRELATION_DATA,
    id::USER_PROPERTY,
]);

/// What a server passes on with a message unchanged.
const FORWARDED: Set =
    Set::of(&[id::PAYLOAD_FORMAT, id::CONTENT_TYPE, id::RESPONSE_TOPIC, id::CORRELATION_DATA, id::USER_PROPERTY]);

impl<'a> PublishProperties<'a> {
    pub(super) fn decode(read: &mut Reader<'a>) -> Result<PublishProperties<'a>, Malformed> {
        let list = List::take(read, PUBLISH)?.repeat(id::SUBSCRIPTION_ID);
        Ok(PublishProperties::collect(list)?.0)
    }

    /// The properties of a will, and its delay.
    pub(super) fn decode_will(read: &mut Reader<'a>) -> Result<(PublishProperties<'a>, u32), Malformed> {
        PublishProperties::collect(List::take(read, WILL)?)
    }

    fn collect(mut list: List<'a>) -> Result<(PublishProperties<'a>, u32), Malformed> {
        let (mut properties, mut delay_s) = (PublishProperties { raw: list.raw, ..Default::default() }, 0);
        while let Some((property, value)) = list.next()? {
            match property {
                id::PAYLOAD_FORMAT => properties.payload_format_utf8 = Some(value.flag(property)?),
                id::MESSAGE_EXPIRY => properties.message_expiry_s = Some(value.number()),
                id::TOPIC_ALIAS if value.number() == 0 => return Err(Malformed::TopicAliasZero),
                id::TOPIC_ALIAS => properties.topic_alias = Some(value.short()),
                id::RESPONSE_TOPIC => properties.response_topic = checked_response_topic(value)?,
                id::CORRELATION_DATA => properties.correlation_data = value.binary(),
                id::CONTENT_TYPE => properties.content_type = value.text(),
                id::WILL_DELAY => delay_s = value.number(),
                id::SUBSCRIPTION_ID => _ = value.non_zero(property)?,
                _ => {}
            }
        }
        properties.user = list.user();
        properties.subscription_ids = list.subscription_ids();
        Ok((properties, delay_s))
    }

    /// Appends what a server passes on unchanged, as it was received and in its order: format indicator,
    /// response topic, correlation data, content type, user properties.
    //= MQTT-3.3.2-4
    //= MQTT-3.3.2-15
    //= MQTT-3.3.2-16
    //= MQTT-3.3.2-17
    //= MQTT-3.3.2-18
    //= MQTT-3.3.2-20
    pub fn forwarded(&self, out: &mut Vec<u8>) {
        let mut rest = self.raw;
        let mut kept = rest;
        loop {
            let before = rest;
            let property = step(&mut rest).map(|(property, _)| property);
            if property.is_some_and(|property| FORWARDED.contains(property)) {
                continue;
            }
            // `kept` begins a stretch to pass on, and the property just read ends it.
            out.extend_from_slice(&kept[..kept.len() - before.len()]);
            kept = rest;
            if property.is_none() {
                return;
            }
        }
    }
}

//= MQTT-3.3.2-14
fn checked_response_topic(value: Value<'_>) -> Result<Option<&str>, Malformed> {
    match value.text() {
        Some(topic) if topic.is_empty() || topic.contains(['+', '#']) => Err(Malformed::ResponseTopic),
        topic => Ok(topic),
    }
}

/// Two lists are equal when they say the same, in whatever order the properties stand.
impl PartialEq for PublishProperties<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.payload_format_utf8 == other.payload_format_utf8
            && self.message_expiry_s == other.message_expiry_s
            && self.topic_alias == other.topic_alias
            && self.response_topic == other.response_topic
            && self.correlation_data == other.correlation_data
            && self.content_type == other.content_type
            && self.subscription_ids == other.subscription_ids
            && self.user == other.user
    }
}

impl Eq for PublishProperties<'_> {}
