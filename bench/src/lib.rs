//! What the benches share: the counter of allocations, and the inputs that several of them measure.
//! Linked into every bench of this package, never into the node. Always true: the counter belongs to the
//! thread that asks, so what other threads allocate does not disturb it.

pub mod world;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hint::black_box,
};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, with a counter per thread.
pub struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    // A thread that is ending has no counter any more, and nobody who asks for it.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes to `System` unchanged; counting touches a `Cell` of the thread, which needs no
// initialisation that could allocate. A global allocator cannot be written without `unsafe`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: our caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: our caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: `block` came from `System` through this allocator, and our caller keeps the contract.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` came from `System` through this allocator, and our caller keeps the contract.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Allocations, growth included, that `work` makes on this thread.
pub fn allocations<T>(work: impl FnOnce() -> T) -> u64 {
    let before = ALLOCATIONS.get();
    black_box(work());
    ALLOCATIONS.get() - before
}

/// Runs `work` until its buffers have grown, then prints how often one more run allocates, on average over
/// `runs`, and returns it.
pub fn allocations_per_run(name: &str, runs: u32, mut work: impl FnMut()) -> f64 {
    for _ in 0..runs {
        work();
    }
    let total = allocations(|| (0..runs).for_each(|_| work()));
    let per_run = total as f64 / f64::from(runs);
    println!("{name}: {per_run} allocations per run");
    per_run
}

/// [`allocations_per_run`] of a hot path, which makes none.
pub fn assert_allocation_free(name: &str, work: impl FnMut()) {
    let per_run = allocations_per_run(name, 1000, work);
    assert!(per_run == 0.0, "{name} is a hot path, and allocates {per_run} times per run in steady state");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_allocation_and_each_growth_counts_once() {
        assert_eq!(allocations(|| 1 + 1), 0);
        assert_eq!(allocations(|| Box::new(1)), 1);
        let mut bytes: Vec<u8> = Vec::with_capacity(1);
        assert_eq!(allocations(|| bytes.extend_from_slice(&[0; 100])), 1);
        assert_eq!(allocations(|| vec![0u8; 100]), 1);
    }

    #[test]
    fn other_threads_do_not_count() {
        let elsewhere = std::thread::spawn(|| drop(black_box(vec![1u8; 100])));
        assert_eq!(allocations(|| while !elsewhere.is_finished() {}), 0);
    }

    #[test]
    #[should_panic(expected = "is a hot path")]
    fn a_hot_path_that_allocates_is_found() {
        assert_allocation_free("boxing", || drop(black_box(Box::new(1))));
    }
}
