//! The node as a set of processes: how it comes up, says so, survives signals, and goes.
//!
//! Every test has a node of its own, because each hurts it.

mod control;
mod dataplane;
mod launch;
mod load;
mod refusals;
mod stop;

use harness::Setup;

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_ringmq"))
}
