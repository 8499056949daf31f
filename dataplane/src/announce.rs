//! Events about clients as messages on `$SYS/brokers/<node>/clients/<clientid>/...`, in EMQX's words, where the operator
//! has asked for them (`sys_topics.sys_event_messages`). One per shard, inside of its [`crate::connections`].
//! Always true: without knobs an event costs a branch; a shard says at most [`EVENTS_PER_SECOND_MAX`] of them, what is over
//! that is counted.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use broker::event::{Event, Who};
use contract::config::SysEvents;
use serde_json::{Value, json};

use crate::system::Said;

/// Events that one shard says in a second: what a storm of clients may cost those who are connected.
const EVENTS_PER_SECOND_MAX: u32 = 1000;
const WINDOW_US: u64 = 1_000_000;

/// What is said about the clients of one shard.
#[derive(Default)]
pub(crate) struct Announcer {
    prefix: String,
    knobs: SysEvents,
    window_us: u64,
    said: u32,
    shed: u64,
}

impl Announcer {
    /// Speaks for the node of this name.
    pub(crate) fn new(node: &str, knobs: &SysEvents) -> Announcer {
        Announcer { prefix: format!("$SYS/brokers/{node}/clients/"), knobs: knobs.clone(), ..Announcer::default() }
    }

    /// What is said from now on.
    pub(crate) fn choose(&mut self, knobs: &SysEvents) {
        self.knobs = knobs.clone();
    }

    /// Events that were shed since the last question.
    pub(crate) fn take_shed(&mut self) -> u64 {
        std::mem::take(&mut self.shed)
    }

    /// The message about an event, if it is wanted and there is room for it in this second.
    pub(crate) fn say(&mut self, now_us: u64, event: &Event<'_>, listener: impl Fn(u16) -> Arc<str>) -> Option<Said> {
        let (who, what) = match event {
            Event::Connected { who, .. } if self.knobs.client_connected => (who, "connected"),
            Event::Disconnected { who, .. } if self.knobs.client_disconnected => (who, "disconnected"),
            Event::Subscribed { who, .. } if self.knobs.client_subscribed => (who, "subscribed"),
            Event::Unsubscribed { who, .. } if self.knobs.client_unsubscribed => (who, "unsubscribed"),
            _ => return None,
        };
        if now_us.saturating_sub(self.window_us) >= WINDOW_US {
            (self.window_us, self.said) = (now_us, 0);
        }
        if self.said >= EVENTS_PER_SECOND_MAX {
            self.shed += 1;
            return None;
        }
        self.said += 1;
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let text = text(event, who, now_ms, &listener(who.listener))?;
        // A topic name has no wildcards, but a client id may.
        let client = who.client.replace(['+', '#'], "_");
        Some((format!("{}{client}/{what}", self.prefix).into(), text.to_string().into()))
    }
}

/// EMQX's field names, where it has the field.
fn text(event: &Event<'_>, who: &Who<'_>, now_ms: u64, listener: &str) -> Option<Value> {
    let mut text = json!({
        "clientid": who.client,
        "username": who.username,
        "ipaddress": who.peer.ip().to_string(),
        "peername": who.peer.to_string(),
        "listener": listener,
        "ts": now_ms,
    });
    let more = match event {
        Event::Connected { version, clean_start, keep_alive_s, expiry_s, resumed, .. } => json!({
            "connected_at": now_ms,
            "proto_ver": version,
            "proto_name": if *version == 3 { "MQIsdp" } else { "MQTT" },
            "clean_start": clean_start,
            "keepalive": keep_alive_s,
            "expiry_interval": expiry_s,
            "session_present": resumed,
            "connack": 0,
        }),
        Event::Disconnected { why, .. } => json!({ "disconnected_at": now_ms, "reason": why }),
        Event::Subscribed { filter, qos, .. } => json!({ "topic": filter, "subopts": { "qos": *qos as u8 } }),
        Event::Unsubscribed { filter, .. } => json!({ "topic": filter }),
        _ => return None,
    };
    if let (Value::Object(text), Value::Object(more)) = (&mut text, more) {
        text.extend(more);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use broker::surface::ConnId;

    use super::*;

    fn gone(client: &str) -> Event<'_> {
        let conn = ConnId { index: 0, generation: 0 };
        let peer = ([127, 0, 0, 1], 7).into();
        Event::Disconnected { who: Who { conn, client, username: Some("u"), peer, listener: 0 }, why: "eof" }
    }

    #[test]
    fn only_what_was_asked_for_is_said_on_a_topic_without_wildcards() {
        let name = |_| Arc::from("tcp:default");
        let mut announcer = Announcer::new("n@h", &SysEvents::default());
        assert!(announcer.say(1, &gone("c"), name).is_none());
        announcer.choose(&SysEvents { client_disconnected: true, ..SysEvents::default() });
        let (topic, text) = announcer.say(1, &gone("a/+#"), name).expect("it is wanted");
        assert_eq!(&*topic, "$SYS/brokers/n@h/clients/a/__/disconnected");
        let text: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            (&text["clientid"], &text["reason"], &text["username"]),
            (&json!("a/+#"), &json!("eof"), &json!("u"))
        );
    }

    #[test]
    fn a_storm_is_cut_and_counted_until_its_second_is_over() {
        let name = |_| Arc::from("");
        let knobs = SysEvents { client_disconnected: true, ..SysEvents::default() };
        let mut announcer = Announcer::new("n", &knobs);
        let said = (0..EVENTS_PER_SECOND_MAX + 7).filter(|_| announcer.say(5, &gone("c"), name).is_some()).count();
        assert_eq!((said, announcer.take_shed()), (EVENTS_PER_SECOND_MAX as usize, 7));
        assert!(announcer.say(5 + WINDOW_US, &gone("c"), name).is_some());
        assert_eq!(announcer.take_shed(), 0);
    }
}
