//! The files of a log: live segments, those of an old epoch, spares, and the one that is being prepared. Owned by
//! [`crate::Log`]. Invariant: a file is in exactly one of these places, and only a spare is ever written anew.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::scan::{Segment, Spare, Tail};
use crate::surface::FileId;

/// Bytes of zeros in one operation, so that a commit never waits for a whole segment.
pub(crate) const FILL_BYTES: u32 = 256 << 10;
/// A failed preparation is tried again after this.
const RETRY_US: u64 = 1_000_000;
/// Spares that are kept for later, by their bytes; at least [`SPARES_KEPT_MIN`] are, whatever they measure.
const SPARE_BYTES_KEPT: u64 = 64 << 20;
const SPARES_KEPT_MIN: usize = 2;
/// Files that were left over and are removed one by one; what does not fit is found again at the next start.
const REMOVING_MAX: usize = 4096;

/// One step on the way to a spare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Create(FileId),
    Fill { file: FileId, offset: u64, bytes: u32 },
    Publish(FileId),
    Remove(FileId),
}

#[derive(Clone, Copy, Debug)]
struct Preparing {
    file: FileId,
    bytes: u64,
    created: bool,
    filled: u64,
}

/// All files.
pub(crate) struct Stock {
    segment_bytes: u64,
    bytes_max: u64,
    /// Segments of the present epoch, oldest first.
    pub(crate) live: VecDeque<Segment>,
    /// Files of older epochs that a recovery may need until the present one is complete.
    pub(crate) old: Vec<Spare>,
    /// What the recovery did not need. Another one would, if what this one found were lost before it is flushed.
    held: Vec<Spare>,
    spares: VecDeque<Spare>,
    preparing: Option<Preparing>,
    removing: VecDeque<FileId>,
    next_file: FileId,
    /// When a failed preparation may be tried again.
    retry_us: Option<u64>,
}

impl Stock {
    pub(crate) fn new(segment_bytes: u64, bytes_max: u64, tail: Tail) -> Stock {
        Stock {
            segment_bytes,
            bytes_max,
            live: tail.live.into(),
            old: Vec::new(),
            held: tail.spares,
            spares: VecDeque::new(),
            preparing: None,
            removing: tail.stale.into_iter().take(REMOVING_MAX).collect(),
            next_file: tail.next_file,
            retry_us: None,
        }
    }

    /// What the recovery found is flushed: what it did not need is free.
    pub(crate) fn release(&mut self) {
        for spare in core::mem::take(&mut self.held) {
            self.free(spare);
        }
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.counted() + self.old.iter().map(|spare| spare.bytes).sum::<u64>()
    }

    /// Bytes that count towards the limit: not those of an old epoch, or a full log could never begin a new one.
    fn counted(&self) -> u64 {
        self.live.iter().map(|segment| segment.bytes).sum::<u64>()
            + self.spare_bytes()
            + self.held.iter().map(|spare| spare.bytes).sum::<u64>()
            + self.preparing.map_or(0, |preparing| preparing.bytes)
    }

    /// Bytes of the spares.
    pub(crate) fn spare_bytes(&self) -> u64 {
        self.spares.iter().map(|spare| spare.bytes).sum()
    }

    /// Takes a spare of at least `bytes` bytes.
    pub(crate) fn take(&mut self, bytes: u64) -> Option<Spare> {
        let place = self.spares.iter().position(|spare| spare.bytes >= bytes)?;
        self.spares.remove(place)
    }

    /// A file is needed no more: it becomes a spare, or is removed if there are enough or it has an odd size.
    pub(crate) fn free(&mut self, spare: Spare) {
        let kept = self.spares.len() < SPARES_KEPT_MIN || self.spare_bytes() + spare.bytes <= SPARE_BYTES_KEPT;
        if kept && (self.segment_bytes..=2 * self.segment_bytes).contains(&spare.bytes) {
            self.spares.push_back(spare);
        } else {
            self.discard(spare.file);
        }
    }

    /// A file is removed when there is time.
    pub(crate) fn discard(&mut self, file: FileId) {
        if self.removing.len() < REMOVING_MAX {
            self.removing.push_back(file);
        }
    }

    /// Live segments that end before `begin` are needed no more.
    pub(crate) fn free_before(&mut self, begin: u64) {
        while self.live.get(1).is_some_and(|next| next.first <= begin) {
            if let Some(segment) = self.live.pop_front() {
                self.free(Spare { file: segment.file, bytes: segment.bytes });
            }
        }
    }

    /// The old epoch is needed no more.
    pub(crate) fn free_old(&mut self) {
        for spare in core::mem::take(&mut self.old) {
            self.free(spare);
        }
    }

    /// The present epoch ends. If it has a complete checkpoint, as far as was written, a recovery may choose it, so it
    /// stays whole; otherwise no recovery ever will.
    pub(crate) fn end_epoch(&mut self, complete: bool) {
        self.old.append(&mut self.held);
        for segment in core::mem::take(&mut self.live) {
            if complete {
                self.old.push(Spare { file: segment.file, bytes: segment.bytes });
            } else {
                self.discard(segment.file);
            }
        }
    }

    /// True if no spare can be prepared at present.
    pub(crate) fn exhausted(&self) -> bool {
        self.retry_us.is_some() || self.beyond(self.segment_bytes, false)
    }

    fn beyond(&self, bytes: u64, checkpoint: bool) -> bool {
        // What leads to a complete checkpoint, and so to less, is let through; and so is a single entry larger than a
        // segment: it was accepted, and nothing else could follow it.
        let exempt = self.bytes_max == 0 || checkpoint || bytes > self.segment_bytes || self.preparing.is_some();
        !exempt && self.counted() + bytes > self.bytes_max.max(3 * self.segment_bytes)
    }

    /// The next step towards a spare of at least `bytes` bytes; none if there is one, or there is nothing to try now.
    pub(crate) fn prepare(&mut self, bytes: u64, checkpoint: bool, now_us: u64) -> Option<Step> {
        if let Some(file) = self.removing.front() {
            return Some(Step::Remove(*file));
        }
        if self.preparing.is_none() {
            let there = self.spares.iter().any(|spare| spare.bytes >= bytes);
            if there || self.retry_us.is_some_and(|retry| now_us < retry) || self.beyond(bytes, checkpoint) {
                return None;
            }
            let bytes = bytes.max(self.segment_bytes);
            self.preparing = Some(Preparing { file: self.next_file, bytes, created: false, filled: 0 });
            self.next_file += 1;
        }
        let preparing = self.preparing?;
        let left = preparing.bytes - preparing.filled;
        Some(if !preparing.created {
            Step::Create(preparing.file)
        } else if left > 0 {
            let bytes = u32::try_from(left).map_or(FILL_BYTES, |left| left.min(FILL_BYTES));
            Step::Fill { file: preparing.file, offset: preparing.filled, bytes }
        } else {
            Step::Publish(preparing.file)
        })
    }

    /// What became of a step. True if a spare is ready by it.
    pub(crate) fn completed(&mut self, step: Step, worked: bool, now_us: u64) -> bool {
        if let Step::Remove(_) = step {
            // One that could not be removed is found again at the next start.
            self.removing.pop_front();
            return false;
        }
        let Some(preparing) = &mut self.preparing else { return false };
        if !worked {
            // What is half there takes space; its number is free again once it is gone.
            self.next_file = preparing.file;
            self.removing.push_back(preparing.file);
            self.preparing = None;
            self.retry_us = Some(now_us + RETRY_US);
            return false;
        }
        match step {
            Step::Create(_) => preparing.created = true,
            Step::Fill { bytes, .. } => preparing.filled += u64::from(bytes),
            Step::Publish(file) => {
                self.spares.push_back(Spare { file, bytes: preparing.bytes });
                self.preparing = None;
                self.retry_us = None;
                return true;
            }
            Step::Remove(_) => {}
        }
        false
    }

    /// A spare for a probe of the disk.
    pub(crate) fn probe(&self) -> Option<Spare> {
        self.spares.front().copied()
    }

    /// The spare that failed a probe is not trusted again.
    pub(crate) fn distrust(&mut self, file: FileId) {
        self.spares.retain(|spare| spare.file != file);
        self.discard(file);
    }

    /// Lets a failed preparation be tried again at once: another clock decides.
    pub(crate) fn retry_now(&mut self) {
        self.retry_us = None;
    }

    /// When a failed preparation is tried again.
    pub(crate) fn retry_us(&self) -> Option<u64> {
        self.retry_us
    }
}
