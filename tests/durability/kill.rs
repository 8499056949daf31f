//! The data plane is killed again and again under load: nothing promised is lost, nothing of QoS 2 comes
//! twice, and order stays.

use crate::fleet::Fleet;
use crate::{crash, durable};
use harness::node::Role;
use harness::{LONG, MOMENT, Rng, Setup, seed, within};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// Sessions that hear.
const SUBSCRIBERS: usize = 188;
/// Sessions that speak.
const PUBLISHERS: usize = 12;
/// Kills of one run when nothing else is asked for.
const KILLS: u64 = 6;
/// Messages per second that the publishers try.
const PER_SECOND: u64 = 1000;
/// Longest time until all queues are empty in the end.
const SETTLE: Duration = Duration::from_secs(60);

#[test]
fn two_shards_keep_what_they_acknowledged_in_mode_os() {
    run("kill-2-os", 2, "os");
}

#[test]
fn three_shards_keep_what_they_acknowledged_in_mode_os() {
    run("kill-3-os", 3, "os");
}

#[test]
fn two_shards_keep_what_they_acknowledged_in_mode_fsync() {
    run("kill-2-fsync", 2, "fsync");
}

#[test]
fn three_shards_keep_what_they_acknowledged_in_mode_fsync() {
    run("kill-3-fsync", 3, "fsync");
}

#[test]
fn the_judge_is_content_while_nobody_dies_and_finds_what_mode_none_loses() {
    let mut rng = Rng::of("judge");
    let node = crowded("none", 2).start();
    let mut fleet = Fleet::new(node.mqtt(), 40, PUBLISHERS, Rng::new(rng.any()));
    fleet.gather(LONG);
    live(&mut fleet, Duration::from_millis(300));
    fleet.say_everywhere(LONG);
    fleet.settle(SETTLE);
    let (said, heard) = fleet.totals();
    assert!(said > 0 && heard > said, "a judge without a case: {said} said, {heard} heard");
    fleet.judge();
    crash(&node);
    fleet.say_everywhere(LONG);
    fleet.settle(SETTLE);
    let broken = fleet.broken_promises(MOMENT);
    assert!(broken.iter().any(|promise| promise.contains("the session is gone")), "{broken:?}");
    assert!(broken.iter().any(|promise| promise.contains("retained")), "{broken:?}");
}

/// A node that sheds nothing: what the judge misses must have been lost.
fn crowded(mode: &str, shards: u16) -> Setup {
    durable(mode)
        .shards(shards)
        .env("RINGMQ_MQTT__MAX_MQUEUE_LEN", "1000000")
        .env("RINGMQ_MQTT__MAX_MQUEUE_BYTES", "1GB")
        // Its output is shown when the test fails; a line for each of hundreds of clients would bury the cause.
        .env("RINGMQ_LOG__LEVEL", "warn")
}

/// Lets a fleet live for a while under load.
fn live(fleet: &mut Fleet, duration: Duration) {
    let since = Instant::now();
    let mut said = 0;
    while since.elapsed() < duration {
        let due = since.elapsed().as_micros() as u64 * PER_SECOND / 1_000_000;
        fleet.live(due - said);
        said = due;
    }
}

#[track_caller]
fn run(test: &str, shards: u16, mode: &str) {
    let mut rng = Rng::of(test);
    let kills = seed::amount("RINGMQ_TEST_KILLS", KILLS);
    // Small segments and early compactions half of the time: a kill must find them under way.
    let (segment, compact) = [("64KB", "64KB"), ("8MB", "64MB")][rng.below(2) as usize];
    let mut node = crowded(mode, shards)
        .env("RINGMQ_DURABILITY__SEGMENT_BYTES", segment)
        .env("RINGMQ_DURABILITY__COMPACT_MIN_BYTES", compact)
        .start();
    let mut fleet = Fleet::new(node.mqtt(), SUBSCRIBERS, PUBLISHERS, Rng::new(rng.any()));
    fleet.gather(LONG);
    for kill in 0..kills {
        // Sometimes at once: a start that was just made is killed too.
        let lives_ms = if rng.percent(20) { rng.below(20) } else { rng.between(50, 500) };
        live(&mut fleet, Duration::from_millis(lives_ms));
        fleet.join_one();
        // The supervisor waits longer after each death: it may do its work a few times only.
        if kill < 3 {
            let killed = node.signal(Role::Dataplane, Signal::KILL);
            within(LONG, "a new data plane is ready", || {
                fleet.turn();
                node.ready_now().filter(|ready| ready.pids[2] != killed)
            });
        } else {
            node.signal(Role::Dataplane, Signal::KILL);
            node.kill();
            fleet.turn();
            node.start_again();
        }
    }
    fleet.settle(SETTLE);
    // Nothing that was delivered comes back.
    crash(&node);
    fleet.say_everywhere(LONG);
    fleet.settle(SETTLE);
    let (said, heard) = fleet.totals();
    eprintln!("{test}: {kills} kills, segments of {segment}, {said} messages said, {heard} heard");
    fleet.judge();
    assert!(!node.output().contains("panicked"), "a panic in the node");
}
