//! The side-by-side recipe: the same loads against RingMQ, mosquitto and the null relay, a fresh broker process for each
//! run, the brokers interleaved, and a table of medians and ratios. Always true: everything is on loopback, every run is
//! bounded in time, and nothing that was started outlives this process.

pub(crate) mod broker;
mod scenarios;
pub(crate) mod table;

use std::fmt;
use std::fs::{File, read_to_string};
use std::io::{IsTerminal, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::thread::{CpuSet, sched_getaffinity};
use serde_json::{Value, json};

use crate::process::raise_descriptor_limit;
use broker::{Broker, MEMORY_ONLY, Recipe, bind_to_us};
use scenarios::Scenario;
use table::Cell;

/// Time that one run may take beyond its measured phase: connecting, warming up, draining.
const RUN_SLACK: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What every comparison can be told.
#[derive(Args)]
pub(crate) struct Common {
    /// The RingMQ executable (cargo build --release)
    #[arg(long, default_value = "target/release/ringmq")]
    pub(crate) ringmq: PathBuf,
    /// The mosquitto executable (Debian: apt-get install mosquitto)
    #[arg(long, default_value = "/usr/sbin/mosquitto")]
    pub(crate) mosquitto: PathBuf,
    /// Only these brokers, by name
    #[arg(long, value_delimiter = ',')]
    pub(crate) brokers: Vec<String>,
    /// Runs of each load against each broker
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    /// Length of a measured phase
    #[arg(long, default_value_t = 2.0)]
    pub(crate) seconds: f64,
    /// Protocol version of the load: 3.1.1 or 5
    #[arg(long, default_value = "3.1.1")]
    pub(crate) mqtt: String,
    /// Leave broker and load unpinned, and give RingMQ two shards, instead of one CPU for each
    #[arg(long)]
    pub(crate) free: bool,
    /// Write the JSON line of every run to this file
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
}

impl Common {
    /// Are rounds and seconds within what a machine has time for?
    pub(crate) fn check(&self) -> Result<(), String> {
        if !(1..=100).contains(&self.rounds) {
            return Err(format!("--rounds must be in 1..=100; got {}", self.rounds));
        }
        if !(0.1..=600.0).contains(&self.seconds) {
            return Err(format!("--seconds must be in 0.1..=600; got {}", self.seconds));
        }
        Ok(())
    }

    /// Leaves the brokers that were asked for.
    pub(crate) fn choose(&self, brokers: &mut Vec<Broker>) -> Result<(), String> {
        if let Some(unknown) = self.brokers.iter().find(|name| brokers.iter().all(|broker| broker.name != **name)) {
            let known: Vec<_> = brokers.iter().map(|broker| broker.name.as_str()).collect();
            return Err(format!("--brokers knows no {unknown:?}; it knows {}", known.join(", ")));
        }
        brokers.retain(|broker| self.brokers.is_empty() || self.brokers.contains(&broker.name));
        Ok(())
    }
}

/// Options of `perf compare`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Another broker as NAME=COMMAND, where {port} and {dir} are replaced (repeatable)
    #[arg(long = "also")]
    also: Vec<String>,
    /// Only these scenarios, by name; `all` adds the ones that are off by default
    #[arg(long, value_delimiter = ',')]
    scenarios: Vec<String>,
}

/// Which CPUs the two sides use; empty means all.
pub(crate) struct Placement {
    /// Those of the broker.
    pub(crate) broker: Vec<usize>,
    /// Those of the load.
    pub(crate) load: Vec<usize>,
}

/// Runs everything; false if RingMQ lost, duplicated, reordered or failed anything.
pub fn run(options: Options) -> Result<bool, String> {
    options.common.check()?;
    let scenarios = scenarios::chosen(&options.scenarios)?;
    let brokers = brokers(&options)?;
    let placement = placement(options.common.free)?;
    let stop = stop_flag()?;
    let lines = options
        .common
        .json
        .as_ref()
        .map(|path| File::create(path).map_err(|error| format!("cannot write {}: {error}", path.display())));
    let mut recipe =
        Recipes { stop, placement, descriptors: raise_descriptor_limit(), lines: lines.transpose()?, options };
    recipe.print_head(&brokers);
    let mut is_clean = true;
    for scenario in &scenarios {
        let cells = recipe.scenario(scenario, &brokers)?;
        for row in table::rows(scenario, &cells) {
            println!("{row}");
        }
        is_clean &= cells.iter().all(|cell| cell.broker != "ringmq" || cell.missing.is_none() && cell.is_clean());
    }
    Ok(is_clean)
}

fn brokers(options: &Options) -> Result<Vec<Broker>, String> {
    let shards = if options.common.free { 2 } else { 1 };
    let mut brokers = vec![
        Broker {
            name: "ringmq".into(),
            recipe: Recipe::Ringmq { path: options.common.ringmq.clone(), shards, env: vec![] },
        },
        Broker {
            name: "mosquitto".into(),
            recipe: Recipe::Mosquitto { path: options.common.mosquitto.clone(), persistence: MEMORY_ONLY },
        },
        Broker { name: "relay".into(), recipe: Recipe::Relay },
    ];
    for also in &options.also {
        let (name, words) = also.split_once('=').ok_or_else(|| format!("--also must be NAME=COMMAND; got {also}"))?;
        brokers.push(Broker { name: name.into(), recipe: Recipe::Command(words.into()) });
    }
    options.common.choose(&mut brokers)?;
    Ok(brokers)
}

/// One CPU for each side, or none chosen.
pub(crate) fn placement(is_free: bool) -> Result<Placement, String> {
    if is_free {
        return Ok(Placement { broker: Vec::new(), load: Vec::new() });
    }
    let allowed = sched_getaffinity(None).map_err(|error| format!("sched_getaffinity: {error}"))?;
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).take(2).collect();
    match cpus[..] {
        [broker, load] => Ok(Placement { broker: vec![broker], load: vec![load] }),
        _ => Err("one CPU for the broker and one for the load are needed; use --free".into()),
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.broker[..], &self.load[..]) {
            ([broker], [load]) => write!(f, "broker on CPU {broker}, load on CPU {load}"),
            _ => write!(f, "broker and load on all CPUs"),
        }
    }
}

/// This machine, in a few words.
pub(crate) fn machine() -> String {
    let first = |path: &str, key: &str| {
        let text = read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or("unknown").to_string();
        line.rsplit_once(": ").map_or(line.clone(), |(_, value)| value.to_string())
    };
    format!("{}, Linux {}", first("/proc/cpuinfo", "model name"), first("/proc/sys/kernel/osrelease", ""))
}

/// A flag that SIGINT and SIGTERM set.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>, String> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(|error| format!("signal {signal}: {error}"))?;
    }
    Ok(stop)
}

/// Runs our own executable as the load on its CPUs, and gives its JSON line.
pub(crate) fn run_load(
    arguments: &[String],
    placement: &Placement,
    seconds: f64,
    stop: &AtomicBool,
) -> Result<Value, String> {
    let own = std::env::current_exe().map_err(|error| format!("own executable: {error}"))?;
    let mut command = Command::new(own);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    bind_to_us(&mut command, &placement.load)?;
    let mut child = command.spawn().map_err(|error| format!("cannot start the load: {error}"))?;
    let deadline = Instant::now() + Duration::from_secs_f64(seconds) + RUN_SLACK;
    while let Ok(None) = child.try_wait() {
        if Instant::now() > deadline || stop.load(Ordering::Relaxed) {
            // Both fail only if it has just ended.
            let _ = child.kill();
            let _ = child.wait();
            return Err("the load did not end in time".into());
        }
        thread::sleep(LOOK_INTERVAL);
    }
    let (mut line, mut errors) = (String::new(), String::new());
    child.stdout.take().map(|mut pipe| pipe.read_to_string(&mut line));
    child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut errors));
    serde_json::from_str(line.trim()).map_err(|_| errors.trim().to_string())
}

/// The run of all scenarios.
struct Recipes {
    options: Options,
    stop: Arc<AtomicBool>,
    placement: Placement,
    descriptors: u64,
    lines: Option<File>,
}

impl Recipes {
    fn print_head(&self, brokers: &[Broker]) {
        println!("{}", machine());
        println!(
            "{}; MQTT {}; {} rounds of {} s, fresh process each, medians; cost is CPU of the broker per delivered message",
            self.placement, self.options.common.mqtt, self.options.common.rounds, self.options.common.seconds
        );
        for broker in brokers {
            println!("{}: {}", broker.name, broker.missing().unwrap_or_else(|| broker.version()));
        }
        println!("\n{}", table::HEAD);
    }

    fn scenario(&mut self, scenario: &Scenario, brokers: &[Broker]) -> Result<Vec<Cell>, String> {
        let mut cells: Vec<Cell> = brokers.iter().map(|broker| Cell::new(&broker.name, broker.missing())).collect();
        for round in 1..=self.options.common.rounds {
            for (broker, cell) in brokers.iter().zip(&mut cells).filter(|(_, cell)| cell.missing.is_none()) {
                self.progress(scenario, &broker.name, round);
                let run = self.one(scenario, broker, round);
                if self.stop.load(Ordering::Relaxed) {
                    return Err("interrupted; all brokers are stopped".into());
                }
                self.write_line(&broker.name, round, &run)?;
                cell.enter(scenario.measure, &run);
            }
        }
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        Ok(cells)
    }

    /// Says what runs now: over and over on one line of a terminal, as lines elsewhere.
    fn progress(&self, scenario: &Scenario, broker: &str, round: usize) {
        let rounds = self.options.common.rounds;
        let text = format!("{} ({}), {broker}, round {round} of {rounds}", scenario.name, scenario.text);
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{text}");
        } else {
            eprintln!("{text}");
        }
    }

    /// One run: a fresh broker, the load as a process beside it, and its JSON line.
    fn one(&self, scenario: &Scenario, broker: &Broker, round: usize) -> Result<Value, String> {
        let name = format!("perf-{}-{}-{}-{round}", std::process::id(), scenario.name, broker.name);
        let running = broker.start(std::env::temp_dir().join(name), &self.placement.broker)?;
        self.load(scenario, running.address, running.pid).map_err(|error| format!("{error}{}", running.log()))
    }

    fn load(&self, scenario: &Scenario, address: SocketAddr, pid: u32) -> Result<Value, String> {
        let mut arguments =
            scenario.arguments(self.options.common.seconds, &self.options.common.mqtt, self.descriptors);
        arguments.extend(["--address".into(), address.to_string(), "--pid".into(), pid.to_string()]);
        run_load(&arguments, &self.placement, self.options.common.seconds, &self.stop)
    }

    fn write_line(&mut self, broker: &str, round: usize, run: &Result<Value, String>) -> Result<(), String> {
        let Some(file) = &mut self.lines else {
            return Ok(());
        };
        let mut line = run.clone().unwrap_or_else(|error| json!({ "failure": error }));
        line["broker"] = broker.into();
        line["round"] = round.into();
        writeln!(file, "{line}").map_err(|error| format!("cannot write --json: {error}"))
    }
}
