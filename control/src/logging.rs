//! Log lines of all processes: to standard error, as text or JSON, at a level that can change live.

use std::{
    io::{self, IsTerminal},
    panic,
    sync::OnceLock,
    thread,
};

use contract::config::{Format, Level, Log};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Begins to log. The first call of a process decides; a panic becomes a line, too.
pub fn start(log: &Log) {
    let (filter, handle) = reload::Layer::new(level_of(log.level));
    let lines = fmt::layer().with_writer(io::stderr).with_target(false);
    let lines = match log.format {
        Format::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        let _ = LEVEL.set(handle);
    }
    panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(thread = thread.name().unwrap_or("unnamed"), place, "panic: {message}");
    }));
}

/// Changes the level of this process.
pub fn set_level(level: Level) {
    if let Some(handle) = LEVEL.get() {
        // It fails only when the subscriber is gone, and then nobody logs.
        let _ = handle.reload(level_of(level));
    }
}

fn level_of(level: Level) -> LevelFilter {
    match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}
