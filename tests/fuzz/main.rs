//! The fuzzer's targets as an ordinary test on stable: each takes its corpus (`tests/fuzz/corpus/<target>`), and a fixed
//! number of mutations of it that come from seeds. What fails is printed as hex, with its seed; the fuzzer itself
//! (`cargo +nightly fuzz run --fuzz-dir tests/fuzz <target>`) looks further.

use std::{
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

use harness::Rng;
use targets::{TARGETS, Target};

/// Mutations of one target: all of them together take a few seconds without optimisation.
const MUTATIONS: u64 = 4_000;
/// Accidents of one mutation.
const ACCIDENTS_MAX: u64 = 6;
/// Bytes that matter to somebody: lengths, wildcards, separators, quotes, flags.
const TELLING: &[u8] = b"\0\x01\x02\x7f\x80\x81\xfe\xff+#/$%\"\\'{}[]()=,.:; \n\r\t\xc0\xed";

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target.name);
    let entries = fs::read_dir(&directory).unwrap_or_else(|why| panic!("{}: {why}", directory.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    files.sort();
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        assert!(bytes.len() <= target.bytes_max, "{} is longer than the fuzzer looks", path.display());
        (path, bytes)
    };
    files.into_iter().map(read).collect()
}

/// Runs a target, and says with what it failed.
#[track_caller]
fn run(target: &Target, bytes: &[u8], from: &str) {
    let run = target.run;
    if catch_unwind(|| run(bytes)).is_err() {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("target {} failed with {from}: {hex}", target.name);
    }
}

/// One to a few accidents.
fn mutated(rng: &mut Rng, seeds: &[(PathBuf, Vec<u8>)], bytes_max: usize) -> Vec<u8> {
    let mut bytes = seeds[rng.below(seeds.len() as u64) as usize].1.clone();
    for _ in 0..rng.between(1, ACCIDENTS_MAX) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        let telling = TELLING[rng.below(TELLING.len() as u64) as usize];
        match (rng.below(8), bytes.get_mut(at)) {
            (0, Some(byte)) => *byte ^= 1 << rng.below(8),
            (1, Some(byte)) => *byte = rng.any() as u8,
            (2, Some(byte)) => *byte = telling,
            (3, _) => bytes.truncate(at),
            (4, _) => bytes.insert(at, telling),
            (5, Some(_)) => drop(bytes.drain(at..bytes.len().min(at + 1 + rng.below(8) as usize))),
            (6, _) => {
                let to = bytes.len().min(at + rng.below(40) as usize);
                let again = bytes[at..to].to_vec();
                bytes.splice(at..at, again);
            }
            (7, _) => {
                let other = &seeds[rng.below(seeds.len() as u64) as usize].1;
                let from = rng.below(other.len() as u64 + 1) as usize;
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => bytes.push(telling),
        }
    }
    bytes.truncate(bytes_max);
    bytes
}

/// A test for each target, so that they run beside each other.
macro_rules! survives {
    ($($test:ident: $target:literal),* $(,)?) => {
        /// The targets that have a test here.
        const TESTED: &[&str] = &[$($target),*];

        $(#[test]
        fn $test() {
            survives($target);
        })*
    };
}

survives! {
    packets_survive_their_corpus_and_its_mutations: "packet",
    connections_survive_their_corpus_and_its_mutations: "connection",
    filters_survive_their_corpus_and_its_mutations: "filters",
    websockets_survive_their_corpus_and_its_mutations: "websocket",
    proxy_headers_survive_their_corpus_and_its_mutations: "proxy",
    password_files_survive_their_corpus_and_its_mutations: "password",
    access_rules_survive_their_corpus_and_its_mutations: "acl",
    configurations_survive_their_corpus_and_its_mutations: "config",
    links_survive_their_corpus_and_its_mutations: "links",
    records_survive_their_corpus_and_its_mutations: "records",
}

fn survives(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let seeds = corpus(target);
    assert!(!seeds.is_empty(), "{name} has no corpus");
    for (path, bytes) in &seeds {
        run(target, bytes, &path.display().to_string());
    }
    for seed in 0..MUTATIONS {
        let bytes = mutated(&mut Rng::new(seed), &seeds, target.bytes_max);
        run(target, &bytes, &format!("seed {seed}"));
    }
}

#[test]
fn every_target_is_tested_here_and_has_a_fuzzer() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    let manifest = fs::read_to_string(directory.join("Cargo.toml")).expect("the fuzzer's manifest");
    for target in TARGETS {
        assert!(TESTED.contains(&target.name), "{} has no test", target.name);
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{} has no fuzzer", target.name);
        let source = directory.join("fuzz_targets").join(target.name).with_extension("rs");
        let source = fs::read_to_string(&source).unwrap_or_else(|why| panic!("{}: {why}", source.display()));
        assert!(source.contains(&format!("targets::{}(data)", target.name)), "{source}");
    }
    assert_eq!(TESTED.len(), TARGETS.len());
}

#[test]
#[should_panic(expected = "target weak failed with seed 7: 6f7570")]
fn a_target_that_fails_says_with_what() {
    let weak = Target { name: "weak", run: |bytes| assert_ne!(bytes, b"oup"), bytes_max: 10 };
    run(&weak, b"oup", "seed 7");
}
