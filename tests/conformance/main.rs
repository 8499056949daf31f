//! The statements of MQTT 5.0 and 3.1.1, one by one, against the real executable, with packets made by hand.
//!
//! Always true: each behaviour is shown on nodes with 1, 2 and 3 shards, with the clients of a test on different shards
//! where there are several; what both versions say is shown in both; the codec is the harness's own. [`statements`]
//! reads from the citations above the tests, and from those in the sources, what is covered.

mod alias;
mod authenticate;
mod connect;
mod encoding;
mod expiry;
mod flow;
mod handshakes;
mod hostile;
mod limits;
mod mqtt31;
mod packets;
mod publish;
mod readers;
mod retain;
mod statements;
mod subscribe;
mod topics;
mod wills;

use harness::node::Borrowed;
use harness::raw::Raw;
use harness::wire::{Connect, V5, V311};
use harness::{Node, Setup};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// MQTT 3.1 as the CONNECT packet spells it.
const V31: u8 = 3;

/// The versions that share most statements.
const BOTH: [u8; 2] = [V311, V5];

/// Numbers of shards that each behaviour is shown with.
const SHARDS: [u16; 3] = [1, 2, 3];

fn setup(shards: u16) -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_ringmq")).shards(shards)
}

/// Nodes that all tests share, one per number of shards.
type Nodes = [OnceLock<Result<Node, String>>; 3];

/// A node, and what a test needs to have clients and topics of its own on it.
struct At {
    node: Borrowed,
    shards: u16,
    test: u32,
    clients: Cell<u16>,
    topics: Cell<u16>,
}

impl At {
    fn new(nodes: &'static Nodes, shards: u16, start: impl FnOnce() -> Node + std::panic::UnwindSafe) -> Self {
        let node = nodes[usize::from(shards) - 1].get_or_init(|| {
            std::panic::catch_unwind(start)
                .map_err(|_| "the shared node did not start; see the first failure".to_owned())
        });
        static TESTS: AtomicU32 = AtomicU32::new(0);
        let node = node.as_ref().unwrap_or_else(|why| panic!("{why}"));
        let test = TESTS.fetch_add(1, Ordering::Relaxed);
        Self { node: Borrowed(node), shards, test, clients: Cell::new(0), topics: Cell::new(0) }
    }

    fn mqtt(&self) -> SocketAddr {
        self.node.mqtt()
    }

    /// A client id that nobody else has; each one lives on the shard after that of the one before.
    fn id(&self) -> String {
        let count = self.clients.replace(self.clients.get() + 1);
        harness::client_on(count % self.shards, self.shards, &format!("c{}n{count}", self.test))
    }

    /// A topic that nobody else has.
    fn topic(&self) -> String {
        let count = self.topics.replace(self.topics.get() + 1);
        format!("t{}/{count}", self.test)
    }

    /// A new client with a clean session.
    #[track_caller]
    fn client(&self, version: u8) -> Raw {
        Raw::connect(self.mqtt(), &Connect::new(version, &self.id()))
    }

    /// Three clients that subscribe to `topic`, with QoS 0, 1 and 2.
    fn subscriber_of_each_qos(&self, version: u8, topic: &str) -> [Raw; 3] {
        [0, 1, 2].map(|qos| {
            let mut raw = self.client(version);
            raw.subscribe(topic, qos);
            raw
        })
    }

    /// Connects and gives CONNACK, too.
    #[track_caller]
    fn connack(&self, connect: &Connect<'_>) -> (Raw, harness::wire::Packet) {
        Raw::connack(self.mqtt(), connect)
    }
}

/// The filter that matches a topic of [`At::topic`] and those beside it.
fn siblings(topic: &str) -> String {
    format!("{}/+", topic.split('/').next().expect("a topic has a level"))
}

/// Shows a behaviour on the shared nodes with each number of shards.
#[track_caller]
fn everywhere(behaviour: impl Fn(&At) + Sync) {
    static NODES: Nodes = [const { OnceLock::new() }; 3];
    each(&behaviour, |shards| At::new(&NODES, shards, move || setup(shards).start()));
}

/// The same on nodes that allow little: they have a limit or a refusal for everything that CONNACK can announce.
#[track_caller]
fn where_little_is_allowed(behaviour: impl Fn(&At) + Sync) {
    static NODES: Nodes = [const { OnceLock::new() }; 3];
    each(&behaviour, |shards| {
        At::new(&NODES, shards, move || {
            [
                ("MAX_QOS_ALLOWED", "1"),
                ("RETAIN_AVAILABLE", "false"),
                ("WILDCARD_SUBSCRIPTION", "false"),
                ("SHARED_SUBSCRIPTION", "false"),
                ("SERVER_KEEPALIVE", "2s"),
                ("MAX_TOPIC_ALIAS", "3"),
                ("RECEIVE_MAXIMUM", "4"),
                ("MAX_PACKET_SIZE", "1024"),
                ("MAX_CLIENTID_LEN", "64"),
            ]
            .into_iter()
            .fold(setup(shards), |setup, (key, value)| setup.env(&format!("RINGMQ_MQTT__{key}"), value))
            .start()
        })
    });
}

#[track_caller]
fn each(behaviour: &(impl Fn(&At) + Sync), at: impl Fn(u16) -> At + Sync) {
    let failed: Vec<u16> = std::thread::scope(|scope| {
        let running = SHARDS.map(|shards| {
            let at = &at;
            (shards, scope.spawn(move || behaviour(&at(shards))))
        });
        running.into_iter().filter_map(|(shards, run)| run.join().is_err().then_some(shards)).collect()
    });
    assert!(failed.is_empty(), "failed with {failed:?} shards");
}
