//! rumqttc for 3.1.1.

use super::{Event, Events, Message};
use crate::bound::SHORT;
use rumqttc::mqttbytes::v4::Packet;
use rumqttc::{EventLoop, MqttOptions, QoS, SubscribeReasonCode};
use std::net::SocketAddr;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// A 3.1.1 client.
pub struct Client {
    client: rumqttc::Client,
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
    // 3.1.1 has no word for a server's limit; this is the smallest that brokers set by default.
    options.set_inflight(20);
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
        let (client, connection) = rumqttc::Client::new(options, 1000);
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

    /// Unsubscribes and waits for the acknowledgement.
    #[track_caller]
    pub fn unsubscribe(&self, filter: &str) {
        self.client.unsubscribe(filter).expect("the client runs");
        self.events.next(SHORT, "UNSUBACK", |event| matches!(event, Event::Unsubscribed).then_some(()));
    }

    /// Hands a publish to the client.
    #[track_caller]
    pub fn publish(&self, topic: &str, qos: u8, retain: bool, payload: &[u8]) {
        self.client.publish(topic, quality(qos), retain, payload).expect("the client runs");
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
            Ok(rumqttc::Event::Outgoing(rumqttc::Outgoing::Disconnect)) => return,
            Ok(rumqttc::Event::Outgoing(_)) => continue,
            Ok(rumqttc::Event::Incoming(packet)) => translate(packet),
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
            topic: publish.topic,
            payload: publish.payload.to_vec(),
            qos: publish.qos as u8,
            retain: publish.retain,
            dup: publish.dup,
            properties: Default::default(),
        }),
        _ => return None,
    })
}

fn quality(qos: u8) -> QoS {
    rumqttc::qos(qos).expect("QoS is 0, 1 or 2")
}
