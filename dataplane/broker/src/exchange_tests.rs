//! Clients that prove who they are in several steps, told as short scripts.

use alloc::{boxed::Box, vec::Vec};

use mqtt::{
    codec::{Auth, Connect, UserProperties, encode},
    types::{Qos, Reason},
};

use crate::{
    access::Principal,
    admission::Policy,
    counters::Counter,
    exchange::Judged,
    rig::{Client, Rig},
};

const METHOD: &str = "M";

/// Clients may prove themselves by the method, and alice has the credential of this policy.
fn policy(number: u64) -> Policy {
    let mut policy = Policy { number, asks: true, methods: [METHOD].into(), ..Policy::default() };
    policy.method_credentials.insert(Box::from("alice"), number);
    policy
}

fn by_method(connect: &mut Connect<'_>) {
    connect.properties.authentication_method = Some(METHOD);
    connect.properties.authentication_data = Some(b"hello");
}

fn auth(reason: Reason, method: Option<&str>, data: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let data = (!data.is_empty()).then_some(data.as_bytes());
    encode::auth(&mut bytes, &Auth { reason, method, data, reason_string: None, user: UserProperties::default() });
    bytes
}

fn goes_on(data: &str) -> Vec<u8> {
    auth(Reason::ContinueAuthentication, Some(METHOD), data)
}

/// `hello` is answered with a question, the second step proves the user that it names.
fn judge(said: &str, remembered: bool) -> Judged {
    match (said, remembered) {
        ("hello", false) => Judged::More { data: b"who?".into(), memory: Box::new(()) },
        ("eve" | "", _) => Judged::Refused { reason: Reason::NotAuthorized, why: "nobody knows her" },
        (user, true) => {
            let principal = Principal { proven: true, credential: 1, ..Principal::unproven(Some(user)) };
            Judged::Proven { principal, data: b"welcome".into() }
        }
        (_, false) => Judged::Refused { reason: Reason::NotAuthorized, why: "a first step that is none" },
    }
}

fn rig(shards: u16) -> Rig {
    let mut rig = Rig::new(shards);
    rig.policy(policy(1));
    rig
}

/// A client that was let in.
fn enter(rig: &mut Rig, name: &str) -> Client {
    let client = rig.connect_with(name, by_method);
    assert_eq!(rig.judge(1, judge), 1);
    assert_eq!(rig.heard(client), ["auth ContinueAuthentication M who?"]);
    rig.send(client, &goes_on("alice"));
    assert_eq!(rig.judge(1, judge), 1);
    assert_eq!(rig.heard(client), ["connack Success welcome"]);
    client
}

#[test]
fn a_client_comes_in_step_by_step_and_what_it_sent_behind_its_last_step_follows() {
    let mut rig = rig(2);
    for shard in 0..2 {
        let name = rig.id_on(shard, "c");
        let client = rig.connect_with(&name, by_method);
        assert!(rig.heard(client).is_empty(), "nothing is said before the first step is judged");
        rig.judge(1, judge);
        let mut bytes = goes_on("alice");
        encode::pingreq(&mut bytes);
        let (first, rest) = bytes.split_at(3);
        rig.send(client, first);
        rig.send(client, rest);
        rig.judge(1, judge);
        assert_eq!(rig.heard(client), ["auth ContinueAuthentication M who?", "connack Success welcome", "pingresp"]);
    }
    assert_eq!((rig.count(Counter::authentication_asked), rig.count(Counter::authentication_allowed)), (2, 2));
}

#[test]
fn whatever_is_no_next_step_ends_the_connection_before_connack() {
    let mut ping = Vec::new();
    encode::pingreq(&mut ping);
    for (bytes, reason) in [
        (goes_on("eve"), "NotAuthorized"),
        (auth(Reason::ContinueAuthentication, Some("N"), "alice"), "ProtocolError"),
        (auth(Reason::ReAuthenticate, Some(METHOD), "alice"), "ProtocolError"),
        (auth(Reason::Success, None, ""), "ProtocolError"),
        (ping, "ProtocolError"),
        ([0xf1, 0].into(), "MalformedPacket"),
    ] {
        let mut rig = rig(1);
        let client = rig.connect_with("c", by_method);
        rig.judge(1, judge);
        rig.send(client, &bytes);
        rig.judge(1, judge);
        let refusal = alloc::format!("connack {reason} false");
        assert_eq!(rig.heard(client), ["auth ContinueAuthentication M who?", &refusal]);
        assert!(rig.closed(client));
        assert_eq!((rig.count(Counter::authentication_denied), rig.count(Counter::session_created)), (1, 0));
    }
    let mut rig = rig(1);
    let client = rig.connect_with("c", by_method);
    rig.judge(1, judge);
    rig.send(client, &[0xe0, 0]);
    assert_eq!(rig.heard(client), ["auth ContinueAuthentication M who?"]);
    assert!(rig.closed(client), "a client may leave");
}

#[test]
fn a_client_that_takes_its_time_or_leaves_is_forgotten() {
    let mut rig = rig(1);
    let client = rig.connect_with("c", by_method);
    rig.judge(1, judge);
    rig.pass(60_000);
    assert_eq!(rig.heard(client), ["auth ContinueAuthentication M who?", "connack NotAuthorized false"]);
    let client = rig.connect_with("c", by_method);
    rig.pass(60_000);
    assert_eq!(rig.heard(client), ["connack NotAuthorized false"], "nobody judged its first step");
    let client = rig.connect_with("c", by_method);
    rig.end(client);
    assert_eq!(rig.judge(1, judge), 2);
    assert_eq!((rig.count(Counter::authentication_timed_out), rig.count(Counter::authentication_late)), (2, 2));
    assert_eq!(rig.shards[0].gauges().connections, 0);
}

#[test]
fn a_proof_counts_only_for_who_connects_and_under_the_present_policy() {
    let mut rig = rig(1);
    let named = |connect: &mut Connect<'_>| {
        by_method(connect);
        connect.username = Some("bob");
    };
    let client = rig.connect_with("c", named);
    rig.judge(1, judge);
    rig.send(client, &goes_on("alice"));
    rig.judge(1, judge);
    assert_eq!(rig.heard(client)[1..], ["connack NotAuthorized false"], "CONNECT names somebody else");
    let client = rig.connect_with("c", by_method);
    rig.judge(1, judge);
    rig.policy(policy(2));
    rig.send(client, &goes_on("alice"));
    rig.judge(1, judge);
    assert_eq!(rig.heard(client)[1..], ["connack NotAuthorized false"], "alice has another password by now");
    let client = rig.connect_with("c", |connect| connect.properties.authentication_method = Some("N"));
    assert_eq!(rig.heard(client), ["connack BadAuthenticationMethod false"]);
    rig.authenticators_busy(true);
    let client = rig.connect_with("c", by_method);
    assert_eq!(rig.heard(client), ["connack QuotaExceeded false"]);
}

#[test]
fn steps_are_never_larger_than_the_client_takes() {
    let mut rig = rig(1);
    // AUTH: 2, reason 1, length 1, method 4, data 7.
    for (bytes_max, heard) in [(15, "auth ContinueAuthentication M who?"), (14, "connack ImplementationSpecific false")]
    {
        let client = rig.connect_with("c", |connect| {
            by_method(connect);
            connect.properties.maximum_packet_bytes = Some(bytes_max);
        });
        rig.judge(1, judge);
        assert_eq!(rig.heard(client), [heard], "{bytes_max}");
    }
}

#[test]
fn a_connected_client_proves_itself_again_while_everything_else_goes_on() {
    let mut rig = rig(1);
    let client = enter(&mut rig, "c");
    rig.subscribe(client, "t", Qos::AtMostOnce);
    rig.send(client, &auth(Reason::ReAuthenticate, Some(METHOD), "hello"));
    rig.publish(client, "t", "m", Qos::AtMostOnce, false);
    assert_eq!(rig.heard(client), ["suback 0", "t m q0"]);
    rig.judge(1, judge);
    rig.publish(client, "t", "n", Qos::AtMostOnce, false);
    rig.send(client, &goes_on("alice"));
    rig.judge(1, judge);
    assert_eq!(rig.heard(client), ["auth ContinueAuthentication M who?", "t n q0", "auth Success M welcome"]);
    rig.pass(600_000);
    assert!(!rig.closed(client), "the time of an exchange that is over ends nothing");
    assert_eq!(rig.count(Counter::authentication_repeated), 1);
}

#[test]
fn who_fails_to_prove_itself_again_is_out() {
    let begin = auth(Reason::ReAuthenticate, Some(METHOD), "hello");
    for (steps, reason) in [
        ([&begin[..], &goes_on("eve")], "NotAuthorized"),
        ([&begin, &goes_on("bob")], "NotAuthorized"),
        ([&begin, &auth(Reason::ReAuthenticate, Some(METHOD), "hello")], "ProtocolError"),
        ([&begin, &auth(Reason::Success, Some(METHOD), "")], "ProtocolError"),
        ([&begin, &auth(Reason::ContinueAuthentication, Some("N"), "alice")], "ProtocolError"),
        ([&[], &goes_on("alice")], "ProtocolError"),
    ] {
        let mut rig = rig(1);
        let client = enter(&mut rig, "c");
        for step in steps {
            rig.send(client, step);
            rig.judge(1, judge);
        }
        let last = alloc::format!("disconnect {reason}");
        assert_eq!(rig.heard(client).last(), Some(&last));
        assert!(rig.closed(client));
    }
    let mut rig = self::rig(1);
    let client = enter(&mut rig, "c");
    rig.send(client, &begin);
    rig.send(client, &goes_on("alice"));
    assert_eq!(rig.heard(client), ["disconnect ProtocolError"], "a step before the last one is judged");
    let mut rig = self::rig(1);
    let client = enter(&mut rig, "d");
    rig.send(client, &begin);
    rig.pass(60_000);
    assert_eq!(rig.heard(client), ["disconnect NotAuthorized"], "it takes too long");
}
