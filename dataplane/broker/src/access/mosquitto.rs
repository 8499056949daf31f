//! mosquitto's `acl_file`: `user`, `topic [read|write|readwrite|deny]`, `pattern` with `%u` and `%c`. Lines before the
//! first `user` are about clients without a user name. As there, denials go first, and a user's lines before patterns.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use super::{Action, BOTH, Pattern, RULES_MAX, Rule, RuleError, Who, has_holes, pattern_of};

/// Reads a file; the rules come in the order in which they are asked.
pub fn parse(text: &str) -> Result<Vec<Rule>, RuleError> {
    let mut rules: Vec<(u8, Rule)> = Vec::new();
    let mut user: Option<&str> = None;
    for (at, line) in text.lines().enumerate() {
        let wrong = |what: String| RuleError { line: at as u32 + 1, what };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (word, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        let rest = rest.trim_start();
        match word {
            "user" if rest.is_empty() => return Err(wrong("user needs a name".to_string())),
            "user" => user = Some(rest),
            "topic" | "pattern" => {
                let of_pattern = word == "pattern";
                let who = match user {
                    _ if of_pattern => Who::All,
                    Some(user) => Who::User(user.into()),
                    None => Who::Anonymous,
                };
                let (access, topic) = access_of(rest);
                if topic.is_empty() {
                    return Err(wrong(format!("{word} needs a topic")));
                }
                let pattern = match of_pattern {
                    true => pattern_of(topic, false).map_err(wrong)?,
                    false => plain(topic).map_err(wrong)?,
                };
                let allow = access != 0;
                let actions = if allow { access } else { BOTH };
                let holes = of_pattern && has_holes(topic);
                let rule = Rule { actions, holes, lenient: true, ..Rule::about(allow, who, [pattern].into()) };
                rules.push((u8::from(of_pattern) << 1 | u8::from(allow), rule));
            }
            _ => return Err(wrong(format!("{word:?} is none of user, topic and pattern"))),
        }
        if rules.len() > RULES_MAX {
            return Err(wrong(format!("more than {RULES_MAX} rules")));
        }
    }
    rules.sort_by_key(|(order, _)| *order);
    Ok(rules.into_iter().map(|(_, rule)| rule).collect())
}

/// What a line allows (0: it denies), and its topic, which may contain blanks.
fn access_of(rest: &str) -> (u8, &str) {
    let Some((word, topic)) = rest.split_once([' ', '\t']) else { return (BOTH, rest) };
    let access = match word {
        "read" => Action::Subscribe.bit(),
        "write" => Action::Publish.bit(),
        "readwrite" => BOTH,
        "deny" => 0,
        _ => return (BOTH, rest),
    };
    (access, topic.trim_start())
}

/// A topic in which nothing stands for a name.
fn plain(topic: &str) -> Result<Pattern, String> {
    mqtt::topic::Filter::parse(topic, usize::MAX).map_err(|error| format!("{topic:?} is no topic filter: {error}"))?;
    Ok(Pattern::Filter(topic.into()))
}
