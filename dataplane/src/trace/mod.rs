//! Traces: what an operator wants to see of some clients, in files. Each shard has a [`Tracer`], which knows the traces that
//! run now; a connection that one of them is about has a [`Tap`], which copies its packets into a bounded queue to the
//! thread `trace` ([`writer`]).
//! Always true: a connection that no trace is about pays one branch per packet that comes and one per write; a writer that is
//! too slow costs lines, which are counted, and never a shard's time.

mod show;
mod writer;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::SystemTime,
};

use broker::event::{Event, Who};
use contract::trace::{DIRECTORY, Phase, Subject, Trace};
use mqtt::{
    codec::{self, PACKET_BYTES_MAX, Packet},
    topic,
    types::Version,
};

/// Lines that may wait for the writer.
const LINES_MAX: usize = 4096;
/// Bytes of a packet that are looked at; together with [`LINES_MAX`] they bound what waits.
const BYTES_MAX: usize = 2048;

/// Which way a packet goes, as seen from here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    In,
    Out,
}

/// One line of a trace.
struct Line {
    trace: Arc<Trace>,
    at: SystemTime,
    client: Arc<str>,
    peer: SocketAddr,
    what: What,
}

enum What {
    /// The first bytes of a packet, and how many it has.
    Packet { direction: Direction, version: Version, bytes: Box<[u8]>, total: usize },
    /// A sentence.
    Event(String),
}

/// The way to the writer.
#[derive(Clone)]
pub(crate) struct Sink {
    lines: mpsc::SyncSender<Line>,
    lost: Arc<AtomicU64>,
}

impl Sink {
    /// Starts the writer on a data directory. It ends with the process.
    pub(crate) fn start(data_dir: &Path) -> io::Result<Sink> {
        let (lines, written) = mpsc::sync_channel(LINES_MAX);
        let lost: Arc<AtomicU64> = Arc::default();
        let (directory, also_lost) = (data_dir.join(DIRECTORY), lost.clone());
        thread::Builder::new().name("trace".to_owned()).spawn(move || writer::run(&directory, &written, &also_lost))?;
        Ok(Sink { lines, lost })
    }

    /// Lines that were lost so far; it goes on counting.
    pub(crate) fn lost(&self) -> Arc<AtomicU64> {
        self.lost.clone()
    }

    fn send(&self, line: Line) {
        if self.lines.try_send(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The traces of one shard.
#[derive(Default)]
pub(crate) struct Tracer {
    sink: Option<Sink>,
    /// As the View names them.
    all: Vec<Trace>,
    /// Those that run.
    running: Vec<Arc<Trace>>,
}

impl Tracer {
    /// Nothing is traced before [`Tracer::take`].
    pub(crate) fn new(sink: Sink) -> Tracer {
        Tracer { sink: Some(sink), ..Tracer::default() }
    }

    /// What is traced, and when.
    pub(crate) fn take(&mut self, traces: &[Trace]) {
        self.all = traces.to_vec();
    }

    /// Which run at this wall time? Says whether others than before, and when to look again.
    pub(crate) fn look(&mut self, now_ms: u64) -> (bool, Option<u64>) {
        let running = self.all.iter().filter(|trace| trace.phase(now_ms) == Phase::Running);
        let changed = !running.clone().eq(self.running.iter().map(|trace| &**trace));
        if changed {
            self.running = running.cloned().map(Arc::new).collect();
        }
        let edges = self.all.iter().flat_map(|trace| [trace.start_ms, trace.end_ms]);
        (changed, edges.filter(|edge_ms| *edge_ms > now_ms).min())
    }

    /// A tap for the connection of this client, if a trace may be about it.
    pub(crate) fn tap(&self, who: &Who<'_>, version: Version) -> Option<Box<Tap>> {
        let sink = self.sink.as_ref()?;
        let traces = self.running.iter().filter(|trace| match &trace.subject {
            Subject::Topic(_) => true,
            _ => is_about(trace, who),
        });
        let traces: Vec<_> = traces.cloned().collect();
        let (client, peer) = (Arc::from(who.client), who.peer);
        (!traces.is_empty()).then(|| Box::new(Tap { sink: sink.clone(), traces, client, peer, version }))
    }

    /// What happened to a client, for the traces that are about it.
    pub(crate) fn event(&self, event: &Event<'_>) {
        if self.running.is_empty() {
            return;
        }
        let Some(sink) = &self.sink else { return };
        let (who, filter, text) = match event {
            Event::Connected { who, resumed, .. } => {
                (who, None, format!("connected, {}", if *resumed { "session resumed" } else { "new session" }))
            }
            Event::Disconnected { who, why } => (who, None, format!("connection over: {why}")),
            Event::Refused { who, reason, why } => (who, None, format!("refused: {:#04x} {why}", reason.code())),
            Event::Subscribed { who, filter, qos } => {
                (who, Some(*filter), format!("subscribed to {filter:?} with QoS {}", *qos as u8))
            }
            Event::Unsubscribed { who, filter } => (who, Some(*filter), format!("unsubscribed from {filter:?}")),
            _ => return,
        };
        for trace in &self.running {
            let wanted = match (&trace.subject, filter) {
                (Subject::Topic(of), Some(filter)) => of == filter || topic::matches(of, filter),
                _ => is_about(trace, who),
            };
            if wanted {
                let (trace, client) = (trace.clone(), Arc::from(who.client));
                let what = What::Event(text.clone());
                sink.send(Line { trace, at: SystemTime::now(), client, peer: who.peer, what });
            }
        }
    }
}

/// Is a trace about this client as such?
fn is_about(trace: &Trace, who: &Who<'_>) -> bool {
    match &trace.subject {
        Subject::Client(client) => client == who.client,
        Subject::Address(address) => address.parse() == Ok::<IpAddr, _>(who.peer.ip().to_canonical()),
        Subject::Topic(_) => false,
    }
}

/// Copies the packets of one connection.
pub(crate) struct Tap {
    sink: Sink,
    traces: Vec<Arc<Trace>>,
    client: Arc<str>,
    peer: SocketAddr,
    version: Version,
}

impl Tap {
    /// One whole packet.
    pub(crate) fn packet(&self, direction: Direction, bytes: &[u8]) {
        for trace in &self.traces {
            if let Subject::Topic(filter) = &trace.subject
                && !published_to(self.version, bytes).is_some_and(|topic| topic::matches(filter, topic))
            {
                continue;
            }
            let head = bytes[..bytes.len().min(BYTES_MAX)].into();
            let what = What::Packet { direction, version: self.version, bytes: head, total: bytes.len() };
            let (trace, client) = (trace.clone(), self.client.clone());
            self.sink.send(Line { trace, at: SystemTime::now(), client, peer: self.peer, what });
        }
    }

    /// Output that leaves: whole packets, one behind the other.
    pub(crate) fn packets_out(&self, mut bytes: &[u8]) {
        while let Ok(Some(raw)) = codec::split(bytes, PACKET_BYTES_MAX) {
            self.packet(Direction::Out, &bytes[..raw.total]);
            bytes = &bytes[raw.total..];
        }
    }
}

/// The topic of a PUBLISH; one that only an alias names is not known here.
fn published_to(version: Version, bytes: &[u8]) -> Option<&str> {
    if bytes.first()? >> 4 != 3 {
        return None;
    }
    let raw = codec::split(bytes, PACKET_BYTES_MAX).ok()??;
    match codec::decode(version, raw) {
        Ok(Packet::Publish(publish)) => Some(publish.topic),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
