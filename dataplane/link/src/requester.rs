//! The requesting end of a link: one route connection that tells the remote which messages we want.
//!
//! Lives on the shard that owns the link's name, which aggregates the wants of all shards of the node. The shell
//! drives it: `poll_dial` says when to dial, bytes go through `received`, time through `tick`, and whatever is
//! appended to `out` is to be sent. After an error the shell flushes `out`, closes, and calls `closed`.
//! Always true: at most one batch is unacknowledged; a bootstrap that did not finish is begun again; heartbeats flow
//! while a bootstrap runs.

use alloc::string::String;
use alloc::vec::Vec;

use mqtt::codec::{AckKind, Packet, Publish, SubscribeEntry, encode};
use mqtt::types::{PacketId, Qos, Reason, RetainHandling, Version};

use crate::client::{Client, Handled, Login, earliest, us};
use crate::error::LinkError;
use crate::etf::Limits;
use crate::interests::{BatchBounds, InterestBounds, Interests, RouteKey, Sent};
use crate::names;
use crate::wire::{self, RouteBatch, RouteMessage};

pub use crate::interests::Wanted;

/// Operations of one batch, as many as EMQX sends.
pub const BATCH_OPS_MAX: u32 = 4000;
/// Bytes of one batch; well below the 1 MiB that EMQX takes by default.
pub const BATCH_BYTES_MAX: usize = 256 << 10;
/// After so long without a word from us the remote has forgotten our actor.
pub const ACTOR_TTL_MS: u64 = 30_000;

/// What one requester is configured with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our `cluster.name`.
    pub cluster: String,
    /// The remote's, as the link names it.
    pub remote: String,
    /// Stable and unique in our cluster: the node's name.
    pub actor: String,
    /// Grows with every start of the node: wall clock in milliseconds.
    pub incarnation: u64,
    /// Connection.
    pub login: Login,
    /// Filters that we want from the remote at all.
    pub topics: Vec<String>,
    /// Time for each step of the handshake.
    pub handshake_timeout_ms: u64,
    /// Pace of heartbeats.
    pub heartbeat_ms: u64,
    /// How long changes are collected before a batch leaves.
    pub coalesce_ms: u64,
    /// Pause after a refused batch.
    pub retry_ms: u64,
    /// Time for the acknowledgement of a batch.
    pub ack_timeout_ms: u64,
    /// Operations of one batch.
    pub batch_ops_max: u32,
    /// Bytes of one batch's payload; the remote's Maximum Packet Size caps it further.
    pub batch_bytes_max: usize,
    /// Different wants that are remembered.
    pub wants_max: usize,
    /// Different filters that are announced.
    pub routes_max: usize,
    /// Source of request ids; differs between starts.
    pub seed: u64,
}

impl Settings {
    /// EMQX's clocks and our limits for a link from `cluster` to `remote`.
    pub fn new(cluster: &str, remote: &str, actor: &str, incarnation: u64) -> Settings {
        Settings {
            cluster: cluster.into(),
            remote: remote.into(),
            actor: actor.into(),
            incarnation,
            login: Login::new(names::route_client_id(cluster, actor)),
            topics: Vec::new(),
            handshake_timeout_ms: 5000,
            heartbeat_ms: 10_000,
            coalesce_ms: 10,
            retry_ms: 500,
            ack_timeout_ms: 30_000,
            batch_ops_max: BATCH_OPS_MAX,
            batch_bytes_max: BATCH_BYTES_MAX,
            wants_max: 4_000_000,
            routes_max: 1_000_000,
            seed: incarnation,
        }
    }
}

/// Where the requester stands, for status pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// No connection.
    Disconnected,
    /// Connected, not yet accepted by the remote.
    Handshaking,
    /// Sending everything.
    Bootstrapping,
    /// The remote has everything but the changes counted as pending.
    Online,
}

/// Counters since start, and the present.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Where it stands.
    pub standing: Standing,
    /// Filters that we want announced.
    pub routes: usize,
    /// Changes that the remote does not have yet.
    pub pending: usize,
    /// Filters too long for the remote's Maximum Packet Size: not announced.
    pub oversize: usize,
    /// Wants refused because of a limit.
    pub wants_refused: u64,
    /// Connections that were accepted by the remote.
    pub handshakes: u64,
    /// Bootstraps that finished.
    pub bootstraps: u64,
    /// Batches sent.
    pub batches: u64,
    /// Batches that the remote refused.
    pub batches_refused: u64,
    /// Why the last connection ended.
    pub last_error: Option<LinkError>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// SUBSCRIBE of the answer's topic is out.
    Subscribing,
    /// `actor_init` is out.
    Initialising,
    /// Accepted.
    Accepted,
}

#[derive(Debug)]
enum Bootstrap {
    /// Not running.
    Idle,
    /// Everything after this key is still to be sent.
    After(Option<RouteKey>),
    /// Its last batch is out.
    Closing,
}

#[derive(Debug)]
struct Outstanding {
    packet_id: PacketId,
    sent_at: u64,
    sent: Sent,
}

/// See the module's head.
#[derive(Debug)]
pub struct Requester {
    settings: Settings,
    route_topic: String,
    resp_topic: String,
    client: Client,
    interests: Interests,
    stage: Stage,
    stage_since: u64,
    request_id: [u8; 16],
    init_packet: Option<PacketId>,
    bootstrap: Bootstrap,
    /// The last bootstrap that was begun has been acknowledged to its end.
    bootstrapped: bool,
    outstanding: Option<Outstanding>,
    changed_since: Option<u64>,
    batch_not_before: u64,
    heartbeat_at: u64,
    /// The remote has certainly had a sign of life that left at this time.
    alive_at: u64,
    scratch: Vec<u8>,
    status: Status,
}

impl Requester {
    /// A requester that will dial at once.
    pub fn new(mut settings: Settings) -> Requester {
        let topics = core::mem::take(&mut settings.topics);
        let bounds = InterestBounds { wants_max: settings.wants_max, routes_max: settings.routes_max };
        Requester {
            route_topic: names::route_topic(&settings.cluster),
            resp_topic: names::resp_topic(&settings.cluster, &settings.actor),
            client: Client::new(settings.login.clone()),
            interests: Interests::new(topics, bounds),
            stage: Stage::Subscribing,
            stage_since: 0,
            request_id: [0; 16],
            init_packet: None,
            bootstrap: Bootstrap::Idle,
            bootstrapped: false,
            outstanding: None,
            changed_since: None,
            batch_not_before: 0,
            heartbeat_at: 0,
            alive_at: 0,
            scratch: Vec::new(),
            status: Status {
                standing: Standing::Disconnected,
                routes: 0,
                pending: 0,
                oversize: 0,
                wants_refused: 0,
                handshakes: 0,
                bootstraps: 0,
                batches: 0,
                batches_refused: 0,
                last_error: None,
            },
            settings,
        }
    }

    /// This node wants what matches `filter` (without `$share/group/`). Counted: as many `unwant` undo it. For a plain
    /// subscription the route id is the filter, for a shared one `$s/group/filter`. Call `tick` afterwards.
    pub fn want(&mut self, filter: &str, route_id: &[u8]) -> Wanted {
        let wanted = self.interests.want(filter, route_id);
        self.status.wants_refused += u64::from(wanted == Wanted::Refused);
        wanted
    }

    /// Undoes one `want`.
    pub fn unwant(&mut self, filter: &str, route_id: &[u8]) {
        self.interests.unwant(filter, route_id);
    }

    /// Changes the link's `topics` without a gap: the remote is told the difference, additions first.
    pub fn set_topics(&mut self, topics: Vec<String>) {
        self.interests.set_topics(topics);
    }

    /// True once when it is time to dial; then call `opened` or `closed`.
    pub fn poll_dial(&mut self, now: u64) -> bool {
        self.client.poll_dial(now)
    }

    /// The transport is up.
    pub fn opened(&mut self, now: u64, out: &mut Vec<u8>) {
        self.client.opened(now, out);
    }

    /// Bytes from the remote, cut anywhere.
    pub fn received(&mut self, now: u64, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), LinkError> {
        if !self.client.is_open() {
            return Ok(());
        }
        let mut inbox = self.client.take_inbox();
        let result = inbox.feed(bytes, |packet| self.packet(now, packet, out));
        self.client.return_inbox(inbox);
        result.and_then(|()| self.pump(now, out)).inspect_err(|error| self.fail(error, out))
    }

    /// Lets time pass and sends what is due. Also to be called after `want` and `unwant`.
    pub fn tick(&mut self, now: u64, out: &mut Vec<u8>) -> Result<(), LinkError> {
        self.time_passes(now, out).inspect_err(|error| self.fail(error, out))
    }

    /// The transport is gone, or could not be opened.
    pub fn closed(&mut self, _now: u64) {
        // Heartbeats have no acknowledgement of their own, but one of them left shortly before each answered ping.
        if let Some(ping) = self.client.ping_answered()
            && self.stage == Stage::Accepted
        {
            self.alive_at = self.alive_at.max(ping.saturating_sub(us(self.settings.heartbeat_ms)));
        }
        self.client.closed();
        if let Some(outstanding) = self.outstanding.take() {
            self.interests.take_back(outstanding.sent);
        }
        self.bootstrap = Bootstrap::Idle;
        self.changed_since = None;
        self.batch_not_before = 0;
        self.stage = Stage::Subscribing;
        self.init_packet = None;
    }

    /// Ends the link: no more dialling; flush `out`, then close.
    pub fn stop(&mut self, out: &mut Vec<u8>) {
        self.client.stop(out);
    }

    /// When `poll_dial` or `tick` has something to do, on the clock of `now`; a past time means at once.
    pub fn deadline(&self) -> Option<u64> {
        let mut deadline = self.client.deadline();
        if self.client.is_up() {
            let stage = match self.stage {
                Stage::Accepted => self.heartbeat_at,
                _ => self.stage_since.saturating_add(us(self.settings.handshake_timeout_ms)),
            };
            deadline = earliest(deadline, Some(stage));
            if self.stage == Stage::Accepted {
                let batch = if self.may_send_batch() { self.batch_due() } else { None };
                deadline = earliest(deadline, earliest(self.ack_deadline(), batch));
            }
        }
        deadline
    }

    /// When an acknowledgement that is missing now makes us give the connection up.
    fn ack_deadline(&self) -> Option<u64> {
        let batch = self.outstanding.as_ref().map(|batch| batch.sent_at);
        let since = earliest(batch, self.init_packet.map(|_| self.stage_since));
        since.map(|since| since.saturating_add(us(self.settings.ack_timeout_ms)))
    }

    /// One batch at a time; and `actor_init`, answered but not acknowledged, still counts for the remote's window.
    fn may_send_batch(&self) -> bool {
        self.outstanding.is_none() && (self.init_packet.is_none() || self.client.remote.receive_maximum > 1)
    }

    /// Counters and the present.
    pub fn status(&self) -> Status {
        let standing = match (self.client.is_up(), self.stage, &self.bootstrap) {
            (false, ..) if self.client.is_open() => Standing::Handshaking,
            (false, ..) => Standing::Disconnected,
            (true, Stage::Accepted, Bootstrap::Idle) => Standing::Online,
            (true, Stage::Accepted, _) => Standing::Bootstrapping,
            (true, ..) => Standing::Handshaking,
        };
        Status {
            standing,
            routes: self.interests.announced(),
            pending: self.interests.changes() + self.outstanding.as_ref().map_or(0, |batch| batch.sent.len()),
            oversize: self.interests.oversize(),
            ..self.status.clone()
        }
    }

    fn fail(&mut self, error: &LinkError, out: &mut Vec<u8>) {
        self.client.fail(error, out);
        self.status.last_error = Some(error.clone());
    }

    fn packet(&mut self, now: u64, packet: Packet<'_>, out: &mut Vec<u8>) -> Result<(), LinkError> {
        match self.client.packet(&packet)? {
            Handled::Up => return self.subscribe(now, out),
            Handled::Done => return Ok(()),
            Handled::Other => {}
        }
        match packet {
            // A failed SUBACK is not believed: brokers with odd ACLs deliver all the same, and if this one does not,
            // the handshake times out and says so.
            Packet::Suback(_) if self.stage == Stage::Subscribing => {
                self.initialise(now, out);
                Ok(())
            }
            Packet::Puback(ack) => self.acknowledged(now, ack.packet_id, ack.reason),
            Packet::Publish(publish) => self.published(now, &publish, out),
            _ => Err(LinkError::PeerMisbehaved("a packet that a route connection does not get")),
        }
    }

    fn subscribe(&mut self, now: u64, out: &mut Vec<u8>) -> Result<(), LinkError> {
        if self.client.remote.qos_max == Qos::AtMostOnce {
            return Err(LinkError::RemoteLacksQos1);
        }
        self.stage = Stage::Subscribing;
        self.stage_since = now;
        let packet_id = self.client.use_packet_id();
        let entry = SubscribeEntry {
            filter: &self.resp_topic,
            qos: Qos::AtLeastOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        };
        encode::subscribe(out, Version::V5, packet_id, None, &[entry]);
        Ok(())
    }

    fn initialise(&mut self, now: u64, out: &mut Vec<u8>) {
        self.stage = Stage::Initialising;
        self.stage_since = now;
        self.settings.seed = self.settings.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.request_id = hex(mix(self.settings.seed));
        let packet_id = self.client.use_packet_id();
        self.init_packet = Some(packet_id);
        let mut payload = Vec::new();
        wire::put_actor_init(&mut payload, &self.settings.actor, self.settings.incarnation, &self.settings.remote);
        let properties = wire::Properties {
            response_topic: Some(&self.resp_topic),
            correlation_data: Some(&self.request_id),
            ..wire::Properties::default()
        };
        let mut forwarded = Vec::new();
        properties.forwarded(&mut forwarded);
        self.publish(out, Some(packet_id), &forwarded, &payload);
    }

    fn published(&mut self, now: u64, publish: &Publish<'_>, out: &mut Vec<u8>) -> Result<(), LinkError> {
        if publish.qos == Qos::ExactlyOnce {
            return Err(LinkError::PeerMisbehaved("a publish above the subscribed QoS"));
        }
        let ours = self.stage == Stage::Initialising
            && publish.topic == self.resp_topic
            && publish.properties.correlation_data == Some(&self.request_id[..]);
        if let Some(packet_id) = publish.packet_id {
            encode::ack(out, Version::V5, AckKind::Puback, packet_id, Reason::Success);
        }
        // An answer to an earlier request, or to another client's: every subscriber of the topic gets every answer.
        if !ours {
            return Ok(());
        }
        let mut scratch = core::mem::take(&mut self.scratch);
        let answer = match wire::decode_route(publish.payload, &mut scratch, &Limits::default()) {
            Ok(RouteMessage::ActorInitAck { result, .. }) => result.map_err(LinkError::refused),
            Ok(_) => Err(LinkError::BadAnswer(wire::WireError::Bad("$op"))),
            Err(error) => Err(LinkError::BadAnswer(error)),
        };
        self.scratch = scratch;
        self.accepted(now, answer?);
        Ok(())
    }

    fn accepted(&mut self, now: u64, need_bootstrap: bool) {
        self.stage = Stage::Accepted;
        self.status.handshakes += 1;
        self.heartbeat_at = now.saturating_add(us(self.settings.heartbeat_ms));
        self.interests.retry_oversize();
        // Told "no bootstrap" we still bootstrap when ours never finished, and after a silence in which the remote may
        // have forgotten us: some versions then say "no" all the same, and the link would be up without its routes.
        let forgotten = now.saturating_sub(self.alive_at) >= us(ACTOR_TTL_MS);
        if need_bootstrap || !self.bootstrapped || forgotten {
            self.bootstrapped = false;
            self.bootstrap = Bootstrap::After(None);
            self.interests.begin_bootstrap();
        }
        self.alive_at = self.stage_since;
        self.stage_since = now;
    }

    fn acknowledged(&mut self, now: u64, packet_id: PacketId, reason: Reason) -> Result<(), LinkError> {
        if self.init_packet == Some(packet_id) {
            self.init_packet = None;
            return if reason.is_failure() { Err(LinkError::InitNotTaken(reason)) } else { Ok(()) };
        }
        let Some(batch) = self.outstanding.take_if(|batch| batch.packet_id == packet_id) else {
            return Err(LinkError::PeerMisbehaved("an acknowledgement of nothing"));
        };
        self.alive_at = batch.sent_at;
        if reason.is_failure() {
            self.status.batches_refused += 1;
            self.interests.take_back(batch.sent);
            self.batch_not_before = now.saturating_add(us(self.settings.retry_ms));
        }
        // What a refusal took back waits among the changes, which outlive the connection: the walk is over.
        if matches!(self.bootstrap, Bootstrap::Closing) {
            self.bootstrap_done();
        }
        Ok(())
    }

    fn bootstrap_done(&mut self) {
        self.bootstrap = Bootstrap::Idle;
        self.bootstrapped = true;
        self.status.bootstraps += 1;
    }

    fn time_passes(&mut self, now: u64, out: &mut Vec<u8>) -> Result<(), LinkError> {
        self.client.tick(now, out)?;
        if !self.client.is_up() {
            return Ok(());
        }
        if self.stage != Stage::Accepted {
            let deadline = self.stage_since.saturating_add(us(self.settings.handshake_timeout_ms));
            return if now >= deadline { Err(LinkError::HandshakeTimeout) } else { Ok(()) };
        }
        if self.ack_deadline().is_some_and(|deadline| now >= deadline) {
            return Err(LinkError::AckTimeout);
        }
        if now >= self.heartbeat_at {
            self.heartbeat_at = now.saturating_add(us(self.settings.heartbeat_ms));
            let mut payload = Vec::new();
            wire::put_heartbeat(&mut payload, &self.settings.actor, self.settings.incarnation);
            self.publish(out, None, &[], &payload);
        }
        self.pump(now, out)
    }

    fn batch_due(&self) -> Option<u64> {
        if !matches!(self.bootstrap, Bootstrap::Idle) {
            return Some(self.batch_not_before);
        }
        let since = self.changed_since.unwrap_or(0);
        let due = since.saturating_add(us(self.settings.coalesce_ms)).max(self.batch_not_before);
        self.interests.has_changes().then_some(if self.changed_since.is_some() { due } else { 0 })
    }

    /// Sends the next batch if none is unacknowledged and one is due.
    fn pump(&mut self, now: u64, out: &mut Vec<u8>) -> Result<(), LinkError> {
        if self.stage != Stage::Accepted || !self.client.is_up() || !self.may_send_batch() {
            return Ok(());
        }
        if self.interests.has_changes() && self.changed_since.is_none() {
            self.changed_since = Some(now);
        }
        let mut batch = RouteBatch::new(&self.settings.actor, self.settings.incarnation);
        let mut sent = Sent::new();
        let bounds = self.batch_bounds();
        if let Bootstrap::After(cursor) = &mut self.bootstrap {
            if now < self.batch_not_before {
                return Ok(());
            }
            let cursor = cursor.take();
            let next = self.interests.fill_bootstrap(cursor.as_ref(), bounds, &mut batch, &mut sent);
            self.bootstrap = next.map_or(Bootstrap::Closing, |key| Bootstrap::After(Some(key)));
            // Nothing wanted, nothing to send: the remote learns that from our silence.
            if batch.is_empty() {
                self.bootstrap_done();
            }
        }
        if batch.is_empty() && self.batch_due().is_some_and(|due| now >= due) {
            self.interests.fill_changes(bounds, &mut batch, &mut sent);
            self.changed_since = None;
        }
        if batch.is_empty() {
            return Ok(());
        }
        let mut packet_id = self.client.use_packet_id();
        if Some(packet_id) == self.init_packet {
            packet_id = self.client.use_packet_id();
        }
        self.publish(out, Some(packet_id), &[], &batch.finish());
        self.outstanding = Some(Outstanding { packet_id, sent_at: now, sent });
        self.status.batches += 1;
        Ok(())
    }

    fn batch_bounds(&self) -> BatchBounds {
        // Fixed header, topic with its length, packet id, empty properties.
        let around = 5 + 2 + self.route_topic.len() + 2 + 1;
        BatchBounds {
            ops_max: self.settings.batch_ops_max,
            payload_bytes_max: self
                .settings
                .batch_bytes_max
                .min(self.client.remote.packet_bytes_max.saturating_sub(around)),
        }
    }

    fn publish(&self, out: &mut Vec<u8>, packet_id: Option<PacketId>, forwarded: &[u8], payload: &[u8]) {
        encode::publish(
            out,
            Version::V5,
            &encode::PublishParts {
                qos: if packet_id.is_some() { Qos::AtLeastOnce } else { Qos::AtMostOnce },
                topic: &self.route_topic,
                packet_id,
                forwarded,
                payload,
                ..encode::PublishParts::default()
            },
        );
    }
}

/// One step of SplitMix64: request ids must differ, not be secret.
fn mix(seed: u64) -> u64 {
    let seed = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let seed = (seed ^ (seed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    seed ^ (seed >> 31)
}

fn hex(value: u64) -> [u8; 16] {
    core::array::from_fn(|at| b"0123456789abcdef"[(value >> (60 - 4 * at)) as usize & 15])
}
