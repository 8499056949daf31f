//! TLS of one connection as a layer: records in, bytes out, and back. Owned by the connection's [`crate::stage::Stage`]
//! on its shard, and moves with it, also in the middle of a record.
//!
//! Always true: what rustls holds of input is less than one record (of the handshake, less than one message), because
//! everything that it has opened is taken out at once.

use std::{
    io::{BufRead, Write},
    sync::Arc,
};

use broker::surface::Certificate;
use rustls::{ServerConfig, ServerConnection};
use transport::websocket::Flow;
use x509_cert::{der::Decode, ext::pkix::name::DirectoryString};

use crate::stage::Broken;

/// Plain bytes that are sealed at once: a record's worth, so that rustls never has to hold more than that.
const SEAL_BYTES: usize = 16 * 1024;

/// One connection's session.
pub(crate) struct Tls(ServerConnection);

impl Tls {
    /// A session whose handshake is to come.
    pub(crate) fn new(config: Arc<ServerConfig>) -> Result<Tls, rustls::Error> {
        ServerConnection::new(config).map(Tls)
    }

    /// The other side is not proven yet.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    /// Takes bytes off the wire and hands what was in them to `take`.
    pub(crate) fn open(
        &mut self,
        mut wire: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<Flow, Broken>,
    ) -> Result<Flow, Broken> {
        while !wire.is_empty() {
            let broken = |session: &ServerConnection, error| match session.is_handshaking() {
                true => Broken::TlsHandshake(error),
                false => Broken::Tls(error),
            };
            // Fails if a message of the handshake exceeds what rustls keeps.
            let read = self.0.read_tls(&mut wire);
            let read = read.map_err(|error| broken(&self.0, rustls::Error::General(error.to_string())))?;
            let state = self.0.process_new_packets().map_err(|error| broken(&self.0, error))?;
            let mut flow = self.opened(&mut take)?;
            if state.peer_has_closed() || read == 0 {
                flow = Flow::Ended;
            }
            if flow == Flow::Ended {
                return Ok(flow);
            }
        }
        Ok(Flow::More)
    }

    fn opened(&mut self, take: &mut impl FnMut(&[u8]) -> Result<Flow, Broken>) -> Result<Flow, Broken> {
        let mut reader = self.0.reader();
        // An error says that nothing is there now.
        while let Ok(bytes) = reader.fill_buf() {
            let length = bytes.len();
            if length == 0 {
                break;
            }
            let flow = take(bytes)?;
            reader.consume(length);
            if flow == Flow::Ended {
                return Ok(flow);
            }
        }
        Ok(Flow::More)
    }

    /// Is there something to send besides what is above TLS?
    pub(crate) fn has_output(&self) -> bool {
        self.0.wants_write()
    }

    /// Appends `plain` to `wire` as records, behind what TLS itself has to say.
    pub(crate) fn seal(&mut self, plain: &[u8], wire: &mut Vec<u8>) {
        self.flush(wire);
        for part in plain.chunks(SEAL_BYTES) {
            // Into memory, and within what rustls takes at once.
            let _ = self.0.writer().write_all(part);
            self.flush(wire);
        }
    }

    fn flush(&mut self, wire: &mut Vec<u8>) {
        // Into memory, which never fails.
        while self.0.wants_write() && self.0.write_tls(wire).is_ok_and(|bytes| bytes > 0) {}
    }

    /// Says goodbye, unless that or a fatal alert was said already.
    pub(crate) fn finish(&mut self, wire: &mut Vec<u8>) {
        self.0.send_close_notify();
        self.flush(wire);
    }

    /// Who the verified certificate of the other side is for; `None` without one, or if its subject cannot be read.
    pub(crate) fn certificate(&self) -> Option<Certificate> {
        let bytes = self.0.peer_certificates()?.first()?;
        let certificate = x509_cert::Certificate::from_der(bytes).ok()?;
        let subject = certificate.tbs_certificate().subject();
        let common_name = subject.common_name().ok().flatten().map(|name| match name {
            DirectoryString::PrintableString(text) => text.to_string(),
            DirectoryString::TeletexString(text) => text.to_string(),
            DirectoryString::Utf8String(text) => text,
            DirectoryString::BmpString(text) => text.to_string(),
        });
        // A name that would read differently in C is nobody's name.
        let common_name = common_name.filter(|name| !name.is_empty() && !name.contains('\0'));
        Some(Certificate { common_name, subject: subject.to_string() })
    }
}
