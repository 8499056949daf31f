//! Listeners that come, change and go while clients are connected.

use std::{
    io::Read,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
};

use harness::{
    LONG, Node, Role, SHORT, Setup, client_on,
    raw::Raw,
    wire::{Connect, V5, V311, kind},
    within,
};
use rustix::process::Signal;

use crate::secure;

/// A node with a configuration file that a test may change.
struct Changing {
    // Held for its removal.
    _files: tempfile::TempDir,
    file: PathBuf,
    node: Node,
}

impl Changing {
    fn new(shards: u16, config: &str) -> Changing {
        let files = tempfile::tempdir().expect("a temporary directory");
        let file = files.path().join("ringmq.toml");
        std::fs::write(&file, config).expect("the directory is writable");
        let node = Setup::new(env!("CARGO_BIN_EXE_ringmq")).shards(shards).config(&file).start();
        Changing { _files: files, file, node }
    }

    /// Another configuration, read at SIGHUP.
    fn change(&self, config: &str) {
        std::fs::write(&self.file, config).expect("the directory is writable");
        self.node.signal(Role::Supervisor, Signal::HUP);
    }

    /// Waits until a listener of `ready.json` is there, or is not.
    #[track_caller]
    fn listener(&self, name: &str) -> SocketAddr {
        within(LONG, &format!("{name} is in ready.json"), || self.found(name)).parse().expect("an address")
    }

    fn found(&self, name: &str) -> Option<String> {
        let listeners = self.node.ready_now()?.listeners;
        listeners.into_iter().find(|known| known.0 == "tcp" && known.1 == name).map(|known| known.2)
    }

    /// What `GET /api/v5/listeners` says about a listener, once it holds.
    #[track_caller]
    fn shown(&self, name: &str, holds: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        within(SHORT, &format!("{name} is shown"), || {
            let answer = self.node.get("/api/v5/listeners").ok()?;
            let rows: Vec<serde_json::Value> = serde_json::from_str(&answer.body).ok()?;
            rows.into_iter().find(|row| row["id"] == format!("tcp:{name}").as_str() && holds(row))
        })
    }
}

fn added_and_removed(shards: u16) {
    let one = "listeners.tcp.one.bind = \"127.0.0.1:0\"\n";
    let two = "listeners.tcp.two.bind = \"127.0.0.1:0\"\nlisteners.tcp.two.mountpoint = \"two/\"\n";
    let place = Changing::new(shards, one);
    let old = place.listener("one");
    let mut stays = Raw::connect(place.node.mqtt(), &Connect::new(V5, "stays"));
    stays.subscribe("#", 1);
    let mut of_one: Vec<Raw> =
        (0..shards).map(|shard| Raw::connect(old, &Connect::new(V5, &client_on(shard, shards, "of-one")))).collect();
    let mut older = Raw::connect(old, &Connect::new(V311, "older"));
    let mut silent = secure::tcp(old);

    place.change(&format!("{one}{two}"));
    let new = place.listener("two");
    for shard in 0..shards {
        // The mountpoint is known on every shard before the first connection.
        let mut client = Raw::connect(new, &Connect::new(V5, &client_on(shard, shards, "of-two")));
        client.publish_acked("t", b"m", 1);
        assert_eq!(stays.message().topic, "two/t");
    }
    assert_eq!(place.found("one"), Some(old.to_string()), "who stays keeps its port");
    of_one.iter_mut().for_each(Raw::ping);
    place.shown("two", |row| row["running"] == true && row["current_connections"] == 0);

    place.change(two);
    for client in &mut of_one {
        let last: Vec<_> = client.closed(SHORT).iter().map(|packet| (packet.kind, packet.reason())).collect();
        assert_eq!(last, [(kind::DISCONNECT, 0x98)]);
    }
    assert_eq!(older.closed(SHORT), [], "3.1.1 has no word for it");
    // Nothing was said on it: it is closed as well.
    silent.set_read_timeout(Some(SHORT)).expect("a bound");
    assert!(matches!(silent.read(&mut [0]), Ok(0)), "an orderly end");
    within(SHORT, "nobody listens there", || std::net::TcpStream::connect(old).is_err().then_some(()));
    within(SHORT, "it is not in ready.json", || place.found("one").is_none().then_some(()));
    assert_eq!(place.listener("two"), new);
    stays.ping();
    assert_eq!(place.node.counter("listener_closed"), u64::from(shards) + 2);
    Raw::connect(new, &Connect::new(V5, "again")).ping();
}

#[test]
fn a_listener_comes_and_goes_with_the_configuration_on_one_shard() {
    added_and_removed(1);
}

#[test]
fn a_listener_comes_and_goes_with_the_configuration_on_three_shards() {
    added_and_removed(3);
}

#[test]
fn an_address_that_is_taken_changes_nothing_and_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address");
    let one = "listeners.tcp.one.bind = \"127.0.0.1:0\"\n";
    let place = Changing::new(2, one);
    let old = place.listener("one");
    let mut client = Raw::connect(old, &Connect::new(V5, "of-one"));
    // One goes, one comes, and one cannot come: none of it happens.
    let wanted = format!("listeners.tcp.two.bind = \"127.0.0.1:0\"\nlisteners.tcp.three.bind = \"{address}\"\n");
    place.change(&wanted);
    let row = place.shown("three", |row| row["running"] == false);
    let why = format!("listener three: {address} is taken by another process");
    assert_eq!(row["error"], why.as_str());
    place.node.says("listeners stay as they were");
    within(SHORT, "the alarm is on", || {
        place.node.get("/api/v5/alarms").ok().filter(|answer| answer.body.contains("listeners_stale"))
    });
    client.ping();
    Raw::connect(old, &Connect::new(V5, "still-there")).ping();
    assert!(place.found("two").is_none());

    drop(taken);
    place.node.ctl(&["reload"]);
    assert_eq!(place.listener("three"), address);
    assert_eq!(client.closed(SHORT).len(), 1);
    within(SHORT, "the alarm is off", || {
        place.node.get("/api/v5/alarms").ok().filter(|answer| !answer.body.contains("listeners_stale"))
    });
}

#[test]
fn a_moved_listener_takes_its_port_along_when_its_address_overlaps_the_old_one() {
    let port = harness::ports::free().port();
    let listener =
        |ip: &str| format!("listeners.tcp.one.bind = \"{ip}:{port}\"\nlisteners.tcp.one.allow_anonymous = true\n");
    let place = Changing::new(2, &listener("127.0.0.1"));
    let old = place.listener("one");
    let mut client = Raw::connect(old, &Connect::new(V5, "before"));
    place.change(&listener("0.0.0.0"));
    within(LONG, "it has moved", || place.found("one").filter(|address| address.starts_with("0.0.0.0")));
    assert_eq!(client.closed(SHORT).len(), 1, "another address is another listener");
    (0..10).for_each(|at| Raw::connect(old, &Connect::new(V5, &format!("after-{at}"))).ping());
}

#[test]
fn changed_limits_act_on_new_connections() {
    let limit =
        |most: u32| format!("listeners.tcp.one.bind = \"127.0.0.1:0\"\nlisteners.tcp.one.max_connections = {most}\n");
    let place = Changing::new(2, &limit(3));
    let address = place.listener("one");
    let mut three: Vec<Raw> =
        (0..3).map(|at| Raw::connect(address, &Connect::new(V5, &format!("one-of-three-{at}")))).collect();
    let full = || {
        let mut raw = Raw::open(address);
        let _ = raw.try_send(&Connect::new(V5, "too-many").bytes());
        raw.closed(SHORT).is_empty()
    };
    assert!(full());
    place.change(&limit(4));
    place.shown("one", |row| row["max_connections"] == 4 && row["current_connections"] == 3);
    three.push(Raw::connect(address, &Connect::new(V5, "the-fourth")));
    place.change(&limit(1));
    place.shown("one", |row| row["max_connections"] == 1);
    assert!(full());
    three.iter_mut().for_each(Raw::ping);
}
