//! The QoS 1 and 2 handshakes of one session, as sender ([`Outgoing`]) and as receiver ([`Incoming`]).
//! Owned by the session on its home shard; survives the connection. `M` is whatever the owner keeps to be
//! able to send a message again. Invariant: an id is in at most one place, and the order of sending is kept.

use alloc::collections::VecDeque;

use hashbrown::HashMap;

use crate::types::{PacketId, Qos};

/// Where a sent message stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Awaits {
    /// QoS 1: PUBACK.
    Puback,
    /// QoS 2: PUBREC.
    Pubrec,
    /// QoS 2: PUBREL is out, PUBCOMP is missing.
    Pubcomp,
}

/// One sent and unfinished message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sent<M> {
    /// Its packet id.
    pub id: PacketId,
    /// What the other side owes us.
    pub awaits: Awaits,
    /// The message; `None` once PUBREC arrived, because it is never sent again (4.3.3).
    pub delivery: Option<M>,
    /// How many ids had been given when this one was.
    serial: u64,
}

/// Messages sent with QoS 1 or 2 and not finished, in the order of their sending.
#[derive(Clone, Debug)]
pub struct Outgoing<M> {
    sent: VecDeque<Sent<M>>,
    /// How many of the last ones have not been sent on this connection: the session was resumed, and they
    /// wait until the new Receive Maximum has room. Nothing new is sent meanwhile, so they stay the last.
    owed: usize,
    /// Ids given so far; the last id follows from it.
    serial: u64,
}

/// Number of packet ids.
const IDS: u64 = u16::MAX as u64;

/// The `serial`-th id: 1 to 65535, and again.
fn id_of(serial: u64) -> u16 {
    ((serial + IDS - 1) % IDS) as u16 + 1
}

/// What a PUBREC means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pubrec<M> {
    /// Send PUBREL; the message is given back.
    Release(M),
    /// PUBREC came twice: send PUBREL again.
    Again,
    /// The receiver refused the message: the handshake ends here.
    Refused(M),
    /// We sent no such id: PUBREL with 0x92.
    Unknown,
}

impl<M> Default for Outgoing<M> {
    fn default() -> Outgoing<M> {
        Outgoing { sent: VecDeque::new(), owed: 0, serial: 0 }
    }
}

impl<M> Outgoing<M> {
    /// Number of unfinished messages; the send quota of MQTT 5, 4.9, counts them all.
    #[inline]
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    /// True when nothing is unfinished.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Takes a packet id for a message that is sent now. The caller has checked the quota, which is below
    /// the number of ids, so there is one. `qos` is 1 or 2.
    #[inline]
    pub fn send(&mut self, qos: Qos, delivery: M) -> PacketId {
        //= MQTT-2.2.1-4
        //= MQTT-4.3.2-1
        //= MQTT-4.3.3-1
        let id = self.free_id();
        let awaits = if qos == Qos::ExactlyOnce { Awaits::Pubrec } else { Awaits::Puback };
        //= MQTT-4.3.2-3
        //= MQTT-4.3.3-3
        self.sent.push_back(Sent { id, awaits, delivery: Some(delivery), serial: self.serial });
        id
    }

    /// PUBACK: the message, or `None` when nothing waited for it.
    #[inline]
    pub fn puback(&mut self, id: PacketId) -> Option<M> {
        let at = self.find(id, Awaits::Puback)?;
        self.remove(at)?.delivery
    }

    /// PUBREC.
    pub fn pubrec(&mut self, id: PacketId, refused: bool) -> Pubrec<M> {
        if let Some(at) = self.find(id, Awaits::Pubrec) {
            if refused {
                //= MQTT-4.4.0-2
                return match self.remove(at).and_then(|sent| sent.delivery) {
                    Some(delivery) => Pubrec::Refused(delivery),
                    None => Pubrec::Unknown,
                };
            }
            self.sent[at].awaits = Awaits::Pubcomp;
            return match self.sent[at].delivery.take() {
                Some(delivery) => Pubrec::Release(delivery),
                None => Pubrec::Again,
            };
        }
        match self.find(id, Awaits::Pubcomp) {
            Some(_) if !refused => Pubrec::Again,
            _ => Pubrec::Unknown,
        }
    }

    /// PUBCOMP: true when it ends a handshake.
    pub fn pubcomp(&mut self, id: PacketId) -> bool {
        match self.find(id, Awaits::Pubcomp) {
            Some(at) => self.remove(at).is_some(),
            None => false,
        }
    }

    /// The session was resumed: everything unfinished has to be sent again, the releases given back here at once, in
    /// order, the messages as [`Outgoing::next_again`] says.
    //= MQTT-3.3.4-10
    //= MQTT-4.3.3-5
    //= MQTT-4.6.0-4
    //= MQTT-4.9.0-3
    // The Receive Maximum is about PUBLISH: it holds back no PUBREL.
    pub fn begin_again(&mut self) -> impl Iterator<Item = PacketId> + '_ {
        self.owed = self.sent.len();
        self.sent.iter().filter(|sent| sent.awaits == Awaits::Pubcomp).map(|sent| sent.id)
    }

    /// The next message to send again, in order, if fewer than `send_max` wait for an answer on this connection.
    //= MQTT-3.3.4-9
    //= MQTT-4.3.3-6
    //= MQTT-4.6.0-1
    pub fn next_again(&mut self, send_max: u16) -> Option<&Sent<M>> {
        loop {
            let next = self.sent.len() - self.owed;
            let released = self.sent.get(next)?.delivery.is_none();
            if !released && next >= usize::from(send_max) {
                return None;
            }
            self.owed -= 1;
            if !released {
                return self.sent.get(next);
            }
        }
    }

    /// Takes out of what has to be sent again the messages that `keep` does not want, in order.
    pub fn retain_owed(&mut self, keep: impl Fn(&M) -> bool, mut gone: impl FnMut(PacketId, M)) {
        let mut at = self.sent.len() - self.owed;
        while let Some(sent) = self.sent.get(at) {
            if sent.delivery.as_ref().is_none_or(&keep) {
                at += 1;
                continue;
            }
            let id = sent.id;
            if let Some(delivery) = self.remove(at).and_then(|sent| sent.delivery) {
                gone(id, delivery);
            }
        }
    }

    /// Something has to be sent again before anything new.
    #[inline]
    pub fn owes(&self) -> bool {
        self.owed > 0
    }

    /// The message that was sent last, while it can be sent again.
    pub fn last(&self) -> Option<&M> {
        self.sent.back()?.delivery.as_ref()
    }

    /// Everything unfinished, in order.
    pub fn unfinished(&self) -> impl Iterator<Item = &Sent<M>> {
        self.sent.iter()
    }

    /// Loses what waits for PUBCOMP: only to plant a fault.
    #[cfg(feature = "plant")]
    pub fn forget_released(&mut self) {
        self.sent.retain(|sent| sent.awaits != Awaits::Pubcomp);
    }

    /// Restores one unfinished message of an exported session, in the order of [`Outgoing::unfinished`].
    pub fn restore(&mut self, id: PacketId, awaits: Awaits, delivery: Option<M>) {
        let ahead = (u64::from(id.get()) + IDS - u64::from(id_of(self.serial))) % IDS;
        self.serial += ahead;
        self.sent.push_back(Sent { id, awaits, delivery, serial: self.serial });
    }

    /// Empties the window.
    pub fn drain(&mut self) -> impl Iterator<Item = M> + '_ {
        self.owed = 0;
        self.sent.drain(..).filter_map(|sent| sent.delivery)
    }

    fn remove(&mut self, at: usize) -> Option<Sent<M>> {
        if at >= self.sent.len() - self.owed {
            self.owed -= 1;
        }
        self.sent.remove(at)
    }

    fn find(&self, id: PacketId, awaits: Awaits) -> Option<usize> {
        self.sent.iter().position(|sent| sent.id == id && sent.awaits == awaits)
    }

    /// Ids are given in turn, so one can only be in use when the oldest unfinished message is a whole round old.
    fn free_id(&mut self) -> PacketId {
        loop {
            self.serial += 1;
            let Some(id) = PacketId::new(id_of(self.serial)) else { continue };
            let lapped = self.sent.front().is_some_and(|oldest| oldest.serial + IDS <= self.serial);
            if !lapped || self.sent.iter().all(|sent| sent.id != id) {
                return id;
            }
        }
    }
}

/// Where a received QoS 2 message stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Receiving {
    /// Its obligations are open; the number is the owner's. No PUBREC yet.
    Open(u64),
    /// PUBREC is out: PUBREL is awaited.
    Accepted,
}

/// QoS 2 messages received and not released.
#[derive(Clone, Debug)]
pub struct Incoming {
    ids: HashMap<u16, Receiving, ahash::RandomState>,
}

impl Default for Incoming {
    fn default() -> Incoming {
        // A fixed seed: there are only 65535 ids, so nobody can build long chains.
        Incoming { ids: HashMap::with_hasher(ahash::RandomState::with_seeds(1, 2, 3, 4)) }
    }
}

impl Incoming {
    /// Number of unreleased ids: they count against our Receive Maximum.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// True without unreleased ids.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// What is known of `id`.
    pub fn state(&self, id: PacketId) -> Option<Receiving> {
        self.ids.get(&id.get()).copied()
    }

    /// Sets the state of `id`.
    pub fn set(&mut self, id: PacketId, state: Receiving) {
        self.ids.insert(id.get(), state);
    }

    /// PUBREL, or a refused PUBLISH: forgets `id`. False when it was not known (0x92).
    pub fn release(&mut self, id: PacketId) -> bool {
        self.ids.remove(&id.get()).is_some()
    }

    /// All unreleased ids, for an export.
    pub fn ids(&self) -> impl Iterator<Item = (u16, Receiving)> + '_ {
        self.ids.iter().map(|(id, state)| (*id, *state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u16) -> PacketId {
        PacketId::new(n).unwrap()
    }

    #[test]
    fn ids_in_use_are_skipped_when_the_counter_comes_round() {
        let mut out = Outgoing::default();
        let stuck = out.send(Qos::AtLeastOnce, 0);
        let also = out.send(Qos::ExactlyOnce, 1);
        for n in 0..200_000u32 {
            let got = out.send(Qos::AtLeastOnce, n);
            assert!(got != stuck && got != also);
            assert_eq!(out.puback(got), Some(n));
        }
        assert_eq!(out.len(), 2);
    }

    #[test]
    fn restored_ids_are_not_given_again() {
        let mut out = Outgoing::default();
        for n in [65_534, 65_535, 3] {
            out.restore(id(n), Awaits::Puback, Some(0));
        }
        for n in 0..200_000u32 {
            let got = out.send(Qos::AtLeastOnce, n);
            assert!(![65_534, 65_535, 3].contains(&got.get()));
            out.puback(got);
        }
    }

    #[test]
    fn a_qos_2_handshake_releases_the_message_once() {
        let mut out = Outgoing::default();
        let id = out.send(Qos::ExactlyOnce, 'm');
        assert_eq!(out.puback(id), None);
        assert!(!out.pubcomp(id), "PUBCOMP before PUBREC ends nothing");
        assert_eq!(out.pubrec(id, false), Pubrec::Release('m'));
        assert_eq!(out.pubrec(id, false), Pubrec::Again);
        assert!(out.pubcomp(id) && !out.pubcomp(id));
        assert_eq!(out.pubrec(id, false), Pubrec::Unknown);
    }

    #[test]
    fn a_resumed_window_goes_again_in_order_and_no_faster_than_the_new_receive_maximum() {
        let mut out = Outgoing::default();
        let ids = [0, 1, 2].map(|n| out.send(Qos::AtLeastOnce, n));
        assert_eq!(out.begin_again().count(), 0);
        assert_eq!(out.next_again(1).map(|sent| sent.id), Some(ids[0]));
        assert_eq!(out.next_again(1), None);
        assert_eq!(out.puback(ids[2]), Some(2), "acknowledged although it was not sent again");
        assert_eq!(out.puback(ids[0]), Some(0));
        assert_eq!(out.next_again(1).map(|sent| sent.id), Some(ids[1]));
        assert!(!out.owes());
    }

    //= MQTT-3.3.4-10
    //= MQTT-4.9.0-3
    #[test]
    fn a_resumed_window_releases_at_once_whatever_the_receive_maximum_is() {
        let mut out = Outgoing::default();
        let ids = [0, 1, 2, 3].map(|n| out.send(if n < 2 { Qos::AtLeastOnce } else { Qos::ExactlyOnce }, n));
        assert_eq!(out.pubrec(ids[3], false), Pubrec::Release(3));
        assert_eq!(out.pubrec(ids[2], false), Pubrec::Release(2));
        assert!(out.begin_again().eq([ids[2], ids[3]]));
        assert_eq!(out.next_again(1).map(|sent| sent.id), Some(ids[0]));
        assert_eq!(out.next_again(1), None);
        assert!(out.pubcomp(ids[2]));
        assert_eq!(out.puback(ids[0]), Some(0));
        assert_eq!(out.next_again(1).map(|sent| sent.id), Some(ids[1]));
        assert_eq!(out.next_again(9), None, "the other release is out");
        assert!(!out.owes());
    }

    #[test]
    fn a_refused_pubrec_ends_the_handshake() {
        let mut out = Outgoing::default();
        let id = out.send(Qos::ExactlyOnce, 'm');
        assert_eq!(out.pubrec(id, true), Pubrec::Refused('m'));
        assert!(out.is_empty());
    }

    #[test]
    fn incoming_ids_are_known_until_released() {
        let mut incoming = Incoming::default();
        incoming.set(id(7), Receiving::Open(3));
        incoming.set(id(7), Receiving::Accepted);
        assert_eq!(incoming.state(id(7)), Some(Receiving::Accepted));
        assert!(incoming.release(id(7)) && !incoming.release(id(7)));
    }
}
