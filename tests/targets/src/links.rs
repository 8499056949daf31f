//! What another cluster sends: external terms, route operations, forwarded messages (`link::wire`), and the machines behind
//! them, as acceptor and as dialler.

use link::{
    etf::{self, Atoms, Limits},
    forwarder::{Forwarder, Interest, Settings},
    inlet::Inlet,
    outlet::Outlet,
    requester::Requester,
    session::{Lookup, Reaction, RoutePublish, Session},
    wire::{self, RouteBatch, RouteMessage, RouteOp},
};

use crate::pieces::pieces;

const LIMITS: Limits = Limits { depth_max: 8, elements_max: 2000, inflated_bytes_max: 64 << 10 };
const BOUNDS: (usize, usize, usize, usize) = (20, 40, 3, 4000);

/// First byte: even: payloads of 16-bit lengths for an acceptor; odd: bytes for a dialler, cut by the rest of that byte.
pub fn links(data: &[u8]) {
    let Some((&head, rest)) = data.split_first() else { return };
    match head & 1 {
        0 => payloads(rest),
        _ => dialled(head / 2, rest),
    }
}

fn payloads(mut data: &[u8]) {
    let settings = Settings {
        interest_max: BOUNDS.0,
        routes_max: BOUNDS.1,
        actors_max: BOUNDS.2,
        route_bytes_max: BOUNDS.3,
        ..Settings::default()
    };
    let mut forwarder = Forwarder::new(settings);
    let inlet = Inlet::new(true, vec!["m/#".into(), "t/#".into()], 16, LIMITS);
    let (mut session, mut balance, mut now_ms) = (Session::default(), 0i64, 0u64);
    let mut count = |event: Interest<'_>| {
        balance += match event {
            Interest::Add(_) => 1,
            Interest::Remove(_) => -1,
        };
        assert!(balance >= 0, "more removals than additions");
    };
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(u16::from_be_bytes(*length) & 0x3fff)));
        data = rest;
        terms(payload);
        let mut scratch = Vec::new();
        if let Ok(inbound) = Inlet::receive(Some(&inlet), now_ms, payload, &mut scratch) {
            assert!(!inbound.topic.as_str().contains(['+', '#']));
            inbound.properties.forwarded(&mut Vec::new());
        }
        let publish = RoutePublish { cluster: "a", payload, response_topic: Some("r"), correlation_data: None };
        let lookup = Lookup::Known { enabled: true, forwarder: &mut forwarder };
        if let Reaction::Disconnect(_) = session.publish(now_ms, "b", &publish, lookup, &LIMITS, &mut count) {
            session = Session::default();
        }
        // Two bits of the length say how much time passes: nothing, or more than an actor lives.
        now_ms += [0, 0, 1000, 40_000][usize::from(length[0] >> 6)];
        forwarder.tick(now_ms, &mut count);
        let status = forwarder.status();
        let within = status.filters <= BOUNDS.0 && status.routes <= BOUNDS.1 && status.actors <= BOUNDS.2;
        assert!(within && status.route_bytes <= BOUNDS.3, "{status:?}");
    }
    forwarder.clear(&mut count);
    assert_eq!(balance, 0, "interest is left");
    assert_eq!((forwarder.status().routes, forwarder.status().route_bytes), (0, 0));
}

/// What could be read can be walked, and says the same when it is written again.
fn terms(payload: &[u8]) {
    let (mut scratch, mut other) = (Vec::new(), Vec::new());
    if let Ok(mut reader) = etf::open(payload, &mut scratch, &LIMITS, Atoms::Any) {
        reader.skip().expect("it was checked as a whole");
    }
    if let Ok(message) = wire::decode_route(payload, &mut scratch, &LIMITS) {
        let mut written = Vec::new();
        match message {
            RouteMessage::Route { actor, incarnation, ops } => {
                let mut batch = RouteBatch::new(actor, incarnation);
                let pushed: Vec<RouteOp<'_>> = ops.collect();
                pushed.iter().for_each(|op| batch.push(*op));
                written = batch.finish();
            }
            RouteMessage::Heartbeat { actor, incarnation } => wire::put_heartbeat(&mut written, actor, incarnation),
            RouteMessage::ActorInitAck { actor, result, .. } => wire::put_actor_init_ack(&mut written, actor, result),
            RouteMessage::ActorInit { actor, incarnation, target, .. } => {
                wire::put_actor_init(&mut written, actor, incarnation, target);
            }
        }
        let again = wire::decode_route(&written, &mut other, &LIMITS).expect("what we write can be read");
        assert!(same(&message, &again), "{message:?} became {again:?}");
    }
    if let Ok(message) = wire::decode_forwarded(payload, &mut scratch, &LIMITS) {
        let mut properties = Vec::new();
        message.properties.forwarded(&mut properties);
        assert_eq!(message.properties.user.count(), message.properties.user.into_iter().count());
    }
}

/// The protocol version is ours in what we write.
fn same(read: &RouteMessage<'_>, again: &RouteMessage<'_>) -> bool {
    match (read, again) {
        (
            RouteMessage::ActorInit { actor, incarnation, target, .. },
            RouteMessage::ActorInit {
                actor: actor_again, incarnation: incarnation_again, target: target_again, ..
            },
        ) => (actor, incarnation, target) == (actor_again, incarnation_again, target_again),
        (
            RouteMessage::ActorInitAck { actor, result, .. },
            RouteMessage::ActorInitAck { actor: actor_again, result: result_again, .. },
        ) => (actor, result) == (actor_again, result_again),
        _ => read == again,
    }
}

/// A dialler of ours that the other side answers with these bytes: it ends by name, whole or in pieces.
fn dialled(cuts: u8, bytes: &[u8]) {
    let whole = answered([bytes].into_iter());
    let cut = answered(pieces(cuts, bytes));
    assert_eq!(whole, cut, "in pieces it is another answer");
}

fn answered<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (bool, bool) {
    let mut requester = Requester::new(link::requester::Settings::new("a", "b", "n", 1));
    let mut outlet = Outlet::new(link::outlet::Settings::new("a", "n", 1));
    let mut out = Vec::new();
    assert!(requester.poll_dial(0) && outlet.poll_dial(0));
    requester.opened(0, &mut out);
    outlet.opened(0, &mut out);
    let (mut route, mut messages) = (true, true);
    for piece in pieces {
        route = route && requester.received(1, piece, &mut out).is_ok();
        messages = messages && outlet.received(1, piece, &mut out).is_ok();
    }
    requester.closed(2);
    outlet.closed(2);
    (route, messages)
}
