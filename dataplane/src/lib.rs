//! The data plane's shell: glommio executors, io_uring rings, sockets, threads, files. The only crate that names
//! them; everything that decides lives in the pure crates beside it. The executable calls [`run`] and returns
//! what it returns.
//!
//! One way through it, forward only: [`run`] starts [`executor`]s, each with one [`shard`]; a turn of a shard takes
//! completions from its [`ring`] ([`inbound`]), runs the broker ([`brain`]), and settles [`connections`]
//! with the ring again ([`outbound`]); what lies between ring and broker is a connection's [`stage`]; shards meet in [`mailbox`]es and wake each other by [`sleep`].
//! What has to outlive the process goes through a [`log_port`] to a [`log_thread`], and comes back by [`recovery`].

#![warn(missing_docs)]

mod addresses;
mod announce;
pub mod auth;
mod brain;
mod buffers;
mod certificates;
mod connections;
mod control;
mod data_dir;
mod dial;
mod events;
mod executor;
mod files;
mod inbound;
mod lane;
mod listener;
mod listeners;
mod log_dir;
mod log_files;
mod log_port;
mod log_thread;
pub mod log_tools;
mod logs;
mod mailbox;
mod memory;
mod outbound;
mod pace;
mod port;
mod probe;
mod record_json;
mod recovery;
mod ring;
mod run;
mod shard;
#[cfg(all(test, not(loom)))]
mod shard_tests;
mod sleep;
mod stage;
mod sync;
mod system;
mod tls;
mod trace;

pub use listeners::check_files;
pub use run::{Reload, run};
