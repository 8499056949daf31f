//! Configuration: one record per knob, read from a TOML file and from the environment, typed at the end.
//! Both processes and `ringmq config` call it at start and at SIGHUP; the caller reads the file and the variables.
//! Always true: a [`Config`] that [`load`] returns has passed every bound and every rule between knobs.

mod authentication;
mod authorization;
mod catalog;
mod check;
mod durability;
mod knob;
mod limits;
mod links;
mod listeners;
mod load;
mod mqtt;
mod node;
mod reference;
mod secret;
mod section;
mod source;
mod sys_topics;
#[cfg(test)]
mod tests;
mod units;

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

pub use self::{
    authentication::{
        AUTHENTICATORS_MAX, Admission, Authenticator, Backend, HookKnobs, Mechanism, TokenFrom, TokenKnobs,
    },
    authorization::{
        Authorization, CacheKnobs, DenyAction, Permission, RuleFormat, SOURCES_MAX, ServerKnobs, ServerMethod, Source,
        SourceKind,
    },
    catalog::knobs,
    durability::{Durability, Mode},
    knob::{Apply, Bounds, Kind, Knob, Preset, Value},
    limits::{FlappingDetect, Limits, Retainer},
    links::{Accept, Cluster, LINKS_MAX, Link},
    listeners::{CertificateUser, Listener, ListenerKind, Tls, Verify, WebSocket},
    load::{Loaded, Setting, load},
    mqtt::{Mqtt, SlowSubscriber},
    node::{Dashboard, Dataplane, Format, Level, Log, Node, Pin, SHARDS_MAX},
    reference::reference,
    secret::Secret,
    source::{ConfigError, FILE_BYTES_MAX, Origin, SourceFile, Sources},
    sys_topics::{SysEvents, SysTopics},
    units::Clock,
};

/// Everything that a node is told by its operator.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Config {
    /// `node.*`.
    pub node: Node,
    /// `dataplane.*`.
    pub dataplane: Dataplane,
    /// `listeners.*`, by name. The position is the listener's number.
    pub listeners: Vec<Listener>,
    /// `authentication`, in the order in which they are asked.
    pub authentication: Vec<Authenticator>,
    /// `admission.*`.
    pub admission: Admission,
    /// `authorization.*`.
    pub authorization: Authorization,
    /// `durability.*`.
    pub durability: Durability,
    /// `mqtt.*`.
    pub mqtt: Mqtt,
    /// `limits.*`.
    pub limits: Limits,
    /// `retainer.*`.
    pub retainer: Retainer,
    /// `flapping_detect.*`.
    pub flapping_detect: FlappingDetect,
    /// `sys_topics.*`.
    pub sys_topics: SysTopics,
    /// `sys_topics.sys_event_messages.*`.
    pub sys_events: SysEvents,
    /// `cluster.*`.
    pub cluster: Cluster,
    /// `dashboard.*`.
    pub dashboard: Dashboard,
    /// `log.*`.
    pub log: Log,
}

impl Default for Config {
    /// Every knob at its default, with the default listener and without links.
    fn default() -> Config {
        let mut listener = listeners::Tcp::default().named(listeners::DEFAULT_NAME, None, None);
        // Its address is loopback.
        listener.allow_anonymous = true;
        Config {
            node: Node::default(),
            dataplane: Dataplane::default(),
            listeners: [listener].into(),
            authentication: Vec::new(),
            admission: Admission::default(),
            authorization: Authorization::default(),
            durability: Durability::default(),
            mqtt: Mqtt::default(),
            limits: Limits::default(),
            retainer: Retainer::default(),
            flapping_detect: FlappingDetect::default(),
            sys_topics: SysTopics::default(),
            sys_events: SysEvents::default(),
            cluster: Cluster::default(),
            dashboard: Dashboard::default(),
            log: Log::default(),
        }
    }
}
