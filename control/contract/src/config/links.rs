//! `cluster.*`: the name of this cluster and its links. EMQX's words where a thing is the same.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use super::{
    knob::{Kind, Preset::*, within},
    secret::Secret,
    section::section,
    units::Clock,
};

/// Most links of a cluster: interest keeps one bit per link.
pub const LINKS_MAX: usize = 64;
/// Addresses of one remote.
pub const SERVERS_MAX: usize = 16;
/// Port of a server that names none.
pub const SERVER_PORT: u16 = 1883;
/// Filters that one link may want.
pub const TOPICS_MAX: usize = 1024;

/// This cluster and what it is linked with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// Name of this cluster: what remotes call it.
    pub name: String,
    /// The links.
    pub links: Vec<Link>,
}

/// A link to a remote cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Link {
    /// Name of the remote: its own `cluster.name`.
    pub name: String,
    /// A disabled link keeps its configuration and has no connections.
    pub enable: bool,
    /// Addresses of the remote, as `host:port`, in the order to try.
    pub servers: Vec<String>,
    /// Beginning of the client ids that we connect with; none: the name of this cluster.
    pub client_id: Option<String>,
    /// User name that we connect with.
    pub username: Option<String>,
    /// Password that we connect with.
    pub password: Option<Secret>,
    /// Filters that we want from the remote, none covering another; empty for a link that only sends.
    pub topics: Vec<String>,
    /// EMQX's number of connections; here each shard keeps one.
    pub pool_size: u16,
    /// Messages of QoS 1 that may be on their way to the remote, per connection.
    pub max_inflight: u16,
    /// Accepted because EMQX has it; without effect: what is unacknowledged goes again on the next connection.
    pub retry_interval_ms: u32,
    /// Who may speak for the remote here; none: whoever connects over loopback.
    pub accept: Option<Accept>,
}

/// Who may speak for a remote: all that is named must match.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Accept {
    /// User name of the connection.
    pub username: Option<String>,
    /// Beginning of its client id.
    pub client_id_prefix: Option<String>,
    /// Common name of its certificate.
    pub cert: Option<String>,
}

section! {
    /// This cluster.
    Own at "cluster" {
        /// Name of this cluster. Remotes call it by this name in their links.
        name: String = "name", Kind::Text(crate::ids::NAME_BYTES_MAX), Text("ringmq"), Restart, "\"eu-west\"";
    }
}

section! {
    /// A link to another cluster.
    LinkKnobs at "cluster.links[]" {
        /// Name of the remote: its own `cluster.name`. Required.
        name: String = "name", Kind::Text(crate::ids::NAME_BYTES_MAX), Unset, Restart, "\"us-east\"";
        /// A disabled link keeps its configuration and has no connections.
        enable: bool = "enable", Kind::Switch, Switch(true), Restart, "false";
        /// Address of the remote, `host:port`, with or without `mqtt://`; several as an array or with commas. Required.
        servers: Vec<String> = "server", Kind::List, Unset, Restart, "\"us-east.example.org:1883\"";
        /// Beginning of the client ids that we connect with; unset: the name of this cluster.
        client_id: Option<String> = "clientid", Kind::Text(1024), Unset, Restart, "\"eu-west-link\"";
        /// User name that we connect with.
        username: Option<String> = "username", Kind::Text(65_535), Unset, Restart, "\"link\"";
        /// Password that we connect with. `file:///path` takes it from a file.
        password: Option<Secret> = "password", Kind::Secret(1), Unset, Restart, "\"file:///etc/ringmq/us-east.password\"";
        /// Filters that this cluster wants from the remote, none covering another. Required; `[]` for a link that only sends.
        topics: Vec<String> = "topics", Kind::Array, Unset, Live, "[\"sensors/#\", \"alarms/+\"]";
        /// EMQX's number of connections per node; accepted, but each shard keeps exactly one.
        pool_size: u16 = "pool_size", Kind::Count(within(1, 1024)), Number(8), Restart, "1";
        /// Messages of QoS 1 that may be on their way to the remote, per connection.
        max_inflight: u16 = "max_inflight", Kind::Count(within(1, 65_535)), Number(32), Restart, "128";
        /// Accepted because EMQX has it; without effect: what is unacknowledged goes again on the next connection.
        retry_interval_ms: u32 = "retry_interval", Kind::Duration(Clock::Ms, within(100, 3_600_000)), Number(15_000), Restart, "\"5s\"";
    }
}

section! {
    /// TLS towards a remote.
    SslKnobs at "cluster.links[].ssl" {
        /// TLS towards the remote. This version has none: only `false` is accepted.
        enable: bool = "enable", Kind::Switch, Switch(false), Restart, "false";
    }
}

section! {
    /// Who may speak for a remote here. All that is set must match; without any, whoever connects over loopback.
    AcceptKnobs at "cluster.links[].accept" {
        /// User name of the connection.
        username: Option<String> = "username", Kind::Text(65_535), Unset, Restart, "\"us-east\"";
        /// Beginning of its client id.
        client_id_prefix: Option<String> = "clientid_prefix", Kind::Text(65_535), Unset, Restart, "\"us-east\"";
        /// Common name of its certificate, which a listener with `verify_peer` has verified.
        cert: Option<String> = "cert", Kind::Text(1024), Unset, Restart, "\"us-east.example.org\"";
    }
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster { name: Own::default().name, links: Vec::new() }
    }
}

impl LinkKnobs {
    /// The link that these values describe.
    pub(super) fn link(self, accept: Option<AcceptKnobs>) -> Link {
        Link {
            name: self.name,
            enable: self.enable,
            servers: self.servers,
            client_id: self.client_id,
            username: self.username,
            password: self.password,
            topics: self.topics,
            pool_size: self.pool_size,
            max_inflight: self.max_inflight,
            retry_interval_ms: self.retry_interval_ms,
            accept: accept.map(|accept| Accept {
                username: accept.username,
                client_id_prefix: accept.client_id_prefix,
                cert: accept.cert,
            }),
        }
    }
}
