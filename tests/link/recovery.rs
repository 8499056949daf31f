//! One side dies and returns; the other never notices more than a silence.

use crate::clusters::{Clusters, client, until_linked};
use harness::node::Role;
use harness::rumq::Event;
use harness::{LONG, within};
use rustix::process::Signal;

#[test]
fn a_restart_of_the_receiving_side_restores_the_stream() {
    let mut clusters = Clusters::start_open();
    let subscriber = client(&clusters.b, 0, "sub");
    subscriber.subscribe("t", 1);
    let publisher = client(&clusters.a, 1, "pub");
    let at_home = client(&clusters.a, 0, "home");
    at_home.subscribe("home", 1);
    until_linked(&publisher, "t", &subscriber);
    clusters.b.kill();
    // The cluster that is left serves its own without a pause.
    publisher.publish("home", 2, false, b"alone");
    publisher.acked(1);
    assert_eq!(at_home.message().text(), "alone");
    publisher.publish("t", 1, false, b"into the void");
    publisher.acked(1);
    clusters.b.start_again();
    let subscriber = client(&clusters.b, 1, "sub-again");
    subscriber.subscribe("t", 1);
    until_linked_ignoring(&publisher, "t", &subscriber);
    publisher.publish("t", 2, false, b"restored");
    within(LONG, "the stream is restored", || (subscriber.message().payload == b"restored").then_some(()));
    assert!(!publisher.events().so_far().iter().any(|event| matches!(event, Event::Lost(_))));
}

#[test]
fn a_restart_of_the_sending_side_restores_the_stream() {
    let mut clusters = Clusters::start_open();
    let subscriber = client(&clusters.b, 0, "sub");
    subscriber.subscribe("t/#", 1);
    until_linked(&client(&clusters.a, 1, "pub"), "t/1", &subscriber);
    clusters.a.kill();
    clusters.a.start_again();
    let publisher = client(&clusters.a, 0, "pub-again");
    until_linked_ignoring(&publisher, "t/2", &subscriber);
    assert!(!subscriber.events().so_far().iter().any(|event| matches!(event, Event::Lost(_))));
}

#[test]
fn a_killed_data_plane_links_again_by_itself() {
    let clusters = Clusters::start_open();
    let subscriber = client(&clusters.b, 0, "sub");
    subscriber.subscribe("t", 1);
    until_linked(&client(&clusters.a, 1, "pub"), "t", &subscriber);
    let killed = clusters.a.signal(Role::Dataplane, Signal::KILL);
    within(LONG, "a new data plane is ready", || clusters.a.ready_now().filter(|ready| ready.pids[2] != killed));
    until_linked_ignoring(&client(&clusters.a, 0, "pub-again"), "t", &subscriber);
}

#[test]
fn a_link_works_on_without_control_on_either_side() {
    let clusters = Clusters::start_open();
    let subscriber = client(&clusters.b, 0, "sub");
    subscriber.subscribe("t", 1);
    let publisher = client(&clusters.a, 1, "pub");
    until_linked(&publisher, "t", &subscriber);
    let stopped = [&clusters.a, &clusters.b].map(|node| node.signal(Role::Control, Signal::STOP));
    for number in 0..100 {
        publisher.publish("t", 1, false, number.to_string().as_bytes());
    }
    publisher.acked(100);
    for number in 0..100 {
        assert_eq!(subscriber.message().text(), number.to_string());
    }
    let late = client(&clusters.b, 1, "late");
    late.subscribe("late", 1);
    until_linked(&publisher, "late", &late);
    for pid in stopped {
        harness::process::signal(pid, Signal::CONT);
    }
}

#[test]
fn a_remote_that_is_not_there_disturbs_nobody() {
    let nobody = harness::ports::free();
    let node = crate::clusters::cluster("a", harness::ports::free(), "b", nobody, r##"["#"]"##).start();
    let subscriber = client(&node, 0, "sub");
    subscriber.subscribe("#", 1);
    let publisher = client(&node, 1, "pub");
    for number in 0..100 {
        publisher.publish("t", 1, false, number.to_string().as_bytes());
    }
    publisher.acked(100);
    for number in 0..100 {
        assert_eq!(subscriber.message().text(), number.to_string());
    }
}

/// Like [`until_linked`], for a stream in which messages of before the failure may still come.
#[track_caller]
fn until_linked_ignoring(publisher: &harness::rumq::v5::Client, topic: &str, subscriber: &harness::rumq::v5::Client) {
    within(LONG, &format!("`{topic}` is heard across the link again"), || {
        publisher.publish(topic, 1, false, b"again");
        publisher.acked(1);
        std::thread::sleep(std::time::Duration::from_millis(20));
        let events = subscriber.events().so_far();
        events.iter().any(|event| matches!(event, Event::Message(message) if message.payload == b"again")).then_some(())
    });
}
