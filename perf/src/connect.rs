//! What a connection costs a broker: CPU from TCP connect to CONNACK, and memory while it is idle. Called by the command
//! line. Always true: all connections stay open until both samples are taken, so nothing of closing is measured.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::process::{Sample, raise_descriptor_limit, run_tag};
use crate::wire::{self, Packet, Version};

/// Connections opened before the measurement, so that what a broker allocates once is not counted per connection.
const WARM_COUNT: usize = 200;
/// Connections that wait for CONNACK at a time; below the listen backlog of every broker we know.
const BATCH: usize = 64;
/// Longest wait for a connection or for its CONNACK.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which memory is sampled: brokers free what they needed while connecting within their next housekeeping.
const REST: Duration = Duration::from_millis(500);
/// Most connections of one measurement: the ephemeral ports towards one address.
const COUNT_MAX: usize = 28_000;
/// Descriptors that are not connections.
const DESCRIPTORS_OWN: usize = 32;
/// A CONNACK and the beginning of whatever else a broker may say; more than that is not expected here.
const ANSWER_BYTES_MAX: usize = 512;

/// Result of one measurement.
#[derive(Clone, Copy, Debug)]
pub struct ConnectReport {
    /// Connections measured.
    pub count: usize,
    /// From the first to the last CONNACK, in seconds.
    pub seconds: f64,
    /// CPU nanoseconds of the broker per connection, if processes were given.
    pub cpu_ns: Option<f64>,
    /// Bytes by which the broker's memory grew, per connection.
    pub resident_bytes: Option<f64>,
}

impl ConnectReport {
    /// One line for people.
    pub fn row(&self) -> String {
        let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0}"));
        format!(
            "{} connections in {:.2} s: {} CPU-ns each, {} bytes each while idle",
            self.count,
            self.seconds,
            number(self.cpu_ns),
            number(self.resident_bytes)
        )
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        json!({
            "connections": self.count,
            "seconds": self.seconds,
            "cpu_ns_per_connection": self.cpu_ns,
            "resident_bytes_per_connection": self.resident_bytes,
        })
    }
}

/// Opens `count` connections and leaves them idle; `pids` are the broker's processes.
pub fn run(address: SocketAddr, version: Version, count: usize, pids: &[u32]) -> Result<ConnectReport, String> {
    let descriptors = raise_descriptor_limit();
    if !(1..=COUNT_MAX).contains(&count) {
        return Err(format!("--count must be in 1..={COUNT_MAX}; got {count}"));
    }
    let needed = (count + WARM_COUNT + DESCRIPTORS_OWN) as u64;
    if needed > descriptors {
        return Err(format!("{count} connections need {needed} descriptors; this process may have {descriptors}"));
    }
    let mut names = Names { tag: run_tag(), next: 0 };
    let mut open = Vec::with_capacity(count + WARM_COUNT);
    connect(address, version, WARM_COUNT, &mut names, &mut open)?;
    thread::sleep(REST);
    let before = Sample::take(pids)?;
    let begin = Instant::now();
    connect(address, version, count, &mut names, &mut open)?;
    let seconds = begin.elapsed().as_secs_f64();
    let after = Sample::take(pids)?;
    thread::sleep(REST);
    let rested = Sample::take(pids)?;
    let each = |amount: u64| (!pids.is_empty()).then_some(amount as f64 / count as f64);
    let cpu_ns = after.cpu_ns_since(&before)?;
    let report = ConnectReport {
        count,
        seconds,
        cpu_ns: each(cpu_ns),
        resident_bytes: each(rested.resident_bytes.saturating_sub(before.resident_bytes)),
    };
    for socket in &open {
        // Reset instead of TIME_WAIT: thousands of those would hold the ports that the next measurement needs.
        socket.set_linger(Some(Duration::ZERO)).map_err(|error| format!("cannot set SO_LINGER: {error}"))?;
    }
    Ok(report)
}

/// Client ids of one measurement.
struct Names {
    tag: u32,
    next: usize,
}

fn connect(
    address: SocketAddr,
    version: Version,
    count: usize,
    names: &mut Names,
    open: &mut Vec<Socket>,
) -> Result<(), String> {
    let end = open.len() + count;
    while open.len() < end {
        let first = open.len();
        for _ in 0..BATCH.min(end - first) {
            let name = format!("perf-{:08x}-c{}", names.tag, names.next);
            names.next += 1;
            open.push(begin(address, version, &name).map_err(|error| format!("connection {}: {error}", names.next))?);
        }
        for (index, socket) in open.iter_mut().enumerate().skip(first) {
            accepted(socket, version).map_err(|error| format!("connection {}: {error}", index + 1))?;
        }
    }
    Ok(())
}

fn begin(address: SocketAddr, version: Version, name: &str) -> Result<Socket, String> {
    let open = || -> std::io::Result<Socket> {
        let mut socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.connect_timeout(&address.into(), ANSWER_TIMEOUT)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut packet = Vec::new();
        wire::put_connect(&mut packet, version, name);
        socket.write_all(&packet)?;
        Ok(socket)
    };
    open().map_err(|error| format!("cannot connect to {address}: {error}"))
}

fn accepted(socket: &mut Socket, version: Version) -> Result<(), String> {
    let mut answer = [0; ANSWER_BYTES_MAX];
    let mut length = 0;
    loop {
        let read = socket.read(&mut answer[length..]).map_err(|error| format!("no CONNACK: {error}"))?;
        if read == 0 {
            return Err("closed before CONNACK".into());
        }
        length += read;
        let Some((total, body)) = wire::frame(&answer[..length]).map_err(|error| error.to_string())? else {
            continue;
        };
        return match wire::decode(version, &answer[..total], body).map_err(|error| error.to_string())? {
            Packet::Connack { code: 0, .. } => Ok(()),
            Packet::Connack { code, .. } => {
                Err(format!("refused with code 0x{code:02x} ({})", wire::refusal(version, code)))
            }
            packet => Err(format!("expected CONNACK, got {packet:?}")),
        };
    }
}
