//! QoS 2 is delivered exactly once per session (or group); QoS 1 twice only with DUP or after the publisher
//! sent it twice; QoS 0 likewise. A retained message comes once more for each replay.

use std::collections::HashSet;

use super::{arrival::Arrival, publishes::Publish, subscriptions::Epoch};

/// How often a session received a message.
#[derive(Clone, Copy, Default, Debug)]
pub struct Got {
    /// Without those that were marked as sent again.
    pub fresh: u32,
}

/// Checks and notes one arrival. True: this session has not seen the message before.
pub fn check(session: &mut Epoch, number: u64, publish: &Publish, arrival: &Arrival) -> Result<bool, String> {
    if arrival.dup && session.got.contains_key(&number) {
        return Ok(false);
    }
    let most = copies_max(session, publish);
    let got = session.got.entry(number).or_default();
    got.fresh += 1;
    if got.fresh > most {
        return Err(format!("{arrival} came {} times, at most {most} are possible", got.fresh));
    }
    Ok(got.fresh == 1)
}

/// How many fresh copies a session may get of a publish.
fn copies_max(session: &Epoch, publish: &Publish) -> u32 {
    let possible = session.matching(&publish.topic).filter(|s| s.possible(publish.sent_us));
    let groups: HashSet<&str> = possible.clone().filter(|s| s.shared).map(|s| s.wanted.filter.as_str()).collect();
    let plain = u32::from(possible.clone().any(|s| !s.shared));
    let sendings = if publish.qos == 1 { 1 + publish.resent } else { 1 };
    let replays = session.matching(&publish.topic).filter(|s| publish.retain && s.replays()).count() as u32;
    (plain + groups.len() as u32) * sendings + replays
}
