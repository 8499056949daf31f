//! Scripts that drive a client library of another language: which interpreter, which packages.
//! Called by the interop area.
//!
//! Always true: a script is one scenario, ends by itself, and its exit code is the verdict.

use crate::program::{self, Program};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// Where `.ci/run` puts what it installs, unless a variable names another place.
fn cache() -> PathBuf {
    std::env::var_os("INTEROP_CACHE").map_or_else(
        || {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
            cache.unwrap_or_else(home).join("ringmq-ci")
        },
        PathBuf::from,
    )
}

/// A Python that can import paho-mqtt 2.
pub fn python() -> Option<&'static PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let named = std::env::var_os("RINGMQ_TEST_PYTHON").map(PathBuf::from);
            named.into_iter().chain([cache().join("venv/bin/python")]).chain(program::find("python3")).find(|python| {
                python.is_file()
                    && imports(
                        Program::new(python)
                            .args(["-c", "import paho.mqtt.client as c; c.CallbackAPIVersion.VERSION2"]),
                    )
            })
        })
        .as_ref()
}

/// The `node_modules` directory that holds MQTT.js, when Node is there too.
pub fn node_modules() -> Option<&'static PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let node = program::find("node")?;
            let named = std::env::var_os("RINGMQ_TEST_NODE_PATH").map(PathBuf::from);
            named.into_iter().chain([cache().join("npm/node_modules")]).find(|modules| {
                modules.is_dir()
                    && imports(Program::new(&node).args(["-e", "require('mqtt')"]).env("NODE_PATH", modules))
            })
        })
        .as_ref()
}

fn imports(probe: Program) -> bool {
    let mut running = probe.start();
    running.wait(Duration::from_secs(30)) == Some(0)
}
