//! rumqttc behind one face for both of its versions. Called by interop, faults and link.
//!
//! Always true: its event loop runs on a thread of its own and never reconnects by itself, so a connection
//! that the broker ends is seen by the test; dropping the client closes the socket without DISCONNECT.

pub mod v4;
pub mod v5;

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

pub use rumqttc::v5::mqttbytes::v5::PublishProperties;

/// A message that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// Quality of service of the delivery.
    pub qos: u8,
    /// Retain flag.
    pub retain: bool,
    /// DUP flag.
    pub dup: bool,
    /// Properties; those of 3.1.1 are empty.
    pub properties: PublishProperties,
}

impl Message {
    /// Payload as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

/// What a client lives through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The broker accepted the connection.
    Connected {
        /// A session was there.
        session_present: bool,
    },
    /// SUBACK; `true` per filter that was granted.
    Subscribed(Vec<bool>),
    /// UNSUBACK.
    Unsubscribed,
    /// One of our publishes is through: PUBACK or PUBCOMP.
    Acked,
    /// A message.
    Message(Message),
    /// The connection is gone.
    Lost(String),
}

/// Events as they come, each waited for within a bound.
#[derive(Debug)]
pub struct Events(Receiver<Event>);

impl Events {
    /// The next event that `pick` turns into a value; an end of the connection that `pick` does not take
    /// is a failure.
    #[track_caller]
    pub fn next<T>(&self, bound: Duration, what: &str, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        let until = Instant::now() + bound;
        loop {
            match self.0.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(event) => {
                    if let Some(value) = pick(&event) {
                        return value;
                    }
                    if let Event::Lost(why) = event {
                        panic!("waiting for {what}, the connection ended: {why}");
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no {what} within {bound:?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("no {what}: the client has ended"),
            }
        }
    }

    /// Events that have come until now.
    pub fn so_far(&self) -> Vec<Event> {
        self.0.try_iter().collect()
    }
}
