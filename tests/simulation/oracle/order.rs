//! Everything from one publisher to one subscriber stays in order, across topics. Judged on first
//! deliveries that came live: not for shared groups, not for what the publisher sent again.

use super::{Verdict, arrival::Arrival, publishes::Publish, subscriptions::Epoch};

/// Checks and notes the first arrival of a message.
pub fn check(session: &mut Epoch, number: u64, publish: &Publish, arrival: &Arrival) -> Verdict {
    let shared = session.matching(&publish.topic).any(|s| s.shared);
    if shared || arrival.retain || publish.will || publish.resent > 0 {
        return Ok(());
    }
    let head = session.heads.entry(publish.publisher).or_default();
    if head.0 > publish.order {
        return Err(format!("{arrival} of client {} came after #{}", publish.publisher, head.1));
    }
    *head = (publish.order, number);
    Ok(())
}
