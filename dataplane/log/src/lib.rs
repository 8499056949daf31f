//! The log of one shard: batches of bytes become entries in segments, entries become durable in groups, and what was
//! durable is found again after a crash. Pure: no I/O, no clock, no randomness. It says which operation on which file
//! it wants next ([`Op`]) and is told how that went; a thread (`dataplane/src`) or a disk in memory ([`disk`]) does it.
//! What a batch contains is its owner's matter. Invariants: nothing is reported durable before the disk said so in the
//! configured mode; what is recovered is a prefix of what was appended; what may be needed is never overwritten.
//!
//! # The life of a log
//!
//! [`Log::append`] takes a batch with a number. [`Log::next`] asks for one operation at a time: it writes all batches
//! that wait in one write, flushes once for all of them (group commit), and prepares the next segment in small steps in
//! between. [`Status::durable`] is the highest batch number that an answer may rely on.
//!
//! The owner compacts by appending its whole state again, a **checkpoint**, between the marks [`Mark::Begins`] and
//! [`Mark::Ends`]. When the end is flushed, recovery begins there and earlier segments are used again.
//!
//! A write or flush that fails **detaches** the log: nothing becomes durable any more, batches are dropped, and the log
//! probes the disk. When a probe succeeds it is [`Room::Ready`], and waits for a batch marked [`Mark::Resync`]: the
//! beginning of a checkpoint in a new **epoch**, in other segments. Until that checkpoint is complete, a crash recovers
//! from the old epoch.
//!
//! # The format, version 1
//!
//! All integers are little-endian. A segment is a file: a header, then entries at multiples of 8, up to its size.
//! Its name is a number that never changes; what it contains, its header says.
//!
//! ```text
//! header, 96 bytes, twice: at 0 and at 96 (both in the first sector; where one is damaged the other one counts)
//!   0 magic "RINGMQL1"   8 u16 format=1  10 u16 shard  12 u16 shards  14 u16 1 if an earlier epoch
//!       has a checkpoint that was flushed, else 0
//!  16 u64 epoch         24 u64 index (place in the chain of the epoch, from 1)
//!  32 u64 first (sequence of the first entry; every entry before it was flushed when this was written)
//!  40 u64 begin (as in an entry, but only of a checkpoint that was flushed)
//!  48 u64 seed          56 u64 bytes of the file
//!  64 u128 boot of the machine that wrote it (0: unknown)
//!  80 u64 lineage of the epoch: two epochs with one number differ in it
//!  88 u64 check: XXH3-64, seed 0, over 0..88
//! entry, at a multiple of 8, from 192 on
//!   0 u64 check: XXH3-64 over 8..40 and the body, seed = segment seed + offset in the file * 0x9e3779b97f4a7c15
//!   8 u32 bytes of the body   12 u32 flags=0
//!  16 u64 sequence (one more than the entry before)
//!  24 u64 synced (highest sequence known to be flushed when this was written)
//!  32 u64 begin (sequence of the first entry of the last complete checkpoint; 1 in a new log; 0: none in this epoch)
//!  40 body, zeros up to the next multiple of 8
//! ```
//!
//! Every format begins with magic, number and check of this shape, so that an old executable knows a newer file.
//! An entry is valid if its check matches and its sequence is the next one; the seed of its segment and its place are
//! in the check, so what an earlier use of the file left behind is never taken for an entry. The vector is in
//! `format.rs`; ARCHITECTURE.md section 9.5 has it in print.
//!
//! # Recovery
//!
//! The segments of the newest epoch with a complete checkpoint are read in order ([`Scan`]). A segment is begun only
//! when all before it was flushed, also at a start of the process, which always begins a new one. So an invalid place in
//! any but the last segment is damage. In the last one it is the **torn tail** of a crash and cut off, unless a valid
//! entry behind it proves otherwise: by its `synced`, or because the machine has not gone down since. Damage before
//! the beginning of the last checkpoint is ignored, other damage is a [`Refusal`] with file and offset; [`salvage()`]
//! then yields every entry that is still valid.
#![no_std]

extern crate alloc;

pub mod disk;
pub mod format;
mod machine;
mod plan;
pub mod plant;
mod report;
mod salvage;
mod scan;
mod stock;
mod surface;

pub use format::{ENTRY_BYTES_MAX, FORMAT, HEADER_BYTES};
pub use machine::Log;
pub use plan::{Found, Plan, plan};
pub use report::{Refusal, Report};
pub use salvage::{Salvaged, salvage};
pub use scan::{Event, Scan, Segment, Tail, recover};
pub use surface::{Boot, Failure, FileId, Mark, Op, Room, Settings, Stats, Status};
