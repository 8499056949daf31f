//! mosquitto_sub and mosquitto_pub in 3.1, 3.1.1 and 5.0.

use crate::{Broker, on_two_and_three_shards};
use harness::mosquitto::{Message, Subscriber, V5, V31, V311, publish, publish_lines};
use harness::{LONG, MOMENT, SHORT, holds_for, needs, within};
use std::collections::BTreeMap;

on_two_and_three_shards!(
    every_qos_arrives_once_in_order_and_at_the_lower_level,
    version_3_1_is_served,
    a_retained_message_is_replayed_and_replaced_and_cleared,
    a_retained_message_is_found_through_wildcards,
    the_will_of_a_killed_client_is_published,
    a_client_that_says_goodbye_leaves_no_will,
    a_goodbye_that_asks_for_the_will_gets_it,
    wildcards_select_what_the_specification_says,
    each_message_of_a_shared_group_reaches_exactly_one_member,
    a_shared_group_and_plain_subscribers_do_not_disturb_each_other,
    a_session_keeps_what_came_while_its_client_was_away,
    a_clean_connection_forgets_the_session,
    one_publish_reaches_every_subscriber_on_every_shard,
    a_large_payload_crosses_shards_unharmed,
    an_empty_client_id_is_given_one,
);

const VERSIONS: [&str; 2] = [V311, V5];

fn every_qos_arrives_once_in_order_and_at_the_lower_level(broker: &Broker) {
    needs!("mosquitto_sub", "mosquitto_pub");
    let at = broker.node.mqtt();
    let payloads: Vec<String> = (0..30).map(|number| format!("message {number}")).collect();
    for version in VERSIONS {
        for sub_qos in 0..=2_u8 {
            let topic = broker.topic(&format!("{version}/{sub_qos}"));
            let (sub, level) = (broker.client(0, "sub"), sub_qos.to_string());
            let mut subscriber = Subscriber::start(at, version, &["-i", &sub, "-t", &topic, "-q", &level]);
            for pub_qos in 0..=2_u8 {
                let (publisher, level) = (broker.client(1, "pub"), pub_qos.to_string());
                let arguments = ["-i", &publisher, "-t", &topic, "-q", &level];
                publish_lines(at, version, &arguments, &payloads);
                for payload in &payloads {
                    let expected = Message {
                        topic: topic.clone(),
                        qos: sub_qos.min(pub_qos),
                        retain: false,
                        payload: payload.clone(),
                    };
                    assert_eq!(subscriber.message(), expected, "published at QoS {pub_qos}");
                }
            }
            assert_eq!(subscriber.so_far(), [], "nothing comes twice");
        }
    }
}

fn version_3_1_is_served(broker: &Broker) {
    needs!("mosquitto_sub", "mosquitto_pub");
    let at = broker.node.mqtt();
    let topic = broker.topic("t");
    // 3.1 allows 23 bytes of client id, so the long names of the other tests will not do.
    let shards = broker.node.shards();
    let sub = harness::client_on(0, shards, &format!("v31s{shards}"));
    let publisher = harness::client_on(1, shards, &format!("v31p{shards}"));
    let mut subscriber = Subscriber::start(at, V31, &["-i", &sub, "-t", &topic, "-q", "2"]);
    publish(at, V31, &["-i", &publisher, "-t", &topic, "-q", "2", "-m", "old but well"]);
    let message = subscriber.message();
    assert_eq!((message.qos, message.payload.as_str()), (2, "old but well"));
}

fn a_retained_message_is_replayed_and_replaced_and_cleared(broker: &Broker) {
    needs!("mosquitto_sub", "mosquitto_pub");
    let at = broker.node.mqtt();
    for version in VERSIONS {
        let topic = broker.topic(version);
        let (early, late) = (broker.client(0, "early"), broker.client(1, "late"));
        let mut live = Subscriber::start(at, version, &["-i", &early, "-t", &topic, "-q", "1"]);
        for payload in ["first", "second"] {
            publish(at, version, &["-r", "-q", "1", "-t", &topic, "-m", payload]);
            let message = live.message();
            assert_eq!((message.payload.as_str(), message.retain), (payload, false), "live");
        }
        let replayed =
            Subscriber::start_unconfirmed(at, version, &["-i", &late, "-t", &topic, "-q", "1", "-C", "1"]).succeed();
        assert_eq!(
            replayed,
            [Message { topic: topic.clone(), qos: 1, retain: true, payload: "second".to_owned() }],
            "the latest value alone is replayed, marked as retained"
        );

        publish(at, version, &["-r", "-q", "1", "-n", "-t", &topic]);
        assert_eq!(live.message().payload, "", "the clearing publish reaches live subscribers");
        let mut after = Subscriber::start(at, version, &["-i", &late, "-t", &topic, "-q", "1"]);
        publish(at, version, &["-q", "1", "-t", &topic, "-m", "marker"]);
        assert_eq!(after.message().payload, "marker", "a cleared value is not replayed");
    }
}

fn a_retained_message_is_found_through_wildcards(broker: &Broker) {
    needs!("mosquitto_sub", "mosquitto_pub");
    let at = broker.node.mqtt();
    // Topics of one node are dealt over its shards, so a wildcard must collect from all of them.
    let rooms: Vec<String> = (0..24).map(|room| broker.topic(&format!("room{room}/light"))).collect();
    for (index, topic) in rooms.iter().enumerate() {
        publish(at, V5, &["-r", "-q", "1", "-t", topic, "-m", &index.to_string()]);
    }
    for (version, filter, shard) in
        [(V5, broker.topic("+/light"), 0), (V311, broker.topic("#"), 1), (V311, broker.topic("+/+"), 2)]
    {
        let client = broker.client(shard, "late");
        let count = rooms.len().to_string();
        let replayed =
            Subscriber::start_unconfirmed(at, version, &["-i", &client, "-t", &filter, "-q", "1", "-C", &count])
                .succeed();
        let found: BTreeMap<&str, (&str, bool)> = replayed
            .iter()
            .map(|message| (message.topic.as_str(), (message.payload.as_str(), message.retain)))
            .collect();
        assert_eq!(found.len(), rooms.len(), "`{filter}` finds each topic once");
        for (index, topic) in rooms.iter().enumerate() {
            assert_eq!(found[topic.as_str()], (index.to_string().as_str(), true));
        }
    }
    for topic in &rooms {
        publish(at, V5, &["-r", "-n", "-q", "1", "-t", topic]);
    }
}

fn the_will_of_a_killed_client_is_published(broker: &Broker) {
    needs!("mosquitto_sub", "mosquitto_pub");
    let at = broker.node.mqtt();
    for version in VERSIONS {
        let topic = broker.topic(&format!("will/{version}"));
        let (witness, doomed) = (broker.client(0, "witness"), broker.client(1, "doomed"));
        let mut witness = Subscriber::start(at, version, &["-i", &witness, "-t", &topic, "-q", "2"]);
        let own = broker.topic("own");
        let arguments = ["-i", &doomed, "-t", &own, "--will-topic", &topic];
        let will = ["--will-payload", "gone", "--will-qos", "1", "--will-retain"];
        Subscriber::start(at, version, &[&arguments[..], &will[..]].concat()).kill();
        let message = witness.message();
        assert_eq!((message.payload.as_str(), message.qos, message.retain), ("gone", 1, false));

        let late = broker.client(1, "late");
        let replayed = Subscriber::start_unconfirmed(at, version, &["-i", &late, "-t", &topic, "-C", "1"]).succeed();
        assert_eq!(replayed[0].payload, "gone");
        assert!(replayed[0].retain, "a will can be retained");
        publish(at, version, &["-r", "-n", "-q", "1", "-t", &topic]);
    }
}

fn a_client_that_says_goodbye_leaves_no_will(broker: &Broker) {
    needs!("mosquitto_sub", "mosquitto_pub");
    let at = broker.node.mqtt();
    for version in VERSIONS {
        let topic = broker.topic(version);
        let (witness, polite) = (broker.client(0, "witness"), broker.client(1, "polite"));
        let mut witness = Subscriber::start(at, version, &["-i", &witness, "-t", &topic, "-q", "1"]);
        let own = broker.topic("own");
        let will = ["--will-topic", &topic, "--will-payload", "gone"];
        let arguments = ["-i", &polite, "-q", "1", "-t", &own];
        let polite = Subscriber::start(at, version, &[&arguments[..], &will[..], &["-C", "1"]].concat());
        publish(at, version, &["-q", "1", "-t", &own, "-m", "enough"]);
        polite.succeed();
        // The same client id connects again: its former connection is over for the broker by then.
        Subscriber::start_unconfirmed(at, version, &[&arguments[..], &["-E"]].concat()).succeed();
        publish(at, version, &["-q", "1", "-t", &topic, "-m", "marker"]);
        assert_eq!(witness.message().payload, "marker");
    }
}

fn a_goodbye_that_asks_for_the_will_gets_it(broker: &Broker) {
    needs!("mosquitto_sub", "mosquitto_pub");
    let at = broker.node.mqtt();
    let topic = broker.topic("will");
    let (witness, leaving) = (broker.client(0, "witness"), broker.client(1, "leaving"));
    let mut witness = Subscriber::start(at, V5, &["-i", &witness, "-t", &topic, "-q", "1"]);
    let own = broker.topic("own");
    let arguments = ["-i", &leaving, "-t", &own, "--will-topic", &topic, "--will-payload", "left"];
    // Interrupted, the program disconnects with reason 0x04: disconnect with will message.
    Subscriber::start(at, V5, &arguments).leave();
    assert_eq!(witness.message().payload, "left");
}

fn wildcards_select_what_the_specification_says(broker: &Broker) {
    needs!("mosquitto_sub", "mosquitto_pub");
    let at = broker.node.mqtt();
    let topics = ["a", "a/b", "a/b/c", "a/x/c", "a//c", "A/b"].map(|rest| broker.topic(rest));
    let cases: [(&str, &[usize]); 7] = [
        ("#", &[0, 1, 2, 3, 4, 5]),
        ("a/#", &[0, 1, 2, 3, 4]),
        ("a/+", &[1]),
        ("a/+/c", &[2, 3, 4]),
        ("+/b", &[1, 5]),
        ("a/b/c", &[2]),
        ("+", &[0]),
    ];
    let mut subscribers: Vec<Subscriber> = (0_u16..)
        .zip(cases)
        .map(|(index, (filter, _))| {
            let client = broker.client(index, &format!("sub{index}"));
            let filter = broker.topic(filter);
            Subscriber::start(at, VERSIONS[usize::from(index % 2)], &["-i", &client, "-t", &filter, "-q", "1"])
        })
        .collect();
    for topic in &topics {
        publish(at, V5, &["-q", "1", "-t", topic, "-m", "x"]);
    }
    for ((filter, expected), subscriber) in cases.iter().zip(&mut subscribers) {
        let heard: Vec<String> = expected.iter().map(|_| subscriber.message().topic).collect();
        let expected: Vec<String> = expected.iter().map(|index| topics[*index].clone()).collect();
        assert_eq!(heard, expected, "filter `{filter}`");
    }
    holds_for(MOMENT, "no filter selects more", || {
        subscribers.iter_mut().all(|subscriber| subscriber.so_far().is_empty())
    });
}

fn each_message_of_a_shared_group_reaches_exactly_one_member(broker: &Broker) {
    needs!("mosquitto_sub", "mosquitto_pub");
    let at = broker.node.mqtt();
    for version in VERSIONS {
        let topic = broker.topic(&format!("work/{version}"));
        let filter = format!("$share/crew/{topic}");
        let mut members: Vec<Subscriber> = (0..3)
            .map(|index| {
                let client = broker.client(index, &format!("member{index}"));
                Subscriber::start(at, version, &["-i", &client, "-t", &filter, "-q", "1"])
            })
            .collect();
        let payloads: Vec<String> = (0..90).map(|number| number.to_string()).collect();
        publish_lines(at, version, &["-i", &broker.client(1, "pub"), "-q", "1", "-t", &topic], &payloads);
        let mut heard: BTreeMap<String, usize> = BTreeMap::new();
        let mut shares = [0; 3];
        within(SHORT, "every message reaches a member", || {
            for (share, member) in shares.iter_mut().zip(&mut members) {
                for message in member.so_far() {
                    *share += 1;
                    *heard.entry(message.payload).or_default() += 1;
                }
            }
            (heard.len() == payloads.len()).then_some(())
        });
        assert!(heard.values().all(|count| *count == 1), "a message reached two members: {heard:?}");
        assert!(shares.iter().all(|share| *share > 0), "a member was never chosen: {shares:?}");
        holds_for(MOMENT, "nothing comes twice", || members.iter_mut().all(|member| member.so_far().is_empty()));
    }
}

fn a_shared_group_and_plain_subscribers_do_not_disturb_each_other(broker: &Broker) {
    needs!("mosquitto_sub", "mosquitto_pub");
    let at = broker.node.mqtt();
    let topic = broker.topic("t");
    let (one, two) = (format!("$share/one/{topic}"), format!("$share/two/{topic}"));
    let start = |index, role: &str, filter: &str| {
        let client = broker.client(index, role);
        Subscriber::start(at, V5, &["-i", &client, "-t", filter, "-q", "1"])
    };
    let mut all = [start(0, "plain", &topic), start(1, "one", &one), start(2, "two", &two)];
    let payloads: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    publish_lines(at, V5, &["-q", "1", "-t", &topic], &payloads);
    for subscriber in &mut all {
        let mut heard = subscriber.payloads(payloads.len());
        heard.sort_by_key(|payload| payload.parse::<u32>().unwrap_or(u32::MAX));
        assert_eq!(heard, payloads);
    }
}

fn a_session_keeps_what_came_while_its_client_was_away(broker: &Broker) {
    needs!("mosquitto_sub", "mosquitto_pub");
    let at = broker.node.mqtt();
    // The foreign broker oversteps Receive Maximum when a session resumes.
    let each = if harness::foreign::executable().is_some() { 10 } else { 40 };
    for version in VERSIONS {
        let topic = broker.topic(&format!("{version}/+"));
        let client = broker.client(0, &format!("keeper-{version}"));
        let keep = ["-c", "-i", &client, "-q", "2", "-t", &topic];
        Subscriber::start_unconfirmed(at, version, &[&keep[..], &["-E"]].concat()).succeed();
        // More than the Receive Maximum of 20 that the program sends in 5.0.
        let payloads: Vec<String> = (0..each).map(|number| number.to_string()).collect();
        for (qos, role) in [("1", "one"), ("2", "two")] {
            let publisher = broker.client(1, role);
            let topic = broker.topic(&format!("{version}/{role}"));
            publish_lines(at, version, &["-i", &publisher, "-q", qos, "-t", &topic], &payloads);
        }
        let all = (2 * each).to_string();
        let back = Subscriber::start_unconfirmed(at, version, &[&keep[..], &["-C", &all]].concat()).succeed();
        for (qos, role) in [(1, "one"), (2, "two")] {
            let topic = broker.topic(&format!("{version}/{role}"));
            let heard: Vec<&str> = back
                .iter()
                .filter(|message| message.topic == topic)
                .map(|message| {
                    assert_eq!(message.qos, qos, "{message:?}");
                    message.payload.as_str()
                })
                .collect();
            assert_eq!(heard, payloads, "{role}");
        }
        // The session is left as it was found: none.
        Subscriber::start_unconfirmed(at, version, &["-i", &client, "-t", &topic, "-E"]).succeed();
    }
}

fn a_clean_connection_forgets_the_session(broker: &Broker) {
    needs!("mosquitto_sub", "mosquitto_pub");
    let at = broker.node.mqtt();
    for version in VERSIONS {
        let topic = broker.topic(version);
        let client = broker.client(1, &format!("fresh-{version}"));
        let other = broker.topic("other");
        let keep = ["-c", "-i", &client, "-q", "1", "-t", &topic, "-E"];
        Subscriber::start_unconfirmed(at, version, &keep).succeed();
        publish(at, version, &["-q", "1", "-t", &topic, "-m", "queued"]);
        Subscriber::start_unconfirmed(at, version, &["-i", &client, "-t", &other, "-E"]).succeed();
        // Were the old session still there, its queue and its subscription would speak first.
        let mut back = Subscriber::start(at, version, &["-c", "-i", &client, "-q", "1", "-t", &other]);
        publish(at, version, &["-q", "1", "-t", &topic, "-m", "unwanted"]);
        publish(at, version, &["-q", "1", "-t", &other, "-m", "marker"]);
        assert_eq!(back.message().payload, "marker");
        back.leave();
        Subscriber::start_unconfirmed(at, version, &["-i", &client, "-t", &other, "-E"]).succeed();
    }
}

fn one_publish_reaches_every_subscriber_on_every_shard(broker: &Broker) {
    needs!("mosquitto_sub", "mosquitto_pub");
    let at = broker.node.mqtt();
    let topic = broker.topic("t");
    let mut subscribers: Vec<Subscriber> = (0..9)
        .map(|index| {
            let client = broker.client(index, &format!("sub{index}"));
            let qos = (index % 3).to_string();
            let version = VERSIONS[usize::from(index % 2)];
            Subscriber::start_unconfirmed(at, version, &["-i", &client, "-t", &topic, "-q", &qos])
        })
        .collect();
    for subscriber in &mut subscribers {
        subscriber.subscribed();
    }
    publish(at, V5, &["-q", "2", "-t", &topic, "-m", "to all"]);
    for (index, subscriber) in subscribers.iter_mut().enumerate() {
        let message = subscriber.message();
        assert_eq!((usize::from(message.qos), message.payload.as_str()), (index % 3, "to all"));
    }
}

fn a_large_payload_crosses_shards_unharmed(broker: &Broker) {
    needs!("mosquitto_sub", "mosquitto_pub");
    let at = broker.node.mqtt();
    let topic = broker.topic("t");
    // No line feed inside, so that one line of the subscriber is one payload.
    let payload: String = (0..700_000_u32).map(|at| char::from(b'a' + (at * 7 % 26) as u8)).collect();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("payload");
    std::fs::write(&file, &payload).expect("the file is writable");
    let file = file.display().to_string();
    for (version, qos) in [(V311, "0"), (V5, "1"), (V311, "2")] {
        let (sub, publisher) = (broker.client(0, "sub"), broker.client(1, "pub"));
        let mut subscriber = Subscriber::start(at, version, &["-i", &sub, "-t", &topic, "-q", qos]);
        publish(at, version, &["-i", &publisher, "-t", &topic, "-q", qos, "-f", &file]);
        let heard = subscriber.message().payload;
        assert!(heard == payload, "{} bytes came of {}", heard.len(), payload.len());
    }
}

fn an_empty_client_id_is_given_one(broker: &Broker) {
    needs!("mosquitto_sub", "mosquitto_pub");
    let at = broker.node.mqtt();
    let topic = broker.topic("t");
    for version in VERSIONS {
        // Without `-i` the program sends an empty client id.
        let mut nameless: Vec<Subscriber> =
            (0..3).map(|_| Subscriber::start(at, version, &["-t", &topic, "-q", "1"])).collect();
        publish(at, version, &["-q", "1", "-t", &topic, "-m", "to the nameless"]);
        for subscriber in &mut nameless {
            assert_eq!(subscriber.message().payload, "to the nameless", "three, none took another over");
        }
    }
}

/// mosquitto as a bridge: the one stock client that opens with the bridge bit and dials as a server does.
#[test]
fn a_mosquitto_bridge_carries_messages_both_ways() {
    needs!("mosquitto", "mosquitto_sub", "mosquitto_pub");
    let broker = Broker::new(2, "bridge");
    let at = broker.node.mqtt();
    let far = harness::ports::free();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("bridge.conf");
    let text = format!(
        "listener {} {}\nallow_anonymous true\nconnection ours\naddress {at}\nremote_clientid {}\n\
         bridge_protocol_version mqttv50\nnotifications false\ntopic bridged/# both 1\n",
        far.port(),
        far.ip(),
        broker.client(1, "bridge"),
    );
    std::fs::write(&file, text).expect("the file is writable");
    let executable = harness::program::find("mosquitto").expect("it was there above");
    let _bridge = harness::Program::new(executable).args(["-c", &file.display().to_string()]).start();
    within(LONG, "the bridge listens", || std::net::TcpStream::connect(far).ok());

    let mut here = Subscriber::start(at, V5, &["-t", "bridged/#", "-q", "1"]);
    let mut there = Subscriber::start(far, V5, &["-t", "bridged/#", "-q", "1"]);
    // The bridge subscribes when it pleases: retained publishes are there whenever it does.
    publish(at, V5, &["-r", "-q", "1", "-t", "bridged/out", "-m", "outward"]);
    publish(far, V5, &["-r", "-q", "1", "-t", "bridged/in", "-m", "inward"]);
    let hear = |subscriber: &mut Subscriber, payload: &str| {
        within(LONG, payload, || subscriber.so_far().iter().any(|message| message.payload == payload).then_some(()));
    };
    hear(&mut there, "outward");
    hear(&mut here, "inward");
    for topic in ["bridged/out", "bridged/in"] {
        publish(at, V5, &["-r", "-n", "-q", "1", "-t", topic]);
    }
}
