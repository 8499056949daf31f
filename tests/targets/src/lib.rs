//! One function per parser of bytes from outside: it feeds the parser and asserts what must hold whatever the bytes are.
//! Called by the fuzzer (`tests/fuzz`, nightly) and by the ordinary test `fuzz` (`tests/fuzz/main.rs`, stable), which
//! gives it the same corpus and a fixed number of seeded mutations.
//! Always true: a target returns for every input, or has found a mistake; it depends on nothing but its input.

mod acl;
mod config;
mod connection;
mod filters;
mod links;
mod packet;
mod password;
mod pieces;
mod proxy;
mod records;
mod websocket;

pub use self::{
    acl::acl, config::config, connection::connection, filters::filters, links::links, packet::packet,
    password::password, proxy::proxy, records::records, websocket::websocket,
};

/// A function that takes any bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus under `tests/fuzz/corpus`.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
    /// Longer inputs show nothing new.
    pub bytes_max: usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "packet", run: packet, bytes_max: 4096 },
    Target { name: "connection", run: connection, bytes_max: 2048 },
    Target { name: "filters", run: filters, bytes_max: 1024 },
    Target { name: "websocket", run: websocket, bytes_max: 4096 },
    Target { name: "proxy", run: proxy, bytes_max: 10_000 },
    Target { name: "password", run: password, bytes_max: 2048 },
    Target { name: "acl", run: acl, bytes_max: 1024 },
    Target { name: "config", run: config, bytes_max: 2048 },
    Target { name: "links", run: links, bytes_max: 4096 },
    Target { name: "records", run: records, bytes_max: 4096 },
];
