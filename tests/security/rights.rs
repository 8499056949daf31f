//! Rights: every way around an access rule that other brokers have been found to have. Nothing that may not be received
//! is delivered, and what is refused is counted.

use crate::{Guarded, enter, passwords, subscribe};
use harness::wire::{self, Connect, V5, V311, kind};
use harness::{MOMENT, Node, Raw, SHORT, client_on, needs};

/// mosquitto's rules: `eve` may read what is open, and what is hers.
const MOSQUITTO: &str = "
user writer
topic readwrite #
topic readwrite $data/#

user eve
topic read open/#
topic write open/#
pattern readwrite home/%c/#
";

/// The same in EMQX's words.
const EMQX: &str = "
{allow, {username, \"writer\"}, all, [\"#\", \"$data/#\"]}.
{allow, {username, \"eve\"}, all, [\"open/#\"]}.
{allow, all, all, [\"home/${clientid}/#\"]}.
";

/// Topics that `eve` may not read.
const SECRETS: [&str; 6] = ["secret", "secret/a", "secret/a/b", "home/other/x", "opеn/x", "$data/x"];

fn start(shards: u16, rules: &str) -> Node {
    let users = passwords(&[("writer", "w"), ("eve", "e")]);
    let guarded = Guarded::new(shards, &users, Some(rules), "");
    let node = guarded.setup.start();
    // The files are read; what they were in may go.
    drop(guarded);
    node
}

/// Nothing but what `allowed` says has come.
#[track_caller]
fn assert_nothing_else(eve: &mut Raw, allowed: &[&str], what: &str) {
    while let Ok(packet) = eve.poll(MOMENT) {
        let packet = packet.unwrap_or_else(|| panic!("{what}: the connection was closed"));
        if packet.kind == kind::PUBLISH {
            let topic = packet.publish(V5).topic;
            assert!(allowed.contains(&topic.as_str()), "{what}: {topic} was delivered");
        }
    }
}

fn filters_leak_nothing(shards: u16, rules: &str) {
    let node = start(shards, rules);
    let mut writer = enter(&node, &client_on(0, shards, "writer"), "writer", "w");
    for topic in SECRETS {
        let retained = wire::Publish { retain: true, ..wire::Publish::new(topic, b"retained") };
        writer.send(&retained.acked(1, 1).bytes(V5));
        assert!(writer.expect(kind::PUBACK).reason() < 0x80, "{topic}");
    }
    for shard in 0..shards {
        let client = client_on(shard, shards, "eve");
        let own = format!("home/{client}/x");
        let mut eve = enter(&node, &client, "eve", "e");
        for filter in [
            "#",
            "+/#",
            "+",
            "+/+",
            "+/a",
            "secret/#",
            "secret",
            "secret/+",
            "$share/g/secret/#",
            "$share/g/#",
            "home/+/x",
            "home/#",
            "home/other/x",
            "$data/#",
            "$SYS/#",
            "$LINK/#",
            "$LINK/cluster/msg/x",
            "opеn/x",
            "+/x",
            "open/+",
            "/#",
            "secret//#",
        ] {
            let reason = subscribe(&mut eve, filter, 2);
            assert!(reason <= 2 || reason == 0x87, "{filter}: {reason:#04x}");
        }
        let mut id = 1;
        for topic in SECRETS.iter().chain(["open/x", own.as_str()].iter()) {
            for qos in 0..=1 {
                id += 1;
                writer.send(&wire::Publish::new(topic, b"live").acked(qos, id).bytes(V5));
                if qos > 0 {
                    writer.expect(kind::PUBACK);
                }
            }
        }
        assert_nothing_else(&mut eve, &["open/x", &own], &format!("shard {shard}"));
        eve.ping();
    }
    assert!(node.counter("shed_delivery_denied") + node.counter("subscriptions_denied") > 0, "denials are counted");
}

/// One test per number of shards and kind of rules.
macro_rules! on_shards {
    ($($behaviour:ident: $shards:literal, $rules:ident => $name:ident;)+) => {
        $(
            #[test]
            fn $name() {
                $behaviour($shards, $rules);
            }
        )+
    };
}

on_shards! {
    filters_leak_nothing: 1, MOSQUITTO => no_filter_leaks_past_mosquittos_rules_on_one_shard;
    filters_leak_nothing: 2, MOSQUITTO => no_filter_leaks_past_mosquittos_rules_on_two_shards;
    filters_leak_nothing: 3, MOSQUITTO => no_filter_leaks_past_mosquittos_rules_on_three_shards;
    filters_leak_nothing: 1, EMQX => no_filter_leaks_past_emqx_rules_on_one_shard;
    filters_leak_nothing: 3, EMQX => no_filter_leaks_past_emqx_rules_on_three_shards;
    publishes_and_wills_are_denied: 1, MOSQUITTO => no_publish_passes_mosquittos_rules_on_one_shard;
    publishes_and_wills_are_denied: 3, EMQX => no_publish_passes_emqx_rules_on_three_shards;
    hostile_client_ids_widen_nothing: 2, MOSQUITTO => hostile_client_ids_widen_no_pattern;
    hostile_client_ids_widen_nothing: 2, EMQX => hostile_client_ids_widen_no_placeholder;
}

fn publishes_and_wills_are_denied(shards: u16, rules: &str) {
    let node = start(shards, rules);
    let mut reader = enter(&node, &client_on(shards - 1, shards, "reader"), "writer", "w");
    assert_eq!(subscribe(&mut reader, "#", 1), 1);
    assert_eq!(subscribe(&mut reader, "$data/#", 1), 1);
    let mut eve = enter(&node, &client_on(0, shards, "eve"), "eve", "e");
    for topic in ["secret/x", "home/other/x", "$data/x", "$SYS/broker/x", "$LINK/cluster/msg/x", "opеn/x"] {
        for (qos, retain) in [(1, false), (1, true), (2, false)] {
            let publish = wire::Publish { retain, ..wire::Publish::new(topic, b"no") };
            eve.send(&publish.acked(qos, 5).bytes(V5));
            let ack = eve.expect(if qos == 1 { kind::PUBACK } else { kind::PUBREC });
            assert_eq!(ack.reason(), 0x87, "{topic} QoS {qos}");
        }
        eve.send(&wire::Publish::new(topic, b"no").bytes(V5));
    }
    // A topic by its alias: defined by a publish that was denied, used without the topic.
    let alias = [0x23, 0, 1];
    let defined = wire::Publish { properties: &alias, ..wire::Publish::new("secret/x", b"no") };
    eve.send(&defined.acked(1, 6).bytes(V5));
    assert_eq!(eve.expect(kind::PUBACK).reason(), 0x87);
    let used = wire::Publish { properties: &alias, ..wire::Publish::new("", b"no") };
    eve.send(&used.acked(1, 7).bytes(V5));
    assert_eq!(eve.expect(kind::PUBACK).reason(), 0x87, "an alias hides nothing");
    eve.ping();
    // 3.1.1 has no word for it: it is acknowledged, and goes nowhere.
    let mut old = Raw::connect(node.mqtt(), &Connect::new(V311, "old").login("eve", "e"));
    old.send(&wire::Publish::new("secret/x", b"no").acked(1, 5).bytes(V311));
    assert_eq!(old.expect(kind::PUBACK).packet_id(), 5);
    let will = Connect { will: Some(("secret/x", b"no", 1, true)), ..Connect::new(V5, "dying").login("eve", "e") };
    let (_, connack) = Raw::connack(node.mqtt(), &will);
    assert_eq!(connack.reason(), 0x87, "a will is a publish");
    let own = client_on(0, shards, "eve");
    for topic in ["open/x", &format!("home/{own}/x")] {
        eve.publish_acked(topic, b"yes", 9);
    }
    let mut came = Vec::new();
    while came.len() < 2 {
        let publish = reader.expect(kind::PUBLISH).publish(V5);
        assert_eq!(publish.payload, b"yes", "{}", publish.topic);
        if let Some(id) = publish.packet_id {
            reader.send(&wire::ack(kind::PUBACK, id));
        }
        came.push(publish.topic);
    }
    assert!(reader.poll(MOMENT).is_err(), "nothing else comes");
    assert!(node.counter("shed_publish_denied") >= 14);
}

fn hostile_client_ids_widen_nothing(shards: u16, rules: &str) {
    let node = start(shards, rules);
    let mut writer = enter(&node, "writer", "writer", "w");
    for client in ["+", "#", "+/#", "a/b", "%c", "%u", "${clientid}", "${username}", "..", "$share"] {
        let mut eve = enter(&node, client, "eve", "e");
        for filter in ["home/+/x", "home/#", "home/a/b/x", "home/a/#", "home/+/#", &format!("home/{client}/x")] {
            subscribe(&mut eve, filter, 0);
        }
        for topic in ["home/other/x", "home/a/x", "home/a/b/x", "home/writer/x"] {
            writer.publish_acked(topic, b"secret", 3);
            eve.send(&wire::Publish::new(topic, b"forged").acked(1, 4).bytes(V5));
            let answer = eve.next(SHORT).expect("the connection stays");
            assert_eq!((answer.kind, answer.reason()), (kind::PUBACK, 0x87), "{client:?} published {topic}");
        }
        assert_nothing_else(&mut eve, &[], client);
    }
}

#[test]
fn broad_filters_are_refused_to_ordinary_clients_where_the_operator_says_so() {
    let more = "authorization.deny_subscribe = [\"$SYS/#\", \"#\", \"+/#\"]";
    let rules = "{allow, {username, \"writer\"}, all, all}. {allow, all, all, [\"open/#\"]}.";
    let users = passwords(&[("writer", "w"), ("eve", "e")]);
    let more = format!("{more}\nauthorization.no_match = \"allow\"");
    let node = Guarded::new(2, &users, Some(rules), &more).setup.start();
    for (user, password, reason) in [("writer", "w", 0), ("eve", "e", 0x87)] {
        let mut raw = enter(&node, user, user, password);
        for filter in ["$SYS/#", "$SYS/broker/uptime", "#", "+/#", "$share/g/#"] {
            assert_eq!(subscribe(&mut raw, filter, 0), reason, "{user} {filter}");
        }
        assert_eq!(subscribe(&mut raw, "any/#", 0), 0);
    }
}

#[test]
fn a_denied_publish_closes_the_connection_where_the_operator_says_so() {
    let users = passwords(&[("eve", "e")]);
    let node = Guarded::new(2, &users, Some(MOSQUITTO), "authorization.deny_action = \"disconnect\"").setup.start();
    let mut eve = enter(&node, "eve", "eve", "e");
    eve.send(&wire::Publish::new("secret/x", b"no").bytes(V5));
    let last = eve.closed(SHORT);
    assert_eq!(
        last.iter().map(|packet| (packet.kind, packet.reason())).collect::<Vec<_>>(),
        [(kind::DISCONNECT, 0x87)]
    );
}

#[test]
fn mosquittos_clients_see_what_their_rights_are() {
    needs!("mosquitto_sub", "mosquitto_pub");
    let node = start(2, MOSQUITTO);
    let at = node.mqtt();
    let login = |user, password| ["-u", user, "-P", password];
    let mut eve = harness::mosquitto::Subscriber::start(
        at,
        harness::mosquitto::V5,
        &[&login("eve", "e")[..], &["-i", "eve", "-t", "#", "-q", "1"]].concat(),
    );
    for (topic, payload) in [("secret/x", "no"), ("open/x", "yes")] {
        let arguments = [&login("writer", "w")[..], &["-t", topic, "-m", payload, "-q", "1"]].concat();
        harness::mosquitto::publish(at, harness::mosquitto::V311, &arguments);
    }
    assert_eq!(eve.message().payload, "yes");
    assert_eq!(eve.so_far(), []);
}
