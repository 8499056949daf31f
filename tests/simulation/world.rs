//! The world of one seed: clusters of shards, a network, clients and an oracle, moved by one queue of
//! events under a virtual clock. One thread, no other source of time or chance.

use core::net::SocketAddr;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use broker::{
    Shard,
    counters::Counters,
    surface::{Cause, DialId},
};

use contract::config::Link;

use crate::{
    client::{Client, Profile},
    coverage::Coverage,
    links::{self, Wires},
    mailbox::Grid,
    net::{End, Net},
    node::{Node, Stage},
    oracle::{Oracle, Verdict, arrival::Arrival},
    plan::{Plan, SHARDS_MAX},
    rng::Rng,
    shard::{Io, ShardSim},
};

/// Something that happens at a time.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A connection reaches a listener.
    Accept(usize),
    /// Bytes of a client reach the server.
    Up(usize),
    /// So does the end.
    UpEnd(usize, Cause),
    /// The server's send goes on.
    Send(usize),
    /// Bytes reach a client.
    Down(usize),
    /// So does the end.
    DownEnd(usize),
    /// Something happens on a shard's ring.
    Io(usize, Io),
    /// A turn of a shard begins, if this is still its plan.
    TurnStart(usize, u64),
    /// It ends; it began at the time given.
    TurnEnd(usize, u64),
    /// A client does something.
    Client(usize),
    /// A client publishes out of turn.
    Publish(usize),
    /// A client connects, unless it has meanwhile.
    Connect(usize, bool),
    /// Acknowledgements of a client are due.
    Replies(usize, u64),
    /// A client has to be heard.
    KeepAlive(usize, u64),
    /// A wire between clusters breaks.
    WireCut,
    /// A dial of a shard comes to its end.
    Dial(usize, DialId),
    /// An operation of a shard's log is over.
    DiskDone(usize),
    /// A shard's log may have something to do.
    DiskLook(usize),
    /// A shard hears how its log is.
    Told(usize),
    /// A node dies, if it is still this life.
    Crash(usize, u64),
    /// It starts again.
    Start(usize),
    /// It may accept everybody.
    Open(usize),
    /// Something happens to its disks.
    Trouble(usize),
    /// Whoever waits for a state looks whether it has come.
    Look,
}

/// What will happen, in order of time and then of planning.
#[derive(Default)]
pub struct Queue {
    heap: BinaryHeap<Reverse<(u64, u64)>>,
    events: std::collections::HashMap<u64, Event>,
    next: u64,
}

impl Queue {
    /// Plans an event.
    pub fn push(&mut self, at_us: u64, event: Event) {
        self.next += 1;
        self.heap.push(Reverse((at_us, self.next)));
        self.events.insert(self.next, event);
    }

    fn pop(&mut self) -> Option<(u64, Event)> {
        loop {
            let Reverse((at_us, number)) = self.heap.pop()?;
            if let Some(event) = self.events.remove(&number) {
                return Some((at_us, event));
            }
        }
    }

    /// Some events will not happen.
    pub fn forget(&mut self, which: impl Fn(&Event) -> bool) {
        self.events.retain(|_, event| !which(event));
    }
}

/// What everything in the world shares.
pub struct Env {
    /// Virtual time.
    pub now_us: u64,
    /// What will happen.
    pub queue: Queue,
    /// Chance.
    pub rng: Rng,
    /// Connections.
    pub net: Net,
    /// What must be true.
    pub oracle: Oracle,
    /// What was touched.
    pub coverage: Coverage,
    /// What was drawn.
    pub plan: Plan,
    /// Links between clusters.
    pub wires: Wires,
    /// Operations left.
    pub operations: u64,
    /// Retained replays that are open.
    pub replays_open: u64,
    /// Publishes whose acknowledgement was just heard.
    pub acknowledged: Vec<u64>,
    /// Shards of each cluster in its present life.
    pub shards: Vec<u16>,
    /// Since when each cluster accepts, if it does.
    pub up_us: Vec<Option<u64>>,
    /// It is open for ordinary clients.
    pub open: Vec<bool>,
    /// Everything is told.
    pub tracing: bool,
    failure: Option<String>,
}

impl Env {
    /// The run has failed; the first reason stays.
    pub fn fail(&mut self, why: &str) {
        let now_us = self.now_us;
        self.trace(|| format!("FAILED: {why}"));
        self.failure.get_or_insert_with(|| format!("at {now_us} us: {why}"));
    }

    /// It has failed.
    pub fn failed(&self) -> bool {
        self.failure.is_some()
    }

    /// One line of the trace.
    pub fn trace(&self, line: impl FnOnce() -> String) {
        if self.tracing {
            println!("{:>12} {}", self.now_us, line());
        }
    }

    /// The address of a pipe's client.
    pub fn peer(&mut self, pipe: usize) -> SocketAddr {
        // A link without `accept` comes from loopback; clients do not, so they may not speak for a cluster.
        let address = match self.net.pipe(pipe).end {
            End::Client(_) => [192, 0, 2, 1],
            End::Wire(_) => [127, 0, 0, 1],
        };
        SocketAddr::from((address, 1024 + (pipe % 60_000) as u16))
    }

    /// A session received a message.
    pub fn arrived(&mut self, epoch: usize, arrival: &Arrival) {
        if let Err(why) = self.oracle.arrived(epoch, arrival, self.now_us) {
            let client = self.oracle.epochs[epoch].client;
            self.fail(&format!("client {client}: {why}"));
        }
    }
}

/// Everything of one seed.
pub struct World {
    /// What is shared.
    pub env: Env,
    /// All shards, cluster by cluster.
    pub shards: Vec<ShardSim>,
    /// The node of each cluster.
    pub nodes: Vec<Node>,
    /// Mailboxes of each cluster.
    pub grids: Vec<Grid>,
    /// All clients.
    pub clients: Vec<Client>,
    /// Everybody has left.
    pub over: bool,
    replays: Vec<u64>,
    plans: u64,
}

/// Virtual time at the start; not 0, which could hide a mistake.
const START_US: u64 = 5_000_000;
/// How often states are looked at.
const LOOK_US: u64 = 250_000;
/// Every request is answered within this time.
const ANSWER_US: u64 = 100_000_000;

impl World {
    /// The world of a plan; nobody is connected.
    pub fn new(plan: Plan, mut rng: Rng, tracing: bool) -> World {
        let clusters = plan.clusters;
        let grids = (0..clusters).map(|_| Grid::new(0, 0, 0)).collect();
        let links: Vec<Vec<Link>> = (0..clusters).map(|c| links::configured(c, clusters, &mut rng)).collect();
        // Places for as many shards as a life may have; a start fills those that it needs.
        let at = (0..clusters).flat_map(|cluster| (0..SHARDS_MAX).map(move |shard| (cluster, shard)));
        let place = |(cluster, shard): (usize, usize)| {
            let of = (shard as u16, SHARDS_MAX as u16);
            let brain = Shard::new(plan.settings(cluster, of, 0, Vec::new()));
            ShardSim::new(brain, (World::first(cluster) + shard, shard as u16, cluster))
        };
        let sims: Vec<ShardSim> = at.map(place).collect();
        let nodes = links.into_iter().map(|links| Node::new(plan.shards, links)).collect();
        let env = Env {
            now_us: START_US,
            queue: Queue::default(),
            rng,
            net: Net::default(),
            oracle: Oracle { refusing: plan.trouble, ..Oracle::default() },
            coverage: Coverage::default(),
            operations: plan.operations,
            plan,
            wires: Wires::default(),
            replays_open: 0,
            acknowledged: Vec::new(),
            shards: vec![0; clusters],
            up_us: vec![None; clusters],
            open: vec![false; clusters],
            tracing,
            failure: None,
        };
        let replays = vec![0; sims.len()];
        let mut world = World { env, shards: sims, nodes, grids, clients: Vec::new(), over: false, replays, plans: 0 };
        (0..clusters).for_each(|cluster| world.start(cluster));
        world
    }

    /// The shards that exist now.
    pub fn living(&self) -> impl Iterator<Item = &ShardSim> {
        self.shards.iter().filter(|sim| sim.alive)
    }

    /// A new client.
    pub fn add_client(&mut self, cluster: usize, profile: Profile) -> usize {
        let at = self.clients.len();
        self.clients.push(Client::new(at, cluster, profile));
        at
    }

    /// Lets time pass until `reached`, at most `limit_us`.
    pub fn run_until(&mut self, what: &str, limit_us: u64, mut reached: impl FnMut(&World) -> bool) -> Verdict {
        let end_us = self.env.now_us + limit_us;
        self.env.queue.push(self.env.now_us + 1, Event::Look);
        while let Some((at_us, event)) = self.env.queue.pop() {
            self.env.now_us = at_us;
            if let Event::Look = event {
                if reached(self) {
                    return Ok(());
                }
                self.look();
                if at_us > end_us {
                    return Err(format!("{what} takes longer than {limit_us} us: {}", self.unsettled()));
                }
                self.env.queue.push(at_us + LOOK_US, Event::Look);
            } else {
                self.handle(event);
            }
            if let Some(why) = &self.env.failure {
                return Err(why.clone());
            }
        }
        Err(format!("{what}: nothing happens any more"))
    }

    fn handle(&mut self, event: Event) {
        let World { env, clients, .. } = self;
        match event {
            Event::Accept(pipe) => {
                // SO_REUSEPORT: any shard of the node may accept.
                let cluster = env.net.pipe(pipe).cluster;
                if env.up_us[cluster].is_none() {
                    return env.net.refuse(pipe, (env.now_us, &mut env.queue));
                }
                let shard = World::first(cluster) + env.rng.below(u64::from(env.shards[cluster])) as usize;
                self.io(shard, Io::Accept(pipe));
            }
            Event::Up(pipe) => {
                env.net.up(pipe);
                self.readable(pipe);
            }
            Event::UpEnd(pipe, cause) => {
                env.net.up_end(pipe, cause, &mut env.rng);
                self.readable(pipe);
            }
            Event::Send(pipe) => {
                if env.net.send_part(pipe, (env.now_us, &mut env.queue, &mut env.rng))
                    && let Some(place) = env.net.pipe(pipe).place
                {
                    self.io(place.shard, Io::SendDone(pipe));
                }
            }
            Event::Down(pipe) => self.down(pipe),
            Event::DownEnd(pipe) => match env.net.pipe(pipe).end {
                End::Client(client) => clients[client].closed(env, pipe),
                End::Wire(wire) => links::ended(env, wire, pipe),
            },
            Event::WireCut => links::unrest(env),
            Event::Io(shard, io) => self.io(shard, io),
            Event::TurnStart(shard, plan) => self.turn_start(shard, plan),
            Event::TurnEnd(shard, start_us) => self.turn_end(shard, start_us),
            Event::Client(client) => clients[client].operate(env),
            Event::Publish(client) => {
                let ready = clients[client].conn.as_ref().is_some_and(|conn| conn.open && !conn.leaving);
                if ready && !clients[client].quiet {
                    clients[client].publish(env);
                }
            }
            Event::Connect(client, clean) => {
                clients[client].connecting = false;
                if clients[client].conn.is_none() {
                    clients[client].connect(env, clean);
                }
            }
            Event::Replies(client, serial) => clients[client].replies(env, serial),
            Event::KeepAlive(client, serial) => clients[client].keep_alive(env, serial),
            Event::Dial(shard, dial) => {
                let io = links::dialed(env, shard, dial);
                self.io(shard, io);
            }
            Event::DiskDone(shard) => self.disk_done(shard),
            Event::DiskLook(shard) => self.drive_log(shard),
            Event::Told(shard) => self.io(shard, Io::Logged),
            Event::Crash(cluster, incarnation) => self.crash_planned(cluster, incarnation),
            Event::Start(cluster) => self.start(cluster),
            Event::Open(cluster) => self.open(cluster),
            Event::Trouble(cluster) => self.trouble(cluster),
            Event::Look => {}
        }
        if !self.env.acknowledged.is_empty() {
            self.check_acknowledged();
        }
    }

    fn down(&mut self, pipe: usize) {
        let World { env, clients, .. } = self;
        let client = match env.net.pipe(pipe).end {
            End::Client(client) => &mut clients[client],
            End::Wire(wire) => {
                if let Some(bytes) = env.net.down(pipe, (env.now_us, &mut env.queue)) {
                    links::carry(env, wire, pipe, bytes);
                }
                return;
            }
        };
        let stalled_us = client.conn.as_ref().filter(|conn| conn.pipe == pipe).map_or(0, |conn| conn.stalled_until_us);
        if stalled_us > env.now_us {
            return env.queue.push(stalled_us, Event::Down(pipe));
        }
        if let Some(bytes) = env.net.down(pipe, (env.now_us, &mut env.queue)) {
            client.bytes(env, pipe, &bytes);
        }
    }

    pub fn io(&mut self, shard: usize, io: Io) {
        let now_us = self.env.now_us;
        self.shards[shard].io(now_us, io);
        let delay_us = self.env.rng.below(30);
        self.wake(shard, now_us + delay_us);
    }

    fn readable(&mut self, pipe: usize) {
        if let Some(place) = self.env.net.pipe(pipe).place {
            self.io(place.shard, Io::Readable(pipe));
        }
    }

    /// A shard that sleeps turns at `at_us`; one that runs looks again at its end.
    pub fn wake(&mut self, shard: usize, at_us: u64) {
        let sim = &mut self.shards[shard];
        if sim.running || sim.planned.is_some_and(|(planned_us, _)| planned_us <= at_us) {
            return;
        }
        self.plans += 1;
        sim.planned = Some((at_us, self.plans));
        self.env.queue.push(at_us, Event::TurnStart(shard, self.plans));
    }

    fn turn_start(&mut self, shard: usize, plan: u64) {
        let sim = &mut self.shards[shard];
        if sim.planned.is_none_or(|(_, current)| current != plan) {
            return;
        }
        sim.planned = None;
        sim.running = true;
        let env = &mut self.env;
        let now_us = env.now_us;
        let one_in = env.plan.slow_turn_one_in[usize::from(sim.at.1)];
        let slow = env.rng.one_in(one_in);
        let lasts_us = if slow { env.rng.between(1, env.plan.slow_turn_us) } else { env.rng.between(1, 20) };
        env.queue.push(now_us + lasts_us, Event::TurnEnd(shard, now_us));
    }

    fn turn_end(&mut self, shard: usize, start_us: u64) {
        let World { env, shards, grids, replays, .. } = self;
        let sim = &mut shards[shard];
        let (_, _, cluster) = sim.at;
        let (offered, turned) = sim.turn(start_us, &mut grids[cluster], env);
        sim.running = false;
        replays[shard] = sim.brain.gauges().replays;
        env.replays_open = replays.iter().sum();
        let again = turned.busy || sim.has_input() || grids[cluster].waits_for(usize::from(sim.at.1));
        let now_us = env.now_us;
        let first = World::first(cluster);
        let mut delays = Vec::new();
        for to in offered {
            delays.push((first + to, now_us + env.rng.below(60)));
        }
        let soon_us = now_us + env.rng.below(10);
        for (to, at_us) in delays {
            self.wake(to, at_us);
        }
        if again {
            self.wake(shard, soon_us);
        } else if turned.deadline_us < u64::MAX {
            self.wake(shard, turned.deadline_us.max(now_us + 1));
        }
        self.drive_log(shard);
        self.recovery_step(cluster);
    }

    fn check_acknowledged(&mut self) {
        for number in core::mem::take(&mut self.env.acknowledged) {
            let publish = self.env.oracle.publishes.at(number);
            let cluster = publish.cluster;
            if self.env.up_us[cluster].is_none_or(|up_us| publish.sent_us < up_us) {
                // It came from an earlier life.
                continue;
            }
            if publish.retain
                && self.counted(cluster, |name| name.starts_with("shed_retained") || name == "shed_log_full") > 0
            {
                continue;
            }
            let mut shards = self.living().filter(|sim| sim.at.2 == cluster);
            let held = shards.find_map(|sim| sim.brain.retained_payload(&publish.topic));
            drop(shards);
            let kept = self.env.plan.durability.mode != contract::config::Mode::None;
            if let Err(why) = self.env.oracle.check_acknowledged(number, &self.grids[cluster], held, kept) {
                self.env.fail(&why);
            }
        }
    }

    /// Looks at what must hold at any time.
    fn look(&mut self) {
        let now_us = self.env.now_us;
        for client in &self.clients {
            let oldest = client.conn.iter().flat_map(|conn| &conn.asked).find(|asked| asked.at_us + ANSWER_US < now_us);
            if let Some(asked) = oldest {
                return self.env.fail(&format!("{}: no answer to {asked:?} after {ANSWER_US} us", client.id));
            }
        }
        let names = match self.env.plan.trouble {
            true => &["frames_bad", "packets_malformed"][..],
            false => &["frames_bad", "obligations_timed_out", "protocol_errors", "packets_malformed"][..],
        };
        for name in names {
            for cluster in 0..self.grids.len() {
                if self.counted(cluster, |n| n == *name) > 0 {
                    return self.env.fail(&format!("{name} is not zero"));
                }
            }
        }
    }

    /// Sum of a cluster's counters that a name fits.
    pub fn counted(&self, cluster: usize, fits: impl Fn(&str) -> bool) -> u64 {
        let shards = self.living().filter(|sim| sim.at.2 == cluster);
        let counters = shards.flat_map(|sim| Counters::NAMES.iter().zip(sim.brain.counters().values()));
        let living: u64 = counters.filter(|(name, _)| fits(name)).map(|(_, value)| value).sum();
        living + self.nodes[cluster].counted(&fits)
    }

    /// Nothing is on its way anywhere in the brokers.
    pub fn quiet(&self) -> bool {
        if self.nodes.iter().any(|node| node.stage != Stage::Up) {
            return false;
        }
        let brains = self.living().all(|sim| {
            let gauges = sim.brain.gauges();
            if sim.brain.link_status().iter().any(|link| link.queued > 0) {
                return false;
            }
            let open = gauges.obligations + gauges.staged_bytes + gauges.replays + gauges.waiting_subscribes;
            // What waits for the log is output that nobody else sees.
            open == 0 && gauges.log_unconfirmed_bytes == 0 && sim.brain.queued() == 0
        });
        brains && self.grids.iter().all(Grid::is_empty) && !self.env.net.busy()
    }

    fn unsettled(&self) -> String {
        let clients: Vec<String> = self.clients.iter().filter(|c| !c.settled()).map(Client::unsettled).collect();
        let shards: Vec<String> =
            self.living().map(|s| format!("{:?} queued {}", s.brain.gauges(), s.brain.queued())).collect();
        let logs: Vec<_> = self.living().filter_map(|sim| Some(sim.log.as_ref()?.status())).collect();
        let stages: Vec<Stage> = self.nodes.iter().map(|node| node.stage).collect();
        let busy = self.env.net.busy();
        format!("net busy {busy}, clients {clients:#?}, shards {shards:#?}, nodes {stages:?}, logs {logs:#?}")
    }

    /// What the owners of a cluster hold.
    pub fn store(&self, cluster: usize) -> BTreeMap<String, Vec<u8>> {
        let shards = self.living().filter(|sim| sim.at.2 == cluster);
        let values = shards.flat_map(|sim| {
            let topics = sim.brain.retained_topics().into_iter();
            topics.filter_map(|topic| Some((topic.clone(), sim.brain.retained_payload(&topic)?)))
        });
        values.collect()
    }

    /// Adds what the brokers have counted to the coverage.
    pub fn account(&mut self) {
        let World { env, shards, nodes, .. } = self;
        for sim in shards.iter().filter(|sim| sim.alive) {
            env.coverage.one("turns", sim.turns);
            for (name, value) in Counters::NAMES.iter().zip(sim.brain.counters().values()) {
                env.coverage.one(name, value);
            }
            if let Some(log) = &sim.log {
                env.coverage.one("checkpoints_complete", log.checkpoints());
                env.coverage.one("resyncs", log.resyncs);
            }
        }
        for (name, value) in nodes.iter().flat_map(Node::all_counted) {
            env.coverage.one(name, value);
        }
        let (operations, cuts) = (self.env.plan.operations - self.env.operations, self.env.net.cuts);
        self.env.coverage.one("operations", operations);
        self.env.coverage.one("network_cuts", cuts);
        self.env.coverage.one("wire_cuts", self.env.wires.cuts);
    }
}
