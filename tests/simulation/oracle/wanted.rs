//! Nothing is delivered that nobody subscribed to, and what is delivered looks as the subscription asked:
//! QoS, RETAIN, No Local, subscription identifiers.

use super::{
    Verdict,
    arrival::Arrival,
    publishes::Publish,
    subscriptions::{Epoch, Subscription},
};

/// Checks one arrival.
pub fn check(session: &Epoch, publish: &Publish, arrival: &Arrival) -> Verdict {
    let own = publish.publisher == session.client;
    let live = |s: &&Subscription| s.possible(publish.sent_us) && !(s.wanted.no_local && own);
    let replayed = |s: &&Subscription| arrival.retain && s.replays();
    let candidates: Vec<&Subscription> = session.matching(&arrival.topic).filter(|s| live(s) || replayed(s)).collect();
    let why = |what: &str| Err(format!("{what}: {arrival}, subscriptions {candidates:?}"));
    if candidates.is_empty() {
        return why("nobody subscribed");
    }
    if !candidates.iter().any(|s| publish.qos.min(s.wanted.qos) == arrival.qos) {
        return why("no subscription has this QoS");
    }
    if arrival.retain && !publish.retain {
        return why("RETAIN on a message that is not retained");
    }
    if arrival.retain && !candidates.iter().any(|s| s.wanted.retain_as_published || s.replays()) {
        return why("RETAIN, but nobody asked to keep it");
    }
    if !arrival.retain && publish.retain && candidates.iter().all(|s| s.wanted.retain_as_published) {
        return why("RETAIN is gone, but was to be kept");
    }
    if let Some(id) = arrival.ids.iter().find(|id| !candidates.iter().any(|s| s.id == **id)) {
        return why(&format!("identifier {id} of no matching subscription"));
    }
    if publish.retain || arrival.dup || candidates.iter().any(|s| s.shared) {
        return Ok(());
    }
    // It came live and to no group: every subscription that surely existed has its say.
    for surely in candidates.iter().filter(|s| s.certain(publish.sent_us, u64::MAX)) {
        if surely.id != 0 && !arrival.ids.contains(&surely.id) {
            return why(&format!("identifier {} is missing", surely.id));
        }
        if arrival.qos < publish.qos.min(surely.wanted.qos) {
            return why("a subscription asked for more QoS");
        }
    }
    Ok(())
}
