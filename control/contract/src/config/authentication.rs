//! `authentication` and `admission.*`: who is asked whether a client is who it says. EMQX's words where a thing is the same.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use super::{
    knob::{Kind, Preset::*, within},
    section::{choice, section},
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
    /// The file with user names and hashed passwords.
    pub path: String,
}

section! {
    /// Who is asked who a client is, in this order. Each allows, denies or passes on; in the end only a client without a user name may come in, where its listener allows that. Without any, a user name is believed as it is told.
    AuthenticatorKnobs at "authentication[]" {
        /// A disabled authenticator is not asked.
        enable: bool = "enable", Kind::Switch, Switch(true), Live, "false";
        /// What a client proves itself with: a user name and a password.
        mechanism: Mechanism = "mechanism", Kind::Choice(Mechanism::WORDS), Number(0), Live, "\"password_based\"";
        /// Who knows the passwords: a file in mosquitto's format, see `ringmq passwd`. A user that is not in it is passed on.
        backend: Backend = "backend", Kind::Choice(Backend::WORDS), Number(0), Live, "\"file\"";
        /// The file. It is read again at SIGHUP. Required.
        path: String = "path", Kind::Text(PATH_BYTES_MAX), Unset, Live, "\"/etc/ringmq/passwords\"";
    }
}

section! {
    /// What asking may cost. It happens on threads beside the shards; a client waits.
    Admission at "admission" {
        /// Threads that ask.
        threads: u8 = "threads", Kind::Count(within(1, 64)), Number(2), Restart, "4";
        /// Clients that may wait for an answer; more are refused as busy (0x97).
        queue_max: u32 = "queue_max", Kind::Count(within(1, 1_000_000)), Number(4096), Restart, "10000";
    }
}

choice! {
    /// What a client proves itself with.
    Mechanism {
        /// User name and password of CONNECT.
        PasswordBased = "password_based",
    }
}

choice! {
    /// Who knows the proofs.
    Backend {
        /// A file on this machine.
        File = "file",
    }
}

impl AuthenticatorKnobs {
    /// The authenticator that these values describe.
    pub(super) fn authenticator(self) -> Authenticator {
        Authenticator { enable: self.enable, mechanism: self.mechanism, backend: self.backend, path: self.path }
    }
}
