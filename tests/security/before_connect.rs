//! Connections that never become clients: silent ones, ones that claim a packet of 256 MB, ones that send CONNECT a byte at a time, ones
//! that send something else. Each costs little and is closed in time (E.3 row 12).

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use harness::wire::{Connect, V5};
use harness::{LONG, Node, Raw, Role, Setup};

/// Connections of the test.
const CROWD: usize = 1000;
/// `mqtt.idle_timeout` of the node.
const IDLE: Duration = Duration::from_secs(4);
/// What one connection may cost, and a process that does other things as well.
const BYTES_EACH_MAX: u64 = 4 * 1024;

fn node() -> Node {
    let setup = Setup::new(env!("CARGO_BIN_EXE_ringmq")).shards(2);
    setup.env("RINGMQ_MQTT__IDLE_TIMEOUT", format!("{}s", IDLE.as_secs())).start()
}

/// Memory of the data plane that is its own.
fn resident_bytes(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid(Role::Dataplane))).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("the kernel says it");
    let kb: u64 = line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).expect("a number");
    kb * 1024
}

fn open(node: &Node) -> TcpStream {
    let stream = TcpStream::connect(node.mqtt()).expect("it accepts");
    stream.set_read_timeout(Some(LONG)).expect("a bound");
    stream
}

#[track_caller]
fn is_closed(mut stream: TcpStream) {
    let mut said = Vec::new();
    // What was written after the end resets it, which is an end, too.
    let ended = stream.read_to_end(&mut said);
    assert!(!ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "it is still open");
    assert!(said.is_empty(), "nothing is said to whoever is no client");
}

#[test]
fn a_thousand_that_never_connect_cost_little_and_are_closed_in_time() {
    let node = node();
    let mut canary = Raw::connect(node.mqtt(), &Connect::new(V5, "canary"));
    // What grows once for all.
    drop((0..50).map(|_| open(&node)).collect::<Vec<_>>());
    canary.ping();
    let before = resident_bytes(&node);
    let connect = Connect::new(V5, "never").bytes();
    let since = Instant::now();
    let crowd: Vec<TcpStream> = (0..CROWD)
        .map(|at| {
            let mut stream = open(&node);
            let part: &[u8] = match at % 3 {
                0 => &[],
                // CONNECT of 268 435 455 bytes: refused when its length is known.
                1 => &[0x10, 0xff, 0xff, 0xff, 0x7f, 0, 4, b'M', b'Q'],
                _ => &connect[..connect.len() / 2],
            };
            stream.write_all(part).expect("it reads");
            stream
        })
        .collect();
    canary.ping();
    if since.elapsed() < IDLE {
        let each = resident_bytes(&node).saturating_sub(before) / CROWD as u64;
        println!("{each} bytes per connection");
        assert!(each < BYTES_EACH_MAX, "{each} bytes per connection");
    }
    crowd.into_iter().for_each(is_closed);
    assert!(since.elapsed() > IDLE, "who is silent has its time");
    assert!(since.elapsed() < IDLE + LONG);
    // A third claims too much, and the others are overdue.
    node.counter_reaches("connect_timeout", (CROWD - CROWD.div_ceil(3)) as u64);
    canary.ping();
    Raw::connect(node.mqtt(), &Connect::new(V5, "after")).ping();
}

#[test]
fn connect_a_byte_at_a_time_is_closed_when_its_time_is_over() {
    let node = node();
    let connect = Connect { client_id: &"x".repeat(60), ..Connect::new(V5, "") }.bytes();
    let mut slow = open(&node);
    let since = Instant::now();
    let mut written = 0;
    // Half a byte per second would do: each byte is news, and none of them buys time.
    for byte in connect {
        if slow.write_all(&[byte]).is_err() {
            break;
        }
        written += 1;
        if harness::bound::within_or(Duration::from_millis(200), || is_over(&slow).then_some(())).is_some() {
            break;
        }
    }
    let took = since.elapsed();
    assert!(took > IDLE / 2 && took < IDLE + LONG / 2, "{written} bytes in {took:?}");
    is_closed(slow);
    node.counter_reaches("connect_timeout", 1);
}

/// Has the other side closed?
fn is_over(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket");
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).expect("a socket");
    match peeked {
        Ok(count) => count == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

#[test]
fn what_is_no_connect_is_closed_at_once() {
    let node = node();
    let since = Instant::now();
    for first in [
        vec![0xc0, 0],
        vec![0x30, 4, 0, 1, b't', b'x'],
        vec![0xe0, 0],
        vec![0xf0, 2, 0x18, 0],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0x16, 3, 1, 2, 0, 1],
    ] {
        let mut stream = open(&node);
        stream.write_all(&first).expect("it reads");
        is_closed(stream);
    }
    assert!(since.elapsed() < IDLE, "none of them waited: {:?}", since.elapsed());
}
