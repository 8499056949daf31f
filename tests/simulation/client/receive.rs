//! What the broker says: packets out of bytes, the client's half of the handshakes, and the checks that
//! need only this connection (Receive Maximum, packet ids, aliases).

use mqtt::{
    codec::{self, Ack, AckKind, Packet, Publish, encode},
    types::{PacketId, Reason},
};

use super::{Awaits, Client, Reply};
use crate::{
    oracle::arrival::Arrival,
    world::{Env, Event},
};

/// No packet of the simulation is larger.
const PACKET_BYTES_MAX: usize = 1 << 20;

impl Client {
    /// Bytes arrived on a connection.
    pub fn bytes(&mut self, env: &mut Env, pipe: usize, bytes: &[u8]) {
        let Some(conn) = self.conn.as_mut().filter(|conn| conn.pipe == pipe) else { return };
        conn.unread.extend_from_slice(bytes);
        let unread = core::mem::take(&mut conn.unread);
        let mut used = 0;
        loop {
            let raw = match codec::split(&unread[used..], PACKET_BYTES_MAX) {
                Ok(Some(raw)) => raw,
                Ok(None) => break,
                Err(malformed) => return env.fail(&format!("{}: {malformed}", self.id)),
            };
            used += raw.total;
            let most = self.conn.as_ref().map_or(0, |conn| conn.packet_bytes_max);
            if raw.total > most {
                return env.fail(&format!("{}: {} bytes, Maximum Packet Size {most}", self.id, raw.total));
            }
            match codec::decode(self.profile.version, raw) {
                Ok(packet) => self.heard(env, &packet),
                Err(malformed) => return env.fail(&format!("{}: {malformed} in {:x?}", self.id, raw)),
            }
            if env.failed() || self.conn.as_ref().is_none_or(|conn| conn.pipe != pipe) {
                return;
            }
        }
        if let Some(conn) = &mut self.conn {
            conn.unread = unread[used..].to_vec();
        }
    }

    fn heard(&mut self, env: &mut Env, packet: &Packet<'_>) {
        let open = self.conn.as_ref().is_some_and(|conn| conn.open);
        if open == matches!(packet, Packet::Connack(_)) {
            return env.fail(&format!("{}: {packet:?} while open is {open}", self.id));
        }
        match packet {
            Packet::Connack(connack) => self.connack(env, connack),
            Packet::Publish(publish) => self.heard_publish(env, publish),
            Packet::Puback(ack) => self.publish_acknowledged(env, Awaits::Puback, ack.packet_id.get(), ack.reason),
            Packet::Pubrec(ack) => self.publish_acknowledged(env, Awaits::Pubrec, ack.packet_id.get(), ack.reason),
            Packet::Pubrel(ack) => self.heard_pubrel(env, ack),
            Packet::Pubcomp(ack) => self.publish_complete(env, ack.packet_id.get()),
            Packet::Suback(suback) => self.suback(env, suback),
            Packet::Unsuback(suback) => self.unsuback(env, suback.packet_id.get()),
            Packet::Pingresp => {
                self.answered(env, Awaits::Pingresp, 0);
            }
            // The end follows.
            Packet::Disconnect(_) if env.plan.trouble => {}
            Packet::Disconnect(disconnect) => {
                env.fail(&format!("{}: the broker disconnects with {:?}", self.id, disconnect.reason));
            }
            other => env.fail(&format!("{}: a broker does not send {other:?}", self.id)),
        }
    }

    fn heard_publish(&mut self, env: &mut Env, publish: &Publish<'_>) {
        let Some(conn) = &mut self.conn else { return };
        let mut topic = publish.topic.to_string();
        if let Some(alias) = publish.properties.topic_alias {
            if alias > self.profile.alias_max {
                return env.fail(&format!("{}: alias {alias} above {}", self.id, self.profile.alias_max));
            }
            if topic.is_empty() {
                topic = conn.aliases_in.get(&alias).cloned().unwrap_or_default();
            } else {
                conn.aliases_in.insert(alias, topic.clone());
            }
        }
        let arrival = Arrival {
            number: env.oracle.publishes.read(publish.payload),
            topic,
            payload: publish.payload.to_vec(),
            packet: publish.packet_id.map_or(0, PacketId::get),
            qos: publish.qos as u8,
            retain: publish.retain,
            dup: publish.dup,
            ids: publish.properties.subscription_ids.collect(),
            resumed: conn.resumed,
        };
        env.trace(|| format!("{} receives {arrival} as {:?}", self.id, publish.packet_id));
        let fresh = match publish.packet_id {
            None => true,
            Some(packet) => self.take_packet(env, packet.get(), &arrival),
        };
        let Some(epoch) = self.epoch else { return };
        if fresh {
            env.arrived(epoch, &arrival);
        }
    }

    /// The receiving half of a QoS 1 or 2 handshake. False: a QoS 2 message that was there before.
    fn take_packet(&mut self, env: &mut Env, packet: u16, arrival: &Arrival) -> bool {
        let Some(conn) = &mut self.conn else { return false };
        if let Some(number) = conn.unfinished.get(&packet)
            && (*number != arrival.number || arrival.qos == 1)
        {
            let why = format!("packet id {packet} is in use for {number:?}");
            env.fail(&format!("{}: {why}, and comes again with {arrival}", self.id));
            return false;
        }
        let qos2 = arrival.qos == 2;
        let before = self.received.get(&packet).copied();
        if !qos2 && let Some(number) = before {
            env.fail(&format!("{}: packet id {packet} awaits PUBREL of {number:?}, came with {arrival}", self.id));
            return false;
        }
        conn.unfinished.insert(packet, arrival.number);
        let most = conn.receive_max;
        if conn.unfinished.len() > most {
            let why = format!("{} unacknowledged, Receive Maximum {most}", conn.unfinished.len());
            env.fail(&format!("{}: {why}, with {arrival}", self.id));
        }
        self.reply(env, if qos2 { Reply::Pubrec(packet) } else { Reply::Puback(packet) });
        if !qos2 {
            return true;
        }
        let Some(number) = before else {
            self.received.insert(packet, arrival.number);
            return true;
        };
        if number != arrival.number || !arrival.dup {
            let why = format!("packet id {packet} still awaits PUBREL of {number:?}");
            env.fail(&format!("{}: {why}, and comes again with {arrival}", self.id));
        }
        false
    }

    fn heard_pubrel(&mut self, env: &mut Env, ack: &Ack<'_>) {
        let known = self.received.remove(&ack.packet_id.get()).is_some();
        self.reply(env, Reply::Pubcomp(ack.packet_id.get(), known));
    }

    /// Acknowledges at once or later, but in order.
    fn reply(&mut self, env: &mut Env, reply: Reply) {
        let most_us = if self.quiet { 0 } else { self.profile.ack_delay_us };
        let delay_us = if env.rng.percent(50) { 0 } else { env.rng.below(most_us + 1) };
        let (at, now_us) = (self.at, env.now_us);
        let Some(conn) = &mut self.conn else { return };
        conn.ack_free_us = conn.ack_free_us.max(now_us + delay_us);
        conn.acks.push_back((conn.ack_free_us, reply));
        env.queue.push(conn.ack_free_us, Event::Replies(at, conn.serial));
    }

    /// Sends the acknowledgements that are due.
    pub fn replies(&mut self, env: &mut Env, serial: u64) {
        let version = self.profile.version;
        let mut bytes = Vec::new();
        let Some(conn) = self.conn.as_mut().filter(|conn| conn.serial == serial && !conn.leaving) else { return };
        while conn.acks.front().is_some_and(|(at_us, _)| *at_us <= env.now_us) {
            let Some((_, reply)) = conn.acks.pop_front() else { break };
            let (kind, packet, reason) = match reply {
                Reply::Puback(packet) => (AckKind::Puback, packet, Reason::Success),
                Reply::Pubrec(packet) => (AckKind::Pubrec, packet, Reason::Success),
                Reply::Pubcomp(packet, true) => (AckKind::Pubcomp, packet, Reason::Success),
                Reply::Pubcomp(packet, false) => (AckKind::Pubcomp, packet, Reason::PacketIdNotFound),
            };
            if kind != AckKind::Pubrec {
                conn.unfinished.remove(&packet);
            }
            if let Some(id) = PacketId::new(packet) {
                encode::ack(&mut bytes, version, kind, id, reason);
            }
        }
        if !bytes.is_empty() {
            self.write(env, bytes);
        }
    }
}
