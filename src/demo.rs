//! `ringmq demo`: two one-node clusters on loopback, linked to each other; shows what crosses and what stays.
//! Each is an ordinary `ringmq start` with its settings in the environment; nothing here is a short cut.
//! Owns the two child processes and their temporary data directories until Ctrl-C.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use contract::report::Report;
use mqtt::{
    codec::{self, Connect, ConnectProperties, Packet, SubscribeEntry, encode},
    types::{PacketId, Qos, RetainHandling, Version},
};
use serde_json::Value;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
    iterator::Signals,
};

/// Time for a node to say that it is ready, for a link to come up, for a message to arrive.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often something is looked at again while waiting.
const LOOK: Duration = Duration::from_millis(20);

/// Runs the demo; `stay` leaves the clusters up until Ctrl-C.
pub fn run(stay: bool) -> ExitCode {
    match show(stay) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show(stay: bool) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, stopped.clone())?;
    }
    let (eu_port, us_port) = free_ports()?;
    println!("Starting two clusters of one node each, linked over MQTT:\n");
    let eu = Node::start("eu-west", eu_port, ("us-east", us_port), &stopped)?;
    let us = Node::start("us-east", us_port, ("eu-west", eu_port), &stopped)?;
    for node in [&eu, &us] {
        println!("  {:<8} mqtt://127.0.0.1:{}   {}", node.name, node.port, node.wait_ready()?);
    }
    eu.wait_link("connected")?;
    us.wait_link("connected")?;
    println!("\nBoth links are up. A subscriber on eu-west, a publisher on us-east:\n");

    let mut subscriber = Client::connect(eu.port, "demo-subscriber")?;
    subscriber.subscribe("factory/+/temperature")?;
    println!("  eu-west> subscribe factory/+/temperature");
    us.wait("the route of the subscriber", |report| routes(report) >= Some(1))?;
    println!("           us-east now knows that eu-west wants it");

    let mut publisher = Client::connect(us.port, "demo-publisher")?;
    let before = us.crossed()?;
    publisher.publish("factory/7/temperature", "21.5")?;
    println!("  us-east> publish factory/7/temperature 21.5");
    let (topic, payload) = subscriber.receive()?;
    println!("  eu-west> received {topic} {payload}");
    us.wait("the counter of what crossed", |report| crossed(report) > before)?;
    println!("           us-east sent {} message over the link", us.crossed()? - before);

    let before = us.crossed()?;
    for line in 0..100 {
        publisher.publish(&format!("factory/{line}/vibration"), "0.3")?;
    }
    println!("\n  us-east> publish factory/*/vibration, 100 times: nobody on eu-west asked for it");
    println!("           us-east sent {} messages over the link", us.crossed()? - before);

    subscriber.unsubscribe("factory/+/temperature")?;
    us.wait("the withdrawal of the route", |report| routes(report) == Some(0))?;
    publisher.publish("factory/7/temperature", "22.0")?;
    println!("\n  eu-west> unsubscribe factory/+/temperature");
    println!("  us-east> publish factory/7/temperature 22.0");
    println!("           us-east sent {} messages over the link", us.crossed()? - before);

    if stay {
        println!("\nBoth clusters stay up. Try it with any client:\n");
        println!("  mosquitto_sub -p {} -t 'demo/#' -v", eu.port);
        println!("  mosquitto_pub -p {} -t demo/hello -m 'across the ocean'\n", us.port);
        println!("Ctrl-C ends both.");
        signals.forever().next();
    }
    Ok(())
}

/// Two ports that nobody listens on now. A port can be taken in between; then its node says so and ends.
fn free_ports() -> io::Result<(u16, u16)> {
    let first = TcpListener::bind("127.0.0.1:0")?;
    let second = TcpListener::bind("127.0.0.1:0")?;
    Ok((first.local_addr()?.port(), second.local_addr()?.port()))
}

fn other(what: impl Into<String>) -> io::Error {
    io::Error::other(what.into())
}

/// One cluster: a `ringmq start` of its own.
struct Node {
    name: &'static str,
    port: u16,
    directory: PathBuf,
    child: Child,
    /// Ctrl-C came.
    stopped: Arc<AtomicBool>,
}

impl Node {
    fn start(
        name: &'static str,
        port: u16,
        (remote, remote_port): (&str, u16),
        stopped: &Arc<AtomicBool>,
    ) -> io::Result<Node> {
        let directory = std::env::temp_dir().join(format!("ringmq-demo-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let link = format!("[{{name=\"{remote}\",server=\"127.0.0.1:{remote_port}\",topics=[\"#\"]}}]");
        let log = std::fs::File::create(directory.join("log"))?;
        let child = Command::new(std::env::current_exe()?)
            .arg("start")
            .env("RINGMQ_CLUSTER__NAME", name)
            .env("RINGMQ_NODE__NAME", format!("{name}@127.0.0.1"))
            .env("RINGMQ_NODE__DATA_DIR", &directory)
            .env("RINGMQ_LISTENERS__TCP__DEFAULT__BIND", format!("127.0.0.1:{port}"))
            .env("RINGMQ_DASHBOARD__LISTENERS__HTTP__BIND", "127.0.0.1:0")
            .env("RINGMQ_CLUSTER__LINKS", link)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Node { name, port, directory, child, stopped: stopped.clone() })
    }

    /// Waits for `ready.json`; says what serves.
    fn wait_ready(&self) -> io::Result<String> {
        let path = self.directory.join("ready.json");
        let ready = self.until("it is ready", || {
            let text = std::fs::read_to_string(&path).ok()?;
            serde_json::from_str::<Value>(&text).ok()
        })?;
        Ok(format!("{} shards, status on http://{}", ready["shards"], ready["http"].as_str().unwrap_or("?")))
    }

    fn wait_link(&self, wanted: &str) -> io::Result<()> {
        self.wait("its link", |report| report.links.first().is_some_and(|link| link.status == wanted))
    }

    fn wait(&self, what: &str, good: impl Fn(&Report) -> bool) -> io::Result<()> {
        self.until(what, || self.report().filter(&good))?;
        Ok(())
    }

    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> io::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if self.stopped.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if Instant::now() > deadline {
                return Err(other(format!("{}: {what} did not come; its log is {}", self.name, self.log().display())));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn log(&self) -> PathBuf {
        // Kept when something went wrong: whoever reads the message wants to read the file.
        let kept = std::env::temp_dir().join(format!("ringmq-demo-{}.log", self.name));
        let _ = std::fs::copy(self.directory.join("log"), &kept);
        kept
    }

    /// What `ringmq ctl status` is told: the last report of the data plane.
    fn report(&self) -> Option<Report> {
        control::ctl::status(&self.directory).ok()?.report
    }

    /// Messages that this node has sent over its link.
    fn crossed(&self) -> io::Result<u64> {
        // A report is a second old at most: wait for one that was made after this call.
        let now = self.report().map_or(0, |report| report.number);
        self.until("a fresh report", || {
            self.report().filter(|report| report.number > now + 1).map(|report| crossed(&report))
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
        remove(&self.directory);
    }
}

fn remove(directory: &Path) {
    if let Err(error) = std::fs::remove_dir_all(directory) {
        eprintln!("demo: {} stays: {error}", directory.display());
    }
}

fn routes(report: &Report) -> Option<u64> {
    report.links.first().map(|link| link.routes)
}

fn crossed(report: &Report) -> u64 {
    report.counter("link_sent")
}

/// A client of a few lines: one packet at a time, MQTT 5, QoS 1.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    next_id: u16,
}

impl Client {
    fn connect(port: u16, client_id: &str) -> io::Result<Client> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut client = Client { stream, buffer: Vec::new(), next_id: 0 };
        let mut bytes = Vec::new();
        let connect = Connect {
            version: Version::V5,
            clean_start: true,
            keep_alive_s: 0,
            client_id,
            username: None,
            password: None,
            will: None,
            properties: ConnectProperties::default(),
            bridge: false,
        };
        encode::connect(&mut bytes, &connect);
        client.ask(&bytes, |packet| matches!(packet, Packet::Connack(_)).then_some(()))?;
        Ok(client)
    }

    fn subscribe(&mut self, filter: &str) -> io::Result<()> {
        let entry = SubscribeEntry {
            filter,
            qos: Qos::AtLeastOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        };
        let mut bytes = Vec::new();
        encode::subscribe(&mut bytes, Version::V5, self.id()?, None, &[entry]);
        self.ask(&bytes, |packet| matches!(packet, Packet::Suback(_)).then_some(()))
    }

    fn unsubscribe(&mut self, filter: &str) -> io::Result<()> {
        let mut bytes = Vec::new();
        encode::unsubscribe(&mut bytes, Version::V5, self.id()?, &[filter]);
        self.ask(&bytes, |packet| matches!(packet, Packet::Unsuback(_)).then_some(()))
    }

    fn publish(&mut self, topic: &str, payload: &str) -> io::Result<()> {
        let packet_id = Some(self.id()?);
        let mut bytes = Vec::new();
        let payload = payload.as_bytes();
        let parts = encode::PublishParts {
            qos: Qos::AtLeastOnce,
            topic,
            packet_id,
            payload,
            ..encode::PublishParts::default()
        };
        encode::publish(&mut bytes, Version::V5, &parts);
        self.ask(&bytes, |packet| matches!(packet, Packet::Puback(_)).then_some(()))
    }

    fn receive(&mut self) -> io::Result<(String, String)> {
        self.ask(&[], |packet| match packet {
            Packet::Publish(publish) => {
                Some((publish.topic.to_owned(), String::from_utf8_lossy(publish.payload).into_owned()))
            }
            _ => None,
        })
    }

    fn id(&mut self) -> io::Result<PacketId> {
        self.next_id = self.next_id.wrapping_add(1).max(1);
        PacketId::new(self.next_id).ok_or_else(|| other("no packet id"))
    }

    /// Sends bytes and reads packets until one of them is the answer.
    fn ask<T>(&mut self, bytes: &[u8], answer: impl Fn(&Packet<'_>) -> Option<T>) -> io::Result<T> {
        self.stream.write_all(bytes)?;
        let mut chunk = [0; 4096];
        loop {
            while let Some(raw) = codec::split(&self.buffer, chunk.len()).map_err(|e| other(e.to_string()))? {
                let total = raw.total;
                let packet = codec::decode(Version::V5, raw).map_err(|e| other(e.to_string()))?;
                let found = answer(&packet);
                self.buffer.drain(..total);
                if let Some(found) = found {
                    return Ok(found);
                }
            }
            match self.stream.read(&mut chunk)? {
                0 => return Err(other("the node closed the connection")),
                n => self.buffer.extend_from_slice(&chunk[..n]),
            }
        }
    }
}
