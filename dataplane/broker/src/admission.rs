//! Who comes in: a CONNECT whose client has to be proven is parked until the shell brings a verdict. Lives on the home
//! shard of the client id. Always true: a parked connection has its whole CONNECT in `unread`, is not read, and is
//! forgotten with its connection; nothing is said about it before the verdict.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::net::{IpAddr, SocketAddr};

use ahash::RandomState;
use contract::config::CertificateUser;
use hashbrown::HashMap;
use mqtt::{
    codec::Connect,
    types::{Qos, Reason},
};

use crate::{
    Shard,
    access::{Principal, Rights, Rules, Subject},
    conn::{Phase, pause},
    counters::Counter,
    inquiry::{Answers, Remember},
    surface::{ConnId, Output},
};

/// Who is let in, and what they may do, as far as the operator has said it. Made on an ordinary thread, the same for all
/// shards, replaced as a whole.
#[derive(Debug)]
pub struct Policy {
    /// Counts the policies of a process from 1; 0 is the open door.
    pub number: u64,
    /// Somebody is asked who a client is.
    pub asks: bool,
    /// By listener: clients without a user name may come in although somebody could be asked.
    pub anonymous: Vec<bool>,
    /// What everybody may do; `None`: everything.
    pub rules: Option<Arc<Rules>>,
    /// A publish that is denied closes its connection.
    pub disconnects: bool,
    /// How much is remembered of what a server says.
    pub remember: Remember,
    /// What names the proof that each user would have to give now.
    pub credentials: HashMap<Box<str>, u64, RandomState>,
    /// Authentication methods (4.12) that somebody here knows.
    pub methods: Vec<&'static str>,
    /// The same as `credentials`, for proofs by these methods.
    pub method_credentials: HashMap<Box<str>, u64, RandomState>,
}

impl Default for Policy {
    fn default() -> Policy {
        let nobody = || HashMap::with_hasher(RandomState::with_seeds(0, 0, 0, 0));
        Policy {
            number: 0,
            asks: false,
            anonymous: Vec::new(),
            rules: None,
            disconnects: false,
            remember: Remember::default(),
            credentials: nobody(),
            methods: Vec::new(),
            method_credentials: nobody(),
        }
    }
}

impl Policy {
    /// May a client without a user name come in at this listener?
    pub(crate) fn lets_anonymous(&self, listener: u16) -> bool {
        !self.asks || self.anonymous.get(usize::from(listener)).is_some_and(|lets| *lets)
    }

    /// Would this principal be let in today? `listener`: where its connection came in, if it has one.
    pub(crate) fn still_knows(&self, principal: &Principal, listener: Option<u16>) -> bool {
        match &principal.user {
            _ if !self.asks => true,
            Some(user) if principal.credential != 0 => {
                let known = [&self.credentials, &self.method_credentials].map(|known| known.get(&**user));
                known.contains(&Some(&principal.credential))
            }
            None => listener.is_none_or(|listener| principal.proven || self.lets_anonymous(listener)),
            Some(_) => principal.proven,
        }
    }
}

/// Who is this? Asked about a parked connection.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Client id; an assigned one may differ from the one that the client gets in the end.
    pub client: &'a str,
    /// User name of CONNECT.
    pub username: Option<&'a str>,
    /// Password of CONNECT.
    pub password: Option<&'a [u8]>,
    /// Who connected.
    pub peer: SocketAddr,
    /// Number of the listener.
    pub listener: u16,
    /// Common name of the client's verified certificate.
    pub certificate: Option<&'a str>,
    /// Until when the answer is of use, monotonic microseconds.
    pub until_us: u64,
}

/// The answer: who it is, or why it may not come in.
pub type Verdict = Result<Principal, Reason>;

/// What a session remembers of whom it belongs to.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) principal: Principal,
    pub(crate) peer: IpAddr,
    /// `None`: everything is allowed.
    pub(crate) rights: Option<Rights>,
    /// What a server said about it.
    pub(crate) answers: Option<Box<Answers>>,
    /// Somebody else has subscribed: what a server allowed then does not count.
    pub(crate) inherited: bool,
}

impl Access {
    /// See [`Rights::may_publish`].
    pub(crate) fn may_publish(&self, topic: &str, qos: Qos, retain: bool) -> bool {
        self.rights.as_ref().is_none_or(|rights| rights.may_publish(topic, qos, retain))
    }

    pub(crate) fn may_receive(&self, topic: &str, qos: Qos) -> bool {
        self.rights.as_ref().is_none_or(|rights| rights.may_receive(topic, qos))
    }
}

impl Shard {
    /// Who a client is, if that is known; else its connection is parked, or refused.
    pub(crate) fn admit(
        &mut self,
        id: ConnId,
        connect: &Connect<'_>,
        client: &str,
        out: &mut impl Output,
    ) -> Option<Principal> {
        let held = self.conns.get(id).and_then(|conn| conn.hold.as_mut()).and_then(|hold| hold.principal.take());
        if let Some(principal) = held {
            let listener = self.conns.get(id).map(|conn| conn.listener);
            if self.policy.still_knows(&principal, listener) {
                return Some(principal);
            }
            self.counters.one(Counter::authentication_denied);
            let why = "its user was removed or has another password";
            self.refuse_connect(id, connect, Reason::NotAuthorized, why, out);
            return None;
        }
        let method = connect.properties.authentication_method;
        if method.is_none()
            && let Some(user) = self.certificate_user(id)
        {
            return Some(Principal { proven: true, ..Principal::unproven(Some(&user)) });
        }
        if method.is_none() && !self.policy.asks {
            return Some(Principal::unproven(connect.username));
        }
        if let Some((_, verdict)) = self.verdict.take_if(|(of, _)| *of == id) {
            return match verdict {
                Ok(principal) => {
                    self.counters.one(Counter::authentication_allowed);
                    Some(principal)
                }
                Err(reason) => {
                    self.counters.one(match reason {
                        Reason::QuotaExceeded => Counter::authentication_overloaded,
                        _ => Counter::authentication_denied,
                    });
                    self.refuse_connect(id, connect, reason, why(reason), out);
                    None
                }
            };
        }
        if let Some(method) = method {
            self.begin_exchange(id, connect, method, out);
            return None;
        }
        let until_us = self.conns.get(id)?.timer_us;
        let conn = self.conns.get(id)?;
        let ask = Ask {
            client,
            username: connect.username,
            password: connect.password,
            peer: conn.peer,
            listener: conn.listener,
            certificate: conn.certificate.as_ref().and_then(|certificate| certificate.common_name.as_deref()),
            until_us,
        };
        if ask.username.is_none() && ask.password.is_none() && ask.certificate.is_none() {
            if self.policy.lets_anonymous(ask.listener) {
                return Some(Principal::unproven(None));
            }
            self.counters.one(Counter::authentication_denied);
            self.refuse_connect(id, connect, Reason::NotAuthorized, "a client without a user name", out);
            return None;
        }
        if !out.authenticate(id, &ask) {
            self.counters.one(Counter::authentication_overloaded);
            let why = "too many clients wait for authentication (admission.queue_max)";
            self.refuse_connect(id, connect, Reason::QuotaExceeded, why, out);
            return None;
        }
        self.counters.one(Counter::authentication_asked);
        self.pause(id, pause::ADMISSION, out);
        None
    }

    /// Who the verified certificate of a client says it is, where its listener asks that.
    pub(crate) fn certificate_user(&mut self, id: ConnId) -> Option<Box<str>> {
        let conn = self.conns.get(id)?;
        let certificate = conn.certificate.as_ref()?;
        match self.settings.listeners.get(usize::from(conn.listener))?.certificate_user {
            CertificateUser::Disabled => None,
            // Without a name it is not known who that is: asked like everybody else.
            CertificateUser::CommonName => certificate.common_name.as_deref().map(Box::from),
            CertificateUser::Subject => Some(certificate.subject.as_str().into()),
        }
    }

    /// The verdict about a parked connection, by the policy with this number.
    pub(crate) fn authenticated(&mut self, id: ConnId, policy: u64, verdict: Verdict, out: &mut impl Output) {
        let parked =
            self.conns.get(id).is_some_and(|conn| conn.parked() && conn.exchange.is_none() && conn.hold.is_none());
        if !parked {
            return self.counters.one(Counter::authentication_late);
        }
        // What was true under an older policy is asked again.
        self.verdict = (policy == self.policy.number).then_some((id, verdict));
        self.unpark(id, out);
    }

    /// Reads a parked CONNECT again: now with a verdict, or to ask once more.
    pub(crate) fn unpark(&mut self, id: ConnId, out: &mut impl Output) {
        if self.conns.get(id).is_some_and(|conn| conn.exchange.is_some()) {
            return self.conclude(id, None, out);
        }
        self.unpause_admission(id, out);
        self.consume_unread(id, out);
        self.verdict = None;
    }

    pub(crate) fn unpause_admission(&mut self, id: ConnId, out: &mut impl Output) {
        if let Some(conn) = self.conns.get(id) {
            conn.paused &= !pause::ADMISSION;
            out.read(id, true);
        }
    }

    /// The time for CONNECT is over, and the verdict is not there.
    pub(crate) fn verdict_overdue(&mut self, id: ConnId, out: &mut impl Output) {
        if self.conns.get(id).is_some_and(|conn| conn.hold.is_some()) {
            return self.permission_overdue(id, out);
        }
        if self.conns.get(id).is_some_and(|conn| conn.exchange.is_some()) {
            return self.exchange_overdue(id, out);
        }
        self.counters.one(Counter::authentication_timed_out);
        self.verdict = Some((id, Err(Reason::ServerUnavailable)));
        self.unpark(id, out);
    }

    /// What a session has to remember of a principal; nothing of a stranger who may do everything.
    pub(crate) fn access_of(&mut self, principal: Principal, client: &str, peer: IpAddr) -> Option<Box<Access>> {
        let subject = Subject { client, user: principal.user.as_deref(), peer };
        let rights = match (&self.policy.rules, &principal.own) {
            _ if principal.superuser => None,
            (None, None) => None,
            (Some(rules), own) => Some(Rights::new(own.as_ref(), rules, &subject)),
            (None, Some(own)) => Some(Rights::new(None, own, &subject)),
        };
        self.restricted |= rights.is_some();
        let nobody = principal.user.is_none() && !principal.proven;
        (rights.is_some() || !nobody)
            .then(|| Box::new(Access { principal, peer, rights, answers: None, inherited: false }))
    }
}

/// What the operator reads.
fn why(reason: Reason) -> &'static str {
    match reason {
        Reason::BadUserNameOrPassword => "bad user name or password",
        Reason::NotAuthorized => "nobody knows this client",
        Reason::QuotaExceeded => "too many clients wait for a server (admission.hook_queue_max)",
        Reason::ServerUnavailable => "who it is was not known in time",
        _ => "refused by an authenticator",
    }
}

impl crate::conn::Conn {
    /// Waits for a verdict.
    pub(crate) fn parked(&self) -> bool {
        self.paused & pause::ADMISSION != 0 && matches!(self.phase, Phase::Opening)
    }
}
