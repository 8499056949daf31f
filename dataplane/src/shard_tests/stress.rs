//! Would a lost wake-up be noticed? Shards that have nothing to do but pass tokens sleep in their rings between two
//! hops; nothing but the wake of the other shard can end that sleep, so one lost wake ends the test.

use std::{sync::mpsc, time::Instant};

use broker::surface::{ConnId, Input, Mailboxes, Output, Turned};
use contract::{ids::ShardId, time::Now};

use super::bench::{BOUND, Bench, Plan};
use crate::{port::Board, shard::Brain};

/// Passes tokens on to the next shard after a random time to think.
struct Passer {
    me: u16,
    shards: u16,
    /// Tokens that this shard puts into circulation.
    tokens: u32,
    hops_left: u64,
    /// Turns to stay awake before falling asleep.
    restless: u64,
    random: u64,
    done: Option<mpsc::Sender<()>>,
}

impl Passer {
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 8
    }

    /// Thinks for a random time before it passes the token on, and stays awake for a random time afterwards: so
    /// tokens arrive at every point of the way from the last look into the mailbox to the sleep.
    fn think(&mut self) {
        let spins = if self.random() & 3 == 0 { 0 } else { self.random() & 0xff };
        for _ in 0..spins {
            std::hint::spin_loop();
        }
        self.restless = if self.random() & 3 == 0 { 0 } else { self.random() & 0x3f };
    }

    fn pass(&mut self, mail: &mut impl Mailboxes) {
        let to = ShardId((self.me + 1) % self.shards);
        let mut batch = mail.blank(to);
        batch.bytes.push(1);
        assert!(mail.offer(to, batch, false).is_ok(), "there are fewer tokens than slots");
    }
}

impl Brain for Passer {
    fn input(&mut self, _: Now, _: Input<'_>, _: &mut impl Output) {}

    fn turn(&mut self, _: Now, mail: &mut impl Mailboxes, _: &mut impl Output) -> Turned {
        for _ in 0..std::mem::take(&mut self.tokens) {
            self.pass(mail);
        }
        let me = self.me;
        for from in (0..self.shards).filter(|from| *from != me).map(ShardId) {
            while let Some(batch) = mail.take(from) {
                mail.give_back(from, batch);
                self.hops_left = self.hops_left.saturating_sub(1);
                if self.hops_left == 0 {
                    self.done.take().map(|done| done.send(()));
                }
                self.think();
                self.pass(mail);
            }
        }
        let busy = self.restless > 0;
        self.restless = self.restless.saturating_sub(1);
        Turned { busy, deadline_us: u64::MAX }
    }

    fn output(&mut self, _: ConnId) -> Option<&mut Vec<u8>> {
        None
    }

    fn report(&mut self, _: &Board) {}
}

fn pass_around(shards: u16, tokens: u32, hops: u64) {
    let (done, finished) = mpsc::channel();
    // A shard that wakes up to write its numbers would find the mail that nobody woke it for.
    let plan = Plan { shards, report_every_us: u64::MAX, ..Plan::default() };
    let started = Instant::now();
    let bench = Bench::start(&plan, |me| Passer {
        me,
        shards,
        tokens: if me == 0 { tokens } else { 0 },
        hops_left: hops / u64::from(shards),
        restless: 0,
        random: 0x9e37_79b9_7f4a_7c15 ^ u64::from(me),
        done: Some(done.clone()),
    });
    for _ in 0..shards {
        let left = BOUND.saturating_sub(started.elapsed());
        finished.recv_timeout(left).expect("every shard is woken for every token");
    }
    bench.stop();
}

#[test]
fn two_shards_that_sleep_between_hops_pass_one_token_200_000_times() {
    pass_around(2, 1, 200_000);
}

#[test]
fn three_shards_on_fewer_cores_pass_several_tokens_without_losing_a_wake() {
    pass_around(3, 4, 150_000);
}
