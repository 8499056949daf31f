//! The end on purpose: SIGTERM, Ctrl-C, with clients that listen and clients that do not.

use crate::setup;
use harness::node::{Node, Role};
use harness::process;
use harness::raw::Raw;
use harness::ready;
use harness::wire::{Connect, Publish, V5, V311, kind};
use harness::{SHORT, within};
use rustix::process::{Pid, Signal, kill_process_group};
use std::time::{Duration, Instant};

/// The longest that a stop may take, and what a busy machine adds to the measurement.
const STOP: Duration = Duration::from_millis(5000 + 700);

fn children(node: &Node) -> [u32; 2] {
    [node.pid(Role::Control), node.pid(Role::Dataplane)]
}

#[track_caller]
fn assert_gone(node: &Node, children: [u32; 2]) {
    assert!(!node.data().join(ready::FILE).exists(), "ready.json is removed at the stop");
    for pid in children {
        assert!(process::look(pid).is_none_or(|seen| seen.state == 'Z'), "process {pid} outlived the supervisor");
    }
}

#[test]
fn sigterm_drains_live_clients_and_exits_with_zero() {
    let mut node = setup().shards(2).start();
    let mut clients: Vec<Raw> = (0..20)
        .map(|index| {
            let version = if index % 2 == 0 { V5 } else { V311 };
            let mut raw = Raw::connect(node.mqtt(), &Connect::new(version, &format!("live{index}")));
            raw.subscribe("t", 0);
            raw
        })
        .collect();
    let mut publisher = Raw::connect(node.mqtt(), &Connect::new(V5, "publisher"));
    publisher.publish_acked("t", b"last words", 1);
    let children = children(&node);
    let since = Instant::now();
    let ended = node.terminate(STOP);
    assert_eq!(ended.code, Some(0), "after {:?}:\n{}", since.elapsed(), ended.said);
    assert_gone(&node, children);
    for (index, client) in clients.iter_mut().enumerate() {
        let packets = client.closed(SHORT);
        assert_eq!(packets[0].kind, kind::PUBLISH, "what was acknowledged before the stop is delivered");
        if index % 2 == 0 {
            let last = packets.last().expect("5.0 says why");
            assert_eq!((last.kind, last.reason()), (kind::DISCONNECT, 0x8b), "server shutting down");
        }
    }
}

#[test]
fn sigterm_does_not_wait_for_a_client_that_never_reads() {
    let mut node = setup().start();
    let mut deaf = Raw::connect(node.mqtt(), &Connect::new(V5, "deaf"));
    deaf.subscribe("flood", 0);
    let mut publisher = Raw::connect(node.mqtt(), &Connect::new(V5, "publisher"));
    let payload = vec![0; 64 * 1024];
    for number in 1..=200 {
        publisher.send(&Publish::new("flood", &payload).acked(1, number).bytes(V5));
        publisher.expect(kind::PUBACK);
    }
    let children = children(&node);
    assert_eq!(node.terminate(STOP).code, Some(0));
    assert_gone(&node, children);
}

#[test]
fn ctrl_c_reaches_the_whole_group_and_ends_as_one_stop() {
    let mut node = setup().shards(2).start();
    let _client = Raw::connect(node.mqtt(), &Connect::new(V5, "live"));
    let children = children(&node);
    // A terminal sends SIGINT to every process of the foreground group, twice when the user is impatient.
    let group = i32::try_from(node.pid(Role::Supervisor)).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process_group(group, Signal::INT).expect("the group is there");
    let ended = node.wait_end(STOP);
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    assert_gone(&node, children);
}

#[test]
fn sigterm_ends_a_node_whose_control_is_stopped() {
    let mut node = setup().start();
    let children = children(&node);
    node.signal(Role::Control, Signal::STOP);
    within(SHORT, "control is stopped", || node.process(Role::Control).filter(|seen| seen.state == 'T'));
    let ended = node.terminate(STOP);
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    assert_gone(&node, children);
}

#[test]
fn a_stopped_node_starts_again_in_its_directory() {
    let mut node = setup().shards(2).start();
    assert_eq!(node.terminate(STOP).code, Some(0));
    node.start_again();
    Raw::connect(node.mqtt(), &Connect::new(V5, "")).ping();
}
