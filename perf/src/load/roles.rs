//! The two roles of a connection: a publisher with its packet ids and handshakes, and a subscriber that verifies what
//! arrives. No I/O. Called by `client`. Always true: a message is settled in the window by the arrival that proves that
//! this receiver has it or will never get it.

use std::collections::VecDeque;

use hdrhistogram::Histogram;

use super::plan::Plan;
use super::window::Window;
use crate::ledger::{Arrival, Damage, Flow, Shape, Stamp, Tally};
use crate::wire::{self, Ack, Publish};

/// What all clients of one thread share while they handle one turn.
pub struct Turn<'a> {
    /// The run.
    pub plan: &'a Plan,
    /// The closed loop.
    pub window: &'a Window,
    /// Shape of every payload.
    pub shape: &'a Shape,
    /// Names of the topics.
    pub topics: &'a [String],
    /// Nanoseconds since the run began, read once after each read from a socket.
    pub now_ns: u64,
    /// Messages sent from this time on enter the histogram.
    pub since_ns: u64,
    /// Latency in nanoseconds.
    pub latency: Histogram<u64>,
    /// What arrived, summed over the subscribers of this thread.
    pub tally: Tally,
    /// Messages of this thread's publishers that wait for an acknowledgement.
    pub unacknowledged: u64,
    /// Whether a message completed, so that another thread may publish.
    pub opened: bool,
}

/// What a connection is for.
pub enum Role {
    /// Sends messages.
    Publisher(Publisher),
    /// Receives and verifies messages.
    Subscriber(Subscriber),
}

/// A publisher and the packet ids that it may use.
pub struct Publisher {
    /// Number in the plan.
    pub index: usize,
    topic: usize,
    free: VecDeque<u16>,
    steps: Vec<Step>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Free,
    Puback,
    Pubrec,
    Pubcomp,
}

/// A subscriber and what arrived at it from each publisher.
pub struct Subscriber {
    /// Number in the plan.
    pub index: usize,
    flows: Vec<Flow>,
}

impl Publisher {
    /// Publisher `index` of the plan.
    pub fn new(plan: &Plan, index: usize) -> Publisher {
        Publisher {
            index,
            topic: plan.topic_of(index),
            free: (1..=plan.inflight_max).collect(),
            steps: vec![Step::Free; usize::from(plan.inflight_max) + 1],
        }
    }

    /// Keeps at most `receive_max` messages unacknowledged, as the broker asked.
    pub fn limit(&mut self, receive_max: u16) {
        self.free.truncate(usize::from(receive_max));
    }

    /// Appends one message stamped with `sent_ns` if there is a packet id for it and the window lets it go.
    pub fn publish(&mut self, out: &mut Vec<u8>, turn: &mut Turn<'_>, sent_ns: u64) -> bool {
        let qos = turn.plan.qos;
        if qos > 0 && self.free.is_empty() {
            return false;
        }
        let Some(sequence) = turn.window.claim(self.index) else {
            return false;
        };
        let mut id = 0;
        if qos > 0 {
            id = self.free.pop_front().unwrap_or_default();
            self.steps[usize::from(id)] = if qos == 1 { Step::Puback } else { Step::Pubrec };
            turn.unacknowledged += 1;
        }
        let topic = turn.topics[self.topic].as_bytes();
        let payload_bytes = turn.shape.payload_bytes();
        wire::put_publish(out, turn.plan.version, topic, qos, id, payload_bytes);
        let publisher = self.index as u32;
        turn.shape.put(out, Stamp { publisher, sequence, sent_ns });
        true
    }

    /// Takes one acknowledgement and answers it; true if the message is done with. An error is the broker's fault.
    pub fn acknowledged(&mut self, kind: Ack, id: u16, code: u8, out: &mut Vec<u8>) -> Result<bool, String> {
        let expected = match kind {
            Ack::Puback => Step::Puback,
            Ack::Pubrec => Step::Pubrec,
            Ack::Pubcomp => Step::Pubcomp,
            Ack::Pubrel => return Err("the broker sent PUBREL to a publisher".into()),
        };
        let step = self.steps.get_mut(usize::from(id)).ok_or_else(|| unknown(kind, id))?;
        if *step != expected {
            return Err(unknown(kind, id));
        }
        if code >= 0x80 {
            return Err(format!("the broker refused a message: {kind:?} with reason code 0x{code:02x}"));
        }
        if kind == Ack::Pubrec {
            *step = Step::Pubcomp;
            wire::put_ack(out, Ack::Pubrel, id);
            return Ok(false);
        }
        *step = Step::Free;
        self.free.push_back(id);
        Ok(true)
    }
}

fn unknown(kind: Ack, id: u16) -> String {
    format!("the broker sent {kind:?} for packet id {id}, which does not wait for it")
}

impl Subscriber {
    /// Subscriber `index` of the plan.
    pub fn new(plan: &Plan, index: usize) -> Subscriber {
        Subscriber { index, flows: vec![Flow::default(); plan.flows_of_subscriber()] }
    }

    /// Messages that never arrived here.
    pub fn lost(&self, plan: &Plan, window: &Window) -> u64 {
        let lost = |(flow, state): (usize, &Flow)| state.lost(window.sent(plan.publisher_of(self.index, flow)));
        self.flows.iter().enumerate().map(lost).sum()
    }

    /// Verifies one message and settles it in the window.
    #[inline]
    pub fn deliver(&mut self, publish: &Publish<'_>, turn: &mut Turn<'_>) {
        let stamp = match turn.shape.read(publish.payload) {
            Ok(stamp) => stamp,
            Err(Damage::Foreign) => return turn.tally.foreign += 1,
            Err(Damage::Corrupt) => return turn.tally.corrupt += 1,
        };
        let publisher = stamp.publisher as usize;
        let Some(flow) = self.belongs(publish.topic, stamp, turn) else {
            return turn.tally.foreign += 1;
        };
        match self.flows[flow].arrive(stamp.sequence) {
            Arrival::InOrder { skipped } => {
                let settled = stamp.sequence - skipped..stamp.sequence + 1;
                turn.opened |= turn.window.settle(publisher, settled);
            }
            Arrival::Late => turn.tally.reordered += 1,
            Arrival::Duplicate => return turn.tally.duplicates += 1,
        }
        turn.tally.arrived += 1;
        if stamp.sent_ns >= turn.since_ns {
            turn.latency.saturating_record(turn.now_ns.saturating_sub(stamp.sent_ns));
        }
    }

    /// The flow of a stamp that could be true: its publisher exists, reaches us, by this topic, and has sent it.
    fn belongs(&self, topic: &[u8], stamp: Stamp, turn: &Turn<'_>) -> Option<usize> {
        let publisher = stamp.publisher as usize;
        let flow = turn.plan.flow(self.index, publisher)?;
        let same_topic = turn.topics[turn.plan.topic_of(publisher)].as_bytes() == topic;
        (same_topic && stamp.sequence < turn.window.sent(publisher)).then_some(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Layout, Pace, tests::plan};
    use super::*;

    struct World {
        plan: Plan,
        window: Window,
        shape: Shape,
        topics: Vec<String>,
    }

    impl World {
        fn new(publishers: usize) -> World {
            let mut plan = plan(Layout::NToOne, publishers, 1);
            plan.pace = Pace::Window(64);
            let (window, shape, topics) = (Window::new(&plan), Shape::new(plan.tag, 64), plan.topics());
            World { plan, window, shape, topics }
        }

        fn turn(&self) -> Turn<'_> {
            Turn {
                plan: &self.plan,
                window: &self.window,
                shape: &self.shape,
                topics: &self.topics,
                now_ns: 50,
                since_ns: 0,
                latency: Histogram::new(3).unwrap(),
                tally: Tally::default(),
                unacknowledged: 0,
                opened: false,
            }
        }

        fn verify(&self, arrivals: &[(u32, u64)], topic_of: impl Fn(u32) -> usize) -> Tally {
            let mut turn = self.turn();
            let mut subscriber = Subscriber::new(&self.plan, 0);
            for &(publisher, sequence) in arrivals {
                let mut payload = Vec::new();
                self.shape.put(&mut payload, Stamp { publisher, sequence, sent_ns: 10 });
                let topic = self.topics[topic_of(publisher)].as_bytes();
                subscriber.deliver(&Publish { qos: 0, topic, id: 0, payload: &payload }, &mut turn);
            }
            turn.tally.lost = subscriber.lost(&self.plan, &self.window);
            turn.tally
        }
    }

    #[test]
    fn lost_duplicate_and_swapped_messages_are_each_reported_for_their_publisher() {
        let world = World::new(2);
        for _ in 0..4 {
            world.window.claim(0);
            world.window.claim(1);
        }
        let own = |publisher| publisher as usize;
        let clean: Vec<_> = (0..4).flat_map(|sequence| [(0, sequence), (1, sequence)]).collect();
        assert_eq!(world.verify(&clean, own).verdict(), "ok");
        let world = World::new(2);
        for _ in 0..4 {
            world.window.claim(0);
            world.window.claim(1);
        }
        let faulty = [(0, 0), (1, 0), (0, 2), (0, 1), (1, 1), (1, 1), (1, 3), (0, 3)];
        assert_eq!(world.verify(&faulty, own).verdict(), "1 lost, 1 duplicate, 1 reordered");
    }

    #[test]
    fn a_message_under_the_wrong_topic_or_never_sent_is_foreign() {
        let world = World::new(2);
        world.window.claim(0);
        assert_eq!(world.verify(&[(0, 0)], |_| 1).verdict(), "1 lost, 1 foreign");
        assert_eq!(world.verify(&[(0, 0), (1, 0), (9, 0)], |p| p as usize % 2).verdict(), "2 foreign");
    }

    #[test]
    fn an_acknowledgement_that_nobody_waits_for_is_an_error() {
        let mut plan = plan(Layout::Fan, 1, 1);
        plan.qos = 2;
        let mut publisher = Publisher::new(&plan, 0);
        let mut out = Vec::new();
        assert!(publisher.acknowledged(Ack::Puback, 1, 0, &mut out).unwrap_err().contains("packet id 1"));
        publisher.steps[1] = Step::Pubrec;
        assert!(publisher.acknowledged(Ack::Pubcomp, 1, 0, &mut out).is_err());
        assert_eq!(publisher.acknowledged(Ack::Pubrec, 1, 0, &mut out), Ok(false));
        assert_eq!(out, [0x62, 2, 0, 1]);
        assert_eq!(publisher.acknowledged(Ack::Pubcomp, 1, 0, &mut out), Ok(true));
        assert!(publisher.acknowledged(Ack::Pubrec, 900, 0, &mut out).is_err());
    }
}
