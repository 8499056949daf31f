//! `ready.json`, read as a script from outside would read it. Called by [`crate::launch`] and by tests.
//!
//! Always true: the file appears by rename, so what is read is whole; a field that the launch contract
//! promises and that is missing is a failure that names the field.

use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;

/// Name of the file in the data directory.
pub const FILE: &str = "ready.json";

/// What a node says about itself once every listener accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Where MQTT over TCP listens.
    pub mqtt: SocketAddr,
    /// Every listener: kind, name, address or path.
    pub listeners: Vec<(String, String, String)>,
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// Number of shards.
    pub shards: u16,
    /// Process ids: supervisor, control, data plane.
    pub pids: [u32; 3],
}

/// Reads the file; `None` while there is none.
#[track_caller]
pub fn read(data_directory: &Path) -> Option<Ready> {
    let text = std::fs::read_to_string(data_directory.join(FILE)).ok()?;
    Some(parse(&text).unwrap_or_else(|what| panic!("{FILE}: {what}; it says {text}")))
}

fn parse(text: &str) -> Result<Ready, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let pid = |role: &str| {
        value["pids"][role].as_u64().and_then(|pid| u32::try_from(pid).ok()).ok_or_else(|| format!("no pids.{role}"))
    };
    Ok(Ready {
        mqtt: mqtt_listener(&value["listeners"])?,
        listeners: value["listeners"].as_array().map(|all| all.iter().map(listener).collect()).unwrap_or_default(),
        http: value["http"]
            .as_str()
            .or_else(|| value["http"]["address"].as_str())
            .and_then(|text| text.trim_start_matches("http://").parse().ok())
            .ok_or("no address in http")?,
        shards: value["shards"].as_u64().and_then(|shards| u16::try_from(shards).ok()).ok_or("no shards")?,
        pids: [pid("supervisor")?, pid("control")?, pid("dataplane")?],
    })
}

fn listener(record: &Value) -> (String, String, String) {
    let field = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    (field("kind"), field("name"), field("address"))
}

/// The address of `listeners.tcp.default`, whether listeners are a list of records or nested by name.
fn mqtt_listener(listeners: &Value) -> Result<SocketAddr, String> {
    let address = |value: &Value| {
        value
            .as_str()
            .or_else(|| value["address"].as_str())
            .or_else(|| value["bind"].as_str())
            .and_then(|text| text.parse().ok())
    };
    let found = match listeners {
        Value::Array(list) => list
            .iter()
            .find(|record| {
                let text = record.to_string();
                text.contains("tcp") && text.contains("default")
            })
            .and_then(address),
        Value::Object(_) => address(&listeners["tcp"]["default"])
            .or_else(|| address(&listeners["tcp.default"]))
            .or_else(|| address(&listeners["tcp:default"])),
        _ => None,
    };
    found.ok_or_else(|| "no listener tcp.default with an address".to_owned())
}
