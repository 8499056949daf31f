//! What both processes of a node believe: ids, the stable hash, configuration, View, Report and their framing.
//! Pure: no I/O, no clock, no randomness; the text of the file and the environment are arguments.
//! Always true: whatever is read here, from a file, a variable or a socket, is bounded before it is kept.
#![no_std]

extern crate alloc;

pub mod bans;
pub mod config;
pub mod ctl;
pub mod hash;
pub mod ids;
pub mod network;
pub mod repeats;
pub mod report;
pub mod time;
pub mod trace;
pub mod view;
pub mod wire;
