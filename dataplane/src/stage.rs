//! The layers that a connection's bytes pass between the kernel and the broker: plain for now; PROXY, TLS and
//! WebSocket are further variants of [`Stage`]. Sans-IO: bytes in, bytes out, no descriptor, so that a
//! stage moves with its connection to another shard by value, in the middle of whatever it is doing.

/// The state of one connection's layers.
#[derive(Debug)]
pub(crate) enum Stage {
    /// What arrives is what the broker reads.
    Plain,
}

impl Stage {
    /// Takes bytes off the wire and returns what the broker may read of them.
    pub(crate) fn open<'a>(&'a mut self, wire: &'a [u8]) -> &'a [u8] {
        match self {
            Stage::Plain => wire,
        }
    }

    /// Moves all of `plain` to `wire`, which is empty, in the form that goes onto the wire. `plain` is empty
    /// afterwards, and one of the two allocations serves the other's next use.
    pub(crate) fn seal(&mut self, plain: &mut Vec<u8>, wire: &mut Vec<u8>) {
        match self {
            Stage::Plain => std::mem::swap(plain, wire),
        }
    }
}
