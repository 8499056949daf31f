//! The virtual network: one [`Pipe`] per connection, with a delay drawn per connection, bytes in flight both
//! ways, a bounded window towards clients, and ends that lose what was in flight or do not.

use std::collections::VecDeque;

use broker::surface::{Cause, ConnId};

use crate::{
    rng::Rng,
    world::{Event, Queue},
};

/// Where the server keeps a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Index of the shard in the world.
    pub shard: usize,
    /// Its identity there.
    pub conn: ConnId,
}

/// Who is at the client's end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// A client, by its index in the world.
    Client(usize),
    /// A wire between two clusters, by its index: what comes out here goes into its other connection.
    Wire(usize),
}

/// One connection.
pub struct Pipe {
    /// The client's end.
    pub end: End,
    /// Index of its cluster.
    pub cluster: usize,
    /// Who reads it at the server; nobody before the accept, on the way between shards, and at the end.
    pub place: Option<Place>,
    /// Bytes that arrived and were not read by the server.
    pub socket: VecDeque<u8>,
    /// The client's end has arrived at the server.
    pub ended: Option<Cause>,
    /// The server wants to read.
    pub reading: bool,
    /// Most bytes that one read brings.
    pub read_max: usize,
    /// The server's send in flight.
    pub sending: Vec<u8>,
    sent: usize,
    /// Such a send exists.
    pub send_busy: bool,
    send_blocked: bool,
    delay_us: u64,
    up: VecDeque<Vec<u8>>,
    up_free_us: u64,
    down: VecDeque<Vec<u8>>,
    down_free_us: u64,
    down_bytes: usize,
    window: usize,
    /// The client does not read any more.
    pub client_gone: bool,
    /// When the server's brain decided to close it.
    pub closing_us: Option<u64>,
    /// When the server's brain was told that it is closed.
    pub closed_us: Option<u64>,
    /// When the session at its server surely had no connection any more: later than `closed_us` if a crash made the
    /// server forget.
    noticed_us: Option<u64>,
}

/// All connections of a run.
#[derive(Default)]
pub struct Net {
    pipes: Vec<Pipe>,
    /// Connections that broke with loss of bytes.
    pub cuts: u64,
}

impl Net {
    /// A new connection to a cluster; the server hears of it with [`Event::Accept`].
    pub fn connect(
        &mut self,
        end: End,
        cluster: usize,
        shape: (u64, usize),
        (now_us, queue, rng): (u64, &mut Queue, &mut Rng),
    ) -> usize {
        let pipe = self.dialed(end, cluster, shape, (now_us, rng));
        queue.push(now_us + self.pipes[pipe].delay_us, Event::Accept(pipe));
        pipe
    }

    /// A new connection that the server has asked for.
    pub fn dialed(
        &mut self,
        end: End,
        cluster: usize,
        (network_us, window): (u64, usize),
        (now_us, rng): (u64, &mut Rng),
    ) -> usize {
        let pipe = self.pipes.len();
        let delay_us = rng.between(10, network_us);
        let read_max = if rng.percent(15) { *rng.pick(&[1, 3, 20]) } else { usize::MAX };
        self.pipes.push(Pipe {
            end,
            cluster,
            place: None,
            socket: VecDeque::new(),
            ended: None,
            reading: true,
            read_max,
            sending: Vec::new(),
            sent: 0,
            send_busy: false,
            send_blocked: false,
            delay_us,
            up: VecDeque::new(),
            up_free_us: now_us + delay_us,
            down: VecDeque::new(),
            down_free_us: now_us,
            down_bytes: 0,
            window,
            client_gone: false,
            closing_us: None,
            closed_us: None,
            noticed_us: None,
        });
        pipe
    }

    /// A connection.
    pub fn pipe(&mut self, pipe: usize) -> &mut Pipe {
        &mut self.pipes[pipe]
    }

    /// Neither side has ended it.
    pub fn living(&self, pipe: usize) -> bool {
        !self.pipes[pipe].client_gone && self.pipes[pipe].closed_us.is_none()
    }

    /// When the server's brain was told that a connection is closed.
    pub fn closed_us(&self, pipe: usize) -> Option<u64> {
        self.pipes[pipe].closed_us
    }

    /// Since when the server wants it no more: its last words may take their time.
    pub fn left_us(&self, pipe: usize) -> Option<u64> {
        self.pipes[pipe].closing_us.or(self.pipes[pipe].closed_us)
    }

    /// When the session behind a connection surely knew that it has none.
    pub fn noticed_us(&self, pipe: usize) -> Option<u64> {
        let pipe = &self.pipes[pipe];
        pipe.noticed_us.or(pipe.closed_us).filter(|at_us| *at_us < u64::MAX)
    }

    /// Its end is forgotten by a crash.
    pub fn forgotten(&self, pipe: usize) -> bool {
        self.pipes[pipe].noticed_us == Some(u64::MAX)
    }

    /// Index of a connection's cluster.
    pub fn cluster(&self, pipe: usize) -> usize {
        self.pipes[pipe].cluster
    }

    /// Nobody accepts.
    pub fn refuse(&mut self, pipe: usize, wire: (u64, &mut Queue)) {
        self.pipes[pipe].closed_us = Some(wire.0);
        self.server_end(pipe, wire);
    }

    /// The node of a cluster dies: what it had sent may arrive or not. What ended before `kept_us` it will remember.
    pub fn crash(&mut self, cluster: usize, kept_us: u64, (now_us, queue, rng): (u64, &mut Queue, &mut Rng)) {
        for pipe in 0..self.pipes.len() {
            let at = &mut self.pipes[pipe];
            if at.cluster != cluster {
                continue;
            }
            let lived = at.closed_us.is_none();
            if lived || at.noticed_us.or(at.closed_us).is_some_and(|at_us| at_us >= kept_us) {
                at.noticed_us = Some(u64::MAX);
            }
            if !lived {
                continue;
            }
            at.closed_us = Some(now_us);
            at.place = None;
            at.up.clear();
            at.socket.clear();
            at.sending.clear();
            (at.send_busy, at.send_blocked) = (false, false);
            if rng.percent(50) {
                let kept = rng.below(at.down.len() as u64 + 1) as usize;
                at.down.truncate(kept);
            }
            self.server_end(pipe, (now_us, &mut *queue));
        }
    }

    /// A node came back, with sessions as they were when it died.
    pub fn restarted(&mut self, cluster: usize, now_us: u64) {
        let unsure = |pipe: &&mut Pipe| pipe.cluster == cluster && pipe.noticed_us == Some(u64::MAX);
        self.pipes.iter_mut().filter(unsure).for_each(|pipe| pipe.noticed_us = Some(now_us));
    }

    /// Bytes are on their way or unread somewhere.
    pub fn busy(&self) -> bool {
        self.pipes.iter().any(|pipe| {
            let server = pipe.closed_us.is_none();
            server && (!pipe.up.is_empty() || !pipe.socket.is_empty() || pipe.send_busy)
                || !pipe.client_gone && !pipe.down.is_empty()
        })
    }

    /// The client writes.
    pub fn write(&mut self, pipe: usize, bytes: Vec<u8>, (now_us, queue, rng): (u64, &mut Queue, &mut Rng)) {
        let at = &mut self.pipes[pipe];
        if at.client_gone {
            return;
        }
        let jitter_us = rng.below(at.delay_us / 2 + 2);
        at.up_free_us = at.up_free_us.max(now_us + at.delay_us + jitter_us);
        queue.push(at.up_free_us, Event::Up(pipe));
        at.up.push_back(bytes);
    }

    /// Bytes reach the server.
    pub fn up(&mut self, pipe: usize) {
        let at = &mut self.pipes[pipe];
        if let Some(bytes) = at.up.pop_front()
            && at.ended.is_none()
        {
            at.socket.extend(bytes);
        }
    }

    /// The client closes. With `reset`, what is in flight is lost, both ways.
    pub fn close(&mut self, pipe: usize, reset: bool, (now_us, queue, rng): (u64, &mut Queue, &mut Rng)) {
        let at = &mut self.pipes[pipe];
        if at.client_gone {
            return;
        }
        at.client_gone = true;
        self.cuts += u64::from(reset);
        if reset {
            let kept = rng.below(at.up.len() as u64 + 1) as usize;
            at.up.truncate(kept);
        }
        at.up_free_us = at.up_free_us.max(now_us + rng.between(1, 2 * at.delay_us));
        let cause = if reset { Cause::Error } else { Cause::Eof };
        queue.push(at.up_free_us, Event::UpEnd(pipe, cause));
    }

    /// The client forgets the connection without a word: the server may find out, or not.
    pub fn abandon(&mut self, pipe: usize) {
        self.pipes[pipe].client_gone = true;
    }

    /// The end of the client's stream reaches the server.
    pub fn up_end(&mut self, pipe: usize, cause: Cause, rng: &mut Rng) {
        let at = &mut self.pipes[pipe];
        at.ended = Some(cause);
        if cause == Cause::Error && !at.socket.is_empty() && rng.percent(50) {
            at.socket.clear();
        }
    }

    /// The server's shell has filled `sending`.
    pub fn send(&mut self, pipe: usize, (now_us, queue, rng): (u64, &mut Queue, &mut Rng)) {
        let at = &mut self.pipes[pipe];
        at.sent = 0;
        at.send_busy = true;
        queue.push(now_us + rng.between(1, 50), Event::Send(pipe));
    }

    /// A part of the server's send leaves. True: the send is complete.
    pub fn send_part(&mut self, pipe: usize, (now_us, queue, rng): (u64, &mut Queue, &mut Rng)) -> bool {
        let at = &mut self.pipes[pipe];
        if !at.send_busy {
            return false;
        }
        let left = at.sending.len() - at.sent;
        if at.client_gone || left == 0 {
            at.sending.clear();
            at.send_busy = false;
            return true;
        }
        let room = at.window.saturating_sub(at.down_bytes);
        if room == 0 {
            at.send_blocked = true;
            return false;
        }
        let most = left.min(room) as u64;
        let part = if rng.percent(60) { most } else { rng.between(1, most) } as usize;
        let bytes = at.sending[at.sent..at.sent + part].to_vec();
        at.sent += part;
        at.down_bytes += part;
        at.down.push_back(bytes);
        let jitter_us = rng.below(at.delay_us / 2 + 2);
        at.down_free_us = at.down_free_us.max(now_us + at.delay_us + jitter_us);
        queue.push(at.down_free_us, Event::Down(pipe));
        queue.push(now_us + rng.between(1, 50), Event::Send(pipe));
        false
    }

    /// Bytes reach the client, who reads them.
    pub fn down(&mut self, pipe: usize, (now_us, queue): (u64, &mut Queue)) -> Option<Vec<u8>> {
        let at = &mut self.pipes[pipe];
        let bytes = at.down.pop_front()?;
        at.down_bytes -= bytes.len();
        if core::mem::take(&mut at.send_blocked) {
            queue.push(now_us + 1, Event::Send(pipe));
        }
        (!at.client_gone).then_some(bytes)
    }

    /// The server ends the connection after what it has sent.
    pub fn server_end(&mut self, pipe: usize, (now_us, queue): (u64, &mut Queue)) {
        let at = &mut self.pipes[pipe];
        at.down_free_us = at.down_free_us.max(now_us + at.delay_us);
        queue.push(at.down_free_us, Event::DownEnd(pipe));
    }
}
