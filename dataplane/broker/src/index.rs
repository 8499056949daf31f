//! Tuple-space search: filters of the same shape (number of levels, positions of `+`, a final `#`)
//! are found with one hash probe, however many there are. Used by interest and by subscriptions, each
//! with a table of its own keyed by the 64-bit keys made here. Lives on one shard; its keys never leave it.
//! Filters whose shape finds no room among `shapes_max` belong into the owner's [`crate::tree::LevelTree`].

use alloc::vec::Vec;

use ahash::RandomState;
use smallvec::SmallVec;

/// The shapes in use, and the hash that turns filters and topics into keys.
pub struct Shapes {
    shapes: Vec<Shape>,
    exact: usize,
    hasher: RandomState,
    shapes_max: usize,
}

struct Shape {
    kind: Kind,
    filters: usize,
}

/// What filters of one shape have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    /// Levels before a final `#`.
    levels: u8,
    /// Bit i: level i is `+`.
    plus: u128,
    /// Ends in `#`.
    multi: bool,
}

/// More levels than this have no bit in [`Kind::plus`]: such filters live in the tree.
const LEVELS_MAX: usize = 128;

impl Shapes {
    /// No filters yet. `shapes_max` bounds the probes per topic (`limits.interest_shapes_max`).
    pub fn new(seed: u64, shapes_max: usize) -> Shapes {
        Shapes {
            shapes: Vec::new(),
            exact: 0,
            hasher: RandomState::with_seeds(seed, 0x6a09_e667_f3bc_c908, 1, 2),
            shapes_max,
        }
    }

    /// The key under which `filter` is or would be kept; `None` when its shape has no place here.
    pub fn key(&self, filter: &str) -> Option<u64> {
        if !has_wildcard(filter) {
            return Some(self.exact_key(filter));
        }
        let kind = kind_of(filter)?;
        self.shapes.iter().any(|shape| shape.kind == kind).then(|| self.key_of_kind(filter, kind))
    }

    /// Registers one more filter of this shape. `None`: put it into the tree instead.
    pub fn add(&mut self, filter: &str) -> Option<u64> {
        if !has_wildcard(filter) {
            self.exact += 1;
            return Some(self.exact_key(filter));
        }
        let kind = kind_of(filter)?;
        match self.shapes.iter().position(|shape| shape.kind == kind) {
            Some(at) => self.shapes[at].filters += 1,
            None if self.shapes.len() < self.shapes_max => self.shapes.push(Shape { kind, filters: 1 }),
            None => return None,
        }
        Some(self.key_of_kind(filter, kind))
    }

    /// Takes back one [`Shapes::add`] that returned a key.
    pub fn remove(&mut self, filter: &str) {
        if !has_wildcard(filter) {
            self.exact = self.exact.saturating_sub(1);
            return;
        }
        let Some(kind) = kind_of(filter) else { return };
        if let Some(at) = self.shapes.iter().position(|shape| shape.kind == kind) {
            self.shapes[at].filters -= 1;
            if self.shapes[at].filters == 0 {
                self.shapes.swap_remove(at);
            }
        }
    }

    /// Calls `probe` with the key of every filter that could match `topic`: one exact, one per shape.
    #[inline]
    pub fn probes(&self, topic: &str, mut probe: impl FnMut(u64)) {
        if self.exact > 0 {
            probe(self.exact_key(topic));
        }
        if !self.shapes.is_empty() {
            self.probe_shapes(topic, &mut probe);
        }
    }

    fn probe_shapes(&self, topic: &str, probe: &mut impl FnMut(u64)) {
        let hashes: SmallVec<[u64; 16]> = topic.split('/').map(|l| self.hasher.hash_one(l)).collect();
        let levels = hashes.len();
        let hidden = topic.as_bytes().first() == Some(&b'$');
        for shape in &self.shapes {
            let kind = shape.kind;
            let own = usize::from(kind.levels);
            let fits = if kind.multi { own <= levels } else { own == levels };
            //= MQTT-4.7.2-1
            // A leading wildcard does not see topics that begin with `$`.
            let blind = hidden && (kind.plus & 1 == 1 || own == 0);
            if !fits || blind {
                continue;
            }
            let mut key = kind.start();
            for (i, hash) in hashes[..own].iter().enumerate() {
                if kind.plus >> i & 1 == 0 {
                    key = fold(key, *hash);
                }
            }
            probe(key);
        }
    }

    fn exact_key(&self, filter: &str) -> u64 {
        self.hasher.hash_one(filter.as_bytes())
    }

    fn key_of_kind(&self, filter: &str, kind: Kind) -> u64 {
        let mut key = kind.start();
        for (i, level) in filter.split('/').take(usize::from(kind.levels)).enumerate() {
            if kind.plus >> i & 1 == 0 {
                key = fold(key, self.hasher.hash_one(level));
            }
        }
        key
    }
}

impl Kind {
    fn start(self) -> u64 {
        fold(u64::from(self.levels) | u64::from(self.multi) << 8, self.plus as u64 ^ (self.plus >> 64) as u64)
    }
}

fn kind_of(filter: &str) -> Option<Kind> {
    let mut kind = Kind { levels: 0, plus: 0, multi: false };
    for (i, level) in filter.split('/').enumerate() {
        if i >= LEVELS_MAX {
            return None;
        }
        match level {
            "#" => kind.multi = true,
            "+" => {
                kind.plus |= 1 << i;
                kind.levels += 1;
            }
            _ => kind.levels += 1,
        }
    }
    Some(kind)
}

fn fold(key: u64, hash: u64) -> u64 {
    let mixed = (key ^ hash.rotate_left(23)) as u128 * 0x9e37_79b9_7f4a_7c15_u128;
    (mixed as u64) ^ (mixed >> 64) as u64
}

/// True when a level of `filter` is `+` or `#`; on a parsed filter the characters stand nowhere else.
#[inline]
pub fn has_wildcard(filter: &str) -> bool {
    filter.bytes().any(|b| b == b'+' || b == b'#')
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn hits(filters: &[&str], topic: &str) -> usize {
        let mut shapes = Shapes::new(7, 64);
        let keys: Vec<u64> = filters.iter().map(|f| shapes.add(f).unwrap()).collect();
        let mut n = 0;
        shapes.probes(topic, |key| n += keys.iter().filter(|k| **k == key).count());
        n
    }

    #[test]
    fn a_topic_probes_the_key_of_each_filter_that_matches_it() {
        let filters = ["#", "a/#", "a/+", "+/b", "a/b", "+/+/#", "$SYS/#", "a/b/#", "+"];
        for topic in ["a", "a/b", "a/b/c", "$SYS/b", "/", "", "x/b", "a/", "$SYS"] {
            let want = filters.iter().filter(|f| mqtt::topic::matches(f, topic)).count();
            assert_eq!(hits(&filters, topic), want, "topic {topic:?}");
        }
    }

    #[test]
    fn a_shape_is_forgotten_with_its_last_filter() {
        let mut shapes = Shapes::new(7, 1);
        assert!(shapes.add("a/+").is_some());
        assert!(shapes.add("b/+").is_some());
        assert!(shapes.add("+/a").is_none(), "one shape only");
        shapes.remove("a/+");
        assert!(shapes.add("+/a").is_none());
        shapes.remove("b/+");
        assert!(shapes.add("+/a").is_some());
    }

    #[test]
    fn filters_of_more_levels_than_bits_belong_into_the_tree() {
        let mut shapes = Shapes::new(7, 64);
        let long = vec!["+"; LEVELS_MAX + 1].join("/");
        assert!(shapes.add(&long).is_none());
    }
}
