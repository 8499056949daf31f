//! One thread of the load: an epoll set over its clients, and the turn: read all that is ready, publish what the pace
//! allows, write once per client. Always true: a thread that may publish never sleeps past the moment the window opens.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
use std::time::Instant;

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::client::Client;
use super::plan::{Pace, Plan};
use super::roles::{Publisher, Role, Subscriber, Turn};
use super::window::Window;
use crate::ledger::{Shape, Tally};

/// Clients of one thread that wait for CONNACK or SUBACK at a time; below the listen backlog of every broker we know.
const OPENING_MAX: usize = 64;
/// Longest sleep, so that a change of phase is seen.
const SLEEP_MAX: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
/// Completions that one wait returns.
const EVENTS_MAX: usize = 1024;
/// Latencies above a minute are entered as a minute.
pub const LATENCY_NS_MAX: u64 = 60_000_000_000;
const WAKE: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// Where the run is; set by the main thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Clients connect and subscribe.
    Open,
    /// Messages flow.
    Run,
    /// Nothing new is published; what is on its way may arrive.
    Drain,
    /// Threads say goodbye and return.
    Stop,
}

/// What all threads of a run share.
pub struct Shared {
    /// The run.
    pub plan: Plan,
    /// The closed loop.
    pub window: Window,
    /// Start of the measured phase, in nanoseconds since `began`; `u64::MAX` before it.
    pub since_ns: AtomicU64,
    /// Clients that are connected and subscribed.
    pub ready: AtomicUsize,
    /// One per thread.
    pub lanes: Vec<Lane>,
    /// Zero of all times of this run.
    pub began: Instant,
    shape: Shape,
    topics: Vec<String>,
    phase: AtomicU8,
    failed: AtomicBool,
    failure: Mutex<Option<String>>,
}

/// The counters of one thread, on cache lines of its own.
#[repr(align(128))]
pub struct Lane {
    /// Messages that arrived at this thread's subscribers.
    pub delivered: AtomicU64,
    /// Messages of its publishers that wait for an acknowledgement.
    pub unacknowledged: AtomicU64,
    asleep: AtomicBool,
    wake: OwnedFd,
}

/// What a thread returns.
pub struct Harvest {
    /// Latency in nanoseconds.
    pub latency: Histogram<u64>,
    /// What arrived and what did not.
    pub tally: Tally,
}

impl Shared {
    /// State of a run of a checked plan.
    pub fn new(plan: Plan) -> Result<Shared, String> {
        let lane = || -> Result<Lane, Errno> {
            Ok(Lane {
                delivered: AtomicU64::new(0),
                unacknowledged: AtomicU64::new(0),
                asleep: AtomicBool::new(false),
                wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            })
        };
        let lanes = (0..plan.threads).map(|_| lane()).collect::<Result<_, _>>();
        Ok(Shared {
            window: Window::new(&plan),
            since_ns: AtomicU64::new(u64::MAX),
            ready: AtomicUsize::new(0),
            lanes: lanes.map_err(|error| format!("cannot create an eventfd: {error}"))?,
            began: Instant::now(),
            shape: Shape::new(plan.tag, plan.payload_bytes),
            topics: plan.topics(),
            phase: AtomicU8::new(Phase::Open as u8),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            plan,
        })
    }

    /// Moves all threads on.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
        for lane in &self.lanes {
            lane.ring();
        }
    }

    /// The first failure of any thread.
    pub fn failure(&self) -> Option<String> {
        if !self.failed.load(Ordering::Acquire) {
            return None;
        }
        self.failure.lock().ok().and_then(|failure| failure.clone())
    }

    /// Messages that arrived so far.
    pub fn delivered(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.delivered.load(Ordering::Acquire)).sum()
    }

    /// Messages that wait for an acknowledgement.
    pub fn unacknowledged(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.unacknowledged.load(Ordering::Acquire)).sum()
    }

    fn fail(&self, text: String) {
        if let Ok(mut failure) = self.failure.lock() {
            failure.get_or_insert(text);
        }
        self.failed.store(true, Ordering::Release);
    }

    fn is_in(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Acquire) == phase as u8
    }

    fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }
}

impl Lane {
    fn ring(&self) {
        // EAGAIN means that the counter is full: the thread is being woken already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// One thread.
pub struct Worker<'a> {
    shared: &'a Shared,
    lane: usize,
    poll: OwnedFd,
    timer: Option<Timer>,
    waiting: Vec<Role>,
    opening: usize,
    clients: Vec<Client>,
    publishers: Vec<usize>,
    cursor: usize,
    /// Each own publisher waits for an acknowledgement or for room to write, which will wake us.
    all_refused: bool,
    dirty: Vec<usize>,
    buffer: Vec<u8>,
    events: Vec<epoll::Event>,
    turn: Turn<'a>,
}

struct Timer {
    descriptor: OwnedFd,
    interval_ns: f64,
    due_ns: f64,
}

impl<'a> Worker<'a> {
    /// Runs thread `lane` to its end; a failure stops the whole run.
    pub fn run(shared: &'a Shared, lane: usize) -> Option<Harvest> {
        let mut worker = Worker::new(shared, lane).map_err(|error| shared.fail(error)).ok()?;
        if let Err(error) = worker.turns() {
            shared.fail(error);
        }
        // What arrived is reported also after a failure.
        Some(worker.harvest())
    }

    fn new(shared: &'a Shared, lane: usize) -> Result<Worker<'a>, String> {
        let plan = &shared.plan;
        let os = |error: Errno| format!("cannot set up a poll set: {error}");
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(os)?;
        epoll::add(&poll, &shared.lanes[lane].wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)
            .map_err(os)?;
        let own = |count: usize| (lane..count).step_by(plan.threads);
        let publishers = own(plan.publishers).count();
        let timer = match plan.pace {
            Pace::Rate(rate) if publishers > 0 => {
                Some(Timer::new(&poll, f64::from(rate) * publishers as f64 / plan.publishers as f64).map_err(os)?)
            }
            _ => None,
        };
        // Taken from the end: subscribers connect first.
        let mut waiting: Vec<Role> = own(plan.publishers).map(|i| Role::Publisher(Publisher::new(plan, i))).collect();
        waiting.extend(own(plan.subscribers).map(|i| Role::Subscriber(Subscriber::new(plan, i))));
        Ok(Worker {
            shared,
            lane,
            poll,
            timer,
            waiting,
            opening: 0,
            clients: Vec::new(),
            publishers: Vec::new(),
            cursor: 0,
            all_refused: true,
            dirty: Vec::new(),
            buffer: Vec::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            turn: Turn {
                plan,
                window: &shared.window,
                shape: &shared.shape,
                topics: &shared.topics,
                now_ns: 0,
                since_ns: u64::MAX,
                latency: Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)
                    .map_err(|error| format!("latency histogram: {error}"))?,
                tally: Tally::default(),
                unacknowledged: 0,
                opened: false,
            },
        })
    }

    fn turns(&mut self) -> Result<(), String> {
        while !self.shared.is_in(Phase::Stop) && !self.shared.failed.load(Ordering::Acquire) {
            if self.shared.is_in(Phase::Open) {
                self.open()?;
            }
            self.turn.since_ns = self.shared.since_ns.load(Ordering::Acquire);
            self.wait()?;
            self.read()?;
            if self.shared.is_in(Phase::Run) {
                self.publish();
            }
            self.flush()?;
            let lane = &self.shared.lanes[self.lane];
            lane.delivered.store(self.turn.tally.arrived, Ordering::Release);
            lane.unacknowledged.store(self.turn.unacknowledged, Ordering::Release);
            if std::mem::take(&mut self.turn.opened) {
                self.wake_others();
            }
        }
        Ok(())
    }

    fn open(&mut self) -> Result<(), String> {
        while self.opening < OPENING_MAX
            && let Some(role) = self.waiting.pop()
        {
            let client = Client::open(&self.shared.plan, role)?;
            let index = self.clients.len();
            epoll::add(&self.poll, &client.socket, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)
                .map_err(|error| format!("cannot watch a socket: {error}"))?;
            if matches!(client.role, Role::Publisher(_)) {
                self.publishers.push(index);
            }
            self.clients.push(client);
            self.opening += 1;
            self.mark(index);
        }
        self.flush()
    }

    fn wait(&mut self) -> Result<(), String> {
        let lane = &self.shared.lanes[self.lane];
        lane.asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence in `wake_others`: either we see the window open, or the other thread sees us asleep.
        fence(Ordering::SeqCst);
        let may_publish =
            self.timer.is_none() && !self.all_refused && self.shared.is_in(Phase::Run) && self.shared.window.is_open();
        let timeout = if may_publish { Timespec::default() } else { SLEEP_MAX };
        self.events.clear();
        let waited = epoll::wait(&self.poll, spare_capacity(&mut self.events), Some(&timeout));
        lane.asleep.store(false, Ordering::Relaxed);
        match waited {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(format!("epoll_wait failed: {error}")),
        }
    }

    fn wake_others(&self) {
        fence(Ordering::SeqCst);
        for (index, lane) in self.shared.lanes.iter().enumerate() {
            if index != self.lane && lane.asleep.swap(false, Ordering::Relaxed) {
                lane.ring();
            }
        }
    }

    fn read(&mut self) -> Result<(), String> {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event.data.u64() {
                WAKE => drain_counter(&self.shared.lanes[self.lane].wake),
                TIMER => self.timer.iter().for_each(|timer| drain_counter(&timer.descriptor)),
                index => self.ready(index as usize, event.flags)?,
            }
        }
        self.events = events;
        Ok(())
    }

    fn ready(&mut self, index: usize, flags: epoll::EventFlags) -> Result<(), String> {
        let shared = self.shared;
        let client = &mut self.clients[index];
        if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            let was_ready = client.is_ready();
            let received = client.receive(&mut self.buffer, || shared.now_ns(), &mut self.turn);
            received.map_err(|error| format!("{}: {error}", client.title()))?;
            if client.is_ready() && !was_ready {
                self.opening -= 1;
                shared.ready.fetch_add(1, Ordering::AcqRel);
            }
        }
        self.mark(index);
        Ok(())
    }

    fn mark(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.has_output() && !client.is_dirty {
            client.is_dirty = true;
            self.dirty.push(index);
        }
    }

    /// Publishes what the pace allows, one message per publisher in turn.
    fn publish(&mut self) {
        let now_ns = self.shared.now_ns();
        if let Some(timer) = &mut self.timer
            && timer.due_ns == 0.0
        {
            timer.due_ns = now_ns as f64;
        }
        let count = self.publishers.len();
        let mut refused = 0;
        while refused < count {
            let due_ns = match &self.timer {
                // The time at which it was due, not at which we came to it: a broker (or load) that stalls must show.
                Some(timer) if timer.due_ns as u64 <= now_ns => timer.due_ns as u64,
                Some(_) => break,
                None => now_ns,
            };
            let index = self.publishers[self.cursor];
            self.cursor = (self.cursor + 1) % count;
            if self.clients[index].publish(&mut self.turn, due_ns) {
                refused = 0;
                self.mark(index);
                if let Some(timer) = &mut self.timer {
                    timer.due_ns += timer.interval_ns;
                }
            } else if self.timer.is_none() && !self.shared.window.is_open() {
                break;
            } else {
                refused += 1;
            }
        }
        self.all_refused = refused == count;
        if let Some(timer) = &self.timer {
            timer.arm(now_ns);
        }
    }

    fn flush(&mut self) -> Result<(), String> {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            let client = &mut self.clients[index];
            client.is_dirty = false;
            let done = client.flush().map_err(|error| format!("{}: {error}", client.title()))?;
            if done == client.waits_to_write {
                client.waits_to_write = !done;
                let writable = if done { epoll::EventFlags::empty() } else { epoll::EventFlags::OUT };
                let data = epoll::EventData::new_u64(index as u64);
                epoll::modify(&self.poll, &client.socket, data, epoll::EventFlags::IN | writable)
                    .map_err(|error| format!("cannot watch a socket: {error}"))?;
            }
        }
        self.dirty = dirty;
        Ok(())
    }

    fn harvest(mut self) -> Harvest {
        let mut tally = self.turn.tally;
        for client in &mut self.clients {
            client.close();
            if let Role::Subscriber(subscriber) = &client.role {
                tally.lost += subscriber.lost(&self.shared.plan, &self.shared.window);
            }
        }
        Harvest { latency: self.turn.latency, tally }
    }
}

impl Timer {
    fn new(poll: &OwnedFd, per_second: f64) -> Result<Timer, Errno> {
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        epoll::add(poll, &descriptor, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
        Ok(Timer { descriptor, interval_ns: 1e9 / per_second, due_ns: 0.0 })
    }

    /// Wakes the thread when the next message is due; nothing to do if it is overdue and only waits for room.
    fn arm(&self, now_ns: u64) {
        let wait_ns = (self.due_ns as u64).saturating_sub(now_ns);
        if wait_ns == 0 {
            return;
        }
        let value = Timespec { tv_sec: (wait_ns / 1_000_000_000) as i64, tv_nsec: (wait_ns % 1_000_000_000) as i64 };
        let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
        // Fails only for a bad descriptor or time; the bounded sleep would still make progress.
        let _ = timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &once);
    }
}

fn drain_counter(descriptor: &OwnedFd) {
    let mut count = [0; 8];
    // EAGAIN means that somebody else was faster, which cannot hurt.
    let _ = rustix::io::read(descriptor, &mut count);
}
