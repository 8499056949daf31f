//! What `ringmq ctl` asks the control process over `control.sock`, and what it is told.
//! One question per connection; both are frames of [`crate::wire`].

use alloc::{boxed::Box, string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::{report::Report, trace::Payload, view::ViewNumber};

/// A question.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// How does the node go?
    Status,
    /// Read the configuration again, and every file that it names.
    Reload,
    /// Who may change something over HTTP?
    Admins,
    /// Add an administrator of HTTP, or give one another password.
    AdminAdd {
        /// The name.
        name: String,
        /// The password.
        password: String,
    },
    /// Remove an administrator of HTTP.
    AdminRemove(String),
    /// Which API keys are there?
    Keys,
    /// Make an API key.
    KeyAdd(String),
    /// Remove an API key, by its name.
    KeyRemove(String),
    /// Who may not connect?
    Bans,
    /// Ban somebody.
    BanAdd {
        /// `clientid`, `username` or `peerhost`.
        kind: String,
        /// The client id, the user name, the address or network.
        who: String,
        /// Why.
        reason: String,
        /// For how long, in milliseconds; none: for ever.
        for_ms: Option<u64>,
    },
    /// Lift a ban.
    BanRemove {
        /// `clientid`, `username` or `peerhost`.
        kind: String,
        /// The client id, the user name, the address or network.
        who: String,
    },
    /// Which traces are there?
    Traces,
    /// Begin a trace.
    TraceStart {
        /// Its name.
        name: String,
        /// EMQX's word for whom it is about: `clientid`, `topic`, `ip_address`.
        kind: String,
        /// Whom.
        value: String,
        /// How long, with a unit; none: as long as it is by default.
        duration: Option<String>,
        /// How payloads are shown.
        payload: Payload,
    },
    /// End a trace; its file stays.
    TraceStop(String),
    /// Remove a trace and its file.
    TraceRemove(String),
    /// What was traced lately?
    TraceShow(String),
}

/// An answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Ask::Status`].
    Status(Box<Status>),
    /// It was done; what there is to say about it, a line each.
    Done(Vec<String>),
    /// It was not done.
    Refused(String),
}

/// How a node goes, as its control process sees it.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Name of this node.
    pub node: String,
    /// Name of its cluster.
    pub cluster: String,
    /// Version of the control process.
    pub version: String,
    /// Process id of the control process.
    pub pid: u32,
    /// Time since it started.
    pub uptime_ms: u64,
    /// Where it serves HTTP.
    pub http: String,
    /// The View that it wants the data plane to hold.
    pub view: ViewNumber,
    /// The data plane answers.
    pub dataplane_up: bool,
    /// Its last Report, which may be old if it does not answer.
    pub report: Option<Report>,
    /// Age of that Report.
    pub report_age_ms: u64,
}
