//! The state of a session that outlives its connection (MQTT 5, 4.1): handshakes, queue, will, expiry.
//! Owned by the broker on the home shard. `M` is one delivery as the owner keeps it. Subscriptions are
//! kept by the owner, where they are searched.

use alloc::{boxed::Box, collections::VecDeque, vec::Vec};

use crate::{
    codec::Will,
    types::Qos,
    window::{Incoming, Outgoing},
};

/// What a session needs to know of a delivery.
pub trait Queueable {
    /// What it costs in the queue.
    fn bytes(&self) -> usize;
    /// QoS of this delivery.
    fn qos(&self) -> Qos;
    /// Monotonic time in microseconds at which the message expires; `u64::MAX`: never.
    fn expires_us(&self) -> u64;
}

/// Bounds of the queue (`mqtt.max_mqueue_len`, `mqtt.max_mqueue_bytes`).
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Messages at most.
    pub queued_max: usize,
    /// Bytes at most.
    pub queued_bytes_max: u64,
}

/// A will as CONNECT gave it, owned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WillMessage {
    /// Topic name, valid.
    pub topic: Box<str>,
    /// Application message.
    pub payload: Box<[u8]>,
    /// Properties that are passed on unchanged, in wire form.
    pub properties: Box<[u8]>,
    /// QoS of the publish.
    pub qos: Qos,
    /// Publish it as a retained message.
    pub retain: bool,
    /// Will Delay Interval in seconds.
    pub delay_s: u32,
    /// Message Expiry Interval in seconds, from its publication on.
    pub expiry_s: Option<u32>,
}

impl From<&Will<'_>> for WillMessage {
    fn from(will: &Will<'_>) -> WillMessage {
        let mut properties = Vec::new();
        //= MQTT-3.1.3-10
        will.properties.forwarded(&mut properties);
        WillMessage {
            topic: will.topic.into(),
            payload: will.payload.into(),
            properties: properties.into(),
            qos: will.qos,
            retain: will.retain,
            delay_s: will.delay_s,
            expiry_s: will.properties.message_expiry_s,
        }
    }
}

/// Session state.
#[derive(Debug)]
pub struct Session<M> {
    /// Messages sent and unfinished.
    pub outgoing: Outgoing<M>,
    /// QoS 2 messages received and unreleased.
    pub incoming: Incoming,
    /// Seconds that the session outlives its connection; `u32::MAX`: for ever.
    pub expiry_s: u32,
    /// To publish when the connection ends without a DISCONNECT.
    pub will: Option<Box<WillMessage>>,
    queue: VecDeque<M>,
    queued_bytes: u64,
}

impl<M: Queueable> Session<M> {
    /// A new session.
    pub fn new(expiry_s: u32) -> Session<M> {
        Session {
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            expiry_s,
            will: None,
            queue: VecDeque::new(),
            queued_bytes: 0,
        }
    }

    /// Messages accepted and not yet sent.
    #[inline]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Their bytes.
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// May a QoS 1 or 2 message be sent at once? Not while others wait: order.
    #[inline]
    pub fn room(&self, send_max: u16) -> bool {
        //= MQTT-4.9.0-2
        self.queue.is_empty() && !self.outgoing.owes() && self.outgoing.len() < usize::from(send_max)
    }

    /// Queues a delivery behind the others. Full: it comes back, because what was accepted earlier stays.
    pub fn enqueue(&mut self, delivery: M, limits: &QueueLimits) -> Result<&M, M> {
        let bytes = delivery.bytes() as u64;
        if self.queue.len() >= limits.queued_max || self.queued_bytes + bytes > limits.queued_bytes_max {
            return Err(delivery);
        }
        self.queued_bytes += bytes;
        self.queue.push_back(delivery);
        Ok(&self.queue[self.queue.len() - 1])
    }

    /// The next queued delivery that the window has room for; expired ones go to `expired`.
    pub fn next(&mut self, now_us: u64, send_max: u16, mut expired: impl FnMut(M)) -> Option<M> {
        while let Some(front) = self.queue.front() {
            let dead = front.expires_us() <= now_us;
            let room = self.outgoing.len() < usize::from(send_max);
            //= MQTT-4.9.0-2
            if !dead && front.qos() != Qos::AtMostOnce && !room {
                return None;
            }
            let delivery = self.queue.pop_front()?;
            self.queued_bytes -= delivery.bytes() as u64;
            if !dead {
                return Some(delivery);
            }
            expired(delivery);
        }
        if self.queue.capacity() > QUEUE_KEPT {
            self.queue = VecDeque::new();
        }
        None
    }

    /// Takes out of the queue what `keep` does not want, in order.
    pub fn retain_queue(&mut self, keep: impl Fn(&M) -> bool, mut gone: impl FnMut(M)) {
        if self.queue.iter().all(&keep) {
            return;
        }
        for delivery in core::mem::take(&mut self.queue) {
            if keep(&delivery) {
                self.queue.push_back(delivery);
            } else {
                self.queued_bytes -= delivery.bytes() as u64;
                gone(delivery);
            }
        }
    }

    /// Everything queued, in order, without changing it: for an export.
    pub fn waiting(&self) -> impl Iterator<Item = &M> {
        self.queue.iter()
    }

    /// The queue, in order.
    pub fn queue(&self) -> &VecDeque<M> {
        &self.queue
    }

    /// Everything that was not delivered, given back when the session ends.
    pub fn undelivered(&mut self) -> impl Iterator<Item = M> + '_ {
        self.queued_bytes = 0;
        self.outgoing.drain().chain(self.queue.drain(..))
    }

    /// Does the session survive the end of its connection?
    pub fn persistent(&self) -> bool {
        self.expiry_s > 0
    }

    /// How long after the end of the connection the will is due, in microseconds: its delay, but not
    /// longer than the session lives.
    pub fn will_delay_us(&self) -> u64 {
        //= MQTT-3.1.3-9
        let delay_s = self.will.as_ref().map_or(0, |will| will.delay_s);
        u64::from(delay_s.min(self.expiry_s)) * 1_000_000
    }
}

/// An emptied queue with more room than this gives its memory back.
const QUEUE_KEPT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Delivery(u32, Qos, u64);

    impl Queueable for Delivery {
        fn bytes(&self) -> usize {
            10
        }
        fn qos(&self) -> Qos {
            self.1
        }
        fn expires_us(&self) -> u64 {
            self.2
        }
    }

    const LIMITS: QueueLimits = QueueLimits { queued_max: 3, queued_bytes_max: 25 };

    #[test]
    fn a_full_queue_gives_the_newest_back() {
        let mut session = Session::new(1);
        let one = |n| Delivery(n, Qos::AtLeastOnce, u64::MAX);
        assert!(session.enqueue(one(1), &LIMITS).is_ok());
        assert!(session.enqueue(one(2), &LIMITS).is_ok());
        assert_eq!(session.enqueue(one(3), &LIMITS), Err(one(3)), "bytes");
        let short = QueueLimits { queued_max: 2, queued_bytes_max: 1000 };
        assert_eq!(session.enqueue(one(3), &short), Err(one(3)), "count");
    }

    #[test]
    fn the_queue_leaves_in_order_within_the_window_and_without_what_expired() {
        let mut session = Session::new(1);
        let limits = QueueLimits { queued_max: 10, queued_bytes_max: 1000 };
        for (n, qos, at) in [(1, 1, u64::MAX), (2, 1, 50), (3, 0, u64::MAX), (4, 1, u64::MAX)] {
            let delivery = Delivery(n, Qos::from_bits(qos).unwrap(), at);
            session.enqueue(delivery, &limits).unwrap();
        }
        let mut expired = Vec::new();
        let first = session.next(100, 1, |d| expired.push(d.0)).unwrap();
        assert_eq!(first.0, 1);
        session.outgoing.send(Qos::AtLeastOnce, first);
        assert_eq!(session.next(100, 1, |d| expired.push(d.0)).map(|d| d.0), Some(3));
        assert_eq!(session.next(100, 1, |d| expired.push(d.0)), None, "the window is full");
        assert_eq!(expired, [2]);
        assert_eq!((session.queued(), session.queued_bytes()), (1, 10));
    }

    #[test]
    fn a_will_waits_no_longer_than_its_session_lives() {
        let mut session = Session::<Delivery>::new(5);
        session.will = Some(Box::new(WillMessage {
            topic: "w".into(),
            payload: Box::default(),
            properties: Box::default(),
            qos: Qos::AtMostOnce,
            retain: false,
            delay_s: 9,
            expiry_s: None,
        }));
        assert_eq!(session.will_delay_us(), 5_000_000);
        session.expiry_s = 0;
        assert_eq!(session.will_delay_us(), 0);
    }
}
