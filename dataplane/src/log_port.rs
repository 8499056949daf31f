//! What a shard and its log thread share: the way of batches to the thread, of spent buffers back, and how the log is.
//! One per shard, inside of its [`crate::port::Port`].
//!
//! Always true: neither side waits for the other. A batch that finds no place stays with the shard, in order
//! ([`Handover`]); of what the thread says, the newest replaces what was not read; each is woken only if it sleeps.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, Thread},
    time::Duration,
};

use broker::journal::JournalBatch;
use contract::report::FLUSH_BOUNDS_US;
use crossbeam::queue::ArrayQueue;
use log::{Stats, Status};

use crate::sleep::Sleep;

/// Batches on their way to the thread; one per turn, and the thread takes all of them between two operations.
const BATCHES_MAX: usize = 256;
/// Spent buffers on their way back.
const SPENT_MAX: usize = 16;

/// Between one shard and its log thread.
pub(crate) struct LogPort {
    batches: ArrayQueue<JournalBatch>,
    spent: ArrayQueue<Vec<u8>>,
    /// Of the thread.
    sleep: Sleep,
    thread: OnceLock<Thread>,
    /// The shard has batches that found no place.
    starved: AtomicBool,
    /// No more batches come.
    closing: AtomicBool,
    /// There is a status that the shard has not read.
    news: AtomicBool,
    status: Mutex<Option<Status>>,
    /// The same for the control thread, in a place of its own: it must not get into the shard's way.
    gauges: Mutex<Option<(Status, Stats)>>,
    /// How long flushes took.
    flushes: Flushes,
}

/// How long flushes of a log took. Written by its thread alone, read by the control thread.
#[derive(Default)]
pub(crate) struct Flushes {
    /// Flushes that took at most as long as each of [`FLUSH_BOUNDS_US`], and no shorter bound; the last: all longer ones.
    counts: [AtomicU64; FLUSH_BOUNDS_US.len() + 1],
    total_us: AtomicU64,
}

impl Flushes {
    /// One more.
    pub(crate) fn took(&self, us: u64) {
        let place = FLUSH_BOUNDS_US.iter().position(|bound_us| us <= *bound_us).unwrap_or(FLUSH_BOUNDS_US.len());
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.total_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Counts by bound, and the time of all of them.
    pub(crate) fn read(&self) -> (Vec<u64>, u64) {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        (counts.collect(), self.total_us.load(Ordering::Relaxed))
    }
}

impl LogPort {
    pub(crate) fn new() -> LogPort {
        LogPort {
            batches: ArrayQueue::new(BATCHES_MAX),
            spent: ArrayQueue::new(SPENT_MAX),
            sleep: Sleep::new(),
            thread: OnceLock::new(),
            starved: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            news: AtomicBool::new(false),
            status: Mutex::new(None),
            gauges: Mutex::new(None),
            flushes: Flushes::default(),
        }
    }

    /// Is there something that the shard has to do: a status to read, or room for what waits?
    pub(crate) fn calls(&self, handover: &Handover) -> bool {
        self.news.load(Ordering::Acquire) || !(handover.waiting.is_empty() || self.batches.is_full())
    }

    /// How the log is, if that has changed. For the shard: it never waits.
    pub(crate) fn status(&self) -> Option<Status> {
        if !self.news.load(Ordering::Relaxed) || !self.news.swap(false, Ordering::Acquire) {
            return None;
        }
        // A thread that is just writing sets the flag again when it has written.
        self.status.try_lock().ok().and_then(|status| *status)
    }

    /// How the log is and what it has done; none without a log.
    pub(crate) fn gauges(&self) -> Option<(Status, Stats)> {
        *guard(&self.gauges)
    }

    /// How long flushes took.
    pub(crate) fn flushes(&self) -> &Flushes {
        &self.flushes
    }

    /// A spent buffer.
    pub(crate) fn spent(&self) -> Option<Vec<u8>> {
        self.spent.pop()
    }

    /// No more batches come: the thread writes and flushes what is left, and ends.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn rouse(&self) {
        if self.sleep.rouse()
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

/// The thread's side.
impl LogPort {
    /// The calling thread is the one to wake.
    pub(crate) fn attend(&self) {
        // Once per port: there is one thread.
        let _ = self.thread.set(thread::current());
    }

    /// The next batch.
    pub(crate) fn batch(&self) -> Option<JournalBatch> {
        self.batches.pop()
    }

    /// Takes a spent buffer, unless there are enough.
    pub(crate) fn give_back(&self, buffer: Vec<u8>) {
        drop(self.spent.push(buffer));
    }

    /// Has the shard run out of places since the last look?
    pub(crate) fn was_starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed) && self.starved.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn closes(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// For the shard. It has to be woken afterwards, if it sleeps.
    pub(crate) fn tell(&self, status: Status) {
        *guard(&self.status) = Some(status);
        self.news.store(true, Ordering::Release);
    }

    /// For control.
    pub(crate) fn show(&self, status: Status, stats: Stats) {
        *guard(&self.gauges) = Some((status, stats));
    }

    /// Sleeps until a batch comes, the end, or the time is over (`None`: it never is).
    pub(crate) fn rest(&self, patience: Option<Duration>) {
        self.sleep.announce();
        if self.batches.is_empty() && !self.closes() {
            match patience {
                Some(time) => thread::park_timeout(time),
                None => thread::park(),
            }
        }
        self.sleep.retract();
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The shard's end: batches that found no place, in order. What may wait here is bounded by `durability.buffer_bytes_max`:
/// the broker knows what it handed out and refuses to grow it.
#[derive(Default)]
pub(crate) struct Handover {
    waiting: VecDeque<JournalBatch>,
}

impl Handover {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes what the turn has recorded, and hands over what there is room for.
    #[inline]
    pub(crate) fn offer(&mut self, port: &LogPort, batch: Option<JournalBatch>) {
        if batch.is_some() || !self.waiting.is_empty() {
            self.waiting.extend(batch);
            self.push(port);
        }
    }

    fn push(&mut self, port: &LogPort) {
        let before = self.waiting.len();
        let mut starved = false;
        while let Some(batch) = self.waiting.pop_front() {
            let Err(batch) = port.batches.push(batch) else { continue };
            self.waiting.push_front(batch);
            if std::mem::replace(&mut starved, true) {
                break;
            }
            // Tried once more after saying so: the thread may have looked before it made room.
            port.starved.store(true, Ordering::SeqCst);
        }
        if self.waiting.len() < before {
            port.rouse();
        }
    }
}

#[cfg(test)]
mod tests {
    use log::{Mark, Room};

    use super::*;

    fn batch(number: u64) -> JournalBatch {
        JournalBatch { number, bytes: Vec::new(), mark: Mark::None }
    }

    fn status(durable: u64) -> Status {
        Status {
            durable,
            recovered: true,
            room: Room::Plenty,
            detachments: 0,
            since_begin_bytes: 0,
            segments: 0,
            bytes: 0,
            pending_bytes: 0,
        }
    }

    #[test]
    fn batches_that_find_no_place_stay_in_order_and_the_thread_knows_it() {
        let (port, mut handover) = (LogPort::new(), Handover::default());
        let many = BATCHES_MAX as u64 + 10;
        (1..=many).for_each(|number| handover.offer(&port, Some(batch(number))));
        assert!(!handover.is_empty() && !port.calls(&handover), "it waits until there is room");
        assert!(port.was_starved() && !port.was_starved(), "said once");
        let mut taken: Vec<u64> = std::iter::from_fn(|| port.batch()).map(|batch| batch.number).collect();
        assert!(port.calls(&handover), "there is room");
        handover.offer(&port, None);
        assert!(handover.is_empty());
        taken.extend(std::iter::from_fn(|| port.batch()).map(|batch| batch.number));
        assert_eq!(taken, (1..=many).collect::<Vec<_>>());
    }

    #[test]
    fn only_the_newest_status_is_read_and_only_once() {
        let (port, handover) = (LogPort::new(), Handover::default());
        assert!(port.status().is_none() && !port.calls(&handover));
        (1..=3).for_each(|durable| port.tell(status(durable)));
        assert!(port.calls(&handover));
        assert_eq!(port.status().map(|status| status.durable), Some(3));
        assert!(port.status().is_none() && !port.calls(&handover));
    }

    #[test]
    fn a_thread_that_rests_is_woken_by_a_batch_and_by_the_end() {
        let port = LogPort::new();
        let (woken, wakes) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                port.attend();
                while !port.closes() {
                    port.rest(None);
                    while let Some(batch) = port.batch() {
                        woken.send(batch.number).expect("the test listens");
                    }
                }
            });
            let mut handover = Handover::default();
            for number in 1..1000 {
                handover.offer(&port, Some(batch(number)));
                assert_eq!(wakes.recv_timeout(Duration::from_secs(60)), Ok(number));
            }
            port.close();
        });
    }
}
