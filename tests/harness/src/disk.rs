//! A disk of a known size, to be filled. Called by tests of a node that runs out of space.
//!
//! Always true: it exists for the thread that made it and for what that thread starts, and nowhere else, so
//! the kernel takes it away with them, however they end.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// What fills the disk beside the node's own files.
const BALLAST: &str = "ballast";
/// Bytes of one write of ballast.
const CHUNK_BYTES: usize = 64 << 10;

/// A file system in memory of a limited size.
#[derive(Debug)]
pub struct SmallDisk {
    // Held for its removal.
    _mount_point: tempfile::TempDir,
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts a file system of `mib` MiB that only this thread and its children see. The error says what
    /// this machine does not allow.
    pub fn new(mib: u32) -> Result<Self, String> {
        // SAFETY: only the mount table (and with it root, working directory and umask of this thread) is
        // copied; descriptors stay shared with all threads, so none can dangle.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
            .map_err(|error| format!("no mount table of its own: {error}"))?;
        // Otherwise what is mounted here would appear outside too.
        run(Command::new("mount").args(["--make-rprivate", "/"]))?;
        let mount_point =
            tempfile::Builder::new().prefix("ringmq-disk-").tempdir().map_err(|error| error.to_string())?;
        let options = format!("size={mib}m,mode=700");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(mount_point.path()))?;
        Ok(Self { path: mount_point.path().to_owned(), _mount_point: mount_point })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills what is free; gives the bytes that this took.
    #[track_caller]
    pub fn fill(&self) -> u64 {
        let mut file = File::options().create(true).append(true).open(self.path.join(BALLAST)).expect("ballast opens");
        let mut length = CHUNK_BYTES;
        let mut written = 0;
        while length > 0 {
            match file.write(&vec![0xaa; length]) {
                Ok(count) => written += count as u64,
                Err(error) if error.kind() == ErrorKind::StorageFull => length /= 2,
                Err(error) => panic!("the ballast cannot be written: {error}"),
            }
        }
        written
    }

    /// Frees what [`SmallDisk::fill`] took.
    #[track_caller]
    pub fn free(&self) {
        std::fs::remove_file(self.path.join(BALLAST)).expect("the ballast can be removed");
    }

    /// Makes it read-only or writable again. The kernel refuses while a file is open for writing.
    pub fn read_only(&self, is: bool) -> Result<(), String> {
        run(Command::new("mount").args(["-o", if is { "remount,ro" } else { "remount,rw" }]).arg(&self.path))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Before its directory is removed; lazily, because a killed process may still be going.
        let _ = run(Command::new("umount").arg("-l").arg(&self.path));
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
