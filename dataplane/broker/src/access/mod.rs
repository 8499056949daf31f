//! What a principal may do: ordered rules, picked out for each principal as its rights. Pure; rules are compiled on an
//! ordinary thread, shared by all shards, and asked on the home shard of a session, which owns its [`Rights`].
//! Always true: the first rule that matches decides; a name that holds `+`, `#` or `/` never widens an allow rule.

mod emqx;
mod mosquitto;
mod rights;
mod terms;
#[cfg(test)]
mod tests;

use alloc::{boxed::Box, string::String, vec::Vec};
use core::{fmt, net::IpAddr};

use ahash::RandomState;
use contract::network::Network;
use hashbrown::HashMap;
use link::intersect::{is_subset, overlaps};
use mqtt::{
    topic::{Filter, matches},
    types::Qos,
};
use regex::Regex;

pub use self::{
    emqx::parse as parse_emqx,
    mosquitto::parse as parse_mosquitto,
    rights::{Granted, Rights},
};

/// Most rules of a node, of all its sources.
pub const RULES_MAX: usize = 200_000;
/// Longest file with rules.
pub const FILE_BYTES_MAX: usize = 16 << 20;

/// Whoever was let in.
#[derive(Clone, Debug)]
pub struct Principal {
    /// The user name that was proven, or told where nobody asks for proofs; `None`: anonymous.
    pub user: Option<Box<str>>,
    /// No rule applies to it.
    pub superuser: bool,
    /// Rules that came with it, asked before those of the node.
    pub own: Option<alloc::sync::Arc<Rules>>,
    /// When it has to leave, wall time in milliseconds; `u64::MAX`: never.
    pub expires_ms: u64,
    /// Somebody was asked, and knew it.
    pub proven: bool,
    /// Names the proof it gave, so that a change of it is noticed; 0: there is none that could change.
    pub credential: u64,
}

impl Principal {
    /// Somebody whom nobody asked.
    pub fn unproven(user: Option<&str>) -> Principal {
        Principal {
            user: user.map(Box::from),
            superuser: false,
            own: None,
            expires_ms: u64::MAX,
            proven: false,
            credential: 0,
        }
    }
}

/// Whom rules are about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Client id.
    pub client: &'a str,
    /// User name, if it has one.
    pub user: Option<&'a str>,
    /// Its address.
    pub peer: IpAddr,
}

/// What somebody wants to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Send to a topic.
    Publish,
    /// Receive from a topic, or subscribe to a filter.
    Subscribe,
}

impl Action {
    const fn bit(self) -> u8 {
        match self {
            Action::Publish => 1,
            Action::Subscribe => 2,
        }
    }
}

/// Both actions, as bits.
const BOTH: u8 = Action::Publish.bit() | Action::Subscribe.bit();
/// Every QoS, as bits.
const ANY_QOS: u8 = 0b111;

/// One rule.
#[derive(Debug)]
pub struct Rule {
    allow: bool,
    who: Who,
    /// Bits of [`Action`].
    actions: u8,
    /// Bits of [`Qos`].
    qos: u8,
    /// Only for publishes: RETAIN as it must be.
    retain: Option<bool>,
    /// mosquitto's: a filter of which a part is allowed is granted, and guarded.
    lenient: bool,
    /// Some topic has a place for a name.
    holes: bool,
    /// A server decides instead.
    asks: bool,
    topics: Box<[Pattern]>,
}

/// Whom a rule is about.
#[derive(Debug)]
enum Who {
    All,
    /// Without a user name.
    Anonymous,
    User(Box<str>),
    UserLike(Regex),
    Client(Box<str>),
    ClientLike(Regex),
    From(Box<[Network]>),
    And(Box<[Who]>),
    Or(Box<[Who]>),
}

/// What topics a rule is about.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Pattern {
    /// Every topic and filter.
    Everything,
    /// This topic, or a filter that is written like this.
    Exact(Box<str>),
    /// What this filter matches.
    Filter(Box<str>),
}

/// What is wrong with a file of rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleError {
    /// Counted from 1.
    pub line: u32,
    /// What is wrong, one phrase.
    pub what: String,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl core::error::Error for RuleError {}

/// Compiled rules of all sources, in order.
#[derive(Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    /// Rules about one user, by name; in order.
    by_user: HashMap<Box<str>, Vec<u32>, RandomState>,
    /// Rules about everybody, with nothing to fill in; in order.
    everyone: Vec<u32>,
    /// The others, to be looked at for each principal; in order.
    others: Vec<u32>,
    no_match: bool,
    /// Some rule leaves it to a server.
    asks: bool,
}

impl Rules {
    /// Puts rules in order. `no_match` is what holds when none matches.
    pub fn new(rules: Vec<Rule>, no_match: bool, seed: u64) -> Rules {
        let mut by_user: HashMap<Box<str>, Vec<u32>, RandomState> =
            HashMap::with_hasher(RandomState::with_seeds(seed, 30, 31, 32));
        let (mut everyone, mut others) = (Vec::new(), Vec::new());
        for (at, rule) in rules.iter().enumerate() {
            let at = at as u32;
            match &rule.who {
                Who::User(user) => by_user.entry(user.clone()).or_default().push(at),
                Who::All if !rule.holes => everyone.push(at),
                _ => others.push(at),
            }
        }
        let asks = rules.iter().any(|rule| rule.asks);
        Rules { rules, by_user, everyone, others, no_match, asks }
    }

    /// Number of rules.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Is a rule about a user name? Then somebody should prove it.
    pub fn names_users(&self) -> bool {
        !self.by_user.is_empty() || self.rules.iter().any(|rule| rule.who.names_users())
    }
}

impl Rule {
    /// Refuses a filter at SUBSCRIBE: as it is written if its first level is a wildcard, else with all that it matches.
    pub fn deny_subscribe(filter: &str) -> Rule {
        let pattern = match filter.starts_with(['+', '#']) {
            true => Pattern::Exact(filter.into()),
            false => Pattern::Filter(filter.into()),
        };
        Rule { actions: Action::Subscribe.bit(), ..Rule::about(false, Who::All, [pattern].into()) }
    }

    /// What no rule before it is about is left to a server, which may pass it on to those behind.
    pub fn server() -> Rule {
        Rule { asks: true, ..Rule::about(false, Who::All, [Pattern::Everything].into()) }
    }

    /// Everything that no rule before it is about.
    pub fn deny_rest() -> Rule {
        Rule::about(false, Who::All, [Pattern::Everything].into())
    }

    /// One entry of a principal's own list: a topic filter with places for names, `eq ` before it if it is meant as it is written.
    pub fn claim(allow: bool, publish: bool, subscribe: bool, topic: &str) -> Result<Rule, RuleError> {
        let exact = topic.strip_prefix("eq ");
        let topic = exact.unwrap_or(topic);
        let pattern = pattern_of(topic, exact.is_some()).map_err(|what| RuleError { line: 1, what })?;
        let actions = (u8::from(publish) * Action::Publish.bit()) | (u8::from(subscribe) * Action::Subscribe.bit());
        let holes = has_holes(topic);
        Ok(Rule { actions, holes, ..Rule::about(allow, Who::All, [pattern].into()) })
    }

    fn about(allow: bool, who: Who, topics: Box<[Pattern]>) -> Rule {
        Rule {
            allow,
            who,
            actions: BOTH,
            qos: ANY_QOS,
            retain: None,
            lenient: false,
            holes: false,
            asks: false,
            topics,
        }
    }

    fn concerns(&self, action: Action, qos: Qos, retain: bool) -> bool {
        self.actions & action.bit() != 0
            && self.qos >> (qos as u8) & 1 == 1
            && (action == Action::Subscribe || self.retain.is_none_or(|wanted| wanted == retain))
    }
}

impl Who {
    fn is(&self, subject: &Subject<'_>) -> bool {
        match self {
            Who::All => true,
            Who::Anonymous => subject.user.is_none(),
            Who::User(user) => subject.user == Some(&**user),
            Who::UserLike(like) => subject.user.is_some_and(|user| like.is_match(user)),
            Who::Client(client) => *subject.client == **client,
            Who::ClientLike(like) => like.is_match(subject.client),
            Who::From(networks) => networks.iter().any(|network| network.contains(subject.peer)),
            Who::And(all) => all.iter().all(|who| who.is(subject)),
            Who::Or(any) => any.iter().any(|who| who.is(subject)),
        }
    }

    fn names_users(&self) -> bool {
        match self {
            Who::User(_) | Who::UserLike(_) => true,
            Who::And(parts) | Who::Or(parts) => parts.iter().any(Who::names_users),
            _ => false,
        }
    }
}

impl Pattern {
    fn matches(&self, topic: &str) -> bool {
        match self {
            Pattern::Everything => true,
            Pattern::Exact(text) => **text == *topic,
            Pattern::Filter(filter) => matches(filter, topic),
        }
    }

    /// Is everything that `filter` matches of this pattern?
    fn covers(&self, filter: &str) -> bool {
        match self {
            Pattern::Everything => true,
            Pattern::Exact(text) => **text == *filter,
            Pattern::Filter(wide) => is_subset(filter, wide),
        }
    }

    /// Is there a topic that `filter` matches and that is of this pattern?
    fn touches(&self, filter: &str) -> bool {
        match self {
            Pattern::Everything => true,
            Pattern::Exact(text) => !text.contains(['+', '#']) && matches(filter, text),
            Pattern::Filter(other) => overlaps(filter, other),
        }
    }

    /// The pattern with the names of a principal in their places; `None` when a name is missing or must not stand there.
    fn filled(&self, allow: bool, subject: &Subject<'_>) -> Option<Pattern> {
        Some(match self {
            Pattern::Everything => Pattern::Everything,
            Pattern::Exact(text) => Pattern::Exact(fill(text, allow, subject)?.into()),
            Pattern::Filter(text) => {
                let text = fill(text, allow, subject)?;
                Filter::parse(&text, usize::MAX).ok()?;
                Pattern::Filter(text.into())
            }
        })
    }
}

/// A name of a principal that may stand in a topic.
#[derive(Clone, Copy)]
enum Hole {
    Client,
    User,
}

const HOLES: [(&str, Hole); 4] =
    [("${clientid}", Hole::Client), ("${username}", Hole::User), ("%c", Hole::Client), ("%u", Hole::User)];

fn has_holes(text: &str) -> bool {
    HOLES.iter().any(|(hole, _)| text.contains(hole))
}

/// A name is put in once and never looked into again, so a client that is called `%u` is called that.
fn fill(text: &str, allow: bool, subject: &Subject<'_>) -> Option<String> {
    let mut filled = String::with_capacity(text.len() + 32);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let hole = HOLES.iter().find(|(hole, _)| rest.starts_with(hole));
        let Some((hole, of)) = hole else {
            filled.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        let name = match of {
            Hole::Client => subject.client,
            Hole::User => subject.user?,
        };
        if name.is_empty() || allow && name.contains(['+', '#', '/']) {
            return None;
        }
        filled.push_str(name);
        rest = &rest[hole.len()..];
    }
    Some(filled)
}

/// A topic of a rule, judged as a filter.
fn pattern_of(text: &str, exact: bool) -> Result<Pattern, String> {
    if let Some(at) = text.find("${") {
        let known = HOLES.iter().any(|(hole, _)| text[at..].starts_with(hole));
        if !known {
            return Err(alloc::format!("{text:?} has a place for something that is not known here"));
        }
    }
    Filter::parse(text, usize::MAX).map_err(|error| alloc::format!("{text:?} is no topic filter: {error}"))?;
    Ok(if exact { Pattern::Exact(text.into()) } else { Pattern::Filter(text.into()) })
}
