//! Wills: what a client has left to be said when it is gone. Lives with the session on its home shard; when a will is due is
//! decided in `lifecycle.rs`. Always true: a will is published once, or made void.

use mqtt::types::Qos;

use crate::{
    Shard,
    counters::Counter,
    frame::Message,
    journal::What,
    obligation::{Wait, Waiter},
    session::SessionId,
    surface::Output,
};

impl Shard {
    /// A new connection has made the will of the last one void.
    pub(crate) fn cancel_will(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.will_due_us = 0;
        if session.state.will.take().is_some() {
            //= MQTT-3.1.3-9
            self.counters.one(Counter::wills_cancelled);
        }
    }

    /// Publishes the will that is due, if the session has one and no connection.
    pub(crate) fn publish_will(&mut self, id: SessionId, out: &mut impl Output) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        //= MQTT-3.1.2-8
        if session.will_due_us == 0 || session.online() {
            return;
        }
        session.will_due_us = 0;
        //= MQTT-3.1.2-10
        //= MQTT311-3.1.2-12
        let Some(will) = session.state.will.take() else { return };
        if session.access.as_ref().is_some_and(|access| !access.may_publish(&will.topic, will.qos, will.retain)) {
            // It could when it connected.
            return self.counters.one(Counter::shed_will_denied);
        }
        let (publisher, number) = (session.client_hash, session.number);
        self.counters.one(Counter::wills_published);
        // It fires once, whatever happens meanwhile.
        let durable = number != 0 && self.journal.records();
        let message = Message {
            id: self.next_id(will.qos != Qos::AtMostOnce || will.retain, durable),
            stamp: 0,
            expiry_ms: will.expiry_s.map_or(u64::MAX, |s| u64::from(s) * 1000),
            publisher,
            qos: will.qos,
            //= MQTT-3.1.2-14
            //= MQTT-3.1.2-15
            retain: will.retain,
            from_link: false,
            durable,
            topic: &will.topic,
            properties: &will.properties,
            payload: &will.payload,
        };
        if !durable {
            self.route(&message, &mut Wait::nobody(), None, out);
            return;
        }
        let (stream, sequence) = self.record_publish(&message, number, 0);
        let waiter = Waiter::Repeated { stream, sequence, session: None, packet: 0, restoring: false };
        let kept = self.pool.keep(&message, self.now.mono_us);
        let deadline_us = self.obligation_deadline_us();
        let token = self.obligations.open(waiter, deadline_us);
        self.defer(What::Publish { from: None, waiter: Some(waiter), token, kept }, out);
    }
}
