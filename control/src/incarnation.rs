//! The number of this start of control: wall clock in milliseconds, but never one that was used before on this
//! data directory, so that a clock that was set back does not make our Views old.

use std::{
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use tracing::warn;

const FILE: &str = "control.incarnation";

/// The number for this start, kept for the next one.
pub(crate) fn next(data_dir: &Path) -> u64 {
    let path = data_dir.join(FILE);
    let before = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0u64);
    let number = wall_ms().max(before.saturating_add(1));
    keep(data_dir, number);
    number
}

/// Keeps a number that is in use. A full disk does not stop us: the wall clock alone is nearly always enough.
pub(crate) fn keep(data_dir: &Path, number: u64) {
    let path = data_dir.join(FILE);
    if let Err(cause) = super::replace_file(&path, &format!("{number}\n"), 0o644) {
        warn!("cannot write {}: {cause}", path.display());
    }
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incarnations_grow_even_when_the_clock_was_set_back() {
        let dir = tempfile::tempdir().unwrap();
        let first = next(dir.path());
        let second = next(dir.path());
        assert!(second > first && first > 1_600_000_000_000);
        keep(dir.path(), u64::MAX / 2);
        assert_eq!(next(dir.path()), u64::MAX / 2 + 1);
        fs::write(dir.path().join(FILE), "nonsense").unwrap();
        assert!(next(dir.path()) >= second);
    }
}
