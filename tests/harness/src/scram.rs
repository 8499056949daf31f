//! A client of SCRAM-SHA-256, written from RFC 5802 and RFC 7677 apart from the server's side, and AUTH packets.
//! Called by tests of enhanced authentication.
//!
//! Always true: it believes a server only whose last word proves that it knows the user.

use crate::wire::{Connect, Packet, V5, kind, packet, put_bytes, put_length};
use crate::{Raw, SHORT};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

/// The Authentication Method.
pub const METHOD: &str = "SCRAM-SHA-256";

/// Who wants to come in.
#[derive(Clone, Debug)]
pub struct Scram {
    user: String,
    password: String,
    nonce: String,
    expected: Option<String>,
}

impl Scram {
    /// A client with a nonce of its own.
    pub fn new(user: &str, password: &str) -> Self {
        static NONCES: AtomicU32 = AtomicU32::new(0);
        let nonce = format!("nonce-{:08}", NONCES.fetch_add(1, Ordering::Relaxed));
        let user = user.replace('=', "=3D").replace(',', "=2C");
        Self { user, password: password.to_owned(), nonce, expected: None }
    }

    fn bare(&self) -> String {
        format!("n={},r={}", self.user, self.nonce)
    }

    /// The first message.
    pub fn first(&self) -> Vec<u8> {
        format!("n,,{}", self.bare()).into_bytes()
    }

    /// The second message, in answer to the server's first.
    #[track_caller]
    pub fn last(&mut self, challenge: &[u8]) -> Vec<u8> {
        let challenge = std::str::from_utf8(challenge).expect("a challenge is text");
        let said: BTreeMap<&str, &str> =
            challenge.split(',').map(|part| part.split_once('=').expect("attributes have a name")).collect();
        assert!(said["r"].starts_with(&self.nonce) && said["r"].len() >= self.nonce.len() + 16, "{challenge}");
        let salt = STANDARD.decode(said["s"]).expect("the salt is base64");
        let rounds = said["i"].parse().expect("rounds are a number");
        let keys = Keys::of(&self.password, &salt, rounds);
        let unproven = format!("c={},r={}", STANDARD.encode("n,,"), said["r"]);
        let whole = format!("{},{challenge},{unproven}", self.bare());
        let signature = sign(&keys.stored, whole.as_bytes());
        let proof: Vec<u8> = keys.client.iter().zip(&signature).map(|(key, sign)| key ^ sign).collect();
        self.expected = Some(format!("v={}", STANDARD.encode(sign(&keys.server, whole.as_bytes()))));
        format!("{unproven},p={}", STANDARD.encode(proof)).into_bytes()
    }

    /// Does the server know the user?
    pub fn believes(&self, proof: &[u8]) -> bool {
        self.expected.as_deref().map(str::as_bytes) == Some(proof)
    }

    /// Connects step by step; gives the last packet, which is a CONNACK.
    #[track_caller]
    pub fn connect(mut self, broker: SocketAddr, connect: &Connect<'_>) -> (Raw, Packet) {
        let mut properties = connect.properties.to_vec();
        properties.extend(properties_of(METHOD, &self.first()));
        let mut raw = Raw::open(broker);
        raw.speak(V5);
        raw.send(&Connect { properties: &properties, ..connect.clone() }.bytes());
        let packet = raw.next(SHORT).expect("there is an answer");
        if packet.kind != kind::AUTH {
            return (raw, packet);
        }
        let last = self.last(&data_of(&packet));
        raw.send(&auth(0x18, METHOD, &last));
        let connack = raw.expect(kind::CONNACK);
        if connack.reason() == 0 {
            let proof = format!("\x16\0{}", char::from(self.expected.as_ref().map_or(0, |said| said.len() as u8)));
            let at = connack.body.windows(3).position(|part| part == proof.as_bytes()).expect("there is a proof");
            assert!(self.believes(&connack.body[at + 3..][..usize::from(connack.body[at + 2])]), "a false server");
        }
        (raw, connack)
    }
}

struct Keys {
    client: Vec<u8>,
    stored: Vec<u8>,
    server: Vec<u8>,
}

impl Keys {
    fn of(password: &str, salt: &[u8], rounds: u32) -> Self {
        let mut salted = [0; digest::SHA256_OUTPUT_LEN];
        let rounds = NonZeroU32::new(rounds).expect("there are rounds");
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, password.as_bytes(), &mut salted);
        let client = sign(&salted, b"Client Key");
        let stored = digest::digest(&digest::SHA256, &client).as_ref().to_vec();
        Self { client, stored, server: sign(&salted, b"Server Key") }
    }
}

fn sign(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

/// A line of a server's file.
pub fn line(user: &str, password: &str, rounds: u32) -> String {
    let salt = format!("salt of {user}");
    let keys = Keys::of(password, salt.as_bytes(), rounds);
    let [salt, stored, server] = [salt.as_bytes(), &keys.stored, &keys.server].map(|bytes| STANDARD.encode(bytes));
    format!("{user}:SCRAM-SHA-256${rounds}:{salt}${stored}:{server}\n")
}

/// The two properties of an authentication, one after the other.
pub fn properties_of(method: &str, data: &[u8]) -> Vec<u8> {
    let mut properties = vec![0x15];
    put_bytes(&mut properties, method.as_bytes());
    properties.push(0x16);
    put_bytes(&mut properties, data);
    properties
}

/// AUTH.
pub fn auth(reason: u8, method: &str, data: &[u8]) -> Vec<u8> {
    let properties = properties_of(method, data);
    let mut body = vec![reason];
    put_length(&mut body, properties.len());
    body.extend(properties);
    packet(kind::AUTH << 4, &body)
}

/// The data of an AUTH that has the method and the data, in the order of their numbers, and nothing else.
#[track_caller]
pub fn data_of(packet: &Packet) -> Vec<u8> {
    let at = packet.body.windows(METHOD.len()).position(|part| part == METHOD.as_bytes());
    let at = at.unwrap_or_else(|| panic!("no method: {packet:?}")) + METHOD.len();
    assert_eq!(packet.body[at], 0x16, "{packet:?}");
    packet.body[at + 3..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_that_of_the_rfc_and_a_client_says_what_stands_there() {
        let keys = Keys::of("pencil", &STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64"), 4096);
        assert_eq!(STANDARD.encode(&keys.stored), "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=");
        let mut client = Scram::new("user", "pencil");
        client.nonce = "rOprNGfwEbeRWgbNEkqO".to_owned();
        let challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        assert!(client.last(challenge).ends_with(b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="));
        assert!(client.believes(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
    }
}
