//! What a seed decides before anything happens: shards, limits, delays, how clients behave.
//! Limits are drawn from tiny upward so that every edge is met; most seeds leave no room for a shed of a
//! QoS 1 or 2 message, so that any loss is a fault.

use broker::Settings;
use contract::{
    config::{Config, Durability, Limits, Link, Mode, Mqtt, Retainer},
    ids::ShardId,
};

use crate::rng::Rng;

/// Which worlds a seed is one of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Worlds {
    /// Without durability and without crashes: routing, sessions, links.
    Memory,
    /// Logs on disks that may be slow, crashes of the process and of the machine.
    Disks,
    /// Flushed logs and nothing but power losses, few operations: for many seeds.
    Power,
    /// As with disks, and these fail, are full, or take less than is recorded.
    Trouble,
}

impl Worlds {
    /// All, by name.
    pub const ALL: &'static [(&'static str, Worlds)] =
        &[("memory", Worlds::Memory), ("disks", Worlds::Disks), ("power", Worlds::Power), ("trouble", Worlds::Trouble)];
}

/// A fault that is built in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// In the broker.
    Broker(broker::plant::Plant),
    /// In the log.
    Log(log::plant::Plant),
}

/// How long a disk takes, at most.
#[derive(Clone, Copy, Debug)]
pub struct DiskPlan {
    /// To write.
    pub write_us: u64,
    /// To flush.
    pub sync_us: u64,
    /// Until the shard hears of it.
    pub told_us: u64,
    /// One of so many operations takes long.
    pub stall_one_in: u64,
    /// How long such an operation takes.
    pub stall_us: u64,
}

/// How nodes die.
#[derive(Clone, Copy, Debug)]
pub struct CrashPlan {
    /// Time between two crashes of a node, at most; 0: none.
    pub every_us: u64,
    /// So many crashes of a node, at most.
    pub most: u64,
    /// Percent of them that take the machine along.
    pub power: u64,
    /// Percent of starts that are cut by another crash.
    pub again: u64,
    /// A node is down for so long at most.
    pub down_us: u64,
    /// Percent of starts with another number of shards.
    pub reshard: u64,
}

/// One seed's world.
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// `durability.*`.
    pub durability: Durability,
    /// Disks.
    pub disk: DiskPlan,
    /// Crashes.
    pub crash: CrashPlan,
    /// Disks fail now and then, or little may wait for them: what is persistent may be refused.
    pub trouble: bool,
    /// Clusters.
    pub clusters: usize,
    /// Shards of each node.
    pub shards: u16,
    /// Ordinary clients of each cluster.
    pub clients: usize,
    /// Operations of all clients together before the quiet phase.
    pub operations: u64,
    /// Time between two operations of a client, at most.
    pub gap_us: u64,
    /// One of so many turns takes long, by shard.
    pub slow_turn_one_in: Vec<u64>,
    /// How long such a turn takes, at most.
    pub slow_turn_us: u64,
    /// One way through the network, at most.
    pub network_us: u64,
    /// Bytes that the network keeps for a client that does not read.
    pub window: usize,
    /// Percent of operations that end a connection.
    pub unrest: u64,
    /// Slots of a mailbox for messages.
    pub message_slots: usize,
    /// Slots for answers beside them.
    pub reserved_slots: usize,
    /// Every CONNECT asks for a new session.
    pub always_clean: bool,
    /// Which topics and operations are frequent.
    pub mix: Mix,
    /// Some clients take small packets only.
    pub small_packets: bool,
    /// Largest padding of a payload.
    pub padding: u64,
    /// `mqtt.*`.
    pub mqtt: Mqtt,
    /// `limits.*`.
    pub limits: Limits,
    /// `retainer.*`.
    pub retainer: Retainer,
    /// The fault that is built in.
    pub plant: Option<Plant>,
}

/// Of 20 operations of a client, and of 10 publishes, how many are what.
#[derive(Clone, Copy)]
pub struct Mix {
    /// SUBSCRIBE.
    pub subscribe: u64,
    /// UNSUBSCRIBE.
    pub unsubscribe: u64,
    /// Publishes to plain topics.
    pub plain: u64,
    /// Publishes to topics of shared groups.
    pub groups: u64,
    /// Retained publishes to topics of one publisher; what is left goes to those of many.
    pub retained: u64,
}

/// Everything; mostly retained, twice; mostly groups; mostly publishes.
const MIXES: [Mix; 5] = [
    Mix { subscribe: 3, unsubscribe: 1, plain: 4, groups: 3, retained: 2 },
    Mix { subscribe: 5, unsubscribe: 4, plain: 1, groups: 0, retained: 8 },
    RETAINED,
    Mix { subscribe: 3, unsubscribe: 2, plain: 1, groups: 8, retained: 1 },
    Mix { subscribe: 1, unsubscribe: 0, plain: 6, groups: 2, retained: 1 },
];

/// Nothing but subscriptions and retained publishes.
const RETAINED: Mix = Mix { subscribe: 7, unsubscribe: 2, plain: 0, groups: 0, retained: 10 };

impl Plan {
    /// Draws the plan of a seed.
    pub fn draw(seed: u64, worlds: Worlds, plant: Option<Plant>, rng: &mut Rng) -> Plan {
        let clusters = if rng.percent(20) { 2 } else { 1 };
        let shards = *rng.pick(&[1, 2, 2, 2, 3, 3, 3, 3]);
        let plan = Plan {
            seed,
            durability: Durability { mode: Mode::None, ..Config::default().durability },
            disk: DiskPlan { write_us: 1, sync_us: 1, told_us: 1, stall_one_in: u64::MAX, stall_us: 1 },
            crash: CrashPlan { every_us: 0, most: 0, power: 0, again: 0, down_us: 0, reshard: 0 },
            trouble: false,
            clusters,
            shards,
            clients: rng.between(5, 12) as usize / clusters,
            operations: rng.between(1_600, 4_800),
            gap_us: *rng.pick(&[2_000, 10_000, 40_000, 300_000]),
            slow_turn_one_in: (0..shards).map(|_| *rng.pick(&[1, 5, 20, 100])).collect(),
            slow_turn_us: *rng.pick(&[300, 3_000, 30_000]),
            network_us: *rng.pick(&[100, 2_000, 40_000]),
            window: *rng.pick(&[200, 2_000, 100_000]),
            unrest: *rng.pick(&[0, 3, 8, 20]),
            message_slots: *rng.pick(&[1, 1, 2, 3, 8, 64]),
            reserved_slots: *rng.pick(&[1, 1, 2, 8]),
            mix: *rng.pick(&MIXES),
            always_clean: false,
            small_packets: rng.percent(10),
            padding: *rng.pick(&[0, 40, 400]),
            mqtt: mqtt(rng),
            limits: limits(rng),
            retainer: retainer(rng),
            plant,
        };
        match worlds {
            Worlds::Memory if rng.percent(40) => plan.race(rng),
            Worlds::Memory => plan,
            Worlds::Disks => plan.crashes(rng),
            Worlds::Power => plan.power(rng),
            Worlds::Trouble => plan.crashes(rng).trouble(rng),
        }
    }

    /// Nodes die and come back. Sessions live long enough to be found again, mostly.
    fn crashes(self, rng: &mut Rng) -> Plan {
        let mode = *rng.pick(&[Mode::None, Mode::Os, Mode::Os, Mode::Os, Mode::Fsync, Mode::Fsync, Mode::Fsync]);
        let power = match mode {
            Mode::Os => *rng.pick(&[0, 0, 0, 30]),
            _ => *rng.pick(&[0, 50, 100]),
        };
        let durability = Durability {
            mode,
            segment_bytes: *rng.pick(&[4_096, 8_192, 16_384, 65_536]),
            bytes_max: 0,
            compact_min_bytes: *rng.pick(&[1_000, 10_000, 100_000]),
            compact_bytes_per_s: *rng.pick(&[100_000, 1_000_000, 100_000_000]),
            buffer_bytes_max: 1 << 30,
            sync_interval_ms: *rng.pick(&[10, 100, 1_000]),
        };
        let operations = rng.between(600, 2_400);
        // So that a run has from one to a dozen crashes.
        let lasts_us = operations * self.gap_us / (2 * self.clients as u64);
        let crash = CrashPlan {
            every_us: (2 * lasts_us / rng.between(1, 12)).max(100_000),
            most: 20,
            power,
            again: *rng.pick(&[0, 20, 50]),
            down_us: *rng.pick(&[1_000, 300_000, 4_000_000]),
            reshard: *rng.pick(&[0, 30, 80]),
        };
        Plan {
            clusters: 1,
            clients: rng.between(4, 9) as usize,
            operations,
            durability,
            disk: disk(rng),
            crash,
            slow_turn_one_in: (0..SHARDS_MAX).map(|_| *rng.pick(&[1, 5, 20, 100])).collect(),
            ..self
        }
    }

    /// A machine that loses its power again and again.
    fn power(self, rng: &mut Rng) -> Plan {
        let plan = self.crashes(rng);
        let operations = rng.between(100, 400);
        let lasts_us = operations * plan.gap_us / (2 * plan.clients as u64);
        let crash =
            CrashPlan { every_us: (2 * lasts_us / rng.between(1, 4)).max(100_000), most: 6, power: 100, ..plan.crash };
        let durability = Durability { mode: Mode::Fsync, ..plan.durability };
        Plan { operations, crash, durability, ..plan }
    }

    /// The disks of a node fail now and then, or the shards may keep little that is not written yet.
    fn trouble(self, rng: &mut Rng) -> Plan {
        let mode = if self.durability.mode == Mode::None { Mode::Os } else { self.durability.mode };
        let buffer_bytes_max = *rng.pick(&[1 << 30, 1 << 30, 3_000, 300]);
        let durability = Durability { mode, buffer_bytes_max, ..self.durability };
        // One that is about to die.
        let dying = DiskPlan { write_us: 20_000, sync_us: 800_000, stall_us: 8_000_000, ..self.disk };
        let disk = if rng.percent(20) { dying } else { self.disk };
        Plan { trouble: true, durability, disk, ..self }
    }

    /// Subscriptions race with retained publishes on three shards, in many short sessions, and nothing is
    /// ever shed: whatever a subscriber misses shows.
    fn race(self, rng: &mut Rng) -> Plan {
        let config = Config::default();
        Plan {
            clusters: 1,
            shards: 3,
            clients: 10,
            gap_us: 2_000,
            network_us: 100,
            window: 100_000,
            unrest: 10,
            always_clean: true,
            small_packets: false,
            mix: RETAINED,
            slow_turn_one_in: (0..3).map(|_| *rng.pick(&[1, 1, 20])).collect(),
            slow_turn_us: 3_000,
            mqtt: Mqtt { queued_max: u32::MAX, queued_bytes_max: u64::MAX, ..self.mqtt },
            limits: Limits { output_bytes_max: config.limits.output_bytes_max, ..self.limits },
            retainer: config.retainer,
            ..self
        }
    }

    /// Name of a cluster.
    pub fn cluster_name(cluster: usize) -> &'static str {
        ["us-east", "eu-west"][cluster]
    }

    /// What a shard is told at its start.
    pub fn settings(
        &self,
        cluster: usize,
        (shard, shards): (u16, u16),
        incarnation: u64,
        links: Vec<Link>,
    ) -> Settings {
        Settings {
            shard: ShardId(shard),
            shards,
            node: format!("node@{}", Plan::cluster_name(cluster)),
            cluster: Plan::cluster_name(cluster).into(),
            incarnation,
            mqtt: self.mqtt.clone(),
            limits: self.limits.clone(),
            retainer: self.retainer.clone(),
            durability: self.durability.clone(),
            flapping_detect: Default::default(),
            listeners: Default::default(),
            links,
            seed: self.seed,
            plant: match self.plant {
                Some(Plant::Broker(plant)) => Some(plant),
                _ => None,
            },
        }
    }

    /// A crash takes nothing that was kept.
    pub fn keeps(&self) -> bool {
        self.durability.mode != Mode::Os || self.crash.power == 0
    }

    /// The fault in the logs.
    pub fn log_plant(&self) -> Option<log::plant::Plant> {
        match self.plant {
            Some(Plant::Log(plant)) => Some(plant),
            _ => None,
        }
    }
}

/// Shards of a node at most.
pub const SHARDS_MAX: usize = 4;

/// From memory that is called a disk to one that turns.
fn disk(rng: &mut Rng) -> DiskPlan {
    let (write_us, sync_us) = *rng.pick(&[(5, 20), (50, 500), (200, 5_000), (3_000, 60_000)]);
    DiskPlan {
        write_us,
        sync_us,
        told_us: *rng.pick(&[1, 50, 2_000]),
        stall_one_in: *rng.pick(&[10, 100, 1_000_000]),
        stall_us: sync_us * 10,
    }
}

fn mqtt(rng: &mut Rng) -> Mqtt {
    let tight = rng.percent(25);
    Mqtt {
        topic_alias_max: *rng.pick(&[0, 1, 3, 10]),
        inflight_max: *rng.pick(&[1, 2, 3, 10, 100]),
        receive_max: *rng.pick(&[1, 2, 3, 5, 20, 100]),
        queued_max: if tight { *rng.pick(&[1, 3, 10, 40]) } else { 1_000_000 },
        queued_bytes_max: if tight && rng.percent(50) { *rng.pick(&[500, 5_000]) } else { 1 << 40 },
        session_expiry_s: 7200,
        connect_timeout_ms: 60_000,
        obligation_timeout_ms: 100_000,
        ..Mqtt::default()
    }
}

fn limits(rng: &mut Rng) -> Limits {
    Limits {
        output_bytes_max: *rng.pick(&[1, 100, 500, 2_000, 1 << 20]),
        staged_bytes_max: *rng.pick(&[1, 300, 2_000, 1 << 20]),
        hop_batch_bytes: *rng.pick(&[1, 200, 1_000, 1 << 16]),
        interest_shapes_max: *rng.pick(&[1, 2, 64]),
        ..Limits::default()
    }
}

fn retainer(rng: &mut Rng) -> Retainer {
    let tight = rng.percent(10);
    Retainer {
        retained_max: if tight { *rng.pick(&[1, 3]) } else { 100_000 },
        retained_bytes_max: if tight { *rng.pick(&[200, 2_000]) } else { 1 << 40 },
        retained_payload_bytes_max: if tight { 100 } else { 1 << 20 },
    }
}
