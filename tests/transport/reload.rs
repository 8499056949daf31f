//! Certificates change under live connections: nobody is disconnected, who comes next sees the new one, and a file that
//! cannot be used changes nothing.

use harness::{
    LONG, Node, Role, Setup, client_on, process,
    wire::{self, kind},
    within,
};
use rustix::process::Signal;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::{
    mutual,
    papers::Papers,
    secure::{self, Client},
};

/// Connections that live through the change.
const LIVE: usize = 1000;

fn reload(node: &Node) {
    process::signal(node.pid(Role::Supervisor), Signal::HUP);
}

/// The certificate that a new client of `papers` is shown.
fn shown(node: &Node, papers: &Papers, at: usize) -> CertificateDer<'static> {
    let stream = secure::tls(secure::tcp(node.address("ssl", "default")), secure::config(papers, Some("good")));
    let client = Client::connect(stream, &client_on((at % 3) as u16, 3, &format!("shown-{at}")));
    client.wire.conn.peer_certificates().expect("a certificate")[0].clone().into_owned()
}

#[test]
fn new_certificates_are_for_new_connections_and_bad_files_change_nothing() {
    let papers = Papers::new();
    let node = mutual(Setup::new(env!("CARGO_BIN_EXE_ringmq")).shards(3), "ssl", "default", &papers).start();
    let config = secure::config(&papers, Some("good"));
    let mut live: Vec<_> = (0..LIVE)
        .map(|at| {
            let stream = secure::tls(secure::tcp(node.address("ssl", "default")), config.clone());
            Client::connect(stream, &client_on((at % 3) as u16, 3, &format!("live-{at}")))
        })
        .collect();
    let old = CertificateDer::from_pem_file(papers.file("server.pem")).expect("PEM");
    assert_eq!(shown(&node, &papers, 0), old);

    // A key that is not the certificate's.
    let key = papers.read("server.key");
    papers.write("server.key", &papers.read("other.key"));
    reload(&node);
    within(LONG, "the operator is told", || {
        let said = node.output();
        said.contains("certificates are not reloaded; the old ones stay").then_some(())?;
        assert!(said.contains("server.key cannot be used: it is not the key of"), "{said}");
        Some(())
    });
    assert_eq!(shown(&node, &papers, 1), old);

    papers.write("server.key", &key);
    papers.server("server.pem", "server.key", &["localhost"]);
    let new = CertificateDer::from_pem_file(papers.file("server.pem")).expect("PEM");
    reload(&node);
    within(LONG, "every shard shows the new certificate", || {
        (0..12).all(|at| shown(&node, &papers, at) == new).then_some(())
    });
    for client in &mut live {
        client.send(&wire::pingreq());
        client.expect(kind::PINGRESP);
    }
}

#[test]
fn a_listener_without_a_usable_certificate_stops_the_start_and_says_which_file() {
    let papers = Papers::new();
    papers.write("server.pem", "nothing");
    let setup = mutual(Setup::new(env!("CARGO_BIN_EXE_ringmq")), "ssl", "default", &papers);
    let checked = setup.run(papers.directory(), &["config", "check"], LONG);
    let words = "listeners.ssl.default: ";
    assert!(checked.code == Some(78) && checked.said.contains(words), "{checked:?}");
    let ended = setup.refused(LONG);
    assert!(ended.said.contains("server.pem cannot be used: it holds no certificate"), "{}", ended.said);
}
