//! Faults built in on purpose, so that the tests can prove that their oracle finds them. They act only with the cargo
//! feature `plant`, and even then none is active unless [`crate::Settings::plant`] names it.

/// One planted fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// With `sync`, a batch is durable as soon as it is written.
    DurableBeforeSync,
    /// A batch is durable as soon as its write begins.
    DurableBeforeWrite,
    /// Segments are used again when the checkpoint that replaces them was written, not when it was flushed.
    FreedBeforeSync,
    /// What a recovery found is relied upon without flushing it.
    RecoveredUnsynced,
    /// A segment that is used again keeps its seed.
    SeedKept,
    /// The new epoch counts before its checkpoint is complete.
    AttachedEarly,
}

impl Plant {
    /// Every planted fault, by name.
    pub const ALL: &'static [(&'static str, Plant)] = &[
        ("durable_before_sync", Plant::DurableBeforeSync),
        ("durable_before_write", Plant::DurableBeforeWrite),
        ("freed_before_sync", Plant::FreedBeforeSync),
        ("recovered_unsynced", Plant::RecoveredUnsynced),
        ("seed_kept", Plant::SeedKept),
        ("attached_early", Plant::AttachedEarly),
    ];
}
