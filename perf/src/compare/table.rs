//! Medians over rounds, ratios between brokers, and the printed table (Markdown, so that it can be pasted). Fed by
//! `compare` with the JSON lines of single runs.

use serde_json::Value;

use super::scenarios::{Measure, Scenario};

/// Head of the table.
pub const HEAD: &str = "\
| scenario | broker | cost | spread | x mosquitto | x relay | per second | p50 us | p99 us | verified |
|---|---|--:|--:|--:|--:|--:|--:|--:|---|";

/// All rounds of one scenario against one broker.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// Name of the broker.
    pub broker: String,
    /// Why nothing could be measured at all.
    pub missing: Option<String>,
    costs: Vec<f64>,
    rates: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    faults: Vec<String>,
    runs: usize,
}

impl Cell {
    /// A cell without runs.
    pub fn new(broker: &str, missing: Option<String>) -> Cell {
        Cell { broker: broker.into(), missing, ..Cell::default() }
    }

    /// Enters the result of one run, or why there is none.
    pub fn enter(&mut self, measure: Measure, run: &Result<Value, String>) {
        self.runs += 1;
        let run = match run {
            Ok(run) => run,
            Err(error) => return self.faults.push(error.clone()),
        };
        let number = |name: &str| run.pointer(name).and_then(Value::as_f64);
        let cost = match measure {
            Measure::Delivery => number("/cpu_ns_per_delivery"),
            Measure::Connection => number("/cpu_ns_per_connection"),
            Measure::Idle => number("/resident_bytes_per_connection"),
        };
        self.costs.extend(cost);
        let count = number("/delivered").or(number("/connections"));
        self.rates.extend(count.zip(number("/seconds")).map(|(count, seconds)| count / seconds.max(1e-9)));
        self.p50_us.extend(number("/latency_us/p50"));
        self.p99_us.extend(number("/latency_us/p99"));
        if let Some(verdict) = run.get("verified").and_then(Value::as_str).filter(|verdict| *verdict != "ok") {
            self.faults.push(verdict.into());
        }
    }

    /// Median cost over the rounds.
    pub fn cost(&self) -> Option<f64> {
        median(&self.costs)
    }

    /// Whether every run was there and verified.
    pub fn is_clean(&self) -> bool {
        self.faults.is_empty() && self.runs > 0
    }

    fn verified(&self) -> String {
        match self.faults.first() {
            None => "ok".into(),
            Some(fault) => format!("{} of {} runs: {fault}", self.faults.len(), self.runs).replace('|', "/"),
        }
    }

    fn spread(&self) -> Option<f64> {
        let low = self.costs.iter().copied().reduce(f64::min)?;
        let high = self.costs.iter().copied().reduce(f64::max)?;
        self.cost().filter(|cost| *cost > 0.0).map(|cost| (high - low) * 100.0 / cost)
    }
}

/// The rows of one scenario.
pub fn rows(scenario: &Scenario, cells: &[Cell]) -> Vec<String> {
    let cost_of = |name: &str| cells.iter().find(|cell| cell.broker == name).and_then(Cell::cost);
    let (mosquitto, relay) = (cost_of("mosquitto"), cost_of("relay"));
    let unit = if scenario.measure == Measure::Idle { "B" } else { "ns" };
    let row = |cell: &Cell| {
        if let Some(missing) = &cell.missing {
            return format!("| {} | {} | - | - | - | - | - | - | - | {missing} |", scenario.name, cell.broker);
        }
        let cost = cell.cost();
        let ratio = |base: Option<f64>| {
            let ratio = cost.zip(base).filter(|(_, base)| *base > 0.0).map(|(cost, base)| cost / base);
            ratio.map_or("-".into(), |ratio| format!("{ratio:.*}", if ratio < 0.1 { 3 } else { 2 }))
        };
        let number =
            |value: Option<f64>, decimals: usize| value.map_or("-".into(), |value| format!("{value:.decimals$}"));
        let decimals = usize::from(cost.is_some_and(|cost| cost < 1000.0));
        format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            scenario.name,
            cell.broker,
            cost.map_or("-".into(), |cost| format!("{cost:.decimals$} {unit}")),
            cell.spread().map_or("-".into(), |spread| format!("{spread:.0} %")),
            ratio(mosquitto),
            ratio(relay),
            number(median(&cell.rates), 0),
            number(median(&cell.p50_us), 0),
            number(median(&cell.p99_us), 0),
            cell.verified()
        )
    };
    cells.iter().map(row).collect()
}

/// The middle one, or the mean of the middle two.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenarios::chosen;
    use super::*;
    use serde_json::json;

    fn run(cost: f64, verified: &str) -> Result<Value, String> {
        let latency = json!({ "p50": 10.0, "p99": 20.0 });
        Ok(json!({
            "cpu_ns_per_delivery": cost, "delivered": 200, "seconds": 2.0, "latency_us": latency, "verified": verified
        }))
    }

    #[test]
    fn a_row_shows_the_median_the_ratios_and_the_first_fault() {
        let scenario = chosen(&["fan100".into()]).unwrap()[0];
        let mut ringmq = Cell::new("ringmq", None);
        for result in [run(50.0, "ok"), run(70.0, "1 lost"), run(60.0, "ok")] {
            ringmq.enter(scenario.measure, &result);
        }
        let mut mosquitto = Cell::new("mosquitto", None);
        mosquitto.enter(scenario.measure, &run(6000.0, "ok"));
        let mut relay = Cell::new("relay", None);
        relay.enter(scenario.measure, &run(30.0, "ok"));
        assert!(!ringmq.is_clean() && mosquitto.is_clean());
        let rows = rows(&scenario, &[ringmq, mosquitto, relay]);
        assert_eq!(
            rows[0],
            "| fan100 | ringmq | 60.0 ns | 33 % | 0.010 | 2.00 | 100 | 10 | 20 | 1 of 3 runs: 1 lost |"
        );
        assert_eq!(rows[1], "| fan100 | mosquitto | 6000 ns | 0 % | 1.00 | 200.00 | 100 | 10 | 20 | ok |");
    }

    #[test]
    fn a_broker_that_is_missing_or_fails_has_a_row_that_says_so() {
        let scenario = chosen(&["idle".into()]).unwrap()[0];
        let missing = Cell::new("mosquitto", Some("not installed (/x)".into()));
        let mut failing = Cell::new("ringmq", None);
        failing.enter(scenario.measure, &Err("cannot connect".into()));
        let rows = rows(&scenario, &[missing, failing]);
        assert!(rows[0].ends_with("| not installed (/x) |"));
        assert_eq!(rows[1], "| idle | ringmq | - | - | - | - | - | - | - | 1 of 1 runs: cannot connect |");
    }

    #[test]
    fn a_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
