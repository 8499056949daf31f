//! The executable: `ringmq start` supervises `ringmq control` and `ringmq dataplane`, each of which also runs alone;
//! `ringmq ctl` asks a running node, `ringmq config` explains its configuration, `ringmq passwd` makes its
//! passwords, `ringmq log` looks after its log.

mod child;
mod demo;
mod lock;
mod log;
mod notify;
mod passwd;
mod ready;
mod settings;
mod supervisor;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

use clap::{Parser, Subcommand};
use contract::{
    config::{self, Loaded},
    ctl::Ask,
    trace::Payload,
};
use control::{EXIT_CONFIG, logging};
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
use signal_hook::{
    consts::{SIGHUP, SIGINT},
    iterator::Signals,
};
use tracing::error;

/// An MQTT broker that links clusters.
#[derive(Parser)]
#[command(version, about, subcommand_required = false)]
struct Line {
    /// The configuration file; without one, everything is default.
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Start a node: both processes, supervised (this is also what no command means).
    Start,
    /// Show two linked clusters on loopback.
    Demo {
        /// End after the show instead of leaving both clusters up.
        #[arg(long)]
        once: bool,
    },
    /// Run the data plane alone.
    Dataplane(Supervised),
    /// Run the control process alone.
    Control(Supervised),
    /// Ask the running node.
    Ctl {
        #[command(subcommand)]
        question: Question,
    },
    /// Explain the configuration.
    Config {
        #[command(subcommand)]
        question: About,
    },
    /// Set the password of a user in a password file, or remove a user (the file may be mosquitto's, and mosquitto can read it).
    Passwd(passwd::Asked),
    /// Look at the log of a node that does not run, or repair it.
    Log {
        #[command(subcommand)]
        task: log::Task,
        /// The data directory; without it, that of the configuration.
        #[arg(long, global = true, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
}

#[derive(clap::Args)]
struct Supervised {
    /// Process id of the supervisor, whose end is ours.
    #[arg(long, hide = true, value_name = "PID")]
    supervisor: Option<i32>,
}

#[derive(Subcommand)]
enum Question {
    /// How the node goes.
    Status {
        /// For machines.
        #[arg(long)]
        json: bool,
    },
    /// Read the configuration again, and every file that it names.
    Reload,
    /// What servers have said clients may do.
    #[command(subcommand)]
    Authz(Authz),
    /// Administrators, who may change something over HTTP.
    #[command(subcommand)]
    Admin(Admin),
    /// API keys, with which programs may change something over HTTP.
    #[command(subcommand)]
    Key(Key),
    /// Ban a client id, a user name, or an address; whoever is connected is disconnected.
    Ban {
        #[command(flatten)]
        banned: Banned,
        /// For so many seconds; without it, until it is lifted.
        #[arg(long, value_name = "SECONDS")]
        r#for: Option<u64>,
        /// Why.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Lift a ban.
    Unban(Banned),
    /// Show who is banned.
    Banned,
    /// Traces: the packets of some clients in a file.
    #[command(subcommand)]
    Trace(TraceTask),
}

#[derive(clap::Args)]
struct Banned {
    /// `clientid`, `username` or `peerhost`.
    kind: String,
    /// The client id, the user name, or the address or network (10.0.0.0/8).
    who: String,
}

#[derive(Subcommand)]
enum TraceTask {
    /// Begin one.
    Start {
        name: String,
        #[command(flatten)]
        subject: Traced,
        /// How long: 10m, 2h, 1d.
        #[arg(long, value_name = "TIME")]
        duration: Option<String>,
        /// How payloads are shown.
        #[arg(long, default_value = "hidden", value_parser = ["hidden", "text", "hex"])]
        payload: String,
    },
    /// End one; what it has written stays.
    Stop { name: String },
    /// Remove one, and what it has written.
    Remove { name: String },
    /// Show all of them.
    List,
    /// Show what one has written lately.
    Show { name: String },
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Traced {
    /// The client with this id.
    #[arg(long, value_name = "ID")]
    clientid: Option<String>,
    /// Messages on topics that this filter matches.
    #[arg(long, value_name = "FILTER")]
    topic: Option<String>,
    /// All clients at this address.
    #[arg(long, value_name = "ADDRESS")]
    ip_address: Option<String>,
}

impl TraceTask {
    fn ask(self) -> Ask {
        match self {
            TraceTask::Start { name, subject, duration, payload } => {
                let Traced { clientid, topic, ip_address } = subject;
                let kinds = [("clientid", clientid), ("topic", topic), ("ip_address", ip_address)];
                // One of them is there: the command line sees to it.
                let given = kinds.into_iter().find_map(|(kind, value)| Some((kind.to_owned(), value?)));
                let (kind, value) = given.unwrap_or_default();
                let payload = match payload.as_str() {
                    "text" => Payload::Text,
                    "hex" => Payload::Hex,
                    _ => Payload::Hidden,
                };
                Ask::TraceStart { name, kind, value, duration, payload }
            }
            TraceTask::Stop { name } => Ask::TraceStop(name),
            TraceTask::Remove { name } => Ask::TraceRemove(name),
            TraceTask::List => Ask::Traces,
            TraceTask::Show { name } => Ask::TraceShow(name),
        }
    }
}

#[derive(Subcommand)]
enum Authz {
    /// Forget it; the configuration, and every file that it names, is read again.
    CacheClean,
}

#[derive(Subcommand)]
enum Admin {
    /// Add one, or give one another password, which is read from the terminal or from standard input.
    Add { name: String },
    /// Remove one.
    Remove { name: String },
    /// Show their names.
    List,
}

#[derive(Subcommand)]
enum Key {
    /// Make one, and show its secret this one time.
    Add { name: String },
    /// Remove one.
    Remove { name: String },
    /// Show their keys and names.
    List,
}

#[derive(Subcommand)]
enum About {
    /// Read everything, certificates included, and say what is wrong with it.
    Check,
    /// Show every setting, its effective value and who said it.
    Show,
    /// Print a file with every setting, its bounds and its default.
    Reference,
}

fn main() -> ExitCode {
    let line = Line::parse();
    let file = line.config.as_deref();
    match line.command.unwrap_or(Command::Start) {
        Command::Start => supervisor::run(file),
        Command::Demo { once } => demo::run(!once),
        Command::Dataplane(supervised) => dataplane_process(file, &supervised),
        Command::Control(supervised) => control_process(file, &supervised),
        Command::Ctl { question } => ctl(file, question),
        Command::Config { question } => explain(file, &question),
        Command::Passwd(asked) => passwd::run(&asked),
        Command::Log { task, data_dir } => log::run(file, data_dir.as_deref(), &task),
    }
}

fn dataplane_process(file: Option<&Path>, supervised: &Supervised) -> ExitCode {
    let config = match child_begins(file, supervised) {
        Ok(loaded) => loaded.config,
        Err(code) => return code,
    };
    let _lock = match hold(&config, lock::DATAPLANE) {
        Ok(lock) => lock,
        Err(code) => return code,
    };
    let path = file.map(Path::to_path_buf);
    let again = path.clone();
    let alone = supervised.supervisor.is_none();
    let signals = match Signals::new([SIGHUP, SIGINT]) {
        Ok(signals) => signals,
        Err(cause) => {
            error!("the data plane cannot receive signals: {cause}");
            return ExitCode::FAILURE;
        }
    };
    let thread = thread::Builder::new().name("signals".into()).spawn(move || follow(signals, path.as_deref(), alone));
    if let Err(cause) = thread {
        error!("the data plane cannot start a thread: {cause}");
        return ExitCode::FAILURE;
    }
    let reload = move || settings::load(again.as_deref()).map(|loaded| loaded.config);
    dataplane::run(config, Box::new(reload), true)
}

/// Signals that the data plane leaves to its process. What is live in it comes in the View; only its log lines follow
/// the file. Ctrl-C means a stop when there is no supervisor to decide that.
fn follow(mut signals: Signals, file: Option<&Path>, alone: bool) {
    for signal in signals.forever() {
        if signal == SIGINT {
            let stopped = if alone { kill_process(getpid(), Signal::TERM) } else { Ok(()) };
            if let Err(cause) = stopped {
                error!("the data plane cannot be stopped: {cause}");
            }
            continue;
        }
        match settings::load(file) {
            Ok(loaded) => logging::set_level(loaded.config.log.level),
            Err(why) => error!("the configuration is not reloaded: {why}"),
        }
    }
}

fn control_process(file: Option<&Path>, supervised: &Supervised) -> ExitCode {
    let loaded = match child_begins(file, supervised) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let _lock = match hold(&loaded.config, lock::CONTROL) {
        Ok(lock) => lock,
        Err(code) => return code,
    };
    let path = file.map(Path::to_path_buf);
    let supervisor = supervised.supervisor.and_then(Pid::from_raw);
    control::run(loaded, Box::new(move || settings::load(path.as_deref())), supervisor)
}

/// One process of each kind per data directory.
fn hold(config: &config::Config, name: &str) -> Result<lock::Lock, ExitCode> {
    let data_dir = settings::prepare_data_dir(config)?;
    lock::Lock::take(&data_dir, name).map_err(|why| {
        error!("{why}");
        ExitCode::FAILURE
    })
}

/// What both children do first: end with the supervisor, read the configuration, log.
fn child_begins(file: Option<&Path>, supervised: &Supervised) -> Result<Loaded, ExitCode> {
    if let Some(supervisor) = supervised.supervisor {
        // It may have died before we asked to be told, so look once more after asking.
        let bound = set_parent_process_death_signal(Some(Signal::KILL));
        if bound.is_err() || getppid() != Pid::from_raw(supervisor) {
            eprintln!("ringmq: the supervisor {supervisor} is gone");
            return Err(ExitCode::FAILURE);
        }
    }
    // We were started as /proc/self/exe, and would be `exe` in the process list.
    let _ = rustix::thread::set_name(c"ringmq");
    let loaded = settings::load_or_explain(file)?;
    logging::start(&loaded.config.log);
    Ok(loaded)
}

fn ctl(file: Option<&Path>, question: Question) -> ExitCode {
    let config = match settings::load_or_explain(file) {
        Ok(loaded) => loaded.config,
        Err(code) => return code,
    };
    let data_dir = Path::new(&config.node.data_dir);
    let done = match question {
        Question::Status { json } => return ctl_status(data_dir, json),
        Question::Admin(Admin::Add { name }) => passwd::read_password()
            .and_then(|password| control::ctl::order(data_dir, &Ask::AdminAdd { name, password })),
        Question::Reload | Question::Authz(Authz::CacheClean) => control::ctl::order(data_dir, &Ask::Reload),
        Question::Admin(Admin::Remove { name }) => control::ctl::order(data_dir, &Ask::AdminRemove(name)),
        Question::Admin(Admin::List) => control::ctl::order(data_dir, &Ask::Admins),
        Question::Key(Key::Add { name }) => control::ctl::order(data_dir, &Ask::KeyAdd(name)),
        Question::Key(Key::Remove { name }) => control::ctl::order(data_dir, &Ask::KeyRemove(name)),
        Question::Key(Key::List) => control::ctl::order(data_dir, &Ask::Keys),
        Question::Ban { banned: Banned { kind, who }, r#for, reason } => {
            let for_ms = r#for.map(|s| s.saturating_mul(1000));
            control::ctl::order(data_dir, &Ask::BanAdd { kind, who, reason, for_ms })
        }
        Question::Unban(Banned { kind, who }) => control::ctl::order(data_dir, &Ask::BanRemove { kind, who }),
        Question::Banned => control::ctl::order(data_dir, &Ask::Bans),
        Question::Trace(task) => control::ctl::order(data_dir, &task.ask()),
    };
    match done {
        Ok(said) => print(&said.iter().map(|line| format!("{line}\n")).collect::<String>(), ExitCode::SUCCESS),
        Err(why) => {
            eprintln!("ringmq: {why}");
            ExitCode::FAILURE
        }
    }
}

fn ctl_status(data_dir: &Path, json: bool) -> ExitCode {
    let status = match control::ctl::status(data_dir) {
        Ok(status) => status,
        Err(why) => {
            eprintln!("ringmq: {why}");
            return ExitCode::FAILURE;
        }
    };
    let text = if json {
        serde_json::to_string_pretty(&status).map_or_else(|cause| cause.to_string(), |text| text + "\n")
    } else {
        control::ctl::render(&status)
    };
    let code = if status.dataplane_up { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    print(&text, code)
}

fn explain(file: Option<&Path>, question: &About) -> ExitCode {
    if let About::Reference = question {
        return print(&config::reference(), ExitCode::SUCCESS);
    }
    match (settings::load_or_explain(file), question) {
        (Err(code), _) => code,
        (Ok(loaded), About::Show) => print(&loaded.show(), ExitCode::SUCCESS),
        (Ok(loaded), _) => {
            match dataplane::check_files(&loaded.config).and_then(|()| dataplane::auth::check(&loaded.config)) {
                Ok(()) => print("the configuration is valid\n", ExitCode::SUCCESS),
                Err(why) => refuse_config(&why),
            }
        }
    }
}

/// Prints what was asked for. A reader that closed its end, as `head` does, is no failure.
fn print(text: &str, code: ExitCode) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(cause) if cause.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => code,
    }
}

/// Says what is wrong with the configuration; a supervisor does not try again.
fn refuse_config(why: &str) -> ExitCode {
    for line in why.lines() {
        eprintln!("ringmq: {line}");
    }
    ExitCode::from(EXIT_CONFIG)
}
