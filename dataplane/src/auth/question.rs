//! What questions to servers have in common: what is filled in, and how often a failure is said. Used on those threads of
//! [`super::pool`] that wait.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use contract::repeats::Repeats;

/// `name=value`, taken apart; the configuration has been checked.
pub(super) fn pairs(list: &[String]) -> Vec<(String, String)> {
    let pairs = list.iter().filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Fills places in, from the left; what was filled in is not looked into again.
pub(super) fn filled(text: &str, fills: &[(&str, impl AsRef<str>)], write: impl Fn(&str) -> String) -> String {
    let mut done = String::with_capacity(text.len() + 32);
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        done.push_str(&rest[..at]);
        rest = &rest[at..];
        match fills.iter().find(|(hole, _)| rest.starts_with(hole)) {
            Some((hole, fill)) => {
                done.push_str(&write(fill.as_ref()));
                rest = &rest[hole.len()..];
            }
            None => {
                done.push_str("${");
                rest = &rest[2..];
            }
        }
    }
    done + rest
}

/// As it may stand in a URL.
pub(super) fn encoded(text: &str) -> String {
    let mut url = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => url.push(char::from(byte)),
            _ => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}

/// Lines about a server that fails, which it does for each question: the first few of a second, and how many there were.
pub(super) struct Complaints {
    repeats: Mutex<Repeats<()>>,
    started: Instant,
}

impl Complaints {
    pub(super) fn new() -> Complaints {
        Complaints { repeats: Mutex::default(), started: Instant::now() }
    }

    /// The server at this address gives no answer.
    pub(super) fn about(&self, url: &str, error: &dyn fmt::Display) {
        let now_us = self.started.elapsed().as_micros() as u64;
        let mut repeats = self.repeats.lock().unwrap_or_else(PoisonError::into_inner);
        for ((), lines) in repeats.over(now_us) {
            tracing::warn!(url, lines, "lines of one second about this server were left out");
        }
        if repeats.allows((), now_us) {
            tracing::warn!(url, %error, "the server that knows clients gives no answer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_filled_in_once_and_never_leaves_its_place() {
        let fills = [("${clientid}", "c/${username}"), ("${username}", ""), ("${topic}", "a b/+")];
        let text = "${topic}?c=${clientid}&u=${username}&${nothing}=$";
        assert_eq!(filled(text, &fills, str::to_owned), "a b/+?c=c/${username}&u=&${nothing}=$");
        let url = filled("/${topic}?c=${clientid}", &fills, encoded);
        assert_eq!(url, "/a%20b%2F%2B?c=c%2F%24%7Busername%7D");
    }
}
