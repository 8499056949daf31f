//! Listening sockets: opened on the main thread before any shard runs, one per shard and address, so that the
//! kernel spreads connections over the shards (SO_REUSEPORT). Each shard then owns its own.
//!
//! Always true: the first socket of an address was bound without SO_REUSEPORT, so an address that somebody
//! else listens on is refused instead of silently shared.

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::ring::{Op, Ring, Token};

/// After an accept that failed for want of descriptors or memory.
pub(crate) const ACCEPT_BACKOFF_US: u64 = 100_000;
/// How long a taken address is tried again: the rings of a killed process are torn down in the background.
const BIND_RETRY: Duration = Duration::from_secs(2);
const BIND_RETRY_STEP: Duration = Duration::from_millis(20);
/// Connections that wait for an accept; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// A listener as the configuration names it.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Index in the configuration's order.
    pub(crate) index: u16,
    pub(crate) name: String,
    pub(crate) bind: SocketAddr,
    pub(crate) max_connections: usize,
}

/// An address that cannot be listened on.
#[derive(Debug)]
pub(crate) struct BindError {
    name: String,
    bind: SocketAddr,
    error: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BindError { name, bind, error } = self;
        match error.kind() {
            io::ErrorKind::AddrInUse => write!(f, "listener {name}: {bind} is taken by another process"),
            io::ErrorKind::PermissionDenied => {
                write!(f, "listener {name}: {bind} needs a privilege (ports below 1024: CAP_NET_BIND_SERVICE)")
            }
            _ => write!(f, "listener {name}: {bind} cannot be listened on: {error}"),
        }
    }
}

/// Places at a listener, shared by its sockets on all shards.
pub(crate) struct Seats {
    taken: AtomicUsize,
    max: usize,
}

impl Seats {
    /// Connections now.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed).min(self.max)
    }
}

/// A listener that is open on all shards.
#[derive(Clone)]
pub(crate) struct Opened {
    pub(crate) name: String,
    /// The real address.
    pub(crate) address: SocketAddr,
    pub(crate) max_connections: usize,
    pub(crate) seats: Arc<Seats>,
}

/// One connection's place at its listener; travels with the connection and is given back when dropped.
pub(crate) struct Seat(Arc<Seats>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One shard's socket of one listener.
pub(crate) struct Listener {
    /// Index in the configuration's order.
    pub(crate) index: u16,
    pub(crate) name: String,
    /// `None` after [`Listener::close`].
    socket: Option<OwnedFd>,
    /// An accept is in flight.
    pub(crate) armed: bool,
    seats: Arc<Seats>,
}

impl Listener {
    /// A place for one more connection, unless the listener is full.
    pub(crate) fn seat(&self) -> Option<Seat> {
        let seat = Seat(self.seats.clone());
        // Counted first and given back by the drop, so that two shards cannot both take the last place.
        let taken = self.seats.taken.fetch_add(1, Ordering::Relaxed);
        (taken < self.seats.max).then_some(seat)
    }

    /// Arms an accept unless one is armed or the listener is closed.
    pub(crate) fn arm(&mut self, ring: &mut Ring) {
        if let Some(socket) = self.socket.as_ref().filter(|_| !self.armed) {
            ring.accept(socket.as_raw_fd(), u32::from(self.index));
            self.armed = true;
        }
    }

    /// Stops accepting for good.
    pub(crate) fn close(&mut self, ring: &mut Ring) {
        if let Some(socket) = self.socket.take() {
            ring.cancel(Token { op: Op::Accept, index: u32::from(self.index), generation: 0 });
            ring.close(socket);
        }
    }
}

/// Opens every wanted listener once per shard. Returns the listeners of each shard, and what was opened.
pub(crate) fn open(wanted: &[Wanted], shards: u16) -> Result<(Vec<Vec<Listener>>, Vec<Opened>), BindError> {
    let mut of_shards: Vec<Vec<Listener>> = (0..shards).map(|_| Vec::new()).collect();
    let mut opened = Vec::new();
    for wanted in wanted {
        let failed = |error| BindError { name: wanted.name.clone(), bind: wanted.bind, error };
        let (sockets, address) = sockets(wanted.bind, shards).map_err(failed)?;
        let seats = Arc::new(Seats { taken: AtomicUsize::new(0), max: wanted.max_connections });
        for (listeners, socket) in of_shards.iter_mut().zip(sockets) {
            listeners.push(Listener {
                index: wanted.index,
                name: wanted.name.clone(),
                socket: Some(socket.into()),
                armed: false,
                seats: seats.clone(),
            });
        }
        let Wanted { name, max_connections, .. } = wanted.clone();
        opened.push(Opened { name, address, max_connections, seats });
    }
    Ok((of_shards, opened))
}

fn sockets(bind: SocketAddr, shards: u16) -> io::Result<(Vec<Socket>, SocketAddr)> {
    let first = bind_alone(bind)?;
    // From here on our own further sockets may join, and those of nobody else: whoever comes without the flag
    // is refused by the kernel, and whoever comes with it has probed like we did.
    first.set_reuse_port(true)?;
    let address = first.local_addr()?.as_socket().unwrap_or(bind);
    let mut sockets = vec![first];
    for _ in 1..shards {
        let socket = unbound(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        sockets.push(socket);
    }
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    Ok((sockets, address))
}

/// Binds without SO_REUSEPORT, so that it fails if anybody listens there already.
fn bind_alone(bind: SocketAddr) -> io::Result<Socket> {
    let end = Instant::now() + BIND_RETRY;
    loop {
        let socket = unbound(bind)?;
        match socket.bind(&bind.into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                std::thread::sleep(BIND_RETRY_STEP);
            }
            bound => return bound.map(|()| socket),
        }
    }
}

fn unbound(bind: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(bind), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier run that wait in TIME_WAIT do not keep the port.
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn wanted(bind: SocketAddr, max_connections: usize) -> Wanted {
        Wanted { index: 0, name: "default".to_owned(), bind, max_connections }
    }

    fn loopback(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn all_shards_share_the_port_that_the_first_one_was_given() {
        let (of_shards, opened) = open(&[wanted(loopback(0), 1)], 3).expect("a free port");
        assert_eq!(of_shards.len(), 3);
        assert_ne!(opened[0].address.port(), 0);
        let mut sockets = of_shards.iter().filter_map(|listeners| listeners[0].socket.as_ref());
        assert!(sockets.all(|socket| {
            let socket = socket2::SockRef::from(socket);
            socket.local_addr().ok().and_then(|address| address.as_socket()) == Some(opened[0].address)
        }));
    }

    #[test]
    fn an_address_that_is_taken_is_named() {
        let other = TcpListener::bind(loopback(0)).expect("a free port");
        let bind = other.local_addr().expect("an address");
        let error = open(&[wanted(bind, 1)], 2).err().expect("the address is taken");
        assert_eq!(error.to_string(), format!("listener default: {bind} is taken by another process"));
    }

    #[test]
    fn a_second_node_cannot_share_our_port_although_both_reuse_it() {
        let (_ours, opened) = open(&[wanted(loopback(0), 1)], 2).expect("a free port");
        assert!(open(&[wanted(opened[0].address, 1)], 2).is_err());
    }

    #[test]
    fn accepted_sockets_inherit_nodelay() {
        let (of_shards, opened) = open(&[wanted(loopback(0), 1)], 1).expect("a free port");
        let _client = TcpStream::connect(opened[0].address).expect("a connection");
        let socket = of_shards[0][0].socket.as_ref().expect("it is open");
        let (accepted, _) = socket2::SockRef::from(socket).accept().expect("an accepted socket");
        assert!(accepted.tcp_nodelay().expect("an option"));
    }

    #[test]
    fn a_full_listener_has_no_seat_until_one_is_given_back() {
        let (of_shards, _) = open(&[wanted(loopback(0), 2)], 2).expect("a free port");
        let first = of_shards[0][0].seat();
        let second = of_shards[1][0].seat();
        assert!(first.is_some() && second.is_some());
        assert!(of_shards[0][0].seat().is_none());
        drop(first);
        assert!(of_shards[1][0].seat().is_some());
    }
}
