//! A remote played by the test, with payloads as a real EMQX writes them: what our node says to it, and
//! what our node makes of what it says. Nothing here is built by crate `link`.

use harness::node::Node;
use harness::raw::Raw;
use harness::wire::{self, Connect, Packet, Publish, Received, V5, kind};
use harness::{LONG, SHORT, ports};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

/// `actor_init` of actor `n1@h` for target cluster `B`.
pub const INIT: &str = "837400000005610a6d000000046e314068610b6e0600008844709e01610d6d0000000142610e61017703246f706d0000000a6163746f725f696e6974";
/// Routes of that actor: adds `t/1`, deletes `t/2` of a shared group.
pub const ROUTE: &str = "837400000004610a6d000000046e314068610b6e0600008844709e01610c6c0000000268026d00000003742f316d00000003742f31680361646d00000003742f326d0000000824732f672f742f326a7703246f706d00000005726f757465";
/// Heartbeat of that actor.
const HEARTBEAT: &str =
    "837400000003610a6d000000046e314068610b6e0600008844709e017703246f706d00000009686561727462656174";
/// A forwarded message: QoS 1, from `pub1`, topic `t/1`, payload `hi`.
pub const MESSAGE: &str = "83680a77076d6573736167656d000000100000000000000000000000000000000061016d000000047075623174000000027703647570770566616c7365770672657461696e770566616c73657400000001770a70726f7065727469657374000000006d00000003742f316d0000000268696e0600008844709e017400000000";

/// Bytes of a payload that is written in hexadecimal.
pub fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal")).collect()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// A node of cluster `B` whose link `A` leads to `server`, wanting `t/#`.
pub fn node_linked_to(server: SocketAddr) -> Node {
    crate::clusters::cluster("B", ports::free(), "A", server, r##"["t/#"]"##).start()
}

/// What a connection to the played remote sent.
#[derive(Debug)]
enum Said {
    Connect { id: String, body: Vec<u8> },
    Subscribe { id: String, filter: String },
    Publish { id: String, publish: Received },
}

/// The remote's listener: it accepts every connection, acknowledges everything, and answers `actor_init`.
struct Remote {
    at: SocketAddr,
    said: Receiver<Said>,
}

impl Remote {
    fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let at = listener.local_addr().expect("it is bound");
        let (sender, said) = channel();
        // Ends with the test process: it waits for connections of a node that ends before.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let sender = sender.clone();
                std::thread::spawn(move || serve(stream, &sender));
            }
        });
        Self { at, said }
    }

    #[track_caller]
    fn next<T>(&self, what: &str, mut pick: impl FnMut(&Said) -> Option<T>) -> T {
        let until = Instant::now() + LONG;
        loop {
            let said = self
                .said
                .recv_timeout(until.saturating_duration_since(Instant::now()))
                .unwrap_or_else(|_| panic!("the node did not send {what} within {LONG:?}"));
            if let Some(value) = pick(&said) {
                return value;
            }
        }
    }
}

/// Serves one connection until it ends.
fn serve(mut stream: TcpStream, said: &Sender<Said>) {
    let mut buffered = Vec::new();
    let mut chunk = [0; 4096];
    let mut id = String::new();
    loop {
        while let Some(packet) = wire::take(&mut buffered) {
            let Some(answer) = answer(&packet, &mut id, said) else {
                return;
            };
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
        match stream.read(&mut chunk) {
            Ok(count) if count > 0 => buffered.extend_from_slice(&chunk[..count]),
            _ => return,
        }
    }
}

fn answer(packet: &Packet, id: &mut String, said: &Sender<Said>) -> Option<Vec<u8>> {
    match packet.kind {
        kind::CONNECT => {
            // Name (6), level (1), flags (1), keep-alive (2), an empty property list (1), then the client id.
            assert_eq!(packet.body[10], 0, "a link's CONNECT has no properties: {packet:?}");
            let length = usize::from(u16::from_be_bytes([packet.body[11], packet.body[12]]));
            *id = String::from_utf8_lossy(&packet.body[13..13 + length]).into_owned();
            let body = packet.body.clone();
            said.send(Said::Connect { id: id.clone(), body }).ok()?;
            Some(wire::packet(kind::CONNACK << 4, &[0, 0, 0]))
        }
        kind::SUBSCRIBE => {
            let properties = usize::from(packet.body[2]);
            let at = 3 + properties;
            let length = usize::from(u16::from_be_bytes([packet.body[at], packet.body[at + 1]]));
            let filter = String::from_utf8_lossy(&packet.body[at + 2..at + 2 + length]).into_owned();
            said.send(Said::Subscribe { id: id.clone(), filter }).ok()?;
            let body = [packet.body[0], packet.body[1], 0, 1];
            Some(wire::packet(kind::SUBACK << 4, &body))
        }
        kind::PUBLISH => {
            let publish = packet.publish(V5);
            let mut out = Vec::new();
            if let Some(packet_id) = publish.packet_id {
                out = wire::ack(kind::PUBACK, packet_id);
            }
            if contains(&publish.payload, b"actor_init") {
                out.extend(init_ack(&publish));
            }
            said.send(Said::Publish { id: id.clone(), publish }).ok()?;
            Some(out)
        }
        kind::PINGREQ => Some(wire::packet(kind::PINGRESP << 4, &[])),
        kind::DISCONNECT => None,
        _ => Some(Vec::new()),
    }
}

/// A property with a length of two bytes.
fn property(properties: &[u8], wanted: u8) -> Option<Vec<u8>> {
    let mut at = 0;
    while at + 3 <= properties.len() {
        let length = usize::from(u16::from_be_bytes([properties[at + 1], properties[at + 2]]));
        let value = properties.get(at + 3..at + 3 + length)?;
        if properties[at] == wanted {
            return Some(value.to_vec());
        }
        at += 3 + length;
    }
    None
}

const RESPONSE_TOPIC: u8 = 0x08;
const CORRELATION_DATA: u8 = 0x09;

/// `actor_init_ack`: accepted, send your routes.
fn init_ack(init: &Received) -> Vec<u8> {
    let topic = property(&init.properties, RESPONSE_TOPIC).expect("actor_init names where to answer");
    let topic = String::from_utf8(topic).expect("a topic is UTF-8");
    let correlation = property(&init.properties, CORRELATION_DATA).expect("actor_init has a request id");
    let actor = topic.rsplit('/').next().expect("the actor ends the topic");
    let mut payload = bytes("837400000005610a6d");
    payload.extend((actor.len() as u32).to_be_bytes());
    payload.extend(actor.as_bytes());
    payload.extend(bytes("610e6101610f77026f6b61107704747275657703246f706d0000000e6163746f725f696e69745f61636b"));
    let mut properties = vec![CORRELATION_DATA];
    wire::put_bytes(&mut properties, &correlation);
    Publish { properties: &properties, ..Publish::new(&topic, &payload).acked(1, 1) }.bytes(V5)
}

/// A requester's connection to the node: CONNECT, SUBSCRIBE, `actor_init`; gives the ack's payload.
#[track_caller]
pub fn request(node: &Node, client_id: &str, init: &[u8]) -> (Raw, Vec<u8>) {
    let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, client_id));
    let answers = "$LINK/cluster/resp/A/n1@h";
    raw.subscribe(answers, 1);
    let mut properties = vec![RESPONSE_TOPIC];
    wire::put_bytes(&mut properties, answers.as_bytes());
    properties.push(CORRELATION_DATA);
    wire::put_bytes(&mut properties, b"0123456789abcdef");
    let publish = Publish { properties: &properties, ..Publish::new("$LINK/cluster/route/A", init).acked(1, 2) };
    raw.send(&publish.bytes(V5));
    let mut payload = None;
    for _ in 0..2 {
        let packet = raw.next(SHORT).expect("the connection stays open");
        if packet.kind == kind::PUBACK {
            assert!(packet.reason() < 0x80, "{packet:?}");
        } else {
            let ack = packet.publish(V5);
            assert_eq!(ack.topic, answers);
            assert_eq!(property(&ack.properties, CORRELATION_DATA).as_deref(), Some(&b"0123456789abcdef"[..]));
            if let Some(id) = ack.packet_id {
                raw.send(&wire::ack(kind::PUBACK, id));
            }
            payload = Some(ack.payload);
        }
    }
    (raw, payload.expect("an ack came"))
}

/// Publishes a payload on a link topic; gives the reason of the PUBACK.
#[track_caller]
pub fn say(raw: &mut Raw, topic: &str, payload: &[u8], packet_id: u16) -> u8 {
    raw.send(&Publish::new(topic, payload).acked(1, packet_id).bytes(V5));
    raw.expect(kind::PUBACK).reason()
}

#[test]
fn our_requester_speaks_as_emqx_expects() {
    let remote = Remote::listen();
    let node = node_linked_to(remote.at);
    let subscriber = crate::clusters::client(&node, 0, "sub");
    subscriber.subscribe("t/early", 1);
    let (id, body) = remote.next("CONNECT of the route connection", |said| match said {
        Said::Connect { id, body } if id.contains(":routesync:") => Some((id.clone(), body.clone())),
        _ => None,
    });
    let tail = id.strip_prefix("B:routesync:").unwrap_or_else(|| panic!("client id `{id}`"));
    assert!(tail.len() == 8 && tail.bytes().all(|byte| byte.is_ascii_hexdigit()), "client id `{id}`");
    // Level 5, clean start and nothing else, 60 seconds.
    assert_eq!(body[6..10], [5, 0x02, 0, 60]);
    let filter = remote.next("SUBSCRIBE of the answers", |said| match said {
        Said::Subscribe { id: from, filter } if *from == id => Some(filter.clone()),
        _ => None,
    });
    let actor = filter.strip_prefix("$LINK/cluster/resp/B/").unwrap_or_else(|| panic!("filter `{filter}`"));
    let from_route = |what: &str, part: &[u8]| {
        remote.next(what, |said| match said {
            Said::Publish { id: from, publish } if *from == id && contains(&publish.payload, part) => {
                Some(publish.clone())
            }
            _ => None,
        })
    };
    let init = from_route("actor_init", b"actor_init");
    assert_eq!((init.topic.as_str(), init.qos, init.retain), ("$LINK/cluster/route/B", 1, false));
    assert_eq!(property(&init.properties, RESPONSE_TOPIC).as_deref(), Some(filter.as_bytes()));
    assert_eq!(init.payload[0], 131, "external term format");
    assert!(contains(&init.payload, actor.as_bytes()), "the actor is in the map");
    assert!(contains(&init.payload, &bytes("610d6d0000000141")), "13 => <<\"A\">>: the cluster it means");
    assert!(contains(&init.payload, &bytes("610e6101")), "14 => 1: the protocol version");
    let bootstrap = from_route("the bootstrap route", b"t/early");
    assert!(contains(&bootstrap.payload, b"route"));
    assert_eq!(bootstrap.qos, 1);
    subscriber.subscribe("t/late", 1);
    from_route("the late route", b"t/late");
    subscriber.unsubscribe("t/late");
    let delete = from_route("its deletion", b"t/late");
    assert!(contains(&delete.payload, &bytes("68036164")), "a deletion is a triple that begins with 100");
    let heartbeat = from_route("a heartbeat", b"heartbeat");
    assert_eq!(heartbeat.qos, 0);
}

#[test]
fn our_forwarder_serves_an_emqx_requester() {
    let remote = Remote::listen();
    let node = node_linked_to(remote.at);
    let (mut raw, ack) = request(&node, "A:routesync:0badcafe", &bytes(INIT));
    assert!(contains(&ack, b"actor_init_ack"));
    assert!(contains(&ack, &bytes("610f77026f6b")), "15 => ok: {ack:02x?}");
    assert!(contains(&ack, &bytes("6110770474727565")), "16 => true: send your routes: {ack:02x?}");
    assert!(say(&mut raw, "$LINK/cluster/route/A", &bytes(ROUTE), 3) < 0x80);
    raw.send(&Publish::new("$LINK/cluster/route/A", &bytes(HEARTBEAT)).bytes(V5));
    raw.ping();

    let publisher = crate::clusters::client(&node, 1, "pub");
    publisher.publish("t/2", 1, false, b"nobody wants this");
    publisher.publish("t/1", 1, false, b"wanted");
    publisher.acked(2);
    let (id, forwarded) = remote.next("the forwarded message", |said| match said {
        Said::Publish { id, publish } if publish.topic.starts_with("$LINK/cluster/msg/") => {
            Some((id.clone(), publish.clone()))
        }
        _ => None,
    });
    assert!(id.starts_with("B:msg:"), "client id `{id}`");
    assert_eq!((forwarded.topic.as_str(), forwarded.qos), ("$LINK/cluster/msg/B", 1));
    assert!(forwarded.properties.is_empty(), "{forwarded:?}");
    assert_eq!(forwarded.payload[..10], bytes("83680a77076d65737361")[..], "a tuple of ten that begins with `message`");
    assert!(contains(&forwarded.payload, b"wanted"), "the first that crosses is the one that was asked for");
    assert!(contains(&forwarded.payload, &bytes("6d00000003742f31")), "its topic");
}

#[test]
fn a_message_of_an_emqx_reaches_a_subscriber() {
    let remote = Remote::listen();
    let node = node_linked_to(remote.at);
    let subscriber = crate::clusters::client(&node, 0, "sub");
    subscriber.subscribe("t/#", 2);
    let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, "A:msg:0badcafe:1"));
    assert!(say(&mut raw, "$LINK/cluster/msg/A", &bytes(MESSAGE), 1) < 0x80);
    let message = subscriber.message();
    assert_eq!((message.topic.as_str(), message.payload.as_slice(), message.qos), ("t/1", &b"hi"[..], 1));
    node.counter_reaches("link_received", 1);
}

#[test]
fn an_init_for_a_cluster_that_we_do_not_link_to_is_refused_in_words() {
    let remote = Remote::listen();
    let node = crate::clusters::cluster("B", ports::free(), "C", remote.at, r##"["t/#"]"##).start();
    let (mut raw, ack) = request(&node, "A:routesync:0badcafe", &bytes(INIT));
    assert!(contains(&ack, b"unknown_cluster"), "{ack:02x?}");
    raw.ping();
}

#[test]
fn an_init_that_means_another_cluster_is_refused_in_words() {
    let remote = Remote::listen();
    let node = crate::clusters::cluster("Z", ports::free(), "A", remote.at, r##"["t/#"]"##).start();
    let (mut raw, ack) = request(&node, "A:routesync:0badcafe", &bytes(INIT));
    assert!(contains(&ack, b"bad_remote_cluster_link_name"), "{ack:02x?}");
    raw.ping();
}
