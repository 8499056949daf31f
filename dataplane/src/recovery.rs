//! What the logs of an earlier process hold: read at a start, all at the same time, one segment of each in memory at once.
//! Also by `ringmq log check`. Nothing is changed here: what is refused is left as it was found.

use std::{
    fmt, fs, io,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use broker::{frame::BadFrame, journal::Image};
use log::{Boot, Event, FileId, Refusal, Report, Tail};

use crate::log_dir::{Layout, LogDir, ShardDir};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// One log, read to its end.
struct Recovered {
    image: Image,
    tail: Tail,
    report: Report,
}

/// Why a log is not used.
#[derive(Debug)]
pub(crate) enum Why {
    /// It says itself what is wrong with it.
    Refused(Refusal),
    /// It belongs to another shard or to another number of shards.
    Foreign { shard: u16, shards: u16 },
    /// A record in it is not known here.
    Record(BadFrame),
    /// Its directory is not there.
    Gone,
    /// It cannot be read.
    Unreadable(io::Error),
}

/// A log that is not used, and why.
#[derive(Debug)]
pub(crate) struct Unusable {
    pub(crate) path: PathBuf,
    pub(crate) why: Why,
}

impl Unusable {
    /// Does `ringmq log repair` help? Otherwise the disk has to be asked, or a newer version.
    pub(crate) fn damaged(&self) -> bool {
        !matches!(self.why, Why::Unreadable(_) | Why::Refused(Refusal::NewerFormat { .. }) | Why::Record(_))
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the log in {} ", self.path.display())?;
        match &self.why {
            Why::Refused(refusal) => write!(f, "is refused: {refusal}"),
            Why::Foreign { shard, shards } => write!(f, "is refused: it is that of shard {shard} of {shards}"),
            Why::Record(bad) => write!(
                f,
                "is refused: it has a record that this version does not know ({bad:?}); the version that wrote it exports \
                 it with `ringmq log dump`"
            ),
            Why::Gone => write!(f, "is refused: the directory is missing"),
            Why::Unreadable(error) => write!(f, "cannot be read: {error}"),
        }
    }
}

/// What all logs of a layout held.
pub(crate) struct Recovery {
    pub(crate) images: Vec<Image>,
    pub(crate) tails: Vec<Tail>,
    pub(crate) reports: Vec<Report>,
    pub(crate) took: Duration,
}

/// Reads all logs of a layout; the first one that is not usable is the answer.
pub(crate) fn recover(logs: &LogDir, layout: Layout, seed: u64) -> Result<Recovery, Unusable> {
    let began = Instant::now();
    let boot = boot();
    let results: Vec<_> = thread::scope(|scope| {
        let read =
            |shard| scope.spawn(move || recover_one(&logs.shard(layout, shard), shard, layout.shards, boot, seed));
        let threads: Vec<_> = (0..layout.shards).map(read).collect();
        threads.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    let mut recovery = Recovery { images: Vec::new(), tails: Vec::new(), reports: Vec::new(), took: Duration::ZERO };
    for result in results {
        // A panic has ended the process, where it matters: see `run::report_panics`.
        let Recovered { image, tail, report } = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        recovery.images.push(image);
        recovery.tails.push(tail);
        recovery.reports.push(report);
    }
    recovery.took = began.elapsed();
    Ok(recovery)
}

/// Reads one log into an image.
fn recover_one(log: &ShardDir, shard: u16, shards: u16, boot: Boot, seed: u64) -> Result<Recovered, Unusable> {
    let mut image = Image::new(seed);
    let mut bad = None;
    let (tail, report) = scan(log, shard, shards, boot, &mut |_, event| match event {
        Event::Entry(entry) => {
            if let Err(error) = image.entry(entry) {
                bad.get_or_insert(error);
            }
        }
        Event::Reset => {
            image = Image::new(seed);
            bad = None;
        }
    })?;
    match bad {
        Some(bad) => Err(Unusable { path: log.path().to_owned(), why: Why::Record(bad) }),
        None => Ok(Recovered { image, tail, report }),
    }
}

/// Reads one log; `each` is told every event with the file that it comes from.
pub(crate) fn scan(
    log: &ShardDir,
    shard: u16,
    shards: u16,
    boot: Boot,
    each: &mut dyn FnMut(FileId, Event<'_>),
) -> Result<(Tail, Report), Unusable> {
    let unusable = |why| Unusable { path: log.path().to_owned(), why };
    if !log.path().is_dir() {
        return Err(unusable(Why::Gone));
    }
    let found = log.found().map_err(|error| unusable(Why::Unreadable(error)))?;
    let plan = log::plan(&found).map_err(|refusal| unusable(Why::Refused(refusal)))?;
    if let Some((shard, shards)) = plan.layout().filter(|written| *written != (shard, shards)) {
        return Err(unusable(Why::Foreign { shard, shards }));
    }
    let mut scan = log::Scan::new(plan, boot);
    while let Some(file) = scan.next() {
        let bytes = log.read(file).map_err(|error| unusable(Why::Unreadable(error)))?;
        scan.segment(&bytes, &mut |event| each(file, event));
    }
    scan.finish().map_err(|refusal| unusable(Why::Refused(refusal)))
}

/// Which boot of the machine this is; unknown where the kernel does not say.
pub(crate) fn boot() -> Boot {
    fs::read_to_string(BOOT_ID).ok().and_then(|text| parse_boot(&text)).unwrap_or_default()
}

fn parse_boot(text: &str) -> Option<Boot> {
    let digits: String = text.trim().chars().filter(|digit| *digit != '-').collect();
    (digits.len() == 32).then_some(())?;
    u128::from_str_radix(&digits, 16).ok().map(|id| Boot(id.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_of_this_machine_is_known() {
        let boot = boot();
        assert!(boot.same(&super::boot()), "the same at each look: {boot:?}");
    }

    #[test]
    fn a_boot_id_is_sixteen_bytes_and_anything_else_is_unknown() {
        let text = "01020304-0506-0708-090a-0b0c0d0e0f10\n";
        assert_eq!(parse_boot(text), Some(Boot([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])));
        for bad in ["", "0102", "01020304-0506-0708-090a-0b0c0d0e0fxx"] {
            assert_eq!(parse_boot(bad), None, "{bad:?}");
        }
    }
}
