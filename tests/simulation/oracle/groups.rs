//! A message of a shared group goes to exactly one member with QoS 2, to at least one with QoS 1.

use std::collections::{BTreeMap, BTreeSet};

use super::{Oracle, Verdict, loss::Explained, matches, publishes::Publish, subscriptions::Subscription};

/// Topics of groups; whoever joins groups has no plain subscription to them.
pub fn of_groups(topic: &str) -> bool {
    topic.starts_with("s/")
}

impl Oracle {
    /// The final account of a cluster.
    pub fn check_groups(&self, cluster: usize, explained: Explained) -> Verdict {
        let mut members: BTreeMap<&str, Vec<(usize, &Subscription)>> = BTreeMap::new();
        for (at, session) in self.epochs.iter().enumerate().filter(|(_, e)| e.cluster == cluster) {
            for subscription in session.subscriptions.iter().filter(|s| s.shared) {
                members.entry(&subscription.wanted.filter).or_default().push((at, subscription));
            }
        }
        let mut lost = Vec::new();
        for (number, publish) in self.publishes.iter() {
            if publish.cluster != cluster || !of_groups(&publish.topic) {
                continue;
            }
            if let Some(missing) = self.check_group_message(number, publish, &members)? {
                lost.extend(core::iter::repeat_n(number, missing));
            }
        }
        if lost.len() as u64 > explained.groups {
            let which = self.publishes.describe(lost[0]);
            let (n, most) = (lost.len(), explained.groups);
            return Err(format!("{n} messages of groups are lost, sheds explain {most}: {which}"));
        }
        Ok(())
    }

    /// Copies of one message that are missing; an error for too many.
    fn check_group_message(
        &self,
        number: u64,
        publish: &Publish,
        members: &BTreeMap<&str, Vec<(usize, &Subscription)>>,
    ) -> Result<Option<usize>, String> {
        let (mut least, mut most, mut reliable) = (0, 0, publish.qos);
        let mut sessions = BTreeSet::new();
        for members in members.values() {
            let mut possible = members
                .iter()
                .filter(|(_, s)| matches(&s.filter, &publish.topic) && s.possible(publish.sent_us))
                .filter(|(at, _)| self.epochs[*at].ended_us > publish.sent_us)
                .peekable();
            if possible.peek().is_none() {
                continue;
            }
            most += 1;
            let done_us = publish.done_us();
            let mut sure = false;
            let mut all_live = true;
            for (at, subscription) in possible {
                sessions.insert(*at);
                reliable = reliable.min(subscription.wanted.qos);
                all_live &= self.epochs[*at].lives();
                sure |= done_us.is_some_and(|done_us| subscription.certain(publish.sent_us, done_us));
            }
            // A member whose session ended may have taken it along.
            least += usize::from(sure && all_live);
        }
        let copies: u32 = sessions.iter().filter_map(|at| self.epochs[*at].got.get(&number)).map(|got| got.fresh).sum();
        // A member that was lost with a crash, or that takes less than QoS 2, may have had it before another one.
        let shaken = self.crashes.iter().any(|(at, at_us)| *at == publish.cluster && *at_us >= publish.sent_us);
        // Refused by one of its destinations and sent again, it may have had one before.
        let again = publish.resent > 0 && self.refused(publish.cluster, publish.sent_us, u64::MAX - 1);
        most *= if again { 1 + publish.resent as usize } else { 1 };
        let strict = !shaken || reliable == 2 && sessions.iter().all(|at| self.epochs[*at].lives());
        if publish.qos == 2 && strict && copies as usize > most {
            let which = self.publishes.describe(number);
            return Err(format!("{copies} members received {which}, {most} groups may have wanted it"));
        }
        Ok((reliable > 0).then(|| least.saturating_sub(copies as usize)))
    }
}
