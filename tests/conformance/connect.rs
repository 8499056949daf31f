//! CONNECT (3.1): what is checked, what becomes of the session, and who is let in.

use crate::packets::{Properties, connect_of, four, id, pair, text};
use crate::{At, BOTH, V31, everywhere, where_little_is_allowed};
use harness::raw::Raw;
use harness::wire::{self, Connect, Publish, V5, V311, kind};
use harness::{LONG, SHORT};
use std::time::{Duration, Instant};

/// Session Expiry Interval of ten minutes.
pub fn ten_minutes() -> Vec<u8> {
    four(id::SESSION_EXPIRY, 600)
}

/// A CONNECT that keeps its session.
pub fn keep<'a>(version: u8, id: &'a str, ten_minutes: &'a [u8]) -> Connect<'a> {
    Connect { clean: false, properties: if version == V5 { ten_minutes } else { &[] }, ..Connect::new(version, id) }
}

/// Sends bytes as the first of a connection and gives what comes until the broker closes.
#[track_caller]
pub fn refused(at: &At, bytes: &[u8]) -> Vec<wire::Packet> {
    let mut raw = at.node.raw();
    // The broker may close before the last byte is written.
    let _ = raw.try_send(bytes);
    raw.closed(SHORT)
}

/// Sends a CONNECT that is wrong in form: closed, in 5.0 possibly after a CONNACK that refuses.
#[track_caller]
fn malformed(at: &At, version: u8, what: &str, bytes: &[u8]) {
    let packets = refused(at, bytes);
    for packet in &packets {
        assert_eq!(version, V5, "{what}: 3.1.1 closes without a word: {packets:?}");
        assert_eq!(packet.kind, kind::CONNACK, "{what}: {packets:?}");
        assert!(packet.reason() >= 0x80, "{what}: {packets:?}");
    }
}

//= MQTT-3.1.0-1
//= MQTT311-3.1.0-1
#[test]
fn the_first_packet_has_to_be_connect() {
    everywhere(|at| {
        for version in BOTH {
            for first in [
                Publish::new("t", b"x").bytes(version),
                wire::subscribe(version, 1, "t", 0),
                wire::pingreq(),
                wire::disconnect(),
            ] {
                assert_eq!(refused(at, &first), []);
            }
        }
    });
}

//= MQTT-3.1.0-2
//= MQTT311-3.1.0-2
#[test]
fn a_second_connect_closes() {
    everywhere(|at| {
        for version in BOTH {
            let id = at.id();
            // In whatever form, also in one that no first CONNECT may have.
            for second in [Connect::new(version, &id).bytes(), wire::packet(0x10, b"\0\x04MQTX")] {
                let mut raw = Raw::connect(at.mqtt(), &Connect::new(version, &id));
                raw.send(&second);
                let packets = raw.closed(SHORT);
                if version == V5 {
                    assert_eq!((packets[0].kind, packets[0].reason()), (kind::DISCONNECT, 0x82));
                } else {
                    assert_eq!(packets, []);
                }
            }
        }
    });
}

//= MQTT-3.1.2-1
//= MQTT311-3.1.2-1
#[test]
fn another_protocol_name_is_not_served() {
    everywhere(|at| {
        for version in BOTH {
            for name in [&b"MQTX"[..], b"mqtt", b"MQTTT", b"", b"MQIsdp"] {
                let mut bytes = vec![];
                wire::put_bytes(&mut bytes, name);
                bytes.extend([version, 2, 0, 0]);
                if version == V5 {
                    bytes.push(0);
                }
                wire::put_bytes(&mut bytes, b"c");
                let packets = refused(at, &wire::packet(0x10, &bytes));
                assert!(packets.iter().all(|packet| packet.reason() != 0), "{name:?}: {packets:?}");
            }
        }
    });
}

//= MQTT-3.1.2-2
//= MQTT311-3.1.2-2
#[test]
fn an_unknown_version_is_refused_in_words_that_its_client_knows() {
    everywhere(|at| {
        for (level, reason) in [(0, 1), (3, 1), (6, 0x84), (127, 0x84)] {
            let id = at.id();
            let mut bytes = Connect::new(if level < 5 { V311 } else { V5 }, &id).bytes();
            bytes[8] = level;
            let packets = refused(at, &bytes);
            assert_eq!(packets.len(), 1, "level {level}: {packets:?}");
            assert_eq!((packets[0].kind, packets[0].reason()), (kind::CONNACK, reason), "level {level}");
        }
    });
}

//= MQTT-3.1.2-3
//= MQTT-3.1.2-11
//= MQTT-3.1.2-12
//= MQTT-3.1.2-13
//= MQTT-3.1.4-1
//= MQTT311-3.1.2-3
//= MQTT311-3.1.2-11
//= MQTT311-3.1.2-13
//= MQTT311-3.1.2-14
//= MQTT311-3.1.2-15
//= MQTT311-3.1.4-1
//= MQTT311-3.2.2-6
#[test]
fn connect_flags_that_do_not_exist_close() {
    everywhere(|at| {
        for version in BOTH {
            for (what, flags) in [
                ("the reserved flag", 0x03),
                ("a will QoS without a will", 0x0a),
                ("a will retain without a will", 0x22),
            ] {
                malformed(at, version, what, &connect_of(version, flags, &[], &[at.id().as_bytes()]));
            }
            let id = at.id();
            let mut will_of_qos_3 = Connect { will: Some(("t", b"x", 2, false)), ..Connect::new(version, &id) }.bytes();
            will_of_qos_3[9] |= 0x18;
            malformed(at, version, "a will of QoS 3", &will_of_qos_3);
        }
    });
}

//= MQTT-3.1.2-9
//= MQTT-3.1.2-16
//= MQTT-3.1.2-17
//= MQTT-3.1.2-18
//= MQTT-3.1.2-19
//= MQTT-3.1.3-3
//= MQTT311-3.1.2-9
//= MQTT311-3.1.2-11
//= MQTT311-3.1.2-18
//= MQTT311-3.1.2-19
//= MQTT311-3.1.2-20
//= MQTT311-3.1.2-21
//= MQTT311-3.1.3-3
#[test]
fn flags_and_fields_of_connect_have_to_agree() {
    everywhere(|at| {
        for version in BOTH {
            let own = at.id();
            let id = own.as_bytes();
            for (what, flags, fields) in [
                ("no client id", 0x02, &[][..]),
                ("a field without a flag", 0x02, &[id, b"name"]),
                ("a user name flag without a name", 0x82, &[id]),
                ("a password flag without a password", 0xc2, &[id, b"name"]),
                ("a password without a flag", 0x82, &[id, b"name", b"secret"]),
                ("a will flag without a will", 0x06, &[id]),
                ("a will without its message", 0x06, &[id, b"topic"]),
            ] {
                malformed(at, version, what, &connect_of(version, flags, &[], fields));
            }
        }
    });
}

//= MQTT-3.1.2-9
//= MQTT-3.1.3-1
//= MQTT311-3.1.3-1
#[test]
fn the_fields_of_connect_are_read_in_their_order() {
    everywhere(|at| {
        for version in BOTH {
            let (own, topic) = (at.id(), at.topic());
            let mut heir = at.client(version);
            heir.subscribe(&topic, 0);
            let mut raw = at.node.raw();
            raw.speak(version);
            let message: &[u8] = b"last words";
            // The will properties are a field without a length of its own kind: one byte, 0.
            let mut bytes = connect_of(version, 0xc6, &[], &[own.as_bytes()]);
            let mut rest = if version == V5 { vec![0] } else { vec![] };
            for field in [topic.as_bytes(), message, b"name", b"secret"] {
                wire::put_bytes(&mut rest, field);
            }
            bytes[1] += rest.len() as u8;
            bytes.extend(rest);
            raw.send(&bytes);
            assert_eq!(raw.expect(kind::CONNACK).reason(), 0);
            drop(raw);
            let will = heir.message();
            assert_eq!((will.topic, will.payload), (topic, message.to_vec()));
        }
    });
}

//= MQTT311-3.1.2-22
#[test]
fn a_password_without_a_user_name_is_legal_only_in_5_0() {
    everywhere(|at| {
        let own = at.id();
        let connect = |version| connect_of(version, 0x42, &[], &[own.as_bytes(), b"secret"]);
        malformed(at, V311, "a password alone", &connect(V311));
        let mut raw = at.node.raw();
        raw.send(&connect(V5));
        assert_eq!(raw.expect(kind::CONNACK).reason(), 0);
    });
}

//= MQTT-1.5.4-1
//= MQTT-1.5.4-2
//= MQTT-3.1.3-4
//= MQTT-3.1.3-11
//= MQTT-3.1.3-12
//= MQTT311-1.5.3-1
//= MQTT311-1.5.3-2
//= MQTT311-3.1.3-4
//= MQTT311-3.1.3-10
//= MQTT311-3.1.3-11
#[test]
fn strings_of_connect_that_are_no_utf_8_close() {
    everywhere(|at| {
        for version in BOTH {
            let own = at.id();
            let id = own.as_bytes();
            for bad in [&b"\xc3\x28"[..], b"\xed\xa0\x80", b"\xed\xbf\xbf", b"a\0b", b"\xf4\x90\x80\x80", b"\xc0\x80"] {
                malformed(at, version, "client id", &connect_of(version, 0x02, &[], &[bad]));
                malformed(at, version, "user name", &connect_of(version, 0x82, &[], &[id, bad]));
                if version == V311 {
                    malformed(at, version, "will topic", &connect_of(version, 0x06, &[], &[id, bad, b"x"]));
                } else {
                    let mut bytes = connect_of(version, 0x06, &[], &[id]);
                    let mut rest = vec![0];
                    wire::put_bytes(&mut rest, bad);
                    wire::put_bytes(&mut rest, b"x");
                    bytes[1] += rest.len() as u8;
                    bytes.extend(rest);
                    malformed(at, version, "will topic", &bytes);
                    malformed(at, version, "user property", &connect_of(version, 2, &text_pair(bad), &[id]));
                }
            }
        }
    });
}

fn text_pair(bad: &[u8]) -> Vec<u8> {
    let mut property = text(id::USER_PROPERTY, "name");
    wire::put_bytes(&mut property, bad);
    property
}

//= MQTT-3.1.2-4
//= MQTT-3.1.4-4
//= MQTT-3.2.2-2
//= MQTT311-3.1.2-6
//= MQTT311-3.1.4-3
//= MQTT311-3.2.2-1
#[test]
fn a_clean_start_discards_the_session() {
    everywhere(|at| {
        for version in BOTH {
            let (own, topic, expiry) = (at.id(), at.topic(), ten_minutes());
            let mut old = Raw::connect(at.mqtt(), &keep(version, &own, &expiry));
            old.subscribe(&topic, 1);
            drop(old);
            at.client(version).publish_acked(&topic, b"for the old session", 1);
            let (mut new, connack) = at.connack(&Connect::new(version, &own));
            assert_eq!((connack.session_present(), connack.reason()), (false, 0));
            at.client(version).publish_acked(&topic, b"nobody wants it", 1);
            new.ping();
            // Nor does what it leaves behind come back.
            drop(new);
            let (mut again, connack) = at.connack(&keep(version, &own, &expiry));
            assert!(!connack.session_present());
            again.ping();
        }
    });
}

//= MQTT-3.1.2-5
//= MQTT-3.1.2-23
//= MQTT-3.1.3-2
//= MQTT-3.2.2-3
//= MQTT-4.5.0-1
//= MQTT311-3.1.2-4
//= MQTT311-3.1.2-5
//= MQTT311-3.1.3-2
//= MQTT311-3.2.2-2
//= MQTT311-4.1.0-1
//= MQTT311-4.5.0-1
#[test]
fn a_session_goes_on_with_its_subscriptions_and_its_messages() {
    everywhere(|at| {
        for version in BOTH {
            let (own, topic, expiry) = (at.id(), at.topic(), ten_minutes());
            let mut first = Raw::connect(at.mqtt(), &keep(version, &own, &expiry));
            first.subscribe(&topic, 2);
            drop(first);
            let mut publisher = at.client(version);
            publisher.publish_acked(&topic, b"while away", 1);
            let (mut second, connack) = at.connack(&keep(version, &own, &expiry));
            assert!(connack.session_present());
            assert_eq!(second.message().payload, b"while away");
            publisher.publish_acked(&topic, b"after that", 2);
            assert_eq!(second.message().payload, b"after that");
            // Another client id has another session.
            let other = at.id();
            let (mut stranger, connack) = at.connack(&keep(version, &other, &expiry));
            assert!(!connack.session_present());
            stranger.ping();
        }
    });
}

//= MQTT-3.1.2-6
//= MQTT-3.2.2-1
//= MQTT311-3.2.2-3
#[test]
fn without_a_session_there_is_a_new_one() {
    everywhere(|at| {
        for version in BOTH {
            let (own, expiry) = (at.id(), ten_minutes());
            let (mut raw, connack) = at.connack(&keep(version, &own, &expiry));
            assert_eq!((connack.body[0], connack.reason()), (0, 0));
            raw.send(&wire::disconnect());
            raw.closed(SHORT);
            let (_raw, connack) = at.connack(&keep(version, &own, &expiry));
            assert_eq!((connack.body[0], connack.reason()), (1, 0), "only the first bit may be set");
        }
    });
}

//= MQTT-3.1.3-5
//= MQTT311-3.1.3-5
#[test]
fn ids_of_1_to_23_letters_and_digits_are_allowed() {
    everywhere(|at| {
        let alphabet = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
        for version in [V31, V311, V5] {
            for piece in alphabet.as_bytes().chunks(23) {
                for id in [std::str::from_utf8(&piece[..1]).unwrap(), std::str::from_utf8(piece).unwrap()] {
                    let (_raw, connack) = at.connack(&Connect::new(version, id));
                    assert_eq!(connack.reason(), 0, "{id}");
                }
            }
        }
    });
}

//= MQTT-3.1.3-6
//= MQTT-3.1.3-7
//= MQTT-3.2.2-16
//= MQTT311-3.1.3-6
#[test]
fn an_empty_id_gets_one_that_nobody_has() {
    everywhere(|at| {
        let mut seen = std::collections::BTreeSet::new();
        let mut clients = Vec::new();
        for _ in 0..8 {
            let (mut raw, connack) = at.connack(&Connect::new(V5, ""));
            assert_eq!(connack.reason(), 0);
            let assigned = Properties::of(&connack).bytes(id::ASSIGNED_CLIENT_ID).expect("it is told its id");
            assert!(seen.insert(assigned.clone()), "{assigned:?} twice");
            raw.ping();
            clients.push((raw, String::from_utf8(assigned).expect("a client id is UTF-8")));
            // 3.1.1 is not told, and has one all the same: another such client does not take it over.
            let (raw, connack) = at.connack(&Connect::new(V311, ""));
            assert_eq!(connack.reason(), 0);
            clients.push((raw, String::new()));
        }
        clients.iter_mut().for_each(|(raw, _)| raw.ping());
        // It is a client id like any other: who brings it takes over.
        let (mut raw, assigned) = clients.swap_remove(0);
        let mut twin = Raw::connect(at.mqtt(), &Connect::new(V5, &assigned));
        assert_eq!(raw.closed(SHORT).last().map(wire::Packet::reason), Some(0x8e));
        twin.ping();
    });
}

//= MQTT311-3.1.3-7
//= MQTT311-3.1.3-8
//= MQTT311-3.2.2-4
//= MQTT311-3.2.2-5
#[test]
fn an_empty_id_with_a_session_to_keep_is_refused_in_3_1_1() {
    everywhere(|at| {
        let (mut raw, connack) = at.connack(&Connect { clean: false, ..Connect::new(V311, "") });
        assert_eq!((connack.body[0], connack.reason()), (0, 2));
        assert_eq!(raw.closed(SHORT), []);
        let (_raw, connack) = at.connack(&Connect { clean: false, ..Connect::new(V5, "") });
        assert_eq!(connack.reason(), 0, "5.0 has no such rule");
    });
}

//= MQTT-3.1.3-8
//= MQTT-3.1.4-2
//= MQTT-3.2.2-6
//= MQTT-3.2.2-7
//= MQTT-3.2.2-8
//= MQTT-4.13.2-1
//= MQTT311-3.1.3-9
#[test]
fn a_client_id_that_is_not_accepted_is_refused_and_closed() {
    where_little_is_allowed(|at| {
        let long = "x".repeat(65);
        for (version, reason) in [(V311, 2), (V5, 0x85)] {
            let (mut raw, connack) = at.connack(&Connect { clean: false, ..Connect::new(version, &long) });
            assert_eq!((connack.body[0], connack.reason()), (0, reason));
            assert_eq!(raw.closed(SHORT), []);
        }
    });
}

//= MQTT-3.1.4-3
//= MQTT311-3.1.4-2
#[test]
fn a_second_connection_takes_over_and_the_first_is_told() {
    everywhere(|at| {
        for version in BOTH {
            for _ in 0..3 {
                let own = at.id();
                let mut first = Raw::connect(at.mqtt(), &Connect::new(version, &own));
                let mut second = Raw::connect(at.mqtt(), &Connect::new(version, &own));
                let packets = first.closed(SHORT);
                match packets.as_slice() {
                    [] => assert_eq!(version, V311),
                    [told] => assert_eq!((version, told.kind, told.reason()), (V5, kind::DISCONNECT, 0x8e)),
                    more => panic!("{more:?}"),
                }
                second.ping();
            }
        }
    });
}

//= MQTT-3.1.4-5
//= MQTT-3.2.0-1
//= MQTT-3.2.0-2
//= MQTT311-3.1.4-4
//= MQTT311-3.2.0-1
#[test]
fn connack_comes_first_and_once() {
    everywhere(|at| {
        for version in BOTH {
            let (own, topic, expiry) = (at.id(), at.topic(), ten_minutes());
            let mut first = Raw::connect(at.mqtt(), &keep(version, &own, &expiry));
            first.subscribe(&topic, 1);
            drop(first);
            at.client(version).publish_acked(&topic, b"waits", 1);
            // Everything at once: the answers still come behind CONNACK, and so does what was waiting.
            let mut raw = at.node.raw();
            raw.speak(version);
            let bytes = [keep(version, &own, &expiry).bytes(), wire::pingreq(), wire::pingreq()].concat();
            raw.send(&bytes);
            let mut kinds: Vec<u8> = (0..4).map(|_| raw.next(SHORT).expect("it stays open").kind).collect();
            assert_eq!(kinds.remove(0), kind::CONNACK);
            kinds.sort_unstable();
            assert_eq!(kinds, [kind::PUBLISH, kind::PINGRESP, kind::PINGRESP]);
            raw.ping();
        }
    });
}

//= MQTT-3.1.4-6
//= MQTT311-3.1.4-5
#[test]
fn nothing_after_a_refused_connect_is_looked_at() {
    everywhere(|at| {
        for version in BOTH {
            let (own, topic) = (at.id(), at.topic());
            let mut witness = at.client(version);
            witness.subscribe(&topic, 0);
            let mut bytes = connect_of(version, 0x03, &[], &[own.as_bytes()]);
            bytes.extend(Publish::new(&topic, b"smuggled").bytes(version));
            bytes.extend(Connect::new(version, &own).bytes());
            bytes.extend(Publish::new(&topic, b"smuggled").bytes(version));
            refused(at, &bytes);
            witness.ping();
        }
    });
}

//= MQTT-3.14.0-1
#[test]
fn no_disconnect_is_sent_before_connack() {
    everywhere(|at| {
        let own = at.id();
        for bytes in [
            connect_of(V5, 0x03, &[], &[own.as_bytes()]),
            connect_of(V5, 0x02, &text(id::AUTHENTICATION_METHOD, "unknown"), &[own.as_bytes()]),
            wire::packet(0x30, b"\0\x01t\0"),
        ] {
            let packets = refused(at, &bytes);
            assert!(packets.iter().all(|packet| packet.kind == kind::CONNACK), "{packets:?}");
        }
    });
}

//= MQTT-4.12.0-1
//= MQTT-4.12.0-6
#[test]
fn an_authentication_method_that_is_not_known_is_refused() {
    everywhere(|at| {
        let (own, method) = (at.id(), text(id::AUTHENTICATION_METHOD, "no-such-method"));
        let (mut raw, connack) = at.connack(&Connect { properties: &method, ..Connect::new(V5, &own) });
        assert!([0x8c, 0x87].contains(&connack.reason()), "{connack:?}");
        assert_eq!(Properties::of(&connack).bytes(id::AUTHENTICATION_METHOD), None);
        assert_eq!(raw.closed(SHORT), []);
        let (_raw, connack) = at.connack(&Connect::new(V5, &own));
        assert_eq!(Properties::of(&connack).bytes(id::AUTHENTICATION_METHOD), None);
    });
}

//= MQTT-3.1.2-22
//= MQTT-3.2.2-22
//= MQTT311-3.1.2-24
#[test]
fn one_and_a_half_keep_alives_of_silence_close() {
    everywhere(|at| {
        let silent = BOTH.map(|version| {
            let own = at.id();
            (version, Raw::connect(at.mqtt(), &Connect { keep_alive_s: 1, ..Connect::new(version, &own) }))
        });
        let (since, mut forever) = (Instant::now(), at.client(V5));
        for (version, mut raw) in silent {
            let packets = raw.closed(LONG);
            assert!(since.elapsed() >= Duration::from_millis(1400), "{:?}", since.elapsed());
            assert!(since.elapsed() < Duration::from_secs(6), "{:?}", since.elapsed());
            let told: Vec<u8> = packets.iter().map(wire::Packet::reason).collect();
            assert_eq!(told, if version == V5 { vec![0x8d] } else { vec![] });
        }
        // A keep alive of 0 is none.
        forever.ping();
    });
}

//= MQTT-3.1.3-10
#[test]
fn a_will_keeps_its_properties_and_their_order() {
    everywhere(|at| {
        let (own, topic) = (at.id(), at.topic());
        let properties = [
            pair("b", "1"),
            text(id::CONTENT_TYPE, "text/plain"),
            pair("a", "2"),
            text(id::RESPONSE_TOPIC, "answer"),
            pair("b", "1"),
            text(id::CORRELATION_DATA, [0, 255]),
            vec![id::PAYLOAD_FORMAT, 1],
        ]
        .concat();
        let mut heir = at.client(V5);
        heir.subscribe(&topic, 0);
        let will = Some((topic.as_str(), &b"bye"[..], 1, false));
        let raw = Raw::connect(at.mqtt(), &Connect { will, will_properties: &properties, ..Connect::new(V5, &own) });
        drop(raw);
        let got = Properties::read(&heir.message().properties);
        assert_eq!(got.all(id::USER_PROPERTY), Properties::read(&properties).all(id::USER_PROPERTY));
        for property in [id::CONTENT_TYPE, id::RESPONSE_TOPIC, id::CORRELATION_DATA, id::PAYLOAD_FORMAT] {
            assert_eq!(got.all(property), Properties::read(&properties).all(property));
        }
    });
}
