//! MQTT packets as bytes, as far as the tests need them, written apart from crate `mqtt`.
//! Called by [`crate::raw`] and by tests that send what no client library would.
//!
//! Always true: what is built here is what the caller said, legal or not; what is read here must be legal.

/// 3.1.1 as the CONNECT packet spells it.
pub const V311: u8 = 4;
/// 5.0 as the CONNECT packet spells it.
pub const V5: u8 = 5;

/// Packet types: the upper half of the first byte.
pub mod kind {
    #![expect(missing_docs, reason = "the names are those of the specification")]
    pub const CONNECT: u8 = 1;
    pub const CONNACK: u8 = 2;
    pub const PUBLISH: u8 = 3;
    pub const PUBACK: u8 = 4;
    pub const PUBREC: u8 = 5;
    pub const PUBREL: u8 = 6;
    pub const PUBCOMP: u8 = 7;
    pub const SUBSCRIBE: u8 = 8;
    pub const SUBACK: u8 = 9;
    pub const UNSUBSCRIBE: u8 = 10;
    pub const UNSUBACK: u8 = 11;
    pub const PINGREQ: u8 = 12;
    pub const PINGRESP: u8 = 13;
    pub const DISCONNECT: u8 = 14;
    pub const AUTH: u8 = 15;
}

/// Appends a variable byte integer.
pub fn put_length(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let byte = (value % 128) as u8;
        value /= 128;
        if value == 0 {
            out.push(byte);
            return;
        }
        out.push(byte | 0x80);
    }
}

/// Appends a string or binary with its two-byte length.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("a field has at most 65535 bytes");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// A packet of a first byte and a body.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    put_length(&mut out, body.len());
    out.extend_from_slice(body);
    out
}

/// What a CONNECT says.
#[derive(Clone, Debug)]
pub struct Connect<'a> {
    /// Protocol level.
    pub version: u8,
    /// Client id.
    pub client_id: &'a str,
    /// Clean session or clean start.
    pub clean: bool,
    /// Keep-alive; 0 switches it off.
    pub keep_alive_s: u16,
    /// Raw properties (5.0).
    pub properties: &'a [u8],
    /// Will: topic, payload, quality of service, retain.
    pub will: Option<(&'a str, &'a [u8], u8, bool)>,
    /// Raw properties of the will (5.0).
    pub will_properties: &'a [u8],
    /// User name.
    pub username: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
}

impl<'a> Connect<'a> {
    /// A clean connection without a keep-alive.
    pub fn new(version: u8, client_id: &'a str) -> Self {
        Self {
            version,
            client_id,
            clean: true,
            keep_alive_s: 0,
            properties: &[],
            will: None,
            will_properties: &[],
            username: None,
            password: None,
        }
    }

    /// The same with a user name and a password.
    pub fn login(self, username: &'a str, password: &'a str) -> Self {
        Self { username: Some(username), password: Some(password.as_bytes()), ..self }
    }

    /// The packet.
    pub fn bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        put_bytes(&mut body, if self.version == 3 { b"MQIsdp" } else { b"MQTT" });
        body.push(self.version);
        let mut flags = u8::from(self.clean) << 1;
        if let Some((_, _, qos, retain)) = self.will {
            flags |= 0x04 | qos << 3 | u8::from(retain) << 5;
        }
        flags |= u8::from(self.username.is_some()) << 7 | u8::from(self.password.is_some()) << 6;
        body.push(flags);
        body.extend_from_slice(&self.keep_alive_s.to_be_bytes());
        if self.version == V5 {
            put_length(&mut body, self.properties.len());
            body.extend_from_slice(self.properties);
        }
        put_bytes(&mut body, self.client_id.as_bytes());
        if let Some((topic, payload, ..)) = self.will {
            if self.version == V5 {
                put_length(&mut body, self.will_properties.len());
                body.extend_from_slice(self.will_properties);
            }
            put_bytes(&mut body, topic.as_bytes());
            put_bytes(&mut body, payload);
        }
        for part in [self.username.map(str::as_bytes), self.password].into_iter().flatten() {
            put_bytes(&mut body, part);
        }
        packet(kind::CONNECT << 4, &body)
    }
}

/// SUBSCRIBE with one filter and its options byte.
pub fn subscribe(version: u8, packet_id: u16, filter: &str, options: u8) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == V5 {
        body.push(0);
    }
    put_bytes(&mut body, filter.as_bytes());
    body.push(options);
    packet(kind::SUBSCRIBE << 4 | 2, &body)
}

/// UNSUBSCRIBE with one filter.
pub fn unsubscribe(version: u8, packet_id: u16, filter: &str) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == V5 {
        body.push(0);
    }
    put_bytes(&mut body, filter.as_bytes());
    packet(kind::UNSUBSCRIBE << 4 | 2, &body)
}

/// What a PUBLISH says.
#[derive(Clone, Debug)]
pub struct Publish<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// Quality of service, also one that does not exist.
    pub qos: u8,
    /// Retain flag.
    pub retain: bool,
    /// DUP flag.
    pub dup: bool,
    /// Packet id, written when the quality of service is above 0.
    pub packet_id: u16,
    /// Raw properties (5.0).
    pub properties: &'a [u8],
}

impl<'a> Publish<'a> {
    /// QoS 0, no flags.
    pub fn new(topic: &'a str, payload: &'a [u8]) -> Self {
        Self { topic, payload, qos: 0, retain: false, dup: false, packet_id: 0, properties: &[] }
    }

    /// The same with an acknowledgement to expect.
    pub fn acked(self, qos: u8, packet_id: u16) -> Self {
        Self { qos, packet_id, ..self }
    }

    /// The packet.
    pub fn bytes(&self, version: u8) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.payload.len() + self.topic.len() + 16);
        put_bytes(&mut body, self.topic.as_bytes());
        if self.qos > 0 {
            body.extend_from_slice(&self.packet_id.to_be_bytes());
        }
        if version == V5 {
            put_length(&mut body, self.properties.len());
            body.extend_from_slice(self.properties);
        }
        body.extend_from_slice(self.payload);
        let flags = u8::from(self.dup) << 3 | self.qos << 1 | u8::from(self.retain);
        packet(kind::PUBLISH << 4 | flags, &body)
    }
}

/// An acknowledgement in its two-byte form (reason 0).
pub fn ack(kind: u8, packet_id: u16) -> Vec<u8> {
    let flags = if kind == kind::PUBREL { 2 } else { 0 };
    packet(kind << 4 | flags, &packet_id.to_be_bytes())
}

/// PINGREQ.
pub fn pingreq() -> Vec<u8> {
    packet(kind::PINGREQ << 4, &[])
}

/// DISCONNECT without a reason.
pub fn disconnect() -> Vec<u8> {
    packet(kind::DISCONNECT << 4, &[])
}

/// A packet that came from the broker.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    /// Upper half of the first byte.
    pub kind: u8,
    /// Lower half of the first byte.
    pub flags: u8,
    /// Everything after the length.
    pub body: Vec<u8>,
}

impl std::fmt::Debug for Packet {
    /// Failing tests show packets; the beginning of a large one says enough.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.body[..self.body.len().min(40)];
        write!(f, "packet {} flags {} of {} bytes {shown:02x?}", self.kind, self.flags, self.body.len())
    }
}

/// A PUBLISH that came from the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Topic, empty when an alias stands for it.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// Quality of service.
    pub qos: u8,
    /// Retain flag.
    pub retain: bool,
    /// DUP flag.
    pub dup: bool,
    /// Packet id when the quality of service is above 0.
    pub packet_id: Option<u16>,
    /// Raw properties (5.0).
    pub properties: Vec<u8>,
}

/// Takes the first whole packet off `bytes`; `None` while it is not whole.
pub fn take(bytes: &mut Vec<u8>) -> Option<Packet> {
    let first = *bytes.first()?;
    let (length, width) = length_at(bytes, 1)?;
    let total = 1 + width + length;
    if bytes.len() < total {
        return None;
    }
    let body = bytes[1 + width..total].to_vec();
    bytes.drain(..total);
    Some(Packet { kind: first >> 4, flags: first & 15, body })
}

/// The variable byte integer at `at` and its width.
fn length_at(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let mut value = 0;
    for width in 0..4 {
        let byte = *bytes.get(at + width)?;
        value |= usize::from(byte & 0x7f) << (7 * width);
        if byte & 0x80 == 0 {
            return Some((value, width + 1));
        }
    }
    panic!("the broker sent a length of more than four bytes");
}

impl Packet {
    /// The reason code of CONNACK, DISCONNECT, AUTH or an acknowledgement; 0 where the short form leaves it out.
    pub fn reason(&self) -> u8 {
        let at = match self.kind {
            kind::CONNACK => 1,
            kind::DISCONNECT | kind::AUTH => 0,
            kind::SUBACK | kind::UNSUBACK => return self.body.last().copied().unwrap_or(0),
            _ => 2,
        };
        self.body.get(at).copied().unwrap_or(0)
    }

    /// Session Present of a CONNACK.
    pub fn session_present(&self) -> bool {
        self.kind == kind::CONNACK && self.body.first() == Some(&1)
    }

    /// The packet id of an acknowledgement.
    pub fn packet_id(&self) -> u16 {
        u16::from_be_bytes([self.body[0], self.body[1]])
    }

    /// What a PUBLISH says.
    #[track_caller]
    pub fn publish(&self, version: u8) -> Received {
        assert_eq!(self.kind, kind::PUBLISH, "not a PUBLISH: {self:?}");
        let qos = self.flags >> 1 & 3;
        let mut at = 2 + usize::from(u16::from_be_bytes([self.body[0], self.body[1]]));
        let topic = String::from_utf8(self.body[2..at].to_vec()).expect("a topic is UTF-8");
        let mut packet_id = None;
        if qos > 0 {
            packet_id = Some(u16::from_be_bytes([self.body[at], self.body[at + 1]]));
            at += 2;
        }
        let mut properties = Vec::new();
        if version == V5 {
            let (length, width) = length_at(&self.body, at).expect("properties have a length");
            properties = self.body[at + width..at + width + length].to_vec();
            at += width + length;
        }
        Received {
            topic,
            payload: self.body[at..].to_vec(),
            qos,
            retain: self.flags & 1 == 1,
            dup: self.flags & 8 == 8,
            packet_id,
            properties,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_taken_when_its_last_byte_is_there() {
        let whole = Publish::new("a/b", &[7; 300]).acked(1, 9).bytes(V5);
        let mut bytes = Vec::new();
        for byte in &whole[..whole.len() - 1] {
            bytes.push(*byte);
            assert_eq!(take(&mut bytes), None);
        }
        bytes.push(whole[whole.len() - 1]);
        let publish = take(&mut bytes).expect("it is whole").publish(V5);
        assert_eq!((publish.topic.as_str(), publish.packet_id), ("a/b", Some(9)));
        assert_eq!(publish.payload, [7; 300]);
        assert!(bytes.is_empty());
    }
}
