//! The simulation: clusters of shards in one thread under a virtual clock, from one seed, judged by an
//! oracle that knows only what clients sent and heard.
//!
//! `cargo test --test simulation` runs a fixed number of seeds and finds every planted fault;
//! `-- --seed N [--trace]` replays one, `-- --seeds N [--from M]` runs many, `-- --plant NAME [--seed N]`
//! hunts one planted fault (`--seeds N`: longer).

mod client;
mod coverage;
mod links;
mod mailbox;
mod net;
mod oracle;
mod plan;
mod rng;
mod run;
mod shard;
mod world;

use std::{
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use broker::plant::Plant;

use crate::coverage::Coverage;

/// Seeds of an ordinary run, and most seeds until a planted fault must be found.
const SEEDS: u64 = 500;

/// What the command line asks for.
#[derive(Default)]
struct Asked {
    seed: Option<u64>,
    seeds: Option<u64>,
    from: u64,
    plant: Option<String>,
    trace: bool,
}

fn main() -> ExitCode {
    let asked = match read_arguments() {
        Ok(asked) => asked,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    // A panic of the code under test is a verdict of its seed; its text is in the verdict.
    if !asked.trace {
        std::panic::set_hook(Box::new(|_| {}));
    }
    let (passed, failed) = match (&asked.plant, asked.seed) {
        (Some(name), seed) => hunt_named(name, seed, asked.seeds.unwrap_or(SEEDS), asked.trace),
        (None, Some(seed)) => replay(seed, asked.trace),
        (None, None) if asked.seeds.is_some() => many(asked.from, asked.seeds.unwrap_or(SEEDS), false),
        (None, None) => {
            let (passed, failed) = many(0, SEEDS, true);
            let (found, missed) = hunt_all();
            (passed + found, failed + missed)
        }
    };
    println!("{passed} passed, {failed} failed");
    ExitCode::from(u8::from(failed > 0))
}

fn read_arguments() -> Result<Asked, String> {
    let mut asked = Asked::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next().and_then(|value| value.parse().ok());
            value.ok_or(format!("{argument} needs a number"))
        };
        match argument.as_str() {
            "--seed" => asked.seed = Some(number()?),
            "--seeds" => asked.seeds = Some(number()?),
            "--from" => asked.from = number()?,
            "--trace" => asked.trace = true,
            "--plant" => asked.plant = Some(arguments.next().ok_or("--plant needs a name")?),
            // What cargo and its users pass to every test.
            "--nocapture" | "--quiet" | "-q" => {}
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(asked)
}

/// Runs seeds on all processors until one fails; judges the coverage of all of them.
fn many(from: u64, seeds: u64, judged: bool) -> (u64, u64) {
    let coverage = Mutex::new(Coverage::default());
    let failure = first_failure(from, seeds, None, &coverage);
    let coverage = coverage.into_inner().unwrap_or_default();
    println!("{seeds} seeds from {from}:");
    coverage.print();
    if let Some((seed, why)) = failure {
        report(seed, None, &why);
        return (seed - from, 1);
    }
    let missing = coverage.missing();
    if judged && !missing.is_empty() {
        println!("FAILED: this run never touched {missing:?}");
        return (seeds, 1);
    }
    (seeds, 0)
}

/// The failure of the smallest seed that was tried and failed.
fn first_failure(from: u64, seeds: u64, plant: Option<Plant>, sum: &Mutex<Coverage>) -> Option<(u64, String)> {
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let failure: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + seeds {
                break;
            }
            let (verdict, touched) = run::run(seed, plant, false);
            if let Ok(mut sum) = sum.lock() {
                sum.add(&touched);
            }
            if let Err(why) = verdict
                && let Ok(mut failure) = failure.lock()
            {
                stop.store(true, Ordering::Relaxed);
                if failure.as_ref().is_none_or(|(known, _)| seed < *known) {
                    *failure = Some((seed, why));
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    failure.into_inner().unwrap_or_default()
}

fn replay(seed: u64, trace: bool) -> (u64, u64) {
    match run::run(seed, None, trace) {
        (Ok(()), coverage) => {
            coverage.print();
            (1, 0)
        }
        (Err(why), _) => {
            report(seed, None, &why);
            (0, 1)
        }
    }
}

fn report(seed: u64, plant: Option<&str>, why: &str) {
    let plant = plant.map(|name| format!("--plant {name} ")).unwrap_or_default();
    println!("FAILED: seed {seed}: {why}");
    println!("replay: cargo test --test simulation -- {plant}--seed {seed} --trace");
}

fn hunt_all() -> (u64, u64) {
    let found = Plant::ALL.iter().filter(|(name, plant)| hunt(name, *plant, SEEDS)).count() as u64;
    (found, Plant::ALL.len() as u64 - found)
}

/// True if the oracle finds a planted fault.
fn hunt(name: &str, plant: Plant, seeds: u64) -> bool {
    match first_failure(0, seeds, Some(plant), &Mutex::new(Coverage::default())) {
        Some((seed, why)) => {
            let first = why.lines().next().unwrap_or_default();
            println!("planted {name}: found by seed {seed} ({first})");
            true
        }
        None => {
            println!("FAILED: planted {name} was not found in {seeds} seeds");
            false
        }
    }
}

fn hunt_named(name: &str, seed: Option<u64>, seeds: u64, trace: bool) -> (u64, u64) {
    let Some((name, plant)) = Plant::ALL.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = Plant::ALL.iter().map(|(name, _)| *name).collect();
        println!("FAILED: no planted fault has the name {name}; there are {names:?}");
        return (0, 1);
    };
    let found = match seed {
        None => hunt(name, *plant, seeds),
        Some(seed) => match run::run(seed, Some(*plant), trace).0 {
            Err(why) => {
                report(seed, Some(name), &why);
                true
            }
            Ok(()) => {
                println!("planted {name}: not found by seed {seed}");
                false
            }
        },
    };
    (u64::from(found), u64::from(!found))
}
