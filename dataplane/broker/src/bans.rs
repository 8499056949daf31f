//! Who may not connect, as every shard looks it up: compiled once from the View on an ordinary thread, shared by all shards,
//! replaced as a whole. Always true: looking somebody up costs one probe per kind, and one per length of network.

use alloc::{boxed::Box, vec::Vec};
use core::net::IpAddr;

use ahash::RandomState;
use contract::{
    bans::{Ban, BanKind},
    network::Network,
};
use hashbrown::HashMap;

/// The bans of a node.
#[derive(Debug)]
pub struct Bans {
    /// By client id: when it ends, wall clock in milliseconds.
    clients: HashMap<Box<str>, u64, RandomState>,
    users: HashMap<Box<str>, u64, RandomState>,
    networks: HashMap<Network, u64, RandomState>,
    /// Of IPv4 or not, and how many bits count, of all networks.
    shapes: Vec<(bool, u8)>,
}

impl Default for Bans {
    fn default() -> Bans {
        Bans::new(&[], 0)
    }
}

impl Bans {
    /// What a View says.
    pub fn new(bans: &[Ban], seed: u64) -> Bans {
        let hasher = |place| RandomState::with_seeds(seed, 50, 51, place);
        let mut compiled = Bans {
            clients: HashMap::with_hasher(hasher(1)),
            users: HashMap::with_hasher(hasher(2)),
            networks: HashMap::with_hasher(hasher(3)),
            shapes: Vec::new(),
        };
        for Ban { kind, who, until_ms } in bans {
            match kind {
                BanKind::ClientId => _ = compiled.clients.insert(who.as_str().into(), *until_ms),
                BanKind::Username => _ = compiled.users.insert(who.as_str().into(), *until_ms),
                BanKind::PeerHost => {
                    let Some(network) = Network::parse(who) else { continue };
                    let network = network.canonical();
                    compiled.networks.insert(network, *until_ms);
                    if !compiled.shapes.contains(&network.shape()) {
                        compiled.shapes.push(network.shape());
                    }
                }
            }
        }
        compiled
    }

    /// Nobody is banned.
    pub(crate) fn is_empty(&self) -> bool {
        self.clients.is_empty() && self.users.is_empty() && self.networks.is_empty()
    }

    /// Is a client id named, whether its ban has ended or not?
    pub(crate) fn names_client(&self, client: &str) -> bool {
        self.clients.contains_key(client)
    }

    pub(crate) fn client(&self, client: &str, now_ms: u64) -> bool {
        self.clients.get(client).is_some_and(|until_ms| *until_ms > now_ms)
    }

    pub(crate) fn user(&self, user: &str, now_ms: u64) -> bool {
        self.users.get(user).is_some_and(|until_ms| *until_ms > now_ms)
    }

    pub(crate) fn peer(&self, peer: IpAddr, now_ms: u64) -> bool {
        let peer = peer.to_canonical();
        self.shapes.iter().filter(|(v4, _)| *v4 == peer.is_ipv4()).any(|(_, bits)| {
            let until_ms = self.networks.get(&Network::around(peer, *bits));
            until_ms.is_some_and(|until_ms| *until_ms > now_ms)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_banned_is_found_until_the_ban_ends() {
        let ban = |kind, who, until_ms| Ban::parse(kind, who, until_ms).expect(who);
        let bans = Bans::new(
            &[
                ban("clientid", "a", 10),
                ban("username", "u", u64::MAX),
                ban("peerhost", "10.0.0.0/8", 10),
                ban("peerhost", "192.0.2.7", 10),
                ban("peerhost", "2001:db8::/64", 10),
            ],
            1,
        );
        assert!(bans.client("a", 9) && !bans.client("a", 10) && !bans.client("u", 0));
        assert!(bans.user("u", u64::MAX - 1) && !bans.user("a", 0));
        for (peer, banned) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("::ffff:192.0.2.7", true),
            ("192.0.2.8", false),
            ("2001:db8::9", true),
            ("2001:db8:0:1::9", false),
        ] {
            let address: IpAddr = peer.parse().expect("an address");
            assert_eq!(bans.peer(address, 9), banned, "{peer}");
            assert!(!bans.peer(address, 10), "{peer}");
        }
    }
}
