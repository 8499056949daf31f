//! One shard: its turn, and its sleep. A shard is the main task of one glommio executor, which gives it a thread, a
//! core and local tasks; everything that a shard waits for comes through its own ring.
//!
//! **The invariant that keeps a shard awake.** glommio may park an executor although a task is runnable, if
//! something completes on its own rings at the wrong moment. Here that window cannot open: the main task
//! is always runnable (it never awaits anything but `yield_now`), so the executor never parks; nothing on
//! a shard uses glommio's sockets, timers, files, channels or other task queues, the preempt timer is set to
//! hours, and nobody wakes a local task from another thread, so its rings stay empty. A shard sleeps in
//! [`Ring::enter`] only, after it has announced its sleep and found its mailboxes empty ([`crate::sleep`]);
//! what must wake it is a completion of that ring: a socket, a wake by another shard, the alarm of an
//! ordinary thread, or the deadline.
//!
//! **A turn**: what the last turn left to tell -> completions -> deadlines -> notes -> how the log is -> the broker's
//! turn (mail included) -> what it recorded to the log thread -> settle connections -> wake other shards. Submitting
//! all of it and sleeping is one system call.
//!
//! **A start**: a shard takes turns from the beginning, because shards need each other to take over what the logs held
//! ([`Standing`]); it accepts connections when it is told to ([`Note::Accept`]).

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use broker::{
    counters::Counter,
    journal::{Dealt, JournalBatch, Standing},
    surface::{ConnId, DialId, Input, Mailboxes, Output, Turned},
};
use contract::time::Now;

use crate::{
    connections::{Connections, Due, Pending},
    inbound,
    listener::Listener,
    listeners::Change,
    log_port::Handover,
    mailbox::Post,
    outbound,
    port::{Board, Gauge, Note, Port},
    ring::{Completion, Op, Patience, Ring, owned},
};

/// How often a shard writes its numbers for control.
pub(crate) const REPORT_US: u64 = 200_000;
/// How long a shard goes on for clients that do not take their farewell.
const DRAIN_US: u64 = 3_000_000;
/// How often a drained shard looks whether the others are done, too.
const DRAIN_STEP_US: u64 = 10_000;

/// What a shard thinks with: the broker, or an echo in the tests of the shell.
pub(crate) trait Brain {
    /// See [`broker::Shard::input`].
    fn input(&mut self, now: Now, input: Input<'_>, out: &mut impl Output);
    /// See [`broker::Shard::turn`].
    fn turn(&mut self, now: Now, mail: &mut impl Mailboxes, out: &mut impl Output) -> Turned;
    /// See [`broker::Shard::output`].
    fn output(&mut self, conn: ConnId) -> Option<&mut Vec<u8>>;
    /// See [`broker::Shard::count`].
    fn count(&mut self, _: Counter, _: u64) {}
    /// Writes its numbers.
    fn report(&mut self, board: &Board);

    /// See [`broker::Shard::restore`].
    fn restore(&mut self, _: Now, _: Dealt, _: &mut impl Output) {}
    /// See [`broker::Shard::standing`].
    fn standing(&self) -> Standing {
        Standing::Ready
    }
    /// See [`broker::Shard::journal`].
    fn journal(&mut self) -> Option<JournalBatch> {
        None
    }
    /// See [`broker::Shard::journal_spent`].
    fn journal_spent(&mut self, _: Vec<u8>) {}
}

/// Told when a shard has come further in its start.
pub(crate) type TellStanding = Box<dyn FnMut(Standing) + Send>;

/// The clock of all shards of a process: monotonic time counts from one moment for all of them.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    /// Read once per turn.
    pub(crate) fn now(self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { mono_us: self.mono_us(), wall_ms: wall.as_millis() as u64 }
    }

    /// Monotonic time alone.
    fn mono_us(self) -> u64 {
        // One second ahead of zero, so that no deadline or stamp is ever mistaken for "never".
        1_000_000 + self.start.elapsed().as_micros() as u64
    }
}

/// One shard.
pub(crate) struct Shard<B> {
    brain: B,
    ring: Ring,
    connections: Connections,
    listeners: Vec<Listener>,
    post: Post,
    clock: Clock,
    /// Of all shards, this one included.
    ports: Arc<[Arc<Port>]>,
    me: usize,
    completions: Vec<Completion>,
    /// Receives of connections that had their share of the last turn, in order.
    deferred: Vec<Completion>,
    alarmed: bool,
    turned: Turned,
    handover: Handover,
    /// What was told last.
    standing: Option<Standing>,
    tell_standing: TellStanding,
    report_every_us: u64,
    reported_us: u64,
    /// Time spent awake, and when it woke last.
    busy_us: u64,
    woke_us: u64,
    drain_until_us: Option<u64>,
}

/// What a shard is made of, besides its brain.
pub(crate) struct Parts {
    pub(crate) me: u16,
    pub(crate) connections: Connections,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) post: Post,
    pub(crate) clock: Clock,
    pub(crate) ports: Arc<[Arc<Port>]>,
    /// [`REPORT_US`], or longer in tests that must not be woken by it.
    pub(crate) report_every_us: u64,
    pub(crate) tell_standing: TellStanding,
}

impl<B: Brain> Shard<B> {
    /// Sets up the ring. Called on the shard's own thread.
    pub(crate) fn new(brain: B, parts: Parts) -> io::Result<Shard<B>> {
        let Parts { me, mut connections, listeners, post, clock, ports, report_every_us, tell_standing } = parts;
        let mut ring = Ring::new()?;
        let me = usize::from(me);
        ring.listen_to_alarm(ports[me].alarm());
        ports[me].open(ring.descriptor());
        for listener in &listeners {
            connections.events().name_listener(listener.number, &listener.name);
        }
        Ok(Shard {
            brain,
            ring,
            connections,
            listeners,
            post,
            clock,
            ports,
            me,
            completions: Vec::new(),
            deferred: Vec::new(),
            // Notes may have been left before the ring was there.
            alarmed: true,
            turned: Turned { busy: true, deadline_us: u64::MAX },
            handover: Handover::default(),
            standing: None,
            tell_standing,
            report_every_us,
            reported_us: 0,
            busy_us: 0,
            woke_us: clock.now().mono_us,
            drain_until_us: None,
        })
    }

    /// Takes over what the logs held, before the first turn.
    pub(crate) fn restore(&mut self, dealt: Dealt) {
        let now = self.clock.now();
        self.connections.begin(now.mono_us);
        self.brain.restore(now, dealt, &mut self.connections);
    }

    /// Turn after turn until a drain is complete or the ring fails.
    pub(crate) async fn serve(mut self) -> io::Result<()> {
        while self.sleep_and_turn()? {
            glommio::executor().yield_now().await;
        }
        Ok(())
    }

    /// One round; `false` when the shard has nothing left to do.
    fn sleep_and_turn(&mut self) -> io::Result<bool> {
        let patience = self.patience();
        // A shard with work left does not sleep, and need not look at the clock once more.
        let sleeps = patience != Patience::None;
        if sleeps {
            self.busy_us += self.clock.mono_us() - self.woke_us;
        }
        self.ring.enter(patience)?;
        self.ports[self.me].sleep.retract();

        let now = self.clock.now();
        if sleeps {
            self.woke_us = now.mono_us;
        }
        self.connections.begin(now.mono_us);
        self.tell_pending(now);
        // Before the first completions, too: what was noted before the start counts for the first connection.
        self.read_notes(now);
        self.complete(now);
        self.expire(now);
        self.read_notes(now);
        self.read_log(now);
        self.turned = self.brain.turn(now, &mut self.post, &mut self.connections);
        self.hand_over();
        outbound::settle(&mut self.connections, &mut self.ring, &mut self.brain);
        let (ports, ring) = (&self.ports, &mut self.ring);
        self.post.roused(|to| wake(ring, ports, to));
        self.report(now);
        Ok(!self.drained(now))
    }

    /// How long to sleep before the next turn. Announces the sleep to the other shards.
    fn patience(&mut self) -> Patience {
        let waiting = !self.deferred.is_empty() || !self.connections.pending.is_empty();
        if self.turned.busy || self.alarmed || waiting {
            return Patience::None;
        }
        let port = &self.ports[self.me];
        port.sleep.announce();
        if self.post.mail() || port.log.calls(&self.handover) {
            port.sleep.retract();
            return Patience::None;
        }
        let now_us = self.connections.now_us();
        let mut deadline_us = self.turned.deadline_us.min(self.connections.next_due_us());
        if self.reported_us < now_us {
            deadline_us = deadline_us.min(self.reported_us.saturating_add(self.report_every_us));
        }
        if self.drain_until_us.is_some() {
            deadline_us = deadline_us.min(now_us + DRAIN_STEP_US);
        }
        match deadline_us {
            u64::MAX => Patience::Forever,
            _ => Patience::For(Duration::from_micros(deadline_us.saturating_sub(now_us))),
        }
    }

    /// What settling the last turn has brought about.
    fn tell_pending(&mut self, now: Now) {
        while let Some(pending) = self.connections.pending.pop_front() {
            let out = &mut self.connections;
            match pending {
                Pending::Closed { conn, cause } => self.brain.input(now, Input::Closed { conn, cause }, out),
                Pending::Detached { transport, to, parked } => {
                    self.brain.input(now, Input::Detached { transport, to, parked }, out);
                }
                Pending::Dialed { dial, conn } => self.brain.input(now, Input::Dialed { dial, conn }, out),
                Pending::DialFailed { dial, reason } => {
                    self.brain.input(now, Input::DialFailed { dial, reason: &reason }, out);
                }
                Pending::Said((topic, text)) => {
                    self.brain.input(now, Input::System { topic: &topic, text: &text, lasting: false }, out);
                }
            }
        }
        match self.connections.events_shed() {
            0 => {}
            shed => self.brain.count(Counter::shed_system_event, shed),
        }
    }

    fn complete(&mut self, now: Now) {
        let mut completions = std::mem::take(&mut self.completions);
        completions.append(&mut self.deferred);
        self.ring.completions(&mut completions);
        let Shard { connections, ring, brain, listeners, .. } = self;
        for completion in completions.drain(..) {
            match completion.token.op {
                Op::Receive => {
                    if !inbound::received(connections, ring, brain, now, completion) {
                        self.deferred.push(completion);
                    }
                }
                Op::Send => outbound::sent(connections, brain, completion),
                Op::Accept => {
                    let number = completion.token.index;
                    match listeners.iter_mut().find(|known| u32::from(known.number) == number) {
                        Some(listener) => inbound::accepted(connections, ring, brain, now, listener, completion),
                        // Its listener was closed meanwhile.
                        None if completion.result >= 0 => drop(owned(completion.result)),
                        None => {}
                    }
                }
                Op::Connect => connections.connected(completion),
                Op::Alarm => {
                    self.alarmed = true;
                    ring.listen_to_alarm(self.ports[self.me].alarm());
                }
                // The mail is looked at in every turn.
                Op::Woken => {}
                Op::WakeFailed => {
                    if let Some(port) = self.ports.get(completion.token.index as usize) {
                        port.wake();
                    }
                }
                Op::Unwatched => {}
            }
        }
        self.completions = completions;
    }

    /// Deadlines of the shell; those of the broker are its own.
    fn expire(&mut self, now: Now) {
        while let Some(due) = self.connections.overdue() {
            match due {
                Due::Connection(conn) => self.connections.impatient(conn, &mut self.ring, &mut self.brain),
                Due::Resolve(dial) => self.connections.resolve_overdue(DialId(dial)),
                Due::Listener(number) => {
                    let Shard { connections, ring, brain, listeners, .. } = self;
                    if let Some(listener) = listeners.iter_mut().find(|known| known.number == number) {
                        inbound::let_in(connections, brain, now, listener);
                        listener.arm(ring);
                    }
                }
                Due::Sweep => self.connections.sweep(&mut self.brain),
                Due::Watch => {
                    if self.connections.look_at_traces(now) {
                        self.brain.input(now, Input::Watch, &mut self.connections);
                    }
                }
            }
        }
        debug_assert!(self.connections.next_due_us() > now.mono_us, "no deadline is left behind");
    }

    fn read_notes(&mut self, now: Now) {
        if !std::mem::take(&mut self.alarmed) {
            return;
        }
        while let Some(note) = self.ports[self.me].note() {
            match note {
                Note::View(view) => {
                    self.brain.input(now, Input::View(&view), &mut self.connections);
                    if view.watched().is_some_and(|watched| self.connections.watched(watched, now)) {
                        self.brain.input(now, Input::Watch, &mut self.connections);
                    }
                }
                Note::Policy(policy) => self.brain.input(now, Input::Policy(&policy), &mut self.connections),
                Note::Memory { scarce } => self.brain.input(now, Input::Memory { scarce }, &mut self.connections),
                Note::Authenticated { conn, policy, verdict } => {
                    self.brain.input(now, Input::Authenticated { conn, policy, verdict }, &mut self.connections);
                }
                Note::Exchanged { conn, policy, judged } => {
                    self.brain.input(now, Input::Exchanged { conn, policy, judged }, &mut self.connections);
                }
                // The sender goes with the note: whoever waits knows that it was read.
                Note::Terms(terms, _read) => self.brain.input(now, Input::Listeners(&terms), &mut self.connections),
                Note::Listeners(change) => self.change(*change),
                Note::Bans(bans) => self.brain.input(now, Input::Bans(&bans), &mut self.connections),
                Note::Permitted { conn, number, policy, heard } => {
                    self.connections.answered(conn);
                    self.brain.input(now, Input::Permitted { conn, number, policy, heard }, &mut self.connections);
                    self.connections.end_answered(conn);
                }
                Note::System(news) => {
                    for (topic, text) in &news[..] {
                        self.brain.input(now, Input::System { topic, text, lasting: true }, &mut self.connections);
                    }
                }
                Note::Resolved { dial, addresses } => self.connections.resolved(dial, addresses),
                Note::Replay => self.brain.input(now, Input::Replay, &mut self.connections),
                Note::Accept => self.listeners.iter_mut().for_each(|listener| listener.arm(&mut self.ring)),
                Note::Drain if self.drain_until_us.is_none() => {
                    self.drain_until_us = Some(now.mono_us + DRAIN_US);
                    for listener in &mut self.listeners {
                        listener.close(&mut self.ring);
                    }
                    self.connections.end_unknown(None);
                    self.brain.input(now, Input::Drain, &mut self.connections);
                }
                Note::Drain => {}
            }
        }
    }

    /// Listeners have come, changed or gone.
    fn change(&mut self, change: Change) {
        let Change { opened, changed, closed } = change;
        for (number, recipe) in changed {
            if let Some(listener) = self.listeners.iter_mut().find(|known| known.number == number) {
                listener.recipe = recipe;
            }
        }
        for number in closed {
            self.connections.end_unknown(Some(number));
            for mut listener in self.listeners.extract_if(.., |known| known.number == number) {
                listener.close(&mut self.ring);
            }
        }
        for mut listener in opened {
            self.connections.events().name_listener(listener.number, &listener.name);
            // A node that stops accepts nobody.
            if self.drain_until_us.is_none() {
                listener.arm(&mut self.ring);
                self.listeners.push(listener);
            }
        }
    }

    /// How far the log has come.
    fn read_log(&mut self, now: Now) {
        if let Some(status) = self.ports[self.me].log.status() {
            self.brain.input(now, Input::Logged(status), &mut self.connections);
        }
    }

    /// What the turn has recorded goes to the log before anything that depends on it leaves.
    fn hand_over(&mut self) {
        let port = &self.ports[self.me].log;
        let batch = self.brain.journal();
        if batch.is_some()
            && let Some(spent) = port.spent()
        {
            self.brain.journal_spent(spent);
        }
        self.handover.offer(port, batch);
        if self.standing != Some(Standing::Ready) {
            let standing = self.brain.standing();
            if self.standing.replace(standing) != Some(standing) {
                (self.tell_standing)(standing);
            }
        }
    }

    /// Writes the numbers for control, a few times per second while something happens.
    fn report(&mut self, now: Now) {
        if now.mono_us - self.reported_us < self.report_every_us {
            return;
        }
        self.reported_us = now.mono_us;
        let board = &self.ports[self.me].board;
        self.brain.report(board);
        board.set(Gauge::Connections, self.connections.len() as u64);
        board.set(Gauge::BusyUs, self.busy_us + (now.mono_us - self.woke_us));
    }

    /// Whether a drain is complete: on this shard and all others, whose last mail still counts, or out of time.
    fn drained(&mut self, now: Now) -> bool {
        let Some(until_us) = self.drain_until_us else { return false };
        let idle = self.connections.len() == 0 && !self.turned.busy && !self.post.mail() && self.handover.is_empty();
        self.ports[self.me].drained.store(idle, Ordering::Release);
        now.mono_us >= until_us || self.ports.iter().all(|port| port.drained.load(Ordering::Acquire))
    }
}

/// Wakes a shard that was offered mail, if it sleeps and nobody else is about to.
fn wake(ring: &mut Ring, ports: &[Arc<Port>], to: u16) {
    let Some(port) = ports.get(usize::from(to)) else { return };
    if !port.sleep.rouse() {
        return;
    }
    match port.ring() {
        Some(descriptor) => ring.wake(descriptor, u32::from(to)),
        None => port.wake(),
    }
}
