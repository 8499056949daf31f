//! Clients that prove themselves in several steps: files that `ringmq passwd --scram` writes, changes while clients are
//! connected, and strangers who try to learn something.

use crate::{Guarded, enter, passwords, reload};
use harness::scram::{METHOD, Scram, auth, data_of, line, properties_of};
use harness::wire::{Connect, V5, kind};
use harness::{LONG, Node, Program, Raw, SHORT, Setup, client_on, skip};

/// Passwords in a file and the file of SCRAM beside it.
fn guarded(shards: u16, users: &str, more: &str) -> (Guarded, Setup) {
    let guarded = Guarded::new(shards, &passwords(&[("carol", "plain")]), None, more);
    guarded.write("scram", users);
    let [plain, scram] = ["passwords", "scram"].map(|name| guarded.path(name).display().to_string());
    let chain = format!("[{{path = {plain:?}}}, {{mechanism = \"scram\", path = {scram:?}}}]");
    let setup = guarded.setup.clone().env("RINGMQ_AUTHENTICATION", chain);
    (guarded, setup)
}

#[track_caller]
fn prove(node: &Node, client: &str, user: &str, password: &str) -> (Raw, u8) {
    let (raw, connack) = Scram::new(user, password).connect(node.mqtt(), &Connect::new(V5, client));
    (raw, connack.reason())
}

#[test]
fn ringmq_passwd_writes_what_clients_prove_themselves_by() {
    let (guarded, setup) = guarded(3, "# nobody yet\n", "");
    let file = guarded.path("scram").display().to_string();
    for (user, password) in [("alice", "first\n"), ("alice", "a, b=c\n"), ("bob", "x\n")] {
        let (well, said) = crate::doors::passwd(&[&file, user, "--scram"], password);
        assert!(well, "{said}");
    }
    let text = std::fs::read_to_string(&file).expect("it was written");
    assert!(text.starts_with("# nobody yet\nalice:SCRAM-SHA-256$20000:"), "{text}");
    assert!(!text.contains("a, b=c"));
    assert!(crate::doors::passwd(&[&file, "bob", "--scram", "-D"], "").0);
    for (arguments, password, why) in [
        (&["c", "--scram", "-I", "4095"][..], "x", "at least 4096"),
        (&["c", "--scram"], "\u{e9}", "ASCII"),
        (&["c"], "x", "not hashed"),
        (&["bob", "--scram", "-D"], "", "there is no user"),
    ] {
        let (well, said) = crate::doors::passwd(&[&[&*file], arguments].concat(), password);
        assert!(!well && said.contains(why), "{arguments:?}: {said}");
    }
    let node = setup.start();
    for shard in 0..3 {
        let (mut raw, reason) = prove(&node, &client_on(shard, 3, "c"), "alice", "a, b=c");
        assert_eq!(reason, 0);
        raw.ping();
    }
    assert_eq!(prove(&node, "d", "alice", "first").1, 0x87);
    assert_eq!(prove(&node, "d", "bob", "x").1, 0x87);
    // The others come in as before, and nobody by the wrong door.
    enter(&node, "e", "carol", "plain").ping();
    assert_eq!(prove(&node, "d", "carol", "plain").1, 0x87);
    let (_, connack) = Raw::connack(node.mqtt(), &Connect::new(V5, "f").login("alice", "a, b=c"));
    assert_eq!(connack.reason(), 0x86);
}

#[test]
fn who_has_another_password_is_out_and_the_others_stay() {
    let users = |alice: &str| line("alice", alice, 4096) + &line("bob", "bob", 4096) + &line("carol", "other", 4096);
    let (guarded, setup) = guarded(2, &users("first"), "");
    let node = setup.start();
    let (mut alice, _) = prove(&node, "a", "alice", "first");
    let (mut bob, _) = prove(&node, "b", "bob", "bob");
    // In both files, with different passwords.
    let mut carol = [enter(&node, "c", "carol", "plain"), prove(&node, "d", "carol", "other").0];
    guarded.write("scram", "no line of such a file");
    node.signal(harness::Role::Supervisor, rustix::process::Signal::HUP);
    harness::within(SHORT, "the file is refused", || {
        node.output().contains("passwords and rules stay as they were").then_some(())
    });
    alice.ping();
    guarded.write("scram", &users("second"));
    reload(&node, 2);
    let last = alice.closed(SHORT);
    assert!(last.len() == 1 && last[0].kind == kind::DISCONNECT && last[0].reason() == 0x87, "{last:?}");
    bob.ping();
    carol.iter_mut().for_each(Raw::ping);
    assert_eq!((prove(&node, "a", "alice", "first").1, prove(&node, "a", "alice", "second").1), (0x87, 0));
    assert_eq!(node.counter("clients_revoked"), 1);
}

#[test]
fn a_stranger_is_asked_like_a_user_and_the_same_after_a_restart() {
    let users = line("alice", "secret", 5000) + &line("bob", "secret", 4096);
    let (_guarded, setup) = guarded(2, &users, "");
    let mut node = setup.start();
    let challenge = |node: &Node, user: &str| {
        let scram = Scram::new(user, "x");
        let properties = properties_of(METHOD, &scram.first());
        let mut raw = node.raw();
        raw.speak(V5);
        raw.send(&Connect { properties: &properties, ..Connect::new(V5, "stranger") }.bytes());
        let text = String::from_utf8(data_of(&raw.expect(kind::AUTH))).expect("it is text");
        // Without the nonce.
        text.split_once(',').expect("a nonce comes first").1.to_owned()
    };
    let before = ["eve", "mallory", "alice"].map(|user| challenge(&node, user));
    let rounds = |said: &String| said.ends_with(",i=5000") || said.ends_with(",i=4096");
    assert!(before.iter().all(rounds), "{before:?}");
    assert_ne!(before[0], before[1]);
    node.terminate(SHORT);
    node.start_again();
    assert_eq!(before, ["eve", "mallory", "alice"].map(|user| challenge(&node, user)));
}

#[test]
fn who_does_not_go_on_is_out_in_time() {
    let (_guarded, setup) = guarded(2, &line("alice", "secret", 4096), "mqtt.idle_timeout = \"1s\"");
    let node = setup.start();
    let first = Scram::new("alice", "secret").first();
    let properties = properties_of(METHOD, &first);
    let mut raw = node.raw();
    raw.speak(V5);
    raw.send(&Connect { properties: &properties, ..Connect::new(V5, "c") }.bytes());
    raw.expect(kind::AUTH);
    let (mut open, _) = prove(&node, "d", "alice", "secret");
    open.send(&auth(0x19, METHOD, &first));
    open.expect(kind::AUTH);
    for (raw, kind) in [(&mut raw, kind::CONNACK), (&mut open, kind::DISCONNECT)] {
        let last = raw.closed(SHORT);
        assert!(last.len() == 1 && (last[0].kind, last[0].reason()) == (kind, 0x87), "{last:?}");
    }
    assert_eq!(node.counter("authentication_timed_out"), 2);
}

#[test]
fn mqttjs_proves_a_password_and_is_shown_a_proof() {
    let Some(modules) = harness::script::node_modules() else {
        skip::skip("no Node with MQTT.js (RINGMQ_TEST_NODE_PATH)");
        return;
    };
    let (_guarded, setup) = guarded(3, &line("alice", "secret", 4096), "");
    let node = setup.start();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/security/scram.js");
    for (password, verdict) in [("secret", "ok both have proven themselves"), ("wrong", "refused: ")] {
        let arguments = [script, &node.mqtt().port().to_string(), "alice", password];
        let said = Program::new("node").env("NODE_PATH", modules).args(arguments).succeed(LONG);
        assert!(said.iter().any(|line| line.starts_with(verdict)), "{said:?}");
    }
}
