//! Starting the executable: what a node is given, and the two ways a start ends, ready or refused.
//! Called by tests through [`Setup`]; gives a [`Node`].
//!
//! Always true: a node has a data directory of its own, listens on loopback only, takes nothing from the
//! environment of the tests, and writes its output to files, so that a pipe nobody reads cannot stop it.

use crate::bound::{LONG, within, within_or};
use crate::node::{Home, Node};
use crate::{foreign, ports, process, ready};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct Setup {
    executable: PathBuf,
    name: String,
    shards: u16,
    mqtt: Option<SocketAddr>,
    http: Option<SocketAddr>,
    home: Option<PathBuf>,
    env: Vec<(String, String)>,
    wrapper: Vec<String>,
    config: Option<PathBuf>,
}

/// How a start that was refused ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it said, both streams.
    pub said: String,
}

impl Setup {
    /// A node of `executable` with one shard, its data and ports its own. Areas pass
    /// `env!("CARGO_BIN_EXE_ringmq")`, which only they can name.
    pub fn new(executable: &str) -> Self {
        Self {
            executable: PathBuf::from(executable),
            name: "n1@127.0.0.1".to_owned(),
            shards: 1,
            mqtt: None,
            http: None,
            home: None,
            env: Vec::new(),
            wrapper: Vec::new(),
            config: None,
        }
    }

    /// Number of shards.
    pub fn shards(mut self, shards: u16) -> Self {
        self.shards = shards;
        self
    }

    /// The node's name.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// An address for MQTT instead of a free one. With port 0 the kernel picks, anew at each start.
    pub fn mqtt(mut self, address: SocketAddr) -> Self {
        self.mqtt = Some(address);
        self
    }

    /// An address for HTTP instead of a free one. With port 0 the kernel picks, anew at each start.
    pub fn http(mut self, address: SocketAddr) -> Self {
        self.http = Some(address);
        self
    }

    /// A data directory of somebody else; it is not removed with the node.
    pub fn data_directory(mut self, directory: &Path) -> Self {
        self.home = Some(directory.to_owned());
        self
    }

    /// One more configuration key, `RINGMQ_` and `__` included.
    pub fn env(mut self, key: &str, value: impl Into<String>) -> Self {
        self.env.push((key.to_owned(), value.into()));
        self
    }

    /// A configuration file.
    pub fn config(mut self, file: &Path) -> Self {
        self.config = Some(file.to_owned());
        self
    }

    /// A program that is started instead and that gets the executable and its arguments as its own.
    pub fn under(mut self, wrapper: impl IntoIterator<Item = String>) -> Self {
        self.wrapper = wrapper.into_iter().collect();
        self
    }

    /// Starts the node and waits until it is ready.
    #[track_caller]
    pub fn start(&self) -> Node {
        let setup = self.placed();
        let home = Home::new(setup.home.as_deref());
        if foreign::executable().is_some() {
            return setup.start_foreign(home);
        }
        let child = setup.spawn(&home);
        let mut node = Node::starting(setup, home, child);
        node.wait_ready();
        node
    }

    /// Starts the node and requires that it ends by itself within `bound`.
    #[track_caller]
    pub fn refused(&self, bound: Duration) -> Ended {
        let setup = self.placed();
        let home = Home::new(setup.home.as_deref());
        let mut child = setup.spawn(&home);
        let group = child.id();
        let status = within_or(bound, || child.try_wait().ok().flatten());
        process::kill_tree(group);
        let _ = child.wait();
        process::release(group);
        let said = home.output();
        let Some(status) = status else {
            panic!("the node still runs after {bound:?}; it said:\n{said}");
        };
        Ended { code: status.code(), said }
    }

    /// Runs another subcommand of the executable for this node's environment, to its end.
    #[track_caller]
    pub fn run(&self, data: &Path, arguments: &[&str], bound: Duration) -> Ended {
        let mut command = Command::new(&self.executable);
        self.environment(&mut command, data);
        let child = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("the executable starts");
        let group = child.id();
        process::keep(group);
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(child.wait_with_output()));
        let output = ended.recv_timeout(bound);
        process::kill_tree(group);
        process::release(group);
        let output = output
            .unwrap_or_else(|_| panic!("`ringmq {}` still runs after {bound:?}", arguments.join(" ")))
            .expect("a child can be waited for");
        Ended {
            code: output.status.code(),
            said: format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// The same with addresses filled in. Not port 0 for both: a child that is started again must be found
    /// where it was.
    fn placed(&self) -> Self {
        let mut placed = self.clone();
        placed.mqtt.get_or_insert_with(ports::free);
        placed.http.get_or_insert_with(ports::free);
        placed
    }

    /// Starts the executable again for a node whose processes have ended.
    pub(crate) fn spawn(&self, home: &Home) -> Child {
        let mut command = match self.wrapper.split_first() {
            None => Command::new(&self.executable),
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(&self.executable);
                command
            }
        };
        self.environment(&mut command, home.data());
        let (out, err) = home.capture();
        command.arg("start");
        if let Some(file) = &self.config {
            command.arg("--config").arg(file);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", self.executable.display()));
        process::keep(child.id());
        child
    }

    fn environment(&self, command: &mut Command, data: &Path) {
        for (key, _) in std::env::vars_os() {
            if key.to_str().is_some_and(|key| key.starts_with("RINGMQ_")) {
                command.env_remove(key);
            }
        }
        // Even a knob that is missed below must not reach into the home of whoever runs the tests.
        command
            .env("HOME", data)
            .env("XDG_STATE_HOME", data)
            .env("XDG_CONFIG_HOME", data)
            .env("RINGMQ_NODE__NAME", &self.name)
            .env("RINGMQ_NODE__DATA_DIR", data)
            .env("RINGMQ_DATAPLANE__SHARDS", self.shards.to_string())
            .env("RUST_BACKTRACE", "1");
        for (key, address) in [
            ("RINGMQ_LISTENERS__TCP__DEFAULT__BIND", self.mqtt),
            ("RINGMQ_DASHBOARD__LISTENERS__HTTP__BIND", self.http),
        ] {
            command.envs(address.map(|address| (key, address.to_string())));
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
    }

    fn start_foreign(&self, home: Home) -> Node {
        let program = foreign::executable().expect("asked for by the caller");
        let mqtt = self.mqtt.expect("filled in by the caller");
        let (out, err) = home.capture();
        let child = Command::new(program)
            .args(foreign::arguments(home.data(), mqtt))
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .expect("the foreign broker starts");
        process::keep(child.id());
        within(LONG, "the foreign broker accepts", || std::net::TcpStream::connect(mqtt).ok());
        let ready =
            ready::Ready { mqtt, listeners: Vec::new(), http: mqtt, shards: self.shards, pids: [child.id(); 3] };
        Node::foreign(self.clone(), home, child, ready)
    }
}
