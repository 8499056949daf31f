//! What has to happen before an acknowledgement may leave. A publish that leaves its home shard opens an
//! obligation; every destination reports with a `Done` frame; when none is missing, the waiter is told.
//! Owned by the shard where the waiter is. Invariant: a token names one obligation for ever (index and
//! generation), so a late report for a timed-out one settles nothing.

use alloc::vec::Vec;

use mqtt::types::{PacketId, Reason};
use slab::Slab;

use crate::{journal::record::Stream, session::SessionId, surface::ConnId};

/// Who waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waiter {
    /// A client's PUBLISH: its acknowledgement has this number on its connection.
    /// `unfinished`: it is repeated after a crash.
    Publish {
        conn: ConnId,
        ack: u64,
        session: SessionId,
        packet: PacketId,
        qos2: bool,
        unfinished: Option<(Stream, u64)>,
    },
    /// Another shard's obligation, which this shard took on as owner of a group or link.
    Relay { shard: u16, token: u64 },
    /// A SUBSCRIBE, by its key in the table of waiting subscribes, for one of its entries.
    Subscribe { key: u32, entry: u32 },
    /// The member that was chosen for a message of a group which this shard has in its log.
    Chosen { stream: Stream, sequence: u64 },
    /// A publish of an earlier life, or a will. `restoring`: the shard is not ready before.
    Repeated { stream: Stream, sequence: u64, session: Option<SessionId>, packet: u16, restoring: bool },
    /// The groups that restored sessions have joined.
    Restored,
}

impl Waiter {
    /// The publish that is repeated after a crash until this is settled.
    pub(crate) fn unfinished(self) -> Option<(Stream, u64)> {
        match self {
            Waiter::Publish { unfinished, .. } => unfinished,
            Waiter::Repeated { stream, sequence, .. } => Some((stream, sequence)),
            _ => None,
        }
    }
}

/// How an obligation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Outcome {
    /// Success, or why it was refused.
    pub(crate) reason: Reason,
    /// The connection has to be closed with that reason.
    pub(crate) disconnect: bool,
}

impl Outcome {
    pub(crate) const MET: Outcome = Outcome { reason: Reason::Success, disconnect: false };

    /// A refusal that leaves the connection open.
    pub(crate) fn refused(reason: Reason) -> Outcome {
        Outcome { reason, disconnect: false }
    }
}

struct Open {
    generation: u32,
    waiter: Waiter,
    missing: u32,
    deadline_us: u64,
    outcome: Outcome,
}

/// Open obligations of one shard.
#[derive(Default)]
pub(crate) struct Obligations {
    slab: Slab<Open>,
    generation: u32,
}

impl Obligations {
    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    /// Opens an obligation with one report missing. Tokens are never 0.
    pub(crate) fn open(&mut self, waiter: Waiter, deadline_us: u64) -> u64 {
        self.generation = self.generation.wrapping_add(1).max(1);
        let generation = self.generation;
        let open = Open { generation, waiter, missing: 1, deadline_us, outcome: Outcome::MET };
        token(self.slab.insert(open), generation)
    }

    /// One more report is missing.
    pub(crate) fn more(&mut self, token: u64) {
        if let Some(open) = self.get(token) {
            open.missing += 1;
        }
    }

    /// Who waits for an obligation that is still open.
    pub(crate) fn waiter(&mut self, token: u64) -> Option<Waiter> {
        self.get(token).map(|open| open.waiter)
    }

    /// The waiter has moved to another connection (a QoS 2 PUBLISH came again).
    pub(crate) fn rebind(&mut self, token: u64, waiter: Waiter) -> bool {
        self.get(token).map(|open| open.waiter = waiter).is_some()
    }

    /// One report came. The last one gives the waiter and the outcome: the first refusal, or success.
    pub(crate) fn report(&mut self, token: u64, outcome: Outcome) -> Option<(Waiter, Outcome)> {
        let open = self.get(token)?;
        if !open.outcome.reason.is_failure() && outcome != Outcome::MET {
            open.outcome = outcome;
        }
        open.missing -= 1;
        if open.missing > 0 {
            return None;
        }
        let open = self.slab.remove(token as u32 as usize);
        Some((open.waiter, open.outcome))
    }

    /// A destination refuses: the waiter will hear of it, whatever the others report.
    pub(crate) fn refuse(&mut self, token: u64, outcome: Outcome) {
        if let Some(open) = self.get(token)
            && !open.outcome.reason.is_failure()
        {
            open.outcome = outcome;
        }
    }

    /// Appends the tokens of those that are past their deadline.
    pub(crate) fn overdue(&self, now_us: u64, due: &mut Vec<u64>) {
        let late = self.slab.iter().filter(|(_, open)| open.deadline_us <= now_us);
        due.extend(late.map(|(at, open)| token(at, open.generation)));
    }

    /// Gives an obligation up.
    pub(crate) fn remove(&mut self, token: u64) -> Option<Waiter> {
        self.get(token)?;
        Some(self.slab.remove(token as u32 as usize).waiter)
    }

    /// Gives an obligation more time.
    pub(crate) fn postpone(&mut self, token: u64, deadline_us: u64) {
        if let Some(open) = self.get(token) {
            open.deadline_us = deadline_us;
        }
    }

    fn get(&mut self, token: u64) -> Option<&mut Open> {
        let generation = (token >> 32) as u32;
        self.slab.get_mut(token as u32 as usize).filter(|open| open.generation == generation)
    }
}

fn token(index: usize, generation: u32) -> u64 {
    u64::from(generation) << 32 | index as u64
}

/// The obligation of the publish at hand: opened when the first destination needs it.
pub(crate) struct Wait {
    pub(crate) waiter: Option<Waiter>,
    pub(crate) token: u64,
}

impl Wait {
    /// Nobody waits: QoS 0, wills.
    pub(crate) fn nobody() -> Wait {
        Wait { waiter: None, token: 0 }
    }

    pub(crate) fn new(waiter: Waiter) -> Wait {
        Wait { waiter: Some(waiter), token: 0 }
    }

    /// The publish is repeated after a crash until it is settled.
    pub(crate) fn unfinished(&mut self, publish: (Stream, u64)) {
        if let Some(Waiter::Publish { unfinished, .. }) = &mut self.waiter {
            *unfinished = Some(publish);
        }
    }

    /// The token for one more destination; 0 when nobody waits.
    pub(crate) fn one_more(&mut self, obligations: &mut Obligations, deadline_us: u64) -> u64 {
        let Some(waiter) = self.waiter else { return 0 };
        if self.token == 0 {
            self.token = obligations.open(waiter, deadline_us);
        } else {
            obligations.more(self.token);
        }
        self.token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITER: Waiter = Waiter::Subscribe { key: 1, entry: 0 };

    #[test]
    fn the_waiter_is_told_after_the_last_report_with_the_first_refusal() {
        let mut obligations = Obligations::default();
        let mut wait = Wait::new(WAITER);
        let token = wait.one_more(&mut obligations, 10);
        assert_eq!(wait.one_more(&mut obligations, 10), token);
        assert_eq!(wait.one_more(&mut obligations, 10), token);
        let refused = Outcome::refused(Reason::QuotaExceeded);
        assert_eq!(obligations.report(token, Outcome::MET), None);
        assert_eq!(obligations.report(token, refused), None);
        assert_eq!(obligations.report(token, Outcome::MET), Some((WAITER, refused)));
        assert_eq!(obligations.report(token, Outcome::MET), None, "settled once");
    }

    #[test]
    fn a_late_report_settles_nothing() {
        let mut obligations = Obligations::default();
        let old = obligations.open(WAITER, 10);
        let mut due = Vec::new();
        obligations.overdue(9, &mut due);
        assert_eq!(due, []);
        obligations.overdue(10, &mut due);
        assert_eq!(due, [old]);
        assert_eq!(obligations.remove(old), Some(WAITER));
        let new = obligations.open(WAITER, 20);
        assert_ne!(old, new);
        assert_eq!(obligations.report(old, Outcome::MET), None);
        assert_eq!(obligations.len(), 1);
    }
}
