//! A tree of topic levels: retained values by topic (searched with filters), and filters of unusual
//! shapes (searched with topics). Owned by the structure that holds it, on one shard; nothing is shared.
//! Invariant: a node without a value has at least one child, so removing the last value empties the tree.

use alloc::{boxed::Box, vec::Vec};

use ahash::RandomState;
use hashbrown::HashTable;
use slab::Slab;

/// Values by slash-separated path, with wildcard searches in both directions.
pub struct LevelTree<V> {
    nodes: Slab<Node<V>>,
    /// Node by (parent, name): one table for the whole tree, so that a leaf owns no table.
    by_name: HashTable<u32>,
    hasher: RandomState,
    first_root: u32,
    values: usize,
}

struct Node<V> {
    name: Box<str>,
    parent: u32,
    first_child: u32,
    next: u32,
    previous: u32,
    value: Option<V>,
}

/// No node: the roots' parent, and the end of a list of siblings.
const NONE: u32 = u32::MAX;

impl<V> LevelTree<V> {
    /// An empty tree. `seed` feeds the in-memory hash and never leaves the process.
    pub fn new(seed: u64) -> LevelTree<V> {
        LevelTree {
            nodes: Slab::new(),
            by_name: HashTable::new(),
            hasher: RandomState::with_seeds(seed, seed ^ 0x9e37_79b9_7f4a_7c15, 3, 4),
            first_root: NONE,
            values: 0,
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.values
    }

    /// True without values.
    pub fn is_empty(&self) -> bool {
        self.values == 0
    }

    /// The place of `path`'s node, if the path exists (with or without a value).
    pub fn find(&self, path: &str) -> Option<u32> {
        let mut parent = NONE;
        for name in path.split('/') {
            parent = self.child(parent, name)?;
        }
        Some(parent)
    }

    /// The value at `path`.
    pub fn get(&self, path: &str) -> Option<&V> {
        self.value(self.find(path)?)
    }

    /// The value at `path`, to change.
    pub fn get_mut(&mut self, path: &str) -> Option<&mut V> {
        let place = self.find(path)?;
        self.nodes.get_mut(place as usize)?.value.as_mut()
    }

    /// The value at a place that a search named, if it is still there.
    pub fn value(&self, place: u32) -> Option<&V> {
        self.nodes.get(place as usize)?.value.as_ref()
    }

    /// Places below this one may hold a value.
    pub fn places(&self) -> u32 {
        self.nodes.capacity() as u32
    }

    /// Sets the value at `path`; returns what was there.
    pub fn insert(&mut self, path: &str, value: V) -> Option<V> {
        let mut parent = NONE;
        for name in path.split('/') {
            parent = match self.child(parent, name) {
                Some(place) => place,
                None => self.add_child(parent, name),
            };
        }
        let before = self.nodes[parent as usize].value.replace(value);
        self.values += usize::from(before.is_none());
        before
    }

    /// Removes the value at `path` and every node that has become empty.
    pub fn remove(&mut self, path: &str) -> Option<V> {
        let place = self.find(path)?;
        let value = self.nodes[place as usize].value.take()?;
        self.values -= 1;
        let mut place = place;
        while place != NONE {
            let node = &self.nodes[place as usize];
            if node.value.is_some() || node.first_child != NONE {
                break;
            }
            let parent = node.parent;
            self.unlink(place);
            place = parent;
        }
        Some(value)
    }

    /// Calls `visit` with the place of every topic in the tree that `filter` matches (MQTT-4.7.2-1 included).
    pub fn topics_matching(&self, filter: &str, mut visit: impl FnMut(u32)) {
        let levels: Vec<&str> = filter.split('/').collect();
        self.descend(NONE, &levels, 0, &mut visit);
    }

    /// Calls `visit` with every value whose path, read as a filter, matches `topic`.
    pub fn filters_matching<'a>(&'a self, topic: &str, mut visit: impl FnMut(&'a V)) {
        if self.values == 0 {
            return;
        }
        let levels: Vec<&str> = topic.split('/').collect();
        let hidden = topic.starts_with('$');
        // Depth first with an explicit stack: a filter of 128 levels must not cost 128 frames.
        let mut stack: Vec<(u32, usize)> = alloc::vec![(NONE, 0)];
        while let Some((parent, depth)) = stack.pop() {
            let wild = !(hidden && depth == 0);
            if wild && let Some(place) = self.child(parent, "#") {
                visit_value(&self.nodes, place, &mut visit);
            }
            if depth == levels.len() {
                if parent != NONE {
                    visit_value(&self.nodes, parent, &mut visit);
                }
                continue;
            }
            if wild && let Some(place) = self.child(parent, "+") {
                stack.push((place, depth + 1));
            }
            if let Some(place) = self.child(parent, levels[depth]) {
                stack.push((place, depth + 1));
            }
        }
    }

    /// The path of a place, appended to `out`.
    pub fn path(&self, place: u32, out: &mut alloc::string::String) {
        let mut names: Vec<&str> = Vec::new();
        let mut at = place;
        while at != NONE {
            let node = &self.nodes[at as usize];
            names.push(&node.name);
            at = node.parent;
        }
        for (i, name) in names.iter().rev().enumerate() {
            if i > 0 {
                out.push('/');
            }
            out.push_str(name);
        }
    }

    fn descend(&self, parent: u32, levels: &[&str], depth: usize, visit: &mut impl FnMut(u32)) {
        let mut stack: Vec<(u32, usize)> = alloc::vec![(parent, depth)];
        while let Some((parent, depth)) = stack.pop() {
            let Some(level) = levels.get(depth) else {
                if self.value(parent).is_some() {
                    visit(parent);
                }
                continue;
            };
            // Below `#` the depth stays that of the `#`: the first level is known by its parent.
            let top = parent == NONE;
            match *level {
                "#" => {
                    // `a/#` includes `a` itself: the parent level (4.7.1.2).
                    if parent != NONE && self.value(parent).is_some() {
                        visit(parent);
                    }
                    self.children(parent, top, |child| stack.push((child, depth)));
                }
                "+" => self.children(parent, top, |child| stack.push((child, depth + 1))),
                name => {
                    if let Some(child) = self.child(parent, name) {
                        stack.push((child, depth + 1));
                    }
                }
            }
        }
    }

    fn children(&self, parent: u32, hide_dollar: bool, mut visit: impl FnMut(u32)) {
        let mut at = if parent == NONE { self.first_root } else { self.nodes[parent as usize].first_child };
        while at != NONE {
            let node = &self.nodes[at as usize];
            if !(hide_dollar && node.name.starts_with('$')) {
                visit(at);
            }
            at = node.next;
        }
    }

    fn child(&self, parent: u32, name: &str) -> Option<u32> {
        let nodes = &self.nodes;
        self.by_name
            .find(self.hasher.hash_one((parent, name)), |&place| {
                let node = &nodes[place as usize];
                node.parent == parent && *node.name == *name
            })
            .copied()
    }

    fn add_child(&mut self, parent: u32, name: &str) -> u32 {
        let first = if parent == NONE { self.first_root } else { self.nodes[parent as usize].first_child };
        let place = self.nodes.insert(Node {
            name: name.into(),
            parent,
            first_child: NONE,
            next: first,
            previous: NONE,
            value: None,
        }) as u32;
        if first != NONE {
            self.nodes[first as usize].previous = place;
        }
        if parent == NONE {
            self.first_root = place;
        } else {
            self.nodes[parent as usize].first_child = place;
        }
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        self.by_name.insert_unique(hasher.hash_one((parent, name)), place, |&place| {
            let node = &nodes[place as usize];
            hasher.hash_one((node.parent, &*node.name))
        });
        place
    }

    fn unlink(&mut self, place: u32) {
        let node = &self.nodes[place as usize];
        let (parent, next, previous) = (node.parent, node.next, node.previous);
        let hash = self.hasher.hash_one((parent, &*node.name));
        if let Ok(entry) = self.by_name.find_entry(hash, |&other| other == place) {
            entry.remove();
        }
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        if previous != NONE {
            self.nodes[previous as usize].next = next;
        } else if parent == NONE {
            self.first_root = next;
        } else {
            self.nodes[parent as usize].first_child = next;
        }
        self.nodes.remove(place as usize);
    }
}

fn visit_value<'a, V>(nodes: &'a Slab<Node<V>>, place: u32, visit: &mut impl FnMut(&'a V)) {
    if let Some(value) = nodes[place as usize].value.as_ref() {
        visit(value);
    }
}

#[cfg(test)]
mod tests {
    use alloc::{string::String, vec};

    use super::*;

    fn topics(tree: &LevelTree<u32>, filter: &str) -> Vec<String> {
        let mut found = vec![];
        tree.topics_matching(filter, |place| {
            let mut path = String::new();
            tree.path(place, &mut path);
            found.push(path);
        });
        found.sort();
        found
    }

    #[test]
    fn wildcards_find_topics_by_the_rules_of_4_7() {
        let mut tree = LevelTree::new(1);
        for (i, topic) in ["a", "a/b", "a/b/c", "a//c", "$SYS/a", "/a", "b"].iter().enumerate() {
            tree.insert(topic, i as u32);
        }
        assert_eq!(topics(&tree, "#"), ["/a", "a", "a//c", "a/b", "a/b/c", "b"]);
        assert_eq!(topics(&tree, "+"), ["a", "b"]);
        assert_eq!(topics(&tree, "a/#"), ["a", "a//c", "a/b", "a/b/c"]);
        assert_eq!(topics(&tree, "a/+/c"), ["a//c", "a/b/c"]);
        assert_eq!(topics(&tree, "$SYS/#"), ["$SYS/a"]);
        assert_eq!(topics(&tree, "+/a"), ["/a"]);
        assert_eq!(topics(&tree, "a/b"), ["a/b"]);
        assert_eq!(topics(&tree, "x/#"), [""; 0]);
    }

    #[test]
    fn only_the_first_level_hides_a_dollar_from_wildcards() {
        let mut tree = LevelTree::new(1);
        for topic in ["a/$b", "a/b/$c/d", "$a/$b", "/$a"] {
            tree.insert(topic, 0);
        }
        assert_eq!(topics(&tree, "#"), ["/$a", "a/$b", "a/b/$c/d"]);
        assert_eq!(topics(&tree, "+/#"), ["/$a", "a/$b", "a/b/$c/d"]);
        assert_eq!(topics(&tree, "a/#"), ["a/$b", "a/b/$c/d"]);
        assert_eq!(topics(&tree, "$a/#"), ["$a/$b"]);
    }

    #[test]
    fn topics_find_filters_by_the_rules_of_4_7() {
        let mut tree = LevelTree::new(1);
        let filters = ["#", "a/#", "a/+", "+/b", "a/b", "+/+/#", "$SYS/#", "a"];
        for (i, filter) in filters.iter().enumerate() {
            tree.insert(filter, i as u32);
        }
        let find = |topic: &str| {
            let mut found = vec![];
            tree.filters_matching(topic, |&v| found.push(filters[v as usize]));
            found.sort();
            found
        };
        assert_eq!(find("a/b"), ["#", "+/+/#", "+/b", "a/#", "a/+", "a/b"]);
        assert_eq!(find("a"), ["#", "a", "a/#"]);
        assert_eq!(find("$SYS/b"), ["$SYS/#"]);
        assert_eq!(find("x/y/z"), ["#", "+/+/#"]);
    }

    #[test]
    fn removing_every_value_leaves_no_node() {
        let mut tree = LevelTree::new(1);
        let paths = ["a/b/c", "a/b", "a", "x/y", "x/z", "/"];
        for path in paths {
            assert!(tree.insert(path, 0).is_none());
        }
        for path in paths {
            assert!(tree.remove(path).is_some());
            assert!(tree.remove(path).is_none());
        }
        assert!(tree.is_empty() && tree.nodes.is_empty() && tree.by_name.is_empty());
        assert_eq!(tree.first_root, NONE);
    }
}
