//! What one run found, as a table row for people and as one JSON line for programs. Made by `load::run`, read back by
//! `compare`.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::plan::{Layout, Pace, Plan};
use crate::ledger::Tally;
use crate::wire::Version;

/// Result of one run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The run.
    pub plan: Plan,
    /// Length of the measured phase in seconds.
    pub seconds: f64,
    /// Messages published in the measured phase.
    pub published: u64,
    /// Messages that arrived at a subscriber in the measured phase.
    pub delivered: u64,
    /// CPU nanoseconds of the broker in the measured phase, if processes were given.
    pub cpu_ns: Option<u64>,
    /// Share of user time in it.
    pub user_percent: Option<u64>,
    /// Time from sending to arriving, of messages sent in the measured phase.
    pub latency: Histogram<u64>,
    /// Verification of the whole run, warm-up included.
    pub tally: Tally,
    /// QoS 1 and 2: messages whose last acknowledgement never came.
    pub unacknowledged: u64,
    /// Why the run ended early, if it did.
    pub failure: Option<String>,
}

impl Report {
    /// CPU nanoseconds per delivered message.
    pub fn cpu_ns_per_delivery(&self) -> Option<f64> {
        self.cpu_ns.filter(|_| self.delivered > 0).map(|cpu_ns| cpu_ns as f64 / self.delivered as f64)
    }

    /// Whether everything arrived once, whole, in order and acknowledged, and the run went to its end.
    pub fn is_clean(&self) -> bool {
        self.tally.is_clean() && self.unacknowledged == 0 && self.failure.is_none()
    }

    /// What is wrong, or `ok`.
    pub fn verdict(&self) -> String {
        let mut verdict = self.tally.verdict();
        if self.unacknowledged > 0 {
            verdict = format!("{verdict}, {} unacknowledged", self.unacknowledged);
        }
        match &self.failure {
            Some(failure) => format!("FAILED: {failure} ({verdict})"),
            None => verdict,
        }
    }

    /// Head of the table.
    pub fn head() -> String {
        format!(
            "{:<16} {:>10} {:>12} {:>6} {:>9} {:>9} {:>9}  {}",
            "load", "CPU-ns/msg", "delivered/s", "user", "p50 us", "p99 us", "max us", "verified"
        )
    }

    /// One row of the table.
    pub fn row(&self) -> String {
        let micros = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1e3;
        format!(
            "{:<16} {:>10} {:>12.0} {:>6} {:>9.1} {:>9.1} {:>9.1}  {}",
            self.plan.label,
            self.cpu_ns_per_delivery().map_or("-".into(), |cpu_ns| format!("{cpu_ns:.1}")),
            self.delivered as f64 / self.seconds.max(1e-9),
            self.user_percent.map_or("-".into(), |percent| format!("{percent} %")),
            micros(0.5),
            micros(0.99),
            self.latency.max() as f64 / 1e3,
            self.verdict()
        )
    }

    /// The same and everything behind it, on one line.
    pub fn json(&self) -> Value {
        let plan = &self.plan;
        let (window, rate) = match plan.pace {
            Pace::Window(window) => (Some(window), None),
            Pace::Rate(rate) => (None, Some(rate)),
        };
        let micros = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1e3;
        json!({
            "load": plan.label,
            "mqtt": if plan.version == Version::V5 { "5.0" } else { "3.1.1" },
            "layout": match plan.layout { Layout::Fan => "fan", Layout::Pairs => "pairs", Layout::NToOne => "n-to-one" },
            "publishers": plan.publishers,
            "subscribers": plan.subscribers,
            "qos": plan.qos,
            "payload_bytes": plan.payload_bytes,
            "window": window,
            "rate": rate,
            "inflight": plan.inflight_max,
            "threads": plan.threads,
            "seconds": self.seconds,
            "published": self.published,
            "delivered": self.delivered,
            "cpu_ns": self.cpu_ns,
            "cpu_ns_per_delivery": self.cpu_ns_per_delivery(),
            "user_percent": self.user_percent,
            "latency_us": {
                "p50": micros(0.5),
                "p90": micros(0.9),
                "p99": micros(0.99),
                "p999": micros(0.999),
                "max": self.latency.max() as f64 / 1e3,
                "samples": self.latency.len(),
            },
            "arrived": self.tally.arrived,
            "lost": self.tally.lost,
            "duplicates": self.tally.duplicates,
            "reordered": self.tally.reordered,
            "foreign": self.tally.foreign,
            "corrupt": self.tally.corrupt,
            "unacknowledged": self.unacknowledged,
            "failure": self.failure,
            "verified": self.verdict(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::plan;
    use super::*;

    #[test]
    fn a_report_names_every_fault_and_divides_by_deliveries() {
        let mut latency = Histogram::new(3).unwrap();
        latency.record(5_000).unwrap();
        let mut report = Report {
            plan: plan(Layout::Fan, 1, 4),
            seconds: 2.0,
            published: 100,
            delivered: 400,
            cpu_ns: Some(20_000),
            user_percent: None,
            latency,
            tally: Tally { arrived: 400, ..Tally::default() },
            unacknowledged: 0,
            failure: None,
        };
        assert!(report.is_clean());
        assert_eq!(report.cpu_ns_per_delivery(), Some(50.0));
        assert_eq!(report.json()["verified"], "ok");
        report.unacknowledged = 2;
        assert!(!report.is_clean());
        report.tally.lost = 1;
        report.failure = Some("the broker closed the connection".into());
        let verdict = report.verdict();
        assert_eq!(verdict, "FAILED: the broker closed the connection (1 lost, 2 unacknowledged)");
        assert!(report.row().ends_with(&verdict));
        report.delivered = 0;
        assert_eq!(report.cpu_ns_per_delivery(), None);
    }
}
