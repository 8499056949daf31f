//! `durability.*`: what "acknowledged" survives, and what the log may cost.

use super::{
    knob::{Kind, Preset::*, within},
    section::{choice, section},
    units::Clock,
};

section! {
    /// What survives: the log of each shard.
    Durability at "durability" {
        /// What an acknowledgement of a persistent session, a retained message or a link means: `none`: it is in memory and is lost with the process; `os`: it is written, and survives the death of the process; `fsync`: it is on the disk, and survives power loss.
        mode: Mode = "mode", Kind::Choice(Mode::WORDS), Number(1), Restart, "\"fsync\"";
        /// Size of a segment of the log. Segments are written in advance and used again.
        segment_bytes: u32 = "segment_bytes", Kind::Size(within(65_536, 1 << 30)), Number(8 << 20), Restart, "\"64MB\"";
        /// Bytes of the log of one shard; beyond them persistent messages are refused until the log was compacted. 0: only the disk bounds it.
        bytes_max: u64 = "bytes_max", Kind::Size(within(0, 1 << 46)), Number(0), Restart, "\"16GB\"";
        /// Bytes that the log of a shard grows by, at least, before it is compacted.
        compact_min_bytes: u64 = "compact_min_bytes", Kind::Size(within(65_536, 1 << 40)), Number(64 << 20), Restart, "\"1GB\"";
        /// Bytes per second that a compaction of one shard writes at most.
        compact_bytes_per_s: u64 = "compact_bytes_per_s", Kind::Size(within(65_536, 1 << 40)), Number(64 << 20), Restart, "\"16MB\"";
        /// Bytes that wait for the disk in one shard before persistent messages are refused.
        buffer_bytes_max: u32 = "buffer_bytes_max", Kind::Size(within(65_536, 1 << 30)), Number(64 << 20), Restart, "\"16MB\"";
        /// How long written bytes stay unflushed at most in the mode `os`.
        sync_interval_ms: u32 = "sync_interval", Kind::Duration(Clock::Ms, within(10, 3_600_000)), Number(1000), Restart, "\"10s\"";
    }
}

choice! {
    /// What an acknowledgement means.
    Mode {
        /// Memory.
        None = "none",
        /// Written to the operating system.
        Os = "os",
        /// Flushed to the disk.
        Fsync = "fsync",
    }
}
