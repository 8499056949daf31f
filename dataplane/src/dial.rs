//! Connections that this shard opens: names are resolved on an ordinary thread, the connect runs through the ring,
//! one address after the other. Every dial ends in `Input::Dialed` or `Input::DialFailed` within
//! [`RESOLVE_US`] plus [`CONNECT_US`] per address.

use std::{
    collections::VecDeque,
    io,
    net::{SocketAddr, ToSocketAddrs},
    os::fd::AsRawFd,
    sync::{Arc, mpsc},
    thread,
};

use broker::surface::{ConnId, DialId};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{
    connections::{Connection, Connections, Due, Pending, Phase, token},
    port::{Note, Port},
    ring::{Completion, Op, Ring},
    stage::Stage,
};

/// How long a name may take to become addresses.
const RESOLVE_US: u64 = 10_000_000;
/// How long one address may take to answer.
const CONNECT_US: u64 = 5_000_000;
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;
/// Names that may wait for the resolver.
const LOOKUPS_MAX: usize = 64;

/// An attempt in progress.
pub(crate) struct Dialing {
    dial: DialId,
    address: SocketAddr,
    /// What the kernel reads during the connect; stays in place in this box.
    name: SockAddr,
    /// Addresses to try if this one fails.
    rest: VecDeque<SocketAddr>,
    /// A connect is in flight.
    pub(crate) connecting: bool,
    /// It took too long.
    pub(crate) overdue: bool,
}

/// A name to resolve, and who asked.
struct Lookup {
    dial: DialId,
    server: String,
    port: Arc<Port>,
}

/// The way to the resolver thread, which ends when the last of these is dropped.
#[derive(Clone)]
pub(crate) struct Resolver(mpsc::SyncSender<Lookup>);

impl Resolver {
    /// Starts the thread.
    pub(crate) fn start() -> io::Result<Resolver> {
        let (lookups, asked) = mpsc::sync_channel::<Lookup>(LOOKUPS_MAX);
        thread::Builder::new().name("resolver".to_owned()).spawn(move || {
            for Lookup { dial, server, port } in asked {
                let addresses = server.to_socket_addrs().map(|found| found.take(ADDRESSES_MAX).collect());
                let addresses = addresses.map_err(|error| format!("{server} cannot be resolved: {error}"));
                // A full queue of notes lets the dial time out.
                let _ = port.post(Note::Resolved { dial, addresses });
            }
        })?;
        Ok(Resolver(lookups))
    }
}

/// What a shard needs to dial, and the dials whose names are being resolved.
pub(crate) struct Dials {
    resolver: Resolver,
    port: Arc<Port>,
    resolving: Vec<DialId>,
}

impl Dials {
    pub(crate) fn new(resolver: Resolver, port: Arc<Port>) -> Dials {
        Dials { resolver, port, resolving: Vec::new() }
    }
}

impl Connections {
    /// Asks for the addresses of `server`.
    pub(crate) fn resolve(&mut self, dial: DialId, server: &str) {
        let lookup = Lookup { dial, server: server.to_owned(), port: self.dials.port.clone() };
        if self.dials.resolver.0.try_send(lookup).is_err() {
            self.dial_failed(dial, format!("{server} cannot be resolved now: {LOOKUPS_MAX} names wait already"));
            return;
        }
        self.dials.resolving.push(dial);
        self.due(self.now_us() + RESOLVE_US, Due::Resolve(dial.0));
    }

    /// The resolver's answer.
    pub(crate) fn resolved(&mut self, dial: DialId, addresses: Result<Vec<SocketAddr>, String>) {
        if !self.no_longer_resolving(dial) {
            return;
        }
        match addresses {
            Ok(addresses) => self.connect_to(dial, addresses),
            Err(reason) => self.dial_failed(dial, reason),
        }
    }

    /// The resolver did not answer in time.
    pub(crate) fn resolve_overdue(&mut self, dial: DialId) {
        if self.no_longer_resolving(dial) {
            self.dial_failed(dial, format!("no address after {} s", RESOLVE_US / 1_000_000));
        }
    }

    fn no_longer_resolving(&mut self, dial: DialId) -> bool {
        let found = self.dials.resolving.iter().position(|waiting| *waiting == dial);
        found.map(|place| self.dials.resolving.swap_remove(place)).is_some()
    }

    /// Tries `addresses` in order.
    pub(crate) fn connect_to(&mut self, dial: DialId, addresses: Vec<SocketAddr>) {
        self.try_next(dial, addresses.into(), "the name has no address".to_owned());
    }

    fn try_next(&mut self, dial: DialId, mut rest: VecDeque<SocketAddr>, mut reason: String) {
        while let Some(address) = rest.pop_front() {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))
                .and_then(|socket| socket.set_tcp_nodelay(true).map(|()| socket));
            match socket {
                Ok(socket) => {
                    let name = SockAddr::from(address);
                    let dialing = Dialing { dial, address, name, rest, connecting: false, overdue: false };
                    let phase = Phase::Dialing(Box::new(dialing));
                    if self.insert(Connection::new(socket.into(), phase, Stage::Plain, None)).is_none() {
                        self.dial_failed(dial, "this shard's table of connections is full".to_owned());
                    }
                    return;
                }
                Err(error) => reason = format!("{address}: {error}"),
            }
        }
        self.dial_failed(dial, reason);
    }

    fn dial_failed(&mut self, dial: DialId, reason: String) {
        self.pending.push_back(Pending::DialFailed { dial, reason });
    }

    /// Starts the connect of a new entry.
    pub(crate) fn connect(&mut self, conn: ConnId, ring: &mut Ring) {
        let Some(connection) = self.tenant(conn) else { return };
        let descriptor = connection.socket.as_raw_fd();
        let Phase::Dialing(dialing) = &mut connection.phase else { return };
        if dialing.connecting {
            return;
        }
        dialing.connecting = true;
        // SAFETY: `name` lies in a box that the entry keeps while `connecting` is set: `connected` alone ends
        // that, and `Connections::remove` asserts it.
        unsafe { ring.connect(descriptor, token(Op::Connect, conn), &dialing.name) };
        self.due_connection(conn, CONNECT_US);
    }

    /// A connect completed.
    pub(crate) fn connected(&mut self, completion: Completion) {
        let conn = ConnId { index: completion.token.index, generation: completion.token.generation };
        let Some(connection) = self.tenant(conn) else { return };
        let Phase::Dialing(dialing) = &mut connection.phase else { return };
        dialing.connecting = false;
        let (dial, address, overdue) = (dialing.dial, dialing.address, dialing.overdue);
        if completion.result == 0 {
            connection.phase = Phase::Open;
            connection.multishot = true;
            connection.due_us = u64::MAX;
            self.pending.push_back(Pending::Dialed { dial, conn });
            self.unsettle(conn);
            return;
        }
        let rest = std::mem::take(&mut dialing.rest);
        let reason = if overdue {
            format!("{address}: no answer in {} s", CONNECT_US / 1_000_000)
        } else {
            format!("{address}: {}", io::Error::from_raw_os_error(-completion.result))
        };
        // Nothing of it is in flight any more, so dropping it closes it.
        drop(self.remove(conn));
        self.try_next(dial, rest, reason);
    }
}
