//! From the images of all logs to what each shard takes over: the same parts when the number of shards is the same, newly
//! dealt partitions when it is not. Pure, before the shards start. Invariant: each session, retained value and unfinished
//! publish of the images goes to exactly one shard.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    vec::Vec,
};

use contract::hash;

use super::{
    image::{Body, Cut, Image, Kept},
    record::{DURABLE_STREAM, Stream},
};

/// How far each stream had been taken, by (shards, home) of the layout in which it was: what a publish that is repeated after a
/// crash has reached already. The same on all shards.
#[derive(Default)]
pub struct History {
    marks: BTreeMap<(u16, u16, Stream), u64>,
    /// Publishes that had been routed: shards of that layout, and the set of them that each left for.
    routed: BTreeMap<(Stream, u64), (u16, u128)>,
    layouts: BTreeSet<u16>,
}

impl History {
    /// Had the shard that a partition belonged to taken this message, or no part in it when it was routed?
    pub(crate) fn took(&self, stream: Stream, sequence: u64, partition: u16) -> bool {
        let apart = |(shards, to): &(u16, u128)| to >> (partition % shards) & 1 == 0;
        self.routed.get(&(stream, sequence)).is_some_and(apart)
            || self.layouts.iter().any(|shards| self.took_at(*shards, partition % shards, stream, sequence))
    }

    fn took_at(&self, shards: u16, home: u16, stream: Stream, sequence: u64) -> bool {
        self.marks.get(&(shards, home, stream)).is_some_and(|mark| *mark >= sequence)
    }
}

/// A message for a group whose chosen member never got it.
pub(crate) struct Regroup {
    pub(crate) group: Box<str>,
    pub(crate) filter: Box<str>,
    pub(crate) body: Arc<Body>,
}

/// A publish that was cut, for the shard that repeats it.
pub(crate) struct Resumed {
    pub(crate) stream: Stream,
    pub(crate) sequence: u64,
    pub(crate) cut: Cut,
    /// Whose it was, if it was kept for its session.
    pub(crate) client: Option<Box<str>>,
}

/// What waits in one outlet: place, publisher, message.
pub(crate) type Outlet = Vec<(u64, Box<str>, Arc<Body>)>;

/// What one shard takes over.
#[derive(Default)]
pub struct Dealt {
    /// With their durable numbers; 0: to be numbered anew.
    pub(crate) sessions: Vec<(u64, Kept)>,
    pub(crate) retained: Vec<Arc<Body>>,
    pub(crate) unfinished: Vec<Resumed>,
    pub(crate) regroup: Vec<Regroup>,
    /// Choices of this shard's own log that turned out to be done.
    pub(crate) chosen: Vec<(Stream, u64)>,
    pub(crate) outlets: BTreeMap<Box<str>, Outlet>,
    pub(crate) outlet_places: BTreeMap<Box<str>, u64>,
    /// What remotes want, by link: for the owner shard of the link.
    pub(crate) wanted: BTreeMap<Box<str>, BTreeSet<Box<str>>>,
    pub(crate) watermarks: BTreeMap<(u16, u16, Stream), u64>,
    pub(crate) stamp: u64,
    pub(crate) body_number: u64,
    pub(crate) session_number: u64,
    pub(crate) group_sequence: u64,
    /// The log that this shard writes holds none of it yet.
    pub(crate) moved: bool,
    pub(crate) history: Arc<History>,
}

impl Dealt {
    /// Sessions that it has.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// The log that this shard writes holds none of it yet: its first checkpoint has to be complete before anything is accepted.
    pub fn moved(&self) -> bool {
        self.moved
    }
}

/// Deals what the logs of `images.len()` shards held to `shards` shards.
pub fn deal(images: Vec<Image>, shards: u16) -> Vec<Dealt> {
    let before = images.len() as u16;
    let same = before == shards || images.is_empty();
    let history = Arc::new(history(&images));
    let mut dealt: Vec<Dealt> = (0..shards).map(|_| Dealt::default()).collect();
    for (from, image) in images.into_iter().enumerate() {
        deal_image(image, from as u16, same, &history, &mut dealt);
    }
    for one in &mut dealt {
        one.moved = !same;
        one.history = history.clone();
        one.unfinished.sort_by_key(|one| (one.stream, one.sequence));
    }
    if !same {
        // Each new log has to say what the old ones had taken.
        dealt.iter_mut().for_each(|one| one.watermarks = history.marks.clone());
    }
    dealt
}

/// Only streams with something unfinished matter.
fn history(images: &[Image]) -> History {
    let mut history = History::default();
    let mut streams: BTreeSet<Stream> = BTreeSet::new();
    for image in images {
        let routed = image.unfinished.iter().filter_map(|(key, cut)| Some((*key, cut.routed?)));
        history.routed.extend(routed.filter(|(_, (shards, _))| *shards > 0));
        streams.extend(image.unfinished.keys().chain(image.chosen.keys()).map(|(stream, _)| *stream));
    }
    for image in images {
        for ((shards, home, stream), sequence) in &image.watermarks {
            if *shards > 0 && streams.contains(stream) {
                let mark = history.marks.entry((*shards, *home, *stream)).or_insert(0);
                *mark = (*mark).max(*sequence);
                history.layouts.insert(*shards);
            }
        }
    }
    history
}

fn deal_image(image: Image, from: u16, same: bool, history: &Arc<History>, dealt: &mut [Dealt]) {
    let shards = dealt.len() as u16;
    let to = |partition: u16| usize::from(hash::owner_shard(partition, shards).0);
    let names: BTreeMap<u64, Box<str>> = image
        .unfinished
        .values()
        .filter_map(|cut| image.sessions.get(&cut.session).map(|kept| (cut.session, kept.client.clone())))
        .collect();
    for (number, kept) in image.sessions {
        let home = to(hash::partition_of_client(&kept.client));
        dealt[home].sessions.push((if same { number } else { 0 }, kept));
    }
    for (topic, body) in image.retained {
        dealt[to(hash::partition_of_topic(&topic))].retained.push(body);
    }
    for ((stream, sequence), cut) in image.unfinished {
        let client = names.get(&cut.session).cloned();
        let home = match &client {
            Some(client) => to(hash::partition_of_client(client)),
            None if same => usize::from(from),
            None => (stream.stream & !DURABLE_STREAM) as usize % usize::from(shards),
        };
        dealt[home].unfinished.push(Resumed { stream, sequence, cut, client });
    }
    for ((stream, sequence), choice) in image.chosen {
        if same {
            dealt[usize::from(from)].chosen.push((stream, sequence));
        }
        if history.took_at(choice.shards, choice.home, stream, sequence) {
            continue;
        }
        let owner = to(hash::partition_of_group(&choice.group, &choice.filter));
        let (group, filter, body) = (choice.group, choice.filter, choice.body);
        dealt[owner].regroup.push(Regroup { group, filter, body });
    }
    // An outlet's messages stay together and in order, so a log's outlets move as a whole.
    let outlets_to = usize::from(from % shards);
    for (link, messages) in image.outlets {
        let outlet = dealt[outlets_to].outlets.entry(link).or_default();
        outlet.extend(messages.into_iter().map(|(place, (client, body))| (place, client, body)));
    }
    for (link, place) in image.outlet_places {
        let highest = dealt[outlets_to].outlet_places.entry(link).or_insert(0);
        *highest = (*highest).max(place);
    }
    for (link, filters) in image.wanted {
        let partition = hash::stable(link.as_bytes()) % u64::from(hash::PARTITIONS);
        dealt[to(partition as u16)].wanted.entry(link).or_default().extend(filters);
    }
    let one = &mut dealt[usize::from(from % shards)];
    if same {
        one.watermarks = image.watermarks.into_iter().filter(|(key, _)| history.marks.contains_key(key)).collect();
        (one.body_number, one.session_number, one.group_sequence) =
            (image.body_number, image.session_number, image.group_sequence);
    }
    dealt.iter_mut().for_each(|one| one.stamp = one.stamp.max(image.stamp));
}
