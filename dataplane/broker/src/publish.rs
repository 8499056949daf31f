//! The way of one PUBLISH through its home shard: legal? who wants it? one hop per destination, delivery
//! here. Its acknowledgement is the matter of `acknowledge.rs`.

use alloc::{borrow::ToOwned, string::String};

use contract::hash;
use mqtt::{
    codec::Publish,
    connection::Misbehaved,
    topic::Topic,
    types::{PacketId, Qos, Reason},
    window::Receiving,
};

use crate::{
    Shard,
    access::Action,
    conn::{Ack, pause},
    counters::Counter,
    deliver::Delivered,
    frame::{self, Kind, Message, MessageId, must},
    journal::{
        Unfinished, What,
        record::{DURABLE_STREAM, GROUP_STREAM, Stream},
    },
    links::LinksTook,
    mountpoint,
    obligation::{Outcome, Wait, Waiter},
    plant::Plant,
    retained::Taken,
    session::SessionId,
    surface::{ConnId, Output},
};

/// Topics that belong to links.
pub(crate) const LINK_PREFIX: &str = "$LINK/";

/// Levels of a topic on which the node speaks about itself, whatever clients may have.
const SYSTEM_LEVELS_MAX: usize = 128;

/// Where a routed message went.
pub(crate) struct Routed {
    /// Somebody wanted it, here or elsewhere.
    pub(crate) matched: bool,
    /// Only remotes wanted it, and no outlet had room: the publisher can still be told.
    pub(crate) refused: bool,
    /// The open obligation; 0: nothing to wait for.
    pub(crate) token: u64,
}

/// Is this a topic on which the node speaks about itself? Clients do not publish there, and no log keeps it.
pub(crate) fn is_system(topic: &str) -> bool {
    topic.starts_with("$SYS/")
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
        self.counters.publish_received(publish.qos, publish.payload.len());
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
        if let Some(mountpoint) = &open.mountpoint {
            if publish.properties.topic_alias.is_none() {
                publish.topic.clone_into(resolved);
            }
            mountpoint::topic(mountpoint, resolved);
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
            if topic.starts_with(LINK_PREFIX)
                && self.rules_refuse_link(session, link, (Action::Publish, topic, publish.qos))
            {
                return self.deny_publish(id, publish, out);
            }
            if topic.starts_with(LINK_PREFIX) {
                return self.link_publish(id, session, link, publish, topic, out);
            }
            if is_system(topic) {
                return self.refuse_publish(id, publish, Reason::NotAuthorized, out);
            }
        }
        self.publish_from(id, session, publish, topic, out)
    }

    /// A legal PUBLISH on an ordinary topic.
    fn publish_from(
        &mut self,
        id: ConnId,
        session: SessionId,
        publish: &Publish<'_>,
        topic: &str,
        out: &mut impl Output,
    ) -> Result<(), Misbehaved> {
        //= MQTT-4.3.2-5
        if let (Qos::ExactlyOnce, Some(packet)) = (publish.qos, publish.packet_id)
            && self.publish_again(id, session, packet, out)
        {
            return Ok(());
        }
        if self.restricted {
            match self.may_publish(id, session, publish, topic, out) {
                Some(true) => {}
                Some(false) => return self.deny_publish(id, publish, out),
                None => return Ok(()),
            }
        }
        let (publisher, number) = self.sessions.get(session).map_or((0, 0), |s| (s.client_hash, s.number));
        // The publisher comes back after a crash and asks what became of it.
        let durable = publish.qos == Qos::ExactlyOnce && number != 0;
        if durable && !self.journal.grows() {
            self.counters.one(Counter::shed_log_full);
            return self.refuse_publish(id, publish, Reason::QuotaExceeded, out);
        }
        let mut properties = core::mem::take(&mut self.properties);
        properties.clear();
        if !publish.properties.raw.is_empty() {
            publish.properties.forwarded(&mut properties);
        }
        let message = Message {
            id: self.next_id(publish.qos != Qos::AtMostOnce || publish.retain, durable),
            stamp: 0,
            expiry_ms: publish.properties.message_expiry_s.map_or(u64::MAX, |s| u64::from(s) * 1000),
            publisher,
            qos: publish.qos,
            retain: publish.retain,
            from_link: false,
            durable,
            topic,
            properties: &properties,
            payload: publish.payload,
        };
        let mut wait = self.wait_for(id, session, publish);
        if durable {
            let packet = publish.packet_id.map_or(0, PacketId::get);
            wait.unfinished(self.record_publish(&message, number, packet));
        }
        let routed = if durable || self.journal.deferring(publisher) {
            self.defer_publish(id, &message, &mut wait, out)
        } else {
            self.route(&message, &mut wait, Some(id), out)
        };
        self.properties = properties;
        self.acknowledge(id, session, publish, &routed, out);
        Ok(())
    }

    /// What the node says about itself: forgotten with the process, and before it unless it is lasting.
    pub(crate) fn publish_system(&mut self, topic: &str, text: &str, lasting: bool, out: &mut impl Output) {
        // A client id may stand in it, which may be as long as a topic, and have more levels than one.
        if Topic::parse(topic, SYSTEM_LEVELS_MAX).is_err() {
            return self.counters.one(Counter::shed_system_event);
        }
        let message = Message {
            id: self.next_id(lasting, false),
            stamp: 0,
            expiry_ms: u64::MAX,
            publisher: 0,
            qos: Qos::AtMostOnce,
            retain: lasting,
            from_link: false,
            durable: false,
            topic,
            properties: &[],
            payload: text.as_bytes(),
        };
        self.route(&message, &mut Wait::nobody(), None, out);
    }

    /// Routes a publish when the log has it, and everything that its connection sent before it.
    fn defer_publish(&mut self, id: ConnId, message: &Message<'_>, wait: &mut Wait, out: &mut impl Output) -> Routed {
        let kept = self.pool.keep(message, self.now.mono_us);
        let deadline_us = self.obligation_deadline_us();
        let token = wait.one_more(&mut self.obligations, deadline_us);
        self.defer(What::Publish { from: Some(id), waiter: wait.waiter, token, kept }, out);
        Routed { matched: true, refused: false, token }
    }

    /// Records a publish that is repeated after a crash until every destination has taken it.
    pub(crate) fn record_publish(&mut self, message: &Message<'_>, session: u64, packet: u16) -> (Stream, u64) {
        let (stream, sequence) = (Stream::of(&message.id), message.id.sequence);
        let kept = self.pool.keep(message, self.now.mono_us);
        self.journal.publish(Unfinished { session, packet, routed: None, kept }, self.now);
        (stream, sequence)
    }

    /// Who waits for this publish, and under which number.
    pub(crate) fn wait_for(&mut self, id: ConnId, session: SessionId, publish: &Publish<'_>) -> Wait {
        let (Some(packet), Some(open)) = (publish.packet_id, self.conns.open(id)) else {
            return Wait::nobody();
        };
        let qos2 = publish.qos == Qos::ExactlyOnce;
        Wait::new(Waiter::Publish { conn: id, ack: open.acks.next_number(), session, packet, qos2, unfinished: None })
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
        let unfinished = match state {
            Receiving::Open(token) => self.obligations.waiter(token).and_then(Waiter::unfinished),
            Receiving::Accepted => None,
        };
        let waiter = Waiter::Publish { conn: id, ack, session, packet, qos2: true, unfinished };
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
    /// What waits for the log before it is routed has a stream of its own, because others overtake it.
    pub(crate) fn next_id(&mut self, numbered: bool, durable: bool) -> MessageId {
        if durable {
            self.durable_sequence += 1;
            let stream = self.origin.stream | DURABLE_STREAM;
            return MessageId { stream, sequence: self.durable_sequence, ..self.origin };
        }
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
        let before = self.journal.position();
        //= MQTT-4.5.0-1
        let wanted = self.interest.wanted(message.topic);
        let taken = self.took_repeated(message);
        let mut refused = false;
        let mut store = 0u128;
        // What a link brings is not stored: the remote's retained values are its own.
        //= MQTT-3.3.1-8
        if message.retain && !message.from_link {
            let owner = hash::owner_shard(hash::partition_of_topic(message.topic), self.settings.shards).0;
            if owner == me {
                refused |= !taken && self.keep_retained(message);
            } else {
                store = 1 << owner;
            }
        }
        let mut hops = wanted.shards | wanted.groups | store;
        if message.durable {
            self.journal.routed(Stream::of(&message.id), message.id.sequence, hops | 1 << me);
        }
        while hops != 0 {
            let to = hops.trailing_zeros() as u16;
            hops &= hops - 1;
            let flag = |set: u128, flag: u8| if set >> to & 1 == 1 { flag } else { 0 };
            let flags =
                flag(wanted.shards, must::DELIVER) | flag(store, must::STORE) | flag(wanted.groups, must::GROUPS);
            self.hop(to, flags, message, wait, from, out);
        }
        let (groups, here) = match taken {
            true => (Delivered::default(), Delivered::default()),
            false => (self.deliver_groups(message, wait, out), self.deliver_here(message, out)),
        };
        let links = match message.from_link || self.outlets_had(message) {
            true => LinksTook::default(),
            false => self.offer_links(wanted.links, message, from),
        };
        refused |= groups.refused || here.refused || links.refused;
        if !refused {
            self.taken(message);
        }
        let matched = (wanted.shards | wanted.groups) != 0 || groups.count + here.count + links.taken > 0;
        if !matched && links.shed == 0 && !message.retain {
            self.counters.one(Counter::messages_without_subscribers);
        }
        refused |= !matched && links.shed > 0;
        // What this shard keeps of it, it keeps before the acknowledgement leaves.
        // A value that is deleted again is gone for good only when its first deletion is kept.
        let stored = message.retain && store == 0 && self.journal.until() != 0;
        let kept = stored || self.journal.position() != before || self.taken_unrecorded(message);
        if wait.waiter.is_some() && kept && !self.planted(Plant::AckBeforeLog) {
            let deadline_us = self.obligation_deadline_us();
            let token = wait.one_more(&mut self.obligations, deadline_us);
            self.when_kept(me, token, message);
        }
        if refused && wait.token != 0 {
            self.obligations.refuse(wait.token, Outcome::refused(Reason::QuotaExceeded));
        }
        Routed { matched, refused, token: wait.token }
    }

    /// Is this a publish of an earlier life of this node?
    #[inline]
    pub(crate) fn repeats(&self, message: &Message<'_>) -> bool {
        message.durable && message.id.incarnation != self.origin.incarnation && message.id.node == self.origin.node
    }

    /// A message that is repeated after a crash is here, and in the same batch of the log what this shard keeps of it.
    pub(crate) fn taken(&mut self, message: &Message<'_>) {
        if !message.durable || self.planted(Plant::WatermarkMissing) {
            return;
        }
        let (stream, sequence) = (Stream::of(&message.id), message.id.sequence);
        self.journal.watermark(stream, sequence);
        if self.repeats(message) {
            self.journal.repeated.insert((stream, sequence));
        }
    }

    /// Did this shard take a message of an earlier life since its start? Another shard had refused it, so it comes again.
    pub(crate) fn took_repeated(&self, message: &Message<'_>) -> bool {
        self.repeats(message) && self.journal.repeated.contains(&(Stream::of(&message.id), message.id.sequence))
    }

    /// Had the shard that was home of this session taken a message before the crash?
    pub(crate) fn took_session(&mut self, message: &Message<'_>, session: u32) -> bool {
        let Some(session) = self.sessions.at(session) else { return true };
        let partition = hash::partition_of_client(&session.client);
        self.history.took(Stream::of(&message.id), message.id.sequence, partition)
    }

    /// The owner of a topic takes a retained publish. True: refused, because the log cannot take it.
    pub(crate) fn keep_retained(&mut self, message: &Message<'_>) -> bool {
        let partition = hash::partition_of_topic(message.topic);
        if self.repeats(message) && self.history.took(Stream::of(&message.id), message.id.sequence, partition) {
            return false;
        }
        if is_system(message.topic) {
            self.retained.take(message, self.now, &mut self.pool, &mut self.counters);
            return false;
        }
        if !message.payload.is_empty() && !self.journal.grows() && !self.repeats(message) {
            self.counters.one(Counter::shed_log_full);
            return message.qos != Qos::AtMostOnce;
        }
        if !message.payload.is_empty() && self.scarce && !self.repeats(message) {
            self.counters.one(Counter::shed_memory_scarce);
            return message.qos != Qos::AtMostOnce;
        }
        match self.retained.take(message, self.now, &mut self.pool, &mut self.counters) {
            Taken::Stored(kept) => self.journal.retained(kept, self.now),
            Taken::Deleted(stamp) => self.journal.retained_gone(stamp, message.topic),
            Taken::Nothing => {}
        }
        false
    }

    /// Reports on an obligation of a shard (of this one, too) when what was recorded so far is kept.
    pub(crate) fn when_kept(&mut self, shard: u16, token: u64, message: &Message<'_>) {
        if token != 0 {
            let patient = self.insists(message);
            self.journal.wait(shard, token, patient);
        }
    }

    /// Another log has this message, and nobody can be told that it is refused: a publish of an earlier life, or what the
    /// owner of a group has chosen a member for. It is taken also when the log does not grow, and reported when it does.
    #[inline]
    pub(crate) fn insists(&self, message: &Message<'_>) -> bool {
        message.durable && (message.id.stream & GROUP_STREAM != 0 || self.repeats(message))
    }

    /// It was taken, and there is no log at present that says so.
    pub(crate) fn taken_unrecorded(&self, message: &Message<'_>) -> bool {
        self.insists(message) && !self.journal.records()
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
        //= MQTT-4.6.0-5
        //= MQTT-4.6.0-6
        frame::put_message(self.hops.message(to), Kind::Message, flags, token, &[], message);
        self.counters.one(Counter::hops_sent);
        if self.hops.over(to)
            && let Some(from) = from
        {
            self.pause(from, pause::HOP, out);
            self.hops.stall(to, from);
        }
    }
}
