//! What was said and what was heard, as far as the payload tells: who, the how manieth, and a filler that
//! shows damage. Shared by clients and the judge.

use harness::wire::Received;

/// Place of a message among those of its publisher.
pub type Number = u32;

/// One thing that a publisher said.
pub struct Publication {
    /// Topic.
    pub topic: String,
    /// Payload; empty: a retained value is deleted.
    pub payload: Vec<u8>,
    /// To be retained.
    pub retain: bool,
    /// The turn in which it was sent first.
    pub said_at: u64,
    /// The broker has promised it.
    pub acked: bool,
}

/// One thing that a subscriber heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Heard {
    /// Who said it.
    pub publisher: u16,
    /// The how manieth of its messages it was.
    pub number: Number,
}

/// The payload of a message; `Some(false)` for `retain` deletes, so it is empty.
pub fn payload(publisher: u16, number: Number, filler: usize, retain: Option<bool>) -> Vec<u8> {
    if retain == Some(false) {
        return Vec::new();
    }
    let mut payload = format!("{publisher} {number} {filler} ").into_bytes();
    payload.resize(payload.len() + filler, filler_byte(number));
    payload
}

/// Reads a payload back; the error says how it was damaged.
pub fn heard(message: &Received) -> Result<Heard, String> {
    let damaged = || format!("damaged payload on {}: {:?}", message.topic, String::from_utf8_lossy(&message.payload));
    let mut parts = message.payload.splitn(4, |byte| *byte == b' ');
    let mut number =
        || parts.next().and_then(|part| std::str::from_utf8(part).ok()?.parse::<u32>().ok()).ok_or_else(damaged);
    let publisher = u16::try_from(number()?).map_err(|_| damaged())?;
    let (nth, filler) = (number()?, number()? as usize);
    let rest = parts.next().ok_or_else(damaged)?;
    if rest.len() != filler || rest.iter().any(|byte| *byte != filler_byte(nth)) {
        return Err(damaged());
    }
    Ok(Heard { publisher, number: nth })
}

fn filler_byte(number: Number) -> u8 {
    b'a' + (number % 26) as u8
}
