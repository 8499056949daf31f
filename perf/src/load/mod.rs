//! The load generator: connects, warms up, measures, lets the rest arrive, and verifies. The calling thread conducts the
//! phases and samples the broker; worker threads speak MQTT. Always true: a run ends, whatever the broker does, within
//! its own length plus the named time-outs.

mod client;
pub mod plan;
pub mod report;
mod roles;
mod window;
mod worker;

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::ledger::Tally;
use crate::process::{Sample, raise_descriptor_limit};
use plan::{Length, Plan};
use report::Report;
use worker::{Harvest, LATENCY_NS_MAX, Phase, Shared, Worker};

/// Longest wait until all clients are connected and subscribed.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// A run in which messages are on their way and none arrives for this long is over.
const STALL_TIMEOUT: Duration = Duration::from_secs(3);
/// After the last publish, what does not arrive within this time after the last arrival counts as lost.
const DRAIN_QUIET: Duration = Duration::from_millis(1500);
/// How often the conductor looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// Descriptors that are not clients: standard streams, poll sets, timers, `/proc`.
const DESCRIPTORS_OWN: u64 = 64;

/// Runs a plan; `pids` are the broker's processes (their children are found). An error means that nothing was measured;
/// a failure after that is part of the report.
pub fn run(plan: Plan, pids: &[u32]) -> Result<Report, String> {
    plan.check()?;
    let descriptors = raise_descriptor_limit();
    let needed = (plan.publishers + plan.subscribers) as u64 + DESCRIPTORS_OWN;
    if needed > descriptors {
        return Err(format!("the run needs {needed} descriptors; this process may have {descriptors} (ulimit -n)"));
    }
    let shared = Shared::new(plan)?;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..shared.plan.threads)
            .map(|lane| {
                scope.spawn({
                    let shared = &shared;
                    move || Worker::run(shared, lane)
                })
            })
            .collect();
        let measured = conduct(&shared, pids);
        shared.enter(Phase::Stop);
        let harvest = threads.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect();
        measured.and_then(|measured| measured.report(&shared, harvest))
    })
}

/// The edges of the measured phase.
struct Measured {
    begin: Edge,
    end: Edge,
    unacknowledged: u64,
    failure: Option<String>,
}

struct Edge {
    at: Instant,
    published: u64,
    delivered: u64,
    broker: Sample,
}

impl Edge {
    fn now(shared: &Shared, pids: &[u32]) -> Result<Edge, String> {
        let broker = Sample::take(pids)?;
        Ok(Edge { at: Instant::now(), published: shared.window.published(), delivered: shared.delivered(), broker })
    }
}

fn conduct(shared: &Shared, pids: &[u32]) -> Result<Measured, String> {
    let plan = &shared.plan;
    open(shared)?;
    if plan.warmup.is_zero() {
        shared.window.allow(0);
    }
    shared.enter(Phase::Run);
    let warm = flow(shared, Length::Time(plan.warmup));
    if matches!(plan.length, Length::Messages(_)) {
        // The warm-up's messages are let in before, so that the measured ones are exactly those asked for.
        shared.window.allow(0);
        settle(shared);
    }
    let begin = Edge::now(shared, pids)?;
    let since_ns = begin.at.duration_since(shared.began).as_nanos() as u64;
    shared.since_ns.store(since_ns, Ordering::Release);
    shared.window.allow(match plan.length {
        Length::Time(_) => u64::MAX,
        Length::Messages(count) => count,
    });
    let ran = warm.and_then(|()| match plan.length {
        Length::Time(_) => flow(shared, plan.length),
        Length::Messages(count) => flow(shared, Length::Messages(begin.published + count)).map(|()| settle(shared)),
    });
    let end = Edge::now(shared, pids);
    shared.enter(Phase::Drain);
    if ran.is_ok() {
        settle(shared);
    }
    let failure = shared.failure().or(ran.err()).or(end.as_ref().err().cloned());
    let end = end.unwrap_or(Edge { at: Instant::now(), published: 0, delivered: 0, broker: begin.broker.clone() });
    Ok(Measured { begin, end, unacknowledged: shared.unacknowledged(), failure })
}

/// Waits until every client is connected and subscribed.
fn open(shared: &Shared) -> Result<(), String> {
    let plan = &shared.plan;
    let clients = plan.publishers + plan.subscribers;
    let deadline = Instant::now() + OPEN_TIMEOUT;
    loop {
        let ready = shared.ready.load(Ordering::Acquire);
        if let Some(failure) = shared.failure() {
            return Err(failure);
        }
        if ready == clients {
            return Ok(());
        }
        if Instant::now() > deadline {
            let waited = OPEN_TIMEOUT.as_secs();
            return Err(format!("only {ready} of {clients} clients were connected and subscribed after {waited} s"));
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

/// Lets messages flow for a time, or until so many were published since the run began.
fn flow(shared: &Shared, length: Length) -> Result<(), String> {
    let begin = Instant::now();
    let mut progress = Progress::new(shared);
    loop {
        let is_over = match length {
            Length::Time(time) => begin.elapsed() >= time,
            Length::Messages(total) => shared.window.published() >= total,
        };
        if is_over {
            return Ok(());
        }
        if let Some(failure) = shared.failure() {
            return Err(failure);
        }
        let missing = missing(shared);
        if missing > 0 && progress.quiet_for(shared) > STALL_TIMEOUT {
            let quiet = STALL_TIMEOUT.as_secs();
            return Err(format!("no message arrived for {quiet} s while {missing} deliveries were due"));
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

/// Waits until everything published has arrived and is acknowledged, or nothing moves any more.
fn settle(shared: &Shared) {
    let mut progress = Progress::new(shared);
    while (missing(shared) > 0 || shared.unacknowledged() > 0)
        && shared.failure().is_none()
        && progress.quiet_for(shared) < DRAIN_QUIET
    {
        thread::sleep(LOOK_INTERVAL);
    }
}

fn missing(shared: &Shared) -> u64 {
    let due = shared.window.published() * shared.plan.receivers() as u64;
    due.saturating_sub(shared.delivered())
}

/// Notices when nothing arrives any more.
struct Progress {
    seen: (u64, u64),
    changed_at: Instant,
}

impl Progress {
    fn new(shared: &Shared) -> Progress {
        Progress { seen: (shared.delivered(), shared.unacknowledged()), changed_at: Instant::now() }
    }

    fn quiet_for(&mut self, shared: &Shared) -> Duration {
        let seen = (shared.delivered(), shared.unacknowledged());
        if seen != self.seen {
            *self = Progress { seen, changed_at: Instant::now() };
        }
        self.changed_at.elapsed()
    }
}

impl Measured {
    fn report(self, shared: &Shared, harvest: Vec<Harvest>) -> Result<Report, String> {
        let mut latency = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).map_err(|error| error.to_string())?;
        let mut tally = Tally::default();
        let threads = harvest.len();
        for part in harvest {
            latency.add(&part.latency).map_err(|error| error.to_string())?;
            tally.add(&part.tally);
        }
        let mut failure = self.failure.or(shared.failure());
        if threads < shared.plan.threads {
            failure.get_or_insert_with(|| "a thread of the load ended".into());
        }
        let has_broker = !self.begin.broker.cpu_ns.is_empty();
        let cpu_ns = match self.end.broker.cpu_ns_since(&self.begin.broker) {
            Ok(cpu_ns) => has_broker.then_some(cpu_ns),
            Err(error) => {
                failure.get_or_insert(error);
                None
            }
        };
        Ok(Report {
            plan: shared.plan.clone(),
            seconds: self.end.at.duration_since(self.begin.at).as_secs_f64(),
            published: self.end.published.saturating_sub(self.begin.published),
            delivered: self.end.delivered.saturating_sub(self.begin.delivered),
            cpu_ns,
            user_percent: self.end.broker.user_percent_since(&self.begin.broker),
            latency,
            tally,
            unacknowledged: self.unacknowledged,
            failure,
        })
    }
}
