//! Every property in every packet: where it belongs it is read, elsewhere refused, twice refused, and out of
//! its range refused.

use alloc::{format, vec, vec::Vec};

use super::{
    super::{Packet, PublishProperties, UserProperties, encode, properties::id},
    bad, one, survives_encoding,
    wire::{l, p, s},
};
use crate::types::{Malformed, Reason, Version};

/// A packet that carries the property list it is given.
struct Carrier {
    name: &'static str,
    /// Properties that belong to it.
    own: &'static [u8],
    /// Of these, those that may come more than once.
    many: &'static [u8],
    wrap: fn(&[u8]) -> Vec<u8>,
}

const REASON: &[u8] = &[0x1F, 0x26];

/// Table 2-4 of the specification, from the packets' side.
const CARRIERS: &[Carrier] = &[
    Carrier {
        name: "CONNECT",
        own: &[0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27],
        many: &[0x26],
        wrap: |list| p(0x10, &[&s("MQTT"), &[5, 2, 0, 0], list, &s("c")]),
    },
    Carrier {
        name: "will",
        own: &[0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26],
        many: &[0x26],
        wrap: |list| p(0x10, &[&s("MQTT"), &[5, 6, 0, 0, 0], &s("c"), list, &s("t"), &s("x")]),
    },
    Carrier {
        name: "CONNACK",
        own: &[0x11, 0x12, 0x13, 0x15, 0x16, 0x1A, 0x1C, 0x1F, 0x21, 0x22, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2A],
        many: &[0x26],
        wrap: |list| p(0x20, &[&[0, 0], list]),
    },
    Carrier {
        name: "PUBLISH",
        own: &[0x01, 0x02, 0x03, 0x08, 0x09, 0x0B, 0x23, 0x26],
        many: &[0x26, 0x0B],
        wrap: |list| p(0x32, &[&s("t"), &[0, 1], list, b"x"]),
    },
    Carrier { name: "PUBACK", own: REASON, many: &[0x26], wrap: |list| p(0x40, &[&[0, 1, 0], list]) },
    Carrier { name: "PUBREC", own: REASON, many: &[0x26], wrap: |list| p(0x50, &[&[0, 1, 0], list]) },
    Carrier { name: "PUBREL", own: REASON, many: &[0x26], wrap: |list| p(0x62, &[&[0, 1, 0], list]) },
    Carrier { name: "PUBCOMP", own: REASON, many: &[0x26], wrap: |list| p(0x70, &[&[0, 1, 0], list]) },
    Carrier {
        name: "SUBSCRIBE",
        own: &[0x0B, 0x26],
        many: &[0x26],
        wrap: |list| p(0x82, &[&[0, 1], list, &s("a"), &[0]]),
    },
    Carrier { name: "SUBACK", own: REASON, many: &[0x26], wrap: |list| p(0x90, &[&[0, 1], list, &[0]]) },
    Carrier { name: "UNSUBSCRIBE", own: &[0x26], many: &[0x26], wrap: |list| p(0xA2, &[&[0, 1], list, &s("a")]) },
    Carrier { name: "UNSUBACK", own: REASON, many: &[0x26], wrap: |list| p(0xB0, &[&[0, 1], list, &[0]]) },
    Carrier { name: "DISCONNECT", own: &[0x11, 0x1C, 0x1F, 0x26], many: &[0x26], wrap: |list| p(0xE0, &[&[0], list]) },
    Carrier { name: "AUTH", own: &[0x15, 0x16, 0x1F, 0x26], many: &[0x26], wrap: |list| p(0xF0, &[&[0x18], list]) },
];

/// A legal value of each property; `None` where the identifier does not exist.
fn sample(property: u8) -> Option<Vec<u8>> {
    let value = match property {
        0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2A => vec![1],
        0x13 | 0x21 | 0x22 | 0x23 => vec![1, 2],
        0x02 | 0x11 | 0x18 | 0x27 => vec![1, 2, 3, 4],
        0x0B => vec![0x80, 0x01],
        0x03 | 0x08 | 0x12 | 0x15 | 0x1A | 0x1C | 0x1F => s("text"),
        0x09 | 0x16 => s(b"\0\xFFbinary"),
        0x26 => [s("key"), s("value")].concat(),
        _ => return None,
    };
    Some([vec![property], value].concat())
}

/// What AUTH and authentication data need beside them.
fn companions(carrier: &Carrier, property: u8) -> Vec<u8> {
    let needs_method = carrier.name == "AUTH" || carrier.name == "CONNECT" && property == id::AUTHENTICATION_DATA;
    if needs_method && property != id::AUTHENTICATION_METHOD { sample(0x15).unwrap() } else { vec![] }
}

//= MQTT-2.2.2-1
#[test]
fn every_property_is_read_where_it_belongs_and_refused_elsewhere() {
    for carrier in CARRIERS {
        for property in 0..=u8::MAX {
            let value = sample(property).unwrap_or(vec![property, 0, 0, 0, 0]);
            let bytes = (carrier.wrap)(&l(&[&companions(carrier, property), &value]));
            if sample(property).is_none() {
                bad(Version::V5, &bytes, Malformed::PropertyUnknown(property));
            } else if !carrier.own.contains(&property) {
                bad(Version::V5, &bytes, Malformed::PropertyMisplaced(property));
            } else {
                let packet = one(Version::V5, &bytes)
                    .unwrap_or_else(|malformed| panic!("{} {property:#x}: {malformed}", carrier.name));
                survives_encoding(Version::V5, &packet);
                let shown = format!("{packet:?}");
                let bare = (carrier.wrap)(&l(&[&companions(carrier, property)]));
                if carrier.name != "AUTH" || property != 0x15 {
                    let bare = format!("{:?}", one(Version::V5, &bare).unwrap());
                    let default = property == id::REQUEST_PROBLEM_INFORMATION;
                    assert_eq!(shown == bare, default, "{} shows {property:#x}", carrier.name);
                }
            }
        }
    }
}

#[test]
fn a_property_that_comes_twice_is_a_protocol_error() {
    for carrier in CARRIERS {
        for property in carrier.own {
            let value = sample(*property).unwrap();
            let bytes = (carrier.wrap)(&l(&[&companions(carrier, *property), &value, &value]));
            if carrier.many.contains(property) {
                let packet = one(Version::V5, &bytes).expect(carrier.name);
                survives_encoding(Version::V5, &packet);
            } else {
                bad(Version::V5, &bytes, Malformed::PropertyTwice(*property));
            }
        }
    }
    assert_eq!(Malformed::PropertyTwice(0x11).reason(), Reason::ProtocolError);
}

#[test]
fn a_property_cut_short_is_truncated_everywhere() {
    for carrier in CARRIERS {
        for property in carrier.own {
            let value = sample(*property).unwrap();
            let before = companions(carrier, *property);
            for len in 1..value.len() {
                let bytes = (carrier.wrap)(&l(&[&before, &value[..len]]));
                bad(Version::V5, &bytes, Malformed::Truncated);
            }
        }
        let bytes = (carrier.wrap)(&[0xFF, 0xFF, 0xFF, 0xFF]);
        bad(Version::V5, &bytes, Malformed::LengthTooLong);
        let bytes = (carrier.wrap)(&[0xFF, 0xFF, 0xFF, 0x7F]);
        bad(Version::V5, &bytes, Malformed::Truncated);
    }
}

//= MQTT-3.3.2-8
//= MQTT-3.3.2-14
//= MQTT-1.5.7-1
#[test]
fn values_out_of_their_range_are_refused() {
    let table: &[(&str, &[u8], Malformed)] = &[
        ("CONNECT", &[0x17, 2], Malformed::PropertyValue(0x17)),
        ("CONNECT", &[0x19, 2], Malformed::PropertyValue(0x19)),
        ("CONNECT", &[0x21, 0, 0], Malformed::PropertyValue(0x21)),
        ("CONNECT", &[0x27, 0, 0, 0, 0], Malformed::PropertyValue(0x27)),
        ("CONNECT", &[0x16, 0, 1, 9], Malformed::AuthenticationMethodMissing),
        ("CONNACK", &[0x21, 0, 0], Malformed::PropertyValue(0x21)),
        ("CONNACK", &[0x24, 2], Malformed::PropertyValue(0x24)),
        ("CONNACK", &[0x25, 2], Malformed::PropertyValue(0x25)),
        ("CONNACK", &[0x27, 0, 0, 0, 0], Malformed::PropertyValue(0x27)),
        ("CONNACK", &[0x28, 0xFF], Malformed::PropertyValue(0x28)),
        ("CONNACK", &[0x29, 3], Malformed::PropertyValue(0x29)),
        ("CONNACK", &[0x2A, 2], Malformed::PropertyValue(0x2A)),
        ("PUBLISH", &[0x01, 2], Malformed::PropertyValue(0x01)),
        ("PUBLISH", &[0x0B, 0], Malformed::PropertyValue(0x0B)),
        ("PUBLISH", &[0x0B, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F], Malformed::LengthTooLong),
        ("PUBLISH", &[0x23, 0, 0], Malformed::TopicAliasZero),
        ("PUBLISH", &[0x08, 0, 0], Malformed::ResponseTopic),
        ("PUBLISH", &[0x08, 0, 3, b'a', b'/', b'+'], Malformed::ResponseTopic),
        ("PUBLISH", &[0x08, 0, 1, b'#'], Malformed::ResponseTopic),
        ("PUBLISH", &[0x03, 0, 1, 0], Malformed::Nul),
        ("PUBLISH", &[0x03, 0, 1, 0xFF], Malformed::NotUtf8),
        ("PUBLISH", &[0x26, 0, 1, 0, 0, 0], Malformed::Nul),
        ("PUBLISH", &[0x26, 0, 0, 0, 1, 0xFF], Malformed::NotUtf8),
        ("will", &[0x01, 2], Malformed::PropertyValue(0x01)),
        ("will", &[0x08, 0, 1, b'+'], Malformed::ResponseTopic),
        ("SUBSCRIBE", &[0x0B, 0], Malformed::PropertyValue(0x0B)),
        ("DISCONNECT", &[0x1F, 0, 1, 0], Malformed::Nul),
        ("AUTH", &[0x16, 0, 1, 9], Malformed::AuthenticationMethodMissing),
    ];
    for (name, property, expected) in table {
        let carrier = CARRIERS.iter().find(|carrier| carrier.name == *name).unwrap();
        bad(Version::V5, &(carrier.wrap)(&l(&[property])), *expected);
    }
    assert_eq!(Malformed::TopicAliasZero.reason(), Reason::TopicAliasInvalid);
    assert_eq!(Malformed::PropertyValue(0x21).reason(), Reason::ProtocolError);
    assert_eq!(Malformed::PropertyMisplaced(0x21).reason(), Reason::MalformedPacket);
}

fn published(list: &[u8]) -> PublishProperties<'_> {
    let Ok(Packet::Publish(publish)) = one(Version::V5, list) else { panic!("{list:02x?}") };
    publish.properties
}

//= MQTT-3.3.2-17
//= MQTT-3.3.2-18
#[test]
fn what_a_server_passes_on_keeps_its_bytes_and_its_order() {
    let user = |key: &str, value: &str| [vec![0x26], s(key), s(value)].concat();
    let kept = [
        user("z", "1"),
        vec![0x01, 1],
        user("a", "2"),
        [vec![0x08], s("answer/here")].concat(),
        [vec![0x09], s(b"\0\x01")].concat(),
        [vec![0x03], s("text/plain")].concat(),
        user("z", "3"),
    ];
    let dropped = [vec![0x23, 0, 7], vec![0x0B, 5], vec![0x02, 0, 0, 0, 9], vec![0x0B, 0xFF, 0x7F]];
    let mut parts: Vec<&[u8]> = vec![];
    for (at, keep) in kept.iter().enumerate() {
        parts.extend(dropped.get(at).map(Vec::as_slice));
        parts.push(keep);
    }
    let bytes = p(0x30, &[&s("t"), &l(&parts)]);
    let properties = published(&bytes);
    let mut forwarded = vec![0xEE];
    properties.forwarded(&mut forwarded);
    assert_eq!(forwarded[1..], kept.concat());
    let users: Vec<_> = properties.user.collect();
    assert_eq!(users, [("z", "1"), ("a", "2"), ("z", "3")]);
    assert_eq!(properties.subscription_ids.collect::<Vec<_>>(), [5, 16_383]);
    assert_eq!((properties.topic_alias, properties.message_expiry_s), (Some(7), Some(9)));
}

#[test]
fn nothing_to_pass_on_appends_nothing() {
    for list in [&[][..], &[0x23, 0, 7], &[0x02, 0, 0, 0, 9, 0x0B, 1]] {
        let bytes = p(0x30, &[&s("t"), &l(&[list])]);
        let mut forwarded = Vec::new();
        published(&bytes).forwarded(&mut forwarded);
        assert!(forwarded.is_empty());
        assert!(published(&bytes).user.is_empty());
    }
}

//= MQTT-3.3.2-8
#[test]
fn an_empty_topic_passes_only_with_an_alias() {
    let bytes = p(0x30, &[&s(""), &l(&[&[0x23, 0, 1]]), b"x"]);
    assert_eq!(published(&bytes).topic_alias, Some(1));
    bad(Version::V5, &p(0x30, &[&s(""), &l(&[&[0x01, 1]]), b"x"]), Malformed::NoTopic);
}

#[test]
fn built_properties_decode_to_what_they_were_built_from() {
    let mut pairs = Vec::new();
    encode::user_property(&mut pairs, "k", "v");
    encode::user_property(&mut pairs, "", "\u{1f980}");
    let built = PublishProperties {
        payload_format_utf8: Some(false),
        response_topic: Some("r"),
        correlation_data: Some(b""),
        content_type: Some("c"),
        user: UserProperties::parse(&pairs).unwrap(),
        ..Default::default()
    };
    let mut list = Vec::new();
    encode::forwarded(&mut list, &built);
    assert_eq!(published(&p(0x30, &[&s("t"), &l(&[&list])])), built);
    assert_eq!(UserProperties::parse(&[]), Ok(UserProperties::default()));
    assert_eq!(UserProperties::parse(&[0x26, 0, 1]), Err(Malformed::Truncated));
    assert_eq!(UserProperties::parse(&[0x01, 1]), Err(Malformed::PropertyMisplaced(0x01)));
}

#[test]
fn lists_that_differ_in_one_property_are_not_equal() {
    let samples: Vec<Vec<u8>> =
        [0x01, 0x02, 0x03, 0x08, 0x09, 0x0B, 0x23, 0x26].into_iter().filter_map(sample).collect();
    let all = p(0x30, &[&s("t"), &l(&samples.iter().map(Vec::as_slice).collect::<Vec<_>>())]);
    let turned = p(0x30, &[&s("t"), &l(&samples.iter().rev().map(Vec::as_slice).collect::<Vec<_>>())]);
    assert_eq!(published(&all), published(&turned), "the order of different properties says nothing");
    for without in 0..samples.len() {
        let mut fewer: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
        fewer.remove(without);
        let fewer = p(0x30, &[&s("t"), &l(&fewer)]);
        assert_ne!(published(&all), published(&fewer), "without {:02x?}", samples[without]);
    }
}
