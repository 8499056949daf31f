//! Passwords and rules that change while clients are connected: who may stay stays, who may not is out, a wrong file
//! changes nothing.

use crate::{Guarded, enter, passwords, reload, subscribe};
use harness::wire::{self, Connect, V5, kind};
use harness::{Raw, SHORT, client_on, within};
use std::time::Instant;

/// Live connections of the large test.
const CLIENTS: usize = 1000;

fn user(number: usize) -> String {
    format!("user-{number}")
}

#[test]
fn of_a_thousand_live_clients_only_those_whose_password_changed_are_out() {
    let users: Vec<String> = (0..CLIENTS).map(user).collect();
    let lines: Vec<String> = users.iter().map(|user| passwords(&[(user, "first")])).collect();
    let guarded = Guarded::new(3, &lines.concat(), None, "");
    let node = guarded.setup.start();
    let mut all: Vec<Raw> = users.iter().map(|user| enter(&node, user, user, "first")).collect();
    // Every fiftieth has another password now, and every hundredth is gone.
    let changed = |number: &usize| number.is_multiple_of(50);
    let after: String = (0..CLIENTS)
        .map(|number| match number {
            number if number.is_multiple_of(100) => String::new(),
            number if changed(&number) => passwords(&[(&users[number], "second")]),
            number => lines[number].clone(),
        })
        .collect();
    guarded.write("passwords", &after);
    let since = Instant::now();
    reload(&node, 2);
    for (number, raw) in all.iter_mut().enumerate().filter(|(number, _)| changed(number)) {
        let last = raw.closed(SHORT);
        let said: Vec<_> = last.iter().map(|packet| (packet.kind, packet.reason())).collect();
        assert_eq!(said, [(kind::DISCONNECT, 0x87)], "{}", users[number]);
    }
    println!("{} of {CLIENTS} clients were out after {:?}", CLIENTS / 50, since.elapsed());
    for (_, raw) in all.iter_mut().enumerate().filter(|(number, _)| !changed(number)) {
        raw.ping();
    }
    assert_eq!(node.counter("clients_revoked"), CLIENTS as u64 / 50);
    enter(&node, "again", &user(50), "second").ping();
    let (_, connack) = Raw::connack(node.mqtt(), &Connect::new(V5, "gone").login(&user(100), "first"));
    assert_eq!(connack.reason(), 0x86);
}

#[test]
fn of_a_thousand_live_clients_only_those_whose_right_was_taken_hear_no_more() {
    let users: Vec<String> = (0..CLIENTS).map(user).collect();
    let lines: Vec<String> = users.iter().map(|user| passwords(&[(user, "p")])).collect();
    let everybody = "user admin\ntopic write room/#\npattern read room/%u\n";
    let guarded = Guarded::new(3, &(lines.concat() + &passwords(&[("admin", "p")])), Some(everybody), "");
    let node = guarded.setup.start();
    let mut all: Vec<Raw> = users.iter().map(|user| enter(&node, user, user, "p")).collect();
    for (raw, user) in all.iter_mut().zip(&users) {
        assert_eq!(subscribe(raw, &format!("room/{user}"), 1), 1);
    }
    let taken = |number: usize| number.is_multiple_of(50);
    let denied: Vec<String> = (0..CLIENTS)
        .filter(|number| taken(*number))
        .map(|n| format!("user {}\ntopic deny room/#\n", users[n]))
        .collect();
    guarded.write("rules", &(everybody.to_owned() + &denied.concat()));
    let since = Instant::now();
    reload(&node, 2);
    node.counter_reaches("subscriptions_revoked", CLIENTS as u64 / 50);
    println!("{} of {CLIENTS} clients had lost their right after at most {:?}", CLIENTS / 50, since.elapsed());
    let mut admin = enter(&node, "admin", "admin", "p");
    for user in &users {
        admin.publish_acked(&format!("room/{user}"), b"x", 1);
    }
    for (number, raw) in all.iter_mut().enumerate() {
        if !taken(number) {
            assert_eq!(raw.message().topic, format!("room/{}", users[number]));
        }
        raw.ping();
    }
    assert_eq!(node.counter("subscriptions_revoked"), CLIENTS as u64 / 50);
}

fn a_revoked_right_acts_on_live_sessions(shards: u16) {
    let users = passwords(&[("w", "w"), ("r", "r")]);
    let all = "user w\ntopic write #\nuser r\ntopic read #\n";
    let guarded = Guarded::new(shards, &users, Some(all), "");
    let node = guarded.setup.start();
    let mut writer = enter(&node, &client_on(0, shards, "w"), "w", "w");
    let mut readers: Vec<Raw> = (0..shards)
        .map(|shard| {
            let mut reader = enter(&node, &client_on(shard, shards, "r"), "r", "r");
            assert_eq!(subscribe(&mut reader, "secret/#", 1), 1);
            assert_eq!(subscribe(&mut reader, "open/#", 1), 1);
            reader
        })
        .collect();
    // One that is away, with a message that waits for it.
    let session = [0x11, 0, 0, 1, 0];
    let away = Connect { properties: &session, ..Connect::new(V5, "away").login("r", "r") };
    let mut reader = Raw::connect(node.mqtt(), &away);
    assert_eq!(subscribe(&mut reader, "+/x", 1), 1);
    drop(reader);
    within(SHORT, "its connection is gone", || {
        (node.figure("shard_connections") == f64::from(shards + 1)).then_some(())
    });
    for (number, topic) in ["secret/x", "open/x"].into_iter().enumerate() {
        writer.publish_acked(topic, b"before", number as u16 + 1);
        readers.iter_mut().for_each(|reader| assert_eq!(reader.message().topic, topic));
    }
    guarded.write("rules", "user w\ntopic write #\nuser r\ntopic read open/#\n");
    reload(&node, 2);
    within(SHORT, "the right is gone", || (node.counter("subscriptions_revoked") >= u64::from(shards)).then_some(()));
    for (number, topic) in ["secret/x", "open/x"].into_iter().enumerate() {
        writer.publish_acked(topic, b"after", number as u16 + 3);
    }
    for reader in &mut readers {
        assert_eq!(reader.message().topic, "open/x", "what is denied does not come, and nobody is disconnected");
        assert_eq!(subscribe(reader, "secret/a", 0), 0x87);
    }
    let mut back = Raw::connect(node.mqtt(), &Connect { clean: false, ..away });
    let came = [back.message().topic, back.message().topic];
    assert_eq!(came, ["open/x", "open/x"], "what had waited is asked for again");
    back.ping();
}

#[test]
fn a_revoked_right_acts_on_live_sessions_on_one_shard() {
    a_revoked_right_acts_on_live_sessions(1);
}

#[test]
fn a_revoked_right_acts_on_live_sessions_on_three_shards() {
    a_revoked_right_acts_on_live_sessions(3);
}

#[test]
fn a_wrong_file_changes_nothing_and_is_named() {
    let users = passwords(&[("alice", "secret")]);
    let guarded = Guarded::new(2, &users, Some("user alice\ntopic readwrite ok/#\n"), "");
    let node = guarded.setup.start();
    let mut alice = enter(&node, "alice", "alice", "secret");
    for (file, wrong, line) in [
        ("passwords", "alice:nonsense\n", "line 1: the password is not hashed"),
        ("rules", "user alice\ntopic a#\n", "line 2: \"a#\" is no topic filter"),
    ] {
        let good = std::fs::read_to_string(guarded.path(file)).expect("it was written");
        guarded.write(file, wrong);
        node.signal(harness::Role::Supervisor, rustix::process::Signal::HUP);
        within(SHORT, "the error is said", || {
            let said = node.output();
            (said.contains("stay as they were") && said.contains(line)).then_some(())
        });
        within(SHORT, "the alarm is on", || {
            node.get("/api/v5/alarms").ok().filter(|answer| answer.body.contains("policy_stale"))
        });
        alice.publish_acked("ok/x", b"m", 1);
        alice.send(&wire::Publish::new("no/x", b"m").acked(1, 2).bytes(V5));
        assert_eq!(alice.expect(kind::PUBACK).reason(), 0x87);
        enter(&node, "second", "alice", "secret").ping();
        guarded.write(file, &good);
    }
    reload(&node, 2);
    alice.ping();
    within(SHORT, "the alarm is off", || {
        node.get("/api/v5/alarms").ok().filter(|answer| !answer.body.contains("policy_stale"))
    });
}
