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

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

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
    /// When stale routes are withdrawn; None when there are none.
    sweep_at: Option<u64>,
    routes: BTreeMap<String, Ids>,
}

/// See the module's head.
#[derive(Debug)]
pub struct Forwarder {
    settings: Settings,
    actors: BTreeMap<String, Actor>,
    /// Number of actors that want a filter.
    filters: BTreeMap<String, u32>,
    status: Status,
}

impl Forwarder {
    /// An empty table.
    pub fn new(settings: Settings) -> Forwarder {
        Forwarder { settings, actors: BTreeMap::new(), filters: BTreeMap::new(), status: Status::default() }
    }

    /// What the remote wants now.
    pub fn filters(&self) -> impl Iterator<Item = &str> {
        self.filters.keys().map(String::as_str)
    }

    /// Counters and the present.
    pub fn status(&self) -> Status {
        Status { actors: self.actors.len(), filters: self.filters.len(), ..self.status }
    }

    /// Time of the next withdrawal or expiry.
    pub fn deadline(&self) -> Option<u64> {
        self.actors.values().map(|actor| earliest(Some(actor.valid_until), actor.sweep_at)).fold(None, earliest)
    }

    /// Forgets what is due: silent actors, and routes that a refill did not renew.
    pub fn tick(&mut self, now: u64, events: &mut dyn FnMut(Interest<'_>)) {
        while let Some(name) = self.actors.iter().find(|(_, actor)| now >= actor.valid_until).map(|(name, _)| name) {
            let name = name.clone();
            if let Some(actor) = self.actors.remove(&name) {
                self.status.expired_actors += 1;
                for (filter, ids) in actor.routes {
                    self.uncount(&filter, &ids);
                    self.lose(&filter, events);
                }
            }
        }
        let due = |actor: &Actor| actor.sweep_at.is_some_and(|at| now >= at);
        let names: Vec<String> =
            self.actors.iter().filter(|(_, actor)| due(actor)).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.sweep(&name, events);
        }
    }

    /// The link is gone or disabled here: forgets everything.
    pub fn clear(&mut self, events: &mut dyn FnMut(Interest<'_>)) {
        self.actors.clear();
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
        let sweep_at = now.saturating_add(us(self.settings.refill_quiet_ms));
        let full = self.actors.len() >= self.settings.actors_max;
        match self.actors.get_mut(actor) {
            Some(known) if incarnation < known.incarnation => return Err(Stale::Outdated),
            Some(known) => {
                known.incarnation = incarnation;
                known.valid_until = valid_until;
                known.refill += 1;
                known.sweep_at = (!known.routes.is_empty()).then_some(sweep_at);
            }
            None if full => return Err(Stale::TooManyActors),
            None => {
                let fresh = Actor { incarnation, valid_until, refill: 0, sweep_at: None, routes: BTreeMap::new() };
                self.actors.insert(actor.into(), fresh);
            }
        }
        self.status.inits += 1;
        Ok(())
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
        let quiet = us(self.settings.refill_quiet_ms);
        let known = self.alive(now, actor, incarnation)?;
        known.sweep_at = known.sweep_at.map(|_| now.saturating_add(quiet));
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

    fn sweep(&mut self, name: &str, events: &mut dyn FnMut(Interest<'_>)) {
        let Some(actor) = self.actors.get_mut(name) else { return };
        let refill = actor.refill;
        actor.sweep_at = None;
        let mut gone = Vec::new();
        let status = &mut self.status;
        actor.routes.retain(|filter, ids| {
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
            !ids.is_empty()
        });
        for filter in gone {
            self.lose(&filter, events);
        }
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
