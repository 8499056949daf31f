//! Topic aliases (3.3.2.3.4), in both directions.

use crate::connect::{keep, ten_minutes};
use crate::encoding::closes;
use crate::packets::{Properties, id, two};
use crate::{everywhere, where_little_is_allowed};
use harness::SHORT;
use harness::raw::Raw;
use harness::wire::{Connect, Publish, V5, kind};
use std::collections::BTreeMap;

/// A PUBLISH with an alias.
fn with_alias(topic: &str, alias: u16, payload: &[u8]) -> Vec<u8> {
    Publish { properties: &two(id::TOPIC_ALIAS, alias), ..Publish::new(topic, payload) }.bytes(V5)
}

//= MQTT-3.2.2-17
//= MQTT-3.3.2-8
//= MQTT-3.3.2-9
#[test]
fn alias_0_and_aliases_above_the_maximum_close() {
    where_little_is_allowed(|at| {
        let (_raw, connack) = at.connack(&Connect::new(V5, &at.id()));
        assert_eq!(Properties::of(&connack).number(id::TOPIC_ALIAS_MAXIMUM), Some(3));
        for alias in [0, 4, 65_535] {
            closes(at, V5, "alias", &with_alias("t", alias, b"x"), &[0x94]);
        }
    });
}

//= MQTT-3.2.2-18
#[test]
fn where_no_maximum_is_announced_there_are_no_aliases() {
    let node = crate::setup(2).env("RINGMQ_MQTT__MAX_TOPIC_ALIAS", "0").start();
    let (mut raw, connack) = Raw::connack(node.mqtt(), &Connect::new(V5, ""));
    assert_eq!(Properties::of(&connack).number(id::TOPIC_ALIAS_MAXIMUM).unwrap_or(0), 0);
    raw.send(&with_alias("t", 1, b"x"));
    assert_eq!(raw.closed(SHORT).last().map(harness::wire::Packet::reason), Some(0x94));
}

//= MQTT-3.3.2-12
#[test]
fn every_alias_up_to_the_maximum_stands_for_its_topic() {
    where_little_is_allowed(|at| {
        let topic = at.topic();
        let mut subscriber = at.client(V5);
        (1..=3).for_each(|alias| subscriber.subscribe(&format!("{topic}/{alias}"), 0));
        subscriber.subscribe(&format!("{topic}/new"), 0);
        let mut raw = at.client(V5);
        for alias in 1..=3 {
            raw.send(&with_alias(&format!("{topic}/{alias}"), alias, b"named"));
        }
        for alias in 1..=3 {
            assert_eq!(subscriber.message().topic, format!("{topic}/{alias}"));
            raw.send(&with_alias("", alias, b"alias only"));
        }
        for alias in 1..=3 {
            let got = subscriber.message();
            assert_eq!((got.topic, got.payload), (format!("{topic}/{alias}"), b"alias only".to_vec()));
        }
        // An alias may be given again.
        raw.send(&with_alias(&format!("{topic}/new"), 2, b"x"));
        raw.send(&with_alias("", 2, b"x"));
        for _ in 0..2 {
            assert_eq!(subscriber.message().topic, format!("{topic}/new"));
        }
    });
}

//= MQTT-3.3.2-7
#[test]
fn an_alias_ends_with_its_connection() {
    everywhere(|at| {
        let (own, expiry) = (at.id(), ten_minutes());
        let mut raw = Raw::connect(at.mqtt(), &keep(V5, &own, &expiry));
        raw.send(&with_alias("t", 1, b"x"));
        raw.ping();
        drop(raw);
        let (mut raw, connack) = at.connack(&keep(V5, &own, &expiry));
        assert!(connack.session_present());
        raw.send(&with_alias("", 1, b"x"));
        assert_eq!(raw.closed(SHORT).last().map(harness::wire::Packet::reason), Some(0x82));
    });
}

#[test]
fn an_alias_that_was_never_given_closes() {
    everywhere(|at| closes(at, V5, "an unknown alias", &with_alias("", 1, b"x"), &[0x82, 0x94]));
}

//= MQTT-3.1.2-26
//= MQTT-3.3.2-8
//= MQTT-3.3.2-11
#[test]
fn the_broker_keeps_to_the_alias_maximum_of_a_client() {
    everywhere(|at| {
        let (own, topic, maximum) = (at.id(), at.topic(), two(id::TOPIC_ALIAS_MAXIMUM, 2));
        let mut raw = Raw::connect(at.mqtt(), &Connect { properties: &maximum, ..Connect::new(V5, &own) });
        raw.subscribe(&format!("{topic}/#"), 1);
        let mut publisher = at.client(V5);
        let mut known = BTreeMap::new();
        for round in 0..3 {
            for number in 0..4 {
                let name = format!("{topic}/{number}");
                publisher.publish_acked(&name, b"x", 1);
                let got = raw.message();
                let alias = Properties::read(&got.properties).number(id::TOPIC_ALIAS);
                assert!(alias.is_none_or(|alias| (1..=2).contains(&alias)), "{alias:?}");
                let stands_for = match (got.topic.is_empty(), alias) {
                    (false, Some(alias)) => {
                        known.insert(alias, got.topic.clone());
                        got.topic
                    }
                    (false, None) => got.topic,
                    (true, alias) => known[&alias.expect("neither topic nor alias")].clone(),
                };
                assert_eq!(stands_for, name, "round {round}");
            }
        }
        assert!(!known.is_empty(), "aliases are used where they are allowed");
    });
}

//= MQTT-3.1.2-27
#[test]
fn a_client_that_allows_no_alias_gets_none() {
    everywhere(|at| {
        let zero = two(id::TOPIC_ALIAS_MAXIMUM, 0);
        for properties in [&[][..], &zero] {
            let (own, topic) = (at.id(), at.topic());
            let mut raw = Raw::connect(at.mqtt(), &Connect { properties, ..Connect::new(V5, &own) });
            raw.subscribe(&topic, 0);
            let mut publisher = at.client(V5);
            for number in 1..=3 {
                publisher.send(&with_alias(&topic, 5, b"x"));
                publisher.publish_acked(&topic, b"x", number);
                for _ in 0..2 {
                    let got = raw.message();
                    assert_eq!((got.topic.as_str(), got.properties), (topic.as_str(), vec![]));
                }
            }
        }
        let mut plain = at.client(V5);
        plain.send(&harness::wire::pingreq());
        plain.expect(kind::PINGRESP);
    });
}
