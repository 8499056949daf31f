//! Payloads of the link protocol, version 1: what requester and forwarder tell each other, and forwarded messages.
//!
//! Decoding borrows and allocates nothing (a compressed payload inflates into the caller's scratch); encoding appends.
//! Called by requester, forwarder, outlet and inlet. Always true: an iterator handed out here was checked whole, and
//! route ids are bytes, not text (EMQX puts binary ids of shared-group leaders in them).

use alloc::vec::Vec;
use core::fmt;

use mqtt::types::Qos;

use crate::etf::{self, Atoms, EtfError, Limits, Reader, Token};
use crate::properties;
pub use crate::properties::Properties;
use crate::waiting::{Part, Parts};

/// The version we speak; EMQX sends it and checks nobody's.
pub const PROTOCOL_VERSION: i64 = 1;
/// Bytes of an actor's name; an Erlang node name is at most 255.
pub const ACTOR_BYTES_MAX: usize = 1024;
/// Bytes of a cluster's name in `actor_init`.
pub const CLUSTER_BYTES_MAX: usize = 1024;
/// Bytes of a route id: a filter of 65535 bytes with a prefix that names group or session.
pub const ROUTE_ID_BYTES_MAX: usize = 2 * 65535;
/// Bytes of a message id. EMQX's are 16; it accepts others, and so do we, within reason.
pub const MESSAGE_ID_BYTES_MAX: usize = 64;

const KEY_ACTOR: i64 = 10;
const KEY_INCARNATION: i64 = 11;
const KEY_ROUTES: i64 = 12;
const KEY_TARGET: i64 = 13;
const KEY_PROTOCOL: i64 = 14;
const KEY_RESULT: i64 = 15;
const KEY_NEED_BOOTSTRAP: i64 = 16;
const OP_DELETE: i64 = 100;
/// Every atom that a route payload may hold; the rest is refused as EMQX's `safe` decoder does.
const ROUTE_ATOMS: &[&str] = &["$op", "ok", "error", "true", "false", "undefined"];

/// What is wrong with a payload. The guilty one is the remote that encoded it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireError {
    /// The bytes are no acceptable term.
    Etf(EtfError),
    /// `$op` names nothing that we know.
    UnknownOp,
    /// A key that the operation needs is absent.
    Missing(&'static str),
    /// A value of the wrong type or outside its bounds.
    Bad(&'static str),
}

impl From<EtfError> for WireError {
    fn from(error: EtfError) -> WireError {
        WireError::Etf(error)
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::Etf(error) => error.fmt(f),
            WireError::UnknownOp => f.write_str("unknown $op"),
            WireError::Missing(what) => write!(f, "{what} is missing"),
            WireError::Bad(what) => write!(f, "{what} is invalid"),
        }
    }
}

/// A payload of a route or resp topic.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum RouteMessage<'a> {
    /// "I am this actor; do you know me?"
    ActorInit {
        /// Stable name of the requester's node.
        actor: &'a str,
        /// Grows with every start of the requester.
        incarnation: u64,
        /// The name that the requester has for the receiver.
        target: &'a str,
        /// Protocol version; not checked by anyone.
        protocol: i64,
    },
    /// The answer.
    ActorInitAck {
        /// The actor that asked.
        actor: &'a str,
        /// Protocol version.
        protocol: i64,
        /// Whether a bootstrap is needed, or the reason of a refusal.
        result: Result<bool, &'a str>,
    },
    /// Additions and deletions of interest.
    Route {
        /// The actor they belong to.
        actor: &'a str,
        /// As sent; the incarnation of the handshake is the one that counts.
        incarnation: u64,
        /// The changes.
        ops: RouteOps<'a>,
    },
    /// "I am alive."
    Heartbeat {
        /// Who.
        actor: &'a str,
        /// As sent.
        incarnation: u64,
    },
}

/// One change of interest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RouteOp<'a> {
    /// The actor wants what matches the filter.
    Add {
        /// The filter.
        filter: &'a str,
        /// What makes this want unique within the actor.
        route_id: &'a [u8],
    },
    /// It no longer does.
    Delete {
        /// The filter.
        filter: &'a str,
        /// As in the addition.
        route_id: &'a [u8],
    },
}

/// Checked changes; iterating them cannot fail.
#[derive(Clone, Copy, Debug)]
pub struct RouteOps<'a> {
    entries: Reader<'a>,
    len: u32,
}

impl PartialEq for RouteOps<'_> {
    fn eq(&self, other: &Self) -> bool {
        Iterator::eq(*self, *other)
    }
}

impl<'a> Iterator for RouteOps<'a> {
    type Item = RouteOp<'a>;

    fn next(&mut self) -> Option<RouteOp<'a>> {
        self.len = self.len.checked_sub(1)?;
        read_op(&mut self.entries).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len as usize, Some(self.len as usize))
    }
}

impl ExactSizeIterator for RouteOps<'_> {}

fn read_op<'a>(entries: &mut Reader<'a>) -> Result<RouteOp<'a>, WireError> {
    let arity = entries.tuple()?;
    let delete = match arity {
        2 => false,
        3 if entries.int()? == OP_DELETE => true,
        _ => return Err(WireError::Bad("route entry")),
    };
    let filter = entries.text()?;
    let route_id = entries.binary()?;
    if route_id.len() > ROUTE_ID_BYTES_MAX {
        return Err(WireError::Bad("route id"));
    }
    Ok(if delete { RouteOp::Delete { filter, route_id } } else { RouteOp::Add { filter, route_id } })
}

/// The pairs of a route map as they are found; what each operation needs is taken out at the end.
#[derive(Default)]
struct RouteMap<'a> {
    op: Option<&'a str>,
    actor: Option<&'a str>,
    incarnation: Option<u64>,
    routes: Option<RouteOps<'a>>,
    target: Option<&'a str>,
    protocol: Option<i64>,
    result: Option<Result<(), &'a str>>,
    need_bootstrap: Option<bool>,
}

/// Decodes a payload of a route or resp topic.
pub fn decode_route<'a>(
    payload: &'a [u8],
    scratch: &'a mut Vec<u8>,
    limits: &Limits,
) -> Result<RouteMessage<'a>, WireError> {
    let mut reader = etf::open(payload, scratch, limits, Atoms::Only(ROUTE_ATOMS))?;
    let mut map = RouteMap::default();
    for _ in 0..reader.map()? {
        match reader.token()? {
            Token::Atom("$op") => once(&mut map.op, reader.text()?)?,
            Token::Int(KEY_ACTOR) => once(&mut map.actor, bounded_text(&mut reader, ACTOR_BYTES_MAX, "actor")?)?,
            Token::Int(KEY_INCARNATION) => {
                let incarnation = u64::try_from(reader.int()?).map_err(|_| WireError::Bad("incarnation"))?;
                once(&mut map.incarnation, incarnation)?;
            }
            Token::Int(KEY_ROUTES) => once(&mut map.routes, read_ops(&mut reader)?)?,
            Token::Int(KEY_TARGET) => once(&mut map.target, bounded_text(&mut reader, CLUSTER_BYTES_MAX, "target")?)?,
            Token::Int(KEY_PROTOCOL) => once(&mut map.protocol, reader.int()?)?,
            Token::Int(KEY_RESULT) => once(&mut map.result, read_result(&mut reader)?)?,
            Token::Int(KEY_NEED_BOOTSTRAP) => {
                // `undefined` accompanies an error, where the value means nothing.
                once(&mut map.need_bootstrap, reader.atom()? == "true")?;
            }
            Token::Int(_) | Token::Atom(_) | Token::Binary(_) => reader.skip()?,
            _ => return Err(WireError::Bad("map key")),
        }
    }
    map.into_message()
}

impl<'a> RouteMap<'a> {
    fn into_message(self) -> Result<RouteMessage<'a>, WireError> {
        let op = self.op.ok_or(WireError::Missing("$op"))?;
        let actor = self.actor.ok_or(WireError::Missing("actor"));
        let incarnation = self.incarnation.ok_or(WireError::Missing("incarnation"));
        let protocol = self.protocol.unwrap_or(PROTOCOL_VERSION);
        Ok(match op {
            "actor_init" => RouteMessage::ActorInit {
                actor: actor?,
                incarnation: incarnation?,
                target: self.target.ok_or(WireError::Missing("target"))?,
                protocol,
            },
            "actor_init_ack" => RouteMessage::ActorInitAck {
                actor: actor?,
                protocol,
                result: match self.result.ok_or(WireError::Missing("result"))? {
                    Ok(()) => Ok(self.need_bootstrap.ok_or(WireError::Missing("need_bootstrap"))?),
                    Err(reason) => Err(reason),
                },
            },
            "route" => RouteMessage::Route {
                actor: actor?,
                incarnation: incarnation?,
                ops: self.routes.ok_or(WireError::Missing("routes"))?,
            },
            "heartbeat" => RouteMessage::Heartbeat { actor: actor?, incarnation: incarnation? },
            _ => return Err(WireError::UnknownOp),
        })
    }
}

/// A key that stands twice would make the meaning depend on the reader; Erlang cannot even build such a map.
fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), WireError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(WireError::Bad("repeated map key")),
    }
}

fn bounded_text<'a>(reader: &mut Reader<'a>, bytes_max: usize, name: &'static str) -> Result<&'a str, WireError> {
    let text = reader.text()?;
    if text.len() > bytes_max { Err(WireError::Bad(name)) } else { Ok(text) }
}

fn read_ops<'a>(reader: &mut Reader<'a>) -> Result<RouteOps<'a>, WireError> {
    let list = reader.list()?;
    let ops = RouteOps { entries: *reader, len: list.len };
    for _ in 0..list.len {
        read_op(reader)?;
    }
    reader.list_end(list)?;
    Ok(ops)
}

fn read_result<'a>(reader: &mut Reader<'a>) -> Result<Result<(), &'a str>, WireError> {
    match reader.token()? {
        Token::Atom("ok") => Ok(Ok(())),
        Token::Tuple(2) if reader.atom()? == "error" => Ok(Err(reader.text()?)),
        _ => Err(WireError::Bad("result")),
    }
}

/// Appends an `actor_init` payload.
pub fn put_actor_init(out: &mut Vec<u8>, actor: &str, incarnation: u64, target: &str) {
    etf::put_version(out);
    etf::put_map(out, 5);
    put_actor(out, actor);
    put_incarnation(out, incarnation);
    etf::put_int(out, KEY_TARGET);
    etf::put_binary(out, target.as_bytes());
    etf::put_int(out, KEY_PROTOCOL);
    etf::put_int(out, PROTOCOL_VERSION);
    put_op(out, "actor_init");
}

/// Appends an `actor_init_ack` payload: whether a bootstrap is needed, or why we refuse.
pub fn put_actor_init_ack(out: &mut Vec<u8>, actor: &str, result: Result<bool, &str>) {
    etf::put_version(out);
    etf::put_map(out, 5);
    put_actor(out, actor);
    etf::put_int(out, KEY_PROTOCOL);
    etf::put_int(out, PROTOCOL_VERSION);
    etf::put_int(out, KEY_RESULT);
    match result {
        Ok(_) => etf::put_atom(out, "ok"),
        Err(reason) => {
            etf::put_tuple(out, 2);
            etf::put_atom(out, "error");
            // A binary, never an atom: the other side does not know ours.
            etf::put_binary(out, reason.as_bytes());
        }
    }
    etf::put_int(out, KEY_NEED_BOOTSTRAP);
    etf::put_atom(out, if let Ok(need) = result { bool_atom(need) } else { "undefined" });
    put_op(out, "actor_init_ack");
}

/// Appends a `heartbeat` payload.
pub fn put_heartbeat(out: &mut Vec<u8>, actor: &str, incarnation: u64) {
    etf::put_version(out);
    etf::put_map(out, 3);
    put_actor(out, actor);
    put_incarnation(out, incarnation);
    put_op(out, "heartbeat");
}

/// A `route` payload under construction. Its size is known at every moment, so a batch can be closed before it
/// outgrows the remote's packet limit.
#[derive(Debug)]
pub struct RouteBatch {
    bytes: Vec<u8>,
    count_at: usize,
    len: u32,
}

impl RouteBatch {
    /// What [`RouteBatch::finish`] appends.
    const END_BYTES: usize = 1 + 2 + "$op".len() + 5 + "route".len();

    /// An empty batch of `actor`.
    pub fn new(actor: &str, incarnation: u64) -> RouteBatch {
        let mut bytes = Vec::new();
        etf::put_version(&mut bytes);
        etf::put_map(&mut bytes, 4);
        put_actor(&mut bytes, actor);
        put_incarnation(&mut bytes, incarnation);
        etf::put_int(&mut bytes, KEY_ROUTES);
        let count_at = bytes.len();
        etf::put_list(&mut bytes, 0);
        RouteBatch { bytes, count_at, len: 0 }
    }

    /// Adds one change.
    pub fn push(&mut self, op: RouteOp<'_>) {
        let (filter, route_id) = match op {
            RouteOp::Add { filter, route_id } => {
                etf::put_tuple(&mut self.bytes, 2);
                (filter, route_id)
            }
            RouteOp::Delete { filter, route_id } => {
                etf::put_tuple(&mut self.bytes, 3);
                etf::put_int(&mut self.bytes, OP_DELETE);
                (filter, route_id)
            }
        };
        etf::put_binary(&mut self.bytes, filter.as_bytes());
        etf::put_binary(&mut self.bytes, route_id);
        self.len += 1;
    }

    /// Bytes that `op` would add.
    pub fn op_bytes(op: &RouteOp<'_>) -> usize {
        match op {
            RouteOp::Add { filter, route_id } => 2 + 5 + filter.len() + 5 + route_id.len(),
            RouteOp::Delete { filter, route_id } => 4 + 5 + filter.len() + 5 + route_id.len(),
        }
    }

    /// Number of changes.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// No change yet?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Size of the payload if it were finished now.
    pub fn payload_bytes(&self) -> usize {
        self.bytes.len() + Self::END_BYTES
    }

    /// The payload.
    pub fn finish(mut self) -> Vec<u8> {
        if self.len == 0 {
            self.bytes.truncate(self.count_at);
        } else {
            self.bytes[self.count_at + 1..self.count_at + 5].copy_from_slice(&self.len.to_be_bytes());
        }
        etf::put_nil(&mut self.bytes);
        put_op(&mut self.bytes, "route");
        self.bytes
    }
}

fn put_actor(out: &mut Vec<u8>, actor: &str) {
    etf::put_int(out, KEY_ACTOR);
    etf::put_binary(out, actor.as_bytes());
}

fn put_incarnation(out: &mut Vec<u8>, incarnation: u64) {
    etf::put_int(out, KEY_INCARNATION);
    // Milliseconds of the wall clock: far below the sign bit for 292 million years.
    etf::put_int(out, i64::try_from(incarnation).unwrap_or(i64::MAX));
}

fn put_op(out: &mut Vec<u8>, op: &'static str) {
    etf::put_atom(out, "$op");
    etf::put_binary(out, op.as_bytes());
}

fn bool_atom(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// A message on its way from one cluster to another, as the bytes say it. Nothing is judged here but types and
/// ranges; whether it may enter is the inlet's to say.
#[derive(Clone, Copy, Debug)]
pub struct Forwarded<'a> {
    /// The origin's message id.
    pub id: &'a [u8],
    /// QoS of the original publish; the outer packet is capped to 1.
    pub qos: Qos,
    /// Client id of the publisher; empty when the origin's broker made the message itself.
    pub from: &'a str,
    /// The publisher's DUP flag.
    pub dup: bool,
    /// The publisher's RETAIN flag.
    pub retain: bool,
    /// Topic, not yet parsed.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// When it was published, by the origin's wall clock.
    pub timestamp_ms: u64,
    /// Publish properties.
    pub properties: Properties<'a>,
    /// The origin marked it as not to be published (headers `allow_publish = false` or `should_disconnect = true`).
    pub withheld: bool,
}

/// Decodes a payload of a msg topic.
pub fn decode_forwarded<'a>(
    payload: &'a [u8],
    scratch: &'a mut Vec<u8>,
    limits: &Limits,
) -> Result<Forwarded<'a>, WireError> {
    let mut reader = etf::open(payload, scratch, limits, Atoms::Any)?;
    if reader.tuple()? != 10 || reader.atom()? != "message" {
        return Err(WireError::Bad("message tuple"));
    }
    let id = reader.binary()?;
    if id.len() > MESSAGE_ID_BYTES_MAX {
        return Err(WireError::Bad("message id"));
    }
    let qos = u8::try_from(reader.int()?).ok().and_then(Qos::from_bits).ok_or(WireError::Bad("qos"))?;
    let from = match reader.token()? {
        // The broker itself, not a client: there is no client id to compare for No Local.
        Token::Atom(_) => "",
        Token::Binary(bytes) => core::str::from_utf8(bytes).map_err(|_| WireError::Bad("from"))?,
        _ => return Err(WireError::Bad("from")),
    };
    let (dup, retain) = read_flags(&mut reader)?;
    let (properties, withheld) = read_headers(&mut reader)?;
    let topic = reader.text().map_err(|_| WireError::Bad("topic"))?;
    let payload = reader.binary().map_err(|_| WireError::Bad("payload"))?;
    let timestamp = reader.int().map_err(|_| WireError::Bad("timestamp"))?;
    let timestamp_ms = u64::try_from(timestamp).map_err(|_| WireError::Bad("timestamp"))?;
    // `extra` holds what EMQX's own hooks left behind; only its type is part of the protocol.
    if !matches!(reader.token()?, Token::Map(_)) {
        return Err(WireError::Bad("extra"));
    }
    Ok(Forwarded { id, qos, from, dup, retain, topic, payload, timestamp_ms, properties, withheld })
}

fn read_flags(reader: &mut Reader<'_>) -> Result<(bool, bool), WireError> {
    let (mut dup, mut retain) = (false, false);
    for _ in 0..reader.map()? {
        let flag = reader.atom().map_err(|_| WireError::Bad("flags"))?;
        let set = match reader.atom().map_err(|_| WireError::Bad("flags"))? {
            "true" => true,
            "false" => false,
            _ => return Err(WireError::Bad("flags")),
        };
        match flag {
            "dup" => dup = set,
            "retain" => retain = set,
            _ => {}
        }
    }
    Ok((dup, retain))
}

/// Of the headers only two things matter here; the rest (peer address, user name, attributes) is not ours to spread.
fn read_headers<'a>(reader: &mut Reader<'a>) -> Result<(Properties<'a>, bool), WireError> {
    let mut properties = Properties::default();
    let mut withheld = false;
    for _ in 0..reader.map()? {
        match reader.token()? {
            Token::Atom("properties") => properties = Properties::read(reader)?,
            Token::Atom("allow_publish") => withheld |= is_atom(reader, "false")?,
            Token::Atom("should_disconnect") => withheld |= is_atom(reader, "true")?,
            Token::Tuple(_) | Token::List(_) | Token::Map(_) => return Err(WireError::Bad("headers")),
            _ => reader.skip()?,
        }
    }
    Ok((properties, withheld))
}

fn is_atom(reader: &mut Reader<'_>, wanted: &str) -> Result<bool, EtfError> {
    let mut at = *reader;
    reader.skip()?;
    Ok(matches!(at.token()?, Token::Atom(atom) if atom == wanted))
}

/// A message to encode. Property bytes are raw MQTT 5 properties that the codec has validated.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Message id; EMQX expects 16 bytes.
    pub id: [u8; 16],
    /// QoS of the original publish.
    pub qos: Qos,
    /// Client id of the publisher; empty for messages that the broker made.
    pub from: &'a str,
    /// The publisher's RETAIN flag.
    pub retain: bool,
    /// Topic.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// When it was published, by our wall clock.
    pub timestamp_ms: u64,
    /// Raw property bytes, as `PublishProperties::forwarded` makes them.
    pub properties: &'a [u8],
    /// The full expiry interval, counted from `timestamp_ms`.
    pub message_expiry_s: Option<u32>,
}

/// Appends the payload of a msg topic. Of the headers only `properties` travels: addresses and user names of our
/// clients are none of the remote's business. Fails only when `message.properties` is not what the codec validates.
pub fn put_forwarded(out: &mut Vec<u8>, message: &Message<'_>) -> Result<(), EtfError> {
    put_parts(out, message).map(|_| ())
}

/// The same, and says where its parts are.
pub(crate) fn put_parts(out: &mut Vec<u8>, message: &Message<'_>) -> Result<Parts, EtfError> {
    let mut parts = Parts::default();
    etf::put_version(out);
    etf::put_tuple(out, 10);
    etf::put_atom(out, "message");
    parts.id = Part::put(out, &message.id);
    etf::put_int(out, message.qos as i64);
    if message.from.is_empty() {
        etf::put_atom(out, "undefined");
    } else {
        parts.from = Part::put(out, message.from.as_bytes());
    }
    etf::put_map(out, 2);
    etf::put_atom(out, "dup");
    // DUP belongs to the publisher's connection; what crosses a link is a new publish.
    etf::put_atom(out, "false");
    etf::put_atom(out, "retain");
    etf::put_atom(out, bool_atom(message.retain));
    etf::put_map(out, 1);
    etf::put_atom(out, "properties");
    properties::put_map(out, message.properties, message.message_expiry_s)?;
    parts.topic = Part::put(out, message.topic.as_bytes());
    parts.payload = Part::put(out, message.payload);
    etf::put_int(out, i64::try_from(message.timestamp_ms).unwrap_or(i64::MAX));
    etf::put_map(out, 0);
    Ok(parts)
}
