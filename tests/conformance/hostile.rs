//! Clients that mean harm, or are broken: what they send costs them their connection and nobody else anything.
//!
//! Each test has a node of its own and looks at its memory, its counters and at a client that behaves.

use crate::packets::{self, ack_with, disconnect_with, pair, subscribe_to, text, unsubscribe_from};
use crate::{BOTH, setup};
use harness::node::Role;
use harness::raw::Raw;
use harness::wire::{self, Connect, Publish, V5, V311, kind, packet};
use harness::{LONG, Node, SHORT, within};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Resident bytes of the data plane.
pub fn resident(node: &Node) -> usize {
    let path = format!("/proc/{}/statm", node.pid(Role::Dataplane));
    let pages = std::fs::read_to_string(path).expect("the data plane runs");
    let pages: usize = pages.split(' ').nth(1).expect("resident pages").parse().expect("a number");
    pages * 4096
}

/// Time on processors that the data plane has taken.
fn processor_time(node: &Node) -> Duration {
    let path = format!("/proc/{}/stat", node.pid(Role::Dataplane));
    let stat = std::fs::read_to_string(path).expect("the data plane runs");
    // The name in parentheses may hold spaces; user and system time are the 12th and 13th field behind it, in 1/100 s.
    let fields = stat[stat.rfind(')').expect("a name")..].split_whitespace();
    let ticks: u64 = fields.skip(12).take(2).map(|field| field.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 10)
}

/// A client that behaves, and the processes it should still see at the end.
pub struct Witness {
    raw: Raw,
    pids: Vec<u32>,
}

impl Witness {
    /// A new one, with a subscription of its own.
    pub fn of(node: &Node) -> Self {
        let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, "witness"));
        raw.subscribe("witness", 0);
        Self { raw, pids: node.ready_now().expect("it is ready").pids.to_vec() }
    }

    /// Still served, by the same processes.
    #[track_caller]
    pub fn is_served(&mut self, node: &Node) {
        self.raw.send(&Publish::new("witness", b"x").acked(1, 1).bytes(V5));
        let kinds = [self.raw.next(SHORT), self.raw.next(SHORT)].map(|packet| packet.expect("it stays open").kind);
        assert!(kinds.contains(&kind::PUBLISH) && kinds.contains(&kind::PUBACK), "{kinds:?}");
        assert_eq!(node.ready_now().expect("it is ready").pids.to_vec(), self.pids, "no process was started again");
    }
}

/// One packet of each type, as a client or a server would send it.
fn corpus(version: u8) -> Vec<Vec<u8>> {
    let five = version == V5;
    let list = |properties: Vec<u8>| if five { properties } else { vec![] };
    let properties = list([pair("a", "b"), text(packets::id::CONTENT_TYPE, "c")].concat());
    let ack =
        |kind| if five { ack_with(kind, 1, 0, &text(packets::id::REASON_STRING, "r")) } else { wire::ack(kind, 1) };
    let mut all = vec![
        Publish { properties: &properties, ..Publish::new("t/u", b"xyz").acked(1, 5) }.bytes(version),
        Publish { retain: true, ..Publish::new("t", b"") }.bytes(version),
        subscribe_to(version, 2, &list(vec![0x0b, 1]), &[("a/+", 1), ("$share/g/b/#", 0)]),
        unsubscribe_from(version, 3, &["a/+", "b"]),
        ack(kind::PUBACK),
        ack(kind::PUBREC),
        ack(kind::PUBREL),
        ack(kind::PUBCOMP),
        wire::pingreq(),
        packet(0x20, if five { &[0, 0, 0] } else { &[0, 0] }),
        packet(0x90, if five { &[0, 1, 0, 0] } else { &[0, 1, 0] }),
        packet(0xb0, if five { &[0, 1, 0, 0] } else { &[0, 1] }),
        packet(0xd0, &[]),
        wire::disconnect(),
        packet(0xf0, &[]),
    ];
    if five {
        all.push(disconnect_with(4, &text(packets::id::REASON_STRING, "r")));
    }
    all
}

/// How the broker ended a connection on which these bytes came, in pieces of `piece` bytes.
#[track_caller]
fn outcome(node: &Node, version: u8, opening: &[u8], bytes: &[u8], piece: usize) -> Option<u8> {
    let mut raw = node.raw();
    raw.speak(version);
    if !opening.is_empty() {
        raw.send(opening);
        assert_eq!(raw.expect(kind::CONNACK).reason(), 0);
    }
    for piece in bytes.chunks(piece) {
        // It may have closed already.
        let _ = raw.try_send(piece);
    }
    raw.shut_writing();
    let packets = raw.closed(LONG);
    let ending = |packet: &&wire::Packet| {
        packet.kind == kind::DISCONNECT || packet.kind == kind::CONNACK && packet.reason() != 0
    };
    let reason = packets.iter().find(ending).map(wire::Packet::reason);
    assert!(packets.iter().all(|packet| version == V5 || packet.kind != kind::DISCONNECT), "{packets:?}");
    assert!(reason.is_none_or(|reason| version != V5 || reason >= 0x80), "{packets:?}");
    reason
}

#[test]
fn every_mutation_of_every_packet_is_survived_and_judged_alike_in_single_bytes() {
    let node = setup(2).start();
    let mut witness = Witness::of(&node);
    for version in BOTH {
        let connect = Connect { will: Some(("w", b"x", 1, false)), ..Connect::new(version, "mutant") }.bytes();
        let mut cases: Vec<(&[u8], Vec<u8>)> = Vec::new();
        for whole in corpus(version) {
            let mutants = (0..whole.len()).flat_map(|at| {
                [0x01, 0x80, 0xff].map(|bits| {
                    let mut mutant = whole.clone();
                    mutant[at] ^= bits;
                    mutant
                })
            });
            cases.extend(mutants.map(|mutant| (&connect[..], mutant)));
            // Cut short, with a length that says so.
            cases.extend((2..whole.len()).map(|to| (&connect[..], packet(whole[0], &whole[2..to]))));
        }
        for at in 0..connect.len() {
            let mut mutant = connect.clone();
            mutant[at] ^= 0x01;
            cases.push((&[], mutant));
            cases.push((&[], packet(connect[0], &connect[2..at.max(2)])));
        }
        for (number, (opening, bytes)) in cases.into_iter().enumerate() {
            if number % 100 == 0 {
                witness.is_served(&node);
            }
            let at_once = outcome(&node, version, opening, &bytes, bytes.len().max(1));
            let in_single_bytes = outcome(&node, version, opening, &bytes, 1);
            // Behind a closed connection the last word may be lost with a reset; a different word is wrong.
            if let (Some(one), Some(other)) = (at_once, in_single_bytes) {
                assert_eq!(one, other, "{bytes:02x?}");
            }
        }
    }
    witness.is_served(&node);
}

#[test]
fn packets_that_end_where_a_field_should_be_close() {
    let node = setup(2).start();
    let mut witness = Witness::of(&node);
    for version in BOTH {
        let connect = Connect::new(version, "cut").bytes();
        // A QoS 1 PUBLISH of 1024 bytes whose topic leaves no room for the id, a SUBSCRIBE without options.
        let topic = vec![b'x'; 1024 - 3 - 2];
        let mut body = Vec::new();
        wire::put_bytes(&mut body, &topic);
        let publish = packet(0x32, &body);
        assert_eq!(publish.len(), 1024);
        let subscribe = packet(0x82, if version == V5 { b"\0\x01\0\0\x01t" } else { b"\0\x01\0\x01t" });
        for bytes in [publish, subscribe] {
            let reason = outcome(&node, version, &connect, &bytes, bytes.len());
            assert_eq!(reason, (version == V5).then_some(0x81));
        }
    }
    witness.is_served(&node);
}

#[test]
fn unfinished_connects_cost_little_and_end_in_time() {
    const CLIENTS: usize = 300;
    let node = setup(2).env("RINGMQ_MQTT__IDLE_TIMEOUT", "2s").start();
    let mut witness = Witness::of(&node);
    let before = resident(&node);
    // A quarter announces 256 MB, a quarter begins with something else, the rest never finishes its CONNECT.
    let mut clients: Vec<Raw> = (0..CLIENTS)
        .map(|number| {
            let mut raw = node.raw();
            let _ = match number % 4 {
                0 => raw.try_send(&[0x10, 0xff, 0xff, 0xff, 0x7f]),
                1 => raw.try_send(&[0x30, 0xff, 0xff, 0xff, 0x7f]),
                _ => raw.try_send(&[&[0x10, 0xff, 0x3e][..], &Connect::new(V5, "x").bytes()[2..12]].concat()),
            };
            raw
        })
        .collect();
    let since = Instant::now();
    let grown = resident(&node).saturating_sub(before);
    assert!(grown < CLIENTS * (32 << 10), "{grown} bytes for {CLIENTS} connections");
    for raw in &mut clients {
        let packets = raw.closed(SHORT);
        assert!(packets.iter().all(|packet| packet.kind == kind::CONNACK && packet.reason() != 0), "{packets:?}");
    }
    assert!(since.elapsed() < SHORT, "the bound is two seconds: {:?}", since.elapsed());
    node.counter_reaches("connect_timeout", (CLIENTS / 2) as u64);
    witness.is_served(&node);
}

#[test]
fn a_storm_of_qos_2_ids_and_releases_leaves_nothing_behind() {
    const ROUNDS: usize = 20_000;
    let node = setup(2).start();
    let mut witness = Witness::of(&node);
    let mut listener = Raw::connect(node.mqtt(), &Connect::new(V5, "listener"));
    listener.subscribe("storm", 0);
    for version in BOTH {
        let mut raw = Raw::connect(node.mqtt(), &Connect::new(version, "storm"));
        let mut bytes = Publish::new("storm", b"once").acked(2, 7).bytes(version).repeat(ROUNDS);
        bytes.extend(wire::ack(kind::PUBREL, 9).repeat(ROUNDS));
        bytes.extend(wire::pingreq());
        let mut writer = raw.writer();
        let writing = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &bytes));
        let (mut received, mut completed, mut answered) = (0, 0, false);
        // PUBREC may wait for another shard, the other answers wait for nothing.
        while received == 0 || !answered {
            let answer = raw.next(LONG).expect("it stays open");
            match answer.kind {
                kind::PUBREC => received += 1,
                kind::PUBCOMP => {
                    assert_eq!(answer.reason(), if version == V5 { 0x92 } else { 0 });
                    completed += 1;
                }
                kind::PINGRESP => answered = true,
                _ => panic!("{answer:?}"),
            }
        }
        writing.join().expect("the writer does not panic").expect("everything is read");
        // One PUBREC answers those that came before the first one left.
        assert!((1..=ROUNDS).contains(&received), "{received}");
        assert_eq!(completed, ROUNDS);
        assert_eq!(listener.message().payload, b"once");
        listener.ping();
    }
    witness.is_served(&node);
}

#[test]
fn acknowledgements_of_every_id_that_was_never_used_leave_nothing_behind() {
    let node = setup(2).start();
    let mut witness = Witness::of(&node);
    let before = resident(&node);
    for version in BOTH {
        let mut raw = Raw::connect(node.mqtt(), &Connect::new(version, "unknown"));
        let mut bytes: Vec<u8> = (1..=u16::MAX).flat_map(|id| wire::ack(kind::PUBREL, id)).collect();
        bytes.extend(wire::pingreq());
        let mut writer = raw.writer();
        let writing = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &bytes));
        for id in 1..=u16::MAX {
            let answer = raw.expect(kind::PUBCOMP);
            assert_eq!((answer.packet_id(), answer.reason()), (id, if version == V5 { 0x92 } else { 0 }));
        }
        raw.expect(kind::PINGRESP);
        writing.join().expect("the writer does not panic").expect("everything is read");
        // QoS 2 messages of as many ids, none of them released.
        let mut greedy = Raw::connect(node.mqtt(), &Connect::new(version, "greedy"));
        let mut writer = greedy.writer();
        let bytes: Vec<u8> =
            (1..=u16::MAX).flat_map(|id| Publish::new("t", b"x").acked(2, id).bytes(version)).collect();
        let writing = std::thread::spawn(move || drop(std::io::Write::write_all(&mut writer, &bytes)));
        if version == V5 {
            // What Receive Maximum allows is taken, the next one ends it.
            let packets = greedy.closed(LONG);
            let received = packets.iter().filter(|packet| packet.kind == kind::PUBREC).count();
            assert!(received <= 1024, "{received} were taken, and Receive Maximum is 1024");
            let reason = packets.last().filter(|packet| packet.kind == kind::DISCONNECT).map(wire::Packet::reason);
            // Behind a closed connection the last word may be lost with a reset; a different word is wrong.
            assert!(reason.is_none_or(|reason| reason == 0x93), "{reason:02x?}");
        } else {
            // 3.1.1 knows no such limit but that of the ids.
            (1..=u16::MAX).for_each(|id| assert_eq!(greedy.expect(kind::PUBREC).packet_id(), id));
            greedy.ping();
        }
        writing.join().expect("the writer does not panic");
    }
    let grown = resident(&node).saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes are left of it");
    witness.is_served(&node);
}

#[test]
fn property_bombs_are_passed_on_or_refused() {
    const BOMBS: u32 = 50;
    // A packet of 140 KB. Reading it once takes about a millisecond; a walk per property would take seconds.
    const PROCESSOR_MAX: Duration = Duration::from_millis(100);
    let node = setup(2).start();
    let mut witness = Witness::of(&node);
    let mut listener = Raw::connect(node.mqtt(), &Connect::new(V5, "listener"));
    listener.subscribe("bomb", 0);
    let bomb = pair("name", "value").repeat(10_000);
    let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, "bomber"));
    let before = processor_time(&node);
    for _ in 0..BOMBS {
        raw.send(&Publish { properties: &bomb, ..Publish::new("bomb", b"x") }.bytes(V5));
        assert_eq!(listener.message().properties.len(), bomb.len());
    }
    let taken = processor_time(&node) - before;
    assert!(taken < PROCESSOR_MAX * BOMBS, "{taken:?} for {BOMBS} bombs");
    // The same with a property behind them that must not be there: refused, and not dearer.
    let before = processor_time(&node);
    let wrong: [&[u8]; 4] = [&[0x23, 0, 0], &[0x23, 0xff, 0xff], &[0x0b, 0], &[0x01, 0, 0x01, 0]];
    for bad in wrong {
        let properties = [&bomb, bad].concat();
        let publish = Publish { properties: &properties, ..Publish::new("bomb", b"x") }.bytes(V5);
        let reason = outcome(&node, V5, &Connect::new(V5, "bad").bytes(), &publish, publish.len());
        assert!([Some(0x81), Some(0x82), Some(0x94)].contains(&reason), "{bad:02x?}: {reason:02x?}");
        let subscribe = subscribe_to(V5, 1, &[&bomb[..], &[0x0b, 0]].concat(), &[("t", 0)]);
        let reason = outcome(&node, V5, &Connect::new(V5, "bad").bytes(), &subscribe, subscribe.len());
        assert_eq!(reason, Some(0x82), "subscription identifier 0");
    }
    let taken = processor_time(&node) - before;
    assert!(taken < PROCESSOR_MAX * 2 * wrong.len() as u32, "{taken:?} for what is refused");
    // In a will that has one property too many, or a wrong one.
    for bad in [&[0x01, 2][..], &[0x18, 0, 0, 0, 1, 0x18, 0, 0, 0, 1], &[0x23, 0, 1], &[0x7f, 0]] {
        let will = Some(("t", &b"x"[..], 0, false));
        let connect = Connect { will, will_properties: bad, ..Connect::new(V5, "will") }.bytes();
        let reason = outcome(&node, V5, &[], &connect, connect.len());
        assert!([Some(0x81), Some(0x82)].contains(&reason), "{bad:02x?}: {reason:02x?}");
    }
    witness.is_served(&node);
}

#[test]
fn slow_subscribers_are_bounded_and_shed_by_name_and_others_get_everything() {
    const SLOW: usize = 20;
    const MESSAGES: u32 = 4_000;
    let node = setup(2)
        .env("RINGMQ_LIMITS__OUTPUT_BYTES_MAX", "64KB")
        .env("RINGMQ_MQTT__MAX_MQUEUE_LEN", "50")
        .env("RINGMQ_MQTT__MAX_MQUEUE_BYTES", "1MB")
        .start();
    let mut witness = Witness::of(&node);
    let before = resident(&node);
    let slow: Vec<Raw> = (0..SLOW)
        .map(|number| {
            let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, &format!("slow{number}")));
            raw.subscribe("flood/#", (number % 2) as u8);
            raw
        })
        .collect();
    let mut fast = Raw::connect(node.mqtt(), &Connect::new(V5, "fast"));
    fast.subscribe("flood/#", 0);
    let mut publisher = Raw::connect(node.mqtt(), &Connect::new(V5, "publisher"));
    let payload = vec![b'x'; 4096];
    for number in 0..MESSAGES {
        publisher.send(&Publish::new("flood/t", &payload).acked((number % 2) as u8, 1).bytes(V5));
        assert_eq!(fast.message().payload.len(), payload.len(), "message {number}");
        if number % 2 == 1 {
            publisher.expect(kind::PUBACK);
        }
    }
    let grown = resident(&node).saturating_sub(before);
    // What is configured for each, and as much again for what lies between: buffers, batches, the allocator.
    assert!(grown < SLOW * 2 * ((64 << 10) + (1 << 20)), "{grown} bytes for {SLOW} slow subscribers");
    assert!(node.counter_reaches("shed_slow_subscriber", 1) > 0);
    assert!(node.counter_reaches("shed_queue_full", 1) > 0);
    witness.is_served(&node);
    drop(slow);
}

#[test]
fn a_storm_of_connects_after_a_crash_is_served() {
    const THREADS: usize = 4;
    const CLIENTS: usize = 150;
    let mut node = setup(2).start();
    let mqtt = node.mqtt();
    node.kill();
    let (served, bound) = (AtomicUsize::new(0), Duration::from_secs(60));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let served = &served;
            scope.spawn(move || {
                let since = Instant::now();
                let mut alive = Vec::new();
                for number in 0..CLIENTS {
                    // As clients do: again and again, until somebody answers.
                    let connect = Connect::new(V311, &format!("storm-{thread}-{number}")).bytes();
                    alive.push(within(bound, "somebody answers", || {
                        drop(std::net::TcpStream::connect(mqtt).ok()?);
                        let mut raw = Raw::open(mqtt);
                        raw.try_send(&connect).ok()?;
                        let connack = raw.poll(SHORT).ok()??;
                        assert_eq!((connack.kind, connack.reason()), (kind::CONNACK, 0));
                        Some(raw)
                    }));
                }
                alive.iter_mut().for_each(Raw::ping);
                assert!(since.elapsed() < bound, "{:?}", since.elapsed());
                served.fetch_add(alive.len(), Ordering::Relaxed);
            });
        }
        node.start_again();
    });
    assert_eq!(served.load(Ordering::Relaxed), THREADS * CLIENTS);
    Witness::of(&node).is_served(&node);
}
