//! A server that is asked over HTTP who a client is. Asked on those threads of [`super::pool`] that wait.
//! Always true: an answer that is late, too long or not understood is no answer, and the next authenticator is asked.

use std::{sync::Arc, time::Duration};

use broker::access::{Principal, Rules};
use contract::config::HookKnobs;
use mqtt::types::Reason;
use serde_json::{Map, Value};
use ureq::Agent;

use super::{
    policy::Word,
    pool::Question,
    question::{Complaints, filled, pairs},
    token::own_rules,
};

/// Longest answer.
const ANSWER_BYTES_MAX: u64 = 256 << 10;

/// A server to ask.
pub(super) struct Hook {
    agent: Agent,
    url: String,
    body: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    seed: u64,
    complaints: Complaints,
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)
    }
}

impl Hook {
    /// The server that the configuration describes. Nothing is sent.
    pub(super) fn new(knobs: &HookKnobs, seed: u64) -> Hook {
        let config = Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(u64::from(knobs.request_timeout_ms))))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .build();
        Hook {
            agent: config.into(),
            url: knobs.url.clone().unwrap_or_default(),
            body: pairs(&knobs.body),
            headers: pairs(&knobs.headers),
            seed,
            complaints: Complaints::new(),
        }
    }

    /// What the server says about a client. Takes as long as `request_timeout` at most.
    pub(super) fn judge(&self, question: &Question) -> Word {
        let Some(body) = self.filled(question) else { return Word::Ignore };
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        match request.send(body.to_string()) {
            Ok(mut response) => {
                let status = response.status().as_u16();
                let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
                self.understood(status, &text.unwrap_or_default(), question.username.as_deref())
            }
            Err(error) => {
                self.complaints.about(&self.url, &error);
                Word::Ignore
            }
        }
    }

    /// The question as JSON; a password that is no text cannot be asked about.
    fn filled(&self, question: &Question) -> Option<Value> {
        let password = str::from_utf8(question.password.as_deref().unwrap_or_default()).ok()?;
        let peer = question.peer.ip().to_string();
        let known = [
            ("${clientid}", question.client.as_str()),
            ("${username}", question.username.as_deref().unwrap_or_default()),
            ("${password}", password),
            ("${peerhost}", peer.as_str()),
        ];
        let body = self.body.iter().map(|(name, value)| (name.clone(), filled(value, &known, str::to_owned).into()));
        let body: Map<String, Value> = body.collect();
        Some(Value::Object(body))
    }

    fn understood(&self, status: u16, text: &str, user: Option<&str>) -> Word {
        let proven = Principal { proven: true, ..Principal::unproven(user) };
        if status == 204 {
            return Word::Allow(proven);
        }
        let answer: Option<Value> = if status == 200 { serde_json::from_str(text).ok() } else { None };
        let Some(answer) = answer else { return Word::Ignore };
        match answer.get("result").and_then(Value::as_str) {
            Some("deny") => return Word::Deny(Reason::BadUserNameOrPassword),
            Some("allow") => {}
            _ => return Word::Ignore,
        }
        // Whoever is allowed with rights that are not understood would get too many.
        let own = match answer.get("acl").map(own_rules) {
            None => None,
            Some(Some(rules)) => Some(Arc::new(Rules::new(rules, false, self.seed))),
            Some(None) => return Word::Deny(Reason::NotAuthorized),
        };
        let expires_ms = match answer.get("expire_at") {
            None => u64::MAX,
            Some(at) => match at.as_u64() {
                Some(seconds) => seconds.saturating_mul(1000),
                None => return Word::Deny(Reason::NotAuthorized),
            },
        };
        let superuser = answer.get("is_superuser") == Some(&Value::Bool(true));
        Word::Allow(Principal { superuser, own, expires_ms, ..proven })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread,
    };

    use super::*;

    /// A server that gives these answers, one per connection, and says what it was asked.
    fn server(answers: &'static [&'static str]) -> (String, thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/auth", listener.local_addr().expect("it is bound"));
        let serve = move || {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().expect("a connection");
                let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
                while !bytes.ends_with(b"}") {
                    let read = stream.read(&mut buffer).expect("a request");
                    assert!(read > 0, "the request ends early");
                    bytes.extend_from_slice(&buffer[..read]);
                }
                asked.push(String::from_utf8(bytes).expect("text"));
                stream.write_all(answer.as_bytes()).expect("it is read");
            }
            asked
        };
        (url, thread::spawn(serve))
    }

    fn hook(url: &str) -> Hook {
        let headers = vec!["x-key=sesame".to_owned()];
        Hook::new(
            &HookKnobs { url: Some(url.to_owned()), headers, request_timeout_ms: 5000, ..HookKnobs::default() },
            1,
        )
    }

    const ALLOW: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 66\r\n\r\n\
                         {\"result\": \"allow\", \"is_superuser\": true, \"expire_at\": 2000000000}";
    const DENY: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 18\r\n\r\n{\"result\": \"deny\"}";
    const YES: &str = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
    const BROKEN: &str = "HTTP/1.1 500 Oops\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    const WIDE: &str =
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 33\r\n\r\n{\"result\": \"allow\", \"acl\": \"all\"}";

    #[test]
    fn a_server_allows_denies_and_passes_on() {
        let (url, asked) = server(&[ALLOW, DENY, YES, BROKEN, WIDE]);
        let hook = hook(&url);
        let judge = || hook.judge(&Question::about("c${username}", Some("alice"), Some("p\"w")));
        assert!(matches!(judge(), Word::Allow(who) if who.superuser && who.expires_ms == 2_000_000_000_000));
        assert!(matches!(judge(), Word::Deny(Reason::BadUserNameOrPassword)));
        assert!(
            matches!(judge(), Word::Allow(who) if !who.superuser && who.user.as_deref() == Some("alice") && who.proven)
        );
        assert!(matches!(judge(), Word::Ignore), "a server that is broken says nothing");
        assert!(matches!(judge(), Word::Deny(Reason::NotAuthorized)), "rights that are not understood");
        let asked = asked.join().expect("the server ends");
        let (head, body) = asked[0].split_once("\r\n\r\n").expect("a body");
        assert!(head.starts_with("POST /auth HTTP/1.1") && head.to_lowercase().contains("x-key: sesame"), "{head}");
        let body: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!((&body["clientid"], &body["password"]), (&"c${username}".into(), &"p\"w".into()));
        assert_eq!(body["peerhost"], "127.0.0.1");
        assert!(matches!(judge(), Word::Ignore), "nor does one that is gone");
    }
}
