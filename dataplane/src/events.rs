//! What shards tell the operator. A shard writes a line into a bounded queue and goes on; the thread `log` turns
//! lines into structured log records. A slow or stuck stderr therefore costs lines, which are counted, and
//! never a shard's time.
//!
//! Always true: a shard emits at most [`LINES_PER_WINDOW`] lines of a kind per second; what is suppressed is
//! counted and told with the next line of that kind.

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

use broker::event::Event;

use crate::stage::Broken;

/// Lines of one kind that a shard emits per window.
const LINES_PER_WINDOW: u32 = 20;
const WINDOW_US: u64 = 1_000_000;
/// Lines that may wait for the log thread.
const LINES_MAX: usize = 4096;

/// Kinds of lines, each limited for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Connected,
    Disconnected,
    Refused,
    Link,
    Log,
    LogFailed,
    Limit,
    AcceptFailed,
    ListenerFull,
    ListenerBusy,
    Transport,
}

impl Kind {
    const COUNT: usize = 11;
}

/// One line, with everything it says.
#[derive(Debug)]
struct Line {
    shard: u16,
    /// Lines of this kind that were suppressed before this one.
    suppressed: u64,
    text: Text,
}

#[derive(Debug)]
enum Text {
    Connected { client: String, peer: SocketAddr, version: u8, resumed: bool },
    Disconnected { client: String, why: String },
    Refused { client: String, peer: SocketAddr, reason: u8, why: String },
    Link { link: String, what: String, detail: String },
    Log { what: String, detail: String },
    LogFailed { why: String },
    Limit { key: &'static str, client: String },
    AcceptFailed { listener: String, error: io::Error },
    ListenerFull { listener: String, peer: SocketAddr },
    ListenerBusy { listener: String, peer: SocketAddr },
    Transport { listener: String, peer: SocketAddr, why: String },
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
            for line in written {
                write(line);
                let lost = also_lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    tracing::warn!(lost, "log lines were lost because the log was too slow");
                }
            }
        })?;
        Ok((Log { lines, lost }, Writer(ended)))
    }

    /// The events of one shard.
    pub(crate) fn of_shard(&self, shard: u16) -> Events {
        Events { shard, log: self.clone(), windows: Default::default() }
    }
}

fn write(line: Line) {
    let Line { shard, suppressed, text } = line;
    match text {
        Text::Connected { client, peer, version, resumed } => {
            tracing::info!(shard, client, %peer, version, resumed, suppressed, "connected");
        }
        Text::Disconnected { client, why } => tracing::info!(shard, client, why, suppressed, "disconnected"),
        Text::Refused { client, peer, reason, why } => {
            tracing::warn!(shard, client, %peer, reason = format_args!("{reason:#04x}"), why, suppressed, "refused");
        }
        Text::Link { link, what, detail } => tracing::info!(shard, link, what, detail, suppressed, "link"),
        Text::Log { what, detail } => tracing::warn!(shard, what, detail, suppressed, "log"),
        Text::LogFailed { why } => tracing::error!(shard, why, suppressed, "the log cannot be written"),
        Text::Limit { key, client } => tracing::warn!(shard, key, client, suppressed, "limit reached"),
        Text::AcceptFailed { listener, error } => {
            tracing::error!(shard, listener, %error, suppressed, "accept failed; trying again in a moment");
        }
        Text::ListenerFull { listener, peer } => {
            tracing::warn!(shard, listener, %peer, suppressed, "connection closed: max_connections is reached");
        }
        Text::ListenerBusy { listener, peer } => {
            tracing::warn!(shard, listener, %peer, suppressed, "connection closed: max_conn_rate is exceeded");
        }
        Text::Transport { listener, peer, why } => {
            tracing::warn!(shard, listener, %peer, why, suppressed, "connection closed by its transport");
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Window {
    start_us: u64,
    lines: u32,
    suppressed: u64,
}

/// One shard's events, with their rate limits.
pub(crate) struct Events {
    shard: u16,
    log: Log,
    windows: [Window; Kind::COUNT],
}

impl Events {
    /// An event of the broker.
    pub(crate) fn event(&mut self, now_us: u64, event: Event<'_>) {
        let kind = match &event {
            Event::Connected { .. } => Kind::Connected,
            Event::Disconnected { .. } => Kind::Disconnected,
            Event::Refused { .. } => Kind::Refused,
            Event::Link { .. } => Kind::Link,
            Event::Log { .. } => Kind::Log,
            Event::Limit { .. } => Kind::Limit,
        };
        self.emit(now_us, kind, || match event {
            Event::Connected { client, peer, version, resumed } => {
                Text::Connected { client: client.to_owned(), peer, version, resumed }
            }
            Event::Disconnected { client, why } => {
                Text::Disconnected { client: client.to_owned(), why: why.to_owned() }
            }
            Event::Refused { client, peer, reason, why } => {
                Text::Refused { client: client.to_owned(), peer, reason: reason.code(), why: why.into_owned() }
            }
            Event::Link { link, what, detail } => {
                Text::Link { link: link.to_owned(), what: what.to_owned(), detail: detail.into_owned() }
            }
            Event::Log { what, detail } => Text::Log { what: what.to_owned(), detail: detail.into_owned() },
            Event::Limit { key, client } => Text::Limit { key, client: client.to_owned() },
        });
    }

    /// The log could not do what it wanted.
    pub(crate) fn log_failed(&mut self, now_us: u64, why: &str) {
        self.emit(now_us, Kind::LogFailed, || Text::LogFailed { why: why.to_owned() });
    }

    /// The same again: counted, and told with the next line.
    pub(crate) fn log_failed_again(&mut self) {
        self.windows[Kind::LogFailed as usize].suppressed += 1;
    }

    /// A listener could not accept.
    pub(crate) fn accept_failed(&mut self, now_us: u64, listener: &str, errno: i32) {
        self.emit(now_us, Kind::AcceptFailed, || Text::AcceptFailed {
            listener: listener.to_owned(),
            error: io::Error::from_raw_os_error(errno),
        });
    }

    /// A connection came to a listener that has no place left.
    pub(crate) fn listener_full(&mut self, now_us: u64, listener: &str, peer: SocketAddr) {
        self.emit(now_us, Kind::ListenerFull, || Text::ListenerFull { listener: listener.to_owned(), peer });
    }

    /// More connections come than the listener may let in.
    pub(crate) fn listener_busy(&mut self, now_us: u64, listener: &str, peer: SocketAddr) {
        self.emit(now_us, Kind::ListenerBusy, || Text::ListenerBusy { listener: listener.to_owned(), peer });
    }

    /// What lies between the wire and MQTT could not go on.
    pub(crate) fn transport_broken(&mut self, now_us: u64, listener: &str, peer: SocketAddr, why: &Broken) {
        self.emit(now_us, Kind::Transport, || Text::Transport {
            listener: listener.to_owned(),
            peer,
            why: why.to_string(),
        });
    }

    fn emit(&mut self, now_us: u64, kind: Kind, text: impl FnOnce() -> Text) {
        let window = &mut self.windows[kind as usize];
        if now_us.saturating_sub(window.start_us) >= WINDOW_US {
            *window = Window { start_us: now_us, lines: 0, suppressed: window.suppressed };
        }
        if window.lines >= LINES_PER_WINDOW {
            window.suppressed += 1;
            return;
        }
        window.lines += 1;
        let line = Line { shard: self.shard, suppressed: std::mem::take(&mut window.suppressed), text: text() };
        if self.log.lines.try_send(line).is_err() {
            self.log.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> (Events, mpsc::Receiver<Line>) {
        let (lines, written) = mpsc::sync_channel(LINES_MAX);
        (Log { lines, lost: Arc::default() }.of_shard(3), written)
    }

    #[test]
    fn repeats_are_suppressed_and_their_number_is_told_later() {
        let (mut events, written) = events();
        let limit = || Event::Limit { key: "mqtt.max_mqueue_len", client: "a" };
        for _ in 0..LINES_PER_WINDOW + 5 {
            events.event(WINDOW_US, limit());
        }
        assert_eq!(written.try_iter().count(), LINES_PER_WINDOW as usize);
        events.event(2 * WINDOW_US, limit());
        let line = written.try_recv().expect("the next window has a line");
        assert_eq!((line.suppressed, line.shard), (5, 3));
    }

    #[test]
    fn one_noisy_kind_does_not_silence_another() {
        let (mut events, written) = events();
        for _ in 0..2 * LINES_PER_WINDOW {
            events.accept_failed(WINDOW_US, "tcp.default", libc::EMFILE);
        }
        events.event(WINDOW_US, Event::Disconnected { client: "a", why: "eof" });
        assert!(written.try_iter().any(|line| matches!(line.text, Text::Disconnected { .. })));
    }

    #[test]
    fn a_stuck_log_costs_lines_and_they_are_counted() {
        let (lines, _stuck) = mpsc::sync_channel(2);
        let log = Log { lines, lost: Arc::default() };
        let mut events = log.of_shard(0);
        for _ in 0..5 {
            events.accept_failed(WINDOW_US, "tcp.default", libc::EMFILE);
        }
        assert_eq!(log.lost.load(Ordering::Relaxed), 3);
    }
}
