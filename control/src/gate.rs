//! Who may call what over HTTP: reading is open to loopback alone, writing needs a key or an administrator from everywhere, `/status`
//! is for load balancers and open to all. Called before every route. Always true: a request that changes something passed here.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::json;
use tokio::{task::spawn_blocking, time::sleep};
use tracing::warn;

use crate::{
    doors::{Doors, TOKEN_LIFE},
    http::refused,
    state::Shared,
};

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
    let open = match request.uri().path() {
        "/status" | "/api/v5/status" => reads,
        // It brings its own proof.
        "/api/v5/login" => true,
        _ => reads && peer.ip().is_loopback(),
    };
    if open || known(&shared, request.headers()).await {
        return next.run(request).await;
    }
    warn!(%peer, method = %request.method(), path = request.uri().path(), "an HTTP request without a key is refused");
    shared.refused_http();
    let why = "an API key or an administrator is needed (ringmq ctl key add, ringmq ctl admin add)";
    let refusal = refused(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", why);
    ([(header::WWW_AUTHENTICATE, "Basic realm=\"ringmq\", charset=\"UTF-8\"")], refusal).into_response()
}

/// Does a request bring a key with its secret, the password of an administrator, or a token?
async fn known(shared: &Arc<Shared>, headers: &HeaderMap) -> bool {
    let Some(given) = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) else { return false };
    let Some((scheme, proof)) = given.split_once(' ') else { return false };
    let known = if scheme.eq_ignore_ascii_case("bearer") {
        shared.doors.knows_token(proof.trim())
    } else if scheme.eq_ignore_ascii_case("basic") {
        let decoded = STANDARD.decode(proof.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        match decoded.as_deref().and_then(|text| text.split_once(':')) {
            Some((key, secret)) if shared.doors.knows_key(key, secret) => true,
            Some((name, password)) => administrator(shared, name, password).await,
            None => false,
        }
    } else {
        false
    };
    if !known {
        sleep(PENALTY).await;
    }
    known
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
pub(crate) async fn login(State(shared): State<Arc<Shared>>, Json(login): Json<Login>) -> Response {
    if !administrator(&shared, &login.username, &login.password).await {
        sleep(PENALTY).await;
        shared.refused_http();
        return refused(StatusCode::UNAUTHORIZED, "BAD_USERNAME_OR_PWD", "no administrator has this name and password");
    }
    match Doors::token(&shared.doors) {
        Ok(token) => {
            let life_s = TOKEN_LIFE.as_secs();
            Json(json!({ "token": token, "version": env!("CARGO_PKG_VERSION"), "expires_in": life_s })).into_response()
        }
        Err(why) => refused(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR", &why),
    }
}
