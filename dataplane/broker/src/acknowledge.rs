//! What becomes of a publish after it was routed: destinations report on its obligation, its answer leaves in order, is refused,
//! or is overdue. Lives on the home shard of the publisher; the reports of other shards come here, and ours go to them.

use mqtt::{
    codec::{
        Publish,
        encode::{self, AckKind},
    },
    connection::Misbehaved,
    types::{PacketId, Qos, Reason, Version},
    window::Receiving,
};

use crate::{
    Shard,
    conn::{Ack, pause},
    counters::Counter,
    deliver::tell,
    frame::{self, Kind},
    journal::{Again, record::Stream},
    obligation::{Outcome, Waiter},
    publish::Routed,
    session::SessionId,
    surface::{ConnId, Output},
};

impl Shard {
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
        //= MQTT-4.3.3-9
        let refused = routed.refused && routed.token == 0;
        if qos2
            && !refused
            && let Some(session) = self.sessions.get_mut(session)
        {
            let state = if routed.token == 0 { Receiving::Accepted } else { Receiving::Open(routed.token) };
            session.state.incoming.set(packet, state);
        }
        let reason = match (routed.refused, routed.matched) {
            (true, _) => Reason::QuotaExceeded,
            (false, true) => Reason::Success,
            (false, false) => Reason::NoMatchingSubscribers,
        };
        let ready = (routed.token == 0).then_some(reason);
        if refused {
            return self.refuse_ack(id, Ack { packet, qos2, ready }, out);
        }
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
        if let Some(packet) = publish.packet_id {
            self.refuse_ack(id, Ack { packet, qos2: publish.qos == Qos::ExactlyOnce, ready: Some(reason) }, out);
        }
        Ok(())
    }

    /// Queues an acknowledgement that says no. A client of 3.x, which cannot be told, is not read any more: its connection is closed when
    /// the turn of this one comes, so that it has the others and does not send them again, for ever.
    fn refuse_ack(&mut self, id: ConnId, ack: Ack, out: &mut impl Output) {
        let Some(open) = self.conns.open(id) else { return };
        open.acks.push(ack);
        if open.protocol.version != Version::V5 {
            self.pause(id, pause::REFUSED, out);
        }
        self.send_acks(id, out);
    }

    /// Writes every acknowledgement that is due, in the order in which the publishes came.
    pub(crate) fn send_acks(&mut self, id: ConnId, out: &mut impl Output) {
        let Some(conn) = self.conns.get(id) else { return };
        let crate::conn::Phase::Open(open) = &mut conn.phase else { return };
        let version = open.protocol.version;
        //= MQTT-4.6.0-2
        //= MQTT-4.6.0-3
        while let Some((ack, reason)) = open.acks.next_ready() {
            //= MQTT311-3.3.5-2
            //= MQTT311-4.8.0-2
            if reason.is_failure() && version != Version::V5 {
                return self.misbehaved(id, Misbehaved { reason, why: "a refused publish" }, out);
            }
            //= MQTT-3.3.4-1
            //= MQTT-4.3.2-4
            //= MQTT-4.3.3-8
            let kind = if ack.qos2 { AckKind::Pubrec } else { AckKind::Puback };
            self.counters.packet_sent(kind.into());
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
            if outcome.reason.is_failure() {
                self.counters.one(Counter::obligations_refused);
            }
            self.settle(waiter, outcome, out);
        }
    }

    /// The waiter of an obligation gets its answer.
    pub(crate) fn settle(&mut self, waiter: Waiter, outcome: Outcome, out: &mut impl Output) {
        match waiter {
            Waiter::Publish { conn, ack, session, packet, qos2, unfinished } => {
                if let Some((stream, sequence)) = unfinished {
                    self.publish_finished(stream, sequence);
                }
                self.settle_publish(conn, ack, (session, packet, qos2), outcome, out);
            }
            Waiter::Repeated { stream, sequence, session, packet, restoring } => {
                self.repeated(stream, sequence, (session, packet, restoring), outcome);
            }
            Waiter::Chosen { stream, sequence } => self.chosen_settled(stream, sequence, outcome),
            Waiter::Restored => {}
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
        let mut untold = false;
        if qos2 && let Some(state) = self.sessions.get_mut(session) {
            if refused {
                // The client may send it again under a new id; this one is free (4.3.3).
                state.state.incoming.release(packet);
                self.journal.released(state.number, packet.get());
                // A log that does not hear of it brings the id back after a crash, and a client that had forgotten it would
                // never release it. It finds out when it sends the message again.
                untold = state.number != 0 && self.journal.on() && !self.journal.records();
                self.gate(conn, session);
            } else {
                state.state.incoming.set(packet, Receiving::Accepted);
            }
        }
        let Some(open) = self.conns.open(conn) else { return };
        if outcome.disconnect || untold {
            return self.misbehaved(conn, Misbehaved { reason: outcome.reason, why: "a refused publish" }, out);
        }
        open.acks.settle(ack, outcome.reason);
        if refused && open.protocol.version != Version::V5 {
            self.pause(conn, pause::REFUSED, out);
        }
        self.send_acks(conn, out);
    }

    /// Every destination has taken a publish, or it was refused: it is not repeated.
    pub(crate) fn publish_finished(&mut self, stream: Stream, sequence: u64) {
        if let Some(unfinished) = self.journal.finished(stream, sequence) {
            self.pool.release(unfinished.kept);
        }
    }

    /// A publish of an earlier life, or a will, has reached its destinations; or it is tried again later.
    fn repeated(
        &mut self,
        stream: Stream,
        sequence: u64,
        (session, packet, restoring): (Option<SessionId>, u16, bool),
        outcome: Outcome,
    ) {
        if restoring && let Some(restoring) = &mut self.restoring {
            restoring.open -= 1;
        }
        // A will that was refused somewhere is not sent twice elsewhere.
        if outcome.reason.is_failure() && stream.incarnation != self.origin.incarnation {
            return self.journal.again.push(Again::Publish(stream, sequence, session));
        }
        self.publish_finished(stream, sequence);
        if let (Some(session), Some(packet)) = (session.and_then(|id| self.sessions.get_mut(id)), PacketId::new(packet))
            && session.state.incoming.state(packet).is_some()
        {
            session.state.incoming.set(packet, Receiving::Accepted);
        }
    }

    /// An obligation was not met in time. A QoS 2 publish whose client has gone, or cannot be told, stays open: it was
    /// routed, and must not be again when it comes again.
    pub(crate) fn obligation_overdue(&mut self, token: u64, out: &mut impl Output) {
        let Some(waiter) = self.obligations.waiter(token) else { return };
        self.counters.one(Counter::obligations_timed_out);
        if matches!(waiter, Waiter::Repeated { .. } | Waiter::Chosen { .. } | Waiter::Restored) {
            // Nobody can be told, and it may arrive yet.
            let deadline_us = self.obligation_deadline_us();
            return self.obligations.postpone(token, deadline_us);
        }
        if let Waiter::Publish { conn, qos2: true, .. } = waiter {
            let version = self.conns.open(conn).map(|open| open.protocol.version);
            if version != Some(Version::V5) {
                let deadline_us = self.obligation_deadline_us();
                self.obligations.postpone(token, deadline_us);
                let why = "a publish that was not kept in time";
                return self.misbehaved(conn, Misbehaved { reason: Reason::QuotaExceeded, why }, out);
            }
        }
        self.obligations.remove(token);
        self.settle(waiter, Outcome::refused(Reason::QuotaExceeded), out);
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
