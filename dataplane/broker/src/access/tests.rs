use alloc::{string::ToString, sync::Arc, vec};

use super::*;

const LOOPBACK: IpAddr = IpAddr::V4(core::net::Ipv4Addr::LOCALHOST);

fn subject<'a>(client: &'a str, user: Option<&'a str>) -> Subject<'a> {
    Subject { client, user, peer: LOOPBACK }
}

fn rights(rules: Vec<Rule>, no_match: bool, subject: &Subject<'_>) -> Rights {
    Rights::new(None, &Arc::new(Rules::new(rules, no_match, 1)), subject)
}

fn mosquitto(text: &str, client: &str, user: Option<&str>) -> Rights {
    rights(parse_mosquitto(text).expect("rules"), false, &subject(client, user))
}

fn emqx(text: &str, client: &str, user: Option<&str>) -> Rights {
    rights(parse_emqx(text).expect("rules"), false, &subject(client, user))
}

fn publishes(rights: &Rights, topic: &str) -> bool {
    rights.may_publish(topic, Qos::AtMostOnce, false)
}

fn receives(rights: &Rights, topic: &str) -> bool {
    rights.may_receive(topic, Qos::AtMostOnce)
}

fn subscribes(rights: &Rights, filter: &str) -> Granted {
    rights.subscribe(filter, Qos::AtMostOnce)
}

const MOSQUITTO: &str = "
# general
topic read $SYS/#
topic open/#

user alice
topic readwrite alice/#
topic deny alice/secret/#
topic write log
topic read with a blank/#

user bob
topic read alice/#

pattern readwrite dev/%c/+
pattern write users/%u
pattern deny dev/%c/locked
";

#[test]
fn mosquittos_lines_are_about_users_strangers_and_everybody() {
    let alice = mosquitto(MOSQUITTO, "c1", Some("alice"));
    assert!(publishes(&alice, "alice/x") && receives(&alice, "alice/x"));
    assert!(!publishes(&alice, "alice/secret/x") && !receives(&alice, "alice/secret/x"), "denials go first");
    assert!(publishes(&alice, "log") && !receives(&alice, "log"));
    assert!(receives(&alice, "with a blank/x") && !publishes(&alice, "with a blank/x"));
    assert!(!publishes(&alice, "open/x"), "general lines are about clients without a name");
    assert!(publishes(&alice, "dev/c1/on") && !publishes(&alice, "dev/c2/on") && !publishes(&alice, "dev/c1/locked"));
    assert!(publishes(&alice, "users/alice") && !receives(&alice, "users/alice") && !publishes(&alice, "users/bob"));
    let nobody = mosquitto(MOSQUITTO, "c1", None);
    assert!(publishes(&nobody, "open/x") && receives(&nobody, "$SYS/uptime") && !publishes(&nobody, "$SYS/uptime"));
    assert!(publishes(&nobody, "dev/c1/on") && !publishes(&nobody, "users/"), "no name, no place for it");
    let eve = mosquitto(MOSQUITTO, "c1", Some("eve"));
    assert!(!receives(&eve, "alice/x") && !publishes(&eve, "open/x"));
}

#[test]
fn mosquittos_filters_are_granted_in_part_and_guarded() {
    let alice = mosquitto(MOSQUITTO, "c1", Some("alice"));
    assert_eq!(subscribes(&alice, "alice/a/#"), Granted::Whole);
    assert_eq!(subscribes(&alice, "alice/#"), Granted::Guarded);
    assert_eq!(subscribes(&alice, "#"), Granted::Guarded);
    assert_eq!(subscribes(&alice, "+/x"), Granted::Guarded);
    assert_eq!(subscribes(&alice, "other/#"), Granted::Refused);
    assert_eq!(subscribes(&alice, "alice/secret/+"), Granted::Refused);
    assert_eq!(subscribes(&mosquitto(MOSQUITTO, "c", Some("bob")), "alice/a/#"), Granted::Whole);
}

#[test]
fn names_never_widen_what_they_are_put_into() {
    for name in ["+", "#", "a/b", "+/x", ""] {
        let hostile = mosquitto(MOSQUITTO, name, Some(name));
        for topic in ["dev/c1/on", "dev/+/on", "dev/a/b", "users/alice", "users/a/b"] {
            assert!(!publishes(&hostile, topic) && !receives(&hostile, topic), "{name:?} {topic}");
        }
        assert_eq!(subscribes(&hostile, "dev/+/on"), Granted::Refused, "{name:?}");
    }
    let literal = mosquitto(MOSQUITTO, "%u", Some("x"));
    assert!(publishes(&literal, "dev/%u/on") && !publishes(&literal, "dev/x/on"), "a name is not looked into");
    let literal = emqx("{allow, all, all, [\"a/${clientid}\", \"b/%c\"]}.", "${username}", Some("x"));
    assert!(
        publishes(&literal, "a/${username}") && publishes(&literal, "b/${username}") && !publishes(&literal, "a/x")
    );
    let similar = emqx("{allow, {username, \"alice\"}, all, [\"a\"]}.", "c", Some("al\u{131}ce"));
    assert!(!publishes(&similar, "a"), "bytes are compared as they came");
}

const EMQX: &str = "
%% comment
{allow, {username, {re, \"^dash\"}}, subscribe, [\"$SYS/#\"]}.
{allow, {ipaddr, \"127.0.0.0/8\"}, publish, [\"local/#\"]}. {allow, {ipaddrs, [\"10.0.0.0/8\", \"::1\"]}, all, [\"lan\"]}.
{deny, all, subscribe, [\"$SYS/#\", {eq, \"#\"}, {eq, \"+/#\"}]}.
{allow, {clientid, {re, \"^clink-us-east\"}}, all, [\"$LINK/#\"]}.
{allow, {'and', [{username, <<\"u\">>}, {'or', [{clientid, \"a\"}, {clientid, \"b\"}]}]}, all, [\"both\"]}.
{allow, all, {publish, [{qos, [0, 1]}, {retain, false}]}, [\"q\"]}.
{allow, all, publish, [\"t/${username}/${clientid}\"]}.
{deny, all, all, [\"t/#\"]}.
{allow, all, subscribe, [\"s/a/+\", {eq, \"s/#\"}]}.
";

#[test]
fn emqx_rules_are_asked_in_order() {
    let ordinary = emqx(EMQX, "a", Some("u"));
    assert!(publishes(&ordinary, "local/x") && !receives(&ordinary, "local/x") && !publishes(&ordinary, "lan"));
    assert!(publishes(&ordinary, "both") && !publishes(&emqx(EMQX, "c", Some("u")), "both"));
    assert_eq!(subscribes(&ordinary, "$SYS/#"), Granted::Refused);
    assert_eq!(subscribes(&emqx(EMQX, "a", Some("dashboard")), "$SYS/#"), Granted::Whole);
    assert_eq!(subscribes(&ordinary, "#"), Granted::Refused);
    assert!(publishes(&emqx(EMQX, "clink-us-east-1", None), "$LINK/x") && !publishes(&ordinary, "$LINK/x"));
    assert!(ordinary.may_publish("q", Qos::AtLeastOnce, false));
    assert!(!ordinary.may_publish("q", Qos::ExactlyOnce, false) && !ordinary.may_publish("q", Qos::AtMostOnce, true));
    assert!(publishes(&ordinary, "t/u/a") && !publishes(&ordinary, "t/u/b"));
    assert!(!publishes(&emqx(EMQX, "a", None), "t//a"), "no name, no place for it");
    assert_eq!(subscribes(&ordinary, "s/a/x"), Granted::Whole);
    assert_eq!(subscribes(&ordinary, "s/#"), Granted::Whole, "it is allowed as it is written");
    assert_eq!(subscribes(&ordinary, "s/+/x"), Granted::Refused, "a part is not enough");
    assert_eq!(ordinary.says(Action::Publish, "t/x", Qos::AtMostOnce), Some(false));
    assert_eq!(ordinary.says(Action::Publish, "nobody/says", Qos::AtMostOnce), None);
}

#[test]
fn a_denied_part_of_an_allowed_filter_is_guarded() {
    let rules = "{deny, all, subscribe, [\"secret/#\"]}. {allow, all}.";
    let anybody = emqx(rules, "c", None);
    for (filter, granted) in [
        ("#", Granted::Guarded),
        ("+/x", Granted::Guarded),
        ("+/+/#", Granted::Guarded),
        ("secret", Granted::Refused),
        ("secret/+", Granted::Refused),
        ("secrets/#", Granted::Whole),
        ("$SYS/#", Granted::Whole),
    ] {
        assert_eq!(subscribes(&anybody, filter), granted, "{filter}");
    }
    assert!(!receives(&anybody, "secret/x") && receives(&anybody, "public/x"));
}

#[test]
fn what_came_with_a_principal_is_asked_first_and_no_match_last() {
    let own = vec![Rule::claim(true, true, false, "own/${clientid}/#").expect("a topic")];
    let own = Arc::new(Rules::new(own, false, 1));
    let node = Arc::new(Rules::new(parse_emqx("{deny, all, all, [\"own/#\"]}.").expect("rules"), true, 1));
    let rights = Rights::new(Some(&own), &node, &subject("c", None));
    assert!(publishes(&rights, "own/c/x") && !publishes(&rights, "own/d/x") && !receives(&rights, "own/c/x"));
    assert!(publishes(&rights, "elsewhere"), "no rule: no_match");
}

#[test]
fn filters_that_nobody_may_subscribe_to_are_meant_as_they_are_written() {
    let rules = ["$SYS/#", "#", "+/#"].map(Rule::deny_subscribe).into_iter().collect();
    let anybody = rights(rules, true, &subject("c", None));
    assert_eq!(subscribes(&anybody, "$SYS/broker/+"), Granted::Refused);
    assert_eq!((subscribes(&anybody, "#"), subscribes(&anybody, "+/#")), (Granted::Refused, Granted::Refused));
    assert_eq!((subscribes(&anybody, "+/a"), subscribes(&anybody, "a/#")), (Granted::Whole, Granted::Whole));
    assert!(publishes(&anybody, "a"));
}

#[test]
fn wrong_files_are_refused_with_their_line() {
    for (text, error) in [
        ("topic read", "line 1: \"read\" is no"),
        ("\ntopic", "line 2: topic needs a topic"),
        ("user", "line 1: user needs a name"),
        ("topic a#", "line 1: \"a#\" is no topic filter"),
        ("pattern x/${x}", "line 1: \"x/${x}\" has a place for something"),
        ("usr x", "line 1: \"usr\" is none of user, topic and pattern"),
    ] {
        let said = parse_mosquitto(text).map(|_| ()).map_err(|error| error.to_string());
        if text == "topic read" {
            // A topic may be called like an access.
            assert_eq!(said, Ok(()));
            continue;
        }
        assert!(said.clone().is_err_and(|said| said.contains(error)), "{text}: {said:?}");
    }
    for (text, error) in [
        ("{allow, all}", "line 1: a rule ends with a dot"),
        ("\n{alow, all}.", "line 2: a rule begins with allow or deny"),
        ("{allow, all, publish, []}.", "line 1: a rule without topics"),
        ("{allow, all, pub, [\"a\"]}.", "line 1: an action is publish, subscribe or all"),
        ("{allow, {username, {re, \"(\"}}, all, [\"a\"]}.", "line 1: \"(\" is no regular expression"),
        ("{allow, {ipaddr, \"10.0.0.0/33\"}, all, [\"a\"]}.", "line 1: an address is"),
        ("{allow, all, all, [\"a\",\n \"a/#/b\"]}.", "line 2: \"a/#/b\" is no topic filter"),
        ("{allow, all, all, [\"a", "line 1: a string does not end"),
        ("{allow, all, {publish, [{qos, 3}]}, [\"a\"]}.", "line 1: a QoS is 0, 1, 2"),
        ("{allow, all, all, [\"${other}\"]}.", "has a place for something"),
        ("{", "line 1: a term is"),
        ("{allow, all, all, [#]}.", "line 1: a term is"),
        (&"{".repeat(100), "too deep"),
    ] {
        let said = parse_emqx(text).map(|_| ()).expect_err(text).to_string();
        assert!(said.contains(error), "{text}\n  said: {said}\n  want: {error}");
    }
}

/// A small generator: the same rules in every run of a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn path(&mut self, wild: bool) -> String {
        let mut path = String::new();
        for level in 0..1 + self.below(3) {
            if level > 0 {
                path.push('/');
            }
            match self.below(if wild { 5 } else { 3 }) {
                0 => path.push('a'),
                1 => path.push('b'),
                2 => path.push_str(if level == 0 { "$s" } else { "" }),
                3 => path.push('+'),
                _ => {
                    path.push('#');
                    break;
                }
            }
        }
        path
    }
}

#[test]
fn a_filter_that_is_granted_whole_matches_nothing_that_is_denied() {
    let (mut whole, mut refused) = (0, 0);
    for seed in 1..3000 {
        let mut dice = Dice(seed);
        let rules = (0..1 + dice.below(4))
            .map(|_| {
                let pattern = Pattern::Filter(dice.path(true).into());
                Rule { lenient: seed % 2 == 0, ..Rule::about(dice.below(2) == 0, Who::All, [pattern].into()) }
            })
            .collect();
        let rights = rights(rules, dice.below(3) == 0, &subject("c", None));
        let filter = dice.path(true);
        let granted = subscribes(&rights, &filter);
        let topics = (0..60).map(|_| dice.path(false)).filter(|topic| matches(&filter, topic));
        for topic in topics {
            match granted {
                Granted::Whole => assert!(receives(&rights, &topic), "seed {seed}: {filter} leaks {topic}"),
                Granted::Refused if seed % 2 == 0 => {
                    assert!(!receives(&rights, &topic), "seed {seed}: {filter} is refused, {topic} is allowed");
                }
                _ => {}
            }
        }
        whole += u32::from(granted == Granted::Whole);
        refused += u32::from(granted == Granted::Refused);
    }
    assert!(whole > 300 && refused > 300, "{whole} whole, {refused} refused");
}

#[test]
fn no_text_harms_the_parsers() {
    let pieces =
        ["{", "}", "[", "]", "allow", "deny", ",", ".", "\"", "'", "<<", ">>", "%", "\\", "9", "é", "\n", "all", " "];
    let words = ["user ", "topic ", "pattern ", "read ", "deny ", "%c", "${", "\n", "+", "#", "/", "a", "é", "\0"];
    let mut dice = Dice(7);
    for _ in 0..20_000 {
        let length = dice.below(24);
        let text: String = (0..length).map(|_| pieces[dice.below(pieces.len() as u64) as usize]).collect();
        let _ = parse_emqx(&text);
        let text: String = (0..length).map(|_| words[dice.below(words.len() as u64) as usize]).collect();
        let _ = parse_mosquitto(&text);
    }
}
