//! The control process: an ordinary async process beside the data plane. It makes the View, keeps the last Report,
//! and serves HTTP and `ringmq ctl`. It never sees a message, and the data plane serves on without it.

mod bans;
pub mod ctl;
mod dataplane;
mod doors;
mod gate;
mod host;
mod http;
mod incarnation;
pub mod logging;
mod metrics;
mod state;
#[cfg(test)]
mod tests;
mod traces;

use std::{
    fs,
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use contract::{
    config::{Config, Loaded},
    trace::Trace,
    view::{LimitsPage, Page, PageKind, View, ViewNumber, Watched},
};
use rustix::process::{Pid, kill_process};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
};
use tracing::{error, info, warn};

use crate::{bans::Bans, doors::Doors, state::Shared, traces::Traces};

/// `sysexits.h`: the configuration is wrong. A supervisor does not try again.
pub const EXIT_CONFIG: u8 = 78;
/// Where the data plane listens for control, in the data directory.
pub const DATAPLANE_SOCKET: &str = "dataplane.sock";
/// Where control listens for `ringmq ctl`, in the data directory.
pub const CONTROL_SOCKET: &str = "control.sock";
/// Requests to read the configuration again that wait; more are refused.
const RELOADS_MAX: usize = 4;
const RELOADED: &str = "the configuration was read again; the data plane was told to do the same";
const RELOADED_ALONE: &str =
    "the configuration was read again; the data plane runs alone and needs a SIGHUP of its own";
/// Open requests may finish after a stop was asked for.
const STOP_PATIENCE: Duration = Duration::from_millis(500);

/// Reads the configuration anew at SIGHUP, or says why it cannot be used.
pub type Reload = Box<dyn Fn() -> Result<Loaded, String>>;

/// Serves until SIGTERM or SIGINT. Prints one JSON line to standard output when HTTP and `ctl` accept.
/// `supervisor` starts and tells both processes, if there is one.
pub fn run(loaded: Loaded, reload: Reload, supervisor: Option<Pid>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(cause) => {
            error!("control cannot start: {cause}");
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(serve(loaded, reload, supervisor)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, code }) => {
            error!("{message}");
            ExitCode::from(code)
        }
    };
    runtime.shutdown_timeout(STOP_PATIENCE);
    code
}

/// Why control could not come up.
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn new(code: u8, message: String) -> Failure {
        Failure { message, code }
    }
}

async fn serve(loaded: Loaded, reload: Reload, supervisor: Option<Pid>) -> Result<(), Failure> {
    let config = &loaded.config;
    let data_dir = PathBuf::from(&config.node.data_dir);
    let mut signals = Signals::new().map_err(|cause| Failure::new(1, format!("no signals: {cause}")))?;
    let http_bind = &config.dashboard.http_bind;
    let (http, address) = listen(http_bind).await.map_err(|cause| {
        let why = match cause.kind() {
            io::ErrorKind::AddrInUse => "it is taken by another process".into(),
            _ => cause.to_string(),
        };
        Failure::new(EXIT_CONFIG, format!("dashboard.listeners.http.bind: cannot listen on {http_bind}: {why}"))
    })?;
    let socket = data_dir.join(CONTROL_SOCKET);
    let ctl = ctl::listen(&socket)
        .map_err(|cause| Failure::new(1, format!("cannot listen on {}: {cause}", socket.display())))?;
    let number = ViewNumber { incarnation: incarnation::next(&data_dir), number: 1 };
    let bans = bans::read(&data_dir).map_err(|cause| {
        Failure::new(EXIT_CONFIG, format!("cannot read {}: {cause}", data_dir.join(bans::BANS_FILE).display()))
    })?;
    let traces = Traces::open(&data_dir);
    let (view, view_seen) = watch::channel(Arc::new(view_of(config, bans::page(&bans), traces.all(), number)));
    let bans = Bans::new(&data_dir, bans, view.clone());
    let doors = Doors::open(&data_dir).map_err(|cause| {
        Failure::new(EXIT_CONFIG, format!("cannot read {}: {cause}", data_dir.join(doors::DOORS_FILE).display()))
    })?;
    let (reloads, mut reloads_asked) = mpsc::channel(RELOADS_MAX);
    let shared = Shared::new(config, address, view_seen.clone(), (doors, bans, traces), reloads);
    let dataplane =
        dataplane::Dataplane { socket: data_dir.join(DATAPLANE_SOCKET), view: view_seen, shared: shared.clone() };
    tokio::spawn(http::serve(http, shared.clone()));
    tokio::spawn(ctl::serve(ctl, shared.clone()));
    tokio::spawn(dataplane.run(view.clone(), data_dir.clone()));
    announce(address).map_err(|cause| Failure::new(1, format!("cannot write to standard output: {cause}")))?;
    info!(http = %address, "control is up");
    let mut current = loaded;
    loop {
        let asker = tokio::select! {
            asked = signals.next() => match asked {
                Asked::Stop => break,
                Asked::Reload => None,
            },
            asker = reloads_asked.recv() => asker,
            () = shared.traces.changed() => {
                renew(&current, shared.traces.all(), &view);
                continue;
            }
        };
        let read = reload();
        if let Err(why) = &read {
            error!("the configuration is not reloaded: {why}");
        }
        let (answer, tells) = match read {
            Err(why) => (Err(why), false),
            Ok(next) => {
                apply(&current, &next, shared.traces.all(), &view);
                current = next;
                (Ok(supervisor.is_some()), asker.is_some())
            }
        };
        // The data plane reads files of its own; its supervisor tells it, and us a second time, which changes nothing.
        if let Some(pid) = supervisor.filter(|_| tells) {
            let _ = kill_process(pid, rustix::process::Signal::HUP);
        }
        if let Some(asker) = asker {
            // Whoever asked may have gone.
            let _ = asker.send(answer.map(|both| if both { RELOADED } else { RELOADED_ALONE }.to_owned()));
        }
    }
    // A successor may already have put its own socket there; then nothing of ours is left to remove.
    let _ = fs::remove_file(data_dir.join(CONTROL_SOCKET));
    info!("control stops");
    Ok(())
}

/// A new View if pages changed, and a line about what needs a restart.
fn apply(current: &Loaded, next: &Loaded, traces: Vec<Trace>, view: &watch::Sender<Arc<View>>) {
    logging::set_level(next.config.log.level);
    let changed = renew(next, traces, view);
    let waiting = current.waiting(next);
    if !waiting.is_empty() {
        warn!("changes wait for the next start: {}", waiting.join(", "));
    }
    info!(changed, "the configuration was read again");
}

/// A new View, if it says something else than the present one.
fn renew(loaded: &Loaded, traces: Vec<Trace>, view: &watch::Sender<Arc<View>>) -> bool {
    view.send_if_modified(|view| {
        let number = ViewNumber { number: view.number.number + 1, ..view.number };
        let bans = view.pages.iter().find(|page| page.kind() == PageKind::Bans).cloned();
        let fresh = view_of(&loaded.config, bans.unwrap_or(Page::Bans(Vec::new())), traces, number);
        let changed = fresh.digests != view.digests;
        if changed {
            info!(number = fresh.number.number, "a new view is on its way to the data plane");
            *view = Arc::new(fresh);
        }
        changed
    })
}

fn view_of(config: &Config, bans: Page, traces: Vec<Trace>, number: ViewNumber) -> View {
    let (sys_topics, sys_events) = (config.sys_topics.clone(), config.sys_events.clone());
    let watched = Watched { sys_topics, sys_events, traces };
    let limits = LimitsPage {
        mqtt: config.mqtt.clone(),
        limits: config.limits.clone(),
        retainer: config.retainer.clone(),
        flapping_detect: config.flapping_detect.clone(),
    };
    let links = Page::Links(config.cluster.links.clone());
    View::complete(number, vec![links, Page::Limits(limits), bans, Page::Watched(watched)])
}

async fn listen(bind: &str) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(bind).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// The line by which a supervisor or a script learns that we are up.
fn announce(http: SocketAddr) -> io::Result<()> {
    let line = serde_json::json!({ "http": http.to_string(), "pid": std::process::id() });
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// What a signal asks for.
enum Asked {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}

/// Writes a small file so that a reader sees the old one or the new one.
fn replace_file(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        // It may be there since a crash, with another mode.
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    let mut file = fs::File::options().write(true).create_new(true).mode(mode).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}
