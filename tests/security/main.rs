//! Who is let in and what they may do, on the real executable: passwords, access rules, and changes of both while clients
//! are connected. Each test has a node and files of its own.

mod addresses;
mod bans;
mod before_connect;
mod doors;
mod flapping;
mod reload;
mod rights;
mod scram;
mod server;

use harness::wire::{Connect, V5, kind};
use harness::{Node, Raw, Role, Setup, within};
use std::fmt::Write;
use std::num::NonZeroU32;
use std::path::PathBuf;

use dataplane::auth::password::{Hashed, Method};

/// A hash that costs nothing, for tests that are about something else.
const CHEAP: Method = Method::Pbkdf2(NonZeroU32::MIN);

/// Files of passwords and rules, and the node that reads them.
struct Guarded {
    // Held for its removal.
    files: tempfile::TempDir,
    setup: Setup,
}

impl Guarded {
    /// A node with `shards`, passwords and rules as they stand in its files; `more` is added to its configuration.
    fn new(shards: u16, passwords: &str, rules: Option<&str>, more: &str) -> Guarded {
        let files = tempfile::tempdir().expect("a temporary directory");
        let setup = Setup::new(env!("CARGO_BIN_EXE_ringmq")).shards(shards);
        let guarded = Guarded { files, setup };
        guarded.write("passwords", passwords);
        let mut config = String::new();
        if !passwords.is_empty() {
            let _ = writeln!(config, "authentication = [{{ path = {:?} }}]", guarded.path("passwords"));
        }
        let _ = writeln!(config, "{more}");
        if let Some(rules) = rules {
            guarded.write("rules", rules);
            let _ = writeln!(config, "authorization.sources = [{{ path = {:?} }}]", guarded.path("rules"));
        }
        guarded.write("ringmq.toml", &config);
        let setup = guarded.setup.clone().config(&guarded.path("ringmq.toml"));
        Guarded { setup, ..guarded }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("the temporary directory is writable");
    }
}

/// Tells a node to read its files again, and waits until the policy with this number is in force.
#[track_caller]
fn reload(node: &Node, number: u32) {
    node.signal(Role::Supervisor, rustix::process::Signal::HUP);
    let line = format!("number={number}");
    within(harness::SHORT, "passwords and rules are read again", || {
        node.output().lines().any(|said| said.contains("are in force") && said.contains(&line)).then_some(())
    });
}

/// Lines of a password file.
fn passwords(users: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (user, password) in users {
        let hashed = Hashed::new(password.as_bytes(), CHEAP).expect("randomness");
        let _ = writeln!(text, "{user}:{hashed}");
    }
    text
}

/// A connection of a user that is let in.
#[track_caller]
fn enter(node: &Node, client: &str, user: &str, password: &str) -> Raw {
    Raw::connect(node.mqtt(), &Connect::new(V5, client).login(user, password))
}

/// What SUBACK says about one filter.
#[track_caller]
fn subscribe(raw: &mut Raw, filter: &str, qos: u8) -> u8 {
    raw.send(&harness::wire::subscribe(V5, 9, filter, qos));
    loop {
        let packet = raw.next(harness::SHORT).expect("the connection stays");
        if packet.kind == kind::SUBACK {
            return packet.reason();
        }
        assert_eq!(packet.kind, kind::PUBLISH, "only messages come before the answer");
    }
}
