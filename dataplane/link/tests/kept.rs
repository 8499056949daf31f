//! An outlet whose messages are kept in a log beside it: what the log has to be told, and what a later life takes back.

mod common;

use std::collections::BTreeMap;

use common::{Dice, each_packet};
use link::outlet::{Offered, Outlet, Settings, Shed};
use link::wire::{Message, decode_forwarded};
use mqtt::codec::Packet;
use mqtt::types::Qos;

const SECOND: u64 = 1_000_000;
const WALL_MS: u64 = 1_780_000_000_000;
const Q0: Qos = Qos::AtMostOnce;
const Q1: Qos = Qos::AtLeastOnce;

fn message<'a>(payload: &'a [u8], qos: Qos) -> Message<'a> {
    Message {
        id: [7; 16],
        qos,
        from: "pub",
        retain: false,
        topic: "t/1",
        payload,
        timestamp_ms: WALL_MS,
        properties: &[],
        message_expiry_s: None,
    }
}

/// Dials, and is accepted.
fn connect(outlet: &mut Outlet, now: u64) -> Vec<u8> {
    let mut out = Vec::new();
    assert!(outlet.poll_dial(now), "it is time to dial");
    outlet.opened(now, &mut out);
    out.clear();
    outlet.received(now, &[0x20, 3, 0, 0, 0], &mut out).expect("accepted");
    out
}

/// What was written: packet id, DUP, payload of the message inside.
fn written(out: &mut Vec<u8>) -> Vec<(u16, bool, String)> {
    let mut written = Vec::new();
    each_packet(out, |packet| {
        let Packet::Publish(publish) = packet else { return };
        let mut scratch = Vec::new();
        let inside = decode_forwarded(publish.payload, &mut scratch, &link::etf::Limits::default()).expect("ours");
        let id = publish.packet_id.map_or(0, |id| id.get());
        written.push((id, publish.dup, String::from_utf8_lossy(inside.payload).into_owned()));
    });
    written
}

fn acknowledge(outlet: &mut Outlet, now: u64, id: u16, out: &mut Vec<u8>) {
    let [high, low] = id.to_be_bytes();
    outlet.received(now, &[0x40, 2, high, low], out).expect("acknowledged");
}

fn place(offered: Offered) -> u64 {
    match offered {
        Offered::Taken { place, .. } => place,
        Offered::Shed(shed) => panic!("shed: {shed:?}"),
    }
}

fn gone(outlet: &mut Outlet) -> Vec<u64> {
    outlet.gone().collect()
}

#[test]
fn a_place_is_gone_once_whatever_became_of_its_message() {
    let mut settings = Settings::new("alpha", "n", 1);
    settings.max_inflight = 1;
    settings.queued_age_ms = 10_000;
    let mut outlet = Outlet::new(settings);
    let mut out = connect(&mut outlet, 0);
    let acked = place(outlet.offer(0, &message(b"acknowledged", Q1), &mut out));
    let expiring = Message { message_expiry_s: Some(2), ..message(b"expires", Q1) };
    let expired = place(outlet.offer(0, &expiring, &mut out));
    let old = place(outlet.offer(0, &message(b"old", Q1), &mut out));
    place(outlet.offer(0, &message(b"zero", Q0), &mut out));
    let refused = place(outlet.offer(9 * SECOND, &message(b"refused", Q1), &mut out));
    assert_eq!(gone(&mut outlet), [expired], "the offer that came after its time gave it up");
    acknowledge(&mut outlet, 9 * SECOND, 1, &mut out);
    assert_eq!(gone(&mut outlet), [acked]);
    let sent = written(&mut out);
    assert_eq!(sent.iter().map(|(.., payload)| payload.as_str()).collect::<Vec<_>>(), ["acknowledged", "old", "zero"]);
    outlet.closed(9 * SECOND);
    outlet.expire(11 * SECOND);
    assert_eq!(gone(&mut outlet), [old]);
    let mut out = connect(&mut outlet, 12 * SECOND);
    let (id, ..) = *written(&mut out).last().expect("refused is sent");
    let [high, low] = id.to_be_bytes();
    outlet.received(12 * SECOND, &[0x40, 4, high, low, 0x97, 0], &mut out).expect("a refusal is an answer");
    assert_eq!(gone(&mut outlet), [refused]);
    let stopped = place(outlet.offer(12 * SECOND, &message(b"stopped", Q1), &mut out));
    outlet.stop(false, &mut out);
    assert_eq!(gone(&mut outlet), [stopped]);
    let status = outlet.status();
    let shed = [Shed::Expired, Shed::TooOld, Shed::RefusedByRemote, Shed::Stopped].map(|shed| status.shed(shed));
    assert_eq!((shed, status.bytes), ([1; 4], 0));
}

#[test]
fn what_waits_can_be_read_again_as_it_was_offered_sent_or_not() {
    let mut settings = Settings::new("alpha", "n", 1);
    settings.max_inflight = 2;
    let mut outlet = Outlet::new(settings);
    let mut out = connect(&mut outlet, 0);
    // More user properties than any decoder of ours lets in: what was taken has to be kept all the same.
    let many = [0x26, 0, 1, b'k', 0, 1, b'v'].repeat(2000);
    let offered: Vec<Message<'_>> = vec![
        Message { id: [1; 16], properties: &many, ..message(b"one", Q1) },
        Message { id: [2; 16], message_expiry_s: Some(60), retain: true, ..message(b"two", Q1) },
        Message { id: [3; 16], from: "", topic: "t/3", qos: Qos::ExactlyOnce, ..message(b"", Q1) },
        message(b"zero", Q0),
    ];
    let places: Vec<u64> = offered.iter().map(|message| place(outlet.offer(0, message, &mut out))).collect();
    assert_eq!(outlet.status().inflight, 2);
    assert_eq!(outlet.next_place(), places[3] + 1);
    let mut after = 0;
    for (message, place) in offered.iter().zip(&places) {
        let (at, found) = outlet.waiting_after(after).expect("it waits");
        assert_eq!(at, *place);
        match message.qos {
            Q0 => assert!(found.is_none()),
            _ => assert_eq!(format!("{:?}", found.expect("kept")), format!("{message:?}")),
        }
        after = at;
    }
    assert!(outlet.waiting_after(after).is_none());
}

#[test]
fn what_waited_in_an_earlier_life_leads_and_its_age_goes_on() {
    let mut settings = Settings::new("alpha", "n", 1);
    settings.queued_age_ms = 10_000;
    settings.queued_max = 2;
    let mut outlet = Outlet::new(settings);
    outlet.restore_place(9);
    for (at, age_ms, payload) in [(3, 9_000, "first"), (5, 11_000, "too old"), (8, 1_000, "second")] {
        assert!(outlet.restore(0, at, age_ms, &message(payload.as_bytes(), Q1)), "{payload}");
    }
    let short = Message { message_expiry_s: Some(3), ..message(b"expired", Q1) };
    assert!(outlet.restore(0, 9, 4_000, &short));
    let full = outlet.offer(0, &message(b"full", Q1), &mut Vec::new());
    assert_eq!(full, Offered::Shed(Shed::QueueFull), "more than fits, and nothing of it is given up for that");
    let mut out = connect(&mut outlet, 0);
    let sent = written(&mut out);
    assert_eq!(sent, [(1, true, "first".into()), (2, true, "second".into())], "they may have been sent before");
    assert_eq!(outlet.gone().count(), 2);
    acknowledge(&mut outlet, 0, 1, &mut out);
    acknowledge(&mut outlet, 0, 2, &mut out);
    let new = place(outlet.offer(0, &message(b"new", Q1), &mut out));
    assert!(new > 9, "a place is given once: {new}");
    assert_eq!(written(&mut out), [(3, false, "new".into())]);
}

#[test]
fn several_outlets_become_one_without_sharing_a_place() {
    let mut outlet = Outlet::new(Settings::new("alpha", "n", 1));
    let lives = [[(4, "a"), (7, "b")], [(2, "c"), (9, "d")]];
    for (at, payload) in lives.concat() {
        assert!(outlet.restore(0, at, 0, &message(payload.as_bytes(), Q1)));
    }
    let (mut after, mut found) = (0, Vec::new());
    while let Some((at, message)) = outlet.waiting_after(after) {
        assert!(at > after);
        after = at;
        found.push(String::from_utf8_lossy(message.expect("kept").payload).into_owned());
    }
    assert_eq!(found, ["a", "b", "c", "d"]);
}

#[test]
fn a_stop_that_keeps_sheds_only_what_no_log_has() {
    let mut outlet = Outlet::new(Settings::new("alpha", "n", 1));
    let mut out = Vec::new();
    let kept = place(outlet.offer(0, &message(b"kept", Q1), &mut out));
    outlet.offer(0, &message(b"lost", Q0), &mut out);
    outlet.stop(true, &mut out);
    let late = place(outlet.offer(0, &message(b"a will", Q1), &mut out));
    assert_eq!(outlet.offer(0, &message(b"late", Q0), &mut out), Offered::Shed(Shed::Stopped));
    assert_eq!(outlet.status().shed(Shed::Stopped), 2);
    assert!(gone(&mut outlet).is_empty());
    assert_eq!(outlet.waiting_after(0).map(|(at, _)| at), Some(kept));
    assert_eq!(outlet.waiting_after(kept).map(|(at, _)| at), Some(late));
    assert!(!outlet.poll_dial(0) && !outlet.poll_dial(10 * SECOND));
}

/// An outlet and the log beside it, which is told in time whatever happens.
struct Life {
    outlet: Outlet,
    log: BTreeMap<u64, String>,
    now: u64,
}

impl Life {
    fn told(&mut self) {
        for place in self.outlet.gone() {
            assert!(self.log.remove(&place).is_some(), "place {place} is gone once");
        }
    }

    fn dies(&mut self, settings: Settings) {
        self.outlet = Outlet::new(settings);
        for (place, payload) in &self.log {
            assert!(self.outlet.restore(self.now, *place, 0, &message(payload.as_bytes(), Q1)));
        }
    }
}

#[test]
fn under_random_deaths_everything_taken_arrives_in_order() {
    let (mut deaths, mut repeated) = (0, 0);
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let mut settings = Settings::new("alpha", "n", 1);
        settings.max_inflight = 1 + dice.below(4) as u16;
        let mut life = Life { outlet: Outlet::new(settings.clone()), log: BTreeMap::new(), now: 0 };
        let (mut out, mut arrived, mut taken, mut unacknowledged) = (Vec::new(), Vec::<u32>::new(), 0, Vec::new());
        for step in 0..400 {
            let last = step >= 390;
            match dice.below(if last { 3 } else { 8 }) {
                0 if life.outlet.status().connected => {}
                0 => {
                    life.now += 5 * SECOND;
                    unacknowledged.clear();
                    out = connect(&mut life.outlet, life.now);
                }
                1 | 2 => {
                    for id in unacknowledged.drain(..) {
                        acknowledge(&mut life.outlet, life.now, id, &mut out);
                    }
                }
                3..6 => {
                    let payload = taken.to_string();
                    let offered = life.outlet.offer(life.now, &message(payload.as_bytes(), Q1), &mut out);
                    life.log.insert(place(offered), payload);
                    taken += 1;
                }
                6 => {
                    life.outlet.closed(life.now);
                    out.clear();
                }
                _ => {
                    deaths += 1;
                    out.clear();
                    life.dies(settings.clone());
                }
            }
            life.told();
            for (id, _, payload) in written(&mut out) {
                unacknowledged.push(id);
                arrived.push(payload.parse().expect("a number"));
            }
            if !life.outlet.status().connected {
                unacknowledged.clear();
            }
        }
        life.outlet.closed(life.now);
        life.now += 5 * SECOND;
        out = connect(&mut life.outlet, life.now);
        while !out.is_empty() {
            for (id, _, payload) in written(&mut out) {
                arrived.push(payload.parse().expect("a number"));
                acknowledge(&mut life.outlet, life.now, id, &mut out);
            }
        }
        life.told();
        let mut highest = None;
        for number in &arrived {
            assert!(*number <= highest.map_or(0, |highest: u32| highest + 1), "seed {seed}: {arrived:?}");
            highest = highest.max(Some(*number));
        }
        assert_eq!(highest.map_or(0, |highest| highest + 1), taken, "seed {seed}: everything arrived");
        assert!(life.log.is_empty() && life.outlet.status().bytes == 0, "seed {seed}: {:?}", life.log);
        repeated += arrived.len() - taken as usize;
    }
    assert!(deaths > 1000 && repeated > 1000, "{deaths} deaths and {repeated} repetitions");
}
