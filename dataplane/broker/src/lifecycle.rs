//! How connections and sessions end on their home shard: goodbye, misbehaviour, silence, expiry, the end of the node. How they
//! begin is the matter of `connect.rs`. Always true: what a connection still owes is settled before its session forgets it.

use alloc::{borrow::Cow, vec::Vec};

use mqtt::{
    codec::{Connack, ConnackProperties, Disconnect, encode},
    connection::Misbehaved,
    types::Reason,
};

use crate::{
    Shard, Timer,
    conn::{Conn, Phase},
    counters::{Counter, PacketType},
    event::Event,
    groups::Act,
    plant::Plant,
    session::{OFFLINE, SessionId},
    sizes::{last_words, sent_away},
    surface::{Cause, ConnId, Output},
};

impl Shard {
    /// DISCONNECT of a client.
    pub(crate) fn packet_disconnect(
        &mut self,
        id: ConnId,
        disconnect: &Disconnect<'_>,
        out: &mut impl Output,
    ) -> Result<(), Misbehaved> {
        let grant = self.grant();
        let Some(open) = self.conns.open(id) else { return Ok(()) };
        let session = open.session;
        if let Some(expiry_s) = disconnect.session_expiry_s {
            open.protocol.change_expiry(expiry_s, &grant)?;
            let expiry_s = open.protocol.session_expiry_s;
            if let Some(session) = self.sessions.get_mut(session) {
                session.state.expiry_s = expiry_s;
            }
        }
        //= MQTT-3.14.4-3
        if disconnect.reason == Reason::Success
            && !self.planted(Plant::WillAfterGoodbye)
            && let Some(open) = self.conns.open(id)
        {
            //= MQTT-3.1.2-10
            open.goodbye = true;
        }
        self.counters.one(Counter::disconnected_normal);
        self.leave(id, "DISCONNECT", out);
        if let Some(conn) = self.conns.get(id) {
            close(conn, out);
        }
        Ok(())
    }

    /// A connection broke the protocol: DISCONNECT with the reason (MQTT 5), then close.
    pub(crate) fn misbehaved(&mut self, id: ConnId, misbehaved: Misbehaved, out: &mut impl Output) {
        // What is being closed has heard its last words, or must not hear any.
        let Some(conn) = self.conns.get(id).filter(|conn| !matches!(conn.phase, Phase::Closing)) else { return };
        let who = conn.who_in(&self.sessions);
        //= MQTT-3.14.0-1
        if let Phase::Open(open) = &conn.phase
            && conn.connack_until > self.journal.durable()
        {
            let (version, properties) = (open.protocol.version, ConnackProperties::default());
            let connack = Connack { session_present: false, reason: misbehaved.reason, properties };
            self.counters.packet_sent(PacketType::Connack);
            encode::connack(conn.farewell(), version, &connack);
        } else if conn.wire.v5 {
            self.counters.packet_sent(PacketType::Disconnect);
            last_words(conn, misbehaved);
        }
        self.counters.one(match misbehaved.reason {
            Reason::MalformedPacket | Reason::PacketTooLarge => Counter::packets_malformed,
            Reason::KeepAliveTimeout => Counter::keep_alive_timeout,
            Reason::MaximumConnectTime => Counter::clients_expired,
            Reason::QuotaExceeded => Counter::quota_exceeded,
            Reason::NotAuthorized => Counter::connections_not_authorized,
            Reason::AdministrativeAction => Counter::clients_dismissed,
            _ => Counter::protocol_errors,
        });
        out.event(Event::Refused { who, reason: misbehaved.reason, why: Cow::Borrowed(misbehaved.why) });
        //= MQTT-4.13.1-1
        //= MQTT-4.13.2-1
        self.leave(id, misbehaved.why, out);
        if let Some(conn) = self.conns.get(id) {
            close(conn, out);
        }
    }

    /// The transport is gone.
    pub(crate) fn closed(&mut self, id: ConnId, cause: Cause, out: &mut impl Output) {
        let why = match cause {
            Cause::Eof => "the client closed the connection",
            Cause::Error => "the connection broke",
            Cause::Ours => "closed by this node",
        };
        if cause == Cause::Eof {
            self.consume_rest(id, out);
        }
        if self.conns.get(id).is_some_and(|conn| conn.is_open()) {
            match cause {
                Cause::Eof => self.counters.one(Counter::disconnected_closed),
                Cause::Error => self.counters.one(Counter::disconnected_broken),
                // Whoever asked for it has counted why.
                Cause::Ours => {}
            }
        }
        self.leave(id, why, out);
        self.link_closed(id, out);
        self.conns.remove(id);
    }

    /// Separates a connection from its session; the session goes on, waits or ends.
    pub(crate) fn leave(&mut self, id: ConnId, why: &str, out: &mut impl Output) {
        let Some(conn) = self.conns.get(id) else { return };
        if !matches!(conn.phase, Phase::Open(_)) {
            return;
        }
        let Phase::Open(open) = core::mem::replace(&mut conn.phase, Phase::Closing) else { return };
        self.counters.one(Counter::client_disconnected);
        if let Some(link) = open.routes {
            self.route_connection_gone(link, id);
        }
        let now_us = self.now.mono_us;
        let Some(session) = self.sessions.get_mut(open.session) else { return };
        session.conn = OFFLINE;
        session.blocked = false;
        if let Some(conn) = self.conns.get(id) {
            out.event(Event::Disconnected { who: conn.who_of(session), why });
        }
        if self.settings.flapping_detect.enable {
            self.flapping.count(&session.client, &self.settings.flapping_detect, self.now, &mut self.counters, out);
        }
        if open.goodbye {
            session.state.will = None;
        }
        let delay_us = session.state.will_delay_us();
        if session.state.will.is_some() {
            session.will_due_us = (now_us + delay_us).max(1);
        }
        let expiry_s = session.state.expiry_s;
        //= MQTT-4.1.0-2
        session.ends_us = match expiry_s {
            u32::MAX => u64::MAX,
            s => now_us + u64::from(s) * 1_000_000,
        };
        let (ends_us, will) = (session.ends_us, session.state.will.is_some());
        let due_ms = if will { self.now.wall_of_us(session.will_due_us) } else { 0 };
        self.journal.left(session.number, self.now.wall_of_us(ends_us), due_ms);
        let shared = session.shared.clone();
        for shared in &shared {
            self.tell_group(Act::Offline, open.session, shared, 0, out);
        }
        if expiry_s == 0 {
            //= MQTT-3.1.2-23
            return self.end_session(open.session, out);
        }
        if will && delay_us == 0 {
            self.publish_will(open.session, out);
        } else if will {
            self.wheel.arm(now_us + delay_us, Timer::Session(open.session));
        }
        if ends_us != u64::MAX {
            self.wheel.arm(ends_us, Timer::Session(open.session));
        }
    }

    /// Ends a session: its will, its subscriptions, what it had queued.
    pub(crate) fn end_session(&mut self, id: SessionId, out: &mut impl Output) {
        self.publish_will(id, out);
        //= MQTT311-3.1.2-7
        // Retained values are those of their topics, and stay.
        self.unsubscribe_all(id, out);
        let Some(mut session) = self.sessions.remove(id) else { return };
        self.journal.ended(session.number);
        let mut lost = 0;
        //= MQTT-4.8.2-5
        // Also what it had as a member of a group.
        for delivery in session.state.undelivered() {
            lost += 1;
            self.pool.release(delivery.message);
        }
        self.counters.add(Counter::shed_session_ended, lost);
    }

    /// A deadline of a session has come: its will, its end, or a later one of them.
    pub(crate) fn session_timer(&mut self, id: SessionId, out: &mut impl Output) {
        let now_us = self.now.mono_us;
        let Some(session) = self.sessions.get(id) else { return };
        //= MQTT-4.1.0-1
        if session.online() {
            return;
        }
        let (ends_us, will_due_us) = (session.ends_us, session.will_due_us);
        if will_due_us != 0 && will_due_us <= now_us {
            self.publish_will(id, out);
        }
        //= MQTT-4.1.0-2
        if ends_us <= now_us {
            self.counters.one(Counter::session_expired);
            self.end_session(id, out);
        }
    }

    /// A deadline of a connection has come: no CONNECT, or silence.
    pub(crate) fn conn_timer(&mut self, id: ConnId, out: &mut impl Output) {
        let now_us = self.now.mono_us;
        let Some(conn) = self.conns.get(id).filter(|conn| conn.timer_us <= now_us) else { return };
        match &conn.phase {
            Phase::Opening if conn.parked() || conn.exchange.is_some() => self.verdict_overdue(id, out),
            Phase::Opening => {
                self.counters.one(Counter::connect_timeout);
                close(conn, out);
            }
            Phase::Open(open) => {
                let expires_us = open.expires_us;
                if expires_us <= now_us {
                    let reason = Reason::MaximumConnectTime;
                    return self.misbehaved(id, Misbehaved { reason, why: "what let it in is no longer valid" }, out);
                }
                let exchange_us = conn.exchange.as_ref().map_or(u64::MAX, |exchange| exchange.until_us);
                if exchange_us <= now_us {
                    return self.exchange_overdue(id, out);
                }
                let expires_us = expires_us.min(exchange_us);
                let silence_us = match open.protocol.keep_alive_ms {
                    0 => u64::MAX,
                    keep_alive_ms => keep_alive_ms * 1000,
                };
                let due_us = conn.heard_us.saturating_add(silence_us);
                // Input that we did not read because of a full mailbox is not silence.
                if due_us <= now_us && conn.paused == 0 {
                    let reason = Reason::KeepAliveTimeout;
                    return self.misbehaved(id, Misbehaved { reason, why: "keep alive timeout" }, out);
                }
                let due_us = due_us.max(now_us + 1_000_000).min(expires_us);
                // What fired may have been the end of an exchange that is over.
                match due_us {
                    u64::MAX => conn.timer_us = u64::MAX,
                    _ => self.arm_conn(id, due_us),
                }
            }
            _ => {}
        }
    }

    /// This node stops: no CONNECT is accepted any more, and every client is told.
    pub(crate) fn drain(&mut self, out: &mut impl Output) {
        self.draining = true;
        let ids: Vec<ConnId> = self.conns.ids().collect();
        for id in ids {
            let Some(conn) = self.conns.get(id) else { continue };
            let greeted = conn.connack_until <= self.journal.durable();
            if conn.wire.v5 && greeted && matches!(conn.phase, Phase::Open(_)) {
                self.counters.packet_sent(PacketType::Disconnect);
                sent_away(conn, self.settings.mqtt.server_reference.as_deref());
            }
            let open = conn.is_open();
            self.link_goodbye(id);
            self.counters.add(Counter::disconnected_shutdown, u64::from(open));
            self.leave(id, "this node is stopping", out);
            if let Some(conn) = self.conns.get(id) {
                close(conn, out);
            }
        }
    }

    /// A wall time as a monotonic deadline; `u64::MAX` stays.
    pub(crate) fn mono_of_ms(&self, wall_ms: u64) -> u64 {
        let left_ms = wall_ms.saturating_sub(self.now.wall_ms);
        self.now.mono_us.saturating_add(left_ms.saturating_mul(1000))
    }
}

/// Closes after the output is flushed. The entry stays until the shell reports the end.
pub(crate) fn close(conn: &mut Conn, out: &mut impl Output) {
    //= MQTT-3.14.4-1
    //= MQTT-3.14.4-2
    //= MQTT-4.13.2-1
    conn.phase = Phase::Closing;
    conn.unread = Vec::new();
    conn.farewell();
    out.close(conn.id);
}
