//! Properties of a message between its two shapes: raw MQTT 5 property bytes, as a broker keeps them, and the
//! `properties` map of a forwarded message.
//!
//! Called by `wire` in both directions. Only what a server passes on unchanged crosses: format indicator, content
//! type, response topic, correlation data and user properties; the expiry interval travels beside them.

use alloc::vec::Vec;

use crate::etf::{self, EtfError, Reader, Token};
use crate::wire::WireError;

/// User properties of one message; more is a map meant to hurt, not a message.
pub const USER_PROPERTIES_MAX: u32 = 1024;

const FORMAT: u8 = 0x01;
const EXPIRY: u8 = 0x02;
const CONTENT_TYPE: u8 = 0x03;
const RESPONSE_TOPIC: u8 = 0x08;
const CORRELATION_DATA: u8 = 0x09;
const SUBSCRIPTION_ID: u8 = 0x0B;
const TOPIC_ALIAS: u8 = 0x23;
const USER: u8 = 0x26;

const ATOM_FORMAT: &str = "Payload-Format-Indicator";
const ATOM_EXPIRY: &str = "Message-Expiry-Interval";
const ATOM_CONTENT_TYPE: &str = "Content-Type";
const ATOM_RESPONSE_TOPIC: &str = "Response-Topic";
const ATOM_CORRELATION_DATA: &str = "Correlation-Data";
const ATOM_USER: &str = "User-Property";

/// What a forwarded message carries in its `properties` map. The default is an empty map.
#[derive(Clone, Copy, Debug, Default)]
pub struct Properties<'a> {
    /// The payload is said to be UTF-8 text.
    pub payload_format_utf8: Option<bool>,
    /// The full interval, counted from the message's timestamp.
    pub message_expiry_s: Option<u32>,
    /// Content type.
    pub content_type: Option<&'a str>,
    /// Response topic.
    pub response_topic: Option<&'a str>,
    /// Correlation data.
    pub correlation_data: Option<&'a [u8]>,
    /// User properties, in order.
    pub user: UserPairs<'a>,
}

/// Checked user properties; iterating them cannot fail.
#[derive(Clone, Copy, Debug, Default)]
pub struct UserPairs<'a> {
    pairs: Option<Reader<'a>>,
    len: u32,
}

impl<'a> Iterator for UserPairs<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<(&'a str, &'a str)> {
        self.len = self.len.checked_sub(1)?;
        let reader = self.pairs.as_mut()?;
        reader.tuple().ok()?;
        Some((reader.text().ok()?, reader.text().ok()?))
    }
}

impl<'a> Properties<'a> {
    /// Reads the map at `reader`. Keys that no forwarded message needs (subscription identifiers, aliases, whatever a
    /// later version adds) are stepped over: letting them through would leak them to subscribers.
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Properties<'a>, WireError> {
        let mut properties = Properties::default();
        for _ in 0..reader.map()? {
            match reader.token()? {
                Token::Atom(ATOM_FORMAT) => {
                    properties.payload_format_utf8 = Some(match reader.int()? {
                        0 => false,
                        1 => true,
                        _ => return Err(WireError::Bad(ATOM_FORMAT)),
                    });
                }
                Token::Atom(ATOM_EXPIRY) => {
                    let seconds = u32::try_from(reader.int()?).map_err(|_| WireError::Bad(ATOM_EXPIRY))?;
                    properties.message_expiry_s = Some(seconds);
                }
                Token::Atom(ATOM_CONTENT_TYPE) => properties.content_type = Some(text(reader, ATOM_CONTENT_TYPE)?),
                Token::Atom(ATOM_RESPONSE_TOPIC) => {
                    let topic = text(reader, ATOM_RESPONSE_TOPIC)?;
                    // A response topic is a topic name: MQTT-3.3.2-14.
                    if topic.is_empty() || topic.contains(['+', '#']) {
                        return Err(WireError::Bad(ATOM_RESPONSE_TOPIC));
                    }
                    properties.response_topic = Some(topic);
                }
                Token::Atom(ATOM_CORRELATION_DATA) => {
                    let data = reader.binary()?;
                    if data.len() > u16::MAX as usize {
                        return Err(WireError::Bad(ATOM_CORRELATION_DATA));
                    }
                    properties.correlation_data = Some(data);
                }
                Token::Atom(ATOM_USER) => properties.user = read_user(reader)?,
                Token::Atom(_) => reader.skip()?,
                _ => return Err(WireError::Bad("properties")),
            }
        }
        Ok(properties)
    }

    /// Appends the raw MQTT encoding of everything but the expiry interval, as a broker keeps it with a message.
    pub fn forwarded(&self, out: &mut Vec<u8>) {
        if let Some(utf8) = self.payload_format_utf8 {
            out.extend_from_slice(&[FORMAT, u8::from(utf8)]);
        }
        if let Some(content_type) = self.content_type {
            out.push(CONTENT_TYPE);
            put_short(out, content_type.as_bytes());
        }
        if let Some(topic) = self.response_topic {
            out.push(RESPONSE_TOPIC);
            put_short(out, topic.as_bytes());
        }
        if let Some(data) = self.correlation_data {
            out.push(CORRELATION_DATA);
            put_short(out, data);
        }
        for (name, value) in self.user {
            out.push(USER);
            put_short(out, name.as_bytes());
            put_short(out, value.as_bytes());
        }
    }
}

/// Text that MQTT can carry: at most 65535 bytes of UTF-8 without U+0000 (MQTT-1.5.4-2).
fn text<'a>(reader: &mut Reader<'a>, name: &'static str) -> Result<&'a str, WireError> {
    let text = reader.text().map_err(|_| WireError::Bad(name))?;
    if text.len() > u16::MAX as usize || text.contains('\0') { Err(WireError::Bad(name)) } else { Ok(text) }
}

fn read_user<'a>(reader: &mut Reader<'a>) -> Result<UserPairs<'a>, WireError> {
    let list = reader.list()?;
    if list.len > USER_PROPERTIES_MAX {
        return Err(WireError::Bad(ATOM_USER));
    }
    let pairs = UserPairs { pairs: Some(*reader), len: list.len };
    for _ in 0..list.len {
        if reader.tuple()? != 2 {
            return Err(WireError::Bad(ATOM_USER));
        }
        text(reader, ATOM_USER)?;
        text(reader, ATOM_USER)?;
    }
    reader.list_end(list)?;
    Ok(pairs)
}

/// Appends the `properties` map for raw property bytes that the MQTT codec validated, and an expiry interval.
pub(crate) fn put_map(out: &mut Vec<u8>, raw: &[u8], message_expiry_s: Option<u32>) -> Result<(), EtfError> {
    let mut entries = u32::from(message_expiry_s.is_some());
    let mut user = 0;
    for property in Walk(raw) {
        match property? {
            (USER, ..) => user += 1,
            (FORMAT | CONTENT_TYPE | RESPONSE_TOPIC | CORRELATION_DATA, ..) => entries += 1,
            _ => {}
        }
    }
    etf::put_map(out, entries + u32::from(user > 0));
    if let Some(seconds) = message_expiry_s {
        etf::put_atom(out, ATOM_EXPIRY);
        etf::put_int(out, i64::from(seconds));
    }
    for property in Walk(raw) {
        let (id, value, _) = property?;
        let atom = match id {
            FORMAT => {
                etf::put_atom(out, ATOM_FORMAT);
                etf::put_int(out, i64::from(value.first().copied().unwrap_or(0)));
                continue;
            }
            CONTENT_TYPE => ATOM_CONTENT_TYPE,
            RESPONSE_TOPIC => ATOM_RESPONSE_TOPIC,
            CORRELATION_DATA => ATOM_CORRELATION_DATA,
            _ => continue,
        };
        etf::put_atom(out, atom);
        etf::put_binary(out, value);
    }
    if user > 0 {
        etf::put_atom(out, ATOM_USER);
        etf::put_list(out, user);
        for property in Walk(raw) {
            if let (USER, name, value) = property? {
                etf::put_tuple(out, 2);
                etf::put_binary(out, name);
                etf::put_binary(out, value);
            }
        }
        etf::put_nil(out);
    }
    Ok(())
}

/// Steps over raw property bytes: identifier, value, and for user properties the second string.
struct Walk<'a>(&'a [u8]);

impl<'a> Iterator for Walk<'a> {
    type Item = Result<(u8, &'a [u8], &'a [u8]), EtfError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&id, rest) = self.0.split_first()?;
        self.0 = rest;
        let step = self.value(id);
        if step.is_none() {
            self.0 = &[];
        }
        Some(step.ok_or(EtfError::Expected("whole MQTT properties")))
    }
}

impl<'a> Walk<'a> {
    fn value(&mut self, id: u8) -> Option<(u8, &'a [u8], &'a [u8])> {
        let value = match id {
            FORMAT => self.slice(1)?,
            EXPIRY => self.slice(4)?,
            TOPIC_ALIAS => self.slice(2)?,
            CONTENT_TYPE | RESPONSE_TOPIC | CORRELATION_DATA => self.short()?,
            SUBSCRIPTION_ID => {
                let len = self.0.iter().take(4).position(|byte| byte & 0x80 == 0)? + 1;
                self.slice(len)?
            }
            USER => {
                let name = self.short()?;
                return Some((id, name, self.short()?));
            }
            _ => return None,
        };
        Some((id, value, &[]))
    }

    fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn short(&mut self) -> Option<&'a [u8]> {
        let len = self.slice(2)?;
        self.slice(usize::from(u16::from_be_bytes([len[0], len[1]])))
    }
}

fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}
