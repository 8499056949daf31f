//! What a client does next: one operation each time it is woken.

use mqtt::{codec::encode, types::Version};

use super::{Awaits, Client};
use crate::world::{Env, Event};

/// How long a client with a short session stays away at most.
const AWAY_US: u64 = 6_000_000;

impl Client {
    /// Does one operation, if there are any left, and plans the next.
    pub fn operate(&mut self, env: &mut Env) {
        if self.quiet {
            return;
        }
        self.schedule(env);
        if env.operations == 0 {
            return;
        }
        let Some(conn) = &mut self.conn else {
            if !env.open[self.cluster] {
                return;
            }
            // Some stay away until a short session is over.
            let short = self.lease.expiry_s.1 <= 3;
            if !(short && env.rng.percent(80) && env.now_us < self.lease.left_us + AWAY_US) {
                self.connect(env, false);
            }
            return;
        };
        if conn.leaving || conn.crashed_us.is_some() {
            return;
        }
        if !conn.open {
            if env.rng.percent(env.plan.unrest / 2) {
                // Counted, or a client that gives up faster than the broker answers would do so for ever.
                env.operations -= 1;
                let reset = env.rng.percent(50);
                self.cut(env, reset);
            }
            return;
        }
        env.operations -= 1;
        if env.rng.percent(env.plan.unrest) {
            return self.unrest(env);
        }
        let mix = env.plan.mix;
        match env.rng.below(20) {
            0 => self.ping(env),
            1 => self.stall(env),
            n if n < 2 + mix.subscribe => self.subscribe(env),
            n if n < 2 + mix.subscribe + mix.unsubscribe => self.unsubscribe(env),
            _ => self.publish(env),
        }
    }

    fn unrest(&mut self, env: &mut Env) {
        let open = self.conn.as_ref().is_some_and(|conn| conn.open);
        let change = self.conn.as_ref().is_some_and(|conn| conn.expiry_s > 0)
            && self.profile.version == Version::V5
            && env.rng.percent(20);
        match env.rng.below(10) {
            0..3 if open => {
                let with_will = !change && env.rng.percent(20);
                let expiry_s = change.then(|| *env.rng.pick(self.profile.expiries));
                self.disconnect(env, with_will, expiry_s);
            }
            3..6 => self.cut(env, true),
            6 => self.cut(env, false),
            _ => {
                let clean = env.rng.percent(15);
                self.connect(env, clean);
            }
        }
    }

    /// PINGREQ.
    pub fn ping(&mut self, env: &mut Env) {
        let mut bytes = Vec::new();
        encode::pingreq(&mut bytes);
        self.ask(env, Awaits::Pingresp, 0, Vec::new());
        self.write(env, bytes);
    }

    /// Pings often enough for its keep alive, as long as the connection lives.
    pub fn keep_alive(&mut self, env: &mut Env, serial: u64) {
        if self.profile.keep_alive_s == 0 || self.conn.as_ref().is_none_or(|conn| conn.serial != serial) {
            return;
        }
        if self.conn.as_ref().is_some_and(|conn| conn.open && !conn.leaving) {
            self.ping(env);
        }
        let at_us = env.now_us + u64::from(self.profile.keep_alive_s) * 400_000;
        env.queue.push(at_us, Event::KeepAlive(self.at, serial));
    }

    /// Does not read for a while.
    fn stall(&mut self, env: &mut Env) {
        let until_us = env.now_us + env.rng.below(1_000_000);
        if let Some(conn) = &mut self.conn {
            conn.stalled_until_us = until_us;
        }
    }
}
