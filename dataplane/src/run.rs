//! The data plane as a process: from a configuration to running shards, and to the end. Owns the main thread, which
//! starts everything and then waits for a signal or the end of a shard.
//!
//! Always true: a shard that ends unasked ends the process with an error; nobody is accepted before every shard has
//! taken over what the logs held; a stop takes less than [`STOP_MAX`], whatever clients do.

use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::{BuildHasher, Hasher},
    io::{self, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use broker::{
    journal::{Dealt, Standing},
    surface::Terms,
};
use contract::{
    config::{self, Config},
    ids::ShardId,
};
use rustix::process::Resource;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ},
    iterator::Signals,
};

use crate::{
    addresses::Addresses,
    announce::Announcer,
    auth::Doors,
    brain::Broker,
    connections::Connections,
    control::{Control, Scene, pass_on},
    data_dir::DataDir,
    dial::{Dials, Resolver},
    events::Log,
    executor::{self, Pin},
    listener::{Listener, Opened},
    listeners::{Listeners, Plan},
    logs::{self, Logs, Refused, Running},
    mailbox::{self, Post},
    memory,
    port::{Note, Port},
    probe,
    shard::{Clock, Parts, REPORT_US, Shard},
    trace::{self, Tracer},
};

/// What `sysexits.h` calls a configuration error: the system lacks something that only an operator can give.
const EXIT_UNAVAILABLE: u8 = 78;
/// A shard needs 3 s at most for clients that do not take their farewell.
const STOP_MAX: Duration = Duration::from_millis(4500);
/// How long the last log lines may take to be written.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What ended a data plane that was not asked to end.
enum Failure {
    /// This machine cannot run shards.
    Unavailable(probe::Unavailable),
    /// The logs that are there cannot be used as they are.
    Unusable(String),
    /// Anything else, as one line for the operator.
    Other(String),
}

impl Failure {
    fn other(error: impl fmt::Display) -> Failure {
        Failure::Other(error.to_string())
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Failure {
        match refused {
            Refused::Unusable(line) => Failure::Unusable(line),
            Refused::Failed(line) => Failure::Other(line),
        }
    }
}

/// What the main thread waits for.
enum News {
    /// What the logs held was read.
    Read(Box<Result<Option<Logs>, Refused>>),
    /// A shard has come so far in its start.
    Stands(u16, Standing),
    /// What one log held is on the disk.
    Flushed,
    Ended(executor::Ended),
    /// The operator has changed the configuration, or a file that it names.
    Reload,
    Stop,
}

/// Reads the configuration anew at SIGHUP, or says why it cannot be used.
pub type Reload = Box<dyn Fn() -> Result<Config, String> + Send>;

/// Runs the data plane until a signal or a failure. At SIGHUP, `reload` says what holds now of the part that is not in a View. With `report_ready` it prints a line of JSON on stdout when
/// every listener accepts, and when they may have changed: the listeners with their real addresses, the number of shards, the process id.
/// The caller has prepared and locked the data directory and started the log.
pub fn run(config: Config, reload: Reload, report_ready: bool) -> ExitCode {
    report_panics();
    match serve(&config, &reload, report_ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Unavailable(missing)) => {
            tracing::error!("{missing}");
            ExitCode::from(EXIT_UNAVAILABLE)
        }
        Err(Failure::Unusable(line)) => {
            tracing::error!("{line}");
            ExitCode::from(EXIT_UNAVAILABLE)
        }
        Err(Failure::Other(line)) => {
            tracing::error!("{line}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: &Config, reload: &Reload, report_ready: bool) -> Result<(), Failure> {
    let usable = executor::usable_cpus().map_err(Failure::other)?;
    let shards = match config.dataplane.shards {
        0 => usable.len().min(config::SHARDS_MAX as usize) as u16,
        shards => shards,
    };
    probe::check(shards).map_err(Failure::Unavailable)?;
    let cores = executor::placement(&pin(config), shards, &usable).map_err(Failure::Other)?;
    let (news, heard) = mpsc::channel();
    watch_signals(news.clone()).map_err(Failure::other)?;

    let data_dir = DataDir::open(Path::new(&config.node.data_dir)).map_err(Failure::other)?;
    let incarnation = data_dir.next_incarnation().map_err(Failure::other)?;
    let view = data_dir.view().unwrap_or_else(|error| {
        tracing::error!(%error, "serving by the configuration file until control sends a View");
        None
    });
    let descriptors = probe::raise(Resource::Nofile).current;
    let durability = config.durability.mode.as_str();
    tracing::info!(shards, ?cores, descriptors, incarnation, durability, "data plane starts");

    let view_limits = view.as_ref().and_then(|view| view.limits()).map(|page| page.limits.clone());
    let (mut listeners, of_shards) = Listeners::open(config, shards).map_err(Failure::Other)?;
    let addresses = Addresses::new(&config.limits);
    let ports = (0..shards).map(|_| Port::new().map(Arc::new)).collect::<io::Result<Arc<[_]>>>();
    let ports = ports.map_err(Failure::other)?;
    // Tables are hashed differently in each process, so that nobody can prepare collisions.
    let seed = RandomState::new().build_hasher().finish();
    if let Some(view) = &view {
        // The first turn reads it.
        pass_on(view, None, &ports, &addresses, seed);
    }
    let mut logs = read_logs(config, shards, seed, &news, &heard)?;
    let dealt = logs.as_mut().map(Logs::take_dealt);
    let clock = Clock::start();
    let (log, writer) = Log::start().map_err(Failure::other)?;
    let traces = trace::Sink::start(Path::new(&config.node.data_dir)).map_err(Failure::other)?;
    let mut doors = Doors::new(config, listeners.names(), &ports, clock, seed).map_err(Failure::other)?;
    // Each shard reads its notes before its first connection.
    doors.read(config).map_err(Failure::Unusable)?;
    let flushed = news.clone();
    // The main thread ends last.
    let flushed = move || drop(flushed.send(News::Flushed));
    let logs = logs.map(|logs| logs.start(&ports, clock, &log, flushed)).transpose();
    let mut logs = logs.map_err(Failure::other)?;
    let start = Start {
        config,
        shards,
        incarnation,
        ports: &ports,
        log: &log,
        traces: &traces,
        news: &news,
        doors: &doors,
        terms: listeners.terms(),
        addresses: &addresses,
        clock,
        seed,
    };
    start.shards(cores, of_shards, dealt)?;
    come_up(&heard, &ports, logs.as_mut())?;
    let memory = Arc::<memory::Bounds>::default();
    memory.set(view_limits.as_ref().unwrap_or(&config.limits));
    let stop_memory = memory::Watch::start(memory.clone(), &ports).map_err(Failure::other)?;
    let scene = Scene {
        data_dir,
        view: view.unwrap_or_default(),
        ports: ports.clone(),
        listeners: listeners.shown(),
        addresses: addresses.clone(),
        seed,
        sys_every: Duration::from_millis(u64::from(config.sys_topics.interval_ms)),
        memory,
        lost: [log.lost(), traces.lost()],
        policy_stale: doors.stale(),
    };
    let stop_control = start_control(scene).map_err(Failure::other)?;
    if report_ready {
        say_ready(listeners.opened(), shards).map_err(Failure::other)?;
    }
    for Opened { kind, name, address, .. } in listeners.opened() {
        tracing::info!(kind = kind.as_str(), listener = name, %address, "listening");
    }
    let ended = await_end(&heard, &ports, logs, &mut || {
        read_again(reload(), &mut doors, &mut listeners, &ports);
        if report_ready && let Err(error) = say_ready(listeners.opened(), shards) {
            tracing::error!(%error, "whoever started the data plane is not told where it listens now");
        }
    });
    drop((stop_control, stop_memory));
    drop(log);
    writer.finish(LAST_WORDS);
    ended
}

/// Reads the logs on a thread of its own, so that a stop need not wait for it.
fn read_logs(
    config: &Config,
    shards: u16,
    seed: u64,
    news: &mpsc::Sender<News>,
    heard: &mpsc::Receiver<News>,
) -> Result<Option<Logs>, Failure> {
    let (config, news) = (config.clone(), news.clone());
    let read = move || drop(news.send(News::Read(Box::new(logs::prepare(&config, shards, seed)))));
    thread::Builder::new().name("recovery".to_owned()).spawn(read).map_err(Failure::other)?;
    loop {
        match heard.recv().map_err(Failure::other)? {
            News::Read(logs) => return Ok((*logs)?),
            News::Stop => return Err(stopped()),
            News::Stands(..) | News::Flushed | News::Ended(_) | News::Reload => {}
        }
    }
}

fn stopped() -> Failure {
    Failure::Other("stopped while starting".to_owned())
}

fn pin(config: &Config) -> Pin {
    match &config.dataplane.pin {
        config::Pin::Auto => Pin::Auto,
        config::Pin::Off => Pin::Off,
        config::Pin::List(cpus) => Pin::List(cpus.iter().map(|cpu| usize::from(*cpu)).collect()),
    }
}

/// The configuration was changed, or a file that it names: passwords, rules and listeners follow it. What is wrong is said,
/// and leaves what it is about as it was.
fn read_again(read: Result<Config, String>, doors: &mut Doors, listeners: &mut Listeners, ports: &[Arc<Port>]) {
    let plan = match &read {
        Ok(config) => listeners.plan(config),
        Err(why) => Err(why.clone()),
    };
    // Who may come in at a new listener is known before it opens.
    doors.read_again(&read, plan.as_ref().map_or(listeners.names(), Plan::names));
    match (read, plan) {
        (Ok(config), Ok(plan)) => listeners.carry_out(&config, plan, ports),
        (_, Err(why)) => tracing::error!("listeners stay as they were: {why}"),
        (Err(_), Ok(_)) => {}
    }
}

/// What all shards are started with.
struct Start<'a> {
    config: &'a Config,
    shards: u16,
    incarnation: u64,
    ports: &'a Arc<[Arc<Port>]>,
    log: &'a Log,
    traces: &'a trace::Sink,
    news: &'a mpsc::Sender<News>,
    doors: &'a Doors,
    terms: Arc<[Terms]>,
    addresses: &'a Arc<Addresses>,
    clock: Clock,
    seed: u64,
}

impl Start<'_> {
    fn shards(
        &self,
        cores: Vec<Option<usize>>,
        listeners: Vec<Vec<Listener>>,
        dealt: Option<Vec<Dealt>>,
    ) -> Result<(), Failure> {
        let resolver = Resolver::start().map_err(Failure::other)?;
        let posts = mailbox::posts(self.shards, usize::from(self.config.limits.mailbox_slots));
        // Without a log there is nothing to take over.
        let mut dealt = dealt.into_iter().flatten();
        for (me, ((core, listeners), post)) in (0..).zip(cores.into_iter().zip(listeners).zip(posts)) {
            let parts = self.parts(me, listeners, post, resolver.clone());
            let settings = self.settings(me);
            let dealt = dealt.next();
            let ended = self.news.clone();
            let make = move || {
                let mut shard = Shard::new(Broker::new(settings), parts)?;
                if let Some(dealt) = dealt {
                    shard.restore(dealt);
                }
                Ok(shard)
            };
            executor::start(me, core, move |end| drop(ended.send(News::Ended(end))), make).map_err(Failure::Other)?;
        }
        Ok(())
    }

    fn parts(&self, me: u16, listeners: Vec<Listener>, post: Post, resolver: Resolver) -> Parts {
        let limits = &self.config.limits;
        let dials = Dials::new(resolver, self.ports[usize::from(me)].clone());
        let (connections_max, read_bytes_max) = (limits.connections_max as usize, limits.turn_read_bytes as usize);
        let news = self.news.clone();
        let (events, addresses) = (self.log.of_shard(me), self.addresses.clone());
        let mut connections = Connections::new(connections_max, read_bytes_max, dials, events, addresses);
        connections.ask_through(self.doors.asker(me));
        let announcer = Announcer::new(&self.config.node.name, &self.config.sys_events);
        connections.tell_through(announcer, Tracer::new(self.traces.clone()));
        Parts {
            me,
            connections,
            listeners,
            post,
            clock: self.clock,
            ports: self.ports.clone(),
            report_every_us: REPORT_US,
            // The main thread ends last.
            tell_standing: Box::new(move |standing| drop(news.send(News::Stands(me, standing)))),
        }
    }

    fn settings(&self, me: u16) -> broker::Settings {
        let config = self.config;
        broker::Settings {
            shard: ShardId(me),
            shards: self.shards,
            node: config.node.name.clone(),
            cluster: config.cluster.name.clone(),
            incarnation: self.incarnation,
            mqtt: config.mqtt.clone(),
            limits: config.limits.clone(),
            retainer: config.retainer.clone(),
            durability: config.durability.clone(),
            links: config.cluster.links.clone(),
            seed: self.seed,
            flapping_detect: config.flapping_detect.clone(),
            listeners: self.terms.clone(),
            plant: None,
        }
    }
}

/// Serves control on a thread of its own; that ends when what is returned is dropped.
fn start_control(scene: Scene) -> io::Result<UnixStream> {
    let control = Control::listen(scene)?;
    let (stop, stopped) = UnixStream::pair()?;
    thread::Builder::new().name("control".to_owned()).spawn(move || control.run(&stopped))?;
    Ok(stop)
}

/// Brings all shards to the point where connections may be accepted, and lets them.
fn come_up(heard: &mpsc::Receiver<News>, ports: &[Arc<Port>], mut logs: Option<&mut Running>) -> Result<(), Failure> {
    let mut standings = vec![Standing::Restoring; ports.len()];
    let mut unflushed = if logs.is_some() { ports.len() } else { 0 };
    let mut await_all = |standing: Standing, flushed: bool| {
        while standings.iter().any(|stands| *stands < standing) || (flushed && unflushed > 0) {
            match heard.recv().map_err(Failure::other)? {
                News::Stands(shard, stands) => standings[usize::from(shard)] = stands,
                News::Flushed => unflushed -= 1,
                News::Ended(ended) => return Err(unasked(ended)),
                News::Stop => return Err(stopped()),
                // What is read now was read a moment ago.
                News::Read(_) | News::Reload => {}
            }
        }
        Ok(())
    };
    let post = |note: fn() -> Note| ports.iter().for_each(|port| drop(port.post(note())));
    await_all(Standing::Restored, false)?;
    if let Some(logs) = &mut logs {
        logs.taken_over()?;
    }
    post(|| Note::Replay);
    // What was found may have been in memory only, and a power loss would take it from those who rely on it.
    await_all(Standing::Ready, true)?;
    post(|| Note::Accept);
    Ok(())
}

fn say_ready(opened: &[Opened], shards: u16) -> io::Result<()> {
    let listeners: Vec<_> = opened
        .iter()
        .map(|opened| serde_json::json!({"kind": opened.kind.as_str(), "name": opened.name, "address": opened.address.to_string()}))
        .collect();
    let ready = serde_json::json!({"listeners": listeners, "shards": shards, "pid": std::process::id()});
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{ready}")?;
    stdout.flush()
}

/// Waits for the end: a shard's, which is a failure, or that of all after a stop.
fn await_end(
    heard: &mpsc::Receiver<News>,
    ports: &[Arc<Port>],
    logs: Option<Running>,
    reload: &mut dyn FnMut(),
) -> Result<(), Failure> {
    loop {
        match heard.recv().map_err(Failure::other)? {
            News::Ended(ended) => return Err(unasked(ended)),
            News::Stop => break,
            News::Reload => reload(),
            News::Stands(..) | News::Flushed | News::Read(_) => {}
        }
    }
    tracing::info!("draining");
    let end = Instant::now() + STOP_MAX;
    ports.iter().for_each(|port| drop(port.post(Note::Drain)));
    let mut running = ports.len();
    while running > 0 {
        match heard.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(News::Ended(executor::Ended { shard, result })) => {
                result.map_err(|error| Failure::Other(format!("shard {shard} failed while draining: {error}")))?;
                running -= 1;
            }
            Ok(_) => {}
            Err(_) => {
                tracing::warn!(running, "shards are still busy; stopping without them");
                break;
            }
        }
    }
    if let Some(logs) = logs {
        logs.finish(end);
    }
    tracing::info!("stopped");
    Ok(())
}

fn unasked(ended: executor::Ended) -> Failure {
    let executor::Ended { shard, result } = ended;
    let why = result.err().unwrap_or_else(|| "it came to its end".to_owned());
    Failure::Other(format!("shard {shard} ended: {why}"))
}

/// SIGTERM and SIGINT drain; a supervised data plane is not in the terminal's process group, so Ctrl-C reaches it
/// through its supervisor only. SIGHUP has passwords, rules, certificates and listeners read again; what else can change live
/// comes in a View. SIGXFSZ must not end us: a file that may not grow is a full disk to us.
fn watch_signals(news: mpsc::Sender<News>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGXFSZ])?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            // The main thread ends last.
            let _ = match signal {
                SIGTERM | SIGINT => news.send(News::Stop),
                SIGHUP => news.send(News::Reload),
                _ => Ok(()),
            };
        }
    })?;
    Ok(())
}

/// A panic is a bug of ours, and what a shard thinks is then worth nothing: say where, and end the process.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        let shard = executor::current_shard().map_or(String::new(), |shard| format!(", shard {shard}"));
        let message = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map_or(String::new(), |place| format!(" at {place}"));
        // Not through `tracing`: it might be what panicked. One write, so that lines of threads do not mix.
        let line = format!("ringmq data plane panicked on thread {thread}{shard}: {message}{place}\n");
        let _ = io::stderr().write_all(line.as_bytes());
        std::process::abort();
    }));
}
