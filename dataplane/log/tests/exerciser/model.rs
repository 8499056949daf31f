//! The owner of the log as a model: a map, records that change it, and the history of all its states.

use std::collections::BTreeMap;

use log::{Event, Report, Tail, disk::VirtualDisk};

pub type State = BTreeMap<u8, u64>;

/// What was appended, in order. A restart cuts it back to what was recovered and goes on as another branch.
#[derive(Clone, Default)]
pub struct History {
    /// The branch that appended each batch, and the state after it. Index 0 is the empty beginning.
    pub turns: Vec<(u64, State)>,
}

impl History {
    pub fn new() -> History {
        History { turns: vec![(0, State::new())] }
    }

    pub fn last(&self) -> u64 {
        self.turns.len() as u64 - 1
    }
}

/// One record of a batch.
pub enum Record {
    Put(u8, u64),
    Delete(u8),
}

/// Index and branch, then the records, then ballast.
pub fn encode(body: &mut Vec<u8>, index: u64, branch: u64, records: &[Record], ballast: usize) {
    body.extend_from_slice(&index.to_le_bytes());
    body.extend_from_slice(&branch.to_le_bytes());
    body.extend_from_slice(&(records.len() as u32).to_le_bytes());
    for record in records {
        let (kind, key, value) = match record {
            Record::Put(key, value) => (1, *key, *value),
            Record::Delete(key) => (2, *key, 0),
        };
        body.extend_from_slice(&[kind, key]);
        body.extend_from_slice(&value.to_le_bytes());
    }
    body.resize(body.len() + ballast, index as u8);
}

/// A state that is built up again from entries.
#[derive(Default)]
pub struct Replay {
    pub state: State,
    /// Index and branch of each batch since the beginning or the last reset.
    pub batches: Vec<(u64, u64)>,
}

impl Replay {
    pub fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Reset => *self = Replay::default(),
            // The log's own entries are empty.
            Event::Entry([]) => {}
            Event::Entry(body) => {
                let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("eight bytes"));
                self.batches.push((number(0), number(8)));
                let records = u32::from_le_bytes(body[16..20].try_into().expect("four bytes")) as usize;
                for record in body[20..20 + 10 * records].chunks_exact(10) {
                    let value = u64::from_le_bytes(record[2..].try_into().expect("eight bytes"));
                    match record[0] {
                        1 => self.state.insert(record[1], value),
                        _ => self.state.remove(&record[1]),
                    };
                }
            }
        }
    }

    /// Index of the last batch.
    pub fn last(&self) -> u64 {
        self.batches.last().map_or(0, |(index, _)| *index)
    }

    /// Whether this is what the history was at some time, without a hole and without anything else.
    pub fn judge(&self, history: &History) -> Result<(), String> {
        for (place, (index, branch)) in self.batches.iter().enumerate() {
            match history.turns.get(*index as usize) {
                Some((appended, _)) if appended == branch => {}
                Some((appended, _)) => return Err(format!("ghost: batch {index} of branch {branch}, not {appended}")),
                None => return Err(format!("ghost: batch {index} was never appended")),
            }
            if place > 0 && self.batches[place - 1].0 + 1 != *index {
                return Err(format!("a hole between the batches {} and {index}", self.batches[place - 1].0));
            }
        }
        let (_, state) = &history.turns[self.last() as usize];
        if *state == self.state { Ok(()) } else { Err(format!("another state than after batch {}", self.last())) }
    }
}

pub fn recover(disk: &VirtualDisk, boot: log::Boot) -> (Result<(Tail, Report), log::Refusal>, Replay) {
    let mut replay = Replay::default();
    let read = |file| Ok::<_, ()>(disk.read(file).expect("a file that was found").to_vec());
    let outcome = log::recover(&disk.found(), boot, read, &mut |event| replay.event(event));
    (outcome.expect("reading does not fail"), replay)
}
