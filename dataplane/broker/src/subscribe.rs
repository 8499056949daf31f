//! SUBSCRIBE and UNSUBSCRIBE, and the barrier: SUBACK leaves when every shard of the node has the new
//! interest, so whatever is published after SUBACK reaches the subscriber. Lives on the session's home shard.

use alloc::{boxed::Box, collections::VecDeque, vec::Vec};

use contract::hash;
use mqtt::{
    codec::{Subscribe, SubscribeEntry, Unsubscribe, encode},
    connection::Misbehaved,
    topic::SubscribeFilter,
    types::{PacketId, Qos, Reason, RetainHandling, Version},
};
use slab::Slab;
use smallvec::SmallVec;

use crate::{
    Shard,
    conn::LinkAccess,
    counters::{Counter, PacketType},
    deliver::tell,
    event::{Event, Who},
    frame::{self, Kind, put_text},
    groups::{Act, Member},
    interest::{self, Dest},
    mountpoint,
    obligation::{Outcome, Waiter},
    plant::Plant,
    publish::LINK_PREFIX,
    session::{SessionId, SharedSubscription},
    sizes::write_within,
    subscriptions::{Change, Guard, Options, Subscription},
    surface::{ConnId, Output},
};

/// What this shard has announced, and what the others have confirmed.
pub(crate) struct Barrier {
    /// Number of the last announcement.
    pub(crate) issued: u64,
    /// It was made in this turn, so it has not left: whatever happens meanwhile precedes it.
    pub(crate) fresh: bool,
    acked: Vec<u64>,
    /// Highest announcement taken from each shard, and whether it was confirmed in this turn.
    pub(crate) taken: Vec<(u64, bool)>,
    /// In order of `until`.
    waiting: VecDeque<(u64, Behind)>,
    subscribes: Slab<Waiting>,
}

/// What waits behind the barrier.
#[derive(Clone, Copy)]
pub(crate) enum Behind {
    /// A SUBSCRIBE of this shard.
    Subscribe(u32),
    /// The report to another shard's (or our own) obligation.
    Report { shard: u16, token: u64 },
}

/// A SUBSCRIBE or UNSUBSCRIBE that is not answered yet.
struct Waiting {
    conn: ConnId,
    packet: PacketId,
    unsubscribe: bool,
    reasons: SmallVec<[Reason; 8]>,
    /// Replays that begin when this is settled.
    replays: SmallVec<[u32; 4]>,
    /// Barrier and group owners that have not answered.
    missing: u32,
}

impl Barrier {
    pub(crate) fn new(me: u16, shards: u16) -> Barrier {
        let mut acked = alloc::vec![0; usize::from(shards)];
        acked[usize::from(me)] = u64::MAX;
        Barrier {
            issued: 0,
            fresh: false,
            acked,
            taken: alloc::vec![(0, false); usize::from(shards)],
            waiting: VecDeque::new(),
            subscribes: Slab::new(),
        }
    }

    /// Everything up to this announcement is live on every shard.
    fn live(&self) -> u64 {
        self.acked.iter().copied().min().unwrap_or(u64::MAX)
    }

    pub(crate) fn acked(&mut self, from: u16, until: u64) {
        if let Some(acked) = self.acked.get_mut(usize::from(from)) {
            *acked = (*acked).max(until);
        }
    }

    /// Is everything up to this announcement live on every shard?
    pub(crate) fn passed(&self, until: u64) -> bool {
        until <= self.live()
    }

    /// One entry of a waiting SUBSCRIBE is refused after all.
    pub(crate) fn refuse_entry(&mut self, key: u32, entry: u32, reason: Reason) {
        let waiting = self.subscribes.get_mut(key as usize);
        if let Some(granted) = waiting.and_then(|waiting| waiting.reasons.get_mut(entry as usize)) {
            *granted = reason;
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len() + self.subscribes.len()
    }
}

impl Shard {
    /// Announces to every other shard that a destination of this one begins or ends to want a filter.
    pub(crate) fn announce(&mut self, filter: &str, dest: Dest, add: bool) {
        self.announce_frame(filter, dest, if add { interest::change::BEGINS } else { interest::change::ENDS });
        self.links_interest(dest, filter, add);
    }

    /// Asks every other shard to publish what it has staged and to say so: the barrier without new interest.
    /// A session that subscribes to what this shard already wants did not get what came before, and may
    /// ask for retained values only when all of that has reached their owners.
    fn announce_mark(&mut self) {
        if !self.barrier.fresh {
            self.announce_frame("", Dest::Shard(self.settings.shard.0), interest::change::MARK);
        }
    }

    fn announce_frame(&mut self, filter: &str, dest: Dest, what: u8) {
        self.barrier.issued += 1;
        self.barrier.fresh = true;
        let (me, issued) = (self.settings.shard.0, self.barrier.issued);
        for to in (0..self.settings.shards).filter(|to| *to != me) {
            let bytes = self.hops.answer(to);
            let start = frame::begin(bytes, Kind::Interest, 0);
            bytes.extend_from_slice(&issued.to_le_bytes());
            bytes.push(what);
            bytes.extend_from_slice(&dest.encode().to_le_bytes());
            put_text(bytes, filter);
            frame::finish(bytes, start);
        }
    }

    /// Another shard announced interest.
    pub(crate) fn interest_frame(&mut self, from: u16, seq: u64, what: u8, dest: Dest, filter: &str) {
        self.barrier.taken[usize::from(from)] = (seq, true);
        if what == interest::change::MARK {
            return;
        }
        let add = what == interest::change::BEGINS;
        if let Dest::Link(link) = dest {
            self.link_wants(link, filter, add);
        }
        if add {
            self.interest.add(filter, dest);
        } else if !self.interest.remove(filter, dest) {
            self.counters.one(Counter::frames_bad);
        }
        self.links_interest(dest, filter, add);
    }

    /// Confirms, once per turn and shard, the interest that was taken.
    pub(crate) fn confirm_interest(&mut self) {
        for from in 0..self.settings.shards {
            let (seq, fresh) = &mut self.barrier.taken[usize::from(from)];
            if core::mem::take(fresh) {
                let seq = *seq;
                let overtakes = self.planted(Plant::InterestAckOvertakes);
                let bytes = if overtakes { self.hops.answer(from) } else { self.hops.answer_after(from) };
                let start = frame::begin(bytes, Kind::InterestAck, 0);
                bytes.extend_from_slice(&seq.to_le_bytes());
                frame::finish(bytes, start);
            }
        }
    }

    /// Runs `behind` when everything announced so far is live: at once, if it is.
    pub(crate) fn after_barrier(&mut self, behind: Behind, out: &mut impl Output) {
        let until = self.barrier.issued;
        if until <= self.barrier.live() || self.planted(Plant::SubackBeforeBarrier) {
            return self.passed(behind, out);
        }
        self.counters.one(Counter::subacks_waited);
        self.barrier.waiting.push_back((until, behind));
    }

    /// Lets everything pass whose interest is live by now.
    pub(crate) fn release_barrier(&mut self, out: &mut impl Output) {
        let live = self.barrier.live();
        while self.barrier.waiting.front().is_some_and(|(until, _)| *until <= live) {
            if let Some((_, behind)) = self.barrier.waiting.pop_front() {
                self.passed(behind, out);
            }
        }
    }

    fn passed(&mut self, behind: Behind, out: &mut impl Output) {
        match behind {
            Behind::Subscribe(key) => self.subscribe_settled(key, out),
            Behind::Report { shard, token } => self.send_done(shard, token, Outcome::MET, out),
        }
    }

    /// A SUBSCRIBE of an open connection.
    pub(crate) fn packet_subscribe(
        &mut self,
        id: ConnId,
        session: SessionId,
        subscribe: &Subscribe<'_>,
        out: &mut impl Output,
    ) -> Result<(), Misbehaved> {
        let Some(open) = self.conns.open(id) else { return Ok(()) };
        let (v5, link) = (open.protocol.version == Version::V5, open.link);
        let mountpoint = open.mountpoint.clone();
        if self.restricted && self.subscribe_waits(id, session, subscribe, mountpoint.as_deref(), out) {
            return Ok(());
        }
        let key = self.barrier.subscribes.insert(Waiting {
            conn: id,
            packet: subscribe.packet_id,
            unsubscribe: false,
            reasons: SmallVec::new(),
            replays: SmallVec::new(),
            missing: 1,
        }) as u32;
        let subscription_id = subscribe.subscription_id.unwrap_or(0);
        //= MQTT-3.8.4-5
        for mut entry in subscribe.entries {
            let written = entry.filter;
            let mounted = mountpoint.as_deref().map(|mountpoint| mountpoint::filter(mountpoint, entry.filter));
            entry.filter = mounted.as_deref().unwrap_or(entry.filter);
            let reason = match self.subscribe_one(session, &entry, (subscription_id, v5, link), key, out) {
                Ok(reason) => reason,
                Err(misbehaved) => {
                    let waiting = self.barrier.subscribes.remove(key as usize);
                    waiting.replays.iter().for_each(|query| self.start_replay(*query));
                    return Err(misbehaved);
                }
            };
            if let Some(qos) = Qos::from_bits(reason as u8) {
                self.tell_of_subscription(id, session, |who| Event::Subscribed { who, filter: written, qos }, out);
            }
            if let Some(waiting) = self.barrier.subscribes.get_mut(key as usize) {
                //= MQTT-3.8.4-6
                waiting.reasons.push(reason);
            }
        }
        if self.barrier.subscribes.get(key as usize).is_some_and(|waiting| !waiting.replays.is_empty()) {
            self.announce_mark();
        }
        if self.restricted {
            self.settle_hold(id);
        }
        self.after_barrier(Behind::Subscribe(key), out);
        Ok(())
    }

    fn subscribe_one(
        &mut self,
        id: SessionId,
        entry: &SubscribeEntry<'_>,
        (subscription_id, v5, link): (u32, bool, LinkAccess),
        key: u32,
        out: &mut impl Output,
    ) -> Result<Reason, Misbehaved> {
        let levels_max = usize::from(self.settings.mqtt.topic_levels_max);
        let Ok(parsed) = SubscribeFilter::parse(entry.filter, levels_max) else {
            return Ok(Reason::TopicFilterInvalid);
        };
        let filter = parsed.filter.as_str();
        if let Some(refused) = self.subscribe_refused(&parsed, link) {
            return Ok(refused);
        }
        let guard = self.guard_of(id, link, &parsed, entry.qos);
        if guard == Guard::Muted {
            self.counters.one(Counter::subscriptions_denied);
            return Ok(Reason::NotAuthorized);
        }
        let mqtt = &self.settings.mqtt;
        let Some(session) = self.sessions.get_mut(id) else { return Ok(Reason::UnspecifiedError) };
        let number = session.number;
        if number != 0 && !self.journal.grows() {
            self.counters.one(Counter::shed_log_full);
            return Ok(Reason::QuotaExceeded);
        }
        if self.scarce || session.subscription_count() >= mqtt.subscriptions_max as usize {
            // What it has already it may subscribe to again, as clients do when they come back.
            let has = match parsed.group {
                Some(group) => session.shared.iter().any(|s| *s.group == *group && *s.filter == *filter),
                None => self.subscriptions.entry(filter).is_some_and(|at| session.filters.contains(&at)),
            };
            if !has {
                self.counters.add(Counter::memory_scarce_refused, self.scarce.into());
                return Ok(Reason::QuotaExceeded);
            }
        }
        //= MQTT-3.2.2-10
        let qos = entry.qos.min(Qos::from_bits(mqtt.qos_max).unwrap_or(Qos::ExactlyOnce));
        // 3.x has no options: No Local off, RETAIN cleared on live messages.
        let options = Options::new(qos, v5 && entry.no_local, v5 && entry.retain_as_published).with_guard(guard);
        //= MQTT-3.8.4-7
        let granted = match qos {
            Qos::AtMostOnce => Reason::Success,
            Qos::AtLeastOnce => Reason::GrantedQos1,
            Qos::ExactlyOnce => Reason::GrantedQos2,
        };
        if let Some(group) = parsed.group {
            if entry.no_local && v5 {
                //= MQTT-3.8.3-4
                let why = "No Local on a shared subscription";
                return Err(Misbehaved { reason: Reason::ProtocolError, why });
            }
            let shared = SharedSubscription {
                group: group.into(),
                filter: filter.into(),
                options,
                id: subscription_id,
                muted: false,
            };
            self.journal.subscribed(number, group, filter, options, subscription_id);
            self.join(id, shared, key, out);
            return Ok(granted);
        }
        self.journal.subscribed(number, "", filter, options, subscription_id);
        let subscription = Subscription { session: id.index, id: subscription_id, options };
        //= MQTT-3.8.4-3
        let (at, change, existed) = self.subscriptions.insert(filter, subscription);
        if let Some(session) = self.sessions.get_mut(id) {
            session.filters.insert(at);
        }
        if change == Change::First {
            self.announce(filter, Dest::Shard(self.settings.shard.0), true);
        }
        let replay = match entry.retain_handling {
            //= MQTT-3.3.1-9
            //= MQTT-3.8.4-4
            RetainHandling::Send => true,
            //= MQTT-3.3.1-10
            RetainHandling::SendIfNew => !existed,
            //= MQTT-3.3.1-11
            RetainHandling::DoNotSend => false,
        };
        if replay {
            let query = self.prepare_replay(id, filter, options, subscription_id);
            if let Some(waiting) = self.barrier.subscribes.get_mut(key as usize) {
                waiting.replays.push(query);
            }
        }
        Ok(granted)
    }

    fn subscribe_refused(&mut self, parsed: &SubscribeFilter<'_>, link: LinkAccess) -> Option<Reason> {
        let mqtt = &self.settings.mqtt;
        if parsed.group.is_some() && !mqtt.shared_subscription {
            return Some(Reason::SharedSubscriptionsNotSupported);
        }
        //= MQTT311-3.8.3-2
        if parsed.filter.has_wildcard() && !mqtt.wildcard_subscription {
            return Some(Reason::WildcardSubscriptionsNotSupported);
        }
        if parsed.filter.as_str().starts_with(LINK_PREFIX) && !self.may_subscribe_link(parsed, link) {
            self.counters.one(Counter::link_clients_refused);
            return Some(Reason::NotAuthorized);
        }
        None
    }

    /// Joins a shared group at its owner shard; the waiting SUBSCRIBE gets one more thing to wait for.
    fn join(&mut self, id: SessionId, shared: SharedSubscription, key: u32, out: &mut impl Output) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        let same = |s: &SharedSubscription| s.group == shared.group && s.filter == shared.filter;
        match session.shared.iter_mut().find(|s| same(s)) {
            Some(existing) => *existing = shared.clone(),
            None => session.shared.push(shared.clone()),
        }
        let token = self.settles_later(key);
        self.tell_group(Act::Join, id, &shared, token, out);
    }

    /// The answer with this key gets one more thing to wait for.
    fn settles_later(&mut self, key: u32) -> u64 {
        let mut entry = 0;
        if let Some(waiting) = self.barrier.subscribes.get_mut(key as usize) {
            waiting.missing += 1;
            entry = waiting.reasons.len() as u32;
        }
        let deadline_us = self.obligation_deadline_us();
        self.obligations.open(Waiter::Subscribe { key, entry }, deadline_us)
    }

    /// Tells the owner shard of a group about one of its members here.
    pub(crate) fn tell_group(
        &mut self,
        act: Act,
        id: SessionId,
        shared: &SharedSubscription,
        token: u64,
        out: &mut impl Output,
    ) {
        let me = self.settings.shard.0;
        let partition = hash::partition_of_group(&shared.group, &shared.filter);
        let owner = hash::owner_shard(partition, self.settings.shards).0;
        let online = self.sessions.get(id).is_some_and(|s| s.online());
        if owner == me {
            let member = Member { home: me, session: id, options: shared.options, id: shared.id, online };
            return match self.group_member(act, &shared.group, &shared.filter, member) {
                true => self.after_barrier(Behind::Report { shard: me, token }, out),
                false => self.send_done(me, token, Outcome::MET, out),
            };
        }
        let bytes = self.hops.answer(owner);
        let start = frame::begin(bytes, Kind::GroupMember, 0);
        bytes.push(act as u8);
        bytes.push(shared.options.bits());
        bytes.push(u8::from(online));
        bytes.extend_from_slice(&shared.id.to_le_bytes());
        bytes.extend_from_slice(&id.index.to_le_bytes());
        bytes.extend_from_slice(&id.generation.to_le_bytes());
        bytes.extend_from_slice(&token.to_le_bytes());
        put_text(bytes, &shared.group);
        put_text(bytes, &shared.filter);
        frame::finish(bytes, start);
    }

    /// One of the things that a SUBSCRIBE or UNSUBSCRIBE waits for has happened; with the last one, its
    /// answer leaves.
    pub(crate) fn subscribe_settled(&mut self, key: u32, out: &mut impl Output) {
        let Some(waiting) = self.barrier.subscribes.get_mut(key as usize) else { return };
        waiting.missing -= 1;
        if waiting.missing > 0 {
            return;
        }
        let waiting = self.barrier.subscribes.remove(key as usize);
        let mut fits = true;
        if let Some(session) = self.conns.open(waiting.conn).map(|open| open.session) {
            self.gate(waiting.conn, session);
        }
        if let Some(conn) = self.conns.get(waiting.conn)
            && let crate::conn::Phase::Open(open) = &conn.phase
        {
            let (version, reasons) = (open.protocol.version, waiting.reasons.iter().copied());
            let bytes_max = conn.wire.packet_bytes_max;
            fits = write_within(&mut conn.out, bytes_max, |out| {
                if waiting.unsubscribe {
                    //= MQTT-3.10.4-4
                    encode::unsuback(out, version, waiting.packet, reasons);
                } else {
                    //= MQTT-3.8.4-1
                    encode::suback(out, version, waiting.packet, reasons);
                }
            });
            if fits {
                let kind = if waiting.unsubscribe { PacketType::Unsuback } else { PacketType::Suback };
                self.counters.packet_sent(kind);
            }
            tell(conn, out);
        }
        self.brake_output(waiting.conn, out);
        waiting.replays.iter().for_each(|query| self.start_replay(*query));
        if !fits {
            let why = "an answer that is larger than the client takes";
            self.misbehaved(waiting.conn, Misbehaved { reason: Reason::PacketTooLarge, why }, out);
        }
    }

    /// An UNSUBSCRIBE of an open connection. UNSUBACK leaves when the owners of its shared groups know.
    pub(crate) fn packet_unsubscribe(
        &mut self,
        id: ConnId,
        session: SessionId,
        unsubscribe: &Unsubscribe<'_>,
        out: &mut impl Output,
    ) {
        let key = self.barrier.subscribes.insert(Waiting {
            conn: id,
            packet: unsubscribe.packet_id,
            unsubscribe: true,
            reasons: SmallVec::new(),
            replays: SmallVec::new(),
            missing: 1,
        }) as u32;
        let levels_max = usize::from(self.settings.mqtt.topic_levels_max);
        let mountpoint = self.conns.open(id).and_then(|open| open.mountpoint.clone());
        //= MQTT-3.10.4-6
        for written in unsubscribe.filters {
            let mounted = mountpoint.as_deref().map(|mountpoint| mountpoint::filter(mountpoint, written));
            let filter = mounted.as_deref().unwrap_or(written);
            let reason = match SubscribeFilter::parse(filter, levels_max) {
                Ok(parsed) => self.unsubscribe_one(session, &parsed, key, out),
                Err(_) => Reason::TopicFilterInvalid,
            };
            if reason == Reason::Success {
                self.tell_of_subscription(id, session, |who| Event::Unsubscribed { who, filter: written }, out);
            }
            if let Some(waiting) = self.barrier.subscribes.get_mut(key as usize) {
                waiting.reasons.push(reason);
            }
        }
        self.subscribe_settled(key, out);
    }

    /// Tells the shell, which knows whether anybody wants to hear it.
    fn tell_of_subscription<'a>(
        &'a mut self,
        id: ConnId,
        session: SessionId,
        event: impl FnOnce(Who<'a>) -> Event<'a>,
        out: &mut impl Output,
    ) {
        if let (Some(conn), Some(session)) = (self.conns.get(id), self.sessions.get(session)) {
            out.event(event(conn.who_of(session)));
        }
    }

    fn unsubscribe_one(
        &mut self,
        id: SessionId,
        parsed: &SubscribeFilter<'_>,
        key: u32,
        out: &mut impl Output,
    ) -> Reason {
        let filter = parsed.filter.as_str();
        let Some(session) = self.sessions.get_mut(id) else { return Reason::UnspecifiedError };
        if let Some(group) = parsed.group {
            let found = session.shared.iter().position(|s| *s.group == *group && *s.filter == *filter);
            let Some(at) = found else { return Reason::NoSubscriptionExisted };
            let shared = session.shared.swap_remove(at);
            self.journal.unsubscribed(session.number, group, filter);
            let token = self.settles_later(key);
            self.tell_group(Act::Leave, id, &shared, token, out);
            return Reason::Success;
        }
        //= MQTT-3.10.4-1
        //= MQTT-3.10.4-3
        let Some((at, change)) = self.subscriptions.remove(filter, id.index) else {
            return Reason::NoSubscriptionExisted;
        };
        session.filters.remove(&at);
        self.journal.unsubscribed(session.number, "", filter);
        if change == Change::Last {
            self.announce(filter, Dest::Shard(self.settings.shard.0), false);
        }
        //= MQTT-3.10.4-2
        self.cancel_replays(id, Some(filter));
        Reason::Success
    }

    /// Ends every subscription of a session that ends.
    pub(crate) fn unsubscribe_all(&mut self, id: SessionId, out: &mut impl Output) {
        self.cancel_replays(id, None);
        let Some(session) = self.sessions.get_mut(id) else { return };
        let filters: Vec<u32> = session.filters.drain().collect();
        let shared = core::mem::take(&mut session.shared);
        let me = self.settings.shard.0;
        for at in filters {
            let filter: Box<str> = self.subscriptions.filter(at).into();
            if self.subscriptions.remove_at(at, id.index) == Some(Change::Last) {
                self.announce(&filter, Dest::Shard(me), false);
            }
        }
        for shared in &shared {
            self.tell_group(Act::Leave, id, shared, 0, out);
        }
    }
}
