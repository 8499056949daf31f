//! What does not cross: only what somebody over there asked for, within what that cluster wants.

use crate::clusters::{Clusters, client, sent_exactly, until_linked};
use harness::rumq::{Event, v5};
use harness::{LONG, within};

/// Publishes `count` messages on a topic that must not cross and one on a topic that must, and waits until
/// that one is heard.
fn batch(publisher: &v5::Client, unwanted: &str, count: usize, wanted: &str, subscriber: &v5::Client) {
    for _ in 0..count {
        publisher.publish(unwanted, 1, false, b"stays");
    }
    publisher.publish(wanted, 1, false, b"marker");
    publisher.acked(count + 1);
    assert_eq!(subscriber.message().text(), "marker");
}

#[test]
fn a_topic_that_nobody_over_there_wants_is_not_sent() {
    let clusters = Clusters::start_open();
    let subscriber = client(&clusters.b, 0, "sub");
    subscriber.subscribe("wanted/#", 1);
    let at_home = client(&clusters.a, 1, "home");
    at_home.subscribe("#", 1);
    let publisher = client(&clusters.a, 0, "pub");
    let crossed = until_linked(&publisher, "wanted/t", &subscriber);
    batch(&publisher, "unwanted/t", 100, "wanted/t", &subscriber);
    sent_exactly(&clusters.a, crossed + 1);
    assert_eq!(clusters.b.counter_reaches("link_received", crossed + 1), crossed + 1);
    assert_eq!(clusters.b.counter("shed_link_outside_topics"), 0);
}

#[test]
fn unsubscribing_stops_the_stream() {
    let clusters = Clusters::start_open();
    let subscriber = client(&clusters.b, 0, "sub");
    subscriber.subscribe("kept", 1);
    subscriber.subscribe("dropped", 1);
    let publisher = client(&clusters.a, 0, "pub");
    until_linked(&publisher, "kept", &subscriber);
    until_linked(&publisher, "dropped", &subscriber);
    subscriber.unsubscribe("dropped");
    within(LONG, "nothing but the marker crosses any more", || {
        let before = clusters.a.counter("link_sent");
        batch(&publisher, "dropped", 50, "kept", &subscriber);
        (clusters.a.counter("link_sent") == before + 1).then_some(())
    });
}

#[test]
fn a_client_that_leaves_takes_its_interest_along() {
    let clusters = Clusters::start_open();
    let subscriber = client(&clusters.b, 0, "sub");
    subscriber.subscribe("kept", 1);
    let leaving = client(&clusters.b, 1, "leaving");
    leaving.subscribe("left", 1);
    let publisher = client(&clusters.a, 0, "pub");
    until_linked(&publisher, "kept", &subscriber);
    until_linked(&publisher, "left", &leaving);
    drop(leaving);
    within(LONG, "nothing but the marker crosses any more", || {
        let before = clusters.a.counter("link_sent");
        batch(&publisher, "left", 50, "kept", &subscriber);
        (clusters.a.counter("link_sent") == before + 1).then_some(())
    });
}

#[test]
fn only_the_intersection_of_filters_and_link_topics_crosses() {
    // What b wants from a, whatever its clients subscribe to.
    let clusters = Clusters::start("[]", r#"["t/+/1/#", "t/z", "t/1/+", "probe"]"#);
    let subscriber = client(&clusters.b, 0, "sub");
    subscriber.subscribe("t/+/+", 1);
    subscriber.subscribe("probe", 1);
    let publisher = client(&clusters.a, 0, "pub");
    let mut crossed = until_linked(&publisher, "probe", &subscriber);
    crossed += until_linked(&publisher, "t/1/x", &subscriber);
    crossed += until_linked(&publisher, "t/9/1", &subscriber);
    for topic in ["t/9/9", "t/z", "t/1/x/y", "t/x/2", "other"] {
        batch(&publisher, topic, 5, "t/1/x", &subscriber);
        crossed += 1;
    }
    sent_exactly(&clusters.a, crossed);
    assert_eq!(clusters.b.counter("shed_link_outside_topics"), 0, "it was not even sent");
}

#[test]
fn a_one_way_link_carries_one_way() {
    let clusters = Clusters::start("[]", r##"["#"]"##);
    let (here, there) = (client(&clusters.a, 0, "sub"), client(&clusters.b, 0, "sub"));
    here.subscribe("#", 1);
    there.subscribe("#", 1);
    let (from_a, from_b) = (client(&clusters.a, 1, "pub"), client(&clusters.b, 1, "pub"));
    until_linked(&from_a, "way/t", &there);
    within(LONG, "the last probe is heard at home", || (here.message().payload == b"linked").then_some(()));
    for _ in 0..50 {
        from_b.publish("way/t", 1, false, b"stays");
    }
    from_b.acked(50);
    for _ in 0..50 {
        assert_eq!(there.message().text(), "stays");
    }
    from_a.publish("way/t", 1, false, b"marker");
    assert_eq!(here.message().text(), "marker", "nothing of b came before it");
    assert_eq!(clusters.b.counter("link_sent"), 0);
}

#[test]
fn topics_of_the_system_cross_only_when_they_are_named() {
    let clusters = Clusters::start_open();
    let subscriber = client(&clusters.b, 0, "sub");
    subscriber.subscribe("$private/#", 1);
    subscriber.subscribe("#", 1);
    let publisher = client(&clusters.a, 0, "pub");
    let crossed = until_linked(&publisher, "public", &subscriber);
    batch(&publisher, "$private/t", 20, "public", &subscriber);
    sent_exactly(&clusters.a, crossed + 1);
}

#[test]
fn a_message_that_stays_still_reaches_its_own_cluster() {
    let clusters = Clusters::start_open();
    let at_home = client(&clusters.a, 1, "home");
    at_home.subscribe("home/t", 2);
    let abroad = client(&clusters.b, 0, "abroad");
    abroad.subscribe("abroad/t", 2);
    let publisher = client(&clusters.a, 0, "pub");
    until_linked(&publisher, "abroad/t", &abroad);
    for number in 0..20 {
        publisher.publish("home/t", 2, false, number.to_string().as_bytes());
    }
    publisher.acked(20);
    for number in 0..20 {
        assert_eq!(at_home.message().text(), number.to_string());
    }
    assert!(!abroad.events().so_far().iter().any(|event| matches!(event, Event::Message(_))));
}
