//! A running node: where it listens, its processes, its counters, and every way to hurt it.
//!
//! Owned by one test, or by a whole area and lent as [`Borrowed`]. Always true: its processes end with
//! the value or with the test process, and a test that fails shows the node's last lines.

use crate::bound::{LONG, SHORT, within, within_or};
use crate::launch::{Ended, Setup};
use crate::process::{self, Seen};
use crate::ready::{self, Ready};
use crate::{http, raw::Raw};
use rustix::process::Signal;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

/// Lines of a node's output that a failing test shows.
const LINES_SHOWN: usize = 60;

/// How old the figures in a report may be when it is made: shards write theirs several times a second.
const FIGURES_SETTLE: Duration = Duration::from_millis(400);

/// The processes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `ringmq start`.
    Supervisor,
    /// `ringmq control`.
    Control,
    /// `ringmq dataplane`.
    Dataplane,
}

/// The data directory of a node and, beside it, the files that its output goes to.
#[derive(Debug)]
pub struct Home {
    // Held for its removal.
    own: tempfile::TempDir,
    data: PathBuf,
}

impl Home {
    /// A new directory, or that of somebody else for the data.
    pub fn new(data: Option<&Path>) -> Self {
        let own =
            tempfile::Builder::new().prefix("ringmq-test-").tempdir().expect("the temporary directory is writable");
        // A static is never dropped, so the watching shell removes what outlives the tests.
        process::remove_at_end(own.path());
        let data = data.map_or_else(|| own.path().join("data"), Path::to_owned);
        std::fs::create_dir_all(&data).expect("the data directory can be made");
        Self { own, data }
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Files for the two streams, continued when the node starts again.
    pub fn capture(&self) -> (File, File) {
        let open = |name: &str| {
            File::options()
                .create(true)
                .append(true)
                .open(self.own.path().join(name))
                .expect("the node's directory is writable")
        };
        (open("stdout"), open("stderr"))
    }

    /// Everything on its standard output.
    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    /// Everything that the node said.
    pub fn output(&self) -> String {
        self.read("stdout") + &self.read("stderr")
    }

    fn read(&self, name: &str) -> String {
        std::fs::read(self.own.path().join(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

/// A node that was started by a test.
#[derive(Debug)]
pub struct Node {
    setup: Setup,
    home: Home,
    child: Child,
    ready: Option<Ready>,
    /// `ready` lines of earlier starts: output files are continued.
    earlier_starts: usize,
}

impl Node {
    pub(crate) fn starting(setup: Setup, home: Home, child: Child) -> Self {
        Self { setup, home, child, ready: None, earlier_starts: 0 }
    }

    pub(crate) fn foreign(setup: Setup, home: Home, child: Child, ready: Ready) -> Self {
        let mut node = Self::starting(setup, home, child);
        node.ready = Some(ready);
        node
    }

    /// Waits for `ready.json` and for the `ready` line of this start.
    #[track_caller]
    pub(crate) fn wait_ready(&mut self) {
        let since = Instant::now();
        loop {
            // A file of an earlier start, left by a kill, names another supervisor.
            let said = self.ready_lines() > self.earlier_starts;
            let ready = ready::read(self.data()).filter(|ready| ready.pids[0] == self.child.id());
            if let (true, Some(ready)) = (said, ready) {
                self.ready = Some(ready);
                return;
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the node ended ({status}) before it was ready:\n{}", self.tail());
            }
            assert!(
                since.elapsed() < LONG,
                "the node was not ready within {LONG:?} ({} there, {} `ready` lines):\n{}",
                ready::FILE,
                self.ready_lines(),
                self.tail()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn ready_lines(&self) -> usize {
        let out = self.home.stdout();
        out.lines().filter(|line| line.starts_with("ready ")).count()
    }

    fn known(&self) -> &Ready {
        self.ready.as_ref().expect("a node is handed out when it is ready")
    }

    /// Where MQTT listens.
    pub fn mqtt(&self) -> SocketAddr {
        self.known().mqtt
    }

    /// Where another listener listens: an address with a port, or a path.
    #[track_caller]
    pub fn listener(&self, kind: &str, name: &str) -> &str {
        let listeners = &self.known().listeners;
        let found = listeners.iter().find(|known| known.0 == kind && known.1 == name);
        &found.unwrap_or_else(|| panic!("no listener {kind}.{name} in {listeners:?}")).2
    }

    /// The address of another listener.
    #[track_caller]
    pub fn address(&self, kind: &str, name: &str) -> SocketAddr {
        self.listener(kind, name).parse().expect("an address with a port")
    }

    /// Where HTTP listens.
    pub fn http(&self) -> SocketAddr {
        self.known().http
    }

    /// Number of shards, as the node says.
    pub fn shards(&self) -> u16 {
        self.known().shards
    }

    /// What it was started with.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        self.home.data()
    }

    /// `ready.json` as it is now.
    pub fn ready_now(&self) -> Option<Ready> {
        ready::read(self.data())
    }

    /// Everything that the node has said until now.
    pub fn output(&self) -> String {
        self.home.output()
    }

    /// Waits until the node's output contains `text`: lines of the log are written by a thread of their own.
    #[track_caller]
    pub fn says(&self, text: &str) {
        within(SHORT, &format!("the node says {text:?}"), || self.output().contains(text).then_some(()));
    }

    /// Everything on its standard output until now.
    pub fn stdout(&self) -> String {
        self.home.stdout()
    }

    /// A connection to the MQTT listener on which no byte was sent.
    #[track_caller]
    pub fn raw(&self) -> Raw {
        Raw::open(self.mqtt())
    }

    /// The process of a role as `/proc` shows it, found by its parent and arguments, not by what the node
    /// says.
    pub fn process(&self, role: Role) -> Option<Seen> {
        let word = match role {
            Role::Supervisor => return process::look(self.child.id()),
            Role::Control => "control",
            Role::Dataplane => "dataplane",
        };
        process::descendants(self.child.id())
            .into_iter()
            .find(|seen| seen.parent == self.child.id() && seen.arguments.get(1).is_some_and(|first| first == word))
    }

    /// The process id of a role, which must run.
    #[track_caller]
    pub fn pid(&self, role: Role) -> u32 {
        within(SHORT, &format!("{role:?} is a direct child of the supervisor"), || self.process(role)).pid
    }

    /// Sends a signal to the process of a role and gives its process id.
    #[track_caller]
    pub fn signal(&self, role: Role, signal: Signal) -> u32 {
        let pid = self.pid(role);
        process::signal(pid, signal);
        pid
    }

    /// Asks for a path over HTTP.
    pub fn get(&self, path: &str) -> Result<http::Answer, String> {
        http::get(self.http(), path, SHORT)
    }

    /// A figure of the metrics page, summed over labels, that counts everything that happened before this
    /// call. Names are those of the page without `ringmq_` and `_total`.
    #[track_caller]
    pub fn figure(&self, name: &str) -> f64 {
        let since = Instant::now() + FIGURES_SETTLE;
        let mut page = String::new();
        // A page without a report has no figures at all: right after a start, or while the data plane is away.
        let figure = within_or(LONG, || {
            page = self.get("/metrics").ok().filter(|answer| answer.status == 200)?.body;
            let age_s = http::sum(&page, "report_age_seconds")?;
            http::sum(&page, name).filter(|_| age_s < Instant::now().saturating_duration_since(since).as_secs_f64())
        });
        figure.unwrap_or_else(|| panic!("no fresh `{name}` on /metrics within {LONG:?}; it says:\n{page}"))
    }

    /// A counter of the metrics page, as [`Node::figure`] reads it.
    #[track_caller]
    pub fn counter(&self, name: &str) -> u64 {
        self.figure(name) as u64
    }

    /// Waits until a counter is at least `least`, and gives it.
    #[track_caller]
    pub fn counter_reaches(&self, name: &str, least: u64) -> u64 {
        let mut value = 0;
        within_or(SHORT, || {
            value = self.counter(name);
            (value >= least).then_some(value)
        })
        .unwrap_or_else(|| {
            let page = self.get("/metrics").map(|answer| answer.body).unwrap_or_default();
            let moved = page.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
            let moved: Vec<&str> = moved.collect();
            panic!("counter {name} is {value}, not {least} within {SHORT:?}; what is not 0:\n{}", moved.join("\n"))
        })
    }

    /// Runs `ringmq ctl ...` for this node.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> Ended {
        let mut all = vec!["ctl"];
        all.extend(arguments);
        let setup = self.setup.clone().http(self.http()).mqtt(self.mqtt());
        setup.run(self.data(), &all, SHORT)
    }

    /// Sends SIGTERM to the supervisor and waits for its end.
    #[track_caller]
    pub fn terminate(&mut self, bound: Duration) -> Ended {
        process::signal(self.child.id(), Signal::TERM);
        self.wait_end(bound)
    }

    /// Waits for the end of the supervisor.
    #[track_caller]
    pub fn wait_end(&mut self, bound: Duration) -> Ended {
        let since = Instant::now();
        let status = loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                break status;
            }
            assert!(since.elapsed() < bound, "the node still runs after {bound:?}:\n{}", self.tail());
            std::thread::sleep(Duration::from_millis(5));
        };
        Ended { code: status.code(), said: self.output() }
    }

    /// Kills every process of the node at once: a machine that loses power, without the power.
    pub fn kill(&mut self) {
        process::kill_tree(self.child.id());
        let _ = self.child.wait();
        process::release(self.child.id());
    }

    /// Starts a killed or ended node again: same name, same directory, same addresses.
    #[track_caller]
    pub fn start_again(&mut self) {
        let (mqtt, http) = (self.mqtt(), self.http());
        self.earlier_starts = self.ready_lines();
        self.setup = self.setup.clone().mqtt(mqtt).http(http);
        self.child = self.setup.spawn(&self.home);
        self.wait_ready();
    }

    /// The last lines of what the node said.
    pub fn tail(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        let from = lines.len().saturating_sub(LINES_SHOWN);
        format!("--- node, last lines ---\n{}\n---", lines[from..].join("\n"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
        self.kill();
    }
}

/// A node that a whole area uses, and the lines to show when one of its tests fails.
#[derive(Debug)]
pub struct Borrowed(pub &'static Node);

impl std::ops::Deref for Borrowed {
    type Target = Node;

    fn deref(&self) -> &Node {
        self.0
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0.tail());
        }
    }
}
