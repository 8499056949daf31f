//! Appending and committing allocates nothing once it is warm, also across segments and checkpoints.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use log::{Boot, Log, Mark, Settings, Tail};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed on unchanged to the system's allocator; counting touches a thread-local cell without a
// destructor and allocates nothing. There is no safe way to see allocations.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise about `layout` is the one that is asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above, that is from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A turn of the shard: one batch in a body that was used before, and all that the log wants.
fn turn(log: &mut Log, batch: u64, mark: Mark) {
    let mut body = log.recycle().unwrap_or_default();
    body.extend_from_slice(&[7; 300]);
    log.append(batch, body, mark);
    while log.next(batch).is_some() {
        log.completed(Ok(()), batch);
    }
    assert_eq!(log.status().durable, batch);
}

#[test]
fn a_warm_log_allocates_nothing_per_batch() {
    let settings = Settings {
        shard: 0,
        shards: 1,
        sync: true,
        segment_bytes: 65_536,
        bytes_max: 0,
        write_bytes_max: 1 << 20,
        sync_interval_us: 1_000_000,
        boot: Boot([1; 16]),
        seed: 7,
        plant: None,
    };
    let mut log = Log::new(settings, Tail::fresh(), 0);
    let mut rounds = |from: u64, rounds: u64| {
        for batch in from..from + rounds {
            let mark = match batch % 1000 {
                0 => Mark::Begins,
                9 => Mark::Ends,
                _ => Mark::None,
            };
            turn(&mut log, batch, mark);
        }
        log.stats()
    };
    let warm = rounds(1, 5_000);
    let before = ALLOCATIONS.get();
    let stats = rounds(5_001, 20_000);
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert!(stats.segments > warm.segments + 50 && stats.checkpoints > warm.checkpoints + 15, "{stats:?}");
    assert_eq!(stats.files_created, warm.files_created, "segments are used again");
}
