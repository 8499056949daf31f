//! What a session is made of, across kill -9 of the data plane and across downtime: one behaviour each.

use crate::{A_DAY, MODES, crash, durable, keep, settled, setup};
use harness::node::Node;
use harness::raw::Raw;
use harness::wire::{self, Connect, Publish, V5, V311, kind};
use harness::{LONG, MOMENT, SHORT, segment, within};
use std::time::{Duration, Instant};

/// Message Expiry Interval.
fn expires_in(seconds: u8) -> [u8; 5] {
    [0x02, 0, 0, 0, seconds]
}

/// Session Expiry Interval.
fn session_lives(seconds: u8) -> [u8; 5] {
    [0x11, 0, 0, 0, seconds]
}

fn publisher(node: &Node) -> Raw {
    Raw::connect(node.mqtt(), &Connect::new(V5, "publisher"))
}

/// A QoS 2 publish to its end.
#[track_caller]
fn publish_twice_acked(raw: &mut Raw, topic: &str, payload: &[u8], packet_id: u16) {
    raw.send(&Publish::new(topic, payload).acked(2, packet_id).bytes(V5));
    assert!(raw.expect(kind::PUBREC).reason() < 0x80);
    raw.send(&wire::ack(kind::PUBREL, packet_id));
    raw.expect(kind::PUBCOMP);
}

#[test]
fn a_subscription_and_its_queue_survive_and_an_unsubscription_does_too() {
    for mode in MODES {
        for version in [V311, V5] {
            let node = durable(mode).start();
            let mut raw = Raw::connect(node.mqtt(), &keep(version, "sleeper"));
            for filter in ["kept/#", "left"] {
                raw.subscribe(filter, 1);
            }
            raw.send(&wire::unsubscribe(version, 2, "left"));
            raw.expect(kind::UNSUBACK);
            drop(raw);
            crash(&node);
            let mut publisher = publisher(&node);
            for number in 1..=100 {
                publisher.publish_acked("left", b"nobody", number);
                publisher.publish_acked("kept/t", &[number as u8], number);
            }
            crash(&node);
            let (mut raw, connack) = Raw::connack(node.mqtt(), &keep(version, "sleeper"));
            assert!(connack.session_present());
            for number in 1..=100 {
                let message = raw.message();
                assert_eq!((message.topic.as_str(), message.payload.as_slice()), ("kept/t", &[number][..]));
            }
            raw.ping();
        }
    }
}

#[test]
fn a_stop_and_a_start_keep_what_a_kill_keeps() {
    for mode in MODES {
        let mut node = durable(mode).start();
        Raw::connect(node.mqtt(), &keep(V5, "sleeper")).subscribe("t", 2);
        publisher(&node).publish_acked("t", b"before", 1);
        node.terminate(LONG);
        node.start_again();
        let (mut raw, connack) = Raw::connack(node.mqtt(), &keep(V5, "sleeper"));
        assert!(connack.session_present());
        assert_eq!(raw.message().payload, b"before");
    }
}

#[test]
fn a_session_that_was_discarded_stays_discarded() {
    let node = durable("os").start();
    Raw::connect(node.mqtt(), &keep(V5, "reborn")).subscribe("t", 1);
    publisher(&node).publish_acked("t", b"for the first life", 1);
    let clean = Connect { clean: true, ..keep(V5, "reborn") };
    drop(Raw::connect(node.mqtt(), &clean));
    crash(&node);
    publisher(&node).publish_acked("t", b"for nobody", 1);
    let (mut raw, connack) = Raw::connack(node.mqtt(), &keep(V5, "reborn"));
    assert!(connack.session_present(), "the second life was a kept session too");
    raw.ping();
}

#[test]
fn a_qos_2_publish_is_finished_after_a_crash_in_its_middle() {
    for mode in MODES {
        let node = durable(mode).start();
        Raw::connect(node.mqtt(), &keep(V5, "sleeper")).subscribe("t", 2);
        let mut raw = Raw::connect(node.mqtt(), &keep(V5, "half"));
        let (one, two) = (Publish::new("t", b"one").acked(2, 7), Publish::new("t", b"two").acked(2, 8));
        raw.send(&one.bytes(V5));
        raw.expect(kind::PUBREC);
        raw.send(&two.bytes(V5));
        raw.expect(kind::PUBREC);
        crash(&node);
        let (mut raw, connack) = Raw::connack(node.mqtt(), &keep(V5, "half"));
        assert!(connack.session_present());
        // The first answer reached the client, the second one was lost with the connection.
        raw.send(&wire::ack(kind::PUBREL, 7));
        let pubcomp = raw.expect(kind::PUBCOMP);
        assert_eq!((pubcomp.packet_id(), pubcomp.reason()), (7, 0), "it is known");
        raw.send(&Publish { dup: true, ..two }.bytes(V5));
        assert_eq!(raw.expect(kind::PUBREC).packet_id(), 8);
        raw.send(&wire::ack(kind::PUBREL, 8));
        assert_eq!(raw.expect(kind::PUBCOMP).packet_id(), 8);
        raw.publish_acked("t", b"three", 9);
        let mut sleeper = Raw::connect(node.mqtt(), &keep(V5, "sleeper"));
        let messages = [sleeper.message(), sleeper.message(), sleeper.message()];
        assert_eq!(messages.map(|message| message.payload), [&b"one"[..], b"two", b"three"], "each once, in order");
        for _ in 0..2 {
            let release = sleeper.expect(kind::PUBREL);
            sleeper.send(&wire::ack(kind::PUBCOMP, release.packet_id()));
        }
        sleeper.ping();
    }
}

#[test]
fn a_packet_id_that_was_released_means_a_new_message_after_a_crash() {
    let node = durable("os").start();
    Raw::connect(node.mqtt(), &keep(V5, "sleeper")).subscribe("t", 1);
    let mut raw = Raw::connect(node.mqtt(), &keep(V5, "again"));
    publish_twice_acked(&mut raw, "t", b"one", 5);
    crash(&node);
    let mut raw = Raw::connect(node.mqtt(), &keep(V5, "again"));
    publish_twice_acked(&mut raw, "t", b"two", 5);
    let mut sleeper = Raw::connect(node.mqtt(), &keep(V5, "sleeper"));
    assert_eq!(sleeper.message().payload, b"one");
    assert_eq!(sleeper.message().payload, b"two");
    sleeper.ping();
}

#[test]
fn a_qos_2_delivery_goes_on_where_it_was() {
    for mode in MODES {
        let node = durable(mode).start();
        let mut raw = Raw::connect(node.mqtt(), &keep(V5, "sink"));
        raw.subscribe("t", 2);
        let mut publisher = publisher(&node);
        publish_twice_acked(&mut publisher, "t", b"released", 1);
        publish_twice_acked(&mut publisher, "t", b"unanswered", 2);
        let released = raw.expect(kind::PUBLISH).publish(V5).packet_id.expect("QoS 2 has one");
        let unanswered = raw.expect(kind::PUBLISH).publish(V5).packet_id.expect("QoS 2 has one");
        raw.send(&wire::ack(kind::PUBREC, released));
        assert_eq!(raw.expect(kind::PUBREL).packet_id(), released);
        crash(&node);
        let (mut raw, connack) = Raw::connack(node.mqtt(), &keep(V5, "sink"));
        assert!(connack.session_present());
        let mut seen = Vec::new();
        for _ in 0..2 {
            let packet = raw.next(SHORT).expect("the connection stays");
            match packet.kind {
                kind::PUBREL => {
                    assert_eq!(packet.packet_id(), released, "released again, not published again");
                    raw.send(&wire::ack(kind::PUBCOMP, released));
                }
                kind::PUBLISH => {
                    let publish = packet.publish(V5);
                    assert_eq!((publish.packet_id, publish.dup), (Some(unanswered), true), "the same packet again");
                    assert_eq!(publish.payload, b"unanswered");
                    raw.send(&wire::ack(kind::PUBREC, unanswered));
                }
                _ => panic!("{packet:?}"),
            }
            seen.push(packet.kind);
        }
        seen.sort_unstable();
        assert_eq!(seen, [kind::PUBLISH, kind::PUBREL]);
        assert_eq!(raw.expect(kind::PUBREL).packet_id(), unanswered);
        raw.send(&wire::ack(kind::PUBCOMP, unanswered));
        raw.ping();
        settled(&node);
        crash(&node);
        Raw::connect(node.mqtt(), &keep(V5, "sink")).ping();
    }
}

#[test]
fn retained_values_stay_and_deleted_ones_stay_away() {
    for mode in MODES {
        let node = durable(mode).start();
        let mut publisher = publisher(&node);
        let mut packet_id = 0;
        let mut retain = |raw: &mut Raw, topic: &str, payload: &[u8]| {
            packet_id += 1;
            let publish = Publish { retain: true, ..Publish::new(topic, payload).acked(1, packet_id) };
            raw.send(&publish.bytes(V5));
            assert!(raw.expect(kind::PUBACK).reason() < 0x80);
        };
        retain(&mut publisher, "r/stays", b"value");
        retain(&mut publisher, "r/changes", b"old");
        retain(&mut publisher, "r/goes", b"old");
        crash(&node);
        let mut publisher = self::publisher(&node);
        retain(&mut publisher, "r/changes", b"new");
        retain(&mut publisher, "r/goes", b"");
        for _ in 0..2 {
            crash(&node);
            let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, ""));
            raw.subscribe("r/#", 0);
            let mut kept = [raw.message(), raw.message()].map(|message| (message.topic, message.payload));
            kept.sort();
            assert_eq!(kept[0], ("r/changes".to_owned(), b"new".to_vec()));
            assert_eq!(kept[1], ("r/stays".to_owned(), b"value".to_vec()));
            assert_eq!(raw.poll(MOMENT), Err(()), "nothing else");
        }
    }
}

#[test]
fn wills_of_clients_that_were_connected_fire_once_after_the_restart() {
    for mode in MODES {
        let node = durable(mode).start();
        Raw::connect(node.mqtt(), &keep(V5, "watcher")).subscribe("will/#", 1);
        let will = |topic| Some((topic, &b"gone"[..], 1, false));
        let clean = Connect { will: will("will/clean"), ..Connect::new(V5, "clean") };
        let kept = Connect { will: will("will/kept"), ..keep(V311, "kept") };
        let polite = Connect { will: will("will/polite"), ..Connect::new(V5, "polite") };
        let _connected = [Raw::connect(node.mqtt(), &clean), Raw::connect(node.mqtt(), &kept)];
        let mut leaves = Raw::connect(node.mqtt(), &polite);
        leaves.send(&wire::disconnect());
        leaves.closed(SHORT);
        settled(&node);
        crash(&node);
        let mut watcher = Raw::connect(node.mqtt(), &keep(V5, "watcher"));
        let mut fired = Vec::new();
        within(LONG, "both wills fire", || {
            let packet = watcher.poll(MOMENT).ok()??;
            let message = packet.publish(V5);
            watcher.send(&wire::ack(kind::PUBACK, message.packet_id.expect("QoS 1 has one")));
            fired.push(message.topic);
            (fired.len() == 2).then_some(())
        });
        fired.sort();
        assert_eq!(fired, ["will/clean", "will/kept"]);
        // The acknowledgements are with the node before it dies again.
        watcher.ping();
        settled(&node);
        crash(&node);
        publisher(&node).publish_acked("will/end", b"", 1);
        let mut watcher = Raw::connect(node.mqtt(), &keep(V5, "watcher"));
        assert_eq!(watcher.message().topic, "will/end", "no will fires twice");
    }
}

#[test]
fn a_delayed_will_waits_across_the_restart_and_a_client_that_returns_stops_it() {
    let node = durable("os").start();
    Raw::connect(node.mqtt(), &keep(V5, "watcher")).subscribe("will/#", 1);
    let delayed = |id, topic, delay| Connect {
        will: Some((topic, &b"late"[..], 1, false)),
        will_properties: delay,
        ..keep(V5, id)
    };
    // Will Delay Interval: three seconds, a minute, and none of its own beside a short session.
    let three_seconds = &[0x18, 0, 0, 0, 3][..];
    let lost = Instant::now();
    drop(Raw::connect(node.mqtt(), &delayed("lost", "will/lost", three_seconds)));
    drop(Raw::connect(node.mqtt(), &delayed("returns", "will/returns", three_seconds)));
    crash(&node);
    let (_returned, connack) = Raw::connack(node.mqtt(), &keep(V5, "returns"));
    assert!(connack.session_present());
    let mut watcher = Raw::connect(node.mqtt(), &keep(V5, "watcher"));
    let message = within(LONG, "the delayed will fires", || watcher.poll(MOMENT).ok().flatten()).publish(V5);
    assert_eq!(message.topic, "will/lost");
    assert!(lost.elapsed() >= Duration::from_millis(2900), "after {:?} of three seconds", lost.elapsed());
    watcher.send(&wire::ack(kind::PUBACK, message.packet_id.expect("QoS 1 has one")));
    // Both delays began together, so the other one has passed too.
    watcher.ping();
    publisher(&node).publish_acked("will/end", b"", 1);
    assert_eq!(watcher.message().topic, "will/end", "the client that returned is not mourned");
}

#[test]
fn the_life_of_a_session_goes_on_while_the_node_is_down() {
    let mut node = durable("os").start();
    let left = Instant::now();
    for (id, properties) in [("short", &session_lives(2)[..]), ("long", A_DAY)] {
        let connect = Connect { clean: false, properties, ..Connect::new(V5, id) };
        let mut raw = Raw::connect(node.mqtt(), &connect);
        raw.subscribe("t", 1);
        raw.send(&wire::disconnect());
        raw.closed(SHORT);
    }
    settled(&node);
    node.kill();
    // The time itself is what is tested.
    std::thread::sleep(Duration::from_millis(2500).saturating_sub(left.elapsed()));
    node.start_again();
    // Deadlines have a granularity; a client that is faster than it may still find its session.
    node.counter_reaches("session_expired", 1);
    for (id, is_there) in [("short", false), ("long", true)] {
        let (_raw, connack) = Raw::connack(node.mqtt(), &keep(V5, id));
        assert_eq!(connack.session_present(), is_there, "{id}");
    }
}

#[test]
fn the_life_of_a_message_goes_on_while_the_node_is_down() {
    let mut node = durable("os").start();
    Raw::connect(node.mqtt(), &keep(V5, "sleeper")).subscribe("t/#", 1);
    let mut publisher = publisher(&node);
    for (topic, packet_id, seconds, retain) in [
        ("t/short", 1, 2, false),
        ("t/long", 2, 200, false),
        ("t/short-kept", 3, 2, true),
        ("t/long-kept", 4, 200, true),
    ] {
        let properties = expires_in(seconds);
        let publish = Publish { properties: &properties, retain, ..Publish::new(topic, b"x").acked(1, packet_id) };
        publisher.send(&publish.bytes(V5));
        assert!(publisher.expect(kind::PUBACK).reason() < 0x80);
    }
    let said = Instant::now();
    node.kill();
    // The time itself is what is tested.
    std::thread::sleep(Duration::from_millis(2500).saturating_sub(said.elapsed()));
    node.start_again();
    let mut sleeper = Raw::connect(node.mqtt(), &keep(V5, "sleeper"));
    let left = |message: &wire::Received| {
        let at = message.properties.iter().position(|byte| *byte == 0x02).expect("a Message Expiry Interval");
        u32::from_be_bytes(message.properties[at + 1..at + 5].try_into().expect("four bytes"))
    };
    for topic in ["t/long", "t/long-kept"] {
        let message = sleeper.message();
        assert_eq!(message.topic, topic, "what is left of the queue, in order");
        assert!((150..=198).contains(&left(&message)), "{} s are left of 200", left(&message));
    }
    sleeper.ping();
    let mut fresh = Raw::connect(node.mqtt(), &Connect::new(V5, ""));
    fresh.subscribe("t/#", 0);
    assert_eq!(fresh.message().topic, "t/long-kept");
    assert_eq!(fresh.poll(MOMENT), Err(()), "what has expired is not retained");
}

#[test]
fn mode_none_forgets_and_says_so() {
    let node = setup().env("RINGMQ_DURABILITY__MODE", "none").start();
    Raw::connect(node.mqtt(), &keep(V5, "sleeper")).subscribe("t", 1);
    publisher(&node).publish_acked("t", b"lost", 1);
    crash(&node);
    let (_raw, connack) = Raw::connack(node.mqtt(), &keep(V5, "sleeper"));
    assert!(!connack.session_present());
    let said = node.output();
    assert!(said.lines().any(|line| line.contains("durability") && line.contains("none")), "{said}");
    assert!(!node.data().join("log").exists(), "nothing is written");
}

#[test]
fn a_log_that_mode_none_finds_is_set_aside_and_not_used_later() {
    let node = durable("os").start();
    let data = node.data().to_owned();
    Raw::connect(node.mqtt(), &keep(V5, "old")).subscribe("t", 1);
    let mut node = node;
    node.kill();
    let mut none = setup().shards(2).data_directory(&data).env("RINGMQ_DURABILITY__MODE", "none").start();
    assert!(none.output().contains("log.unused"), "{}", none.output());
    none.kill();
    node.start_again();
    let (_raw, connack) = Raw::connack(node.mqtt(), &keep(V5, "old"));
    assert!(!connack.session_present(), "what mode none did not see is not resurrected");
}

#[test]
fn a_log_of_a_newer_format_is_refused_with_the_command_that_exports() {
    let mut node = durable("os").start();
    Raw::connect(node.mqtt(), &keep(V5, "sleeper")).subscribe("t", 1);
    node.kill();
    let files = segment::files(node.data());
    for file in &files {
        let mut bytes = std::fs::read(file).expect("a segment can be read");
        segment::make_newer(&mut bytes);
        std::fs::write(file, bytes).expect("a segment can be written");
    }
    let ended = node.setup().clone().data_directory(node.data()).refused(SHORT);
    assert_ne!(ended.code, Some(0));
    let names = |file: &std::path::PathBuf| {
        let (directory, name) = (file.parent().expect("a log"), file.file_name().expect("a segment"));
        ended.said.contains(&directory.display().to_string()) && ended.said.contains(&name.display().to_string())
    };
    assert!(files.iter().any(names) && ended.said.contains("ringmq log dump"), "{}", ended.said);
    assert!(!ended.said.contains("panicked"), "{}", ended.said);
}
