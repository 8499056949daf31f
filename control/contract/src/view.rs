//! What control says is true: numbered pages that replace the file's word for what can change live.
//! Control makes Views, the data plane keeps the last one, in memory and on disk. Sending one twice changes nothing.
//! Always true: a [`View`] that [`View::take`] has brought up to date holds exactly the pages that its digests name.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{
    bans::Ban,
    config::{FlappingDetect, Limits, Link, Mqtt, Retainer, SysEvents, SysTopics},
    hash,
    trace::Trace,
    wire,
};

/// The order of Views. A control that was wiped begins with a higher incarnation, so it is never taken for an old one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct ViewNumber {
    /// Start of the control process: wall clock in milliseconds, never repeated on one data directory.
    pub incarnation: u64,
    /// Counts the Views of that incarnation from 1.
    pub number: u64,
}

/// What control says is true: digests of all pages, and the pages that changed.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct View {
    /// Its place in the order of Views.
    pub number: ViewNumber,
    /// One entry per page that exists, changed or not.
    pub digests: Vec<PageDigest>,
    /// The pages themselves: those that changed, or all.
    pub pages: Vec<Page>,
}

/// A page by its content.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PageDigest {
    /// Which page.
    pub kind: PageKind,
    /// Stable hash of its encoding.
    pub digest: u64,
}

/// Which page. The numbers are part of the wire and of the file on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum PageKind {
    /// The links of this cluster.
    Links,
    /// What clients may do, and what queues and tables are bounded by.
    Limits,
    /// The nodes of this cluster; reserved.
    Members,
    /// Users and rights; reserved.
    Users,
    /// Who may not connect.
    Bans,
    /// What is said about clients, and to whom.
    Watched,
}

/// Part of a View that changes at once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Page {
    /// See [`PageKind::Links`].
    Links(Vec<Link>),
    /// See [`PageKind::Limits`].
    Limits(LimitsPage),
    /// See [`PageKind::Bans`].
    Bans(Vec<Ban>),
    /// See [`PageKind::Watched`].
    Watched(Watched),
}

/// What an operator wants to hear of clients.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Watched {
    /// `sys_topics.*`.
    pub sys_topics: SysTopics,
    /// `sys_topics.sys_event_messages.*`.
    pub sys_events: SysEvents,
    /// At most [`crate::trace::TRACES_MAX`].
    pub traces: Vec<Trace>,
}

/// The sections that bound what clients may do.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct LimitsPage {
    /// `mqtt.*`.
    pub mqtt: Mqtt,
    /// `limits.*`.
    pub limits: Limits,
    /// `retainer.*`.
    pub retainer: Retainer,
    /// `flapping_detect.*`.
    pub flapping_detect: FlappingDetect,
}

/// What became of a View that was offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It is now the View.
    Newer,
    /// It is not newer than what is held: nothing changed.
    Old,
    /// It names a page that is neither in it nor held: nothing changed, the complete View is wanted.
    Incomplete,
}

impl Page {
    /// Which page this is.
    pub fn kind(&self) -> PageKind {
        match self {
            Page::Links(_) => PageKind::Links,
            Page::Limits(_) => PageKind::Limits,
            Page::Bans(_) => PageKind::Bans,
            Page::Watched(_) => PageKind::Watched,
        }
    }

    /// Stable hash of its encoding, with its kind.
    pub fn digest(&self) -> PageDigest {
        // A page is plain data: its encoding into memory cannot fail.
        let bytes = postcard::to_allocvec(self).unwrap_or_default();
        PageDigest { kind: self.kind(), digest: hash::stable(&bytes) }
    }
}

impl View {
    /// A complete View.
    pub fn complete(number: ViewNumber, mut pages: Vec<Page>) -> View {
        pages.sort_by_key(Page::kind);
        pages.dedup_by_key(|page| page.kind());
        View { number, digests: pages.iter().map(Page::digest).collect(), pages }
    }

    /// The same View for a reader that holds `held`: only what changed.
    pub fn since(&self, held: &[PageDigest]) -> View {
        let pages = self.pages.iter().filter(|page| !held.contains(&page.digest()));
        View { number: self.number, digests: self.digests.clone(), pages: pages.cloned().collect() }
    }

    /// Must a holder of `held` take this View?
    pub fn is_newer(&self, held: ViewNumber) -> bool {
        self.number > held
    }

    /// Brings this View up to date with `offered`. Nothing happens unless it is newer and nothing is missing.
    pub fn take(&mut self, offered: View) -> Taken {
        if !offered.is_newer(self.number) {
            return Taken::Old;
        }
        let mut pages = Vec::with_capacity(offered.digests.len());
        for wanted in &offered.digests {
            let mut known = offered.pages.iter().chain(&self.pages);
            match known.find(|page| page.digest() == *wanted) {
                Some(page) => pages.push(page.clone()),
                None => return Taken::Incomplete,
            }
        }
        *self = View { number: offered.number, digests: offered.digests, pages };
        Taken::Newer
    }

    /// The links, if this View says something about them.
    pub fn links(&self) -> Option<&[Link]> {
        self.pages.iter().find_map(|page| match page {
            Page::Links(links) => Some(links.as_slice()),
            _ => None,
        })
    }

    /// The limits, if this View says something about them.
    pub fn limits(&self) -> Option<&LimitsPage> {
        self.pages.iter().find_map(|page| match page {
            Page::Limits(limits) => Some(limits),
            _ => None,
        })
    }

    /// The bans, if this View says something about them.
    pub fn bans(&self) -> Option<&[Ban]> {
        self.pages.iter().find_map(|page| match page {
            Page::Bans(bans) => Some(bans.as_slice()),
            _ => None,
        })
    }

    /// What is watched, if this View says something about it.
    pub fn watched(&self) -> Option<&Watched> {
        self.pages.iter().find_map(|page| match page {
            Page::Watched(watched) => Some(watched),
            _ => None,
        })
    }

    /// As the data plane keeps it on disk: one frame.
    pub fn to_bytes(&self) -> Result<Vec<u8>, wire::WireError> {
        let mut bytes = Vec::new();
        wire::encode(self, &mut bytes)?;
        Ok(bytes)
    }

    /// What [`View::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<View, wire::WireError> {
        let mut frames = wire::Frames::default();
        frames.push(bytes);
        frames.take()?.ok_or(wire::WireError::Truncated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::ToString, vec};

    fn number(incarnation: u64, number: u64) -> ViewNumber {
        ViewNumber { incarnation, number }
    }

    fn limits(inflight_max: u16) -> Page {
        let mut page = LimitsPage::default();
        page.mqtt.inflight_max = inflight_max;
        Page::Limits(page)
    }

    fn links(names: &[&str]) -> Page {
        let link = |name: &&str| Link {
            name: name.to_string(),
            enable: true,
            servers: vec!["h:1883".to_string()],
            client_id: None,
            username: None,
            password: None,
            topics: Vec::new(),
            pool_size: 1,
            max_inflight: 32,
            retry_interval_ms: 15_000,
            accept: None,
        };
        Page::Links(names.iter().map(link).collect())
    }

    #[test]
    fn views_are_ordered_by_incarnation_and_then_by_number() {
        let mut held = View::default();
        for (offered, newer) in [
            (number(1, 1), true),
            (number(1, 1), false),
            (number(1, 3), true),
            (number(1, 2), false),
            (number(2, 1), true),
            (number(1, 9), false),
        ] {
            let view = View::complete(offered, vec![limits(7)]);
            assert_eq!(view.is_newer(held.number), newer, "{offered:?}");
            let taken = held.take(view);
            assert_eq!(taken, if newer { Taken::Newer } else { Taken::Old });
        }
        assert_eq!(held.number, number(2, 1));
    }

    #[test]
    fn only_changed_pages_travel_and_the_others_stay() {
        let mut held = View::default();
        let first = View::complete(number(1, 1), vec![limits(7), links(&["b"])]);
        assert_eq!(held.take(first.clone()), Taken::Newer);
        assert_eq!(held, first);
        let second = View::complete(number(1, 2), vec![limits(7), links(&["b", "c"])]);
        let changed = second.since(&held.digests);
        assert_eq!(changed.pages, [links(&["b", "c"])]);
        assert_eq!(held.take(changed.clone()), Taken::Newer);
        assert_eq!(held, second);
        assert_eq!(held.take(changed), Taken::Old, "the same View twice changes nothing");
        assert_eq!(
            (held.links().map(<[Link]>::len), held.limits().map(|page| page.mqtt.inflight_max)),
            (Some(2), Some(7))
        );
    }

    #[test]
    fn a_page_that_left_the_view_is_forgotten() {
        let mut held = View::complete(number(1, 1), vec![limits(7), links(&["b"])]);
        assert_eq!(held.take(View::complete(number(1, 2), vec![limits(7)])), Taken::Newer);
        assert_eq!(held.links(), None);
    }

    #[test]
    fn a_view_with_a_missing_or_forged_page_changes_nothing() {
        let before = View::complete(number(1, 1), vec![limits(7)]);
        let mut held = before.clone();
        let next = View::complete(number(1, 2), vec![limits(8), links(&["b"])]);
        assert_eq!(held.take(View { pages: vec![links(&["b"])], ..next.clone() }), Taken::Incomplete);
        assert_eq!(held.take(View { pages: vec![limits(9), links(&["b"])], ..next.clone() }), Taken::Incomplete);
        assert_eq!(held, before);
        assert_eq!(held.take(next), Taken::Newer);
    }

    #[test]
    fn a_view_survives_the_disk_and_damage_is_noticed() {
        let view = View::complete(number(3, 4), vec![limits(7), links(&["b"])]);
        let bytes = view.to_bytes().unwrap();
        assert_eq!(View::from_bytes(&bytes), Ok(view));
        assert_eq!(View::from_bytes(&bytes[..bytes.len() - 1]), Err(wire::WireError::Truncated));
        let mut other = bytes.clone();
        other[4] = wire::VERSION + 1;
        assert_eq!(View::from_bytes(&other), Err(wire::WireError::Version(wire::VERSION + 1)));
        assert_eq!(View::from_bytes(&[]), Err(wire::WireError::Truncated));
    }
}
