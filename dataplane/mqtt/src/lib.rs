//! The MQTT protocol: codec, topics and filters, and the state machines of connections and sessions.
//! Pure: no I/O, no clock, no randomness; time and seeds are arguments. Used by every other crate.
//! Always true: no input makes this crate panic, and nothing in it grows beyond a limit that its caller names.
#![no_std]

extern crate alloc;

pub mod codec;
pub mod connection;
mod scan;
pub mod session;
pub mod topic;
pub mod types;
pub mod window;
