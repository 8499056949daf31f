//! `node.*`, `dataplane.*`, `dashboard.*` and `log.*`: who this node is and what its processes need to come up.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use super::{
    knob::{Kind, Preset::*, Value, within_or},
    secret::Secret,
    section::{Field, Holds, choice, section},
};

/// The two sockets in the data directory must fit into a socket address, which has 108 bytes.
pub const DATA_DIR_BYTES_MAX: usize = 107 - "/dataplane.sock".len();
/// Most shards of a node: interest keeps one bit per shard.
pub const SHARDS_MAX: u64 = 128;
/// A shorter cookie could be guessed.
const COOKIE_BYTES_MIN: usize = 16;

section! {
    /// Who this node is.
    Node at "node" {
        /// Name of this node, `name@host`, unique in its cluster.
        name: String = "name", Kind::Text(crate::ids::NAME_BYTES_MAX), Text("ringmq@127.0.0.1"), Restart, "\"ringmq2@10.0.0.2\"";
        /// Directory of everything that this node keeps; one node per directory.
        data_dir: String = "data_dir", Kind::Text(DATA_DIR_BYTES_MAX), Text("/tmp/ringmq"), Restart, "\"/var/lib/ringmq\"";
        /// Shared secret of the nodes of one cluster. No cluster port is opened without it.
        cookie: Option<Secret> = "cookie", Kind::Secret(COOKIE_BYTES_MIN), Unset, Restart, "\"at least 16 bytes of chance\"";
    }
}

section! {
    /// The shards.
    Dataplane at "dataplane" {
        /// Shards of this node; `auto` (0) is one per CPU that the process may use.
        shards: u16 = "shards", Kind::Count(within_or(1, SHARDS_MAX, "auto", 0)), Number(0), Restart, "4";
        /// CPUs of the shards: `auto` pins them if there is one per CPU, `off` never, an array names one CPU per shard.
        pin: Pin = "pin", Kind::Cpus, List(&["auto"]), Restart, "[0, 2, 4, 6]";
    }
}

section! {
    /// HTTP: `/status`, `/metrics` and `/api/v5`.
    Dashboard at "dashboard.listeners.http" {
        /// Where the control process serves HTTP. Reading needs an API key unless it comes from loopback, changing anything always does (`ringmq ctl key add`); `/status` is open.
        http_bind: String = "bind", Kind::Address, Text("127.0.0.1:18083"), Restart, "\"127.0.0.1:0\"";
    }
}

section! {
    /// What the processes write to standard error.
    Log at "log" {
        /// Least important lines that are written.
        level: Level = "level", Kind::Choice(Level::WORDS), Number(2), Live, "\"debug\"";
        /// Lines for people, or one JSON object per line.
        format: Format = "format", Kind::Choice(Format::WORDS), Number(0), Restart, "\"json\"";
    }
}

choice! {
    /// Importance of a line.
    Level {
        /// Something is broken.
        Error = "error",
        /// Something will need attention.
        Warn = "warn",
        /// What an operator wants to know.
        Info = "info",
        /// What a developer wants to know.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

choice! {
    /// Shape of a line.
    Format {
        /// For people.
        Text = "text",
        /// For machines.
        Json = "json",
    }
}

/// Where shards run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Pin {
    /// Pinned if and only if there are as many shards as CPUs that the process may use.
    Auto,
    /// Wherever the kernel puts them.
    Off,
    /// Shard i on the i-th of these CPUs.
    List(Vec<u16>),
}

impl Field for Pin {
    const HOLDS: Holds = Holds::Cpus;
    fn take(value: Value) -> Pin {
        let Value::List(list) = value else {
            return Pin::Auto;
        };
        match list.as_slice() {
            [word] if word == "auto" => Pin::Auto,
            [word] if word == "off" => Pin::Off,
            cpus => Pin::List(cpus.iter().filter_map(|cpu| cpu.parse().ok()).collect()),
        }
    }
}
