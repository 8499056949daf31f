//! `ringmq log check`, `dump` and `repair`: what an operator asks and does when no node runs on the data directory; the
//! executable has taken its locks. Checks and dumps change nothing. A repair writes a new log beside a damaged one, and
//! exchanges them when it is complete; the damaged files stay.

use std::{
    collections::hash_map::RandomState,
    fs,
    hash::{BuildHasher, Hasher},
    io::{self, Write},
    path::{Path, PathBuf},
};

use broker::{frame::BadFrame, journal::record};
use log::{Boot, Event, FileId, Log, Mark, Salvaged, Settings, Tail};
use serde_json::{Map, Value};

use crate::{
    log_dir::{Layout, LogDir, ShardDir},
    log_files::Files,
    record_json,
    recovery::{self, Unusable, Why},
};

/// What became of it, as an exit status says it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// 0: a node starts on these logs, and nothing that was acknowledged is missing.
    Fine,
    /// 1: at least one log is damaged.
    Damaged,
    /// 2: something cannot be read or written.
    Unreadable,
}

/// Size of the segments that a repair writes.
const SEGMENT_BYTES: u32 = 8 << 20;
const WRITE_BYTES_MAX: u32 = 4 << 20;

/// The layout that counts, or the answer if there is none.
fn current(data: &Path, out: &mut dyn Write) -> io::Result<Result<(LogDir, Layout), Outcome>> {
    let logs = LogDir::of(data);
    match logs.current() {
        Ok(Some(layout)) => Ok(Ok((logs, layout))),
        Ok(None) => {
            writeln!(out, "there is no log in {}", data.display())?;
            Ok(Err(Outcome::Fine))
        }
        Err(error) => {
            writeln!(out, "{error}")?;
            Ok(Err(Outcome::Damaged))
        }
    }
}

/// Reads all logs of the layout that counts, and says how they are.
pub fn check(data: &Path, out: &mut dyn Write) -> io::Result<Outcome> {
    let (logs, layout) = match current(data, out)? {
        Ok(found) => found,
        Err(outcome) => return Ok(outcome),
    };
    writeln!(out, "layout {} of {} shards in {}", layout.number, layout.shards, data.display())?;
    let boot = recovery::boot();
    let mut worst = Outcome::Fine;
    for shard in 0..layout.shards {
        let log = logs.shard(layout, shard);
        let outcome = check_one(&log, shard, layout.shards, boot, out)?;
        worst = worst.max(outcome);
    }
    if worst == Outcome::Damaged {
        writeln!(out, "`ringmq log repair --data-dir {}` saves what it can", data.display())?;
    }
    Ok(worst)
}

fn check_one(log: &ShardDir, shard: u16, shards: u16, boot: Boot, out: &mut dyn Write) -> io::Result<Outcome> {
    match read(log, shard, shards, boot) {
        Ok(whole) => {
            let files = log.files()?;
            let bytes = files.iter().map(|file| Ok(fs::metadata(log.file(*file))?.len())).sum::<io::Result<u64>>()?;
            let count = files.len();
            let Whole { tail, report, .. } = whole;
            let (segments, begin) = (tail.live.len(), tail.begin);
            writeln!(
                out,
                "shard {shard}: ok, begins with entry {begin} in {segments} live segments: {report}; {count} files of \
                 {bytes} bytes"
            )?;
            Ok(Outcome::Fine)
        }
        Err(unusable) => {
            writeln!(out, "shard {shard}: {unusable}")?;
            Ok(outcome_of(&unusable))
        }
    }
}

fn outcome_of(unusable: &Unusable) -> Outcome {
    if let Why::Unreadable(_) = unusable.why { Outcome::Unreadable } else { Outcome::Damaged }
}

/// A log that a node can start on.
struct Whole {
    tail: Tail,
    report: log::Report,
    /// How often what was read so far was of no use any more.
    resets: u64,
    /// Entries since then.
    entries: u64,
}

fn read(log: &ShardDir, shard: u16, shards: u16, boot: Boot) -> Result<Whole, Unusable> {
    let (mut resets, mut entries, mut bad) = (0, 0, None);
    let (tail, report) = recovery::scan(log, shard, shards, boot, &mut |_, event| match event {
        Event::Entry(entry) => {
            entries += 1;
            if let Err(error) = each_record(entry, &mut |_| Ok(())) {
                bad.get_or_insert(error);
            }
        }
        Event::Reset => (resets, entries, bad) = (resets + 1, 0, None),
    })?;
    match bad {
        Some(Unread::Bad(bad)) => Err(Unusable { path: log.path().to_owned(), why: Why::Record(bad) }),
        Some(Unread::Failed(error)) => Err(Unusable { path: log.path().to_owned(), why: Why::Unreadable(error) }),
        None => Ok(Whole { tail, report, resets, entries }),
    }
}

/// Why the records of an entry were not all told.
enum Unread {
    Bad(BadFrame),
    Failed(io::Error),
}

fn each_record(mut entry: &[u8], each: &mut dyn FnMut(&record::Record<'_>) -> io::Result<()>) -> Result<(), Unread> {
    while !entry.is_empty() {
        let (record, rest) = record::read(entry).map_err(Unread::Bad)?;
        each(&record).map_err(Unread::Failed)?;
        entry = rest;
    }
    Ok(())
}

/// Prints every record as a line of JSON: that a node would start with, or of a damaged log every one that is valid.
pub fn dump(data: &Path, out: &mut dyn Write, complaints: &mut dyn Write) -> io::Result<Outcome> {
    let (logs, layout) = match current(data, complaints)? {
        Ok(found) => found,
        Err(outcome) => return Ok(outcome),
    };
    let boot = recovery::boot();
    let mut worst = Outcome::Fine;
    for shard in 0..layout.shards {
        let log = logs.shard(layout, shard);
        let outcome = match read(&log, shard, layout.shards, boot) {
            Ok(whole) => dump_whole(&log, shard, layout.shards, boot, &whole, out)?,
            Err(unusable) => {
                writeln!(complaints, "shard {shard}: {unusable}")?;
                if outcome_of(&unusable) == Outcome::Damaged {
                    dump_damaged(&log, shard, boot, out, complaints)?;
                }
                outcome_of(&unusable)
            }
        };
        worst = worst.max(outcome);
    }
    Ok(worst)
}

fn dump_whole(
    log: &ShardDir,
    shard: u16,
    shards: u16,
    boot: Boot,
    whole: &Whole,
    out: &mut dyn Write,
) -> io::Result<Outcome> {
    // The second time through: by now it is known which entries count, and what their numbers are.
    let mut skip = whole.resets;
    let mut sequence = whole.tail.next_sequence - whole.entries;
    let mut failed = None;
    let scanned = recovery::scan(log, shard, shards, boot, &mut |file, event| match event {
        Event::Reset => skip = skip.saturating_sub(1),
        Event::Entry(entry) if skip == 0 && failed.is_none() => {
            failed = print_entry(shard, file, Some(sequence), entry, out).err();
            sequence += 1;
        }
        Event::Entry(_) => {}
    });
    match (failed, scanned) {
        (Some(error), _) => Err(error),
        (None, Ok(_)) => Ok(Outcome::Fine),
        (None, Err(unusable)) => Err(io::Error::other(unusable.to_string())),
    }
}

fn dump_damaged(
    log: &ShardDir,
    shard: u16,
    boot: Boot,
    out: &mut dyn Write,
    complaints: &mut dyn Write,
) -> io::Result<()> {
    if !log.path().is_dir() {
        return Ok(());
    }
    let mut failed = None;
    let salvaged = salvage(log, boot, &mut |file, entry| {
        if failed.is_none() {
            failed = print_entry(shard, file, None, entry, out).err();
        }
    })?;
    failed.map_or(Ok(()), Err)?;
    writeln!(complaints, "shard {shard}: {}", lost(&salvaged))
}

/// Every valid entry of a damaged log, with the file that it is in.
fn salvage(log: &ShardDir, boot: Boot, each: &mut dyn FnMut(FileId, &[u8])) -> io::Result<Salvaged> {
    let reading = std::cell::Cell::new(0);
    let read = |file| {
        reading.set(file);
        log.read(file)
    };
    log::salvage(&log.found()?, boot, read, &mut |entry| each(reading.get(), entry))
}

fn print_entry(shard: u16, file: FileId, sequence: Option<u64>, entry: &[u8], out: &mut dyn Write) -> io::Result<()> {
    let print = &mut |fields: Map<String, Value>| {
        let mut line = Map::new();
        line.insert("log".to_owned(), shard.into());
        line.insert("file".to_owned(), format!("{file:08}.log").into());
        line.insert("sequence".to_owned(), sequence.into());
        line.extend(fields);
        serde_json::to_writer(&mut *out, &Value::Object(line))?;
        out.write_all(b"\n")
    };
    match each_record(entry, &mut |record| print(record_json::record(record))) {
        Ok(()) => Ok(()),
        Err(Unread::Failed(error)) => Err(error),
        Err(Unread::Bad(bad)) => {
            let mut fields = Map::new();
            fields.insert("unreadable".to_owned(), format!("{bad:?}").into());
            print(fields)
        }
    }
}

fn lost(salvaged: &Salvaged) -> String {
    let Salvaged { entries, bytes, gaps, entries_lost, files_unreadable } = salvaged;
    format!(
        "{entries} entries of {bytes} bytes are valid; {entries_lost} are known to be lost in {gaps} places, \
         {files_unreadable} files say nothing about themselves, and what was behind the last valid entry is not known"
    )
}

/// Writes every damaged log anew with what is valid in it.
pub fn repair(data: &Path, out: &mut dyn Write) -> io::Result<Outcome> {
    let logs = LogDir::of(data);
    let layout = match logs.current() {
        Ok(Some(layout)) => layout,
        Ok(None) => {
            writeln!(out, "there is no log in {}", data.display())?;
            return Ok(Outcome::Fine);
        }
        Err(error) => {
            writeln!(out, "{error}")?;
            match logs.only_layout()? {
                Some(layout) => {
                    logs.switch(layout).map_err(|error| io::Error::other(error.to_string()))?;
                    writeln!(
                        out,
                        "it names the only layout that is there again: {} of {} shards",
                        layout.number, layout.shards
                    )?;
                    layout
                }
                None => {
                    writeln!(out, "more than one layout is there, or none: only you can know which one counted")?;
                    return Ok(Outcome::Damaged);
                }
            }
        }
    };
    let boot = recovery::boot();
    let mut worst = Outcome::Fine;
    for shard in 0..layout.shards {
        let log = logs.shard(layout, shard);
        log.finish_exchange()?;
        let outcome = match read(&log, shard, layout.shards, boot) {
            Ok(_) => {
                writeln!(out, "shard {shard}: nothing to repair")?;
                Outcome::Fine
            }
            Err(unusable) if unusable.damaged() => {
                writeln!(out, "shard {shard}: {unusable}")?;
                let (salvaged, aside) = repair_one(&log, shard, layout.shards, boot)?;
                let aside =
                    aside.map_or_else(String::new, |aside| format!("; the damaged files are in {}", aside.display()));
                writeln!(out, "shard {shard}: repaired: {}{aside}", lost(&salvaged))?;
                Outcome::Fine
            }
            Err(unusable) => {
                writeln!(out, "shard {shard}: {unusable}")?;
                outcome_of(&unusable)
            }
        };
        worst = worst.max(outcome);
    }
    Ok(worst)
}

/// A new log with every valid entry of a damaged one, which is moved aside.
fn repair_one(log: &ShardDir, shard: u16, shards: u16, boot: Boot) -> io::Result<(Salvaged, Option<PathBuf>)> {
    let fresh = log.begin_exchange()?;
    let mut writer = Writer::new(&fresh, shard, shards, boot);
    let mut failed = None;
    let salvaged = match log.path().is_dir() {
        true => salvage(log, boot, &mut |_, entry| {
            if failed.is_none() {
                failed = writer.append(entry).err();
            }
        })?,
        false => Salvaged::default(),
    };
    failed.map_or(Ok(()), Err)?;
    writer.finish()?;
    Ok((salvaged, log.exchange(&fresh)?))
}

/// Drives a log without a thread.
struct Writer {
    log: Log,
    files: Files,
    batches: u64,
}

impl Writer {
    fn new(directory: &ShardDir, shard: u16, shards: u16, boot: Boot) -> Writer {
        let settings = Settings {
            shard,
            shards,
            // One flush at the end: until then nobody relies on it.
            sync: false,
            segment_bytes: SEGMENT_BYTES,
            bytes_max: 0,
            write_bytes_max: WRITE_BYTES_MAX,
            sync_interval_us: u64::MAX / 2,
            boot,
            seed: RandomState::new().build_hasher().finish(),
            plant: None,
        };
        Writer { log: Log::new(settings, Tail::fresh(), 0), files: Files::new(directory.clone()), batches: 0 }
    }

    fn append(&mut self, entry: &[u8]) -> io::Result<()> {
        self.batches += 1;
        let mut body = self.log.recycle().unwrap_or_default();
        body.extend_from_slice(entry);
        self.log.append(self.batches, body, Mark::None);
        // What is prepared for later is only worth it when something waits.
        while self.log.status().durable < self.batches {
            if !self.operate()? {
                return Err(io::Error::other("the new log takes nothing"));
            }
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.log.close();
        while self.operate()? {}
        Ok(())
    }

    fn operate(&mut self) -> io::Result<bool> {
        let Some(op) = self.log.next(0) else { return Ok(false) };
        self.files.apply(&op).map_err(|failed| io::Error::new(failed.error.kind(), failed.to_string()))?;
        self.log.completed(Ok(()), 0);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest record: the end of a session.
    fn ended(session: u64) -> Vec<u8> {
        [&[1, 36, 0, 0, 16, 0, 0, 0][..], &session.to_le_bytes()].concat()
    }

    /// Logs of two shards, with three entries each.
    fn logs() -> (tempfile::TempDir, LogDir, Layout) {
        let data = tempfile::tempdir().expect("a temporary directory");
        let logs = LogDir::of(data.path());
        let layout = logs.create(2).expect("it is created");
        logs.switch(layout).expect("it counts");
        for shard in 0..2 {
            let mut writer = Writer::new(&logs.shard(layout, shard), shard, 2, recovery::boot());
            (1..=3).for_each(|session| writer.append(&ended(session)).expect("it is written"));
            writer.finish().expect("it is flushed");
        }
        (data, logs, layout)
    }

    fn said(task: impl FnOnce(&mut Vec<u8>) -> io::Result<Outcome>) -> (Outcome, String) {
        let mut out = Vec::new();
        let outcome = task(&mut out).expect("nothing fails");
        (outcome, String::from_utf8(out).expect("text"))
    }

    fn dumped(data: &Path) -> (Outcome, Vec<Value>, String) {
        let mut complaints = Vec::new();
        let (outcome, lines) = said(|out| dump(data, out, &mut complaints));
        let lines = lines.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
        (outcome, lines, String::from_utf8_lossy(&complaints).into_owned())
    }

    fn damage(path: &Path, at: usize) {
        let mut bytes = fs::read(path).expect("a segment");
        bytes[at] ^= 1;
        fs::write(path, bytes).expect("a write");
    }

    #[test]
    fn a_whole_log_is_checked_and_every_record_is_printed_once() {
        let (data, ..) = logs();
        let (outcome, text) = said(|out| check(data.path(), out));
        assert_eq!(outcome, Outcome::Fine);
        assert!(text.starts_with("layout 1 of 2 shards"), "{text}");
        assert!(text.contains("shard 1: ok, begins with entry 1 in 1 live segments: 3 entries"), "{text}");
        let (outcome, lines, complaints) = dumped(data.path());
        assert_eq!((outcome, lines.len(), complaints.as_str()), (Outcome::Fine, 6, ""));
        let last = serde_json::json!(
            {"log": 1, "file": "00000001.log", "sequence": 3, "record": "ended", "session": 3}
        );
        assert_eq!(lines[5], last);
    }

    #[test]
    fn a_data_directory_without_a_log_is_fine() {
        let data = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(said(|out| check(data.path(), out)).0, Outcome::Fine);
        assert_eq!(said(|out| repair(data.path(), out)).0, Outcome::Fine);
        assert_eq!(dumped(data.path()).0, Outcome::Fine);
    }

    #[test]
    fn a_damaged_log_is_named_its_valid_records_printed_and_kept_by_a_repair() {
        let (data, logs, layout) = logs();
        let segment = logs.shard(layout, 1).file(1);
        // The body of the second entry: each takes 40 bytes of header and 16 of body.
        damage(&segment, 192 + 56 + 50);
        let damaged = fs::read(&segment).expect("a segment");
        // The machine has not gone down since, so what is missing was not merely never flushed.
        let (outcome, text) = said(|out| check(data.path(), out));
        assert_eq!(outcome, Outcome::Damaged, "{text}");
        assert!(text.contains("shard 0: ok") && text.contains("00000001.log is damaged at byte 248"), "{text}");
        let (outcome, lines, complaints) = dumped(data.path());
        assert_eq!((outcome, lines.len()), (Outcome::Damaged, 5));
        assert!(complaints.contains("1 are known to be lost"), "{complaints}");
        assert_eq!(fs::read(&segment).expect("a segment"), damaged, "nobody who only looks changes it");

        let (outcome, text) = said(|out| repair(data.path(), out));
        assert_eq!(outcome, Outcome::Fine, "{text}");
        assert!(text.contains("shard 0: nothing to repair") && text.contains("1 are known to be lost"), "{text}");
        let kept = data.path().join("log/1/1.damaged-1/00000001.log");
        assert_eq!(fs::read(kept).expect("the damaged file"), damaged);
        let sessions: Vec<u64> = dumped(data.path()).1.iter().filter_map(|line| line["session"].as_u64()).collect();
        assert_eq!(sessions, [1, 2, 3, 1, 3]);
        assert_eq!(said(|out| check(data.path(), out)).0, Outcome::Fine);
    }

    #[test]
    fn a_repair_that_was_interrupted_between_its_renames_goes_on() {
        let (data, logs, layout) = logs();
        let log = logs.shard(layout, 0);
        fs::rename(log.path(), data.path().join("log/1/0.damaged-1")).expect("a rename");
        fs::create_dir(data.path().join("log/1/0.repaired")).expect("a directory");
        assert_eq!(said(|out| check(data.path(), out)).0, Outcome::Damaged, "the directory is missing");
        let (outcome, text) = said(|out| repair(data.path(), out));
        assert_eq!(outcome, Outcome::Fine, "{text}");
        assert!(log.path().is_dir() && !data.path().join("log/1/0.repaired").exists());
    }

    #[test]
    fn a_lost_current_is_written_again_when_there_is_one_layout_only() {
        let (data, logs, layout) = logs();
        let current = data.path().join("log/CURRENT");
        fs::remove_file(&current).expect("it was there");
        assert_eq!(said(|out| check(data.path(), out)).0, Outcome::Damaged);
        assert_eq!(said(|out| repair(data.path(), out)).0, Outcome::Fine);
        assert_eq!(logs.current().ok().flatten(), Some(layout));
        logs.create(3).expect("another layout");
        fs::write(&current, "?").expect("a write");
        let (outcome, text) = said(|out| repair(data.path(), out));
        assert_eq!(outcome, Outcome::Damaged);
        assert!(text.contains("more than one layout"), "{text}");
    }
}
