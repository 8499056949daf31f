//! A server that is asked over HTTP what clients may do (`authorization.sources` of `type = "http"`). Asked on those threads of
//! [`super::pool`] that wait. Always true: what comes late, is too long or not understood is no answer.

use std::{net::IpAddr, time::Duration};

use broker::{
    access::Action,
    inquiry::{Heard, Wish},
};
use contract::config::{ServerKnobs, ServerMethod};
use mqtt::types::Qos;
use serde_json::{Map, Value};
use ureq::Agent;

use super::question::{Complaints, encoded, filled, pairs};

/// Longest answer.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Places, and what is filled in.
type Fills = [(&'static str, String); 6];

/// [`Wish`], owned.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    client: String,
    user: Option<String>,
    peer: IpAddr,
    action: Action,
    topic: String,
    qos: Qos,
}

impl Wanted {
    pub(crate) fn of(wish: &Wish<'_>) -> Wanted {
        let (client, user) = (wish.client.to_owned(), wish.user.map(str::to_owned));
        Wanted { client, user, peer: wish.peer, action: wish.action, topic: wish.topic.to_owned(), qos: wish.qos }
    }

    fn fills(&self) -> Fills {
        let action = match self.action {
            Action::Publish => "publish",
            Action::Subscribe => "subscribe",
        };
        let (qos, peer) = ((self.qos as u8).to_string(), self.peer.to_canonical().to_string());
        let user = self.user.clone().unwrap_or_default();
        [
            ("${clientid}", self.client.clone()),
            ("${username}", user),
            ("${topic}", self.topic.clone()),
            ("${action}", action.to_owned()),
            ("${qos}", qos),
            ("${peerhost}", peer),
        ]
    }
}

/// A server to ask.
pub(super) struct Server {
    agent: Agent,
    post: bool,
    url: String,
    body: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    pub(super) timeout: Duration,
    complaints: Complaints,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)
    }
}

impl Server {
    /// The server that the configuration describes, asked on as many threads. Nothing is sent.
    pub(super) fn new(knobs: &ServerKnobs, threads: u8) -> Server {
        let timeout = Duration::from_millis(u64::from(knobs.request_timeout_ms));
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections_per_host(usize::from(threads))
            .proxy(None)
            .build();
        Server {
            agent: config.into(),
            post: knobs.method == ServerMethod::Post,
            url: knobs.url.clone().unwrap_or_default(),
            body: pairs(&knobs.body),
            headers: pairs(&knobs.headers),
            timeout,
            complaints: Complaints::new(),
        }
    }

    /// What the server says; `None`: nothing that can be understood. Takes as long as `request_timeout` at most.
    pub(super) fn ask(&self, wanted: &Wanted) -> Option<Heard> {
        let fills = wanted.fills();
        let answer = if self.post { self.post(&fills) } else { self.get(&fills) };
        let heard = answer.and_then(|(status, text)| understood(status, &text));
        if let Err(why) = &heard {
            self.complaints.about(&self.url, why);
        }
        heard.ok()
    }

    fn post(&self, fills: &Fills) -> Result<(u16, String), String> {
        let body: Map<String, Value> =
            self.body.iter().map(|(name, value)| (name.clone(), filled(value, fills, str::to_owned).into())).collect();
        let url = filled(&self.url, fills, encoded);
        let mut request = self.agent.post(&url).header("content-type", "application/json");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        read(request.send(Value::Object(body).to_string()))
    }

    fn get(&self, fills: &Fills) -> Result<(u16, String), String> {
        let mut url = filled(&self.url, fills, encoded);
        for (name, value) in &self.body {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&encoded(name));
            url.push('=');
            url.push_str(&filled(value, fills, encoded));
        }
        let mut request = self.agent.get(&url);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        read(request.call())
    }
}

fn read(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<(u16, String), String> {
    let mut response = answer.map_err(|error| error.to_string())?;
    let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
    Ok((response.status().as_u16(), text.map_err(|error| error.to_string())?))
}

/// EMQX's answers: 200 with a result, or 204 for yes. Anything else says nothing.
fn understood(status: u16, text: &str) -> Result<Heard, String> {
    if status == 204 {
        return Ok(Heard::Allow);
    }
    if status != 200 {
        return Err(format!("status {status}"));
    }
    let answer: Value = serde_json::from_str(text).map_err(|error| format!("an answer that is no JSON: {error}"))?;
    match answer.get("result").and_then(Value::as_str) {
        Some("allow") => Ok(Heard::Allow),
        Some("deny") => Ok(Heard::Deny),
        Some("ignore") => Ok(Heard::Pass),
        _ => Err("an answer without a result".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_those_of_emqx_and_everything_else_is_silence() {
        for (status, text, heard) in [
            (204, "", Some(Heard::Allow)),
            (200, "{\"result\": \"allow\"}", Some(Heard::Allow)),
            (200, "{\"result\": \"deny\"}", Some(Heard::Deny)),
            (200, "{\"result\": \"ignore\"}", Some(Heard::Pass)),
            (200, "{\"result\": \"maybe\"}", None),
            (200, "allow", None),
            (403, "{\"result\": \"allow\"}", None),
            (500, "", None),
        ] {
            assert_eq!(understood(status, text).ok(), heard, "{status} {text}");
        }
    }
}
