//! A restart with long queues: how soon it accepts, and that the queues are whole.

use crate::{crash, durable, keep};
use harness::raw::Raw;
use harness::wire::{self, Connect, Publish, V5, kind};
use harness::{LONG, Setup, client_on, seed, within};
use std::io::Write;
use std::time::{Duration, Instant};

/// Sessions that the messages wait for.
const SESSIONS: u64 = 10;
/// Messages in all queues when nothing else is asked for.
const QUEUED: u64 = 50_000;
/// Publishes on their way at a time; the broker allows more.
const WINDOW: u64 = 500;
/// Deliveries that are acknowledged together.
const ACKED_TOGETHER: usize = 16;

#[test]
fn a_node_with_long_queues_accepts_soon_and_has_them_whole() {
    run(durable("os"), seed::amount("RINGMQ_TEST_QUEUED", QUEUED) / SESSIONS * SESSIONS);
}

#[test]
fn a_kill_in_the_middle_of_a_compaction_takes_nothing_from_the_queues() {
    // So slow that it never ends before the kill.
    let setup = durable("os")
        .env("RINGMQ_DURABILITY__COMPACT_MIN_BYTES", "64KB")
        .env("RINGMQ_DURABILITY__COMPACT_BYTES_PER_S", "64KB");
    run(setup, QUEUED);
}

#[track_caller]
fn run(setup: Setup, queued: u64) {
    let node = setup
        .env("RINGMQ_MQTT__MAX_MQUEUE_LEN", queued.to_string())
        .env("RINGMQ_MQTT__MAX_MQUEUE_BYTES", "4GB")
        .start();
    let id = |session: u64| client_on((session % 2) as u16, 2, &format!("patient-{session}"));
    for session in 0..SESSIONS {
        Raw::connect(node.mqtt(), &keep(V5, &id(session))).subscribe(&format!("long/{session}"), 1);
    }
    let mut publisher = Raw::connect(node.mqtt(), &Connect::new(V5, "publisher"));
    let began = Instant::now();
    for first in (0..queued).step_by(WINDOW as usize) {
        let numbers = first..(first + WINDOW).min(queued);
        let packet = |number: u64| {
            let topic = format!("long/{}", number % SESSIONS);
            Publish::new(&topic, &number.to_be_bytes()).acked(1, (number - first + 1) as u16).bytes(V5)
        };
        publisher.send(&numbers.clone().flat_map(packet).collect::<Vec<_>>());
        for _ in numbers {
            assert_eq!(publisher.expect(kind::PUBACK).reason(), 0, "nothing is refused");
        }
    }
    let filled = began.elapsed();
    let killed = Instant::now();
    crash(&node);
    // Accepting is not enough: a session that waited must be served.
    let (mut first, connack) = within(LONG, "the node accepts", || {
        std::net::TcpStream::connect(node.mqtt()).ok().map(|_| Raw::connack(node.mqtt(), &keep(V5, &id(0))))
    });
    let accepted = killed.elapsed();
    assert!(connack.session_present());
    drain(&mut first, 0, queued);
    for session in 1..SESSIONS {
        let (mut raw, connack) = Raw::connack(node.mqtt(), &keep(V5, &id(session)));
        assert!(connack.session_present());
        drain(&mut raw, session, queued);
    }
    say(queued, filled, accepted, killed.elapsed());
}

/// Takes everything that waits for a session, in order, and then nothing more.
#[track_caller]
fn drain(raw: &mut Raw, session: u64, queued: u64) {
    let mut acks = Vec::new();
    for number in (session..queued).step_by(SESSIONS as usize) {
        let message = raw.expect(kind::PUBLISH).publish(V5);
        assert_eq!(message.payload, number.to_be_bytes(), "session {session}: in order, each once");
        acks.extend(wire::ack(kind::PUBACK, message.packet_id.expect("QoS 1 has one")));
        if acks.len() >= 4 * ACKED_TOGETHER {
            raw.send(&std::mem::take(&mut acks));
        }
    }
    raw.send(&acks);
    raw.ping();
}

/// Times are for people, on the real standard error: they are the point of the run and no verdict.
fn say(queued: u64, filled: Duration, accepted: Duration, drained: Duration) {
    let line = format!(
        "{queued} queued in {filled:.1?}; after kill -9: accepts and has the session in {accepted:.2?}, drained in {drained:.1?}\n"
    );
    // A closed standard error is no failure.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
