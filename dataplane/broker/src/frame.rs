//! Frames: the one format that serves hop, peer, link extension and log. Encoded once, read in place.
//! All integers are little-endian. ARCHITECTURE.md has the page with test vectors.
//!
//! ```text
//! every frame   0 u8 version   1 u8 kind   2 u8 must   3 u8 may   4 u32 bytes (with these 8)
//! message       8 u32 cluster  12 u32 node  16 u32 incarnation  20 u32 stream  24 u64 sequence
//!              32 u64 stamp    40 u64 token 48 u64 expiry_ms    56 u64 publisher
//!              64 u8 qos|retain<<2|dup<<3   65 u8 path   66 u8 groups   67 u8 0
//!              68 u16 topic    70 u16 0     72 u32 properties
//!              76 path*u32, groups*u32, topic, properties, payload (the rest)
//! ```
//! `must` holds flags that a reader has to understand; an unknown one is refused. `may` holds hints.

use alloc::{rc::Rc, vec::Vec};
use core::cell::Cell;

use mqtt::types::Qos;

/// Version of the format.
pub const VERSION: u8 = 1;
/// Bytes before the body of any frame.
pub const PREFIX_BYTES: usize = 8;
/// Bytes before path, groups, topic, properties and payload of a message frame.
pub const MESSAGE_HEADER_BYTES: usize = 76;
/// Clusters that a message may have passed.
pub const PATH_MAX: usize = 16;

/// What a frame is. Numbers are final.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A message for the sessions, groups or retained values of a shard.
    Message = 1,
    /// A message for one member of a shared group.
    GroupDelivery = 2,
    /// The member was away: the message returns to the group's owner, once.
    GroupReturned = 3,
    /// An obligation is met or refused.
    Done = 4,
    /// A filter begins or ends to interest a destination; or a mark to confirm, without a filter.
    Interest = 5,
    /// Interest up to a number is live.
    InterestAck = 6,
    /// Asks the owner for retained values.
    RetainedQuery = 7,
    /// A page of retained values.
    RetainedPage = 8,
    /// A member joins, leaves, comes online or goes offline.
    GroupMember = 9,
    /// A payload of a remote's route connection, for the owner shard of the link.
    LinkRoute = 10,
    /// A route connection has ended.
    LinkGone = 11,
    /// A shared group begins or ends, for the owner shard of a link.
    InterestTold = 12,
    /// A session, exported.
    Session = 13,
}

impl Kind {
    fn from_u8(kind: u8) -> Option<Kind> {
        use Kind::*;
        const ALL: [Kind; 13] = [
            Message,
            GroupDelivery,
            GroupReturned,
            Done,
            Interest,
            InterestAck,
            RetainedQuery,
            RetainedPage,
            GroupMember,
            LinkRoute,
            LinkGone,
            InterestTold,
            Session,
        ];
        ALL.get(usize::from(kind).wrapping_sub(1)).copied()
    }
}

/// Flags of [`Kind::Message`] that the reader has to understand.
pub mod must {
    /// Deliver to sessions that are at home on the reading shard.
    pub const DELIVER: u8 = 1;
    /// Store (or delete) as the retained value: the reader owns the topic's partition.
    pub const STORE: u8 = 2;
    /// Choose a member in each matching group that the reader owns.
    pub const GROUPS: u8 = 4;
    /// A group delivery that may not return: the member queues it or sheds it.
    pub const FINAL: u8 = 8;
    /// Everything that this version knows.
    pub const KNOWN: u8 = 15;
}

/// Flags that a reader may ignore.
pub mod may {
    /// The message came over a link: it is never offered to an outlet.
    pub const FROM_LINK: u8 = 1;
    /// The shard of its publisher repeats it after a crash until every destination has taken it.
    pub const DURABLE: u8 = 2;
}

/// Why a frame was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadFrame {
    /// Fewer bytes than the frame says, or than its kind needs.
    Short,
    /// Another format version.
    Version(u8),
    /// A kind that this version does not know.
    Kind(u8),
    /// A must-understand flag that this version does not know.
    Flags(u8),
    /// A field outside its range.
    Field(&'static str),
}

/// Identity of a message: who made it and which one it was.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash, PartialOrd, Ord, Debug)]
pub struct MessageId {
    /// Stable hash of the origin cluster's name.
    pub cluster: u32,
    /// Stable hash of the origin node's name.
    pub node: u32,
    /// Start number of that node.
    pub incarnation: u32,
    /// Ordered source: a home shard, an outlet.
    pub stream: u32,
    /// Position in the stream; from 1.
    pub sequence: u64,
}

/// A message inside the broker, borrowed from a receive buffer, a mailbox batch or a kept copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    /// Identity.
    pub id: MessageId,
    /// Retained values: time that the owner shard gave (0: none yet).
    pub stamp: u64,
    /// Remaining life in milliseconds; `u64::MAX` is for ever.
    pub expiry_ms: u64,
    /// Stable hash of the publishing client id (No Local); 0 for none.
    pub publisher: u64,
    /// QoS of the publish.
    pub qos: Qos,
    /// RETAIN flag of the publish.
    pub retain: bool,
    /// Came over a link.
    pub from_link: bool,
    /// Its publisher's shard repeats it after a crash until every destination has taken it.
    pub durable: bool,
    /// Topic name, valid.
    pub topic: &'a str,
    /// MQTT 5 properties that are passed on unchanged, in wire form.
    pub properties: &'a [u8],
    /// Application message.
    pub payload: &'a [u8],
}

/// A message frame as read from a hop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MessageFrame<'a> {
    /// [`must`] flags.
    pub must: u8,
    /// The obligation to report with [`Kind::Done`]; 0: nobody waits.
    pub token: u64,
    /// The chosen groups, raw: see [`MessageFrame::group_words`].
    groups: &'a [u8],
    /// What is carried.
    pub message: Message<'a>,
}

/// Words that a group delivery carries: group index and generation at its owner, session index and
/// generation at its home, options, subscription identifier.
pub const GROUP_WORDS: usize = 6;

impl MessageFrame<'_> {
    /// The words of a group delivery.
    pub fn group_words(&self) -> Result<[u32; GROUP_WORDS], BadFrame> {
        if self.groups.len() != GROUP_WORDS * 4 {
            return Err(BadFrame::Field("groups"));
        }
        Ok(core::array::from_fn(|i| read_u32(self.groups, i * 4)))
    }
}

/// Appends a message frame. The topic's and properties' lengths fit because they were parsed; `groups`
/// (at most [`GROUP_WORDS`]) belongs to group deliveries.
pub fn put_message(out: &mut Vec<u8>, kind: Kind, must: u8, token: u64, groups: &[u32], message: &Message<'_>) {
    let total = message_bytes(message) + groups.len() * 4;
    out.reserve(total);
    let id = message.id;
    let flags = message.qos as u8 | u8::from(message.retain) << 2;
    let mut head = [0u8; MESSAGE_HEADER_BYTES];
    head[0] = VERSION;
    head[1] = kind as u8;
    head[2] = must;
    head[3] = (u8::from(message.from_link) * may::FROM_LINK) | (u8::from(message.durable) * may::DURABLE);
    head[4..8].copy_from_slice(&(total as u32).to_le_bytes());
    head[8..12].copy_from_slice(&id.cluster.to_le_bytes());
    head[12..16].copy_from_slice(&id.node.to_le_bytes());
    head[16..20].copy_from_slice(&id.incarnation.to_le_bytes());
    head[20..24].copy_from_slice(&id.stream.to_le_bytes());
    head[24..32].copy_from_slice(&id.sequence.to_le_bytes());
    head[32..40].copy_from_slice(&message.stamp.to_le_bytes());
    head[40..48].copy_from_slice(&token.to_le_bytes());
    head[48..56].copy_from_slice(&message.expiry_ms.to_le_bytes());
    head[56..64].copy_from_slice(&message.publisher.to_le_bytes());
    head[64] = flags;
    head[66] = groups.len() as u8;
    head[68..70].copy_from_slice(&(message.topic.len() as u16).to_le_bytes());
    head[72..76].copy_from_slice(&(message.properties.len() as u32).to_le_bytes());
    out.extend_from_slice(&head);
    groups.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    out.extend_from_slice(message.topic.as_bytes());
    out.extend_from_slice(message.properties);
    out.extend_from_slice(message.payload);
}

/// Size of the frame that [`put_message`] appends without groups.
pub fn message_bytes(message: &Message<'_>) -> usize {
    MESSAGE_HEADER_BYTES + message.topic.len() + message.properties.len() + message.payload.len()
}

/// One frame at the front of a batch: its kind, flags, body behind the prefix, and all its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: Kind,
    /// Must-understand flags, all known.
    pub must: u8,
    /// Hints.
    pub may: u8,
    /// Everything behind the prefix.
    pub body: &'a [u8],
    /// The frame with its prefix.
    pub bytes: &'a [u8],
}

/// Splits the first frame off `bytes`.
pub fn split(bytes: &[u8]) -> Result<(Frame<'_>, &[u8]), BadFrame> {
    let (bytes, rest) = cut(bytes)?;
    let kind = Kind::from_u8(bytes[1]).ok_or(BadFrame::Kind(bytes[1]))?;
    let must = bytes[2];
    if must & !must::KNOWN != 0 {
        return Err(BadFrame::Flags(must));
    }
    Ok((Frame { kind, must, may: bytes[3], body: &bytes[PREFIX_BYTES..], bytes }, rest))
}

/// Cuts off the first frame (or record of the log, which has the same prefix), whatever its kind.
#[inline]
pub(crate) fn cut(bytes: &[u8]) -> Result<(&[u8], &[u8]), BadFrame> {
    if bytes.len() < PREFIX_BYTES {
        return Err(BadFrame::Short);
    }
    if bytes[0] != VERSION {
        return Err(BadFrame::Version(bytes[0]));
    }
    let total = read_u32(bytes, 4) as usize;
    if total < PREFIX_BYTES {
        return Err(BadFrame::Short);
    }
    bytes.split_at_checked(total).ok_or(BadFrame::Short)
}

/// Reads the message in a frame of kind Message, GroupDelivery or GroupReturned.
pub fn read_message<'a>(frame: &Frame<'a>) -> Result<MessageFrame<'a>, BadFrame> {
    let bytes = frame.bytes;
    if bytes.len() < MESSAGE_HEADER_BYTES {
        return Err(BadFrame::Short);
    }
    let flags = bytes[64];
    let (path_bytes, group_bytes) = (usize::from(bytes[65]) * 4, usize::from(bytes[66]) * 4);
    let topic_bytes = usize::from(u16::from_le_bytes([bytes[68], bytes[69]]));
    let properties_bytes = read_u32(bytes, 72) as usize;
    let rest = bytes.get(MESSAGE_HEADER_BYTES + path_bytes..).ok_or(BadFrame::Short)?;
    let (groups, rest) = rest.split_at_checked(group_bytes).ok_or(BadFrame::Short)?;
    let (topic, rest) = rest.split_at_checked(topic_bytes).ok_or(BadFrame::Short)?;
    let (properties, payload) = rest.split_at_checked(properties_bytes).ok_or(BadFrame::Short)?;
    let topic = core::str::from_utf8(topic).map_err(|_| BadFrame::Field("topic"))?;
    Ok(MessageFrame {
        must: frame.must,
        token: read_u64(bytes, 40),
        groups,
        message: Message {
            id: MessageId {
                cluster: read_u32(bytes, 8),
                node: read_u32(bytes, 12),
                incarnation: read_u32(bytes, 16),
                stream: read_u32(bytes, 20),
                sequence: read_u64(bytes, 24),
            },
            stamp: read_u64(bytes, 32),
            expiry_ms: read_u64(bytes, 48),
            publisher: read_u64(bytes, 56),
            qos: Qos::from_bits(flags & 3).ok_or(BadFrame::Field("qos"))?,
            retain: flags & 4 != 0,
            from_link: frame.may & may::FROM_LINK != 0,
            durable: frame.may & may::DURABLE != 0,
            topic,
            properties,
            payload,
        },
    })
}

/// Writes the prefix of a frame whose length is not yet known; [`finish`] completes it.
pub fn begin(out: &mut Vec<u8>, kind: Kind, must: u8) -> usize {
    let start = out.len();
    out.extend_from_slice(&[VERSION, kind as u8, must, 0, 0, 0, 0, 0]);
    start
}

/// Fills in the length of the frame that began at `start`.
pub fn finish(out: &mut [u8], start: usize) {
    let total = (out.len() - start) as u32;
    out[start + 4..start + 8].copy_from_slice(&total.to_le_bytes());
}

/// Reads fields of a frame's body in order. Every read fails softly: hops are ours, but a peer is not.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// One byte.
    pub fn u8(&mut self) -> Result<u8, BadFrame> {
        Ok(self.bytes(1)?[0])
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, BadFrame> {
        Ok(read_u32(self.bytes(4)?, 0))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, BadFrame> {
        Ok(read_u64(self.bytes(8)?, 0))
    }

    /// `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], BadFrame> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(BadFrame::Short)?;
        self.0 = rest;
        Ok(head)
    }

    /// A string behind its 32-bit length.
    pub fn text(&mut self) -> Result<&'a str, BadFrame> {
        let n = self.u32()? as usize;
        core::str::from_utf8(self.bytes(n)?).map_err(|_| BadFrame::Field("text"))
    }

    /// Bytes behind their 32-bit length.
    pub fn blob(&mut self) -> Result<&'a [u8], BadFrame> {
        let n = self.u32()? as usize;
        self.bytes(n)
    }
}

/// Appends two bytes, the lower first, which [`Fields::bytes`] reads.
#[inline]
pub fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a field that [`Fields::u32`] reads.
#[inline]
pub fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a field that [`Fields::u64`] reads.
#[inline]
pub fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a string behind its 32-bit length; [`Fields::text`] reads it.
pub fn put_text(out: &mut Vec<u8>, text: &str) {
    put_blob(out, text.as_bytes());
}

/// Appends bytes behind their 32-bit length; [`Fields::blob`] reads them.
pub fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(read_u32(bytes, at)) | u64::from(read_u32(bytes, at + 4)) << 32
}

/// A message that outlives its input: queued, in flight, retained or waiting in an outlet.
/// Shared by all sessions of the shard that need it; never leaves the shard.
pub type Kept = Rc<KeptMessage>;

/// The bytes of a kept message: its frame, and until when it is valid.
pub struct KeptMessage {
    frame: Vec<u8>,
    /// Monotonic time in microseconds at which it expires; `u64::MAX`: never.
    pub expires_us: u64,
    /// Its number in the log of this shard; 0: it is not there.
    pub(crate) body: Cell<u64>,
    /// The checkpoint that holds it.
    pub(crate) checkpoint: Cell<u32>,
    payload_bytes: u32,
    store: Rc<Store>,
}

/// How many messages are kept, those aside that wait to be used again.
#[derive(Default)]
struct Store {
    count: Cell<u64>,
    payload_bytes: Cell<u64>,
}

impl Store {
    fn entered(&self, payload_bytes: u32) {
        self.count.set(self.count.get() + 1);
        self.payload_bytes.set(self.payload_bytes.get() + u64::from(payload_bytes));
    }

    fn left(&self, payload_bytes: u32) {
        self.count.set(self.count.get() - 1);
        self.payload_bytes.set(self.payload_bytes.get() - u64::from(payload_bytes));
    }
}

impl Drop for KeptMessage {
    fn drop(&mut self) {
        // One that waits to be used again has left, and its buffer is empty.
        if !self.frame.is_empty() {
            self.store.left(self.payload_bytes);
        }
    }
}

impl KeptMessage {
    /// The message, with the life that remains at `now_us`.
    pub fn message(&self, now_us: u64) -> Message<'_> {
        // The frame was written by `Pool::keep`, so both reads succeed; an empty message is the safe answer.
        let read = split(&self.frame).and_then(|(frame, _)| read_message(&frame));
        let mut message = read.map(|read| read.message).unwrap_or(EMPTY);
        message.expiry_ms = match self.expires_us {
            u64::MAX => u64::MAX,
            expires_us => expires_us.saturating_sub(now_us).div_ceil(1000),
        };
        message
    }

    /// Appends its frame, with the life that remains at `now_us`.
    pub(crate) fn put(&self, out: &mut Vec<u8>, now_us: u64) {
        put_message(out, Kind::Message, 0, 0, &[], &self.message(now_us));
    }

    /// True when its life is over at `now_us`.
    pub fn expired(&self, now_us: u64) -> bool {
        self.expires_us <= now_us
    }

    /// What it costs.
    pub fn bytes(&self) -> usize {
        self.frame.len()
    }
}

const EMPTY: Message<'static> = Message {
    id: MessageId { cluster: 0, node: 0, incarnation: 0, stream: 0, sequence: 0 },
    stamp: 0,
    expiry_ms: 0,
    publisher: 0,
    qos: Qos::AtMostOnce,
    retain: false,
    from_link: false,
    durable: false,
    topic: "",
    properties: &[],
    payload: &[],
};

/// Recycles kept messages, so that a steady flow of QoS 1 allocates nothing.
#[derive(Default)]
pub struct Pool {
    free: Vec<Kept>,
    store: Rc<Store>,
}

/// Recycled messages at most.
const FREE_MAX: usize = 1024;
/// A recycled buffer larger than this is freed instead.
const FREE_BYTES_MAX: usize = 4096;

impl Pool {
    /// A copy of `message` that may be kept.
    pub fn keep(&mut self, message: &Message<'_>, now_us: u64) -> Kept {
        let expires_us = match message.expiry_ms {
            u64::MAX => u64::MAX,
            ms => now_us.saturating_add(ms.saturating_mul(1000)),
        };
        // A packet has less than 2^28 bytes.
        let payload_bytes = message.payload.len() as u32;
        self.store.entered(payload_bytes);
        while let Some(mut kept) = self.free.pop() {
            if let Some(inner) = Rc::get_mut(&mut kept) {
                inner.payload_bytes = payload_bytes;
                put_message(&mut inner.frame, Kind::Message, 0, 0, &[], message);
                inner.expires_us = expires_us;
                inner.body.set(0);
                inner.checkpoint.set(0);
                return kept;
            }
        }
        let mut frame = Vec::with_capacity(message_bytes(message));
        put_message(&mut frame, Kind::Message, 0, 0, &[], message);
        let (body, checkpoint, store) = (Cell::new(0), Cell::new(0), self.store.clone());
        Rc::new(KeptMessage { frame, expires_us, body, checkpoint, payload_bytes, store })
    }

    /// Takes back one holder's share; the last holder's buffer is recycled.
    #[inline]
    pub fn release(&mut self, mut kept: Kept) {
        if self.free.len() < FREE_MAX
            && kept.frame.capacity() <= FREE_BYTES_MAX
            && let Some(inner) = Rc::get_mut(&mut kept)
        {
            inner.frame.clear();
            self.store.left(inner.payload_bytes);
            self.free.push(kept);
        }
    }

    /// Messages that are kept: each once, however many sessions wait for it.
    pub fn stored(&self) -> u64 {
        self.store.count.get()
    }

    /// Bytes of their payload.
    pub fn stored_bytes(&self) -> u64 {
        self.store.payload_bytes.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Message<'static> {
        Message {
            id: MessageId { cluster: 1, node: 2, incarnation: 3, stream: 4, sequence: 5 },
            stamp: 6,
            expiry_ms: 7,
            publisher: 8,
            qos: Qos::AtLeastOnce,
            retain: true,
            from_link: true,
            durable: false,
            topic: "t/1",
            properties: &[1, 1],
            payload: b"hi",
        }
    }

    /// The vector of ARCHITECTURE.md.
    #[test]
    fn a_message_frame_has_the_documented_bytes() {
        let mut out = Vec::new();
        put_message(&mut out, Kind::Message, must::DELIVER | must::STORE, 9, &[], &sample());
        let mut want = Vec::from([1, 1, 3, 1, 83, 0, 0, 0]);
        for n in 1..=4u32 {
            want.extend_from_slice(&n.to_le_bytes());
        }
        for n in [5u64, 6, 9, 7, 8] {
            want.extend_from_slice(&n.to_le_bytes());
        }
        want.extend_from_slice(&[5, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0]);
        want.extend_from_slice(b"t/1\x01\x01hi");
        assert_eq!(out, want);
        let (frame, rest) = split(&out).unwrap();
        assert!(rest.is_empty());
        let read = read_message(&frame).unwrap();
        assert_eq!((read.message, read.token, read.must), (sample(), 9, 3));
    }

    #[test]
    fn unknown_must_flags_versions_and_kinds_are_refused() {
        let mut out = Vec::new();
        put_message(&mut out, Kind::Message, must::DELIVER, 0, &[], &sample());
        let with = |at: usize, value: u8| {
            let mut bytes = out.clone();
            bytes[at] = value;
            split(&bytes).err()
        };
        assert_eq!(with(0, 2), Some(BadFrame::Version(2)));
        assert_eq!(with(1, 99), Some(BadFrame::Kind(99)));
        assert_eq!(with(2, 0x80), Some(BadFrame::Flags(0x80)));
        assert_eq!(with(4, 255), Some(BadFrame::Short));
    }

    #[test]
    fn every_truncation_and_flip_is_read_or_refused_without_panic() {
        let mut out = Vec::new();
        put_message(&mut out, Kind::Message, must::DELIVER, 0, &[], &sample());
        for n in 0..out.len() {
            assert!(split(&out[..n]).is_err());
            for bit in 0..8 {
                let mut bytes = out.clone();
                bytes[n] ^= 1 << bit;
                if let Ok((frame, _)) = split(&bytes) {
                    let _ = read_message(&frame);
                }
            }
        }
    }

    #[test]
    fn the_pool_recycles_a_message_only_after_its_last_holder() {
        let mut pool = Pool::default();
        let first = pool.keep(&sample(), 0);
        let second = first.clone();
        let place = Rc::as_ptr(&first);
        pool.release(first);
        let other = pool.keep(&sample(), 0);
        assert_ne!(Rc::as_ptr(&other), place, "still held by `second`");
        pool.release(second);
        assert_eq!(Rc::as_ptr(&pool.keep(&sample(), 0)), place);
    }

    #[test]
    fn a_kept_message_is_counted_once_until_its_last_holder_lets_go() {
        let mut pool = Pool::default();
        let first = pool.keep(&sample(), 0);
        let bytes = sample().payload.len() as u64;
        let second = first.clone();
        let other = pool.keep(&sample(), 0);
        assert_eq!((pool.stored(), pool.stored_bytes()), (2, 2 * bytes));
        pool.release(first);
        drop(other);
        assert_eq!((pool.stored(), pool.stored_bytes()), (1, bytes));
        pool.release(second);
        assert_eq!((pool.stored(), pool.stored_bytes()), (0, 0));
        let again = pool.keep(&sample(), 0);
        assert_eq!((pool.stored(), pool.stored_bytes()), (1, bytes), "in a buffer that was used before");
        drop(again);
        drop(pool);
    }

    #[test]
    fn a_kept_message_ages() {
        let kept = Pool::default().keep(&sample(), 1_000_000);
        assert_eq!(kept.message(1_003_000).expiry_ms, 4);
        assert!(!kept.expired(1_006_999));
        assert!(kept.expired(1_007_000));
    }
}
