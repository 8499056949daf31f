//! The broker as the shell's [`Brain`], and what it writes on the board for control.

use broker::{
    counters::Counter,
    journal::{Dealt, JournalBatch, Standing},
    surface::{ConnId, Input, Mailboxes, Output, Turned},
};
use contract::time::Now;

use crate::{
    port::{Board, Gauge},
    shard::Brain,
};

/// Counting what is queued looks at every session, so it is done once in so many reports.
const QUEUED_EVERY: u64 = 10;

/// The broker, and what the shell counts for it.
pub(crate) struct Broker {
    shard: broker::Shard,
    turns: u64,
    reports: u64,
}

impl Broker {
    pub(crate) fn new(settings: broker::Settings) -> Broker {
        Broker { shard: broker::Shard::new(settings), turns: 0, reports: 0 }
    }
}

impl Brain for Broker {
    fn input(&mut self, now: Now, input: Input<'_>, out: &mut impl Output) {
        self.shard.input(now, input, out);
    }

    fn turn(&mut self, now: Now, mail: &mut impl Mailboxes, out: &mut impl Output) -> Turned {
        self.turns += 1;
        self.shard.turn(now, mail, out)
    }

    fn output(&mut self, conn: ConnId) -> Option<&mut Vec<u8>> {
        self.shard.output(conn)
    }

    fn restore(&mut self, now: Now, dealt: Dealt, out: &mut impl Output) {
        self.shard.restore(now, dealt, out);
    }

    fn standing(&self) -> Standing {
        self.shard.standing()
    }

    fn journal(&mut self) -> Option<JournalBatch> {
        self.shard.journal()
    }

    fn journal_spent(&mut self, bytes: Vec<u8>) {
        self.shard.journal_spent(bytes);
    }

    fn count(&mut self, counter: Counter, n: u64) {
        self.shard.count(counter, n);
    }

    fn report(&mut self, board: &Board) {
        board.count(self.shard.counters().values());
        let gauges = self.shard.gauges();
        for (gauge, value) in [
            (Gauge::Turns, self.turns),
            (Gauge::Sessions, gauges.sessions),
            (Gauge::Subscriptions, gauges.subscriptions),
            (Gauge::Groups, gauges.groups),
            (Gauge::Retained, gauges.retained),
            (Gauge::Interest, gauges.interest),
            (Gauge::Obligations, gauges.obligations),
            (Gauge::StagedBytes, gauges.staged_bytes),
            (Gauge::Stored, gauges.stored),
            (Gauge::StoredBytes, gauges.stored_bytes),
        ] {
            board.set(gauge, value);
        }
        if self.reports.is_multiple_of(QUEUED_EVERY) {
            let backlog = self.shard.backlog();
            board.set(Gauge::Queued, backlog.queued);
            board.set(Gauge::QueuedBytes, backlog.queued_bytes);
            board.set(Gauge::Inflight, backlog.inflight);
        }
        self.reports += 1;
        board.links(|| self.shard.link_status());
        board.flapping(|| self.shard.flapping());
    }
}
