//! Descriptors run out: accepting pauses instead of spinning, those who are connected do not notice, and it mends
//! itself.

use std::{net::TcpStream, time::Instant};

use harness::{
    Setup, needs,
    wire::{self, kind},
};

use crate::secure::{self, Client};

/// What the node may open.
const DESCRIPTORS: usize = 200;
/// More turns per second than this are a busy loop; a paused accept is tried ten times a second.
const TURNS_PER_SECOND_MAX: f64 = 500.0;

#[test]
fn without_descriptors_accepting_pauses_and_recovers() {
    needs!("prlimit");
    let limit = format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}");
    let node = Setup::new(env!("CARGO_BIN_EXE_ringmq")).under(["prlimit".to_owned(), limit]).start();
    let mut client = Client::connect(secure::tcp(node.mqtt()), "before");
    // Control is connected, and stays so.
    node.figure("shard_turns");
    let crowd: Vec<TcpStream> = (0..DESCRIPTORS + 50).map(|_| secure::tcp(node.mqtt())).collect();
    harness::within(harness::LONG, "the operator is told", || node.output().contains("accept failed").then_some(()));
    let (since, before) = (Instant::now(), node.figure("shard_turns"));
    client.send(&wire::pingreq());
    client.expect(kind::PINGRESP);
    let turns = node.figure("shard_turns") - before;
    let per_second = turns / since.elapsed().as_secs_f64();
    assert!(per_second < TURNS_PER_SECOND_MAX, "{per_second} turns per second");
    drop(crowd);
    Client::connect(secure::tcp(node.mqtt()), "after");
}
