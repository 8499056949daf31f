//! One node per data directory: `flock` on a file that names the process that holds it. The kernel lets go when
//! that process ends, however it ends.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

/// The whole node, held by the supervisor.
pub(crate) const NODE: &str = "node.lock";
/// The control process.
pub(crate) const CONTROL: &str = "control.lock";
/// The data plane.
pub(crate) const DATAPLANE: &str = "dataplane.lock";
/// A process that was killed a moment ago may not be gone yet.
const PATIENCE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(20);

/// Held until it is dropped.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes a lock of a data directory, or says who has it.
    pub(crate) fn take(data_dir: &Path, name: &str) -> Result<Lock, String> {
        let path = data_dir.join(name);
        let failed = |cause: std::io::Error| format!("cannot lock {}: {cause}", path.display());
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let begin = Instant::now();
        while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(failed(error.into()));
            }
            if begin.elapsed() > PATIENCE {
                return Err(format!(
                    "the data directory {} is in use by another ringmq, process {}; give this node its own node.data_dir",
                    data_dir.display(),
                    holder(&mut file)
                ));
            }
            thread::sleep(RETRY);
        }
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed)?;
        Ok(Lock { _file: file })
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(32).read_to_string(&mut text));
    match (read, text.trim()) {
        (Ok(_), pid) if !pid.is_empty() => pid.to_owned(),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_the_directory_and_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path(), NODE).unwrap();
        let why = Lock::take(dir.path(), NODE).err().unwrap();
        assert!(why.contains(&dir.path().display().to_string()), "{why}");
        assert!(why.contains(&format!("process {}", std::process::id())), "{why}");
        assert!(Lock::take(dir.path(), CONTROL).is_ok(), "another part of the directory is free");
        drop(lock);
        assert!(Lock::take(dir.path(), NODE).is_ok(), "it is free again");
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let why = Lock::take(Path::new("/nonexistent/ringmq"), NODE).err().unwrap();
        assert!(why.starts_with("cannot lock /nonexistent/ringmq/node.lock: "), "{why}");
    }
}
