//! What a server may decline (3.2.2.3): announced in CONNACK and enforced.

use crate::encoding::closes;
use crate::packets::{Properties, byte, id, reasons};
use crate::{BOTH, everywhere, where_little_is_allowed};
use harness::raw::Raw;
use harness::wire::{self, Connect, Packet, Publish, V5, V311, kind};
use harness::{LONG, SHORT};
use std::time::{Duration, Instant};

//= MQTT-3.2.2-9
#[test]
fn what_is_declined_is_announced() {
    where_little_is_allowed(|at| {
        let (_raw, connack) = at.connack(&Connect::new(V5, &at.id()));
        let properties = Properties::of(&connack);
        for (property, value) in [
            (id::MAXIMUM_QOS, 1),
            (id::RETAIN_AVAILABLE, 0),
            (id::WILDCARD_AVAILABLE, 0),
            (id::SHARED_AVAILABLE, 0),
            (id::SERVER_KEEP_ALIVE, 2),
            (id::TOPIC_ALIAS_MAXIMUM, 3),
            (id::RECEIVE_MAXIMUM, 4),
            (id::MAXIMUM_PACKET_SIZE, 1024),
        ] {
            assert_eq!(properties.number(property), Some(value), "{property:#04x}");
        }
    });
    everywhere(|at| {
        let (_raw, connack) = at.connack(&Connect::new(V5, &at.id()));
        let properties = Properties::of(&connack);
        for property in [
            id::MAXIMUM_QOS,
            id::RETAIN_AVAILABLE,
            id::WILDCARD_AVAILABLE,
            id::SUBSCRIPTION_IDS_AVAILABLE,
            id::SHARED_AVAILABLE,
            id::SERVER_KEEP_ALIVE,
        ] {
            assert!(properties.number(property).is_none_or(|value| value != 0), "{property:#04x}");
        }
    });
}

//= MQTT-3.2.2-10
#[test]
fn a_subscribe_above_the_maximum_qos_is_granted_what_there_is() {
    where_little_is_allowed(|at| {
        for version in BOTH {
            let mut raw = at.client(version);
            for (asked, granted) in [(0, 0), (1, 1), (2, 1)] {
                raw.send(&wire::subscribe(version, 1, "t", asked));
                assert_eq!(reasons(version, &raw.expect(kind::SUBACK)), [granted]);
            }
        }
    });
}

//= MQTT-3.2.2-11
//= MQTT-3.2.2-14
#[test]
fn a_publish_that_is_declined_closes() {
    where_little_is_allowed(|at| {
        for version in BOTH {
            closes(at, version, "QoS 2", &Publish::new("t", b"x").acked(2, 1).bytes(version), &[0x9b]);
            let retained = Publish { retain: true, ..Publish::new("t", b"x") };
            closes(at, version, "RETAIN", &retained.bytes(version), &[0x9a]);
        }
    });
}

//= MQTT-3.2.2-7
//= MQTT-3.2.2-12
//= MQTT-3.2.2-13
//= MQTT311-3.2.2-6
#[test]
fn a_will_that_is_declined_is_refused() {
    where_little_is_allowed(|at| {
        for (qos, retain, reason) in [(2, false, 0x9b), (0, true, 0x9a)] {
            let own = at.id();
            let will = Some(("t", &b"x"[..], qos, retain));
            let (mut raw, connack) = at.connack(&Connect { will, ..Connect::new(V5, &own) });
            assert_eq!((connack.body[0], connack.reason()), (0, reason));
            assert_eq!(raw.closed(SHORT), []);
            // 3.1.1 has no return code for it.
            let mut raw = at.node.raw();
            raw.send(&Connect { will, ..Connect::new(V311, &own) }.bytes());
            assert_eq!(raw.closed(SHORT), []);
        }
    });
}

//= MQTT311-3.8.3-2
#[test]
fn wildcards_and_shared_subscriptions_that_are_declined_are_refused() {
    where_little_is_allowed(|at| {
        for (filter, reason) in [("a/+", 0xa2), ("#", 0xa2), ("$share/g/t", 0x9e)] {
            for (version, reason) in [(V311, 0x80), (V5, reason)] {
                let mut raw = at.client(version);
                raw.send(&wire::subscribe(version, 1, filter, 0));
                assert_eq!(reasons(version, &raw.expect(kind::SUBACK)), [reason]);
            }
        }
    });
}

//= MQTT-3.1.2-22
//= MQTT-3.2.2-22
#[test]
fn the_servers_keep_alive_holds_for_those_who_were_told() {
    where_little_is_allowed(|at| {
        let own = at.id();
        let since = Instant::now();
        let connect = Connect { keep_alive_s: 600, ..Connect::new(V5, &own) };
        let mut told = Raw::connect(at.mqtt(), &connect);
        let own = at.id();
        let mut not_told = Raw::connect(at.mqtt(), &Connect { keep_alive_s: 600, ..Connect::new(V311, &own) });
        let reasons: Vec<u8> = told.closed(LONG).iter().map(Packet::reason).collect();
        assert_eq!(reasons, [0x8d]);
        assert!(since.elapsed() >= Duration::from_millis(2900), "{:?}", since.elapsed());
        not_told.ping();
    });
}

//= MQTT-3.1.2-28
#[test]
fn response_information_is_not_sent_to_those_who_did_not_ask() {
    everywhere(|at| {
        for properties in [vec![], byte(id::REQUEST_RESPONSE_INFORMATION, 0)] {
            let own = at.id();
            let (_raw, connack) = at.connack(&Connect { properties: &properties, ..Connect::new(V5, &own) });
            assert_eq!(Properties::of(&connack).bytes(id::RESPONSE_INFORMATION), None);
        }
        // Who asks need not get any.
        let (own, asked) = (at.id(), byte(id::REQUEST_RESPONSE_INFORMATION, 1));
        let (mut raw, connack) = at.connack(&Connect { properties: &asked, ..Connect::new(V5, &own) });
        assert_eq!(connack.reason(), 0);
        raw.ping();
        for property in [id::REQUEST_RESPONSE_INFORMATION, id::REQUEST_PROBLEM_INFORMATION] {
            let two = byte(property, 2);
            let (_raw, connack) = at.connack(&Connect { properties: &two, ..Connect::new(V5, &own) });
            assert_eq!(connack.reason(), 0x82);
        }
    });
}

//= MQTT-3.1.2-29
#[test]
fn a_client_that_wants_no_problem_information_gets_it_in_disconnect_at_most() {
    everywhere(|at| {
        let (own, none) = (at.id(), byte(id::REQUEST_PROBLEM_INFORMATION, 0));
        let mut raw = Raw::connect(at.mqtt(), &Connect { properties: &none, ..Connect::new(V5, &own) });
        raw.send(&Publish::new("$SYS/not/allowed", b"x").acked(1, 1).bytes(V5));
        assert_eq!(raw.expect(kind::PUBACK).body, [0, 1, 0x87]);
        raw.send(&wire::subscribe(V5, 1, "a/#/b", 0));
        assert_eq!(raw.expect(kind::SUBACK).body, [0, 1, 0, 0x8f]);
    });
}
