//! `perf load | connect | queue | relay | compare | durable`: the command line of the package; each command is a module of the library.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use perf::load::plan::{Layout, Length, Pace, Plan};
use perf::load::report::Report;
use perf::wire::Version;
use perf::{compare, connect, durable, load, process, queue, relay};

#[derive(Parser)]
#[command(name = "perf", about = "Load generator, null relay and side-by-side measurement of MQTT brokers")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish, receive, verify, and measure one broker
    Load(LoadOptions),
    /// CPU per connection and memory per idle connection of one broker
    Connect(ConnectOptions),
    /// CPU and time until acknowledged of QoS 1 messages for a persistent session that is away
    Queue(QueueOptions),
    /// Serve as the null relay: fan-out on io_uring without any broker features
    Relay(RelayOptions),
    /// Run the same loads against RingMQ, mosquitto and the null relay, and print ratios
    Compare(compare::Options),
    /// Run the queue load against RingMQ in each durability mode and mosquitto with persistence
    Durable(durable::Options),
}

#[derive(Clone, Copy, ValueEnum)]
enum Mqtt {
    #[value(name = "3.1.1")]
    V311,
    #[value(name = "5")]
    V5,
}

#[derive(Args)]
struct Target {
    /// The broker
    #[arg(long, default_value = "127.0.0.1:1883")]
    address: SocketAddr,
    /// A process of the broker; its children are found (repeatable)
    #[arg(long = "pid")]
    pids: Vec<u32>,
    /// Protocol version
    #[arg(long, default_value = "3.1.1")]
    mqtt: Mqtt,
    /// Run the load on this CPU (repeatable)
    #[arg(long = "cpu")]
    cpus: Vec<usize>,
    /// Print one JSON line instead of the table row
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct LoadOptions {
    #[command(flatten)]
    target: Target,
    /// Name of the row
    #[arg(long, default_value = "load")]
    label: String,
    /// Who receives whose messages
    #[arg(long, default_value = "fan")]
    layout: Layout,
    /// Publishers
    #[arg(short = 'P', long, default_value_t = 1)]
    publishers: usize,
    /// Subscribers
    #[arg(short = 'S', long, default_value_t = 100)]
    subscribers: usize,
    /// QoS of messages and subscriptions
    #[arg(long, default_value_t = 0)]
    qos: u8,
    /// Bytes of every payload
    #[arg(long, default_value_t = 64)]
    payload_bytes: usize,
    /// Most messages published and not yet delivered to all their receivers
    #[arg(long, default_value_t = 256)]
    window: u32,
    /// Messages per second over all publishers, instead of the window
    #[arg(long, conflicts_with = "window")]
    rate: Option<u32>,
    /// QoS 1 and 2: most unacknowledged messages of one publisher
    #[arg(long, default_value_t = 64)]
    inflight: u16,
    /// Traffic before the measured phase
    #[arg(long, default_value_t = 500)]
    warmup_ms: u64,
    /// Length of the measured phase
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Messages to publish in the measured phase, instead of a time
    #[arg(long, conflicts_with = "seconds")]
    messages: Option<u64>,
    /// Threads of the load
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

#[derive(Args)]
struct ConnectOptions {
    #[command(flatten)]
    target: Target,
    /// Connections that are measured
    #[arg(long, default_value_t = 5000)]
    count: usize,
}

#[derive(Args)]
struct QueueOptions {
    #[command(flatten)]
    target: Target,
    /// Publishers
    #[arg(short = 'P', long, default_value_t = 1)]
    publishers: usize,
    /// Most unacknowledged messages of one publisher
    #[arg(long, default_value_t = 1)]
    inflight: u16,
    /// Bytes of every payload
    #[arg(long, default_value_t = 64)]
    payload_bytes: usize,
    /// Traffic before the measured phase
    #[arg(long, default_value_t = 500)]
    warmup_ms: u64,
    /// Length of the measured phase
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

#[derive(Args)]
struct RelayOptions {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:1884")]
    bind: SocketAddr,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Load(options) => run_load(options),
        Command::Connect(options) => run_connect(options),
        Command::Relay(options) => relay::serve(options.bind).map(|never| match never {}),
        Command::Compare(options) => compare::run(options),
        Command::Queue(options) => run_queue(&options),
        Command::Durable(options) => durable::run(options),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("perf: {error}");
            ExitCode::from(2)
        }
    }
}

impl Target {
    fn version(&self) -> Version {
        match self.mqtt {
            Mqtt::V311 => Version::V311,
            Mqtt::V5 => Version::V5,
        }
    }
}

fn run_load(options: LoadOptions) -> Result<bool, String> {
    let length = match options.messages {
        Some(count) => Length::Messages(count),
        None => Length::Time(duration(options.seconds)?),
    };
    process::pin(&options.target.cpus)?;
    let plan = Plan {
        label: options.label,
        address: options.target.address,
        version: options.target.version(),
        layout: options.layout,
        publishers: options.publishers,
        subscribers: options.subscribers,
        qos: options.qos,
        payload_bytes: options.payload_bytes,
        pace: options.rate.map_or(Pace::Window(options.window), Pace::Rate),
        inflight_max: options.inflight,
        warmup: Duration::from_millis(options.warmup_ms),
        length,
        threads: options.threads,
        tag: process::run_tag(),
    };
    let report = load::run(plan, &options.target.pids)?;
    if options.target.json {
        println!("{}", report.json());
    } else {
        println!("{}\n{}", Report::head(), report.row());
    }
    Ok(report.is_clean())
}

fn duration(seconds: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(seconds).map_err(|error| format!("--seconds {seconds}: {error}"))
}

fn run_queue(options: &QueueOptions) -> Result<bool, String> {
    process::pin(&options.target.cpus)?;
    let plan = queue::Plan {
        address: options.target.address,
        version: options.target.version(),
        publishers: options.publishers,
        inflight: options.inflight,
        payload_bytes: options.payload_bytes,
        warmup: Duration::from_millis(options.warmup_ms),
        length: duration(options.seconds)?,
        tag: process::run_tag(),
    };
    let report = queue::run(&plan, &options.target.pids)?;
    if options.target.json {
        println!("{}", report.json());
    } else {
        println!("{}", report.row());
    }
    Ok(report.is_clean())
}

fn run_connect(options: ConnectOptions) -> Result<bool, String> {
    process::pin(&options.target.cpus)?;
    let target = &options.target;
    let report = connect::run(target.address, target.version(), options.count, &target.pids)?;
    if target.json {
        println!("{}", report.json());
    } else {
        println!("{}", report.row());
    }
    Ok(true)
}
