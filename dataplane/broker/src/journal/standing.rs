//! What the log says, and what follows from it: answers that may leave, publishes that are refused, a log that is written
//! anew. Lives on every shard.

use alloc::borrow::Cow;

use log::{Mark, Room, Status};
use mqtt::{connection::Misbehaved, types::Reason};

use super::{JournalBatch, Report};
use crate::{Shard, counters::Counter, deliver::tell, event::Event, obligation::Outcome, surface::Output};

/// How far a shard has come after its start. A shard accepts when all shards are `Ready`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Standing {
    /// Its sessions are there, but not every shard knows what they want, or the log has not said that what it held is
    /// flushed ([`log::Status::recovered`]).
    Restoring,
    /// Every shard knows what its sessions want; waits for [`crate::surface::Input::Replay`].
    Restored,
    /// Publishes that a crash has cut are on their way.
    Replaying,
    /// All is done.
    Ready,
}

impl Shard {
    /// What was recorded since the last call, for the log: at the end of a turn, before output leaves.
    pub fn journal(&mut self) -> Option<JournalBatch> {
        self.journal.take()
    }

    /// Gives the bytes of a batch back.
    pub fn journal_spent(&mut self, bytes: alloc::vec::Vec<u8>) {
        self.journal.recycle(bytes);
    }

    /// True while what is persistent is refused, because the log cannot take it.
    pub fn log_refuses(&self) -> bool {
        !self.journal.grows()
    }

    /// The log has come so far.
    pub(crate) fn logged(&mut self, status: &Status, out: &mut impl Output) {
        if !self.journal.on {
            return;
        }
        let before = self.journal.room;
        self.journal.room = status.room;
        if status.since_begin_bytes < self.journal.since_begin_bytes {
            // The last checkpoint counts.
            self.journal.ended_us = 0;
        }
        self.journal.since_begin_bytes = status.since_begin_bytes;
        self.journal.segments = status.segments;
        self.journal.recovered |= status.recovered;
        // What is kept may leave, whatever became of the log behind it.
        self.durable(status.durable, out);
        if status.detachments != self.journal.detachments {
            self.journal.detachments = status.detachments;
            self.detach();
            self.refuse_deferred(out);
        }
        if status.room == Room::Ready && !self.journal.recording {
            self.attach();
        }
        if before != status.room {
            let what = match status.room {
                Room::Plenty => "the log takes everything again",
                Room::Tight => "the disk is full: what is persistent is refused until there is room",
                Room::Detached => "the log cannot be written: what is persistent is refused until it can",
                Room::Ready => "the log can be written again: its content is written anew",
            };
            out.event(Event::Log { what, detail: Cow::Borrowed("") });
        }
        if matches!(status.room, Room::Plenty | Room::Tight) {
            self.journal.resync = false;
            for (shard, token) in core::mem::take(&mut self.journal.patient) {
                self.send_done(shard, token, Outcome::MET, out);
            }
            for given in core::mem::take(&mut self.journal.stuck) {
                self.send_given(given);
            }
        }
    }

    /// Everything up to this batch is kept.
    fn durable(&mut self, durable: u64, out: &mut impl Output) {
        let journal = &mut self.journal;
        if durable <= journal.durable {
            return;
        }
        journal.durable = durable;
        while let Some(&(batch, bytes)) = journal.sent.front()
            && batch <= durable
        {
            journal.sent.pop_front();
            journal.unconfirmed_bytes -= bytes;
        }
        while let Some(&Report { until, shard, token, .. }) = self.journal.waits.front()
            && until <= durable
        {
            self.journal.waits.pop_front();
            self.send_done(shard, token, Outcome::MET, out);
        }
        self.release_deferred(out);
        while let Some(&(batch, id, _)) = self.journal.gated.front()
            && batch <= durable
        {
            self.journal.gated.pop_front();
            if let Some(conn) = self.conns.get(id) {
                conn.release(durable);
                tell(conn, out);
            }
        }
    }

    /// Nothing more is kept: whoever waits is refused, and what is persistent is refused until the log is written anew.
    fn detach(&mut self) {
        let journal = &mut self.journal;
        journal.recording = false;
        journal.resync = true;
        journal.bytes.clear();
        journal.slips.clear();
        journal.slip_count = 0;
        journal.mark = Mark::None;
        journal.checkpoint = None;
        journal.ended_batch = 0;
        journal.sent.clear();
        journal.unconfirmed_bytes = 0;
        journal.doomed.extend(journal.gated.drain(..).map(|(_, id, _)| id));
        for Report { shard, token, patient, .. } in journal.waits.drain(..) {
            if patient {
                journal.patient.push((shard, token));
            } else {
                journal.refused.push((shard, token));
            }
        }
    }

    /// The log can be written again: from the beginning, with all that there is.
    fn attach(&mut self) {
        self.journal.recording = true;
        self.begin_checkpoint(Mark::Resync);
    }

    /// Tells those who wait for something that cannot be kept; part of every turn.
    pub(crate) fn refuse_unkept(&mut self, out: &mut impl Output) {
        self.release_deferred(out);
        for (shard, token) in core::mem::take(&mut self.journal.refused) {
            self.counters.one(Counter::log_waits_refused);
            self.send_done(shard, token, Outcome::refused(Reason::QuotaExceeded), out);
        }
        for id in core::mem::take(&mut self.journal.doomed) {
            self.counters.one(Counter::log_waits_refused);
            let why = "what it waits for cannot be kept";
            self.misbehaved(id, Misbehaved { reason: Reason::QuotaExceeded, why }, out);
        }
    }

    /// Output that has waited for the log for too long: its connection is closed, because an answer can be late but
    /// never wrong.
    pub(crate) fn sweep_gates(&mut self) {
        let timeout_us = u64::from(self.settings.mqtt.obligation_timeout_ms) * 1000;
        let late_us = self.now.mono_us.saturating_sub(timeout_us);
        while let Some(&(_, id, since_us)) = self.journal.gated.front()
            && since_us < late_us
        {
            self.journal.gated.pop_front();
            self.counters.one(Counter::log_waits_timed_out);
            self.journal.doomed.push(id);
        }
    }
}
