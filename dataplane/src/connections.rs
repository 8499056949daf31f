//! The connections of one shard: the table that gives them their [`ConnId`]s, and [`Output`], through which
//! the broker acts on them. What is asked here only changes the table; [`crate::outbound`] settles it
//! with the kernel at the end of the turn. Lives on its shard, owned by [`crate::shard::Shard`].
//!
//! Always true: an entry leaves the table only when no operation of its descriptor is in flight, so a
//! completion always finds the connection that it belongs to; the generation of a place changes with each
//! tenant. `Input::Closed` or `Input::Detached` is told exactly once per connection that was told to the broker.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::Arc,
};

use broker::{
    admission::Ask,
    counters::Counter,
    event::{Event, Who},
    exchange::Round,
    inquiry::Wish,
    surface::{Cause, ConnId, DialId, Output, Parked, Transport},
};
use contract::{ids::ShardId, time::Now, view::Watched};
use mqtt::types::Version;

use crate::{
    addresses::{Addresses, Admitted, Crowded},
    announce::Announcer,
    auth::Asker,
    dial::{Dialing, Dials},
    events::Events,
    listener::Seat,
    ring::{Op, Token},
    shard::Brain,
    stage::{Broken, Stage},
    system::Said,
    trace::{Direction, Tap, Tracer},
};

/// How long a connection that is being closed may take to accept what is left to send.
pub(crate) const FLUSH_US: u64 = 2_000_000;
/// How long we then wait for the other side to close, so that unread input does not reset what we sent last.
pub(crate) const LINGER_US: u64 = 1_000_000;
/// Handshakes of TLS that a shard goes on with in one turn: each costs as much as a thousand messages, and a storm of
/// them must not keep those who are connected waiting.
const HANDSHAKES_PER_TURN: u32 = 4;
/// Output memory is freed when a connection has sent nothing for as long, up to twice that.
pub(crate) const SWEEP_US: u64 = 1_000_000;

/// What a connection is doing.
pub(crate) enum Phase {
    /// Connecting; unknown to the broker.
    Dialing(Box<Dialing>),
    /// Serving.
    Open,
    /// Waits until nothing is in flight, then moves to another shard.
    Leaving(Box<Leaving>),
    /// Sends what is left; the broker still knows it.
    Closing(Cause),
    /// Told as closed; waits for the other side's end and for its operations.
    Spent,
}

/// What travels with a hand-over.
pub(crate) struct Leaving {
    pub(crate) to: ShardId,
    pub(crate) parked: Parked,
}

/// Which receive is armed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Receive {
    Idle,
    Armed,
    Cancelled,
}

/// One transport.
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    pub(crate) phase: Phase,
    pub(crate) receive: Receive,
    /// CONNECT is complete on its home shard: receives may be multishot.
    pub(crate) multishot: bool,
    /// The broker wants input.
    pub(crate) reading: bool,
    /// A send is in flight, and `wire` must not be touched.
    pub(crate) sending: bool,
    /// The other side has closed.
    pub(crate) eof: bool,
    /// The broker has a question open about what waits in front of its input.
    pub(crate) asked: bool,
    /// The other side's orderly end came meanwhile, and is told after the answer.
    pub(crate) ends: bool,
    /// Nothing more can be sent or received.
    pub(crate) failed: bool,
    /// Is in the list of connections to settle.
    pub(crate) unsettled: bool,
    /// Is in the list of connections that may hold output memory.
    pub(crate) warm: bool,
    /// Has sent since the last sweep.
    pub(crate) used: bool,
    /// The turn in which it was read last, and how many bytes of it were handled then.
    pub(crate) read_turn: u64,
    pub(crate) read_bytes: usize,
    /// When patience with the current phase ends.
    pub(crate) due_us: u64,
    /// What is being sent, and how much of it was.
    pub(crate) wire: Vec<u8>,
    pub(crate) sent: usize,
    pub(crate) stage: Stage,
    pub(crate) seat: Option<Seat>,
    /// Somebody watches its packets.
    pub(crate) tap: Option<Box<Tap>>,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd, phase: Phase, stage: Stage, seat: Option<Seat>) -> Connection {
        Connection {
            socket,
            phase,
            receive: Receive::Idle,
            multishot: false,
            reading: true,
            sending: false,
            eof: false,
            asked: false,
            ends: false,
            failed: false,
            unsettled: false,
            warm: false,
            used: false,
            read_turn: 0,
            read_bytes: 0,
            due_us: u64::MAX,
            wire: Vec::new(),
            sent: 0,
            stage,
            seat,
            tap: None,
        }
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// An operation of this connection is in the kernel's hands.
    pub(crate) fn in_flight(&self) -> bool {
        self.receive != Receive::Idle
            || self.sending
            || matches!(&self.phase, Phase::Dialing(dialing) if dialing.connecting)
    }
}

/// A connection between two shards: descriptor, stages, what they have not sent yet, and its seat at the listener.
struct Carrier {
    socket: OwnedFd,
    stage: Stage,
    wire: Vec<u8>,
    sent: usize,
    seat: Option<Seat>,
}

/// What the broker is told at the start of the next turn.
pub(crate) enum Pending {
    Closed {
        conn: ConnId,
        cause: Cause,
    },
    Detached {
        transport: Transport,
        to: ShardId,
        parked: Parked,
    },
    Dialed {
        dial: DialId,
        conn: ConnId,
    },
    DialFailed {
        dial: DialId,
        reason: String,
    },
    /// Something about a client, for whoever listens on `$SYS`.
    Said(Said),
}

/// What a deadline of the shell is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Due {
    /// Patience with a connection's phase ends.
    Connection(ConnId),
    /// A name was not resolved in time.
    Resolve(u32),
    /// A listener may accept again.
    Listener(u16),
    /// Connections that hold output memory and do not use it are looked for.
    Sweep,
    /// A trace begins or ends.
    Watch,
}

struct Place {
    generation: u32,
    tenant: Option<Connection>,
}

/// The table of one shard's connections.
pub(crate) struct Connections {
    places: Vec<Place>,
    vacant: Vec<u32>,
    connections_max: usize,
    /// `limits.turn_read_bytes`.
    read_bytes_max: usize,
    unsettled: Vec<ConnId>,
    pub(crate) pending: VecDeque<Pending>,
    pub(crate) warm: Vec<ConnId>,
    dues: BinaryHeap<Reverse<(u64, Due)>>,
    pub(crate) dials: Dials,
    events: Events,
    /// Of the whole node.
    pub(crate) addresses: Arc<Addresses>,
    announcer: Announcer,
    tracer: Tracer,
    asker: Option<Asker>,
    /// What stages open, for the duration of one completion.
    pub(crate) plain: Vec<u8>,
    /// Handshakes that went on in this turn.
    handshakes: u32,
    turn: u64,
    now_us: u64,
}

impl Connections {
    /// An empty table. `connections_max` is bounded by what a token can name.
    pub(crate) fn new(
        connections_max: usize,
        read_bytes_max: usize,
        dials: Dials,
        events: Events,
        addresses: Arc<Addresses>,
    ) -> Connections {
        Connections {
            places: Vec::new(),
            vacant: Vec::new(),
            connections_max: connections_max.min(Token::INDEX_MAX as usize),
            read_bytes_max,
            unsettled: Vec::new(),
            pending: VecDeque::new(),
            warm: Vec::new(),
            dues: BinaryHeap::new(),
            dials,
            events,
            addresses,
            announcer: Announcer::default(),
            tracer: Tracer::default(),
            asker: None,
            plain: Vec::new(),
            handshakes: 0,
            turn: 0,
            now_us: 0,
        }
    }

    /// Counts a connection by its address, which was not known when it was accepted.
    pub(crate) fn count_address(
        &mut self,
        brain: &mut impl Brain,
        conn: ConnId,
        peer: SocketAddr,
    ) -> Result<(), Crowded> {
        let admitted = self.addresses.admit(peer.ip(), self.now_us)?;
        match (admitted, self.tenant(conn).and_then(|tenant| tenant.seat.as_mut())) {
            (Admitted::Counted(place), Some(seat)) => seat.place = Some(place),
            (Admitted::Uncounted, _) => brain.count(Counter::address_uncounted, 1),
            (Admitted::Counted(_) | Admitted::Free, _) => {}
        }
        Ok(())
    }

    /// Where clients are asked about; without it nobody is.
    pub(crate) fn ask_through(&mut self, asker: Asker) {
        self.asker = Some(asker);
    }

    /// Who speaks about clients on `$SYS`, and where traces go; without it nobody and nowhere.
    pub(crate) fn tell_through(&mut self, announcer: Announcer, tracer: Tracer) {
        (self.announcer, self.tracer) = (announcer, tracer);
    }

    /// What an operator wants to hear of clients from now on. True: the broker has to ask about all of them again.
    pub(crate) fn watched(&mut self, watched: &Watched, now: Now) -> bool {
        self.announcer.choose(&watched.sys_events);
        self.tracer.take(&watched.traces);
        self.look_at_traces(now)
    }

    /// Which traces run now? True: others than before.
    pub(crate) fn look_at_traces(&mut self, now: Now) -> bool {
        let (changed, again_ms) = self.tracer.look(now.wall_ms);
        if let Some(again_ms) = again_ms {
            let wait_us = (again_ms - now.wall_ms).saturating_mul(1000);
            self.due(now.mono_us.saturating_add(wait_us), Due::Watch);
        }
        changed
    }

    /// Events about clients that were shed since the last question.
    pub(crate) fn events_shed(&mut self) -> u64 {
        self.announcer.take_shed()
    }

    /// Begins a turn.
    pub(crate) fn begin(&mut self, now_us: u64) {
        self.turn += 1;
        self.handshakes = 0;
        self.now_us = now_us;
    }

    /// Whether `conn` has had its share of this turn, or all handshakes have had theirs and it is in one.
    pub(crate) fn read_enough(&mut self, conn: ConnId) -> bool {
        let (turn, read_bytes_max) = (self.turn, self.read_bytes_max);
        let handshakes_done = self.handshakes >= HANDSHAKES_PER_TURN;
        self.tenant(conn).is_some_and(|tenant| {
            tenant.read_turn == turn && tenant.read_bytes >= read_bytes_max
                || handshakes_done && tenant.stage.is_handshaking()
        })
    }

    /// Counts a handshake that goes on in this turn.
    pub(crate) fn count_handshake(&mut self) {
        self.handshakes += 1;
    }

    /// Counts `bytes` that were read for `conn` in this turn.
    pub(crate) fn count_read(&mut self, conn: ConnId, bytes: usize) {
        let turn = self.turn;
        if let Some(connection) = self.tenant(conn) {
            let before = if connection.read_turn == turn { connection.read_bytes } else { 0 };
            (connection.read_turn, connection.read_bytes) = (turn, before + bytes);
        }
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.now_us
    }

    /// Connections in the table, those on their way out included.
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.vacant.len()
    }

    /// Gives a connection its identity; `None` (and the connection is closed) if the table is full.
    pub(crate) fn insert(&mut self, connection: Connection) -> Option<ConnId> {
        let index = match self.vacant.pop() {
            Some(index) => index,
            None if self.places.len() < self.connections_max => {
                self.places.push(Place { generation: 0, tenant: None });
                (self.places.len() - 1) as u32
            }
            None => return None,
        };
        let place = &mut self.places[index as usize];
        place.tenant = Some(connection);
        let conn = ConnId { index, generation: place.generation };
        self.unsettle(conn);
        Some(conn)
    }

    /// Takes a connection out of the table; nothing of it may be in flight.
    pub(crate) fn remove(&mut self, conn: ConnId) -> Option<Connection> {
        let place = self.places.get_mut(conn.index as usize).filter(|place| place.generation == conn.generation)?;
        let connection = place.tenant.take()?;
        assert!(!connection.in_flight(), "a completion must find its connection");
        place.generation = place.generation.wrapping_add(1);
        self.vacant.push(conn.index);
        Some(connection)
    }

    /// The tenant that `conn` names, if it is still there.
    pub(crate) fn tenant(&mut self, conn: ConnId) -> Option<&mut Connection> {
        let place = self.places.get_mut(conn.index as usize)?;
        if place.generation == conn.generation { place.tenant.as_mut() } else { None }
    }

    /// Remembers to settle `conn` with the kernel at the end of the turn.
    pub(crate) fn unsettle(&mut self, conn: ConnId) {
        if let Some(connection) = self.tenant(conn)
            && !connection.unsettled
        {
            connection.unsettled = true;
            self.unsettled.push(conn);
        }
    }

    /// The next connection to settle.
    pub(crate) fn next_unsettled(&mut self) -> Option<ConnId> {
        let conn = self.unsettled.pop()?;
        if let Some(connection) = self.tenant(conn) {
            connection.unsettled = false;
        }
        Some(conn)
    }

    /// Sets a deadline of the shell.
    pub(crate) fn due(&mut self, due_us: u64, what: Due) {
        self.dues.push(Reverse((due_us, what)));
    }

    /// Sets the deadline of a connection's phase.
    pub(crate) fn due_connection(&mut self, conn: ConnId, patience_us: u64) {
        let due_us = self.now_us + patience_us;
        if let Some(connection) = self.tenant(conn) {
            connection.due_us = due_us;
            self.due(due_us, Due::Connection(conn));
        }
    }

    /// The earliest deadline of the shell.
    pub(crate) fn next_due_us(&self) -> u64 {
        self.own_due_us().min(self.events.due_us())
    }

    fn own_due_us(&self) -> u64 {
        self.dues.peek().map_or(u64::MAX, |Reverse((due_us, _))| *due_us)
    }

    /// The next deadline that has passed.
    pub(crate) fn overdue(&mut self) -> Option<Due> {
        if self.events.due_us() <= self.now_us {
            self.events.tell_suppressed(self.now_us);
        }
        if self.own_due_us() > self.now_us {
            return None;
        }
        self.dues.pop().map(|Reverse((_, what))| what)
    }

    /// The transport has ended by itself: what the broker has said so far still goes out, if it can.
    pub(crate) fn ended(&mut self, conn: ConnId, cause: Cause) {
        let Some(connection) = self.tenant(conn) else { return };
        connection.eof |= cause == Cause::Eof;
        connection.failed |= cause == Cause::Error;
        self.flush_and_end(conn, cause);
    }

    /// Nothing more is read from `conn`; what is left to say still goes out, and then it ends.
    pub(crate) fn flush_and_end(&mut self, conn: ConnId, cause: Cause) {
        let Some(connection) = self.tenant(conn) else { return };
        if connection.asked && cause == Cause::Eof && matches!(connection.phase, Phase::Open) {
            connection.ends = true;
            return;
        }
        if matches!(connection.phase, Phase::Open | Phase::Leaving(_)) {
            connection.phase = Phase::Closing(cause);
            self.due_connection(conn, FLUSH_US);
        }
        self.unsettle(conn);
    }

    /// The broker's question about a connection has its answer.
    pub(crate) fn answered(&mut self, conn: ConnId) {
        if let Some(connection) = self.tenant(conn) {
            connection.asked = false;
        }
    }

    /// Tells the end that was held back, unless the answer has led to the next question.
    pub(crate) fn end_answered(&mut self, conn: ConnId) {
        if self.tenant(conn).is_some_and(|connection| connection.ends && !connection.asked) {
            self.flush_and_end(conn, Cause::Eof);
        }
    }

    /// Ends every connection that the broker has not heard of, and so cannot say goodbye to: of all listeners, or of one.
    pub(crate) fn end_unknown(&mut self, listener: Option<u16>) {
        for index in 0..self.places.len() {
            let place = &self.places[index];
            let unknown = |tenant: &Connection| {
                let came_in = tenant.stage.unknown().filter(|_| matches!(tenant.phase, Phase::Open));
                came_in.is_some_and(|unknown| listener.is_none_or(|listener| listener == unknown.listener))
            };
            if place.tenant.as_ref().is_some_and(unknown) {
                let conn = ConnId { index: index as u32, generation: place.generation };
                self.flush_and_end(conn, Cause::Ours);
            }
        }
    }

    /// The stage of `conn` cannot go on: it is counted and told; what the stage has to say about it still goes out.
    pub(crate) fn broken(&mut self, brain: &mut impl Brain, conn: ConnId, broken: &Broken) {
        brain.count(broken.counter(), 1);
        let now_us = self.now_us;
        let Some(connection) = self.tenant(conn) else { return };
        if let Stage::Layered(layers) = &connection.stage {
            let (listener, peer) = (layers.listener().clone(), layers.peer());
            self.events.transport_broken(now_us, &listener, peer, broken);
        }
        self.flush_and_end(conn, Cause::Error);
    }

    /// The move that `Output::hand_over` asked for: nothing of `conn` is in flight.
    pub(crate) fn detach(&mut self, conn: ConnId) {
        let Some(connection) = self.remove(conn) else { return };
        let Connection { socket, stage, wire, sent, seat, phase: Phase::Leaving(leaving), .. } = connection else {
            unreachable!("only leaving connections are detached")
        };
        let Leaving { to, parked } = *leaving;
        let transport = Box::new(Carrier { socket, stage, wire, sent, seat });
        self.pending.push_back(Pending::Detached { transport, to, parked });
    }

    /// Says something that is no event of the broker.
    pub(crate) fn events(&mut self) -> &mut Events {
        &mut self.events
    }
}

/// The token of an operation of `conn`.
pub(crate) fn token(op: Op, conn: ConnId) -> Token {
    Token { op, index: conn.index, generation: conn.generation }
}

impl Output for Connections {
    fn adopt(&mut self, transport: Transport) -> Option<ConnId> {
        let carrier = transport.downcast::<Carrier>().ok()?;
        let Carrier { socket, stage, wire, sent, seat } = *carrier;
        let connection = Connection::new(socket, Phase::Open, stage, seat);
        self.insert(Connection { wire, sent, ..connection })
    }

    fn ready(&mut self, conn: ConnId) {
        if let Some(connection) = self.tenant(conn) {
            connection.multishot = true;
            if let Some(seat) = &mut connection.seat {
                seat.prove();
            }
            self.unsettle(conn);
        }
    }

    fn hand_over(&mut self, conn: ConnId, to: ShardId, parked: Parked) {
        if let Some(connection) = self.tenant(conn)
            && matches!(connection.phase, Phase::Open)
        {
            connection.phase = Phase::Leaving(Box::new(Leaving { to, parked }));
            self.unsettle(conn);
        }
    }

    fn flush(&mut self, conn: ConnId) {
        self.unsettle(conn);
    }

    fn close(&mut self, conn: ConnId) {
        self.flush_and_end(conn, Cause::Ours);
    }

    fn read(&mut self, conn: ConnId, on: bool) {
        if let Some(connection) = self.tenant(conn)
            && connection.reading != on
        {
            connection.reading = on;
            self.unsettle(conn);
        }
    }

    fn dial(&mut self, dial: DialId, server: &str) {
        match server.parse::<SocketAddr>() {
            Ok(address) => self.connect_to(dial, vec![address]),
            Err(_) => self.resolve(dial, server),
        }
    }

    fn authenticate(&mut self, conn: ConnId, ask: &Ask<'_>) -> bool {
        self.asker.as_ref().is_some_and(|asker| asker.ask(conn, ask))
    }

    fn exchange(&mut self, conn: ConnId, round: Round<'_>) -> bool {
        self.asker.as_ref().is_some_and(|asker| asker.step(conn, round))
    }

    fn watch(&mut self, who: &Who<'_>, version: Version) -> bool {
        let tap = self.tracer.tap(who, version);
        let watched = tap.is_some();
        if let Some(connection) = self.tenant(who.conn) {
            connection.tap = tap;
        }
        watched
    }

    fn packet(&mut self, conn: ConnId, bytes: &[u8]) {
        if let Some(tap) = self.tenant(conn).and_then(|connection| connection.tap.as_ref()) {
            tap.packet(Direction::In, bytes);
        }
    }

    fn permit(&mut self, conn: ConnId, number: u64, wish: &Wish<'_>) -> bool {
        let now_us = self.now_us;
        let asked = self.asker.as_ref().is_some_and(|asker| asker.permit(conn, number, wish, now_us));
        if let Some(connection) = self.tenant(conn) {
            connection.asked |= asked;
        }
        asked
    }

    fn event(&mut self, event: Event<'_>) {
        let listener = |index| self.events.listener(index);
        if let Some(said) = self.announcer.say(self.now_us, &event, listener) {
            self.pending.push_back(Pending::Said(said));
        }
        self.tracer.event(&event);
        self.events.event(self.now_us, event);
    }
}
