//! What the rest of the process sees of a shard: how to wake it, how to leave it a note, and what it counts.
//! One per shard, shared by all shards and all ordinary threads. Shards speak to each other through mailboxes;
//! notes are for the few words of ordinary threads (a view, a stop, a resolved name).

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering},
        mpsc,
    },
};

use broker::{
    admission::{Policy, Verdict},
    bans::Bans,
    counters::Counters,
    exchange::Judged,
    inquiry::Heard,
    surface::{ConnId, DialId, LinkStatus, Terms},
};
use contract::{bans::Ban, view::View};
use rustix::event::{EventfdFlags, eventfd};

use crate::{listeners::Change, log_port::LogPort, sleep::Sleep, system::Said};

/// Notes that may wait for a shard.
const NOTES_MAX: usize = 1024;

/// What an ordinary thread has to tell a shard.
pub(crate) enum Note {
    /// Control has a newer view.
    View(Arc<View>),
    /// Who is let in, and what they may do.
    Policy(Arc<Policy>),
    /// Who a client is, by the policy with this number. There are at most `admission.queue_max` of them.
    Authenticated { conn: ConnId, policy: u64, verdict: Verdict },
    /// What a step of an enhanced authentication was worth. They count as those above.
    Exchanged { conn: ConnId, policy: u64, judged: Judged },
    /// What a server says to a wish, asked by the policy with this number. There are at most `admission.hook_queue_max` of
    /// them, and one per thread.
    Permitted { conn: ConnId, number: u64, policy: u64, heard: Option<Heard> },
    /// Every shard has taken over what the logs held.
    Replay,
    /// The node is complete: connections may be accepted.
    Accept,
    /// Stop serving.
    Drain,
    /// Memory is scarce, or no longer.
    Memory { scarce: bool },
    /// What the broker has to know of listeners. Whoever waits for all shards to know it holds the other end.
    Terms(Arc<[Terms]>, mpsc::Sender<()>),
    /// Listeners have come, changed or gone.
    Listeners(Box<Change>),
    /// Who may not connect.
    Bans(Arc<Bans>),
    /// What the node says about itself, for the shard that publishes it.
    System(Arc<[Said]>),
    /// A name became addresses, or did not.
    Resolved { dial: DialId, addresses: Result<Vec<SocketAddr>, String> },
}

/// The outside of one shard.
pub(crate) struct Port {
    /// Whether it sleeps.
    pub(crate) sleep: Sleep,
    /// The ring's descriptor once the shard runs, else -1.
    ring: AtomicI32,
    alarm: OwnedFd,
    notes: Mutex<VecDeque<Note>>,
    /// Between the shard and its log thread.
    pub(crate) log: LogPort,
    /// Has nothing left to do after a drain.
    pub(crate) drained: AtomicBool,
    /// What it counts.
    pub(crate) board: Board,
}

impl Port {
    pub(crate) fn new() -> io::Result<Port> {
        Ok(Port {
            sleep: Sleep::new(),
            ring: AtomicI32::new(-1),
            alarm: eventfd(0, EventfdFlags::CLOEXEC)?,
            notes: Mutex::new(VecDeque::new()),
            log: LogPort::new(),
            drained: AtomicBool::new(false),
            board: Board::new(),
        })
    }

    /// The shard runs, and sleeps in this ring. From now on other shards may wake it.
    pub(crate) fn open(&self, ring: RawFd) {
        self.ring.store(ring, Ordering::Release);
    }

    /// The ring to send a wake to.
    pub(crate) fn ring(&self) -> Option<RawFd> {
        Some(self.ring.load(Ordering::Acquire)).filter(|ring| *ring >= 0)
    }

    /// The eventfd that [`Port::wake`] writes.
    pub(crate) fn alarm(&self) -> RawFd {
        self.alarm.as_raw_fd()
    }

    /// Wakes the shard from an ordinary thread.
    pub(crate) fn wake(&self) {
        // Fails only when 2^64 wakes are unread.
        let _ = rustix::io::write(&self.alarm, &1_u64.to_ne_bytes());
    }

    /// Leaves a note and wakes the shard. A newer view or policy replaces one that was not read yet; a full queue gives
    /// the note back.
    pub(crate) fn post(&self, note: Note) -> Result<(), Note> {
        let mut notes = self.notes();
        match note {
            Note::View(_) => notes.retain(|waiting| !matches!(waiting, Note::View(_))),
            Note::Policy(_) => notes.retain(|waiting| !matches!(waiting, Note::Policy(_))),
            Note::Bans(_) => notes.retain(|waiting| !matches!(waiting, Note::Bans(_))),
            _ => {}
        }
        let bounded =
            matches!(note, Note::Drain | Note::Authenticated { .. } | Note::Exchanged { .. } | Note::Permitted { .. });
        if notes.len() >= NOTES_MAX && !bounded {
            return Err(note);
        }
        notes.push_back(note);
        drop(notes);
        self.wake();
        Ok(())
    }

    /// The next note, for the shard.
    pub(crate) fn note(&self) -> Option<Note> {
        self.notes().pop_front()
    }

    fn notes(&self) -> MutexGuard<'_, VecDeque<Note>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Numbers of one shard, written by it a few times a second and read by the control thread.
pub(crate) struct Board {
    counters: Box<[AtomicU64]>,
    gauges: [AtomicU64; Gauge::COUNT],
    links: Mutex<Vec<LinkStatus>>,
    flapping: Mutex<Vec<Ban>>,
}

/// What a shard holds right now.
#[derive(Clone, Copy)]
pub(crate) enum Gauge {
    Turns,
    Connections,
    Sessions,
    Subscriptions,
    Groups,
    Retained,
    Interest,
    Obligations,
    StagedBytes,
    Queued,
    QueuedBytes,
    Inflight,
    Stored,
    StoredBytes,
    BusyUs,
}

impl Gauge {
    const COUNT: usize = Gauge::BusyUs as usize + 1;
}

impl Board {
    fn new() -> Board {
        Board {
            counters: Counters::NAMES.iter().map(|_| AtomicU64::new(0)).collect(),
            gauges: Default::default(),
            links: Mutex::new(Vec::new()),
            flapping: Mutex::new(Vec::new()),
        }
    }

    /// Writes all counters.
    pub(crate) fn count(&self, values: impl Iterator<Item = u64>) {
        for (place, value) in self.counters.iter().zip(values) {
            place.store(value, Ordering::Relaxed);
        }
    }

    /// Writes one gauge.
    pub(crate) fn set(&self, gauge: Gauge, value: u64) {
        self.gauges[gauge as usize].store(value, Ordering::Relaxed);
    }

    /// Writes the bans that no View names yet, unless the reader is just reading.
    pub(crate) fn flapping(&self, bans: impl FnOnce() -> Vec<Ban>) {
        if let Ok(mut held) = self.flapping.try_lock() {
            *held = bans();
        }
    }

    /// The bans that no View names yet.
    pub(crate) fn flapping_bans(&self) -> Vec<Ban> {
        self.flapping.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes the status of links, unless the reader is just reading: then the next time will do.
    pub(crate) fn links(&self, status: impl FnOnce() -> Vec<LinkStatus>) {
        if let Ok(mut links) = self.links.try_lock() {
            *links = status();
        }
    }

    /// Reads all counters, in the order of [`Counters::NAMES`].
    pub(crate) fn counters(&self) -> impl Iterator<Item = u64> {
        self.counters.iter().map(|counter| counter.load(Ordering::Relaxed))
    }

    /// Reads one gauge.
    pub(crate) fn gauge(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge as usize].load(Ordering::Relaxed)
    }

    /// Reads the status of links.
    pub(crate) fn link_status(&self) -> Vec<LinkStatus> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_gives_a_note_back_but_always_takes_the_stop() {
        let port = Port::new().expect("an eventfd");
        let resolved = || Note::Resolved { dial: DialId(1), addresses: Ok(Vec::new()) };
        for _ in 0..NOTES_MAX {
            assert!(port.post(resolved()).is_ok());
        }
        assert!(port.post(resolved()).is_err());
        assert!(port.post(Note::Drain).is_ok());
        let notes = std::iter::from_fn(|| port.note());
        assert!(matches!(notes.last(), Some(Note::Drain)));
    }

    #[test]
    fn a_shard_that_does_not_run_yet_has_no_ring_to_wake() {
        let port = Port::new().expect("an eventfd");
        assert_eq!(port.ring(), None);
        port.open(7);
        assert_eq!(port.ring(), Some(7));
    }
}
