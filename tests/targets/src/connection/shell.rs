//! What a shard's shell keeps: who has which place in its table, what the shard asked for, and the mailboxes. Called by the
//! world only.

use std::{any::Any, collections::VecDeque};

use broker::{
    event::Event,
    surface::{Batch, ConnId, DialId, Mailboxes, Output, Parked},
};
use contract::ids::ShardId;

#[derive(Default)]
pub(super) struct Shell {
    /// Client and generation of each place.
    places: Vec<(Option<usize>, u32)>,
    pub(super) dirty: Vec<ConnId>,
    /// Dirty, and their clients do not read.
    pub(super) kept_dirty: Vec<ConnId>,
    pub(super) closing: Vec<ConnId>,
    pub(super) moving: Vec<(ConnId, ShardId, Parked)>,
    pub(super) adopted: Vec<(ConnId, usize)>,
    pub(super) read: Vec<(ConnId, bool)>,
}

impl Shell {
    /// A place for a client's connection.
    pub(super) fn occupy(&mut self, client: usize) -> ConnId {
        let free = self.places.iter().position(|(tenant, _)| tenant.is_none());
        let at = free.unwrap_or_else(|| {
            self.places.push((None, 0));
            self.places.len() - 1
        });
        let (tenant, generation) = &mut self.places[at];
        (*tenant, *generation) = (Some(client), *generation + 1);
        ConnId { index: at as u32, generation: *generation }
    }

    pub(super) fn tenant(&self, conn: ConnId) -> Option<usize> {
        self.places.get(conn.index as usize).filter(|(_, generation)| *generation == conn.generation)?.0
    }

    /// Gives a place back; returns whose it was.
    pub(super) fn vacate(&mut self, conn: ConnId) -> usize {
        self.places[conn.index as usize].0.take().expect("somebody is there")
    }
}

impl Output for Shell {
    fn adopt(&mut self, transport: Box<dyn Any + Send>) -> Option<ConnId> {
        let client = *transport.downcast::<usize>().expect("only clients travel");
        let conn = self.occupy(client);
        self.adopted.push((conn, client));
        Some(conn)
    }
    fn ready(&mut self, _: ConnId) {}
    fn hand_over(&mut self, conn: ConnId, to: ShardId, parked: Parked) {
        self.moving.push((conn, to, parked));
    }
    fn flush(&mut self, conn: ConnId) {
        self.dirty.push(conn);
    }
    fn close(&mut self, conn: ConnId) {
        self.closing.push(conn);
    }
    fn read(&mut self, conn: ConnId, on: bool) {
        self.read.push((conn, on));
    }
    fn dial(&mut self, _: DialId, _: &str) {}
    fn event(&mut self, _: Event<'_>) {}
}

pub(super) struct Mail {
    shards: usize,
    /// Whose turn it is.
    pub(super) me: usize,
    /// Message batches that one mailbox takes.
    pub(super) slots_max: usize,
    queues: Vec<VecDeque<Box<Batch>>>,
    offered: Vec<u64>,
    taken: Vec<u64>,
    /// Batches put in and taken out so far.
    pub(super) moved: u64,
}

impl Mail {
    pub(super) fn new(shards: usize, slots_max: usize) -> Mail {
        let pairs = shards * shards;
        let queues = (0..pairs).map(|_| VecDeque::new()).collect();
        Mail { shards, me: 0, slots_max, queues, offered: vec![0; pairs], taken: vec![0; pairs], moved: 0 }
    }
}

impl Mailboxes for Mail {
    fn tail(&mut self, from: ShardId) -> u64 {
        self.offered[from.index() * self.shards + self.me]
    }
    fn taken(&self, from: ShardId) -> u64 {
        self.taken[from.index() * self.shards + self.me]
    }
    fn take(&mut self, from: ShardId) -> Option<Box<Batch>> {
        let pair = from.index() * self.shards + self.me;
        let batch = self.queues[pair].pop_front()?;
        self.taken[pair] += 1;
        self.moved += 1;
        Some(batch)
    }
    fn give_back(&mut self, _: ShardId, _: Box<Batch>) {}
    fn blank(&mut self, _: ShardId) -> Box<Batch> {
        Box::default()
    }
    fn offer(&mut self, to: ShardId, batch: Box<Batch>, reserved: bool) -> Result<(), Box<Batch>> {
        let pair = self.me * self.shards + to.index();
        if self.queues[pair].len() >= self.slots_max.saturating_mul(1 + usize::from(reserved)) {
            return Err(batch);
        }
        self.queues[pair].push_back(batch);
        self.offered[pair] += 1;
        self.moved += 1;
        Ok(())
    }
}
