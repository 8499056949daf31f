//! Whatever bytes a remote sends: no panic, no growth beyond the limits, and a named refusal.

mod common;

use std::collections::BTreeMap;

use common::{Dice, vectors};
use link::etf::{self, Atoms, EtfError, Limits};
use link::forwarder::{Forwarder, Interest, Settings};
use link::inlet::{Inlet, Refused};
use link::outlet::Outlet;
use link::requester::Requester;
use link::session::{Fault, Lookup, Reaction, RoutePublish, Session};
use link::wire::{self, Message, RouteBatch, RouteOp, WireError};
use mqtt::types::Qos;

const LIMITS: Limits = Limits { depth_max: 8, elements_max: 5000, inflated_bytes_max: 64 << 10 };

/// Payloads of every kind, as EMQX sends them.
fn seeds() -> Vec<Vec<u8>> {
    let payload = |packet: &[u8]| match common::one_packet(packet) {
        mqtt::codec::Packet::Publish(publish) => Some(publish.payload.to_vec()),
        _ => None,
    };
    let seeds: Vec<Vec<u8>> = vectors()
        .iter()
        .filter(|vector| vector.op.is_some())
        .filter_map(|vector| match &vector.packet_bytes {
            Some(packet) => payload(packet),
            None => vector.payload_bytes.clone(),
        })
        .collect();
    assert!(seeds.len() > 200);
    seeds
}

/// One small or large damage.
fn damage(bytes: &mut Vec<u8>, dice: &mut Dice, others: &[Vec<u8>]) {
    let at = dice.below(bytes.len().max(1) as u64) as usize;
    match dice.below(8) {
        0 => bytes.truncate(at),
        1 if !bytes.is_empty() => bytes[at] = dice.next() as u8,
        2 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
        3 => bytes.insert(at.min(bytes.len()), dice.next() as u8),
        4 if !bytes.is_empty() => {
            bytes.remove(at);
        }
        5 if bytes.len() >= at + 4 => bytes[at..at + 4].copy_from_slice(&(dice.next() as u32).to_be_bytes()),
        6 => {
            let tag = [97, 98, 110, 104, 105, 106, 107, 108, 109, 116, 119, 118, 115, 100, 80, 111, 70];
            bytes.insert(at.min(bytes.len()), tag[dice.below(tag.len() as u64) as usize]);
        }
        _ => {
            let other = &others[dice.below(others.len() as u64) as usize];
            let from = dice.below(other.len().max(1) as u64) as usize;
            bytes.splice(at.min(bytes.len()).., other[from..].iter().copied());
        }
    }
}

#[test]
fn damaged_payloads_are_refused_by_name_and_change_nothing_that_is_not_theirs() {
    let seeds = seeds();
    let mut dice = Dice(0xBAD);
    let limits =
        Settings { interest_max: 50, routes_max: 100, actors_max: 5, route_bytes_max: 20_000, ..Settings::default() };
    let mut forwarder = Forwarder::new(limits);
    let inlet = Inlet::new(true, vec!["m/#".into(), "t/#".into()], 16, LIMITS);
    let mut scratch = Vec::new();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut interest: BTreeMap<String, i32> = BTreeMap::new();
    let mut session = Session::default();
    for round in 0..60_000u64 {
        let mut bytes = seeds[dice.below(seeds.len() as u64) as usize].clone();
        for _ in 0..dice.below(4) {
            damage(&mut bytes, &mut dice, &seeds);
        }
        match Inlet::receive(Some(&inlet), 0, &bytes, &mut scratch) {
            Ok(inbound) => {
                assert!(!inbound.topic.as_str().contains(['+', '#']));
                *seen.entry("inlet: delivered").or_default() += 1;
            }
            Err(refused) => *seen.entry(refused.name()).or_default() += 1,
        }
        assert!(scratch.len() <= LIMITS.inflated_bytes_max);
        let publish =
            RoutePublish { cluster: "a", payload: &bytes, response_topic: Some("r"), correlation_data: Some(b"c") };
        let lookup = Lookup::Known { enabled: true, forwarder: &mut forwarder };
        let target = ["B", "beta", "alpha"][dice.below(3) as usize];
        let reaction = session.publish(round * 1000, target, &publish, lookup, &LIMITS, &mut |event| match event {
            Interest::Add(filter) => *interest.entry(filter.into()).or_default() += 1,
            Interest::Remove(filter) => *interest.entry(filter.into()).or_default() -= 1,
        });
        match reaction {
            Reaction::Acknowledge => *seen.entry("session: acknowledged").or_default() += 1,
            Reaction::Answer(_) => *seen.entry("session: answered").or_default() += 1,
            Reaction::Disconnect(fault) => {
                *seen.entry(fault.name()).or_default() += 1;
                session = Session::default();
            }
        }
        let status = forwarder.status();
        assert!(status.filters <= 50 && status.routes <= 100 && status.actors <= 5 && status.route_bytes <= 20_000);
    }
    forwarder.clear(&mut |event| match event {
        Interest::Add(filter) => panic!("clearing adds {filter}"),
        Interest::Remove(filter) => *interest.entry(filter.into()).or_default() -= 1,
    });
    assert!(interest.values().all(|count| *count == 0), "additions and removals balance: {interest:?}");
    assert_eq!((forwarder.status().routes, forwarder.status().route_bytes), (0, 0));
    println!("{seen:?}");
    for name in
        ["inlet: delivered", "undecodable", "invalid", "outside_topics", "session: acknowledged", "session: answered"]
    {
        assert!(seen.get(name).is_some_and(|count| *count > 50), "{name} was hardly exercised: {seen:?}");
    }
    assert!(seen.contains_key("second_init") && seen.contains_key("routes_before_init"), "{seen:?}");
}

#[test]
fn random_bytes_never_end_a_dialler_other_than_by_name() {
    let mut dice = Dice(0xFEED);
    let (mut malformed, mut misbehaved) = (0, 0);
    for round in 0..4000u64 {
        let mut requester = Requester::new(link::requester::Settings::new("a", "b", "n", 1));
        let mut outlet = Outlet::new(link::outlet::Settings::new("a", "n", 1));
        let mut out = Vec::new();
        assert!(requester.poll_dial(round) && outlet.poll_dial(round));
        requester.opened(round, &mut out);
        outlet.opened(round, &mut out);
        let connack = [0x20, 3, 0, 0, 0];
        requester.received(round, &connack, &mut out).expect("accepted");
        outlet.received(round, &connack, &mut out).expect("accepted");
        let types = [0x20, 0x30, 0x32, 0x40, 0x50, 0x62, 0x90, 0xB0, 0xD0, 0xE0, 0xF0, 0x10];
        for _ in 0..8 {
            let mut piece: Vec<u8> = (0..dice.below(40)).map(|_| dice.next() as u8).collect();
            if piece.len() > 2 {
                piece[0] = types[dice.below(12) as usize];
                piece[1] = (piece.len() - 2) as u8;
            }
            for result in
                [requester.received(round, &piece, &mut out).err(), outlet.received(round, &piece, &mut out).err()]
            {
                match result {
                    Some(link::error::LinkError::Malformed(_)) => malformed += 1,
                    Some(_) => misbehaved += 1,
                    None => {}
                }
            }
        }
        requester.closed(round);
        outlet.closed(round);
    }
    assert!(malformed > 1000 && misbehaved > 10, "{malformed} malformed, {misbehaved} misbehaved");
}

fn term(build: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    etf::put_version(&mut bytes);
    build(&mut bytes);
    bytes
}

fn refusal(payload: &[u8]) -> EtfError {
    let mut scratch = Vec::new();
    match etf::open(payload, &mut scratch, &LIMITS, Atoms::Only(&["known"])) {
        Ok(_) => panic!("accepted"),
        Err(error) => {
            assert!(scratch.capacity() <= LIMITS.inflated_bytes_max, "{} bytes for a refusal", scratch.capacity());
            error
        }
    }
}

#[test]
fn each_kind_of_hostile_term_has_its_own_name() {
    let nested = term(|out| {
        for _ in 0..9 {
            etf::put_tuple(out, 1);
        }
        etf::put_nil(out);
    });
    assert_eq!(refusal(&nested), EtfError::TooDeep);
    let wide = term(|out| {
        etf::put_list(out, 6000);
        (0..6000).for_each(|_| etf::put_int(out, 1));
        etf::put_nil(out);
    });
    assert_eq!(refusal(&wide), EtfError::TooManyElements);
    assert_eq!(refusal(&term(|out| etf::put_list(out, u32::MAX))), EtfError::Cut);
    assert_eq!(refusal(&term(|out| etf::put_map(out, u32::MAX))), EtfError::TooManyElements);
    assert_eq!(refusal(&term(|out| out.extend([109, 255, 255, 255, 255, 0]))), EtfError::Cut);
    assert_eq!(refusal(&term(|out| etf::put_atom(out, "unheard_of"))), EtfError::UnknownAtom);
    assert_eq!(refusal(&term(|out| out.extend([119, 1, 0xFF]))), EtfError::BadAtom);
    assert_eq!(refusal(&term(|out| out.extend([100, 0, 1, 0xE9]))), EtfError::BadAtom);
    assert_eq!(refusal(&term(|out| out.extend([108, 0, 0, 0, 1, 97, 1, 97, 2]))), EtfError::ImproperList);
    assert_eq!(refusal(&term(|out| out.extend([106, 106]))), EtfError::TrailingBytes);
    assert_eq!(refusal(&term(|out| out.push(103))), EtfError::UnknownTag(103));
    assert_eq!(refusal(&[]), EtfError::NotATerm);
    assert_eq!(refusal(b"hello"), EtfError::NotATerm);
    assert_eq!(refusal(&[131]), EtfError::Cut);
}

fn compressed(declared: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![131, 80];
    bytes.extend(declared.to_be_bytes());
    bytes.extend(miniz_oxide::deflate::compress_to_vec_zlib(content, 6));
    bytes
}

#[test]
fn a_compressed_bomb_is_refused_before_it_is_inflated() {
    let mut bomb = vec![109];
    bomb.extend(10_000_000u32.to_be_bytes());
    bomb.resize(10_000_005, 0);
    assert_eq!(refusal(&compressed(10_000_005, &bomb)), EtfError::InflatedTooLarge, "it says what it is");
    assert_eq!(refusal(&compressed(1000, &bomb)), EtfError::BadZlib, "it lies");
    assert_eq!(refusal(&compressed(60_000, &[106])), EtfError::BadZlib, "it lies the other way");
    let mut twice = vec![131, 80];
    let inner = compressed(1, &[106]);
    twice.extend((inner.len() as u32).to_be_bytes());
    twice.extend(miniz_oxide::deflate::compress_to_vec_zlib(&inner, 6));
    assert_eq!(refusal(&twice), EtfError::UnknownTag(131), "a term is compressed once");
    let mut scratch = Vec::new();
    assert!(etf::open(&compressed(1, &[106]), &mut scratch, &LIMITS, Atoms::Any).is_ok(), "an honest one is read");
}

fn forwarded<'a>(change: impl FnOnce(&mut Message<'a>)) -> Vec<u8> {
    let mut message = Message {
        id: [0; 16],
        qos: Qos::AtLeastOnce,
        from: "p",
        retain: false,
        topic: "m/1",
        payload: b"x",
        timestamp_ms: 1_000_000,
        properties: &[],
        message_expiry_s: None,
    };
    change(&mut message);
    let mut bytes = Vec::new();
    wire::put_forwarded(&mut bytes, &message).expect("encodable");
    bytes
}

#[test]
fn a_hostile_message_enters_by_no_topic_that_the_link_was_not_made_for() {
    let inlet = Inlet::new(true, vec!["m/#".into(), "$LINK/#".into(), "#".into()], 8, LIMITS);
    let deep = "a/".repeat(20);
    for (topic, refused) in [
        ("m/+", Some(Refused::BadTopic)),
        ("#", Some(Refused::BadTopic)),
        ("", Some(Refused::BadTopic)),
        ("a\0b", Some(Refused::BadTopic)),
        (deep.as_str(), Some(Refused::BadTopic)),
        ("$LINK/cluster/msg/other", Some(Refused::ControlTopic)),
        ("$SYS/broker", Some(Refused::OutsideTopics)),
        ("m/1", None),
    ] {
        let payload = forwarded(|message| message.topic = topic);
        let mut scratch = Vec::new();
        assert_eq!(Inlet::receive(Some(&inlet), 0, &payload, &mut scratch).err(), refused, "{topic:?}");
    }
    let mut scratch = Vec::new();
    assert_eq!(Inlet::receive(None, 0, &forwarded(|_| ()), &mut scratch).err(), Some(Refused::UnknownLink));
}

#[test]
fn the_time_that_a_message_has_left_is_at_least_a_second_and_at_most_its_interval() {
    let inlet = Inlet::new(true, vec!["m/#".into()], 8, LIMITS);
    let payload = forwarded(|message| message.message_expiry_s = Some(100));
    // The message was made at 1000 s of the origin's clock.
    for (wall_s, left) in [(1000, 100), (1050, 50), (1099, 1), (2000, 1), (0, 100)] {
        let mut scratch = Vec::new();
        let inbound = Inlet::receive(Some(&inlet), wall_s * 1000, &payload, &mut scratch).expect("inside");
        assert_eq!(inbound.message_expiry_s, Some(left), "at {wall_s} s");
    }
}

#[test]
fn properties_survive_the_crossing_and_invalid_ones_do_not_enter() {
    let raw: &[u8] = &[
        0x01, 1, // format
        0x03, 0, 1, b'c', // content type
        0x08, 0, 1, b'r', // response topic
        0x09, 0, 2, 0, 255, // correlation data
        0x26, 0, 1, b'a', 0, 1, b'1', // user properties
        0x26, 0, 1, b'a', 0, 1, b'2',
    ];
    let inlet = Inlet::new(true, vec!["m/#".into()], 8, LIMITS);
    let mut bytes = Vec::new();
    let message = Message {
        id: [0; 16],
        qos: Qos::AtLeastOnce,
        from: "",
        retain: true,
        topic: "m/1",
        payload: b"",
        timestamp_ms: 1,
        properties: raw,
        message_expiry_s: None,
    };
    wire::put_forwarded(&mut bytes, &message).expect("encodable");
    let mut scratch = Vec::new();
    let inbound = Inlet::receive(Some(&inlet), 0, &bytes, &mut scratch).expect("inside");
    let mut again = Vec::new();
    inbound.properties.forwarded(&mut again);
    assert_eq!(again, raw);
    assert!(inbound.retain);
    // The response topic `r` becomes a wildcard, the user property's name gets a U+0000.
    for (from, to, name) in [(b'r', b'#', "Response-Topic"), (b'a', 0, "User-Property")] {
        let at = bytes.windows(6).position(|window| window == [109, 0, 0, 0, 1, from]).expect("there") + 5;
        let mut bad = bytes.clone();
        bad[at] = to;
        let mut scratch = Vec::new();
        assert_eq!(Inlet::receive(Some(&inlet), 0, &bad, &mut scratch).err(), Some(Refused::Invalid(name)));
    }
    let cut = Message { properties: &raw[..raw.len() - 1], ..message };
    assert!(wire::put_forwarded(&mut Vec::new(), &cut).is_err(), "bytes that the codec did not validate");
}

#[test]
fn a_remote_that_wants_too_much_is_bounded_and_recovers_with_its_next_bootstrap() {
    let settings = Settings { interest_max: 10, ..Settings::default() };
    let mut forwarder = Forwarder::new(settings);
    let mut session = Session::default();
    let mut send = |session: &mut Session, now: u64, payload: &[u8]| {
        let publish = RoutePublish { cluster: "a", payload, response_topic: Some("r"), correlation_data: None };
        let lookup = Lookup::Known { enabled: true, forwarder: &mut forwarder };
        let reaction = session.publish(now, "us", &publish, lookup, &Limits::default(), &mut |_| ());
        assert!(!matches!(reaction, Reaction::Disconnect(_)), "{reaction:?}");
        forwarder.tick(now, &mut |_| ());
        forwarder.status()
    };
    let mut init = Vec::new();
    wire::put_actor_init(&mut init, "n", 1, "us");
    send(&mut session, 0, &init);
    let batch = |names: std::ops::Range<u32>, delete: bool| {
        let mut batch = RouteBatch::new("n", 1);
        for name in names {
            let filter = format!("f/{name}");
            let route_id = filter.as_bytes();
            let filter = filter.as_str();
            batch.push(if delete { RouteOp::Delete { filter, route_id } } else { RouteOp::Add { filter, route_id } });
        }
        batch.finish()
    };
    let status = send(&mut session, 1, &batch(0..10_000, false));
    assert_eq!((status.filters, status.refused_by_limit), (10, 9990));
    send(&mut session, 2, &batch(0..5, true));
    let mut session = Session::default();
    send(&mut session, 3, &init);
    let status = send(&mut session, 4, &batch(5..12, false));
    assert_eq!((status.filters, status.refused_by_limit), (7, 9990));
    // Filters that no remote may want.
    let mut batch = RouteBatch::new("n", 1);
    for filter in ["$LINK/#", "$LINK/cluster/msg/x", "$LINK", "a/#/b", "a+", ""] {
        batch.push(RouteOp::Add { filter, route_id: b"id" });
    }
    let status = send(&mut session, 5, &batch.finish());
    assert_eq!((status.filters, status.refused_filters), (7, 6));
}

#[test]
fn route_ids_are_bytes_and_several_of_one_filter_count_as_one_interest() {
    let mut forwarder = Forwarder::new(Settings::default());
    let mut events = Vec::new();
    let mut sessions = [Session::default(), Session::default()];
    let mut send = |at: usize, payload: &[u8]| {
        let publish = RoutePublish { cluster: "a", payload, response_topic: Some("r"), correlation_data: None };
        let lookup = Lookup::Known { enabled: true, forwarder: &mut forwarder };
        sessions[at].publish(0, "us", &publish, lookup, &Limits::default(), &mut |event| {
            events.push(match event {
                Interest::Add(filter) => format!("+{filter}"),
                Interest::Remove(filter) => format!("-{filter}"),
            });
        })
    };
    for (at, actor) in ["n1", "n2"].iter().enumerate() {
        let mut init = Vec::new();
        wire::put_actor_init(&mut init, actor, 1, "us");
        send(at, &init);
    }
    let route = |actor: &str, ops: &[RouteOp<'_>]| {
        let mut batch = RouteBatch::new(actor, 1);
        ops.iter().for_each(|op| batch.push(*op));
        batch.finish()
    };
    let ids: [&[u8]; 3] = [b"t", b"$s/g/t", &[36, 112, 47, 0xFF, 0xFE, 0]];
    let adds = ids.map(|route_id| RouteOp::Add { filter: "t", route_id });
    let deletes = ids.map(|route_id| RouteOp::Delete { filter: "t", route_id });
    for (at, actor) in ["n1", "n2"].iter().enumerate() {
        send(at, &route(actor, &adds));
        send(at, &route(actor, &adds));
    }
    send(0, &route("n1", &deletes));
    send(0, &route("n1", &deletes));
    send(1, &route("n2", &deletes[..2]));
    send(1, &route("n2", &deletes[2..]));
    assert_eq!(events, ["+t", "-t"]);
    assert_eq!(forwarder.status().routes, 0);
}

#[test]
fn a_connection_that_speaks_for_one_cluster_may_not_speak_for_another() {
    let mut forwarders = [Forwarder::new(Settings::default()), Forwarder::new(Settings::default())];
    let mut sessions = [Session::default(), Session::default()];
    let mut say = |session: usize, cluster: usize, payload: &[u8]| {
        let publish =
            RoutePublish { cluster: ["a", "b"][cluster], payload, response_topic: Some("r"), correlation_data: None };
        let lookup = Lookup::Known { enabled: true, forwarder: &mut forwarders[cluster] };
        sessions[session].publish(0, "us", &publish, lookup, &Limits::default(), &mut |event| {
            panic!("{event:?} from a connection that may not say so")
        })
    };
    let mut init = Vec::new();
    wire::put_actor_init(&mut init, "n", 1, "us");
    for at in 0..2 {
        assert!(matches!(say(at, at, &init), Reaction::Answer(_)), "both clusters have an actor of that name");
    }
    let mut batch = RouteBatch::new("n", 1);
    batch.push(RouteOp::Add { filter: "t", route_id: b"t" });
    assert_eq!(say(0, 1, &batch.finish()), Reaction::Disconnect(Fault::NotTheActor));
    let mut heartbeat = Vec::new();
    wire::put_heartbeat(&mut heartbeat, "other", 1);
    assert_eq!(say(0, 0, &heartbeat), Reaction::Disconnect(Fault::NotTheActor));
    assert_eq!(say(1, 1, &init), Reaction::Disconnect(Fault::SecondInit));
}

#[test]
fn a_map_with_a_key_twice_is_refused() {
    let twice = term(|out| {
        etf::put_map(out, 2);
        for _ in 0..2 {
            etf::put_int(out, 10);
            etf::put_binary(out, b"n");
        }
    });
    let mut scratch = Vec::new();
    assert_eq!(wire::decode_route(&twice, &mut scratch, &LIMITS), Err(WireError::Bad("repeated map key")));
}
