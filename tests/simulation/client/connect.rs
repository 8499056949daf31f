//! CONNECT, CONNACK, and the ends of a connection, with what they say about the session and the will.

use mqtt::{
    codec::{
        Connack, Connect, ConnectProperties, Will,
        encode::{self, DisconnectProps},
    },
    types::{Qos, Reason, Version},
};

use super::{Awaits, Client, Conn};
use crate::{
    net::End,
    oracle::{publishes::Publish, wills::Ending},
    world::{Env, Event},
};

/// The broker's wheel fires a tick late at most, and a turn may be long.
const TIMER_SLACK_US: u64 = 1_000_000;
/// How soon a client that was turned away tries again.
const AGAIN_US: u64 = 100_000;

impl Client {
    /// Opens a connection. A living one is left half open: the broker hears of it by the take-over.
    pub fn connect(&mut self, env: &mut Env, clean: bool) {
        if env.up_us[self.cluster].is_none() {
            return;
        }
        // A CONNECT that was not answered may still be on its way, and would take this connection over.
        let racing = self.unanswered.is_some_and(|pipe| env.net.closed_us(pipe).is_none());
        if racing {
            if !std::mem::replace(&mut self.connecting, true) {
                env.queue.push(env.now_us + 5_000, Event::Connect(self.at, clean));
            }
            return;
        }
        let always = env.plan.always_clean && !self.quiet;
        let clean = clean || always || self.lease.must_be_clean || self.epoch.is_none() && env.rng.percent(30);
        // 3.x: the flag also says that the session ends with the connection.
        let expiry_s = match (self.profile.version, clean) {
            (Version::V5, _) => *env.rng.pick(self.profile.expiries),
            (_, true) => 0,
            (_, false) => env.plan.mqtt.session_expiry_s,
        };
        if self.conn.is_some() {
            let handshakes = self.out.iter().any(|out| env.oracle.publishes.qos(out.number) == 2);
            env.coverage.one("takeovers_in_qos2", u64::from(handshakes || !self.received.is_empty()));
            env.coverage.one("takeovers", 1);
            self.end(env, Ending::Abandoned);
        }
        self.serial += 1;
        let wire = (env.now_us, &mut env.queue, &mut env.rng);
        let pipe = env.net.connect(End::Client(self.at), self.cluster, (env.plan.network_us, env.plan.window), wire);
        self.lease.pipes.retain(|pipe| match env.net.noticed_us(*pipe) {
            Some(at_us) => {
                self.lease.closed_us = self.lease.closed_us.max(at_us);
                false
            }
            None => true,
        });
        self.lease.pipes.push(pipe);
        let will = self.draw_will(env);
        let allowed = match self.profile.version {
            Version::V5 => (*env.rng.pick(self.profile.receive_maxima), self.profile.packet_bytes),
            _ => (u16::MAX, 0),
        };
        let bytes = self.connect_bytes(env, (clean, expiry_s), will, allowed);
        env.oracle.wills.connecting(self.at, env.now_us, &env.net);
        let receive_max = match self.profile.version {
            Version::V5 => usize::from(env.plan.mqtt.receive_max),
            _ => usize::MAX,
        };
        let mut conn = Conn::new((pipe, self.serial), (clean, expiry_s), will, (allowed, receive_max), env.now_us);
        conn.kept = self.epoch.is_some() && !clean && self.lease.expiry_s.0 > 1_000;
        self.conn = Some(conn);
        self.ask(env, Awaits::Connack, 0, Vec::new());
        env.trace(|| {
            format!("{} connects ({pipe}), clean {clean}, expiry {expiry_s}, will {will:?}, {allowed:?}", self.id)
        });
        self.write(env, bytes);
        self.keep_alive(env, self.serial);
        if clean && !self.quiet && env.rng.percent(30) {
            // Nobody has to wait for CONNACK: what follows may have to move to the home shard as well.
            self.out.clear();
            self.received.clear();
            for _ in 0..env.rng.between(1, 6) {
                self.publish(env);
            }
        }
    }

    fn draw_will(&mut self, env: &mut Env) -> Option<u64> {
        if self.quiet || self.profile.watcher || !env.rng.percent(40) {
            return None;
        }
        self.order += 1;
        let publish = Publish {
            cluster: self.cluster,
            publisher: self.at,
            order: self.order,
            topic: format!("w/{}", self.at),
            qos: env.rng.below(3) as u8,
            retain: env.rng.percent(30),
            sent_us: env.now_us,
            will: true,
            ..Publish::default()
        };
        Some(env.oracle.publishes.add(publish))
    }

    fn connect_bytes(
        &mut self,
        env: &mut Env,
        (clean, expiry_s): (bool, u32),
        will: Option<u64>,
        allowed: (u16, u32),
    ) -> Vec<u8> {
        let v5 = self.profile.version == Version::V5;
        let delay_s = if v5 { *env.rng.pick(&[0, 0, 1, 2]) } else { 0 };
        let payload = will.map(|number| env.oracle.publishes.payload(number)).unwrap_or_default();
        let topic = format!("w/{}", self.at);
        let said = will.map(|number| Will {
            qos: Qos::from_bits(env.oracle.publishes.qos(number)).unwrap_or_default(),
            retain: env.oracle.publishes.at(number).retain,
            topic: &topic,
            payload: &payload,
            delay_s,
            properties: Default::default(),
        });
        if let Some(number) = will {
            env.oracle.wills.add(number, self.at, delay_s.min(expiry_s));
        }
        let mut properties = ConnectProperties::default();
        if v5 {
            properties.session_expiry_s = (expiry_s > 0).then_some(expiry_s);
            properties.receive_maximum = (allowed.0 < u16::MAX).then_some(allowed.0);
            properties.maximum_packet_bytes = (allowed.1 > 0).then_some(allowed.1);
            properties.topic_alias_maximum = (self.profile.alias_max > 0).then_some(self.profile.alias_max);
        }
        let connect = Connect {
            version: self.profile.version,
            clean_start: clean,
            keep_alive_s: self.profile.keep_alive_s,
            client_id: &self.id,
            username: None,
            password: None,
            will: said,
            properties,
            bridge: false,
        };
        let mut bytes = Vec::new();
        encode::connect(&mut bytes, &connect);
        bytes
    }

    /// CONNACK: what became of the session.
    pub(super) fn connack(&mut self, env: &mut Env, connack: &Connack<'_>) {
        self.answered(env, Awaits::Connack, 0);
        if connack.reason != Reason::Success && env.plan.trouble {
            env.trace(|| format!("{} is refused with {:?}", self.id, connack.reason));
            // It may have been accepted and refused only when its log failed: what became of the session is unknown.
            self.turned_away(env);
            return;
        }
        if connack.reason != Reason::Success {
            return env.fail(&format!("{}: CONNECT refused with {:?}", self.id, connack.reason));
        }
        let Some(conn) = &mut self.conn else { return };
        conn.open = true;
        let receive_max = usize::from(connack.properties.receive_maximum.unwrap_or(u16::MAX));
        if self.profile.version == Version::V5 && receive_max != conn.server_receive_max {
            return env.fail(&format!("{}: CONNACK says Receive Maximum {receive_max}", self.id));
        }
        conn.server_alias_max = connack.properties.topic_alias_maximum.unwrap_or(0);
        let (clean, sent_us, expiry_s, will) = (conn.clean, conn.sent_us, conn.expiry_s, conn.will);
        let present = connack.session_present;
        // MQTT 3.1 has no such flag: its client learns nothing, and starts anew where it could not know.
        let present = if self.profile.version == Version::V31 { conn.kept } else { present };
        conn.resumed = present;
        if self.profile.version != Version::V31 && self.conn.as_ref().is_some_and(|conn| !conn.forgotten) {
            self.check_present(env, present, clean, sent_us);
        }
        self.lease.expiry_s = (expiry_s, expiry_s);
        self.lease.must_be_clean = false;
        let forgotten = self.conn.as_ref().is_some_and(|conn| conn.forgotten);
        if forgotten {
            self.lease.expiry_s = (0, 0);
        }
        env.oracle.wills.connected(self.at, will, present, env.now_us, &env.net);
        if let Some(will) = will
            && expiry_s == 0
            && env.oracle.refused(self.cluster, sent_us, env.now_us)
        {
            env.oracle.wills.unkept(will);
        }
        if let Some(conn) = &self.conn
            && let (Some(will), Some(crashed_us)) = (will, conn.crashed_us)
        {
            // The answer outlived its node.
            env.oracle.wills.connection_crashed(will, conn.pipe, conn.leaving, crashed_us);
        }
        if present && let Some(epoch) = self.epoch {
            env.oracle.epochs[epoch].connected_us = env.now_us;
            return self.resume(env);
        }
        if let Some(epoch) = self.epoch.take() {
            env.oracle.end_epoch(epoch, env.now_us);
        }
        let epoch = env.oracle.begin_epoch(self.at, self.cluster);
        env.oracle.epochs[epoch].connected_us = env.now_us;
        self.epoch = Some(epoch);
        if forgotten {
            env.oracle.end_epoch(epoch, env.now_us);
        }
        let serial = self.serial;
        self.out.retain(|out| out.serial == serial);
        self.received.clear();
        self.filters.clear();
    }

    /// Is it possible that the broker has (or has not) kept the session?
    fn check_present(&mut self, env: &mut Env, present: bool, clean: bool, sent_us: u64) {
        let (least_s, most_s) = self.lease.expiry_s;
        let after = |s: u32| if s == u32::MAX { u64::MAX } else { self.lease.left_us + u64::from(s) * 1_000_000 };
        let alive = self.epoch.is_some() && !clean && least_s > 0 && env.now_us < after(least_s);
        // The last connection is the new one, which is not closed.
        let closed: Option<Vec<u64>> =
            self.lease.pipes.iter().rev().skip(1).map(|pipe| env.net.noticed_us(*pipe)).collect();
        let last_us = closed.map(|closed| closed.into_iter().fold(self.lease.closed_us, u64::max));
        let over = last_us.is_some_and(|at_us| {
            most_s != u32::MAX
                && sent_us > at_us.max(self.lease.left_us) + u64::from(most_s) * 1_000_000 + 2 * TIMER_SLACK_US
        });
        let dead = clean || self.epoch.is_none() || most_s == 0 || over;
        if present && dead {
            let why = format!("clean {clean}, epoch {:?}, expiry {most_s} s, over {over}", self.epoch);
            env.fail(&format!("{}: session present, but there can be none ({why})", self.id));
        }
        if !present && alive {
            env.fail(&format!("{}: the session was lost (expiry at least {least_s} s)", self.id));
        }
    }

    /// DISCONNECT; `with_will` keeps the will (MQTT 5), `expiry_s` changes the session's life (MQTT 5).
    pub fn disconnect(&mut self, env: &mut Env, with_will: bool, expiry_s: Option<u32>) {
        let v5 = self.profile.version == Version::V5;
        let reason = if v5 && with_will { Reason::DisconnectWithWill } else { Reason::Success };
        let mut bytes = Vec::new();
        let with = DisconnectProps { session_expiry_s: expiry_s, ..DisconnectProps::default() };
        encode::disconnect(&mut bytes, self.profile.version, reason, &with);
        env.trace(|| format!("{} disconnects, {reason:?}, expiry {expiry_s:?}", self.id));
        self.write(env, bytes);
        if let Some(expiry_s) = expiry_s {
            let (least, most) = self.lease.expiry_s;
            self.lease.expiry_s = (least.min(expiry_s), most.max(expiry_s));
        }
        let Some(conn) = &mut self.conn else { return };
        conn.leaving = true;
        self.lease.left_us = env.now_us;
        if env.rng.percent(50) {
            // Closes at once; the bytes before the end still arrive.
            let goodbye = if reason == Reason::Success { Ending::Goodbye } else { Ending::WithWill };
            let pipe = conn.pipe;
            self.end(env, goodbye);
            env.net.close(pipe, false, (env.now_us, &mut env.queue, &mut env.rng));
        } else if reason != Reason::Success {
            let closes = env.plan.trouble;
            env.oracle.wills.ended(self.at, conn.will, (Ending::WithWill, closes), conn.pipe, env.now_us);
        }
    }

    /// Ends the connection without DISCONNECT.
    pub fn cut(&mut self, env: &mut Env, reset: bool) {
        let Some(conn) = &self.conn else { return };
        let pipe = conn.pipe;
        env.trace(|| format!("{} cuts ({pipe}), reset {reset}", self.id));
        self.end(env, Ending::Cut);
        env.net.close(pipe, reset, (env.now_us, &mut env.queue, &mut env.rng));
    }

    /// The broker has ended the connection.
    pub fn closed(&mut self, env: &mut Env, pipe: usize) {
        let Some(conn) = self.conn.as_ref().filter(|conn| conn.pipe == pipe) else { return };
        let expected = conn.leaving || conn.crashed_us.is_some() || env.plan.trouble;
        let goodbye = conn.leaving && conn.crashed_us.is_none();
        if !expected {
            env.fail(&format!("{}: the broker closed the connection", self.id));
        }
        if goodbye || !env.plan.trouble {
            self.end(env, if goodbye { Ending::Goodbye } else { Ending::Cut });
        } else {
            self.turned_away(env);
        }
        env.net.abandon(pipe);
    }

    /// The broker refuses the connection, or ends it. Who wants to be connected tries again.
    fn turned_away(&mut self, env: &mut Env) {
        let clean = self.conn.as_ref().is_some_and(|conn| !conn.open && conn.clean);
        env.coverage.one("turned_away", 1);
        self.end(env, Ending::Cut);
        if self.comes_back && !std::mem::replace(&mut self.connecting, true) {
            let delay_us = env.rng.between(1, AGAIN_US);
            env.queue.push(env.now_us + delay_us, Event::Connect(self.at, clean));
        }
    }

    /// The client's side of every end.
    fn end(&mut self, env: &mut Env, ending: Ending) {
        let Some(conn) = self.conn.take() else { return };
        // A DISCONNECT that was sent before the cut may or may not have been read.
        let ending = match ending {
            Ending::Cut | Ending::Abandoned if conn.leaving => Ending::Unknown,
            other => other,
        };
        let left_us = env.net.left_us(conn.pipe).unwrap_or(env.now_us);
        env.oracle.wills.ended(self.at, conn.will, (ending, env.plan.trouble), conn.pipe, left_us);
        if !conn.leaving && (conn.open || conn.crashed_us.is_none()) {
            // Where the broker closed, its clock runs since then.
            self.lease.left_us = left_us;
        }
        if !conn.open {
            let (least, most) = self.lease.expiry_s;
            self.lease.expiry_s = (least.min(conn.expiry_s), most.max(conn.expiry_s));
            // Which session the next CONNECT would find cannot be told, unless an old one is surely there.
            self.unanswered = Some(conn.pipe);
            let sure = self.epoch.is_some() && !conn.clean && self.lease.expiry_s.0 > 1_000;
            self.lease.must_be_clean |= !sure;
        }
        if ending == Ending::Abandoned || ending == Ending::Unknown {
            env.net.abandon(conn.pipe);
        }
        if let Some(epoch) = self.epoch {
            env.oracle.connection_ended(epoch, env.now_us);
        }
    }
}

impl Conn {
    fn new(
        (pipe, serial): (usize, u64),
        (clean, expiry_s): (bool, u32),
        will: Option<u64>,
        (allowed, server_receive_max): ((u16, u32), usize),
        now_us: u64,
    ) -> Conn {
        let (receive_max, packet_bytes) = allowed;
        Conn {
            pipe,
            serial,
            open: false,
            leaving: false,
            crashed_us: None,
            forgotten: false,
            resumed: false,
            kept: false,
            clean,
            sent_us: now_us,
            expiry_s,
            receive_max: usize::from(receive_max),
            packet_bytes_max: if packet_bytes == 0 { usize::MAX } else { packet_bytes as usize },
            will,
            unread: Vec::new(),
            asked: Default::default(),
            sent: 0,
            unproved: Default::default(),
            server_receive_max,
            server_alias_max: 0,
            aliases_out: Default::default(),
            aliases_in: Default::default(),
            unfinished: Default::default(),
            acks: Default::default(),
            ack_free_us: 0,
            stalled_until_us: 0,
        }
    }
}
