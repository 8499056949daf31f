//! The log of a shard: segments and their damage (`log`), and what their entries say (`broker::journal`).

use std::convert::Infallible;

use broker::{
    frame,
    journal::{Image, record},
};
use log::{
    Boot, Event, FileId, Found, Refusal, Report, Tail,
    format::{self, ENTRY_HEADER_BYTES, Entry, HEADER_BYTES, Header, entry_bytes},
    recover, salvage,
};

use crate::connection::restored;

const BOOT: Boot = Boot(*b"0123456789abcdef");
const SEED: u64 = 7;
/// Entries of one segment: each is hashed at every place where it might be.
const ENTRIES_MAX: usize = 40;

/// First byte: what the rest is: bytes of a file; entries of a file with good checks, which is then damaged; records.
pub fn records(data: &[u8]) {
    let Some((&head, rest)) = data.split_first() else { return };
    match head % 3 {
        0 => any_file(rest),
        1 => damaged_file(rest),
        _ => any_records(rest),
    }
}

/// Nobody knows what these bytes are; reading them is repeatable.
fn any_file(bytes: &[u8]) {
    let (entries, outcome) = recovered(bytes);
    assert_eq!(recovered(bytes).0, entries);
    if let Ok((_, report)) = outcome {
        assert_eq!(report.entries, entries.len() as u64);
        let saved = saved(bytes);
        assert!(entries.iter().all(|entry| saved.contains(entry)), "what is recovered can be salvaged");
    }
}

/// What was written is read again, and if a bit of it is turned, what is read is still what was written: a part of it.
fn damaged_file(data: &[u8]) {
    let (damage, mut data) = data.split_first_chunk::<4>().map_or((None, data), |(damage, rest)| (Some(damage), rest));
    let mut bodies: Vec<&[u8]> = Vec::new();
    while let Some((&length, rest)) = data.split_first()
        && bodies.len() < ENTRIES_MAX
    {
        let (body, rest) = rest.split_at(rest.len().min(usize::from(length)));
        bodies.push(body);
        data = rest;
    }
    let mut file = segment(&bodies);
    let (entries, outcome) = recovered(&file);
    assert_eq!(entries, bodies, "{outcome:?}");
    outcome.expect("nothing is wrong with it");
    let Some(damage) = damage else { return };
    let at = usize::from(u16::from_be_bytes([damage[0], damage[1]])) % file.len();
    match damage[2] {
        0 => file.truncate(at),
        bits => file[at] ^= bits,
    }
    let (entries, outcome) = recovered(&file);
    match outcome {
        Ok(_) => assert!(
            bodies.iter().zip(&entries).filter(|(body, entry)| body == entry).count() == entries.len(),
            "a part of what was written, from its beginning"
        ),
        Err(refusal) => assert!(!refusal.to_string().is_empty()),
    }
    let saved = saved(&file);
    let mut written = bodies.iter();
    assert!(saved.iter().all(|entry| written.any(|body| body == entry)), "what is salvaged was written, in this order");
}

fn segment(bodies: &[&[u8]]) -> Vec<u8> {
    let header = |bytes| Header {
        shard: 0,
        shards: 1,
        epoch: 1,
        lineage: 1,
        index: 1,
        first: 1,
        begin: 1,
        seed: SEED,
        bytes,
        boot: BOOT,
        earlier: false,
    };
    let size = HEADER_BYTES + bodies.iter().map(|body| entry_bytes(body.len())).sum::<usize>();
    let mut file = Vec::new();
    header(size as u64 + ENTRY_HEADER_BYTES as u64).encode(&mut file);
    for (at, body) in bodies.iter().enumerate() {
        let sequence = at as u64 + 1;
        let offset = file.len();
        format::encode_entry(&mut file, SEED, offset, Entry { sequence, synced: sequence - 1, begin: 1, body });
    }
    file.resize(size + ENTRY_HEADER_BYTES, 0);
    file
}

fn found(bytes: &[u8]) -> [Found; 1] {
    let mut header = [0; HEADER_BYTES];
    let length = bytes.len().min(HEADER_BYTES);
    header[..length].copy_from_slice(&bytes[..length]);
    [Found { file: 1, bytes: bytes.len() as u64, header }]
}

/// How a recovery ends.
type Outcome = Result<(Tail, Report), Refusal>;

/// Entries that a recovery yields, and how it ends.
fn recovered(bytes: &[u8]) -> (Vec<Vec<u8>>, Outcome) {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    let read = |_: FileId| Ok::<_, Infallible>(bytes.to_vec());
    let outcome = recover(&found(bytes), BOOT, read, &mut |event| match event {
        Event::Entry(body) => entries.push(body.to_vec()),
        Event::Reset => entries.clear(),
    });
    (entries, outcome.unwrap_or_else(|never| match never {}))
}

fn saved(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    let read = |_: FileId| Ok::<_, Infallible>(bytes.to_vec());
    salvage(&found(bytes), BOOT, read, &mut |body| entries.push(body.to_vec())).unwrap_or_else(|never| match never {});
    entries
}

/// Records as an entry holds them, and messages as a mailbox does. A shard takes over whatever can be read.
fn any_records(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok((frame, tail)) = frame::split(rest) {
        if let Ok(message) = frame::read_message(&frame) {
            let _ = message.group_words();
        }
        rest = tail;
    }
    let mut rest = bytes;
    while let Ok((_, tail)) = record::read(rest) {
        assert!(tail.len() < rest.len(), "a record takes bytes");
        rest = tail;
    }
    let mut image = Image::new(SEED);
    if image.entry(bytes).is_ok() {
        restored(image, 1 + u16::from(bytes.len() % 2 == 1));
    }
}
