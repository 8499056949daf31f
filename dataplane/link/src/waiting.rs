//! One message that waits in an outlet: encoded for the wire, and still readable as the message that it was.
//!
//! Owned by the outlet. Always true: what [`Waiting::message`] gives is what was offered, byte for byte, so whoever
//! keeps a log can write it down again at any time without a second copy beside the encoded one.

use alloc::vec::Vec;

use mqtt::types::Qos;

use crate::etf::{self, EtfError};
use crate::wire::{self, Message};

/// What one waiting message costs beside its bytes.
const ENTRY_BYTES: usize = 192;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// The payload; behind it the properties as they were offered, if they may have to be told again.
    bytes: Vec<u8>,
    payload_bytes: usize,
    parts: Parts,
    pub(crate) qos: Qos,
    retain: bool,
    timestamp_ms: u64,
    message_expiry_s: Option<u32>,
    /// Given up from here on; as expired if `expires`, else as too old.
    pub(crate) until: u64,
    pub(crate) expires: bool,
    /// Sent before, or perhaps: on a connection that ended, or by a process that died.
    pub(crate) again: bool,
}

impl Waiting {
    /// Encodes `message` into `buffer`, which is empty.
    pub(crate) fn new(mut buffer: Vec<u8>, message: &Message<'_>) -> Result<Waiting, (Vec<u8>, EtfError)> {
        let parts = match wire::put_parts(&mut buffer, message) {
            Ok(parts) => parts,
            Err(error) => return Err((buffer, error)),
        };
        let payload_bytes = buffer.len();
        if message.qos != Qos::AtMostOnce {
            buffer.extend_from_slice(message.properties);
        }
        Ok(Waiting {
            bytes: buffer,
            payload_bytes,
            parts,
            qos: message.qos,
            retain: message.retain,
            timestamp_ms: message.timestamp_ms,
            message_expiry_s: message.message_expiry_s,
            until: u64::MAX,
            expires: false,
            again: false,
        })
    }

    /// What goes over the wire.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.bytes[..self.payload_bytes]
    }

    /// The message as it was offered; `None` with QoS 0, which nobody tells again.
    pub(crate) fn message(&self) -> Option<Message<'_>> {
        let payload = self.payload();
        (self.qos != Qos::AtMostOnce).then(|| Message {
            id: self.parts.id.of(payload).try_into().unwrap_or_default(),
            qos: self.qos,
            from: self.parts.from.text(payload),
            retain: self.retain,
            topic: self.parts.topic.text(payload),
            payload: self.parts.payload.of(payload),
            timestamp_ms: self.timestamp_ms,
            properties: &self.bytes[self.payload_bytes..],
            message_expiry_s: self.message_expiry_s,
        })
    }

    /// What it costs.
    pub(crate) fn cost(&self) -> usize {
        self.bytes.len() + ENTRY_BYTES
    }

    /// The buffer, for another message.
    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

/// Where the parts of a payload that [`wire::put_forwarded`] has written stand, so that whoever keeps the payload can name
/// them again without decoding it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parts {
    pub(crate) id: Part,
    pub(crate) from: Part,
    pub(crate) topic: Part,
    pub(crate) payload: Part,
}

/// A slice of a payload.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Part {
    at: usize,
    bytes: usize,
}

impl Part {
    pub(crate) fn put(out: &mut Vec<u8>, bytes: &[u8]) -> Part {
        etf::put_binary(out, bytes);
        Part { at: out.len() - bytes.len(), bytes: bytes.len() }
    }

    /// Its bytes in the payload that it belongs to.
    pub(crate) fn of(self, payload: &[u8]) -> &[u8] {
        payload.get(self.at..self.at + self.bytes).unwrap_or_default()
    }

    /// The same as text; it was text when it was written.
    pub(crate) fn text(self, payload: &[u8]) -> &str {
        core::str::from_utf8(self.of(payload)).unwrap_or_default()
    }
}
