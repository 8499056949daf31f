//! Topic filters and what they match (4.7), and shared subscriptions (4.8.2).

use crate::connect::{keep, ten_minutes};
use crate::packets::{ack_with, disconnect_with, four, id, reasons};
use crate::{At, BOTH, everywhere};
use harness::raw::Raw;
use harness::wire::{self, Connect, Publish, V5, kind};
use harness::{MOMENT, SHORT};

/// Filters that are none are refused one by one; nothing else happens to their client.
#[track_caller]
fn refused(at: &At, version: u8, filters: &[&str]) {
    let mut raw = at.client(version);
    for filter in filters {
        raw.send(&wire::subscribe(version, 1, filter, 0));
        let suback = raw.expect(kind::SUBACK);
        assert_eq!(reasons(version, &suback), [if version == V5 { 0x8f } else { 0x80 }], "{filter}");
    }
}

//= MQTT-4.7.1-1
//= MQTT-4.7.1-2
//= MQTT-4.7.3-1
//= MQTT311-4.7.1-2
//= MQTT311-4.7.1-3
//= MQTT311-4.7.3-1
#[test]
fn a_wildcard_that_does_not_fill_its_place_is_refused() {
    everywhere(|at| {
        for version in BOTH {
            refused(at, version, &["a#", "#/a", "a/#/b", "##", "+a", "a+", "a/b+/c", "++", "+#", ""]);
        }
    });
}

//= MQTT-4.7.1-1
//= MQTT-4.7.1-2
//= MQTT-4.7.3-4
//= MQTT311-4.7.1-2
//= MQTT311-4.7.1-3
//= MQTT311-4.7.3-4
#[test]
fn filters_match_what_the_specification_says() {
    everywhere(|at| {
        for version in BOTH {
            let base = at.topic();
            let topics = ["", "/", "/a", "/a/b", "/A", "/a/", "//b", "/a/b/c"].map(|tail| format!("{base}{tail}"));
            for (filter, matching) in [
                ("/#", "0 1 2 3 4 5 6 7"),
                ("/+", "1 2 4"),
                ("/+/+", "3 5 6"),
                ("/a/#", "2 3 5 7"),
                ("/+/b", "3 6"),
                ("/+/b/#", "3 6 7"),
                ("/a", "2"),
                ("", "0"),
                ("/", "1"),
            ] {
                let mut raw = at.client(version);
                raw.subscribe(&format!("{base}{filter}"), 0);
                let mut publisher = at.client(version);
                for (number, topic) in (1..).zip(&topics) {
                    publisher.publish_acked(topic, b"x", number);
                }
                for number in matching.split(' ') {
                    let number: usize = number.parse().expect("numbers of topics");
                    assert_eq!(raw.message().topic, topics[number], "{filter}");
                }
                raw.ping();
            }
        }
    });
}

//= MQTT-4.7.2-1
//= MQTT311-4.7.2-1
#[test]
fn leading_wildcards_do_not_match_topics_that_begin_with_a_dollar() {
    everywhere(|at| {
        for version in BOTH {
            let (base, own) = (at.topic(), at.id());
            let topic = format!("$own/{base}");
            let mut wild = Raw::connect(at.mqtt(), &Connect::new(version, &own));
            // Other tests publish meanwhile, and `#` gets all of that.
            wild.subscribe_quietly("#", 0);
            wild.subscribe_quietly("+/#", 0);
            wild.subscribe_quietly(&format!("+/{base}"), 0);
            let mut named = at.client(version);
            named.subscribe("$own/#", 0);
            let mut publisher = at.client(version);
            publisher.send(&Publish { retain: true, ..Publish::new(&topic, b"hidden").acked(1, 1) }.bytes(version));
            publisher.expect(kind::PUBACK);
            while named.message().topic != topic {}
            publisher.publish_acked(&base, b"marker", 2);
            loop {
                let got = wild.message();
                assert_ne!(got.topic, topic);
                if got.topic == base {
                    break;
                }
            }
            // Nor what is retained there.
            let mut late = at.client(version);
            late.subscribe(&format!("+/{base}"), 0);
            assert!(late.poll(MOMENT).is_err(), "nothing is retained under a topic that it matches");
            publisher.send(&Publish { retain: true, ..Publish::new(&topic, b"").acked(1, 1) }.bytes(version));
            publisher.expect(kind::PUBACK);
        }
    });
}

//= MQTT-4.8.2-1
//= MQTT-4.8.2-2
#[test]
fn a_shared_filter_needs_a_name_and_a_filter() {
    everywhere(|at| {
        for version in BOTH {
            let names = ["$share/", "$share/g", "$share/g/", "$share//t", "$share/+/t", "$share/g#/t", "$share/g/a#"];
            refused(at, version, &names);
            let mut raw = at.client(version);
            raw.subscribe(&format!("$share/\u{20ac} g/{}", at.topic()), 1);
            // Without the slash it is a filter like any other.
            raw.subscribe("$sharex/g/t", 0);
        }
    });
}

/// A member of a group of its own, with a session that is kept.
#[track_caller]
fn member(at: &At, own: &str, filter: &str, qos: u8) -> Raw {
    let expiry = ten_minutes();
    let mut raw = Raw::connect(at.mqtt(), &keep(V5, own, &expiry));
    raw.subscribe(filter, qos);
    raw
}

//= MQTT-4.8.2-3
#[test]
fn each_member_gets_its_share_at_its_own_qos() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let filter = format!("$share/g/{topic}");
            let mut members: Vec<Raw> = (0..3)
                .map(|qos| {
                    let mut raw = at.client(version);
                    raw.subscribe(&filter, qos);
                    raw
                })
                .collect();
            let mut plain = at.client(version);
            plain.subscribe(&topic, 0);
            let mut publisher = at.client(version);
            for number in 1..=12 {
                publisher.send(&Publish::new(&topic, &[number as u8]).acked(2, number).bytes(version));
                publisher.expect(kind::PUBREC);
                publisher.send(&wire::ack(kind::PUBREL, number));
                publisher.expect(kind::PUBCOMP);
                assert_eq!(plain.message().payload, [number as u8]);
            }
            let mut all = Vec::new();
            for (granted, raw) in (0..).zip(&mut members) {
                raw.send(&wire::pingreq());
                while let Some(packet) = raw.next(SHORT).filter(|packet| packet.kind != kind::PINGRESP) {
                    let got = packet.publish(version);
                    assert_eq!(got.qos, granted);
                    all.extend(got.payload);
                }
            }
            all.sort_unstable();
            assert_eq!(all, (1..=12).collect::<Vec<u8>>(), "each message once");
        }
    });
}

//= MQTT-4.8.2-4
//= MQTT-4.8.2-5
#[test]
fn a_begun_qos_2_delivery_waits_for_its_member_and_goes_to_nobody_else() {
    everywhere(|at| {
        let topic = at.topic();
        let filter = format!("$share/g/{topic}");
        let ids = [at.id(), at.id()];
        let mut members = [member(at, &ids[0], &filter, 2), member(at, &ids[1], &filter, 2)];
        let mut publisher = at.client(V5);
        publisher.send(&Publish::new(&topic, b"begun").acked(2, 1).bytes(V5));
        publisher.expect(kind::PUBREC);
        let (mut chosen, mut packet) = (0, None);
        for (at, raw) in members.iter_mut().enumerate() {
            raw.send(&wire::pingreq());
            let first = raw.next(SHORT).expect("it stays open");
            if first.kind == kind::PUBLISH {
                raw.expect(kind::PINGRESP);
                (chosen, packet) = (at, Some(first.publish(V5)));
            }
        }
        let packet = packet.expect("one of them has it");
        let [zero, one] = members;
        let (gone, mut stays) = if chosen == 0 { (zero, one) } else { (one, zero) };
        drop(gone);
        stays.ping();
        let expiry = ten_minutes();
        let mut back = Raw::connect(at.mqtt(), &keep(V5, &ids[chosen], &expiry));
        let got = back.expect(kind::PUBLISH).publish(V5);
        assert_eq!((got.payload.as_slice(), got.dup, got.packet_id), (&b"begun"[..], true, packet.packet_id));
        // Its session ends: nobody else gets it.
        back.send(&disconnect_with(0, &four(id::SESSION_EXPIRY, 0)));
        back.closed(SHORT);
        publisher.send(&Publish::new(&topic, b"marker").acked(1, 2).bytes(V5));
        publisher.expect(kind::PUBACK);
        assert_eq!(stays.message().payload, b"marker");
        stays.ping();
    });
}

//= MQTT-4.8.2-6
#[test]
fn what_a_member_refused_goes_to_nobody_else() {
    everywhere(|at| {
        for (qos, answer) in [(1, kind::PUBACK), (2, kind::PUBREC)] {
            let topic = at.topic();
            let filter = format!("$share/g/{topic}");
            let mut members = [member(at, &at.id(), &filter, 2), member(at, &at.id(), &filter, 2)];
            let mut publisher = at.client(V5);
            publisher.send(&Publish::new(&topic, b"x").acked(qos, 1).bytes(V5));
            publisher.next(SHORT).expect("it is acknowledged");
            let mut got = 0;
            for _ in 0..2 {
                for raw in &mut members {
                    raw.send(&wire::pingreq());
                    let packet = raw.next(SHORT).expect("it stays open");
                    if packet.kind == kind::PUBLISH {
                        raw.expect(kind::PINGRESP);
                        let id = packet.publish(V5).packet_id.expect("QoS 1 and 2 have one");
                        raw.send(&ack_with(answer, id, 0x83, &[]));
                        raw.ping();
                        got += 1;
                    }
                }
            }
            assert_eq!(got, 1);
        }
    });
}
