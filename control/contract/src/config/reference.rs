//! What people read: the reference file with every knob, and the effective configuration with its origins.

use alloc::{
    format,
    string::{String, ToString},
};
use core::fmt::Write;

use super::{
    catalog::GROUPS,
    knob::{Apply, Knob},
    load::Loaded,
};

/// A configuration file in which every knob stands with its default, commented out.
pub fn reference() -> String {
    let mut out = String::from(
        "# Every setting of RingMQ, with its default. Remove a `#` to change one.\n\
         # Each can also be given in the environment: RINGMQ_MQTT__MAX_INFLIGHT=64 is mqtt.max_inflight = 64.\n\
         # Sizes are powers of 1024 (\"64KB\", \"1MB\"), times have units (\"500ms\", \"15s\", \"1h30m\").\n",
    );
    for group in GROUPS {
        let Some(first) = group.knobs.first() else {
            continue;
        };
        let prefix = first.key.rsplit_once('.').map_or("", |(prefix, _)| prefix);
        // Writing to a String cannot fail.
        let _ = write!(out, "\n#{}\n#{}\n", group.title, heading(prefix));
        for knob in group.knobs {
            describe(knob, &mut out);
        }
    }
    out
}

/// The line that opens a section, as a file would have it.
fn heading(prefix: &str) -> String {
    match prefix.strip_suffix("[]") {
        Some(list) => format!("[[{list}]]"),
        None => format!("[{}]", prefix.replace("[]", "").replace("<name>", "default")),
    }
}

fn describe(knob: &Knob, out: &mut String) {
    let name = knob.key.rsplit_once('.').map_or(knob.key, |(_, name)| name);
    let when = match knob.apply {
        Apply::Live => "at SIGHUP",
        Apply::Restart => "at the next start",
    };
    let range = knob.kind.bounds().map_or_else(String::new, |bounds| format!(" in {}", knob.kind.range(&bounds)));
    let default = knob.show(&knob.default.value());
    let default = match knob.key {
        "node.data_dir" => "\"$XDG_STATE_HOME/ringmq\"".to_string(),
        _ => default,
    };
    let _ = write!(out, "\n#{}\n# {}{range}; changes {when}. Example: {}\n", knob.doc, knob.kind.noun(), knob.example);
    let _ = match default.as_str() {
        "unset" => writeln!(out, "#{name} ="),
        default => writeln!(out, "#{name} = {default}"),
    };
}

impl Loaded {
    /// Every knob with its effective value and where it came from.
    pub fn show(&self) -> String {
        let mut out = String::new();
        let lines =
            self.settings.iter().map(|setting| (format!("{} = {}", setting.key, setting.value), &setting.origin));
        let width = lines.clone().map(|(line, _)| line.chars().count()).filter(|width| *width <= 80).max().unwrap_or(0);
        for (line, origin) in lines {
            let _ = writeln!(out, "{line:width$}  # {origin}");
        }
        out
    }
}
