//! What each session has subscribed to, with four times per subscription: asked, granted, given up, gone.
//! Between granted and given up it surely exists; before asked and after gone it surely does not.

use std::collections::{HashMap, HashSet};

use super::{duplicates::Got, matches};

/// What a client asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// As written, possibly with `$share/`.
    pub filter: String,
    /// Largest QoS.
    pub qos: u8,
    /// No Local.
    pub no_local: bool,
    /// Retain As Published.
    pub retain_as_published: bool,
    /// Retain Handling.
    pub handling: u8,
}

/// One subscription of a session.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// As asked for.
    pub wanted: Wanted,
    /// Filter without `$share/<group>/`.
    pub filter: String,
    /// Shared: the group and the filter.
    pub shared: bool,
    /// Subscription identifier; 0: none.
    pub id: u32,
    /// SUBSCRIBE was sent.
    pub sent_us: u64,
    /// SUBACK came.
    pub granted_us: Option<u64>,
    /// UNSUBSCRIBE, or a SUBSCRIBE that replaces it, was sent.
    pub leaving_us: Option<u64>,
    /// That was answered.
    pub left_us: Option<u64>,
    changing: bool,
}

impl Subscription {
    /// It may have wanted a message that was sent at `sent_us`.
    pub fn possible(&self, sent_us: u64) -> bool {
        self.left_us.is_none_or(|left_us| sent_us < left_us)
    }

    /// It surely existed from `from_us` to `to_us`.
    pub fn certain(&self, from_us: u64, to_us: u64) -> bool {
        self.granted_us.is_some_and(|at_us| at_us <= from_us) && self.leaving_us.is_none_or(|at_us| at_us > to_us)
    }

    /// It may bring retained values.
    pub fn replays(&self) -> bool {
        !self.shared && self.wanted.handling != 2
    }
}

/// One session.
pub struct Epoch {
    /// Index of its client.
    pub client: usize,
    /// Index of its cluster.
    pub cluster: usize,
    /// It is gone.
    pub ended: bool,
    /// When that was sure.
    pub ended_us: u64,
    /// The last CONNACK.
    pub connected_us: u64,
    /// Its subscriptions, in the order of asking.
    pub subscriptions: Vec<Subscription>,
    /// What it received.
    pub got: HashMap<u64, Got>,
    /// The last message of each publisher, for their order.
    pub heads: HashMap<usize, (u64, u64)>,
    /// The last retained publish received of each topic; `None`: its deletion.
    pub retained: HashMap<String, Option<u64>>,
    /// What arrived with RETAIN.
    pub replayed: HashSet<u64>,
    /// When its last connection ended.
    pub disconnected_us: u64,
    /// A crash came when it may have been over, so it may be there with a part of what it should have.
    pub doubtful: bool,
}

impl Epoch {
    /// A new session.
    pub fn new(client: usize, cluster: usize) -> Epoch {
        Epoch {
            client,
            cluster,
            ended: false,
            ended_us: u64::MAX,
            connected_us: 0,
            subscriptions: Vec::new(),
            got: HashMap::new(),
            heads: HashMap::new(),
            retained: HashMap::new(),
            replayed: HashSet::new(),
            disconnected_us: 0,
            doubtful: false,
        }
    }

    /// SUBSCRIBE was sent; where its subscription stands.
    pub fn subscribe(&mut self, wanted: Wanted, id: u32, now_us: u64) -> usize {
        for old in self.subscriptions.iter_mut().filter(|old| old.wanted.filter == wanted.filter) {
            old.leaving_us.get_or_insert(now_us);
        }
        let inner = wanted.filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/'));
        let (filter, shared) = inner.map_or((wanted.filter.clone(), false), |(_, filter)| (filter.to_string(), true));
        let times = (now_us, None, None, None);
        let (sent_us, granted_us, leaving_us, left_us) = times;
        let changing = true;
        let new = Subscription { wanted, filter, shared, id, sent_us, granted_us, leaving_us, left_us, changing };
        self.subscriptions.push(new);
        self.subscriptions.len() - 1
    }

    /// SUBACK came.
    pub fn granted(&mut self, at: usize, now_us: u64) {
        let filter = self.subscriptions[at].wanted.filter.clone();
        for old in self.subscriptions[..at].iter_mut().filter(|old| old.wanted.filter == filter) {
            old.left_us.get_or_insert(now_us);
        }
        self.subscriptions[at].granted_us = Some(now_us);
        self.subscriptions[at].changing = false;
    }

    /// It surely lives, with everything that was promised.
    pub fn lives(&self) -> bool {
        !self.ended && !self.doubtful
    }

    /// SUBACK refused it: what was there before may be there, or not.
    pub fn refused(&mut self, at: usize) {
        self.subscriptions[at].changing = false;
    }

    /// A subscription to this filter stands.
    pub fn granted_any(&self, filter: &str) -> bool {
        self.subscriptions.iter().any(|s| s.wanted.filter == filter && s.certain(u64::MAX - 1, u64::MAX))
    }

    /// UNSUBSCRIBE was sent; what it concerns.
    pub fn unsubscribe(&mut self, filter: &str, now_us: u64) -> Vec<usize> {
        let mut concerned = Vec::new();
        for (at, old) in self.subscriptions.iter_mut().enumerate() {
            if old.wanted.filter == filter && old.left_us.is_none() {
                old.leaving_us.get_or_insert(now_us);
                old.changing = true;
                concerned.push(at);
            }
        }
        concerned
    }

    /// UNSUBACK came.
    pub fn left(&mut self, at: usize, now_us: u64) {
        self.subscriptions[at].left_us.get_or_insert(now_us);
        self.subscriptions[at].changing = false;
    }

    /// A change of this filter waits for its answer.
    pub fn in_change(&self, filter: &str) -> bool {
        self.subscriptions.iter().any(|old| old.changing && old.wanted.filter == filter)
    }

    /// The connection ended.
    pub fn connection_ended(&mut self, now_us: u64) {
        self.disconnected_us = now_us;
        self.subscriptions.iter_mut().for_each(|old| old.changing = false);
    }

    /// It has been connected without a break since before `at_us`.
    pub fn connected_since(&self, at_us: u64) -> bool {
        self.connected_us <= at_us && self.disconnected_us < self.connected_us
    }

    /// Subscriptions that match a topic.
    pub fn matching<'a>(&'a self, topic: &'a str) -> impl Iterator<Item = &'a Subscription> + Clone {
        self.subscriptions.iter().filter(move |subscription| matches(&subscription.filter, topic))
    }
}
