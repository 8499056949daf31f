//! WebSocket (RFC 6455) as a server that carries MQTT: the handshake, then binary frames whose payloads are one stream
//! of bytes, so MQTT packets may lie across and within frames. Owned by a connection's stage, on its shard; moves
//! with it.
//!
//! Always true: of a data frame nothing is kept; of a control frame at most 125 bytes; of pings one answer waits at most.

mod frame;
mod head;

use alloc::{string::String, sync::Arc, vec::Vec};
use core::fmt;

use self::frame::{Event, Frames};
pub use self::head::HEAD_BYTES_MAX;

/// Bytes that go into one frame of ours: clients bound what they take in one.
pub const FRAME_OUT_BYTES: usize = 64 * 1024;

/// What a listener demands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The path of the handshake's request.
    pub path: String,
    /// Most bytes of one frame of a client.
    pub frame_bytes_max: u64,
}

/// Why a connection cannot go on. What the client is told about it is already in the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failed {
    /// The handshake was refused with this status of HTTP.
    Refused(u16, &'static str),
    /// A frame was not legal; the connection was closed with this code.
    Violated(u16, &'static str),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::Refused(status, why) => write!(f, "WebSocket handshake refused with {status}: {why}"),
            Failed::Violated(code, why) => write!(f, "WebSocket closed with {code}: {why}"),
        }
    }
}

/// What came of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// More may come.
    More,
    /// The client has closed; nothing more comes.
    Ended,
}

enum Phase {
    Head(Vec<u8>),
    Frames(Frames),
    Closed,
}

/// One connection's WebSocket.
pub struct WebSocket {
    settings: Arc<Settings>,
    phase: Phase,
    /// What goes out before anything else: the answer to the handshake, or a close.
    out: Vec<u8>,
    /// The answer to the last ping.
    pong: Option<Vec<u8>>,
}

impl fmt::Debug for WebSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = match &self.phase {
            Phase::Head(_) => "head",
            Phase::Frames(_) => "frames",
            Phase::Closed => "closed",
        };
        f.debug_struct("WebSocket").field("phase", &phase).finish_non_exhaustive()
    }
}

impl WebSocket {
    /// A connection whose handshake is to come.
    pub fn new(settings: Arc<Settings>) -> WebSocket {
        WebSocket { settings, phase: Phase::Head(Vec::new()), out: Vec::new(), pong: None }
    }

    /// Takes bytes off the wire and appends what they carry to `plain`.
    pub fn open(&mut self, mut wire: &[u8], plain: &mut Vec<u8>) -> Result<Flow, Failed> {
        if let Phase::Head(head) = &mut self.phase {
            match head::read(head, &mut wire, &self.settings.path, &mut self.out) {
                Ok(false) => return Ok(Flow::More),
                Ok(true) => self.phase = Phase::Frames(Frames::new(self.settings.frame_bytes_max)),
                Err(failed) => {
                    self.phase = Phase::Closed;
                    return Err(failed);
                }
            }
        }
        while let Phase::Frames(frames) = &mut self.phase {
            match frames.read(&mut wire, plain) {
                Ok(Event::More) => return Ok(Flow::More),
                Ok(Event::Ping(payload)) => {
                    let mut pong = Vec::new();
                    frame::put_head(frame::PONG, payload.len(), &mut |head: &[u8]| pong.extend_from_slice(head));
                    pong.extend_from_slice(payload);
                    // RFC 6455, 5.5.3: only the most recent ping needs an answer.
                    self.pong = Some(pong);
                }
                Ok(Event::Close(code)) => {
                    self.close(code);
                    return Ok(Flow::Ended);
                }
                Err((code, why)) => {
                    self.close(Some(code));
                    return Err(Failed::Violated(code, why));
                }
            }
        }
        Ok(Flow::More)
    }

    /// Is there something to send besides what MQTT says?
    pub fn has_output(&self) -> bool {
        !self.out.is_empty() || self.pong.is_some()
    }

    /// Hands everything that is to be sent to `put`, `plain` in frames behind what WebSocket itself has to say. What
    /// cannot be sent any more is given up.
    pub fn seal(&mut self, plain: &[u8], put: &mut impl FnMut(&[u8])) {
        if !self.out.is_empty() {
            put(&core::mem::take(&mut self.out));
        }
        let Phase::Frames(_) = &self.phase else { return };
        if let Some(pong) = self.pong.take() {
            put(&pong);
        }
        for part in plain.chunks(FRAME_OUT_BYTES) {
            frame::put_head(frame::BINARY, part.len(), put);
            put(part);
        }
    }

    /// Says goodbye, unless that was said.
    pub fn finish(&mut self) {
        if let Phase::Frames(_) = &self.phase {
            self.close(Some(frame::NORMAL));
        }
    }

    fn close(&mut self, code: Option<u16>) {
        let code = code.map(u16::to_be_bytes);
        let payload: &[u8] = code.as_ref().map_or(&[], |code| code);
        let out = &mut self.out;
        frame::put_head(frame::CLOSE, payload.len(), &mut |head: &[u8]| out.extend_from_slice(head));
        out.extend_from_slice(payload);
        self.phase = Phase::Closed;
        self.pong = None;
    }
}

#[cfg(test)]
mod tests;
