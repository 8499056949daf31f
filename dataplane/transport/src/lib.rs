//! What may lie between the wire and MQTT, as far as it is ours: the PROXY header and WebSocket. Sans-IO: bytes in,
//! bytes out, every cut possible; the shell (`dataplane/src/stage.rs`) stacks them, with TLS between them.
//! Always true: what a peer can make us keep is bounded by a named limit, and nothing it sends can panic.
#![no_std]
#![warn(missing_docs)]

extern crate alloc;

pub mod proxy;
pub mod websocket;
