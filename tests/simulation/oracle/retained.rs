//! Retained values: the store ends with what the last acknowledged publish said, a new subscriber gets
//! exactly that, and who was there never ends with an older value.

use std::collections::BTreeMap;

use super::{
    Oracle, Verdict,
    arrival::Arrival,
    publishes::{Publish, Publishes},
    subscriptions::Epoch,
};

/// Notes a retained publish that arrived, live or replayed.
pub fn arrived(session: &mut Epoch, number: u64, publish: &Publish, arrival: &Arrival) {
    if arrival.retain {
        session.replayed.insert(number);
    }
    if publish.retain {
        session.retained.insert(publish.topic.clone(), Some(number));
    }
}

/// Notes an arrival without payload: only the deletion of a retained value is one.
pub fn deletion_arrived(session: &mut Epoch, publishes: &Publishes, arrival: &Arrival) -> Verdict {
    let sent = publishes.iter().any(|(_, p)| p.delete && p.topic == arrival.topic && p.cluster == session.cluster);
    if !arrival.payload.is_empty() || !sent {
        return Err(format!("nobody sent this: {arrival}"));
    }
    if session.matching(&arrival.topic).next().is_none() {
        return Err(format!("nobody subscribed: {arrival}"));
    }
    // Sent again, it may stand behind what came after it.
    if !arrival.dup {
        session.retained.insert(arrival.topic.clone(), None);
    }
    Ok(())
}

/// Every obligation of a publish is met or refused after this time.
const SETTLED_US: u64 = 100_000_000;
/// A replay is over after this time.
const REPLAY_US: u64 = 60_000_000;

/// Only one client publishes here, so its order is the order.
pub fn single_publisher(topic: &str) -> bool {
    topic.starts_with("r/")
}

impl Oracle {
    /// What the store of a cluster holds must be what the model allows: topic -> payload.
    pub fn check_store(&self, cluster: usize, store: &BTreeMap<String, Vec<u8>>) -> Verdict {
        for (topic, payload) in store {
            let number = self.publishes.read(payload).filter(|n| self.publishes.at(*n).topic == *topic);
            if number.is_none_or(|n| !self.publishes.at(n).retain) {
                return Err(format!("the retained value of {topic} is of no retained publish: {payload:?}"));
            }
        }
        let mut topics: BTreeMap<&str, Vec<(u64, &Publish)>> = BTreeMap::new();
        for (number, publish) in self.publishes.iter() {
            if publish.retain && publish.cluster == cluster && single_publisher(&publish.topic) {
                topics.entry(&publish.topic).or_default().push((number, publish));
            }
        }
        for (topic, history) in topics {
            let held = store.get(topic).map(|payload| self.publishes.read(payload));
            let sure = history.iter().rev().find(|(_, p)| p.done_us().is_some());
            let from = sure.map_or(0, |(_, p)| p.order);
            let fits = |(number, p): &(u64, &Publish)| {
                p.last_order >= from && if p.delete { held.is_none() } else { held == Some(Some(*number)) }
            };
            if !(history.iter().any(fits) || sure.is_none() && held.is_none()) {
                let last: Vec<String> =
                    history.iter().rev().take(4).map(|(n, _)| self.publishes.describe(*n)).collect();
                return Err(format!("the store holds {held:?} for {topic}, the last publishes are {last:#?}"));
            }
        }
        Ok(())
    }

    /// A living session that has a subscription to a topic of one publisher has seen its final value last.
    /// `sheds_qos0`: something may be missing of what has QoS 0.
    pub fn check_followers(&self, cluster: usize, store: &BTreeMap<String, Vec<u8>>, sheds_qos0: bool) -> Verdict {
        for (topic, payload) in store.iter().filter(|(topic, _)| single_publisher(topic)) {
            let Some(number) = self.publishes.read(payload) else { continue };
            let publish = self.publishes.at(number);
            // What a crash took from the store may have been seen, and what was refused there.
            // Nobody hears that the store has shed a value of QoS 0.
            let shed =
                |p: &Publish| p.qos == 0 && self.refused(cluster, p.sent_us, p.sent_us.saturating_add(SETTLED_US));
            let later = |p: &Publish| {
                let after = p.last_order > publish.last_order && shed(p);
                p.topic == *topic && (after || p.last_order >= publish.last_order && (p.shaken || p.refused))
            };
            // One of its destinations may have refused what its owner stored, and then nobody acknowledged it.
            let until_us = publish.sent_us.saturating_add(SETTLED_US);
            let parted = publish.done_us().is_none() && self.refused(cluster, publish.sent_us, until_us);
            if parted || self.publishes.iter().any(|(_, p)| later(p)) {
                continue;
            }
            for session in self.epochs.iter().filter(|e| e.lives() && e.cluster == cluster) {
                let follows = session.matching(topic).any(|s| {
                    let uncut = !sheds_qos0 && session.connected_since(s.sent_us);
                    let reliable = publish.qos.min(s.wanted.qos) > 0 || uncut;
                    let own = s.wanted.no_local && publish.publisher == session.client;
                    // Either it was there when the value was published, or the value was replayed to it.
                    let there = s.certain(publish.sent_us, u64::MAX) && !own;
                    // A replay that a crash cuts is not taken up again.
                    let cut = self.crashes.iter().any(|(at, at_us)| *at == cluster && *at_us >= s.sent_us);
                    // What a replay brings is shed where the log of the session takes no more.
                    let shed = self.refused(cluster, s.sent_us, s.sent_us.saturating_add(REPLAY_US));
                    let asked = s.wanted.handling == 0 && s.certain(u64::MAX, u64::MAX) && !cut && !shed;
                    !s.shared && reliable && (there || asked && !s.wanted.no_local)
                });
                let last = session.retained.get(topic);
                if follows && last != Some(&Some(number)) {
                    let wanted = self.publishes.describe(number);
                    let client = session.client;
                    return Err(format!("client {client} ends with {last:?} of {topic}, the store with {wanted}"));
                }
            }
        }
        Ok(())
    }

    /// A new subscriber to everything received exactly the store.
    pub fn check_replayed(&self, epoch: usize, store: &BTreeMap<String, Vec<u8>>) -> Verdict {
        let got = &self.epochs[epoch].retained;
        for (topic, payload) in store {
            let number = self.publishes.read(payload);
            if got.get(topic) != Some(&number) {
                return Err(format!(
                    "a new subscriber got {:?} for {topic}, the store holds {number:?}",
                    got.get(topic)
                ));
            }
        }
        match got.keys().find(|topic| !store.contains_key(*topic)) {
            Some(topic) => Err(format!("a new subscriber got a value of {topic}, the store has none")),
            None => Ok(()),
        }
    }
}
