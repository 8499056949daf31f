//! Connect storms: thousands of clients at once, at a node that has just started, each trying again when it is refused. All come in,
//! and an idle pair of clients does not notice (E.3 row 17). `RINGMQ_TEST_STORM=full` asks for the whole of it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use harness::{
    Setup, client_on,
    raw::Raw,
    wire::{self, Connect, V5, kind},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    papers::Papers,
    secure::{self, Client},
    tls_listener,
};

/// How long a storm may last, whatever its size.
const STORM: Duration = Duration::from_secs(60);
/// Threads that connect, each many clients one after the other, which all stay.
const THREADS: usize = 16;
/// Descriptors that are needed for something else.
const SPARE: u64 = 3000;

/// Clients of a storm: all of it, or what every run can afford and has descriptors for.
fn size(full: usize) -> usize {
    let wanted = match std::env::var("RINGMQ_TEST_STORM").as_deref() {
        Ok("full") => full,
        _ => full / 20,
    };
    let limit = getrlimit(Resource::Nofile);
    // The system may allow more than this process was given; the node inherits it.
    let most = limit.maximum.map(|most| most.max(wanted as u64 + SPARE));
    if setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).is_err() {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        setrlimit(Resource::Nofile, raised).expect("the soft limit may be raised to the hard one");
    }
    let room = getrlimit(Resource::Nofile).current.map_or(u64::MAX, |most| most.saturating_sub(SPARE));
    let size = wanted.min(room as usize);
    if size < wanted {
        println!("only {size} clients instead of {wanted}: there are no more descriptors");
    }
    size
}

/// Runs `enter` for each of `size` clients, from many threads, until all are in. A client that is refused tries again.
#[track_caller]
fn storm<C: Send>(size: usize, enter: impl Fn(usize) -> Option<C> + Sync) -> (Vec<C>, usize, Duration) {
    let (since, next, retries) = (Instant::now(), AtomicUsize::new(0), AtomicUsize::new(0));
    let all = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= size {
                            return mine;
                        }
                        while since.elapsed() < STORM {
                            if let Some(client) = enter(at) {
                                mine.push(client);
                                break;
                            }
                            retries.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a thread of the storm")).collect::<Vec<_>>()
    });
    let took = since.elapsed();
    println!("{} of {size} clients are in after {took:?}, {} tries more", all.len(), retries.load(Ordering::Relaxed));
    assert_eq!(all.len(), size, "clients that are in after {took:?}");
    (all, retries.into_inner(), took)
}

fn plain(broker: SocketAddr, id: &str) -> Option<Raw> {
    let mut raw = Raw::open(broker);
    raw.try_send(&Connect::new(V5, id).bytes()).ok()?;
    raw.next(STORM).filter(|packet| packet.kind == kind::CONNACK && packet.reason() == 0).map(|_| raw)
}

#[test]
fn thousands_of_clients_come_back_at_once_after_a_restart() {
    let size = size(20_000);
    let mut node = Setup::new(env!("CARGO_BIN_EXE_ringmq")).shards(2).start();
    node.kill();
    node.start_again();
    let mut canary = Raw::connect(node.mqtt(), &Connect::new(V5, "canary"));
    canary.subscribe("canary", 0);
    let (mut all, _, _) = storm(size, |at| plain(node.mqtt(), &format!("storm-{at}")));
    canary.send(&wire::Publish::new("canary", b"alive").bytes(V5));
    assert_eq!(canary.message().topic, "canary");
    assert!(node.counter("client_connected") > size as u64);
    all.iter_mut().step_by(97).for_each(Raw::ping);
}

#[test]
fn a_storm_at_a_listener_with_a_rate_comes_in_at_that_rate() {
    let size = size(4000);
    let node = Setup::new(env!("CARGO_BIN_EXE_ringmq"))
        .shards(2)
        .env("RINGMQ_LISTENERS__TCP__PACED__BIND", "127.0.0.1:0")
        .env("RINGMQ_LISTENERS__TCP__PACED__MAX_CONN_RATE", "100")
        .env("RINGMQ_LISTENERS__TCP__PACED__MAX_CONN_BURST", "10")
        .start();
    let paced = node.address("tcp", "paced");
    let (_all, _, took) = storm(size, |at| plain(paced, &format!("paced-{at}")));
    let least = Duration::from_millis((size as u64 - 10) * 10);
    assert!(took + Duration::from_millis(20) >= least.min(STORM), "{size} clients within {took:?}");
}

#[test]
fn thousands_of_clients_shake_hands_at_once() {
    let size = size(5000);
    let papers = Papers::new();
    let setup = Setup::new(env!("CARGO_BIN_EXE_ringmq")).shards(2);
    let node = tls_listener(setup, "ssl", "default", &papers).start();
    let (broker, config) = (node.address("ssl", "default"), secure::config(&papers, None));
    let mut canary = Client::connect(secure::tls(secure::tcp(broker), Arc::clone(&config)), &client_on(0, 2, "canary"));
    let (_all, _, _) = storm(size, |at| {
        let stream = secure::tls(secure::tcp(broker), Arc::clone(&config));
        Some(Client::connect(stream, &format!("tls-storm-{at}")))
    });
    canary.send(&wire::pingreq());
    canary.expect(kind::PINGRESP);
}
