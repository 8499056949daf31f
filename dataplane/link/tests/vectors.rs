//! Every captured and generated packet of EMQX 5.8.9, 5.10.4 and 6.0.3: decoded with our codec and our wire, compared
//! with what EMQX printed, and encoded again to the same terms.

mod common;

use std::collections::BTreeMap;

use common::terms::{self, Term};
use common::{Vector, one_packet, vectors};
use link::etf::Limits;
use link::names::LinkTopic;
use link::wire::{self, Message, RouteBatch, RouteMessage};
use mqtt::codec::Packet;

/// The link payload of a vector, and the topic if there is a packet around it.
fn payload(vector: &Vector) -> (Vec<u8>, Option<String>) {
    match &vector.packet_bytes {
        Some(bytes) => match one_packet(bytes) {
            Packet::Publish(publish) => (publish.payload.to_vec(), Some(publish.topic.to_string())),
            other => panic!("{}: {other:?} has no payload", vector.id),
        },
        None => (vector.payload_bytes.clone().expect("a payload"), None),
    }
}

#[test]
fn every_captured_packet_decodes_as_the_packet_it_is() {
    let mut seen = BTreeMap::new();
    for vector in vectors() {
        let Some(bytes) = &vector.packet_bytes else { continue };
        let name = match one_packet(bytes) {
            Packet::Connect(connect) => {
                assert_eq!(connect.keep_alive_s, 60, "{}", vector.id);
                "CONNECT"
            }
            Packet::Connack(_) => "CONNACK",
            Packet::Publish(publish) => {
                assert!(LinkTopic::parse(publish.topic).is_some(), "{}: {}", vector.id, publish.topic);
                "PUBLISH"
            }
            Packet::Puback(_) => "PUBACK",
            Packet::Pubrec(_) => "PUBREC",
            Packet::Pubrel(_) => "PUBREL",
            Packet::Pubcomp(_) => "PUBCOMP",
            Packet::Subscribe(_) => "SUBSCRIBE",
            Packet::Suback(_) => "SUBACK",
            Packet::Disconnect(_) => "DISCONNECT",
            other => panic!("{}: {other:?} is not in the file", vector.id),
        };
        assert_eq!(name, vector.packet, "{}", vector.id);
        *seen.entry(name).or_insert(0) += 1;
    }
    println!("packets decoded: {seen:?}");
    assert_eq!(seen.len(), 10, "every packet type of a link was seen: {seen:?}");
}

#[test]
fn every_payload_reads_as_emqx_prints_it() {
    let mut compared = 0;
    for vector in vectors() {
        let Some(printed) = &vector.printed else { continue };
        let (payload, _) = payload(&vector);
        assert_eq!(terms::of_bytes(&payload), terms::of_text(printed), "{} {}", vector.id, vector.label);
        assert_eq!(payload.get(1) == Some(&80), vector.compressed, "{}", vector.id);
        compared += 1;
    }
    println!("terms compared with EMQX's print: {compared}");
    assert!(compared > 200, "{compared}");
}

#[test]
fn every_route_payload_decodes_and_encodes_to_the_same_terms() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for vector in vectors() {
        let Some(op) = vector.op.as_deref() else { continue };
        if op == "forwarded_message" {
            continue;
        }
        let (payload, topic) = payload(&vector);
        let mut scratch = Vec::new();
        let message = wire::decode_route(&payload, &mut scratch, &Limits::default())
            .unwrap_or_else(|error| panic!("{} {}: {error}", vector.id, vector.label));
        let mut ours = Vec::new();
        let kind = match message {
            RouteMessage::ActorInit { actor, incarnation, target, protocol } => {
                assert_eq!(protocol, wire::PROTOCOL_VERSION);
                wire::put_actor_init(&mut ours, actor, incarnation, target);
                "actor_init"
            }
            RouteMessage::ActorInitAck { actor, result, protocol } => {
                assert_eq!(protocol, wire::PROTOCOL_VERSION);
                if let Some(LinkTopic::Resp { actor: asked, .. }) = topic.as_deref().and_then(LinkTopic::parse) {
                    assert_eq!(asked, actor, "{}", vector.id);
                }
                wire::put_actor_init_ack(&mut ours, actor, result);
                "actor_init_ack"
            }
            RouteMessage::Route { actor, incarnation, ops } => {
                let mut batch = RouteBatch::new(actor, incarnation);
                for op in ops {
                    let before = batch.payload_bytes();
                    batch.push(op);
                    assert_eq!(batch.payload_bytes() - before, RouteBatch::op_bytes(&op));
                }
                let expected = batch.payload_bytes();
                ours = batch.finish();
                // The size that bounds a batch is the size that is sent; an empty one is four bytes shorter.
                assert_eq!(ours.len(), if ops.len() == 0 { expected - 5 } else { expected }, "{}", vector.id);
                "route"
            }
            RouteMessage::Heartbeat { actor, incarnation } => {
                wire::put_heartbeat(&mut ours, actor, incarnation);
                "heartbeat"
            }
        };
        assert_eq!(kind, op, "{}", vector.id);
        assert_eq!(terms::of_bytes(&ours), terms::of_bytes(&payload), "{} {}", vector.id, vector.label);
        *seen.entry(kind).or_default() += 1;
    }
    println!("route payloads exercised: {seen:?}");
    for kind in ["actor_init", "actor_init_ack", "route", "heartbeat"] {
        assert!(seen.get(kind).is_some_and(|count| *count > 0), "{kind} was not exercised: {seen:?}");
    }
}

#[test]
fn every_forwarded_message_decodes_and_encodes_to_the_same_terms() {
    let (mut seen, mut with_properties) = (0, 0);
    for vector in vectors() {
        if vector.op.as_deref() != Some("forwarded_message") {
            continue;
        }
        let (payload, _) = payload(&vector);
        let mut scratch = Vec::new();
        let message = wire::decode_forwarded(&payload, &mut scratch, &Limits::default())
            .unwrap_or_else(|error| panic!("{} {}: {error}", vector.id, vector.label));
        let mut raw = Vec::new();
        message.properties.forwarded(&mut raw);
        with_properties += usize::from(!raw.is_empty());
        let mut ours = Vec::new();
        let again = Message {
            id: message.id.try_into().expect("EMQX's ids have 16 bytes"),
            qos: message.qos,
            from: message.from,
            retain: message.retain,
            topic: message.topic,
            payload: message.payload,
            timestamp_ms: message.timestamp_ms,
            properties: &raw,
            message_expiry_s: message.properties.message_expiry_s,
        };
        wire::put_forwarded(&mut ours, &again).expect("what we decoded can be encoded");
        let (ours, theirs) = (terms::of_bytes(&ours), terms::of_bytes(&payload));
        for (at, (mine, other)) in ours.elements().iter().zip(theirs.elements()).enumerate() {
            match at {
                4 => {
                    let flag = |term: &Term, name| term.key(name).cloned().unwrap_or(Term::Atom("false".into()));
                    assert_eq!(flag(mine, "retain"), flag(other, "retain"), "{}", vector.id);
                }
                5 => {
                    let empty = Term::Map(Vec::new());
                    let properties = |term: &Term| term.key("properties").cloned().unwrap_or(empty.clone());
                    let passed_on = without_alias(properties(other));
                    assert_eq!(properties(mine), passed_on, "{} {}", vector.id, vector.label);
                }
                _ => assert_eq!(mine, other, "{} {} element {at}", vector.id, vector.label),
            }
        }
        assert_eq!((ours.elements().len(), theirs.elements().len()), (10, 10));
        seen += 1;
    }
    println!("forwarded messages exercised: {seen}, with properties: {with_properties}");
    assert!(seen > 0 && with_properties > 0);
}

/// The topic alias belongs to the publisher's connection; EMQX forwards it, we do not pass it on.
fn without_alias(properties: Term) -> Term {
    let Term::Map(mut pairs) = properties else { panic!("properties are a map") };
    pairs.retain(|(key, _)| *key != Term::Atom("Topic-Alias".into()));
    Term::Map(pairs)
}

#[test]
fn our_encoder_writes_the_bytes_that_emqx_writes() {
    let expected = |label: &str| {
        let vector = vectors().into_iter().find(|vector| vector.id == format!("5.10.4-gen-{label}"));
        vector.unwrap_or_else(|| panic!("{label} is in the file")).payload_bytes.expect("a payload")
    };
    let (actor, incarnation) = ("n1@h", 1_780_000_000_000);
    let encoded = |put: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        put(&mut out);
        out
    };
    let init = encoded(&|out| wire::put_actor_init(out, actor, incarnation, "B"));
    assert_eq!(init, expected("actor_init"));
    let heartbeat = encoded(&|out| wire::put_heartbeat(out, actor, incarnation));
    assert_eq!(heartbeat, expected("heartbeat"));
    let ack = encoded(&|out| wire::put_actor_init_ack(out, actor, Ok(true)));
    assert_eq!(ack, expected("ack_ok_bootstrap"));
    let refusal = encoded(&|out| wire::put_actor_init_ack(out, actor, Err("unknown_cluster")));
    assert_eq!(refusal, expected("ack_error_unknown_cluster"));
    let mut batch = RouteBatch::new(actor, incarnation);
    batch.push(wire::RouteOp::Add { filter: "t/1", route_id: b"t/1" });
    batch.push(wire::RouteOp::Delete { filter: "t/2", route_id: b"$s/g/t/2" });
    assert_eq!(batch.finish(), expected("route_note_sample"));
    assert_eq!(RouteBatch::new(actor, incarnation).finish(), expected("route_empty_list"));
}
