//! The simulation: clusters of shards in one thread under a virtual clock, from one seed, judged by an
//! oracle that knows only what clients sent and heard.
//!
//! `cargo test --test simulation` runs a fixed number of seeds of four kinds of worlds and finds every planted fault;
//! `-- --seed N [--trace]` replays one, `-- --seeds N [--from M]` runs many, `-- --plant NAME [--seed N]`
//! hunts one planted fault (`--seeds N`: longer). `--worlds memory|disks|power|trouble` says which worlds: without
//! crashes (the default), with crashes and logs on fast and slow disks, with nothing but power losses and flushed logs,
//! or with crashes and disks that fail and are full.
//! The environment says the same: `SIMULATION_WORLDS=power SIMULATION_SEEDS=10000 cargo test --release --test
//! simulation` runs ten thousand seeds of power losses.

mod client;
mod coverage;
mod disk;
mod links;
mod mailbox;
mod net;
mod node;
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

use crate::{
    coverage::Coverage,
    plan::{Plant, Worlds},
};

/// Seeds of an ordinary run without crashes, and most seeds until a planted fault must be found.
const SEEDS: u64 = 500;
/// Seeds of an ordinary run with crashes, and with power losses only.
const SEEDS_OF_DISKS: u64 = 80;
const SEEDS_OF_POWER: u64 = 200;
/// The same with disks that fail.
const SEEDS_OF_TROUBLE: u64 = 60;

/// What the command line asks for.
#[derive(Default)]
struct Asked {
    seed: Option<u64>,
    seeds: Option<u64>,
    from: u64,
    worlds: Option<Worlds>,
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
    let worlds = asked.worlds.unwrap_or(Worlds::Memory);
    let (passed, failed) = match (&asked.plant, asked.seed, asked.seeds) {
        (Some(name), seed, seeds) => hunt_named(name, seed, seeds.unwrap_or(SEEDS), asked.trace),
        (None, Some(seed), _) => replay(seed, worlds, asked.trace),
        (None, None, Some(seeds)) => many(asked.from, seeds, worlds, &[]),
        (None, None, None) => everything(),
    };
    println!("{passed} passed, {failed} failed");
    ExitCode::from(u8::from(failed > 0))
}

/// What an ordinary run does.
fn everything() -> (u64, u64) {
    let runs = [
        many(0, SEEDS, Worlds::Memory, coverage::REQUIRED),
        many(0, SEEDS_OF_DISKS, Worlds::Disks, coverage::REQUIRED_OF_DISKS),
        many(0, SEEDS_OF_POWER, Worlds::Power, &[]),
        many(0, SEEDS_OF_TROUBLE, Worlds::Trouble, coverage::REQUIRED_OF_TROUBLE),
        hunt_all(),
    ];
    runs.into_iter().fold((0, 0), |(passed, failed), run| (passed + run.0, failed + run.1))
}

fn worlds(name: &str) -> Result<Worlds, String> {
    let known = Worlds::ALL.iter().find(|(known, _)| *known == name);
    known.map(|(_, worlds)| *worlds).ok_or(format!("no worlds have the name {name}"))
}

fn read_arguments() -> Result<Asked, String> {
    let mut asked = Asked::default();
    if let Ok(name) = std::env::var("SIMULATION_WORLDS") {
        asked.worlds = Some(worlds(&name)?);
    }
    if let Ok(seeds) = std::env::var("SIMULATION_SEEDS") {
        asked.seeds = Some(seeds.parse().map_err(|_| "SIMULATION_SEEDS must be a number")?);
    }
    if let Ok(from) = std::env::var("SIMULATION_FROM") {
        asked.from = from.parse().map_err(|_| "SIMULATION_FROM must be a number")?;
    }
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
            "--worlds" => asked.worlds = Some(worlds(&arguments.next().ok_or("--worlds needs a name")?)?),
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
fn many(from: u64, seeds: u64, worlds: Worlds, required: &[&'static str]) -> (u64, u64) {
    let coverage = Mutex::new(Coverage::default());
    let failure = first_failure(from, seeds, worlds, None, &coverage);
    let coverage = coverage.into_inner().unwrap_or_default();
    println!("{seeds} seeds from {from}, worlds {worlds:?}:");
    coverage.print();
    if let Some((seed, why)) = failure {
        report(seed, worlds, None, &why);
        return (seed - from, 1);
    }
    let missing = coverage.missing(required);
    if !missing.is_empty() {
        println!("FAILED: this run never touched {missing:?}");
        return (seeds, 1);
    }
    (seeds, 0)
}

/// The failure of the smallest seed that was tried and failed.
fn first_failure(
    from: u64,
    seeds: u64,
    worlds: Worlds,
    plant: Option<Plant>,
    sum: &Mutex<Coverage>,
) -> Option<(u64, String)> {
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let failure: Mutex<Option<(u64, String)>> = Mutex::new(None);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + seeds {
                break;
            }
            let (verdict, touched) = run::run(seed, worlds, plant, false);
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

fn replay(seed: u64, worlds: Worlds, trace: bool) -> (u64, u64) {
    match run::run(seed, worlds, None, trace) {
        (Ok(()), coverage) => {
            coverage.print();
            (1, 0)
        }
        (Err(why), _) => {
            report(seed, worlds, None, &why);
            (0, 1)
        }
    }
}

fn report(seed: u64, worlds: Worlds, plant: Option<&str>, why: &str) {
    let plant = plant.map(|name| format!("--plant {name} ")).unwrap_or_default();
    let worlds = Worlds::ALL.iter().find(|(_, known)| *known == worlds).map_or("", |(name, _)| name);
    println!("FAILED: seed {seed}: {why}");
    println!("replay: cargo test --test simulation -- {plant}--worlds {worlds} --seed {seed} --trace");
}

/// Every planted fault: its name, what it is, and the worlds in which it shows.
fn plants() -> Vec<(&'static str, Plant, Worlds)> {
    use broker::plant::Plant as Fault;
    let worlds = |fault| match fault {
        Fault::AckBeforeLog | Fault::WatermarkMissing => Worlds::Power,
        Fault::DoneBeforeLog | Fault::PacketIdAfterSend => Worlds::Disks,
        _ => Worlds::Memory,
    };
    let broker = Fault::ALL.iter().map(|(name, fault)| (*name, Plant::Broker(*fault), worlds(*fault)));
    let log = log::plant::Plant::ALL.iter().filter(|(_, fault)| {
        use log::plant::Plant as Fault;
        // The others need what only the tests of the crate do to a disk.
        matches!(fault, Fault::DurableBeforeSync | Fault::DurableBeforeWrite)
    });
    broker.chain(log.map(|(name, fault)| (*name, Plant::Log(*fault), Worlds::Power))).collect()
}

fn hunt_all() -> (u64, u64) {
    let plants = plants();
    let found = plants.iter().filter(|(name, plant, worlds)| hunt(name, *plant, *worlds, SEEDS)).count() as u64;
    (found, plants.len() as u64 - found)
}

/// True if the oracle finds a planted fault.
fn hunt(name: &str, plant: Plant, worlds: Worlds, seeds: u64) -> bool {
    match first_failure(0, seeds, worlds, Some(plant), &Mutex::new(Coverage::default())) {
        Some((seed, why)) => {
            let first = why.lines().next().unwrap_or_default();
            println!("planted {name}: found by seed {seed} ({first})");
            // What fails without the fault, too, says nothing about it.
            let sound = run::run(seed, worlds, None, false).0;
            if let Err(why) = &sound {
                report(seed, worlds, None, why);
            }
            sound.is_ok()
        }
        None => {
            println!("FAILED: planted {name} was not found in {seeds} seeds");
            false
        }
    }
}

fn hunt_named(name: &str, seed: Option<u64>, seeds: u64, trace: bool) -> (u64, u64) {
    let plants = plants();
    let Some((name, plant, worlds)) = plants.iter().find(|(known, ..)| *known == name) else {
        let names: Vec<&str> = plants.iter().map(|(name, ..)| *name).collect();
        println!("FAILED: no planted fault has the name {name}; there are {names:?}");
        return (0, 1);
    };
    let found = match seed {
        None => hunt(name, *plant, *worlds, seeds),
        Some(seed) => match run::run(seed, *worlds, Some(*plant), trace).0 {
            Err(why) => {
                report(seed, *worlds, Some(name), &why);
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
