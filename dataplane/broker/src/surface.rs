//! All that one shard's brain can suffer ([`Input`], [`Mailboxes`]) and cause ([`Output`]).
//! The shell (`dataplane/src`) and the simulation (`tests/simulation`) implement the two traits;
//! [`crate::Shard`] calls them. Nothing here blocks, and nothing here knows a socket.

use alloc::{boxed::Box, string::String, sync::Arc, vec::Vec};
use core::{any::Any, net::SocketAddr};

use contract::{config::CertificateUser, ids::ShardId};
use mqtt::types::Version;

use crate::{
    admission::{Ask, Policy, Verdict},
    bans::Bans,
    exchange::{Judged, Round},
    inquiry::{Heard, Wish},
};

/// A connection on this shard: an index into the shell's table and the generation of that entry.
/// Indices are dense and reused, generations tell a new tenant from the old one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnId {
    /// Place in the shell's table of this shard.
    pub index: u32,
    /// Counts the tenants of that place.
    pub generation: u32,
}

/// An attempt to connect to a remote cluster, named by the shard that asked for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DialId(pub u32);

/// Whatever the shell needs to move a connection to another shard: descriptor and stages.
/// The brain carries it, and never looks inside.
pub type Transport = Box<dyn Any + Send>;

/// Who a client's certificate is for. Only a certificate that was verified becomes one of these.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// The first common name of its subject, if there is one.
    pub common_name: Option<String>,
    /// Its subject in the form of RFC 4514, as in `CN=sensor-7,O=Example`.
    pub subject: String,
}

/// What a shard has to know of a listener. A number never means another listener in the life of a process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Terms {
    /// It was closed, and its clients have to go.
    pub closed: bool,
    /// What all topics of its clients begin with.
    pub mountpoint: Option<Arc<str>>,
    /// Who a client with a verified certificate is.
    pub certificate_user: CertificateUser,
}

impl Default for Terms {
    fn default() -> Terms {
        Terms { closed: false, mountpoint: None, certificate_user: CertificateUser::Disabled }
    }
}

/// A connection between two shards: what was read and not yet consumed (from the first byte of
/// CONNECT on), and what is known about its origin. Its input stays unread until it arrives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parked {
    /// Number of the listener.
    pub listener: u16,
    /// Who connected.
    pub peer: SocketAddr,
    /// Its verified certificate.
    pub certificate: Option<Box<Certificate>>,
    /// Bytes received and not consumed; begins with a complete CONNECT.
    pub unread: Vec<u8>,
}

/// Why a transport ended, as the shell saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The other side closed in an orderly way.
    Eof,
    /// Reset, timeout or another error of the transport.
    Error,
    /// We asked for it through [`Output::close`].
    Ours,
}

/// Everything that can enter a shard, besides mail (see [`Mailboxes`]).
pub enum Input<'a> {
    /// A transport was accepted on this shard, and it is known who is there. Only single receives are armed until
    /// [`Output::ready`].
    Accepted {
        /// Its identity from now on.
        conn: ConnId,
        /// Number of the listener.
        listener: u16,
        /// Who connected.
        peer: SocketAddr,
        /// Its verified certificate.
        certificate: Option<Box<Certificate>>,
        /// When the transport was accepted, monotonic microseconds: the time for CONNECT runs from there.
        since_us: u64,
    },
    /// The node says something about itself, on a `$SYS` topic.
    System {
        /// The topic.
        topic: &'a str,
        /// What it says; not kept in a log.
        text: &'a str,
        /// It is true until something else is said: retained.
        lasting: bool,
    },
    /// Somebody watches other clients than before: [`Output::watch`] is asked again about all connections.
    Watch,
    /// Bytes of a connection, in order, after all stages. Any cut is possible.
    Received {
        /// Which connection.
        conn: ConnId,
        /// The bytes; lent for the duration of the call.
        bytes: &'a [u8],
    },
    /// The transport is gone. Exactly once per connection, also after [`Output::close`]; not after a hand-over.
    /// What the brain still says about this connection while it takes this in has no effect.
    Closed {
        /// Which connection.
        conn: ConnId,
        /// Why.
        cause: Cause,
    },
    /// The shell has detached a connection after [`Output::hand_over`]: no operation on it is in flight.
    Detached {
        /// Descriptor and stages.
        transport: Transport,
        /// The home shard.
        to: ShardId,
        /// The state that [`Output::hand_over`] named, with late bytes appended to `unread`.
        parked: Parked,
    },
    /// A dial succeeded; `conn` is usable.
    Dialed {
        /// Which attempt.
        dial: DialId,
        /// The connection.
        conn: ConnId,
    },
    /// A dial failed (refused, timeout, name not found).
    DialFailed {
        /// Which attempt.
        dial: DialId,
        /// One line for the operator.
        reason: &'a str,
    },
    /// What control says is true has changed.
    View(&'a contract::view::View),
    /// Who a client is, or why it may not come in: the answer to [`Output::authenticate`]. It may come late.
    Authenticated {
        /// Which connection.
        conn: ConnId,
        /// Number of the policy by which this was judged.
        policy: u64,
        /// The answer.
        verdict: Verdict,
    },
    /// What somebody who knows the method says to a client's part of an enhanced authentication: the answer to
    /// [`Output::exchange`]. It may come late.
    Exchanged {
        /// Which connection.
        conn: ConnId,
        /// Number of the policy by which this was judged.
        policy: u64,
        /// The answer.
        judged: Judged,
    },
    /// What a server says to a client's wish: the answer to [`Output::permit`].
    Permitted {
        /// Which connection.
        conn: ConnId,
        /// Number of the question.
        number: u64,
        /// Number of the policy whose server was asked.
        policy: u64,
        /// What it says; `None`: nothing that can be understood, or nothing in time.
        heard: Option<Heard>,
    },
    /// Who is let in and what they may do has changed.
    Policy(&'a Arc<Policy>),
    /// Memory is scarce, or no longer: while it is, nothing that grows is taken.
    Memory {
        /// It is.
        scarce: bool,
    },
    /// Listeners have come, changed or gone.
    Listeners(&'a Arc<[Terms]>),
    /// Who may not connect has changed.
    Bans(&'a Arc<Bans>),
    /// The log of this shard has come so far.
    Logged(log::Status),
    /// Every shard of the node stands at [`crate::journal::Standing::Restored`]: what a crash has cut is repeated.
    Replay,
    /// Stop serving: say goodbye to every connection (0x8B in MQTT 5).
    Drain,
}

/// Where a shard's effects go. Generic on the hot path: no queue of effects, no allocation.
pub trait Output {
    /// A handed-over connection arrives; the shell gives it an identity here. `None`: no room, it was closed.
    fn adopt(&mut self, transport: Transport) -> Option<ConnId>;
    /// CONNECT is complete on its home shard: the shell may arm multishot receive.
    fn ready(&mut self, conn: ConnId);
    /// Detach `conn` and come back with [`Input::Detached`]; no [`Input::Closed`] follows. If the
    /// transport turns out to be dead, [`Input::Closed`] comes instead.
    fn hand_over(&mut self, conn: ConnId, to: ShardId, parked: Parked);
    /// `conn` has bytes in [`crate::Shard::output`] that nobody was told of yet. The shell takes them
    /// (swap) at the end of the turn when no send is in flight, or after the send in flight.
    fn flush(&mut self, conn: ConnId);
    /// Send what [`crate::Shard::output`] holds, then end the connection and report [`Input::Closed`].
    fn close(&mut self, conn: ConnId);
    /// Stop or resume reading. Bytes that were already received may still arrive.
    fn read(&mut self, conn: ConnId, on: bool);
    /// Connect to `server` (`host:port`), resolving names off the shard; answer with [`Input::Dialed`]
    /// or [`Input::DialFailed`] within a bounded time.
    fn dial(&mut self, dial: DialId, server: &str);
    /// Ask who a client is, and come back with [`Input::Authenticated`] by the time that the question names. False: too
    /// many wait. A shell that never gives a policy that asks is never asked.
    fn authenticate(&mut self, _conn: ConnId, _ask: &Ask<'_>) -> bool {
        false
    }
    /// Ask what a client's part of an enhanced authentication is worth, and come back with [`Input::Exchanged`] by the
    /// time that the round names. False: too many wait.
    fn exchange(&mut self, _conn: ConnId, _round: Round<'_>) -> bool {
        false
    }
    /// Does somebody watch what this client sends? Asked when its CONNECT is read, and again after [`Input::Watch`].
    fn watch(&mut self, _who: &crate::event::Who<'_>, _version: Version) -> bool {
        false
    }
    /// A whole packet came on a connection that is watched; nothing was done about it so far.
    fn packet(&mut self, _conn: ConnId, _bytes: &[u8]) {}
    /// Ask a server whether a client may do something, and come back with [`Input::Permitted`] within a bounded time, and
    /// before [`Input::Closed`] if the client ends meanwhile in an orderly way. False: too many wait.
    fn permit(&mut self, _conn: ConnId, _number: u64, _wish: &Wish<'_>) -> bool {
        false
    }
    /// Something an operator may want to read. The shell limits the rate.
    fn event(&mut self, event: crate::event::Event<'_>);
}

/// What travels in a mailbox entry: frames of bytes, and values that are no bytes.
/// It is filled by its maker, read in place by the receiver and goes back to its maker to be freed.
#[derive(Default)]
pub struct Batch {
    /// Concatenated frames (see [`crate::frame`]).
    pub bytes: Vec<u8>,
    /// Connections that change shards.
    pub parcels: Vec<Parcel>,
}

/// A connection on its way to its home shard.
pub struct Parcel {
    /// Descriptor and stages.
    pub transport: Transport,
    /// Its bytes and origin.
    pub parked: Parked,
}

/// The bounded mailboxes between this shard and the others: one SPSC ring per ordered pair.
/// Positions count batches since the start of the process.
pub trait Mailboxes {
    /// Position behind the last batch from `from` that is visible now.
    fn tail(&mut self, from: ShardId) -> u64;
    /// How many batches of `from` were taken.
    fn taken(&self, from: ShardId) -> u64;
    /// The next batch from `from`, if one is visible.
    fn take(&mut self, from: ShardId) -> Option<Box<Batch>>;
    /// Returns a read batch to its maker.
    fn give_back(&mut self, from: ShardId, batch: Box<Batch>);
    /// An empty batch for `to`, recycled when one came back.
    fn blank(&mut self, to: ShardId) -> Box<Batch>;
    /// Puts a batch into the mailbox to `to`. `reserved` batches (answers, acknowledgements, interest,
    /// hand-overs) may use the slots that message batches may not. Full: the batch comes back.
    /// The target is woken once per turn, after the turn, and only if it sleeps.
    fn offer(&mut self, to: ShardId, batch: Box<Batch>, reserved: bool) -> Result<(), Box<Batch>>;
}

/// What the shell does after a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turned {
    /// There is work left: do not sleep, only look at completions.
    pub busy: bool,
    /// Sleep no longer than until this monotonic time in microseconds (`u64::MAX`: no deadline).
    pub deadline_us: u64,
}

/// What a shard tells control about a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkStatus {
    /// Name of the remote.
    pub name: String,
    /// One word: `connected`, `connecting`, `disconnected`, `disabled`.
    pub status: &'static str,
    /// Filters that the remote announced.
    pub routes: u64,
    /// Filters that this node announces to the remote; only on the link's owner shard.
    pub announced: u64,
    /// Messages waiting in this shard's outlet.
    pub queued: u64,
    /// Their bytes.
    pub queued_bytes: u64,
}
