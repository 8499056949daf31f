//! The number of shards changes over the same data: 2, then 3, then 1. Everything that was kept is there.

use crate::{crash, keep, setup};
use harness::node::Node;
use harness::raw::Raw;
use harness::wire::{self, Connect, Publish, V5, kind};
use harness::{LONG, MOMENT, SHORT, Setup, ports, within};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// Sessions with a queue.
const SLEEPERS: usize = 24;
/// Retained topics.
const RETAINED: usize = 40;
/// Members of the shared group.
const MEMBERS: usize = 3;
/// One look at a connection among several.
const LOOK: Duration = Duration::from_millis(1);
/// Messages for the remote in each life of the node.
const FOR_REMOTE: u16 = 30;

/// A node with this number of shards over this data.
fn with(shards: u16, data: &Path) -> Setup {
    setup()
        .name("a1@127.0.0.1")
        .shards(shards)
        .data_directory(data)
        .env("RINGMQ_DURABILITY__MODE", "os")
        .env("RINGMQ_DURABILITY__SEGMENT_BYTES", "64KB")
}

/// The same with a link.
fn linked(shards: u16, data: &Path, at: SocketAddr, remote: SocketAddr) -> Setup {
    with(shards, data)
        .mqtt(at)
        .env("RINGMQ_CLUSTER__NAME", "a")
        .env("RINGMQ_CLUSTER__LINKS", format!(r##"[{{name="b",server="{remote}",topics=["#"]}}]"##))
}

/// The other cluster.
fn remote(at: SocketAddr, us: SocketAddr) -> Setup {
    setup()
        .name("b1@127.0.0.1")
        .mqtt(at)
        .env("RINGMQ_DURABILITY__MODE", "os")
        .env("RINGMQ_CLUSTER__NAME", "b")
        .env("RINGMQ_CLUSTER__LINKS", format!(r##"[{{name="a",server="{us}",topics=["out/#"]}}]"##))
}

fn publisher(node: &Node) -> Raw {
    Raw::connect(node.mqtt(), &Connect::new(V5, "publisher"))
}

fn sleeper(index: usize) -> String {
    format!("sleeper-{index}")
}

#[test]
fn everything_that_was_kept_follows_the_shards() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let node = with(2, directory.path()).start();
    populate(&node);
    speak(&node, 0);
    drop(kill(node));
    let node = with(3, directory.path()).start();
    assert_eq!(node.shards(), 3);
    speak(&node, 1);
    crash(&node);
    drop(kill(node));
    let node = with(1, directory.path()).start();
    assert_eq!(node.shards(), 1);
    speak(&node, 2);

    queues_are_whole(&node);
    halves_are_finished(&node);
    retained_is_there(&node);
    groups_are_served(&node);
}

#[test]
fn what_waits_for_a_remote_follows_the_shards() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (at, remote_at) = (ports::free(), ports::free());
    let mut far = remote(remote_at, at).start();
    let node = linked(2, directory.path(), at, remote_at).start();
    Raw::connect(far.mqtt(), &keep(V5, "far")).subscribe("out/t", 1);
    wait_for_interest(&node);
    far.kill();
    speak_afar(&node, 0);
    drop(kill(node));
    let node = linked(3, directory.path(), at, remote_at).start();
    speak_afar(&node, 1);
    crash(&node);
    drop(kill(node));
    let node = linked(1, directory.path(), at, remote_at).start();
    speak_afar(&node, 2);
    far.start_again();
    the_remote_gets_everything(&far);
}

fn kill(mut node: Node) -> Node {
    node.kill();
    node
}

/// Waits until the node knows what the remote wants.
#[track_caller]
fn wait_for_interest(node: &Node) {
    within(LONG, "the remote's interest has crossed", || (node.figure("link_routes") > 0.0).then_some(()));
}

/// Sessions with subscriptions, half-finished handshakes, retained values, a shared group.
#[track_caller]
fn populate(node: &Node) {
    for index in 0..SLEEPERS {
        let mut raw = Raw::connect(node.mqtt(), &keep(V5, &sleeper(index)));
        raw.subscribe(&format!("own/{index}"), 2);
        raw.subscribe("all/#", 1);
    }
    for member in 0..MEMBERS {
        Raw::connect(node.mqtt(), &keep(V5, &format!("member-{member}"))).subscribe("$share/g/work", 1);
    }
    let mut publisher = publisher(node);
    for index in 0..RETAINED {
        let topic = format!("keep/{index}");
        let publish = Publish { retain: true, ..Publish::new(&topic, topic.as_bytes()).acked(1, 1) };
        publisher.send(&publish.bytes(V5));
        assert!(publisher.expect(kind::PUBACK).reason() < 0x80);
    }
    // One whose PUBREC has come and who has not released; one who has answered PUBREC and not heard PUBREL.
    let mut half = Raw::connect(node.mqtt(), &keep(V5, "half-out"));
    half.send(&Publish::new("half/t", b"once").acked(2, 77).bytes(V5));
    assert!(half.expect(kind::PUBREC).reason() < 0x80);
    let mut half = Raw::connect(node.mqtt(), &keep(V5, "half-in"));
    half.subscribe("half-in/t", 2);
    publisher.send(&Publish::new("half-in/t", b"answered").acked(2, 3).bytes(V5));
    assert!(publisher.expect(kind::PUBREC).reason() < 0x80);
    publisher.send(&wire::ack(kind::PUBREL, 3));
    publisher.expect(kind::PUBCOMP);
    let packet_id = half.message().packet_id.expect("QoS 2 has one");
    assert_eq!(half.expect(kind::PUBREL).packet_id(), packet_id);
}

/// Says something to every session and to the group in the `life`th life of the node.
#[track_caller]
fn speak(node: &Node, life: u8) {
    let mut publisher = publisher(node);
    for index in 0..SLEEPERS {
        publisher.publish_acked(&format!("own/{index}"), &[life], 1);
        publisher.publish_acked(&format!("all/{index}"), &[life], 2);
    }
    for number in 0..10 {
        publisher.publish_acked("work", &[life, number], 3);
    }
}

/// Says something to the remote, which is away.
#[track_caller]
fn speak_afar(node: &Node, life: u8) {
    let mut publisher = publisher(node);
    for number in 0..FOR_REMOTE {
        publisher.publish_acked("out/t", &[life, number as u8], 4);
    }
}

#[track_caller]
fn queues_are_whole(node: &Node) {
    for index in 0..SLEEPERS {
        let (mut raw, connack) = Raw::connack(node.mqtt(), &keep(V5, &sleeper(index)));
        assert!(connack.session_present(), "{}", sleeper(index));
        for life in 0..3 {
            for other in 0..SLEEPERS {
                if other == index {
                    let message = raw.message();
                    assert_eq!((message.topic, message.payload), (format!("own/{index}"), vec![life]));
                }
                let message = raw.message();
                assert_eq!((message.topic, message.payload), (format!("all/{other}"), vec![life]));
            }
        }
        raw.ping();
    }
}

#[track_caller]
fn halves_are_finished(node: &Node) {
    Raw::connect(node.mqtt(), &keep(V5, "half-ear")).subscribe("half/t", 2);
    let (mut raw, connack) = Raw::connack(node.mqtt(), &keep(V5, "half-out"));
    assert!(connack.session_present());
    // Still known: sent again it is not a new message, and it can be released.
    let again = Publish { dup: true, ..Publish::new("half/t", b"once").acked(2, 77) };
    raw.send(&again.bytes(V5));
    assert_eq!(raw.expect(kind::PUBREC).packet_id(), 77);
    raw.send(&wire::ack(kind::PUBREL, 77));
    let pubcomp = raw.expect(kind::PUBCOMP);
    assert_eq!((pubcomp.packet_id(), pubcomp.reason()), (77, 0));
    raw.publish_acked("half/t", b"new", 78);
    let mut ear = Raw::connect(node.mqtt(), &keep(V5, "half-ear"));
    assert_eq!(ear.message().payload, b"new", "not routed a second time");

    let (mut raw, connack) = Raw::connack(node.mqtt(), &keep(V5, "half-in"));
    assert!(connack.session_present());
    let release = raw.expect(kind::PUBREL);
    raw.send(&wire::ack(kind::PUBCOMP, release.packet_id()));
    raw.ping();
}

#[track_caller]
fn retained_is_there(node: &Node) {
    let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, ""));
    raw.subscribe("keep/#", 0);
    let mut kept = BTreeMap::new();
    while kept.len() < RETAINED {
        let message = raw.message();
        assert_eq!(message.topic.as_bytes(), message.payload);
        kept.insert(message.topic, message.payload);
    }
    assert_eq!(raw.poll(MOMENT), Err(()), "each once");
}

#[track_caller]
fn groups_are_served(node: &Node) {
    let mut members: Vec<Raw> = (0..MEMBERS)
        .map(|member| {
            let (raw, connack) = Raw::connack(node.mqtt(), &keep(V5, &format!("member-{member}")));
            assert!(connack.session_present());
            raw
        })
        .collect();
    let mut work: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    within(LONG, "the group has all of its work", || {
        for member in &mut members {
            while let Ok(Some(packet)) = member.poll(LOOK) {
                let message = packet.publish(V5);
                member.send(&wire::ack(kind::PUBACK, message.packet_id.expect("QoS 1 has one")));
                *work.entry(message.payload).or_default() += 1;
            }
        }
        (work.len() == 30).then_some(())
    });
    assert!(work.values().all(|times| *times == 1), "each for one member: {work:?}");
    publisher(node).publish_acked("work", b"more", 1);
    within(SHORT, "the group works on", || members.iter_mut().find_map(|member| member.poll(LOOK).ok().flatten()));
}

#[track_caller]
fn the_remote_gets_everything(far: &Node) {
    let (mut raw, connack) = Raw::connack(far.mqtt(), &keep(V5, "far"));
    assert!(connack.session_present());
    let mut first_times: Vec<Vec<u8>> = Vec::new();
    within(LONG, "all lives of the node have crossed", || {
        while let Ok(Some(packet)) = raw.poll(MOMENT) {
            let message = packet.publish(V5);
            raw.send(&wire::ack(kind::PUBACK, message.packet_id.expect("QoS 1 has one")));
            // The plain wire is at least once.
            if !first_times.contains(&message.payload) {
                first_times.push(message.payload);
            }
        }
        (first_times.len() == 3 * usize::from(FOR_REMOTE)).then_some(())
    });
    assert!(first_times.is_sorted(), "in the order in which they were said: {first_times:?}");
}
