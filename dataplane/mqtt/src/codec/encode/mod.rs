//! Packets to bytes: each function appends one packet to `out` and allocates nothing but the growth of it.
//! Called on the home shard for every answer and every delivery, and by links as clients.
//! Always true: what is written decodes; a reason that its packet may not carry leaves as the nearest one
//! that it may. Strings and binary data above 65535 bytes, and packets above [`super::PACKET_BYTES_MAX`], cannot
//! be written: they are the caller's mistake, because every limit of ours lies below.

mod publish;
mod write;

use alloc::vec::Vec;

use self::write::{
    binary, binary_property, flag_property, long_property, packet as write_packet, short_property, string,
    text_property, two, user_properties, var_int, with_length,
};
pub use self::{
    publish::{PublishParts, forwarded, publish, publish_bytes},
    write::user_property,
};
pub use super::AckKind;
use super::{
    Ack, Auth, Connack, Connect, ConnectProperties, Packet, SubscribeEntry, UserProperties, Will,
    connect::{BRIDGE, connack_allows, flag},
    control::{auth_allows, disconnect_allows},
    properties::id,
    subscribe::{suback_311, suback_allows, unsuback_allows},
};
use crate::types::{PacketId, Qos, Reason, Version};

/// Appends a PUBACK, PUBREC, PUBREL or PUBCOMP in its shortest form.
#[inline]
pub fn ack(out: &mut Vec<u8>, version: Version, kind: AckKind, packet_id: PacketId, reason: Reason) {
    //= MQTT-2.2.1-5
    //= MQTT-3.4.2-2
    //= MQTT-3.4.2-3
    //= MQTT-3.5.2-2
    //= MQTT-3.5.2-3
    //= MQTT-3.6.2-2
    //= MQTT-3.6.2-3
    //= MQTT-3.7.2-2
    //= MQTT-3.7.2-3
    // Without words it has five bytes at most, and every client that takes a CONNACK takes those.
    let [high, low] = packet_id.get().to_be_bytes();
    if version != Version::V5 || reason == Reason::Success {
        out.extend_from_slice(&[kind.first(), 2, high, low]);
    } else {
        out.extend_from_slice(&[kind.first(), 3, high, low, ack_code(kind, reason)]);
    }
}

/// [`ack`] with words for a human.
pub fn ack_with(
    out: &mut Vec<u8>,
    version: Version,
    kind: AckKind,
    packet_id: PacketId,
    reason: Reason,
    reason_string: Option<&str>,
) {
    ack_whole(out, version, kind, &Ack { packet_id, reason, reason_string, user: UserProperties::default() });
}

fn ack_whole(out: &mut Vec<u8>, version: Version, kind: AckKind, from: &Ack<'_>) {
    if version != Version::V5 || from.reason_string.is_none() && from.user.is_empty() {
        return ack(out, version, kind, from.packet_id, from.reason);
    }
    write_packet(out, kind.first(), |out| {
        two(out, from.packet_id.get());
        out.push(ack_code(kind, from.reason));
        explanation(out, from.reason_string, from.user);
    });
}

/// The property list of packets that explain a reason and nothing else.
fn explanation(out: &mut Vec<u8>, reason_string: Option<&str>, user: UserProperties<'_>) {
    with_length(out, |out| {
        text_property(out, id::REASON_STRING, reason_string);
        user_properties(out, user);
    });
}

fn ack_code(kind: AckKind, reason: Reason) -> u8 {
    let instead = match kind {
        AckKind::Puback | AckKind::Pubrec => Reason::UnspecifiedError,
        AckKind::Pubrel | AckKind::Pubcomp => Reason::PacketIdNotFound,
    };
    if kind.allows(reason) { reason.code() } else { instead.code() }
}

/// Appends a CONNECT.
pub fn connect(out: &mut Vec<u8>, connect: &Connect<'_>) {
    write_packet(out, 0x10, |out| {
        string(out, if connect.version == Version::V31 { "MQIsdp" } else { "MQTT" });
        out.push(connect.version.level() | if connect.bridge { BRIDGE } else { 0 });
        out.push(connect_flags(connect));
        two(out, connect.keep_alive_s);
        if connect.version == Version::V5 {
            with_length(out, |out| connect_properties(out, &connect.properties));
        }
        string(out, connect.client_id);
        if let Some(with) = &connect.will {
            will(out, connect.version, with);
        }
        if let Some(username) = connect.username {
            string(out, username);
        }
        if let Some(password) = connect.password {
            binary(out, password);
        }
    });
}

fn connect_flags(connect: &Connect<'_>) -> u8 {
    let mut flags = 0;
    let mut set = |on: bool, bits: u8| flags |= if on { bits } else { 0 };
    set(connect.clean_start, flag::CLEAN);
    set(connect.username.is_some(), flag::USERNAME);
    set(connect.password.is_some(), flag::PASSWORD);
    if let Some(will) = &connect.will {
        set(true, flag::WILL | (will.qos as u8) << 3);
        set(will.retain, flag::WILL_RETAIN);
    }
    flags
}

fn connect_properties(out: &mut Vec<u8>, from: &ConnectProperties<'_>) {
    long_property(out, id::SESSION_EXPIRY, from.session_expiry_s);
    short_property(out, id::RECEIVE_MAXIMUM, from.receive_maximum);
    long_property(out, id::MAXIMUM_PACKET_SIZE, from.maximum_packet_bytes);
    short_property(out, id::TOPIC_ALIAS_MAXIMUM, from.topic_alias_maximum);
    let (response, problem) = (from.request_response_information, from.request_problem_information);
    flag_property(out, id::REQUEST_RESPONSE_INFORMATION, response.then_some(true));
    flag_property(out, id::REQUEST_PROBLEM_INFORMATION, (!problem).then_some(false));
    text_property(out, id::AUTHENTICATION_METHOD, from.authentication_method);
    binary_property(out, id::AUTHENTICATION_DATA, from.authentication_data);
    user_properties(out, from.user);
}

fn will(out: &mut Vec<u8>, version: Version, will: &Will<'_>) {
    if version == Version::V5 {
        with_length(out, |out| {
            long_property(out, id::WILL_DELAY, (will.delay_s != 0).then_some(will.delay_s));
            long_property(out, id::MESSAGE_EXPIRY, will.properties.message_expiry_s);
            forwarded(out, &will.properties);
        });
    }
    string(out, will.topic);
    binary(out, will.payload);
}

/// Appends a CONNACK; nothing before version 5, if it has no return code for the reason.
pub fn connack(out: &mut Vec<u8>, version: Version, connack: &Connack<'_>) {
    //= MQTT-3.2.2-6
    let present = connack.session_present && connack.reason == Reason::Success;
    if version != Version::V5 {
        // 3.1 knows no session present: the byte is reserved.
        let present = present && version == Version::V311;
        if let Some(code) = connack.reason.connack_311() {
            out.extend_from_slice(&[0x20, 2, u8::from(present), code]);
        }
        return;
    }
    write_packet(out, 0x20, |out| {
        out.push(u8::from(present));
        out.push(match connack.reason {
            reason if connack_allows(reason) => reason.code(),
            Reason::ServerShuttingDown => Reason::ServerUnavailable.code(),
            _ => Reason::UnspecifiedError.code(),
        });
        with_length(out, |out| connack_properties(out, connack));
    });
}

fn connack_properties(out: &mut Vec<u8>, connack: &Connack<'_>) {
    let from = &connack.properties;
    long_property(out, id::SESSION_EXPIRY, from.session_expiry_s);
    short_property(out, id::RECEIVE_MAXIMUM, from.receive_maximum);
    //= MQTT-3.2.2-9
    // Absence says QoS 2; the property has no value for it.
    let lower_qos = from.maximum_qos.filter(|qos| *qos != Qos::ExactlyOnce);
    flag_property(out, id::MAXIMUM_QOS, lower_qos.map(|qos| qos == Qos::AtLeastOnce));
    flag_property(out, id::RETAIN_AVAILABLE, from.retain_available);
    long_property(out, id::MAXIMUM_PACKET_SIZE, from.maximum_packet_bytes);
    text_property(out, id::ASSIGNED_CLIENT_ID, from.assigned_client_id);
    short_property(out, id::TOPIC_ALIAS_MAXIMUM, from.topic_alias_maximum);
    text_property(out, id::REASON_STRING, from.reason_string);
    flag_property(out, id::WILDCARD_AVAILABLE, from.wildcard_available);
    flag_property(out, id::SUBSCRIPTION_IDS_AVAILABLE, from.subscription_ids_available);
    flag_property(out, id::SHARED_AVAILABLE, from.shared_available);
    short_property(out, id::SERVER_KEEP_ALIVE, from.server_keep_alive_s);
    text_property(out, id::RESPONSE_INFORMATION, from.response_information);
    text_property(out, id::SERVER_REFERENCE, from.server_reference);
    text_property(out, id::AUTHENTICATION_METHOD, from.authentication_method);
    binary_property(out, id::AUTHENTICATION_DATA, from.authentication_data);
    user_properties(out, from.user);
}

/// Appends a SUBACK; 3.x knows only one failure.
pub fn suback(
    out: &mut Vec<u8>,
    version: Version,
    packet_id: PacketId,
    reasons: impl ExactSizeIterator<Item = Reason> + Clone,
) {
    //= MQTT-3.1.2-29
    //= MQTT-3.9.2-1
    //= MQTT-3.9.2-2
    suback_whole(out, version, packet_id, reasons, None, UserProperties::default());
}

//= MQTT-3.8.4-6
fn suback_whole(
    out: &mut Vec<u8>,
    version: Version,
    packet_id: PacketId,
    reasons: impl Iterator<Item = Reason>,
    reason_string: Option<&str>,
    user: UserProperties<'_>,
) {
    write_packet(out, 0x90, |out| {
        //= MQTT-2.2.1-6
        //= MQTT-3.8.4-2
        two(out, packet_id.get());
        if version == Version::V5 {
            explanation(out, reason_string, user);
        }
        //= MQTT-3.9.3-1
        //= MQTT311-3.9.3-2
        out.extend(reasons.map(|reason| {
            let reason = if version == Version::V5 { reason } else { suback_311(reason) };
            if suback_allows(reason) { reason.code() } else { Reason::UnspecifiedError.code() }
        }));
    });
}

/// Appends an UNSUBACK; before version 5 it has no reasons.
pub fn unsuback(
    out: &mut Vec<u8>,
    version: Version,
    packet_id: PacketId,
    reasons: impl ExactSizeIterator<Item = Reason> + Clone,
) {
    //= MQTT-3.1.2-29
    //= MQTT-3.11.2-1
    //= MQTT-3.11.2-2
    unsuback_whole(out, version, packet_id, reasons, None, UserProperties::default());
}

//= MQTT-3.10.4-5
fn unsuback_whole(
    out: &mut Vec<u8>,
    version: Version,
    packet_id: PacketId,
    reasons: impl Iterator<Item = Reason>,
    reason_string: Option<&str>,
    user: UserProperties<'_>,
) {
    write_packet(out, 0xB0, |out| {
        two(out, packet_id.get());
        if version == Version::V5 {
            explanation(out, reason_string, user);
            //= MQTT-3.11.3-1
            out.extend(
                reasons.map(
                    |reason| {
                        if unsuback_allows(reason) { reason.code() } else { Reason::UnspecifiedError.code() }
                    },
                ),
            );
        }
    });
}

/// Appends a SUBSCRIBE; before version 5 only the QoS of its options remains.
pub fn subscribe(
    out: &mut Vec<u8>,
    version: Version,
    packet_id: PacketId,
    subscription_id: Option<u32>,
    entries: &[SubscribeEntry<'_>],
) {
    let entries = entries.iter().copied();
    subscribe_whole(out, version, packet_id, subscription_id, entries, UserProperties::default());
}

fn subscribe_whole<'a>(
    out: &mut Vec<u8>,
    version: Version,
    packet_id: PacketId,
    subscription_id: Option<u32>,
    entries: impl Iterator<Item = SubscribeEntry<'a>>,
    user: UserProperties<'_>,
) {
    write_packet(out, 0x82, |out| {
        two(out, packet_id.get());
        if version == Version::V5 {
            with_length(out, |out| {
                if let Some(number) = subscription_id {
                    out.push(id::SUBSCRIPTION_ID);
                    var_int(out, number as usize);
                }
                user_properties(out, user);
            });
        }
        for entry in entries {
            string(out, entry.filter);
            let mut options = entry.qos as u8;
            if version == Version::V5 {
                options |= u8::from(entry.no_local) << 2 | u8::from(entry.retain_as_published) << 3;
                options |= (entry.retain_handling as u8) << 4;
            }
            out.push(options);
        }
    });
}

/// Appends an UNSUBSCRIBE.
pub fn unsubscribe(out: &mut Vec<u8>, version: Version, packet_id: PacketId, filters: &[&str]) {
    unsubscribe_whole(out, version, packet_id, filters.iter().copied(), UserProperties::default());
}

fn unsubscribe_whole<'a>(
    out: &mut Vec<u8>,
    version: Version,
    packet_id: PacketId,
    filters: impl Iterator<Item = &'a str>,
    user: UserProperties<'_>,
) {
    write_packet(out, 0xA2, |out| {
        two(out, packet_id.get());
        if version == Version::V5 {
            with_length(out, |out| user_properties(out, user));
        }
        for filter in filters {
            string(out, filter);
        }
    });
}

/// Appends a PINGREQ.
pub fn pingreq(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xC0, 0]);
}

/// Appends a PINGRESP.
#[inline]
pub fn pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xD0, 0]);
}

/// What a DISCONNECT says beside its reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DisconnectProps<'a> {
    /// Seconds that the session lives from now on; only from a client.
    pub session_expiry_s: Option<u32>,
    /// Words for a human.
    pub reason_string: Option<&'a str>,
    /// Another server to use.
    pub server_reference: Option<&'a str>,
    /// User properties.
    pub user: UserProperties<'a>,
}

/// Appends a DISCONNECT in its shortest form; before version 5 it says nothing.
pub fn disconnect(out: &mut Vec<u8>, version: Version, reason: Reason, with: &DisconnectProps<'_>) {
    let code = if disconnect_allows(reason) { reason } else { Reason::UnspecifiedError };
    let silent = *with == DisconnectProps::default();
    if version != Version::V5 || silent && code == Reason::Success {
        return out.extend_from_slice(&[0xE0, 0]);
    }
    write_packet(out, 0xE0, |out| {
        out.push(code.code());
        if !silent {
            with_length(out, |out| {
                long_property(out, id::SESSION_EXPIRY, with.session_expiry_s);
                text_property(out, id::REASON_STRING, with.reason_string);
                text_property(out, id::SERVER_REFERENCE, with.server_reference);
                user_properties(out, with.user);
            });
        }
    });
}

/// Appends an AUTH; without a method it can only be the short form of a success.
pub fn auth(out: &mut Vec<u8>, auth: &Auth<'_>) {
    debug_assert!(auth_allows(auth.reason), "AUTH knows three reasons");
    if auth.method.is_none() {
        return out.extend_from_slice(&[0xF0, 0]);
    }
    write_packet(out, 0xF0, |out| {
        out.push(auth.reason.code());
        with_length(out, |out| {
            text_property(out, id::AUTHENTICATION_METHOD, auth.method);
            binary_property(out, id::AUTHENTICATION_DATA, auth.data);
            text_property(out, id::REASON_STRING, auth.reason_string);
            user_properties(out, auth.user);
        });
    });
}

/// Appends any packet with everything that it says; CONNECT in its own version. The functions above write
/// the same bytes from fewer words.
pub fn packet(out: &mut Vec<u8>, version: Version, packet: &Packet<'_>) {
    match packet {
        Packet::Connect(from) => connect(out, from),
        Packet::Connack(from) => connack(out, version, from),
        Packet::Publish(from) => publish::whole(out, version, from),
        Packet::Puback(from) => ack_whole(out, version, AckKind::Puback, from),
        Packet::Pubrec(from) => ack_whole(out, version, AckKind::Pubrec, from),
        Packet::Pubrel(from) => ack_whole(out, version, AckKind::Pubrel, from),
        Packet::Pubcomp(from) => ack_whole(out, version, AckKind::Pubcomp, from),
        Packet::Subscribe(from) => {
            subscribe_whole(out, version, from.packet_id, from.subscription_id, from.entries, from.user);
        }
        Packet::Suback(from) => {
            suback_whole(out, version, from.packet_id, from.reasons, from.reason_string, from.user);
        }
        Packet::Unsubscribe(from) => unsubscribe_whole(out, version, from.packet_id, from.filters, from.user),
        Packet::Unsuback(from) => {
            unsuback_whole(out, version, from.packet_id, from.reasons, from.reason_string, from.user);
        }
        Packet::Pingreq => pingreq(out),
        Packet::Pingresp => pingresp(out),
        Packet::Disconnect(from) => {
            let with = DisconnectProps {
                session_expiry_s: from.session_expiry_s,
                reason_string: from.reason_string,
                server_reference: from.server_reference,
                user: from.user,
            };
            disconnect(out, version, from.reason, &with);
        }
        Packet::Auth(from) => auth(out, from),
    }
}
