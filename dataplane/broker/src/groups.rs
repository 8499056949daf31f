//! Owner side of shared groups (`$share/<group>/<filter>`): members of every shard, and whose turn it is.
//! Lives on the owner shard of the group's partition. Invariant: a message of a group goes to one member;
//! the choice may come back once, then it is final.

use alloc::{boxed::Box, vec::Vec};

use ahash::RandomState;
use hashbrown::HashMap;
use mqtt::types::{Qos, Reason};
use slab::Slab;

use crate::{
    Shard,
    counters::Counter,
    deliver::Delivered,
    frame::{self, Kept, Kind, Message, MessageFrame, MessageId, must},
    interest::Dest,
    journal::{
        Again, Chosen, What,
        record::{GROUP_STREAM, Stream},
    },
    obligation::{Outcome, Wait, Waiter},
    session::SessionId,
    subscriptions::{Change, Guard, Options, Subscription, Subscriptions},
    surface::Output,
};

/// Groups that this shard owns.
pub(crate) struct Groups {
    slab: Slab<Group>,
    by_name: HashMap<(Box<str>, Box<str>), u32, RandomState>,
    /// Filter -> groups; `session` of an entry is the group's index.
    index: Subscriptions,
    generation: u32,
    scratch: Vec<u32>,
}

struct Group {
    name: Box<str>,
    filter: Box<str>,
    generation: u32,
    members: Vec<Member>,
    turn: usize,
}

/// One member of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Member {
    pub(crate) home: u16,
    pub(crate) session: SessionId,
    pub(crate) options: Options,
    pub(crate) id: u32,
    pub(crate) online: bool,
}

/// A message for a member on another shard that has not left.
pub(crate) struct Given {
    pub(crate) group: u32,
    /// The group's when it was chosen: its place may be another group's when this leaves.
    pub(crate) generation: u32,
    pub(crate) member: Member,
    pub(crate) id: MessageId,
    pub(crate) kept: Kept,
    pub(crate) flags: u8,
    pub(crate) token: u64,
}

/// Messages that are on their way to members elsewhere, or tried again because these cannot keep them; more are refused.
const CHOSEN_MAX: usize = 65_536;

/// What a member does; numbers are on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Act {
    Join = 0,
    Leave = 1,
    Online = 2,
    Offline = 3,
}

impl Act {
    pub(crate) fn from_u8(act: u8) -> Option<Act> {
        [Act::Join, Act::Leave, Act::Online, Act::Offline].get(usize::from(act)).copied()
    }
}

impl Groups {
    pub(crate) fn new(seed: u64, shapes_max: usize) -> Groups {
        Groups {
            slab: Slab::new(),
            by_name: HashMap::with_hasher(RandomState::with_seeds(seed, 17, 18, 19)),
            index: Subscriptions::new(seed, shapes_max),
            generation: 0,
            scratch: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    /// A member joins (or changes its options). True when the filter is new on this shard.
    fn join(&mut self, name: &str, filter: &str, member: Member) -> (bool, bool) {
        let key = (Box::from(name), Box::from(filter));
        if let Some(&at) = self.by_name.get(&key) {
            let members = &mut self.slab[at as usize].members;
            match members.iter_mut().find(|m| (m.home, m.session) == (member.home, member.session)) {
                Some(existing) => *existing = member,
                None => members.push(member),
            }
            return (false, false);
        }
        self.generation = self.generation.wrapping_add(1).max(1);
        let group = Group {
            name: name.into(),
            filter: filter.into(),
            generation: self.generation,
            members: alloc::vec![member],
            turn: 0,
        };
        let at = self.slab.insert(group) as u32;
        self.by_name.insert(key, at);
        let entry = Subscription { session: at, id: 0, options: Options::default() };
        let (_, change, _) = self.index.insert(filter, entry);
        (true, change == Change::First)
    }

    /// A member leaves. (The group is gone, its filter is gone.)
    fn leave(&mut self, name: &str, filter: &str, home: u16, session: SessionId) -> (bool, bool) {
        let key = (Box::from(name), Box::from(filter));
        let Some(&at) = self.by_name.get(&key) else { return (false, false) };
        let group = &mut self.slab[at as usize];
        group.members.retain(|m| (m.home, m.session) != (home, session));
        if !group.members.is_empty() {
            return (false, false);
        }
        self.slab.remove(at as usize);
        self.by_name.remove(&key);
        let change = self.index.remove(filter, at).map(|(_, change)| change);
        (true, change == Some(Change::Last))
    }

    fn set_online(&mut self, name: &str, filter: &str, home: u16, session: SessionId, online: bool) {
        let key = (Box::from(name), Box::from(filter));
        let Some(&at) = self.by_name.get(&key) else { return };
        let members = &mut self.slab[at as usize].members;
        if let Some(m) = members.iter_mut().find(|m| (m.home, m.session) == (home, session)) {
            m.online = online;
        }
    }

    /// Whose turn it is in a group: the next member that is online, else the next one at all.
    /// `not` was tried and came back.
    fn choose(&mut self, at: u32, not: Option<(u16, SessionId)>) -> Option<Member> {
        let group = self.slab.get_mut(at as usize)?;
        let n = group.members.len();
        let order = (0..n).map(|i| (group.turn + i) % n);
        let fits = |i: &usize| Some((group.members[*i].home, group.members[*i].session)) != not;
        let chosen = order
            .clone()
            .find(|i| group.members[*i].online && fits(i))
            .or_else(|| order.clone().find(fits))
            .or_else(|| order.clone().next())?;
        group.turn = chosen + 1;
        Some(group.members[chosen])
    }

    fn generation(&self, at: u32) -> u32 {
        self.slab.get(at as usize).map_or(0, |group| group.generation)
    }
}

impl Shard {
    /// A member frame, or the same on this shard. Returns true when SUBACK has to wait for new interest.
    pub(crate) fn group_member(&mut self, act: Act, name: &str, filter: &str, member: Member) -> bool {
        let me = self.settings.shard.0;
        match act {
            Act::Join => {
                let (new_group, new_filter) = self.groups.join(name, filter, member);
                if new_filter {
                    self.announce(filter, Dest::Group(me), true);
                }
                if new_group {
                    self.links_group(name, filter, true);
                }
                // Somebody else may have announced the filter a moment ago: wait for that, too.
                true
            }
            Act::Leave => {
                let (group_gone, filter_gone) = self.groups.leave(name, filter, member.home, member.session);
                if filter_gone {
                    self.announce(filter, Dest::Group(me), false);
                }
                if group_gone {
                    self.links_group(name, filter, false);
                }
                false
            }
            Act::Online | Act::Offline => {
                let online = act == Act::Online;
                self.groups.set_online(name, filter, member.home, member.session, online);
                false
            }
        }
    }

    /// Gives a message to one member of each matching group that this shard owns. Counts groups.
    pub(crate) fn deliver_groups(
        &mut self,
        message: &Message<'_>,
        wait: &mut Wait,
        out: &mut impl Output,
    ) -> Delivered {
        if self.groups.len() == 0 {
            return Delivered::default();
        }
        let mut entries = core::mem::take(&mut self.groups.scratch);
        entries.clear();
        self.groups.index.matching(message.topic, &mut entries);
        let mut groups: smallvec::SmallVec<[u32; 8]> = smallvec::SmallVec::new();
        for &entry in &entries {
            groups.extend(self.groups.index.at(entry).iter().map(|s| s.session));
        }
        self.groups.scratch = entries;
        let repeats = self.repeats(message);
        let mut refused = false;
        for &group in &groups {
            if repeats && self.took_group(message, group) {
                continue;
            }
            let Some(member) = self.groups.choose(group, None) else { continue };
            refused |= self.give(group, member, message, wait, out);
        }
        Delivered { count: groups.len(), refused }
    }

    /// Had the owner of this group taken a message before the crash?
    fn took_group(&self, message: &Message<'_>, group: u32) -> bool {
        let Some(group) = self.groups.slab.get(group as usize) else { return true };
        let partition = contract::hash::partition_of_group(&group.name, &group.filter);
        self.history.took(Stream::of(&message.id), message.id.sequence, partition)
    }

    /// One message to one member, here or on its home shard. True: refused, because the log cannot take it.
    fn give(
        &mut self,
        group: u32,
        member: Member,
        message: &Message<'_>,
        wait: &mut Wait,
        out: &mut impl Output,
    ) -> bool {
        self.counters.one(Counter::group_deliveries);
        if member.home == self.settings.shard.0 {
            return self.give_here(member, message, out);
        }
        if message.qos == Qos::AtMostOnce && self.hops.over(member.home) {
            self.counters.one(Counter::shed_hop_full);
            return false;
        }
        if message.durable {
            let full = !self.journal.grows() && !self.repeats(message);
            if full || self.journal.chosen.len() >= CHOSEN_MAX {
                self.counters.one(Counter::shed_log_full);
                return true;
            }
            let deadline_us = self.obligation_deadline_us();
            let kept = self.pool.keep(message, self.now.mono_us);
            let token = self.obligations.open(Waiter::Restored, deadline_us);
            self.give_kept(group, member, kept, 0, token, out);
            return false;
        }
        let deadline_us = self.obligation_deadline_us();
        let token = wait.one_more(&mut self.obligations, deadline_us);
        if self.journal.deferred.is_empty() {
            self.send_group((group, self.groups.generation(group)), member, message, 0, token);
        } else {
            // Not before what was published before.
            let kept = self.pool.keep(message, self.now.mono_us);
            let generation = self.groups.generation(group);
            self.defer(What::Give(Given { group, generation, member, id: message.id, kept, flags: 0, token }), out);
        }
        false
    }

    /// A message that is repeated after a crash goes to a member elsewhere: the choice is recorded, with a number of the
    /// chooser's own stream, because a second choice overtakes what was chosen later.
    fn give_kept(&mut self, group: u32, member: Member, kept: Kept, flags: u8, token: u64, out: &mut impl Output) {
        let Some(entry) = self.groups.slab.get(group as usize) else { return };
        self.journal.group_sequence += 1;
        let sequence = self.journal.group_sequence;
        let id = MessageId { stream: self.origin.stream | GROUP_STREAM, sequence, ..self.origin };
        let stream = Stream::of(&id);
        let chosen =
            Chosen { group: entry.name.clone(), filter: entry.filter.clone(), home: member.home, kept: kept.clone() };
        self.journal.chose(stream, sequence, chosen, self.now);
        self.obligations.rebind(token, Waiter::Chosen { stream, sequence });
        let generation = entry.generation;
        let given = Given { group, generation, member, id, kept, flags, token };
        match self.journal.records() {
            true => self.defer(What::Give(given), out),
            false => self.journal.stuck.push(given),
        }
    }

    /// A message for a member elsewhere leaves.
    pub(crate) fn send_given(&mut self, given: Given) {
        let Given { group, generation, member, id, kept, flags, token } = given;
        let message = Message { id, ..kept.message(self.now.mono_us) };
        self.send_group((group, generation), member, &message, flags, token);
        self.pool.release(kept);
    }

    /// A choice was lost with a crash, or could not be kept by its member: another one.
    pub(crate) fn regroup(&mut self, name: &str, filter: &str, kept: &Kept, out: &mut impl Output) {
        let key = (Box::from(name), Box::from(filter));
        let group = self.groups.by_name.get(&key).copied();
        let chosen = group.and_then(|group| self.groups.choose(group, None).map(|member| (group, member)));
        let Some((group, member)) = chosen else { return self.counters.one(Counter::shed_no_member) };
        if member.home == self.settings.shard.0 {
            let message = kept.message(self.now.mono_us);
            self.give_here(member, &message, out);
            return;
        }
        let deadline_us = self.obligation_deadline_us();
        let token = self.obligations.open(Waiter::Restored, deadline_us);
        self.give_kept(group, member, kept.clone(), must::FINAL, token, out);
    }

    /// The member that was chosen has the message; or it is chosen again later.
    pub(crate) fn chosen_settled(&mut self, stream: Stream, sequence: u64, outcome: Outcome) {
        if outcome.reason.is_failure() {
            return self.journal.again.push(Again::Chosen(stream, sequence));
        }
        if let Some(chosen) = self.journal.chosen_done(stream, sequence) {
            self.pool.release(chosen.kept);
        }
    }

    fn send_group(
        &mut self,
        (group, generation): (u32, u32),
        member: Member,
        message: &Message<'_>,
        flags: u8,
        token: u64,
    ) {
        let words = [
            group,
            generation,
            member.session.index,
            member.session.generation,
            u32::from(member.options.bits()),
            member.id,
        ];
        self.counters.one(Counter::hops_sent);
        let bytes = self.hops.message(member.home);
        frame::put_message(bytes, Kind::GroupDelivery, flags, token, &words, message);
    }

    fn give_here(&mut self, member: Member, message: &Message<'_>, out: &mut impl Output) -> bool {
        if self.sessions.get(member.session).is_none() {
            self.counters.one(Counter::shed_no_member);
            return false;
        }
        let own = [member.id];
        let ids = if member.id == 0 { &[][..] } else { &own[..] };
        // It was chosen before its right was taken, perhaps.
        let guard = if self.restricted { Guard::Guarded } else { Guard::Open };
        let options = member.options.with_guard(guard);
        let insists = self.insists(message);
        let (mut delivering, _) = self.delivering();
        delivering.insists = insists;
        //= MQTT-4.8.2-4
        // It is this member's now, whatever becomes of its connection.
        delivering.live(member.session.index, options, ids, message, out);
        delivering.finish()
    }

    /// A group delivery arrived at the member's home shard: it is taken, or shed under a name; or it goes back to the owner,
    /// whose obligation stays open.
    pub(crate) fn group_delivery(&mut self, from: u16, frame: &MessageFrame<'_>, out: &mut impl Output) {
        let Ok([group, generation, index, session_generation, options, id]) = frame.group_words() else {
            self.counters.one(Counter::frames_bad);
            return self.send_done(from, frame.token, Outcome::MET, out);
        };
        let session = SessionId { index, generation: session_generation };
        let online = self.sessions.get(session).is_some_and(|s| s.online());
        if !online && frame.must & must::FINAL == 0 {
            self.counters.one(Counter::group_returned);
            let words = [group, generation, index, session_generation, options, id];
            let bytes = self.hops.message(from);
            return frame::put_message(bytes, Kind::GroupReturned, 0, frame.token, &words, &frame.message);
        }
        let before = self.journal.position();
        let options = Options::from_bits(options as u8);
        let member = Member { home: self.settings.shard.0, session, options, id, online };
        let refused = self.give_here(member, &frame.message, out);
        if !refused {
            self.taken(&frame.message);
        }
        match refused {
            true => self.send_done(from, frame.token, Outcome::refused(Reason::QuotaExceeded), out),
            false if self.journal.position() != before || self.taken_unrecorded(&frame.message) => {
                self.when_kept(from, frame.token, &frame.message);
            }
            false => self.send_done(from, frame.token, Outcome::MET, out),
        }
    }

    /// A choice came back to the owner: another member, finally.
    pub(crate) fn group_returned(&mut self, from: u16, frame: &MessageFrame<'_>, out: &mut impl Output) {
        let words = frame.group_words();
        let chosen = words.ok().and_then(|[group, generation, index, session_generation, ..]| {
            let tried = (from, SessionId { index, generation: session_generation });
            let current = self.groups.generation(group) == generation;
            let member = if current { self.groups.choose(group, Some(tried)) } else { None };
            member.map(|member| (group, member))
        });
        let mut kept = None;
        if let Some(Waiter::Chosen { stream, sequence }) = self.obligations.waiter(frame.token) {
            kept = self.journal.chosen_done(stream, sequence).map(|chosen| chosen.kept);
        }
        match chosen {
            Some((group, member)) if member.home != self.settings.shard.0 && kept.is_some() => {
                if let Some(kept) = kept {
                    self.give_kept(group, member, kept, must::FINAL, frame.token, out);
                }
            }
            Some((group, member)) if member.home != self.settings.shard.0 => {
                let generation = self.groups.generation(group);
                self.send_group((group, generation), member, &frame.message, must::FINAL, frame.token);
            }
            Some((_, member)) => {
                let before = self.journal.position();
                match self.give_here(member, &frame.message, out) {
                    true => self.report(frame.token, Outcome::refused(Reason::QuotaExceeded), out),
                    false if self.journal.position() != before => {
                        self.when_kept(self.settings.shard.0, frame.token, &frame.message);
                    }
                    false => self.report(frame.token, Outcome::MET, out),
                }
            }
            None => {
                self.counters.one(Counter::shed_no_member);
                self.report(frame.token, Outcome::MET, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(home: u16, index: u32, online: bool) -> Member {
        let session = SessionId { index, generation: 1 };
        Member { home, session, options: Options::default(), id: 0, online }
    }

    #[test]
    fn members_take_turns_and_those_online_go_first() {
        let mut groups = Groups::new(1, 4);
        for (i, online) in [(0, true), (1, false), (2, true)] {
            groups.join("g", "a/+", member(0, i, online));
        }
        let mut turn = || groups.choose(0, None).unwrap().session.index;
        assert_eq!([turn(), turn(), turn(), turn()], [0, 2, 0, 2]);
        groups.set_online("g", "a/+", 0, SessionId { index: 0, generation: 1 }, false);
        groups.set_online("g", "a/+", 0, SessionId { index: 2, generation: 1 }, false);
        assert!(groups.choose(0, None).is_some(), "offline members still queue");
    }

    #[test]
    fn a_returned_choice_goes_to_somebody_else() {
        let mut groups = Groups::new(1, 4);
        groups.join("g", "a", member(0, 0, true));
        groups.join("g", "a", member(1, 0, false));
        let tried = (0, SessionId { index: 0, generation: 1 });
        assert_eq!(groups.choose(0, Some(tried)).unwrap().home, 1);
    }

    #[test]
    fn a_group_ends_with_its_last_member_and_the_filter_with_its_last_group() {
        let mut groups = Groups::new(1, 4);
        assert_eq!(groups.join("g", "a", member(0, 0, true)), (true, true));
        assert_eq!(groups.join("h", "a", member(0, 0, true)), (true, false));
        assert_eq!(groups.join("g", "a", member(0, 1, true)), (false, false));
        let leave = |groups: &mut Groups, name, i| groups.leave(name, "a", 0, SessionId { index: i, generation: 1 });
        assert_eq!(leave(&mut groups, "g", 0), (false, false));
        assert_eq!(leave(&mut groups, "g", 1), (true, false));
        assert_eq!(leave(&mut groups, "h", 0), (true, true));
        assert_eq!(groups.len(), 0);
    }
}
