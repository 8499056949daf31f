//! What one PUBLISH costs in the codec, in and out, for both versions and two payloads.

use std::hint::black_box;

use bench::assert_allocation_free;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mqtt::{
    codec::{Packet, PublishProperties, decode, encode, encode::PublishParts, split},
    types::{PacketId, Qos, Version},
};

const PACKET_BYTES_MAX: usize = 1 << 20;
const TOPIC: &str = "site/7/line/3/sensor/42/temperature";
const PAYLOADS: [usize; 2] = [64, 1024];

/// One kind of PUBLISH.
struct Sample {
    name: String,
    version: Version,
    qos: Qos,
    forwarded: Vec<u8>,
    payload: Vec<u8>,
}

impl Sample {
    fn all() -> Vec<Sample> {
        let mut samples = Vec::new();
        for payload_bytes in PAYLOADS {
            let payload = vec![b'x'; payload_bytes];
            for (version, name) in [(Version::V311, "3.1.1"), (Version::V5, "5.0")] {
                for qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
                    samples.push(Sample {
                        name: format!("{name}/qos {}/{payload_bytes} B", qos as u8),
                        version,
                        qos,
                        forwarded: Vec::new(),
                        payload: payload.clone(),
                    });
                }
            }
            samples.push(Sample {
                name: format!("5.0 with properties/qos 1/{payload_bytes} B"),
                version: Version::V5,
                qos: Qos::AtLeastOnce,
                forwarded: properties(),
                payload,
            });
        }
        samples
    }

    fn parts(&self) -> PublishParts<'_> {
        PublishParts {
            qos: self.qos,
            topic: TOPIC,
            packet_id: if self.qos == Qos::AtMostOnce { None } else { PacketId::new(7) },
            forwarded: &self.forwarded,
            payload: &self.payload,
            ..PublishParts::default()
        }
    }
}

/// What a request carries: answer, number, type, and one user property.
fn properties() -> Vec<u8> {
    let mut out = Vec::new();
    let properties = PublishProperties {
        content_type: Some("application/json"),
        response_topic: Some("clients/42/answers"),
        correlation_data: Some(b"0123456789abcdef"),
        ..PublishProperties::default()
    };
    encode::forwarded(&mut out, &properties);
    encode::user_property(&mut out, "trace", "4bf92f3577b34da6");
    out
}

fn read(version: Version, bytes: &[u8]) -> usize {
    match split(bytes, PACKET_BYTES_MAX) {
        Ok(Some(raw)) => match decode(version, raw) {
            Ok(Packet::Publish(publish)) => publish.topic.len() + publish.payload.len(),
            other => panic!("the sample is a PUBLISH: {other:?}"),
        },
        other => panic!("the sample is one packet: {other:?}"),
    }
}

fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode publish");
    for sample in Sample::all() {
        let mut bytes = Vec::new();
        encode::publish(&mut bytes, sample.version, &sample.parts());
        assert_allocation_free(&format!("decode publish/{}", sample.name), || {
            black_box(read(sample.version, black_box(&bytes)));
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function(&sample.name, |bencher| {
            bencher.iter(|| read(black_box(sample.version), black_box(&bytes)));
        });
    }
    group.finish();
}

fn encoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode publish");
    for sample in Sample::all() {
        let mut out = Vec::new();
        let mut write = |parts: &PublishParts<'_>| {
            out.clear();
            encode::publish(&mut out, black_box(sample.version), parts);
            black_box(out.len());
        };
        assert_allocation_free(&format!("encode publish/{}", sample.name), || write(&sample.parts()));
        group.throughput(Throughput::Elements(1));
        group.bench_function(&sample.name, |bencher| bencher.iter(|| write(black_box(&sample.parts()))));
    }
    group.finish();
}

/// The four bytes that answer a QoS 1 message.
fn acknowledging(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("puback");
    for (version, name) in [(Version::V311, "3.1.1"), (Version::V5, "5.0")] {
        let id = PacketId::new(7).expect("7 is an id");
        let mut out = Vec::new();
        let mut cycle = || {
            out.clear();
            encode::ack(&mut out, version, encode::AckKind::Puback, black_box(id), mqtt::types::Reason::Success);
            let raw = split(black_box(&out), PACKET_BYTES_MAX);
            black_box(raw.map(|raw| raw.map(|raw| decode(version, raw).is_ok()))).is_ok()
        };
        assert_allocation_free(&format!("puback/{name}"), || assert!(cycle()));
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("encode and decode/{name}"), |bencher| bencher.iter(&mut cycle));
    }
    group.finish();
}

criterion_group!(benches, decoding, encoding, acknowledging);
criterion_main!(benches);
