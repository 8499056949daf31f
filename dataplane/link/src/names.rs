//! Names on the wire: the three control topics of a link and the client ids of its connections.
//!
//! Pure text. Called by the broker's publish path (is this topic ours to intercept?), by requester, outlet and
//! forwarder. The cluster in a topic is always the *publishing* one.

use alloc::format;
use alloc::string::String;

use sha1::{Digest, Sha1};

/// What every topic of the link protocol begins with. Clients that no `accept` names may neither publish nor subscribe here.
pub const CONTROL_PREFIX: &str = "$LINK/";
const ROUTE_PREFIX: &str = "$LINK/cluster/route/";
const RESP_PREFIX: &str = "$LINK/cluster/resp/";
const MSG_PREFIX: &str = "$LINK/cluster/msg/";

/// A control topic, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkTopic<'a> {
    /// Interest of `cluster`, sent by it to the forwarder.
    Route {
        /// The requester's cluster.
        cluster: &'a str,
    },
    /// The forwarder's answer to one actor of `cluster`.
    Resp {
        /// The requester's cluster.
        cluster: &'a str,
        /// The actor that asked.
        actor: &'a str,
    },
    /// Messages forwarded by `cluster`.
    Msg {
        /// The forwarder's cluster.
        cluster: &'a str,
    },
}

impl<'a> LinkTopic<'a> {
    /// None for every topic that is not one of the three. The cluster may be empty: it then names no link.
    pub fn parse(topic: &'a str) -> Option<LinkTopic<'a>> {
        if let Some(cluster) = topic.strip_prefix(ROUTE_PREFIX) {
            return Some(LinkTopic::Route { cluster });
        }
        if let Some(cluster) = topic.strip_prefix(MSG_PREFIX) {
            return Some(LinkTopic::Msg { cluster });
        }
        let (cluster, actor) = topic.strip_prefix(RESP_PREFIX)?.split_once('/')?;
        Some(LinkTopic::Resp { cluster, actor })
    }
}

/// Where `cluster` announces its interest.
pub fn route_topic(cluster: &str) -> String {
    format!("{ROUTE_PREFIX}{cluster}")
}

/// Where `actor` of `cluster` is answered.
pub fn resp_topic(cluster: &str, actor: &str) -> String {
    format!("{RESP_PREFIX}{cluster}/{actor}")
}

/// Where `cluster` sends messages.
pub fn msg_topic(cluster: &str) -> String {
    format!("{MSG_PREFIX}{cluster}")
}

/// Client id of the route connection of `node`; `base` is the link's `clientid` or the cluster's name.
pub fn route_client_id(base: &str, node: &str) -> String {
    format!("{base}:routesync:{}", short_hash(node))
}

/// Client id of the `n`-th forwarding connection of `node`, counted from 1.
pub fn msg_client_id(base: &str, node: &str, n: u32) -> String {
    format!("{base}:msg:{}:{n}", short_hash(node))
}

/// Eight hex digits that tell nodes of one cluster apart; SHA-1 because EMQX takes it, not for secrecy.
fn short_hash(node: &str) -> String {
    let digest = Sha1::digest(node.as_bytes());
    digest[..4].iter().fold(String::new(), |mut text, byte| {
        text.push_str(&format!("{byte:02x}"));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_ids_are_those_of_the_captured_nodes() {
        assert_eq!(route_client_id("alpha", "alpha@127.0.0.1"), "alpha:routesync:e2746777");
        assert_eq!(route_client_id("beta", "beta@127.0.0.1"), "beta:routesync:e9d26783");
        assert_eq!(msg_client_id("beta", "beta@127.0.0.1", 1), "beta:msg:e9d26783:1");
    }

    #[test]
    fn control_topics_come_apart_as_they_were_built() {
        assert_eq!(LinkTopic::parse(&route_topic("a")), Some(LinkTopic::Route { cluster: "a" }));
        assert_eq!(LinkTopic::parse(&msg_topic("a")), Some(LinkTopic::Msg { cluster: "a" }));
        assert_eq!(LinkTopic::parse(&resp_topic("a", "n/1@h")), Some(LinkTopic::Resp { cluster: "a", actor: "n/1@h" }));
        assert_eq!(LinkTopic::parse("$LINK/cluster/route/"), Some(LinkTopic::Route { cluster: "" }));
        for other in ["$LINK/cluster/zzz/a", "$LINK/cluster/resp/a", "$LINK/cluster/route", "t/1", ""] {
            assert_eq!(LinkTopic::parse(other), None, "{other}");
        }
    }
}
