//! What is left to a server, told as short scripts.

use alloc::{format, string::String, sync::Arc, vec::Vec};

use mqtt::{
    codec::{Connect, SubscribeEntry, Will, encode},
    types::{Qos, RetainHandling, Version},
};

use crate::{
    access::{Rule, Rules, parse_mosquitto},
    admission::Policy,
    counters::Counter,
    inquiry::{Heard, Remember},
    rig::{Client, Rig, id},
};

const Q0: Qos = Qos::AtMostOnce;
const Q1: Qos = Qos::AtLeastOnce;
const MINUTE: Remember = Remember { answers_max: 2, ttl_us: 60_000_000 };

/// Rules, a server behind them, and rules behind that.
fn policy(number: u64, before: &str, behind: &str, remember: Remember) -> Policy {
    let mut rules = parse_mosquitto(before).expect("rules");
    rules.push(Rule::server());
    rules.extend(parse_mosquitto(behind).expect("rules"));
    let rules = Some(Arc::new(Rules::new(rules, false, 1)));
    Policy { number, rules, remember, ..Policy::default() }
}

fn rig(before: &str, behind: &str) -> Rig {
    let mut rig = Rig::new(1);
    rig.policy(policy(1, before, behind, MINUTE));
    rig
}

fn named(name: &'static str) -> impl FnOnce(&mut Connect<'_>) {
    move |connect| connect.username = Some(name)
}

fn enter(rig: &mut Rig, name: &'static str) -> Client {
    let client = rig.connect_with(name, named(name));
    assert_eq!(rig.heard(client), ["connack Success false"]);
    client
}

/// What the words in a topic ask for.
fn honest(wish: &str) -> Option<Heard> {
    match wish {
        wish if wish.contains("silent") => None,
        wish if wish.contains("bad") => Some(Heard::Deny),
        wish if wish.contains("open") => Some(Heard::Pass),
        _ => Some(Heard::Allow),
    }
}

#[test]
fn a_publish_waits_with_all_that_follows_it_and_others_go_on() {
    let mut rig = rig("user b\ntopic readwrite #\n", "");
    let (a, b) = (enter(&mut rig, "a"), enter(&mut rig, "b"));
    rig.subscribe(b, "#", Q0);
    let before = rig.count(Counter::packets_received);
    for (topic, payload) in [("x/1", "one"), ("x/2", "two")] {
        rig.publish(a, topic, payload, Q1, false);
    }
    let mut ping = Vec::new();
    encode::pingreq(&mut ping);
    rig.send(a, &ping);
    rig.publish(b, "y", "other", Q0, false);
    assert_eq!(rig.heard(b), ["suback 0", "y other q0"]);
    assert_eq!(rig.permit(1, |wish| (wish == "a a publish x/1 1").then_some(Heard::Allow)), 1);
    assert_eq!(rig.heard(b), ["x/1 one q0"]);
    assert_eq!(rig.heard(a), ["puback 0"], "what follows waits for its own answer");
    assert_eq!(rig.permit(1, |_| Some(Heard::Deny)), 1);
    assert_eq!(rig.heard(a), ["puback 135", "pingresp"]);
    assert!(rig.heard(b).is_empty());
    assert_eq!(rig.count(Counter::packets_received) - before, 4, "a packet that is read again is counted once");
    assert_eq!((rig.count(Counter::messages_received), rig.count(Counter::shed_publish_denied)), (3, 1));
    assert_eq!(rig.count(Counter::access_asked), 2);
}

#[test]
fn what_a_server_passes_on_or_does_not_answer_is_for_the_rules_behind_it() {
    let mut rig = rig("", "user a\ntopic write open/#\n");
    let a = enter(&mut rig, "a");
    for (topic, reason) in [("open/x", 16), ("open/silent", 16), ("silent", 135), ("bad", 135), ("good", 16)] {
        rig.publish(a, topic, "m", Q1, false);
        assert_eq!(rig.permit(1, honest), 1, "{topic}");
        let heard = rig.heard(a);
        assert_eq!(heard, [format!("puback {reason}")], "{topic}");
    }
    assert_eq!(rig.count(Counter::access_silent), 2);
    rig.publish(a, "silent", "m", Q1, false);
    assert_eq!(rig.permit(1, honest), 1, "silence is not remembered");
    rig.authenticators_busy(true);
    rig.publish(a, "other", "m", Q1, false);
    assert_eq!(rig.heard(a), ["puback 135", "puback 135"]);
    assert_eq!(rig.count(Counter::access_overloaded), 1);
}

#[test]
fn an_answer_is_remembered_for_its_time_and_the_oldest_gives_way() {
    let mut rig = rig("", "");
    let a = enter(&mut rig, "a");
    for _ in 0..100 {
        rig.publish(a, "t", "m", Q0, false);
        rig.permit(1, honest);
    }
    assert_eq!((rig.count(Counter::access_asked), rig.count(Counter::access_remembered)), (1, 99));
    rig.publish(a, "t", "m", Q1, false);
    assert_eq!(rig.permit(1, honest), 1, "another QoS is another question");
    rig.pass(1000);
    rig.publish(a, "u", "m", Q0, false);
    assert_eq!(rig.permit(1, honest), 1);
    rig.publish(a, "u", "m", Q0, false);
    assert_eq!(rig.permit(1, honest), 0);
    rig.publish(a, "t", "m", Q0, false);
    assert_eq!(rig.permit(1, honest), 1, "two answers are remembered");
    rig.pass(60_000);
    rig.publish(a, "t", "m", Q0, false);
    assert_eq!(rig.permit(1, honest), 1, "its time is over");
    rig.policy(policy(2, "", "", MINUTE));
    rig.publish(a, "t", "m", Q0, false);
    assert_eq!(rig.permit(2, honest), 1, "another policy forgets");
    rig.policy(policy(3, "", "", Remember::default()));
    for _ in 0..2 {
        rig.publish(a, "t", "m", Q0, false);
        assert_eq!(rig.permit(3, honest), 1, "nothing is remembered");
    }
}

fn subscribe(rig: &mut Rig, client: Client, filters: &[&str]) {
    let (no_local, retain_as_published, retain_handling) = (false, false, RetainHandling::Send);
    let entry = |filter| SubscribeEntry { filter, qos: Q0, no_local, retain_as_published, retain_handling };
    let entries: Vec<SubscribeEntry<'_>> = filters.iter().map(|filter| entry(*filter)).collect();
    let mut bytes = Vec::new();
    encode::subscribe(&mut bytes, Version::V5, id(3), None, &entries);
    rig.send(client, &bytes);
}

#[test]
fn each_filter_of_a_subscribe_is_asked_about_and_the_answer_comes_as_a_whole() {
    for remember in [MINUTE, Remember::default()] {
        let mut rig = rig("user a\ntopic deny never/#\n", "user a\ntopic read open/#\n");
        rig.policy(policy(2, "user a\ntopic deny never/#\n", "user a\ntopic read open/#\n", remember));
        let a = enter(&mut rig, "a");
        subscribe(&mut rig, a, &["good/1", "bad/+", "open/#", "never/x", "+bad", "good/2"]);
        let mut asked = 0;
        while rig.permit(2, honest) > 0 {
            asked += 1;
        }
        assert_eq!((asked, rig.heard(a)), (4, ["suback 0 135 0 135 143 0".into()].into()));
    }
    let mut rig = rig("", "");
    let a = enter(&mut rig, "a");
    subscribe(&mut rig, a, &["silent/1", "silent/2", "good"]);
    assert_eq!(rig.permit(1, honest), 1);
    assert_eq!(rig.heard(a), ["suback 135 135 135"], "one silence per packet is enough");
    assert_eq!((rig.count(Counter::access_silent), rig.count(Counter::access_unasked)), (1, 2));
}

#[test]
fn what_is_guarded_was_allowed_and_nothing_else_is_delivered() {
    let mut rig = rig("user a\ntopic deny in/secret\ntopic read open/x\ntopic write #\n", "");
    let a = enter(&mut rig, "a");
    // Allowed by the server, and in part denied by a rule: single messages are not asked about.
    subscribe(&mut rig, a, &["in/#"]);
    assert_eq!(rig.permit(1, honest), 1);
    rig.publish(a, "in/secret", "m", Q0, false);
    rig.publish(a, "in/x", "m", Q0, false);
    assert_eq!(rig.heard(a), ["suback 0", "in/x m q0"]);
    // mosquitto's rules grant a filter of which a part is allowed; not past a server that does not.
    subscribe(&mut rig, a, &["open/#"]);
    assert_eq!(rig.permit(1, honest), 1);
    subscribe(&mut rig, a, &["+/bad"]);
    assert_eq!(rig.permit(1, honest), 1);
    assert_eq!(rig.heard(a), ["suback 135", "suback 135"]);
}

fn with_will(topic: &'static str) -> impl FnOnce(&mut Connect<'_>) {
    move |connect| {
        let properties = mqtt::codec::PublishProperties::default();
        let will = Will { qos: Q1, retain: false, topic, payload: b"gone", delay_s: 0, properties };
        (connect.username, connect.will) = (Some("a"), Some(will));
    }
}

#[test]
fn a_will_is_asked_about_before_its_client_comes_in() {
    let mut rig = rig("user b\ntopic readwrite #\n", "");
    let b = enter(&mut rig, "b");
    rig.subscribe(b, "#", Q0);
    let a = rig.connect_with("a", with_will("w"));
    assert!(rig.heard(a).is_empty());
    assert_eq!(rig.permit(1, |wish| (wish == "a a publish w 1").then_some(Heard::Allow)), 1);
    assert_eq!(rig.heard(a), ["connack Success false"]);
    rig.cut(a);
    assert_eq!(rig.heard(b), ["suback 0", "w gone q0"], "nobody is asked again");
    let a = rig.connect_with("a", with_will("bad"));
    rig.permit(1, honest);
    assert_eq!(rig.heard(a), ["connack NotAuthorized false"]);
    let a = rig.connect_with("a", with_will("late"));
    rig.pass(60_000);
    assert_eq!(rig.heard(a), ["connack NotAuthorized false"], "there is no word in time, and no rule");
    assert_eq!(rig.permit(1, honest), 1);
    assert_eq!((rig.count(Counter::access_late), rig.count(Counter::shed_will_denied)), (1, 2));
    let a = rig.connect_with("a", with_will("w"));
    rig.end(a);
    rig.permit(1, honest);
    assert_eq!(rig.shards[0].gauges().connections, 1, "who leaves meanwhile is forgotten");
}

#[test]
fn a_client_that_has_closed_is_not_asked_about_and_the_rules_decide() {
    let mut rig = rig("user b\ntopic readwrite #\n", "user a\ntopic write open\n");
    let (a, b) = (enter(&mut rig, "a"), enter(&mut rig, "b"));
    rig.subscribe(b, "#", Q0);
    rig.publish(a, "open", "m", Q0, false);
    rig.publish(a, "t", "m", Q0, false);
    rig.end(a);
    assert_eq!(rig.heard(b), ["suback 0", "open m q0"]);
    assert_eq!(rig.permit(1, honest), 1);
    assert_eq!((rig.count(Counter::access_unasked), rig.count(Counter::access_late)), (2, 1));
}

#[test]
fn an_answer_of_an_older_policy_is_asked_again() {
    let mut rig = rig("", "");
    let a = enter(&mut rig, "a");
    rig.publish(a, "t", "m", Q1, false);
    rig.policy(policy(2, "", "", MINUTE));
    assert_eq!(rig.permit(1, |_| Some(Heard::Allow)), 1);
    assert!(rig.heard(a).is_empty());
    assert_eq!(rig.permit(2, |_| Some(Heard::Deny)), 1);
    assert_eq!(rig.heard(a), ["puback 135"]);
}

#[test]
fn what_a_server_allowed_one_user_is_not_inherited_by_another() {
    let mut rig = rig("user b\ntopic readwrite #\n", "");
    let keeps = |name: &'static str| {
        move |connect: &mut Connect<'_>| {
            connect.username = Some(name);
            connect.clean_start = false;
            connect.properties.session_expiry_s = Some(1000);
        }
    };
    let b = enter(&mut rig, "b");
    let first = rig.connect_with("c", keeps("a"));
    subscribe(&mut rig, first, &["t"]);
    rig.permit(1, honest);
    rig.cut(first);
    let again = rig.connect_with("c", keeps("a"));
    rig.publish(b, "t", "1", Q0, false);
    assert_eq!(rig.heard(again), ["connack Success true", "t 1 q0"], "nobody is asked when the same user comes back");
    rig.cut(again);
    let other = rig.connect_with("c", keeps("e"));
    rig.publish(b, "t", "2", Q0, false);
    assert_eq!(rig.heard(other), ["connack Success true"]);
    subscribe(&mut rig, other, &["t"]);
    rig.permit(1, honest);
    rig.publish(b, "t", "3", Q0, false);
    assert_eq!(rig.heard(other), ["suback 0", "t 3 q0"], "it may ask for itself");
    rig.policy(policy(2, "user b\ntopic readwrite #\n", "", MINUTE));
    rig.publish(b, "t", "4", Q0, false);
    assert_eq!(rig.heard(other), ["t 4 q0"], "what is granted stays granted when the rules are read again");
    let texts: Vec<String> = rig.got(other);
    assert!(texts.is_empty());
}
