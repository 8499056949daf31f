//! What the rights of a session say to a PUBLISH and to a SUBSCRIBE. Lives on the home shard, called on the way of the packet.

use mqtt::{
    codec::{Publish, Subscribe},
    connection::Misbehaved,
    topic::SubscribeFilter,
    types::{Qos, Reason, Version},
};

use crate::{
    Shard,
    access::{Action, Granted, Rights},
    admission::Access,
    conn::{Ack, LinkAccess},
    counters::Counter,
    inquiry::Wish,
    mountpoint,
    publish::LINK_PREFIX,
    session::SessionId,
    subscriptions::Guard,
    surface::{ConnId, Output},
};

impl Shard {
    /// May a session publish this? `None`: a server decides, and the packet waits for its word.
    pub(crate) fn may_publish(
        &mut self,
        id: ConnId,
        session: SessionId,
        publish: &Publish<'_>,
        topic: &str,
        out: &mut impl Output,
    ) -> Option<bool> {
        let Some(rights) = self.rights(session) else { return Some(true) };
        let (qos, retain) = (publish.qos, publish.retain);
        if let Some(decided) = rights.publish(topic, qos, retain, None) {
            return Some(decided);
        }
        let Some(heard) = self.hear(id, session, (Action::Publish, topic, qos), out) else {
            self.counters.publish_held(qos, publish.payload.len());
            return None;
        };
        self.settle_hold(id);
        Some(self.rights(session)?.publish(topic, qos, retain, Some(heard)) == Some(true))
    }

    /// May a client that connects leave this will? `None`: a server decides, and CONNECT waits for its word.
    pub(crate) fn may_leave(
        &mut self,
        id: ConnId,
        client: &str,
        access: &Access,
        (topic, qos, retain): (&str, Qos, bool),
        out: &mut impl Output,
    ) -> Option<bool> {
        let Some(rights) = &access.rights else { return Some(true) };
        if let Some(decided) = rights.publish(topic, qos, retain, None) {
            return Some(decided);
        }
        let user = access.principal.user.as_deref();
        let wish = Wish { client, user, peer: access.peer, action: Action::Publish, topic, qos };
        let heard = self.hear_will(id, &wish, out)?;
        Some(rights.publish(topic, qos, retain, Some(heard)) == Some(true))
    }

    fn rights(&self, session: SessionId) -> Option<&Rights> {
        self.sessions.get(session)?.access.as_ref()?.rights.as_ref()
    }

    /// Does a SUBSCRIBE wait for a server's word about one of its filters?
    pub(crate) fn subscribe_waits(
        &mut self,
        id: ConnId,
        session: SessionId,
        subscribe: &Subscribe<'_>,
        mountpoint: Option<&str>,
        out: &mut impl Output,
    ) -> bool {
        if !self.rights(session).is_some_and(Rights::asks) {
            return false;
        }
        let levels_max = usize::from(self.settings.mqtt.topic_levels_max);
        for entry in subscribe.entries {
            let mounted = mountpoint.map(|mountpoint| mountpoint::filter(mountpoint, entry.filter));
            let Ok(parsed) = SubscribeFilter::parse(mounted.as_deref().unwrap_or(entry.filter), levels_max) else {
                continue;
            };
            let filter = parsed.filter.as_str();
            let decided = |rights: &Rights| rights.subscribe_as_heard(filter, entry.qos, None).is_some();
            if filter.starts_with(LINK_PREFIX) || self.rights(session).is_none_or(decided) {
                continue;
            }
            if self.hear(id, session, (Action::Subscribe, filter, entry.qos), out).is_none() {
                return true;
            }
        }
        false
    }

    /// Do the rules keep a client from a topic of a link? Who is accepted for a remote needs no rule, but a rule can
    /// refuse it; who only comes from loopback needs one, where there are rules.
    pub(crate) fn rules_refuse_link(
        &self,
        session: SessionId,
        link: LinkAccess,
        (action, topic, qos): (Action, &str, Qos),
    ) -> bool {
        self.rights(session).is_some_and(|rights| !rights.says(action, topic, qos).unwrap_or(link.links != 0))
    }

    /// A publish that its client may not send is shed. 3.x has no word for that: it is acknowledged, or the connection ends.
    pub(crate) fn deny_publish(
        &mut self,
        id: ConnId,
        publish: &Publish<'_>,
        out: &mut impl Output,
    ) -> Result<(), Misbehaved> {
        self.counters.one(Counter::shed_publish_denied);
        let reason = Reason::NotAuthorized;
        if self.policy.disconnects {
            return Err(Misbehaved { reason, why: "a publish that its rights do not allow" });
        }
        let version = self.conns.open(id).map(|open| open.protocol.version);
        if version == Some(Version::V5) {
            return self.refuse_publish(id, publish, reason, out);
        }
        //= MQTT311-3.3.5-2
        if let (Some(packet), Some(open)) = (publish.packet_id, self.conns.open(id)) {
            let qos2 = publish.qos == Qos::ExactlyOnce;
            open.acks.push(Ack { packet, qos2, ready: Some(Reason::Success) });
            self.send_acks(id, out);
        }
        Ok(())
    }

    /// What the rights of a session leave of a subscription that it asks for. A group's message has one reader, who must
    /// be one for all of them.
    pub(crate) fn guard_of(
        &mut self,
        id: SessionId,
        link: LinkAccess,
        parsed: &SubscribeFilter<'_>,
        qos: Qos,
    ) -> Guard {
        let Some(rights) = self.rights(id) else { return Guard::Open };
        let filter = parsed.filter.as_str();
        if filter.starts_with(LINK_PREFIX) {
            let refused = self.rules_refuse_link(id, link, (Action::Subscribe, filter, qos));
            return if refused { Guard::Muted } else { Guard::Open };
        }
        let granted = rights.subscribe_as_heard(filter, qos, None).or_else(|| {
            let heard = self.heard(id, (Action::Subscribe, filter, qos));
            self.rights(id)?.subscribe_as_heard(filter, qos, Some(heard))
        });
        match (Guard::from(granted.unwrap_or(Granted::Refused)), parsed.group) {
            (Guard::Guarded, Some(_)) => Guard::Muted,
            (guard, _) => guard,
        }
    }
}
