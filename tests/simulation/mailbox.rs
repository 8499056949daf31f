//! The mailboxes of one cluster in memory. A batch becomes visible to a reading turn at a random point of
//! that turn's duration, never before it was pushed, and never against causality: what a shard could have
//! heard of is visible when it looks again, as with the release and acquire of the real ring.

use std::collections::VecDeque;

use broker::{
    frame::{self, Kind},
    surface::{Batch, Mailboxes},
};
use contract::ids::ShardId;

use crate::rng::Rng;

/// One bounded FIFO between two shards.
#[derive(Default)]
struct Ring {
    slots: VecDeque<(u64, Box<Batch>)>,
    taken: u64,
    #[expect(clippy::vec_box, reason = "the surface hands boxed batches around")]
    returned: Vec<Box<Batch>>,
}

/// All mailboxes of a cluster.
pub struct Grid {
    rings: Vec<Ring>,
    shards: usize,
    message_slots: usize,
    reserved_slots: usize,
}

impl Grid {
    /// Empty mailboxes between `shards` shards.
    pub fn new(shards: usize, message_slots: usize, reserved_slots: usize) -> Grid {
        let rings = (0..shards * shards).map(|_| Ring::default()).collect();
        Grid { rings, shards, message_slots, reserved_slots }
    }

    /// Does anything wait for this shard?
    pub fn waits_for(&self, shard: usize) -> bool {
        (0..self.shards).any(|from| !self.rings[from * self.shards + shard].slots.is_empty())
    }

    /// No batch is anywhere.
    pub fn is_empty(&self) -> bool {
        self.rings.iter().all(|ring| ring.slots.is_empty())
    }

    /// Does a batch that nobody has read contain these bytes?
    pub fn carries(&self, bytes: &[u8]) -> bool {
        let mut batches = self.rings.iter().flat_map(|ring| &ring.slots);
        batches.any(|(_, batch)| batch.bytes.windows(bytes.len()).any(|window| window == bytes))
    }

    /// What one turn of `shard`, which lasts from `start_us` to `end_us`, sees of it.
    pub fn view<'a>(
        &'a mut self,
        shard: usize,
        (start_us, end_us): (u64, u64),
        rng: &'a mut Rng,
        tracing: bool,
    ) -> View<'a> {
        View { grid: self, me: shard, seen_us: start_us, end_us, rng, offered: Vec::new(), tracing }
    }
}

/// The mailboxes as one turn sees them.
pub struct View<'a> {
    grid: &'a mut Grid,
    me: usize,
    seen_us: u64,
    end_us: u64,
    rng: &'a mut Rng,
    /// Shards that were sent something.
    pub offered: Vec<usize>,
    tracing: bool,
}

/// The frames of a batch, for the trace.
fn told(batch: &Batch) -> String {
    let mut lines = Vec::new();
    let mut rest = &batch.bytes[..];
    while let Ok((frame, tail)) = frame::split(rest) {
        rest = tail;
        let message = frame::read_message(&frame)
            .ok()
            .filter(|_| matches!(frame.kind, Kind::Message | Kind::GroupDelivery | Kind::GroupReturned));
        lines.push(match message {
            Some(read) => {
                let words = read.group_words().unwrap_or_default();
                let payload = String::from_utf8_lossy(read.message.payload);
                let number = payload.split(';').next().unwrap_or_default();
                format!("{:?} {number} on {} must {} words {words:?}", frame.kind, read.message.topic, read.must)
            }
            None => format!("{:?} {:?}", frame.kind, String::from_utf8_lossy(frame.body)),
        });
    }
    format!("{} parcels, {}", batch.parcels.len(), lines.join("; "))
}

impl View<'_> {
    fn incoming(&self, from: ShardId) -> usize {
        usize::from(from.0) * self.grid.shards + self.me
    }

    fn outgoing(&self, to: ShardId) -> usize {
        self.me * self.grid.shards + usize::from(to.0)
    }
}

impl Mailboxes for View<'_> {
    fn tail(&mut self, from: ShardId) -> u64 {
        // Time passes inside a turn; what is pushed meanwhile may be seen by this look or by a later one.
        match self.rng.below(4) {
            0 => {}
            1 => self.seen_us = self.end_us,
            _ => self.seen_us = self.rng.between(self.seen_us, self.end_us),
        }
        let ring = &self.grid.rings[self.incoming(from)];
        let visible = ring.slots.iter().take_while(|(at, _)| *at <= self.seen_us).count();
        ring.taken + visible as u64
    }

    fn taken(&self, from: ShardId) -> u64 {
        self.grid.rings[self.incoming(from)].taken
    }

    fn take(&mut self, from: ShardId) -> Option<Box<Batch>> {
        let at = self.incoming(from);
        let ring = &mut self.grid.rings[at];
        if ring.slots.front().is_none_or(|(pushed, _)| *pushed > self.seen_us) {
            return None;
        }
        ring.taken += 1;
        ring.slots.pop_front().map(|(_, batch)| batch)
    }

    fn give_back(&mut self, from: ShardId, batch: Box<Batch>) {
        let at = self.incoming(from);
        self.grid.rings[at].returned.push(batch);
    }

    fn blank(&mut self, to: ShardId) -> Box<Batch> {
        let at = self.outgoing(to);
        self.grid.rings[at].returned.pop().unwrap_or_default()
    }

    fn offer(&mut self, to: ShardId, batch: Box<Batch>, reserved: bool) -> Result<(), Box<Batch>> {
        let room = self.grid.message_slots + if reserved { self.grid.reserved_slots } else { 0 };
        let at = self.outgoing(to);
        let ring = &mut self.grid.rings[at];
        if ring.slots.len() >= room {
            return Err(batch);
        }
        if self.tracing {
            println!("{:>12} mail {} -> {}: {}", self.end_us, self.me, to.0, told(&batch));
        }
        ring.slots.push_back((self.end_us, batch));
        let to = usize::from(to.0);
        if !self.offered.contains(&to) {
            self.offered.push(to);
        }
        Ok(())
    }
}
