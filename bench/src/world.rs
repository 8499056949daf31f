//! One node's shards without sockets: inputs go in as bytes, outputs are taken out as bytes, batches move
//! between the shards at once. What the broker benches drive; a client here is a connection index.

use std::{any::Any, collections::VecDeque, net::SocketAddr};

use broker::{
    Settings, Shard,
    event::Event,
    surface::{Batch, ConnId, DialId, Input, Mailboxes, Output, Parked},
};
use contract::{
    config::{Config, Durability, Mode},
    hash,
    ids::ShardId,
    time::Now,
};
use mqtt::{
    codec::{Connect, ConnectProperties, SubscribeEntry, encode},
    types::{PacketId, Qos, RetainHandling, Version},
};

/// The shards of one node and the mailboxes between them.
pub struct World {
    shards: Vec<Shard>,
    shells: Vec<Shell>,
    mail: Mail,
    now: Now,
    scratch: Vec<u8>,
}

/// A connection of the world: which shard it is at home on, and its identity there.
#[derive(Clone, Copy)]
pub struct Client {
    shard: usize,
    conn: ConnId,
}

#[derive(Default)]
struct Shell {
    dirty: Vec<ConnId>,
    next: u32,
}

impl Output for Shell {
    fn adopt(&mut self, _: Box<dyn Any + Send>) -> Option<ConnId> {
        None
    }
    fn ready(&mut self, _: ConnId) {}
    fn hand_over(&mut self, _: ConnId, _: ShardId, _: Parked) {
        unreachable!("clients connect to their home shard");
    }
    fn flush(&mut self, conn: ConnId) {
        self.dirty.push(conn);
    }
    fn close(&mut self, _: ConnId) {}
    fn read(&mut self, _: ConnId, _: bool) {}
    fn dial(&mut self, _: DialId, _: &str) {}
    fn event(&mut self, _: Event<'_>) {}
}

/// Mailboxes for one thread: a queue of batches and a stack of blank ones per ordered pair.
struct Mail {
    shards: usize,
    me: usize,
    queues: Vec<VecDeque<Box<Batch>>>,
    #[expect(clippy::vec_box, reason = "the surface hands boxed batches around, so that a mailbox entry is a pointer")]
    blanks: Vec<Vec<Box<Batch>>>,
    offered: Vec<u64>,
    taken: Vec<u64>,
}

impl Mail {
    fn new(shards: usize) -> Mail {
        let pairs = shards * shards;
        Mail {
            shards,
            me: 0,
            queues: (0..pairs).map(|_| VecDeque::new()).collect(),
            blanks: (0..pairs).map(|_| Vec::new()).collect(),
            offered: vec![0; pairs],
            taken: vec![0; pairs],
        }
    }

    fn inward(&self, from: ShardId) -> usize {
        usize::from(from.0) * self.shards + self.me
    }

    fn outward(&self, to: ShardId) -> usize {
        self.me * self.shards + usize::from(to.0)
    }
}

impl Mailboxes for Mail {
    fn tail(&mut self, from: ShardId) -> u64 {
        self.offered[self.inward(from)]
    }
    fn taken(&self, from: ShardId) -> u64 {
        self.taken[self.inward(from)]
    }
    fn take(&mut self, from: ShardId) -> Option<Box<Batch>> {
        let pair = self.inward(from);
        let batch = self.queues[pair].pop_front()?;
        self.taken[pair] += 1;
        Some(batch)
    }
    fn give_back(&mut self, from: ShardId, batch: Box<Batch>) {
        let pair = self.inward(from);
        self.blanks[pair].push(batch);
    }
    fn blank(&mut self, to: ShardId) -> Box<Batch> {
        let pair = self.outward(to);
        self.blanks[pair].pop().unwrap_or_default()
    }
    fn offer(&mut self, to: ShardId, batch: Box<Batch>, _: bool) -> Result<(), Box<Batch>> {
        let pair = self.outward(to);
        self.queues[pair].push_back(batch);
        self.offered[pair] += 1;
        Ok(())
    }
}

impl World {
    /// A node with that many shards and the default configuration, but no limit on subscriptions.
    pub fn new(shards: u16) -> World {
        let config = Config::default();
        let settings = |shard| {
            let mut mqtt = config.mqtt.clone();
            mqtt.subscriptions_max = u32::MAX;
            mqtt.inflight_max = 1000;
            Settings {
                shard: ShardId(shard),
                shards,
                node: "bench@127.0.0.1".into(),
                cluster: "bench".into(),
                incarnation: 1,
                mqtt,
                limits: config.limits.clone(),
                retainer: config.retainer.clone(),
                durability: Durability { mode: Mode::None, ..config.durability.clone() },
                links: Vec::new(),
                seed: 1,
                flapping_detect: Default::default(),
                listeners: Default::default(),
                plant: None,
            }
        };
        World {
            shards: (0..shards).map(|shard| Shard::new(settings(shard))).collect(),
            shells: (0..shards).map(|_| Shell::default()).collect(),
            mail: Mail::new(usize::from(shards)),
            now: Now { mono_us: 1_000_000, wall_ms: 1_700_000_000_000 },
            scratch: Vec::new(),
        }
    }

    /// Connects a client whose id is at home on `shard`.
    pub fn connect(&mut self, shard: u16, version: Version) -> Client {
        let shards = self.shards.len() as u16;
        let serial = self.shells[usize::from(shard)].next;
        let client_id = (0..)
            .map(|salt: u32| format!("client-{shard}-{serial}-{salt}"))
            .find(|id| hash::owner_shard(hash::partition_of_client(id), shards) == ShardId(shard))
            .expect("one of a few ids is at home there");
        let shell = &mut self.shells[usize::from(shard)];
        let conn = ConnId { index: shell.next, generation: 1 };
        shell.next += 1;
        let client = Client { shard: usize::from(shard), conn };
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        self.input(
            client.shard,
            Input::Accepted { conn, listener: 0, peer, certificate: None, since_us: self.now.mono_us },
        );
        let mut bytes = Vec::new();
        let connect = Connect {
            version,
            clean_start: true,
            keep_alive_s: 0,
            client_id: &client_id,
            username: None,
            password: None,
            will: None,
            properties: ConnectProperties::default(),
            bridge: false,
        };
        encode::connect(&mut bytes, &connect);
        self.send(client, &bytes);
        self.settle();
        client
    }

    /// Subscribes and waits for SUBACK.
    pub fn subscribe(&mut self, client: Client, version: Version, filter: &str, qos: Qos) {
        let mut bytes = Vec::new();
        let entry = SubscribeEntry {
            filter,
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::DoNotSend,
        };
        let packet = PacketId::new(1).expect("not zero");
        encode::subscribe(&mut bytes, version, packet, None, &[entry]);
        self.send(client, &bytes);
        self.settle();
    }

    /// Bytes from a client, without a turn.
    pub fn send(&mut self, client: Client, bytes: &[u8]) {
        self.input(client.shard, Input::Received { conn: client.conn, bytes });
    }

    /// One turn of one shard; returns the bytes that its connections had to send.
    pub fn turn(&mut self, shard: usize) -> usize {
        self.mail.me = shard;
        self.shards[shard].turn(self.now, &mut self.mail, &mut self.shells[shard]);
        self.flush(shard, |_, _| {})
    }

    /// Turns of all shards until nothing moves; returns the bytes sent.
    pub fn settle(&mut self) -> usize {
        let mut total = 0;
        loop {
            let before: u64 = self.mail.offered.iter().sum();
            total += (0..self.shards.len()).map(|shard| self.turn(shard)).sum::<usize>();
            let pending = self.mail.queues.iter().any(|queue| !queue.is_empty());
            if !pending && before == self.mail.offered.iter().sum::<u64>() {
                return total;
            }
        }
    }

    /// Takes the output of every connection of a shard and shows it to `each`.
    pub fn flush(&mut self, shard: usize, mut each: impl FnMut(Client, &[u8])) -> usize {
        let mut total = 0;
        let mut dirty = std::mem::take(&mut self.shells[shard].dirty);
        for conn in dirty.drain(..) {
            if let Some(out) = self.shards[shard].output(conn) {
                std::mem::swap(out, &mut self.scratch);
                total += self.scratch.len();
                each(Client { shard, conn }, &self.scratch);
                self.scratch.clear();
                // The buffer goes back, as the shell's send buffer does.
                std::mem::swap(out, &mut self.scratch);
            }
        }
        self.shells[shard].dirty = dirty;
        total
    }

    /// The shard itself, for its counters.
    pub fn shard(&self, shard: usize) -> &Shard {
        &self.shards[shard]
    }

    fn input(&mut self, shard: usize, input: Input<'_>) {
        self.shards[shard].input(self.now, input, &mut self.shells[shard]);
    }
}
