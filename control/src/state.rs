//! What control knows, shared by its tasks: who we are, the View that holds, the last Report.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use contract::{config::Config, ctl::Status, repeats::Repeats, report::Report, view::View};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::{bans::Bans, doors::Doors, gate::COMPARISONS_MAX, traces::Traces};

/// A data plane that has not reported for so long does not answer.
pub(crate) const REPORT_AGE_MAX: Duration = Duration::from_secs(5);

/// Known to every task.
pub(crate) struct Shared {
    pub(crate) node: String,
    pub(crate) cluster: String,
    http: SocketAddr,
    started: Instant,
    view: watch::Receiver<Arc<View>>,
    last: Mutex<Last>,
    /// Who may change something.
    pub(crate) doors: Doors,
    /// Who may not connect.
    pub(crate) bans: Bans,
    /// What is watched.
    pub(crate) traces: Traces,
    /// Requests without a key, by address: lines about them.
    pub(crate) refusals: Mutex<Repeats<IpAddr>>,
    /// Places for comparisons of passwords.
    pub(crate) comparisons: Semaphore,
    refused_http: AtomicU64,
    reloads: mpsc::Sender<Reloading>,
}

/// Somebody waits for the configuration to be read again: what came of it.
pub(crate) type Reloading = oneshot::Sender<Result<String, String>>;

#[derive(Default)]
struct Last {
    connected: bool,
    report: Option<(Arc<Report>, Instant)>,
    /// Alarms by name, and since when they are active.
    alarms: Vec<(&'static str, SystemTime)>,
    peaks: Peaks,
}

/// What a Report says of a node, or the most that Reports have said.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Peaks {
    pub(crate) connections: u64,
    pub(crate) sessions: u64,
    /// Of both sorts.
    pub(crate) subscriptions: u64,
    pub(crate) shared: u64,
    pub(crate) retained: u64,
}

impl Peaks {
    pub(crate) fn of(report: &Report) -> Peaks {
        let shared = report.total(|shard| shard.shared_subscriptions);
        Peaks {
            connections: report.total(|shard| shard.connections),
            sessions: report.total(|shard| shard.sessions),
            subscriptions: report.total(|shard| shard.subscriptions) + shared,
            shared,
            retained: report.total(|shard| shard.retained),
        }
    }

    fn max(self, other: Peaks) -> Peaks {
        Peaks {
            connections: self.connections.max(other.connections),
            sessions: self.sessions.max(other.sessions),
            subscriptions: self.subscriptions.max(other.subscriptions),
            shared: self.shared.max(other.shared),
            retained: self.retained.max(other.retained),
        }
    }
}

/// The data plane as of its last Report.
pub(crate) struct Seen {
    /// It is connected and has reported lately.
    pub(crate) up: bool,
    /// The last Report; old if it is not up.
    pub(crate) report: Option<Arc<Report>>,
    /// Its age.
    pub(crate) age: Duration,
}

impl Shared {
    pub(crate) fn new(
        config: &Config,
        http: SocketAddr,
        view: watch::Receiver<Arc<View>>,
        (doors, bans, traces): (Doors, Bans, Traces),
        reloads: mpsc::Sender<Reloading>,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            node: config.node.name.clone(),
            cluster: config.cluster.name.clone(),
            http,
            started: Instant::now(),
            view,
            last: Mutex::new(Last::default()),
            doors,
            bans,
            traces,
            refusals: Mutex::default(),
            comparisons: Semaphore::new(COMPARISONS_MAX),
            refused_http: AtomicU64::new(0),
            reloads,
        })
    }

    /// A request was refused for want of a key.
    pub(crate) fn refused_http(&self) {
        self.refused_http.fetch_add(1, Ordering::Relaxed);
    }

    /// May a line be written about such a request of this address? Tells what was left out before.
    pub(crate) fn tells_refusal(&self, peer: IpAddr) -> bool {
        let now_us = self.uptime().as_micros() as u64;
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        for (peer, lines) in refusals.over(now_us) {
            tracing::warn!(%peer, lines, "lines of one second about HTTP requests without a key were left out");
        }
        refusals.allows(peer, now_us)
    }

    /// Requests that were refused for want of a key.
    pub(crate) fn http_refusals(&self) -> u64 {
        self.refused_http.load(Ordering::Relaxed)
    }

    /// Reads the configuration again, and says what came of it.
    pub(crate) async fn reload(&self) -> Result<String, String> {
        let (said, heard) = oneshot::channel();
        let busy = || "the configuration is being read again already".to_owned();
        self.reloads.try_send(said).map_err(|_| busy())?;
        heard.await.unwrap_or_else(|_| Err("control is about to stop".to_owned()))
    }

    /// The connection to the data plane came or went.
    pub(crate) fn connected(&self, connected: bool) {
        self.last().connected = connected;
    }

    /// The data plane reported.
    pub(crate) fn reported(&self, report: Report) {
        self.bans.adopt(&report.flapping);
        let mut last = self.last();
        let before = std::mem::take(&mut last.alarms);
        let since = |name| before.iter().find(|(known, _)| *known == name).map_or_else(SystemTime::now, |(_, at)| *at);
        last.alarms = report.alarms().map(|(alarm, _)| (alarm.name, since(alarm.name))).collect();
        last.peaks = last.peaks.max(Peaks::of(&report));
        last.report = Some((Arc::new(report), Instant::now()));
    }

    pub(crate) fn seen(&self) -> Seen {
        let last = self.last();
        match &last.report {
            None => Seen { up: false, report: None, age: Duration::ZERO },
            Some((report, at)) => {
                let age = at.elapsed();
                Seen { up: last.connected && age <= REPORT_AGE_MAX, report: Some(report.clone()), age }
            }
        }
    }

    /// The most that Reports have said since this process started.
    pub(crate) fn peaks(&self) -> Peaks {
        self.last().peaks
    }

    /// Since when an alarm is active.
    pub(crate) fn alarmed_since(&self, name: &str) -> Option<SystemTime> {
        self.last().alarms.iter().find(|(known, _)| *known == name).map(|(_, since)| *since)
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn status(&self) -> Status {
        let seen = self.seen();
        Status {
            node: self.node.clone(),
            cluster: self.cluster.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_ms: self.uptime().as_millis() as u64,
            http: self.http.to_string(),
            view: self.view.borrow().number,
            dataplane_up: seen.up,
            report: seen.report.map(|report| Report::clone(&report)),
            report_age_ms: seen.age.as_millis() as u64,
        }
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
