//! `$SYS/broker/...`: what mosquitto's monitors and dashboards read, with mosquitto's names and texts. Made by the control thread
//! from a Report, published by shard 0 as retained QoS 0 messages that no log keeps. Always true: a topic is published again
//! only when its text has changed.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use contract::report::Report;

/// A topic and what it says.
pub(crate) type Said = (Box<str>, Box<str>);

/// A figure of a Report.
type Figure = fn(&Report) -> u64;

/// What is averaged over 1, 5 and 15 minutes: name below `load/`, and what is counted.
const LOADS: &[(&str, Figure)] = &[
    ("messages/received", |report| report.counter("packets_received")),
    ("messages/sent", |report| report.counter("packets_sent")),
    ("publish/received", |report| report.counter("messages_received")),
    ("publish/sent", |report| report.counter("messages_sent")),
    ("publish/dropped", shed),
    ("bytes/received", |report| report.counter("bytes_received")),
    ("bytes/sent", |report| report.counter("bytes_sent")),
    ("sockets", |report| report.counter("connections_accepted")),
    ("connections", |report| report.counter("client_connected")),
];
const MINUTES: [(f64, &str); 3] = [(1.0, "1min"), (5.0, "5min"), (15.0, "15min")];

/// What was said so far.
pub(crate) struct System {
    every: Duration,
    due: Option<Instant>,
    last_at: Instant,
    /// Counts of the last time, and averages per minute, in the order of [`LOADS`].
    counts: Vec<u64>,
    averages: Vec<[f64; 3]>,
    sessions_max: u64,
    said: HashMap<Box<str>, Box<str>>,
}

impl System {
    /// Says something every `every`, for the first time at once; never if that is zero.
    pub(crate) fn new(every: Duration, now: Instant) -> System {
        System {
            every,
            due: (!every.is_zero()).then_some(now),
            last_at: now,
            counts: vec![0; LOADS.len()],
            averages: vec![[0.0; 3]; LOADS.len()],
            sessions_max: 0,
            said: HashMap::new(),
        }
    }

    /// Says something this often from now on; never if that is zero.
    pub(crate) fn change(&mut self, every: Duration, now: Instant) {
        if every != self.every {
            (self.every, self.due) = (every, (!every.is_zero()).then_some(now));
        }
    }

    /// When it is time to say something.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What has changed, if it is time.
    pub(crate) fn news(&mut self, now: Instant, report: impl FnOnce() -> Report) -> Option<Arc<[Said]>> {
        self.due.filter(|due| *due <= now)?;
        self.due = Some(now + self.every);
        let report = report();
        self.average(&report, now);
        let mut fresh: Vec<Said> = Vec::new();
        for (topic, text) in self.all(&report) {
            let (topic, text) = (topic.into_boxed_str(), text.into_boxed_str());
            if self.said.get(&topic) != Some(&text) {
                self.said.insert(topic.clone(), text.clone());
                fresh.push((topic, text));
            }
        }
        Some(fresh.into())
    }

    /// mosquitto's average: what came since the last time, per minute, weighs the more the longer that is ago.
    fn average(&mut self, report: &Report, now: Instant) {
        let passed = now.saturating_duration_since(self.last_at).as_secs_f64() / 60.0;
        self.last_at = now;
        for (at, (_, count)) in LOADS.iter().enumerate() {
            let count = count(report);
            let came = count.saturating_sub(std::mem::replace(&mut self.counts[at], count)) as f64;
            if passed == 0.0 {
                continue;
            }
            for (average, (minutes, _)) in self.averages[at].iter_mut().zip(MINUTES) {
                let kept = (-passed / minutes).exp();
                *average = came / passed + kept * (*average - came / passed);
            }
        }
    }

    fn all(&mut self, report: &Report) -> Vec<(String, String)> {
        let shards = |of: fn(&contract::report::ShardReport) -> u64| report.total(of);
        let connected = report.counter("client_connected").saturating_sub(report.counter("client_disconnected"));
        let sessions = shards(|shard| shard.sessions);
        self.sessions_max = self.sessions_max.max(sessions);
        let away = sessions.saturating_sub(connected);
        let stored = shards(|shard| shard.stored);
        let figures: [(&str, u64); 28] = [
            ("clients/total", sessions),
            ("clients/maximum", self.sessions_max),
            ("clients/connected", connected),
            ("clients/active", connected),
            ("clients/disconnected", away),
            ("clients/inactive", away),
            ("clients/expired", report.counter("session_expired")),
            ("messages/received", report.counter("packets_received")),
            ("messages/sent", report.counter("packets_sent")),
            ("messages/inflight", shards(|shard| shard.inflight)),
            ("messages/stored", stored),
            ("store/messages/count", stored),
            ("store/messages/bytes", shards(|shard| shard.stored_bytes)),
            ("publish/messages/received", report.counter("messages_received")),
            ("publish/messages/sent", report.counter("messages_sent")),
            ("publish/messages/dropped", shed(report)),
            ("publish/bytes/received", report.counter("publish_bytes_received")),
            ("publish/bytes/sent", report.counter("publish_bytes_sent")),
            ("bytes/received", report.counter("bytes_received")),
            ("bytes/sent", report.counter("bytes_sent")),
            ("subscriptions/count", shards(|shard| shard.subscriptions)),
            ("shared_subscriptions/count", shards(|shard| shard.shared_subscriptions)),
            ("retained messages/count", shards(|shard| shard.retained)),
            ("network/socketconnects/total", report.counter("connections_accepted")),
            ("clients/mqttconnects/total", report.counter("client_connected")),
            ("sessions/total", sessions),
            ("heap/current", report.memory_bytes),
            ("heap/maximum", report.memory_bytes_max),
        ];
        let mut all = vec![
            ("$SYS/broker/version".to_owned(), format!("ringmq version {}", report.version)),
            ("$SYS/broker/uptime".to_owned(), format!("{} seconds", report.uptime_ms / 1000)),
        ];
        all.extend(figures.iter().map(|(name, value)| (format!("$SYS/broker/{name}"), value.to_string())));
        for ((name, _), averages) in LOADS.iter().zip(&self.averages) {
            for (average, (_, minutes)) in averages.iter().zip(MINUTES) {
                all.push((format!("$SYS/broker/load/{name}/{minutes}"), format!("{average:.2}")));
            }
        }
        for link in &report.links {
            let up = u8::from(link.status == "connected");
            all.push((format!("$SYS/broker/connection/{}/state", link.name), up.to_string()));
        }
        all
    }
}

/// Messages that were given up, for whatever reason.
fn shed(report: &Report) -> u64 {
    report.counters.iter().filter(|counter| counter.name.starts_with("shed_")).map(|counter| counter.value).sum()
}

#[cfg(test)]
mod tests {
    use contract::report::{CounterReport, ShardReport};

    use super::*;

    fn report(received: u64) -> Report {
        let counter = |name: &str, value| CounterReport { name: name.into(), doc: String::new(), value };
        Report {
            version: "1.2.3".into(),
            uptime_ms: 61_500,
            shards: vec![ShardReport { sessions: 3, ..ShardReport::default() }; 2],
            counters: vec![
                counter("messages_received", received),
                counter("client_connected", 4),
                counter("shed_expired", 2),
            ],
            ..Report::default()
        }
    }

    fn text<'a>(news: &'a [Said], name: &str) -> Option<&'a str> {
        news.iter().find(|(topic, _)| topic.strip_prefix("$SYS/broker/") == Some(name)).map(|(_, text)| &**text)
    }

    #[test]
    fn everything_is_said_once_and_then_what_has_changed() {
        let start = Instant::now();
        let mut system = System::new(Duration::from_secs(10), start);
        let first = system.news(start, || report(0)).expect("it begins at once");
        assert_eq!(text(&first, "version"), Some("ringmq version 1.2.3"));
        assert_eq!(text(&first, "uptime"), Some("61 seconds"));
        assert_eq!((text(&first, "clients/total"), text(&first, "clients/connected")), (Some("6"), Some("4")));
        assert_eq!(text(&first, "publish/messages/dropped"), Some("2"));
        assert!(system.news(start + Duration::from_secs(9), || panic!("it is not time")).is_none());
        let next = system.news(start + Duration::from_secs(10), || report(120)).expect("it is time");
        assert_eq!(text(&next, "publish/messages/received"), Some("120"));
        assert_eq!(text(&next, "version"), None, "it has not changed");
    }

    #[test]
    fn loads_are_per_minute_and_fade() {
        let start = Instant::now();
        let mut system = System::new(Duration::from_secs(60), start);
        system.news(start, || report(0));
        let after = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let busy = system.news(after(1), || report(600)).expect("it is time");
        // 600 (1 - 1/e)
        assert_eq!(text(&busy, "load/publish/received/1min"), Some("379.27"));
        let idle = system.news(after(2), || report(600)).expect("it is time");
        assert_eq!(text(&idle, "load/publish/received/1min"), Some("139.53"));
    }

    #[test]
    fn nothing_is_ever_said_with_an_interval_of_zero() {
        let now = Instant::now();
        assert!(System::new(Duration::ZERO, now).news(now, || panic!("nobody asks")).is_none());
    }
}
