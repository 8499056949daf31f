//! TLS misused: every certificate that must not be believed, old versions, renegotiation, the wrong protocol on each
//! side, and handshakes that never end. `openssl s_client` is the client that does what libraries would not.

use std::io::{ErrorKind, Read, Write};

use harness::{LONG, Program, Setup, client_on, needs, wire, wire::Connect, wire::kind};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    papers::Papers,
    place,
    secure::{self, Client},
};

/// Handshakes that begin at once.
const STORM: usize = 500;
/// Handshakes that never end, or as many as this process may have descriptors for.
const HALF: usize = 10_000;
/// Descriptors that the other tests of this process need.
const DESCRIPTORS_OF_OTHERS: u64 = 2500;

/// Half handshakes that this test can have, with as many descriptors as the system allows.
fn half_handshakes() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("the soft limit may be raised to the hard one");
    let room = limit.maximum.unwrap_or(u64::MAX).saturating_sub(DESCRIPTORS_OF_OTHERS);
    HALF.min(usize::try_from(room).unwrap_or(HALF)).max(100)
}

/// Runs `openssl s_client` with `input` on its standard input, and gives all that it printed.
fn s_client(papers: &Papers, port: u16, arguments: &[&str], input: &str) -> String {
    let mut running = Program::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-CAfile", &papers.file("ca.pem")])
        .args(arguments)
        .start();
    input.lines().for_each(|line| running.say(line));
    if input.is_empty() {
        running.close_input();
    }
    running.wait(LONG);
    // It prints until its end, which has come.
    let mut said = Vec::new();
    harness::within(LONG, "the output is read", || {
        said.extend(running.so_far(|line| Some(line.to_owned())));
        (!said.is_empty()).then_some(())
    });
    said.extend(running.so_far(|line| Some(line.to_owned())));
    said.join("\n")
}

#[test]
fn openssl_speaks_both_versions_and_is_verified_against_the_authority() {
    needs!("openssl");
    let (place, node) = place();
    let port = node.address("ssl", "default").port();
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let said = s_client(&place.papers, port, &[version, "-alpn", "mqtt", "-verify_return_error"], "");
        assert!(said.contains("Verify return code: 0 (ok)") && said.contains(name), "{said}");
        assert!(said.contains("ALPN protocol: mqtt"), "{said}");
    }
}

#[test]
fn the_certificate_is_that_of_the_name_that_was_asked_for() {
    needs!("openssl");
    let (place, node) = place();
    let port = node.address("ssl", "default").port();
    for (asked, right) in [("other.example", "other.example"), ("localhost", "localhost"), ("unknown", "localhost")] {
        let verify = ["-servername", asked, "-verify_hostname", right, "-verify_return_error"];
        let said = s_client(&place.papers, port, &verify, "");
        assert!(said.contains("Verify return code: 0 (ok)"), "{asked}: {said}");
    }
}

#[test]
fn old_versions_other_protocols_and_renegotiation_are_refused() {
    needs!("openssl");
    let (place, node) = place();
    let port = node.address("ssl", "default").port();
    for arguments in [
        &["-tls1", "-cipher", "ALL:@SECLEVEL=0"][..],
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        &["-alpn", "h2,http/1.1"],
    ] {
        let said = s_client(&place.papers, port, arguments, "");
        let refused = said.contains("alert") || said.contains("no protocols available");
        assert!(refused && !said.contains("Verify return code: 0 (ok)\n---\nread"), "{arguments:?}: {said}");
    }
    let said = s_client(&place.papers, port, &["-tls1_2"], "R");
    assert!(said.contains("no renegotiation") || said.contains("alert"), "{said}");
}

#[test]
fn a_certificate_that_must_not_be_believed_is_refused_with_an_alert() {
    let (place, node) = place();
    let broker = node.address("ssl", "mutual");
    let before = node.counter("tls_refused");
    let mut refused = 0;
    for (name, alert) in [
        (Some("expired"), "CertificateExpired"),
        (Some("future"), "CertificateExpired|BadCertificate"),
        (Some("stranger"), "UnknownCA"),
        (Some("selfsigned"), "UnknownCA"),
        (Some("servers"), "UnsupportedCertificate|BadCertificate|CertificateUnknown"),
        (Some("revoked"), "CertificateRevoked"),
        (None, "CertificateRequired|HandshakeFailure"),
    ] {
        let mut stream = secure::tls(secure::tcp(broker), secure::config(&place.papers, name));
        // In TLS 1.3 the client is done before its certificate is judged, so the refusal comes to its first read.
        let _ = stream.write_all(&secure::connect("never"));
        let _ = stream.flush();
        let error = stream.read(&mut [0; 100]).expect_err("no byte of MQTT").to_string();
        let alerts: Vec<&str> = alert.split('|').collect();
        assert!(alerts.iter().any(|alert| error.contains(alert)), "{name:?}: {error}");
        refused += 1;
    }
    node.counter_reaches("tls_refused", before + refused);
    assert!(!node.output().contains("client=never"), "none of them reached MQTT");
    let good = secure::tls(secure::tcp(broker), secure::config(&place.papers, Some("good")));
    Client::connect(good, &client_on(1, 3, "tls-good"));
}

#[test]
fn a_certificate_is_a_user_name_that_rules_know_whatever_connect_says() {
    let papers = Papers::new();
    let rules = papers.directory().join("acl.conf");
    std::fs::write(&rules, "{allow, {username, \"sensor-7\"}, all, [\"mine/#\"]}.\n").expect("the rules are written");
    let setup = Setup::new(env!("CARGO_BIN_EXE_ringmq"))
        .shards(2)
        .env("RINGMQ_LISTENERS__SSL__MUTUAL__SSL_OPTIONS__PEER_CERT_AS_USERNAME", "cn")
        .env("RINGMQ_AUTHORIZATION__SOURCES", format!("[{{path=\"{}\"}}]", rules.display()))
        .env("RINGMQ_AUTHORIZATION__NO_MATCH", "deny");
    let node = crate::mutual(setup, "ssl", "mutual", &papers).start();
    let broker = node.address("ssl", "mutual");
    for shard in 0..2 {
        let stream = secure::tls(secure::tcp(broker), secure::config(&papers, Some("good")));
        let mut client = Client::new(stream);
        let id = client_on(shard, 2, "certified");
        client.send(&Connect { username: Some("somebody-else"), ..Connect::new(wire::V5, &id) }.bytes());
        assert_eq!(client.expect(kind::CONNACK).reason(), 0);
        client.send(&wire::Publish::new("mine/t", b"x").acked(1, 1).bytes(wire::V5));
        assert!([0, 0x10].contains(&client.expect(kind::PUBACK).reason()), "its own topic");
        client.send(&wire::Publish::new("other/t", b"x").acked(1, 2).bytes(wire::V5));
        assert_eq!(client.expect(kind::PUBACK).reason(), 0x87, "nobody else's");
    }
}

#[test]
fn each_protocol_on_the_port_of_the_other_is_refused() {
    let (place, node) = place();
    let mut plain = secure::tcp(node.address("ssl", "default"));
    plain.write_all(&secure::connect("plain-on-tls")).expect("the broker reads");
    let mut said = Vec::new();
    plain.read_to_end(&mut said).expect("an alert and the end");
    assert!(said.is_empty() || said[0] == 0x15, "an alert: {said:?}");
    let mut secure = secure::tls(secure::tcp(node.mqtt()), secure::config(&place.papers, None));
    assert!(secure.write_all(b"x").is_err() || secure.flush().is_err() || secure.read(&mut [0]).is_err());
}

#[test]
fn a_storm_of_handshakes_is_served_and_who_is_connected_too() {
    let (place, node) = place();
    let broker = node.address("ssl", "default");
    let config = secure::config(&place.papers, None);
    let mut client = Client::connect(secure::tls(secure::tcp(broker), config.clone()), "tls-before-storm");
    // Every hello is there before the first answer is read.
    let storm: Vec<_> = (0..STORM)
        .map(|at| {
            let mut stream = secure::tls(secure::tcp(broker), config.clone());
            stream.conn.write_tls(&mut stream.sock).expect("the broker reads");
            (at, stream)
        })
        .collect();
    client.send(&wire::pingreq());
    client.expect(kind::PINGRESP);
    for (at, stream) in storm {
        Client::connect(stream, &client_on((at % 3) as u16, 3, &format!("tls-storm-{at}")));
    }
}

#[test]
fn handshakes_that_never_end_are_ended_and_harm_nobody() {
    let (place, node) = place();
    let broker = node.address("ssl", "hasty");
    let mut client = Client::connect(
        secure::tls(secure::tcp(broker), secure::config(&place.papers, None)),
        &client_on(0, 3, "tls-among-half"),
    );
    let before = node.counter("handshake_timeout");
    let mut half: Vec<_> = (0..half_handshakes()).map(|_| secure::tcp(broker)).collect();
    let count = half.len() as u64;
    for (at, stream) in half.iter_mut().enumerate() {
        // Nothing, a part of a record, or the beginning of one that would be long. The first ones may be over already.
        let part: &[u8] = [&[][..], &[0x16, 3, 1], &[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3]][at % 3];
        let _ = stream.write_all(part);
    }
    client.send(&wire::pingreq());
    client.expect(kind::PINGRESP);
    let fresh = secure::tls(secure::tcp(broker), secure::config(&place.papers, None));
    Client::connect(fresh, &client_on(2, 3, "tls-fresh-among-half"));
    for mut stream in half {
        // A reset is an end, too: what was written after it was not read.
        let mut said = Vec::new();
        let ended = stream.read_to_end(&mut said);
        assert!(!ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "it is still open");
    }
    node.counter_reaches("handshake_timeout", before + count);
    client.send(&wire::pingreq());
    client.expect(kind::PINGRESP);
}
