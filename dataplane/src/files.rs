//! Files that the operator names: certificates, passwords, rules. Read on ordinary threads, never on a shard.

use std::{fs::File, io::Read};

/// The bytes of a file, of which there may be at most `bytes_max`. The error does not name the file.
pub(crate) fn read(path: &str, bytes_max: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes));
    read.map_err(|error| error.to_string())?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("it has more than {bytes_max} bytes"));
    }
    Ok(bytes)
}
