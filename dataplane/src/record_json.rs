//! Records of the log as JSON, for `ringmq log dump`: one object per record, `record` says which one it is, the other
//! fields are those of ARCHITECTURE.md 9.6. Bytes are text where they are UTF-8 (`payload`), else hexadecimal (`payload_hex`).

use broker::journal::record::{Record, Slip, Stored, Stream, Will};
use serde_json::{Map, Value, json};

/// One record.
pub(crate) fn record(record: &Record<'_>) -> Map<String, Value> {
    let (name, body) = match record {
        Record::Clock { running, stamp, body, session, group } => {
            ("clock", json!({"running": running, "stamp": stamp, "body": body, "session": session, "group": group}))
        }
        Record::Session { .. } | Record::Opened { .. } | Record::Left { .. } | Record::Ended { .. } => {
            of_session(record)
        }
        Record::Subscribed { session, group, filter, options, id } => {
            ("subscribed", json!({"session": session, "group": group, "filter": filter, "options": options, "id": id}))
        }
        Record::Unsubscribed { session, group, filter } => {
            ("unsubscribed", json!({"session": session, "group": group, "filter": filter}))
        }
        Record::Message { body, stored, slips } => {
            let slips: Vec<Value> = slips.iter().map(|delivery| slip(&delivery)).collect();
            ("message", json!({"body": body, "message": message(stored), "slips": slips}))
        }
        Record::Body { body, stored } => ("body", json!({"body": body, "message": message(stored)})),
        Record::Queued { body, slip: delivery } => ("queued", json!({"body": body, "slip": slip(delivery)})),
        Record::Sent { session, place, packet } => {
            ("sent", json!({"session": session, "place": place, "packet": packet}))
        }
        Record::Gone { session, place } => ("gone", json!({"session": session, "place": place})),
        Record::Acked { session, packet } => ("acked", packet_of(*session, *packet)),
        Record::Received { session, packet } => ("received", packet_of(*session, *packet)),
        Record::Released { session, packet } => ("released", packet_of(*session, *packet)),
        Record::Incoming { session, packet } => ("incoming", packet_of(*session, *packet)),
        _ => of_streams(record),
    };
    let mut object = Map::new();
    object.insert("record".to_owned(), name.into());
    if let Value::Object(body) = body {
        object.extend(body);
    }
    object
}

fn of_session(record: &Record<'_>) -> (&'static str, Value) {
    match record {
        Record::Session { session, client, expiry_s, ends_ms, will: last, place, window } => {
            let window: Vec<Value> = window
                .iter()
                .map(|entry| json!({"awaits": entry.awaits, "body": entry.body, "slip": slip(&entry.slip)}))
                .collect();
            (
                "session",
                json!({
                    "session": session, "client": client, "expiry_s": expiry_s, "ends_ms": ends_ms,
                    "will": last.map(will), "place": place, "window": window,
                }),
            )
        }
        Record::Opened { session, client, expiry_s, will: last } => {
            ("opened", json!({"session": session, "client": client, "expiry_s": expiry_s, "will": last.map(will)}))
        }
        Record::Left { session, ends_ms, will_due_ms } => {
            ("left", json!({"session": session, "ends_ms": ends_ms, "will_due_ms": will_due_ms}))
        }
        Record::Ended { session } => ("ended", json!({"session": session})),
        _ => ("unknown", json!({})),
    }
}

fn of_streams(record: &Record<'_>) -> (&'static str, Value) {
    match record {
        Record::Publish { session, packet, stored } => {
            ("publish", json!({"session": session, "packet": packet, "message": message(stored)}))
        }
        Record::Finished { stream: of, sequence } => {
            ("finished", json!({"stream": stream(of), "message_sequence": sequence}))
        }
        Record::Watermark { shards, home, stream: of, sequence } => {
            ("watermark", json!({"shards": shards, "home": home, "stream": stream(of), "message_sequence": sequence}))
        }
        Record::Routed { stream: of, sequence, shards, to } => {
            let to: Vec<u16> = (0..128).filter(|shard| to >> shard & 1 == 1).collect();
            ("routed", json!({"stream": stream(of), "message_sequence": sequence, "shards": shards, "to": to}))
        }
        Record::Retained { stored } => ("retained", json!({"message": message(stored)})),
        Record::RetainedGone { stamp, topic } => ("retained_gone", json!({"stamp": stamp, "topic": topic})),
        Record::Chosen { stream: of, sequence, shards, home, group, filter, stored } => (
            "chosen",
            json!({
                "stream": stream(of), "message_sequence": sequence, "shards": shards, "home": home, "group": group,
                "filter": filter, "message": message(stored),
            }),
        ),
        Record::ChosenDone { stream: of, sequence } => {
            ("chosen_done", json!({"stream": stream(of), "message_sequence": sequence}))
        }
        Record::Outlet { link, place, client, stored } => {
            ("outlet", json!({"link": link, "place": place, "client": client, "message": message(stored)}))
        }
        Record::OutletGone { link, place } => ("outlet_gone", json!({"link": link, "place": place})),
        Record::Wanted { link, filter } => ("wanted", json!({"link": link, "filter": filter})),
        Record::Unwanted { link, filter } => ("unwanted", json!({"link": link, "filter": filter})),
        _ => ("unknown", json!({})),
    }
}

fn packet_of(session: u64, packet: u16) -> Value {
    json!({"session": session, "packet": packet})
}

fn stream(stream: &Stream) -> Value {
    json!({"node": stream.node, "incarnation": stream.incarnation, "stream": stream.stream})
}

fn slip(slip: &Slip<'_>) -> Value {
    json!({
        "session": slip.session, "place": slip.place, "packet": slip.packet, "qos": slip.flags & 3,
        "retain": slip.flags & 4 != 0, "ids": slip.ids().collect::<Vec<u32>>(),
    })
}

fn message(stored: &Stored<'_>) -> Value {
    let Ok(message) = stored.message() else {
        return json!({"wall_ms": stored.wall_ms, "frame_hex": hex(stored.frame)});
    };
    let expires_ms = stored.expires_wall_ms();
    let mut object = Map::new();
    for (name, value) in [
        ("topic", json!(message.topic)),
        ("qos", json!(message.qos as u8)),
        ("retain", json!(message.retain)),
        ("node", json!(message.id.node)),
        ("cluster", json!(message.id.cluster)),
        ("incarnation", json!(message.id.incarnation)),
        ("stream", json!(message.id.stream)),
        ("message_sequence", json!(message.id.sequence)),
        ("stamp", json!(message.stamp)),
        ("wall_ms", json!(stored.wall_ms)),
        ("expires_ms", json!((expires_ms != u64::MAX).then_some(expires_ms))),
        ("from_link", json!(message.from_link)),
    ] {
        object.insert(name.to_owned(), value);
    }
    bytes(&mut object, "payload", message.payload);
    if !message.properties.is_empty() {
        object.insert("properties_hex".to_owned(), hex(message.properties).into());
    }
    Value::Object(object)
}

fn will(will: Will<'_>) -> Value {
    let mut object = Map::new();
    for (name, value) in [
        ("topic", json!(will.topic)),
        ("qos", json!(will.qos as u8)),
        ("retain", json!(will.retain)),
        ("delay_s", json!(will.delay_s)),
        ("expiry_s", json!(will.expiry_s)),
        ("due_ms", json!(will.due_ms)),
    ] {
        object.insert(name.to_owned(), value);
    }
    bytes(&mut object, "payload", will.payload);
    if !will.properties.is_empty() {
        object.insert("properties_hex".to_owned(), hex(will.properties).into());
    }
    Value::Object(object)
}

/// Text where it is UTF-8, else hexadecimal under another name.
fn bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_hex"), hex(bytes).into()),
    };
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_text_where_they_can_be() {
        let mut object = Map::new();
        bytes(&mut object, "payload", "grüß".as_bytes());
        bytes(&mut object, "other", &[0xff, 0x01]);
        assert_eq!(Value::Object(object), json!({"payload": "grüß", "other_hex": "ff01"}));
    }

    #[test]
    fn a_record_says_which_one_it_is_beside_its_fields() {
        let object = record(&Record::Acked { session: 7, packet: 3 });
        assert_eq!(Value::Object(object), json!({"record": "acked", "session": 7, "packet": 3}));
    }
}
