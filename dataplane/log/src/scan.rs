//! Recovery: reads segments in order, yields their entries, and tells a torn tail from damage. Pure, used once at a
//! start, by `ringmq log check` and by the simulation. Invariant: what it accepts is a prefix of what was appended,
//! without a hole; what it cannot vouch for it refuses, with file and offset.

use alloc::vec::Vec;

use crate::format::{self, ENTRY_HEADER_BYTES, HEADER_BYTES, Header, entry_bytes};
use crate::plan::{Found, Link, Plan, plan};
use crate::report::{Refusal, Report};
use crate::surface::{Boot, FileId};

/// Damaged places of one epoch that are remembered apart; of more, the last one stands for the rest.
const DAMAGES_MAX: usize = 64;

/// What a scan yields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// The body of the next entry.
    Entry(&'a [u8]),
    /// Forget all entries so far: what follows is complete, or the recovery is refused in the end.
    Reset,
}

/// A segment that a recovery would read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Its file.
    pub file: FileId,
    /// Size of the file.
    pub bytes: u64,
    /// Place in the chain of its epoch.
    pub index: u64,
    /// Sequence of its first entry.
    pub first: u64,
}

/// A file that nothing is needed of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spare {
    /// The file.
    pub file: FileId,
    /// Its size.
    pub bytes: u64,
}

/// The last segment goes on behind its last entry, because no power was lost since it was begun: what stands there is at
/// most the beginning of one entry. So a process that dies again and again takes no further segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resume {
    /// Shard that wrote the segment.
    pub shard: u16,
    /// Shards of its layout.
    pub shards: u16,
    /// Seed of the checks of its entries.
    pub seed: u64,
    /// Offset behind its last entry.
    pub offset: u64,
    /// An entry was begun there: its header is wiped before anything is written, or a power loss could join it with
    /// what was written over it.
    pub torn: bool,
}

/// Where a log goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tail {
    /// The epoch that goes on.
    pub epoch: u64,
    /// What tells it from another epoch with this number; 0: to be chosen.
    pub lineage: u64,
    /// The next new epoch: higher than any that was found.
    pub next_epoch: u64,
    /// Place in the chain of the next segment.
    pub next_index: u64,
    /// Sequence of the next entry.
    pub next_sequence: u64,
    /// Where recovery begins.
    pub begin: u64,
    /// Bytes of the entries that were read.
    pub bytes: u64,
    /// The segments that are needed, oldest first.
    pub live: Vec<Segment>,
    /// Where the last of them goes on, if it may.
    pub resume: Option<Resume>,
    /// All other files, but for:
    pub spares: Vec<Spare>,
    /// Files of newer epochs that were never complete. They are removed and never written again: half overwritten, the
    /// rest of one might look like a complete epoch that was damaged.
    pub stale: Vec<FileId>,
    /// Number of the next new file.
    pub next_file: FileId,
}

impl Tail {
    /// The beginning of a log in an empty directory.
    pub fn fresh() -> Tail {
        Tail {
            epoch: 1,
            lineage: 0,
            next_epoch: 2,
            next_index: 1,
            next_sequence: 1,
            begin: 1,
            bytes: 0,
            live: Vec::new(),
            resume: None,
            spares: Vec::new(),
            stale: Vec::new(),
            next_file: 1,
        }
    }
}

/// A recovery under way: [`Scan::next`] names a file, [`Scan::segment`] takes its bytes, until none is named.
pub struct Scan {
    plan: Plan,
    boot: Boot,
    /// The chain that is read, and the place in it.
    chain: usize,
    place: usize,
    /// The sequence that comes next.
    expected: u64,
    begin: u64,
    /// Place and file offset behind the last entry.
    end: (FileId, u64),
    damages: Vec<Damage>,
    /// An entry was yielded and not taken back.
    yielded: bool,
    report: Report,
    /// The judgement, should no older epoch be complete although there was one.
    newest: Option<Refusal>,
    outcome: Option<Result<(), Refusal>>,
}

/// A place where something is missing; entries are there again from `resume` on.
#[derive(Clone, Copy)]
struct Damage {
    file: FileId,
    offset: u64,
    /// `u64::MAX`: nobody knows whether there were more.
    resume: u64,
}

/// What stands behind an invalid place of a segment.
struct Behind {
    /// Offset and sequence of the first valid entry.
    first: Option<(usize, u64)>,
    entries: u64,
    /// Highest sequence that any of them knew to be flushed.
    synced: u64,
}

impl Scan {
    /// Begins with the newest epoch. `boot` is the present boot of the machine.
    pub fn new(plan: Plan, boot: Boot) -> Scan {
        let report = Report { headers_repaired: plan.headers_repaired, ..Report::default() };
        let mut scan = Scan {
            plan,
            boot,
            chain: 0,
            place: 0,
            expected: 0,
            begin: 0,
            end: (0, 0),
            damages: Vec::new(),
            yielded: false,
            report,
            newest: None,
            outcome: None,
        };
        scan.begin_chain();
        scan
    }

    /// The file to read next, whole; none when there is enough for [`Scan::finish`].
    pub fn next(&self) -> Option<FileId> {
        if self.outcome.is_some() { None } else { self.link().map(|link| link.file) }
    }

    /// Number and lineage of the epoch that was recovered or refused; none if no epoch was ever complete.
    pub(crate) fn chosen(&self) -> Option<(u64, u64)> {
        let header = self.plan.chains.get(self.chain)?.last()?.header;
        Some((header.epoch, header.lineage))
    }

    fn link(&self) -> Option<Link> {
        self.plan.chains.get(self.chain)?.get(self.place).copied()
    }

    fn begin_chain(&mut self) {
        self.place = 0;
        self.damages.clear();
        match self.link() {
            Some(link) => {
                self.expected = link.header.first;
                self.begin = link.header.begin;
                self.end = (link.file, HEADER_BYTES as u64);
                self.report.epoch = link.header.epoch;
            }
            // No segment at all is a new log; no complete one where there are some is not.
            None => self.outcome = Some(self.newest.map_or(Ok(()), Err)),
        }
    }

    /// Takes the bytes of the file that [`Scan::next`] named and yields its entries.
    pub fn segment(&mut self, bytes: &[u8], each: &mut dyn FnMut(Event<'_>)) {
        let Some(link) = self.link() else { return };
        if self.outcome.is_some() {
            return;
        }
        self.report.segments += 1;
        self.begin = self.begin.max(link.header.begin);
        let successor = self.plan.chains[self.chain].get(self.place + 1).map(|next| next.header.first);
        self.entries(&link, successor, bytes, each);
        self.place += 1;
        if self.link().is_none() {
            self.end_chain(each);
        }
    }

    fn entries(&mut self, link: &Link, successor: Option<u64>, bytes: &[u8], each: &mut dyn FnMut(Event<'_>)) {
        let limit = successor.unwrap_or(u64::MAX);
        let mut at = HEADER_BYTES;
        while self.expected < limit {
            if let Some(entry) = format::entry(bytes, link.header.seed, at, |sequence| sequence == self.expected) {
                let size = entry_bytes(entry.body.len());
                self.begin = self.begin.max(entry.begin);
                self.report.entries += 1;
                self.report.bytes += size as u64;
                self.expected += 1;
                self.yielded = true;
                each(Event::Entry(entry.body));
                at += size;
                self.end = (link.file, at as u64);
                continue;
            }
            let offset = at.min(bytes.len()) as u64;
            let behind = behind(bytes, link.header.seed, at, self.expected, limit);
            // In the last segment, what was never flushed may be missing after a power loss, or be half written.
            let proven = successor.is_some() || behind.synced >= self.expected || link.header.boot.same(&self.boot);
            match behind.first {
                Some((place, sequence)) if proven => {
                    self.damaged(Damage { file: link.file, offset, resume: sequence }, each);
                    self.expected = sequence;
                    at = place;
                }
                _ if successor.is_some() => {
                    self.damaged(Damage { file: link.file, offset, resume: limit }, each);
                    self.expected = limit;
                }
                _ if (bytes.len() as u64) < link.header.bytes => {
                    self.damaged(Damage { file: link.file, offset: bytes.len() as u64, resume: u64::MAX }, each);
                    return;
                }
                _ => {
                    self.report.torn_entries_discarded += behind.entries;
                    self.report.torn_bytes += torn(at, bytes);
                    return;
                }
            }
        }
    }

    fn damaged(&mut self, damage: Damage, each: &mut dyn FnMut(Event<'_>)) {
        if self.damages.len() == DAMAGES_MAX {
            self.damages.pop();
        }
        self.damages.push(damage);
        self.forget(each);
    }

    fn forget(&mut self, each: &mut dyn FnMut(Event<'_>)) {
        if core::mem::take(&mut self.yielded) {
            each(Event::Reset);
        }
    }

    /// Judges the epoch that was read.
    fn end_chain(&mut self, each: &mut dyn FnMut(Event<'_>)) {
        let first = self.plan.chains[self.chain][0];
        let needed = self.damages.iter().rfind(|damage| damage.resume > self.begin).copied();
        // Where a file is cut short, the end of a checkpoint may have been behind it.
        let cut = needed.is_some_and(|damage| damage.resume == u64::MAX);
        if self.begin == 0 && !cut {
            // Never complete: the epoch before it still counts.
            let (file, offset) = needed.map_or(self.end, |damage| (damage.file, damage.offset));
            if first.header.earlier {
                self.newest.get_or_insert(Refusal::Incomplete { file, offset });
            }
            self.forget(each);
            let repaired = self.report.headers_repaired;
            let incomplete_epochs = self.report.incomplete_epochs + 1;
            self.report = Report { headers_repaired: repaired, incomplete_epochs, ..Report::default() };
            self.chain += 1;
            self.begin_chain();
        } else if let Some(damage) = needed {
            self.outcome = Some(Err(Refusal::Damaged { file: damage.file, offset: damage.offset }));
        } else if first.header.first > self.begin {
            let (file, index, first) = (first.file, first.header.index, first.header.first);
            self.outcome = Some(Err(Refusal::Missing { file, index, begin: self.begin, first }));
        } else {
            // What a segment that was free to be overwritten looks like says nothing.
            let live = self.plan.chains[self.chain].iter().map(|link| link.header.first);
            let live = live.filter(|first| *first <= self.begin).max().unwrap_or(0);
            self.report.damaged_ignored = self.damages.iter().filter(|damage| damage.resume > live).count() as u64;
            self.outcome = Some(Ok(()));
        }
    }

    /// Where the log goes on, and what was read and left out.
    pub fn finish(self) -> Result<(Tail, Report), Refusal> {
        self.outcome.unwrap_or(Ok(()))?;
        let next_file = self.plan.files.iter().map(|spare| spare.file).max().map_or(1, |last| last.saturating_add(1));
        let next_epoch = self.plan.newest_epoch() + 1;
        let chain = self.plan.chains.get(self.chain).map(Vec::as_slice).unwrap_or_default();
        let chosen = self.chosen();
        let newer = self.plan.segments.iter().filter(|(_, epoch)| chosen.is_none_or(|chosen| *epoch > chosen));
        let stale: Vec<FileId> = newer.map(|(file, _)| *file).collect();
        let others = self.plan.files.iter().filter(|spare| !stale.contains(&spare.file)).copied();
        let Some(last) = chain.last() else {
            // Nothing was ever flushed: the files are spares of a log that has not begun.
            let fresh = Tail { epoch: next_epoch, next_epoch: next_epoch + 1, next_file, ..Tail::fresh() };
            return Ok((Tail { spares: others.collect(), stale, ..fresh }, self.report));
        };
        let segment = |link: &Link| Segment {
            file: link.file,
            bytes: link.bytes,
            index: link.header.index,
            first: link.header.first,
        };
        let mut live: Vec<Segment> = chain.iter().map(segment).collect();
        let done = live.iter().skip(1).take_while(|next| next.first <= self.begin).count();
        live.drain(..done);
        let (file, offset) = self.end;
        let whole = last.bytes == last.header.bytes && last.header.boot.same(&self.boot) && file == last.file;
        let Header { shard, shards, seed, .. } = last.header;
        let torn = self.report.torn_bytes > 0;
        let resume = whole.then_some(Resume { shard, shards, seed, offset, torn });
        let spares = others.filter(|spare| live.iter().all(|used| used.file != spare.file)).collect();
        let tail = Tail {
            epoch: last.header.epoch,
            lineage: last.header.lineage,
            next_epoch,
            next_index: last.header.index + 1,
            next_sequence: self.expected,
            begin: self.begin,
            bytes: self.report.bytes,
            spares,
            stale,
            live,
            resume,
            next_file,
        };
        Ok((tail, self.report))
    }
}

/// How much of what is behind the last entry was ever written to.
fn torn(at: usize, bytes: &[u8]) -> u64 {
    let tail = bytes.get(at..).unwrap_or_default();
    tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// Looks behind an invalid place at every possible one for entries with a later sequence.
fn behind(bytes: &[u8], seed: u64, at: usize, expected: u64, limit: u64) -> Behind {
    let mut behind = Behind { first: None, entries: 0, synced: 0 };
    let mut at = at + 8;
    let mut last = expected;
    while at + ENTRY_HEADER_BYTES <= bytes.len() {
        // Entries take at least 40 bytes, so few sequences are possible and the hash is rarely computed in vain.
        let most = expected.saturating_add((bytes.len() / ENTRY_HEADER_BYTES) as u64).min(limit);
        match format::entry(bytes, seed, at, |sequence| sequence > last && sequence < most) {
            Some(entry) => {
                behind.first.get_or_insert((at, entry.sequence));
                behind.entries += 1;
                behind.synced = behind.synced.max(entry.synced);
                last = entry.sequence;
                at += entry_bytes(entry.body.len());
            }
            None => at += 8,
        }
    }
    behind
}

/// A whole recovery: `read` yields the bytes of a file. The error of a read that failed is handed through.
pub fn recover<E>(
    found: &[Found],
    boot: Boot,
    mut read: impl FnMut(FileId) -> Result<Vec<u8>, E>,
    each: &mut dyn FnMut(Event<'_>),
) -> Result<Result<(Tail, Report), Refusal>, E> {
    let plan = match plan(found) {
        Ok(plan) => plan,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let mut scan = Scan::new(plan, boot);
    while let Some(file) = scan.next() {
        let bytes = read(file)?;
        scan.segment(&bytes, each);
    }
    Ok(scan.finish())
}
