//! What one client may take, and what happens when memory is scarce, told as short scripts.

use contract::config::SlowSubscriber;
use mqtt::types::{Qos, Version};

use crate::{counters::Counter, rig::Rig};

const Q0: Qos = Qos::AtMostOnce;
const Q1: Qos = Qos::AtLeastOnce;

#[test]
fn who_publishes_too_fast_is_read_later_and_loses_nothing() {
    let mut rig = Rig::with(1, |settings| settings.mqtt.messages_rate = 10);
    let subscriber = rig.connect("s");
    rig.subscribe(subscriber, "t", Q0);
    let (fast, other) = (rig.connect("fast"), rig.connect("other"));
    rig.got(subscriber);
    for n in 0..20 {
        rig.publish(fast, "t", &alloc::format!("{n}"), Q0, false);
    }
    rig.publish(other, "t", "other", Q0, false);
    assert_eq!(rig.heard(subscriber).len(), 12, "a second's worth, the one too many, and what another says");
    rig.pass(500);
    let waited = rig.heard(subscriber);
    assert!((2..=7).contains(&waited.len()), "ten a second: {waited:?}");
    rig.pass(1000);
    assert_eq!(rig.heard(subscriber).last().map(|last| last.contains("19")), Some(true));
    assert!(rig.count(Counter::publishers_paced) > 0);
    rig.cut(fast);
    rig.cut(other);
}

#[test]
fn who_closes_while_it_is_held_back_has_published_everything() {
    let mut rig = Rig::with(1, |settings| settings.mqtt.bytes_rate = 1024);
    let subscriber = rig.connect("s");
    rig.subscribe(subscriber, "t", Q0);
    let fast = rig.connect("fast");
    rig.got(subscriber);
    let payload = "x".repeat(2000);
    for _ in 0..5 {
        rig.publish(fast, "t", &payload, Q0, false);
    }
    assert_eq!(rig.heard(subscriber).len(), 1);
    rig.end(fast);
    assert_eq!(rig.heard(subscriber).len(), 4);
}

#[test]
fn a_keep_alive_beyond_the_longest_is_cut_for_those_who_can_be_told() {
    let mut rig = Rig::with(1, |settings| settings.mqtt.keep_alive_max_s = 10);
    for (asked_s, within) in [(0, false), (11, false), (10, true)] {
        let client = rig.connect_with("five", |connect| connect.keep_alive_s = asked_s);
        assert_eq!(rig.got(client).len(), 1);
        rig.pass(10_000);
        assert!(!rig.closed(client));
        rig.pass(5_200);
        assert!(rig.closed(client), "one and a half times ten seconds for {asked_s}");
        let three = rig.connect_with("three", |connect| {
            (connect.version, connect.keep_alive_s) = (Version::V311, asked_s);
        });
        assert_eq!(rig.closed(three), !within, "{asked_s}");
        rig.cut(three);
    }
    assert_eq!(rig.count(Counter::connect_refused), 2);
}

#[test]
fn a_slow_subscriber_is_disconnected_where_that_is_asked_for() {
    let mut rig = Rig::with(1, |settings| {
        settings.limits.output_bytes_max = 4096;
        settings.mqtt.slow_subscriber = SlowSubscriber::Disconnect;
    });
    let (slow, publisher) = (rig.connect("slow"), rig.connect("fast"));
    rig.subscribe(slow, "t", Q0);
    rig.settle();
    rig.got(slow);
    rig.stop_reading(slow);
    let payload = "x".repeat(1000);
    for _ in 0..20 {
        rig.publish(publisher, "t", &payload, Q0, false);
    }
    rig.settle();
    assert!(rig.closed(slow) && !rig.closed(publisher));
    assert_eq!(rig.count(Counter::slow_subscribers_disconnected), 1, "once, whatever was shed");
}

#[test]
fn nothing_that_grows_is_taken_while_memory_is_scarce() {
    let mut rig = Rig::durable(1);
    let kept = rig.connect_with("kept", |connect| connect.properties.session_expiry_s = Some(100));
    rig.subscribe(kept, "t", Q1);
    rig.settle();
    rig.keep();
    rig.cut(kept);
    let (online, publisher) = (rig.connect("online"), rig.connect("publisher"));
    rig.subscribe(online, "live", Q1);
    rig.keep();
    for client in [online, publisher] {
        rig.heard(client);
    }
    rig.memory(true);

    let stranger = rig.connect("stranger");
    assert!(rig.closed(stranger), "a new session is refused");
    rig.subscribe(online, "more", Q1);
    assert_eq!(rig.heard(online), ["suback 151"]);
    rig.subscribe(online, "live", Q1);
    assert_eq!(rig.heard(online), ["suback 1"], "what it has it keeps");
    rig.publish(publisher, "t", "would wait", Q1, false);
    rig.publish(publisher, "kept", "value", Q1, true);
    assert_eq!(rig.heard(publisher), ["puback 151", "puback 151"]);
    rig.publish(publisher, "live", "passes", Q1, false);
    assert_eq!(rig.heard(online).len(), 1, "who takes what it gets is served");
    assert_eq!((rig.count(Counter::memory_scarce_refused), rig.count(Counter::shed_memory_scarce)), (2, 2));

    let back = rig.connect_with("kept", |connect| {
        (connect.clean_start, connect.properties.session_expiry_s) = (false, Some(100));
    });
    assert!(!rig.closed(back), "a session that is there may be fetched");
    rig.memory(false);
    rig.heard(publisher);
    rig.publish(publisher, "kept", "value", Q1, true);
    rig.keep();
    assert_eq!(rig.heard(publisher), ["puback 0"]);
}

#[test]
fn an_event_whose_topic_is_none_is_shed_and_harms_nobody() {
    let mut rig = Rig::new(2);
    let id = rig.id_on(1, "listener");
    let listener = rig.connect(&id);
    rig.subscribe(listener, "$SYS/#", Q0);
    rig.settle();
    rig.got(listener);
    let long = alloc::format!("$SYS/{}", "x".repeat(70_000));
    let deep = alloc::format!("$SYS{}", "/x".repeat(200));
    for topic in [&*long, &deep, "$SYS/x"] {
        rig.system(topic, "text");
    }
    assert_eq!(rig.heard(listener).len(), 1, "what comes behind it in the same batch arrives");
    assert_eq!((rig.count(Counter::shed_system_event), rig.count(Counter::frames_bad)), (2, 0));
}
