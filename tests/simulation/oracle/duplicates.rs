//! QoS 2 is delivered exactly once per session (or group); QoS 1 twice only with DUP or after the publisher
//! sent it twice; QoS 0 likewise. A retained message comes once more for each replay.

use std::collections::HashSet;

use super::{
    arrival::Arrival,
    crossing::COPIES_OVER_CUTS,
    publishes::Publish,
    subscriptions::{Epoch, Subscription},
};

/// How often a session received a message.
#[derive(Clone, Default, Debug)]
pub struct Got {
    /// Without those that were marked as sent again.
    pub fresh: u32,
    /// Those of them that came with QoS 2.
    exact: u32,
    /// Their packet ids.
    packets: Vec<u16>,
}

/// What an arrival is to its session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// The session has not seen the message before.
    First,
    /// Another copy: a replay, another group, or sent twice by its publisher.
    Copy,
    /// The same delivery once more.
    Again,
}

/// Checks and notes one arrival.
pub fn check(
    session: &mut Epoch,
    number: u64,
    publish: &Publish,
    arrival: &Arrival,
    over_cuts: bool,
    (crashes, refused): (u32, bool),
) -> Result<Seen, String> {
    let mut most = copies_max(session, publish, refused) + if over_cuts { COPIES_OVER_CUTS } else { 0 };
    if refused && publish.will {
        // A will that fires while nothing can be recorded is forgotten by a crash, and fires again.
        most += crashes;
    }
    let mut repeats = 0;
    if publish.qos > 0 {
        // After a crash, whatever was not known to be acknowledged comes again, unless it has QoS 2.
        let repeated = |s: &&Subscription| s.possible(publish.sent_us) && s.wanted.qos.min(publish.qos) < 2;
        let subscribed = session.matching(&publish.topic).filter(repeated).count();
        repeats = crashes * subscribed as u32 * sendings(publish, refused);
    }
    let got = session.got.entry(number).or_default();
    if arrival.dup && got.packets.contains(&arrival.packet) {
        return Ok(Seen::Again);
    }
    got.packets.push(arrival.packet);
    got.fresh += 1;
    got.exact += u32::from(arrival.qos == 2);
    if got.exact > most || got.fresh > most + repeats {
        let Got { fresh, exact, .. } = got;
        return Err(format!(
            "{arrival} came {fresh} times, {exact} of them with QoS 2; {most} + {repeats} are possible"
        ));
    }
    Ok(if got.fresh == 1 { Seen::First } else { Seen::Copy })
}

/// How many fresh copies a session may get of a publish.
fn copies_max(session: &Epoch, publish: &Publish, refused: bool) -> u32 {
    let possible = session.matching(&publish.topic).filter(|s| s.possible(publish.sent_us));
    let groups: HashSet<&str> = possible.clone().filter(|s| s.shared).map(|s| s.wanted.filter.as_str()).collect();
    let plain = u32::from(possible.clone().any(|s| !s.shared));
    let replays = session.matching(&publish.topic).filter(|s| publish.retain && s.replays()).count() as u32;
    (plain + groups.len() as u32) * sendings(publish, refused) + replays
}

/// How often the broker took it. With QoS 2 more than once only where it was refused after a part of its destinations had
/// it, and sent again, because its client never heard of that.
fn sendings(publish: &Publish, refused: bool) -> u32 {
    if publish.qos == 1 || refused { 1 + publish.resent } else { 1 }
}
