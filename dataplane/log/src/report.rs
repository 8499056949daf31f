//! What a recovery says: what it read, or why it refuses.

use core::fmt;

use crate::surface::FileId;

/// What a recovery read and left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Epoch that was recovered.
    pub epoch: u64,
    /// Segments read of it.
    pub segments: u64,
    /// Entries read of it.
    pub entries: u64,
    /// Bytes of those entries.
    pub bytes: u64,
    /// Bytes of the torn tail, up to its last byte that is not zero. More than 0 after a crash during a write.
    pub torn_bytes: u64,
    /// Valid entries in the torn tail, cut off because what was before them is missing and was never flushed.
    pub torn_entries_discarded: u64,
    /// Damaged places that nothing needs any more: a later checkpoint replaces them.
    pub damaged_ignored: u64,
    /// Headers of which one copy was damaged.
    pub headers_repaired: u64,
    /// Newer epochs without a complete checkpoint, left out.
    pub incomplete_epochs: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { epoch, segments, entries, bytes, .. } = self;
        write!(f, "{entries} entries, {bytes} bytes in {segments} segments of epoch {epoch}")?;
        for (count, what) in [
            (self.torn_bytes, "bytes of a torn tail cut off"),
            (self.torn_entries_discarded, "entries in it never flushed"),
            (self.damaged_ignored, "damaged places that are needed no more"),
            (self.headers_repaired, "headers read from their second copy"),
            (self.incomplete_epochs, "newer epochs that were never complete"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// Why a log is not used. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Bytes that were flushed are not what was written.
    Damaged {
        /// The file.
        file: FileId,
        /// Where in it.
        offset: u64,
    },
    /// A segment in front of this one is needed and not there.
    Missing {
        /// The first segment that is there.
        file: FileId,
        /// Its place in the chain.
        index: u64,
        /// Where recovery has to begin.
        begin: u64,
        /// Its first entry.
        first: u64,
    },
    /// No epoch has a complete checkpoint. The newest one ends here.
    Incomplete {
        /// The file.
        file: FileId,
        /// Where in it.
        offset: u64,
    },
    /// A newer version wrote it.
    NewerFormat {
        /// The file.
        file: FileId,
        /// Its format.
        format: u16,
        /// The newest that this executable reads.
        known: u16,
    },
    /// Two files say that they are the same segment: one is a copy.
    Twice {
        /// One.
        file: FileId,
        /// The other.
        other: FileId,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Damaged { file, offset } => write!(f, "{file:08}.log is damaged at byte {offset}"),
            Refusal::Missing { file, index, begin, first } => write!(
                f,
                "a segment is missing: {file:08}.log, number {index} of its epoch, begins with entry {first}, but entry \
                 {begin} is needed"
            ),
            Refusal::Incomplete { file, offset } => write!(
                f,
                "{file:08}.log ends at byte {offset} before its checkpoint is complete, and no earlier one is there"
            ),
            Refusal::NewerFormat { file, format, known } => write!(
                f,
                "{file:08}.log has format {format}, this version knows {known}: a newer version wrote it; its \
                 `ringmq log dump` exports it"
            ),
            Refusal::Twice { file, other } => {
                write!(f, "{file:08}.log and {other:08}.log are the same segment: one of them is a copy")
            }
        }
    }
}

impl core::error::Error for Refusal {}
