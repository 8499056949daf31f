//! PUBLISH (3.3): what is legal, what is passed on, and to whom.

use crate::encoding::{WRONG, closes};
use crate::packets::{Properties, Value, id, pair, subscribe_to, text, variable};
use crate::{BOTH, everywhere, siblings};
use harness::raw::Raw;
use harness::wire::{Publish, V5, V311, kind};

//= MQTT-3.3.1-2
//= MQTT-3.3.1-4
//= MQTT311-3.3.1-2
//= MQTT311-3.3.1-4
#[test]
fn qos_3_and_dup_of_qos_0_close() {
    everywhere(|at| {
        for version in BOTH {
            closes(at, version, "QoS 3", &Publish::new("t", b"x").acked(3, 1).bytes(version), WRONG);
            let dup = Publish { dup: true, ..Publish::new("t", b"x") };
            closes(at, version, "DUP of QoS 0", &dup.bytes(version), WRONG);
        }
    });
}

//= MQTT-3.3.1-2
//= MQTT-3.3.1-3
//= MQTT-4.3.1-1
//= MQTT-4.3.2-2
//= MQTT-4.3.3-2
//= MQTT311-3.3.1-2
//= MQTT311-3.3.1-3
//= MQTT311-4.3.1-1
#[test]
fn dup_of_the_publisher_is_not_passed_on() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut subscribers = at.subscriber_of_each_qos(version, &topic);
            let mut publisher = at.client(version);
            for qos in [1, 2] {
                let publish = Publish { dup: true, ..Publish::new(&topic, b"x").acked(qos, 7) };
                publisher.send(&publish.bytes(version));
                publisher.expect(if qos == 1 { kind::PUBACK } else { kind::PUBREC });
                for (granted, raw) in (0..).zip(&mut subscribers) {
                    let got = raw.message();
                    assert_eq!((got.qos, got.dup), (qos.min(granted), false));
                    if got.qos == 2 {
                        raw.expect(kind::PUBREL);
                    }
                }
            }
        }
    });
}

//= MQTT-3.3.2-2
//= MQTT-4.7.0-1
//= MQTT-4.7.3-1
//= MQTT311-3.3.2-2
//= MQTT311-4.7.1-1
//= MQTT311-4.7.3-1
#[test]
fn a_topic_with_a_wildcard_or_without_a_character_closes() {
    everywhere(|at| {
        for version in BOTH {
            for topic in ["a/+", "+", "#", "a/#", "a+b", ""] {
                let bytes = Publish::new(topic, b"x").bytes(version);
                closes(at, version, topic, &bytes, &[0x81, 0x82, 0x90]);
            }
        }
    });
}

//= MQTT-4.7.3-3
//= MQTT311-4.7.3-3
#[test]
fn a_topic_of_65535_bytes_is_a_topic() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic() + "/";
            let topic = format!("{topic}{}", "x".repeat(65_535 - topic.len()));
            let mut raw = at.client(version);
            raw.subscribe(&topic, 0);
            raw.send(&Publish::new(&topic, b"long").bytes(version));
            assert_eq!(raw.message().topic, topic);
        }
    });
}

//= MQTT-3.3.2-3
//= MQTT311-3.3.2-3
#[test]
fn what_is_delivered_matches_a_subscription_and_keeps_its_topic() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut raw = at.client(version);
            raw.subscribe(&format!("{topic}/+/c"), 0);
            let mut publisher = at.client(version);
            for (number, tail) in (1..).zip(["a", "a/b", "a/c/d", "a/c", "/c", "b/c"]) {
                publisher.publish_acked(&format!("{topic}/{tail}"), b"x", number);
            }
            for tail in ["a/c", "/c", "b/c"] {
                assert_eq!(raw.message().topic, format!("{topic}/{tail}"));
            }
            raw.ping();
        }
    });
}

//= MQTT-3.3.2-4
//= MQTT-3.3.2-15
//= MQTT-3.3.2-16
//= MQTT-3.3.2-17
//= MQTT-3.3.2-18
//= MQTT-3.3.2-20
#[test]
fn properties_are_passed_on_unaltered_and_in_order() {
    everywhere(|at| {
        let topic = at.topic();
        let properties = [
            pair("z", "1"),
            vec![id::PAYLOAD_FORMAT, 0],
            pair("a", "\u{feff}"),
            text(id::CONTENT_TYPE, "type/\u{1f980}"),
            text(id::RESPONSE_TOPIC, "where/to"),
            text(id::CORRELATION_DATA, [0, 1, 255, 0]),
            pair("z", "1"),
            pair("", ""),
        ]
        .concat();
        let sent = Properties::read(&properties);
        let mut live = at.client(V5);
        live.subscribe(&topic, 2);
        let mut publisher = at.client(V5);
        for qos in 0..=2 {
            let publish =
                Publish { properties: &properties, retain: qos == 1, ..Publish::new(&topic, b"x").acked(qos, 1) };
            publisher.send(&publish.bytes(V5));
            let got = live.message();
            let got = Properties::read(&got.properties);
            for id in
                [id::PAYLOAD_FORMAT, id::CONTENT_TYPE, id::RESPONSE_TOPIC, id::CORRELATION_DATA, id::USER_PROPERTY]
            {
                assert_eq!(got.all(id), sent.all(id), "QoS {qos}");
            }
            assert_eq!(got.0.len(), sent.0.len(), "and nothing is added: {got:?}");
            if qos == 2 {
                live.expect(kind::PUBREL);
            }
        }
        // The same of what was retained.
        let mut late = at.client(V5);
        late.subscribe(&topic, 0);
        assert_eq!(Properties::read(&late.message().properties).all(id::USER_PROPERTY), sent.all(id::USER_PROPERTY));
    });
}

//= MQTT-3.3.2-14
#[test]
fn a_response_topic_with_a_wildcard_closes() {
    everywhere(|at| {
        for response in ["a/+", "#"] {
            let properties = text(id::RESPONSE_TOPIC, response);
            let publish = Publish { properties: &properties, ..Publish::new("t", b"x") };
            closes(at, V5, response, &publish.bytes(V5), WRONG);
        }
    });
}

//= MQTT-3.3.4-2
//= MQTT311-3.3.5-1
#[test]
fn overlapping_subscriptions_get_one_copy_at_the_highest_qos() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut raw = at.client(version);
            for (filter, qos) in [(topic.clone(), 0), (format!("{topic}/#"), 2), (siblings(&topic), 1)] {
                raw.subscribe(&filter, qos);
            }
            let mut publisher = at.client(version);
            publisher.publish_acked(&topic, b"at QoS 1", 1);
            let got = raw.message();
            assert_eq!((got.qos, got.payload), (1, b"at QoS 1".to_vec()));
            publisher.send(&Publish::new(&topic, b"at QoS 2").acked(2, 2).bytes(version));
            let got = raw.message();
            assert_eq!((got.qos, got.payload), (2, b"at QoS 2".to_vec()));
            raw.expect(kind::PUBREL);
            raw.ping();
        }
    });
}

//= MQTT-3.3.4-3
//= MQTT-3.3.4-4
#[test]
fn one_copy_carries_the_identifiers_of_all_subscriptions_that_match() {
    everywhere(|at| {
        let (own, topic) = (at.id(), at.topic());
        let expiry = crate::connect::ten_minutes();
        let connect = crate::connect::keep(V5, &own, &expiry);
        let mut raw = Raw::connect(at.mqtt(), &connect);
        let filters =
            [(topic.clone(), 1), (format!("{topic}/#"), 268_435_455), (siblings(&topic), 0), ("none/#".to_owned(), 5)];
        for (filter, number) in &filters {
            let properties = if *number == 0 { vec![] } else { variable(id::SUBSCRIPTION_ID, *number) };
            raw.send(&subscribe_to(V5, 1, &properties, &[(filter, 1)]));
            raw.expect(kind::SUBACK);
        }
        let identifiers = |got: &harness::wire::Received| {
            let mut all = Properties::read(&got.properties).all(id::SUBSCRIPTION_ID);
            all.sort_by_key(|value| format!("{value:?}"));
            all
        };
        let expected = [Value::Number(1), Value::Number(268_435_455)];
        let mut publisher = at.client(V5);
        publisher.publish_acked(&topic, b"live", 1);
        assert_eq!(identifiers(&raw.message()), expected);
        drop(raw);
        // What waits keeps them, too.
        publisher.publish_acked(&topic, b"queued", 2);
        let mut raw = Raw::connect(at.mqtt(), &connect);
        let got = raw.message();
        assert_eq!((got.payload.as_slice(), identifiers(&got)), (&b"queued"[..], expected.to_vec()));
        // Another subscription with the same filter replaces the number.
        raw.send(&subscribe_to(V5, 1, &variable(id::SUBSCRIPTION_ID, 9), &[(&topic, 1)]));
        raw.expect(kind::SUBACK);
        publisher.publish_acked(&topic, b"replaced", 3);
        assert_eq!(identifiers(&raw.message()), [Value::Number(268_435_455), Value::Number(9)]);
    });
}

//= MQTT-3.3.4-3
#[test]
fn identifiers_of_subscriptions_survive_a_restart() {
    for shards in crate::SHARDS {
        let mut node = crate::setup(shards).start();
        let expiry = crate::connect::ten_minutes();
        let connect = crate::connect::keep(V5, "kept", &expiry);
        let mut raw = Raw::connect(node.mqtt(), &connect);
        raw.send(&subscribe_to(V5, 1, &variable(id::SUBSCRIPTION_ID, 77), &[("kept/t", 1)]));
        raw.expect(kind::SUBACK);
        drop(raw);
        let mut publisher = Raw::connect(node.mqtt(), &harness::wire::Connect::new(V5, "publisher"));
        publisher.publish_acked("kept/t", b"before", 1);
        node.kill();
        node.start_again();
        let mut publisher = Raw::connect(node.mqtt(), &harness::wire::Connect::new(V5, "publisher"));
        publisher.publish_acked("kept/t", b"after", 1);
        let mut raw = Raw::connect(node.mqtt(), &connect);
        for payload in [&b"before"[..], b"after"] {
            let got = raw.message();
            assert_eq!(got.payload, payload);
            assert_eq!(Properties::read(&got.properties).number(id::SUBSCRIPTION_ID), Some(77));
        }
    }
}

//= MQTT-3.3.4-6
#[test]
fn a_subscription_identifier_from_a_client_closes() {
    everywhere(|at| {
        let properties = variable(id::SUBSCRIPTION_ID, 1);
        let publish = Publish { properties: &properties, ..Publish::new("t", b"x") };
        closes(at, V5, "a subscription identifier", &publish.bytes(V5), &[0x82]);
    });
}

//= MQTT311-3.3.5-2
#[test]
fn a_publish_that_is_not_allowed_is_refused_or_closes_and_reaches_nobody() {
    everywhere(|at| {
        let topic = format!("$SYS/broker/{}", at.topic());
        let mut witness = at.client(V5);
        witness.subscribe(&topic, 0);
        closes(at, V311, "QoS 1", &Publish::new(&topic, b"x").acked(1, 1).bytes(V311), &[]);
        let mut raw = at.client(V5);
        for (qos, answer) in [(1, kind::PUBACK), (2, kind::PUBREC)] {
            raw.send(&Publish::new(&topic, b"x").acked(qos, 1).bytes(V5));
            assert_eq!(raw.expect(answer).reason(), 0x87);
        }
        witness.ping();
    });
}
