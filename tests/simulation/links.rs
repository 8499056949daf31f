//! Two clusters and the links between them: who dials whom. A dialled address is another cluster of the
//! world; the transport is an ordinary pipe.

use std::collections::HashMap;

use broker::surface::DialId;

/// Dials under way.
#[derive(Default)]
pub struct Dials {
    open: HashMap<(usize, DialId), String>,
}

impl Dials {
    /// A shard wants a connection.
    pub fn dial(&mut self, shard: usize, dial: DialId, server: &str) {
        self.open.insert((shard, dial), server.to_string());
    }

    /// Where a dial goes to.
    pub fn take(&mut self, shard: usize, dial: DialId) -> Option<String> {
        self.open.remove(&(shard, dial))
    }
}
