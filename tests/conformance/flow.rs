//! Flow control (3.3.4, 4.9) and packet sizes (3.1.2.11.4), as each side asks for them.

use crate::connect::{keep, ten_minutes};
use crate::packets::{Properties, four, id, subscribe_to, text, two};
use crate::{everywhere, where_little_is_allowed};
use harness::SHORT;
use harness::raw::Raw;
use harness::wire::{self, Connect, Packet, Publish, V5, V311, kind};

//= MQTT-3.3.4-9
//= MQTT-3.3.4-10
//= MQTT-4.9.0-1
//= MQTT-4.9.0-2
//= MQTT-4.9.0-3
#[test]
fn the_broker_keeps_to_the_receive_maximum_of_a_client_and_delays_nothing_else() {
    everywhere(|at| {
        let (own, topic, maximum) = (at.id(), at.topic(), two(id::RECEIVE_MAXIMUM, 2));
        let mut raw = Raw::connect(at.mqtt(), &Connect { properties: &maximum, ..Connect::new(V5, &own) });
        raw.subscribe(&topic, 2);
        let mut publisher = at.client(V5);
        for (number, qos) in (1..).zip([1, 2, 1, 2, 1]) {
            publisher.send(&Publish::new(&topic, &[number as u8]).acked(qos, number).bytes(V5));
            publisher.next(SHORT).expect("it is acknowledged");
        }
        let ids = [1, 2].map(|number| {
            let got = raw.expect(kind::PUBLISH).publish(V5);
            assert_eq!(got.payload, [number]);
            got.packet_id.expect("QoS 1 and 2 have one")
        });
        // Every other packet has its answer while the quota is 0.
        raw.ping();
        raw.subscribe("another", 1);
        raw.send(&wire::unsubscribe(V5, 2, "another"));
        raw.expect(kind::UNSUBACK);
        raw.publish_acked("nobody/listens", b"x", 9);
        // PUBREC does not free the quota of a QoS 2 message, PUBCOMP does.
        raw.send(&wire::ack(kind::PUBREC, ids[1]));
        raw.expect(kind::PUBREL);
        raw.ping();
        raw.send(&wire::ack(kind::PUBCOMP, ids[1]));
        assert_eq!(raw.expect(kind::PUBLISH).publish(V5).payload, [3]);
        raw.ping();
        // PUBACK does, and so does a refusal.
        raw.send(&wire::ack(kind::PUBACK, ids[0]));
        let fourth = raw.expect(kind::PUBLISH).publish(V5);
        assert_eq!((fourth.payload, fourth.qos), (vec![4], 2));
        raw.ping();
        raw.send(&crate::packets::ack_with(kind::PUBREC, fourth.packet_id.expect("QoS 2 has one"), 0x83, &[]));
        assert_eq!(raw.expect(kind::PUBLISH).publish(V5).payload, [5]);
    });
}

//= MQTT-3.3.4-10
//= MQTT-4.9.0-2
//= MQTT-4.9.0-3
#[test]
fn a_smaller_receive_maximum_holds_back_publishes_and_not_their_releases() {
    everywhere(|at| {
        let (own, topic, expiry) = (at.id(), at.topic(), ten_minutes());
        let mut first = Raw::connect(at.mqtt(), &keep(V5, &own, &expiry));
        first.subscribe(&topic, 2);
        let mut publisher = at.client(V5);
        let mut ids = Vec::new();
        for (number, qos) in (1..).zip([1, 1, 2, 2]) {
            publisher.send(&Publish::new(&topic, &[number as u8]).acked(qos, number).bytes(V5));
            publisher.next(SHORT).expect("it is acknowledged");
            ids.push(first.expect(kind::PUBLISH).publish(V5).packet_id.expect("QoS 1 and 2 have one"));
        }
        for id in &ids[2..] {
            first.send(&wire::ack(kind::PUBREC, *id));
            first.expect(kind::PUBREL);
        }
        drop(first);
        let properties = [expiry, two(id::RECEIVE_MAXIMUM, 1)].concat();
        let mut second = Raw::connect(at.mqtt(), &keep(V5, &own, &properties));
        let came: Vec<Packet> = (0..3).map(|_| second.next(SHORT).expect("it stays open")).collect();
        let released: Vec<u16> = came.iter().filter(|p| p.kind == kind::PUBREL).map(Packet::packet_id).collect();
        assert_eq!(released, ids[2..], "{came:?}");
        let published: Vec<&Packet> = came.iter().filter(|packet| packet.kind == kind::PUBLISH).collect();
        assert_eq!(published.len(), 1, "{came:?}");
        assert_eq!(published[0].publish(V5).payload, [1]);
        // The second one is held back until the first is acknowledged.
        second.ping();
        released.iter().for_each(|id| second.send(&wire::ack(kind::PUBCOMP, *id)));
        second.send(&wire::ack(kind::PUBACK, ids[0]));
        assert_eq!(second.expect(kind::PUBLISH).publish(V5).payload, [2]);
    });
}

//= MQTT-3.3.4-7
#[test]
fn a_client_that_exceeds_our_receive_maximum_is_closed_with_0x93() {
    where_little_is_allowed(|at| {
        let (_raw, connack) = at.connack(&Connect::new(V5, &at.id()));
        assert_eq!(Properties::of(&connack).number(id::RECEIVE_MAXIMUM), Some(4));
        // Here QoS 2 is not allowed, so it takes the node that allows it.
    });
    let node = crate::setup(2).env("RINGMQ_MQTT__RECEIVE_MAXIMUM", "4").start();
    let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, "greedy"));
    for id in 1..=4 {
        raw.send(&Publish::new("t", b"x").acked(2, id).bytes(V5));
        raw.expect(kind::PUBREC);
    }
    // Another message at QoS 1 is beyond the quota too; one that was released is not.
    raw.send(&wire::ack(kind::PUBREL, 1));
    raw.expect(kind::PUBCOMP);
    raw.publish_acked("t", b"x", 1);
    raw.send(&Publish::new("t", b"x").acked(2, 5).bytes(V5));
    raw.expect(kind::PUBREC);
    raw.send(&Publish::new("t", b"x").acked(2, 6).bytes(V5));
    let told: Vec<u8> = raw.closed(SHORT).iter().map(Packet::reason).collect();
    assert_eq!(told, [0x93]);
}

//= MQTT-3.1.2-24
//= MQTT-3.1.2-25
#[test]
fn what_is_too_large_for_a_client_counts_as_sent() {
    everywhere(|at| {
        let (own, topic, expiry) = (at.id(), at.topic(), ten_minutes());
        let properties = [expiry, four(id::MAXIMUM_PACKET_SIZE, 100)].concat();
        let connect = keep(V5, &own, &properties);
        let mut online = Some(Raw::connect(at.mqtt(), &connect));
        online.iter_mut().for_each(|raw| raw.subscribe(&topic, 2));
        let mut publisher = at.client(V5);
        let overhead = 2 + 2 + topic.len() + 2 + 1;
        for round in 0..2 {
            // First to a client that is there, then to one that is away.
            let raw = online.take().filter(|_| round == 0);
            for qos in 0..=2 {
                publisher.send(&Publish::new(&topic, &[0; 200]).acked(qos, 10).bytes(V5));
            }
            for (id, length) in [(20, 101 - overhead), (21, 100 - overhead)] {
                publisher.send(&Publish::new(&topic, &vec![round; length]).acked(1, id).bytes(V5));
            }
            (0..4).for_each(|_| _ = publisher.next(SHORT).expect("it is acknowledged"));
            publisher.send(&wire::ack(kind::PUBREL, 10));
            publisher.expect(kind::PUBCOMP);
            let mut raw = raw.unwrap_or_else(|| Raw::connect(at.mqtt(), &connect));
            let got = raw.message();
            assert_eq!(got.payload, vec![round; 100 - overhead], "100 bytes are allowed, 101 are not");
            raw.ping();
            online = Some(raw);
        }
    });
}

//= MQTT-3.1.2-24
#[test]
fn answers_too_are_never_larger_than_the_client_takes() {
    everywhere(|at| {
        let (own, size) = (at.id(), four(id::MAXIMUM_PACKET_SIZE, 40));
        let mut raw = Raw::connect(at.mqtt(), &Connect { properties: &size, ..Connect::new(V5, &own) });
        let filters: Vec<(&str, u8)> = (0..60).map(|_| ("t", 0)).collect();
        raw.send(&subscribe_to(V5, 1, &[], &filters));
        // It cannot be answered in 40 bytes, and it cannot stay unanswered.
        let told: Vec<(u8, u8)> = raw.closed(SHORT).iter().map(|packet| (packet.kind, packet.reason())).collect();
        assert_eq!(told, [(kind::DISCONNECT, 0x95)]);
        // A client that does not take a CONNACK gets none.
        let tiny = four(id::MAXIMUM_PACKET_SIZE, 4);
        let mut raw = at.node.raw();
        raw.send(&Connect { properties: &tiny, ..Connect::new(V5, &own) }.bytes());
        assert_eq!(raw.closed(SHORT), []);
    });
}

//= MQTT-3.2.2-15
#[test]
fn a_packet_above_our_maximum_closes_by_its_length_alone() {
    where_little_is_allowed(|at| {
        let (mut raw, connack) = at.connack(&Connect::new(V5, &at.id()));
        assert_eq!(Properties::of(&connack).number(id::MAXIMUM_PACKET_SIZE), Some(1024));
        let fits = vec![0; 1024 - 3 - 3 - 1];
        raw.send(&Publish::new("t", &fits).bytes(V5));
        raw.ping();
        let too_large = Publish::new("t", &[&fits[..], &[0]].concat()).bytes(V5);
        raw.send(&too_large[..3]);
        let told: Vec<u8> = raw.closed(SHORT).iter().map(Packet::reason).collect();
        assert_eq!(told, [0x95]);
        let mut old = at.client(V311);
        old.send(&[0x30, 0xff, 0xff, 0x7f]);
        assert_eq!(old.closed(SHORT), []);
    });
}

//= MQTT-3.2.2-19
//= MQTT-3.2.2-20
//= MQTT-3.14.2-3
//= MQTT-3.14.2-4
#[test]
fn reasons_in_words_are_left_out_where_they_would_not_fit() {
    everywhere(|at| {
        // One connection that is refused and one that is closed, without a limit and with one.
        for limit in [None, Some(20)] {
            let size = limit.map_or(vec![], |bytes| four(id::MAXIMUM_PACKET_SIZE, bytes));
            let own = at.id();
            let method = [&size[..], &text(id::AUTHENTICATION_METHOD, "no-such-method")].concat();
            let (_raw, refused) = at.connack(&Connect { properties: &method, ..Connect::new(V5, &own) });
            let (mut raw, _) = at.connack(&Connect { properties: &size, ..Connect::new(V5, &own) });
            raw.send(&wire::packet(0xd0, &[]));
            let closed = raw.closed(SHORT).pop().expect("it is told why");
            for packet in [refused, closed] {
                assert!(packet.reason() >= 0x80, "{packet:?}");
                let words = Properties::of(&packet).bytes(id::REASON_STRING);
                assert_eq!(words.is_some(), limit.is_none(), "{limit:?}: {words:?}");
                assert!(limit.is_none_or(|bytes| packet.body.len() + 2 <= bytes as usize), "{packet:?}");
                assert_eq!(Properties::of(&packet).all(id::USER_PROPERTY), []);
            }
        }
    });
}

#[test]
fn a_limit_of_0_closes() {
    everywhere(|at| {
        for properties in [two(id::RECEIVE_MAXIMUM, 0), four(id::MAXIMUM_PACKET_SIZE, 0)] {
            let own = at.id();
            let (mut raw, connack) = at.connack(&Connect { properties: &properties, ..Connect::new(V5, &own) });
            assert_eq!(connack.reason(), 0x82);
            raw.closed(SHORT);
        }
    });
}
