//! The io_uring that a shard owns and sleeps in. One per shard, made and used on its thread only.
//! [`crate::shard`] drives it; [`crate::connections`] and [`crate::listener`] say what to do, and this
//! file is the only one that puts operations into the kernel's hands.
//!
//! Always true: memory that an operation points at stays in place until its completion. Receives use
//! only [`Buffers`], which live as long as the ring; a send names bytes whose owner keeps them (see
//! [`Ring::send`]). Operations that complete are counted, and a ring is dropped only when none is in
//! flight, or its buffers are leaked.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    time::Duration,
};

use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};

use crate::buffers::{BUFFER_GROUP, Buffers};

/// Places in the submission queue; more operations in one turn cost one more system call.
const SUBMISSIONS: u32 = 1024;
/// Places in the completion queue; the kernel keeps what does not fit until we have read.
const COMPLETIONS: u32 = 8192;
/// How long a ring waits for cancelled operations before it gives up and leaks their memory.
const QUIESCE: Duration = Duration::from_secs(1);

/// What an operation was for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Op {
    /// Multishot accept; `index` is the listener.
    Accept = 1,
    /// Receive of a connection, single or multishot.
    Receive,
    /// Send of a connection.
    Send,
    /// Connect of a dialled connection.
    Connect,
    /// Read of the eventfd that ordinary threads wake us with.
    Alarm,
    /// A wake by another shard: arrives here, was sent there.
    Woken,
    /// A wake that could not be delivered; `index` is the shard that sleeps on.
    WakeFailed,
    /// Cancel or close: only their effect matters.
    Unwatched,
}

/// Names the tenant of an operation; travels through the kernel as `user_data`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Token {
    pub(crate) op: Op,
    /// Place in the table that `op` refers to, below [`Token::INDEX_MAX`].
    pub(crate) index: u32,
    /// Generation of the tenant of that place.
    pub(crate) generation: u32,
}

impl Token {
    /// Bound of `index`: 24 bits beside 8 bits of operation and 32 bits of generation.
    pub(crate) const INDEX_MAX: u32 = 1 << 24;

    pub(crate) const fn plain(op: Op) -> Token {
        Token { op, index: 0, generation: 0 }
    }

    const fn encode(self) -> u64 {
        (self.op as u64) << 56 | (self.index as u64) << 32 | self.generation as u64
    }

    fn decode(user_data: u64) -> Option<Token> {
        let op = match (user_data >> 56) as u8 {
            1 => Op::Accept,
            2 => Op::Receive,
            3 => Op::Send,
            4 => Op::Connect,
            5 => Op::Alarm,
            6 => Op::Woken,
            7 => Op::WakeFailed,
            8 => Op::Unwatched,
            _ => return None,
        };
        Some(Token { op, index: (user_data >> 32) as u32 & (Token::INDEX_MAX - 1), generation: user_data as u32 })
    }
}

/// One completion.
#[derive(Clone, Copy)]
pub(crate) struct Completion {
    pub(crate) token: Token,
    /// Bytes, a descriptor, or a negative `errno`.
    pub(crate) result: i32,
    /// The operation goes on (multishot).
    pub(crate) more: bool,
    /// The receive buffer that was filled; it must go back with [`Buffers::recycle`].
    pub(crate) buffer: Option<u16>,
}

/// How long [`Ring::enter`] may sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Patience {
    /// Not at all: there is work left.
    None,
    /// Until something completes.
    Forever,
    /// Until something completes, or so long.
    For(Duration),
}

/// One io_uring with its receive buffers.
pub(crate) struct Ring {
    uring: IoUring,
    /// What [`Op::Receive`] fills. `None` only while the ring is being dropped.
    buffers: Option<Buffers>,
    /// Operations that did not fit into the submission queue, in order.
    backlog: VecDeque<squeue::Entry>,
    /// Operations whose last completion has not come.
    in_flight: usize,
    /// Where the kernel writes what the eventfd read brings: boxed, so that it stays in place.
    alarm: Box<u64>,
}

impl Ring {
    /// Sets up a ring for the calling thread.
    pub(crate) fn new() -> io::Result<Ring> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let buffers = Buffers::register(&uring)?;
        Ok(Ring { uring, buffers: Some(buffers), backlog: VecDeque::new(), in_flight: 0, alarm: Box::new(0) })
    }

    /// The descriptor that other shards send wakes to.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.uring.as_raw_fd()
    }

    /// The receive buffers.
    pub(crate) fn buffers(&mut self) -> &mut Buffers {
        self.buffers.as_mut().expect("buffers leave only in drop")
    }

    /// Submits what is queued, runs the kernel's deferred work, and sleeps if `patience` says so.
    pub(crate) fn enter(&mut self, patience: Patience) -> io::Result<()> {
        self.refill();
        self.buffers().publish();
        let (queued, pending) = {
            let submissions = self.uring.submission();
            (submissions.len() as u32, submissions.taskrun() || submissions.cq_overflow())
        };
        let patience = if self.backlog.is_empty() { patience } else { Patience::None };
        let ready = !self.uring.completion().is_empty();
        if patience == Patience::None && queued == 0 && !pending {
            return Ok(());
        }
        let want = u32::from(patience != Patience::None && !ready);
        let result = match patience {
            Patience::For(time) => {
                let time = types::Timespec::from(time);
                let arguments = types::SubmitArgs::new().timespec(&time);
                let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
                // SAFETY: with EXT_ARG the argument is a `SubmitArgs`, whose timespec outlives the call. The
                // crate's safe calls omit GETEVENTS when nothing is awaited, and deferred work would not run.
                unsafe { self.uring.submitter().enter(queued, want, flags.bits(), Some(&arguments)) }
            }
            Patience::None | Patience::Forever => {
                // SAFETY: no argument is passed; as above for why the raw call is used.
                unsafe {
                    self.uring.submitter().enter::<libc::sigset_t>(queued, want, EnterFlags::GETEVENTS.bits(), None)
                }
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The time is over; a signal; the kernel wants its completions read or memory back first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Moves all completions that are there into `completions`.
    pub(crate) fn completions(&mut self, completions: &mut Vec<Completion>) {
        for entry in self.uring.completion() {
            let more = cqueue::more(entry.flags());
            let Some(token) = Token::decode(entry.user_data()) else { continue };
            if !more && !matches!(token.op, Op::Woken | Op::WakeFailed | Op::Unwatched) {
                self.in_flight -= 1;
            }
            completions.push(Completion {
                token,
                result: entry.result(),
                more,
                buffer: cqueue::buffer_select(entry.flags()),
            });
        }
    }

    /// Arms a multishot accept.
    pub(crate) fn accept(&mut self, listener: RawFd, index: u32) {
        let token = Token { op: Op::Accept, index, generation: 0 };
        self.start(opcode::AcceptMulti::new(types::Fd(listener)).flags(libc::SOCK_CLOEXEC).build(), token);
    }

    /// Arms a receive into the provided buffers: one, or until it is cancelled.
    pub(crate) fn receive(&mut self, socket: RawFd, token: Token, multishot: bool) {
        let entry = if multishot {
            opcode::RecvMulti::new(types::Fd(socket), BUFFER_GROUP).build()
        } else {
            opcode::Recv::new(types::Fd(socket), std::ptr::null_mut(), 0)
                .buf_group(BUFFER_GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT)
        };
        self.start(entry, token);
    }

    /// Sends `bytes`.
    ///
    /// # Safety
    /// `bytes` must stay in place and unchanged until the completion of `token`. A safe signature would
    /// have to own the bytes, that is move a vector in and out for each send of each connection.
    pub(crate) unsafe fn send(&mut self, socket: RawFd, token: Token, bytes: &[u8]) {
        // One SEND is at most what a length of 32 bits can say; the rest follows as after any short send.
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX / 2);
        let entry = opcode::Send::new(types::Fd(socket), bytes.as_ptr(), length)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.start(entry, token);
    }

    /// Connects `socket`.
    ///
    /// # Safety
    /// `address` must stay in place and unchanged until the completion of `token`; as for [`Ring::send`].
    pub(crate) unsafe fn connect(&mut self, socket: RawFd, token: Token, address: &socket2::SockAddr) {
        let entry = opcode::Connect::new(types::Fd(socket), address.as_ptr().cast(), address.len()).build();
        self.start(entry, token);
    }

    /// Asks for the end of the operation `token`, which then completes with `ECANCELED` (or as it would have).
    pub(crate) fn cancel(&mut self, token: Token) {
        self.fire(opcode::AsyncCancel::new(token.encode()).build(), Token::plain(Op::Unwatched));
    }

    /// Closes `socket` after everything that was started before, without waiting.
    pub(crate) fn close(&mut self, socket: OwnedFd) {
        let descriptor = std::os::fd::IntoRawFd::into_raw_fd(socket);
        self.fire(opcode::Close::new(types::Fd(descriptor)).build(), Token::plain(Op::Unwatched));
    }

    /// Wakes the shard that sleeps in the ring `descriptor`; [`Op::WakeFailed`] with `index` if that fails.
    pub(crate) fn wake(&mut self, descriptor: RawFd, index: u32) {
        let arrives_as = Token::plain(Op::Woken).encode();
        let entry = opcode::MsgRingData::new(types::Fd(descriptor), 0, arrives_as, None).build();
        self.fire(entry, Token { op: Op::WakeFailed, index, generation: 0 });
    }

    /// Reads the eventfd, so that a write to it ends our sleep.
    pub(crate) fn listen_to_alarm(&mut self, eventfd: RawFd) {
        let place = std::ptr::from_mut(&mut *self.alarm).cast();
        self.start(
            opcode::Read::new(types::Fd(eventfd), place, size_of::<u64>() as u32).build(),
            Token::plain(Op::Alarm),
        );
    }

    /// An operation whose completion is awaited.
    fn start(&mut self, entry: squeue::Entry, token: Token) {
        self.in_flight += 1;
        self.push(entry.user_data(token.encode()));
    }

    /// An operation that completes in silence when it succeeds.
    fn fire(&mut self, entry: squeue::Entry, token: Token) {
        self.push(entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(token.encode()));
    }

    fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() && self.try_push(&entry) {
            return;
        }
        self.backlog.push_back(entry);
        // A failed submission leaves the entry in the backlog, and the next `enter` reports what is wrong.
        let _ = self.uring.submitter().submit();
        self.refill();
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the entries built in this file point at the provided buffers and the alarm, which the ring
        // owns, or at memory that the callers of `send` and `connect` promise to keep.
        unsafe { self.uring.submission().push(entry).is_ok() }
    }

    fn refill(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                return;
            }
        }
    }

    /// Cancels everything and waits until the kernel has let go of our memory. Answers whether it has.
    pub(crate) fn quiesce(&mut self) -> bool {
        let everything = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
        let end = std::time::Instant::now() + QUIESCE;
        let mut ended = Vec::new();
        while self.in_flight > 0 || !self.backlog.is_empty() {
            self.fire(everything.clone(), Token::plain(Op::Unwatched));
            if std::time::Instant::now() > end || self.enter(Patience::For(Duration::from_millis(10))).is_err() {
                return false;
            }
            self.completions(&mut ended);
            for completion in ended.drain(..) {
                if let (Op::Accept, Ok(socket)) = (completion.token.op, u32::try_from(completion.result)) {
                    drop(owned(socket as RawFd));
                }
            }
        }
        true
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if !self.quiesce() {
            // The kernel may still write into them: memory lost on the way out is better than memory corrupted.
            std::mem::forget(self.buffers.take());
            std::mem::forget(std::mem::take(&mut self.alarm));
        }
    }
}

/// Takes possession of a descriptor that an accept has just returned.
pub(crate) fn owned(descriptor: RawFd) -> OwnedFd {
    // SAFETY: called once per successful accept with the descriptor the kernel made for us; nobody else knows
    // it. Completions carry plain numbers, so there is no safe way from one to an owner.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(descriptor) }
}
