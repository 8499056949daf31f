//! What a shard does, told as short scripts: one behaviour each. The simulation finds the orders of events
//! that nobody thinks of; a seed that fails there gets its script here.

use alloc::{format, string::String, vec::Vec};

use mqtt::{
    codec::{AckKind, Will, encode},
    types::{Qos, Reason, Version},
};

use crate::{
    counters::Counter,
    rig::{Client, Rig, id},
    surface::Terms,
};

const Q0: Qos = Qos::AtMostOnce;
const Q1: Qos = Qos::AtLeastOnce;
const Q2: Qos = Qos::ExactlyOnce;

/// Two clients, at home on different shards of two: a subscriber and a publisher.
fn pair() -> (Rig, Client, Client) {
    let mut rig = Rig::new(2);
    let (a, b) = (rig.id_on(1, "subscriber"), rig.id_on(0, "publisher"));
    let subscriber = rig.connect(&a);
    let publisher = rig.connect(&b);
    rig.got(subscriber);
    rig.got(publisher);
    (rig, subscriber, publisher)
}

fn acknowledge(rig: &mut Rig, client: Client, kind: AckKind, packet: u16) {
    let mut bytes = Vec::new();
    encode::ack(&mut bytes, Version::V5, kind, id(packet), Reason::Success);
    rig.send(client, &bytes);
}

#[test]
fn a_connection_moves_to_its_home_shard_with_everything_it_had_sent() {
    let mut rig = Rig::new(2);
    let home = rig.id_on(1, "mover");
    let mover = rig.accept();
    let mut bytes = Vec::new();
    let connect = mqtt::codec::Connect {
        version: Version::V5,
        clean_start: true,
        keep_alive_s: 0,
        client_id: &home,
        username: None,
        password: None,
        will: None,
        properties: mqtt::codec::ConnectProperties::default(),
        bridge: false,
    };
    encode::connect(&mut bytes, &connect);
    encode::pingreq(&mut bytes);
    encode::pingreq(&mut bytes);
    let (first, rest) = bytes.split_at(10);
    rig.send(mover, first);
    rig.send(mover, rest);
    assert_eq!(rig.heard(mover), ["connack Success false", "pingresp", "pingresp"]);
    assert_eq!(rig.count(Counter::connections_handed_over), 1);
}

#[test]
fn a_connect_that_cannot_be_decoded_is_refused_in_the_version_that_it_claims() {
    let mut rig = Rig::new(1);
    let mut refused = |bytes: &[u8]| {
        let client = rig.accept();
        rig.send(client, bytes);
        let got = rig.heard(client);
        assert!(rig.closed(client));
        got
    };
    // 5.0 with the reserved connect flag; an unknown level; no MQTT at all; PINGREQ first.
    assert_eq!(refused(b"\x10\x0e\0\x04MQTT\x05\x03\0\0\0\0\x01a"), ["connack MalformedPacket false"]);
    assert_eq!(refused(b"\x10\x0e\0\x04MQTT\x09\x02\0\0\0\0\x01a"), ["connack UnsupportedProtocolVersion false"]);
    assert_eq!(refused(b"\x10\x03GET"), [""; 0]);
    assert_eq!(refused(b"\xc0\0"), [""; 0]);
}

#[test]
fn suback_waits_until_every_shard_has_the_interest() {
    let (mut rig, subscriber, publisher) = pair();
    rig.hold(0, 1);
    rig.subscribe(subscriber, "t", Q0);
    assert_eq!(rig.heard(subscriber), [""; 0], "shard 0 has not confirmed");
    rig.release();
    assert_eq!(rig.heard(subscriber), ["suback 0"]);
    rig.publish(publisher, "t", "m", Q0, false);
    assert_eq!(rig.heard(subscriber), ["t m q0"]);
}

#[test]
fn puback_waits_for_the_other_shard_and_keeps_the_order() {
    let (mut rig, subscriber, publisher) = pair();
    rig.subscribe(subscriber, "t", Q1);
    rig.settle();
    rig.hold(0, 1);
    rig.publish(publisher, "t", "1", Q1, false);
    rig.publish(publisher, "nobody", "2", Q1, false);
    assert_eq!(rig.heard(publisher), [""; 0], "the second acknowledgement may not overtake the first");
    rig.release();
    assert_eq!(rig.heard(publisher), ["puback 0", "puback 16"]);
}

#[test]
fn what_was_held_back_counts_when_the_client_closes_after_its_last_packet() {
    let mut rig = Rig::with(2, |settings| settings.mqtt.receive_max = 1);
    let (a, b) = (rig.id_on(1, "subscriber"), rig.id_on(0, "publisher"));
    let subscriber = rig.connect(&a);
    let publisher = rig.connect_with(&b, |connect| connect.version = Version::V311);
    rig.subscribe(subscriber, "t", Q1);
    rig.settle();
    rig.got(subscriber);
    for n in 0..3 {
        rig.publish(publisher, "t", &format!("{n}"), Q1, false);
    }
    rig.end(publisher);
    assert_eq!(rig.heard(subscriber), ["t 0 q1", "t 1 q1", "t 2 q1"]);
}

#[test]
fn a_replay_waits_for_the_other_shards_even_if_the_interest_is_not_new() {
    let (mut rig, first, _) = pair();
    rig.subscribe(first, "r/#", Q1);
    let name = rig.id_on(1, "second");
    let second = rig.connect(&name);
    rig.got(second);
    rig.hold(0, 1);
    rig.subscribe(second, "r/#", Q1);
    assert_eq!(rig.heard(second), [""; 0], "shard 0 may have staged a retained value that shard 1 has passed on");
    rig.release();
    assert_eq!(rig.heard(second), ["suback 1"]);
}

#[test]
fn unsuback_of_a_shared_subscription_waits_for_the_owner_of_the_group() {
    let (mut rig, member, _) = pair();
    let owned = |group: &String| {
        contract::hash::owner_shard(contract::hash::partition_of_group(group, "t"), 2) == contract::ids::ShardId(0)
    };
    let filter = (0..100).map(|n| format!("g{n}")).find(owned).map(|group| format!("$share/{group}/t")).unwrap();
    rig.subscribe(member, &filter, Q1);
    rig.settle();
    rig.got(member);
    rig.hold(1, 0);
    let mut bytes = Vec::new();
    encode::unsubscribe(&mut bytes, Version::V5, id(2), &[&filter]);
    rig.send(member, &bytes);
    assert_eq!(rig.heard(member), [""; 0], "the owner may still choose it");
    rig.release();
    assert_eq!(rig.heard(member), ["unsuback"]);
}

#[test]
fn a_resumed_session_keeps_to_the_receive_maximum_of_its_new_connection() {
    let (mut rig, _, publisher) = pair();
    let session = |c: &mut mqtt::codec::Connect<'_>| {
        c.clean_start = false;
        c.properties.session_expiry_s = Some(60);
    };
    let phone = rig.connect_with("phone", session);
    rig.subscribe(phone, "t", Q1);
    rig.settle();
    for n in 0..2 {
        rig.publish(publisher, "t", &format!("{n}"), Q1, false);
        rig.settle();
    }
    rig.cut(phone);
    let phone = rig.connect_with("phone", |c| {
        session(c);
        c.properties.receive_maximum = Some(1);
    });
    assert_eq!(rig.heard(phone), ["connack Success true", "t 0 q1 dup"]);
    acknowledge(&mut rig, phone, AckKind::Puback, 1);
    assert_eq!(rig.heard(phone), ["t 1 q1 dup"]);
}

#[test]
fn an_unmet_obligation_is_refused_in_time() {
    let (mut rig, subscriber, publisher) = pair();
    rig.subscribe(subscriber, "t", Q1);
    rig.settle();
    rig.hold(0, 1);
    rig.publish(publisher, "t", "1", Q1, false);
    rig.pass(11_000);
    rig.pass(600);
    assert_eq!(rig.heard(publisher), ["puback 151"]);
    assert_eq!(rig.count(Counter::obligations_timed_out), 1);
}

#[test]
fn a_qos_2_publish_that_comes_again_is_routed_once() {
    let (mut rig, subscriber, publisher) = pair();
    rig.subscribe(subscriber, "t", Q2);
    rig.settle();
    rig.got(subscriber);
    rig.publish(publisher, "t", "m", Q2, false);
    rig.publish(publisher, "t", "m", Q2, false);
    assert_eq!(rig.heard(publisher), ["pubrec 0"], "one answer for both");
    rig.publish(publisher, "t", "m", Q2, false);
    assert_eq!(rig.heard(publisher), ["pubrec 0"]);
    acknowledge(&mut rig, publisher, AckKind::Pubrel, 77);
    assert_eq!(rig.heard(publisher), ["pubcomp 0"]);
    assert_eq!(rig.heard(subscriber), ["t m q2"]);
    acknowledge(&mut rig, publisher, AckKind::Pubrel, 77);
    assert_eq!(rig.heard(publisher), ["pubcomp 146"]);
}

#[test]
fn overlapping_subscriptions_deliver_one_copy_with_the_highest_qos() {
    let (mut rig, subscriber, publisher) = pair();
    rig.subscribe(subscriber, "a/+", Q0);
    rig.subscribe(subscriber, "a/#", Q1);
    rig.settle();
    rig.got(subscriber);
    rig.publish(publisher, "a/b", "m", Q2, false);
    assert_eq!(rig.heard(subscriber), ["a/b m q1"]);
}

#[test]
fn a_retained_value_is_replayed_once_and_not_after_a_newer_live_one() {
    let (mut rig, subscriber, publisher) = pair();
    rig.publish(publisher, "r/1", "old", Q1, true);
    rig.publish(publisher, "r/2", "gone", Q1, true);
    rig.publish(publisher, "r/2", "", Q1, true);
    rig.settle();
    rig.subscribe(subscriber, "r/#", Q1);
    assert_eq!(rig.heard(subscriber), ["suback 1", "r/1 old q1 retain"]);
    rig.publish(publisher, "r/1", "new", Q1, true);
    assert_eq!(rig.heard(subscriber), ["r/1 new q1"]);
}

#[test]
fn a_long_replay_goes_at_the_pace_of_the_subscriber_and_loses_nothing() {
    let (mut rig, subscriber, publisher) = pair();
    for n in 0..1000 {
        rig.publish(publisher, &format!("r/{n}"), "v", Q1, true);
        rig.settle();
    }
    rig.subscribe(subscriber, "r/+", Q1);
    let mut values = Vec::new();
    let mut packet = 1;
    for _ in 0..2000 {
        let got: Vec<String> = rig.heard(subscriber).into_iter().filter(|line| line.ends_with("retain")).collect();
        for _ in &got {
            acknowledge(&mut rig, subscriber, AckKind::Puback, packet);
            packet += 1;
        }
        values.extend(got);
    }
    values.sort();
    values.dedup();
    assert_eq!(values.len(), 1000);
    assert_eq!(rig.count(Counter::shed_queue_full), 0);
    assert!(rig.shards.iter().all(|shard| shard.gauges().replays == 0));
}

#[test]
fn a_group_serves_each_message_to_one_member_and_passes_over_those_who_left() {
    let mut rig = Rig::new(2);
    let names: Vec<String> = (0..4u16).map(|n| rig.id_on(n % 2, &format!("member{n}"))).collect();
    let members: Vec<Client> = names.iter().map(|name| rig.connect(name)).collect();
    let publisher = rig.connect("publisher");
    for member in &members {
        rig.subscribe(*member, "$share/g/t/+", Q1);
    }
    rig.settle();
    rig.cut(members[0]);
    for n in 0..6 {
        rig.publish(publisher, "t/x", &format!("{n}"), Q0, false);
    }
    rig.settle();
    let counts: Vec<usize> =
        members.iter().map(|m| rig.got(*m).iter().filter(|line| line.starts_with("t/x")).count()).collect();
    assert_eq!(counts, [0, 2, 2, 2]);
}

#[test]
fn a_second_connection_takes_the_session_over_with_its_queue() {
    let (mut rig, _, publisher) = pair();
    let name = rig.id_on(1, "phone");
    let session = |c: &mut mqtt::codec::Connect<'_>| {
        c.clean_start = false;
        c.properties.session_expiry_s = Some(60);
    };
    let first = rig.connect_with(&name, session);
    rig.subscribe(first, "t", Q1);
    rig.settle();
    rig.got(first);
    rig.publish(publisher, "t", "1", Q1, false);
    rig.settle();
    let second = rig.connect_with(&name, session);
    assert_eq!(rig.got(first), ["t 1 q1", "disconnect SessionTakenOver"]);
    assert!(rig.closed(first));
    assert_eq!(rig.heard(second), ["connack Success true", "t 1 q1 dup"]);
}

#[test]
fn a_will_is_published_after_its_delay_unless_the_client_returns() {
    let (mut rig, subscriber, _) = pair();
    rig.subscribe(subscriber, "will/#", Q1);
    rig.settle();
    rig.got(subscriber);
    let with_will = |c: &mut mqtt::codec::Connect<'_>| {
        c.clean_start = false;
        c.properties.session_expiry_s = Some(60);
        c.will = Some(Will {
            qos: Q1,
            retain: false,
            topic: "will/x",
            payload: b"gone",
            delay_s: 5,
            properties: mqtt::codec::PublishProperties::default(),
        });
    };
    let first = rig.connect_with("mortal", with_will);
    rig.cut(first);
    rig.pass(4000);
    let second = rig.connect_with("mortal", with_will);
    rig.pass(10_000);
    assert_eq!(rig.heard(subscriber), [""; 0], "it came back in time");
    rig.cut(second);
    rig.pass(5200);
    assert_eq!(rig.heard(subscriber), ["will/x gone q1"]);
}

#[test]
fn a_session_ends_when_its_expiry_has_passed_and_leaves_nothing() {
    let (mut rig, subscriber, publisher) = pair();
    let client = rig.connect_with("brief", |c| c.properties.session_expiry_s = Some(2));
    rig.subscribe(client, "t/#", Q1);
    rig.settle();
    rig.cut(client);
    rig.publish(publisher, "t/1", "kept", Q1, false);
    rig.settle();
    rig.pass(2200);
    assert_eq!(rig.count(Counter::session_expired), 1);
    assert_eq!(rig.count(Counter::shed_session_ended), 1);
    rig.cut(subscriber);
    rig.cut(publisher);
    for shard in &rig.shards {
        assert_eq!(shard.gauges(), crate::Gauges::default());
    }
}

#[test]
fn a_slow_subscriber_loses_qos_0_only_and_is_counted() {
    let mut rig = Rig::with(1, |settings| settings.limits.output_bytes_max = 4096);
    let subscriber = rig.connect("slow");
    let publisher = rig.connect("fast");
    rig.subscribe(subscriber, "t", Q1);
    rig.settle();
    rig.got(subscriber);
    let payload = "x".repeat(1000);
    for _ in 0..20 {
        rig.publish(publisher, "t", &payload, Q0, false);
    }
    rig.publish(publisher, "t", "last", Q1, false);
    let got = rig.heard(subscriber);
    assert_eq!(got.len() as u64, 20 - rig.count(Counter::shed_slow_subscriber) + 1);
    assert!(rig.count(Counter::shed_slow_subscriber) > 0);
    assert!(got.last().unwrap().contains("last"), "QoS 1 waits in the queue instead");
}

#[test]
fn link_topics_are_closed_to_clients_that_no_accept_names() {
    let mut rig = Rig::new(1);
    let client = rig.connect("curious");
    rig.got(client);
    rig.subscribe(client, "$LINK/#", Q1);
    rig.publish(client, "$LINK/cluster/what", "x", Q1, false);
    assert_eq!(rig.heard(client), ["suback 135", "puback 135"]);
    assert_eq!(rig.count(Counter::link_clients_refused), 2);
    assert!(!rig.closed(client));
}

#[test]
fn a_link_that_demands_a_certificate_accepts_who_has_it() {
    let mut rig = Rig::with(1, |settings| {
        let accept = contract::config::Accept { username: None, client_id_prefix: None, cert: Some("us".into()) };
        settings.links = alloc::vec![contract::config::Link { accept: Some(accept), ..crate::rig::link("us-east") }];
    });
    for (common_name, granted) in [(None, "suback 135"), (Some("them"), "suback 135"), (Some("us"), "suback 1")] {
        rig.common_name = common_name.map(Into::into);
        let client = rig.connect("speaker");
        rig.got(client);
        rig.subscribe(client, "$LINK/cluster/resp/us-east/actor", Q1);
        assert_eq!(rig.heard(client), [granted], "{common_name:?}");
    }
}

#[test]
fn the_time_for_connect_runs_from_the_accept_and_not_from_the_end_of_a_handshake() {
    let mut rig = Rig::with(1, |settings| settings.mqtt.connect_timeout_ms = 900);
    let early = rig.accept();
    rig.handshake_ms = 800;
    let late = rig.accept();
    rig.pass(200);
    assert!(rig.closed(late) && !rig.closed(early));
    rig.pass(800);
    assert!(rig.closed(early));
    assert_eq!(rig.count(Counter::connect_timeout), 2);
}

#[test]
fn clients_below_a_mountpoint_meet_among_themselves_and_do_not_see_it() {
    let mut rig = Rig::with(2, |settings| {
        let mounted = |at: &str| Terms { mountpoint: Some(at.into()), ..Terms::default() };
        settings.listeners = [Terms::default(), mounted("a/"), mounted("b/")].into();
    });
    let everywhere = rig.connect("everywhere");
    rig.subscribe(everywhere, "#", Q1);
    let below = |rig: &mut Rig, listener, client: &str| {
        rig.listener = listener;
        rig.connect(client)
    };
    let (first, second, other) = (below(&mut rig, 1, "a1"), below(&mut rig, 1, "a2"), below(&mut rig, 2, "b1"));
    for client in [second, other] {
        rig.subscribe(client, "#", Q1);
        rig.subscribe(client, "$share/g/shared", Q1);
        rig.subscribe(client, "gone", Q1);
        let mut bytes = Vec::new();
        encode::unsubscribe(&mut bytes, Version::V5, id(2), &["gone"]);
        rig.send(client, &bytes);
    }
    for client in [first, second, other, everywhere] {
        rig.heard(client);
    }
    rig.publish(first, "t/1", "live", Q1, true);
    rig.publish(first, "shared", "one of us", Q1, false);
    let heard = rig.heard(second);
    assert!(heard.iter().any(|line| line.contains("t/1") && line.contains("live")), "{heard:?}");
    assert!(heard.iter().filter(|line| line.contains("one of us")).count() == 2, "{heard:?}");
    assert!(heard.iter().all(|line| !line.contains("a/")), "{heard:?}");
    assert!(rig.heard(other).is_empty());
    let heard = rig.heard(everywhere);
    assert!(heard.iter().any(|line| line.contains("a/t/1")) && heard.iter().any(|line| line.contains("a/shared")));
    // Retained values and wills, too.
    let late = below(&mut rig, 1, "a3");
    rig.got(late);
    rig.subscribe(late, "t/1", Q1);
    let heard = rig.heard(late);
    assert!(
        heard.iter().any(|line| line.contains("t/1") && line.contains("live") && !line.contains("a/")),
        "{heard:?}"
    );
}

#[test]
fn a_client_that_does_not_read_its_acknowledgements_is_not_read_either() {
    let mut rig = Rig::with(1, |settings| settings.limits.output_bytes_max = 4096);
    let client = rig.connect("deaf");
    rig.stop_reading(client);
    for _ in 0..5000 {
        rig.publish(client, "t", "m", Q1, false);
    }
    let waiting = rig.unsent(client);
    assert!(waiting < 3 * 4096, "{waiting} bytes wait");
}

#[test]
fn a_session_that_exists_may_come_back_when_there_is_no_room_for_new_ones() {
    let mut rig = Rig::with(1, |settings| settings.limits.sessions_max = 1);
    let keep = |c: &mut mqtt::codec::Connect<'_>| {
        c.clean_start = false;
        c.properties.session_expiry_s = Some(60);
    };
    let first = rig.connect_with("first", keep);
    rig.cut(first);
    let second = rig.connect("second");
    assert_eq!(rig.heard(second), ["connack QuotaExceeded false"]);
    let again = rig.connect_with("first", keep);
    assert_eq!(rig.heard(again), ["connack Success true"]);
}

/// `actor_init` of an actor `n1@h` for the cluster `target`, as a remote sends it.
fn actor_init(target: &str) -> Vec<u8> {
    let mut payload = Vec::new();
    link::wire::put_actor_init(&mut payload, "n1@h", 1_780_000_000_000, target);
    payload
}

fn route(rig: &mut Rig, client: Client, cluster: &str, qos: Qos, payload: &[u8]) {
    let topic = format!("$LINK/cluster/route/{cluster}");
    let response = format!("$LINK/cluster/resp/{cluster}/n1@h");
    let mut forwarded = Vec::from([8]);
    forwarded.extend_from_slice(&(response.len() as u16).to_be_bytes());
    forwarded.extend_from_slice(response.as_bytes());
    let packet_id = (qos != Q0).then(|| id(9));
    let parts = encode::PublishParts {
        qos,
        topic: &topic,
        packet_id,
        forwarded: &forwarded,
        payload,
        ..encode::PublishParts::default()
    };
    let mut bytes = Vec::new();
    encode::publish(&mut bytes, Version::V5, &parts);
    rig.send(client, &bytes);
}

#[test]
fn a_refused_heartbeat_closes_its_connection_whatever_shard_owns_the_link() {
    for home in 0..2 {
        let mut rig = Rig::linked(2, "remote");
        let name = rig.id_on(home, "remote:routesync");
        let client = rig.connect(&name);
        route(&mut rig, client, "remote", Q1, &actor_init("test"));
        rig.settle();
        // Silent for longer than an actor lives; then its heartbeats come again.
        rig.pass(31_000);
        rig.pass(1000);
        let mut heartbeat = Vec::new();
        link::wire::put_heartbeat(&mut heartbeat, "n1@h", 1_780_000_000_000);
        route(&mut rig, client, "remote", Q0, &heartbeat);
        rig.settle();
        assert!(rig.closed(client), "home shard {home}");
    }
}

#[test]
fn a_route_connection_speaks_for_one_cluster() {
    let mut rig = Rig::linked(2, "remote");
    let client = rig.connect("two-faced");
    route(&mut rig, client, "remote", Q1, &actor_init("test"));
    rig.settle();
    assert!(!rig.closed(client));
    route(&mut rig, client, "zzz", Q1, &actor_init("test"));
    rig.settle();
    assert!(rig.closed(client));
}

#[test]
fn an_exported_session_comes_back_the_same() {
    let (mut rig, _, publisher) = pair();
    let name = rig.id_on(1, "traveller");
    let client = rig.connect_with(&name, |c| {
        c.clean_start = false;
        c.properties.session_expiry_s = Some(600);
        c.properties.receive_maximum = Some(1);
    });
    rig.subscribe(client, "t/#", Q2);
    rig.subscribe(client, "$share/g/s", Q1);
    rig.settle();
    for n in 0..3 {
        rig.publish(publisher, "t/x", &format!("{n}"), Q1, false);
        rig.settle();
    }
    rig.cut(client);
    let mut exported = Vec::new();
    assert!(rig.shards[1].export_session(&name, &mut exported));
    let mut other = Rig::new(2);
    other.now = rig.now;
    other.settle();
    other.import(1, &exported).unwrap();
    other.settle();
    let mut again = Vec::new();
    assert!(other.shards[1].export_session(&name, &mut again));
    assert_eq!(exported, again);
    let resumed = other.connect_with(&name, |c| c.clean_start = false);
    assert_eq!(other.heard(resumed), ["connack Success true", "t/x 0 q1 dup", "t/x 1 q1", "t/x 2 q1"]);
    for n in 0..exported.len() {
        assert!(other.import(1, &exported[..n]).is_err(), "cut at {n}");
    }
}
