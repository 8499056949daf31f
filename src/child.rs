//! One child of the supervisor: started, heard, told to stop, started again with back-off.
//! Children live in process groups of their own, so a Ctrl-C in the terminal reaches the supervisor only.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc::Sender,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tracing::{debug, warn};

use crate::supervisor::Event;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A child that was up for so long has recovered: the next back-off begins anew.
const RECOVERED_AFTER: Duration = Duration::from_secs(30);
/// Longest line by which a child says that it is up.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Which child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Dataplane,
    Control,
}

impl Role {
    /// Its subcommand.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Dataplane => "dataplane",
            Role::Control => "control",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A child and what it is doing.
pub(crate) struct Child {
    pub(crate) role: Role,
    process: Option<std::process::Child>,
    up: Option<Up>,
    /// When to start it again.
    start_at: Option<Instant>,
    backoff: Duration,
}

struct Up {
    since: Instant,
    said: Value,
}

impl Child {
    /// A child that is to be started at once.
    pub(crate) fn new(role: Role) -> Child {
        Child { role, process: None, up: None, start_at: Some(Instant::now()), backoff: BACKOFF_MIN }
    }

    /// Starts it when it is time. Called by the main thread only: the kernel ends a child with the *thread* that
    /// started it.
    pub(crate) fn start_if_due(&mut self, file: Option<&Path>, events: &Sender<Event>) {
        if self.start_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.start_at = None;
        if let Err(cause) = self.start(file, events) {
            warn!("{} cannot be started: {cause}", self.role);
            self.again();
        }
    }

    fn start(&mut self, file: Option<&Path>, events: &Sender<Event>) -> io::Result<()> {
        let mut command = Command::new(executable()?);
        command.arg0("ringmq").arg(self.role.name()).arg("--supervisor").arg(std::process::id().to_string());
        if let Some(file) = file {
            command.arg("--config").arg(file);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        let mut process = command.spawn()?;
        let (role, pid, events) = (self.role, process.id(), events.clone());
        let out = process.stdout.take();
        self.process = Some(process);
        thread::Builder::new().name(format!("{role} output")).spawn(move || listen(out, role, pid, &events))?;
        debug!("{role} was started as process {pid}");
        Ok(())
    }

    /// It said that it is up, or that what it said then has changed; a word of a predecessor is ignored.
    pub(crate) fn came_up(&mut self, pid: u32, said: Value) -> bool {
        let ours = self.process.as_ref().is_some_and(|process| process.id() == pid);
        if ours {
            let since = self.up.as_ref().map_or_else(Instant::now, |up| up.since);
            self.up = Some(Up { since, said });
        }
        ours
    }

    /// Has it said that it is up?
    pub(crate) fn is_up(&self) -> bool {
        self.up.is_some()
    }

    /// What it said when it came up, while it is up.
    pub(crate) fn said(&self) -> Option<&Value> {
        self.up.as_ref().map(|up| &up.said)
    }

    /// Its end, if it has ended since the last look.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = match self.process.as_mut()?.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => status,
            // Nobody else waits for our children, so this cannot be; a child that is lost is started again.
            Err(cause) => {
                warn!("{} cannot be waited for: {cause}", self.role);
                ExitStatus::from_raw(0)
            }
        };
        self.process = None;
        Some(status)
    }

    /// Starts it again after the back-off, which grows unless it had been up for long.
    pub(crate) fn again(&mut self) -> Duration {
        let up = self.up.take();
        if up.is_some_and(|up| up.since.elapsed() >= RECOVERED_AFTER) {
            self.backoff = BACKOFF_MIN;
        }
        let wait = self.backoff;
        self.start_at = Some(Instant::now() + wait);
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        wait
    }

    /// When it has to be started.
    pub(crate) fn start_at(&self) -> Option<Instant> {
        self.start_at
    }

    /// Does a process run?
    pub(crate) fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// Sends a signal, if there is somebody to receive it.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.process.as_ref().map(Pid::from_child)
            && let Err(cause) = kill_process(pid, signal)
        {
            debug!("{} does not take signal {signal:?}: {cause}", self.role);
        }
    }
}

/// The file that we are made of, even if another one has replaced it since.
fn executable() -> io::Result<PathBuf> {
    let own = PathBuf::from("/proc/self/exe");
    if own.exists() { Ok(own) } else { std::env::current_exe() }
}

/// Reads the lines that say that a child is up, and where it listens now.
fn listen(out: Option<ChildStdout>, role: Role, pid: u32, events: &Sender<Event>) {
    let Some(out) = out else {
        return;
    };
    let mut reader = BufReader::new(out);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => {}
            Err(cause) => return debug!("the output of {role} ended: {cause}"),
        }
        match serde_json::from_slice(&line) {
            // The supervisor outlives its readers; if not, there is nobody to tell.
            Ok(said) => _ = events.send(Event::Up { role, pid, said }),
            Err(cause) => warn!("{role} said something that is no JSON line: {cause}"),
        }
    }
}
