//! One run: an owner, its log, its disk, and what befalls them.

use log::disk::VirtualDisk;
use log::plant::Plant;
use log::{Boot, Failure, Log, Mark, Op, Room, Settings, Tail};

use crate::Coverage;
use crate::chance::Chance;
use crate::damage;
use crate::model::{History, Record, State, encode, recover};

const KEYS: u64 = 24;
/// Steps of one run.
const STEPS: u64 = 500;
/// Room for the records of a batch where all have one size.
const UNIFORM_BYTES: usize = 200;
/// Where the owner stops to accept.
const PENDING_BYTES_MAX: u64 = 100_000;
/// Operations until a log with nothing in its way has to be done.
const DONE_WITHIN: u64 = 20_000;

pub struct World {
    pub chance: Chance,
    pub disk: VirtualDisk,
    pub boot: Boot,
    pub history: History,
    pub coverage: Coverage,
    pub settings: Settings,
    log: Log,
    now_us: u64,
    state: State,
    /// The present process: its branch, and the history index of each of its batches from number 1 on.
    branch: u64,
    indices: Vec<u64>,
    /// What the owner relies upon: after the death of the process, and after a power loss.
    relied_kill: u64,
    relied_power: u64,
    /// What was recovered at the start of this process.
    recovered: u64,
    checkpoint: Option<Walk>,
    detachments: u64,
    /// One operation in this many fails; 0: none.
    failing: u64,
    /// First index of the last write.
    pub last_commit: u64,
    written_batches: u64,
    enough_bytes: u64,
    /// Every batch takes the same bytes: what an earlier use of a file left is where an entry will be looked for.
    uniform: bool,
}

/// A checkpoint under way: the next key to append again.
struct Walk {
    key: u64,
    mark: Mark,
}

impl World {
    pub fn run(seed: u64, plant: Option<Plant>) -> (Result<(), String>, Coverage) {
        let mut world = World::new(seed, plant);
        let verdict = world.live();
        (verdict, world.coverage)
    }

    fn new(seed: u64, plant: Option<Plant>) -> World {
        let mut chance = Chance(seed);
        let sync = chance.once_in(2);
        let segment_bytes = chance.one_of(&[4096, 4096, 8192, 16_384]);
        let settings = Settings {
            shard: 3,
            shards: 7,
            sync,
            segment_bytes,
            bytes_max: if chance.once_in(3) { 6 * u64::from(segment_bytes) } else { 0 },
            write_bytes_max: chance.one_of(&[1, 600, 3000, 1 << 20]),
            sync_interval_us: chance.one_of(&[1, 2_000, 50_000]),
            boot: Boot([1; 16]),
            seed: chance.next(),
            plant,
        };
        let mut coverage = Coverage::default();
        coverage.saw(if sync { "mode fsync" } else { "mode os" }, 1);
        coverage.saw("bytes limited", u64::from(settings.bytes_max > 0));
        World {
            disk: VirtualDisk::new(),
            boot: settings.boot,
            history: History::new(),
            coverage,
            log: Log::new(settings, Tail::fresh(), 0),
            now_us: 0,
            state: State::new(),
            branch: 0,
            indices: Vec::new(),
            relied_kill: 0,
            relied_power: 0,
            recovered: 0,
            checkpoint: None,
            detachments: 0,
            failing: 0,
            last_commit: 0,
            written_batches: 0,
            enough_bytes: chance.one_of(&[2_000, 10_000, 40_000]),
            uniform: chance.once_in(3),
            settings,
            chance,
        }
    }

    fn live(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.now_us += self.chance.below(3_000);
            match self.chance.below(100) {
                0 => self.failing = self.chance.one_of(&[0, 0, 0, 3, 20]),
                1 => {
                    let used = self.disk.bytes();
                    self.disk.capacity = self.chance.one_of(&[None, None, Some(used + 3000), Some(used)]);
                }
                2 if self.chance.once_in(2) => self.crash(false, false)?,
                3 if self.chance.once_in(2) => self.crash(true, false)?,
                4..40 => self.turn(),
                _ => {
                    self.operate(true)?;
                }
            }
        }
        self.settle()?;
        damage::damage(self)
    }

    /// The owner's turn: it changes its state and appends what it changed, and a part of a checkpoint.
    fn turn(&mut self) {
        let status = self.log.status();
        if status.pending_bytes > PENDING_BYTES_MAX {
            return;
        }
        if status.detachments != self.detachments {
            self.detachments = status.detachments;
            self.checkpoint = None;
            self.coverage.saw("detached", 1);
        }
        if self.checkpoint.is_none() {
            self.checkpoint = match status.room {
                Room::Ready => Some(Walk { key: 0, mark: Mark::Resync }),
                Room::Tight => Some(Walk { key: 0, mark: Mark::Begins }),
                Room::Plenty if status.since_begin_bytes > self.enough_bytes => {
                    Some(Walk { key: 0, mark: Mark::Begins })
                }
                Room::Plenty | Room::Detached => None,
            };
        }
        let tight = status.room == Room::Tight;
        self.coverage.saw("tight", u64::from(tight));
        let mut records = Vec::new();
        for _ in 0..self.chance.below(4) {
            let key = self.chance.below(KEYS) as u8;
            if tight || self.chance.once_in(3) {
                self.state.remove(&key);
                records.push(Record::Delete(key));
            } else {
                let value = self.chance.next();
                self.state.insert(key, value);
                records.push(Record::Put(key, value));
            }
        }
        let mut mark = Mark::None;
        if let Some(walk) = &mut self.checkpoint {
            // The part of the checkpoint is of the state after this turn's changes.
            mark = std::mem::replace(&mut walk.mark, Mark::None);
            if mark == Mark::None {
                let until = (walk.key + 1 + self.chance.below(8)).min(KEYS);
                for key in walk.key..until {
                    if let Some(value) = self.state.get(&(key as u8)) {
                        records.push(Record::Put(key as u8, *value));
                    }
                }
                walk.key = until;
                if until == KEYS {
                    mark = Mark::Ends;
                    self.checkpoint = None;
                }
            }
        }
        let ballast = match (tight, self.uniform) {
            (_, true) => UNIFORM_BYTES - 10 * records.len(),
            (true, false) => 0,
            (false, false) => self.ballast(),
        };
        self.append(&records, ballast, mark);
    }

    fn ballast(&mut self) -> usize {
        let segment = u64::from(self.settings.segment_bytes);
        let bytes = match self.chance.below(60) {
            0 => {
                self.coverage.saw("batches larger than a segment", 1);
                segment + self.chance.below(2 * segment)
            }
            1..8 => self.chance.below(segment),
            8..20 => 0,
            _ => self.chance.below(300),
        };
        bytes as usize
    }

    fn append(&mut self, records: &[Record], ballast: usize, mark: Mark) {
        let index = self.history.last() + 1;
        self.history.turns.push((self.branch, self.state.clone()));
        self.indices.push(index);
        let mut body = self.log.recycle().unwrap_or_default();
        encode(&mut body, index, self.branch, records, ballast);
        self.log.append(self.indices.len() as u64, body, mark);
    }

    /// The log's next operation; `trouble`: it may fail, and the process or the power may go in the middle of it.
    fn operate(&mut self, trouble: bool) -> Result<bool, String> {
        let Some(op) = self.log.next(self.now_us) else {
            let deadline = self.log.deadline_us();
            let sleeps = deadline != u64::MAX && (!trouble || self.chance.once_in(3));
            if sleeps {
                if deadline <= self.now_us {
                    return Err("a deadline that has passed is no deadline".into());
                }
                self.now_us = deadline;
            }
            return Ok(sleeps);
        };
        let (write, flush) = (matches!(op, Op::Write { .. }), matches!(op, Op::Sync { .. }));
        if trouble && self.chance.once_in(250) {
            self.disk.tear(&op, self.chance.next());
            let power = self.chance.once_in(2);
            return self.crash(power, true).map(|()| true);
        }
        let result = if trouble && self.failing > 0 && self.chance.once_in(self.failing) {
            let failure = self.chance.one_of(&[Failure::NoSpace, Failure::Other]);
            self.disk.fail(&op, failure, self.chance.next())
        } else {
            self.disk.apply(&op)
        };
        self.coverage.saw("no space", u64::from(result == Err(Failure::NoSpace)));
        self.now_us += self.chance.below(500);
        let attached = matches!(self.log.status().room, Room::Plenty | Room::Tight);
        self.log.completed(result, self.now_us);
        if write && result.is_ok() {
            let batches = self.log.stats().batches;
            self.coverage.saw("commits of several batches", u64::from(batches > self.written_batches + 1));
            self.written_batches = batches;
        }
        let status = self.log.status();
        let attaches = !attached && matches!(status.room, Room::Plenty | Room::Tight);
        self.coverage.saw("attached again", u64::from(attaches));
        if status.durable > 0 {
            let index = self.indices[status.durable as usize - 1];
            if write && result.is_ok() {
                self.last_commit = self.relied_kill;
            }
            self.relied_kill = self.relied_kill.max(index);
            if self.settings.sync || (flush && attached && result.is_ok()) {
                self.relied_power = self.relied_power.max(index);
            }
        }
        if status.recovered && status.detachments == 0 {
            self.relied_power = self.relied_power.max(self.recovered);
        }
        Ok(true)
    }

    /// The process dies, and with `power` the machine with it; the next process recovers.
    fn crash(&mut self, power: bool, in_operation: bool) -> Result<(), String> {
        match (power, in_operation) {
            (true, false) => self.coverage.saw("power losses", 1),
            (true, true) => self.coverage.saw("power losses in an operation", 1),
            (false, false) => self.coverage.saw("kills", 1),
            (false, true) => self.coverage.saw("kills in an operation", 1),
        }
        if power {
            self.disk.power_loss(self.chance.next());
            self.boot = Boot([(self.boot.0[0] % 250) + 1; 16]);
            self.relied_kill = self.relied_power;
        } else {
            self.disk.kill();
        }
        let stats = self.log.stats();
        self.coverage.saw("checkpoints", stats.checkpoints);
        self.coverage.saw("files removed", stats.files_removed);
        self.coverage.saw("segments used again", stats.segments.saturating_sub(stats.files_created));
        self.restart()
    }

    fn restart(&mut self) -> Result<(), String> {
        let (outcome, replay) = recover(&self.disk, self.boot);
        let (tail, report) = outcome.map_err(|refusal| format!("refused without damage: {refusal}"))?;
        let last = replay.last();
        if last < self.relied_kill {
            return Err(format!("batch {} was durable, only {last} came back", self.relied_kill));
        }
        replay.judge(&self.history)?;
        self.coverage.saw("segments resumed", u64::from(tail.resume.is_some()));
        self.coverage.saw("torn segments resumed", u64::from(tail.resume.is_some_and(|resume| resume.torn)));
        self.coverage.saw("torn tails", u64::from(report.torn_bytes > 0));
        self.coverage.saw("entries discarded in a torn tail", report.torn_entries_discarded);
        self.coverage.saw("incomplete epochs", report.incomplete_epochs);
        self.history.turns.truncate(last as usize + 1);
        self.state = replay.state;
        self.recovered = last;
        self.relied_kill = last;
        self.branch += 1;
        self.indices.clear();
        self.checkpoint = None;
        self.detachments = 0;
        self.written_batches = 0;
        self.settings.boot = self.boot;
        self.settings.seed = self.chance.next();
        self.log = Log::new(self.settings, tail, self.now_us);
        Ok(())
    }

    /// With nothing in its way the log attaches again, and everything becomes durable; then the process stops.
    fn settle(&mut self) -> Result<(), String> {
        self.failing = 0;
        self.disk.capacity = None;
        let mut steps = 0;
        for goal in 0..2 {
            loop {
                steps += 1;
                if steps > DONE_WITHIN {
                    return Err(format!("not done after {steps} steps: {:?}", self.log.status()));
                }
                let busy = self.operate(false)?;
                let status = self.log.status();
                let turn = status.room != Room::Plenty || self.checkpoint.is_some() || self.indices.is_empty();
                if !busy && !turn && status.durable == self.indices.len() as u64 {
                    break;
                }
                if turn && goal == 0 && (!busy || self.chance.once_in(3)) {
                    self.turn();
                }
            }
            self.log.close();
        }
        let stats = self.log.stats();
        self.coverage.saw("checkpoints", stats.checkpoints);
        self.relied_power = self.relied_kill;
        if self.relied_kill != self.history.last() {
            return Err("not everything is durable at the end".into());
        }
        let mut after = self.disk.clone();
        after.power_loss(self.chance.next());
        let (outcome, replay) = recover(&after, Boot([251; 16]));
        outcome.map_err(|refusal| format!("refused after a clean stop: {refusal}"))?;
        if replay.last() != self.history.last() {
            return Err("a clean stop left something unflushed".into());
        }
        replay.judge(&self.history)
    }
}
