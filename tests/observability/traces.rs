//! Traces: the packets of one client, topic or address in a file, asked for over HTTP and with `ringmq ctl trace`.

use crate::setup;
use harness::wire::{self, Connect, Publish, V5, V311, kind};
use harness::{MOMENT, Node, Raw, SHORT, client_on, within};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;

/// One request, with an API key where `key` has one. Gives status and body.
#[track_caller]
fn ask(node: &Node, key: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect_timeout(&node.http(), SHORT).expect("HTTP listens");
    stream.set_read_timeout(Some(SHORT)).expect("a bound");
    let authorization = if key.is_empty() { String::new() } else { format!("Authorization: Basic {key}\r\n") };
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\n{authorization}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// A new API key as HTTP shows it.
fn key(node: &Node) -> String {
    use base64::Engine;
    let said = node.ctl(&["key", "add", "tests"]).said;
    let word = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name)).expect("key and secret");
        line.trim().to_owned()
    };
    base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", word("key"), word("secret")))
}

#[track_caller]
fn ctl(node: &Node, arguments: &[&str]) -> String {
    let ended = node.ctl(&[&["trace"], arguments].concat());
    assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.said);
    ended.said
}

/// Waits until a trace has a line that ends so, and gives all lines.
#[track_caller]
fn shows(node: &Node, name: &str, end: &str) -> String {
    let mut shown = String::new();
    harness::bound::within_or(SHORT, || {
        shown = ctl(node, &["show", name]);
        shown.lines().any(|line| line.ends_with(end)).then_some(())
    })
    .unwrap_or_else(|| panic!("no line ends with {end:?}:\n{shown}"));
    shown
}

/// Connects `probe` again and again until the trace of that client, which has just begun, is in force on its shard.
#[track_caller]
fn in_force(node: &Node, name: &str, probe: &str) {
    within(SHORT, "the trace is in force", || {
        Raw::connect(node.mqtt(), &Connect::new(V311, probe)).ping();
        std::thread::sleep(MOMENT / 10);
        ctl(node, &["show", name]).contains("CONNECT").then_some(())
    });
}

fn packets_of_a_client(shards: u16) {
    let node = setup().shards(shards).start();
    for shard in 0..shards {
        let client = client_on(shard, shards, "watched");
        let name = format!("t{shard}");
        ctl(&node, &["start", &name, "--clientid", &client, "--payload", "text", "--duration", "5m"]);
        in_force(&node, &name, &client);
        let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, &client).login("me", "secret"));
        let mut other = Raw::connect(node.mqtt(), &Connect::new(V5, "other"));
        raw.subscribe("news", 1);
        other.publish_acked("news", b"hello", 3);
        assert_eq!(raw.message().payload, b"hello");
        // A packet that only the server sends: closed with a reason.
        raw.send(&[0x90, 0x04, 0, 1, 0, 0]);
        raw.closed(SHORT);
        let shown = shows(&node, &name, "connection over: SUBACK from a client");
        let shown = shown.rsplit_once(" in  CONNECT").expect("the last connection").1;
        for line in [
            ", version 5, clean start true, keep alive 0 s, user \"me\", with a password",
            "out CONNACK 0x00 Success, session present false",
            "in  SUBSCRIBE id 1 \"news\" q1",
            "out SUBACK id 1 0x01 GrantedQos1",
            "out PUBLISH \"news\" q1 r0 d0 id 1, 5 bytes \"hello\"",
            "in  PUBACK id 1 0x00 Success",
            "out DISCONNECT 0x82 ProtocolError",
        ] {
            assert!(shown.contains(line), "{line} is not in\n{shown}");
        }
        assert!(!shown.contains("secret") && !shown.contains("\"other\""), "{shown}");
        ctl(&node, &["remove", &name]);
    }
}

#[test]
fn a_trace_shows_all_packets_of_a_client_and_why_it_was_closed_with_one_shard() {
    packets_of_a_client(1);
}

#[test]
fn a_trace_shows_all_packets_of_a_client_and_why_it_was_closed_with_three_shards() {
    packets_of_a_client(3);
}

#[test]
fn a_trace_begins_and_ends_in_the_middle_of_a_connection() {
    let node = setup().shards(2).start();
    let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, "steady"));
    ctl(&node, &["start", "middle", "--clientid", "steady"]);
    within(SHORT, "it is seen", || {
        raw.ping();
        ctl(&node, &["show", "middle"]).contains("PINGREQ").then_some(())
    });
    raw.publish_acked("t", b"hidden", 7);
    let shown = shows(&node, "middle", "out PUBACK id 7 0x10 NoMatchingSubscribers");
    assert!(shown.contains("in  PUBLISH \"t\" q1 r0 d0 id 7, 6 bytes\n") && !shown.contains("hidden"), "{shown}");
    ctl(&node, &["stop", "middle"]);
    within(SHORT, "it is not seen any more", || {
        let before = ctl(&node, &["show", "middle"]).len();
        raw.ping();
        std::thread::sleep(MOMENT);
        (ctl(&node, &["show", "middle"]).len() == before).then_some(())
    });
    assert!(ctl(&node, &["list"]).contains("middle stopped clientid \"steady\""));
}

#[test]
fn traces_are_made_read_and_removed_over_http_with_a_key_only() {
    let mut node = setup().shards(2).start();
    let key = key(&node);
    let body = r#"{"name":"topics","type":"topic","topic":"a/+","payload_encode":"hex","duration":"1h"}"#;
    assert_eq!(ask(&node, "", "POST", "/api/v5/trace", body).0, 401);
    assert_eq!(ask(&node, "", "GET", "/api/v5/trace/topics/download", "").0, 401, "it shows what clients say");
    let (status, said) = ask(&node, &key, "POST", "/api/v5/trace", body);
    assert_eq!(status, 200, "{said}");
    assert_eq!(ask(&node, &key, "POST", "/api/v5/trace", body).0, 409);
    assert_eq!(ask(&node, &key, "POST", "/api/v5/trace", r#"{"name":"..","type":"topic","topic":"t"}"#).0, 400);

    let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, "publisher"));
    let file = |node: &Node| ask(node, &key, "GET", "/api/v5/trace/topics/download", "");
    let seen = |node: &Node, raw: &mut Raw| {
        within(SHORT, "a publish is seen", || {
            raw.send(&Publish::new("a/b", b"\x01\xff").acked(1, 5).bytes(V5));
            raw.send(&Publish::new("b", b"no").acked(1, 6).bytes(V5));
            (0..2).for_each(|_| drop(raw.expect(kind::PUBACK)));
            Some(file(node).1).filter(|text| text.contains("in  PUBLISH \"a/b\" q1 r0 d0 id 5, 2 bytes 01ff\n"))
        })
    };
    let text = seen(&node, &mut raw);
    assert!(!text.contains("\"b\"") && !text.contains("PUBACK"), "{text}");
    let (_, part) = ask(&node, &key, "GET", "/api/v5/trace/topics/log?position=0&bytes=20", "");
    let part: Value = serde_json::from_str(&part).expect("JSON");
    assert_eq!((part["items"].as_str().map(str::len), &part["meta"]["position"]), (Some(20), &20.into()));

    // It goes on after a crash of the whole node.
    node.kill();
    node.start_again();
    let (_, list) = ask(&node, &key, "GET", "/api/v5/trace", "");
    let list: Value = serde_json::from_str(&list).expect("JSON");
    assert_eq!(
        (&list[0]["name"], &list[0]["status"], &list[0]["topic"]),
        (&"topics".into(), &"running".into(), &"a/+".into())
    );
    let before = file(&node).1.len();
    let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, "publisher"));
    within(SHORT, "it goes on", || {
        seen(&node, &mut raw);
        (file(&node).1.len() > before).then_some(())
    });
    assert_eq!(ask(&node, &key, "DELETE", "/api/v5/trace/topics", "").0, 204);
    assert_eq!((file(&node).0, ask(&node, &key, "GET", "/api/v5/trace", "").1), (404, "[]".to_owned()));
    assert!(!node.data().join("trace/topics.log").exists());
}

#[test]
fn a_trace_of_an_address_sees_whoever_is_refused_there() {
    let node = setup().start();
    ctl(&node, &["start", "address", "--ip-address", "127.0.0.1"]);
    within(SHORT, "the refusal is seen", || {
        let mut raw = node.raw();
        raw.send(&Connect { clean: false, ..Connect::new(V311, "") }.bytes());
        raw.closed(SHORT);
        let shown = ctl(&node, &["show", "address"]);
        let seen = shown.contains("in  CONNECT, 14 bytes that cannot be read")
            && shown.contains("-- refused: 0x85 before CONNECT: an empty client id needs a clean session")
            && shown.contains("out CONNACK 0x85");
        seen.then_some(())
    });
    // Bytes that are no CONNECT, too.
    let mut raw = node.raw();
    raw.send(&wire::pingreq());
    raw.closed(SHORT);
    shows(&node, "address", "-- refused: 0x81 before CONNECT: packet type 12 does not exist in this version");
}
