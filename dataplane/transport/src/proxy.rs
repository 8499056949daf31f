//! The PROXY header, versions 1 and 2, which a load balancer sends before the first byte of its client
//! (haproxy.org/download/3.0/doc/proxy-protocol.txt). Owned by a connection's stage on its shard until it is complete.
//! Always true: not one byte behind the header is taken.

use alloc::vec::Vec;
use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// Longest header of version 1, its line end included.
pub const LINE_BYTES_MAX: usize = 107;
/// Longest header of version 2: addresses and whatever else a load balancer adds (names, certificates).
pub const BLOCK_BYTES_MAX: usize = 8192;

const LINE: &[u8] = b"PROXY ";
const BLOCK: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const BLOCK_HEAD_BYTES: usize = 16;

/// A header that is being read.
#[derive(Debug, Default)]
pub struct Header {
    bytes: Vec<u8>,
}

/// A complete header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proxied {
    /// The load balancer speaks for itself (a health check), or does not know: the peer is who connected.
    Itself,
    /// It speaks for this client.
    Client(SocketAddr),
}

/// Why what came is no header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// It begins like neither version.
    Signature,
    /// It exceeds [`LINE_BYTES_MAX`] or [`BLOCK_BYTES_MAX`].
    TooLong,
    /// The line of version 1 is not `PROXY <protocol> <source> <destination> <port> <port>`.
    Line,
    /// It names a loopback address, which nobody but this machine may speak for. The caller finds that out.
    Loopback,
    /// The block of version 2 has an unknown version, command or protocol, or too few bytes.
    Block,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::Signature => "no PROXY header came first",
            Malformed::TooLong => "the PROXY header is too long",
            Malformed::Loopback => "the PROXY header came from elsewhere and names a loopback address",
            Malformed::Line => "the PROXY line cannot be read",
            Malformed::Block => "the PROXY block cannot be read",
        })
    }
}

impl Header {
    /// Takes the header's bytes off `wire`; `None` while some are missing.
    pub fn read(&mut self, wire: &mut &[u8]) -> Result<Option<Proxied>, Malformed> {
        // Byte for byte, because only the bytes before say where it ends; it is short and comes once.
        while let Some((byte, rest)) = wire.split_first() {
            *wire = rest;
            self.bytes.push(*byte);
            if let Some(proxied) = whole(&self.bytes)? {
                self.bytes = Vec::new();
                return Ok(Some(proxied));
            }
        }
        Ok(None)
    }
}

fn whole(bytes: &[u8]) -> Result<Option<Proxied>, Malformed> {
    if bytes.starts_with(BLOCK) {
        let Some(length) = bytes.get(BLOCK_HEAD_BYTES - 2..BLOCK_HEAD_BYTES) else { return Ok(None) };
        let bytes_wanted = BLOCK_HEAD_BYTES + usize::from(u16::from_be_bytes([length[0], length[1]]));
        return match bytes.len() {
            _ if bytes_wanted > BLOCK_BYTES_MAX => Err(Malformed::TooLong),
            have if have < bytes_wanted => Ok(None),
            _ => block(bytes).map(Some),
        };
    }
    if bytes.starts_with(LINE) {
        return match bytes.strip_suffix(b"\r\n") {
            Some(line) => line_of(&line[LINE.len()..]).map(Some),
            None if bytes.len() >= LINE_BYTES_MAX => Err(Malformed::TooLong),
            None => Ok(None),
        };
    }
    if BLOCK.starts_with(bytes) || LINE.starts_with(bytes) { Ok(None) } else { Err(Malformed::Signature) }
}

fn line_of(line: &[u8]) -> Result<Proxied, Malformed> {
    let line = core::str::from_utf8(line).map_err(|_| Malformed::Line)?;
    let mut words = line.split(' ');
    let wants_v4 = match words.next() {
        // Whatever follows is to be ignored.
        Some("UNKNOWN") => return Ok(Proxied::Itself),
        Some("TCP4") => true,
        Some("TCP6") => false,
        _ => return Err(Malformed::Line),
    };
    let mut address = || words.next()?.parse::<IpAddr>().ok().filter(|ip| ip.is_ipv4() == wants_v4);
    let (source, destination) = (address(), address());
    let mut port = || words.next()?.parse::<u16>().ok();
    match (source, destination, port(), port(), words.next()) {
        (Some(source), Some(_), Some(port), Some(_), None) => Ok(Proxied::Client(SocketAddr::new(source, port))),
        _ => Err(Malformed::Line),
    }
}

fn block(bytes: &[u8]) -> Result<Proxied, Malformed> {
    let (command, family) = (bytes[BLOCK.len()], bytes[BLOCK.len() + 1]);
    let addresses = &bytes[BLOCK_HEAD_BYTES..];
    match (command, family) {
        // LOCAL; or PROXY for a client without an address, or on a Unix socket of the load balancer's machine.
        (0x20, _) | (0x21, 0x00 | 0x31) => Ok(Proxied::Itself),
        (0x21, 0x11) => {
            let fixed: &[u8; 12] = addresses.first_chunk().ok_or(Malformed::Block)?;
            let ip = Ipv4Addr::new(fixed[0], fixed[1], fixed[2], fixed[3]);
            Ok(Proxied::Client(SocketAddr::new(ip.into(), u16::from_be_bytes([fixed[8], fixed[9]]))))
        }
        (0x21, 0x21) => {
            let fixed: &[u8; 36] = addresses.first_chunk().ok_or(Malformed::Block)?;
            let ip: [u8; 16] = *fixed.first_chunk().ok_or(Malformed::Block)?;
            let port = u16::from_be_bytes([fixed[32], fixed[33]]);
            Ok(Proxied::Client(SocketAddr::new(Ipv6Addr::from(ip).into(), port)))
        }
        _ => Err(Malformed::Block),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn block_of(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut bytes = BLOCK.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(addresses.len()).unwrap().to_be_bytes());
        bytes.extend(addresses);
        bytes
    }

    fn v4() -> Vec<u8> {
        block_of(0x21, 0x11, &[192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 7, 91, 3, 0, 1, 0])
    }

    fn v6() -> Vec<u8> {
        let mut addresses = vec![0; 36];
        (addresses[0], addresses[1], addresses[15], addresses[33]) = (0x20, 0x01, 9, 5);
        block_of(0x21, 0x21, &addresses)
    }

    /// Reads `header` with MQTT behind it, cut into pieces of `step` bytes.
    fn read(header: &[u8], step: usize) -> Result<Option<Proxied>, Malformed> {
        let mut whole = header.to_vec();
        whole.extend(b"\x10\x00");
        let mut reading = Header::default();
        let mut taken = 0;
        for piece in whole.chunks(step) {
            let mut rest = piece;
            let read = reading.read(&mut rest);
            taken += piece.len() - rest.len();
            match read {
                Ok(None) => {}
                Ok(Some(proxied)) => {
                    assert_eq!(taken, header.len(), "not one byte behind the header is taken");
                    return Ok(Some(proxied));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    #[test]
    fn both_versions_name_the_client_wherever_they_are_cut() {
        for (header, client) in [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 1883\r\n".to_vec(), "192.0.2.7:4660"),
            (b"PROXY TCP6 2001::9 ::1 5 1883\r\n".to_vec(), "[2001::9]:5"),
            (v4(), "192.0.2.7:4660"),
            (v6(), "[2001::9]:5"),
        ] {
            for step in 1..header.len() + 3 {
                assert_eq!(read(&header, step), Ok(Some(Proxied::Client(client.parse().unwrap()))), "{step}");
            }
        }
    }

    #[test]
    fn a_load_balancer_that_speaks_for_itself_names_nobody() {
        for header in [
            b"PROXY UNKNOWN\r\n".to_vec(),
            b"PROXY UNKNOWN ffff::1 ::1 1 2\r\n".to_vec(),
            block_of(0x20, 0x00, &[]),
            block_of(0x20, 0x11, &[1; 12]),
            block_of(0x21, 0x00, &[]),
            block_of(0x21, 0x31, &[0; 216]),
        ] {
            assert_eq!(read(&header, 7), Ok(Some(Proxied::Itself)), "{header:?}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused_under_a_name() {
        for (bytes, error) in [
            (b"\x10\x0c\x00\x04MQTT".to_vec(), Malformed::Signature),
            (b"PROXX".to_vec(), Malformed::Signature),
            (b"\r\n\r\n\0\r\nQUIT\r".to_vec(), Malformed::Signature),
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 4660\r\n".to_vec(), Malformed::Line),
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 1883 5\r\n".to_vec(), Malformed::Line),
            (b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(), Malformed::Line),
            (b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(), Malformed::Line),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 70000 2\r\n".to_vec(), Malformed::Line),
            (b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(), Malformed::Line),
            (b"PROXY \xff\r\n".to_vec(), Malformed::Line),
            ([LINE, &[b'1'; LINE_BYTES_MAX]].concat(), Malformed::TooLong),
            (block_of(0x31, 0x11, &[0; 12]), Malformed::Block),
            (block_of(0x22, 0x11, &[0; 12]), Malformed::Block),
            (block_of(0x21, 0x12, &[0; 12]), Malformed::Block),
            (block_of(0x21, 0x11, &[0; 11]), Malformed::Block),
            (block_of(0x21, 0x21, &[0; 35]), Malformed::Block),
            (block_of(0x21, 0x11, &[0; BLOCK_BYTES_MAX]), Malformed::TooLong),
        ] {
            for step in [1, 3, 1000] {
                assert_eq!(read(&bytes, step), Err(error), "{bytes:?}");
            }
        }
    }

    #[test]
    fn the_longest_header_that_is_allowed_is_read() {
        let mut addresses = vec![0; BLOCK_BYTES_MAX - BLOCK_HEAD_BYTES];
        addresses[..10].copy_from_slice(&[192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34]);
        let longest = block_of(0x21, 0x11, &addresses);
        assert_eq!(read(&longest, 1000), Ok(Some(Proxied::Client("192.0.2.7:4660".parse().unwrap()))));
    }
}
