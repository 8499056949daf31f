//! Stock clients on every transport: mosquitto_pub and mosquitto_sub, paho-mqtt, MQTT.js.

use std::net::SocketAddr;

use harness::{
    LONG, Program, client_on,
    mosquitto::{self, Subscriber},
    needs, script, skip,
};

use crate::{papers::Papers, place, secure};

/// A subscriber at home on one shard hears a publisher at home on another, both over `arguments`.
fn mosquitto_meets(broker: SocketAddr, arguments: &[&str], name: &str, version: &str) {
    let (subscriber, publisher) = (client_on(0, 3, &format!("{name}-sub")), client_on(2, 3, &format!("{name}-pub")));
    let with = |more: &[&'static str], id: &str| -> Vec<String> {
        let mut all: Vec<String> = arguments.iter().chain(more).map(|word| (*word).to_owned()).collect();
        all.extend(["-i".to_owned(), id.to_owned(), "-t".to_owned(), format!("transport/{name}")]);
        all
    };
    let of_sub = with(&["-q", "2"], &subscriber);
    let mut heard = Subscriber::start(broker, version, &of_sub.iter().map(String::as_str).collect::<Vec<_>>());
    let of_pub = with(&["-q", "2", "-m", "hello"], &publisher);
    mosquitto::publish(broker, version, &of_pub.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(heard.message().payload, "hello");
    heard.leave();
}

fn trusted(papers: &Papers) -> Vec<String> {
    vec!["--cafile".to_owned(), papers.file("ca.pem")]
}

#[test]
fn mosquitto_over_tls_of_both_versions() {
    needs!("mosquitto_sub", "mosquitto_pub", "stdbuf");
    let (place, node) = place();
    for (spoken, name) in [("tlsv1.2", "tls12"), ("tlsv1.3", "tls13")] {
        let mut arguments = trusted(&place.papers);
        arguments.extend(["--tls-version".to_owned(), spoken.to_owned(), "--tls-alpn".to_owned(), "mqtt".to_owned()]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        mosquitto_meets(node.address("ssl", "default"), &arguments, name, mosquitto::V5);
    }
}

#[test]
fn mosquitto_with_a_client_certificate_and_not_without() {
    needs!("mosquitto_sub", "mosquitto_pub", "stdbuf");
    let (place, node) = place();
    let broker = node.address("ssl", "mutual");
    for spoken in ["tlsv1.2", "tlsv1.3"] {
        let mut arguments = trusted(&place.papers);
        arguments.extend(["--tls-version".to_owned(), spoken.to_owned()]);
        let without: Vec<String> = arguments.clone();
        arguments.extend(["--cert".to_owned(), place.papers.file("good.pem")]);
        arguments.extend(["--key".to_owned(), place.papers.file("good.key")]);
        let all: Vec<&str> = arguments.iter().map(String::as_str).collect();
        mosquitto_meets(broker, &all, &format!("mutual-{spoken}"), mosquitto::V311);
        let publish = ["-t", "transport/never", "-m", "x", "-q", "1"];
        let mut refused =
            mosquitto::program("mosquitto_pub", broker, mosquitto::V311).args(without).args(publish).start();
        assert_ne!(refused.wait(LONG), Some(0), "{spoken}: who has no certificate is refused");
    }
    node.counter_reaches("tls_refused", 2);
}

#[test]
fn mosquitto_over_ipv6() {
    needs!("mosquitto_sub", "mosquitto_pub", "stdbuf");
    let (_, node) = place();
    mosquitto_meets(node.address("tcp", "v6"), &[], "ipv6", mosquitto::V5);
}

#[test]
fn mosquitto_over_a_unix_socket() {
    needs!("mosquitto_sub", "mosquitto_pub", "stdbuf");
    let (place, _node) = place();
    let path = place.socket.display().to_string();
    let run = |program: &str, more: &[&str]| {
        Program::new("stdbuf").args(["-oL", program, "--unix", &path, "-q", "1", "-t", "transport/unix"]).args(more)
    };
    let mut heard = run("mosquitto_sub", &["-i", &client_on(1, 3, "unix-sub"), "-d"]).start();
    heard.next(LONG, "SUBACK", |line| line.contains("Subscribed (mid").then_some(()));
    run("mosquitto_pub", &["-i", &client_on(2, 3, "unix-pub"), "-m", "hello"]).succeed(LONG);
    heard.next(LONG, "message", |line| (line == "hello").then_some(()));
}

/// What a script has to be told so that it shows a certificate, if it does.
fn shown(papers: &Papers, name: &str) -> Vec<(&'static str, String)> {
    match name.ends_with("mutual") {
        true => vec![("BROKER_CERT", papers.file("good.pem")), ("BROKER_KEY", papers.file("good.key"))],
        false => Vec::new(),
    }
}

fn paho(transport: &str, endpoint: u16, name: &str) {
    let Some(python) = script::python() else {
        skip::skip("no Python with paho-mqtt 2 (RINGMQ_TEST_PYTHON)");
        return;
    };
    let (place, _node) = place();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/paho/scenarios.py");
    for (version, scenario) in [("5", "qos"), ("3.1.1", "will"), ("5", "takeover"), ("5", "flow_control")] {
        let prefix = format!("transport-{name}-{version}");
        let script =
            shown(&place.papers, name).iter().fold(Program::new(python), |script, (key, value)| script.env(key, value));
        let said = script
            .args(["-u", program, scenario, &endpoint.to_string(), version, &prefix])
            .args([0, 1, 2].map(|shard| client_on(shard, 3, &format!("{prefix}-{scenario}-{shard}"))))
            .env("BROKER_TRANSPORT", transport)
            .env("BROKER_CA", place.papers.file("ca.pem"))
            .env("BROKER_PATH", place.socket.display().to_string())
            .succeed(LONG);
        assert!(said.contains(&format!("ok {scenario}")), "the script ended without its verdict: {said:?}");
    }
}

#[test]
fn paho_over_tls() {
    paho("ssl", place().1.address("ssl", "default").port(), "ssl");
}

#[test]
fn paho_over_websocket() {
    paho("ws", place().1.address("ws", "default").port(), "ws");
}

#[test]
fn paho_over_websocket_and_tls() {
    paho("wss", place().1.address("wss", "default").port(), "wss");
}

#[test]
fn paho_with_a_client_certificate() {
    paho("ssl", place().1.address("ssl", "mutual").port(), "ssl-mutual");
    paho("wss", place().1.address("wss", "mutual").port(), "wss-mutual");
}

#[test]
fn paho_over_a_unix_socket() {
    // The library demands a port.
    paho("unix", 1, "unix");
}

fn mqttjs(transport: &str, port: u16, name: &str) {
    let Some(modules) = script::node_modules() else {
        skip::skip("no Node.js with MQTT.js (RINGMQ_TEST_NODE_PATH)");
        return;
    };
    let (place, _node) = place();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/mqttjs/scenarios.js");
    for (version, scenario) in [("5", "qos"), ("4", "qos"), ("5", "session"), ("5", "takeover")] {
        let prefix = format!("transport-js-{name}-{version}");
        let script =
            shown(&place.papers, name).iter().fold(Program::new("node"), |script, (key, value)| script.env(key, value));
        let said = script
            .args([program, scenario, &port.to_string(), version, &prefix])
            .args([0, 1, 2].map(|shard| client_on(shard, 3, &format!("{prefix}-{scenario}-{shard}"))))
            .env("NODE_PATH", modules)
            .env("BROKER_TRANSPORT", transport)
            .env("BROKER_CA", place.papers.file("ca.pem"))
            .succeed(LONG);
        assert!(said.contains(&format!("ok {scenario}")), "the script ended without its verdict: {said:?}");
    }
}

#[test]
fn mqttjs_over_websocket() {
    mqttjs("ws", place().1.address("ws", "default").port(), "ws");
}

#[test]
fn mqttjs_over_websocket_and_tls() {
    mqttjs("wss", place().1.address("wss", "default").port(), "wss");
}

#[test]
fn mqttjs_over_tls() {
    mqttjs("mqtts", place().1.address("ssl", "default").port(), "ssl");
}

#[test]
fn mqttjs_with_a_client_certificate() {
    mqttjs("mqtts", place().1.address("ssl", "mutual").port(), "ssl-mutual");
    mqttjs("wss", place().1.address("wss", "mutual").port(), "wss-mutual");
}

#[test]
fn rumqttc_over_tls_with_and_without_a_client_certificate() {
    let (place, node) = place();
    for (name, listener, shows) in [("open", "default", None), ("mutual", "mutual", Some("good"))] {
        let topic = format!("transport/rumqttc/{name}");
        let client = |shard, role: &str| {
            let id = client_on(shard, 3, &format!("rumqttc-{name}-{role}"));
            let mut options = harness::rumq::v5::options(node.address("ssl", listener), &id);
            let config = secure::config(&place.papers, shows);
            options.set_transport(rumqttc::Transport::tls_with_config(rumqttc::TlsConfiguration::Rustls(config)));
            harness::rumq::v5::Client::with(options)
        };
        let (subscriber, publisher) = (client(0, "sub"), client(1, "pub"));
        subscriber.subscribe(&topic, 2);
        publisher.publish(&topic, 2, false, b"hello");
        assert_eq!(subscriber.message().payload, b"hello");
    }
}
