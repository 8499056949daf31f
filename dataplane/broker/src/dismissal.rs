//! Who may not come in, or not stay, whatever else they may do: their listener was closed, or they are banned. Lives on the
//! shard of the connection. Always true: this is looked at before anybody is asked who a client is, and connections that are
//! there are looked at again, a slice per turn, when something of it has changed.

use alloc::sync::Arc;

use mqtt::{codec::Connect, connection::Misbehaved, types::Reason};

use crate::{
    Shard,
    bans::Bans,
    conn::Phase,
    counters::Counter,
    surface::{ConnId, Output, Terms},
};

/// Connections that are looked at in one turn.
const CONNECTIONS_PER_TURN: u32 = 512;
/// What the operator reads.
pub(crate) const BANNED: &str = "it is banned";
const CLOSED: &str = "its listener was closed";

impl Shard {
    /// Listeners have come, changed or gone: for whoever comes at once, for connections a slice per turn.
    pub(crate) fn take_listeners(&mut self, terms: &Arc<[Terms]>) {
        self.settings.listeners = terms.clone();
        self.inspection = Some(0);
    }

    /// Others may not connect any more, or may again.
    pub(crate) fn take_bans(&mut self, bans: &Arc<Bans>) {
        self.bans = bans.clone();
        self.flapping.leave_to(bans);
        self.inspection = Some(0);
    }

    /// Why a client may not come in, if it may not.
    pub(crate) fn turned_away(&mut self, id: ConnId, connect: &Connect<'_>) -> Option<(Reason, &'static str)> {
        let conn = self.conns.get(id)?;
        let (listener, peer) = (conn.listener, conn.peer.ip());
        if self.is_closed(listener) {
            self.counters.one(Counter::listener_closed);
            return Some((Reason::ServerUnavailable, CLOSED));
        }
        let now_ms = self.now.wall_ms;
        let mut banned = self.flapping.bans_client(connect.client_id, now_ms);
        if !self.bans.is_empty() {
            let certified = self.certificate_user(id);
            banned |= self.bans.client(connect.client_id, now_ms) || self.bans.peer(peer, now_ms);
            banned |= self.bans_user(certified.as_deref().or(connect.username));
        }
        banned.then(|| {
            self.counters.one(Counter::banned_refused);
            (Reason::Banned, BANNED)
        })
    }

    /// Is this user banned?
    pub(crate) fn bans_user(&self, user: Option<&str>) -> bool {
        !self.bans.is_empty() && user.is_some_and(|user| self.bans.user(user, self.now.wall_ms))
    }

    /// Looks at the next slice of connections. True: more are left.
    pub(crate) fn inspect(&mut self, out: &mut impl Output) -> bool {
        while let Some(client) = self.flapping.fresh.pop() {
            // The winner of a fight for one client id goes, too.
            let session = self.sessions.find(&client).and_then(|id| self.sessions.get(id));
            let conn = session.filter(|session| session.online()).map(|session| session.conn);
            if let Some(id) = conn.and_then(|index| self.conns.at(index)).map(|conn| conn.id) {
                self.dismiss_for(id, Counter::banned_disconnected, BANNED, out);
            }
        }
        let Some(from) = self.inspection else { return false };
        let places = self.conns.places();
        let until = from.saturating_add(CONNECTIONS_PER_TURN).min(places);
        for index in from..until {
            if let Some((id, counter, why)) = self.has_to_go(index) {
                self.dismiss_for(id, counter, why, out);
            }
        }
        self.inspection = (until < places).then_some(until);
        self.inspection.is_some()
    }

    fn has_to_go(&mut self, index: u32) -> Option<(ConnId, Counter, &'static str)> {
        let conn = self.conns.at(index)?;
        let (id, listener, peer) = (conn.id, conn.listener, conn.peer.ip());
        let session = match &conn.phase {
            Phase::Open(open) => Some(open.session),
            Phase::Opening => None,
            Phase::Outlet(_) | Phase::Requester(_) | Phase::Closing => return None,
        };
        if self.is_closed(listener) {
            return Some((id, Counter::listener_closed, CLOSED));
        }
        // Who has not said CONNECT is looked at when that comes.
        let session = self.sessions.get(session?)?;
        let now_ms = self.now.wall_ms;
        let user = session.access.as_ref().and_then(|access| access.principal.user.as_deref());
        let banned = self.bans.client(&session.client, now_ms)
            || self.flapping.bans_client(&session.client, now_ms)
            || self.bans.peer(peer, now_ms)
            || self.bans_user(user);
        banned.then_some((id, Counter::banned_disconnected, BANNED))
    }

    fn is_closed(&self, listener: u16) -> bool {
        self.settings.listeners.get(usize::from(listener)).is_some_and(|terms| terms.closed)
    }

    /// DISCONNECT knows no 0x8A, that is a word of CONNACK.
    fn dismiss_for(&mut self, id: ConnId, counter: Counter, why: &'static str, out: &mut impl Output) {
        self.counters.one(counter);
        self.misbehaved(id, Misbehaved { reason: Reason::AdministrativeAction, why }, out);
    }
}
