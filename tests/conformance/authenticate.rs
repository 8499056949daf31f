//! Enhanced authentication (4.12) with SCRAM-SHA-256: into a node, again while connected, and every way to break it.

use crate::packets::{Properties, id, text};
use crate::{At, Nodes, each, setup};
use harness::scram::{METHOD, Scram, auth, data_of, line, properties_of};
use harness::wire::{self, Connect, Packet, V5, kind, packet};
use harness::{Raw, SHORT};
use std::path::PathBuf;
use std::sync::OnceLock;

/// Shows a behaviour where clients prove themselves in several steps.
#[track_caller]
fn where_scram_is_known(behaviour: impl Fn(&At) + Sync) {
    static NODES: Nodes = [const { OnceLock::new() }; 3];
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a temporary directory").keep();
        harness::process::remove_at_end(&directory);
        let file = directory.join("scram");
        std::fs::write(&file, line("alice", "secret", 4096) + &line("bob", "other", 4096)).expect("it is writable");
        file
    });
    let chain = format!("[{{mechanism = \"scram\", path = {:?}}}]", file.display().to_string());
    each(&behaviour, |shards| {
        let chain = chain.clone();
        At::new(&NODES, shards, move || setup(shards).env("RINGMQ_AUTHENTICATION", chain).start())
    });
}

/// Sends CONNECT with the first step of somebody.
fn begun(at: &At, client: &str, scram: &Scram) -> Raw {
    let properties = properties_of(METHOD, &scram.first());
    let mut raw = at.node.raw();
    raw.speak(V5);
    raw.send(&Connect { properties: &properties, ..Connect::new(V5, client) }.bytes());
    raw
}

/// A client that was let in.
#[track_caller]
fn enter(at: &At) -> Raw {
    let (raw, connack) = Scram::new("alice", "secret").connect(at.mqtt(), &Connect::new(V5, &at.id()));
    assert_eq!(connack.reason(), 0, "{connack:?}");
    raw
}

/// The one last packet before the end.
#[track_caller]
fn last(raw: &mut Raw, kind: u8) -> Packet {
    let packets = raw.closed(SHORT);
    assert!(packets.len() == 1 && packets[0].kind == kind, "{packets:?}");
    packets[0].clone()
}

//= MQTT-4.12.0-2
//= MQTT-4.12.0-3
//= MQTT-4.12.0-5
#[test]
fn a_client_comes_in_step_by_step_and_each_step_names_its_method() {
    where_scram_is_known(|at| {
        let mut alice = Scram::new("alice", "secret");
        let mut raw = begun(at, &at.id(), &alice);
        let challenge = raw.expect(kind::AUTH);
        assert_eq!(challenge.reason(), 0x18);
        let method = |packet: &Packet| Properties::of(packet).bytes(id::AUTHENTICATION_METHOD);
        assert_eq!(method(&challenge), Some(METHOD.into()));
        let step = alice.last(&data_of(&challenge));
        // What follows the last step is served behind CONNACK.
        raw.send(&[auth(0x18, METHOD, &step), wire::pingreq()].concat());
        let connack = raw.expect(kind::CONNACK);
        assert_eq!((connack.reason(), method(&connack)), (0, Some(METHOD.into())));
        let proof = Properties::of(&connack).bytes(id::AUTHENTICATION_DATA).expect("the server's last word");
        assert!(alice.believes(&proof));
        raw.expect(kind::PINGRESP);
    });
}

//= MQTT-3.1.2-30
//= MQTT-4.12.0-3
//= MQTT-4.12.0-4
//= MQTT-4.12.0-5
#[test]
fn what_is_no_next_step_is_refused_before_connack() {
    where_scram_is_known(|at| {
        let method_alone = [&[0x18, 16][..], &text(id::AUTHENTICATION_METHOD, METHOD)].concat();
        for (what, bytes, reason) in [
            ("again", auth(0x19, METHOD, b"x"), 0x82),
            ("success", auth(0, METHOD, b"x"), 0x82),
            ("another method", auth(0x18, "SCRAM-SHA-1", b"x"), 0x82),
            ("no method", packet(0xf0, &[]), 0x82),
            ("no data", packet(0xf0, &method_alone), 0x87),
            ("no proof", auth(0x18, METHOD, b"c=biws,r=x"), 0x87),
            ("a ping", wire::pingreq(), 0x82),
            ("a publish", wire::Publish::new("t", b"m").bytes(V5), 0x82),
            ("flags", packet(0xf1, &[]), 0x81),
        ] {
            let mut raw = begun(at, &at.id(), &Scram::new("alice", "secret"));
            raw.expect(kind::AUTH);
            raw.send(&bytes);
            assert_eq!(last(&mut raw, kind::CONNACK).reason(), reason, "{what}");
        }
        let mut raw = begun(at, &at.id(), &Scram::new("alice", "secret"));
        raw.expect(kind::AUTH);
        raw.send(&wire::disconnect());
        assert_eq!(raw.closed(SHORT), [], "a client may leave without a word from us");
    });
}

//= MQTT-4.12.0-4
#[test]
fn who_does_not_prove_itself_is_refused_and_a_stranger_looks_like_everybody() {
    where_scram_is_known(|at| {
        let mut shapes = Vec::new();
        for (user, password) in [("alice", "wrong"), ("alice", ""), ("eve", "secret"), ("", "secret")] {
            let mut scram = Scram::new(user, password);
            let mut raw = begun(at, &at.id(), &scram);
            let challenge = data_of(&raw.expect(kind::AUTH));
            let text = String::from_utf8(challenge.clone()).expect("it is text");
            shapes.push(text.split(',').map(|part| part[..2].to_owned()).collect::<Vec<_>>());
            raw.send(&auth(0x18, METHOD, &scram.last(&challenge)));
            assert_eq!(last(&mut raw, kind::CONNACK).reason(), 0x87, "{user} {password:?}");
        }
        assert!(shapes.iter().all(|shape| *shape == ["r=", "s=", "i="]), "{shapes:?}");
        for first in ["p=tls-unique,,n=alice,r=12345678", "n,a=bob,n=alice,r=12345678", "nonsense", ""] {
            let properties = properties_of(METHOD, first.as_bytes());
            let (mut raw, connack) = at.connack(&Connect { properties: &properties, ..Connect::new(V5, &at.id()) });
            assert_eq!(connack.reason(), 0x87, "{first}");
            assert_eq!(raw.closed(SHORT), []);
        }
        let (_, connack) =
            Scram::new("alice", "secret").connect(at.mqtt(), &Connect::new(V5, &at.id()).login("bob", "x"));
        assert_eq!(connack.reason(), 0x87, "CONNECT names somebody else");
    });
}

/// Takes both steps of a re-authentication; gives what came last.
#[track_caller]
fn again(raw: &mut Raw, mut scram: Scram, between: impl FnOnce(&mut Raw)) -> Option<Packet> {
    raw.send(&auth(0x19, METHOD, &scram.first()));
    let challenge = raw.expect(kind::AUTH);
    assert_eq!(challenge.reason(), 0x18);
    between(raw);
    raw.send(&auth(0x18, METHOD, &scram.last(&data_of(&challenge))));
    let answer = raw.next(SHORT)?;
    if answer.kind == kind::AUTH {
        assert!(answer.reason() == 0 && scram.believes(&data_of(&answer)), "{answer:?}");
    }
    Some(answer)
}

//= MQTT-4.12.1-1
#[test]
fn a_connected_client_proves_itself_again_and_everything_else_goes_on() {
    where_scram_is_known(|at| {
        let mut raw = enter(at);
        let topic = at.topic();
        for _ in 0..2 {
            let answer = again(&mut raw, Scram::new("alice", "secret"), |raw| {
                raw.subscribe(&topic, 1);
                raw.send(&wire::Publish::new(&topic, b"m").bytes(V5));
                assert_eq!(raw.message().payload, b"m");
            });
            assert_eq!(answer.expect("it stays").kind, kind::AUTH);
        }
        raw.ping();
    });
}

//= MQTT-4.12.0-3
//= MQTT-4.12.0-5
//= MQTT-4.12.1-1
//= MQTT-4.12.1-2
#[test]
fn a_failed_re_authentication_ends_the_connection_with_a_reason() {
    where_scram_is_known(|at| {
        for (user, password) in [("alice", "wrong"), ("bob", "other"), ("eve", "secret")] {
            let mut raw = enter(at);
            let answer = again(&mut raw, Scram::new(user, password), Raw::ping).expect("a last word");
            assert_eq!((answer.kind, answer.reason()), (kind::DISCONNECT, 0x87), "{user}");
            assert_eq!(raw.closed(SHORT), []);
        }
        let first = Scram::new("alice", "secret").first();
        for (what, bytes) in [
            ("another method", auth(0x19, "SCRAM-SHA-1", &first)),
            ("no method", packet(0xf0, &[0x19, 0])),
            ("the second step first", auth(0x18, METHOD, &first)),
            ("success", auth(0, METHOD, &first)),
            ("twice", [auth(0x19, METHOD, &first), auth(0x19, METHOD, &first)].concat()),
        ] {
            let mut raw = enter(at);
            raw.send(&bytes);
            let said = raw.closed(SHORT);
            let last = said.last().expect("a last word");
            assert!(last.kind == kind::DISCONNECT && [0x81, 0x82].contains(&last.reason()), "{what}: {said:?}");
        }
    });
}

//= MQTT-3.15.2-2
//= MQTT-3.15.2-3
#[test]
fn auth_is_never_larger_than_the_client_takes_and_says_nothing_beside_its_data() {
    where_scram_is_known(|at| {
        let client = at.id();
        let challenge = |bytes_max: u32| {
            let first = Scram::new("alice", "secret").first();
            let size = [&[0x27][..], &bytes_max.to_be_bytes()].concat();
            let properties = [size, properties_of(METHOD, &first)].concat();
            let mut raw = at.node.raw();
            raw.speak(V5);
            raw.send(&Connect { properties: &properties, ..Connect::new(V5, &client) }.bytes());
            raw.next(SHORT).expect("an answer")
        };
        let whole = challenge(u32::MAX);
        let found = Properties::of(&whole);
        let all = |id| found.all(id).len();
        assert_eq!((found.0.len(), all(id::REASON_STRING), all(id::USER_PROPERTY)), (2, 0, 0));
        let bytes = wire::packet(0xf0, &whole.body).len() as u32;
        assert_eq!(challenge(bytes).kind, kind::AUTH, "it fits exactly");
        let refused = challenge(bytes - 1);
        assert_eq!(refused.kind, kind::CONNACK, "it does not fit");
        assert!(refused.reason() >= 0x80);
    });
}
