//! What leaves this shard for the others: frames gathered per destination, staged in order when a mailbox
//! is full, and published at the end of a turn. Owned by the shard; nothing here waits.
//!
//! Three classes share one FIFO mailbox per destination:
//! - **messages** use the slots that are not reserved; what does not fit stays staged in order;
//! - **answers** (acknowledgements, interest, members, hand-overs) may use the reserved slots, so two
//!   shards that are full towards each other go on;
//! - **answers after** (interest acknowledgements, retained pages) additionally wait until every message
//!   that was staged before them, for *any* destination, is published: a subscriber who has seen the
//!   answer can rely on what was published before it.

use alloc::{collections::VecDeque, vec::Vec};

use contract::ids::ShardId;

use crate::surface::{Batch, ConnId, Mailboxes, Parcel};

/// Outgoing frames of one shard.
pub(crate) struct Hops {
    lanes: Vec<Lane>,
    me: usize,
    /// Number of this turn; orders message batches and the answers that come after them.
    mark: u64,
    batch_bytes: usize,
    staged_bytes_max: usize,
    spare: Vec<Vec<u8>>,
    /// Message batches that found their mailbox full, since the last [`Hops::take_staged`].
    staged_count: u64,
    /// [`crate::plant::Plant::StagedOutOfOrder`].
    pub(crate) plant_newest_first: bool,
}

#[derive(Default)]
struct Lane {
    open: Vec<u8>,
    staged: VecDeque<(u64, Vec<u8>)>,
    staged_bytes: usize,
    answers: Vec<u8>,
    parcels: Vec<Parcel>,
    after: VecDeque<(u64, Vec<u8>)>,
    after_open: Vec<u8>,
    /// Connections whose publishes filled this lane: not read until it has drained.
    stalled: Vec<ConnId>,
}

/// Empty buffers kept for reuse.
const SPARE_MAX: usize = 16;

impl Hops {
    pub(crate) fn new(me: ShardId, shards: u16, batch_bytes: usize, staged_bytes_max: usize) -> Hops {
        Hops {
            lanes: (0..shards).map(|_| Lane::default()).collect(),
            me: usize::from(me.0),
            mark: 1,
            batch_bytes,
            staged_bytes_max,
            spare: Vec::new(),
            staged_count: 0,
            plant_newest_first: false,
        }
    }

    /// The buffer to append one message frame for `to` to. Call [`Hops::sealed`] after it.
    #[inline]
    pub(crate) fn message(&mut self, to: u16) -> &mut Vec<u8> {
        let lane = &mut self.lanes[usize::from(to)];
        if lane.open.len() >= self.batch_bytes {
            let fresh = self.spare.pop().unwrap_or_default();
            let full = core::mem::replace(&mut lane.open, fresh);
            lane.staged_bytes += full.len();
            lane.staged.push_back((self.mark, full));
        }
        &mut lane.open
    }

    /// True when what waits for `to` exceeds `limits.staged_bytes_max`: stop reading who filled it.
    #[inline]
    pub(crate) fn over(&self, to: u16) -> bool {
        let lane = &self.lanes[usize::from(to)];
        lane.staged_bytes + lane.open.len() > self.staged_bytes_max
    }

    /// Remembers that `conn` filled the lane to `to`.
    pub(crate) fn stall(&mut self, to: u16, conn: ConnId) {
        self.lanes[usize::from(to)].stalled.push(conn);
    }

    /// The buffer for an answer that may overtake messages.
    pub(crate) fn answer(&mut self, to: u16) -> &mut Vec<u8> {
        &mut self.lanes[usize::from(to)].answers
    }

    /// The buffer for an answer that comes after all messages staged so far, whatever their destination.
    pub(crate) fn answer_after(&mut self, to: u16) -> &mut Vec<u8> {
        &mut self.lanes[usize::from(to)].after_open
    }

    /// A connection for its home shard.
    pub(crate) fn parcel(&mut self, to: u16, parcel: Parcel) {
        self.lanes[usize::from(to)].parcels.push(parcel);
    }

    /// Publishes what fits. Connections whose lane has drained are moved to `resumed`.
    /// Returns true when something is left: look again soon.
    pub(crate) fn publish(&mut self, mail: &mut impl Mailboxes, resumed: &mut Vec<ConnId>) -> bool {
        let mark = self.mark;
        self.mark += 1;
        let (me, shards) = (self.me, self.lanes.len());
        let others = (0..shards).filter(move |to| *to != me);
        for to in others.clone() {
            self.publish_messages(to, mark, mail, resumed);
        }
        let oldest = self.lanes.iter().filter_map(|l| l.staged.front().map(|(m, _)| *m)).min();
        for to in others.clone() {
            self.publish_answers(to, mark, oldest.unwrap_or(u64::MAX), mail);
        }
        self.lanes.iter().any(|lane| {
            !lane.staged.is_empty() || !lane.after.is_empty() || !lane.answers.is_empty() || !lane.parcels.is_empty()
        })
    }

    /// Batches that had to wait since the last call, for the counter.
    pub(crate) fn take_staged(&mut self) -> u64 {
        core::mem::take(&mut self.staged_count)
    }

    /// Bytes of messages that wait for all destinations.
    pub(crate) fn staged_bytes(&self) -> usize {
        self.lanes.iter().map(|lane| lane.staged_bytes).sum()
    }

    fn publish_messages(&mut self, to: usize, mark: u64, mail: &mut impl Mailboxes, resumed: &mut Vec<ConnId>) {
        let shard = ShardId(to as u16);
        let lane = &mut self.lanes[to];
        if !lane.open.is_empty() {
            let fresh = self.spare.pop().unwrap_or_default();
            let open = core::mem::replace(&mut lane.open, fresh);
            lane.staged_bytes += open.len();
            lane.staged.push_back((mark, open));
        }
        if self.plant_newest_first && lane.staged.len() > 1 {
            lane.staged.rotate_right(1);
        }
        while let Some((batch_mark, bytes)) = lane.staged.pop_front() {
            let len = bytes.len();
            match offer(mail, shard, bytes, Vec::new(), false) {
                Ok(empty) => {
                    lane.staged_bytes -= len;
                    if self.spare.len() < SPARE_MAX {
                        self.spare.push(empty);
                    }
                }
                Err(batch) => {
                    self.staged_count += u64::from(batch_mark == mark);
                    lane.staged.push_front((batch_mark, batch.bytes));
                    break;
                }
            }
        }
        // Hysteresis: half of the limit, so that a connection is not switched on and off every turn.
        if lane.staged_bytes <= self.staged_bytes_max / 2 {
            resumed.append(&mut lane.stalled);
        }
    }

    fn publish_answers(&mut self, to: usize, mark: u64, oldest: u64, mail: &mut impl Mailboxes) {
        let shard = ShardId(to as u16);
        let lane = &mut self.lanes[to];
        if !lane.answers.is_empty() || !lane.parcels.is_empty() {
            let bytes = core::mem::take(&mut lane.answers);
            let parcels = core::mem::take(&mut lane.parcels);
            match offer(mail, shard, bytes, parcels, true) {
                Ok(empty) => lane.answers = empty,
                Err(batch) => {
                    lane.answers = batch.bytes;
                    lane.parcels = batch.parcels;
                }
            }
        }
        if !lane.after_open.is_empty() {
            lane.after.push_back((mark, core::mem::take(&mut lane.after_open)));
        }
        while let Some((after_mark, bytes)) = lane.after.pop_front() {
            if oldest <= after_mark {
                lane.after.push_front((after_mark, bytes));
                break;
            }
            if let Err(batch) = offer(mail, shard, bytes, Vec::new(), true) {
                lane.after.push_front((after_mark, batch.bytes));
                break;
            }
        }
    }
}

/// Puts bytes into a recycled batch and offers it; on success the batch's old, empty buffer comes back.
fn offer(
    mail: &mut impl Mailboxes,
    to: ShardId,
    bytes: Vec<u8>,
    parcels: Vec<Parcel>,
    reserved: bool,
) -> Result<Vec<u8>, Batch> {
    let mut batch = mail.blank(to);
    let mut empty = core::mem::replace(&mut batch.bytes, bytes);
    batch.parcels = parcels;
    match mail.offer(to, batch, reserved) {
        Ok(()) => {
            empty.clear();
            Ok(empty)
        }
        Err(batch) => Err(*batch),
    }
}

#[cfg(test)]
mod tests {
    use alloc::{boxed::Box, vec};

    use super::*;

    /// Mailboxes of a fixed size that nobody empties.
    struct Slots {
        free: usize,
        reserved: usize,
        got: Vec<(u16, Vec<u8>)>,
    }

    impl Mailboxes for Slots {
        fn tail(&mut self, _: ShardId) -> u64 {
            0
        }
        fn taken(&self, _: ShardId) -> u64 {
            0
        }
        fn take(&mut self, _: ShardId) -> Option<Box<Batch>> {
            None
        }
        fn give_back(&mut self, _: ShardId, _: Box<Batch>) {}
        fn blank(&mut self, _: ShardId) -> Box<Batch> {
            Box::default()
        }
        fn offer(&mut self, to: ShardId, batch: Box<Batch>, reserved: bool) -> Result<(), Box<Batch>> {
            if self.free > if reserved { 0 } else { self.reserved } {
                self.free -= 1;
                self.got.push((to.0, batch.bytes));
                return Ok(());
            }
            Err(batch)
        }
    }

    #[test]
    fn answers_pass_a_full_mailbox_but_answers_after_wait_for_every_staged_message() {
        let mut hops = Hops::new(ShardId(0), 3, 4, 100);
        let mut mail = Slots { free: 2, reserved: 1, got: vec![] };
        hops.message(1).extend_from_slice(b"m1__");
        hops.message(1).extend_from_slice(b"m2__");
        hops.answer_after(2).extend_from_slice(b"after");
        hops.answer(2).extend_from_slice(b"answer");
        let mut resumed = vec![];
        assert!(hops.publish(&mut mail, &mut resumed));
        assert_eq!(mail.got, [(1, b"m1__".to_vec()), (2, b"answer".to_vec())]);
        mail.free = 3;
        assert!(!hops.publish(&mut mail, &mut resumed));
        assert_eq!(mail.got[2..], [(1, b"m2__".to_vec()), (2, b"after".to_vec())]);
    }

    #[test]
    fn a_lane_that_drained_resumes_the_connections_that_filled_it() {
        let mut hops = Hops::new(ShardId(0), 2, 4, 8);
        let mut mail = Slots { free: 0, reserved: 0, got: vec![] };
        let conn = ConnId { index: 1, generation: 1 };
        for _ in 0..3 {
            hops.message(1).extend_from_slice(b"mmmm");
        }
        assert!(hops.over(1));
        hops.stall(1, conn);
        let mut resumed = vec![];
        hops.publish(&mut mail, &mut resumed);
        assert!(resumed.is_empty());
        mail.free = 3;
        hops.publish(&mut mail, &mut resumed);
        assert_eq!(resumed, [conn]);
    }
}
