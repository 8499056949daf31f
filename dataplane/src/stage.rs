//! The layers that a connection's bytes pass between the kernel and the broker: PROXY header, TLS, WebSocket, in this
//! order, or none. Sans-IO: bytes in, bytes out, no descriptor, so that a stage moves with its connection to another
//! shard by value, in the middle of whatever it is doing. Called by [`crate::inbound`] and [`crate::outbound`].
//!
//! Always true: a connection without layers pays one branch; what layers hold of a connection is bounded by them.

use std::{fmt, mem, net::SocketAddr, sync::Arc};

use broker::{counters::Counter, surface::Certificate};
use rustls::ServerConfig;
use transport::{
    proxy::{self, Proxied},
    websocket::{self, Failed, Flow, WebSocket},
};

use crate::{addresses::Crowded, tls::Tls};

/// The state of one connection's layers.
pub(crate) enum Stage {
    /// What arrives is what the broker reads.
    Plain,
    /// There are layers.
    Layered(Box<Layers>),
}

/// What the connections of a listener begin with.
#[derive(Clone, Default)]
pub(crate) struct Recipe {
    /// How long a PROXY header may take, in microseconds; none: none comes.
    pub(crate) proxy_us: Option<u64>,
    /// TLS, and how long its handshake may take, in microseconds.
    pub(crate) tls: Option<(Arc<ServerConfig>, u64)>,
    /// WebSocket.
    pub(crate) websocket: Option<Arc<websocket::Settings>>,
}

/// Why a connection cannot go on. What its client is told about it waits in the stage.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The PROXY header.
    Proxy(proxy::Malformed),
    /// TLS before its handshake was complete.
    TlsHandshake(rustls::Error),
    /// TLS after it.
    Tls(rustls::Error),
    /// WebSocket.
    WebSocket(Failed),
    /// The PROXY header or the handshake of TLS took too long.
    Overdue,
    /// Too much comes from its address.
    Crowded(Crowded),
}

impl Broken {
    /// Where it is counted.
    pub(crate) fn counter(&self) -> Counter {
        match self {
            Broken::Proxy(_) => Counter::proxy_refused,
            Broken::TlsHandshake(_) => Counter::tls_refused,
            Broken::Tls(_) => Counter::tls_broken,
            Broken::WebSocket(Failed::Refused(..)) => Counter::websocket_refused,
            Broken::WebSocket(Failed::Violated(..)) => Counter::websocket_violated,
            Broken::Overdue => Counter::handshake_timeout,
            Broken::Crowded(crowded) => crowded.counter(),
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Proxy(malformed) => malformed.fmt(f),
            Broken::TlsHandshake(error) => write!(f, "TLS handshake failed: {error}"),
            Broken::Tls(error) => write!(f, "TLS failed: {error}"),
            Broken::WebSocket(failed) => failed.fmt(f),
            Broken::Overdue => f.write_str("it did not say in time who it is"),
            Broken::Crowded(crowded) => crowded.fmt(f),
        }
    }
}

/// A connection that the broker has not heard of, because it is not known who is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unknown {
    /// Number of the listener.
    pub(crate) listener: u16,
    /// When it was accepted.
    pub(crate) since_us: u64,
}

/// The layers of one connection, the outermost first.
pub(crate) struct Layers {
    /// Until the broker is told.
    pub(crate) unknown: Option<Unknown>,
    /// A header that has not come yet.
    proxy: Option<proxy::Header>,
    tls: Option<Box<Tls>>,
    websocket: Option<Box<WebSocket>>,
    /// Nothing more is opened, and what is above can say no more.
    over: bool,
    /// Who connected; once a PROXY header was read, whom it names.
    peer: SocketAddr,
    listener: Arc<str>,
}

impl Recipe {
    /// The stage of a new connection.
    pub(crate) fn stage(&self, listener: &Arc<str>, peer: SocketAddr, unknown: Unknown) -> Result<Stage, Broken> {
        if self.is_plain() {
            return Ok(Stage::Plain);
        }
        let tls = self.tls.as_ref().map(|(config, _)| Tls::new(config.clone()).map(Box::new));
        Ok(Stage::Layered(Box::new(Layers {
            unknown: self.patience_us().map(|_| unknown),
            proxy: self.proxy_us.map(|_| proxy::Header::default()),
            tls: tls.transpose().map_err(Broken::TlsHandshake)?,
            websocket: self.websocket.clone().map(|settings| Box::new(WebSocket::new(settings))),
            over: false,
            peer,
            listener: listener.clone(),
        })))
    }

    /// No layer at all.
    fn is_plain(&self) -> bool {
        self.proxy_us.is_none() && self.tls.is_none() && self.websocket.is_none()
    }

    /// How long it may take until it is known who is there, in microseconds; none: it is known at once.
    pub(crate) fn patience_us(&self) -> Option<u64> {
        match (self.proxy_us, &self.tls) {
            (None, None) => None,
            (proxy_us, tls) => Some(proxy_us.unwrap_or(0) + tls.as_ref().map_or(0, |(_, patience_us)| *patience_us)),
        }
    }
}

impl Stage {
    /// Moves all of `plain` to `wire`, which is empty, in the form that goes onto the wire, behind what the layers
    /// themselves have to say. `plain` is empty afterwards, and without layers one of the two allocations serves
    /// the other's next use. With `last` nothing will follow, and the layers say goodbye.
    pub(crate) fn seal(&mut self, plain: Option<&mut Vec<u8>>, wire: &mut Vec<u8>, last: bool) {
        match (self, plain) {
            (Stage::Plain, Some(plain)) => mem::swap(plain, wire),
            (Stage::Plain, None) => {}
            (Stage::Layered(layers), plain) => {
                if let Some(plain) = plain {
                    layers.seal(plain, wire);
                    plain.clear();
                }
                layers.seal(&[], wire);
                if last {
                    layers.finish(wire);
                }
            }
        }
    }

    /// Has the broker not heard of the connection yet?
    pub(crate) fn is_unknown(&self) -> bool {
        self.unknown().is_some()
    }

    /// Where a connection came in that the broker has not heard of yet.
    pub(crate) fn unknown(&self) -> Option<Unknown> {
        match self {
            Stage::Plain => None,
            Stage::Layered(layers) => layers.unknown,
        }
    }

    /// Is the handshake of TLS, which costs a shard most, still going on?
    pub(crate) fn is_handshaking(&self) -> bool {
        match self {
            Stage::Plain => false,
            Stage::Layered(layers) => layers.is_handshaking(),
        }
    }

    /// Have the layers something to say themselves?
    pub(crate) fn has_output(&self) -> bool {
        match self {
            Stage::Plain => false,
            Stage::Layered(layers) => layers.has_output(),
        }
    }
}

impl Layers {
    /// Takes bytes off the wire and appends what the broker may read of them to `plain`.
    pub(crate) fn open(&mut self, mut wire: &[u8], plain: &mut Vec<u8>) -> Result<Flow, Broken> {
        if self.over {
            return Ok(Flow::More);
        }
        let opened = self.open_all(&mut wire, plain);
        self.over = !matches!(opened, Ok(Flow::More));
        opened
    }

    fn open_all(&mut self, wire: &mut &[u8], plain: &mut Vec<u8>) -> Result<Flow, Broken> {
        if let Some(header) = &mut self.proxy {
            match header.read(wire).map_err(Broken::Proxy)? {
                None => return Ok(Flow::More),
                Some(Proxied::Itself) => {}
                Some(Proxied::Client(client)) => self.peer = believed(self.peer, canonical(client))?,
            }
            self.proxy = None;
        }
        let websocket = &mut self.websocket;
        let mut above = |bytes: &[u8]| match websocket {
            Some(websocket) => websocket.open(bytes, plain).map_err(Broken::WebSocket),
            None => {
                plain.extend_from_slice(bytes);
                Ok(Flow::More)
            }
        };
        match &mut self.tls {
            Some(tls) => tls.open(wire, above),
            None => above(wire),
        }
    }

    /// Is it known who is there?
    pub(crate) fn known(&self) -> bool {
        self.proxy.is_none() && self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking())
    }

    /// Every layer has done what it was for: the connection goes on without.
    pub(crate) fn is_done(&self) -> bool {
        self.proxy.is_none() && self.tls.is_none() && self.websocket.is_none()
    }

    /// Is the handshake of TLS still going on?
    pub(crate) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Who is there.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Where the connection came in.
    pub(crate) fn listener(&self) -> &Arc<str> {
        &self.listener
    }

    /// What TLS has proven about the other side.
    pub(crate) fn certificate(&self) -> Option<Box<Certificate>> {
        self.tls.as_ref()?.certificate().map(Box::new)
    }

    fn has_output(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.has_output())
            || self.websocket.as_ref().is_some_and(|websocket| websocket.has_output())
    }

    fn seal(&mut self, plain: &[u8], wire: &mut Vec<u8>) {
        let plain = if self.over { &[] } else { plain };
        let Layers { tls, websocket, .. } = self;
        let mut below = |bytes: &[u8]| match tls {
            Some(tls) => tls.seal(bytes, wire),
            None => wire.extend_from_slice(bytes),
        };
        match websocket {
            Some(websocket) => websocket.seal(plain, &mut below),
            None => below(plain),
        }
        // What TLS itself has to say, if nothing above it had.
        below(&[]);
    }

    fn finish(&mut self, wire: &mut Vec<u8>) {
        if let Some(websocket) = &mut self.websocket {
            websocket.finish();
            self.seal(&[], wire);
        }
        if let Some(tls) = &mut self.tls {
            tls.finish(wire);
        }
        self.over = true;
    }
}

/// The client that `proxy` speaks for. Loopback is trusted with more than others, so nobody else may claim it.
fn believed(proxy: SocketAddr, client: SocketAddr) -> Result<SocketAddr, Broken> {
    let claims = client.ip().is_loopback() && !proxy.ip().is_loopback();
    if claims { Err(Broken::Proxy(proxy::Malformed::Loopback)) } else { Ok(client) }
}

/// An IPv4 address that came through an IPv6 socket, as IPv4: that is how rules name it.
pub(crate) fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

#[cfg(test)]
mod tests;
