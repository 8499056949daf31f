//! The client as publisher: topics, QoS, retain, and sending again on a resumed session.

use mqtt::{
    codec::{
        AckKind,
        encode::{self, PublishParts},
    },
    types::{PacketId, Qos, Reason, Version},
};

use super::{Awaits, Client, Out};
use crate::{oracle::publishes::Publish, world::Env};

/// Unfinished publishes of a 3.x client at most: it knows no Receive Maximum.
const UNFINISHED_MAX: usize = 30;

impl Client {
    /// Publishes one message, if the broker's Receive Maximum allows.
    pub fn publish(&mut self, env: &mut Env) {
        let Some(conn) = &self.conn else { return };
        let mut qos = env.rng.below(3) as u8;
        if self.out.len() >= conn.server_receive_max.min(UNFINISHED_MAX) {
            qos = 0;
        }
        let (topic, retain) = self.draw_topic(env);
        let delete = retain && env.rng.percent(15);
        self.publish_on(env, topic, qos, retain, delete);
    }

    fn draw_topic(&self, env: &mut Env) -> (String, bool) {
        let (rng, mix) = (&mut env.rng, env.plan.mix);
        let topic = match rng.below(10) {
            n if n < mix.plain => rng.pick(&["t/a", "t/b", "t/a/x", "t/b/y", "t"]).to_string(),
            n if n < mix.plain + mix.groups => rng.pick(&["s/a", "s/b"]).to_string(),
            // Only this client publishes here, so the last value is known.
            n if n < mix.plain + mix.groups + mix.retained => return (format!("r/{}/{}", self.at, rng.below(2)), true),
            _ => return (rng.pick(&["m/0", "m/1"]).to_string(), true),
        };
        (topic, false)
    }

    /// One PUBLISH.
    pub fn publish_on(&mut self, env: &mut Env, topic: String, qos: u8, retain: bool, delete: bool) -> Option<u64> {
        let room = self.conn.as_ref().map_or(0, |conn| conn.server_receive_max.min(UNFINISHED_MAX));
        if qos > 0 && self.out.len() >= room {
            return None;
        }
        self.order += 1;
        let padding = env.rng.below(env.plan.padding + 1) as usize;
        let publish = Publish {
            cluster: self.cluster,
            publisher: self.at,
            order: self.order,
            topic,
            qos,
            retain,
            delete,
            padding,
            sent_us: env.now_us,
            ..Publish::default()
        };
        let number = env.oracle.publishes.add(publish);
        if retain {
            env.coverage.one("retained_queries_during_publishes", u64::from(env.replays_open > 0));
        }
        let packet = if qos > 0 { self.packet() } else { 0 };
        if qos > 0 {
            let serial = self.serial;
            self.out.push_back(Out { packet, number, released: false, serial });
        }
        env.trace(|| format!("{} publishes {}", self.id, env.oracle.publishes.describe(number)));
        self.send_publish(env, number, packet, false);
        Some(number)
    }

    fn send_publish(&mut self, env: &mut Env, number: u64, packet: u16, dup: bool) {
        let publish = env.oracle.publishes.at(number).clone();
        let payload = env.oracle.publishes.payload(number);
        let Some(conn) = &mut self.conn else { return };
        conn.sent += 1;
        conn.unproved.push_back((conn.sent, number));
        let version = self.profile.version;
        let mut topic = publish.topic.as_str();
        let mut alias = None;
        if version == Version::V5 && conn.server_alias_max > 0 && env.rng.percent(40) {
            let known = conn.aliases_out.get(topic).copied();
            alias = known.or_else(|| {
                let next = conn.aliases_out.len() as u16 + 1;
                (next <= conn.server_alias_max).then_some(next)
            });
            if let Some(alias) = alias {
                conn.aliases_out.insert(topic.to_string(), alias);
                topic = if known.is_some() { "" } else { topic };
            }
        }
        let qos = Qos::from_bits(publish.qos).unwrap_or_default();
        let parts = PublishParts {
            dup,
            qos,
            retain: publish.retain,
            topic,
            packet_id: PacketId::new(packet),
            topic_alias: alias,
            payload: &payload,
            ..PublishParts::default()
        };
        let mut bytes = Vec::new();
        encode::publish(&mut bytes, version, &parts);
        match qos {
            Qos::AtMostOnce => {}
            Qos::AtLeastOnce => self.ask(env, Awaits::Puback, packet, Vec::new()),
            Qos::ExactlyOnce => self.ask(env, Awaits::Pubrec, packet, Vec::new()),
        }
        self.write(env, bytes);
    }

    fn send_pubrel(&mut self, env: &mut Env, packet: u16) {
        let Some(id) = PacketId::new(packet) else { return };
        let mut bytes = Vec::new();
        encode::ack(&mut bytes, self.profile.version, AckKind::Pubrel, id, Reason::Success);
        self.ask(env, Awaits::Pubcomp, packet, Vec::new());
        self.write(env, bytes);
    }

    /// The session was there: everything unfinished goes again, in order.
    pub(super) fn resume(&mut self, env: &mut Env) {
        let again: Vec<(u16, u64, bool)> = self.out.iter().map(|o| (o.packet, o.number, o.released)).collect();
        for (packet, number, released) in again {
            env.trace(|| format!("{} sends {number} ({packet}) again, released {released}", self.id));
            if released {
                self.send_pubrel(env, packet);
            } else {
                self.order += 1;
                env.oracle.publishes.resent(number, self.order);
                self.send_publish(env, number, packet, true);
            }
        }
    }

    /// PUBACK or PUBREC.
    pub(super) fn publish_acknowledged(&mut self, env: &mut Env, awaits: Awaits, packet: u16, reason: Reason) {
        if self.answered(env, awaits, packet).is_none() {
            return;
        }
        let Some(at) = self.out.iter().position(|out| out.packet == packet) else {
            return env.fail(&format!("{}: {awaits:?} {packet} for no publish", self.id));
        };
        let number = self.out[at].number;
        env.trace(|| format!("{} hears {awaits:?} {packet} = {number}, {reason:?}", self.id));
        if reason.is_failure() {
            env.oracle.publishes.at_mut(number).refused = true;
            self.out.remove(at);
            env.coverage.one("publishes_refused_by_log", u64::from(env.plan.trouble));
            if env.plan.trouble && reason == Reason::QuotaExceeded {
                return;
            }
            return env.fail(&format!("{}: publish {number} was refused with {reason:?}", self.id));
        }
        env.acknowledged.push(number);
        env.oracle.acknowledged(number, env.now_us);
        if awaits == Awaits::Puback {
            self.out.remove(at);
        } else {
            self.out[at].released = true;
            self.send_pubrel(env, packet);
        }
    }

    /// PUBCOMP.
    pub(super) fn publish_complete(&mut self, env: &mut Env, packet: u16) {
        if self.answered(env, Awaits::Pubcomp, packet).is_some() {
            self.out.retain(|out| !(out.packet == packet && out.released));
        }
    }
}
