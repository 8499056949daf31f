//! Who is let in, and what they may do: the part that reads files and takes time. Owned by the main thread, which makes
//! it at the start and asks it to read everything again at SIGHUP. The pure part is [`broker::admission`] and [`broker::access`].
//! Always true: shards and threads go by the last policy that could be read as a whole.

mod hook;
pub mod password;
pub mod password_file;
mod policy;
mod pool;
mod question;
pub mod scram;
pub mod scram_file;
mod server;
mod token;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use contract::config::{Config, ListenerKind, Mechanism};
use ring::rand::{SecureRandom, SystemRandom};

pub(crate) use self::pool::Asker;
use self::pool::Pool;
use crate::{
    data_dir,
    port::{Note, Port},
    shard::Clock,
};

/// Can the passwords and rules that a configuration names be read? An error names key, file and line.
pub fn check(config: &Config) -> Result<(), String> {
    policy::read(config, &policy::listeners(config), 0, (0, [0; 32])).map(drop)
}

/// In the data directory: what salts of SCRAM users that do not exist are made from.
const SCRAM_SECRET: &str = "scram.secret";

/// The doors of this node.
pub(crate) struct Doors {
    pool: Pool,
    ports: Arc<[Arc<Port>]>,
    seed: u64,
    data_dir: PathBuf,
    number: u64,
    /// By number.
    listeners: policy::Listeners,
    /// The last attempt to read failed.
    stale: Arc<AtomicBool>,
}

impl Doors {
    /// Starts the threads; nobody is told anything before [`Doors::read`].
    pub(crate) fn new(
        config: &Config,
        listeners: &[(ListenerKind, String)],
        ports: &Arc<[Arc<Port>]>,
        clock: Clock,
        seed: u64,
    ) -> io::Result<Doors> {
        let admission = &config.admission;
        let computing = (admission.threads, admission.queue_max);
        let waiting = (admission.hook_threads, admission.hook_queue_max);
        let pool = Pool::start(computing, waiting, ports, clock)?;
        Ok(Doors {
            pool,
            ports: ports.clone(),
            seed,
            data_dir: PathBuf::from(&config.node.data_dir),
            number: 0,
            listeners: listeners.to_vec(),
            stale: Arc::default(),
        })
    }

    /// The way to the threads from a shard.
    pub(crate) fn asker(&self, shard: u16) -> Asker {
        self.pool.asker(shard)
    }

    /// Whether the last attempt to read failed, for whoever tells the operator.
    pub(crate) fn stale(&self) -> Arc<AtomicBool> {
        self.stale.clone()
    }

    /// Reads everything again as the configuration says it now, for these listeners; what is wrong is said, and changes nothing.
    pub(crate) fn read_again(&mut self, config: &Result<Config, String>, listeners: &[(ListenerKind, String)]) {
        self.listeners = listeners.to_vec();
        let read = config.as_ref().map_err(Clone::clone).and_then(|config| self.read(config));
        self.stale.store(read.is_err(), Ordering::Relaxed);
        if let Err(why) = read {
            tracing::error!("passwords and rules stay as they were: {why}");
        }
    }

    /// Reads passwords and rules, and tells everybody. An error changes nothing.
    pub(crate) fn read(&mut self, config: &Config) -> Result<(), String> {
        let number = self.number + 1;
        let scram = config.authentication.iter().any(|one| one.enable && one.mechanism == Mechanism::Scram);
        let secret = if scram { secret(&self.data_dir)? } else { [0; 32] };
        let (policy, chain) = policy::read(config, &self.listeners, number, (self.seed, secret))?;
        // Whoever is judged by the new chain before its shard has the new policy is asked about again.
        self.pool.set(chain).map_err(|error| format!("no thread can be started: {error}"))?;
        self.number = number;
        let rules = policy.rules.as_ref().map_or(0, |rules| rules.len());
        let users = policy.credentials.len() + policy.method_credentials.len();
        tracing::info!(number, rules, users, "passwords and rules are in force");
        let policy = Arc::new(policy);
        for port in self.ports.iter() {
            if port.post(Note::Policy(policy.clone())).is_err() {
                tracing::error!("a shard does not read its notes; it goes on with older passwords and rules");
            }
        }
        Ok(())
    }
}

/// The secret of this data directory. It stays the same, or a restart would show which users do not exist.
fn secret(data_dir: &Path) -> Result<scram::Secret, String> {
    let path = data_dir.join(SCRAM_SECRET);
    let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    match fs::read(&path) {
        Ok(bytes) => bytes.try_into().map_err(|_| failed(&"it has not 32 bytes")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut secret = [0; 32];
            SystemRandom::new().fill(&mut secret).map_err(|_| failed(&"the system gives no random bytes"))?;
            data_dir::replace(data_dir, SCRAM_SECRET, &secret).map_err(|error| failed(&error))?;
            Ok(secret)
        }
        Err(error) => Err(failed(&error)),
    }
}
