//! A will fires exactly when it must: not after a goodbye, not while its connection lives, not when the
//! session was resumed within the delay; otherwise once, and not early.

use super::{Oracle, Verdict};
use crate::net::Net;

/// How a connection ended, as its client knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// DISCONNECT was sent, and everything sent arrives.
    Goodbye,
    /// DISCONNECT that keeps the will.
    WithWill,
    /// Broken.
    Cut,
    /// Left half open, because a new connection takes over.
    Abandoned,
    /// DISCONNECT was sent and may be lost.
    Unknown,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// CONNECT was sent.
    Offered,
    /// CONNACK came, and the connection lives.
    Armed,
    /// The connection ended; a resumed session may still make it void.
    Waiting { left_us: u64, pipe: usize },
    /// A new connection asked for the session meanwhile.
    Asked { left_us: u64, pipe: usize, asked_us: u64 },
    /// Goodbye; void if the broker reads it before another connection takes over.
    Parting { pipe: usize },
    /// It must fire, not before this time.
    Fires { from_us: u64 },
    /// It must not fire. With the connection whose goodbye says so, until that is acknowledged.
    Void(Option<usize>),
    /// Nobody can tell.
    Maybe,
}

struct Will {
    number: u64,
    client: usize,
    delay_us: u64,
    state: State,
    seen_us: Option<u64>,
    /// The connection that had it.
    pipe: Option<usize>,
    /// The log may not have it: a session that ends with its connection is not refused for that.
    unkept: bool,
}

/// All wills.
#[derive(Default)]
pub struct Wills {
    all: Vec<Will>,
}

/// Timers fire late: a tick, and a long turn.
const LATE_US: u64 = 1_000_000;

impl Wills {
    /// A CONNECT with a will is about to be sent.
    pub fn add(&mut self, number: u64, client: usize, delay_s: u32) {
        let delay_us = u64::from(delay_s) * 1_000_000;
        self.all.push(Will {
            number,
            client,
            delay_us,
            state: State::Offered,
            seen_us: None,
            pipe: None,
            unkept: false,
        });
    }

    /// A client sends CONNECT.
    pub fn connecting(&mut self, client: usize, now_us: u64, net: &Net) {
        for will in self.all.iter_mut().filter(|will| will.client == client) {
            will.state = match will.state {
                State::Waiting { left_us, pipe } => State::Asked { left_us, pipe, asked_us: now_us },
                State::Parting { pipe } if net.closed_us(pipe).is_none() => State::Maybe,
                State::Parting { pipe } => State::Void(Some(pipe)),
                other => other,
            };
        }
    }

    /// CONNACK came.
    pub fn connected(&mut self, client: usize, new: Option<u64>, present: bool, now_us: u64, net: &Net) {
        for will in self.all.iter_mut().filter(|will| will.client == client) {
            will.state = match will.state {
                State::Offered if Some(will.number) == new => State::Armed,
                State::Asked { left_us, pipe, asked_us } => {
                    let due_us = left_us + will.delay_us;
                    let noticed_us = net.noticed_us(pipe);
                    if will.delay_us == 0 {
                        State::Fires { from_us: left_us }
                    } else if !present {
                        // Discarded or expired: that publishes the will, too.
                        State::Fires { from_us: due_us.min(asked_us) }
                    } else if now_us < due_us {
                        State::Void(None)
                    } else if noticed_us.is_some_and(|at_us| asked_us > at_us.saturating_add(will.delay_us + LATE_US)) {
                        State::Fires { from_us: due_us }
                    } else {
                        State::Maybe
                    }
                }
                State::Void(_) => State::Void(None),
                other => other,
            };
        }
    }

    /// The log may not have this will.
    pub fn unkept(&mut self, number: u64) {
        self.all.iter_mut().filter(|will| will.number == number).for_each(|will| will.unkept = true);
    }

    /// The connection that has this will ended.
    /// `closes`: the broker may have closed it before, for reasons of its own.
    pub fn ended(
        &mut self,
        client: usize,
        number: Option<u64>,
        (ending, closes): (Ending, bool),
        pipe: usize,
        now_us: u64,
    ) {
        for will in self.all.iter_mut().filter(|will| will.client == client) {
            if Some(will.number) == number {
                will.pipe = Some(pipe);
            }
            will.state = match (will.state, ending) {
                (State::Offered, _) if Some(will.number) == number => State::Maybe,
                // Its CONNECT may have been read, or not.
                (State::Asked { left_us, .. }, _) if will.delay_us == 0 => State::Fires { from_us: left_us },
                (State::Asked { .. }, _) => State::Maybe,
                (State::Armed, _) if Some(will.number) != number => will.state,
                (State::Armed, Ending::Goodbye) if closes => State::Maybe,
                (State::Armed, Ending::Goodbye) => State::Parting { pipe },
                (State::Armed, Ending::Unknown) => State::Maybe,
                (State::Armed, _) => State::Waiting { left_us: now_us, pipe },
                (other, _) => other,
            };
        }
    }

    /// The node of a client died: with the connection that has this will, or while DISCONNECT was on its way.
    pub fn connection_crashed(&mut self, number: u64, pipe: usize, leaving: bool, now_us: u64) {
        for will in self.all.iter_mut().filter(|will| will.number == number && will.state == State::Armed) {
            will.pipe = Some(pipe);
            will.state = if leaving { State::Maybe } else { State::Waiting { left_us: now_us, pipe } };
        }
    }

    /// Its node died, and remembers, if `kept`, what was acknowledged: not every goodbye.
    pub fn node_crashed(&mut self, number: u64, kept: bool, qos: u8, net: &Net) {
        let Some(will) = self.all.iter_mut().find(|will| will.number == number) else { return };
        // With QoS 0 it may fire while whoever would receive it has no connection.
        let missed = qos == 0 && !matches!(will.state, State::Void(_) | State::Parting { .. });
        let undone = matches!(will.state, State::Parting { pipe } | State::Void(Some(pipe)) if net.forgotten(pipe));
        let forgotten = will.unkept && !matches!(will.state, State::Void(_) | State::Parting { .. });
        if !kept || missed || undone || forgotten {
            will.state = State::Maybe;
        }
    }

    /// Somebody received it.
    /// `closes`: the broker may have closed a connection, and its client has not noticed.
    pub fn arrived(&mut self, number: u64, now_us: u64, closes: bool) -> Verdict {
        let Some(will) = self.all.iter_mut().find(|will| will.number == number) else { return Ok(()) };
        let early = match will.state {
            State::Armed => !closes,
            State::Waiting { left_us, .. } => now_us < left_us + will.delay_us,
            State::Fires { from_us } => now_us < from_us,
            _ => false,
        };
        will.seen_us.get_or_insert(now_us);
        match early || matches!(will.state, State::Void(_)) {
            true => Err(format!("will #{number} of client {} was published: {:?}", will.client, will.state)),
            false => Ok(()),
        }
    }
}

impl Oracle {
    /// The final account: `watcher` is a session that surely sees every will of its cluster.
    pub fn check_wills(&self, cluster: usize, watcher: usize, sheds: u64, net: &Net) -> Verdict {
        let watched = &self.epochs[watcher].got;
        let mut missing = 0;
        for will in &self.wills.all {
            if self.publishes.at(will.number).cluster != cluster {
                continue;
            }
            let which = || format!("{} ({:?})", self.publishes.describe(will.number), will.state);
            if matches!(will.state, State::Void(_) | State::Parting { .. }) && will.seen_us.is_some() {
                return Err(format!("a void will was published: {}", which()));
            }
            let State::Fires { from_us } = will.state else { continue };
            // Nobody hears that a will is refused: the log of its watcher could not take it.
            let noticed_us = will.pipe.map_or(Some(from_us), |pipe| net.noticed_us(pipe));
            let latest_us = noticed_us.map_or(u64::MAX, |at_us| at_us.max(from_us) + will.delay_us + 2 * LATE_US);
            if !watched.contains_key(&will.number) && !self.refused(cluster, from_us, latest_us) {
                missing += 1;
                if missing > sheds {
                    return Err(format!("a will was not published: {}", which()));
                }
            }
        }
        Ok(())
    }
}
