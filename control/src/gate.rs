//! Who may call what over HTTP: reading is open to loopback alone, writing needs a key or an administrator from everywhere, `/status`
//! is for load balancers and open to all. Called before every route. Always true: a request that changes something passed here.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::{Request, State, rejection::JsonRejection},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::json;
use tokio::{task::spawn_blocking, time::sleep};
use tracing::warn;

use crate::{doors::TOKEN_LIFE, http::refused, state::Shared};

/// Passwords that are compared at the same time: each takes a core for tens of milliseconds, and 19 MiB.
pub(crate) const COMPARISONS_MAX: usize = 2;
/// Whoever shows a wrong secret waits, and a guesser with them.
const PENALTY: Duration = Duration::from_millis(500);

/// Where a request comes from.
#[derive(Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Lets a request through, or says why not.
pub(crate) async fn pass(
    State(shared): State<Arc<Shared>>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let path = request.uri().path();
    // A key that could make keys would outlive its own removal.
    let of_keys = path.starts_with("/api/v5/api_key");
    let open = match path {
        "/status" | "/api/v5/status" => reads,
        // It brings its own proof.
        "/api/v5/login" => true,
        // A trace shows what clients say.
        _ => reads && peer.ip().is_loopback() && !of_keys && !path.starts_with("/api/v5/trace"),
    };
    let may = |caller| caller == Caller::Administrator || !of_keys;
    if open || caller(&shared, request.headers()).await.is_some_and(may) {
        return next.run(request).await;
    }
    if shared.tells_refusal(peer.ip()) {
        warn!(%peer, method = %request.method(), path = request.uri().path(), "an HTTP request without a key is refused");
    }
    shared.refused_http();
    let why = match of_keys {
        true => "an administrator is needed (ringmq ctl admin add)",
        false => "an API key or an administrator is needed (ringmq ctl key add, ringmq ctl admin add)",
    };
    let refusal = refused(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", why);
    ([(header::WWW_AUTHENTICATE, "Basic realm=\"ringmq\", charset=\"UTF-8\"")], refusal).into_response()
}

/// Who calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// A program with an API key.
    Program,
    Administrator,
}

/// Who brings a key with its secret, the password of an administrator, or a token? Whoever is wrong about it waits.
async fn caller(shared: &Arc<Shared>, headers: &HeaderMap) -> Option<Caller> {
    let given = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, proof) = given.split_once(' ')?;
    let administers = if scheme.eq_ignore_ascii_case("bearer") {
        shared.doors.knows_token(proof.trim())
    } else if scheme.eq_ignore_ascii_case("basic") {
        let decoded = STANDARD.decode(proof.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        match decoded.as_deref().and_then(|text| text.split_once(':')) {
            Some((key, secret)) if shared.doors.knows_key(key, secret) => return Some(Caller::Program),
            Some((name, password)) => administrator(shared, name, password).await,
            None => false,
        }
    } else {
        false
    };
    if !administers {
        sleep(PENALTY).await;
    }
    administers.then_some(Caller::Administrator)
}

async fn administrator(shared: &Arc<Shared>, name: &str, password: &str) -> bool {
    let Ok(_place) = shared.comparisons.acquire().await else { return false };
    let (shared, name, password) = (shared.clone(), name.to_owned(), password.to_owned());
    spawn_blocking(move || shared.doors.knows_admin(&name, &password)).await.unwrap_or(false)
}

/// What an administrator shows to get a token.
#[derive(Deserialize)]
pub(crate) struct Login {
    username: String,
    password: String,
}

/// A token for the password of an administrator, with EMQX's field names.
pub(crate) async fn login(State(shared): State<Arc<Shared>>, login: Result<Json<Login>, JsonRejection>) -> Response {
    let login = match login {
        Ok(Json(login)) => login,
        Err(why) => return refused(StatusCode::BAD_REQUEST, "BAD_REQUEST", &why.body_text()),
    };
    if !administrator(&shared, &login.username, &login.password).await {
        sleep(PENALTY).await;
        shared.refused_http();
        return refused(StatusCode::UNAUTHORIZED, "BAD_USERNAME_OR_PWD", "no administrator has this name and password");
    }
    match shared.doors.token() {
        Ok(token) => {
            let life_s = TOKEN_LIFE.as_secs();
            Json(json!({ "token": token, "version": env!("CARGO_PKG_VERSION"), "expires_in": life_s })).into_response()
        }
        Err(why) => refused(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR", &why),
    }
}
