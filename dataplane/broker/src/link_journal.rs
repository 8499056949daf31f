//! What links keep in the log: messages that wait for a remote, on the shard whose outlet took them; and what each remote
//! wants, on the owner shard of the link. Called by [`crate::links`], by checkpoints and by the restore.
//! Invariant: a message with an acknowledgement to give is in the log from the moment its outlet takes it until it is
//! recorded that it has left, whatever became of it; its place there is its place in the outlet.

use alloc::{
    borrow::Cow,
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    string::String,
    sync::Arc,
    vec::Vec,
};

use ::link::wire;
use contract::hash;

use crate::{
    Shard,
    counters::Counter,
    event::Event,
    frame::{Message, MessageId},
    journal::{Body, record::Stream},
    link_inbound::owned,
    links::Links,
    surface::Output,
};

/// How far a checkpoint has come with the links.
#[derive(Default)]
pub(crate) struct LinkCursor {
    link: usize,
    /// The last message of its outlet that was looked at.
    place: u64,
    /// The last filter of its remote that was written, once the outlet is done.
    filter: Option<String>,
    wanted: bool,
}

/// Messages of an earlier life that no link waits for any more.
#[derive(Default)]
pub(crate) struct Orphans {
    /// How many were shed.
    pub(crate) shed: u64,
    /// Of which links, until the operator has been told.
    untold: Vec<(Box<str>, u64)>,
}

/// What waited in one outlet: place, publisher, message.
type Waited = Vec<(u64, Box<str>, Arc<Body>)>;

/// Messages that a checkpoint looks at in one step: those that nobody keeps cost it nothing but that.
const LOOKS_MAX: usize = 4096;

impl Links {
    /// Bytes that wait in the outlets.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.all.iter().map(|one| one.outlet.status().bytes as u64).sum()
    }
}

impl Shard {
    /// Records which messages have left the outlets, and tells the operator what was found that belongs to no link.
    pub(crate) fn links_kept(&mut self, out: &mut impl Output) {
        for one in &mut self.links.all {
            for place in one.outlet.gone() {
                self.journal.outlet_gone(&one.config.name, place);
            }
        }
        for (link, count) in self.links.orphans.untold.drain(..) {
            let detail = Cow::Owned(alloc::format!("{count} that waited for it are shed"));
            out.event(Event::Link { link: &link, what: "messages for a link that is not configured", detail });
        }
    }

    /// What a remote wants has changed. Nothing waits for the record: what is lost of it, the remote announces again.
    pub(crate) fn record_wanted(&mut self, link: u16, changes: &[(String, bool)]) {
        let Some(one) = self.links.all.get(usize::from(link)) else { return };
        for (filter, begins) in changes {
            if !begins || self.journal.grows() {
                self.journal.wanted(&one.config.name, filter, *begins);
            }
        }
    }

    /// Had the outlets of its home shard this publish already: before a crash, or when it was repeated first? A home
    /// records what its outlets took, and how far it took its own stream, in the same batch.
    pub(crate) fn outlets_had(&self, message: &Message<'_>) -> bool {
        let (stream, sequence) = (Stream::of(&message.id), message.id.sequence);
        let partition = (message.publisher % u64::from(hash::PARTITIONS)) as u16;
        self.repeats(message)
            && (self.history.took(stream, sequence, partition) || self.links.repeated.contains(&(stream, sequence)))
    }

    /// A checkpoint begins: what is taken from now on records itself.
    pub(crate) fn checkpoint_links(&mut self) {
        for one in &mut self.links.all {
            one.checkpoint_until = one.outlet.next_place();
        }
    }

    /// Writes about `bytes_max` of what the links keep for a checkpoint. True: that was all.
    pub(crate) fn checkpoint_link(&mut self, cursor: &mut LinkCursor, bytes_max: usize) -> bool {
        let journal = &mut self.journal;
        let Some(one) = self.links.all.get(cursor.link) else { return true };
        let stop = journal.position().1 + bytes_max;
        if !cursor.wanted {
            for _ in 0..LOOKS_MAX {
                let next = one.outlet.waiting_after(cursor.place).filter(|(place, _)| *place < one.checkpoint_until);
                let Some((place, waiting)) = next else {
                    cursor.wanted = true;
                    break;
                };
                cursor.place = place;
                if let Some(waiting) = waiting {
                    let message = unforwarded(&waiting);
                    journal.outlet(&one.config.name, place, waiting.from, &message, waiting.timestamp_ms);
                }
                if journal.position().1 >= stop {
                    break;
                }
            }
            return false;
        }
        let after = cursor.filter.take();
        for filter in one.forwarder.iter().flat_map(|forwarder| forwarder.filters_after(after.as_deref())) {
            journal.wanted(&one.config.name, filter, true);
            if journal.position().1 >= stop {
                cursor.filter = Some(filter.into());
                return false;
            }
        }
        *cursor = LinkCursor { link: cursor.link + 1, ..LinkCursor::default() };
        false
    }

    /// Takes over what the log held: before anything is accepted, so before any outlet takes anything new.
    pub(crate) fn restore_links(
        &mut self,
        outlets: BTreeMap<Box<str>, Waited>,
        places: BTreeMap<Box<str>, u64>,
        wanted: BTreeMap<Box<str>, BTreeSet<Box<str>>>,
    ) {
        for (link, waited) in outlets {
            self.restore_outlet(link, waited);
        }
        for (link, place) in places {
            if let Some(at) = self.links.find(&link) {
                self.links.all[usize::from(at)].outlet.restore_place(place);
            }
        }
        for (link, filters) in wanted {
            self.restore_wanted(&link, &filters);
        }
    }

    fn restore_outlet(&mut self, link: Box<str>, waited: Waited) {
        let now = self.now;
        let mut outlet = self.links.find(&link).map(|at| &mut self.links.all[usize::from(at)].outlet);
        let mut orphans = 0;
        for (place, client, body) in waited {
            let restored = outlet.as_mut().is_some_and(|outlet| {
                let stored = body.stored();
                let age_ms = now.wall_ms.saturating_sub(stored.wall_ms);
                stored.message().is_ok_and(|message| {
                    outlet.restore(now.mono_us, place, age_ms, &forwarded(&message, &client, stored.wall_ms))
                })
            });
            if !restored {
                orphans += 1;
                self.journal.outlet_gone(&link, place);
            }
        }
        if orphans > 0 {
            self.links.orphans.shed += orphans;
            self.links.orphans.untold.push((link, orphans));
            self.counters.set(Counter::shed_link_stopped, self.links.orphans.shed);
        }
    }

    /// The remote's actors announce it again, or it goes when an actor that had disappeared now would go.
    fn restore_wanted(&mut self, link: &str, filters: &BTreeSet<Box<str>>) {
        let Some(at) = self.links.find(link) else { return };
        let Some(forwarder) = &mut self.links.all[usize::from(at)].forwarder else { return };
        let mut changes = Vec::new();
        let filters = filters.iter().map(AsRef::as_ref);
        forwarder.restore(self.now.mono_us, filters, &mut |change| changes.push(owned(change)));
        self.spread_interest(at, &changes);
    }
}

/// A message as its outlet sends it; `taken_ms` is the wall time at which its life was what it says.
pub(crate) fn forwarded<'a>(message: &Message<'a>, from: &'a str, taken_ms: u64) -> wire::Message<'a> {
    let expiry_s = (message.expiry_ms != u64::MAX).then(|| message.expiry_ms.div_ceil(1000));
    wire::Message {
        id: message_id(&message.id),
        qos: message.qos,
        from,
        retain: message.retain,
        topic: message.topic,
        payload: message.payload,
        timestamp_ms: taken_ms,
        properties: message.properties,
        message_expiry_s: expiry_s.map(|s| u32::try_from(s).unwrap_or(u32::MAX)),
    }
}

/// The reverse, for the log: what [`forwarded`] makes of it is the same again.
fn unforwarded<'a>(waiting: &wire::Message<'a>) -> Message<'a> {
    let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|n| waiting.id[at + n]));
    let sequence = u64::from(word(8)) << 32 | u64::from(word(12));
    Message {
        // Incarnation and stream stand folded into one word, which is all that a remote sees of them.
        id: MessageId { cluster: 0, node: word(0), incarnation: word(4), stream: 0, sequence },
        stamp: 0,
        expiry_ms: waiting.message_expiry_s.map_or(u64::MAX, |s| u64::from(s) * 1000),
        publisher: 0,
        qos: waiting.qos,
        retain: waiting.retain,
        from_link: false,
        durable: false,
        topic: waiting.topic,
        properties: waiting.properties,
        payload: waiting.payload,
    }
}

/// 16 bytes that name a message to EMQX: the stream it comes from, and its place there.
fn message_id(id: &MessageId) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&id.node.to_be_bytes());
    bytes[4..8].copy_from_slice(&(id.incarnation ^ id.stream.rotate_left(16)).to_be_bytes());
    bytes[8..].copy_from_slice(&id.sequence.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests;
