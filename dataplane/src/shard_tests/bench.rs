//! Starts shards with brains of the tests, and stops them.

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use contract::config::ListenerKind;

use crate::{
    addresses::Addresses,
    connections::Connections,
    dial::{Dials, Resolver},
    events::Log,
    executor::{self, Ended},
    listener::{self, Bind, Seats, Wanted},
    log_dir::LogDir,
    log_thread, mailbox,
    port::{Gauge, Note, Port},
    shard::{Brain, Clock, Parts, REPORT_US, Shard},
    stage::Recipe,
};

/// Everything in these tests happens within this time, or not at all.
pub(super) const BOUND: Duration = Duration::from_secs(60);

/// Running shards.
pub(super) struct Bench {
    pub(super) address: SocketAddr,
    pub(super) ports: Arc<[Arc<Port>]>,
    ended: mpsc::Receiver<Ended>,
}

/// How shards are started.
pub(super) struct Plan {
    pub(super) shards: u16,
    pub(super) max_connections: usize,
    pub(super) slots: usize,
    pub(super) report_every_us: u64,
    pub(super) recipe: Recipe,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan { shards: 2, max_connections: 10_000, slots: 64, report_every_us: REPORT_US, recipe: Recipe::default() }
    }
}

impl Bench {
    /// Starts the log thread of every shard, in directories of `logs`.
    pub(super) fn start_logs(&self, logs: &LogDir, settings: impl Fn(u16) -> log::Settings) {
        let layout = logs.create(self.ports.len() as u16).expect("the layout is created");
        for (shard, port) in (0..).zip(self.ports.iter()) {
            let parts = log_thread::Parts {
                shard,
                settings: settings(shard),
                tail: log::Tail::fresh(),
                port: port.clone(),
                clock: Clock::start(),
                events: Log::start().expect("a thread").0.of_shard(shard),
                alive: mpsc::channel().0,
            };
            log_thread::start(parts, logs.shard(layout, shard), || {}).expect("a thread");
        }
    }

    pub(super) fn start<B: Brain + Send + 'static>(plan: &Plan, brain: impl Fn(u16) -> B) -> Bench {
        let bind = SocketAddr::from(([127, 0, 0, 1], 0));
        let max_connections = plan.max_connections as u32;
        let config = contract::config::Config::default();
        let listener = contract::config::Listener { max_connections, ..config.listeners[0].clone() };
        let addresses = Addresses::new(&config.limits);
        let wanted = Wanted {
            number: 0,
            kind: ListenerKind::Tcp,
            name: "default".to_owned(),
            bind: Bind::Inet(bind),
            ours: false,
            seats: Seats::new(&listener),
            recipe: plan.recipe.clone(),
        };
        let (listeners, opened) = listener::open(&[wanted], plan.shards).expect("a free port");
        let ports: Arc<[Arc<Port>]> = (0..plan.shards).map(|_| Arc::new(Port::new().expect("an eventfd"))).collect();
        let (log, _) = Log::start().expect("a thread");
        let resolver = Resolver::start().expect("a thread");
        let (ends, ended) = mpsc::channel();
        let clock = Clock::start();
        let posts = mailbox::posts(plan.shards, plan.slots);
        for (me, (listeners, post)) in (0..plan.shards).zip(listeners.into_iter().zip(posts)) {
            let dials = Dials::new(resolver.clone(), ports[usize::from(me)].clone());
            let (events, addresses) = (log.of_shard(me), addresses.clone());
            let connections = Connections::new(plan.max_connections, 1 << 20, dials, events, addresses);
            let report_every_us = plan.report_every_us;
            let (ports, tell_standing) = (ports.clone(), Box::new(|_| {}));
            let parts = Parts { me, connections, listeners, post, clock, ports, report_every_us, tell_standing };
            let brain = brain(me);
            let ends = ends.clone();
            // The bench may be gone when a test has failed.
            let tell = move |ended| drop(ends.send(ended));
            executor::start(me, None, tell, move || Shard::new(brain, parts)).expect("a thread");
        }
        ports.iter().for_each(|port| assert!(port.post(Note::Accept).is_ok()));
        let Bind::Inet(address) = opened[0].address else { panic!("it listens on an address") };
        Bench { address, ports, ended }
    }

    /// Waits until the shards hold `connections` connections.
    pub(super) fn wait_for_connections(&self, connections: u64) {
        let end = Instant::now() + BOUND;
        loop {
            let held: u64 = self.ports.iter().map(|port| port.board.gauge(Gauge::Connections)).sum();
            if held == connections {
                return;
            }
            assert!(Instant::now() < end, "{held} connections are held; {connections} expected");
            std::thread::yield_now();
        }
    }

    /// Drains all shards and checks that each ends well.
    pub(super) fn stop(self) {
        for port in self.ports.iter() {
            assert!(port.post(Note::Drain).is_ok());
        }
        for _ in 0..self.ports.len() {
            let ended = self.ended.recv_timeout(BOUND).expect("the shard ends");
            assert_eq!(ended.result, Ok(()), "shard {}", ended.shard);
        }
    }
}
