//! What was acknowledged is there after kill -9: the real executable with its log on a real file system.
//!
//! Every test has a node of its own, because each kills it. Long runs raise the amounts:
//! - `RINGMQ_TEST_KILLS`: kills of one run of `kill` (default: few; required once: 50).
//! - `RINGMQ_TEST_QUEUED`: messages in the queues of `million` (default: few; required once: 1000000).
//! - `RINGMQ_TEST_DAMAGES`: flips and truncations of `damage`.

mod damage;
mod fleet;
mod full_disk;
mod kill;
mod million;
mod sessions;
mod shards;

use harness::node::{Node, Role};
use harness::wire::{Connect, V5, V311};
use harness::{LONG, Raw, Setup, client_on, within};
use rustix::process::Signal;

/// The modes in which an acknowledgement survives the death of the process.
const MODES: [&str; 2] = ["os", "fsync"];

/// Session Expiry Interval of a day as a CONNECT property: longer than any test.
const A_DAY: &[u8] = &[0x11, 0, 1, 0x51, 0x80];

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_ringmq"))
}

/// A node that keeps what it acknowledges.
fn durable(mode: &str) -> Setup {
    setup().shards(2).env("RINGMQ_DURABILITY__MODE", mode)
}

/// CONNECT of a client whose session outlives its connections and the node.
fn keep(version: u8, id: &str) -> Connect<'_> {
    assert!([V311, V5].contains(&version), "3.1 would do, but no test asks for it");
    Connect { clean: false, properties: if version == V5 { A_DAY } else { &[] }, ..Connect::new(version, id) }
}

/// Returns when everything that the node had done before is in the logs of all shards: what nobody waits for
/// (a DISCONNECT, a last acknowledgement of a client) may otherwise be lost with the process.
#[track_caller]
fn settled(node: &Node) {
    for shard in 0..node.shards() {
        let id = client_on(shard, node.shards(), "settled");
        Raw::connect(node.mqtt(), &keep(V5, &id)).subscribe("settled", 0);
    }
}

/// Kills the data plane and waits until the supervisor has another one that accepts.
#[track_caller]
fn crash(node: &Node) {
    let killed = node.signal(Role::Dataplane, Signal::KILL);
    within(LONG, "a new data plane is ready", || node.ready_now().filter(|ready| ready.pids[2] != killed));
}
