//! Malformed packets and protocol errors: they close their own connection, with the right reason in 5.0,
//! and nobody else's.

use crate::{assert_told_why, client, node};
use harness::raw::Raw;
use harness::wire::{self, Connect, Publish, V5, V311, kind, packet};
use harness::{LONG, SHORT};
use std::time::Duration;

/// How long an offence may stay unanswered. Shorter than other bounds, for there are many of them.
const REACTION: Duration = Duration::from_secs(2);

const MALFORMED: u8 = 0x81;
const PROTOCOL_ERROR: u8 = 0x82;

/// One offence: what it is, its bytes after CONNECT, and the reasons that may answer it.
type Offence = (&'static str, Vec<u8>, &'static [u8]);

fn offences() -> Vec<Offence> {
    let publish = |qos: u8, id: u16| Publish::new("t", b"x").acked(qos, id).bytes(V5);
    let property = |bytes: &'static [u8]| Publish { properties: bytes, ..Publish::new("t", b"x") }.bytes(V5);
    const EITHER: &[u8] = &[MALFORMED, PROTOCOL_ERROR];
    vec![
        ("a length of five bytes", vec![0x30, 0xff, 0xff, 0xff, 0xff, 0x01], &[MALFORMED]),
        ("packet type 0", packet(0x00, &[]), EITHER),
        ("reserved flags of SUBSCRIBE", packet(0x80, &[0, 1, 0, 0, 1, b't', 0]), &[MALFORMED]),
        ("reserved flags of PUBREL", packet(0x60, &[0, 1]), &[MALFORMED]),
        ("QoS 3", packet(0x36, b"\0\x01t\0\x01\0x"), &[MALFORMED]),
        ("packet id 0", publish(1, 0), EITHER),
        ("a wildcard in a topic", Publish::new("a/+/b", b"x").bytes(V5), &[MALFORMED, PROTOCOL_ERROR, 0x90]),
        ("a topic that is not UTF-8", packet(0x30, b"\0\x02\xc3\x28\0x"), &[MALFORMED]),
        ("a zero byte in a topic", Publish::new("a\0b", b"x").bytes(V5), &[MALFORMED, 0x90]),
        ("an encoded surrogate in a topic", packet(0x30, b"\0\x03\xed\xa0\x80\0x"), &[MALFORMED]),
        ("a topic longer than its packet", packet(0x30, b"\0\xfft"), &[MALFORMED]),
        ("an empty topic without an alias", Publish::new("", b"x").bytes(V5), EITHER),
        ("properties longer than their packet", packet(0x30, b"\0\x01t\x50x"), &[MALFORMED]),
        ("an unknown property", property(&[0x7e, 0x00]), &[MALFORMED]),
        ("a property of another packet", property(&[0x21, 0x00, 0x05]), EITHER),
        ("a property twice", property(&[0x01, 0x00, 0x01, 0x01]), EITHER),
        ("a format indicator of 2", property(&[0x01, 0x02]), EITHER),
        ("topic alias 0", property(&[0x23, 0x00, 0x00]), &[0x94, PROTOCOL_ERROR]),
        ("a subscription identifier from a client", property(&[0x0b, 0x01]), &[PROTOCOL_ERROR]),
        ("a wildcard in a response topic", property(&[0x08, 0x00, 0x01, b'#']), EITHER),
        ("SUBSCRIBE without a filter", packet(0x82, &[0, 1, 0]), EITHER),
        ("SUBSCRIBE options with reserved bits", wire::subscribe(V5, 1, "t", 0xc0), &[MALFORMED, PROTOCOL_ERROR]),
        ("retain handling 3", wire::subscribe(V5, 1, "t", 0x30), EITHER),
        ("no local on a shared subscription", wire::subscribe(V5, 1, "$share/g/t", 0x04), &[PROTOCOL_ERROR]),
        ("UNSUBSCRIBE without a filter", packet(0xa2, &[0, 1, 0]), EITHER),
        ("a second CONNECT", Connect::new(V5, "twice").bytes(), &[PROTOCOL_ERROR]),
        ("CONNACK from a client", packet(0x20, &[0, 0, 0]), &[PROTOCOL_ERROR, MALFORMED]),
        ("PINGREQ with a body", packet(0xc0, &[1]), &[MALFORMED]),
        ("PUBACK of one byte", packet(0x40, &[1]), &[MALFORMED]),
        ("AUTH that nobody began", packet(0xf0, &[0x18, 0]), &[PROTOCOL_ERROR, MALFORMED, 0x8c]),
    ]
}

#[test]
fn a_malformed_packet_closes_its_connection_with_the_reason() {
    let mut witness = Raw::connect(node().mqtt(), &Connect::new(V5, &client(0, "witness")));
    witness.subscribe("offence/witness", 1);
    let mut wrong = Vec::new();
    for (index, (what, bytes, reasons)) in (0_u16..).zip(offences()) {
        let id = client(index % crate::SHARDS, "offender");
        let mut raw = Raw::connect(node().mqtt(), &Connect::new(V5, &id));
        raw.send(&bytes);
        match ended(&mut raw) {
            Err(()) => wrong.push(format!("{what}: still open")),
            Ok(None) => wrong.push(format!("{what}: closed without DISCONNECT")),
            Ok(Some(reason)) if reasons.contains(&reason) => {}
            Ok(Some(reason)) => wrong.push(format!("{what}: reason {reason:#04x}, not of {reasons:#04x?}")),
        }
    }
    if harness::foreign::executable().is_some() {
        // The foreign broker lets some pass and says little: to be read, not to be judged.
        harness::skip::note(&wrong.join("; "));
        wrong.clear();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    witness.publish_to_itself("offence/witness");
}

/// How the broker ended a connection: the reason of its DISCONNECT if it sent one, or not at all.
fn ended(raw: &mut Raw) -> Result<Option<u8>, ()> {
    let mut reason = None;
    while let Some(packet) = raw.poll(REACTION)? {
        if packet.kind == kind::DISCONNECT {
            reason = Some(packet.reason());
        }
    }
    Ok(reason)
}

#[test]
fn a_malformed_packet_in_3_1_1_closes_without_a_word() {
    for (what, bytes) in [
        ("QoS 3", packet(0x36, b"\0\x01t\0\x01x")),
        ("reserved flags of SUBSCRIBE", packet(0x80, &[0, 1, 0, 1, b't', 0])),
        ("a wildcard in a topic", Publish::new("#", b"x").bytes(V311)),
        ("SUBSCRIBE at QoS 3", wire::subscribe(V311, 1, "t", 3)),
        ("an empty topic", Publish::new("", b"x").bytes(V311)),
        ("AUTH", packet(0xf0, &[])),
    ] {
        let mut raw = Raw::connect(node().mqtt(), &Connect::new(V311, &client(1, "offender311")));
        raw.send(&bytes);
        assert_eq!(raw.closed(SHORT), [], "{what}: 3.1.1 has no DISCONNECT from the server");
    }
}

#[test]
fn a_bad_connect_is_refused_and_closed() {
    let good = |version: u8| Connect::new(version, &client(0, "bad-connect")).bytes();
    let with = |at: usize, byte: u8| {
        let mut bytes = good(V5);
        bytes[at] = byte;
        bytes
    };
    // In the packet: 0 type, 1 length, 2.. name, 8 level, 9 flags, 10..11 keep-alive, 12 properties.
    let cases: [(&str, Vec<u8>, &[u8]); 7] = [
        ("protocol level 9", with(8, 9), &[0x84, 0x01]),
        ("another protocol name", with(4, b'X'), &[0x84, MALFORMED, 0x01]),
        ("the reserved flag", with(9, 0x03), &[MALFORMED]),
        ("a will of QoS 3", with(9, 0x1e), &[MALFORMED]),
        ("will flags without a will", with(9, 0x22), &[MALFORMED, PROTOCOL_ERROR]),
        ("properties longer than the packet", with(12, 0x70), &[MALFORMED]),
        ("reserved bits of the first byte", with(0, 0x11), &[MALFORMED]),
    ];
    for (what, bytes, reasons) in cases {
        let mut raw = node().raw();
        raw.send(&bytes);
        // A refusal in words is allowed, a silent close too; acceptance is neither.
        for packet in raw.closed(SHORT) {
            assert_eq!(packet.kind, kind::CONNACK, "{what}: {packet:?}");
            assert!(reasons.contains(&packet.reason()), "{what}: {packet:?}");
        }
    }
}

#[test]
fn an_unknown_version_is_told_so() {
    let mut raw = node().raw();
    let mut bytes = Connect::new(V5, &client(0, "future")).bytes();
    bytes[8] = 6;
    raw.send(&bytes);
    let packets = raw.closed(SHORT);
    assert_eq!(packets.len(), 1, "{packets:?}");
    assert!([0x84, 0x01].contains(&packets[0].reason()), "{packets:?}");
}

#[test]
fn an_empty_client_id_without_clean_session_is_refused_in_3_1_1() {
    let connect = Connect { clean: false, ..Connect::new(V311, "") };
    let (mut raw, connack) = Raw::connack(node().mqtt(), &connect);
    assert_eq!(connack.reason(), 2, "identifier rejected");
    raw.closed(SHORT);
}

#[test]
fn a_first_packet_that_is_not_connect_is_not_answered() {
    for (what, bytes) in [
        ("PUBLISH", Publish::new("t", b"x").bytes(V311)),
        ("PINGREQ", wire::pingreq()),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("zeros", vec![0; 64]),
        ("ones", vec![0xff; 64]),
    ] {
        let mut raw = node().raw();
        // The broker may close before the last byte is written.
        let _ = raw.try_send(&bytes);
        assert_eq!(raw.closed(LONG), [], "{what}");
    }
}

#[test]
fn a_packet_beyond_the_maximum_is_refused_by_its_length_alone() {
    let (mut raw, connack) = Raw::connack(node().mqtt(), &Connect::new(V5, &client(1, "huge")));
    assert_eq!(connack.reason(), 0);
    // A PUBLISH of 256 MB less one is announced and never sent.
    raw.send(&[0x30, 0xff, 0xff, 0xff, 0x7f, 0x00, 0x01, b't', 0x00]);
    let packets = raw.closed(SHORT);
    assert_told_why(&packets, &[0x95], "packet too large");
}

#[test]
fn a_huge_connect_is_refused_before_it_is_stored() {
    let mut raw = node().raw();
    let mut bytes = vec![0x10, 0xff, 0xff, 0xff, 0x7f];
    bytes.extend(&Connect::new(V5, "huge").bytes()[2..]);
    raw.send(&bytes);
    for packet in raw.closed(SHORT) {
        assert_eq!((packet.kind, packet.reason()), (kind::CONNACK, 0x95), "{packet:?}");
    }
}

#[test]
fn a_client_that_exceeds_the_receive_maximum_is_stopped() {
    harness::needs_own_broker!();
    // A QoS 2 publish counts until PUBREL; this client never sends one.
    let mut raw = Raw::connect(node().mqtt(), &Connect::new(V5, &client(2, "greedy")));
    let mut bytes = Vec::new();
    for id in 1..=u16::MAX {
        bytes.extend(Publish::new("greedy/t", b"").acked(2, id).bytes(V5));
    }
    let mut writer = raw.writer();
    let writing = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &bytes));
    let packets = raw.closed(LONG);
    let _ = writing.join().expect("the writer does not panic");
    // A reset may overtake the DISCONNECT, for our own bytes were not read; if it came, it says why.
    if let Some(last) = packets.iter().find(|packet| packet.kind == kind::DISCONNECT) {
        assert_eq!(last.reason(), 0x93);
    }
}

#[test]
fn random_bytes_close_only_their_own_connection() {
    let mut witness = Raw::connect(node().mqtt(), &Connect::new(V5, &client(2, "calm")));
    witness.subscribe("calm/t", 1);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        // xorshift64: any stream will do that is the same in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..120 {
        let mut raw = if round % 2 == 0 {
            node().raw()
        } else {
            let id = client(round % crate::SHARDS, "noise");
            Raw::connect(node().mqtt(), &Connect::new(V5, &id))
        };
        let length = (random() % 300) as usize;
        let bytes: Vec<u8> = (0..length).map(|_| random() as u8).collect();
        let _ = raw.try_send(&bytes);
        raw.shut_writing();
        // Whatever was understood of it, our end is closed, so theirs follows.
        drop(raw.closed(LONG));
    }
    witness.publish_to_itself("calm/t");
}

/// A connection that hears its own publish is served.
trait Witness {
    fn publish_to_itself(&mut self, topic: &str);
}

impl Witness for Raw {
    fn publish_to_itself(&mut self, topic: &str) {
        self.send(&Publish::new(topic, b"still served").acked(1, 77).bytes(V5));
        let kinds = [self.next(SHORT), self.next(SHORT)].map(|packet| packet.expect("it stays open").kind);
        assert!(kinds.contains(&kind::PUBLISH) && kinds.contains(&kind::PUBACK), "{kinds:?}");
    }
}
