//! The null relay: the floor that no broker on this kernel can be far below. It speaks just enough MQTT for `load`
//! (exact topics, QoS 0 to 2, one protocol version per process) and has no broker feature: no sessions, no wildcards, no
//! retained messages, no retries. One thread, one io_uring.

mod buffers;
mod fanout;
mod output;
mod ring;

use std::convert::Infallible;
use std::net::SocketAddr;

/// Listens on `bind`, prints `ready <address>` and serves until the process is killed.
pub fn serve(bind: SocketAddr) -> Result<Infallible, String> {
    crate::process::raise_descriptor_limit();
    ring::Ring::listen(bind)?.serve()
}
