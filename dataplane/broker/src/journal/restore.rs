//! A shard takes over what its log (or several) held: sessions and retained values first, then, when every shard of the node
//! knows what they want, the publishes that a crash has cut. Lives on every shard, before it accepts anybody.
//! Invariant: a repeated publish reaches exactly those destinations that had not taken it.

use alloc::{boxed::Box, sync::Arc, vec::Vec};

use ahash::RandomState;
use hashbrown::HashMap;
use log::Mark;
use mqtt::{
    session::QueueLimits,
    types::PacketId,
    window::{Awaits, Receiving},
};

use super::{
    Again, Unfinished,
    deal::{Dealt, Regroup, Resumed},
    image::{self, Body, Paper},
    record::Stream,
    standing::Standing,
};
use crate::{
    Shard, Timer,
    counters::Counter,
    frame::{Kept, Message},
    groups::Act,
    interest::Dest,
    obligation::{Wait, Waiter},
    session::{Delivery, SessionId, SharedSubscription},
    subscriptions::{Change, Options, Subscription},
    surface::Output,
};

/// What a shard that came up has still to do.
pub(crate) struct Restoring {
    unfinished: Vec<((Stream, u64), Option<SessionId>)>,
    regroup: Vec<(Box<str>, Box<str>, Kept)>,
    /// Its obligation: the owners of the groups that its sessions joined.
    joined: u64,
    /// Announcements that have to be live everywhere.
    until: u64,
    /// The first checkpoint of a log that held nothing has to be complete.
    pub(super) moved: bool,
    /// Repeated publishes that have not been settled.
    pub(crate) open: usize,
}

const UNBOUNDED: QueueLimits = QueueLimits { queued_max: usize::MAX, queued_bytes_max: u64::MAX };

/// Bodies that several sessions of this shard wait for.
type Shared = HashMap<usize, (Arc<Body>, Kept), RandomState>;

impl Shard {
    /// Takes over what the logs held. Once, before the first turn; [`Shard::standing`] says when the next step may follow.
    pub fn restore(&mut self, now: contract::time::Now, dealt: Dealt, out: &mut impl Output) {
        self.now = now;
        self.standing = Standing::Restoring;
        self.history = dealt.history.clone();
        let journal = &mut self.journal;
        (journal.bodies, journal.sessions) = (dealt.body_number, dealt.session_number);
        (journal.group_sequence, journal.watermarks) = (dealt.group_sequence, dealt.watermarks);
        self.retained.restore_stamp(dealt.stamp);
        let mut shared = Shared::with_hasher(RandomState::with_seeds(self.settings.seed, 26, 27, 28));
        let joined = self.obligations.open(Waiter::Restored, u64::MAX);
        for (number, kept) in dealt.sessions {
            self.restore_session(number, kept, !dealt.moved, &mut shared, joined, out);
        }
        for body in dealt.retained {
            self.restore_retained(&body);
        }
        let mut restoring =
            Restoring { unfinished: Vec::new(), regroup: Vec::new(), joined, until: 0, moved: dealt.moved, open: 0 };
        for Resumed { stream, sequence, cut, client } in dealt.unfinished {
            let key = (stream, sequence);
            let session = client.and_then(|client| self.sessions.find(&client));
            let number = session.and_then(|id| self.sessions.get(id)).map_or(0, |session| session.number);
            if let Some(kept) = self.restore_body(&cut.body, false) {
                self.journal
                    .unfinished
                    .insert(key, Unfinished { session: number, packet: cut.packet, routed: cut.routed, kept });
                restoring.unfinished.push((key, session));
            }
        }
        for (stream, sequence) in dealt.chosen {
            self.journal.restored_choice(stream, sequence);
        }
        for Regroup { group, filter, body } in dealt.regroup {
            if let Some(kept) = self.restore_body(&body, false) {
                restoring.regroup.push((group, filter, kept));
            }
        }
        self.restore_links(dealt.outlets, dealt.outlet_places, dealt.wanted);
        restoring.until = self.barrier.issued;
        self.restoring = Some(Box::new(restoring));
        if dealt.moved && self.journal.on() {
            self.begin_checkpoint(Mark::Begins);
        }
        self.report(joined, crate::obligation::Outcome::MET, out);
    }

    /// How far this shard has come since its start.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Part of every turn until the shard is ready.
    pub(crate) fn restoring_turn(&mut self) {
        let Some(restoring) = &self.restoring else { return };
        match self.standing {
            Standing::Restoring => {
                let joined = self.obligations.waiter(restoring.joined).is_none();
                let moved = !restoring.moved || self.journal.checkpointed();
                if joined && moved && self.journal.recovered() && self.barrier.passed(restoring.until) {
                    self.standing = Standing::Restored;
                }
            }
            Standing::Replaying if restoring.open == 0 => {
                self.standing = Standing::Ready;
                self.restoring = None;
            }
            _ => {}
        }
    }

    /// Every shard knows what the sessions of all want: publishes that were cut are repeated, wills and ends are due.
    pub(crate) fn replay(&mut self, out: &mut impl Output) {
        if self.standing != Standing::Restored {
            return;
        }
        self.standing = Standing::Replaying;
        let Some(restoring) = &mut self.restoring else {
            self.standing = Standing::Ready;
            return;
        };
        let (unfinished, regroup) =
            (core::mem::take(&mut restoring.unfinished), core::mem::take(&mut restoring.regroup));
        for ((stream, sequence), session) in unfinished {
            self.repeat(stream, sequence, session, out);
        }
        for (group, filter, kept) in regroup {
            self.regroup(&group, &filter, &kept, out);
        }
        self.leave_restored(out);
    }

    /// Routes a publish of an earlier life again, under its old message id.
    fn repeat(&mut self, stream: Stream, sequence: u64, session: Option<SessionId>, out: &mut impl Output) {
        let Some(publish) = self.journal.unfinished.get(&(stream, sequence)) else { return };
        let (packet, kept) = (publish.packet, publish.kept.clone());
        self.counters.one(Counter::publishes_repeated);
        let restoring = self.restoring.is_some();
        let mut wait = Wait::new(Waiter::Repeated { stream, sequence, session, packet, restoring });
        let message = Message { durable: true, ..kept.message(self.now.mono_us) };
        let deadline_us = self.obligation_deadline_us();
        let token = wait.one_more(&mut self.obligations, deadline_us);
        if let Some(restoring) = &mut self.restoring {
            restoring.open += 1;
        }
        if let (Some(session), Some(packet)) = (session.and_then(|id| self.sessions.get_mut(id)), PacketId::new(packet))
            && session.state.incoming.state(packet).is_some()
        {
            session.state.incoming.set(packet, Receiving::Open(token));
        }
        self.route(&message, &mut wait, None, out);
        self.report(token, crate::obligation::Outcome::MET, out);
        self.pool.release(kept);
    }

    /// Tries again what could not be kept: part of the sweep.
    pub(crate) fn choose_again(&mut self, out: &mut impl Output) {
        if self.journal.again.is_empty() || !self.journal.grows() {
            return;
        }
        for again in core::mem::take(&mut self.journal.again) {
            match again {
                Again::Publish(stream, sequence, session) => self.repeat(stream, sequence, session, out),
                Again::Chosen(stream, sequence) => {
                    if let Some(chosen) = self.journal.chosen_done(stream, sequence) {
                        self.regroup(&chosen.group, &chosen.filter, &chosen.kept, out);
                        self.pool.release(chosen.kept);
                    }
                }
            }
        }
    }

    /// Nobody is connected: from now on sessions and wills have their deadlines.
    fn leave_restored(&mut self, out: &mut impl Output) {
        let now = self.now;
        let mut due = Vec::new();
        for index in 0..self.sessions.places() {
            let Some(session) = self.sessions.at(index) else { continue };
            let id = SessionId { index, generation: session.generation };
            if session.will_due_us != 0 {
                self.wheel.arm(session.will_due_us, Timer::Session(id));
            }
            if session.ends_us != u64::MAX {
                self.wheel.arm(session.ends_us, Timer::Session(id));
            }
            let due_ms = if session.will_due_us == 0 { 0 } else { now.wall_of_us(session.will_due_us) };
            let (number, ends_ms) = (session.number, now.wall_of_us(session.ends_us));
            if session.ends_us <= now.mono_us || (1..=now.mono_us).contains(&session.will_due_us) {
                due.push(id);
            }
            if core::mem::take(&mut session.cut) {
                self.journal.left(number, ends_ms, due_ms);
            }
        }
        // Before anybody can come back to a session that is over, or in time for a will that is due.
        for id in due {
            self.session_timer(id, out);
        }
    }

    fn restore_session(
        &mut self,
        number: u64,
        kept: image::Kept,
        same: bool,
        shared: &mut Shared,
        joined: u64,
        out: &mut impl Output,
    ) {
        if kept.client.is_empty() || self.sessions.find(&kept.client).is_some() {
            return;
        }
        self.counters.one(Counter::session_restored);
        let now = self.now;
        let id = self.sessions.insert(&kept.client, kept.expiry_s);
        let number = if number == 0 { self.journal.number_session() } else { number };
        let mut window = Vec::new();
        for held in kept.window {
            let delivery = held.paper.and_then(|paper| self.restore_delivery(paper, same, shared));
            if let Some(packet) = PacketId::new(held.packet)
                && (delivery.is_some() || held.awaits == Awaits::Pubcomp)
            {
                window.push((packet, held.awaits, delivery));
            }
        }
        let queue: Vec<Delivery> =
            kept.queue.into_iter().filter_map(|paper| self.restore_delivery(paper, same, shared)).collect();
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.number = number;
        session.places = kept.places;
        for (packet, awaits, delivery) in window {
            session.state.outgoing.restore(packet, awaits, delivery);
        }
        for delivery in queue {
            // Without limits: what was accepted stays accepted.
            let _ = session.state.enqueue(delivery, &UNBOUNDED);
        }
        for packet in kept.incoming.into_iter().filter_map(PacketId::new) {
            session.state.incoming.set(packet, Receiving::Accepted);
        }
        session.state.will = kept.will;
        session.cut = kept.ends_ms == 0;
        let connected = kept.ends_ms == 0;
        session.ends_us = match (connected, kept.expiry_s) {
            (true, u32::MAX) => u64::MAX,
            (true, s) => now.mono_us + u64::from(s) * 1_000_000,
            (false, _) => now.mono_of_ms(kept.ends_ms),
        };
        if session.state.will.is_some() {
            let due_us =
                if connected { now.mono_us + session.state.will_delay_us() } else { now.mono_of_ms(kept.will_due_ms) };
            session.will_due_us = due_us.max(1);
        }
        self.restore_subscriptions(id, kept.subscriptions, joined, out);
    }

    fn restore_subscriptions(
        &mut self,
        id: SessionId,
        subscriptions: alloc::collections::BTreeMap<(Box<str>, Box<str>), (u8, u32)>,
        joined: u64,
        out: &mut impl Output,
    ) {
        for ((group, filter), (options, number)) in subscriptions {
            let options = Options::from_bits(options);
            if !group.is_empty() {
                let shared = SharedSubscription { group, filter, options, id: number, muted: false };
                self.obligations.more(joined);
                self.tell_group(Act::Join, id, &shared, joined, out);
                if let Some(session) = self.sessions.get_mut(id) {
                    session.shared.push(shared);
                }
                continue;
            }
            let subscription = Subscription { session: id.index, id: number, options };
            let (at, change, _) = self.subscriptions.insert(&filter, subscription);
            if let Some(session) = self.sessions.get_mut(id) {
                session.filters.insert(at);
            }
            if change == Change::First {
                self.announce(&filter, Dest::Shard(self.settings.shard.0), true);
            }
        }
    }

    fn restore_delivery(&mut self, paper: Paper, same: bool, shared: &mut Shared) -> Option<Delivery> {
        let at = Arc::as_ptr(&paper.body) as usize;
        let message = match shared.get(&at) {
            Some((_, kept)) => kept.clone(),
            None => {
                let kept = self.restore_body(&paper.body, same)?;
                if Arc::strong_count(&paper.body) > 1 {
                    // Held, so that no other body can come to stand at the same address.
                    shared.insert(at, (paper.body.clone(), kept.clone()));
                }
                kept
            }
        };
        let retain = paper.flags & 4 != 0;
        Some(Delivery { message, qos: paper.qos(), retain, ids: paper.ids, place: paper.place })
    }

    /// A message as it was kept, with the life that is left of it. `numbered`: it keeps its number, because this log holds it.
    fn restore_body(&mut self, body: &Body, numbered: bool) -> Option<Kept> {
        let stored = body.stored();
        let message = stored.message().ok()?;
        let now = self.now;
        let expiry_ms = match stored.expires_wall_ms() {
            u64::MAX => u64::MAX,
            at_ms => at_ms.saturating_sub(now.wall_ms),
        };
        let kept = self.pool.keep(&Message { expiry_ms, ..message }, now.mono_us);
        if numbered {
            kept.body.set(body.number);
        }
        Some(kept)
    }

    fn restore_retained(&mut self, body: &Body) {
        if let Some(kept) = self.restore_body(body, false)
            && !kept.expired(self.now.mono_us)
        {
            self.retained.restore(kept, self.now.mono_us);
        }
    }
}
