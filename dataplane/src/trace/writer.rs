//! The thread that writes traces. It only appends to files that are there: control makes a trace's file with the trace and
//! removes it with it. Always true: no file grows beyond [`FILE_BYTES_MAX`].

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Instant,
};

use contract::{
    repeats::Repeats,
    trace::{FILE_BYTES_MAX, Trace},
};

use super::{LINES_MAX, Line, show};

const FULL: &str = "-- the file is full, the rest is not written\n";

/// Writes until every way to it is gone.
pub(super) fn run(directory: &Path, lines: &mpsc::Receiver<Line>, lost: &AtomicU64) {
    let (started, mut told, mut repeats) = (Instant::now(), 0, Repeats::default());
    while let Ok(first) = lines.recv() {
        let mut texts: Vec<(Arc<Trace>, String)> = Vec::new();
        for line in [first].into_iter().chain(lines.try_iter().take(LINES_MAX)) {
            let text = show::line(&line);
            match texts.iter_mut().find(|(trace, _)| trace.name == line.trace.name) {
                Some((_, texts)) => texts.push_str(&text),
                None => texts.push((line.trace, text)),
            }
        }
        let lost = lost.load(Ordering::Relaxed);
        for (trace, mut text) in texts {
            if lost > told {
                text.push_str(&format!("-- {} lines of all traces were lost here\n", lost - told));
            }
            if let Err(error) = append(&directory.join(trace.file()), &text)
                && repeats.allows(error.raw_os_error(), started.elapsed().as_micros() as u64)
            {
                tracing::warn!(trace = trace.name, %error, "a trace cannot be written");
            }
        }
        told = lost;
    }
}

/// Appends to a file that is there. One that is gone belongs to a trace that is gone.
pub(super) fn append(path: &Path, text: &str) -> io::Result<()> {
    let mut file = match OpenOptions::new().append(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let room = FILE_BYTES_MAX.saturating_sub(file.metadata()?.len()) as usize;
    if text.len() + FULL.len() <= room {
        return file.write_all(text.as_bytes());
    }
    let fitting = &text.as_bytes()[..text.len().min(room.saturating_sub(FULL.len()))];
    let lines = fitting.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    file.write_all(&fitting[..lines])?;
    if room >= FULL.len() {
        // What is left is filled, so that this is said once.
        file.write_all(FULL.as_bytes())?;
        let gap = room - lines - FULL.len();
        file.write_all("\n".repeat(gap).as_bytes())?;
    }
    Ok(())
}
