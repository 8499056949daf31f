//! rumqttc for 5.0.

use super::{Event, Events, Message};
use crate::bound::SHORT;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet, PublishProperties, SubscribeProperties, SubscribeReasonCode};
use rumqttc::v5::{EventLoop, MqttOptions};
use std::net::SocketAddr;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// A 5.0 client.
pub struct Client {
    client: rumqttc::v5::Client,
    events: Events,
    /// Its drop ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Whether the broker had a session when this client connected.
    pub session_present: bool,
}

/// Options with which most tests connect.
pub fn options(broker: SocketAddr, client_id: &str) -> MqttOptions {
    let mut options = MqttOptions::new(client_id, broker.ip().to_string(), broker.port());
    options.set_keep_alive(Duration::from_secs(60));
    options.set_clean_start(true);
    options
}

impl Client {
    /// Connects with a clean session.
    #[track_caller]
    pub fn connect(broker: SocketAddr, client_id: &str) -> Self {
        Self::with(options(broker, client_id))
    }

    /// Connects with these options.
    #[track_caller]
    pub fn with(options: MqttOptions) -> Self {
        let (client, connection) = rumqttc::v5::Client::new(options, 1000);
        let (sender, receiver) = channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || run(connection.eventloop, &sender, stopped));
        let mut connected =
            Self { client, events: Events(receiver), stop: Some(stop), thread: Some(thread), session_present: false };
        connected.session_present = connected.events.next(SHORT, "CONNACK", |event| match event {
            Event::Connected { session_present } => Some(*session_present),
            _ => None,
        });
        connected
    }

    /// Events not yet taken.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Subscribes and waits for the grant.
    #[track_caller]
    pub fn subscribe(&self, filter: &str, qos: u8) {
        self.client.subscribe(filter, quality(qos)).expect("the client runs");
        let granted = self.events.next(SHORT, "SUBACK", |event| match event {
            Event::Subscribed(granted) => Some(granted.clone()),
            _ => None,
        });
        assert_eq!(granted, [true], "`{filter}` was not granted");
    }

    /// Subscribes with options and properties and waits for the grant.
    #[track_caller]
    pub fn subscribe_with(&self, filter: Filter, identifier: Option<usize>) {
        let properties = SubscribeProperties { id: identifier, user_properties: Vec::new() };
        let path = filter.path.clone();
        self.client.subscribe_many_with_properties([filter], properties).expect("the client runs");
        let granted = self.events.next(SHORT, "SUBACK", |event| match event {
            Event::Subscribed(granted) => Some(granted.clone()),
            _ => None,
        });
        assert_eq!(granted, [true], "`{path}` was not granted");
    }

    /// Unsubscribes and waits for the acknowledgement.
    #[track_caller]
    pub fn unsubscribe(&self, filter: &str) {
        self.client.unsubscribe(filter).expect("the client runs");
        self.events.next(SHORT, "UNSUBACK", |event| matches!(event, Event::Unsubscribed).then_some(()));
    }

    /// Hands a publish to the client.
    #[track_caller]
    pub fn publish(&self, topic: &str, qos: u8, retain: bool, payload: &[u8]) {
        self.client.publish(topic, quality(qos), retain, payload.to_vec()).expect("the client runs");
    }

    /// Hands a publish with properties to the client.
    #[track_caller]
    pub fn publish_with(&self, topic: &str, qos: u8, payload: &[u8], properties: PublishProperties) {
        self.client
            .publish_with_properties(topic, quality(qos), false, payload.to_vec(), properties)
            .expect("the client runs");
    }

    /// Waits until `count` publishes are acknowledged.
    #[track_caller]
    pub fn acked(&self, count: usize) {
        for _ in 0..count {
            self.events.next(SHORT, "acknowledgement", |event| matches!(event, Event::Acked).then_some(()));
        }
    }

    /// The next message.
    #[track_caller]
    pub fn message(&self) -> Message {
        self.events.next(SHORT, "message", |event| match event {
            Event::Message(message) => Some(message.clone()),
            _ => None,
        })
    }

    /// Sends DISCONNECT and waits until the connection has ended.
    #[track_caller]
    pub fn disconnect(mut self) {
        self.client.disconnect().expect("the client runs");
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs the event loop until the client is dropped or the connection ends. Nothing else may cancel a poll:
/// one that is cancelled while it connects begins a second connection.
fn run(mut eventloop: EventLoop, events: &Sender<Event>, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime on one thread").block_on(async {
        tokio::select! {
            _ = stopped => {}
            () = pass_on(&mut eventloop, events) => {}
        }
    });
}

async fn pass_on(eventloop: &mut EventLoop, events: &Sender<Event>) {
    loop {
        let event = match eventloop.poll().await {
            Err(error) => {
                let _ = events.send(Event::Lost(format!("{error}")));
                return;
            }
            Ok(rumqttc::v5::Event::Outgoing(rumqttc::Outgoing::Disconnect)) => return,
            Ok(rumqttc::v5::Event::Outgoing(_)) => continue,
            Ok(rumqttc::v5::Event::Incoming(packet)) => translate(packet),
        };
        if event.is_some_and(|event| events.send(event).is_err()) {
            return;
        }
    }
}

fn translate(packet: Packet) -> Option<Event> {
    Some(match packet {
        Packet::ConnAck(connack) => Event::Connected { session_present: connack.session_present },
        Packet::SubAck(suback) => Event::Subscribed(
            suback.return_codes.iter().map(|code| matches!(code, SubscribeReasonCode::Success(_))).collect(),
        ),
        Packet::UnsubAck(_) => Event::Unsubscribed,
        Packet::PubAck(_) | Packet::PubComp(_) => Event::Acked,
        Packet::Publish(publish) => Event::Message(Message {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload.to_vec(),
            qos: publish.qos as u8,
            retain: publish.retain,
            dup: publish.dup,
            properties: publish.properties.unwrap_or_default(),
        }),
        _ => return None,
    })
}

fn quality(qos: u8) -> QoS {
    rumqttc::v5::mqttbytes::qos(qos).expect("QoS is 0, 1 or 2")
}
