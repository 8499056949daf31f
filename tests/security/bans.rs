//! Bans: who is banned is out within a second and does not come in again, however the ban was said, until it ends.

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use harness::wire::{Connect, V5, V311, kind};
use harness::{Node, Raw, Role, SHORT, Setup, client_on, http, within};

/// A ban acts on whoever is connected within this time, and a machine that does other things as well.
const AT_ONCE: Duration = Duration::from_secs(1);

fn node(shards: u16) -> Node {
    Setup::new(env!("CARGO_BIN_EXE_ringmq"))
        .shards(shards)
        .env("RINGMQ_LISTENERS__TCP__PROXIED__BIND", "127.0.0.1:0")
        .env("RINGMQ_LISTENERS__TCP__PROXIED__PROXY_PROTOCOL", "true")
        .start()
}

#[track_caller]
fn ctl(node: &Node, arguments: &[&str]) -> String {
    let ended = node.ctl(arguments);
    assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.said);
    ended.said
}

/// The header of an API key.
fn key(node: &Node) -> String {
    let said = ctl(node, &["key", "add", "bans"]);
    let word = |name: &str| {
        let line = said.lines().find(|line| line.starts_with(name)).expect("a key and its secret");
        line.split_whitespace().nth(1).expect("a value").to_owned()
    };
    format!("Basic {}", STANDARD.encode(format!("{}:{}", word("key"), word("secret"))))
}

/// A client that comes from elsewhere.
fn from(node: &Node, peer: &str, connect: &Connect<'_>) -> (Raw, u8) {
    let mut raw = Raw::open(node.address("tcp", "proxied"));
    raw.send(format!("PROXY TCP4 {peer} 10.0.0.1 4660 1883\r\n").as_bytes());
    raw.send(&connect.bytes());
    let reason = raw.expect(kind::CONNACK).reason();
    (raw, reason)
}

#[track_caller]
fn is_out(mut raw: Raw, since: Instant) {
    let last: Vec<_> = raw.closed(SHORT).iter().map(|packet| (packet.kind, packet.reason())).collect();
    let took = since.elapsed();
    // 0x8A is a word of CONNACK alone.
    assert_eq!(last, [(kind::DISCONNECT, 0x98)]);
    println!("out after {took:?}");
    assert!(took < 5 * AT_ONCE, "{took:?}");
}

fn a_ban_acts_at_once(shards: u16) {
    let node = node(shards);
    let mut stays = Raw::connect(node.mqtt(), &Connect::new(V5, "stays").login("good", "x"));
    for shard in 0..shards {
        let id = client_on(shard, shards, "banned");
        let raw = Raw::connect(node.mqtt(), &Connect::new(V5, &id));
        let since = Instant::now();
        ctl(&node, &["ban", "clientid", &id, "--reason", "too loud"]);
        is_out(raw, since);
        let (_, connack) = Raw::connack(node.mqtt(), &Connect::new(V5, &id));
        assert_eq!(connack.reason(), 0x8a);
        let (_, connack) = Raw::connack(node.mqtt(), &Connect::new(V311, &id));
        assert_eq!(connack.reason(), 5, "3.1.1 calls it not authorised");
    }
    let raw = Raw::connect(node.mqtt(), &Connect::new(V5, "whoever").login("bad", "x"));
    let since = Instant::now();
    ctl(&node, &["ban", "username", "bad"]);
    is_out(raw, since);
    let (raw, _) = from(&node, "192.0.2.7", &Connect::new(V5, "far"));
    let since = Instant::now();
    ctl(&node, &["ban", "peerhost", "192.0.2.0/24"]);
    is_out(raw, since);
    let near = || from(&node, "192.0.2.99", &Connect::new(V5, "near")).1;
    within(SHORT, "its network is banned on every shard", || (near() == 0x8a).then_some(()));
    assert_eq!(from(&node, "192.0.3.1", &Connect::new(V5, "near")).1, 0, "another network");
    stays.ping();
    assert_eq!(node.counter("banned_disconnected"), u64::from(shards) + 2);
    assert!(node.counter("banned_refused") > 2 * u64::from(shards));
}

#[test]
fn a_ban_acts_at_once_on_one_shard() {
    a_ban_acts_at_once(1);
}

#[test]
fn a_ban_acts_at_once_on_three_shards() {
    a_ban_acts_at_once(3);
}

#[test]
fn the_api_speaks_emqx_and_a_ban_outlives_both_processes() {
    let mut node = node(2);
    let key = key(&node);
    let ask = |node: &Node, method: &str, path: &str, body: &str| {
        http::request(node.http(), (method, path), &key, body, SHORT).expect("control answers")
    };
    let body = r#"{"as": "clientid", "who": "a/b", "by": "ann", "reason": "tests", "until": "2999-01-01T00:00:00Z"}"#;
    let refused = http::request(node.http(), ("POST", "/api/v5/banned"), "", body, SHORT).expect("control answers");
    assert_eq!(refused.status, 401, "writing needs a key, also on loopback");
    let made = ask(&node, "POST", "/api/v5/banned", body);
    assert_eq!(made.status, 200, "{}", made.body);
    let again = ask(&node, "POST", "/api/v5/banned", body);
    assert!(again.status == 400 && again.body.contains("ALREADY_EXISTS"), "{}", again.body);
    for wrong in [
        r#"{"as": "color", "who": "x"}"#,
        r#"{"as": "peerhost", "who": "nowhere"}"#,
        r#"{"as": "clientid", "who": "x", "until": 5}"#,
        r#"{"who": "x"}"#,
    ] {
        let answer = ask(&node, "POST", "/api/v5/banned", wrong);
        assert!((400..500).contains(&answer.status), "{wrong}: {}", answer.body);
    }
    let listed = node.get("/api/v5/banned?page=1&limit=10").expect("control answers");
    let listed: serde_json::Value = serde_json::from_str(&listed.body).expect("JSON");
    assert_eq!(listed["meta"]["count"], 1);
    let row = &listed["data"][0];
    assert_eq!((&row["as"], &row["who"], &row["by"]), (&"clientid".into(), &"a/b".into(), &"ann".into()));
    assert_eq!(row["until"], "2999-01-01T00:00:00Z");

    let is_banned = |node: &Node| Raw::connack(node.mqtt(), &Connect::new(V5, "a/b")).1.reason() == 0x8a;
    within(SHORT, "it is banned", || is_banned(&node).then_some(()));
    node.kill();
    node.start_again();
    assert!(is_banned(&node), "the data plane keeps its View");
    node.signal(Role::Control, rustix::process::Signal::STOP);
    assert!(is_banned(&node), "nobody needs control for that");
    node.signal(Role::Control, rustix::process::Signal::CONT);
    let lifted = within(SHORT, "control goes on", || {
        http::request(node.http(), ("DELETE", "/api/v5/banned/clientid/a%2Fb"), &key, "", SHORT).ok()
    });
    assert_eq!(lifted.status, 204, "{}", lifted.body);
    assert_eq!(ask(&node, "DELETE", "/api/v5/banned/clientid/a%2Fb", "").status, 404);
    within(SHORT, "it may connect again", || (!is_banned(&node)).then_some(()));
}

#[test]
fn a_ban_ends_by_itself() {
    let node = node(1);
    ctl(&node, &["ban", "clientid", "short", "--for", "2"]);
    let reason = || Raw::connack(node.mqtt(), &Connect::new(V5, "short")).1.reason();
    within(SHORT, "it is banned", || (reason() == 0x8a).then_some(()));
    assert!(ctl(&node, &["banned"]).contains("clientid \"short\""));
    within(SHORT, "the ban ends", || (reason() == 0).then_some(()));
    assert!(!ctl(&node, &["banned"]).contains("short"));
}
