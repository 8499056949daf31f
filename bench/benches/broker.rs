//! What the broker itself costs, without sockets: matching at 10 k and 1 M filters, fan-out, the in-flight
//! cycle, and the hop between two shards. Allocations per message are counted where the path is hot.

use std::{hint::black_box, time::Duration};

use bench::{allocations_per_run, assert_allocation_free, world::World};
use broker::{
    interest::{Dest, Interest},
    subscriptions::{Options, Subscription, Subscriptions},
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mqtt::{
    codec::{encode, encode::PublishParts},
    types::{PacketId, Qos, Version},
};

const PAYLOAD: [u8; 64] = [b'x'; 64];
const SHAPES_MAX: usize = 64;

fn publish(topic: &str, qos: Qos, id: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    let packet_id = if qos == Qos::AtMostOnce { None } else { PacketId::new(id) };
    let parts = PublishParts { qos, topic, packet_id, payload: &PAYLOAD, ..PublishParts::default() };
    encode::publish(&mut bytes, Version::V311, &parts);
    bytes
}

/// The `i`-th filter of a layout.
fn filter(layout: &str, i: u32) -> String {
    match (layout, i % 4) {
        ("exact", _) | ("mixed", 0 | 1) => format!("site/{}/device/{i}/temperature", i % 100),
        ("wildcard", 0) | ("mixed", 2) => format!("site/+/device/{i}/temperature"),
        ("wildcard", 1) | ("mixed", _) => format!("site/{}/device/{i}/#", i % 100),
        ("wildcard", 2) => format!("+/{}/device/{i}/+", i % 100),
        _ => format!("site/{}/+/{i}/temperature", i % 100),
    }
}

fn matching(c: &mut Criterion) {
    let mut group = c.benchmark_group("match");
    group.measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    for layout in ["exact", "wildcard", "mixed"] {
        for filters in [10_000u32, 1_000_000] {
            let mut subscriptions = Subscriptions::new(1, SHAPES_MAX);
            let mut interest = Interest::new(1, SHAPES_MAX);
            for i in 0..filters {
                let text = filter(layout, i);
                let options = Options::new(Qos::AtMostOnce, false, false);
                subscriptions.insert(&text, Subscription { session: i, id: 0, options });
                interest.add(&text, Dest::Shard((i % 4) as u16));
            }
            let topics: Vec<String> = (0..1024u32)
                .map(|i| i.wrapping_mul(2_654_435_761) % filters)
                .map(|i| format!("site/{}/device/{i}/temperature", i % 100))
                .collect();
            let mut found = Vec::new();
            let mut at = 0;
            let mut next = || {
                at = (at + 1) % topics.len();
                &topics[at]
            };
            group.bench_function(BenchmarkId::new(format!("subscriptions/{layout}"), filters), |b| {
                b.iter(|| {
                    found.clear();
                    subscriptions.matching(next(), &mut found);
                    black_box(found.len())
                });
            });
            group.bench_function(BenchmarkId::new(format!("interest/{layout}"), filters), |b| {
                b.iter(|| black_box(interest.wanted(next())));
            });
        }
    }
    println!("interest: {} bytes per filter and shard, beside the table's slack", Interest::ENTRY_BYTES);
    group.finish();
}

fn fan_out(c: &mut Criterion) {
    let mut group = c.benchmark_group("fan-out");
    for subscribers in [100u64, 1000] {
        let mut world = World::new(1);
        for _ in 0..subscribers {
            let client = world.connect(0, Version::V311);
            world.subscribe(client, Version::V311, "t", Qos::AtMostOnce);
        }
        let publisher = world.connect(0, Version::V311);
        // As many publishes in one read as a loaded shard sees in one turn.
        let packets = publish("t", Qos::AtMostOnce, 0).repeat(16);
        let mut run = || {
            world.send(publisher, &packets);
            assert!(world.turn(0) > 0);
        };
        assert_allocation_free(&format!("fan-out to {subscribers}, QoS 0, 16 messages"), &mut run);
        group.throughput(Throughput::Elements(subscribers * 16));
        group.bench_function(BenchmarkId::new("qos 0", subscribers), |b| b.iter(&mut run));
    }
    group.finish();
}

fn inflight(c: &mut Criterion) {
    let mut world = World::new(1);
    let subscriber = world.connect(0, Version::V311);
    world.subscribe(subscriber, Version::V311, "t", Qos::AtLeastOnce);
    let publisher = world.connect(0, Version::V311);
    let packet = publish("t", Qos::AtLeastOnce, 9);
    // PUBLISH 1 with QoS 1 arrives, goes out with the next packet id, and is acknowledged.
    let mut id = 0u16;
    let mut run = || {
        world.send(publisher, &packet);
        assert!(world.turn(0) > 0);
        id = id.checked_add(1).unwrap_or(1);
        let [high, low] = id.to_be_bytes();
        world.send(subscriber, &[0x40, 2, high, low]);
        world.turn(0);
    };
    assert_allocation_free("in-flight cycle, QoS 1", &mut run);
    c.bench_function("in-flight cycle/qos 1", |b| b.iter(&mut run));
}

fn hop(c: &mut Criterion) {
    let mut group = c.benchmark_group("hop");
    for (qos, batch) in [(Qos::AtMostOnce, 1), (Qos::AtMostOnce, 64), (Qos::AtLeastOnce, 64)] {
        let mut world = World::new(2);
        let subscriber = world.connect(1, Version::V311);
        world.subscribe(subscriber, Version::V311, "t", Qos::AtMostOnce);
        let publisher = world.connect(0, Version::V311);
        let packets: Vec<u8> = (1..=batch).flat_map(|id| publish("t", qos, id)).collect();
        let mut run = || {
            world.send(publisher, &packets);
            world.turn(0);
            assert!(world.turn(1) > 0);
            world.turn(0);
        };
        let name = format!("qos {}/batch of {batch}", qos as u8);
        allocations_per_run(&format!("hop, {name}"), 1000, &mut run);
        group.throughput(Throughput::Elements(u64::from(batch)));
        group.bench_function(name, |b| b.iter(&mut run));
    }
    group.finish();
}

criterion_group!(benches, matching, fan_out, inflight, hop);
criterion_main!(benches);
