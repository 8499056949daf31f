//! The journal, scripted: what waits for the log, and what is there after a crash.

use alloc::{format, string::String, vec::Vec};

use contract::{config::Mode, hash, ids::ShardId};
use log::Room;
use mqtt::{
    codec::{Connect, Will, encode},
    types::{Qos, Reason, Version},
};

use crate::{
    counters::Counter,
    journal::Standing,
    rig::{Client, Rig, id},
};

const QOS1: Qos = Qos::AtLeastOnce;
const QOS2: Qos = Qos::ExactlyOnce;

fn persistent(connect: &mut Connect<'_>) {
    connect.clean_start = false;
    connect.properties.session_expiry_s = Some(3600);
}

fn ack(rig: &mut Rig, client: Client, kind: encode::AckKind, packet: u16) {
    let mut bytes = Vec::new();
    encode::ack(&mut bytes, Version::V5, kind, id(packet), Reason::Success);
    rig.send(client, &bytes);
}

/// A persistent subscriber at home on `shard` that is away.
fn absent(rig: &mut Rig, shard: u16, filter: &str) -> String {
    let name = rig.id_on(shard, "absent");
    let client = rig.connect_with(&name, persistent);
    rig.subscribe(client, filter, QOS2);
    assert_eq!(rig.heard(client), ["connack Success false", "suback 2"]);
    rig.cut(client);
    name
}

#[test]
fn a_puback_waits_until_the_message_is_in_the_log_of_the_session_wherever_it_is() {
    for shard in [0, 1] {
        let mut rig = Rig::durable(2);
        absent(&mut rig, shard, "t");
        let name = rig.id_on(0, "publisher");
        let publisher = rig.connect(&name);
        rig.got(publisher);
        rig.hold_log(usize::from(shard));
        rig.publish(publisher, "t", "1", QOS1, false);
        assert_eq!(rig.heard(publisher), [""; 0], "shard {shard}");
        rig.keep();
        assert_eq!(rig.heard(publisher), ["puback 0"], "shard {shard}");
    }
}

#[test]
fn answers_to_a_persistent_session_wait_for_its_log_and_keep_their_order() {
    let mut rig = Rig::durable(1);
    rig.hold_log(0);
    let client = rig.connect_with("c", persistent);
    rig.subscribe(client, "t", QOS1);
    let mut ping = Vec::new();
    encode::pingreq(&mut ping);
    rig.send(client, &ping);
    assert_eq!(rig.heard(client), [""; 0]);
    rig.keep();
    assert_eq!(rig.heard(client), ["connack Success false", "suback 1", "pingresp"]);
}

#[test]
fn a_session_without_expiry_waits_for_nothing() {
    let mut rig = Rig::durable(1);
    rig.hold_log(0);
    let client = rig.connect("c");
    rig.subscribe(client, "t", QOS2);
    rig.publish(client, "t", "1", QOS1, false);
    assert_eq!(rig.heard(client), ["connack Success false", "suback 2", "t 1 q1", "puback 0"]);
    assert_eq!(rig.logs[0].len(), 0);
}

#[test]
fn what_the_node_says_about_itself_is_retained_hidden_from_wildcards_and_in_no_log() {
    let mut rig = Rig::durable(2);
    let (all, system) = (rig.connect("all"), rig.connect("system"));
    rig.subscribe(all, "#", QOS1);
    rig.system("$SYS/broker/uptime", "1 seconds");
    rig.subscribe(system, "$SYS/#", QOS1);
    let connack = "connack Success false";
    assert_eq!(rig.heard(system), [connack, "suback 1", "$SYS/broker/uptime 1 seconds q0 retain"]);
    rig.system("$SYS/broker/uptime", "2 seconds");
    assert_eq!(rig.heard(system), ["$SYS/broker/uptime 2 seconds q0"]);
    assert_eq!(rig.heard(all), [connack, "suback 1"]);
    let logged: usize = rig.logs.iter().map(Vec::len).sum();
    assert_eq!(logged, 0, "neither at once");
    let mut rig = rig.crash(2);
    let system = rig.connect("system");
    rig.subscribe(system, "$SYS/#", QOS1);
    assert_eq!(rig.heard(system), ["connack Success false", "suback 1"], "nor as something to be found again");
}

#[test]
fn what_was_acknowledged_is_there_after_a_crash_with_any_number_of_shards() {
    let mut rig = Rig::durable(2);
    let names: Vec<String> = (0..2).map(|shard| absent(&mut rig, shard, "t/+")).collect();
    let publisher = rig.connect("publisher");
    for n in 0..5 {
        rig.publish(publisher, &format!("t/{n}"), &format!("{n}"), QOS1, true);
        rig.settle();
    }
    rig.publish(publisher, "t/1", "", QOS1, true);
    rig.settle();
    for shards in [2, 3, 1] {
        rig = rig.crash(shards);
        assert_eq!(rig.shards.iter().map(|shard| shard.gauges().retained).sum::<u64>(), 4);
        assert_eq!(rig.shards.iter().map(|shard| shard.queued()).sum::<u64>(), 12);
    }
    for name in &names {
        let client = rig.connect_with(name, persistent);
        let want = ["connack Success true", "t/0 0 q1", "t/1 1 q1", "t/2 2 q1", "t/3 3 q1", "t/4 4 q1", "t/1  q1"];
        assert_eq!(rig.heard(client), want);
    }
    let late = rig.connect("late");
    rig.subscribe(late, "t/3", QOS1);
    assert_eq!(rig.heard(late), ["connack Success false", "suback 1", "t/3 3 q1 retain"]);
}

#[test]
fn a_qos_2_publisher_finds_its_handshake_again() {
    let mut rig = Rig::durable(2);
    let subscriber = absent(&mut rig, 1, "t");
    let name = rig.id_on(0, "publisher");
    let publisher = rig.connect_with(&name, persistent);
    rig.publish(publisher, "t", "once", QOS2, false);
    assert_eq!(rig.heard(publisher), ["connack Success false", "pubrec 0"]);
    let mut rig = rig.crash(2);
    let publisher = rig.connect_with(&name, persistent);
    rig.publish(publisher, "t", "once", QOS2, false);
    assert_eq!(rig.heard(publisher), ["connack Success true", "pubrec 0"]);
    ack(&mut rig, publisher, encode::AckKind::Pubrel, 77);
    assert_eq!(rig.heard(publisher), ["pubcomp 0"]);
    let mut rig = rig.crash(2);
    let publisher = rig.connect_with(&name, persistent);
    ack(&mut rig, publisher, encode::AckKind::Pubrel, 77);
    assert_eq!(rig.heard(publisher), ["connack Success true", "pubcomp 146"]);
    let subscriber = rig.connect_with(&subscriber, persistent);
    assert_eq!(rig.heard(subscriber), ["connack Success true", "t once q2"]);
}

#[test]
fn a_qos_2_publish_that_a_crash_cut_reaches_each_destination_once() {
    for held in [0, 1, 2] {
        for shards in [3, 2, 4] {
            let mut rig = Rig::durable(3);
            let names: Vec<String> = (0..3).map(|shard| absent(&mut rig, shard, "t")).collect();
            let name = rig.id_on(0, "publisher");
            let publisher = rig.connect_with(&name, persistent);
            rig.hold_log(held);
            rig.publish(publisher, "t", "once", QOS2, true);
            assert_eq!(rig.heard(publisher), ["connack Success false"], "held {held}");
            let mut rig = rig.crash(shards);
            // If its own shard's log has lost it, nobody has heard of it, and its client publishes it again.
            let publisher = rig.connect_with(&name, persistent);
            rig.publish(publisher, "t", "once", QOS2, true);
            let heard = rig.heard(publisher);
            assert_eq!(heard, ["connack Success true", "pubrec 0"], "held {held}, {shards} shards");
            for name in &names {
                let client = rig.connect_with(name, persistent);
                let heard = rig.heard(client);
                assert_eq!(heard, ["connack Success true", "t once q2"], "held {held}, {shards} shards");
            }
        }
    }
}

#[test]
fn a_qos_2_delivery_goes_on_where_the_crash_cut_it() {
    let mut rig = Rig::durable(1);
    let name = absent(&mut rig, 0, "t");
    let publisher = rig.connect("publisher");
    rig.publish(publisher, "t", "once", QOS2, false);
    rig.settle();
    let subscriber = rig.connect_with(&name, persistent);
    assert_eq!(rig.heard(subscriber), ["connack Success true", "t once q2"]);
    let mut rig = rig.crash(1);
    let subscriber = rig.connect_with(&name, persistent);
    assert_eq!(rig.heard(subscriber), ["connack Success true", "t once q2 dup"]);
    ack(&mut rig, subscriber, encode::AckKind::Pubrec, 1);
    assert_eq!(rig.heard(subscriber), ["pubrel 0"]);
    let mut rig = rig.crash(1);
    let subscriber = rig.connect_with(&name, persistent);
    assert_eq!(rig.heard(subscriber), ["connack Success true", "pubrel 0"]);
    ack(&mut rig, subscriber, encode::AckKind::Pubcomp, 1);
    rig.settle();
    let mut rig = rig.crash(1);
    let subscriber = rig.connect_with(&name, persistent);
    assert_eq!(rig.heard(subscriber), ["connack Success true"]);
}

#[test]
fn a_qos_2_publish_and_a_pubrel_leave_only_when_the_log_has_them() {
    let mut rig = Rig::durable(1);
    let name = absent(&mut rig, 0, "t");
    let publisher = rig.connect("publisher");
    let subscriber = rig.connect_with(&name, persistent);
    rig.got(subscriber);
    rig.hold_log(0);
    rig.publish(publisher, "t", "once", QOS2, false);
    assert_eq!(rig.heard(subscriber), [""; 0]);
    rig.keep();
    assert_eq!(rig.heard(subscriber), ["t once q2"]);
    rig.hold_log(0);
    ack(&mut rig, subscriber, encode::AckKind::Pubrec, 1);
    assert_eq!(rig.heard(subscriber), [""; 0]);
    rig.keep();
    assert_eq!(rig.heard(subscriber), ["pubrel 0"]);
}

#[test]
fn a_group_message_that_a_crash_cut_goes_to_one_member() {
    for (held, members) in [(1, [2, 2]), (2, [2, 2]), (1, [0, 2])] {
        let mut rig = Rig::durable(3);
        let group = (0..100).map(|n| format!("$share/g{n}/t")).find(|filter| {
            let name = &filter[7..filter.len() - 2];
            contract::hash::partition_of_group(name, "t") % 3 == 1
        });
        let group = group.expect("some group is owned by shard 1");
        let names: Vec<String> =
            members.iter().enumerate().map(|(n, shard)| rig.id_on(*shard, &format!("m{n}"))).collect();
        for name in &names {
            let client = rig.connect_with(name, persistent);
            rig.subscribe(client, &group, QOS2);
            assert_eq!(rig.heard(client), ["connack Success false", "suback 2"]);
            rig.cut(client);
        }
        let name = rig.id_on(0, "publisher");
        let publisher = rig.connect_with(&name, persistent);
        rig.hold_log(held);
        for _ in 0..1 {
            rig.publish(publisher, "t", "once", QOS2, false);
        }
        rig.settle();
        let mut rig = rig.crash(3);
        let mut got = 0;
        for name in &names {
            let client = rig.connect_with(name, persistent);
            got += rig.heard(client).iter().filter(|line| line.starts_with("t once")).count();
        }
        assert_eq!(got, 1, "held {held}, members on {members:?}");
    }
}

#[test]
fn a_will_fires_once_after_a_crash() {
    let mut rig = Rig::durable(2);
    let name = absent(&mut rig, 1, "will");
    let with_will = |connect: &mut Connect<'_>| {
        connect.will = Some(Will {
            topic: "will",
            payload: b"gone",
            qos: QOS1,
            retain: false,
            delay_s: 0,
            properties: mqtt::codec::PublishProperties::default(),
        });
    };
    rig.connect_with("dies", with_will);
    let mut rig = rig.crash(2);
    rig.pass(1);
    let mut rig = rig.crash(2);
    rig.pass(1);
    assert_eq!(rig.count(Counter::wills_published), 0);
    let client = rig.connect_with(&name, persistent);
    assert_eq!(rig.heard(client), ["connack Success true", "will gone q1"]);
}

#[test]
fn a_checkpoint_alone_holds_everything() {
    let mut rig = Rig::durable(2);
    let names: Vec<String> = (0..2).map(|shard| absent(&mut rig, shard, "t/#")).collect();
    let publisher = rig.connect("publisher");
    for n in 0..20 {
        rig.publish(publisher, &format!("t/{n}"), &format!("{n}"), QOS1, n % 2 == 0);
        rig.settle();
    }
    let client = rig.connect_with(&names[0], persistent);
    rig.settle();
    rig.cut(client);
    let before: Vec<usize> = rig.logs.iter().map(Vec::len).collect();
    rig.since_begin_bytes = u64::MAX;
    rig.logged(0, |_| {});
    rig.logged(1, |_| {});
    rig.since_begin_bytes = 0;
    for _ in 0..20 {
        rig.pass(5);
    }
    assert!(rig.count(Counter::log_checkpoints) >= 2);
    // Only what the checkpoints wrote.
    for (log, before) in rig.logs.iter_mut().zip(before) {
        log.drain(..before);
    }
    let mut rig = rig.crash(2);
    for name in &names {
        let client = rig.connect_with(name, persistent);
        let heard = rig.heard(client);
        let values: Vec<&str> = heard.iter().skip(1).map(|line| line.split(' ').nth(1).unwrap_or("")).collect();
        let want: Vec<String> = (0..20).map(|n| format!("{n}")).collect();
        assert_eq!((heard[0].as_str(), values), ("connack Success true", want.iter().map(String::as_str).collect()));
    }
    assert_eq!(rig.shards.iter().map(|shard| shard.gauges().retained).sum::<u64>(), 10);
}

#[test]
fn a_log_that_cannot_be_written_refuses_what_is_persistent_and_nothing_else() {
    let mut rig = Rig::durable(1);
    let name = absent(&mut rig, 0, "t");
    let publisher = rig.connect("publisher");
    let online = rig.connect("online");
    rig.subscribe(online, "q", QOS1);
    rig.heard(publisher);
    rig.heard(online);
    rig.hold_log(0);
    rig.publish(publisher, "t", "1", QOS1, false);
    rig.settle();
    rig.logged(0, |status| (status.room, status.detachments) = (Room::Detached, 1));
    assert_eq!(rig.heard(publisher), ["puback 151"], "what waited is refused");
    rig.publish(publisher, "t", "2", QOS1, false);
    assert_eq!(rig.heard(publisher), ["puback 151"]);
    rig.publish(publisher, "q", "3", QOS1, false);
    assert_eq!(rig.heard(online), ["q 3 q1"]);
    assert_eq!(rig.heard(publisher), ["puback 0"]);
    let client = rig.connect_with(&name, persistent);
    assert_eq!(rig.heard(client), ["connack ServerUnavailable false"]);
    let client = rig.connect_with("new", persistent);
    assert_eq!(rig.heard(client), ["connack QuotaExceeded false"]);
    // It comes back, and everything is written anew.
    rig.logs[0].clear();
    rig.keep();
    rig.logs[0].clear();
    rig.logged(0, |status| (status.room, status.detachments) = (Room::Ready, 1));
    for _ in 0..5 {
        rig.pass(5);
    }
    rig.logged(0, |status| (status.room, status.detachments) = (Room::Plenty, 1));
    let mut rig = rig.crash(1);
    let client = rig.connect_with(&name, persistent);
    assert_eq!(rig.heard(client), ["connack Success true", "t 1 q1"], "it was refused, and may have been delivered");
}

#[test]
fn output_that_waits_for_the_log_for_too_long_ends_its_connection() {
    let mut rig = Rig::durable(1);
    rig.hold_log(0);
    let client = rig.connect_with("c", persistent);
    for _ in 0..100 {
        rig.pass(1000);
    }
    assert!(rig.closed(client));
    assert_eq!(rig.count(Counter::log_waits_timed_out), 1);
    assert_eq!(rig.got(client), ["connack QuotaExceeded false"]);
}

#[test]
fn expiry_goes_on_while_the_node_is_down() {
    let mut rig = Rig::durable(1);
    let short = |connect: &mut Connect<'_>| {
        connect.clean_start = false;
        connect.properties.session_expiry_s = Some(5);
    };
    let client = rig.connect_with("c", short);
    rig.settle();
    rig.cut(client);
    rig.now.wall_ms += 4_000;
    let mut rig = rig.crash(1);
    assert_eq!(rig.shards[0].gauges().sessions, 1);
    rig.now.wall_ms += 2_000;
    let rig = rig.crash(1);
    assert_eq!(rig.shards[0].gauges().sessions, 0);
}

#[test]
fn a_repeated_publish_reaches_nobody_who_subscribed_after_it_was_routed() {
    let mut rig = Rig::durable(3);
    let before = absent(&mut rig, 1, "t");
    let name = rig.id_on(0, "publisher");
    let publisher = rig.connect_with(&name, persistent);
    // Its destination cannot keep it, so the publish stays open; it has left for shard 1 alone.
    rig.hold_log(1);
    rig.publish(publisher, "t", "once", QOS2, false);
    rig.settle();
    let late = absent(&mut rig, 2, "t");
    for shards in [3, 2] {
        rig = rig.crash(shards);
    }
    let client = rig.connect_with(&late, persistent);
    assert_eq!(rig.heard(client), ["connack Success true"]);
    let client = rig.connect_with(&before, persistent);
    assert_eq!(rig.heard(client), ["connack Success true", "t once q2"]);
}

#[test]
fn a_publish_that_waited_for_the_log_is_newer_than_what_was_routed_meanwhile() {
    let mut rig = Rig::durable(2);
    let of_shard_1 = |topic: &String| hash::owner_shard(hash::partition_of_topic(topic), 2) == ShardId(1);
    let topics: Vec<String> = (0..100).map(|n| format!("r/{n}")).filter(of_shard_1).collect();
    let (waiting, other, subscriber) = (rig.id_on(0, "waiting"), rig.id_on(0, "other"), rig.id_on(0, "subscriber"));
    let (waiting, other) = (rig.connect_with(&waiting, persistent), rig.connect(&other));
    let subscriber = rig.connect(&subscriber);
    rig.publish(other, &topics[0], "old", QOS1, true);
    rig.heard(subscriber);
    rig.hold_log(0);
    rig.publish(waiting, "t", "in the way", QOS2, false);
    rig.publish(waiting, &topics[0], "new", Qos::AtMostOnce, true);
    rig.publish(other, &topics[1], "beside", QOS1, true);
    rig.settle();
    rig.subscribe(subscriber, &topics[0], QOS1);
    // Announced; confirmed; asked; answered.
    for shard in [0, 1, 0, 1] {
        rig.turn(shard);
    }
    rig.hold(1, 0);
    rig.keep();
    assert_eq!(rig.got(subscriber), ["suback 1", &format!("{} new q0", topics[0])]);
    rig.release();
    assert_eq!(rig.heard(subscriber), [""; 0], "the old value");
}

#[test]
fn a_choice_that_waited_for_the_log_does_not_come_back_to_another_group() {
    let mut rig = Rig::durable(2);
    let of_shard_0 = |group: &String| hash::owner_shard(hash::partition_of_group(group, "s/+"), 2) == ShardId(0);
    let groups: Vec<String> = (0..100).map(|n| format!("g{n}")).filter(of_shard_0).collect();
    let of_shard_0 = |group: &String| hash::owner_shard(hash::partition_of_group(group, "other"), 2) == ShardId(0);
    let other = (0..100).map(|n| format!("g{n}")).find(of_shard_0).expect("one of a hundred");
    let names = ["waiting", "publisher"].map(|name| rig.id_on(0, name));
    let (waiting, publisher) = (rig.connect_with(&names[0], persistent), rig.connect(&names[1]));
    let members = ["first", "second"].map(|name| rig.id_on(1, name));
    let [first, second] = members.map(|name| rig.connect(&name));
    rig.subscribe(first, &format!("$share/{}/s/+", groups[0]), QOS1);
    rig.heard(first);
    rig.hold_log(0);
    rig.publish(waiting, "t", "in the way", QOS2, false);
    rig.publish(publisher, "s/a", "for the first", QOS1, false);
    rig.settle();
    // The group ends, and the next one takes its place.
    rig.cut(first);
    rig.settle();
    rig.subscribe(second, &format!("$share/{other}/other"), QOS1);
    rig.heard(second);
    rig.keep();
    assert_eq!(rig.heard(second), [""; 0]);
    assert_eq!(rig.count(Counter::shed_no_member), 1);
}

#[test]
fn what_is_kept_leaves_even_if_the_log_is_detached_by_the_same_word() {
    let mut rig = Rig::durable(1);
    rig.hold_log(0);
    let client = rig.connect_with("c", persistent);
    rig.settle();
    rig.subscribe(client, "t", QOS1);
    rig.settle();
    rig.logged(0, |status| (status.durable, status.room, status.detachments) = (1, Room::Detached, 1));
    assert_eq!(rig.heard(client), ["connack Success false", "disconnect QuotaExceeded"]);
}

#[test]
fn a_start_with_other_shards_writes_its_state_again_if_a_full_disk_cut_that() {
    let mut rig = Rig::durable(2);
    absent(&mut rig, 0, "t");
    let mut rig = rig.restart(1);
    rig.logged(0, |status| status.room = Room::Tight);
    rig.settle();
    rig.logged(0, |_| {});
    rig.settle();
    assert_eq!(rig.shards[0].standing(), Standing::Restored);
}

#[test]
fn nothing_that_would_have_to_be_kept_leaves_while_the_log_is_detached() {
    let mut rig = Rig::durable(1);
    let client = rig.connect_with("c", persistent);
    rig.subscribe(client, "t", QOS2);
    let publisher = rig.connect("publisher");
    rig.publish(publisher, "t", "once", QOS2, false);
    assert_eq!(rig.heard(client), ["connack Success false", "suback 2", "t once q2"]);
    rig.logged(0, |status| (status.room, status.detachments) = (Room::Detached, 1));
    ack(&mut rig, client, encode::AckKind::Pubrec, 1);
    assert_eq!(rig.heard(client), ["disconnect QuotaExceeded"]);
}

#[test]
fn a_choice_that_came_back_to_a_member_beside_its_owner_is_acknowledged_when_it_is_kept() {
    let mut rig = Rig::durable(2);
    let of_shard_0 = |group: &String| hash::owner_shard(hash::partition_of_group(group, "t"), 2) == ShardId(0);
    let group = (0..100).map(|n| format!("g{n}")).find(of_shard_0).expect("one of a hundred");
    for shard in [1, 0] {
        absent(&mut rig, shard, &format!("$share/{group}/t"));
    }
    let name = rig.id_on(0, "publisher");
    let publisher = rig.connect(&name);
    rig.got(publisher);
    rig.hold_log(0);
    rig.publish(publisher, "t", "1", QOS1, false);
    assert_eq!(rig.heard(publisher), [""; 0]);
    assert_eq!(rig.count(Counter::group_returned), 1);
    rig.keep();
    assert_eq!(rig.heard(publisher), ["puback 0"]);
}

#[test]
fn a_repeated_publish_is_taken_by_a_shard_whose_log_does_not_grow() {
    let mut rig = Rig::durable(2);
    absent(&mut rig, 1, "t");
    let name = rig.id_on(0, "publisher");
    let publisher = rig.connect_with(&name, persistent);
    rig.hold_log(1);
    rig.publish(publisher, "t", "once", QOS2, false);
    rig.settle();
    let mut rig = rig.restart(2);
    rig.hold_log(1);
    rig.logged(0, |_| {});
    rig.logged(1, |status| status.room = Room::Tight);
    rig.settle();
    rig.replay();
    assert_eq!(rig.shards[1].queued(), 1, "a later one would overtake what is newer");
    assert_eq!(rig.shards[0].standing(), Standing::Replaying);
    rig.keep();
    assert_eq!(rig.shards[0].standing(), Standing::Ready);
}

#[test]
fn a_choice_that_a_detached_log_holds_up_is_not_made_again() {
    let mut rig = Rig::durable(2);
    let of_shard_0 = |group: &String| hash::owner_shard(hash::partition_of_group(group, "t"), 2) == ShardId(0);
    let group = (0..100).map(|n| format!("g{n}")).find(of_shard_0).expect("one of a hundred");
    let member = rig.id_on(1, "member");
    let member = rig.connect_with(&member, persistent);
    rig.subscribe(member, &format!("$share/{group}/t"), QOS2);
    rig.heard(member);
    let name = rig.id_on(0, "publisher");
    let publisher = rig.connect_with(&name, persistent);
    rig.hold_log(1);
    rig.publish(publisher, "t", "once", QOS2, false);
    rig.settle();
    for (room, detachments) in [(Room::Detached, 1), (Room::Ready, 1)] {
        rig.logged(1, |status| (status.room, status.detachments) = (room, detachments));
        (0..5).for_each(|_| rig.pass(1_000));
    }
    rig.logged(1, |status| (status.durable, status.detachments) = (9, 1));
    (0..5).for_each(|_| rig.pass(1_000));
    assert_eq!(rig.shards[1].queued() + rig.count(Counter::messages_sent), 1);
    assert!(rig.shards.iter().all(|shard| shard.gauges().obligations == 0));
}

#[test]
fn a_message_that_alone_is_more_than_may_wait_for_the_disk_is_taken_as_a_whole() {
    let mut rig = Rig::with(1, |settings| {
        (settings.durability.mode, settings.durability.buffer_bytes_max) = (Mode::Os, 1);
    });
    absent(&mut rig, 0, "t");
    let publisher = rig.connect("publisher");
    rig.publish(publisher, "t", "1", QOS1, true);
    assert_eq!(rig.heard(publisher), ["connack Success false", "puback 0"]);
}

#[test]
fn a_session_that_ends_with_its_connection_is_not_begun_anew_by_a_log_that_does_not_grow() {
    let mut rig = Rig::durable(1);
    let client = rig.connect_with("c", persistent);
    rig.heard(client);
    rig.connect_with("c", |connect| connect.clean_start = false);
    rig.settle();
    rig.logged(0, |status| status.room = Room::Tight);
    let client = rig.connect_with("c", persistent);
    assert_eq!(rig.heard(client), ["connack QuotaExceeded false"], "a promise that nobody could keep");
}

#[test]
fn what_an_old_client_sent_before_a_refused_publish_is_acknowledged_before_it_is_closed() {
    let mut rig = Rig::durable(1);
    let kept = rig.connect_with("kept", persistent);
    rig.subscribe(kept, "t", Qos::AtLeastOnce);
    rig.keep();
    rig.cut(kept);
    let publisher = rig.connect_with("old", |connect| connect.version = mqtt::types::Version::V311);
    rig.keep();
    rig.got(publisher);
    rig.hold_log(0);
    rig.publish(publisher, "t", "one", Qos::AtLeastOnce, false);
    rig.logged(0, |status| status.room = Room::Tight);
    rig.publish(publisher, "t", "two", Qos::AtLeastOnce, false);
    assert!(!rig.closed(publisher) && rig.heard(publisher).is_empty(), "the first waits for the log");
    rig.keep();
    assert_eq!(rig.got(publisher), ["puback 0"]);
    assert!(rig.closed(publisher));
}

#[test]
fn a_qos_2_publisher_hears_of_a_refusal_when_its_log_has_forgotten_the_id() {
    for detached in [false, true] {
        let mut rig = Rig::durable(2);
        absent(&mut rig, 1, "t");
        let name = rig.id_on(0, "publisher");
        let publisher = rig.connect_with(&name, persistent);
        rig.heard(publisher);
        rig.logged(1, |status| status.room = Room::Tight);
        rig.hold(1, 0);
        rig.publish(publisher, "t", "refused", QOS2, false);
        rig.settle();
        rig.hold_log(0);
        if detached {
            rig.logged(0, |status| (status.room, status.detachments) = (Room::Detached, 1));
        }
        rig.release();
        assert_eq!(rig.heard(publisher).iter().filter(|packet| packet.starts_with("pubrec")).count(), 0);
        assert_eq!(rig.closed(publisher), detached, "a log that does not hear of it brings the id back");
        if !detached {
            rig.keep();
            assert_eq!(rig.heard(publisher), ["pubrec 151"]);
        }
    }
}

//= MQTT-3.14.0-1
#[test]
fn who_is_taken_over_before_connack_hears_nothing_when_the_log_gives_up_in_the_same_turn() {
    let mut rig = Rig::durable(2);
    let id = rig.id_on(1, "c");
    rig.hold_log(1);
    let first = rig.connect_with(&id, persistent);
    rig.hold(0, 1);
    rig.connect_with(&id, persistent);
    rig.now = contract::time::Now { mono_us: rig.now.mono_us + 20_000_000, wall_ms: rig.now.wall_ms + 20_000 };
    rig.release();
    assert_eq!(rig.heard(first), [""; 0]);
    assert!(rig.closed(first));
}
