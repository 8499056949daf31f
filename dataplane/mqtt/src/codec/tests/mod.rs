//! Tests of the codec. The oracle is [`wire`], a second writer of packets that shares no code with the
//! encoder, and tables of bytes written down by hand from the specification.

mod connect;
mod packets;
mod properties;
mod random;
mod wire;

use alloc::vec::Vec;

use super::{PACKET_BYTES_MAX, Packet, decode, encode, missing, split};
use crate::types::{Malformed, Version};

const ALL: [Version; 3] = [Version::V31, Version::V311, Version::V5];
const V3: [Version; 2] = [Version::V31, Version::V311];

/// Decodes exactly one packet that fills `bytes`.
fn one(version: Version, bytes: &[u8]) -> Result<Packet<'_>, Malformed> {
    let raw = split(bytes, PACKET_BYTES_MAX)?.expect("the packet is complete");
    assert_eq!(raw.total, bytes.len());
    decode(version, raw)
}

/// `bytes` are `expected`, whole and in single bytes, and what we write for it means the same.
#[track_caller]
fn good(version: Version, bytes: &[u8], expected: Packet<'_>) {
    assert_eq!(one(version, bytes), Ok(expected), "{version:?} {bytes:02x?}");
    feed_single_bytes(bytes);
    survives_encoding(version, &expected);
}

/// Decoding refuses `bytes` for the reason `expected`.
#[track_caller]
fn bad(version: Version, bytes: &[u8], expected: Malformed) {
    assert_eq!(one(version, bytes), Err(expected), "{version:?} {bytes:02x?}");
}

/// Every proper prefix is incomplete, and [`missing`] never promises too little progress nor too much.
#[track_caller]
fn feed_single_bytes(bytes: &[u8]) {
    for len in 0..bytes.len() {
        let prefix = &bytes[..len];
        assert_eq!(split(prefix, PACKET_BYTES_MAX), Ok(None), "prefix of {len} of {bytes:02x?}");
        assert!((1..=bytes.len() - len).contains(&missing(prefix)), "prefix of {len} of {bytes:02x?}");
    }
    assert_eq!(missing(bytes), 0);
}

#[track_caller]
fn survives_encoding(version: Version, packet: &Packet<'_>) {
    let version = if let Packet::Connect(connect) = packet { connect.version } else { version };
    let mut out = Vec::from(*b"before");
    encode::packet(&mut out, version, packet);
    assert_eq!(one(version, &out[6..]).as_ref(), Ok(packet), "{version:?} {out:02x?}");
}
