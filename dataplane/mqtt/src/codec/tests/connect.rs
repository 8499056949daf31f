//! CONNECT and CONNACK written down by hand, good and bad, in every version.

use alloc::vec::Vec;

use super::{
    super::{Connack, ConnackProperties, Connect, ConnectProperties, Packet, PublishProperties, Will, encode},
    ALL, V3, bad, good, one, survives_encoding,
    wire::{l, p, s},
};
use crate::types::{Malformed, Qos, Reason, Version};

/// The variable header up to the keep alive, which is 60 s.
fn head(version: Version, flags: u8) -> Vec<u8> {
    match version {
        Version::V31 => [s("MQIsdp"), [3, flags, 0, 60].into()].concat(),
        Version::V311 => [s("MQTT"), [4, flags, 0, 60].into()].concat(),
        Version::V5 => [s("MQTT"), [5, flags, 0, 60, 0].into()].concat(),
    }
}

/// The empty property list, where there is one.
fn none(version: Version) -> &'static [u8] {
    if version == Version::V5 { &[0] } else { &[] }
}

fn plain(version: Version) -> Connect<'static> {
    Connect {
        version,
        clean_start: true,
        keep_alive_s: 60,
        client_id: "c1",
        username: None,
        password: None,
        will: None,
        properties: ConnectProperties::default(),
        bridge: false,
    }
}

//= MQTT-3.1.2-2
//= MQTT-3.1.3-1
//= MQTT-3.1.3-3
#[test]
fn connect_decodes_whatever_version_is_asked_for() {
    for version in ALL {
        for asked in ALL {
            let bytes = p(0x10, &[&head(version, 0x02), &s("c1")]);
            good(asked, &bytes, Packet::Connect(plain(version)));
        }
        let kept = Connect { clean_start: false, ..plain(version) };
        good(version, &p(0x10, &[&head(version, 0), &s("c1")]), Packet::Connect(kept));
    }
}

//= MQTT-3.1.2-9
//= MQTT-3.1.2-16
//= MQTT-3.1.2-17
//= MQTT-3.1.2-18
//= MQTT-3.1.2-19
#[test]
fn will_user_name_and_password_come_in_their_order() {
    for version in ALL {
        let bytes =
            p(0x10, &[&head(version, 0xF6), &s("c1"), none(version), &s("w/t"), &s("gone"), &s("user"), &s(b"\0\xFF")]);
        let will = Will {
            qos: Qos::ExactlyOnce,
            retain: true,
            topic: "w/t",
            payload: b"gone",
            delay_s: 0,
            properties: PublishProperties::default(),
        };
        let expected =
            Connect { will: Some(will), username: Some("user"), password: Some(b"\0\xFF"), ..plain(version) };
        good(version, &bytes, Packet::Connect(expected));
        for flags in [0x06, 0x0E, 0x16] {
            let qos = Qos::from_bits(flags >> 3).unwrap();
            let expected = Connect { will: Some(Will { qos, retain: false, ..will }), ..plain(version) };
            let parts: &[&[u8]] = &[&head(version, flags), &s("c1"), none(version), &s("w/t"), &s("gone")];
            good(version, &p(0x10, parts), Packet::Connect(expected));
        }
        let named = Connect { username: Some(""), ..plain(version) };
        good(version, &p(0x10, &[&head(version, 0x82), &s("c1"), &s("")]), Packet::Connect(named));
    }
}

//= MQTT-3.1.2-1
//= MQTT-3.1.2-2
#[test]
fn other_names_and_levels_are_unsupported_versions() {
    for name in ["", "mqtt", "MQTTX", "MQIsd", "HTTP"] {
        let bytes = p(0x10, &[&s(name), &[4, 2, 0, 60], &s("c1")]);
        bad(Version::V5, &bytes, Malformed::ProtocolName);
    }
    for level in (0..=u8::MAX).filter(|level| !matches!(level & 0x7F, 4 | 5)) {
        let bytes = p(0x10, &[&s("MQTT"), &[level, 2, 0, 60], &s("c1")]);
        bad(Version::V5, &bytes, Malformed::UnsupportedVersion(level));
    }
    for level in [4, 5] {
        let bytes = p(0x10, &[&s("MQIsdp"), &[level, 2, 0, 60], &s("c1")]);
        bad(Version::V5, &bytes, Malformed::UnsupportedVersion(level));
    }
    assert_eq!(Malformed::ProtocolName.reason(), Reason::UnsupportedProtocolVersion);
    assert_eq!(Malformed::UnsupportedVersion(6).reason().connack_311(), Some(1));
}

#[test]
fn a_bridge_is_recognised_by_the_highest_bit_of_the_level() {
    for (name, level, version) in
        [("MQIsdp", 0x83, Version::V31), ("MQTT", 0x84, Version::V311), ("MQTT", 0x85, Version::V5)]
    {
        let bytes = p(0x10, &[&s(name), &[level, 2, 0, 60], none(version), &s("c1")]);
        good(version, &bytes, Packet::Connect(Connect { bridge: true, ..plain(version) }));
    }
}

//= MQTT-3.1.2-3
//= MQTT-3.1.2-11
//= MQTT-3.1.2-12
//= MQTT-3.1.2-13
#[test]
fn connect_flags_that_contradict_each_other_are_malformed() {
    for version in ALL {
        let connect = |flags| p(0x10, &[&head(version, flags), &s("c1"), none(version), &s("t"), &s("")]);
        bad(version, &connect(0x03), Malformed::ConnectFlags);
        for flags in [0x0A, 0x12, 0x1A, 0x22, 0x3A] {
            bad(version, &connect(flags), Malformed::WillFlags);
        }
        bad(version, &connect(0x1E), Malformed::QosThree);
    }
    for version in V3 {
        let bytes = p(0x10, &[&head(version, 0x42), &s("c1"), &s("secret")]);
        bad(version, &bytes, Malformed::PasswordWithoutUsername);
    }
    let bytes = p(0x10, &[&head(Version::V5, 0x42), &s("c1"), &s("secret")]);
    let expected = Connect { password: Some(b"secret"), ..plain(Version::V5) };
    good(Version::V5, &bytes, Packet::Connect(expected));
}

//= MQTT-3.1.3-6
#[test]
fn an_empty_client_id_needs_a_clean_session_and_not_3_1() {
    let bytes = |version, flags| p(0x10, &[&head(version, flags), &s("")]);
    let anonymous = |version| Connect { client_id: "", ..plain(version) };
    good(Version::V311, &bytes(Version::V311, 2), Packet::Connect(anonymous(Version::V311)));
    good(Version::V5, &bytes(Version::V5, 2), Packet::Connect(anonymous(Version::V5)));
    let kept = Connect { clean_start: false, ..anonymous(Version::V5) };
    good(Version::V5, &bytes(Version::V5, 0), Packet::Connect(kept));
    bad(Version::V311, &bytes(Version::V311, 0), Malformed::ClientIdMissing);
    bad(Version::V31, &bytes(Version::V31, 2), Malformed::ClientIdMissing);
    assert_eq!(Malformed::ClientIdMissing.reason().connack_311(), Some(2));
}

//= MQTT-1.5.4-1
//= MQTT-1.5.4-2
//= MQTT-3.1.3-4
//= MQTT-3.1.3-11
//= MQTT-3.1.3-12
#[test]
fn every_string_of_connect_is_checked() {
    for version in ALL {
        let with = |id: &[u8], topic: &[u8], user: &[u8]| {
            p(0x10, &[&head(version, 0x86), &s(id), none(version), &s(topic), &s("x"), &s(user)])
        };
        assert!(one(version, &with(b"c", b"t", b"u")).is_ok());
        for (text, expected) in [(&b"a\0"[..], Malformed::Nul), (b"\xC3", Malformed::NotUtf8)] {
            bad(version, &with(text, b"t", b"u"), expected);
            bad(version, &with(b"c", text, b"u"), expected);
            bad(version, &with(b"c", b"t", text), expected);
        }
        for topic in [&b""[..], b"a/#", b"+"] {
            bad(version, &with(b"c", topic, b"u"), Malformed::TopicName);
        }
    }
}

#[test]
fn connect_cut_anywhere_is_truncated_and_prolonged_has_trailing_bytes() {
    for version in ALL {
        let whole = p(0x10, &[&head(version, 0xC6), &s("c1"), none(version), &s("t"), &s("x"), &s("user"), &s("pw")]);
        assert!(one(version, &whole).is_ok());
        for len in 2..whole.len() {
            let mut cut = whole[..len].to_vec();
            cut[1] = (len - 2) as u8;
            bad(version, &cut, Malformed::Truncated);
        }
        let mut longer = whole.clone();
        longer.push(0);
        longer[1] += 1;
        bad(version, &longer, Malformed::TrailingBytes);
    }
}

//= MQTT-3.2.2-1
//= MQTT-3.2.2-6
//= MQTT-3.2.2-8
#[test]
fn connack_carries_the_codes_of_its_version_and_no_others() {
    let plain = |session_present, reason| {
        Packet::Connack(Connack { session_present, reason, properties: ConnackProperties::default() })
    };
    for version in V3 {
        for code in 0..=u8::MAX {
            match Reason::from_connack_311(code) {
                Some(reason) => good(version, &[0x20, 2, 0, code], plain(false, reason)),
                None => bad(version, &[0x20, 2, 0, code], Malformed::ReasonCode(code)),
            }
        }
        bad(version, &[0x20, 1, 0], Malformed::Truncated);
        bad(version, &[0x20, 3, 0, 0, 0], Malformed::TrailingBytes);
    }
    good(Version::V311, &[0x20, 2, 1, 0], plain(true, Reason::Success));
    good(Version::V5, &[0x20, 3, 1, 0, 0], plain(true, Reason::Success));
    bad(Version::V311, &[0x20, 2, 1, 5], Malformed::ConnackFlags);
    bad(Version::V311, &[0x20, 2, 2, 0], Malformed::ConnackFlags);
    bad(Version::V5, &[0x20, 3, 1, 0x87, 0], Malformed::ConnackFlags);
    bad(Version::V5, &[0x20, 3, 0x80, 0, 0], Malformed::ConnackFlags);
    assert_eq!(one(Version::V31, &[0x20, 2, 1, 0]), Ok(plain(false, Reason::Success)));
    let codes = [
        0x00, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A,
        0x9B, 0x9C, 0x9D, 0x9F,
    ];
    for code in 0..=u8::MAX {
        match Reason::from_u8(code).filter(|_| codes.contains(&code)) {
            Some(reason) => good(Version::V5, &[0x20, 3, 0, code, 0], plain(false, reason)),
            None => bad(Version::V5, &[0x20, 3, 0, code, 0], Malformed::ReasonCode(code)),
        }
    }
}

//= MQTT-3.2.2-6
//= MQTT311-3.2.2-6
#[test]
fn connack_leaves_with_what_its_version_can_say() {
    let written = |version, session_present, reason| {
        let mut out = Vec::new();
        let connack = Connack { session_present, reason, properties: ConnackProperties::default() };
        encode::connack(&mut out, version, &connack);
        out
    };
    assert_eq!(written(Version::V5, true, Reason::Success), [0x20, 3, 1, 0, 0]);
    assert_eq!(written(Version::V5, true, Reason::Banned), [0x20, 3, 0, 0x8A, 0]);
    assert_eq!(written(Version::V5, false, Reason::ServerShuttingDown), [0x20, 3, 0, 0x88, 0]);
    assert_eq!(written(Version::V5, false, Reason::PacketIdInUse), [0x20, 3, 0, 0x80, 0]);
    assert_eq!(written(Version::V311, true, Reason::Success), [0x20, 2, 1, 0]);
    assert_eq!(written(Version::V31, true, Reason::Success), [0x20, 2, 0, 0]);
    assert_eq!(written(Version::V311, true, Reason::NotAuthorized), [0x20, 2, 0, 5]);
    assert_eq!(written(Version::V311, false, Reason::MalformedPacket), [], "3.1.1 has no code for it");
}

#[test]
fn will_properties_keep_their_delay_apart() {
    let list = l(&[&[0x02, 0, 0, 0, 9], &[0x18, 0, 0, 1, 0], &[0x03], &s("text")]);
    let bytes = p(0x10, &[&head(Version::V5, 0x06), &s("c1"), &list, &s("t"), &s("x")]);
    let Ok(Packet::Connect(connect)) = one(Version::V5, &bytes) else { panic!("{bytes:02x?}") };
    let will = connect.will.unwrap();
    assert_eq!(will.delay_s, 256);
    assert_eq!(will.properties.message_expiry_s, Some(9));
    let mut forwarded = Vec::new();
    will.properties.forwarded(&mut forwarded);
    assert_eq!(forwarded, [&[0x03][..], &s("text")].concat());
    survives_encoding(Version::V5, &Packet::Connect(connect));
}
