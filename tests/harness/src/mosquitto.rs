//! mosquitto_sub and mosquitto_pub. Called by every area that wants a client it did not write.
//!
//! Always true: a subscriber is handed out only after its SUBACK, so what is published then must reach it.

use crate::bound::SHORT;
use crate::program::{Program, Running};
use std::net::SocketAddr;
use std::time::Duration;

/// Versions as the programs spell them.
pub const V31: &str = "mqttv31";
/// 3.1.1.
pub const V311: &str = "mqttv311";
/// 5.0.
pub const V5: &str = "mqttv5";

/// A message as mosquitto_sub shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Topic.
    pub topic: String,
    /// Quality of service of the delivery.
    pub qos: u8,
    /// Retain flag of the delivery.
    pub retain: bool,
    /// Payload as text.
    pub payload: String,
}

/// What every line of a message begins with; debug lines of the program do not.
const MARK: &str = "MSG|";

/// A running mosquitto_sub.
#[derive(Debug)]
pub struct Subscriber {
    running: Running,
}

impl Subscriber {
    /// Starts it with `arguments` and waits until the broker has acknowledged its subscriptions.
    #[track_caller]
    pub fn start(broker: SocketAddr, version: &str, arguments: &[&str]) -> Self {
        let mut subscriber = Self::start_unconfirmed(broker, version, arguments);
        subscriber.subscribed();
        subscriber
    }

    /// Starts it without waiting.
    pub fn start_unconfirmed(broker: SocketAddr, version: &str, arguments: &[&str]) -> Self {
        // Without stdbuf the program writes into a block buffer that reaches a pipe late.
        let running = program("mosquitto_sub", broker, version)
            .args(["-d", "-F", &format!("{MARK}%t|%q|%r|%p")])
            .args(arguments)
            .start();
        Self { running }
    }

    /// Waits for the SUBACK; gives the granted quality of service of every filter.
    #[track_caller]
    pub fn subscribed(&mut self) -> Vec<u8> {
        self.running.next(SHORT, "SUBACK", |line| {
            let granted = line.strip_prefix("Subscribed (mid: ")?.split_once("): ")?.1;
            granted.split(", ").map(|code| code.trim().parse().ok()).collect()
        })
    }

    /// The next message.
    #[track_caller]
    pub fn message(&mut self) -> Message {
        self.running.next(SHORT, "message", message)
    }

    /// The payloads of the next `count` messages.
    #[track_caller]
    pub fn payloads(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.message().payload).collect()
    }

    /// Messages that have come and were not asked for.
    pub fn so_far(&mut self) -> Vec<Message> {
        self.running.so_far(message)
    }

    /// Waits until a line contains `text`.
    #[track_caller]
    pub fn says(&mut self, text: &str) {
        self.running.next(SHORT, text, |line| line.contains(text).then_some(()));
    }

    /// Kills it: the connection ends without DISCONNECT.
    pub fn kill(mut self) {
        self.running.kill();
    }

    /// Asks it to end as a user does, so that it sends DISCONNECT.
    #[track_caller]
    pub fn leave(mut self) {
        crate::process::signal(self.running.pid(), rustix::process::Signal::INT);
        self.running.wait(SHORT);
    }

    /// Waits for its end, which it must reach by itself (`-C`, `-E`), successfully.
    #[track_caller]
    pub fn succeed(mut self) -> Vec<Message> {
        self.running.succeed(SHORT).iter().filter_map(|line| message(line)).collect()
    }

    /// Waits for its end; gives the exit code.
    #[track_caller]
    pub fn wait(&mut self, bound: Duration) -> Option<i32> {
        self.running.wait(bound)
    }
}

fn message(line: &str) -> Option<Message> {
    let mut parts = line.strip_prefix(MARK)?.splitn(4, '|');
    Some(Message {
        topic: parts.next()?.to_owned(),
        qos: parts.next()?.parse().ok()?,
        retain: parts.next()? == "1",
        payload: parts.next()?.to_owned(),
    })
}

/// Publishes with mosquitto_pub and waits for its success, which for QoS 1 and 2 includes the broker's
/// acknowledgement.
#[track_caller]
pub fn publish(broker: SocketAddr, version: &str, arguments: &[&str]) {
    program("mosquitto_pub", broker, version).args(arguments).succeed(SHORT);
}

/// Publishes every payload on one connection, in order.
#[track_caller]
pub fn publish_lines(broker: SocketAddr, version: &str, arguments: &[&str], payloads: &[String]) {
    let mut running = program("mosquitto_pub", broker, version).args(["-l"]).args(arguments).start();
    for payload in payloads {
        running.say(payload);
    }
    running.close_input();
    running.succeed(SHORT);
}

/// One of the two programs with the arguments that every run needs.
pub fn program(name: &str, broker: SocketAddr, version: &str) -> Program {
    Program::new("stdbuf")
        .args(["-oL", name, "-h", &broker.ip().to_string(), "-p", &broker.port().to_string()])
        .args(["-V", version])
}
