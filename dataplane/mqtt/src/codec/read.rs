//! A cursor over one packet's bytes. Used by the decoders of this module only, for the length of one call.
//! Always true: what it returns lies inside the bytes it was given; running out is [`Malformed::Truncated`].

use simdutf8::basic::from_utf8;

use crate::{
    scan,
    types::{Malformed, PacketId},
};

/// Largest value of a variable byte integer.
pub const VAR_INT_MAX: usize = 268_435_455;

/// The bytes that are not read yet.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline(always)]
    pub fn new(rest: &'a [u8]) -> Reader<'a> {
        Reader { rest }
    }

    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    #[inline(always)]
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        let (byte, rest) = self.rest.split_first().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(*byte)
    }

    #[inline(always)]
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        let (bytes, rest) = self.rest.split_first_chunk::<2>().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    #[inline]
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        let (bytes, rest) = self.rest.split_first_chunk::<4>().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*bytes))
    }

    /// A variable byte integer. A value in more bytes than it needs is taken, as long as they are four:
    /// small clients reserve the space of the length before they know it.
    #[inline]
    pub fn var_int(&mut self) -> Result<usize, Malformed> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            value |= usize::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed::LengthTooLong)
    }

    #[inline(always)]
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// Binary data: two bytes of length, then the bytes.
    #[inline(always)]
    pub fn binary(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// A string.
    #[inline]
    pub fn string(&mut self) -> Result<&'a str, Malformed> {
        let bytes = self.binary()?;
        //= MQTT-1.5.4-2
        if scan::has_nul(bytes) {
            return Err(Malformed::Nul);
        }
        utf8(bytes)
    }

    /// The topic of a PUBLISH: a string without wildcards, possibly empty.
    #[inline]
    pub fn topic(&mut self) -> Result<&'a str, Malformed> {
        let bytes = self.binary()?;
        //= MQTT-3.3.2-2
        if scan::has_wildcard_or_nul(bytes) {
            return Err(if bytes.contains(&0) { Malformed::Nul } else { Malformed::TopicName });
        }
        utf8(bytes)
    }

    //= MQTT-2.2.1-3
    #[inline]
    pub fn packet_id(&mut self) -> Result<PacketId, Malformed> {
        PacketId::new(self.u16()?).ok_or(Malformed::PacketIdZero)
    }

    /// Nothing may follow.
    #[inline]
    pub fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::TrailingBytes) }
    }
}

//= MQTT-1.5.4-1
//= MQTT-1.5.4-3
// A byte order mark is a character like any other here: nothing strips it.
#[inline]
pub(crate) fn utf8(bytes: &[u8]) -> Result<&str, Malformed> {
    from_utf8(bytes).map_err(|_| Malformed::NotUtf8)
}
