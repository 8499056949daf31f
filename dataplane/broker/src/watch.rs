//! Who is spoken of when something is said about a connection, and whose packets somebody watches. Lives on the home shard.
//! Always true: a connection that nobody watches costs one branch per packet.

use mqtt::types::Version;

use crate::{
    Shard,
    conn::{Conn, Phase},
    event::Who,
    session::{Session, Sessions},
    surface::{ConnId, Output},
};

impl Conn {
    /// Its client, as far as that is known. `client`: what CONNECT has told.
    pub(crate) fn who<'a>(&self, client: &'a str) -> Who<'a> {
        Who { conn: self.id, client, username: None, peer: self.peer, listener: self.listener }
    }

    /// The same when it has, or had, this session.
    pub(crate) fn who_of<'a>(&self, session: &'a Session) -> Who<'a> {
        let access = session.access.as_ref();
        Who { username: access.and_then(|access| access.principal.user.as_deref()), ..self.who(&session.client) }
    }

    /// Its client, as the table of sessions knows it; nobody before CONNECT.
    pub(crate) fn who_in<'a>(&self, sessions: &'a Sessions) -> Who<'a> {
        let Phase::Open(open) = &self.phase else { return self.who("") };
        sessions.get(open.session).map_or_else(|| self.who(""), |session| self.who_of(session))
    }
}

impl Shard {
    /// CONNECT of this client was read, or what came in its place: it is shown to whoever watches the client, once.
    pub(crate) fn watch_connect(
        &mut self,
        id: ConnId,
        (client, version): (&str, Version),
        packet: &[u8],
        out: &mut impl Output,
    ) {
        let Some(conn) = self.conns.get(id).filter(|conn| !conn.watched) else { return };
        conn.watched = out.watch(&conn.who(client), version);
        if conn.watched {
            out.packet(id, packet);
        }
    }

    /// Asks about every client again.
    pub(crate) fn watch_all(&mut self, out: &mut impl Output) {
        let Shard { conns, sessions, .. } = self;
        for conn in conns.iter_mut() {
            if let Phase::Open(open) = &conn.phase {
                let version = open.protocol.version;
                conn.watched = out.watch(&conn.who_in(sessions), version);
            }
        }
    }
}
