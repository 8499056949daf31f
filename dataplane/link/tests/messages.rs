//! Outlet and inlet as a pair under a virtual clock: order, window, repetition, and every way to give a message up.

mod common;

use common::acceptor::Acceptor;
use common::{Dice, each_packet};
use link::error::LinkError;
use link::forwarder::Settings as ForwarderSettings;
use link::outlet::{Offered, Outlet, Settings, Shed};
use link::wire::Message;
use mqtt::codec::{Packet, encode};
use mqtt::types::{Qos, Reason};

const SECOND: u64 = 1_000_000;

struct Pair {
    outlet: Outlet,
    acceptor: Acceptor,
    now: u64,
    connected: bool,
    refuse_dials: bool,
    to_acceptor: Vec<u8>,
    to_outlet: Vec<u8>,
    dice: Dice,
    errors: Vec<LinkError>,
}

fn settings() -> Settings {
    Settings::new("alpha", "n", 1)
}

fn message<'a>(payload: &'a [u8], qos: Qos) -> Message<'a> {
    Message {
        id: [7; 16],
        qos,
        from: "pub",
        retain: false,
        topic: "t/1",
        payload,
        timestamp_ms: 1_780_000_000_000,
        properties: &[],
        message_expiry_s: None,
    }
}

/// How many older messages made room for one that was taken.
fn displaced(offered: Offered) -> Option<u32> {
    match offered {
        Offered::Taken { displaced, .. } => Some(displaced),
        Offered::Shed(_) => None,
    }
}

impl Pair {
    fn new(settings: Settings) -> Pair {
        Pair {
            outlet: Outlet::new(settings),
            acceptor: Acceptor::new(ForwarderSettings::default()),
            now: 0,
            connected: false,
            refuse_dials: false,
            to_acceptor: Vec::new(),
            to_outlet: Vec::new(),
            dice: Dice(11),
            errors: Vec::new(),
        }
    }

    fn offer(&mut self, payload: &str, qos: Qos) -> Offered {
        self.outlet.offer(self.now, &message(payload.as_bytes(), qos), &mut self.to_acceptor)
    }

    fn cut(&mut self) {
        self.to_acceptor.clear();
        self.to_outlet.clear();
        self.connected = false;
        self.outlet.closed(self.now);
    }

    fn failed(&mut self, error: LinkError) {
        self.errors.push(error);
        let bytes = std::mem::take(&mut self.to_acceptor);
        self.acceptor.read(self.now, &bytes, &mut Vec::new());
        self.cut();
    }

    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 100_000, "the two ends do not come to rest");
            if self.outlet.poll_dial(self.now) {
                if self.refuse_dials {
                    self.outlet.closed(self.now);
                } else {
                    self.connected = true;
                    self.to_acceptor.clear();
                    self.to_outlet.clear();
                    self.acceptor.accept();
                    self.outlet.opened(self.now, &mut self.to_acceptor);
                }
            }
            if let Err(error) = self.outlet.tick(self.now, &mut self.to_acceptor) {
                self.failed(error);
            }
            if self.to_acceptor.is_empty() && self.to_outlet.is_empty() {
                return;
            }
            self.deliver();
        }
    }

    fn deliver(&mut self) {
        let piece = self.piece(self.to_acceptor.len());
        let bytes: Vec<u8> = self.to_acceptor.drain(..piece).collect();
        let open = self.acceptor.read(self.now, &bytes, &mut self.to_outlet);
        let piece = if open { self.piece(self.to_outlet.len()) } else { self.to_outlet.len() };
        let bytes: Vec<u8> = self.to_outlet.drain(..piece).collect();
        if let Err(error) = self.outlet.received(self.now, &bytes, &mut self.to_acceptor) {
            self.failed(error);
        } else if !open {
            self.cut();
        }
    }

    fn piece(&mut self, len: usize) -> usize {
        match self.dice.below(3) {
            0 => len.min(1),
            1 => len.min(1 + self.dice.below(100) as usize),
            _ => len,
        }
    }

    fn run(&mut self, duration: u64) {
        let until = self.now + duration;
        self.settle();
        while self.now < until {
            let next = self.outlet.deadline().unwrap_or(until);
            self.now = next.clamp(self.now, until);
            self.settle();
        }
    }

    fn arrived(&self) -> Vec<String> {
        let text = |payload: &[u8]| String::from_utf8(payload.to_vec()).expect("text");
        self.acceptor.arrived.iter().map(|message| text(&message.payload)).collect()
    }
}

#[test]
fn messages_arrive_in_the_order_of_their_offering_with_outer_qos_of_at_most_1() {
    let mut pair = Pair::new(settings());
    pair.offer("0", Qos::AtMostOnce);
    pair.offer("1", Qos::AtLeastOnce);
    pair.run(SECOND);
    pair.offer("2", Qos::ExactlyOnce);
    pair.offer("3", Qos::AtMostOnce);
    pair.run(SECOND);
    assert_eq!(pair.arrived(), ["0", "1", "2", "3"]);
    let outer: Vec<Qos> = pair.acceptor.arrived.iter().map(|message| message.outer_qos).collect();
    assert_eq!(outer, [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::AtLeastOnce, Qos::AtMostOnce]);
    let status = pair.outlet.status();
    assert_eq!((status.taken, status.delivered, status.bytes), (4, 4, 0));
    assert_eq!(status.without_subscribers, 2, "0x10 is a success");
}

#[test]
fn the_window_is_the_smaller_of_ours_and_the_remotes() {
    for (ours, theirs, window) in [(3, None, 3), (3, Some(2), 2), (0, None, 1), (32, Some(100), 32)] {
        let mut limited = settings();
        limited.max_inflight = ours;
        let mut pair = Pair::new(limited);
        pair.acceptor.manners.receive_maximum = theirs;
        pair.acceptor.manners.hold_acks = true;
        for n in 0..200 {
            pair.offer(&n.to_string(), Qos::AtLeastOnce);
        }
        pair.offer("lossy", Qos::AtMostOnce);
        pair.run(SECOND);
        assert_eq!(pair.acceptor.unacknowledged_max, window);
        assert_eq!(pair.acceptor.arrived.len(), window, "QoS 0 does not overtake");
        pair.acceptor.manners.hold_acks = false;
        pair.acceptor.release(&mut pair.to_outlet);
        pair.run(SECOND);
        assert_eq!(pair.acceptor.arrived.len(), 201);
        assert_eq!(pair.acceptor.unacknowledged_max, window);
    }
}

#[test]
fn what_was_not_acknowledged_leads_the_next_connection_in_order_and_marked() {
    let mut pair = Pair::new(settings());
    pair.acceptor.manners.hold_acks = true;
    pair.run(SECOND);
    for n in 0..3 {
        pair.offer(&n.to_string(), Qos::AtLeastOnce);
    }
    pair.run(SECOND);
    pair.cut();
    pair.offer("3", Qos::AtLeastOnce);
    pair.offer("4", Qos::AtMostOnce);
    pair.acceptor.manners.hold_acks = false;
    pair.run(3 * SECOND);
    assert_eq!(pair.arrived(), ["0", "1", "2", "0", "1", "2", "3", "4"]);
    let again: Vec<bool> = pair.acceptor.arrived.iter().map(|message| message.dup).collect();
    assert_eq!(again, [false, false, false, true, true, true, false, false]);
    assert_eq!((pair.outlet.status().resent, pair.outlet.status().inflight), (3, 0));
}

#[test]
fn acknowledgements_may_come_in_any_order_and_from_nobody_else() {
    let mut pair = Pair::new(settings());
    pair.acceptor.manners.hold_acks = true;
    for n in 0..5 {
        pair.offer(&n.to_string(), Qos::AtLeastOnce);
    }
    pair.run(SECOND);
    pair.acceptor.held.reverse();
    pair.acceptor.release(&mut pair.to_outlet);
    pair.run(SECOND);
    assert_eq!((pair.outlet.status().delivered, pair.outlet.status().inflight), (5, 0));
    let stray = mqtt::types::PacketId::new(99).expect("an id");
    encode::ack(&mut pair.to_outlet, mqtt::types::Version::V5, mqtt::codec::AckKind::Puback, stray, Reason::Success);
    pair.settle();
    assert_eq!(pair.errors, [LinkError::PeerMisbehaved("an acknowledgement of nothing")]);
    assert_eq!(pair.acceptor.disconnects, [Reason::ProtocolError]);
}

#[test]
fn packet_ids_go_round_the_circle_many_times() {
    let mut limited = settings();
    limited.max_inflight = 1000;
    let mut pair = Pair::new(limited);
    pair.run(SECOND);
    let mut offered = 0;
    while offered < 140_000 {
        for _ in 0..700 {
            pair.offer("m", Qos::AtLeastOnce);
            offered += 1;
        }
        while !pair.to_acceptor.is_empty() || !pair.to_outlet.is_empty() {
            let bytes = std::mem::take(&mut pair.to_acceptor);
            assert!(pair.acceptor.read(pair.now, &bytes, &mut pair.to_outlet));
            let bytes = std::mem::take(&mut pair.to_outlet);
            pair.outlet.received(pair.now, &bytes, &mut pair.to_acceptor).expect("acknowledged");
        }
    }
    assert_eq!(pair.outlet.status().delivered, offered);
}

#[test]
fn an_id_that_is_never_acknowledged_is_not_given_twice() {
    let mut outlet = Outlet::new(settings());
    let mut out = Vec::new();
    assert!(outlet.poll_dial(0));
    outlet.opened(0, &mut out);
    outlet.received(0, &[0x20, 3, 0, 0, 0], &mut out).expect("accepted");
    let offer = |outlet: &mut Outlet| {
        let mut out = Vec::new();
        outlet.offer(0, &message(b"m", Qos::AtLeastOnce), &mut out);
        let mut ids = Vec::new();
        each_packet(&mut out, |packet| match packet {
            Packet::Publish(publish) => ids.push(publish.packet_id.expect("QoS 1").get()),
            other => panic!("{other:?}"),
        });
        ids
    };
    assert_eq!(offer(&mut outlet), [1]);
    for id in 2..=65_535u16 {
        assert_eq!(offer(&mut outlet), [id]);
        let [high, low] = id.to_be_bytes();
        outlet.received(0, &[0x40, 2, high, low], &mut out).expect("acknowledged");
    }
    assert!(offer(&mut outlet).is_empty(), "1 is still in use: the message waits");
    out.clear();
    outlet.received(0, &[0x40, 2, 0, 1], &mut out).expect("acknowledged");
    let mut ids = Vec::new();
    each_packet(&mut out, |packet| match packet {
        Packet::Publish(publish) => ids.push(publish.packet_id.expect("QoS 1").get()),
        other => panic!("{other:?}"),
    });
    assert_eq!(ids, [1]);
}

#[test]
fn a_message_too_large_for_the_remote_is_shed_by_name_and_blocks_nobody() {
    let mut pair = Pair::new(settings());
    pair.acceptor.manners.maximum_packet_bytes = Some(1000);
    pair.offer("before", Qos::AtLeastOnce);
    pair.offer(&"x".repeat(2000), Qos::AtLeastOnce);
    pair.offer("after", Qos::AtLeastOnce);
    pair.run(SECOND);
    assert_eq!(pair.arrived(), ["before", "after"]);
    pair.offer(&"x".repeat(2000), Qos::AtMostOnce);
    pair.run(SECOND);
    assert_eq!(pair.outlet.status().shed(Shed::TooLargeForRemote), 2);
    let mut small = settings();
    small.message_bytes_max = 100;
    let mut pair = Pair::new(small);
    assert_eq!(pair.offer(&"x".repeat(200), Qos::AtLeastOnce), Offered::Shed(Shed::TooLarge));
    assert_eq!(pair.outlet.status().bytes, 0);
}

#[test]
fn a_full_queue_sheds_the_oldest_qos_0_first_and_then_refuses() {
    let mut small = settings();
    small.queued_max = 4;
    let mut pair = Pair::new(small);
    pair.refuse_dials = true;
    pair.settle();
    for (payload, qos) in [("a", Qos::AtMostOnce), ("b", Qos::AtLeastOnce), ("c", Qos::AtMostOnce)] {
        assert_eq!(displaced(pair.offer(payload, qos)), Some(0));
    }
    assert_eq!(displaced(pair.offer("d", Qos::AtLeastOnce)), Some(0));
    assert_eq!(displaced(pair.offer("e", Qos::AtMostOnce)), Some(1), "a gives way");
    assert_eq!(displaced(pair.offer("f", Qos::AtLeastOnce)), Some(1), "c gives way");
    assert_eq!(displaced(pair.offer("g", Qos::AtLeastOnce)), Some(1), "e gives way");
    assert_eq!(pair.offer("h", Qos::AtLeastOnce), Offered::Shed(Shed::QueueFull));
    assert_eq!(pair.offer("i", Qos::AtMostOnce), Offered::Shed(Shed::QueueFull));
    pair.refuse_dials = false;
    pair.run(3 * SECOND);
    assert_eq!(pair.arrived(), ["b", "d", "f", "g"]);
    let status = pair.outlet.status();
    assert_eq!((status.shed(Shed::Displaced), status.shed(Shed::QueueFull)), (3, 2));
}

#[test]
fn the_bytes_that_wait_are_bounded() {
    let mut small = settings();
    small.queued_bytes_max = 10_000;
    let mut pair = Pair::new(small);
    pair.refuse_dials = true;
    pair.settle();
    let mut refused = 0;
    for n in 0..1000 {
        let qos = if n % 2 == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce };
        refused += u32::from(matches!(pair.offer(&"p".repeat(300), qos), Offered::Shed(_)));
        assert!(pair.outlet.status().bytes <= 10_000);
    }
    assert!(refused > 900);
    assert!(pair.outlet.status().queued > 10);
}

#[test]
fn messages_that_wait_too_long_or_expire_are_shed_by_name() {
    let mut impatient = settings();
    impatient.queued_age_ms = 60_000;
    let mut pair = Pair::new(impatient);
    pair.refuse_dials = true;
    pair.settle();
    pair.offer("old", Qos::AtLeastOnce);
    let mut expiring = message(b"expiring", Qos::AtLeastOnce);
    expiring.message_expiry_s = Some(30);
    pair.outlet.offer(pair.now, &expiring, &mut pair.to_acceptor);
    pair.run(40 * SECOND);
    pair.offer("young", Qos::AtLeastOnce);
    pair.run(25 * SECOND);
    pair.refuse_dials = false;
    pair.run(3 * SECOND);
    assert_eq!(pair.arrived(), ["young"]);
    let status = pair.outlet.status();
    assert_eq!((status.shed(Shed::TooOld), status.shed(Shed::Expired), status.bytes), (1, 1, 0));
}

#[test]
fn a_refusal_by_the_remote_loses_that_message_and_is_counted() {
    let mut pair = Pair::new(settings());
    pair.acceptor.manners.ack = Reason::NotAuthorized;
    pair.offer("lost", Qos::AtLeastOnce);
    pair.run(SECOND);
    pair.acceptor.manners.ack = Reason::Success;
    pair.offer("kept", Qos::AtLeastOnce);
    pair.run(SECOND);
    let status = pair.outlet.status();
    assert_eq!((status.shed(Shed::RefusedByRemote), status.delivered), (1, 1));
    assert_eq!(status.last_refusal, Some(Reason::NotAuthorized));
    assert!(pair.errors.is_empty());
}

#[test]
fn an_acknowledgement_that_never_comes_makes_a_new_connection_and_a_repetition() {
    let mut pair = Pair::new(settings());
    pair.acceptor.manners.hold_acks = true;
    pair.offer("m", Qos::AtLeastOnce);
    pair.run(29 * SECOND);
    assert!(pair.errors.is_empty());
    pair.run(SECOND);
    assert_eq!(pair.errors, [LinkError::AckTimeout]);
    assert_eq!(pair.acceptor.disconnects, [Reason::Success], "DISCONNECT before closing");
    pair.acceptor.manners.hold_acks = false;
    pair.run(3 * SECOND);
    assert_eq!(pair.arrived(), ["m", "m"]);
    assert_eq!(pair.outlet.status().delivered, 1);
}

#[test]
fn a_remote_that_takes_qos_0_only_gets_qos_0() {
    let mut pair = Pair::new(settings());
    pair.acceptor.manners.maximum_qos = Some(Qos::AtMostOnce);
    pair.offer("m", Qos::ExactlyOnce);
    pair.run(SECOND);
    assert_eq!(pair.acceptor.arrived[0].outer_qos, Qos::AtMostOnce);
    assert_eq!(pair.outlet.status().delivered, 1);
}

#[test]
fn a_socket_that_takes_nothing_costs_one_buffer() {
    let mut small = settings();
    small.out_bytes_max = 1000;
    let mut pair = Pair::new(small);
    pair.run(SECOND);
    for _ in 0..1000 {
        pair.offer(&"p".repeat(100), Qos::AtMostOnce);
    }
    let largest = 1000 + 400;
    assert!(pair.to_acceptor.len() < largest, "{} bytes for a socket that stands still", pair.to_acceptor.len());
    assert!(pair.outlet.status().queued > 900);
    pair.run(SECOND);
    assert_eq!(pair.acceptor.arrived.len(), 1000, "each flush makes room for more");
}

#[test]
fn an_end_of_the_link_says_disconnect_and_counts_what_it_gives_up() {
    let mut pair = Pair::new(settings());
    pair.acceptor.manners.hold_acks = true;
    pair.offer("sent", Qos::AtLeastOnce);
    pair.run(SECOND);
    pair.outlet.stop(false, &mut pair.to_acceptor);
    let mut last = Vec::new();
    each_packet(&mut pair.to_acceptor, |packet| last.push(matches!(packet, Packet::Disconnect(_))));
    assert_eq!(last, [true]);
    pair.cut();
    assert_eq!(pair.offer("late", Qos::AtLeastOnce), Offered::Shed(Shed::Stopped));
    pair.run(10 * SECOND);
    assert_eq!((pair.outlet.status().shed(Shed::Stopped), pair.outlet.deadline()), (2, None));
    assert!(!pair.connected);
}

#[test]
fn under_random_cuts_nothing_acknowledged_is_lost_and_order_is_kept() {
    let (mut repeated, mut cuts) = (0, 0);
    for seed in 0..200 {
        let mut dice = Dice(seed);
        let mut limited = settings();
        limited.max_inflight = 1 + dice.below(8) as u16;
        limited.out_bytes_max = 1 + dice.below(2000) as usize;
        let mut pair = Pair::new(limited);
        pair.dice = Dice(seed + 1000);
        let mut offered = 0;
        for _ in 0..400 {
            match dice.below(10) {
                0..5 => {
                    assert_eq!(displaced(pair.offer(&offered.to_string(), Qos::AtLeastOnce)), Some(0));
                    offered += 1;
                }
                5 if pair.connected => {
                    pair.cut();
                    cuts += 1;
                }
                6 => pair.run(dice.below(3 * SECOND)),
                7 => pair.acceptor.manners.hold_acks ^= true,
                8 => pair.settle(),
                _ => pair.deliver(),
            }
        }
        pair.acceptor.manners.hold_acks = false;
        pair.cut();
        pair.run(10 * SECOND);
        let arrived: Vec<u32> = pair.arrived().iter().map(|text| text.parse().expect("a number")).collect();
        let mut highest = None;
        for number in &arrived {
            // At least once: a repetition may go back, but nothing is ever skipped.
            assert!(*number <= highest.map_or(0, |highest: u32| highest + 1), "seed {seed}: {arrived:?}");
            highest = highest.max(Some(*number));
        }
        assert_eq!(highest.map_or(0, |highest| highest + 1), offered, "seed {seed}: everything arrived");
        assert_eq!(pair.outlet.status().delivered, u64::from(offered), "seed {seed}: and was acknowledged once");
        assert_eq!(pair.outlet.status().bytes, 0);
        repeated += arrived.len() - offered as usize;
    }
    assert!(cuts > 100 && repeated > 100, "{cuts} cuts and {repeated} repetitions");
}
