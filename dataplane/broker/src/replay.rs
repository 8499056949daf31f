//! Subscriber side of retained messages: a replay asks the owner shards of a new subscription's topics,
//! page by page as the session has room, and skips what is not newer than what already came live.
//! Lives with the session on its home shard. Runs only after the interest is live everywhere, so nothing
//! falls between "not yet live" and "not yet retained".

use alloc::boxed::Box;

use ahash::RandomState;
use contract::hash;
use hashbrown::HashMap;
use mqtt::topic::matches;
use smallvec::SmallVec;

use crate::{
    Shard,
    counters::Counter,
    deliver::Delivering,
    frame::{self, Kind, Message, MessageId, put_text},
    index::has_wildcard,
    plant::Plant,
    retained::{Page, Query, place_of},
    session::SessionId,
    subscriptions::{Guard, Options},
    surface::Output,
};

/// An open replay of one subscription.
pub(crate) struct Replay {
    query: u32,
    filter: Box<str>,
    options: Options,
    id: u32,
    owners: SmallVec<[(u16, Owner); 1]>,
    /// Retained publishes that came live meanwhile, by topic hash.
    live: HashMap<u64, MessageId, RandomState>,
    /// The start of this node whose streams [`Page::taken`] counts.
    incarnation: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// The interest is not live everywhere yet: too early to ask.
    Early,
    /// A page is on its way.
    Asked,
    /// More pages are there; ask when the session has room.
    More,
}

/// Live topics that one replay remembers.
const LIVE_MAX: usize = 100_000;
/// Values asked for at once.
const ROOM: u32 = 256;
/// Messages that may wait in the session's queue when the next page is asked for.
const WAITING_MAX: usize = 64;

/// Operations of a query frame.
pub(crate) mod op {
    /// A new query: room, filter.
    pub(crate) const OPEN: u8 = 0;
    /// The next page: room.
    pub(crate) const NEXT: u8 = 1;
    /// Nobody waits any more.
    pub(crate) const CANCEL: u8 = 2;
}

impl Delivering<'_> {
    /// Notes a retained publish that reaches a session live while it has replays open.
    pub(crate) fn remember_live(&mut self, index: u32, message: &Message<'_>) {
        let Some(session) = self.sessions.at(index) else { return };
        for replay in &mut session.replays {
            if !matches(&replay.filter, message.topic) {
                continue;
            }
            if replay.live.len() >= LIVE_MAX {
                self.counters.one(Counter::shed_replay_memory);
                continue;
            }
            let topic = hash::stable(message.topic.as_bytes());
            replay.live.insert(topic, message.id);
        }
    }
}

impl Shard {
    /// Notes the replay of a new subscription, which remembers from now on what comes live.
    /// Returns the number under which [`Shard::start_replay`] asks the owners.
    pub(crate) fn prepare_replay(&mut self, id: SessionId, filter: &str, options: Options, subscription: u32) -> u32 {
        let shards = self.settings.shards;
        let owners: SmallVec<[(u16, Owner); 1]> = if has_wildcard(filter) {
            (0..shards).map(|shard| (shard, Owner::Early)).collect()
        } else {
            let owner = hash::owner_shard(hash::partition_of_topic(filter), shards);
            smallvec::smallvec![(owner.0, Owner::Early)]
        };
        self.next_query = self.next_query.wrapping_add(1);
        let query = self.next_query;
        let Some(session) = self.sessions.get_mut(id) else { return query };
        // A repeated SUBSCRIBE replaces its own unfinished replay.
        let old = session.replays.iter().position(|replay| *replay.filter == *filter);
        let old = old.map(|at| session.replays.swap_remove(at));
        let hasher = RandomState::with_seeds(self.settings.seed, 14, 15, 16);
        session.replays.push(Replay {
            query,
            filter: filter.into(),
            options,
            id: subscription,
            owners,
            live: HashMap::with_hasher(hasher),
            incarnation: self.origin.incarnation,
        });
        self.replays.insert(query, id);
        if let Some(old) = old {
            self.cancel_replay(&old);
        }
        query
    }

    /// The interest of a subscription is live: asks the owners, unless it was given up in the meantime.
    pub(crate) fn start_replay(&mut self, query: u32) {
        let Some(&id) = self.replays.get(&query) else { return };
        let Some(session) = self.sessions.get_mut(id) else { return };
        let Some(replay) = session.replays.iter_mut().find(|replay| replay.query == query) else { return };
        let filter = replay.filter.clone();
        let owners: SmallVec<[u16; 8]> = replay.owners.iter().map(|(shard, _)| *shard).collect();
        replay.owners.iter_mut().for_each(|(_, owner)| *owner = Owner::Asked);
        for owner in owners {
            self.ask(owner, query, op::OPEN, &filter);
        }
    }

    /// Ends the replays of a session that ends, or of one filter that was unsubscribed.
    pub(crate) fn cancel_replays(&mut self, id: SessionId, filter: Option<&str>) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        let mut kept = alloc::vec::Vec::new();
        let mut ended = alloc::vec::Vec::new();
        for replay in session.replays.drain(..) {
            match filter {
                Some(filter) if *replay.filter != *filter => kept.push(replay),
                _ => ended.push(replay),
            }
        }
        session.replays = kept;
        ended.iter().for_each(|replay| self.cancel_replay(replay));
    }

    fn cancel_replay(&mut self, replay: &Replay) {
        self.replays.remove(&replay.query);
        for &(owner, _) in replay.owners.iter().filter(|(_, owner)| *owner != Owner::Early) {
            self.ask(owner, replay.query, op::CANCEL, "");
        }
    }

    fn ask(&mut self, owner: u16, query: u32, operation: u8, filter: &str) {
        let me = self.settings.shard.0;
        if owner == me {
            match operation {
                op::CANCEL => self.retained.cancel(me, query),
                op::OPEN => {
                    let filter = Some(filter.into());
                    self.retained.queries.push(Query { from: me, query, room: ROOM, filter });
                }
                _ => self.retained.queries.push(Query { from: me, query, room: ROOM, filter: None }),
            }
            return;
        }
        // After our own messages: what we routed to the owner before we ask has to be there first.
        let bytes = self.hops.answer_after(owner);
        let start = frame::begin(bytes, Kind::RetainedQuery, 0);
        bytes.push(operation);
        bytes.extend_from_slice(&query.to_le_bytes());
        bytes.extend_from_slice(&ROOM.to_le_bytes());
        put_text(bytes, filter);
        frame::finish(bytes, start);
    }

    /// A page arrived from an owner shard, or was made by this one.
    pub(crate) fn replay_page(&mut self, owner: u16, page: &Page, out: &mut impl Output) {
        let Some(&id) = self.replays.get(&page.query) else { return };
        let Some(session) = self.sessions.get_mut(id) else { return };
        let Some(at) = session.replays.iter().position(|r| r.query == page.query) else { return };
        // Out of the session while its values are delivered, so that a value is not taken for a live one.
        let replay = session.replays.swap_remove(at);
        let stale = self.planted(Plant::StaleReplay);
        let guard = if self.restricted { Guard::Guarded } else { Guard::Open };
        let mut rest = &page.frames[..];
        let (mut delivering, _) = self.delivering();
        // It was asked for when there was room, and is little.
        delivering.scarce = false;
        while let Ok((part, tail)) = frame::split(rest) {
            rest = tail;
            let Ok(value) = frame::read_message(&part) else { break };
            let message = value.message;
            if !stale && replay.has_newer(&message, &page.taken) {
                delivering.counters.one(Counter::retained_skipped);
                continue;
            }
            delivering.next_message();
            let own = [replay.id];
            let ids = if replay.id == 0 { &[][..] } else { &own[..] };
            // No Local is for messages that come live; a retained value always goes (3.8.3.1).
            let options = Options::new(replay.options.qos(), false, true).with_guard(guard);
            delivering.counters.one(Counter::retained_replayed);
            //= MQTT311-3.3.1-8
            delivering.deliver(id.index, options, ids, &message, true, out);
            delivering.finish();
        }
        self.page_done(owner, page.last, id, replay);
    }

    fn page_done(&mut self, owner: u16, last: bool, id: SessionId, mut replay: Replay) {
        if let Some(at) = replay.owners.iter().position(|(shard, _)| *shard == owner) {
            if last {
                replay.owners.swap_remove(at);
            } else {
                replay.owners[at].1 = Owner::More;
                self.replays_waiting.push(replay.query);
            }
        }
        if replay.owners.is_empty() {
            self.replays.remove(&replay.query);
        } else if let Some(session) = self.sessions.get_mut(id) {
            session.replays.push(replay);
        }
    }

    /// Asks for the next pages of replays whose sessions have room again. Once per turn.
    pub(crate) fn continue_replays(&mut self) {
        if self.replays_waiting.is_empty() || self.scarce {
            return;
        }
        let waiting = core::mem::take(&mut self.replays_waiting);
        let output_low = self.settings.limits.output_bytes_max as usize / 2;
        for query in waiting {
            let Some(&id) = self.replays.get(&query) else { continue };
            let Some(session) = self.sessions.get_mut(id) else { continue };
            let conn = if session.online() { self.conns.at(session.conn) } else { None };
            let room = session.state.queued() <= WAITING_MAX && conn.is_some_and(|c| c.out.len() <= output_low);
            if !room {
                self.replays_waiting.push(query);
                continue;
            }
            let Some(replay) = session.replays.iter_mut().find(|r| r.query == query) else { continue };
            let mut next: SmallVec<[u16; 8]> = SmallVec::new();
            for (shard, owner) in replay.owners.iter_mut().filter(|(_, o)| *o == Owner::More) {
                *owner = Owner::Asked;
                next.push(*shard);
            }
            for owner in next {
                self.ask(owner, query, op::NEXT, "");
            }
        }
    }
}

impl Replay {
    /// Did a live message of this topic come that the owner had not taken, or that is this very value?
    fn has_newer(&self, value: &Message<'_>, taken: &[u64]) -> bool {
        let topic = hash::stable(value.topic.as_bytes());
        let Some(live) = self.live.get(&topic) else { return false };
        // Of what a start before this one had begun the owner says nothing; whatever is newer still comes live.
        let owner_took_it = live.incarnation == self.incarnation
            && taken.get(place_of(live.stream)).is_some_and(|taken| live.sequence <= *taken);
        !owner_took_it || *live == value.id
    }
}
