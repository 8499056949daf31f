//! rumqttc in 3.1.1.

use crate::{Broker, on_two_and_three_shards};
use harness::rumq::{Event, Message, v4};
use harness::{MOMENT, SHORT, holds_for};

on_two_and_three_shards!(
    a_stream_of_mixed_qos_keeps_its_order_across_topics,
    many_publishers_and_many_subscribers_lose_nothing,
    unsubscribing_ends_the_stream,
    a_broken_connection_resumes_its_session,
    a_will_is_published_when_the_socket_closes,
    a_second_client_with_the_id_takes_over,
);

fn a_stream_of_mixed_qos_keeps_its_order_across_topics(broker: &Broker) {
    let subscriber = v4::Client::connect(broker.node.mqtt(), &broker.client(0, "sub"));
    subscriber.subscribe(&broker.topic("#"), 2);
    let publisher = v4::Client::connect(broker.node.mqtt(), &broker.client(1, "pub"));
    let topics = ["x", "y/z", "a/b/c"].map(|rest| broker.topic(rest));
    // At one level only: between levels the handshakes may overtake each other at the receiver.
    for qos in 0..=2 {
        for number in 0..300_usize {
            let topic = &topics[number % topics.len()];
            publisher.publish(topic, qos, false, number.to_string().as_bytes());
        }
        for number in 0..300 {
            let message = subscriber.message();
            let expected = (topics[number % topics.len()].clone(), number.to_string(), qos, false);
            let found = (message.topic.clone(), message.text(), message.qos, message.dup);
            assert_eq!(found, expected);
        }
        if qos > 0 {
            publisher.acked(300);
        }
    }
}

fn many_publishers_and_many_subscribers_lose_nothing(broker: &Broker) {
    const EACH: usize = 60;
    let clients = |role: &str| -> Vec<v4::Client> {
        (0..4)
            .map(|index| {
                let id = broker.client(index, &format!("{role}{index}"));
                v4::Client::connect(broker.node.mqtt(), &id)
            })
            .collect()
    };
    let (subscribers, publishers) = (clients("sub"), clients("pub"));
    for subscriber in &subscribers {
        subscriber.subscribe(&broker.topic("+"), 1);
    }
    for number in 0..EACH {
        for (index, publisher) in publishers.iter().enumerate() {
            publisher.publish(&broker.topic(&index.to_string()), 1, false, number.to_string().as_bytes());
        }
    }
    for publisher in &publishers {
        publisher.acked(EACH);
    }
    for subscriber in &subscribers {
        let mut next = vec![0; publishers.len()];
        for _ in 0..EACH * publishers.len() {
            let message = subscriber.message();
            let from: usize = message.topic.rsplit('/').next().and_then(|last| last.parse().ok()).expect("an index");
            assert_eq!(message.text(), next[from].to_string(), "of publisher {from}");
            next[from] += 1;
        }
        assert_eq!(next, vec![EACH; publishers.len()]);
    }
}

fn unsubscribing_ends_the_stream(broker: &Broker) {
    let subscriber = v4::Client::connect(broker.node.mqtt(), &broker.client(0, "sub"));
    let publisher = v4::Client::connect(broker.node.mqtt(), &broker.client(1, "pub"));
    let (kept, dropped) = (broker.topic("kept"), broker.topic("dropped"));
    subscriber.subscribe(&kept, 1);
    subscriber.subscribe(&dropped, 1);
    publisher.publish(&dropped, 1, false, b"before");
    assert_eq!(subscriber.message().text(), "before");
    subscriber.unsubscribe(&dropped);
    publisher.publish(&dropped, 1, false, b"after");
    publisher.publish(&kept, 1, false, b"marker");
    assert_eq!(subscriber.message().text(), "marker");
}

fn a_broken_connection_resumes_its_session(broker: &Broker) {
    let id = broker.client(0, "keeper");
    let keep = || {
        let mut options = v4::options(broker.node.mqtt(), &id);
        options.set_clean_session(false);
        options
    };
    let topic = broker.topic("t");
    let keeper = v4::Client::with(keep());
    assert!(!keeper.session_present, "there was none before");
    keeper.subscribe(&topic, 2);
    // Dropped without DISCONNECT, as by a network that fails.
    drop(keeper);
    let publisher = v4::Client::connect(broker.node.mqtt(), &broker.client(1, "pub"));
    for number in 0..50 {
        publisher.publish(&topic, 1 + number % 2, false, number.to_string().as_bytes());
    }
    publisher.acked(50);
    let keeper = v4::Client::with(keep());
    assert!(keeper.session_present, "the session waits for its client");
    let mut heard: Vec<(u8, String)> =
        (0..50).map(|_| keeper.message()).map(|message: Message| (message.qos, message.text())).collect();
    // Both levels are in order by themselves.
    heard.sort_by_key(|(qos, _)| *qos);
    let expected = (0..50)
        .step_by(2)
        .map(|number| (1, number))
        .chain((0..50).skip(1).step_by(2).map(|number| (2, number)))
        .map(|(qos, number)| (qos, number.to_string()));
    assert!(heard.iter().cloned().eq(expected), "{heard:?}");
    drop(keeper);
    drop(v4::Client::connect(broker.node.mqtt(), &id));
}

fn a_will_is_published_when_the_socket_closes(broker: &Broker) {
    let topic = broker.topic("will");
    let witness = v4::Client::connect(broker.node.mqtt(), &broker.client(0, "witness"));
    witness.subscribe(&topic, 2);
    let mut options = v4::options(broker.node.mqtt(), &broker.client(1, "doomed"));
    options.set_last_will(rumqttc::LastWill::new(&topic, "gone", rumqttc::QoS::ExactlyOnce, false));
    drop(v4::Client::with(options));
    let message = witness.message();
    assert_eq!((message.text().as_str(), message.qos), ("gone", 2));
}

fn a_second_client_with_the_id_takes_over(broker: &Broker) {
    let id = broker.client(1, "twin");
    let first = v4::Client::connect(broker.node.mqtt(), &id);
    let second = v4::Client::connect(broker.node.mqtt(), &id);
    first.events().next(SHORT, "end of the first connection", |event| matches!(event, Event::Lost(_)).then_some(()));
    let topic = broker.topic("t");
    second.subscribe(&topic, 1);
    second.publish(&topic, 1, false, b"still here");
    assert_eq!(second.message().text(), "still here");
    holds_for(MOMENT, "the second connection stays", || {
        !second.events().so_far().iter().any(|event| matches!(event, Event::Lost(_)))
    });
}
