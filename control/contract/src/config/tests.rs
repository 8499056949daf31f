//! The configuration as an operator meets it: text in, typed values or errors out.

use alloc::{
    borrow::ToOwned,
    format,
    string::{String, ToString},
    vec::Vec,
};

use super::*;

fn load_both(text: &str, environment: &[(&str, &str)]) -> Result<Loaded, Vec<ConfigError>> {
    let environment: Vec<(String, String)> =
        environment.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let file = Some(SourceFile { name: "ringmq.toml", text });
    load(&Sources { file, environment: &environment, data_dir: "/state/ringmq" })
}

fn config(text: &str) -> Config {
    load_both(text, &[]).unwrap_or_else(|errors| panic!("{text}: {errors:?}")).config
}

fn with(environment: &[(&str, &str)]) -> Config {
    load_both("", environment).unwrap_or_else(|errors| panic!("{environment:?}: {errors:?}")).config
}

/// All errors, one per line.
fn refused(text: &str, environment: &[(&str, &str)]) -> String {
    let errors = load_both(text, environment).map(|_| ()).expect_err(text);
    errors.iter().map(ConfigError::to_string).collect::<Vec<_>>().join("\n")
}

fn one_link(text: &str) -> String {
    format!("[[cluster.links]]\nname = \"b\"\nserver = \"h\"\ntopics = []\n{text}")
}

#[test]
fn without_a_word_everything_is_default_and_on_loopback() {
    let loaded = load(&Sources { file: None, environment: &[], data_dir: "/state/ringmq" }).unwrap();
    let mut expected = Config::default();
    expected.node.data_dir = "/state/ringmq".to_owned();
    assert_eq!(loaded.config, expected);
    assert!(loaded.settings.iter().all(|setting| setting.origin == Origin::Default));
    let config = loaded.config;
    assert_eq!(config.listeners.len(), 1);
    assert_eq!((config.listeners[0].name.as_str(), config.listeners[0].bind.as_str()), ("default", "127.0.0.1:1883"));
    assert!(config.listeners[0].allow_anonymous && config.listeners[0].enable);
    assert_eq!(config.dashboard.http_bind, "127.0.0.1:18083");
    assert_eq!((config.node.name.as_str(), config.cluster.name.as_str()), ("ringmq@127.0.0.1", "ringmq"));
    assert_eq!((config.mqtt.max_packet_bytes, config.mqtt.keep_alive_multiplier_pct), (1 << 20, 150));
    assert_eq!((config.mqtt.session_expiry_s, config.mqtt.session_expiry_max_s), (7200, u32::MAX));
    assert_eq!((config.limits.link_queue_age_ms, config.retainer.retained_max), (0, 1_000_000));
    assert_eq!(config.dataplane, Dataplane { shards: 0, pin: Pin::Auto });
    assert_eq!(config.log, Log { level: Level::Info, format: Format::Text });
}

/// A listener's example with what else its listener must have.
fn with_its_needs(key: &str, mut text: String) -> String {
    let (place, knob) = key.rsplit_once('.').unwrap();
    let listener = place.split('.').take(3).collect::<Vec<_>>().join(".").replace("<name>", "default");
    let mut also = |line: &str| text.push_str(&format!("\n{listener}.{line}"));
    if knob == "bind" {
        also("allow_anonymous = true");
    }
    if key.starts_with("listeners.unix") && knob != "path" {
        also("path = \"/s\"");
    }
    if key.starts_with("listeners.ssl") || key.starts_with("listeners.wss") {
        if knob != "certfile" {
            also("ssl_options.certfile = \"c\"");
        }
        if ["verify", "fail_if_no_peer_cert", "crlfile", "peer_cert_as_username"].contains(&knob) {
            also("ssl_options.cacertfile = \"c\"");
        }
        if ["fail_if_no_peer_cert", "crlfile", "peer_cert_as_username"].contains(&knob) {
            also("ssl_options.verify = \"verify_peer\"");
        }
    }
    text
}

#[test]
fn every_example_is_accepted_and_is_not_the_default() {
    for knob in knobs() {
        let of_file = |list: &str, name: &str| {
            let path = match name {
                "path" => "",
                // One that needs no path, and brings its key.
                "secret" | "public_key" | "jwks" => "mechanism = \"jwt\"\n",
                "backend" | "type" => "url = \"http://a/b\"\n",
                "mechanism" => "secret = \"sixteen bytes or more\"\n",
                _ => "path = \"/x\"\n",
            };
            (format!("[[{list}]]\n{path}{name} = {}\n", knob.example), format!("{list}[0].{name}"))
        };
        if let Some((list, name)) = knob.key.split_once("[].").filter(|(list, _)| *list != "cluster.links") {
            let (text, shown) = of_file(list, name);
            let loaded = load_both(&text, &[]).unwrap_or_else(|errors| panic!("{text}: {errors:?}"));
            let setting = loaded.settings.iter().find(|setting| setting.key == shown).expect(&shown);
            // What can only be one word is written out all the same.
            let only = matches!(knob.kind, Kind::Choice([_]));
            assert_eq!(setting.value == knob.show(&knob.default.value()), only, "{shown}");
            continue;
        }
        let (text, shown) = match knob.key.strip_prefix("cluster.links[].") {
            Some("name") => (one_link("").replace("\"b\"", knob.example), "cluster.links[0].name".to_owned()),
            Some("server") => (one_link("").replace("\"h\"", knob.example), "cluster.links[0].server".to_owned()),
            Some("topics") => {
                (one_link("").replace("[]\n", &format!("{}\n", knob.example)), "cluster.links[0].topics".to_owned())
            }
            Some(rest) => (one_link(&format!("{rest} = {}", knob.example)), format!("cluster.links[0].{rest}")),
            None => {
                let key = knob.key.replace("<name>", "default");
                (format!("{key} = {}", knob.example), key)
            }
        };
        let text = match knob.key {
            // Some that are not allowed alone.
            key if key.starts_with("listeners.") => with_its_needs(key, text),
            "dataplane.pin" => format!("{text}\ndataplane.shards = 4"),
            _ => text,
        };
        let loaded = load_both(&text, &[]).unwrap_or_else(|errors| panic!("{text}: {errors:?}"));
        let setting = loaded.settings.iter().find(|setting| setting.key == shown).expect(&shown);
        assert!(matches!(setting.origin, Origin::File { .. }), "{shown}: {:?}", setting.origin);
        if knob.key != "cluster.links[].ssl.enable" {
            let default = knob.show(&knob.default.value());
            assert_ne!(setting.value, default, "the example of {shown} should show another value");
        }
    }
}

#[test]
fn units_are_read_and_shown_in_the_units_of_the_knob() {
    let config = config(
        "mqtt.max_packet_size = \"64KB\"\nmqtt.idle_timeout = \"1500ms\"\nmqtt.session_expiry_interval = \"1h30m\"\n\
         mqtt.max_session_expiry_interval = \"infinity\"\nmqtt.server_keepalive = \"disabled\"\n\
         mqtt.keepalive_multiplier = 2\nlimits.output_bytes_max = 65536\nretainer.max_retained_messages = 0\n\
         limits.link_queue_age = 0\n",
    );
    assert_eq!((config.mqtt.max_packet_bytes, config.mqtt.connect_timeout_ms), (65_536, 1500));
    assert_eq!((config.mqtt.session_expiry_s, config.mqtt.session_expiry_max_s), (5400, u32::MAX));
    assert_eq!((config.mqtt.server_keep_alive_s, config.mqtt.keep_alive_multiplier_pct), (0, 200));
    assert_eq!((config.limits.output_bytes_max, config.retainer.retained_max), (65_536, u32::MAX));
    assert_eq!(config.limits.link_queue_age_ms, 0);
}

#[test]
fn errors_name_file_and_line_key_bound_and_value() {
    for (text, error) in [
        ("\nmqtt.max_mqueue_len = 0", "ringmq.toml:2: mqtt.max_mqueue_len must be in 1..=10000000; got 0"),
        ("mqtt.max_inflight = -1", "ringmq.toml:1: mqtt.max_inflight must be in 1..=65535; got -1"),
        ("mqtt.max_inflight = 99999999999999999999", "must be in 1..=65535; got 99999999999999999999"),
        ("mqtt.max_inflight = 1.5", "mqtt.max_inflight must be a number; got 1.5"),
        ("mqtt.max_inflight = []", "mqtt.max_inflight must be a number; got an array"),
        (
            "mqtt.max_packet_size = \"1KiB2\"",
            "mqtt.max_packet_size must be a size such as \"64KB\" or \"1MB\"; got \"1KiB2\"",
        ),
        ("mqtt.max_packet_size = 5", "mqtt.max_packet_size must be in 1KB..=268435460B; got 5"),
        ("mqtt.idle_timeout = 15", "mqtt.idle_timeout needs a unit, as in \"15s\"; got 15"),
        ("mqtt.idle_timeout = \"1ms\"", "mqtt.idle_timeout must be in 100ms..=10m; got \"1ms\""),
        (
            "mqtt.session_expiry_interval = \"long\"",
            "must be a time such as \"500ms\", \"15s\" or \"2h\" or \"infinity\"; got \"long\"",
        ),
        ("mqtt.keepalive_multiplier = 0.5", "mqtt.keepalive_multiplier must be in 1.0..=10.0; got 0.5"),
        ("mqtt.keepalive_multiplier = nan", "mqtt.keepalive_multiplier must be in 1.0..=10.0; got nan"),
        ("mqtt.keepalive_multiplier = -inf", "must be in 1.0..=10.0; got -inf"),
        ("mqtt.retain_available = 1", "mqtt.retain_available must be true or false; got 1"),
        (
            "log.level = \"loud\"",
            "log.level must be one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"; got \"loud\"",
        ),
        ("dataplane.shards = 0", "dataplane.shards must be in 1..=128 or auto; got 0"),
        ("dataplane.pin = \"on\"", "dataplane.pin must be \"auto\", \"off\" or an array of CPU numbers; got \"on\""),
        ("dataplane.pin = []", "dataplane.pin must be \"auto\", \"off\" or an array of CPU numbers; got an array"),
        ("node.name = \"x\"", "ringmq.toml:1: node.name is \"x\": a node's name is name@host"),
        ("node.name = \"\"", "node.name must not be empty"),
        ("node.cookie = \"short\"", "node.cookie must have at least 16 bytes; got 5"),
        ("node.cookie = 7", "node.cookie must be a string; got a value that is not shown"),
        ("cluster.name = \"a b\"", "cluster.name is \"a b\": a name cannot contain ' ' there"),
        (
            "dashboard.listeners.http.bind = \"example.org:1\"",
            "dashboard.listeners.http.bind must be \"address:port\" or a port",
        ),
        ("mqtt = 3", "ringmq.toml:1: mqtt is a section, not a value"),
        ("mqtt.max_inflight = 1\nmqtt.max_inflight = 2", "ringmq.toml:2: this is not TOML: duplicate key"),
        ("a = = b", "ringmq.toml:1: this is not TOML:"),
        ("limits.hop_batch_bytes = \"16MB\"", "limits.hop_batch_bytes must not exceed limits.staged_bytes_max"),
        ("dataplane.shards = 2\ndataplane.pin = [0]", "dataplane.pin must name one CPU per shard; got 1 for 2 shards"),
    ] {
        let said = refused(text, &[]);
        assert!(said.contains(error), "{text}\n  said: {said}\n  want: {error}");
        assert_eq!(said.lines().count(), 1, "one mistake, one error: {said}");
    }
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    for (text, error) in [
        (
            "[mqtt]\nmax_packet_sise = 1",
            "ringmq.toml:2: unknown key mqtt.max_packet_sise; the nearest known one is mqtt.max_packet_size",
        ),
        ("[mqqt]\nmax_inflight = 1", "ringmq.toml:1: unknown key mqqt; the nearest known one is mqtt"),
        (
            "listeners.tcp.other.binf = 1",
            "unknown key listeners.tcp.other.binf; the nearest known one is listeners.tcp.other.bind",
        ),
        ("listeners.wsss.default.bind = 8883", "unknown key listeners.wsss; the nearest known one is listeners.ws"),
        (
            "nonsense = 1",
            "unknown key nonsense; the sections are admission, authentication, authorization, cluster, dashboard, dataplane, durability, flapping_detect, limits, listeners, log, mqtt, node, retainer, sys_topics",
        ),
        ("cluster.link = []", "unknown key cluster.link; the nearest known one is cluster.links"),
        ("mqtt.max_inflight.x = 1", "unknown key mqtt.max_inflight; "),
        ("\"a\\u0000\\n\" = 1", "unknown key a\\0\\n; "),
    ] {
        let said = refused(text, &[]);
        if text.starts_with("mqtt.max_inflight.x") {
            assert!(said.contains("mqtt.max_inflight must be a number; got a table"), "{said}");
            continue;
        }
        assert!(said.contains(error), "{text}\n  said: {said}\n  want: {error}");
    }
    let said = refused(&one_link("servers = 1"), &[]);
    assert!(
        said.contains(
            "ringmq.toml:5: unknown key cluster.links[0].servers; the nearest known one is cluster.links[0].server"
        ),
        "{said}"
    );
}

#[test]
fn all_errors_are_told_at_once() {
    let said = refused("mqtt.max_inflight = 0\nlog.level = 3\nbogus = 1", &[("RINGMQ_NODE__NAME", "n")]);
    assert_eq!(said.lines().count(), 4, "{said}");
}

#[test]
fn the_environment_wins_over_the_file_key_by_key() {
    let text = "[mqtt]\nmax_inflight = 7\nmax_mqueue_len = 70\n";
    let environment = [("RINGMQ_MQTT__MAX_INFLIGHT", "9"), ("OTHER", "x"), ("RINGMQ_DATAPLANE__SHARDS", "2")];
    let loaded = load_both(text, &environment).unwrap();
    assert_eq!((loaded.config.mqtt.inflight_max, loaded.config.mqtt.queued_max), (9, 70));
    assert_eq!(loaded.config.dataplane.shards, 2);
    let origin = |key: &str| loaded.settings.iter().find(|setting| setting.key == key).unwrap().origin.to_string();
    assert_eq!(origin("mqtt.max_inflight"), "RINGMQ_MQTT__MAX_INFLIGHT");
    assert_eq!(origin("mqtt.max_mqueue_len"), "ringmq.toml:3");
    assert_eq!(origin("mqtt.max_topic_levels"), "default");
}

#[test]
fn variables_are_toml_and_strings_if_they_are_none() {
    let config = with(&[
        ("RINGMQ_LISTENERS__TCP__DEFAULT__BIND", "127.0.0.1:2883"),
        ("RINGMQ_NODE__NAME", "n2@127.0.0.1"),
        ("RINGMQ_NODE__DATA_DIR", "/tmp/n2"),
        ("RINGMQ_NODE__COOKIE", "1234567890123456"),
        ("RINGMQ_DASHBOARD__LISTENERS__HTTP__BIND", "0"),
        ("RINGMQ_MQTT__IDLE_TIMEOUT", "3s"),
        ("RINGMQ_MQTT__RETAIN_AVAILABLE", "false"),
        ("RINGMQ_LOG__FORMAT", "\"json\""),
        ("RINGMQ_DATAPLANE__PIN", "[1, 0]"),
        ("RINGMQ_CLUSTER__LINKS", "[{name=\"b\", server=\"127.0.0.1:1884\", topics=[\"t/#\"]}]"),
    ]);
    assert_eq!(config.listeners[0].bind, "127.0.0.1:2883");
    assert_eq!((config.node.name.as_str(), config.node.data_dir.as_str()), ("n2@127.0.0.1", "/tmp/n2"));
    assert_eq!(config.node.cookie.as_ref().map(Secret::reveal), Some("1234567890123456"));
    assert_eq!(config.dashboard.http_bind, "127.0.0.1:0");
    assert_eq!((config.mqtt.connect_timeout_ms, config.mqtt.retain_available), (3000, false));
    assert_eq!(config.log.format, Format::Json);
    assert_eq!((config.dataplane.pin, config.dataplane.shards), (Pin::List([1, 0].into()), 2));
    assert_eq!(config.cluster.links[0].servers, ["127.0.0.1:1884"]);
    assert_eq!(with(&[("RINGMQ_DATAPLANE__SHARDS", "auto")]).dataplane.shards, 0);
    assert_eq!(with(&[("RINGMQ_LISTENERS__TCP", "{a={bind=1}, default={enable=false}}")]).listeners.len(), 2);
    let both = [("RINGMQ_MQTT", "{max_inflight=1, max_qos_allowed=1}"), ("RINGMQ_MQTT__MAX_INFLIGHT", "2")];
    assert_eq!((with(&both).mqtt.inflight_max, with(&both).mqtt.qos_max), (2, 1));
}

#[test]
fn a_misspelt_variable_is_an_error_but_those_of_kubernetes_are_not() {
    let said = refused("", &[("RINGMQ_NODE__NAM", "a@b")]);
    assert_eq!(said, "RINGMQ_NODE__NAM: unknown key node.nam; the nearest known one is node.name");
    let said = refused("", &[("RINGMQ_NODE_NAME", "a@b")]);
    assert_eq!(said, "RINGMQ_NODE_NAME: unknown key node_name; the nearest known one is node.name");
    with(&[
        ("RINGMQ_SERVICE_HOST", "10.0.0.1"),
        ("RINGMQ_SERVICE_PORT_MQTT", "1883"),
        ("RINGMQ_PORT", "tcp://10.0.0.1:1883"),
        ("RINGMQ_PORT_1883_TCP_ADDR", "10.0.0.1"),
        ("RINGMQ_HEADLESS_SERVICE_HOST", "10.0.0.2"),
    ]);
}

#[test]
fn authenticators_and_sources_are_lists_in_order() {
    let text = "authentication = [{ path = \"/a\" }, { mechanism = \"password_based\", backend = \"file\", path = \"/b\", enable = false }]\n\
                [authorization]\nno_match = \"allow\"\ndeny_action = \"disconnect\"\ndeny_subscribe = [\"#\"]\n\
                sources = [{ type = \"file\", path = \"/acl\", format = \"emqx\" }]\n";
    let config = config(text);
    let paths: Vec<_> = config.authentication.iter().map(|asked| (asked.path.as_str(), asked.enable)).collect();
    assert_eq!(paths, [("/a", true), ("/b", false)]);
    assert!(!config.listeners[0].allow_anonymous, "who asks for passwords does not mean to let others in");
    let Authorization { sources, cache, no_match, deny_action, deny_subscribe } = config.authorization;
    assert_eq!((cache.enable, cache.max_size, cache.ttl_ms), (true, 32, 60_000), "as EMQX has it");
    assert_eq!((no_match, deny_action), (Permission::Allow, DenyAction::Disconnect));
    assert_eq!((sources[0].format, deny_subscribe), (RuleFormat::Emqx, ["#".to_owned()].into()));
    for (text, error) in [
        ("[[authentication]]", "ringmq.toml:1: authentication[0].path is required"),
        (
            "[[authentication]]\nmechanism = \"jwt\"",
            "authentication[0].mechanism is \"jwt\", which needs one of secret, public_key",
        ),
        ("[[authentication]]\nmechanism = \"scram\"", "authentication[0].path is required"),
        (
            "[[authentication]]\nmechanism = \"scram\"\nbackend = \"http\"",
            "authentication[0].mechanism is \"scram\", which needs backend = \"file\"",
        ),
        ("[[authentication]]\npath = \"a\"\nverify_claims = [\"x\"]", "authentication[0].verify_claims has \"x\""),
        ("authentication = 1", "authentication must be an array of tables"),
        ("[[authentication]]\npath = \"a\"\nbackend = \"ldap\"", "authentication[0].backend must be one of \"file\""),
        (
            "[[authentication]]\nbackend = \"http\"\nurl = \"https://a\"",
            "authentication[0].url is required, and begins with http://",
        ),
        ("[[authorization.sources]]\nformat = \"emqx\"", "authorization.sources[0].path is required"),
        (
            "[[authorization.sources]]\ntype = \"http\"\nurl = \"https://a\"",
            "authorization.sources[0].url is required, and begins with http://",
        ),
        (
            "authorization.sources = [{ type = \"http\", url = \"http://a\" }, { type = \"http\", url = \"http://b\" }]",
            "authorization.sources has 2 servers; one is possible",
        ),
        ("[[authorization.sources]]\npath = \"a\"\nbody = [\"x\"]", "authorization.sources[0].body has \"x\""),
        ("[[authorization.sources]]\npaht = \"a\"", "the nearest known one is authorization.sources[0].path"),
        ("authorization.deny_subscribe = [\"a#\"]", "authorization.deny_subscribe has \"a#\""),
    ] {
        let said = refused(text, &[]);
        assert!(said.contains(error), "{text}\n  said: {said}\n  want: {error}");
    }
    let open = "listeners.tcp.default.bind = \"0.0.0.0:1883\"\n[[authentication]]\npath = \"/a\"";
    assert!(load_both(open, &[]).is_ok(), "others can reach it, and they need a password");
}

#[test]
fn other_listeners_need_an_address_and_a_name() {
    let two = config("listeners.tcp.a.bind = 0\nlisteners.tcp.a.max_connections = 5");
    let names: Vec<_> = two.listeners.iter().map(|listener| (listener.name.as_str(), listener.bind.as_str())).collect();
    assert_eq!(names, [("a", "127.0.0.1:0"), ("default", "127.0.0.1:1883")]);
    assert_eq!(two.listeners[0].max_connections, 5);
    let said = refused("[listeners.tcp.a]\nenable = true", &[]);
    assert_eq!(said.lines().next(), Some("ringmq.toml:2: listeners.tcp.a.bind is required"));
    let said = refused("listeners.tcp.\"a b\".bind = 1", &[]);
    assert_eq!(said, "ringmq.toml:1: listeners.tcp.a b.bind: a name cannot contain ' ' there");
    let said = refused("listeners.tcp.a.bind = 1883", &[]);
    assert!(said.contains("listeners.tcp.default.bind is 127.0.0.1:1883, which listeners.tcp.a already has"), "{said}");
    let said = refused("listeners.tcp.default.bind = 18083", &[]);
    assert!(said.contains("which dashboard.listeners.http already has"), "{said}");
    assert!(load_both("listeners.tcp.a.bind = 0\nlisteners.tcp.default.bind = 0", &[]).is_ok());
    let many: String = (0..65).map(|n| format!("listeners.tcp.n{n}.bind = {}\n", 2000 + n)).collect();
    assert!(refused(&many, &[]).contains("66 listeners; a node has at most 64"));
}

#[test]
fn listeners_of_every_kind_come_in_the_order_of_kinds_and_names() {
    let all = config(
        "[listeners.wss.default]\nssl_options.certfile = \"c\"\nwebsocket.mqtt_path = \"/ws\"\n\
         [listeners.unix.local]\npath = \"/run/r.sock\"\nmode = \"600\"\n\
         [listeners.ws.default]\nproxy_protocol = true\n\
         [listeners.ssl.b]\nbind = 1\nssl_options.certfile = \"c\"\n[listeners.ssl.a]\nbind = 2\n\
         ssl_options = {certfile = \"c\", cacertfile = \"ca\", verify = \"verify_peer\", versions = \"tlsv1.2\"}\n",
    );
    let seen: Vec<String> =
        all.listeners.iter().map(|listener| format!("{} {}", listener.kind.as_str(), listener.bind)).collect();
    let expected = [
        "tcp 127.0.0.1:1883",
        "ssl 127.0.0.1:2",
        "ssl 127.0.0.1:1",
        "ws 127.0.0.1:8083",
        "wss 127.0.0.1:8084",
        "unix /run/r.sock",
    ];
    assert_eq!(seen, expected);
    let tls = all.listeners[1].tls.as_ref().unwrap();
    assert_eq!((tls.verify, tls.versions.as_slice()), (Verify::Peer, ["tlsv1.2".to_owned()].as_slice()));
    assert_eq!(all.listeners[4].websocket.as_ref().unwrap().mqtt_path, "/ws");
    assert!(all.listeners[3].proxy_protocol && !all.listeners[0].proxy_protocol);
}

#[test]
fn a_listener_that_would_check_less_than_it_says_is_refused() {
    let tls = |text: &str| refused(&format!("[listeners.ssl.default.ssl_options]\n{text}"), &[]);
    for (text, error) in [
        ("verify = \"verify_none\"", "ssl_options.certfile is required"),
        (
            "certfile = \"c\"\nverify = \"verify_peer\"",
            "ssl_options.verify is \"verify_peer\", which needs a cacertfile",
        ),
        (
            "certfile = \"c\"\ncrlfile = \"l\"",
            "crlfile needs listeners.ssl.default.ssl_options.verify = \"verify_peer\"",
        ),
        ("certfile = \"c\"\nfail_if_no_peer_cert = true", "fail_if_no_peer_cert needs listeners.ssl.default"),
        ("certfile = \"c\"\nversions = [\"tlsv1.1\"]", "has \"tlsv1.1\"; known are \"tlsv1.3\", \"tlsv1.2\""),
        ("certfile = \"c\"\nversions = []", "must name at least one version"),
    ] {
        let said = tls(text);
        assert!(said.contains(error), "{text}: {said}");
    }
    let said = refused("listeners.unix.a.mode = \"0888\"", &[]);
    assert!(said.contains("listeners.unix.a.path is required") && said.contains("must be octal digits"), "{said}");
    for (mountpoint, why) in [("a", "it must end with /"), ("$a/", "begin with $"), ("+/", "cannot contain")] {
        let said = refused(&format!("listeners.tcp.default.mountpoint = \"{mountpoint}\""), &[]);
        assert!(said.contains("listeners.tcp.default.mountpoint is") && said.contains(why), "{said}");
    }
    let said = refused("listeners.ws.default.websocket.mqtt_path = \"mqtt\"", &[]);
    assert!(said.contains("a path begins with /"), "{said}");
}

#[test]
fn anonymous_beyond_loopback_must_be_said() {
    let open = "listeners.tcp.default.bind = \"0.0.0.0:1883\"";
    let said = refused(open, &[]);
    assert!(
        said.starts_with("ringmq.toml:1: listeners.tcp.default.bind is 0.0.0.0:1883, which others can reach"),
        "{said}"
    );
    assert!(said.contains("set listeners.tcp.default.allow_anonymous = true"), "{said}");
    assert!(config(&format!("{open}\nlisteners.tcp.default.allow_anonymous = true")).listeners[0].allow_anonymous);
    assert!(config("listeners.tcp.default.bind = \"[::1]:1883\"").listeners[0].allow_anonymous);
    assert!(!config(&format!("{open}\nlisteners.tcp.default.enable = false")).listeners[0].enable);
}

#[test]
fn a_link_is_read_with_the_words_of_emqx() {
    let config = config(
        "[[cluster.links]]\nname = \"us-east\"\nserver = \"mqtt://a.example, b.example:1884\"\nclientid = \"eu\"\n\
         username = \"u\"\npassword = \"p\"\ntopics = [\"t/#\", \"$SYS/x\"]\npool_size = 4\nmax_inflight = 5\n\
         retry_interval = \"2s\"\nssl.enable = false\naccept = {username = \"us\", clientid_prefix = \"us-\"}\n\
         [[cluster.links]]\nname = \"c\"\nserver = [\"[::1]:1\"]\ntopics = []\nenable = false\n",
    );
    let link = &config.cluster.links[0];
    assert_eq!(link.servers, ["a.example:1883", "b.example:1884"]);
    assert_eq!((link.client_id.as_deref(), link.username.as_deref()), (Some("eu"), Some("u")));
    assert_eq!(link.password.as_ref().map(Secret::reveal), Some("p"));
    assert_eq!((link.pool_size, link.max_inflight, link.retry_interval_ms), (4, 5, 2000));
    assert_eq!(link.topics, ["t/#", "$SYS/x"]);
    let accept = Accept { username: Some("us".to_owned()), client_id_prefix: Some("us-".to_owned()), cert: None };
    assert_eq!(link.accept, Some(accept));
    let off = &config.cluster.links[1];
    assert_eq!((off.enable, off.accept.is_none(), off.topics.len(), off.max_inflight), (false, true, 0, 32));
}

#[test]
fn a_wrong_link_is_refused_with_its_place() {
    let link =
        |server: &str, topics: &str| format!("[[cluster.links]]\nname = \"b\"\nserver = {server}\ntopics = {topics}\n");
    for (text, error) in [
        ("[[cluster.links]]\nname = \"b\"\n".to_owned(), "ringmq.toml:1: cluster.links[0].server is required"),
        ("cluster.links = 3".to_owned(), "cluster.links must be an array of tables"),
        ("cluster.links = [3]".to_owned(), "cluster.links[0] must be a table"),
        (one_link("") + &one_link(""), "ringmq.toml:6: cluster.links[1].name is \"b\" again: duplicated_cluster_links"),
        (
            one_link("").replace("\"b\"", "\"ringmq\""),
            "cluster.links[0].name is \"ringmq\", which is cluster.name: that is us",
        ),
        (one_link("").replace("\"b\"", "\"b/c\""), "cluster.links[0].name is \"b/c\": a name cannot contain '/' there"),
        (
            link("\"mqtts://h\"", "[]"),
            "ringmq.toml:3: cluster.links[0].server has \"mqtts://h\": this version links over plain TCP only",
        ),
        (link("\"quic://h\"", "[]"), "this version links over plain TCP only"),
        (link("\"ws://h\"", "[]"), "unsupported_scheme"),
        (link("[]", "[]"), "cluster.links[0].server must name at least one address"),
        (link("\"h,,i\"", "[]"), "cluster.links[0].server has \"\": an address is host:port"),
        (
            link("\"h\"", "[\"a/#/b\"]"),
            "ringmq.toml:4: cluster.links[0].topics has \"a/#/b\": `+` and `#` fill a level",
        ),
        (link("\"h\"", "[\"\"]"), "(invalid_topics)"),
        (link("\"h\"", "[\"$LINK/#\"]"), "(topic_not_allowed)"),
        (link("\"h\"", "[\"$LINK\"]"), "(topic_not_allowed)"),
        (link("\"h\"", "[\"$share/g/t\"]"), "groups need no mention"),
        (link("\"h\"", "[\"t\", \"t\"]"), "cluster.links[0].topics has \"t\", which \"t\" covers (redundant_topics)"),
        (link("\"h\"", "\"t/#\""), "cluster.links[0].topics must be an array of strings; got \"t/#\""),
        (one_link("max_inflight = 0"), "cluster.links[0].max_inflight must be in 1..=65535; got 0"),
        (
            one_link("ssl.enable = true"),
            "ringmq.toml:5: cluster.links[0].ssl.enable must be false: this version has no TLS links",
        ),
        (one_link("accept = {}"), "cluster.links[0].accept must name a username, a clientid_prefix or a cert"),
        (one_link("password = \"\""), "cluster.links[0].password must have at least 1 bytes; got 0"),
    ] {
        let said = refused(&text, &[]);
        assert!(said.contains(error), "{text}\n  said: {said}\n  want: {error}");
    }
    let said = refused(&link("\"h\"", "[\"t/+\", \"g/2\", \"t/1\", \"t/+/#\", \"t\"]"), &[]);
    assert!(said.contains("\"t/+\", which \"t/+/#\" covers") && said.contains("\"t/1\", which"), "{said}");
    assert_eq!(said.lines().count(), 2, "the wider ones are kept: {said}");
    let said = refused("", &[("RINGMQ_CLUSTER__LINKS", "[{name=\"b\", server=\"h\", topics=[], enable=1}]")]);
    assert_eq!(said, "RINGMQ_CLUSTER__LINKS: cluster.links[0].enable must be true or false; got 1");
}

#[test]
fn no_secret_is_ever_shown() {
    let text = format!("node.cookie = \"sesame-sesame-sesame\"\n{}", one_link("password = \"sesame\""));
    let loaded = load_both(&text, &[]).unwrap();
    let shown = loaded.show();
    assert!(shown.contains("cluster.links[0].password = \"******\""), "{shown}");
    assert!(!shown.contains("sesame") && !format!("{loaded:?}").contains("sesame"));
}

#[test]
fn the_effective_configuration_names_each_origin() {
    let shown = load_both("mqtt.max_inflight = 7", &[("RINGMQ_LOG__LEVEL", "debug")]).unwrap().show();
    let line = |key: &str| shown.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key}: {shown}"));
    assert!(line("mqtt.max_inflight = 7 ").ends_with("# ringmq.toml:1"));
    assert!(line("log.level = \"debug\"").ends_with("# RINGMQ_LOG__LEVEL"));
    assert!(line("mqtt.max_packet_size = \"1MB\"").ends_with("# default"));
    assert!(line("mqtt.keepalive_multiplier = 1.5").ends_with("# default"));
    assert!(line("node.data_dir = \"/state/ringmq\"").ends_with("# default"));
    assert!(line("retainer.max_retained_messages = 1000000").ends_with("# default"));
}

#[test]
fn what_waits_for_a_restart_is_named_key_by_key() {
    let before = load_both("mqtt.max_inflight = 7\nlisteners.tcp.a.bind = 1", &[]).unwrap();
    let after = load_both("mqtt.max_inflight = 8\nlimits.mailbox_slots = 9\nlisteners.tcp.b.bind = 1", &[]).unwrap();
    assert_eq!(before.waiting(&after), ["limits.mailbox_slots"], "listeners come and go, and mqtt.* is live");
    assert!(before.waiting(&before).is_empty());
}

#[test]
fn a_default_directory_that_is_too_long_is_refused() {
    let data_dir = format!("/{}", "x".repeat(92));
    let errors = load(&Sources { file: None, environment: &[], data_dir: &data_dir }).map(|_| ()).unwrap_err();
    assert!(errors[0].message.contains("which has 93 bytes; at most 92 fit"), "{errors:?}");
}

#[test]
fn the_reference_names_every_knob_and_its_defaults_are_the_defaults() {
    let text = reference();
    // Every line that is a setting is uncommented; what has no default stays out.
    let (mut file, mut optional) = (String::new(), false);
    for line in text.lines() {
        let inside = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or_default();
        if inside.starts_with('[') {
            // Members of lists and further listeners are there only when somebody names them.
            let further = inside.starts_with("[listeners.") && !inside.starts_with("[listeners.tcp.");
            optional = inside.starts_with("[[") || inside.starts_with("[cluster.links") || further;
        }
        if !optional && !inside.ends_with(" =") && !inside.starts_with("data_dir") {
            file.push_str(inside);
            file.push('\n');
        }
    }
    let loaded = load_both(&file, &[]).unwrap_or_else(|errors| panic!("{file}: {errors:?}"));
    let said = loaded.settings.iter().filter(|setting| setting.origin != Origin::Default).count();
    assert!(said > 40, "only {said} settings were read back");
    let mut expected = Config::default();
    expected.node.data_dir = "/state/ringmq".to_owned();
    assert_eq!(loaded.config, expected);
    for knob in knobs() {
        let name = knob.key.rsplit('.').next().unwrap();
        assert!(text.contains(&format!("\n#{name} =")), "{} is missing", knob.key);
        assert!(knob.doc.trim_end().ends_with(['.', ']']), "{} needs a sentence", knob.key);
    }
}

#[test]
fn hostile_text_is_refused_without_harm() {
    let deep = "[".repeat(2000);
    for text in ["\u{0}", "=", "[[[[", &deep, "a.".repeat(5000).as_str(), "\u{feff}", "x = \"\\ud800\""] {
        assert!(load_both(text, &[]).is_err() || text == "\u{feff}", "{text:?}");
    }
    let large = "#".repeat(FILE_BYTES_MAX + 1);
    assert!(refused(&large, &[]).contains("at most 1048576 are read"));
    assert!(load_both("", &[("RINGMQ_MQTT__MAX_INFLIGHT", &deep)]).is_err());
    assert!(load_both("", &[("RINGMQ___", "1")]).is_err());
    assert!(load_both("", &[("RINGMQ_", "1")]).is_err());
}
