//! One server-side connection's protocol state: what CONNECT agreed on, and which packets are legal now.
//! Owned by the broker on the home shard, dropped with the transport. It holds no socket and no clock.

use alloc::{boxed::Box, string::String, vec::Vec};

use hashbrown::HashMap;

use crate::{
    codec::{Connect, PACKET_BYTES_MAX, Packet},
    types::{Reason, Version},
};

/// What the server grants; from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    /// Our Receive Maximum.
    pub receive_max: u16,
    /// Topic aliases that we accept.
    pub topic_alias_max: u16,
    /// Topic aliases that we use at most towards the client.
    pub topic_alias_out_max: u16,
    /// In-flight messages towards the client at most.
    pub inflight_max: u16,
    /// Session expiry at most, in seconds.
    pub session_expiry_max_s: u32,
    /// Session expiry of 3.x clients without clean session, in seconds.
    pub session_expiry_s: u32,
    /// Keep alive that replaces the client's; 0: none.
    pub server_keep_alive_s: u16,
    /// Longest keep alive; 0: any, and none.
    pub keep_alive_max_s: u16,
    /// Percent of the keep alive after which a silent client is closed (150 in the specification).
    pub keep_alive_pct: u32,
}

/// The agreed state of a connection.
#[derive(Debug)]
pub struct Connection {
    /// Protocol version of this connection.
    pub version: Version,
    /// Silence in milliseconds after which it is closed; 0: never.
    pub keep_alive_ms: u64,
    /// The keep alive in seconds that replaces the one which the client asked for.
    pub server_keep_alive_s: Option<u16>,
    /// Unfinished QoS 1 and 2 messages that we may have towards the client.
    pub send_max: u16,
    /// Largest packet that the client takes.
    pub packet_bytes_max: u32,
    /// Seconds that the session outlives the connection; `u32::MAX`: for ever.
    pub session_expiry_s: u32,
    /// The client wants reason strings and user properties on every packet.
    pub problem_information: bool,
    /// How the client proves who it is, if in more than one step (4.12).
    pub method: Option<Box<str>>,
    receive_max: u16,
    alias_in: AliasesIn,
    alias_out: Option<Box<AliasesOut>>,
}

/// The other side broke the protocol: close with this reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Misbehaved {
    /// Reason code of the DISCONNECT.
    pub reason: Reason,
    /// One phrase for the log.
    pub why: &'static str,
}

#[derive(Debug)]
struct AliasesIn {
    max: u16,
    topics: Vec<Box<str>>,
}

#[derive(Debug)]
struct AliasesOut {
    max: u16,
    by_topic: HashMap<Box<str>, u16, ahash::RandomState>,
}

/// How to name a topic towards the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AliasOut {
    /// In full, without an alias.
    Plain,
    /// In full, and the client shall remember it under this alias.
    Define(u16),
    /// By the alias alone.
    Use(u16),
}

impl Connection {
    /// What a valid CONNECT and our limits agree on.
    pub fn open(connect: &Connect<'_>, grant: &Grant) -> Connection {
        let v5 = connect.version == Version::V5;
        let properties = &connect.properties;
        let asked_s = match (v5, connect.clean_start) {
            (true, _) => properties.session_expiry_s.unwrap_or(0),
            // 3.1.1 section 3.1.2.4: a clean session ends with the connection, another one is kept.
            (false, true) => 0,
            (false, false) => grant.session_expiry_s,
        };
        //= MQTT-3.2.2-22
        // Only 5.0 has a CONNACK that could tell the client.
        let longest_s = grant.keep_alive_max_s;
        let server_keep_alive_s = match grant.server_keep_alive_s {
            _ if !v5 => None,
            0 if longest_s != 0 && !(1..=longest_s).contains(&connect.keep_alive_s) => Some(longest_s),
            0 => None,
            server => Some(server),
        };
        let keep_alive_s = server_keep_alive_s.unwrap_or(connect.keep_alive_s);
        let alias_out_max = properties.topic_alias_maximum.unwrap_or(0).min(grant.topic_alias_out_max);
        Connection {
            version: connect.version,
            //= MQTT-3.1.2-22
            keep_alive_ms: u64::from(keep_alive_s) * 10 * u64::from(grant.keep_alive_pct),
            server_keep_alive_s,
            //= MQTT-4.9.0-1
            send_max: properties.receive_maximum.unwrap_or(u16::MAX).min(grant.inflight_max),
            packet_bytes_max: properties.maximum_packet_bytes.unwrap_or(PACKET_BYTES_MAX as u32),
            session_expiry_s: asked_s.min(grant.session_expiry_max_s),
            problem_information: properties.request_problem_information,
            method: properties.authentication_method.map(Box::from),
            receive_max: grant.receive_max,
            //= MQTT-3.3.2-7
            alias_in: AliasesIn { max: grant.topic_alias_max, topics: Vec::new() },
            //= MQTT-3.1.2-27
            //= MQTT-3.3.2-7
            alias_out: (v5 && alias_out_max > 0).then(|| {
                Box::new(AliasesOut {
                    max: alias_out_max,
                    by_topic: HashMap::with_hasher(ahash::RandomState::with_seeds(1, 2, 3, 4)),
                })
            }),
        }
    }

    /// Is this packet legal on an open connection? Only what needs no session to know.
    #[inline]
    pub fn check(&self, packet: &Packet<'_>) -> Result<(), Misbehaved> {
        let why = match packet {
            Packet::Publish(_) | Packet::Puback(_) => return Ok(()),
            //= MQTT-3.1.0-2
            Packet::Connect(_) => "a second CONNECT",
            Packet::Connack(_) => "CONNACK from a client",
            Packet::Suback(_) => "SUBACK from a client",
            Packet::Unsuback(_) => "UNSUBACK from a client",
            Packet::Pingresp => "PINGRESP from a client",
            Packet::Auth(auth) => match (&self.method, auth.method) {
                //= MQTT-4.12.0-7
                // Without an authentication method in CONNECT, AUTH is an error.
                (None, _) => "AUTH, but CONNECT named no authentication method",
                //= MQTT-4.12.1-1
                (Some(agreed), method) if method != Some(agreed) => "AUTH with another method than that of CONNECT",
                (Some(_), _) => return Ok(()),
            },
            _ => return Ok(()),
        };
        Err(Misbehaved { reason: Reason::ProtocolError, why })
    }

    /// One more QoS 1 or 2 PUBLISH while `unacknowledged` others wait for our answer.
    #[inline]
    pub fn check_quota(&self, unacknowledged: usize) -> Result<(), Misbehaved> {
        if self.version == Version::V5 && unacknowledged >= usize::from(self.receive_max) {
            //= MQTT-3.3.4-7
            return Err(Misbehaved {
                reason: Reason::ReceiveMaximumExceeded,
                why: "more unacknowledged publishes than our Receive Maximum",
            });
        }
        Ok(())
    }

    /// Our Receive Maximum as granted: 3.x clients know none, so reading stops there.
    pub fn receive_max(&self) -> usize {
        usize::from(self.receive_max)
    }

    /// Remembers or looks up the alias of a received PUBLISH. `topic` is empty when only the alias came;
    /// the resolved topic is written to `resolved` (empty when there is no alias: use `topic`).
    pub fn resolve_alias(&mut self, topic: &str, alias: u16, resolved: &mut String) -> Result<(), Misbehaved> {
        let invalid = |why| Misbehaved { reason: Reason::TopicAliasInvalid, why };
        resolved.clear();
        //= MQTT-3.3.2-8
        if alias == 0 || alias > self.alias_in.max {
            //= MQTT-3.3.2-9
            //= MQTT-3.2.2-17
            //= MQTT-3.2.2-18
            return Err(invalid("topic alias 0 or above the maximum"));
        }
        let at = usize::from(alias) - 1;
        let topics = &mut self.alias_in.topics;
        if topic.is_empty() {
            let known = topics.get(at).filter(|topic| !topic.is_empty());
            resolved.push_str(
                known
                    .ok_or(Misbehaved { reason: Reason::ProtocolError, why: "a topic alias that was never defined" })?,
            );
            return Ok(());
        }
        if topics.len() <= at {
            topics.resize_with(at + 1, Default::default);
        }
        //= MQTT-3.3.2-12
        topics[at] = topic.into();
        resolved.push_str(topic);
        Ok(())
    }

    /// How the next PUBLISH towards the client names `topic`. Only the first topics get an alias: the
    /// table is bounded by what the client allows and by our limit, and nothing is ever evicted.
    pub fn alias_for(&mut self, topic: &str) -> AliasOut {
        let Some(aliases) = &mut self.alias_out else { return AliasOut::Plain };
        if let Some(alias) = aliases.by_topic.get(topic) {
            return AliasOut::Use(*alias);
        }
        //= MQTT-3.1.2-26
        //= MQTT-3.3.2-11
        if aliases.by_topic.len() >= usize::from(aliases.max) {
            return AliasOut::Plain;
        }
        let alias = aliases.by_topic.len() as u16 + 1;
        aliases.by_topic.insert(topic.into(), alias);
        AliasOut::Define(alias)
    }

    /// True when PUBLISH packets to this client are all of the plain shape: no alias is in play.
    #[inline]
    pub fn plain(&self) -> bool {
        self.alias_out.is_none()
    }

    /// The session expiry that DISCONNECT may set (3.14.2.2.2): not from zero.
    pub fn change_expiry(&mut self, asked_s: u32, grant: &Grant) -> Result<(), Misbehaved> {
        if self.session_expiry_s == 0 && asked_s != 0 {
            return Err(Misbehaved {
                reason: Reason::ProtocolError,
                why: "session expiry raised from zero at DISCONNECT",
            });
        }
        self.session_expiry_s = asked_s.min(grant.session_expiry_max_s);
        Ok(())
    }
}
