//! What this node wants from one remote: the desired set, narrowed to the link's `topics`, and what of it the remote
//! has not been told.
//!
//! Owned by the requester (owner shard of the link's name). Keys are (filter, route id) pairs, sorted, so a bootstrap
//! is a walk with a cursor that survives changes in between, and a seed replays exactly. Always true: an entry is in
//! at most one of `adds` and `deletes`; what is in neither is as the remote knows it, or on its way.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Bound;

use crate::intersect;
use crate::wire::{RouteBatch, RouteOp};

/// A filter and what makes the want unique.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct RouteKey {
    filter: String,
    route_id: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Route {
    /// Local wants that intersect to this filter.
    refs: u32,
    /// Whether the remote has it, once everything sent so far has arrived.
    known: Known,
}

/// `Maybe`: an operation on it was refused or cut off, and nobody knows whether it was applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Known {
    #[default]
    No,
    Maybe,
    Yes,
}

/// What [`crate::requester::Requester::want`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// It is wanted; so many filters are announced for it.
    Announced(usize),
    /// It has nothing in common with the link's `topics`: the remote is not told.
    Outside,
    /// `wants_max` or `routes_max` is reached: the remote is not told, and messages for it will be missing.
    Refused,
}

/// How much interest a requester keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InterestBounds {
    /// Different (filter, route id) pairs that this node wants, inside `topics` or not.
    pub(crate) wants_max: usize,
    /// Different pairs that the remote is told.
    pub(crate) routes_max: usize,
}

/// Changes of one batch, kept until the remote has acknowledged them.
pub(crate) type Sent = Vec<(RouteKey, Change)>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    Add,
    Delete,
}

/// Bounds of one batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchBounds {
    pub(crate) ops_max: u32,
    pub(crate) payload_bytes_max: usize,
}

#[derive(Debug)]
pub(crate) struct Interests {
    topics: Vec<String>,
    bounds: InterestBounds,
    wants: BTreeMap<RouteKey, u32>,
    table: BTreeMap<RouteKey, Route>,
    adds: BTreeSet<RouteKey>,
    deletes: BTreeSet<RouteKey>,
    oversize: BTreeSet<RouteKey>,
}

impl Interests {
    pub(crate) fn new(mut topics: Vec<String>, bounds: InterestBounds) -> Interests {
        intersect::reduce(&mut topics);
        Interests {
            topics,
            bounds,
            wants: BTreeMap::new(),
            table: BTreeMap::new(),
            adds: BTreeSet::new(),
            deletes: BTreeSet::new(),
            oversize: BTreeSet::new(),
        }
    }

    pub(crate) fn want(&mut self, filter: &str, route_id: &[u8]) -> Wanted {
        let key = RouteKey { filter: filter.into(), route_id: route_id.into() };
        let members = intersect::announced(filter, &self.topics);
        let known = self.wants.contains_key(&key);
        let full =
            self.wants.len() >= self.bounds.wants_max || self.table.len() + members.len() > self.bounds.routes_max;
        if !known && full {
            return Wanted::Refused;
        }
        *self.wants.entry(key).or_default() += 1;
        let count = members.len();
        if !known {
            for filter in members {
                self.raise(RouteKey { filter, route_id: route_id.into() }, 1);
            }
        }
        if count == 0 { Wanted::Outside } else { Wanted::Announced(count) }
    }

    pub(crate) fn unwant(&mut self, filter: &str, route_id: &[u8]) {
        let key = RouteKey { filter: filter.into(), route_id: route_id.into() };
        let Some(refs) = self.wants.get_mut(&key) else { return };
        *refs -= 1;
        if *refs > 0 {
            return;
        }
        self.wants.remove(&key);
        for filter in intersect::announced(filter, &self.topics) {
            self.lower(&RouteKey { filter, route_id: route_id.into() });
        }
    }

    /// Replaces `topics`: what both sets announce is not touched, so nothing that stays wanted is interrupted.
    pub(crate) fn set_topics(&mut self, mut topics: Vec<String>) {
        intersect::reduce(&mut topics);
        self.topics = topics;
        let mut target: BTreeMap<RouteKey, u32> = BTreeMap::new();
        for want in self.wants.keys() {
            for filter in intersect::announced(&want.filter, &self.topics) {
                *target.entry(RouteKey { filter, route_id: want.route_id.clone() }).or_default() += 1;
            }
        }
        let gone: Vec<RouteKey> = self.table.keys().filter(|key| !target.contains_key(*key)).cloned().collect();
        for (key, refs) in target {
            match self.table.get_mut(&key) {
                Some(route) if route.refs > 0 => route.refs = refs,
                _ => self.raise(key, refs),
            }
        }
        for key in gone {
            if let Some(route) = self.table.get_mut(&key)
                && route.refs > 0
            {
                route.refs = 1;
                self.lower(&key);
            }
        }
    }

    fn raise(&mut self, key: RouteKey, refs: u32) {
        let route = self.table.entry(key.clone()).or_default();
        let first = route.refs == 0;
        route.refs += refs;
        if !first {
            return;
        }
        self.deletes.remove(&key);
        if route.known != Known::Yes {
            self.adds.insert(key);
        }
    }

    fn lower(&mut self, key: &RouteKey) {
        let Some(route) = self.table.get_mut(key) else { return };
        route.refs = route.refs.saturating_sub(1);
        if route.refs > 0 {
            return;
        }
        self.adds.remove(key);
        self.oversize.remove(key);
        if route.known == Known::No {
            self.table.remove(key);
        } else {
            self.deletes.insert(key.clone());
        }
    }

    pub(crate) fn has_changes(&self) -> bool {
        !self.adds.is_empty() || !self.deletes.is_empty()
    }

    pub(crate) fn changes(&self) -> usize {
        self.adds.len() + self.deletes.len()
    }

    /// Filters that are wanted; those whose deletion is still to be sent are not counted.
    pub(crate) fn announced(&self) -> usize {
        self.table.len() - self.deletes.len()
    }

    pub(crate) fn oversize(&self) -> usize {
        self.oversize.len()
    }

    /// A new connection may take larger packets than the last one.
    pub(crate) fn retry_oversize(&mut self) {
        self.adds.append(&mut self.oversize);
    }

    /// A bootstrap begins. The remote will forget what it does not bring, so what waits for its deletion must be
    /// announced like something new if it is wanted again after the walk has passed it.
    pub(crate) fn begin_bootstrap(&mut self) {
        for key in &self.deletes {
            if let Some(route) = self.table.get_mut(key) {
                route.known = Known::Maybe;
            }
        }
    }

    /// Fills `batch` with everything wanted after `cursor`. Returns where to go on, or None at the end.
    pub(crate) fn fill_bootstrap(
        &mut self,
        cursor: Option<&RouteKey>,
        bounds: BatchBounds,
        batch: &mut RouteBatch,
        sent: &mut Sent,
    ) -> Option<RouteKey> {
        let from = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = cursor.cloned();
        for (key, route) in self.table.range_mut::<RouteKey, _>((from, Bound::Unbounded)) {
            if route.refs > 0 {
                match fits(key, Change::Add, bounds, batch) {
                    Fit::Now => {
                        batch.push(op(key, Change::Add));
                        route.known = Known::Yes;
                        self.adds.remove(key);
                        sent.push((key.clone(), Change::Add));
                    }
                    Fit::Later => return last,
                    Fit::Never => {
                        self.adds.remove(key);
                        self.oversize.insert(key.clone());
                    }
                }
            }
            last = Some(key.clone());
        }
        None
    }

    /// Fills `batch` with changes, additions first: a change of `topics` must open the new before it closes the old.
    pub(crate) fn fill_changes(&mut self, bounds: BatchBounds, batch: &mut RouteBatch, sent: &mut Sent) {
        for change in [Change::Add, Change::Delete] {
            let set = if change == Change::Add { &mut self.adds } else { &mut self.deletes };
            while let Some(first) = set.first() {
                let fit = fits(first, change, bounds, batch);
                match fit {
                    Fit::Now => batch.push(op(first, change)),
                    Fit::Later => return,
                    Fit::Never => {}
                }
                let Some(key) = set.pop_first() else { break };
                if matches!(fit, Fit::Never) {
                    // A deletion is two bytes longer than its addition. One that fits no packet leaves the remote a
                    // route too many, which the inlet's own check of `topics` and interest makes harmless.
                    if change == Change::Add {
                        self.oversize.insert(key);
                    }
                    continue;
                }
                match change {
                    Change::Add => {
                        if let Some(route) = self.table.get_mut(&key) {
                            route.known = Known::Yes;
                        }
                    }
                    Change::Delete => {
                        self.table.remove(&key);
                    }
                }
                sent.push((key, change));
            }
        }
    }

    /// Takes back a batch that was refused or cut off: it may or may not have been applied, and both operations are
    /// idempotent, so what still holds is sent again.
    pub(crate) fn take_back(&mut self, sent: Sent) {
        for (key, change) in sent {
            let route = match change {
                Change::Add => self.table.get_mut(&key),
                Change::Delete => Some(self.table.entry(key.clone()).or_default()),
            };
            let Some(route) = route else { continue };
            route.known = Known::Maybe;
            let wanted = route.refs > 0;
            let set = if wanted { &mut self.adds } else { &mut self.deletes };
            set.insert(key);
        }
    }
}

enum Fit {
    Now,
    Later,
    Never,
}

fn fits(key: &RouteKey, change: Change, bounds: BatchBounds, batch: &RouteBatch) -> Fit {
    let full = batch.len() >= bounds.ops_max;
    let bytes = batch.payload_bytes() + RouteBatch::op_bytes(&op(key, change));
    match (bytes <= bounds.payload_bytes_max, full) {
        (true, false) => Fit::Now,
        _ if !batch.is_empty() => Fit::Later,
        _ => Fit::Never,
    }
}

fn op(key: &RouteKey, change: Change) -> RouteOp<'_> {
    let (filter, route_id) = (key.filter.as_str(), key.route_id.as_slice());
    match change {
        Change::Add => RouteOp::Add { filter, route_id },
        Change::Delete => RouteOp::Delete { filter, route_id },
    }
}
