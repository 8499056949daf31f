//! `ready.json` in the data directory: there from the moment when every listener accepts until the node stops.
//! Scripts from outside rely on its fields.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use contract::config::Config;
use serde_json::{Value, json};

const FILE: &str = "ready.json";

/// What the children said when they came up.
pub(crate) struct Ready<'a> {
    pub(crate) config: &'a Config,
    pub(crate) dataplane: &'a Value,
    pub(crate) control: &'a Value,
}

impl Ready<'_> {
    /// Makes the file appear, whole.
    pub(crate) fn write(&self, data_dir: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(&self.document())?;
        let fresh = data_dir.join("ready.json.new");
        fs::write(&fresh, text + "\n")?;
        fs::rename(&fresh, data_dir.join(FILE))
    }

    /// The lines for whoever started us; the last one begins with `ready `.
    pub(crate) fn print(&self) {
        let mut out = String::new();
        let node = &self.config.node.name;
        let shards = &self.dataplane["shards"];
        let http = self.control["http"].as_str().unwrap_or_default();
        out.push_str(&format!(
            "RingMQ {}: node {node} of cluster {}, {shards} shards, data in {}\n",
            env!("CARGO_PKG_VERSION"),
            self.config.cluster.name,
            self.config.node.data_dir
        ));
        let mut listening = String::new();
        for (kind, name, address) in self.listeners() {
            out.push_str(&format!("  MQTT ({kind}, {name}) on {address}\n"));
            listening.push_str(&format!(" {kind}:{name}={address}"));
        }
        out.push_str(&format!("  HTTP on http://{http}/status\n"));
        if let Some((_, _, address)) = self.listeners().next()
            && let Some((host, port)) = address.rsplit_once(':')
        {
            let host = match host.trim_matches(['[', ']']) {
                "0.0.0.0" => "127.0.0.1",
                "::" => "::1",
                host => host,
            };
            out.push_str(&format!("  try: mosquitto_sub -h {host} -p {port} -t '#' -v\n"));
        }
        out.push_str(&format!("ready node={node}{listening} http={http} shards={shards}\n"));
        // Whoever started us may have closed his end; that is no reason to stop.
        let _ = io::stdout().lock().write_all(out.as_bytes());
        let _ = io::stdout().flush();
    }

    fn document(&self) -> Value {
        json!({
            "node": self.config.node.name,
            "cluster": self.config.cluster.name,
            "version": env!("CARGO_PKG_VERSION"),
            "pids": {
                "supervisor": std::process::id(),
                "dataplane": self.dataplane["pid"],
                "control": self.control["pid"],
            },
            "listeners": self.dataplane["listeners"],
            "http": self.control["http"],
            "shards": self.dataplane["shards"],
        })
    }

    fn listeners(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let list = self.dataplane["listeners"].as_array().map_or(&[][..], Vec::as_slice);
        list.iter().map(|listener| {
            let field = |name: &str| listener[name].as_str().unwrap_or_default();
            (field("kind"), field("name"), field("address"))
        })
    }
}

/// Removes the file: no listener can be relied on.
pub(crate) fn remove(data_dir: &Path) {
    // It may not be there, and a directory that is gone needs no removal.
    let _ = fs::remove_file(data_dir.join(FILE));
}
