//! `authentication` and `admission.*`: who is asked whether a client is who it says. EMQX's words where a thing is the same.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use super::{
    knob::{Kind, Preset::*, within},
    secret::Secret,
    section::{choice, section},
    units::Clock,
};

/// Most authenticators of a node: each may take time for each CONNECT.
pub const AUTHENTICATORS_MAX: usize = 16;
/// Longest path of a file with passwords or rules.
pub const PATH_BYTES_MAX: usize = 4096;

/// Somebody to ask who a client is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Authenticator {
    /// A disabled authenticator is not asked.
    pub enable: bool,
    /// What a client proves itself with.
    pub mechanism: Mechanism,
    /// Who knows the proofs.
    pub backend: Backend,
    /// The file with user names and hashed passwords; empty for tokens.
    pub path: String,
    /// How tokens are judged.
    pub token: TokenKnobs,
    /// How an HTTP server is asked.
    pub hook: HookKnobs,
}

section! {
    /// Who is asked who a client is, in this order. Each allows, denies or passes on; in the end only a client without a user name may come in, where its listener allows that. Without any, a user name is believed as it is told.
    AuthenticatorKnobs at "authentication[]" {
        /// A disabled authenticator is not asked.
        enable: bool = "enable", Kind::Switch, Switch(true), Live, "false";
        /// What a client proves itself with: a user name and a password, a signed token (JWT), or a proof in several steps (SCRAM-SHA-256) from a client that names it as its Authentication Method.
        mechanism: Mechanism = "mechanism", Kind::Choice(Mechanism::WORDS), Number(0), Live, "\"jwt\"";
        /// Who knows the passwords: a file in mosquitto's format (for `scram` one of `ringmq passwd --scram`), which passes on whom it does not know; or a server.
        backend: Backend = "backend", Kind::Choice(Backend::WORDS), Number(0), Live, "\"http\"";
        /// The file. It is read again at SIGHUP. Required for passwords in a file, and for `scram`.
        path: String = "path", Kind::Text(PATH_BYTES_MAX), Unset, Live, "\"/etc/ringmq/passwords\"";
    }
}

section! {
    /// How tokens are judged (`mechanism = "jwt"`): by one of `secret`, `public_key` and `jwks`. The connection ends with the token's `exp`.
    TokenKnobs at "authentication[]" {
        /// Where CONNECT carries the token.
        from: TokenFrom = "from", Kind::Choice(TokenFrom::WORDS), Number(0), Live, "\"username\"";
        /// Secret of tokens that are signed with HMAC (HS256, HS384, HS512). `file:///path` takes it from a file.
        secret: Option<Secret> = "secret", Kind::Secret(16), Unset, Live, "\"file:///etc/ringmq/jwt.secret\"";
        /// A PEM file with the public key of tokens that are signed with RSA or ECDSA.
        public_key: Option<String> = "public_key", Kind::Text(PATH_BYTES_MAX), Unset, Live, "\"/etc/ringmq/jwt.pem\"";
        /// A JWKS file with keys of several signers; a token names its key (`kid`), or every key is tried.
        jwks: Option<String> = "jwks", Kind::Text(PATH_BYTES_MAX), Unset, Live, "\"/etc/ringmq/jwks.json\"";
        /// The claim that is the user name. A user name in CONNECT must be the same. A token without it proves no user name.
        username_claim: String = "username_claim", Kind::Text(256), Text("sub"), Live, "\"username\"";
        /// The claim with rules of the token's own, in EMQX's form. They are asked before those of the node.
        acl_claim: String = "acl_claim_name", Kind::Text(256), Text("acl"), Live, "\"rights\"";
        /// Claims that a token must have, as `name=value`; `${clientid}` and `${username}` in a value are what CONNECT says.
        verify_claims: Vec<String> = "verify_claims", Kind::Array, List(&[]), Live, "[\"iss=https://example.org\", \"sub=${username}\"]";
    }
}

section! {
    /// How a server is asked about passwords (`backend = "http"`). It answers 200 with `{"result": "allow" | "deny" | "ignore"}`, to which `is_superuser`, `acl` (as in a token) and `expire_at` (seconds) may be added, or 204 for yes. Any other answer, or none in time, passes on.
    HookKnobs at "authentication[]" {
        /// Where to POST the question. This version speaks plain HTTP: put a TLS proxy beside it for anything beyond this machine. Required for a server.
        url: Option<String> = "url", Kind::Text(2048), Unset, Live, "\"http://127.0.0.1:8080/auth\"";
        /// What the question says, as JSON, `name=value`; `${clientid}`, `${username}`, `${password}` and `${peerhost}` are filled in.
        body: Vec<String> = "body", Kind::Array, List(&["clientid=${clientid}", "username=${username}", "password=${password}", "peerhost=${peerhost}"]), Live, "[\"user=${username}\", \"pass=${password}\"]";
        /// Headers of the request, as `name=value`.
        headers: Vec<String> = "headers", Kind::Array, List(&[]), Live, "[\"authorization=Bearer sesame\"]";
        /// How long an answer may take. A thread waits that long: see `admission.hook_threads`.
        request_timeout_ms: u32 = "request_timeout", Kind::Duration(Clock::Ms, within(10, 60_000)), Number(2000), Live, "\"500ms\"";
    }
}

section! {
    /// What asking may cost. It happens on threads beside the shards; a client waits.
    Admission at "admission" {
        /// Threads that ask.
        threads: u8 = "threads", Kind::Count(within(1, 64)), Number(2), Restart, "4";
        /// Clients that may wait for an answer; more are refused as busy (0x97).
        queue_max: u32 = "queue_max", Kind::Count(within(1, 1_000_000)), Number(4096), Restart, "10000";
        /// Threads that wait for HTTP servers, about clients and about what they may do. They are started with the first server.
        hook_threads: u8 = "hook_threads", Kind::Count(within(1, 64)), Number(8), Restart, "32";
        /// Questions that may wait for these; more clients are refused as busy (0x97), about more packets the server is passed over.
        hook_queue_max: u32 = "hook_queue_max", Kind::Count(within(1, 1_000_000)), Number(4096), Restart, "10000";
    }
}

choice! {
    /// What a client proves itself with.
    Mechanism {
        /// User name and password of CONNECT.
        PasswordBased = "password_based",
        /// A signed token.
        Jwt = "jwt",
        /// A proof in several steps that shows the password to nobody (SCRAM-SHA-256, MQTT 5.0 only).
        Scram = "scram",
    }
}

choice! {
    /// Who knows the proofs.
    Backend {
        /// A file on this machine.
        File = "file",
        /// An HTTP server.
        Http = "http",
    }
}

choice! {
    /// Where CONNECT carries a token.
    TokenFrom {
        /// In the password.
        Password = "password",
        /// In the user name.
        Username = "username",
    }
}

impl AuthenticatorKnobs {
    /// The authenticator that these values describe.
    pub(super) fn authenticator(self, token: TokenKnobs, hook: HookKnobs) -> Authenticator {
        let AuthenticatorKnobs { enable, mechanism, backend, path } = self;
        Authenticator { enable, mechanism, backend, path, token, hook }
    }
}
