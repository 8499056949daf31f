//! CONNECT on the shard where its client id is at home: refused, handed over, or a session with its connection, which may
//! take the place of another one. Where that ends is the matter of `lifecycle.rs`. Always true: a session has at most
//! one connection, and that connection names the session.

use alloc::{borrow::Cow, boxed::Box, format, string::String};

use contract::hash;
use mqtt::{
    codec::{
        Connect,
        encode::{self, DisconnectProps},
    },
    connection::{Connection, Grant},
    session::WillMessage,
    topic::Topic,
    types::{Reason, Version},
};

use crate::{
    Shard,
    access::Principal,
    admission::Access,
    conn::{Acks, Conn, Open, Phase, Wire},
    counters::{Counter, PacketType},
    deliver::tell,
    dismissal::BANNED,
    event::{Event, Who},
    groups::Act,
    lifecycle::close,
    mountpoint,
    plant::Plant,
    publish::{LINK_PREFIX, is_system},
    session::{Session, SessionId},
    sizes::refusal,
    surface::{ConnId, Output, Parked},
};

/// Client ids tried until one is at home on the accepting shard.
const ASSIGN_TRIES: u32 = 10_000;

impl Shard {
    /// A complete CONNECT on a connection that has none. `unread` begins with it, and it has `packet_bytes`.
    pub(crate) fn packet_connect(
        &mut self,
        id: ConnId,
        connect: &Connect<'_>,
        (unread, packet_bytes): (&[u8], usize),
        out: &mut impl Output,
    ) {
        let packet = &unread[..packet_bytes];
        let refused = self.connect_refused(connect).err().or_else(|| self.turned_away(id, connect));
        if let Some((reason, why)) = refused {
            self.watch_connect(id, (connect.client_id, connect.version), packet, out);
            return self.refuse_connect(id, connect, reason, why, out);
        }
        //= MQTT-3.1.3-6
        //= MQTT-3.1.3-7
        let assigned = connect.client_id.is_empty().then(|| self.assign_client_id());
        let client = assigned.as_deref().unwrap_or(connect.client_id);
        //= MQTT-3.1.3-2
        let home = hash::owner_shard(hash::partition_of_client(client), self.settings.shards);
        if home != self.settings.shard {
            let Some(conn) = self.conns.remove(id) else { return };
            let Conn { listener, peer, certificate, .. } = conn;
            let parked = Parked { listener, peer, certificate, unread: unread.into() };
            self.counters.one(Counter::connections_handed_over);
            return out.hand_over(id, home, parked);
        }
        self.watch_connect(id, (client, connect.version), packet, out);
        // Who has a session keeps it, and may come back.
        let full = self.sessions.len() >= self.settings.limits.sessions_max as usize;
        if full && self.sessions.find(client).is_none() {
            return self.refuse_connect(id, connect, Reason::QuotaExceeded, "limits.sessions_max is reached", out);
        }
        if self.scarce && self.sessions.find(client).is_none() {
            self.counters.one(Counter::memory_scarce_refused);
            let why = "memory is scarce (limits.memory_high_watermark)";
            return self.refuse_connect(id, connect, Reason::QuotaExceeded, why, out);
        }
        let Some(principal) = self.admit(id, connect, client, out) else { return };
        // Who was asked may know the client under another name than CONNECT told.
        if self.bans_user(principal.user.as_deref()) {
            self.counters.one(Counter::banned_refused);
            return self.refuse_connect(id, connect, Reason::Banned, BANNED, out);
        }
        self.open(id, connect, client, (assigned.as_deref(), principal), out);
    }

    fn connect_refused(&self, connect: &Connect<'_>) -> Result<(), (Reason, &'static str)> {
        let mqtt = &self.settings.mqtt;
        let v5 = connect.version == Version::V5;
        //= MQTT-3.1.3-5
        if connect.client_id.len() > usize::from(mqtt.client_id_bytes_max) {
            return Err((Reason::ClientIdNotValid, "the client id is longer than mqtt.max_clientid_len"));
        }
        let may_be_empty = v5 || connect.version == Version::V311 && connect.clean_start;
        if connect.client_id.is_empty() && !may_be_empty {
            //= MQTT-3.1.3-8
            return Err((Reason::ClientIdNotValid, "an empty client id without a clean session"));
        }
        if let Some(method) = connect.properties.authentication_method
            && !self.policy.methods.contains(&method)
        {
            //= MQTT-4.12.0-1
            return Err((Reason::BadAuthenticationMethod, "an authentication method that is not configured"));
        }
        // Only 5.0 has a CONNACK that could tell the client of another one.
        if !v5 && mqtt.keep_alive_max_s != 0 && !(1..=mqtt.keep_alive_max_s).contains(&connect.keep_alive_s) {
            return Err((Reason::ClientIdNotValid, "its keep alive is longer than mqtt.max_keepalive"));
        }
        if self.draining {
            return Err((Reason::ServerShuttingDown, "this node is stopping"));
        }
        let Some(will) = &connect.will else { return Ok(()) };
        let topic = Topic::parse(will.topic, usize::from(mqtt.topic_levels_max));
        if topic.is_err() {
            return Err((Reason::TopicNameInvalid, "an invalid will topic"));
        }
        if will.topic.starts_with(LINK_PREFIX) || is_system(will.topic) {
            return Err((Reason::NotAuthorized, "a will on a topic of the broker"));
        }
        if will.qos as u8 > mqtt.qos_max {
            //= MQTT-3.2.2-12
            return Err((Reason::QosNotSupported, "a will QoS above our maximum"));
        }
        if will.retain && !mqtt.retain_available {
            //= MQTT-3.2.2-13
            return Err((Reason::RetainNotSupported, "a retained will, but RETAIN is not available"));
        }
        Ok(())
    }

    pub(crate) fn refuse_connect(
        &mut self,
        id: ConnId,
        connect: &Connect<'_>,
        reason: Reason,
        why: &'static str,
        out: &mut impl Output,
    ) {
        self.counters.one(Counter::connect_refused);
        self.counters.packet_received((PacketType::Connect as u8) << 4);
        let Some(conn) = self.conns.get(id) else { return };
        let who = Who { username: connect.username, ..conn.who(connect.client_id) };
        out.event(Event::Refused { who, reason, why: Cow::Borrowed(why) });
        self.counters.packet_sent(PacketType::Connack);
        refusal(&mut conn.out, connect, reason, why);
        //= MQTT-3.1.4-2
        //= MQTT-3.1.4-6
        //= MQTT-3.2.2-7
        // What came behind CONNECT is never looked at.
        close(conn, out);
    }

    /// A client id that is at home here, so that its connection need not move.
    fn assign_client_id(&mut self) -> String {
        let mut client = String::new();
        for _ in 0..ASSIGN_TRIES {
            self.assigned += 1;
            let origin = self.origin;
            let salt = [u64::from(origin.node), u64::from(origin.incarnation), self.assigned];
            let mut bytes = [0u8; 26];
            salt.iter().enumerate().for_each(|(i, n)| bytes[i * 8..i * 8 + 8].copy_from_slice(&n.to_le_bytes()));
            bytes[24..].copy_from_slice(&self.settings.shard.0.to_le_bytes());
            client = format!("auto-{:016x}", hash::stable(&bytes));
            let partition = hash::partition_of_client(&client);
            let free = self.sessions.find(&client).is_none();
            if hash::owner_shard(partition, self.settings.shards) == self.settings.shard && free {
                break;
            }
        }
        client
    }

    /// CONNECT is accepted on the home shard.
    fn open(
        &mut self,
        id: ConnId,
        connect: &Connect<'_>,
        client: &str,
        (assigned, principal): (Option<&str>, Principal),
        out: &mut impl Output,
    ) {
        let grant = self.grant();
        let protocol = Connection::open(connect, &grant);
        let mountpoint = self.mountpoint(id);
        if !self.fits_mounted(connect, mountpoint.as_deref()) {
            return self.refuse_connect(id, connect, Reason::TopicNameInvalid, "an invalid will topic", out);
        }
        if let Some((reason, why)) = self.log_refuses_connect(connect, client, &protocol) {
            return self.refuse_connect(id, connect, reason, why, out);
        }
        let exchange = self.conns.get(id).and_then(|conn| conn.exchange.as_ref());
        let proof = exchange.and_then(|exchange| exchange.proof.clone());
        let proof = proof.as_deref();
        if self.settings.connack_too_large(connect, &protocol, assigned, proof) {
            let why = "its maximum packet size is below that of CONNACK";
            return self.refuse_connect(id, connect, Reason::ImplementationSpecific, why, out);
        }
        let Some(conn) = self.conns.get(id) else { return };
        let (peer, certificate) = (conn.peer, conn.certificate.as_ref());
        let name = certificate.and_then(|certificate| certificate.common_name.as_deref());
        let link = self.links.access(principal.user.as_deref(), client, name, peer.ip().is_loopback());
        let expires_us = self.mono_of_ms(principal.expires_ms);
        let access = self.access_of(principal, client, peer.ip());
        if let (Some(some), Some(will)) = (&access, &connect.will) {
            // Rules name topics as they are below the mountpoint, as mosquitto's do.
            let topic = mountpoint::will(mountpoint.as_deref().unwrap_or_default(), will.topic);
            match self.may_leave(id, client, some, (&topic, will.qos, will.retain), out) {
                Some(true) => {}
                Some(false) => {
                    self.counters.one(Counter::shed_will_denied);
                    let why = "a will that it may not publish";
                    return self.refuse_connect(id, connect, Reason::NotAuthorized, why, out);
                }
                None => return self.keep_admitted(id, access),
            }
        }
        //= MQTT-3.1.4-4
        let (session, present) = self.attach_session(connect, client, &protocol, out);
        self.take_session((id, session), (connect, client), (&protocol, mountpoint.as_deref()), access);
        let acks = Acks::default();
        let open = Open {
            session,
            protocol,
            acks,
            pace: None,
            mountpoint,
            link,
            routes: None,
            deferred: 0,
            expires_us,
            goodbye: false,
        };
        self.greet(id, (connect, client), open, (assigned, proof, present), out);
        if present {
            self.resume_session(session, out);
        }
    }

    /// The session is this connection's from now on.
    fn take_session(
        &mut self,
        (id, session): (ConnId, SessionId),
        (connect, client): (&Connect<'_>, &str),
        (protocol, mountpoint): (&Connection, Option<&str>),
        mut access: Option<Box<Access>>,
    ) {
        let grows = self.journal.grows();
        let Some(state) = self.sessions.get_mut(session) else { return };
        state.conn = id.index;
        state.ends_us = u64::MAX;
        if let (Some(access), Some(before)) = (&mut access, &state.access) {
            access.inherited = access.principal.user != before.principal.user;
        }
        state.access = access;
        state.state.expiry_s = protocol.session_expiry_s;
        //= MQTT-3.1.2-7
        state.state.will = connect.will.as_ref().map(|will| Box::new(WillMessage::from(will)));
        if let (Some(will), Some(mountpoint)) = (&mut state.state.will, mountpoint) {
            will.topic = mountpoint::will(mountpoint, &will.topic).into();
        }
        if let Some(will) = &mut state.state.will {
            will.delay_s = will.delay_s.min(self.settings.mqtt.will_delay_max_s);
        }
        let persistent = state.state.persistent() || state.state.will.is_some();
        if state.number == 0 && persistent && grows {
            state.number = self.journal.number_session();
        }
        if state.number != 0 {
            let (expiry_s, will) = (state.state.expiry_s, state.state.will.as_deref());
            self.journal.opened(state.number, client, expiry_s, will);
        }
    }

    /// CONNACK, and what holds from then on.
    fn greet(
        &mut self,
        id: ConnId,
        (connect, client): (&Connect<'_>, &str),
        open: Open,
        (assigned, proof, present): (Option<&str>, Option<&[u8]>, bool),
        out: &mut impl Output,
    ) {
        self.counters.one(Counter::client_connected);
        // Not where it is read: it may be read on two shards, and once more after a verdict.
        self.counters.packet_received((PacketType::Connect as u8) << 4);
        let mono_us = self.now.mono_us;
        let Some(conn) = self.conns.get(id) else { return };
        if self.journal.records() {
            // Also what an earlier connection of this client changed has to be kept before this one hears of it.
            let at = conn.out.len();
            self.journal.gate(conn, at, mono_us);
            conn.connack_until = self.journal.until();
        }
        let protocol = &open.protocol;
        //= MQTT-3.1.4-5
        //= MQTT-3.2.0-1
        //= MQTT-3.2.0-2
        let connack = self.settings.connack(connect, protocol, (assigned, proof), present);
        self.counters.packet_sent(PacketType::Connack);
        encode::connack(&mut conn.out, connect.version, &connack);
        conn.wire = Wire {
            v5: protocol.version == Version::V5,
            single: !protocol.plain() || open.mountpoint.is_some(),
            send_max: protocol.send_max,
            packet_bytes_max: protocol.packet_bytes_max,
        };
        let session = self.sessions.get(open.session);
        out.event(Event::Connected {
            who: session.map_or_else(|| conn.who(client), |session| conn.who_of(session)),
            version: connect.version.level(),
            clean_start: connect.clean_start,
            keep_alive_s: connect.keep_alive_s,
            expiry_s: protocol.session_expiry_s,
            resumed: present,
        });
        let keep_alive_us = protocol.keep_alive_ms * 1000;
        let silent_us = if keep_alive_us > 0 { mono_us + keep_alive_us } else { u64::MAX };
        let due_us = silent_us.min(open.expires_us);
        (conn.exchange, conn.hold) = (None, None);
        conn.phase = Phase::Open(Box::new(open));
        // The time for CONNECT is over; without a keep alive there may be no other deadline.
        conn.timer_us = u64::MAX;
        tell(conn, out);
        out.ready(id);
        if due_us != u64::MAX {
            self.arm_conn(id, due_us);
        }
    }

    /// A session that cannot be kept is not promised.
    fn log_refuses_connect(
        &self,
        connect: &Connect<'_>,
        client: &str,
        protocol: &Connection,
    ) -> Option<(Reason, &'static str)> {
        if self.journal.grows() {
            return None;
        }
        let session = self.sessions.find(client).and_then(|id| self.sessions.get(id));
        let kept = session.is_some_and(|s| s.number != 0);
        // One that ends with the connection that is taken over, or has just ended, is not resumed but begun anew.
        let now_us = self.now.mono_us;
        let goes_on = |s: &Session| if s.online() { s.state.expiry_s > 0 } else { s.ends_us > now_us };
        let resumes = !connect.clean_start && session.is_some_and(|s| s.number != 0 && goes_on(s));
        match (kept, protocol.session_expiry_s > 0) {
            (true, _) if !self.journal.writable() => {
                Some((Reason::ServerUnavailable, "the log cannot be written, so its session cannot change"))
            }
            // Clean Start ends the one that is kept, and asks for another.
            (_, true) if !resumes => Some((Reason::QuotaExceeded, "the log cannot take another persistent session")),
            _ => None,
        }
    }

    pub(crate) fn grant(&self) -> Grant {
        let mqtt = &self.settings.mqtt;
        Grant {
            receive_max: mqtt.receive_max,
            topic_alias_max: mqtt.topic_alias_max,
            topic_alias_out_max: mqtt.topic_alias_max,
            inflight_max: mqtt.inflight_max,
            session_expiry_max_s: mqtt.session_expiry_max_s,
            session_expiry_s: mqtt.session_expiry_s,
            server_keep_alive_s: mqtt.server_keep_alive_s,
            keep_alive_max_s: mqtt.keep_alive_max_s,
            keep_alive_pct: mqtt.keep_alive_multiplier_pct,
        }
    }

    /// The session of this client id, resumed or new, with any other connection of it closed.
    fn attach_session(
        &mut self,
        connect: &Connect<'_>,
        client: &str,
        protocol: &Connection,
        out: &mut impl Output,
    ) -> (SessionId, bool) {
        if let Some(session) = self.sessions.find(client) {
            // Its time may be over, and its timer late.
            self.session_timer(session, out);
        }
        if let Some(session) = self.sessions.find(client) {
            //= MQTT-3.1.4-3
            self.take_over(session, out);
            // Without persistence the session has just ended with its connection.
            if self.sessions.get(session).is_some() {
                if !connect.clean_start {
                    self.cancel_will(session);
                    self.counters.one(Counter::session_resumed);
                    //= MQTT-3.1.2-5
                    return (session, true);
                }
                //= MQTT-3.1.2-4
                self.counters.one(Counter::session_discarded);
                self.end_session(session, out);
            }
        }
        self.counters.one(Counter::session_created);
        //= MQTT-3.1.2-6
        (self.sessions.insert(client, protocol.session_expiry_s), false)
    }

    /// Closes the connection that a session has, because another one came.
    fn take_over(&mut self, session: SessionId, out: &mut impl Output) {
        let Some(index) = self.sessions.get(session).filter(|s| s.online()).map(|s| s.conn) else { return };
        let Some(conn) = self.conns.at(index) else { return };
        self.counters.one(Counter::session_taken_over);
        let id = conn.id;
        if conn.wire.v5 && conn.connack_until <= self.journal.durable() {
            let with = DisconnectProps::default();
            self.counters.packet_sent(PacketType::Disconnect);
            encode::disconnect(conn.farewell(), Version::V5, Reason::SessionTakenOver, &with);
        }
        self.leave(id, "taken over by another connection", out);
        if let Some(conn) = self.conns.get(id) {
            close(conn, out);
        }
    }

    /// Sends a resumed session what it is owed.
    fn resume_session(&mut self, id: SessionId, out: &mut impl Output) {
        #[cfg(feature = "plant")]
        if self.planted(Plant::LostPubrel)
            && let Some(session) = self.sessions.get_mut(id)
        {
            session.state.outgoing.forget_released();
        }
        if self.planted(Plant::QueueLostAtTakeover)
            && let Some(session) = self.sessions.get_mut(id)
        {
            session.state.undelivered().for_each(drop);
        }
        if let Some(session) = self.sessions.get_mut(id) {
            // All of it is owed, which is what the rights are held against; the releases go out below.
            let _ = session.state.outgoing.begin_again();
        }
        // Another principal may have come, or the rules have changed meanwhile.
        self.apply_rights(id, out);
        let (mut delivering, _) = self.delivering();
        delivering.resend(id.index, out);
        let shared = self.sessions.get(id).map(|s| s.shared.clone()).unwrap_or_default();
        for shared in shared.iter().filter(|shared| !shared.muted) {
            self.tell_group(Act::Online, id, shared, 0, out);
        }
    }
}
