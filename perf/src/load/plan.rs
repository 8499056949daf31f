//! What one run of the load does: who publishes what to whom, how fast and for how long. Built from options, checked
//! once, then read by all threads. Always true: every message of a run has the same number of receivers.

use std::net::SocketAddr;
use std::time::Duration;

use crate::ledger::STAMP_BYTES;
use crate::wire::Version;

/// Largest payload of a run.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Largest window of a run; packet ids and the memory of the window stay far below their limits with it.
pub const WINDOW_MAX: u32 = 1 << 15;
/// Most messages of all publishers that the window can follow; each takes four bytes here.
pub const WINDOW_SLOTS_MAX: usize = 1 << 25;
/// Most flows (publisher to subscriber) that are verified in one run; each takes about 48 bytes here.
pub const FLOWS_MAX: usize = 4_000_000;
/// Longest filter list that one subscriber sends.
pub const FILTERS_MAX: usize = 10_000;

/// Who receives whose messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// One topic; every subscriber gets what every publisher sends.
    Fan,
    /// Publisher i to its own topic; subscriber j listens to topic j modulo publishers.
    Pairs,
    /// Publisher i to its own topic; every subscriber listens to all of them by exact filters.
    NToOne,
}

/// How fast messages are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// At most this many messages published and not yet delivered to all their receivers, over all publishers.
    Window(u32),
    /// This many messages per second over all publishers, whatever the broker does.
    Rate(u32),
}

/// When the measured phase ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// After this time.
    Time(Duration),
    /// When this many messages were published and delivered.
    Messages(u64),
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name that the report carries.
    pub label: String,
    /// The broker.
    pub address: SocketAddr,
    /// Protocol version of all clients.
    pub version: Version,
    /// Who receives whose messages.
    pub layout: Layout,
    /// Number of publishers.
    pub publishers: usize,
    /// Number of subscribers.
    pub subscribers: usize,
    /// QoS of every PUBLISH and of every subscription.
    pub qos: u8,
    /// Bytes of every payload.
    pub payload_bytes: usize,
    /// How fast.
    pub pace: Pace,
    /// QoS 1 and 2: most unacknowledged messages of one publisher.
    pub inflight_max: u16,
    /// Traffic before the measured phase.
    pub warmup: Duration,
    /// The measured phase.
    pub length: Length,
    /// Threads of the load.
    pub threads: usize,
    /// Differs between runs; part of topics, client ids and payloads.
    pub tag: u32,
}

impl Plan {
    /// Checks what options can get wrong, and says which one it is.
    pub fn check(&self) -> Result<(), String> {
        let bounds = [
            ("publishers", self.publishers, 1, 100_000),
            ("subscribers", self.subscribers, 1, 100_000),
            ("qos", usize::from(self.qos), 0, 2),
            ("payload-bytes", self.payload_bytes, STAMP_BYTES, PAYLOAD_BYTES_MAX),
            ("inflight", usize::from(self.inflight_max), 1, WINDOW_MAX as usize),
            ("threads", self.threads, 1, 64),
        ];
        for (name, value, low, high) in bounds {
            if !(low..=high).contains(&value) {
                return Err(format!("--{name} must be in {low}..={high}; got {value}"));
            }
        }
        match self.pace {
            Pace::Window(window) if !(1..=WINDOW_MAX).contains(&window) => {
                return Err(format!("--window must be in 1..={WINDOW_MAX}; got {window}"));
            }
            Pace::Rate(rate) if !(1..=10_000_000).contains(&rate) => {
                return Err(format!("--rate must be in 1..=10000000; got {rate}"));
            }
            _ => {}
        }
        if self.layout == Layout::Pairs && !self.subscribers.is_multiple_of(self.publishers) {
            return Err(format!(
                "--layout pairs needs --subscribers to be a multiple of --publishers; got {} and {}",
                self.subscribers, self.publishers
            ));
        }
        if self.layout == Layout::NToOne && self.publishers > FILTERS_MAX {
            return Err(format!("--layout n-to-one takes at most {FILTERS_MAX} publishers"));
        }
        if let Pace::Window(window) = self.pace
            && self.publishers * window.next_power_of_two() as usize > WINDOW_SLOTS_MAX
        {
            return Err(format!("--publishers x --window may be at most {WINDOW_SLOTS_MAX}"));
        }
        if self.flows_of_subscriber() * self.subscribers > FLOWS_MAX {
            return Err(format!("publishers x subscribers may be at most {FLOWS_MAX}"));
        }
        Ok(())
    }

    /// How many subscribers get each message.
    pub fn receivers(&self) -> usize {
        match self.layout {
            Layout::Fan | Layout::NToOne => self.subscribers,
            Layout::Pairs => self.subscribers / self.publishers,
        }
    }

    /// Topics of the run; publisher `i` uses number [`Plan::topic_of`]`(i)`.
    pub fn topics(&self) -> Vec<String> {
        let count = if self.layout == Layout::Fan { 1 } else { self.publishers };
        (0..count).map(|index| format!("perf/{:08x}/{index}", self.tag)).collect()
    }

    /// Number of the topic that this publisher uses.
    pub fn topic_of(&self, publisher: usize) -> usize {
        if self.layout == Layout::Fan { 0 } else { publisher }
    }

    /// Numbers of the topics that this subscriber subscribes to.
    pub fn topics_of_subscriber(&self, subscriber: usize) -> std::ops::Range<usize> {
        match self.layout {
            Layout::Fan => 0..1,
            Layout::Pairs => subscriber % self.publishers..subscriber % self.publishers + 1,
            Layout::NToOne => 0..self.publishers,
        }
    }

    /// How many publishers reach one subscriber.
    pub fn flows_of_subscriber(&self) -> usize {
        if self.layout == Layout::Pairs { 1 } else { self.publishers }
    }

    /// Where the messages of `publisher` are entered at `subscriber`, if they belong there at all.
    #[inline]
    pub fn flow(&self, subscriber: usize, publisher: usize) -> Option<usize> {
        match self.layout {
            Layout::Pairs => (subscriber % self.publishers == publisher).then_some(0),
            Layout::Fan | Layout::NToOne => (publisher < self.publishers).then_some(publisher),
        }
    }

    /// The publisher behind a flow of this subscriber, the inverse of [`Plan::flow`].
    pub fn publisher_of(&self, subscriber: usize, flow: usize) -> usize {
        if self.layout == Layout::Pairs { subscriber % self.publishers } else { flow }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn plan(layout: Layout, publishers: usize, subscribers: usize) -> Plan {
        Plan {
            label: "test".into(),
            address: ([127, 0, 0, 1], 1883).into(),
            version: Version::V311,
            layout,
            publishers,
            subscribers,
            qos: 0,
            payload_bytes: 64,
            pace: Pace::Window(16),
            inflight_max: 64,
            warmup: Duration::ZERO,
            length: Length::Messages(1),
            threads: 1,
            tag: 1,
        }
    }

    #[test]
    fn every_layout_routes_each_publisher_to_the_promised_number_of_receivers() {
        for (layout, publishers, subscribers) in
            [(Layout::Fan, 1, 5), (Layout::Fan, 3, 2), (Layout::Pairs, 3, 6), (Layout::NToOne, 4, 1)]
        {
            let plan = plan(layout, publishers, subscribers);
            plan.check().unwrap();
            for publisher in 0..publishers {
                let by_flow = (0..subscribers).filter(|&s| plan.flow(s, publisher).is_some()).count();
                let topic = plan.topic_of(publisher);
                let by_topic = (0..subscribers).filter(|&s| plan.topics_of_subscriber(s).contains(&topic)).count();
                assert_eq!((by_flow, by_topic), (plan.receivers(), plan.receivers()), "{layout:?}");
                for subscriber in 0..subscribers {
                    if let Some(flow) = plan.flow(subscriber, publisher) {
                        assert_eq!(plan.publisher_of(subscriber, flow), publisher);
                        assert!(flow < plan.flows_of_subscriber());
                    }
                }
            }
            assert_eq!(plan.flow(0, publishers), None, "a publisher that does not exist");
        }
    }

    #[test]
    fn a_wrong_option_is_named_with_its_bound_and_value() {
        let mut wrong = plan(Layout::Pairs, 2, 3);
        assert!(wrong.check().unwrap_err().contains("multiple"));
        wrong.layout = Layout::Fan;
        wrong.payload_bytes = 8;
        assert_eq!(wrong.check().unwrap_err(), "--payload-bytes must be in 24..=1048576; got 8");
        wrong.payload_bytes = 64;
        wrong.pace = Pace::Window(0);
        assert!(wrong.check().unwrap_err().starts_with("--window must be in"));
    }
}
