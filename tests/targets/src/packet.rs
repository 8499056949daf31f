//! Bytes of a connection to packets and back: `mqtt::codec`.

use mqtt::{
    codec::{Packet, UserProperties, decode, encode, missing, split},
    types::{Malformed, Version},
};

use crate::pieces::pieces;

const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];
/// Small, so that a few bytes reach the limit.
const PACKET_BYTES_MAX: usize = 2048;

/// First byte: version and cuts; the rest is the stream. Whatever decodes says the same after it was encoded and decoded
/// again, and a stream in pieces is the stream in one.
pub fn packet(data: &[u8]) {
    let Some((&head, stream)) = data.split_first() else { return };
    let version = VERSIONS[usize::from(head) % VERSIONS.len()];
    let whole = read(version, stream);
    let mut buffer = Vec::new();
    let (mut totals, mut end) = (Vec::new(), None);
    for piece in pieces(head / 3, stream) {
        buffer.extend_from_slice(piece);
        while end.is_none() {
            let wanted = missing(&buffer);
            match split(&buffer, PACKET_BYTES_MAX) {
                Ok(None) => {
                    assert!(wanted >= 1, "nothing is missing of an incomplete packet");
                    break;
                }
                Ok(Some(raw)) => match decode(version, raw) {
                    Ok(_) => {
                        assert_eq!(wanted, 0);
                        totals.push(raw.total);
                        buffer.drain(..raw.total);
                    }
                    Err(malformed) => end = Some(malformed),
                },
                Err(malformed) => end = Some(malformed),
            }
        }
    }
    assert_eq!((totals, end), whole, "in pieces it is another stream");
}

/// Sizes of the packets of a stream, and what is wrong with the next one.
fn read(version: Version, mut stream: &[u8]) -> (Vec<usize>, Option<Malformed>) {
    let mut totals = Vec::new();
    loop {
        let raw = match split(stream, PACKET_BYTES_MAX) {
            Ok(Some(raw)) => raw,
            Ok(None) => return (totals, None),
            Err(malformed) => return (totals, Some(malformed)),
        };
        match decode(version, raw) {
            Ok(packet) => {
                walk(&packet);
                survives_encoding(version, &packet);
            }
            Err(malformed) => return (totals, Some(malformed)),
        }
        totals.push(raw.total);
        stream = &stream[raw.total..];
    }
}

/// What is said in a packet's lists can be read to the end.
fn walk(packet: &Packet<'_>) {
    let user = |user: UserProperties<'_>| user.count();
    match packet {
        Packet::Connect(from) => {
            user(from.properties.user);
        }
        Packet::Publish(from) => {
            let mut forwarded = Vec::new();
            from.properties.forwarded(&mut forwarded);
            user(from.properties.user);
            from.properties.subscription_ids.count();
        }
        Packet::Subscribe(from) => assert_eq!(from.entries.count(), from.entries.len()),
        Packet::Unsubscribe(from) => assert_eq!(from.filters.count(), from.filters.len()),
        Packet::Suback(from) | Packet::Unsuback(from) => assert_eq!(from.reasons.count(), from.reasons.len()),
        _ => {}
    }
}

fn survives_encoding(version: Version, packet: &Packet<'_>) {
    let version = if let Packet::Connect(connect) = packet { connect.version } else { version };
    let mut bytes = Vec::new();
    encode::packet(&mut bytes, version, packet);
    let raw = split(&bytes, mqtt::codec::PACKET_BYTES_MAX).expect("what we write has a front").expect("and is whole");
    assert_eq!(raw.total, bytes.len());
    assert_eq!(decode(version, raw).as_ref(), Ok(packet), "{version:?} {bytes:02x?}");
    let mut again = Vec::new();
    encode::packet(&mut again, version, packet);
    assert_eq!(again, bytes);
}
