//! Packets and damaged packets at random, from seeds that a failure prints.

use alloc::vec::Vec;

use super::{
    super::{Packet, decode, encode, missing, split},
    feed_single_bytes, one, survives_encoding,
    wire::Random,
};
use crate::types::Version;

const PACKETS: u64 = 100_000;
/// Damaged packets for each whole one.
const DAMAGED: usize = 3;
const BYTES_MAX: usize = 4096;

#[test]
fn every_legal_packet_decodes_and_survives_encoding() {
    let mut seen = [0u32; 16];
    for seed in 0..PACKETS {
        let mut random = Random::seeded(seed);
        let version = random.version();
        let bytes = random.packet(version);
        let packet = one(version, &bytes)
            .unwrap_or_else(|malformed| panic!("seed {seed} {version:?}: {malformed} in {bytes:02x?}"));
        seen[usize::from(bytes[0] >> 4)] += 1;
        survives_encoding(version, &packet);
        if bytes.len() < 300 {
            feed_single_bytes(&bytes);
        }
        walk(&packet);
    }
    assert!(seen[1..].iter().all(|count| *count > 500), "every packet type was drawn: {seen:?}");
}

#[test]
fn damaged_packets_never_panic_and_what_still_decodes_survives_encoding() {
    let (mut accepted, mut refused) = (0u32, 0u32);
    for seed in 0..PACKETS / DAMAGED as u64 {
        let mut random = Random::seeded(seed ^ 0xD00D);
        let version = random.version();
        let whole = random.packet(version);
        for _ in 0..DAMAGED {
            let mut bytes = whole.clone();
            for _ in 0..1 + random.below(3) {
                damage(&mut random, &mut bytes);
            }
            // Anybody can also send one version's packet on a connection of another one.
            let version = if random.below(4) == 0 { random.version() } else { version };
            if read_all(version, &bytes) {
                accepted += 1
            } else {
                refused += 1
            }
            prefixes_agree(&bytes);
        }
    }
    assert!(accepted > 5_000 && refused > 5_000, "both outcomes were reached: {accepted} and {refused}");
}

#[test]
fn noise_never_panics() {
    for seed in 0..PACKETS {
        let mut random = Random::seeded(seed ^ 0xBEEF);
        let mut bytes: Vec<u8> = (0..random.below(40)).map(|_| random.next() as u8).collect();
        if let Some(len) = bytes.get_mut(1).filter(|_| random.flip()) {
            *len = random.below(38) as u8;
        }
        let version = random.version();
        read_all(version, &bytes);
        prefixes_agree(&bytes);
    }
}

/// One accident of a byte stream.
fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    let at = random.below(bytes.len());
    match random.below(6) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        2 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF, b'+', b'#', b'$'][random.below(8)],
        3 => bytes.truncate(at),
        4 => bytes.insert(at, random.next() as u8),
        _ => drop(bytes.remove(at)),
    }
    // Mend the length of short packets now and then, so that the damage reaches further than `split`.
    if random.flip() && (2..130).contains(&bytes.len()) {
        bytes[1] = (bytes.len() - 2) as u8;
    }
}

/// Reads a stream to its first error or end; true when at least one packet was read.
fn read_all(version: Version, mut bytes: &[u8]) -> bool {
    let mut any = false;
    while let Ok(Some(raw)) = split(bytes, BYTES_MAX) {
        assert!((2..=bytes.len()).contains(&raw.total));
        let Ok(packet) = decode(version, raw) else { return any };
        walk(&packet);
        survives_encoding(version, &packet);
        bytes = &bytes[raw.total..];
        any = true;
    }
    any
}

/// Every prefix of a stream says incomplete, or the same as the whole.
fn prefixes_agree(bytes: &[u8]) {
    let whole = split(bytes, BYTES_MAX);
    for len in (0..bytes.len()).rev().take(200) {
        match split(&bytes[..len], BYTES_MAX) {
            Ok(None) => assert!(missing(&bytes[..len]) > 0),
            prefix => assert_eq!(prefix, whole, "prefix of {len} of {bytes:02x?}"),
        }
    }
}

/// The walks inside a packet yield what they promise.
fn walk(packet: &Packet<'_>) {
    match packet {
        Packet::Subscribe(from) => assert_eq!(from.entries.count(), from.entries.len()),
        Packet::Unsubscribe(from) => assert_eq!(from.filters.count(), from.filters.len()),
        Packet::Suback(from) | Packet::Unsuback(from) => assert_eq!(from.reasons.count(), from.reasons.len()),
        Packet::Publish(from) => {
            let mut forwarded = Vec::new();
            from.properties.forwarded(&mut forwarded);
            let parts = encode::PublishParts {
                qos: from.qos,
                dup: from.dup,
                retain: from.retain,
                topic: from.topic,
                packet_id: from.packet_id,
                topic_alias: from.properties.topic_alias,
                message_expiry_s: from.properties.message_expiry_s,
                subscription_ids: &from.properties.subscription_ids.collect::<Vec<_>>(),
                forwarded: &forwarded,
                payload: from.payload,
            };
            let mut out = Vec::new();
            let packet_id_at = encode::publish(&mut out, Version::V5, &parts);
            assert_eq!(out.len(), encode::publish_bytes(Version::V5, &parts));
            assert_eq!(one(Version::V5, &out), Ok(*packet));
            if let Some(id) = from.packet_id {
                assert_eq!(out[packet_id_at..packet_id_at + 2], id.get().to_be_bytes());
            }
        }
        _ => {}
    }
}
