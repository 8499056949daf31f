//! The log while it runs: what to do next, what follows from the result. One per shard, driven by the shard's log
//! thread. Invariant: a segment is begun only when everything before it was flushed, so at most the last one has
//! entries that a power loss can take.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::format::{self, ENTRY_BYTES_MAX, ENTRY_HEADER_BYTES, Entry, HEADER_BYTES, Header, entry_bytes};
use crate::plant::Plant;
use crate::scan::{Segment, Spare, Tail};
use crate::stock::{FILL_BYTES, Step, Stock};
use crate::surface::{Failure, FileId, Mark, Op, Room, Settings, Stats, Status};

/// First and longest pause between probes of a disk that failed.
const PROBE_US_MIN: u64 = 100_000;
const PROBE_US_MAX: u64 = 5_000_000;
/// Spent bodies that are kept for the shard, and the largest that is worth it.
const SPENT_MAX: usize = 16;
const SPENT_BYTES_MAX: usize = 4 << 20;
/// Segments are multiples of this: what file systems allocate.
const SEGMENT_ALIGN: u64 = 4096;

/// The log of one shard.
pub struct Log {
    settings: Settings,
    stock: Stock,
    state: State,
    flight: Flight,
    pending: VecDeque<Pending>,
    pending_bytes: u64,
    /// The bytes of the write in flight.
    buffer: Vec<u8>,
    spent: Vec<Vec<u8>>,
    epoch: u64,
    lineage: u64,
    next_epoch: u64,
    next_index: u64,
    next_sequence: u64,
    /// The segment that entries go to, the last live one, and how far it is written.
    open: Option<Open>,
    segments_begun: u64,
    /// A segment of an earlier process that this one found and has to flush before it relies on it.
    found: Option<FileId>,
    /// Where that one has the beginning of an entry, until it is overwritten.
    torn: Option<u64>,
    recovered: bool,
    /// An epoch before the next new one has a complete checkpoint, and something of it was flushed.
    needed: bool,
    /// The same for the present epoch, as its headers say it.
    earlier: bool,
    /// Highest sequence written and highest flushed.
    written: u64,
    synced: u64,
    /// The batch of the entry `written`, the one of the entry `synced`, and what is reported.
    written_batch: u64,
    durable: u64,
    /// Since when there is something written that was not flushed.
    unsynced_us: Option<u64>,
    /// Where recovery begins: by what is written, and by what is flushed.
    begin: u64,
    settled_begin: u64,
    checkpoint: Checkpoint,
    /// All bytes of entries written since the start, and that count where the last complete checkpoint began.
    total_bytes: u64,
    begin_bytes: u64,
    detachments: u64,
    /// After a commit it is the turn of one step of preparation.
    step_due: bool,
    closing: bool,
    /// The spare that was written as a probe and has to be flushed.
    probing: Option<FileId>,
    /// The time of the last question, to know which deadlines are still to come.
    asked_us: u64,
    stats: Stats,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Attached,
    /// In a new epoch whose checkpoint is not durable yet.
    Resyncing,
    Detached {
        probe_us: u64,
        pause_us: u64,
    },
    Ready,
}

struct Pending {
    batch: u64,
    body: Vec<u8>,
    mark: Mark,
}

#[derive(Clone, Copy)]
struct Open {
    file: FileId,
    bytes: usize,
    used: usize,
    seed: u64,
}

/// The checkpoint that is being written, and the last one that was.
#[derive(Clone, Copy, Default)]
struct Checkpoint {
    /// A batch that begins one was appended and the one that ends it is not yet encoded.
    wanted: bool,
    /// Sequence of its first entry and the total of bytes before it.
    first: Option<(u64, u64)>,
    /// The one that was written last, until what it replaces is free.
    settling: Option<Settling>,
}

#[derive(Clone, Copy)]
struct Settling {
    first: u64,
    last: u64,
    /// Sequence of the first entry that was encoded when `last` was flushed.
    proof: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flight {
    Idle,
    Write { file: FileId, offset: u64, last: u64, batch: u64, batches: u64 },
    Wipe { file: FileId, offset: u64, bytes: u32 },
    Sync { file: FileId, upto: u64 },
    Step(Step),
    ProbeFill { file: FileId, bytes: u32 },
    ProbeSync { file: FileId },
}

impl Log {
    /// Most zeros in one operation.
    pub const FILL_BYTES: u32 = FILL_BYTES;

    /// A log that goes on behind `tail`: what a recovery found, or [`Tail::fresh`].
    pub fn new(settings: Settings, tail: Tail, now_us: u64) -> Log {
        let segment_bytes = u64::from(settings.segment_bytes).next_multiple_of(SEGMENT_ALIGN).max(SEGMENT_ALIGN);
        let last = tail.next_sequence - 1;
        let resume = tail.resume.filter(|resume| (resume.shard, resume.shards) == (settings.shard, settings.shards));
        let open = tail.live.last().zip(resume).map(|(last, resume)| Open {
            file: last.file,
            bytes: last.bytes as usize,
            used: resume.offset as usize,
            seed: resume.seed,
        });
        let trusted = cfg!(feature = "plant") && settings.plant == Some(Plant::RecoveredUnsynced);
        let found = tail.live.last().map(|segment| segment.file).filter(|_| !trusted);
        let mut log = Log {
            state: State::Attached,
            flight: Flight::Idle,
            pending: VecDeque::new(),
            pending_bytes: 0,
            buffer: Vec::new(),
            spent: Vec::new(),
            epoch: tail.epoch,
            lineage: if tail.lineage == 0 { lineage(settings.seed, tail.epoch) } else { tail.lineage },
            next_epoch: tail.next_epoch,
            next_index: tail.next_index,
            next_sequence: tail.next_sequence,
            open,
            segments_begun: 0,
            found,
            torn: open.zip(resume).filter(|(_, resume)| resume.torn).map(|(_, resume)| resume.offset),
            recovered: found.is_none(),
            needed: tail.live.len() > 1,
            earlier: false,
            written: last,
            synced: last,
            written_batch: 0,
            durable: 0,
            unsynced_us: None,
            begin: tail.begin,
            settled_begin: tail.begin,
            checkpoint: Checkpoint::default(),
            total_bytes: tail.bytes,
            begin_bytes: 0,
            detachments: 0,
            step_due: false,
            closing: false,
            probing: None,
            asked_us: now_us,
            stats: Stats::default(),
            stock: Stock::new(segment_bytes, settings.bytes_max, tail),
            settings,
        };
        if found.is_none() {
            log.stock.release();
        }
        log
    }

    /// Appends a batch. Numbers rise. Dropped while the log is detached, unless it is ready and this is a `Resync`.
    pub fn append(&mut self, batch: u64, body: Vec<u8>, mark: Mark) {
        let accepted = match self.state {
            State::Attached | State::Resyncing => true,
            State::Ready if mark == Mark::Resync => {
                self.begin_epoch();
                true
            }
            State::Ready | State::Detached { .. } => false,
        };
        if !accepted || body.len() > ENTRY_BYTES_MAX {
            self.stats.batches_dropped += 1;
            self.spend(body);
            if accepted {
                self.detach(self.asked_us);
            }
            return;
        }
        self.checkpoint.wanted |= matches!(mark, Mark::Begins | Mark::Resync);
        self.pending_bytes += body.len() as u64;
        self.pending.push_back(Pending { batch, body, mark });
    }

    /// The next operation; none while one is under way, and when there is nothing to do before [`Log::deadline_us`] or
    /// the next batch.
    pub fn next(&mut self, now_us: u64) -> Option<Op<'_>> {
        self.asked_us = self.asked_us.max(now_us);
        if self.flight != Flight::Idle {
            return None;
        }
        self.flight = self.choose(now_us)?;
        Some(match self.flight {
            Flight::Idle => return None,
            Flight::Write { file, offset, .. } => Op::Write { file, offset, bytes: &self.buffer },
            Flight::Wipe { file, offset, bytes } => Op::Fill { file, offset, bytes },
            Flight::Sync { file, .. } | Flight::ProbeSync { file } => Op::Sync { file },
            Flight::ProbeFill { file, bytes } => Op::Fill { file, offset: 0, bytes },
            Flight::Step(Step::Create(file)) => Op::Create { file },
            Flight::Step(Step::Fill { file, offset, bytes }) => Op::Fill { file, offset, bytes },
            Flight::Step(Step::Publish(file)) => Op::Publish { file },
            Flight::Step(Step::Remove(file)) => Op::Remove { file },
        })
    }

    fn choose(&mut self, now_us: u64) -> Option<Flight> {
        match self.state {
            State::Attached | State::Resyncing => self.choose_attached(now_us),
            State::Detached { .. } | State::Ready if self.closing => None,
            State::Detached { probe_us, .. } if now_us >= probe_us => self.probe(now_us),
            State::Detached { .. } | State::Ready => None,
        }
    }

    fn choose_attached(&mut self, now_us: u64) -> Option<Flight> {
        if let Some(file) = self.found {
            if let (Some(offset), Some(open)) = (self.torn, self.open) {
                let bytes = (open.bytes - open.used).min(ENTRY_HEADER_BYTES) as u32;
                return Some(Flight::Wipe { file, offset, bytes });
            }
            return Some(Flight::Sync { file, upto: self.written });
        }
        let unsynced = self.written > self.synced;
        let due = self.unsynced_us.is_some_and(|since| now_us.saturating_sub(since) >= self.settings.sync_interval_us);
        if unsynced && (self.settings.sync || due || (self.closing && self.pending.is_empty())) {
            return self.sync();
        }
        // Preparation goes on between commits, however many batches wait.
        if core::mem::take(&mut self.step_due)
            && !self.closing
            && let Some(step) = self.prepare(now_us)
        {
            return Some(Flight::Step(step));
        }
        if let Some(front) = self.pending.front() {
            let needed = entry_bytes(front.body.len());
            if self.open.is_some_and(|open| open.bytes - open.used >= needed) {
                return self.commit();
            }
            if unsynced {
                return self.sync();
            }
            if let Some(spare) = self.stock.take((HEADER_BYTES + needed) as u64) {
                self.begin_segment(spare);
                return self.commit();
            }
        } else if self.closing {
            return None;
        }
        self.prepare(now_us).map(Flight::Step)
    }

    /// Flushes the open segment: the only one that can have something unflushed.
    fn sync(&self) -> Option<Flight> {
        self.open.map(|open| Flight::Sync { file: open.file, upto: self.written })
    }

    /// Towards a spare for what waits, or for what will come.
    fn prepare(&mut self, now_us: u64) -> Option<Step> {
        let needed = self.pending.front().map_or(0, |front| (HEADER_BYTES + entry_bytes(front.body.len())) as u64);
        let checkpoint = self.checkpoint.wanted || self.state == State::Resyncing;
        self.stock.prepare(needed.next_multiple_of(SEGMENT_ALIGN), checkpoint, now_us)
    }

    /// The next live segment. Its header goes out with its first entries.
    fn begin_segment(&mut self, spare: Spare) {
        self.segments_begun += 1;
        self.stats.segments += 1;
        let mut seed = mix(self.settings.seed ^ mix(self.segments_begun ^ mix(self.epoch ^ mix(self.next_index))));
        if self.planted(Plant::SeedKept) {
            seed = 1;
        }
        self.open = Some(Open { file: spare.file, bytes: spare.bytes as usize, used: 0, seed });
        self.stock.live.push_back(Segment {
            file: spare.file,
            bytes: spare.bytes,
            index: self.next_index,
            first: self.next_sequence,
        });
        self.next_index += 1;
    }

    /// Encodes all that waits and fits into the open segment.
    fn commit(&mut self) -> Option<Flight> {
        let mut open = self.open?;
        let longest = (self.settings.write_bytes_max as usize).max(entry_bytes(0));
        self.buffer.clear();
        self.buffer.shrink_to(2 * longest);
        let offset = open.used;
        if offset == 0 {
            self.header(open).encode(&mut self.buffer);
        }
        let (mut batches, mut batch) = (0, self.written_batch);
        while let Some(front) = self.pending.front() {
            let (needed, place) = (entry_bytes(front.body.len()), offset + self.buffer.len());
            if open.bytes - place < needed || (batches > 0 && self.buffer.len() + needed > longest) {
                break;
            }
            let Some(pending) = self.pending.pop_front() else { break };
            self.pending_bytes -= pending.body.len() as u64;
            self.mark(pending.mark);
            let entry =
                Entry { sequence: self.next_sequence, synced: self.synced, begin: self.begin, body: &pending.body };
            format::encode_entry(&mut self.buffer, open.seed, place, entry);
            self.next_sequence += 1;
            self.total_bytes += needed as u64;
            batches += 1;
            batch = pending.batch;
            self.spend(pending.body);
        }
        open.used = offset + self.buffer.len();
        self.open = Some(open);
        if self.planted(Plant::DurableBeforeWrite) && self.state == State::Attached {
            self.durable = batch;
        }
        let last = self.next_sequence - 1;
        Some(Flight::Write { file: open.file, offset: offset as u64, last, batch, batches })
    }

    fn header(&self, open: Open) -> Header {
        Header {
            shard: self.settings.shard,
            shards: self.settings.shards,
            epoch: self.epoch,
            lineage: self.lineage,
            index: self.next_index - 1,
            first: self.next_sequence,
            begin: self.settled_begin,
            seed: open.seed,
            bytes: open.bytes as u64,
            boot: self.settings.boot,
            earlier: self.earlier,
        }
    }

    /// What the mark of the entry `next_sequence`, which is about to be encoded, means. The entry that ends a
    /// checkpoint says itself where recovery begins: if it is there, so is all of the checkpoint.
    fn mark(&mut self, mark: Mark) {
        match mark {
            Mark::None => {}
            Mark::Begins | Mark::Resync => self.checkpoint.first = Some((self.next_sequence, self.total_bytes)),
            Mark::Ends => {
                if let Some((first, bytes)) = self.checkpoint.first.take() {
                    self.begin = first;
                    self.begin_bytes = bytes;
                    self.checkpoint.settling = Some(Settling { first, last: self.next_sequence, proof: None });
                }
                self.checkpoint.wanted = self.pending.iter().any(|p| matches!(p.mark, Mark::Begins | Mark::Resync));
            }
        }
    }

    /// Tells how the operation went that [`Log::next`] asked for.
    pub fn completed(&mut self, result: Result<(), Failure>, now_us: u64) {
        let flight = core::mem::replace(&mut self.flight, Flight::Idle);
        self.stats.failures += u64::from(result.is_err());
        let worked = result.is_ok();
        match flight {
            Flight::Idle => {}
            Flight::Step(step) => self.stepped(step, worked, now_us),
            // The flush follows at once: `probing` is looked at before anything else.
            Flight::ProbeFill { file, .. } if worked => self.probing = Some(file),
            Flight::ProbeSync { .. } if worked => self.state = State::Ready,
            Flight::ProbeFill { file, .. } | Flight::ProbeSync { file } => {
                self.stock.distrust(file);
                self.probe_failed(now_us);
            }
            Flight::Write { .. } | Flight::Wipe { .. } | Flight::Sync { .. } if !worked => self.detach(now_us),
            Flight::Wipe { .. } => self.torn = None,
            Flight::Write { last, batch, batches, .. } => {
                self.stats.commits += 1;
                self.stats.batches += batches;
                self.stats.bytes += self.buffer.len() as u64;
                self.stats.commit_batches_max = self.stats.commit_batches_max.max(batches);
                self.written = last;
                self.written_batch = batch;
                self.unsynced_us.get_or_insert(now_us);
                if !self.settings.sync || self.planted(Plant::DurableBeforeSync) {
                    self.report();
                }
                if self.planted(Plant::FreedBeforeSync) {
                    self.settle(last);
                    self.settle(u64::MAX);
                }
                self.step_due = true;
            }
            Flight::Sync { upto, .. } => {
                self.stats.syncs += 1;
                if self.found.take().is_some() {
                    self.stock.release();
                    self.recovered = true;
                }
                self.synced = upto;
                self.unsynced_us = None;
                self.report();
                self.needed |= self.state == State::Attached;
                self.settle(upto);
            }
        }
    }

    /// All that was written is durable. In a new epoch only if its checkpoint is complete with it.
    fn report(&mut self) {
        if self.state == State::Resyncing && (self.begin > 0 || self.planted(Plant::AttachedEarly)) {
            self.state = State::Attached;
            self.recovered = true;
        }
        if self.state == State::Attached {
            self.durable = self.durable.max(self.written_batch);
        }
    }

    /// Frees what a checkpoint replaces when its end is flushed, and behind it an entry that says so: with that proof a
    /// recovery that finds the end damaged refuses, instead of taking it for the torn tail of an unfinished checkpoint.
    fn settle(&mut self, synced: u64) {
        let Some(settling) = &mut self.checkpoint.settling else { return };
        match settling.proof {
            None if synced >= settling.last => {
                settling.proof = Some(self.next_sequence);
                if self.pending.is_empty() {
                    self.pending.push_back(Pending { batch: self.written_batch, body: Vec::new(), mark: Mark::None });
                }
            }
            Some(proof) if synced >= proof => {
                let first = settling.first;
                self.checkpoint.settling = None;
                self.stats.checkpoints += 1;
                self.settled_begin = first;
                self.stock.free_before(first);
                self.stock.free_old();
            }
            _ => {}
        }
    }

    fn stepped(&mut self, step: Step, worked: bool, now_us: u64) {
        match step {
            Step::Create(_) if worked => self.stats.files_created += 1,
            Step::Remove(_) if worked => self.stats.files_removed += 1,
            _ => {}
        }
        let ready = self.stock.completed(step, worked, now_us);
        if let State::Detached { .. } = self.state {
            if ready {
                self.state = State::Ready;
            } else if !worked && !matches!(step, Step::Remove(_)) {
                self.probe_failed(now_us);
            }
        }
    }

    /// An operation failed: nothing that waits will become durable.
    fn detach(&mut self, now_us: u64) {
        // The present epoch may be what a recovery chooses if a checkpoint of it may have been written.
        self.stock.end_epoch(self.begin > 0);
        while let Some(pending) = self.pending.pop_front() {
            self.stats.batches_dropped += 1;
            self.spend(pending.body);
        }
        self.pending_bytes = 0;
        self.open = None;
        self.found = None;
        self.torn = None;
        self.unsynced_us = None;
        self.written = self.next_sequence - 1;
        self.synced = self.written;
        self.checkpoint = Checkpoint::default();
        self.detachments += 1;
        self.stock.retry_now();
        self.state = State::Detached { probe_us: now_us + PROBE_US_MIN, pause_us: PROBE_US_MIN };
    }

    /// The first segment of a new epoch is written with the `Resync` that follows.
    fn begin_epoch(&mut self) {
        self.state = State::Resyncing;
        self.earlier = self.needed;
        self.epoch = self.next_epoch;
        self.lineage = lineage(self.settings.seed, self.epoch);
        self.next_epoch += 1;
        self.next_index = 1;
        self.begin = 0;
        self.settled_begin = 0;
        self.begin_bytes = self.total_bytes;
    }

    /// Whether the disk takes anything again: by overwriting a spare, or by preparing one.
    fn probe(&mut self, now_us: u64) -> Option<Flight> {
        if let Some(file) = self.probing.take() {
            return Some(Flight::ProbeSync { file });
        }
        if let Some(spare) = self.stock.probe() {
            let bytes = u32::try_from(spare.bytes).map_or(FILL_BYTES, |bytes| bytes.min(FILL_BYTES));
            return Some(Flight::ProbeFill { file: spare.file, bytes });
        }
        let step = self.stock.prepare(0, true, now_us);
        if step.is_none() {
            self.probe_failed(now_us);
        }
        step.map(Flight::Step)
    }

    fn probe_failed(&mut self, now_us: u64) {
        if let State::Detached { pause_us, .. } = self.state {
            let pause_us = (2 * pause_us).min(PROBE_US_MAX);
            self.state = State::Detached { probe_us: now_us + pause_us, pause_us };
            self.stock.retry_now();
        }
    }

    /// When [`Log::next`] may have something to do although nothing was appended.
    pub fn deadline_us(&self) -> u64 {
        let sync = self.unsynced_us.map(|since| since + self.settings.sync_interval_us);
        let (sync, probe, retry) = match self.state {
            State::Attached | State::Resyncing => (sync, None, self.stock.retry_us()),
            State::Detached { probe_us, .. } => (None, Some(probe_us), None),
            State::Ready => (None, None, None),
        };
        // One that has passed without leading to anything waits for something else: space, or a batch.
        [sync, probe, retry].into_iter().flatten().filter(|at| *at > self.asked_us).min().unwrap_or(u64::MAX)
    }

    /// A body that is not needed any more, empty, for the next batch.
    pub fn recycle(&mut self) -> Option<Vec<u8>> {
        self.spent.pop()
    }

    fn spend(&mut self, mut body: Vec<u8>) {
        if body.capacity() > 0 && body.capacity() <= SPENT_BYTES_MAX && self.spent.len() < SPENT_MAX {
            body.clear();
            self.spent.push(body);
        }
    }

    /// How the log is.
    pub fn status(&self) -> Status {
        Status {
            durable: self.durable,
            recovered: self.recovered,
            room: self.room(),
            detachments: self.detachments,
            since_begin_bytes: self.total_bytes - self.begin_bytes,
            segments: self.stock.live.len() as u32,
            bytes: self.stock.bytes(),
            pending_bytes: self.pending_bytes,
        }
    }

    fn room(&self) -> Room {
        match self.state {
            State::Detached { .. } | State::Resyncing => Room::Detached,
            State::Ready => Room::Ready,
            State::Attached => {
                let open = self.open.map_or(0, |open| open.bytes - open.used) as u64;
                let reserve = u64::from(self.settings.segment_bytes) + self.pending_bytes;
                if self.stock.exhausted() && open + self.stock.spare_bytes() < reserve {
                    Room::Tight
                } else {
                    Room::Plenty
                }
            }
        }
    }

    /// What the log has done.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The process is about to stop: after this, [`Log::next`] yields what is left to write and to flush, then nothing.
    pub fn close(&mut self) {
        self.closing = true;
    }

    #[inline]
    fn planted(&self, plant: Plant) -> bool {
        cfg!(feature = "plant") && self.settings.plant == Some(plant)
    }
}

/// Never 0, and another one for each process.
fn lineage(seed: u64, epoch: u64) -> u64 {
    mix(seed ^ mix(epoch)) | 1
}

/// Spreads the bits of a number (the finalizer of splitmix64).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
