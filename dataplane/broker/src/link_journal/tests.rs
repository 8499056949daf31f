//! What links keep, scripted: what waits for the log, and what is there after a crash.

use alloc::{borrow::ToOwned, format, string::String, vec::Vec};

use ::link::{
    etf::Limits,
    wire::{RouteBatch, RouteOp, decode_forwarded, put_actor_init, put_heartbeat},
};
use contract::config::Mode;
use log::Room;
use mqtt::{
    codec::{self, AckKind, Packet, encode},
    types::{Qos, Reason, Version},
};

use crate::{
    counters::Counter,
    event::Event,
    journal::{Image, deal},
    rig::{Client, Rig, id},
    surface::{ConnId, DialId, Input, Output, Parked, Transport},
};

const QOS0: Qos = Qos::AtMostOnce;
const QOS1: Qos = Qos::AtLeastOnce;
const QOS2: Qos = Qos::ExactlyOnce;

/// Takes what nobody asks for, and keeps what operators are told.
#[derive(Default)]
struct Ear(Vec<String>);

impl Output for Ear {
    fn adopt(&mut self, _: Transport) -> Option<ConnId> {
        None
    }
    fn ready(&mut self, _: ConnId) {}
    fn hand_over(&mut self, _: ConnId, _: contract::ids::ShardId, _: Parked) {}
    fn flush(&mut self, _: ConnId) {}
    fn close(&mut self, _: ConnId) {}
    fn read(&mut self, _: ConnId, _: bool) {}
    fn dial(&mut self, _: DialId, _: &str) {}
    fn event(&mut self, event: Event<'_>) {
        if let Event::Link { link, what, detail } = event {
            self.0.push(format!("{link}: {what}: {detail}"));
        }
    }
}

/// A node that keeps a log and has a link to `remote`.
fn linked(shards: u16) -> Rig {
    let links = Rig::linked(1, "remote").shards[0].settings.links.clone();
    Rig::with(shards, |settings| {
        settings.durability.mode = Mode::Os;
        settings.links = links.clone();
        settings.limits.link_queue_age_ms = 3_600_000;
    })
}

/// One payload on the remote's route topic.
fn route(rig: &mut Rig, client: Client, payload: &[u8]) {
    let response = "$LINK/cluster/resp/remote/n";
    let mut forwarded = Vec::from([8, 0, response.len() as u8]);
    forwarded.extend_from_slice(response.as_bytes());
    let parts = encode::PublishParts {
        qos: QOS1,
        topic: "$LINK/cluster/route/remote",
        packet_id: Some(id(9)),
        forwarded: &forwarded,
        payload,
        ..encode::PublishParts::default()
    };
    let mut bytes = Vec::new();
    encode::publish(&mut bytes, Version::V5, &parts);
    rig.send(client, &bytes);
    rig.settle();
}

/// The remote's route connection: it wants these filters.
fn wants(rig: &mut Rig, filters: &[&str]) -> Client {
    let client = rig.connect("remote:routesync");
    let mut payload = Vec::new();
    put_actor_init(&mut payload, "n", 1, "test");
    route(rig, client, &payload);
    let mut batch = RouteBatch::new("n", 1);
    filters.iter().for_each(|filter| batch.push(RouteOp::Add { filter, route_id: filter.as_bytes() }));
    route(rig, client, &batch.finish());
    assert!(!rig.closed(client));
    client
}

/// The remote's end of the outlet of shard 0.
struct Remote {
    client: Client,
    conn: ConnId,
}

/// A message that arrived: packet id, DUP, id, topic, publisher, payload.
type Arrived = (u16, bool, Vec<u8>, String, String, String);

impl Remote {
    /// It is there, and accepts. Before any other client of this life connects.
    fn comes(rig: &mut Rig) -> Remote {
        // The first turn dials.
        rig.settle();
        let client = rig.accept();
        rig.stop_reading(client);
        let conn = ConnId { index: client.0 as u32, generation: 1 };
        let input = Input::Dialed { dial: DialId(1), conn };
        rig.shards[0].input(rig.now, input, &mut Ear::default());
        rig.send(client, &[0x20, 3, 0, 0, 0]);
        Remote { client, conn }
    }

    fn arrived(&self, rig: &mut Rig) -> Vec<Arrived> {
        rig.settle();
        let bytes = core::mem::take(rig.shards[0].output(self.conn).expect("it is connected"));
        let (mut at, mut arrived) = (0, Vec::new());
        while let Ok(Some(raw)) = codec::split(&bytes[at..], usize::MAX) {
            at += raw.total;
            let Ok(Packet::Publish(publish)) = codec::decode(Version::V5, raw) else { continue };
            let mut scratch = Vec::new();
            let inside = decode_forwarded(publish.payload, &mut scratch, &Limits::default()).expect("ours");
            let packet = publish.packet_id.map_or(0, |id| id.get());
            let payload = String::from_utf8_lossy(inside.payload).into_owned();
            arrived.push((packet, publish.dup, inside.id.into(), inside.topic.into(), inside.from.into(), payload));
        }
        arrived
    }

    fn payloads(&self, rig: &mut Rig) -> Vec<String> {
        self.arrived(rig).into_iter().map(|arrived| arrived.5).collect()
    }

    fn acknowledges(&self, rig: &mut Rig, packet: u16) {
        let mut bytes = Vec::new();
        encode::ack(&mut bytes, Version::V5, AckKind::Puback, id(packet), Reason::Success);
        rig.send(self.client, &bytes);
        rig.settle();
    }
}

fn queued(rig: &Rig) -> u64 {
    rig.shards.iter().map(|shard| shard.link_status()[0].queued).sum()
}

fn publisher(rig: &mut Rig, shard: u16) -> Client {
    let name = rig.id_on(shard, "publisher");
    let client = rig.connect(&name);
    rig.got(client);
    client
}

#[test]
fn an_acknowledgement_waits_for_our_log_and_not_for_the_ocean() {
    for (qos, want) in [(QOS1, "puback 0"), (QOS2, "pubrec 0")] {
        let mut rig = linked(1);
        wants(&mut rig, &["t"]);
        let publisher = publisher(&mut rig, 0);
        rig.hold_log(0);
        rig.publish(publisher, "t", "1", qos, false);
        assert_eq!(rig.heard(publisher), [""; 0]);
        rig.keep();
        assert_eq!(rig.heard(publisher), [want]);
        assert_eq!(queued(&rig), 1);
    }
}

#[test]
fn what_waits_for_a_remote_is_there_after_a_crash_in_order_and_under_its_old_ids() {
    let mut rig = linked(1);
    let remote = Remote::comes(&mut rig);
    wants(&mut rig, &["t/#"]);
    let publisher = publisher(&mut rig, 0);
    for (payload, qos) in [("a", QOS1), ("b", QOS2), ("lost", QOS0), ("c", QOS1)] {
        rig.publish(publisher, &format!("t/{payload}"), payload, qos, false);
        rig.settle();
        if qos == QOS2 {
            let mut bytes = Vec::new();
            encode::ack(&mut bytes, Version::V5, AckKind::Pubrel, id(77), Reason::Success);
            rig.send(publisher, &bytes);
        }
    }
    let before = remote.arrived(&mut rig);
    remote.acknowledges(&mut rig, before[0].0);
    assert_eq!(queued(&rig), 2, "b and c are not acknowledged");

    let mut rig = rig.crash(1);
    assert_eq!(queued(&rig), 2);
    let remote = Remote::comes(&mut rig);
    let after = remote.arrived(&mut rig);
    let want: Vec<Arrived> = [(1, 1), (2, 3)]
        .map(|(packet, at): (u16, usize)| {
            let (_, _, id, topic, from, payload) = before[at].clone();
            (packet, true, id, topic, from, payload)
        })
        .into();
    assert_eq!(after, want);
    assert!(before[1].4.starts_with("publisher"), "{:?}", before[1]);
    // The new ones behind the old ones, in the log, too.
    let publisher = self::publisher(&mut rig, 0);
    rig.publish(publisher, "t/d", "d", QOS1, false);
    assert_eq!(remote.payloads(&mut rig), ["d"]);
    remote.acknowledges(&mut rig, 2);
    let mut rig = rig.crash(1);
    let remote = Remote::comes(&mut rig);
    assert_eq!(remote.payloads(&mut rig), ["b", "d"]);
    (1..=2).for_each(|packet| remote.acknowledges(&mut rig, packet));
    let rig = rig.crash(1);
    assert_eq!(queued(&rig), 0, "everything was acknowledged");
}

/// A publisher that asks after a crash what became of its QoS 2 publishes.
fn persistent(rig: &mut Rig, name: &str) -> Client {
    rig.connect_with(name, |connect| {
        connect.clean_start = false;
        connect.properties.session_expiry_s = Some(3600);
    })
}

#[test]
fn a_qos_2_publish_that_a_crash_cut_before_it_was_routed_goes_to_the_remote_once() {
    for shards in [2, 3, 1] {
        let mut rig = linked(2);
        wants(&mut rig, &["t"]);
        let name = rig.id_on(0, "asks");
        let publisher = persistent(&mut rig, &name);
        rig.heard(publisher);
        // The log has it, and nobody hears of that: so it is not routed.
        rig.publish(publisher, "t", "once", QOS2, false);
        let batch = rig.shards[0].journal().expect("it is recorded");
        rig.logs[0].push(batch.bytes);
        assert_eq!(queued(&rig), 0);
        for _ in 0..3 {
            rig = rig.crash(shards);
            assert_eq!(queued(&rig), 1, "{shards} shards");
        }
        let publisher = persistent(&mut rig, &name);
        rig.publish(publisher, "t", "once", QOS2, false);
        assert_eq!(rig.heard(publisher), ["connack Success true", "pubrec 0"]);
        assert_eq!(queued(&rig), 1);
    }
}

#[test]
fn a_log_that_is_full_refuses_what_a_remote_wants_whoever_else_gets_it() {
    let mut rig = linked(1);
    wants(&mut rig, &["t"]);
    let publisher = publisher(&mut rig, 0);
    let here = rig.connect("here");
    rig.subscribe(here, "t", QOS1);
    rig.heard(here);
    rig.logged(0, |status| status.room = Room::Tight);
    rig.publish(publisher, "t", "1", QOS1, false);
    assert_eq!(rig.heard(here), ["t 1 q1"]);
    assert_eq!(rig.heard(publisher), ["puback 151"]);
}

#[test]
fn what_waits_for_a_remote_survives_any_number_of_shards() {
    let mut rig = linked(3);
    wants(&mut rig, &["t"]);
    for shard in 0..3 {
        let publisher = publisher(&mut rig, shard);
        for n in 0..4 {
            rig.publish(publisher, "t", &format!("{shard} {n}"), QOS1, false);
            rig.settle();
        }
    }
    for shards in [3, 2, 4, 1, 1] {
        rig = rig.crash(shards);
        assert_eq!(queued(&rig), 12, "{shards} shards");
    }
    let remote = Remote::comes(&mut rig);
    let payloads = remote.payloads(&mut rig);
    for shard in 0..3 {
        let of_one: Vec<&String> =
            payloads.iter().filter(|payload| payload.starts_with(&format!("{shard} "))).collect();
        let want: Vec<String> = (0..4).map(|n| format!("{shard} {n}")).collect();
        assert_eq!(of_one, want.iter().collect::<Vec<_>>(), "in order per publisher");
    }
    (1..=12).for_each(|packet| remote.acknowledges(&mut rig, packet));
    assert_eq!(queued(&rig.crash(1)), 0);
}

#[test]
fn age_and_expiry_go_on_while_the_node_is_down() {
    let mut rig = linked(1);
    wants(&mut rig, &["t"]);
    let publisher = publisher(&mut rig, 0);
    let mut bytes = Vec::new();
    // Message Expiry Interval: 60 s.
    let (expiring, payload) = ([2, 0, 0, 0, 60], b"expiring");
    let parts = encode::PublishParts {
        qos: QOS1,
        topic: "t",
        packet_id: Some(id(5)),
        forwarded: &expiring,
        payload,
        ..encode::PublishParts::default()
    };
    encode::publish(&mut bytes, Version::V5, &parts);
    rig.send(publisher, &bytes);
    rig.publish(publisher, "t", "old", QOS1, false);
    rig.settle();
    let age_ms = u64::from(rig.shards[0].settings.limits.link_queue_age_ms);
    assert_eq!(queued(&rig), 2);
    rig.now.wall_ms += 61_000;
    let mut rig = rig.crash(1);
    rig.pass(200);
    assert_eq!((queued(&rig), rig.count(Counter::shed_link_expired)), (1, 1));
    rig.now.wall_ms += age_ms - 62_000;
    let mut rig = rig.crash(1);
    rig.pass(200);
    assert_eq!((queued(&rig), rig.count(Counter::shed_link_expired)), (1, 0));
    rig.now.wall_ms += 1_000;
    let mut rig = rig.crash(1);
    rig.pass(200);
    assert_eq!((queued(&rig), rig.count(Counter::shed_link_expired)), (0, 1));
    assert_eq!(queued(&rig.crash(1)), 0, "what was shed does not come back");
}

#[test]
fn a_checkpoint_alone_holds_what_links_keep() {
    for sent in [false, true] {
        let mut rig = linked(1);
        let remote = sent.then(|| Remote::comes(&mut rig));
        let filters: Vec<String> = (0..500).map(|n| format!("f/{n}")).collect();
        let mut wanted: Vec<&str> = filters.iter().map(String::as_str).collect();
        wanted.push("t/#");
        wants(&mut rig, &wanted);
        let publisher = publisher(&mut rig, 0);
        let large = "x".repeat(20_000);
        for n in 0..40 {
            rig.publish(publisher, &format!("t/{n}"), &format!("{n} {large}"), QOS1, false);
            rig.settle();
        }
        if let Some(remote) = &remote {
            remote.arrived(&mut rig);
        }
        let before = rig.logs[0].len();
        rig.since_begin_bytes = u64::MAX;
        rig.logged(0, |_| {});
        rig.since_begin_bytes = 0;
        for _ in 0..40 {
            rig.pass(5);
        }
        assert_eq!(rig.count(Counter::log_checkpoints), 1);
        let turns = rig.logs[0][before..].iter();
        let largest = turns.map(Vec::len).max().unwrap_or(0);
        assert!(largest < 300_000, "a turn writes {largest} bytes of it");
        rig.logs[0].drain(..before);
        let mut rig = rig.crash(1);
        let remote = Remote::comes(&mut rig);
        let mut arrived = Vec::new();
        for packet in 1..=40 {
            arrived.extend(remote.payloads(&mut rig));
            remote.acknowledges(&mut rig, packet);
        }
        let numbers: Vec<String> = arrived.iter().map(|payload| payload[..2].trim_end().to_owned()).collect();
        assert_eq!(numbers, (0..40).map(|n| format!("{n}")).collect::<Vec<_>>());
        assert_eq!(rig.shards[0].link_status()[0].routes, 501);
    }
}

#[test]
fn what_a_remote_wants_is_known_before_anybody_can_publish() {
    for shards in [2, 3, 1] {
        let mut rig = linked(2);
        wants(&mut rig, &["t/+", "u"]);
        let mut rig = rig.crash(shards);
        for shard in 0..shards {
            let publisher = publisher(&mut rig, shard);
            rig.publish(publisher, "t/1", "x", QOS1, false);
            rig.publish(publisher, "nobody", "x", QOS1, false);
            assert_eq!(rig.heard(publisher), ["puback 0", "puback 16"]);
        }
        assert_eq!(queued(&rig), u64::from(shards));
    }
}

#[test]
fn what_a_remote_no_longer_wants_is_not_restored() {
    let mut rig = linked(2);
    let client = wants(&mut rig, &["t", "u"]);
    let mut batch = RouteBatch::new("n", 1);
    batch.push(RouteOp::Delete { filter: "t", route_id: b"t" });
    route(&mut rig, client, &batch.finish());
    let mut rig = rig.crash(2);
    let publisher = publisher(&mut rig, 0);
    rig.publish(publisher, "t", "x", QOS1, false);
    rig.publish(publisher, "u", "x", QOS1, false);
    assert_eq!(rig.heard(publisher), ["puback 16", "puback 0"]);
}

#[test]
fn a_route_payload_is_answered_as_emqx_answers_it_on_every_shard() {
    let mut rig = linked(2);
    for home in 0..2 {
        let name = rig.id_on(home, "remote:routesync");
        let client = rig.connect(&name);
        let mut payload = Vec::new();
        put_actor_init(&mut payload, &name, 1, "test");
        route(&mut rig, client, &payload);
        assert_eq!(rig.heard(client), ["connack Success false", "puback 16"], "home shard {home}");
    }
}

#[test]
fn restored_interest_goes_when_its_remote_stays_away() {
    let mut rig = linked(2);
    wants(&mut rig, &["stays", "goes"]);
    let mut rig = rig.crash(2);
    // As it was: an actor lives for 30 seconds, whatever the number of restarts.
    let client = wants(&mut rig, &["stays"]);
    let mut heartbeat = Vec::new();
    put_heartbeat(&mut heartbeat, "n", 1);
    for _ in 0..4 {
        rig.pass(9_000);
        route(&mut rig, client, &heartbeat);
    }
    let publisher = publisher(&mut rig, 0);
    rig.publish(publisher, "stays", "x", QOS1, false);
    rig.publish(publisher, "goes", "x", QOS1, false);
    assert_eq!(rig.heard(publisher), ["puback 0", "puback 16"]);
    let mut rig = rig.crash(2);
    rig.pass(31_000);
    let publisher = self::publisher(&mut rig, 0);
    rig.publish(publisher, "stays", "x", QOS1, false);
    assert_eq!(rig.heard(publisher), ["puback 16"]);
    let mut rig = rig.crash(2);
    let publisher = self::publisher(&mut rig, 0);
    rig.publish(publisher, "stays", "x", QOS1, false);
    assert_eq!(rig.heard(publisher), ["puback 16"], "its end was recorded");
}

#[test]
fn without_a_log_that_takes_it_an_outlet_takes_nothing_that_has_to_be_kept() {
    let mut rig = linked(1);
    wants(&mut rig, &["t"]);
    let publisher = publisher(&mut rig, 0);
    for (room, detachments) in [(Room::Tight, 0), (Room::Detached, 1)] {
        rig.logged(0, |status| (status.room, status.detachments) = (room, detachments));
        let before = queued(&rig);
        rig.publish(publisher, "t", "1", QOS1, false);
        assert_eq!(rig.heard(publisher), ["puback 151"], "{room:?}");
        assert_eq!(queued(&rig), before);
        rig.publish(publisher, "t", "0", QOS0, false);
        rig.settle();
        assert_eq!(queued(&rig), before + 1, "QoS 0 goes on");
    }
    assert_eq!(rig.count(Counter::shed_log_full), 2);
}

#[test]
fn what_waits_is_written_anew_after_the_log_was_lost() {
    let mut rig = linked(1);
    wants(&mut rig, &["t"]);
    let publisher = publisher(&mut rig, 0);
    rig.publish(publisher, "t", "1", QOS1, false);
    assert_eq!(rig.heard(publisher), ["puback 0"]);
    rig.logged(0, |status| (status.room, status.detachments) = (Room::Detached, 1));
    rig.settle();
    rig.logs[0].clear();
    rig.logged(0, |status| (status.room, status.detachments) = (Room::Ready, 1));
    (0..5).for_each(|_| rig.pass(5));
    rig.logged(0, |status| (status.room, status.detachments) = (Room::Plenty, 1));
    let mut rig = rig.crash(1);
    assert_eq!(queued(&rig), 1);
    let publisher = self::publisher(&mut rig, 0);
    rig.publish(publisher, "t", "2", QOS1, false);
    assert_eq!(rig.heard(publisher), ["puback 0"]);
}

#[test]
fn an_orderly_stop_keeps_what_waits() {
    let mut rig = linked(1);
    let remote = Remote::comes(&mut rig);
    wants(&mut rig, &["t"]);
    let publisher = publisher(&mut rig, 0);
    rig.publish(publisher, "t", "1", QOS1, false);
    rig.settle();
    assert_eq!(remote.payloads(&mut rig), ["1"]);
    rig.shards[0].input(rig.now, Input::Drain, &mut Ear::default());
    rig.pass(1);
    assert_eq!(rig.count(Counter::shed_link_stopped), 0);
    assert_eq!(queued(&rig.crash(1)), 1);
}

#[test]
fn what_waits_for_a_link_that_is_gone_is_shed_under_a_name_once() {
    let mut rig = linked(1);
    wants(&mut rig, &["t"]);
    let publisher = publisher(&mut rig, 0);
    for n in 0..3 {
        rig.publish(publisher, "t", &format!("{n}"), QOS1, false);
        rig.settle();
    }
    let mut logs = rig.logs.swap_remove(0);
    for (life, shed) in [(1, 3), (2, 0)] {
        let mut image = Image::new(1);
        logs.iter().for_each(|batch| image.entry(batch).expect("we wrote it"));
        let mut rig = Rig::durable(1);
        let mut ear = Ear::default();
        let dealt = deal(Vec::from([image]), 1).swap_remove(0);
        rig.shards[0].restore(rig.now, dealt, &mut ear);
        rig.shards[0].tell_links(&mut ear);
        assert_eq!(rig.count(Counter::shed_link_stopped), shed, "life {life}");
        assert_eq!(ear.0.len(), usize::from(shed > 0), "one line: {:?}", ear.0);
        assert!(ear.0.iter().all(|line| line.starts_with("remote: ") && line.contains("3 ")), "{:?}", ear.0);
        logs.extend(rig.shards[0].journal().map(|batch| batch.bytes));
    }
}
