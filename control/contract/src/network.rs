//! Networks as rules and bans name them: an address and how many bits of it count. Called wherever a peer is judged by where
//! it comes from.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

/// An address and how many bits of it count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// `10.0.0.0/8`, `::1`.
    pub fn parse(text: &str) -> Option<Network> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(whole);
        (bits <= whole).then_some(Network { address, bits })
    }

    /// The network of `bits` bits, or of all where there are not so many, that `peer` is in.
    pub fn around(peer: IpAddr, bits: u8) -> Network {
        match peer.to_canonical() {
            IpAddr::V4(address) => {
                let bits = bits.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                Network { address: Ipv4Addr::from_bits(address.to_bits() & mask).into(), bits }
            }
            IpAddr::V6(address) => {
                let bits = bits.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                Network { address: Ipv6Addr::from_bits(address.to_bits() & mask).into(), bits }
            }
        }
    }

    /// The same network as [`Network::around`] names it for each address in it.
    pub fn canonical(&self) -> Network {
        match (self.address, self.address.to_canonical()) {
            // `::ffff:10.0.0.0/104` is `10.0.0.0/8`.
            (IpAddr::V6(_), address @ IpAddr::V4(_)) if self.bits >= 96 => Network::around(address, self.bits - 96),
            (IpAddr::V6(_), IpAddr::V4(_)) => *self,
            (address, _) => Network::around(address, self.bits),
        }
    }

    /// Is it of IPv4, and how many bits of it count?
    pub fn shape(&self) -> (bool, u8) {
        (self.address.is_ipv4(), self.bits)
    }

    /// Is `peer` in it?
    pub fn contains(&self, peer: IpAddr) -> bool {
        let shared = |ours: u128, theirs: u128, whole: u32| {
            let rest = whole - u32::from(self.bits);
            rest >= 128 || ours >> rest == theirs >> rest
        };
        // A listener on both families sees IPv4 as a part of IPv6.
        match (self.address, peer.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => shared(ours.to_bits().into(), theirs.to_bits().into(), 32),
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => shared(ours.to_bits(), theirs.to_bits(), 128),
            _ => false,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = if self.address.is_ipv4() { 32 } else { 128 };
        match self.bits == whole {
            true => self.address.fmt(f),
            false => write!(f, "{}/{}", self.address, self.bits),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn every_address_names_its_network_alike() {
        for (network, peer) in [
            ("10.0.0.0/8", "10.200.1.1"),
            ("10.9.8.7/8", "10.200.1.1"),
            ("0.0.0.0/0", "203.0.113.1"),
            ("192.0.2.1", "::ffff:192.0.2.1"),
            ("::ffff:192.0.2.0/120", "192.0.2.9"),
            ("2001:db8::/64", "2001:db8::ffff:1"),
            ("::/0", "::1"),
        ] {
            let network = Network::parse(network).expect(network).canonical();
            let (v4, bits) = network.shape();
            let peer: IpAddr = peer.parse().expect("an address");
            assert_eq!((Network::around(peer, bits), v4), (network, peer.to_canonical().is_ipv4()));
        }
    }

    #[test]
    fn addresses_are_compared_by_their_first_bits() {
        for (text, peer, yes) in [
            ("10.0.0.0/8", "10.200.1.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "203.0.113.1", true),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("127.0.0.1", "::ffff:127.0.0.1", true),
            ("::/0", "::1", true),
            ("fe80::/10", "fe80::1", true),
            ("fe80::/10", "::1", false),
        ] {
            let network = Network::parse(text).expect(text);
            assert_eq!(network.contains(peer.parse().expect("an address")), yes, "{network:?} {peer}");
            assert_eq!(network.to_string(), text);
        }
        assert!(Network::parse("10.0.0.0/x").is_none() && Network::parse("::1/129").is_none());
    }
}
