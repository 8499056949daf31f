//! The files of one log: carries out what [`log::Log`] asks for. Used by the log thread only, and by `ringmq log repair`.
//! Always true: an operation that did not succeed as a whole is an error, with a text that names path and operation.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
};

use log::{Failure, FileId, Log, Op};

use crate::{data_dir::flush_directory, log_dir::ShardDir};

/// Files that stay open: the one that is written, the one that is prepared, a probe, and one to spare.
const OPEN_MAX: usize = 4;

static ZEROS: [u8; Log::FILL_BYTES as usize] = [0; Log::FILL_BYTES as usize];

/// An operation that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) what: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) error: io::Error,
}

impl Failed {
    /// What the log has to know of it.
    pub(crate) fn failure(&self) -> Failure {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match self.error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Failure::NoSpace,
            _ => Failure::Other,
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.what, self.path.display(), self.error)
    }
}

/// The files of one log.
pub(crate) struct Files {
    directory: ShardDir,
    /// Least recently used first.
    open: Vec<(FileId, File)>,
}

impl Files {
    pub(crate) fn new(directory: ShardDir) -> Files {
        Files { directory, open: Vec::with_capacity(OPEN_MAX) }
    }

    /// Carries out one operation.
    pub(crate) fn apply(&mut self, op: &Op<'_>) -> Result<(), Failed> {
        let (what, file, done) = match *op {
            Op::Create { file } => ("create", file, self.create(file)),
            Op::Fill { file, offset, bytes } => ("fill", file, self.fill(file, offset, bytes)),
            Op::Publish { file } => ("publish", file, self.publish(file)),
            Op::Write { file, offset, bytes } => {
                ("write", file, self.file(file).and_then(|file| file.write_all_at(bytes, offset)))
            }
            Op::Sync { file } => ("flush", file, self.file(file).and_then(|file| file.sync_data())),
            Op::Remove { file } => ("remove", file, self.remove(file)),
        };
        done.map_err(|error| {
            // Whatever is wrong with it, the next one who wants it opens it anew.
            self.close(file);
            Failed { what, path: self.directory.file(file), error }
        })
    }

    fn create(&mut self, file: FileId) -> io::Result<()> {
        let path = self.directory.unfinished(file);
        let created = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        self.keep(file, created);
        Ok(())
    }

    fn fill(&mut self, file: FileId, offset: u64, bytes: u32) -> io::Result<()> {
        let zeros = ZEROS.get(..bytes as usize).ok_or(io::ErrorKind::InvalidInput)?;
        self.file(file)?.write_all_at(zeros, offset)
    }

    fn publish(&mut self, file: FileId) -> io::Result<()> {
        self.file(file)?.sync_all()?;
        fs::rename(self.directory.unfinished(file), self.directory.file(file))?;
        flush_directory(self.directory.path())
    }

    fn remove(&mut self, file: FileId) -> io::Result<()> {
        self.close(file);
        for path in [self.directory.file(file), self.directory.unfinished(file)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// An open file, under its real name or the one that it has until it is complete.
    fn file(&mut self, file: FileId) -> io::Result<&File> {
        match self.open.iter().position(|(open, _)| *open == file) {
            Some(place) => self.open[place..].rotate_left(1),
            None => {
                let writable = |path| OpenOptions::new().write(true).open(path);
                let opened = match writable(self.directory.file(file)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => writable(self.directory.unfinished(file))?,
                    opened => opened?,
                };
                self.keep(file, opened);
            }
        }
        self.open.last().map(|(_, file)| file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn keep(&mut self, file: FileId, opened: File) {
        self.close(file);
        if self.open.len() >= OPEN_MAX {
            self.open.remove(0);
        }
        self.open.push((file, opened));
    }

    fn close(&mut self, file: FileId) {
        self.open.retain(|(open, _)| *open != file);
    }
}
