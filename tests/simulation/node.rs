//! The life of a node: it starts, recovers what its logs hold, accepts, and dies with all its shards, its connections
//! and everything that was not written or flushed; then it starts again, perhaps with another number of shards.
//! Part of the world. Always true: between a crash and the next start nothing of the node is left but its disks, and
//! the layout that a start reads is the one that was current when it died.

use std::{collections::BTreeMap, convert::Infallible};

use broker::{
    Shard,
    counters::Counters,
    journal::{Dealt, Image, Standing, deal},
};
use contract::config::{Link, Mode};
use log::{Boot, Event as Entry, Room, Tail, disk::VirtualDisk};

use crate::{
    disk::{self, Due, Fault, LogSim},
    mailbox::Grid,
    oracle::subscriptions::Wanted,
    plan::SHARDS_MAX,
    shard::{Io, ShardSim},
    world::{Event, World},
};

/// How far a node has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Dead.
    Down,
    /// Its shards take over what the logs held.
    Restoring,
    /// They repeat what a crash has cut.
    Replaying,
    /// It accepts.
    Up,
}

/// One node, which is a cluster of its own.
pub struct Node {
    /// How far it has come.
    pub stage: Stage,
    /// Its shards in this life.
    pub shards: u16,
    /// What is wrong with its disks.
    pub fault: Fault,
    /// Its links.
    pub links: Vec<Link>,
    /// Everything that its shards had done before this time survived the last crash.
    kept_us: u64,
    incarnation: u64,
    boot: u8,
    /// When the machine's monotonic clock was 0.
    clock_us: u64,
    /// The disks of the current layout while no log owns them.
    layout: Vec<VirtualDisk>,
    /// The logs that are written belong to a layout that is not current yet.
    moving: bool,
    /// What its earlier lives have counted.
    counted: BTreeMap<&'static str, u64>,
}

impl Node {
    /// A node that was never started.
    pub fn new(shards: u16, links: Vec<Link>) -> Node {
        Node {
            stage: Stage::Down,
            shards,
            fault: Fault::None,
            links,
            kept_us: 0,
            incarnation: 0,
            boot: 1,
            clock_us: 0,
            layout: Vec::new(),
            moving: false,
            counted: BTreeMap::new(),
        }
    }

    /// Sum of what its earlier lives have counted under names that fit.
    pub fn counted(&self, fits: &impl Fn(&str) -> bool) -> u64 {
        self.counted.iter().filter(|(name, _)| fits(name)).map(|(_, value)| value).sum()
    }

    /// With names.
    pub fn all_counted(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counted.iter().map(|(name, value)| (*name, *value))
    }
}

/// Between two looks whether a node's watcher is there.
const OPEN_US: u64 = 500;

impl World {
    /// Index of a cluster's first shard.
    pub fn first(cluster: usize) -> usize {
        cluster * SHARDS_MAX
    }

    /// The cluster starts.
    pub fn start(&mut self, cluster: usize) {
        let (mode, reshard) = (self.env.plan.durability.mode, self.env.plan.crash.reshard);
        let before = self.nodes[cluster].shards;
        if self.nodes[cluster].incarnation > 0 && self.env.rng.percent(reshard) {
            self.nodes[cluster].shards = self.env.rng.between(1, SHARDS_MAX as u64) as u16;
            let other = self.nodes[cluster].shards != before;
            self.env.coverage.one("restarts_with_other_shards", u64::from(other));
        }
        let node = &mut self.nodes[cluster];
        node.incarnation += 1;
        let (shards, incarnation, clock_us) = (node.shards, node.incarnation, node.clock_us);
        self.env.trace(|| format!("node {cluster} starts, {shards} shards"));
        self.grids[cluster] = Grid::new(usize::from(shards), self.env.plan.message_slots, self.env.plan.reserved_slots);
        for shard in 0..shards {
            let settings =
                self.env.plan.settings(cluster, (shard, shards), incarnation, self.nodes[cluster].links.clone());
            let index = World::first(cluster) + usize::from(shard);
            self.shards[index] = ShardSim::new(Shard::new(settings), (index, shard, cluster));
            self.shards[index].alive = true;
            self.shards[index].clock_us = clock_us;
        }
        self.env.shards[cluster] = shards;
        if mode == Mode::None {
            return self.up(cluster);
        }
        self.nodes[cluster].stage = Stage::Restoring;
        match self.recover(cluster) {
            Ok(dealt) => self.restore(cluster, dealt),
            Err(why) => self.env.fail(&format!("node {cluster} does not start: {why}")),
        }
    }

    /// Reads the logs of the current layout and opens those that this life writes.
    fn recover(&mut self, cluster: usize) -> Result<Vec<Dealt>, String> {
        let World { env, nodes, shards, .. } = self;
        let node = &mut nodes[cluster];
        let boot = Boot([node.boot; 16]);
        let mut images = Vec::new();
        let mut tails = Vec::new();
        for (shard, disk) in node.layout.iter().enumerate() {
            let mut image = Image::new(env.plan.seed);
            let mut bad = None;
            let read = |file| Ok::<_, Infallible>(disk.read(file).unwrap_or_default().to_vec());
            let Ok(outcome) = log::recover(&disk.found(), boot, read, &mut |entry| match entry {
                Entry::Entry(bytes) => bad = bad.or(image.entry(bytes).err()),
                Entry::Reset => image = Image::new(env.plan.seed),
            });
            let (tail, report) = outcome.map_err(|refusal| format!("log {shard}: {refusal}"))?;
            if let Some(bad) = bad {
                return Err(format!("log {shard}: {bad:?}"));
            }
            env.trace(|| format!("node {cluster} log {shard}: {report}, {} sessions", image.sessions()));
            env.coverage.one("torn_tails_cut", u64::from(report.torn_bytes > 0));
            images.push(image);
            tails.push(tail);
        }
        let same = images.is_empty() || images.len() == usize::from(node.shards);
        let dealt = deal(images, node.shards);
        let seed = env.plan.seed ^ node.incarnation << 32;
        node.moving = !same;
        let mut tails = tails.into_iter();
        let mut disks = if same { core::mem::take(&mut node.layout).into_iter() } else { Vec::new().into_iter() };
        for shard in 0..node.shards {
            let mut settings = disk::settings(shard, node.shards, &env.plan.durability, boot, seed);
            settings.plant = env.plan.log_plant();
            let tail = if same { tails.next() } else { None }.unwrap_or_else(Tail::fresh);
            let disk = disks.next().unwrap_or_default();
            let sim = &mut shards[World::first(cluster) + usize::from(shard)];
            let mut log = LogSim::new(settings, tail, disk, env.plan.disk, env.now_us - node.clock_us);
            log.fault = node.fault;
            sim.log = Some(log);
        }
        Ok(dealt)
    }

    fn restore(&mut self, cluster: usize, dealt: Vec<Dealt>) {
        let now_us = self.env.now_us;
        for (shard, dealt) in dealt.into_iter().enumerate() {
            let index = World::first(cluster) + shard;
            self.shards[index].restore(dealt, &mut self.env);
            let delay_us = self.env.rng.below(1_000);
            self.wake(index, now_us + delay_us);
            self.drive_log(index);
        }
        let again = self.env.plan.crash.again;
        if self.env.operations > 0 && self.nodes[cluster].incarnation > 1 && self.env.rng.percent(again) {
            let most_us = *self.env.rng.pick(&[100, 5_000, 200_000]);
            let at_us = now_us + self.env.rng.between(1, most_us);
            self.env.queue.push(at_us, Event::Crash(cluster, self.nodes[cluster].incarnation));
        }
    }

    /// Looks whether the next step of a start may follow.
    pub fn recovery_step(&mut self, cluster: usize) {
        let living = || self.shards.iter().filter(|sim| sim.alive && sim.at.2 == cluster);
        let all = |standing| living().all(|sim| sim.brain.standing() >= standing);
        match self.nodes[cluster].stage {
            Stage::Restoring => {
                let flushed = living().all(|sim| sim.log.as_ref().is_some_and(|log| log.status().recovered));
                if !(flushed && all(Standing::Restored)) {
                    return;
                }
                let indices: Vec<usize> = living().map(|sim| sim.at.0).collect();
                let node = &mut self.nodes[cluster];
                if core::mem::take(&mut node.moving) {
                    node.layout.clear();
                }
                node.stage = Stage::Replaying;
                self.env.trace(|| format!("node {cluster} is restored"));
                for index in indices {
                    let at_us = self.env.now_us + self.env.rng.below(2_000);
                    self.env.queue.push(at_us, Event::Io(index, Io::Replay));
                }
            }
            Stage::Replaying if all(Standing::Ready) => self.up(cluster),
            _ => {}
        }
    }

    fn up(&mut self, cluster: usize) {
        let now_us = self.env.now_us;
        self.env.trace(|| format!("node {cluster} accepts"));
        let node = &mut self.nodes[cluster];
        node.stage = Stage::Up;
        self.env.up_us[cluster] = Some(now_us);
        self.env.net.restarted(cluster, now_us);
        let kept_us = node.kept_us;
        for client in self.clients.iter_mut().filter(|client| client.cluster == cluster) {
            client.node_up(kept_us, now_us);
        }
        if self.clients.is_empty() || self.over {
            self.env.open[cluster] = true;
        } else {
            self.env.queue.push(now_us + 1, Event::Open(cluster));
        }
        let (every_us, incarnation) = (self.env.plan.crash.every_us, self.nodes[cluster].incarnation);
        if every_us > 0 {
            let at_us = now_us + self.env.rng.between(1, every_us);
            self.env.queue.push(at_us, Event::Crash(cluster, incarnation));
        }
    }

    /// The watcher comes first, so that it sees every will of everybody else.
    pub fn open(&mut self, cluster: usize) {
        if self.env.up_us[cluster].is_none() || self.env.open[cluster] {
            return;
        }
        let World { env, clients, .. } = self;
        let watcher = &mut clients[cluster];
        if watcher.conn.is_none() {
            watcher.connect(env, false);
        } else if watcher.settled() && watcher.conn.as_ref().is_some_and(|conn| conn.crashed_us.is_none()) {
            let subscribed = watcher.epoch.is_some_and(|epoch| env.oracle.epochs[epoch].granted_any("w/#"));
            if subscribed {
                env.open[cluster] = true;
                return;
            }
            let filter = "w/#".to_string();
            let wanted = Wanted { filter, qos: 2, no_local: false, retain_as_published: false, handling: 0 };
            watcher.subscribe_to(env, vec![wanted], 0);
        }
        env.queue.push(env.now_us + OPEN_US, Event::Open(cluster));
    }

    /// A crash that was planned for a life.
    pub fn crash_planned(&mut self, cluster: usize, incarnation: u64) {
        let over = self.env.operations == 0 || incarnation > self.env.plan.crash.most;
        if over || self.nodes[cluster].incarnation != incarnation {
            return;
        }
        let power = self.env.rng.percent(self.env.plan.crash.power);
        self.crash(cluster, power);
    }

    /// The node dies, with `power` the machine, too; it starts again a little later.
    pub fn crash(&mut self, cluster: usize, power: bool) {
        let mode = self.env.plan.durability.mode;
        let stage = self.nodes[cluster].stage;
        if stage == Stage::Down {
            return;
        }
        self.env.trace(|| format!("node {cluster} dies in {stage:?}, power {power}"));
        self.cover_crash(cluster, power);
        self.bury(cluster, power);
        let World { env, nodes, clients, .. } = self;
        let node = &mut nodes[cluster];
        let kept = match mode {
            Mode::None => false,
            Mode::Os => !power,
            Mode::Fsync => true,
        };
        if !kept {
            node.kept_us = 0;
        }
        let (now_us, kept_us) = (env.now_us, node.kept_us);
        env.up_us[cluster] = None;
        env.open[cluster] = false;
        let first = World::first(cluster);
        let net = &env.net;
        env.queue.forget(|event| match event {
            Event::Io(shard, _)
            | Event::TurnStart(shard, _)
            | Event::TurnEnd(shard, _)
            | Event::Dial(shard, _)
            | Event::DiskDone(shard)
            | Event::DiskLook(shard)
            | Event::Told(shard) => (first..first + SHARDS_MAX).contains(shard),
            Event::Accept(pipe) => net.cluster(*pipe) == cluster,
            _ => false,
        });
        env.wires.forget(first..first + SHARDS_MAX);
        env.net.crash(cluster, kept_us, (now_us, &mut env.queue, &mut env.rng));
        for client in clients.iter_mut().filter(|client| client.cluster == cluster) {
            client.node_crashed(env, kept, mode == Mode::Os && power);
        }
        env.oracle.crashed(cluster, kept, now_us, &env.net);
        if power {
            node.boot = node.boot % 250 + 1;
            node.clock_us = now_us - env.rng.between(1, 3_000_000);
        }
        let at_us = now_us + env.rng.between(1, env.plan.crash.down_us.max(1));
        env.queue.push(at_us, Event::Start(cluster));
    }

    fn cover_crash(&mut self, cluster: usize, power: bool) {
        let living = self.shards.iter().filter(|sim| sim.alive && sim.at.2 == cluster);
        let logs: Vec<&LogSim> = living.filter_map(|sim| sim.log.as_ref()).collect();
        let checkpointing = logs.iter().any(|log| log.checkpointing);
        let coverage = &mut self.env.coverage;
        coverage.one(if power { "power_losses" } else { "kills" }, 1);
        coverage.one("crashes_in_recovery", u64::from(self.nodes[cluster].stage != Stage::Up));
        coverage.one("crashes_of_a_move", u64::from(self.nodes[cluster].moving));
        coverage.one("crashes_in_checkpoints", u64::from(checkpointing));
        let detached = |log: &&LogSim| matches!(log.status().room, Room::Detached | Room::Ready);
        coverage.one("crashes_while_detached", u64::from(logs.iter().any(detached)));
        if self.nodes[cluster].stage == Stage::Up {
            for client in self.clients.iter().filter(|client| client.cluster == cluster) {
                client.cover_handshakes(&self.env.oracle, coverage);
            }
        }
    }

    /// What is left of the shards: their disks, and what they had counted.
    fn bury(&mut self, cluster: usize, power: bool) {
        let World { env, nodes, shards, .. } = self;
        let node = &mut nodes[cluster];
        node.stage = Stage::Down;
        node.kept_us = u64::MAX;
        let mut disks = Vec::new();
        for sim in shards.iter_mut().filter(|sim| sim.alive && sim.at.2 == cluster) {
            sim.alive = false;
            sim.end_refusal(env.now_us, env);
            (sim.planned, sim.running) = (None, false);
            for (name, value) in Counters::NAMES.iter().zip(sim.brain.counters().values()) {
                *node.counted.entry(name).or_default() += value;
            }
            *node.counted.entry("turns").or_default() += sim.turns;
            if let Some(log) = sim.log.take() {
                node.kept_us = node.kept_us.min(log.kept_us());
                env.coverage.one("checkpoints_complete", log.checkpoints());
                env.coverage.one("resyncs", log.resyncs);
                disks.push(log.crash(power, &mut env.rng));
            }
        }
        if !core::mem::take(&mut node.moving) {
            node.layout = disks;
        } else if power {
            node.layout.iter_mut().for_each(|disk| disk.power_loss(env.rng.next()));
        }
    }

    /// Lets a shard's log go on.
    pub fn drive_log(&mut self, shard: usize) {
        let World { env, shards, .. } = self;
        let sim = &mut shards[shard];
        let Some(log) = &mut sim.log else { return };
        match log.next(env.now_us - sim.clock_us, &mut env.rng) {
            Due::Done(at_us) => env.queue.push(at_us + sim.clock_us, Event::DiskDone(shard)),
            Due::Look(at_us) => env.queue.push(at_us + sim.clock_us, Event::DiskLook(shard)),
            Due::Nothing => {}
        }
        if log.news() && !log.telling {
            log.telling = true;
            let delay_us = env.rng.between(1, env.plan.disk.told_us);
            env.queue.push(env.now_us + delay_us, Event::Told(shard));
        }
    }

    /// An operation of a shard's log is over.
    pub fn disk_done(&mut self, shard: usize) {
        let World { env, shards, .. } = self;
        let sim = &mut shards[shard];
        let Some(log) = &mut sim.log else { return };
        let before = log.status();
        let failed = log.done(env.now_us - sim.clock_us, &mut env.rng);
        let after = log.status();
        env.coverage.one("disk_failures", u64::from(failed));
        env.coverage.one("detachments", after.detachments - before.detachments);
        env.coverage.one("tight_logs", u64::from(before.room == Room::Plenty && after.room == Room::Tight));
        while let Some(spent) = log.recycle() {
            sim.brain.journal_spent(spent);
        }
        let cluster = sim.at.2;
        if failed {
            env.trace(|| format!("shard {shard}: an operation of the log fails, {:?}", log.status()));
        }
        self.drive_log(shard);
        self.recovery_step(cluster);
    }

    /// Something happens to a node's disks, or is over.
    pub fn trouble(&mut self, cluster: usize) {
        let World { env, shards, nodes, .. } = self;
        let faults = [Fault::None, Fault::Failing(2), Fault::Failing(20), Fault::ReadOnly, Fault::Full];
        let healed = env.operations == 0 || env.rng.percent(50);
        let fault = if healed { Fault::None } else { *env.rng.pick(&faults) };
        env.trace(|| format!("disks of node {cluster}: {fault:?}"));
        nodes[cluster].fault = fault;
        for log in shards.iter_mut().filter(|sim| sim.alive && sim.at.2 == cluster).filter_map(|sim| sim.log.as_mut()) {
            log.fault = fault;
        }
        if env.operations > 0 {
            let at_us = env.now_us + env.rng.between(1, 200 * env.plan.gap_us);
            env.queue.push(at_us, Event::Trouble(cluster));
        }
    }
}
