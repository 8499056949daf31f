//! What can be saved of a log that a recovery refuses: every entry that is still valid, in order. Pure, for
//! `ringmq log repair`. Entries of a segment both of whose headers are damaged cannot be told from rubbish and are lost.

use alloc::vec::Vec;

use crate::format::{self, HEADER_BYTES, Header, entry_bytes};
use crate::plan::{Epoch, Found, epochs, judge};
use crate::scan::Scan;
use crate::surface::{Boot, FileId};

/// What was saved and what was not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Salvaged {
    /// Entries saved.
    pub entries: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Holes between them.
    pub gaps: u64,
    /// Entries missing in these holes. What was behind the last valid entry of all is not known and not counted.
    pub entries_lost: u64,
    /// Files that say nothing about themselves, and are not empty.
    pub files_unreadable: u64,
}

/// Yields every valid entry of the epoch that a recovery chooses, or is refused for; if no epoch was ever complete, of all
/// epochs, oldest first. If the last checkpoint and all behind it is whole, the yield begins there: what is older could
/// only bring back what was deleted since. `boot` is the present boot of the machine. `read` yields the bytes of a file,
/// may be asked several times for one, and its error is handed through.
pub fn salvage<E>(
    found: &[Found],
    boot: Boot,
    mut read: impl FnMut(FileId) -> Result<Vec<u8>, E>,
    each: &mut dyn FnMut(&[u8]),
) -> Result<Salvaged, E> {
    let (plan, refusals) = judge(found);
    let mut salvaged = Salvaged { files_unreadable: refusals.len() as u64, ..Salvaged::default() };
    let mut scan = Scan::new(plan, boot);
    while let Some(file) = scan.next() {
        scan.segment(&read(file)?, &mut |_| {});
    }
    let (epochs, _) = epochs(found);
    if let Some(epoch) = scan.chosen().and_then(|chosen| epochs.get(&chosen)) {
        let mut begin = epoch.values().map(|link| link.header.begin).max().unwrap_or(0);
        walk(epoch, 0, &mut read, &mut Salvaged::default(), &mut |entry| begin = begin.max(entry.begin))?;
        let mut whole = Salvaged::default();
        walk(epoch, begin, &mut read, &mut whole, &mut |_| {})?;
        let from = if whole.gaps == 0 { begin } else { 0 };
        walk(epoch, from, &mut read, &mut salvaged, &mut |entry| each(entry.body))?;
        return Ok(salvaged);
    }
    for epoch in epochs.values() {
        walk(epoch, 0, &mut read, &mut salvaged, &mut |entry| each(entry.body))?;
    }
    Ok(salvaged)
}

/// Every valid entry of an epoch from the sequence `from` on, counted; 0: from the first one that is there.
fn walk<E>(
    epoch: &Epoch,
    from: u64,
    read: &mut impl FnMut(FileId) -> Result<Vec<u8>, E>,
    salvaged: &mut Salvaged,
    each: &mut dyn FnMut(format::Entry<'_>),
) -> Result<(), E> {
    let mut next = if from > 0 { from } else { epoch.values().map(|link| link.header.first).min().unwrap_or(0) };
    let mut links = epoch.values().peekable();
    while let Some(link) = links.next() {
        let limit = links.peek().map_or(u64::MAX, |later| later.header.first);
        if limit <= next {
            continue;
        }
        valid(&read(link.file)?, &link.header, next, limit, &mut |entry| {
            if entry.sequence > next {
                salvaged.gaps += 1;
                salvaged.entries_lost += entry.sequence - next;
            }
            next = entry.sequence + 1;
            salvaged.entries += 1;
            salvaged.bytes += entry.body.len() as u64;
            each(entry);
        });
        // What is missing at the end of a segment that has a successor is known by the successor.
        if limit != u64::MAX && next < limit {
            salvaged.gaps += 1;
            salvaged.entries_lost += limit - next;
            next = limit;
        }
    }
    Ok(())
}

/// Every valid entry of a segment with a sequence from `next` on and below `limit`.
fn valid(bytes: &[u8], header: &Header, next: u64, limit: u64, each: &mut dyn FnMut(format::Entry<'_>)) {
    let mut at = HEADER_BYTES;
    let mut next = next.max(header.first);
    while at < bytes.len() {
        match format::entry(bytes, header.seed, at, |sequence| sequence >= next && sequence < limit) {
            Some(entry) => {
                next = entry.sequence + 1;
                at += entry_bytes(entry.body.len());
                each(entry);
            }
            None => at += 8,
        }
    }
}
