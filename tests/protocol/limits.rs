//! What one client may take of a node, and what a node does when its memory is scarce.

use crate::{assert_told_why, setup};
use harness::raw::Raw;
use harness::wire::{self, Connect, Publish, V5, V311, kind};
use harness::{LONG, SHORT, within};
use std::time::{Duration, Instant};

/// Session Expiry Interval of ten minutes as a CONNECT property.
const TEN_MINUTES: &[u8] = &[0x11, 0, 0, 2, 0x58];

#[test]
fn who_publishes_too_fast_is_slowed_down_and_loses_nothing() {
    harness::needs_own_broker!();
    let node = setup().shards(2).env("RINGMQ_MQTT__MESSAGES_RATE", "50").start();
    let mut subscriber = Raw::connect(node.mqtt(), &Connect::new(V5, "s"));
    subscriber.subscribe("t", 0);
    let mut fast = Raw::connect(node.mqtt(), &Connect::new(V5, "fast"));
    let since = Instant::now();
    let all: Vec<u8> = (0..200u8).flat_map(|n| Publish::new("t", &[n]).bytes(V5)).collect();
    fast.send(&all);
    for n in 0..200u8 {
        assert_eq!(subscriber.message().payload, [n]);
    }
    // 50 at once, 150 at 50 a second.
    assert!(since.elapsed() >= Duration::from_millis(2900), "{:?}", since.elapsed());
    node.counter_reaches("publishers_paced", 1);
}

#[test]
fn the_longest_keep_alive_is_imposed_or_refused() {
    harness::needs_own_broker!();
    let node = setup().env("RINGMQ_MQTT__MAX_KEEPALIVE", "1s").start();
    let (mut five, connack) = Raw::connack(node.mqtt(), &Connect { keep_alive_s: 0, ..Connect::new(V5, "five") });
    // Server Keep Alive of one second.
    assert!(connack.body.windows(3).any(|bytes| bytes == [0x13, 0, 1]), "{connack:?}");
    assert_told_why(&five.closed(LONG), &[0x8d], "keep-alive timeout");
    let mut three = node.raw();
    three.send(&Connect { keep_alive_s: 60, ..Connect::new(V311, "three") }.bytes());
    three.speak(V311);
    assert_eq!(three.expect(kind::CONNACK).body[1], 2, "identifier rejected");
    drop(Raw::connect(node.mqtt(), &Connect { keep_alive_s: 1, ..Connect::new(V311, "three") }));
}

#[test]
fn a_subscriber_that_does_not_read_is_disconnected_where_the_operator_says_so() {
    harness::needs_own_broker!();
    let node = setup()
        .shards(2)
        .env("RINGMQ_MQTT__SLOW_SUBSCRIBER", "disconnect")
        .env("RINGMQ_LIMITS__OUTPUT_BYTES_MAX", "64KB")
        .start();
    let mut slow = Raw::connect(node.mqtt(), &Connect::new(V5, "slow"));
    slow.subscribe("t", 0);
    let mut publisher = Raw::connect(node.mqtt(), &Connect::new(V5, "fast"));
    let payload = vec![0x5a; 60_000];
    within(LONG, "the slow subscriber is cut", || {
        publisher.send(&Publish::new("t", &payload).bytes(V5).repeat(50));
        publisher.ping();
        (node.counter("slow_subscribers_disconnected") == 1).then_some(())
    });
    let packets = slow.closed(LONG);
    assert_told_why(&packets, &[0x97], "quota exceeded");
}

#[test]
fn a_node_whose_memory_is_scarce_refuses_what_grows_and_recovers() {
    harness::needs_own_broker!();
    let node = setup()
        .shards(2)
        .env("RINGMQ_LIMITS__MEMORY_MAX", "160MB")
        .env("RINGMQ_MQTT__MAX_MQUEUE_BYTES", "1GB")
        .env("RINGMQ_DURABILITY__MODE", "none")
        .start();
    let keep = |clean| Connect { clean, properties: TEN_MINUTES, ..Connect::new(V5, "away") };
    let mut away = Raw::connect(node.mqtt(), &keep(true));
    away.subscribe("kept", 1);
    drop(away);
    let mut live = Raw::connect(node.mqtt(), &Connect::new(V5, "live"));
    live.subscribe("live", 0);
    let mut publisher = Raw::connect(node.mqtt(), &Connect::new(V5, "publisher"));
    let payload = vec![0x5a; 500_000];
    let mut publish = |topic| {
        publisher.send(&Publish::new(topic, &payload).acked(1, 1).bytes(V5));
        publisher.expect(kind::PUBACK).reason()
    };
    let accepted = (0..1000).take_while(|_| publish("kept") != 0x97).count();
    assert!((20..=320).contains(&accepted), "half a megabyte each, of 160: {accepted}");

    assert_eq!(publish("live"), 0, "who takes what it gets is served");
    assert_eq!(live.message().payload.len(), payload.len());
    let mut stranger = node.raw();
    stranger.send(&Connect::new(V5, "stranger").bytes());
    stranger.speak(V5);
    assert_eq!(stranger.expect(kind::CONNACK).reason(), 0x97);
    node.says("memory is scarce");

    let (mut away, connack) = Raw::connack(node.mqtt(), &keep(false));
    assert!(connack.session_present());
    for _ in 0..accepted {
        let packet_id = away.message().packet_id.expect("QoS 1");
        away.send(&wire::ack(kind::PUBACK, packet_id));
    }
    drop(away);
    within(LONG, "memory is no longer scarce", || {
        let mut stranger = node.raw();
        stranger.send(&Connect::new(V5, "stranger").bytes());
        stranger.speak(V5);
        (stranger.next(SHORT)?.reason() == 0).then_some(())
    });
    assert_eq!(publish("kept"), 0);
    assert!(node.counter_reaches("shed_memory_scarce", 1) >= 1);
}
