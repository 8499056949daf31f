//! Who may not connect, and until when. Control keeps the bans and puts them into the View; every shard holds them against
//! each CONNECT. Always true: a [`Ban`] that [`Ban::parse`] has made names somebody, and is short.

use alloc::{format, string::String};

use serde::{Deserialize, Serialize};

use crate::network::Network;

/// Most bans of a node.
pub const BANS_MAX: usize = 10_000;
/// Longest client id, user name or network in a ban.
pub const WHO_BYTES_MAX: usize = 1024;
/// Bytes of all names in all bans: a View with them fits into one frame.
pub const NAMES_BYTES_MAX: usize = 2 << 20;
/// Who has banned those that connect and disconnect all the time.
pub const FLAPPING_DETECTOR: &str = "flapping detector";

/// What a ban looks at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum BanKind {
    /// The client id.
    ClientId,
    /// The user name.
    Username,
    /// The address that a client comes from, or its network.
    PeerHost,
}

impl BanKind {
    /// EMQX's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            BanKind::ClientId => "clientid",
            BanKind::Username => "username",
            BanKind::PeerHost => "peerhost",
        }
    }

    /// What [`BanKind::as_str`] says, or EMQX's other word for networks.
    pub fn parse(word: &str) -> Option<BanKind> {
        match word {
            "clientid" => Some(BanKind::ClientId),
            "username" => Some(BanKind::Username),
            "peerhost" | "peerhost_net" => Some(BanKind::PeerHost),
            _ => None,
        }
    }
}

/// Somebody who may not connect.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ban {
    /// What is looked at.
    pub kind: BanKind,
    /// The client id, the user name, or the network in its canonical form.
    pub who: String,
    /// Wall clock in milliseconds at which it ends; `u64::MAX`: never.
    pub until_ms: u64,
}

impl Ban {
    /// A ban as an operator writes it, or why it is none.
    pub fn parse(kind: &str, who: &str, until_ms: u64) -> Result<Ban, String> {
        let kind = BanKind::parse(kind).ok_or("as must be \"clientid\", \"username\" or \"peerhost\"")?;
        if who.is_empty() || who.len() > WHO_BYTES_MAX {
            return Err(format!("who must have 1 to {WHO_BYTES_MAX} bytes"));
        }
        let who = match kind {
            BanKind::PeerHost => {
                let network = Network::parse(who).ok_or("an address is \"127.0.0.1\", \"::1\" or \"10.0.0.0/8\"")?;
                format!("{}", network.canonical())
            }
            BanKind::ClientId | BanKind::Username => who.into(),
        };
        Ok(Ban { kind, who, until_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_names_somebody_and_is_short() {
        let long = "x".repeat(WHO_BYTES_MAX + 1);
        for (kind, who, why) in [
            ("client", "a", "as must be"),
            ("clientid", "", "1 to 1024"),
            ("username", long.as_str(), "1 to 1024"),
            ("peerhost", "10.0.0.0/33", "an address is"),
        ] {
            assert!(Ban::parse(kind, who, 1).is_err_and(|said| said.contains(why)), "{kind} {who}");
        }
        let ban = Ban::parse("peerhost_net", "010.1.2.3/8", 1);
        assert!(ban.is_err(), "an address has one form");
        assert_eq!(Ban::parse("peerhost_net", "10.0.0.0/8", 1).map(|ban| ban.kind), Ok(BanKind::PeerHost));
        assert_eq!(Ban::parse("peerhost", "10.1.2.3/32", 1).map(|ban| ban.who), Ok("10.1.2.3".into()));
    }
}
