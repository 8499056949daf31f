//! What the data plane keeps in its directory: the start number, and the last View, so that a node serves on with
//! it when control is away. Files are replaced by rename, so a crash leaves the old one or the new one.
//! Used on the main thread and by [`crate::control`]. The executable has locked the directory before.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use contract::{hash, view::View};

const SOCKET: &str = "dataplane.sock";
const VIEW: &str = "view.bin";
const INCARNATION: &str = "incarnation";
/// First bytes of the View on disk; the digit is the version of the layout: magic, checksum, frame.
const VIEW_MAGIC: &[u8; 8] = b"RMQVIEW1";
/// A directory that cannot be used.
#[derive(Debug)]
pub(crate) struct DirError {
    path: PathBuf,
    what: &'static str,
    error: io::Error,
}

impl DirError {
    pub(crate) fn new(path: &Path, what: &'static str, error: io::Error) -> DirError {
        DirError { path: path.to_owned(), what, error }
    }
}

impl fmt::Display for DirError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.path.display(), self.what, self.error)
    }
}

/// The data directory.
pub(crate) struct DataDir {
    path: PathBuf,
}

impl DataDir {
    /// Creates the directory if it is not there.
    pub(crate) fn open(path: &Path) -> Result<DataDir, DirError> {
        let failed = |error| DirError { path: path.to_owned(), what: "cannot be created", error };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        Ok(DataDir { path: path.to_owned() })
    }

    /// Where control connects to.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// The number of this start, higher than that of every start before.
    pub(crate) fn next_incarnation(&self) -> Result<u64, DirError> {
        let path = self.path.join(INCARNATION);
        let failed = |what, error| DirError { path: path.clone(), what, error };
        let last = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse::<u64>().map_err(|error| {
                failed("does not hold a number; peers and links would take this node for an older one", invalid(error))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(failed("cannot be read", error)),
        };
        // Wall time in seconds, so that a node which lost its directory is not older than it was.
        let wall_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let next = (last + 1).max(wall_s);
        self.replace(INCARNATION, format!("{next}\n").as_bytes())
            .map_err(|error| failed("cannot be written", error))?;
        Ok(next)
    }

    /// The View that was kept last; `None` if there is none.
    pub(crate) fn view(&self) -> Result<Option<View>, DirError> {
        let path = self.path.join(VIEW);
        match fs::read(&path) {
            Ok(bytes) => match read_view(&bytes) {
                Ok(view) => Ok(Some(view)),
                Err(error) => Err(DirError { path, what: "is no View", error: invalid(error) }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DirError { path, what: "cannot be read", error }),
        }
    }

    /// Keeps `view`.
    pub(crate) fn keep(&self, view: &View) -> Result<(), DirError> {
        let kept = view.to_bytes().map_err(invalid).and_then(|frame| {
            let checksum = hash::stable(&frame).to_le_bytes();
            self.replace(VIEW, &[VIEW_MAGIC, &checksum, frame.as_slice()].concat())
        });
        kept.map_err(|error| DirError { path: self.path.join(VIEW), what: "cannot be written", error })
    }

    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        replace(&self.path, name, content)
    }
}

/// Makes a file appear whole in `directory`, in the place of an older one, and flushes it: a crash leaves one of the two.
pub(crate) fn replace(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.new"));
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(name))?;
    flush_directory(directory)
}

/// What was created, renamed or removed in a directory is only durable when the directory is.
pub(crate) fn flush_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn read_view(bytes: &[u8]) -> Result<View, String> {
    let rest = bytes.strip_prefix(VIEW_MAGIC).ok_or("it begins with other bytes")?;
    let (checksum, frame) = rest.split_first_chunk::<8>().ok_or("it is cut off")?;
    if hash::stable(frame) != u64::from_le_bytes(*checksum) {
        return Err("its checksum is wrong".to_owned());
    }
    View::from_bytes(frame).map_err(|error| error.to_string())
}

fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    use contract::view::{LimitsPage, Page, ViewNumber};

    use super::*;

    fn directory() -> (tempfile::TempDir, DataDir) {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let data = DataDir::open(&parent.path().join("a/b")).expect("it is created");
        (parent, data)
    }

    fn view(number: u64) -> View {
        View::complete(ViewNumber { incarnation: 1, number }, vec![Page::Limits(LimitsPage::default())])
    }

    #[test]
    fn every_start_has_a_higher_number() {
        let (_parent, data) = directory();
        let numbers: Vec<u64> = (0..3).filter_map(|_| data.next_incarnation().ok()).collect();
        assert!(numbers.len() == 3 && numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        assert!(numbers[0] > 1_700_000_000, "a new directory is not older than a lost one");
        fs::write(data.path.join(INCARNATION), "?").expect("a write");
        assert!(data.next_incarnation().is_err(), "a damaged number is never guessed");
    }

    #[test]
    fn the_last_view_is_found_again() {
        let (_parent, data) = directory();
        assert!(matches!(data.view(), Ok(None)));
        for number in 1..3 {
            data.keep(&view(number)).expect("it is kept");
        }
        assert_eq!(data.view().ok().flatten(), Some(view(2)));
    }

    #[test]
    fn a_damaged_view_is_named_and_not_believed() {
        let (_parent, data) = directory();
        data.keep(&view(1)).expect("it is kept");
        let path = data.path.join(VIEW);
        let whole = fs::read(&path).expect("a read");
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, damaged).expect("a write");
            assert!(data.view().is_err(), "byte {at} was changed");
        }
        fs::write(&path, &whole[..whole.len() - 1]).expect("a write");
        let error = data.view().expect_err("it is cut off").to_string();
        assert!(error.contains("view.bin is no View"), "{error}");
    }
}
