//! The node's interest as this shard knows it: which destinations want a topic, without sessions, QoS
//! or options. Every shard holds a replica for all *other* destinations; what its own sessions want
//! stands in [`crate::subscriptions`]. Generous by design: a filter is only a 64-bit key, so a collision
//! costs one useless hop and never a message; counts per destination keep colliding filters apart.

use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::{index::Shapes, tree::LevelTree};

/// Where a message can go from here. The encoding in 32 bits is part of the hop format.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Dest {
    /// Sessions at home on another shard of this node.
    Shard(u16),
    /// Shared groups whose owner is that shard.
    Group(u16),
    /// A remote cluster, by the index of its link.
    Link(u16),
    /// Another node of this cluster.
    Peer(u16),
}

impl Dest {
    /// Kind in the upper 8 bits, index in the lower 16.
    pub fn encode(self) -> u32 {
        match self {
            Dest::Shard(i) => 1 << 24 | u32::from(i),
            Dest::Group(i) => 2 << 24 | u32::from(i),
            Dest::Link(i) => 3 << 24 | u32::from(i),
            Dest::Peer(i) => 4 << 24 | u32::from(i),
        }
    }

    /// The reverse; `None` for a kind that this version does not know.
    pub fn decode(bits: u32) -> Option<Dest> {
        let index = bits as u16;
        match bits >> 24 {
            1 => Some(Dest::Shard(index)),
            2 => Some(Dest::Group(index)),
            3 => Some(Dest::Link(index)),
            4 => Some(Dest::Peer(index)),
            _ => None,
        }
    }
}

/// What an interest frame says of its filter.
pub(crate) mod change {
    /// The destination no longer wants it.
    pub(crate) const ENDS: u8 = 0;
    /// The destination wants it.
    pub(crate) const BEGINS: u8 = 1;
    /// No filter, only a number to confirm.
    pub(crate) const MARK: u8 = 2;
}

/// Destinations of one topic.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DestSet {
    /// Bit i: shard i has sessions that want it.
    pub shards: u128,
    /// Bit i: shard i owns a shared group that wants it.
    pub groups: u128,
    /// Bit i: the remote of link i wants it.
    pub links: u64,
}

/// One bit per shard in [`DestSet`].
pub const SHARDS_MAX: u16 = 128;
/// One bit per link in [`DestSet`].
pub const LINKS_MAX: u16 = 64;

impl DestSet {
    /// Nobody.
    pub fn is_empty(&self) -> bool {
        self.shards == 0 && self.groups == 0 && self.links == 0
    }

    fn insert(&mut self, dest: Dest) {
        match dest {
            Dest::Shard(i) => self.shards |= 1 << i,
            Dest::Group(i) => self.groups |= 1 << i,
            Dest::Link(i) => self.links |= 1 << i,
            Dest::Peer(_) => {}
        }
    }
}

/// Filter key -> destinations with counts.
pub struct Interest {
    shapes: Shapes,
    table: HashTable<Wanted>,
    unusual: LevelTree<Dests>,
}

struct Wanted {
    key: u64,
    dests: Dests,
}

/// (destination, how many of its filters share the key).
type Dests = SmallVec<[(Dest, u32); 1]>;

impl Interest {
    /// Nobody wants anything yet.
    pub fn new(seed: u64, shapes_max: usize) -> Interest {
        Interest { shapes: Shapes::new(seed, shapes_max), table: HashTable::new(), unusual: LevelTree::new(seed) }
    }

    /// `dest` wants `filter` once more.
    pub fn add(&mut self, filter: &str, dest: Dest) {
        let Some(key) = self.shapes.add(filter) else {
            match self.unusual.get_mut(filter) {
                Some(dests) => count_up(dests, dest),
                None => {
                    self.unusual.insert(filter, smallvec::smallvec![(dest, 1)]);
                }
            }
            return;
        };
        let entry = self.table.entry(key, |w| w.key == key, |w| w.key);
        let wanted = entry.or_insert(Wanted { key, dests: Dests::new() });
        count_up(&mut wanted.into_mut().dests, dest);
    }

    /// Takes back one [`Interest::add`]. False when there was none: the announcer and we disagree.
    pub fn remove(&mut self, filter: &str, dest: Dest) -> bool {
        if let Some(key) = self.shapes.key(filter)
            && let Ok(mut entry) = self.table.find_entry(key, |w| w.key == key)
            && count_down(&mut entry.get_mut().dests, dest)
        {
            if entry.get().dests.is_empty() {
                entry.remove();
            }
            self.shapes.remove(filter);
            return true;
        }
        let Some(dests) = self.unusual.get_mut(filter) else { return false };
        let found = count_down(dests, dest);
        if dests.is_empty() {
            self.unusual.remove(filter);
        }
        found
    }

    /// Who wants `topic`.
    #[inline]
    pub fn wanted(&self, topic: &str) -> DestSet {
        let mut set = DestSet::default();
        if self.table.is_empty() && self.unusual.is_empty() {
            return set;
        }
        self.shapes.probes(topic, |key| {
            if let Some(wanted) = self.table.find(key, |w| w.key == key) {
                wanted.dests.iter().for_each(|(dest, _)| set.insert(*dest));
            }
        });
        self.unusual.filters_matching(topic, |dests| dests.iter().for_each(|(dest, _)| set.insert(*dest)));
        set
    }

    /// Number of keys: what this replica costs.
    pub fn len(&self) -> usize {
        self.table.len() + self.unusual.len()
    }

    /// True when nobody else wants anything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes per entry of the table, without the rare spill of more than one destination.
    pub const ENTRY_BYTES: usize = core::mem::size_of::<Wanted>() + 1;
}

fn count_up(dests: &mut Dests, dest: Dest) {
    match dests.iter_mut().find(|(d, _)| *d == dest) {
        Some((_, count)) => *count += 1,
        None => dests.push((dest, 1)),
    }
}

fn count_down(dests: &mut Dests, dest: Dest) -> bool {
    let Some(at) = dests.iter().position(|(d, _)| *d == dest) else { return false };
    dests[at].1 -= 1;
    if dests[at].1 == 0 {
        dests.swap_remove(at);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_the_union_over_all_matching_filters() {
        let mut interest = Interest::new(1, 1);
        interest.add("a/+", Dest::Shard(1));
        interest.add("a/b", Dest::Group(2));
        interest.add("+/+/#", Dest::Link(3)); // second shape: lives in the tree
        let set = interest.wanted("a/b");
        assert_eq!(set, DestSet { shards: 2, groups: 4, links: 8 });
        assert!(interest.wanted("b").is_empty());
    }

    #[test]
    fn the_same_filter_twice_needs_two_withdrawals() {
        let mut interest = Interest::new(1, 1);
        for filter in ["a/+", "+/b"] {
            interest.add(filter, Dest::Shard(1));
            interest.add(filter, Dest::Shard(1));
            assert!(interest.remove(filter, Dest::Shard(1)));
            assert!(!interest.wanted("a/b").is_empty());
            assert!(interest.remove(filter, Dest::Shard(1)));
            assert!(!interest.remove(filter, Dest::Shard(1)));
        }
        assert!(interest.is_empty());
    }

    #[test]
    fn destination_ids_survive_their_encoding() {
        for dest in [Dest::Shard(7), Dest::Group(127), Dest::Link(63), Dest::Peer(65535)] {
            assert_eq!(Dest::decode(dest.encode()), Some(dest));
        }
        assert_eq!(Dest::decode(9 << 24), None);
    }
}
