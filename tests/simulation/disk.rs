//! The log of one shard on a disk in memory: operations take their time, fail, and are cut by a crash; what the log
//! says reaches the shard later. Owned by its shard, driven by the world. Always true: one operation at a time, and
//! nothing of it is on the disk before it is over, unless a crash cuts it.

use std::collections::VecDeque;

use broker::journal::JournalBatch;
use log::{Boot, Failure, FileId, Log, Mark, Op, Room, Settings, Status, Tail, disk::VirtualDisk};

use crate::{plan::DiskPlan, rng::Rng};

/// What is wrong with a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// One of so many operations fails.
    Failing(u64),
    /// Nothing can be written.
    ReadOnly,
    /// Nothing can be added.
    Full,
}

/// An operation under way.
enum Flight {
    Create(FileId),
    Fill(FileId, u64, u32),
    Publish(FileId),
    Write(FileId, u64, Vec<u8>),
    Sync(FileId),
    Remove(FileId),
}

impl Flight {
    fn of(op: &Op<'_>) -> Flight {
        match op {
            Op::Create { file } => Flight::Create(*file),
            Op::Fill { file, offset, bytes } => Flight::Fill(*file, *offset, *bytes),
            Op::Publish { file } => Flight::Publish(*file),
            Op::Write { file, offset, bytes } => Flight::Write(*file, *offset, bytes.to_vec()),
            Op::Sync { file } => Flight::Sync(*file),
            Op::Remove { file } => Flight::Remove(*file),
        }
    }

    fn op(&self) -> Op<'_> {
        match self {
            Flight::Create(file) => Op::Create { file: *file },
            Flight::Fill(file, offset, bytes) => Op::Fill { file: *file, offset: *offset, bytes: *bytes },
            Flight::Publish(file) => Op::Publish { file: *file },
            Flight::Write(file, offset, bytes) => Op::Write { file: *file, offset: *offset, bytes },
            Flight::Sync(file) => Op::Sync { file: *file },
            Flight::Remove(file) => Op::Remove { file: *file },
        }
    }
}

/// What the world has to do for a log.
pub enum Due {
    /// An operation began; it is over at this time.
    Done(u64),
    /// There may be something to do at this time.
    Look(u64),
    /// Nothing until something is appended.
    Nothing,
}

/// The log of one shard.
pub struct LogSim {
    log: Log,
    /// Its files.
    pub disk: VirtualDisk,
    /// What is wrong with them.
    pub fault: Fault,
    times: DiskPlan,
    flight: Option<Flight>,
    /// What the shard was told last.
    told: Option<Status>,
    /// It will be told more.
    pub telling: bool,
    /// Batches that are not durable, with the time of their turn.
    unkept: VecDeque<(u64, u64)>,
    /// Since when nothing is kept.
    detached_us: Option<u64>,
    /// A checkpoint began and has not ended.
    pub checkpointing: bool,
    /// The checkpoint follows a detachment.
    resyncing: bool,
    /// Detachments that ended with a complete checkpoint.
    pub resyncs: u64,
}

impl LogSim {
    /// A log that goes on behind `tail` on this disk.
    pub fn new(settings: Settings, tail: Tail, disk: VirtualDisk, times: DiskPlan, now_us: u64) -> LogSim {
        LogSim {
            log: Log::new(settings, tail, now_us),
            disk,
            fault: Fault::None,
            times,
            flight: None,
            told: None,
            telling: false,
            unkept: VecDeque::new(),
            detached_us: None,
            checkpointing: false,
            resyncing: false,
            resyncs: 0,
        }
    }

    /// How the log is.
    pub fn status(&self) -> Status {
        self.log.status()
    }

    /// Checkpoints that became complete.
    pub fn checkpoints(&self) -> u64 {
        self.log.stats().checkpoints
    }

    /// What the shard recorded in the turn that ends at `now_us`.
    pub fn append(&mut self, batch: JournalBatch, now_us: u64) {
        self.unkept.push_back((batch.number, now_us));
        match batch.mark {
            Mark::None => {}
            Mark::Begins => self.checkpointing = true,
            Mark::Resync => (self.checkpointing, self.resyncing) = (true, true),
            Mark::Ends => self.checkpointing = false,
        }
        self.log.append(batch.number, batch.bytes, batch.mark);
    }

    /// A buffer that the shard may use again.
    pub fn recycle(&mut self) -> Option<Vec<u8>> {
        self.log.recycle()
    }

    /// Begins the next operation, if it is time for one.
    pub fn next(&mut self, now_us: u64, rng: &mut Rng) -> Due {
        if self.flight.is_some() {
            return Due::Nothing;
        }
        let Some(op) = self.log.next(now_us) else {
            return match self.log.deadline_us() {
                u64::MAX => Due::Nothing,
                at_us => Due::Look(at_us.max(now_us + 1)),
            };
        };
        let most_us = match op {
            Op::Sync { .. } | Op::Publish { .. } => self.times.sync_us,
            _ => self.times.write_us,
        };
        let stalls = rng.one_in(self.times.stall_one_in);
        let lasts_us = rng.between(1, if stalls { self.times.stall_us } else { most_us });
        self.flight = Some(Flight::of(&op));
        Due::Done(now_us + lasts_us)
    }

    /// The operation under way is over. True: it failed.
    pub fn done(&mut self, now_us: u64, rng: &mut Rng) -> bool {
        let Some(flight) = self.flight.take() else { return false };
        let op = flight.op();
        let fails = match self.fault {
            Fault::None => false,
            Fault::Failing(one_in) => rng.one_in(one_in),
            Fault::ReadOnly => true,
            Fault::Full => matches!(op, Op::Create { .. } | Op::Fill { .. } if !self.overwrites(&op)),
        };
        let result = if fails {
            let failure = if self.fault == Fault::Full { Failure::NoSpace } else { Failure::Other };
            self.disk.fail(&op, failure, rng.next())
        } else {
            self.disk.apply(&op)
        };
        self.log.completed(result, now_us);
        let status = self.log.status();
        while self.unkept.front().is_some_and(|(number, _)| *number <= status.durable) {
            self.unkept.pop_front();
        }
        self.heed(status, now_us);
        result.is_err()
    }

    /// A probe fills what is there already.
    fn overwrites(&self, op: &Op<'_>) -> bool {
        match op {
            Op::Fill { file, offset, bytes } => {
                self.disk.read(*file).is_some_and(|known| known.len() as u64 >= offset + u64::from(*bytes))
            }
            _ => false,
        }
    }

    /// Attached again, or detached.
    fn heed(&mut self, status: Status, now_us: u64) {
        let attached = matches!(status.room, Room::Plenty | Room::Tight);
        match (attached, self.detached_us) {
            (false, None) => {
                // What was not durable then never will be: the state is written anew.
                let since_us = self.unkept.front().map_or(now_us, |(_, at_us)| *at_us);
                self.unkept.clear();
                self.detached_us = Some(since_us);
                self.checkpointing = false;
            }
            (true, Some(_)) => {
                self.detached_us = None;
                self.resyncs += u64::from(core::mem::take(&mut self.resyncing));
            }
            _ => {}
        }
    }

    /// Everything that the shard did before this time is kept.
    pub fn kept_us(&self) -> u64 {
        let unkept_us = self.unkept.front().map_or(u64::MAX, |(_, at_us)| *at_us);
        unkept_us.min(self.detached_us.unwrap_or(u64::MAX))
    }

    /// What the shard does not know yet.
    pub fn news(&self) -> bool {
        self.told != Some(self.log.status())
    }

    /// What the shard is told now.
    pub fn tell(&mut self) -> Status {
        self.telling = false;
        let status = self.log.status();
        self.told = Some(status);
        status
    }

    /// The process dies, and with `power` the machine. What is left of the disk.
    pub fn crash(mut self, power: bool, rng: &mut Rng) -> VirtualDisk {
        if let Some(flight) = &self.flight {
            self.disk.tear(&flight.op(), rng.next());
        }
        match power {
            true => self.disk.power_loss(rng.next()),
            false => self.disk.kill(),
        }
        self.disk
    }
}

/// The settings of a log.
pub fn settings(shard: u16, shards: u16, durability: &contract::config::Durability, boot: Boot, seed: u64) -> Settings {
    Settings {
        shard,
        shards,
        sync: durability.mode == contract::config::Mode::Fsync,
        segment_bytes: durability.segment_bytes,
        bytes_max: durability.bytes_max,
        write_bytes_max: 4 << 20,
        sync_interval_us: u64::from(durability.sync_interval_ms) * 1_000,
        boot,
        seed,
        plant: None,
    }
}
