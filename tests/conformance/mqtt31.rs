//! MQTT 3.1: the versions before the standard, `MQIsdp` and level 3.

use crate::{V31, everywhere};
use harness::SHORT;
use harness::raw::Raw;
use harness::wire::{self, Connect, Publish, V5, V311, kind};

#[test]
fn a_3_1_client_is_served_at_every_qos_and_beside_the_other_versions() {
    everywhere(|at| {
        let topic = at.topic();
        let mut old = at.client(V31);
        old.subscribe(&topic, 2);
        let mut new = at.client(V5);
        new.subscribe(&topic, 2);
        for publisher in [V31, V311, V5] {
            let mut raw = at.client(publisher);
            for qos in 0..=2 {
                raw.send(&Publish::new(&topic, b"x").acked(qos, 1).bytes(publisher));
                match qos {
                    0 => raw.ping(),
                    1 => _ = raw.expect(kind::PUBACK),
                    _ => {
                        raw.expect(kind::PUBREC);
                        raw.send(&wire::ack(kind::PUBREL, 1));
                        raw.expect(kind::PUBCOMP);
                    }
                }
                for raw in [&mut old, &mut new] {
                    assert_eq!(raw.message().qos, qos);
                    if qos == 2 {
                        let id = raw.expect(kind::PUBREL).packet_id();
                        raw.send(&wire::ack(kind::PUBCOMP, id));
                    }
                }
            }
        }
        old.send(&wire::unsubscribe(V31, 2, &topic));
        assert_eq!(old.expect(kind::UNSUBACK).body, [0, 2]);
        old.ping();
        old.send(&wire::disconnect());
        assert_eq!(old.closed(SHORT), []);
    });
}

#[test]
fn connack_of_3_1_has_no_session_present() {
    everywhere(|at| {
        let own = at.id();
        for _ in 0..2 {
            let (mut raw, connack) = at.connack(&Connect { clean: false, ..Connect::new(V31, &own) });
            assert_eq!(connack.body, [0, 0], "its first byte is reserved");
            raw.ping();
        }
    });
}

#[test]
fn a_session_of_3_1_is_kept_and_sent_again() {
    everywhere(|at| {
        let (own, topic) = (at.id(), at.topic());
        let connect = Connect { clean: false, ..Connect::new(V31, &own) };
        let mut first = Raw::connect(at.mqtt(), &connect);
        first.subscribe(&topic, 1);
        let mut publisher = at.client(V31);
        publisher.publish_acked(&topic, b"x", 1);
        let id = first.expect(kind::PUBLISH).publish(V31).packet_id;
        drop(first);
        let mut second = Raw::connect(at.mqtt(), &connect);
        let got = second.message();
        assert_eq!((got.dup, got.packet_id), (true, id));
    });
}

#[test]
fn packets_that_3_1_lets_carry_dup_may_carry_it() {
    everywhere(|at| {
        let (mut raw, topic) = (at.client(V31), at.topic());
        let mut subscribe = wire::subscribe(V31, 1, &topic, 1);
        subscribe[0] |= 8;
        raw.send(&subscribe);
        raw.expect(kind::SUBACK);
        raw.send(&Publish::new("nobody", b"x").acked(2, 1).bytes(V31));
        raw.expect(kind::PUBREC);
        let mut pubrel = wire::ack(kind::PUBREL, 1);
        pubrel[0] |= 8;
        raw.send(&pubrel);
        raw.expect(kind::PUBCOMP);
        let mut unsubscribe = wire::unsubscribe(V31, 2, &topic);
        unsubscribe[0] |= 8;
        raw.send(&unsubscribe);
        raw.expect(kind::UNSUBACK);
    });
}

#[test]
fn an_empty_id_is_refused_with_identifier_rejected() {
    everywhere(|at| {
        let (mut raw, connack) = at.connack(&Connect::new(V31, ""));
        assert_eq!(connack.body, [0, 2]);
        assert_eq!(raw.closed(SHORT), []);
    });
}

#[test]
fn names_and_levels_do_not_mix() {
    everywhere(|at| {
        let own = at.id();
        let mut bytes = Connect::new(V31, &own).bytes();
        bytes[10] = 4;
        let packets = crate::connect::refused(at, &bytes);
        assert_eq!(packets.iter().map(|packet| packet.reason()).collect::<Vec<_>>(), [1]);
    });
}
