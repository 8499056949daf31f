//! What crosses, how, and how often.

use crate::clusters::{Clusters, client, sent_exactly, until_linked};
use harness::mosquitto::{Subscriber, V5, V311, publish};
use harness::rumq::{Event, PublishProperties};
use harness::{MOMENT, SHORT, holds_for, needs, within};

#[test]
fn every_qos_reaches_a_subscriber_on_the_other_cluster_in_order() {
    let clusters = Clusters::start_open();
    for (from, to) in [(&clusters.a, &clusters.b), (&clusters.b, &clusters.a)] {
        let subscriber = client(to, 0, "sub");
        subscriber.subscribe("news/#", 2);
        let publisher = client(from, 1, "pub");
        until_linked(&publisher, "news/t", &subscriber);
        for qos in 0..=2 {
            for number in 0..200 {
                publisher.publish(&format!("news/{}", number % 3), qos, false, number.to_string().as_bytes());
            }
            if qos > 0 {
                publisher.acked(200);
            }
            for number in 0..200 {
                let message = subscriber.message();
                assert_eq!(message.text(), number.to_string(), "QoS {qos}");
                assert_eq!(message.qos, qos);
            }
        }
    }
}

#[test]
fn stock_clients_talk_across_the_link() {
    needs!("mosquitto_sub", "mosquitto_pub");
    let clusters = Clusters::start_open();
    let mut old = Subscriber::start(clusters.b.mqtt(), V311, &["-t", "stock/#", "-q", "2"]);
    let mut new = Subscriber::start(clusters.b.mqtt(), V5, &["-t", "stock/+", "-q", "2"]);
    let (witness, publisher) = (client(&clusters.b, 0, "witness"), client(&clusters.a, 0, "pub"));
    witness.subscribe("stock/probe", 1);
    until_linked(&publisher, "stock/probe", &witness);
    for qos in ["0", "1", "2"] {
        publish(clusters.a.mqtt(), V5, &["-q", qos, "-t", "stock/t", "-m", qos]);
        for subscriber in [&mut old, &mut new] {
            let message = within(SHORT, "the message crosses", || {
                Some(subscriber.message()).filter(|message| message.topic == "stock/t")
            });
            assert_eq!((message.payload.as_str(), message.qos.to_string().as_str()), (qos, qos));
        }
    }
}

#[test]
fn properties_cross_and_retained_stores_stay_apart() {
    let clusters = Clusters::start_open();
    let subscriber = client(&clusters.b, 1, "sub");
    subscriber.subscribe("props/#", 2);
    let publisher = client(&clusters.a, 0, "pub");
    until_linked(&publisher, "props/t", &subscriber);
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let sent = PublishProperties {
        payload_format_indicator: Some(1),
        message_expiry_interval: Some(600),
        response_topic: Some("answers/here".to_owned()),
        correlation_data: Some(vec![0, 255, 1].into()),
        user_properties: vec![pair("b", "1"), pair("a", "2"), pair("b", "3")],
        content_type: Some("text/plain".to_owned()),
        ..PublishProperties::default()
    };
    publisher.publish_with("props/t", 1, b"with properties", sent.clone());
    let mut found = subscriber.message().properties;
    let left = found.message_expiry_interval.expect("the interval travels");
    assert!((590..=600).contains(&left), "{left}");
    found.message_expiry_interval = sent.message_expiry_interval;
    assert_eq!(found, sent);

    publisher.publish("props/kept", 1, true, b"kept over there");
    let live = subscriber.message();
    assert_eq!((live.text().as_str(), live.retain), ("kept over there", false));
    let late = client(&clusters.b, 0, "late");
    late.subscribe("props/kept", 1);
    publisher.publish("props/kept", 1, false, b"marker");
    assert_eq!(late.message().text(), "marker", "the other cluster stored nothing");
    let at_home = client(&clusters.a, 1, "home");
    at_home.subscribe("props/kept", 1);
    assert_eq!(at_home.message().text(), "kept over there", "its own cluster did");
}

#[test]
fn with_everything_wanted_both_ways_nothing_goes_round() {
    let clusters = Clusters::start_open();
    let (here, there) = (client(&clusters.a, 0, "sub"), client(&clusters.b, 1, "sub"));
    here.subscribe("#", 1);
    there.subscribe("#", 1);
    let publisher = client(&clusters.a, 1, "pub");
    let crossed = until_linked(&publisher, "loop/t", &there);
    let heard_here = || {
        let events = here.events().so_far();
        events.iter().filter(|event| matches!(event, Event::Message(_))).count()
    };
    // The probes of the first moment are heard here, too; they end with the last one.
    within(SHORT, "the last probe is heard at home", || (here.message().payload == b"linked").then_some(()));
    for number in 0..50 {
        publisher.publish("loop/t", 1, false, number.to_string().as_bytes());
    }
    publisher.acked(50);
    for number in 0..50 {
        for subscriber in [&here, &there] {
            assert_eq!(subscriber.message().text(), number.to_string());
        }
    }
    sent_exactly(&clusters.a, crossed + 50);
    assert_eq!(clusters.b.counter("link_sent"), 0, "nothing is sent back");
    assert_eq!(heard_here(), 0, "nothing comes back");
    holds_for(MOMENT, "nothing comes twice", || there.events().so_far().is_empty());
}

#[test]
fn a_shared_group_gets_one_copy_in_each_cluster() {
    let clusters = Clusters::start_open();
    let publisher = client(&clusters.a, 0, "pub");
    let probe = client(&clusters.b, 0, "probe");
    probe.subscribe("crew/probe", 1);
    let home = client(&clusters.a, 1, "home");
    home.subscribe("$share/crew/crew/work", 1);
    let members = [client(&clusters.b, 0, "m0"), client(&clusters.b, 1, "m1")];
    for member in &members {
        member.subscribe("$share/crew/crew/work", 1);
    }
    until_linked(&publisher, "crew/probe", &probe);
    let abroad = || -> Vec<String> {
        let events = members.iter().flat_map(|member| member.events().so_far());
        events
            .filter_map(|event| match event {
                Event::Message(message) => Some(message.text()),
                _ => None,
            })
            .collect()
    };
    // The group's interest may cross after that of the probe.
    within(SHORT, "the group is heard across the link", || {
        publisher.publish("crew/work", 1, false, b"probe");
        publisher.acked(1);
        home.message();
        std::thread::sleep(std::time::Duration::from_millis(20));
        (!abroad().is_empty()).then_some(())
    });
    for number in 0..60 {
        publisher.publish("crew/work", 1, false, number.to_string().as_bytes());
    }
    publisher.acked(60);
    let expected: Vec<String> = (0..60).map(|number| number.to_string()).collect();
    for payload in &expected {
        assert_eq!(&home.message().text(), payload, "the only member at home gets each");
    }
    let mut heard = Vec::new();
    within(SHORT, "each message reaches a member abroad", || {
        heard.extend(abroad().into_iter().filter(|payload| payload != "probe"));
        (heard.len() >= expected.len()).then_some(())
    });
    holds_for(MOMENT, "no message reaches two members", || abroad().is_empty());
    heard.sort_by_key(|payload| payload.parse::<u32>().unwrap_or(u32::MAX));
    assert_eq!(heard, expected);
}

#[test]
fn overlapping_filters_draw_one_copy_across() {
    let clusters = Clusters::start_open();
    let (wide, narrow) = (client(&clusters.b, 0, "wide"), client(&clusters.b, 1, "narrow"));
    wide.subscribe("over/#", 1);
    wide.subscribe("over/+", 1);
    narrow.subscribe("over/t", 1);
    let publisher = client(&clusters.a, 0, "pub");
    let probe = client(&clusters.b, 0, "probe");
    probe.subscribe("probe", 1);
    let crossed = until_linked(&publisher, "probe", &probe);
    // Each filter's interest crosses by itself: wait until all three have.
    within(SHORT, "the exact filter is known over there", || {
        publisher.publish("over/t", 1, false, b"probe");
        publisher.acked(1);
        narrow.events().so_far().iter().any(|event| matches!(event, Event::Message(_))).then_some(())
    });
    let before = clusters.a.counter("link_sent");
    assert!(before > crossed, "the probes on `over/t` were sent, too");
    for _ in 0..20 {
        publisher.publish("over/t", 1, false, b"x");
    }
    publisher.acked(20);
    sent_exactly(&clusters.a, before + 20);
}
