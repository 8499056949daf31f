//! Which statements of the standards are implemented and tested, read from citations in the sources.
//!
//! A citation is a comment line of its own: `//= MQTT-3.1.0-2` for MQTT 5.0, `//= MQTT311-3.1.0-2` for 3.1.1.
//! In the sources it stands above the line that binds, under `tests/` above the test that shows it on the real
//! executable; above a unit test it may stand too, and counts for nothing. The tables beside this file list all
//! statements; `exceptions.txt` those that bind nothing here, with the reason; `open.txt` what is known to be missing. Always true: a statement is in exactly one of these states, and a citation names a statement that exists.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What every citation begins with.
const MARK: &str = "//= ";

/// A standard: its name, and the table of its statements.
const STANDARDS: [(&str, &str); 2] = [("MQTT 5.0", "mqtt5.txt"), ("MQTT 3.1.1", "mqtt311.txt")];

/// Where citations count, and where they do not: the harness is neither server nor test.
const SCANNED: [&str; 4] = ["dataplane", "control", "src", "tests"];
const LEFT_OUT: [&str; 1] = ["tests/harness"];

#[test]
fn every_statement_is_implemented_and_tested_or_excepted() {
    let mut wrong = Vec::new();
    let citations = Citations::scan(&mut wrong);
    let exceptions = list("exceptions.txt", &mut wrong);
    let open = list("open.txt", &mut wrong);
    let tables = STANDARDS.map(|(_, table)| list(table, &mut wrong));
    let known: BTreeSet<&str> = tables.iter().flat_map(BTreeMap::keys).map(String::as_str).collect();
    for id in exceptions.keys().chain(open.keys()).filter(|id| !known.contains(id.as_str())) {
        wrong.push(format!("{id} is listed and is no statement"));
    }
    for (id, places) in citations.implemented.iter().chain(&citations.tested).chain(&citations.unit_tested) {
        if !known.contains(id.as_str()) {
            wrong.push(format!("{id} is cited and is no statement: {places:?}"));
        }
    }
    for (table, (name, _)) in tables.iter().zip(STANDARDS) {
        let said = judge(table, &citations, &exceptions, &open, &mut wrong);
        // Around the runner, which shows the output of failed tests only.
        let _ = std::io::stderr().write_all(format!("{name}: {said}\n").as_bytes());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Judges the statements of one standard and says how many are in which state.
fn judge(
    table: &BTreeMap<String, String>,
    citations: &Citations,
    exceptions: &BTreeMap<String, String>,
    open: &BTreeMap<String, String>,
    wrong: &mut Vec<String>,
) -> String {
    let (mut done, mut excepted, mut opened) = (0, 0, 0);
    for (id, says) in table {
        // What version 5.0 says in the same words is implemented by the same line.
        let same = says.strip_prefix("= ").unwrap_or(id);
        let implemented = citations.implemented.contains_key(id) || citations.implemented.contains_key(same);
        let tested = citations.tested.contains_key(id);
        match (exceptions.contains_key(id), open.contains_key(id)) {
            (true, true) => wrong.push(format!("{id} is excepted and open")),
            (true, false) => {
                excepted += 1;
                let places = [&citations.implemented, &citations.tested].map(|cited| cited.get(id));
                if let Some(places) = places.into_iter().flatten().next() {
                    wrong.push(format!("{id} is excepted, and cited at {places:?}"));
                }
            }
            (false, true) => {
                opened += 1;
                if implemented && tested {
                    wrong.push(format!("{id} is open, and implemented and tested: take it off open.txt"));
                }
            }
            (false, false) if implemented && tested => done += 1,
            (false, false) => {
                let missing = if implemented {
                    "not tested"
                } else if tested {
                    "not implemented"
                } else {
                    "not cited"
                };
                wrong.push(format!("{id} ({says}) is {missing}"));
            }
        }
    }
    let bound = table.len() - excepted;
    let rest = if opened == 0 { String::new() } else { format!(", {opened} open") };
    format!("{done} of {bound} statements: implemented and tested, {excepted} excepted{rest}")
}

/// A table beside this file: id, and the rest of the line.
fn list(file: &str, wrong: &mut Vec<String>) -> BTreeMap<String, String> {
    let path = root().join("tests/conformance").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut entries = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.split_once(' ') {
            Some((id, says)) if !says.trim().is_empty() => {
                if entries.insert(id.to_owned(), says.to_owned()).is_some() {
                    wrong.push(format!("{file} has {id} twice"));
                }
            }
            _ => wrong.push(format!("{file}: `{line}` says nothing")),
        }
    }
    entries
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Citations by id, with the places where they stand.
#[derive(Default)]
struct Citations {
    implemented: BTreeMap<String, Vec<String>>,
    tested: BTreeMap<String, Vec<String>>,
    unit_tested: BTreeMap<String, Vec<String>>,
}

impl Citations {
    fn scan(wrong: &mut Vec<String>) -> Self {
        let mut citations = Self::default();
        let mut open: Vec<PathBuf> = SCANNED.iter().map(|directory| root().join(directory)).collect();
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(&directory).expect("the sources are there").flatten() {
                let path = entry.path();
                let name = path.strip_prefix(root()).expect("it is below the root").to_string_lossy().into_owned();
                if LEFT_OUT.contains(&name.as_str()) {
                    continue;
                }
                if path.is_dir() {
                    open.push(path);
                } else if name.ends_with(".rs") {
                    let text = std::fs::read_to_string(&path).expect("sources are UTF-8");
                    citations.read(&name, &text, wrong);
                }
            }
        }
        citations
    }

    fn read(&mut self, name: &str, text: &str, wrong: &mut Vec<String>) {
        let mut testing = name.starts_with("tests/") || name.contains("/tests/") || name.ends_with("/tests.rs");
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            // Unit tests end their file.
            testing |= *line == "#[cfg(test)]" && lines.get(at + 1).is_some_and(|next| next.ends_with('{'));
            let Some(id) = line.strip_prefix(MARK) else { continue };
            let place = format!("{name}:{}", at + 1);
            let below = lines[at + 1..].iter().find(|line| !line.starts_with("//") && !line.starts_with("#["));
            match below {
                Some(line) if testing && !line.starts_with("fn ") => {
                    wrong.push(format!("{place}: {id} is not cited above a test"));
                }
                None | Some(&"" | &"}") => wrong.push(format!("{place}: {id} is cited above nothing")),
                Some(_) => {}
            }
            let cited = match (testing, name.starts_with("tests/")) {
                (false, _) => &mut self.implemented,
                (true, true) => &mut self.tested,
                (true, false) => &mut self.unit_tested,
            };
            cited.entry(id.to_owned()).or_default().push(place);
        }
    }
}

#[test]
fn a_citation_is_found_by_where_it_stands() {
    let (mut citations, mut wrong) = (Citations::default(), Vec::new());
    let mark = MARK;
    let text = format!(
        "{mark}A\n// why\nlet x;\n{mark}B\n}}\n#[cfg(test)]\nmod tests {{\n{mark}C\n#[test]\nfn c() {{\n{mark}D\nlet y;"
    );
    citations.read("dataplane/x.rs", &text, &mut wrong);
    assert_eq!(citations.implemented.keys().collect::<Vec<_>>(), ["A", "B"]);
    assert_eq!(citations.unit_tested.keys().collect::<Vec<_>>(), ["C", "D"]);
    citations.read("tests/conformance/x.rs", &format!("{mark}E\n#[test]\nfn e() {{}}"), &mut wrong);
    assert_eq!(citations.tested.keys().collect::<Vec<_>>(), ["E"]);
    assert_eq!(wrong, ["dataplane/x.rs:4: B is cited above nothing", "dataplane/x.rs:11: D is not cited above a test"]);
}
