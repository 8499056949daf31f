//! EMQX's `acl.conf`: `{allow | deny, Who, Action, Topics}.` and `{allow | deny, all}.`, the first rule that matches decides.

use alloc::{boxed::Box, format, string::ToString, vec::Vec};

use regex::{Regex, RegexBuilder};

use super::{
    ANY_QOS, Action, BOTH, Network, Pattern, RULES_MAX, Rule, RuleError, Who, has_holes, pattern_of,
    terms::{Reader, Term, What},
};

/// Memory that one compiled expression may take.
const REGEX_BYTES_MAX: usize = 1 << 20;
/// How deep `and` and `or` may lie in each other.
const WHO_DEPTH_MAX: usize = 4;

/// Reads a file, in order.
pub fn parse(text: &str) -> Result<Vec<Rule>, RuleError> {
    let mut reader = Reader::new(text);
    let mut rules = Vec::new();
    while let Some(term) = reader.next()? {
        rules.push(rule_of(&term)?);
        if rules.len() > RULES_MAX {
            return Err(term.wrong(format!("more than {RULES_MAX} rules")));
        }
    }
    Ok(rules)
}

fn rule_of(term: &Term) -> Result<Rule, RuleError> {
    let shape = "a rule is {allow | deny, who, action, topics} or {allow | deny, all}";
    let members = term.tuple().ok_or_else(|| term.wrong(shape))?;
    let (permission, rest) = members.split_first().ok_or_else(|| term.wrong(shape))?;
    let allow = match permission.atom() {
        Some("allow") => true,
        Some("deny") => false,
        _ => return Err(permission.wrong("a rule begins with allow or deny")),
    };
    let everything = || -> Box<[Pattern]> { [Pattern::Everything].into() };
    match rest {
        [who] => Ok(Rule::about(allow, who_of(who, 0)?, everything())),
        [who, action] => action_of(action, Rule::about(allow, who_of(who, 0)?, everything())),
        [who, action, topics] => {
            let (patterns, holes) = topics_of(topics)?;
            action_of(action, Rule { holes, ..Rule::about(allow, who_of(who, 0)?, patterns) })
        }
        _ => Err(term.wrong(shape)),
    }
}

fn who_of(term: &Term, depth: usize) -> Result<Who, RuleError> {
    if term.atom() == Some("all") {
        return Ok(Who::All);
    }
    let shape =
        "who is all, {username, ..}, {clientid, ..}, {ipaddr, ..}, {ipaddrs, [..]}, {'and', [..]} or {'or', [..]}";
    let Some([kind, value]) = term.tuple() else { return Err(term.wrong(shape)) };
    let like = || match value.tuple() {
        Some([re, text]) if re.atom() == Some("re") => text.text().map(|text| regex_of(text, value)).transpose(),
        _ => Ok(None),
    };
    Ok(match (kind.atom(), value.text(), value.list()) {
        (Some("username" | "user"), Some(name), _) => Who::User(name.into()),
        (Some("clientid" | "client"), Some(name), _) => Who::Client(name.into()),
        (Some("username" | "user"), ..) => Who::UserLike(like()?.ok_or_else(|| value.wrong(shape))?),
        (Some("clientid" | "client"), ..) => Who::ClientLike(like()?.ok_or_else(|| value.wrong(shape))?),
        (Some("ipaddr"), Some(_), _) => Who::From([network_of(value)?].into()),
        (Some("ipaddrs"), _, Some(list)) => Who::From(list.iter().map(network_of).collect::<Result<_, _>>()?),
        (Some(word @ ("and" | "or")), _, Some(list)) if depth < WHO_DEPTH_MAX => {
            let parts = list.iter().map(|part| who_of(part, depth + 1)).collect::<Result<_, _>>()?;
            if word == "and" { Who::And(parts) } else { Who::Or(parts) }
        }
        _ => return Err(term.wrong(shape)),
    })
}

fn regex_of(text: &str, at: &Term) -> Result<Regex, RuleError> {
    let built = RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build();
    built.map_err(|error| at.wrong(format!("{text:?} is no regular expression: {error}")))
}

fn network_of(term: &Term) -> Result<Network, RuleError> {
    let network = term.text().and_then(Network::parse);
    network.ok_or_else(|| term.wrong("an address is \"127.0.0.1\", \"::1\" or \"10.0.0.0/8\""))
}

fn action_of(term: &Term, rule: Rule) -> Result<Rule, RuleError> {
    let shape = "an action is publish, subscribe or all, or {publish, [{qos, 1}, {retain, false}]}";
    let (word, qualifiers) = match (&term.what, term.tuple()) {
        (What::Atom(word), _) => (&**word, &[][..]),
        (_, Some([word, qualifiers])) => {
            let qualifiers = qualifiers.list().ok_or_else(|| qualifiers.wrong(shape))?;
            (word.atom().ok_or_else(|| word.wrong(shape))?, qualifiers)
        }
        _ => return Err(term.wrong(shape)),
    };
    let actions = match word {
        "publish" => Action::Publish.bit(),
        "subscribe" => Action::Subscribe.bit(),
        "all" | "pubsub" => BOTH,
        _ => return Err(term.wrong(shape)),
    };
    let mut rule = Rule { actions, ..rule };
    for qualifier in qualifiers {
        let Some([name, value]) = qualifier.tuple() else { return Err(qualifier.wrong(shape)) };
        match (name.atom(), value.atom()) {
            (Some("qos"), _) => rule.qos = qos_of(value)?,
            (Some("retain"), Some("all")) => rule.retain = None,
            (Some("retain"), Some(word @ ("true" | "false"))) => rule.retain = Some(word == "true"),
            _ => return Err(qualifier.wrong(shape)),
        }
    }
    Ok(rule)
}

/// One QoS, or several, as bits.
fn qos_of(term: &Term) -> Result<u8, RuleError> {
    match &term.what {
        What::Number(qos @ 0..=2) => Ok(1 << qos),
        What::Atom(word) if **word == *"all" => Ok(ANY_QOS),
        What::List(list) if !list.is_empty() => list.iter().try_fold(0, |bits, qos| Ok(bits | qos_of(qos)?)),
        _ => Err(term.wrong("a QoS is 0, 1, 2 or a list of them")),
    }
}

/// The topics, and whether names have a place in them.
fn topics_of(term: &Term) -> Result<(Box<[Pattern]>, bool), RuleError> {
    if matches!(term.atom(), Some("all")) {
        return Ok(([Pattern::Everything].into(), false));
    }
    let list = term.list().ok_or_else(|| term.wrong("topics are a list, as in [\"a/#\", {eq, \"b/+\"}]"))?;
    if list.is_empty() {
        return Err(term.wrong("a rule without topics is about nothing"));
    }
    let mut holes = false;
    let mut topic = |member: &Term| {
        let (text, exact) = match (member.text(), member.tuple()) {
            (Some(text), _) => (text, false),
            (_, Some([eq, text])) if eq.atom() == Some("eq") => (text.text().unwrap_or_default(), true),
            _ => return Err(member.wrong("a topic is \"a/#\" or {eq, \"a/#\"}".to_string())),
        };
        holes |= has_holes(text);
        pattern_of(text, exact).map_err(|what| member.wrong(what))
    };
    let patterns = list.iter().map(&mut topic).collect::<Result<_, _>>()?;
    Ok((patterns, holes))
}
