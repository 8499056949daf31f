//! WebSocket as a server reads and writes it: `transport::websocket`.

use std::sync::Arc;

use transport::websocket::{FRAME_OUT_BYTES, Failed, Flow, Settings, WebSocket};

use crate::pieces::pieces;

/// A handshake that is granted, so that frames are reached without inventing one.
const REQUEST: &[u8] = b"GET /mqtt HTTP/1.1\r\nHost: broker\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";
/// Small, so that a few bytes reach the limit.
const FRAME_BYTES_MAX: u64 = 1024;
/// The most that a peer may make us say on our own: the answer to the handshake, a pong, a close.
const SAID_BYTES_MAX: usize = 1024;

/// What came of a conversation.
#[derive(PartialEq, Debug)]
struct Talk {
    plain: Vec<u8>,
    said: Vec<u8>,
    end: Result<Flow, Failed>,
}

/// First byte: cuts, and whether a good handshake comes first (odd); the rest comes off the wire. In pieces it says what it
/// says in one.
pub fn websocket(data: &[u8]) {
    let Some((&head, wire)) = data.split_first() else { return };
    let opening = if head & 1 == 1 { REQUEST } else { &[] };
    let bytes = [opening, wire].concat();
    let whole = talk([&bytes[..]].into_iter());
    assert_eq!(talk(pieces(head / 2, &bytes)), whole);
    assert!(whole.plain.len() <= bytes.len(), "plain text does not come from nowhere");
    assert!(whole.said.len() <= SAID_BYTES_MAX, "{} bytes were said", whole.said.len());
    if let Ok(Flow::More) = whole.end {
        goes_out_as_it_is(&bytes, wire);
    }
}

fn talk<'a>(wire: impl Iterator<Item = &'a [u8]>) -> Talk {
    let mut websocket = WebSocket::new(Arc::new(Settings { path: "/mqtt".into(), frame_bytes_max: FRAME_BYTES_MAX }));
    let mut talk = Talk { plain: Vec::new(), said: Vec::new(), end: Ok(Flow::More) };
    for piece in wire {
        talk.end = websocket.open(piece, &mut talk.plain);
        if talk.end != Ok(Flow::More) {
            break;
        }
    }
    websocket.seal(&[], &mut |bytes: &[u8]| talk.said.extend_from_slice(bytes));
    assert!(!websocket.has_output());
    talk
}

/// What we send arrives in frames of ours, byte for byte; before the handshake nothing does.
fn goes_out_as_it_is(bytes: &[u8], plain: &[u8]) {
    let mut websocket = WebSocket::new(Arc::new(Settings { path: "/mqtt".into(), frame_bytes_max: FRAME_BYTES_MAX }));
    let mut said = Vec::new();
    websocket.open(bytes, &mut Vec::new()).expect("it went well before");
    websocket.seal(&[], &mut |bytes: &[u8]| said.extend_from_slice(bytes));
    let mut frames = Vec::new();
    websocket.seal(plain, &mut |bytes: &[u8]| frames.extend_from_slice(bytes));
    if !said.starts_with(b"HTTP/1.1 101") {
        assert!(frames.is_empty());
        return;
    }
    let mut rest = &frames[..];
    let mut read = Vec::new();
    while let [0x82, short, after @ ..] = rest {
        let (length, body) = match (*short, after) {
            (126, [high, low, body @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), body),
            (127, [eight @ .., _]) if eight.len() > 8 => {
                (u64::from_be_bytes(*after.first_chunk().expect("eight bytes")) as usize, &after[8..])
            }
            _ => (usize::from(*short), after),
        };
        assert!(length <= FRAME_OUT_BYTES);
        read.extend_from_slice(&body[..length]);
        rest = &body[length..];
    }
    assert!(rest.is_empty() && read == plain, "{frames:02x?}");
}
