//! The shell driven by brains much simpler than the broker, over real sockets on loopback.

mod bench;
mod scribe;
mod sockets;
mod stress;
