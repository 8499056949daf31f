//! The control process dies, hangs, comes back. No client may notice.

use crate::load::Load;
use crate::setup;
use harness::mosquitto::{self, Subscriber, V5};
use harness::node::{Node, Role};
use harness::{LONG, SHORT, http, needs, within};
use rustix::process::Signal;
use std::time::Duration;

/// Waits until control answers over HTTP, `ringmq ctl status` succeeds, and both know the clients.
#[track_caller]
fn control_agrees(node: &Node, clients: usize) {
    within(LONG, "control answers on /status", || node.get("/status").ok().filter(|answer| answer.status == 200));
    let connections = node.figure("emqx_connections_count");
    assert!(connections == clients as f64, "control knows of {connections} connections, there are {clients}");
    let status = node.ctl(&["status"]);
    assert_eq!(status.code, Some(0), "ringmq ctl status: {}", status.said);
    assert!(status.said.contains("n1@127.0.0.1"), "the status names the node: {}", status.said);
}

#[test]
fn control_killed_under_load_returns_and_no_client_notices() {
    let node = setup().shards(2).start();
    let load = Load::start(&node);
    let (supervisor, dataplane) = (node.pid(Role::Supervisor), node.pid(Role::Dataplane));
    for _ in 0..2 {
        let killed = node.signal(Role::Control, Signal::KILL);
        load.flows(200);
        within(LONG, "the supervisor starts control again", || {
            node.process(Role::Control).filter(|seen| seen.pid != killed)
        });
        load.flows(200);
        control_agrees(&node, Load::CLIENTS);
        let control = node.pid(Role::Control);
        within(SHORT, "ready.json names the new control process", || {
            node.ready_now().filter(|ready| ready.pids == [supervisor, control, dataplane])
        });
    }
    load.finish();
    assert_eq!(node.pid(Role::Dataplane), dataplane, "the data plane has not been touched");
}

#[test]
fn control_stopped_under_load_is_not_missed_and_goes_on() {
    let node = setup().shards(2).start();
    let load = Load::start(&node);
    control_agrees(&node, Load::CLIENTS);
    let stopped = node.signal(Role::Control, Signal::STOP);
    within(SHORT, "control is stopped", || node.process(Role::Control).filter(|seen| seen.state == 'T'));
    assert!(http::get(node.http(), "/status", Duration::from_millis(300)).is_err(), "a stopped process cannot answer");
    load.flows(2000);
    // What needs no control must work for newcomers as well.
    let newcomer = harness::rumq::v4::Client::connect(node.mqtt(), "newcomer");
    newcomer.subscribe("new/t", 2);
    newcomer.publish("new/t", 2, false, b"served");
    assert_eq!(newcomer.message().text(), "served");
    harness::process::signal(stopped, Signal::CONT);
    control_agrees(&node, Load::CLIENTS + 1);
    load.flows(200);
    load.finish();
}

#[test]
fn a_session_and_a_retained_value_survive_the_death_of_control() {
    needs!("mosquitto_sub", "mosquitto_pub");
    let node = setup().shards(2).start();
    let at = node.mqtt();
    let keep = ["-c", "-i", "keeper", "-q", "1", "-t", "kept/t"];
    Subscriber::start_unconfirmed(at, V5, &[&keep[..], &["-E"]].concat()).succeed();
    mosquitto::publish(at, V5, &["-r", "-q", "1", "-t", "kept/retained", "-m", "value"]);
    let killed = node.signal(Role::Control, Signal::KILL);
    mosquitto::publish(at, V5, &["-q", "1", "-t", "kept/t", "-m", "queued"]);
    within(LONG, "control is back", || node.process(Role::Control).filter(|seen| seen.pid != killed));
    let mut back = Subscriber::start_unconfirmed(at, V5, &keep);
    assert_eq!(back.message().payload, "queued");
    let mut late = Subscriber::start_unconfirmed(at, V5, &["-t", "kept/retained"]);
    assert_eq!(late.message().payload, "value");
}
