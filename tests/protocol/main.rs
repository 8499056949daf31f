//! Bytes that no client library would send, or not in such pieces, against the real executable.
//!
//! The codec of these tests is the harness's own, so an error that crate `mqtt` makes both ways is seen.
//! Tests that only need a well node share one with three shards; those that count or hurt have their own.

mod bad_input;
mod fragments;
mod limits;
mod link_topics;
mod liveness;
mod sessions;
mod wakeups;

use harness::node::Borrowed;
use harness::wire::{Packet, kind};
use harness::{Node, Setup};
use std::sync::OnceLock;

/// Shards of the shared node.
const SHARDS: u16 = 3;

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_ringmq"))
}

/// The node that the well-behaved tests share.
fn node() -> Borrowed {
    static NODE: OnceLock<Result<Node, String>> = OnceLock::new();
    let node = NODE.get_or_init(|| {
        std::panic::catch_unwind(|| setup().shards(SHARDS).start())
            .map_err(|_| "the shared node did not start; see the first failure".to_owned())
    });
    match node {
        Ok(node) => Borrowed(node),
        Err(why) => panic!("{why}"),
    }
}

/// A client id of the test `name` on a shard of the shared node.
fn client(shard: u16, name: &str) -> String {
    harness::client_on(shard, SHARDS, name)
}

/// The broker closed with a DISCONNECT whose reason is one of these.
#[track_caller]
fn assert_told_why(packets: &[Packet], reasons: &[u8], what: &str) {
    if packets.is_empty() && harness::foreign::executable().is_some() {
        // The foreign broker often closes 5.0 connections without a word.
        return;
    }
    let last = packets.last().unwrap_or_else(|| panic!("{what}: closed without DISCONNECT"));
    assert_eq!(last.kind, kind::DISCONNECT, "{what}: {packets:?}");
    assert!(reasons.contains(&last.reason()), "{what}: reason {:#04x}, not one of {reasons:#04x?}", last.reason());
}
