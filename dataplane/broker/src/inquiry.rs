//! What the rules leave to a server: a PUBLISH, SUBSCRIBE or CONNECT about which it has to be asked waits in front of its
//! connection's input until the answer is there; everybody else goes on. Lives on the home shard; the shell asks
//! ([`Output::permit`]). Always true: a connection has one question open at most; the packet that waits is read again as
//! a whole, with what was heard about it at hand, and has had no effect before; a server that is silent is passed over.

use alloc::{boxed::Box, vec::Vec};
use core::net::IpAddr;

use ahash::RandomState;
use hashbrown::{Equivalent, HashMap};
use mqtt::types::Qos;

use crate::{
    Shard,
    access::{Action, Principal},
    admission::Access,
    conn::{Conns, Phase, pause},
    counters::{Counter, Counters},
    session::SessionId,
    surface::{ConnId, Output},
};

/// Questions about one packet (a SUBSCRIBE has many filters); what goes beyond is passed over.
const ASKED_PER_PACKET_MAX: usize = 256;

/// What a server says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// It may.
    Allow,
    /// It may not.
    Deny,
    /// The rules behind it decide.
    Pass,
}

/// What a server is asked: may this client do this?
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Client id.
    pub client: &'a str,
    /// User name, if it has one.
    pub user: Option<&'a str>,
    /// Its address.
    pub peer: IpAddr,
    /// What it wants to do.
    pub action: Action,
    /// The topic, or the filter that it subscribes to.
    pub topic: &'a str,
    /// With which QoS.
    pub qos: Qos,
}

/// How much of what a server said is remembered per connection, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Remember {
    /// Answers; 0: none.
    pub answers_max: u32,
    /// Microseconds.
    pub ttl_us: u64,
}

/// What a question was about, with everything that its answer may depend on.
#[derive(PartialEq, Eq, Hash, Debug)]
struct Thing {
    kind: u8,
    topic: Box<str>,
}

/// The same, borrowed.
#[derive(Hash)]
struct Named<'a> {
    kind: u8,
    topic: &'a str,
}

impl<'a> Named<'a> {
    fn of((action, topic, qos): (Action, &'a str, Qos)) -> Named<'a> {
        Named { kind: (qos as u8) << 1 | u8::from(action == Action::Publish), topic }
    }

    fn owned(&self) -> Thing {
        Thing { kind: self.kind, topic: self.topic.into() }
    }
}

impl Equivalent<Thing> for Named<'_> {
    fn equivalent(&self, thing: &Thing) -> bool {
        self.kind == thing.kind && *self.topic == *thing.topic
    }
}

/// What a server said about a principal. Owned by its session, forgotten with its rights.
#[derive(Debug)]
pub(crate) struct Answers {
    /// With the time until which it counts, monotonic microseconds.
    said: HashMap<Thing, (Heard, u64), RandomState>,
}

impl Answers {
    pub(crate) fn new(seed: u64) -> Answers {
        Answers { said: HashMap::with_hasher(RandomState::with_seeds(seed, 50, 51, 52)) }
    }

    fn get(&self, named: &Named<'_>, now_us: u64) -> Option<Heard> {
        self.said.get(named).filter(|(_, until_us)| now_us < *until_us).map(|(heard, _)| *heard)
    }

    /// Each answer costs a question, so that looking for the oldest one is nothing beside it.
    fn put(&mut self, thing: Thing, heard: Heard, now_us: u64, remember: Remember) {
        if self.said.len() >= remember.answers_max as usize {
            let oldest = self.said.iter().map(|(_, (_, until_us))| *until_us).min();
            let limit_us = oldest.map_or(now_us, |oldest_us| oldest_us.max(now_us));
            self.said.retain(|_, (_, until_us)| *until_us > limit_us);
        }
        self.said.insert(thing, (heard, now_us.saturating_add(remember.ttl_us)));
    }
}

/// A packet that waits.
#[derive(Default)]
pub(crate) struct Hold {
    /// Number of the policy under which this was heard; under another one it counts for nothing.
    policy: u64,
    /// Number of the open question, and what it is about.
    asked: Option<(u64, Thing)>,
    heard: Vec<(Thing, Heard)>,
    /// The server did not answer, or nobody could be asked: it is not asked again about this packet.
    silent: bool,
    /// Who was let in, while its CONNECT waits because of its will.
    pub(crate) principal: Option<Principal>,
}

impl Shard {
    /// What the server says about a wish of an open connection. `None`: it is asked, and the packet waits.
    pub(crate) fn hear(
        &mut self,
        id: ConnId,
        session: SessionId,
        wish: (Action, &str, Qos),
        out: &mut impl Output,
    ) -> Option<Heard> {
        let named = Named::of(wish);
        if let Some(heard) = self.heard_of(id, &named) {
            return Some(heard);
        }
        let Some(state) = self.sessions.get(session) else { return Some(Heard::Pass) };
        let Some(access) = state.access.as_deref() else { return Some(Heard::Pass) };
        let now_us = self.now.mono_us;
        if let Some(heard) = access.answers.as_ref().and_then(|answers| answers.get(&named, now_us)) {
            self.counters.one(Counter::access_remembered);
            return Some(heard);
        }
        let (user, (action, topic, qos)) = (access.principal.user.as_deref(), wish);
        let wish = Wish { client: &state.client, user, peer: access.peer, action, topic, qos };
        let number = (self.policy.number, &mut self.questions);
        let heard = ask((&mut self.conns, &mut self.counters, number), id, &wish, out);
        if heard.is_none() {
            self.pause(id, pause::ACCESS, out);
        }
        heard
    }

    /// The same about the will of a client that connects. `None`: its CONNECT is parked, and who it is lies with it.
    pub(crate) fn hear_will(&mut self, id: ConnId, wish: &Wish<'_>, out: &mut impl Output) -> Option<Heard> {
        let named = Named::of((wish.action, wish.topic, wish.qos));
        if let Some(heard) = self.heard_of(id, &named) {
            return Some(heard);
        }
        let number = (self.policy.number, &mut self.questions);
        let heard = ask((&mut self.conns, &mut self.counters, number), id, wish, out);
        if heard.is_none() {
            self.pause(id, pause::ADMISSION, out);
        }
        heard
    }

    /// Keeps who was let in until its parked CONNECT is read again.
    pub(crate) fn keep_admitted(&mut self, id: ConnId, access: Option<Box<Access>>) {
        let hold = self.conns.get(id).and_then(|conn| conn.hold.as_mut());
        if let (Some(hold), Some(access)) = (hold, access) {
            hold.principal = Some(access.principal);
        }
    }

    /// What was heard about a wish of this packet, or is remembered; what was not is passed over.
    pub(crate) fn heard(&mut self, session: SessionId, wish: (Action, &str, Qos)) -> Heard {
        let named = Named::of(wish);
        let Some(state) = self.sessions.get(session) else { return Heard::Pass };
        let now_us = self.now.mono_us;
        let answers = state.access.as_ref().and_then(|access| access.answers.as_ref());
        let remembered = answers.and_then(|answers| answers.get(&named, now_us));
        let conn = if state.online() { self.conns.at(state.conn) } else { None };
        let id = conn.map(|conn| conn.id);
        let heard = id.and_then(|id| self.heard_of(id, &named));
        heard.or(remembered).unwrap_or(Heard::Pass)
    }

    fn heard_of(&mut self, id: ConnId, named: &Named<'_>) -> Option<Heard> {
        let policy = self.policy.number;
        let hold = self.conns.get(id)?.hold.as_ref().filter(|hold| hold.policy == policy)?;
        hold.heard.iter().find(|(thing, _)| named.equivalent(thing)).map(|(_, heard)| *heard)
    }

    /// The packet that waited has been handled.
    pub(crate) fn settle_hold(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get(id) {
            conn.hold = None;
        }
    }

    /// The answer to a question, by the policy with this number; `None`: there is none.
    pub(crate) fn permitted(
        &mut self,
        id: ConnId,
        number: u64,
        policy: u64,
        heard: Option<Heard>,
        out: &mut impl Output,
    ) {
        let conn = self.conns.get(id).filter(|conn| !matches!(conn.phase, Phase::Closing));
        let hold = conn.and_then(|conn| conn.hold.as_mut());
        let Some(hold) = hold.filter(|hold| hold.asked.as_ref().is_some_and(|(asked, _)| *asked == number)) else {
            return self.counters.one(Counter::access_late);
        };
        let Some((_, thing)) = hold.asked.take() else { return };
        match heard {
            None => {
                self.counters.one(Counter::access_silent);
                hold.silent = true;
                hold.heard.push((thing, Heard::Pass));
            }
            // What another policy's server said is asked again.
            Some(_) if policy != self.policy.number => {}
            Some(heard) => {
                hold.heard.push((Thing { kind: thing.kind, topic: thing.topic.clone() }, heard));
                self.remember(id, thing, heard);
            }
        }
        self.read_held(id, out);
    }

    /// The time for CONNECT is over while a question about it is open: the server is passed over.
    pub(crate) fn permission_overdue(&mut self, id: ConnId, out: &mut impl Output) {
        let hold = self.conns.get(id).and_then(|conn| conn.hold.as_ref());
        let number = hold.and_then(|hold| hold.asked.as_ref()).map(|(number, _)| *number);
        if let Some(number) = number {
            self.permitted(id, number, self.policy.number, None, out);
        }
    }

    fn remember(&mut self, id: ConnId, thing: Thing, heard: Heard) {
        let (remember, now_us, seed) = (self.policy.remember, self.now.mono_us, self.settings.seed);
        let Some(session) = self.conns.open(id).map(|open| open.session) else { return };
        let access = self.sessions.get_mut(session).and_then(|session| session.access.as_mut());
        if let Some(access) = access.filter(|_| remember.answers_max > 0) {
            let answers = access.answers.get_or_insert_with(|| Box::new(Answers::new(seed)));
            answers.put(thing, heard, now_us, remember);
        }
    }

    /// Reads a packet again that has waited.
    fn read_held(&mut self, id: ConnId, out: &mut impl Output) {
        let now_us = self.now.mono_us;
        let Some(conn) = self.conns.get(id) else { return };
        if matches!(conn.phase, Phase::Opening) {
            return self.unpark(id, out);
        }
        conn.paused &= !pause::ACCESS;
        if conn.paused == 0 {
            // Its silence was ours.
            conn.heard_us = now_us;
            out.read(id, true);
            self.consume_unread(id, out);
        }
    }
}

/// Asks, unless that has no use any more. `None`: an answer will come.
fn ask(
    (conns, counters, (policy, questions)): (&mut Conns, &mut Counters, (u64, &mut u64)),
    id: ConnId,
    wish: &Wish<'_>,
    out: &mut impl Output,
) -> Option<Heard> {
    let Some(conn) = conns.get(id) else { return Some(Heard::Pass) };
    let ending = conn.ending;
    let hold = conn.hold.get_or_insert_default();
    if hold.policy != policy {
        **hold = Hold { policy, ..Hold::default() };
    }
    if hold.silent || ending || hold.heard.len() >= ASKED_PER_PACKET_MAX {
        counters.one(Counter::access_unasked);
        return Some(Heard::Pass);
    }
    *questions += 1;
    if !out.permit(id, *questions, wish) {
        hold.silent = true;
        counters.one(Counter::access_overloaded);
        return Some(Heard::Pass);
    }
    counters.one(Counter::access_asked);
    let thing = Named::of((wish.action, wish.topic, wish.qos)).owned();
    hold.asked = Some((*questions, thing));
    None
}
