//! Fixed ports that are free now. Called by tests in which two nodes must know each other's port before
//! either runs, or in which a node must come back where it was.
//!
//! Always true: no port is handed out twice by one test process.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which Linux takes ports of outgoing connections (32768 and up), so that no client
/// of another test can take a port between its probe and its use.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A loopback address whose port is free.
pub fn free() -> SocketAddr {
    // Test processes run side by side: each starts at a place of its own.
    let start = u16::try_from(u64::from(std::process::id()) * 97 % u64::from(COUNT)).unwrap_or(0);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_add(step)) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free port on loopback in {FIRST}..{}", FIRST + COUNT);
}
