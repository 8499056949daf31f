//! `ringmq start`: two children, their signals, their ends, `ready.json`. It holds no state of the node: whatever
//! happens to one child, the other one goes on, and a stop takes at most [`STOP_PATIENCE`].

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use contract::config::Config;
use control::{EXIT_CONFIG, logging};
use rustix::process::Signal;
use serde_json::Value;
use signal_hook::{
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use tracing::{error, info, warn};

use crate::{
    child::{Child, Role},
    lock::{self, Lock},
    notify,
    ready::{self, Ready},
    settings,
};

/// How long children may take to stop: a little more than the data plane grants its clients, and less than the five
/// seconds that a stop may take.
const STOP_PATIENCE: Duration = Duration::from_millis(4800);
/// How long the kernel may take to clear away a child that was killed.
const KILL_PATIENCE: Duration = Duration::from_millis(150);

/// What wakes the supervisor.
pub(crate) enum Event {
    /// A signal came.
    Signal(i32),
    /// A child said that it is up.
    Up { role: Role, pid: u32, said: Value },
}

/// Runs a node until it is told to stop, or until it turns out that it cannot start.
pub(crate) fn run(file: Option<&Path>) -> ExitCode {
    let config = match settings::load_or_explain(file) {
        Ok(loaded) => loaded.config,
        Err(code) => return code,
    };
    logging::start(&config.log);
    let data_dir = match settings::prepare_data_dir(&config) {
        Ok(data_dir) => data_dir,
        Err(code) => return code,
    };
    let _lock = match Lock::take(&data_dir, lock::NODE) {
        Ok(lock) => lock,
        Err(why) => {
            error!("{why}");
            return ExitCode::FAILURE;
        }
    };
    ready::remove(&data_dir);
    let (events, inbox) = channel();
    if let Err(cause) = watch_signals(events.clone()) {
        error!("the supervisor cannot receive signals: {cause}");
        return ExitCode::FAILURE;
    }
    let mut supervisor = Supervisor {
        file,
        config,
        data_dir,
        events,
        inbox,
        children: [Child::new(Role::Dataplane), Child::new(Role::Control)],
        was_ready: false,
    };
    let code = supervisor.serve();
    supervisor.stop();
    code
}

fn watch_signals(events: Sender<Event>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGCHLD])?;
    let forward = move || {
        for signal in signals.forever() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(forward)?;
    Ok(())
}

struct Supervisor<'a> {
    file: Option<&'a Path>,
    config: Config,
    data_dir: PathBuf,
    events: Sender<Event>,
    inbox: Receiver<Event>,
    children: [Child; 2],
    /// Both children have been up at the same time.
    was_ready: bool,
}

impl Supervisor<'_> {
    /// Until a stop is asked for, or a child says that starting it again is of no use.
    fn serve(&mut self) -> ExitCode {
        loop {
            for child in &mut self.children {
                child.start_if_due(self.file, &self.events);
            }
            let due = self.children.iter().filter_map(Child::start_at).min();
            match self.next_event(due) {
                Some(Event::Signal(SIGTERM | SIGINT)) => return ExitCode::SUCCESS,
                Some(Event::Signal(SIGHUP)) => self.reload(),
                Some(Event::Signal(_)) | None => {
                    if let Some(code) = self.look_for_ends() {
                        return code;
                    }
                }
                Some(Event::Up { role, pid, said }) => {
                    let was_up = self.child(role).is_up();
                    if self.child(role).came_up(pid, said) {
                        self.came_up(role, was_up);
                    }
                }
            }
        }
    }

    fn next_event(&self, due: Option<Instant>) -> Option<Event> {
        match due {
            None => self.inbox.recv().ok(),
            // A timeout is as good as an event: the caller looks around. We hold a sender, so nothing else can fail.
            Some(due) => self.inbox.recv_timeout(due.saturating_duration_since(Instant::now())).ok(),
        }
    }

    fn child(&mut self, role: Role) -> &mut Child {
        match role {
            Role::Dataplane => &mut self.children[0],
            Role::Control => &mut self.children[1],
        }
    }

    /// A child has come up, or was up and listens somewhere else now.
    fn came_up(&mut self, role: Role, was_up: bool) {
        let [dataplane, control] = &self.children;
        let (Some(dataplane), Some(control)) = (dataplane.said(), control.said()) else {
            return;
        };
        let ready = Ready { config: &self.config, dataplane, control };
        if let Err(cause) = ready.write(&self.data_dir) {
            error!("cannot write ready.json in {}: {cause}", self.data_dir.display());
        }
        if was_up && self.was_ready {
            return;
        }
        if self.was_ready {
            info!("{role} is up again");
        } else {
            ready.print();
            notify::tell("READY=1");
        }
        self.was_ready = true;
    }

    /// Children that ended are started again. Before the first ready line an exit status is final: nothing that
    /// mends itself makes a child say no, and the operator is still looking. Later, a data plane that says that only an
    /// operator can help it is not started again, either: what it keeps is refused until somebody decides.
    fn look_for_ends(&mut self) -> Option<ExitCode> {
        for at in 0..self.children.len() {
            let Some(status) = self.children[at].ended() else {
                continue;
            };
            let role = self.children[at].role;
            let hopeless = role == Role::Dataplane && status.code() == Some(i32::from(EXIT_CONFIG));
            if hopeless && self.was_ready {
                error!("the data plane cannot start again without an operator; the node stops");
            }
            if let (true, Some(code)) = (hopeless || !self.was_ready, status.code()) {
                return Some(ExitCode::from(u8::try_from(code).ok().filter(|code| *code != 0).unwrap_or(1)));
            }
            if role == Role::Dataplane {
                ready::remove(&self.data_dir);
            }
            let wait = self.children[at].again();
            warn!("{role} ended ({status}); it is started again in {} ms", wait.as_millis());
        }
        None
    }

    fn reload(&mut self) {
        notify::tell("RELOADING=1");
        match settings::load(self.file) {
            Ok(loaded) => {
                logging::set_level(loaded.config.log.level);
                self.children.iter().for_each(|child| child.signal(Signal::HUP));
            }
            Err(why) => error!("the configuration is not reloaded: {why}"),
        }
        notify::tell("READY=1");
    }

    /// Does a child run, after a look at those that have ended?
    fn any_runs(&mut self) -> bool {
        for child in &mut self.children {
            child.ended();
        }
        self.children.iter().any(Child::runs)
    }

    /// Tells both children, waits, and kills what does not listen. A second signal shortens the wait.
    fn stop(&mut self) {
        notify::tell("STOPPING=1");
        ready::remove(&self.data_dir);
        let deadline = Instant::now() + STOP_PATIENCE;
        for child in &self.children {
            child.signal(Signal::TERM);
            // A stopped process takes the other signal only when it goes on.
            child.signal(Signal::CONT);
        }
        let mut asked_again = false;
        while self.any_runs() && !asked_again && Instant::now() < deadline {
            asked_again = matches!(self.next_event(Some(deadline)), Some(Event::Signal(SIGTERM | SIGINT)));
        }
        for child in self.children.iter().filter(|child| child.runs()) {
            warn!("{} did not stop in time and is killed", child.role);
            child.signal(Signal::KILL);
        }
        let deadline = Instant::now() + KILL_PATIENCE;
        while self.any_runs() && Instant::now() < deadline {
            self.next_event(Some(deadline));
        }
        info!("stopped");
    }
}
