//! The data plane's end of the Unix socket to control: an ordinary thread that takes Views, keeps them on disk and
//! passes them to the shards, and sends a Report once a second. It reads what shards wrote on their boards
//! and leaves them notes; it never makes one wait.
//!
//! Always true: one control is listened to, the one that came last. What it does not read is not queued: at most
//! one Report waits. Without control everything goes on with the last View.

use std::{
    fs, io,
    io::{Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use broker::{bans::Bans, counters::Counters, surface::LinkStatus};
use contract::{
    report::{CounterReport, LinkReport, LogReport, Order, Report, ShardReport, Told},
    view::{Taken, View},
    wire::{self, Frames},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    addresses::Addresses,
    data_dir::DataDir,
    listeners::Shown,
    log_port::Flushes,
    log_thread, memory,
    port::{Gauge, Note, Port},
    system::System,
};

/// How often control gets a Report without asking.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Read from the socket at once.
const READ_BYTES: usize = 64 * 1024;
/// Bans of client ids in one Report, which the next one does not repeat once control has them.
const FLAPPING_MAX: usize = 256;
/// After an error of the socket itself.
const RETRY: Duration = Duration::from_millis(100);

/// What the thread knows of the process.
pub(crate) struct Scene {
    pub(crate) data_dir: DataDir,
    /// The View that was on disk, or an empty one.
    pub(crate) view: View,
    pub(crate) ports: Arc<[Arc<Port>]>,
    pub(crate) listeners: Shown,
    pub(crate) addresses: Arc<Addresses>,
    /// Of the tables of bans.
    pub(crate) seed: u64,
    /// How often the node speaks about itself on `$SYS`; zero: never.
    pub(crate) sys_every: Duration,
    /// What the memory watch goes by.
    pub(crate) memory: Arc<memory::Bounds>,
    /// Lines of the log and of traces that were lost because their writers were too slow.
    pub(crate) lost: [Arc<AtomicU64>; 2],
    /// Passwords or rules could not be read again.
    pub(crate) policy_stale: Arc<AtomicBool>,
}

impl Scene {
    /// What is counted outside of the shards.
    fn lost(&self) -> impl Iterator<Item = CounterReport> + '_ {
        LOST.iter().zip(&self.lost).map(|((name, doc), lost)| CounterReport {
            name: (*name).to_owned(),
            doc: (*doc).to_owned(),
            value: lost.load(Ordering::Relaxed),
        })
    }
}

/// Names and sentences of [`Scene::lost`].
const LOST: [(&str, &str); 2] = [
    ("log_lines_lost", "Log lines lost because standard error was too slow."),
    ("trace_lines_lost", "Lines of traces lost because their writer was too slow."),
];

/// The control process that came last.
struct Peer {
    stream: UnixStream,
    frames: Frames,
    /// A Report on its way, and how much of it was written.
    out: Vec<u8>,
    written: usize,
}

/// The thread's state.
pub(crate) struct Control {
    listener: UnixListener,
    path: PathBuf,
    scene: Scene,
    peer: Option<Peer>,
    started: Instant,
    started_ms: u64,
    reports: u64,
    /// When the next Report is due.
    report_at: Instant,
    system: System,
}

impl Control {
    /// Listens. The directory is locked, so a socket that is there was left by a data plane that is gone.
    pub(crate) fn listen(scene: Scene) -> io::Result<Control> {
        let path = scene.data_dir.socket();
        let system = System::new(scene.sys_every, Instant::now());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Control {
            listener,
            path,
            scene,
            peer: None,
            started: Instant::now(),
            started_ms: wall.as_millis() as u64,
            reports: 0,
            report_at: Instant::now(),
            system,
        })
    }

    /// Serves until `stop` is closed.
    pub(crate) fn run(mut self, stop: &UnixStream) {
        while self.wait_and_serve(stop) {}
        // The next start removes it, too.
        let _ = fs::remove_file(&self.path);
    }

    /// `false` when it is time to stop.
    fn wait_and_serve(&mut self, stop: &UnixStream) -> bool {
        let report_at = self.peer.as_ref().map(|_| self.report_at);
        let due = report_at.into_iter().chain(self.system.due()).min();
        let patience = due.map(|due| due.saturating_duration_since(Instant::now()));
        let patience =
            patience.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) });
        let mut polled = vec![PollFd::new(stop, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        if let Some(peer) = &self.peer {
            let writing = if peer.out.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            polled.push(PollFd::new(&peer.stream, PollFlags::IN | writing));
        }
        if poll(&mut polled, patience.as_ref()).is_err() {
            // EINTR, or memory is short.
            std::thread::sleep(RETRY);
            return true;
        }
        let [stopped, arrived] = [polled[0].revents(), polled[1].revents()].map(|ready| !ready.is_empty());
        let readable = polled.get(2).is_some_and(|peer| peer.revents().intersects(!PollFlags::OUT));
        drop(polled);
        if stopped {
            return false;
        }
        if arrived {
            self.welcome();
        } else if readable {
            self.read();
        }
        if self.peer.is_some() && Instant::now() >= self.report_at {
            self.report();
        }
        self.speak();
        self.write();
        true
    }

    /// What has changed on `$SYS`, for the first shard, which publishes it.
    fn speak(&mut self) {
        let mut system = std::mem::replace(&mut self.system, System::new(Duration::ZERO, Instant::now()));
        let news = system.news(Instant::now(), || self.now());
        self.system = system;
        if let Some(news) = news.filter(|news| !news.is_empty())
            && let Some(port) = self.scene.ports.first()
            && port.post(Note::System(news)).is_err()
        {
            tracing::warn!("a shard does not read its notes; what $SYS says is not up to date");
        }
    }

    fn welcome(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) => {
                if stream.set_nonblocking(true).is_err() {
                    return;
                }
                let replaces = self.peer.is_some();
                tracing::info!(replaces, "control connected");
                self.peer = Some(Peer { stream, frames: Frames::default(), out: Vec::new(), written: 0 });
                self.report_at = Instant::now();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "control could not be accepted");
                std::thread::sleep(RETRY);
            }
        }
    }

    fn read(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        let mut bytes = [0; READ_BYTES];
        match peer.stream.read(&mut bytes) {
            Ok(0) => self.forget("it closed the connection"),
            Ok(length) => {
                peer.frames.push(&bytes[..length]);
                loop {
                    let Some(peer) = &mut self.peer else { return };
                    match peer.frames.take::<Order>() {
                        Ok(Some(order)) => self.obey(order),
                        Ok(None) => return,
                        Err(error) => return self.forget(&format!("it sent {error}")),
                    }
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => self.forget(&error.to_string()),
        }
    }

    fn obey(&mut self, order: Order) {
        if let Order::View(view) = order {
            let number = view.number;
            let before = self.scene.view.clone();
            match self.scene.view.take(view) {
                Taken::Newer => self.pass_on(&before),
                Taken::Old => tracing::debug!(?number, held = ?self.scene.view.number, "an old View was ignored"),
                // The next Report names the pages that are held, and control sends the others.
                Taken::Incomplete => tracing::debug!(?number, "a View lacks pages that are not held"),
            }
        }
        self.report_at = Instant::now();
    }

    fn pass_on(&mut self, before: &View) {
        if let Some(watched) = self.scene.view.watched() {
            let every = Duration::from_millis(u64::from(watched.sys_topics.interval_ms));
            self.system.change(every, Instant::now());
        }
        if let Err(error) = self.scene.data_dir.keep(&self.scene.view) {
            // It still holds while this process lives.
            tracing::error!(%error, "the View could not be kept for the next start");
        }
        if let Some(page) = self.scene.view.limits() {
            self.scene.memory.set(&page.limits);
        }
        pass_on(&self.scene.view, Some(before), &self.scene.ports, &self.scene.addresses, self.scene.seed);
        tracing::info!(number = ?self.scene.view.number, "a new View is in force");
    }

    fn forget(&mut self, why: &str) {
        if self.peer.take().is_some() {
            tracing::info!(why, "control is gone; serving on with the last View");
        }
    }

    /// Puts a Report into the way out, unless the last one is still there.
    fn report(&mut self) {
        self.report_at = Instant::now() + REPORT_EVERY;
        let report = Told::Report(self.now());
        let Some(peer) = self.peer.as_mut().filter(|peer| peer.out.is_empty()) else { return };
        if let Err(error) = wire::encode(&report, &mut peer.out) {
            peer.out.clear();
            tracing::error!(%error, "a Report could not be sent");
        }
        self.reports += 1;
    }

    fn write(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        while peer.written < peer.out.len() {
            match peer.stream.write(&peer.out[peer.written..]) {
                Ok(0) => return self.forget("it takes no bytes"),
                Ok(bytes) => peer.written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.forget(&error.to_string()),
            }
        }
        peer.out.clear();
        peer.written = 0;
    }

    fn now(&self) -> Report {
        let Scene { view, ports, listeners, .. } = &self.scene;
        let (memory_bytes, memory_bytes_max) = resident();
        Report {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: self.started_ms,
            number: self.reports + 1,
            uptime_ms: self.started.elapsed().as_millis() as u64,
            memory_bytes,
            memory_bytes_max,
            view: view.number,
            pages: view.digests.clone(),
            shards: ports.iter().map(|port| shard_report(port)).collect(),
            listeners: listeners.reports(),
            links: link_reports(ports.iter().flat_map(|port| port.board.link_status())),
            counters: counter_reports(ports).into_iter().chain(self.scene.lost()).collect(),
            policy_stale: self.scene.policy_stale.load(Ordering::Relaxed),
            flapping: ports.iter().flat_map(|port| port.board.flapping_bans()).take(FLAPPING_MAX).collect(),
        }
    }
}

/// Hands a View to all shards, and what is made of it here, so that no shard has to.
pub(crate) fn pass_on(view: &View, before: Option<&View>, ports: &[Arc<Port>], addresses: &Addresses, seed: u64) {
    if let Some(page) = view.limits() {
        addresses.set(&page.limits);
    }
    let bans = view.bans().unwrap_or_default();
    let banned_before = before.and_then(View::bans).unwrap_or_default();
    let bans = (bans != banned_before).then(|| Arc::new(Bans::new(bans, seed)));
    let view = Arc::new(view.clone());
    for port in ports {
        let banned = bans.iter().all(|bans| port.post(Note::Bans(bans.clone())).is_ok());
        if port.post(Note::View(view.clone())).is_err() || !banned {
            tracing::error!("a shard does not read its notes; it goes on with an older View");
        }
    }
}

/// Resident memory of this process, and the most that it ever was.
fn resident() -> (u64, u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |name| memory::bytes_of(&status, name).unwrap_or(0);
    (bytes("VmRSS:"), bytes("VmHWM:"))
}

fn shard_report(port: &Port) -> ShardReport {
    let gauge = |gauge| port.board.gauge(gauge);
    ShardReport {
        turns: gauge(Gauge::Turns),
        connections: gauge(Gauge::Connections),
        sessions: gauge(Gauge::Sessions),
        subscriptions: gauge(Gauge::Subscriptions),
        shared_subscriptions: gauge(Gauge::Groups),
        retained: gauge(Gauge::Retained),
        interest: gauge(Gauge::Interest),
        obligations: gauge(Gauge::Obligations),
        staged_bytes: gauge(Gauge::StagedBytes),
        queued: gauge(Gauge::Queued),
        queued_bytes: gauge(Gauge::QueuedBytes),
        inflight: gauge(Gauge::Inflight),
        stored: gauge(Gauge::Stored),
        stored_bytes: gauge(Gauge::StoredBytes),
        busy_us: gauge(Gauge::BusyUs),
        log: port.log.gauges().map(|(status, stats)| log_report(&status, &stats, port.log.flushes())),
    }
}

fn log_report(status: &log::Status, stats: &log::Stats, flushes: &Flushes) -> LogReport {
    let (flush_counts, flush_total_us) = flushes.read();
    LogReport {
        flush_counts,
        flush_total_us,
        state: log_thread::state(status.room),
        segments: u64::from(status.segments),
        disk_bytes: status.bytes,
        since_checkpoint_bytes: status.since_begin_bytes,
        pending_bytes: status.pending_bytes,
        commits: stats.commits,
        syncs: stats.syncs,
        batches: stats.batches,
        bytes: stats.bytes,
        commit_batches_max: stats.commit_batches_max,
        batches_dropped: stats.batches_dropped,
        checkpoints: stats.checkpoints,
        detachments: status.detachments,
        failures: stats.failures,
    }
}

/// A link is as good as its worst shard.
fn rank(status: &str) -> u8 {
    match status {
        "connected" => 0,
        "connecting" => 1,
        "disconnected" => 2,
        _ => 3,
    }
}

/// One report per link: what waits is summed, what every shard knows alike is the highest.
fn link_reports(statuses: impl Iterator<Item = LinkStatus>) -> Vec<LinkReport> {
    let mut links: Vec<LinkReport> = Vec::new();
    for status in statuses {
        match links.iter_mut().find(|link| link.name == status.name) {
            Some(link) => {
                if rank(status.status) > rank(&link.status) {
                    link.status = status.status.to_owned();
                }
                link.routes = link.routes.max(status.routes);
                link.queued += status.queued;
                link.queued_bytes += status.queued_bytes;
            }
            None => links.push(LinkReport {
                name: status.name,
                status: status.status.to_owned(),
                routes: status.routes,
                queued: status.queued,
                queued_bytes: status.queued_bytes,
            }),
        }
    }
    links
}

fn counter_reports(ports: &[Arc<Port>]) -> Vec<CounterReport> {
    let mut values = vec![0; Counters::NAMES.len()];
    for port in ports {
        for (sum, value) in values.iter_mut().zip(port.board.counters()) {
            *sum += value;
        }
    }
    let named = Counters::NAMES.iter().zip(Counters::DOCS).zip(values);
    named
        .map(|((name, doc), value)| CounterReport { name: (*name).to_owned(), doc: doc.trim().to_owned(), value })
        .collect()
}

#[cfg(test)]
mod tests {
    use contract::view::{LimitsPage, Page, ViewNumber};

    use super::*;

    const BOUND: Duration = Duration::from_secs(30);

    struct Setting {
        directory: tempfile::TempDir,
        ports: Arc<[Arc<Port>]>,
        stop: Option<UnixStream>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Setting {
        fn new() -> Setting {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let data_dir = DataDir::open(directory.path()).expect("the directory");
            let ports: Arc<[Arc<Port>]> = (0..2).map(|_| Arc::new(Port::new().expect("an eventfd"))).collect();
            let scene = Scene {
                data_dir,
                view: View::default(),
                ports: ports.clone(),
                listeners: Shown::default(),
                addresses: Addresses::new(&contract::config::Limits::default()),
                seed: 1,
                sys_every: Duration::ZERO,
                memory: Arc::default(),
                lost: Default::default(),
                policy_stale: Arc::default(),
            };
            let control = Control::listen(scene).expect("the socket");
            let (stop, stopped) = UnixStream::pair().expect("a pair of sockets");
            let thread = std::thread::spawn(move || control.run(&stopped));
            Setting { directory, ports, stop: Some(stop), thread: Some(thread) }
        }

        fn connect(&self) -> Client {
            let path = self.directory.path().join("dataplane.sock");
            let stream = UnixStream::connect(path).expect("the socket listens");
            stream.set_read_timeout(Some(BOUND)).expect("an option");
            Client { stream, frames: Frames::default() }
        }
    }

    impl Drop for Setting {
        fn drop(&mut self) {
            drop(self.stop.take());
            if let Some(thread) = self.thread.take() {
                thread.join().expect("the thread ends");
            }
        }
    }

    struct Client {
        stream: UnixStream,
        frames: Frames,
    }

    impl Client {
        fn say(&mut self, order: &Order) {
            let mut bytes = Vec::new();
            wire::encode(order, &mut bytes).expect("a frame");
            self.stream.write_all(&bytes).expect("a write");
        }

        fn report(&mut self) -> Option<Report> {
            loop {
                if let Some(Told::Report(report)) = self.frames.take().expect("a frame") {
                    return Some(report);
                }
                let mut bytes = [0; 4096];
                match self.stream.read(&mut bytes) {
                    Ok(0) => return None,
                    Ok(length) => self.frames.push(&bytes[..length]),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                    Err(error) => panic!("no report came: {error}"),
                }
            }
        }

        fn report_with(&mut self, view: ViewNumber) -> Report {
            let end = Instant::now() + BOUND;
            loop {
                let report = self.report().expect("the connection stays");
                if report.view == view {
                    return report;
                }
                assert!(Instant::now() < end, "{view:?} is never reported");
            }
        }
    }

    fn view(number: u64) -> View {
        let number = ViewNumber { incarnation: 7, number };
        View::complete(number, vec![Page::Links(Vec::new()), Page::Limits(LimitsPage::default())])
    }

    #[test]
    fn a_view_reaches_every_shard_and_the_disk_and_is_reported() {
        let setting = Setting::new();
        let mut control = setting.connect();
        control.say(&Order::View(view(1)));
        let report = control.report_with(view(1).number);
        assert_eq!(report.pages, view(1).digests);
        for port in setting.ports.iter() {
            assert!(matches!(port.note(), Some(Note::View(passed)) if *passed == view(1)));
        }
        let kept = fs::read(setting.directory.path().join("view.bin")).expect("the file");
        assert!(kept.len() > 16);
    }

    #[test]
    fn an_old_view_changes_nothing_and_changed_pages_are_enough_for_a_new_one() {
        let setting = Setting::new();
        let mut control = setting.connect();
        control.say(&Order::View(view(5)));
        control.say(&Order::View(view(4)));
        control.say(&Order::View(view(6).since(&view(5).digests)));
        control.report_with(view(6).number);
        // Nobody read the older one, so only the newest is left.
        let notes: Vec<Note> = std::iter::from_fn(|| setting.ports[0].note()).collect();
        assert!(matches!(&notes[..], [Note::View(passed)] if **passed == view(6)));
    }

    #[test]
    fn the_board_is_reported_with_names_and_sums() {
        let setting = Setting::new();
        let mut values = vec![0; Counters::NAMES.len()];
        values[0] = 3;
        for port in setting.ports.iter() {
            port.board.count(values.iter().copied());
            port.board.set(Gauge::Sessions, 2);
        }
        let report = setting.connect().report().expect("a report");
        assert_eq!(report.counter(Counters::NAMES[0]), 6);
        assert_eq!((report.total(|shard| shard.sessions), report.shards.len()), (4, 2));
        assert_eq!(report.pid, std::process::id());
    }

    #[test]
    fn the_control_that_came_last_is_the_one_that_is_heard() {
        let setting = Setting::new();
        let mut first = setting.connect();
        assert!(first.report().is_some());
        let mut second = setting.connect();
        second.say(&Order::View(view(1)));
        second.report_with(view(1).number);
        let end = Instant::now() + BOUND;
        while first.report().is_some() {
            assert!(Instant::now() < end, "the first one is let go");
        }
    }

    #[test]
    fn what_is_no_frame_ends_that_connection_and_no_other() {
        let setting = Setting::new();
        let mut bad = setting.connect();
        bad.stream.write_all(&[0xff; 64]).expect("a write");
        while bad.report().is_some() {}
        assert!(setting.connect().report().is_some());
    }

    #[test]
    fn a_control_that_never_reads_holds_up_nothing() {
        let setting = Setting::new();
        let mut stuck = setting.connect();
        for _ in 0..5_000 {
            stuck.say(&Order::Report);
        }
        let mut next = setting.connect();
        next.say(&Order::View(view(1)));
        next.report_with(view(1).number);
    }

    #[test]
    fn a_link_is_as_good_as_its_worst_shard_and_its_queues_are_summed() {
        let status = |status, queued| LinkStatus {
            name: "us".to_owned(),
            status,
            routes: 4,
            announced: 0,
            queued,
            queued_bytes: 10 * queued,
        };
        let reports = link_reports([status("connected", 1), status("disconnected", 2)].into_iter());
        assert_eq!(reports.len(), 1);
        assert_eq!((reports[0].status.as_str(), reports[0].routes, reports[0].queued_bytes), ("disconnected", 4, 30));
    }
}
