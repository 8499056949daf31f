//! Two clusters and the links between them. What a shard dials is a wire: one connection at the shard that
//! dialled, one at a listener of the other cluster, and everything that comes out of one goes into the
//! other. Wires break at random. The oracle's part of links is in [`crate::oracle::crossing`].

use std::collections::HashMap;

use broker::surface::DialId;
use contract::config::Link;

use crate::{
    net::End,
    plan::{Plan, SHARDS_MAX},
    rng::Rng,
    shard::Io,
    world::{Env, Event},
};

/// What clusters want from each other.
pub const LINKED: &str = "t/#";

/// Dials under way, and wires.
#[derive(Default)]
pub struct Wires {
    dials: HashMap<(usize, DialId), String>,
    /// The pipes of each wire: at the shard that dialled, and at the remote.
    all: Vec<(usize, usize)>,
    /// Wires that were cut.
    pub cuts: u64,
}

impl Wires {
    /// A shard wants a connection.
    pub fn dial(&mut self, shard: usize, dial: DialId, server: &str) {
        self.dials.insert((shard, dial), server.to_string());
    }

    /// Some shards are dead.
    pub fn forget(&mut self, shards: core::ops::Range<usize>) {
        self.dials.retain(|(shard, _), _| !shards.contains(shard));
    }

    fn other(&self, wire: usize, pipe: usize) -> usize {
        let (near, far) = self.all[wire];
        if pipe == near { far } else { near }
    }
}

/// The links of a cluster: one to each other cluster.
pub fn configured(cluster: usize, clusters: usize, rng: &mut Rng) -> Vec<Link> {
    let others = (0..clusters).filter(|other| *other != cluster);
    let links = others.map(|other| Link {
        name: Plan::cluster_name(other).into(),
        enable: true,
        servers: vec![Plan::cluster_name(other).into()],
        client_id: None,
        username: None,
        password: None,
        topics: vec![LINKED.into()],
        pool_size: 1,
        max_inflight: *rng.pick(&[1, 3, 100]),
        retry_interval_ms: 1_000,
        accept: None,
    });
    links.collect()
}

/// A dial comes to its end: what the shard hears.
pub fn dialed(env: &mut Env, shard: usize, dial: DialId) -> Io {
    let Some(server) = env.wires.dials.remove(&(shard, dial)) else { return Io::Dialed(dial, None) };
    let target = (0..env.plan.clusters).find(|cluster| Plan::cluster_name(*cluster) == server);
    let (Some(target), false) = (target, env.rng.percent(10)) else { return Io::Dialed(dial, None) };
    if env.up_us[target].is_none() {
        return Io::Dialed(dial, None);
    }
    let wire = End::Wire(env.wires.all.len());
    let shape = (env.plan.network_us, env.plan.window.max(2_000));
    let cluster = shard / SHARDS_MAX;
    let near = env.net.dialed(wire, cluster, shape, (env.now_us, &mut env.rng));
    let far = env.net.connect(wire, target, shape, (env.now_us, &mut env.queue, &mut env.rng));
    env.trace(|| format!("wire {wire:?} from shard {shard} ({near}) to cluster {target} ({far})"));
    env.wires.all.push((near, far));
    Io::Dialed(dial, Some(near))
}

/// Bytes come out of one end of a wire.
pub fn carry(env: &mut Env, wire: usize, pipe: usize, bytes: Vec<u8>) {
    let other = env.wires.other(wire, pipe);
    env.net.write(other, bytes, (env.now_us, &mut env.queue, &mut env.rng));
}

/// One end of a wire was closed by its server: so is the other.
pub fn ended(env: &mut Env, wire: usize, pipe: usize) {
    let other = env.wires.other(wire, pipe);
    env.net.abandon(pipe);
    env.net.close(other, false, (env.now_us, &mut env.queue, &mut env.rng));
}

/// Breaks a wire that lives, if there is one.
pub fn cut(env: &mut Env) {
    let living: Vec<usize> = (0..env.wires.all.len()).filter(|wire| env.net.living(env.wires.all[*wire].0)).collect();
    if living.is_empty() {
        return;
    }
    let (near, far) = env.wires.all[*env.rng.pick(&living)];
    env.trace(|| format!("wire cut ({near}, {far})"));
    env.wires.cuts += 1;
    env.oracle.wires_cut = true;
    for pipe in [near, far] {
        env.net.close(pipe, true, (env.now_us, &mut env.queue, &mut env.rng));
    }
}

/// Breaks one now and then.
pub fn unrest(env: &mut Env) {
    if env.operations > 0 {
        cut(env);
        let at_us = env.now_us + env.rng.between(1, 100 * env.plan.gap_us);
        env.queue.push(at_us, Event::WireCut);
    }
}
