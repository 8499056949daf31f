//! Stock clients against the real executable: mosquitto_sub and mosquitto_pub, rumqttc, paho-mqtt, MQTT.js.
//!
//! Every behaviour runs on a node with two shards and on one with three, with client ids that live on
//! different shards. All tests of the area share these two nodes, side by side, as users share a broker;
//! topics and client ids carry the test's name, so none hears another.

mod mosquitto;
mod mqttjs;
mod paho;
mod rumqttc_v4;
mod rumqttc_v5;

use harness::node::Borrowed;
use harness::{Node, Setup};
use std::sync::OnceLock;

/// The area's node with this many shards.
fn node_with(shards: u16) -> Borrowed {
    static NODES: [OnceLock<Result<Node, String>>; 4] = [const { OnceLock::new() }; 4];
    let node = NODES[usize::from(shards)].get_or_init(|| {
        // A start that fails once would fail in every test after its own long wait.
        std::panic::catch_unwind(|| Setup::new(env!("CARGO_BIN_EXE_ringmq")).shards(shards).start())
            .map_err(|_| format!("the node with {shards} shards did not start; see the first failure"))
    });
    match node {
        Ok(node) => Borrowed(node),
        Err(why) => panic!("{why}"),
    }
}

/// A node and what a test must know of it to stay apart from the others.
struct Broker {
    node: Borrowed,
    name: &'static str,
}

impl Broker {
    fn new(shards: u16, name: &'static str) -> Self {
        Self { node: node_with(shards), name }
    }

    /// A topic or filter of this test alone.
    fn topic(&self, rest: &str) -> String {
        format!("{}/{rest}", self.name)
    }

    /// A client id of this test that lives on the shard `index` (modulo their number).
    fn client(&self, index: u16, role: &str) -> String {
        let shards = self.node.shards();
        harness::client_on(index % shards, shards, &format!("{}-{role}", self.name))
    }
}

/// Makes of each function two tests: one on two shards, one on three.
macro_rules! on_two_and_three_shards {
    ($($behaviour:ident),+ $(,)?) => {
        $(
            mod $behaviour {
                #[test]
                fn on_two_shards() {
                    super::$behaviour(&$crate::Broker::new(2, concat!(module_path!(), "::2")));
                }

                #[test]
                fn on_three_shards() {
                    super::$behaviour(&$crate::Broker::new(3, concat!(module_path!(), "::3")));
                }
            }
        )+
    };
}
use on_two_and_three_shards;
