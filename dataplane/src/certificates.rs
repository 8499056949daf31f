//! The files of a listener's `ssl_options`, as the configuration that TLS sessions are made from. Read on the main
//! thread, at the start and at SIGHUP; shards hold the result and never see a file.
//!
//! Always true: what is returned has a key that fits its certificate, and never verifies less than was asked for.

use std::{fmt, sync::Arc};

use contract::config::{Tls, Verify};
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    client::verify_server_name,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{
        ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};

use crate::files;

/// Longest file that is read.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Tickets that a client gets to come back with.
const TICKETS: usize = 1;

/// Reads everything that `tls` names. A client that offers application protocols must offer `alpn`.
/// The error is one line for the operator and names the file.
pub(crate) fn load(tls: &Tls, alpn: &str) -> Result<Arc<ServerConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let certfile = tls.certfile.as_deref().ok_or("no certfile is configured")?;
    let default = certified(certfile, tls.keyfile.as_deref().unwrap_or(certfile), &provider)?;
    let named = tls.sni_certfiles.iter().map(|file| certified(file, file, &provider)).collect::<Result<_, _>>()?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions(&tls.versions))
        .map_err(|error| format!("the TLS versions cannot be used: {error}"))?;
    let verified = tls.verify == Verify::Peer;
    let builder = match verified {
        true => builder.with_client_cert_verifier(verifier(tls, provider)?),
        false => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(Certificates { default, named }));
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    // A store would be shared by all shards; a ticket is kept by the client.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // Who comes back with a ticket is not verified again, and its certificate may have been revoked.
    if !verified {
        config.ticketer = ring::Ticketer::new().map_err(|error| format!("no ticket can be made: {error}"))?;
        config.send_tls13_tickets = TICKETS;
    }
    Ok(Arc::new(config))
}

fn versions(words: &[String]) -> Vec<&'static SupportedProtocolVersion> {
    let known = [("tlsv1.3", &TLS13), ("tlsv1.2", &TLS12)];
    known.into_iter().filter(|(word, _)| words.iter().any(|said| said == word)).map(|(_, version)| version).collect()
}

fn verifier(tls: &Tls, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let file = tls.cacertfile.as_deref().ok_or("verify_peer needs a cacertfile")?;
    let mut roots = RootCertStore::empty();
    for authority in certificates(file)? {
        roots.add(authority).map_err(|error| wrong(file, error))?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if let Some(file) = &tls.crlfile {
        let bytes = read(file)?;
        let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&bytes)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(file, error))?;
        if lists.is_empty() {
            return Err(wrong(file, "it holds no revocation list"));
        }
        // As mosquitto does: the client's own certificate is looked up, and a list that is out of date proves nothing.
        builder = builder.with_crls(lists).only_check_end_entity_revocation().enforce_revocation_expiration();
    }
    if !tls.fail_if_no_peer_cert {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|error| wrong(tls.crlfile.as_deref().unwrap_or(file), error))
}

fn certified(certfile: &str, keyfile: &str, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, String> {
    let chain = certificates(certfile)?;
    let key = PrivateKeyDer::from_pem_slice(&read(keyfile)?).map_err(|error| wrong(keyfile, error))?;
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => wrong(keyfile, format!("it is not the key of {certfile}")),
        error => wrong(keyfile, error),
    })?;
    // A name is looked for in it with each handshake.
    parsed(&certified).map_err(|error| wrong(certfile, error))?;
    Ok(Arc::new(certified))
}

fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(file)?;
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|error| wrong(file, error))?;
    if found.is_empty() { Err(wrong(file, "it holds no certificate")) } else { Ok(found) }
}

fn read(file: &str) -> Result<Vec<u8>, String> {
    files::read(file, FILE_BYTES_MAX).map_err(|error| wrong(file, error))
}

fn wrong(file: &str, why: impl fmt::Display) -> String {
    format!("{file} cannot be used: {why}")
}

fn parsed(certified: &CertifiedKey) -> Result<ParsedCertificate<'_>, rustls::Error> {
    ParsedCertificate::try_from(certified.end_entity_cert()?)
}

/// The certificates of a listener.
#[derive(Debug)]
struct Certificates {
    default: Arc<CertifiedKey>,
    named: Vec<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = asked.and_then(|name| {
            self.named.iter().find(|certified| {
                parsed(certified).is_ok_and(|certificate| verify_server_name(&certificate, &name).is_ok())
            })
        });
        Some(named.unwrap_or(&self.default).clone())
    }
}
