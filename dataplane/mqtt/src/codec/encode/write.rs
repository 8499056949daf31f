//! The pieces that every packet is written with: integers, strings, properties, and lengths in front.
//! Called by the encoders beside it only. Always true: a length in front is that of what follows.

use alloc::vec::Vec;

use crate::codec::{PACKET_BYTES_MAX, UserProperties, properties::id};

/// A packet whose body is written first and measured after.
pub(super) fn packet(out: &mut Vec<u8>, first: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.push(first);
    with_length(out, body);
    if out.len() - start > PACKET_BYTES_MAX {
        debug_assert!(false, "no caller has that much to say");
        out.truncate(start);
    }
}

/// Writes `body`, then turns its length around to the front: no second buffer, no counting in advance.
pub(super) fn with_length(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    body(out);
    let end = out.len();
    var_int(out, end - start);
    let len_len = out.len() - end;
    out[start..].rotate_right(len_len);
}

//= MQTT-1.5.5-1
#[inline]
pub(super) fn var_int(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[inline]
pub(super) fn var_int_len(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

#[inline]
pub(super) fn two(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_be_bytes());
}

#[inline]
pub(super) fn string(out: &mut Vec<u8>, text: &str) {
    let fits = text.floor_char_boundary(usize::from(u16::MAX));
    binary(out, &text.as_bytes()[..fits]);
}

/// Cuts what cannot be expressed: better a short string than a stream out of step.
#[inline]
pub(super) fn binary(out: &mut Vec<u8>, bytes: &[u8]) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX), "every limit of ours is below 64 KiB");
    let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
    two(out, bytes.len() as u16);
    out.extend_from_slice(bytes);
}

#[inline]
pub(super) fn short_property(out: &mut Vec<u8>, property: u8, value: Option<u16>) {
    if let Some(value) = value {
        let [high, low] = value.to_be_bytes();
        out.extend_from_slice(&[property, high, low]);
    }
}

#[inline]
pub(super) fn long_property(out: &mut Vec<u8>, property: u8, value: Option<u32>) {
    if let Some(value) = value {
        let [a, b, c, d] = value.to_be_bytes();
        out.extend_from_slice(&[property, a, b, c, d]);
    }
}

pub(super) fn flag_property(out: &mut Vec<u8>, property: u8, value: Option<bool>) {
    if let Some(value) = value {
        out.extend_from_slice(&[property, u8::from(value)]);
    }
}

pub(super) fn text_property(out: &mut Vec<u8>, property: u8, value: Option<&str>) {
    if let Some(value) = value {
        out.push(property);
        string(out, value);
    }
}

pub(super) fn binary_property(out: &mut Vec<u8>, property: u8, value: Option<&[u8]>) {
    if let Some(value) = value {
        out.push(property);
        binary(out, value);
    }
}

pub(super) fn user_properties(out: &mut Vec<u8>, user: UserProperties<'_>) {
    for (key, value) in user {
        user_property(out, key, value);
    }
}

/// Appends one user property; several of them make a list for [`UserProperties::parse`].
pub fn user_property(out: &mut Vec<u8>, key: &str, value: &str) {
    out.push(id::USER_PROPERTY);
    string(out, key);
    string(out, value);
}
