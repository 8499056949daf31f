//! What a shard has to find again after a crash, written down as it happens. Owned by the shard; the shell takes what a
//! turn has written as one batch, hands it to the log, and says later how far the log has come.
//! Invariants: what is recorded in one turn is kept or lost as a whole; records are in the order of what they tell;
//! whatever may leave only when it is kept waits for the number of a batch. Without durability nothing is recorded
//! and nothing waits.

mod checkpoint;
mod deal;
mod deferred;
mod image;
pub mod record;
mod restore;
mod standing;
#[cfg(test)]
mod tests;

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    vec::Vec,
};

use contract::{
    config::{Durability, Mode},
    ids::ShardId,
    time::Now,
};
use log::{Mark, Room};
use mqtt::session::WillMessage;

use self::{
    checkpoint::Checkpoint,
    record::{Stream, Tag, put_slip, put_stream, put_will},
};
pub use self::{
    deal::{Dealt, History, deal},
    image::Image,
    standing::Standing,
};
pub(crate) use self::{
    deferred::{Deferred, What},
    image::Body,
    restore::Restoring,
};
use crate::{
    conn::Conn,
    frame::{self, Kept, Kind, Message, put_text, put_u16, put_u32, put_u64},
    groups::Given,
    session::{Delivery, SessionId},
    subscriptions::Options,
    surface::ConnId,
};

/// What one turn recorded, for the log.
pub struct JournalBatch {
    /// Its number: 1, 2, 3, ... since the process started.
    pub number: u64,
    /// Concatenated records.
    pub bytes: Vec<u8>,
    /// What it means to the log.
    pub mark: Mark,
}

/// Where a publish stands that has to reach all its destinations even if the process dies meanwhile.
pub(crate) struct Unfinished {
    /// Durable number of the session that published it; 0: none.
    pub(crate) session: u64,
    /// Its packet id; 0: a will.
    pub(crate) packet: u16,
    /// Once it was routed: shards of that layout, and the set of them that it left for.
    pub(crate) routed: Option<(u16, u128)>,
    pub(crate) kept: Kept,
}

/// A member was chosen for a message of a group, and has not reported.
pub(crate) struct Chosen {
    pub(crate) group: alloc::boxed::Box<str>,
    pub(crate) filter: alloc::boxed::Box<str>,
    pub(crate) home: u16,
    pub(crate) kept: Kept,
}

/// What could not be kept where it has to be, and is kept here until it can.
#[derive(Clone, Copy)]
pub(crate) enum Again {
    /// A publish of an earlier life, or a will.
    Publish(Stream, u64, Option<SessionId>),
    /// A message for a member of a group.
    Chosen(Stream, u64),
}

/// A report of an obligation that waits for a batch.
pub(crate) struct Report {
    until: u64,
    shard: u16,
    token: u64,
    /// Another log has the message already: it cannot be refused any more, and waits for as long as it takes.
    patient: bool,
}

/// The journal of one shard.
pub(crate) struct Journal {
    /// There is a log.
    on: bool,
    /// Records are taken; not while the log is detached.
    recording: bool,
    /// The log as it is on disk does not hold everything yet: its checkpoint is being written again.
    resync: bool,
    room: Room,
    /// How often the log was detached.
    detachments: u64,
    /// How the log stood last time it said so.
    since_begin_bytes: u64,
    segments: u32,
    /// What it held at the start is flushed.
    recovered: bool,
    bytes: Vec<u8>,
    spare: Option<Vec<u8>>,
    batch: u64,
    durable: u64,
    mark: Mark,
    /// Batches that the log has and has not confirmed, with their bytes.
    sent: VecDeque<(u64, usize)>,
    unconfirmed_bytes: usize,
    /// Reports of obligations that wait for a batch.
    pub(crate) waits: VecDeque<Report>,
    /// Those that are not refused because of a detached log: (shard, token).
    patient: Vec<(u16, u64)>,
    /// Choices that the log lost when it was detached: they leave when it is written anew.
    pub(crate) stuck: Vec<Given>,
    /// What leaves when it is kept, in order.
    pub(crate) deferred: VecDeque<Deferred>,
    /// How many publishes of each publisher are among them, whichever connection they came on.
    pub(crate) deferring: BTreeMap<u64, u32>,
    /// Connections whose output waits for a batch, and since when.
    pub(crate) gated: VecDeque<(u64, ConnId, u64)>,
    /// Connections that wait for something that cannot be kept.
    pub(crate) doomed: Vec<ConnId>,
    /// Obligations that waited for the log when it was detached: (shard, token).
    refused: Vec<(u16, u64)>,
    /// Publishes that are tried again at the next sweep.
    pub(crate) again: Vec<Again>,
    slips: Vec<u8>,
    slip_count: u32,
    /// Numbers given so far.
    pub(crate) bodies: u64,
    pub(crate) sessions: u64,
    pub(crate) group_sequence: u64,
    /// How far each stream was taken here, by (shards, home) of the layout in which it was: only streams whose publishes are repeated
    /// after a crash.
    pub(crate) watermarks: BTreeMap<(u16, u16, Stream), u64>,
    /// Messages of an earlier life that were taken here since the start.
    pub(crate) repeated: BTreeSet<(Stream, u64)>,
    pub(crate) unfinished: BTreeMap<(Stream, u64), Unfinished>,
    pub(crate) chosen: BTreeMap<(Stream, u64), Chosen>,
    pub(crate) checkpoint: Option<Checkpoint>,
    /// Checkpoints begun in this process.
    checkpoints: u32,
    /// The batch with the end of the last complete checkpoint of this process.
    ended_batch: u64,
    /// When the last checkpoint ended, until the log says that it counts.
    ended_us: u64,
    /// When a full disk made us look at what is alive.
    looked_us: u64,
    /// Bytes that the last complete checkpoint wrote.
    pub(crate) live_bytes: u64,
    pub(crate) limits: Durability,
    /// [`crate::plant::Plant::PacketIdAfterSend`].
    pub(crate) plant_ungated: bool,
    shards: u16,
    me: u16,
}

impl Journal {
    pub(crate) fn new(me: ShardId, shards: u16, limits: &Durability) -> Journal {
        let on = limits.mode != Mode::None;
        Journal {
            on,
            recording: on,
            resync: false,
            room: Room::Plenty,
            detachments: 0,
            since_begin_bytes: 0,
            segments: 0,
            recovered: false,
            bytes: Vec::new(),
            spare: None,
            batch: 1,
            durable: 0,
            mark: Mark::None,
            sent: VecDeque::new(),
            unconfirmed_bytes: 0,
            waits: VecDeque::new(),
            patient: Vec::new(),
            stuck: Vec::new(),
            deferred: VecDeque::new(),
            deferring: BTreeMap::new(),
            gated: VecDeque::new(),
            doomed: Vec::new(),
            refused: Vec::new(),
            again: Vec::new(),
            slips: Vec::new(),
            slip_count: 0,
            bodies: 0,
            sessions: 0,
            group_sequence: 0,
            watermarks: BTreeMap::new(),
            repeated: BTreeSet::new(),
            unfinished: BTreeMap::new(),
            chosen: BTreeMap::new(),
            checkpoint: None,
            checkpoints: 0,
            ended_batch: 0,
            ended_us: 0,
            looked_us: 0,
            live_bytes: 0,
            limits: limits.clone(),
            plant_ungated: false,
            shards,
            me: me.0,
        }
    }

    /// Something that this publisher sent before waits for the log.
    #[inline]
    pub(crate) fn deferring(&self, publisher: u64) -> bool {
        !self.deferring.is_empty() && self.deferring.contains_key(&publisher)
    }

    /// There is a log: persistent things are recorded, or refused.
    #[inline]
    pub(crate) fn on(&self) -> bool {
        self.on
    }

    /// May more be kept than is kept now? What only says that something is over is always recorded.
    #[inline]
    pub(crate) fn grows(&self) -> bool {
        !self.on || self.recording && !self.resync && self.room == Room::Plenty && !self.behind()
    }

    /// Is there a log that takes records at all?
    #[inline]
    pub(crate) fn writable(&self) -> bool {
        !self.on || self.recording && !self.resync
    }

    /// Are records taken, also of a log that is being written anew?
    #[inline]
    pub(crate) fn records(&self) -> bool {
        self.on && self.recording
    }

    /// More waits for the disk than `durability.buffer_bytes_max` allows. What this turn has recorded does not count yet: the
    /// record of a retained value must not be why its message is refused to a session, each time that it comes again.
    fn behind(&self) -> bool {
        self.unconfirmed_bytes > self.limits.buffer_bytes_max as usize
    }

    /// Bytes that the log has not confirmed.
    pub(crate) fn unconfirmed_bytes(&self) -> u64 {
        self.unconfirmed_bytes as u64
    }

    /// The batch that has to be durable before what was recorded so far is; 0: it is.
    #[inline]
    pub(crate) fn until(&self) -> u64 {
        let empty = self.bytes.is_empty() && self.slip_count == 0;
        let until = if empty { self.batch - 1 } else { self.batch };
        if until > self.durable { until } else { 0 }
    }

    /// Everything up to this batch is kept.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    /// A mark to compare with later: has anything been recorded since?
    #[inline]
    pub(crate) fn position(&self) -> (u64, usize) {
        (self.batch, self.bytes.len())
    }

    /// Lets `conn`'s output from `at` on wait until what was recorded so far is kept.
    #[inline]
    pub(crate) fn gate(&mut self, conn: &mut Conn, at: usize, now_us: u64) {
        if !self.on {
            return;
        }
        if !self.recording {
            // Nothing of it leaves with the last words either.
            conn.hold(at, u64::MAX);
            return self.doomed.push(conn.id);
        }
        let until = self.until();
        if until != 0 && !self.plant_ungated && conn.hold(at, until) {
            self.gated.push_back((until, conn.id, now_us));
        }
    }

    /// Reports to a shard when what was recorded so far is kept.
    pub(crate) fn wait(&mut self, shard: u16, token: u64, patient: bool) {
        if patient && !self.recording {
            return self.patient.push((shard, token));
        }
        let until = self.until();
        self.waits.push_back(Report { until, shard, token, patient });
    }

    /// Takes what was recorded since the last call.
    pub(crate) fn take(&mut self) -> Option<JournalBatch> {
        if self.bytes.is_empty() && self.mark == Mark::None || !self.recording {
            return None;
        }
        let fresh = self.spare.take().unwrap_or_default();
        let bytes = core::mem::replace(&mut self.bytes, fresh);
        let number = self.batch;
        self.batch += 1;
        self.unconfirmed_bytes += bytes.len();
        self.sent.push_back((number, bytes.len()));
        if self.mark == Mark::Ends {
            self.ended_batch = number;
        }
        Some(JournalBatch { number, bytes, mark: core::mem::replace(&mut self.mark, Mark::None) })
    }

    /// A spent buffer comes back.
    pub(crate) fn recycle(&mut self, mut bytes: Vec<u8>) {
        if self.spare.as_ref().is_none_or(|spare| spare.capacity() < bytes.capacity()) && bytes.capacity() <= SPARE_MAX
        {
            bytes.clear();
            self.spare = Some(bytes);
        }
    }

    fn begin(&mut self, tag: Tag) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[frame::VERSION, tag as u8, 0, 0, 0, 0, 0, 0]);
        start
    }

    /// Appends one record, unless there is no log to take it.
    fn record(&mut self, tag: Tag, write: impl FnOnce(&mut Vec<u8>)) {
        if !self.recording {
            return;
        }
        let start = self.begin(tag);
        write(&mut self.bytes);
        frame::finish(&mut self.bytes, start);
    }

    /// A number for a session that is to be kept; 0 without a log that could.
    pub(crate) fn number_session(&mut self) -> u64 {
        if !self.on || !self.recording {
            return 0;
        }
        self.sessions += 1;
        self.sessions
    }

    pub(crate) fn opened(&mut self, session: u64, client: &str, expiry_s: u32, will: Option<&WillMessage>) {
        self.record(Tag::Opened, |out| {
            put_u64(out, session);
            put_text(out, client);
            put_u32(out, expiry_s);
            put_will(out, will, 0);
        });
    }

    /// The session ends at one wall time (`u64::MAX`: never), its will is due at another (0: it has none).
    pub(crate) fn left(&mut self, session: u64, ends_ms: u64, will_due_ms: u64) {
        if session == 0 {
            return;
        }
        self.record(Tag::Left, |out| {
            put_u64(out, session);
            put_u64(out, ends_ms);
            put_u64(out, will_due_ms);
        });
    }

    pub(crate) fn ended(&mut self, session: u64) {
        if session != 0 {
            self.record(Tag::Ended, |out| put_u64(out, session));
        }
    }

    pub(crate) fn subscribed(&mut self, session: u64, group: &str, filter: &str, options: Options, id: u32) {
        if session == 0 {
            return;
        }
        self.record(Tag::Subscribed, |out| {
            put_u64(out, session);
            out.push(options.bits());
            put_u32(out, id);
            put_text(out, group);
            put_text(out, filter);
        });
    }

    pub(crate) fn unsubscribed(&mut self, session: u64, group: &str, filter: &str) {
        if session == 0 {
            return;
        }
        self.record(Tag::Unsubscribed, |out| {
            put_u64(out, session);
            put_text(out, group);
            put_text(out, filter);
        });
    }

    /// One delivery of the message at hand; [`Journal::message`] follows when all are known.
    #[inline]
    pub(crate) fn slip(&mut self, session: u64, delivery: &Delivery, packet: u16) {
        if self.recording && session != 0 && delivery.recorded() {
            put_slip(&mut self.slips, session, delivery.place, packet, delivery.flags(), &delivery.ids);
            self.slip_count += 1;
        }
    }

    /// The message of the slips since the last call.
    pub(crate) fn message(&mut self, kept: &Kept, now: Now) {
        if self.slip_count == 0 {
            return;
        }
        self.name_body(kept);
        let (slips, count) = (core::mem::take(&mut self.slips), core::mem::take(&mut self.slip_count));
        let body = kept.body.get();
        self.record(Tag::Message, |out| {
            put_u64(out, body);
            put_u64(out, now.wall_ms);
            put_u32(out, count);
            frame::put_blob(out, &slips);
            kept.put(out, now.mono_us);
        });
        self.slips = slips;
        self.slips.clear();
    }

    /// Gives a message its number in this log, and remembers that the running checkpoint need not write it.
    fn name_body(&mut self, kept: &Kept) {
        if kept.body.get() == 0 {
            self.bodies += 1;
            kept.body.set(self.bodies);
        }
        kept.checkpoint.set(self.checkpoints);
    }

    /// A queued delivery of the session at `index` got a packet id.
    pub(crate) fn sent(&mut self, index: u32, session: u64, delivery: &Delivery, packet: u16, now: Now) {
        if session == 0 || !delivery.recorded() {
            return;
        }
        if self.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.is_ahead(index, delivery.place)) {
            // The running checkpoint has not come to it, and will not find it in the queue.
            self.queued(session, delivery, now);
        }
        self.record(Tag::Sent, |out| {
            put_u64(out, session);
            put_u64(out, delivery.place);
            put_u16(out, packet);
        });
    }

    /// A queued delivery was shed.
    pub(crate) fn gone(&mut self, session: u64, delivery: &Delivery) {
        if session != 0 && delivery.recorded() {
            self.record(Tag::Gone, |out| {
                put_u64(out, session);
                put_u64(out, delivery.place);
            });
        }
    }

    fn packet(&mut self, tag: Tag, session: u64, packet: u16) {
        if session != 0 {
            self.record(tag, |out| {
                put_u64(out, session);
                put_u16(out, packet);
            });
        }
    }

    pub(crate) fn acked(&mut self, session: u64, packet: u16) {
        self.packet(Tag::Acked, session, packet);
    }

    pub(crate) fn received(&mut self, session: u64, packet: u16) {
        self.packet(Tag::Received, session, packet);
    }

    pub(crate) fn released(&mut self, session: u64, packet: u16) {
        self.packet(Tag::Released, session, packet);
    }

    /// A publish that has to reach all its destinations.
    pub(crate) fn publish(&mut self, unfinished: Unfinished, now: Now) {
        let Unfinished { session, packet, kept, .. } = &unfinished;
        self.record(Tag::Publish, |out| {
            put_u64(out, *session);
            put_u16(out, *packet);
            put_u64(out, now.wall_ms);
            kept.put(out, now.mono_us);
        });
        let id = kept.message(now.mono_us).id;
        self.unfinished.insert((Stream::of(&id), id.sequence), unfinished);
    }

    /// A publish leaves for these shards. It is repeated for them only: others had no part in it, and whoever subscribes there
    /// later has none either.
    pub(crate) fn routed(&mut self, stream: Stream, sequence: u64, to: u128) {
        let shards = self.shards;
        if let Some(unfinished) = self.unfinished.get_mut(&(stream, sequence))
            && unfinished.routed.is_none()
        {
            unfinished.routed = Some((shards, to));
            self.routed_record(stream, sequence, (shards, to));
        }
    }

    fn routed_record(&mut self, stream: Stream, sequence: u64, (shards, to): (u16, u128)) {
        self.record(Tag::Routed, |out| {
            put_stream(out, stream);
            put_u64(out, sequence);
            put_u16(out, shards);
            put_u64(out, to as u64);
            put_u64(out, (to >> 64) as u64);
        });
    }

    /// It has reached them, or was refused.
    pub(crate) fn finished(&mut self, stream: Stream, sequence: u64) -> Option<Unfinished> {
        let unfinished = self.unfinished.remove(&(stream, sequence))?;
        self.record(Tag::Finished, |out| {
            put_stream(out, stream);
            put_u64(out, sequence);
        });
        Some(unfinished)
    }

    /// This shard has taken a stream that far.
    pub(crate) fn watermark(&mut self, stream: Stream, sequence: u64) {
        let (shards, me) = (self.shards, self.me);
        let mark = self.watermarks.entry((shards, me, stream)).or_insert(0);
        if *mark < sequence {
            *mark = sequence;
            self.watermark_record(shards, me, stream, sequence);
        }
    }

    fn watermark_record(&mut self, shards: u16, home: u16, stream: Stream, sequence: u64) {
        self.record(Tag::Watermark, |out| {
            put_u16(out, shards);
            put_u16(out, home);
            put_stream(out, stream);
            put_u64(out, sequence);
        });
    }

    pub(crate) fn retained(&mut self, kept: &Kept, now: Now) {
        self.record(Tag::Retained, |out| {
            put_u64(out, now.wall_ms);
            kept.put(out, now.mono_us);
        });
    }

    pub(crate) fn retained_gone(&mut self, stamp: u64, topic: &str) {
        self.record(Tag::RetainedGone, |out| {
            put_u64(out, stamp);
            put_text(out, topic);
        });
    }

    /// A member at `home` was chosen.
    pub(crate) fn chose(&mut self, stream: Stream, sequence: u64, chosen: Chosen, now: Now) {
        self.chosen_record(stream, sequence, &chosen, now);
        self.chosen.insert((stream, sequence), chosen);
    }

    /// A choice of an earlier life is over: it was found where it went to, or is made again.
    pub(crate) fn restored_choice(&mut self, stream: Stream, sequence: u64) {
        self.chosen_done_record(stream, sequence);
    }

    fn chosen_done_record(&mut self, stream: Stream, sequence: u64) {
        self.record(Tag::ChosenDone, |out| {
            put_stream(out, stream);
            put_u64(out, sequence);
        });
    }

    /// What the log held at the start is safe: whoever connects may rely on it.
    pub(crate) fn recovered(&self) -> bool {
        !self.on || self.recovered
    }

    /// The first checkpoint of this process is complete and durable.
    pub(crate) fn checkpointed(&self) -> bool {
        !self.on || self.ended_batch != 0 && self.ended_batch <= self.durable
    }

    /// The chosen member has it, or another one was chosen.
    pub(crate) fn chosen_done(&mut self, stream: Stream, sequence: u64) -> Option<Chosen> {
        let chosen = self.chosen.remove(&(stream, sequence))?;
        self.chosen_done_record(stream, sequence);
        Some(chosen)
    }

    /// An outlet took a message at this wall time.
    pub(crate) fn outlet(&mut self, link: &str, place: u64, client: &str, message: &Message<'_>, taken_ms: u64) {
        self.record(Tag::Outlet, |out| {
            put_u64(out, place);
            put_text(out, link);
            put_text(out, client);
            put_u64(out, taken_ms);
            frame::put_message(out, Kind::Message, 0, 0, &[], message);
        });
    }

    pub(crate) fn outlet_gone(&mut self, link: &str, place: u64) {
        self.record(Tag::OutletGone, |out| {
            put_u64(out, place);
            put_text(out, link);
        });
    }

    pub(crate) fn wanted(&mut self, link: &str, filter: &str, begins: bool) {
        self.record(if begins { Tag::Wanted } else { Tag::Unwanted }, |out| {
            put_text(out, link);
            put_text(out, filter);
        });
    }
}

/// A larger spent buffer is freed.
const SPARE_MAX: usize = 1 << 20;
