//! `listeners.<kind>.<name>.*`: where clients connect.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use super::{
    knob::{Kind, Preset::*, within},
    section::section,
};

/// Most listeners of a node.
pub const LISTENERS_MAX: usize = 64;
/// The listener that is there unless it is disabled.
pub const DEFAULT_NAME: &str = "default";

/// Where clients connect. Its index in [`super::Config::listeners`] is its number inside the data plane.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Listener {
    /// What is spoken there.
    pub kind: ListenerKind,
    /// Its name, unique among listeners of its kind.
    pub name: String,
    /// Address and port, as `SocketAddr` parses them; port 0 takes a free one.
    pub bind: String,
    /// A disabled listener is not opened.
    pub enable: bool,
    /// Connections of this listener on the whole node; more are closed at once.
    pub max_connections: u32,
    /// Clients may connect without a user name.
    pub allow_anonymous: bool,
}

/// What is spoken at a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ListenerKind {
    /// MQTT on TCP.
    Tcp,
}

impl ListenerKind {
    /// As the configuration writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            ListenerKind::Tcp => "tcp",
        }
    }
}

section! {
    /// MQTT on TCP.
    Tcp at "listeners.tcp.<name>" {
        /// Address and port. A port alone means loopback, port 0 takes a free one. Only the listener `default` has a default.
        bind: String = "bind", Kind::Address, Text("127.0.0.1:1883"), Restart, "\"0.0.0.0:1883\"";
        /// A disabled listener is not opened.
        enable: bool = "enable", Kind::Switch, Switch(true), Restart, "false";
        /// Connections of this listener on the whole node; more are closed at once.
        max_connections: u32 = "max_connections", Kind::Count(within(1, 100_000_000)), Number(1_000_000), Restart, "1000";
        /// Clients may connect without a user name. On loopback they may while `authentication` names nobody to ask.
        allow_anonymous: bool = "allow_anonymous", Kind::Switch, Switch(false), Restart, "true";
    }
}

impl Tcp {
    /// The listener that these values describe.
    pub(super) fn named(self, name: &str) -> Listener {
        Listener {
            kind: ListenerKind::Tcp,
            name: name.into(),
            bind: self.bind,
            enable: self.enable,
            max_connections: self.max_connections,
            allow_anonymous: self.allow_anonymous,
        }
    }
}
