//! The way of one PUBLISH through its home shard: legal? who wants it? one hop per destination, delivery
//! here, and an acknowledgement that leaves, in order, when every obligation is met.

use alloc::string::String;

use contract::hash;
use mqtt::{
    codec::{
        Publish,
        encode::{self, AckKind},
    },
    connection::Misbehaved,
    topic::Topic,
    types::{PacketId, Qos, Reason, Version},
    window::Receiving,
};

use crate::{
    Shard,
    conn::{Ack, pause},
    counters::Counter,
    deliver::tell,
    frame::{self, Kind, Message, MessageId, must},
    links::LinksTook,
    obligation::{Outcome, Wait, Waiter},
    plant::Plant,
    session::SessionId,
    surface::{ConnId, Output},
};

/// Topics that belong to links.
pub(crate) const LINK_PREFIX: &str = "$LINK/";

/// Where a routed message went.
pub(crate) struct Routed {
    /// Somebody wanted it, here or elsewhere.
    pub(crate) matched: bool,
    /// Only remotes wanted it, and no outlet had room: the publisher can still be told.
    pub(crate) refused: bool,
    /// The open obligation; 0: nothing to wait for.
    pub(crate) token: u64,
}

impl Shard {
    /// A PUBLISH of an open connection. An error closes the connection with its reason.
    pub(crate) fn packet_publish(
        &mut self,
        id: ConnId,
        session: SessionId,
        publish: &Publish<'_>,
        out: &mut impl Output,
    ) -> Result<(), Misbehaved> {
        self.counters.one(Counter::messages_received);
        let mut resolved = core::mem::take(&mut self.alias_topic);
        let result = self.accept_publish(id, session, publish, &mut resolved, out);
        self.alias_topic = resolved;
        result
    }

    fn accept_publish(
        &mut self,
        id: ConnId,
        session: SessionId,
        publish: &Publish<'_>,
        resolved: &mut String,
        out: &mut impl Output,
    ) -> Result<(), Misbehaved> {
        let Some(open) = self.conns.open(id) else { return Ok(()) };
        if !publish.properties.subscription_ids.is_empty() {
            //= MQTT-3.3.4-6
            let why = "a subscription identifier from a client";
            return Err(Misbehaved { reason: Reason::ProtocolError, why });
        }
        let mut topic = publish.topic;
        if let Some(alias) = publish.properties.topic_alias {
            open.protocol.resolve_alias(topic, alias, resolved)?;
            topic = resolved;
        }
        let levels_max = usize::from(self.settings.mqtt.topic_levels_max);
        let topic = Topic::parse(topic, levels_max)
            .map_err(|_| Misbehaved { reason: Reason::TopicNameInvalid, why: "an invalid topic name" })?
            .as_str();
        if publish.qos as u8 > self.settings.mqtt.qos_max {
            //= MQTT-3.2.2-11
            return Err(Misbehaved { reason: Reason::QosNotSupported, why: "a QoS above our maximum" });
        }
        if publish.retain && !self.settings.mqtt.retain_available {
            //= MQTT-3.2.2-14
            return Err(Misbehaved { reason: Reason::RetainNotSupported, why: "RETAIN is not available" });
        }
        let link = open.link;
        let unanswered = open.acks.qos1();
        if publish.qos != Qos::AtMostOnce {
            let incoming = self.sessions.get(session).map(|s| &s.state.incoming);
            let (receiving, known) = incoming.map_or((0, false), |incoming| {
                let known = publish.packet_id.is_some_and(|packet| incoming.state(packet).is_some());
                (incoming.len(), known)
            });
            // A QoS 2 PUBLISH that comes again was counted when it came first.
            if publish.qos == Qos::AtLeastOnce || !known {
                open.protocol.check_quota(unanswered + receiving)?;
            }
        }
        if topic.as_bytes()[0] == b'$' {
            if topic.starts_with(LINK_PREFIX) {
                return self.link_publish(id, session, link, publish, topic, out);
            }
            if topic.starts_with("$SYS/") {
                return self.refuse_publish(id, publish, Reason::NotAuthorized, out);
            }
        }
        self.publish_from(id, session, publish, topic, out);
        Ok(())
    }

    /// A legal PUBLISH on an ordinary topic.
    fn publish_from(
        &mut self,
        id: ConnId,
        session: SessionId,
        publish: &Publish<'_>,
        topic: &str,
        out: &mut impl Output,
    ) {
        if let (Qos::ExactlyOnce, Some(packet)) = (publish.qos, publish.packet_id)
            && self.publish_again(id, session, packet, out)
        {
            return;
        }
        let publisher = self.sessions.get(session).map_or(0, |s| s.client_hash);
        let mut properties = core::mem::take(&mut self.properties);
        properties.clear();
        if !publish.properties.raw.is_empty() {
            publish.properties.forwarded(&mut properties);
        }
        let message = Message {
            id: self.next_id(publish.qos != Qos::AtMostOnce || publish.retain),
            stamp: 0,
            expiry_ms: publish.properties.message_expiry_s.map_or(u64::MAX, |s| u64::from(s) * 1000),
            publisher,
            qos: publish.qos,
            retain: publish.retain,
            from_link: false,
            topic,
            properties: &properties,
            payload: publish.payload,
        };
        let mut wait = self.wait_for(id, session, publish);
        let routed = self.route(&message, &mut wait, Some(id), out);
        self.properties = properties;
        self.acknowledge(id, session, publish, &routed, out);
    }

    /// Who waits for this publish, and under which number.
    pub(crate) fn wait_for(&mut self, id: ConnId, session: SessionId, publish: &Publish<'_>) -> Wait {
        let (Some(packet), Some(open)) = (publish.packet_id, self.conns.open(id)) else {
            return Wait::nobody();
        };
        let qos2 = publish.qos == Qos::ExactlyOnce;
        Wait::new(Waiter::Publish { conn: id, ack: open.acks.next_number(), session, packet, qos2 })
    }

    /// A QoS 2 PUBLISH whose id is known is not routed again; its PUBREC is, if it is due.
    pub(crate) fn publish_again(
        &mut self,
        id: ConnId,
        session: SessionId,
        packet: PacketId,
        out: &mut impl Output,
    ) -> bool {
        let Some(state) = self.sessions.get(session).and_then(|s| s.state.incoming.state(packet)) else {
            return false;
        };
        if self.planted(Plant::ForgottenPacketId) {
            return false;
        }
        //= MQTT-4.3.3-10
        self.counters.one(Counter::duplicates_suppressed);
        let Some(open) = self.conns.open(id) else { return true };
        let ack = open.acks.next_number();
        let waiter = Waiter::Publish { conn: id, ack, session, packet, qos2: true };
        let still_open = match state {
            // Sent again on the same connection: the one PUBREC that is on its way answers both.
            Receiving::Open(token) if matches!(self.obligations.waiter(token), Some(Waiter::Publish { conn, .. }) if conn == id) =>
            {
                return true;
            }
            Receiving::Open(token) => self.obligations.rebind(token, waiter),
            Receiving::Accepted => false,
        };
        let ready = (!still_open).then_some(Reason::Success);
        if let Some(open) = self.conns.open(id) {
            open.acks.push(Ack { packet, qos2: true, ready });
        }
        self.send_acks(id, out);
        true
    }

    /// Identity of the next message of this shard's stream; QoS 0 messages that nobody stores need none.
    pub(crate) fn next_id(&mut self, numbered: bool) -> MessageId {
        if numbered {
            self.sequence += 1;
        }
        MessageId { sequence: if numbered { self.sequence } else { 0 }, ..self.origin }
    }

    /// Routes one message to everybody who wants it. `from` is the connection that may be slowed down.
    pub(crate) fn route(
        &mut self,
        message: &Message<'_>,
        wait: &mut Wait,
        from: Option<ConnId>,
        out: &mut impl Output,
    ) -> Routed {
        let me = self.settings.shard.0;
        let wanted = self.interest.wanted(message.topic);
        let mut store = 0u128;
        // What a link brings is not stored: the remote's retained values are its own.
        if message.retain && !message.from_link {
            let owner = hash::owner_shard(hash::partition_of_topic(message.topic), self.settings.shards).0;
            if owner == me {
                self.retained.take(message, self.now, &mut self.pool, &mut self.counters);
            } else {
                store = 1 << owner;
            }
        }
        let mut hops = wanted.shards | wanted.groups | store;
        while hops != 0 {
            let to = hops.trailing_zeros() as u16;
            hops &= hops - 1;
            let flag = |set: u128, flag: u8| if set >> to & 1 == 1 { flag } else { 0 };
            let flags =
                flag(wanted.shards, must::DELIVER) | flag(store, must::STORE) | flag(wanted.groups, must::GROUPS);
            self.hop(to, flags, message, wait, from, out);
        }
        let groups = self.deliver_groups(message, wait, out);
        let here = self.deliver_here(message, out);
        let links = match message.from_link {
            true => LinksTook::default(),
            false => self.offer_links(wanted.links, message, from),
        };
        let matched = (wanted.shards | wanted.groups) != 0 || groups + here + links.taken > 0;
        if !matched && links.shed == 0 && !message.retain {
            self.counters.one(Counter::messages_without_subscribers);
        }
        Routed { matched, refused: !matched && links.shed > 0, token: wait.token }
    }

    /// One hop, and the brake on who causes it.
    fn hop(
        &mut self,
        to: u16,
        flags: u8,
        message: &Message<'_>,
        wait: &mut Wait,
        from: Option<ConnId>,
        out: &mut impl Output,
    ) {
        let deadline_us = self.obligation_deadline_us();
        let waits = !self.planted(Plant::AckBeforeHop);
        let token = if waits { wait.one_more(&mut self.obligations, deadline_us) } else { 0 };
        frame::put_message(self.hops.message(to), Kind::Message, flags, token, &[], message);
        self.counters.one(Counter::hops_sent);
        if self.hops.over(to)
            && let Some(from) = from
        {
            self.pause(from, pause::HOP, out);
            self.hops.stall(to, from);
        }
    }

    /// Queues the acknowledgement of a routed publish, and lets go what may leave.
    pub(crate) fn acknowledge(
        &mut self,
        id: ConnId,
        session: SessionId,
        publish: &Publish<'_>,
        routed: &Routed,
        out: &mut impl Output,
    ) {
        let Some(packet) = publish.packet_id else { return };
        let qos2 = publish.qos == Qos::ExactlyOnce;
        // A refusal ends the handshake (4.3.3): the client may use the id for another message at once.
        let refused = routed.refused && routed.token == 0;
        if qos2
            && !refused
            && let Some(session) = self.sessions.get_mut(session)
        {
            let state = if routed.token == 0 { Receiving::Accepted } else { Receiving::Open(routed.token) };
            session.state.incoming.set(packet, state);
        }
        let reason = match (routed.matched, routed.refused) {
            (true, _) => Reason::Success,
            (false, true) => Reason::QuotaExceeded,
            (false, false) => Reason::NoMatchingSubscribers,
        };
        let ready = (routed.token == 0).then_some(reason);
        let Some(open) = self.conns.open(id) else { return };
        open.acks.push(Ack { packet, qos2, ready });
        let too_many = open.acks.len() >= open.protocol.receive_max();
        if ready.is_none() {
            self.counters.one(Counter::acks_waited);
        }
        if too_many {
            // 3.x clients know no Receive Maximum: the brake is not to read.
            self.pause(id, pause::ACKS, out);
        }
        self.send_acks(id, out);
    }

    /// Refuses one publish: with a reason where the protocol has one, else by closing (3.x QoS 1 and 2).
    pub(crate) fn refuse_publish(
        &mut self,
        id: ConnId,
        publish: &Publish<'_>,
        reason: Reason,
        out: &mut impl Output,
    ) -> Result<(), Misbehaved> {
        self.counters.one(Counter::publishes_refused);
        let Some(packet) = publish.packet_id else { return Ok(()) };
        let Some(open) = self.conns.open(id) else { return Ok(()) };
        if open.protocol.version != Version::V5 {
            //= MQTT-3.3.5-2
            return Err(Misbehaved { reason, why: "a publish that is not allowed" });
        }
        open.acks.push(Ack { packet, qos2: publish.qos == Qos::ExactlyOnce, ready: Some(reason) });
        self.send_acks(id, out);
        Ok(())
    }

    /// Writes every acknowledgement that is due, in the order in which the publishes came.
    pub(crate) fn send_acks(&mut self, id: ConnId, out: &mut impl Output) {
        let Some(conn) = self.conns.get(id) else { return };
        let crate::conn::Phase::Open(open) = &mut conn.phase else { return };
        let version = open.protocol.version;
        //= MQTT-4.6.0-2
        //= MQTT-4.6.0-3
        while let Some((ack, reason)) = open.acks.next_ready() {
            let kind = if ack.qos2 { AckKind::Pubrec } else { AckKind::Puback };
            encode::ack(&mut conn.out, version, kind, ack.packet, reason);
        }
        let drained = open.acks.len() < open.protocol.receive_max() / 2 + 1;
        let paused = conn.paused & pause::ACKS != 0;
        tell(conn, out);
        self.brake_output(id, out);
        if drained && paused {
            self.resume(id, pause::ACKS, out);
        }
    }

    /// A destination reports on an obligation.
    pub(crate) fn report(&mut self, token: u64, outcome: Outcome, out: &mut impl Output) {
        if let Some((waiter, outcome)) = self.obligations.report(token, outcome) {
            if outcome != Outcome::MET {
                self.counters.one(Counter::obligations_refused);
            }
            self.settle(waiter, outcome, out);
        }
    }

    /// The waiter of an obligation gets its answer.
    pub(crate) fn settle(&mut self, waiter: Waiter, outcome: Outcome, out: &mut impl Output) {
        match waiter {
            Waiter::Publish { conn, ack, session, packet, qos2 } => {
                self.settle_publish(conn, ack, (session, packet, qos2), outcome, out);
            }
            Waiter::Relay { shard, token } => self.send_done(shard, token, outcome, out),
            Waiter::Subscribe { key, entry } => {
                if outcome.reason.is_failure() {
                    self.barrier.refuse_entry(key, entry, outcome.reason);
                }
                self.subscribe_settled(key, out);
            }
        }
    }

    fn settle_publish(
        &mut self,
        conn: ConnId,
        ack: u64,
        (session, packet, qos2): (SessionId, PacketId, bool),
        outcome: Outcome,
        out: &mut impl Output,
    ) {
        let refused = outcome.reason.is_failure();
        if qos2 && let Some(session) = self.sessions.get_mut(session) {
            if refused {
                // The client may send it again under a new id; this one is free (4.3.3).
                session.state.incoming.release(packet);
            } else {
                session.state.incoming.set(packet, Receiving::Accepted);
            }
        }
        let Some(open) = self.conns.open(conn) else { return };
        if outcome.disconnect || refused && open.protocol.version != Version::V5 {
            return self.misbehaved(conn, Misbehaved { reason: outcome.reason, why: "a refused publish" }, out);
        }
        open.acks.settle(ack, outcome.reason);
        self.send_acks(conn, out);
    }

    /// Until when an obligation that is opened now has to be met.
    pub(crate) fn obligation_deadline_us(&self) -> u64 {
        self.now.mono_us + u64::from(self.settings.mqtt.obligation_timeout_ms) * 1000
    }

    /// Tells another shard (or this one) that an obligation is met or refused.
    pub(crate) fn send_done(&mut self, shard: u16, token: u64, outcome: Outcome, out: &mut impl Output) {
        if token == 0 {
            return;
        }
        if shard == self.settings.shard.0 {
            return self.report(token, outcome, out);
        }
        let bytes = self.hops.answer(shard);
        let start = frame::begin(bytes, Kind::Done, 0);
        bytes.extend_from_slice(&token.to_le_bytes());
        bytes.push(outcome.reason.code());
        bytes.push(u8::from(outcome.disconnect));
        frame::finish(bytes, start);
    }
}
