//! Brokers as processes: how each is started on a free port with fair settings, how it shows that it is ready, and how
//! it surely ends. Called by `compare` and `durable`. Always true: a broker lives no longer than its [`Running`], and not longer than
//! this process even if that is killed.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use rustix::thread::sched_setaffinity;

use crate::process::cpu_set;

/// Longest wait for a broker to listen.
const READY_TIMEOUT: Duration = Duration::from_secs(15);
/// Time that a broker gets to end after SIGTERM; RingMQ promises five seconds.
const STOP_TIMEOUT: Duration = Duration::from_secs(6);
/// How often both are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Lines of a broker's own output that an error shows.
const LOG_LINES: usize = 8;

/// A broker that can be started.
#[derive(Clone, Debug)]
pub struct Broker {
    /// Its name in the table.
    pub name: String,
    /// How to start it.
    pub recipe: Recipe,
}

/// How to start a broker.
#[derive(Clone, Debug)]
pub enum Recipe {
    /// This executable as the null relay.
    Relay,
    /// `ringmq start` with its launch contract; `env` are further configuration keys.
    Ringmq { path: PathBuf, shards: usize, env: Vec<(&'static str, &'static str)> },
    /// mosquitto with a written configuration; `persistence` are its lines about the disk, in which `{dir}` is replaced.
    Mosquitto { path: PathBuf, persistence: &'static str },
    /// Words of a command line in which `{port}` and `{dir}` are replaced.
    Command(String),
}

/// A broker that runs.
pub struct Running {
    /// Root of its process tree.
    pub pid: u32,
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
    dir: PathBuf,
}

impl Broker {
    /// Why it cannot be started here, if it cannot.
    pub fn missing(&self) -> Option<String> {
        let path = match &self.recipe {
            Recipe::Relay => return None,
            Recipe::Ringmq { path, .. } | Recipe::Mosquitto { path, .. } => path.clone(),
            Recipe::Command(words) => words.split_ascii_whitespace().next().unwrap_or_default().into(),
        };
        let is_name = path.components().count() == 1;
        let found = path.is_file()
            || is_name
                && std::env::var_os("PATH")
                    .is_some_and(|dirs| std::env::split_paths(&dirs).any(|dir| dir.join(&path).is_file()));
        (!found).then(|| format!("not installed ({})", path.display()))
    }

    /// What it says its version is.
    pub fn version(&self) -> String {
        let (path, option) = match &self.recipe {
            Recipe::Relay => return format!("null relay of perf {}", env!("CARGO_PKG_VERSION")),
            Recipe::Ringmq { path, .. } => (path, "--version"),
            Recipe::Mosquitto { path, .. } => (path, "-h"),
            Recipe::Command(words) => return words.clone(),
        };
        let output = Command::new(path).arg(option).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or("version unknown").to_string()
    }

    /// Starts it in `dir`, a fresh directory of its own, on these CPUs (none: wherever the kernel likes).
    pub fn start(&self, dir: PathBuf, cpus: &[usize]) -> Result<Running, String> {
        fs::create_dir_all(&dir).map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
        let os = |error: io::Error| format!("cannot start {}: {error}", self.name);
        let address = SocketAddr::from(([127, 0, 0, 1], free_port().map_err(os)?));
        let mut command = self.command(&dir, address.port()).map_err(os)?;
        let log = File::create(dir.join("output.log")).map_err(os)?;
        command.stdin(std::process::Stdio::null()).stdout(log.try_clone().map_err(os)?).stderr(log);
        bind_to_us(&mut command, cpus)?;
        let child = command.spawn().map_err(os)?;
        let mut running = Running { pid: child.id(), address, child, dir };
        running.wait_until_ready(&self.recipe).map_err(|error| format!("{}: {error}", self.name))?;
        Ok(running)
    }

    fn command(&self, dir: &Path, port: u16) -> io::Result<Command> {
        Ok(match &self.recipe {
            Recipe::Relay => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["relay", "--bind", &format!("127.0.0.1:{port}")]);
                command
            }
            Recipe::Ringmq { path, shards, env } => {
                let mut command = Command::new(path);
                command
                    .arg("start")
                    .env("RINGMQ_LISTENERS__TCP__DEFAULT__BIND", format!("127.0.0.1:{port}"))
                    .env("RINGMQ_DATAPLANE__SHARDS", shards.to_string())
                    .env("RINGMQ_NODE__DATA_DIR", dir)
                    .env("RINGMQ_DASHBOARD__LISTENERS__HTTP__BIND", "127.0.0.1:0")
                    .envs(env.iter().copied());
                command
            }
            Recipe::Mosquitto { path, persistence } => {
                let config = dir.join("mosquitto.conf");
                let persistence = persistence.replace("{dir}", &dir.display().to_string());
                fs::write(&config, mosquitto_config(port, &persistence))?;
                let mut command = Command::new(path);
                command.arg("-c").arg(config);
                command
            }
            Recipe::Command(words) => {
                let replace =
                    |word: &str| word.replace("{port}", &port.to_string()).replace("{dir}", &dir.display().to_string());
                let mut words = words.split_ascii_whitespace().map(replace);
                let mut command = Command::new(words.next().unwrap_or_default());
                command.args(words);
                command
            }
        })
    }
}

/// mosquitto's lines about the disk when it has none.
pub const MEMORY_ONLY: &str = "persistence false";

/// Nothing that costs without being asked for: no log, no limit that would drop messages; no Nagle delay.
fn mosquitto_config(port: u16, persistence: &str) -> String {
    format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 65535\n\
         set_tcp_nodelay true\n{persistence}\nlog_dest none\nuser root\n"
    )
}

impl Running {
    fn wait_until_ready(&mut self, recipe: &Recipe) -> Result<(), String> {
        let begin = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("ended at once with {status}{}", self.log()));
            }
            let says_so = match recipe {
                Recipe::Ringmq { .. } => self.dir.join("ready.json").exists() || self.says_ready(),
                Recipe::Relay => self.says_ready(),
                Recipe::Mosquitto { .. } | Recipe::Command(_) => true,
            };
            if says_so && TcpStream::connect_timeout(&self.address, LOOK_INTERVAL).is_ok() {
                return Ok(());
            }
            if begin.elapsed() > READY_TIMEOUT {
                let waited = READY_TIMEOUT.as_secs();
                return Err(format!("did not listen on {} within {waited} s{}", self.address, self.log()));
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }

    fn says_ready(&self) -> bool {
        let output = fs::read_to_string(self.dir.join("output.log")).unwrap_or_default();
        output.lines().any(|line| line.starts_with("ready"))
    }

    /// Its directory, with what it has written there.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The last lines that the broker printed, for an error.
    pub fn log(&self) -> String {
        let output = fs::read_to_string(self.dir.join("output.log")).unwrap_or_default();
        let lines: Vec<&str> = output.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        if tail.is_empty() { String::new() } else { format!("; it printed: {}", tail.join(" / ")) }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // Fails only if the group is gone, which is what we want.
            let _ = kill_process_group(pid, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // Only the root: a supervisor tells its children itself.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begin.elapsed() < STOP_TIMEOUT {
            thread::sleep(LOOK_INTERVAL);
        }
        self.signal(Signal::KILL);
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Makes a process that is about to start end with us, lead its own group, and run on these CPUs.
pub fn bind_to_us(command: &mut Command, cpus: &[usize]) -> Result<(), String> {
    let set = if cpus.is_empty() { None } else { Some(cpu_set(cpus)?) };
    command.process_group(0);
    // SAFETY: between fork and exec only system calls are made, no allocation and no lock. `Command` offers neither the
    // death signal nor affinity, and a wrapper program would be the process that is measured.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            if let Some(set) = &set {
                sched_setaffinity(None, set)?;
            }
            Ok(())
        });
    }
    Ok(())
}

/// A port that was free a moment ago; each start takes a new one, so a socket in TIME_WAIT never matters.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("perf-test-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_broker_that_ends_at_once_is_an_error_with_its_output() {
        let broker = Broker { name: "liar".into(), recipe: Recipe::Command("cat {dir}/absent-{port}".into()) };
        let error = broker.start(dir("liar"), &[]).err().unwrap();
        assert!(error.starts_with("liar: ended at once with exit status: 1; it printed: cat:"), "{error}");
        assert!(!dir("liar").exists());
    }

    #[test]
    fn a_missing_executable_is_named() {
        let broker = |path: &str| Broker {
            name: "x".into(),
            recipe: Recipe::Mosquitto { path: path.into(), persistence: MEMORY_ONLY },
        };
        assert_eq!(broker("/nowhere/mosquitto").missing().unwrap(), "not installed (/nowhere/mosquitto)");
        assert_eq!(broker("sh").missing(), None);
    }
}
