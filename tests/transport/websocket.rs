//! WebSocket by hand: what no library would send, and what every library relies on.

use std::io::{self, Read, Write};

use harness::wire::{self, kind};

use crate::{
    place,
    secure::{self, Client, Wire},
};

pub const HEAD: &str = "GET /mqtt HTTP/1.1\r\nHost: broker\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Protocol: mqtt\r\n\r\n";

/// A masked frame of a client; `first` is its first byte.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x12, 0x34, 0x56, 0x78];
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(length).expect("a short frame").to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// WebSocket on another wire, as a client speaks it: each write is a frame.
pub struct Framed<W> {
    pub below: W,
    payload: Vec<u8>,
}

impl<W: Wire> Framed<W> {
    /// Shakes hands.
    #[track_caller]
    pub fn open(mut below: W) -> Framed<W> {
        below.write_all(HEAD.as_bytes()).expect("the broker reads");
        below.flush().expect("the broker reads");
        Framed::answered(below)
    }

    /// The request was sent already.
    #[track_caller]
    pub fn answered(mut below: W) -> Framed<W> {
        let answer = head(&mut below);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
        assert!(answer.contains("Sec-WebSocket-Protocol: mqtt\r\n"), "{answer}");
        Framed { below, payload: Vec::new() }
    }

    /// Opcode and payload of the next frame; `None` at the end.
    pub fn frame(&mut self) -> io::Result<Option<(u8, Vec<u8>)>> {
        let mut start = [0; 2];
        match self.below.read_exact(&mut start) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        assert_eq!(start[0] & 0x70, 0, "no reserved bits");
        let mut extended = [0; 8];
        let bytes = match start[1] {
            126 => 2,
            127 => 8,
            length => {
                assert!(length < 126, "a server's frame is not masked");
                extended[7] = length;
                0
            }
        };
        self.below.read_exact(&mut extended[8 - bytes..])?;
        let mut payload = vec![0; usize::try_from(u64::from_be_bytes(extended)).expect("a short frame")];
        self.below.read_exact(&mut payload)?;
        Ok(Some((start[0] & 0x0f, payload)))
    }
}

impl<W: Wire> Read for Framed<W> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.payload.is_empty() {
            match self.frame()? {
                Some((2, payload)) => self.payload = payload,
                Some((8, _)) | None => return Ok(0),
                Some(other) => return Err(io::Error::other(format!("frame {other:?}"))),
            }
        }
        let count = bytes.len().min(self.payload.len());
        bytes[..count].copy_from_slice(&self.payload[..count]);
        self.payload.drain(..count);
        Ok(count)
    }
}

impl<W: Wire> Write for Framed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min(60_000)];
        self.below.write_all(&frame(0x82, part))?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.below.flush()
    }
}

/// An HTTP head, byte by byte so that nothing behind it is taken.
fn head(from: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") && matches!(from.read(&mut byte), Ok(1)) {
        bytes.extend(byte);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

//= MQTT-6.0.0-2
//= MQTT311-6.0.0-2
//= MQTT-6.0.0-4
//= MQTT311-6.0.0-4
#[test]
fn packets_lie_across_frames_and_several_in_one() {
    let (_, node) = place();
    let mut client = Client::new(Framed::open(secure::tcp(node.address("ws", "default"))));
    // CONNECT in frames of one byte, fragmented as one message with a ping between; SUBSCRIBE and PUBLISH in one frame.
    let connect = secure::connect("websocket-frames");
    let mut bytes = frame(0x02, &connect[..1]);
    bytes.extend(frame(0x89, b"are you there"));
    connect[1..connect.len() - 1].iter().for_each(|byte| bytes.extend(frame(0x00, &[*byte])));
    bytes.extend(frame(0x80, &connect[connect.len() - 1..]));
    client.wire.below.write_all(&bytes).expect("the broker reads");
    assert_eq!(client.wire.frame().expect("a frame"), Some((10, b"are you there".to_vec())));
    assert_eq!(client.expect(kind::CONNACK).reason(), 0);
    let mut both = wire::subscribe(wire::V5, 1, "websocket/frames", 0);
    both.extend(wire::Publish::new("websocket/frames", &[7; 50_000]).bytes(wire::V5));
    client.send(&both);
    assert_eq!(client.granted_and_message(), [7; 50_000]);
}

#[test]
fn a_close_is_answered_and_ours_comes_with_disconnect() {
    let (_, node) = place();
    let broker = node.address("ws", "default");
    let mut client = Client::connect(Framed::open(secure::tcp(broker)), "websocket-close");
    client.wire.below.write_all(&frame(0x88, &[3, 233])).expect("the broker reads");
    assert_eq!(client.wire.frame().expect("a frame"), Some((8, vec![3, 233])));
    assert_eq!(client.wire.frame().expect("the end"), None);
    // A second CONNECT is a protocol error: DISCONNECT, then the goodbye of WebSocket.
    let mut client = Client::connect(Framed::open(secure::tcp(broker)), "websocket-close-2");
    client.send(&secure::connect("websocket-close-2"));
    let (opcode, disconnect) = client.wire.frame().expect("a frame").expect("DISCONNECT");
    assert_eq!((opcode, disconnect[0] >> 4), (2, kind::DISCONNECT));
    assert_eq!(client.wire.frame().expect("a frame"), Some((8, vec![3, 232])));
    assert_eq!(client.wire.frame().expect("the end"), None);
}

//= MQTT-6.0.0-1
//= MQTT311-6.0.0-1
#[test]
fn what_is_not_allowed_is_closed_with_its_code_and_counted() {
    let (_, node) = place();
    for (bytes, code) in [
        (frame(0x81, b"text"), 1003_u16),
        (vec![0x82, 1, 7], 1002),
        (frame(0xc2, b"compressed"), 1002),
        (vec![0x82, 0xff, 0, 0, 0, 0, 0xff, 0, 0, 0, 1, 2, 3, 4], 1009),
    ] {
        let mut framed = Framed::open(secure::tcp(node.address("ws", "default")));
        framed.below.write_all(&bytes).expect("the broker reads");
        assert_eq!(framed.frame().expect("a frame"), Some((8, code.to_be_bytes().to_vec())));
        assert_eq!(framed.frame().expect("the end"), None);
    }
    node.counter_reaches("websocket_violated", 4);
}

#[test]
fn a_handshake_that_is_wrong_gets_its_status_and_is_closed() {
    let (_, node) = place();
    for (head_sent, status) in [
        (HEAD.replace("/mqtt", "/"), "404"),
        (HEAD.replace("Version: 13", "Version: 12"), "426"),
        (HEAD.replace("Protocol: mqtt", "Protocol: chat"), "400"),
        (HEAD.replace("GET", "PUT"), "400"),
        ("x".repeat(9000), "431"),
    ] {
        let mut stream = secure::tcp(node.address("ws", "default"));
        stream.write_all(head_sent.as_bytes()).expect("the broker reads");
        let answer = head(&mut stream);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
        assert!(matches!(stream.read(&mut [0]), Ok(0)), "an orderly end");
    }
    // MQTT without WebSocket, and then silence: the time for CONNECT runs.
    let mut stream = secure::tcp(node.address("ws", "default"));
    stream.write_all(&secure::connect("websocket-none")).expect("the broker reads");
    let answer = head(&mut stream);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    node.counter_reaches("websocket_refused", 5);
}
