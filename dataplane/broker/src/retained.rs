//! Owner side of retained messages: the values of the topics whose partition this shard owns, their
//! stamps, and the cursors of replays that other shards (or this one) have open here.
//! Invariant: the value of a topic is the last one that this shard took, and `taken` says per origin
//! stream how far that goes, so a reader can tell a newer live message from an older one.

use alloc::{boxed::Box, collections::BTreeSet, string::String, vec::Vec};

use ahash::RandomState;
use contract::{config::Retainer, time::Now};
use hashbrown::HashMap;

use crate::{
    counters::{Counter, Counters},
    frame::{self, Kept, Kind, Message, Pool},
    journal::record::DURABLE_STREAM,
    tree::LevelTree,
};

/// Bounds of the store, per shard.
#[derive(Clone, Copy)]
pub(crate) struct RetainedLimits {
    pub(crate) values_max: usize,
    pub(crate) bytes_max: u64,
    pub(crate) payload_bytes_max: usize,
}

impl From<&Retainer> for RetainedLimits {
    fn from(retainer: &Retainer) -> RetainedLimits {
        RetainedLimits {
            values_max: retainer.retained_max as usize,
            bytes_max: retainer.retained_bytes_max,
            payload_bytes_max: retainer.retained_payload_bytes_max as usize,
        }
    }
}

/// Values, and open cursors.
pub(crate) struct Retained {
    values: LevelTree<Kept>,
    bytes: u64,
    /// Highest sequence of a retained publish taken from each stream of this start of the node; see [`place_of`].
    taken: Vec<u64>,
    incarnation: u32,
    /// (expiry, topic) of the values that expire.
    expiries: BTreeSet<(u64, Box<str>)>,
    cursors: HashMap<(u16, u32), Cursor, RandomState>,
    /// Queries taken in this turn; answered after the tails that were read after them.
    pub(crate) queries: Vec<Query>,
    limits: RetainedLimits,
    last_stamp: u64,
}

/// A question for retained values.
pub(crate) struct Query {
    pub(crate) from: u16,
    pub(crate) query: u32,
    /// Values that the asker has room for.
    pub(crate) room: u32,
    /// A new query's filter; `None` continues at the cursor.
    pub(crate) filter: Option<Box<str>>,
}

/// What became of a retained publish.
pub(crate) enum Taken<'a> {
    /// It is the value of its topic now.
    Stored(&'a Kept),
    /// The topic has no value any more; the deletion has this stamp.
    Deleted(u64),
    /// Nothing changed.
    Nothing,
}

struct Cursor {
    topics: Vec<Box<str>>,
    next: usize,
}

/// A page of a replay, ready to be sent or, on the same shard, to be read.
pub(crate) struct Page {
    pub(crate) query: u32,
    pub(crate) last: bool,
    pub(crate) taken: Vec<u64>,
    /// Message frames.
    pub(crate) frames: Vec<u8>,
}

/// Bytes of values in one page; a single larger value still goes.
const PAGE_BYTES: usize = 64 * 1024;
/// Expired values removed per turn at most.
const EXPIRE_PER_TURN: usize = 256;
/// Cursors that other shards may keep open here.
pub(crate) const CURSORS_MAX: usize = 65_536;

impl Retained {
    pub(crate) fn new(seed: u64, shards: u16, incarnation: u32, limits: RetainedLimits) -> Retained {
        Retained {
            values: LevelTree::new(seed),
            bytes: 0,
            taken: alloc::vec![0; 2 * usize::from(shards)],
            incarnation,
            expiries: BTreeSet::new(),
            cursors: HashMap::with_hasher(RandomState::with_seeds(seed, 11, 12, 13)),
            queries: Vec::new(),
            limits,
            last_stamp: 0,
        }
    }

    /// New bounds for what comes; what is stored stays.
    pub(crate) fn set_limits(&mut self, limits: RetainedLimits) {
        self.limits = limits;
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    pub(crate) fn cursors(&self) -> usize {
        self.cursors.len()
    }

    /// Takes a retained publish: stores, replaces or deletes, and stamps.
    pub(crate) fn take(
        &mut self,
        message: &Message<'_>,
        now: Now,
        pool: &mut Pool,
        counters: &mut Counters,
    ) -> Taken<'_> {
        if let Some(taken) = self.taken.get_mut(place_of(message.id.stream))
            && message.id.incarnation == self.incarnation
        {
            *taken = (*taken).max(message.id.sequence);
        }
        //= MQTT-3.3.1-6
        //= MQTT-3.3.1-7
        if message.payload.is_empty() {
            if !self.remove(message.topic, pool) {
                return Taken::Nothing;
            }
            counters.one(Counter::retained_deleted);
            self.last_stamp = (now.wall_ms << 16).max(self.last_stamp + 1);
            return Taken::Deleted(self.last_stamp);
        }
        if message.payload.len() > self.limits.payload_bytes_max {
            counters.one(Counter::shed_retained_payload);
            return Taken::Nothing;
        }
        let before = self.values.get(message.topic).map(|kept| (kept.bytes(), stamp_of(kept)));
        let (old_bytes, old_stamp) = before.unwrap_or((0, 0));
        let bytes = frame::message_bytes(message);
        let full = before.is_none() && self.values.len() >= self.limits.values_max;
        if full || self.bytes - old_bytes as u64 + bytes as u64 > self.limits.bytes_max {
            counters.one(Counter::shed_retained_full);
            return Taken::Nothing;
        }
        // The hybrid clock: wall time, but never behind what was given before.
        self.last_stamp = (now.wall_ms << 16).max(self.last_stamp + 1).max(old_stamp + 1);
        //= MQTT-3.3.1-5
        let stamped = Message { stamp: self.last_stamp, durable: false, ..*message };
        self.remove(message.topic, pool);
        let kept = pool.keep(&stamped, now.mono_us);
        if kept.expires_us != u64::MAX {
            self.expiries.insert((kept.expires_us, message.topic.into()));
        }
        self.bytes += kept.bytes() as u64;
        self.values.insert(message.topic, kept);
        counters.one(Counter::retained_stored);
        self.values.get(message.topic).map_or(Taken::Nothing, Taken::Stored)
    }

    /// Puts a value back that the log held.
    pub(crate) fn restore(&mut self, kept: Kept, now_us: u64) {
        let message = kept.message(now_us);
        self.last_stamp = self.last_stamp.max(message.stamp);
        if kept.expires_us != u64::MAX {
            self.expiries.insert((kept.expires_us, message.topic.into()));
        }
        self.bytes += kept.bytes() as u64;
        let topic: Box<str> = message.topic.into();
        if let Some(old) = self.values.insert(&topic, kept) {
            self.bytes -= old.bytes() as u64;
        }
    }

    /// Stamps given from now on are higher.
    pub(crate) fn restore_stamp(&mut self, stamp: u64) {
        self.last_stamp = self.last_stamp.max(stamp);
    }

    /// The last stamp given.
    pub(crate) fn last_stamp(&self) -> u64 {
        self.last_stamp
    }

    /// Bytes of all values.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Places below this one may hold a value.
    pub(crate) fn places(&self) -> u32 {
        self.values.places()
    }

    /// The value at a place.
    pub(crate) fn at(&self, place: u32) -> Option<&Kept> {
        self.values.value(place)
    }

    /// Answers a query with its next page.
    pub(crate) fn answer(&mut self, query: Query, now: Now) -> Page {
        let key = (query.from, query.query);
        if let Some(filter) = &query.filter {
            let mut topics = Vec::new();
            let mut path = String::new();
            if self.cursors.len() < CURSORS_MAX {
                self.values.topics_matching(filter, |place| {
                    path.clear();
                    self.values.path(place, &mut path);
                    topics.push(Box::from(path.as_str()));
                });
            }
            self.cursors.insert(key, Cursor { topics, next: 0 });
        }
        let mut page = Page { query: query.query, last: true, taken: self.taken.clone(), frames: Vec::new() };
        let Some(cursor) = self.cursors.get_mut(&key) else { return page };
        let mut count = 0;
        while let Some(topic) = cursor.topics.get(cursor.next) {
            if page.frames.len() >= PAGE_BYTES || count >= query.room.max(1) {
                page.last = false;
                break;
            }
            cursor.next += 1;
            // What was deleted or has expired since the search is not sent; what was replaced is sent as it is now.
            let Some(kept) = self.values.get(topic).filter(|kept| !kept.expired(now.mono_us)) else { continue };
            count += 1;
            frame::put_message(&mut page.frames, Kind::Message, 0, 0, &[], &kept.message(now.mono_us));
        }
        if page.last {
            self.cursors.remove(&key);
        }
        page
    }

    /// The asker has gone.
    pub(crate) fn cancel(&mut self, from: u16, query: u32) {
        self.queries.retain(|waiting| (waiting.from, waiting.query) != (from, query));
        self.cursors.remove(&(from, query));
    }

    /// Removes values whose life is over, a bounded number per call.
    pub(crate) fn expire(&mut self, now_us: u64, pool: &mut Pool) {
        for _ in 0..EXPIRE_PER_TURN {
            match self.expiries.first() {
                Some((at, _)) if *at <= now_us => {}
                _ => break,
            }
            if let Some((_, topic)) = self.expiries.pop_first() {
                self.remove(&topic, pool);
            }
        }
    }

    /// When [`Retained::expire`] has something to do.
    pub(crate) fn deadline_us(&self) -> u64 {
        self.expiries.first().map_or(u64::MAX, |(at, _)| *at)
    }

    /// Every value, for tests and exports.
    pub(crate) fn topics(&self) -> Vec<String> {
        let mut topics = Vec::new();
        for filter in ["#", "$SYS/#", "$LINK/#"] {
            self.values.topics_matching(filter, |place| {
                let mut path = String::new();
                self.values.path(place, &mut path);
                topics.push(path);
            });
        }
        topics
    }

    /// The value of a topic.
    pub(crate) fn value(&self, topic: &str) -> Option<&Kept> {
        self.values.get(topic)
    }

    fn remove(&mut self, topic: &str, pool: &mut Pool) -> bool {
        let Some(kept) = self.values.remove(topic) else { return false };
        self.bytes -= kept.bytes() as u64;
        if kept.expires_us != u64::MAX {
            self.expiries.remove(&(kept.expires_us, topic.into()));
        }
        pool.release(kept);
        true
    }
}

/// Each home shard has two streams: what is routed at once, and what waits for its log.
pub(crate) fn place_of(stream: u32) -> usize {
    2 * (stream & !DURABLE_STREAM) as usize + usize::from(stream & DURABLE_STREAM != 0)
}

fn stamp_of(kept: &Kept) -> u64 {
    kept.message(0).stamp
}

#[cfg(test)]
mod tests {
    use mqtt::types::Qos;

    use super::*;
    use crate::frame::MessageId;

    fn message<'a>(topic: &'a str, payload: &'a [u8], sequence: u64, expiry_ms: u64) -> Message<'a> {
        Message {
            id: MessageId { sequence, ..MessageId::default() },
            stamp: 0,
            expiry_ms,
            publisher: 0,
            qos: Qos::AtLeastOnce,
            retain: true,
            from_link: false,
            durable: false,
            topic,
            properties: &[],
            payload,
        }
    }

    fn store() -> (Retained, Pool, Counters) {
        let limits = RetainedLimits { values_max: 3, bytes_max: 1000, payload_bytes_max: 100 };
        (Retained::new(1, 1, 0, limits), Pool::default(), Counters::default())
    }

    const NOW: Now = Now { mono_us: 1_000_000, wall_ms: 5 };

    fn topics(page: &Page) -> Vec<String> {
        let mut topics = Vec::new();
        let mut rest = &page.frames[..];
        while let Ok((frame, tail)) = frame::split(rest) {
            topics.push(frame::read_message(&frame).unwrap().message.topic.into());
            rest = tail;
        }
        topics
    }

    #[test]
    fn pages_follow_the_room_of_the_asker_and_skip_what_was_deleted_meanwhile() {
        let (mut retained, mut pool, mut counters) = store();
        for (i, topic) in ["a/1", "a/2", "a/3"].iter().enumerate() {
            retained.take(&message(topic, b"x", i as u64 + 1, u64::MAX), NOW, &mut pool, &mut counters);
        }
        let query = |filter: Option<&str>| Query { from: 0, query: 7, room: 1, filter: filter.map(Box::from) };
        let first = retained.answer(query(Some("a/#")), NOW);
        assert!(!first.last && first.taken == [3, 0]);
        let first = topics(&first);
        let gone = ["a/1", "a/2", "a/3"].into_iter().find(|t| *t != first[0]).unwrap();
        retained.take(&message(gone, b"", 4, u64::MAX), NOW, &mut pool, &mut counters);
        let second = retained.answer(query(None), NOW);
        assert!(second.last && topics(&second).len() == 1 && topics(&second)[0] != first[0]);
        assert_eq!(retained.cursors(), 0);
    }

    #[test]
    fn a_full_store_sheds_new_topics_and_still_replaces_old_ones() {
        let (mut retained, mut pool, mut counters) = store();
        for topic in ["a", "b", "c", "d", "a"] {
            retained.take(&message(topic, b"xy", 1, u64::MAX), NOW, &mut pool, &mut counters);
        }
        assert_eq!(retained.len(), 3);
        assert_eq!(counters.value(Counter::shed_retained_full), 1);
        retained.take(&message("a", &[0; 101], 1, u64::MAX), NOW, &mut pool, &mut counters);
        assert_eq!(counters.value(Counter::shed_retained_payload), 1);
        for topic in ["a", "b", "c"] {
            retained.take(&message(topic, b"", 1, u64::MAX), NOW, &mut pool, &mut counters);
        }
        assert_eq!((retained.len(), retained.bytes), (0, 0));
    }

    #[test]
    fn stamps_grow_even_when_the_wall_clock_steps_back() {
        let (mut retained, mut pool, mut counters) = store();
        retained.take(&message("a", b"1", 1, u64::MAX), NOW, &mut pool, &mut counters);
        let first = stamp_of(retained.value("a").unwrap());
        let earlier = Now { wall_ms: 1, ..NOW };
        retained.take(&message("a", b"2", 2, u64::MAX), earlier, &mut pool, &mut counters);
        assert!(stamp_of(retained.value("a").unwrap()) > first);
    }

    #[test]
    fn values_expire_alone() {
        let (mut retained, mut pool, mut counters) = store();
        retained.take(&message("a", b"1", 1, 50), NOW, &mut pool, &mut counters);
        assert_eq!(retained.deadline_us(), 1_050_000);
        retained.expire(1_049_999, &mut pool);
        assert_eq!(retained.len(), 1);
        retained.expire(1_050_000, &mut pool);
        assert_eq!((retained.len(), retained.bytes, retained.expiries.len()), (0, 0, 0));
    }
}
