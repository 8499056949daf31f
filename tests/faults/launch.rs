//! The launch contract that scripts from outside rely on.

use crate::setup;
use harness::node::Role;
use harness::raw::Raw;
use harness::ready;
use harness::wire::{Connect, V5};
use harness::{SHORT, process, within};
use std::net::SocketAddr;

#[test]
fn a_ready_node_says_where_it_listens_and_what_to_try() {
    let node = setup().shards(2).start();
    let said = node.stdout();
    let ready: Vec<&str> = said.lines().filter(|line| line.starts_with("ready ")).collect();
    assert_eq!(ready.len(), 1, "one ready line: {said}");
    let port = node.mqtt().port().to_string();
    assert!(said.contains(&node.mqtt().to_string()), "the MQTT address: {said}");
    assert!(said.contains(&node.http().to_string()), "the HTTP address: {said}");
    assert!(said.contains('2') && said.contains("shard"), "the number of shards: {said}");
    assert!(said.lines().any(|line| line.contains("mosquitto_sub") && line.contains(&port)), "a line to try: {said}");
}

#[test]
fn ready_json_tells_the_truth() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let node = setup().shards(3).mqtt(any).http(any).start();
    let ready = node.ready_now().expect("the node is ready");
    assert_eq!(ready.shards, 3);
    assert_ne!(ready.mqtt.port(), 0, "the port that the kernel chose");
    assert_ne!(ready.http.port(), 0, "the port that the kernel chose");
    let roles = [Role::Supervisor, Role::Control, Role::Dataplane];
    assert_eq!(ready.pids, roles.map(|role| node.pid(role)));
    for (role, word) in roles.into_iter().zip(["start", "control", "dataplane"]) {
        let seen = node.process(role).expect("it runs");
        assert!(seen.arguments[0].ends_with("ringmq"), "{seen:?}");
        assert_eq!(seen.arguments[1], word, "visible to operators as what it is");
    }
    Raw::connect(ready.mqtt, &Connect::new(V5, "")).ping();
    within(SHORT, "the first report has come", || node.get("/status").ok().filter(|answer| answer.status == 200));
    assert_eq!(node.get("/no/such/page").expect("HTTP answers").status, 404);
    let nodes = node.get("/api/v5/nodes").expect("HTTP answers");
    assert_eq!(nodes.status, 200);
    assert!(nodes.body.contains("n1@127.0.0.1"), "{}", nodes.body);
}

#[test]
fn several_nodes_on_one_machine_do_not_disturb_each_other() {
    let one = setup().name("n1@127.0.0.1").start();
    let two = setup().name("n2@127.0.0.1").start();
    assert_ne!(one.mqtt(), two.mqtt());
    let mut here = Raw::connect(one.mqtt(), &Connect::new(V5, "same"));
    let mut there = Raw::connect(two.mqtt(), &Connect::new(V5, "same"));
    here.subscribe("t", 0);
    there.subscribe("t", 0);
    let mut publisher = Raw::connect(one.mqtt(), &Connect::new(V5, ""));
    publisher.publish_acked("t", b"for one", 1);
    assert_eq!(here.message().payload, b"for one");
    here.ping();
    there.ping();
}

#[test]
fn a_file_is_read_and_the_environment_wins_over_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("ringmq.toml");
    let text = "[dataplane]\nshards = 1\n[mqtt]\nmax_packet_size = \"1KB\"\n";
    std::fs::write(&file, text).expect("the file is writable");
    let node = setup().shards(2).config(&file).start();
    assert_eq!(node.shards(), 2, "the environment wins");
    let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, ""));
    raw.send(&harness::wire::Publish::new("t", &[0; 2000]).bytes(V5));
    let packets = raw.closed(SHORT);
    assert_eq!(packets.last().map(|last| last.reason()), Some(0x95), "the file counts: {packets:?}");
}

#[test]
fn a_wrong_value_is_refused_with_its_key() {
    for (key, value, name) in [
        ("RINGMQ_DATAPLANE__SHARDS", "many", "dataplane.shards"),
        ("RINGMQ_MQTT__MAX_PACKET_SIZE", "-1", "mqtt.max_packet_size"),
        ("RINGMQ_LISTENERS__TCP__DEFAULT__BIND", "nowhere", "listeners.tcp.default.bind"),
        ("RINGMQ_MQTT__MAX_PACKET_SIZES", "1MB", "mqtt.max_packet_size"),
    ] {
        let ended = setup().env(key, value).refused(SHORT);
        assert_ne!(ended.code, Some(0));
        assert!(ended.said.contains(name), "{key}={value}: {}", ended.said);
    }
}

#[test]
fn a_link_name_that_comes_twice_is_refused() {
    let links = r#"[{name="b",server="127.0.0.1:1",topics=[]},{name="b",server="127.0.0.1:2",topics=[]}]"#;
    let ended = setup().env("RINGMQ_CLUSTER__LINKS", links).refused(SHORT);
    assert_ne!(ended.code, Some(0));
    assert!(ended.said.contains("cluster.links") && ended.said.contains('b'), "{}", ended.said);
}

#[test]
fn the_files_of_a_node_stay_in_its_directory() {
    let node = setup().start();
    assert!(node.data().join(ready::FILE).is_file());
    let supervisor = process::look(node.pid(Role::Supervisor)).expect("it runs");
    assert_eq!(supervisor.parent, std::process::id(), "it did not detach itself");
}
