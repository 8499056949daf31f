//! `ringmq log`: looks at the log of a node that does not run, or repairs it. The exit status is 0 when a node starts on it,
//! 1 when it is damaged, 2 when nothing can be said.

use std::{
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Subcommand;
use dataplane::log_tools::{self, Outcome};

use crate::{
    lock::{self, Lock},
    settings,
};

#[derive(Subcommand)]
pub(crate) enum Task {
    /// Read all of it, and say how it is.
    Check,
    /// Write a damaged one anew with everything that is valid in it; the damaged files are kept.
    Repair,
    /// Print every record as a line of JSON.
    Dump,
}

/// Carries out a task while no node can use the data directory.
pub(crate) fn run(file: Option<&Path>, data_dir: Option<&Path>, task: &Task) -> ExitCode {
    let outcome = data(file, data_dir).and_then(|data| {
        let lock = |name| Lock::take(&data, name).map_err(|why| format!("{why}\nthe node has to be stopped for this"));
        let _locks = (lock(lock::NODE)?, lock(lock::DATAPLANE)?);
        let mut out = BufWriter::new(io::stdout().lock());
        let done = match task {
            Task::Check => log_tools::check(&data, &mut out),
            Task::Repair => log_tools::repair(&data, &mut out),
            Task::Dump => log_tools::dump(&data, &mut out, &mut io::stderr()),
        };
        match done.and_then(|outcome| out.flush().map(|()| outcome)) {
            // A reader that closed its end, as `head` does, is no failure.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Outcome::Fine),
            done => done.map_err(|error| error.to_string()),
        }
    });
    match outcome {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Damaged) => ExitCode::from(1),
        Ok(Outcome::Unreadable) => ExitCode::from(2),
        Err(why) => {
            why.lines().for_each(|line| eprintln!("ringmq: {line}"));
            ExitCode::from(2)
        }
    }
}

fn data(file: Option<&Path>, data_dir: Option<&Path>) -> Result<PathBuf, String> {
    match data_dir {
        Some(path) => Ok(path.to_owned()),
        None => settings::load(file).map(|loaded| PathBuf::from(loaded.config.node.data_dir)),
    }
}
