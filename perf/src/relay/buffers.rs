//! The receive buffers that the relay lends to the kernel: one allocation, cut into equal pieces, announced through a
//! provided-buffer ring. Called by `ring`. Always true: a piece is either with the kernel or borrowed by exactly one
//! [`Buffers::take`].

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use io_uring::{IoUring, cqueue, squeue};

/// Bytes of one piece: a publisher's whole window of small messages.
const PIECE_BYTES: usize = 32 << 10;
/// Pieces; a power of two as the kernel demands.
const PIECES: u16 = 512;
/// The only buffer group.
pub const GROUP: u16 = 0;

const _: () = assert!(PIECES.is_power_of_two(), "the ring's tail is masked, not divided");

/// All pieces. They live as long as the process: the kernel may write to them at any time.
pub struct Buffers {
    entries: *mut BufRingEntry,
    pieces: *mut u8,
    tail: u16,
}

impl Buffers {
    /// Allocates the pieces and lends all of them.
    pub fn register(ring: &IoUring<squeue::Entry, cqueue::Entry>) -> io::Result<Buffers> {
        let entries = allocate(usize::from(PIECES) * size_of::<BufRingEntry>()).cast();
        let pieces = allocate(usize::from(PIECES) * PIECE_BYTES);
        // SAFETY: `entries` is page-aligned memory for PIECES entries that is never freed, so it outlives the ring.
        // Unsafe is the only way to register memory that the kernel writes to.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, PIECES, GROUP, 0)? };
        let mut buffers = Buffers { entries, pieces, tail: 0 };
        (0..PIECES).for_each(|piece| buffers.give_back(piece));
        buffers.publish();
        Ok(buffers)
    }

    /// Lets `read` see the first `length` bytes of a piece that a completion named, then lends it again.
    pub fn take<R>(&mut self, piece: u16, length: usize, read: impl FnOnce(&[u8]) -> R) -> R {
        assert!(piece < PIECES && length <= PIECE_BYTES, "the kernel names only what it was lent");
        // SAFETY: the piece is inside the allocation, the kernel has initialised `length` bytes of it and does not touch
        // it again before it is given back, which happens after `read` has returned.
        let bytes = unsafe { std::slice::from_raw_parts(self.pieces.add(usize::from(piece) * PIECE_BYTES), length) };
        let result = read(bytes);
        self.give_back(piece);
        result
    }

    /// Makes all that was given back visible to the kernel.
    pub fn publish(&mut self) {
        // SAFETY: the tail lies inside the first entry of our registered memory and is only ever accessed atomically.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    fn give_back(&mut self, piece: u16) {
        let slot = usize::from(self.tail & (PIECES - 1));
        // SAFETY: `slot` is below PIECES, so the entry is inside our memory; the kernel reads it only after `publish`
        // moved the tail past it.
        let entry = unsafe { &mut *self.entries.add(slot) };
        entry.set_addr(self.pieces.wrapping_add(usize::from(piece) * PIECE_BYTES) as u64);
        entry.set_len(PIECE_BYTES as u32);
        entry.set_bid(piece);
        self.tail = self.tail.wrapping_add(1);
    }
}

fn allocate(bytes: usize) -> *mut u8 {
    const PAGE_BYTES: usize = 4096;
    let Ok(layout) = Layout::from_size_align(bytes, PAGE_BYTES) else { unreachable!("a constant layout") };
    // SAFETY: the layout is not empty. A page-aligned allocation has no safe counterpart.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    memory
}
