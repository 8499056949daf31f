//! What a shard says to the operator's log. The shell turns each into one structured line and limits
//! the rate of repeats; the brain only names what happened.

use alloc::borrow::Cow;
use core::net::SocketAddr;

use mqtt::types::Reason;

/// One line of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// A session has a connection now.
    Connected {
        /// Client id.
        client: &'a str,
        /// Its address.
        peer: SocketAddr,
        /// MQTT version on the wire (3, 4, 5).
        version: u8,
        /// The session was there before.
        resumed: bool,
    },
    /// A session lost its connection.
    Disconnected {
        /// Client id.
        client: &'a str,
        /// Why, in one phrase.
        why: &'a str,
    },
    /// A connection was refused or closed because of what it sent or asked.
    Refused {
        /// Client id, if CONNECT told one.
        client: &'a str,
        /// Its address.
        peer: SocketAddr,
        /// The reason code of MQTT 5, whatever version the client speaks.
        reason: Reason,
        /// What exactly.
        why: Cow<'a, str>,
    },
    /// A link changed its status, or something arrived over it that we refuse.
    Link {
        /// Name of the remote.
        link: &'a str,
        /// One phrase.
        what: &'a str,
        /// Details, if any.
        detail: Cow<'a, str>,
    },
    /// The log of a shard changed its state.
    Log {
        /// One sentence.
        what: &'a str,
        /// Details, if any.
        detail: Cow<'a, str>,
    },
    /// A named limit bit for the first time since it last did not.
    Limit {
        /// Key of the configuration.
        key: &'static str,
        /// Who ran into it.
        client: &'a str,
    },
}
