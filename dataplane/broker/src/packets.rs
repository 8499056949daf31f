//! Bytes of a connection to packets, and packets to the concept that owns them. Only dispatches.
//! Lives on every shard: before CONNECT on the accepting shard, after it on the home shard.

use alloc::vec::Vec;

use mqtt::{
    codec::{self, Ack, Packet, encode},
    connection::Misbehaved,
    types::{Malformed, PacketId, Reason, Version},
    window::Pubrec,
};

use crate::{
    Shard,
    conn::{Phase, pause},
    counters::{Counter, PacketType},
    deliver::tell,
    event::Event,
    lifecycle::close,
    session::SessionId,
    surface::{ConnId, Output},
};

/// What to do with the rest of the input after a packet.
enum Go {
    On,
    /// It waits for a server's word, and is read again.
    Held,
    /// The connection moved, closed or paused: what is left stays unread, or is gone.
    Stop,
}

impl Shard {
    /// Bytes of a connection arrived.
    //= MQTT-4.2-1
    // Whatever the transport is, all that is asked of it is a stream of bytes in order.
    pub(crate) fn received(&mut self, id: ConnId, bytes: &[u8], out: &mut impl Output) {
        self.counters.add(Counter::bytes_received, bytes.len() as u64);
        let now_us = self.now.mono_us;
        let Some(conn) = self.conns.get(id) else { return };
        conn.heard_us = now_us;
        match conn.phase {
            //= MQTT-3.1.4-6
            Phase::Closing => return,
            Phase::Outlet(link) | Phase::Requester(link) => return self.link_received(id, link, bytes, out),
            Phase::Opening | Phase::Open(_) => {}
        }
        if conn.paused != 0 {
            // Bytes that were on their way when reading stopped: bounded by the ring's buffers.
            return conn.unread.extend_from_slice(bytes);
        }
        if conn.unread.is_empty() {
            let used = self.consume(id, bytes, out);
            if let Some(conn) = self.conns.get(id)
                && matches!(conn.phase, Phase::Opening | Phase::Open(_))
            {
                conn.unread.extend_from_slice(&bytes[used..]);
            }
            return;
        }
        let mut joined = core::mem::take(&mut conn.unread);
        joined.extend_from_slice(bytes);
        self.consume_joined(id, joined, out);
    }

    /// Goes on with the input of a connection that was paused.
    pub(crate) fn consume_unread(&mut self, id: ConnId, out: &mut impl Output) {
        let Some(conn) = self.conns.get(id) else { return };
        if conn.paused == 0 && !conn.unread.is_empty() {
            let joined = core::mem::take(&mut conn.unread);
            self.consume_joined(id, joined, out);
        }
    }

    /// The client closed after its last packet: what was held back counts, whatever it was held back for, and waits for
    /// nobody any more. A publisher that sends, says goodbye and closes loses nothing because a mailbox was full.
    pub(crate) fn consume_rest(&mut self, id: ConnId, out: &mut impl Output) {
        if let Some(conn) = self.conns.get(id) {
            conn.ending = true;
        }
        while let Some(conn) = self.conns.get(id)
            && !conn.unread.is_empty()
            && !conn.parked()
        {
            let before = conn.unread.len();
            conn.paused = 0;
            self.consume_unread(id, out);
            if self.conns.get(id).is_none_or(|conn| conn.unread.len() == before) {
                break;
            }
        }
    }

    fn consume_joined(&mut self, id: ConnId, mut joined: Vec<u8>, out: &mut impl Output) {
        let used = self.consume(id, &joined, out);
        let Some(conn) = self.conns.get(id) else { return };
        if !matches!(conn.phase, Phase::Opening | Phase::Open(_)) {
            return;
        }
        joined.drain(..used);
        // An idle connection owns no buffer.
        if !joined.is_empty() {
            conn.unread = joined;
        }
    }

    /// Handles complete packets at the front of `bytes`; returns how many bytes they took.
    fn consume(&mut self, id: ConnId, bytes: &[u8], out: &mut impl Output) -> usize {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            let Some(conn) = self.conns.get(id) else { return bytes.len() };
            let (version, session) = match &conn.phase {
                Phase::Open(open) => (open.protocol.version, open.session),
                Phase::Opening => return used + self.consume_connect(id, rest, out),
                _ => return bytes.len(),
            };
            if conn.paused != 0 {
                return used;
            }
            let watched = conn.watched && conn.hold.is_none();
            let raw = match codec::split(rest, self.settings.mqtt.max_packet_bytes as usize) {
                Ok(Some(raw)) => raw,
                Ok(None) => return used,
                Err(malformed) => {
                    self.malformed(id, malformed, out);
                    return bytes.len();
                }
            };
            self.counters.packet_received(raw.first);
            if watched {
                out.packet(id, &rest[..raw.total]);
            }
            let go = match codec::decode(version, raw) {
                Ok(packet) => self.packet(id, session, &packet, out),
                //= MQTT-3.1.0-2
                // In whatever form: nothing in it can be right.
                Err(_) if raw.first >> 4 == 1 => {
                    let why = "a second CONNECT";
                    self.misbehaved(id, Misbehaved { reason: Reason::ProtocolError, why }, out);
                    Go::Stop
                }
                Err(malformed) => {
                    self.malformed(id, malformed, out);
                    Go::Stop
                }
            };
            match go {
                Go::On => used += raw.total,
                Go::Held => {
                    self.counters.packet_held(raw.first);
                    return used;
                }
                Go::Stop => return bytes.len(),
            }
            if self.rates.any() && raw.first >> 4 == 3 {
                self.pace(id, raw.total, out);
            }
        }
    }

    /// Input of a connection that has not sent a complete CONNECT. Returns the bytes that were consumed.
    fn consume_connect(&mut self, id: ConnId, bytes: &[u8], out: &mut impl Output) -> usize {
        if self.conns.get(id).is_some_and(|conn| conn.exchange.is_some()) {
            return self.consume_auth(id, bytes, out);
        }
        //= MQTT-3.1.0-1
        if bytes.first().is_some_and(|first| first >> 4 != 1) {
            self.refuse_bytes(id, bytes, Malformed::PacketType(bytes[0] >> 4), out);
            return bytes.len();
        }
        let raw = match codec::split(bytes, self.settings.mqtt.connect_bytes_max as usize) {
            Ok(Some(raw)) => raw,
            Ok(None) => return 0,
            Err(malformed) => {
                self.refuse_bytes(id, bytes, malformed, out);
                return bytes.len();
            }
        };
        let total = raw.total;
        match codec::decode(Version::V5, raw) {
            Ok(Packet::Connect(connect)) => self.packet_connect(id, &connect, (bytes, total), out),
            Ok(_) => self.refuse_bytes(id, bytes, Malformed::PacketType(1), out),
            Err(malformed) => self.refuse_bytes(id, bytes, malformed, out),
        }
        let Some(conn) = self.conns.get(id) else { return bytes.len() };
        if let (Phase::Opening, Some(exchange)) = (&conn.phase, &mut conn.exchange) {
            exchange.keep_connect(&bytes[..total]);
            return total;
        }
        match conn.phase {
            Phase::Open(_) => total + self.consume(id, &bytes[total..], out),
            _ if conn.parked() => 0,
            _ => bytes.len(),
        }
    }

    /// Bytes that are no CONNECT: close, with a CONNACK where one can be understood and its version has words for it.
    fn refuse_bytes(&mut self, id: ConnId, bytes: &[u8], malformed: Malformed, out: &mut impl Output) {
        self.counters.one(Counter::packets_malformed);
        let claimed = claimed_version(bytes);
        self.watch_connect(id, ("", claimed.unwrap_or(Version::V311)), bytes, out);
        let Some(conn) = self.conns.get(id) else { return };
        let why = alloc::format!("before CONNECT: {malformed}");
        out.event(Event::Refused { who: conn.who(""), reason: malformed.reason(), why: why.into() });
        //= MQTT-3.1.2-2
        //= MQTT-3.1.3-8
        //= MQTT-3.2.2-7
        //= MQTT-3.1.4-1
        //= MQTT311-3.1.4-1
        if let Some(version) = claimed {
            let properties = codec::ConnackProperties::default();
            let connack = codec::Connack { session_present: false, reason: malformed.reason(), properties };
            self.counters.packet_sent(PacketType::Connack);
            encode::connack(&mut conn.out, version, &connack);
        }
        close(conn, out);
    }

    fn malformed(&mut self, id: ConnId, malformed: Malformed, out: &mut impl Output) {
        if let Some(conn) = self.conns.get(id) {
            let (who, why) = (conn.who_in(&self.sessions), alloc::format!("{malformed}"));
            out.event(Event::Refused { who, reason: malformed.reason(), why: why.into() });
        }
        let misbehaved = Misbehaved { reason: malformed.reason(), why: "malformed bytes" };
        self.misbehaved(id, misbehaved, out);
    }

    /// One packet of an open connection.
    #[inline]
    fn packet(&mut self, id: ConnId, session: SessionId, packet: &Packet<'_>, out: &mut impl Output) -> Go {
        let result = match packet {
            Packet::Publish(publish) => self.packet_publish(id, session, publish, out),
            Packet::Puback(ack) => {
                self.packet_puback(session, ack, out);
                Ok(())
            }
            other => self.packet_rare(id, session, other, out),
        };
        if let Err(misbehaved) = result {
            self.misbehaved(id, misbehaved, out);
            return Go::Stop;
        }
        match self.conns.get(id) {
            Some(conn) if !matches!(conn.phase, Phase::Open(_)) => Go::Stop,
            Some(conn) if conn.paused & pause::ACCESS != 0 => Go::Held,
            Some(_) => Go::On,
            None => Go::Stop,
        }
    }

    fn packet_rare(
        &mut self,
        id: ConnId,
        session: SessionId,
        packet: &Packet<'_>,
        out: &mut impl Output,
    ) -> Result<(), Misbehaved> {
        let Some(open) = self.conns.open(id) else { return Ok(()) };
        open.protocol.check(packet)?;
        let version = open.protocol.version;
        match packet {
            Packet::Pubrec(ack) => self.packet_pubrec(id, version, session, ack, out),
            Packet::Pubrel(ack) => self.packet_pubrel(id, version, session, ack.packet_id, out),
            Packet::Pubcomp(ack) => {
                if let Some(session) = self.sessions.get_mut(session)
                    && session.state.outgoing.pubcomp(ack.packet_id)
                {
                    self.counters.message_acked();
                    self.journal.acked(session.number, ack.packet_id.get());
                }
                self.pump(session.index, out);
            }
            Packet::Subscribe(subscribe) => return self.packet_subscribe(id, session, subscribe, out),
            Packet::Unsubscribe(unsubscribe) => self.packet_unsubscribe(id, session, unsubscribe, out),
            //= MQTT-3.12.4-1
            Packet::Pingreq => self.answer(id, PacketType::Pingresp, out, encode::pingresp),
            Packet::Disconnect(disconnect) => return self.packet_disconnect(id, disconnect, out),
            Packet::Auth(auth) => return self.packet_auth(id, auth, out),
            _ => {}
        }
        Ok(())
    }

    fn packet_puback(&mut self, id: SessionId, ack: &Ack<'_>, out: &mut impl Output) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        //= MQTT-4.4.0-2
        //= MQTT-4.8.2-6
        // With whatever reason: it is not sent again, and to nobody else.
        if let Some(delivery) = session.state.outgoing.puback(ack.packet_id) {
            self.counters.message_acked();
            if delivery.recorded() {
                self.journal.acked(session.number, ack.packet_id.get());
            }
            self.pool.release(delivery.message);
        }
        if session.state.queued() > 0 || session.state.outgoing.owes() {
            self.pump(id.index, out);
        }
    }

    fn packet_pubrec(
        &mut self,
        id: ConnId,
        version: Version,
        session: SessionId,
        ack: &Ack<'_>,
        out: &mut impl Output,
    ) {
        let Some(state) = self.sessions.get_mut(session) else { return };
        let reason = match state.state.outgoing.pubrec(ack.packet_id, ack.reason.is_failure()) {
            Pubrec::Release(delivery) => {
                self.journal.received(state.number, ack.packet_id.get());
                self.pool.release(delivery.message);
                Reason::Success
            }
            Pubrec::Again => Reason::Success,
            //= MQTT-4.3.3-4
            //= MQTT-4.8.2-6
            Pubrec::Refused(delivery) => {
                self.journal.acked(state.number, ack.packet_id.get());
                self.pool.release(delivery.message);
                return self.pump(session.index, out);
            }
            Pubrec::Unknown => Reason::PacketIdNotFound,
        };
        let packet = ack.packet_id;
        self.gate(id, session);
        let write = |bytes: &mut Vec<u8>| encode::ack(bytes, version, encode::AckKind::Pubrel, packet, reason);
        self.answer(id, PacketType::Pubrel, out, write);
    }

    fn packet_pubrel(
        &mut self,
        id: ConnId,
        version: Version,
        session: SessionId,
        packet: PacketId,
        out: &mut impl Output,
    ) {
        //= MQTT-4.3.3-12
        //= MQTT-4.3.3-13
        let known = self.sessions.get_mut(session).is_some_and(|s| s.state.incoming.release(packet));
        if known && let Some(session) = self.sessions.get(session) {
            self.journal.released(session.number, packet.get());
        }
        self.gate(id, session);
        let reason = if known { Reason::Success } else { Reason::PacketIdNotFound };
        //= MQTT-4.3.3-11
        let write = |bytes: &mut Vec<u8>| encode::ack(bytes, version, encode::AckKind::Pubcomp, packet, reason);
        self.answer(id, PacketType::Pubcomp, out, write);
    }

    /// What is written to a connection from now on leaves when what was recorded so far is kept, if its session is.
    pub(crate) fn gate(&mut self, id: ConnId, session: SessionId) {
        if self.journal.on()
            && self.sessions.get(session).is_some_and(|session| session.number != 0)
            && let Some(conn) = self.conns.get(id)
        {
            let at = conn.out.len();
            self.journal.gate(conn, at, self.now.mono_us);
        }
    }

    /// Writes an answer that waits for nothing. A client that asks and does not read is not read either.
    fn answer(&mut self, id: ConnId, kind: PacketType, out: &mut impl Output, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(conn) = self.conns.get(id) else { return };
        self.counters.packet_sent(kind);
        write(&mut conn.out);
        tell(conn, out);
        self.brake_output(id, out);
    }

    /// Stops reading a client whose answers pile up because it does not read them.
    pub(crate) fn brake_output(&mut self, id: ConnId, out: &mut impl Output) {
        let output_bytes_max = self.settings.limits.output_bytes_max as usize;
        let Some(conn) = self.conns.get(id) else { return };
        if conn.out.len() > output_bytes_max && conn.paused & pause::OUTPUT == 0 {
            self.pause(id, pause::OUTPUT, out);
            self.drowned.push(id);
        }
    }
}

/// The version that a CONNECT claims which cannot be decoded: in which form its sender understands a refusal.
/// A level that does not exist gets the form of the nearest version that does.
fn claimed_version(bytes: &[u8]) -> Option<Version> {
    let length_bytes = 1 + bytes.iter().skip(1).take(3).take_while(|byte| **byte & 0x80 != 0).count();
    let body = bytes.get(1 + length_bytes..)?;
    // mosquitto's bridges set the highest bit of the level.
    let level = |at: usize| body.get(at).map(|level| level & 0x7f);
    if body.starts_with(b"\0\x04MQTT") {
        return level(6).map(|level| if level < 5 { Version::V311 } else { Version::V5 });
    }
    if body.starts_with(b"\0\x06MQIsdp") { Some(Version::V31) } else { None }
}
