//! A connection moves to the home shard of its client id after CONNECT, with its layers in the middle of whatever they
//! are doing: a record or frame that has half arrived, packets behind CONNECT.

use std::io::Write;

use harness::{
    client_on,
    wire::{self, Publish, kind},
};

use crate::{
    place,
    secure::{self, Client, Wire},
    websocket::{Framed, HEAD, frame},
};

/// Connections per shard and way: the kernel deals them to shards, so that some have to move to every shard.
const ROUNDS: usize = 8;

/// CONNECT with SUBSCRIBE and the first half of a PUBLISH behind it.
fn beginning(client: &str, topic: &str) -> (Vec<u8>, Vec<u8>) {
    let mut bytes = secure::connect(client);
    bytes.extend(wire::subscribe(wire::V5, 1, topic, 0));
    let publish = Publish::new(topic, &[b'x'; 3000]).bytes(wire::V5);
    bytes.extend(&publish[..1000]);
    (bytes, publish[1000..].to_vec())
}

#[track_caller]
fn finish<W: Wire>(client: &mut Client<W>) {
    assert_eq!(client.expect(kind::CONNACK).reason(), 0);
    assert_eq!(client.granted_and_message(), [b'x'; 3000]);
}

#[test]
fn in_the_middle_of_tls() {
    let (place, node) = place();
    let before = node.counter("connections_handed_over");
    let config = secure::config(&place.papers, None);
    for at in 0..ROUNDS * 3 {
        let id = client_on((at % 3) as u16, 3, &format!("moves-tls-{at}"));
        let (first, rest) = beginning(&id, &format!("moves/tls/{at}"));
        let mut stream = secure::tls(secure::tcp(node.address("ssl", "default")), config.clone());
        stream.conn.complete_io(&mut stream.sock).expect("a handshake");
        // Two records in one write, of which the second has half arrived when CONNECT is handled.
        let mut records = Vec::new();
        stream.conn.writer().write_all(&first).expect("memory");
        stream.conn.write_tls(&mut records).expect("memory");
        stream.conn.writer().write_all(&rest).expect("memory");
        let whole = records.len();
        stream.conn.write_tls(&mut records).expect("memory");
        let cut = whole + 1 + at * 40;
        stream.sock.write_all(&records[..cut]).expect("the broker reads");
        let mut client = Client::new(stream);
        assert_eq!(client.expect(kind::CONNACK).reason(), 0);
        client.wire.sock.write_all(&records[cut..]).expect("the broker reads");
        assert_eq!(client.granted_and_message(), [b'x'; 3000]);
    }
    assert!(node.counter("connections_handed_over") > before + ROUNDS as u64, "most of them had to move");
}

#[test]
fn in_the_middle_of_a_websocket_frame() {
    let (_, node) = place();
    let before = node.counter("connections_handed_over");
    for at in 0..ROUNDS * 3 {
        let id = client_on((at % 3) as u16, 3, &format!("moves-ws-{at}"));
        let (first, rest) = beginning(&id, &format!("moves/ws/{at}"));
        let mut framed = Framed::open(secure::tcp(node.address("ws", "default")));
        // One fragmented message, cut in the head or payload of its second frame.
        let mut bytes = frame(0x02, &first);
        let cut = bytes.len() + 1 + at;
        bytes.extend(frame(0x80, &rest));
        framed.below.write_all(&bytes[..cut]).expect("the broker reads");
        let mut client = Client::new(framed);
        assert_eq!(client.expect(kind::CONNACK).reason(), 0);
        client.wire.below.write_all(&bytes[cut..]).expect("the broker reads");
        assert_eq!(client.granted_and_message(), [b'x'; 3000]);
    }
    assert!(node.counter("connections_handed_over") > before + ROUNDS as u64, "most of them had to move");
}

#[test]
fn with_everything_in_the_first_segment() {
    let (place, node) = place();
    let config = secure::config(&place.papers, None);
    for at in 0..ROUNDS * 3 {
        let id = client_on((at % 3) as u16, 3, &format!("moves-all-{at}"));
        let (first, rest) = beginning(&id, &format!("moves/all/{at}"));
        // Head of the handshake, frames and packets without waiting for an answer, over TLS.
        let mut bytes = HEAD.as_bytes().to_vec();
        bytes.extend(frame(0x82, &[first, rest].concat()));
        let mut stream = secure::tls(secure::tcp(node.address("wss", "default")), config.clone());
        stream.write_all(&bytes).expect("the broker reads");
        stream.flush().expect("the broker reads");
        let mut client = Client::new(Framed::answered(stream));
        finish(&mut client);
    }
}
