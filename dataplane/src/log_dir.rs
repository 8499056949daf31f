//! Where logs are kept. `<data>/log/CURRENT` names the **layout** that counts: its number and its shards. The log of shard `i`
//! is the directory `<data>/log/<layout>/<i>`, its segments are the files `<8 digits>.log` there.
//! Used by the start, by log threads and by `ringmq log`.
//!
//! Always true: `CURRENT` is replaced as a whole, and only when everything that it names is on the disk; what it does not
//! name is never read, and is removed at a start.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use contract::config;
use log::{FileId, Found, HEADER_BYTES};

use crate::data_dir::{DirError, flush_directory, replace};

const LOG: &str = "log";
const CURRENT: &str = "CURRENT";
/// A file that is not complete yet has this behind its number; at a start it is of no use.
const UNFINISHED: &str = "new";
const SEGMENT: &str = "log";
/// What a repair writes, what it has written, and what it found, have these behind the number of the shard.
const FRESH: &str = "repairing";
const COMPLETE: &str = "repaired";
const DAMAGED: &str = "damaged";
/// Longest text in `CURRENT` that is looked at.
const CURRENT_BYTES_MAX: u64 = 256;
/// Numbers that are tried for the name of something that is set aside.
const ASIDE_MAX: u32 = 10_000;

/// One set of logs, written by one number of shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    pub(crate) number: u32,
    pub(crate) shards: u16,
}

/// The directory of all logs.
#[derive(Clone)]
pub(crate) struct LogDir {
    data: PathBuf,
    path: PathBuf,
}

impl LogDir {
    /// The logs in a data directory, whether there are any or not.
    pub(crate) fn of(data: &Path) -> LogDir {
        LogDir { data: data.to_owned(), path: data.join(LOG) }
    }

    /// The data directory.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// The layout that counts; none if there never was one.
    pub(crate) fn current(&self) -> Result<Option<Layout>, DirError> {
        let path = self.path.join(CURRENT);
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| file.take(CURRENT_BYTES_MAX).read_to_string(&mut text));
        match read {
            Ok(_) => match parse_current(&text) {
                Some(layout) => Ok(Some(layout)),
                None => {
                    let error = io::Error::new(io::ErrorKind::InvalidData, format!("it says {text:?}"));
                    Err(DirError::new(&path, "names no layout", error))
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => match self.any_segment() {
                Ok(None) => Ok(None),
                Ok(Some(segment)) => {
                    let error = io::Error::new(io::ErrorKind::NotFound, format!("but {} is there", segment.display()));
                    Err(DirError::new(&path, "is missing", error))
                }
                Err(error) => Err(DirError::new(&self.path, "cannot be read", error)),
            },
            Err(error) => Err(DirError::new(&path, "cannot be read", error)),
        }
    }

    /// The log of one shard.
    pub(crate) fn shard(&self, layout: Layout, shard: u16) -> ShardDir {
        ShardDir { path: self.layout(layout.number).join(shard.to_string()) }
    }

    fn layout(&self, number: u32) -> PathBuf {
        self.path.join(number.to_string())
    }

    /// Makes the directories of a new layout, with a number that was not used yet. It counts after [`LogDir::switch`].
    pub(crate) fn create(&self, shards: u16) -> Result<Layout, DirError> {
        let failed = |error| DirError::new(&self.path, "cannot be written", error);
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700).create(&self.path).map_err(failed)?;
        flush_directory(&self.data).map_err(failed)?;
        let number = self.layouts().map_err(failed)?.into_iter().max().map_or(1, |last| last.saturating_add(1));
        let layout = Layout { number, shards };
        for shard in 0..shards {
            private.create(self.shard(layout, shard).path).map_err(failed)?;
        }
        flush_directory(&self.layout(number)).and_then(|()| flush_directory(&self.path)).map_err(failed)?;
        Ok(layout)
    }

    /// From now on `layout` counts. Flushes what its logs have written, because the ones before are removed next.
    pub(crate) fn switch(&self, layout: Layout) -> Result<(), DirError> {
        let flush = || -> io::Result<()> {
            for shard in 0..layout.shards {
                let directory = self.shard(layout, shard);
                for file in directory.files()? {
                    File::open(directory.file(file))?.sync_all()?;
                }
                flush_directory(&directory.path)?;
            }
            let text = format!("layout {}\nshards {}\n", layout.number, layout.shards);
            replace(&self.path, CURRENT, text.as_bytes())
        };
        flush().map_err(|error| DirError::new(&self.path, "cannot be switched to another layout", error))
    }

    /// Removes the logs of all layouts but `current`; whatever else somebody put there stays.
    pub(crate) fn remove_others(&self, current: Option<Layout>) -> io::Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        for number in self.layouts()? {
            if current.is_none_or(|current| current.number != number) {
                remove_layout(&self.layout(number))?;
            }
        }
        flush_directory(&self.path)
    }

    /// Gives the whole directory another name, if it is there: its content is not to be used again by mistake.
    pub(crate) fn set_aside(&self) -> Result<Option<PathBuf>, DirError> {
        if !self.path.exists() {
            return Ok(None);
        }
        let aside = aside(&self.data, &format!("{LOG}.unused"));
        let renamed = fs::rename(&self.path, &aside).and_then(|()| flush_directory(&self.data));
        renamed.map_err(|error| DirError::new(&self.path, "cannot be set aside", error))?;
        Ok(Some(aside))
    }

    /// The numbers of all layouts that are there.
    fn layouts(&self) -> io::Result<Vec<u32>> {
        let mut layouts: Vec<u32> = numbered(&self.path)?;
        layouts.sort_unstable();
        Ok(layouts)
    }

    /// The layout that is there if it is the only one, with all its shards.
    pub(crate) fn only_layout(&self) -> io::Result<Option<Layout>> {
        let &[number] = self.layouts()?.as_slice() else { return Ok(None) };
        let mut shards = numbered::<u16>(&self.layout(number))?;
        shards.sort_unstable();
        let complete = !shards.is_empty() && shards.iter().copied().eq(0..shards.len() as u16);
        Ok(complete.then_some(Layout { number, shards: shards.len() as u16 }))
    }

    fn any_segment(&self) -> io::Result<Option<PathBuf>> {
        if !self.path.exists() {
            return Ok(None);
        }
        for number in self.layouts()? {
            for shard in numbered::<u16>(&self.layout(number))? {
                let directory = self.shard(Layout { number, shards: 0 }, shard);
                if let Some(file) = directory.files()?.first() {
                    return Ok(Some(directory.file(*file)));
                }
            }
        }
        Ok(None)
    }
}

fn parse_current(text: &str) -> Option<Layout> {
    let (layout, shards) = text.trim_end().split_once('\n')?;
    let number = layout.strip_prefix("layout ")?.parse().ok()?;
    let shards: u16 = shards.strip_prefix("shards ")?.parse().ok()?;
    (1..=config::SHARDS_MAX).contains(&u64::from(shards)).then_some(Layout { number, shards })
}

/// The log of one shard.
#[derive(Clone)]
pub(crate) struct ShardDir {
    path: PathBuf,
}

impl ShardDir {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a segment is.
    pub(crate) fn file(&self, file: FileId) -> PathBuf {
        self.path.join(format!("{file:08}.{SEGMENT}"))
    }

    /// Where a segment is until it is complete.
    pub(crate) fn unfinished(&self, file: FileId) -> PathBuf {
        self.path.join(format!("{file:08}.{UNFINISHED}"))
    }

    /// Every segment, by number.
    pub(crate) fn files(&self) -> io::Result<Vec<FileId>> {
        self.with_ending(SEGMENT)
    }

    fn with_ending(&self, ending: &str) -> io::Result<Vec<FileId>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(ending)?.strip_suffix('.'));
            let number = number.filter(|digits| digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit()));
            files.extend(number.and_then(|digits| digits.parse::<FileId>().ok()));
        }
        files.sort_unstable();
        Ok(files)
    }

    /// Every segment with its size and its first bytes.
    pub(crate) fn found(&self) -> io::Result<Vec<Found>> {
        let look = |file: FileId| {
            let segment = File::open(self.file(file))?;
            let bytes = segment.metadata()?.len();
            let mut start = Vec::with_capacity(HEADER_BYTES);
            segment.take(HEADER_BYTES as u64).read_to_end(&mut start)?;
            let mut header = [0; HEADER_BYTES];
            header[..start.len()].copy_from_slice(&start);
            Ok(Found { file, bytes, header })
        };
        self.files()?.into_iter().map(look).collect()
    }

    /// A whole segment.
    pub(crate) fn read(&self, file: FileId) -> io::Result<Vec<u8>> {
        let path = self.file(file);
        fs::read(&path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// Removes what a process that is gone was preparing.
    pub(crate) fn clean(&self) -> io::Result<()> {
        self.with_ending(UNFINISHED)?.into_iter().try_for_each(|file| fs::remove_file(self.unfinished(file)))
    }

    /// An empty directory beside this one, for a log that is to take its place.
    pub(crate) fn begin_exchange(&self) -> io::Result<ShardDir> {
        for ending in [COMPLETE, FRESH] {
            let left = ShardDir { path: self.beside(ending)? };
            if left.path.exists() {
                left.remove()?;
            }
        }
        let fresh = ShardDir { path: self.beside(FRESH)? };
        DirBuilder::new().recursive(true).mode(0o700).create(&fresh.path)?;
        Ok(fresh)
    }

    /// Puts a complete log into the place of this one, which gets another name; that is returned.
    pub(crate) fn exchange(&self, fresh: &ShardDir) -> io::Result<Option<PathBuf>> {
        let (complete, damaged) = (self.beside(COMPLETE)?, self.beside(DAMAGED)?);
        let layout = damaged.parent().unwrap_or(&damaged);
        flush_directory(&fresh.path)?;
        fs::rename(&fresh.path, &complete)?;
        flush_directory(layout)?;
        let aside = aside(layout, &damaged.file_name().unwrap_or_default().to_string_lossy());
        let was_there = self.path.exists();
        if was_there {
            fs::rename(&self.path, &aside)?;
        }
        fs::rename(&complete, &self.path)?;
        flush_directory(layout)?;
        Ok(was_there.then_some(aside))
    }

    /// Finishes an exchange that was interrupted after this log got its other name.
    pub(crate) fn finish_exchange(&self) -> io::Result<()> {
        let complete = self.beside(COMPLETE)?;
        if !self.path.exists() && complete.exists() {
            fs::rename(&complete, &self.path)?;
            complete.parent().map_or(Ok(()), flush_directory)?;
        }
        Ok(())
    }

    fn beside(&self, ending: &str) -> io::Result<PathBuf> {
        match (self.path.parent(), self.path.file_name()) {
            (Some(layout), Some(name)) => Ok(layout.join(format!("{}.{ending}", name.to_string_lossy()))),
            _ => Err(io::Error::other("the log has no directory above it")),
        }
    }

    fn remove(&self) -> io::Result<()> {
        self.clean()?;
        self.files()?.into_iter().try_for_each(|file| fs::remove_file(self.file(file)))?;
        remove_if_empty(&self.path)
    }
}

fn remove_layout(layout: &Path) -> io::Result<()> {
    for shard in numbered::<u16>(layout)? {
        ShardDir { path: layout.join(shard.to_string()) }.remove()?;
    }
    remove_if_empty(layout)
}

/// What somebody put into a directory of ours, as a repair does, is not ours to remove.
fn remove_if_empty(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
        _ => Ok(()),
    }
}

/// The directories in `directory` whose name is a number.
fn numbered<N: std::str::FromStr>(directory: &Path) -> io::Result<Vec<N>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            numbers.extend(entry.file_name().to_str().and_then(|name| name.parse::<N>().ok()));
        }
    }
    Ok(numbers)
}

/// The first name of the form `<name>-<n>` that is free.
fn aside(directory: &Path, name: &str) -> PathBuf {
    let mut names = (1..ASIDE_MAX).map(|n| directory.join(format!("{name}-{n}")));
    names.find(|path| !path.exists()).unwrap_or_else(|| directory.join(format!("{name}-{ASIDE_MAX}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs() -> (tempfile::TempDir, LogDir) {
        let data = tempfile::tempdir().expect("a temporary directory");
        let logs = LogDir::of(data.path());
        (data, logs)
    }

    fn say(error: DirError) -> String {
        error.to_string()
    }

    #[test]
    fn a_layout_counts_when_current_names_it() {
        let (_data, logs) = logs();
        assert_eq!(logs.current().map_err(say), Ok(None));
        let first = logs.create(2).expect("it is created");
        assert_eq!(logs.current().map_err(say), Ok(None), "nobody named it yet");
        logs.switch(first).expect("it counts");
        assert_eq!(logs.current().map_err(say), Ok(Some(Layout { number: 1, shards: 2 })));
        let second = logs.create(3).expect("it is created");
        assert_eq!((second.number, logs.current().map_err(say)), (2, Ok(Some(first))));
        logs.switch(second).expect("it counts");
        logs.remove_others(Some(second)).expect("the first one goes");
        assert!(!logs.layout(1).exists() && logs.shard(second, 2).path().is_dir());
    }

    #[test]
    fn damaged_files_that_a_repair_kept_outlive_their_layout() {
        let (_data, logs) = logs();
        let first = logs.create(1).expect("it is created");
        fs::write(logs.shard(first, 0).file(7), "x").expect("a file");
        let log = logs.shard(first, 0);
        let fresh = log.begin_exchange().expect("an empty directory");
        let kept = log.exchange(&fresh).expect("they are moved").expect("there were some");
        assert!(kept.ends_with("1/0.damaged-1"), "{}", kept.display());
        assert_eq!(logs.shard(first, 0).files().expect("an empty log"), [0; 0]);
        logs.remove_others(None).expect("the layout goes");
        assert!(kept.join("00000007.log").is_file() && !logs.shard(first, 0).path().exists());
        assert_eq!(logs.create(1).expect("it is created").number, 2, "the old number is not used again");
    }

    #[test]
    fn a_current_that_is_damaged_or_lost_is_never_guessed() {
        let (_data, logs) = logs();
        let layout = logs.create(1).expect("it is created");
        for text in ["", "layout 1\n", "layout 1\nshards 0\n", "layout x\nshards 1\n", "layout 1\nshards 1\nmore\n"] {
            fs::write(logs.path.join(CURRENT), text).expect("a write");
            assert!(logs.current().map_err(say).is_err_and(|said| said.contains("names no layout")), "{text:?}");
        }
        fs::remove_file(logs.path.join(CURRENT)).expect("it was there");
        fs::write(logs.shard(layout, 0).file(1), "x").expect("a file");
        let said = logs.current().map_err(say).expect_err("there is a log");
        assert!(said.contains("CURRENT is missing") && said.contains("00000001.log"), "{said}");
    }

    #[test]
    fn files_with_other_names_are_not_ours_and_unfinished_ones_go() {
        let (_data, logs) = logs();
        let layout = logs.create(1).expect("it is created");
        let log = logs.shard(layout, 0);
        for name in ["00000002.log", "00000001.log", "00000003.new", "1.log", "0000000x.log", "notes"] {
            fs::write(log.path().join(name), "short").expect("a file");
        }
        log.clean().expect("they are removed");
        assert!(!log.unfinished(3).exists() && log.path().join("notes").exists());
        let found = log.found().expect("they are read");
        assert_eq!(found.iter().map(|found| (found.file, found.bytes)).collect::<Vec<_>>(), [(1, 5), (2, 5)]);
        assert_eq!((&found[0].header[..5], found[0].header[5]), (&b"short"[..], 0));
    }

    #[test]
    fn what_is_set_aside_gets_a_name_that_is_free() {
        let (data, logs) = logs();
        assert!(logs.set_aside().map_err(say).is_ok_and(|none| none.is_none()));
        for n in 1..3 {
            logs.create(1).expect("it is created");
            assert_eq!(logs.set_aside().map_err(say), Ok(Some(data.path().join(format!("log.unused-{n}")))));
        }
    }
}
