//! The start of a turn: completions of accepts and receives become inputs of the broker. Bytes are lent from the
//! ring's buffers for the duration of one call and never copied here. Called by [`crate::shard::Shard`].

use std::{net::SocketAddr, os::fd::OwnedFd};

use broker::{
    counters::Counter,
    surface::{Cause, ConnId, Input},
};
use contract::time::Now;
use transport::websocket::Flow;

use crate::{
    addresses::Admitted,
    connections::{Connection, Connections, Due, Phase, Receive},
    listener::{ACCEPT_BACKOFF_US, Held, Listener},
    pace::Moment,
    ring::{Completion, Ring, owned},
    shard::Brain,
    stage::{Broken, Stage, Unknown},
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
    match &mut connection.stage {
        Stage::Plain => read(connections, brain, now, conn, wire),
        Stage::Layered(_) if !matches!(connection.phase, Phase::Open | Phase::Leaving(_)) => {}
        Stage::Layered(_) => open(connections, brain, now, conn, wire),
    }
}

/// Bytes for the broker.
fn read(connections: &mut Connections, brain: &mut impl Brain, now: Now, conn: ConnId, bytes: &[u8]) {
    let Some(connection) = connections.tenant(conn) else { return };
    match &mut connection.phase {
        Phase::Open => brain.input(now, Input::Received { conn, bytes }, connections),
        Phase::Leaving(leaving) => leaving.parked.unread.extend_from_slice(bytes),
        Phase::Closing(_) | Phase::Spent | Phase::Dialing(_) => {}
    }
}

/// Bytes for the layers of a connection.
fn open(connections: &mut Connections, brain: &mut impl Brain, now: Now, conn: ConnId, wire: &[u8]) {
    let mut plain = std::mem::take(&mut connections.plain);
    let Some(connection) = connections.tenant(conn) else { return };
    let Stage::Layered(layers) = &mut connection.stage else { return };
    let handshaking = layers.is_handshaking();
    let opened = layers.open(wire, &mut plain);
    let known = layers.known();
    if known && layers.unknown.is_some() && connection.seat.as_ref().is_some_and(|seat| seat.place.is_none()) {
        // Behind a load balancer only now it is known whose connection this is.
        let peer = layers.peer();
        if let Err(crowded) = connections.count_address(brain, conn, peer) {
            return connections.broken(brain, conn, &Broken::Crowded(crowded));
        }
    }
    let Some(connection) = connections.tenant(conn) else { return };
    let Stage::Layered(layers) = &mut connection.stage else { return };
    if known && let Some(Unknown { listener, since_us }) = layers.unknown.take() {
        let (peer, certificate) = (layers.peer(), layers.certificate());
        if layers.is_done() {
            connection.stage = Stage::Plain;
        }
        connection.due_us = u64::MAX;
        brain.input(now, Input::Accepted { conn, listener, peer, certificate, since_us }, connections);
    }
    if handshaking {
        connections.count_handshake();
    }
    if !plain.is_empty() {
        read(connections, brain, now, conn, &plain);
        plain.clear();
    }
    connections.plain = plain;
    match opened {
        Ok(Flow::More) => connections.unsettle(conn),
        // The transport itself is still open, and must take our goodbye.
        Ok(Flow::Ended) => connections.flush_and_end(conn, Cause::Eof),
        Err(broken) => connections.broken(brain, conn, &broken),
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
            let socket = owned(descriptor);
            // There is none if the other side is gone already.
            if let Some(peer) = listener.peer_of(&socket) {
                knock(connections, brain, now, listener, socket, peer);
            }
        }
        // The connection that was to be accepted is gone, or the accept was cancelled: nothing is wrong with us.
        error if matches!(-error, libc::ECONNABORTED | libc::EPROTO | libc::EINTR | libc::EAGAIN | libc::ECANCELED) => {
        }
        // Descriptors or memory ran out, which stays so for a while, and the backlog stays full: asking again at
        // once would burn the core.
        error => {
            connections.events().accept_failed(now.mono_us, &listener.name, -error);
            connections.due(now.mono_us + ACCEPT_BACKOFF_US, Due::Listener(listener.number));
            return;
        }
    }
    listener.arm(ring);
}

/// A new connection: it comes in, waits for its moment, or is closed.
fn knock(
    connections: &mut Connections,
    brain: &mut impl Brain,
    now: Now,
    listener: &mut Listener,
    socket: OwnedFd,
    peer: SocketAddr,
) {
    // A load balancer is no client: whom it speaks for is counted when that is known.
    let place = match listener.recipe.proxy_us {
        Some(_) => None,
        None => match connections.addresses.admit(peer.ip(), now.mono_us) {
            Ok(Admitted::Counted(place)) => Some(place),
            Ok(Admitted::Free) => None,
            Ok(Admitted::Uncounted) => {
                brain.count(Counter::address_uncounted, 1);
                None
            }
            Err(crowded) => {
                brain.count(crowded.counter(), 1);
                let why = Broken::Crowded(crowded);
                return connections.events().transport_broken(now.mono_us, &listener.name, peer, &why);
            }
        },
    };
    match listener.seats.pace.moment(now.mono_us) {
        Moment::Now => welcome(connections, brain, now, listener, Held { at_us: now.mono_us, socket, peer, place }),
        Moment::At(at_us) if listener.hold(Held { at_us, socket, peer, place }).is_ok() => {
            brain.count(Counter::listener_rate_waited, 1);
            connections.due(at_us, Due::Listener(listener.number));
        }
        Moment::At(_) | Moment::Never => {
            brain.count(Counter::listener_rate_refused, 1);
            connections.events().listener_busy(now.mono_us, &listener.name, peer);
        }
    }
}

/// Lets in whoever has waited long enough.
pub(crate) fn let_in(connections: &mut Connections, brain: &mut impl Brain, now: Now, listener: &mut Listener) {
    while let Some(held) = listener.release(now.mono_us) {
        welcome(connections, brain, now, listener, held);
    }
}

fn welcome(connections: &mut Connections, brain: &mut impl Brain, now: Now, listener: &Listener, held: Held) {
    let Held { socket, peer, place, .. } = held;
    let Some(mut seat) = listener.seat() else {
        brain.count(Counter::listener_full, 1);
        connections.events().listener_full(now.mono_us, &listener.name, peer);
        return;
    };
    seat.place = place;
    let (number, since_us) = (listener.number, now.mono_us);
    let stage = match listener.recipe.stage(&listener.name, peer, Unknown { listener: number, since_us }) {
        Ok(stage) => stage,
        Err(broken) => {
            brain.count(broken.counter(), 1);
            return connections.events().transport_broken(now.mono_us, &listener.name, peer, &broken);
        }
    };
    let connection = Connection::new(socket, Phase::Open, stage, Some(seat));
    let Some(conn) = connections.insert(connection) else { return };
    match listener.recipe.patience_us() {
        Some(patience_us) => connections.due_connection(conn, patience_us),
        None => {
            let input = Input::Accepted { conn, listener: number, peer, certificate: None, since_us };
            brain.input(now, input, connections);
        }
    }
}
