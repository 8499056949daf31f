//! Which files a recovery reads, in which order: judged by their headers alone. Pure, called once at a start.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::format::{self, FORMAT, HEADER_BYTES, Head, Header};
use crate::report::Refusal;
use crate::scan::Spare;
use crate::surface::FileId;

/// A file as it was found under its real name.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its number.
    pub file: FileId,
    /// Its size.
    pub bytes: u64,
    /// Its first bytes; zeros where it is shorter.
    pub header: [u8; HEADER_BYTES],
}

/// A segment of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) file: FileId,
    pub(crate) bytes: u64,
    pub(crate) header: Header,
    repaired: bool,
}

/// What to read: the chains of epochs, newest first.
#[derive(Debug)]
pub struct Plan {
    /// Each is a run of segments without a gap that ends at the last one of its epoch.
    pub(crate) chains: Vec<Vec<Link>>,
    /// Every file with its size.
    pub(crate) files: Vec<Spare>,
    /// Every segment with the number and the lineage of its epoch.
    pub(crate) segments: Vec<(FileId, (u64, u64))>,
    pub(crate) headers_repaired: u64,
}

impl Plan {
    /// The shard and the number of shards that the newest segment was written for; none in an empty log.
    pub fn layout(&self) -> Option<(u16, u16)> {
        let newest = self.chains.first()?.last()?.header;
        Some((newest.shard, newest.shards))
    }

    pub(crate) fn newest_epoch(&self) -> u64 {
        self.chains.first().and_then(|chain| chain.last()).map_or(0, |link| link.header.epoch)
    }
}

/// Judges the files by their headers.
pub fn plan(found: &[Found]) -> Result<Plan, Refusal> {
    let (plan, refusals) = judge(found);
    refusals.first().map_or(Ok(plan), |refusal| Err(*refusal))
}

/// Every segment of one epoch, by its place in the chain.
pub(crate) type Epoch = BTreeMap<u64, Link>;

/// Every segment of every epoch (by its number and its lineage), and what is wrong with other files.
pub(crate) fn epochs(found: &[Found]) -> (BTreeMap<(u64, u64), Epoch>, Vec<Refusal>) {
    let mut epochs: BTreeMap<(u64, u64), Epoch> = BTreeMap::new();
    let mut refusals = Vec::new();
    for Found { file, bytes, header } in found {
        let (file, bytes) = (*file, *bytes);
        match format::header(header) {
            _ if bytes < HEADER_BYTES as u64 => refusals.push(Refusal::Damaged { file, offset: bytes }),
            Head::Void => {}
            Head::Newer(format) => refusals.push(Refusal::NewerFormat { file, format, known: FORMAT }),
            Head::Unreadable => refusals.push(Refusal::Damaged { file, offset: 0 }),
            Head::Segment { header, repaired } => {
                let link = Link { file, bytes, header, repaired };
                let epoch = epochs.entry((header.epoch, header.lineage)).or_default();
                if let Some(other) = epoch.insert(header.index, link) {
                    refusals.push(Refusal::Twice { file: other.file.min(file), other: other.file.max(file) });
                }
            }
        }
    }
    (epochs, refusals)
}

/// A plan of what can be read, and what is wrong with the rest.
pub(crate) fn judge(found: &[Found]) -> (Plan, Vec<Refusal>) {
    let (epochs, refusals) = epochs(found);
    let files = found.iter().map(|found| Spare { file: found.file, bytes: found.bytes }).collect();
    let headers_repaired = epochs.values().flat_map(BTreeMap::values).filter(|link| link.repaired).count() as u64;
    let of_epoch = |(epoch, links): (&(u64, u64), &Epoch)| links.values().map(|link| (link.file, *epoch)).collect();
    let segments = epochs.iter().flat_map::<Vec<_>, _>(of_epoch).collect();
    let chains = epochs.values().rev().map(chain).collect();
    (Plan { chains, files, segments, headers_repaired }, refusals)
}

/// The run of indices without a gap that ends at the highest, without what is known to be needed no more.
fn chain(segments: &Epoch) -> Vec<Link> {
    let mut chain: Vec<Link> = Vec::new();
    for link in segments.values().rev() {
        if let Some(later) = chain.last()
            && (link.header.index + 1 != later.header.index || link.header.first > later.header.first)
        {
            break;
        }
        let enough =
            chain.first().is_some_and(|last| chain.last().is_some_and(|l| l.header.first <= last.header.begin));
        if enough {
            break;
        }
        chain.push(*link);
    }
    chain.reverse();
    chain
}
