//! What an operator sees, on the real executable: figures and the board that draws them, `$SYS`, events, traces, log lines.

mod board;
mod system_topics;

use harness::Setup;

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_ringmq"))
}
