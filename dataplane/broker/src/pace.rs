//! How fast one client may publish (`mqtt.messages_rate`, `mqtt.bytes_rate`): nothing is shed, it is not read for a
//! while. Lives with the connection, on its home shard; packets.rs charges every PUBLISH before it is handled.
//! Always true: what a client publishes in any time is at most its rates over that time, one second's worth and one
//! packet more.

use alloc::boxed::Box;

use contract::config::Mqtt;

use crate::{
    Shard, Timer,
    conn::pause,
    counters::Counter,
    surface::{ConnId, Output},
};

const SECOND_NS: u64 = 1_000_000_000;

/// When everything that a client has published would have been published at its rates, monotonic nanoseconds.
#[derive(Clone, Copy, Default)]
pub(crate) struct Pace {
    messages_ns: u64,
    bytes_ns: u64,
}

/// Rates of every client, in units per second; 0: as it likes.
#[derive(Clone, Copy)]
pub(crate) struct Rates {
    messages: u32,
    bytes: u64,
}

impl From<&Mqtt> for Rates {
    fn from(mqtt: &Mqtt) -> Rates {
        Rates { messages: mqtt.messages_rate, bytes: mqtt.bytes_rate }
    }
}

impl Rates {
    /// Is there any?
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.messages != 0 || self.bytes != 0
    }
}

impl Pace {
    /// One more message of so many bytes. Gives the time, monotonic microseconds, until which it was too fast.
    fn charge(&mut self, now_us: u64, bytes: usize, rates: &Rates) -> Option<u64> {
        let now_ns = now_us.saturating_mul(1000);
        let step = |due_ns: &mut u64, units: u64, rate: u64| {
            if rate != 0 {
                let cost_ns = (u128::from(units) * u128::from(SECOND_NS) / u128::from(rate)) as u64;
                *due_ns = (*due_ns).max(now_ns).saturating_add(cost_ns);
            }
            due_ns.saturating_sub(SECOND_NS)
        };
        let messages_ns = step(&mut self.messages_ns, 1, u64::from(rates.messages));
        let until_ns = messages_ns.max(step(&mut self.bytes_ns, bytes as u64, rates.bytes));
        (until_ns > now_ns).then_some(until_ns.div_ceil(1000))
    }
}

impl Shard {
    /// A client publishes `bytes`: afterwards it is not read until it may publish again. Remotes of links are, since
    /// theirs are the messages of many.
    #[cold]
    pub(crate) fn pace(&mut self, id: ConnId, bytes: usize, out: &mut impl Output) {
        let now_us = self.now.mono_us;
        let rates = self.rates;
        let Some(open) = self.conns.open(id).filter(|open| open.link.links == 0) else { return };
        let pace = open.pace.get_or_insert_with(Box::default);
        if let Some(until_us) = pace.charge(now_us, bytes, &rates) {
            self.counters.one(Counter::publishers_paced);
            self.pause(id, pause::RATE, out);
            self.wheel.arm(until_us, Timer::Pace(id));
        }
    }

    /// A client that was too fast may publish again.
    pub(crate) fn pace_timer(&mut self, id: ConnId, out: &mut impl Output) {
        self.resume(id, pause::RATE, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_may_be_used_up_at_once_and_then_the_rate_holds() {
        let rates = Rates { messages: 10, bytes: 0 };
        let mut pace = Pace::default();
        let start_us = 5_000_000;
        for _ in 0..10 {
            assert_eq!(pace.charge(start_us, 1 << 20, &rates), None);
        }
        assert_eq!(pace.charge(start_us, 1, &rates), Some(start_us + 100_000), "the eleventh waits for its tenth");
        assert_eq!(pace.charge(start_us + 100_000, 1, &rates), Some(start_us + 200_000));
        assert_eq!(pace.charge(start_us + 60_000_000, 1, &rates), None, "what was not used is not saved up");
    }

    #[test]
    fn a_packet_larger_than_the_rate_is_taken_and_paid_for() {
        let rates = Rates { messages: 0, bytes: 1000 };
        let mut pace = Pace::default();
        assert_eq!(pace.charge(1_000_000, 5000, &rates), Some(5_000_000));
    }
}
