//! Files of a node's log, as far as tests damage them: where they lie, and the header that says their format.
//!
//! Always true: what is known here is what ARCHITECTURE.md prints, computed apart from crate `log`.

use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of one copy of the header; a segment begins with two.
const COPY_BYTES: usize = 96;
/// Where the format stands in a copy.
const FORMAT_AT: usize = 8;
/// Where the check of a copy stands, over everything before it.
const CHECK_AT: usize = 88;

/// All segments of the logs in a data directory, in order.
pub fn files(data: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![data.join("log")];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "log") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Makes a segment say that it has a format that does not exist yet; a file that was never used stays what it is.
pub fn make_newer(bytes: &mut [u8]) {
    let used = bytes.get(..2 * COPY_BYTES).is_some_and(|head| head.iter().any(|byte| *byte != 0));
    if !used {
        return;
    }
    for copy in bytes[..2 * COPY_BYTES].chunks_exact_mut(COPY_BYTES) {
        copy[FORMAT_AT..FORMAT_AT + 2].copy_from_slice(&999_u16.to_le_bytes());
        let check = xxh3_64(&copy[..CHECK_AT]);
        copy[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
    }
}
