//! HTTP: `/status` for load balancers, `/metrics` for Prometheus, `/api/v5` with EMQX's paths and field names.
//! Always true: connections, request heads and waiting times are bounded, and an error is `{code, message}`.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    extract::{
        DefaultBodyLimit, Path, Query, RawQuery, Request, State,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use contract::{
    report::{ListenerReport, LogState},
    trace::FILE_BYTES_MAX,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tower_service::Service;
use tracing::{debug, info, warn};

use crate::{
    bans::{self, Entry, NewBan},
    gate::{self, Peer},
    host::Host,
    metrics,
    state::Shared,
    traces::{self, Wanted},
};

/// Connections at the same time; further ones wait in the kernel.
const CONNECTIONS_MAX: usize = 256;
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// A request's head must come within this time, also the next one on a connection that is kept.
const HEAD_PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of a request's body.
const BODY_BYTES_MAX: usize = 64 << 10;
/// A connection lives no longer than this.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// Most rows of one page.
const PAGE_MAX: usize = 10_000;
/// What EMQX tells a load balancer to wait.
const RETRY_AFTER_S: &str = "15";

/// Serves for ever.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let router = router(shared);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    connection(stream, Peer(peer), router).await;
                    drop(place);
                });
            }
            Err(cause) => {
                // Out of descriptors, most likely: trying at once would only burn the CPU.
                warn!("HTTP cannot accept: {cause}");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: Peer, router: Router) {
    let service = service_fn(move |request: Request<Incoming>| {
        let mut router = router.clone();
        async move {
            let mut request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(peer);
            let response: Result<Response, Infallible> = router.call(request).await;
            response
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_LIFE, served).await {
        Ok(Ok(())) => {}
        Ok(Err(cause)) => debug!("an HTTP connection ended: {cause}"),
        Err(_) => debug!("an HTTP connection was open for too long"),
    }
}

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/metrics", get(metrics_page))
        .route("/api/v5/status", get(status))
        .route("/api/v5/prometheus/stats", get(metrics_page))
        .route("/api/v5/alarms", get(alarms))
        .route("/api/v5/nodes", get(nodes))
        .route("/api/v5/nodes/{node}", get(node))
        .route("/api/v5/login", post(gate::login))
        .route("/api/v5/api_key", get(keys).post(add_key))
        .route("/api/v5/api_key/{name}", delete(remove_key))
        .route("/api/v5/authorization/cache", delete(forget))
        .route("/api/v5/reload", post(reload))
        .route("/api/v5/listeners", get(listeners))
        .route("/api/v5/banned", get(banned).post(ban).delete(unban_all))
        .route("/api/v5/banned/{kind}/{*who}", delete(unban))
        .route("/api/v5/trace", get(traces).post(add_trace))
        .route("/api/v5/trace/{name}", delete(remove_trace))
        .route("/api/v5/trace/{name}/stop", put(stop_trace))
        .route("/api/v5/trace/{name}/download", get(trace_file))
        .route("/api/v5/trace/{name}/log", get(trace_part))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(shared.clone(), gate::pass))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared)
}

async fn status(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    let seen = shared.seen();
    let up = seen.up;
    // A node whose log is full still serves: the code stays as it is.
    let log = seen.report.filter(|_| up).map(|report| report.log().map_or("none", LogState::word));
    let code = if up { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let (broker, app) = if up { ("started", "running") } else { ("stopped", "not_running") };
    let wants_json = query.is_some_and(|query| query.split('&').any(|part| part == "format=json"));
    let body = if wants_json {
        Json(json!({
            "node_name": shared.node,
            "rel_vsn": env!("CARGO_PKG_VERSION"),
            "cluster": shared.cluster,
            "broker_status": broker,
            "app_status": app,
            "log": log,
        }))
        .into_response()
    } else {
        let app = if up { "running" } else { "not running" };
        let log = log.filter(|log| *log == LogState::Tight.word() || *log == LogState::Detached.word());
        let log = log.map_or_else(String::new, |log| format!("\nlog is {log}"));
        format!("Node {} is {broker}\nringmq is {app}{log}", shared.node).into_response()
    };
    match up {
        true => (code, body).into_response(),
        false => (code, [(header::RETRY_AFTER, RETRY_AFTER_S)], body).into_response(),
    }
}

async fn metrics_page(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render(&shared)).into_response()
}

/// The alarms that are active, with EMQX's field names.
async fn alarms(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let seen = shared.seen();
    let report = seen.report.filter(|_| seen.up);
    let active = report.iter().flat_map(|report| report.alarms());
    let data: Vec<Value> = active
        .map(|(alarm, shards)| {
            let since = shared.alarmed_since(alarm.name).unwrap_or_else(SystemTime::now);
            let duration = since.elapsed().unwrap_or_default();
            let since_ms = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
            json!({
                "node": shared.node,
                "name": alarm.name,
                "message": alarm.message,
                "details": { "shards": shards },
                "activate_at_ms": since_ms,
                "duration": duration.as_millis() as u64,
            })
        })
        .collect();
    let count = data.len();
    Json(json!({ "data": data, "meta": { "page": 1, "limit": count, "count": count, "hasnext": false } }))
}

async fn nodes(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!([describe(&shared)]))
}

async fn node(State(shared): State<Arc<Shared>>, name: Result<Path<String>, PathRejection>) -> Response {
    match name {
        Ok(Path(name)) if name == shared.node => Json(describe(&shared)).into_response(),
        _ => refused(StatusCode::NOT_FOUND, "NOT_FOUND", "there is no node of that name"),
    }
}

/// This node with EMQX's field names.
fn describe(shared: &Shared) -> Value {
    let (seen, host) = (shared.seen(), Host::look());
    let report = seen.report.filter(|_| seen.up);
    let total = |of: fn(&contract::report::ShardReport) -> u64| report.as_ref().map_or(0, |report| report.total(of));
    json!({
        "node": shared.node,
        "node_status": if seen.up { "running" } else { "stopped" },
        "role": "core",
        "version": env!("CARGO_PKG_VERSION"),
        "edition": "RingMQ",
        "uptime": report.as_ref().map_or(0, |report| report.uptime_ms),
        "connections": total(|shard| shard.connections),
        "live_connections": total(|shard| shard.connections),
        "cluster_sessions": total(|shard| shard.sessions),
        "shards": report.as_ref().map_or(0, |report| report.shards.len()),
        "load1": host.load[0],
        "load5": host.load[1],
        "load15": host.load[2],
        "max_fds": host.descriptors_max,
        "memory_total": host.memory_total_bytes,
        "memory_used": host.memory_used_bytes,
    })
}

/// Names and keys, never the secrets, with EMQX's field names.
async fn keys(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let keys = shared.doors.keys().into_iter();
    Json(keys.map(|(name, key)| json!({ "name": name, "api_key": key, "enable": true })).collect())
}

#[derive(Deserialize)]
struct NewKey {
    name: String,
}

async fn add_key(State(shared): State<Arc<Shared>>, asked: Result<Json<NewKey>, JsonRejection>) -> Response {
    let name = match asked {
        Ok(Json(NewKey { name })) => name,
        Err(why) => return refused(StatusCode::BAD_REQUEST, "BAD_REQUEST", &why.body_text()),
    };
    match shared.doors.add_key(&name) {
        Ok(minted) => {
            info!(name, "an API key was made");
            let key = json!({ "name": name, "api_key": minted.key, "api_secret": minted.secret, "enable": true });
            Json(key).into_response()
        }
        Err(why) => refused(StatusCode::BAD_REQUEST, "BAD_REQUEST", &why),
    }
}

async fn remove_key(State(shared): State<Arc<Shared>>, name: Result<Path<String>, PathRejection>) -> Response {
    let removed = name.map_err(|why| why.body_text()).and_then(|Path(name)| shared.doors.remove_key(&name));
    match removed {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(why) => refused(StatusCode::NOT_FOUND, "NOT_FOUND", &why),
    }
}

/// Reads the configuration again, and every file that it names: what SIGHUP does.
async fn reload(State(shared): State<Arc<Shared>>) -> Response {
    match shared.reload().await {
        Ok(said) => Json(json!({ "message": said })).into_response(),
        Err(why) => refused(StatusCode::BAD_REQUEST, "BAD_CONFIG", &why),
    }
}

/// The listeners of the configuration, with EMQX's field names.
async fn listeners(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let report = Some(shared.seen()).filter(|seen| seen.up).and_then(|seen| seen.report);
    let listeners = report.iter().flat_map(|report| &report.listeners);
    let row = |listener: &ListenerReport| {
        let ListenerReport { kind, name, connections, max_connections, running, .. } = listener;
        let status =
            json!({ "running": running, "current_connections": connections, "max_connections": max_connections });
        json!({
            "id": format!("{kind}:{name}"),
            "type": kind,
            "name": name,
            "node": shared.node,
            "enable": true,
            "bind": listener.address,
            "running": running,
            "current_connections": connections,
            "max_connections": max_connections,
            "error": listener.error,
            "status": status,
        })
    };
    Json(listeners.map(row).collect())
}

#[derive(Deserialize)]
struct Pages {
    page: Option<usize>,
    limit: Option<usize>,
}

/// Who may not connect, with EMQX's field names.
async fn banned(State(shared): State<Arc<Shared>>, pages: Result<Query<Pages>, QueryRejection>) -> Response {
    let Ok(Query(Pages { page, limit })) = pages else {
        return refused(StatusCode::BAD_REQUEST, "BAD_REQUEST", "page and limit are numbers");
    };
    let (page, limit) = (page.unwrap_or(1).max(1), limit.unwrap_or(100).clamp(1, PAGE_MAX));
    let all = shared.bans.list();
    let from = (page - 1).saturating_mul(limit);
    let data: Vec<Value> = all.iter().skip(from).take(limit).map(Entry::to_json).collect();
    let hasnext = from.saturating_add(limit) < all.len();
    let meta = json!({ "page": page, "limit": limit, "count": all.len(), "hasnext": hasnext });
    Json(json!({ "data": data, "meta": meta })).into_response()
}

async fn ban(State(shared): State<Arc<Shared>>, asked: Result<Json<NewBan>, JsonRejection>) -> Response {
    let made = match asked {
        Ok(Json(asked)) => asked.entry(),
        Err(why) => Err(why.body_text()),
    };
    match made.and_then(|entry| shared.bans.add(entry)) {
        Ok(entry) => Json(entry.to_json()).into_response(),
        Err(why) if why == bans::EXISTS => refused(StatusCode::BAD_REQUEST, "ALREADY_EXISTS", &why),
        Err(why) => refused(StatusCode::BAD_REQUEST, "BAD_REQUEST", &why),
    }
}

async fn unban(State(shared): State<Arc<Shared>>, path: Result<Path<(String, String)>, PathRejection>) -> Response {
    let lifted = path.map_err(|why| why.body_text()).and_then(|Path((kind, who))| shared.bans.remove(&kind, &who));
    match lifted {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(why) => refused(StatusCode::NOT_FOUND, "NOT_FOUND", &why),
    }
}

async fn unban_all(State(shared): State<Arc<Shared>>) -> Response {
    match shared.bans.clear() {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(why) => refused(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR", &why),
    }
}

/// What is watched, with EMQX's field names.
async fn traces(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let all = shared.traces.all();
    Json(all.iter().map(|trace| shared.traces.describe(trace, &shared.node)).collect())
}

async fn add_trace(State(shared): State<Arc<Shared>>, asked: Result<Json<Wanted>, JsonRejection>) -> Response {
    let wanted = match asked {
        Ok(Json(wanted)) => wanted,
        Err(why) => return refused(StatusCode::BAD_REQUEST, "BAD_REQUEST", &why.body_text()),
    };
    match shared.traces.add(wanted) {
        Ok(trace) => {
            info!(name = trace.name, "a trace begins");
            Json(shared.traces.describe(&trace, &shared.node)).into_response()
        }
        Err(why) => no_trace(&why),
    }
}

fn no_trace(why: &traces::Refused) -> Response {
    let (status, code) = match why {
        traces::Refused::Unknown => (StatusCode::NOT_FOUND, "NOT_FOUND"),
        traces::Refused::Exists => (StatusCode::CONFLICT, "ALREADY_EXISTS"),
        traces::Refused::Bad(_) => (StatusCode::BAD_REQUEST, "INVALID_PARAMS"),
    };
    refused(status, code, &why.why())
}

/// The name of a trace in a path; one that is no text names none.
type Named = Result<Path<String>, PathRejection>;

async fn remove_trace(State(shared): State<Arc<Shared>>, name: Named) -> Response {
    match name.map_or(Err(traces::Refused::Unknown), |Path(name)| shared.traces.remove(&name)) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(why) => no_trace(&why),
    }
}

async fn stop_trace(State(shared): State<Arc<Shared>>, name: Named) -> Response {
    match name.map_or(Err(traces::Refused::Unknown), |Path(name)| shared.traces.stop(&name)) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(why) => no_trace(&why),
    }
}

/// All that was traced, as text.
async fn trace_file(State(shared): State<Arc<Shared>>, name: Named) -> Response {
    match read_trace(shared, name, 0, FILE_BYTES_MAX).await {
        Ok((text, _)) => ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response(),
        Err(why) => no_trace(&why),
    }
}

/// Where to read on, and how much.
#[derive(Deserialize)]
#[serde(default)]
struct Part {
    position: u64,
    bytes: u64,
}

impl Default for Part {
    fn default() -> Part {
        Part { position: 0, bytes: 1000 }
    }
}

/// A part of what was traced, as EMQX gives it to who follows a trace.
async fn trace_part(
    State(shared): State<Arc<Shared>>,
    name: Named,
    part: Result<Query<Part>, QueryRejection>,
) -> Response {
    let part = match part {
        Ok(Query(part)) => part,
        Err(why) => return refused(StatusCode::BAD_REQUEST, "BAD_REQUEST", &why.body_text()),
    };
    let bytes = part.bytes.min(traces::READ_BYTES_MAX);
    match read_trace(shared, name, part.position, bytes).await {
        Ok((items, position)) => {
            Json(json!({ "items": items, "meta": { "bytes": bytes, "position": position } })).into_response()
        }
        Err(why) => no_trace(&why),
    }
}

async fn read_trace(
    shared: Arc<Shared>,
    name: Named,
    position: u64,
    bytes: u64,
) -> Result<(String, u64), traces::Refused> {
    let Ok(Path(name)) = name else { return Err(traces::Refused::Unknown) };
    let read = spawn_blocking(move || shared.traces.read(&name, position, bytes)).await;
    read.unwrap_or_else(|_| Err(traces::Refused::Bad("control is about to stop".to_owned())))
}

/// Forgets what a server has said about clients. Reading everything again does that, and leaves nothing half new.
async fn forget(State(shared): State<Arc<Shared>>) -> Response {
    match shared.reload().await {
        Ok(_) => StatusCode::NO_CONTENT.into_response(),
        Err(why) => refused(StatusCode::BAD_REQUEST, "BAD_CONFIG", &why),
    }
}

async fn not_found() -> Response {
    refused(StatusCode::NOT_FOUND, "NOT_FOUND", "there is nothing at this path")
}

async fn method_not_allowed() -> Response {
    refused(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "this path does not take that method")
}

pub(crate) fn refused(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(json!({ "code": code, "message": message }))).into_response()
}
