//! The sending end of a link on one shard: one forwarding connection and the messages that wait for it.
//!
//! Lives on every shard, so a publish leaves from the shard it arrived on, in the order of its arrival. Driven like
//! the requester. Always true: what is queued or unacknowledged is bounded in bytes, number and age; every message
//! given up has a reason and a counter; unacknowledged messages survive the connection and lead the next one, in order.
//!
//! Writing stops while `out` holds `out_bytes_max`; the shell calls `pump` again when it has flushed, so a remote that
//! does not read costs one such buffer and the queue, not more.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Bound;

use mqtt::codec::{AckKind, Packet, encode};
use mqtt::types::{PacketId, Qos, Reason, Version};

use crate::client::{Client, Handled, Login, earliest, us};
use crate::error::LinkError;
use crate::names;
use crate::waiting::Waiting;
use crate::wire::Message;

/// Unacknowledged messages of one connection at most: packet ids must stay free for the next ones.
pub const INFLIGHT_MAX: u16 = 32_767;
/// Buffers of acknowledged messages kept for the next ones.
const SPARE_BUFFERS_MAX: usize = 64;
/// A buffer that held a message larger than this is freed, not kept.
const SPARE_BUFFER_BYTES_MAX: usize = 4096;

/// What one outlet is configured with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our `cluster.name`.
    pub cluster: String,
    /// Connection. The client id must differ between shards, see [`names::msg_client_id`].
    pub login: Login,
    /// Unacknowledged messages; the remote's Receive Maximum caps it further. 0 counts as 1.
    pub max_inflight: u16,
    /// Bytes that may wait, sent and unacknowledged ones included.
    pub queued_bytes_max: usize,
    /// Messages that may wait, likewise.
    pub queued_max: usize,
    /// Age at which a waiting message is given up.
    pub queued_age_ms: u64,
    /// Bytes of one encoded message.
    pub message_bytes_max: usize,
    /// Time for an acknowledgement; then the connection is made anew and the message sent again.
    pub ack_timeout_ms: u64,
    /// Nothing is appended to `out` while it holds this much.
    pub out_bytes_max: usize,
}

impl Settings {
    /// EMQX's window and clocks and our limits, for the `n`-th connection of `node`, counted from 1.
    pub fn new(cluster: &str, node: &str, n: u32) -> Settings {
        let mut login = Login::new(names::msg_client_id(cluster, node, n));
        login.reconnect_ms = 2000;
        Settings {
            cluster: cluster.into(),
            login,
            max_inflight: 32,
            queued_bytes_max: 64 << 20,
            queued_max: 1_000_000,
            queued_age_ms: 3_600_000,
            message_bytes_max: 16 << 20,
            ack_timeout_ms: 30_000,
            out_bytes_max: 256 << 10,
        }
    }
}

/// Why a message was given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shed {
    /// Larger than `message_bytes_max`, whatever the remote takes.
    TooLarge,
    /// Larger than the remote's Maximum Packet Size.
    TooLargeForRemote,
    /// The queue is full and holds nothing of less worth.
    QueueFull,
    /// A waiting QoS 0 message made room for another one.
    Displaced,
    /// Waited longer than `queued_age_ms`.
    TooOld,
    /// Its own expiry interval passed while it waited.
    Expired,
    /// The remote acknowledged it with a failure, so EMQX would lose it, and so do we: again would fail again.
    RefusedByRemote,
    /// Its properties are not what the codec validates.
    BadProperties,
    /// The link was stopped with it in the queue.
    Stopped,
}

impl Shed {
    /// Every reason, in the order of its counter.
    pub const ALL: [Shed; 9] = [
        Shed::TooLarge,
        Shed::TooLargeForRemote,
        Shed::QueueFull,
        Shed::Displaced,
        Shed::TooOld,
        Shed::Expired,
        Shed::RefusedByRemote,
        Shed::BadProperties,
        Shed::Stopped,
    ];

    /// Its name in counters.
    pub fn name(self) -> &'static str {
        match self {
            Shed::TooLarge => "too_large",
            Shed::TooLargeForRemote => "too_large_for_remote",
            Shed::QueueFull => "queue_full",
            Shed::Displaced => "displaced",
            Shed::TooOld => "too_old",
            Shed::Expired => "expired",
            Shed::RefusedByRemote => "refused_by_remote",
            Shed::BadProperties => "bad_properties",
            Shed::Stopped => "stopped",
        }
    }

    /// What an operator can do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Shed::TooLarge => "a message exceeds what an outlet takes; raise the limit or send less",
            Shed::TooLargeForRemote => "the remote takes smaller packets; raise its mqtt.max_packet_size",
            Shed::QueueFull => "the remote is away or slower than we publish; raise the queue or the link's speed",
            Shed::Displaced => "older QoS 0 messages made room; the queue is full, as for queue_full",
            Shed::TooOld => "the remote was away longer than messages are kept",
            Shed::Expired => "messages expired before the remote took them",
            Shed::RefusedByRemote => {
                "the remote refuses messages; may our user publish to $LINK/#, is its quota used up?"
            }
            Shed::BadProperties => "a publish carries properties that cannot be forwarded",
            Shed::Stopped => "the link was disabled, removed or reconfigured",
        }
    }
}

/// What became of an offered message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offered {
    /// Queued, or already written to `out`. So many older QoS 0 messages made room for it.
    Taken {
        /// Its place in this outlet's order; never 0.
        place: u64,
        /// Their number; each is counted as [`Shed::Displaced`].
        displaced: u32,
    },
    /// Given up at once.
    Shed(Shed),
}

/// Counters since start, and the present.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// The remote has accepted the connection.
    pub connected: bool,
    /// Messages that wait to be sent.
    pub queued: usize,
    /// Messages sent and unacknowledged.
    pub inflight: usize,
    /// Bytes of both.
    pub bytes: usize,
    /// Messages taken.
    pub taken: u64,
    /// Messages written, repetitions included.
    pub sent: u64,
    /// Messages written again on a later connection.
    pub resent: u64,
    /// Messages acknowledged, or sent with QoS 0.
    pub delivered: u64,
    /// Acknowledged ones for which the remote had no subscriber.
    pub without_subscribers: u64,
    /// Messages given up, by [`Shed::ALL`].
    pub shed: [u64; Shed::ALL.len()],
    /// The failure of the last refused message.
    pub last_refusal: Option<Reason>,
    /// Why the last connection ended.
    pub last_error: Option<LinkError>,
}

impl Status {
    /// The counter of one reason.
    pub fn shed(&self, shed: Shed) -> u64 {
        self.shed[shed as usize]
    }
}

#[derive(Debug)]
struct Inflight {
    packet_id: PacketId,
    at: u64,
    sent_at: u64,
    entry: Waiting,
}

/// See the module's head.
#[derive(Debug)]
pub struct Outlet {
    settings: Settings,
    topic: String,
    client: Client,
    /// By order of arrival: the key only grows, so what returns from an ended connection finds its old place.
    queue: BTreeMap<u64, Waiting>,
    /// Keys of queued QoS 0 messages, oldest first; may name some that have left.
    lossy: VecDeque<u64>,
    /// In the order of places too: what is sent was first in the queue.
    inflight: VecDeque<Inflight>,
    next: u64,
    /// Places of messages with an acknowledgement that have left since the shell asked.
    gone: Vec<u64>,
    /// Stopped, and what waits goes on in a later life of the shell.
    kept: bool,
    bytes: usize,
    spare: Vec<Vec<u8>>,
    status: Status,
}

impl Outlet {
    /// An outlet that will dial at once.
    pub fn new(settings: Settings) -> Outlet {
        Outlet {
            topic: names::msg_topic(&settings.cluster),
            client: Client::new(settings.login.clone()),
            queue: BTreeMap::new(),
            lossy: VecDeque::new(),
            inflight: VecDeque::new(),
            next: 1,
            gone: Vec::new(),
            kept: false,
            bytes: 0,
            spare: Vec::new(),
            status: Status::default(),
            settings,
        }
    }

    /// Takes a message that the remote wants, or says why not. Its own expiry counts from `now`:
    /// `message.message_expiry_s` is what is left of it, and `message.timestamp_ms` is the wall clock of `now`.
    pub fn offer(&mut self, now: u64, message: &Message<'_>, out: &mut Vec<u8>) -> Offered {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        if self.client.is_stopped() && !(self.kept && message.qos != Qos::AtMostOnce) {
            return self.refuse(buffer, Shed::Stopped);
        }
        let mut entry = match Waiting::new(buffer, message) {
            Ok(entry) => entry,
            Err((buffer, _)) => return self.refuse(buffer, Shed::BadProperties),
        };
        if entry.payload().len() > self.settings.message_bytes_max {
            return self.refuse(entry.into_buffer(), Shed::TooLarge);
        }
        (entry.until, entry.expires) = self.until(now, 0, message);
        self.give_up_old(now);
        let displaced = match self.make_room(entry.cost()) {
            Some(displaced) => displaced,
            None => return self.refuse(entry.into_buffer(), Shed::QueueFull),
        };
        self.bytes += entry.cost();
        self.status.taken += 1;
        let place = self.next;
        self.next += 1;
        if self.queue.is_empty() && self.has_room(&entry, out) {
            self.write(now, place, entry, out);
        } else {
            if entry.qos == Qos::AtMostOnce {
                self.lossy.push_back(place);
            }
            self.queue.insert(place, entry);
            self.pump(now, out);
        }
        Offered::Taken { place, displaced }
    }

    /// Takes back a message of an earlier life, before anything is offered and in the order of that life: it has waited
    /// for `age_ms`, and its expiry counts from that long ago. No bound but its age applies, because what was accepted
    /// stays accepted. `place` is the one that it had; if that is not behind the last one (several outlets become one),
    /// it gets the next. False: it cannot be encoded.
    pub fn restore(&mut self, now: u64, place: u64, age_ms: u64, message: &Message<'_>) -> bool {
        let Ok(mut entry) = Waiting::new(Vec::new(), message) else { return false };
        (entry.until, entry.expires) = self.until(now, age_ms, message);
        // It may have been sent.
        entry.again = true;
        let place = place.max(self.next);
        self.next = place + 1;
        self.bytes += entry.cost();
        self.queue.insert(place, entry);
        true
    }

    /// Places up to this one were given in an earlier life.
    pub fn restore_place(&mut self, place: u64) {
        self.next = self.next.max(place.saturating_add(1));
    }

    /// Until when a message that has waited for `age_ms` may wait, and whether it is its own expiry that says so.
    fn until(&self, now: u64, age_ms: u64, message: &Message<'_>) -> (u64, bool) {
        let aged = now.saturating_add(us(self.settings.queued_age_ms.saturating_sub(age_ms)));
        let left_ms = message.message_expiry_s.map(|seconds| (u64::from(seconds) * 1000).saturating_sub(age_ms));
        let expiry = left_ms.map(|left_ms| now.saturating_add(us(left_ms)));
        let until = expiry.map_or(aged, |expiry| expiry.min(aged));
        (until, expiry == Some(until))
    }

    /// The first message behind `place` that has not left, and its place; its content only if it has an acknowledgement
    /// to give, as nobody keeps the others. `message.message_expiry_s` counts from `message.timestamp_ms`.
    pub fn waiting_after(&self, place: u64) -> Option<(u64, Option<Message<'_>>)> {
        let sent = self.inflight.get(self.inflight.partition_point(|sent| sent.at <= place));
        let sent = sent.map(|sent| (sent.at, &sent.entry));
        let queued = || self.queue.range((Bound::Excluded(place), Bound::Unbounded)).next();
        let (place, entry) = sent.or_else(|| queued().map(|(place, entry)| (*place, entry)))?;
        Some((place, entry.message()))
    }

    /// The place that the next message gets.
    pub fn next_place(&self) -> u64 {
        self.next
    }

    /// Places of messages with an acknowledgement to give that have left since the last call, whatever became of them.
    /// To be called soon after each other call that takes messages or lets time pass.
    pub fn gone(&mut self) -> impl Iterator<Item = u64> {
        self.gone.drain(..)
    }

    /// Lets time pass for an outlet that has no connection and may make none: gives up what is too old.
    pub fn expire(&mut self, now: u64) {
        self.give_up_old(now);
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
        let result = inbox.feed(bytes, |packet| self.packet(packet, out));
        self.client.return_inbox(inbox);
        result.inspect_err(|error| self.fail(error, out))?;
        self.pump(now, out);
        Ok(())
    }

    /// Lets time pass and sends what is due.
    pub fn tick(&mut self, now: u64, out: &mut Vec<u8>) -> Result<(), LinkError> {
        self.client.tick(now, out).inspect_err(|error| self.fail(error, out))?;
        if self.client.is_up() && self.ack_deadline().is_some_and(|deadline| now >= deadline) {
            self.fail(&LinkError::AckTimeout, out);
            return Err(LinkError::AckTimeout);
        }
        self.give_up_old(now);
        self.pump(now, out);
        Ok(())
    }

    /// The transport is gone, or could not be opened. What was not acknowledged goes back to its place in the queue.
    pub fn closed(&mut self, _now: u64) {
        self.client.closed();
        for mut sent in self.inflight.drain(..) {
            sent.entry.again = true;
            self.queue.insert(sent.at, sent.entry);
        }
    }

    /// Loses what was sent and not acknowledged: only to plant a fault.
    #[cfg(feature = "plant")]
    pub fn forget_unacknowledged(&mut self) {
        let lost = self.inflight.drain(..);
        self.bytes -= lost.map(|sent| sent.entry.cost()).sum::<usize>();
    }

    /// Ends the link: no more dialling. Flush `out`, then close. What waits is shed; `kept`: only what has no
    /// acknowledgement to give, because the shell has the rest in its log and goes on with it in a later life.
    pub fn stop(&mut self, kept: bool, out: &mut Vec<u8>) {
        self.client.stop(out);
        self.kept = kept;
        if kept {
            while let Some(place) = self.lossy.pop_front() {
                self.shed_queued(place, Shed::Stopped);
            }
            return;
        }
        self.status.shed[Shed::Stopped as usize] += (self.queue.len() + self.inflight.len()) as u64;
        let sent = self.inflight.drain(..).map(|sent| (sent.at, sent.entry));
        let left = sent.chain(core::mem::take(&mut self.queue));
        self.gone.extend(left.filter(|(_, entry)| entry.qos != Qos::AtMostOnce).map(|(place, _)| place));
        self.lossy.clear();
        self.bytes = 0;
    }

    /// Does anything wait for room in `out` or in the window?
    pub fn waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// When `poll_dial` or `tick` has something to do, on the clock of `now`; a past time means at once.
    pub fn deadline(&self) -> Option<u64> {
        let acks = if self.client.is_up() { self.ack_deadline() } else { None };
        earliest(earliest(self.client.deadline(), acks), self.expires())
    }

    /// When `expire` has something to do.
    pub fn expires(&self) -> Option<u64> {
        self.queue.first_key_value().map(|(_, entry)| entry.until)
    }

    /// Counters and the present.
    pub fn status(&self) -> Status {
        Status {
            connected: self.client.is_up(),
            queued: self.queue.len(),
            inflight: self.inflight.len(),
            bytes: self.bytes,
            ..self.status.clone()
        }
    }

    /// Writes what the window, the remote and `out` have room for. To be called after every flush of `out`.
    pub fn pump(&mut self, now: u64, out: &mut Vec<u8>) {
        while let Some((_, entry)) = self.queue.first_key_value() {
            if now >= entry.until {
                self.give_up_first();
                continue;
            }
            if !self.has_room(entry, out) {
                return;
            }
            let Some((at, entry)) = self.queue.pop_first() else { return };
            self.write(now, at, entry, out);
        }
    }

    fn outer_qos(&self, entry: &Waiting) -> Qos {
        entry.qos.min(Qos::AtLeastOnce).min(self.client.remote.qos_max)
    }

    fn has_room(&self, entry: &Waiting, out: &[u8]) -> bool {
        if !self.client.is_up() || out.len() >= self.settings.out_bytes_max {
            return false;
        }
        if self.outer_qos(entry) == Qos::AtMostOnce {
            return true;
        }
        let window = self.settings.max_inflight.clamp(1, INFLIGHT_MAX).min(self.client.remote.receive_maximum);
        // Ids are given in a circle and the oldest leads: as long as the next is not the oldest's, it is free.
        let oldest = self.inflight.front().map(|sent| sent.packet_id);
        self.inflight.len() < usize::from(window) && Some(self.client.next_packet_id()) != oldest
    }

    fn write(&mut self, now: u64, at: u64, entry: Waiting, out: &mut Vec<u8>) {
        let qos = self.outer_qos(&entry);
        let acknowledged = qos != Qos::AtMostOnce;
        let parts = encode::PublishParts {
            dup: entry.again && acknowledged,
            qos,
            topic: &self.topic,
            packet_id: acknowledged.then(|| self.client.next_packet_id()),
            payload: entry.payload(),
            ..encode::PublishParts::default()
        };
        if encode::publish_bytes(Version::V5, &parts) > self.client.remote.packet_bytes_max {
            self.status.shed[Shed::TooLargeForRemote as usize] += 1;
            return self.release(at, entry);
        }
        encode::publish(out, Version::V5, &parts);
        self.status.sent += 1;
        self.status.resent += u64::from(entry.again);
        match parts.packet_id {
            Some(packet_id) => {
                self.client.use_packet_id();
                self.inflight.push_back(Inflight { packet_id, at, sent_at: now, entry });
            }
            None => {
                self.status.delivered += 1;
                self.release(at, entry);
            }
        }
    }

    /// Where in the window an id stands: ids are given in a circle, so the window is sorted by distance to its oldest.
    fn find_inflight(&self, packet_id: PacketId) -> Option<usize> {
        let oldest = self.inflight.front()?.packet_id;
        let distance = |id: PacketId| (u32::from(id.get()) + u32::from(u16::MAX) - u32::from(oldest.get())) % 65_535;
        self.inflight.binary_search_by_key(&distance(packet_id), |sent| distance(sent.packet_id)).ok()
    }

    fn packet(&mut self, packet: Packet<'_>, out: &mut Vec<u8>) -> Result<(), LinkError> {
        match (self.client.packet(&packet)?, packet) {
            (Handled::Up | Handled::Done, _) => Ok(()),
            (Handled::Other, Packet::Puback(ack)) => {
                let found = self.find_inflight(ack.packet_id);
                let Some(sent) = found.and_then(|at| self.inflight.remove(at)) else {
                    return Err(LinkError::PeerMisbehaved("an acknowledgement of nothing"));
                };
                if ack.reason.is_failure() {
                    self.status.shed[Shed::RefusedByRemote as usize] += 1;
                    self.status.last_refusal = Some(ack.reason);
                } else {
                    self.status.delivered += 1;
                    self.status.without_subscribers += u64::from(ack.reason == Reason::NoMatchingSubscribers);
                }
                self.release(sent.at, sent.entry);
                Ok(())
            }
            // Whoever subscribed this client id elsewhere: acknowledged so that the remote's window stays open.
            (Handled::Other, Packet::Publish(publish)) => match (publish.qos, publish.packet_id) {
                (Qos::AtLeastOnce, Some(id)) => {
                    encode::ack(out, Version::V5, AckKind::Puback, id, Reason::Success);
                    Ok(())
                }
                (Qos::AtMostOnce, _) => Ok(()),
                _ => Err(LinkError::PeerMisbehaved("a QoS 2 publish to a forwarding connection")),
            },
            _ => Err(LinkError::PeerMisbehaved("a packet that a forwarding connection does not get")),
        }
    }

    fn fail(&mut self, error: &LinkError, out: &mut Vec<u8>) {
        self.client.fail(error, out);
        self.status.last_error = Some(error.clone());
    }

    fn ack_deadline(&self) -> Option<u64> {
        self.inflight.front().map(|sent| sent.sent_at.saturating_add(us(self.settings.ack_timeout_ms)))
    }

    fn refuse(&mut self, payload: Vec<u8>, shed: Shed) -> Offered {
        self.keep_spare(payload);
        self.status.shed[shed as usize] += 1;
        Offered::Shed(shed)
    }

    /// Sheds the oldest QoS 0 messages until `cost` fits. A message with an acknowledgement to give is never displaced:
    /// its publisher was told that we have it, while the publisher of the new one can still be told that we do not.
    fn make_room(&mut self, cost: usize) -> Option<u32> {
        let mut displaced = 0;
        while self.bytes + cost > self.settings.queued_bytes_max
            || self.queue.len() + self.inflight.len() >= self.settings.queued_max
        {
            let oldest = self.lossy.pop_front()?;
            if self.queue.contains_key(&oldest) {
                self.shed_queued(oldest, Shed::Displaced);
                displaced += 1;
            }
        }
        Some(displaced)
    }

    fn give_up_old(&mut self, now: u64) {
        while self.queue.first_key_value().is_some_and(|(_, entry)| now >= entry.until) {
            self.give_up_first();
        }
    }

    fn give_up_first(&mut self) {
        if let Some((&at, entry)) = self.queue.first_key_value() {
            let shed = if entry.expires { Shed::Expired } else { Shed::TooOld };
            self.shed_queued(at, shed);
        }
    }

    fn shed_queued(&mut self, at: u64, shed: Shed) {
        if let Some(entry) = self.queue.remove(&at) {
            self.status.shed[shed as usize] += 1;
            self.release(at, entry);
        }
    }

    fn release(&mut self, at: u64, entry: Waiting) {
        self.bytes -= entry.cost();
        if entry.qos != Qos::AtMostOnce {
            self.gone.push(at);
        }
        self.keep_spare(entry.into_buffer());
        // Keys of messages that have left: once they are most of the list, what is left of it is found anew.
        if self.lossy.len() > 64 + 2 * self.queue.len() {
            let queue = &self.queue;
            self.lossy.retain(|at| queue.contains_key(at));
        }
    }

    fn keep_spare(&mut self, payload: Vec<u8>) {
        if self.spare.len() < SPARE_BUFFERS_MAX && payload.capacity() <= SPARE_BUFFER_BYTES_MAX {
            self.spare.push(payload);
        }
    }
}

const _: () = assert!(INFLIGHT_MAX <= u16::MAX / 2, "half of the packet ids stay free when the window is full");
