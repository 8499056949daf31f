//! What is traced of whom, and how it is shown.

use std::fs;

use broker::surface::ConnId;
use contract::trace::{FILE_BYTES_MAX, Payload};

use super::*;

fn trace(subject: Subject, payload: Payload) -> Trace {
    Trace { name: "t".into(), subject, start_ms: 10, end_ms: 20, payload }
}

fn who(client: &str) -> Who<'_> {
    let conn = ConnId { index: 0, generation: 0 };
    Who { conn, client, username: None, peer: ([10, 0, 0, 7], 1).into(), listener: 0 }
}

/// A tracer whose traces run, and what it would write.
fn tracer(traces: &[Trace]) -> (Tracer, mpsc::Receiver<Line>) {
    let (lines, written) = mpsc::sync_channel(LINES_MAX);
    let mut tracer = Tracer::new(Sink { lines, lost: Arc::default() });
    tracer.take(traces);
    assert_eq!(tracer.look(15), (true, Some(20)));
    (tracer, written)
}

/// What a line says behind time, client and address.
fn said(line: &Line) -> String {
    let line = show::line(line);
    let (_, said) = line.split_once("10.0.0.7:1 ").expect("the address");
    said.trim_end().to_owned()
}

/// PUBLISH with QoS 1 and packet id 7 in MQTT 3.1.1.
fn publish(topic: &str, payload: &[u8]) -> Vec<u8> {
    let length = 2 + topic.len() + 2 + payload.len();
    let mut bytes = vec![0x32, 0x80 | (length % 128) as u8, (length / 128) as u8, 0, topic.len() as u8];
    bytes.extend_from_slice(topic.as_bytes());
    bytes.extend_from_slice(&[0, 7]);
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn traces_run_from_their_start_to_their_end() {
    let mut tracer = Tracer::default();
    tracer.take(&[trace(Subject::Client("c".into()), Payload::Hidden)]);
    assert_eq!(tracer.look(9), (false, Some(10)));
    assert_eq!(tracer.look(10), (true, Some(20)));
    assert_eq!(tracer.look(19), (false, Some(20)));
    assert_eq!(tracer.look(20), (true, None));
}

#[test]
fn whoever_a_trace_is_not_about_has_no_tap() {
    let client = |name: &str| Subject::Client(name.into());
    let address = |text: &str| Subject::Address(text.into());
    for (subject, taps) in [
        (client("c"), true),
        (client("C"), false),
        (address("10.0.0.7"), true),
        (address("10.0.0.8"), false),
        (Subject::Topic("a".into()), true),
    ] {
        let (tracer, _written) = tracer(&[trace(subject.clone(), Payload::Hidden)]);
        assert_eq!(tracer.tap(&who("c"), Version::V311).is_some(), taps, "{subject:?}");
    }
}

#[test]
fn payloads_are_shown_as_the_trace_asks_and_long_ones_in_part() {
    for (payload, shown) in [(Payload::Hidden, ""), (Payload::Text, " \"hi\""), (Payload::Hex, " 6869")] {
        let (tracer, written) = tracer(&[trace(Subject::Client("c".into()), payload)]);
        let tap = tracer.tap(&who("c"), Version::V311).expect("a tap");
        tap.packet(Direction::In, &publish("a/b", b"hi"));
        let line = written.try_recv().expect("a line");
        assert_eq!(said(&line), format!("in  PUBLISH \"a/b\" q1 r0 d0 id 7, 2 bytes{shown}"));
    }
    let (tracer, written) = tracer(&[trace(Subject::Client("c".into()), Payload::Text)]);
    let long = publish("a", &[b'x'; 9000]);
    tracer.tap(&who("c"), Version::V311).expect("a tap").packet(Direction::Out, &long);
    let line = said(&written.try_recv().expect("a line"));
    assert!(
        line.starts_with("out PUBLISH \"a\" q1 r0 d0 id 7, 9000 bytes \"xxx") && line.ends_with("x\"..."),
        "{line}"
    );
}

#[test]
fn a_trace_of_a_topic_sees_its_messages_and_nothing_else() {
    let (tracer, written) = tracer(&[trace(Subject::Topic("a/+".into()), Payload::Hidden)]);
    let tap = tracer.tap(&who("c"), Version::V311).expect("a tap");
    let both = [publish("b", b""), vec![0xd0, 0], publish("a/b", b"1")].concat();
    tap.packets_out(&both);
    tracer.event(&Event::Subscribed { who: who("c"), filter: "a/+", qos: mqtt::types::Qos::AtLeastOnce });
    tracer.event(&Event::Disconnected { who: who("c"), why: "eof" });
    let lines: Vec<String> = written.try_iter().map(|line| said(&line)).collect();
    assert_eq!(lines, ["out PUBLISH \"a/b\" q1 r0 d0 id 7, 1 bytes", "-- subscribed to \"a/+\" with QoS 1"]);
}

#[test]
fn a_password_is_never_shown() {
    let (tracer, written) = tracer(&[trace(Subject::Client("c".into()), Payload::Text)]);
    let connect = b"\x10\x19\0\x04MQTT\x04\xc2\0\x3c\0\x01c\0\x02me\0\x06secret";
    tracer.tap(&who("c"), Version::V311).expect("a tap").packet(Direction::In, connect);
    let line = said(&written.try_recv().expect("a line"));
    assert_eq!(line, "in  CONNECT \"c\", version 4, clean start true, keep alive 60 s, user \"me\", with a password");
}

#[test]
fn a_writer_that_does_not_come_along_costs_lines_that_are_counted() {
    let (lines, _stuck) = mpsc::sync_channel(1);
    let sink = Sink { lines, lost: Arc::default() };
    let mut tracer = Tracer::new(sink.clone());
    tracer.take(&[trace(Subject::Client("c".into()), Payload::Hidden)]);
    tracer.look(15);
    (0..4).for_each(|_| tracer.event(&Event::Disconnected { who: who("c"), why: "eof" }));
    assert_eq!(sink.lost.load(Ordering::Relaxed), 3);
}

#[test]
fn a_file_is_bounded_and_one_that_is_gone_is_not_made_again() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("t.log");
    writer::append(&path, "gone\n").expect("no error");
    assert!(!path.exists());
    let file = fs::File::create(&path).expect("a file");
    file.set_len(FILE_BYTES_MAX - 100).expect("a sparse file");
    for _ in 0..3 {
        writer::append(&path, &"0123456789\n".repeat(20)).expect("it is written");
    }
    let text = fs::read(&path).expect("a file");
    assert_eq!(text.len() as u64, FILE_BYTES_MAX);
    let end = String::from_utf8_lossy(&text[text.len() - 100..]).into_owned();
    assert!(end.starts_with("0123456789\n") && end.trim_end().ends_with("the rest is not written"), "{end}");
}
