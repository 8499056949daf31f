//! Checkpoints: the whole state of a shard written to its log again, a little in each turn, so that what is older can go.
//! Lives on every shard, as part of the turn. A checkpoint is ordinary records among those of the running business:
//! a `Session` record replaces what was known of a session, and what changes behind the cursor says so itself.
//! Invariant: the cursor visits what was there when it began; what came later has recorded itself.

use contract::time::Now;
use log::{Mark, Room};
use mqtt::window::Awaits;

use super::{
    Journal,
    record::{Stream, Tag, put_slip, put_stream, put_will},
};
use crate::{
    Shard,
    counters::Counter,
    frame::{Kept, put_text, put_u16, put_u32, put_u64},
    link_journal::LinkCursor,
    publish::is_system,
    session::{Delivery, Session},
    subscriptions::Options,
};

/// How far a checkpoint has come.
pub(crate) struct Checkpoint {
    phase: Phase,
    /// Place in the table of the phase.
    at: u32,
    /// Inside a session: the last queued delivery that was written.
    place: u64,
    links: LinkCursor,
    /// Bytes that it may write now; grows with time.
    credit: u64,
    credited_us: u64,
    /// Bytes that it has written.
    written: u64,
    /// The turn in which it began has ended: its end may be marked.
    aged: bool,
    /// It was begun because the disk is full, and fits into the reserve.
    small: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Sessions,
    Retained,
    Links,
    Done,
}

/// Bytes of a checkpoint in one turn at most.
const TURN_BYTES_MAX: u64 = 256 << 10;
/// Bytes that wait for the disk while a checkpoint goes on.
const PENDING_MAX: usize = 512 << 10;
/// What looking at one entry costs, whatever it writes.
const LOOK_BYTES: u64 = 16;
/// How soon a checkpoint that has used up its share goes on.
const STEP_US: u64 = 1_000;

impl Checkpoint {
    /// Inside a session: it has written the session, and not yet what is queued at `place`.
    pub(super) fn is_ahead(&self, index: u32, place: u64) -> bool {
        self.phase == Phase::Sessions && self.at == index && self.place != 0 && self.place < place
    }
}

impl Shard {
    /// Begins a checkpoint with everything that is small.
    pub(crate) fn begin_checkpoint(&mut self, mark: Mark) {
        self.counters.one(Counter::log_checkpoints);
        let now = self.now;
        let stamp = self.retained.last_stamp();
        let journal = &mut self.journal;
        journal.checkpoints += 1;
        journal.mark = mark;
        let checkpoint = Checkpoint {
            phase: Phase::Sessions,
            at: 0,
            place: 0,
            links: LinkCursor::default(),
            credit: TURN_BYTES_MAX,
            credited_us: now.mono_us,
            written: 0,
            aged: false,
            small: journal.room == Room::Tight,
        };
        journal.checkpoint = Some(checkpoint);
        let before = journal.bytes.len();
        journal.small_state(stamp, now);
        self.checkpoint_links();
        let written = (self.journal.bytes.len() - before) as u64;
        if let Some(checkpoint) = &mut self.journal.checkpoint {
            checkpoint.written = written;
        }
    }

    /// One turn's share of the checkpoint that is due or running.
    pub(crate) fn checkpoint_turn(&mut self) {
        if !self.journal.recording {
            return;
        }
        if self.journal.checkpoint.is_none() {
            if !self.checkpoint_due() {
                return;
            }
            self.begin_checkpoint(Mark::Begins);
        }
        let Some(mut checkpoint) = self.journal.checkpoint.take() else { return };
        if self.journal.room == Room::Tight && !checkpoint.small {
            // It does not fit any more, and what is over has to find room.
            return;
        }
        if self.journal.unconfirmed_bytes > PENDING_MAX {
            // Never more than a little ahead of the disk: others wait behind it.
            self.journal.checkpoint = Some(checkpoint);
            return;
        }
        let now_us = self.now.mono_us;
        let earned =
            (now_us - checkpoint.credited_us).saturating_mul(self.journal.limits.compact_bytes_per_s) / 1_000_000;
        if earned > 0 {
            checkpoint.credited_us = now_us;
            checkpoint.credit = (checkpoint.credit + earned).min(TURN_BYTES_MAX);
        }
        while checkpoint.credit > 0 && checkpoint.phase != Phase::Done {
            let before = self.journal.bytes.len();
            match checkpoint.phase {
                Phase::Sessions => self.checkpoint_session(&mut checkpoint),
                Phase::Links => {
                    let bytes_max = TURN_BYTES_MAX.min(checkpoint.credit) as usize;
                    if self.checkpoint_link(&mut checkpoint.links, bytes_max) {
                        checkpoint.phase = Phase::Done;
                    }
                }
                _ => self.checkpoint_retained(&mut checkpoint),
            }
            let written = (self.journal.bytes.len() - before) as u64;
            checkpoint.written += written;
            checkpoint.credit = checkpoint.credit.saturating_sub(written + LOOK_BYTES);
        }
        if checkpoint.phase == Phase::Done && checkpoint.aged && self.journal.mark == Mark::None {
            let stamp = self.retained.last_stamp();
            self.journal.clock(false, stamp);
            self.journal.mark = Mark::Ends;
            self.journal.ended_us = self.now.mono_us;
            self.journal.live_bytes = checkpoint.written;
            return;
        }
        checkpoint.aged = true;
        self.journal.checkpoint = Some(checkpoint);
    }

    /// When a running checkpoint goes on.
    pub(crate) fn checkpoint_deadline_us(&self) -> u64 {
        if self.journal.checkpoint.is_some() { self.now.mono_us + STEP_US } else { u64::MAX }
    }

    /// The log has grown to a multiple of what is alive, or the disk is full and little is alive.
    fn checkpoint_due(&mut self) -> bool {
        let journal = &self.journal;
        // Before the end of the last one is kept, nobody knows how much the log has grown since.
        if !journal.on || journal.mark != Mark::None || journal.ended_batch > journal.durable {
            return false;
        }
        if journal.ended_us != 0 && self.now.mono_us < journal.ended_us + COUNTS_US {
            return false;
        }
        let grown = journal.since_begin_bytes;
        // A start with another number of shards waits for the end of the first one, and a full disk may have cut that.
        if journal.room == Room::Plenty && self.restoring.as_ref().is_some_and(|r| r.moved) && !journal.checkpointed() {
            return true;
        }
        match journal.room {
            Room::Plenty => {
                let bound = journal.live_bytes * 2 + journal.limits.compact_min_bytes;
                // Every start begins a segment, however little is in it.
                let files = u64::from(journal.segments) * u64::from(journal.limits.segment_bytes);
                grown > bound || files > bound * 2 + u64::from(journal.limits.segment_bytes) * SEGMENTS_MIN
            }
            Room::Tight => {
                // The reserve of one segment has to take it all.
                let small = u64::from(journal.limits.segment_bytes) / 2;
                grown > small && self.now.mono_us >= self.journal.looked_us + LOOK_AGAIN_US && {
                    self.journal.looked_us = self.now.mono_us;
                    self.sessions.queued_bytes() + self.retained.bytes() + self.links.waiting_bytes() < small
                }
            }
            Room::Detached | Room::Ready => false,
        }
    }

    fn checkpoint_session(&mut self, checkpoint: &mut Checkpoint) {
        if checkpoint.at >= self.sessions.places() {
            (checkpoint.phase, checkpoint.at) = (Phase::Retained, 0);
            return;
        }
        let now = self.now;
        let index = checkpoint.at;
        let Some(session) = self.sessions.at(index).filter(|session| session.number != 0) else {
            (checkpoint.at, checkpoint.place) = (index + 1, 0);
            return;
        };
        let journal = &mut self.journal;
        if checkpoint.place == 0 {
            journal.whole_session(session, now);
            for at in &session.filters {
                let subscription = self.subscriptions.subscription(*at, index);
                let (options, id) = subscription.map_or((Options::default(), 0), |s| (s.options, s.id));
                journal.subscribed(session.number, "", self.subscriptions.filter(*at), options, id);
            }
            for shared in &session.shared {
                journal.subscribed(session.number, &shared.group, &shared.filter, shared.options, shared.id);
            }
        }
        let queue = session.state.queue();
        let from = queue.partition_point(|delivery| delivery.place <= checkpoint.place);
        let stop = journal.bytes.len() + TURN_BYTES_MAX.min(checkpoint.credit) as usize;
        for delivery in queue.range(from..) {
            checkpoint.place = delivery.place;
            if delivery.recorded() {
                journal.queued(session.number, delivery, now);
            }
            if journal.bytes.len() >= stop {
                return;
            }
        }
        (checkpoint.at, checkpoint.place) = (index + 1, 0);
    }

    fn checkpoint_retained(&mut self, checkpoint: &mut Checkpoint) {
        if checkpoint.at >= self.retained.places() {
            checkpoint.phase = Phase::Links;
            return;
        }
        if let Some(kept) = self.retained.at(checkpoint.at)
            && !is_system(kept.message(self.now.mono_us).topic)
        {
            self.journal.retained(kept, self.now);
        }
        checkpoint.at += 1;
    }
}

/// How long a checkpoint may take to count: the log has to flush it.
const COUNTS_US: u64 = 5_000_000;
/// Segments that a log may have, however little is in them.
const SEGMENTS_MIN: u64 = 16;
/// How often a full disk makes us look at how much is alive.
const LOOK_AGAIN_US: u64 = 1_000_000;

impl Journal {
    fn small_state(&mut self, stamp: u64, now: Now) {
        self.clock(true, stamp);
        let marks: alloc::vec::Vec<_> = self.watermarks.iter().map(|(key, sequence)| (*key, *sequence)).collect();
        for ((shards, home, stream), sequence) in marks {
            self.watermark_record(shards, home, stream, sequence);
        }
        let unfinished = core::mem::take(&mut self.unfinished);
        for publish in unfinished.values() {
            let (session, packet) = (publish.session, publish.packet);
            self.record(Tag::Publish, |out| {
                put_u64(out, session);
                put_u16(out, packet);
                put_u64(out, now.wall_ms);
                publish.kept.put(out, now.mono_us);
            });
        }
        for ((stream, sequence), publish) in &unfinished {
            if let Some(routed) = publish.routed {
                self.routed_record(*stream, *sequence, routed);
            }
        }
        self.unfinished = unfinished;
        let chosen = core::mem::take(&mut self.chosen);
        for ((stream, sequence), one) in &chosen {
            self.chosen_record(*stream, *sequence, one, now);
        }
        self.chosen = chosen;
    }

    /// How far the counters have come, and whether a checkpoint is running.
    fn clock(&mut self, running: bool, stamp: u64) {
        let (body, session, group) = (self.bodies, self.sessions, self.group_sequence);
        self.record(Tag::Clock, |out| {
            out.push(u8::from(running));
            [stamp, body, session, group].iter().for_each(|n| put_u64(out, *n));
        });
    }

    /// A message that deliveries refer to, once per checkpoint.
    fn body(&mut self, kept: &Kept, now: Now) {
        if kept.body.get() != 0 && kept.checkpoint.get() == self.checkpoints {
            return;
        }
        self.name_body(kept);
        let body = kept.body.get();
        self.record(Tag::Body, |out| {
            put_u64(out, body);
            put_u64(out, now.wall_ms);
            kept.put(out, now.mono_us);
        });
    }

    pub(super) fn queued(&mut self, session: u64, delivery: &Delivery, now: Now) {
        self.body(&delivery.message, now);
        let body = delivery.message.body.get();
        self.record(Tag::Queued, |out| {
            put_u64(out, body);
            put_slip(out, session, delivery.place, 0, delivery.flags(), &delivery.ids);
        });
    }

    /// Everything of a session except its subscriptions and its queue.
    fn whole_session(&mut self, session: &Session, now: Now) {
        for sent in session.state.outgoing.unfinished() {
            if let Some(delivery) = &sent.delivery {
                self.body(&delivery.message, now);
            }
        }
        let ends_ms = if session.online() { 0 } else { now.wall_of_us(session.ends_us) };
        let due_ms = if session.will_due_us == 0 { 0 } else { now.wall_of_us(session.will_due_us) };
        self.record(Tag::Session, |out| {
            put_u64(out, session.number);
            put_text(out, &session.client);
            put_u32(out, session.state.expiry_s);
            put_u64(out, ends_ms);
            put_will(out, session.state.will.as_deref(), due_ms);
            put_u64(out, session.places);
            put_u32(out, session.state.outgoing.len() as u32);
            for sent in session.state.outgoing.unfinished() {
                out.push(match sent.awaits {
                    Awaits::Puback => 0,
                    Awaits::Pubrec => 1,
                    Awaits::Pubcomp => 2,
                });
                match &sent.delivery {
                    Some(delivery) => {
                        put_u64(out, delivery.message.body.get());
                        let packet = sent.id.get();
                        put_slip(out, session.number, delivery.place, packet, delivery.flags(), &delivery.ids);
                    }
                    None => {
                        put_u64(out, 0);
                        put_slip(out, session.number, 0, sent.id.get(), 0, &[]);
                    }
                }
            }
        });
        let mut incoming: alloc::vec::Vec<u16> = session.state.incoming.ids().map(|(id, _)| id).collect();
        incoming.sort_unstable();
        incoming.iter().for_each(|packet| self.packet(Tag::Incoming, session.number, *packet));
    }

    pub(super) fn chosen_record(&mut self, stream: Stream, sequence: u64, chosen: &super::Chosen, now: Now) {
        let shards = self.shards;
        self.record(Tag::Chosen, |out| {
            put_stream(out, stream);
            put_u64(out, sequence);
            put_u16(out, shards);
            put_u16(out, chosen.home);
            put_text(out, &chosen.group);
            put_text(out, &chosen.filter);
            put_u64(out, now.wall_ms);
            chosen.kept.put(out, now.mono_us);
        });
    }
}
