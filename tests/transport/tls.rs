//! TLS misused: every certificate that must not be believed, old versions, renegotiation, the wrong protocol on each
//! side, and handshakes that never end. `openssl s_client` is the client that does what libraries would not.

use std::io::{Read, Write};

use harness::{LONG, Program, client_on, needs, wire, wire::kind};

use crate::{
    papers::Papers,
    place,
    secure::{self, Client},
};

/// Half handshakes that are open at once.
const HALF: usize = 500;

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
fn handshakes_that_never_end_are_ended_and_harm_nobody() {
    let (place, node) = place();
    let broker = node.address("ssl", "hasty");
    let mut client = Client::connect(
        secure::tls(secure::tcp(broker), secure::config(&place.papers, None)),
        &client_on(0, 3, "tls-among-half"),
    );
    let mut half: Vec<_> = (0..HALF).map(|_| secure::tcp(broker)).collect();
    for (at, stream) in half.iter_mut().enumerate() {
        // Nothing, a part of a record, or the beginning of one that would be long.
        let part: &[u8] = [&[][..], &[0x16, 3, 1], &[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3]][at % 3];
        stream.write_all(part).expect("the broker reads");
    }
    client.send(&wire::pingreq());
    client.expect(kind::PINGRESP);
    let fresh = secure::tls(secure::tcp(broker), secure::config(&place.papers, None));
    Client::connect(fresh, &client_on(2, 3, "tls-fresh-among-half"));
    for mut stream in half {
        let mut said = Vec::new();
        stream.read_to_end(&mut said).expect("an orderly end");
    }
    node.counter_reaches("handshake_timeout", HALF as u64);
    client.send(&wire::pingreq());
    client.expect(kind::PINGRESP);
}
