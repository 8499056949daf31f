//! `authorization.*`: what a client may publish and subscribe to. EMQX's words where a thing is the same.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use super::{
    authentication::PATH_BYTES_MAX,
    knob::{Kind, Preset::*},
    section::{choice, section},
};

/// Most sources of rules.
pub const SOURCES_MAX: usize = 16;

/// Where rules come from, and what holds beside them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Authorization {
    /// In the order in which they are asked.
    pub sources: Vec<Source>,
    /// What happens when no rule matches; without sources everything is allowed.
    pub no_match: Permission,
    /// What happens to a client whose publish is denied.
    pub deny_action: DenyAction,
    /// Filters that are refused unless a rule allows them.
    pub deny_subscribe: Vec<String>,
}

/// A file with rules.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Source {
    /// A disabled source is not read.
    pub enable: bool,
    /// What kind of source.
    pub kind: SourceKind,
    /// The file.
    pub path: String,
    /// Whose rules these are.
    pub format: RuleFormat,
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
        /// A disabled source is not read.
        enable: bool = "enable", Kind::Switch, Switch(true), Live, "false";
        /// A file on this machine.
        kind: SourceKind = "type", Kind::Choice(SourceKind::WORDS), Number(0), Live, "\"file\"";
        /// The file. It is read again at SIGHUP. Required.
        path: String = "path", Kind::Text(PATH_BYTES_MAX), Unset, Live, "\"/etc/ringmq/acl.conf\"";
        /// Whose format it has: mosquitto's `acl_file`, EMQX's `acl.conf`, or whichever of them it looks like.
        format: RuleFormat = "format", Kind::Choice(RuleFormat::WORDS), Number(0), Live, "\"mosquitto\"";
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
        AuthorizationKnobs::default().with(Vec::new())
    }
}

impl AuthorizationKnobs {
    /// The same with its sources.
    pub(super) fn with(self, sources: Vec<Source>) -> Authorization {
        let AuthorizationKnobs { no_match, deny_action, deny_subscribe } = self;
        Authorization { sources, no_match, deny_action, deny_subscribe }
    }
}

impl SourceKnobs {
    /// The source that these values describe.
    pub(super) fn source(self) -> Source {
        Source { enable: self.enable, kind: self.kind, path: self.path, format: self.format }
    }
}
