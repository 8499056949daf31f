//! Whether a shard sleeps, and whose task it is to wake it. One per shard, seen by all of them.
//!
//! The protocol, proven by the loom test below:
//! - a sender publishes to the mailbox, then calls [`Sleep::rouse`]; `true` means that this sender, and
//!   no other, has to wake the shard;
//! - the shard calls [`Sleep::announce`], then looks into all its mailboxes once more, and sleeps only if
//!   they are empty; when it stays awake or wakes up it calls [`Sleep::retract`].
//!
//! The fences order "publish, then look at the flag" against "set the flag, then look at the mailboxes":
//! at least one of the two sees the other. A wake too many is possible, a lost one is not.

use crossbeam::utils::CachePadded;

use crate::sync::{AtomicBool, Ordering, fence};

/// The sleep flag of one shard.
pub(crate) struct Sleep {
    asleep: CachePadded<AtomicBool>,
}

impl Sleep {
    pub(crate) fn new() -> Sleep {
        Sleep { asleep: CachePadded::new(AtomicBool::new(false)) }
    }

    /// The shard means to sleep. It must look into its mailboxes once more before it does.
    pub(crate) fn announce(&self) {
        // Swaps, here and in `retract`, because they read the last value: a `rouse` of an older sleep is over
        // before this one begins. With plain stores loom finds a sender that is hidden by an older one.
        self.asleep.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// The shard is awake.
    pub(crate) fn retract(&self) {
        self.asleep.swap(false, Ordering::AcqRel);
    }

    /// Called after publishing: must the caller wake the shard? Answers `true` to one caller per sleep.
    pub(crate) fn rouse(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_sender_per_sleep_has_to_wake_the_shard() {
        let sleep = Sleep::new();
        assert!(!sleep.rouse());
        sleep.announce();
        assert!(sleep.rouse());
        assert!(!sleep.rouse());
        sleep.announce();
        sleep.retract();
        assert!(!sleep.rouse());
    }
}

#[cfg(all(test, loom))]
mod interleavings {
    use loom::sync::{Arc, Notify};

    use super::*;
    use crate::lane::{Reader, Writer, lane};

    /// `senders` senders with one message each, one shard: if a wake could be lost, the shard would sleep for
    /// ever in some interleaving, which loom reports as a deadlock.
    fn no_wake_is_lost(senders: usize) {
        let sleep = Arc::new(Sleep::new());
        let ring = Arc::new(Notify::new());
        let (writers, mut mailboxes): (Vec<Writer<u64>>, Vec<Reader<u64>>) = (0..senders).map(|_| lane(1)).unzip();
        let threads: Vec<_> = writers
            .into_iter()
            .map(|mut writer| {
                let (sleep, ring) = (sleep.clone(), ring.clone());
                loom::thread::spawn(move || {
                    assert!(writer.push(Box::new(7), 0).is_ok());
                    if sleep.rouse() {
                        ring.notify();
                    }
                })
            })
            .collect();
        let mut got = 0;
        loop {
            got += mailboxes.iter_mut().filter_map(Reader::pop).count();
            if got == senders {
                break;
            }
            sleep.announce();
            if !mailboxes.iter_mut().any(|mailbox| mailbox.tail() > mailbox.taken()) {
                ring.wait();
            }
            sleep.retract();
        }
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn no_interleaving_of_one_sender_loses_a_wake() {
        loom::model(|| no_wake_is_lost(1));
    }

    /// All interleavings of three threads take hours; with at most three preemptions each they take seconds.
    #[test]
    fn no_interleaving_of_two_senders_loses_a_wake() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| no_wake_is_lost(2));
    }
}
