//! The data plane dies: the supervisor brings it back where it was. And the supervisor itself dies.

use crate::setup;
use harness::node::Role;
use harness::process;
use harness::raw::Raw;
use harness::rumq::{Event, v5};
use harness::wire::{Connect, V5};
use harness::{LONG, SHORT, within};
use rustix::process::Signal;

#[test]
fn a_killed_data_plane_comes_back_on_the_same_addresses() {
    let node = setup().shards(2).start();
    let before = node.ready_now().expect("the node is ready");
    let client = v5::Client::connect(node.mqtt(), "witness");
    let killed = node.signal(Role::Dataplane, Signal::KILL);
    client.events().next(SHORT, "end of the connection", |event| matches!(event, Event::Lost(_)).then_some(()));
    let after = within(LONG, "ready.json names the new data plane", || {
        node.ready_now().filter(|ready| ready.pids[2] != killed)
    });
    assert_eq!(after.pids[2], node.pid(Role::Dataplane));
    assert_eq!(after.pids[..2], before.pids[..2], "supervisor and control are the old ones");
    assert_eq!((after.mqtt, after.http), (before.mqtt, before.http), "clients find it where it was");
    let client = v5::Client::connect(node.mqtt(), "witness");
    client.subscribe("t", 1);
    client.publish("t", 1, false, b"served again");
    assert_eq!(client.message().text(), "served again");
    assert_eq!(node.counter("client_connected"), 1, "control counts what the new data plane counts");
}

#[test]
fn a_data_plane_that_dies_again_and_again_is_started_again_each_time() {
    let node = setup().start();
    for _ in 0..3 {
        let killed = node.signal(Role::Dataplane, Signal::KILL);
        within(LONG, "a new data plane is ready", || node.ready_now().filter(|ready| ready.pids[2] != killed));
        Raw::connect(node.mqtt(), &Connect::new(V5, "")).ping();
    }
}

#[test]
fn no_process_outlives_a_killed_supervisor() {
    let mut node = setup().start();
    let children = [node.pid(Role::Control), node.pid(Role::Dataplane)];
    node.signal(Role::Supervisor, Signal::KILL);
    node.wait_end(SHORT);
    within(SHORT, "control and data plane end too", || {
        let left = children.iter().filter(|pid| process::look(**pid).is_some_and(|seen| seen.state != 'Z'));
        (left.count() == 0).then_some(())
    });
    // What the dead left behind (lock, socket, ready.json) does not keep the next start out.
    node.start_again();
    Raw::connect(node.mqtt(), &Connect::new(V5, "")).ping();
}
