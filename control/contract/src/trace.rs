//! A trace: what an operator wants to see of some clients, in a file. Control keeps the list and puts it into the View, the
//! data plane writes the files. Always true: a trace that [`Trace::check`] let pass has a name that is safe as a file's name.

use alloc::{
    format,
    string::{String, ToString},
};
use core::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Traces of a node at the same time, ended ones included.
pub const TRACES_MAX: usize = 30;
/// Bytes of one trace's file; what comes then is not written.
pub const FILE_BYTES_MAX: u64 = 16 << 20;
/// How long a trace goes on when nobody says.
pub const LIFE_MS: u64 = 10 * 60_000;
/// How long it may go on.
pub const LIFE_MS_MAX: u64 = 7 * 24 * 3_600_000;
/// The directory of their files, in the data directory.
pub const DIRECTORY: &str = "trace";
const NAME_BYTES_MAX: usize = 64;
/// The end of the year 9999: later moments have no text.
const MOMENT_MS_MAX: u64 = 253_402_300_799_000;
const VALUE_BYTES_MAX: usize = 65_535;

/// One trace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trace {
    /// Its name, and that of its file: letters, digits, `-` and `_`.
    pub name: String,
    /// Of whom.
    pub subject: Subject,
    /// From when, wall time in milliseconds.
    pub start_ms: u64,
    /// Until when.
    pub end_ms: u64,
    /// How payloads are shown.
    pub payload: Payload,
}

/// Whom a trace is about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Subject {
    /// The client with this id.
    Client(String),
    /// PUBLISH packets whose topic this filter matches, and subscriptions to it.
    Topic(String),
    /// All clients at this address.
    Address(String),
}

impl Subject {
    /// From EMQX's words; nothing for a kind that does not exist.
    pub fn of(kind: &str, value: &str) -> Option<Subject> {
        let value = value.to_string();
        Some(match kind {
            "clientid" => Subject::Client(value),
            "topic" => Subject::Topic(value),
            "ip_address" => Subject::Address(value),
            _ => return None,
        })
    }

    /// EMQX's word for the kind, and the value.
    pub fn words(&self) -> (&'static str, &str) {
        match self {
            Subject::Client(client) => ("clientid", client),
            Subject::Topic(filter) => ("topic", filter),
            Subject::Address(address) => ("ip_address", address),
        }
    }
}

/// How a trace shows payloads.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// Only how long they are.
    #[default]
    Hidden,
    /// As text.
    Text,
    /// As hexadecimal digits.
    Hex,
}

/// What a trace is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// It begins later.
    Waiting,
    /// It is written.
    Running,
    /// It is over.
    Stopped,
}

impl Phase {
    /// EMQX's word.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Waiting => "waiting",
            Phase::Running => "running",
            Phase::Stopped => "stopped",
        }
    }
}

impl Trace {
    /// What it is doing at a wall time.
    pub fn phase(&self, now_ms: u64) -> Phase {
        match () {
            () if now_ms < self.start_ms => Phase::Waiting,
            () if now_ms < self.end_ms => Phase::Running,
            () => Phase::Stopped,
        }
    }

    /// The name of its file.
    pub fn file(&self) -> String {
        format!("{}.log", self.name)
    }

    /// Is it one that can be? The error is for the operator.
    pub fn check(&self) -> Result<(), String> {
        let letters = self.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX || !letters {
            return Err(format!("name: 1 to {NAME_BYTES_MAX} letters, digits, - and _; got {:?}", self.name));
        }
        let (kind, value) = self.subject.words();
        if value.is_empty() || value.len() > VALUE_BYTES_MAX {
            return Err(format!("{kind}: it is empty, or longer than {VALUE_BYTES_MAX} bytes"));
        }
        if kind == "ip_address" && value.parse::<IpAddr>().is_err() {
            return Err(format!("ip_address: {value:?} is no address"));
        }
        if self.start_ms > MOMENT_MS_MAX {
            return Err("start_at: it is after the year 9999".into());
        }
        if self.end_ms <= self.start_ms {
            return Err("end_at: it is not after start_at".into());
        }
        if self.end_ms - self.start_ms > LIFE_MS_MAX {
            return Err(format!("end_at: more than {} days after start_at", LIFE_MS_MAX / 86_400_000));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_trace_is_refused_with_the_field() {
        let good = Trace {
            name: "a-1".into(),
            subject: Subject::Client("c".into()),
            start_ms: 5,
            end_ms: 9,
            payload: Payload::Hidden,
        };
        assert_eq!(good.check(), Ok(()));
        assert_eq!([4, 5, 8, 9].map(|now_ms| good.phase(now_ms).word()), ["waiting", "running", "running", "stopped"]);
        let address = Subject::Address("localhost".into());
        for (bad, field) in [
            (Trace { name: "../a".into(), ..good.clone() }, "name"),
            (Trace { name: String::new(), ..good.clone() }, "name"),
            (Trace { subject: Subject::Topic(String::new()), ..good.clone() }, "topic"),
            (Trace { subject: address, ..good.clone() }, "ip_address"),
            (Trace { start_ms: u64::MAX, ..good.clone() }, "start_at"),
            (Trace { end_ms: 5, ..good.clone() }, "end_at"),
            (Trace { end_ms: 6 + LIFE_MS_MAX, ..good.clone() }, "end_at"),
        ] {
            let why = bad.check().expect_err(field);
            assert!(why.starts_with(field), "{why}");
        }
    }
}
