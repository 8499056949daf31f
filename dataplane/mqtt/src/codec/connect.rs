//! CONNECT with its will, and CONNACK, of all three versions.
//! CONNECT is the first thing that anybody on the network can send us, CONNACK what a link gets back.
//! Always true: what of CONNECT is legal in itself was checked here; what needs rights or limits was not.

use super::{
    Raw,
    properties::{List, PublishProperties, Set, UserProperties, id},
    read::Reader,
};
use crate::{
    scan,
    types::{Malformed, Qos, Reason, Version},
};

/// One CONNECT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connect<'a> {
    /// Protocol version of the connection from here on.
    pub version: Version,
    /// Begin without the old session; Clean Session before version 5.
    pub clean_start: bool,
    /// Seconds of silence that the client promises to stay below; 0: none.
    pub keep_alive_s: u16,
    /// The client id; empty when the server shall assign one.
    pub client_id: &'a str,
    /// User name.
    pub username: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
    /// What to publish when the client is gone.
    pub will: Option<Will<'a>>,
    /// Properties; the default before version 5.
    pub properties: ConnectProperties<'a>,
    /// The client is a broker that bridges: the highest bit of the protocol level, as mosquitto uses it.
    pub bridge: bool,
}

/// Properties of CONNECT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectProperties<'a> {
    /// Seconds that the session outlives the connection.
    pub session_expiry_s: Option<u32>,
    /// Unacknowledged publishes that the client takes at once; never 0.
    pub receive_maximum: Option<u16>,
    /// Largest packet that the client takes; never 0.
    pub maximum_packet_bytes: Option<u32>,
    /// Largest topic alias that the client takes.
    pub topic_alias_maximum: Option<u16>,
    /// The client wants response information.
    pub request_response_information: bool,
    /// The client wants reason strings and user properties also where nothing failed.
    pub request_problem_information: bool,
    /// User properties.
    pub user: UserProperties<'a>,
    /// Name of the extended authentication.
    pub authentication_method: Option<&'a str>,
    /// Bytes of the extended authentication.
    pub authentication_data: Option<&'a [u8]>,
}

impl Default for ConnectProperties<'_> {
    fn default() -> Self {
        ConnectProperties {
            session_expiry_s: None,
            receive_maximum: None,
            maximum_packet_bytes: None,
            topic_alias_maximum: None,
            request_response_information: false,
            request_problem_information: true,
            user: UserProperties::default(),
            authentication_method: None,
            authentication_data: None,
        }
    }
}

/// A will.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Will<'a> {
    /// Its quality of service.
    pub qos: Qos,
    /// To be retained.
    pub retain: bool,
    /// Its topic.
    pub topic: &'a str,
    /// Its message.
    pub payload: &'a [u8],
    /// Seconds from the end of the connection to its publication.
    pub delay_s: u32,
    /// The properties it is published with, without the delay.
    pub properties: PublishProperties<'a>,
}

/// One CONNACK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connack<'a> {
    /// The server has a session of this client.
    pub session_present: bool,
    /// How it went; of 3.x what its return code stands for.
    pub reason: Reason,
    /// Properties; the default before version 5.
    pub properties: ConnackProperties<'a>,
}

/// Properties of CONNACK; `None` is what the specification says of their absence.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ConnackProperties<'a> {
    /// Seconds that the session outlives the connection, when not as asked.
    pub session_expiry_s: Option<u32>,
    /// Unacknowledged publishes that the server takes at once; never 0.
    pub receive_maximum: Option<u16>,
    /// Largest QoS, 0 or 1.
    pub maximum_qos: Option<Qos>,
    /// Are retained messages kept?
    pub retain_available: Option<bool>,
    /// Largest packet that the server takes; never 0.
    pub maximum_packet_bytes: Option<u32>,
    /// The client id that the server chose.
    pub assigned_client_id: Option<&'a str>,
    /// Largest topic alias that the server takes.
    pub topic_alias_maximum: Option<u16>,
    /// Words for a human.
    pub reason_string: Option<&'a str>,
    /// User properties.
    pub user: UserProperties<'a>,
    /// Are wildcards possible?
    pub wildcard_available: Option<bool>,
    /// Are subscription identifiers possible?
    pub subscription_ids_available: Option<bool>,
    /// Are shared subscriptions possible?
    pub shared_available: Option<bool>,
    /// The keep alive to use instead of the client's own.
    pub server_keep_alive_s: Option<u16>,
    /// What to make response topics from.
    pub response_information: Option<&'a str>,
    /// Another server to use.
    pub server_reference: Option<&'a str>,
    /// Name of the extended authentication.
    pub authentication_method: Option<&'a str>,
    /// Bytes of the extended authentication.
    pub authentication_data: Option<&'a [u8]>,
}

/// The bits of the connect flags.
pub(super) mod flag {
    pub const RESERVED: u8 = 0x01;
    pub const CLEAN: u8 = 0x02;
    pub const WILL: u8 = 0x04;
    pub const WILL_QOS: u8 = 0x18;
    pub const WILL_RETAIN: u8 = 0x20;
    pub const PASSWORD: u8 = 0x40;
    pub const USERNAME: u8 = 0x80;
}

/// The bit of the protocol level by which a bridge says that it is one.
pub(super) const BRIDGE: u8 = 0x80;

//= MQTT-3.1.3-1
pub(super) fn decode(raw: Raw<'_>) -> Result<Connect<'_>, Malformed> {
    if raw.first != 0x10 {
        return Err(Malformed::FixedFlags);
    }
    let mut read = Reader::new(raw.body);
    let (version, bridge) = protocol(&mut read)?;
    let flags = read.u8()?;
    check_flags(version, flags)?;
    let clean_start = flags & flag::CLEAN != 0;
    let keep_alive_s = read.u16()?;
    let properties = match version {
        Version::V5 => connect_properties(&mut read)?,
        _ => ConnectProperties::default(),
    };
    //= MQTT-3.1.3-3
    //= MQTT-3.1.3-4
    let client_id = read.string()?;
    //= MQTT-3.1.3-6
    //= MQTT311-3.1.3-7
    //= MQTT311-3.1.3-8
    if client_id.is_empty() && (version == Version::V31 || version == Version::V311 && !clean_start) {
        return Err(Malformed::ClientIdMissing);
    }
    let will = if flags & flag::WILL == 0 { None } else { Some(will(version, flags, &mut read)?) };
    //= MQTT-3.1.2-16
    //= MQTT-3.1.2-17
    //= MQTT-3.1.3-12
    let username = if flags & flag::USERNAME == 0 { None } else { Some(read.string()?) };
    //= MQTT-3.1.2-18
    //= MQTT-3.1.2-19
    let password = if flags & flag::PASSWORD == 0 { None } else { Some(read.binary()?) };
    read.end()?;
    Ok(Connect { version, clean_start, keep_alive_s, client_id, username, password, will, properties, bridge })
}

/// Protocol name and level.
//= MQTT-3.1.2-1
//= MQTT-3.1.2-2
fn protocol(read: &mut Reader<'_>) -> Result<(Version, bool), Malformed> {
    let name = read.binary()?;
    if name != b"MQTT" && name != b"MQIsdp" {
        return Err(Malformed::ProtocolName);
    }
    let level = read.u8()?;
    let version = match (name, level & !BRIDGE) {
        (b"MQIsdp", 3) => Version::V31,
        (b"MQTT", 4) => Version::V311,
        (b"MQTT", 5) => Version::V5,
        _ => return Err(Malformed::UnsupportedVersion(level)),
    };
    Ok((version, level & BRIDGE != 0))
}

fn check_flags(version: Version, flags: u8) -> Result<(), Malformed> {
    //= MQTT-3.1.2-3
    if flags & flag::RESERVED != 0 {
        return Err(Malformed::ConnectFlags);
    }
    //= MQTT-3.1.2-11
    //= MQTT-3.1.2-13
    if flags & flag::WILL == 0 && flags & (flag::WILL_QOS | flag::WILL_RETAIN) != 0 {
        return Err(Malformed::WillFlags);
    }
    //= MQTT311-3.1.2-22
    // Version 5 allows a password alone.
    if version != Version::V5 && flags & (flag::USERNAME | flag::PASSWORD) == flag::PASSWORD {
        return Err(Malformed::PasswordWithoutUsername);
    }
    Ok(())
}

//= MQTT-3.1.2-9
//= MQTT-3.1.3-11
fn will<'a>(version: Version, flags: u8, read: &mut Reader<'a>) -> Result<Will<'a>, Malformed> {
    let (properties, delay_s) = match version {
        Version::V5 => PublishProperties::decode_will(read)?,
        _ => (PublishProperties::default(), 0),
    };
    let topic = read.string()?;
    if topic.is_empty() || scan::has_wildcard_or_nul(topic.as_bytes()) {
        return Err(Malformed::TopicName);
    }
    let payload = read.binary()?;
    //= MQTT-3.1.2-12
    let qos = Qos::from_bits(flags >> 3 & 0x03).ok_or(Malformed::QosThree)?;
    Ok(Will { qos, retain: flags & flag::WILL_RETAIN != 0, topic, payload, delay_s, properties })
}

const CONNECT: Set = Set::of(&[
    id::SESSION_EXPIRY,
    id::RECEIVE_MAXIMUM,
    id::MAXIMUM_PACKET_SIZE,
    id::TOPIC_ALIAS_MAXIMUM,
    id::REQUEST_RESPONSE_INFORMATION,
    id::REQUEST_PROBLEM_INFORMATION,
    id::USER_PROPERTY,
    id::AUTHENTICATION_METHOD,
    id::AUTHENTICATION_DATA,
]);

fn connect_properties<'a>(read: &mut Reader<'a>) -> Result<ConnectProperties<'a>, Malformed> {
    let mut list = List::take(read, CONNECT)?;
    let mut to = ConnectProperties::default();
    while let Some((property, value)) = list.next()? {
        match property {
            id::SESSION_EXPIRY => to.session_expiry_s = Some(value.number()),
            id::RECEIVE_MAXIMUM => to.receive_maximum = Some(value.non_zero(property)? as u16),
            id::MAXIMUM_PACKET_SIZE => to.maximum_packet_bytes = Some(value.non_zero(property)?),
            id::TOPIC_ALIAS_MAXIMUM => to.topic_alias_maximum = Some(value.short()),
            id::REQUEST_RESPONSE_INFORMATION => to.request_response_information = value.flag(property)?,
            id::REQUEST_PROBLEM_INFORMATION => to.request_problem_information = value.flag(property)?,
            id::AUTHENTICATION_METHOD => to.authentication_method = value.text(),
            id::AUTHENTICATION_DATA => to.authentication_data = value.binary(),
            _ => {}
        }
    }
    if to.authentication_data.is_some() && to.authentication_method.is_none() {
        return Err(Malformed::AuthenticationMethodMissing);
    }
    to.user = list.user();
    Ok(to)
}

/// May CONNACK carry this reason?
//= MQTT-3.2.2-8
pub(super) fn connack_allows(reason: Reason) -> bool {
    use Reason::*;
    matches!(
        reason,
        Success
            | UnspecifiedError
            | MalformedPacket
            | ProtocolError
            | ImplementationSpecific
            | UnsupportedProtocolVersion
            | ClientIdNotValid
            | BadUserNameOrPassword
            | NotAuthorized
            | ServerUnavailable
            | ServerBusy
            | Banned
            | BadAuthenticationMethod
            | TopicNameInvalid
            | PacketTooLarge
            | QuotaExceeded
            | PayloadFormatInvalid
            | RetainNotSupported
            | QosNotSupported
            | UseAnotherServer
            | ServerMoved
            | ConnectionRateExceeded
    )
}

pub(super) fn decode_connack<'a>(version: Version, raw: Raw<'a>) -> Result<Connack<'a>, Malformed> {
    if raw.first != 0x20 {
        return Err(Malformed::FixedFlags);
    }
    let mut read = Reader::new(raw.body);
    let flags = read.u8()?;
    let code = read.u8()?;
    let reason = match version {
        Version::V5 => Reason::from_u8(code).filter(|reason| connack_allows(*reason)),
        _ => Reason::from_connack_311(code),
    };
    let reason = reason.ok_or(Malformed::ReasonCode(code))?;
    // In 3.1 the first byte is reserved and says nothing.
    let session_present = version != Version::V31 && flags & 1 != 0;
    //= MQTT-3.2.2-1
    //= MQTT-3.2.2-6
    if version != Version::V31 && flags > 1 || session_present && reason != Reason::Success {
        return Err(Malformed::ConnackFlags);
    }
    let properties = match version {
        Version::V5 => connack_properties(&mut read)?,
        _ => ConnackProperties::default(),
    };
    read.end()?;
    Ok(Connack { session_present, reason, properties })
}

const CONNACK: Set = Set::of(&[
    id::SESSION_EXPIRY,
    id::RECEIVE_MAXIMUM,
    id::MAXIMUM_QOS,
    id::RETAIN_AVAILABLE,
    id::MAXIMUM_PACKET_SIZE,
    id::ASSIGNED_CLIENT_ID,
    id::TOPIC_ALIAS_MAXIMUM,
    id::REASON_STRING,
    id::USER_PROPERTY,
    id::WILDCARD_AVAILABLE,
    id::SUBSCRIPTION_IDS_AVAILABLE,
    id::SHARED_AVAILABLE,
    id::SERVER_KEEP_ALIVE,
    id::RESPONSE_INFORMATION,
    id::SERVER_REFERENCE,
    id::AUTHENTICATION_METHOD,
    id::AUTHENTICATION_DATA,
]);

fn connack_properties<'a>(read: &mut Reader<'a>) -> Result<ConnackProperties<'a>, Malformed> {
    let mut list = List::take(read, CONNACK)?;
    let mut to = ConnackProperties::default();
    while let Some((property, value)) = list.next()? {
        match property {
            id::SESSION_EXPIRY => to.session_expiry_s = Some(value.number()),
            id::RECEIVE_MAXIMUM => to.receive_maximum = Some(value.non_zero(property)? as u16),
            id::MAXIMUM_QOS => {
                to.maximum_qos = Some(if value.flag(property)? { Qos::AtLeastOnce } else { Qos::AtMostOnce });
            }
            id::RETAIN_AVAILABLE => to.retain_available = Some(value.flag(property)?),
            id::MAXIMUM_PACKET_SIZE => to.maximum_packet_bytes = Some(value.non_zero(property)?),
            id::ASSIGNED_CLIENT_ID => to.assigned_client_id = value.text(),
            id::TOPIC_ALIAS_MAXIMUM => to.topic_alias_maximum = Some(value.short()),
            id::REASON_STRING => to.reason_string = value.text(),
            id::WILDCARD_AVAILABLE => to.wildcard_available = Some(value.flag(property)?),
            id::SUBSCRIPTION_IDS_AVAILABLE => to.subscription_ids_available = Some(value.flag(property)?),
            id::SHARED_AVAILABLE => to.shared_available = Some(value.flag(property)?),
            id::SERVER_KEEP_ALIVE => to.server_keep_alive_s = Some(value.short()),
            id::RESPONSE_INFORMATION => to.response_information = value.text(),
            id::SERVER_REFERENCE => to.server_reference = value.text(),
            id::AUTHENTICATION_METHOD => to.authentication_method = value.text(),
            id::AUTHENTICATION_DATA => to.authentication_data = value.binary(),
            _ => {}
        }
    }
    to.user = list.user();
    Ok(to)
}
