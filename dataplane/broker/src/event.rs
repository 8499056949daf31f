//! What a shard says to the operator. The shell turns each into one structured line, an event on `$SYS` or a line of a
//! trace, and limits the rate of repeats; the brain only names what happened.

use alloc::borrow::Cow;
use core::net::SocketAddr;

use mqtt::types::{Qos, Reason};

use crate::surface::ConnId;

/// A connection of a client, as an operator knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Who<'a> {
    /// The connection.
    pub conn: ConnId,
    /// Client id; empty before CONNECT has told one.
    pub client: &'a str,
    /// User name of whoever was let in.
    pub username: Option<&'a str>,
    /// Its address.
    pub peer: SocketAddr,
    /// Index of its listener in the configuration's order.
    pub listener: u16,
}

/// One line of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// A session has a connection now.
    Connected {
        /// Whose.
        who: Who<'a>,
        /// MQTT version on the wire (3, 4, 5).
        version: u8,
        /// It asked for a session without a past.
        clean_start: bool,
        /// Its keep-alive; 0: none.
        keep_alive_s: u16,
        /// How long its session outlives it; `u32::MAX`: for ever.
        expiry_s: u32,
        /// The session was there before.
        resumed: bool,
    },
    /// A session lost its connection.
    Disconnected {
        /// Whose.
        who: Who<'a>,
        /// Why, in one phrase.
        why: &'a str,
    },
    /// A connection was refused or closed because of what it sent or asked.
    Refused {
        /// Whose.
        who: Who<'a>,
        /// The reason code of MQTT 5, whatever version the client speaks.
        reason: Reason,
        /// What exactly.
        why: Cow<'a, str>,
    },
    /// A client subscribed to something. The operator's log has no line for it.
    Subscribed {
        /// Who.
        who: Who<'a>,
        /// The filter, as the client wrote it.
        filter: &'a str,
        /// What was granted.
        qos: Qos,
    },
    /// A client ended a subscription. The operator's log has no line for it.
    Unsubscribed {
        /// Who.
        who: Who<'a>,
        /// The filter, as the client wrote it.
        filter: &'a str,
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
