//! What may be routed only when the log has it: a publish that is repeated after a crash must not be known elsewhere and
//! forgotten here, or its client would publish it a second time. Lives on the publisher's home shard, and on the owner of
//! a group for its choices. Invariant: one queue in order, so nothing of a connection overtakes what it sent before.

use mqtt::types::Reason;

use crate::{
    Shard,
    conn::pause,
    frame::Kept,
    groups::Given,
    obligation::{Outcome, Wait, Waiter},
    surface::{ConnId, Output},
};

/// Something that waits for a batch, and then leaves.
pub(crate) struct Deferred {
    pub(crate) until: u64,
    pub(crate) what: What,
}

/// What leaves.
pub(crate) enum What {
    /// A publish of a connection (if it has one), with its obligation; 0: nobody waits.
    Publish { from: Option<ConnId>, waiter: Option<Waiter>, token: u64, kept: Kept },
    /// A message for a member of a group on another shard.
    Give(Given),
}

/// Publishes of one connection that may wait before it is no longer read.
const DEFERRED_MAX: u32 = 1024;

impl Shard {
    /// Defers something until what was recorded so far is kept.
    pub(crate) fn defer(&mut self, what: What, out: &mut impl Output) {
        if let What::Publish { from: Some(from), .. } = &what
            && let Some(open) = self.conns.open(*from)
        {
            open.deferred += 1;
            if open.deferred >= DEFERRED_MAX {
                self.pause(*from, pause::LOG, out);
            }
        }
        if let What::Publish { kept, .. } = &what {
            let publisher = kept.message(self.now.mono_us).publisher;
            *self.journal.deferring.entry(publisher).or_default() += 1;
        }
        let until = self.journal.until();
        self.journal.deferred.push_back(Deferred { until, what });
    }

    /// Lets go what is kept by now.
    pub(crate) fn release_deferred(&mut self, out: &mut impl Output) {
        while let Some(front) = self.journal.deferred.front()
            && front.until <= self.journal.durable()
        {
            let Some(Deferred { what, .. }) = self.journal.deferred.pop_front() else { break };
            match what {
                What::Publish { from, waiter, token, kept } => {
                    self.undefer(from, &kept, out);
                    self.route_deferred(from, waiter, token, &kept, out);
                    self.pool.release(kept);
                }
                What::Give(given) => self.send_given(given),
            }
        }
    }

    /// The log was detached: publishes that were to be repeated after a crash are refused, choices wait, the rest goes on.
    pub(crate) fn refuse_deferred(&mut self, out: &mut impl Output) {
        for Deferred { what, .. } in core::mem::take(&mut self.journal.deferred) {
            match what {
                What::Publish { from, waiter, token, kept } => {
                    self.undefer(from, &kept, out);
                    // A will has nobody who could publish it again.
                    let will = matches!(waiter, Some(Waiter::Repeated { .. }));
                    if kept.message(self.now.mono_us).durable && !will {
                        self.report(token, Outcome::refused(Reason::QuotaExceeded), out);
                    } else {
                        self.route_deferred(from, waiter, token, &kept, out);
                    }
                    self.pool.release(kept);
                }
                What::Give(given) if given.kept.message(self.now.mono_us).durable => self.journal.stuck.push(given),
                What::Give(given) => self.send_given(given),
            }
        }
    }

    fn undefer(&mut self, from: Option<ConnId>, kept: &Kept, out: &mut impl Output) {
        let publisher = kept.message(self.now.mono_us).publisher;
        if let Some(count) = self.journal.deferring.get_mut(&publisher) {
            *count -= 1;
            if *count == 0 {
                self.journal.deferring.remove(&publisher);
            }
        }
        let Some(from) = from else { return };
        let Some(open) = self.conns.open(from) else { return };
        open.deferred = open.deferred.saturating_sub(1);
        if open.deferred <= DEFERRED_MAX / 2 {
            self.resume(from, pause::LOG, out);
        }
    }

    fn route_deferred(
        &mut self,
        from: Option<ConnId>,
        waiter: Option<Waiter>,
        token: u64,
        kept: &Kept,
        out: &mut impl Output,
    ) {
        let mut message = kept.message(self.now.mono_us);
        if !message.durable && message.id.sequence != 0 {
            // Others have been routed since it came, and what a stream carries leaves in order.
            message.id = self.next_id(true, false);
        }
        let mut wait = Wait { waiter, token };
        let routed = self.route(&message, &mut wait, from, out);
        if token != 0 {
            let reason = if routed.matched { Reason::Success } else { Reason::NoMatchingSubscribers };
            self.report(token, Outcome { reason, disconnect: false }, out);
        }
    }
}
