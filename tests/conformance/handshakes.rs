//! Acknowledgements (3.4 to 3.7) and the delivery protocols (4.3, 4.4, 4.6): as receiver and as sender.

use crate::connect::{keep, ten_minutes};
use crate::encoding::closes;
use crate::packets::{ack_with, id, pair, text};
use crate::{At, BOTH, everywhere};
use harness::SHORT;
use harness::raw::Raw;
use harness::wire::{self, Publish, Received, V5, kind, packet};

/// A client whose session is kept, subscribed to a topic at QoS 2.
#[track_caller]
fn kept(at: &At, version: u8, own: &str, topic: &str) -> Raw {
    let expiry = ten_minutes();
    let mut raw = Raw::connect(at.mqtt(), &keep(version, own, &expiry));
    raw.subscribe(topic, 2);
    raw
}

/// The same client on its next connection.
#[track_caller]
fn again(at: &At, version: u8, own: &str) -> Raw {
    let expiry = ten_minutes();
    let (raw, connack) = at.connack(&keep(version, own, &expiry));
    assert!(connack.session_present());
    raw
}

/// Publishes at QoS 2 to the end.
#[track_caller]
fn publish_twice_acked(publisher: &mut Raw, version: u8, topic: &str, payload: &[u8], packet_id: u16) {
    publisher.send(&Publish::new(topic, payload).acked(2, packet_id).bytes(version));
    publisher.expect(kind::PUBREC);
    publisher.send(&wire::ack(kind::PUBREL, packet_id));
    publisher.expect(kind::PUBCOMP);
}

/// The next PUBLISH, unanswered.
#[track_caller]
fn unanswered(raw: &mut Raw, version: u8) -> (Received, u16) {
    let got = raw.expect(kind::PUBLISH).publish(version);
    let id = got.packet_id.expect("QoS 1 and 2 have one");
    (got, id)
}

//= MQTT-3.4.2-1
//= MQTT-3.5.2-1
//= MQTT-3.6.2-1
//= MQTT-3.7.2-1
#[test]
fn a_reason_that_an_acknowledgement_does_not_have_closes() {
    everywhere(|at| {
        let puback = [0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
        let pubrel = [0x00, 0x92];
        for (kind, allowed) in
            [(kind::PUBACK, &puback[..]), (kind::PUBREC, &puback), (kind::PUBREL, &pubrel), (kind::PUBCOMP, &pubrel)]
        {
            for reason in [0x01, 0x04, 0x11, 0x18, 0x81, 0x82, 0x93, 0x10, 0x92, 0xa2, 0xff] {
                if !allowed.contains(&reason) {
                    closes(at, V5, &format!("{kind} {reason:#04x}"), &ack_with(kind, 1, reason, &[]), &[0x81, 0x82]);
                }
            }
            let mut raw = at.client(V5);
            for reason in allowed {
                raw.send(&ack_with(kind, 1, *reason, &[text(id::REASON_STRING, "why"), pair("a", "b")].concat()));
                match kind {
                    // Nothing is known of this id, so its answer says so.
                    kind::PUBREC if *reason < 0x80 => assert_eq!(raw.expect(kind::PUBREL).reason(), 0x92),
                    kind::PUBREC => _ = raw.poll(std::time::Duration::ZERO),
                    kind::PUBREL => assert_eq!(raw.expect(kind::PUBCOMP).reason(), 0x92),
                    _ => raw.ping(),
                }
            }
        }
    });
}

#[test]
fn badly_formed_acknowledgements_close() {
    everywhere(|at| {
        for kind in [kind::PUBACK, kind::PUBREC, kind::PUBREL, kind::PUBCOMP] {
            let first = kind << 4 | if kind == kind::PUBREL { 2 } else { 0 };
            for (what, body) in [
                ("no id", &[][..]),
                ("half an id", &[1]),
                ("a property length beyond the packet", &[0, 1, 0, 9]),
                ("a property of another packet", &[0, 1, 0, 2, 0x01, 1]),
                ("a reason string twice", b"\0\x01\0\x08\x1f\0\x01a\x1f\0\x01a"),
                ("a reason string that is cut", b"\0\x01\0\x04\x1f\0\x09a"),
                ("bytes behind the properties", &[0, 1, 0, 0, 0]),
            ] {
                closes(at, V5, what, &packet(first, body), &[0x81, 0x82]);
            }
            closes(at, harness::wire::V311, "a reason in 3.1.1", &packet(first, &[0, 1, 0]), &[]);
        }
    });
}

//= MQTT-3.1.2-29
//= MQTT-3.4.2-1
//= MQTT-3.4.2-2
//= MQTT-3.4.2-3
//= MQTT-3.5.2-1
//= MQTT-3.5.2-2
//= MQTT-3.5.2-3
//= MQTT-3.6.2-1
//= MQTT-3.6.2-2
//= MQTT-3.6.2-3
//= MQTT-3.7.2-1
//= MQTT-3.7.2-2
//= MQTT-3.7.2-3
#[test]
fn answers_say_their_reason_and_nothing_that_could_be_too_long() {
    everywhere(|at| {
        let (nobody, refused) = (at.topic(), "$SYS/broker/not/allowed");
        let mut raw = at.client(V5);
        for (bytes, expected) in [
            (Publish::new(&nobody, b"x").acked(1, 1).bytes(V5), (kind::PUBACK, 0x10)),
            (Publish::new(refused, b"x").acked(1, 1).bytes(V5), (kind::PUBACK, 0x87)),
            (Publish::new(&nobody, b"x").acked(2, 1).bytes(V5), (kind::PUBREC, 0x10)),
            (Publish::new(refused, b"x").acked(2, 2).bytes(V5), (kind::PUBREC, 0x87)),
            (wire::ack(kind::PUBREL, 1), (kind::PUBCOMP, 0)),
            (wire::ack(kind::PUBREL, 9), (kind::PUBCOMP, 0x92)),
            (wire::ack(kind::PUBREC, 9), (kind::PUBREL, 0x92)),
        ] {
            raw.send(&bytes);
            let answer = raw.next(SHORT).expect("it stays open");
            assert_eq!((answer.kind, answer.reason()), expected);
            assert!(answer.body.len() <= 3, "no properties: {answer:?}");
        }
    });
}

//= MQTT-4.3.2-5
//= MQTT311-4.3.2-2
#[test]
fn after_puback_the_id_names_a_new_message_whatever_dup_says() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut subscriber = at.client(version);
            subscriber.subscribe(&topic, 1);
            let mut publisher = at.client(version);
            for dup in [false, true, true] {
                publisher.send(&Publish { dup, ..Publish::new(&topic, b"x").acked(1, 5) }.bytes(version));
                assert_eq!(publisher.expect(kind::PUBACK).packet_id(), 5);
                subscriber.message();
            }
        }
    });
}

//= MQTT-4.3.3-10
//= MQTT-4.3.3-12
//= MQTT311-4.3.3-2
#[test]
fn a_qos_2_publish_that_comes_again_is_delivered_once_until_its_release() {
    everywhere(|at| {
        for version in BOTH {
            let (own, topic) = (at.id(), at.topic());
            let mut subscriber = at.client(version);
            subscriber.subscribe(&topic, 0);
            let mut publisher = kept(at, version, &own, "unused");
            let publish = Publish::new(&topic, b"once").acked(2, 9);
            publisher.send(&publish.bytes(version));
            assert_eq!(publisher.expect(kind::PUBREC).packet_id(), 9);
            for dup in [true, false] {
                publisher.send(&Publish { dup, ..publish.clone() }.bytes(version));
                assert_eq!(publisher.expect(kind::PUBREC).packet_id(), 9);
            }
            // Nor on another connection of the session.
            drop(publisher);
            let mut publisher = again(at, version, &own);
            publisher.send(&Publish { dup: true, ..publish.clone() }.bytes(version));
            assert_eq!(publisher.expect(kind::PUBREC).packet_id(), 9);
            publisher.send(&wire::ack(kind::PUBREL, 9));
            assert_eq!(publisher.expect(kind::PUBCOMP).packet_id(), 9);
            // Released: the id is free for another message.
            publish_twice_acked(&mut publisher, version, &topic, b"another", 9);
            assert_eq!(subscriber.message().payload, b"once");
            assert_eq!(subscriber.message().payload, b"another");
            subscriber.ping();
        }
    });
}

//= MQTT-4.3.3-9
#[test]
fn after_a_refused_pubrec_the_id_names_a_new_message() {
    everywhere(|at| {
        let topic = at.topic();
        let mut subscriber = at.client(V5);
        subscriber.subscribe(&topic, 0);
        let mut publisher = at.client(V5);
        publisher.send(&Publish::new("$SYS/not/allowed", b"x").acked(2, 4).bytes(V5));
        assert_eq!(publisher.expect(kind::PUBREC).reason(), 0x87);
        publish_twice_acked(&mut publisher, V5, &topic, b"new", 4);
        assert_eq!(subscriber.message().payload, b"new");
    });
}

//= MQTT-3.3.1-1
//= MQTT-4.3.2-3
//= MQTT-4.3.3-3
//= MQTT-4.4.0-1
//= MQTT-4.6.0-1
//= MQTT311-3.3.1-1
//= MQTT311-4.3.2-1
//= MQTT311-4.4.0-1
//= MQTT311-4.6.0-1
#[test]
fn what_was_not_acknowledged_is_sent_again_in_order_with_its_id_and_dup() {
    everywhere(|at| {
        for version in BOTH {
            let (own, topic) = (at.id(), at.topic());
            let mut first = kept(at, version, &own, &topic);
            let mut publisher = at.client(version);
            let mut sent = Vec::new();
            for (number, qos) in (1..).zip([1, 2, 1, 2, 2, 1]) {
                let publish = Publish::new(&topic, &[number as u8]).acked(qos, number).bytes(version);
                publisher.send(&publish);
                publisher.next(SHORT).expect("it is acknowledged");
                let (got, id) = unanswered(&mut first, version);
                assert_eq!((got.qos, got.dup), (qos, false));
                sent.push((got.payload, got.qos, id));
            }
            // The third is acknowledged and is not sent again; nothing is while the connection lasts.
            first.send(&wire::ack(kind::PUBACK, sent[2].2));
            first.ping();
            sent.remove(2);
            for _ in 0..2 {
                drop(first);
                first = again(at, version, &own);
                for expected in &sent {
                    let (got, id) = unanswered(&mut first, version);
                    assert!(got.dup, "it is sent again");
                    assert_eq!(&(got.payload, got.qos, id), expected);
                }
                first.ping();
            }
        }
    });
}

//= MQTT-4.3.3-4
//= MQTT-4.3.3-5
//= MQTT-4.3.3-6
//= MQTT-4.4.0-1
//= MQTT-4.6.0-4
//= MQTT311-4.3.3-1
//= MQTT311-4.4.0-1
//= MQTT311-4.6.0-4
#[test]
fn after_pubrec_only_pubrel_is_sent_and_again_until_pubcomp() {
    everywhere(|at| {
        for version in BOTH {
            let (own, topic) = (at.id(), at.topic());
            let mut first = kept(at, version, &own, &topic);
            let mut publisher = at.client(version);
            let ids: Vec<u16> = (1..=3)
                .map(|number| {
                    publish_twice_acked(&mut publisher, version, &topic, b"x", number);
                    unanswered(&mut first, version).1
                })
                .collect();
            for id in &ids {
                first.send(&wire::ack(kind::PUBREC, *id));
            }
            for id in &ids {
                let pubrel = first.expect(kind::PUBREL);
                assert_eq!((pubrel.packet_id(), pubrel.reason()), (*id, 0));
            }
            drop(first);
            let mut second = again(at, version, &own);
            for id in &ids {
                assert_eq!(second.expect(kind::PUBREL).packet_id(), *id);
            }
            for id in &ids {
                second.send(&wire::ack(kind::PUBCOMP, *id));
            }
            second.ping();
            drop(second);
            again(at, version, &own).ping();
        }
    });
}

//= MQTT-4.4.0-2
//= MQTT-4.3.3-4
#[test]
fn what_a_client_refused_is_not_sent_again() {
    everywhere(|at| {
        let (own, topic) = (at.id(), at.topic());
        let mut first = kept(at, V5, &own, &topic);
        let mut publisher = at.client(V5);
        publisher.publish_acked(&topic, b"one", 1);
        let (_, id) = unanswered(&mut first, V5);
        first.send(&ack_with(kind::PUBACK, id, 0x83, &[]));
        publish_twice_acked(&mut publisher, V5, &topic, b"two", 2);
        let (_, id) = unanswered(&mut first, V5);
        first.send(&ack_with(kind::PUBREC, id, 0x97, &[]));
        // No PUBREL either.
        first.ping();
        drop(first);
        again(at, V5, &own).ping();
    });
}

//= MQTT-4.6.0-2
//= MQTT-4.6.0-3
//= MQTT311-4.6.0-2
//= MQTT311-4.6.0-3
#[test]
fn acknowledgements_come_in_the_order_of_the_publishes() {
    everywhere(|at| {
        for version in BOTH {
            // Some topics have subscribers elsewhere, so some answers have to wait and others need not.
            let base = at.topic();
            let mut subscribers: Vec<Raw> = (0..3)
                .map(|number| {
                    let mut raw = at.client(version);
                    raw.subscribe(&format!("{base}/{number}"), 2);
                    raw
                })
                .collect();
            let mut publisher = at.client(version);
            let mut bytes = Vec::new();
            for id in 1..=60 {
                let (topic, qos) = (format!("{base}/{}", id % 5), 1 + (id % 2) as u8);
                bytes.extend(Publish::new(&topic, b"x").acked(qos, id).bytes(version));
            }
            publisher.send(&bytes);
            for id in 1..=60 {
                let answer = publisher.next(SHORT).expect("it stays open");
                let kind = if id % 2 == 0 { kind::PUBACK } else { kind::PUBREC };
                assert_eq!((answer.kind, answer.packet_id()), (kind, id));
            }
            subscribers.iter_mut().for_each(|raw| _ = raw.message());
        }
    });
}

//= MQTT-4.6.0-5
//= MQTT-4.6.0-6
//= MQTT311-4.6.0-5
//= MQTT311-4.6.0-6
#[test]
fn messages_of_one_client_keep_their_order_for_each_subscriber() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut subscribers = at.subscriber_of_each_qos(version, &topic);
            let mut publisher = at.client(version);
            for qos in [0, 1] {
                for number in 0..30_u8 {
                    publisher.send(&Publish::new(&topic, &[number]).acked(qos, 1 + u16::from(number)).bytes(version));
                }
                for raw in &mut subscribers {
                    for number in 0..30 {
                        assert_eq!(raw.message().payload, [number]);
                    }
                }
            }
        }
    });
}

#[test]
fn a_take_over_in_the_middle_of_qos_2_goes_on_where_it_was() {
    everywhere(|at| {
        for version in BOTH {
            let (own, topic) = (at.id(), at.topic());
            let mut subscriber = at.client(version);
            subscriber.subscribe(&topic, 2);
            let mut first = kept(at, version, &own, &topic);
            // One message on its way to us, one on its way from us.
            first.send(&Publish::new(&topic, b"ours").acked(2, 7).bytes(version));
            let (mut id, mut received) = (0, false);
            while id == 0 || !received {
                let packet = first.next(SHORT).expect("it stays open");
                match packet.kind {
                    kind::PUBREC => received = true,
                    _ => id = packet.publish(version).packet_id.expect("QoS 2 has one"),
                }
            }
            first.send(&wire::ack(kind::PUBREC, id));
            first.expect(kind::PUBREL);
            let mut second = again(at, version, &own);
            assert_eq!(second.expect(kind::PUBREL).packet_id(), id);
            second.send(&wire::ack(kind::PUBCOMP, id));
            second.send(&Publish { dup: true, ..Publish::new(&topic, b"ours").acked(2, 7) }.bytes(version));
            assert_eq!(second.expect(kind::PUBREC).packet_id(), 7);
            second.send(&wire::ack(kind::PUBREL, 7));
            assert_eq!(second.expect(kind::PUBCOMP).packet_id(), 7);
            second.ping();
            assert_eq!(subscriber.message().payload, b"ours");
            subscriber.expect(kind::PUBREL);
            subscriber.ping();
        }
    });
}
