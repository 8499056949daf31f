//! A server that knows what clients may do: every answer, no answer, order while it thinks, and how seldom it is asked.

use crate::{Guarded, enter, passwords, reload, subscribe};
use harness::wire::{self, Connect, Publish, V5, kind};
use harness::{LONG, MOMENT, Node, Program, Raw, SHORT, client_on, needs, skip, within};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// What it was asked, and whether it may answer.
#[derive(Default)]
struct State {
    asked: Vec<Value>,
    shut: bool,
}

/// A server that answers by the words in a topic, or in a user name.
struct Judge {
    address: SocketAddr,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Judge {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let state: Arc<(Mutex<State>, Condvar)> = Arc::default();
        let shared = state.clone();
        // It ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || drop(serve(stream, &state)));
            }
        });
        Self { address, state }
    }

    /// From now on it answers nothing, or everything that it was asked meanwhile.
    fn shut(&self, shut: bool) {
        self.state.0.lock().expect("no test panics here").shut = shut;
        self.state.1.notify_all();
    }

    fn asked(&self) -> Vec<Value> {
        self.state.0.lock().expect("no test panics here").asked.clone()
    }

    #[track_caller]
    fn is_asked(&self, times: usize) {
        within(SHORT, "the server is asked", || (self.asked().len() >= times).then_some(()));
    }

    fn source(&self, more: &str) -> String {
        format!("{{ type = \"http\", url = \"http://{}/acl\" {more} }}", self.address)
    }
}

/// One connection, as long as the other side keeps it.
fn serve(stream: TcpStream, state: &(Mutex<State>, Condvar)) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut bytes = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(length) = line.to_lowercase().strip_prefix("content-length:") {
                bytes = length.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; bytes];
        reader.read_exact(&mut body)?;
        let asked = serde_json::from_slice(&body).unwrap_or_else(|_| json!({ "get": request.trim() }));
        let mut held = state.0.lock().expect("no test panics here");
        held.asked.push(asked.clone());
        drop(state.1.wait_while(held, |state| state.shut).expect("no test panics here"));
        let text = asked.to_string();
        let (status, body) = match &text {
            text if text.contains("broken") => ("500 Broken", "{\"result\": \"allow\"}"),
            text if text.contains("bad") => ("200 OK", "{\"result\": \"deny\"}"),
            text if text.contains("open") => ("200 OK", "{\"result\": \"ignore\"}"),
            text if text.contains("empty") => ("204 No Content", ""),
            _ => ("200 OK", "{\"result\": \"allow\"}"),
        };
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        writer.write_all(format!("HTTP/1.1 {status}\r\n{length}\r\n{body}").as_bytes())?;
    }
}

/// Alice may do everything by a rule; about everybody else the server is asked, and then come the rules in `behind`.
fn node(shards: u16, judge: &Judge, behind: &str, more: &str) -> Node {
    let users = passwords(&[("alice", "a"), ("bob", "b")]);
    let guarded = Guarded::new(shards, &users, None, more);
    guarded.write("before", "user alice\ntopic readwrite #\n");
    guarded.write("behind", behind);
    let [before, behind] = ["before", "behind"].map(|name| guarded.path(name).display().to_string());
    let sources = format!("[{{ path = {before:?} }}, {}, {{ path = {behind:?} }}]", judge.source(""));
    let node = guarded.setup.clone().env("RINGMQ_AUTHORIZATION__SOURCES", sources).start();
    // The files are read; what they were in may go.
    drop(guarded);
    node
}

/// What PUBACK says about a publish.
#[track_caller]
fn publish(raw: &mut Raw, topic: &str) -> u8 {
    raw.send(&Publish::new(topic, b"m").acked(1, 7).bytes(V5));
    raw.expect(kind::PUBACK).reason()
}

fn answers(shards: u16) {
    let judge = Judge::start();
    let node = node(shards, &judge, "user bob\ntopic readwrite open/yes\n", "");
    for shard in 0..shards {
        let client = client_on(shard, shards, "c");
        let mut bob = enter(&node, &client, "bob", "b");
        for (topic, reason) in [
            ("good", 0x10),
            ("empty", 0x10),
            ("bad", 0x87),
            ("open/yes", 0x10),
            ("open/no", 0x87),
            ("broken", 0x87),
            ("open/yes/broken", 0x87),
        ] {
            assert_eq!(publish(&mut bob, topic), reason, "{topic}");
        }
        for (filter, reason) in [("in/#", 1), ("bad/+", 0x87), ("open/+", 0x87), ("open/yes", 1), ("broken/#", 0x87)] {
            assert_eq!(subscribe(&mut bob, filter, 1), reason, "{filter}");
        }
        let asked = judge.asked();
        let wish = |action: &str, topic: &str| {
            json!({ "clientid": client, "username": "bob", "topic": topic, "action": action, "qos": "1",
                    "peerhost": "127.0.0.1" })
        };
        assert!(asked.contains(&wish("publish", "good")) && asked.contains(&wish("subscribe", "in/#")), "{asked:?}");
    }
    let mut alice = enter(&node, "alice", "alice", "a");
    let before = judge.asked().len();
    assert_eq!((publish(&mut alice, "in/x"), judge.asked().len()), (0x10, before), "a rule comes first");
    assert!(node.counter("access_silent") >= 3 * u64::from(shards));
}

#[test]
fn a_server_allows_denies_and_passes_on_to_the_rules_behind_it_on_one_shard() {
    answers(1);
}

#[test]
fn a_server_allows_denies_and_passes_on_to_the_rules_behind_it_on_three_shards() {
    answers(3);
}

#[test]
fn a_question_can_be_a_get_with_everything_in_its_url() {
    let judge = Judge::start();
    let source = format!(
        "authorization.sources = [{{ type = \"http\", method = \"get\", url = \"http://{}/${{username}}/acl\", \
         body = [\"t=${{topic}}\", \"a=${{action}}\"], headers = [\"x-key=sesame\"] }}]",
        judge.address
    );
    let node = Guarded::new(1, &passwords(&[("bob", "b")]), None, &source).setup.start();
    assert_eq!(publish(&mut enter(&node, "c", "bob", "b"), "a b/&c"), 0x10);
    assert_eq!(judge.asked(), [json!({ "get": "GET /bob/acl?t=a%20b%2F%26c&a=publish HTTP/1.1" })]);
}

#[test]
fn a_packet_waits_with_all_that_follows_it_while_everybody_else_is_served() {
    let judge = Judge::start();
    let node = node(3, &judge, "", "");
    let mut alice = enter(&node, &client_on(0, 3, "alice"), "alice", "a");
    alice.subscribe("#", 0);
    for shard in 0..3 {
        let mut bob = enter(&node, &client_on(shard, 3, "bob"), "bob", "b");
        judge.shut(true);
        let before = judge.asked().len();
        for number in 0..20u8 {
            let topic = format!("{shard}/{}", number % 4);
            bob.send(&Publish::new(&topic, &[number]).acked(number % 3, u16::from(number) + 1).bytes(V5));
        }
        bob.send(&wire::pingreq());
        judge.is_asked(before + 1);
        // On every shard, that of bob among them.
        for other in 0..3 {
            enter(&node, &client_on(other, 3, "other"), "alice", "a").ping();
        }
        alice.ping();
        assert!(bob.poll(MOMENT).is_err(), "nothing is answered before the server has spoken");
        judge.shut(false);
        let order: Vec<u8> = (0..20).map(|_| alice.message().payload[0]).collect();
        assert_eq!(order, (0..20).collect::<Vec<u8>>());
        while bob.next(SHORT).expect("it stays").kind != kind::PINGRESP {}
        assert!(judge.asked().len() - before <= 12, "four topics with three QoS");
    }
}

#[test]
fn thousands_of_publishes_cost_a_handful_of_questions() {
    let judge = Judge::start();
    let node = node(2, &judge, "", "authorization.cache = { max_size = 4, ttl = \"1h\" }");
    let mut bob = enter(&node, "bob", "bob", "b");
    for number in 0..5000u32 {
        bob.send(&Publish::new(&format!("t/{}", number % 4), b"m").bytes(V5));
    }
    bob.ping();
    assert_eq!((judge.asked().len(), node.counter("access_asked")), (4, 4));
    assert_eq!(node.counter("access_remembered"), 4996);
    // A fifth topic costs the place of another one.
    for number in 0..10u32 {
        assert_eq!(publish(&mut bob, &format!("t/{}", number % 5)), 0x10);
    }
    assert!((6..=14).contains(&judge.asked().len()), "{}", judge.asked().len());
}

#[test]
fn without_a_memory_each_packet_is_asked_about() {
    let judge = Judge::start();
    let node = node(1, &judge, "", "authorization.cache.enable = false");
    let mut bob = enter(&node, "bob", "bob", "b");
    for _ in 0..10 {
        assert_eq!(publish(&mut bob, "t"), 0x10);
    }
    bob.send(&wire::packet(0x82, b"\0\x01\0\0\x01a\0\0\x01b\0\0\x03bad\0"));
    assert_eq!(bob.expect(kind::SUBACK).body[3..], [0, 0, 0x87]);
    assert_eq!(judge.asked().len(), 13);
}

#[test]
fn a_server_that_is_slow_or_dead_is_passed_over() {
    let judge = Judge::start();
    let users = passwords(&[("bob", "b")]);
    let patient = judge.source(", request_timeout = \"200ms\"");
    let guarded = Guarded::new(2, &users, None, "");
    guarded.write("behind", "user bob\ntopic readwrite open/#\n");
    let behind = guarded.path("behind").display().to_string();
    let with = |source: &str| {
        let sources = format!("[{source}, {{ path = {behind:?} }}]");
        guarded
            .setup
            .clone()
            .env("RINGMQ_AUTHENTICATION", passwords_of(&guarded, &users))
            .env("RINGMQ_AUTHORIZATION__SOURCES", sources)
            .start()
    };
    let slow = with(&patient);
    judge.shut(true);
    let closed = harness::ports::free();
    let dead = with(&format!("{{ type = \"http\", url = \"http://{closed}/acl\" }}"));
    for node in [&slow, &dead] {
        let mut bob = enter(node, "bob", "bob", "b");
        assert_eq!((publish(&mut bob, "open/x"), publish(&mut bob, "good")), (0x10, 0x87));
        assert_eq!((subscribe(&mut bob, "open/x", 0), subscribe(&mut bob, "good", 0)), (0, 0x87));
        assert_eq!(node.counter("access_silent"), 4);
        node.says("the server that knows clients gives no answer");
    }
}

fn passwords_of(guarded: &Guarded, users: &str) -> String {
    guarded.write("users", users);
    format!("[{{ path = {:?} }}]", guarded.path("users").display().to_string())
}

#[test]
fn a_client_that_publishes_and_leaves_is_heard_all_the_same() {
    let judge = Judge::start();
    let node = node(2, &judge, "", "");
    let mut alice = enter(&node, "alice", "alice", "a");
    alice.subscribe("#", 0);
    for shard in 0..2 {
        judge.shut(true);
        let mut bob = enter(&node, &client_on(shard, 2, "bob"), "bob", "b");
        let before = judge.asked().len();
        let goodbye = wire::disconnect();
        bob.send(&[Publish::new("a", b"1").bytes(V5), Publish::new("b", b"2").bytes(V5), goodbye].concat());
        bob.shut_writing();
        judge.is_asked(before + 1);
        alice.ping();
        judge.shut(false);
        assert_eq!((alice.message().payload, alice.message().payload), (b"1".to_vec(), b"2".to_vec()));
        assert_eq!(bob.closed(SHORT), []);
    }
    within(SHORT, "nobody is left behind", || (node.figure("shard_connections") == 1.0).then_some(()));
    assert_eq!(node.counter("access_unasked"), 0);
}

#[test]
fn mosquitto_pub_needs_no_patience() {
    needs!("mosquitto_pub");
    let judge = Judge::start();
    let node = node(2, &judge, "", "");
    let mut alice = enter(&node, "alice", "alice", "a");
    alice.subscribe("#", 0);
    let port = node.mqtt().port().to_string();
    for qos in ["0", "1", "2"] {
        let arguments = ["-p", &port, "-u", "bob", "-P", "b", "-t", "t", "-m", "m", "-q", qos];
        Program::new("mosquitto_pub").args(arguments).succeed(SHORT);
        assert_eq!(alice.message().payload, b"m", "QoS {qos}");
    }
}

#[test]
fn a_client_that_leaves_over_websocket_is_heard_too() {
    let Some(modules) = harness::script::node_modules() else {
        skip::skip("no Node with MQTT.js (RINGMQ_TEST_NODE_PATH)");
        return;
    };
    let judge = Judge::start();
    let node = node(2, &judge, "", "listeners.ws.default.bind = \"127.0.0.1:0\"");
    let mut alice = enter(&node, "alice", "alice", "a");
    alice.subscribe("#", 0);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/security/leave.js");
    let port = node.address("ws", "default").port().to_string();
    for (topic, heard) in [("t", true), ("bad", false), ("u", true)] {
        judge.shut(true);
        let before = judge.asked().len();
        let arguments = [script, &port, "bob", "b", topic];
        let mut client = Program::new("node").env("NODE_PATH", modules).args(arguments).start();
        judge.is_asked(before + 1);
        judge.shut(false);
        assert_eq!(client.wait(LONG), Some(0), "{topic}");
        if heard {
            assert_eq!(alice.message().topic, topic);
        }
    }
}

#[test]
fn a_will_is_asked_about_when_its_client_connects() {
    let judge = Judge::start();
    let node = node(3, &judge, "", "");
    let mut alice = enter(&node, "alice", "alice", "a");
    alice.subscribe("#", 0);
    for shard in 0..3 {
        let client = client_on(shard, 3, "bob");
        let connect = Connect { will: Some(("gone", b"w", 0, false)), ..Connect::new(V5, &client).login("bob", "b") };
        drop(Raw::connect(node.mqtt(), &connect));
        assert_eq!(alice.message().topic, "gone");
        let (_, connack) =
            Raw::connack(node.mqtt(), &Connect { will: Some(("bad", b"w", 0, false)), ..connect.clone() });
        assert_eq!(connack.reason(), 0x87);
    }
}

#[test]
fn questions_that_find_no_room_are_for_the_rules_behind_the_server() {
    let judge = Judge::start();
    judge.shut(true);
    let node = node(2, &judge, "", "admission = { hook_threads = 1, hook_queue_max = 1 }");
    let names: Vec<String> = (0..8).map(|number| format!("client-{number}")).collect();
    let mut all: Vec<Raw> = names.iter().map(|name| enter(&node, name, "bob", "b")).collect();
    all.iter_mut().for_each(|raw| raw.send(&Publish::new("t", b"m").acked(1, 1).bytes(V5)));
    let overloaded = node.counter_reaches("access_overloaded", 5);
    judge.shut(false);
    let reasons: Vec<u8> = all.iter_mut().map(|raw| raw.expect(kind::PUBACK).reason()).collect();
    let denied = reasons.iter().filter(|reason| **reason == 0x87).count() as u64;
    assert!(denied == overloaded && reasons.contains(&0x10), "{reasons:02x?} {overloaded}");
}

#[test]
fn a_server_that_thinks_about_one_client_keeps_no_other_from_proving_a_password() {
    let judge = Judge::start();
    judge.shut(true);
    let guarded = Guarded::new(2, "", None, "");
    guarded.write("users", &passwords(&[("alice", "a")]));
    guarded.write("late", &passwords(&[("open", "o")]));
    let [users, late] = ["users", "late"].map(|name| guarded.path(name).display().to_string());
    let chain = format!(
        "[{{ path = {users:?} }}, {{ backend = \"http\", url = \"http://{}/auth\" }}, {{ path = {late:?} }}]",
        judge.address
    );
    let setup = guarded.setup.clone().env("RINGMQ_AUTHENTICATION", chain);
    let threads = setup.env("RINGMQ_ADMISSION__THREADS", "1").env("RINGMQ_ADMISSION__HOOK_THREADS", "1");
    let node = threads.start();
    let mut raw = node.raw();
    raw.speak(V5);
    raw.send(&Connect::new(V5, "slow").login("open", "o").bytes());
    judge.is_asked(1);
    for number in 0..10 {
        enter(&node, &format!("fast-{number}"), "alice", "a").ping();
    }
    judge.shut(false);
    assert_eq!(raw.expect(kind::CONNACK).reason(), 0, "the file behind the server knows it");
    let (_, connack) = Raw::connack(node.mqtt(), &Connect::new(V5, "refused").login("bad", "x"));
    assert_eq!(connack.reason(), 0x86);
}

#[test]
fn what_is_remembered_is_forgotten_when_the_operator_says_so() {
    let (first, second) = (Judge::start(), Judge::start());
    let users = passwords(&[("bob", "b"), ("alice", "a")]);
    let guarded = Guarded::new(2, &users, None, "");
    let config = |judge: &Judge, rest: &str| {
        let passwords = guarded.path("passwords").display().to_string();
        let text = format!(
            "authentication = [{{ path = {passwords:?} }}]\nauthorization.sources = [{}]\n{rest}",
            judge.source("")
        );
        guarded.write("ringmq.toml", &text);
    };
    config(&first, "");
    let node = guarded.setup.start();
    let mut bob = enter(&node, "bob", "bob", "b");
    for _ in 0..3 {
        assert_eq!(publish(&mut bob, "t"), 0x10);
    }
    assert_eq!(first.asked().len(), 1);
    // The same file, read again.
    let said = node.ctl(&["authz", "cache-clean"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    within(SHORT, "it is read again", || node.output().contains("number=2").then_some(()));
    within(SHORT, "it is asked again", || {
        publish(&mut bob, "t");
        (first.asked().len() == 2).then_some(())
    });
    // Another server.
    config(&second, "");
    reload(&node, 3);
    within(SHORT, "the other server is asked", || {
        bob.send(&Publish::new("bad", b"m").acked(1, 7).bytes(V5));
        let reason = bob.expect(kind::PUBACK).reason();
        (!second.asked().is_empty()).then(|| assert_eq!(reason, 0x87))
    });
    assert!(node.get("/api/v5/authorization/cache").is_ok_and(|answer| answer.status == 405), "it is for DELETE");
}
