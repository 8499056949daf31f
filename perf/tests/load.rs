//! The load against the relay as real processes, and against a relay whose messages are damaged on the way: what the
//! load says must be what happened.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use perf::wire::{self, Ack, Packet, Version};
use serde_json::Value;

/// A process that ends with the test.
struct Relay {
    child: Child,
    address: SocketAddr,
}

impl Relay {
    fn start() -> Relay {
        let mut command = Command::new(env!("CARGO_BIN_EXE_perf"));
        let mut child =
            command.args(["relay", "--bind", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().expect("perf starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("ready ").expect("ready line").parse().expect("an address");
        Relay { child, address }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn load(address: SocketAddr, options: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perf"));
    command.args(["load", "--json", "--address", &address.to_string()]);
    command.args(options.split_ascii_whitespace()).output().expect("perf runs")
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn every_layout_version_and_qos_arrives_whole_through_the_relay() {
    for mqtt in ["3.1.1", "5"] {
        let relay = Relay::start();
        for qos in 0..=2 {
            for layout in ["fan -P 2 -S 10", "pairs -P 5 -S 10", "n-to-one -P 10 -S 2"] {
                for threads in [1, 3] {
                    let options = format!(
                        "--mqtt {mqtt} --qos {qos} --layout {layout} --threads {threads} --warmup-ms 20 --messages 3000 --pid {}",
                        relay.child.id()
                    );
                    let output = load(relay.address, &options);
                    let report = report(&output);
                    assert_eq!(report["verified"], "ok", "{options}: {report}");
                    assert_eq!(report["published"], 3000, "{options}");
                    let receivers = if layout.starts_with("fan") { 10 } else { 2 };
                    assert_eq!(report["delivered"], 3000 * receivers, "{options}");
                    assert!(report["cpu_ns_per_delivery"].as_f64().expect("a cost") > 1.0);
                    assert!(output.status.success());
                }
            }
        }
    }
}

#[test]
fn large_payloads_and_a_fixed_rate_arrive_whole() {
    let relay = Relay::start();
    let large = report(&load(relay.address, "-S 3 --payload-bytes 300000 --messages 200 --window 16"));
    assert_eq!((&large["verified"], &large["delivered"]), (&"ok".into(), &600.into()));
    let fixed = report(&load(relay.address, "-P 4 -S 2 --rate 1000 --seconds 0.5"));
    assert_eq!(fixed["verified"], "ok");
    let published = fixed["published"].as_u64().expect("a count");
    assert!((400..=600).contains(&published), "{published} in half a second at 1000/s");
}

/// What happens to messages between the relay and a subscriber.
#[derive(Clone, Copy)]
enum Damage {
    Lose,
    Repeat,
    Swap,
    Corrupt,
    Hang,
}

/// Every 100th message towards a subscriber suffers.
const PERIOD: usize = 100;

/// A proxy in front of `relay` that damages messages; returns its address.
fn damaging(relay: SocketAddr, damage: Damage) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(relay).expect("the relay listens");
            let (mut up_from, mut up_to) = (client.try_clone().expect("clone"), server.try_clone().expect("clone"));
            thread::spawn(move || std::io::copy(&mut up_from, &mut up_to));
            thread::spawn(move || proxy(server, client, damage));
        }
    });
    address
}

fn proxy(mut from: TcpStream, mut to: TcpStream, damage: Damage) {
    let (mut bytes, mut buffer, mut count) = (Vec::new(), vec![0; 65536], 0);
    let mut held: Option<Vec<u8>> = None;
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..read]);
        let mut out = Vec::new();
        while let Ok(Some((total, body))) = wire::frame(&bytes) {
            let packet: Vec<u8> = bytes.drain(..total).collect();
            let is_message = matches!(wire::decode(Version::V311, &packet, body), Ok(Packet::Publish(_)));
            count += usize::from(is_message);
            let is_victim = is_message && count % PERIOD == 0;
            match damage {
                Damage::Lose if is_victim => {}
                Damage::Repeat if is_victim => out.extend([&packet[..], &packet[..]].concat()),
                Damage::Swap if is_victim => held = Some(packet),
                Damage::Corrupt if is_victim => {
                    out.extend_from_slice(&packet);
                    *out.last_mut().expect("a payload") ^= 1;
                }
                Damage::Hang if is_message && count > PERIOD => {}
                _ => {
                    out.extend_from_slice(&packet);
                    out.extend(held.take().into_iter().flatten());
                }
            }
        }
        if to.write_all(&out).is_err() {
            return;
        }
    }
}

#[test]
fn lost_repeated_swapped_and_corrupt_messages_are_reported_exactly() {
    let relay = Relay::start();
    for (damage, name) in [
        (Damage::Lose, "lost"),
        (Damage::Repeat, "duplicates"),
        (Damage::Swap, "reordered"),
        (Damage::Corrupt, "corrupt"),
    ] {
        let output = load(damaging(relay.address, damage), "-S 4 --messages 1050 --warmup-ms 0");
        let report = report(&output);
        // Of 1050 messages ten suffer on the way to each of the four subscribers.
        let victims = 40;
        assert_eq!(report[name], victims, "{name}: {report}");
        assert!(!output.status.success(), "a faulty run must not end with success");
        // A corrupt payload is not an arrival, so its message is lost as well.
        for other in ["lost", "duplicates", "reordered", "corrupt", "foreign"] {
            let expected = if other == name || (name == "corrupt" && other == "lost") { victims } else { 0 };
            assert_eq!(report[other], expected, "{name}, {other}: {report}");
        }
    }
}

#[test]
fn a_broker_that_goes_silent_ends_the_run_with_a_reason() {
    let relay = Relay::start();
    let report = report(&load(damaging(relay.address, Damage::Hang), "-S 1 --seconds 20 --window 200"));
    let failure = report["failure"].as_str().expect("a failure");
    assert!(failure.starts_with("no message arrived for 3 s while 200 deliveries were due"), "{failure}");
    assert_eq!(report["lost"], 200);
}

/// A server that answers every first packet with the same bytes and then closes.
fn answering(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.read(&mut [0; 512]);
            let _ = client.write_all(&answer);
        }
    });
    address
}

#[test]
fn a_refusal_is_told_with_its_meaning() {
    let stray = {
        let mut bytes = vec![0x20, 2, 0, 0];
        wire::put_ack(&mut bytes, Ack::Puback, 9);
        bytes
    };
    for (mqtt, answer, expected) in [
        ("3.1.1", vec![0x20, 2, 0, 5], "refused CONNECT with code 0x05 (not authorized)"),
        ("5", vec![0x20, 3, 0, 0x89, 0], "refused CONNECT with code 0x89 (server busy)"),
        ("3.1.1", vec![], "the broker closed the connection"),
        ("3.1.1", stray, "unexpected packet while connecting"),
    ] {
        let output = load(answering(answer), &format!("--mqtt {mqtt} -S 1"));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(expected), "{error}");
        assert_eq!(output.status.code(), Some(2));
    }
}

#[test]
fn a_broker_that_is_not_there_and_a_dead_process_are_named() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let error = load(free, "").stderr;
    assert!(String::from_utf8_lossy(&error).contains(&format!("cannot connect to {free}")));
    let relay = Relay::start();
    let mut short = Command::new("true").spawn().expect("true starts");
    let pid = short.id();
    short.wait().expect("true ends");
    let error = load(relay.address, &format!("-S 1 --pid {pid}")).stderr;
    assert!(String::from_utf8_lossy(&error).contains(&format!("process {pid} cannot be read")));
}

#[test]
fn connections_are_counted_and_priced() {
    let relay = Relay::start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_perf"));
    let address = relay.address.to_string();
    command.args([
        "connect",
        "--json",
        "--count",
        "300",
        "--address",
        &address,
        "--pid",
        &relay.child.id().to_string(),
    ]);
    let report = report(&command.output().expect("perf runs"));
    assert_eq!(report["connections"], 300);
    assert!(report["cpu_ns_per_connection"].as_f64().expect("a cost") > 100.0);
}

#[test]
fn a_broker_that_acknowledges_and_keeps_nothing_is_found_out() {
    let relay = Relay::start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_perf"));
    command.args(["queue", "--json", "-P", "3", "--inflight", "2", "--warmup-ms", "0", "--seconds", "0.2"]);
    command.args(["--address", &relay.address.to_string(), "--pid", &relay.child.id().to_string()]);
    let output = command.output().expect("perf runs");
    let report = report(&output);
    assert!(report["acknowledged"].as_u64().expect("a count") > 0, "{report}");
    assert_eq!(report["lost"], report["acknowledged_in_all"], "{report}");
    assert!(report["cpu_ns_per_message"].as_f64().expect("a cost") > 1.0);
    assert!(!output.status.success(), "a faulty run must not end with success");
}
