//! `authorization.*`: what a client may publish and subscribe to. EMQX's words where a thing is the same.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use super::{
    authentication::PATH_BYTES_MAX,
    knob::{Kind, Preset::*, within},
    section::{choice, section},
    units::Clock,
};

/// Most sources of rules.
pub const SOURCES_MAX: usize = 16;

/// Where rules come from, and what holds beside them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Authorization {
    /// In the order in which they are asked.
    pub sources: Vec<Source>,
    /// How much is remembered of what a server says.
    pub cache: CacheKnobs,
    /// What happens when no rule matches; without sources everything is allowed.
    pub no_match: Permission,
    /// What happens to a client whose publish is denied.
    pub deny_action: DenyAction,
    /// Filters that are refused unless a rule allows them.
    pub deny_subscribe: Vec<String>,
}

/// A file with rules, or a server that knows them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Source {
    /// A disabled source is not read, and not asked.
    pub enable: bool,
    /// What kind of source.
    pub kind: SourceKind,
    /// The file; empty for a server.
    pub path: String,
    /// Whose rules these are.
    pub format: RuleFormat,
    /// How a server is asked.
    pub server: ServerKnobs,
}

section! {
    /// What a client may publish and subscribe to.
    AuthorizationKnobs at "authorization" {
        /// When no rule of any source matches. Without sources everything is allowed.
        no_match: Permission = "no_match", Kind::Choice(Permission::WORDS), Number(1), Live, "\"allow\"";
        /// A publish that is denied is shed, and refused with 0x87 where the protocol can say so (`ignore`); or it closes the connection (`disconnect`).
        deny_action: DenyAction = "deny_action", Kind::Choice(DenyAction::WORDS), Number(0), Live, "\"disconnect\"";
        /// Filters that are refused at SUBSCRIBE unless a rule allows them: those with a leading wildcard exactly as they are written here, others with all that they match.
        deny_subscribe: Vec<String> = "deny_subscribe", Kind::Array, List(&[]), Live, "[\"$SYS/#\", \"#\", \"+/#\"]";
    }
}

section! {
    /// Where rules come from, in this order; the first rule that matches decides.
    SourceKnobs at "authorization.sources[]" {
        /// A disabled source is not read, and not asked.
        enable: bool = "enable", Kind::Switch, Switch(true), Live, "false";
        /// A file on this machine, or an HTTP server; one server at most.
        kind: SourceKind = "type", Kind::Choice(SourceKind::WORDS), Number(0), Live, "\"http\"";
        /// The file. It is read again at SIGHUP. Required for a file.
        path: String = "path", Kind::Text(PATH_BYTES_MAX), Unset, Live, "\"/etc/ringmq/acl.conf\"";
        /// Whose format it has: mosquitto's `acl_file`, EMQX's `acl.conf`, or whichever of them it looks like.
        format: RuleFormat = "format", Kind::Choice(RuleFormat::WORDS), Number(0), Live, "\"mosquitto\"";
    }
}

section! {
    /// How a server is asked what a client may do (`type = "http"`): about each PUBLISH, each filter of a SUBSCRIBE and the topic of a will that no rule of the sources before it decides. It answers 200 with `{"result": "allow" | "deny" | "ignore"}`, or 204 for yes. `ignore`, any other answer, or none in time passes on to the sources behind it. The packet waits meanwhile, and its connection with it.
    ServerKnobs at "authorization.sources[]" {
        /// GET puts the question into the query of the URL, POST sends it as JSON.
        method: ServerMethod = "method", Kind::Choice(ServerMethod::WORDS), Number(0), Live, "\"get\"";
        /// Whom to ask; places as in `body` are filled in. This version speaks plain HTTP: put a TLS proxy beside it for anything beyond this machine. Required for a server.
        url: Option<String> = "url", Kind::Text(2048), Unset, Live, "\"http://127.0.0.1:8080/acl\"";
        /// What the question says, `name=value`; `${clientid}`, `${username}`, `${topic}`, `${action}` (publish or subscribe), `${qos}` and `${peerhost}` are filled in.
        body: Vec<String> = "body", Kind::Array, List(&["clientid=${clientid}", "username=${username}", "topic=${topic}", "action=${action}", "qos=${qos}", "peerhost=${peerhost}"]), Live, "[\"user=${username}\", \"topic=${topic}\", \"access=${action}\"]";
        /// Headers of the request, as `name=value`.
        headers: Vec<String> = "headers", Kind::Array, List(&[]), Live, "[\"authorization=Bearer sesame\"]";
        /// How long an answer may take. A thread waits that long: see `admission.hook_threads`.
        request_timeout_ms: u32 = "request_timeout", Kind::Duration(Clock::Ms, within(10, 60_000)), Number(2000), Live, "\"500ms\"";
    }
}

section! {
    /// How much of what a server says is remembered, per connection. SIGHUP forgets it.
    CacheKnobs at "authorization.cache" {
        /// Without it, every packet is asked about.
        enable: bool = "enable", Kind::Switch, Switch(true), Live, "false";
        /// Answers per connection; the oldest gives way.
        max_size: u32 = "max_size", Kind::Count(within(1, 4096)), Number(32), Live, "100";
        /// How long an answer counts.
        ttl_ms: u32 = "ttl", Kind::Duration(Clock::Ms, within(100, 86_400_000)), Number(60_000), Live, "\"10s\"";
    }
}

choice! {
    /// Yes or no.
    Permission {
        /// It may.
        Allow = "allow",
        /// It may not.
        Deny = "deny",
    }
}

choice! {
    /// What happens to a client whose publish is denied.
    DenyAction {
        /// The message is shed.
        Ignore = "ignore",
        /// The connection is closed.
        Disconnect = "disconnect",
    }
}

choice! {
    /// Where rules come from.
    SourceKind {
        /// A file.
        File = "file",
        /// An HTTP server.
        Http = "http",
    }
}

choice! {
    /// How a server is asked.
    ServerMethod {
        /// With a JSON body.
        Post = "post",
        /// With a query.
        Get = "get",
    }
}

choice! {
    /// How rules are written.
    RuleFormat {
        /// The file shows it: EMQX's rules begin with a brace.
        Auto = "auto",
        /// mosquitto's `acl_file`.
        Mosquitto = "mosquitto",
        /// EMQX's `acl.conf`.
        Emqx = "emqx",
    }
}

impl Default for Authorization {
    fn default() -> Authorization {
        AuthorizationKnobs::default().with(Vec::new(), CacheKnobs::default())
    }
}

impl AuthorizationKnobs {
    /// The same with its sources, and what is remembered of them.
    pub(super) fn with(self, sources: Vec<Source>, cache: CacheKnobs) -> Authorization {
        let AuthorizationKnobs { no_match, deny_action, deny_subscribe } = self;
        Authorization { sources, cache, no_match, deny_action, deny_subscribe }
    }
}

impl SourceKnobs {
    /// The source that these values describe.
    pub(super) fn source(self, server: ServerKnobs) -> Source {
        Source { enable: self.enable, kind: self.kind, path: self.path, format: self.format, server }
    }
}
