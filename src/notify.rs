//! Words for systemd (`Type=notify`). Without `NOTIFY_SOCKET` there is nobody to tell.

use std::{
    env,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

use tracing::debug;

/// Tells the service manager, for example `READY=1`.
pub(crate) fn tell(state: &str) {
    let Ok(path) = env::var("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let told = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(cause) = told {
        debug!("the service manager was not told {state:?}: {cause}");
    }
}
