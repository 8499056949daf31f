//! Another policy, or another principal: what sessions may do is looked at again. Lives on the home shard of the sessions.
//! Always true: a subscription that is not granted any more delivers nothing (it is muted), and what a principal may not
//! receive is neither queued for it nor sent again.

use alloc::{sync::Arc, vec::Vec};
use core::net::{IpAddr, Ipv4Addr};

use mqtt::{connection::Misbehaved, types::Reason};

use crate::{
    Shard,
    access::{Action, Granted, Principal, Rights},
    admission::{Access, Policy},
    counters::Counter,
    groups::Act,
    inquiry::Heard,
    publish::LINK_PREFIX,
    session::SessionId,
    subscriptions::Guard,
    surface::{ConnId, Output},
};

/// Sessions that are looked at in one turn.
const SESSIONS_PER_TURN: u32 = 512;

impl Shard {
    /// The operator has said something else: for whoever comes at once, for sessions a slice per turn.
    pub(crate) fn take_policy(&mut self, policy: &Arc<Policy>) {
        self.policy = policy.clone();
        self.restricted |= policy.rules.is_some();
        self.revision = Some(0);
    }

    /// The next slice of sessions. True: more are left.
    pub(crate) fn revise(&mut self, out: &mut impl Output) -> bool {
        let Some(from) = self.revision else { return false };
        let places = self.sessions.places();
        let until = from.saturating_add(SESSIONS_PER_TURN).min(places);
        for index in from..until {
            if let Some(id) = self.sessions.id_at(index) {
                self.revise_session(id, out);
            }
        }
        self.revision = (until < places).then_some(until);
        self.revision.is_some()
    }

    fn revise_session(&mut self, id: SessionId, out: &mut impl Output) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        let conn = if session.online() { self.conns.at(session.conn) } else { None };
        let (conn, listener) = (conn.as_ref().map(|conn| (conn.id, conn.peer)), conn.map(|conn| conn.listener));
        let stranger = || {
            let peer = conn.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |(_, peer)| peer.ip());
            (Principal::unproven(None), peer)
        };
        let before = session.access.take();
        let (principal, peer) = before.map_or_else(stranger, |access| (access.principal, access.peer));
        let client = session.client.clone();
        let known = self.policy.still_knows(&principal, listener);
        let access = self.access_of(principal, &client, peer);
        if let Some(session) = self.sessions.get_mut(id) {
            session.access = access;
        }
        self.apply_rights(id, out);
        if let (false, Some((conn, _))) = (known, conn) {
            self.dismiss(conn, out);
        }
    }

    /// A connection whose principal would not be let in any more.
    fn dismiss(&mut self, id: ConnId, out: &mut impl Output) {
        self.counters.one(Counter::clients_revoked);
        let why = "its user was removed or has another password";
        self.misbehaved(id, Misbehaved { reason: Reason::NotAuthorized, why }, out);
    }

    /// Holds everything that a session has against its rights.
    pub(crate) fn apply_rights(&mut self, id: SessionId, out: &mut impl Output) {
        if !self.restricted {
            return;
        }
        self.guard_filters(id);
        self.guard_shared(id, out);
        self.withdraw(id);
        if let Some(access) = self.sessions.get_mut(id).and_then(|session| session.access.as_mut()) {
            access.inherited = false;
        }
    }

    fn guard_filters(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id) else { return };
        let rights = session.access.as_ref().and_then(|access| access.rights.as_ref());
        let inherited = session.access.as_ref().is_some_and(|access| access.inherited);
        let mut muted = Vec::new();
        for &at in &session.filters {
            let Some(subscription) = self.subscriptions.subscription(at, id.index) else { continue };
            let (filter, qos) = (self.subscriptions.filter(at), subscription.options.qos());
            let granted = rights.map_or(Granted::Whole, |rights| match filter.starts_with(LINK_PREFIX) {
                // Accepted for a remote when it subscribed: only a rule about it says no.
                true if rights.says(Action::Subscribe, filter, qos) != Some(false) => Granted::Whole,
                true => Granted::Refused,
                false => {
                    let heard = heard_before(inherited, subscription.options.guard() == Guard::Muted);
                    rights.subscribe_as_heard(filter, qos, Some(heard)).unwrap_or(Granted::Refused)
                }
            });
            let guard = Guard::from(granted);
            if guard == Guard::Muted && subscription.options.guard() != Guard::Muted {
                self.counters.one(Counter::subscriptions_revoked);
                muted.push(at);
            }
            self.subscriptions.set_guard(at, id.index, guard);
        }
        for at in muted {
            let filter: alloc::boxed::Box<str> = self.subscriptions.filter(at).into();
            self.cancel_replays(id, Some(&filter));
        }
    }

    /// Members of a group read for all of it: who may not read everything is no member.
    fn guard_shared(&mut self, id: SessionId, out: &mut impl Output) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        let rights = session.access.as_ref().and_then(|access| access.rights.as_ref());
        let inherited = session.access.as_ref().is_some_and(|access| access.inherited);
        let (mut leave, mut join) = (Vec::new(), Vec::new());
        for shared in &mut session.shared {
            let heard = Some(heard_before(inherited, shared.muted));
            let granted = |rights: &Rights| rights.subscribe_as_heard(&shared.filter, shared.options.qos(), heard);
            let whole = rights.is_none_or(|rights| granted(rights) == Some(Granted::Whole));
            if whole == shared.muted {
                shared.muted = !whole;
                if whole { join.push(shared.clone()) } else { leave.push(shared.clone()) }
            }
        }
        self.counters.add(Counter::subscriptions_revoked, leave.len() as u64);
        for shared in &leave {
            self.tell_group(Act::Leave, id, shared, 0, out);
        }
        for shared in &join {
            self.tell_group(Act::Join, id, shared, 0, out);
        }
    }

    /// Sheds what waits for a session, or has to be sent to it again, and may not be received.
    fn withdraw(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        let (number, state) = (session.number, &mut session.state);
        let Some(Access { rights: Some(rights), inherited, .. }) = session.access.as_deref() else { return };
        let heard = heard_before(*inherited, false);
        let now_us = self.now.mono_us;
        let mut shed = 0;
        let (journal, pool) = (&mut self.journal, &mut self.pool);
        let may = |delivery: &crate::session::Delivery| {
            rights.may_receive_as_heard(delivery.message.message(now_us).topic, delivery.qos, heard)
        };
        state.retain_queue(may, |delivery| {
            shed += 1;
            journal.gone(number, &delivery);
            pool.release(delivery.message);
        });
        state.outgoing.retain_owed(may, |packet, delivery| {
            shed += 1;
            journal.acked(number, packet.get());
            pool.release(delivery.message);
        });
        self.counters.add(Counter::shed_delivery_denied, shed);
    }
}

/// What a server counts to have said about a subscription that is there: what it said when the client subscribed, to which
/// it is asked again only when the client subscribes again.
fn heard_before(inherited: bool, muted: bool) -> Heard {
    if inherited || muted { Heard::Deny } else { Heard::Allow }
}
