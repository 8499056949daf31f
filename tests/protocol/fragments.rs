//! CONNECT, SUBSCRIBE and publishes in one write and in single bytes, on connections that are handed over.
//!
//! The listener's kernel queue decides which shard accepts, the client id decides where the connection
//! lives; one connection for each shard as home therefore crosses for all but one of them, wherever it was
//! accepted. A counter shows that it did.

use crate::{SHARDS, client, node, setup};
use harness::raw::Raw;
use harness::wire::{self, Connect, Publish, V5, V311, kind};
use harness::{LONG, SHORT};
use std::io::Write;
use std::net::SocketAddr;

/// A publish whose payload is its number, filled up to `length`, so that loss, order and damage all show.
fn numbered(topic: &str, number: u32, length: usize, version: u8) -> Vec<u8> {
    Publish::new(topic, &filled(number, length)).bytes(version)
}

fn filled(number: u32, length: usize) -> Vec<u8> {
    let mut payload = number.to_be_bytes().to_vec();
    payload.extend((payload.len()..length).map(|at| (at as u32).wrapping_mul(31).wrapping_add(number) as u8));
    payload
}

/// Everything that the connection sends, from CONNECT on, as one run of bytes.
fn conversation(id: &str, topic: &str, version: u8, count: u32, length: usize) -> Vec<u8> {
    let mut bytes = Connect::new(version, id).bytes();
    bytes.extend(wire::subscribe(version, 1, topic, 0));
    for number in 0..count {
        bytes.extend(numbered(topic, number, length, version));
    }
    bytes
}

/// Reads the answers to a [`conversation`]: everything back, once, in order, whole. SUBACK may come after the
/// first messages, as the specification allows.
#[track_caller]
fn expect_conversation(raw: &mut Raw, version: u8, count: u32, length: usize) {
    raw.speak(version);
    let connack = raw.next(LONG).expect("the connection stays open");
    assert_eq!((connack.kind, connack.reason()), (kind::CONNACK, 0), "{connack:?}");
    let mut granted = false;
    let mut number = 0;
    while number < count || !granted {
        let packet = raw.next(SHORT).unwrap_or_else(|| panic!("closed after {number} of {count} messages"));
        if packet.kind == kind::SUBACK {
            assert!(!granted && packet.reason() == 0, "{packet:?}");
            granted = true;
            continue;
        }
        let publish = packet.publish(version);
        assert_eq!(publish.payload.len(), length, "length of message {number}");
        assert!(publish.payload == filled(number, length), "message {number} is lost, late or damaged");
        number += 1;
    }
    raw.ping();
}

fn in_one_write(at: SocketAddr, id: &str, topic: &str, version: u8, count: u32, length: usize) {
    let mut raw = Raw::open(at);
    let bytes = conversation(id, topic, version, count, length);
    let mut writer = raw.writer();
    // Written beside the reading: a broker may stop reading while we do not take its answers.
    let writing = std::thread::spawn(move || writer.write_all(&bytes));
    expect_conversation(&mut raw, version, count, length);
    writing.join().expect("the writer does not panic").expect("the broker reads everything");
}

#[test]
fn a_megabyte_behind_connect_in_one_write_survives_the_hand_over() {
    for home in 0..SHARDS {
        for version in [V311, V5] {
            let id = client(home, &format!("flood{version}"));
            let topic = format!("flood/{id}");
            in_one_write(node().mqtt(), &id, &topic, version, 1024, 1024);
        }
    }
}

#[test]
fn a_megabyte_in_large_messages_survives_the_hand_over() {
    for home in 0..SHARDS {
        let id = client(home, "large");
        let topic = format!("large/{id}");
        in_one_write(node().mqtt(), &id, &topic, V5, 5, 210_000);
    }
}

#[test]
fn a_megabyte_in_tiny_messages_survives_the_hand_over() {
    let id = client(1, "tiny");
    in_one_write(node().mqtt(), &id, "tiny", V311, 60_000, 10);
}

#[test]
fn single_bytes_survive_the_hand_over() {
    for home in 0..SHARDS {
        let id = client(home, "drip");
        let topic = format!("drip/{id}");
        let mut raw = node().raw();
        let bytes = conversation(&id, &topic, V5, 300, 90);
        let mut writer = raw.writer();
        let writing = std::thread::spawn(move || bytes.iter().try_for_each(|byte| writer.write_all(&[*byte])));
        expect_conversation(&mut raw, V5, 300, 90);
        writing.join().expect("the writer does not panic").expect("the broker reads everything");
    }
}

#[test]
fn a_megabyte_in_single_bytes_survives_the_hand_over() {
    let id = client(1, "drizzle");
    let topic = format!("drizzle/{id}");
    let mut raw = node().raw();
    let bytes = conversation(&id, &topic, V311, 1_050, 1_000);
    let mut writer = raw.writer();
    let writing = std::thread::spawn(move || bytes.iter().try_for_each(|byte| writer.write_all(&[*byte])));
    expect_conversation(&mut raw, V311, 1_050, 1_000);
    writing.join().expect("the writer does not panic").expect("the broker reads everything");
}

#[test]
fn a_connect_cut_at_every_byte_is_put_together_again() {
    let id = client(2, "cut");
    let bytes = Connect::new(V5, &id).bytes();
    for cut in 1..bytes.len() {
        let mut raw = node().raw();
        raw.send(&bytes[..cut]);
        // The first part must have been read alone: a second connection that is served afterwards by each
        // shard gives the broker every chance to look at it.
        if cut % 8 == 0 {
            for shard in 0..SHARDS {
                Raw::connect(node().mqtt(), &Connect::new(V5, &client(shard, "between"))).ping();
            }
        }
        raw.send(&bytes[cut..]);
        assert_eq!(raw.expect(kind::CONNACK).reason(), 0, "cut after byte {cut}");
    }
}

#[test]
fn a_flood_at_qos_1_is_acknowledged_in_order_across_the_hand_over() {
    // Sent before the answer to CONNECT, yet no more than the broker allows every client.
    let (_, connack) = Raw::connack(node().mqtt(), &Connect::new(V5, &client(0, "asking")));
    let count = receive_maximum(&connack.body).min(400);
    for home in 0..SHARDS {
        let id = client(home, "acked");
        let subscriber_id = client((home + 1) % SHARDS, "acked-sub");
        let topic = format!("acked/{id}");
        let mut subscriber = Raw::connect(node().mqtt(), &Connect::new(V5, &subscriber_id));
        subscriber.subscribe(&topic, 0);
        let mut bytes = Connect::new(V5, &id).bytes();
        for number in 1..=count {
            let payload = filled(number.into(), 2000);
            bytes.extend(Publish::new(&topic, &payload).acked(1, number).bytes(V5));
        }
        let mut raw = node().raw();
        let mut writer = raw.writer();
        let writing = std::thread::spawn(move || writer.write_all(&bytes));
        assert_eq!(raw.expect(kind::CONNACK).reason(), 0);
        for number in 1..=count {
            let puback = raw.expect(kind::PUBACK);
            assert_eq!((puback.packet_id(), puback.reason()), (number, 0));
            let publish = subscriber.expect(kind::PUBLISH).publish(V5);
            assert!(publish.payload == filled(number.into(), 2000), "message {number}");
        }
        writing.join().expect("the writer does not panic").expect("the broker reads everything");
    }
}

/// Receive Maximum in a CONNACK; its absence means the largest.
fn receive_maximum(connack: &[u8]) -> u16 {
    let mut at = 3;
    while at < connack.len() {
        at += 1 + match connack[at] {
            0x21 => return u16::from_be_bytes([connack[at + 1], connack[at + 2]]),
            0x24 | 0x25 | 0x28 | 0x29 | 0x2a => 1,
            0x22 | 0x13 => 2,
            0x11 | 0x27 => 4,
            0x12 | 0x1f | 0x1a | 0x1c | 0x15 | 0x16 => {
                2 + usize::from(u16::from_be_bytes([connack[at + 1], connack[at + 2]]))
            }
            other => panic!("property {other:#x} does not belong into CONNACK"),
        };
    }
    u16::MAX
}

#[test]
fn connections_do_move_to_their_home_shard() {
    harness::needs_own_broker!();
    let node = setup().shards(SHARDS).start();
    let accepted_before = node.counter("connections_accepted");
    let moved_before = node.counter("connections_handed_over");
    let total = 60;
    for index in 0..total {
        let id = harness::client_on(index % SHARDS, SHARDS, &format!("mover{index}"));
        let topic = format!("mover/{index}");
        in_one_write(node.mqtt(), &id, &topic, V5, 3, 100);
    }
    let accepted = node.counter_reaches("connections_accepted", accepted_before + u64::from(total));
    assert_eq!(accepted - accepted_before, u64::from(total));
    // Two of three connections are accepted elsewhere on average; with sixty, none would be a wonder.
    let moved = node.counter_reaches("connections_handed_over", moved_before + 1);
    assert!(moved - moved_before <= u64::from(total));
}

#[test]
fn a_single_shard_serves_the_same_conversation() {
    let node = setup().shards(1).start();
    in_one_write(node.mqtt(), "lonely", "lonely/t", V311, 1024, 1024);
}

#[test]
fn a_publisher_that_never_reads_does_not_stop_others() {
    let id = client(0, "deaf");
    let mut deaf = Raw::connect(node().mqtt(), &Connect::new(V5, &id));
    deaf.subscribe("deaf/#", 0);
    let mut writer = deaf.writer();
    // It floods itself and never takes its answers.
    let flood = std::thread::spawn(move || {
        let publish = numbered("deaf/t", 1, 4096, V5);
        writer.set_write_timeout(Some(SHORT)).expect("a bound on writes");
        (0..5000).try_for_each(|_| writer.write_all(&publish))
    });
    let other_id = client(1, "lively");
    let mut other = Raw::connect(node().mqtt(), &Connect::new(V5, &other_id));
    other.subscribe("lively/t", 0);
    for number in 1..200 {
        other.send(&Publish::new("lively/t", b"x").acked(1, number).bytes(V5));
        let mut kinds: Vec<u8> = Vec::new();
        while kinds.len() < 2 {
            match other.poll(SHORT) {
                Ok(Some(packet)) => kinds.push(packet.kind),
                silence => panic!("round {number}, after {kinds:?}: {silence:?}"),
            }
        }
        kinds.sort_unstable();
        assert_eq!(kinds, [kind::PUBLISH, kind::PUBACK], "round {number}");
    }
    drop(other);
    deaf.shut_writing();
    drop(deaf);
    // How it ended is the broker's choice: read to the end, paused, or closed.
    let _ = flood.join().expect("the writer does not panic");
    Raw::connect(node().mqtt(), &Connect::new(V5, &client(2, "after"))).ping();
}
