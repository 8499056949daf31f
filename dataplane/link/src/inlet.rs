//! The receiving end of a link on one shard: may a message that a remote pushed enter here?
//!
//! Lives on every shard, because a forwarding connection may be accepted anywhere. Always true: what comes out is a
//! valid topic inside our own `topics`, so a remote with stale routes, or a hostile one, cannot make local clients
//! receive what this link was not made for. Refusals are acknowledged with 0x10 and counted; they never disconnect.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use mqtt::topic::{self, Topic};
use mqtt::types::Qos;

use crate::etf::{EtfError, Limits};
use crate::intersect;
use crate::names::CONTROL_PREFIX;
use crate::wire::{self, Forwarded, Properties, WireError};

/// Why a forwarded message does not enter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// We have no link of the name in the topic.
    UnknownLink,
    /// The link is disabled here.
    LinkDisabled,
    /// The payload is no term, or one beyond its limits.
    Undecodable(EtfError),
    /// The term is not a message, or one of its fields is invalid.
    Invalid(&'static str),
    /// The topic has wildcards, is empty, too long or too deep.
    BadTopic,
    /// The topic is a control topic.
    ControlTopic,
    /// Outside our own `topics`.
    OutsideTopics,
    /// The origin marked it as not to be published.
    Withheld,
}

impl Refused {
    /// Its name in counters.
    pub fn name(self) -> &'static str {
        match self {
            Refused::UnknownLink => "unknown_link",
            Refused::LinkDisabled => "link_disabled",
            Refused::Undecodable(_) => "undecodable",
            Refused::Invalid(_) => "invalid",
            Refused::BadTopic => "bad_topic",
            Refused::ControlTopic => "control_topic",
            Refused::OutsideTopics => "outside_topics",
            Refused::Withheld => "withheld",
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::UnknownLink => f.write_str("message from a cluster that no link names"),
            Refused::LinkDisabled => f.write_str("message from a cluster whose link is disabled here"),
            Refused::Undecodable(error) => write!(f, "message cannot be read: {error}"),
            Refused::Invalid(what) => write!(f, "message has an invalid field: {what}"),
            Refused::BadTopic => f.write_str("message has an invalid topic"),
            Refused::ControlTopic => f.write_str("message is for a control topic"),
            Refused::OutsideTopics => f.write_str("message is outside the topics of this link"),
            Refused::Withheld => f.write_str("message is marked as not to be published"),
        }
    }
}

/// A message that may enter. It is never offered to an outlet again, whatever its fields say.
#[derive(Clone, Copy, Debug)]
pub struct Inbound<'a> {
    /// Topic.
    pub topic: Topic<'a>,
    /// QoS of the original publish.
    pub qos: Qos,
    /// The publisher's RETAIN flag; over this wire nothing is stored.
    pub retain: bool,
    /// Client id of the publisher, for No Local; empty when a broker made the message.
    pub from: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// Seconds until it expires, at least 1.
    pub message_expiry_s: Option<u32>,
    /// Properties; `Properties::forwarded` makes the bytes that a broker keeps.
    pub properties: Properties<'a>,
}

/// One link's receiving end.
#[derive(Debug)]
pub struct Inlet {
    enabled: bool,
    topics: Vec<String>,
    levels_max: usize,
    limits: Limits,
}

impl Inlet {
    /// The inlet of a link that wants `topics`, for topics of at most `levels_max` levels.
    pub fn new(enabled: bool, mut topics: Vec<String>, levels_max: usize, limits: Limits) -> Inlet {
        intersect::reduce(&mut topics);
        Inlet { enabled, topics, levels_max, limits }
    }

    /// Decodes and judges one payload of a msg topic. `wall_ms` is our wall clock; a compressed payload inflates into
    /// `scratch`. `inlet` is that of the cluster in the topic, if a link names it.
    pub fn receive<'a>(
        inlet: Option<&Inlet>,
        wall_ms: u64,
        payload: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Result<Inbound<'a>, Refused> {
        let inlet = inlet.ok_or(Refused::UnknownLink)?;
        if !inlet.enabled {
            return Err(Refused::LinkDisabled);
        }
        let message = wire::decode_forwarded(payload, scratch, &inlet.limits).map_err(|error| match error {
            WireError::Etf(error) => Refused::Undecodable(error),
            WireError::Bad(what) | WireError::Missing(what) => Refused::Invalid(what),
            WireError::UnknownOp => Refused::Invalid("operation"),
        })?;
        inlet.judge(wall_ms, &message)
    }

    fn judge<'a>(&self, wall_ms: u64, message: &Forwarded<'a>) -> Result<Inbound<'a>, Refused> {
        let topic = Topic::parse(message.topic, self.levels_max).map_err(|_| Refused::BadTopic)?;
        if message.topic.starts_with(CONTROL_PREFIX) {
            return Err(Refused::ControlTopic);
        }
        if !self.topics.iter().any(|filter| topic::matches(filter, message.topic)) {
            return Err(Refused::OutsideTopics);
        }
        if message.withheld {
            return Err(Refused::Withheld);
        }
        Ok(Inbound {
            topic,
            qos: message.qos,
            retain: message.retain,
            from: message.from,
            payload: message.payload,
            message_expiry_s: message.properties.message_expiry_s.map(|interval| left(interval, message, wall_ms)),
            properties: message.properties,
        })
    }
}

/// What is left of the interval. The two clocks are not the same, so the result is kept between 1 and the interval: a
/// remote that runs ahead must not lengthen it, and one that runs behind must not make every message stillborn.
fn left(interval: u32, message: &Forwarded<'_>, wall_ms: u64) -> u32 {
    let passed_s = wall_ms.saturating_sub(message.timestamp_ms) / 1000;
    interval.saturating_sub(u32::try_from(passed_s).unwrap_or(u32::MAX)).max(1)
}
