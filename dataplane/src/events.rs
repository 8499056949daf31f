//! What shards tell the operator. A shard writes a line into a bounded queue and goes on; the thread `log` turns
//! lines into structured log records. A slow or stuck stderr therefore costs lines, which are counted, and
//! never a shard's time.
//!
//! Always true: of lines of one kind and reason a shard emits a few per second ([`Repeats`]); how many it did not emit
//! is told in one line when the second is over; a line about a connection names client, address and listener.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use broker::event::{Event, Who};
use contract::repeats::Repeats;

use crate::stage::Broken;

/// Lines that may wait for the log thread.
const LINES_MAX: usize = 4096;

/// Kinds of lines; with a reason, each is limited for itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Connected,
    Disconnected,
    Refused,
    Link,
    Log,
    Limit,
    AcceptFailed,
    ListenerFull,
    ListenerBusy,
    Transport,
}

/// A kind, and the number of its reason where it has several.
type Key = (Kind, u16);

/// One line, with everything it says.
#[derive(Debug)]
struct Line {
    shard: u16,
    text: Text,
}

/// A connection in a line.
#[derive(Debug)]
struct Whom {
    client: String,
    peer: SocketAddr,
    listener: Arc<str>,
}

#[derive(Debug)]
enum Text {
    Connected { whom: Whom, user: Option<String>, version: u8, resumed: bool },
    Disconnected { whom: Whom, why: String },
    Refused { whom: Whom, reason: u8, why: String },
    Link { link: String, what: String, detail: String },
    Log { what: String, detail: String },
    LogFailed { why: String, repeated: u64 },
    Limit { key: &'static str, client: String },
    AcceptFailed { listener: String, error: io::Error },
    ListenerFull { listener: String, peer: SocketAddr },
    ListenerBusy { listener: String, peer: SocketAddr },
    Transport { listener: String, peer: SocketAddr, why: String },
    Suppressed { kind: Kind, reason: u16, lines: u64 },
}

/// The way to the log thread, which ends when the last of these is dropped.
#[derive(Clone)]
pub(crate) struct Log {
    lines: mpsc::SyncSender<Line>,
    lost: Arc<AtomicU64>,
}

/// The log thread.
pub(crate) struct Writer(mpsc::Receiver<()>);

impl Writer {
    /// Waits until every line is written and every [`Log`] is gone, but no longer than `bound`.
    pub(crate) fn finish(self, bound: Duration) {
        // Disconnected: the thread has ended. Timeout: stderr is stuck, and so be it.
        let _ = self.0.recv_timeout(bound);
    }
}

impl Log {
    /// Starts the thread.
    pub(crate) fn start() -> io::Result<(Log, Writer)> {
        let (lines, written) = mpsc::sync_channel::<Line>(LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let also_lost = lost.clone();
        let (alive, ended) = mpsc::channel();
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            let _alive = alive;
            let mut told = 0;
            for line in written {
                write(line);
                let lost = also_lost.load(Ordering::Relaxed);
                if lost > told {
                    tracing::warn!(lost = lost - told, "log lines were lost because the log was too slow");
                    told = lost;
                }
            }
        })?;
        Ok((Log { lines, lost }, Writer(ended)))
    }

    /// The events of one shard.
    pub(crate) fn of_shard(&self, shard: u16) -> Events {
        Events { shard, log: self.clone(), repeats: Repeats::default(), listeners: Vec::new() }
    }

    /// Lines that were lost so far because the log was too slow; it goes on counting.
    pub(crate) fn lost(&self) -> Arc<AtomicU64> {
        self.lost.clone()
    }
}

fn write(line: Line) {
    let Line { shard, text } = line;
    match text {
        Text::Connected { whom: Whom { client, peer, listener }, user, version, resumed } => {
            tracing::info!(shard, client, %peer, listener = &*listener, user, version, resumed, "connected");
        }
        Text::Disconnected { whom: Whom { client, peer, listener }, why } => {
            tracing::info!(shard, client, %peer, listener = &*listener, why, "disconnected");
        }
        Text::Refused { whom: Whom { client, peer, listener }, reason, why } => {
            let reason = format_args!("{reason:#04x}");
            tracing::warn!(shard, client, %peer, listener = &*listener, reason, why, "refused");
        }
        Text::Link { link, what, detail } => tracing::info!(shard, link, what, detail, "link"),
        Text::Log { what, detail } => tracing::warn!(shard, what, detail, "log"),
        Text::LogFailed { why, repeated } => tracing::error!(shard, why, repeated, "the log cannot be written"),
        Text::Limit { key, client } => tracing::warn!(shard, key, client, "limit reached"),
        Text::AcceptFailed { listener, error } => {
            tracing::error!(shard, listener, %error, "accept failed; trying again in a moment");
        }
        Text::ListenerFull { listener, peer } => {
            tracing::warn!(shard, listener, %peer, "connection closed: max_connections is reached");
        }
        Text::ListenerBusy { listener, peer } => {
            tracing::warn!(shard, listener, %peer, "connection closed: max_conn_rate is exceeded");
        }
        Text::Transport { listener, peer, why } => {
            tracing::warn!(shard, listener, %peer, why, "connection closed by its transport");
        }
        // What was said about them was no warning either.
        Text::Suppressed { kind: kind @ (Kind::Connected | Kind::Disconnected | Kind::Link), lines, .. } => {
            tracing::info!(shard, ?kind, lines, "lines of one second were left out");
        }
        Text::Suppressed { kind, reason, lines } => {
            tracing::warn!(shard, ?kind, reason, lines, "lines of one second were left out");
        }
    }
}

/// One shard's events, with their rate limits.
pub(crate) struct Events {
    shard: u16,
    log: Log,
    repeats: Repeats<Key>,
    /// Names by index.
    listeners: Vec<Arc<str>>,
}

impl Events {
    /// What the listener with this index is called.
    pub(crate) fn name_listener(&mut self, index: u16, name: &Arc<str>) {
        let place = usize::from(index);
        if self.listeners.len() <= place {
            self.listeners.resize_with(place + 1, || Arc::from(""));
        }
        self.listeners[place] = name.clone();
    }

    /// The name of a listener; empty if it is not known.
    pub(crate) fn listener(&self, index: u16) -> Arc<str> {
        self.listeners.get(usize::from(index)).cloned().unwrap_or_else(|| Arc::from(""))
    }

    /// An event of the broker.
    pub(crate) fn event(&mut self, now_us: u64, event: Event<'_>) {
        let key = match &event {
            Event::Connected { .. } => (Kind::Connected, 0),
            Event::Disconnected { .. } => (Kind::Disconnected, 0),
            Event::Refused { reason, .. } => (Kind::Refused, u16::from(reason.code())),
            Event::Link { .. } => (Kind::Link, 0),
            Event::Log { .. } => (Kind::Log, 0),
            Event::Limit { .. } => (Kind::Limit, 0),
            Event::Subscribed { .. } | Event::Unsubscribed { .. } => return,
        };
        if !self.repeats.allows(key, now_us) {
            return;
        }
        self.emit(match event {
            Event::Connected { who, version, resumed, .. } => {
                let user = who.username.map(str::to_owned);
                Text::Connected { whom: self.whom(&who), user, version, resumed }
            }
            Event::Disconnected { who, why } => Text::Disconnected { whom: self.whom(&who), why: why.to_owned() },
            Event::Refused { who, reason, why } => {
                Text::Refused { whom: self.whom(&who), reason: reason.code(), why: why.into_owned() }
            }
            Event::Link { link, what, detail } => {
                Text::Link { link: link.to_owned(), what: what.to_owned(), detail: detail.into_owned() }
            }
            Event::Log { what, detail } => Text::Log { what: what.to_owned(), detail: detail.into_owned() },
            Event::Limit { key, client } => Text::Limit { key, client: client.to_owned() },
            Event::Subscribed { .. } | Event::Unsubscribed { .. } => return,
        });
    }

    fn whom(&self, who: &Who<'_>) -> Whom {
        Whom { client: who.client.to_owned(), peer: who.peer, listener: self.listener(who.listener) }
    }

    /// The log could not do what it wanted, `repeated` times without a line since the last one.
    pub(crate) fn log_failed(&mut self, why: &str, repeated: u64) {
        self.emit(Text::LogFailed { why: why.to_owned(), repeated });
    }

    /// A listener could not accept.
    pub(crate) fn accept_failed(&mut self, now_us: u64, listener: &str, errno: i32) {
        if self.repeats.allows((Kind::AcceptFailed, errno as u16), now_us) {
            let error = io::Error::from_raw_os_error(errno);
            self.emit(Text::AcceptFailed { listener: listener.to_owned(), error });
        }
    }

    /// A connection came to a listener that has no place left.
    pub(crate) fn listener_full(&mut self, now_us: u64, listener: &str, peer: SocketAddr) {
        if self.repeats.allows((Kind::ListenerFull, 0), now_us) {
            self.emit(Text::ListenerFull { listener: listener.to_owned(), peer });
        }
    }

    /// More connections come than the listener may let in.
    pub(crate) fn listener_busy(&mut self, now_us: u64, listener: &str, peer: SocketAddr) {
        if self.repeats.allows((Kind::ListenerBusy, 0), now_us) {
            self.emit(Text::ListenerBusy { listener: listener.to_owned(), peer });
        }
    }

    /// What lies between the wire and MQTT could not go on.
    pub(crate) fn transport_broken(&mut self, now_us: u64, listener: &str, peer: SocketAddr, why: &Broken) {
        if self.repeats.allows((Kind::Transport, why.counter() as u16), now_us) {
            self.emit(Text::Transport { listener: listener.to_owned(), peer, why: why.to_string() });
        }
    }

    /// When there is something to tell about what was left out.
    pub(crate) fn due_us(&self) -> u64 {
        self.repeats.due_us()
    }

    /// Tells what was left out in a second that is over.
    pub(crate) fn tell_suppressed(&mut self, now_us: u64) {
        for ((kind, reason), lines) in self.repeats.over(now_us) {
            self.emit(Text::Suppressed { kind, reason, lines });
        }
    }

    fn emit(&self, text: Text) {
        if self.log.lines.try_send(Line { shard: self.shard, text }).is_err() {
            self.log.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use contract::repeats::SAID_MAX;

    use super::*;

    const NOW_US: u64 = 1_000_000;

    fn events() -> (Events, mpsc::Receiver<Line>) {
        let (lines, written) = mpsc::sync_channel(LINES_MAX);
        (Log { lines, lost: Arc::default() }.of_shard(3), written)
    }

    #[test]
    fn repeats_are_left_out_and_their_number_is_told_in_one_line() {
        let (mut events, written) = events();
        let limit = || Event::Limit { key: "mqtt.max_mqueue_len", client: "a" };
        for _ in 0..SAID_MAX + 5 {
            events.event(NOW_US, limit());
        }
        assert_eq!(written.try_iter().count(), SAID_MAX as usize);
        let due_us = events.due_us();
        events.tell_suppressed(due_us - 1);
        assert!(written.try_recv().is_err(), "the second is not over");
        events.tell_suppressed(due_us);
        let line = written.try_recv().expect("a line");
        assert!(matches!(line.text, Text::Suppressed { kind: Kind::Limit, lines: 5, .. }), "{line:?}");
    }

    #[test]
    fn one_noisy_reason_does_not_silence_another() {
        let (mut events, written) = events();
        for _ in 0..2 * SAID_MAX {
            events.accept_failed(NOW_US, "tcp:default", libc::EMFILE);
        }
        events.accept_failed(NOW_US, "tcp:default", libc::ENOMEM);
        let last = written.try_iter().last().expect("lines");
        assert!(matches!(last.text, Text::AcceptFailed { error, .. } if error.raw_os_error() == Some(libc::ENOMEM)));
    }

    #[test]
    fn a_stuck_log_costs_lines_and_they_are_counted() {
        let (lines, _stuck) = mpsc::sync_channel(2);
        let log = Log { lines, lost: Arc::default() };
        let mut events = log.of_shard(0);
        for _ in 0..5 {
            events.accept_failed(NOW_US, "tcp:default", libc::EMFILE);
        }
        assert_eq!(log.lost.load(Ordering::Relaxed), 3);
    }
}
