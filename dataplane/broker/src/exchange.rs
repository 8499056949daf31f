//! Enhanced authentication (MQTT 5.0, 4.12): a client proves who it is in several steps, when it connects or again later.
//! Lives on the home shard of the client id. The shell judges each step ([`Output::exchange`]); what it has to remember
//! until the next one lies here, with the connection, and goes with it. Always true: one step is judged at a time; while
//! a client connects, its CONNECT lies in the exchange, and nothing but AUTH or DISCONNECT is taken from it.

use alloc::{boxed::Box, vec::Vec};
use core::any::Any;

use mqtt::{
    codec::{self, Auth, Connect, PACKET_BYTES_MAX, Packet, UserProperties, encode},
    connection::Misbehaved,
    types::{Reason, Version},
};

use crate::{
    Shard,
    access::Principal,
    admission::Verdict,
    conn::{Phase, pause},
    counters::{Counter, PacketType},
    deliver::tell,
    lifecycle::close,
    sizes::write_within,
    surface::{ConnId, Output},
};

/// Steps of one exchange: more than any method that is known here needs.
const ROUNDS_MAX: u8 = 8;

/// What the shell remembers of an exchange from one step to the next. The brain never looks inside.
pub type Memory = Box<dyn Any + Send>;

/// One step of a client.
pub struct Round<'a> {
    /// Authentication Method.
    pub method: &'a str,
    /// Authentication Data; empty if there is none.
    pub data: &'a [u8],
    /// What [`Judged::More`] asked to remember; `None` in the first step.
    pub memory: Option<Memory>,
    /// Until when the answer is of use, monotonic microseconds.
    pub until_us: u64,
}

/// What a step was worth.
pub enum Judged {
    /// The client has to take another step.
    More {
        /// Authentication Data for the client.
        data: Vec<u8>,
        /// To be brought with the next step.
        memory: Memory,
    },
    /// It is known who it is.
    Proven {
        /// Who.
        principal: Principal,
        /// The last word, Authentication Data for the client.
        data: Vec<u8>,
    },
    /// It may not come in, or not stay.
    Refused {
        /// What the client is told.
        reason: Reason,
        /// What the operator reads.
        why: &'static str,
    },
}

/// An exchange that goes on.
pub(crate) struct Exchange {
    method: Box<str>,
    /// The CONNECT that waits for its end; empty when an open connection proves again who it is.
    connect: Vec<u8>,
    memory: Option<Memory>,
    /// A step is being judged.
    asked: bool,
    rounds: u8,
    /// The client's Maximum Packet Size.
    packet_bytes_max: u32,
    /// When it has to be over, monotonic microseconds.
    pub(crate) until_us: u64,
    /// Authentication Data of the CONNACK that ends it.
    pub(crate) proof: Option<Vec<u8>>,
}

impl Exchange {
    fn new(method: &str, packet_bytes_max: u32, until_us: u64) -> Box<Exchange> {
        let (connect, memory, proof) = (Vec::new(), None, None);
        let method = method.into();
        Box::new(Exchange { method, connect, memory, asked: false, rounds: 0, packet_bytes_max, until_us, proof })
    }

    /// Takes CONNECT over.
    pub(crate) fn keep_connect(&mut self, bytes: &[u8]) {
        self.connect = bytes.into();
    }
}

impl Shard {
    /// CONNECT names a method that is known: its data is the first step.
    pub(crate) fn begin_exchange(&mut self, id: ConnId, connect: &Connect<'_>, method: &str, out: &mut impl Output) {
        let Some(conn) = self.conns.get(id) else { return };
        let packet_bytes_max = connect.properties.maximum_packet_bytes.unwrap_or(u32::MAX);
        let exchange = Exchange::new(method, packet_bytes_max, conn.timer_us);
        conn.exchange = Some(exchange);
        if !self.judge(id, connect.properties.authentication_data.unwrap_or_default(), out) {
            let why = "too many clients wait for authentication (admission.queue_max)";
            return self.refuse_connect(id, connect, Reason::QuotaExceeded, why, out);
        }
        self.counters.one(Counter::authentication_asked);
        self.pause(id, pause::ADMISSION, out);
    }

    /// Gives a step to the shell. False: too many wait.
    fn judge(&mut self, id: ConnId, data: &[u8], out: &mut impl Output) -> bool {
        let Some(exchange) = self.conns.get(id).and_then(|conn| conn.exchange.as_mut()) else { return false };
        exchange.asked = true;
        let memory = exchange.memory.take();
        let taken = out.exchange(id, Round { method: &exchange.method, data, memory, until_us: exchange.until_us });
        if !taken {
            self.counters.one(Counter::authentication_overloaded);
        }
        taken
    }

    /// Input of a client whose CONNECT waits for the end of an exchange. Returns the bytes that were consumed.
    //= MQTT-3.1.2-30
    // Whatever else it sends before CONNACK breaks the protocol.
    pub(crate) fn consume_auth(&mut self, id: ConnId, bytes: &[u8], out: &mut impl Output) -> usize {
        let raw = match codec::split(bytes, self.settings.mqtt.connect_bytes_max as usize) {
            Ok(Some(raw)) => raw,
            Ok(None) => return 0,
            Err(malformed) => {
                self.counters.one(Counter::packets_malformed);
                self.exchange_failed(id, malformed.reason(), "malformed bytes before CONNACK", out);
                return bytes.len();
            }
        };
        let total = raw.total;
        self.counters.packet_received(raw.first);
        if self.conns.get(id).is_some_and(|conn| conn.watched) {
            out.packet(id, &bytes[..total]);
        }
        match codec::decode(Version::V5, raw) {
            Ok(Packet::Auth(auth)) => {
                let agreed = self.conns.get(id).and_then(|conn| conn.exchange.as_ref()).map(|e| &*e.method);
                //= MQTT-4.12.0-3
                //= MQTT-4.12.0-5
                if auth.reason != Reason::ContinueAuthentication || auth.method != agreed {
                    let why = "an AUTH that does not go on with what CONNECT began";
                    self.exchange_failed(id, Reason::ProtocolError, why, out);
                    return bytes.len();
                }
                self.pause(id, pause::ADMISSION, out);
                if !self.judge(id, auth.data.unwrap_or_default(), out) {
                    let why = "too many clients wait for authentication (admission.queue_max)";
                    self.exchange_failed(id, Reason::QuotaExceeded, why, out);
                }
                return total;
            }
            Ok(Packet::Disconnect(_)) => {
                if let Some(conn) = self.conns.get(id) {
                    close(conn, out);
                }
            }
            Ok(_) => self.exchange_failed(id, Reason::ProtocolError, "another packet than AUTH before CONNACK", out),
            Err(malformed) => {
                self.counters.one(Counter::packets_malformed);
                self.exchange_failed(id, malformed.reason(), "malformed bytes before CONNACK", out);
            }
        }
        bytes.len()
    }

    /// AUTH of an open connection, with the method of its CONNECT: it begins to prove again who it is, or goes on.
    pub(crate) fn packet_auth(&mut self, id: ConnId, auth: &Auth<'_>, out: &mut impl Output) -> Result<(), Misbehaved> {
        let until_us = self.now.mono_us + u64::from(self.settings.mqtt.connect_timeout_ms) * 1000;
        let Some(conn) = self.conns.get(id) else { return Ok(()) };
        let (Phase::Open(open), Some(method)) = (&conn.phase, auth.method) else { return Ok(()) };
        let in_turn = match (&conn.exchange, auth.reason) {
            //= MQTT-4.12.1-1
            (None, Reason::ReAuthenticate) => true,
            //= MQTT-4.12.0-3
            (Some(exchange), Reason::ContinueAuthentication) => !exchange.asked,
            _ => false,
        };
        if !in_turn {
            return Err(Misbehaved { reason: Reason::ProtocolError, why: "an AUTH out of turn" });
        }
        if conn.exchange.is_none() {
            conn.exchange = Some(Exchange::new(method, open.protocol.packet_bytes_max, until_us));
            let earlier = until_us < conn.timer_us;
            self.counters.one(Counter::authentication_asked);
            // What was armed is looked at again when this fires.
            if earlier {
                self.arm_conn(id, until_us);
            }
        }
        if !self.judge(id, auth.data.unwrap_or_default(), out) {
            let why = "too many clients wait for authentication (admission.queue_max)";
            return Err(Misbehaved { reason: Reason::QuotaExceeded, why });
        }
        Ok(())
    }

    /// What a step was worth, by the policy with this number.
    pub(crate) fn exchanged(&mut self, id: ConnId, policy: u64, judged: Judged, out: &mut impl Output) {
        let conn = self.conns.get(id).filter(|conn| !matches!(conn.phase, Phase::Closing));
        let Some((exchange, opening)) =
            conn.and_then(|conn| Some((conn.exchange.as_mut()?, matches!(conn.phase, Phase::Opening))))
        else {
            return self.counters.one(Counter::authentication_late);
        };
        exchange.asked = false;
        match judged {
            Judged::More { data, memory } => {
                exchange.rounds += 1;
                exchange.memory = Some(memory);
                if exchange.rounds > ROUNDS_MAX {
                    return self.exchange_failed(id, Reason::NotAuthorized, "an exchange without end", out);
                }
                //= MQTT-4.12.0-2
                if !self.write_auth(id, Reason::ContinueAuthentication, &data, out) {
                    let why = "its maximum packet size is below that of AUTH";
                    return self.exchange_failed(id, Reason::ImplementationSpecific, why, out);
                }
                if opening {
                    self.unpause_admission(id, out);
                    self.consume_unread(id, out);
                }
            }
            Judged::Proven { principal, data } if opening => {
                exchange.proof = Some(data);
                match self.somebody_else(id, policy, &principal) {
                    Some(why) => self.exchange_failed(id, Reason::NotAuthorized, why, out),
                    None => self.conclude(id, Some(Ok(principal)), out),
                }
            }
            Judged::Proven { principal, data } => self.proven_again(id, policy, principal, &data, out),
            Judged::Refused { reason, why } => self.exchange_failed(id, reason, why, out),
        }
    }

    /// AUTH in as many bytes as the client takes. Words and user properties, which could make it larger, are never in it.
    //= MQTT-3.15.2-2
    //= MQTT-3.15.2-3
    fn write_auth(&mut self, id: ConnId, reason: Reason, data: &[u8], out: &mut impl Output) -> bool {
        let Some(conn) = self.conns.get(id) else { return true };
        let Some(exchange) = &conn.exchange else { return true };
        let data = (!data.is_empty()).then_some(data);
        //= MQTT-4.12.0-5
        let method = Some(&*exchange.method);
        let auth = Auth { reason, method, data, reason_string: None, user: UserProperties::default() };
        let fits = write_within(&mut conn.out, exchange.packet_bytes_max, |bytes| encode::auth(bytes, &auth));
        tell(conn, out);
        if fits {
            self.counters.packet_sent(PacketType::Auth);
        }
        fits
    }

    /// Is what was proven not what CONNECT, its certificate or the files say by now?
    fn somebody_else(&mut self, id: ConnId, policy: u64, principal: &Principal) -> Option<&'static str> {
        let listener = self.conns.get(id).map(|conn| conn.listener);
        if policy < self.policy.number && !self.policy.still_knows(principal, listener) {
            return Some("its user was removed or has another password");
        }
        let certificate = self.certificate_user(id);
        let user = principal.user.as_deref();
        if certificate.is_some() && certificate.as_deref() != user {
            return Some("its certificate is that of somebody else");
        }
        let told = self.waiting_connect(id, |connect| connect.username.is_none_or(|told| Some(told) == user));
        (told == Some(false)).then_some("the user name in CONNECT is that of somebody else")
    }

    /// The end of an exchange that began with CONNECT: CONNECT is read again, now with a verdict, or with what is known
    /// beyond it.
    pub(crate) fn conclude(&mut self, id: ConnId, verdict: Option<Verdict>, out: &mut impl Output) {
        let Some(exchange) = self.conns.get(id).and_then(|conn| conn.exchange.as_mut()) else { return };
        let connect = core::mem::take(&mut exchange.connect);
        self.unpause_admission(id, out);
        self.verdict = verdict.map(|verdict| (id, verdict));
        if let Some(decoded) = decoded(&connect) {
            self.packet_connect(id, &decoded, (&connect, connect.len()), out);
        }
        self.verdict = None;
        if let Some(exchange) = self.conns.get(id).and_then(|conn| conn.exchange.as_mut()) {
            // It waits for something else.
            exchange.connect = connect;
        }
        self.consume_unread(id, out);
    }

    /// An open connection has proven again who it is.
    fn proven_again(&mut self, id: ConnId, policy: u64, principal: Principal, data: &[u8], out: &mut impl Output) {
        let mut why = self.somebody_else(id, policy, &principal);
        let Some(open) = self.conns.open(id) else { return };
        let session = open.session;
        let Some(state) = self.sessions.get(session) else { return };
        let before = state.access.as_ref().and_then(|access| access.principal.user.as_deref());
        if before != principal.user.as_deref() {
            // Its session, its will and its queue are those of somebody else.
            why = Some("it proved to be somebody else than before");
        }
        if let Some(why) = why {
            return self.exchange_failed(id, Reason::NotAuthorized, why, out);
        }
        let (client, expires_us) = (state.client.clone(), self.mono_of_ms(principal.expires_ms));
        let Some(peer) = self.conns.get(id).map(|conn| conn.peer.ip()) else { return };
        let access = self.access_of(principal, &client, peer);
        if let Some(state) = self.sessions.get_mut(session) {
            state.access = access;
        }
        self.apply_rights(session, out);
        if !self.write_auth(id, Reason::Success, data, out) {
            let why = "its maximum packet size is below that of AUTH";
            return self.exchange_failed(id, Reason::ImplementationSpecific, why, out);
        }
        self.counters.one(Counter::authentication_allowed);
        self.counters.one(Counter::authentication_repeated);
        if let Some(conn) = self.conns.get(id) {
            conn.exchange = None;
        }
        if let Some(open) = self.conns.open(id) {
            open.expires_us = expires_us;
        }
    }

    /// An exchange ends without a proof: CONNACK for who connects, DISCONNECT for who is connected, and the end.
    //= MQTT-4.12.0-4
    //= MQTT-4.12.1-2
    fn exchange_failed(&mut self, id: ConnId, reason: Reason, why: &'static str, out: &mut impl Output) {
        self.counters.one(Counter::authentication_denied);
        let Some(conn) = self.conns.get(id) else { return };
        let Some(mut exchange) = conn.exchange.take() else { return };
        if matches!(conn.phase, Phase::Open(_)) {
            return self.misbehaved(id, Misbehaved { reason, why }, out);
        }
        let connect = core::mem::take(&mut exchange.connect);
        match decoded(&connect) {
            Some(connect) => self.refuse_connect(id, &connect, reason, why, out),
            None => close(conn, out),
        }
    }

    /// The time of an exchange is over.
    pub(crate) fn exchange_overdue(&mut self, id: ConnId, out: &mut impl Output) {
        self.counters.one(Counter::authentication_timed_out);
        self.exchange_failed(id, Reason::NotAuthorized, "who it is was not known in time", out);
    }

    fn waiting_connect<T>(&mut self, id: ConnId, ask: impl FnOnce(&Connect<'_>) -> T) -> Option<T> {
        let exchange = self.conns.get(id)?.exchange.as_ref()?;
        decoded(&exchange.connect).map(|connect| ask(&connect))
    }
}

/// The CONNECT that an exchange keeps; it was decoded before.
fn decoded(bytes: &[u8]) -> Option<Connect<'_>> {
    let raw = codec::split(bytes, PACKET_BYTES_MAX).ok()??;
    match codec::decode(Version::V5, raw) {
        Ok(Packet::Connect(connect)) => Some(connect),
        _ => None,
    }
}
