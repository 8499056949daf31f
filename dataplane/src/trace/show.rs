//! A line of a trace as text. Called by the writer, off the shards. Always true: passwords are never shown, and payloads
//! only as the trace asks.

use std::fmt::Write;

use contract::trace::Payload;
use mqtt::{
    codec::{self, Ack, Connect, Packet, Publish, Raw},
    types::{PacketId, Reason, Version},
};

use super::{Direction, Line, What};

const TYPES: [&str; 16] = [
    "?",
    "CONNECT",
    "CONNACK",
    "PUBLISH",
    "PUBACK",
    "PUBREC",
    "PUBREL",
    "PUBCOMP",
    "SUBSCRIBE",
    "SUBACK",
    "UNSUBSCRIBE",
    "UNSUBACK",
    "PINGREQ",
    "PINGRESP",
    "DISCONNECT",
    "AUTH",
];

/// The line, with its end.
pub(super) fn line(line: &Line) -> String {
    let mut out = String::new();
    let at = humantime::format_rfc3339_millis(line.at);
    // Writing to a String cannot fail.
    let _ = write!(out, "{at} {:?} {} ", line.client, line.peer);
    match &line.what {
        What::Event(text) => {
            let _ = write!(out, "-- {text}");
        }
        What::Packet { direction, version, bytes, total } => {
            out.push_str(if *direction == Direction::In { "in  " } else { "out " });
            packet(&mut out, *version, (bytes, *total), line.trace.payload);
        }
    }
    out.push('\n');
    out
}

fn packet(out: &mut String, version: Version, (bytes, total): (&[u8], usize), payload: Payload) {
    let Some(first) = bytes.first() else { return };
    out.push_str(TYPES[usize::from(first >> 4)]);
    let header = 1 + bytes[1..].iter().take(4).take_while(|byte| **byte & 0x80 != 0).count() + 1;
    // Of a PUBLISH only the payload is cut; with properties that are longer than what was copied it is unreadable.
    let raw = bytes.get(header..).map(|body| Raw { first: *first, body, total });
    let whole = bytes.len() == total || first >> 4 == 3;
    let packet = raw.filter(|_| whole).and_then(|raw| codec::decode(version, raw).ok());
    match packet {
        Some(Packet::Publish(publish)) => show_publish(out, &publish, total - bytes.len(), payload),
        Some(packet) => show_rare(out, &packet),
        None => {
            let why = if bytes.len() < total { ", too long to show" } else { " that cannot be read" };
            let _ = write!(out, ", {total} bytes{why}");
        }
    }
}

fn show_publish(out: &mut String, publish: &Publish<'_>, cut: usize, payload: Payload) {
    let Publish { dup, qos, retain, topic, packet_id, properties, payload: bytes } = publish;
    let _ = write!(out, " {topic:?} q{} r{} d{}", *qos as u8, u8::from(*retain), u8::from(*dup));
    if let Some(id) = packet_id.map(PacketId::get) {
        let _ = write!(out, " id {id}");
    }
    if let Some(alias) = properties.topic_alias {
        let _ = write!(out, " alias {alias}");
    }
    if let Some(expiry_s) = properties.message_expiry_s {
        let _ = write!(out, " expires in {expiry_s} s");
    }
    let _ = write!(out, ", {} bytes", bytes.len() + cut);
    let more = if cut > 0 { "..." } else { "" };
    match payload {
        Payload::Hidden => {}
        Payload::Text => {
            let _ = write!(out, " {:?}{more}", String::from_utf8_lossy(bytes));
        }
        Payload::Hex => {
            out.push(' ');
            for byte in *bytes {
                let _ = write!(out, "{byte:02x}");
            }
            out.push_str(more);
        }
    }
}

fn show_rare(out: &mut String, packet: &Packet<'_>) {
    match packet {
        Packet::Connect(connect) => show_connect(out, connect),
        Packet::Connack(connack) => {
            let _ = write!(out, " {}, session present {}", reason(connack.reason), connack.session_present);
            words(out, connack.properties.reason_string);
        }
        Packet::Puback(ack) | Packet::Pubrec(ack) | Packet::Pubrel(ack) | Packet::Pubcomp(ack) => show_ack(out, ack),
        Packet::Subscribe(subscribe) => {
            let _ = write!(out, " id {}", subscribe.packet_id.get());
            for entry in subscribe.entries {
                let _ = write!(out, " {:?} q{}", entry.filter, entry.qos as u8);
            }
        }
        Packet::Unsubscribe(unsubscribe) => {
            let _ = write!(out, " id {}", unsubscribe.packet_id.get());
            for filter in unsubscribe.filters {
                let _ = write!(out, " {filter:?}");
            }
        }
        Packet::Suback(answer) | Packet::Unsuback(answer) => {
            let _ = write!(out, " id {}", answer.packet_id.get());
            for code in answer.reasons {
                let _ = write!(out, " {}", reason(code));
            }
            words(out, answer.reason_string);
        }
        Packet::Disconnect(disconnect) => {
            let _ = write!(out, " {}", reason(disconnect.reason));
            words(out, disconnect.reason_string);
        }
        Packet::Auth(auth) => {
            let _ = write!(out, " {}, method {:?}", reason(auth.reason), auth.method.unwrap_or_default());
        }
        Packet::Publish(_) | Packet::Pingreq | Packet::Pingresp => {}
    }
}

fn show_connect(out: &mut String, connect: &Connect<'_>) {
    let _ = write!(
        out,
        " {:?}, version {}, clean start {}, keep alive {} s",
        connect.client_id,
        connect.version.level(),
        connect.clean_start,
        connect.keep_alive_s
    );
    if let Some(user) = connect.username {
        let _ = write!(out, ", user {user:?}");
    }
    if connect.password.is_some() {
        out.push_str(", with a password");
    }
    if let Some(will) = &connect.will {
        let _ = write!(out, ", will {:?} q{} r{}", will.topic, will.qos as u8, u8::from(will.retain));
    }
}

fn show_ack(out: &mut String, ack: &Ack<'_>) {
    let _ = write!(out, " id {} {}", ack.packet_id.get(), reason(ack.reason));
    words(out, ack.reason_string);
}

fn reason(reason: Reason) -> String {
    format!("{:#04x} {reason:?}", reason.code())
}

fn words(out: &mut String, words: Option<&str>) {
    if let Some(words) = words {
        let _ = write!(out, ", {words:?}");
    }
}
