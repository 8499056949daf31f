//! The scripted world of the unit tests: some shards, mailboxes that deliver at once or when told, clients that are
//! vectors of packets. Everything happens in the order in which the test says it.

use alloc::{
    boxed::Box,
    collections::VecDeque,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::net::SocketAddr;

use contract::{
    bans::Ban,
    config::{Config, Durability, Link, Mode},
    hash,
    ids::ShardId,
    time::Now,
};
use mqtt::{
    codec::{self, Connect, ConnectProperties, Packet, SubscribeEntry, encode},
    types::{PacketId, Qos, RetainHandling, Version},
};

use crate::{
    Settings, Shard,
    access::Action,
    admission::{Ask, Policy, Verdict},
    bans::Bans,
    counters::{Counter, Counters},
    event::Event,
    exchange::{Judged, Round},
    inquiry::{Heard, Wish},
    journal::{Image, Standing, deal},
    surface::{Batch, Cause, Certificate, ConnId, DialId, Input, Mailboxes, Output, Parked, Terms, Transport},
};

/// A client: where its connection is now, and what it was sent, printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Client(pub(crate) usize);

pub(crate) struct Rig {
    pub(crate) shards: Vec<Shard>,
    shells: Vec<Shell>,
    mail: Mail,
    pub(crate) now: Now,
    clients: Vec<Place>,
    settings: Vec<Settings>,
    /// What each shard's log holds, batch by batch.
    pub(crate) logs: Vec<Vec<Vec<u8>>>,
    /// Batches that are not kept yet, of the shards whose log is held.
    unkept: Vec<Vec<crate::journal::JournalBatch>>,
    held_logs: Vec<usize>,
    /// What the logs say of their size.
    pub(crate) since_begin_bytes: u64,
    /// Where the next client comes in, and the common name of its certificate.
    pub(crate) listener: u16,
    pub(crate) common_name: Option<String>,
    /// How long ago it was accepted.
    pub(crate) handshake_ms: u64,
}

struct Place {
    shard: usize,
    conn: ConnId,
    version: Version,
    unread: Vec<u8>,
    got: Vec<String>,
    closed: bool,
    deaf: bool,
}

#[derive(Default)]
struct Shell {
    next: u32,
    /// Client of each connection index.
    tenants: Vec<usize>,
    dirty: Vec<ConnId>,
    closing: Vec<ConnId>,
    moving: Vec<(ConnId, ShardId, Parked)>,
    /// User names about whom somebody was asked, and nobody has answered.
    asked: Vec<(ConnId, String)>,
    /// Steps of clients that prove themselves in several, and whether something was remembered.
    steps: Vec<(ConnId, String, bool)>,
    /// Questions to the server that nobody has answered.
    wishes: Vec<(ConnId, u64, String)>,
    /// Nobody more can be asked.
    busy: bool,
}

impl Output for Shell {
    fn adopt(&mut self, transport: Transport) -> Option<ConnId> {
        let client = *transport.downcast::<usize>().ok()?;
        Some(self.tenant(client))
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
    fn read(&mut self, _: ConnId, _: bool) {}
    fn dial(&mut self, _: DialId, _: &str) {}
    fn authenticate(&mut self, conn: ConnId, ask: &Ask<'_>) -> bool {
        if !self.busy {
            self.asked.push((conn, ask.username.unwrap_or("").into()));
        }
        !self.busy
    }
    fn exchange(&mut self, conn: ConnId, round: Round<'_>) -> bool {
        if !self.busy {
            let said = String::from_utf8_lossy(round.data).into_owned();
            self.steps.push((conn, said, round.memory.is_some()));
        }
        !self.busy
    }
    fn permit(&mut self, conn: ConnId, number: u64, wish: &Wish<'_>) -> bool {
        if !self.busy {
            let action = match wish.action {
                Action::Publish => "publish",
                Action::Subscribe => "subscribe",
            };
            let (user, qos) = (wish.user.unwrap_or("-"), wish.qos as u8);
            let wish = alloc::format!("{} {user} {action} {} {qos}", wish.client, wish.topic);
            self.wishes.push((conn, number, wish));
        }
        !self.busy
    }
    fn event(&mut self, _: Event<'_>) {}
}

impl Shell {
    fn tenant(&mut self, client: usize) -> ConnId {
        let conn = ConnId { index: self.next, generation: 1 };
        self.next += 1;
        self.tenants.push(client);
        conn
    }
}

struct Mail {
    shards: usize,
    me: usize,
    queues: Vec<VecDeque<Box<Batch>>>,
    offered: Vec<u64>,
    taken: Vec<u64>,
    /// Pairs (from, to) whose batches stay invisible.
    held: Vec<(usize, usize)>,
}

impl Mailboxes for Mail {
    fn tail(&mut self, from: ShardId) -> u64 {
        let pair = from.index() * self.shards + self.me;
        if self.held.contains(&(from.index(), self.me)) { self.taken[pair] } else { self.offered[pair] }
    }
    fn taken(&self, from: ShardId) -> u64 {
        self.taken[from.index() * self.shards + self.me]
    }
    fn take(&mut self, from: ShardId) -> Option<Box<Batch>> {
        let pair = from.index() * self.shards + self.me;
        let batch = self.queues[pair].pop_front()?;
        self.taken[pair] += 1;
        Some(batch)
    }
    fn give_back(&mut self, _: ShardId, _: Box<Batch>) {}
    fn blank(&mut self, _: ShardId) -> Box<Batch> {
        Box::default()
    }
    fn offer(&mut self, to: ShardId, batch: Box<Batch>, _: bool) -> Result<(), Box<Batch>> {
        let pair = self.me * self.shards + to.index();
        self.queues[pair].push_back(batch);
        self.offered[pair] += 1;
        Ok(())
    }
}

pub(crate) const PEER: ([u8; 4], u16) = ([127, 0, 0, 1], 1);

impl Rig {
    pub(crate) fn new(shards: u16) -> Rig {
        Rig::with(shards, |_| {})
    }

    /// A node with a link to `remote`, which nobody dials.
    pub(crate) fn linked(shards: u16, remote: &str) -> Rig {
        Rig::with(shards, |settings| settings.links = alloc::vec![link(remote)])
    }

    pub(crate) fn with(shards: u16, adjust: impl Fn(&mut Settings)) -> Rig {
        let config = Config::default();
        let settings = |shard| {
            let mut settings = Settings {
                shard: ShardId(shard),
                shards,
                node: "test@127.0.0.1".into(),
                cluster: "test".into(),
                incarnation: 1,
                mqtt: config.mqtt.clone(),
                limits: config.limits.clone(),
                retainer: config.retainer.clone(),
                durability: Durability { mode: Mode::None, ..config.durability.clone() },
                flapping_detect: Default::default(),
                listeners: Default::default(),
                links: Vec::new(),
                seed: 1,
                plant: None,
            };
            adjust(&mut settings);
            settings
        };
        Rig::of((0..shards).map(settings).collect())
    }

    /// A node that keeps a log.
    pub(crate) fn durable(shards: u16) -> Rig {
        Rig::with(shards, |settings| settings.durability.mode = Mode::Os)
    }

    fn of(settings: Vec<Settings>) -> Rig {
        let shards = settings.len();
        let pairs = shards * shards;
        Rig {
            shards: settings.iter().cloned().map(Shard::new).collect(),
            shells: (0..shards).map(|_| Shell::default()).collect(),
            mail: Mail {
                shards,
                me: 0,
                queues: (0..pairs).map(|_| VecDeque::new()).collect(),
                offered: alloc::vec![0; pairs],
                taken: alloc::vec![0; pairs],
                held: Vec::new(),
            },
            now: Now { mono_us: 1_000_000, wall_ms: 1_700_000_000_000 },
            clients: Vec::new(),
            settings,
            logs: alloc::vec![Vec::new(); shards],
            unkept: (0..shards).map(|_| Vec::new()).collect(),
            held_logs: Vec::new(),
            since_begin_bytes: 0,
            listener: 0,
            common_name: None,
            handshake_ms: 0,
        }
    }

    /// The same node after the death of its process, with what its logs hold; with another number of shards, if told so.
    pub(crate) fn crash(self, shards: u16) -> Rig {
        let mut rig = self.restart(shards);
        for at in 0..rig.shards.len() {
            rig.logged(at, |_| {});
        }
        rig.settle();
        for at in 0..rig.shards.len() {
            assert_eq!(rig.shards[at].standing(), Standing::Restored);
        }
        rig.replay();
        assert!(rig.shards.iter().all(|shard| shard.standing() == Standing::Ready));
        rig
    }

    /// The same before the first word of the logs and the first turn.
    pub(crate) fn restart(self, shards: u16) -> Rig {
        let images = self.logs.iter().map(|log| {
            let mut image = Image::new(1);
            log.iter().for_each(|batch| image.entry(batch).expect("we wrote it"));
            image
        });
        let dealt = deal(images.collect(), shards);
        let settings = |shard| Settings {
            shard: ShardId(shard),
            shards,
            incarnation: self.settings[0].incarnation + 1,
            ..self.settings[0].clone()
        };
        let mut rig = Rig::of((0..shards).map(settings).collect());
        rig.now = Now { mono_us: 1_000_000, wall_ms: self.now.wall_ms + 10 };
        if usize::from(shards) == self.logs.len() {
            rig.logs = self.logs;
        }
        for (at, dealt) in dealt.into_iter().enumerate() {
            rig.shards[at].restore(rig.now, dealt, &mut rig.shells[at]);
        }
        rig
    }

    /// All shards are restored: what the crash cut goes on.
    pub(crate) fn replay(&mut self) {
        for at in 0..self.shards.len() {
            self.shards[at].input(self.now, Input::Replay, &mut self.shells[at]);
        }
        self.settle();
    }

    /// Nothing that a shard records from now on is kept, until [`Rig::keep`].
    pub(crate) fn hold_log(&mut self, shard: usize) {
        self.held_logs.push(shard);
    }

    /// Everything that was recorded is kept, also from now on.
    pub(crate) fn keep(&mut self) {
        self.held_logs.clear();
        for shard in 0..self.shards.len() {
            for batch in core::mem::take(&mut self.unkept[shard]) {
                self.kept(shard, batch);
            }
        }
        self.settle();
    }

    fn kept(&mut self, shard: usize, batch: crate::journal::JournalBatch) {
        let durable = batch.number;
        self.logs[shard].push(batch.bytes);
        self.logged(shard, |status| status.durable = durable);
    }

    /// The log of a shard says how it is.
    pub(crate) fn logged(&mut self, shard: usize, adjust: impl FnOnce(&mut log::Status)) {
        let mut status = log::Status {
            durable: 0,
            room: log::Room::Plenty,
            detachments: 0,
            recovered: true,
            since_begin_bytes: self.since_begin_bytes,
            segments: 1,
            bytes: 0,
            pending_bytes: 0,
        };
        adjust(&mut status);
        self.shards[shard].input(self.now, Input::Logged(status), &mut self.shells[shard]);
    }

    /// The operator says who is let in, and what they may do.
    pub(crate) fn policy(&mut self, policy: Policy) {
        let policy = Arc::new(policy);
        for at in 0..self.shards.len() {
            self.shards[at].input(self.now, Input::Policy(&policy), &mut self.shells[at]);
        }
        self.settle();
    }

    /// These may not connect, from now on.
    pub(crate) fn bans(&mut self, bans: &[Ban]) {
        let bans = Arc::new(Bans::new(bans, 1));
        for at in 0..self.shards.len() {
            self.shards[at].input(self.now, Input::Bans(&bans), &mut self.shells[at]);
        }
        self.settle();
    }

    /// The listeners are these, from now on.
    pub(crate) fn listeners(&mut self, terms: Vec<Terms>) {
        let terms: Arc<[Terms]> = terms.into();
        for at in 0..self.shards.len() {
            self.shards[at].input(self.now, Input::Listeners(&terms), &mut self.shells[at]);
        }
        self.settle();
    }

    /// Whether more clients can be asked about.
    pub(crate) fn authenticators_busy(&mut self, busy: bool) {
        self.shells.iter_mut().for_each(|shell| shell.busy = busy);
    }

    /// User names about whom nobody has answered.
    pub(crate) fn asked(&self) -> Vec<&str> {
        self.shells.iter().flat_map(|shell| &shell.asked).map(|(_, user)| user.as_str()).collect()
    }

    /// Answers everything that was asked, by the policy with this number.
    pub(crate) fn answer(&mut self, policy: u64, judge: impl Fn(&str) -> Verdict) {
        for at in 0..self.shards.len() {
            for (conn, user) in core::mem::take(&mut self.shells[at].asked) {
                let input = Input::Authenticated { conn, policy, verdict: judge(&user) };
                self.shards[at].input(self.now, input, &mut self.shells[at]);
            }
        }
        self.settle();
    }

    /// Judges every step that was taken; `judge` is told what the client said, and whether something was remembered.
    /// Gives the number of steps.
    pub(crate) fn judge(&mut self, policy: u64, judge: impl Fn(&str, bool) -> Judged) -> usize {
        let mut steps = 0;
        for at in 0..self.shards.len() {
            for (conn, said, remembered) in core::mem::take(&mut self.shells[at].steps) {
                let input = Input::Exchanged { conn, policy, judged: judge(&said, remembered) };
                self.shards[at].input(self.now, input, &mut self.shells[at]);
                steps += 1;
            }
        }
        self.settle();
        steps
    }

    /// Answers every question to the server, which has the form `client user action topic qos`. Gives their number.
    pub(crate) fn permit(&mut self, policy: u64, says: impl Fn(&str) -> Option<Heard>) -> usize {
        let mut answers = 0;
        for at in 0..self.shards.len() {
            for (conn, number, wish) in core::mem::take(&mut self.shells[at].wishes) {
                let input = Input::Permitted { conn, number, policy, heard: says(&wish) };
                self.shards[at].input(self.now, input, &mut self.shells[at]);
                answers += 1;
            }
        }
        self.settle();
        answers
    }

    /// A client id that is at home on `shard`.
    pub(crate) fn id_on(&self, shard: u16, name: &str) -> String {
        let shards = self.shards.len() as u16;
        let mut ids = (0..10_000).map(|salt| alloc::format!("{name}-{salt}"));
        ids.find(|id| hash::owner_shard(hash::partition_of_client(id), shards) == ShardId(shard)).unwrap()
    }

    /// Connects on shard 0, wherever the id is at home.
    pub(crate) fn connect(&mut self, client_id: &str) -> Client {
        self.connect_with(client_id, |_| {})
    }

    pub(crate) fn connect_with(&mut self, client_id: &str, adjust: impl FnOnce(&mut Connect<'_>)) -> Client {
        let client = self.accept();
        let mut connect = Connect {
            version: Version::V5,
            clean_start: true,
            keep_alive_s: 0,
            client_id,
            username: None,
            password: None,
            will: None,
            properties: ConnectProperties { request_problem_information: true, ..ConnectProperties::default() },
            bridge: false,
        };
        adjust(&mut connect);
        self.clients[client.0].version = connect.version;
        let mut bytes = Vec::new();
        encode::connect(&mut bytes, &connect);
        self.send(client, &bytes);
        self.settle();
        client
    }

    /// A transport on shard 0 that has sent nothing.
    pub(crate) fn accept(&mut self) -> Client {
        let client = Client(self.clients.len());
        let conn = self.shells[0].tenant(client.0);
        let got = Vec::new();
        self.clients.push(Place {
            shard: 0,
            conn,
            version: Version::V5,
            unread: Vec::new(),
            got,
            closed: false,
            deaf: false,
        });
        let certificate = self.common_name.clone().map(|name| {
            let subject = alloc::format!("CN={name}");
            Box::new(Certificate { common_name: Some(name), subject })
        });
        let input = Input::Accepted {
            conn,
            listener: self.listener,
            peer: SocketAddr::from(PEER),
            certificate,
            since_us: self.now.mono_us - self.handshake_ms * 1000,
        };
        self.shards[0].input(self.now, input, &mut self.shells[0]);
        client
    }

    pub(crate) fn send(&mut self, client: Client, bytes: &[u8]) {
        let place = &self.clients[client.0];
        let (shard, conn) = (place.shard, place.conn);
        self.shards[shard].input(self.now, Input::Received { conn, bytes }, &mut self.shells[shard]);
        self.detach(shard);
    }

    pub(crate) fn subscribe(&mut self, client: Client, filter: &str, qos: Qos) {
        let mut bytes = Vec::new();
        let entry = SubscribeEntry {
            filter,
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        };
        encode::subscribe(&mut bytes, self.clients[client.0].version, id(1), None, &[entry]);
        self.send(client, &bytes);
    }

    pub(crate) fn publish(&mut self, client: Client, topic: &str, payload: &str, qos: Qos, retain: bool) {
        let packet_id = (qos != Qos::AtMostOnce).then(|| id(77));
        let mut bytes = Vec::new();
        let payload = payload.as_bytes();
        let parts = encode::PublishParts { qos, retain, topic, packet_id, payload, ..encode::PublishParts::default() };
        encode::publish(&mut bytes, self.clients[client.0].version, &parts);
        self.send(client, &bytes);
    }

    /// Memory is scarce, or no longer, for every shard.
    pub(crate) fn memory(&mut self, scarce: bool) {
        for (shard, shell) in self.shards.iter_mut().zip(&mut self.shells) {
            shard.input(self.now, Input::Memory { scarce }, shell);
        }
    }

    /// The node says something about itself.
    pub(crate) fn system(&mut self, topic: &str, text: &str) {
        self.shards[0].input(self.now, Input::System { topic, text, lasting: true }, &mut self.shells[0]);
        self.settle();
    }

    /// The transport of a client breaks.
    pub(crate) fn cut(&mut self, client: Client) {
        self.close(client, Cause::Error);
    }

    /// The client closes in an orderly way.
    pub(crate) fn end(&mut self, client: Client) {
        self.close(client, Cause::Eof);
    }

    fn close(&mut self, client: Client, cause: Cause) {
        let place = &mut self.clients[client.0];
        place.closed = true;
        let (shard, conn) = (place.shard, place.conn);
        self.shards[shard].input(self.now, Input::Closed { conn, cause }, &mut self.shells[shard]);
        self.settle();
    }

    /// A client stops taking what it is sent.
    pub(crate) fn stop_reading(&mut self, client: Client) {
        self.clients[client.0].deaf = true;
    }

    /// Bytes that wait for a client.
    pub(crate) fn unsent(&mut self, client: Client) -> usize {
        let (shard, conn) = (self.clients[client.0].shard, self.clients[client.0].conn);
        self.shards[shard].output(conn).map_or(0, |out| out.len())
    }

    /// Batches from one shard to another stay invisible until [`Rig::release`].
    pub(crate) fn hold(&mut self, from: usize, to: usize) {
        self.mail.held.push((from, to));
    }

    pub(crate) fn release(&mut self) {
        self.mail.held.clear();
        self.settle();
    }

    pub(crate) fn pass(&mut self, ms: u64) {
        self.now = Now { mono_us: self.now.mono_us + ms * 1000, wall_ms: self.now.wall_ms + ms };
        self.settle();
    }

    /// One turn; true when a client was sent something.
    pub(crate) fn turn(&mut self, shard: usize) -> bool {
        self.mail.me = shard;
        let turned = self.shards[shard].turn(self.now, &mut self.mail, &mut self.shells[shard]);
        let mut moved = self.collect(shard);
        while let Some(batch) = self.shards[shard].journal() {
            if self.held_logs.contains(&shard) {
                self.unkept[shard].push(batch);
            } else {
                self.kept(shard, batch);
                moved |= true;
            }
        }
        self.collect(shard) || moved || turned.busy
    }

    /// Turns of all shards until nothing moves.
    pub(crate) fn settle(&mut self) {
        for _ in 0..1000 {
            let before = (self.mail.offered.clone(), self.mail.taken.clone());
            let moved = (0..self.shards.len()).filter(|shard| self.turn(*shard)).count() > 0;
            if !moved && before == (self.mail.offered.clone(), self.mail.taken.clone()) {
                return;
            }
        }
        panic!("the shards do not come to rest");
    }

    /// What a client was sent since the last call.
    pub(crate) fn got(&mut self, client: Client) -> Vec<String> {
        core::mem::take(&mut self.clients[client.0].got)
    }

    /// The same after everything has come to rest.
    pub(crate) fn heard(&mut self, client: Client) -> Vec<String> {
        self.settle();
        self.got(client)
    }

    pub(crate) fn closed(&self, client: Client) -> bool {
        self.clients[client.0].closed
    }

    pub(crate) fn count(&self, counter: Counter) -> u64 {
        self.shards.iter().map(Shard::counters).map(|counters: &Counters| counters.value(counter)).sum()
    }

    pub(crate) fn import(&mut self, shard: usize, bytes: &[u8]) -> Result<(), crate::frame::BadFrame> {
        self.shards[shard].import_session(bytes, &mut self.shells[shard])
    }

    fn detach(&mut self, shard: usize) {
        for (conn, to, parked) in core::mem::take(&mut self.shells[shard].moving) {
            let client = self.shells[shard].tenants[conn.index as usize];
            let input = Input::Detached { transport: Box::new(client), to, parked };
            self.shards[shard].input(self.now, input, &mut self.shells[shard]);
        }
    }

    fn collect(&mut self, shard: usize) -> bool {
        let mut moved = false;
        self.detach(shard);
        for at in 0..self.shells[shard].tenants.len() {
            let client = self.shells[shard].tenants[at];
            let conn = ConnId { index: at as u32, generation: 1 };
            if self.shards[shard].output(conn).is_some() {
                let place = &mut self.clients[client];
                (place.shard, place.conn) = (shard, conn);
            }
        }
        let closing = core::mem::take(&mut self.shells[shard].closing);
        let dirty = core::mem::take(&mut self.shells[shard].dirty);
        for conn in dirty.into_iter().chain(closing.iter().copied()) {
            let tenant = self.shells[shard].tenants[conn.index as usize];
            if self.clients[tenant].deaf {
                continue;
            }
            let Some(out) = self.shards[shard].output(conn) else { continue };
            let bytes = core::mem::take(out);
            moved |= !bytes.is_empty();
            let client = self.shells[shard].tenants[conn.index as usize];
            let place = &mut self.clients[client];
            place.unread.extend_from_slice(&bytes);
            place.read();
        }
        for conn in closing {
            let client = self.shells[shard].tenants[conn.index as usize];
            self.clients[client].closed = true;
            let input = Input::Closed { conn, cause: Cause::Ours };
            self.shards[shard].input(self.now, input, &mut self.shells[shard]);
        }
        moved
    }
}

/// A link without `accept`.
pub(crate) fn link(remote: &str) -> Link {
    Link {
        name: remote.into(),
        enable: true,
        servers: alloc::vec!["127.0.0.1:1".into()],
        client_id: None,
        username: None,
        password: None,
        topics: alloc::vec!["#".into()],
        pool_size: 1,
        max_inflight: 32,
        retry_interval_ms: 15_000,
        accept: None,
    }
}

impl Place {
    fn read(&mut self) {
        while let Ok(Some(raw)) = codec::split(&self.unread, usize::MAX) {
            let total = raw.total;
            let text = match codec::decode(self.version, raw).expect("a shard sends legal packets") {
                Packet::Publish(p) => {
                    let retain = if p.retain { " retain" } else { "" };
                    let dup = if p.dup { " dup" } else { "" };
                    let ids: Vec<String> = p.properties.subscription_ids.map(|id| alloc::format!(" #{id}")).collect();
                    let payload = String::from_utf8_lossy(p.payload);
                    alloc::format!("{} {payload} q{}{retain}{dup}{}", p.topic, p.qos as u8, ids.concat())
                }
                Packet::Connack(c) => match c.properties.authentication_data {
                    Some(data) => alloc::format!("connack {:?} {}", c.reason, String::from_utf8_lossy(data)),
                    None => alloc::format!("connack {:?} {}", c.reason, c.session_present),
                },
                Packet::Auth(a) => {
                    let data = String::from_utf8_lossy(a.data.unwrap_or_default());
                    alloc::format!("auth {:?} {} {data}", a.reason, a.method.unwrap_or("-"))
                }
                Packet::Suback(s) => {
                    let reasons: Vec<String> = s.reasons.map(|r| r.code().to_string()).collect();
                    alloc::format!("suback {}", reasons.join(" "))
                }
                Packet::Puback(a) => alloc::format!("puback {}", a.reason.code()),
                Packet::Pubrec(a) => alloc::format!("pubrec {}", a.reason.code()),
                Packet::Pubrel(a) => alloc::format!("pubrel {}", a.reason.code()),
                Packet::Pubcomp(a) => alloc::format!("pubcomp {}", a.reason.code()),
                Packet::Disconnect(d) => alloc::format!("disconnect {:?}", d.reason),
                Packet::Unsuback(_) => "unsuback".into(),
                Packet::Pingresp => "pingresp".into(),
                other => alloc::format!("{other:?}"),
            };
            self.unread.drain(..total);
            self.got.push(text);
        }
    }
}

pub(crate) fn id(n: u16) -> PacketId {
    PacketId::new(n).unwrap()
}
