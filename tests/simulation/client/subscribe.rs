//! The client as subscriber: what it asks for, and what it gives up.

use std::collections::BTreeSet;

use mqtt::{
    codec::{Suback, SubscribeEntry, encode},
    types::{PacketId, Qos, RetainHandling, Version},
};

use super::{Awaits, Client};
use crate::{
    oracle::subscriptions::Wanted,
    world::{Env, Event},
};

/// Filters of everybody.
const PLAIN: [&str; 10] = ["t/a", "t/b", "t/+", "t/#", "t/+/x", "t/a/#", "r/#", "m/#", "m/0", "w/#"];
/// Filters that also match the topics of shared groups: for clients that join none.
const WIDE: [&str; 6] = ["#", "+/a", "+/+/+", "s/#", "s/a", "+/#"];
/// Shared filters.
const SHARED: [&str; 5] = ["$share/g/s/#", "$share/g/s/a", "$share/h/s/+", "$share/h/s/b", "$share/k/s/a"];

impl Client {
    fn draw_filter(&self, env: &mut Env) -> String {
        let rng = &mut env.rng;
        match rng.below(10) {
            0..4 if self.profile.groups => rng.pick(&SHARED).to_string(),
            0..4 => rng.pick(&WIDE).to_string(),
            4..6 => format!("r/{}/{}", rng.below(env.plan.clients as u64 + 1), rng.pick(&["0", "1", "+"])),
            _ => rng.pick(&PLAIN).to_string(),
        }
    }

    /// Asks for one to three filters.
    pub fn subscribe(&mut self, env: &mut Env) {
        let mut filters: Vec<String> = Vec::new();
        for _ in 0..env.rng.between(1, 3) {
            let filter = self.draw_filter(env);
            let busy = self.epoch.is_some_and(|epoch| env.oracle.epochs[epoch].in_change(&filter));
            if !busy && !filters.contains(&filter) {
                filters.push(filter);
            }
        }
        let v5 = self.profile.version == Version::V5;
        let wanted = filters.into_iter().map(|filter| {
            let shared = filter.starts_with("$share/");
            Wanted {
                qos: *env.rng.pick(&[0, 1, 1, 2, 2]),
                no_local: v5 && !shared && env.rng.percent(20),
                retain_as_published: v5 && env.rng.percent(30),
                handling: if v5 { *env.rng.pick(&[0, 0, 0, 1, 2]) } else { 0 },
                filter,
            }
        });
        let wanted: Vec<Wanted> = wanted.collect();
        let id = if v5 && env.rng.percent(40) { env.rng.between(1, 200_000) as u32 } else { 0 };
        self.subscribe_to(env, wanted, id);
    }

    /// One SUBSCRIBE.
    pub fn subscribe_to(&mut self, env: &mut Env, wanted: Vec<Wanted>, id: u32) {
        let Some(epoch) = self.epoch else { return };
        if wanted.is_empty() {
            return;
        }
        let entries: Vec<SubscribeEntry<'_>> = wanted
            .iter()
            .map(|wanted| SubscribeEntry {
                filter: &wanted.filter,
                qos: Qos::from_bits(wanted.qos).unwrap_or_default(),
                no_local: wanted.no_local,
                retain_as_published: wanted.retain_as_published,
                retain_handling: RetainHandling::from_bits(wanted.handling).unwrap_or_default(),
            })
            .collect();
        let packet = self.packet();
        let mut bytes = Vec::new();
        let Some(packet_id) = PacketId::new(packet) else { return };
        encode::subscribe(&mut bytes, self.profile.version, packet_id, (id != 0).then_some(id), &entries);
        env.trace(|| format!("{} subscribes {wanted:?} id {id}", self.id));
        for wanted in &wanted {
            if !self.filters.contains(&wanted.filter) {
                self.filters.push(wanted.filter.clone());
            }
        }
        let now_us = env.now_us;
        let subscriptions =
            wanted.into_iter().map(|wanted| env.oracle.epochs[epoch].subscribe(wanted, id, now_us)).collect();
        self.ask(env, Awaits::Suback, packet, subscriptions);
        self.write(env, bytes);
    }

    /// SUBACK.
    pub(super) fn suback(&mut self, env: &mut Env, suback: &Suback<'_>) {
        let Some(asked) = self.answered(env, Awaits::Suback, suback.packet_id.get()) else { return };
        let Some(epoch) = self.epoch else { return };
        let reasons: Vec<u8> = suback.reasons.map(|reason| reason.code()).collect();
        env.trace(|| format!("{} hears SUBACK {} {reasons:?}", self.id, asked.packet));
        if reasons.len() != asked.subscriptions.len() {
            return env.fail(&format!("{}: SUBACK with {} reasons for {:?}", self.id, reasons.len(), asked));
        }
        for (subscription, reason) in asked.subscriptions.iter().zip(reasons) {
            if env.plan.trouble && (reason == 0x80 || reason == 0x97) {
                env.oracle.epochs[epoch].refused(*subscription);
                continue;
            }
            let qos = env.oracle.epochs[epoch].subscriptions[*subscription].wanted.qos;
            if reason != qos {
                env.fail(&format!("{}: SUBACK grants {reason:#x} for QoS {qos}", self.id));
            }
            env.oracle.epochs[epoch].granted(*subscription, env.now_us);
        }
        if !self.quiet && env.rng.percent(20) {
            // Somebody hears that the subscription stands, and publishes at once.
            let others = env.plan.clients as u64;
            let first = self.cluster_first(env);
            let other = first + env.rng.below(others) as usize;
            env.queue.push(env.now_us + 1, Event::Publish(other));
        }
    }

    /// The first ordinary client of this client's cluster: watchers come before all of them.
    fn cluster_first(&self, env: &Env) -> usize {
        env.plan.clusters + self.cluster * env.plan.clients
    }

    /// Gives one filter up.
    pub fn unsubscribe(&mut self, env: &mut Env) {
        let (Some(epoch), false) = (self.epoch, self.filters.is_empty()) else { return };
        let filter = env.rng.pick(&self.filters).clone();
        if !env.oracle.epochs[epoch].in_change(&filter) {
            self.unsubscribe_from(env, epoch, filter);
        }
    }

    /// Gives up everything that matches a topic.
    pub fn unsubscribe_matching(&mut self, env: &mut Env, topic: &str) {
        let Some(epoch) = self.epoch else { return };
        let matching = env.oracle.epochs[epoch].matching(topic).filter(|s| !s.shared && s.left_us.is_none());
        let filters: BTreeSet<String> = matching.map(|s| s.wanted.filter.clone()).collect();
        for filter in filters {
            self.unsubscribe_from(env, epoch, filter);
        }
    }

    fn unsubscribe_from(&mut self, env: &mut Env, epoch: usize, filter: String) {
        self.filters.retain(|f| *f != filter);
        let packet = self.packet();
        let Some(packet_id) = PacketId::new(packet) else { return };
        let mut bytes = Vec::new();
        encode::unsubscribe(&mut bytes, self.profile.version, packet_id, &[&filter]);
        env.trace(|| format!("{} unsubscribes {filter}", self.id));
        let subscriptions = env.oracle.epochs[epoch].unsubscribe(&filter, env.now_us);
        self.ask(env, Awaits::Unsuback, packet, subscriptions);
        self.write(env, bytes);
    }

    /// UNSUBACK.
    pub(super) fn unsuback(&mut self, env: &mut Env, packet: u16) {
        let Some(asked) = self.answered(env, Awaits::Unsuback, packet) else { return };
        let Some(epoch) = self.epoch else { return };
        for subscription in asked.subscriptions {
            env.oracle.epochs[epoch].left(subscription, env.now_us);
        }
    }
}
