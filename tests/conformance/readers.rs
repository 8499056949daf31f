//! Clients that read slowly or never: what they make the node hold is bounded by count and by bytes, what is shed is
//! counted, and nobody else waits for them.

use crate::hostile::{Witness, resident};
use crate::{packets, setup};
use harness::node::Role;
use harness::raw::Raw;
use harness::wire::{Connect, Publish, V5, kind};
use harness::{LONG, Node, SHORT, within};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The configured bounds of one slow reader.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
const QUEUED_MAX: usize = 100;
const QUEUED_BYTES_MAX: usize = 256 << 10;

fn bounded(shards: u16) -> Node {
    setup(shards)
        .env("RINGMQ_LIMITS__OUTPUT_BYTES_MAX", OUTPUT_BYTES_MAX.to_string())
        .env("RINGMQ_MQTT__MAX_MQUEUE_LEN", QUEUED_MAX.to_string())
        .env("RINGMQ_MQTT__MAX_MQUEUE_BYTES", QUEUED_BYTES_MAX.to_string())
        .start()
}

/// A subscriber whose kernel takes little for it.
fn narrow(node: &Node, id: &str, filter: &str, qos: u8) -> TcpStream {
    let mut raw = node.raw();
    let stream = raw.writer();
    set_socket_recv_buffer_size(&stream, 4096).expect("a small window");
    raw.send(&Connect::new(V5, id).bytes());
    assert_eq!(raw.expect(kind::CONNACK).reason(), 0);
    raw.subscribe_quietly(filter, qos);
    stream
}

#[test]
fn a_hundred_readers_of_a_kilobyte_per_second_cost_what_is_configured_and_others_nothing() {
    const SLOW: usize = 100;
    const MESSAGES: u32 = 6_000;
    /// Seconds that the slow ones read for at least.
    const ROUNDS: u64 = 4;
    let node = bounded(2);
    let mut witness = Witness::of(&node);
    let before = resident(&node);
    let mut slow: Vec<TcpStream> =
        (0..SLOW).map(|at| narrow(&node, &format!("slow{at}"), "fast/#", (at % 2) as u8)).collect();
    let mut fast = Raw::connect(node.mqtt(), &Connect::new(V5, "fast"));
    fast.subscribe("fast/#", 1);
    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let (most, read) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (over, rounds, most, read, node) = (&over, &rounds, &most, &read, &node);
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                for stream in &mut slow {
                    stream.set_nonblocking(true).expect("a socket may not block");
                    read.fetch_add(stream.read(&mut [0; 1024]).unwrap_or(0) as u64, Ordering::Relaxed);
                }
                most.fetch_max(resident(node) as u64, Ordering::Relaxed);
                rounds.fetch_add(1, Ordering::Relaxed);
                // The pace of these clients, not a wait for anything.
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        let mut publisher = Raw::connect(node.mqtt(), &Connect::new(V5, "publisher"));
        let payload = vec![b'x'; 4096];
        // As fast as one client that loses nothing takes them: it has the next one only after it had this one.
        let enough = |number| number >= MESSAGES && rounds.load(Ordering::Relaxed) >= ROUNDS;
        for number in (0..).take_while(|number| !enough(*number)) {
            publisher.send(&Publish::new("fast/t", &payload).acked((number % 2) as u8, 1).bytes(V5));
            assert_eq!(fast.message().payload.len(), payload.len(), "message {number}");
            if number % 2 == 1 {
                publisher.expect(kind::PUBACK);
            }
            if number % 1000 == 0 {
                witness.is_served(node);
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let grown = (most.load(Ordering::Relaxed) as usize).saturating_sub(before);
    // What is configured for each, and as much again for buffers, batches and the allocator; 24 MB were published for each.
    assert!(grown < SLOW * 2 * (OUTPUT_BYTES_MAX + QUEUED_BYTES_MAX), "{grown} bytes for {SLOW} slow readers");
    assert!(read.load(Ordering::Relaxed) > 0, "they do read");
    assert!(node.counter_reaches("shed_slow_subscriber", 1) > 0);
    assert!(node.counter_reaches("shed_queue_full", 1) > 0);
    witness.is_served(&node);
}

#[test]
fn what_waits_for_a_client_that_acknowledges_nothing_is_bounded_by_count_and_by_bytes() {
    let node = bounded(2);
    let mut publisher = Raw::connect(node.mqtt(), &Connect::new(V5, "publisher"));
    let mut shed = 0;
    // One message is in flight, the others queue: small ones until there are too many, large ones until they are too large.
    for (topic, bytes, least, most) in [("few", 64, QUEUED_MAX, QUEUED_MAX), ("large", 16 << 10, 8, 16)] {
        let one = packets::two(packets::id::RECEIVE_MAXIMUM, 1);
        let mut slow = Raw::connect(node.mqtt(), &Connect { properties: &one, ..Connect::new(V5, topic) });
        slow.subscribe(topic, 1);
        let total = 2 * QUEUED_MAX;
        for number in 0..total {
            let mut payload = vec![0; bytes];
            payload[0] = number as u8;
            publisher.publish_acked(topic, &payload, 1);
        }
        // What was shed is counted; what was not comes, the oldest first, and nothing behind it.
        let counted = node.counter("shed_queue_full") as usize;
        let queued = total - (counted - shed) - 1;
        shed = counted;
        assert!((least..=most).contains(&queued), "{queued} messages of {bytes} bytes wait");
        for number in 0..=queued {
            assert_eq!(slow.message().payload[0], number as u8, "what was accepted first is kept");
        }
        slow.ping();
    }
}

#[test]
fn publishers_that_flood_themselves_and_never_read_stop_no_shard() {
    const SHARDS: u16 = 2;
    const FLOOD_BYTES: usize = 16 << 20;
    let node = bounded(SHARDS);
    let before = resident(&node);
    let mut pairs: Vec<Raw> = (0..SHARDS)
        .map(|shard| {
            let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, &harness::client_on(shard, SHARDS, "canary")));
            raw.subscribe(&format!("canary/{shard}"), 0);
            raw
        })
        .collect();
    let flooding = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for (at, qos) in [0, 1, 2, 0, 1, 2].into_iter().enumerate() {
            let id = harness::client_on(at as u16 % SHARDS, SHARDS, &format!("deaf{at}"));
            let mut stream = narrow(&node, &id, "#", qos);
            let flooding = &flooding;
            flooding.fetch_add(1, Ordering::Relaxed);
            scope.spawn(move || {
                // Until the window of the node is shut, too, or it has enough of this client.
                stream.set_write_timeout(Some(Duration::from_secs(2))).expect("a bound on writes");
                let payload = vec![b'x'; 4000];
                for number in 0..FLOOD_BYTES / payload.len() {
                    let publish = Publish::new("flood", &payload).acked(qos, number as u16 % 60_000 + 1).bytes(V5);
                    if stream.write_all(&publish).is_err() {
                        break;
                    }
                }
                flooding.fetch_sub(1, Ordering::Relaxed);
            });
        }
        let mut rounds = 0;
        while flooding.load(Ordering::Relaxed) > 0 || rounds < 100 {
            for (shard, raw) in pairs.iter_mut().enumerate() {
                raw.send(&Publish::new(&format!("canary/{shard}"), b"x").acked(1, 1).bytes(V5));
                let mut kinds = [raw.next(SHORT), raw.next(SHORT)].map(|packet| packet.expect("it stays open").kind);
                kinds.sort_unstable();
                assert_eq!(kinds, [kind::PUBLISH, kind::PUBACK], "shard {shard}, round {rounds}");
            }
            rounds += 1;
        }
    });
    let most = 6 * 2 * (OUTPUT_BYTES_MAX + QUEUED_BYTES_MAX + (4 << 20));
    let grown = resident(&node).saturating_sub(before);
    assert!(grown < most, "{grown} bytes for six clients that do not read");
    // They are gone, and so is what they held.
    within(LONG, "their sessions end", || (node.figure("shard_sessions") <= 2.0).then_some(()));
    pairs.iter_mut().for_each(Raw::ping);
    assert!(node.process(Role::Dataplane).is_some());
}
