//! Traffic that notices everything: a message lost, doubled or late, and a connection that ends.
//! Used by the tests that hurt a process which must not matter to clients.

use harness::node::Node;
use harness::rumq::{v4, v5};
use harness::{LONG, client_on, within};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Messages in one round of one pair.
const ROUND: u64 = 20;

/// Runs a pair of clients, subscriber first, on a thread: rounds of publishes that must come back whole and
/// in order. A macro because rumqttc's clients of both versions share no type.
macro_rules! pair {
    ($clients:ident, $topic:literal, $qos:literal, $stop:expr, $delivered:expr) => {{
        let (stop, delivered) = (Arc::clone($stop), Arc::clone($delivered));
        std::thread::spawn(move || {
            let (subscriber, publisher) = $clients;
            for round in 0.. {
                let numbers = round * ROUND..(round + 1) * ROUND;
                for number in numbers.clone() {
                    publisher.publish($topic, $qos, false, number.to_string().as_bytes());
                }
                for number in numbers {
                    assert_eq!(subscriber.message().text(), number.to_string());
                    delivered.fetch_add(1, Ordering::Relaxed);
                }
                publisher.acked(ROUND as usize);
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        })
    }};
}

/// Pairs of a publisher and a subscriber, each pair on two different shards where there are two.
pub struct Load {
    stop: Arc<AtomicBool>,
    delivered: Arc<AtomicU64>,
    pairs: Vec<JoinHandle<()>>,
}

impl Load {
    /// Clients of one load.
    pub const CLIENTS: usize = 4;

    /// Connects everything and starts the traffic.
    pub fn start(node: &Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let delivered = Arc::new(AtomicU64::new(0));
        let (shards, at) = (node.shards(), node.mqtt());
        let id = |index: u16, role: &str| client_on(index % shards, shards, role);
        let old = (v4::Client::connect(at, &id(0, "load-sub")), v4::Client::connect(at, &id(1, "load-pub")));
        old.0.subscribe("load/old", 1);
        let new = (v5::Client::connect(at, &id(1, "load-sub5")), v5::Client::connect(at, &id(0, "load-pub5")));
        new.0.subscribe("load/new", 2);
        let pairs = vec![pair!(old, "load/old", 1, &stop, &delivered), pair!(new, "load/new", 2, &stop, &delivered)];
        let load = Self { stop, delivered, pairs };
        load.flows(100);
        load
    }

    /// Waits until this many more messages have arrived: traffic goes on now.
    #[track_caller]
    pub fn flows(&self, more: u64) {
        let until = self.delivered.load(Ordering::Relaxed) + more;
        within(LONG, &format!("{more} more messages arrive"), || {
            let dead = self.pairs.iter().any(JoinHandle::is_finished);
            assert!(!dead, "a pair has failed; its own panic says why");
            (self.delivered.load(Ordering::Relaxed) >= until).then_some(())
        });
    }

    /// Ends the traffic after a whole round and gives the number of messages; whatever a pair noticed
    /// fails here.
    #[track_caller]
    pub fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for pair in self.pairs {
            if let Err(panic) = pair.join() {
                std::panic::resume_unwind(panic);
            }
        }
        self.delivered.load(Ordering::Relaxed)
    }
}
