//! `$SYS/broker/...`: what mosquitto's exporters and dashboards ask for is there, and changes.

use crate::setup;
use harness::raw::Raw;
use harness::wire::{self, Connect, Publish, V5, kind};
use harness::{SHORT, within};
use std::collections::BTreeMap;

/// What mosquitto publishes, and so what mosquitto-exporter and the boards on it ask for. The
/// exporter passes over `timestamp`, which today's mosquitto does not publish.
const ASKED: &[&str] = &[
    "bytes/received",
    "bytes/sent",
    "clients/active",
    "clients/connected",
    "clients/disconnected",
    "clients/expired",
    "clients/inactive",
    "clients/maximum",
    "clients/total",
    "heap/current",
    "heap/maximum",
    "messages/inflight",
    "messages/received",
    "messages/sent",
    "messages/stored",
    "publish/bytes/received",
    "publish/bytes/sent",
    "publish/messages/dropped",
    "publish/messages/received",
    "publish/messages/sent",
    "retained messages/count",
    "shared_subscriptions/count",
    "store/messages/bytes",
    "store/messages/count",
    "subscriptions/count",
    "uptime",
    "version",
];

/// Below `load/`, each with 1min, 5min and 15min.
const LOADS: &[&str] = &[
    "bytes/received",
    "bytes/sent",
    "connections",
    "messages/received",
    "messages/sent",
    "publish/dropped",
    "publish/received",
    "publish/sent",
    "sockets",
];

#[test]
fn the_node_says_on_sys_topics_what_monitors_of_mosquitto_ask_for() {
    harness::needs_own_broker!();
    let node = setup().shards(2).env("RINGMQ_SYS_TOPICS__SYS_MSG_INTERVAL", "100ms").start();
    let mut monitor = Raw::connect(node.mqtt(), &Connect::new(V5, "monitor"));
    monitor.subscribe("$SYS/broker/#", 0);
    let mut said = BTreeMap::new();
    let mut hear = |monitor: &mut Raw, done: &dyn Fn(&BTreeMap<String, String>) -> bool| {
        within(SHORT, "the node says it", || {
            let message = monitor.message();
            let name = message.topic.strip_prefix("$SYS/broker/").expect("nothing else was asked for").to_owned();
            said.insert(name, String::from_utf8(message.payload).expect("a text"));
            done(&said).then_some(())
        });
    };
    let loads = LOADS.iter().flat_map(|name| ["1min", "5min", "15min"].map(|minutes| format!("load/{name}/{minutes}")));
    let asked: Vec<String> = ASKED.iter().map(|name| (*name).to_owned()).chain(loads).collect();
    hear(&mut monitor, &|said| asked.iter().all(|name| said.contains_key(name)));
    let mut publisher = Raw::connect(node.mqtt(), &Connect::new(V5, "publisher"));
    (0..5).for_each(|_| publisher.publish_acked("t", b"x", 1));
    hear(&mut monitor, &|said| {
        said["publish/messages/received"] == "5"
            && said["clients/connected"] == "2"
            && said["version"].starts_with("ringmq version")
    });
    // Clients only listen here.
    publisher.send(&Publish::new("$SYS/broker/version", b"1").acked(1, 9).bytes(V5));
    assert_eq!(publisher.expect(kind::PUBACK).reason(), 0x87);
    let mut all = Raw::connect(node.mqtt(), &Connect::new(V5, "all"));
    all.subscribe("#", 0);
    all.send(&wire::pingreq());
    assert_eq!(all.next(SHORT).map(|packet| packet.kind), Some(kind::PINGRESP), "hidden from wildcards");
}

/// The last that a node said on one of its topics, which is retained.
fn said(node: &harness::Node, name: &str) -> Option<u64> {
    let mut reader = Raw::connect(node.mqtt(), &Connect::new(V5, "reader"));
    reader.subscribe_quietly(&format!("$SYS/broker/{name}"), 0);
    reader.send(&wire::pingreq());
    let packet = reader.next(SHORT)?;
    (packet.kind == kind::PUBLISH).then(|| String::from_utf8_lossy(&packet.publish(V5).payload).parse().ok())?
}

#[test]
fn counts_mean_what_they_mean_in_mosquitto() {
    let node = setup().shards(2).env("RINGMQ_SYS_TOPICS__SYS_MSG_INTERVAL", "100ms").start();
    let mut subscriber = Raw::connect(node.mqtt(), &Connect::new(V5, "subscriber"));
    subscriber.subscribe("t", 1);
    let mut publisher = Raw::connect(node.mqtt(), &Connect::new(V5, "publisher"));
    publisher.publish_acked("t", b"four", 1);
    // It is not acknowledged: kept once, with its payload.
    subscriber.expect(kind::PUBLISH);
    // CONNECT, SUBSCRIBE; CONNECT, PUBLISH; and CONNACK, SUBACK, PUBLISH; CONNACK, PUBACK.
    assert_eq!((node.counter("packets_received"), node.counter("packets_sent")), (4, 5));
    assert_eq!((node.counter("publish_bytes_sent"), node.counter("messages_sent")), (4, 1));
    for (name, value) in [("publish/messages/received", 1), ("publish/bytes/received", 4), ("messages/inflight", 1)] {
        within(SHORT, &format!("{name} is {value}"), || said(&node, name).filter(|said| *said == value));
    }
    assert_eq!(node.counter("shard_inflight"), 1);
    let retained = (node.counter("shard_stored"), node.counter("shard_stored_bytes"));
    assert!(retained.0 > ASKED.len() as u64 && retained.1 > 0, "$SYS itself is retained: {retained:?}");
    subscriber.send(&wire::ack(kind::PUBACK, 1));
    within(SHORT, "it is acknowledged", || (node.counter("messages_acked") == 1).then_some(()));
}
