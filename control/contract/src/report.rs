//! What the data plane tells control: counters, status, connections. Made once per second and whenever asked.
//! Control keeps the last one; a Report is complete in itself, so a lost one does no harm.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

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
}

/// One open listener.
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

impl Report {
    /// The value of a counter; 0 when there is none of that name.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.iter().find(|counter| counter.name == name).map_or(0, |counter| counter.value)
    }

    /// Sum of one value over the shards.
    pub fn total(&self, of: impl Fn(&ShardReport) -> u64) -> u64 {
        self.shards.iter().map(of).sum()
    }
}
