//! What the data plane tells control: counters, status, connections. Made once per second and whenever asked.
//! Control keeps the last one; a Report is complete in itself, so a lost one does no harm.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::bans::Ban;
use crate::view::{PageDigest, View, ViewNumber};

/// From control to the data plane, over `dataplane.sock`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Order {
    /// What is true from now on.
    View(View),
    /// A Report is wanted now.
    Report,
}

/// From the data plane to control, over `dataplane.sock`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Told {
    /// How it goes.
    Report(Report),
}

/// How the data plane goes.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Process id of the data plane.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Wall clock at its start, in milliseconds.
    pub started_ms: u64,
    /// Counts the Reports since its start.
    pub number: u64,
    /// Time since its start.
    pub uptime_ms: u64,
    /// Resident memory of the process.
    pub memory_bytes: u64,
    /// The most that it was since its start.
    pub memory_bytes_max: u64,
    /// The View that it holds; zero for none.
    pub view: ViewNumber,
    /// The pages that it holds: control sends what is missing.
    pub pages: Vec<PageDigest>,
    /// One entry per shard, in their order.
    pub shards: Vec<ShardReport>,
    /// One entry per open listener.
    pub listeners: Vec<ListenerReport>,
    /// One entry per link, summed over the shards.
    pub links: Vec<LinkReport>,
    /// What was counted, summed over the shards.
    pub counters: Vec<CounterReport>,
    /// Passwords or rules could not be read again, and older ones are in force.
    pub policy_stale: bool,
    /// Client ids that were found to connect and disconnect all the time, and that no View names yet.
    pub flapping: Vec<Ban>,
}

/// How one shard goes.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct ShardReport {
    /// Turns since the start.
    pub turns: u64,
    /// Transports, with or without CONNECT.
    pub connections: u64,
    /// Sessions, with or without connection.
    pub sessions: u64,
    /// Subscriptions that are not shared.
    pub subscriptions: u64,
    /// Subscriptions that are shared.
    pub shared_subscriptions: u64,
    /// Retained messages that this shard owns.
    pub retained: u64,
    /// Filters that this shard knows.
    pub interest: u64,
    /// Publishes and subscribes that wait for another shard.
    pub obligations: u64,
    /// Bytes that wait for room in a mailbox.
    pub staged_bytes: u64,
    /// Messages that wait for their sessions.
    pub queued: u64,
    /// Bytes of the messages that wait.
    pub queued_bytes: u64,
    /// Messages that were sent to clients and not acknowledged.
    pub inflight: u64,
    /// Messages that are kept for somebody or as retained ones, each once.
    pub stored: u64,
    /// Bytes of their payload.
    pub stored_bytes: u64,
    /// Time that the shard was awake since its start, in microseconds.
    pub busy_us: u64,
    /// Its log; none in `durability.mode = "none"`.
    pub log: Option<LogReport>,
}

/// What a log takes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
pub enum LogState {
    /// Everything.
    #[default]
    Ok,
    /// Only what makes the state smaller: the disk or `durability.bytes_max` is full.
    Tight,
    /// Nothing: it cannot be written, or is being written anew after that.
    Detached,
}

impl LogState {
    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            LogState::Ok => "ok",
            LogState::Tight => "tight",
            LogState::Detached => "detached",
        }
    }
}

/// How the log of one shard goes. Counts are since the start of the data plane.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct LogReport {
    /// What it takes.
    pub state: LogState,
    /// Segments that a recovery would read.
    pub segments: u64,
    /// Bytes of all files.
    pub disk_bytes: u64,
    /// Bytes since the beginning of the last complete checkpoint.
    pub since_checkpoint_bytes: u64,
    /// Bytes that wait to be written.
    pub pending_bytes: u64,
    /// Writes: each is one group of batches.
    pub commits: u64,
    /// Flushes.
    pub syncs: u64,
    /// Batches written; a batch is what one turn of the shard recorded.
    pub batches: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Most batches in one write.
    pub commit_batches_max: u64,
    /// Batches dropped because the log could not be written.
    pub batches_dropped: u64,
    /// Checkpoints that became complete.
    pub checkpoints: u64,
    /// Times that the log could no longer be written.
    pub detachments: u64,
    /// Operations that failed.
    pub failures: u64,
    /// Flushes by how long they took: up to each of [`FLUSH_BOUNDS_US`] (and longer than the one before), then all others.
    pub flush_counts: Vec<u64>,
    /// How long all flushes took together, in microseconds.
    pub flush_total_us: u64,
}

/// By how long they take, flushes of a log are counted.
pub const FLUSH_BOUNDS_US: [u64; 8] = [100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 1_000_000];

/// One listener.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct ListenerReport {
    /// `tcp`.
    pub kind: String,
    /// Its name in the configuration.
    pub name: String,
    /// Where it listens, with the real port.
    pub address: String,
    /// Connections now.
    pub connections: u64,
    /// Most connections.
    pub max_connections: u64,
    /// It is open.
    pub running: bool,
    /// Why it is not, or why it is not as the configuration wants it.
    pub error: Option<String>,
}

/// One link, as all shards together see it.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct LinkReport {
    /// Name of the remote.
    pub name: String,
    /// `connected`, `connecting`, `disconnected` or `disabled`: that of the worst shard.
    pub status: String,
    /// Filters that the remote announced.
    pub routes: u64,
    /// Messages that wait for it.
    pub queued: u64,
    /// Their bytes.
    pub queued_bytes: u64,
}

/// One counter.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct CounterReport {
    /// Its name: letters, digits and `_`.
    pub name: String,
    /// A sentence for the operator.
    pub doc: String,
    /// Its value since the start of the data plane.
    pub value: u64,
}

/// Something that an operator should know of while it lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Alarm {
    /// Its name, by which it is known for as long as it lasts.
    pub name: &'static str,
    /// A sentence for the operator.
    pub message: &'static str,
}

impl Alarm {
    /// Every alarm that there can be.
    pub const ALL: [Alarm; 4] = [
        Alarm {
            name: "log_full",
            message: "the disk or durability.bytes_max is full: messages for persistent sessions and retained messages are refused",
        },
        Alarm {
            name: "log_detached",
            message: "the log cannot be written: messages for persistent sessions and retained messages are refused",
        },
        Alarm {
            name: "policy_stale",
            message: "passwords or rules could not be read again: older ones are in force, and the log says why",
        },
        Alarm {
            name: "listeners_stale",
            message: "listeners are not as the configuration wants them: /api/v5/listeners and the log say why",
        },
    ];
}

impl Report {
    /// The alarms that are active, each with the shards that it is about; without any, the whole node.
    pub fn alarms(&self) -> impl Iterator<Item = (Alarm, Vec<usize>)> {
        let [full, detached, stale, listeners] = Alarm::ALL;
        let wrong = self.listeners.iter().any(|listener| listener.error.is_some());
        let of_node = [(stale, self.policy_stale), (listeners, wrong)].into_iter();
        let of_node = of_node.filter(|(_, active)| *active).map(|(alarm, _)| (alarm, Vec::new()));
        let of_logs =
            [(full, LogState::Tight), (detached, LogState::Detached)].into_iter().filter_map(|(alarm, state)| {
                let states = self.shards.iter().map(|shard| shard.log.as_ref().map(|log| log.state));
                let shards: Vec<usize> =
                    states.enumerate().filter(|(_, found)| *found == Some(state)).map(|(shard, _)| shard).collect();
                (!shards.is_empty()).then_some((alarm, shards))
            });
        of_logs.chain(of_node)
    }

    /// The value of a counter; 0 when there is none of that name.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.iter().find(|counter| counter.name == name).map_or(0, |counter| counter.value)
    }

    /// What the worst of the logs takes; none if nothing is kept.
    pub fn log(&self) -> Option<LogState> {
        self.shards.iter().filter_map(|shard| shard.log.as_ref()).map(|log| log.state).max()
    }

    /// Sum of one value over the shards.
    pub fn total(&self, of: impl Fn(&ShardReport) -> u64) -> u64 {
        self.shards.iter().map(of).sum()
    }
}
