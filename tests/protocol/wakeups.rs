//! A stress of wake-ups across shards, on the real executable.
//!
//! One message at a time goes from a client on one shard to a client on another and back. Whenever a shard is
//! woken too late, or not at all until one of its timers fires, this one message waits for it; with more
//! traffic the next message would hide the loss.

use crate::{SHARDS, client, setup};
use harness::raw::Raw;
use harness::wire::{Connect, Publish, V311, kind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Round trips of each pair of clients.
const ROUND_TRIPS: usize = 4000;

/// An idle shard wakes by its own timers after a fifth of a second at most, so a lost wake-up costs anything up
/// to that; most cost more than this. A thread rarely waits this long for a processor.
const LATE: Duration = Duration::from_millis(60);

/// Late round trips that a busy machine may cause in one pair. Every round trip meets the moment between
/// looking for mail and sleeping four times, so a fault there shows far more often.
const LATE_MAX: usize = 2;

/// Sends one message to and fro and gives the number of late round trips.
fn ping_pong(at: SocketAddr, here: &str, there: &str) -> usize {
    let (to, fro) = (format!("to/{here}"), format!("fro/{here}"));
    let mut here = Raw::connect(at, &Connect::new(V311, here));
    let mut there = Raw::connect(at, &Connect::new(V311, there));
    here.subscribe(&fro, 0);
    there.subscribe(&to, 0);
    let (to, fro) = (Publish::new(&to, b"ping").bytes(V311), Publish::new(&fro, b"pong").bytes(V311));
    let mut late = 0;
    for _ in 0..ROUND_TRIPS {
        let since = Instant::now();
        here.send(&to);
        there.expect(kind::PUBLISH);
        there.send(&fro);
        here.expect(kind::PUBLISH);
        late += usize::from(since.elapsed() > LATE);
    }
    late
}

#[test]
fn no_wake_up_between_shards_is_lost() {
    let node = setup().shards(SHARDS).start();
    let at = node.mqtt();
    std::thread::scope(|scope| {
        // Each ordered pair of shards has a mailbox of its own; a round trip uses two of them.
        let pairs: Vec<_> = [(0, 1), (1, 2), (2, 0)]
            .into_iter()
            .map(|(here, there)| scope.spawn(move || ping_pong(at, &client(here, "here"), &client(there, "there"))))
            .collect();
        for pair in pairs {
            let late = pair.join().expect("every message arrives");
            assert!(late <= LATE_MAX, "{late} of {ROUND_TRIPS} round trips were late by more than {LATE:?}");
        }
    });
}
