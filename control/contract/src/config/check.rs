//! Rules between knobs, and what a string must be beyond its length.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::net::SocketAddr;

use mqtt::topic::{Filter, Topic};

use super::{
    Config, Pin,
    authorization::{Source, SourceKind},
    knob::{quote, shorten},
    links::{Link, SERVER_PORT, SERVERS_MAX, TOPICS_MAX},
    listeners::{CertificateUser, ListenerKind, TLS_VERSIONS, Tls, Verify, WebSocket},
    load::Setting,
    node::{DATA_DIR_BYTES_MAX, SHARDS_MAX},
    source::{ConfigError, Origin},
};
use crate::ids::{self, NodeName};

/// Everything on `$LINK` belongs to the links themselves.
const LINK_TOPICS: &str = "$LINK";

/// Most filters that are refused to everybody.
const DENIED_MAX: usize = 256;

struct Rules<'a> {
    settings: &'a [Setting],
    errors: &'a mut Vec<ConfigError>,
}

/// Who said `key`.
pub(super) fn origin_of(settings: &[Setting], key: &str) -> Origin {
    settings.iter().find(|setting| setting.key == key).map_or(Origin::Default, |setting| setting.origin.clone())
}

/// Checks a configuration whose knobs are all in bounds, and brings its addresses into one form.
pub(super) fn rules(config: &mut Config, settings: &[Setting], errors: &mut Vec<ConfigError>) {
    let mut rules = Rules { settings, errors };
    if let Err(error) = NodeName::parse(&config.node.name) {
        rules.wrong("node.name", &format!("is {}: {error}", quote(&config.node.name)));
    }
    if let Err(error) = ids::check_name(&config.cluster.name) {
        rules.wrong("cluster.name", &format!("is {}: {error}", quote(&config.cluster.name)));
    }
    if config.node.data_dir.len() > DATA_DIR_BYTES_MAX {
        // The default of this machine, which no knob has judged.
        let (dir, bytes) = (quote(&config.node.data_dir), config.node.data_dir.len());
        rules.wrong("node.data_dir", &format!("is {dir}, which has {bytes} bytes; at most {DATA_DIR_BYTES_MAX} fit"));
    }
    rules.shards(config);
    rules.listeners(config);
    if u64::from(config.limits.hop_batch_bytes) > config.limits.staged_bytes_max {
        let (batch, staged) = (config.limits.hop_batch_bytes, config.limits.staged_bytes_max);
        rules.wrong("limits.hop_batch_bytes", &format!("must not exceed limits.staged_bytes_max; {batch} > {staged}"));
    }
    rules.links(config);
    rules.deny_subscribe(&config.authorization.deny_subscribe);
    let asked = |source: &&Source| source.enable && source.kind == SourceKind::Http;
    let servers = config.authorization.sources.iter().filter(asked).count();
    if servers > 1 {
        rules.wrong("authorization.sources", &format!("has {servers} servers; one is possible"));
    }
}

impl Rules<'_> {
    fn wrong(&mut self, key: &str, text: &str) {
        let origin = origin_of(self.settings, key);
        self.errors.push(ConfigError { origin, message: format!("{key} {text}") });
    }

    /// A list of CPUs is one per shard, and says how many shards there are when nothing else does.
    fn shards(&mut self, config: &mut Config) {
        let Pin::List(cpus) = &config.dataplane.pin else {
            return;
        };
        if config.dataplane.shards == 0 && cpus.len() as u64 <= SHARDS_MAX {
            config.dataplane.shards = cpus.len() as u16;
        }
        let shards = usize::from(config.dataplane.shards);
        if cpus.len() != shards {
            self.wrong(
                "dataplane.pin",
                &format!("must name one CPU per shard; got {} for {shards} shards", cpus.len()),
            );
        }
    }

    fn listeners(&mut self, config: &mut Config) {
        let asks = config.authentication.iter().any(|authenticator| authenticator.enable);
        let mut taken: Vec<(String, String)> = Vec::new();
        if !config.dashboard.http_bind.ends_with(":0") {
            taken.push((config.dashboard.http_bind.clone(), "dashboard.listeners.http".into()));
        }
        for listener in config.listeners.iter_mut().filter(|listener| listener.enable) {
            let place = format!("listeners.{}.{}", listener.kind.as_str(), listener.name);
            if let Some(mountpoint) = &listener.mountpoint {
                self.mountpoint(&place, mountpoint);
            }
            if let Some(tls) = &listener.tls {
                self.tls(&format!("{place}.ssl_options"), tls);
            }
            if let Some(websocket) = &listener.websocket {
                self.websocket(&place, websocket);
            }
            if listener.kind == ListenerKind::Unix {
                self.unix(&place, &listener.mode);
                listener.allow_anonymous = !asks;
                taken.push((listener.bind.clone(), place));
                continue;
            }
            let bind = format!("{place}.bind");
            let loopback = listener.bind.parse().is_ok_and(|address: SocketAddr| address.ip().is_loopback());
            if !loopback && !listener.allow_anonymous && !asks {
                let address = &listener.bind;
                self.wrong(
                    &bind,
                    &format!(
                        "is {address}, which others can reach, and clients need no password: \
                         bind to loopback, configure authentication, or set {place}.allow_anonymous = true"
                    ),
                );
            }
            listener.allow_anonymous |= loopback && !asks;
            match taken.iter().find(|(address, _)| *address == listener.bind) {
                Some((address, other)) => self.wrong(&bind, &format!("is {address}, which {other} already has")),
                None if listener.bind.ends_with(":0") => {}
                None => taken.push((listener.bind.clone(), place)),
            }
        }
    }

    fn deny_subscribe(&mut self, filters: &[String]) {
        let key = "authorization.deny_subscribe";
        if filters.len() > DENIED_MAX {
            self.wrong(key, &format!("has {} filters; at most {DENIED_MAX} are possible", filters.len()));
        }
        for filter in filters {
            if let Err(error) = Filter::parse(filter, usize::from(u16::MAX)) {
                self.wrong(key, &format!("has {}: {error}", shorten(&quote(filter))));
            }
        }
    }

    fn tls(&mut self, place: &str, tls: &Tls) {
        if tls.certfile.is_none() {
            self.wrong(&format!("{place}.certfile"), "is required");
        }
        if tls.versions.is_empty() {
            self.wrong(&format!("{place}.versions"), "must name at least one version");
        }
        for version in tls.versions.iter().filter(|version| !TLS_VERSIONS.contains(&version.as_str())) {
            let text = format!("has {}; known are {}", shorten(&quote(version)), TLS_VERSIONS.map(quote).join(", "));
            self.wrong(&format!("{place}.versions"), &text);
        }
        if tls.verify == Verify::Peer {
            if tls.cacertfile.is_none() {
                self.wrong(&format!("{place}.verify"), "is \"verify_peer\", which needs a cacertfile");
            }
            return;
        }
        // Who writes these believes that somebody is checked.
        for (said, key) in [
            (tls.fail_if_no_peer_cert, "fail_if_no_peer_cert"),
            (tls.crlfile.is_some(), "crlfile"),
            (tls.user != CertificateUser::Disabled, "peer_cert_as_username"),
        ] {
            if said {
                self.wrong(&format!("{place}.{key}"), &format!("needs {place}.verify = \"verify_peer\""));
            }
        }
    }

    fn websocket(&mut self, place: &str, websocket: &WebSocket) {
        let path = &websocket.mqtt_path;
        if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?' && byte != b'#') {
            let text = format!("is {}; a path begins with / and has no ? or #", shorten(&quote(path)));
            self.wrong(&format!("{place}.websocket.mqtt_path"), &text);
        }
    }

    fn mountpoint(&mut self, place: &str, mountpoint: &str) {
        let why = match Topic::parse(mountpoint, usize::from(u16::MAX)) {
            Err(error) => error.to_string(),
            Ok(_) if mountpoint.starts_with('$') => "topics that begin with $ are the broker's own".into(),
            Ok(_) if !mountpoint.ends_with('/') => "it must end with /".into(),
            Ok(_) => return,
        };
        self.wrong(&format!("{place}.mountpoint"), &format!("is {}: {why}", shorten(&quote(mountpoint))));
    }

    fn unix(&mut self, place: &str, mode: &str) {
        if u32::from_str_radix(mode, 8).is_err() || !mode.bytes().all(|digit| (b'0'..=b'7').contains(&digit)) {
            self.wrong(&format!("{place}.mode"), &format!("must be octal digits, as in \"0660\"; got {}", quote(mode)));
        }
    }

    fn links(&mut self, config: &mut Config) {
        let mut names: Vec<String> = Vec::new();
        let own = config.cluster.name.clone();
        for (index, link) in config.cluster.links.iter_mut().enumerate() {
            let key = |part: &str| format!("cluster.links[{index}].{part}");
            // Empty: it was missing or out of bounds, and that was said already.
            if !link.name.is_empty() {
                if let Err(error) = ids::check_name(&link.name) {
                    self.wrong(&key("name"), &format!("is {}: {error}", quote(&link.name)));
                } else if link.name == own {
                    self.wrong(&key("name"), &format!("is {}, which is cluster.name: that is us", quote(&own)));
                } else if names.contains(&link.name) {
                    self.wrong(&key("name"), &format!("is {} again: duplicated_cluster_links", quote(&link.name)));
                }
                names.push(link.name.clone());
            }
            self.servers(&key("server"), link);
            self.topics(&key("topics"), &link.topics);
        }
    }

    fn servers(&mut self, key: &str, link: &mut Link) {
        if link.servers.len() > SERVERS_MAX {
            self.wrong(key, &format!("names {} addresses; at most {SERVERS_MAX} are possible", link.servers.len()));
            return;
        }
        let said = self.settings.iter().any(|setting| setting.key == key && setting.origin != Origin::Default);
        if said && link.servers.is_empty() {
            self.wrong(key, "must name at least one address");
        }
        for server in &mut link.servers {
            match server_of(server) {
                Ok(address) => *server = address,
                Err(why) => self.wrong(key, &format!("has {}: {why}", shorten(&quote(server)))),
            }
        }
    }

    fn topics(&mut self, key: &str, topics: &[String]) {
        if topics.len() > TOPICS_MAX {
            self.wrong(key, &format!("has {} filters; at most {TOPICS_MAX} are possible", topics.len()));
            return;
        }
        for (place, topic) in topics.iter().enumerate() {
            let shown = shorten(&quote(topic));
            if let Err(error) = Filter::parse(topic, usize::from(u16::MAX)) {
                self.wrong(key, &format!("has {shown}: {error} (invalid_topics)"));
            } else if topic == LINK_TOPICS || topic.starts_with("$LINK/") {
                self.wrong(key, &format!("has {shown}: $LINK belongs to the links themselves (topic_not_allowed)"));
            } else if topic.starts_with("$share/") || topic.starts_with("$exclusive/") {
                self.wrong(key, &format!("has {shown}: name the filter itself, groups need no mention here"));
            } else {
                let mut others = topics.iter().enumerate().filter(|(other, _)| *other != place);
                // Of two equal filters the second is the redundant one.
                let wider = others.find(|(other, wide)| covers(wide, topic) && (topic != *wide || *other < place));
                if let Some((_, wide)) = wider {
                    let wide = shorten(&quote(wide));
                    self.wrong(key, &format!("has {shown}, which {wide} covers (redundant_topics)"));
                }
            }
        }
    }
}

/// Does `wide` match everything that `narrow` matches? A leading wildcard never covers `$`.
fn covers(wide: &str, narrow: &str) -> bool {
    if narrow.starts_with('$') && wide.starts_with(['+', '#']) {
        return false;
    }
    let (mut wide, mut narrow) = (wide.split('/'), narrow.split('/'));
    loop {
        match (wide.next(), narrow.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(left), Some(right)) if left == right => {}
            _ => return false,
        }
    }
}

/// `host:port` out of what an operator may write.
fn server_of(text: &str) -> Result<String, String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, text),
    };
    match scheme {
        None | Some("mqtt") => {}
        Some("mqtts" | "quic") => return Err("this version links over plain TCP only; use mqtt://".into()),
        Some(_) => return Err("the scheme must be mqtt:// (unsupported_scheme)".into()),
    }
    // A bracketed address has colons of its own.
    let (host, port) = match rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((inner, port)) if inner.parse::<core::net::Ipv6Addr>().is_ok() => (format!("[{inner}]"), port),
        Some(_) => return Err("there is no IPv6 address in the brackets".into()),
        None => match rest.split_once(':') {
            Some((host, _)) => (host.to_string(), &rest[host.len()..]),
            None => (rest.to_string(), ""),
        },
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !host.starts_with('[') && (host.is_empty() || !host.chars().all(plain)) {
        return Err("an address is host:port".into());
    }
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => SERVER_PORT,
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
            digits.parse().ok().filter(|port| *port > 0).ok_or("the port must be in 1..=65535")?
        }
        _ => return Err("an address is host:port".into()),
    };
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_brought_into_one_form() {
        for (text, server) in [
            ("b", "b:1883"),
            ("b.example.org:1884", "b.example.org:1884"),
            ("mqtt://10.0.0.1", "10.0.0.1:1883"),
            ("[::1]", "[::1]:1883"),
            ("mqtt://[fe80::2]:9", "[fe80::2]:9"),
        ] {
            assert_eq!(server_of(text).as_deref(), Ok(server), "{text}");
        }
        for (bad, why) in [
            ("mqtts://b", "plain TCP"),
            ("quic://b", "plain TCP"),
            ("http://b", "unsupported_scheme"),
            ("b:0", "1..=65535"),
            ("b:65536", "1..=65535"),
            ("b:", "1..=65535"),
            ("b:+1", "host:port"),
            (":1883", "host:port"),
            ("", "host:port"),
            ("a b", "host:port"),
            ("::1", "host:port"),
            ("[::x]:1", "IPv6"),
            ("[::1]1", "host:port"),
            ("b/path", "host:port"),
        ] {
            let error = server_of(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn a_filter_covers_what_it_matches_and_no_more() {
        for (wide, narrow, yes) in [
            ("t/#", "t", true),
            ("t/#", "t/+", true),
            ("t/#", "t/+/#", true),
            ("t/+/#", "t/#", false),
            ("t/+", "t/#", false),
            ("t/+", "t/1", true),
            ("t/1", "t/+", false),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("#", "#", true),
            ("a", "a/b", false),
            ("a/b", "a", false),
        ] {
            assert_eq!(covers(wide, narrow), yes, "{wide} {narrow}");
        }
    }
}
