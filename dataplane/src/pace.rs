//! How fast connections may come in at a listener: a rate, and how many may come at once. Shared by all shards, which take
//! their turns from one clock: the next free moment is one number. Always true: moments are given in the order in
//! which they are asked for, and none is further away than [`WAIT_MAX_US`].

use std::sync::atomic::{AtomicU64, Ordering};

use contract::config::Listener;

/// A connection that would have to wait for longer is not let in at all: its client has given up by then.
pub(crate) const WAIT_MAX_US: u64 = 5_000_000;
/// What the configuration calls `infinity`.
const NO_RATE: u32 = u32::MAX;

/// When a connection may come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Moment {
    Now,
    /// Monotonic microseconds.
    At(u64),
    Never,
}

/// When one more may come, and when the one behind it is due, at one per `interval_ns` and up to `credit_ns` ahead of its time
/// (the generic cell rate algorithm). `next_ns` is what was due before.
pub(crate) fn turn(next_ns: u64, now_ns: u64, (interval_ns, credit_ns): (u64, u64)) -> (u64, u64) {
    let due_ns = next_ns.max(now_ns);
    (due_ns.saturating_sub(credit_ns).max(now_ns), due_ns.saturating_add(interval_ns))
}

/// The interval of a rate, and the credit with which `burst` may come at once.
pub(crate) fn rhythm(rate: u32, burst: u32) -> (u64, u64) {
    let interval_ns = 1_000_000_000 / u64::from(rate.max(1));
    (interval_ns, interval_ns * u64::from(burst.max(1) - 1))
}

/// The pace of a listener, in nanoseconds. An interval of 0 is no limit.
#[derive(Default)]
pub(crate) struct Pace {
    interval_ns: AtomicU64,
    /// What may come ahead of its time.
    credit_ns: AtomicU64,
    /// When the next connection is due, if they come as fast as they may.
    next_ns: AtomicU64,
}

impl Pace {
    /// Follows the configuration. What has a moment already keeps it.
    pub(crate) fn set(&self, listener: &Listener) {
        let (rate, burst) = (listener.max_conn_rate, listener.max_conn_burst);
        let burst = if burst == 0 { rate } else { burst };
        let (interval_ns, credit_ns) = if rate == NO_RATE { (0, 0) } else { rhythm(rate, burst) };
        self.credit_ns.store(credit_ns, Ordering::Relaxed);
        self.interval_ns.store(interval_ns, Ordering::Relaxed);
    }

    /// The moment of one more connection.
    pub(crate) fn moment(&self, now_us: u64) -> Moment {
        let interval_ns = self.interval_ns.load(Ordering::Relaxed);
        if interval_ns == 0 {
            return Moment::Now;
        }
        let (now_ns, credit_ns) = (now_us * 1000, self.credit_ns.load(Ordering::Relaxed));
        let mut moment_ns = now_ns;
        let taken = self.next_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next_ns| {
            let (moment, behind_ns) = turn(next_ns, now_ns, (interval_ns, credit_ns));
            moment_ns = moment;
            (moment_ns - now_ns <= WAIT_MAX_US * 1000).then_some(behind_ns)
        });
        match taken {
            Err(_) => Moment::Never,
            Ok(_) if moment_ns == now_ns => Moment::Now,
            Ok(_) => Moment::At(moment_ns.div_ceil(1000)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(rate: u32, burst: u32) -> Pace {
        let mut listener = contract::config::Config::default().listeners.remove(0);
        (listener.max_conn_rate, listener.max_conn_burst) = (rate, burst);
        let pace = Pace::default();
        pace.set(&listener);
        pace
    }

    #[test]
    fn without_a_rate_everybody_comes_at_once() {
        let pace = pace(NO_RATE, 0);
        assert!((0..1000).all(|_| pace.moment(1) == Moment::Now));
    }

    #[test]
    fn a_burst_comes_at_once_and_the_others_one_by_one() {
        let pace = pace(10, 3);
        let now_us = 1_000_000;
        let moments: Vec<Moment> = (0..5).map(|_| pace.moment(now_us)).collect();
        let (first, second) = (Moment::At(now_us + 100_000), Moment::At(now_us + 200_000));
        assert_eq!(moments, [Moment::Now, Moment::Now, Moment::Now, first, second]);
        let later_us = now_us + 10_000_000;
        assert!((0..3).all(|_| pace.moment(later_us) == Moment::Now), "a quiet time fills it up again");
        assert_ne!(pace.moment(later_us), Moment::Now);
    }

    #[test]
    fn who_would_wait_for_too_long_is_not_let_in_and_costs_the_others_nothing() {
        let pace = pace(10, 1);
        assert_eq!(pace.moment(1_000_000), Moment::Now);
        let waiting = (0..50).filter(|_| matches!(pace.moment(1_000_000), Moment::At(_))).count();
        assert_eq!(waiting, 50, "five seconds of ten per second");
        assert!((0..1000).all(|_| pace.moment(1_000_000) == Moment::Never));
        assert_eq!(pace.moment(1_200_000), Moment::At(6_100_000));
    }
}
