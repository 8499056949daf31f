//! Behind a load balancer: the client is who the PROXY header names, and nobody comes in without one.

use std::io::{Read, Write};
use std::sync::OnceLock;

use harness::{SHORT, Setup, client_on, node::Borrowed, wire::kind, within};

use crate::{
    Place, at,
    papers::Papers,
    secure::{self, Client},
    tls_listener,
    websocket::Framed,
};

/// The node of these tests. It is not the area's: of many clients that come in a second, lines of the log are left out.
fn place() -> (&'static Place, Borrowed) {
    static PLACE: OnceLock<Result<Place, String>> = OnceLock::new();
    at(&PLACE, || {
        let papers = Papers::new();
        let socket = papers.directory().join("mqtt.sock");
        let setup = Setup::new(env!("CARGO_BIN_EXE_ringmq"))
            .shards(3)
            .env("RINGMQ_LISTENERS__TCP__PROXIED__BIND", "127.0.0.1:0")
            .env("RINGMQ_LISTENERS__TCP__PROXIED__PROXY_PROTOCOL", "true")
            .env("RINGMQ_LISTENERS__TCP__PROXIED__PROXY_PROTOCOL_TIMEOUT", "500ms")
            .env("RINGMQ_LISTENERS__WSS__PROXIED__PROXY_PROTOCOL", "true");
        let node = tls_listener(setup, "wss", "proxied", &papers).start();
        Place { papers, socket, node }
    })
}

/// Version 2, for a client at [2001:db8::7]:4660.
fn block() -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
    let mut addresses = [0; 36];
    addresses[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    (addresses[15], addresses[32], addresses[33]) = (7, 0x12, 0x34);
    bytes.extend(addresses);
    bytes
}

#[track_caller]
fn named(client: &str, peer: &str) {
    let (_, node) = place();
    within(SHORT, "the client is in the log", || {
        let said = node.output();
        let line = said.lines().find(|line| line.contains("connected") && line.contains(client))?;
        assert!(line.contains(peer), "{line}");
        Some(())
    });
}

#[test]
fn both_versions_name_the_client_in_one_write_or_byte_by_byte() {
    let (_, node) = place();
    let line = b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 1883\r\n".to_vec();
    for (version, header, peer) in [(1, line, "192.0.2.7:4660"), (2, block(), "[2001:db8::7]:4660")] {
        for shard in 0..3 {
            let id = client_on(shard, 3, &format!("proxied-v{version}-{shard}"));
            let mut client = Client::new(secure::tcp(node.address("tcp", "proxied")));
            if shard == 0 {
                header.iter().for_each(|byte| client.send(&[*byte]));
                client.send(&secure::connect(&id));
            } else {
                client.send(&[&header[..], &secure::connect(&id)].concat());
            }
            assert_eq!(client.expect(kind::CONNACK).reason(), 0);
            named(&id, peer);
        }
    }
}

#[test]
fn the_header_comes_before_tls_and_websocket() {
    let (place, node) = place();
    let id = client_on(2, 3, "proxied-wss");
    let mut stream = secure::tcp(node.address("wss", "proxied"));
    stream.write_all(&block()).expect("the broker reads");
    let stream = secure::tls(stream, secure::config(&place.papers, None));
    Client::connect(Framed::open(stream), &id);
    named(&id, "[2001:db8::7]:4660");
}

#[test]
fn a_load_balancer_that_speaks_for_itself_is_its_own_client() {
    let (_, node) = place();
    let mut client = Client::new(secure::tcp(node.address("tcp", "proxied")));
    client.send(b"PROXY UNKNOWN\r\n");
    client.send(&secure::connect("proxied-itself"));
    assert_eq!(client.expect(kind::CONNACK).reason(), 0);
    named("proxied-itself", "127.0.0.1:");
}

#[test]
fn who_sends_no_header_or_a_bad_one_or_none_in_time_is_closed() {
    let (_, node) = place();
    let (refused, late) = (node.counter("proxy_refused"), node.counter("handshake_timeout"));
    for bytes in [secure::connect("unproxied"), b"PROXY TCP4 1.2.3.4\r\n".to_vec(), vec![b'P'; 200]] {
        let mut stream = secure::tcp(node.address("tcp", "proxied"));
        stream.write_all(&bytes).expect("the broker reads");
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)), "closed without a word");
    }
    node.counter_reaches("proxy_refused", refused + 3);
    let mut silent = secure::tcp(node.address("tcp", "proxied"));
    silent.write_all(b"PROXY TCP4 ").expect("the broker reads");
    assert!(matches!(silent.read(&mut [0]), Ok(0)), "closed in an orderly way");
    node.counter_reaches("handshake_timeout", late + 1);
    assert!(!node.output().contains("client=unproxied"));
}
