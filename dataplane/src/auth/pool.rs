//! The threads that are asked who a client is, and the bounded queue before them. Shards put questions in and go on; each
//! verdict comes back as a note. Always true: a question that finds no room is refused at once; one whose time is over is not answered.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    thread,
};

use broker::{
    admission::Ask,
    exchange::{Memory, Round},
    surface::ConnId,
};
use crossbeam::channel::{Receiver, Sender, bounded};

use super::policy::Chain;
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

/// What waits for a thread.
enum Job {
    Who(Box<Question>),
    Step(Box<Step>),
}

/// The way from a shard to the threads.
#[derive(Clone)]
pub(crate) struct Asker {
    shard: u16,
    jobs: Sender<Job>,
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
        self.jobs.try_send(Job::Who(Box::new(question))).is_ok()
    }

    /// Puts a step. False: too many wait.
    pub(crate) fn step(&self, conn: ConnId, round: Round<'_>) -> bool {
        let Round { method, data, memory, until_us } = round;
        let (method, data) = (method.to_owned(), data.to_owned());
        let step = Step { shard: self.shard, conn, method, data, memory, until_us };
        self.jobs.try_send(Job::Step(Box::new(step))).is_ok()
    }
}

/// The threads, as the rest of the process sees them.
#[derive(Clone)]
pub(crate) struct Pool {
    jobs: Sender<Job>,
    chain: Arc<RwLock<Arc<Chain>>>,
}

impl Pool {
    /// Starts `threads`, before which `queue_max` questions may wait. They end with the last [`Asker`].
    pub(crate) fn start(threads: u8, queue_max: u32, ports: &Arc<[Arc<Port>]>, clock: Clock) -> io::Result<Pool> {
        let (jobs, waiting) = bounded(queue_max as usize);
        let chain = Arc::new(RwLock::new(Arc::new(Chain::nobody())));
        for index in 0..threads {
            let (waiting, chain, ports) = (waiting.clone(), chain.clone(), ports.clone());
            let name = format!("auth-{index}");
            thread::Builder::new().name(name).spawn(move || answer(&waiting, &chain, &ports, clock))?;
        }
        Ok(Pool { jobs, chain })
    }

    /// The way here from a shard.
    pub(crate) fn asker(&self, shard: u16) -> Asker {
        Asker { shard, jobs: self.jobs.clone() }
    }

    /// Whom to ask from now on.
    pub(crate) fn set(&self, chain: Chain) {
        *self.chain.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(chain);
    }
}

fn answer(waiting: &Receiver<Job>, chain: &RwLock<Arc<Chain>>, ports: &[Arc<Port>], clock: Clock) {
    for job in waiting {
        let until_us = match &job {
            Job::Who(question) => question.until_us,
            Job::Step(step) => step.until_us,
        };
        if clock.now().mono_us >= until_us {
            // Its connection has been refused, or has gone.
            continue;
        }
        let chain = chain.read().unwrap_or_else(PoisonError::into_inner).clone();
        let policy = chain.number;
        let (shard, note) = match job {
            Job::Who(question) => {
                let verdict = chain.judge(&question);
                (question.shard, Note::Authenticated { conn: question.conn, policy, verdict })
            }
            Job::Step(step) => {
                let Step { shard, conn, method, data, memory, .. } = *step;
                (shard, Note::Exchanged { conn, policy, judged: chain.step(&method, &data, memory) })
            }
        };
        if let Some(port) = ports.get(usize::from(shard)) {
            // A note of this kind is always taken: there are at most as many as questions.
            drop(port.post(note));
        }
    }
}
