//! What the rights of a session say to a PUBLISH and to a SUBSCRIBE. Lives on the home shard, called on the way of the packet.

use mqtt::{
    codec::Publish,
    connection::Misbehaved,
    topic::SubscribeFilter,
    types::{Qos, Reason, Version},
};

use crate::{
    Shard,
    access::Action,
    conn::{Ack, LinkAccess},
    counters::Counter,
    publish::LINK_PREFIX,
    session::SessionId,
    subscriptions::Guard,
    surface::{ConnId, Output},
};

impl Shard {
    /// May a session publish this?
    pub(crate) fn may_publish(&self, session: SessionId, publish: &Publish<'_>, topic: &str) -> bool {
        let access = self.sessions.get(session).and_then(|session| session.access.as_ref());
        access.is_none_or(|access| access.may_publish(topic, publish.qos, publish.retain))
    }

    /// Do the rules keep a client from a topic of a link? Who is accepted for a remote needs no rule, but a rule can
    /// refuse it; who only comes from loopback needs one, where there are rules.
    pub(crate) fn rules_refuse_link(
        &self,
        session: SessionId,
        link: LinkAccess,
        (action, topic, qos): (Action, &str, Qos),
    ) -> bool {
        let access = self.sessions.get(session).and_then(|session| session.access.as_ref());
        let rights = access.and_then(|access| access.rights.as_ref());
        rights.is_some_and(|rights| !rights.says(action, topic, qos).unwrap_or(link.links != 0))
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
    pub(crate) fn guard_of(&self, id: SessionId, link: LinkAccess, parsed: &SubscribeFilter<'_>, qos: Qos) -> Guard {
        let access = self.sessions.get(id).and_then(|session| session.access.as_ref());
        let Some(rights) = access.and_then(|access| access.rights.as_ref()) else { return Guard::Open };
        let filter = parsed.filter.as_str();
        if filter.starts_with(LINK_PREFIX) {
            let refused = self.rules_refuse_link(id, link, (Action::Subscribe, filter, qos));
            return if refused { Guard::Muted } else { Guard::Open };
        }
        match (Guard::from(rights.subscribe(filter, qos)), parsed.group) {
            (Guard::Guarded, Some(_)) => Guard::Muted,
            (guard, _) => guard,
        }
    }
}
