//! What was sent, what arrived, and the difference: loss, duplicates, reordering and foreign or damaged payloads, per
//! publisher and subscriber. Called by `load` for every delivery. Always true: every arrival is counted once, under
//! exactly one of the names of [`Tally`].

/// Bytes at the head of every payload: run tag, publisher, sequence number, time of sending.
pub const STAMP_BYTES: usize = 4 + 4 + 8 + 8;

/// Gaps that one flow remembers; the oldest is given up as lost beyond it, so a broker that loses every second message
/// cannot exhaust our memory.
pub const GAPS_MAX: usize = 4096;

/// Head of a payload: who sent it, as which of its messages, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Index of the publisher.
    pub publisher: u32,
    /// Number of the message of this publisher, from 0.
    pub sequence: u64,
    /// Nanoseconds since the run began.
    pub sent_ns: u64,
}

/// The shape of all payloads of one run: its tag and the filler behind the stamp.
#[derive(Clone, Debug)]
pub struct Shape {
    tag: [u8; 4],
    filler: Vec<u8>,
}

impl Shape {
    /// Payloads of `payload_bytes` (at least [`STAMP_BYTES`]) tagged with `tag`, which differs between runs so that a
    /// message of an earlier run is recognised as foreign.
    pub fn new(tag: u32, payload_bytes: usize) -> Shape {
        let filler_bytes = payload_bytes.saturating_sub(STAMP_BYTES);
        // A period of 251 (a prime) shows shifted and swapped blocks, which a constant filler would hide.
        let filler = (0..filler_bytes).map(|index| (index % 251) as u8).collect();
        Shape { tag: tag.to_be_bytes(), filler }
    }

    /// Length of every payload.
    pub fn payload_bytes(&self) -> usize {
        STAMP_BYTES + self.filler.len()
    }

    /// Appends one payload.
    pub fn put(&self, out: &mut Vec<u8>, stamp: Stamp) {
        out.extend_from_slice(&self.tag);
        out.extend_from_slice(&stamp.publisher.to_be_bytes());
        out.extend_from_slice(&stamp.sequence.to_be_bytes());
        out.extend_from_slice(&stamp.sent_ns.to_be_bytes());
        out.extend_from_slice(&self.filler);
    }

    /// Reads the stamp back, if every byte of the payload is as [`Shape::put`] wrote it.
    pub fn read(&self, payload: &[u8]) -> Result<Stamp, Damage> {
        let (head, filler) = payload.split_at_checked(STAMP_BYTES).ok_or(Damage::Foreign)?;
        if head[..4] != self.tag {
            return Err(Damage::Foreign);
        }
        if filler != self.filler {
            return Err(Damage::Corrupt);
        }
        let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|index| head[at + index]));
        Ok(Stamp { publisher: (number(4) >> 32) as u32, sequence: number(8), sent_ns: number(16) })
    }
}

/// A payload that this run did not send like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Not of this run, or too short to tell.
    Foreign,
    /// Of this run, but its filler or length changed.
    Corrupt,
}

/// How one arrival relates to the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The next one, or the next after a gap of `skipped` messages.
    InOrder { skipped: u64 },
    /// Fills a gap: it was overtaken by a later one.
    Late,
    /// Arrived before.
    Duplicate,
}

/// Everything that one publisher sent to one subscriber.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    next: u64,
    gaps: Vec<std::ops::Range<u64>>,
    lost_for_good: u64,
}

impl Flow {
    /// The number after the highest that arrived: everything below it has arrived or is missing.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Enters one arrival.
    #[inline]
    pub fn arrive(&mut self, sequence: u64) -> Arrival {
        if sequence == self.next {
            self.next += 1;
            return Arrival::InOrder { skipped: 0 };
        }
        if sequence > self.next {
            let skipped = sequence - self.next;
            self.remember(self.next..sequence);
            self.next = sequence.saturating_add(1);
            return Arrival::InOrder { skipped };
        }
        self.fill(sequence)
    }

    /// Messages that never arrived, when the publisher sent `sent`.
    pub fn lost(&self, sent: u64) -> u64 {
        let gaps: u64 = self.gaps.iter().map(|gap| gap.end - gap.start).sum();
        gaps + self.lost_for_good + sent.saturating_sub(self.next)
    }

    fn remember(&mut self, gap: std::ops::Range<u64>) {
        if self.gaps.len() == GAPS_MAX {
            let oldest = self.gaps.remove(0);
            self.lost_for_good += oldest.end - oldest.start;
        }
        self.gaps.push(gap);
    }

    fn fill(&mut self, sequence: u64) -> Arrival {
        let Some(index) = self.gaps.iter().position(|gap| gap.contains(&sequence)) else {
            return Arrival::Duplicate;
        };
        let gap = self.gaps[index].clone();
        self.gaps[index].end = sequence;
        if sequence + 1 < gap.end {
            self.gaps.insert(index + 1, sequence + 1..gap.end);
        }
        if self.gaps[index].is_empty() {
            self.gaps.remove(index);
        }
        Arrival::Late
    }
}

/// Sum over all flows of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages that arrived for the first time.
    pub arrived: u64,
    /// Messages that never arrived.
    pub lost: u64,
    /// Arrivals of a message that had arrived.
    pub duplicates: u64,
    /// Messages overtaken by a later one of the same publisher.
    pub reordered: u64,
    /// Payloads that were not sent in this run, or not to this topic.
    pub foreign: u64,
    /// Payloads of this run whose bytes changed.
    pub corrupt: u64,
}

impl Tally {
    /// Adds another sum.
    pub fn add(&mut self, other: &Tally) {
        self.arrived += other.arrived;
        self.lost += other.lost;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.foreign += other.foreign;
        self.corrupt += other.corrupt;
    }

    /// Whether everything arrived once, in order and whole.
    pub fn is_clean(&self) -> bool {
        *self == Tally { arrived: self.arrived, ..Tally::default() }
    }

    /// Names what is wrong, or says `ok`.
    pub fn verdict(&self) -> String {
        let named = [
            (self.lost, "lost"),
            (self.duplicates, "duplicate"),
            (self.reordered, "reordered"),
            (self.foreign, "foreign"),
            (self.corrupt, "corrupt"),
        ];
        let faults: Vec<_> =
            named.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect();
        if faults.is_empty() { "ok".into() } else { faults.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(sequences: &[u64], sent: u64) -> Tally {
        let mut flow = Flow::default();
        let mut tally = Tally::default();
        for &sequence in sequences {
            match flow.arrive(sequence) {
                Arrival::InOrder { .. } => tally.arrived += 1,
                Arrival::Late => (tally.arrived, tally.reordered) = (tally.arrived + 1, tally.reordered + 1),
                Arrival::Duplicate => tally.duplicates += 1,
            }
        }
        tally.lost = flow.lost(sent);
        tally
    }

    #[test]
    fn everything_once_and_in_order_is_clean() {
        let tally = run(&[0, 1, 2, 3], 4);
        assert!(tally.is_clean());
        assert_eq!((tally.arrived, tally.verdict().as_str()), (4, "ok"));
    }

    #[test]
    fn a_message_missing_in_the_middle_is_one_lost() {
        assert_eq!(run(&[0, 1, 3], 4), Tally { arrived: 3, lost: 1, ..Tally::default() });
    }

    #[test]
    fn messages_missing_at_the_end_are_lost() {
        assert_eq!(run(&[0, 1], 5), Tally { arrived: 2, lost: 3, ..Tally::default() });
        assert_eq!(run(&[], 5), Tally { lost: 5, ..Tally::default() });
    }

    #[test]
    fn a_message_that_arrives_twice_is_one_duplicate() {
        assert_eq!(run(&[0, 1, 1, 2], 3), Tally { arrived: 3, duplicates: 1, ..Tally::default() });
        assert_eq!(run(&[0, 1, 2, 0], 3), Tally { arrived: 3, duplicates: 1, ..Tally::default() });
    }

    #[test]
    fn two_swapped_messages_are_one_reordered_and_none_lost() {
        assert_eq!(run(&[0, 2, 1, 3], 4), Tally { arrived: 4, reordered: 1, ..Tally::default() });
    }

    #[test]
    fn a_gap_may_be_filled_from_its_middle_and_a_second_filling_is_a_duplicate() {
        let tally = run(&[5, 2, 0, 4, 2], 6);
        assert_eq!(tally, Tally { arrived: 4, lost: 2, duplicates: 1, reordered: 3, ..Tally::default() });
        assert_eq!(tally.verdict(), "2 lost, 1 duplicate, 3 reordered");
    }

    #[test]
    fn more_gaps_than_are_remembered_still_count_as_lost() {
        let every_second: Vec<u64> = (0..2 * GAPS_MAX as u64 + 200).map(|index| index * 2 + 1).collect();
        let sent = every_second.len() as u64 * 2;
        assert_eq!(run(&every_second, sent).lost, every_second.len() as u64);
    }

    #[test]
    fn a_payload_reads_back_and_any_changed_byte_is_damage() {
        let shape = Shape::new(0xfeed_beef, 64);
        let stamp = Stamp { publisher: 3, sequence: 1 << 40, sent_ns: 77 };
        let mut payload = Vec::new();
        shape.put(&mut payload, stamp);
        assert_eq!(payload.len(), 64);
        assert_eq!(shape.read(&payload), Ok(stamp));
        for index in 0..payload.len() {
            let mut changed = payload.clone();
            changed[index] ^= 0x10;
            assert_ne!(shape.read(&changed), Ok(stamp), "byte {index}");
        }
        assert_eq!(shape.read(&payload[..63]), Err(Damage::Corrupt));
        assert_eq!(shape.read(&payload[..10]), Err(Damage::Foreign));
        assert_eq!(Shape::new(1, 64).read(&payload), Err(Damage::Foreign));
    }
}
