//! One shard's brain: routing, sessions, retained messages, shared groups, links, acknowledgements, and the
//! order inside a turn. Pure: no I/O, no clock, no randomness. The shell (`dataplane/src`) and the simulation
//! (`tests/simulation`) feed it [`Input`]s and mail, and carry out what it says through [`Output`].
//! Nothing here is shared between shards; everything between them is a frame in a mailbox.
#![no_std]

extern crate alloc;

pub mod access;
mod acknowledge;
pub mod admission;
pub mod bans;
mod conn;
mod connack;
mod connect;
pub mod counters;
mod deliver;
mod dismissal;
pub mod event;
pub mod exchange;
mod export;
mod flapping;
pub mod frame;
mod groups;
mod hop;
pub mod index;
pub mod inquiry;
pub mod interest;
pub mod journal;
mod lifecycle;
mod link_inbound;
mod link_journal;
mod links;
mod mail;
mod mountpoint;
mod obligation;
mod pace;
mod packets;
mod permission;
pub mod plant;
mod publish;
mod replay;
mod retained;
mod revision;
mod session;
mod sizes;
mod subscribe;
pub mod subscriptions;
pub mod surface;
pub mod timer;
pub mod tree;
mod watch;
mod wills;

#[cfg(test)]
mod access_tests;
#[cfg(test)]
mod dismissal_tests;
#[cfg(test)]
mod exchange_tests;
#[cfg(test)]
mod inquiry_tests;
#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod tests;

use alloc::{boxed::Box, string::String, sync::Arc, vec::Vec};
use core::net::SocketAddr;

use ahash::RandomState;
use contract::{
    bans::Ban,
    config::{Durability, FlappingDetect, Limits, Link, Mqtt, Retainer},
    hash,
    ids::ShardId,
    time::Now,
};
use hashbrown::HashMap;

use crate::{
    admission::{Policy, Verdict},
    bans::Bans,
    conn::{Conns, Phase},
    counters::{Counter, Counters},
    deliver::Encoded,
    flapping::Flapping,
    frame::{MessageId, Pool},
    groups::Groups,
    hop::Hops,
    interest::Interest,
    journal::{History, Journal, Restoring, Standing},
    links::Links,
    obligation::Obligations,
    pace::Rates,
    plant::Plant,
    retained::{Retained, RetainedLimits},
    session::{SessionId, Sessions},
    subscribe::Barrier,
    subscriptions::{Subscription, Subscriptions},
    surface::{Certificate, ConnId, Input, LinkStatus, Output, Terms},
    timer::Wheel,
};

/// What a shard has to know when it starts.
#[derive(Clone)]
pub struct Settings {
    /// This shard.
    pub shard: ShardId,
    /// Shards of this node, at most [`interest::SHARDS_MAX`].
    pub shards: u16,
    /// Name of this node.
    pub node: String,
    /// Name of this cluster.
    pub cluster: String,
    /// Start number of this node; grows with every start.
    pub incarnation: u64,
    /// `mqtt.*`.
    pub mqtt: Mqtt,
    /// `limits.*`.
    pub limits: Limits,
    /// `retainer.*`.
    pub retainer: Retainer,
    /// `durability.*`.
    pub durability: Durability,
    /// `flapping_detect.*`.
    pub flapping_detect: FlappingDetect,
    /// The listeners by their numbers; a missing one has nothing special.
    pub listeners: Arc<[Terms]>,
    /// `cluster.links`, at most [`interest::LINKS_MAX`].
    pub links: Vec<Link>,
    /// Seed of the in-memory tables: random per process, fixed in simulation. The same on all shards.
    pub seed: u64,
    /// The fault that is built in, if any; only with the feature `plant`.
    pub plant: Option<Plant>,
}

/// Where a connection comes from: listener, peer, verified certificate.
pub(crate) type Origin = (u16, SocketAddr, Option<Box<Certificate>>);

/// Deadlines that the wheel keeps.
#[derive(Clone, Copy)]
pub(crate) enum Timer {
    /// No CONNECT, or silence.
    Conn(ConnId),
    /// A will or the end of a session.
    Session(SessionId),
    /// A client that was too fast may publish again.
    Pace(ConnId),
    /// Look for overdue obligations.
    Sweep,
}

/// One shard.
pub struct Shard {
    pub(crate) settings: Settings,
    pub(crate) now: Now,
    pub(crate) counters: Counters,
    pub(crate) conns: Conns,
    pub(crate) sessions: Sessions,
    pub(crate) subscriptions: Subscriptions,
    pub(crate) interest: Interest,
    pub(crate) barrier: Barrier,
    pub(crate) hops: Hops,
    pub(crate) obligations: Obligations,
    pub(crate) retained: Retained,
    pub(crate) replays: HashMap<u32, SessionId, RandomState>,
    pub(crate) replays_waiting: Vec<u32>,
    pub(crate) next_query: u32,
    pub(crate) groups: Groups,
    pub(crate) journal: Journal,
    pub(crate) standing: Standing,
    pub(crate) restoring: Option<Box<Restoring>>,
    /// What was taken before a crash.
    pub(crate) history: Arc<History>,
    pub(crate) links: Links,
    /// Connections of outlets that have new output.
    pub(crate) links_dirty: Vec<ConnId>,
    pub(crate) wheel: Wheel<Timer>,
    pub(crate) sweep_armed: bool,
    pub(crate) pool: Pool,
    pub(crate) encoded: Encoded,
    /// Identity of this shard's stream; the sequence is filled in per message.
    pub(crate) origin: MessageId,
    pub(crate) sequence: u64,
    /// The same of its stream of publishes that are repeated after a crash.
    pub(crate) durable_sequence: u64,
    /// Client ids assigned so far.
    pub(crate) assigned: u64,
    /// Questions to a server so far.
    pub(crate) questions: u64,
    pub(crate) draining: bool,
    /// Memory is scarce: nothing that grows is taken.
    pub(crate) scarce: bool,
    /// How fast clients may publish.
    pub(crate) rates: Rates,
    /// Who is let in, and what they may do.
    pub(crate) policy: Arc<Policy>,
    /// Some session may not do everything, or might not soon.
    pub(crate) restricted: bool,
    /// The verdict with which a parked CONNECT is read again.
    pub(crate) verdict: Option<(ConnId, Verdict)>,
    /// The next session whose rights are looked at again.
    pub(crate) revision: Option<u32>,
    /// Who may not connect.
    pub(crate) bans: Arc<Bans>,
    /// Who connects and disconnects all the time.
    pub(crate) flapping: Flapping,
    /// The next connection that is looked at, because it may have to go.
    pub(crate) inspection: Option<u32>,
    /// Connections whose reading goes on in this turn.
    pub(crate) resumed: Vec<ConnId>,
    /// Connections that are not read because they do not read.
    pub(crate) drowned: Vec<ConnId>,
    /// Connections that end in this turn, because their client reads too slowly.
    pub(crate) cut: Vec<ConnId>,
    /// Sessions whose queue waited for output.
    pub(crate) to_pump: Vec<u32>,
    // Scratch, kept for its capacity.
    pub(crate) found: Vec<u32>,
    pub(crate) overlapping: Vec<Subscription>,
    pub(crate) properties: Vec<u8>,
    pub(crate) alias_topic: String,
    pub(crate) due: Vec<Timer>,
    pub(crate) drained: Vec<ConnId>,
}

impl Shard {
    /// A shard without connections and sessions.
    pub fn new(settings: Settings) -> Shard {
        let (seed, me, shards) = (settings.seed, settings.shard, settings.shards);
        let limits = &settings.limits;
        let shapes_max = usize::from(limits.interest_shapes_max);
        let retained_limits = RetainedLimits::from(&settings.retainer);
        let mut hops = Hops::new(me, shards, limits.hop_batch_bytes as usize, limits.staged_bytes_max as usize);
        hops.plant_newest_first = cfg!(feature = "plant") && settings.plant == Some(Plant::StagedOutOfOrder);
        let mut journal = Journal::new(me, shards, &settings.durability);
        journal.plant_ungated = cfg!(feature = "plant") && settings.plant == Some(Plant::PacketIdAfterSend);
        Shard {
            now: Now { mono_us: 0, wall_ms: 0 },
            counters: Counters::default(),
            conns: Conns::default(),
            sessions: Sessions::new(seed),
            subscriptions: Subscriptions::new(seed, shapes_max),
            interest: Interest::new(seed, shapes_max),
            barrier: Barrier::new(me.0, shards),
            hops,
            obligations: Obligations::default(),
            retained: Retained::new(seed, shards, settings.incarnation as u32, retained_limits),
            replays: HashMap::with_hasher(RandomState::with_seeds(seed, 20, 21, 22)),
            replays_waiting: Vec::new(),
            next_query: 0,
            groups: Groups::new(seed, shapes_max),
            journal,
            standing: Standing::Ready,
            restoring: None,
            history: Arc::default(),
            links: Links::new(&settings),
            links_dirty: Vec::new(),
            wheel: Wheel::new(0),
            sweep_armed: false,
            pool: Pool::default(),
            encoded: Encoded::default(),
            origin: MessageId {
                cluster: hash::stable(settings.cluster.as_bytes()) as u32,
                node: hash::stable(settings.node.as_bytes()) as u32,
                incarnation: settings.incarnation as u32,
                stream: u32::from(me.0),
                sequence: 0,
            },
            sequence: 0,
            durable_sequence: 0,
            assigned: 0,
            questions: 0,
            draining: false,
            scarce: false,
            rates: Rates::from(&settings.mqtt),
            policy: Arc::default(),
            restricted: false,
            verdict: None,
            revision: None,
            bans: Arc::default(),
            flapping: Flapping::new(seed),
            inspection: None,
            resumed: Vec::new(),
            drowned: Vec::new(),
            cut: Vec::new(),
            to_pump: Vec::new(),
            found: Vec::new(),
            overlapping: Vec::new(),
            properties: Vec::new(),
            alias_topic: String::new(),
            due: Vec::new(),
            drained: Vec::new(),
            settings,
        }
    }

    /// One input. Its effects on connections are told to `out` at once; hops wait for [`Shard::turn`].
    pub fn input(&mut self, now: Now, input: Input<'_>, out: &mut impl Output) {
        self.now = now;
        match input {
            Input::Received { conn, bytes } => self.received(conn, bytes, out),
            Input::System { topic, text, lasting } => self.publish_system(topic, text, lasting, out),
            Input::Watch => self.watch_all(out),
            Input::Accepted { conn, listener, peer, certificate, since_us } => {
                self.counters.one(Counter::connections_accepted);
                self.opening(conn, (listener, peer, certificate), since_us);
            }
            Input::Closed { conn, cause } => self.closed(conn, cause, out),
            Input::Detached { transport, to, parked } => {
                self.hops.parcel(to.0, surface::Parcel { transport, parked });
            }
            Input::Dialed { dial, conn } => self.link_dialed(dial, conn, out),
            Input::DialFailed { dial, reason } => self.link_dial_failed(dial, reason, out),
            Input::View(view) => self.view(view),
            Input::Authenticated { conn, policy, verdict } => self.authenticated(conn, policy, verdict, out),
            Input::Exchanged { conn, policy, judged } => self.exchanged(conn, policy, judged, out),
            Input::Permitted { conn, number, policy, heard } => self.permitted(conn, number, policy, heard, out),
            Input::Policy(policy) => self.take_policy(policy),
            Input::Memory { scarce } => self.scarce = scarce,
            Input::Listeners(terms) => self.take_listeners(terms),
            Input::Bans(bans) => self.take_bans(bans),
            Input::Logged(status) => self.logged(&status, out),
            Input::Replay => self.replay(out),
            Input::Drain => self.drain(out),
        }
    }

    /// Control says what is configured now. What a shard was built from (hop sizes, shapes) stays as it was.
    fn view(&mut self, view: &contract::view::View) {
        if let Some(page) = view.limits() {
            self.settings.mqtt = page.mqtt.clone();
            self.rates = Rates::from(&page.mqtt);
            self.settings.limits = page.limits.clone();
            self.settings.retainer = page.retainer.clone();
            self.settings.flapping_detect = page.flapping_detect.clone();
            self.retained.set_limits(RetainedLimits::from(&page.retainer));
        }
        if let Some(links) = view.links() {
            self.links_view(links);
        }
    }

    /// A connection whose CONNECT has to come within its time, which runs from `since_us`.
    pub(crate) fn opening(&mut self, conn: ConnId, origin: Origin, since_us: u64) {
        let (listener, peer, certificate) = origin;
        self.conns.insert(conn, listener, peer, self.now.mono_us, Phase::Opening);
        if let Some(conn) = self.conns.get(conn) {
            conn.certificate = certificate;
        }
        let timeout_us = u64::from(self.settings.mqtt.connect_timeout_ms) * 1000;
        self.arm_conn(conn, since_us + timeout_us);
    }

    /// Arms the timer of a connection; what was armed before no longer counts.
    pub(crate) fn arm_conn(&mut self, id: ConnId, at_us: u64) {
        if let Some(conn) = self.conns.get(id) {
            conn.timer_us = at_us;
            self.wheel.arm(at_us, Timer::Conn(id));
        }
    }

    /// True when `plant` is the planted fault of this run. Without the feature it never is.
    #[inline]
    pub(crate) fn planted(&self, plant: Plant) -> bool {
        cfg!(feature = "plant") && self.settings.plant == Some(plant)
    }

    /// Counts something that happened `n` times outside of the brain.
    pub fn count(&mut self, counter: Counter, n: u64) {
        self.counters.add(counter, n);
    }

    /// What this shard has counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Values that go up and down.
    pub fn gauges(&self) -> Gauges {
        Gauges {
            connections: self.conns.len() as u64,
            sessions: self.sessions.len() as u64,
            subscriptions: self.subscriptions.len() as u64,
            retained: self.retained.len() as u64,
            interest: self.interest.len() as u64,
            groups: self.groups.len() as u64,
            obligations: self.obligations.len() as u64,
            staged_bytes: self.hops.staged_bytes() as u64,
            replays: (self.replays.len() + self.retained.cursors()) as u64,
            waiting_subscribes: self.barrier.waiting() as u64,
            log_unconfirmed_bytes: self.journal.unconfirmed_bytes(),
            stored: self.pool.stored(),
            stored_bytes: self.pool.stored_bytes(),
        }
    }

    /// Client ids that this shard has banned for connecting all the time, and that no View names yet; the first few.
    pub fn flapping(&self) -> Vec<Ban> {
        self.flapping.bans(self.now.wall_ms)
    }

    /// State of every configured link as this shard sees it.
    pub fn link_status(&self) -> Vec<LinkStatus> {
        self.links.status()
    }

    /// Topics with a retained value that this shard owns.
    pub fn retained_topics(&self) -> Vec<String> {
        self.retained.topics()
    }

    /// Payload of the retained value of a topic that this shard owns.
    pub fn retained_payload(&self, topic: &str) -> Option<Vec<u8>> {
        self.retained.value(topic).map(|kept| kept.message(self.now.mono_us).payload.into())
    }

    /// What sessions of this shard wait for. Looks at every session.
    pub fn backlog(&self) -> Backlog {
        let mut backlog = Backlog::default();
        for session in self.sessions.iter() {
            backlog.queued += session.state.queued() as u64;
            backlog.queued_bytes += session.state.queued_bytes();
            backlog.inflight += session.state.outgoing.len() as u64;
        }
        backlog
    }

    /// Messages queued for sessions of this shard.
    pub fn queued(&self) -> u64 {
        self.backlog().queued
    }
}

/// Values of a shard that go up and down.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Gauges {
    /// Transports, with or without CONNECT.
    pub connections: u64,
    /// Sessions, with or without connection.
    pub sessions: u64,
    /// Subscriptions that are not shared.
    pub subscriptions: u64,
    /// Retained values that this shard owns.
    pub retained: u64,
    /// Filters of other destinations that this shard knows.
    pub interest: u64,
    /// Shared groups that this shard owns.
    pub groups: u64,
    /// Publishes, subscribes and relays that wait for another shard.
    pub obligations: u64,
    /// Bytes that wait for room in a mailbox.
    pub staged_bytes: u64,
    /// Open retained replays, here and as owner.
    pub replays: u64,
    /// SUBSCRIBEs whose SUBACK waits.
    pub waiting_subscribes: u64,
    /// Bytes that the log has not confirmed.
    pub log_unconfirmed_bytes: u64,
    /// Messages that somebody here keeps: queued, in flight, retained, or for a remote; each once.
    pub stored: u64,
    /// Bytes of their payload.
    pub stored_bytes: u64,
}

/// What sessions wait for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Backlog {
    /// Messages that wait for room in their session's window, or for its connection.
    pub queued: u64,
    /// Their bytes.
    pub queued_bytes: u64,
    /// Messages that were sent and are not acknowledged.
    pub inflight: u64,
}
