//! The Grafana board asks for nothing that a node does not have: every metric, label and label value of its PromQL is
//! looked for on `/metrics`.

use crate::setup;
use harness::wire::{Connect, V5};
use harness::{LONG, Raw, within};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Labels that Prometheus adds when it scrapes.
const OF_PROMETHEUS: &[&str] = &["instance", "job"];
/// Labels that an aggregation makes or that PromQL itself knows.
const AGGREGATIONS: &[&str] = &["sum", "min", "max", "avg", "count", "topk", "bottomk", "quantile"];
const LABEL_LISTS: &[&str] = &["by", "without", "on", "ignoring", "group_left", "group_right"];
const OPERATORS: &[&str] = &["and", "or", "unless", "bool", "offset"];

/// A label, an operator and a value.
type Matcher = (String, String, String);
/// The samples of a page: metric, and the labels of each.
type Page = BTreeMap<String, Vec<BTreeMap<String, String>>>;

/// What one expression asks for.
#[derive(Default, Debug)]
struct Asked {
    /// Metric, and its matchers.
    selectors: Vec<(String, Vec<Matcher>)>,
    /// Labels that it groups by or shows.
    labels: BTreeSet<String>,
}

/// Reads as much PromQL as a board uses; panics on what it does not understand.
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, sign: char) -> bool {
        self.space();
        let taken = self.rest.strip_prefix(sign);
        self.rest = taken.unwrap_or(self.rest);
        taken.is_some()
    }

    fn until(&mut self, sign: char) -> &'a str {
        let (before, after) = self.rest.split_once(sign).unwrap_or_else(|| panic!("no {sign} in {}", self.rest));
        self.rest = after;
        before
    }

    fn word(&mut self) -> Option<&'a str> {
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | ':')));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    fn matchers(&mut self) -> Vec<Matcher> {
        let mut matchers = Vec::new();
        while !self.take('}') {
            self.space();
            let label = self.word().expect("a label").to_owned();
            let operator = self.until('"').trim().to_owned();
            matchers.push((label, operator, self.until('"').to_owned()));
            self.take(',');
        }
        matchers
    }

    fn labels(&mut self, into: &mut BTreeSet<String>) {
        assert!(self.take('('), "a list of labels before {}", self.rest);
        into.extend(self.until(')').split(',').map(|label| label.trim().to_owned()).filter(|label| !label.is_empty()));
    }
}

fn asked(expression: &str, legend: &str) -> Asked {
    let mut asked = Asked::default();
    let mut reader = Reader { rest: expression };
    while !reader.rest.is_empty() {
        reader.space();
        if reader.take('[') {
            reader.until(']');
        } else if let Some(word) = reader.word() {
            let number = word.starts_with(|c: char| c.is_ascii_digit());
            if number || OPERATORS.contains(&word) || AGGREGATIONS.contains(&word) {
            } else if LABEL_LISTS.contains(&word) {
                reader.labels(&mut asked.labels);
            } else if !reader.rest.trim_start().starts_with('(') {
                let matchers = if reader.take('{') { reader.matchers() } else { Vec::new() };
                asked.selectors.push((word.to_owned(), matchers));
            }
        } else {
            reader.rest = reader.rest.get(1..).unwrap_or_default();
        }
    }
    let shown = legend.split("{{").skip(1).filter_map(|rest| rest.split_once("}}"));
    asked.labels.extend(shown.map(|(label, _)| label.trim().to_owned()));
    asked
}

/// Every expression of a board, with its legend; variables that ask for the values of a label, too.
fn expressions(board: &Value, found: &mut Vec<(String, String)>) {
    match board {
        Value::Array(all) => all.iter().for_each(|one| expressions(one, found)),
        Value::Object(all) => {
            let text = |key: &str| all.get(key).and_then(Value::as_str).unwrap_or_default();
            if all.contains_key("expr") {
                found.push((text("expr").to_owned(), text("legendFormat").to_owned()));
            }
            if let Some(asked) = text("query").strip_prefix("label_values(") {
                let (metric, label) = asked.trim_end_matches(')').split_once(',').expect("a metric and a label");
                found.push((metric.to_owned(), format!("{{{{{}}}}}", label.trim())));
            }
            all.values().for_each(|one| expressions(one, found));
        }
        _ => {}
    }
}

fn samples(page: &str) -> Page {
    let mut all = Page::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let mut reader = Reader { rest: line };
        let metric = reader.word().unwrap_or_else(|| panic!("no metric in {line}")).to_owned();
        let matchers = if reader.take('{') { reader.matchers() } else { Vec::new() };
        all.entry(metric).or_default().push(matchers.into_iter().map(|(label, _, value)| (label, value)).collect());
    }
    all
}

/// What of an expression is not on the page.
fn missing(asked: &Asked, page: &Page) -> Vec<String> {
    let mut missing = Vec::new();
    let mut known: BTreeSet<&str> = OF_PROMETHEUS.iter().copied().collect();
    for (metric, matchers) in &asked.selectors {
        let Some(series) = page.get(metric) else {
            missing.push(metric.clone());
            continue;
        };
        known.extend(series.iter().flat_map(|labels| labels.keys().map(String::as_str)));
        let own = matchers.iter().filter(|(label, ..)| !OF_PROMETHEUS.contains(&label.as_str()));
        let fits = |labels: &BTreeMap<String, String>| {
            own.clone().all(|(label, operator, value)| {
                let found = labels.get(label);
                found.is_some() && (value.starts_with('$') || operator != "=" || found == Some(value))
            })
        };
        if !series.iter().any(fits) {
            missing.push(format!("{metric} with {matchers:?}"));
        }
    }
    let labels = asked.labels.iter().filter(|label| !known.contains(label.as_str()));
    missing.extend(labels.map(|label| format!("label {label} of {:?}", asked.selectors)));
    missing
}

#[test]
fn the_board_finds_every_series_that_it_asks_for() {
    harness::needs_own_broker!();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/grafana/ringmq.json");
    let board = std::fs::read_to_string(&path).expect("the board is there");
    let board: Value = serde_json::from_str(&board).expect("it is JSON");
    let mut all = Vec::new();
    expressions(&board, &mut all);
    assert!(all.len() > 50, "only {} expressions", all.len());

    let files = tempfile::tempdir().expect("a temporary directory");
    let config = files.path().join("ringmq.toml");
    let link = "[[cluster.links]]\nname = \"elsewhere\"\nserver = \"127.0.0.1:1\"\ntopics = [\"#\"]\n";
    std::fs::write(&config, link).expect("the temporary directory is writable");
    let node = setup().shards(2).config(&config).start();
    let mut client = Raw::connect(node.mqtt(), &Connect::new(V5, "client"));
    client.subscribe("t", 1);
    client.send(&harness::wire::Publish::new("t", b"x").acked(1, 7).bytes(V5));
    let wanting = within(LONG, "the node has reported", || {
        let page = samples(&node.get("/metrics").ok()?.body);
        page.get("ringmq_link_up")?;
        let wanting = |(expression, legend): &(String, String)| {
            let missing = missing(&asked(expression, legend), &page);
            (!missing.is_empty()).then(|| format!("{expression}: {}", missing.join(", ")))
        };
        Some(all.iter().filter_map(wanting).collect::<Vec<_>>())
    });
    assert!(wanting.is_empty(), "the board asks for what is not there:\n{}", wanting.join("\n"));
}

#[test]
fn a_metric_a_label_and_a_value_that_are_not_there_are_missed() {
    let page = samples("a_total{shard=\"0\",state=\"ok\"} 1\nb 2\n");
    for (expression, legend, misses) in [
        ("sum by (state) (rate(a_total{shard=\"0\", instance=~\"$node\"}[$__rate_interval])) > 0.5", "{{state}}", 0),
        ("histogram_quantile(0.9, sum by (shard) (a_total)) / b", "", 0),
        ("sum(rate(c_total[1m]))", "", 1),
        ("a_total{shard=\"7\"}", "", 1),
        ("a_total{core=\"0\"}", "", 1),
        ("sum by (core) (a_total)", "", 1),
        ("b", "{{shard}}", 1),
    ] {
        let missing = missing(&asked(expression, legend), &page);
        assert_eq!(missing.len(), misses, "{expression}: {missing:?}");
    }
}
