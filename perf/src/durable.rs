//! What durability costs: the same QoS 1 publishes for a session that is away, against RingMQ in each of its modes and
//! against mosquitto with persistence, a fresh process each, and a table of medians. Always true: every run is verified
//! by the session that comes back, and bounded in time.

use std::fs::{self, File};
use std::io::{IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use crate::compare::broker::{Broker, Recipe, Running};
use crate::compare::table::median;
use crate::compare::{Common, Placement, machine, placement, run_load, stop_flag};

/// Head of the table.
const HEAD: &str = "\
| publishers x in flight | broker | cost | spread | per second | p50 us | p99 us | messages per commit | verified |
|---|---|--:|--:|--:|--:|--:|--:|---|";

/// Publishers and unacknowledged messages of each: latency of one alone, one in a hurry, and many that wait each.
const LOADS: &[(usize, u16)] = &[(1, 1), (1, 64), (200, 1)];
/// Writes by which the disk is judged.
const DISK_WRITES: usize = 200;
/// Bytes of each: a commit of a few messages.
const DISK_WRITE_BYTES: usize = 4096;
/// Longest wait for a report that counts the whole run; one is made every second.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Limits far above what a run queues, so that nothing is shed.
const ROOM: [(&str, &str); 2] = [("RINGMQ_MQTT__MAX_MQUEUE_LEN", "10000000"), ("RINGMQ_MQTT__MAX_MQUEUE_BYTES", "8GB")];

/// Options of `perf durable`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Where brokers keep what they keep; its file system and its disk are part of the result
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Runs everything; false if RingMQ lost or refused anything.
pub fn run(options: Options) -> Result<bool, String> {
    options.common.check()?;
    let brokers = brokers(&options)?;
    let placement = placement(options.common.free)?;
    let stop = stop_flag()?;
    let dir = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut lines = match &options.common.json {
        None => None,
        Some(path) => Some(File::create(path).map_err(|error| format!("cannot write {}: {error}", path.display()))?),
    };
    print_head(&options, &brokers, &placement, &dir)?;
    let mut is_clean = true;
    for &(publishers, inflight) in LOADS {
        let mut cells: Vec<Cell> = brokers.iter().map(|_| Cell::default()).collect();
        for round in 1..=options.common.rounds {
            for (broker, cell) in brokers.iter().zip(&mut cells).filter(|(broker, _)| broker.missing().is_none()) {
                progress(&format!(
                    "{publishers} x {inflight}, {}, round {round} of {}",
                    broker.name, options.common.rounds
                ));
                let one =
                    One { options: &options, placement: &placement, stop: &stop, dir: &dir, publishers, inflight };
                let run = one.run(broker);
                if stop.load(Ordering::Relaxed) {
                    return Err("interrupted; all brokers are stopped".into());
                }
                if let Some(lines) = &mut lines {
                    write_line(lines, broker, (publishers, inflight), &run)?;
                }
                cell.enter(&run);
            }
        }
        progress("");
        for (broker, cell) in brokers.iter().zip(&cells) {
            println!("{}", cell.row(&format!("{publishers} x {inflight}"), broker));
            is_clean &= !broker.name.starts_with("ringmq") || broker.missing().is_none() && cell.faults.is_empty();
        }
    }
    Ok(is_clean)
}

fn brokers(options: &Options) -> Result<Vec<Broker>, String> {
    let shards = if options.common.free { 2 } else { 1 };
    let ringmq = |name: &str, mode: &'static str| Broker {
        name: name.into(),
        recipe: Recipe::Ringmq {
            path: options.common.ringmq.clone(),
            shards,
            env: [&ROOM[..], &[("RINGMQ_DURABILITY__MODE", mode)]].concat(),
        },
    };
    let mosquitto = |name: &str, persistence| Broker {
        name: name.into(),
        recipe: Recipe::Mosquitto { path: options.common.mosquitto.clone(), persistence },
    };
    let mut brokers = vec![
        ringmq("ringmq none", "none"),
        ringmq("ringmq os", "os"),
        ringmq("ringmq fsync", "fsync"),
        // Its default: the database is written every 30 minutes and at the end; a PUBACK waits for neither.
        mosquitto("mosquitto", "persistence true\npersistence_location {dir}/"),
        // The closest to "acknowledged means written" that it has: the whole database is written again after every
        // turn of its loop that changed more than one thing. The PUBACK has left before.
        mosquitto(
            "mosquitto each",
            "persistence true\npersistence_location {dir}/\nautosave_on_changes true\nautosave_interval 1",
        ),
    ];
    options.common.choose(&mut brokers)?;
    Ok(brokers)
}

fn print_head(options: &Options, brokers: &[Broker], placement: &Placement, dir: &Path) -> Result<(), String> {
    println!("{}", machine());
    println!(
        "{placement}; MQTT {}, 64 B at QoS 1 to one persistent session that is away; {} rounds of {} s, fresh process \
         each, medians; cost is CPU of the broker per acknowledged message",
        options.common.mqtt, options.common.rounds, options.common.seconds
    );
    let (p50_us, p99_us) = disk(dir)?;
    println!(
        "{}: {DISK_WRITE_BYTES} B written over and flushed in {p50_us:.0} us (p50), {p99_us:.0} us (p99)",
        dir.display()
    );
    for broker in brokers {
        println!("{}: {}", broker.name, broker.missing().unwrap_or_else(|| broker.version()));
    }
    println!("\n{HEAD}");
    Ok(())
}

/// What a write and a flush cost on this disk, as the log does them: over bytes that exist.
fn disk(dir: &Path) -> Result<(f64, f64), String> {
    let path = dir.join(format!("perf-{}-disk", std::process::id()));
    let measure = || -> std::io::Result<Vec<f64>> {
        use std::os::unix::fs::FileExt;
        let file = File::create(&path)?;
        file.write_all_at(&vec![0; DISK_WRITES * DISK_WRITE_BYTES], 0)?;
        file.sync_all()?;
        let mut times_us = Vec::with_capacity(DISK_WRITES);
        for index in 0..DISK_WRITES {
            let begin = Instant::now();
            file.write_all_at(&[1; DISK_WRITE_BYTES], (index * DISK_WRITE_BYTES) as u64)?;
            file.sync_data()?;
            times_us.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times_us)
    };
    let measured = measure();
    // A file that is left behind hurts nobody; what could not be measured says why.
    let _ = fs::remove_file(&path);
    let mut times_us = measured.map_err(|error| format!("{}: {error}", path.display()))?;
    times_us.sort_by(f64::total_cmp);
    Ok((times_us[DISK_WRITES / 2], times_us[DISK_WRITES * 99 / 100]))
}

/// Says what runs now on one line of a terminal, as lines elsewhere.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
    } else if !text.is_empty() {
        eprintln!("{text}");
    }
}

fn write_line(
    file: &mut File,
    broker: &Broker,
    (publishers, inflight): (usize, u16),
    run: &Result<Value, String>,
) -> Result<(), String> {
    let mut line = run.clone().unwrap_or_else(|error| serde_json::json!({ "failure": error }));
    line["broker"] = broker.name.as_str().into();
    line["publishers"] = publishers.into();
    line["inflight"] = inflight.into();
    writeln!(file, "{line}").map_err(|error| format!("cannot write --json: {error}"))
}

/// One run.
struct One<'a> {
    options: &'a Options,
    placement: &'a Placement,
    stop: &'a AtomicBool,
    dir: &'a Path,
    publishers: usize,
    inflight: u16,
}

impl One<'_> {
    /// A fresh broker, the load as a process beside it, and its JSON line with the batch size of the log.
    fn run(&self, broker: &Broker) -> Result<Value, String> {
        let dir = self.dir.join(format!("perf-{}-durable", std::process::id()));
        let running = broker.start(dir, &self.placement.broker)?;
        let load = ["queue", "--json", "--mqtt", &self.options.common.mqtt];
        let mut arguments: Vec<String> = load.map(String::from).to_vec();
        for (option, value) in [
            ("--publishers", self.publishers.to_string()),
            ("--inflight", self.inflight.to_string()),
            ("--seconds", self.options.common.seconds.to_string()),
            ("--address", running.address.to_string()),
            ("--pid", running.pid.to_string()),
        ] {
            arguments.extend([option.to_owned(), value]);
        }
        let mut line = run_load(&arguments, self.placement, self.options.common.seconds, self.stop)
            .map_err(|error| format!("{error}{}", running.log()))?;
        let acknowledged = line["acknowledged_in_all"].as_f64().unwrap_or(0.0);
        if let Some(commits) = commits(&running, acknowledged) {
            line["messages_per_commit"] = (acknowledged / commits).into();
        }
        Ok(line)
    }
}

/// Commits of RingMQ's log until it had acknowledged so much; `None` where there is no such counter, or no commit. The
/// session that takes everything back causes commits too, so the figure is read as soon as a report has it: what is
/// counted is messages per commit over publishing and taking back.
fn commits(running: &Running, acknowledged: f64) -> Option<f64> {
    let ready: Value = serde_json::from_str(&fs::read_to_string(running.dir().join("ready.json")).ok()?).ok()?;
    let address = ready["http"].as_str().or_else(|| ready["http"]["address"].as_str())?;
    let address: SocketAddr = address.trim_start_matches("http://").parse().ok()?;
    let begin = Instant::now();
    while begin.elapsed() < REPORT_TIMEOUT {
        let page = metrics(address)?;
        if sum(&page, "ringmq_messages_received_total")? >= acknowledged {
            return sum(&page, "ringmq_log_commits_total").filter(|commits| *commits > 0.0);
        }
        thread::sleep(LOOK_INTERVAL);
    }
    None
}

fn metrics(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, REPORT_TIMEOUT).ok()?;
    stream.set_read_timeout(Some(REPORT_TIMEOUT)).ok()?;
    // Version 1.0: the answer ends with the connection and comes in one piece.
    stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    Some(page)
}

/// Sum of all samples of a metric.
fn sum(page: &str, metric: &str) -> Option<f64> {
    let samples = page.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        (series.split('{').next() == Some(metric)).then(|| value.parse::<f64>().ok())?
    });
    samples.reduce(|sum, value| sum + value)
}

/// All rounds of one load against one broker.
#[derive(Default)]
struct Cell {
    costs: Vec<f64>,
    rates: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    per_commit: Vec<f64>,
    faults: Vec<String>,
    runs: usize,
}

impl Cell {
    fn enter(&mut self, run: &Result<Value, String>) {
        self.runs += 1;
        let run = match run {
            Ok(run) => run,
            Err(error) => return self.faults.push(error.clone()),
        };
        let number = |name: &str| run.pointer(name).and_then(Value::as_f64);
        self.costs.extend(number("/cpu_ns_per_message"));
        let rate = number("/acknowledged").zip(number("/seconds"));
        self.rates.extend(rate.map(|(count, seconds)| count / seconds.max(1e-9)));
        self.p50_us.extend(number("/latency_us/p50"));
        self.p99_us.extend(number("/latency_us/p99"));
        self.per_commit.extend(number("/messages_per_commit"));
        if let Some(verdict) = run["verified"].as_str().filter(|verdict| *verdict != "ok") {
            self.faults.push(verdict.into());
        }
    }

    fn row(&self, load: &str, broker: &Broker) -> String {
        if let Some(missing) = broker.missing() {
            return format!("| {load} | {} | - | - | - | - | - | - | {missing} |", broker.name);
        }
        let number = |values: &[f64], decimals: usize, unit: &str| {
            median(values).map_or("-".into(), |value| format!("{value:.decimals$}{unit}"))
        };
        let low = self.costs.iter().copied().reduce(f64::min);
        let high = self.costs.iter().copied().reduce(f64::max);
        let spread = low.zip(high).zip(median(&self.costs)).filter(|(_, cost)| *cost > 0.0);
        let spread = spread.map(|((low, high), cost)| format!("{:.0} %", (high - low) * 100.0 / cost));
        let verified = match self.faults.first() {
            None => "ok".into(),
            Some(fault) => format!("{} of {} runs: {fault}", self.faults.len(), self.runs).replace('|', "/"),
        };
        format!(
            "| {load} | {} | {} | {} | {} | {} | {} | {} | {verified} |",
            broker.name,
            number(&self.costs, 0, " ns"),
            spread.unwrap_or("-".into()),
            number(&self.rates, 0, ""),
            number(&self.p50_us, 0, ""),
            number(&self.p99_us, 0, ""),
            number(&self.per_commit, 1, ""),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_shows_medians_and_the_first_fault() {
        let broker = Broker {
            name: "ringmq os".into(),
            recipe: Recipe::Ringmq { path: "/bin/sh".into(), shards: 1, env: vec![] },
        };
        let mut cell = Cell::default();
        for (cost, verified) in [(1000.0, "ok"), (3000.0, "1 lost"), (2000.0, "ok")] {
            cell.enter(&Ok(json!({
                "cpu_ns_per_message": cost, "acknowledged": 50, "seconds": 2.0, "messages_per_commit": 3.25,
                "latency_us": { "p50": 10.0, "p99": 20.0 }, "verified": verified
            })));
        }
        let row = cell.row("1 x 64", &broker);
        assert_eq!(row, "| 1 x 64 | ringmq os | 2000 ns | 100 % | 25 | 10 | 20 | 3.2 | 1 of 3 runs: 1 lost |");
        let mut failing = Cell::default();
        failing.enter(&Err("cannot connect".into()));
        assert!(failing.row("1 x 1", &broker).ends_with("| - | 1 of 1 runs: cannot connect |"));
    }

    #[test]
    fn samples_of_one_metric_are_added_and_no_other() {
        let page = "# HELP a_total x\na_total{shard=\"0\"} 3\na_total{shard=\"1\"} 4\na_total_more 9\n";
        assert_eq!(sum(page, "a_total"), Some(7.0));
        assert_eq!(sum(page, "b"), None);
    }
}
