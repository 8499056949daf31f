//! The recorded conversations again, with our state machines in the place of one side.
//!
//! Where the scripted peer was requester or forwarder towards EMQX, its payloads go into our session and inlet, and our
//! reaction is compared with EMQX's recorded one; where EMQX was requester, our requester stands in for it and gets
//! the scripted peer's recorded answers. Every place where we mean to differ is listed with its reason.

mod common;

use std::collections::BTreeMap;

use common::terms::{self, Term};
use common::{Exchange, Said, each_packet, exchanges, one_packet};
use link::error::LinkError;
use link::etf::Limits;
use link::forwarder::{Forwarder, Interest, Settings as ForwarderSettings};
use link::inlet::{Inlet, Refused};
use link::names::LinkTopic;
use link::requester::{Requester, Settings as RequesterSettings, Standing};
use link::session::{Fault, Lookup, Reaction, RoutePublish, Session};
use link::wire::{self, RouteMessage, RouteOp};
use mqtt::codec::{AckKind, Packet, Publish, encode};
use mqtt::types::{PacketId, Qos, Reason, Version};

const VERSIONS: [&str; 3] = ["5.8.9", "5.10.4", "6.0.3"];

/// The cluster `alpha` of the recordings: links beta and fake, and off, which is disabled.
struct Alpha {
    forwarders: BTreeMap<String, (bool, Forwarder)>,
    sessions: BTreeMap<u64, Session>,
    interest: BTreeMap<String, i32>,
}

impl Alpha {
    fn new() -> Alpha {
        let links = [("beta", true), ("off", false), ("fake", true)];
        let forwarder = || Forwarder::new(ForwarderSettings::default());
        Alpha {
            forwarders: links.map(|(name, enabled)| (name.into(), (enabled, forwarder()))).into(),
            sessions: BTreeMap::new(),
            interest: BTreeMap::new(),
        }
    }

    fn publish(&mut self, now: u64, connection: u64, cluster: &str, publish: &Publish<'_>) -> Reaction {
        let lookup = match self.forwarders.get_mut(cluster) {
            None => Lookup::Unknown,
            Some((enabled, forwarder)) => Lookup::Known { enabled: *enabled, forwarder },
        };
        let route = RoutePublish {
            cluster,
            payload: publish.payload,
            response_topic: publish.properties.response_topic,
            correlation_data: publish.properties.correlation_data,
        };
        let session = self.sessions.entry(connection).or_default();
        let interest = &mut self.interest;
        session.publish(now, "alpha", &route, lookup, &Limits::default(), &mut |event| match event {
            Interest::Add(filter) => *interest.entry(filter.into()).or_default() += 1,
            Interest::Remove(filter) => *interest.entry(filter.into()).or_default() -= 1,
        })
    }
}

/// What EMQX did after a publish: everything it sent on that connection before the peer's next packet that asks.
#[derive(Default, Debug)]
struct Emqx {
    ack: Option<Reason>,
    disconnect: Option<Reason>,
    closed: bool,
    answer: Option<Vec<u8>>,
}

fn reaction_of_emqx(after: &[Said], connection: u64) -> Emqx {
    let mut emqx = Emqx::default();
    for said in after.iter().filter(|said| said.connection == connection) {
        if !said.by_emqx {
            match said.packet.as_str() {
                "PUBACK" | "PUBREL" => continue,
                _ => break,
            }
        }
        let Some(bytes) = &said.bytes else {
            emqx.closed |= said.packet == "TCP_CLOSE";
            continue;
        };
        match one_packet(bytes) {
            Packet::Puback(ack) | Packet::Pubrec(ack) => emqx.ack = Some(ack.reason),
            Packet::Disconnect(disconnect) => emqx.disconnect = Some(disconnect.reason),
            Packet::Publish(publish) => emqx.answer = Some(publish.payload.to_vec()),
            _ => {}
        }
    }
    emqx
}

/// EMQX before 6.0.3 ignores what 6.0.3 and we disconnect for: a requester that sends it must begin anew either way.
fn older_versions_ignore(exchange: &Exchange) -> bool {
    exchange.version != "6.0.3" && ["disc-unknown-op", "disc-not-map"].contains(&exchange.label.as_str())
}

fn compare(exchange: &Exchange, ours: &Reaction, emqx: &Emqx) -> &'static str {
    let place = format!("{} {}: ours {ours:?}, EMQX {emqx:?}", exchange.id, exchange.label);
    match ours {
        Reaction::Disconnect(_) if older_versions_ignore(exchange) => {
            assert_eq!(emqx.ack, Some(Reason::NoMatchingSubscribers), "{place}");
            "disconnect, older versions ignore"
        }
        Reaction::Disconnect(_) => {
            assert_eq!(emqx.disconnect, Some(Fault::REASON), "{place}");
            assert_eq!(Fault::REASON.code(), 0x83);
            "disconnect"
        }
        Reaction::Acknowledge => {
            // An answer that EMQX sent now was for another connection that speaks for the same actor.
            assert!(emqx.disconnect.is_none() && !emqx.closed, "{place}");
            assert!(emqx.ack.is_none_or(|reason| reason == Reason::NoMatchingSubscribers), "{place}");
            "acknowledge"
        }
        Reaction::Answer(answer) => {
            let recorded = terms::of_bytes(emqx.answer.as_deref().unwrap_or_else(|| panic!("{place}")));
            let mine = terms::of_bytes(&answer.payload);
            // We ask for a bootstrap at every handshake: EMQX goes online without its routes where it is told not to.
            assert_eq!(without_no_bootstrap(mine), without_no_bootstrap(recorded), "{place}");
            if answer.refusal.is_some() { "refusal" } else { "acceptance" }
        }
    }
}

fn without_no_bootstrap(answer: Term) -> Term {
    let Term::Map(mut pairs) = answer else { panic!("an answer is a map") };
    for (key, value) in &mut pairs {
        if *key == Term::Int(16) && *value == Term::Atom("false".into()) {
            *value = Term::Atom("true".into());
        }
    }
    Term::Map(pairs)
}

#[test]
fn our_session_reacts_to_every_scripted_requester_as_emqx_did() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for version in VERSIONS {
        let mut alpha = Alpha::new();
        for (minute, exchange) in exchanges().iter().filter(|exchange| exchange.version == version).enumerate() {
            for (at, said) in exchange.packets.iter().enumerate() {
                let Some(bytes) = said.bytes.as_ref().filter(|_| !said.by_emqx && said.packet == "PUBLISH") else {
                    continue;
                };
                let Packet::Publish(publish) = one_packet(bytes) else { panic!("a publish") };
                let Some(LinkTopic::Route { cluster }) = LinkTopic::parse(publish.topic) else { continue };
                let now = minute as u64 * 1_000_000 + said.t_ms * 1000;
                let ours = alpha.publish(now, said.connection, cluster, &publish);
                let emqx = reaction_of_emqx(&exchange.packets[at + 1..], said.connection);
                *seen.entry(compare(exchange, &ours, &emqx)).or_default() += 1;
            }
        }
        assert!(alpha.interest.values().all(|count| *count == 0 || *count == 1), "additions and removals alternate");
        let wanted: Vec<&String> =
            alpha.interest.iter().filter(|(_, count)| **count == 1).map(|(name, _)| name).collect();
        assert!(wanted.iter().any(|filter| *filter == "f/q0"), "a route sent with QoS 0 counts: {wanted:?}");
        assert!(!wanted.iter().any(|filter| *filter == "f/old"), "an outdated incarnation changes nothing");
    }
    println!("reactions compared with EMQX's: {seen:?}");
    for kind in ["disconnect", "disconnect, older versions ignore", "acknowledge", "refusal", "acceptance"] {
        assert!(seen.contains_key(kind), "{kind} was not exercised: {seen:?}");
    }
}

#[test]
fn our_session_serves_emqx_as_requester() {
    let (mut inits, mut routes, mut heartbeats) = (0, 0, 0);
    for exchange in exchanges() {
        let mut alpha = Alpha::new();
        alpha.forwarders.insert("alpha".into(), (true, Forwarder::new(ForwarderSettings::default())));
        for said in exchange.packets.iter().filter(|said| said.by_emqx) {
            let Some(bytes) = &said.bytes else { continue };
            let Packet::Publish(publish) = one_packet(bytes) else { continue };
            let Some(LinkTopic::Route { cluster }) = LinkTopic::parse(publish.topic) else { continue };
            let mut scratch = Vec::new();
            let message = wire::decode_route(publish.payload, &mut scratch, &Limits::default()).expect("EMQX's own");
            let now = said.t_ms * 1000;
            // EMQX means `fake`, the scripted peer: we answer in its name.
            let forwarder = &mut alpha.forwarders.get_mut(cluster).expect("links").1;
            let route = RoutePublish {
                cluster,
                payload: publish.payload,
                response_topic: publish.properties.response_topic,
                correlation_data: publish.properties.correlation_data,
            };
            let lookup = Lookup::Known { enabled: true, forwarder };
            let session = alpha.sessions.entry(said.connection).or_default();
            let mut added = Vec::new();
            let reaction = session.publish(now, "fake", &route, lookup, &Limits::default(), &mut |event| {
                if let Interest::Add(filter) = event {
                    added.push(filter.to_string());
                }
            });
            match message {
                RouteMessage::ActorInit { .. } => {
                    let Reaction::Answer(answer) = &reaction else { panic!("{}: {reaction:?}", exchange.id) };
                    assert_eq!(answer.refusal, None);
                    assert_eq!(Some(answer.topic.as_str()), publish.properties.response_topic);
                    assert_eq!(answer.correlation_data.as_deref(), publish.properties.correlation_data);
                    inits += 1;
                }
                RouteMessage::Route { ops, .. } => {
                    assert_eq!(reaction, Reaction::Acknowledge, "{}", exchange.id);
                    let fresh = ops.filter(|op| matches!(op, RouteOp::Add { .. })).count();
                    assert!(added.len() <= fresh);
                    routes += 1;
                }
                RouteMessage::Heartbeat { .. } => {
                    assert_eq!(reaction, Reaction::Acknowledge, "{}", exchange.id);
                    heartbeats += 1;
                }
                RouteMessage::ActorInitAck { .. } => panic!("a requester answers nothing"),
            }
        }
    }
    println!("EMQX as requester: {inits} inits, {routes} batches, {heartbeats} heartbeats");
    assert!(inits > 0 && routes > 0 && heartbeats > 0);
}

/// How we answer a crafted message that EMQX delivered, or lost: (label, our reason, why we differ).
const DIFFERENT: [(&str, Option<&str>, &str); 7] = [
    ("fwd-unknown atom header", None, "EMQX protects its atom table; we have none, and would lose a message for it"),
    ("fwd-qos 3 inner", Some("invalid"), "there is no QoS 3 to deliver with"),
    ("fwd-payload not binary", Some("invalid"), "a payload is bytes; no EMQX sends another type"),
    ("fwd-timestamp as string", Some("invalid"), "expiry needs a time"),
    (
        "fwd-wildcard topic",
        Some("bad_topic"),
        "EMQX closes the connection; one bad message is no reason to lose the rest",
    ),
    (
        "fwd-header should_disconnect",
        Some("withheld"),
        "not delivered either; the connection stays, as for any message",
    ),
    ("fwd-header should_disconnect only", Some("withheld"), "likewise"),
];

#[test]
fn our_inlet_judges_every_crafted_message_as_emqx_did() {
    let topics: Vec<String> = ["f/#", "t/1", "m/#", "$SYS/f"].map(String::from).into();
    let fake = Inlet::new(true, topics.clone(), 16, Limits::default());
    let off = Inlet::new(false, topics, 16, Limits::default());
    let (mut delivered, mut refused, mut different) = (0, BTreeMap::new(), 0);
    for exchange in exchanges() {
        for (at, said) in exchange.packets.iter().enumerate() {
            let Some(bytes) = said.bytes.as_ref().filter(|_| !said.by_emqx && said.packet == "PUBLISH") else {
                continue;
            };
            let Packet::Publish(publish) = one_packet(bytes) else { panic!("a publish") };
            let Some(LinkTopic::Msg { cluster }) = LinkTopic::parse(publish.topic) else { continue };
            let inlet = match cluster {
                "fake" => Some(&fake),
                "off" => Some(&off),
                _ => None,
            };
            let mut scratch = Vec::new();
            let ours = Inlet::receive(inlet, 1_795_172_560_000, publish.payload, &mut scratch);
            let emqx = reaction_of_emqx(&exchange.packets[at + 1..], said.connection);
            let ours = ours.map_err(|refused| refused.name());
            let place = format!("{} {}: ours {ours:?}, EMQX {emqx:?}", exchange.id, exchange.label);
            if let Some((_, reason, _)) = DIFFERENT.iter().find(|(label, ..)| *label == exchange.label) {
                assert_eq!(ours.as_ref().err().copied(), *reason, "{place}");
                different += 1;
                continue;
            }
            match &ours {
                Ok(_) => {
                    assert!(publish.qos == Qos::AtMostOnce || emqx.ack == Some(Reason::Success), "{place}");
                    delivered += 1;
                }
                Err(name) => {
                    assert_eq!(emqx.ack, Some(Reason::NoMatchingSubscribers), "{place}");
                    *refused.entry(*name).or_insert(0) += 1;
                }
            }
        }
    }
    println!("crafted messages: {delivered} delivered, refused {refused:?}, {different} where we mean to differ");
    assert!(delivered > 0);
    for name in ["unknown_link", "link_disabled", "undecodable", "invalid", "outside_topics", "withheld"] {
        assert!(refused.contains_key(name), "{name} was not exercised: {refused:?}");
    }
    assert_eq!(different, 3 * DIFFERENT.len(), "every difference was seen in every version");
    let _: fn(Refused) -> &'static str = |refused| refused.name();
}

/// Our requester in the place of EMQX, and the recorded peer on the other end.
struct Stage {
    requester: Requester,
    out: Vec<u8>,
    now: u64,
}

/// What our requester said in one turn.
#[derive(Default, Debug)]
struct Turn {
    subscribe: Option<PacketId>,
    init: Option<(PacketId, Vec<u8>)>,
    batches: Vec<(PacketId, Vec<(bool, String)>)>,
    heartbeats: usize,
    acks: usize,
    disconnect: Option<Reason>,
}

impl Stage {
    fn new() -> Stage {
        let mut settings = RequesterSettings::new("alpha", "fake", "alpha@127.0.0.1", 1_795_172_783_392);
        settings.topics = ["f/#", "t/1", "m/#", "$SYS/f"].map(String::from).into();
        Stage { requester: Requester::new(settings), out: Vec::new(), now: 0 }
    }

    fn said(&mut self) -> Turn {
        let mut turn = Turn::default();
        each_packet(&mut self.out, |packet| match packet {
            Packet::Connect(connect) => assert_eq!(connect.client_id, "alpha:routesync:e2746777"),
            Packet::Subscribe(subscribe) => turn.subscribe = Some(subscribe.packet_id),
            Packet::Puback(_) => turn.acks += 1,
            Packet::Disconnect(disconnect) => turn.disconnect = Some(disconnect.reason),
            Packet::Publish(publish) => {
                let mut scratch = Vec::new();
                match wire::decode_route(publish.payload, &mut scratch, &Limits::default()).expect("ours") {
                    RouteMessage::ActorInit { actor, incarnation, target, .. } => {
                        assert_eq!((actor, incarnation, target), ("alpha@127.0.0.1", 1_795_172_783_392, "fake"));
                        let properties = &publish.properties;
                        assert_eq!(properties.response_topic, Some("$LINK/cluster/resp/alpha/alpha@127.0.0.1"));
                        let request = properties.correlation_data.expect("a request id").to_vec();
                        turn.init = Some((publish.packet_id.expect("QoS 1"), request));
                    }
                    RouteMessage::Route { ops, .. } => {
                        let ops = ops.map(|op| match op {
                            RouteOp::Add { filter, .. } => (true, filter.to_string()),
                            RouteOp::Delete { filter, .. } => (false, filter.to_string()),
                        });
                        turn.batches.push((publish.packet_id.expect("QoS 1"), ops.collect()));
                    }
                    RouteMessage::Heartbeat { .. } => turn.heartbeats += 1,
                    RouteMessage::ActorInitAck { .. } => panic!("a requester answers nothing"),
                }
            }
            _ => {}
        });
        turn
    }

    fn dial(&mut self) {
        assert!(self.requester.poll_dial(self.now), "it is time to dial");
        self.requester.opened(self.now, &mut self.out);
    }

    /// Gives one recorded packet of the peer, with our packet id and request id in the place of EMQX's.
    fn hear(&mut self, said: &Said, turn: &Turn, right_request: bool) -> Result<(), LinkError> {
        let bytes = said.bytes.as_ref().expect("a recorded packet");
        let mut patched = Vec::new();
        match one_packet(bytes) {
            Packet::Suback(suback) => {
                encode::suback(&mut patched, Version::V5, turn.subscribe.expect("a SUBSCRIBE"), suback.reasons)
            }
            Packet::Puback(ack) => {
                let init = turn.init.as_ref().map(|(id, _)| *id);
                let id = turn.batches.first().map(|(id, _)| *id).or(init).expect("a publish to acknowledge");
                encode::ack(&mut patched, Version::V5, AckKind::Puback, id, ack.reason);
            }
            Packet::Publish(publish) => {
                let mut properties = wire::Properties {
                    correlation_data: publish.properties.correlation_data,
                    ..wire::Properties::default()
                };
                if right_request {
                    properties.correlation_data = turn.init.as_ref().map(|(_, request)| &request[..]);
                }
                let mut forwarded = Vec::new();
                properties.forwarded(&mut forwarded);
                let parts = encode::PublishParts {
                    qos: publish.qos,
                    topic: publish.topic,
                    packet_id: publish.packet_id,
                    forwarded: &forwarded,
                    payload: publish.payload,
                    ..encode::PublishParts::default()
                };
                encode::publish(&mut patched, Version::V5, &parts);
            }
            _ => patched.extend_from_slice(bytes),
        }
        self.requester.received(self.now, &patched, &mut self.out)
    }
}

/// The peer's packets of one connection, in order.
fn peer_packets(label: &str, nth_connection: usize) -> Vec<Said> {
    let exchange = exchanges().into_iter().find(|exchange| exchange.label == label).expect("recorded");
    let mut connections: Vec<u64> = exchange.packets.iter().map(|said| said.connection).collect();
    connections.dedup();
    let connection = connections[nth_connection];
    exchange.packets.into_iter().filter(|said| !said.by_emqx && said.connection == connection).collect()
}

/// CONNACK, SUBACK and PUBACK of the handshake; returns our turn with `actor_init`, and the result of its PUBACK.
fn handshake(stage: &mut Stage, peer: &[Said]) -> (Turn, Result<(), LinkError>) {
    stage.dial();
    stage.said();
    stage.hear(&peer[0], &Turn::default(), true).expect("CONNACK");
    let turn = stage.said();
    stage.hear(&peer[1], &turn, true).expect("SUBACK");
    let turn = stage.said();
    assert!(turn.init.is_some(), "actor_init follows SUBACK, whatever it said");
    let result = stage.hear(&peer[2], &turn, true);
    (turn, result)
}

#[test]
fn an_answer_to_another_request_is_acknowledged_and_ignored() {
    let peer = peer_packets("requester-wrong-correlation", 0);
    let mut stage = Stage::new();
    let (turn, puback) = handshake(&mut stage, &peer);
    puback.expect("0x10 is a success");
    stage.hear(&peer[3], &turn, false).expect("ignored");
    assert_eq!(stage.said().acks, 1);
    stage.now = 5_000_000;
    assert_eq!(stage.requester.deadline(), Some(stage.now));
    assert_eq!(stage.requester.tick(stage.now, &mut stage.out), Err(LinkError::HandshakeTimeout));
    // EMQX closes without a word; we say DISCONNECT first.
    assert_eq!(stage.said().disconnect, Some(Reason::Success));
    stage.requester.closed(stage.now);
    assert!(stage.requester.poll_dial(stage.now), "the next attempt comes 5 s after the start of the last");
}

#[test]
fn an_error_in_the_answer_ends_the_connection_with_the_remotes_words() {
    let peer = peer_packets("requester-error-ack", 0);
    let mut stage = Stage::new();
    let (turn, puback) = handshake(&mut stage, &peer);
    puback.expect("0x10 is a success");
    let error = stage.hear(&peer[3], &turn, true).expect_err("refused");
    assert_eq!(error, LinkError::InitRefused("some_error".into()));
    let turn = stage.said();
    assert_eq!((turn.acks, turn.disconnect), (1, Some(Reason::Success)));
    stage.requester.closed(stage.now);
    assert!(!stage.requester.poll_dial(4_999_999), "not before 5 s");
    assert!(stage.requester.poll_dial(5_000_000));
}

#[test]
fn no_answer_at_all_ends_the_connection_after_five_seconds_each_time() {
    let mut stage = Stage::new();
    for attempt in 0..2 {
        stage.now = attempt * 5_000_000;
        let peer = peer_packets("requester-no-ack", attempt as usize);
        handshake(&mut stage, &peer).1.expect("0x10 is a success");
        stage.now += 5_000_000;
        assert_eq!(stage.requester.tick(stage.now, &mut stage.out), Err(LinkError::HandshakeTimeout));
        stage.said();
        stage.requester.closed(stage.now);
    }
}

#[test]
fn a_refused_actor_init_ends_the_connection_at_once() {
    let peer = peer_packets("requester-init-puback-0x87", 0);
    let mut stage = Stage::new();
    let (_, puback) = handshake(&mut stage, &peer);
    assert_eq!(puback, Err(LinkError::InitNotTaken(Reason::NotAuthorized)));
}

#[test]
fn the_first_handshake_bootstraps_even_if_told_not_to_and_later_ones_do_not() {
    let first = peer_packets("requester-suback-0x87-ack-no-bootstrap", 0);
    let mut stage = Stage::new();
    stage.requester.want("f/pre", b"f/pre");
    let (turn, puback) = handshake(&mut stage, &first);
    puback.expect("0x10 is a success");
    stage.hear(&first[3], &turn, true).expect("accepted");
    let turn = stage.said();
    assert_eq!(turn.batches[0].1, [(true, "f/pre".to_string())]);
    stage.hear(&first[4], &turn, true).expect("the batch is acknowledged");
    assert_eq!(stage.requester.status().standing, Standing::Online);
    stage.now = 6_305_000;
    let error = stage.hear(&first[5], &Turn::default(), true).expect_err("DISCONNECT");
    assert_eq!(error, LinkError::RemoteDisconnected(Reason::ImplementationSpecific));
    assert_eq!(stage.said().disconnect, None, "nothing is said to who has left");
    stage.requester.closed(stage.now);
    let second = peer_packets("requester-suback-0x87-ack-no-bootstrap", 1);
    let (turn, puback) = handshake(&mut stage, &second);
    puback.expect("0x10 is a success");
    stage.hear(&second[3], &turn, true).expect("accepted");
    stage.requester.tick(stage.now, &mut stage.out).expect("online");
    assert_eq!(stage.said().batches.len(), 0, "told that nothing is needed, six seconds after the last sign of life");
    assert_eq!(stage.requester.status().standing, Standing::Online);
    stage.now += 10_000_000;
    stage.requester.tick(stage.now, &mut stage.out).expect("online");
    assert_eq!(stage.said().heartbeats, 1);
}

#[test]
fn a_refused_batch_is_repeated_with_later_changes_merged_in() {
    let peer = peer_packets("requester-route-puback-0x97", 0);
    let mut stage = Stage::new();
    stage.requester.want("f/pre", b"f/pre");
    let (turn, puback) = handshake(&mut stage, &peer);
    puback.expect("0x10 is a success");
    stage.hear(&peer[3], &turn, true).expect("accepted");
    let turn = stage.said();
    stage.hear(&peer[4], &turn, true).expect("bootstrap acknowledged");
    stage.requester.want("f/err", b"f/err");
    let mut refusals = peer[5..].iter().filter(|said| said.packet == "PUBACK");
    let mut sent = Vec::new();
    for attempt in 0..4 {
        let turn = loop {
            let turn = stage.said();
            if !turn.batches.is_empty() {
                break turn;
            }
            stage.now = stage.requester.deadline().expect("a deadline").max(stage.now);
            stage.requester.tick(stage.now, &mut stage.out).expect("online");
        };
        sent.push((stage.now, turn.batches[0].1.clone()));
        stage.hear(refusals.next().expect("recorded"), &turn, true).expect("a refusal is no error");
        if attempt == 1 {
            stage.requester.want("f/err2", b"f/err2");
        }
    }
    let err = (true, "f/err".to_string());
    let err2 = (true, "f/err2".to_string());
    let both = vec![err.clone(), err2];
    assert_eq!(
        sent.iter().map(|(_, ops)| ops.clone()).collect::<Vec<_>>(),
        [vec![err.clone()], vec![err], both.clone(), both]
    );
    assert!(sent.windows(2).all(|pair| pair[1].0 - pair[0].0 == 500_000), "half a second between attempts: {sent:?}");
    assert_eq!(stage.requester.status().pending, 0, "the fourth was acknowledged");
}

#[test]
fn behind_an_unacknowledged_batch_changes_wait_and_heartbeats_go_on() {
    let peer = peer_packets("requester-reinit-ack-true", 0);
    let mut stage = Stage::new();
    stage.requester.want("f/pre", b"f/pre");
    let (turn, puback) = handshake(&mut stage, &peer);
    puback.expect("0x10 is a success");
    stage.hear(&peer[3], &turn, true).expect("accepted");
    let turn = stage.said();
    stage.hear(&peer[4], &turn, true).expect("bootstrap acknowledged");
    stage.requester.want("f/silent", b"f/silent");
    stage.now = 20_000;
    stage.requester.tick(stage.now, &mut stage.out).expect("online");
    stage.now = 40_000;
    stage.requester.tick(stage.now, &mut stage.out).expect("online");
    assert_eq!(stage.said().batches.len(), 1, "this one is never acknowledged");
    stage.requester.want("f/later", b"f/later");
    stage.now = 25_000_000;
    stage.requester.tick(stage.now, &mut stage.out).expect("online");
    let turn = stage.said();
    assert_eq!((turn.batches.len(), turn.heartbeats), (0, 1));
    // EMQX would wait for ever; we begin anew.
    stage.now = 30_040_000;
    assert_eq!(stage.requester.tick(stage.now, &mut stage.out), Err(LinkError::AckTimeout));
}
