//! Certificates of every kind that a test needs, made when it runs. Always true: they are good for a day, and each
//! set has an authority of its own.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};

/// Serial number of the certificate that is revoked.
const REVOKED: u64 = 666;

/// A directory with an authority (`ca.pem`, `ca.crl`), a server's certificate (`server.pem`, `server.key`), one for another name
/// (`other.pem`), and clients' (`good`, `expired`, `future`, `stranger`, `selfsigned`, `servers`, `revoked`).
pub struct Papers {
    directory: tempfile::TempDir,
    authority: Issuer<'static, KeyPair>,
    stranger: Issuer<'static, KeyPair>,
}

impl Papers {
    pub fn new() -> Papers {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (authority, pem) = authority("RingMQ test authority");
        let (stranger, _) = self::authority("Somebody else");
        let papers = Papers { directory, authority, stranger };
        papers.write("ca.pem", &pem);
        papers.write("ca.crl", &papers.revocations());
        papers.server("server.pem", "server.key", &["localhost", "127.0.0.1", "::1"]);
        papers.server("other.pem", "other.key", &["other.example"]);
        let other = papers.read("other.pem") + &papers.read("other.key");
        papers.write("other.pem", &other);
        papers.clients();
        papers
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The path of one of them.
    pub fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("it was made")
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("the directory is writable");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes a server's certificate anew.
    pub fn server(&self, certificate: &str, key: &str, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, "the broker");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let pair = KeyPair::generate().expect("a key");
        self.write(certificate, &params.signed_by(&pair, &self.authority).expect("a certificate").pem());
        self.write(key, &pair.serialize_pem());
    }

    fn clients(&self) {
        let ordinary = |name: &str| {
            let mut params = CertificateParams::new(Vec::new()).expect("no names");
            params.distinguished_name.push(DnType::CommonName, name);
            params.distinguished_name.push(DnType::OrganizationName, "RingMQ");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params
        };
        let mut expired = ordinary("expired");
        (expired.not_before, expired.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        let mut future = ordinary("future");
        (future.not_before, future.not_after) = (date_time_ymd(2090, 1, 1), date_time_ymd(2091, 1, 1));
        let mut servers = ordinary("servers");
        servers.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let mut revoked = ordinary("revoked");
        revoked.serial_number = Some(SerialNumber::from(REVOKED));
        for (name, params, issuer) in [
            ("good", ordinary("sensor-7"), Some(&self.authority)),
            ("expired", expired, Some(&self.authority)),
            ("future", future, Some(&self.authority)),
            ("servers", servers, Some(&self.authority)),
            ("revoked", revoked, Some(&self.authority)),
            ("stranger", ordinary("stranger"), Some(&self.stranger)),
            ("selfsigned", ordinary("selfsigned"), None),
        ] {
            let pair = KeyPair::generate().expect("a key");
            let certificate = match issuer {
                Some(issuer) => params.signed_by(&pair, issuer),
                None => params.self_signed(&pair),
            };
            self.write(&format!("{name}.pem"), &certificate.expect("a certificate").pem());
            self.write(&format!("{name}.key"), &pair.serialize_pem());
        }
    }

    fn revocations(&self) -> String {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(REVOKED),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.authority).expect("a list").pem().expect("PEM")
    }
}

fn authority(name: &str) -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let pair = KeyPair::generate().expect("a key");
    let pem = params.self_signed(&pair).expect("a certificate").pem();
    (Issuer::new(params, pair), pem)
}
