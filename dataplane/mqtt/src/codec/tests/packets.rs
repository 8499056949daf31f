//! Packets written down by hand: every type but CONNECT and CONNACK, good and bad, in every version.

use alloc::{string::String, vec, vec::Vec};

use super::{
    super::{
        Ack, AckKind, Auth, Disconnect, PACKET_BYTES_MAX, Packet, Publish, PublishProperties, SubscribeEntry,
        UserProperties, encode, missing, split,
    },
    ALL, V3, bad, feed_single_bytes, good, one, survives_encoding,
    wire::{l, p, s, v},
};
use crate::types::{Malformed, PacketId, Qos, Reason, RetainHandling, Version};

fn id(number: u16) -> PacketId {
    PacketId::new(number).unwrap()
}

fn plain<'a>(topic: &'a str, payload: &'a [u8]) -> Publish<'a> {
    Publish {
        dup: false,
        qos: Qos::AtMostOnce,
        retain: false,
        topic,
        packet_id: None,
        properties: PublishProperties::default(),
        payload,
    }
}

fn acknowledged(number: u16, reason: Reason) -> Ack<'static> {
    Ack { packet_id: id(number), reason, reason_string: None, user: UserProperties::default() }
}

//= MQTT-1.5.5-1
#[test]
fn the_remaining_length_has_one_to_four_bytes() {
    for len in [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_455] {
        let header = [vec![0x30], v(len)].concat();
        assert_eq!(missing(&header), len);
        assert_eq!(split(&header, header.len() + len - 1), Err(Malformed::PacketTooLarge));
        if len > 0 {
            assert_eq!(split(&header, PACKET_BYTES_MAX), Ok(None));
        }
    }
    for bytes in [&b"\x30\xFF\xFF\xFF\xFF"[..], b"\x30\x80\x80\x80\x80\x00", b"\x30\x80\x80\x80\x80"] {
        assert_eq!(split(bytes, PACKET_BYTES_MAX), Err(Malformed::LengthTooLong));
    }
    assert_eq!(split(b"\x30\xFF\xFF\xFF", PACKET_BYTES_MAX), Ok(None));
    let raw = split(b"\xC0\x80\x80\x00\x30", PACKET_BYTES_MAX).unwrap().unwrap();
    assert_eq!((raw.first, raw.body, raw.total), (0xC0, &b""[..], 4));
}

//= MQTT-2.1.3-1
#[test]
fn packet_types_that_do_not_exist_are_malformed() {
    for version in ALL {
        assert_eq!(one(version, &[0x00, 0]), Err(Malformed::PacketType(0)));
    }
    assert_eq!(split(&[0x0F], PACKET_BYTES_MAX), Err(Malformed::PacketType(0)));
    for version in V3 {
        bad(version, &[0xF0, 0], Malformed::PacketType(15));
    }
}

//= MQTT-2.1.3-1
#[test]
fn reserved_flags_are_checked_for_every_type() {
    for version in ALL {
        for kind in (1..=15u8).filter(|kind| *kind != 3) {
            let required = if matches!(kind, 6 | 8 | 10) { 2 } else { 0 };
            for flags in (0..16).filter(|flags| *flags != required) {
                let tolerated = version == Version::V31 && required == 2 && flags == 0x0A;
                let got = one(version, &[kind << 4 | flags, 2, 0, 1]).err();
                if kind == 15 && version != Version::V5 {
                    assert_eq!(got, Some(Malformed::PacketType(15)));
                } else {
                    assert_eq!(got == Some(Malformed::FixedFlags), !tolerated, "{version:?} {kind} {flags}");
                }
            }
        }
    }
}

//= MQTT-3.3.1-4
//= MQTT-2.2.1-2
#[test]
fn publish_of_every_quality_decodes() {
    for version in ALL {
        let none: &[u8] = if version == Version::V5 { &[0] } else { &[] };
        good(version, &p(0x30, &[&s("a/b"), none, b"payload"]), Packet::Publish(plain("a/b", b"payload")));
        good(version, &p(0x30, &[&s("a"), none]), Packet::Publish(plain("a", b"")));
        let retained = Publish { retain: true, ..plain("/", b"\0") };
        good(version, &p(0x31, &[&s("/"), none, b"\0"]), Packet::Publish(retained));
        for (qos, bits) in [(Qos::AtLeastOnce, 2), (Qos::ExactlyOnce, 4)] {
            let expected = Publish { qos, packet_id: Some(id(0x1234)), ..plain("t\u{20ac}", b"x") };
            let parts: &[&[u8]] = &[&s("t\u{20ac}"), &[0x12, 0x34], none, b"x"];
            good(version, &p(0x30 | bits, parts), Packet::Publish(expected));
            good(version, &p(0x38 | bits, parts), Packet::Publish(Publish { dup: true, ..expected }));
        }
        bad(version, &p(0x36, &[&s("a"), &[0, 1], none]), Malformed::QosThree);
        bad(version, &p(0x3F, &[&s("a"), &[0, 1], none]), Malformed::QosThree);
    }
}

//= MQTT-3.3.1-2
//= MQTT-3.3.2-2
//= MQTT-2.2.1-3
//= MQTT-1.5.4-1
//= MQTT-1.5.4-2
#[test]
fn publish_is_refused_for_what_is_wrong_with_it() {
    for version in ALL {
        let none: &[u8] = if version == Version::V5 { &[0] } else { &[] };
        bad(version, &p(0x38, &[&s("a"), none]), Malformed::DupWithoutQos);
        for topic in ["+", "#", "a/+/b", "a/#", "longer than eight bytes/+", "a#", "12345678+"] {
            bad(version, &p(0x30, &[&s(topic), none]), Malformed::TopicName);
        }
        for topic in ["\0", "a\0b", "a long topic with a\0", "+\0"] {
            bad(version, &p(0x30, &[&s(topic), none]), Malformed::Nul);
        }
        for topic in [&b"\xFF"[..], b"\xC0\x80", b"\xED\xA0\x80", b"\xF4\x90\x80\x80", b"long enough \xE2\x82"] {
            bad(version, &p(0x30, &[&s(topic), none]), Malformed::NotUtf8);
        }
        bad(version, &p(0x32, &[&s("a"), &[0, 0], none]), Malformed::PacketIdZero);
        bad(version, &p(0x32, &[&s("a"), &[7]]), Malformed::Truncated);
        bad(version, &p(0x30, &[&[0, 2, b'a']]), Malformed::Truncated);
        bad(version, &p(0x30, &[&[0]]), Malformed::Truncated);
        bad(version, &p(0x30, &[]), Malformed::Truncated);
        let empty = if version == Version::V5 { Malformed::NoTopic } else { Malformed::TopicName };
        bad(version, &p(0x30, &[&s(""), none, b"x"]), empty);
    }
    bad(Version::V5, &p(0x30, &[&s("a")]), Malformed::Truncated);
    bad(Version::V5, &p(0x30, &[&s("a"), &[1]]), Malformed::Truncated);
}

//= MQTT-1.5.4-3
#[test]
fn a_byte_order_mark_stays_where_it_is() {
    good(Version::V311, &p(0x30, &[&s("\u{feff}a")]), Packet::Publish(plain("\u{feff}a", b"")));
}

#[test]
fn a_topic_of_the_greatest_length_and_a_large_payload_pass() {
    let (topic, payload) = ("t".repeat(65535), vec![7; 300_000]);
    for version in ALL {
        let none: &[u8] = if version == Version::V5 { &[0] } else { &[] };
        let bytes = p(0x30, &[&s(&topic), none, &payload]);
        assert_eq!(one(version, &bytes), Ok(Packet::Publish(plain(&topic, &payload))));
        survives_encoding(version, &one(version, &bytes).unwrap());
    }
}

//= MQTT-3.4.2-1
//= MQTT-3.5.2-1
//= MQTT-3.6.2-1
//= MQTT-3.7.2-1
//= MQTT-3.6.1-1
#[test]
fn acknowledgements_carry_the_reasons_of_their_table_and_no_others() {
    let publish: &[u8] = &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
    let release: &[u8] = &[0, 0x92];
    type Wrap = for<'a> fn(Ack<'a>) -> Packet<'a>;
    let kinds: [(u8, Wrap, &[u8]); 4] = [
        (0x40, |ack| Packet::Puback(ack), publish),
        (0x50, |ack| Packet::Pubrec(ack), publish),
        (0x62, |ack| Packet::Pubrel(ack), release),
        (0x70, |ack| Packet::Pubcomp(ack), release),
    ];
    for (first, wrap, codes) in kinds {
        for version in ALL {
            good(version, &p(first, &[&[1, 2]]), wrap(acknowledged(0x102, Reason::Success)));
            bad(version, &p(first, &[&[0, 0]]), Malformed::PacketIdZero);
            bad(version, &p(first, &[&[1]]), Malformed::Truncated);
            bad(version, &p(first, &[]), Malformed::Truncated);
        }
        for version in V3 {
            bad(version, &p(first, &[&[1, 2, 0]]), Malformed::TrailingBytes);
        }
        for code in 0..=u8::MAX {
            for rest in [&[][..], &[0]] {
                let bytes = p(first, &[&[1, 2, code], rest]);
                match Reason::from_u8(code).filter(|_| codes.contains(&code)) {
                    Some(reason) => good(Version::V5, &bytes, wrap(acknowledged(0x102, reason))),
                    None => bad(Version::V5, &bytes, Malformed::ReasonCode(code)),
                }
            }
        }
        let list = l(&[&[0x1F], &s("why"), &[0x26], &s("k"), &s("v")]);
        let bytes = p(first, &[&[1, 2, codes[1]], &list]);
        let mut pair = Vec::new();
        encode::user_property(&mut pair, "k", "v");
        let user = UserProperties::parse(&pair).unwrap();
        let reason = Reason::from_u8(codes[1]).unwrap();
        good(Version::V5, &bytes, wrap(Ack { reason_string: Some("why"), user, ..acknowledged(0x102, reason) }));
        bad(Version::V5, &p(first, &[&[1, 2, 0], &l(&[]), &[0]]), Malformed::TrailingBytes);
        bad(Version::V5, &p(first, &[&[1, 2, 0, 3, 0x1F]]), Malformed::Truncated);
    }
    let released = Packet::Pubrel(acknowledged(1, Reason::Success));
    assert_eq!(one(Version::V31, &[0x6A, 2, 0, 1]), Ok(released), "3.1 repeats PUBREL with DUP");
}

#[test]
fn acknowledgements_leave_in_their_shortest_form() {
    let written = |version, kind, reason| {
        let mut out = Vec::new();
        encode::ack(&mut out, version, kind, id(5), reason);
        out
    };
    assert_eq!(written(Version::V5, AckKind::Puback, Reason::Success), [0x40, 2, 0, 5]);
    assert_eq!(written(Version::V5, AckKind::Pubrec, Reason::QuotaExceeded), [0x50, 3, 0, 5, 0x97]);
    assert_eq!(written(Version::V311, AckKind::Pubrec, Reason::QuotaExceeded), [0x50, 2, 0, 5]);
    assert_eq!(written(Version::V5, AckKind::Pubrel, Reason::PacketIdNotFound), [0x62, 3, 0, 5, 0x92]);
    let stray = written(Version::V5, AckKind::Puback, Reason::ServerBusy);
    assert_eq!(stray, [0x40, 3, 0, 5, 0x80], "0x89 is not of PUBACK");
    let mut out = Vec::new();
    encode::ack_with(&mut out, Version::V5, AckKind::Puback, id(5), Reason::Success, Some("ok"));
    assert_eq!(out, [0x40, 9, 0, 5, 0, 5, 0x1F, 0, 2, b'o', b'k']);
}

//= MQTT-3.8.1-1
//= MQTT-3.8.3-1
//= MQTT-3.8.3-2
//= MQTT-3.8.3-4
//= MQTT-3.8.3-5
#[test]
fn subscribe_yields_its_entries_and_refuses_bad_options() {
    for version in ALL {
        let none: &[u8] = if version == Version::V5 { &[0] } else { &[] };
        let bytes = p(0x82, &[&[0, 9], none, &s("a/+"), &[1], &s("\u{e4}/#"), &[2]]);
        let Ok(Packet::Subscribe(subscribe)) = one(version, &bytes) else { panic!("{version:?}") };
        assert_eq!((subscribe.packet_id, subscribe.subscription_id), (id(9), None));
        let entries: Vec<_> = subscribe.entries.map(|entry| (entry.filter, entry.qos)).collect();
        assert_eq!(entries, [("a/+", Qos::AtLeastOnce), ("\u{e4}/#", Qos::ExactlyOnce)]);
        assert_eq!(subscribe.entries.len(), 2);
        feed_single_bytes(&bytes);
        survives_encoding(version, &Packet::Subscribe(subscribe));
        bad(version, &p(0x82, &[&[0, 9], none]), Malformed::NoFilter);
        bad(version, &p(0x82, &[&[0, 0], none, &s("a"), &[0]]), Malformed::PacketIdZero);
        bad(version, &p(0x82, &[&[0, 9], none, &s("a")]), Malformed::Truncated);
        bad(version, &p(0x82, &[&[0, 9], none, &s("a"), &[3]]), Malformed::SubscriptionQos);
        bad(version, &p(0x82, &[&[0, 9], none, &s("a\0"), &[0]]), Malformed::Nul);
        bad(version, &p(0x82, &[&[0, 9], none, &s(b"\xFF"), &[0]]), Malformed::NotUtf8);
        bad(version, &p(0x82, &[&[0, 9], none, &s("a"), &[0], &[0]]), Malformed::Truncated);
        bad(version, &p(0x82, &[&[0, 9], none, &s("a"), &[0x40]]), Malformed::SubscriptionOptions);
        bad(version, &p(0x82, &[&[0, 9], none, &s("a"), &[0x80]]), Malformed::SubscriptionOptions);
    }
    for (version, bit) in V3.into_iter().flat_map(|version| [4, 8, 16, 32].map(|bit| (version, bit))) {
        bad(version, &p(0x82, &[&[0, 9], &s("a"), &[bit]]), Malformed::SubscriptionOptions);
    }
    bad(Version::V5, &p(0x82, &[&[0, 9, 0], &s("a"), &[0x30]]), Malformed::RetainHandling);
    bad(Version::V5, &p(0x82, &[&[0, 9, 0], &s("$share/g/a"), &[0x04]]), Malformed::NoLocalShared);
    let bytes = p(0x82, &[&[0, 9], &l(&[&[0x0B], &v(300)]), &s("a"), &[0x2D], &s("$share/g/a"), &[0x19]]);
    let Ok(Packet::Subscribe(subscribe)) = one(Version::V5, &bytes) else { panic!("{bytes:02x?}") };
    assert_eq!(subscribe.subscription_id, Some(300));
    let first = SubscribeEntry {
        filter: "a",
        qos: Qos::AtLeastOnce,
        no_local: true,
        retain_as_published: true,
        retain_handling: RetainHandling::DoNotSend,
    };
    assert_eq!({ subscribe.entries }.next(), Some(first));
    let mut out = Vec::new();
    let entries: Vec<_> = subscribe.entries.collect();
    encode::subscribe(&mut out, Version::V5, id(9), Some(300), &entries);
    assert_eq!(out, bytes);
}

//= MQTT-3.10.1-1
//= MQTT-3.10.3-1
//= MQTT-3.10.3-2
#[test]
fn unsubscribe_yields_its_filters() {
    for version in ALL {
        let none: &[u8] = if version == Version::V5 { &[0] } else { &[] };
        let bytes = p(0xA2, &[&[0, 9], none, &s("a/+"), &s("b")]);
        let Ok(Packet::Unsubscribe(unsubscribe)) = one(version, &bytes) else { panic!("{version:?}") };
        let filters: Vec<_> = unsubscribe.filters.collect();
        assert_eq!(filters, ["a/+", "b"]);
        feed_single_bytes(&bytes);
        survives_encoding(version, &Packet::Unsubscribe(unsubscribe));
        let mut out = Vec::new();
        encode::unsubscribe(&mut out, version, id(9), &filters);
        assert_eq!(out, bytes);
        bad(version, &p(0xA2, &[&[0, 9], none]), Malformed::NoFilter);
        bad(version, &p(0xA2, &[&[0, 0], none, &s("a")]), Malformed::PacketIdZero);
        bad(version, &p(0xA2, &[&[0, 9], none, &s("a"), &[0]]), Malformed::Truncated);
        bad(version, &p(0xA2, &[&[0, 9], none, &s(b"\x80")]), Malformed::NotUtf8);
    }
}

//= MQTT-3.8.4-6
//= MQTT-3.9.3-2
#[test]
fn suback_says_what_its_version_can_say() {
    let reasons = [Reason::GRANTED_QOS_0, Reason::GrantedQos1, Reason::GrantedQos2, Reason::NotAuthorized];
    for (version, expected) in [
        (Version::V31, &[0x90, 6, 0, 7, 0, 1, 2, 0x80][..]),
        (Version::V311, &[0x90, 6, 0, 7, 0, 1, 2, 0x80]),
        (Version::V5, &[0x90, 7, 0, 7, 0, 0, 1, 2, 0x87]),
    ] {
        let mut out = Vec::new();
        encode::suback(&mut out, version, id(7), reasons.iter().copied());
        assert_eq!(out, expected);
        let Ok(Packet::Suback(suback)) = one(version, &out) else { panic!("{out:02x?}") };
        let last = if version == Version::V5 { Reason::NotAuthorized } else { Reason::UnspecifiedError };
        assert_eq!(suback.reasons.last(), Some(last));
        assert_eq!(suback.reasons.len(), 4);
        feed_single_bytes(&out);
        survives_encoding(version, &Packet::Suback(suback));
        let none: &[u8] = if version == Version::V5 { &[0] } else { &[] };
        bad(version, &p(0x90, &[&[0, 7], none]), Malformed::Truncated);
        bad(version, &p(0x90, &[&[0, 7], none, &[3]]), Malformed::ReasonCode(3));
    }
    bad(Version::V311, &p(0x90, &[&[0, 7, 0x87]]), Malformed::ReasonCode(0x87));
    let mut out = Vec::new();
    encode::suback(&mut out, Version::V5, id(7), [Reason::ServerBusy].into_iter());
    assert_eq!(out[5], 0x80, "0x89 is not of SUBACK");
}

//= MQTT-3.11.3-2
#[test]
fn unsuback_has_reasons_only_in_version_5() {
    let reasons = [Reason::Success, Reason::NoSubscriptionExisted, Reason::QuotaExceeded];
    for version in ALL {
        let mut out = Vec::new();
        encode::unsuback(&mut out, version, id(7), reasons.iter().copied());
        let expected: &[u8] =
            if version == Version::V5 { &[0xB0, 6, 0, 7, 0, 0, 0x11, 0x80] } else { &[0xB0, 2, 0, 7] };
        assert_eq!(out, expected);
        let Ok(Packet::Unsuback(unsuback)) = one(version, &out) else { panic!("{out:02x?}") };
        survives_encoding(version, &Packet::Unsuback(unsuback));
        feed_single_bytes(&out);
    }
    bad(Version::V311, &p(0xB0, &[&[0, 7, 0]]), Malformed::TrailingBytes);
    bad(Version::V5, &p(0xB0, &[&[0, 7, 0]]), Malformed::Truncated);
    bad(Version::V5, &p(0xB0, &[&[0, 7, 0, 1]]), Malformed::ReasonCode(1));
}

#[test]
fn pings_are_two_bytes() {
    for version in ALL {
        good(version, &[0xC0, 0], Packet::Pingreq);
        good(version, &[0xD0, 0], Packet::Pingresp);
        bad(version, &[0xC0, 1, 0], Malformed::TrailingBytes);
        bad(version, &[0xD0, 1, 0], Malformed::TrailingBytes);
    }
}

//= MQTT-3.14.1-1
//= MQTT-3.14.2-1
#[test]
fn disconnect_carries_the_reasons_of_its_table_and_no_others() {
    for version in ALL {
        good(version, &[0xE0, 0], Packet::Disconnect(Disconnect::default()));
    }
    for version in V3 {
        bad(version, &[0xE0, 1, 0], Malformed::TrailingBytes);
        let mut out = Vec::new();
        encode::disconnect(&mut out, version, Reason::ServerBusy, &Default::default());
        assert_eq!(out, [0xE0, 0]);
    }
    let codes = [
        0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F, 0x90, 0x93, 0x94, 0x95, 0x96,
        0x97, 0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2,
    ];
    for code in 0..=u8::MAX {
        match Reason::from_u8(code).filter(|_| codes.contains(&code)) {
            Some(reason) => {
                let expected = Packet::Disconnect(Disconnect { reason, ..Disconnect::default() });
                good(Version::V5, &[0xE0, 1, code], expected);
                good(Version::V5, &[0xE0, 2, code, 0], expected);
            }
            None => bad(Version::V5, &[0xE0, 1, code], Malformed::ReasonCode(code)),
        }
    }
    bad(Version::V5, &[0xE0, 3, 0, 0, 0], Malformed::TrailingBytes);
    let mut out = Vec::new();
    encode::disconnect(&mut out, Version::V5, Reason::BadUserNameOrPassword, &Default::default());
    assert_eq!(out, [0xE0, 1, 0x80], "0x86 is not of DISCONNECT");
}

//= MQTT-3.15.1-1
//= MQTT-3.15.2-1
#[test]
fn auth_needs_a_method_unless_it_is_a_short_success() {
    let user = UserProperties::default();
    let success = Auth { reason: Reason::Success, method: None, data: None, reason_string: None, user };
    good(Version::V5, &[0xF0, 0], Packet::Auth(success));
    for (code, reason) in
        [(0x00, Reason::Success), (0x18, Reason::ContinueAuthentication), (0x19, Reason::ReAuthenticate)]
    {
        let list = l(&[&[0x15], &s("SCRAM"), &[0x16], &s(b"\0\xFF"), &[0x1F], &s("more")]);
        let expected = Auth { reason, method: Some("SCRAM"), data: Some(b"\0\xFF"), reason_string: Some("more"), user };
        good(Version::V5, &p(0xF0, &[&[code], &list]), Packet::Auth(expected));
        bad(Version::V5, &p(0xF0, &[&[code], &list, &[0]]), Malformed::TrailingBytes);
        let dataless = p(0xF0, &[&[code], &l(&[&[0x16], &s("x")])]);
        bad(Version::V5, &dataless, Malformed::AuthenticationMethodMissing);
        bad(Version::V5, &[0xF0, 1, code], Malformed::Truncated);
        bad(Version::V5, &[0xF0, 2, code, 0], Malformed::AuthenticationMethodMissing);
    }
    bad(Version::V5, &[0xF0, 2, 0x80, 0], Malformed::ReasonCode(0x80));
    bad(Version::V5, &[0xF0, 2, 0x1A, 0], Malformed::ReasonCode(0x1A));
}

#[test]
fn publish_parts_are_written_to_the_byte_and_leave_room_for_the_packet_id() {
    let parts = encode::PublishParts {
        qos: Qos::AtLeastOnce,
        retain: true,
        topic: "a/b",
        packet_id: Some(id(0x0102)),
        topic_alias: Some(5),
        message_expiry_s: Some(60),
        subscription_ids: &[1, 300],
        forwarded: &[0x01, 1],
        payload: b"xyz",
        dup: false,
    };
    for (version, expected) in [
        (Version::V311, p(0x33, &[&s("a/b"), &[1, 2], b"xyz"])),
        (
            Version::V5,
            p(
                0x33,
                &[
                    &s("a/b"),
                    &[1, 2],
                    &l(&[&[0x23, 0, 5], &[0x02, 0, 0, 0, 60], &[0x0B, 1], &[0x0B, 0xAC, 2], &[0x01, 1]]),
                    b"xyz",
                ],
            ),
        ),
    ] {
        let mut out = vec![0xEE];
        assert_eq!(encode::publish(&mut out, version, &parts), 1 + 2 + 2 + 3);
        assert_eq!(out[1..], expected);
        assert_eq!(encode::publish_bytes(version, &parts), expected.len());
    }
}

#[test]
fn sizes_around_every_length_border_are_exact() {
    let payload = vec![0; 2_097_200];
    for border in [127usize, 128, 16_383, 16_384, 2_097_151, 2_097_152] {
        for less in 0..12 {
            let parts = encode::PublishParts { topic: "t", payload: &payload[..border - less], ..Default::default() };
            for version in ALL {
                let mut out = Vec::new();
                encode::publish(&mut out, version, &parts);
                assert_eq!(out.len(), encode::publish_bytes(version, &parts));
                assert_eq!(split(&out, PACKET_BYTES_MAX).unwrap().unwrap().total, out.len());
            }
        }
    }
    let long = String::from_iter(core::iter::repeat_n('k', 20_000));
    let mut forwarded = Vec::new();
    encode::user_property(&mut forwarded, &long, "");
    let parts = encode::PublishParts { topic: "t", forwarded: &forwarded, ..Default::default() };
    let mut out = Vec::new();
    encode::publish(&mut out, Version::V5, &parts);
    assert_eq!(out.len(), encode::publish_bytes(Version::V5, &parts));
    assert!(one(Version::V5, &out).is_ok());
}
