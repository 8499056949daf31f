//! Requester and forwarder as a pair under a virtual clock, connected by bytes that arrive in pieces of any size.

mod common;

use std::collections::BTreeSet;

use common::Dice;
use common::acceptor::Acceptor;
use link::error::LinkError;
use link::forwarder::Settings as ForwarderSettings;
use link::requester::{Requester, Settings, Standing, Wanted};
use link::session::Fault;
use mqtt::types::{Qos, Reason};

const SECOND: u64 = 1_000_000;

struct Pair {
    requester: Requester,
    acceptor: Acceptor,
    now: u64,
    connected: bool,
    refuse_dials: bool,
    to_acceptor: Vec<u8>,
    to_requester: Vec<u8>,
    dice: Dice,
    errors: Vec<LinkError>,
}

fn settings(topics: &[&str]) -> Settings {
    let mut settings = Settings::new("alpha", "beta", "n", 1000);
    settings.topics = topics.iter().map(ToString::to_string).collect();
    settings
}

impl Pair {
    fn new(settings: Settings) -> Pair {
        Pair {
            requester: Requester::new(settings),
            acceptor: Acceptor::new(ForwarderSettings::default()),
            now: 0,
            connected: false,
            refuse_dials: false,
            to_acceptor: Vec::new(),
            to_requester: Vec::new(),
            dice: Dice(7),
            errors: Vec::new(),
        }
    }

    fn want(&mut self, filters: &[&str]) {
        for filter in filters {
            self.requester.want(filter, filter.as_bytes());
        }
    }

    fn unwant(&mut self, filters: &[&str]) {
        for filter in filters {
            self.requester.unwant(filter, filter.as_bytes());
        }
    }

    /// The transport breaks: what is under way is lost.
    fn cut(&mut self) {
        self.to_acceptor.clear();
        self.to_requester.clear();
        self.connected = false;
        self.requester.closed(self.now);
    }

    fn failed(&mut self, error: LinkError) {
        self.errors.push(error);
        let bytes = std::mem::take(&mut self.to_acceptor);
        self.acceptor.read(self.now, &bytes, &mut Vec::new());
        self.cut();
    }

    /// Everything that can happen now happens.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 100_000, "the two ends do not come to rest");
            if self.requester.poll_dial(self.now) {
                if self.refuse_dials {
                    self.requester.closed(self.now);
                } else {
                    self.connected = true;
                    self.to_acceptor.clear();
                    self.to_requester.clear();
                    self.acceptor.accept();
                    self.requester.opened(self.now, &mut self.to_acceptor);
                }
            }
            if let Err(error) = self.requester.tick(self.now, &mut self.to_acceptor) {
                self.failed(error);
                continue;
            }
            self.acceptor.tick(self.now);
            if self.to_acceptor.is_empty() && self.to_requester.is_empty() {
                return;
            }
            self.deliver();
        }
    }

    /// One piece in each direction.
    fn deliver(&mut self) {
        let piece = self.piece(self.to_acceptor.len());
        let bytes: Vec<u8> = self.to_acceptor.drain(..piece).collect();
        let open = self.acceptor.read(self.now, &bytes, &mut self.to_requester);
        let piece = if open { self.piece(self.to_requester.len()) } else { self.to_requester.len() };
        let bytes: Vec<u8> = self.to_requester.drain(..piece).collect();
        if let Err(error) = self.requester.received(self.now, &bytes, &mut self.to_acceptor) {
            self.failed(error);
        } else if !open {
            self.cut();
        }
    }

    fn piece(&mut self, len: usize) -> usize {
        match self.dice.below(3) {
            0 => len.min(1),
            1 => len.min(1 + self.dice.below(64) as usize),
            _ => len,
        }
    }

    /// Runs until `until`, waking at every deadline of either side.
    fn run_to(&mut self, until: u64) {
        self.settle();
        loop {
            let deadlines = [self.requester.deadline(), self.acceptor.forwarder.deadline()];
            let next = deadlines.into_iter().flatten().min().unwrap_or(until);
            self.now = next.clamp(self.now, until);
            self.settle();
            if self.now >= until {
                return;
            }
            assert!(next >= self.now || !self.connected, "a deadline in the past that nobody meets");
        }
    }

    fn run(&mut self, duration: u64) {
        self.run_to(self.now + duration);
    }

    fn interest(&self) -> Vec<&str> {
        self.acceptor.interest.iter().map(String::as_str).collect()
    }
}

fn faults(pair: &Pair) -> Vec<&'static str> {
    pair.acceptor.faults.iter().map(|fault| Fault::name(*fault)).collect()
}

#[test]
fn wants_before_and_after_the_link_is_up_reach_the_remote() {
    let mut pair = Pair::new(settings(&["t/#", "m/1"]));
    pair.want(&["t/1", "+/1", "x/y"]);
    pair.run(SECOND);
    assert_eq!(pair.interest(), ["m/1", "t/1"], "+/1 meets m/1 and t/1, x/y meets nothing");
    assert_eq!(pair.requester.status().standing, Standing::Online);
    pair.want(&["t/2/#"]);
    pair.unwant(&["+/1"]);
    pair.run(SECOND);
    assert_eq!(pair.interest(), ["t/1", "t/2/#"]);
    assert_eq!(pair.requester.status().pending, 0);
}

#[test]
fn a_filter_that_several_wants_meet_in_is_withdrawn_with_the_last() {
    let mut pair = Pair::new(settings(&["t/1"]));
    assert_eq!(pair.requester.want("t/#", b"id"), Wanted::Announced(1));
    assert_eq!(pair.requester.want("+/1", b"id"), Wanted::Announced(1));
    assert_eq!(pair.requester.want("+/1", b"id"), Wanted::Announced(1));
    assert_eq!(pair.requester.want("q", b"id"), Wanted::Outside);
    pair.run(SECOND);
    assert_eq!(pair.interest(), ["t/1"]);
    pair.requester.unwant("t/#", b"id");
    pair.requester.unwant("+/1", b"id");
    pair.requester.unwant("never wanted", b"id");
    pair.run(SECOND);
    assert_eq!(pair.interest(), ["t/1"], "one of two equal wants is left");
    pair.requester.unwant("+/1", b"id");
    pair.run(SECOND);
    assert!(pair.interest().is_empty());
}

#[test]
fn an_addition_that_is_undone_before_it_leaves_is_never_sent() {
    let mut pair = Pair::new(settings(&["#"]));
    pair.run(SECOND);
    pair.want(&["a"]);
    pair.unwant(&["a"]);
    pair.run(SECOND);
    assert!(pair.acceptor.batches.is_empty(), "{:?}", pair.acceptor.batches);
    pair.want(&["b"]);
    pair.run(SECOND);
    pair.unwant(&["b"]);
    pair.want(&["b"]);
    pair.run(SECOND);
    assert_eq!(pair.acceptor.batches, [1], "and a deletion that is undone neither");
}

#[test]
fn a_large_bootstrap_goes_in_batches_one_at_a_time_with_heartbeats_between() {
    let mut pair = Pair::new(settings(&["#"]));
    let filters: Vec<String> = (0..9000).map(|n| format!("dev/{n}")).collect();
    for filter in &filters {
        pair.requester.want(filter, filter.as_bytes());
    }
    pair.acceptor.manners.hold_acks = true;
    for _ in 0..4 {
        // The remote takes 12 s for each acknowledgement, that of actor_init included.
        pair.run(12 * SECOND);
        pair.acceptor.release(&mut pair.to_requester);
    }
    pair.run(12 * SECOND);
    assert_eq!(pair.acceptor.batches, [4000, 4000, 1000]);
    assert!(pair.acceptor.heartbeats >= 4, "{} heartbeats in a minute", pair.acceptor.heartbeats);
    assert_eq!(pair.acceptor.interest.len(), 9000);
    assert_eq!(pair.acceptor.inits, 1, "{:?}", pair.errors);
}

#[test]
fn batches_stay_below_the_remotes_packet_size_and_what_cannot_is_counted() {
    let mut pair = Pair::new(settings(&["#"]));
    pair.acceptor.manners.maximum_packet_bytes = Some(2000);
    let long = "x".repeat(1500);
    pair.want(&[&long]);
    for n in 0..100 {
        let filter = format!("{n}/{}", "y".repeat(100));
        pair.requester.want(&filter, filter.as_bytes());
    }
    pair.run(20 * SECOND);
    let status = pair.requester.status();
    assert_eq!((status.oversize, status.standing, status.pending), (1, Standing::Online, 0));
    assert_eq!(pair.acceptor.interest.len(), 100);
    assert!(pair.acceptor.batch_packet_bytes.iter().any(|bytes| *bytes > 1700), "batches are filled");
    pair.acceptor.manners.maximum_packet_bytes = None;
    pair.cut();
    pair.run(6 * SECOND);
    assert_eq!((pair.acceptor.interest.len(), pair.requester.status().oversize), (101, 0), "a larger limit, later");
}

#[test]
fn a_deletion_cut_off_before_its_acknowledgement_does_not_hide_a_later_want() {
    let mut pair = Pair::new(settings(&["#"]));
    pair.acceptor = Acceptor::new(ForwarderSettings { refill_quiet_ms: u64::MAX, ..ForwarderSettings::default() });
    pair.want(&["a"]);
    pair.run(SECOND);
    pair.acceptor.manners.hold_acks = true;
    pair.unwant(&["a"]);
    pair.run(SECOND);
    assert!(pair.interest().is_empty(), "applied, not acknowledged");
    pair.cut();
    pair.want(&["a"]);
    pair.acceptor.manners.hold_acks = false;
    pair.acceptor.manners.say_no_bootstrap = true;
    pair.run(5 * SECOND);
    assert_eq!(pair.interest(), ["a"]);
}

#[test]
fn a_want_that_returns_behind_the_walk_of_a_bootstrap_is_announced_again() {
    let mut pair = Pair::new(settings(&["#"]));
    pair.want(&["a", "z"]);
    pair.run(SECOND);
    pair.acceptor.manners.hold_acks = true;
    pair.cut();
    pair.unwant(&["a"]);
    pair.run(6 * SECOND);
    assert_eq!(pair.acceptor.batches, [2, 1], "the bootstrap brings z; the deletion of a waits behind it");
    pair.want(&["a"]);
    pair.acceptor.manners.hold_acks = false;
    pair.acceptor.release(&mut pair.to_requester);
    pair.run(60 * SECOND);
    assert_eq!(pair.interest(), ["a", "z"]);
    assert_eq!(pair.acceptor.changes, ["+a", "+z"], "and there was no gap");
}

#[test]
fn a_bootstrap_cut_off_in_the_middle_begins_again_even_if_the_remote_sees_no_need() {
    let mut pair = Pair::new(settings(&["#"]));
    for n in 0..9000 {
        pair.requester.want(&format!("dev/{n}"), b"id");
    }
    pair.acceptor.manners.hold_acks = true;
    pair.run(SECOND);
    pair.acceptor.release(&mut pair.to_requester);
    pair.run(SECOND);
    assert_eq!(pair.acceptor.batches, [4000, 4000], "the second is not acknowledged");
    pair.cut();
    pair.acceptor.manners.hold_acks = false;
    pair.acceptor.manners.say_no_bootstrap = true;
    pair.run(5 * SECOND);
    assert_eq!(pair.acceptor.interest.len(), 9000);
    assert_eq!(pair.acceptor.batches, [4000, 4000, 4000, 4000, 1000]);
    pair.cut();
    pair.run(5 * SECOND);
    assert_eq!(pair.acceptor.batches.len(), 5, "now that it has finished, the remote is believed");
}

#[test]
fn after_a_silence_longer_than_the_ttl_the_bootstrap_is_repeated_unasked() {
    let mut pair = Pair::new(settings(&["#"]));
    pair.want(&["a"]);
    pair.run(SECOND);
    pair.acceptor.manners.say_no_bootstrap = true;
    pair.refuse_dials = true;
    pair.cut();
    pair.run(40 * SECOND);
    assert!(pair.interest().is_empty(), "the remote has forgotten us");
    pair.refuse_dials = false;
    pair.run(6 * SECOND);
    assert_eq!(pair.interest(), ["a"]);
}

#[test]
fn a_quiet_link_is_resumed_without_a_bootstrap_only_if_a_ping_proves_that_it_was_heard() {
    for (keep_alive_s, batches) in [(20, 1), (60, 2)] {
        let mut pair = Pair::new(settings(&["#"]));
        pair.acceptor = Acceptor::new(ForwarderSettings { refill_quiet_ms: u64::MAX, ..ForwarderSettings::default() });
        pair.acceptor.manners.server_keep_alive_s = Some(keep_alive_s);
        pair.want(&["a"]);
        pair.run(50 * SECOND);
        pair.acceptor.manners.say_no_bootstrap = true;
        pair.cut();
        pair.run(SECOND);
        assert_eq!(pair.acceptor.batches.len(), batches, "keep-alive {keep_alive_s} s");
        assert_eq!(pair.requester.status().standing, Standing::Online);
    }
}

#[test]
fn a_reconnect_and_a_restart_leave_no_gap_in_what_stays_wanted() {
    let mut pair = Pair::new(settings(&["#"]));
    pair.want(&["stays", "goes"]);
    pair.run(SECOND);
    pair.cut();
    pair.run(20 * SECOND);
    assert_eq!(pair.acceptor.changes, ["+goes", "+stays"], "a reconnect changes nothing");
    pair.cut();
    let mut restarted = settings(&["#"]);
    restarted.incarnation = 2000;
    pair.requester = Requester::new(restarted);
    pair.want(&["stays", "comes"]);
    pair.run(SECOND);
    assert_eq!(pair.interest(), ["comes", "goes", "stays"], "the old is kept until the new has come");
    pair.run(20 * SECOND);
    assert_eq!(pair.acceptor.changes, ["+goes", "+stays", "+comes", "-goes"]);
    assert_eq!(pair.acceptor.forwarder.status().not_renewed, 1);
}

#[test]
fn what_was_wanted_stays_while_a_slow_bootstrap_goes_on() {
    let mut pair = Pair::new(settings(&["#"]));
    let filters: Vec<String> = (0..100).map(|n| format!("f/{n}")).collect();
    filters.iter().for_each(|filter| pair.want(&[filter]));
    pair.run(SECOND);
    pair.cut();
    let mut restarted = settings(&["#"]);
    (restarted.incarnation, restarted.batch_ops_max) = (2000, 5);
    pair.requester = Requester::new(restarted);
    filters.iter().for_each(|filter| pair.want(&[filter]));
    pair.acceptor.changes.clear();
    pair.acceptor.manners.hold_acks = true;
    for _ in 0..22 {
        pair.run(3 * SECOND);
        pair.acceptor.release(&mut pair.to_requester);
    }
    assert_eq!(pair.acceptor.batches.len(), 21, "twenty batches of five, three seconds each");
    pair.acceptor.manners.hold_acks = false;
    pair.run(30 * SECOND);
    assert!(pair.acceptor.changes.is_empty(), "{:?}", pair.acceptor.changes);
}

#[test]
fn a_window_of_one_is_not_overrun_by_the_handshake() {
    let mut pair = Pair::new(settings(&["#"]));
    pair.want(&["a"]);
    pair.acceptor.manners.receive_maximum = Some(1);
    pair.acceptor.manners.hold_acks = true;
    pair.run(SECOND);
    assert_eq!(pair.acceptor.unacknowledged_max, 1, "actor_init is answered and not acknowledged");
    pair.acceptor.release(&mut pair.to_requester);
    pair.acceptor.manners.hold_acks = false;
    pair.run(SECOND);
    assert_eq!((pair.interest(), pair.acceptor.unacknowledged_max), (vec!["a"], 1));
    pair.acceptor.manners.hold_acks = true;
    pair.cut();
    pair.run(36 * SECOND);
    assert_eq!(pair.errors, [LinkError::AckTimeout], "an actor_init that is never acknowledged");
}

#[test]
fn a_change_of_topics_opens_the_new_before_it_closes_the_old() {
    let mut pair = Pair::new(settings(&["a/#", "b/#"]));
    pair.want(&["+/1", "b/2"]);
    pair.run(SECOND);
    assert_eq!(pair.interest(), ["a/1", "b/1", "b/2"]);
    pair.acceptor.changes.clear();
    pair.requester.set_topics(vec!["b/#".into(), "c/#".into()]);
    pair.run(SECOND);
    assert_eq!(pair.acceptor.changes, ["+c/1", "-a/1"], "b/1 and b/2 are not touched");
    pair.unwant(&["+/1"]);
    pair.run(SECOND);
    assert_eq!(pair.interest(), ["b/2"]);
}

#[test]
fn a_silent_requester_is_forgotten_and_comes_back_by_a_new_handshake() {
    let mut pair = Pair::new(settings(&["#"]));
    pair.want(&["a"]);
    pair.run(25 * SECOND);
    assert_eq!(pair.interest(), ["a"], "heartbeats keep it");
    // The requester's process stands still while the connection stays open.
    let silence_ends = pair.now + 45 * SECOND;
    while pair.now < silence_ends {
        pair.now += SECOND;
        pair.acceptor.tick(pair.now);
    }
    assert!(pair.interest().is_empty());
    assert_eq!(pair.acceptor.forwarder.status().expired_actors, 1);
    pair.run(10 * SECOND);
    assert_eq!(faults(&pair), ["unknown_actor"]);
    assert_eq!(pair.errors, [LinkError::RemoteDisconnected(Reason::ImplementationSpecific)]);
    assert_eq!(pair.interest(), ["a"]);
}

#[test]
fn a_lost_handshake_is_repeated_on_a_new_connection() {
    let mut pair = Pair::new(settings(&["#"]));
    pair.want(&["a"]);
    pair.acceptor.manners.mute = true;
    pair.run(SECOND);
    pair.acceptor.manners.mute = false;
    pair.run(5 * SECOND);
    assert_eq!(pair.errors, [LinkError::HandshakeTimeout]);
    assert_eq!(pair.acceptor.disconnects, [Reason::Success], "DISCONNECT before closing");
    assert_eq!((pair.acceptor.inits, pair.interest()), (2, vec!["a"]));
}

#[test]
fn an_earlier_incarnation_is_disconnected_and_changes_nothing() {
    let mut pair = Pair::new(settings(&["#"]));
    pair.want(&["a"]);
    pair.run(SECOND);
    pair.cut();
    let mut older = settings(&["#"]);
    older.incarnation = 999;
    pair.requester = Requester::new(older);
    pair.want(&["b"]);
    pair.run(SECOND);
    assert_eq!(pair.interest(), ["a"]);
    assert_eq!(faults(&pair), ["outdated_actor"]);
    pair.run(40 * SECOND);
    assert_eq!(pair.interest(), ["b"], "once the later one is forgotten the earlier may come");
}

#[test]
fn refusals_are_reported_in_the_remotes_words_and_tried_again() {
    let mut pair = Pair::new(settings(&["#"]));
    pair.acceptor.manners.link_enabled = false;
    pair.acceptor.manners.own_cluster = "gamma";
    pair.run(SECOND);
    pair.acceptor.manners.link_enabled = true;
    pair.run(5 * SECOND);
    pair.acceptor.manners.own_cluster = "beta";
    pair.want(&["a"]);
    pair.run(5 * SECOND);
    let refused = |words: &str| LinkError::InitRefused(words.into());
    assert_eq!(pair.errors, [refused("cluster_link_disabled"), refused("bad_remote_cluster_link_name")]);
    assert_eq!(pair.interest(), ["a"]);
}

#[test]
fn a_remote_without_qos_1_or_with_bad_credentials_is_named() {
    let mut pair = Pair::new(settings(&["#"]));
    pair.acceptor.manners.maximum_qos = Some(Qos::AtMostOnce);
    pair.run(SECOND);
    pair.acceptor.manners.maximum_qos = None;
    pair.acceptor.manners.connack = Reason::NotAuthorized;
    pair.run(5 * SECOND);
    assert_eq!(pair.errors, [LinkError::RemoteLacksQos1, LinkError::ConnectRefused(Reason::NotAuthorized)]);
    assert_eq!(pair.requester.status().last_error, pair.errors.pop());
}

#[test]
fn a_ping_goes_out_once_per_keep_alive_and_its_silence_ends_the_connection() {
    let mut pair = Pair::new(settings(&["#"]));
    pair.acceptor.manners.server_keep_alive_s = Some(20);
    pair.run(59 * SECOND);
    assert_eq!(pair.acceptor.pings, 2, "heartbeats do not replace it");
    pair.acceptor.manners.deaf_to_pings = true;
    pair.run(16 * SECOND);
    assert_eq!(pair.errors, [LinkError::Silent]);
    assert_eq!(pair.acceptor.disconnects, [Reason::Success]);
}

#[test]
fn an_end_of_the_link_says_disconnect_and_dials_no_more() {
    let mut pair = Pair::new(settings(&["#"]));
    pair.run(SECOND);
    pair.requester.stop(&mut pair.to_acceptor);
    pair.run(20 * SECOND);
    assert_eq!(pair.acceptor.disconnects, [Reason::Success]);
    assert_eq!((pair.acceptor.inits, pair.requester.deadline()), (1, None));
}

#[test]
fn wants_beyond_the_limit_are_refused_and_harm_no_other() {
    let mut limited = settings(&["#"]);
    limited.routes_max = 2;
    let mut pair = Pair::new(limited);
    assert_eq!(pair.requester.want("a", b"a"), Wanted::Announced(1));
    assert_eq!(pair.requester.want("b", b"b"), Wanted::Announced(1));
    assert_eq!(pair.requester.want("c", b"c"), Wanted::Refused);
    assert_eq!(pair.requester.want("b", b"b"), Wanted::Announced(1), "what is already wanted costs nothing");
    pair.requester.unwant("c", b"c");
    pair.run(SECOND);
    assert_eq!(pair.interest(), ["a", "b"]);
    assert_eq!(pair.requester.status().wants_refused, 1);
}

#[test]
fn under_random_cuts_and_changes_both_ends_agree_in_the_end() {
    let mut cut_in_bootstrap = 0;
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let mut limited = settings(&["a/#", "+/b", "c"]);
        limited.batch_ops_max = 1 + dice.below(5) as u32;
        let mut pair = Pair::new(limited);
        pair.dice = Dice(seed + 1000);
        if dice.below(2) == 0 {
            // As EMQX: an actor that it knows keeps its routes and is told that no bootstrap is needed.
            pair.acceptor =
                Acceptor::new(ForwarderSettings { refill_quiet_ms: u64::MAX, ..ForwarderSettings::default() });
            pair.acceptor.manners.say_no_bootstrap = true;
        }
        let mut wanted = BTreeSet::new();
        for _ in 0..300 {
            let filter = ["a/1", "a/#", "+/b", "c", "#", "a/+", "x/b", "y"][dice.below(8) as usize];
            if wanted.remove(filter) {
                pair.unwant(&[filter]);
            } else {
                wanted.insert(filter);
                pair.want(&[filter]);
            }
            match dice.below(12) {
                0 => pair.run(dice.below(8 * SECOND)),
                1 if pair.connected => {
                    cut_in_bootstrap += u32::from(pair.requester.status().standing == Standing::Bootstrapping);
                    pair.cut();
                }
                2 => pair.acceptor.manners.ack = Reason::QuotaExceeded,
                3 => pair.acceptor.manners.hold_acks = true,
                4..8 => {
                    pair.acceptor.manners.ack = Reason::NoMatchingSubscribers;
                    pair.acceptor.manners.hold_acks = false;
                    pair.acceptor.release(&mut pair.to_requester);
                }
                8..10 => pair.deliver(),
                _ => pair.settle(),
            }
        }
        pair.acceptor.manners.ack = Reason::NoMatchingSubscribers;
        pair.acceptor.manners.hold_acks = false;
        pair.acceptor.release(&mut pair.to_requester);
        pair.run(120 * SECOND);
        let topics: Vec<String> = ["a/#", "+/b", "c"].map(String::from).into();
        let expected: BTreeSet<String> =
            wanted.iter().flat_map(|filter| link::intersect::announced(filter, &topics)).collect();
        assert_eq!(pair.acceptor.interest, expected, "seed {seed}");
        assert_eq!(pair.requester.status().pending, 0, "seed {seed}");
        assert!(pair.acceptor.unacknowledged_max <= 2, "seed {seed}: actor_init and one batch at a time");
    }
    assert!(cut_in_bootstrap > 10, "the walk cut {cut_in_bootstrap} bootstraps");
}
