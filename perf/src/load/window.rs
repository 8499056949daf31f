//! The closed loop: how many messages may be on their way, and which of them every receiver has. Shared by all threads
//! of the load. Always true: `published - completed` never exceeds the limit, and a message completes exactly once.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::plan::{Pace, Plan};

/// Counts messages from the claim to publish one until its last receiver has it.
pub struct Window {
    limit: Option<u64>,
    receivers: u32,
    published: AtomicU64,
    completed: AtomicU64,
    publish_max: AtomicU64,
    sent: Vec<AtomicU64>,
    missing: Vec<AtomicU32>,
    slots: usize,
}

impl Window {
    /// A window of this plan; with a fixed rate it only counts.
    pub fn new(plan: &Plan) -> Window {
        let limit = match plan.pace {
            Pace::Window(limit) => Some(u64::from(limit)),
            Pace::Rate(_) => None,
        };
        let slots = limit.map_or(0, |limit| limit.next_power_of_two() as usize);
        Window {
            limit,
            receivers: plan.receivers() as u32,
            published: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            publish_max: AtomicU64::new(u64::MAX),
            sent: (0..plan.publishers).map(|_| AtomicU64::new(0)).collect(),
            missing: (0..plan.publishers * slots).map(|_| AtomicU32::new(0)).collect(),
            slots,
        }
    }

    /// Whether a claim would succeed now.
    pub fn is_open(&self) -> bool {
        self.has_room(self.published.load(Ordering::Acquire))
    }

    /// Takes the right to publish one message of `publisher`; returns its sequence number.
    /// Only the thread that owns the publisher may call it.
    pub fn claim(&self, publisher: usize) -> Option<u64> {
        let room = |published: u64| self.has_room(published).then_some(published + 1);
        self.published.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok()?;
        let sequence = self.sent[publisher].load(Ordering::Relaxed);
        if self.slots > 0 {
            // Free by now: messages of one publisher complete in order, and at most `limit` of them are incomplete.
            self.missing[self.slot(publisher, sequence)].store(self.receivers, Ordering::Release);
        }
        self.sent[publisher].store(sequence + 1, Ordering::Release);
        Some(sequence)
    }

    /// One receiver has, or will never get, the messages `sequences` of `publisher`. Returns whether a message
    /// completed by that.
    #[inline]
    pub fn settle(&self, publisher: usize, sequences: std::ops::Range<u64>) -> bool {
        if self.slots == 0 {
            return false;
        }
        let mut completed = 0;
        for sequence in sequences {
            let missing = &self.missing[self.slot(publisher, sequence)];
            completed += u64::from(missing.fetch_sub(1, Ordering::AcqRel) == 1);
        }
        if completed > 0 {
            self.completed.fetch_add(completed, Ordering::AcqRel);
        }
        completed > 0
    }

    /// Messages that `publisher` has sent.
    #[inline]
    pub fn sent(&self, publisher: usize) -> u64 {
        self.sent[publisher].load(Ordering::Acquire)
    }

    /// Messages that all publishers have sent.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// No more than `count` messages are published from now on; returns how many were before.
    pub fn allow(&self, count: u64) -> u64 {
        let published = self.published();
        self.publish_max.store(published.saturating_add(count), Ordering::Release);
        published
    }

    fn has_room(&self, published: u64) -> bool {
        let outstanding = published.saturating_sub(self.completed.load(Ordering::Acquire));
        published < self.publish_max.load(Ordering::Acquire) && self.limit.is_none_or(|limit| outstanding < limit)
    }

    fn slot(&self, publisher: usize, sequence: u64) -> usize {
        publisher * self.slots + (sequence as usize & (self.slots - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Layout, tests::plan};
    use super::*;

    #[test]
    fn a_window_opens_again_only_when_the_last_receiver_has_the_message() {
        let mut plan = plan(Layout::Fan, 1, 3);
        plan.pace = Pace::Window(2);
        let window = Window::new(&plan);
        assert_eq!((window.claim(0), window.claim(0), window.claim(0)), (Some(0), Some(1), None));
        assert!(!window.settle(0, 0..2));
        assert!(!window.settle(0, 0..1));
        assert!(!window.is_open());
        assert!(window.settle(0, 0..1));
        assert_eq!((window.claim(0), window.claim(0)), (Some(2), None));
        assert_eq!((window.sent(0), window.published()), (3, 3));
    }

    #[test]
    fn the_window_is_common_to_all_publishers_and_sequences_are_their_own() {
        let mut plan = plan(Layout::Pairs, 2, 2);
        plan.pace = Pace::Window(3);
        let window = Window::new(&plan);
        assert_eq!(
            (window.claim(0), window.claim(1), window.claim(0), window.claim(1)),
            (Some(0), Some(0), Some(1), None)
        );
        assert!(window.settle(1, 0..1));
        assert_eq!(window.claim(1), Some(1));
    }

    #[test]
    fn a_fixed_rate_has_no_window_but_ends_at_the_allowed_count() {
        let mut plan = plan(Layout::Fan, 1, 1);
        plan.pace = Pace::Rate(1);
        let window = Window::new(&plan);
        assert_eq!(window.claim(0), Some(0));
        assert_eq!(window.allow(2), 1);
        assert_eq!((window.claim(0), window.claim(0), window.claim(0)), (Some(1), Some(2), None));
    }
}
