//! DISCONNECT and AUTH: the two packets that speak about the connection itself.
//! Decoded on the home shard. Always true: the reason belongs to its packet.

use super::{
    Raw,
    properties::{List, Set, UserProperties, id},
    read::Reader,
};
use crate::types::{Malformed, Reason, Version};

/// One DISCONNECT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disconnect<'a> {
    /// Why; `Success` before version 5.
    pub reason: Reason,
    /// Seconds that the session lives from now on; only from a client.
    pub session_expiry_s: Option<u32>,
    /// Words for a human.
    pub reason_string: Option<&'a str>,
    /// Another server to use.
    pub server_reference: Option<&'a str>,
    /// User disconnect.
    pub user: UserProperties<'a>,
}

impl Default for Disconnect<'_> {
    fn default() -> Self {
        Disconnect {
            reason: Reason::NORMAL_DISCONNECTION,
            session_expiry_s: None,
            reason_string: None,
            server_reference: None,
            user: UserProperties::default(),
        }
    }
}

/// One AUTH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Auth<'a> {
    /// `Success`, `ContinueAuthentication` or `ReAuthenticate`.
    pub reason: Reason,
    /// Name of the authentication; absent only in the short form of a success.
    pub method: Option<&'a str>,
    /// Its bytes.
    pub data: Option<&'a [u8]>,
    /// Words for a human.
    pub reason_string: Option<&'a str>,
    /// User disconnect.
    pub user: UserProperties<'a>,
}

/// May DISCONNECT carry this reason? Both directions together: table 3-13, and 0x8C of table 2-6.
//= MQTT-3.14.2-1
pub(super) fn disconnect_allows(reason: Reason) -> bool {
    use Reason::*;
    match reason {
        Success | DisconnectWithWill => true,
        UnsupportedProtocolVersion
        | ClientIdNotValid
        | BadUserNameOrPassword
        | ServerUnavailable
        | Banned
        | PacketIdInUse
        | PacketIdNotFound => false,
        _ => reason.is_failure(),
    }
}

/// May AUTH carry this reason?
//= MQTT-3.15.2-1
pub(super) fn auth_allows(reason: Reason) -> bool {
    matches!(reason, Reason::Success | Reason::ContinueAuthentication | Reason::ReAuthenticate)
}

const DISCONNECT: Set = Set::of(&[id::SESSION_EXPIRY, id::REASON_STRING, id::SERVER_REFERENCE, id::USER_PROPERTY]);

const AUTH: Set = Set::of(&[id::AUTHENTICATION_METHOD, id::AUTHENTICATION_DATA, id::REASON_STRING, id::USER_PROPERTY]);

pub(super) fn decode_disconnect<'a>(version: Version, raw: Raw<'a>) -> Result<Disconnect<'a>, Malformed> {
    //= MQTT-3.14.1-1
    if raw.first != 0xE0 {
        return Err(Malformed::FixedFlags);
    }
    let mut read = Reader::new(raw.body);
    let mut disconnect = Disconnect::default();
    if read.is_empty() {
        return Ok(disconnect);
    }
    if version != Version::V5 {
        return Err(Malformed::TrailingBytes);
    }
    let code = read.u8()?;
    let reason = Reason::from_u8(code).filter(|reason| disconnect_allows(*reason));
    disconnect.reason = reason.ok_or(Malformed::ReasonCode(code))?;
    if !read.is_empty() {
        let mut list = List::take(&mut read, DISCONNECT)?;
        while let Some((property, value)) = list.next()? {
            match property {
                id::SESSION_EXPIRY => disconnect.session_expiry_s = Some(value.number()),
                id::REASON_STRING => disconnect.reason_string = value.text(),
                id::SERVER_REFERENCE => disconnect.server_reference = value.text(),
                _ => {}
            }
        }
        disconnect.user = list.user();
    }
    read.end()?;
    Ok(disconnect)
}

pub(super) fn decode_auth(raw: Raw<'_>) -> Result<Auth<'_>, Malformed> {
    //= MQTT-3.15.1-1
    if raw.first != 0xF0 {
        return Err(Malformed::FixedFlags);
    }
    let mut read = Reader::new(raw.body);
    let user = UserProperties::default();
    let mut auth = Auth { reason: Reason::Success, method: None, data: None, reason_string: None, user };
    if read.is_empty() {
        return Ok(auth);
    }
    let code = read.u8()?;
    let reason = Reason::from_u8(code).filter(|reason| auth_allows(*reason));
    auth.reason = reason.ok_or(Malformed::ReasonCode(code))?;
    let mut list = List::take(&mut read, AUTH)?;
    while let Some((property, value)) = list.next()? {
        match property {
            id::AUTHENTICATION_METHOD => auth.method = value.text(),
            id::AUTHENTICATION_DATA => auth.data = value.binary(),
            id::REASON_STRING => auth.reason_string = value.text(),
            _ => {}
        }
    }
    auth.user = list.user();
    read.end()?;
    if auth.method.is_none() {
        return Err(Malformed::AuthenticationMethodMissing);
    }
    Ok(auth)
}
