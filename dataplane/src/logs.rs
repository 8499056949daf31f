//! The logs of all shards, from the start of the process to its end: which layout counts, what it held and who takes it
//! over, the log threads, and the switch to another layout when the number of shards has changed.
//!
//! Always true: the layout that counts holds everything that was acknowledged. Another one is written beside it, counts
//! only when it holds everything, too, and only then is the old one removed; so a crash at any moment leaves one of the two.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    io,
    path::Path,
    sync::{Arc, mpsc},
    time::Instant,
};

use broker::journal::{self, Dealt, Image};
use contract::config::{Config, Durability, Mode};
use log::{Settings, Tail};

use crate::{
    events,
    log_dir::{Layout, LogDir},
    log_thread,
    port::Port,
    recovery::{self, Recovery},
    shard::Clock,
};

/// Most bytes of one write.
const WRITE_BYTES_MAX: u32 = 4 << 20;

/// Why the process does not start with the logs that are there.
#[derive(Debug)]
pub(crate) enum Refused {
    /// An operator has to decide.
    Unusable(String),
    /// Something did not work.
    Failed(String),
}

impl Refused {
    fn failed(error: impl ToString) -> Refused {
        Refused::Failed(error.to_string())
    }
}

/// What the logs held, and where they go on.
pub(crate) struct Logs {
    directory: LogDir,
    layout: Layout,
    /// The shards write a new layout, which does not count yet.
    moved: bool,
    tails: Vec<Tail>,
    dealt: Vec<Dealt>,
    durability: Durability,
}

/// Finds out what there is, and reads it. `None`: nothing is kept. `seed` is that of the tables in memory.
pub(crate) fn prepare(config: &Config, shards: u16, seed: u64) -> Result<Option<Logs>, Refused> {
    let directory = LogDir::of(Path::new(&config.node.data_dir));
    let durability = config.durability.clone();
    if durability.mode == Mode::None {
        if let Some(aside) = directory.set_aside().map_err(Refused::failed)? {
            let aside = aside.display();
            tracing::warn!(%aside, "durability.mode is none: the log that was there is not used, and was set aside");
        }
        return Ok(None);
    }
    let current = directory.current().map_err(|error| Refused::Unusable(error.to_string()))?;
    if let Err(error) = directory.remove_others(current) {
        tracing::warn!(%error, "what is left of another layout of the log could not be removed");
    }
    let Some(layout) = current else {
        let layout = directory.create(shards).map_err(Refused::failed)?;
        directory.switch(layout).map_err(Refused::failed)?;
        let dealt = journal::deal(Vec::new(), shards);
        let tails = (0..shards).map(|_| Tail::fresh()).collect();
        return Ok(Some(Logs { directory, layout, moved: false, tails, dealt, durability }));
    };
    let recovery = recovery::recover(&directory, layout, seed).map_err(|unusable| {
        let command = if unusable.damaged() { "; `ringmq log repair --data-dir D` saves what it can" } else { "" };
        let command = command.replace(" D`", &format!(" {}`", directory.data().display()));
        Refused::Unusable(format!("{unusable}{command}"))
    })?;
    tell(&recovery, layout);
    let Recovery { images, tails, .. } = recovery;
    let dealt = journal::deal(images, shards);
    if layout.shards == shards {
        for shard in 0..shards {
            let log = directory.shard(layout, shard);
            if let Err(error) = log.clean() {
                tracing::warn!(shard, %error, "a file that was never finished could not be removed");
            }
        }
        return Ok(Some(Logs { directory, layout, moved: false, tails, dealt, durability }));
    }
    let moved = directory.create(shards).map_err(Refused::failed)?;
    tracing::info!(before = layout.shards, now = shards, "the number of shards changed: the log is written anew");
    let tails = (0..shards).map(|_| Tail::fresh()).collect();
    Ok(Some(Logs { directory, layout: moved, moved: true, tails, dealt, durability }))
}

/// One line about all that was found.
fn tell(recovery: &Recovery, layout: Layout) {
    let of_images = |count: fn(&Image) -> usize| recovery.images.iter().map(count).sum::<usize>();
    let of_reports = |count: fn(&log::Report) -> u64| recovery.reports.iter().map(count).sum::<u64>();
    tracing::info!(
        layout = layout.number,
        sessions = of_images(Image::sessions),
        queued = of_images(Image::queued),
        retained = of_images(Image::retained),
        entries = of_reports(|report| report.entries),
        bytes = of_reports(|report| report.bytes),
        torn_bytes = of_reports(|report| report.torn_bytes),
        discarded_entries = of_reports(|report| report.torn_entries_discarded),
        damaged_ignored = of_reports(|report| report.damaged_ignored),
        ms = recovery.took.as_millis() as u64,
        "the log was recovered"
    );
}

/// Logs whose threads run.
pub(crate) struct Running {
    directory: LogDir,
    layout: Layout,
    moved: bool,
    ports: Arc<[Arc<Port>]>,
    ended: mpsc::Receiver<()>,
}

impl Logs {
    /// What each shard takes over, in their order.
    pub(crate) fn take_dealt(&mut self) -> Vec<Dealt> {
        std::mem::take(&mut self.dealt)
    }

    /// Starts one thread per shard. Each calls `recovered` once, when what was found is on the disk.
    pub(crate) fn start(
        self,
        ports: &Arc<[Arc<Port>]>,
        clock: Clock,
        events: &events::Log,
        recovered: impl FnOnce() + Clone + Send + 'static,
    ) -> io::Result<Running> {
        let Logs { directory, layout, moved, tails, durability, .. } = self;
        let (alive, ended) = mpsc::channel();
        for ((shard, port), tail) in (0..).zip(ports.iter()).zip(tails) {
            let parts = log_thread::Parts {
                shard,
                settings: settings(&durability, layout, shard),
                tail,
                port: port.clone(),
                clock,
                events: events.of_shard(shard),
                alive: alive.clone(),
            };
            log_thread::start(parts, directory.shard(layout, shard), recovered.clone())?;
        }
        Ok(Running { directory, layout, moved, ports: ports.clone(), ended })
    }
}

fn settings(durability: &Durability, layout: Layout, shard: u16) -> Settings {
    Settings {
        shard,
        shards: layout.shards,
        sync: durability.mode == Mode::Fsync,
        segment_bytes: durability.segment_bytes,
        bytes_max: durability.bytes_max,
        write_bytes_max: WRITE_BYTES_MAX,
        sync_interval_us: u64::from(durability.sync_interval_ms) * 1000,
        boot: recovery::boot(),
        // Another one for each log and each process.
        seed: RandomState::new().build_hasher().finish(),
        plant: None,
    }
}

impl Running {
    /// Every shard has taken over its part, and has it in its log: if that is a new layout, it counts from now on.
    pub(crate) fn taken_over(&mut self) -> Result<(), Refused> {
        if !std::mem::take(&mut self.moved) {
            return Ok(());
        }
        self.directory.switch(self.layout).map_err(Refused::failed)?;
        if let Err(error) = self.directory.remove_others(Some(self.layout)) {
            tracing::warn!(%error, "the former layout of the log could not be removed; the next start tries it again");
        }
        Ok(())
    }

    /// All shards have ended: what they handed over is written and flushed, but not longer than until `deadline`.
    pub(crate) fn finish(self, deadline: Instant) {
        self.ports.iter().for_each(|port| port.log.close());
        let patience = deadline.saturating_duration_since(Instant::now());
        if self.ended.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("the log is still being written; stopping without its last flush");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use broker::journal::JournalBatch;
    use log::Mark;

    use super::*;
    use crate::{log_port::Handover, log_tools};

    const BOUND: Duration = Duration::from_secs(60);

    fn config(data: &Path, mode: Mode) -> Config {
        let mut config = Config::default();
        config.node.data_dir = data.display().to_string();
        config.durability.mode = mode;
        config.durability.segment_bytes = 64 << 10;
        config
    }

    fn prepared(data: &Path, shards: u16) -> Logs {
        let prepared = prepare(&config(data, Mode::Os), shards, 1);
        prepared.unwrap_or_else(|refused| panic!("{refused:?}")).expect("something is kept")
    }

    /// A process that starts on these logs, writes a record per shard, and is gone. `switched`: it comes as far as that.
    fn live(data: &Path, shards: u16, switched: bool) {
        let ports: Arc<[Arc<Port>]> = (0..shards).map(|_| Arc::new(Port::new().expect("an eventfd"))).collect();
        let (events, _) = events::Log::start().expect("a thread");
        let logs = prepared(data, shards);
        let mut running = logs.start(&ports, Clock::start(), &events, || {}).expect("threads");
        for port in ports.iter() {
            // The end of a session that nobody knows: the smallest record that there is.
            let bytes = [&[1, 36, 0, 0, 16, 0, 0, 0][..], &7_u64.to_le_bytes()].concat();
            Handover::default().offer(&port.log, Some(JournalBatch { number: 1, bytes, mark: Mark::None }));
        }
        let end = Instant::now() + BOUND;
        while !ports.iter().all(|port| port.log.gauges().is_some_and(|(status, _)| status.durable == 1)) {
            assert!(Instant::now() < end, "the records are written");
            std::thread::yield_now();
        }
        if switched {
            running.taken_over().expect("the layout counts");
        }
        running.finish(end);
    }

    fn layouts(data: &Path) -> Vec<String> {
        let names = fs::read_dir(data.join("log")).expect("a directory").flatten();
        let mut names: Vec<String> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn logs_are_found_again_by_as_many_shards() {
        let data = tempfile::tempdir().expect("a temporary directory");
        for start in 0..3 {
            let logs = prepared(data.path(), 2);
            assert_eq!((logs.layout, logs.moved), (Layout { number: 1, shards: 2 }, false));
            assert_eq!(logs.tails.iter().map(|tail| tail.next_sequence).collect::<Vec<_>>(), [1 + start; 2]);
            live(data.path(), 2, true);
        }
        assert_eq!(layouts(data.path()), ["1", "CURRENT"]);
    }

    #[test]
    fn another_number_of_shards_begins_a_layout_that_counts_when_it_is_complete() {
        let data = tempfile::tempdir().expect("a temporary directory");
        live(data.path(), 2, true);
        // Crashed before the new layout was complete, twice.
        for _ in 0..2 {
            live(data.path(), 3, false);
            assert_eq!(layouts(data.path()), ["1", "2", "CURRENT"]);
            assert_eq!(LogDir::of(data.path()).current().ok().flatten(), Some(Layout { number: 1, shards: 2 }));
        }
        assert!(!prepared(data.path(), 2).moved, "the former number of shards finds everything where it was");
        assert_eq!(layouts(data.path()), ["1", "CURRENT"], "what was never complete is gone");
        live(data.path(), 3, true);
        assert_eq!(layouts(data.path()), ["2", "CURRENT"]);
        let logs = prepared(data.path(), 3);
        assert_eq!((logs.layout, logs.moved), (Layout { number: 2, shards: 3 }, false));
        let dealt = prepared(data.path(), 1).take_dealt();
        assert!(dealt.len() == 1 && dealt[0].moved());
    }

    #[test]
    fn without_durability_a_log_is_set_aside_and_not_used_later() {
        let data = tempfile::tempdir().expect("a temporary directory");
        live(data.path(), 1, true);
        let none = prepare(&config(data.path(), Mode::None), 1, 1).unwrap_or_else(|refused| panic!("{refused:?}"));
        assert!(none.is_none());
        assert!(data.path().join("log.unused-1/CURRENT").is_file());
        assert_eq!(prepared(data.path(), 1).tails[0].next_sequence, 1, "a new log");
    }

    #[test]
    fn a_damaged_log_is_refused_with_its_file_and_place_and_the_way_out() {
        let data = tempfile::tempdir().expect("a temporary directory");
        (0..3).for_each(|_| live(data.path(), 2, true));
        let segment = data.path().join("log/1/1/00000001.log");
        let mut bytes = fs::read(&segment).expect("a segment");
        bytes[240] ^= 1;
        fs::write(&segment, bytes).expect("a write");
        let refused = prepare(&config(data.path(), Mode::Os), 2, 1).err().expect("it is refused");
        let Refused::Unusable(line) = refused else { panic!("{refused:?}") };
        let directory = data.path().display();
        for words in [
            format!("{directory}/log/1/1 is refused"),
            "00000001.log is damaged at byte 192".to_owned(),
            format!("`ringmq log repair --data-dir {directory}`"),
        ] {
            assert!(line.contains(&words), "{line}");
        }
        assert!(matches!(prepare(&config(data.path(), Mode::Os), 1, 1), Err(Refused::Unusable(_))), "in any layout");
        let mut said = Vec::new();
        let outcome = log_tools::repair(data.path(), &mut said).expect("it can be written");
        assert_eq!(outcome, log_tools::Outcome::Fine, "{}", String::from_utf8_lossy(&said));
        prepared(data.path(), 2);
    }
}
