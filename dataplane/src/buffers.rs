//! The receive buffers of one shard's ring: the kernel picks one for each receive that has bytes, lends it to
//! us with the completion, and gets it back when the bytes were parsed. So an idle connection owns none.
//! Lives inside [`crate::ring::Ring`], on its shard's thread only.
//!
//! Always true: a buffer is either in the kernel's hands (between [`Buffers::recycle`] and the completion that
//! names it) or in ours (from the completion to `recycle`), never in both.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    io,
    ptr::NonNull,
    sync::atomic::{AtomicU16, Ordering},
};

use io_uring::{IoUring, types};

/// The only group of provided buffers.
pub(crate) const BUFFER_GROUP: u16 = 0;
/// Buffers per shard: what may be received between two turns before the kernel has to wait for us.
const BUFFERS: u16 = 256;
/// Bytes of one buffer: the most that one completion brings.
pub(crate) const BUFFER_BYTES: usize = 16 * 1024;
const PAGE_BYTES: usize = 4096;
const _: () = assert!(BUFFERS.is_power_of_two(), "the kernel masks the tail of a buffer ring");

/// Page-aligned zeroed memory.
struct Pages {
    start: NonNull<u8>,
    layout: Layout,
}

impl Pages {
    fn new(bytes: usize) -> Pages {
        let layout = Layout::from_size_align(bytes, PAGE_BYTES).expect("a size far below isize::MAX");
        // SAFETY: the layout's size is not zero (constants of this file). The kernel demands page alignment,
        // which no safe collection promises.
        let start = unsafe { alloc_zeroed(layout) };
        Pages { start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A ring of buffers shared with the kernel.
pub(crate) struct Buffers {
    entries: Pages,
    bytes: Pages,
    tail: u16,
    /// Recycled and not yet told to the kernel.
    unpublished: bool,
}

// SAFETY: `Buffers` owns its pages; nothing in them belongs to a thread. It moves only before its ring is used.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Allocates the buffers and hands them to the kernel. They must outlive `uring`'s receives.
    pub(crate) fn register(uring: &IoUring) -> io::Result<Buffers> {
        let entries = Pages::new(usize::from(BUFFERS) * size_of::<types::BufRingEntry>());
        let bytes = Pages::new(usize::from(BUFFERS) * BUFFER_BYTES);
        let address = entries.start.as_ptr() as u64;
        // SAFETY: `entries` is page-aligned, has room for BUFFERS entries, and is dropped after the ring's
        // operations have ended (see `Ring::drop`).
        unsafe { uring.submitter().register_buf_ring_with_flags(address, BUFFERS, BUFFER_GROUP, 0)? };
        let mut buffers = Buffers { entries, bytes, tail: 0, unpublished: false };
        for buffer in 0..BUFFERS {
            buffers.recycle(buffer);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// What the kernel wrote into `buffer`, which a completion has just named.
    pub(crate) fn bytes(&self, buffer: u16, length: usize) -> &[u8] {
        assert!(buffer < BUFFERS && length <= BUFFER_BYTES, "the kernel names buffers that we gave it");
        // SAFETY: inside `bytes` by the assertion, initialised (zeroed at first), and ours until `recycle`,
        // which needs `&mut self`. The memory is shared with the kernel, so it cannot be a plain vector.
        unsafe {
            let start = self.bytes.start.as_ptr().add(usize::from(buffer) * BUFFER_BYTES);
            std::slice::from_raw_parts(start, length)
        }
    }

    /// Gives `buffer` back; the kernel learns of it with [`Buffers::publish`].
    pub(crate) fn recycle(&mut self, buffer: u16) {
        assert!(buffer < BUFFERS, "the kernel names buffers that we gave it");
        let place = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: `place` and `buffer` are below BUFFERS; the kernel does not read an entry at or behind the
        // tail before `publish`. A raw pointer, because the first entry overlaps the tail that the kernel reads.
        unsafe {
            let entry = &mut *self.entries.start.as_ptr().cast::<types::BufRingEntry>().add(place);
            entry.set_addr(self.bytes.start.as_ptr().add(usize::from(buffer) * BUFFER_BYTES) as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
        self.unpublished = true;
    }

    /// Shows the kernel all buffers that came back.
    pub(crate) fn publish(&mut self) {
        if !std::mem::take(&mut self.unpublished) {
            return;
        }
        // SAFETY: the tail lies inside `entries` and is only ever accessed atomically; the release store makes the
        // entries before it visible. This is the kernel's interface, a plain address.
        unsafe {
            let tail = types::BufRingEntry::tail(self.entries.start.as_ptr().cast::<types::BufRingEntry>());
            AtomicU16::from_ptr(tail.cast_mut()).store(self.tail, Ordering::Release);
        }
    }
}
