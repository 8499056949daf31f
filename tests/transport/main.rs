//! Every transport against the real executable, with clients that we did not write: TLS, WebSocket, both, Unix
//! sockets, IPv6, clients behind a load balancer that sends a PROXY header; and what else belongs to a listener.
//!
//! One node with three shards and a listener of every kind serves all tests that leave it as it was, side by side;
//! tests that change files or limits start their own. Certificates are made when the tests run.

mod clients;
mod descriptors;
mod listeners;
mod local;
mod moves;
mod papers;
mod proxy;
mod reload;
mod secure;
mod slow;
mod storm;
mod tls;
mod websocket;

use std::sync::OnceLock;

use harness::node::Borrowed;
use harness::{Node, Setup};

use papers::Papers;

/// The area's node and its certificates.
struct Place {
    papers: Papers,
    socket: std::path::PathBuf,
    node: Node,
}

/// Variables that open a TLS listener with the certificate of `papers`.
fn tls_listener(setup: Setup, kind: &str, name: &str, papers: &Papers) -> Setup {
    let key = |rest: &str| format!("RINGMQ_LISTENERS__{kind}__{name}__{rest}").to_uppercase();
    setup
        .env(&key("BIND"), "127.0.0.1:0")
        .env(&key("SSL_OPTIONS__CERTFILE"), papers.file("server.pem"))
        .env(&key("SSL_OPTIONS__KEYFILE"), papers.file("server.key"))
}

/// The same, of which clients need a certificate.
fn mutual(setup: Setup, kind: &str, name: &str, papers: &Papers) -> Setup {
    let key = |rest: &str| format!("RINGMQ_LISTENERS__{kind}__{name}__SSL_OPTIONS__{rest}").to_uppercase();
    tls_listener(setup, kind, name, papers)
        .env(&key("CACERTFILE"), papers.file("ca.pem"))
        .env(&key("CRLFILE"), papers.file("ca.crl"))
        .env(&key("VERIFY"), "verify_peer")
        .env(&key("FAIL_IF_NO_PEER_CERT"), "true")
}

fn start() -> Place {
    let papers = Papers::new();
    let socket = papers.directory().join("mqtt.sock");
    let mut setup = Setup::new(env!("CARGO_BIN_EXE_ringmq"))
        .shards(3)
        .env("RINGMQ_LISTENERS__WS__DEFAULT__BIND", "127.0.0.1:0")
        .env("RINGMQ_LISTENERS__TCP__V6__BIND", "[::1]:0")
        .env("RINGMQ_LISTENERS__TCP__ANY__BIND", "[::]:0")
        .env("RINGMQ_LISTENERS__TCP__ANY__ALLOW_ANONYMOUS", "true")
        .env("RINGMQ_LISTENERS__TCP__SMALL__BIND", "127.0.0.1:0")
        .env("RINGMQ_LISTENERS__TCP__SMALL__MAX_CONNECTIONS", "2")
        .env("RINGMQ_LISTENERS__TCP__MOUNTED__BIND", "127.0.0.1:0")
        .env("RINGMQ_LISTENERS__TCP__MOUNTED__MOUNTPOINT", "tenant-a/")
        .env("RINGMQ_LISTENERS__SSL__HASTY__SSL_OPTIONS__HANDSHAKE_TIMEOUT", "1s")
        .env("RINGMQ_LISTENERS__SSL__DEFAULT__SSL_OPTIONS__SNI_CERTFILES", papers.file("other.pem"))
        .env("RINGMQ_LISTENERS__UNIX__LOCAL__PATH", socket.display().to_string())
        .env("RINGMQ_LISTENERS__UNIX__LOCAL__MODE", "0600");
    for (kind, name) in [("ssl", "default"), ("ssl", "hasty"), ("wss", "default")] {
        setup = tls_listener(setup, kind, name, &papers);
    }
    let setup = mutual(setup, "ssl", "mutual", &papers);
    let node = mutual(setup, "wss", "mutual", &papers).start();
    Place { papers, socket, node }
}

/// The area's node.
fn place() -> (&'static Place, Borrowed) {
    static PLACE: OnceLock<Result<Place, String>> = OnceLock::new();
    at(&PLACE, start)
}

/// A node that several tests share, started by the first of them.
fn at(place: &'static OnceLock<Result<Place, String>>, start: fn() -> Place) -> (&'static Place, Borrowed) {
    let place = place.get_or_init(|| {
        // A start that fails once would fail in every test after its own long wait.
        std::panic::catch_unwind(start).map_err(|_| "the node did not start; see the first failure".to_owned())
    });
    match place {
        Ok(place) => (place, Borrowed(&place.node)),
        Err(why) => panic!("{why}"),
    }
}
