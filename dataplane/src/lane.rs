//! A bounded lock-free ring with one writer and one reader: what a mailbox is made of.
//! Entries are boxes, so an entry costs one pointer and what is in it never moves.
//!
//! Always true: `head <= tail <= head + slots`, both only grow; the slots in `head..tail` belong to the
//! reader, all others to the writer. The writer publishes with a release store of `tail`, the reader
//! gives slots back with a release store of `head`; each side keeps the last value it saw of the other
//! side's index and looks again only when that value says "full" or "empty", so that a lane with
//! traffic does not bounce a cache line per entry.

use crossbeam::utils::CachePadded;

use crate::sync::{Arc, AtomicU64, Ordering, UnsafeCell};

struct Lane<T> {
    slots: Box<[UnsafeCell<Option<Box<T>>>]>,
    /// Entries taken since the start. Written by the reader.
    head: CachePadded<AtomicU64>,
    /// Entries published since the start. Written by the writer.
    tail: CachePadded<AtomicU64>,
}

// SAFETY: `Lane` is shared by exactly one `Writer` and one `Reader`, neither of which can be cloned. A slot
// is touched only by the side that owns it (see the module's invariant), and ownership passes with a
// release store of an index that the other side loads with acquire. What passes is `Box<T>`, hence `T: Send`.
// The atomics alone cannot express a slot that changes its owner, so there is no safe way to say this.
unsafe impl<T: Send> Sync for Lane<T> {}
// SAFETY: as above; the lane owns its entries.
unsafe impl<T: Send> Send for Lane<T> {}

impl<T> Lane<T> {
    fn slot(&self, position: u64) -> &UnsafeCell<Option<Box<T>>> {
        &self.slots[(position & (self.slots.len() as u64 - 1)) as usize]
    }
}

/// The writing end of a lane.
pub(crate) struct Writer<T> {
    lane: Arc<Lane<T>>,
    tail: u64,
    head_seen: u64,
}

/// The reading end of a lane.
pub(crate) struct Reader<T> {
    lane: Arc<Lane<T>>,
    head: u64,
    tail_seen: u64,
}

/// A lane with at least `slots` places (the next power of two).
pub(crate) fn lane<T>(slots: usize) -> (Writer<T>, Reader<T>) {
    let slots = slots.max(1).next_power_of_two();
    let lane = Arc::new(Lane {
        slots: (0..slots).map(|_| UnsafeCell::new(None)).collect(),
        head: CachePadded::new(AtomicU64::new(0)),
        tail: CachePadded::new(AtomicU64::new(0)),
    });
    (Writer { lane: lane.clone(), tail: 0, head_seen: 0 }, Reader { lane, head: 0, tail_seen: 0 })
}

impl<T> Writer<T> {
    /// Places that are free, at least `wanted` of them if that many are.
    fn free(&mut self, wanted: u64) -> u64 {
        let slots = self.lane.slots.len() as u64;
        if slots - (self.tail - self.head_seen) < wanted {
            self.head_seen = self.lane.head.load(Ordering::Acquire);
        }
        slots - (self.tail - self.head_seen)
    }

    /// Publishes `entry` if afterwards at least `keep_free` places stay free; otherwise it comes back.
    pub(crate) fn push(&mut self, entry: Box<T>, keep_free: u64) -> Result<(), Box<T>> {
        if self.free(keep_free + 1) <= keep_free {
            return Err(entry);
        }
        self.lane.slot(self.tail).with_mut(|slot| {
            // SAFETY: `tail` is outside `head..tail`, so the slot is the writer's, and there is one writer.
            unsafe { *slot = Some(entry) }
        });
        self.tail += 1;
        self.lane.tail.store(self.tail, Ordering::Release);
        Ok(())
    }
}

impl<T> Reader<T> {
    /// Entries published so far, as visible now.
    pub(crate) fn tail(&mut self) -> u64 {
        self.tail_seen = self.lane.tail.load(Ordering::Acquire);
        self.tail_seen
    }

    /// Entries taken so far.
    pub(crate) fn taken(&self) -> u64 {
        self.head
    }

    /// The next entry, if one is visible.
    pub(crate) fn pop(&mut self) -> Option<Box<T>> {
        if self.head == self.tail_seen && self.head == self.tail() {
            return None;
        }
        let entry = self.lane.slot(self.head).with_mut(|slot| {
            // SAFETY: `head` is inside `head..tail`, so the slot is the reader's, and there is one reader.
            unsafe { (*slot).take() }
        });
        self.head += 1;
        self.lane.head.store(self.head, Ordering::Release);
        entry
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_full_lane_gives_the_entry_back_and_takes_it_after_a_pop() {
        let (mut writer, mut reader) = lane(2);
        assert!(writer.push(Box::new(1), 0).is_ok());
        assert!(writer.push(Box::new(2), 0).is_ok());
        assert_eq!(writer.push(Box::new(3), 0), Err(Box::new(3)));
        assert_eq!(reader.pop(), Some(Box::new(1)));
        assert!(writer.push(Box::new(3), 0).is_ok());
        assert_eq!(reader.pop(), Some(Box::new(2)));
        assert_eq!(reader.pop(), Some(Box::new(3)));
        assert_eq!(reader.pop(), None);
        assert_eq!((reader.tail(), reader.taken()), (3, 3));
    }

    #[test]
    fn kept_places_are_refused_to_those_who_must_keep_them() {
        let (mut writer, _reader) = lane(4);
        assert!(writer.push(Box::new(1), 2).is_ok());
        assert!(writer.push(Box::new(2), 2).is_ok());
        assert!(writer.push(Box::new(3), 2).is_err());
        assert!(writer.push(Box::new(3), 0).is_ok());
        assert!(writer.push(Box::new(4), 0).is_ok());
        assert!(writer.push(Box::new(5), 0).is_err());
    }

    #[test]
    fn entries_left_behind_are_freed_with_the_lane() {
        let witness = std::sync::Arc::new(());
        let (mut writer, reader) = lane(4);
        assert!(writer.push(Box::new(witness.clone()), 0).is_ok());
        drop((writer, reader));
        assert_eq!(std::sync::Arc::strong_count(&witness), 1);
    }

    #[test]
    fn order_is_kept_between_two_threads_over_many_wraps() {
        let (mut writer, mut reader) = lane(8);
        let maker = std::thread::spawn(move || {
            for n in 0..200_000_u64 {
                let mut entry = Box::new(n);
                while let Err(back) = writer.push(entry, 0) {
                    entry = back;
                    std::thread::yield_now();
                }
            }
        });
        for n in 0..200_000_u64 {
            loop {
                if let Some(entry) = reader.pop() {
                    assert_eq!(*entry, n);
                    break;
                }
                std::thread::yield_now();
            }
        }
        maker.join().expect("the maker ends");
    }
}

#[cfg(all(test, loom))]
mod interleavings {
    use super::*;

    #[test]
    fn every_interleaving_delivers_each_entry_once_and_in_order() {
        loom::model(|| {
            let (mut writer, mut reader) = lane(2);
            let maker = loom::thread::spawn(move || {
                for n in 0..3_u64 {
                    let mut entry = Box::new(n);
                    while let Err(back) = writer.push(entry, 0) {
                        entry = back;
                        loom::thread::yield_now();
                    }
                }
            });
            for n in 0..3_u64 {
                loop {
                    if let Some(entry) = reader.pop() {
                        assert_eq!(*entry, n);
                        break;
                    }
                    loom::thread::yield_now();
                }
            }
            maker.join().unwrap();
        });
    }
}
