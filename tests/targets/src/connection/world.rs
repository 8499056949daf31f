//! Two shards, their mailboxes, a log that confirms when told, and the clients: the shell of the broker in one thread.
//! What the surface promises of a shell holds here. Always true: bytes are given in order, and none while reading is off.

use broker::{
    Gauges, Settings, Shard,
    journal::{Image, JournalBatch, deal},
    surface::{Cause, ConnId, Input},
};
use contract::{
    config::{Config, Durability, Mode},
    ids::ShardId,
    time::Now,
};

use super::{
    client::Client,
    script::{CLIENTS, Step},
    shell::{Mail, Shell},
};

const SHARDS: usize = 2;
/// Rounds of turns after which shards that still move will never rest.
const ROUNDS_MAX: usize = 10_000;
const OUTPUT_BYTES_MAX: u32 = 4096;
const QUEUED_MAX: u32 = 6;
const RETAINED_MAX: u32 = 6;
/// What may come on top of the output's bound: answers to one packet, and the packet that crossed the bound.
const OUTPUT_SLACK_BYTES: usize = 16 << 10;
/// Client ids of scripts: those named, and a new one for each empty one.
const SESSIONS_MAX: u64 = 400;
/// Longer than whatever may outlive its connection here.
const FOREVER_MS: u64 = 40 * 86_400_000;

/// The node of one script.
pub(super) struct World {
    shards: Vec<Shard>,
    shells: Vec<Shell>,
    mail: Mail,
    now: Now,
    clients: Vec<Client>,
    /// What each log was given and has not confirmed.
    unkept: Vec<Vec<JournalBatch>>,
}

impl World {
    /// A node: bit 0 of `head`: it keeps a log; bits 1 and 2: room in its mailboxes.
    pub(super) fn new(head: u8) -> World {
        let mode = if head & 1 == 1 { Mode::Os } else { Mode::None };
        let shards: Vec<Shard> = (0..SHARDS as u16).map(|shard| Shard::new(settings(shard, mode))).collect();
        World {
            shards,
            shells: (0..SHARDS).map(|_| Shell::default()).collect(),
            mail: Mail::new(SHARDS, [usize::MAX, 1, 2, 8][usize::from(head >> 1) % 4]),
            now: Now { mono_us: 1_000_000, wall_ms: 1_700_000_000_000 },
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            unkept: (0..SHARDS).map(|_| Vec::new()).collect(),
        }
    }

    /// A node that comes back with what one of `logs` logs held; the others were empty.
    pub(super) fn restored(image: Image, logs: u16) -> World {
        let mut world = World::new(1);
        let images = std::iter::once(image).chain((1..logs).map(|_| Image::new(1))).collect();
        for (shard, dealt) in deal(images, SHARDS as u16).into_iter().enumerate() {
            world.shards[shard].restore(world.now, dealt, &mut world.shells[shard]);
            world.logged(shard, 0);
        }
        world.rest();
        for shard in 0..SHARDS {
            world.input(shard, Input::Replay);
        }
        world.rest();
        world
    }

    /// Everything that is kept comes to its end.
    pub(super) fn outlive(mut self) {
        for _ in 0..3 {
            self.pass(FOREVER_MS);
            self.rest();
        }
    }

    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Arrive(client) => self.arrive(client),
            Step::Send(client, bytes) => {
                self.clients[client].sends(&bytes);
                self.give(client);
            }
            Step::Answer(client) => {
                let answers = self.clients[client].answers();
                self.clients[client].sends(&answers);
                self.give(client);
            }
            Step::Deafen(client) => {
                self.clients[client].deaf ^= true;
                self.read(client);
            }
            Step::Leave(client, broken) => self.leave(client, if broken { Cause::Error } else { Cause::Eof }),
            Step::Pass(ms) => {
                self.pass(ms);
                self.settle();
            }
            Step::Turn(shard) => {
                self.turn(shard);
            }
            Step::Settle => self.settle(),
            Step::Keep => self.keep(),
            Step::System => {
                self.input(0, Input::System { topic: "$SYS/x", text: "1", lasting: true });
            }
        }
    }

    /// Whatever clients do, what they make the node hold is bounded.
    pub(super) fn is_within_bounds(&self) {
        for shard in &self.shards {
            let gauges = shard.gauges();
            assert!(gauges.connections <= CLIENTS as u64, "{gauges:?}");
            assert!(gauges.sessions <= SESSIONS_MAX, "{gauges:?}");
            assert!(shard.queued() <= gauges.sessions * u64::from(QUEUED_MAX), "{gauges:?}");
            assert!(gauges.retained <= u64::from(RETAINED_MAX) + 1, "{gauges:?}");
        }
    }

    /// Everybody leaves, everything passes; then nothing may be left but retained values.
    pub(super) fn end(mut self) {
        self.mail.slots_max = usize::MAX;
        for client in 0..CLIENTS {
            self.clients[client].deaf = false;
            self.read(client);
        }
        self.rest();
        for client in 0..CLIENTS {
            self.leave(client, Cause::Eof);
        }
        self.rest();
        // Step by step: what one deadline brings may have another.
        for _ in 0..2 {
            self.pass(60_000);
            self.rest();
            self.pass(FOREVER_MS);
            self.rest();
        }
        for shard in &self.shards {
            let left = shard.gauges();
            assert_eq!(left.stored, left.retained, "nothing else is kept");
            let gauges = Gauges { retained: 0, stored: 0, stored_bytes: 0, ..left };
            assert_eq!((gauges, shard.queued()), (Gauges::default(), 0), "everybody has left");
        }
    }

    /// Until nothing moves, with a log that confirms.
    fn rest(&mut self) {
        self.settle();
        for _ in 0..ROUNDS_MAX {
            if self.unkept.iter().all(Vec::is_empty) {
                return;
            }
            self.keep();
            self.settle();
        }
        panic!("the log does not come to rest");
    }

    fn pass(&mut self, ms: u64) {
        self.now = Now { mono_us: self.now.mono_us + ms * 1000, wall_ms: self.now.wall_ms + ms };
    }

    fn arrive(&mut self, client: usize) {
        if self.clients[client].transport {
            return;
        }
        let conn = self.shells[0].occupy(client);
        self.clients[client] = Client::at(0, conn);
        let since_us = self.now.mono_us;
        let peer = ([192, 0, 2, 1], 1).into();
        self.input(0, Input::Accepted { conn, listener: 0, peer, certificate: None, since_us });
    }

    fn leave(&mut self, client: usize, cause: Cause) {
        match self.clients[client].place {
            Some((shard, conn)) => self.gone(shard, conn, cause),
            // On its way between shards: it is told there.
            None => self.clients[client].ending = self.clients[client].transport.then_some(cause),
        }
    }

    fn gone(&mut self, shard: usize, conn: ConnId, cause: Cause) {
        let client = self.shells[shard].vacate(conn);
        self.clients[client] = Client::default();
        self.input(shard, Input::Closed { conn, cause });
    }

    /// Hands over what a client has sent, while it is read.
    fn give(&mut self, client: usize) {
        let Some((shard, conn)) = self.clients[client].place else { return };
        if self.clients[client].reading {
            let bytes = std::mem::take(&mut self.clients[client].unsent);
            if !bytes.is_empty() {
                self.input(shard, Input::Received { conn, bytes: &bytes });
            }
        }
    }

    fn input(&mut self, shard: usize, input: Input<'_>) {
        self.shards[shard].input(self.now, input, &mut self.shells[shard]);
        self.settle_shell(shard);
    }

    /// Carries out what a shard has said: reading, hand-overs, output, ends.
    fn settle_shell(&mut self, shard: usize) -> bool {
        let mut moved = false;
        let adopted = std::mem::take(&mut self.shells[shard].adopted);
        for &(conn, client) in &adopted {
            self.clients[client].place = Some((shard, conn));
        }
        // When all have their places: who goes may take others along.
        for (conn, client) in adopted {
            if let Some(cause) = self.clients[client].ending
                && self.shells[shard].tenant(conn) == Some(client)
            {
                self.gone(shard, conn, cause);
            }
        }
        for (conn, on) in std::mem::take(&mut self.shells[shard].read) {
            if let Some(client) = self.shells[shard].tenant(conn) {
                self.clients[client].reading = on;
            }
        }
        for (conn, to, parked) in std::mem::take(&mut self.shells[shard].moving) {
            let Some(client) = self.shells[shard].tenant(conn) else { continue };
            self.shells[shard].vacate(conn);
            self.clients[client].place = None;
            self.input(shard, Input::Detached { transport: Box::new(client), to, parked });
            moved = true;
        }
        let closing = std::mem::take(&mut self.shells[shard].closing);
        for conn in std::mem::take(&mut self.shells[shard].dirty).into_iter().chain(closing.iter().copied()) {
            let Some(client) = self.shells[shard].tenant(conn) else { continue };
            if self.clients[client].deaf && !closing.contains(&conn) {
                self.shells[shard].kept_dirty.push(conn);
                continue;
            }
            let Some(out) = self.shards[shard].output(conn) else { continue };
            let bytes = std::mem::take(out);
            let most = OUTPUT_BYTES_MAX as usize + OUTPUT_SLACK_BYTES;
            assert!(bytes.len() <= most, "{} bytes wait for one client", bytes.len());
            moved |= !bytes.is_empty();
            self.clients[client].hears(&bytes);
        }
        for conn in closing {
            if self.shells[shard].tenant(conn).is_some() {
                self.gone(shard, conn, Cause::Ours);
                moved = true;
            }
        }
        moved
    }

    /// A client takes what waits for it.
    fn read(&mut self, client: usize) {
        let Some((shard, _)) = self.clients[client].place else { return };
        let shell = &mut self.shells[shard];
        shell.dirty.append(&mut shell.kept_dirty);
        self.settle_shell(shard);
    }

    /// One turn of one shard; true when something moved.
    fn turn(&mut self, shard: usize) -> bool {
        for client in 0..CLIENTS {
            if self.clients[client].place.is_some_and(|(at, _)| at == shard) {
                self.give(client);
            }
        }
        self.mail.me = shard;
        let before = self.mail.moved;
        let turned = self.shards[shard].turn(self.now, &mut self.mail, &mut self.shells[shard]);
        let mut moved = self.settle_shell(shard) || self.mail.moved != before;
        while let Some(batch) = self.shards[shard].journal() {
            self.unkept[shard].push(batch);
            moved = true;
        }
        moved | turned.busy
    }

    fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            if (0..SHARDS).filter(|shard| self.turn(*shard)).count() == 0 {
                return;
            }
        }
        panic!("the shards do not come to rest");
    }

    /// The logs confirm all that they were given.
    fn keep(&mut self) {
        for shard in 0..SHARDS {
            let Some(last) = self.unkept[shard].pop() else { continue };
            self.unkept[shard].clear();
            self.logged(shard, last.number);
        }
    }

    fn logged(&mut self, shard: usize, durable: u64) {
        let status = log::Status {
            durable,
            room: log::Room::Plenty,
            detachments: 0,
            recovered: true,
            since_begin_bytes: 0,
            segments: 1,
            bytes: 0,
            pending_bytes: 0,
        };
        self.input(shard, Input::Logged(status));
    }
}

fn settings(shard: u16, mode: Mode) -> Settings {
    let config = Config::default();
    let mut mqtt = config.mqtt;
    (mqtt.max_packet_bytes, mqtt.connect_bytes_max) = (2048, 512);
    (mqtt.inflight_max, mqtt.receive_max, mqtt.topic_alias_max) = (3, 3, 3);
    (mqtt.queued_max, mqtt.queued_bytes_max, mqtt.subscriptions_max) = (QUEUED_MAX, 4096, 5);
    (mqtt.session_expiry_s, mqtt.session_expiry_max_s, mqtt.will_delay_max_s) = (100, 1000, 1000);
    let mut limits = config.limits;
    (limits.output_bytes_max, limits.hop_batch_bytes, limits.interest_shapes_max) = (OUTPUT_BYTES_MAX, 1024, 2);
    let mut retainer = config.retainer;
    retainer.retained_max = RETAINED_MAX;
    Settings {
        shard: ShardId(shard),
        shards: SHARDS as u16,
        node: "fuzz@127.0.0.1".into(),
        cluster: "fuzz".into(),
        incarnation: 1,
        mqtt,
        limits,
        retainer,
        durability: Durability { mode, ..config.durability },
        flapping_detect: Default::default(),
        listeners: Default::default(),
        links: Vec::new(),
        seed: 1,
        plant: None,
    }
}
