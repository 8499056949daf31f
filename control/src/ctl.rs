//! `control.sock`: what `ringmq ctl` asks, both ends of it. Only the owner of the data directory may connect.

use std::{
    fmt::Write,
    fs,
    io::{self, Read, Write as _},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use contract::{
    ctl::{Answer, Ask, Status},
    report::{LogReport, Report},
    wire::{self, Frames},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use crate::{
    CONTROL_SOCKET,
    bans::{self, Entry},
    state::Shared,
    traces::{READ_BYTES_MAX, Traces, Wanted},
};

/// Questions that are answered at the same time.
const CONNECTIONS_MAX: usize = 16;
/// Longest question.
const ASK_BYTES_MAX: usize = 4096;
/// A question is asked and answered within this time.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens the socket, in the place of one that a killed predecessor left.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    let listener = StdListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Answers for ever.
pub(crate) async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    match timeout(PATIENCE, answer(stream, &shared)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(cause)) => debug!("a question of ctl failed: {cause}"),
                        Err(_) => debug!("a question of ctl took too long"),
                    }
                    drop(place);
                });
            }
            Err(cause) => {
                warn!("{CONTROL_SOCKET} cannot accept: {cause}");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    let (mut frames, mut bytes, mut total) = (Frames::default(), [0; ASK_BYTES_MAX], 0);
    let ask = loop {
        let read = stream.read(&mut bytes).await?;
        total += read;
        if read == 0 || total > ASK_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        frames.push(&bytes[..read]);
        if let Some(ask) = frames.take().map_err(io::Error::other)? {
            break ask;
        }
    };
    let answer = match ask {
        Ask::Status => Answer::Status(Box::new(shared.status())),
        ask => match carry_out(ask, shared).await {
            Ok(said) => Answer::Done(said),
            Err(why) => Answer::Refused(why),
        },
    };
    let mut out = Vec::new();
    wire::encode(&answer, &mut out).map_err(io::Error::other)?;
    stream.write_all(&out).await?;
    stream.shutdown().await
}

async fn carry_out(ask: Ask, shared: &Arc<Shared>) -> Result<Vec<String>, String> {
    let doors = &shared.doors;
    let nothing = |()| Vec::new();
    match ask {
        Ask::Status => Ok(Vec::new()),
        Ask::Reload => shared.reload().await.map(|said| vec![said]),
        Ask::Admins => Ok(doors.admins()),
        Ask::AdminAdd { name, password } => {
            let shared = shared.clone();
            let added = spawn_blocking(move || shared.doors.add_admin(&name, &password)).await;
            added.unwrap_or_else(|_| Err("control is about to stop".to_owned())).map(nothing)
        }
        Ask::AdminRemove(name) => doors.remove_admin(&name).map(nothing),
        Ask::Keys => Ok(doors.keys().into_iter().map(|(name, key)| format!("{key} {name}")).collect()),
        Ask::KeyAdd(name) => {
            let minted = doors.add_key(&name)?;
            Ok(vec![format!("key    {}", minted.key), format!("secret {}", minted.secret)])
        }
        Ask::KeyRemove(name) => doors.remove_key(&name).map(nothing),
        Ask::Bans => Ok(shared.bans.list().iter().map(Entry::to_line).collect()),
        Ask::BanAdd { kind, who, reason, for_ms } => {
            let entry = Entry::new(&kind, &who, bans::BY_CTL, &reason, for_ms)?;
            // Whoever is banned is banned anew, for as long as was said now.
            _ = shared.bans.remove(&kind, &who);
            shared.bans.add(entry).map(|_| Vec::new())
        }
        Ask::BanRemove { kind, who } => shared.bans.remove(&kind, &who).map(nothing),
        Ask::Traces => Ok(shared.traces.all().iter().map(|trace| shared.traces.line(trace)).collect()),
        Ask::TraceStart { name, kind, value, duration, payload } => {
            let wanted = Wanted::new(name, (kind, value), duration, payload);
            shared.traces.add(wanted).map(|trace| vec![shared.traces.line(&trace)]).map_err(|why| why.why())
        }
        Ask::TraceStop(name) => shared.traces.stop(&name).map(nothing).map_err(|why| why.why()),
        Ask::TraceRemove(name) => shared.traces.remove(&name).map(nothing).map_err(|why| why.why()),
        Ask::TraceShow(name) => {
            let shared = shared.clone();
            let last = spawn_blocking(move || last_lines(&shared.traces, &name)).await;
            last.unwrap_or_else(|_| Err("control is about to stop".to_owned()))
        }
    }
}

/// The end of a trace's file, as much as is read at once.
fn last_lines(traces: &Traces, name: &str) -> Result<Vec<String>, String> {
    let size = traces.all().iter().find(|trace| trace.name == name).map_or(0, |trace| traces.size(trace));
    let start = size.saturating_sub(READ_BYTES_MAX);
    let (text, _) = traces.read(name, start, READ_BYTES_MAX).map_err(|why| why.why())?;
    // The first line may be the end of one.
    Ok(text.lines().skip(usize::from(start > 0)).map(str::to_owned).collect())
}

/// Asks the control process of the node in `data_dir` how it goes.
pub fn status(data_dir: &Path) -> Result<Status, String> {
    match asked(data_dir, &Ask::Status)? {
        Answer::Status(status) => Ok(*status),
        _ => Err("the control process answers something else: is it of this version?".to_owned()),
    }
}

/// Asks the control process of the node in `data_dir` to do something. Gives what it says about it, a line each.
pub fn order(data_dir: &Path, order: &Ask) -> Result<Vec<String>, String> {
    match asked(data_dir, order)? {
        Answer::Done(said) => Ok(said),
        Answer::Refused(why) => Err(why),
        Answer::Status(_) => Err("the control process answers something else: is it of this version?".to_owned()),
    }
}

fn asked(data_dir: &Path, question: &Ask) -> Result<Answer, String> {
    let path = data_dir.join(CONTROL_SOCKET);
    let failed = |cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("no control process runs in {} (is the node started?)", data_dir.display())
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("the control process of {} does not answer", data_dir.display())
        }
        _ => format!("{}: {cause}", path.display()),
    };
    ask(&path, question).map_err(failed)
}

fn ask(path: &Path, ask: &Ask) -> io::Result<Answer> {
    let mut stream = StdStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut out = Vec::new();
    wire::encode(ask, &mut out).map_err(io::Error::other)?;
    stream.write_all(&out)?;
    let (mut frames, mut bytes) = (Frames::default(), vec![0; 64 << 10]);
    loop {
        let read = stream.read(&mut bytes)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        frames.push(&bytes[..read]);
        if let Some(answer) = frames.take().map_err(io::Error::other)? {
            return Ok(answer);
        }
    }
}

/// A status for people.
pub fn render(status: &Status) -> String {
    let mut out = String::new();
    let word = if status.dataplane_up { "started" } else { "not serving" };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "Node {} is {word}", status.node);
    let _ = writeln!(out, "cluster      {}", status.cluster);
    let _ = writeln!(
        out,
        "control      version {}, pid {}, up {}, http {}",
        status.version,
        status.pid,
        uptime(status.uptime_ms),
        status.http
    );
    match &status.report {
        None => out.push_str("data plane   has not reported yet\n"),
        Some(report) => render_report(report, status, &mut out),
    }
    out
}

fn render_report(report: &Report, status: &Status, out: &mut String) {
    let silent =
        if status.dataplane_up { String::new() } else { format!(", silent for {}", uptime(status.report_age_ms)) };
    let _ = writeln!(
        out,
        "data plane   version {}, pid {}, up {}, {} shards{silent}",
        report.version,
        report.pid,
        uptime(report.uptime_ms),
        report.shards.len()
    );
    let held = if report.view == status.view { "current" } else { "behind" };
    let _ = writeln!(out, "view         {}.{} ({held})", report.view.incarnation, report.view.number);
    for listener in &report.listeners {
        let _ = writeln!(
            out,
            "listener     {}:{} on {}, {} of {} connections",
            listener.kind, listener.name, listener.address, listener.connections, listener.max_connections
        );
    }
    for (index, shard) in report.shards.iter().enumerate() {
        let _ = writeln!(
            out,
            "shard {index:<6} {} connections, {} sessions, {} subscriptions, {} retained",
            shard.connections,
            shard.sessions,
            shard.subscriptions + shard.shared_subscriptions,
            shard.retained
        );
    }
    render_log(report, out);
    render_alarms(report, out);
    for link in &report.links {
        let _ = writeln!(
            out,
            "link         {}: {}, {} routes, {} queued ({} bytes)",
            link.name, link.status, link.routes, link.queued, link.queued_bytes
        );
    }
    let _ = writeln!(
        out,
        "messages     {} received, {} sent",
        report.counter("messages_received"),
        report.counter("messages_sent")
    );
    for shed in report.counters.iter().filter(|counter| counter.name.starts_with("shed_") && counter.value > 0) {
        let _ = writeln!(out, "shed         {} {}: {}", shed.value, shed.name, shed.doc.trim());
    }
}

fn render_alarms(report: &Report, out: &mut String) {
    for (alarm, shards) in report.alarms() {
        let shards: Vec<String> = shards.iter().map(usize::to_string).collect();
        let place = if shards.is_empty() { String::new() } else { format!(" on shard {}", shards.join(", ")) };
        let _ = writeln!(out, "alarm        {}{place}: {}", alarm.name, alarm.message);
    }
}

fn render_log(report: &Report, out: &mut String) {
    let Some(state) = report.log() else {
        out.push_str("log          none: what is persistent ends with the process\n");
        return;
    };
    let total =
        |of: fn(&LogReport) -> u64| report.shards.iter().filter_map(|shard| shard.log.as_ref()).map(of).sum::<u64>();
    let _ = writeln!(
        out,
        "log          {}: {} bytes on disk, {} bytes since the last checkpoint, {} commits of {} batches, {} failures",
        state.word(),
        total(|log| log.disk_bytes),
        total(|log| log.since_checkpoint_bytes),
        total(|log| log.commits),
        total(|log| log.batches),
        total(|log| log.failures)
    );
}

/// The two largest units.
fn uptime(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3600),
    }
}
