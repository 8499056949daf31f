//! Passwords: who is let in, in the words of each version, with files of mosquitto and files for mosquitto.

use crate::{Guarded, enter, passwords};
use dataplane::auth::password::{Hashed, Method};
use harness::wire::{self, Connect, V5, V311, kind};
use harness::{Program, Raw, SHORT, client_on, needs, within};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

fn in_the_words_of_the_version(shards: u16) {
    let guarded = Guarded::new(shards, &passwords(&[("alice", "secret"), ("bob", "")]), None, "");
    let node = guarded.setup.start();
    for shard in 0..shards {
        let client = client_on(shard, shards, "words");
        for (version, wrong, stranger) in [(V5, 0x86, 0x87), (V311, 4, 5)] {
            let connect = Connect::new(version, &client);
            for (user, password, reason) in
                [("alice", "secret", 0), ("alice", "Secret", wrong), ("alice", "", wrong), ("eve", "secret", wrong)]
            {
                let (mut raw, connack) = Raw::connack(node.mqtt(), &connect.clone().login(user, password));
                assert_eq!(connack.reason(), reason, "{user} {password:?} with version {version}");
                match reason {
                    0 => raw.ping(),
                    _ => assert_eq!(raw.closed(SHORT), [], "a refusal is the last word"),
                }
            }
            let (_, connack) = Raw::connack(node.mqtt(), &connect);
            assert_eq!(connack.reason(), stranger, "a client without a name");
            let (_, connack) = Raw::connack(node.mqtt(), &Connect { username: Some("alice"), ..connect });
            assert_eq!(connack.reason(), wrong, "a name without a password");
        }
    }
    assert!(node.counter("authentication_denied") >= 8);
}

#[test]
fn a_client_is_refused_in_the_words_of_its_version_on_one_shard() {
    in_the_words_of_the_version(1);
}

#[test]
fn a_client_is_refused_in_the_words_of_its_version_on_three_shards() {
    in_the_words_of_the_version(3);
}

#[test]
fn a_stranger_comes_in_where_the_listener_allows_it() {
    let more = "listeners.tcp.default.allow_anonymous = true";
    let node = Guarded::new(2, &passwords(&[("alice", "secret")]), None, more).setup.start();
    Raw::connect(node.mqtt(), &Connect::new(V5, "stranger")).ping();
    let (_, connack) = Raw::connack(node.mqtt(), &Connect::new(V5, "eve").login("eve", "x"));
    assert_eq!(connack.reason(), 0x86, "who tells a name has to prove it");
}

#[test]
fn what_is_sent_behind_connect_is_served_after_the_verdict() {
    let node = Guarded::new(3, &passwords(&[("alice", "secret")]), None, "").setup.start();
    for shard in 0..3 {
        let client = client_on(shard, 3, "eager");
        let mut raw = node.raw();
        let mut bytes = Connect::new(V5, &client).login("alice", "secret").bytes();
        bytes.extend(wire::subscribe(V5, 1, "t", 1));
        bytes.extend(wire::Publish::new("t", b"early").acked(1, 2).bytes(V5));
        raw.send(&bytes);
        raw.speak(V5);
        assert_eq!(raw.expect(kind::CONNACK).reason(), 0);
        // A message may overtake the answer to its subscription.
        let mut kinds = [(); 3].map(|()| raw.next(SHORT).expect("it is served").kind);
        kinds.sort_unstable();
        assert_eq!(kinds, [kind::PUBLISH, kind::PUBACK, kind::SUBACK]);
    }
}

/// Runs `ringmq passwd` with a password on standard input.
pub(crate) fn passwd(arguments: &[&str], password: &str) -> (bool, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringmq"))
        .arg("passwd")
        .args(arguments)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the executable starts");
    // It may refuse before it reads.
    let _ = child.stdin.take().expect("piped").write_all(password.as_bytes());
    let output = child.wait_with_output().expect("a child can be waited for");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn ringmq_passwd_sets_and_removes_users_and_refuses_names_that_cannot_be() {
    let guarded = Guarded::new(1, "", None, "");
    let file = guarded.path("made").display().to_string();
    for user in ["alice", "bob"] {
        let (well, said) = passwd(&[&file, user], "first\n");
        assert!(well, "{said}");
    }
    assert!(passwd(&[&file, "alice", "-H", "sha512-pbkdf2", "-I", "101"], "second").0);
    let text = std::fs::read_to_string(&file).expect("it was made");
    assert!(text.starts_with("alice:$7$101$") && text.contains("\nbob:$argon2id$v=19$m=19456,t=2,p=1$"), "{text}");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&file).expect("it was made")) & 0o777, 0o600);
    for (user, password, why) in [
        ("a:b", "x", "cannot contain ':'"),
        ("a\u{7}", "x", "control"),
        ("", "x", "needs a name"),
        ("#a", "x", "begin with '#'"),
        ("c", "", "empty password"),
    ] {
        let (well, said) = passwd(&[&file, user], password);
        assert!(!well && said.contains(why), "{user:?}: {said}");
    }
    assert!(!passwd(&[&file, "eve", "-D"], "").0, "there is no such user");
    assert!(passwd(&[&file, "bob", "-D"], "").0);
    assert!(!std::fs::read_to_string(&file).expect("it was made").contains("bob"));
    let node = guarded.setup.clone().env("RINGMQ_AUTHENTICATION", format!("[{{path = {file:?}}}]")).start();
    enter(&node, "c", "alice", "second").ping();
    let (_, connack) = Raw::connack(node.mqtt(), &Connect::new(V5, "d").login("bob", "first"));
    assert_eq!(connack.reason(), 0x86);
}

#[test]
fn files_of_mosquitto_passwd_open_our_doors_and_our_files_open_those_of_mosquitto() {
    needs!("mosquitto_passwd", "mosquitto", "mosquitto_pub");
    let guarded = Guarded::new(2, "", None, "");
    let file = guarded.path("shared").display().to_string();
    Program::new("mosquitto_passwd").args(["-c", "-b", &file, "theirs", "of mosquitto"]).succeed(SHORT);
    assert!(passwd(&[&file, "ours", "-H", "sha512-pbkdf2"], "of ringmq").0);
    let node = guarded.setup.clone().env("RINGMQ_AUTHENTICATION", format!("[{{path = {file:?}}}]")).start();
    let port = harness::ports::free().port().to_string();
    guarded
        .write("mosquitto.conf", &format!("listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {file}\n"));
    let conf = guarded.path("mosquitto.conf").display().to_string();
    let _mosquitto = Program::new("mosquitto").args(["-c", &conf]).start();
    within(SHORT, "mosquitto accepts", || std::net::TcpStream::connect(format!("127.0.0.1:{port}")).ok());
    let ours = node.mqtt().port().to_string();
    for port in [&ours, &port] {
        for (user, password, well) in
            [("theirs", "of mosquitto", true), ("ours", "of ringmq", true), ("ours", "of mosquitto", false)]
        {
            let arguments = ["-p", port, "-u", user, "-P", password, "-t", "t", "-m", "m", "-q", "1"];
            let mut client = Program::new("mosquitto_pub").args(arguments).start();
            let code = client.wait(SHORT);
            assert_eq!(code == Some(0), well, "{user} {password:?} at {port}: {code:?}");
        }
    }
}

/// A password that takes its time.
fn slow_passwords() -> String {
    let hashed = Hashed::new(b"secret", Method::Argon2id(64 << 10, 8, 1)).expect("randomness");
    format!("slow:{hashed}\n")
}

#[test]
fn clients_that_find_no_room_before_the_threads_are_refused_and_the_others_are_served() {
    let more = "admission = { threads = 1, queue_max = 1 }";
    let node = Guarded::new(2, &slow_passwords(), None, more).setup.start();
    let clients: Vec<String> = (0..8).map(|number| format!("client-{number}")).collect();
    let mut all: Vec<Raw> = clients
        .iter()
        .map(|client| {
            let mut raw = node.raw();
            raw.speak(V5);
            raw.send(&Connect::new(V5, client).login("slow", "secret").bytes());
            raw
        })
        .collect();
    let reasons: Vec<u8> = all.iter_mut().map(|raw| raw.expect(kind::CONNACK).reason()).collect();
    let (served, busy) =
        (reasons.iter().filter(|reason| **reason == 0), reasons.iter().filter(|reason| **reason == 0x97));
    let (served, busy) = (served.count(), busy.count());
    assert!(served >= 1 && busy >= 1 && served + busy == 8, "{reasons:02x?}");
    assert_eq!(node.counter("authentication_overloaded"), busy as u64);
}

#[test]
fn a_client_that_leaves_while_it_waits_leaves_nothing_behind() {
    let more = "admission.threads = 1";
    let node = Guarded::new(2, &slow_passwords(), None, more).setup.start();
    for number in 0..6 {
        let mut raw = node.raw();
        raw.send(&Connect::new(V5, &format!("client-{number}")).login("slow", "wrong").bytes());
    }
    within(Duration::from_secs(30), "nobody is left", || {
        let asked = node.counter("authentication_asked") >= 6;
        (asked && node.figure("shard_connections") == 0.0 && node.figure("shard_sessions") == 0.0).then_some(())
    });
    enter(&node, "after", "slow", "secret").ping();
}

/// A token that is signed with `secret`, made here and not by the library that judges it.
fn token(secret: &str, claims: &str) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let body = [r#"{"alg":"HS256","typ":"JWT"}"#, claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    format!("{body}.{}", URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, body.as_bytes())))
}

#[test]
fn a_token_lets_in_brings_its_rights_and_ends_the_connection_with_it() {
    let secret = "a secret of more than sixteen bytes";
    let guarded = Guarded::new(3, &passwords(&[("alice", "secret")]), Some("user alice\ntopic readwrite #\n"), "");
    let chain = format!(
        "[{{path = {:?}}}, {{mechanism = \"jwt\", secret = {secret:?}}}]",
        guarded.path("passwords").display().to_string()
    );
    let node = guarded.setup.clone().env("RINGMQ_AUTHENTICATION", chain).start();
    let acl = r#"[{"permission":"allow","action":"all","topic":"own/${clientid}/#"}]"#;
    let lasting = format!(r#"{{"sub":"bob","acl":{acl}}}"#);
    for shard in 0..3 {
        let client = client_on(shard, 3, "token");
        let mut bob = enter(&node, &client, "bob", &token(secret, &lasting));
        bob.publish_acked(&format!("own/{client}/x"), b"m", 1);
        bob.send(&wire::Publish::new("other/x", b"m").acked(1, 2).bytes(V5));
        assert_eq!(bob.expect(kind::PUBACK).reason(), 0x87);
    }
    // The chain goes on after it: alice is in the file.
    enter(&node, "alice", "alice", "secret").publish_acked("any", b"m", 1);
    for (user, token, reason) in [
        ("bob", token("another secret, also long enough", &lasting), 0x86),
        ("eve", token(secret, &lasting), 0x87),
        ("bob", token(secret, r#"{"sub":"bob","exp":1000000000}"#), 0x86),
        ("bob", "no token".to_owned(), 0x86),
    ] {
        let (_, connack) = Raw::connack(node.mqtt(), &Connect::new(V5, "refused").login(user, &token));
        assert_eq!(connack.reason(), reason, "{user} {token}");
    }
    let now_s = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    let brief = format!(r#"{{"sub":"bob","exp":{}}}"#, now_s + 3);
    let mut bob = enter(&node, "brief", "bob", &token(secret, &brief));
    let last = bob.closed(SHORT);
    assert_eq!(
        last.iter().map(|packet| (packet.kind, packet.reason())).collect::<Vec<_>>(),
        [(kind::DISCONNECT, 0xA0)]
    );
}

#[test]
fn a_password_file_that_cannot_be_read_is_said_at_the_start() {
    for (text, why) in
        [("alice:plain\n", "passwords: line 1: the password is not hashed"), ("x\n", "a line is user:hash")]
    {
        let ended = Guarded::new(1, text, None, "").setup.refused(SHORT);
        assert!(ended.code != Some(0) && ended.said.contains(why), "{ended:?}");
    }
    let guarded = Guarded::new(1, "", Some("usr x\n"), "");
    let file = guarded.path("ringmq.toml").display().to_string();
    let checked = guarded.setup.run(&guarded.path("data"), &["config", "check", "--config", &file], SHORT);
    assert!(checked.code == Some(78) && checked.said.contains("rules: line 1"), "{checked:?}");
    let ended = guarded.setup.refused(SHORT);
    assert!(ended.said.contains("rules: line 1: \"usr\" is none of user, topic and pattern"), "{ended:?}");
}
