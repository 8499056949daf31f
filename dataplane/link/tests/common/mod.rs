//! What the tests of this package share: the captured packets, terms as trees, and EMQX's own print of terms, which is
//! an oracle that no line of ours had a part in.

#![allow(dead_code, reason = "every test binary uses its own part of this module")]

pub mod acceptor;
pub mod terms;

use mqtt::codec::{self, Packet};
use mqtt::types::Version;
use serde_json::Value;

/// One captured or generated packet.
pub struct Vector {
    pub id: String,
    pub packet: String,
    pub op: Option<String>,
    pub compressed: bool,
    pub label: String,
    pub packet_bytes: Option<Vec<u8>>,
    pub payload_bytes: Option<Vec<u8>>,
    pub printed: Option<String>,
}

/// One packet of a conversation.
#[derive(Clone)]
pub struct Said {
    pub t_ms: u64,
    pub connection: u64,
    pub by_emqx: bool,
    pub packet: String,
    pub bytes: Option<Vec<u8>>,
}

/// One conversation.
pub struct Exchange {
    pub id: String,
    pub version: String,
    pub label: String,
    pub packets: Vec<Said>,
}

fn file() -> Value {
    serde_json::from_str(include_str!("../vectors/emqx.json")).expect("the vectors are JSON")
}

fn hex(value: &Value) -> Option<Vec<u8>> {
    let text = value.as_str()?;
    Some((0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect())
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_string()
}

pub fn vectors() -> Vec<Vector> {
    let file = file();
    let rows = file["vectors"].as_array().expect("vectors");
    rows.iter()
        .map(|row| Vector {
            id: text(&row[0]),
            packet: text(&row[3]),
            op: row[4].as_str().map(String::from),
            compressed: row[5].as_bool().unwrap_or(false),
            label: text(&row[6]),
            packet_bytes: hex(&row[7]),
            payload_bytes: hex(&row[8]),
            printed: row[9].as_str().map(String::from),
        })
        .collect()
}

pub fn exchanges() -> Vec<Exchange> {
    let file = file();
    let rows = file["exchanges"].as_array().expect("exchanges");
    rows.iter()
        .map(|row| Exchange {
            id: text(&row["id"]),
            version: text(&row["version"]),
            label: text(&row["label"]),
            packets: row["packets"].as_array().expect("packets").iter().map(said).collect(),
        })
        .collect()
}

fn said(row: &Value) -> Said {
    Said {
        t_ms: row[0].as_u64().expect("time"),
        connection: row[1].as_u64().expect("connection"),
        by_emqx: row[2] == "emqx",
        packet: text(&row[3]),
        bytes: hex(&row[4]),
    }
}

/// Decodes bytes that hold exactly one packet.
pub fn one_packet(bytes: &[u8]) -> Packet<'_> {
    let raw = codec::split(bytes, bytes.len()).expect("well-formed").expect("whole");
    assert_eq!(raw.total, bytes.len(), "one packet and nothing else");
    codec::decode(Version::V5, raw).expect("valid packet")
}

/// Takes every packet from `stream` and hands it to `handle`.
pub fn each_packet(stream: &mut Vec<u8>, mut handle: impl FnMut(Packet<'_>)) {
    let bytes = std::mem::take(stream);
    let mut at = 0;
    while let Some(raw) = codec::split(&bytes[at..], 16 << 20).expect("what we wrote is well-formed") {
        at += raw.total;
        handle(codec::decode(Version::V5, raw).expect("what we wrote is valid"));
    }
    assert_eq!(at, bytes.len(), "what we wrote ends with a whole packet");
}

/// A small seeded generator.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
