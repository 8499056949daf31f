//! The end of a turn: what the broker asked for, and what completions left undone, becomes operations of the
//! ring. Called by [`crate::shard::Shard`] with every connection that something happened to; one pass per
//! connection and turn, so its output of the turn leaves in one SEND, and all of them in one system call.
//!
//! Always true: at most one send per connection is in flight, and its bytes stay where they are until it completes.

use broker::{
    counters::Counter,
    surface::{Cause, ConnId},
};

use crate::{
    connections::{Connection, Connections, Due, LINGER_US, Pending, Phase, Receive, SWEEP_US, token},
    ring::{Completion, Op, Ring},
    shard::Brain,
    stage::Broken,
};

/// Settles every connection that something happened to in this turn.
pub(crate) fn settle(connections: &mut Connections, ring: &mut Ring, brain: &mut impl Brain) {
    while let Some(conn) = connections.next_unsettled() {
        settle_one(connections, ring, brain, conn);
    }
}

fn settle_one(connections: &mut Connections, ring: &mut Ring, brain: &mut impl Brain, conn: ConnId) {
    let Some(connection) = connections.tenant(conn) else { return };
    match connection.phase {
        Phase::Dialing(_) => connections.connect(conn, ring),
        Phase::Open => {
            receive(connection, ring, conn, connection.reading);
            send(connection, ring, brain, conn);
        }
        Phase::Leaving(_) => {
            receive(connection, ring, conn, false);
            if !connection.in_flight() {
                connections.detach(conn);
            }
        }
        Phase::Closing(cause) => {
            if !connection.failed {
                send(connection, ring, brain, conn);
            }
            if connection.failed && connection.sending {
                ring.cancel(token(Op::Send, conn));
            } else if !connection.sending {
                told_closed(connections, ring, conn, cause);
            }
        }
        Phase::Spent => leave(connections, ring, conn),
    }
}

/// Arms a receive or asks for the end of the one that is armed.
fn receive(connection: &mut Connection, ring: &mut Ring, conn: ConnId, wanted: bool) {
    match (connection.receive, wanted) {
        (Receive::Idle, true) => {
            ring.receive(connection.descriptor(), token(Op::Receive, conn), connection.multishot);
            connection.receive = Receive::Armed;
        }
        (Receive::Armed, false) => {
            ring.cancel(token(Op::Receive, conn));
            connection.receive = Receive::Cancelled;
        }
        // A cancelled receive that is wanted again is armed anew when its last completion has come.
        _ => {}
    }
}

/// Starts a send if there is something to send and none is in flight.
fn send(connection: &mut Connection, ring: &mut Ring, brain: &mut impl Brain, conn: ConnId) {
    if connection.sending {
        return;
    }
    if connection.wire.is_empty() {
        let output = brain.output(conn).filter(|output| !output.is_empty());
        let last = matches!(connection.phase, Phase::Closing(_));
        let bytes = output.as_ref().map_or(0, |output| output.len());
        if let (Some(tap), Some(output)) = (&connection.tap, &output) {
            tap.packets_out(output);
        }
        connection.stage.seal(output, &mut connection.wire, last);
        brain.count(Counter::bytes_sent, bytes as u64);
        if connection.wire.is_empty() {
            return;
        }
    }
    connection.sending = true;
    connection.used = true;
    let (descriptor, rest) = (connection.descriptor(), &connection.wire[connection.sent..]);
    // SAFETY: `wire` is a heap allocation that is neither touched nor freed while `sending` is set: only
    // `sent` and `sweep` change it, both only without a send in flight, and `Connections::remove` asserts it.
    unsafe { ring.send(descriptor, token(Op::Send, conn), rest) };
}

/// A send completed.
pub(crate) fn sent(connections: &mut Connections, brain: &mut impl Brain, completion: Completion) {
    let conn = ConnId { index: completion.token.index, generation: completion.token.generation };
    let Some(connection) = connections.tenant(conn) else { return };
    connection.sending = false;
    match usize::try_from(completion.result) {
        Ok(bytes) => {
            connection.sent += bytes;
            if connection.sent < connection.wire.len() || !all_sent(connection, brain, conn) {
                connections.unsettle(conn);
            }
            connections.warm(conn);
        }
        Err(_) if matches!(completion.result.wrapping_neg(), libc::EINTR | libc::EAGAIN) => connections.unsettle(conn),
        Err(_) => connections.ended(conn, Cause::Error),
    }
}

/// `wire` is on its way: its memory is for the next output. Answers whether nothing else is left to do.
fn all_sent(connection: &mut Connection, brain: &mut impl Brain, conn: ConnId) -> bool {
    connection.sent = 0;
    connection.wire.clear();
    let Some(output) = brain.output(conn).filter(|output| output.is_empty()) else { return false };
    // Sends mostly complete before there is more to say. Then one buffer serves both sides, which halves what
    // a turn with many receivers drags through the cache.
    if output.capacity() < connection.wire.capacity() {
        std::mem::swap(output, &mut connection.wire);
    }
    matches!(connection.phase, Phase::Open) && !connection.stage.has_output()
}

/// What is left was sent, or cannot be sent: the broker forgets the connection, and the other side is told.
fn told_closed(connections: &mut Connections, ring: &mut Ring, conn: ConnId, cause: Cause) {
    connections.due_connection(conn, LINGER_US);
    let Some(connection) = connections.tenant(conn) else { return };
    connection.phase = Phase::Spent;
    if !connection.stage.is_unknown() {
        connections.pending.push_back(Pending::Closed { conn, cause });
    }
    let Some(connection) = connections.tenant(conn) else { return };
    if !connection.failed {
        // By a plain call: in the ring it would cost a kernel worker. It fails if the other side has reset the
        // connection, which the receive then tells as well.
        let _ = rustix::net::shutdown(&connection.socket, rustix::net::Shutdown::Write);
    }
    leave(connections, ring, conn);
}

/// Waits for the other side's end while that may still come, then for our own operations; then closes.
fn leave(connections: &mut Connections, ring: &mut Ring, conn: ConnId) {
    let Some(connection) = connections.tenant(conn) else { return };
    let lingering = !connection.eof && !connection.failed;
    if lingering && connection.receive == Receive::Idle {
        connection.multishot = false;
    }
    receive(connection, ring, conn, lingering);
    if connection.in_flight() {
        return;
    }
    if let Some(connection) = connections.remove(conn) {
        ring.close(connection.socket);
    }
}

impl Connections {
    /// Patience with a connection's phase has ended.
    pub(crate) fn impatient(&mut self, conn: ConnId, ring: &mut Ring, brain: &mut impl Brain) {
        let now_us = self.now_us();
        let Some(connection) = self.tenant(conn).filter(|connection| connection.due_us <= now_us) else { return };
        match &mut connection.phase {
            Phase::Dialing(dialing) => {
                dialing.overdue = true;
                if dialing.connecting {
                    ring.cancel(token(Op::Connect, conn));
                }
            }
            Phase::Closing(_) | Phase::Spent => connection.failed = true,
            Phase::Open if connection.stage.is_unknown() => self.broken(brain, conn, &Broken::Overdue),
            Phase::Open | Phase::Leaving(_) => {}
        }
        self.unsettle(conn);
    }

    /// `conn` has sent and may hold memory for more.
    fn warm(&mut self, conn: ConnId) {
        let Some(connection) = self.tenant(conn).filter(|connection| !connection.warm) else { return };
        connection.warm = true;
        if self.warm.is_empty() {
            self.due(self.now_us() + SWEEP_US, Due::Sweep);
        }
        self.warm.push(conn);
    }

    /// Frees the output memory of connections that have sent nothing since the last sweep. Those that go on
    /// sending keep it, so that a steady stream allocates nothing, and an idle connection owns nothing.
    pub(crate) fn sweep(&mut self, brain: &mut impl Brain) {
        let mut warm = std::mem::take(&mut self.warm);
        warm.retain(|conn| {
            let Some(connection) = self.tenant(*conn) else { return false };
            if std::mem::take(&mut connection.used) || connection.sending {
                return true;
            }
            connection.warm = false;
            connection.wire = Vec::new();
            if let Some(output) = brain.output(*conn).filter(|output| output.is_empty()) {
                *output = Vec::new();
            }
            false
        });
        if warm.is_empty() {
            // As many connections may never be active again at once.
            warm = Vec::new();
        } else {
            self.due(self.now_us() + SWEEP_US, Due::Sweep);
        }
        self.warm = warm;
    }
}
