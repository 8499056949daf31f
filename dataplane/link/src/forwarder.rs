//! The forwarding end of a link: what one remote wants from us, as its actors told us.
//!
//! Lives on the shard that owns the link's name. [`Session`](crate::session::Session) is the state of one connection that publishes on a route
//! topic; [`Forwarder`] is the table of one remote; what changes in the union of all actors leaves as [`Interest`]
//! events, for the shell to spread to every shard and peer. Always true: the emitted additions and removals of a
//! filter alternate, beginning with an addition; nothing a remote sends grows the table beyond its limits.
//!
//! **Replacement without a gap.** Every accepted `actor_init` begins a *refill*: we always ask for a bootstrap, what
//! is announced from then on is fresh, and what is still stale when no batch has arrived for `refill_quiet_ms` is
//! withdrawn. So a restarted node, a reconnect and an edit of `topics` over there never interrupt what stays wanted;
//! the cost is that what the remote no longer wants is forwarded for that long, which its inlet sheds. The time must
//! exceed a requester's reconnect (5 s) plus handshake (5 s), so that a connection lost in mid-bootstrap does no harm.
//! A remote that never falls silent for so long has had its time after `refill_max_ms`.
//!
//! **A restart of ours.** What the remote wanted comes from the shell's log and is held by nobody's actor, as if the
//! actor that wanted it had disappeared at the moment of the restart: it lives for `actor_ttl_ms`, and for
//! `refill_quiet_ms` behind each batch that still arrives by then, `refill_max_ms` at most.
//!
//! What leaves (silent actors, stale routes, restored filters) leaves at most `sweep_routes_max` routes per tick: a
//! million of them at once would hold up the shard.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Bound;

use mqtt::topic::Filter;

use crate::client::{earliest, us};
use crate::names::CONTROL_PREFIX;
use crate::wire::{RouteOp, RouteOps};

/// Limits and clocks of one remote.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long an actor lives after its last sign of life; EMQX's is 30 s, with signs every 10 s.
    pub actor_ttl_ms: u64,
    /// How long after the last batch of a refill what was not announced again is withdrawn.
    pub refill_quiet_ms: u64,
    /// How long after its beginning a refill is taken for complete although batches still arrive.
    pub refill_max_ms: u64,
    /// Routes withdrawn in one tick.
    pub sweep_routes_max: usize,
    /// Actors of one remote: its nodes, twice if they have durable sessions.
    pub actors_max: usize,
    /// Different filters of one remote, over all actors. Beyond it additions are refused and counted; what they would
    /// have brought is not forwarded until a later bootstrap finds room.
    pub interest_max: usize,
    /// Routes (filter and route id) of one remote, over all actors; likewise.
    pub routes_max: usize,
    /// Bytes of filters and route ids of one remote; likewise.
    pub route_bytes_max: usize,
    /// Levels of a filter; likewise.
    pub levels_max: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            actor_ttl_ms: 30_000,
            refill_quiet_ms: 15_000,
            refill_max_ms: 600_000,
            sweep_routes_max: 4096,
            actors_max: 1024,
            interest_max: 1_000_000,
            routes_max: 4_000_000,
            route_bytes_max: 512 << 20,
            levels_max: 128,
        }
    }
}

/// A change of what the remote as a whole wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interest<'a> {
    /// From now on messages that match are to be forwarded.
    Add(&'a str),
    /// No longer.
    Remove(&'a str),
}

/// Why an actor may not go on. Its connection is closed with 0x83, so that it begins anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stale {
    /// No such actor: never initialised, or forgotten after its TTL.
    UnknownActor,
    /// A later incarnation of the actor has come.
    Outdated,
    /// `actors_max` is reached.
    TooManyActors,
}

/// Counters since start, and the present.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// Known actors.
    pub actors: usize,
    /// Different filters, which is what is matched.
    pub filters: usize,
    /// Routes, which is what EMQX counts.
    pub routes: usize,
    /// Bytes of both.
    pub route_bytes: usize,
    /// Accepted handshakes.
    pub inits: u64,
    /// Additions refused by a limit: messages for them are not forwarded.
    pub refused_by_limit: u64,
    /// Additions refused because the filter is invalid or asks for `$LINK/...`.
    pub refused_filters: u64,
    /// Routes withdrawn because a refill did not bring them again.
    pub not_renewed: u64,
    /// Actors forgotten because they gave no sign of life.
    pub expired_actors: u64,
}

/// The route ids under which one actor wants one filter, each with the refill that last announced it.
#[derive(Debug, Default)]
struct Ids {
    /// The id that equals the filter, which is the plain subscription and nearly always the only one.
    plain: Option<u32>,
    others: BTreeMap<Vec<u8>, u32>,
}

impl Ids {
    fn is_empty(&self) -> bool {
        self.plain.is_none() && self.others.is_empty()
    }
}

#[derive(Debug)]
struct Actor {
    incarnation: u64,
    valid_until: u64,
    /// Number of the current refill; routes with a smaller one are stale.
    refill: u32,
    /// Stale routes are withdrawn; None when there are none.
    sweep: Option<Sweep>,
    routes: BTreeMap<String, Ids>,
}

/// A withdrawal of stale routes, due or under way.
#[derive(Debug)]
struct Sweep {
    at: u64,
    /// No batch postpones it beyond this.
    latest: u64,
    /// Routes up to this filter have been looked at.
    after: Option<String>,
}

/// What the remote wanted when we died.
#[derive(Debug)]
struct Restored {
    filters: BTreeSet<String>,
    until: u64,
    /// No bootstrap postpones its end beyond this.
    latest: u64,
}

/// See the module's head.
#[derive(Debug)]
pub struct Forwarder {
    settings: Settings,
    actors: BTreeMap<String, Actor>,
    /// Number of actors that want a filter; what leaves counts until it has left.
    filters: BTreeMap<String, u32>,
    /// Routes of actors that are gone.
    leaving: Vec<BTreeMap<String, Ids>>,
    restored: Option<Restored>,
    /// Nothing is due before: the true time may be later, because signs of life move it.
    look_at: u64,
    status: Status,
}

impl Forwarder {
    /// An empty table.
    pub fn new(settings: Settings) -> Forwarder {
        Forwarder {
            settings,
            actors: BTreeMap::new(),
            filters: BTreeMap::new(),
            leaving: Vec::new(),
            restored: None,
            look_at: u64::MAX,
            status: Status::default(),
        }
    }

    /// What the remote wanted before a restart of ours. Once, before anything else.
    pub fn restore<'f>(
        &mut self,
        now: u64,
        filters: impl IntoIterator<Item = &'f str>,
        events: &mut dyn FnMut(Interest<'_>),
    ) {
        let until = now.saturating_add(us(self.settings.actor_ttl_ms));
        let latest = until.max(now.saturating_add(us(self.settings.refill_max_ms)));
        let mut restored = Restored { filters: BTreeSet::new(), until, latest };
        for filter in filters {
            let full = self.filters.len() >= self.settings.interest_max;
            if full || Filter::parse(filter, self.settings.levels_max).is_err() {
                // The limits of an earlier configuration.
                self.status.refused_by_limit += 1;
            } else if restored.filters.insert(filter.into()) {
                self.filters.insert(filter.into(), 1);
                events(Interest::Add(filter));
            }
        }
        if !restored.filters.is_empty() {
            self.look_at = self.look_at.min(until);
            self.restored = Some(restored);
        }
    }

    /// What the remote wants now.
    pub fn filters(&self) -> impl Iterator<Item = &str> {
        self.filters.keys().map(String::as_str)
    }

    /// The same behind `filter`, in an order that stays.
    pub fn filters_after(&self, filter: Option<&str>) -> impl Iterator<Item = &str> {
        let from = filter.map_or(Bound::Unbounded, Bound::Excluded);
        self.filters.range::<str, _>((from, Bound::Unbounded)).map(|(filter, _)| filter.as_str())
    }

    /// Counters and the present.
    pub fn status(&self) -> Status {
        Status { actors: self.actors.len(), filters: self.filters.len(), ..self.status }
    }

    /// When `tick` may have something to do; a past time means at once.
    pub fn deadline(&self) -> Option<u64> {
        (self.look_at != u64::MAX).then_some(self.look_at)
    }

    /// Forgets what is due, or a part of it: silent actors, and routes that a refill did not renew.
    pub fn tick(&mut self, now: u64, events: &mut dyn FnMut(Interest<'_>)) {
        let (leaving, status) = (&mut self.leaving, &mut self.status);
        self.actors.retain(|_, actor| {
            let lives = now < actor.valid_until;
            if !lives {
                status.expired_actors += 1;
                leaving.push(core::mem::take(&mut actor.routes));
            }
            lives
        });
        let mut budget = self.leave(now, self.settings.sweep_routes_max, events);
        let due = |actor: &Actor| actor.sweep.as_ref().is_some_and(|sweep| now >= sweep.at);
        let names: Vec<String> =
            self.actors.iter().filter(|(_, actor)| due(actor)).map(|(name, _)| name.clone()).collect();
        for name in names {
            budget -= self.sweep(&name, budget, events);
        }
        self.look();
    }

    /// When something is due next, exactly.
    fn look(&mut self) {
        let of = |actor: &Actor| earliest(Some(actor.valid_until), actor.sweep.as_ref().map(|sweep| sweep.at));
        let actors = self.actors.values().map(of).fold(None, earliest);
        let restored = self.restored.as_ref().map(|restored| restored.until);
        let leaving = (!self.leaving.is_empty()).then_some(0);
        self.look_at = earliest(earliest(actors, restored), leaving).unwrap_or(u64::MAX);
    }

    /// Something is due at `at`.
    fn look_by(&mut self, at: u64) {
        self.look_at = self.look_at.min(at);
    }

    /// Takes away up to `budget` routes that belong to no actor any more; gives what is left of the budget.
    fn leave(&mut self, now: u64, mut budget: usize, events: &mut dyn FnMut(Interest<'_>)) -> usize {
        while budget > 0
            && let Some(routes) = self.leaving.last_mut()
        {
            match routes.pop_first() {
                Some((filter, ids)) => {
                    budget -= 1;
                    self.uncount(&filter, &ids);
                    self.lose(&filter, events);
                }
                None => drop(self.leaving.pop()),
            }
        }
        while budget > 0
            && let Some(restored) = self.restored.as_mut().filter(|restored| now >= restored.until)
        {
            match restored.filters.pop_first() {
                Some(filter) => {
                    budget -= 1;
                    self.lose(&filter, events);
                }
                None => self.restored = None,
            }
        }
        budget
    }

    /// The link is gone or disabled here: forgets everything.
    pub fn clear(&mut self, events: &mut dyn FnMut(Interest<'_>)) {
        self.actors.clear();
        self.leaving.clear();
        self.restored = None;
        self.look_at = u64::MAX;
        self.status.routes = 0;
        self.status.route_bytes = 0;
        for filter in core::mem::take(&mut self.filters).into_keys() {
            events(Interest::Remove(&filter));
        }
    }

    /// An accepted `actor_init`. The answer is always "bootstrap": an actor that we know may still have lost routes on
    /// the way, and EMQX, told otherwise, would go online without them.
    pub(crate) fn init(&mut self, now: u64, actor: &str, incarnation: u64) -> Result<(), Stale> {
        let valid_until = now.saturating_add(us(self.settings.actor_ttl_ms));
        let latest = now.saturating_add(us(self.settings.refill_max_ms));
        let at = now.saturating_add(us(self.settings.refill_quiet_ms)).min(latest);
        let full = self.actors.len() >= self.settings.actors_max;
        match self.actors.get_mut(actor) {
            Some(known) if incarnation < known.incarnation => return Err(Stale::Outdated),
            Some(known) => {
                known.incarnation = incarnation;
                known.valid_until = valid_until;
                known.refill += 1;
                known.sweep = (!known.routes.is_empty()).then_some(Sweep { at, latest, after: None });
            }
            None if full => return Err(Stale::TooManyActors),
            None => {
                let fresh = Actor { incarnation, valid_until, refill: 0, sweep: None, routes: BTreeMap::new() };
                self.actors.insert(actor.into(), fresh);
            }
        }
        self.status.inits += 1;
        self.look_by(valid_until.min(at));
        self.bootstraps(at);
        Ok(())
    }

    /// A bootstrap is under way until `at` at least: what was restored waits for its end.
    fn bootstraps(&mut self, at: u64) {
        if let Some(restored) = &mut self.restored {
            restored.until = restored.until.max(at.min(restored.latest));
        }
    }

    /// A heartbeat of the incarnation that the connection initialised.
    pub(crate) fn heartbeat(&mut self, now: u64, actor: &str, incarnation: u64) -> Result<(), Stale> {
        self.alive(now, actor, incarnation).map(|_| ())
    }

    /// A batch. It is a sign of life too: a bootstrap may take longer than the TTL, and EMQX stops its heartbeats then.
    pub(crate) fn routes(
        &mut self,
        now: u64,
        actor: &str,
        incarnation: u64,
        ops: RouteOps<'_>,
        events: &mut dyn FnMut(Interest<'_>),
    ) -> Result<(), Stale> {
        let quiet_at = now.saturating_add(us(self.settings.refill_quiet_ms));
        let known = self.alive(now, actor, incarnation)?;
        if let Some(sweep) = &mut known.sweep {
            sweep.at = quiet_at.min(sweep.latest);
        }
        self.bootstraps(quiet_at);
        for op in ops {
            match op {
                RouteOp::Add { filter, route_id } => self.add(actor, filter, route_id, events),
                RouteOp::Delete { filter, route_id } => self.delete(actor, filter, route_id, events),
            }
        }
        Ok(())
    }

    fn alive(&mut self, now: u64, actor: &str, incarnation: u64) -> Result<&mut Actor, Stale> {
        let ttl = us(self.settings.actor_ttl_ms);
        let known = self.actors.get_mut(actor).ok_or(Stale::UnknownActor)?;
        if known.incarnation != incarnation {
            return Err(Stale::Outdated);
        }
        known.valid_until = now.saturating_add(ttl);
        Ok(known)
    }

    fn add(&mut self, name: &str, filter: &str, route_id: &[u8], events: &mut dyn FnMut(Interest<'_>)) {
        // A remote that could have our control topics forwarded would speak with the voice of our other remotes.
        let control = filter == "$LINK" || filter.starts_with(CONTROL_PREFIX);
        if control || Filter::parse(filter, self.settings.levels_max).is_err() {
            self.status.refused_filters += 1;
            return;
        }
        let Some(actor) = self.actors.get_mut(name) else { return };
        let plain = route_id == filter.as_bytes();
        if let Some(ids) = actor.routes.get_mut(filter) {
            let held = if plain { ids.plain.as_mut() } else { ids.others.get_mut(route_id) };
            if let Some(held) = held {
                *held = actor.refill;
                return;
            }
        }
        let known = self.filters.contains_key(filter);
        let cost = route_bytes(filter, if plain { 0 } else { route_id.len() });
        if (!known && self.filters.len() >= self.settings.interest_max)
            || self.status.routes >= self.settings.routes_max
            || self.status.route_bytes + cost > self.settings.route_bytes_max
        {
            self.status.refused_by_limit += 1;
            return;
        }
        self.status.routes += 1;
        self.status.route_bytes += cost;
        let first = !actor.routes.contains_key(filter);
        if first {
            actor.routes.insert(filter.into(), Ids::default());
        }
        if let Some(ids) = actor.routes.get_mut(filter) {
            if plain {
                ids.plain = Some(actor.refill);
            } else {
                ids.others.insert(route_id.into(), actor.refill);
            }
        }
        if first {
            *self.filters.entry(filter.into()).or_default() += 1;
        }
        if !known {
            events(Interest::Add(filter));
        }
    }

    fn delete(&mut self, name: &str, filter: &str, route_id: &[u8], events: &mut dyn FnMut(Interest<'_>)) {
        let Some(actor) = self.actors.get_mut(name) else { return };
        let Some(ids) = actor.routes.get_mut(filter) else { return };
        let plain = route_id == filter.as_bytes();
        let held = if plain { ids.plain.take().is_some() } else { ids.others.remove(route_id).is_some() };
        if !held {
            return;
        }
        self.status.routes -= 1;
        self.status.route_bytes -= route_bytes(filter, if plain { 0 } else { route_id.len() });
        if ids.is_empty() {
            actor.routes.remove(filter);
            self.lose(filter, events);
        }
    }

    /// Withdraws up to `budget` stale routes of an actor; gives how many it has looked at.
    fn sweep(&mut self, name: &str, budget: usize, events: &mut dyn FnMut(Interest<'_>)) -> usize {
        let Some(actor) = self.actors.get_mut(name) else { return 0 };
        let Some(sweep) = &mut actor.sweep else { return 0 };
        let (refill, status) = (actor.refill, &mut self.status);
        let (mut seen, mut last, mut gone) = (0, None, Vec::new());
        let from = sweep.after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        for (filter, ids) in actor.routes.range_mut::<str, _>((from, Bound::Unbounded)).take(budget) {
            let mut withdraw = |id_bytes: usize| {
                status.routes -= 1;
                status.route_bytes -= route_bytes(filter, id_bytes);
                status.not_renewed += 1;
            };
            if ids.plain.take_if(|renewed| *renewed < refill).is_some() {
                withdraw(0);
            }
            ids.others.retain(|id, renewed| {
                let keep = *renewed >= refill;
                if !keep {
                    withdraw(id.len());
                }
                keep
            });
            if ids.is_empty() {
                gone.push(filter.clone());
            }
            seen += 1;
            last = Some(filter);
        }
        if seen < budget {
            actor.sweep = None;
        } else if let Some(last) = last.cloned() {
            sweep.after = Some(last);
        }
        for filter in gone {
            if let Some(actor) = self.actors.get_mut(name) {
                actor.routes.remove(&filter);
            }
            self.lose(&filter, events);
        }
        seen
    }

    fn uncount(&mut self, filter: &str, ids: &Ids) {
        let others: usize = ids.others.keys().map(|id| route_bytes(filter, id.len())).sum();
        let plain = if ids.plain.is_some() { route_bytes(filter, 0) } else { 0 };
        self.status.routes -= ids.others.len() + usize::from(ids.plain.is_some());
        self.status.route_bytes -= plain + others;
    }

    /// One actor fewer wants `filter`.
    fn lose(&mut self, filter: &str, events: &mut dyn FnMut(Interest<'_>)) {
        let Some(actors) = self.filters.get_mut(filter) else { return };
        *actors -= 1;
        if *actors == 0 {
            self.filters.remove(filter);
            events(Interest::Remove(filter));
        }
    }
}

/// What a route is counted as: its own bytes and the bookkeeping around them.
fn route_bytes(filter: &str, id_bytes: usize) -> usize {
    ROUTE_OVERHEAD_BYTES + filter.len() + id_bytes
}

const ROUTE_OVERHEAD_BYTES: usize = 96;
