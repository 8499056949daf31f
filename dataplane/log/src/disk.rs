//! A disk in memory with everything that a disk does to a log: unflushed sectors that a power loss takes or leaves one
//! by one, writes that are cut, operations that fail, a limit on its space. Pure: chance comes from seeds. Used by the
//! tests of this crate and by the simulation; here and not in a test, because both need it.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use crate::format::HEADER_BYTES;
use crate::plan::Found;
use crate::surface::{Failure, FileId, Op};

/// What a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// Contents of one unflushed sector that are remembered: a power loss may leave any of them.
const VERSIONS_MAX: usize = 4;

/// Files of one log.
#[derive(Clone, Debug, Default)]
pub struct VirtualDisk {
    files: BTreeMap<FileId, File>,
    /// Removed, but the directory was not flushed since: a power loss may bring them back.
    ghosts: BTreeMap<FileId, File>,
    /// Bytes that all files may take together; none: no limit.
    pub capacity: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct File {
    published: bool,
    /// What a reader sees.
    bytes: Vec<u8>,
    /// What a power loss leaves for certain, where `dirty` says nothing else.
    flushed: Vec<u8>,
    /// Unflushed sectors with what was written to them, oldest first.
    dirty: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl File {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
        if !self.published || bytes.is_empty() {
            return;
        }
        for sector in offset / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES {
            let from = sector * SECTOR_BYTES;
            let to = (from + SECTOR_BYTES).min(self.bytes.len());
            let versions = self.dirty.entry(sector).or_default();
            if versions.len() == VERSIONS_MAX {
                versions.remove(0);
            }
            versions.push(self.bytes[from..to].to_vec());
        }
    }

    fn flush(&mut self) {
        self.dirty.clear();
        self.flushed.clone_from(&self.bytes);
    }

    /// Some of the unflushed sectors reach the disk, in the last or an earlier state; the others do not.
    fn lose(&mut self, chance: &mut Chance) {
        for (sector, versions) in core::mem::take(&mut self.dirty) {
            let chosen = chance.below(versions.len() as u64 + 1) as usize;
            if let Some(version) = versions.get(chosen) {
                let from = sector * SECTOR_BYTES;
                if self.flushed.len() < from + version.len() {
                    self.flushed.resize(from + version.len(), 0);
                }
                self.flushed[from..from + version.len()].copy_from_slice(version);
            }
        }
        self.bytes.clone_from(&self.flushed);
    }
}

impl VirtualDisk {
    /// An empty disk without a limit.
    pub fn new() -> VirtualDisk {
        VirtualDisk::default()
    }

    /// Does what the log asks for. Fails only for want of space, or for a file that is not there.
    pub fn apply(&mut self, op: &Op<'_>) -> Result<(), Failure> {
        self.cut(op, u64::MAX)
    }

    /// Fails the operation after a part of it was done: a beginning of a write, some sectors of a flush. What was not
    /// flushed stays unflushed.
    pub fn fail(&mut self, op: &Op<'_>, failure: Failure, seed: u64) -> Result<(), Failure> {
        let mut chance = Chance(seed);
        match op {
            Op::Write { .. } | Op::Fill { .. } => self.tear(op, chance.next()),
            Op::Sync { file } => {
                if let Some(file) = self.files.get_mut(file) {
                    for sector in file.dirty.keys().copied().collect::<Vec<_>>() {
                        if chance.below(2) == 0 && file.flushed.len() == file.bytes.len() {
                            let from = sector * SECTOR_BYTES;
                            let to = (from + SECTOR_BYTES).min(file.bytes.len());
                            file.flushed[from..to].copy_from_slice(&file.bytes[from..to]);
                            file.dirty.remove(&sector);
                        }
                    }
                }
            }
            Op::Create { .. } | Op::Publish { .. } | Op::Remove { .. } => {}
        }
        Err(failure)
    }

    /// The process dies in the middle of this operation: a write is cut at any byte, anything else is done or not. Only
    /// the first sector of a file is written whole or not at all: no system copies less than a page that it was given.
    pub fn tear(&mut self, op: &Op<'_>, seed: u64) {
        let mut chance = Chance(seed);
        let kept = match op {
            Op::Write { bytes, .. } => chance.below(bytes.len() as u64 + 1),
            Op::Fill { bytes, .. } => chance.below(u64::from(*bytes) + 1),
            _ if chance.below(2) == 0 => return,
            _ => u64::MAX,
        };
        let kept = match op {
            Op::Write { offset: 0, .. } | Op::Fill { offset: 0, .. } if kept < SECTOR_BYTES as u64 => 0,
            _ => kept,
        };
        let _ = self.cut(op, kept);
    }

    fn cut(&mut self, op: &Op<'_>, kept: u64) -> Result<(), Failure> {
        match op {
            Op::Create { file } => {
                self.files.insert(*file, File::default());
            }
            Op::Fill { file, offset, bytes } => {
                let zeros = vec![0; u64::from(*bytes).min(kept) as usize];
                self.write(*file, *offset, &zeros)?;
            }
            Op::Write { file, offset, bytes } => {
                let bytes = &bytes[..(bytes.len() as u64).min(kept) as usize];
                self.write(*file, *offset, bytes)?;
            }
            Op::Publish { file } => {
                let file = self.files.get_mut(file).ok_or(Failure::Other)?;
                file.published = true;
                file.flush();
                self.ghosts.clear();
            }
            Op::Sync { file } => self.files.get_mut(file).ok_or(Failure::Other)?.flush(),
            Op::Remove { file } => {
                if let Some(removed) = self.files.remove(file)
                    && removed.published
                {
                    self.ghosts.insert(*file, removed);
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        let used = self.bytes();
        let capacity = self.capacity.unwrap_or(u64::MAX);
        let file = self.files.get_mut(&file).ok_or(Failure::Other)?;
        let grows = (offset + bytes.len() as u64).saturating_sub(file.bytes.len() as u64);
        if grows > 0 && used + grows > capacity {
            return Err(Failure::NoSpace);
        }
        file.write(offset as usize, bytes);
        Ok(())
    }

    /// The process died: what was written stays, files under temporary names are removed by the next one.
    pub fn kill(&mut self) {
        self.files.retain(|_, file| file.published);
    }

    /// The power went: of what was not flushed, any part is there.
    pub fn power_loss(&mut self, seed: u64) {
        let mut chance = Chance(seed);
        self.kill();
        for (number, ghost) in core::mem::take(&mut self.ghosts) {
            if chance.below(2) == 0 {
                self.files.entry(number).or_insert(ghost);
            }
        }
        for file in self.files.values_mut() {
            file.lose(&mut chance);
        }
    }

    /// The files as a recovery finds them.
    pub fn found(&self) -> Vec<Found> {
        let published = self.files.iter().filter(|(_, file)| file.published);
        let found = published.map(|(number, file)| {
            let mut header = [0; HEADER_BYTES];
            let bytes = file.bytes.len().min(HEADER_BYTES);
            header[..bytes].copy_from_slice(&file.bytes[..bytes]);
            Found { file: *number, bytes: file.bytes.len() as u64, header }
        });
        found.collect()
    }

    /// The bytes of a file.
    pub fn read(&self, file: FileId) -> Option<&[u8]> {
        self.files.get(&file).map(|file| file.bytes.as_slice())
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes.len() as u64).sum()
    }

    /// Damages a file: turns one bit, on the disk and for readers.
    pub fn flip(&mut self, file: FileId, offset: usize, bit: u8) {
        if let Some(file) = self.files.get_mut(&file) {
            for image in [&mut file.bytes, &mut file.flushed] {
                if let Some(byte) = image.get_mut(offset) {
                    *byte ^= 1 << (bit % 8);
                }
            }
        }
    }

    /// Damages a file: cuts it short.
    pub fn truncate(&mut self, file: FileId, bytes: usize) {
        if let Some(file) = self.files.get_mut(&file) {
            file.bytes.truncate(bytes);
            file.flushed.truncate(bytes);
            file.dirty.clear();
        }
    }

    /// Takes a file away.
    pub fn delete(&mut self, file: FileId) {
        self.files.remove(&file);
    }
}

/// Numbers from a seed (splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}
