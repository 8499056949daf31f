//! How packets are written (1.5, 2): strings, lengths, flags, packet ids, property lists.

use crate::connect::{keep, ten_minutes};
use crate::packets::{Properties, id, pair, subscribe_to, text, unsubscribe_from, with_id};
use crate::{At, BOTH, everywhere};
use harness::SHORT;
use harness::raw::Raw;
use harness::wire::{self, Publish, V5, V311, kind, packet};

/// Sends bytes on a new connection, which the broker has to close: in 5.0 with one of these reasons.
#[track_caller]
pub fn closes(at: &At, version: u8, what: &str, bytes: &[u8], reasons: &[u8]) {
    let mut raw = at.client(version);
    raw.send(bytes);
    let packets = raw.closed(SHORT);
    if version != V5 {
        assert_eq!(packets, [], "{what}: before 5.0 the server has no DISCONNECT");
        return;
    }
    let last = packets.last().unwrap_or_else(|| panic!("{what}: closed without DISCONNECT"));
    assert_eq!((packets.len(), last.kind), (1, kind::DISCONNECT), "{what}: {packets:?}");
    assert!(reasons.contains(&last.reason()), "{what}: {:#04x}, not of {reasons:#04x?}", last.reason());
}

/// Malformed Packet and Protocol Error: which one it is, is often a matter of reading.
pub const WRONG: &[u8] = &[0x81, 0x82];

/// Strings that are none, without their lengths.
const NO_STRINGS: [&[u8]; 7] =
    [b"\xc3\x28", b"\xff", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xc0\x80", b"\xf4\x90\x80\x80", b"a\0b"];

//= MQTT-1.5.4-1
//= MQTT-1.5.4-2
//= MQTT-3.3.2-1
//= MQTT-3.8.3-1
//= MQTT-3.10.3-1
//= MQTT-4.7.3-2
//= MQTT-4.13.1-1
//= MQTT311-1.5.3-1
//= MQTT311-1.5.3-2
//= MQTT311-3.3.2-1
//= MQTT311-3.8.3-1
//= MQTT311-3.10.3-1
//= MQTT311-4.7.3-2
//= MQTT311-4.8.0-1
#[test]
fn what_is_no_string_closes_wherever_it_stands() {
    everywhere(|at| {
        for version in BOTH {
            for bad in NO_STRINGS {
                let mut field = Vec::new();
                wire::put_bytes(&mut field, bad);
                let list = if version == V5 { &[0][..] } else { &[] };
                let reasons = &[0x81, 0x90];
                closes(at, version, "topic", &packet(0x30, &[&field[..], list, b"x"].concat()), reasons);
                let filter = [&field[..], &[0]].concat();
                closes(at, version, "filter", &with_id(version, 0x82, 1, &[], &filter), &[0x81, 0x8f]);
                closes(at, version, "unsubscribed filter", &with_id(version, 0xa2, 1, &[], &field), &[0x81, 0x8f]);
            }
        }
    });
}

//= MQTT-1.5.7-1
//= MQTT-3.3.2-13
//= MQTT-3.3.2-19
#[test]
fn what_is_no_string_closes_in_properties_too() {
    everywhere(|at| {
        for bad in NO_STRINGS {
            let mut name_is_bad = text(id::USER_PROPERTY, bad);
            wire::put_bytes(&mut name_is_bad, b"value");
            let mut value_is_bad = text(id::USER_PROPERTY, "name");
            wire::put_bytes(&mut value_is_bad, bad);
            let properties = [name_is_bad, value_is_bad, text(id::RESPONSE_TOPIC, bad), text(id::CONTENT_TYPE, bad)];
            for properties in &properties {
                let publish = Publish { properties, ..Publish::new("t", b"x") };
                closes(at, V5, "property", &publish.bytes(V5), &[0x81]);
            }
        }
    });
}

//= MQTT-1.5.4-3
//= MQTT-4.7.3-4
//= MQTT311-1.5.3-3
//= MQTT311-4.7.3-4
#[test]
fn every_character_is_kept_and_none_is_taken_for_another() {
    everywhere(|at| {
        for version in BOTH {
            let base = at.topic();
            // A byte order mark, first characters of two, three and four bytes, a private one, and forms of one letter.
            let tails = ["\u{feff}x", "\u{e9}", "e\u{301}", "\u{20ac}", "\u{1f980}", "\u{e000}", "\u{ffff}", "E", "e"];
            let mut all = at.client(version);
            all.subscribe(&format!("{base}/+"), 0);
            let mut own: Vec<Raw> = Vec::new();
            for tail in tails {
                let mut raw = at.client(version);
                raw.subscribe(&format!("{base}/{tail}"), 0);
                own.push(raw);
            }
            let mut publisher = at.client(version);
            for (number, tail) in (1..).zip(tails) {
                publisher.publish_acked(&format!("{base}/{tail}"), tail.as_bytes(), number);
                let got = all.message();
                assert_eq!((got.topic, got.payload), (format!("{base}/{tail}"), tail.as_bytes().to_vec()));
            }
            for (raw, tail) in own.iter_mut().zip(tails) {
                assert_eq!(raw.message().topic, format!("{base}/{tail}"));
                raw.ping();
            }
            // A topic may begin with any of them.
            let mut first = at.client(version);
            let topic = format!("\u{feff}{base}");
            first.subscribe(&topic, 0);
            publisher.publish_acked(&topic, b"bom", 50);
            assert_eq!(first.message().topic, topic);
        }
    });
}

//= MQTT-1.5.5-1
#[test]
fn lengths_are_written_in_the_fewest_bytes() {
    everywhere(|at| {
        let topic = at.topic();
        let mut subscriber = at.client(V5);
        subscriber.subscribe(&topic, 0);
        let mut publisher = at.client(V5);
        let overhead = 2 + topic.len() + 1;
        for length in [0, 127, 128, 16_383, 16_384, 200_000] {
            let payload = vec![b'x'; usize::saturating_sub(length, overhead)];
            publisher.publish_acked(&topic, &payload, 1);
            let mut front = vec![0x30];
            wire::put_length(&mut front, overhead + payload.len());
            let mut raw = Vec::new();
            subscriber.read_exactly(&mut raw, front.len() + overhead + payload.len());
            assert_eq!(raw[..front.len()], front, "a PUBLISH of {length}");
        }
    });
}

//= MQTT-2.1.3-1
//= MQTT-3.6.1-1
//= MQTT-3.8.1-1
//= MQTT-3.10.1-1
//= MQTT-3.14.1-1
//= MQTT-3.15.1-1
//= MQTT311-2.2.2-1
//= MQTT311-2.2.2-2
//= MQTT311-3.6.1-1
//= MQTT311-3.8.1-1
//= MQTT311-3.10.1-1
//= MQTT311-3.14.1-1
#[test]
fn reserved_flags_close() {
    everywhere(|at| {
        for version in BOTH {
            let subscribe = wire::subscribe(version, 1, "t", 0);
            let unsubscribe = wire::unsubscribe(version, 1, "t");
            let packets = [
                wire::ack(kind::PUBACK, 1),
                wire::ack(kind::PUBREC, 1),
                wire::ack(kind::PUBREL, 1),
                wire::ack(kind::PUBCOMP, 1),
                subscribe,
                unsubscribe,
                wire::pingreq(),
                wire::disconnect(),
                packet(0xf0, &[]),
            ];
            for bytes in packets {
                let right = bytes[0] & 0x0f;
                for flags in [0, 1, 2, 3, 4, 8, 10, 15].into_iter().filter(|flags| *flags != right) {
                    let mut wrong = bytes.clone();
                    wrong[0] = bytes[0] & 0xf0 | flags;
                    closes(at, version, &format!("{:#04x}", wrong[0]), &wrong, &[0x81]);
                }
            }
        }
    });
}

//= MQTT-2.2.1-2
//= MQTT-2.2.1-3
//= MQTT311-2.3.1-1
//= MQTT311-2.3.1-5
#[test]
fn packet_ids_are_there_when_they_have_to_be_and_not_0() {
    everywhere(|at| {
        for version in BOTH {
            closes(at, version, "PUBLISH", &Publish::new("t", b"x").acked(1, 0).bytes(version), WRONG);
            closes(at, version, "PUBLISH", &Publish::new("t", b"x").acked(2, 0).bytes(version), WRONG);
            closes(at, version, "SUBSCRIBE", &wire::subscribe(version, 0, "t", 0), WRONG);
            closes(at, version, "UNSUBSCRIBE", &wire::unsubscribe(version, 0, "t"), WRONG);
            for kind in [kind::PUBACK, kind::PUBREC, kind::PUBREL, kind::PUBCOMP] {
                closes(at, version, "an acknowledgement", &wire::ack(kind, 0), WRONG);
            }
            // At QoS 0 there is none, so what might be one is the beginning of the message.
            let topic = at.topic();
            let mut raw = at.client(version);
            raw.subscribe(&topic, 1);
            raw.send(&Publish::new(&topic, b"\x00\x07no id").bytes(version));
            let got = raw.message();
            assert_eq!((got.qos, got.packet_id, got.payload), (0, None, b"\x00\x07no id".to_vec()));
        }
    });
}

//= MQTT-2.2.1-4
//= MQTT-4.3.2-1
//= MQTT-4.3.3-1
//= MQTT311-2.3.1-4
#[test]
fn the_broker_gives_ids_that_are_not_0_and_not_in_use() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut subscriber = at.client(version);
            subscriber.subscribe(&topic, 2);
            let mut publisher = at.client(version);
            let mut in_use = std::collections::BTreeSet::new();
            for number in 1..=20 {
                publisher.send(&Publish::new(&topic, b"x").acked(1 + (number % 2) as u8, number).bytes(version));
                publisher.next(SHORT).expect("it is acknowledged");
                let id = subscriber.expect(kind::PUBLISH).publish(version).packet_id.expect("QoS 1 and 2 have one");
                assert_ne!(id, 0);
                assert!(in_use.insert(id), "{id} was in use");
            }
        }
    });
}

//= MQTT-2.2.1-6
//= MQTT-3.8.4-2
//= MQTT311-2.3.1-7
//= MQTT311-3.8.4-2
#[test]
fn suback_and_unsuback_carry_the_id_that_they_answer() {
    everywhere(|at| {
        for version in BOTH {
            let mut raw = at.client(version);
            for id in [1, 2, 255, 256, 65_535, 2] {
                raw.send(&wire::subscribe(version, id, "t", 0));
                assert_eq!(raw.expect(kind::SUBACK).packet_id(), id);
                raw.send(&wire::unsubscribe(version, id, "t"));
                assert_eq!(raw.expect(kind::UNSUBACK).packet_id(), id);
            }
        }
    });
}

//= MQTT-2.2.2-1
#[test]
fn a_packet_without_properties_says_so_with_a_length_of_0() {
    everywhere(|at| {
        let topic = at.topic();
        let mut raw = at.client(V5);
        raw.send(&wire::subscribe(V5, 9, &topic, 0));
        assert_eq!(raw.expect(kind::SUBACK).body, [0, 9, 0, 0]);
        raw.send(&Publish::new(&topic, b"x").bytes(V5));
        let publish = raw.expect(kind::PUBLISH);
        assert_eq!(publish.body[2 + topic.len()..], [0, b'x']);
        raw.send(&wire::unsubscribe(V5, 9, &topic));
        assert_eq!(raw.expect(kind::UNSUBACK).body, [0, 9, 0, 0]);
        // A list that is left out is not an empty one.
        closes(at, V5, "PUBLISH", &packet(0x30, b"\0\x01t"), &[0x81]);
        closes(at, V5, "SUBSCRIBE", &packet(0x82, &[0, 1]), WRONG);
    });
}

#[test]
fn properties_that_do_not_belong_or_come_twice_close() {
    everywhere(|at| {
        let publish = |properties: &[u8]| Publish { properties, ..Publish::new("t", b"x") }.bytes(V5);
        for (what, properties, reasons) in [
            ("an unknown property", &[0x7e, 0][..], &[0x81][..]),
            ("a property of another packet", &[0x21, 0, 5], WRONG),
            ("a list that ends in a property", &[0x01], &[0x81]),
            ("a format indicator twice", &[1, 1, 1, 1], &[0x82]),
            ("an expiry twice", &[2, 0, 0, 0, 1, 2, 0, 0, 0, 1], &[0x82]),
            ("a format indicator of 2", &[1, 2], WRONG),
            ("a content type twice", b"\x03\0\x01a\x03\0\x01a", &[0x82]),
            ("a response topic twice", b"\x08\0\x01a\x08\0\x01a", &[0x82]),
            ("correlation data twice", b"\x09\0\x01a\x09\0\x01a", &[0x82]),
            ("an alias twice", &[0x23, 0, 1, 0x23, 0, 1], &[0x82]),
        ] {
            closes(at, V5, what, &publish(properties), reasons);
        }
        let subscribe = |properties: &[u8]| subscribe_to(V5, 1, properties, &[("t", 0)]);
        closes(at, V5, "subscription identifier 0", &subscribe(&[0x0b, 0]), &[0x82]);
        closes(at, V5, "two subscription identifiers", &subscribe(&[0x0b, 1, 0x0b, 2]), &[0x82]);
        closes(at, V5, "an identifier of five bytes", &subscribe(&[0x0b, 255, 255, 255, 255, 1]), &[0x81]);
    });
}

//= MQTT-2.2.1-5
//= MQTT-4.3.2-4
//= MQTT-4.3.3-8
//= MQTT-4.3.3-11
//= MQTT-3.3.4-1
//= MQTT311-2.3.1-6
//= MQTT311-3.3.4-1
#[test]
fn each_qos_has_its_answer_with_the_id_of_the_publish() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut raw = at.client(version);
            raw.send(&Publish::new(&topic, b"x").bytes(version));
            raw.ping();
            for id in [1, 300, 65_535] {
                raw.send(&Publish::new(&topic, b"x").acked(1, id).bytes(version));
                assert_eq!(raw.expect(kind::PUBACK).packet_id(), id);
                raw.send(&Publish::new(&topic, b"x").acked(2, id).bytes(version));
                assert_eq!(raw.expect(kind::PUBREC).packet_id(), id);
                raw.send(&wire::ack(kind::PUBREL, id));
                assert_eq!(raw.expect(kind::PUBCOMP).packet_id(), id);
            }
        }
    });
}

#[test]
fn a_length_of_more_than_four_bytes_closes() {
    everywhere(|at| {
        for version in BOTH {
            closes(at, version, "five bytes", &[0x30, 0xff, 0xff, 0xff, 0xff, 0x01], &[0x81]);
            closes(at, version, "type 0", &packet(0, &[]), WRONG);
        }
        closes(at, V311, "AUTH in 3.1.1", &packet(0xf0, &[]), WRONG);
    });
}

#[test]
fn a_length_in_more_bytes_than_it_needs_is_read_all_the_same() {
    // Small clients reserve the bytes of the length before they know it; the statement binds the sender.
    everywhere(|at| {
        let mut raw = at.client(V311);
        raw.send(&[0xc0, 0x80, 0x80, 0x00]);
        raw.expect(kind::PINGRESP);
    });
}

//= MQTT-4.2-1
//= MQTT311-7.1.1-1
#[test]
fn packets_may_be_cut_anywhere_on_their_way() {
    everywhere(|at| {
        for version in BOTH {
            let (own, topic, expiry) = (at.id(), at.topic(), ten_minutes());
            let mut raw = at.node.raw();
            raw.speak(version);
            let bytes = [
                keep(version, &own, &expiry).bytes(),
                subscribe_to(version, 1, &[], &[(&topic, 1)]),
                Publish::new("in/pieces", b"x").acked(2, 2).bytes(version),
                wire::ack(kind::PUBREL, 2),
                unsubscribe_from(version, 3, &[&topic]),
                wire::pingreq(),
            ]
            .concat();
            for piece in bytes.chunks(1) {
                raw.send(piece);
            }
            let mut kinds: Vec<u8> = (0..6).map(|_| raw.next(SHORT).expect("it stays open").kind).collect();
            kinds.sort_unstable();
            let mut expected =
                [kind::CONNACK, kind::PUBREC, kind::PUBCOMP, kind::SUBACK, kind::UNSUBACK, kind::PINGRESP];
            expected.sort_unstable();
            assert_eq!(kinds, expected);
        }
    });
}

#[test]
fn user_properties_of_every_packet_are_read() {
    everywhere(|at| {
        let (one, topic) = (pair("a", "b"), at.topic());
        let two = [one.clone(), one.clone()].concat();
        let mut raw = at.client(V5);
        raw.send(&subscribe_to(V5, 1, &two, &[(&topic, 1)]));
        raw.expect(kind::SUBACK);
        raw.send(&Publish { properties: &two, ..Publish::new(&topic, b"x").acked(1, 2) }.bytes(V5));
        let packets = [raw.next(SHORT), raw.next(SHORT)].map(|packet| packet.expect("it stays open"));
        let publish = packets.iter().find(|packet| packet.kind == kind::PUBLISH).expect("it subscribed").publish(V5);
        assert_eq!(Properties::read(&publish.properties), Properties::read(&two));
        raw.send(&crate::packets::ack_with(kind::PUBACK, publish.packet_id.expect("QoS 1 has one"), 0, &two));
        raw.send(&with_id(V5, 0xa2, 3, &two, b"\0\x01t"));
        raw.expect(kind::UNSUBACK);
        raw.ping();
    });
}
