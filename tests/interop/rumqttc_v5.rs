//! rumqttc in 5.0: what only 5.0 has.

use crate::{Broker, on_two_and_three_shards};
use harness::rumq::{Event, PublishProperties, v5};
use harness::{LONG, holds_for, within};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, LastWill, LastWillProperties, RetainForwardRule};
use std::time::Duration;

on_two_and_three_shards!(
    properties_travel_unchanged,
    subscription_identifiers_name_each_matching_subscription,
    retain_handling_and_retain_as_published_are_obeyed,
    subscribing_again_replaces_the_options,
    no_local_spares_the_publisher_its_own_messages,
    a_session_outlives_its_connection_until_it_expires,
    a_message_that_expired_in_the_queue_is_not_delivered,
    a_delayed_will_is_cancelled_by_a_return,
    a_stream_of_every_qos_keeps_its_order,
);

fn properties_travel_unchanged(broker: &Broker) {
    let subscriber = v5::Client::connect(broker.node.mqtt(), &broker.client(0, "sub"));
    let publisher = v5::Client::connect(broker.node.mqtt(), &broker.client(1, "pub"));
    let topic = broker.topic("t");
    subscriber.subscribe(&topic, 2);
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let sent = PublishProperties {
        payload_format_indicator: Some(1),
        message_expiry_interval: Some(600),
        response_topic: Some("answers/here".to_owned()),
        correlation_data: Some(vec![0, 255, 1, 254].into()),
        // The order of user properties counts, and a name may come twice.
        user_properties: vec![pair("b", "1"), pair("a", "2"), pair("b", "3"), pair("", "")],
        content_type: Some("text/plain".to_owned()),
        ..PublishProperties::default()
    };
    for qos in 0..=2 {
        publisher.publish_with(&topic, qos, "grüße".as_bytes(), sent.clone());
        let message = subscriber.message();
        assert_eq!((message.text().as_str(), message.qos), ("grüße", qos));
        let mut found = message.properties;
        let left = found.message_expiry_interval.expect("the interval travels");
        assert!((590..=600).contains(&left), "the interval counts down from 600: {left}");
        found.message_expiry_interval = sent.message_expiry_interval;
        assert_eq!(found, sent);
    }
}

fn subscription_identifiers_name_each_matching_subscription(broker: &Broker) {
    let subscriber = v5::Client::connect(broker.node.mqtt(), &broker.client(0, "sub"));
    let publisher = v5::Client::connect(broker.node.mqtt(), &broker.client(1, "pub"));
    subscriber.subscribe_with(Filter::new(broker.topic("a/+"), QoS::AtLeastOnce), Some(7));
    subscriber.subscribe_with(Filter::new(broker.topic("a/b"), QoS::AtLeastOnce), Some(268_435_455));
    subscriber.subscribe_with(Filter::new(broker.topic("other"), QoS::AtLeastOnce), Some(9));
    publisher.publish(&broker.topic("a/b"), 1, false, b"overlap");
    // One message with both identifiers, or one message for each: both are allowed.
    let mut found = Vec::new();
    while found.len() < 2 {
        let message = subscriber.message();
        assert_eq!(message.text(), "overlap");
        found.extend(message.properties.subscription_identifiers);
    }
    found.sort_unstable();
    assert_eq!(found, [7, 268_435_455]);
    publisher.publish(&broker.topic("a/c"), 1, false, b"one");
    assert_eq!(subscriber.message().properties.subscription_identifiers, [7]);
}

fn retain_handling_and_retain_as_published_are_obeyed(broker: &Broker) {
    let publisher = v5::Client::connect(broker.node.mqtt(), &broker.client(1, "pub"));
    let topic = broker.topic("t");
    publisher.publish(&topic, 1, true, b"kept");
    publisher.acked(1);
    let filter = |rule: RetainForwardRule, preserve: bool| {
        let mut filter = Filter::new(topic.clone(), QoS::AtLeastOnce);
        filter.retain_forward_rule = rule;
        filter.preserve_retain = preserve;
        filter
    };
    let subscriber = v5::Client::connect(broker.node.mqtt(), &broker.client(0, "sub"));
    subscriber.subscribe_with(filter(RetainForwardRule::Never, false), None);
    publisher.publish(&topic, 1, false, b"live 1");
    assert_eq!(subscriber.message().text(), "live 1", "handling 2 replays nothing");
    subscriber.subscribe_with(filter(RetainForwardRule::OnNewSubscribe, false), None);
    publisher.publish(&topic, 1, false, b"live 2");
    assert_eq!(subscriber.message().text(), "live 2", "handling 1 spares a known subscription");
    subscriber.subscribe_with(filter(RetainForwardRule::OnEverySubscribe, false), None);
    let replayed = subscriber.message();
    assert_eq!((replayed.text().as_str(), replayed.retain), ("kept", true), "handling 0 replays again");
    subscriber.unsubscribe(&topic);
    subscriber.subscribe_with(filter(RetainForwardRule::OnNewSubscribe, true), None);
    assert_eq!(subscriber.message().text(), "kept", "handling 1 replays to a new subscription");
    publisher.publish(&topic, 1, true, b"new value");
    let live = subscriber.message();
    assert_eq!((live.text().as_str(), live.retain), ("new value", true), "retain as published");
    publisher.publish(&topic, 1, true, b"");
    publisher.acked(4);
}

fn subscribing_again_replaces_the_options(broker: &Broker) {
    if harness::foreign::executable().is_some() {
        harness::skip::note("the foreign broker keeps the options of the first subscription");
        return;
    }
    let publisher = v5::Client::connect(broker.node.mqtt(), &broker.client(1, "pub"));
    let subscriber = v5::Client::connect(broker.node.mqtt(), &broker.client(0, "sub"));
    let topic = broker.topic("t");
    let subscribe = |qos: QoS, preserve: bool, identifier: usize| {
        let mut filter = Filter::new(topic.clone(), qos);
        filter.preserve_retain = preserve;
        filter.retain_forward_rule = RetainForwardRule::Never;
        subscriber.subscribe_with(filter, Some(identifier));
    };
    for (qos, level, preserve, identifier) in
        [(QoS::AtMostOnce, 0, true, 1), (QoS::ExactlyOnce, 2, false, 2), (QoS::AtLeastOnce, 1, true, 3)]
    {
        subscribe(qos, preserve, identifier);
        publisher.publish(&topic, 2, true, b"value");
        let message = subscriber.message();
        assert_eq!((message.qos, message.retain), (level, preserve));
        assert_eq!(message.properties.subscription_identifiers, [identifier]);
    }
    publisher.publish(&topic, 1, true, b"");
    publisher.acked(4);
}

fn no_local_spares_the_publisher_its_own_messages(broker: &Broker) {
    let selfish = v5::Client::connect(broker.node.mqtt(), &broker.client(0, "selfish"));
    let other = v5::Client::connect(broker.node.mqtt(), &broker.client(1, "other"));
    let topic = broker.topic("t");
    let mut filter = Filter::new(topic.clone(), QoS::AtLeastOnce);
    filter.nolocal = true;
    selfish.subscribe_with(filter, None);
    other.subscribe(&topic, 1);
    selfish.publish(&topic, 1, false, b"mine");
    assert_eq!(other.message().text(), "mine");
    other.publish(&topic, 1, false, b"theirs");
    assert_eq!(selfish.message().text(), "theirs", "not its own, which was first");
}

fn a_session_outlives_its_connection_until_it_expires(broker: &Broker) {
    let id = broker.client(0, "keeper");
    let connect = |clean: bool, expiry_s: u32| {
        let mut options = v5::options(broker.node.mqtt(), &id);
        options.set_clean_start(clean);
        options.set_session_expiry_interval(Some(expiry_s));
        v5::Client::with(options)
    };
    let topic = broker.topic("t");
    let keeper = connect(true, 600);
    assert!(!keeper.session_present);
    keeper.subscribe(&topic, 1);
    drop(keeper);
    let publisher = v5::Client::connect(broker.node.mqtt(), &broker.client(1, "pub"));
    publisher.publish(&topic, 1, false, b"queued");
    publisher.acked(1);
    let keeper = connect(false, 1);
    assert!(keeper.session_present, "600 seconds have not passed");
    assert_eq!(keeper.message().text(), "queued");
    drop(keeper);
    // Asking starts the second anew, so there is a pause longer than it between two questions.
    within(LONG, "the session expires", || {
        std::thread::sleep(Duration::from_millis(1500));
        let keeper = connect(false, 1);
        (!keeper.session_present).then_some(())
    });
}

fn a_message_that_expired_in_the_queue_is_not_delivered(broker: &Broker) {
    let id = broker.client(0, "keeper");
    let (topic, gone) = (broker.topic("t"), broker.topic("gone"));
    let connect = || {
        let mut options = v5::options(broker.node.mqtt(), &id);
        options.set_clean_start(false);
        options.set_session_expiry_interval(Some(600));
        options.set_last_will(LastWill::new(&gone, "gone", QoS::AtLeastOnce, false, None));
        v5::Client::with(options)
    };
    let keeper = connect();
    keeper.subscribe(&topic, 1);
    let publisher = v5::Client::connect(broker.node.mqtt(), &broker.client(1, "pub"));
    publisher.subscribe(&gone, 1);
    drop(keeper);
    // Before its will is out, the broker may still write to the connection, and what is written is delivered.
    assert_eq!(publisher.message().text(), "gone");
    let lasting =
        |seconds| PublishProperties { message_expiry_interval: Some(seconds), ..PublishProperties::default() };
    publisher.publish_with(&topic, 1, b"short", lasting(1));
    publisher.publish_with(&topic, 1, b"long", lasting(600));
    publisher.acked(2);
    // The one wait that no event announces: a second of the message's own life.
    std::thread::sleep(Duration::from_millis(2100));
    let keeper = connect();
    let message = keeper.message();
    assert_eq!(message.text(), "long", "the other has expired");
    let left = message.properties.message_expiry_interval.expect("it travels");
    assert!(left < 600, "the time in the queue counts: {left}");
    drop(keeper);
    drop(v5::Client::connect(broker.node.mqtt(), &id));
}

fn a_delayed_will_is_cancelled_by_a_return(broker: &Broker) {
    let topic = broker.topic("will");
    let witness = v5::Client::connect(broker.node.mqtt(), &broker.client(0, "witness"));
    witness.subscribe(&topic, 1);
    let connect = |delay_s: u32, text: &str| {
        let mut options = v5::options(broker.node.mqtt(), &broker.client(1, "absent"));
        options.set_clean_start(false);
        options.set_session_expiry_interval(Some(60));
        let properties = LastWillProperties {
            delay_interval: Some(delay_s),
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: None,
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        };
        let will = LastWill::new(&topic, text.to_owned(), QoS::AtLeastOnce, false, Some(properties));
        options.set_last_will(will);
        v5::Client::with(options)
    };
    drop(connect(3, "cancelled"));
    drop(connect(1, "published"));
    assert_eq!(witness.message().text(), "published", "the return came within the first delay");
    // The first delay would have ended two seconds after the second one.
    holds_for(Duration::from_millis(2500), "the first will stays cancelled", || {
        !witness.events().so_far().iter().any(|event| matches!(event, Event::Message(_)))
    });
}

fn a_stream_of_every_qos_keeps_its_order(broker: &Broker) {
    let subscriber = v5::Client::connect(broker.node.mqtt(), &broker.client(1, "sub"));
    let publisher = v5::Client::connect(broker.node.mqtt(), &broker.client(0, "pub"));
    subscriber.subscribe(&broker.topic("#"), 2);
    for qos in 0..=2 {
        for number in 0..300 {
            publisher.publish(&broker.topic(&format!("{}", number % 5)), qos, false, number.to_string().as_bytes());
        }
        for number in 0..300 {
            let message = subscriber.message();
            assert_eq!((message.text(), message.qos, message.dup), (number.to_string(), qos, false));
        }
    }
}
