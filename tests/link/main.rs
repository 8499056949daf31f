//! Two clusters of one node each, linked, with stock clients on both sides.
//!
//! Every test has clusters of its own: interest is cluster-wide, so a filter of one test would draw the
//! messages of another across. Counters are read on the sending side, which alone knows what it did not
//! send.

mod clusters;
mod forwarding;
mod hostile;
mod interest;
mod kept;
mod peer;
mod recovery;

use harness::Setup;

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_ringmq"))
}
