//! How many connections come from one address, and how fast: one table for the node, because the kernel spreads the connections of
//! an address over all shards. It is asked once per accepted connection, and not at all while nothing is limited.
//!
//! Always true: an address is counted as long as it has a connection; a stripe holds at most [`ADDRESSES_MAX`] addresses;
//! a lock is held for a probe of a hash table, and by nobody who waits for anything else.

use std::{
    collections::{HashMap, hash_map::RandomState},
    fmt,
    hash::BuildHasher,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering},
    },
};

use broker::counters::Counter;
use contract::{config::Limits, network::Network};

use crate::pace;

/// Locks, so that shards rarely meet at one.
const STRIPES: usize = 16;
/// Addresses of one stripe. A connection of one more is let in, and is not counted by its address.
const ADDRESSES_MAX: usize = 1 << 16;
/// A stripe with fewer addresses is not tidied.
const TIDY_MIN: usize = 256;
/// What the configuration calls `infinity`.
const NO_LIMIT: u32 = u32::MAX;

/// Why an address gets no further connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Crowded {
    Connections,
    Rate,
    Handshakes,
}

impl Crowded {
    pub(crate) fn counter(self) -> Counter {
        match self {
            Crowded::Connections => Counter::address_connections_refused,
            Crowded::Rate => Counter::address_rate_refused,
            Crowded::Handshakes => Counter::address_handshakes_refused,
        }
    }
}

impl fmt::Display for Crowded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Crowded::Connections => "its address has too many connections (limits.max_connections_per_address)",
            Crowded::Rate => "too many connections come from its address (limits.max_conn_rate_per_address)",
            Crowded::Handshakes => "its address has too many without CONNECT (limits.max_handshakes_per_address)",
        })
    }
}

/// What becomes of one more connection.
pub(crate) enum Admitted {
    /// Nothing is limited, or not for this address.
    Free,
    Counted(Box<Place>),
    /// There are too many addresses.
    Uncounted,
}

/// The addresses of a node.
pub(crate) struct Addresses {
    /// Something is limited.
    limited: AtomicBool,
    connections_max: AtomicU32,
    rate_max: AtomicU32,
    handshakes_max: AtomicU32,
    prefix_v6: AtomicU8,
    exempt_loopback: AtomicBool,
    stripes: [Mutex<Stripe>; STRIPES],
    hasher: RandomState,
}

#[derive(Default)]
struct Stripe {
    known: HashMap<Network, Entry>,
    /// When so many are known, those that are not needed are forgotten.
    tidy_at: usize,
}

#[derive(Default)]
struct Entry {
    connections: u32,
    handshakes: u32,
    /// When the next connection is due, if they come as fast as they may.
    next_ns: u64,
}

/// One connection in the table; taken out of it when dropped.
pub(crate) struct Place {
    addresses: Arc<Addresses>,
    network: Network,
    /// Its CONNECT was accepted.
    proven: bool,
}

impl Addresses {
    /// An empty table.
    pub(crate) fn new(limits: &Limits) -> Arc<Addresses> {
        let addresses = Addresses {
            limited: AtomicBool::new(false),
            connections_max: AtomicU32::new(NO_LIMIT),
            rate_max: AtomicU32::new(NO_LIMIT),
            handshakes_max: AtomicU32::new(NO_LIMIT),
            prefix_v6: AtomicU8::new(128),
            exempt_loopback: AtomicBool::new(false),
            stripes: Default::default(),
            hasher: RandomState::new(),
        };
        addresses.set(limits);
        Arc::new(addresses)
    }

    /// Follows the configuration. Connections that came while nothing was limited stay uncounted.
    pub(crate) fn set(&self, limits: &Limits) {
        let Limits { address_connections_max, address_conn_rate, address_handshakes_max, .. } = *limits;
        self.connections_max.store(address_connections_max, Ordering::Relaxed);
        self.rate_max.store(address_conn_rate, Ordering::Relaxed);
        self.handshakes_max.store(address_handshakes_max, Ordering::Relaxed);
        self.prefix_v6.store(limits.address_prefix_v6, Ordering::Relaxed);
        self.exempt_loopback.store(limits.exempt_loopback, Ordering::Relaxed);
        let limits = [address_connections_max, address_conn_rate, address_handshakes_max];
        self.limited.store(limits.iter().any(|limit| *limit != NO_LIMIT), Ordering::Relaxed);
    }

    /// One more connection of `peer`, or why not.
    pub(crate) fn admit(self: &Arc<Self>, peer: IpAddr, now_us: u64) -> Result<Admitted, Crowded> {
        if !self.limited.load(Ordering::Relaxed) {
            return Ok(Admitted::Free);
        }
        if peer.is_loopback() && self.exempt_loopback.load(Ordering::Relaxed) {
            return Ok(Admitted::Free);
        }
        let bits = if peer.is_ipv4() { 32 } else { self.prefix_v6.load(Ordering::Relaxed) };
        let network = Network::around(peer, bits);
        let mut stripe = self.stripe(&network);
        if !stripe.known.contains_key(&network) && !stripe.tidy(now_us) {
            return Ok(Admitted::Uncounted);
        }
        let entry = stripe.known.entry(network).or_default();
        if entry.connections >= self.connections_max.load(Ordering::Relaxed) {
            return Err(Crowded::Connections);
        }
        if entry.handshakes >= self.handshakes_max.load(Ordering::Relaxed) {
            return Err(Crowded::Handshakes);
        }
        let rate = self.rate_max.load(Ordering::Relaxed);
        if rate != NO_LIMIT {
            // As many as in one second may come at once.
            let (moment_ns, next_ns) = pace::turn(entry.next_ns, now_us * 1000, pace::rhythm(rate, rate));
            if moment_ns > now_us * 1000 {
                return Err(Crowded::Rate);
            }
            entry.next_ns = next_ns;
        }
        entry.connections += 1;
        entry.handshakes += 1;
        drop(stripe);
        Ok(Admitted::Counted(Box::new(Place { addresses: self.clone(), network, proven: false })))
    }

    fn stripe(&self, network: &Network) -> MutexGuard<'_, Stripe> {
        let place = self.hasher.hash_one(network) as usize % STRIPES;
        self.stripes[place].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stripe {
    /// Makes room for one more. False: there is none.
    fn tidy(&mut self, now_us: u64) -> bool {
        if self.known.len() >= self.tidy_at.max(TIDY_MIN) {
            self.known.retain(|_, entry| entry.connections > 0 || entry.next_ns > now_us * 1000);
            // Twice as many may come before it is worth while again, but not more than there is room for.
            self.tidy_at = (2 * self.known.len()).min(ADDRESSES_MAX);
        }
        self.known.len() < ADDRESSES_MAX
    }
}

impl Place {
    /// The client's CONNECT was accepted.
    pub(crate) fn prove(&mut self) {
        if !std::mem::replace(&mut self.proven, true)
            && let Some(entry) = self.addresses.stripe(&self.network).known.get_mut(&self.network)
        {
            entry.handshakes -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.prove();
        if let Some(entry) = self.addresses.stripe(&self.network).known.get_mut(&self.network) {
            entry.connections -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: u64 = 1_000_000;

    fn addresses(set: impl FnOnce(&mut Limits)) -> Arc<Addresses> {
        let mut limits = Limits::default();
        set(&mut limits);
        Addresses::new(&limits)
    }

    fn admit(addresses: &Arc<Addresses>, peer: &str, now_us: u64) -> Result<Option<Box<Place>>, Crowded> {
        match addresses.admit(peer.parse().expect("an address"), now_us)? {
            Admitted::Counted(place) => Ok(Some(place)),
            Admitted::Free | Admitted::Uncounted => Ok(None),
        }
    }

    #[test]
    fn by_default_nothing_is_counted() {
        let addresses = addresses(|_| {});
        assert!(admit(&addresses, "192.0.2.1", NOW_US).is_ok_and(|place| place.is_none()));
        assert!(addresses.stripes.iter().all(|stripe| stripe.lock().expect("a lock").known.is_empty()));
    }

    #[test]
    fn an_address_has_its_connections_and_gets_another_when_one_is_gone() {
        let addresses = addresses(|limits| limits.address_connections_max = 2);
        let first = admit(&addresses, "192.0.2.1", NOW_US).expect("a place");
        let _second = admit(&addresses, "::ffff:192.0.2.1", NOW_US).expect("a place");
        assert_eq!(admit(&addresses, "192.0.2.1", NOW_US).err(), Some(Crowded::Connections));
        assert!(admit(&addresses, "192.0.2.2", NOW_US).is_ok(), "another address has its own");
        drop(first);
        assert!(admit(&addresses, "192.0.2.1", NOW_US).is_ok());
    }

    #[test]
    fn addresses_of_ipv6_count_by_their_network() {
        let addresses = addresses(|limits| limits.address_connections_max = 1);
        let _first = admit(&addresses, "2001:db8::1", NOW_US).expect("a place");
        assert_eq!(admit(&addresses, "2001:db8::2", NOW_US).err(), Some(Crowded::Connections));
        assert!(admit(&addresses, "2001:db8:0:1::1", NOW_US).is_ok());
    }

    #[test]
    fn a_handshake_counts_until_connect_is_accepted() {
        let addresses = addresses(|limits| limits.address_handshakes_max = 1);
        let mut first = admit(&addresses, "192.0.2.1", NOW_US).expect("a place").expect("it is counted");
        assert_eq!(admit(&addresses, "192.0.2.1", NOW_US).err(), Some(Crowded::Handshakes));
        first.prove();
        let second = admit(&addresses, "192.0.2.1", NOW_US).expect("a place");
        drop(first);
        assert_eq!(admit(&addresses, "192.0.2.1", NOW_US).err(), Some(Crowded::Handshakes));
        drop(second);
        assert!(admit(&addresses, "192.0.2.1", NOW_US).is_ok());
    }

    #[test]
    fn connections_come_no_faster_than_the_rate_after_one_second_at_once() {
        let addresses = addresses(|limits| limits.address_conn_rate = 4);
        for _ in 0..4 {
            assert!(admit(&addresses, "192.0.2.1", NOW_US).is_ok());
        }
        assert_eq!(admit(&addresses, "192.0.2.1", NOW_US).err(), Some(Crowded::Rate));
        assert!(admit(&addresses, "192.0.2.1", NOW_US + 250_000).is_ok());
        assert_eq!(admit(&addresses, "192.0.2.1", NOW_US + 250_000).err(), Some(Crowded::Rate));
    }

    #[test]
    fn loopback_is_exempt_only_if_that_was_said() {
        let counted = addresses(|limits| limits.address_connections_max = 1);
        let _first = admit(&counted, "127.0.0.1", NOW_US).expect("a place");
        assert!(admit(&counted, "127.0.0.1", NOW_US).is_err());
        let exempt = addresses(|limits| (limits.address_connections_max, limits.exempt_loopback) = (1, true));
        let all: Vec<_> = (0..5).map(|_| admit(&exempt, "127.0.0.1", NOW_US)).collect();
        assert!(all.iter().all(|place| place.as_ref().is_ok_and(Option::is_none)));
    }

    #[test]
    fn addresses_without_connections_are_forgotten() {
        let addresses = addresses(|limits| limits.address_connections_max = 1);
        for n in 0..100_000_u32 {
            let peer = IpAddr::from(n.to_be_bytes());
            assert!(addresses.admit(peer, NOW_US).is_ok());
        }
        let known: usize = addresses.stripes.iter().map(|stripe| stripe.lock().expect("a lock").known.len()).sum();
        assert!(known <= 2 * STRIPES * TIDY_MIN, "{known}");
    }
}
