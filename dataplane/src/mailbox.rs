//! The mailboxes between shards: one bounded ring per ordered pair, batches one way, empty batches back
//! to their maker, so that what a shard allocates is freed or used again by that shard.
//! The shell builds all of them at start and hands each shard its [`Post`]; the broker uses it
//! through [`broker::surface::Mailboxes`].
//!
//! Always true: message batches leave [`reserved_of`] slots of a mailbox free for answers,
//! acknowledgements, interest and hand-overs; a shard never waits on a mailbox.

use broker::surface::{Batch, Mailboxes};
use contract::ids::ShardId;

use crate::lane::{Reader, Writer, lane};

/// Of a mailbox's slots one in this many is kept free for what is no message.
const RESERVED_ONE_IN: usize = 4;
/// A recycled batch that grew beyond this is freed instead: one burst must not pin its memory.
const RECYCLED_BYTES_MAX: usize = 256 * 1024;
/// Empty batches that may wait for their maker's next use; more are freed, one per batch made.
const SPARE_BATCHES: u64 = 4;

/// Slots of a mailbox with `slots` slots that message batches may not use.
pub(crate) const fn reserved_of(slots: usize) -> u64 {
    let reserved = slots / RESERVED_ONE_IN;
    if reserved == 0 { 1 } else { reserved as u64 }
}

/// Towards another shard.
struct Outgoing {
    mail: Writer<Batch>,
    returned: Reader<Batch>,
    /// Something was offered since the last [`Post::roused`].
    touched: bool,
}

/// From another shard.
struct Incoming {
    mail: Reader<Batch>,
    returns: Writer<Batch>,
}

/// All mailboxes of one shard.
pub struct Post {
    outgoing: Vec<Option<Outgoing>>,
    incoming: Vec<Option<Incoming>>,
    reserved: u64,
    touched: bool,
}

/// One [`Post`] per shard, connected in pairs, `slots` places per mailbox (rounded up to a power of two, at least 2).
pub(crate) fn posts(shards: u16, slots: usize) -> Vec<Post> {
    let slots = slots.max(2).next_power_of_two();
    let mut posts: Vec<Post> = (0..shards)
        .map(|_| Post {
            outgoing: (0..shards).map(|_| None).collect(),
            incoming: (0..shards).map(|_| None).collect(),
            reserved: reserved_of(slots),
            touched: false,
        })
        .collect();
    for from in 0..usize::from(shards) {
        for to in 0..usize::from(shards) {
            if from == to {
                continue;
            }
            let (mail, arriving) = lane(slots);
            // Room for every batch of a full mailbox and for those that its reader holds.
            let (returns, returned) = lane(2 * slots);
            posts[from].outgoing[to] = Some(Outgoing { mail, returned, touched: false });
            posts[to].incoming[from] = Some(Incoming { mail: arriving, returns });
        }
    }
    posts
}

impl Post {
    /// Whether a batch waits in any mailbox of this shard, as visible now.
    pub(crate) fn mail(&mut self) -> bool {
        self.incoming.iter_mut().flatten().any(|incoming| incoming.mail.tail() > incoming.mail.taken())
    }

    /// Calls `wake` once for each shard that was offered a batch since the last call.
    pub(crate) fn roused(&mut self, mut wake: impl FnMut(u16)) {
        if !std::mem::take(&mut self.touched) {
            return;
        }
        for (to, outgoing) in self.outgoing.iter_mut().enumerate() {
            if let Some(outgoing) = outgoing
                && std::mem::take(&mut outgoing.touched)
            {
                wake(to as u16);
            }
        }
    }

    fn incoming(&mut self, from: ShardId) -> Option<&mut Incoming> {
        self.incoming.get_mut(usize::from(from.0))?.as_mut()
    }

    fn outgoing(&mut self, to: ShardId) -> Option<&mut Outgoing> {
        self.outgoing.get_mut(usize::from(to.0))?.as_mut()
    }
}

impl Mailboxes for Post {
    fn tail(&mut self, from: ShardId) -> u64 {
        self.incoming(from).map_or(0, |incoming| incoming.mail.tail())
    }

    fn taken(&self, from: ShardId) -> u64 {
        let incoming = self.incoming.get(usize::from(from.0)).and_then(Option::as_ref);
        incoming.map_or(0, |incoming| incoming.mail.taken())
    }

    fn take(&mut self, from: ShardId) -> Option<Box<Batch>> {
        self.incoming(from)?.mail.pop()
    }

    fn give_back(&mut self, from: ShardId, mut batch: Box<Batch>) {
        batch.bytes.clear();
        batch.parcels.clear();
        if let Some(incoming) = self.incoming(from) {
            // A full way back only means that this batch is freed here.
            let _ = incoming.returns.push(batch, 0);
        }
    }

    fn blank(&mut self, to: ShardId) -> Box<Batch> {
        let Some(outgoing) = self.outgoing(to) else { return Box::default() };
        let recycled = outgoing.returned.pop();
        if outgoing.returned.tail() - outgoing.returned.taken() > SPARE_BATCHES {
            drop(outgoing.returned.pop());
        }
        recycled.filter(|batch| batch.bytes.capacity() <= RECYCLED_BYTES_MAX).unwrap_or_default()
    }

    fn offer(&mut self, to: ShardId, batch: Box<Batch>, reserved: bool) -> Result<(), Box<Batch>> {
        let keep_free = if reserved { 0 } else { self.reserved };
        let Some(outgoing) = self.outgoing(to) else { return Err(batch) };
        outgoing.mail.push(batch, keep_free)?;
        outgoing.touched = true;
        self.touched = true;
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const A: ShardId = ShardId(0);
    const B: ShardId = ShardId(1);

    fn batch(byte: u8) -> Box<Batch> {
        Box::new(Batch { bytes: vec![byte], parcels: Vec::new() })
    }

    fn pair(slots: usize) -> (Post, Post) {
        let mut posts = posts(2, slots);
        let b = posts.pop().expect("two posts");
        (posts.pop().expect("two posts"), b)
    }

    #[test]
    fn messages_may_not_use_the_slots_reserved_for_answers() {
        let (mut a, mut b) = pair(8);
        for n in 0..6 {
            assert!(a.offer(B, batch(n), false).is_ok(), "message {n} of 8 - 2 slots");
        }
        assert!(a.offer(B, batch(6), false).is_err());
        assert!(a.offer(B, batch(6), true).is_ok());
        assert!(a.offer(B, batch(7), true).is_ok());
        assert!(a.offer(B, batch(8), true).is_err());
        for n in 0..8 {
            assert_eq!(b.take(A).map(|batch| batch.bytes[0]), Some(n), "both kinds share one order");
        }
    }

    #[test]
    fn a_batch_returns_to_its_maker_and_is_used_again_without_allocating() {
        let (mut a, mut b) = pair(4);
        let mut first = a.blank(B);
        first.bytes.extend_from_slice(&[1; 100]);
        let place = std::ptr::from_ref(&*first);
        assert!(a.offer(B, first, false).is_ok());
        let read = b.take(A).expect("the batch is visible");
        b.give_back(A, read);
        let second = a.blank(B);
        assert!(std::ptr::eq(place, &*second));
        assert!(second.bytes.is_empty() && second.bytes.capacity() >= 100);
    }

    #[test]
    fn a_batch_that_grew_too_large_is_not_kept() {
        let (mut a, mut b) = pair(4);
        let mut large = a.blank(B);
        large.bytes.reserve(RECYCLED_BYTES_MAX + 1);
        assert!(a.offer(B, large, false).is_ok());
        let read = b.take(A).expect("the batch is visible");
        b.give_back(A, read);
        assert_eq!(a.blank(B).bytes.capacity(), 0);
    }

    #[test]
    fn spare_batches_shrink_to_their_bound_while_new_ones_are_made() {
        let (mut a, mut b) = pair(64);
        for n in 0..32 {
            assert!(a.offer(B, batch(n), false).is_ok());
        }
        while let Some(read) = b.take(A) {
            b.give_back(A, read);
        }
        for _ in 0..32 {
            let blank = a.blank(B);
            assert!(a.offer(B, blank, false).is_ok());
            let read = b.take(A).expect("the batch is visible");
            b.give_back(A, read);
        }
        let returned = &mut a.outgoing(B).expect("a mailbox to B").returned;
        assert!(returned.tail() - returned.taken() <= SPARE_BATCHES + 1);
    }

    #[test]
    fn each_target_is_roused_once_per_turn() {
        let mut posts = posts(3, 8);
        let mut roused = Vec::new();
        for to in [1, 1, 2] {
            assert!(posts[0].offer(ShardId(to), batch(0), false).is_ok());
        }
        posts[0].roused(|to| roused.push(to));
        posts[0].roused(|to| roused.push(to));
        assert_eq!(roused, [1, 2]);
        assert!(posts[1].mail() && posts[2].mail() && !posts[0].mail());
    }

    #[test]
    fn a_batch_for_a_shard_that_does_not_exist_comes_back() {
        let (mut a, _b) = pair(4);
        assert!(a.offer(ShardId(7), batch(1), true).is_err());
        assert!(a.offer(A, batch(1), true).is_err());
        assert!(a.take(ShardId(7)).is_none());
    }
}
