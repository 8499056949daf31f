//! The turn: mailboxes in, answers, hops out. The order inside it is what the guarantees rest on:
//! 1. deadlines;
//! 2. mail up to the tails seen at the start;
//! 3. retained queries, each after the mailboxes were drained to tails read *after* the query was taken;
//! 4. confirmations of interest and what waited for them;
//! 5. input that was held back;
//! 6. all message hops, then answers.

use alloc::{boxed::Box, vec::Vec};

use contract::ids::ShardId;
use mqtt::{connection::Misbehaved, types::Reason};

use crate::{
    Shard, Timer,
    conn::{Phase, pause},
    counters::Counter,
    frame::{self, BadFrame, Fields, Frame, Kind, must},
    groups::{Act, Member},
    interest::Dest,
    obligation::{Outcome, Wait, Waiter},
    plant::Plant,
    replay::op,
    retained::{Page, Query},
    session::SessionId,
    subscribe::Behind,
    subscriptions::Options,
    surface::{Batch, ConnId, Mailboxes, Output, Turned},
};

/// Bytes of mail handled per source and turn before connections get their turn again.
const MAIL_BYTES_PER_TURN: usize = 1 << 20;
/// Rounds of retained queries per turn; what comes later waits for the next turn.
const QUERY_ROUNDS: usize = 2;
/// How often staged batches are offered again while a mailbox is full.
const STAGED_RETRY_US: u64 = 200;
/// How often obligations are searched for overdue ones.
const SWEEP_US: u64 = 500_000;

impl Shard {
    /// One turn, after the inputs of this wake-up were given to [`Shard::input`].
    pub fn turn(&mut self, now: contract::time::Now, mail: &mut impl Mailboxes, out: &mut impl Output) -> Turned {
        self.now = now;
        self.fire_timers(out);
        let mut busy = self.drain_mail(mail, MAIL_BYTES_PER_TURN, out);
        busy |= self.revise(out);
        busy |= self.inspect(out);
        busy |= self.answer_queries(mail, out);
        self.confirm_interest();
        self.release_barrier(out);
        self.links_turn(out);
        self.go_on(out);
        // What was held back may have gone to an outlet.
        self.tell_links(out);
        self.continue_replays();
        self.refuse_unkept(out);
        self.restoring_turn();
        self.checkpoint_turn();
        let mut drained = core::mem::take(&mut self.drained);
        let staged = self.hops.publish(mail, &mut drained);
        self.barrier.fresh = false;
        self.counters.add(Counter::batches_staged, self.hops.take_staged());
        for conn in drained.drain(..) {
            self.resume(conn, pause::HOP, out);
        }
        self.drained = drained;
        busy |= !self.resumed.is_empty() || !self.retained.queries.is_empty();
        let mut deadline_us = self.wheel.deadline_us().min(self.retained.deadline_us()).min(self.links_deadline_us());
        deadline_us = deadline_us.min(self.checkpoint_deadline_us());
        if staged {
            deadline_us = deadline_us.min(now.mono_us + STAGED_RETRY_US);
        }
        Turned { busy, deadline_us }
    }

    fn fire_timers(&mut self, out: &mut impl Output) {
        let now_us = self.now.mono_us;
        if now_us >= self.wheel.deadline_us() {
            let mut due = core::mem::take(&mut self.due);
            self.wheel.fire(now_us, &mut due);
            for timer in due.drain(..) {
                match timer {
                    Timer::Conn(id) => self.conn_timer(id, out),
                    Timer::Session(id) => self.session_timer(id, out),
                    Timer::Pace(id) => self.pace_timer(id, out),
                    Timer::Sweep => self.sweep_armed = false,
                }
            }
            self.due = due;
            let mut late = Vec::new();
            self.obligations.overdue(now_us, &mut late);
            for token in late {
                self.obligation_overdue(token, out);
            }
            self.sweep_gates();
            self.choose_again(out);
        }
        if now_us >= self.retained.deadline_us() {
            self.retained.expire(now_us, &mut self.pool);
        }
        let waits = self.obligations.len() > 0 || !self.journal.gated.is_empty() || !self.journal.again.is_empty();
        if waits && !self.sweep_armed {
            self.sweep_armed = true;
            self.wheel.arm(now_us + SWEEP_US, Timer::Sweep);
        }
    }

    /// Reads every mailbox up to the tail that is visible now, at most `bytes_max` each. True: more is left.
    fn drain_mail(&mut self, mail: &mut impl Mailboxes, bytes_max: usize, out: &mut impl Output) -> bool {
        let me = self.settings.shard;
        let mut more = false;
        for from in (0..self.settings.shards).map(ShardId).filter(|from| *from != me) {
            let tail = mail.tail(from);
            let mut bytes = 0;
            while mail.taken(from) < tail {
                if bytes >= bytes_max {
                    more = true;
                    break;
                }
                let Some(batch) = mail.take(from) else { break };
                bytes += batch.bytes.len() + 1;
                self.read_batch(from, batch, mail, out);
            }
        }
        more
    }

    fn read_batch(&mut self, from: ShardId, mut batch: Box<Batch>, mail: &mut impl Mailboxes, out: &mut impl Output) {
        let mut rest = &batch.bytes[..];
        while !rest.is_empty() {
            let read = frame::split(rest).and_then(|(frame, tail)| {
                rest = tail;
                self.frame(from.0, &frame, out)
            });
            if read.is_err() {
                // The rest of the batch cannot be trusted to begin where we think.
                self.counters.one(Counter::frames_bad);
                break;
            }
        }
        for parcel in batch.parcels.drain(..) {
            if let Some(id) = out.adopt(parcel.transport) {
                let parked = parcel.parked;
                self.opening(id, (parked.listener, parked.peer, parked.certificate), self.now.mono_us);
                self.received(id, &parked.unread, out);
            }
        }
        batch.bytes.clear();
        mail.give_back(from, batch);
    }

    /// Answers retained queries: those of other shards and our own.
    fn answer_queries(&mut self, mail: &mut impl Mailboxes, out: &mut impl Output) -> bool {
        for _ in 0..QUERY_ROUNDS {
            if self.retained.queries.is_empty() {
                return false;
            }
            let queries = core::mem::take(&mut self.retained.queries);
            if !self.planted(Plant::WrongTails) {
                self.drain_mail(mail, usize::MAX, out);
            }
            for query in queries {
                self.counters.one(Counter::retained_queries);
                let from = query.from;
                let page = self.retained.answer(query, self.now);
                self.send_page(from, &page, out);
            }
        }
        !self.retained.queries.is_empty()
    }

    fn send_page(&mut self, to: u16, page: &Page, out: &mut impl Output) {
        let me = self.settings.shard.0;
        if to == me {
            return self.replay_page(me, page, out);
        }
        let bytes = self.hops.answer_after(to);
        let start = frame::begin(bytes, Kind::RetainedPage, 0);
        bytes.extend_from_slice(&page.query.to_le_bytes());
        bytes.push(u8::from(page.last));
        bytes.extend_from_slice(&(page.taken.len() as u32).to_le_bytes());
        page.taken.iter().for_each(|taken| bytes.extend_from_slice(&taken.to_le_bytes()));
        bytes.extend_from_slice(&page.frames);
        frame::finish(bytes, start);
    }

    /// Consumes what was held back and may go on, and pumps sessions whose output has drained.
    fn go_on(&mut self, out: &mut impl Output) {
        let output_low = self.settings.limits.output_bytes_max as usize / 2;
        let mut drowned = core::mem::take(&mut self.drowned);
        drowned.retain(|id| {
            let waits = self.conns.get(*id).is_some_and(|conn| conn.out.len() > output_low);
            if !waits {
                self.resume(*id, pause::OUTPUT, out);
            }
            waits
        });
        self.drowned.append(&mut drowned);
        for id in core::mem::take(&mut self.cut) {
            self.counters.one(Counter::slow_subscribers_disconnected);
            let why = "it reads too slowly (mqtt.slow_subscriber)";
            self.misbehaved(id, Misbehaved { reason: Reason::QuotaExceeded, why }, out);
        }
        for id in core::mem::take(&mut self.resumed) {
            self.consume_unread(id, out);
        }
        for session in core::mem::take(&mut self.to_pump) {
            self.pump(session, out);
        }
    }

    /// One frame of another shard.
    fn frame(&mut self, from: u16, frame: &Frame<'_>, out: &mut impl Output) -> Result<(), BadFrame> {
        let mut fields = Fields(frame.body);
        match frame.kind {
            Kind::Message => self.frame_message(from, frame, out)?,
            Kind::GroupDelivery => {
                self.counters.one(Counter::hops_received);
                let read = frame::read_message(frame)?;
                self.group_delivery(from, &read, out);
            }
            Kind::GroupReturned if self.planted(Plant::GroupReturnLost) => {
                let token = frame::read_message(frame)?.token;
                self.report(token, Outcome::MET, out);
            }
            Kind::GroupReturned => self.group_returned(from, &frame::read_message(frame)?, out),
            Kind::Done => {
                let token = fields.u64()?;
                let reason = Reason::from_u8(fields.u8()?).ok_or(BadFrame::Field("reason"))?;
                let disconnect = fields.u8()? != 0;
                self.report(token, Outcome { reason, disconnect }, out);
            }
            Kind::Interest => {
                let (seq, what) = (fields.u64()?, fields.u8()?);
                let dest = Dest::decode(fields.u32()?).ok_or(BadFrame::Field("destination"))?;
                self.interest_frame(from, seq, what, dest, fields.text()?);
            }
            Kind::InterestAck => self.barrier.acked(from, fields.u64()?),
            Kind::RetainedQuery => self.frame_query(from, &mut fields)?,
            Kind::RetainedPage => self.frame_page(from, &mut fields, out)?,
            Kind::GroupMember => self.frame_member(from, &mut fields, out)?,
            Kind::LinkRoute | Kind::LinkGone | Kind::InterestTold => {
                self.link_frame(from, frame, out)?;
            }
            // Sessions do not move between the shards of a node: the home shard of a client id is fixed.
            Kind::Session => return Err(BadFrame::Field("kind")),
        }
        Ok(())
    }

    /// A message that another shard routed here: as home of sessions, as owner of the topic, as owner of groups.
    fn frame_message(&mut self, from: u16, frame: &Frame<'_>, out: &mut impl Output) -> Result<(), BadFrame> {
        self.counters.one(Counter::hops_received);
        let read = frame::read_message(frame)?;
        let before = self.journal.position();
        let mut refused = false;
        if self.took_repeated(&read.message) {
            self.send_done(from, read.token, Outcome::MET, out);
            return Ok(());
        }
        if read.must & must::STORE != 0 {
            refused |= self.keep_retained(&read.message);
        }
        if read.must & must::DELIVER != 0 {
            refused |= self.deliver_here(&read.message, out).refused;
        }
        let mut wait = match read.token {
            0 => Wait::nobody(),
            token => Wait::new(Waiter::Relay { shard: from, token }),
        };
        if read.must & must::GROUPS != 0 {
            refused |= self.deliver_groups(&read.message, &mut wait, out).refused;
        }
        if !refused {
            self.taken(&read.message);
        }
        let stored = read.must & must::STORE != 0 && self.journal.until() != 0;
        let recorded = stored || self.journal.position() != before || self.taken_unrecorded(&read.message);
        if recorded && wait.token != 0 {
            // The owner's part of a group message is in our log, the rest is with the member.
            self.obligations.more(wait.token);
            self.when_kept(self.settings.shard.0, wait.token, &read.message);
        }
        match (refused, wait.token) {
            (true, 0) => self.send_done(from, read.token, Outcome::refused(Reason::QuotaExceeded), out),
            (true, token) => self.obligations.refuse(token, Outcome::refused(Reason::QuotaExceeded)),
            (false, 0) if recorded && !self.planted(Plant::DoneBeforeLog) => {
                self.when_kept(from, read.token, &read.message);
            }
            (false, 0) => self.send_done(from, read.token, Outcome::MET, out),
            (false, _) => {}
        }
        Ok(())
    }

    fn frame_query(&mut self, from: u16, fields: &mut Fields<'_>) -> Result<(), BadFrame> {
        let (operation, query, room) = (fields.u8()?, fields.u32()?, fields.u32()?);
        let filter = fields.text()?;
        match operation {
            op::CANCEL => self.retained.cancel(from, query),
            op::OPEN => self.retained.queries.push(Query { from, query, room, filter: Some(filter.into()) }),
            op::NEXT => self.retained.queries.push(Query { from, query, room, filter: None }),
            _ => return Err(BadFrame::Field("operation")),
        }
        Ok(())
    }

    fn frame_page(&mut self, from: u16, fields: &mut Fields<'_>, out: &mut impl Output) -> Result<(), BadFrame> {
        let (query, last) = (fields.u32()?, fields.u8()? != 0);
        let count = fields.u32()? as usize;
        if count > 2 * usize::from(self.settings.shards) {
            return Err(BadFrame::Field("streams"));
        }
        let mut taken = Vec::with_capacity(count);
        for _ in 0..count {
            taken.push(fields.u64()?);
        }
        let page = Page { query, last, taken, frames: fields.0.into() };
        self.replay_page(from, &page, out);
        Ok(())
    }

    fn frame_member(&mut self, from: u16, fields: &mut Fields<'_>, out: &mut impl Output) -> Result<(), BadFrame> {
        let act = Act::from_u8(fields.u8()?).ok_or(BadFrame::Field("act"))?;
        let options = Options::from_bits(fields.u8()?);
        let (online, id) = (fields.u8()? != 0, fields.u32()?);
        let session = SessionId { index: fields.u32()?, generation: fields.u32()? };
        let token = fields.u64()?;
        let (group, filter) = (fields.text()?, fields.text()?);
        let member = Member { home: from, session, options, id, online };
        match self.group_member(act, group, filter, member) {
            true => self.after_barrier(Behind::Report { shard: from, token }, out),
            false => self.send_done(from, token, Outcome::MET, out),
        }
        Ok(())
    }

    /// Bytes to send on a connection: the shell swaps them out, which also ends our claim to have told it.
    pub fn output(&mut self, id: ConnId) -> Option<&mut Vec<u8>> {
        let conn = self.conns.get(id)?;
        conn.told = false;
        if let Phase::Open(open) = &conn.phase
            && let Some(session) = self.sessions.get_mut(open.session)
            && core::mem::take(&mut session.blocked)
        {
            self.to_pump.push(open.session.index);
        }
        Some(conn.sendable())
    }
}
