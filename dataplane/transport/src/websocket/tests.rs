//! A client's bytes in, cut everywhere; what MQTT would read and what the client would read out.

use super::*;
use alloc::{
    format,
    string::{String, ToString},
    vec,
};

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

fn websocket() -> WebSocket {
    WebSocket::new(Arc::new(Settings { path: "/mqtt".into(), frame_bytes_max: 100_000 }))
}

fn request() -> String {
    "GET /mqtt HTTP/1.1\r\nHost: broker\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
     Sec-WebSocket-Protocol: chat, mqtt\r\n\r\n"
        .to_string()
}

/// A frame as a client sends it; `first` is its first byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// What became of a whole conversation.
#[derive(Debug, PartialEq)]
struct Talk {
    plain: Vec<u8>,
    said: Vec<u8>,
    end: Result<Flow, Failed>,
}

fn feed(websocket: &mut WebSocket, bytes: &[u8], step: usize) -> Talk {
    let mut talk = Talk { plain: Vec::new(), said: Vec::new(), end: Ok(Flow::More) };
    for piece in bytes.chunks(step) {
        talk.end = websocket.open(piece, &mut talk.plain);
        if talk.end != Ok(Flow::More) {
            break;
        }
    }
    websocket.seal(&[], &mut |bytes: &[u8]| talk.said.extend_from_slice(bytes));
    talk
}

fn after_handshake() -> WebSocket {
    let mut websocket = websocket();
    let talk = feed(&mut websocket, request().as_bytes(), 1000);
    assert_eq!(talk.end, Ok(Flow::More));
    websocket
}

#[test]
fn the_handshake_answers_as_the_rfc_shows_wherever_it_is_cut() {
    // The key and its answer are the example of RFC 6455, section 1.3.
    let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";
    let mut bytes = request().into_bytes();
    bytes.extend(frame(0x82, b"early"));
    for step in 1..bytes.len() + 1 {
        let talk = feed(&mut websocket(), &bytes, step);
        assert_eq!(String::from_utf8_lossy(&talk.said), expected, "{step}");
        assert_eq!((talk.plain.as_slice(), talk.end), (&b"early"[..], Ok(Flow::More)), "{step}");
    }
}

#[test]
fn a_handshake_that_is_wrong_is_refused_with_its_status() {
    let request = request();
    for (bytes, status) in [
        (request.replace("/mqtt", "/other"), 404),
        (request.replace("GET", "POST"), 400),
        (request.replace("HTTP/1.1", "HTTP/1.0"), 400),
        (request.replace("Host: broker\r\n", ""), 400),
        (request.replace("Upgrade: websocket", "Upgrade: h2c"), 400),
        (request.replace("keep-alive, Upgrade", "keep-alive"), 400),
        (request.replace("Version: 13", "Version: 8"), 426),
        (request.replace("Sec-WebSocket-Version: 13\r\n", ""), 426),
        (request.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), 400),
        (request.replace("dGhlIHNhbXBsZSBub25jZQ==", "?"), 400),
        (request.replace("chat, mqtt", "chat"), 400),
        (request.replace("Sec-WebSocket-Protocol: chat, mqtt\r\n", ""), 400),
        ("\x10\x0c\0\x04MQTT\x04\x02\r\n\r\n".to_string(), 400),
        (request.replace("broker", &"b".repeat(HEAD_BYTES_MAX)), 431),
    ] {
        for step in [1, 10_000] {
            let talk = feed(&mut websocket(), bytes.as_bytes(), step);
            assert!(matches!(talk.end, Err(Failed::Refused(found, _)) if found == status), "{status}: {talk:?}");
            let said = String::from_utf8_lossy(&talk.said).to_string();
            assert!(said.starts_with(&format!("HTTP/1.1 {status} ")) && said.ends_with("\r\n\r\n"), "{said}");
            assert_eq!(said.contains("Sec-WebSocket-Version: 13"), status == 426);
        }
    }
}

#[test]
fn a_query_and_the_old_subprotocol_are_accepted() {
    let asked = request().replace("/mqtt ", "/mqtt?x=1 ").replace("chat, mqtt", "mqttv3.1");
    let talk = feed(&mut websocket(), asked.as_bytes(), 100);
    assert!(String::from_utf8_lossy(&talk.said).contains("Sec-WebSocket-Protocol: mqttv3.1\r\n"), "{talk:?}");
}

#[test]
fn payloads_are_one_stream_wherever_frames_are_cut() {
    let long: Vec<u8> = (0..70_000_u32).map(|n| n as u8).collect();
    let mut bytes = frame(0x82, b"one");
    bytes.extend(frame(0x02, b"tw"));
    bytes.extend(frame(0x89, b"between fragments"));
    bytes.extend(frame(0x00, b""));
    bytes.extend(frame(0x80, b"o"));
    bytes.extend(frame(0x8a, b"unasked pong"));
    bytes.extend(frame(0x82, &[7; 300]));
    let short = bytes.len();
    bytes.extend(frame(0x82, &long));
    let expected = [b"onetwo", &[7; 300][..], &long].concat();
    for step in (1..=short).chain([1000, 16_384, 100_000]) {
        let talk = feed(&mut after_handshake(), &bytes, step);
        assert!(talk.plain == expected && talk.end == Ok(Flow::More), "{step}");
        assert_eq!(talk.said, [&[0x8a, 17][..], b"between fragments"].concat(), "{step}");
    }
}

#[test]
fn of_many_pings_only_the_last_is_answered() {
    let mut bytes = Vec::new();
    for n in 0..10_000_u32 {
        bytes.extend(frame(0x89, &n.to_be_bytes()));
    }
    let mut websocket = after_handshake();
    let talk = feed(&mut websocket, &bytes, 4096);
    assert_eq!(talk.said, [&[0x8a, 4][..], &9_999_u32.to_be_bytes()].concat());
    assert!(!websocket.has_output());
}

#[test]
fn frames_that_are_not_legal_close_with_their_code() {
    let unmasked = vec![0x82, 1, 7];
    let mut huge = vec![0x82, 0xff];
    huge.extend(u64::MAX.to_be_bytes());
    huge.extend(MASK);
    let nested = [frame(0x02, b"a"), frame(0x82, b"b")].concat();
    for (bytes, code) in [
        (frame(0x81, b"text"), 1003),
        (unmasked, 1002),
        (frame(0xc2, b"compressed"), 1002),
        (frame(0x80, b"continued"), 1002),
        (nested, 1002),
        (frame(0x83, b""), 1002),
        (frame(0x8b, b""), 1002),
        (frame(0x09, b""), 1002),
        (frame(0x89, &[0; 126]), 1002),
        (frame(0x88, &[3]), 1002),
        (frame(0x88, &1005_u16.to_be_bytes()), 1002),
        (frame(0x88, &[3, 232, 0xff]), 1002),
        (frame(0x82, &[0; 100_001]), 1009),
        (huge, 1009),
    ] {
        for step in [1, 200_000] {
            let mut websocket = after_handshake();
            let talk = feed(&mut websocket, &bytes, step);
            assert!(matches!(talk.end, Err(Failed::Violated(found, _)) if found == code), "{code}: {:?}", talk.end);
            assert_eq!(talk.said, [&[0x88, 2][..], &code.to_be_bytes()].concat());
            let after = feed(&mut websocket, &frame(0x82, b"more"), 100);
            assert_eq!((after.plain.len(), after.said.len()), (0, 0), "nothing follows a close");
        }
    }
}

#[test]
fn a_close_is_answered_with_its_code_and_nothing_follows() {
    for (payload, answer) in [(&[][..], &[0x88, 0][..]), (&[3, 233, b'x'], &[0x88, 2, 3, 233])] {
        for step in 1..10 {
            let mut websocket = after_handshake();
            let bytes = [frame(0x82, b"last"), frame(0x88, payload), frame(0x82, b"too late")].concat();
            let talk = feed(&mut websocket, &bytes, step);
            assert_eq!((talk.plain.as_slice(), talk.end), (&b"last"[..], Ok(Flow::Ended)));
            assert_eq!(talk.said, answer);
            let mut more = Vec::new();
            websocket.finish();
            websocket.seal(b"unsendable", &mut |bytes: &[u8]| more.extend_from_slice(bytes));
            assert!(more.is_empty(), "{more:?}");
        }
    }
}

#[test]
fn what_we_send_is_framed_and_our_goodbye_comes_last() {
    let mut websocket = after_handshake();
    let mut said = Vec::new();
    let plain = vec![9; FRAME_OUT_BYTES + 300];
    let mut put = |bytes: &[u8]| said.extend_from_slice(bytes);
    websocket.seal(&plain, &mut put);
    websocket.seal(b"bye", &mut put);
    websocket.finish();
    assert!(websocket.has_output());
    websocket.seal(b"too late", &mut put);
    websocket.finish();
    websocket.seal(&[], &mut put);
    let expected = [
        &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0][..],
        &plain[..FRAME_OUT_BYTES],
        &[0x82, 126, 1, 44],
        &plain[FRAME_OUT_BYTES..],
        &[0x82, 3],
        b"bye",
        &[0x88, 2, 3, 232],
    ]
    .concat();
    assert!(said == expected);
}

#[test]
fn before_the_handshake_nothing_is_sent() {
    let mut websocket = websocket();
    websocket.finish();
    let mut said = Vec::new();
    websocket.seal(b"early", &mut |bytes: &[u8]| said.extend_from_slice(bytes));
    assert!(said.is_empty());
}
