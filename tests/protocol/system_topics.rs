//! `$SYS/broker/...`: what mosquitto's exporters and dashboards ask for is there, and changes.

use crate::setup;
use harness::raw::Raw;
use harness::wire::{self, Connect, Publish, V5, kind};
use harness::{SHORT, within};
use std::collections::BTreeMap;

/// What mosquitto-exporter and the Grafana boards on it ask for.
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
    "load/bytes/received/1min",
    "load/bytes/sent/5min",
    "load/connections/15min",
    "load/messages/received/1min",
    "load/messages/sent/1min",
    "load/publish/dropped/1min",
    "load/publish/received/1min",
    "load/publish/sent/1min",
    "load/sockets/1min",
    "messages/received",
    "messages/sent",
    "messages/stored",
    "publish/messages/dropped",
    "publish/messages/received",
    "publish/messages/sent",
    "retained messages/count",
    "shared_subscriptions/count",
    "store/messages/count",
    "subscriptions/count",
    "uptime",
    "version",
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
    hear(&mut monitor, &|said| ASKED.iter().all(|name| said.contains_key(*name)));
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
