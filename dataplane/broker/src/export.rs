//! A session as bytes: what moves between nodes, into a snapshot, or into another number of shards. The shape
//! is final; ARCHITECTURE.md describes it. Ages travel, not clocks: whatever expires carries what is left of it.
//! Lives on the home shard. An export changes nothing; an import makes a session that has no connection.

use alloc::{boxed::Box, vec::Vec};

use mqtt::{
    session::WillMessage,
    topic::{Filter, SubscribeFilter},
    types::{PacketId, Qos},
    window::{Awaits, Receiving},
};
use smallvec::SmallVec;

use crate::{
    Shard, Timer,
    frame::{self, BadFrame, Fields, Kind, put_blob, put_message, put_text, put_u32, put_u64},
    groups::Act,
    interest::Dest,
    session::{Delivery, Session, SessionId, SharedSubscription},
    subscriptions::{Change, Options, Subscription},
    surface::Output,
};

/// Elements of one list in an export: no session can have more.
const ELEMENTS_MAX: u32 = 10_000_000;

impl Shard {
    /// Appends the session of `client` as one frame of kind Session. False: there is none here.
    pub fn export_session(&self, client: &str, out: &mut Vec<u8>) -> bool {
        let Some(id) = self.sessions.find(client) else { return false };
        let Some(session) = self.sessions.get(id) else { return false };
        let now_us = self.now.mono_us;
        let start = frame::begin(out, Kind::Session, 0);
        put_text(out, &session.client);
        put_u32(out, session.state.expiry_s);
        put_u64(out, left_ms(session.ends_us, now_us));
        put_u32(out, session.filters.len() as u32);
        for at in &session.filters {
            let subscription = self.subscriptions.subscription(*at, id.index);
            let (options, number) = subscription.map_or((Options::default(), 0), |s| (s.options, s.id));
            put_text(out, self.subscriptions.filter(*at));
            out.push(options.bits());
            put_u32(out, number);
        }
        put_u32(out, session.shared.len() as u32);
        for shared in &session.shared {
            put_text(out, &shared.group);
            put_text(out, &shared.filter);
            out.push(shared.options.bits());
            put_u32(out, shared.id);
        }
        put_handshakes(out, session, now_us);
        put_will(out, session, now_us);
        frame::finish(out, start);
        true
    }

    /// Makes the session of an exported frame. An existing session of that client id ends first.
    pub fn import_session(&mut self, bytes: &[u8], out: &mut impl Output) -> Result<(), BadFrame> {
        let (read, _) = frame::split(bytes)?;
        if read.kind != Kind::Session {
            return Err(BadFrame::Field("kind"));
        }
        let mut fields = Fields(read.body);
        let client = fields.text()?;
        let (expiry_s, left) = (fields.u32()?, fields.u64()?);
        if let Some(old) = self.sessions.find(client) {
            self.end_session(old, out);
        }
        let id = self.sessions.insert(client, expiry_s);
        let imported = self.import_into(id, left, &mut fields, out);
        if imported.is_err() {
            self.end_session(id, out);
        }
        imported
    }

    fn import_into(
        &mut self,
        id: SessionId,
        left: u64,
        fields: &mut Fields<'_>,
        out: &mut impl Output,
    ) -> Result<(), BadFrame> {
        let now_us = self.now.mono_us;
        for _ in 0..count(fields)? {
            let (filter, options, number) = (fields.text()?, fields.u8()?, fields.u32()?);
            let filter = self.parse(filter)?.as_str();
            let options = Options::from_bits(options);
            let subscription = Subscription { session: id.index, id: number, options };
            let (at, change, _) = self.subscriptions.insert(filter, subscription);
            if let Some(session) = self.sessions.get_mut(id) {
                session.filters.insert(at);
            }
            if change == Change::First {
                self.announce(filter, Dest::Shard(self.settings.shard.0), true);
            }
        }
        for _ in 0..count(fields)? {
            let (group, filter) = (fields.text()?, fields.text()?);
            let (options, number) = (Options::from_bits(fields.u8()?), fields.u32()?);
            let full = alloc::format!("$share/{group}/{filter}");
            let levels_max = usize::from(self.settings.mqtt.topic_levels_max) + 2;
            SubscribeFilter::parse(&full, levels_max).map_err(|_| BadFrame::Field("shared filter"))?;
            let shared =
                SharedSubscription { group: group.into(), filter: filter.into(), options, id: number, muted: false };
            self.tell_group(Act::Join, id, &shared, 0, out);
            if let Some(session) = self.sessions.get_mut(id) {
                session.shared.push(shared);
            }
        }
        self.import_handshakes(id, fields)?;
        let will = read_will(fields)?;
        let Some(session) = self.sessions.get_mut(id) else { return Err(BadFrame::Field("session")) };
        session.ends_us = from_ms(left, now_us);
        if let Some((will, delay_ms)) = will {
            session.state.will = Some(Box::new(will));
            session.will_due_us = from_ms(delay_ms, now_us).max(1);
            self.wheel.arm(session.will_due_us, Timer::Session(id));
        }
        if session.ends_us != u64::MAX {
            self.wheel.arm(session.ends_us, Timer::Session(id));
        }
        Ok(())
    }

    fn import_handshakes(&mut self, id: SessionId, fields: &mut Fields<'_>) -> Result<(), BadFrame> {
        let now_us = self.now.mono_us;
        let (mut incoming, mut outgoing, mut queue) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count(fields)? {
            incoming.push(packet_id(fields)?);
        }
        for _ in 0..count(fields)? {
            let packet = packet_id(fields)?;
            let awaits = match fields.u8()? {
                0 => Awaits::Puback,
                1 => Awaits::Pubrec,
                2 => Awaits::Pubcomp,
                _ => return Err(BadFrame::Field("handshake")),
            };
            let delivery = if awaits == Awaits::Pubcomp { None } else { Some(self.read_delivery(fields, now_us)?) };
            outgoing.push((packet, awaits, delivery));
        }
        for _ in 0..count(fields)? {
            queue.push(self.read_delivery(fields, now_us)?);
        }
        let limits = self.queue_limits();
        let Some(session) = self.sessions.get_mut(id) else { return Err(BadFrame::Field("session")) };
        incoming.into_iter().for_each(|packet| session.state.incoming.set(packet, Receiving::Accepted));
        for (packet, awaits, delivery) in outgoing {
            session.state.outgoing.restore(packet, awaits, delivery);
        }
        for delivery in queue {
            if session.state.enqueue(delivery, &limits).is_err() {
                self.counters.one(crate::counters::Counter::shed_queue_full);
            }
        }
        Ok(())
    }

    fn read_delivery(&mut self, fields: &mut Fields<'_>, now_us: u64) -> Result<Delivery, BadFrame> {
        let flags = fields.u8()?;
        let mut ids = SmallVec::new();
        for _ in 0..fields.u8()? {
            ids.push(fields.u32()?);
        }
        let blob = fields.blob()?;
        let (part, _) = frame::split(blob)?;
        let read = frame::read_message(&part)?;
        let qos = Qos::from_bits(flags & 3).ok_or(BadFrame::Field("qos"))?;
        let message = self.pool.keep(&read.message, now_us);
        Ok(Delivery { message, qos, retain: flags & 4 != 0, ids, place: 0 })
    }

    fn parse<'a>(&self, filter: &'a str) -> Result<Filter<'a>, BadFrame> {
        let levels_max = usize::from(self.settings.mqtt.topic_levels_max);
        Filter::parse(filter, levels_max).map_err(|_| BadFrame::Field("filter"))
    }
}

fn put_handshakes(out: &mut Vec<u8>, session: &Session, now_us: u64) {
    // An open obligation counts as accepted: the message was routed, and must not be again.
    let mut incoming: Vec<u16> = session.state.incoming.ids().map(|(id, _)| id).collect();
    incoming.sort_unstable();
    put_u32(out, incoming.len() as u32);
    incoming.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
    put_u32(out, session.state.outgoing.len() as u32);
    for sent in session.state.outgoing.unfinished() {
        out.extend_from_slice(&sent.id.get().to_le_bytes());
        out.push(match sent.awaits {
            Awaits::Puback => 0,
            Awaits::Pubrec => 1,
            Awaits::Pubcomp => 2,
        });
        if let Some(delivery) = &sent.delivery {
            put_delivery(out, delivery, now_us);
        }
    }
    put_u32(out, session.state.queued() as u32);
    session.state.waiting().for_each(|delivery| put_delivery(out, delivery, now_us));
}

fn put_delivery(out: &mut Vec<u8>, delivery: &Delivery, now_us: u64) {
    out.push(delivery.qos as u8 | u8::from(delivery.retain) << 2);
    let ids = &delivery.ids[..delivery.ids.len().min(usize::from(u8::MAX))];
    out.push(ids.len() as u8);
    ids.iter().for_each(|id| put_u32(out, *id));
    let mut message = Vec::new();
    put_message(&mut message, Kind::Message, 0, 0, &[], &delivery.message.message(now_us));
    put_blob(out, &message);
}

fn put_will(out: &mut Vec<u8>, session: &Session, now_us: u64) {
    let Some(will) = session.state.will.as_ref().filter(|_| session.will_due_us != 0) else { return out.push(0) };
    out.push(1);
    out.push(will.qos as u8 | u8::from(will.retain) << 2);
    put_u64(out, left_ms(session.will_due_us, now_us));
    put_u32(out, will.expiry_s.unwrap_or(u32::MAX));
    put_text(out, &will.topic);
    put_blob(out, &will.properties);
    put_blob(out, &will.payload);
}

fn read_will(fields: &mut Fields<'_>) -> Result<Option<(WillMessage, u64)>, BadFrame> {
    if fields.u8()? == 0 {
        return Ok(None);
    }
    let flags = fields.u8()?;
    let (delay_ms, expiry_s) = (fields.u64()?, fields.u32()?);
    let will = WillMessage {
        topic: fields.text()?.into(),
        properties: fields.blob()?.into(),
        payload: fields.blob()?.into(),
        qos: Qos::from_bits(flags & 3).ok_or(BadFrame::Field("qos"))?,
        retain: flags & 4 != 0,
        delay_s: 0,
        expiry_s: (expiry_s != u32::MAX).then_some(expiry_s),
    };
    Ok(Some((will, delay_ms)))
}

fn count(fields: &mut Fields<'_>) -> Result<u32, BadFrame> {
    let count = fields.u32()?;
    if count > ELEMENTS_MAX { Err(BadFrame::Field("count")) } else { Ok(count) }
}

fn packet_id(fields: &mut Fields<'_>) -> Result<PacketId, BadFrame> {
    let bytes = fields.bytes(2)?;
    PacketId::new(u16::from_le_bytes([bytes[0], bytes[1]])).ok_or(BadFrame::Field("packet id"))
}

fn left_ms(at_us: u64, now_us: u64) -> u64 {
    if at_us == u64::MAX { u64::MAX } else { at_us.saturating_sub(now_us).div_ceil(1000) }
}

fn from_ms(left_ms: u64, now_us: u64) -> u64 {
    if left_ms == u64::MAX { u64::MAX } else { now_us.saturating_add(left_ms.saturating_mul(1000)) }
}
