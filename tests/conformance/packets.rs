//! Packets that the harness does not build, and the properties of those that come back.
//!
//! Always true: what is built is what the test says, legal or not; a property list that comes back must be legal.

use harness::wire::{Packet, kind, packet, put_bytes, put_length};

/// Identifiers of properties.
pub mod id {
    pub const PAYLOAD_FORMAT: u8 = 0x01;
    pub const MESSAGE_EXPIRY: u8 = 0x02;
    pub const CONTENT_TYPE: u8 = 0x03;
    pub const RESPONSE_TOPIC: u8 = 0x08;
    pub const CORRELATION_DATA: u8 = 0x09;
    pub const SUBSCRIPTION_ID: u8 = 0x0b;
    pub const SESSION_EXPIRY: u8 = 0x11;
    pub const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub const AUTHENTICATION_METHOD: u8 = 0x15;
    pub const AUTHENTICATION_DATA: u8 = 0x16;
    pub const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub const WILL_DELAY: u8 = 0x18;
    pub const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub const RESPONSE_INFORMATION: u8 = 0x1a;
    pub const SERVER_REFERENCE: u8 = 0x1c;
    pub const REASON_STRING: u8 = 0x1f;
    pub const RECEIVE_MAXIMUM: u8 = 0x21;
    pub const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub const TOPIC_ALIAS: u8 = 0x23;
    pub const MAXIMUM_QOS: u8 = 0x24;
    pub const RETAIN_AVAILABLE: u8 = 0x25;
    pub const USER_PROPERTY: u8 = 0x26;
    pub const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub const WILDCARD_AVAILABLE: u8 = 0x28;
    pub const SUBSCRIPTION_IDS_AVAILABLE: u8 = 0x29;
    pub const SHARED_AVAILABLE: u8 = 0x2a;
}

/// A property of one byte.
pub fn byte(id: u8, value: u8) -> Vec<u8> {
    vec![id, value]
}

/// A property of two bytes.
pub fn two(id: u8, value: u16) -> Vec<u8> {
    [&[id][..], &value.to_be_bytes()].concat()
}

/// A property of four bytes.
pub fn four(id: u8, value: u32) -> Vec<u8> {
    [&[id][..], &value.to_be_bytes()].concat()
}

/// A property that is a variable byte integer.
pub fn variable(id: u8, value: usize) -> Vec<u8> {
    let mut out = vec![id];
    put_length(&mut out, value);
    out
}

/// A property that is a string or binary data.
pub fn text(id: u8, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = vec![id];
    put_bytes(&mut out, value.as_ref());
    out
}

/// A user property.
pub fn pair(name: &str, value: &str) -> Vec<u8> {
    let mut out = text(id::USER_PROPERTY, name);
    put_bytes(&mut out, value.as_bytes());
    out
}

/// The value of a property that came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    Number(u32),
    Bytes(Vec<u8>),
    Pair(String, String),
}

/// A property list that came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Properties(pub Vec<(u8, Value)>);

impl Properties {
    /// Reads a list without its length.
    #[track_caller]
    pub fn read(mut bytes: &[u8]) -> Self {
        let mut all = Vec::new();
        while let Some((id, rest)) = bytes.split_first() {
            bytes = rest;
            let value = match *id {
                0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2a => Value::Number(u32::from(take(&mut bytes, 1)[0])),
                0x13 | 0x21..=0x23 => Value::Number(u32::from(short(&mut bytes))),
                0x02 | 0x11 | 0x18 | 0x27 => {
                    Value::Number(u32::from_be_bytes(take(&mut bytes, 4).try_into().expect("four bytes")))
                }
                0x0b => Value::Number(length(&mut bytes) as u32),
                0x26 => Value::Pair(string(&mut bytes), string(&mut bytes)),
                0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => Value::Bytes(binary(&mut bytes)),
                id => panic!("property {id:#04x} does not exist"),
            };
            all.push((*id, value));
        }
        Self(all)
    }

    /// The properties of a packet that is neither PUBLISH nor in its short form: they stand at `at`.
    #[track_caller]
    pub fn of(packet: &Packet) -> Self {
        let at = match packet.kind {
            kind::CONNACK => 2,
            kind::DISCONNECT | kind::AUTH => 1,
            kind::SUBACK | kind::UNSUBACK => 2,
            _ => 3,
        };
        let Some(mut rest) = packet.body.get(at..).filter(|rest| !rest.is_empty()) else { return Self(Vec::new()) };
        let count = length(&mut rest);
        Self::read(&rest[..count])
    }

    /// The number of a property that comes at most once.
    #[track_caller]
    pub fn number(&self, id: u8) -> Option<u32> {
        match &self.all(id)[..] {
            [] => None,
            [Value::Number(number)] => Some(*number),
            other => panic!("property {id:#04x} is {other:?}"),
        }
    }

    /// The bytes of a property that comes at most once.
    #[track_caller]
    pub fn bytes(&self, id: u8) -> Option<Vec<u8>> {
        match &self.all(id)[..] {
            [] => None,
            [Value::Bytes(bytes)] => Some(bytes.clone()),
            other => panic!("property {id:#04x} is {other:?}"),
        }
    }

    /// Every value of a property, in order.
    pub fn all(&self, id: u8) -> Vec<Value> {
        self.0.iter().filter(|(other, _)| *other == id).map(|(_, value)| value.clone()).collect()
    }
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

fn short(bytes: &mut &[u8]) -> u16 {
    u16::from_be_bytes(take(bytes, 2).try_into().expect("two bytes"))
}

fn length(bytes: &mut &[u8]) -> usize {
    let mut value = 0;
    for shift in [0, 7, 14, 21] {
        let byte = take(bytes, 1)[0];
        value |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a length of more than four bytes");
}

fn binary(bytes: &mut &[u8]) -> Vec<u8> {
    let count = short(bytes);
    take(bytes, usize::from(count)).to_vec()
}

fn string(bytes: &mut &[u8]) -> String {
    String::from_utf8(binary(bytes)).expect("strings are UTF-8")
}

/// A CONNECT made of its flags and the fields of its payload, each with its length.
pub fn connect_of(version: u8, flags: u8, properties: &[u8], fields: &[&[u8]]) -> Vec<u8> {
    let mut body = Vec::new();
    put_bytes(&mut body, if version == crate::V31 { b"MQIsdp" } else { b"MQTT" });
    body.extend([version, flags, 0, 0]);
    if version == harness::wire::V5 {
        put_length(&mut body, properties.len());
        body.extend(properties);
    }
    fields.iter().for_each(|field| put_bytes(&mut body, field));
    packet(kind::CONNECT << 4, &body)
}

/// A packet with an id, properties where the version has them, and a rest.
pub fn with_id(version: u8, first: u8, packet_id: u16, properties: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == harness::wire::V5 {
        put_length(&mut body, properties.len());
        body.extend(properties);
    }
    body.extend(rest);
    packet(first, &body)
}

/// SUBSCRIBE with any number of filters and their options.
pub fn subscribe_to(version: u8, packet_id: u16, properties: &[u8], filters: &[(&str, u8)]) -> Vec<u8> {
    let mut rest = Vec::new();
    for (filter, options) in filters {
        put_bytes(&mut rest, filter.as_bytes());
        rest.push(*options);
    }
    with_id(version, kind::SUBSCRIBE << 4 | 2, packet_id, properties, &rest)
}

/// UNSUBSCRIBE with any number of filters.
pub fn unsubscribe_from(version: u8, packet_id: u16, filters: &[&str]) -> Vec<u8> {
    let mut rest = Vec::new();
    filters.iter().for_each(|filter| put_bytes(&mut rest, filter.as_bytes()));
    with_id(version, kind::UNSUBSCRIBE << 4 | 2, packet_id, &[], &rest)
}

/// The reasons of a SUBACK or UNSUBACK.
pub fn reasons(version: u8, packet: &Packet) -> Vec<u8> {
    let mut rest = &packet.body[2..];
    if version == harness::wire::V5 {
        let count = length(&mut rest);
        rest = &rest[count..];
    }
    rest.to_vec()
}

/// An acknowledgement of 5.0 with a reason and properties.
pub fn ack_with(kind: u8, packet_id: u16, reason: u8, properties: &[u8]) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    body.push(reason);
    put_length(&mut body, properties.len());
    body.extend(properties);
    packet(kind << 4 | if kind == kind::PUBREL { 2 } else { 0 }, &body)
}

/// DISCONNECT of 5.0 with a reason and properties.
pub fn disconnect_with(reason: u8, properties: &[u8]) -> Vec<u8> {
    let mut body = vec![reason];
    put_length(&mut body, properties.len());
    body.extend(properties);
    packet(kind::DISCONNECT << 4, &body)
}
