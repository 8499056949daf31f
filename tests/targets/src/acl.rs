//! Rules in mosquitto's and in EMQX's form: `broker::access`.

use std::{net::IpAddr, sync::Arc};

use broker::access::{Action, Granted, Rights, RuleError, Rules, Subject, parse_emqx, parse_mosquitto};
use mqtt::{
    topic::{Filter, Topic},
    types::Qos,
};

const TOPICS: [&str; 8] = ["a", "a/b", "home/alice/lamp", "home/c1/lamp", "$SYS/x", "x/y/z", "/", "a//b"];
const FILTERS: [&str; 8] = ["#", "+/#", "a/#", "home/+/lamp", "$SYS/#", "a/b", "/+", "home/alice/#"];
const QOS: [Qos; 3] = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce];
/// More names in a rule cost more: an input shall not be a benchmark.
const RULES_MAX: usize = 64;

/// The first line holds a topic and a client id of the input's choice, the rest is a file. A filter that is granted as a whole
/// lets every topic through that it matches, and what rules say does not depend on when it is asked.
pub fn acl(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (names, file) = text.split_once('\n').unwrap_or(("", &text));
    let (client, name) = names.split_once(' ').unwrap_or(("c1", names));
    for parse in [parse_mosquitto, parse_emqx] {
        match parse(file) {
            Ok(rules) if rules.len() <= RULES_MAX => {
                for no_match in [true, false] {
                    let rules = Arc::new(Rules::new(parse(file).expect("it could be read"), no_match, 1));
                    for user in [None, Some("alice"), Some(name)] {
                        decide(&rules, user, client, name);
                    }
                }
            }
            Ok(_) => {}
            Err(why) => names_a_line(&why, file),
        }
    }
}

fn names_a_line(why: &RuleError, file: &str) {
    let lines = file.lines().count() as u32;
    assert!((1..=lines.max(1) + 1).contains(&why.line), "{why} of {lines}");
    assert!(!why.what.is_empty());
}

fn decide(rules: &Arc<Rules>, user: Option<&str>, client: &str, name: &str) {
    for peer in ["127.0.0.1", "10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"] {
        let peer: IpAddr = peer.parse().expect("an address");
        let rights = Rights::new(None, rules, &Subject { client, user, peer });
        let topics = || TOPICS.into_iter().chain([name]).filter(|topic| Topic::parse(topic, 128).is_ok());
        let filters = || FILTERS.into_iter().chain([name]).filter(|filter| Filter::parse(filter, 128).is_ok());
        for qos in QOS {
            for topic in topics() {
                let receives = rights.may_receive(topic, qos);
                assert_eq!(rights.says(Action::Subscribe, topic, qos).unwrap_or(receives), receives);
                rights.may_publish(topic, qos, true);
                rights.may_publish(topic, qos, false);
            }
            for filter in filters() {
                if rights.subscribe(filter, qos) == Granted::Whole {
                    let refused =
                        topics().find(|topic| mqtt::topic::matches(filter, topic) && !rights.may_receive(topic, qos));
                    assert_eq!(refused, None, "{filter:?} is granted as a whole to {user:?} {client:?}");
                }
            }
        }
    }
}
