//! One link between two clusters, without sockets: EMQX's cluster-link protocol, version 1, and its state machines.
//!
//! Pure: no I/O, no clock, no randomness; time (microseconds of a monotonic clock, unless it says `wall_ms`) and seeds
//! are arguments. A link is two independent halves. We *want*: [`requester`] tells the remote our interest, [`inlet`]
//! lets in what it pushes. We *serve*: [`session`] and [`forwarder`] learn the remote's interest, [`outlet`] pushes.
//! Requester, sessions and forwarder live on the shard that owns the link's name; inlets and outlets on every shard.
//! Always true: nothing that a remote sends makes this crate panic or grow beyond a limit that has a name.
#![no_std]

extern crate alloc;

mod client;
pub mod error;
pub mod etf;
pub mod forwarder;
pub mod inlet;
mod interests;
pub mod intersect;
pub mod names;
pub mod outlet;
pub mod properties;
pub mod requester;
pub mod session;
mod waiting;
pub mod wire;

pub use client::{Login, RemoteLimits};
