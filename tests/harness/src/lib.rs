//! What the process tests share: a node of the real executable, the clients that drive it, and bounds on
//! every wait.
//!
//! Called by the areas under `tests/` (interop, protocol, faults, link, durability); no product code depends on it.
//! Always true: a process started here ends with the test process, however that ends; every wait has a
//! bound and names what it waited for; nothing here shares code with the crates under test, so a codec
//! that is wrong in both directions is still found.
//!
//! Environment:
//! - `CI=true`: a missing tool fails the test instead of skipping it.
//! - `INTEROP_CACHE`: where `.ci/run` has installed the packages below (default: `~/.cache/ringmq-ci`).
//! - `RINGMQ_TEST_PYTHON`: interpreter that has `paho-mqtt` (default: the one of `.ci/run`, then `python3`).
//! - `RINGMQ_TEST_NODE_PATH`: `node_modules` that holds `mqtt` (default: the one of `.ci/run`).
//! - `RINGMQ_TEST_FOREIGN`: path of a mosquitto executable that is started in the place of every node. It
//!   checks the tests themselves: what a second broker of good name fails is a doubtful expectation. Made
//!   for the areas interop and protocol, which leave out what only RingMQ has; processes and links have no
//!   counterpart.
//! - `RINGMQ_TEST_SEED`: the seed of tests that draw, as a failed run has printed it.

pub mod bound;
pub mod disk;
pub mod foreign;
pub mod http;
pub mod launch;
pub mod mosquitto;
pub mod node;
pub mod placement;
pub mod ports;
pub mod process;
pub mod program;
pub mod raw;
pub mod ready;
pub mod rumq;
pub mod scram;
pub mod script;
pub mod seed;
pub mod segment;
pub mod skip;
pub mod wire;

pub use bound::{LONG, MOMENT, SHORT, holds_for, within};
pub use launch::{Ended, Setup};
pub use node::{Node, Role};
pub use placement::{client_on, home_shard};
pub use program::{Program, Running};
pub use raw::Raw;
pub use seed::Rng;
