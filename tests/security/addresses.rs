//! What one address, and one listener, may have: connections, connections per second, handshakes. Behind a load balancer it is
//! the client's address that counts.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use harness::wire::{Connect, V5, kind};
use harness::{LONG, Node, Raw, SHORT, Setup};

fn node(keys: &[(&str, &str)]) -> Node {
    let mut setup = Setup::new(env!("CARGO_BIN_EXE_ringmq"))
        .shards(2)
        .env("RINGMQ_LISTENERS__TCP__PROXIED__BIND", "127.0.0.1:0")
        .env("RINGMQ_LISTENERS__TCP__PROXIED__PROXY_PROTOCOL", "true");
    for (key, value) in keys {
        setup = setup.env(&format!("RINGMQ_{key}"), *value);
    }
    setup.start()
}

/// A connection that says for whom it comes, and CONNECT if there is a client id.
fn proxied(node: &Node, peer: &str, id: Option<&str>) -> Raw {
    let family = if peer.contains(':') { "TCP6" } else { "TCP4" };
    let ours = if peer.contains(':') { "::1" } else { "10.0.0.1" };
    let mut raw = Raw::open(node.address("tcp", "proxied"));
    raw.send(format!("PROXY {family} {peer} {ours} 4660 1883\r\n").as_bytes());
    if let Some(id) = id {
        let _ = raw.try_send(&Connect::new(V5, id).bytes());
    }
    raw
}

#[track_caller]
fn comes_in(mut raw: Raw) -> Raw {
    assert_eq!(raw.expect(kind::CONNACK).reason(), 0);
    raw
}

#[test]
fn an_address_has_so_many_connections_and_others_have_theirs() {
    let node = node(&[("LIMITS__MAX_CONNECTIONS_PER_ADDRESS", "3")]);
    let three = |peer: &str| -> Vec<Raw> {
        (0..3).map(|at| comes_in(proxied(&node, peer, Some(&format!("{at}-of-{peer}"))))).collect()
    };
    let mut far = three("192.0.2.7");
    assert_eq!(proxied(&node, "192.0.2.7", Some("fourth")).closed(SHORT), [], "closed without a word");
    let network = three("2001:db8::1");
    assert_eq!(proxied(&node, "2001:db8::ffff", Some("neighbour")).closed(SHORT), [], "one network of IPv6");
    let others = three("2001:db8:0:1::1");
    let direct: Vec<Raw> =
        (0..3).map(|at| Raw::connect(node.mqtt(), &Connect::new(V5, &format!("direct-{at}")))).collect();
    let mut refused = TcpStream::connect(node.mqtt()).expect("the kernel accepts");
    refused.set_read_timeout(Some(SHORT)).expect("a bound");
    assert!(matches!(refused.read(&mut [0]), Ok(0) | Err(_)));
    node.counter_reaches("address_connections_refused", 3);
    far.pop();
    harness::within(SHORT, "a place is free again", || {
        let mut raw = proxied(&node, "192.0.2.7", Some("next"));
        raw.next(SHORT).filter(|packet| packet.kind == kind::CONNACK)
    });
    drop((network, others, direct));
    node.says("limits.max_connections_per_address");
}

#[test]
fn an_address_has_so_many_handshakes_and_a_client_is_none() {
    let node = node(&[("LIMITS__MAX_HANDSHAKES_PER_ADDRESS", "4")]);
    let clients: Vec<Raw> =
        (0..20).map(|at| Raw::connect(node.mqtt(), &Connect::new(V5, &format!("client-{at}")))).collect();
    let silent: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(node.mqtt()).expect("a connection")).collect();
    node.figure("shard_turns");
    let mut refused = Raw::open(node.mqtt());
    let _ = refused.try_send(&Connect::new(V5, "fifth").bytes());
    assert_eq!(refused.closed(SHORT), []);
    node.counter_reaches("address_handshakes_refused", 1);
    drop(silent);
    harness::within(SHORT, "a place is free again", || {
        let mut raw = Raw::open(node.mqtt());
        let _ = raw.try_send(&Connect::new(V5, "fifth").bytes());
        raw.next(SHORT).filter(|packet| packet.kind == kind::CONNACK)
    });
    drop(clients);
}

#[test]
fn an_address_connects_so_often_and_loopback_may_be_exempt() {
    let often = [("LIMITS__MAX_CONN_RATE_PER_ADDRESS", "5"), ("LIMITS__EXEMPT_LOOPBACK", "true")];
    let node = node(&often);
    let crowd: Vec<Raw> = (0..40).map(|at| proxied(&node, "192.0.2.7", Some(&format!("crowd-{at}")))).collect();
    let came_in = crowd.into_iter().filter_map(|mut raw| raw.next(SHORT)).count();
    assert!((5..40).contains(&came_in), "{came_in} came in");
    node.counter_reaches("address_rate_refused", (40 - came_in) as u64);
    for at in 0..40 {
        Raw::connect(node.mqtt(), &Connect::new(V5, &format!("local-{at}"))).ping();
    }
}

#[test]
fn at_a_listener_with_a_rate_connections_wait_and_too_many_are_closed() {
    let node = node(&[
        ("LISTENERS__TCP__SLOW__BIND", "127.0.0.1:0"),
        ("LISTENERS__TCP__SLOW__MAX_CONN_RATE", "10"),
        ("LISTENERS__TCP__SLOW__MAX_CONN_BURST", "5"),
    ]);
    let slow = node.address("tcp", "slow");
    let since = Instant::now();
    let crowd: Vec<TcpStream> = (0..200)
        .map(|at| {
            let mut stream = TcpStream::connect(slow).expect("the kernel accepts");
            stream.set_read_timeout(Some(LONG)).expect("a bound");
            // Who is closed already cannot be written to.
            let _ = stream.write_all(&Connect::new(V5, &format!("crowd-{at}")).bytes());
            stream
        })
        .collect();
    // Meanwhile others are served.
    Raw::connect(node.mqtt(), &Connect::new(V5, "elsewhere")).ping();
    let came_in = crowd.into_iter().filter(|stream| matches!((&*stream).read(&mut [0; 1]), Ok(1))).count();
    let took = since.elapsed();
    // Five at once, and ten per second of the five seconds that one may wait.
    assert!((50..200).contains(&came_in), "{came_in} came in");
    assert!(took > Duration::from_secs(4), "{came_in} came in within {took:?}");
    node.counter_reaches("listener_rate_refused", (200 - came_in) as u64);
    assert!(node.counter("listener_rate_waited") >= 45);
    node.says("max_conn_rate is exceeded");
}
