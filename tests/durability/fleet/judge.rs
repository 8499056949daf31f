//! The judge of a fleet: what every subscriber must have heard, how often and in which order, from what was
//! promised to publishers and subscribers and nothing else.

use super::Fleet;
use super::client::{Client, Publisher, Subscriber};
use super::record::{Heard, Publication};
use harness::raw::Raw;
use harness::wire::{Connect, V5, kind};
use harness::{MOMENT, SHORT};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Complaints that a failing test shows.
const SHOWN: usize = 20;

impl Fleet {
    /// Deliveries that were promised and have not come.
    pub fn missing(&self) -> usize {
        let publishers = self.publishers();
        self.subscribers().map(|(_, subscriber)| missing(subscriber, &publishers).len()).sum()
    }

    /// Requires that everything promised was kept.
    #[track_caller]
    pub fn judge(&self) {
        let mut broken = self.broken_promises(SHORT);
        let count = broken.len();
        broken.truncate(SHOWN);
        assert!(count == 0, "{count} broken promises; the first of them:\n  {}", broken.join("\n  "));
    }

    /// What was promised and not kept, a line each; a retained value may take `patience` to come.
    pub fn broken_promises(&self, patience: Duration) -> Vec<String> {
        let publishers = self.publishers();
        let mut complaints: Vec<String> = Vec::new();
        for client in &self.clients {
            complaints.extend(client.complaints.iter().map(|complaint| format!("{}: {complaint}", client.id)));
        }
        for publisher in &publishers {
            if publisher.unanswered() > 0 {
                let unanswered = publisher.unanswered();
                complaints.push(format!("pub-{}: {unanswered} publishes without an answer", publisher.index));
            }
        }
        for (client, subscriber) in self.subscribers() {
            let of_one = judge(subscriber, &publishers);
            let head = format!("{} (`{}`, QoS {})", client.id, subscriber.filter, subscriber.qos);
            complaints.extend(of_one.into_iter().map(|complaint| format!("{head}: {complaint}")));
        }
        complaints.extend(self.judge_retained(&publishers, patience));
        complaints
    }

    fn publishers(&self) -> Vec<&Publisher> {
        self.clients.iter().filter_map(Client::publisher).collect()
    }

    fn subscribers(&self) -> impl Iterator<Item = (&Client, &Subscriber)> {
        self.clients.iter().filter_map(|client| Some((client, client.subscriber()?)))
    }

    /// Asks a new client what is retained; it must be the last value of every topic and nothing else.
    fn judge_retained(&self, publishers: &[&Publisher], patience: Duration) -> Vec<String> {
        let mut last: BTreeMap<&str, &[u8]> = BTreeMap::new();
        for publication in publishers.iter().flat_map(|publisher| &publisher.said).filter(|said| said.retain) {
            last.insert(&publication.topic, &publication.payload);
        }
        last.retain(|_, payload| !payload.is_empty());
        let mut raw = Raw::connect(self.broker, &Connect::new(V5, "judge"));
        raw.subscribe("keep/#", 1);
        let mut kept = BTreeMap::new();
        // All that must be there, and a moment for what must not.
        while let Ok(Some(packet)) = raw.poll(if kept.len() < last.len() { patience } else { MOMENT }) {
            let message = packet.publish(V5);
            raw.send(&harness::wire::ack(kind::PUBACK, message.packet_id.unwrap_or(0)));
            kept.insert(message.topic, message.payload);
        }
        let mut complaints = Vec::new();
        for (topic, payload) in &last {
            match kept.remove(*topic) {
                None => complaints.push(format!("retained {topic} is gone")),
                Some(value) if value != *payload => {
                    complaints.push(format!("retained {topic} is {}, not {}", shorten(&value), shorten(payload)))
                }
                Some(_) => {}
            }
        }
        complaints.extend(kept.into_iter().map(|(topic, value)| {
            let value = shorten(&value);
            format!("retained {topic} is {value}, but was deleted")
        }));
        complaints
    }
}

fn shorten(payload: &[u8]) -> String {
    String::from_utf8_lossy(&payload[..payload.len().min(24)]).into_owned()
}

fn matches(filter: &str, topic: &str) -> bool {
    filter.strip_suffix('#').map_or(filter == topic, |prefix| topic.starts_with(prefix))
}

/// It was promised to the publisher, and the subscription was promised before it was said.
fn is_due(subscriber: &Subscriber, publication: &Publication) -> bool {
    publication.acked
        && subscriber.granted_at.is_some_and(|granted| publication.said_at > granted)
        && matches(&subscriber.filter, &publication.topic)
}

fn missing(subscriber: &Subscriber, publishers: &[&Publisher]) -> Vec<Heard> {
    let heard: std::collections::HashSet<&Heard> = subscriber.heard.iter().collect();
    let mut missing = Vec::new();
    for publisher in publishers {
        for (number, publication) in publisher.said.iter().enumerate() {
            let one = Heard { publisher: publisher.index, number: number as u32 };
            if is_due(subscriber, publication) && !heard.contains(&one) {
                missing.push(one);
            }
        }
    }
    missing
}

fn judge(subscriber: &Subscriber, publishers: &[&Publisher]) -> Vec<String> {
    let mut complaints = Vec::new();
    let lost = missing(subscriber, publishers);
    if let Some(first) = lost.first() {
        let said_at = |one: &Heard| publishers[usize::from(one.publisher)].said[one.number as usize].said_at;
        let from = lost.iter().map(said_at).min().unwrap_or(0);
        let to = lost.iter().map(said_at).max().unwrap_or(0);
        let is_between = |one: &&Heard| (from..=to).contains(&said_at(one));
        let known = |one: &&Heard| {
            publishers
                .get(usize::from(one.publisher))
                .is_some_and(|publisher| (one.number as usize) < publisher.said.len())
        };
        let heard = subscriber.heard.iter().filter(known).filter(is_between).count();
        complaints.push(format!(
            "{} lost of {}, the first of them {first:?}, all said in turns {from} to {to}, of which {heard} were heard",
            lost.len(),
            lost.len() + subscriber.heard.len(),
        ));
    }
    let mut times: HashMap<Heard, u32> = HashMap::new();
    let mut highest: HashMap<u16, u32> = HashMap::new();
    for one in &subscriber.heard {
        let publisher = publishers.get(usize::from(one.publisher));
        let Some(publication) = publisher.and_then(|publisher| publisher.said.get(one.number as usize)) else {
            complaints.push(format!("{one:?} was never said"));
            continue;
        };
        if !matches(&subscriber.filter, &publication.topic) {
            complaints.push(format!("{one:?} went to {}", publication.topic));
        }
        let times = times.entry(*one).or_insert(0);
        *times += 1;
        if *times > 1 {
            if subscriber.qos == 2 && publishers[usize::from(one.publisher)].qos == 2 {
                complaints.push(format!("{one:?} came {times} times at QoS 2"));
            }
            continue;
        }
        let highest = highest.entry(one.publisher).or_insert(one.number);
        if *highest > one.number {
            complaints.push(format!("{one:?} came after number {highest}"));
        }
        *highest = one.number.max(*highest);
    }
    complaints
}
