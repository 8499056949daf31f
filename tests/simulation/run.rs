//! One seed from its start to its verdict: clients arrive, disturb each other, fall quiet, are judged, and
//! leave; then every table must be empty.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{
    client::{Client, Profile},
    coverage::Coverage,
    disk::Fault,
    links,
    node::Stage,
    oracle::{Verdict, loss::Explained, subscriptions::Wanted, tables},
    plan::{Plan, Plant, Worlds},
    rng::Rng,
    world::{Event, World},
};

/// Virtual time for everything to settle.
const SETTLE_US: u64 = 3_600_000_000;
/// Virtual time for the operations.
const CHAOS_US: u64 = 36_000_000_000;
/// Delays of wills and the lives of short sessions are over after this.
const TIMERS_US: u64 = 12_000_000;

/// A node whose disks work takes everything again within this time.
const HEAL_US: u64 = 60_000_000;

/// Runs a seed; its verdict and what it touched.
pub fn run(seed: u64, worlds: Worlds, plant: Option<Plant>, tracing: bool) -> (Verdict, Coverage) {
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(seed, worlds, plant, &mut rng);
        if tracing {
            println!("{:?} {:?} {:?} trouble {}", plan.durability, plan.disk, plan.crash, plan.trouble);
        }
        let mut world = World::new(plan, rng, tracing);
        let verdict = world.live();
        world.account();
        (verdict, world.env.coverage)
    }));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        (Err(format!("panicked: {}", text.unwrap_or_default())), Coverage::default())
    })
}

impl World {
    fn live(&mut self) -> Verdict {
        self.run_until("the nodes", SETTLE_US, |world| world.nodes.iter().all(|node| node.stage == Stage::Up))?;
        let watchers = self.arrive()?;
        self.run_until("the operations", CHAOS_US, |world| world.env.operations == 0)?;
        self.heal()?;
        self.fall_quiet()?;
        if self.env.plan.crash.every_us > 0 && self.env.rng.percent(50) {
            // What a crash in the middle of nothing would lose was never kept.
            self.crash_at_rest()?;
            self.fall_quiet()?;
        }
        self.judge(&watchers)?;
        if self.env.plan.clusters > 1 {
            self.cross()?;
        }
        self.leave()?;
        self.empty()?;
        self.over = true;
        if self.env.plan.crash.every_us > 0 && self.env.plan.keeps() {
            self.crash_at_rest()?;
            self.empty()?;
        }
        Ok(())
    }

    /// Whatever was broken works again, and so do the nodes.
    fn heal(&mut self) -> Verdict {
        let clusters = self.env.plan.clusters;
        for cluster in 0..clusters {
            if self.nodes[cluster].fault != Fault::None {
                self.trouble(cluster);
            }
        }
        self.run_until("the nodes to accept again", HEAL_US + 2 * self.env.plan.crash.down_us, |world| {
            let up = world.env.open.iter().all(|open| *open);
            up && world.living().all(|sim| !sim.brain.log_refuses())
        })
    }

    /// All nodes die while nothing happens, and come back.
    fn crash_at_rest(&mut self) -> Verdict {
        for cluster in 0..self.env.plan.clusters {
            let power = self.env.rng.percent(self.env.plan.crash.power);
            self.crash(cluster, power);
        }
        self.run_until("the nodes to come back", SETTLE_US, |world| world.env.open.iter().all(|open| *open))
    }

    fn empty(&mut self) -> Verdict {
        for sim in self.living() {
            let linked = self.env.plan.clusters > 1;
            tables::check_empty(&format!("shard {:?}", sim.at), sim.brain.gauges(), sim.brain.queued(), linked)?;
        }
        Ok(())
    }

    /// Watchers of wills first, then everybody else.
    fn arrive(&mut self) -> Result<Vec<usize>, String> {
        let clusters = self.env.plan.clusters;
        let watchers: Vec<usize> = (0..clusters).map(|cluster| self.add_client(cluster, Profile::watcher())).collect();
        for &watcher in &watchers {
            self.clients[watcher].connect(&mut self.env, true);
        }
        self.settle("the watchers' CONNECT")?;
        for &watcher in &watchers {
            self.clients[watcher].subscribe_to(&mut self.env, vec![wanted("w/#", 2)], 0);
        }
        self.settle("the watchers' SUBSCRIBE")?;
        for cluster in 0..clusters {
            for _ in 0..self.env.plan.clients {
                let profile = Profile::draw(&mut self.env.rng, self.env.plan.small_packets);
                let client = self.add_client(cluster, profile);
                self.env.queue.push(self.env.now_us + 1, Event::Client(client));
            }
        }
        if clusters > 1 && self.env.plan.unrest > 0 {
            self.env.queue.push(self.env.now_us + 1, Event::WireCut);
        }
        if self.env.plan.trouble {
            let at_us = self.env.now_us + 100 * self.env.plan.gap_us;
            (0..clusters).for_each(|cluster| self.env.queue.push(at_us, Event::Trouble(cluster)));
        }
        Ok(watchers)
    }

    /// Everybody connects, acknowledges what is owed, and asks for nothing more.
    fn fall_quiet(&mut self) -> Verdict {
        self.env.trace(|| "quiet".into());
        for client in &mut self.clients {
            client.quiet = true;
            client.comes_back = true;
            if client.conn.as_ref().is_some_and(|conn| conn.leaving || conn.crashed_us.is_some()) {
                client.cut(&mut self.env, false);
            }
            if client.conn.is_none() {
                client.connect(&mut self.env, false);
            }
        }
        self.settle("the quiet phase")?;
        // Whatever was published without an answer is proved by one that follows.
        self.clients.iter_mut().for_each(|client| client.ping(&mut self.env));
        self.settle("the last PINGREQ")?;
        let end_us = self.env.now_us + TIMERS_US;
        self.run_until("the timers", SETTLE_US, |world| world.env.now_us > end_us)?;
        self.settle("what the timers caused")
    }

    fn settle(&mut self, what: &str) -> Verdict {
        self.run_until(what, SETTLE_US, |world| {
            world.clients.iter().all(|client| client.left() || client.settled()) && world.quiet()
        })
    }

    fn judge(&mut self, watchers: &[usize]) -> Verdict {
        for (cluster, &watcher) in watchers.iter().enumerate() {
            let explained = self.explained(cluster);
            self.env.oracle.check_loss(cluster, explained)?;
            self.env.oracle.check_groups(cluster, explained)?;
            if let Some(epoch) = self.clients[watcher].epoch {
                self.env.oracle.check_wills(
                    cluster,
                    epoch,
                    explained.reliable + explained.unreliable,
                    &self.env.net,
                )?;
            }
            let store = self.store(cluster);
            if explained.retained == 0 {
                self.env.oracle.check_store(cluster, &store)?;
            }
            if explained.reliable + explained.retained == 0 {
                let sheds_qos0 = explained.unreliable > 0;
                self.env.oracle.check_followers(cluster, &store, sheds_qos0)?;
                self.env.oracle.check_continuity(cluster, sheds_qos0)?;
            }
            self.judge_replay(cluster)?;
        }
        Ok(())
    }

    fn explained(&self, cluster: usize) -> Explained {
        let count = |names: &[&str]| self.counted(cluster, |name| names.contains(&name));
        let reliable = count(&["shed_queue_full", "shed_expired", "shed_too_large"]);
        let unreliable = reliable + count(&["shed_slow_subscriber"]);
        let groups = reliable + count(&["shed_no_member"]);
        let retained = count(&["shed_retained_full", "shed_retained_payload"]);
        Explained { reliable, unreliable, groups, retained }
    }

    /// A new subscriber to everything gets exactly what is retained.
    fn judge_replay(&mut self, cluster: usize) -> Verdict {
        let sheds = |world: &World| {
            world.explained(cluster).unreliable + world.counted(cluster, |name| name == "shed_log_full")
        };
        let before = sheds(self);
        let client = self.add_client(cluster, Profile::watcher());
        self.clients[client].connect(&mut self.env, true);
        self.settle("the last CONNECT")?;
        self.clients[client].subscribe_to(&mut self.env, vec![wanted("#", 1)], 0);
        self.settle("the last SUBSCRIBE")?;
        let store = self.store(cluster);
        match self.clients[client].epoch {
            Some(epoch) if sheds(self) == before => self.env.oracle.check_replayed(epoch, &store),
            _ => Ok(()),
        }
    }

    /// Both links stand and nobody comes or goes: what is published crosses, wires that break or not.
    fn cross(&mut self) -> Verdict {
        for round in 0..4 {
            self.run_until("the links to stand", SETTLE_US, |world| world.linked() && world.quiet())?;
            let sheds = self.sheds_abroad();
            let mut numbers = Vec::new();
            for at in 0..self.clients.len() {
                for _ in 0..self.env.rng.below(4) {
                    let topic = self.env.rng.pick(&["t/a", "t/b", "t/a/x", "t"]).to_string();
                    numbers.extend(self.clients[at].publish_on(&mut self.env, topic, 1, false, false));
                }
                if round > 0 && self.env.rng.percent(30) {
                    let end_us = self.env.now_us + self.env.rng.below(30_000);
                    self.run_until("a moment", SETTLE_US, |world| world.env.now_us > end_us)?;
                    links::cut(&mut self.env);
                }
            }
            self.run_until("the links to stand again", SETTLE_US, |world| world.linked() && world.quiet())?;
            self.settle("what crosses")?;
            self.env.oracle.check_crossed(&numbers, self.sheds_abroad() - sheds)?;
            self.env.coverage.one("crossings_over_cuts", u64::from(round > 0));
        }
        self.nothing_crosses_unwanted()
    }

    fn linked(&self) -> bool {
        self.living().flat_map(|sim| sim.brain.link_status()).all(|link| link.status == "connected")
    }

    fn sheds_abroad(&self) -> u64 {
        let clusters = 0..self.env.plan.clusters;
        let sheds = clusters.map(|cluster| {
            self.explained(cluster).unreliable + self.counted(cluster, |name| name.starts_with("shed_link"))
        });
        sheds.sum()
    }

    /// After the last subscriber over there has left, nothing is offered to the link any more.
    fn nothing_crosses_unwanted(&mut self) -> Verdict {
        let topic = "t/a";
        for cluster in 0..self.env.plan.clusters {
            for client in self.clients.iter_mut().filter(|client| client.cluster != cluster) {
                client.unsubscribe_matching(&mut self.env, topic);
            }
            self.settle("the last UNSUBSCRIBE")?;
            self.run_until("the links to stand", SETTLE_US, World::linked)?;
            let end_us = self.env.now_us + TIMERS_US;
            self.run_until("the routes to go", SETTLE_US, |world| world.env.now_us > end_us)?;
            let Some(publisher) = self.clients.iter().position(|client| client.cluster == cluster) else { continue };
            let matched = |world: &World| world.counted(cluster, |name| name == "link_matched");
            let before = matched(self);
            self.clients[publisher].publish_on(&mut self.env, topic.into(), 1, false, false);
            self.settle("a publish that nobody wants")?;
            if matched(self) > before && self.env.oracle.unwanted_abroad(cluster, topic) {
                return Err(format!("{topic} was offered to a link of cluster {cluster}, and nobody there wants it"));
            }
            self.env.coverage.one("nothing_crossed_unwanted", 1);
        }
        Ok(())
    }

    /// Every session ends, every retained value goes.
    fn leave(&mut self) -> Verdict {
        self.env.trace(|| "everybody leaves".into());
        for client in &mut self.clients {
            client.profile.expiries = &[0];
            client.connect(&mut self.env, true);
        }
        self.settle("the last take-over")?;
        self.say_goodbye()?;
        for cluster in 0..self.env.plan.clusters {
            let sweeper = self.add_client(cluster, Profile { expiries: &[0], ..Profile::watcher() });
            self.clients[sweeper].connect(&mut self.env, true);
            self.settle("the sweeper's CONNECT")?;
            for topic in self.store(cluster).into_keys() {
                self.clients[sweeper].publish_on(&mut self.env, topic, 1, true, true);
                self.settle("a deletion")?;
            }
        }
        self.say_goodbye()
    }

    fn say_goodbye(&mut self) -> Verdict {
        for client in self.clients.iter_mut().filter(|client| client.conn.is_some()) {
            client.disconnect(&mut self.env, false, None);
        }
        self.run_until("the goodbyes", SETTLE_US, |world| {
            let connections: u64 = world.living().map(|sim| sim.brain.gauges().connections).sum();
            let none = connections == 0 || world.env.plan.clusters > 1;
            none && world.clients.iter().all(Client::left) && world.quiet()
        })
    }
}

fn wanted(filter: &str, qos: u8) -> Wanted {
    Wanted { filter: filter.into(), qos, no_local: false, retain_as_published: false, handling: 0 }
}
