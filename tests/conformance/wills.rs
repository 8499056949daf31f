//! Wills (3.1.2.5, 3.1.3.2), the end of sessions (3.1.2.11.2, 4.1) and DISCONNECT (3.14).

use crate::connect::{keep, ten_minutes};
use crate::encoding::closes;
use crate::packets::{Properties, disconnect_with, four, id, pair, text};
use crate::{At, BOTH, everywhere};
use harness::raw::Raw;
use harness::wire::{self, Connect, Publish, V5, V311, kind, packet};
use harness::{LONG, MOMENT, SHORT, within};
use std::time::{Duration, Instant};

/// A client with a will of QoS 1.
#[track_caller]
fn mortal(at: &At, version: u8, own: &str, topic: &str, properties: &[u8], delay: &[u8]) -> Raw {
    let will = Some((topic, &b"last words"[..], 1, false));
    let connect = Connect { will, properties, will_properties: delay, ..Connect::new(version, own) };
    Raw::connect(at.mqtt(), &connect)
}

/// A subscriber of a topic.
#[track_caller]
fn heir(at: &At, version: u8, topic: &str) -> Raw {
    let mut raw = at.client(version);
    raw.subscribe(topic, 2);
    raw
}

/// Nothing has come, and does not for a moment.
#[track_caller]
fn silent(heir: &mut Raw) {
    heir.ping();
    assert!(heir.poll(MOMENT).is_err(), "no will was due");
}

//= MQTT-3.1.2-7
//= MQTT-3.1.2-8
//= MQTT-3.1.2-14
//= MQTT311-3.1.2-8
//= MQTT311-3.1.2-16
#[test]
fn a_will_is_published_when_the_connection_ends_without_disconnect() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut heir = heir(at, version, &topic);
            // It breaks; it breaks the protocol; it is taken over; it is silent.
            drop(mortal(at, version, &at.id(), &topic, &[], &[]));
            assert_eq!(heir.message().payload, b"last words");
            let mut rude = mortal(at, version, &at.id(), &topic, &[], &[]);
            rude.send(&packet(0, &[]));
            let got = heir.message();
            assert_eq!((got.payload.as_slice(), got.qos, got.retain), (&b"last words"[..], 1, false));
            let own = at.id();
            let _twice =
                [mortal(at, version, &own, &topic, &[], &[]), Raw::connect(at.mqtt(), &Connect::new(version, &own))];
            assert_eq!(heir.message().payload, b"last words");
            let (own, will) = (at.id(), Some((topic.as_str(), &b"last words"[..], 1, false)));
            let _silent = Raw::connect(at.mqtt(), &Connect { keep_alive_s: 1, will, ..Connect::new(version, &own) });
            assert_eq!(heir.message().payload, b"last words");
            // Nothing of it is retained.
            let mut late = at.client(version);
            late.subscribe(&topic, 0);
            silent(&mut late);
        }
    });
}

//= MQTT-3.1.2-15
//= MQTT311-3.1.2-17
#[test]
fn a_retained_will_is_retained() {
    everywhere(|at| {
        for version in BOTH {
            let (own, topic) = (at.id(), at.topic());
            let mut live = heir(at, version, &topic);
            let will = Some((topic.as_str(), &b"last words"[..], 2, true));
            drop(Raw::connect(at.mqtt(), &Connect { will, ..Connect::new(version, &own) }));
            let got = live.message();
            assert_eq!((got.qos, got.retain), (2, false));
            let late = within(SHORT, "the will is retained", || {
                let mut late = at.client(version);
                late.subscribe(&topic, 0);
                late.poll(MOMENT).ok().flatten()
            });
            let got = late.publish(version);
            assert_eq!((got.payload.as_slice(), got.retain), (&b"last words"[..], true));
        }
    });
}

//= MQTT-3.1.2-10
//= MQTT-3.14.4-3
//= MQTT311-3.1.2-10
//= MQTT311-3.14.4-3
#[test]
fn a_normal_disconnect_discards_the_will_for_good() {
    everywhere(|at| {
        for version in BOTH {
            let (own, topic, expiry) = (at.id(), at.topic(), ten_minutes());
            let mut heir = heir(at, version, &topic);
            let properties = if version == V5 { &expiry[..] } else { &[] };
            let mut raw = mortal(at, version, &own, &topic, properties, &[]);
            raw.send(&wire::disconnect());
            assert_eq!(raw.closed(SHORT), []);
            silent(&mut heir);
            // Nor does a later connection of the session find it; one that was published is gone as well.
            drop(Raw::connect(at.mqtt(), &keep(version, &own, &expiry)));
            silent(&mut heir);
            drop(mortal(at, version, &own, &topic, properties, &[]));
            assert_eq!(heir.message().payload, b"last words");
            drop(Raw::connect(at.mqtt(), &keep(version, &own, &expiry)));
            silent(&mut heir);
        }
    });
}

//= MQTT311-3.1.2-12
#[test]
fn without_a_will_nothing_is_published() {
    everywhere(|at| {
        for version in BOTH {
            let (own, topic) = (at.id(), at.topic());
            let mut heir = heir(at, version, &topic);
            // The will of one connection is not that of the next one.
            let mut raw = mortal(at, version, &own, &topic, &[], &[]);
            raw.send(&wire::disconnect());
            raw.closed(SHORT);
            drop(at.client(version));
            let mut rude = Raw::connect(at.mqtt(), &Connect::new(version, &own));
            rude.send(&packet(0, &[]));
            rude.closed(SHORT);
            silent(&mut heir);
        }
    });
}

//= MQTT-3.1.2-8
#[test]
fn any_other_disconnect_publishes_the_will() {
    everywhere(|at| {
        let topic = at.topic();
        let mut heir = heir(at, V5, &topic);
        for reason in [0x04, 0x80, 0x93] {
            let mut raw = mortal(at, V5, &at.id(), &topic, &[], &[]);
            raw.send(&disconnect_with(reason, &[text(id::REASON_STRING, "why"), pair("a", "b")].concat()));
            assert_eq!(raw.closed(SHORT), []);
            assert_eq!(heir.message().payload, b"last words");
        }
    });
}

//= MQTT-3.1.2-8
//= MQTT-3.1.3-9
#[test]
fn a_will_with_a_delay_waits_for_it_or_for_the_end_of_its_session() {
    everywhere(|at| {
        let topic = at.topic();
        let mut heir = heir(at, V5, &topic);
        let (expiry, second, minute) = (ten_minutes(), four(id::WILL_DELAY, 1), four(id::WILL_DELAY, 60));
        // A delay within the session's life.
        let since = Instant::now();
        drop(mortal(at, V5, &at.id(), &topic, &expiry, &second));
        heir.message();
        assert!(since.elapsed() >= Duration::from_millis(900), "{:?}", since.elapsed());
        // The session ends first: at once, after its expiry, by DISCONNECT, by a clean start.
        drop(mortal(at, V5, &at.id(), &topic, &[], &minute));
        heir.message();
        let since = Instant::now();
        drop(mortal(at, V5, &at.id(), &topic, &four(id::SESSION_EXPIRY, 1), &minute));
        heir.message();
        assert!(since.elapsed() >= Duration::from_millis(900), "{:?}", since.elapsed());
        let mut raw = mortal(at, V5, &at.id(), &topic, &expiry, &minute);
        raw.send(&disconnect_with(0x04, &four(id::SESSION_EXPIRY, 0)));
        heir.message();
        let own = at.id();
        drop(mortal(at, V5, &own, &topic, &expiry, &minute));
        silent(&mut heir);
        let _new = Raw::connect(at.mqtt(), &Connect::new(V5, &own));
        heir.message();
        // Back in time: there is no will any more.
        let own = at.id();
        drop(mortal(at, V5, &own, &topic, &expiry, &four(id::WILL_DELAY, 3)));
        let mut back = Raw::connect(at.mqtt(), &keep(V5, &own, &expiry));
        // Not a bound but the subject: the time of the delay passes.
        assert!(heir.poll(Duration::from_millis(3500)).is_err(), "the client came back in time");
        back.ping();
    });
}

//= MQTT-4.1.0-1
//= MQTT311-4.1.0-2
#[test]
fn a_session_lasts_while_its_connection_does() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            // An expiry of 0, and 3.1.1 with a clean session: the connection keeps it alive all the same.
            let mut raw = at.client(version);
            raw.subscribe(&topic, 2);
            let mut publisher = at.client(version);
            publisher.publish_acked(&topic, b"one", 1);
            let id = raw.expect(kind::PUBLISH).publish(version).packet_id.expect("QoS 1 has one");
            raw.ping();
            publisher.publish_acked(&topic, b"two", 2);
            assert_eq!(raw.message().payload, b"two");
            raw.send(&wire::ack(kind::PUBACK, id));
            raw.ping();
        }
    });
}

//= MQTT-4.1.0-2
//= MQTT-3.1.2-23
#[test]
fn a_session_ends_when_its_expiry_has_passed_and_not_before() {
    everywhere(|at| {
        for (seconds, wait, present) in [(0, 0, false), (1, 1600, false), (600, 1600, true), (u32::MAX, 1600, true)] {
            let own = at.id();
            let expiry = four(id::SESSION_EXPIRY, seconds);
            drop(Raw::connect(at.mqtt(), &keep(V5, &own, &expiry)));
            // Not a bound but the subject: the time that passes.
            std::thread::sleep(Duration::from_millis(wait));
            let (_raw, connack) = at.connack(&keep(V5, &own, &expiry));
            assert_eq!(connack.session_present(), present, "{seconds} s, after {wait} ms");
        }
    });
}

#[test]
fn disconnect_may_change_the_expiry_but_not_from_0() {
    everywhere(|at| {
        let (own, expiry) = (at.id(), ten_minutes());
        let mut raw = Raw::connect(at.mqtt(), &keep(V5, &own, &expiry));
        raw.send(&disconnect_with(0, &four(id::SESSION_EXPIRY, 0)));
        raw.closed(SHORT);
        let (mut raw, connack) = at.connack(&keep(V5, &own, &[]));
        assert!(!connack.session_present(), "DISCONNECT ended it");
        raw.send(&disconnect_with(0, &expiry));
        assert_eq!(raw.closed(SHORT).last().map(wire::Packet::reason), Some(0x82));
    });
}

//= MQTT-3.14.2-1
#[test]
fn a_disconnect_with_a_reason_that_it_does_not_have_closes_as_an_error() {
    everywhere(|at| {
        for reason in [0x01, 0x10, 0x18, 0x84, 0x85, 0x91, 0x92, 0xff] {
            closes(at, V5, "DISCONNECT", &disconnect_with(reason, &[]), &[0x81, 0x82]);
        }
        closes(at, V311, "DISCONNECT with a reason in 3.1.1", &packet(0xe0, &[0]), &[]);
    });
}

//= MQTT-3.14.2-1
//= MQTT-3.14.2-2
//= MQTT-3.14.4-1
//= MQTT-3.14.4-2
//= MQTT-4.13.2-1
#[test]
fn after_a_disconnect_of_the_broker_comes_nothing_but_the_end() {
    everywhere(|at| {
        let (own, topic, expiry) = (at.id(), at.topic(), ten_minutes());
        let mut raw = Raw::connect(at.mqtt(), &keep(V5, &own, &expiry));
        raw.subscribe(&topic, 0);
        let mut bytes = packet(0xd0, &[]);
        for _ in 0..20 {
            bytes.extend(Publish::new(&topic, b"too late").bytes(V5));
            bytes.extend(wire::pingreq());
        }
        raw.send(&bytes);
        let packets = raw.closed(SHORT);
        assert_eq!(packets.len(), 1, "{packets:?}");
        assert_eq!((packets[0].kind, packets[0].reason()), (kind::DISCONNECT, 0x82));
        assert_eq!(Properties::of(&packets[0]).number(id::SESSION_EXPIRY), None);
    });
}

#[test]
fn what_follows_a_disconnect_of_the_client_is_not_looked_at() {
    everywhere(|at| {
        for version in BOTH {
            let topic = at.topic();
            let mut witness = heir(at, version, &topic);
            let mut raw = at.client(version);
            raw.send(&[wire::disconnect(), Publish::new(&topic, b"late").bytes(version)].concat());
            assert_eq!(raw.closed(SHORT), []);
            silent(&mut witness);
        }
    });
}

#[test]
fn a_node_that_stops_says_where_to_go() {
    for (elsewhere, expected) in [(None, 0x8b), (Some("other.example:1883"), 0x9c)] {
        let setup = crate::setup(2);
        let mut node = match elsewhere {
            Some(elsewhere) => setup.env("RINGMQ_MQTT__SERVER_REFERENCE", elsewhere),
            None => setup,
        }
        .start();
        let mut new = Raw::connect(node.mqtt(), &Connect::new(V5, "new"));
        let mut old = Raw::connect(node.mqtt(), &Connect::new(V311, "old"));
        let size = four(id::MAXIMUM_PACKET_SIZE, 24);
        let mut small = Raw::connect(node.mqtt(), &Connect { properties: &size, ..Connect::new(V5, "small") });
        node.terminate(LONG);
        let told = new.closed(SHORT).pop().expect("it is told");
        assert_eq!((told.kind, told.reason()), (kind::DISCONNECT, expected));
        let reference = Properties::of(&told).bytes(id::SERVER_REFERENCE);
        assert_eq!(reference.as_deref(), elsewhere.map(str::as_bytes));
        assert_eq!(small.closed(SHORT).pop().map(|told| told.reason()), Some(0x8b), "the name does not fit");
        assert_eq!(old.closed(SHORT), []);
    }
}

//= MQTT-3.12.4-1
//= MQTT311-3.12.4-1
#[test]
fn every_ping_is_answered() {
    everywhere(|at| {
        for version in BOTH {
            let mut raw = at.client(version);
            raw.send(&wire::pingreq().repeat(50));
            (0..50).for_each(|_| assert!(raw.expect(kind::PINGRESP).body.is_empty()));
        }
    });
}

//= MQTT-3.15.2-1
//= MQTT-4.12.0-7
#[test]
fn auth_that_nobody_agreed_on_closes() {
    everywhere(|at| {
        let method = text(id::AUTHENTICATION_METHOD, "any");
        for (what, reason) in [("continue", 0x18), ("again", 0x19), ("no reason of AUTH", 0x80), ("success", 0)] {
            let bytes = packet(0xf0, &[&[reason, method.len() as u8][..], &method].concat());
            closes(at, V5, what, &bytes, &[0x81, 0x82, 0x8c]);
        }
    });
}

#[test]
fn packets_that_only_a_server_sends_close() {
    everywhere(|at| {
        for version in BOTH {
            let suback = if version == V5 { &[0, 1, 0, 0][..] } else { &[0, 1, 0] };
            let connack = if version == V5 { &[0, 0, 0][..] } else { &[0, 0] };
            let unsuback = if version == V5 { &[0, 1, 0, 0][..] } else { &[0, 1] };
            for (first, body) in [(0x20, connack), (0x90, suback), (0xb0, unsuback), (0xd0, &[])] {
                closes(at, version, &format!("{first:#04x}"), &packet(first, body), &[0x82]);
            }
        }
    });
}
