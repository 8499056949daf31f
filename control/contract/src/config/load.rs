//! From what was said to a [`Config`]: every knob judges its value, then the rules between knobs hold.
//! All errors are collected, so that an operator mends a file once.

use alloc::{
    collections::BTreeSet,
    format,
    string::{String, ToString},
    vec::Vec,
};

use toml::de::DeValue;

use super::{
    Config,
    authentication::{
        AUTHENTICATORS_MAX, Authenticator, AuthenticatorKnobs, Backend, HookKnobs, Mechanism, TokenKnobs,
    },
    authorization::{Authorization, AuthorizationKnobs, SOURCES_MAX, ServerKnobs, Source, SourceKind, SourceKnobs},
    catalog::List,
    check,
    knob::{Apply, Knob, Value},
    links::{AcceptKnobs, Cluster, LINKS_MAX, Link, LinkKnobs, Own, SslKnobs},
    listeners::{
        DEFAULT_NAME, LISTENERS_MAX, Listener, ListenerKind, Ssl, SslOptions, Tcp, Tls, Unix, WebSocket, Ws, WsOptions,
        Wss, WssOptions, WssWebSocket,
    },
    section::Section,
    source::{self, ConfigError, Origin, Parsed, Place, Said, Sayings, Sources},
};

const LISTENERS: &str = "listeners.";

/// A configuration that holds, and where each value came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The typed values.
    pub config: Config,
    /// Every knob with its effective value, in the order of the reference.
    pub settings: Vec<Setting>,
}

/// A knob's effective value.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Its key, with names filled in.
    pub key: String,
    /// As the file would write it; secrets as stars.
    pub value: String,
    /// Who said it.
    pub origin: Origin,
    /// The knob.
    pub knob: &'static Knob,
}

/// Reads a configuration, or says everything that is wrong with it.
pub fn load(sources: &Sources<'_>) -> Result<Loaded, Vec<ConfigError>> {
    let mut errors = Vec::new();
    let parsed = source::parse(sources, &mut errors);
    let sayings = source::flatten(&parsed, &mut errors);
    let mut assembly = Assembly { sayings, parsed: &parsed, settings: Vec::new(), errors };
    let mut config = assembly.config(sources.data_dir);
    let Assembly { settings, mut errors, .. } = assembly;
    check::rules(&mut config, &settings, &mut errors);
    if errors.is_empty() { Ok(Loaded { config, settings }) } else { Err(errors) }
}

impl Loaded {
    /// The keys that differ in `next` and take effect only at the next start.
    pub fn waiting(&self, next: &Loaded) -> Vec<String> {
        let differs = |setting: &&Setting| {
            let before = self.settings.iter().find(|before| before.key == setting.key);
            setting.knob.apply == Apply::Restart && before.is_none_or(|before| before.value != setting.value)
        };
        let gone = |setting: &&Setting| {
            setting.knob.apply == Apply::Restart && !next.settings.iter().any(|kept| kept.key == setting.key)
        };
        let changed = next.settings.iter().filter(differs).chain(self.settings.iter().filter(gone));
        changed.map(|setting| setting.key.clone()).collect()
    }
}

/// One table of a list.
struct Member<'a> {
    index: usize,
    origin: Origin,
    table: &'a toml::de::DeTable<'a>,
    place: &'a Place<'a>,
}

struct Assembly<'a> {
    sayings: Sayings<'a>,
    parsed: &'a [Parsed<'a>],
    settings: Vec<Setting>,
    errors: Vec<ConfigError>,
}

impl<'a> Assembly<'a> {
    fn config(&mut self, data_dir: &str) -> Config {
        let data_dir = ("node.data_dir", Value::Text(data_dir.into()));
        Config {
            node: self.section_with("", Some(data_dir)),
            dataplane: self.section(""),
            listeners: self.listeners(),
            authentication: self.authentication(),
            admission: self.section(""),
            authorization: self.authorization(),
            durability: self.section(""),
            mqtt: self.section(""),
            limits: self.section(""),
            retainer: self.section(""),
            flapping_detect: self.section(""),
            sys_topics: self.section(""),
            sys_events: self.section(""),
            cluster: self.cluster(),
            dashboard: self.section(""),
            log: self.section(""),
        }
    }

    fn section<S: Section>(&mut self, name: &str) -> S {
        self.section_with(name, None)
    }

    /// Builds a section whose keys have `name` for `<name>`; one default may be known only at run time.
    fn section_with<S: Section>(&mut self, name: &str, preset: Option<(&str, Value)>) -> S {
        let values: Vec<Value> = S::KNOBS
            .iter()
            .map(|knob| {
                let key = knob.key_for(name);
                let preset = preset.as_ref().filter(|(of, _)| *of == knob.key).map(|(_, value)| value.clone());
                let said = self.sayings.remove(&key);
                self.value(knob, key, said, preset.unwrap_or_else(|| knob.default.value()))
            })
            .collect();
        S::build(&mut values.into_iter())
    }

    /// The value of one knob, noted for `config show`.
    fn value(&mut self, knob: &'static Knob, key: String, said: Option<Said<'a>>, preset: Value) -> Value {
        let (value, origin) = match said {
            None => (preset, Origin::Default),
            Some(said) => match knob.read(&key, &said.found) {
                Ok(value) => (value, said.origin),
                Err(message) => {
                    self.errors.push(ConfigError { origin: said.origin, message });
                    (preset, Origin::Default)
                }
            },
        };
        self.settings.push(Setting { key, value: knob.show(&value), origin, knob });
        value
    }

    /// All listeners, by kind and name.
    fn listeners(&mut self) -> Vec<Listener> {
        let mut named: BTreeSet<(ListenerKind, String)> = [(ListenerKind::Tcp, DEFAULT_NAME.to_string())].into();
        for (key, said) in &self.sayings {
            let rest = key.strip_prefix(LISTENERS).filter(|_| said.knob.is_some());
            let mut parts = rest.into_iter().flat_map(|rest| rest.split('.'));
            if let (Some(kind), Some(name)) = (parts.next().and_then(ListenerKind::parse), parts.next()) {
                named.insert((kind, name.to_string()));
            }
        }
        if named.len() > LISTENERS_MAX {
            let message = format!("{} listeners; a node has at most {LISTENERS_MAX}", named.len());
            self.errors.push(ConfigError { origin: Origin::Default, message });
            return Vec::new();
        }
        named.iter().map(|(kind, name)| self.listener(*kind, name)).collect()
    }

    fn listener(&mut self, kind: ListenerKind, name: &str) -> Listener {
        let prefix = format!("{LISTENERS}{}.{name}.", kind.as_str());
        let place = format!("{prefix}{}", if kind == ListenerKind::Unix { "path" } else { "bind" });
        let first = self.sayings.range(prefix..).next();
        let needs_place = name != DEFAULT_NAME || kind == ListenerKind::Unix;
        if needs_place && !self.sayings.contains_key(&place) {
            let origin = first.map_or(Origin::Default, |(_, said)| said.origin.clone());
            self.errors.push(ConfigError { origin, message: format!("{place} is required") });
        }
        match kind {
            ListenerKind::Tcp => self.section::<Tcp>(name).named(name, None, None),
            ListenerKind::Ssl => {
                let listener: Ssl = self.section(name);
                listener.named(name, Some(Tls::from(self.section::<SslOptions>(name))), None)
            }
            ListenerKind::Ws => {
                let listener: Ws = self.section(name);
                listener.named(name, None, Some(WebSocket::from(self.section::<WsOptions>(name))))
            }
            ListenerKind::Wss => {
                let listener: Wss = self.section(name);
                let tls = Tls::from(self.section::<WssOptions>(name));
                listener.named(name, Some(tls), Some(WebSocket::from(self.section::<WssWebSocket>(name))))
            }
            ListenerKind::Unix => self.section::<Unix>(name).named(name),
        }
    }

    fn cluster(&mut self) -> Cluster {
        let own: Own = self.section("");
        let links = self.members(List::Links, LINKS_MAX, Self::link);
        Cluster { name: own.name, links }
    }

    fn authentication(&mut self) -> Vec<Authenticator> {
        self.members(List::Authentication, AUTHENTICATORS_MAX, |this, member| {
            let (shown, mut sayings) = this.flatten(List::Authentication, &member, &[]);
            let knobs: AuthenticatorKnobs = this.member_section(List::Authentication, &shown, &mut sayings);
            let token: TokenKnobs = this.member_section(List::Authentication, &shown, &mut sayings);
            let keys = [token.secret.is_some(), token.public_key.is_some(), token.jwks.is_some()];
            let hook: HookKnobs = this.member_section(List::Authentication, &shown, &mut sayings);
            let plain = hook.url.as_ref().is_some_and(|url| url.starts_with("http://"));
            let missing = match (knobs.mechanism, knobs.backend) {
                (Mechanism::Scram, Backend::Http) => {
                    Some(format!("{shown}mechanism is \"scram\", which needs backend = \"file\""))
                }
                (Mechanism::PasswordBased | Mechanism::Scram, Backend::File) => {
                    knobs.path.is_empty().then(|| format!("{shown}path is required"))
                }
                (Mechanism::PasswordBased, Backend::Http) => {
                    (!plain).then(|| format!("{shown}url is required, and begins with http://"))
                }
                (Mechanism::Jwt, _) => (keys.iter().filter(|key| **key).count() != 1)
                    .then(|| format!("{shown}mechanism is \"jwt\", which needs one of secret, public_key and jwks")),
            };
            let lists = [("verify_claims", &token.verify_claims), ("body", &hook.body), ("headers", &hook.headers)];
            let unequal = not_pairs(&shown, &lists);
            let wrong = missing.into_iter().chain(unequal);
            let origin = member.origin.clone();
            this.errors.extend(wrong.map(|message| ConfigError { origin: origin.clone(), message }));
            knobs.authenticator(token, hook)
        })
    }

    fn authorization(&mut self) -> Authorization {
        let knobs: AuthorizationKnobs = self.section("");
        let sources: Vec<Source> = self.members(List::Sources, SOURCES_MAX, |this, member| {
            let (shown, mut sayings) = this.flatten(List::Sources, &member, &[]);
            let knobs: SourceKnobs = this.member_section(List::Sources, &shown, &mut sayings);
            let server: ServerKnobs = this.member_section(List::Sources, &shown, &mut sayings);
            let plain = server.url.as_ref().is_some_and(|url| url.starts_with("http://"));
            let missing = match knobs.kind {
                SourceKind::File => knobs.path.is_empty().then(|| format!("{shown}path is required")),
                SourceKind::Http => (!plain).then(|| format!("{shown}url is required, and begins with http://")),
            };
            let lists = [("body", &server.body), ("headers", &server.headers)];
            let unequal = not_pairs(&shown, &lists);
            let origin = member.origin.clone();
            let wrong = missing.into_iter().chain(unequal);
            this.errors.extend(wrong.map(|message| ConfigError { origin: origin.clone(), message }));
            knobs.source(server)
        });
        let cache = self.section("");
        knobs.with(sources, cache)
    }

    /// The members of a list of tables.
    fn members<T>(
        &mut self,
        list: List,
        members_max: usize,
        mut build: impl FnMut(&mut Self, Member<'a>) -> T,
    ) -> Vec<T> {
        let key = list.key();
        let Some(said) = self.sayings.remove(key) else { return Vec::new() };
        let wrong = |message: String| ConfigError { origin: said.origin.clone(), message };
        let (DeValue::Array(array), Some(place)) = (said.found.value, source::place_of(self.parsed, &said.origin))
        else {
            self.errors.push(wrong(format!("{key} must be an array of tables")));
            return Vec::new();
        };
        if array.len() > members_max {
            self.errors.push(wrong(format!("{key} has {} members; at most {members_max} are possible", array.len())));
            return Vec::new();
        }
        let mut members = Vec::with_capacity(array.len());
        for (index, member) in array.iter().enumerate() {
            let origin = place.at(member.span());
            match member.get_ref() {
                DeValue::Table(table) => members.push(build(self, Member { index, origin, table, place })),
                _ => {
                    let message = format!("{key}[{index}] must be a table");
                    self.errors.push(ConfigError { origin, message });
                }
            }
        }
        members
    }

    /// What a member says, and what errors put before its keys. What is required and missing is an error.
    fn flatten(&mut self, list: List, member: &Member<'a>, required: &[&str]) -> (String, Sayings<'a>) {
        let shown = format!("{}[{}].", list.key(), member.index);
        let sayings = source::flatten_member(list, member.table, &shown, member.place, &mut self.errors);
        for required in required {
            if !sayings.contains_key(*required) {
                let message = format!("{shown}{required} is required");
                self.errors.push(ConfigError { origin: member.origin.clone(), message });
            }
        }
        (shown, sayings)
    }

    fn link(&mut self, member: Member<'a>) -> Link {
        let (shown, mut sayings) = self.flatten(List::Links, &member, &["name", "server", "topics"]);
        let Member { origin, table, .. } = member;
        let accepts = sayings.keys().any(|key| key.starts_with("accept."));
        if !accepts && table.iter().any(|(key, _)| key.get_ref() == "accept") {
            // An empty one would let anybody speak for the remote.
            let message = format!("{shown}accept must name a username, a clientid_prefix or a cert");
            self.errors.push(ConfigError { origin, message });
        }
        let knobs: LinkKnobs = self.member_section(List::Links, &shown, &mut sayings);
        let ssl: SslKnobs = self.member_section(List::Links, &shown, &mut sayings);
        let accept =
            if accepts { Some(self.member_section::<AcceptKnobs>(List::Links, &shown, &mut sayings)) } else { None };
        if ssl.enable {
            self.wrong_setting(&shown, "ssl.enable", "must be false: this version has no TLS links");
        }
        knobs.link(accept)
    }

    fn member_section<S: Section>(&mut self, list: List, shown: &str, sayings: &mut Sayings<'a>) -> S {
        let values: Vec<Value> = S::KNOBS
            .iter()
            .map(|knob| {
                let key = list.inside(knob.key).unwrap_or(knob.key);
                self.value(knob, format!("{shown}{key}"), sayings.remove(key), knob.default.value())
            })
            .collect();
        S::build(&mut values.into_iter())
    }

    fn wrong_setting(&mut self, shown: &str, key: &str, text: &str) {
        let key = format!("{shown}{key}");
        let origin = check::origin_of(&self.settings, &key);
        self.errors.push(ConfigError { origin, message: format!("{key} {text}") });
    }
}

/// What in lists of `name=value` is none.
fn not_pairs(shown: &str, lists: &[(&str, &Vec<String>)]) -> Option<String> {
    lists.iter().find_map(|(key, list)| {
        let member = list.iter().find(|member| !member.contains('='))?;
        Some(format!("{shown}{key} has {member:?}, which is not name=value"))
    })
}
