//! Layers against a client of rustls, in memory, with every cut: what the broker reads, what the client reads.

use std::{
    io::{Read, Write},
    net::Ipv4Addr,
};

use contract::config::{self, Verify};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};

use super::*;
use crate::certificates;

const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
const UNKNOWN: Unknown = Unknown { listener: 0, since_us: 0 };
const HEAD: &str = "GET /mqtt HTTP/1.1\r\nHost: b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Protocol: mqtt\r\n\r\n";
const PROXY: &str = "PROXY TCP4 192.0.2.7 10.0.0.1 4660 1883\r\n";

/// Certificates of one test: an authority that is server and client at once keeps it short.
struct Paper {
    _directory: tempfile::TempDir,
    file: String,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Paper {
    fn new(subject: &str) -> Paper {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Ex, Ltd");
        if !subject.is_empty() {
            params.distinguished_name.push(rcgen::DnType::CommonName, subject);
        }
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("both.pem");
        std::fs::write(&path, certificate.pem() + &key.serialize_pem()).expect("a file");
        Paper {
            _directory: directory,
            file: path.to_str().expect("UTF-8").to_owned(),
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
        }
    }

    fn options(&self) -> config::Tls {
        config::Tls {
            certfile: Some(self.file.clone()),
            keyfile: None,
            sni_certfiles: Vec::new(),
            cacertfile: None,
            crlfile: None,
            verify: Verify::None,
            fail_if_no_peer_cert: false,
            user: config::CertificateUser::Disabled,
            versions: vec!["tlsv1.3".to_owned(), "tlsv1.2".to_owned()],
            handshake_timeout_ms: 1000,
        }
    }

    fn client(&self, show: Option<&Paper>, alpn: &[&str]) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a certificate");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match show {
            None => builder.with_no_client_auth(),
            Some(paper) => builder
                .with_client_auth_cert(vec![paper.certificate.clone()], paper.key.clone_key())
                .expect("a certificate with its key"),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").expect("a name")).expect("a session")
    }
}

fn recipe(tls: Option<&config::Tls>, websocket: bool, proxy: bool) -> Recipe {
    let settings = || Arc::new(websocket::Settings { path: "/mqtt".to_owned(), frame_bytes_max: 1 << 20 });
    Recipe {
        proxy_us: proxy.then_some(1000),
        tls: tls.map(|tls| (certificates::load(tls, "mqtt").expect("good files"), 2000)),
        websocket: websocket.then(settings),
    }
}

fn layers(recipe: &Recipe) -> Layers {
    match recipe.stage(&"ssl:test".into(), PEER, UNKNOWN).expect("a stage") {
        Stage::Layered(layers) => *layers,
        Stage::Plain => panic!("a stage with layers"),
    }
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x82, 0x80 | u8::try_from(payload.len()).expect("a short one"), 0, 0, 0, 0];
    bytes.extend_from_slice(payload);
    bytes
}

/// Both ends until neither has more to say. `step` cuts what the client sends; what the broker says is `answer`, as
/// soon as something was read. Gives what each side read.
fn talk(client: &mut ClientConnection, layers: &mut Layers, step: usize, answer: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut plain, mut heard, mut answered) = (Vec::new(), Vec::new(), false);
    loop {
        let (mut out, mut back) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut out).expect("memory");
        }
        for piece in out.chunks(step) {
            layers.open(piece, &mut plain).expect("a good client");
        }
        let say = if plain.is_empty() || answered { &[][..] } else { answer };
        answered |= !say.is_empty();
        layers.seal(say, &mut back);
        if out.is_empty() && back.is_empty() {
            return (plain, heard);
        }
        let mut rest = &back[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory");
            client.process_new_packets().expect("a good server");
            let mut bytes = [0; 4096];
            while let Ok(count) = client.reader().read(&mut bytes) {
                if count == 0 {
                    break;
                }
                heard.extend_from_slice(&bytes[..count]);
            }
        }
    }
}

#[test]
fn tls_carries_both_ways_wherever_it_is_cut() {
    let paper = Paper::new("server");
    let recipe = recipe(Some(&paper.options()), false, false);
    let said = vec![b's'; 40_000];
    let answer = vec![b'a'; 70_000];
    for step in [1, 2, 3, 7, 100, 1000, 16_384, 100_000] {
        let mut layers = layers(&recipe);
        let mut client = paper.client(None, &["mqtt"]);
        assert!(!layers.known());
        client.writer().write_all(&said).expect("memory");
        let (plain, heard) = talk(&mut client, &mut layers, step, &answer);
        assert!(plain == said && heard == answer && layers.known(), "{step}");
        assert!(!layers.has_output());
    }
}

#[test]
fn every_split_of_proxy_tls_and_websocket_reads_the_same() {
    let paper = Paper::new("server");
    let recipe = recipe(Some(&paper.options()), true, true);
    for at in 0..PROXY.len() {
        let mut layers = layers(&recipe);
        let mut plain = Vec::new();
        layers.open(&PROXY.as_bytes()[..at], &mut plain).expect("half a header");
        assert!(!layers.known() && layers.peer() == PEER);
        layers.open(&PROXY.as_bytes()[at..], &mut plain).expect("the other half");
        assert_eq!(layers.peer(), "192.0.2.7:4660".parse().expect("an address"));
        let mut client = paper.client(None, &[]);
        client.writer().write_all(HEAD.as_bytes()).expect("memory");
        client.writer().write_all(&frame(b"CONNECT")).expect("memory");
        let (plain, heard) = talk(&mut client, &mut layers, 1 + at * 20, b"CONNACK");
        assert_eq!(plain, b"CONNECT");
        assert!(heard.starts_with(b"HTTP/1.1 101 ") && heard.ends_with(b"\x82\x07CONNACK"), "{heard:?}");
    }
}

#[test]
fn a_plain_connection_has_no_layers_and_a_proxied_one_loses_its_only_one() {
    let plain = recipe(None, false, false);
    assert!(matches!(plain.stage(&"tcp:test".into(), PEER, UNKNOWN), Ok(Stage::Plain)));
    assert_eq!(plain.patience_us(), None);
    let proxied = recipe(None, false, true);
    assert_eq!(proxied.patience_us(), Some(1000));
    let mut layers = layers(&proxied);
    let mut bytes = Vec::new();
    layers.open(&[PROXY.as_bytes(), b"CONNECT"].concat(), &mut bytes).expect("a header");
    assert!(layers.is_done() && layers.known());
    assert_eq!(bytes, b"CONNECT");
}

#[test]
fn a_load_balancer_elsewhere_cannot_speak_for_loopback() {
    let proxied = recipe(None, false, true);
    let elsewhere = SocketAddr::from(([198, 51, 100, 1], 7));
    for (from, refused) in [(PEER, false), (elsewhere, true)] {
        for address in ["TCP4 127.0.0.1 10.0.0.1", "TCP6 ::1 ::2", "TCP6 ::ffff:127.0.0.1 ::2"] {
            let Ok(Stage::Layered(mut layers)) = proxied.stage(&"tcp:test".into(), from, UNKNOWN) else {
                panic!("a stage with layers")
            };
            let opened = layers.open(format!("PROXY {address} 1 2\r\n").as_bytes(), &mut Vec::new());
            assert_eq!(opened.is_err(), refused, "{from} {address}");
        }
    }
}

#[test]
fn a_verified_certificate_says_who_is_there() {
    let paper = Paper::new("server");
    for (name, common_name, subject) in [
        ("sensor-7", Some("sensor-7"), "CN=sensor-7,O=Ex\\, Ltd"),
        ("", None, "O=Ex\\, Ltd"),
        ("two\0faced", None, "CN=two\0faced,O=Ex\\, Ltd"),
    ] {
        let shown = Paper::new(name);
        let mut options = paper.options();
        (options.verify, options.cacertfile) = (Verify::Peer, Some(shown.file.clone()));
        let mut layers = layers(&recipe(Some(&options), false, false));
        let mut client = paper.client(Some(&shown), &[]);
        talk(&mut client, &mut layers, 1000, b"");
        let certificate = layers.certificate().expect("it was verified");
        assert_eq!(certificate.common_name.as_deref(), common_name);
        assert_eq!(certificate.subject.replace("\\00", "\0"), subject);
        // Without verification nobody is asked, so nothing is known.
        let mut layers = super::tests::layers(&recipe(Some(&paper.options()), false, false));
        talk(&mut paper.client(Some(&shown), &[]), &mut layers, 1000, b"");
        assert!(layers.known() && layers.certificate().is_none());
    }
}

/// What a stage says about a client that it cannot go on with, and whether the client was told.
fn refusal(recipe: &Recipe, mut client: ClientConnection) -> (Counter, bool) {
    let mut layers = layers(recipe);
    let mut plain = Vec::new();
    loop {
        let (mut out, mut back) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut out).expect("memory");
        }
        assert!(!out.is_empty(), "the client is not refused");
        let opened = layers.open(&out, &mut plain);
        layers.seal(&[], &mut back);
        let mut rest = &back[..];
        let mut told = false;
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory");
            told |= matches!(client.process_new_packets(), Err(rustls::Error::AlertReceived(_)));
        }
        if let Err(broken) = opened {
            assert!(!broken.to_string().is_empty());
            assert!(matches!(layers.open(&out, &mut plain), Ok(Flow::More)), "nothing is read any more");
            return (broken.counter(), told);
        }
    }
}

#[test]
fn a_client_that_may_not_in_is_told_with_an_alert() {
    let paper = Paper::new("server");
    let plain = recipe(Some(&paper.options()), false, false);
    assert_eq!(refusal(&plain, paper.client(None, &["h2"])), (Counter::tls_refused, true));
    let shown = Paper::new("sensor-7");
    let mut options = paper.options();
    (options.verify, options.cacertfile) = (Verify::Peer, Some(shown.file.clone()));
    options.fail_if_no_peer_cert = true;
    let verified = recipe(Some(&options), false, false);
    assert_eq!(refusal(&verified, paper.client(None, &[])), (Counter::tls_refused, true));
    assert_eq!(refusal(&verified, paper.client(Some(&Paper::new("sensor-7")), &[])), (Counter::tls_refused, true));
}

#[test]
fn what_is_no_tls_is_refused_and_a_broken_record_too() {
    let paper = Paper::new("server");
    let recipe = recipe(Some(&paper.options()), false, false);
    let mut plain = Vec::new();
    let mut broken = layers(&recipe);
    let refused = broken.open(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00", &mut plain).expect_err("MQTT is no TLS");
    assert_eq!(refused.counter(), Counter::tls_refused);
    let mut layers = layers(&recipe);
    talk(&mut paper.client(None, &[]), &mut layers, 1000, b"");
    let broken = layers
        .open(&[0x17, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20], &mut plain);
    assert_eq!(broken.expect_err("a record of nobody").counter(), Counter::tls_broken);
    assert!(plain.is_empty());
}

#[test]
fn the_last_seal_says_goodbye_once_and_the_rest_is_given_up() {
    let mut stage = Stage::Layered(Box::new(layers(&recipe(None, true, false))));
    let Stage::Layered(layers) = &mut stage else { panic!("layers") };
    layers.open(HEAD.as_bytes(), &mut Vec::new()).expect("a handshake");
    let mut wire = Vec::new();
    stage.seal(Some(&mut b"bye".to_vec()), &mut wire, true);
    assert!(wire.ends_with(b"\x82\x03bye\x88\x02\x03\xe8"), "{wire:?}");
    wire.clear();
    let mut late = b"late".to_vec();
    stage.seal(Some(&mut late), &mut wire, true);
    assert!(wire.is_empty() && late.is_empty());
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let (paper, other) = (Paper::new("a"), Paper::new("b"));
    let missing = "/nonexistent/cert.pem";
    let empty = paper._directory.path().join("empty.pem").to_str().expect("UTF-8").to_owned();
    std::fs::write(&empty, "nothing").expect("a file");
    let with = |change: &dyn Fn(&mut config::Tls)| {
        let mut options = paper.options();
        change(&mut options);
        certificates::load(&options, "mqtt").expect_err("a bad file")
    };
    for (said, words) in [
        (with(&|tls| tls.certfile = Some(missing.to_owned())), "/nonexistent/cert.pem cannot be used: No such file"),
        (with(&|tls| tls.certfile = Some(empty.clone())), "empty.pem cannot be used: it holds no certificate"),
        (with(&|tls| tls.keyfile = Some(other.file.clone())), "it is not the key of"),
        (with(&|tls| tls.keyfile = Some(empty.clone())), "empty.pem cannot be used"),
        (with(&|tls| tls.sni_certfiles = vec![missing.to_owned()]), "/nonexistent/cert.pem"),
        (
            with(&|tls| {
                (tls.verify, tls.cacertfile) = (Verify::Peer, Some(paper.file.clone()));
                tls.crlfile = Some(paper.file.clone());
            }),
            "it holds no revocation list",
        ),
    ] {
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_client_gets_the_certificate_of_the_name_that_it_asks_for() {
    let (default, named) = (Paper::new("default"), Paper::new("named"));
    let mut options = default.options();
    options.sni_certfiles = vec![named.file.clone()];
    let recipe = recipe(Some(&options), false, false);
    // It asks for localhost, which both are for: the further one has been named for it.
    let mut client = named.client(None, &[]);
    talk(&mut client, &mut layers(&recipe), 1000, b"");
    assert_eq!(client.peer_certificates().and_then(|chain| chain.first()), Some(&named.certificate));
    let mut roots = default.client(None, &[]);
    assert_eq!(refusal_of_client(&mut roots, &recipe), Counter::tls_refused);
}

/// The client does not trust what it is shown.
fn refusal_of_client(client: &mut ClientConnection, recipe: &Recipe) -> Counter {
    let mut layers = layers(recipe);
    for _ in 0..4 {
        let (mut out, mut back) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut out).expect("memory");
        }
        if let Err(broken) = layers.open(&out, &mut Vec::new()) {
            return broken.counter();
        }
        layers.seal(&[], &mut back);
        let mut rest = &back[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory");
            let _ = client.process_new_packets();
        }
    }
    panic!("the client trusts it");
}
