//! Records: what a shard writes to its log, and how they are read again. A record is a frame (ARCHITECTURE.md 9.2)
//! with a kind of its own space; the page with all bodies is ARCHITECTURE.md 9.6. Numbers are final.
//! A record says what is true now or takes something away, so a reader may see the same fact twice: records from
//! before a checkpoint do no harm, and a record about something unknown says nothing.

use alloc::vec::Vec;

use mqtt::{session::WillMessage, types::Qos};

use crate::frame::{self, BadFrame, Fields, Message, MessageId, put_blob, put_text};

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Tag {
    /// How far the counters of the shard have come.
    Clock = 32,
    /// A session as a whole; replaces what was known of it.
    Session = 33,
    /// A session has a connection.
    Opened = 34,
    /// A session has lost its connection.
    Left = 35,
    /// A session has ended.
    Ended = 36,
    /// A subscription is made or changed.
    Subscribed = 37,
    /// A subscription is gone.
    Unsubscribed = 38,
    /// A message for sessions of this shard.
    Message = 39,
    /// The message of queued deliveries that follow.
    Body = 40,
    /// A queued delivery.
    Queued = 41,
    /// A queued delivery got a packet id.
    Sent = 42,
    /// A queued delivery was shed.
    Gone = 43,
    /// A delivery with a packet id is finished.
    Acked = 44,
    /// PUBREC came for a delivery.
    Received = 45,
    /// A publish of this shard that has to reach all its destinations.
    Publish = 46,
    /// It has.
    Finished = 47,
    /// A received packet id is free again.
    Released = 48,
    /// How far a stream was taken.
    Watermark = 49,
    /// A retained value.
    Retained = 50,
    /// A retained value was deleted.
    RetainedGone = 51,
    /// A member of a shared group was chosen for a message.
    Chosen = 52,
    /// It has the message.
    ChosenDone = 53,
    /// A message for a remote.
    Outlet = 54,
    /// The remote has it, or it was shed.
    OutletGone = 55,
    /// A remote begins to want a filter.
    Wanted = 56,
    /// A remote no longer wants a filter.
    Unwanted = 57,
    /// A packet id was received with QoS 2 (checkpoints; else `Publish` says so).
    Incoming = 58,
    /// Which shards a publish left for, when it was routed first.
    Routed = 59,
}

impl Tag {
    const ALL: [Tag; 28] = [
        Tag::Clock,
        Tag::Session,
        Tag::Opened,
        Tag::Left,
        Tag::Ended,
        Tag::Subscribed,
        Tag::Unsubscribed,
        Tag::Message,
        Tag::Body,
        Tag::Queued,
        Tag::Sent,
        Tag::Gone,
        Tag::Acked,
        Tag::Received,
        Tag::Publish,
        Tag::Finished,
        Tag::Released,
        Tag::Watermark,
        Tag::Retained,
        Tag::RetainedGone,
        Tag::Chosen,
        Tag::ChosenDone,
        Tag::Outlet,
        Tag::OutletGone,
        Tag::Wanted,
        Tag::Unwanted,
        Tag::Incoming,
        Tag::Routed,
    ];

    fn from_u8(tag: u8) -> Option<Tag> {
        Tag::ALL.get(usize::from(tag).wrapping_sub(Tag::Clock as usize)).copied()
    }
}

/// An ordered source of message ids within this cluster: (node, incarnation, stream).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Stream {
    /// Stable hash of the node's name.
    pub node: u32,
    /// Its start number.
    pub incarnation: u32,
    /// A home shard; with [`DURABLE_STREAM`] what of it is repeated after a crash, with [`GROUP_STREAM`] the choices of an
    /// owner of groups.
    pub stream: u32,
}

/// The stream of a home shard's publishes that are repeated after a crash: the shard with this bit.
pub const DURABLE_STREAM: u32 = 1 << 30;
/// The stream of an owner's choices: its shard with this bit.
pub const GROUP_STREAM: u32 = 1 << 31;

impl Stream {
    /// The stream that a message belongs to.
    pub fn of(id: &MessageId) -> Stream {
        Stream { node: id.node, incarnation: id.incarnation, stream: id.stream }
    }
}

/// A message as a record holds it: its remaining life counts from `wall_ms`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stored<'a> {
    /// Wall time in milliseconds at which `expiry_ms` of the message was true.
    pub wall_ms: u64,
    /// The message frame.
    pub frame: &'a [u8],
}

impl<'a> Stored<'a> {
    /// The message.
    pub fn message(&self) -> Result<Message<'a>, BadFrame> {
        let (part, _) = frame::split(self.frame)?;
        Ok(frame::read_message(&part)?.message)
    }

    /// Wall time in milliseconds at which it expires; `u64::MAX`: never.
    pub fn expires_wall_ms(&self) -> u64 {
        match self.message().map(|message| message.expiry_ms) {
            Ok(u64::MAX) | Err(_) => u64::MAX,
            Ok(ms) => self.wall_ms.saturating_add(ms),
        }
    }
}

/// One delivery in a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slip<'a> {
    /// The session.
    pub session: u64,
    /// Place of the delivery in the session's order.
    pub place: u64,
    /// Packet id; 0: queued.
    pub packet: u16,
    /// QoS and, in bit 2, RETAIN.
    pub flags: u8,
    /// Subscription identifiers, four bytes each.
    ids: &'a [u8],
}

impl<'a> Slip<'a> {
    /// QoS of the delivery.
    pub fn qos(&self) -> Qos {
        Qos::from_bits(self.flags & 3).unwrap_or(Qos::AtLeastOnce)
    }

    /// Subscription identifiers.
    pub fn ids(&self) -> impl Iterator<Item = u32> + 'a {
        self.ids.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]))
    }
}

/// Appends a slip; [`read_slip`] reads it.
pub(crate) fn put_slip(out: &mut Vec<u8>, session: u64, place: u64, packet: u16, flags: u8, ids: &[u32]) {
    out.extend_from_slice(&session.to_le_bytes());
    out.extend_from_slice(&place.to_le_bytes());
    out.extend_from_slice(&packet.to_le_bytes());
    out.push(flags);
    let ids = &ids[..ids.len().min(usize::from(u8::MAX))];
    out.push(ids.len() as u8);
    ids.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
}

fn read_slip<'a>(fields: &mut Fields<'a>) -> Result<Slip<'a>, BadFrame> {
    let (session, place, packet) = (fields.u64()?, fields.u64()?, read_u16(fields)?);
    let (flags, ids) = (fields.u8()?, fields.u8()?);
    Ok(Slip { session, place, packet, flags, ids: fields.bytes(usize::from(ids) * 4)? })
}

/// The slips of a message record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slips<'a> {
    count: u32,
    bytes: &'a [u8],
}

impl<'a> Slips<'a> {
    /// All of them; reading stops at one that is cut off, which a checksum makes impossible.
    pub fn iter(&self) -> impl Iterator<Item = Slip<'a>> + 'a {
        let mut fields = Fields(self.bytes);
        (0..self.count).map_while(move |_| read_slip(&mut fields).ok())
    }
}

/// One entry of a session's window in a `Session` record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unfinished<'a> {
    /// What it waits for: 0 PUBACK, 1 PUBREC, 2 PUBCOMP.
    pub awaits: u8,
    /// Number of its message; 0 when it waits for PUBCOMP.
    pub body: u64,
    /// The delivery.
    pub slip: Slip<'a>,
}

/// A record as it is read.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the fields are those of the page in ARCHITECTURE.md 9.6, named as they are there")]
pub enum Record<'a> {
    Clock {
        running: bool,
        stamp: u64,
        body: u64,
        session: u64,
        group: u64,
    },
    Session {
        session: u64,
        client: &'a str,
        expiry_s: u32,
        ends_ms: u64,
        will: Option<Will<'a>>,
        place: u64,
        window: Vec<Unfinished<'a>>,
    },
    Opened {
        session: u64,
        client: &'a str,
        expiry_s: u32,
        will: Option<Will<'a>>,
    },
    Left {
        session: u64,
        ends_ms: u64,
        will_due_ms: u64,
    },
    Ended {
        session: u64,
    },
    Subscribed {
        session: u64,
        group: &'a str,
        filter: &'a str,
        options: u8,
        id: u32,
    },
    Unsubscribed {
        session: u64,
        group: &'a str,
        filter: &'a str,
    },
    Message {
        body: u64,
        stored: Stored<'a>,
        slips: Slips<'a>,
    },
    Body {
        body: u64,
        stored: Stored<'a>,
    },
    Queued {
        body: u64,
        slip: Slip<'a>,
    },
    Sent {
        session: u64,
        place: u64,
        packet: u16,
    },
    Gone {
        session: u64,
        place: u64,
    },
    Acked {
        session: u64,
        packet: u16,
    },
    Received {
        session: u64,
        packet: u16,
    },
    Publish {
        session: u64,
        packet: u16,
        stored: Stored<'a>,
    },
    Finished {
        stream: Stream,
        sequence: u64,
    },
    Released {
        session: u64,
        packet: u16,
    },
    Watermark {
        shards: u16,
        home: u16,
        stream: Stream,
        sequence: u64,
    },
    Retained {
        stored: Stored<'a>,
    },
    RetainedGone {
        stamp: u64,
        topic: &'a str,
    },
    Chosen {
        stream: Stream,
        sequence: u64,
        shards: u16,
        home: u16,
        group: &'a str,
        filter: &'a str,
        stored: Stored<'a>,
    },
    ChosenDone {
        stream: Stream,
        sequence: u64,
    },
    Outlet {
        link: &'a str,
        place: u64,
        client: &'a str,
        stored: Stored<'a>,
    },
    OutletGone {
        link: &'a str,
        place: u64,
    },
    Wanted {
        link: &'a str,
        filter: &'a str,
    },
    Unwanted {
        link: &'a str,
        filter: &'a str,
    },
    Routed {
        stream: Stream,
        sequence: u64,
        shards: u16,
        to: u128,
    },
    Incoming {
        session: u64,
        packet: u16,
    },
}

/// A will in a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "named as in the specification")]
pub struct Will<'a> {
    pub topic: &'a str,
    pub properties: &'a [u8],
    pub payload: &'a [u8],
    pub qos: Qos,
    pub retain: bool,
    pub delay_s: u32,
    pub expiry_s: Option<u32>,
    /// Wall time at which it is due; 0: its session has a connection.
    pub due_ms: u64,
}

impl Will<'_> {
    /// As a session keeps it.
    pub fn to_message(self) -> WillMessage {
        WillMessage {
            topic: self.topic.into(),
            payload: self.payload.into(),
            properties: self.properties.into(),
            qos: self.qos,
            retain: self.retain,
            delay_s: self.delay_s,
            expiry_s: self.expiry_s,
        }
    }
}

/// Appends a will, or that there is none; [`read_will`] reads it.
pub(crate) fn put_will(out: &mut Vec<u8>, will: Option<&WillMessage>, due_ms: u64) {
    let Some(will) = will else { return out.push(0) };
    out.push(1);
    out.push(will.qos as u8 | u8::from(will.retain) << 2);
    out.extend_from_slice(&will.delay_s.to_le_bytes());
    out.extend_from_slice(&will.expiry_s.unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&due_ms.to_le_bytes());
    put_text(out, &will.topic);
    put_blob(out, &will.properties);
    put_blob(out, &will.payload);
}

fn read_will<'a>(fields: &mut Fields<'a>) -> Result<Option<Will<'a>>, BadFrame> {
    if fields.u8()? == 0 {
        return Ok(None);
    }
    let (flags, delay_s, expiry_s, due_ms) = (fields.u8()?, fields.u32()?, fields.u32()?, fields.u64()?);
    Ok(Some(Will {
        topic: fields.text()?,
        properties: fields.blob()?,
        payload: fields.blob()?,
        qos: Qos::from_bits(flags & 3).ok_or(BadFrame::Field("qos"))?,
        retain: flags & 4 != 0,
        delay_s,
        expiry_s: (expiry_s != u32::MAX).then_some(expiry_s),
        due_ms,
    }))
}

/// Splits the first record off a log entry and reads it.
pub fn read(bytes: &[u8]) -> Result<(Record<'_>, &[u8]), BadFrame> {
    let (record, rest) = frame::cut(bytes)?;
    let tag = Tag::from_u8(record[1]).ok_or(BadFrame::Kind(record[1]))?;
    if record[2] != 0 {
        return Err(BadFrame::Flags(record[2]));
    }
    Ok((read_body(tag, &mut Fields(&record[frame::PREFIX_BYTES..]))?, rest))
}

fn read_body<'a>(tag: Tag, fields: &mut Fields<'a>) -> Result<Record<'a>, BadFrame> {
    Ok(match tag {
        Tag::Clock => Record::Clock {
            running: fields.u8()? != 0,
            stamp: fields.u64()?,
            body: fields.u64()?,
            session: fields.u64()?,
            group: fields.u64()?,
        },
        Tag::Session => read_session(fields)?,
        Tag::Opened => Record::Opened {
            session: fields.u64()?,
            client: fields.text()?,
            expiry_s: fields.u32()?,
            will: read_will(fields)?,
        },
        Tag::Left => Record::Left { session: fields.u64()?, ends_ms: fields.u64()?, will_due_ms: fields.u64()? },
        Tag::Ended => Record::Ended { session: fields.u64()? },
        Tag::Subscribed => Record::Subscribed {
            session: fields.u64()?,
            options: fields.u8()?,
            id: fields.u32()?,
            group: fields.text()?,
            filter: fields.text()?,
        },
        Tag::Unsubscribed => {
            Record::Unsubscribed { session: fields.u64()?, group: fields.text()?, filter: fields.text()? }
        }
        Tag::Message => {
            let (body, wall_ms, count) = (fields.u64()?, fields.u64()?, fields.u32()?);
            let bytes = fields.blob()?;
            Record::Message { body, stored: Stored { wall_ms, frame: fields.0 }, slips: Slips { count, bytes } }
        }
        Tag::Body => Record::Body { body: fields.u64()?, stored: read_stored(fields)? },
        Tag::Queued => Record::Queued { body: fields.u64()?, slip: read_slip(fields)? },
        Tag::Sent => Record::Sent { session: fields.u64()?, place: fields.u64()?, packet: read_u16(fields)? },
        Tag::Gone => Record::Gone { session: fields.u64()?, place: fields.u64()? },
        Tag::Acked => Record::Acked { session: fields.u64()?, packet: read_u16(fields)? },
        Tag::Received => Record::Received { session: fields.u64()?, packet: read_u16(fields)? },
        Tag::Released => Record::Released { session: fields.u64()?, packet: read_u16(fields)? },
        Tag::Incoming => Record::Incoming { session: fields.u64()?, packet: read_u16(fields)? },
        Tag::Publish => {
            Record::Publish { session: fields.u64()?, packet: read_u16(fields)?, stored: read_stored(fields)? }
        }
        Tag::Finished => Record::Finished { stream: read_stream(fields)?, sequence: fields.u64()? },
        Tag::Watermark => Record::Watermark {
            shards: read_u16(fields)?,
            home: read_u16(fields)?,
            stream: read_stream(fields)?,
            sequence: fields.u64()?,
        },
        _ => return read_rest(tag, fields),
    })
}

fn read_rest<'a>(tag: Tag, fields: &mut Fields<'a>) -> Result<Record<'a>, BadFrame> {
    Ok(match tag {
        Tag::Retained => Record::Retained { stored: read_stored(fields)? },
        Tag::RetainedGone => Record::RetainedGone { stamp: fields.u64()?, topic: fields.text()? },
        Tag::Chosen => Record::Chosen {
            stream: read_stream(fields)?,
            sequence: fields.u64()?,
            shards: read_u16(fields)?,
            home: read_u16(fields)?,
            group: fields.text()?,
            filter: fields.text()?,
            stored: read_stored(fields)?,
        },
        Tag::ChosenDone => Record::ChosenDone { stream: read_stream(fields)?, sequence: fields.u64()? },
        Tag::Outlet => Record::Outlet {
            place: fields.u64()?,
            link: fields.text()?,
            client: fields.text()?,
            stored: read_stored(fields)?,
        },
        Tag::OutletGone => Record::OutletGone { place: fields.u64()?, link: fields.text()? },
        Tag::Routed => Record::Routed {
            stream: read_stream(fields)?,
            sequence: fields.u64()?,
            shards: read_u16(fields)?,
            to: u128::from(fields.u64()?) | u128::from(fields.u64()?) << 64,
        },
        Tag::Wanted => Record::Wanted { link: fields.text()?, filter: fields.text()? },
        Tag::Unwanted => Record::Unwanted { link: fields.text()?, filter: fields.text()? },
        _ => return Err(BadFrame::Kind(tag as u8)),
    })
}

fn read_session<'a>(fields: &mut Fields<'a>) -> Result<Record<'a>, BadFrame> {
    let (session, client) = (fields.u64()?, fields.text()?);
    let (expiry_s, ends_ms) = (fields.u32()?, fields.u64()?);
    let (will, place, count) = (read_will(fields)?, fields.u64()?, fields.u32()?);
    let mut window = Vec::new();
    for _ in 0..count {
        window.push(Unfinished { awaits: fields.u8()?, body: fields.u64()?, slip: read_slip(fields)? });
    }
    Ok(Record::Session { session, client, expiry_s, ends_ms, will, place, window })
}

/// Appends a stream; [`read_stream`] reads it.
pub(crate) fn put_stream(out: &mut Vec<u8>, stream: Stream) {
    [stream.node, stream.incarnation, stream.stream].iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
}

fn read_stream(fields: &mut Fields<'_>) -> Result<Stream, BadFrame> {
    Ok(Stream { node: fields.u32()?, incarnation: fields.u32()?, stream: fields.u32()? })
}

fn read_stored<'a>(fields: &mut Fields<'a>) -> Result<Stored<'a>, BadFrame> {
    let wall_ms = fields.u64()?;
    Ok(Stored { wall_ms, frame: core::mem::take(&mut fields.0) })
}

fn read_u16(fields: &mut Fields<'_>) -> Result<u16, BadFrame> {
    let bytes = fields.bytes(2)?;
    Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::from([1, tag, 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(body);
        frame::finish(&mut bytes, 0);
        bytes
    }

    /// The page in ARCHITECTURE.md 9.6.
    #[test]
    fn records_have_the_documented_bytes() {
        let sent = record(42, &[7, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5, 0]);
        assert_eq!(read(&sent).unwrap().0, Record::Sent { session: 7, place: 9, packet: 5 });
        let mut body = Vec::new();
        body.extend_from_slice(&7u64.to_le_bytes());
        body.extend_from_slice(&[9, 4, 0, 0, 0]);
        put_text(&mut body, "g");
        put_text(&mut body, "a/+");
        let subscribed = Record::Subscribed { session: 7, group: "g", filter: "a/+", options: 9, id: 4 };
        assert_eq!(read(&record(37, &body)).unwrap().0, subscribed);
        let mut body = Vec::new();
        body.extend_from_slice(&3u64.to_le_bytes());
        put_slip(&mut body, 7, 9, 5, 6, &[1, 2]);
        let queued = record(41, &body);
        let Record::Queued { body: 3, slip } = read(&queued).unwrap().0 else { panic!("a queued delivery") };
        assert_eq!((slip.session, slip.place, slip.packet, slip.qos()), (7, 9, 5, Qos::ExactlyOnce));
        assert!(slip.ids().eq([1, 2]));
    }

    #[test]
    fn what_another_version_wrote_is_refused() {
        assert_eq!(read(&record(60, &[])), Err(BadFrame::Kind(60)));
        assert_eq!(read(&record(31, &[])), Err(BadFrame::Kind(31)));
        let mut newer = record(36, &[0; 8]);
        newer[0] = 2;
        assert_eq!(read(&newer), Err(BadFrame::Version(2)));
    }

    #[test]
    fn every_cut_of_every_kind_is_refused_without_panic() {
        for tag in Tag::ALL {
            let whole = record(tag as u8, &[1; 200]);
            for n in 0..whole.len() {
                let mut bytes = whole[..n].to_vec();
                if n >= frame::PREFIX_BYTES {
                    frame::finish(&mut bytes, 0);
                }
                let _ = read(&bytes);
            }
        }
    }
}
