//! What one principal may do: the rules about it, with its names filled in. Owned by its session on the home shard.

use alloc::{boxed::Box, sync::Arc, vec::Vec};

use mqtt::types::Qos;
use smallvec::SmallVec;

use super::{Action, Pattern, Rule, Rules, Subject};
use crate::inquiry::Heard;

/// May a filter be subscribed to?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granted {
    /// Everything that it matches may be received.
    Whole,
    /// Only a part may: each message is asked for.
    Guarded,
    /// It may not.
    Refused,
}

/// Who has the word.
enum Decided {
    Rule(bool),
    Server,
    Nobody,
}

/// The rules about one principal.
#[derive(Debug)]
pub struct Rights {
    /// Its own first, then those of the node.
    layers: SmallVec<[Layer; 1]>,
    no_match: bool,
}

#[derive(Debug)]
struct Layer {
    rules: Arc<Rules>,
    /// Rules that are about this principal and not about everybody, in order.
    chosen: Box<[Chosen]>,
}

#[derive(Debug)]
struct Chosen {
    rule: u32,
    /// Its topics with names filled in, if it has places for them.
    topics: Option<Box<[Pattern]>>,
}

impl Rights {
    /// Picks out the rules about `subject`: its `own`, and those of the node.
    pub fn new(own: Option<&Arc<Rules>>, rules: &Arc<Rules>, subject: &Subject<'_>) -> Rights {
        let layers = own.into_iter().chain([rules]).map(|rules| Layer::new(rules, subject)).collect();
        Rights { layers, no_match: rules.no_match }
    }

    /// May it publish this? `heard` is what a server says about it; `None`: the server decides, and has not been heard.
    pub fn publish(&self, topic: &str, qos: Qos, retain: bool, heard: Option<Heard>) -> Option<bool> {
        match self.decides(Action::Publish, topic, qos, retain, heard) {
            Decided::Rule(allow) => Some(allow),
            Decided::Nobody => Some(self.no_match),
            Decided::Server => None,
        }
    }

    /// May it still publish this, if a server that decides has allowed it before?
    pub fn may_publish(&self, topic: &str, qos: Qos, retain: bool) -> bool {
        self.publish(topic, qos, retain, Some(Heard::Allow)).unwrap_or(self.no_match)
    }

    /// May it receive a message of this topic, with this QoS? What is left to a server was allowed by it when the client
    /// subscribed.
    pub fn may_receive(&self, topic: &str, qos: Qos) -> bool {
        self.may_receive_as_heard(topic, qos, Heard::Allow)
    }

    /// The same, if a server that decides says this about it.
    pub fn may_receive_as_heard(&self, topic: &str, qos: Qos, heard: Heard) -> bool {
        match self.decides(Action::Subscribe, topic, qos, false, Some(heard)) {
            Decided::Rule(allow) => allow,
            Decided::Nobody | Decided::Server => self.no_match,
        }
    }

    /// What a rule says about this by name; `None`: no rule does.
    pub fn says(&self, action: Action, topic: &str, qos: Qos) -> Option<bool> {
        match self.decides(action, topic, qos, false, Some(Heard::Pass)) {
            Decided::Rule(allow) => Some(allow),
            Decided::Nobody | Decided::Server => None,
        }
    }

    /// Is anything left to a server?
    pub fn asks(&self) -> bool {
        self.layers.iter().any(|layer| layer.rules.asks)
    }

    /// May it subscribe to a filter, with this QoS? No server is asked.
    pub fn subscribe(&self, filter: &str, qos: Qos) -> Granted {
        self.subscribe_as_heard(filter, qos, Some(Heard::Pass)).unwrap_or(Granted::Refused)
    }

    /// The same, with what a server says about the filter; `None`: the server decides, and has not been heard.
    ///
    /// What a server denies, or passes on, is never granted in part: single messages are not asked about, and what was
    /// not allowed must not look as if it had been.
    pub fn subscribe_as_heard(&self, filter: &str, qos: Qos, heard: Option<Heard>) -> Option<Granted> {
        let (mut denied, mut allowed, mut passed) = (false, false, false);
        let verdict = |allow, denied, allowed| match (allow, denied, allowed) {
            (true, false, _) => Granted::Whole,
            (true, true, _) | (false, _, true) => Granted::Guarded,
            (false, _, false) => Granted::Refused,
        };
        for (rule, topics) in self.rules() {
            if !rule.concerns(Action::Subscribe, qos, false) {
                continue;
            }
            if rule.asks {
                match heard? {
                    Heard::Allow => return Some(verdict(true, denied, allowed)),
                    Heard::Deny => return Some(Granted::Refused),
                    Heard::Pass => passed = true,
                }
                continue;
            }
            if topics.iter().any(|pattern| pattern.covers(filter)) {
                return Some(whole_if(passed, verdict(rule.allow, denied, allowed)));
            }
            if topics.iter().any(|pattern| pattern.touches(filter)) {
                denied |= !rule.allow;
                allowed |= rule.allow && rule.lenient;
            }
        }
        Some(whole_if(passed, verdict(self.no_match, denied, allowed)))
    }

    fn decides(&self, action: Action, topic: &str, qos: Qos, retain: bool, heard: Option<Heard>) -> Decided {
        let concerns = |(rule, topics): &(&Rule, &[Pattern])| {
            rule.concerns(action, qos, retain) && topics.iter().any(|pattern| pattern.matches(topic))
        };
        for (rule, _) in self.rules().filter(concerns) {
            match (rule.asks, heard) {
                (false, _) => return Decided::Rule(rule.allow),
                (true, None) => return Decided::Server,
                (true, Some(Heard::Allow)) => return Decided::Rule(true),
                (true, Some(Heard::Deny)) => return Decided::Rule(false),
                (true, Some(Heard::Pass)) => {}
            }
        }
        Decided::Nobody
    }

    fn rules(&self) -> impl Iterator<Item = (&Rule, &[Pattern])> {
        self.layers.iter().flat_map(Layer::rules)
    }
}

/// In part is not at all.
fn whole_if(passed: bool, granted: Granted) -> Granted {
    if passed && granted == Granted::Guarded { Granted::Refused } else { granted }
}

impl Layer {
    fn new(rules: &Arc<Rules>, subject: &Subject<'_>) -> Layer {
        let mut of_user = subject.user.and_then(|user| rules.by_user.get(user)).map_or(&[][..], |list| list);
        let mut others = &rules.others[..];
        let mut chosen = Vec::new();
        while let Some(at) = first_of(&mut of_user, &mut others) {
            let rule = &rules.rules[at as usize];
            if !rule.who.is(subject) {
                continue;
            }
            let topics = match rule.holes {
                true => {
                    let filled: Box<[_]> =
                        rule.topics.iter().filter_map(|topic| topic.filled(rule.allow, subject)).collect();
                    if filled.is_empty() {
                        continue;
                    }
                    Some(filled)
                }
                false => None,
            };
            chosen.push(Chosen { rule: at, topics });
        }
        Layer { rules: rules.clone(), chosen: chosen.into() }
    }

    fn rules(&self) -> impl Iterator<Item = (&Rule, &[Pattern])> {
        let (mut chosen, mut everyone) = (&self.chosen[..], &self.rules.everyone[..]);
        core::iter::from_fn(move || {
            let first = match (chosen.first(), everyone.first()) {
                (Some(chosen), Some(of_all)) => chosen.rule < *of_all,
                (first, _) => first.is_some(),
            };
            if !first {
                let (at, rest) = everyone.split_first()?;
                everyone = rest;
                let rule = &self.rules.rules[*at as usize];
                return Some((rule, &rule.topics[..]));
            }
            let (next, rest) = chosen.split_first()?;
            chosen = rest;
            let rule = &self.rules.rules[next.rule as usize];
            Some((rule, next.topics.as_deref().unwrap_or(&rule.topics)))
        })
    }
}

/// Takes the lower of two first members.
fn first_of<'a>(a: &mut &'a [u32], b: &mut &'a [u32]) -> Option<u32> {
    let from = match (a.first(), b.first()) {
        (Some(left), Some(right)) if left < right => a,
        (Some(_), None) => a,
        _ => b,
    };
    let (first, rest) = from.split_first()?;
    *from = rest;
    Some(*first)
}
