//! The handshake: one HTTP request of at most [`HEAD_BYTES_MAX`], and its answer.

use alloc::{format, vec::Vec};

use base64::{Engine, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};

use super::Failed;

/// Longest head of the request.
pub const HEAD_BYTES_MAX: usize = 8192;
/// Most headers of the request.
const HEADERS_MAX: usize = 64;
/// What RFC 6455 appends to the client's key.
const SALT: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Subprotocols that we speak, the best first. The second is what MQTT 3.1 was called.
const SUBPROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];
const END: &[u8] = b"\r\n\r\n";

/// Takes the head off `wire`, and appends the answer to `out` once it is complete (`true`) or refused.
pub(super) fn read(head: &mut Vec<u8>, wire: &mut &[u8], path: &str, out: &mut Vec<u8>) -> Result<bool, Failed> {
    let room = HEAD_BYTES_MAX.saturating_sub(head.len()).min(wire.len());
    // The end may lie across what is here and what comes.
    let from = head.len().saturating_sub(END.len() - 1);
    let before = head.len();
    head.extend_from_slice(&wire[..room]);
    let end = head[from..].windows(END.len()).position(|window| window == END).map(|at| from + at + END.len());
    let answer = match end {
        Some(end) => {
            *wire = &wire[end - before..];
            head.truncate(end);
            answer(head, path)
        }
        None if head.len() < HEAD_BYTES_MAX => {
            *wire = &[];
            return Ok(false);
        }
        None => Err((431, "its head is too long")),
    };
    *head = Vec::new();
    match answer {
        Ok((accept, subprotocol)) => {
            let text = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
            );
            out.extend_from_slice(text.as_bytes());
            Ok(true)
        }
        Err((status, why)) => {
            let (phrase, more) = match status {
                404 => ("Not Found", ""),
                426 => ("Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
                431 => ("Request Header Fields Too Large", ""),
                _ => ("Bad Request", ""),
            };
            let text = format!("HTTP/1.1 {status} {phrase}\r\n{more}Connection: close\r\nContent-Length: 0\r\n\r\n");
            out.extend_from_slice(text.as_bytes());
            Err(Failed::Refused(status, why))
        }
    }
}

/// The value of `Sec-WebSocket-Accept` and the subprotocol; or a status and why.
fn answer(head: &[u8], path: &str) -> Result<(alloc::string::String, &'static str), (u16, &'static str)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(status) if status.is_complete() => {}
        _ => return Err((400, "it is not HTTP")),
    }
    if request.method != Some("GET") || request.version != Some(1) {
        return Err((400, "it is not GET of HTTP/1.1"));
    }
    let target = request.path.unwrap_or_default();
    if target.split('?').next() != Some(path) {
        return Err((404, "it asks for another path"));
    }
    let headers = &*request.headers;
    if values(headers, "host").count() != 1 {
        return Err((400, "it needs one Host"));
    }
    if !tokens(headers, "upgrade").any(|token| token.eq_ignore_ascii_case("websocket"))
        || !tokens(headers, "connection").any(|token| token.eq_ignore_ascii_case("upgrade"))
    {
        return Err((400, "it asks for no upgrade to websocket"));
    }
    if tokens(headers, "sec-websocket-version").ne(["13"]) {
        return Err((426, "it speaks another version than 13"));
    }
    let mut keys = values(headers, "sec-websocket-key");
    let (Some(key), None) = (keys.next(), keys.next()) else { return Err((400, "it needs one Sec-WebSocket-Key")) };
    if STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16) {
        //= MQTT-6.0.0-4
        let offered = |ours: &&&str| tokens(headers, "sec-websocket-protocol").any(|theirs| theirs == **ours);
        let subprotocol = SUBPROTOCOLS.iter().find(offered).ok_or((400, "it does not offer the subprotocol mqtt"))?;
        let accept = STANDARD.encode(Sha1::new().chain_update(key).chain_update(SALT).finalize());
        return Ok((accept, subprotocol));
    }
    Err((400, "its Sec-WebSocket-Key is not 16 bytes in base64"))
}

fn values<'a>(headers: &'a [httparse::Header<'a>], name: &'a str) -> impl Iterator<Item = &'a str> {
    let named = headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
    named.map(|header| core::str::from_utf8(header.value).unwrap_or_default().trim())
}

fn tokens<'a>(headers: &'a [httparse::Header<'a>], name: &'a str) -> impl Iterator<Item = &'a str> {
    values(headers, name).flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}
