//! From a configuration and the files that it names to what is asked about clients ([`Chain`]) and what shards go by
//! ([`Policy`]). Runs on an ordinary thread, at the start and at SIGHUP; a file that is wrong makes neither.

use std::time::Duration;

use ahash::RandomState;
use broker::{
    access::{self, Principal, RULES_MAX, Rule, Rules},
    admission::{Policy, Verdict},
    exchange::{Judged, Memory},
    inquiry::{Heard, Remember},
};
use contract::config::{
    Backend, Config, DenyAction, ListenerKind, Mechanism, Permission, RuleFormat, Source, SourceKind,
};
use hashbrown::HashMap;
use mqtt::types::Reason;

use super::{
    hook::Hook,
    password_file::{self, Answer, PasswordFile},
    pool::Question,
    scram::{METHOD, Secret},
    scram_file::{self, ScramFile},
    server::{Server, Wanted},
    token::Tokens,
};
use crate::files;

/// Longest file with keys.
const KEY_BYTES_MAX: u64 = 1 << 20;

/// Who is asked, in order.
#[derive(Debug)]
pub(crate) struct Chain {
    /// Number of the policy that goes with it.
    pub(crate) number: u64,
    asked: Vec<Asked>,
    /// Who is asked about clients that prove themselves in several steps.
    scram: Vec<ScramFile>,
    secret: Secret,
    /// Who is asked what clients may do, where no rule says it.
    server: Option<Server>,
    /// By listener: clients without a user name may come in.
    anonymous: Vec<bool>,
}

/// Somebody who is asked.
#[derive(Debug)]
enum Asked {
    File(PasswordFile),
    Tokens(Box<Tokens>),
    Hook(Box<Hook>),
}

/// Those that compute must not stand still because a server is slow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Threads {
    /// They hash and verify.
    Computing,
    /// They wait for servers.
    Waiting,
}

/// What one of them says.
pub(super) enum Word {
    Allow(Principal),
    Deny(Reason),
    Ignore,
}

impl Chain {
    /// Nobody.
    pub(crate) fn nobody() -> Chain {
        Chain { number: 0, asked: Vec::new(), scram: Vec::new(), secret: [0; 32], server: None, anonymous: Vec::new() }
    }

    /// Asks one after the other, from place `at` on. Takes as long as the passwords are expensive, or as servers take.
    /// An error is the place from which the other threads have to go on.
    pub(crate) fn judge(&self, question: &Question, at: usize, threads: Threads) -> Result<Verdict, usize> {
        for (at, asked) in self.asked.iter().enumerate().skip(at) {
            if threads != asked.threads() {
                return Err(at);
            }
            match asked.judge(question) {
                Word::Allow(principal) => return Ok(Ok(principal)),
                Word::Deny(reason) => return Ok(Err(reason)),
                Word::Ignore => {}
            }
        }
        Ok(self.nobody_knows(question))
    }

    fn nobody_knows(&self, question: &Question) -> Verdict {
        let lets = self.anonymous.get(usize::from(question.listener)).is_some_and(|lets| *lets);
        match (&question.username, lets) {
            (Some(_), _) => Err(Reason::BadUserNameOrPassword),
            (None, true) => Ok(Principal::unproven(None)),
            (None, false) => Err(Reason::NotAuthorized),
        }
    }
}

impl Chain {
    /// Is some server asked?
    pub(crate) fn waits(&self) -> bool {
        self.server.is_some() || self.asked.iter().any(|asked| asked.threads() == Threads::Waiting)
    }

    /// What the server says to a wish that was made `age` ago; `None`: nothing, or it is too late to ask.
    pub(crate) fn permits(&self, wanted: &Wanted, age: Duration) -> Option<Heard> {
        let server = self.server.as_ref()?;
        if age < server.timeout { server.ask(wanted) } else { None }
    }

    /// Judges one step of a client that proves itself in several.
    pub(crate) fn step(&self, method: &str, data: &[u8], memory: Option<Memory>) -> Judged {
        if method != METHOD || self.scram.is_empty() {
            let why = "an authentication method that is not configured any more";
            return Judged::Refused { reason: Reason::BadAuthenticationMethod, why };
        }
        scram_file::judge(&self.scram, &self.secret, data, memory)
    }
}

impl Asked {
    /// Who may ask it.
    fn threads(&self) -> Threads {
        match self {
            Asked::Hook(_) => Threads::Waiting,
            Asked::File(_) | Asked::Tokens(_) => Threads::Computing,
        }
    }

    fn judge(&self, question: &Question) -> Word {
        match self {
            Asked::File(file) => {
                let Some(user) = question.username.as_deref() else { return Word::Ignore };
                match file.ask(user, question.password.as_deref().unwrap_or_default()) {
                    Answer::Right(credential) => {
                        let principal = Principal::unproven(Some(user));
                        Word::Allow(Principal { proven: true, credential, ..principal })
                    }
                    Answer::Wrong => Word::Deny(Reason::BadUserNameOrPassword),
                    Answer::Unknown => Word::Ignore,
                }
            }
            Asked::Tokens(tokens) => tokens.judge(question),
            Asked::Hook(hook) => hook.judge(question),
        }
    }
}

/// The listeners that are open, in the order of their numbers: a configuration that is read later may have others.
pub(crate) type Listeners = Vec<(ListenerKind, String)>;

/// The listeners of a configuration, in its order.
pub(crate) fn listeners(config: &Config) -> Listeners {
    config.listeners.iter().map(|listener| (listener.kind, listener.name.clone())).collect()
}

/// Reads everything that `config` names. An error names key and file.
pub(crate) fn read(
    config: &Config,
    open: &Listeners,
    number: u64,
    (seed, secret): (u64, Secret),
) -> Result<(Policy, Chain), String> {
    let hasher = RandomState::with_seeds(seed, 40, 41, 42);
    let mut credentials: HashMap<Box<str>, u64, RandomState> = HashMap::with_hasher(hasher);
    let mut method_credentials = credentials.clone();
    let (mut asked, mut scram) = (Vec::new(), Vec::new());
    for (index, authenticator) in config.authentication.iter().enumerate().filter(|(_, one)| one.enable) {
        if authenticator.mechanism == Mechanism::Jwt {
            let tokens = Tokens::new(&authenticator.token, seed, |path| read_file(path, KEY_BYTES_MAX));
            let tokens = tokens.map_err(|why| format!("authentication[{index}].{why}"))?;
            asked.push(Asked::Tokens(Box::new(tokens)));
            continue;
        }
        if authenticator.backend == Backend::Http {
            asked.push(Asked::Hook(Box::new(Hook::new(&authenticator.hook, seed))));
            continue;
        }
        let wrong = |why| format!("authentication[{index}].path: {}: {why}", authenticator.path);
        let text = read_file(&authenticator.path, password_file::FILE_BYTES_MAX).map_err(wrong)?;
        if authenticator.mechanism == Mechanism::Scram {
            let file = ScramFile::parse(&text).map_err(wrong)?;
            for (user, proof) in file.proofs() {
                method_credentials.entry(user.into()).or_insert(proof);
            }
            scram.push(file);
            continue;
        }
        let file = PasswordFile::parse(&text).map_err(wrong)?;
        for (user, proof) in file.proofs() {
            // Who is in two files is denied by the first that it has no password for.
            credentials.entry(user.into()).or_insert(proof);
        }
        asked.push(Asked::File(file));
    }
    let lets = |(kind, name): &(ListenerKind, String)| {
        let found = config.listeners.iter().find(|listener| listener.kind == *kind && listener.name == *name);
        found.is_some_and(|listener| listener.allow_anonymous)
    };
    let anonymous: Vec<bool> = open.iter().map(lets).collect();
    let rules = rules_of(config, seed)?;
    let asks = !asked.is_empty() || !scram.is_empty();
    if !asks && rules.as_ref().is_some_and(Rules::names_users) {
        tracing::warn!("rules name users, but nobody is asked who a client is: a user name is believed as it is told");
    }
    let cache = &config.authorization.cache;
    let policy = Policy {
        number,
        asks,
        anonymous: anonymous.clone(),
        rules: rules.map(Into::into),
        disconnects: config.authorization.deny_action == DenyAction::Disconnect,
        remember: Remember {
            answers_max: if cache.enable { cache.max_size } else { 0 },
            ttl_us: u64::from(cache.ttl_ms) * 1000,
        },
        credentials,
        methods: if scram.is_empty() { Vec::new() } else { vec![METHOD] },
        method_credentials,
    };
    let knows = |source: &&Source| source.enable && source.kind == SourceKind::Http;
    let server = config.authorization.sources.iter().find(knows);
    let server = server.map(|source| Server::new(&source.server, config.admission.hook_threads));
    Ok((policy, Chain { number, asked, scram, secret, server, anonymous }))
}

/// The rules of all sources; `None`: everything is allowed.
fn rules_of(config: &Config, seed: u64) -> Result<Option<Rules>, String> {
    let authorization = &config.authorization;
    let sources = || authorization.sources.iter().enumerate().filter(|(_, source)| source.enable);
    if sources().next().is_none() && authorization.deny_subscribe.is_empty() {
        return Ok(None);
    }
    let mut rules = Vec::new();
    for (index, source) in sources() {
        if source.kind == SourceKind::Http {
            rules.push(Rule::server());
            continue;
        }
        let read = read_rules(source).map_err(|why| {
            let path = &source.path;
            format!("authorization.sources[{index}].path: {path}: {why}")
        })?;
        rules.extend(read);
    }
    if rules.len() > RULES_MAX {
        return Err(format!("authorization.sources: {} rules; at most {RULES_MAX} are possible", rules.len()));
    }
    rules.extend(authorization.deny_subscribe.iter().map(|filter| Rule::deny_subscribe(filter)));
    let no_match = sources().next().is_none() || authorization.no_match == Permission::Allow;
    Ok(Some(Rules::new(rules, no_match, seed)))
}

fn read_rules(source: &Source) -> Result<Vec<Rule>, String> {
    let text = read_file(&source.path, access::FILE_BYTES_MAX as u64)?;
    let emqx = match source.format {
        RuleFormat::Auto => looks_like_emqx(&text),
        RuleFormat::Mosquitto => false,
        RuleFormat::Emqx => true,
    };
    let rules = if emqx { access::parse_emqx(&text) } else { access::parse_mosquitto(&text) };
    rules.map_err(|error| error.to_string())
}

/// EMQX's comments begin with a percent sign, its rules with a brace.
fn looks_like_emqx(text: &str) -> bool {
    text.trim_start_matches('\u{feff}').trim_start().starts_with(['{', '%'])
}

fn read_file(path: &str, bytes_max: u64) -> Result<String, String> {
    String::from_utf8(files::read(path, bytes_max)?).map_err(|_| "it is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use contract::config::Listener;

    use super::*;

    #[test]
    fn what_a_listener_allows_is_found_by_its_name_when_others_have_come() {
        let mut config = Config::default();
        let open = listeners(&config);
        let mut other = Listener { name: "another".to_owned(), ..config.listeners[0].clone() };
        (other.allow_anonymous, config.listeners[0].allow_anonymous) = (true, false);
        config.listeners.insert(0, other);
        let (policy, _) = read(&config, &open, 1, (1, [0; 32])).expect("there is nothing to read");
        assert_eq!(policy.anonymous, [false]);
    }

    #[test]
    fn a_file_shows_whose_rules_it_has() {
        for (text, emqx) in [
            ("%% rules\n{allow, all}.", true),
            ("\n {allow, all}.", true),
            ("# rules\ntopic #", false),
            ("user a", false),
            ("", false),
        ] {
            assert_eq!(looks_like_emqx(text), emqx, "{text:?}");
        }
    }
}
