//! The sessions that are at home on this shard, by client id, and what ends them: expiry, Clean Start,
//! take-over. Invariant: one session per client id, and at most one connection per session.

use alloc::{boxed::Box, vec::Vec};

use ahash::RandomState;
use hashbrown::HashTable;
use mqtt::{session::Queueable, types::Qos};
use slab::Slab;
use smallvec::SmallVec;

use crate::{
    admission::Access,
    frame::Kept,
    replay::Replay,
    subscriptions::{Filters, Guard, Options},
};

/// Protocol state of a session on this shard.
pub(crate) type State = mqtt::session::Session<Delivery>;

/// One message on its way to one session.
#[derive(Clone)]
pub(crate) struct Delivery {
    pub(crate) message: Kept,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// Subscription identifiers that the PUBLISH carries.
    pub(crate) ids: SmallVec<[u32; 2]>,
    /// Place in the session's order, if the session is kept in the log; else 0.
    pub(crate) place: u64,
}

impl Delivery {
    /// QoS and, in bit 2, RETAIN: as records hold them.
    pub(crate) fn flags(&self) -> u8 {
        self.qos as u8 | u8::from(self.retain) << 2
    }

    /// Does the log hold it?
    pub(crate) fn recorded(&self) -> bool {
        self.place != 0 && self.qos != Qos::AtMostOnce
    }
}

impl Queueable for Delivery {
    fn bytes(&self) -> usize {
        self.message.bytes()
    }
    fn qos(&self) -> Qos {
        self.qos
    }
    fn expires_us(&self) -> u64 {
        self.message.expires_us
    }
}

/// Identity of a session on its home shard.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct SessionId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// One session.
pub(crate) struct Session {
    pub(crate) client: Box<str>,
    /// Stable hash of the client id: the publisher of its messages.
    pub(crate) client_hash: u64,
    pub(crate) generation: u32,
    /// Its number in the log of this shard; 0: it is not kept there.
    pub(crate) number: u64,
    /// Places given to deliveries so far.
    pub(crate) places: u64,
    /// A crash has cut its connection.
    pub(crate) cut: bool,
    /// Index of its connection; [`OFFLINE`] without one.
    pub(crate) conn: u32,
    pub(crate) state: State,
    /// Whose it is and what that may do; `None`: a stranger who may do everything.
    pub(crate) access: Option<Box<Access>>,
    pub(crate) filters: Filters,
    pub(crate) shared: Vec<SharedSubscription>,
    pub(crate) replays: Vec<Replay>,
    /// Offline: monotonic time at which the session ends; `u64::MAX`: never.
    pub(crate) ends_us: u64,
    /// Offline: monotonic time at which the will is due; 0: none.
    pub(crate) will_due_us: u64,
    /// Queued messages wait only because the output was full: look again when it drains.
    pub(crate) blocked: bool,
}

/// A subscription whose group is kept by the group's owner shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SharedSubscription {
    pub(crate) group: Box<str>,
    pub(crate) filter: Box<str>,
    pub(crate) options: Options,
    pub(crate) id: u32,
    /// Its rights were taken: it is no member while this holds.
    pub(crate) muted: bool,
}

/// No connection.
pub(crate) const OFFLINE: u32 = u32::MAX;

impl Session {
    /// Connected now?
    #[inline]
    pub(crate) fn online(&self) -> bool {
        self.conn != OFFLINE
    }

    /// The place of its next delivery, if it is kept in the log.
    #[inline]
    pub(crate) fn next_place(&mut self) -> u64 {
        if self.number == 0 {
            return 0;
        }
        self.places += 1;
        self.places
    }

    /// May it not receive a message of this topic, through a subscription with these options?
    pub(crate) fn withheld(&self, topic: &str, options: Options) -> bool {
        let may = || self.access.as_ref().is_none_or(|access| access.may_receive(topic, options.qos()));
        options.guard() == Guard::Muted || !may()
    }

    /// Number of subscriptions of both sorts.
    pub(crate) fn subscription_count(&self) -> usize {
        self.filters.len() + self.shared.len()
    }
}

/// All sessions of the shard.
pub(crate) struct Sessions {
    slab: Slab<Session>,
    by_client: HashTable<u32>,
    hasher: RandomState,
    next_generation: u32,
}

impl Sessions {
    pub(crate) fn new(seed: u64) -> Sessions {
        Sessions {
            slab: Slab::new(),
            by_client: HashTable::new(),
            hasher: RandomState::with_seeds(seed, 8, 9, 10),
            next_generation: 1,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn find(&self, client: &str) -> Option<SessionId> {
        let slab = &self.slab;
        let found = self.by_client.find(self.hasher.hash_one(client), |&at| *slab[at as usize].client == *client);
        found.map(|&index| SessionId { index, generation: slab[index as usize].generation })
    }

    pub(crate) fn insert(&mut self, client: &str, expiry_s: u32) -> SessionId {
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1).max(1);
        let index = self.slab.insert(Session {
            client: client.into(),
            client_hash: contract::hash::stable(client.as_bytes()),
            generation,
            number: 0,
            places: 0,
            cut: false,
            conn: OFFLINE,
            state: State::new(expiry_s),
            access: None,
            filters: Filters::with_hasher(self.hasher.clone()),
            shared: Vec::new(),
            replays: Vec::new(),
            ends_us: u64::MAX,
            will_due_us: 0,
            blocked: false,
        }) as u32;
        let (slab, hasher) = (&self.slab, &self.hasher);
        self.by_client.insert_unique(hasher.hash_one(client), index, |&at| hasher.hash_one(&*slab[at as usize].client));
        SessionId { index, generation }
    }

    pub(crate) fn remove(&mut self, id: SessionId) -> Option<Session> {
        self.get(id)?;
        let session = self.slab.remove(id.index as usize);
        let hash = self.hasher.hash_one(&*session.client);
        if let Ok(entry) = self.by_client.find_entry(hash, |&at| at == id.index) {
            entry.remove();
        }
        Some(session)
    }

    /// The session, unless its place has another tenant by now.
    pub(crate) fn get(&self, id: SessionId) -> Option<&Session> {
        self.slab.get(id.index as usize).filter(|s| s.generation == id.generation)
    }

    /// The session, unless its place has another tenant by now.
    pub(crate) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.slab.get_mut(id.index as usize).filter(|s| s.generation == id.generation)
    }

    /// The session at an index that a subscription names: subscriptions end before their session does.
    #[inline]
    pub(crate) fn at(&mut self, index: u32) -> Option<&mut Session> {
        self.slab.get_mut(index as usize)
    }

    /// The session at an index, if there is one.
    pub(crate) fn id_at(&self, index: u32) -> Option<SessionId> {
        self.slab.get(index as usize).map(|session| SessionId { index, generation: session.generation })
    }

    /// Indices below this one may hold a session.
    pub(crate) fn places(&self) -> u32 {
        self.slab.capacity() as u32
    }

    /// Bytes of everything queued.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.iter().map(|session| session.state.queued_bytes()).sum()
    }

    /// Every session, for status pages and exports.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.slab.iter().map(|(_, session)| session)
    }
}
