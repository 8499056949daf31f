//! The last step inside a shard: one message to the sessions at home here. Encodes a PUBLISH once per
//! shape (version, QoS, RETAIN) and copies it; packet ids are patched in. A message is copied out of its
//! input only when a session has to keep it, once for all sessions.

use alloc::vec::Vec;

use contract::{config::SlowSubscriber, time::Now};
use mqtt::{
    codec::encode::{self, PublishParts},
    connection::AliasOut,
    session::QueueLimits,
    types::{PacketId, Qos, Version},
};
use smallvec::SmallVec;

use crate::{
    Shard,
    conn::{Conn, Conns, Phase, pause},
    counters::{Counter, Counters, PacketType},
    frame::{Kept, Message, Pool},
    journal::Journal,
    mountpoint,
    session::{Delivery, Sessions},
    subscriptions::{Guard, Options, Subscriptions},
    surface::{ConnId, Output},
};

/// Output that waits for one connection before QoS 0 messages to it are shed while memory is scarce.
const SCARCE_OUTPUT_BYTES: usize = 64 << 10;

/// PUBLISH packets of the message at hand, by shape.
#[derive(Default)]
pub(crate) struct Encoded {
    slots: [Slot; 12],
}

#[derive(Default)]
struct Slot {
    bytes: Vec<u8>,
    id_at: usize,
    valid: bool,
}

impl Encoded {
    fn forget(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.valid = false);
    }

    #[inline]
    fn shape(&mut self, message: &Message<'_>, v5: bool, qos: Qos, retain: bool) -> &Slot {
        let slot = &mut self.slots[usize::from(v5) * 6 + qos as usize * 2 + usize::from(retain)];
        if !slot.valid {
            slot.bytes.clear();
            let id = if qos == Qos::AtMostOnce { None } else { PacketId::new(1) };
            encode::publish(&mut slot.bytes, version(v5), &parts(message, qos, retain, id, &[]));
            // The packet id follows the topic, which follows the fixed header.
            let length_bytes = 1 + slot.bytes[1..].iter().take_while(|byte| **byte & 0x80 != 0).count();
            slot.id_at = 1 + length_bytes + 2 + message.topic.len();
            slot.valid = true;
        }
        slot
    }
}

fn version(v5: bool) -> Version {
    if v5 { Version::V5 } else { Version::V311 }
}

fn parts<'a>(
    message: &Message<'a>,
    qos: Qos,
    retain: bool,
    packet_id: Option<PacketId>,
    ids: &'a [u32],
) -> PublishParts<'a> {
    //= MQTT-3.3.2-6
    // What remains of the expiry, rounded up: a message that still lives has at least a second.
    let expiry = (message.expiry_ms != u64::MAX).then(|| message.expiry_ms.div_ceil(1000).max(1));
    PublishParts {
        //= MQTT-3.3.1-3
        //= MQTT-4.3.1-1
        //= MQTT-4.3.2-2
        //= MQTT-4.3.3-2
        dup: false,
        qos,
        retain,
        topic: message.topic,
        packet_id,
        topic_alias: None,
        message_expiry_s: expiry.map(|s| u32::try_from(s).unwrap_or(u32::MAX)),
        subscription_ids: ids,
        forwarded: message.properties,
        payload: message.payload,
    }
}

/// The parts of a shard that a delivery touches.
pub(crate) struct Delivering<'a> {
    pub(crate) sessions: &'a mut Sessions,
    pub(crate) conns: &'a mut Conns,
    pub(crate) counters: &'a mut Counters,
    pub(crate) encoded: &'a mut Encoded,
    pub(crate) pool: &'a mut Pool,
    pub(crate) now: Now,
    pub(crate) queue: QueueLimits,
    pub(crate) output_bytes_max: usize,
    /// Memory is scarce: nothing is queued.
    pub(crate) scarce: bool,
    /// Who reads too slowly is disconnected.
    cuts: bool,
    cut: &'a mut Vec<ConnId>,
    pub(crate) kept: Option<Kept>,
    pub(crate) journal: &'a mut Journal,
    /// A persistent session was refused its delivery, because the log cannot take it or memory is scarce.
    pub(crate) refused: bool,
    /// The message at hand may not be: see [`Shard::insists`].
    pub(crate) insists: bool,
}

/// What became of a message on this shard.
#[derive(Clone, Copy, Default)]
pub(crate) struct Delivered {
    /// Sessions that wanted it.
    pub(crate) count: usize,
    /// One of them is persistent, and its queue or the log cannot take it.
    pub(crate) refused: bool,
}

impl Shard {
    /// Bounds of a session's queue.
    pub(crate) fn queue_limits(&self) -> QueueLimits {
        let mqtt = &self.settings.mqtt;
        QueueLimits { queued_max: mqtt.queued_max as usize, queued_bytes_max: mqtt.queued_bytes_max }
    }

    /// Splits the shard into what a delivery changes and the subscriptions that it reads.
    pub(crate) fn delivering(&mut self) -> (Delivering<'_>, &Subscriptions) {
        self.encoded.forget();
        let queue = self.queue_limits();
        let output_bytes_max = self.settings.limits.output_bytes_max as usize;
        let delivering = Delivering {
            sessions: &mut self.sessions,
            conns: &mut self.conns,
            counters: &mut self.counters,
            encoded: &mut self.encoded,
            pool: &mut self.pool,
            now: self.now,
            queue,
            output_bytes_max: if self.scarce { output_bytes_max.min(SCARCE_OUTPUT_BYTES) } else { output_bytes_max },
            scarce: self.scarce,
            cuts: self.settings.mqtt.slow_subscriber == SlowSubscriber::Disconnect,
            cut: &mut self.cut,
            kept: None,
            journal: &mut self.journal,
            refused: false,
            insists: false,
        };
        (delivering, &self.subscriptions)
    }

    /// Delivers a live message to every session here that subscribed to it.
    pub(crate) fn deliver_here(&mut self, message: &Message<'_>, out: &mut impl Output) -> Delivered {
        let mut found = core::mem::take(&mut self.found);
        found.clear();
        //= MQTT-3.3.2-3
        self.subscriptions.matching(message.topic, &mut found);
        let delivered = match found[..] {
            [] => Delivered::default(),
            [entry] if !self.repeats(message) => {
                let (mut delivering, subscriptions) = self.delivering();
                let subscriptions = subscriptions.at(entry);
                for subscription in subscriptions {
                    let ids: &[u32] = if subscription.id == 0 { &[] } else { &[subscription.id] };
                    delivering.live(subscription.session, subscription.options, ids, message, out);
                }
                Delivered { count: subscriptions.len(), refused: delivering.finish() }
            }
            _ => self.deliver_overlapping(&found, message, out),
        };
        self.found = found;
        delivered
    }

    /// Several filters match: each session gets one copy, with the highest QoS and all identifiers (3.3.4).
    fn deliver_overlapping(&mut self, entries: &[u32], message: &Message<'_>, out: &mut impl Output) -> Delivered {
        let mut all = core::mem::take(&mut self.overlapping);
        all.clear();
        for &entry in entries {
            all.extend_from_slice(self.subscriptions.at(entry));
        }
        all.sort_unstable_by_key(|s| s.session);
        if self.repeats(message) {
            all.retain(|s| !self.took_session(message, s.session));
        }
        let insists = self.insists(message);
        let (mut delivering, _) = self.delivering();
        delivering.insists = insists;
        let mut count = 0;
        for same in all.chunk_by(|a, b| a.session == b.session) {
            let publisher = delivering.sessions.at(same[0].session).map_or(0, |s| s.client_hash);
            // No Local silences only the subscriptions that asked for it.
            let heard = same.iter().filter(|s| {
                !(s.options.no_local() && publisher == message.publisher) && s.options.guard() != Guard::Muted
            });
            //= MQTT-3.3.4-3
            //= MQTT-3.3.4-4
            let mut ids: SmallVec<[u32; 8]> = heard.clone().map(|s| s.id).filter(|id| *id != 0).collect();
            ids.sort_unstable();
            ids.dedup();
            let Some(qos) = heard.clone().map(|s| s.options.qos()).max() else { continue };
            let rap = heard.clone().any(|s| s.options.retain_as_published());
            // What one of them may receive as a whole is received.
            let guarded = heard.clone().all(|s| s.options.restricted());
            let guard = if guarded { Guard::Guarded } else { Guard::Open };
            let options = Options::new(qos, false, rap).with_guard(guard);
            //= MQTT-3.3.4-2
            delivering.live(same[0].session, options, &ids, message, out);
            count += 1;
        }
        let refused = delivering.finish();
        self.overlapping = all;
        Delivered { count, refused }
    }

    /// Sends what a session has queued, as far as its window and output allow.
    pub(crate) fn pump(&mut self, session: u32, out: &mut impl Output) {
        let (mut delivering, _) = self.delivering();
        delivering.pump(session, out);
    }
}

impl Delivering<'_> {
    /// A live message: RETAIN only as published and only if the subscription asked for it.
    #[inline]
    pub(crate) fn live(
        &mut self,
        session: u32,
        options: Options,
        ids: &[u32],
        message: &Message<'_>,
        out: &mut impl Output,
    ) {
        if message.retain && !message.from_link {
            self.remember_live(session, message);
        }
        //= MQTT-3.3.1-12
        //= MQTT-3.3.1-13
        let retain = message.retain && options.retain_as_published();
        self.deliver(session, options, ids, message, retain, out);
    }

    /// One message to one session: sent, queued or shed under a name.
    pub(crate) fn deliver(
        &mut self,
        index: u32,
        options: Options,
        ids: &[u32],
        message: &Message<'_>,
        retain: bool,
        out: &mut impl Output,
    ) {
        let Some(session) = self.sessions.at(index) else { return };
        //= MQTT-3.8.3-3
        if options.no_local() && session.client_hash == message.publisher {
            return;
        }
        //= MQTT-3.8.4-8
        //= MQTT-4.8.2-3
        let qos = options.qos().min(message.qos);
        if options.restricted() && session.withheld(message.topic, options) {
            return self.counters.one(Counter::shed_delivery_denied);
        }
        if qos != Qos::AtMostOnce && session.number != 0 && !self.journal.grows() && !self.insists {
            self.refused = true;
            return self.counters.one(Counter::shed_log_full);
        }
        let conn = if session.online() { self.conns.at(session.conn) } else { None };
        let Some(conn) = conn else {
            return self.deliver_offline(index, qos, ids, message, retain);
        };
        let full = conn.out.len() > self.output_bytes_max;
        let waits = session.state.queued() > 0 || session.state.outgoing.owes();
        if qos == Qos::AtMostOnce && !waits {
            if full {
                self.counters.one(Counter::shed_slow_subscriber);
                return self.too_slow(index);
            }
        } else if waits || full || !session.state.room(conn.wire.send_max) {
            session.blocked |= full;
            return self.enqueue(index, qos, ids, message, retain);
        }
        let id = if qos == Qos::AtMostOnce {
            None
        } else {
            let kept = keep(&mut self.kept, self.pool, message, self.now.mono_us);
            let place = session.next_place();
            let delivery = Delivery { message: kept, qos, retain, ids: SmallVec::from_slice(ids), place };
            Some(session.state.outgoing.send(qos, delivery))
        };
        let start = conn.out.len();
        if !write(conn, self.encoded, message, (qos, retain, id, false), ids) {
            self.counters.one(Counter::shed_too_large);
            if let Some(delivery) = id.and_then(|id| take_back(session, id)) {
                self.pool.release(delivery.message);
            }
            return;
        }
        if session.number != 0
            && let Some(id) = id
            && let Some(delivery) = session.state.outgoing.last()
        {
            self.journal.slip(session.number, delivery, id.get());
            if qos == Qos::ExactlyOnce {
                self.journal.gate(conn, start, self.now.mono_us);
            }
        }
        self.counters.publish_sent(qos, message.payload.len());
        tell(conn, out);
    }

    fn deliver_offline(&mut self, index: u32, qos: Qos, ids: &[u32], message: &Message<'_>, retain: bool) {
        if qos == Qos::AtMostOnce {
            return self.counters.one(Counter::shed_offline_qos0);
        }
        self.enqueue(index, qos, ids, message, retain);
    }

    fn enqueue(&mut self, index: u32, qos: Qos, ids: &[u32], message: &Message<'_>, retain: bool) {
        let Some(session) = self.sessions.at(index) else { return };
        if self.scarce && !self.insists {
            self.refused |= qos != Qos::AtMostOnce && session.state.persistent();
            return self.counters.one(Counter::shed_memory_scarce);
        }
        let kept = keep(&mut self.kept, self.pool, message, self.now.mono_us);
        let place = session.next_place();
        let delivery = Delivery { message: kept, qos, retain, ids: SmallVec::from_slice(ids), place };
        match session.state.enqueue(delivery, &self.queue) {
            Ok(delivery) => self.journal.slip(session.number, delivery, 0),
            Err(delivery) => {
                self.pool.release(delivery.message);
                self.counters.one(Counter::shed_queue_full);
                self.too_slow(index);
            }
        }
    }

    /// Something for this session was shed: its client is disconnected, if that is what happens to slow ones.
    #[cold]
    fn too_slow(&mut self, index: u32) {
        if self.cuts
            && let Some(session) = self.sessions.at(index).filter(|session| session.online())
            && let Some(conn) = self.conns.at(session.conn).filter(|conn| !conn.cut)
        {
            conn.cut = true;
            self.cut.push(conn.id);
        }
    }

    /// Sends queued deliveries while there is room, after those that have to be sent again.
    pub(crate) fn pump(&mut self, index: u32, out: &mut impl Output) {
        self.send_again(index, out);
        let Some(session) = self.sessions.at(index) else { return };
        if session.state.queued() == 0 || session.state.outgoing.owes() || !session.online() {
            return;
        }
        let Some(conn) = self.conns.at(session.conn) else { return };
        let now_us = self.now.mono_us;
        loop {
            if conn.out.len() > self.output_bytes_max {
                session.blocked = true;
                break;
            }
            let (counters, pool, journal) = (&mut *self.counters, &mut *self.pool, &mut *self.journal);
            let number = session.number;
            let next = session.state.next(now_us, conn.wire.send_max, |dead| {
                //= MQTT-3.3.2-5
                counters.one(Counter::shed_expired);
                journal.gone(number, &dead);
                pool.release(dead.message);
            });
            let Some(delivery) = next else { break };
            let kept = delivery.message.clone();
            let (qos, retain, ids) = (delivery.qos, delivery.retain, delivery.ids.clone());
            let id = (qos != Qos::AtMostOnce).then(|| session.state.outgoing.send(qos, delivery));
            let start = conn.out.len();
            self.encoded.forget();
            let message = kept.message(now_us);
            let payload_bytes = message.payload.len();
            let written = write(conn, self.encoded, &message, (qos, retain, id, false), &ids);
            if let (Some(id), Some(delivery)) = (id, session.state.outgoing.last()) {
                if written {
                    self.journal.sent(index, number, delivery, id.get(), self.now);
                } else {
                    self.journal.gone(number, delivery);
                }
            }
            if written {
                self.counters.publish_sent(qos, payload_bytes);
                if qos == Qos::ExactlyOnce && number != 0 {
                    self.journal.gate(conn, start, now_us);
                }
            } else {
                self.counters.one(Counter::shed_too_large);
                id.and_then(|id| take_back(session, id));
            }
            self.pool.release(kept);
        }
        tell(conn, out);
    }

    /// The session was resumed: everything unfinished goes again.
    pub(crate) fn resend(&mut self, index: u32, out: &mut impl Output) {
        let Some(session) = self.sessions.at(index) else { return };
        let Some(conn) = self.conns.at(session.conn) else { return };
        for id in session.state.outgoing.begin_again() {
            let (version, reason) = (version(conn.wire.v5), mqtt::types::Reason::Success);
            self.counters.packet_sent(PacketType::Pubrel);
            encode::ack(&mut conn.out, version, encode::AckKind::Pubrel, id, reason);
        }
        tell(conn, out);
        self.pump(index, out);
    }

    /// Sends the messages that are owed on this connection, in order, with DUP.
    fn send_again(&mut self, index: u32, out: &mut impl Output) {
        let Some(session) = self.sessions.at(index) else { return };
        if !session.state.outgoing.owes() || !session.online() {
            return;
        }
        let Some(conn) = self.conns.at(session.conn) else { return };
        let now_us = self.now.mono_us;
        loop {
            if conn.out.len() > self.output_bytes_max {
                session.blocked = true;
                break;
            }
            let Some(sent) = session.state.outgoing.next_again(conn.wire.send_max) else { break };
            let id = sent.id;
            let Some(delivery) = &sent.delivery else { continue };
            //= MQTT-4.4.0-1
            //= MQTT-3.3.1-1
            let shape = (delivery.qos, delivery.retain, Some(id), true);
            //= MQTT-4.3.3-7
            let message = delivery.message.message(now_us);
            self.encoded.forget();
            if write(conn, self.encoded, &message, shape, &delivery.ids) {
                self.counters.publish_sent(delivery.qos, message.payload.len());
                continue;
            }
            //= MQTT-3.1.2-25
            self.counters.one(Counter::shed_too_large);
            self.journal.acked(session.number, id.get());
            if let Some(delivery) = take_back(session, id) {
                self.pool.release(delivery.message);
            }
        }
        tell(conn, out);
    }

    /// Another message follows: nothing encoded before is of use.
    pub(crate) fn next_message(&mut self) {
        self.encoded.forget();
        self.finish();
    }

    /// All who want the message at hand have it: records what has to be kept of it, and gives the shared copy back to
    /// the pool. True: a persistent session was refused.
    pub(crate) fn finish(&mut self) -> bool {
        if let Some(kept) = self.kept.take() {
            self.journal.message(&kept, self.now);
            self.pool.release(kept);
        }
        core::mem::take(&mut self.refused)
    }
}

fn keep(slot: &mut Option<Kept>, pool: &mut Pool, message: &Message<'_>, now_us: u64) -> Kept {
    slot.get_or_insert_with(|| pool.keep(message, now_us)).clone()
}

fn take_back(session: &mut crate::session::Session, id: PacketId) -> Option<Delivery> {
    match session.state.outgoing.puback(id) {
        Some(delivery) => Some(delivery),
        None => match session.state.outgoing.pubrec(id, true) {
            mqtt::window::Pubrec::Refused(delivery) => Some(delivery),
            _ => None,
        },
    }
}

/// Tells the shell about output, once until it takes it.
#[inline]
pub(crate) fn tell(conn: &mut Conn, out: &mut impl Output) {
    if !conn.told && !conn.sendable().is_empty() {
        conn.told = true;
        out.flush(conn.id);
    }
}

/// Appends one PUBLISH (QoS, RETAIN, packet id, DUP). False: it exceeds the client's Maximum Packet Size.
#[inline]
fn write(
    conn: &mut Conn,
    encoded: &mut Encoded,
    message: &Message<'_>,
    (qos, retain, id, dup): (Qos, bool, Option<PacketId>, bool),
    ids: &[u32],
) -> bool {
    let wire = conn.wire;
    if ids.is_empty() && !wire.single {
        let slot = encoded.shape(message, wire.v5, qos, retain);
        //= MQTT-3.1.2-24
        if slot.bytes.len() > wire.packet_bytes_max as usize {
            return false;
        }
        let start = conn.out.len();
        conn.out.extend_from_slice(&slot.bytes);
        if let Some(id) = id {
            let at = start + slot.id_at;
            conn.out[at..at + 2].copy_from_slice(&id.get().to_be_bytes());
        }
        conn.out[start] |= u8::from(dup) << 3;
        return true;
    }
    write_single(conn, message, (qos, retain, id, dup), if wire.v5 { ids } else { &[] })
}

/// The same for a packet that nobody else gets.
fn write_single(
    conn: &mut Conn,
    message: &Message<'_>,
    (qos, retain, id, dup): (Qos, bool, Option<PacketId>, bool),
    ids: &[u32],
) -> bool {
    let wire = conn.wire;
    let mut parts = parts(message, qos, retain, id, ids);
    parts.dup = dup;
    if let Phase::Open(open) = &conn.phase
        && let Some(mountpoint) = &open.mountpoint
    {
        parts.topic = mountpoint::strip(mountpoint, parts.topic);
    }
    if encode::publish_bytes(version(wire.v5), &parts) + ALIAS_BYTES > wire.packet_bytes_max as usize {
        return false;
    }
    if let Phase::Open(open) = &mut conn.phase {
        match open.protocol.alias_for(parts.topic) {
            AliasOut::Plain => {}
            AliasOut::Define(alias) => parts.topic_alias = Some(alias),
            AliasOut::Use(alias) => {
                parts.topic_alias = Some(alias);
                parts.topic = "";
            }
        }
    }
    encode::publish(&mut conn.out, version(wire.v5), &parts);
    true
}

/// A Topic Alias property.
const ALIAS_BYTES: usize = 3;

impl Shard {
    /// Stops consuming `conn`'s input for one more reason of [`pause`], and reading its socket.
    pub(crate) fn pause(&mut self, id: crate::surface::ConnId, why: u8, out: &mut impl Output) {
        if let Some(conn) = self.conns.get(id) {
            if conn.paused == 0 {
                out.read(id, false);
            }
            conn.paused |= why;
            if why == pause::HOP {
                self.counters.one(Counter::reads_paused);
            }
        }
    }

    /// Takes one reason back; without any left, what is unread is consumed in this turn.
    pub(crate) fn resume(&mut self, id: crate::surface::ConnId, why: u8, out: &mut impl Output) {
        let now_us = self.now.mono_us;
        if let Some(conn) = self.conns.get(id)
            && conn.paused & why != 0
        {
            conn.paused &= !why;
            if conn.paused == 0 {
                // Its silence was ours: the keep alive begins anew.
                conn.heard_us = now_us;
                out.read(id, true);
                self.resumed.push(id);
            }
        }
    }
}
