//! Events about clients on `$SYS/brokers/<node>/clients/<clientid>/...`, and lines of the log about them.

use crate::{reload, setup};
use harness::wire::{self, Connect, Publish, V5, V311, kind};
use harness::{MOMENT, Node, Raw, SHORT, client_on, within};
use serde_json::Value;

const ALL: &str =
    "client_connected = true\nclient_disconnected = true\nclient_subscribed = true\nclient_unsubscribed = true\n";

/// A node with these lines in `sys_topics.sys_event_messages`, and its file.
fn node(shards: u16, knobs: &str) -> (tempfile::TempDir, Node) {
    let files = tempfile::tempdir().expect("a temporary directory");
    let config = files.path().join("ringmq.toml");
    std::fs::write(&config, format!("[sys_topics.sys_event_messages]\n{knobs}")).expect("a file");
    let node = setup().shards(shards).config(&config).start();
    (files, node)
}

/// The next event: its topic below the client, and what it says.
#[track_caller]
fn event(monitor: &mut Raw) -> (String, Value) {
    let message = monitor.message();
    assert!(!message.retain, "an event is over when it was said: {message:?}");
    let name = message.topic.strip_prefix("$SYS/brokers/n1@127.0.0.1/clients/").expect("nothing else was asked for");
    (name.to_owned(), serde_json::from_slice(&message.payload).expect("JSON"))
}

fn comes_and_goes(shards: u16) {
    let (_files, node) = node(shards, ALL);
    let mut monitor = Raw::connect(node.mqtt(), &Connect::new(V5, "monitor"));
    monitor.subscribe_quietly("$SYS/brokers/+/clients/#", 0);
    for shard in 0..shards {
        let client = client_on(shard, shards, "guest");
        // Until its own subscription is told, the monitor may hear of itself.
        let mut next = |what: &str| loop {
            let (topic, said) = event(&mut monitor);
            if topic == format!("{client}/{what}") {
                return said;
            }
            assert!(topic.starts_with("monitor/"), "{topic}, and not {what}");
        };
        let mut guest =
            Raw::connect(node.mqtt(), &Connect { keep_alive_s: 60, ..Connect::new(V311, &client).login("me", "x") });
        let said = next("connected");
        assert_eq!(said["clientid"], client.as_str());
        assert_eq!((&said["username"], &said["proto_ver"], &said["keepalive"]), (&"me".into(), &4.into(), &60.into()));
        assert_eq!((&said["ipaddress"], &said["listener"]), (&"127.0.0.1".into(), &"tcp:default".into()));
        assert!(said["ts"].as_u64() > Some(1_600_000_000_000), "{said}");
        guest.subscribe("a/+", 1);
        let said = next("subscribed");
        assert_eq!((&said["topic"], &said["subopts"]["qos"]), (&"a/+".into(), &1.into()));
        guest.send(&wire::packet(0xa2, b"\0\x05\0\x03a/+"));
        assert_eq!(next("unsubscribed")["topic"], "a/+");
        guest.send(&wire::disconnect());
        let said = next("disconnected");
        assert_eq!((&said["reason"], &said["username"]), (&"DISCONNECT".into(), &"me".into()));
    }
}

#[test]
fn clients_that_come_subscribe_and_go_are_told_of_with_one_shard() {
    comes_and_goes(1);
}

#[test]
fn clients_that_come_subscribe_and_go_are_told_of_with_three_shards() {
    comes_and_goes(3);
}

#[test]
fn nothing_is_told_unless_it_is_asked_for_and_that_changes_live() {
    let (files, node) = node(2, "");
    let mut monitor = Raw::connect(node.mqtt(), &Connect::new(V5, "monitor"));
    monitor.subscribe("$SYS/brokers/#", 0);
    Raw::connect(node.mqtt(), &Connect::new(V5, "unseen")).ping();
    monitor.ping();
    assert!(monitor.poll(MOMENT).is_err(), "nobody asked for it");
    let config = files.path().join("ringmq.toml");
    std::fs::write(config, "sys_topics.sys_event_messages.client_connected = true\n").expect("a file");
    reload(&node);
    within(SHORT, "a client is told of", || {
        Raw::connect(node.mqtt(), &Connect::new(V5, "seen")).ping();
        monitor.poll(MOMENT).ok()
    });
    // Clients only listen there.
    monitor.send(&Publish::new("$SYS/brokers/n1@127.0.0.1/clients/x/connected", b"{}").acked(1, 9).bytes(V5));
    let puback = within(SHORT, "an answer", || monitor.next(SHORT).filter(|packet| packet.kind == kind::PUBACK));
    assert_eq!(puback.reason(), 0x87);
}

#[test]
fn lines_about_a_connection_name_client_listener_and_address_and_repeats_are_left_out() {
    let node = setup().env("RINGMQ_LOG__FORMAT", "json").start();
    for _ in 0..40 {
        let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, "rude"));
        // A packet that only the server sends.
        raw.send(&[0x20, 0x03, 0, 0, 0]);
        raw.closed(SHORT);
    }
    let lines = || -> Vec<Value> {
        let output = node.output();
        output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let left_out = within(SHORT, "what was left out is told", || {
        lines()
            .into_iter()
            .find(|line| line["message"] == "lines of one second were left out" && line["kind"] == "Refused")
    });
    assert!(left_out["lines"].as_u64() > Some(0), "{left_out}");
    let about: Vec<Value> = lines().into_iter().filter(|line| line["client"] == "rude").collect();
    for message in ["connected", "disconnected", "refused"] {
        let line = about.iter().find(|line| line["message"] == message).unwrap_or_else(|| panic!("no {message}"));
        assert_eq!(line["listener"], "tcp:default", "{line}");
        assert!(line["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{line}");
    }
    let refused = about.iter().filter(|line| line["message"] == "refused").count();
    assert!((1..40).contains(&refused), "{refused} lines about 40 refusals");
}

#[test]
fn the_level_of_the_log_changes_live_in_both_processes() {
    let files = tempfile::tempdir().expect("a temporary directory");
    let config = files.path().join("ringmq.toml");
    std::fs::write(&config, "log.level = \"error\"\n").expect("a file");
    let node = setup().config(&config).start();
    Raw::connect(node.mqtt(), &Connect::new(V5, "quiet")).ping();
    std::fs::write(&config, "log.level = \"info\"\n").expect("a file");
    let reloaded = node.ctl(&["reload"]);
    assert_eq!(reloaded.code, Some(0), "{}", reloaded.said);
    within(SHORT, "the data plane speaks", || {
        Raw::connect(node.mqtt(), &Connect::new(V5, "loud")).ping();
        node.output().contains("loud").then_some(())
    });
    node.says("the configuration was read again");
    assert!(!node.output().contains("quiet"));
}
