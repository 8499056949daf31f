//! What a seed decides before anything happens: shards, limits, delays, how clients behave.
//! Limits are drawn from tiny upward so that every edge is met; most seeds leave no room for a shed of a
//! QoS 1 or 2 message, so that any loss is a fault.

use broker::{Settings, plant::Plant};
use contract::{
    config::{Config, Limits, Link, Mqtt, Retainer},
    ids::ShardId,
};

use crate::rng::Rng;

/// One seed's world.
pub struct Plan {
    /// The seed.
    pub seed: u64,
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
    pub fn draw(seed: u64, plant: Option<Plant>, rng: &mut Rng) -> Plan {
        let clusters = if rng.percent(20) { 2 } else { 1 };
        let shards = *rng.pick(&[1, 2, 2, 2, 3, 3, 3, 3]);
        let plan = Plan {
            seed,
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
        if rng.percent(40) { plan.race(rng) } else { plan }
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
    pub fn settings(&self, cluster: usize, shard: u16, links: Vec<Link>) -> Settings {
        Settings {
            shard: ShardId(shard),
            shards: self.shards,
            node: format!("node@{}", Plan::cluster_name(cluster)),
            cluster: Plan::cluster_name(cluster).into(),
            incarnation: 1,
            mqtt: self.mqtt.clone(),
            limits: self.limits.clone(),
            retainer: self.retainer.clone(),
            links,
            seed: self.seed,
            plant: self.plant,
        }
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
