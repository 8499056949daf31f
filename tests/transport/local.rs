//! Unix sockets, IPv6, and what belongs to one listener: its limit, its mountpoint.

use std::{io::Read, net::SocketAddr, os::unix::fs::PermissionsExt};

use harness::{
    SHORT, Setup, client_on,
    wire::{self, Connect, Publish, kind},
    within,
};

use crate::{
    place,
    secure::{self, Client},
};

#[test]
fn clients_of_a_unix_socket_and_of_tcp_meet() {
    let (place, node) = place();
    let mode = std::fs::metadata(&place.socket).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(node.listener("unix", "local"), place.socket.display().to_string());
    for shard in 0..3 {
        let id = client_on(shard, 3, &format!("unix-{shard}"));
        let mut subscriber = Client::connect(secure::unix(&place.socket), &id);
        subscriber.subscribe(&format!("local/unix/{shard}"));
        let mut publisher = node.raw();
        publisher.send(&secure::connect(&client_on(0, 3, &format!("unix-pub-{shard}"))));
        publisher.expect(kind::CONNACK);
        publisher.publish_acked(&format!("local/unix/{shard}"), b"hello", 1);
        assert_eq!(subscriber.message(), b"hello");
    }
}

#[test]
fn the_socket_goes_with_the_node_and_a_killed_one_leaves_a_socket_that_is_replaced() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("mqtt.sock");
    let setup = Setup::new(env!("CARGO_BIN_EXE_ringmq"))
        .shards(2)
        .env("RINGMQ_LISTENERS__UNIX__LOCAL__PATH", path.display().to_string());
    let mut node = setup.start();
    Client::connect(secure::unix(&path), "before");
    node.kill();
    assert!(path.exists(), "a killed process removes nothing");
    node.start_again();
    Client::connect(secure::unix(&path), "after");
    let ended = setup.refused(harness::LONG);
    assert!(ended.said.contains("mqtt.sock is taken by another process"), "{}", ended.said);
    Client::connect(secure::unix(&path), "still");
    node.terminate(SHORT);
    assert!(!path.exists());
}

#[test]
fn an_ipv6_listener_takes_ipv4_too_and_names_such_a_client_by_its_ipv4_address() {
    let (_, node) = place();
    let any = node.address("tcp", "any");
    Client::connect(secure::tcp(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], any.port()))), "over-v6");
    Client::connect(secure::tcp(SocketAddr::from(([127, 0, 0, 1], any.port()))), "over-v4");
    within(SHORT, "both are in the log", || {
        let said = node.output();
        let line = |client: &str| said.lines().find(|line| line.contains("connected") && line.contains(client));
        let (v6, v4) = (line("over-v6")?, line("over-v4")?);
        assert!(v6.contains("[::1]:") && v4.contains("127.0.0.1:") && !v4.contains("ffff"), "{v6}\n{v4}");
        Some(())
    });
}

#[test]
fn a_full_listener_closes_what_comes_and_the_others_go_on() {
    let (_, node) = place();
    let small = node.address("tcp", "small");
    let mut inside: Vec<_> = (0..2).map(|at| Client::connect(secure::tcp(small), &client_on(at, 3, "small"))).collect();
    let mut refused = secure::tcp(small);
    assert!(matches!(refused.read(&mut [0]), Ok(0) | Err(_)), "closed at once");
    node.counter_reaches("listener_full", 1);
    Client::connect(secure::tcp(node.mqtt()), "beside-small");
    for client in &mut inside {
        client.send(&wire::pingreq());
        client.expect(kind::PINGRESP);
    }
}

#[test]
fn a_mountpoint_is_before_every_topic_and_its_clients_do_not_see_it() {
    let (_, node) = place();
    let mut outside = Client::connect(secure::tcp(node.mqtt()), &client_on(0, 3, "mounted-outside"));
    outside.subscribe("tenant-a/+");
    let mut inside = Client::connect(secure::tcp(node.address("tcp", "mounted")), &client_on(1, 3, "mounted-inside"));
    inside.subscribe("#");
    let id = client_on(2, 3, "mounted-dying");
    let dying = Connect { will: Some(("will", b"gone", 1, false)), ..Connect::new(wire::V5, &id) };
    let mut dying_client = Client::new(secure::tcp(node.address("tcp", "mounted")));
    dying_client.send(&dying.bytes());
    dying_client.expect(kind::CONNACK);
    dying_client.send(&Publish::new("live", b"here").acked(1, 7).bytes(wire::V5));
    dying_client.expect(kind::PUBACK);
    drop(dying_client);
    for (client, prefix) in [(&mut outside, "tenant-a/"), (&mut inside, "")] {
        for (topic, payload) in [("live", &b"here"[..]), ("will", b"gone")] {
            let publish = client.expect(kind::PUBLISH).publish(wire::V5);
            assert_eq!((publish.topic, publish.payload.as_slice()), (format!("{prefix}{topic}"), payload));
        }
    }
}
