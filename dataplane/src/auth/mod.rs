//! Who is let in, and what they may do: the part that reads files and takes time. Owned by the main thread, which makes
//! it at the start and asks it to read everything again at SIGHUP. The pure part is [`broker::admission`] and [`broker::access`].
//! Always true: shards and threads go by the last policy that could be read as a whole.

pub mod password;
pub mod password_file;
mod policy;
mod pool;
mod token;

use std::{io, sync::Arc};

use contract::config::Config;

pub(crate) use self::pool::Asker;
use self::pool::Pool;
use crate::{
    port::{Note, Port},
    shard::Clock,
};

/// The doors of this node.
pub(crate) struct Doors {
    pool: Pool,
    ports: Arc<[Arc<Port>]>,
    seed: u64,
    number: u64,
}

impl Doors {
    /// Starts the threads; nobody is told anything before [`Doors::read`].
    pub(crate) fn new(config: &Config, ports: &Arc<[Arc<Port>]>, clock: Clock, seed: u64) -> io::Result<Doors> {
        let admission = &config.admission;
        let pool = Pool::start(admission.threads, admission.queue_max, ports, clock)?;
        Ok(Doors { pool, ports: ports.clone(), seed, number: 0 })
    }

    /// The way to the threads from a shard.
    pub(crate) fn asker(&self, shard: u16) -> Asker {
        self.pool.asker(shard)
    }

    /// Reads passwords and rules, and tells everybody. An error changes nothing.
    pub(crate) fn read(&mut self, config: &Config) -> Result<(), String> {
        let number = self.number + 1;
        let (policy, chain) = policy::read(config, number, self.seed)?;
        self.number = number;
        // Whoever is judged by the new chain before its shard has the new policy is asked about again.
        self.pool.set(chain);
        let rules = policy.rules.as_ref().map_or(0, |rules| rules.len());
        tracing::info!(number, rules, users = policy.credentials.len(), "passwords and rules are in force");
        let policy = Arc::new(policy);
        for port in self.ports.iter() {
            if port.post(Note::Policy(policy.clone())).is_err() {
                tracing::error!("a shard does not read its notes; it goes on with older passwords and rules");
            }
        }
        Ok(())
    }
}
