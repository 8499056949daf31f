//! Connections that send exactly the bytes they are told, through TLS or not; MQTT is read with the harness's
//! own `wire`. Always true: every read has a bound.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    sync::Arc,
    time::Duration,
};

use harness::wire::{self, Connect, Packet, kind};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use crate::papers::Papers;

/// How long anything here may take.
pub const BOUND: Duration = Duration::from_secs(10);

/// Something with two ends.
pub trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// A TCP connection with bounds.
pub fn tcp(broker: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&broker, BOUND).expect("the broker accepts");
    stream.set_nodelay(true).expect("TCP has no-delay");
    stream.set_read_timeout(Some(BOUND)).expect("a bound on reads");
    stream.set_write_timeout(Some(BOUND)).expect("a bound on writes");
    stream
}

/// A connection to a Unix socket.
pub fn unix(path: &std::path::Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("the broker accepts");
    stream.set_read_timeout(Some(BOUND)).expect("a bound on reads");
    stream
}

/// What a client of `papers` trusts and, with a name, the certificate that it shows.
pub fn config(papers: &Papers, shows: Option<&str>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(papers.file("ca.pem")).expect("PEM")).expect("a certificate");
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    Arc::new(match shows {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let chain = vec![CertificateDer::from_pem_file(papers.file(&format!("{name}.pem"))).expect("PEM")];
            let key = PrivateKeyDer::from_pem_file(papers.file(&format!("{name}.key"))).expect("PEM");
            builder.with_client_auth_cert(chain, key).expect("a certificate with its key")
        }
    })
}

/// TLS on `stream`; the handshake happens with the first bytes.
pub fn tls(stream: TcpStream, config: Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from("localhost").expect("a name");
    StreamOwned::new(ClientConnection::new(config, name).expect("a session"), stream)
}

/// An MQTT client on any wire.
pub struct Client<W> {
    pub wire: W,
    version: u8,
    bytes: Vec<u8>,
}

impl<W: Wire> Client<W> {
    pub fn new(wire: W) -> Client<W> {
        Client { wire, version: wire::V5, bytes: Vec::new() }
    }

    /// Sends CONNECT and requires that it is accepted.
    #[track_caller]
    pub fn connect(wire: W, client_id: &str) -> Client<W> {
        let mut client = Client::new(wire);
        client.send(&connect(client_id));
        assert_eq!(client.expect(kind::CONNACK).reason(), 0);
        client
    }

    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.wire.write_all(bytes).expect("the broker reads");
        self.wire.flush().expect("the broker reads");
    }

    /// The next packet, or `None` at the end of the connection.
    #[track_caller]
    pub fn next(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = wire::take(&mut self.bytes) {
                return Some(packet);
            }
            let mut chunk = [0; 16 * 1024];
            match self.wire.read(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    panic!("neither a packet nor an end within {BOUND:?}")
                }
                Err(_) => return None,
            }
        }
    }

    #[track_caller]
    pub fn expect(&mut self, kind: u8) -> Packet {
        match self.next() {
            Some(packet) if packet.kind == kind => packet,
            other => panic!("packet {kind} was expected, this came: {other:?}"),
        }
    }

    /// Subscribes at QoS 1 and requires the grant.
    #[track_caller]
    pub fn subscribe(&mut self, filter: &str) {
        self.send(&wire::subscribe(self.version, 1, filter, 1));
        assert_eq!(self.expect(kind::SUBACK).reason(), 1);
    }

    /// The grant of a SUBSCRIBE and the payload of a PUBLISH that matches it, which may overtake the grant.
    #[track_caller]
    pub fn granted_and_message(&mut self) -> Vec<u8> {
        let first = self.next().expect("the broker goes on");
        if first.kind == kind::SUBACK {
            return self.message();
        }
        assert_eq!(self.expect(kind::SUBACK).reason(), 0);
        first.publish(self.version).payload
    }

    /// The payload of the next packet, which must be a PUBLISH.
    #[track_caller]
    pub fn message(&mut self) -> Vec<u8> {
        let publish = self.expect(kind::PUBLISH).publish(self.version);
        if let (1, Some(id)) = (publish.qos, publish.packet_id) {
            self.send(&wire::ack(kind::PUBACK, id));
        }
        publish.payload
    }
}

/// A CONNECT packet.
pub fn connect(client_id: &str) -> Vec<u8> {
    Connect::new(wire::V5, client_id).bytes()
}
