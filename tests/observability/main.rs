//! What an operator sees, on the real executable: figures and the board that draws them, `$SYS`, events, traces, log lines.

mod board;
mod events;
mod system_topics;
mod traces;

use harness::{Node, Role, Setup};

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_ringmq"))
}

/// Has a node read its configuration again.
fn reload(node: &Node) {
    node.signal(Role::Supervisor, rustix::process::Signal::HUP);
}
