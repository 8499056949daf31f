//! Listening sockets: opened on the main thread, one per shard and address, so that the kernel spreads connections over the
//! shards (SO_REUSEPORT). Each shard then owns its own. Which there are is decided in [`crate::listeners`].
//!
//! Always true: the first socket of an address was bound without SO_REUSEPORT, so an address that somebody
//! else listens on is refused instead of silently shared. A Unix socket is one socket, which all shards accept from;
//! its file is replaced only if nobody answers there.

use std::{
    collections::VecDeque,
    fmt, fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use contract::config::{self, ListenerKind};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::{
    addresses::Place,
    pace::Pace,
    ring::{Op, Ring, Token},
    stage::{Recipe, canonical},
};

/// After an accept that failed for want of descriptors or memory.
pub(crate) const ACCEPT_BACKOFF_US: u64 = 100_000;
/// How long a taken address is tried again: the rings of a killed process are torn down in the background.
const BIND_RETRY: Duration = Duration::from_secs(2);
const BIND_RETRY_STEP: Duration = Duration::from_millis(20);
/// Connections of one listener that one shard has accepted and that wait for their moment.
const HELD_MAX: usize = 4096;
/// Connections that wait for an accept; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Who connects through a Unix socket has no address, and is as near as loopback.
const UNIX_PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Where to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Bind {
    /// An address with a port.
    Inet(SocketAddr),
    /// The path of a socket, and its permissions.
    Unix(PathBuf, u32),
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bind::Inet(address) => address.fmt(f),
            Bind::Unix(path, _) => path.display().fmt(f),
        }
    }
}

/// A listener as the configuration names it.
#[derive(Clone)]
pub(crate) struct Wanted {
    /// By which connections name it; never that of another listener of this process.
    pub(crate) number: u16,
    pub(crate) kind: ListenerKind,
    pub(crate) name: String,
    pub(crate) bind: Bind,
    /// The address is that of a listener of ours that is about to be closed.
    pub(crate) ours: bool,
    pub(crate) seats: Arc<Seats>,
    /// What its connections begin with.
    pub(crate) recipe: Recipe,
}

/// An address that cannot be listened on.
#[derive(Debug)]
pub(crate) struct BindError {
    name: String,
    bind: Bind,
    error: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BindError { name, bind, error } = self;
        match error.kind() {
            io::ErrorKind::AddrInUse => write!(f, "listener {name}: {bind} is taken by another process"),
            io::ErrorKind::PermissionDenied if matches!(bind, Bind::Inet(_)) => {
                write!(f, "listener {name}: {bind} needs a privilege (ports below 1024: CAP_NET_BIND_SERVICE)")
            }
            _ => write!(f, "listener {name}: {bind} cannot be listened on: {error}"),
        }
    }
}

/// Places at a listener and the pace at which they are given, shared by its sockets on all shards.
pub(crate) struct Seats {
    taken: AtomicUsize,
    max: AtomicUsize,
    pub(crate) pace: Pace,
}

impl Seats {
    /// As many as the configuration says.
    pub(crate) fn new(listener: &config::Listener) -> Arc<Seats> {
        let seats = Seats { taken: AtomicUsize::new(0), max: AtomicUsize::new(0), pace: Pace::default() };
        seats.set(listener);
        Arc::new(seats)
    }

    /// Follows the configuration. Nobody who has a place loses it.
    pub(crate) fn set(&self, listener: &config::Listener) {
        self.max.store(listener.max_connections as usize, Ordering::Relaxed);
        self.pace.set(listener);
    }

    /// Connections now.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Most connections.
    pub(crate) fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }
}

/// A listener that is open on all shards.
#[derive(Clone)]
pub(crate) struct Opened {
    pub(crate) number: u16,
    pub(crate) kind: ListenerKind,
    pub(crate) name: String,
    /// Where the configuration wants it.
    pub(crate) bind: Bind,
    /// The real address.
    pub(crate) address: Bind,
    /// Removed with the last of these.
    _file: Option<Arc<SocketFile>>,
    pub(crate) seats: Arc<Seats>,
}

/// The file of a Unix socket that this process has made.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone; and the next start replaces one that is left.
        let _ = fs::remove_file(&self.0);
    }
}

/// One connection's place at its listener, and among those of its address; travels with the connection and is given
/// back when dropped.
pub(crate) struct Seat {
    seats: Arc<Seats>,
    pub(crate) place: Option<Box<Place>>,
}

impl Seat {
    /// The client's CONNECT was accepted.
    pub(crate) fn prove(&mut self) {
        if let Some(place) = &mut self.place {
            place.prove();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that was accepted and waits until its listener may let it in; nothing of it is read.
pub(crate) struct Held {
    pub(crate) at_us: u64,
    pub(crate) socket: OwnedFd,
    pub(crate) peer: SocketAddr,
    pub(crate) place: Option<Box<Place>>,
}

/// One shard's socket of one listener.
pub(crate) struct Listener {
    /// By which connections and completions name it.
    pub(crate) number: u16,
    pub(crate) name: Arc<str>,
    /// What its connections begin with.
    pub(crate) recipe: Recipe,
    unix: bool,
    /// `None` after [`Listener::close`].
    socket: Option<OwnedFd>,
    /// An accept is in flight.
    pub(crate) armed: bool,
    /// In the order in which they may come in.
    held: VecDeque<Held>,
    pub(crate) seats: Arc<Seats>,
}

impl Listener {
    /// A place for one more connection, unless the listener is full.
    pub(crate) fn seat(&self) -> Option<Seat> {
        let seat = Seat { seats: self.seats.clone(), place: None };
        // Counted first and given back by the drop, so that two shards cannot both take the last place.
        let taken = self.seats.taken.fetch_add(1, Ordering::Relaxed);
        (taken < self.seats.max()).then_some(seat)
    }

    /// Keeps a connection until its moment; gives it back if too many wait.
    pub(crate) fn hold(&mut self, held: Held) -> Result<(), Held> {
        if self.held.len() >= HELD_MAX {
            return Err(held);
        }
        self.held.push_back(held);
        Ok(())
    }

    /// The next connection whose moment has come.
    pub(crate) fn release(&mut self, now_us: u64) -> Option<Held> {
        self.held.pop_front_if(|held| held.at_us <= now_us)
    }

    /// Who is at the other end of an accepted socket; `None` if nobody is any more.
    pub(crate) fn peer_of(&self, socket: &OwnedFd) -> Option<SocketAddr> {
        let peer = SockRef::from(socket).peer_addr().ok()?;
        if self.unix { Some(UNIX_PEER) } else { peer.as_socket().map(canonical) }
    }

    /// Arms an accept unless one is armed or the listener is closed.
    pub(crate) fn arm(&mut self, ring: &mut Ring) {
        if let Some(socket) = self.socket.as_ref().filter(|_| !self.armed) {
            ring.accept(socket.as_raw_fd(), u32::from(self.number));
            self.armed = true;
        }
    }

    /// Stops accepting for good, and lets go of whoever waits.
    pub(crate) fn close(&mut self, ring: &mut Ring) {
        self.held.clear();
        if let Some(socket) = self.socket.take() {
            ring.cancel(Token { op: Op::Accept, index: u32::from(self.number), generation: 0 });
            ring.close(socket);
        }
    }
}

/// Opens every wanted listener once per shard. Returns the listeners of each shard, and what was opened.
pub(crate) fn open(wanted: &[Wanted], shards: u16) -> Result<(Vec<Vec<Listener>>, Vec<Opened>), BindError> {
    let mut of_shards: Vec<Vec<Listener>> = (0..shards).map(|_| Vec::new()).collect();
    let mut opened = Vec::new();
    for wanted in wanted {
        let failed = |error| BindError { name: wanted.name.clone(), bind: wanted.bind.clone(), error };
        let (sockets, address, file) = match &wanted.bind {
            Bind::Inet(bind) => {
                let (sockets, address) = sockets(*bind, shards, wanted.ours).map_err(failed)?;
                (sockets, Bind::Inet(address), None)
            }
            Bind::Unix(path, mode) => {
                let (sockets, file) = unix_sockets(path, *mode, shards).map_err(failed)?;
                (sockets, wanted.bind.clone(), Some(Arc::new(file)))
            }
        };
        let name: Arc<str> = format!("{}:{}", wanted.kind.as_str(), wanted.name).into();
        for (listeners, socket) in of_shards.iter_mut().zip(sockets) {
            listeners.push(Listener {
                number: wanted.number,
                name: name.clone(),
                recipe: wanted.recipe.clone(),
                unix: matches!(wanted.bind, Bind::Unix(..)),
                socket: Some(socket.into()),
                armed: false,
                held: VecDeque::new(),
                seats: wanted.seats.clone(),
            });
        }
        let Wanted { number, kind, name, bind, seats, .. } = wanted.clone();
        opened.push(Opened { number, kind, name, bind, address, _file: file, seats });
    }
    Ok((of_shards, opened))
}

/// One socket at `path`, as often as there are shards.
fn unix_sockets(path: &Path, mode: u32, shards: u16) -> io::Result<(Vec<Socket>, SocketFile)> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let end = Instant::now() + BIND_RETRY;
    while let Err(error) = socket.bind(&address) {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(error);
        }
        if is_left_over(path)? {
            fs::remove_file(path)?;
        } else if Instant::now() < end {
            std::thread::sleep(BIND_RETRY_STEP);
        } else {
            return Err(error);
        }
    }
    let file = SocketFile(path.to_owned());
    // Before it listens, so that nobody gets in who may not.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    let mut sockets = (1..shards).map(|_| socket.try_clone()).collect::<io::Result<Vec<_>>>()?;
    sockets.push(socket);
    Ok((sockets, file))
}

/// Is there a socket at `path` that nobody listens on? Whatever else is there is not ours to remove.
fn is_left_over(path: &Path) -> io::Result<bool> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::other("there is a file that is no socket"));
    }
    Ok(UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}

fn sockets(bind: SocketAddr, shards: u16, ours: bool) -> io::Result<(Vec<Socket>, SocketAddr)> {
    let first = if ours { bind_beside(bind)? } else { bind_alone(bind)? };
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

/// Binds beside sockets of our own that are about to be closed: the address is ours already.
fn bind_beside(bind: SocketAddr) -> io::Result<Socket> {
    let socket = unbound(bind)?;
    socket.set_reuse_port(true)?;
    socket.bind(&bind.into())?;
    Ok(socket)
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

    fn seats(max_connections: u32) -> Arc<Seats> {
        Seats::new(&config::Listener { max_connections, ..config::Config::default().listeners.remove(0) })
    }

    fn wanted(bind: SocketAddr, max_connections: u32) -> Wanted {
        let (kind, bind, recipe) = (ListenerKind::Tcp, Bind::Inet(bind), Recipe::default());
        let (name, seats) = ("default".to_owned(), seats(max_connections));
        Wanted { number: 0, kind, name, bind, ours: false, seats, recipe }
    }

    fn inet(opened: &Opened) -> SocketAddr {
        match &opened.address {
            Bind::Inet(address) => *address,
            Bind::Unix(..) => panic!("an address with a port"),
        }
    }

    fn unix(path: &Path) -> Wanted {
        let (kind, bind, recipe) = (ListenerKind::Unix, Bind::Unix(path.to_owned(), 0o640), Recipe::default());
        Wanted { number: 0, kind, name: "local".to_owned(), bind, ours: false, seats: seats(1), recipe }
    }

    fn loopback(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn all_shards_share_the_port_that_the_first_one_was_given() {
        let (of_shards, opened) = open(&[wanted(loopback(0), 1)], 3).expect("a free port");
        assert_eq!(of_shards.len(), 3);
        assert_ne!(inet(&opened[0]).port(), 0);
        let mut sockets = of_shards.iter().filter_map(|listeners| listeners[0].socket.as_ref());
        assert!(sockets.all(|socket| {
            let socket = socket2::SockRef::from(socket);
            socket.local_addr().ok().and_then(|address| address.as_socket()) == Some(inet(&opened[0]))
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
        assert!(open(&[wanted(inet(&opened[0]), 1)], 2).is_err());
    }

    #[test]
    fn accepted_sockets_inherit_nodelay() {
        let (of_shards, opened) = open(&[wanted(loopback(0), 1)], 1).expect("a free port");
        let _client = TcpStream::connect(inet(&opened[0])).expect("a connection");
        let socket = of_shards[0][0].socket.as_ref().expect("it is open");
        let (accepted, _) = socket2::SockRef::from(socket).accept().expect("an accepted socket");
        assert!(accepted.tcp_nodelay().expect("an option"));
    }

    #[test]
    fn a_unix_socket_has_its_permissions_and_goes_with_its_listener() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("mqtt.sock");
        let (of_shards, opened) = open(&[unix(&path)], 3).expect("a free path");
        assert_eq!(fs::metadata(&path).expect("the socket").permissions().mode() & 0o777, 0o640);
        let _client = UnixStream::connect(&path).expect("a connection");
        let socket = of_shards[2][0].socket.as_ref().expect("it is open");
        let (accepted, _) = SockRef::from(socket).accept().expect("any shard's descriptor accepts");
        assert_eq!(of_shards[2][0].peer_of(&accepted.into()), Some(UNIX_PEER));
        drop(opened);
        assert!(!path.exists());
    }

    #[test]
    fn a_unix_socket_of_a_dead_process_is_replaced_and_a_living_one_and_a_file_are_not() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("mqtt.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a free path"));
        let ours = open(&[unix(&path)], 1).expect("what is left over is replaced");
        let error = open(&[unix(&path)], 1).err().expect("it is in use").to_string();
        assert!(error.ends_with("is taken by another process"), "{error}");
        drop(ours);
        fs::write(&path, "mine").expect("a file");
        let error = open(&[unix(&path)], 1).err().expect("a file is in the way").to_string();
        assert!(error.ends_with("there is a file that is no socket"), "{error}");
        assert_eq!(fs::read(&path).expect("it is still there"), b"mine");
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
