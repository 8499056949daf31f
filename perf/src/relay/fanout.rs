//! The part of the relay that knows MQTT: bytes of a client in, bytes for all clients out. No I/O. Called by `ring`.
//! Always true: a message is encoded once per topic and turn, however many clients receive it.

use std::collections::HashMap;
use std::rc::Rc;

use slab::Slab;

use super::output::Output;
use crate::wire::{self, Ack, Malformed, Packet, Publish, Version};

/// Longest filter list and number of topics; the load stays far below.
const TOPICS_MAX: usize = 1 << 20;
/// Batches that are kept for reuse, so that steady traffic allocates nothing.
const POOL_MAX: usize = 256;

/// All clients and topics.
#[derive(Default)]
pub struct Fanout {
    version: Option<Version>,
    clients: Slab<Client>,
    names: HashMap<Vec<u8>, usize>,
    topics: Vec<Topic>,
    changed: Vec<usize>,
    dirty: Vec<usize>,
    pool: Vec<Vec<u8>>,
    last_id: u16,
}

/// One topic: per granted QoS its subscribers and what this turn has for them.
#[derive(Default)]
struct Topic {
    name: Vec<u8>,
    groups: [Group; 3],
    is_changed: bool,
}

#[derive(Default)]
struct Group {
    subscribers: Vec<usize>,
    batch: Vec<u8>,
}

#[derive(Default)]
struct Client {
    version: Option<Version>,
    rest: Vec<u8>,
    /// Where the last PUBLISH went: publishers mostly repeat their topic.
    recent: Option<usize>,
    output: Output,
    is_dirty: bool,
}

impl Fanout {
    /// A new client; returns its key.
    pub fn open(&mut self) -> usize {
        self.clients.insert(Client::default())
    }

    /// Forgets a client and its subscriptions.
    pub fn close(&mut self, key: usize) {
        self.clients.remove(key);
        for group in self.topics.iter_mut().flat_map(|topic| &mut topic.groups) {
            group.subscribers.retain(|&subscriber| subscriber != key);
        }
        self.dirty.retain(|&dirty| dirty != key);
    }

    /// What `key` is about to receive.
    pub fn output(&mut self, key: usize) -> &mut Output {
        &mut self.clients[key].output
    }

    /// Handles bytes of a client. An error means that its connection must be closed.
    pub fn received(&mut self, key: usize, bytes: &[u8]) -> Result<(), Malformed> {
        if self.clients[key].rest.is_empty() {
            let taken = self.packets(key, bytes)?;
            self.clients[key].rest.extend_from_slice(&bytes[taken..]);
            return Ok(());
        }
        let mut rest = std::mem::take(&mut self.clients[key].rest);
        rest.extend_from_slice(bytes);
        let taken = self.packets(key, &rest)?;
        rest.drain(..taken);
        self.clients[key].rest = rest;
        Ok(())
    }

    /// Ends a turn: hands each batch to its subscribers, and tells which clients have something to send.
    pub fn flush(&mut self, mut ready: impl FnMut(usize, &mut Output)) {
        for topic in self.changed.drain(..) {
            let topic = &mut self.topics[topic];
            topic.is_changed = false;
            for group in topic.groups.iter_mut().filter(|group| !group.batch.is_empty()) {
                let batch = Rc::new(std::mem::replace(&mut group.batch, self.pool.pop().unwrap_or_default()));
                for &subscriber in &group.subscribers {
                    let client = &mut self.clients[subscriber];
                    client.output.share(&batch);
                    if !std::mem::replace(&mut client.is_dirty, true) {
                        self.dirty.push(subscriber);
                    }
                }
            }
        }
        for key in self.dirty.drain(..) {
            let client = &mut self.clients[key];
            client.is_dirty = false;
            ready(key, &mut client.output);
        }
    }

    /// Takes back a batch that every subscriber has sent.
    pub fn recycle(&mut self, mut batch: Vec<u8>) {
        if self.pool.len() < POOL_MAX {
            batch.clear();
            self.pool.push(batch);
        }
    }

    fn packets(&mut self, key: usize, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut taken = 0;
        while let Some((total, body)) = wire::frame(&bytes[taken..])? {
            let packet = &bytes[taken..taken + total];
            self.packet(key, packet, body)?;
            taken += total;
        }
        Ok(taken)
    }

    fn packet(&mut self, key: usize, packet: &[u8], body: usize) -> Result<(), Malformed> {
        let Some(version) = self.clients[key].version else {
            // The version is not known before CONNECT, which reads the same in both.
            return match wire::decode(Version::V311, packet, body)? {
                Packet::Connect { version } => self.connect(key, version),
                _ => Err(Malformed("the first packet is not CONNECT")),
            };
        };
        match wire::decode(version, packet, body)? {
            Packet::Publish(publish) => return self.publish(key, packet, body, &publish),
            Packet::Ack { kind: Ack::Pubrec, id, .. } => wire::put_ack(self.own(key), Ack::Pubrel, id),
            Packet::Ack { kind: Ack::Pubrel, id, .. } => wire::put_ack(self.own(key), Ack::Pubcomp, id),
            Packet::Ack { .. } => {}
            Packet::Subscribe { id, filters } => return self.subscribe(key, version, id, filters),
            Packet::Pingreq => wire::put_pingresp(self.own(key)),
            Packet::Disconnect { .. } => return Err(Malformed("goodbye")),
            _ => return Err(Malformed("packet type not expected from a client")),
        }
        Ok(())
    }

    fn own(&mut self, key: usize) -> &mut Vec<u8> {
        let client = &mut self.clients[key];
        if !std::mem::replace(&mut client.is_dirty, true) {
            self.dirty.push(key);
        }
        client.output.own()
    }

    fn connect(&mut self, key: usize, version: Option<Version>) -> Result<(), Malformed> {
        let version = version.ok_or(Malformed("protocol level is neither 4 nor 5"))?;
        // Messages are copied as they came, so all clients must read them alike.
        if *self.version.get_or_insert(version) != version {
            return Err(Malformed("the relay serves one protocol version per process"));
        }
        self.clients[key].version = Some(version);
        wire::put_connack(self.own(key), version, 0);
        Ok(())
    }

    fn subscribe(&mut self, key: usize, version: Version, id: u16, filters: &[u8]) -> Result<(), Malformed> {
        let mut codes = Vec::new();
        for filter in wire::filters(filters) {
            let (filter, qos) = filter?;
            if filter.iter().any(|byte| matches!(byte, b'+' | b'#')) {
                codes.push(if version == Version::V5 { 0xa2 } else { 0x80 });
                continue;
            }
            let topic = self.topic(filter)?;
            let groups = &mut self.topics[topic].groups;
            groups.iter_mut().for_each(|group| group.subscribers.retain(|&subscriber| subscriber != key));
            groups.get_mut(usize::from(qos)).ok_or(Malformed("SUBSCRIBE with QoS 3"))?.subscribers.push(key);
            codes.push(qos);
        }
        wire::put_suback(self.own(key), version, id, &codes);
        Ok(())
    }

    fn publish(&mut self, key: usize, packet: &[u8], body: usize, publish: &Publish<'_>) -> Result<(), Malformed> {
        let recent = self.clients[key].recent.filter(|&topic| self.topics[topic].name == publish.topic);
        let index = match recent {
            Some(topic) => topic,
            None => self.topic(publish.topic)?,
        };
        self.clients[key].recent = Some(index);
        let topic = &mut self.topics[index];
        if !std::mem::replace(&mut topic.is_changed, true) {
            self.changed.push(index);
        }
        for (granted, group) in topic.groups.iter_mut().enumerate() {
            if group.subscribers.is_empty() {
                continue;
            }
            let qos = publish.qos.min(granted as u8);
            // One id for all subscribers: it is unique in each of their sessions, because it is so in all together.
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            put_copy(&mut group.batch, packet, body, publish, qos, self.last_id);
        }
        match publish.qos {
            1 => wire::put_ack(self.own(key), Ack::Puback, publish.id),
            2 => wire::put_ack(self.own(key), Ack::Pubrec, publish.id),
            _ => {}
        }
        Ok(())
    }

    fn topic(&mut self, name: &[u8]) -> Result<usize, Malformed> {
        if let Some(&topic) = self.names.get(name) {
            return Ok(topic);
        }
        if self.topics.len() == TOPICS_MAX {
            return Err(Malformed("more topics than the relay serves"));
        }
        self.topics.push(Topic { name: name.to_vec(), ..Topic::default() });
        self.names.insert(name.to_vec(), self.topics.len() - 1);
        Ok(self.topics.len() - 1)
    }
}

/// Copies a PUBLISH as it came, with another packet id, and with a lower QoS if need be.
fn put_copy(out: &mut Vec<u8>, packet: &[u8], body: usize, publish: &Publish<'_>, qos: u8, id: u16) {
    let id_at = body + 2 + publish.topic.len();
    if qos == publish.qos {
        let start = out.len();
        out.extend_from_slice(packet);
        out[start] = 0x30 | qos << 1;
        if qos > 0 {
            out[start + id_at..start + id_at + 2].copy_from_slice(&id.to_be_bytes());
        }
        return;
    }
    let id_bytes = if qos > 0 { &id.to_be_bytes()[..] } else { &[] };
    let behind_id = &packet[id_at + 2..];
    wire::put_header(out, 0x30 | qos << 1, id_at - body + id_bytes.len() + behind_id.len());
    out.extend_from_slice(&packet[body..id_at]);
    out.extend_from_slice(id_bytes);
    out.extend_from_slice(behind_id);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(fanout: &mut Fanout, version: Version) -> usize {
        let key = fanout.open();
        let mut bytes = Vec::new();
        wire::put_connect(&mut bytes, version, "c");
        fanout.received(key, &bytes).unwrap();
        key
    }

    fn subscriber(fanout: &mut Fanout, version: Version, topic: &str, qos: u8) -> usize {
        let key = client(fanout, version);
        let mut bytes = Vec::new();
        wire::put_subscribe(&mut bytes, version, 1, &[topic], qos);
        fanout.received(key, &bytes).unwrap();
        key
    }

    fn sent(fanout: &mut Fanout) -> HashMap<usize, Vec<u8>> {
        let mut all = HashMap::new();
        fanout.flush(|key, output| {
            let bytes = output.start().map(<[u8]>::to_vec).unwrap_or_default();
            output.sent(bytes.len(), drop);
            all.insert(key, bytes);
        });
        all
    }

    fn publish(version: Version, topic: &str, qos: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        wire::put_publish(&mut bytes, version, topic.as_bytes(), qos, 77, payload.len());
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn a_message_reaches_its_topic_only_and_in_one_batch_per_turn() {
        for version in [Version::V311, Version::V5] {
            let mut fanout = Fanout::default();
            let near = subscriber(&mut fanout, version, "a", 0);
            let far = subscriber(&mut fanout, version, "b", 0);
            let publisher = client(&mut fanout, version);
            sent(&mut fanout);
            let two = [publish(version, "a", 0, b"1"), publish(version, "a", 0, b"2")].concat();
            fanout.received(publisher, &two).unwrap();
            let out = sent(&mut fanout);
            assert_eq!(out.get(&near), Some(&two));
            assert_eq!(out.get(&far), None);
        }
    }

    #[test]
    fn a_message_in_one_byte_reads_is_the_same_message() {
        let mut fanout = Fanout::default();
        let key = subscriber(&mut fanout, Version::V311, "a", 0);
        let publisher = client(&mut fanout, Version::V311);
        sent(&mut fanout);
        let message = publish(Version::V311, "a", 0, b"slowly");
        for byte in &message {
            fanout.received(publisher, std::slice::from_ref(byte)).unwrap();
        }
        assert_eq!(sent(&mut fanout)[&key], message);
    }

    #[test]
    fn qos_is_the_lower_of_both_and_the_publisher_is_answered() {
        for version in [Version::V311, Version::V5] {
            let mut fanout = Fanout::default();
            let keys: Vec<_> = (0..3).map(|qos| subscriber(&mut fanout, version, "a", qos)).collect();
            let publisher = client(&mut fanout, version);
            sent(&mut fanout);
            fanout.received(publisher, &publish(version, "a", 1, b"x")).unwrap();
            let out = sent(&mut fanout);
            assert_eq!(out[&publisher], [0x40, 2, 0, 77]);
            assert_eq!(out[&keys[0]], publish(version, "a", 0, b"x"));
            for key in [keys[1], keys[2]] {
                let (total, body) = wire::frame(&out[&key]).unwrap().unwrap();
                let Packet::Publish(copy) = wire::decode(version, &out[&key][..total], body).unwrap() else {
                    panic!("not a PUBLISH")
                };
                assert_eq!((copy.qos, copy.topic, copy.payload), (1, &b"a"[..], &b"x"[..]));
                assert_ne!(copy.id, 0);
            }
        }
    }

    #[test]
    fn a_closed_client_gets_nothing_and_its_key_may_be_used_again() {
        let mut fanout = Fanout::default();
        let key = subscriber(&mut fanout, Version::V311, "a", 0);
        let publisher = client(&mut fanout, Version::V311);
        sent(&mut fanout);
        fanout.close(key);
        let again = client(&mut fanout, Version::V311);
        assert_eq!(again, key);
        sent(&mut fanout);
        fanout.received(publisher, &publish(Version::V311, "a", 0, b"x")).unwrap();
        assert!(sent(&mut fanout).is_empty());
    }

    #[test]
    fn a_client_of_another_version_and_a_packet_before_connect_are_turned_away() {
        let mut fanout = Fanout::default();
        client(&mut fanout, Version::V311);
        let key = fanout.open();
        let mut bytes = Vec::new();
        wire::put_connect(&mut bytes, Version::V5, "c");
        assert!(fanout.received(key, &bytes).is_err());
        let key = fanout.open();
        assert!(fanout.received(key, &[0xc0, 0]).is_err());
    }
}
