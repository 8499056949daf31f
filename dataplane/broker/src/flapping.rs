//! Client ids that connect and disconnect all the time, a fight of two clients for one id included. Lives on the home shard
//! of the client id, which sees all of its connections. Always true: its tables are bounded, and a ban that it makes holds here at
//! once, until the View names it or it ends.

use alloc::{boxed::Box, string::ToString, vec::Vec};

use ahash::RandomState;
use contract::{
    bans::{Ban, BanKind, WHO_BYTES_MAX},
    config::FlappingDetect,
    time::Now,
};
use hashbrown::HashMap;

use crate::{
    bans::Bans,
    counters::{Counter, Counters},
    event::Event,
    surface::Output,
};

/// Client ids whose disconnections are counted at the same time.
const COUNTED_MAX: usize = 16_384;
/// Bans that wait until the View names them.
const BANNED_MAX: usize = 1024;
/// Bans that are told in one Report.
const TOLD_MAX: usize = 64;
/// Full tables are tidied no more often.
const TIDY_US: u64 = 1_000_000;

/// What was seen of one client id.
struct Seen {
    since_us: u64,
    count: u32,
}

/// The detector of one shard.
pub(crate) struct Flapping {
    seen: HashMap<Box<str>, Seen, RandomState>,
    /// When each ban ends, wall clock in milliseconds.
    banned: HashMap<Box<str>, u64, RandomState>,
    /// Banned in this turn: a connection of theirs has to go.
    pub(crate) fresh: Vec<Box<str>>,
    tidied_us: u64,
}

impl Flapping {
    pub(crate) fn new(seed: u64) -> Flapping {
        let hasher = |place| RandomState::with_seeds(seed, 52, 53, place);
        Flapping {
            seen: HashMap::with_hasher(hasher(1)),
            banned: HashMap::with_hasher(hasher(2)),
            fresh: Vec::new(),
            tidied_us: 0,
        }
    }

    /// A client has lost its connection; one time too many, and it is banned.
    pub(crate) fn count(
        &mut self,
        client: &str,
        settings: &FlappingDetect,
        now: Now,
        counters: &mut Counters,
        out: &mut impl Output,
    ) {
        let window_us = u64::from(settings.window_ms) * 1000;
        let full = self.seen.len() >= COUNTED_MAX || self.banned.len() >= BANNED_MAX;
        if full && now.mono_us >= self.tidied_us + TIDY_US {
            self.tidied_us = now.mono_us;
            self.seen.retain(|_, seen| now.mono_us - seen.since_us <= window_us);
            self.banned.retain(|_, until_ms| *until_ms > now.wall_ms);
        }
        if !self.seen.contains_key(client) {
            // A longer name cannot be banned by the operator, either.
            if self.seen.len() >= COUNTED_MAX || client.len() > WHO_BYTES_MAX {
                return counters.one(Counter::flapping_uncounted);
            }
            self.seen.insert(client.into(), Seen { since_us: now.mono_us, count: 0 });
        }
        let Some(seen) = self.seen.get_mut(client) else { return };
        if now.mono_us - seen.since_us > window_us {
            *seen = Seen { since_us: now.mono_us, count: 0 };
        }
        seen.count += 1;
        if seen.count <= settings.count_max {
            return;
        }
        if self.banned.len() >= BANNED_MAX {
            return counters.one(Counter::flapping_uncounted);
        }
        self.seen.remove(client);
        self.banned.insert(client.into(), now.wall_ms.saturating_add(settings.ban_ms.into()));
        self.fresh.push(client.into());
        counters.one(Counter::flapping_detected);
        out.event(Event::Limit { key: "flapping_detect.max_count", client });
    }

    /// Has this client id been banned here?
    pub(crate) fn bans_client(&self, client: &str, now_ms: u64) -> bool {
        !self.banned.is_empty() && self.banned.get(client).is_some_and(|until_ms| *until_ms > now_ms)
    }

    /// The View decides about whom it names: what it says, and that it says no more.
    pub(crate) fn leave_to(&mut self, bans: &Bans) {
        self.banned.retain(|client, _| !bans.names_client(client));
    }

    /// The first bans that the View does not name.
    pub(crate) fn bans(&self, now_ms: u64) -> Vec<Ban> {
        let live = self.banned.iter().filter(|(_, until_ms)| **until_ms > now_ms).take(TOLD_MAX);
        live.map(|(who, until_ms)| Ban { kind: BanKind::ClientId, who: who.to_string(), until_ms: *until_ms }).collect()
    }
}
