//! Hundreds of clients with persistent sessions on one thread, driven turn by turn beside a node that is
//! killed. Used by the tests that need a crowd.
//!
//! Always true: clients speak only inside [`Fleet::turn`], so "before" and "after" are turns, and what the
//! judge demands was promised in an earlier turn than the one it is compared with.

pub mod client;
mod judge;
pub mod record;

use client::{Client, Publisher, Role, Subscriber};
use harness::wire::{V5, V311};
use harness::{Rng, within};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::net::SocketAddr;
use std::time::Duration;

/// Topics that messages go to.
const TOPICS: u64 = 20;
/// Retained topics of each publisher.
const RETAINED_SLOTS: u64 = 6;
/// Longest wait of one turn when nothing happens.
const TURN: Duration = Duration::from_millis(2);

/// Turns without a message after which the judge looks again whether anything is missing.
const IDLE_TURNS: u64 = 50;

/// How a subscriber spends its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// Connected whenever it can be.
    Stays,
    /// Comes for short visits.
    Visits,
    /// Comes and goes all the time.
    Flaps,
}

/// A crowd of clients.
pub struct Fleet {
    /// Where the broker is.
    broker: SocketAddr,
    /// Subscribers first, then publishers.
    clients: Vec<Client>,
    habits: Vec<Habit>,
    /// Clients before this one have begun to come; those behind it join later.
    joined: usize,
    subscribers: usize,
    turn: u64,
    rng: Rng,
}

impl Fleet {
    /// `subscribers` and `publishers` that know the broker's address; a tenth of the subscribers joins later.
    pub fn new(broker: SocketAddr, subscribers: usize, publishers: usize, mut rng: Rng) -> Self {
        let version = |index: usize| if index.is_multiple_of(2) { V5 } else { V311 };
        let mut clients = Vec::new();
        let mut habits = Vec::new();
        for index in 0..subscribers {
            // A few hear everything; their queues are the longest.
            let filter = if index % 50 == 7 { "t/#".to_owned() } else { format!("t/{}", rng.below(TOPICS)) };
            let qos = if index % 3 == 0 { 1 } else { 2 };
            let subscriber = Subscriber::new(filter, qos, rng.percent(20));
            clients.push(Client::new(format!("sub-{index}"), version(index / 2), Role::Subscriber(subscriber)));
            habits.push([Habit::Stays, Habit::Stays, Habit::Visits, Habit::Flaps][rng.below(4) as usize]);
        }
        for index in 0..publishers {
            let publisher = Publisher::new(index as u16, 1 + index as u8 % 2);
            clients.push(Client::new(format!("pub-{index}"), version(index / 2), Role::Publisher(publisher)));
            habits.push(Habit::Stays);
        }
        Self { broker, clients, habits, joined: subscribers - subscribers / 10, subscribers, turn: 0, rng }
    }

    /// Connects everybody who is there from the beginning and waits for their subscriptions.
    #[track_caller]
    pub fn gather(&mut self, bound: Duration) {
        within(bound, "everybody has subscribed", || {
            self.connect_all();
            self.turn();
            self.clients[..self.joined]
                .iter()
                .all(|client| client.subscriber().is_some_and(|subscriber| subscriber.granted_at.is_some()))
                .then_some(())
        });
    }

    /// Lets one more subscriber come that was never there.
    pub fn join_one(&mut self) {
        self.joined = (self.joined + 1).min(self.subscribers);
    }

    /// One turn of life: some come, some go, and `publishes` publishers are asked to say something.
    pub fn live(&mut self, publishes: u64) {
        for index in 0..self.joined {
            let (come, go) = match self.habits[index] {
                Habit::Stays => (100, 0),
                Habit::Visits => (1, 6),
                Habit::Flaps => (10, 4),
            };
            // A subscription is part of the first visit.
            let is_new = self.clients[index].subscriber().is_some_and(|subscriber| subscriber.granted_at.is_none());
            if !self.clients[index].is_connected() {
                if is_new || self.rng.percent(come) {
                    self.clients[index].connect(self.broker);
                }
            } else if !is_new && self.rng.percent(go) {
                let politely = self.rng.percent(50);
                self.clients[index].leave(politely);
            }
        }
        for index in self.subscribers..self.clients.len() {
            if !self.clients[index].is_connected() {
                self.clients[index].connect(self.broker);
            }
        }
        for _ in 0..publishes {
            self.say_something();
        }
        self.turn();
    }

    fn say_something(&mut self) {
        let rng = &mut self.rng;
        let publishers = (self.clients.len() - self.subscribers) as u64;
        let publisher = rng.below(publishers);
        // Now and then a message that does not fit in a small segment with its like.
        let filler = if rng.percent(2) { rng.between(2_000, 20_000) } else { rng.below(300) } as usize;
        let (topic, retain) = if rng.percent(15) {
            let topic = format!("keep/{publisher}/{}", rng.below(RETAINED_SLOTS));
            (topic, Some(rng.percent(75)))
        } else {
            (format!("t/{}", rng.below(TOPICS)), None)
        };
        let turn = self.turn;
        self.clients[self.subscribers + publisher as usize].publish(turn, &topic, filler, retain);
    }

    /// Everybody who is not connected and should ever be connects.
    fn connect_all(&mut self) {
        let (joined, subscribers, broker) = (self.joined, self.subscribers, self.broker);
        for (index, client) in self.clients.iter_mut().enumerate() {
            if (index < joined || index >= subscribers) && !client.is_connected() {
                client.connect(broker);
            }
        }
    }

    /// Everybody reads, thinks and writes once.
    pub fn turn(&mut self) {
        self.turn += 1;
        let mut sockets = Vec::new();
        let mut owners = Vec::new();
        for (index, client) in self.clients.iter().enumerate() {
            if let Some((stream, wants_to_write)) = client.socket() {
                let out = if wants_to_write { PollFlags::OUT } else { PollFlags::empty() };
                sockets.push(PollFd::new(stream, PollFlags::IN | out));
                owners.push(index);
            }
        }
        let wait = Timespec { tv_sec: 0, tv_nsec: TURN.subsec_nanos().into() };
        // An interrupted wait is a short turn.
        let _ = poll(&mut sockets, Some(&wait));
        let readable: Vec<usize> = sockets
            .iter()
            .zip(owners)
            .filter(|(socket, _)| socket.revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR))
            .map(|(_, owner)| owner)
            .collect();
        for index in readable {
            self.clients[index].receive(self.turn);
        }
        for client in &mut self.clients {
            client.send(&mut self.rng);
        }
    }

    /// Says something on every topic, so that what comes back to a subscriber comes before that.
    #[track_caller]
    pub fn say_everywhere(&mut self, bound: Duration) {
        for publisher in self.subscribers..self.clients.len() {
            for topic in 0..TOPICS {
                within(bound, "a publisher may speak", || {
                    self.connect_all();
                    let turn = self.turn;
                    let said = self.clients[publisher].publish(turn, &format!("t/{topic}"), 0, None);
                    self.turn();
                    said.then_some(())
                });
            }
        }
    }

    /// Everybody comes, publishers finish what they began, and everything that was promised arrives. What is
    /// missing after `bound` is for the judge to name, and so is what a client complains of.
    pub fn settle(&mut self, bound: Duration) {
        self.joined = self.subscribers;
        self.clients.iter_mut().for_each(Client::hurry);
        let (mut heard, mut idle) = (0, 0);
        let _ = harness::bound::within_or(bound, || {
            self.connect_all();
            self.turn();
            if self.clients.iter().any(|client| !client.complaints.is_empty()) {
                return Some(());
            }
            let now = self.totals().1;
            idle = if now == heard { idle + 1 } else { 0 };
            heard = now;
            // The look at everything is dear: only when nothing comes any more.
            let quiet = idle % IDLE_TURNS == 1 && self.clients.iter().all(Client::is_quiet);
            (quiet && self.missing() == 0).then_some(())
        });
    }

    /// Messages said and deliveries heard, for a line to the operator of the test.
    pub fn totals(&self) -> (usize, usize) {
        let said = self.clients.iter().filter_map(Client::publisher).map(|publisher| publisher.said.len()).sum();
        let heard = self.clients.iter().filter_map(Client::subscriber).map(|subscriber| subscriber.heard.len()).sum();
        (said, heard)
    }
}
