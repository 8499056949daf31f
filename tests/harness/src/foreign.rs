//! A mosquitto in the place of the node, to check the tests themselves (see the crate's documentation).
//! Called by [`crate::launch`].
//!
//! Always true: it listens on loopback only and keeps nothing.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The foreign broker's executable, when one was asked for.
pub fn executable() -> Option<PathBuf> {
    std::env::var_os("RINGMQ_TEST_FOREIGN").map(PathBuf::from)
}

/// Writes its configuration and gives the arguments to start it with.
pub fn arguments(directory: &Path, mqtt: SocketAddr) -> Vec<String> {
    let file = directory.join("foreign.conf");
    let text = format!(
        "listener {} {}\nallow_anonymous true\nset_tcp_nodelay true\nmax_queued_messages 0\n\
         max_topic_alias 16\nmax_packet_size 1048576\n",
        mqtt.port(),
        mqtt.ip()
    );
    std::fs::write(&file, text).expect("the data directory is writable");
    vec!["-c".to_owned(), file.display().to_string()]
}
