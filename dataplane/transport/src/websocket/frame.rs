//! Frames of RFC 6455, section 5: those of clients taken apart as they come, the heads of ours.

use alloc::vec::Vec;

/// Opcodes.
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
pub(super) const BINARY: u8 = 2;
pub(super) const CLOSE: u8 = 8;
const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

/// Codes of a close.
pub(super) const NORMAL: u16 = 1000;
const PROTOCOL_ERROR: u16 = 1002;
const UNACCEPTABLE: u16 = 1003;
const TOO_BIG: u16 = 1009;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
const HEAD_BYTES_MAX: usize = 14;
/// Longest payload of a control frame.
const CONTROL_BYTES_MAX: usize = 125;

/// A code to close with, and why.
type Violation = (u16, &'static str);

/// What has come.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Event<'a> {
    /// Nothing else is in the bytes.
    More,
    /// A ping with this payload.
    Ping(&'a [u8]),
    /// The client closes, with this code.
    Close(Option<u16>),
}

/// The frames of one client.
pub(super) struct Frames {
    bytes_max: u64,
    /// The head that is being read.
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: usize,
    /// The frame that is being read, once its head is complete.
    frame: Option<Frame>,
    /// The payload of a control frame.
    control: [u8; CONTROL_BYTES_MAX],
    control_bytes: usize,
    /// A message of several frames has begun.
    fragmented: bool,
}

#[derive(Clone, Copy)]
struct Frame {
    opcode: u8,
    mask: [u8; 4],
    left: u64,
}

impl Frames {
    pub(super) fn new(bytes_max: u64) -> Frames {
        Frames {
            bytes_max,
            head: [0; HEAD_BYTES_MAX],
            head_bytes: 0,
            frame: None,
            control: [0; CONTROL_BYTES_MAX],
            control_bytes: 0,
            fragmented: false,
        }
    }

    /// Reads up to the next event and appends the payload of data frames to `plain`.
    pub(super) fn read(&mut self, wire: &mut &[u8], plain: &mut Vec<u8>) -> Result<Event<'_>, Violation> {
        loop {
            let Some(frame) = &mut self.frame else {
                if !self.read_head(wire)? {
                    return Ok(Event::More);
                }
                continue;
            };
            //= MQTT-6.0.0-2
            // Frames are nothing to packets: what they carry goes on as a stream of bytes.
            let bytes = usize::try_from(frame.left).unwrap_or(usize::MAX).min(wire.len());
            let (part, rest) = wire.split_at(bytes);
            *wire = rest;
            if frame.opcode < CLOSE {
                let from = plain.len();
                plain.extend_from_slice(part);
                unmask(&mut plain[from..], frame.mask);
            } else {
                let part_of = &mut self.control[self.control_bytes..self.control_bytes + bytes];
                part_of.copy_from_slice(part);
                unmask(part_of, frame.mask);
                self.control_bytes += bytes;
            }
            frame.mask.rotate_left(bytes % 4);
            frame.left -= bytes as u64;
            if frame.left > 0 {
                return Ok(Event::More);
            }
            let opcode = frame.opcode;
            self.frame = None;
            match opcode {
                PING => return Ok(Event::Ping(&self.control[..self.control_bytes])),
                CLOSE => return close_of(&self.control[..self.control_bytes]).map(Event::Close),
                _ => {}
            }
        }
    }

    /// Completes the head, and judges it; `false` while bytes are missing.
    fn read_head(&mut self, wire: &mut &[u8]) -> Result<bool, Violation> {
        while let Some((byte, rest)) = wire.split_first() {
            *wire = rest;
            self.head[self.head_bytes] = *byte;
            self.head_bytes += 1;
            if self.head_bytes < 2 {
                continue;
            }
            let extended = match self.head[1] & !MASKED {
                127 => 8,
                126 => 2,
                _ => 0,
            };
            if self.head_bytes == 2 {
                self.judge()?;
            }
            if self.head_bytes == 2 + extended + 4 {
                let length = match extended {
                    0 => u64::from(self.head[1] & !MASKED),
                    _ => self.head[2..2 + extended].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
                };
                if length > self.bytes_max {
                    return Err((TOO_BIG, "a frame exceeds websocket.max_frame_size"));
                }
                let mask = &self.head[2 + extended..];
                self.frame = Some(Frame {
                    opcode: self.head[0] & 0x0f,
                    mask: [mask[0], mask[1], mask[2], mask[3]],
                    left: length,
                });
                (self.head_bytes, self.control_bytes) = (0, 0);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Is a frame that begins with these two bytes legal now?
    fn judge(&mut self) -> Result<(), Violation> {
        let [first, second] = [self.head[0], self.head[1]];
        let (last, opcode) = (first & FIN != 0, first & 0x0f);
        if first & RESERVED != 0 {
            return Err((PROTOCOL_ERROR, "a frame uses reserved bits"));
        }
        if second & MASKED == 0 {
            return Err((PROTOCOL_ERROR, "a frame is not masked"));
        }
        match opcode {
            CONTINUATION if !self.fragmented => Err((PROTOCOL_ERROR, "a message begins with a continuation")),
            TEXT | BINARY if self.fragmented => Err((PROTOCOL_ERROR, "a message begins inside another")),
            //= MQTT-6.0.0-1
            TEXT => Err((UNACCEPTABLE, "a text frame came")),
            CONTINUATION | BINARY => {
                self.fragmented = !last;
                Ok(())
            }
            CLOSE | PING | PONG if !last || usize::from(second & !MASKED) > CONTROL_BYTES_MAX => {
                Err((PROTOCOL_ERROR, "a control frame is long or fragmented"))
            }
            CLOSE | PING | PONG => Ok(()),
            _ => Err((PROTOCOL_ERROR, "a frame has an unknown opcode")),
        }
    }
}

/// The code of a close.
fn close_of(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err((PROTOCOL_ERROR, "a close has half a code")) };
    };
    let code = u16::from_be_bytes(*code);
    let known = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    if known && core::str::from_utf8(reason).is_ok() {
        Ok(Some(code))
    } else {
        Err((PROTOCOL_ERROR, "a close has a code or reason that may not be sent"))
    }
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let twice = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut eights = bytes.chunks_exact_mut(8);
    for eight in &mut eights {
        if let Ok(eight) = <&mut [u8; 8]>::try_from(eight) {
            *eight = (u64::from_ne_bytes(*eight) ^ twice).to_ne_bytes();
        }
    }
    for (byte, key) in eights.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// The head of a frame of ours, which is never masked and always a whole message.
pub(super) fn put_head(opcode: u8, payload_bytes: usize, put: &mut impl FnMut(&[u8])) {
    let first = FIN | opcode;
    match payload_bytes {
        0..=125 => put(&[first, payload_bytes as u8]),
        126..=0xffff => {
            let [high, low] = (payload_bytes as u16).to_be_bytes();
            put(&[first, 126, high, low]);
        }
        _ => {
            let mut head = [first, 127, 0, 0, 0, 0, 0, 0, 0, 0];
            head[2..].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
            put(&head);
        }
    }
}
