//! `ready.json` in the data directory: there from the moment when every listener accepts until the node stops; it names the
//! listeners as they are now.
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

    /// Tells whoever started us.
    pub(crate) fn print(&self) {
        // He may have closed his end; that is no reason to stop.
        let _ = io::stdout().lock().write_all(self.lines().as_bytes());
        let _ = io::stdout().flush();
    }

    /// Where the node listens and what to try; the last line begins with `ready `.
    fn lines(&self) -> String {
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
        if let Some((_, _, address)) = self.listeners().find(|(kind, ..)| *kind == "tcp")
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
        out
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

#[cfg(test)]
mod tests {
    use super::*;

    fn with_ready(address: &str, check: impl FnOnce(Ready<'_>)) {
        let config = Config::default();
        let dataplane =
            json!({"listeners": [{"kind": "tcp", "name": "default", "address": address}], "shards": 3, "pid": 11});
        let control = json!({"http": "127.0.0.1:18083", "pid": 12});
        check(Ready { config: &config, dataplane: &dataplane, control: &control });
    }

    #[test]
    fn the_file_appears_whole_and_names_pids_and_addresses() {
        let dir = tempfile::tempdir().unwrap();
        with_ready("127.0.0.1:1883", |ready| ready.write(dir.path()).unwrap());
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        let read: Value = serde_json::from_str(&text).unwrap();
        let pids = json!({"supervisor": std::process::id(), "dataplane": 11, "control": 12});
        assert_eq!((&read["pids"], &read["shards"], &read["http"]), (&pids, &json!(3), &json!("127.0.0.1:18083")));
        assert_eq!(read["listeners"][0]["address"], "127.0.0.1:1883");
        assert_eq!(read["node"], "ringmq@127.0.0.1");
        remove(dir.path());
        remove(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn the_last_line_begins_with_ready_and_one_can_be_tried() {
        with_ready("0.0.0.0:1884", |ready| {
            let lines = ready.lines();
            let last = lines.lines().last().unwrap();
            let expected = "ready node=ringmq@127.0.0.1 tcp:default=0.0.0.0:1884 http=127.0.0.1:18083 shards=3";
            assert_eq!(last, expected);
            assert!(lines.contains("try: mosquitto_sub -h 127.0.0.1 -p 1884 -t '#' -v\n"), "{lines}");
            assert_eq!(lines.lines().filter(|line| line.starts_with("ready ")).count(), 1);
        });
        with_ready("[::1]:7", |ready| assert!(ready.lines().contains("mosquitto_sub -h ::1 -p 7 ")));
    }
}
