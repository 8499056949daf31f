//! A message arrives at a client for the first time on its packet id: every check that needs no more than
//! what was known then.

use core::fmt;

use super::{
    Oracle, Verdict, crossing,
    duplicates::{self, Seen},
    order, retained, wanted,
};

/// What arrived.
pub struct Arrival {
    /// Which publish it is; none for an empty payload or an unknown one.
    pub number: Option<u64>,
    /// Topic, with aliases resolved.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// Packet id; 0 for QoS 0.
    pub packet: u16,
    /// QoS.
    pub qos: u8,
    /// RETAIN.
    pub retain: bool,
    /// DUP.
    pub dup: bool,
    /// Subscription identifiers.
    pub ids: Vec<u32>,
    /// It came on a connection that resumed its session.
    pub resumed: bool,
}

impl fmt::Display for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Arrival { number, topic, qos, retain, dup, ids, .. } = self;
        match number {
            Some(number) => write!(f, "#{number} ")?,
            None => write!(f, "{} bytes ", self.payload.len())?,
        }
        write!(f, "on {topic} q{qos} retain {retain} dup {dup} ids {ids:?}")
    }
}

impl Oracle {
    /// A session received a message.
    pub fn arrived(&mut self, epoch: usize, arrival: &Arrival, now_us: u64) -> Verdict {
        let since_us = arrival.number.map_or(now_us, |number| self.publishes.at(number).sent_us);
        let refused = self.refused(self.epochs[epoch].cluster, since_us, now_us);
        let session = &mut self.epochs[epoch];
        if arrival.dup && !arrival.resumed {
            return Err(format!("DUP on a new session: {arrival}"));
        }
        let Some(number) = arrival.number else {
            return retained::deletion_arrived(session, &self.publishes, arrival);
        };
        let publish = self.publishes.at(number);
        let abroad = publish.cluster != session.cluster;
        if publish.topic != arrival.topic || abroad && !crossing::may_cross(publish) {
            return Err(format!("{} arrived as {arrival}", self.publishes.describe(number)));
        }
        wanted::check(session, publish, arrival)?;
        // A link over wires that break delivers at least once, so the first of several may be lost with QoS 0.
        let over_cuts = abroad && self.wires_cut;
        let cluster = session.cluster;
        let after = self.crashes.iter().filter(|(at, at_us)| *at == cluster && *at_us >= publish.sent_us);
        let crashes = after.count() as u32;
        let seen = duplicates::check(session, number, publish, arrival, over_cuts, (crashes, refused))?;
        if seen == Seen::First && !over_cuts {
            order::check(session, number, publish, arrival)?;
        }
        if seen != Seen::Again {
            retained::arrived(session, number, publish, arrival);
        }
        if publish.will {
            self.wills.arrived(number, now_us, self.refusing)?;
        }
        Ok(())
    }
}
