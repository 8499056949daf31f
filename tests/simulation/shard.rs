//! One shard: the broker's brain and a shell in memory. A turn has a start and an end; inputs and mail up
//! to some moment between both belong to it, and what it causes happens at its end.
//! Called by the world only. Always true: what the surface promises of a shell holds here.

use broker::{
    Shard,
    counters::Counters,
    event::Event as Said,
    journal::Dealt,
    surface::{Cause, ConnId, DialId, Input, Output, Parked, Transport, Turned},
};
use contract::{ids::ShardId, time::Now};

use crate::{
    disk::LogSim,
    mailbox::Grid,
    net::Place,
    world::{Env, Event},
};

/// What happened on a shard's ring since its last turn.
#[derive(Clone, Copy, Debug)]
pub enum Io {
    /// A transport was accepted.
    Accept(usize),
    /// Bytes or the end of a transport can be read.
    Readable(usize),
    /// A send is complete.
    SendDone(usize),
    /// No operation of a connection on the move is in flight any more.
    Detach(ConnId),
    /// A connection that we closed is gone.
    Gone(ConnId),
    /// A dial ended, with a connection or without.
    Dialed(DialId, Option<usize>),
    /// The log has come further.
    Logged,
    /// All shards of the node are restored.
    Replay,
}

/// A place in the shell's table.
#[derive(Default)]
struct Slot {
    generation: u32,
    pipe: Option<usize>,
    /// `flush` was called and the output was not taken.
    dirty: bool,
    closing: bool,
    ended: bool,
    moving: Option<(ShardId, Parked)>,
}

/// One shard of one cluster.
pub struct ShardSim {
    /// The brain.
    pub brain: Shard,
    /// Its log, if it has one.
    pub log: Option<LogSim>,
    /// It exists in this life of its node.
    pub alive: bool,
    /// When its monotonic clock was 0.
    pub clock_us: u64,
    /// Index in the world, in its cluster, and the cluster.
    pub at: (usize, u16, usize),
    slots: Vec<Slot>,
    free: Vec<u32>,
    inputs: Vec<(u64, Io)>,
    /// Start of the turn that runs or is planned; the number tells a planned start from a stale one.
    pub planned: Option<(u64, u64)>,
    /// A turn runs.
    pub running: bool,
    /// Turns so far.
    pub turns: u64,
    /// Since when its log does not take everything: the number in the oracle.
    refusal: Option<usize>,
    /// What it had refused before, by its counters.
    refused: u64,
}

impl ShardSim {
    /// A shard without connections.
    pub fn new(brain: Shard, at: (usize, u16, usize)) -> ShardSim {
        let (slots, free, inputs) = (Vec::new(), Vec::new(), Vec::new());
        ShardSim {
            brain,
            log: None,
            alive: false,
            clock_us: 0,
            at,
            slots,
            free,
            inputs,
            planned: None,
            running: false,
            turns: 0,
            refusal: None,
            refused: 0,
        }
    }

    fn now(&self, env: &Env) -> Now {
        Now { mono_us: env.now_us - self.clock_us, wall_ms: env.now_us / 1000 }
    }

    /// Takes over what the logs held.
    pub fn restore(&mut self, dealt: Dealt, env: &mut Env) {
        let now = self.now(env);
        let mut touched = Vec::new();
        let mut shell = Shell::new(&mut self.slots, &mut self.free, &mut touched, env, self.at.0);
        self.brain.restore(now, dealt, &mut shell);
    }

    /// Something happened on its ring.
    pub fn io(&mut self, now_us: u64, io: Io) {
        self.inputs.push((now_us, io));
    }

    /// Inputs wait for the next turn.
    pub fn has_input(&self) -> bool {
        !self.inputs.is_empty()
    }

    /// Runs the turn that began at `start_us` and ends now. Returns who was sent mail, and when to turn again.
    pub fn turn(&mut self, start_us: u64, grid: &mut Grid, env: &mut Env) -> (Vec<usize>, Turned) {
        self.turns += 1;
        // The clock of the end: bytes that arrived during the turn may belong to it.
        let now = self.now(env);
        let mut touched = Vec::new();
        let (mut inputs, late) = core::mem::take(&mut self.inputs).into_iter().partition(|(at, _)| *at <= start_us);
        self.inputs = late;
        self.take_inputs(now, &mut inputs, &mut touched, env);
        let mut rng = env.rng.clone();
        env.rng.next();
        let mut mail = grid.view(usize::from(self.at.1), (start_us, env.now_us), &mut rng, env.tracing);
        let mut shell = Shell::new(&mut self.slots, &mut self.free, &mut touched, env, self.at.0);
        let mut turned = self.brain.turn(now, &mut mail, &mut shell);
        turned.deadline_us = turned.deadline_us.saturating_add(self.clock_us);
        let offered = mail.offered;
        self.note_refusals(start_us, env);
        // Before output leaves, as in the shell.
        if let Some(batch) = self.brain.journal() {
            let (shard, number, bytes, mark) = (self.at.0, batch.number, batch.bytes.len(), batch.mark);
            env.trace(|| format!("shard {shard}: batch {number}, {bytes} bytes, {mark:?}"));
            match &mut self.log {
                Some(log) => log.append(batch, env.now_us),
                None => env.fail("a journal without a log"),
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for conn in touched {
            self.settle(conn, env);
        }
        (offered, turned)
    }

    /// Tells the oracle whether something was refused in the turn that began at `start_us`.
    fn note_refusals(&mut self, start_us: u64, env: &mut Env) {
        let (refuses, cluster) = (self.brain.log_refuses(), self.at.2);
        let counters = Counters::NAMES.iter().zip(self.brain.counters().values());
        let refused = counters.filter(|(name, _)| REFUSALS.contains(name)).map(|(_, count)| count).sum();
        if self.refusal.is_none() && (refuses || refused != self.refused) {
            self.refusal = Some(env.oracle.refusal_begins(cluster, start_us));
        }
        self.refused = refused;
        if !refuses {
            self.end_refusal(env.now_us, env);
        }
    }

    /// Nothing is refused any more: the log takes everything, or the shard is gone.
    pub fn end_refusal(&mut self, now_us: u64, env: &mut Env) {
        if let Some(refusal) = self.refusal.take() {
            env.oracle.refusal_ends(refusal, now_us);
        }
    }

    fn take_inputs(&mut self, now: Now, inputs: &mut Vec<(u64, Io)>, touched: &mut Vec<ConnId>, env: &mut Env) {
        for (_, io) in inputs.drain(..) {
            match io {
                Io::Accept(pipe) => {
                    let conn = occupy(&mut self.slots, &mut self.free, pipe);
                    env.net.pipe(pipe).place = Some(Place { shard: self.at.0, conn });
                    let peer = env.peer(pipe);
                    self.give(
                        now,
                        Input::Accepted { conn, listener: 0, peer, certificate: None, since_us: now.mono_us },
                        touched,
                        env,
                    );
                    self.inputs.push((env.now_us, Io::Readable(pipe)));
                }
                Io::Readable(pipe) => self.read(now, pipe, touched, env),
                Io::SendDone(pipe) => {
                    if let Some(conn) = self.owns(pipe, env) {
                        self.settle(conn, env);
                    }
                }
                Io::Logged => {
                    if let Some(status) = self.log.as_mut().map(LogSim::tell) {
                        let shard = self.at.0;
                        env.trace(|| format!("shard {shard}: durable {}, {:?}", status.durable, status.room));
                        self.give(now, Input::Logged(status), touched, env);
                    }
                }
                Io::Replay => self.give(now, Input::Replay, touched, env),
                Io::Detach(conn) => self.detach(now, conn, touched, env),
                Io::Gone(conn) => self.gone(now, conn, Cause::Ours, touched, env),
                Io::Dialed(dial, Some(pipe)) => {
                    let conn = occupy(&mut self.slots, &mut self.free, pipe);
                    env.net.pipe(pipe).place = Some(Place { shard: self.at.0, conn });
                    self.give(now, Input::Dialed { dial, conn }, touched, env);
                }
                Io::Dialed(dial, None) => {
                    let reason = "refused by the simulation";
                    self.give(now, Input::DialFailed { dial, reason }, touched, env);
                }
            }
        }
    }

    fn give(&mut self, now: Now, input: Input<'_>, touched: &mut Vec<ConnId>, env: &mut Env) {
        let logged = matches!(input, Input::Logged(_));
        let mut shell = Shell::new(&mut self.slots, &mut self.free, touched, env, self.at.0);
        shell.logged = logged;
        self.brain.input(now, input, &mut shell);
    }

    /// The identity of a pipe's connection, if it lives here.
    fn owns(&self, pipe: usize, env: &mut Env) -> Option<ConnId> {
        env.net.pipe(pipe).place.filter(|place| place.shard == self.at.0).map(|place| place.conn)
    }

    fn slot(&mut self, conn: ConnId) -> Option<&mut Slot> {
        self.slots.get_mut(conn.index as usize).filter(|slot| slot.generation == conn.generation && slot.pipe.is_some())
    }

    fn read(&mut self, now: Now, pipe: usize, touched: &mut Vec<ConnId>, env: &mut Env) {
        let Some(conn) = self.owns(pipe, env) else { return };
        let Some(slot) = self.slot(conn) else { return };
        if slot.moving.is_some() {
            return;
        }
        let closing = slot.closing;
        // A read that was on its way when reading stopped may still complete.
        let late = env.rng.one_in(4);
        let at = env.net.pipe(pipe);
        if !at.socket.is_empty() && (at.reading || late) && !closing {
            let most = at.socket.len().min(at.read_max) as u64;
            let n = if env.rng.percent(50) { most } else { env.rng.between(1, most) } as usize;
            let bytes: Vec<u8> = at.socket.drain(..n).collect();
            self.give(now, Input::Received { conn, bytes: &bytes }, touched, env);
            if env.net.pipe(pipe).reading {
                // The next read completes in this turn or in a later one.
                self.inputs.push((env.now_us, Io::Readable(pipe)));
                if env.rng.percent(50) {
                    self.inputs.pop();
                    return self.read(now, pipe, touched, env);
                }
            }
            return;
        }
        let Some(cause) = at.ended else { return };
        if closing || cause == Cause::Error || at.socket.is_empty() && at.reading {
            at.socket.clear();
            self.gone(now, conn, cause, touched, env);
        }
    }

    fn detach(&mut self, now: Now, conn: ConnId, touched: &mut Vec<ConnId>, env: &mut Env) {
        let Some(slot) = self.slot(conn) else { return };
        let (Some(pipe), Some((to, mut parked))) = (slot.pipe, slot.moving.take()) else { return };
        let at = env.net.pipe(pipe);
        if at.ended.is_some() && (at.socket.is_empty() || env.rng.percent(50)) {
            return self.gone(now, conn, Cause::Error, touched, env);
        }
        let late = env.rng.below(at.socket.len() as u64 + 1) as usize;
        parked.unread.extend(at.socket.drain(..late));
        at.place = None;
        self.vacate(conn);
        env.coverage.one("hand_overs_with_late_bytes", u64::from(late > 0));
        self.give(now, Input::Detached { transport: Box::new(pipe), to, parked }, touched, env);
    }

    /// The brain hears that a connection is closed.
    fn gone(&mut self, now: Now, conn: ConnId, cause: Cause, touched: &mut Vec<ConnId>, env: &mut Env) {
        let Some(slot) = self.slot(conn) else { return };
        let Some(pipe) = slot.pipe else { return };
        let ended = slot.ended;
        let at = env.net.pipe(pipe);
        at.place = None;
        at.closed_us = Some(env.now_us);
        if !ended {
            env.net.server_end(pipe, (env.now_us, &mut env.queue));
        }
        self.give(now, Input::Closed { conn, cause }, touched, env);
        self.vacate(conn);
    }

    fn vacate(&mut self, conn: ConnId) {
        self.slots[conn.index as usize].pipe = None;
        self.free.push(conn.index);
    }

    /// Takes output when no send is in flight, and ends what is to be closed.
    fn settle(&mut self, conn: ConnId, env: &mut Env) {
        let Some(slot) = self.slot(conn) else { return };
        let Some(pipe) = slot.pipe else { return };
        let at = env.net.pipe(pipe);
        if at.send_busy || slot.ended || !slot.dirty && !slot.closing {
            return;
        }
        slot.dirty = false;
        let closing = slot.closing;
        if let Some(output) = self.brain.output(conn)
            && !output.is_empty()
        {
            at.sending.clear();
            core::mem::swap(output, &mut at.sending);
            return env.net.send(pipe, (env.now_us, &mut env.queue, &mut env.rng));
        }
        if closing {
            self.slots[conn.index as usize].ended = true;
            let at_us = env.now_us + env.rng.between(1, 1_000);
            env.net.server_end(pipe, (env.now_us, &mut env.queue));
            env.queue.push(at_us, Event::Io(self.at.0, Io::Gone(conn)));
        }
    }
}

/// Counters of what is refused because of the log.
const REFUSALS: [&str; 6] = [
    "shed_log_full",
    "log_waits_refused",
    "log_waits_timed_out",
    "obligations_refused",
    "obligations_timed_out",
    "publishes_refused",
];

fn occupy(slots: &mut Vec<Slot>, free: &mut Vec<u32>, pipe: usize) -> ConnId {
    let index = free.pop().unwrap_or_else(|| {
        slots.push(Slot::default());
        slots.len() as u32 - 1
    });
    let generation = slots[index as usize].generation + 1;
    slots[index as usize] = Slot { generation, pipe: Some(pipe), ..Slot::default() };
    ConnId { index, generation }
}

/// The shell's side of one turn.
struct Shell<'a> {
    slots: &'a mut Vec<Slot>,
    free: &'a mut Vec<u32>,
    touched: &'a mut Vec<ConnId>,
    env: &'a mut Env,
    shard: usize,
    /// The log has just come further.
    logged: bool,
}

impl<'a> Shell<'a> {
    fn new(
        slots: &'a mut Vec<Slot>,
        free: &'a mut Vec<u32>,
        touched: &'a mut Vec<ConnId>,
        env: &'a mut Env,
        shard: usize,
    ) -> Shell<'a> {
        Shell { slots, free, touched, env, shard, logged: false }
    }

    fn slot(&mut self, conn: ConnId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(conn.index as usize);
        slot.filter(|slot| slot.generation == conn.generation && slot.pipe.is_some())
    }
}

impl Output for Shell<'_> {
    fn adopt(&mut self, transport: Transport) -> Option<ConnId> {
        let Ok(pipe) = transport.downcast::<usize>() else {
            self.env.fail("a transport came back as something else");
            return None;
        };
        let conn = occupy(self.slots, self.free, *pipe);
        self.env.net.pipe(*pipe).place = Some(Place { shard: self.shard, conn });
        self.env.queue.push(self.env.now_us, Event::Io(self.shard, Io::Readable(*pipe)));
        Some(conn)
    }

    fn ready(&mut self, conn: ConnId) {
        if self.slot(conn).is_none() {
            self.env.fail("ready for a connection that does not exist");
        }
    }

    fn hand_over(&mut self, conn: ConnId, to: ShardId, parked: Parked) {
        let at_us = self.env.now_us + self.env.rng.between(1, 3_000);
        match self.slot(conn) {
            Some(slot) => slot.moving = Some((to, parked)),
            None => return self.env.fail("hand-over of a connection that does not exist"),
        }
        self.env.queue.push(at_us, Event::Io(self.shard, Io::Detach(conn)));
    }

    fn flush(&mut self, conn: ConnId) {
        match self.slot(conn) {
            Some(slot) => slot.dirty = true,
            None => return self.env.fail("output for a connection that does not exist"),
        }
        self.env.coverage.one("gated_output", u64::from(self.logged));
        self.touched.push(conn);
    }

    fn close(&mut self, conn: ConnId) {
        let pipe = self.slot(conn).and_then(|slot| slot.pipe);
        if let Some(pipe) = pipe {
            self.env.net.pipe(pipe).closing_us.get_or_insert(self.env.now_us);
        }
        match self.slot(conn) {
            Some(slot) => slot.closing = true,
            None => return self.env.fail("close of a connection that does not exist"),
        }
        self.touched.push(conn);
    }

    fn read(&mut self, conn: ConnId, on: bool) {
        let Some(pipe) = self.slot(conn).and_then(|slot| slot.pipe) else {
            return self.env.fail("reading is switched for a connection that does not exist");
        };
        self.env.net.pipe(pipe).reading = on;
        if on {
            self.env.queue.push(self.env.now_us, Event::Io(self.shard, Io::Readable(pipe)));
        }
    }

    fn dial(&mut self, dial: DialId, server: &str) {
        let (shard, now_us) = (self.shard, self.env.now_us);
        self.env.wires.dial(shard, dial, server);
        let at_us = now_us + self.env.rng.between(10, 5_000);
        self.env.queue.push(at_us, Event::Dial(shard, dial));
    }

    fn event(&mut self, event: Said<'_>) {
        let shard = self.shard;
        self.env.trace(|| format!("shard {shard}: {event:?}"));
    }
}
