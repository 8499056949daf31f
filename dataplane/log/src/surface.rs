//! What can enter a log and what can leave it: settings, marks, operations and their failures, status and counters.

use crate::plant::Plant;

/// The number in the name of a segment's file.
pub type FileId = u32;

/// Which boot of the machine this is. Two equal values mean that no power was lost between; all zeros: unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Boot(pub [u8; 16]);

impl Boot {
    /// True if both are known and the same.
    pub fn same(&self, other: &Boot) -> bool {
        self == other && *self != Boot::default()
    }
}

/// How a log is kept.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Shard that it belongs to.
    pub shard: u16,
    /// Shards of the layout.
    pub shards: u16,
    /// True: durable means flushed (mode `fsync`). False: durable means written (mode `os`).
    pub sync: bool,
    /// Size of a segment; an entry that does not fit gets a larger one of its own.
    pub segment_bytes: u32,
    /// Bytes that the files may take together; 0: only the disk bounds them. At least three segments. While a checkpoint
    /// is appended it may be more, by what was accepted before and by the checkpoint, because the old state has to stay
    /// until the new one is complete.
    pub bytes_max: u64,
    /// Bytes of one write, unless a single entry is larger.
    pub write_bytes_max: u32,
    /// How long written bytes stay unflushed in the mode `os`.
    pub sync_interval_us: u64,
    /// The present boot of the machine.
    pub boot: Boot,
    /// Seed of the seeds of segments. Another one at each start of the process.
    pub seed: u64,
    /// The fault that is built in, if any; only with the feature `plant`.
    pub plant: Option<Plant>,
}

/// What a batch means for checkpoints and epochs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// Nothing.
    None,
    /// The first batch of a checkpoint.
    Begins,
    /// The last batch of a checkpoint.
    Ends,
    /// The first batch of a checkpoint in a new epoch: the answer to [`Room::Ready`].
    Resync,
}

/// One operation that the log wants, on one file. One at a time; [`crate::Log::completed`] tells how it went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op<'a> {
    /// Create the file, or empty it, **under a temporary name** (`<number>.new`): a file under its real name is always
    /// complete, so a short one is known to be damaged. What has a temporary name at a start of the process is removed.
    Create {
        /// The file.
        file: FileId,
    },
    /// Write zeros.
    Fill {
        /// The file, under its temporary name until it is published.
        file: FileId,
        /// Where.
        offset: u64,
        /// How many; at most [`crate::Log::FILL_BYTES`].
        bytes: u32,
    },
    /// Flush the file with its size, give it its real name (`<number>.log`), flush the directory.
    Publish {
        /// The file.
        file: FileId,
    },
    /// Write all of these bytes.
    Write {
        /// The file.
        file: FileId,
        /// Where.
        offset: u64,
        /// What.
        bytes: &'a [u8],
    },
    /// Flush the content of the file (`fdatasync`).
    Sync {
        /// The file.
        file: FileId,
    },
    /// Remove the file, under either name. One that is not there is no failure.
    Remove {
        /// The file.
        file: FileId,
    },
}

/// Why an operation failed. The text that the system gave stays with the one who did it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// No space, or a quota.
    NoSpace,
    /// Anything else.
    Other,
}

/// What there is room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// Enough.
    Plenty,
    /// Less than one segment, and no more can be prepared: append only what is small or makes the state smaller.
    Tight,
    /// An operation failed: nothing becomes durable, batches are dropped. Also while a new epoch has no complete
    /// checkpoint.
    Detached,
    /// Detached, and the disk works again: append the whole state, beginning with [`Mark::Resync`].
    Ready,
}

/// How the log is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Every batch up to this number is durable, in the configured mode, unless the log was detached when it came.
    pub durable: u64,
    /// True once what a recovery found is flushed, or a complete checkpoint in a new epoch replaced it. Until then, a power
    /// loss could take the end of it, so whoever relies on it waits.
    pub recovered: bool,
    /// What there is room for.
    pub room: Room,
    /// How often the log was detached. Each time, batches that were not durable are gone, also a `Resync` under way.
    pub detachments: u64,
    /// Bytes of entries since the beginning of the last complete checkpoint: what a recovery would read.
    pub since_begin_bytes: u64,
    /// Segments that a recovery would read.
    pub segments: u32,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes of batches that were appended and not yet written.
    pub pending_bytes: u64,
}

/// What the log has done since the process started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Writes of entries.
    pub commits: u64,
    /// Flushes of entries.
    pub syncs: u64,
    /// Batches written.
    pub batches: u64,
    /// Bytes written, with headers of entries and segments.
    pub bytes: u64,
    /// Most batches in one write.
    pub commit_batches_max: u64,
    /// Batches that were dropped because the log was detached, or became so.
    pub batches_dropped: u64,
    /// Checkpoints that became complete.
    pub checkpoints: u64,
    /// Segments begun.
    pub segments: u64,
    /// Files created.
    pub files_created: u64,
    /// Files removed.
    pub files_removed: u64,
    /// Operations that failed.
    pub failures: u64,
}
