//! Between what was replayed and what comes live nothing is missing: after the first value of a topic that is
//! replayed to a new subscription, every later one follows; and that first value is not older than what was
//! acknowledged before SUBSCRIBE was sent.

use std::collections::BTreeMap;

use super::{Oracle, Verdict, publishes::Publish, retained::single_publisher, subscriptions::Epoch};

/// The retained publishes of one topic, in order.
type History<'a> = Vec<(u64, &'a Publish)>;

impl Oracle {
    /// The final account of a cluster without sheds, but for QoS 0 if `sheds_qos0`.
    pub fn check_continuity(&self, cluster: usize, sheds_qos0: bool) -> Verdict {
        let mut topics: BTreeMap<&str, History<'_>> = BTreeMap::new();
        for (number, publish) in self.publishes.iter() {
            if publish.retain && publish.cluster == cluster && single_publisher(&publish.topic) {
                topics.entry(&publish.topic).or_default().push((number, publish));
            }
        }
        // What was sent twice has no single place in the order.
        // Nor has what a crash may have taken.
        topics.retain(|_, history| history.iter().all(|(_, p)| p.resent == 0 && !p.shaken));
        for session in self.epochs.iter().filter(|e| e.cluster == cluster && !e.doubtful) {
            for (topic, history) in &topics {
                self.check_topic(session, topic, history, sheds_qos0)?;
            }
        }
        Ok(())
    }

    fn check_topic(&self, session: &Epoch, topic: &str, history: &History<'_>, sheds_qos0: bool) -> Verdict {
        let Some(first) = session.matching(topic).next() else { return Ok(()) };
        let own = first.wanted.no_local && history.iter().any(|(_, p)| p.publisher == session.client);
        let Some(granted_us) = first.granted_us.filter(|_| first.wanted.handling == 0 && !first.shared && !own) else {
            return Ok(());
        };
        if session.matching(topic).any(|s| s.wanted.retain_as_published) {
            // Its live messages look like replayed ones.
            return Ok(());
        }
        let got = |number: &u64| session.got.contains_key(number);
        let replayed = history.iter().find(|(number, _)| session.replayed.contains(number));
        let Some((_, oldest)) = replayed else { return Ok(()) };
        let before = history.iter().rev().find(|(_, p)| p.acknowledged_us.is_some_and(|at_us| at_us < first.sent_us));
        let client = session.client;
        if let Some((number, newer)) = before.filter(|(_, newer)| newer.order > oldest.order) {
            let newer_than = format!("#{number} was acknowledged before SUBSCRIBE at {}", first.sent_us);
            return Err(format!(
                "client {client} got {topic} of order {} < {}: {newer_than}",
                oldest.order, newer.order
            ));
        }
        let reliable = |p: &Publish| p.qos.min(first.wanted.qos) > 0;
        let uncut = !sheds_qos0 && session.connected_since(first.sent_us);
        // A session that is gone has seen everything up to the last that it saw.
        let last = history.iter().rev().find(|(number, p)| got(number) && reliable(p)).map_or(0, |(_, p)| p.order);
        for (number, p) in history.iter().filter(|(number, p)| p.order > oldest.order && !p.delete && !got(number)) {
            let followed = if session.ended { reliable(p) && p.order < last } else { reliable(p) || uncut };
            let wanted = p.over_us().is_some_and(|over_us| first.leaving_us.is_none_or(|at_us| at_us > over_us));
            if followed && wanted {
                let which = self.publishes.describe(*number);
                return Err(format!(
                    "client {client} subscribed at {}, SUBACK at {granted_us}, got order {} of {topic}, but not {which}",
                    first.sent_us, oldest.order
                ));
            }
        }
        Ok(())
    }
}
