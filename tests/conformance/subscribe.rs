//! SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK (3.8 to 3.11).

use crate::connect::{keep, ten_minutes};
use crate::encoding::{WRONG, closes};
use crate::packets::{reasons, subscribe_to, unsubscribe_from, with_id};
use crate::{BOTH, everywhere};
use harness::SHORT;
use harness::raw::Raw;
use harness::wire::{self, Publish, V5, V311, kind};

//= MQTT-3.8.3-2
//= MQTT-3.10.3-2
//= MQTT311-3.8.3-3
//= MQTT311-3.10.3-2
#[test]
fn subscribe_and_unsubscribe_without_a_filter_close() {
    everywhere(|at| {
        for version in BOTH {
            closes(at, version, "SUBSCRIBE", &subscribe_to(version, 1, &[], &[]), WRONG);
            closes(at, version, "UNSUBSCRIBE", &unsubscribe_from(version, 1, &[]), WRONG);
            closes(at, version, "no options", &with_id(version, 0x82, 1, &[], b"\0\x01t"), WRONG);
        }
    });
}

//= MQTT-3.8.3-5
//= MQTT311-3.8.3-4
#[test]
fn subscription_options_that_do_not_exist_close() {
    everywhere(|at| {
        for options in [0x40, 0x80, 0xc0] {
            closes(at, V5, "reserved bits", &wire::subscribe(V5, 1, "t", options), &[0x81]);
        }
        closes(at, V5, "QoS 3", &wire::subscribe(V5, 1, "t", 3), WRONG);
        closes(at, V5, "retain handling 3", &wire::subscribe(V5, 1, "t", 0x30), &[0x82]);
        for options in [3, 4, 8, 0x10, 0x20, 0x40, 0x80] {
            closes(at, V311, "reserved bits", &wire::subscribe(V311, 1, "t", options), &[]);
        }
    });
}

//= MQTT-3.8.3-3
#[test]
fn no_local_keeps_a_client_from_its_own_messages_only() {
    everywhere(|at| {
        let (own, topic, expiry) = (at.id(), at.topic(), ten_minutes());
        let connect = keep(V5, &own, &expiry);
        let mut raw = Raw::connect(at.mqtt(), &connect);
        raw.send(&wire::subscribe(V5, 1, &topic, 0x05));
        raw.expect(kind::SUBACK);
        raw.publish_acked(&topic, b"own", 1);
        let mut other = at.client(V5);
        other.publish_acked(&topic, b"of another", 1);
        assert_eq!(raw.message().payload, b"of another");
        // It is the client id that counts, not the connection.
        drop(raw);
        let mut raw = Raw::connect(at.mqtt(), &connect);
        raw.publish_acked(&topic, b"own", 1);
        raw.ping();
    });
}

//= MQTT-3.8.3-4
#[test]
fn no_local_on_a_shared_subscription_closes() {
    everywhere(|at| closes(at, V5, "No Local", &wire::subscribe(V5, 1, "$share/g/t", 0x04), &[0x82]));
}

//= MQTT-3.8.4-1
//= MQTT-3.8.4-5
//= MQTT-3.8.4-6
//= MQTT-3.8.4-7
//= MQTT-3.9.3-1
//= MQTT-3.9.3-2
//= MQTT311-3.8.4-1
//= MQTT311-3.8.4-4
//= MQTT311-3.8.4-5
//= MQTT311-3.9.3-1
//= MQTT311-3.9.3-2
#[test]
fn suback_has_a_reason_for_each_filter_in_order() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let deep = format!("{topic}{}", "/x".repeat(200));
            let names: Vec<String> = (0..3).map(|number| format!("{topic}/{number}")).collect();
            let filters = [
                (names[0].as_str(), 2),
                (deep.as_str(), 1),
                (names[1].as_str(), 0),
                ("a/#/b", 0),
                (names[2].as_str(), 1),
                (names[0].as_str(), 1),
            ];
            let mut raw = at.client(version);
            raw.send(&subscribe_to(version, 7, &[], &filters));
            let suback = raw.expect(kind::SUBACK);
            let failed = if version == V5 { 0x8f } else { 0x80 };
            assert_eq!(reasons(version, &suback), [2, failed, 0, failed, 1, 1]);
            // A sequence: the last options of a filter hold, and what was granted is in force.
            let mut publisher = at.client(version);
            for (name, qos) in names.iter().zip([1, 0, 1]) {
                publisher.publish_acked(name, b"x", 1);
                assert_eq!(raw.message().qos, qos);
            }
            raw.ping();
        }
    });
}

//= MQTT-3.8.4-3
//= MQTT-3.8.4-4
//= MQTT311-3.8.4-3
#[test]
fn the_same_filter_replaces_the_subscription_and_loses_nothing() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut raw = at.client(version);
            raw.subscribe(&topic, 0);
            let mut publisher = at.client(version);
            // Published while the filter is subscribed to again and again.
            let count = 40;
            for number in 0..count {
                publisher.send(&Publish::new(&topic, &[number]).acked(1, 1 + u16::from(number)).bytes(version));
                raw.send(&wire::subscribe(version, 1, &topic, number % 3));
            }
            let (mut payloads, mut subacks) = (Vec::new(), 0);
            while payloads.len() < usize::from(count) || subacks < count {
                let packet = raw.next(SHORT).expect("it stays open");
                if packet.kind == kind::SUBACK {
                    subacks += 1;
                    continue;
                }
                let got = packet.publish(version);
                if let Some(id) = got.packet_id {
                    raw.send(&wire::ack(kind::PUBACK, id));
                }
                payloads.push(got.payload[0]);
            }
            payloads.sort_unstable();
            assert_eq!(payloads, (0..count).collect::<Vec<u8>>(), "each once");
            (0..count).for_each(|_| _ = publisher.expect(kind::PUBACK));
            raw.subscribe(&topic, 1);
            publisher.publish_acked(&topic, b"x", 100);
            assert_eq!(raw.message().qos, 1, "the last options hold");
            raw.ping();
        }
    });
}

//= MQTT-3.8.4-8
//= MQTT311-3.8.4-6
#[test]
fn a_message_is_delivered_at_the_lower_of_both_qos() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut publisher = at.client(version);
            for granted in 0..=2 {
                let mut raw = at.client(version);
                raw.subscribe(&topic, granted);
                for qos in 0..=2 {
                    publisher.send(&Publish::new(&topic, b"x").acked(qos, 1).bytes(version));
                    let got = raw.message();
                    assert_eq!(got.qos, qos.min(granted), "published at {qos}, granted {granted}");
                    if got.qos == 2 {
                        raw.expect(kind::PUBREL);
                    }
                    if qos > 0 {
                        publisher.next(SHORT).expect("it is acknowledged");
                    }
                    if qos == 2 {
                        publisher.send(&wire::ack(kind::PUBREL, 1));
                        publisher.expect(kind::PUBCOMP);
                    }
                }
            }
        }
    });
}

//= MQTT-3.10.4-1
//= MQTT-3.10.4-2
//= MQTT-3.10.4-4
//= MQTT-3.10.4-5
//= MQTT-3.10.4-6
//= MQTT-3.11.3-1
//= MQTT-3.11.3-2
//= MQTT311-3.10.4-1
//= MQTT311-3.10.4-2
//= MQTT311-3.10.4-4
//= MQTT311-3.10.4-5
//= MQTT311-3.10.4-6
#[test]
fn unsubscribe_ends_what_it_names_exactly_and_answers_for_each() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let (all, upper) = (format!("{topic}/#"), topic.to_uppercase());
            let group = format!("$share/g/{topic}");
            let mut raw = at.client(version);
            for filter in [&topic, &all, &group] {
                raw.subscribe(filter, 1);
            }
            // None of these is the filter, though some match the same topics.
            let others = ["+/0", upper.as_str(), "nothing", &format!("$share/h/{topic}")[..]];
            raw.send(&unsubscribe_from(version, 5, &others));
            let unsuback = raw.expect(kind::UNSUBACK);
            assert_eq!(unsuback.packet_id(), 5);
            assert_eq!(reasons(version, &unsuback), if version == V5 { vec![0x11; 4] } else { vec![] });
            let mut publisher = at.client(version);
            publisher.publish_acked(&topic, b"still", 1);
            assert_eq!(raw.message().payload, b"still");
            assert_eq!(raw.message().payload, b"still", "the group is a subscription of its own");
            raw.send(&unsubscribe_from(version, 6, &[&topic, "nothing", &all, &group, &topic]));
            let unsuback = raw.expect(kind::UNSUBACK);
            let expected = if version == V5 { vec![0, 0x11, 0, 0, 0x11] } else { vec![] };
            assert_eq!(reasons(version, &unsuback), expected);
            publisher.publish_acked(&topic, b"over", 2);
            raw.ping();
        }
    });
}

//= MQTT-3.10.4-3
//= MQTT311-3.10.4-3
#[test]
fn what_was_begun_is_completed_after_unsubscribe() {
    everywhere(|at| {
        for version in BOTH {
            let (own, topic, expiry) = (at.id(), at.topic(), ten_minutes());
            let connect = keep(version, &own, &expiry);
            let mut raw = Raw::connect(at.mqtt(), &connect);
            raw.subscribe(&topic, 2);
            let mut publisher = at.client(version);
            publisher.send(&Publish::new(&topic, b"begun").acked(2, 1).bytes(version));
            publisher.expect(kind::PUBREC);
            let id = raw.expect(kind::PUBLISH).publish(version).packet_id.expect("QoS 2 has one");
            raw.send(&wire::unsubscribe(version, 3, &topic));
            raw.expect(kind::UNSUBACK);
            drop(raw);
            let mut raw = Raw::connect(at.mqtt(), &connect);
            let got = raw.message();
            assert_eq!((got.payload.as_slice(), got.dup, got.packet_id), (&b"begun"[..], true, Some(id)));
            assert_eq!(raw.expect(kind::PUBREL).packet_id(), id);
            raw.send(&wire::ack(kind::PUBCOMP, id));
            raw.ping();
        }
    });
}

//= MQTT-3.1.2-29
//= MQTT-3.9.2-1
//= MQTT-3.9.2-2
//= MQTT-3.11.2-1
//= MQTT-3.11.2-2
#[test]
fn suback_and_unsuback_carry_reasons_and_no_words() {
    everywhere(|at| {
        let mut raw = at.client(V5);
        raw.send(&wire::subscribe(V5, 1, "a/#/b", 0));
        assert_eq!(raw.expect(kind::SUBACK).body, [0, 1, 0, 0x8f]);
        raw.send(&wire::unsubscribe(V5, 2, "a/#/b"));
        let unsuback = raw.expect(kind::UNSUBACK);
        assert_eq!(unsuback.body[..3], [0, 2, 0]);
        assert!([0x11, 0x8f].contains(&unsuback.reason()));
    });
}
