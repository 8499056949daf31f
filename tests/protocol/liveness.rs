//! Time: connections that say nothing, too little, or enough.

use crate::{assert_told_why, client, node, setup};
use harness::raw::Raw;
use harness::wire::{Connect, V5, V311};
use harness::{LONG, MOMENT, holds_for};
use std::time::{Duration, Instant};

#[test]
fn a_connection_that_never_sends_connect_is_closed() {
    harness::needs_own_broker!();
    let node = setup().env("RINGMQ_MQTT__IDLE_TIMEOUT", "1s").start();
    let mut silent = node.raw();
    let mut half = node.raw();
    half.send(&Connect::new(V5, "half").bytes()[..9]);
    let mut dripping = node.raw();
    let mut writer = dripping.writer();
    let drip = std::thread::spawn(move || {
        // One byte now and then does not buy more time.
        let bytes = Connect::new(V5, &"x".repeat(60)).bytes();
        for byte in bytes {
            if std::io::Write::write_all(&mut writer, &[byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let since = Instant::now();
    for raw in [&mut silent, &mut half, &mut dripping] {
        assert_eq!(raw.closed(LONG), []);
    }
    assert!(since.elapsed() < Duration::from_secs(5), "the bound is a second: {:?}", since.elapsed());
    drip.join().expect("the writer does not panic");
    node.counter_reaches("connect_timeout", 3);
}

#[test]
fn many_silent_connections_do_not_keep_a_client_out() {
    let node = setup().shards(2).start();
    let silent: Vec<Raw> = (0..300).map(|_| node.raw()).collect();
    let mut client = Raw::connect(node.mqtt(), &Connect::new(V5, "patient"));
    client.subscribe("t", 1);
    client.ping();
    drop(silent);
    client.ping();
}

#[test]
fn a_client_that_is_silent_beyond_its_keep_alive_is_closed_with_the_reason() {
    let connect = |version| Connect { keep_alive_s: 1, ..Connect::new(version, "") };
    let since = Instant::now();
    let mut silent = Raw::connect(node().mqtt(), &connect(V5));
    let mut old = Raw::connect(node().mqtt(), &connect(V311));
    let packets = silent.closed(LONG);
    let elapsed = since.elapsed();
    assert!(elapsed >= Duration::from_millis(1400), "one and a half keep-alives: {elapsed:?}");
    assert!(elapsed < Duration::from_secs(6), "one and a half keep-alives: {elapsed:?}");
    assert_told_why(&packets, &[0x8d], "keep-alive timeout");
    assert_eq!(old.closed(LONG), []);
}

#[test]
fn pings_keep_a_connection_alive() {
    let id = client(1, "pinger");
    let connect = Connect { keep_alive_s: 1, ..Connect::new(V5, &id) };
    let mut raw = Raw::connect(node().mqtt(), &connect);
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(3500) {
        raw.ping();
        std::thread::sleep(Duration::from_millis(700));
    }
    raw.ping();
}

#[test]
fn a_keep_alive_of_zero_never_ends() {
    let mut quiet = Raw::connect(node().mqtt(), &Connect::new(V311, &client(2, "quiet")));
    let id = client(0, "reference");
    let connect = Connect { keep_alive_s: 1, ..Connect::new(V5, &id) };
    let mut reference = Raw::connect(node().mqtt(), &connect);
    // When the one with a keep-alive has been closed, time has passed for both.
    reference.closed(LONG);
    holds_for(MOMENT, "no packet and no end", || quiet.poll(Duration::from_millis(1)).is_err());
    quiet.ping();
}
