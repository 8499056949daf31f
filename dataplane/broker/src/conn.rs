//! The connections of this shard, under the identities that the shell gave them.
//! Invariant: an entry lives from `Accepted`, `adopt` or `Dialed` until `Closed` or `hand_over`.

use alloc::{boxed::Box, collections::VecDeque, sync::Arc, vec::Vec};
use core::net::SocketAddr;

use mqtt::{connection::Connection, types::PacketId, types::Reason};

use crate::{
    exchange::Exchange,
    inquiry::Hold,
    pace::Pace,
    session::SessionId,
    surface::{Certificate, ConnId},
};

/// One connection.
pub(crate) struct Conn {
    pub(crate) id: ConnId,
    pub(crate) listener: u16,
    pub(crate) peer: SocketAddr,
    /// The verified certificate of its client.
    pub(crate) certificate: Option<Box<Certificate>>,
    /// Bytes to send; the shell swaps it out.
    pub(crate) out: Vec<u8>,
    /// Something for it was shed, and it is to be closed for that.
    pub(crate) cut: bool,
    /// What may leave of them, once something had to wait for the log.
    pub(crate) held: Option<Box<Held>>,
    /// The shell was told of `out` and has not taken it.
    pub(crate) told: bool,
    /// The batch that CONNACK waits for; nothing else may be said before it.
    pub(crate) connack_until: u64,
    /// Bytes received and not consumed: an incomplete packet, or everything while paused.
    pub(crate) unread: Vec<u8>,
    /// Why input is not consumed; see [`pause`].
    pub(crate) paused: u8,
    /// Somebody watches its packets.
    pub(crate) watched: bool,
    /// Last time that bytes came, monotonic microseconds.
    pub(crate) heard_us: u64,
    /// When its timer is due; a wheel entry that fires earlier is an old one.
    pub(crate) timer_us: u64,
    /// What deliveries need to know of an open client connection.
    pub(crate) wire: Wire,
    /// The enhanced authentication that goes on.
    pub(crate) exchange: Option<Box<Exchange>>,
    /// The packet in front of the input that waits for a server's word; see [`crate::inquiry`].
    pub(crate) hold: Option<Box<Hold>>,
    /// The client has closed, and what is left of its input waits for nothing.
    pub(crate) ending: bool,
    pub(crate) phase: Phase,
}

/// Output that may leave, while what was written behind it waits for the log.
#[derive(Default)]
pub(crate) struct Held {
    free: Vec<u8>,
    /// (place in `out`, batch): what stands there and behind it waits for that batch.
    gates: VecDeque<(usize, u64)>,
}

impl Conn {
    /// Is it a client that was let in?
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// What stands at `at` in the output and behind it leaves when the batch `until` is kept. False: it waits for that
    /// already.
    pub(crate) fn hold(&mut self, at: usize, until: u64) -> bool {
        let held = self.held.get_or_insert_default();
        if held.gates.back().is_some_and(|(_, last)| *last >= until) {
            return false;
        }
        if held.gates.is_empty() {
            held.free.extend(self.out.drain(..at));
            held.gates.push_back((0, until));
        } else {
            held.gates.push_back((at, until));
        }
        true
    }

    /// Everything up to this batch is kept.
    pub(crate) fn release(&mut self, durable: u64) {
        let Some(held) = &mut self.held else { return };
        let before = held.gates.len();
        while held.gates.front().is_some_and(|(_, until)| *until <= durable) {
            held.gates.pop_front();
        }
        if held.gates.len() == before {
            return;
        }
        let upto = held.gates.front().map_or(self.out.len(), |(at, _)| *at);
        if held.free.is_empty() && upto == self.out.len() {
            core::mem::swap(&mut held.free, &mut self.out);
        } else {
            held.free.extend(self.out.drain(..upto));
        }
        held.gates.iter_mut().for_each(|(at, _)| *at -= upto);
    }

    /// What may leave now; the rest follows.
    pub(crate) fn sendable(&mut self) -> &mut Vec<u8> {
        let Some(held) = &mut self.held else { return &mut self.out };
        if held.gates.is_empty() {
            if held.free.is_empty() {
                return &mut self.out;
            }
            held.free.append(&mut self.out);
        }
        &mut held.free
    }

    /// The connection ends: what waits for the log never leaves. Gives the place of last words.
    pub(crate) fn farewell(&mut self) -> &mut Vec<u8> {
        if let Some(held) = &mut self.held
            && let Some((at, _)) = held.gates.front()
        {
            self.out.truncate(*at);
            held.gates.clear();
        }
        self.sendable()
    }
}

/// The part of an open connection that every delivery reads, beside `out` in memory.
#[derive(Clone, Copy, Default)]
pub(crate) struct Wire {
    pub(crate) v5: bool,
    /// Topic aliases or a mountpoint are in play: packets of this client are not shared with others.
    pub(crate) single: bool,
    pub(crate) send_max: u16,
    pub(crate) packet_bytes_max: u32,
}

/// Reasons not to consume input. Bits of [`Conn::paused`].
pub(crate) mod pause {
    /// A mailbox that its publishes filled.
    pub(crate) const HOP: u8 = 1;
    /// Too many publishes wait for their acknowledgement.
    pub(crate) const ACKS: u8 = 2;
    /// It does not read what we send.
    pub(crate) const OUTPUT: u8 = 4;
    /// Too many of its publishes wait for the log.
    pub(crate) const LOG: u8 = 8;
    /// Nobody has said yet who its client is; see [`crate::admission`].
    pub(crate) const ADMISSION: u8 = 16;
    /// A publish of it was refused, and it will be closed for that.
    pub(crate) const REFUSED: u8 = 64;
    /// It has published faster than it may; see [`crate::pace`].
    pub(crate) const RATE: u8 = 32;
    /// A server has to say whether it may do what it asks; see [`crate::inquiry`].
    pub(crate) const ACCESS: u8 = 128;
}

/// Where a connection stands.
pub(crate) enum Phase {
    /// CONNECT is not complete.
    Opening,
    /// A client with a session.
    Open(Box<Open>),
    /// Our own connection to a remote: the outlet of this link.
    Outlet(u16),
    /// Our own connection to a remote: the route connection of this link.
    Requester(u16),
    /// Closed by us; waits for the shell to flush and say so.
    Closing,
}

/// What an open client connection has.
pub(crate) struct Open {
    pub(crate) session: SessionId,
    pub(crate) protocol: Connection,
    pub(crate) acks: Acks,
    /// How fast it was, if anybody asks.
    pub(crate) pace: Option<Box<Pace>>,
    /// The mountpoint of its listener.
    pub(crate) mountpoint: Option<Arc<str>>,
    /// The remote that this connection may speak for.
    pub(crate) link: LinkAccess,
    /// Publishes that have not been routed, because the log does not have them yet.
    pub(crate) deferred: u32,
    /// It has sent route payloads: the owner of the link must hear when it ends.
    pub(crate) routes: Option<u16>,
    /// When its principal has to leave, monotonic microseconds; `u64::MAX`: never.
    pub(crate) expires_us: u64,
    /// DISCONNECT 0x00 came: no will.
    pub(crate) goodbye: bool,
}

/// Which remotes may a connection speak for?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LinkAccess {
    /// Bit i: it matched the `accept` of link i.
    pub(crate) links: u64,
    /// It comes from loopback: any link without an `accept`.
    pub(crate) loopback: bool,
}

/// Acknowledgements of received publishes, in the order of their arrival.
#[derive(Default)]
pub(crate) struct Acks {
    waiting: VecDeque<Ack>,
    /// Number of the front.
    first: u64,
    /// Those of QoS 1; QoS 2 is counted by its packet id until PUBREL.
    qos1: usize,
}

/// One PUBACK or PUBREC that has not left.
#[derive(Clone, Copy)]
pub(crate) struct Ack {
    pub(crate) packet: PacketId,
    pub(crate) qos2: bool,
    pub(crate) ready: Option<Reason>,
}

impl Acks {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Unanswered QoS 1 publishes.
    pub(crate) fn qos1(&self) -> usize {
        self.qos1
    }

    /// The number that [`Acks::push`] gives next.
    pub(crate) fn next_number(&self) -> u64 {
        self.first + self.waiting.len() as u64
    }

    /// Appends one; `ready` when nothing has to be awaited. Returns its number.
    pub(crate) fn push(&mut self, ack: Ack) -> u64 {
        self.qos1 += usize::from(!ack.qos2);
        self.waiting.push_back(ack);
        self.first + self.waiting.len() as u64 - 1
    }

    /// The obligations of a publish are met, or refused.
    pub(crate) fn settle(&mut self, number: u64, reason: Reason) {
        let at = number.checked_sub(self.first).map(|at| at as usize);
        if let Some(ack) = at.and_then(|at| self.waiting.get_mut(at)) {
            ack.ready = Some(reason);
        }
    }

    /// The next acknowledgement that may leave.
    pub(crate) fn next_ready(&mut self) -> Option<(Ack, Reason)> {
        let front = *self.waiting.front()?;
        let reason = front.ready?;
        self.waiting.pop_front();
        self.qos1 -= usize::from(!front.qos2);
        self.first += 1;
        Some((front, reason))
    }
}

/// All connections of the shard.
#[derive(Default)]
pub(crate) struct Conns {
    slots: Vec<Option<Conn>>,
    live: usize,
}

impl Conns {
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn insert(&mut self, id: ConnId, listener: u16, peer: SocketAddr, now_us: u64, phase: Phase) {
        let at = id.index as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        self.live += usize::from(self.slots[at].is_none());
        self.slots[at] = Some(Conn {
            id,
            listener,
            peer,
            certificate: None,
            out: Vec::new(),
            cut: false,
            held: None,
            told: false,
            connack_until: 0,
            unread: Vec::new(),
            paused: 0,
            watched: false,
            heard_us: now_us,
            timer_us: u64::MAX,
            wire: Wire::default(),
            exchange: None,
            hold: None,
            ending: false,
            phase,
        });
    }

    pub(crate) fn get(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.slots.get_mut(id.index as usize)?.as_mut().filter(|conn| conn.id == id)
    }

    /// The connection at an index that a session names: it is always the session's own.
    #[inline]
    pub(crate) fn at(&mut self, index: u32) -> Option<&mut Conn> {
        self.slots.get_mut(index as usize)?.as_mut()
    }

    /// Places, taken or not.
    pub(crate) fn places(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The open client connection, if `id` is one.
    pub(crate) fn open(&mut self, id: ConnId) -> Option<&mut Open> {
        match &mut self.get(id)?.phase {
            Phase::Open(open) => Some(open),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, id: ConnId) -> Option<Conn> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.as_ref()?.id != id {
            return None;
        }
        self.live -= 1;
        slot.take()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Conn> {
        self.slots.iter_mut().flatten()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.slots.iter().flatten().map(|conn| conn.id)
    }
}
