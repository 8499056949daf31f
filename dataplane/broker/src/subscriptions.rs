//! The subscriptions of the sessions that are at home on this shard: filter -> who, with which options.
//! Exact (unlike interest): a candidate is compared with the filter's text before it counts.
//! Shared subscriptions do not stand here; their group's owner shard keeps them ([`crate::groups`]).

use alloc::{boxed::Box, vec::Vec};

use ahash::RandomState;
use hashbrown::{HashSet, HashTable};
use mqtt::{topic::matches, types::Qos};
use slab::Slab;

use crate::{access::Granted, index::Shapes, tree::LevelTree};

/// One session's subscription to one filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subscription {
    /// Slab index of the session on this shard.
    pub session: u32,
    /// Subscription identifier of MQTT 5; 0 is none.
    pub id: u32,
    /// Granted options.
    pub options: Options,
}

/// Options of a subscription (MQTT 5, 3.8.3.1) in one byte, and what its rights leave of it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Options(u8);

/// What the rights of its session leave of a subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guard {
    /// Everything.
    Open,
    /// Each message is asked for.
    Guarded,
    /// Nothing is delivered.
    Muted,
}

impl From<Granted> for Guard {
    fn from(granted: Granted) -> Guard {
        match granted {
            Granted::Whole => Guard::Open,
            Granted::Guarded => Guard::Guarded,
            Granted::Refused => Guard::Muted,
        }
    }
}

/// What is granted; the other bits never leave this shard.
const GRANTED: u8 = 15;
const GUARDED: u8 = 16;
const MUTED: u8 = 32;

impl Options {
    /// Options as granted.
    pub fn new(qos: Qos, no_local: bool, retain_as_published: bool) -> Options {
        Options(qos as u8 | u8::from(no_local) << 2 | u8::from(retain_as_published) << 3)
    }

    /// From [`Options::bits`].
    pub fn from_bits(bits: u8) -> Options {
        Options(bits & GRANTED)
    }

    /// For frames and records, without the guard.
    pub fn bits(self) -> u8 {
        self.0 & GRANTED
    }

    /// The same under another guard.
    pub fn with_guard(self, guard: Guard) -> Options {
        let bits = match guard {
            Guard::Open => 0,
            Guard::Guarded => GUARDED,
            Guard::Muted => MUTED,
        };
        Options(self.0 & GRANTED | bits)
    }

    /// What the rights of its session leave of it.
    pub fn guard(self) -> Guard {
        match (self.0 & MUTED, self.0 & GUARDED) {
            (0, 0) => Guard::Open,
            (0, _) => Guard::Guarded,
            _ => Guard::Muted,
        }
    }

    /// Not every message may be delivered.
    #[inline]
    pub fn restricted(self) -> bool {
        self.0 & (GUARDED | MUTED) != 0
    }

    /// Maximum QoS.
    #[inline]
    pub fn qos(self) -> Qos {
        Qos::from_bits(self.0 & 3).unwrap_or(Qos::AtMostOnce)
    }

    /// Do not send a client its own messages.
    #[inline]
    pub fn no_local(self) -> bool {
        self.0 & 4 != 0
    }

    /// Keep the RETAIN flag of live messages.
    #[inline]
    pub fn retain_as_published(self) -> bool {
        self.0 & 8 != 0
    }
}

/// What a change did to the set of filters of this shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The first subscription to this filter here: interest begins.
    First,
    /// The last one is gone: interest ends.
    Last,
    /// Others remain, or options were replaced.
    Same,
}

/// Filter -> subscriptions, for one shard.
pub struct Subscriptions {
    shapes: Shapes,
    /// Entry by key; several filters may share a key, text decides.
    table: HashTable<(u64, u32)>,
    unusual: LevelTree<u32>,
    /// Entry by text, for changes.
    by_text: HashTable<u32>,
    entries: Slab<Entry>,
    hasher: RandomState,
    count: usize,
}

struct Entry {
    filter: Box<str>,
    in_tree: bool,
    subscriptions: Vec<Subscription>,
}

/// The filters of one session, as entry indices; owned by the session, read and changed here only.
pub type Filters = HashSet<u32, RandomState>;

impl Subscriptions {
    /// No subscriptions yet.
    pub fn new(seed: u64, shapes_max: usize) -> Subscriptions {
        Subscriptions {
            shapes: Shapes::new(seed, shapes_max),
            table: HashTable::new(),
            unusual: LevelTree::new(seed),
            by_text: HashTable::new(),
            entries: Slab::new(),
            hasher: RandomState::with_seeds(seed, 5, 6, 7),
            count: 0,
        }
    }

    /// Number of subscriptions of all sessions.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds or replaces the subscription of one session. Returns the entry, what it changed, and whether
    /// the session had subscribed to this filter before.
    pub fn insert(&mut self, filter: &str, subscription: Subscription) -> (u32, Change, bool) {
        let Some(at) = self.entry(filter) else {
            let at = self.add_entry(filter);
            self.entries[at as usize].subscriptions.push(subscription);
            self.count += 1;
            return (at, Change::First, false);
        };
        let subscriptions = &mut self.entries[at as usize].subscriptions;
        match subscriptions.iter_mut().find(|s| s.session == subscription.session) {
            Some(existing) => {
                *existing = subscription;
                (at, Change::Same, true)
            }
            None => {
                subscriptions.push(subscription);
                self.count += 1;
                (at, Change::Same, false)
            }
        }
    }

    /// Removes one session's subscription to `filter`; `None` when there was none.
    pub fn remove(&mut self, filter: &str, session: u32) -> Option<(u32, Change)> {
        let at = self.entry(filter)?;
        self.remove_at(at, session).map(|change| (at, change))
    }

    /// Removes one session's subscription at an entry. When it was the last one, the entry is gone after this.
    pub fn remove_at(&mut self, at: u32, session: u32) -> Option<Change> {
        let entry = self.entries.get_mut(at as usize)?;
        let i = entry.subscriptions.iter().position(|s| s.session == session)?;
        entry.subscriptions.swap_remove(i);
        self.count -= 1;
        if !entry.subscriptions.is_empty() {
            return Some(Change::Same);
        }
        self.drop_entry(at);
        Some(Change::Last)
    }

    /// The filter of an entry.
    pub fn filter(&self, at: u32) -> &str {
        self.entries.get(at as usize).map_or("", |e| &e.filter)
    }

    /// The subscription of a session at an entry.
    pub fn subscription(&self, at: u32, session: u32) -> Option<Subscription> {
        let entry = self.entries.get(at as usize)?;
        entry.subscriptions.iter().find(|s| s.session == session).copied()
    }

    /// Sets what the rights of a session leave of its subscription at an entry.
    pub fn set_guard(&mut self, at: u32, session: u32, guard: Guard) {
        let entry = self.entries.get_mut(at as usize);
        let found = entry.and_then(|entry| entry.subscriptions.iter_mut().find(|s| s.session == session));
        if let Some(subscription) = found {
            subscription.options = subscription.options.with_guard(guard);
        }
    }

    /// The entry of `filter`, if anybody here subscribed to it.
    pub fn entry(&self, filter: &str) -> Option<u32> {
        let entries = &self.entries;
        self.by_text.find(self.hasher.hash_one(filter), |&at| *entries[at as usize].filter == *filter).copied()
    }

    /// Every filter that somebody here subscribed to.
    pub fn filters(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(_, entry)| &*entry.filter)
    }

    /// Appends the entries that match `topic` to `found`.
    #[inline]
    pub fn matching(&self, topic: &str, found: &mut Vec<u32>) {
        if self.entries.is_empty() {
            return;
        }
        self.shapes.probes(topic, |key| {
            for &(_, at) in self.table.iter_hash(key).filter(|(k, _)| *k == key) {
                if matches(&self.entries[at as usize].filter, topic) {
                    found.push(at);
                }
            }
        });
        self.unusual.filters_matching(topic, |&at| found.push(at));
    }

    /// The subscriptions of an entry.
    #[inline]
    pub fn at(&self, at: u32) -> &[Subscription] {
        &self.entries[at as usize].subscriptions
    }

    fn add_entry(&mut self, filter: &str) -> u32 {
        let key = self.shapes.add(filter);
        let at = self.entries.insert(Entry { filter: filter.into(), in_tree: key.is_none(), subscriptions: Vec::new() })
            as u32;
        match key {
            Some(key) => {
                self.table.insert_unique(key, (key, at), |(k, _)| *k);
            }
            None => {
                self.unusual.insert(filter, at);
            }
        }
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.by_text.insert_unique(hasher.hash_one(filter), at, |&at| hasher.hash_one(&*entries[at as usize].filter));
        at
    }

    fn drop_entry(&mut self, at: u32) {
        let hash = self.hasher.hash_one(&*self.entries[at as usize].filter);
        if let Ok(entry) = self.by_text.find_entry(hash, |&a| a == at) {
            entry.remove();
        }
        let entry = self.entries.remove(at as usize);
        if entry.in_tree {
            self.unusual.remove(&entry.filter);
        } else if let Some(key) = self.shapes.key(&entry.filter) {
            if let Ok(place) = self.table.find_entry(key, |&(k, a)| k == key && a == at) {
                place.remove();
            }
            self.shapes.remove(&entry.filter);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::{collections::BTreeMap, string::String};

    use super::*;

    fn subscription(session: u32) -> Subscription {
        Subscription { session, id: 0, options: Options::new(Qos::AtLeastOnce, false, true) }
    }

    /// A small generator: the same filters and topics in every run of a seed.
    fn path(state: &mut u64, wild: bool) -> String {
        let mut next = |n: u64| {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            *state % n
        };
        let levels = 1 + next(3);
        let mut path = String::new();
        for i in 0..levels {
            if i > 0 {
                path.push('/');
            }
            match next(if wild { 6 } else { 4 }) {
                0 => path.push('a'),
                1 => path.push('b'),
                2 => path.push_str(if i == 0 { "$x" } else { "" }),
                3 => path.push('c'),
                4 => path.push('+'),
                _ => {
                    path.push('#');
                    break;
                }
            }
        }
        path
    }

    #[test]
    fn a_random_history_agrees_with_a_list_of_pairs() {
        for seed in 1..200u64 {
            let mut state = seed;
            let mut subscriptions = Subscriptions::new(seed, 4);
            let mut model: BTreeMap<(String, u32), ()> = BTreeMap::new();
            for _ in 0..60 {
                let filter = path(&mut state, true);
                let session = (state % 5) as u32;
                let others = model.keys().filter(|(f, s)| *f == filter && *s != session).count();
                if state & 64 == 0 {
                    let had = model.insert((filter.clone(), session), ()).is_some();
                    let (_, change, before) = subscriptions.insert(&filter, subscription(session));
                    assert_eq!(before, had);
                    assert_eq!(change == Change::First, others == 0 && !had);
                } else {
                    let had = model.remove(&(filter.clone(), session)).is_some();
                    let change = subscriptions.remove(&filter, session).map(|(_, change)| change);
                    assert_eq!(change.is_some(), had);
                    assert_eq!(change == Some(Change::Last), had && others == 0);
                }
                let topic = path(&mut state, false);
                let mut found = Vec::new();
                subscriptions.matching(&topic, &mut found);
                let mut got: Vec<(String, u32)> = found
                    .iter()
                    .flat_map(|&at| subscriptions.at(at).iter().map(move |s| (at, s.session)))
                    .map(|(at, session)| (subscriptions.filter(at).into(), session))
                    .collect();
                got.sort();
                let want: Vec<(String, u32)> = model.keys().filter(|(f, _)| matches(f, &topic)).cloned().collect();
                assert_eq!(got, want, "seed {seed} topic {topic:?}");
            }
            assert_eq!(subscriptions.len(), model.len());
        }
    }
}
