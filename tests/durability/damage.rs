//! Real log files with flipped bytes and cut ends: repaired with a count, or refused with file and offset. Never a
//! panic, and never a record that is silently not there.

use crate::fleet::Fleet;
use crate::{durable, keep};
use harness::raw::Raw;
use harness::wire::V5;
use harness::{Ended, LONG, Rng, SHORT, Setup, seed, segment};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Damages of one mode when nothing else is asked for.
const DAMAGES: u64 = 250;
/// One in so many damaged logs is given to a node, and repaired if it refuses.
const STARTED_EACH: u64 = 20;
/// How long the crowd lives whose log is damaged.
const LIFE: Duration = Duration::from_millis(700);
/// Growth after which a log is compacted that nothing here reaches.
const NEVER: &str = "64MB";
/// Bytes behind the last one that is not zero that may be hit too.
const MARGIN: u64 = 64;

#[test]
fn a_damaged_log_of_mode_os_is_repaired_with_a_count_or_refused() {
    run("damage-os", "os");
}

#[test]
fn a_damaged_log_of_mode_fsync_is_repaired_with_a_count_or_refused() {
    run("damage-fsync", "fsync");
}

#[track_caller]
fn run(test: &str, mode: &str) {
    let mut rng = Rng::of(test);
    let damages = seed::amount("RINGMQ_TEST_DAMAGES", DAMAGES);
    let mut seen: HashMap<&str, u64> = HashMap::new();
    // Half of the logs were compacted: in them, damage may hit what is needed no more.
    for compact in [NEVER, "64KB"] {
        let made = Made::new(mode, compact, Rng::new(rng.any()));
        for number in 0..damages / 2 {
            let damage = Damage::draw(&made, &mut rng);
            let verdict = made.with(&damage, |made| made.judge(&damage));
            *seen.entry(verdict.name()).or_default() += 1;
            // A repair is dear; what is harmless needs no proof that a node starts.
            if number % STARTED_EACH == 0 {
                made.start(&damage, &verdict);
            }
        }
    }
    eprintln!("{test}: {seen:?}");
    assert!(seen.contains_key("refused"), "no damage was found to be one: {seen:?}");
}

/// What `ringmq log check` made of a damaged log.
#[derive(Debug)]
enum Verdict {
    /// Nothing is missing.
    Harmless,
    /// Something is missing, and it said how much.
    Repaired,
    /// It names the file and where in it.
    Refused,
}

impl Verdict {
    fn name(&self) -> &'static str {
        match self {
            Verdict::Harmless => "harmless",
            Verdict::Repaired => "repaired",
            Verdict::Refused => "refused",
        }
    }
}

/// What is done to a file.
#[derive(Debug)]
struct Damage {
    file: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// One bit of the byte here is another one.
    Flip { at: u64, bit: u8 },
    /// The file ends here.
    Cut { at: u64 },
}

impl Damage {
    fn draw(made: &Made, rng: &mut Rng) -> Self {
        let file = made.files[rng.below(made.files.len() as u64) as usize].clone();
        let bytes = std::fs::read(&file).expect("a segment can be read");
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
        let at = rng.below((used + MARGIN).min(bytes.len() as u64));
        let kind = if rng.percent(75) { Kind::Flip { at, bit: rng.below(8) as u8 } } else { Kind::Cut { at } };
        Self { file, kind }
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        match self.kind {
            Kind::Flip { at, bit } => bytes[at as usize] ^= 1 << bit,
            Kind::Cut { at } => bytes.truncate(at as usize),
        }
    }
}

/// A log that a killed node left, and what is in it.
struct Made {
    directory: tempfile::TempDir,
    setup: Setup,
    files: Vec<PathBuf>,
    /// What `check` says of it.
    checked: String,
    /// Every record of it, without where it lies.
    records: Records,
    /// It was never compacted. Otherwise a cut tail may take the end of the last checkpoint away, and records from
    /// before it count again.
    is_whole: bool,
}

/// Records and how often each is there.
type Records = HashMap<String, usize>;

impl Made {
    /// A crowd lives for a while, then everything is killed.
    #[track_caller]
    fn new(mode: &str, compact: &str, rng: Rng) -> Self {
        let is_whole = compact == NEVER;
        let directory = tempfile::tempdir().expect("a temporary directory");
        let setup = durable(mode)
            .data_directory(directory.path())
            .env("RINGMQ_DURABILITY__SEGMENT_BYTES", "64KB")
            .env("RINGMQ_DURABILITY__COMPACT_MIN_BYTES", compact)
            .env("RINGMQ_LOG__LEVEL", "warn");
        let mut node = setup.start();
        let mut fleet = Fleet::new(node.mqtt(), 40, 8, rng);
        fleet.gather(LONG);
        let since = Instant::now();
        while since.elapsed() < LIFE {
            fleet.live(2);
        }
        node.kill();
        drop(node);
        let files = segment::files(directory.path());
        assert!(files.len() > 4, "too little to damage: {files:?}");
        let mut made = Self { directory, setup, files, checked: String::new(), records: Records::new(), is_whole };
        let checked = made.log("check");
        assert_eq!(checked.code, Some(0), "a log that nobody damaged: {}", checked.said);
        made.checked = checked.said;
        made.records = made.dump();
        assert!(made.records.len() > 100, "too little to lose: {} records", made.records.len());
        made
    }

    /// Runs `ringmq log`.
    #[track_caller]
    fn log(&self, command: &str) -> Ended {
        let path = self.directory.path();
        let ended = self.setup.run(path, &["log", command, "--data-dir", &path.display().to_string()], LONG);
        assert!(!ended.said.contains("panicked"), "{}", ended.said);
        ended
    }

    /// Every record that `ringmq log dump` prints.
    #[track_caller]
    fn dump(&self) -> Records {
        let ended = self.log("dump");
        assert_eq!(ended.code, Some(0), "{}", ended.said);
        let mut records = Records::new();
        for line in ended.said.lines().filter(|line| line.starts_with('{')) {
            let mut record: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let place = record.as_object_mut().expect("a line that begins with a brace is an object");
            // A repair moves records to other files.
            for key in ["file", "sequence"] {
                assert!(place.remove(key).is_some(), "a record says its {key}: {line}");
            }
            *records.entry(record.to_string()).or_default() += 1;
        }
        records
    }

    /// Does something while the log is damaged, and undoes the damage.
    fn with<T>(&self, damage: &Damage, work: impl FnOnce(&Self) -> T) -> T {
        let clean = std::fs::read(&damage.file).expect("a segment can be read");
        let mut bytes = clean.clone();
        damage.apply(&mut bytes);
        std::fs::write(&damage.file, &bytes).expect("a segment can be written");
        let result = work(self);
        let unchanged = std::fs::read(&damage.file).is_ok_and(|now| now == bytes);
        assert!(unchanged, "{damage:?}: looking at a log changed it");
        std::fs::write(&damage.file, clean).expect("a segment can be written");
        result
    }

    /// Checks a damaged log: whatever is not there any more must have been said.
    #[track_caller]
    fn judge(&self, damage: &Damage) -> Verdict {
        let checked = self.log("check");
        match checked.code {
            Some(0) => {}
            Some(1) => {
                assert!(self.is_named(&checked.said), "{damage:?}: refused without file and place: {}", checked.said);
                return Verdict::Refused;
            }
            code => panic!("{damage:?}: exit code {code:?} is not documented: {}", checked.said),
        }
        let records = self.dump();
        self.has_no_ghost(damage, &records);
        if records == self.records {
            return Verdict::Harmless;
        }
        let lost = missing(&self.records, &records);
        assert!(
            checked.said != self.checked && !counts(&checked.said, &self.checked).is_empty(),
            "{damage:?}: {lost} records are silently not there; check says\n{}\nand of the whole log\n{}",
            checked.said,
            self.checked
        );
        Verdict::Repaired
    }

    /// Every record is one that was written.
    #[track_caller]
    fn has_no_ghost(&self, damage: &Damage, records: &Records) {
        let is_new = |record: &String, times: usize| self.records.get(record).is_none_or(|had| *had < times);
        let ghost = records.iter().find(|(record, times)| is_new(record, **times));
        assert!(!self.is_whole || ghost.is_none(), "{damage:?}: a record that was never written: {ghost:?}");
    }

    /// A refusal names a file of the log, and where in it.
    fn is_named(&self, said: &str) -> bool {
        let name = |file: &PathBuf| file.file_name().is_some_and(|name| said.contains(&*name.to_string_lossy()));
        self.files.iter().any(name) && said.contains(|letter: char| letter.is_ascii_digit())
    }

    /// Gives a copy of the damaged log to a node; one that is refused must start once it is repaired.
    #[track_caller]
    fn start(&self, damage: &Damage, verdict: &Verdict) {
        let copy = tempfile::tempdir().expect("a temporary directory");
        self.with(damage, |made| copy_tree(made.directory.path(), copy.path()));
        let setup = self.setup.clone().data_directory(copy.path());
        if matches!(verdict, Verdict::Refused) {
            let ended = setup.refused(SHORT);
            assert_ne!(ended.code, Some(0), "{damage:?}");
            assert!(!ended.said.contains("panicked"), "{damage:?}: {}", ended.said);
            assert!(self.is_named(&ended.said), "{damage:?}: refused without file and place: {}", ended.said);
            assert!(ended.said.contains("ringmq log repair"), "{damage:?}: no way out: {}", ended.said);
            let copy = Self { directory: copy, setup: setup.clone(), ..self.parts() };
            let repaired = copy.log("repair");
            assert_eq!(repaired.code, Some(0), "{damage:?}: {}", repaired.said);
            assert_eq!(copy.log("check").code, Some(0), "{damage:?}: repaired and still damaged");
            self.is_salvaged(damage, &copy.dump(), &repaired.said);
            serves(&setup, damage);
            return;
        }
        serves(&setup, damage);
    }

    /// What a repair keeps: nothing new, and almost everything; what is not there was counted.
    #[track_caller]
    fn is_salvaged(&self, damage: &Damage, records: &Records, said: &str) {
        self.has_no_ghost(damage, records);
        let lost = missing(&self.records, records);
        let all: usize = self.records.values().sum();
        assert!(lost == 0 || said.contains(|letter: char| ('1'..='9').contains(&letter)), "{damage:?}: {said}");
        // A flipped bit damages one commit; a cut file, one of many.
        assert!(lost < all, "{damage:?}: all {all} records are lost: {said}");
    }

    fn parts(&self) -> Self {
        Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
            setup: self.setup.clone(),
            files: self.files.clone(),
            checked: self.checked.clone(),
            records: self.records.clone(),
            is_whole: self.is_whole,
        }
    }
}

/// A node starts over this data and serves.
#[track_caller]
fn serves(setup: &Setup, damage: &Damage) {
    let node = setup.start();
    Raw::connect(node.mqtt(), &keep(V5, "sub-0")).send(&harness::wire::pingreq());
    assert!(!node.output().contains("panicked"), "{damage:?}: a panic in the node");
}

fn missing(had: &Records, have: &Records) -> usize {
    had.iter().map(|(record, times)| times.saturating_sub(have.get(record).copied().unwrap_or(0))).sum()
}

/// Numbers that one text has and the other has not.
fn counts<'a>(text: &'a str, other: &str) -> Vec<&'a str> {
    let numbers = |text: &'a str| {
        text.split(|letter: char| !letter.is_ascii_digit()).filter(|part| !part.is_empty()).collect::<Vec<_>>()
    };
    let known: Vec<&str> = other.split(|letter: char| !letter.is_ascii_digit()).collect();
    numbers(text).into_iter().filter(|number| !known.contains(number)).collect()
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory can be made");
    for entry in std::fs::read_dir(from).expect("a directory can be read").flatten() {
        let target = to.join(entry.file_name());
        let kind = entry.file_type().expect("a file has a type");
        if kind.is_dir() {
            copy_tree(&entry.path(), &target);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), target).expect("a file can be copied");
        }
    }
}
