//! The relay's only thread: sleeps in one io_uring, receives by multishot into lent buffers, and submits the sends of a
//! turn together. Always true: a client's slot is freed only when neither a receive nor a send of it is under way, so a
//! completion never reaches the wrong client.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::net::{Shutdown, shutdown, sockopt::set_tcp_nodelay};
use socket2::{Domain, Socket, Type};

use super::buffers::{Buffers, GROUP};
use super::fanout::Fanout;
use super::output::{Output, WAITING_BYTES_MAX};

const BIND_TIMEOUT: Duration = Duration::from_secs(2);
const BIND_INTERVAL: Duration = Duration::from_millis(20);
const SUBMISSIONS: u32 = 2048;
const COMPLETIONS: u32 = 16_384;
const BACKLOG: i32 = 4096;
const ACCEPT: u64 = u64::MAX;
/// Marks completions of sends; the other bits are the client's key.
const SEND: u64 = 1 << 62;

/// The ring and the sockets of all clients.
pub struct Ring {
    ring: IoUring<squeue::Entry, cqueue::Entry>,
    listener: Socket,
    buffers: Buffers,
    fanout: Fanout,
    ports: Vec<Option<Port>>,
}

/// The socket of one client.
struct Port {
    socket: OwnedFd,
    is_receiving: bool,
}

impl Ring {
    /// Binds and sets up the ring.
    pub fn listen(bind: SocketAddr) -> Result<Ring, String> {
        let open = || -> io::Result<Socket> {
            let listener = Socket::new(Domain::for_address(bind), Type::STREAM, None)?;
            listener.set_reuse_address(true)?;
            listener.bind(&bind.into())?;
            listener.listen(BACKLOG)?;
            Ok(listener)
        };
        let begin = Instant::now();
        let listener = loop {
            match open() {
                Ok(listener) => break listener,
                // The ring of a killed relay is torn down asynchronously and holds the port for a moment.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && begin.elapsed() < BIND_TIMEOUT => {
                    std::thread::sleep(BIND_INTERVAL);
                }
                Err(error) => return Err(format!("cannot listen on {bind}: {error}")),
            }
        };
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_cqsize(COMPLETIONS);
        let ring = builder.build(SUBMISSIONS).map_err(|error| {
            format!("io_uring is not available ({error}): needs Linux 6.1 and no seccomp or sysctl that forbids it")
        })?;
        let buffers =
            Buffers::register(&ring).map_err(|error| format!("provided buffers are not available: {error}"))?;
        Ok(Ring { ring, listener, buffers, fanout: Fanout::default(), ports: Vec::new() })
    }

    /// Serves for ever.
    pub fn serve(mut self) -> Result<Infallible, String> {
        let address = self.listener.local_addr().ok().and_then(|address| address.as_socket());
        let address = address.ok_or("the listener has no address")?;
        println!("ready {address}");
        self.accept();
        let mut completions = Vec::with_capacity(COMPLETIONS as usize);
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("io_uring_enter failed: {error}")),
            }
            completions.extend(self.ring.completion());
            for entry in completions.drain(..) {
                self.complete(&entry);
            }
            self.buffers.publish();
            self.flush();
        }
    }

    fn complete(&mut self, entry: &cqueue::Entry) {
        let user_data = entry.user_data();
        if user_data == ACCEPT {
            self.accepted(entry);
        } else if user_data & SEND != 0 {
            self.sent((user_data & !SEND) as usize, entry.result());
        } else {
            self.received(user_data as usize, entry);
        }
    }

    fn accepted(&mut self, entry: &cqueue::Entry) {
        if !cqueue::more(entry.flags()) {
            self.accept();
        }
        if entry.result() < 0 {
            eprintln!("accept: {}", io::Error::from_raw_os_error(-entry.result()));
            return;
        }
        // SAFETY: a completed accept hands over a fresh descriptor that nobody else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(entry.result()) };
        if let Err(error) = set_tcp_nodelay(&socket, true) {
            eprintln!("TCP_NODELAY: {error}");
        }
        let key = self.fanout.open();
        if self.ports.len() <= key {
            self.ports.resize_with(key + 1, || None);
        }
        self.ports[key] = Some(Port { socket, is_receiving: false });
        self.receive(key);
    }

    fn received(&mut self, key: usize, entry: &cqueue::Entry) {
        if let Some(port) = &mut self.ports[key] {
            port.is_receiving = cqueue::more(entry.flags());
        }
        let length = entry.result();
        if length > 0
            && let Some(piece) = cqueue::buffer_select(entry.flags())
        {
            let fanout = &mut self.fanout;
            let handled = self.buffers.take(piece, length as usize, |bytes| fanout.received(key, bytes));
            if handled.is_err() {
                self.hang_up(key);
            }
        }
        let is_over = length <= 0 && length != -libc::ENOBUFS;
        if cqueue::more(entry.flags()) {
            return;
        }
        if is_over {
            self.free(key);
        } else {
            // Out of buffers means that this turn holds them all: they are back before the next submission.
            self.receive(key);
        }
    }

    fn sent(&mut self, key: usize, result: i32) {
        let mut batch = None;
        let output = self.fanout.output(key);
        if result <= 0 {
            output.abandon();
            return self.hang_up(key);
        }
        let rest = output.sent(result as usize, |done| batch = Some(done)).map(|rest| (rest.as_ptr(), rest.len()));
        let next = rest.or_else(|| output.start().map(|next| (next.as_ptr(), next.len())));
        if let Some((bytes, length)) = next {
            self.send(key, bytes, length);
        } else if self.ports[key].as_ref().is_some_and(|port| !port.is_receiving) {
            self.free(key);
        }
        if let Some(batch) = batch {
            self.fanout.recycle(batch);
        }
    }

    fn flush(&mut self) {
        let Ring { ring, fanout, ports, .. } = self;
        fanout.flush(|key, output| {
            let Some(port) = &ports[key] else { return };
            if output.waiting_bytes() > WAITING_BYTES_MAX {
                eprintln!("client {key} does not read: cut off");
                // Both directions end with it, and the receive that completes frees the slot.
                let _ = shutdown(&port.socket, Shutdown::Both);
                return;
            }
            if let Some(entry) = start(port, key, output) {
                push(ring, &entry);
            }
        });
    }

    /// Ends both directions; the receive that completes by it frees the slot.
    fn hang_up(&mut self, key: usize) {
        if let Some(port) = &self.ports[key] {
            // Fails only if the other end was faster.
            let _ = shutdown(&port.socket, Shutdown::Both);
            if !port.is_receiving {
                self.free(key);
            }
        }
    }

    fn free(&mut self, key: usize) {
        if self.ports[key].is_some() && !self.fanout.output(key).is_sending() {
            self.ports[key] = None;
            self.fanout.close(key);
        }
    }

    fn accept(&mut self) {
        let entry = opcode::AcceptMulti::new(types::Fd(self.listener.as_raw_fd())).build().user_data(ACCEPT);
        push(&mut self.ring, &entry);
    }

    fn receive(&mut self, key: usize) {
        let Some(port) = &mut self.ports[key] else {
            return;
        };
        port.is_receiving = true;
        let entry = opcode::RecvMulti::new(types::Fd(port.socket.as_raw_fd()), GROUP).build().user_data(key as u64);
        push(&mut self.ring, &entry);
    }

    fn send(&mut self, key: usize, bytes: *const u8, length: usize) {
        if let Some(port) = &self.ports[key] {
            push(&mut self.ring, &send_entry(port, key, bytes, length));
        }
    }
}

fn start(port: &Port, key: usize, output: &mut Output) -> Option<squeue::Entry> {
    let bytes = output.start()?;
    Some(send_entry(port, key, bytes.as_ptr(), bytes.len()))
}

fn send_entry(port: &Port, key: usize, bytes: *const u8, length: usize) -> squeue::Entry {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    opcode::Send::new(types::Fd(port.socket.as_raw_fd()), bytes, length)
        .flags(libc::MSG_NOSIGNAL)
        .build()
        .user_data(SEND | key as u64)
}

fn push(ring: &mut IoUring<squeue::Entry, cqueue::Entry>, entry: &squeue::Entry) {
    loop {
        // SAFETY: receives and accepts point to no memory of ours but the registered buffers, which are never freed;
        // sends point into the flight of an `Output`, which stays in place until its completion. No safe way exists to
        // hand memory to the kernel.
        if unsafe { ring.submission().push(entry) }.is_ok() {
            return;
        }
        // Full: what is in it goes first. An error here shows again, and with a name, when the loop waits.
        let _ = ring.submit();
    }
}
