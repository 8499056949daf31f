//! What the log of one shard says, read from its beginning: the state that a crash left behind. Built before the shards start,
//! one image per log, on any thread. Invariant: an image is what the shard knew when it wrote the last entry that was read.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    vec::Vec,
};

use ahash::RandomState;
use hashbrown::HashMap;
use mqtt::{session::WillMessage, types::Qos, window::Awaits};
use smallvec::SmallVec;

use super::record::{self, Record, Slip, Stored, Stream};
use crate::frame::BadFrame;

/// A message of an image.
#[derive(Debug)]
pub(crate) struct Body {
    /// Its number in the log it came from.
    pub(crate) number: u64,
    /// Wall time at which its remaining life was true.
    pub(crate) wall_ms: u64,
    pub(crate) frame: Box<[u8]>,
}

impl Body {
    fn new(number: u64, stored: &Stored<'_>) -> Arc<Body> {
        Arc::new(Body { number, wall_ms: stored.wall_ms, frame: stored.frame.into() })
    }

    pub(crate) fn stored(&self) -> Stored<'_> {
        Stored { wall_ms: self.wall_ms, frame: &self.frame }
    }
}

/// A delivery of an image.
#[derive(Debug)]
pub(crate) struct Paper {
    pub(crate) place: u64,
    pub(crate) flags: u8,
    pub(crate) ids: SmallVec<[u32; 2]>,
    pub(crate) body: Arc<Body>,
}

impl Paper {
    fn new(slip: &Slip<'_>, body: Arc<Body>) -> Paper {
        Paper { place: slip.place, flags: slip.flags, ids: slip.ids().collect(), body }
    }

    pub(crate) fn qos(&self) -> Qos {
        Qos::from_bits(self.flags & 3).unwrap_or(Qos::AtLeastOnce)
    }
}

/// One entry of a window.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) packet: u16,
    pub(crate) awaits: Awaits,
    pub(crate) paper: Option<Paper>,
}

/// A session of an image.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) client: Box<str>,
    pub(crate) expiry_s: u32,
    /// Wall time at which it ends; 0: it was connected.
    pub(crate) ends_ms: u64,
    pub(crate) will: Option<Box<WillMessage>>,
    /// Wall time at which the will is due; 0: it was connected.
    pub(crate) will_due_ms: u64,
    pub(crate) places: u64,
    /// (group, filter) -> (options, identifier).
    pub(crate) subscriptions: BTreeMap<(Box<str>, Box<str>), (u8, u32)>,
    pub(crate) incoming: BTreeSet<u16>,
    pub(crate) window: Vec<Held>,
    /// In the order of `place`.
    pub(crate) queue: VecDeque<Paper>,
}

/// A publish that had not reached all its destinations.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) session: u64,
    pub(crate) packet: u16,
    /// Shards of the layout in which it was routed, and the set of them that it left for.
    pub(crate) routed: Option<(u16, u128)>,
    pub(crate) body: Arc<Body>,
}

/// A choice of a member that was not confirmed.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) shards: u16,
    pub(crate) home: u16,
    pub(crate) group: Box<str>,
    pub(crate) filter: Box<str>,
    pub(crate) body: Arc<Body>,
}

/// What waits in one outlet: place -> (publisher, message).
pub(crate) type Outlet = BTreeMap<u64, (Box<str>, Arc<Body>)>;

/// The state that one log holds.
pub struct Image {
    pub(crate) sessions: HashMap<u64, Kept, RandomState>,
    bodies: HashMap<u64, Arc<Body>, RandomState>,
    /// A checkpoint is running: what was written for it may be referred to again.
    running: bool,
    prune_at: usize,
    pub(crate) retained: HashMap<Box<str>, Arc<Body>, RandomState>,
    pub(crate) watermarks: BTreeMap<(u16, u16, Stream), u64>,
    pub(crate) unfinished: BTreeMap<(Stream, u64), Cut>,
    pub(crate) chosen: BTreeMap<(Stream, u64), Choice>,
    /// Link -> place -> (publisher, message).
    pub(crate) outlets: BTreeMap<Box<str>, Outlet>,
    /// Link -> filters.
    pub(crate) wanted: BTreeMap<Box<str>, BTreeSet<Box<str>>>,
    pub(crate) stamp: u64,
    pub(crate) body_number: u64,
    pub(crate) session_number: u64,
    pub(crate) group_sequence: u64,
    /// Highest place given in each outlet.
    pub(crate) outlet_places: BTreeMap<Box<str>, u64>,
}

/// Bodies that nobody refers to are looked for when there are so many.
const PRUNE_MIN: usize = 4096;

impl Image {
    /// An empty one; `seed` is that of its tables.
    pub fn new(seed: u64) -> Image {
        let tables = |n: u64| RandomState::with_seeds(seed, n, n + 1, n + 2);
        Image {
            sessions: HashMap::with_hasher(tables(30)),
            bodies: HashMap::with_hasher(tables(33)),
            running: false,
            prune_at: 0,
            retained: HashMap::with_hasher(tables(36)),
            watermarks: BTreeMap::new(),
            unfinished: BTreeMap::new(),
            chosen: BTreeMap::new(),
            outlets: BTreeMap::new(),
            wanted: BTreeMap::new(),
            stamp: 0,
            body_number: 0,
            session_number: 0,
            group_sequence: 0,
            outlet_places: BTreeMap::new(),
        }
    }

    /// Reads one entry of the log. An error means that another version wrote it: the checksum has been compared.
    pub fn entry(&mut self, mut bytes: &[u8]) -> Result<(), BadFrame> {
        while !bytes.is_empty() {
            let (record, rest) = record::read(bytes)?;
            self.apply(record);
            bytes = rest;
        }
        if !self.running && self.bodies.len() >= self.prune_at.max(PRUNE_MIN) {
            self.bodies.retain(|_, body| Arc::strong_count(body) > 1);
            self.prune_at = self.bodies.len() * 2;
        }
        Ok(())
    }

    /// Sessions that it holds.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Messages that wait in them.
    pub fn queued(&self) -> usize {
        self.sessions.values().map(|session| session.queue.len() + session.window.len()).sum()
    }

    /// Retained values that it holds.
    pub fn retained(&self) -> usize {
        self.retained.len()
    }

    fn apply(&mut self, record: Record<'_>) {
        match record {
            Record::Clock { running, stamp, body, session, group } => {
                self.running = running;
                self.stamp = self.stamp.max(stamp);
                self.body_number = self.body_number.max(body);
                self.session_number = self.session_number.max(session);
                self.group_sequence = self.group_sequence.max(group);
            }
            Record::Message { body, stored, slips } => {
                let body = self.body(body, &stored);
                slips.iter().for_each(|slip| self.slip(&slip, &body));
            }
            Record::Body { body, stored } => drop(self.body(body, &stored)),
            Record::Queued { body, slip } => {
                if let Some(body) = self.bodies.get(&body).cloned() {
                    self.slip(&slip, &body);
                }
            }
            Record::Publish { session, packet, stored } => self.publish(session, packet, &stored),
            Record::Finished { stream, sequence } => drop(self.unfinished.remove(&(stream, sequence))),
            Record::Routed { stream, sequence, shards, to } => {
                if let Some(cut) = self.unfinished.get_mut(&(stream, sequence)) {
                    cut.routed = Some((shards, to));
                }
            }
            Record::Watermark { shards, home, stream, sequence } => {
                let mark = self.watermarks.entry((shards, home, stream)).or_insert(0);
                *mark = sequence.max(*mark);
            }
            Record::Retained { stored } => {
                if let Ok(message) = stored.message() {
                    self.stamp = self.stamp.max(message.stamp);
                    self.retained.insert(message.topic.into(), Body::new(0, &stored));
                }
            }
            Record::RetainedGone { stamp, topic } => {
                self.stamp = self.stamp.max(stamp);
                self.retained.remove(topic);
            }
            Record::Chosen { stream, sequence, shards, home, group, filter, stored } => {
                self.group_sequence = self.group_sequence.max(sequence);
                let (group, filter) = (group.into(), filter.into());
                let choice = Choice { shards, home, group, filter, body: Body::new(0, &stored) };
                self.chosen.insert((stream, sequence), choice);
            }
            Record::ChosenDone { stream, sequence } => drop(self.chosen.remove(&(stream, sequence))),
            Record::Outlet { link, place, client, stored } => {
                let highest = self.outlet_places.entry(link.into()).or_insert(0);
                *highest = place.max(*highest);
                self.outlets.entry(link.into()).or_default().insert(place, (client.into(), Body::new(0, &stored)));
            }
            Record::OutletGone { link, place } => {
                self.outlets.get_mut(link).map(|outlet| outlet.remove(&place));
            }
            Record::Wanted { link, filter } => drop(self.wanted.entry(link.into()).or_default().insert(filter.into())),
            Record::Unwanted { link, filter } => {
                self.wanted.get_mut(link).map(|filters| filters.remove(filter));
            }
            of_session => self.apply_session(of_session),
        }
    }

    fn apply_session(&mut self, record: Record<'_>) {
        match record {
            Record::Session { session, client, expiry_s, ends_ms, will, place, window } => {
                let kept = Kept {
                    client: client.into(),
                    expiry_s,
                    ends_ms,
                    will_due_ms: will.map_or(0, |will| will.due_ms),
                    will: will.map(|will| Box::new(will.to_message())),
                    places: place,
                    ..Kept::default()
                };
                let window = window.iter().filter_map(|entry| self.held(entry)).collect();
                self.session_number = self.session_number.max(session);
                // A checkpoint writes the queue behind this record, over many turns; a crash may have cut it there.
                let queue = self.sessions.remove(&session).map(|known| known.queue).unwrap_or_default();
                self.sessions.insert(session, Kept { window, queue, ..kept });
            }
            Record::Opened { session, client, expiry_s, will } => {
                self.session_number = self.session_number.max(session);
                let kept = self.sessions.entry(session).or_default();
                kept.client = client.into();
                kept.expiry_s = expiry_s;
                kept.will = will.map(|will| Box::new(will.to_message()));
                (kept.ends_ms, kept.will_due_ms) = (0, 0);
            }
            Record::Ended { session } => drop(self.sessions.remove(&session)),
            Record::Left { session, ends_ms, will_due_ms } => {
                if let Some(kept) = self.sessions.get_mut(&session) {
                    (kept.ends_ms, kept.will_due_ms) = (ends_ms.max(1), will_due_ms);
                    if will_due_ms == 0 {
                        kept.will = None;
                    }
                }
            }
            Record::Subscribed { session, group, filter, options, id } => {
                if let Some(kept) = self.sessions.get_mut(&session) {
                    kept.subscriptions.insert((group.into(), filter.into()), (options, id));
                }
            }
            Record::Unsubscribed { session, group, filter } => {
                if let Some(kept) = self.sessions.get_mut(&session) {
                    kept.subscriptions.remove(&(Box::from(group), Box::from(filter)));
                }
            }
            handshake => self.apply_handshake(&handshake),
        }
    }

    fn apply_handshake(&mut self, record: &Record<'_>) {
        let (Record::Sent { session, .. }
        | Record::Gone { session, .. }
        | Record::Acked { session, .. }
        | Record::Received { session, .. }
        | Record::Released { session, .. }
        | Record::Incoming { session, .. }) = record
        else {
            return;
        };
        let Some(kept) = self.sessions.get_mut(session) else { return };
        match record {
            Record::Sent { place, packet, .. } => {
                if let Some(paper) = kept.take(*place) {
                    let awaits = if paper.qos() == Qos::ExactlyOnce { Awaits::Pubrec } else { Awaits::Puback };
                    kept.window.push(Held { packet: *packet, awaits, paper: Some(paper) });
                }
            }
            Record::Gone { place, .. } => drop(kept.take(*place)),
            Record::Acked { packet, .. } => kept.window.retain(|held| held.packet != *packet),
            Record::Received { packet, .. } => {
                if let Some(held) = kept.window.iter_mut().find(|held| held.packet == *packet) {
                    (held.awaits, held.paper) = (Awaits::Pubcomp, None);
                }
            }
            Record::Released { packet, .. } => drop(kept.incoming.remove(packet)),
            Record::Incoming { packet, .. } => drop(kept.incoming.insert(*packet)),
            _ => {}
        }
    }

    fn publish(&mut self, session: u64, packet: u16, stored: &Stored<'_>) {
        let Ok(message) = stored.message() else { return };
        let key = (Stream::of(&message.id), message.id.sequence);
        // A checkpoint says both again: the record of its routes follows.
        self.unfinished.insert(key, Cut { session, packet, routed: None, body: Body::new(0, stored) });
        let Some(kept) = self.sessions.get_mut(&session) else { return };
        match packet {
            // A will, which fires once.
            0 => (kept.will, kept.will_due_ms) = (None, 0),
            packet => drop(kept.incoming.insert(packet)),
        }
    }

    fn body(&mut self, number: u64, stored: &Stored<'_>) -> Arc<Body> {
        self.body_number = self.body_number.max(number);
        let body = Body::new(number, stored);
        self.bodies.insert(number, body.clone());
        body
    }

    fn slip(&mut self, slip: &Slip<'_>, body: &Arc<Body>) {
        let Some(kept) = self.sessions.get_mut(&slip.session) else { return };
        kept.places = kept.places.max(slip.place);
        let paper = Paper::new(slip, body.clone());
        if slip.packet == 0 {
            return kept.put(paper);
        }
        let awaits = if slip.qos() == Qos::ExactlyOnce { Awaits::Pubrec } else { Awaits::Puback };
        kept.window.push(Held { packet: slip.packet, awaits, paper: Some(paper) });
    }

    fn held(&self, entry: &record::Unfinished<'_>) -> Option<Held> {
        let awaits = match entry.awaits {
            0 => Awaits::Puback,
            1 => Awaits::Pubrec,
            _ => Awaits::Pubcomp,
        };
        let paper = match awaits {
            Awaits::Pubcomp => None,
            _ => Some(Paper::new(&entry.slip, self.bodies.get(&entry.body)?.clone())),
        };
        Some(Held { packet: entry.slip.packet, awaits, paper })
    }
}

impl Kept {
    /// Queues in the order of places; a checkpoint writes what a later record has said already.
    fn put(&mut self, paper: Paper) {
        if self.queue.back().is_none_or(|last| last.place < paper.place) {
            return self.queue.push_back(paper);
        }
        match self.queue.binary_search_by_key(&paper.place, |queued| queued.place) {
            Ok(at) => self.queue[at] = paper,
            Err(at) => self.queue.insert(at, paper),
        }
    }

    fn take(&mut self, place: u64) -> Option<Paper> {
        if self.queue.front()?.place == place {
            return self.queue.pop_front();
        }
        let at = self.queue.binary_search_by_key(&place, |queued| queued.place).ok()?;
        self.queue.remove(at)
    }
}
