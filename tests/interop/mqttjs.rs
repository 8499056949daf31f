//! MQTT.js, the Node client: one scenario of `mqttjs/scenarios.js` per test.

use crate::Broker;
use harness::script::node_modules;
use harness::{LONG, Program, skip};

/// Runs a scenario and requires its success, also in its own words: a script that does nothing is no proof.
fn run(scenario: &str, version: &str, shards: u16, name: &'static str) {
    let Some(modules) = node_modules() else {
        skip::skip("no Node with MQTT.js (RINGMQ_TEST_NODE_PATH)");
        return;
    };
    let broker = Broker::new(shards, name);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/mqttjs/scenarios.js");
    let ids = [0, 1, 2].map(|index| broker.client(index, &format!("mqttjs{index}")));
    let said = Program::new("node")
        .env("NODE_PATH", modules)
        .args([script, scenario, &broker.node.mqtt().port().to_string(), version, name])
        .args(ids)
        .succeed(LONG);
    let verdict = format!("ok {scenario}");
    assert!(said.contains(&verdict), "the script ended without its verdict: {said:?}");
}

/// Tests for each scenario, on two shards and on three.
macro_rules! scenarios {
    ($version:ident = $spelled:literal: $($scenario:ident),+ $(,)?) => {
        mod $version {
            $(
                mod $scenario {
                    #[test]
                    fn on_two_shards() {
                        super::super::run(stringify!($scenario), $spelled, 2, concat!(module_path!(), "::2"));
                    }

                    #[test]
                    fn on_three_shards() {
                        super::super::run(stringify!($scenario), $spelled, 3, concat!(module_path!(), "::3"));
                    }
                }
            )+
        }
    };
}

scenarios!(v311 = "4": qos, retained, will, session, shared, takeover);

scenarios!(
    v5 = "5": qos,
    retained,
    will,
    session,
    shared,
    takeover,
    properties,
    subscription_ids,
    topic_alias,
    session_expiry,
    message_expiry,
    subscribe_options,
);
