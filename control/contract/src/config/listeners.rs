//! `listeners.<kind>.<name>.*`: where clients connect. EMQX's words where a thing is the same.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use super::{
    knob::{Kind, Preset::*, within, within_or},
    section::{choice, section},
    units::Clock,
};

/// Most listeners of a node.
pub const LISTENERS_MAX: usize = 64;
/// The listener of a kind that may be left without an address; the one of TCP is there unless it is disabled.
pub const DEFAULT_NAME: &str = "default";
/// Longest path of a socket that the kernel takes.
pub const UNIX_PATH_BYTES_MAX: usize = 107;
/// Longest mountpoint.
const MOUNTPOINT_BYTES_MAX: usize = 1024;
/// Longest name of a file.
const FILE_NAME_BYTES_MAX: usize = 4096;
/// Words of `ssl_options.versions`.
pub(super) const TLS_VERSIONS: [&str; 2] = ["tlsv1.3", "tlsv1.2"];

/// Where clients connect. Its index in [`super::Config::listeners`] is its number inside the data plane.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Listener {
    /// What is spoken there.
    pub kind: ListenerKind,
    /// Its name, unique among listeners of its kind.
    pub name: String,
    /// Address and port, as `SocketAddr` parses them; port 0 takes a free one. Of a Unix listener the path.
    pub bind: String,
    /// A disabled listener is not opened.
    pub enable: bool,
    /// Connections of this listener on the whole node; more are closed at once.
    pub max_connections: u32,
    /// Connections per second; `u32::MAX`: as many as come.
    pub max_conn_rate: u32,
    /// How many of them may come at once; 0: as many as may come in one second.
    pub max_conn_burst: u32,
    /// Clients may connect without a user name. On loopback they may while `authentication` names nobody to ask.
    pub allow_anonymous: bool,
    /// A PROXY header precedes what the client sends.
    pub proxy_protocol: bool,
    /// How long that header may take, in milliseconds.
    pub proxy_protocol_timeout_ms: u32,
    /// What all topics of its clients begin with, which they do not see.
    pub mountpoint: Option<String>,
    /// TLS, of the kinds `ssl` and `wss`.
    pub tls: Option<Tls>,
    /// WebSocket, of the kinds `ws` and `wss`.
    pub websocket: Option<WebSocket>,
    /// Permissions of the socket of a Unix listener, in octal digits.
    pub mode: String,
}

choice! {
    /// What is spoken at a listener.
    ListenerKind {
        /// MQTT on TCP.
        Tcp = "tcp",
        /// MQTT on TLS.
        Ssl = "ssl",
        /// MQTT on WebSocket.
        Ws = "ws",
        /// MQTT on WebSocket on TLS.
        Wss = "wss",
        /// MQTT on a Unix socket.
        Unix = "unix",
    }
}

choice! {
    /// Whether clients are asked for a certificate.
    Verify {
        /// They are not asked.
        None = "verify_none",
        /// They are asked, and what they show must be valid.
        Peer = "verify_peer",
    }
}

choice! {
    /// Who a client with a certificate is.
    CertificateUser {
        /// Who CONNECT says.
        Disabled = "disabled",
        /// The common name of its certificate.
        CommonName = "cn",
        /// The subject of its certificate, as RFC 4514 writes it.
        Subject = "dn",
    }
}

/// `ssl_options` of a listener.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tls {
    /// PEM file with the certificate chain, the server's own first. `None`: nobody said one, which no listener has.
    pub certfile: Option<String>,
    /// PEM file with its private key; none: it is in `certfile`.
    pub keyfile: Option<String>,
    /// Further PEM files, each a chain with its private key, for clients that ask for a name in it.
    pub sni_certfiles: Vec<String>,
    /// PEM file with the authorities that client certificates may come from.
    pub cacertfile: Option<String>,
    /// PEM file with the revocation lists of these authorities.
    pub crlfile: Option<String>,
    /// Whether clients are asked for a certificate.
    pub verify: Verify,
    /// Who is asked for one must have one.
    pub fail_if_no_peer_cert: bool,
    /// Whose certificate is valid needs no password: this is its user name.
    pub user: CertificateUser,
    /// The versions that are spoken.
    pub versions: Vec<String>,
    /// How long the handshake may take, in milliseconds.
    pub handshake_timeout_ms: u32,
}

/// `websocket` of a listener.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WebSocket {
    /// The path of the handshake's request.
    pub mqtt_path: String,
    /// Most bytes of one frame of a client.
    pub max_frame_size: u32,
}

/// What all listeners on addresses have.
macro_rules! network {
    ($doc:literal, $section:ident at $prefix:literal, $kind:ident, $bind:literal, $example:literal) => {
        section! {
            #[doc = $doc]
            $section at $prefix {
                /// Address and port. A port alone means loopback, port 0 takes a free one. Only the listener `default` has a default. Listeners come and go at SIGHUP; another address is another listener: the clients of the old one are disconnected.
                bind: String = "bind", Kind::Address, Text($bind), Live, $example;
                /// A disabled listener is not opened; one that is disabled later is closed, and its clients with it (0x98).
                enable: bool = "enable", Kind::Switch, Switch(true), Live, "false";
                /// Connections of this listener on the whole node; more are closed at once.
                max_connections: u32 = "max_connections", Kind::Count(within(1, 100_000_000)), Number(1_000_000), Live, "1000";
                /// Connections per second of this listener on the whole node. What comes faster waits, at most 5 seconds; what would wait longer is closed at once and counted.
                max_conn_rate: u32 = "max_conn_rate", Kind::Count(within_or(1, 1_000_000, "infinity", 4_294_967_295)), Number(4_294_967_295), Live, "500";
                /// How many connections may come at once before they wait for `max_conn_rate`; `auto`: as many as in one second.
                max_conn_burst: u32 = "max_conn_burst", Kind::Count(within_or(1, 1_000_000, "auto", 0)), Number(0), Live, "1000";
                /// Clients may connect without a user name. On loopback they may while `authentication` names nobody to ask.
                allow_anonymous: bool = "allow_anonymous", Kind::Switch, Switch(false), Live, "true";
                /// What all topics of its clients begin with, which they do not see: it is put before what they publish and subscribe to, and taken off what they get. Ends with `/`.
                mountpoint: Option<String> = "mountpoint", Kind::Text(MOUNTPOINT_BYTES_MAX), Unset, Live, "\"tenant-a/\"";
                /// A load balancer sends a PROXY header (version 1 or 2) first, and the client is who it names. Whoever sends none is closed. Only the load balancer should reach such a listener.
                proxy_protocol: bool = "proxy_protocol", Kind::Switch, Switch(false), Live, "true";
                /// How long the PROXY header may take.
                proxy_protocol_timeout_ms: u32 = "proxy_protocol_timeout", Kind::Duration(Clock::Ms, within(100, 60_000)), Number(3000), Live, "\"5s\"";
            }
        }

        impl $section {
            /// The listener that these values describe.
            pub(super) fn named(self, name: &str, tls: Option<Tls>, websocket: Option<WebSocket>) -> Listener {
                Listener {
                    kind: ListenerKind::$kind,
                    name: name.into(),
                    bind: self.bind,
                    enable: self.enable,
                    max_connections: self.max_connections,
                    max_conn_rate: self.max_conn_rate,
                    max_conn_burst: self.max_conn_burst,
                    allow_anonymous: self.allow_anonymous,
                    mountpoint: self.mountpoint,
                    proxy_protocol: self.proxy_protocol,
                    proxy_protocol_timeout_ms: self.proxy_protocol_timeout_ms,
                    tls,
                    websocket,
                    mode: String::new(),
                }
            }
        }
    };
}

/// What all listeners with TLS have.
macro_rules! ssl_options {
    ($doc:literal, $section:ident at $prefix:literal) => {
        section! {
            #[doc = $doc]
            $section at $prefix {
                /// PEM file with the server's certificate and those that lead to its authority. Required. Files are read again at SIGHUP, for new connections.
                certfile: Option<String> = "certfile", Kind::Text(FILE_NAME_BYTES_MAX), Unset, Live, "\"/etc/ringmq/cert.pem\"";
                /// PEM file with the private key (PKCS#8, PKCS#1 or SEC1, not encrypted); unset: the key is in `certfile`.
                keyfile: Option<String> = "keyfile", Kind::Text(FILE_NAME_BYTES_MAX), Unset, Live, "\"/etc/ringmq/key.pem\"";
                /// Further PEM files, each with a certificate chain and its key: a client that asks for a name (SNI) in one of them gets that one, others get `certfile`.
                sni_certfiles: Vec<String> = "sni_certfiles", Kind::List, List(&[]), Live, "[\"/etc/ringmq/other.pem\"]";
                /// PEM file with the authorities whose client certificates are valid.
                cacertfile: Option<String> = "cacertfile", Kind::Text(FILE_NAME_BYTES_MAX), Unset, Live, "\"/etc/ringmq/clients-ca.pem\"";
                /// PEM file with revocation lists. Who shows a certificate of an authority without a current list is refused.
                crlfile: Option<String> = "crlfile", Kind::Text(FILE_NAME_BYTES_MAX), Unset, Live, "\"/etc/ringmq/clients.crl\"";
                /// Whether clients are asked for a certificate.
                verify: Verify = "verify", Kind::Choice(Verify::WORDS), Number(0), Live, "\"verify_peer\"";
                /// With `verify_peer`: who has no certificate is refused.
                fail_if_no_peer_cert: bool = "fail_if_no_peer_cert", Kind::Switch, Switch(false), Live, "true";
                /// With `verify_peer`: a client with a certificate needs no password, and its user name is the common name (`cn`) or the subject (`dn`) of that, whatever CONNECT says.
                user: CertificateUser = "peer_cert_as_username", Kind::Choice(CertificateUser::WORDS), Number(0), Live, "\"cn\"";
                /// Versions that are spoken: "tlsv1.3", "tlsv1.2", or both.
                versions: Vec<String> = "versions", Kind::List, List(&TLS_VERSIONS), Live, "[\"tlsv1.3\"]";
                /// How long the handshake may take. It is part of mqtt.idle_timeout.
                handshake_timeout_ms: u32 = "handshake_timeout", Kind::Duration(Clock::Ms, within(100, 600_000)), Number(15_000), Live, "\"5s\"";
            }
        }

        impl From<$section> for Tls {
            fn from(knobs: $section) -> Tls {
                Tls {
                    certfile: knobs.certfile,
                    keyfile: knobs.keyfile,
                    sni_certfiles: knobs.sni_certfiles,
                    cacertfile: knobs.cacertfile,
                    crlfile: knobs.crlfile,
                    verify: knobs.verify,
                    fail_if_no_peer_cert: knobs.fail_if_no_peer_cert,
                    user: knobs.user,
                    versions: knobs.versions,
                    handshake_timeout_ms: knobs.handshake_timeout_ms,
                }
            }
        }
    };
}

/// What all listeners with WebSocket have.
macro_rules! websocket {
    ($doc:literal, $section:ident at $prefix:literal) => {
        section! {
            #[doc = $doc]
            $section at $prefix {
                /// The path that clients ask for.
                mqtt_path: String = "mqtt_path", Kind::Text(1024), Text("/mqtt"), Live, "\"/\"";
                /// Most bytes of one frame of a client; who sends a longer one is closed with 1009.
                max_frame_size: u32 = "max_frame_size", Kind::Size(within(1024, 1 << 30)), Number(16 << 20), Live, "\"1MB\"";
            }
        }

        impl From<$section> for WebSocket {
            fn from(knobs: $section) -> WebSocket {
                WebSocket { mqtt_path: knobs.mqtt_path, max_frame_size: knobs.max_frame_size }
            }
        }
    };
}

network!(" MQTT on TCP.", Tcp at "listeners.tcp.<name>", Tcp, "127.0.0.1:1883", "\"0.0.0.0:1883\"");
network!(" MQTT on TLS.", Ssl at "listeners.ssl.<name>", Ssl, "127.0.0.1:8883", "\"0.0.0.0:8883\"");
ssl_options!(" TLS of such a listener.", SslOptions at "listeners.ssl.<name>.ssl_options");
network!(" MQTT on WebSocket.", Ws at "listeners.ws.<name>", Ws, "127.0.0.1:8083", "\"0.0.0.0:8083\"");
websocket!(" WebSocket of such a listener.", WsOptions at "listeners.ws.<name>.websocket");
network!(" MQTT on WebSocket on TLS.", Wss at "listeners.wss.<name>", Wss, "127.0.0.1:8084", "\"0.0.0.0:8084\"");
ssl_options!(" TLS of such a listener.", WssOptions at "listeners.wss.<name>.ssl_options");
websocket!(" WebSocket of such a listener.", WssWebSocket at "listeners.wss.<name>.websocket");

section! {
    /// MQTT on a Unix socket. Whoever may open it needs no user name, unless `authentication` names somebody to ask; as a client's address 127.0.0.1:0 is shown.
    Unix at "listeners.unix.<name>" {
        /// Path of the socket. Required. One that is left of a process that has ended is replaced.
        path: Option<String> = "path", Kind::Text(UNIX_PATH_BYTES_MAX), Unset, Live, "\"/run/ringmq/mqtt.sock\"";
        /// Permissions of the socket, in octal.
        mode: String = "mode", Kind::Text(4), Text("0660"), Live, "\"0600\"";
        /// A disabled listener is not opened; one that is disabled later is closed, and its clients with it (0x98).
        enable: bool = "enable", Kind::Switch, Switch(true), Live, "false";
        /// Connections of this listener on the whole node; more are closed at once.
        max_connections: u32 = "max_connections", Kind::Count(within(1, 100_000_000)), Number(1_000_000), Live, "1000";
        /// Connections per second of this listener on the whole node. What comes faster waits, at most 5 seconds; what would wait longer is closed at once and counted.
        max_conn_rate: u32 = "max_conn_rate", Kind::Count(within_or(1, 1_000_000, "infinity", 4_294_967_295)), Number(4_294_967_295), Live, "500";
        /// How many connections may come at once before they wait for `max_conn_rate`; `auto`: as many as in one second.
        max_conn_burst: u32 = "max_conn_burst", Kind::Count(within_or(1, 1_000_000, "auto", 0)), Number(0), Live, "1000";
        /// What all topics of its clients begin with, which they do not see. Ends with `/`.
        mountpoint: Option<String> = "mountpoint", Kind::Text(MOUNTPOINT_BYTES_MAX), Unset, Live, "\"local/\"";
    }
}

impl Unix {
    /// The listener that these values describe.
    pub(super) fn named(self, name: &str) -> Listener {
        Listener {
            kind: ListenerKind::Unix,
            name: name.into(),
            bind: self.path.unwrap_or_default(),
            enable: self.enable,
            max_connections: self.max_connections,
            max_conn_rate: self.max_conn_rate,
            max_conn_burst: self.max_conn_burst,
            allow_anonymous: true,
            mountpoint: self.mountpoint,
            proxy_protocol: false,
            proxy_protocol_timeout_ms: 0,
            tls: None,
            websocket: None,
            mode: self.mode,
        }
    }
}
