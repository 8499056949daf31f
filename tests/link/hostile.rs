//! Payloads on link topics that no honest remote sends: refused, counted, one line, no effect on others.
//!
//! The connection itself is one that may speak for the remote (loopback, no `accept` configured), so what
//! is tested is the decoder and not the door.

use crate::clusters::client;
use crate::peer::{INIT, MESSAGE, ROUTE, bytes, node_linked_to, request, say};
use harness::node::Node;
use harness::raw::Raw;
use harness::wire::{Connect, Publish, V5, kind};
use harness::{SHORT, ports};

/// A node whose remote is never there.
fn node() -> Node {
    node_linked_to(ports::free())
}

/// A connection that may speak for the remote.
fn speaker(node: &Node, number: usize) -> Raw {
    Raw::connect(node.mqtt(), &Connect::new(V5, &format!("A:msg:0badcafe:{number}")))
}

/// Terms that are wrong in every way a decoder can be.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let nested = |depth: usize| {
        let mut term = vec![131];
        term.extend([104, 1].repeat(depth));
        term.push(106);
        term
    };
    let in_message = |from: &str, to: &str| bytes(&MESSAGE.replacen(from, to, 1));
    // Stored, not deflated: the bomb is what the length claims.
    let bomb = bytes("8350ffffffff789c030000000001");
    vec![
        ("nothing", Vec::new()),
        ("one byte", vec![131]),
        ("another format", vec![130, 106]),
        ("text", b"{\"op\":\"route\"}".to_vec()),
        ("an unknown tag", vec![131, 7, 7, 7]),
        ("a message cut short", bytes(&MESSAGE[..MESSAGE.len() - 40])),
        ("a list of four billion", bytes("836cffffffff6a")),
        ("a binary of four billion", bytes("836dffffffff00")),
        ("a map of four billion", bytes("8374ffffffff")),
        ("a tuple of four billion", bytes("8369ffffffff")),
        ("nesting beyond any stack", nested(400_000)),
        ("a compressed bomb", bomb),
        ("a number of four billion digits", bytes("836fffffffff00")),
        ("a tuple of another size", bytes("83680177076d657373616765")),
        ("a tuple of another name", in_message("77076d657373616765", "77076d6573736167ff")),
        ("a wildcard in the topic", in_message("742f316d", "742b236d")),
        ("an empty topic", in_message("6d00000003742f31", "6d00000000")),
        ("a zero byte in the topic", in_message("742f316d", "7400316d")),
    ]
}

#[test]
fn garbage_is_refused_and_counted_and_harms_nobody() {
    let node = node();
    let witness = client(&node, 0, "witness");
    witness.subscribe("#", 1);
    let publisher = client(&node, 1, "pub");
    let mut sent = 0;
    for topic in ["$LINK/cluster/msg/A", "$LINK/cluster/route/A"] {
        for (number, (what, payload)) in garbage().into_iter().enumerate() {
            let mut raw = speaker(&node, number);
            raw.send(&Publish::new(topic, &payload).acked(1, 1).bytes(V5));
            // Acknowledged and dropped, refused with a reason, or closed: all are seen in the wild.
            if let Some(packet) = raw.next(SHORT) {
                let known = [kind::PUBACK, kind::DISCONNECT].contains(&packet.kind);
                assert!(known, "{topic}, {what}: {packet:?}");
            }
            sent += 1;
        }
    }
    assert_eq!(node.counter_reaches("shed_link_malformed", sent), sent, "each is counted once");
    publisher.publish("calm", 1, false, b"still served");
    assert_eq!(witness.message().text(), "still served", "and nothing else was delivered");
}

#[test]
fn a_message_outside_our_own_topics_is_dropped_and_counted() {
    let node = node();
    let subscriber = client(&node, 0, "sub");
    subscriber.subscribe("#", 1);
    let mut raw = speaker(&node, 1);
    let outside = bytes(&MESSAGE.replacen("6d00000003742f31", "6d00000003782f31", 1));
    assert!(say(&mut raw, "$LINK/cluster/msg/A", &outside, 1) < 0x80, "the remote is not to send it again");
    node.counter_reaches("shed_link_outside_topics", 1);
    say(&mut raw, "$LINK/cluster/msg/A", &bytes(MESSAGE), 2);
    assert_eq!(subscriber.message().topic, "t/1", "the other one did not come");
}

#[test]
fn a_message_of_an_unknown_cluster_is_dropped_and_counted() {
    let node = node();
    let subscriber = client(&node, 0, "sub");
    subscriber.subscribe("#", 1);
    let mut raw = speaker(&node, 1);
    raw.send(&Publish::new("$LINK/cluster/msg/stranger", &bytes(MESSAGE)).acked(1, 1).bytes(V5));
    drop(raw.next(SHORT));
    node.counter_reaches("shed_link_unknown", 1);
    let mut raw = speaker(&node, 2);
    say(&mut raw, "$LINK/cluster/msg/A", &bytes(MESSAGE), 2);
    assert_eq!(subscriber.message().payload, b"hi");
    assert!(subscriber.events().so_far().is_empty(), "only one of the two came");
}

#[test]
fn routes_before_an_init_end_the_connection() {
    let node = node();
    let mut raw = speaker(&node, 1);
    raw.send(&Publish::new("$LINK/cluster/route/A", &bytes(ROUTE)).acked(1, 1).bytes(V5));
    let packets = raw.closed(SHORT);
    assert!(packets.iter().any(|packet| packet.reason() == 0x83), "{packets:?}");
}

#[test]
fn a_second_init_on_a_connection_ends_it() {
    let node = node();
    let (mut raw, _) = request(&node, "A:routesync:0badcafe", &bytes(INIT));
    raw.send(&Publish::new("$LINK/cluster/route/A", &bytes(INIT)).acked(1, 3).bytes(V5));
    let packets = raw.closed(SHORT);
    assert!(packets.iter().any(|packet| packet.reason() == 0x83), "{packets:?}");
}

#[test]
fn a_flood_of_garbage_does_not_slow_local_traffic_to_a_halt() {
    let node = node();
    let subscriber = client(&node, 0, "sub");
    subscriber.subscribe("calm/t", 1);
    let publisher = client(&node, 1, "pub");
    let at = node.mqtt();
    let flood = std::thread::spawn(move || {
        for number in 0..300 {
            let mut raw = Raw::connect(at, &Connect::new(V5, &format!("A:msg:0badcafe:{number}")));
            let _ = raw.try_send(&Publish::new("$LINK/cluster/msg/A", &[131, 104, 3]).acked(1, 1).bytes(V5));
            drop(raw.next(SHORT));
        }
    });
    for number in 0..300 {
        publisher.publish("calm/t", 1, false, number.to_string().as_bytes());
        assert_eq!(subscriber.message().text(), number.to_string());
    }
    flood.join().expect("every connection of the flood is accepted and answered");
    node.counter_reaches("shed_link_malformed", 300);
}
