//! Measuring real brokers over real sockets: a load generator that verifies what it receives (`load`), the connection
//! and idle-memory measurement (`connect`), the price of keeping a message (`queue`, side by side: `durable`), the floor that no broker can be far below (`relay`), and the recipe that
//! runs the same load against several brokers side by side (`compare`).
//!
//! Nothing here uses crate `mqtt`: the wire format is written a second time (`wire`), so that a fault in the broker's
//! codec cannot hide in the tool that measures it.

pub mod compare;
pub mod connect;
pub mod durable;
pub mod ledger;
pub mod load;
pub mod process;
pub mod queue;
pub mod relay;
pub mod wire;
