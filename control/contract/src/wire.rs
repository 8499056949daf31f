//! Framing on the Unix sockets and in the files between the two processes: length, version, postcard.
//! Always true: no frame above [`FRAME_BYTES_MAX`] is written or kept, whatever the other side claims.

use alloc::vec::Vec;
use core::fmt;

use serde::{Serialize, de::DeserializeOwned};

/// Version of the encoding of View, Report and what `ringmq ctl` asks.
pub const VERSION: u8 = 1;
/// Largest frame, with its header.
pub const FRAME_BYTES_MAX: usize = 4 << 20;
/// Four bytes of length, little-endian, that count the version and the body; one byte of version.
const HEADER_BYTES: usize = 5;

/// Why bytes are no frame, or a value fits into none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireError {
    /// More than [`FRAME_BYTES_MAX`].
    TooLarge,
    /// Another version of the encoding.
    Version(u8),
    /// The body is not what was expected.
    Malformed,
    /// The bytes end within a frame.
    Truncated,
}

/// Appends `value` as one frame.
pub fn encode<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), WireError> {
    let body = postcard::to_allocvec(value).map_err(|_| WireError::Malformed)?;
    if HEADER_BYTES + body.len() > FRAME_BYTES_MAX {
        return Err(WireError::TooLarge);
    }
    out.extend_from_slice(&(1 + body.len() as u32).to_le_bytes());
    out.push(VERSION);
    out.extend_from_slice(&body);
    Ok(())
}

/// Frames out of bytes that arrive in any cut.
#[derive(Default, Debug)]
pub struct Frames {
    bytes: Vec<u8>,
    taken: usize,
}

impl Frames {
    /// Adds what arrived. Call [`Frames::take`] until it returns `None` before the next push: that bounds the memory.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next complete frame. After an error the connection is of no use any more.
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        let rest = &self.bytes[self.taken..];
        let Some((length, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > FRAME_BYTES_MAX - 4 {
            return Err(WireError::TooLarge);
        }
        if length == 0 {
            return Err(WireError::Malformed);
        }
        match rest.first() {
            Some(&VERSION) => {}
            Some(version) => return Err(WireError::Version(*version)),
            None => return Ok(None),
        }
        let Some(body) = rest.get(1..length) else {
            return Ok(None);
        };
        let (value, left) = postcard::take_from_bytes(body).map_err(|_| WireError::Malformed)?;
        if !left.is_empty() {
            return Err(WireError::Malformed);
        }
        self.taken += 4 + length;
        Ok(Some(value))
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::TooLarge => write!(f, "a frame of more than {FRAME_BYTES_MAX} bytes"),
            WireError::Version(version) => write!(f, "encoding version {version}; this is version {VERSION}"),
            WireError::Malformed => f.write_str("a frame that cannot be read"),
            WireError::Truncated => f.write_str("the end within a frame"),
        }
    }
}

impl core::error::Error for WireError {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::String, vec};

    type Pair = (u64, String);

    fn pairs() -> Vec<Pair> {
        vec![(0, String::new()), (u64::MAX, "x".repeat(300)), (7, "é".into())]
    }

    #[test]
    fn frames_survive_every_cut() {
        let mut bytes = Vec::new();
        for pair in pairs() {
            encode(&pair, &mut bytes).unwrap();
        }
        for step in [1, 2, 3, 5, 64, bytes.len()] {
            let (mut frames, mut read) = (Frames::default(), Vec::new());
            for part in bytes.chunks(step) {
                frames.push(part);
                while let Some(pair) = frames.take::<Pair>().unwrap() {
                    read.push(pair);
                }
            }
            assert_eq!(read, pairs(), "in steps of {step}");
        }
    }

    #[test]
    fn a_claim_above_the_bound_is_refused_before_its_bytes_come() {
        let mut frames = Frames::default();
        frames.push(&(FRAME_BYTES_MAX as u32).to_le_bytes());
        assert_eq!(frames.take::<Pair>(), Err(WireError::TooLarge));
        let mut out = Vec::new();
        assert_eq!(encode(&"x".repeat(FRAME_BYTES_MAX), &mut out), Err(WireError::TooLarge));
        assert!(out.is_empty());
        encode(&"x".repeat(FRAME_BYTES_MAX - HEADER_BYTES - 4), &mut out).unwrap();
        assert_eq!(out.len(), FRAME_BYTES_MAX);
        let mut frames = Frames::default();
        frames.push(&out);
        assert!(frames.take::<String>().unwrap().is_some());
    }

    #[test]
    fn other_versions_and_broken_bodies_are_refused() {
        let mut good = Vec::new();
        encode(&(7u64, String::from("x")), &mut good).unwrap();
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            let mut frames = Frames::default();
            frames.push(&bytes);
            frames.take::<Pair>().unwrap_err()
        };
        assert_eq!(refused(&|bytes| bytes[4] = 9), WireError::Version(9));
        assert_eq!(refused(&|bytes| bytes[0] = 0), WireError::Malformed);
        assert_eq!(refused(&|bytes| bytes[0] -= 1), WireError::Malformed, "the body ends too early");
        assert_eq!(
            refused(&|bytes| {
                bytes[0] += 1;
                bytes.push(0);
            }),
            WireError::Malformed,
            "the body has a rest"
        );
        assert_eq!(refused(&|bytes| *bytes.last_mut().unwrap() = 0xff), WireError::Malformed, "that is no UTF-8");
    }
}
