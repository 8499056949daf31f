//! What one comparison of a filter with a topic costs: the inner loop of every home shard.

use std::hint::black_box;

use bench::assert_allocation_free;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mqtt::topic::{Filter, Topic, matches};

const LEVELS_MAX: usize = 128;
const TOPIC: &str = "site/7/line/3/sensor/42/temperature";

const FILTERS: [(&str, &str, bool); 8] = [
    ("exact", TOPIC, true),
    ("exact, other last level", "site/7/line/3/sensor/42/temperaturf", false),
    ("exact, other first level", "plant/7/line/3/sensor/42/temperature", false),
    ("one plus", "site/7/line/+/sensor/42/temperature", true),
    ("three plus", "site/+/line/+/sensor/+/temperature", true),
    ("all plus", "+/+/+/+/+/+/+", true),
    ("many at the end", "site/7/line/#", true),
    ("everything", "#", true),
];

fn matching(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("matches");
    for (name, filter, expected) in FILTERS {
        assert_eq!(matches(filter, TOPIC), expected, "{filter}");
        assert_allocation_free(&format!("matches/{name}"), || {
            black_box(matches(black_box(filter), black_box(TOPIC)));
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |bencher| bencher.iter(|| matches(black_box(filter), black_box(TOPIC))));
    }
    group.finish();
}

fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    group.bench_function("topic", |bencher| bencher.iter(|| Topic::parse(black_box(TOPIC), LEVELS_MAX).is_ok()));
    let filter = "site/+/line/+/sensor/42/#";
    group.bench_function("filter", |bencher| bencher.iter(|| Filter::parse(black_box(filter), LEVELS_MAX).is_ok()));
    group.finish();
}

criterion_group!(benches, matching, parsing);
criterion_main!(benches);
