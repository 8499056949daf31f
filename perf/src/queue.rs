//! What it costs to keep a message: QoS 1 publishes for one persistent session that is away, the time until each is
//! acknowledged, and the CPU of the broker. Called by the command line. Always true: the session comes back in the end,
//! and what was acknowledged and does not arrive once and in order is reported.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use crate::process::{Sample, raise_descriptor_limit};
use crate::wire::{self, Ack, Packet, Version};

/// Longest wait for any single answer of the broker.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// When the session is back, what does not arrive within this time after the last arrival counts as lost.
const DRAIN_QUIET: Duration = Duration::from_secs(3);
/// Longest wait of one turn of the load.
const TURN_NS: i64 = 10_000_000;
/// Highest latency that is told apart.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// Bytes of one read.
const READ_BYTES: usize = 256 << 10;
/// Bytes before the filler of a payload: publisher and number.
const HEAD_BYTES: usize = 12;
/// Deliveries that the returning session acknowledges in one write.
const ACKED_TOGETHER: usize = 64;
/// Most publishers of one run.
const PUBLISHERS_MAX: usize = 10_000;
/// Descriptors that are not publishers.
const DESCRIPTORS_OWN: usize = 32;

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The broker.
    pub address: SocketAddr,
    /// Protocol version.
    pub version: Version,
    /// Publishers.
    pub publishers: usize,
    /// Unacknowledged messages of one publisher.
    pub inflight: u16,
    /// Bytes of every payload.
    pub payload_bytes: usize,
    /// Traffic before the measured phase.
    pub warmup: Duration,
    /// Length of the measured phase.
    pub length: Duration,
    /// Tells the clients and topics of this run from those of others.
    pub tag: u32,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct QueueReport {
    /// Messages acknowledged in the measured phase.
    pub acknowledged: u64,
    /// Messages acknowledged in the whole run.
    pub acknowledged_in_all: u64,
    /// Length of the measured phase.
    pub seconds: f64,
    /// CPU nanoseconds of the broker in the measured phase, if processes were given.
    pub cpu_ns: Option<u64>,
    /// Time from sending to the acknowledgement, of messages acknowledged in the measured phase.
    pub latency: Histogram<u64>,
    /// Publishes that the broker refused.
    pub refused: u64,
    /// Acknowledged, and not there when the session came back.
    pub lost: u64,
    /// Arrived more than once, or after a later one of the same publisher.
    pub disordered: u64,
}

impl QueueReport {
    /// CPU nanoseconds per acknowledged message.
    pub fn cpu_ns_per_message(&self) -> Option<f64> {
        self.cpu_ns.filter(|_| self.acknowledged > 0).map(|cpu_ns| cpu_ns as f64 / self.acknowledged as f64)
    }

    /// Whether everything was acknowledged and kept.
    pub fn is_clean(&self) -> bool {
        self.refused == 0 && self.lost == 0 && self.disordered == 0
    }

    /// What is wrong, or `ok`.
    pub fn verdict(&self) -> String {
        let counts = [(self.refused, "refused"), (self.lost, "lost"), (self.disordered, "disordered")];
        let faults: Vec<_> = counts.iter().filter(|(count, _)| *count > 0).collect();
        if faults.is_empty() {
            return "ok".into();
        }
        faults.iter().map(|(count, name)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
    }

    fn micros(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }

    /// One line for people.
    pub fn row(&self) -> String {
        format!(
            "{} kept in {:.2} s: {} CPU-ns each, acknowledged in {:.0} us (p50), {:.0} us (p99); {}",
            self.acknowledged,
            self.seconds,
            self.cpu_ns_per_message().map_or("-".into(), |cpu_ns| format!("{cpu_ns:.0}")),
            self.micros(0.5),
            self.micros(0.99),
            self.verdict()
        )
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        json!({
            "acknowledged": self.acknowledged,
            "acknowledged_in_all": self.acknowledged_in_all,
            "seconds": self.seconds,
            "cpu_ns": self.cpu_ns,
            "cpu_ns_per_message": self.cpu_ns_per_message(),
            "latency_us": { "p50": self.micros(0.5), "p99": self.micros(0.99), "max": self.latency.max() as f64 / 1e3 },
            "refused": self.refused,
            "lost": self.lost,
            "disordered": self.disordered,
            "verified": self.verdict(),
        })
    }
}

/// Runs a plan; `pids` are the broker's processes.
pub fn run(plan: &Plan, pids: &[u32]) -> Result<QueueReport, String> {
    plan.check()?;
    let mut session = Session::open(plan)?;
    session.subscribe(plan)?;
    session.leave()?;
    let mut publishers =
        (0..plan.publishers).map(|index| Publisher::open(plan, index)).collect::<Result<Vec<_>, _>>()?;
    let mut load = Load { began: Instant::now(), latency: None, refused: 0, acknowledged: 0 };
    for publisher in &mut publishers {
        while publisher.publish(plan, load.now_ns()) {}
        publisher.write()?;
    }
    load.turns(plan, &mut publishers, Until::Passed(plan.warmup))?;
    let latency = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).map_err(|error| format!("histogram: {error}"))?;
    load.latency = Some(latency);
    let before = Sample::take(pids)?;
    let (begin, from) = (Instant::now(), load.acknowledged);
    load.turns(plan, &mut publishers, Until::Passed(plan.length))?;
    let acknowledged = load.acknowledged - from;
    let seconds = begin.elapsed().as_secs_f64();
    let after = Sample::take(pids)?;
    let latency = load.latency.take().ok_or("the histogram was put there above")?;
    load.turns(plan, &mut publishers, Until::Quiet)?;
    let sent: Vec<u64> = publishers.iter().map(|publisher| publisher.next).collect();
    let (lost, disordered) = Session::open(plan)?.drain(plan, &sent, load.refused)?;
    Ok(QueueReport {
        acknowledged,
        acknowledged_in_all: load.acknowledged,
        seconds,
        cpu_ns: (!pids.is_empty()).then_some(after.cpu_ns_since(&before)?),
        latency,
        refused: load.refused,
        lost,
        disordered,
    })
}

impl Plan {
    /// The topic of a publisher, which the session has subscribed to.
    fn topic(&self, index: usize) -> String {
        format!("perf/{:08x}/{index}", self.tag)
    }

    fn check(&self) -> Result<(), String> {
        if !(1..=PUBLISHERS_MAX).contains(&self.publishers) {
            return Err(format!("--publishers must be in 1..={PUBLISHERS_MAX}; got {}", self.publishers));
        }
        if self.inflight == 0 {
            return Err("--inflight must be at least 1; got 0".into());
        }
        if self.payload_bytes < HEAD_BYTES {
            return Err(format!("--payload-bytes must be at least {HEAD_BYTES}; got {}", self.payload_bytes));
        }
        let (descriptors, needed) = (raise_descriptor_limit(), (self.publishers + DESCRIPTORS_OWN) as u64);
        if needed > descriptors {
            return Err(format!("the run needs {needed} descriptors; this process may have {descriptors} (ulimit -n)"));
        }
        Ok(())
    }
}

/// How long the publishers go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// So much time has passed.
    Passed(Duration),
    /// Everything is acknowledged; nothing new is published.
    Quiet,
}

/// What all publishers share.
struct Load {
    began: Instant,
    /// Present in the measured phase.
    latency: Option<Histogram<u64>>,
    acknowledged: u64,
    refused: u64,
}

impl Load {
    fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn turns(&mut self, plan: &Plan, publishers: &mut [Publisher], until: Until) -> Result<(), String> {
        let begin = Instant::now();
        let mut last_answer = begin;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let is_over = match until {
                Until::Passed(time) => begin.elapsed() >= time,
                Until::Quiet => publishers.iter().all(|publisher| publisher.free.len() == publisher.sent_ns.len()),
            };
            if is_over {
                return Ok(());
            }
            if last_answer.elapsed() > ANSWER_TIMEOUT {
                return Err(format!("no acknowledgement for {} s", ANSWER_TIMEOUT.as_secs()));
            }
            for index in ready(publishers)? {
                let publisher = &mut publishers[index];
                if publisher.read(&mut buffer)? {
                    last_answer = Instant::now();
                }
                publisher.answers(plan, self)?;
                while until != Until::Quiet && publisher.publish(plan, self.now_ns()) {}
                publisher.write()?;
            }
        }
    }
}

/// Publishers whose sockets can be read or have room for what waits.
fn ready(publishers: &[Publisher]) -> Result<Vec<usize>, String> {
    let watch = |publisher: &'_ Publisher| {
        if publisher.out.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    };
    let mut sockets: Vec<_> =
        publishers.iter().map(|publisher| PollFd::new(&publisher.stream, watch(publisher))).collect();
    let wait = Timespec { tv_sec: 0, tv_nsec: TURN_NS };
    poll(&mut sockets, Some(&wait)).map_err(|error| format!("poll: {error}"))?;
    Ok(sockets.iter().enumerate().filter(|(_, socket)| !socket.revents().is_empty()).map(|(index, _)| index).collect())
}

/// One publisher; it always has as many messages on their way as it may.
struct Publisher {
    index: usize,
    stream: TcpStream,
    topic: String,
    /// Number of the next message.
    next: u64,
    /// When the message of each packet id was sent; packet ids begin with 1.
    sent_ns: Vec<u64>,
    free: VecDeque<u16>,
    rest: Vec<u8>,
    out: Vec<u8>,
}

impl Publisher {
    fn open(plan: &Plan, index: usize) -> Result<Publisher, String> {
        let mut packet = Vec::new();
        wire::put_connect(&mut packet, plan.version, &format!("perf-{:08x}-q{index}", plan.tag));
        let mut link = Link::open(plan, &packet)?;
        link.accepted()?;
        let stream = link.stream;
        stream.set_nonblocking(true).map_err(|error| format!("publisher {index}: {error}"))?;
        Ok(Publisher {
            index,
            stream,
            topic: plan.topic(index),
            next: 0,
            sent_ns: vec![0; usize::from(plan.inflight)],
            free: (1..=plan.inflight).collect(),
            rest: link.rest,
            out: Vec::new(),
        })
    }

    fn publish(&mut self, plan: &Plan, now_ns: u64) -> bool {
        let Some(id) = self.free.pop_front() else {
            return false;
        };
        self.sent_ns[usize::from(id) - 1] = now_ns;
        wire::put_publish(&mut self.out, plan.version, self.topic.as_bytes(), 1, id, plan.payload_bytes);
        self.out.extend_from_slice(&(self.index as u32).to_be_bytes());
        self.out.extend_from_slice(&self.next.to_be_bytes());
        self.out.resize(self.out.len() + plan.payload_bytes - HEAD_BYTES, b'x');
        self.next += 1;
        true
    }

    fn write(&mut self) -> Result<(), String> {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(written) => drop(self.out.drain(..written)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("publisher {}: send failed: {error}", self.index)),
            }
        }
        Ok(())
    }

    /// Reads once; returns whether something was there.
    fn read(&mut self, buffer: &mut [u8]) -> Result<bool, String> {
        match self.stream.read(buffer) {
            Ok(0) => Err(format!("publisher {}: the broker closed the connection", self.index)),
            Ok(read) => {
                self.rest.extend_from_slice(&buffer[..read]);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(format!("publisher {}: receive failed: {error}", self.index)),
        }
    }

    fn answers(&mut self, plan: &Plan, load: &mut Load) -> Result<(), String> {
        let now_ns = load.now_ns();
        let mut at = 0;
        while let Some((total, body)) = wire::frame(&self.rest[at..]).map_err(|error| error.to_string())? {
            let packet = &self.rest[at..at + total];
            match wire::decode(plan.version, packet, body).map_err(|error| error.to_string())? {
                Packet::Ack { kind: Ack::Puback, id, code } => {
                    let sent_ns = usize::from(id).checked_sub(1).and_then(|slot| self.sent_ns.get(slot)).copied();
                    let sent_ns = sent_ns.ok_or_else(|| format!("PUBACK for packet id {id}, which was never used"))?;
                    self.free.push_back(id);
                    if code >= 0x80 {
                        load.refused += 1;
                    } else {
                        load.acknowledged += 1;
                        if let Some(latency) = &mut load.latency {
                            latency.saturating_record((now_ns - sent_ns).max(1));
                        }
                    }
                }
                packet => return Err(format!("publisher {}: unexpected packet: {packet:?}", self.index)),
            }
            at += total;
        }
        self.rest.drain(..at);
        Ok(())
    }
}

/// A connection that waits for each answer.
struct Link {
    stream: TcpStream,
    rest: Vec<u8>,
    version: Version,
}

impl Link {
    fn open(plan: &Plan, connect: &[u8]) -> Result<Link, String> {
        let open = || -> std::io::Result<TcpStream> {
            let mut stream = TcpStream::connect_timeout(&plan.address, ANSWER_TIMEOUT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            stream.write_all(connect)?;
            Ok(stream)
        };
        let stream = open().map_err(|error| format!("cannot connect to {}: {error}", plan.address))?;
        Ok(Link { stream, rest: Vec::new(), version: plan.version })
    }

    /// Hands the next packet to `take`; `None` when the broker is silent for too long.
    fn next<T>(&mut self, take: impl FnOnce(Packet<'_>) -> Result<T, String>) -> Result<Option<T>, String> {
        loop {
            if let Some((total, body)) = wire::frame(&self.rest).map_err(|error| error.to_string())? {
                let packet =
                    wire::decode(self.version, &self.rest[..total], body).map_err(|error| error.to_string())?;
                let taken = take(packet);
                self.rest.drain(..total);
                return taken.map(Some);
            }
            let mut buffer = [0; 16 << 10];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err("the broker closed the connection".into()),
                Ok(read) => self.rest.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(error) => return Err(format!("receive failed: {error}")),
            }
        }
    }

    fn accepted(&mut self) -> Result<(), String> {
        let version = self.version;
        let answer = self.next(|packet| match packet {
            Packet::Connack { code: 0, .. } => Ok(()),
            Packet::Connack { code, .. } => {
                Err(format!("refused with code 0x{code:02x} ({})", wire::refusal(version, code)))
            }
            packet => Err(format!("expected CONNACK, got {packet:?}")),
        })?;
        answer.ok_or_else(|| "no CONNACK".into())
    }
}

/// The session that is away while the messages come.
struct Session(Link);

impl Session {
    fn open(plan: &Plan) -> Result<Session, String> {
        let mut packet = Vec::new();
        wire::put_connect_kept(&mut packet, plan.version, &format!("perf-{:08x}-kept", plan.tag));
        let mut link = Link::open(plan, &packet)?;
        link.accepted()?;
        Ok(Session(link))
    }

    fn subscribe(&mut self, plan: &Plan) -> Result<(), String> {
        let topics: Vec<String> = (0..plan.publishers).map(|index| plan.topic(index)).collect();
        let filters: Vec<&str> = topics.iter().map(String::as_str).collect();
        let mut packet = Vec::new();
        wire::put_subscribe(&mut packet, plan.version, 1, &filters, 1);
        self.0.stream.write_all(&packet).map_err(|error| format!("send failed: {error}"))?;
        let granted = self.0.next(|packet| match packet {
            Packet::Suback { codes, .. } if codes.iter().all(|code| *code == 1) => Ok(()),
            packet => Err(format!("expected SUBACK for QoS 1, got {packet:?}")),
        })?;
        granted.ok_or_else(|| "no SUBACK".into())
    }

    /// Goes, and sees the broker close: nothing is sent to a session that only seems to be there.
    fn leave(mut self) -> Result<(), String> {
        let mut packet = Vec::new();
        wire::put_disconnect(&mut packet);
        self.0.stream.write_all(&packet).map_err(|error| format!("send failed: {error}"))?;
        match self.0.stream.read(&mut [0; 64]) {
            Ok(0) => Ok(()),
            Ok(_) => Err("the broker answered DISCONNECT".into()),
            Err(error) => Err(format!("the broker did not close after DISCONNECT: {error}")),
        }
    }

    /// Takes everything that waits; `sent` is how many each publisher has sent. Gives what is lost (refused ones do not
    /// count) and what came out of order.
    fn drain(mut self, plan: &Plan, sent: &[u64], refused: u64) -> Result<(u64, u64), String> {
        self.0.stream.set_read_timeout(Some(DRAIN_QUIET)).map_err(|error| format!("the session: {error}"))?;
        let due: u64 = sent.iter().sum::<u64>() - refused;
        let mut expected = vec![0; sent.len()];
        let (mut arrived, mut disordered) = (0, 0);
        let mut acks = Vec::new();
        while arrived < due {
            // Before waiting for more, the broker must have every acknowledgement: it may wait for them.
            let is_whole = matches!(wire::frame(&self.0.rest), Ok(Some(_)));
            if !is_whole || acks.len() >= 4 * ACKED_TOGETHER {
                self.0.stream.write_all(&acks).map_err(|error| format!("send failed: {error}"))?;
                acks.clear();
            }
            let message = self.0.next(|packet| match packet {
                Packet::Publish(publish) => Ok((publish.id, number(publish.payload, plan)?)),
                packet => Err(format!("expected a message, got {packet:?}")),
            })?;
            let Some((id, (publisher, number))) = message else {
                break;
            };
            wire::put_ack(&mut acks, Ack::Puback, id);
            let expected = expected.get_mut(publisher).ok_or("a message of a publisher that does not exist")?;
            if number < *expected {
                disordered += 1;
            } else {
                *expected = number + 1;
                arrived += 1;
            }
        }
        Ok((due - arrived, disordered))
    }
}

fn number(payload: &[u8], plan: &Plan) -> Result<(usize, u64), String> {
    let head = payload.first_chunk::<HEAD_BYTES>().filter(|_| payload.len() == plan.payload_bytes);
    let head = head.ok_or_else(|| format!("a payload of {} bytes", payload.len()))?;
    let [a, b, c, d, number @ ..] = *head;
    Ok((u32::from_be_bytes([a, b, c, d]) as usize, u64::from_be_bytes(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_every_fault_and_divides_by_messages() {
        let mut report = QueueReport {
            acknowledged: 100,
            acknowledged_in_all: 150,
            seconds: 2.0,
            cpu_ns: Some(200_000),
            latency: Histogram::new(3).unwrap(),
            refused: 0,
            lost: 0,
            disordered: 0,
        };
        assert_eq!(report.cpu_ns_per_message(), Some(2000.0));
        assert_eq!((report.is_clean(), report.verdict().as_str()), (true, "ok"));
        (report.lost, report.refused) = (3, 2);
        assert_eq!((report.is_clean(), report.verdict().as_str()), (false, "2 refused, 3 lost"));
        report.acknowledged = 0;
        assert_eq!(report.json()["cpu_ns_per_message"], Value::Null);
    }

    #[test]
    fn a_payload_tells_its_publisher_and_number() {
        let plan = Plan {
            address: ([127, 0, 0, 1], 1).into(),
            version: Version::V5,
            publishers: 1,
            inflight: 1,
            payload_bytes: 14,
            warmup: Duration::ZERO,
            length: Duration::ZERO,
            tag: 1,
        };
        assert_eq!(number(&[0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 1, 2, 9, 9], &plan), Ok((7, 258)));
        assert!(number(&[0; 13], &plan).is_err());
    }
}
