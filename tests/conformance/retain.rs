//! Retained messages (3.3.1.3, 3.8.3.1): what is stored, and who gets it when.

use crate::{At, BOTH, everywhere};
use harness::raw::Raw;
use harness::wire::{self, Publish, Received, V5, V311, kind};
use harness::{MOMENT, SHORT};

/// Publishes a retained message and waits until it is kept.
#[track_caller]
fn retain(publisher: &mut Raw, version: u8, topic: &str, payload: &[u8], qos: u8) {
    let publish = Publish { retain: true, ..Publish::new(topic, payload).acked(qos, 1) };
    publisher.send(&publish.bytes(version));
    match qos {
        // It is behind this message of its own connection.
        0 => publisher.publish_acked(topic, b"", 2),
        1 => _ = publisher.expect(kind::PUBACK),
        _ => {
            publisher.expect(kind::PUBREC);
            publisher.send(&wire::ack(kind::PUBREL, 1));
            publisher.expect(kind::PUBCOMP);
        }
    }
}

/// What a new subscriber of a topic gets.
#[track_caller]
fn retained(at: &At, version: u8, topic: &str) -> Option<Received> {
    let mut raw = at.client(version);
    raw.subscribe(topic, 2);
    replayed(at, &mut raw, version, topic)
}

/// What a subscription that was just made sends of a topic, if anything.
#[track_caller]
fn replayed(at: &At, raw: &mut Raw, version: u8, topic: &str) -> Option<Received> {
    // The owner of the topic answers about as fast as it delivers what is published now, so both orders are possible.
    at.client(version).publish_acked(topic, b"marker", 1);
    let mut replayed = None;
    loop {
        let got = raw.message();
        if got.payload == b"marker" {
            assert!(!got.retain, "it is live: {got:?}");
            break;
        }
        assert!(replayed.is_none(), "twice: {replayed:?} and {got:?}");
        replayed = Some(got);
    }
    if replayed.is_none() {
        replayed = raw.poll(MOMENT).ok().flatten().map(|packet| packet.publish(version));
    }
    replayed
}

//= MQTT-3.3.1-5
//= MQTT-3.3.1-9
//= MQTT311-3.3.1-5
//= MQTT311-3.3.1-6
//= MQTT311-3.3.1-7
//= MQTT311-3.3.1-8
#[test]
fn a_retained_message_is_stored_with_its_qos_and_replaces_the_one_before() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut publisher = at.client(version);
            for (payload, qos) in [(&b"first"[..], 1), (b"second", 2), (b"third", 1), (b"fourth", 0)] {
                retain(&mut publisher, version, &topic, payload, qos);
                let got = retained(at, version, &topic).expect("it is stored");
                assert_eq!((got.payload.as_slice(), got.qos, got.retain, got.dup), (payload, qos, true, false));
            }
        }
    });
}

//= MQTT-3.3.1-6
//= MQTT-3.3.1-7
//= MQTT311-3.3.1-10
//= MQTT311-3.3.1-11
#[test]
fn an_empty_retained_message_is_delivered_and_removes_what_was_stored() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut live = at.client(version);
            live.subscribe(&topic, 0);
            let mut publisher = at.client(version);
            retain(&mut publisher, version, &topic, b"stored", 1);
            assert_eq!(live.message().payload, b"stored");
            retain(&mut publisher, version, &topic, b"", 1);
            let got = live.message();
            assert_eq!((got.payload.as_slice(), got.retain), (&b""[..], false));
            assert_eq!(retained(at, version, &topic), None);
        }
    });
}

//= MQTT-3.3.1-8
//= MQTT311-3.3.1-12
#[test]
fn a_message_without_retain_leaves_what_is_stored_alone() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut publisher = at.client(version);
            publisher.publish_acked(&topic, b"passing", 1);
            assert_eq!(retained(at, version, &topic), None);
            retain(&mut publisher, version, &topic, b"stored", 1);
            publisher.publish_acked(&topic, b"passing", 1);
            publisher.publish_acked(&topic, b"", 1);
            assert_eq!(retained(at, version, &topic).expect("it is stored").payload, b"stored");
        }
    });
}

//= MQTT-3.3.1-9
//= MQTT-3.3.1-10
//= MQTT-3.3.1-11
//= MQTT-3.8.4-4
#[test]
fn retain_handling_says_when_retained_messages_are_sent() {
    everywhere(|at| {
        let topic = at.topic();
        let mut publisher = at.client(V5);
        retain(&mut publisher, V5, &topic, b"stored", 1);
        // Which handling a subscription has, and what comes at its first and second SUBSCRIBE.
        for (handling, first, second) in [(0, true, true), (1, true, false), (2, false, false)] {
            let mut raw = at.client(V5);
            for (round, comes) in [first, second].into_iter().enumerate() {
                raw.send(&wire::subscribe(V5, 1, &topic, 1 | handling << 4));
                raw.expect(kind::SUBACK);
                let got = replayed(at, &mut raw, V5, &topic);
                let got = got.map(|got| (got.retain, got.payload));
                assert_eq!(got, comes.then(|| (true, b"stored".to_vec())), "handling {handling}, round {round}");
            }
        }
    });
}

//= MQTT311-3.8.4-3
#[test]
fn subscribing_again_sends_retained_messages_again() {
    everywhere(|at| {
        let topic = at.topic();
        retain(&mut at.client(V311), V311, &topic, b"stored", 1);
        let mut raw = at.client(V311);
        for qos in [0, 1, 1] {
            raw.subscribe(&topic, qos);
            let got = raw.message();
            assert_eq!((got.payload.as_slice(), got.qos, got.retain), (&b"stored"[..], qos, true));
        }
    });
}

//= MQTT-3.3.1-12
//= MQTT-3.3.1-13
//= MQTT311-3.3.1-9
#[test]
fn live_messages_have_retain_only_as_published_and_asked_for() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut plain = at.client(version);
            plain.subscribe(&topic, 0);
            let mut publisher = at.client(version);
            retain(&mut publisher, version, &topic, b"x", 1);
            assert!(!plain.message().retain);
            if version == V5 {
                let mut as_published = at.client(V5);
                as_published.send(&wire::subscribe(V5, 1, &topic, 0x08 | 0x20));
                as_published.expect(kind::SUBACK);
                retain(&mut publisher, V5, &topic, b"x", 1);
                assert!(as_published.message().retain);
                publisher.publish_acked(&topic, b"x", 2);
                assert!(!as_published.message().retain);
            }
        }
    });
}

//= MQTT311-3.1.2-7
#[test]
fn retained_messages_outlive_the_session_that_published_them() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut publisher = at.client(version);
            retain(&mut publisher, version, &topic, b"stored", 1);
            publisher.send(&wire::disconnect());
            publisher.closed(SHORT);
            assert_eq!(retained(at, version, &topic).expect("it is stored").payload, b"stored");
        }
    });
}

#[test]
fn a_wildcard_gets_every_retained_message_once() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut publisher = at.client(version);
            let mut expected: Vec<String> = (0..12).map(|number| format!("{topic}/{number}/x")).collect();
            expected.iter().for_each(|topic| retain(&mut publisher, version, topic, b"stored", 1));
            expected.sort();
            let mut raw = at.client(version);
            raw.subscribe(&format!("{topic}/+/#"), 0);
            let mut got: Vec<String> = (0..12).map(|_| raw.message().topic).collect();
            got.sort();
            assert_eq!(got, expected);
            raw.ping();
        }
    });
}
