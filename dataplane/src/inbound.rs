//! The start of a turn: completions of accepts and receives become inputs of the broker. Bytes are lent from the
//! ring's buffers for the duration of one call and never copied here. Called by [`crate::shard::Shard`].

use std::net::{SocketAddr, TcpStream};

use broker::surface::{Cause, ConnId, Input};
use contract::time::Now;

use crate::{
    connections::{Connection, Connections, Due, Phase, Receive},
    listener::{ACCEPT_BACKOFF_US, Listener},
    ring::{Completion, Ring, owned},
    shard::Brain,
    stage::Stage,
};

/// A receive completed: bytes, the end, or a reason to try again. `false` if the connection has had its share of
/// this turn: then nothing has happened, and the completion waits for the next one.
pub(crate) fn received(
    connections: &mut Connections,
    ring: &mut Ring,
    brain: &mut impl Brain,
    now: Now,
    completion: Completion,
) -> bool {
    let conn = ConnId { index: completion.token.index, generation: completion.token.generation };
    if connections.read_enough(conn) {
        return false;
    }
    if let Some(connection) = connections.tenant(conn) {
        if !completion.more {
            connection.receive = Receive::Idle;
            connections.unsettle(conn);
        }
        match completion.result {
            0 => connections.ended(conn, Cause::Eof),
            bytes if bytes > 0 => {
                if let Some(buffer) = completion.buffer {
                    let wire = ring.buffers().bytes(buffer, bytes as usize);
                    connections.count_read(conn, wire.len());
                    arrived(connections, brain, now, conn, wire);
                }
            }
            // Buffers ran out (they are back by the next turn), a signal, or the cancellation we asked for:
            // whether to go on is decided when the turn is settled.
            error if matches!(-error, libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN) => {}
            _ => connections.ended(conn, Cause::Error),
        }
    }
    if let Some(buffer) = completion.buffer {
        ring.buffers().recycle(buffer);
    }
    true
}

fn arrived(connections: &mut Connections, brain: &mut impl Brain, now: Now, conn: ConnId, wire: &[u8]) {
    let Some(connection) = connections.tenant(conn) else { return };
    // The stage leaves its place while the broker runs, because the broker acts on the table it lies in.
    let mut stage = std::mem::replace(&mut connection.stage, Stage::Plain);
    let bytes = stage.open(wire);
    match &mut connection.phase {
        Phase::Open => brain.input(now, Input::Received { conn, bytes }, connections),
        Phase::Leaving(leaving) => leaving.parked.unread.extend_from_slice(bytes),
        Phase::Closing(_) | Phase::Spent | Phase::Dialing(_) => {}
    }
    if let Some(connection) = connections.tenant(conn) {
        connection.stage = stage;
    }
}

/// An accept completed: a new connection, or a reason to pause or to arm it again.
pub(crate) fn accepted(
    connections: &mut Connections,
    ring: &mut Ring,
    brain: &mut impl Brain,
    now: Now,
    listener: &mut Listener,
    completion: Completion,
) {
    if !completion.more {
        listener.armed = false;
    }
    match completion.result {
        descriptor if descriptor >= 0 => {
            let stream = TcpStream::from(owned(descriptor));
            // Fails if the other side is gone already.
            if let Ok(peer) = stream.peer_addr() {
                welcome(connections, brain, now, listener, stream, peer);
            }
        }
        // The connection that was to be accepted is gone, or the accept was cancelled: nothing is wrong with us.
        error if matches!(-error, libc::ECONNABORTED | libc::EPROTO | libc::EINTR | libc::EAGAIN | libc::ECANCELED) => {
        }
        // Descriptors or memory ran out, which stays so for a while, and the backlog stays full: asking again at
        // once would burn the core.
        error => {
            connections.events().accept_failed(now.mono_us, &listener.name, -error);
            connections.due(now.mono_us + ACCEPT_BACKOFF_US, Due::Listener(listener.index));
            return;
        }
    }
    listener.arm(ring);
}

fn welcome(
    connections: &mut Connections,
    brain: &mut impl Brain,
    now: Now,
    listener: &Listener,
    stream: TcpStream,
    peer: SocketAddr,
) {
    let Some(seat) = listener.seat() else {
        connections.events().listener_full(now.mono_us, &listener.name, peer);
        return;
    };
    let connection = Connection::new(stream.into(), Phase::Open, Stage::Plain, Some(seat));
    if let Some(conn) = connections.insert(connection) {
        brain.input(now, Input::Accepted { conn, listener: listener.index, peer }, connections);
    }
}
