//! The path of a message allocates nothing once it is warm: outlet with the remote keeping up, and inlet.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use link::etf::Limits;
use link::inlet::Inlet;
use link::outlet::{Offered, Outlet, Settings};
use link::wire::Message;
use mqtt::types::Qos;

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

fn allocations_of(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

fn message(payload: &[u8]) -> Message<'_> {
    Message {
        id: [1; 16],
        qos: Qos::AtLeastOnce,
        from: "publisher",
        retain: false,
        topic: "site/7/sensor/12/temperature",
        payload,
        timestamp_ms: 1_780_000_000_000,
        properties: &[0x26, 0, 1, b'k', 0, 1, b'v'],
        message_expiry_s: Some(60),
    }
}

#[test]
fn an_outlet_that_is_kept_up_with_allocates_nothing_per_message() {
    let mut outlet = Outlet::new(Settings::new("alpha", "n", 1));
    let mut out = Vec::with_capacity(1 << 20);
    assert!(outlet.poll_dial(0));
    outlet.opened(0, &mut out);
    outlet.received(0, &[0x20, 3, 0, 0, 0], &mut out).expect("accepted");
    let mut id = 0u16;
    let mut turn = |outlet: &mut Outlet| {
        out.clear();
        for _ in 0..20 {
            let taken = outlet.offer(0, &message(&[b'x'; 200]), &mut out);
            assert!(matches!(taken, Offered::Taken { displaced: 0, .. }), "{taken:?}");
        }
        for _ in 0..20 {
            id = id.checked_add(1).unwrap_or(1);
            let [high, low] = id.to_be_bytes();
            outlet.received(0, &[0x40, 2, high, low], &mut out).expect("acknowledged");
        }
        assert_eq!(outlet.gone().count(), 20);
    };
    (0..10).for_each(|_| turn(&mut outlet));
    assert_eq!(allocations_of(|| (0..1000).for_each(|_| turn(&mut outlet))), 0);
    assert_eq!(outlet.status().delivered, 20 * 1010);
}

#[test]
fn an_inlet_allocates_nothing_per_message_compressed_or_not() {
    let inlet = Inlet::new(true, vec!["site/#".into()], 16, Limits::default());
    let mut plain = Vec::new();
    link::wire::put_forwarded(&mut plain, &message(&[b'x'; 2000])).expect("encodable");
    let mut compressed = vec![131, 80];
    compressed.extend((plain.len() as u32 - 1).to_be_bytes());
    compressed.extend(miniz_oxide::deflate::compress_to_vec_zlib(&plain[1..], 6));
    let mut scratch = Vec::new();
    let mut forwarded = Vec::with_capacity(64);
    let mut turn = || {
        for payload in [&plain, &compressed] {
            let inbound = Inlet::receive(Some(&inlet), 0, payload, &mut scratch).expect("inside");
            forwarded.clear();
            inbound.properties.forwarded(&mut forwarded);
            assert_eq!(inbound.payload.len(), 2000);
        }
    };
    turn();
    assert_eq!(allocations_of(|| (0..1000).for_each(|_| turn())), 0);
}
