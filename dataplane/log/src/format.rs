//! The bytes of a segment: header and entry, as the crate's page describes them. Used by the writer and by recovery.
//! Invariant: [`header`] and [`entry`] accept any bytes and never panic.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::surface::Boot;

/// The version of the format that this crate writes, and the newest that it reads.
pub const FORMAT: u16 = 1;

/// Bytes at the beginning of a segment that belong to its header: two copies.
pub const HEADER_BYTES: usize = 2 * HEADER_COPY;

/// Bytes of an entry in front of its body.
pub const ENTRY_HEADER_BYTES: usize = 40;

/// Longest body of an entry.
pub const ENTRY_BYTES_MAX: usize = 1 << 30;

const HEADER_COPY: usize = 96;
const MAGIC: [u8; 8] = *b"RINGMQL1";
/// An odd constant (2^64 divided by the golden ratio): neighbouring offsets give unrelated seeds.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Entries begin at multiples of this.
const ALIGN: usize = 8;

const _: () = assert!(HEADER_BYTES <= 512, "a header is written whole or not at all, because it is in one sector");
const _: () = assert!(HEADER_BYTES.is_multiple_of(ALIGN) && ENTRY_HEADER_BYTES.is_multiple_of(ALIGN));
const _: () = assert!(ENTRY_BYTES_MAX < u32::MAX as usize / 2, "offsets in a segment of one entry fit into 32 bits");

/// What a segment says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Shard that wrote it.
    pub shard: u16,
    /// Shards of the layout it was written in.
    pub shards: u16,
    /// Epoch it belongs to.
    pub epoch: u64,
    /// Tells it from an epoch with the same number that was given up, forgotten, and then came back from a disk that
    /// had not yet removed it.
    pub lineage: u64,
    /// Place in the chain of its epoch.
    pub index: u64,
    /// Sequence of its first entry; every entry before it was flushed.
    pub first: u64,
    /// Where recovery begins, as far as that was flushed; 0: nowhere yet in this epoch.
    pub begin: u64,
    /// Seed of the checks of its entries.
    pub seed: u64,
    /// Size of the file.
    pub bytes: u64,
    /// Boot of the machine that wrote it.
    pub boot: Boot,
    /// True if an earlier epoch has a complete checkpoint that was flushed: it is needed until this epoch has one.
    pub earlier: bool,
}

/// What the first bytes of a file say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Head {
    /// A segment. `repaired`: one of the two copies was damaged.
    Segment {
        /// The header.
        header: Header,
        /// True if one of the two copies is damaged.
        repaired: bool,
    },
    /// A file that was never used.
    Void,
    /// A segment of a newer format.
    Newer(u16),
    /// Not empty, and no header: damaged, or not ours.
    Unreadable,
}

impl Header {
    /// Appends both copies to `out`.
    pub fn encode(&self, out: &mut alloc::vec::Vec<u8>) {
        let mut copy = [0u8; HEADER_COPY];
        copy[0..8].copy_from_slice(&MAGIC);
        copy[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        copy[10..12].copy_from_slice(&self.shard.to_le_bytes());
        copy[12..14].copy_from_slice(&self.shards.to_le_bytes());
        copy[14..16].copy_from_slice(&u16::from(self.earlier).to_le_bytes());
        for (place, value) in [self.epoch, self.index, self.first, self.begin, self.seed, self.bytes].iter().enumerate()
        {
            copy[16 + 8 * place..24 + 8 * place].copy_from_slice(&value.to_le_bytes());
        }
        copy[64..80].copy_from_slice(&self.boot.0);
        copy[80..88].copy_from_slice(&self.lineage.to_le_bytes());
        let check = xxh3_64(&copy[..88]);
        copy[88..].copy_from_slice(&check.to_le_bytes());
        out.extend_from_slice(&copy);
        out.extend_from_slice(&copy);
    }

    fn decode(copy: &[u8; HEADER_COPY]) -> Copy {
        if copy.iter().all(|byte| *byte == 0) {
            return Copy::Zero;
        }
        if copy[..8] != MAGIC || u64_at(copy, 88) != xxh3_64(&copy[..88]) {
            return Copy::Invalid;
        }
        let format = u16_at(copy, 8);
        if format != FORMAT {
            return Copy::Newer(format);
        }
        let counters = [u64_at(copy, 16), u64_at(copy, 24), u64_at(copy, 32)];
        if counters.iter().any(|counter| !(1..u64::MAX / 2).contains(counter)) {
            return Copy::Invalid;
        }
        let mut boot = [0; 16];
        boot.copy_from_slice(&copy[64..80]);
        Copy::Valid(Header {
            shard: u16_at(copy, 10),
            shards: u16_at(copy, 12),
            epoch: u64_at(copy, 16),
            index: u64_at(copy, 24),
            first: u64_at(copy, 32),
            begin: u64_at(copy, 40),
            seed: u64_at(copy, 48),
            bytes: u64_at(copy, 56),
            boot: Boot(boot),
            lineage: u64_at(copy, 80),
            earlier: u16_at(copy, 14) != 0,
        })
    }
}

enum Copy {
    Valid(Header),
    Newer(u16),
    Zero,
    Invalid,
}

/// What the first bytes of a file say. A crash never leaves one copy without the other, so where they differ, one was
/// damaged. Zeros in both are a file that was never used.
pub fn header(bytes: &[u8; HEADER_BYTES]) -> Head {
    let mut copies = [[0; HEADER_COPY]; 2];
    copies[0].copy_from_slice(&bytes[..HEADER_COPY]);
    copies[1].copy_from_slice(&bytes[HEADER_COPY..]);
    match (Header::decode(&copies[0]), Header::decode(&copies[1])) {
        (Copy::Newer(format), _) | (_, Copy::Newer(format)) => Head::Newer(format),
        (Copy::Valid(header), _) => Head::Segment { header, repaired: copies[0] != copies[1] },
        (_, Copy::Valid(header)) => Head::Segment { header, repaired: true },
        (Copy::Zero, Copy::Zero) => Head::Void,
        _ => Head::Unreadable,
    }
}

/// One valid entry, in place.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Number in its epoch.
    pub sequence: u64,
    /// Highest sequence known to be flushed when this was written.
    pub synced: u64,
    /// Where recovery begins.
    pub begin: u64,
    /// The batch.
    pub body: &'a [u8],
}

/// Bytes that an entry with a body of `body` bytes takes.
pub const fn entry_bytes(body: usize) -> usize {
    (ENTRY_HEADER_BYTES + body).next_multiple_of(ALIGN)
}

/// Appends an entry that will stand at `offset` of a segment with `seed`: one copy of the body, one pass of the hash.
pub fn encode_entry(out: &mut alloc::vec::Vec<u8>, seed: u64, offset: usize, entry: Entry<'_>) {
    let start = out.len();
    let bytes = u32::try_from(entry.body.len()).expect("ENTRY_BYTES_MAX fits into 32 bits");
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&bytes.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&entry.sequence.to_le_bytes());
    out.extend_from_slice(&entry.synced.to_le_bytes());
    out.extend_from_slice(&entry.begin.to_le_bytes());
    out.extend_from_slice(entry.body);
    let check = xxh3_64_with_seed(&out[start + 8..], seed_at(seed, offset));
    out[start..start + 8].copy_from_slice(&check.to_le_bytes());
    out.resize(start + entry_bytes(entry.body.len()), 0);
}

/// The entry at `offset` of a segment with `seed`, if a valid one is there. `plausible` says whether its sequence may be
/// the wanted one: the hash, which is the dear part, is only computed then.
pub fn entry(segment: &[u8], seed: u64, offset: usize, plausible: impl FnOnce(u64) -> bool) -> Option<Entry<'_>> {
    let head = segment.get(offset..)?.first_chunk::<ENTRY_HEADER_BYTES>()?;
    let (bytes, flags) = (u32_at(head, 8) as usize, u32_at(head, 12));
    let sequence = u64_at(head, 16);
    if flags != 0 || bytes > ENTRY_BYTES_MAX || sequence == 0 || !plausible(sequence) {
        return None;
    }
    let all = segment.get(offset..offset + ENTRY_HEADER_BYTES + bytes)?;
    if u64_at(head, 0) != xxh3_64_with_seed(&all[8..], seed_at(seed, offset)) {
        return None;
    }
    Some(Entry { sequence, synced: u64_at(head, 24), begin: u64_at(head, 32), body: &all[ENTRY_HEADER_BYTES..] })
}

fn seed_at(seed: u64, offset: usize) -> u64 {
    seed.wrapping_add((offset as u64).wrapping_mul(SPREAD))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn sample() -> Header {
        Header {
            shard: 1,
            shards: 4,
            epoch: 2,
            lineage: 3,
            index: 5,
            first: 6,
            begin: 4,
            seed: 0x0807_0605_0403_0201,
            bytes: 8 << 20,
            boot: Boot(*b"0123456789abcdef"),
            earlier: true,
        }
    }

    fn segment() -> Vec<u8> {
        let mut bytes = Vec::new();
        sample().encode(&mut bytes);
        let entry = Entry { sequence: 6, synced: 5, begin: 4, body: b"hello" };
        encode_entry(&mut bytes, sample().seed, HEADER_BYTES, entry);
        bytes
    }

    #[test]
    fn a_segment_is_written_as_the_page_says() {
        let text: Vec<u8> = VECTOR.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let nibble = |digit: u8| (digit as char).to_digit(16).expect("a hexadecimal digit") as u8;
        let expected: Vec<u8> = text.chunks_exact(2).map(|two| nibble(two[0]) << 4 | nibble(two[1])).collect();
        let bytes = segment();
        assert_eq!(bytes[..96], bytes[96..192], "the header is there twice");
        assert_eq!(bytes[96..], expected, "{:02x?}", &bytes[96..]);
    }

    #[test]
    fn a_header_survives_a_turned_bit_anywhere() {
        let bytes = segment();
        for bit in 0..HEADER_BYTES * 8 {
            let mut damaged = *bytes.first_chunk::<HEADER_BYTES>().expect("long enough");
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(header(&damaged), Head::Segment { header: sample(), repaired: true }, "bit {bit}");
        }
    }

    #[test]
    fn what_is_no_header_is_void_newer_or_unreadable() {
        assert_eq!(header(&[0; HEADER_BYTES]), Head::Void);
        assert_eq!(header(&[7; HEADER_BYTES]), Head::Unreadable);
        let mut half = [0; HEADER_BYTES];
        half[3] = 1;
        assert_eq!(header(&half), Head::Unreadable);
        let mut newer = *segment().first_chunk::<HEADER_BYTES>().expect("long enough");
        newer[8] = 2;
        let check = xxh3_64(&newer[..88]);
        newer[88..96].copy_from_slice(&check.to_le_bytes());
        assert_eq!(header(&newer), Head::Newer(2));
    }

    #[test]
    fn an_entry_is_valid_only_as_it_was_written_where_it_was_written() {
        let bytes = segment();
        let read = |bytes: &[u8], seed, at| entry(bytes, seed, at, |_| true).map(|entry| entry.body.len());
        assert_eq!(read(&bytes, sample().seed, HEADER_BYTES), Some(5));
        assert_eq!(read(&bytes, sample().seed + 1, HEADER_BYTES), None, "another segment");
        let mut moved = bytes.clone();
        moved.splice(HEADER_BYTES..HEADER_BYTES, [0; 8]);
        assert_eq!(read(&moved, sample().seed, HEADER_BYTES + 8), None, "another place");
        for bit in HEADER_BYTES * 8..(HEADER_BYTES + ENTRY_HEADER_BYTES + 5) * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&damaged, sample().seed, HEADER_BYTES), None, "bit {bit}");
        }
        for short in 0..HEADER_BYTES + ENTRY_HEADER_BYTES + 5 {
            assert_eq!(read(&bytes[..short], sample().seed, HEADER_BYTES), None, "{short} bytes");
        }
        assert_eq!(read(&bytes, sample().seed, usize::MAX), None);
    }

    /// One copy of the header of [`sample`], and the entry: the one that ARCHITECTURE.md has in section 9.5.
    const VECTOR: &str = "
        52 49 4e 47 4d 51 4c 31  01 00 01 00 04 00 01 00  02 00 00 00 00 00 00 00  05 00 00 00 00 00 00 00
        06 00 00 00 00 00 00 00  04 00 00 00 00 00 00 00  01 02 03 04 05 06 07 08  00 00 80 00 00 00 00 00
        30 31 32 33 34 35 36 37  38 39 61 62 63 64 65 66  03 00 00 00 00 00 00 00  76 01 5e 43 29 e4 3d d4
        7b 02 45 c6 fe 98 44 38  05 00 00 00 00 00 00 00  06 00 00 00 00 00 00 00  05 00 00 00 00 00 00 00
        04 00 00 00 00 00 00 00  68 65 6c 6c 6f 00 00 00
    ";
}
