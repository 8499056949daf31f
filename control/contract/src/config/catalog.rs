//! All knobs in one list, and how a key finds its knob, or its nearest one.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use super::{
    authentication::{Admission, AuthenticatorKnobs, HookKnobs, TokenKnobs},
    authorization::{AuthorizationKnobs, CacheKnobs, ServerKnobs, SourceKnobs},
    durability::Durability,
    knob::{Knob, shorten},
    limits::{FlappingDetect, Limits, Retainer},
    links::{AcceptKnobs, LinkKnobs, Own, SslKnobs},
    listeners::{Ssl, SslOptions, Tcp, Unix, Ws, WsOptions, Wss, WssOptions, WssWebSocket},
    mqtt::Mqtt,
    node::{Dashboard, Dataplane, Log, Node},
    section::Section,
    sys_topics::{SysEvents, SysTopics},
};

/// Knobs that stand together in the file.
pub(super) struct Group {
    pub(super) title: &'static str,
    pub(super) knobs: &'static [Knob],
}

/// Every knob there is, in the order in which they are shown.
pub(super) const GROUPS: &[Group] = &[
    group::<Node>(),
    group::<Dataplane>(),
    group::<Durability>(),
    group::<Tcp>(),
    group::<Ssl>(),
    group::<SslOptions>(),
    group::<Ws>(),
    group::<WsOptions>(),
    group::<Wss>(),
    group::<WssOptions>(),
    group::<WssWebSocket>(),
    group::<Unix>(),
    group::<AuthenticatorKnobs>(),
    group::<TokenKnobs>(),
    group::<HookKnobs>(),
    group::<Admission>(),
    group::<AuthorizationKnobs>(),
    group::<CacheKnobs>(),
    group::<SourceKnobs>(),
    group::<ServerKnobs>(),
    group::<Mqtt>(),
    group::<Limits>(),
    group::<Retainer>(),
    group::<FlappingDetect>(),
    group::<SysTopics>(),
    group::<SysEvents>(),
    group::<Own>(),
    group::<LinkKnobs>(),
    group::<SslKnobs>(),
    group::<AcceptKnobs>(),
    group::<Dashboard>(),
    group::<Log>(),
];

const NAME: &str = "<name>";
/// Longest key that is compared with the known ones.
const COMPARED_BYTES_MAX: usize = 128;

const fn group<S: Section>() -> Group {
    Group { title: S::TITLE, knobs: S::KNOBS }
}

/// Every knob.
pub fn knobs() -> impl Iterator<Item = &'static Knob> {
    GROUPS.iter().flat_map(|group| group.knobs)
}

/// A section that stands in the file as a list of tables.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    Links,
    Authentication,
    Sources,
}

impl List {
    pub(super) const ALL: [List; 3] = [List::Links, List::Authentication, List::Sources];

    /// The key of the list itself.
    pub(super) const fn key(self) -> &'static str {
        match self {
            List::Links => "cluster.links",
            List::Authentication => "authentication",
            List::Sources => "authorization.sources",
        }
    }

    /// One member, for an error message.
    fn noun(self) -> &'static str {
        match self {
            List::Links => "a link",
            List::Authentication => "an authenticator",
            List::Sources => "a source",
        }
    }

    /// A knob's key as seen from a member.
    pub(super) fn inside(self, key: &'static str) -> Option<&'static str> {
        key.strip_prefix(self.key())?.strip_prefix("[].")
    }

    /// The list that a knob belongs to, and its key inside.
    pub(super) fn of(key: &'static str) -> Option<(List, &'static str)> {
        List::ALL.iter().find_map(|list| Some((*list, list.inside(key)?)))
    }
}

/// Where a path begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// At the root of the file.
    Root,
    /// In a member of a list of tables.
    In(List),
}

/// What a path names.
pub(super) enum Match {
    Knob(&'static Knob),
    /// A list of tables.
    List,
    /// Something with knobs below it.
    Section,
    Unknown,
}

impl Knob {
    /// The key as seen from a scope, in parts.
    fn parts(&'static self, scope: Scope) -> Option<impl Iterator<Item = &'static str> + Clone> {
        let key = match (scope, List::of(self.key)) {
            (Scope::Root, None) => self.key,
            (Scope::In(list), Some((of, key))) if of == list => key,
            _ => return None,
        };
        Some(key.split('.'))
    }

    /// The part of `path` that stands where this knob has `<name>`.
    pub(super) fn name_in<'a>(&'static self, path: &[&'a str]) -> Option<&'a str> {
        let place = self.key.split('.').position(|part| part == NAME)?;
        path.get(place).copied()
    }

    /// The key with its name filled in, as the file writes it.
    pub(super) fn key_for(&'static self, name: &str) -> String {
        self.key.replace(NAME, name)
    }
}

pub(super) fn find(scope: Scope, path: &[&str]) -> Match {
    if scope == Scope::Root && List::ALL.iter().any(|list| list.key().split('.').eq(path.iter().copied())) {
        return Match::List;
    }
    let mut inside = false;
    for knob in knobs() {
        let Some(mut parts) = knob.parts(scope) else {
            continue;
        };
        let same = path.iter().all(|part| parts.next().is_some_and(|known| known == NAME || known == *part));
        match (same, parts.next()) {
            (true, None) => return Match::Knob(knob),
            (true, Some(_)) => inside = true,
            (false, _) => {}
        }
    }
    if inside { Match::Section } else { Match::Unknown }
}

/// What to try instead of an unknown key.
pub(super) fn nearest(scope: Scope, path: &[&str], shown: &str) -> String {
    let wanted = path.join(".");
    let mut known: Vec<String> = Vec::new();
    for knob in knobs() {
        let Some(parts) = knob.parts(scope) else {
            continue;
        };
        let filled: Vec<&str> = parts
            .enumerate()
            .map(|(place, part)| if part == NAME { path.get(place).copied().unwrap_or(part) } else { part })
            .collect();
        known.push(filled.join("."));
        known.extend((1..filled.len()).map(|parts| filled[..parts].join(".")));
    }
    if scope == Scope::Root {
        known.extend(List::ALL.iter().map(|list| list.key().into()));
    }
    let best = known.iter().map(|key| (distance(&wanted, key), key)).min();
    match best {
        Some((apart, key)) if apart <= 2.max(wanted.chars().count() * 2 / 5) => {
            format!("the nearest known one is {shown}{key}")
        }
        _ => match scope {
            Scope::Root => format!("the sections are {}", sections().join(", ")),
            Scope::In(list) => {
                let all: Vec<&str> = knobs().filter_map(|knob| list.inside(knob.key)).collect();
                format!("{} has {}", list.noun(), all.join(", "))
            }
        },
    }
}

/// The first parts of all keys.
pub(super) fn sections() -> Vec<&'static str> {
    let mut sections: Vec<&str> = knobs().filter_map(|knob| knob.key.split(['.', '[']).next()).collect();
    sections.dedup();
    sections.sort_unstable();
    sections.dedup();
    sections
}

/// A path that may hold anything, for an error message.
pub(super) fn printable(path: &[&str]) -> String {
    let parts: Vec<String> = path.iter().map(|part| part.escape_debug().to_string()).collect();
    shorten(&parts.join("."))
}

/// How many characters must be added, removed or replaced to make `a` of `b`.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(COMPARED_BYTES_MAX).collect();
    let b: Vec<char> = b.chars().take(COMPARED_BYTES_MAX).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = corner + usize::from(left != right);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_levenshtein() {
        for (a, b, apart) in [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("é", "e", 1)]
        {
            assert_eq!(distance(a, b), apart, "{a} {b}");
            assert_eq!(distance(b, a), apart, "{b} {a}");
        }
    }

    #[test]
    fn every_key_finds_its_own_knob_and_no_other() {
        for knob in knobs() {
            let (scope, key) = match List::of(knob.key) {
                Some((list, key)) => (Scope::In(list), key.to_string()),
                None => (Scope::Root, knob.key_for("x")),
            };
            let path: Vec<&str> = key.split('.').collect();
            assert!(matches!(find(scope, &path), Match::Knob(found) if found.key == knob.key), "{key}");
            assert!(!matches!(find(scope, &path[..path.len() - 1]), Match::Knob(_) | Match::Unknown), "{key}");
        }
        assert!(matches!(find(Scope::Root, &["cluster", "links[]", "name"]), Match::Unknown));
    }
}
