//! Two linked clusters, and how to wait until interest has crossed and how to count what did.

use crate::setup;
use harness::node::Node;
use harness::rumq::v5;
use harness::{LONG, MOMENT, client_on, holds_for, ports, within};
use std::net::SocketAddr;
use std::time::Duration;

/// Shards of each node: with two, link and client may live apart.
pub const SHARDS: u16 = 2;

/// Clusters `a` and `b`, each of one node, each naming the other.
pub struct Clusters {
    /// The node of cluster `a`.
    pub a: Node,
    /// The node of cluster `b`.
    pub b: Node,
}

impl Clusters {
    /// Starts both; `wanted_by_a` and `wanted_by_b` are what each wants from the other, as TOML arrays.
    pub fn start(wanted_by_a: &str, wanted_by_b: &str) -> Self {
        let (at_a, at_b) = (ports::free(), ports::free());
        // Side by side: the one that comes first finds nobody and must try again, as in life.
        let (a, b) = std::thread::scope(|scope| {
            let a = scope.spawn(|| cluster("a", at_a, "b", at_b, wanted_by_a).start());
            let b = scope.spawn(|| cluster("b", at_b, "a", at_a, wanted_by_b).start());
            (a.join(), b.join())
        });
        Self { a: a.expect("cluster a starts"), b: b.expect("cluster b starts") }
    }

    /// Both want everything.
    pub fn start_open() -> Self {
        Self::start(r##"["#"]"##, r##"["#"]"##)
    }
}

/// What starts the one node of cluster `name`.
pub fn cluster(name: &str, at: SocketAddr, remote: &str, remote_at: SocketAddr, wanted: &str) -> harness::Setup {
    let link = format!(r#"[{{name="{remote}",server="{remote_at}",topics={wanted}}}]"#);
    setup()
        .name(&format!("{name}1@127.0.0.1"))
        .shards(SHARDS)
        .mqtt(at)
        .env("RINGMQ_CLUSTER__NAME", name)
        .env("RINGMQ_CLUSTER__LINKS", link)
}

/// A 5.0 client on a shard of a node.
pub fn client(node: &Node, shard: u16, role: &str) -> v5::Client {
    v5::Client::connect(node.mqtt(), &client_on(shard % SHARDS, SHARDS, role))
}

/// Payload of the publishes that only find out whether interest has crossed.
const PROBE: &[u8] = b"probe";

/// Publishes on `topic` until `subscriber` hears it through the link; gives the number of publishes, each
/// of which `subscriber` has heard or never will.
#[track_caller]
pub fn until_linked(publisher: &v5::Client, topic: &str, subscriber: &v5::Client) -> u64 {
    let mut heard = 0;
    let mut sent = 0;
    within(LONG, &format!("`{topic}` is heard across the link"), || {
        publisher.publish(topic, 1, false, PROBE);
        publisher.acked(1);
        sent += 1;
        std::thread::sleep(Duration::from_millis(20));
        heard += probes(subscriber);
        (heard > 0).then_some(())
    });
    // Probes still under way are before this one in the same stream.
    publisher.publish(topic, 1, false, b"linked");
    publisher.acked(1);
    loop {
        let message = subscriber.message();
        if message.payload == b"linked" {
            return heard + 1;
        }
        assert_eq!(message.payload, PROBE);
        heard += 1;
    }
}

fn probes(subscriber: &v5::Client) -> u64 {
    let events = subscriber.events().so_far();
    let heard = events.iter().filter(|event| match event {
        harness::rumq::Event::Message(message) => message.payload == PROBE,
        harness::rumq::Event::Lost(why) => panic!("the subscriber lost its connection: {why}"),
        _ => false,
    });
    heard.count() as u64
}

/// Requires that `node` has sent exactly `count` messages over its links. Called when the last of them has
/// been heard on the other side, so that none is still under way.
#[track_caller]
pub fn sent_exactly(node: &Node, count: u64) {
    assert_eq!(node.counter_reaches("link_sent", count), count, "link_sent");
    // A late one would be a second copy; it is not announced by anything, so a moment must do.
    holds_for(MOMENT, &format!("link_sent is {count}"), || node.counter("link_sent") == count);
}
