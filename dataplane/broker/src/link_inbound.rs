//! What a remote's own connections say to us on `$LINK/...`: routes (what it wants) and messages (what we
//! asked for). They arrive on the home shard of the connection; routes go on to the owner shard of the link,
//! messages are routed right here. Nothing here can harm a local client: a hostile payload costs its
//! connection at most.

use alloc::{borrow::Cow, string::String, vec::Vec};

use contract::hash;
use link::{
    forwarder::Interest,
    inlet::{Inlet, Refused},
    names::LinkTopic,
    session::{Answer, Fault, Lookup, Reaction, RoutePublish},
};
use mqtt::{
    codec::Publish,
    connection::Misbehaved,
    topic::SubscribeFilter,
    types::{PacketId, Qos, Reason},
};

use crate::{
    Shard,
    conn::{LinkAccess, pause},
    counters::Counter,
    event::Event,
    frame::{self, BadFrame, Fields, Kind, Message},
    interest::Dest,
    links::RouteKey,
    obligation::{Outcome, Wait, Waiter},
    plant::Plant,
    publish::Routed,
    session::SessionId,
    subscribe::Behind,
    surface::{ConnId, Output},
};

/// The link of a route connection to a cluster that we have no link to: its session is kept on its home shard.
const NO_LINK: u16 = u16::MAX;
/// Route connections that one shard keeps sessions for.
const ROUTE_CONNECTIONS_MAX: usize = 4096;

/// What a route payload brought about on the owner shard.
enum Took {
    /// Acknowledge when the interest that it changed is live.
    Accepted,
    Refused(Outcome),
}

impl Shard {
    /// A PUBLISH on a topic that begins with `$LINK/`.
    pub(crate) fn link_publish(
        &mut self,
        id: ConnId,
        session: SessionId,
        access: LinkAccess,
        publish: &Publish<'_>,
        topic: &str,
        out: &mut impl Output,
    ) -> Result<(), Misbehaved> {
        let parsed = LinkTopic::parse(topic);
        let cluster = match parsed {
            Some(LinkTopic::Route { cluster } | LinkTopic::Msg { cluster }) => Some(cluster),
            _ => None,
        };
        if !cluster.is_some_and(|cluster| self.links.allows(access, cluster)) {
            self.link_client_refused(id, session, topic, out);
            return self.refuse_publish(id, publish, Reason::NotAuthorized, out);
        }
        if let (Qos::ExactlyOnce, Some(packet)) = (publish.qos, publish.packet_id)
            && self.publish_again(id, session, packet, out)
        {
            return Ok(());
        }
        match parsed {
            Some(LinkTopic::Route { cluster }) => self.route_publish(id, session, cluster, publish, out),
            Some(LinkTopic::Msg { cluster }) => {
                self.forwarded_publish(id, session, cluster, publish, out);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn link_client_refused(&mut self, id: ConnId, session: SessionId, topic: &str, out: &mut impl Output) {
        self.counters.one(Counter::link_clients_refused);
        let Some(conn) = self.conns.get(id) else { return };
        let who = self.sessions.get(session).map_or_else(|| conn.who(""), |session| conn.who_of(session));
        let why = Cow::Owned(alloc::format!("may not publish to {topic}"));
        out.event(Event::Refused { who, reason: Reason::NotAuthorized, why });
    }

    /// May this connection subscribe to a `$LINK/` filter? Only to the answers that its cluster gets.
    pub(crate) fn may_subscribe_link(&self, parsed: &SubscribeFilter<'_>, access: LinkAccess) -> bool {
        match LinkTopic::parse(parsed.filter.as_str()) {
            // A wildcard in the cluster's place would hear what others are answered.
            Some(LinkTopic::Resp { cluster, .. }) if !cluster.contains(['+', '#']) => {
                parsed.group.is_none() && self.links.allows(access, cluster)
            }
            _ => false,
        }
    }

    /// A payload on `$LINK/cluster/route/<cluster>`.
    fn route_publish(
        &mut self,
        id: ConnId,
        session: SessionId,
        cluster: &str,
        publish: &Publish<'_>,
        out: &mut impl Output,
    ) -> Result<(), Misbehaved> {
        let me = self.settings.shard.0;
        let link = self.links.find(cluster);
        let owner = link.map_or(me, |link| self.links.all[usize::from(link)].owner);
        let route = RoutePublish {
            cluster,
            payload: publish.payload,
            response_topic: publish.properties.response_topic,
            correlation_data: publish.properties.correlation_data,
        };
        let this = link.unwrap_or(NO_LINK);
        match self.conns.open(id) {
            Some(open) if open.routes.is_some_and(|before| before != this) => {
                // Its end is reported to one owner: a second cluster's session would stay behind for ever.
                let why = "a second cluster on a route connection";
                return Err(Misbehaved { reason: Fault::REASON, why });
            }
            Some(open) => open.routes = Some(this),
            None => return Ok(()),
        }
        let deadline_us = self.obligation_deadline_us();
        let mut wait = match (publish.packet_id, PacketId::new(1)) {
            // A heartbeat has QoS 0 and no acknowledgement, but its refusal has to come back, too.
            (None, Some(packet)) => {
                Wait::new(Waiter::Publish { conn: id, ack: u64::MAX, session, packet, qos2: false, unfinished: None })
            }
            _ => self.wait_for(id, session, publish),
        };
        if owner != me {
            let token = self.route_token(&mut wait, deadline_us, out);
            self.send_route(owner, id, token, &route);
            if self.hops.over(owner) {
                self.pause(id, pause::HOP, out);
                self.hops.stall(owner, id);
            }
            self.acknowledge(id, session, publish, &Routed { matched: false, refused: false, token }, out);
            return Ok(());
        }
        match self.take_route((me, id), link, &route, out) {
            Took::Accepted => {
                let token = self.route_token(&mut wait, deadline_us, out);
                self.acknowledge(id, session, publish, &Routed { matched: false, refused: false, token }, out);
                self.after_barrier(Behind::Report { shard: me, token }, out);
                Ok(())
            }
            Took::Refused(outcome) => Err(Misbehaved { reason: outcome.reason, why: "the link protocol" }),
        }
    }

    /// The obligation of a route payload: nobody subscribes to it, and its acknowledgement says so, as EMQX's does.
    fn route_token(&mut self, wait: &mut Wait, deadline_us: u64, out: &mut impl Output) -> u64 {
        let token = wait.one_more(&mut self.obligations, deadline_us);
        self.obligations.more(token);
        self.report(token, Outcome { reason: Reason::NoMatchingSubscribers, disconnect: false }, out);
        token
    }

    /// The same payload, sent by the connection's home shard to this one, the owner of the link.
    pub(crate) fn frame_route(
        &mut self,
        from: u16,
        fields: &mut Fields<'_>,
        out: &mut impl Output,
    ) -> Result<(), BadFrame> {
        let id = ConnId { index: fields.u32()?, generation: fields.u32()? };
        let token = fields.u64()?;
        let (cluster, payload) = (fields.text()?, fields.blob()?);
        let (has_topic, topic) = (fields.u8()? != 0, fields.text()?);
        let (has_data, data) = (fields.u8()? != 0, fields.blob()?);
        let route = RoutePublish {
            cluster,
            payload,
            response_topic: has_topic.then_some(topic),
            correlation_data: has_data.then_some(data),
        };
        let link = self.links.find(cluster);
        match self.take_route((from, id), link, &route, out) {
            Took::Accepted => self.after_barrier(Behind::Report { shard: from, token }, out),
            Took::Refused(outcome) => self.send_done(from, token, outcome, out),
        }
        Ok(())
    }

    fn take_route(
        &mut self,
        key: RouteKey,
        link: Option<u16>,
        route: &RoutePublish<'_>,
        out: &mut impl Output,
    ) -> Took {
        if self.links.routes.len() >= ROUTE_CONNECTIONS_MAX && !self.links.routes.contains_key(&key) {
            self.counters.one(Counter::link_inits_refused);
            return Took::Refused(Outcome { reason: Reason::QuotaExceeded, disconnect: true });
        }
        let links = &mut self.links;
        let session = links.routes.entry(key).or_default();
        let lookup = match link.and_then(|at| links.all.get_mut(usize::from(at))) {
            Some(one) => match &mut one.forwarder {
                Some(forwarder) => Lookup::Known { enabled: one.config.enable, forwarder },
                None => Lookup::Unknown,
            },
            None => Lookup::Unknown,
        };
        let mut changes: Vec<(String, bool)> = Vec::new();
        let mut note = |change: Interest<'_>| changes.push(owned(change));
        let now_us = self.now.mono_us;
        let reaction = session.publish(now_us, &self.settings.cluster, route, lookup, &links.limits, &mut note);
        if let Some(link) = link {
            self.remote_interest(link, &changes);
        }
        match reaction {
            Reaction::Acknowledge => Took::Accepted,
            Reaction::Answer(answer) => {
                self.answer_route(route.cluster, &answer, out);
                Took::Accepted
            }
            Reaction::Disconnect(fault) => {
                self.counters.one(Counter::shed_link_malformed);
                let detail = Cow::Borrowed(fault.name());
                out.event(Event::Link { link: route.cluster, what: "route connection refused", detail });
                Took::Refused(Outcome { reason: Fault::REASON, disconnect: true })
            }
        }
    }

    /// Publishes the answer to `actor_init`: an ordinary message, for whoever subscribed to its topic.
    fn answer_route(&mut self, cluster: &str, answer: &Answer, out: &mut impl Output) {
        let what = match &answer.refusal {
            Some(refusal) => {
                let detail = Cow::Borrowed(refusal.as_str());
                out.event(Event::Link { link: cluster, what: "remote refused", detail });
                self.counters.one(Counter::link_inits_refused);
                return self.publish_answer(cluster, answer, out);
            }
            None => "remote accepted",
        };
        out.event(Event::Link { link: cluster, what, detail: Cow::Borrowed("") });
        self.publish_answer(cluster, answer, out);
    }

    fn publish_answer(&mut self, cluster: &str, answer: &Answer, out: &mut impl Output) {
        // Only the topics made for it: a hostile Response-Topic must not become a publish of ours.
        let expected =
            matches!(LinkTopic::parse(&answer.topic), Some(LinkTopic::Resp { cluster: c, .. }) if c == cluster);
        if !expected
            || mqtt::topic::Topic::parse(&answer.topic, usize::from(self.settings.mqtt.topic_levels_max)).is_err()
        {
            return self.counters.one(Counter::shed_link_malformed);
        }
        let mut properties = Vec::new();
        if let Some(data) = &answer.correlation_data {
            properties.push(mqtt::codec::properties::id::CORRELATION_DATA);
            properties.extend_from_slice(&(data.len() as u16).to_be_bytes());
            properties.extend_from_slice(data);
        }
        let message = Message {
            id: self.next_id(true, false),
            stamp: 0,
            expiry_ms: u64::MAX,
            publisher: 0,
            qos: Qos::AtLeastOnce,
            retain: false,
            from_link: true,
            durable: false,
            topic: &answer.topic,
            properties: &properties,
            payload: &answer.payload,
        };
        self.route(&message, &mut Wait::nobody(), None, out);
    }

    /// What a remote wants has changed: kept, and spread to every shard of this node.
    fn remote_interest(&mut self, link: u16, changes: &[(String, bool)]) {
        self.record_wanted(link, changes);
        self.spread_interest(link, changes);
    }

    /// Every shard of this node hears what a remote wants.
    pub(crate) fn spread_interest(&mut self, link: u16, changes: &[(String, bool)]) {
        for (filter, add) in changes {
            let dest = Dest::Link(link);
            if *add {
                self.interest.add(filter, dest);
            } else {
                self.interest.remove(filter, dest);
            }
            self.link_wants(link, filter, *add);
            self.announce(filter, dest, *add);
        }
    }

    /// Lets the actor table forget what is due.
    pub(crate) fn forwarder_turn(&mut self, at: u16) {
        let now_us = self.now.mono_us;
        let Some(forwarder) = self.links.all[usize::from(at)].forwarder.as_mut() else { return };
        if forwarder.deadline().is_none_or(|due| due > now_us) {
            return;
        }
        let mut changes = Vec::new();
        forwarder.tick(now_us, &mut |change| changes.push(owned(change)));
        self.remote_interest(at, &changes);
    }

    /// A connection that has sent route payloads is gone.
    pub(crate) fn route_connection_gone(&mut self, link: u16, id: ConnId) {
        let me = self.settings.shard.0;
        let owner = self.links.all.get(usize::from(link)).map_or(me, |one| one.owner);
        if owner == me {
            self.links.routes.remove(&(me, id));
            return;
        }
        // Behind the payloads that are on their way: the same lane.
        let bytes = self.hops.message(owner);
        let start = frame::begin(bytes, Kind::LinkGone, 0);
        bytes.extend_from_slice(&id.index.to_le_bytes());
        bytes.extend_from_slice(&id.generation.to_le_bytes());
        frame::finish(bytes, start);
    }

    /// A payload on `$LINK/cluster/msg/<cluster>`: a message that the remote pushes.
    fn forwarded_publish(
        &mut self,
        id: ConnId,
        session: SessionId,
        cluster: &str,
        publish: &Publish<'_>,
        out: &mut impl Output,
    ) {
        let mut scratch = core::mem::take(&mut self.links.scratch);
        let link = self.links.find(cluster).and_then(|at| self.links.all.get(usize::from(at)));
        let inlet = link.map(|one| &one.inlet);
        match Inlet::receive(inlet, self.now.wall_ms, publish.payload, &mut scratch) {
            Ok(inbound) => {
                self.counters.one(Counter::link_received);
                let mut properties = core::mem::take(&mut self.properties);
                properties.clear();
                inbound.properties.forwarded(&mut properties);
                let publisher = if inbound.from.is_empty() { 0 } else { hash::stable(inbound.from.as_bytes()) };
                let message = Message {
                    id: self.next_id(inbound.qos != Qos::AtMostOnce, false),
                    stamp: 0,
                    expiry_ms: inbound.message_expiry_s.map_or(u64::MAX, |s| u64::from(s) * 1000),
                    publisher,
                    qos: inbound.qos,
                    // The flag survives for Retain As Published; nothing is stored over this wire.
                    retain: inbound.retain,
                    from_link: !self.planted(Plant::LinkEcho),
                    durable: false,
                    topic: inbound.topic.as_str(),
                    properties: &properties,
                    payload: inbound.payload,
                };
                let mut wait = self.wait_for(id, session, publish);
                let routed = self.route(&message, &mut wait, Some(id), out);
                self.properties = properties;
                self.acknowledge(id, session, publish, &routed, out);
            }
            Err(refused) => {
                self.counters.one(match refused {
                    Refused::UnknownLink | Refused::LinkDisabled => Counter::shed_link_unknown,
                    Refused::OutsideTopics => Counter::shed_link_outside_topics,
                    _ => Counter::shed_link_malformed,
                });
                let detail = Cow::Owned(alloc::format!("{refused}"));
                out.event(Event::Link { link: cluster, what: "message refused", detail });
                self.acknowledge(id, session, publish, &Routed { matched: false, refused: false, token: 0 }, out);
            }
        }
        self.links.scratch = scratch;
    }
}

pub(crate) fn owned(change: Interest<'_>) -> (String, bool) {
    match change {
        Interest::Add(filter) => (filter.into(), true),
        Interest::Remove(filter) => (filter.into(), false),
    }
}
