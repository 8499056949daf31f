//! `/metrics`: the last Report in Prometheus' text format. Every counter appears under its own name with the sentence
//! that explains it, and, where EMQX counts the same thing, also under EMQX's name, for the boards that know it.

mod emqx;

use std::fmt::{Display, Write};

use contract::report::{Alarm, FLUSH_BOUNDS_US, LogReport, LogState, Report};

use crate::{
    host::Host,
    state::{Peaks, Seen, Shared},
};

/// Why connections of clients ended: the label, and the counter.
const DISCONNECTS: &[(&str, &str)] = &[
    ("normal", "disconnected_normal"),
    ("closed", "disconnected_closed"),
    ("broken", "disconnected_broken"),
    ("shutdown", "disconnected_shutdown"),
    ("keep_alive_timeout", "keep_alive_timeout"),
    ("taken_over", "session_taken_over"),
    ("malformed", "packets_malformed"),
    ("protocol_error", "protocol_errors"),
    ("not_authorized", "connections_not_authorized"),
    ("revoked", "clients_revoked"),
    ("expired", "clients_expired"),
];

/// What a client was told about who it is: the label, and the counter.
const AUTHENTICATION: &[(&str, &str)] = &[
    ("allowed", "authentication_allowed"),
    ("denied", "authentication_denied"),
    ("overloaded", "authentication_overloaded"),
    ("timed_out", "authentication_timed_out"),
];

/// The page.
pub(crate) fn render(shared: &Shared) -> String {
    let mut page = Page::default();
    let seen = shared.seen();
    let labels = [("node", shared.node.as_str()), ("version", env!("CARGO_PKG_VERSION"))];
    page.head("ringmq_info", "gauge", "Name and version of this node.");
    page.sample("ringmq_info", &labels, 1);
    page.one("ringmq_control_uptime_seconds", "gauge", "Time since control started.", shared.uptime().as_secs_f64());
    page.one("ringmq_dataplane_up", "gauge", "The data plane answers control.", u8::from(seen.up));
    let refused = "HTTP requests that were refused for want of a key.";
    page.one("ringmq_http_unauthorized_total", "counter", refused, shared.http_refusals());
    page.one("emqx_cluster_nodes_running", "gauge", "Nodes that serve.", u8::from(seen.up));
    page.one("emqx_cluster_nodes_stopped", "gauge", "Nodes that do not serve.", u8::from(!seen.up));
    page.machine();
    // An old Report would look like a node that stands still: better no samples than wrong ones.
    if let Seen { up: true, report: Some(report), age } = &seen {
        page.one("ringmq_report_age_seconds", "gauge", "Age of the figures below.", age.as_secs_f64());
        page.one(
            "ringmq_dataplane_uptime_seconds",
            "gauge",
            "Time since the data plane started.",
            report.uptime_ms as f64 / 1e3,
        );
        page.gauges(report, &shared.peaks());
        page.counters(report);
        page.reasons(report);
        page.shards(report);
        page.logs(report);
        page.alarms(report);
        page.listeners(report);
        page.links(report);
    }
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// What the machine has, whoever uses it: EMQX's figures of its virtual machine.
    fn machine(&mut self) {
        let host = Host::look();
        self.one("emqx_vm_total_memory", "gauge", "Bytes of memory of this machine.", host.memory_total_bytes);
        self.one("emqx_vm_used_memory", "gauge", "Bytes of it that are in use.", host.memory_used_bytes);
        self.one("ringmq_machine_load1", "gauge", "Load of this machine, average of one minute.", host.load[0]);
    }

    fn gauges(&mut self, report: &Report, peaks: &Peaks) {
        let now = Peaks::of(report);
        let gauges = [
            ("connections", "Connections", now.connections, peaks.connections),
            ("live_connections", "Connections that are open", now.connections, peaks.connections),
            ("sessions", "Sessions, with or without connection", now.sessions, peaks.sessions),
            ("cluster_sessions", "Sessions in the cluster", now.sessions, peaks.sessions),
            ("subscriptions", "Subscriptions", now.subscriptions, peaks.subscriptions),
            ("subscriptions_shared", "Shared subscriptions", now.shared, peaks.shared),
            ("retained", "Retained messages", now.retained, peaks.retained),
        ];
        for (name, doc, value, peak) in gauges {
            self.one(&format!("emqx_{name}_count"), "gauge", &format!("{doc}."), value);
            let doc = format!("{doc}: the most in any Report since control started.");
            self.one(&format!("emqx_{name}_max"), "gauge", &doc, peak);
        }
        self.one("emqx_vm_uptime_ms", "gauge", "Milliseconds since the data plane started.", report.uptime_ms);
        let doc = "Resident memory of the data plane.";
        self.one("ringmq_dataplane_memory_bytes", "gauge", doc, report.memory_bytes);
        let doc = "The most that it was since the start of the data plane.";
        self.one("ringmq_dataplane_memory_max_bytes", "gauge", doc, report.memory_bytes_max);
    }

    fn counters(&mut self, report: &Report) {
        for counter in &report.counters {
            self.one(&format!("ringmq_{}_total", counter.name), "counter", counter.doc.trim(), counter.value);
        }
        for (name, parts) in emqx::COUNTERS {
            let value: u64 = parts.iter().map(|part| report.counter(part)).sum();
            self.one(&format!("emqx_{name}"), "counter", &format!("EMQX's name for {}.", parts.join(" + ")), value);
        }
    }

    /// The same counters once more, as one family each with the reason as a label: what a board stacks.
    fn reasons(&mut self, report: &Report) {
        let name = "ringmq_shed_total";
        self.head(
            name,
            "counter",
            "Messages given up on purpose, by reason; ringmq_shed_<reason>_total explains each.",
        );
        for counter in &report.counters {
            if let Some(reason) = counter.name.strip_prefix("shed_") {
                self.sample(name, &[("reason", reason)], counter.value);
            }
        }
        let families = [
            ("ringmq_disconnects_total", "Connections that ended, by reason.", DISCONNECTS),
            ("ringmq_authentications_total", "What came of asking who a client is.", AUTHENTICATION),
            ("emqx_client_disconnected_reason", "EMQX's name for ringmq_disconnects_total.", emqx::DISCONNECTS),
        ];
        for (name, doc, reasons) in families {
            self.head(name, "counter", doc);
            for (reason, counter) in reasons {
                self.sample(name, &[("reason", reason)], report.counter(counter));
            }
        }
    }

    fn shards(&mut self, report: &Report) {
        type Of = fn(&contract::report::ShardReport) -> u64;
        let values: [(&str, &str, Of); 14] = [
            ("turns", "Turns since the start.", |shard| shard.turns),
            ("connections", "Transports, with or without CONNECT.", |shard| shard.connections),
            ("sessions", "Sessions, with or without connection.", |shard| shard.sessions),
            ("subscriptions", "Subscriptions that are not shared.", |shard| shard.subscriptions),
            ("shared_subscriptions", "Subscriptions that are shared.", |shard| shard.shared_subscriptions),
            ("retained", "Retained messages that the shard owns.", |shard| shard.retained),
            ("interest", "Filters that the shard knows.", |shard| shard.interest),
            ("obligations", "Publishes and subscribes that wait for another shard.", |shard| shard.obligations),
            ("staged_bytes", "Bytes that wait for room in a mailbox.", |shard| shard.staged_bytes),
            ("queued", "Messages that wait for their sessions.", |shard| shard.queued),
            ("queued_bytes", "Their bytes.", |shard| shard.queued_bytes),
            ("inflight", "Messages sent to clients and not acknowledged.", |shard| shard.inflight),
            ("stored", "Messages kept for somebody or as retained ones, each once.", |shard| shard.stored),
            ("stored_bytes", "Bytes of their payload.", |shard| shard.stored_bytes),
        ];
        for (name, doc, value) in values {
            let (name, kind) = match name {
                "turns" => ("ringmq_shard_turns_total".to_owned(), "counter"),
                name => (format!("ringmq_shard_{name}"), "gauge"),
            };
            self.head(&name, kind, doc);
            for (index, shard) in report.shards.iter().enumerate() {
                self.sample(&name, &[("shard", &index.to_string())], value(shard));
            }
        }
        let name = "ringmq_shard_busy_seconds_total";
        self.head(name, "counter", "Time that a shard was awake; one second per second is all that it has.");
        for (index, shard) in report.shards.iter().enumerate() {
            self.sample(name, &[("shard", &index.to_string())], shard.busy_us as f64 / 1e6);
        }
    }

    fn logs(&mut self, report: &Report) {
        type Of = fn(&LogReport) -> u64;
        let values: [(&str, &str, &str, Of); 13] = [
            ("commits_total", "counter", "Writes of the log: each is one group of batches.", |log| log.commits),
            ("syncs_total", "counter", "Flushes of the log.", |log| log.syncs),
            ("batches_total", "counter", "Batches written to the log; one turn of a shard makes one.", |log| {
                log.batches
            }),
            ("bytes_total", "counter", "Bytes written to the log.", |log| log.bytes),
            ("batches_dropped_total", "counter", "Batches dropped because the log could not be written.", |log| {
                log.batches_dropped
            }),
            (
                "compactions_total",
                "counter",
                "Checkpoints that became complete, and so freed what was before.",
                |log| log.checkpoints,
            ),
            ("detachments_total", "counter", "Times that the log could no longer be written.", |log| log.detachments),
            ("failures_total", "counter", "Operations on files of the log that failed.", |log| log.failures),
            ("commit_batches_max", "gauge", "Most batches in one write since the start.", |log| log.commit_batches_max),
            ("segments", "gauge", "Segments that a recovery would read.", |log| log.segments),
            ("disk_bytes", "gauge", "Bytes of all files of the log.", |log| log.disk_bytes),
            ("since_checkpoint_bytes", "gauge", "Bytes since the last complete checkpoint began.", |log| {
                log.since_checkpoint_bytes
            }),
            ("pending_bytes", "gauge", "Bytes that wait to be written to the log.", |log| log.pending_bytes),
        ];
        let logs =
            || report.shards.iter().enumerate().filter_map(|(shard, report)| Some((shard, report.log.as_ref()?)));
        if logs().next().is_none() {
            return;
        }
        for (name, kind, doc, value) in values {
            let name = format!("ringmq_log_{name}");
            self.head(&name, kind, doc);
            for (shard, log) in logs() {
                self.sample(&name, &[("shard", &shard.to_string())], value(log));
            }
        }
        let name = "ringmq_log_flush_seconds";
        self.head(name, "histogram", "How long flushes of the log took.");
        for (shard, log) in logs() {
            self.histogram(name, &shard.to_string(), log);
        }
        let name = "ringmq_log_state";
        self.head(name, "gauge", "1 for what the log takes: everything, only what makes it smaller, nothing.");
        for (shard, log) in logs() {
            for state in [LogState::Ok, LogState::Tight, LogState::Detached] {
                let labels = [("shard", shard.to_string()), ("state", state.word().to_owned())];
                let labels = [(labels[0].0, labels[0].1.as_str()), (labels[1].0, labels[1].1.as_str())];
                self.sample(name, &labels, u8::from(log.state == state));
            }
        }
    }

    fn histogram(&mut self, name: &str, shard: &str, log: &LogReport) {
        let (bucket, mut count) = (format!("{name}_bucket"), 0);
        let bounds = FLUSH_BOUNDS_US.iter().map(|us| (*us as f64 / 1e6).to_string());
        for (place, bound) in bounds.chain(["+Inf".to_owned()]).enumerate() {
            count += log.flush_counts.get(place).copied().unwrap_or(0);
            self.sample(&bucket, &[("shard", shard), ("le", &bound)], count);
        }
        self.sample(&format!("{name}_sum"), &[("shard", shard)], log.flush_total_us as f64 / 1e6);
        self.sample(&format!("{name}_count"), &[("shard", shard)], count);
    }

    fn alarms(&mut self, report: &Report) {
        let name = "ringmq_alarm";
        self.head(name, "gauge", "1 while an alarm is active.");
        for alarm in Alarm::ALL {
            let active = report.alarms().any(|(found, _)| found == alarm);
            self.sample(name, &[("name", alarm.name)], u8::from(active));
        }
    }

    fn listeners(&mut self, report: &Report) {
        for (name, doc, most) in [
            ("ringmq_listener_connections", "Connections of a listener.", false),
            ("ringmq_listener_connections_max", "Most connections of a listener.", true),
        ] {
            self.head(name, "gauge", doc);
            for listener in &report.listeners {
                let labels =
                    [("kind", listener.kind.as_str()), ("name", &listener.name), ("address", &listener.address)];
                self.sample(name, &labels, if most { listener.max_connections } else { listener.connections });
            }
        }
    }

    fn links(&mut self, report: &Report) {
        for (name, doc) in [
            ("ringmq_link_up", "The link is connected."),
            ("ringmq_link_routes", "Filters that the remote announced."),
            ("ringmq_link_queued", "Messages that wait for the remote."),
            ("ringmq_link_queued_bytes", "Bytes that wait for the remote."),
        ] {
            self.head(name, "gauge", doc);
            for link in &report.links {
                let value = match name {
                    "ringmq_link_up" => u64::from(link.status == "connected"),
                    "ringmq_link_routes" => link.routes,
                    "ringmq_link_queued" => link.queued,
                    _ => link.queued_bytes,
                };
                self.sample(name, &[("link", link.name.as_str())], value);
            }
        }
    }

    fn one(&mut self, name: &str, kind: &str, doc: &str, value: impl Display) {
        self.head(name, kind, doc);
        self.sample(name, &[], value);
    }

    fn head(&mut self, name: &str, kind: &str, doc: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {}", escape(doc, false));
        let _ = writeln!(self.text, "# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (place, (label, text)) in labels.iter().enumerate() {
            let before = if place == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{label}=\"{}\"", escape(text, true));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

/// The format escapes backslash and line end, and quotes inside of a label.
fn escape(text: &str, label: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if label { text.replace('"', "\\\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::{
        config::Config,
        report::{CounterReport, LinkReport, ListenerReport, ShardReport},
        view::View,
    };
    use std::{collections::HashSet, sync::Arc};

    fn shared() -> Arc<Shared> {
        let (sender, view) = tokio::sync::watch::channel(Arc::new(View::default()));
        let dir = tempfile::tempdir().unwrap();
        let doors = crate::doors::Doors::open(dir.path()).unwrap();
        let (reloads, _) = tokio::sync::mpsc::channel(1);
        let bans = crate::bans::Bans::new(dir.path(), Vec::new(), sender);
        let traces = crate::traces::Traces::open(dir.path());
        Shared::new(&Config::default(), "127.0.0.1:1".parse().unwrap(), view, (doors, bans, traces), reloads)
    }

    fn report() -> Report {
        let counter = |name: &str, value| CounterReport { name: name.into(), doc: " Says\nmore.".into(), value };
        let flush_counts = vec![0, 2, 0, 0, 0, 0, 0, 0, 1];
        let log = LogReport { state: LogState::Tight, commits: 5, flush_counts, ..LogReport::default() };
        Report {
            shards: vec![
                ShardReport { connections: 2, sessions: 3, ..ShardReport::default() },
                ShardReport { connections: 2, sessions: 3, log: Some(log), ..ShardReport::default() },
            ],
            listeners: vec![ListenerReport { kind: "tcp".into(), name: "default".into(), ..ListenerReport::default() }],
            links: vec![LinkReport { name: "a\"b\\".into(), status: "connected".into(), ..LinkReport::default() }],
            counters: vec![counter("messages_sent", 41), counter("shed_queue_full", 2), counter("shed_expired", 1)],
            ..Report::default()
        }
    }

    #[test]
    fn a_report_appears_under_our_names_and_those_of_emqx() {
        let shared = shared();
        shared.reported(report());
        shared.connected(true);
        let text = render(&shared);
        for line in [
            "ringmq_dataplane_up 1",
            "ringmq_messages_sent_total 41",
            "# HELP ringmq_messages_sent_total Says\\nmore.",
            "emqx_messages_sent 41",
            "emqx_delivery_dropped 3",
            "emqx_delivery_dropped_queue_full 2",
            "emqx_connections_count 4",
            "ringmq_shard_sessions{shard=\"1\"} 3",
            "ringmq_log_commits_total{shard=\"1\"} 5",
            "ringmq_log_flush_seconds_bucket{shard=\"1\",le=\"0.0001\"} 0",
            "ringmq_log_flush_seconds_bucket{shard=\"1\",le=\"0.0003\"} 2",
            "ringmq_log_flush_seconds_bucket{shard=\"1\",le=\"+Inf\"} 3",
            "ringmq_log_flush_seconds_count{shard=\"1\"} 3",
            "ringmq_shed_total{reason=\"queue_full\"} 2",
            "emqx_connections_max 4",
            "ringmq_log_state{shard=\"1\",state=\"tight\"} 1",
            "ringmq_log_state{shard=\"1\",state=\"ok\"} 0",
            "ringmq_alarm{name=\"log_full\"} 1",
            "ringmq_alarm{name=\"log_detached\"} 0",
            "ringmq_link_up{link=\"a\\\"b\\\\\"} 1",
            "ringmq_listener_connections{kind=\"tcp\",name=\"default\",address=\"\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn every_family_is_headed_once_and_every_sample_is_a_number() {
        let shared = shared();
        shared.reported(report());
        shared.connected(true);
        let (mut families, mut samples) = (HashSet::new(), 0);
        for line in render(&shared).lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                assert!(families.insert(rest.split(' ').next().unwrap().to_owned()), "{line} comes twice");
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let family = series.split('{').next().unwrap();
                let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| family.strip_suffix(end));
                let headed = families.contains(family) || of_histogram.is_some_and(|name| families.contains(name));
                assert!(headed, "{line} has no head");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                samples += 1;
            }
        }
        assert!(samples > 50, "only {samples} samples");
    }

    #[test]
    fn figures_of_a_silent_data_plane_are_not_shown() {
        let shared = shared();
        assert!(render(&shared).contains("ringmq_dataplane_up 0"));
        shared.reported(report());
        let text = render(&shared);
        assert!(text.contains("ringmq_dataplane_up 0") && !text.contains("messages_sent"), "{text}");
    }
}
