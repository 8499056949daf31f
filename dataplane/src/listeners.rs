//! The listeners of the node, as the configuration wants them now: which sockets open, stay and close. Owned by the main
//! thread, which opens them before any shard runs and changes them when the configuration was read again; shards own the
//! sockets ([`crate::listener`]).
//!
//! Always true: a change happens as a whole or not at all; a number never means another listener in the life of a process;
//! a shard knows the terms of a listener before any shard accepts at it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use broker::surface::Terms;
use contract::{
    config::{self, CertificateUser, Config, ListenerKind},
    report::ListenerReport,
};
use transport::websocket;

use crate::{
    certificates,
    listener::{self, Bind, Listener, Opened, Seats, Wanted},
    port::{Note, Port},
    stage::Recipe,
};

/// How long shards may take to read what is new about listeners; a turn takes milliseconds.
const TERMS_PATIENCE: Duration = Duration::from_secs(5);

/// What one shard has to do.
#[derive(Default)]
pub(crate) struct Change {
    pub(crate) opened: Vec<Listener>,
    /// What new connections begin with.
    pub(crate) changed: Vec<(u16, Recipe)>,
    pub(crate) closed: Vec<u16>,
}

/// What the operator is shown, shared with the thread that reports.
#[derive(Clone, Default)]
pub(crate) struct Shown(Arc<Mutex<Rows>>);

#[derive(Default)]
struct Rows {
    /// Open listeners, each with what is wrong about it.
    open: Vec<(Opened, Option<String>)>,
    /// Those that are wanted and not open.
    missing: Vec<ListenerReport>,
}

impl Shown {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One row per listener.
    pub(crate) fn reports(&self) -> Vec<ListenerReport> {
        let rows = self.rows();
        let open = rows.open.iter().map(|(opened, error)| ListenerReport {
            kind: opened.kind.as_str().to_owned(),
            name: opened.name.clone(),
            address: opened.address.to_string(),
            connections: opened.seats.taken() as u64,
            max_connections: opened.seats.max() as u64,
            running: true,
            error: error.clone(),
        });
        open.chain(rows.missing.iter().cloned()).collect()
    }
}

/// The listeners of the node.
pub(crate) struct Listeners {
    shards: u16,
    open: Vec<Opened>,
    /// By number.
    terms: Vec<Terms>,
    /// Kind and name by number; nobody's name once it was closed.
    names: Vec<(ListenerKind, String)>,
    shown: Shown,
}

/// A change that can be carried out: every address is bound, every file was read.
pub(crate) struct Plan {
    of_shards: Vec<Vec<Listener>>,
    opened: Vec<Opened>,
    changed: Vec<(u16, Recipe)>,
    closed: Vec<u16>,
    terms: Vec<Terms>,
    names: Vec<(ListenerKind, String)>,
    /// Listeners that go on with older files, by number, and why.
    stale: Vec<(u16, String)>,
}

impl Plan {
    /// Kind and name by number, as they will be.
    pub(crate) fn names(&self) -> &[(ListenerKind, String)] {
        &self.names
    }
}

impl Listeners {
    /// Opens what is configured, for shards that do not run yet.
    pub(crate) fn open(config: &Config, shards: u16) -> Result<(Listeners, Vec<Vec<Listener>>), String> {
        let (terms, names) = (Vec::new(), Vec::new());
        let mut listeners = Listeners { shards, open: Vec::new(), terms, names, shown: Shown::default() };
        let plan = listeners.plan(config)?;
        let of_shards = listeners.take(config, plan).0;
        Ok((listeners, of_shards))
    }

    /// The open ones.
    pub(crate) fn opened(&self) -> &[Opened] {
        &self.open
    }

    /// Kind and name by number.
    pub(crate) fn names(&self) -> &[(ListenerKind, String)] {
        &self.names
    }

    /// By number.
    pub(crate) fn terms(&self) -> Arc<[Terms]> {
        self.terms.as_slice().into()
    }

    /// What the operator is shown.
    pub(crate) fn shown(&self) -> Shown {
        self.shown.clone()
    }

    /// Binds every new address and reads every file. An error names the listener; nothing has changed then.
    pub(crate) fn plan(&self, config: &Config) -> Result<Plan, String> {
        let planned = self.try_plan(config);
        if let Err(why) = &planned {
            self.show_missing(config, why);
        }
        planned
    }

    fn try_plan(&self, config: &Config) -> Result<Plan, String> {
        let (terms, names) = (self.terms.clone(), self.names.clone());
        let (changed, closed, stale) = (Vec::new(), Vec::new(), Vec::new());
        let mut plan = Plan { of_shards: Vec::new(), opened: Vec::new(), changed, closed, terms, names, stale };
        let (mut fresh, mut kept) = (Vec::new(), Vec::new());
        for listener in config.listeners.iter().filter(|listener| listener.enable) {
            let wrong = |why: String| format!("listener {}: {why}", listener.name);
            let bind = bind(listener).map_err(wrong)?;
            let recipe = recipe(listener);
            match self.open.iter().find(|open| is_same(open, listener, &bind)) {
                Some(open) => {
                    kept.push(open.number);
                    plan.terms[usize::from(open.number)] = terms_of(listener);
                    match recipe {
                        Ok(recipe) => plan.changed.push((open.number, recipe)),
                        Err(why) => plan.stale.push((open.number, why)),
                    }
                }
                None => fresh.push((listener, bind, recipe.map_err(wrong)?)),
            }
        }
        let closed = || self.open.iter().filter(|open| !kept.contains(&open.number));
        let mut wanted = Vec::new();
        for (listener, bind, recipe) in fresh {
            let number = u16::try_from(plan.names.len()).map_err(|_| "a process has at most 65536 listeners")?;
            let (kind, name) = (listener.kind, listener.name.clone());
            plan.names.push((kind, name.clone()));
            plan.terms.push(terms_of(listener));
            let ours = closed().any(|open| overlaps(&open.address, &bind));
            wanted.push(Wanted { number, kind, name, bind, ours, seats: Seats::new(listener), recipe });
        }
        (plan.of_shards, plan.opened) = listener::open(&wanted, self.shards).map_err(|error| error.to_string())?;
        for open in closed() {
            plan.closed.push(open.number);
            plan.terms[usize::from(open.number)].closed = true;
            plan.names[usize::from(open.number)].1.clear();
        }
        Ok(plan)
    }

    /// Carries a plan out: shards learn the terms first, then sockets open, change and close.
    pub(crate) fn carry_out(&mut self, config: &Config, plan: Plan, ports: &[Arc<Port>]) {
        let (changed, closed) = (plan.changed.clone(), plan.closed.clone());
        if !self.tell_terms(&plan.terms, ports) {
            tracing::error!("listeners stay as they were: a shard does not read its notes");
            return;
        }
        for number in &closed {
            let gone = self.open.iter().find(|open| open.number == *number);
            gone.inspect(|open| tracing::info!(kind = open.kind.as_str(), listener = open.name, "closed"));
        }
        let (of_shards, opened) = self.take(config, plan);
        for (port, opened) in ports.iter().zip(of_shards) {
            let change = Change { opened, changed: changed.clone(), closed: closed.clone() };
            if port.post(Note::Listeners(Box::new(change))).is_err() {
                tracing::error!("a shard does not read its notes; it goes on with the older listeners");
            }
        }
        for Opened { kind, name, address, .. } in opened {
            tracing::info!(kind = kind.as_str(), listener = name, %address, "listening");
        }
    }

    /// Makes a plan the state of affairs. Gives the new sockets, and what was opened.
    fn take(&mut self, config: &Config, plan: Plan) -> (Vec<Vec<Listener>>, Vec<Opened>) {
        let Plan { of_shards, opened, changed, closed, terms, names, stale } = plan;
        (self.terms, self.names) = (terms, names);
        self.open.retain(|open| !closed.contains(&open.number));
        self.open.extend(opened.iter().cloned());
        for open in &self.open {
            let (kind, listener) = (open.kind.as_str(), &open.name);
            let Some(wanted) = find(config, open) else { continue };
            open.seats.set(wanted);
            if let Bind::Unix(path, _) = &open.bind
                && let Err(error) = bind(wanted).map(|bind| permit(path, &bind))
            {
                tracing::error!(kind, listener, error, "its permissions stay as they were");
            }
            if let Some((_, error)) = stale.iter().find(|(number, _)| *number == open.number) {
                tracing::error!(kind, listener, error, "certificates are not reloaded; the old ones stay");
            } else if wanted.tls.is_some() && changed.iter().any(|(number, _)| *number == open.number) {
                tracing::info!(kind, listener, "certificates are reloaded");
            }
        }
        let error_of = |open: &Opened| stale.iter().find(|(number, _)| *number == open.number);
        let row = |open: &Opened| (open.clone(), error_of(open).map(|(_, why)| why.clone()));
        *self.shown.rows() = Rows { open: self.open.iter().map(row).collect(), missing: Vec::new() };
        (of_shards, opened)
    }

    /// True when every shard knows the terms.
    fn tell_terms(&self, terms: &[Terms], ports: &[Arc<Port>]) -> bool {
        if *terms == *self.terms {
            return true;
        }
        let terms: Arc<[Terms]> = terms.into();
        let (unread, read) = mpsc::channel();
        let told = ports.iter().all(|port| port.post(Note::Terms(terms.clone(), unread.clone())).is_ok());
        drop(unread);
        // Nobody sends: the last note that was read hangs up.
        told && read.recv_timeout(TERMS_PATIENCE) == Err(mpsc::RecvTimeoutError::Disconnected)
    }

    /// Shows what is wanted and not open, because nothing was opened.
    fn show_missing(&self, config: &Config, why: &str) {
        let wanted = config.listeners.iter().filter(|listener| listener.enable);
        let open = |listener: &config::Listener| self.open.iter().any(|open| is_named(open, listener));
        let missing: Vec<_> =
            wanted.clone().filter(|listener| !open(listener)).map(|listener| missing(listener, why)).collect();
        let mut rows = self.shown.rows();
        for (opened, error) in &mut rows.open {
            // A new address of a listener that is open is wanted as well.
            let moved =
                find(config, opened).is_none_or(|listener| bind(listener).is_ok_and(|bind| !same_place(opened, &bind)));
            *error = moved.then(|| why.to_owned());
        }
        rows.missing = missing;
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        // The thread that reports may outlive us, and must not keep the files of sockets.
        *self.shown.rows() = Rows::default();
    }
}

fn missing(listener: &config::Listener, why: &str) -> ListenerReport {
    ListenerReport {
        kind: listener.kind.as_str().to_owned(),
        name: listener.name.clone(),
        address: listener.bind.clone(),
        connections: 0,
        max_connections: listener.max_connections.into(),
        running: false,
        error: Some(why.to_owned()),
    }
}

fn is_named(open: &Opened, listener: &config::Listener) -> bool {
    open.kind == listener.kind && open.name == listener.name
}

fn find<'a>(config: &'a Config, open: &Opened) -> Option<&'a config::Listener> {
    config.listeners.iter().find(|listener| listener.enable && is_named(open, listener))
}

/// Is it that listener, at the place where it is wanted?
fn is_same(open: &Opened, listener: &config::Listener, bind: &Bind) -> bool {
    is_named(open, listener) && same_place(open, bind)
}

/// A path may get other permissions, an address has none.
fn same_place(open: &Opened, bind: &Bind) -> bool {
    match (&open.bind, bind) {
        (Bind::Unix(before, _), Bind::Unix(now, _)) => before == now,
        (before, now) => before == now,
    }
}

/// Would the kernel refuse the second address while the first is listened on?
fn overlaps(held: &Bind, wanted: &Bind) -> bool {
    let (Bind::Inet(held), Bind::Inet(wanted)) = (held, wanted) else { return false };
    let any = held.ip().is_unspecified() || wanted.ip().is_unspecified();
    held.port() == wanted.port() && (any || held.ip() == wanted.ip())
}

fn permit(path: &std::path::Path, bind: &Bind) -> Result<(), String> {
    let Bind::Unix(_, mode) = bind else { return Ok(()) };
    fs::set_permissions(path, fs::Permissions::from_mode(*mode)).map_err(|error| error.to_string())
}

fn bind(listener: &config::Listener) -> Result<Bind, String> {
    match listener.kind {
        ListenerKind::Unix => {
            let mode = u32::from_str_radix(&listener.mode, 8).map_err(|error| format!("its mode: {error}"))?;
            Ok(Bind::Unix(listener.bind.clone().into(), mode))
        }
        _ => listener.bind.parse().map(Bind::Inet).map_err(|_| format!("{:?} is no address", listener.bind)),
    }
}

fn terms_of(listener: &config::Listener) -> Terms {
    Terms {
        closed: false,
        mountpoint: listener.mountpoint.as_deref().map(Arc::from),
        certificate_user: listener.tls.as_ref().map_or(CertificateUser::Disabled, |tls| tls.user),
    }
}

/// What the connections of a listener begin with.
fn recipe(listener: &config::Listener) -> Result<Recipe, String> {
    let us = |ms: u32| u64::from(ms) * 1000;
    let tls =
        listener.tls.as_ref().map(|tls| Ok::<_, String>((certificates(listener, tls)?, us(tls.handshake_timeout_ms))));
    let websocket = listener.websocket.as_ref().map(|websocket| {
        let frame_bytes_max = u64::from(websocket.max_frame_size);
        Arc::new(websocket::Settings { path: websocket.mqtt_path.clone(), frame_bytes_max })
    });
    let proxy_us = listener.proxy_protocol.then(|| us(listener.proxy_protocol_timeout_ms));
    Ok(Recipe { proxy_us, tls: tls.transpose()?, websocket })
}

/// The certificates of a listener, as its files hold them now.
fn certificates(listener: &config::Listener, tls: &config::Tls) -> Result<Arc<rustls::ServerConfig>, String> {
    // What a browser offers where it speaks WebSocket.
    certificates::load(tls, if listener.websocket.is_some() { "http/1.1" } else { "mqtt" })
}

/// Can the files that the listeners name be used? The error has one line per listener. For `ringmq config check`:
/// called from a process that has no shards.
pub fn check_files(config: &Config) -> Result<(), String> {
    let enabled = config.listeners.iter().filter(|listener| listener.enable);
    let wrong = enabled.filter_map(|listener| {
        let error = certificates(listener, listener.tls.as_ref()?).err()?;
        Some(format!("listeners.{}.{}: {error}", listener.kind.as_str(), listener.name))
    });
    let wrong: Vec<String> = wrong.collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}
