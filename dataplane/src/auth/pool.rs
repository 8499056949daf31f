//! The threads that are asked who a client is and what it may do, and the bounded queues before them. Shards put questions
//! in and go on; each answer comes back as a note. There are two kinds: those that compute, and those that wait for servers, so
//! that a server that is slow keeps nobody from proving a password. Always true: a question that finds no room is refused at
//! once; one about a client whose time is over is not answered, one about a wish always is.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    thread,
    time::Duration,
};

use broker::{
    admission::Ask,
    exchange::{Memory, Round},
    inquiry::Wish,
    surface::ConnId,
};
use crossbeam::channel::{Receiver, Sender, bounded};
use mqtt::types::Reason;

use super::{
    policy::{Chain, Threads},
    server::Wanted,
};
use crate::{
    port::{Note, Port},
    shard::Clock,
};

/// Who is this?
#[derive(Clone, Debug)]
pub(crate) struct Question {
    shard: u16,
    conn: ConnId,
    pub(crate) client: String,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Vec<u8>>,
    pub(crate) listener: u16,
    pub(crate) peer: SocketAddr,
    until_us: u64,
}

#[cfg(test)]
impl Question {
    pub(super) fn about(client: &str, username: Option<&str>, password: Option<&str>) -> Question {
        Question {
            shard: 0,
            conn: ConnId { index: 0, generation: 0 },
            client: client.to_owned(),
            username: username.map(str::to_owned),
            password: password.map(|password| password.as_bytes().to_vec()),
            listener: 0,
            peer: SocketAddr::from(([127, 0, 0, 1], 1)),
            until_us: u64::MAX,
        }
    }
}

/// One step of an enhanced authentication.
struct Step {
    shard: u16,
    conn: ConnId,
    method: String,
    data: Vec<u8>,
    memory: Option<Memory>,
    until_us: u64,
}

/// May it do this?
struct Permission {
    shard: u16,
    conn: ConnId,
    number: u64,
    wanted: Wanted,
    since_us: u64,
}

/// What waits for a thread.
enum Job {
    /// A client, the chain that has begun with it, and the place where it goes on.
    Who(Box<(Question, Option<Arc<Chain>>, usize)>),
    Step(Box<Step>),
    May(Box<Permission>),
}

/// The way from a shard to the threads.
#[derive(Clone)]
pub(crate) struct Asker {
    shard: u16,
    desk: Desk,
}

/// The two queues.
#[derive(Clone)]
struct Desk {
    computing: Sender<Job>,
    waiting: Sender<Job>,
}

impl Desk {
    /// Gives the job back if too many wait.
    fn put(&self, threads: Threads, job: Job) -> Result<(), Job> {
        let queue = match threads {
            Threads::Computing => &self.computing,
            Threads::Waiting => &self.waiting,
        };
        queue.try_send(job).map_err(|full| full.into_inner())
    }
}

impl Asker {
    /// Puts a question. False: too many wait.
    pub(crate) fn ask(&self, conn: ConnId, ask: &Ask<'_>) -> bool {
        let question = Question {
            shard: self.shard,
            conn,
            client: ask.client.to_owned(),
            username: ask.username.map(str::to_owned),
            password: ask.password.map(<[u8]>::to_vec),
            listener: ask.listener,
            peer: ask.peer,
            until_us: ask.until_us,
        };
        self.desk.put(Threads::Computing, Job::Who(Box::new((question, None, 0)))).is_ok()
    }

    /// Puts a step. False: too many wait.
    pub(crate) fn step(&self, conn: ConnId, round: Round<'_>) -> bool {
        let Round { method, data, memory, until_us } = round;
        let (method, data) = (method.to_owned(), data.to_owned());
        let step = Step { shard: self.shard, conn, method, data, memory, until_us };
        self.desk.put(Threads::Computing, Job::Step(Box::new(step))).is_ok()
    }

    /// Puts a wish, which is made now. False: too many wait.
    pub(crate) fn permit(&self, conn: ConnId, number: u64, wish: &Wish<'_>, since_us: u64) -> bool {
        let permission = Permission { shard: self.shard, conn, number, wanted: Wanted::of(wish), since_us };
        self.desk.put(Threads::Waiting, Job::May(Box::new(permission))).is_ok()
    }
}

/// What the threads share.
struct Shared {
    chain: RwLock<Arc<Chain>>,
    ports: Arc<[Arc<Port>]>,
    clock: Clock,
    desk: Desk,
}

/// The threads, as the rest of the process sees them. They end with the process.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// Threads that wait for servers, and their queue, until the first server is named.
    unstarted: Option<(u8, Receiver<Job>)>,
}

impl Pool {
    /// Starts the threads that compute; a pair says how many threads there are, and how many questions may wait for them.
    pub(crate) fn start(
        computing: (u8, u32),
        waiting: (u8, u32),
        ports: &Arc<[Arc<Port>]>,
        clock: Clock,
    ) -> io::Result<Pool> {
        let (to_compute, computed) = bounded(computing.1 as usize);
        let (to_wait, waited) = bounded(waiting.1 as usize);
        let desk = Desk { computing: to_compute, waiting: to_wait };
        let chain = RwLock::new(Arc::new(Chain::nobody()));
        let shared = Arc::new(Shared { chain, ports: ports.clone(), clock, desk });
        spawn(&shared, Threads::Computing, computing.0, &computed)?;
        Ok(Pool { shared, unstarted: Some((waiting.0, waited)) })
    }

    /// The way here from a shard.
    pub(crate) fn asker(&self, shard: u16) -> Asker {
        Asker { shard, desk: self.shared.desk.clone() }
    }

    /// Whom to ask from now on. An error changes nothing.
    pub(crate) fn set(&mut self, chain: Chain) -> io::Result<()> {
        if chain.waits()
            && let Some((threads, queue)) = &self.unstarted
        {
            spawn(&self.shared, Threads::Waiting, *threads, queue)?;
            self.unstarted = None;
        }
        *self.shared.chain.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(chain);
        Ok(())
    }
}

fn spawn(shared: &Arc<Shared>, kind: Threads, threads: u8, queue: &Receiver<Job>) -> io::Result<()> {
    let name = match kind {
        Threads::Computing => "auth",
        Threads::Waiting => "hook",
    };
    for index in 0..threads {
        let (shared, queue) = (shared.clone(), queue.clone());
        thread::Builder::new().name(format!("{name}-{index}")).spawn(move || {
            for job in queue {
                shared.answer(kind, job);
            }
        })?;
    }
    Ok(())
}

impl Shared {
    fn answer(&self, kind: Threads, job: Job) {
        let now_us = self.clock.now().mono_us;
        let chain = || self.chain.read().unwrap_or_else(PoisonError::into_inner).clone();
        match job {
            // Its connection has been refused, or has gone.
            Job::Who(who) if now_us >= who.0.until_us => {}
            Job::Step(step) if now_us >= step.until_us => {}
            Job::Who(who) => {
                let (question, begun, at) = *who;
                self.judge(question, begun.unwrap_or_else(chain), at, kind);
            }
            Job::Step(step) => {
                let (Step { shard, conn, method, data, memory, .. }, chain) = (*step, chain());
                let judged = chain.step(&method, &data, memory);
                self.post(shard, Note::Exchanged { conn, policy: chain.number, judged });
            }
            Job::May(permission) => {
                let (Permission { shard, conn, number, wanted, since_us }, chain) = (*permission, chain());
                let heard = chain.permits(&wanted, Duration::from_micros(now_us.saturating_sub(since_us)));
                self.post(shard, Note::Permitted { conn, number, policy: chain.number, heard });
            }
        }
    }

    /// Goes on with a client, and leaves it to the other threads where these may not.
    fn judge(&self, question: Question, chain: Arc<Chain>, at: usize, kind: Threads) {
        let verdict = match chain.judge(&question, at, kind) {
            Ok(verdict) => verdict,
            Err(at) => {
                let other = match kind {
                    Threads::Computing => Threads::Waiting,
                    Threads::Waiting => Threads::Computing,
                };
                let (shard, conn, policy) = (question.shard, question.conn, chain.number);
                if self.desk.put(other, Job::Who(Box::new((question, Some(chain), at)))).is_err() {
                    let verdict = Err(Reason::QuotaExceeded);
                    self.post(shard, Note::Authenticated { conn, policy, verdict });
                }
                return;
            }
        };
        let (conn, policy) = (question.conn, chain.number);
        self.post(question.shard, Note::Authenticated { conn, policy, verdict });
    }

    fn post(&self, shard: u16, note: Note) {
        if let Some(port) = self.ports.get(usize::from(shard)) {
            // A note of this kind is always taken: there are at most as many as questions.
            drop(port.post(note));
        }
    }
}
