//! The little of MQTT 3.1.1 and 5.0 that a load and a null relay need, both directions, independent of crate `mqtt`.
//! Called by `load` and `relay`. Always true: decoding borrows, never panics, and never allocates.

use std::fmt;

/// Largest packet that is accepted; a broker or client that announces more is in error here.
pub const PACKET_BYTES_MAX: usize = 4 << 20;

/// MQTT protocol level of one run; both sides of a connection agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1, protocol level 4.
    V311,
    /// MQTT 5.0, protocol level 5.
    V5,
}

impl Version {
    /// The number that CONNECT carries.
    pub fn level(self) -> u8 {
        match self {
            Version::V311 => 4,
            Version::V5 => 5,
        }
    }

    /// The version with this protocol level, if it is one of the two.
    pub fn from_level(level: u8) -> Option<Version> {
        match level {
            4 => Some(Version::V311),
            5 => Some(Version::V5),
            _ => None,
        }
    }
}

/// Bytes that are not MQTT, and what is wrong with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed packet: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// The four packets that consist of a packet id and (5.0) a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// Answer to a QoS 1 PUBLISH.
    Puback,
    /// First answer to a QoS 2 PUBLISH.
    Pubrec,
    /// Release of a QoS 2 PUBLISH.
    Pubrel,
    /// End of a QoS 2 PUBLISH.
    Pubcomp,
}

/// A received PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// 0, 1 or 2.
    pub qos: u8,
    /// Topic name.
    pub topic: &'a [u8],
    /// Packet id; 0 when QoS is 0.
    pub id: u16,
    /// Everything after topic, id and properties.
    pub payload: &'a [u8],
}

/// One received packet, borrowed from the bytes it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// CONNECT; `None` when the protocol level is neither 4 nor 5.
    Connect { version: Option<Version> },
    /// CONNACK.
    Connack { code: u8, receive_max: u16, qos_max: u8 },
    /// PUBLISH.
    Publish(Publish<'a>),
    /// PUBACK, PUBREC, PUBREL, PUBCOMP.
    Ack { kind: Ack, id: u16, code: u8 },
    /// SUBSCRIBE; `filters` is read with [`filters`].
    Subscribe { id: u16, filters: &'a [u8] },
    /// SUBACK with one code per filter.
    Suback { id: u16, codes: &'a [u8] },
    /// PINGREQ.
    Pingreq,
    /// PINGRESP.
    Pingresp,
    /// DISCONNECT.
    Disconnect { code: u8 },
}

/// Length of the first whole packet in `bytes` and where its body begins, or `None` if more bytes are needed.
pub fn frame(bytes: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let mut length = 0usize;
    for index in 0..4 {
        let Some(&byte) = bytes.get(1 + index) else {
            return Ok(None);
        };
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let total = 2 + index + length;
            if total > PACKET_BYTES_MAX {
                return Err(Malformed("packet above 4 MiB"));
            }
            return Ok((bytes.len() >= total).then_some((total, 2 + index)));
        }
    }
    Err(Malformed("remaining length has more than four bytes"))
}

/// Decodes one whole packet whose body begins at `body` (both from [`frame`]).
pub fn decode(version: Version, packet: &[u8], body: usize) -> Result<Packet<'_>, Malformed> {
    let first = *packet.first().ok_or(Malformed("empty packet"))?;
    let mut rest = Reader(packet.get(body..).ok_or(Malformed("no body"))?);
    match first >> 4 {
        1 => connect(rest),
        2 => connack(version, rest),
        3 => publish(version, first, rest).map(Packet::Publish),
        4 => ack(Ack::Puback, rest),
        5 => ack(Ack::Pubrec, rest),
        6 => ack(Ack::Pubrel, rest),
        7 => ack(Ack::Pubcomp, rest),
        8 => {
            let id = rest.u16()?;
            rest.skip_properties(version)?;
            Ok(Packet::Subscribe { id, filters: rest.0 })
        }
        9 => {
            let id = rest.u16()?;
            rest.skip_properties(version)?;
            Ok(Packet::Suback { id, codes: rest.0 })
        }
        12 => Ok(Packet::Pingreq),
        13 => Ok(Packet::Pingresp),
        14 => Ok(Packet::Disconnect { code: rest.0.first().copied().unwrap_or(0) }),
        _ => Err(Malformed("packet type not expected here")),
    }
}

/// Iterates over the filters of a SUBSCRIBE with their requested QoS.
pub fn filters(mut bytes: &[u8]) -> impl Iterator<Item = Result<(&[u8], u8), Malformed>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let mut rest = Reader(bytes);
        let filter = rest.text().and_then(|filter| Ok((filter, rest.u8()? & 3)));
        bytes = if filter.is_ok() { rest.0 } else { &[] };
        Some(filter)
    })
}

fn connect(mut rest: Reader<'_>) -> Result<Packet<'_>, Malformed> {
    if rest.text()? != b"MQTT" {
        return Err(Malformed("CONNECT does not name MQTT"));
    }
    Ok(Packet::Connect { version: Version::from_level(rest.u8()?) })
}

fn connack(version: Version, mut rest: Reader<'_>) -> Result<Packet<'_>, Malformed> {
    rest.u8()?;
    let code = rest.u8()?;
    let (mut receive_max, mut qos_max) = (u16::MAX, 2);
    // A refusal of a server that speaks only 3.1.1 has no properties even if the client asked for 5.0.
    if version == Version::V5 && !rest.0.is_empty() {
        let mut properties = rest.properties()?;
        while let Some((key, value)) = properties.property()? {
            match (key, value) {
                (0x21, [high, low]) => receive_max = u16::from_be_bytes([*high, *low]),
                (0x24, [qos]) => qos_max = *qos,
                _ => {}
            }
        }
    }
    Ok(Packet::Connack { code, receive_max, qos_max })
}

fn publish(version: Version, first: u8, mut rest: Reader<'_>) -> Result<Publish<'_>, Malformed> {
    let qos = (first >> 1) & 3;
    if qos == 3 {
        return Err(Malformed("PUBLISH with QoS 3"));
    }
    let topic = rest.text()?;
    let id = if qos > 0 { rest.u16()? } else { 0 };
    rest.skip_properties(version)?;
    Ok(Publish { qos, topic, id, payload: rest.0 })
}

fn ack(kind: Ack, mut rest: Reader<'_>) -> Result<Packet<'_>, Malformed> {
    let id = rest.u16()?;
    Ok(Packet::Ack { kind, id, code: rest.0.first().copied().unwrap_or(0) })
}

/// A cursor that takes from the front and never reads past the end.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (front, back) = self.0.split_at_checked(count).ok_or(Malformed("packet ends inside a field"))?;
        self.0 = back;
        Ok(front)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn varint(&mut self) -> Result<usize, Malformed> {
        let mut value = 0usize;
        for index in 0..4 {
            let byte = self.u8()?;
            value |= usize::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("variable byte integer has more than four bytes"))
    }

    fn text(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    fn properties(&mut self) -> Result<Reader<'a>, Malformed> {
        let length = self.varint()?;
        Ok(Reader(self.take(length)?))
    }

    fn skip_properties(&mut self, version: Version) -> Result<(), Malformed> {
        if version == Version::V5 {
            self.properties()?;
        }
        Ok(())
    }

    fn property(&mut self) -> Result<Option<(u8, &'a [u8])>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.u8()?;
        let before = self.0;
        match key {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2a => self.take(1).map(drop)?,
            0x13 | 0x21..=0x23 => self.take(2).map(drop)?,
            0x02 | 0x11 | 0x18 | 0x27 => self.take(4).map(drop)?,
            0x0b => self.varint().map(drop)?,
            0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => self.text().map(drop)?,
            0x26 => {
                self.text()?;
                self.text()?;
            }
            _ => return Err(Malformed("unknown property")),
        }
        Ok(Some((key, &before[..before.len() - self.0.len()])))
    }
}

/// Appends CONNECT with clean start, no keep-alive and this client id.
pub fn put_connect(out: &mut Vec<u8>, version: Version, client_id: &str) {
    let properties: &[u8] = if version == Version::V5 { &[0] } else { &[] };
    put_connect_as(out, version, client_id, 0x02, properties);
}

/// Appends CONNECT that begins or resumes a session which outlives its connections by an hour at least.
pub fn put_connect_kept(out: &mut Vec<u8>, version: Version, client_id: &str) {
    let properties: &[u8] = if version == Version::V5 { &[5, 0x11, 0, 0, 0x0e, 0x10] } else { &[] };
    put_connect_as(out, version, client_id, 0, properties);
}

fn put_connect_as(out: &mut Vec<u8>, version: Version, client_id: &str, flags: u8, properties: &[u8]) {
    put_header(out, 0x10, 10 + properties.len() + 2 + client_id.len());
    put_text(out, b"MQTT");
    out.extend_from_slice(&[version.level(), flags, 0, 0]);
    out.extend_from_slice(properties);
    put_text(out, client_id.as_bytes());
}

/// Appends CONNACK without a session.
pub fn put_connack(out: &mut Vec<u8>, version: Version, code: u8) {
    match version {
        Version::V311 => out.extend_from_slice(&[0x20, 2, 0, code]),
        Version::V5 => out.extend_from_slice(&[0x20, 3, 0, code, 0]),
    }
}

/// Appends SUBSCRIBE for all `filters` at one QoS.
pub fn put_subscribe(out: &mut Vec<u8>, version: Version, id: u16, filters: &[&str], qos: u8) {
    let properties = usize::from(version == Version::V5);
    let length: usize = filters.iter().map(|filter| filter.len() + 3).sum();
    put_header(out, 0x82, 2 + properties + length);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&[0][..properties]);
    for filter in filters {
        put_text(out, filter.as_bytes());
        out.push(qos);
    }
}

/// Appends SUBACK.
pub fn put_suback(out: &mut Vec<u8>, version: Version, id: u16, codes: &[u8]) {
    let properties = usize::from(version == Version::V5);
    put_header(out, 0x90, 2 + properties + codes.len());
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&[0][..properties]);
    out.extend_from_slice(codes);
}

/// Appends everything of a PUBLISH before its payload of `payload_bytes`; the caller appends the payload.
pub fn put_publish(out: &mut Vec<u8>, version: Version, topic: &[u8], qos: u8, id: u16, payload_bytes: usize) {
    let properties = usize::from(version == Version::V5);
    let id_bytes = if qos > 0 { 2 } else { 0 };
    put_header(out, 0x30 | qos << 1, 2 + topic.len() + id_bytes + properties + payload_bytes);
    put_text(out, topic);
    if qos > 0 {
        out.extend_from_slice(&id.to_be_bytes());
    }
    out.extend_from_slice(&[0][..properties]);
}

/// Appends one of the four acknowledgements with success; both versions allow the short form.
pub fn put_ack(out: &mut Vec<u8>, kind: Ack, id: u16) {
    let first = match kind {
        Ack::Puback => 0x40,
        Ack::Pubrec => 0x50,
        Ack::Pubrel => 0x62,
        Ack::Pubcomp => 0x70,
    };
    let [high, low] = id.to_be_bytes();
    out.extend_from_slice(&[first, 2, high, low]);
}

/// Appends DISCONNECT.
pub fn put_disconnect(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xe0, 0]);
}

/// Appends PINGRESP.
pub fn put_pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xd0, 0]);
}

/// Longest text of a length-prefixed field; callers build client ids and topics far below it.
const TEXT_BYTES_MAX: usize = u16::MAX as usize;

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    assert!(text.len() <= TEXT_BYTES_MAX, "our own topics and client ids are short");
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

/// Appends the first byte and the remaining length.
pub(crate) fn put_header(out: &mut Vec<u8>, first: u8, mut length: usize) {
    out.push(first);
    loop {
        let low = (length & 0x7f) as u8;
        length >>= 7;
        if length == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// What a refusing CONNACK code means, for messages to the person who runs the load.
pub fn refusal(version: Version, code: u8) -> &'static str {
    match (version, code) {
        (Version::V311, 1) => "unacceptable protocol version",
        (Version::V311, 2) => "client id rejected",
        (Version::V311, 3) => "server unavailable",
        (Version::V311, 4) => "bad user name or password",
        (_, 5) | (Version::V5, 0x87) => "not authorized",
        (Version::V5, 0x84) => "unsupported protocol version",
        (Version::V5, 0x85) => "client id not valid",
        (Version::V5, 0x86) => "bad user name or password",
        (Version::V5, 0x88) => "server unavailable",
        (Version::V5, 0x89) => "server busy",
        (Version::V5, 0x97) => "quota exceeded",
        (Version::V5, 0x9f) => "connection rate exceeded",
        _ => "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(version: Version, bytes: &[u8]) -> Packet<'_> {
        let (total, body) = frame(bytes).unwrap().expect("a whole packet");
        assert_eq!(total, bytes.len());
        decode(version, bytes, body).unwrap()
    }

    #[test]
    fn a_publish_reads_back_in_both_versions_and_every_qos() {
        for version in [Version::V311, Version::V5] {
            for qos in 0..=2 {
                let mut out = Vec::new();
                put_publish(&mut out, version, b"a/b", qos, 7, 300);
                out.resize(out.len() + 300, 9);
                let Packet::Publish(publish) = whole(version, &out) else { panic!("not a PUBLISH") };
                assert_eq!((publish.qos, publish.topic), (qos, &b"a/b"[..]));
                assert_eq!(publish.id, if qos > 0 { 7 } else { 0 });
                assert_eq!(publish.payload, &[9; 300]);
            }
        }
    }

    #[test]
    fn bytes_of_a_publish_are_those_of_the_specification() {
        let mut out = Vec::new();
        put_publish(&mut out, Version::V311, b"t", 1, 0x0102, 2);
        out.extend_from_slice(b"hi");
        assert_eq!(out, [0x32, 7, 0, 1, b't', 1, 2, b'h', b'i']);
        out.clear();
        put_publish(&mut out, Version::V5, b"t", 0, 0, 1);
        assert_eq!(out, [0x30, 5, 0, 1, b't', 0]);
        out.clear();
        put_connect(&mut out, Version::V5, "c");
        assert_eq!(out, [0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 0, 0, 0, 1, b'c']);
        out.clear();
        put_connect_kept(&mut out, Version::V5, "c");
        let kept = [0x10, 19, 0, 4, b'M', b'Q', b'T', b'T', 5, 0, 0, 0, 5, 0x11, 0, 0, 0x0e, 0x10, 0, 1, b'c'];
        assert_eq!(out, kept);
        out.clear();
        put_subscribe(&mut out, Version::V311, 9, &["x"], 2);
        assert_eq!(out, [0x82, 6, 0, 9, 0, 1, b'x', 2]);
    }

    #[test]
    fn a_partial_packet_asks_for_more_at_every_length() {
        let mut out = Vec::new();
        put_publish(&mut out, Version::V311, b"topic", 0, 0, 200);
        out.resize(out.len() + 200, 0);
        for length in 0..out.len() {
            assert_eq!(frame(&out[..length]).unwrap(), None, "{length} bytes");
        }
    }

    #[test]
    fn a_connack_of_5_0_tells_its_limits() {
        let bytes = [0x20, 11, 0, 0, 8, 0x21, 0, 20, 0x24, 1, 0x22, 0, 10];
        let expected = Packet::Connack { code: 0, receive_max: 20, qos_max: 1 };
        assert_eq!(whole(Version::V5, &bytes), expected);
        let refused = Packet::Connack { code: 5, receive_max: u16::MAX, qos_max: 2 };
        assert_eq!(whole(Version::V311, &[0x20, 2, 0, 5]), refused);
    }

    #[test]
    fn filters_of_a_subscribe_read_back() {
        for version in [Version::V311, Version::V5] {
            let mut out = Vec::new();
            put_subscribe(&mut out, version, 1, &["a", "b/c"], 1);
            let Packet::Subscribe { id: 1, filters: list } = whole(version, &out) else { panic!("not a SUBSCRIBE") };
            let list: Vec<_> = filters(list).map(Result::unwrap).collect();
            assert_eq!(list, [(&b"a"[..], 1), (&b"b/c"[..], 1)]);
        }
    }

    #[test]
    fn every_cut_and_flip_of_a_packet_is_an_answer_and_never_a_panic() {
        let mut packets = vec![Vec::new(); 4];
        put_connect(&mut packets[0], Version::V5, "client");
        put_publish(&mut packets[1], Version::V5, b"topic", 2, 3, 0);
        put_subscribe(&mut packets[2], Version::V5, 1, &["a/b"], 1);
        packets[3].extend_from_slice(&[0x20, 8, 0, 0, 5, 0x26, 0, 0, 0, 0]);
        for packet in &packets {
            for index in 0..packet.len() {
                for bit in 0..8 {
                    let mut bytes = packet.clone();
                    bytes[index] ^= 1 << bit;
                    for version in [Version::V311, Version::V5] {
                        if let Ok(Some((total, body))) = frame(&bytes)
                            && let Ok(Packet::Subscribe { filters: list, .. }) = decode(version, &bytes[..total], body)
                        {
                            assert!(filters(list).count() <= bytes.len());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_length_of_five_bytes_and_a_giant_are_malformed() {
        assert!(frame(&[0x30, 0x80, 0x80, 0x80, 0x80, 0x01]).is_err());
        assert!(frame(&[0x30, 0xff, 0xff, 0xff, 0x7f]).is_err());
    }
}
