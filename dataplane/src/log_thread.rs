//! The log thread of one shard: takes the batches that the shard recorded, lets [`log::Log`] say what has to be written and
//! flushed, does it, and tells the shard how far the log has come. While a flush runs the next batches gather: all of
//! them are written and flushed together afterwards.
//!
//! Always true: an operation that fails never ends the thread, and the shard hears of it; what is told as durable was
//! written, and flushed in the mode `fsync`.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use contract::report::LogState;
use log::{Log, Op, Room, Settings, Status, Tail};

use crate::{
    events::Events,
    log_dir::ShardDir,
    log_files::{Failed, Files},
    port::Port,
    shard::Clock,
};

/// The same failure again is told to the operator after so long.
const FAILURE_AGAIN_US: u64 = 60_000_000;

/// What a log thread is made of.
pub(crate) struct Parts {
    pub(crate) shard: u16,
    pub(crate) settings: Settings,
    pub(crate) tail: Tail,
    pub(crate) port: Arc<Port>,
    pub(crate) clock: Clock,
    pub(crate) events: Events,
    /// Held until the end: whoever has the other end knows when all threads have ended.
    pub(crate) alive: mpsc::Sender<()>,
}

/// Starts a log thread on the files of a directory. `recovered` is called once, when what a recovery found is on the disk.
pub(crate) fn start(parts: Parts, directory: ShardDir, recovered: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut files = Files::new(directory);
    start_on(parts, move |op| files.apply(op), recovered)
}

/// The same on whatever carries out operations.
fn start_on(
    parts: Parts,
    apply: impl FnMut(&Op<'_>) -> Result<(), Failed> + Send + 'static,
    recovered: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let name = format!("log-{}", parts.shard);
    thread::Builder::new().name(name).spawn(move || {
        // Dropped last, so that nothing of this thread is left when the end is seen.
        let alive = parts.alive.clone();
        LogThread::new(parts, apply).run(recovered);
        drop(alive);
    })?;
    Ok(())
}

struct LogThread<F> {
    log: Log,
    apply: F,
    port: Arc<Port>,
    clock: Clock,
    complaints: Complaints,
    told: Option<Status>,
    closed: bool,
}

impl<F: FnMut(&Op<'_>) -> Result<(), Failed>> LogThread<F> {
    fn new(parts: Parts, apply: F) -> LogThread<F> {
        let Parts { settings, tail, port, clock, events, .. } = parts;
        let log = Log::new(settings, tail, clock.now().mono_us);
        let complaints = Complaints { events, last: None, repeated: 0 };
        LogThread { log, apply, port, clock, complaints, told: None, closed: false }
    }

    fn run(mut self, recovered: impl FnOnce()) {
        self.port.log.attend();
        let mut recovered = Some(recovered);
        loop {
            self.gather();
            let worked = self.operate();
            let status = self.tell();
            if status.recovered
                && let Some(recovered) = recovered.take()
            {
                recovered();
            }
            if !worked {
                if self.closed {
                    return;
                }
                let now_us = self.clock.now().mono_us;
                let patience = match self.log.deadline_us() {
                    u64::MAX => None,
                    deadline_us => Some(Duration::from_micros(deadline_us.saturating_sub(now_us))),
                };
                self.port.log.rest(patience);
            }
        }
    }

    /// Takes all batches that are there.
    fn gather(&mut self) {
        // Asked first: what was handed over before the end came is taken below.
        let closes = self.port.log.closes();
        while let Some(batch) = self.port.log.batch() {
            self.log.append(batch.number, batch.bytes, batch.mark);
        }
        if self.port.log.was_starved() {
            self.rouse_shard();
        }
        if closes && !self.closed {
            self.closed = true;
            self.log.close();
        }
    }

    /// Does what the log wants next; `false` if it wants nothing.
    fn operate(&mut self) -> bool {
        let begun_us = self.clock.now().mono_us;
        let Some(op) = self.log.next(begun_us) else { return false };
        let flushes = matches!(op, Op::Sync { .. });
        let done = (self.apply)(&op);
        let now_us = self.clock.now().mono_us;
        if flushes {
            self.port.log.flushes().took(now_us.saturating_sub(begun_us));
        }
        let result = done.map_err(|failed| {
            self.complaints.say(now_us, &failed);
            failed.failure()
        });
        self.log.completed(result, now_us);
        while let Some(buffer) = self.log.recycle() {
            self.port.log.give_back(buffer);
        }
        true
    }

    /// Tells the shard and control how the log is; wakes the shard only for what it waits for.
    fn tell(&mut self) -> Status {
        let status = self.log.status();
        self.port.log.show(status, self.log.stats());
        let matters = |status: &Status| (status.durable, status.room, status.detachments, status.recovered);
        if self.told.as_ref().map(matters) != Some(matters(&status)) {
            self.told = Some(status);
            self.port.log.tell(status);
            self.rouse_shard();
        }
        status
    }

    fn rouse_shard(&self) {
        if self.port.sleep.rouse() {
            self.port.wake();
        }
    }
}

/// One line per kind of failure, not one per attempt.
struct Complaints {
    events: Events,
    /// The last one: operation, error, when it was told.
    last: Option<(&'static str, io::ErrorKind, u64)>,
    /// How often it came again since.
    repeated: u64,
}

impl Complaints {
    fn say(&mut self, now_us: u64, failed: &Failed) {
        let (what, kind) = (failed.what, failed.error.kind());
        let again = self.last.is_some_and(|(last_what, last_kind, at_us)| {
            (last_what, last_kind) == (what, kind) && now_us.saturating_sub(at_us) < FAILURE_AGAIN_US
        });
        if again {
            self.repeated += 1;
            return;
        }
        self.last = Some((what, kind, now_us));
        self.events.log_failed(&failed.to_string(), std::mem::take(&mut self.repeated));
    }
}

/// What reports say of a log.
pub(crate) fn state(room: Room) -> LogState {
    match room {
        Room::Plenty => LogState::Ok,
        Room::Tight => LogState::Tight,
        Room::Detached | Room::Ready => LogState::Detached,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        time::Instant,
    };

    use broker::journal::JournalBatch;
    use log::{Boot, Event, Failure, Mark};

    use super::*;
    use crate::{
        events,
        log_dir::{Layout, LogDir},
        log_port::Handover,
        recovery,
    };

    const BOUND: Duration = Duration::from_secs(60);

    /// A log in a directory, its thread, and the shard's side of it.
    struct Desk {
        _data: Option<tempfile::TempDir>,
        directory: ShardDir,
        port: Arc<Port>,
        handover: Handover,
        batch: u64,
        ended: mpsc::Receiver<()>,
        /// Operations that write or flush fail.
        failing: Arc<AtomicBool>,
    }

    fn settings(sync: bool) -> Settings {
        Settings {
            shard: 0,
            shards: 1,
            sync,
            segment_bytes: 64 << 10,
            bytes_max: 0,
            write_bytes_max: 1 << 20,
            sync_interval_us: 50_000,
            boot: Boot([1; 16]),
            seed: 7,
            plant: None,
        }
    }

    impl Desk {
        fn new(sync: bool) -> Desk {
            let data = tempfile::tempdir().expect("a temporary directory");
            let logs = LogDir::of(data.path());
            let layout = logs.create(1).expect("it is created");
            let directory = logs.shard(layout, 0);
            Desk::on(directory, Some(data), sync, Tail::fresh())
        }

        fn on(directory: ShardDir, data: Option<tempfile::TempDir>, sync: bool, tail: Tail) -> Desk {
            let port = Arc::new(Port::new().expect("an eventfd"));
            let (events, _) = events::Log::start().expect("a thread");
            let (alive, ended) = mpsc::channel();
            let parts = Parts {
                shard: 0,
                settings: settings(sync),
                tail,
                port: port.clone(),
                clock: Clock::start(),
                events: events.of_shard(0),
                alive,
            };
            let failing = Arc::new(AtomicBool::new(false));
            let (fails, mut files) = (failing.clone(), Files::new(directory.clone()));
            let apply = move |op: &Op<'_>| match op {
                Op::Write { .. } | Op::Fill { .. } if fails.load(Ordering::Relaxed) => {
                    let error = io::Error::from_raw_os_error(libc::EIO);
                    Err(Failed { what: "write", path: "a disk that fails".into(), error })
                }
                _ => files.apply(op),
            };
            start_on(parts, apply, || {}).expect("a thread");
            Desk { _data: data, directory, port, handover: Handover::default(), batch: 0, ended, failing }
        }

        fn write(&mut self, text: &str, mark: Mark) {
            self.batch += 1;
            let batch = JournalBatch { number: self.batch, bytes: text.into(), mark };
            self.handover.offer(&self.port.log, Some(batch));
        }

        /// The first status that is as wanted.
        fn until(&mut self, what: &str, good: impl Fn(&Status) -> bool) -> Status {
            let end = Instant::now() + BOUND;
            loop {
                self.handover.offer(&self.port.log, None);
                if let Some(status) = self.port.log.status().filter(&good) {
                    return status;
                }
                assert!(Instant::now() < end, "{what} does not come");
                thread::yield_now();
            }
        }

        /// Stops the thread; what is found on the disk afterwards.
        fn stop(self) -> (Vec<String>, Tail) {
            self.port.log.close();
            assert_eq!(self.ended.recv_timeout(BOUND), Err(mpsc::RecvTimeoutError::Disconnected), "the thread ends");
            found(&self.directory)
        }
    }

    fn found(directory: &ShardDir) -> (Vec<String>, Tail) {
        let mut entries = Vec::new();
        // After another boot: what was not flushed is no proof of damage.
        let scanned = recovery::scan(directory, 0, 1, Boot([2; 16]), &mut |_, event| match event {
            Event::Entry(entry) => entries.push(String::from_utf8_lossy(entry).into_owned()),
            Event::Reset => entries.clear(),
        });
        let (tail, _) = scanned.unwrap_or_else(|unusable| panic!("{unusable}"));
        entries.retain(|entry| !entry.is_empty());
        (entries, tail)
    }

    #[test]
    fn what_was_told_as_durable_is_found_by_the_next_process_which_goes_on_behind_it() {
        for sync in [true, false] {
            let mut desk = Desk::new(sync);
            let words: Vec<String> = (1..=500).map(|n| format!("word {n}")).collect();
            words.iter().for_each(|word| desk.write(word, Mark::None));
            desk.until("the last batch", |status| status.durable == 500);
            // The thread lives on, as one that is killed would have.
            let (entries, tail) = found(&desk.directory);
            assert_eq!(entries, words);
            let (directory, data) = (desk.directory.clone(), desk._data.take());
            desk.stop();
            let mut desk = Desk::on(directory, data, sync, tail);
            desk.until("the flush of what was found", |status| status.recovered);
            desk.write("the last word", Mark::None);
            let (entries, _) = desk.stop();
            assert_eq!(entries.len(), 501);
            assert_eq!(entries.last().map(String::as_str), Some("the last word"), "a stop writes what was handed over");
        }
    }

    #[test]
    fn batches_that_come_while_the_disk_works_are_written_together() {
        let mut desk = Desk::new(true);
        (0..5000).for_each(|_| desk.write("x", Mark::None));
        desk.until("the last batch", |status| status.durable == 5000);
        let (_, stats) = desk.port.log.gauges().expect("there is a log");
        assert!(stats.batches == 5000 && stats.commits < 5000, "{stats:?}");
        assert!(stats.syncs <= stats.commits + stats.segments, "{stats:?}");
        desk.stop();
    }

    #[test]
    fn a_disk_that_fails_detaches_the_log_and_it_is_written_anew_when_it_works_again() {
        let mut desk = Desk::new(true);
        desk.write("before", Mark::None);
        desk.until("the first batch", |status| status.durable == 1);
        desk.failing.store(true, Ordering::Relaxed);
        desk.write("lost", Mark::None);
        let status = desk.until("the failure", |status| status.room == Room::Detached);
        assert_eq!((status.durable, status.detachments), (1, 1));
        desk.write("ignored", Mark::None);
        assert_eq!(found(&desk.directory).0, ["before"]);
        desk.failing.store(false, Ordering::Relaxed);
        desk.until("a probe that succeeds", |status| status.room == Room::Ready);
        desk.write("all there is", Mark::Resync);
        desk.write("and its end", Mark::Ends);
        let status = desk.until("the new epoch", |status| status.room == Room::Plenty);
        assert_eq!(status.durable, 5);
        let (_, stats) = desk.port.log.gauges().expect("there is a log");
        assert!(stats.failures > 0 && stats.batches_dropped > 0, "{stats:?}");
        assert_eq!(desk.stop().0, ["all there is", "and its end"]);
    }

    #[test]
    fn a_disk_without_space_is_waited_for_and_then_used() {
        let data = tempfile::tempdir().expect("a temporary directory");
        let logs = LogDir::of(data.path());
        let layout = logs.create(1).expect("it is created");
        let directory = logs.shard(layout, 0);
        // Whatever is written there finds no space. A failed file is removed, and the next one is an ordinary one.
        std::os::unix::fs::symlink("/dev/full", directory.unfinished(1)).expect("a link");
        let mut desk = Desk::on(directory, Some(data), true, Tail::fresh());
        desk.write("patience", Mark::None);
        let status = desk.until("that there is no room", |status| status.room == Room::Tight);
        assert_eq!((status.durable, status.detachments), (0, 0));
        let status = desk.until("room", |status| status.room == Room::Plenty && status.durable == 1);
        assert_eq!(status.detachments, 0, "nothing that was handed over is lost");
        assert_eq!(desk.stop().0, ["patience"]);
    }

    #[test]
    fn no_space_is_told_apart_from_other_failures() {
        let of = |errno| Failed { what: "write", path: "f".into(), error: io::Error::from_raw_os_error(errno) };
        for (errno, failure) in [
            (libc::ENOSPC, Failure::NoSpace),
            (libc::EDQUOT, Failure::NoSpace),
            (libc::EFBIG, Failure::NoSpace),
            (libc::EIO, Failure::Other),
            (libc::EROFS, Failure::Other),
        ] {
            assert_eq!(of(errno).failure(), failure, "{errno}");
        }
        assert!(of(libc::EIO).to_string().starts_with("cannot write f: Input/output error"));
    }

    #[test]
    fn a_log_of_another_shard_is_not_taken_for_this_one() {
        let mut desk = Desk::new(true);
        desk.write("x", Mark::None);
        desk.until("the batch", |status| status.durable == 1);
        let other = recovery::scan(&desk.directory, 1, 2, Boot([2; 16]), &mut |_, _| {});
        let said = other.expect_err("it is refused").to_string();
        assert!(said.contains("it is that of shard 0 of 1"), "{said}");
        let gone = LogDir::of(desk.directory.path()).shard(Layout { number: 9, shards: 1 }, 0);
        let said = recovery::scan(&gone, 0, 1, Boot([2; 16]), &mut |_, _| {}).expect_err("refused").to_string();
        assert!(said.contains("the directory is missing"), "{said}");
    }
}
