//! A client that others wrote, run as a process: its lines as they come, its exit, all within bounds.
//!
//! Always true: the process is killed when the value is dropped, and a wait that fails shows what the
//! program printed until then.

use crate::process;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Where a program lies on the `PATH`. Debian keeps servers in `/usr/sbin`, which users lack there.
pub fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// What to run.
#[derive(Debug)]
pub struct Program {
    command: Command,
    shown: String,
}

impl Program {
    /// A program by name or path.
    pub fn new(program: impl AsRef<Path>) -> Self {
        let program = program.as_ref();
        Self { command: Command::new(program), shown: program.display().to_string() }
    }

    /// Adds arguments.
    pub fn args<S: AsRef<str>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        for argument in arguments {
            self.shown.push(' ');
            self.shown.push_str(argument.as_ref());
            self.command.arg(argument.as_ref());
        }
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, key: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("`{}` does not start: {error}", self.shown));
        process::keep(child.id());
        let (lines, received) = channel();
        let out = child.stdout.take().expect("the pipe was asked for");
        let err = child.stderr.take().expect("the pipe was asked for");
        let also = lines.clone();
        std::thread::spawn(move || pass_lines(BufReader::new(out), "", |line| lines.send(line).is_ok()));
        std::thread::spawn(move || {
            pass_lines(BufReader::new(err), "! ", |line| also.send(line).is_ok());
        });
        Running { stdin: child.stdin.take(), child, received, seen: Vec::new(), shown: self.shown }
    }

    /// Runs it to its end and requires success; gives what it printed.
    #[track_caller]
    pub fn succeed(self, bound: Duration) -> Vec<String> {
        let mut running = self.start();
        running.close_input();
        running.succeed(bound)
    }
}

fn pass_lines(from: impl BufRead, mark: &str, mut to: impl FnMut(String) -> bool) {
    for line in from.split(b'\n').map_while(Result::ok) {
        if !to(format!("{mark}{}", String::from_utf8_lossy(&line))) {
            return;
        }
    }
}

/// A program that runs. Lines of its standard error come with `! ` before them.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    received: Receiver<String>,
    seen: Vec<String>,
    shown: String,
}

impl Running {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to its standard input.
    #[track_caller]
    pub fn say(&mut self, line: &str) {
        let shown = &self.shown;
        let pipe = self.stdin.as_mut().expect("the input is open");
        pipe.write_all(format!("{line}\n").as_bytes())
            .and_then(|()| pipe.flush())
            .unwrap_or_else(|error| panic!("`{shown}` does not read: {error}"));
    }

    /// Ends its standard input.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// The next line that `pick` turns into a value; lines before it are passed over.
    #[track_caller]
    pub fn next<T>(&mut self, bound: Duration, what: &str, mut pick: impl FnMut(&str) -> Option<T>) -> T {
        let until = Instant::now() + bound;
        loop {
            match self.received.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let picked = pick(&line);
                    self.seen.push(line);
                    if let Some(value) = picked {
                        return value;
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.fail(&format!("no {what} within {bound:?}")),
                Err(RecvTimeoutError::Disconnected) => self.fail(&format!("it ended without {what}")),
            }
        }
    }

    /// What `pick` makes of the lines that have come until now, without waiting.
    pub fn so_far<T>(&mut self, mut pick: impl FnMut(&str) -> Option<T>) -> Vec<T> {
        let mut picked = Vec::new();
        while let Ok(line) = self.received.try_recv() {
            picked.extend(pick(&line));
            self.seen.push(line);
        }
        picked
    }

    /// Waits for its end: exit code, or `None` when a signal ended it.
    #[track_caller]
    pub fn wait(&mut self, bound: Duration) -> Option<i32> {
        let until = Instant::now() + bound;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    assert!(
                        status.core_dumped() || status.code().is_some() || status.signal().is_some(),
                        "an ended process has a code or a signal"
                    );
                    return status.code();
                }
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
                Ok(None) => self.fail(&format!("it still runs after {bound:?}")),
                Err(error) => self.fail(&format!("waiting failed: {error}")),
            }
        }
    }

    /// Waits for its end and requires success; gives every line it printed.
    #[track_caller]
    pub fn succeed(&mut self, bound: Duration) -> Vec<String> {
        let code = self.wait(bound);
        // Both readers end with the process, so this drains without a bound of its own.
        while let Ok(line) = self.received.recv_timeout(bound) {
            self.seen.push(line);
        }
        if code != Some(0) {
            self.fail(&format!("it ended with {code:?}"));
        }
        std::mem::take(&mut self.seen)
    }

    /// Kills it with SIGKILL: no farewell to the broker.
    pub fn kill(&mut self) {
        process::kill_tree(self.child.id());
        let _ = self.child.wait();
    }

    /// Panics with everything that the program has printed.
    #[track_caller]
    pub fn fail(&mut self, what: &str) -> ! {
        while let Ok(line) = self.received.try_recv() {
            self.seen.push(line);
        }
        let shown = &self.shown;
        panic!("`{shown}`: {what}; it printed:\n  {}", self.seen.join("\n  "));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let group = self.child.id();
        process::kill_tree(group);
        let _ = self.child.wait();
        process::release(group);
    }
}
