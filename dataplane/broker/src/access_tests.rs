//! Who comes in and what they may do, told as short scripts.

use alloc::{boxed::Box, sync::Arc, vec::Vec};

use mqtt::{
    codec::{Connect, Will, encode},
    types::{Qos, Reason, Version},
};

use crate::{
    access::{Principal, Rules, parse_emqx, parse_mosquitto},
    admission::{Policy, Verdict},
    counters::Counter,
    rig::{Rig, id},
};

const Q0: Qos = Qos::AtMostOnce;
const Q1: Qos = Qos::AtLeastOnce;
const Q2: Qos = Qos::ExactlyOnce;

fn rules(text: &str) -> Option<Arc<Rules>> {
    let rules = if text.starts_with('{') { parse_emqx(text) } else { parse_mosquitto(text) };
    Some(Arc::new(Rules::new(rules.expect("rules"), false, 1)))
}

/// Nobody is asked, and these rules hold.
fn ruled(number: u64, text: &str) -> Policy {
    Policy { number, rules: rules(text), ..Policy::default() }
}

/// Somebody is asked, and everybody may do everything.
fn asking(number: u64) -> Policy {
    let mut policy = Policy { number, asks: true, ..Policy::default() };
    policy.credentials.insert(Box::from("alice"), number);
    policy
}

fn user(name: &str, credential: u64) -> Verdict {
    Ok(Principal { proven: true, credential, ..Principal::unproven(Some(name)) })
}

fn named(name: &'static str) -> impl FnOnce(&mut Connect<'_>) {
    move |connect| connect.username = Some(name)
}

fn persistent(name: &'static str, clean_start: bool) -> impl FnOnce(&mut Connect<'_>) {
    move |connect| {
        connect.username = Some(name);
        connect.clean_start = clean_start;
        connect.properties.session_expiry_s = Some(1000);
    }
}

fn with_will(name: &'static str, topic: &'static str) -> impl FnOnce(&mut Connect<'_>) {
    move |connect| {
        let properties = mqtt::codec::PublishProperties::default();
        let will = Will { qos: Q1, retain: false, topic, payload: b"gone", delay_s: 0, properties };
        (connect.username, connect.will) = (Some(name), Some(will));
    }
}

#[test]
fn a_client_that_must_be_proven_waits_and_what_it_sent_follows() {
    let mut rig = Rig::new(2);
    rig.policy(asking(1));
    for (shard, name) in [(0, "here"), (1, "there")] {
        let home = rig.id_on(shard, name);
        let client = rig.connect_with(&home, named("alice"));
        let mut bytes = Vec::new();
        encode::pingreq(&mut bytes);
        rig.send(client, &bytes);
        assert_eq!(rig.asked(), ["alice"]);
        assert!(rig.heard(client).is_empty(), "nothing is said before the verdict");
        rig.answer(1, |name| user(name, 1));
        assert_eq!(rig.heard(client), ["connack Success false", "pingresp"]);
    }
    assert_eq!(rig.count(Counter::authentication_allowed), 2);
}

#[test]
fn a_refusal_is_told_in_the_words_of_the_version() {
    let mut rig = Rig::new(1);
    rig.policy(asking(1));
    for (version, reason, said) in [
        (Version::V5, Reason::BadUserNameOrPassword, "connack BadUserNameOrPassword false"),
        (Version::V5, Reason::NotAuthorized, "connack NotAuthorized false"),
        (Version::V311, Reason::BadUserNameOrPassword, "connack BadUserNameOrPassword false"),
        (Version::V311, Reason::NotAuthorized, "connack NotAuthorized false"),
    ] {
        let client = rig.connect_with("c", |connect| (connect.version, connect.username) = (version, Some("eve")));
        rig.answer(1, |_| Err(reason));
        assert_eq!(rig.heard(client), [said]);
        assert!(rig.closed(client));
    }
    assert_eq!(rig.count(Counter::authentication_denied), 4);
    assert_eq!(rig.count(Counter::session_created), 0);
}

#[test]
fn a_stranger_comes_in_only_where_its_listener_lets_it() {
    let mut rig = Rig::new(1);
    rig.policy(asking(1));
    let stranger = rig.connect("c");
    assert_eq!(rig.heard(stranger), ["connack NotAuthorized false"]);
    rig.policy(Policy { anonymous: [true].into(), ..asking(2) });
    let stranger = rig.connect("c");
    assert_eq!(rig.heard(stranger), ["connack Success false"]);
    assert!(rig.asked().is_empty());
    rig.policy(asking(3));
    assert_eq!(rig.heard(stranger), ["disconnect NotAuthorized"], "nor does one stay where none may come in");
}

#[test]
fn a_parked_connection_that_ends_is_forgotten_and_its_verdict_dropped() {
    let mut rig = Rig::new(1);
    rig.policy(asking(1));
    let client = rig.connect_with("c", named("alice"));
    rig.end(client);
    rig.answer(1, |name| user(name, 1));
    assert_eq!((rig.count(Counter::authentication_late), rig.count(Counter::session_created)), (1, 0));
    assert_eq!(rig.count(Counter::authentication_asked), 1, "the end does not ask again");
    assert_eq!(rig.shards[0].gauges().connections, 0);
}

#[test]
fn a_verdict_that_does_not_come_ends_with_the_time_for_connect() {
    let mut rig = Rig::new(1);
    rig.policy(asking(1));
    let client = rig.connect_with("c", named("alice"));
    rig.pass(60_000);
    assert_eq!(rig.heard(client), ["connack ServerUnavailable false"]);
    rig.answer(1, |name| user(name, 1));
    assert_eq!((rig.count(Counter::authentication_timed_out), rig.count(Counter::authentication_late)), (1, 1));
}

#[test]
fn who_cannot_be_asked_about_is_refused_as_busy() {
    let mut rig = Rig::new(1);
    rig.policy(asking(1));
    rig.authenticators_busy(true);
    let client = rig.connect_with("c", named("alice"));
    assert_eq!(rig.heard(client), ["connack QuotaExceeded false"]);
    assert_eq!(rig.count(Counter::authentication_overloaded), 1);
}

#[test]
fn a_verdict_of_an_older_policy_is_asked_again() {
    let mut rig = Rig::new(1);
    rig.policy(asking(1));
    let client = rig.connect_with("c", named("alice"));
    rig.policy(asking(2));
    rig.answer(1, |name| user(name, 1));
    assert_eq!(rig.asked(), ["alice"]);
    rig.answer(2, |_| Err(Reason::BadUserNameOrPassword));
    assert_eq!(rig.heard(client), ["connack BadUserNameOrPassword false"]);
}

#[test]
fn another_password_disconnects_and_the_same_one_does_not() {
    let mut rig = Rig::new(2);
    let mut policy = asking(1);
    policy.credentials.insert(Box::from("bob"), 7);
    rig.policy(policy);
    let home = rig.id_on(1, "a");
    let (alice, bob) = (rig.connect_with(&home, named("alice")), rig.connect_with("b", named("bob")));
    rig.answer(1, |name| user(name, if name == "bob" { 7 } else { 1 }));
    rig.got(alice);
    rig.got(bob);
    let mut policy = asking(2);
    policy.credentials.insert(Box::from("bob"), 7);
    rig.policy(policy);
    assert_eq!(rig.heard(alice), ["disconnect NotAuthorized"]);
    assert!(rig.heard(bob).is_empty() && !rig.closed(bob));
    rig.policy(asking(3));
    assert_eq!(rig.heard(bob), ["disconnect NotAuthorized"], "its user was removed");
    assert_eq!(rig.count(Counter::clients_revoked), 2);
}

#[test]
fn a_node_that_begins_to_ask_keeps_who_is_proven_and_one_that_ceases_to_keeps_all() {
    let mut rig = Rig::new(1);
    let told = rig.connect_with("told", named("alice"));
    rig.got(told);
    rig.policy(asking(1));
    assert_eq!(rig.heard(told), ["disconnect NotAuthorized"], "nobody has proven that name");
    let proven = rig.connect_with("proven", named("alice"));
    rig.answer(1, |name| user(name, 1));
    rig.got(proven);
    rig.policy(Policy { number: 2, ..Policy::default() });
    assert!(rig.heard(proven).is_empty() && !rig.closed(proven));
}

#[test]
fn what_let_a_client_in_ends_on_time() {
    let mut rig = Rig::new(1);
    rig.policy(asking(1));
    let client = rig.connect_with("c", named("alice"));
    let expires_ms = rig.now.wall_ms + 5000;
    rig.answer(1, |name| user(name, 1).map(|principal| Principal { expires_ms, ..principal }));
    rig.pass(4900);
    assert_eq!(rig.heard(client), ["connack Success false"]);
    rig.pass(200);
    assert_eq!(rig.heard(client), ["disconnect MaximumConnectTime"]);
    assert_eq!(rig.count(Counter::clients_expired), 1);
}

#[test]
fn a_publish_that_is_denied_is_shed_and_said_where_there_is_a_word_for_it() {
    let mut rig = Rig::new(2);
    rig.policy(ruled(1, "user a\ntopic write ok/#\nuser r\ntopic read #"));
    let reader = rig.connect_with("r", named("r"));
    rig.subscribe(reader, "#", Q1);
    rig.heard(reader);
    let five = rig.connect_with("five", named("a"));
    let three = rig.connect_with("three", |connect| {
        (connect.version, connect.username) = (Version::V311, Some("a"));
    });
    for (client, acks) in [(five, ["puback 135", "pubrec 135"]), (three, ["puback 0", "pubrec 0"])] {
        rig.got(client);
        rig.publish(client, "no/x", "m", Q0, true);
        rig.publish(client, "no/x", "m", Q1, true);
        rig.publish(client, "no/x", "m", Q2, false);
        assert_eq!(rig.heard(client), acks);
    }
    rig.publish(three, "ok/x", "yes", Q1, false);
    assert_eq!((rig.heard(reader), rig.heard(three)), (["ok/x yes q1".into()].into(), ["puback 0".into()].into()));
    assert_eq!(rig.count(Counter::shed_publish_denied), 6);
    assert_eq!(rig.shards.iter().map(|shard| shard.gauges().retained).sum::<u64>(), 0);
    rig.policy(Policy { disconnects: true, ..ruled(2, "user a\ntopic write ok/#") });
    rig.publish(five, "no/x", "m", Q0, false);
    assert_eq!(rig.heard(five), ["disconnect NotAuthorized"]);
}

#[test]
fn a_filter_is_refused_guarded_or_granted() {
    let mut rig = Rig::new(2);
    rig.policy(ruled(1, "{deny, {username, \"u\"}, subscribe, [\"secret/#\"]}. {allow, all}."));
    let reader = rig.connect_with("reader", named("u"));
    for (filter, reason) in
        [("secret/x", 135), ("$share/g/secret/#", 135), ("$share/g/#", 135), ("#", 0), ("open/+", 0)]
    {
        rig.got(reader);
        rig.subscribe(reader, filter, Q1);
        let granted = if reason == 0 { 1 } else { reason };
        assert_eq!(rig.heard(reader)[0], alloc::format!("suback {granted}"), "{filter}");
    }
    let writer = rig.connect("writer");
    for topic in ["secret/x", "secret", "open/x"] {
        rig.publish(writer, topic, "m", Q1, false);
    }
    assert_eq!(rig.heard(reader), ["open/x m q1"]);
    assert_eq!((rig.count(Counter::shed_delivery_denied), rig.count(Counter::subscriptions_denied)), (2, 3));
}

#[test]
fn retained_values_are_replayed_only_to_who_may_have_them() {
    let mut rig = Rig::new(2);
    rig.policy(ruled(1, "{deny, {username, \"u\"}, subscribe, [\"secret/#\"]}. {allow, all}."));
    let writer = rig.connect("writer");
    for topic in ["secret/a", "open/a"] {
        rig.publish(writer, topic, "kept", Q1, true);
    }
    let reader = rig.connect_with("reader", named("u"));
    rig.got(reader);
    rig.subscribe(reader, "+/a", Q1);
    assert_eq!(rig.heard(reader), ["suback 1", "open/a kept q1 retain"]);
}

#[test]
fn a_will_is_asked_for_at_connect_and_when_it_fires() {
    let mut rig = Rig::new(1);
    let rules = "user w\ntopic write wills/#\nuser r\ntopic read #";
    rig.policy(ruled(1, rules));
    let denied = rig.connect_with("x", with_will("w", "other/x"));
    assert_eq!(rig.heard(denied), ["connack NotAuthorized false"]);
    let reader = rig.connect_with("r", named("r"));
    rig.subscribe(reader, "#", Q1);
    let (first, second) =
        (rig.connect_with("1", with_will("w", "wills/1")), rig.connect_with("2", with_will("w", "wills/2")));
    rig.heard(reader);
    rig.cut(first);
    assert_eq!(rig.heard(reader), ["wills/1 gone q1"]);
    rig.policy(ruled(2, "user r\ntopic read #"));
    rig.cut(second);
    assert!(rig.heard(reader).is_empty());
    assert_eq!(rig.count(Counter::shed_will_denied), 2);
}

#[test]
fn a_right_that_is_taken_mutes_what_was_subscribed_and_sheds_what_waits() {
    let mut rig = Rig::new(2);
    let all = "user u\ntopic read #\nuser w\ntopic write #";
    rig.policy(ruled(1, all));
    let writer = rig.connect_with("w", named("w"));
    let live = rig.connect_with("live", persistent("u", true));
    let away = rig.connect_with("away", persistent("u", true));
    for client in [live, away] {
        rig.subscribe(client, "secret/+", Q1);
        rig.subscribe(client, "open/+", Q1);
        rig.subscribe(client, "$share/g/secret/+", Q1);
        rig.heard(client);
    }
    rig.cut(away);
    rig.publish(writer, "secret/1", "m", Q1, false);
    rig.publish(writer, "open/1", "m", Q1, false);
    assert_eq!(rig.heard(live).iter().filter(|got| got.contains("secret/1")).count(), 2, "own and as a member");
    rig.policy(ruled(2, "user u\ntopic read open/#\nuser w\ntopic write #"));
    rig.publish(writer, "secret/2", "m", Q1, false);
    rig.publish(writer, "open/2", "m", Q1, false);
    assert_eq!(rig.heard(live), ["open/2 m q1"]);
    let back = rig.connect_with("away", persistent("u", false));
    assert_eq!(rig.heard(back), ["connack Success true", "open/1 m q1", "open/2 m q1"]);
    assert_eq!(rig.shards.iter().map(|shard| shard.gauges().groups).sum::<u64>(), 0, "nor is one a member");
    // Given back, it delivers again without a word of the client.
    rig.policy(ruled(3, all));
    rig.publish(writer, "secret/3", "m", Q0, false);
    assert!(rig.heard(live).contains(&"secret/3 m q0".into()));
}

#[test]
fn another_principal_that_resumes_a_session_gets_only_what_it_may_have() {
    let mut rig = Rig::new(1);
    rig.policy(ruled(1, "user u\ntopic read #\nuser v\ntopic read open/#\nuser w\ntopic write #"));
    let writer = rig.connect_with("w", named("w"));
    let first = rig.connect_with("shared id", persistent("u", true));
    rig.subscribe(first, "+/x", Q1);
    rig.publish(writer, "secret/x", "unacknowledged", Q1, false);
    rig.heard(first);
    rig.cut(first);
    rig.publish(writer, "secret/x", "queued", Q1, false);
    rig.publish(writer, "open/x", "queued", Q1, false);
    rig.settle();
    let second = rig.connect_with("shared id", persistent("v", false));
    assert_eq!(rig.heard(second), ["connack Success true", "open/x queued q1"]);
    assert_eq!(rig.count(Counter::shed_delivery_denied), 2);
}

#[test]
fn an_alias_does_not_hide_a_topic() {
    let mut rig = Rig::new(1);
    rig.policy(ruled(1, "user a\ntopic write ok/#"));
    let client = rig.connect_with("c", named("a"));
    rig.got(client);
    let mut bytes = Vec::new();
    for (topic, packet) in [("no/x", 1), ("", 2)] {
        let parts = encode::PublishParts {
            qos: Q1,
            topic,
            packet_id: Some(id(packet)),
            topic_alias: Some(1),
            ..encode::PublishParts::default()
        };
        encode::publish(&mut bytes, Version::V5, &parts);
    }
    rig.send(client, &bytes);
    assert_eq!(rig.heard(client), ["puback 135", "puback 135"]);
}
