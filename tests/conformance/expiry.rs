//! Message expiry (3.3.2.3.3): what waits too long is not sent, what is sent says how long it has left.

use crate::connect::{keep, ten_minutes};
use crate::everywhere;
use crate::packets::{Properties, four, id};
use harness::raw::Raw;
use harness::wire::{self, Publish, V5, kind};
use std::time::Duration;

//= MQTT-3.3.2-5
//= MQTT-3.3.2-6
#[test]
fn what_waits_beyond_its_expiry_is_not_sent_and_the_rest_says_what_is_left() {
    everywhere(|at| {
        let (own, topic, expiry) = (at.id(), at.topic(), ten_minutes());
        let connect = keep(V5, &own, &expiry);
        let mut raw = Raw::connect(at.mqtt(), &connect);
        raw.subscribe(&topic, 1);
        drop(raw);
        let mut publisher = at.client(V5);
        for (number, seconds) in (1..).zip([Some(1), Some(100), None]) {
            let properties = seconds.map_or(vec![], |seconds| four(id::MESSAGE_EXPIRY, seconds));
            let payload = [number as u8];
            // The same as retained messages, and as queued ones.
            let publish = Publish { properties: &properties, ..Publish::new(&topic, &payload).acked(1, number) };
            publisher.send(&publish.bytes(V5));
            publisher.expect(kind::PUBACK);
            let other = format!("{topic}/{number}");
            let publish = Publish { retain: true, topic: &other, ..publish };
            publisher.send(&publish.bytes(V5));
            publisher.expect(kind::PUBACK);
        }
        // Not a bound but the subject: the time that passes.
        std::thread::sleep(Duration::from_millis(2100));
        let left = |got: &wire::Received| Properties::read(&got.properties).number(id::MESSAGE_EXPIRY);
        let mut raw = Raw::connect(at.mqtt(), &connect);
        let mut late = at.client(V5);
        late.subscribe(&format!("{topic}/+"), 1);
        for waiting in [&mut raw, &mut late] {
            let mut came = [waiting.message(), waiting.message()];
            came.sort_by_key(|got| got.payload.clone());
            let [second, third] = came;
            assert_eq!((&second.payload[..], &third.payload[..]), (&[2][..], &[3][..]));
            let seconds = left(&second).expect("it says what is left");
            assert!((80..=98).contains(&seconds), "two seconds have passed: {seconds}");
            assert_eq!(left(&third), None, "its publisher set none, and none is added");
            waiting.ping();
        }
    });
}

//= MQTT-4.3.3-7
//= MQTT-4.3.3-13
#[test]
fn what_was_sent_does_not_expire_and_its_handshake_goes_on() {
    everywhere(|at| {
        let (own, topic, expiry) = (at.id(), at.topic(), ten_minutes());
        let connect = keep(V5, &own, &expiry);
        let mut first = Raw::connect(at.mqtt(), &connect);
        first.subscribe(&topic, 2);
        let mut publisher = at.client(V5);
        let one = four(id::MESSAGE_EXPIRY, 1);
        let publish = Publish { properties: &one, ..Publish::new(&topic, b"begun").acked(2, 1) };
        publisher.send(&publish.bytes(V5));
        publisher.expect(kind::PUBREC);
        let packet_id = first.expect(kind::PUBLISH).publish(V5).packet_id;
        std::thread::sleep(Duration::from_millis(1600));
        // As receiver: the message has expired, its handshake has not.
        publisher.send(&Publish { dup: true, ..publish }.bytes(V5));
        assert_eq!(publisher.expect(kind::PUBREC).packet_id(), 1);
        publisher.send(&wire::ack(kind::PUBREL, 1));
        assert_eq!(publisher.expect(kind::PUBCOMP).reason(), 0);
        // As sender.
        drop(first);
        let mut second = Raw::connect(at.mqtt(), &connect);
        let got = second.message();
        assert_eq!((got.payload.as_slice(), got.dup, got.packet_id), (&b"begun"[..], true, packet_id));
        let id = second.expect(kind::PUBREL).packet_id();
        second.send(&wire::ack(kind::PUBCOMP, id));
        second.ping();
    });
}
