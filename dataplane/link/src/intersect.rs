//! What two filters have in common: how interest is narrowed to the `topics` of a link.
//!
//! Pure text, called by the requester (owner shard of the link's name) and by the inlet. Filters come in parsed, so
//! `#` is last and wildcards stand alone in their level. Always true: a topic matches both filters exactly if it
//! matches the intersection, and there is an intersection exactly if some topic could match both.

use alloc::string::String;
use alloc::vec::Vec;

/// Writes the one filter that matches what `a` and `b` both match into `out`; false, with `out` empty, when nothing can.
pub fn intersect(a: &str, b: &str, out: &mut String) -> bool {
    out.clear();
    let found = meet(a, b, |level, first| push_level(out, level, first));
    if !found {
        out.clear();
    }
    found
}

/// True if some topic matches both.
pub fn overlaps(a: &str, b: &str) -> bool {
    meet(a, b, |_, _| ())
}

/// Walks the levels that both have in common, as far as they do; the last step of `#` is the whole rest.
fn meet(a: &str, b: &str, mut each: impl FnMut(&str, bool)) -> bool {
    let (mut a, mut b) = (Some(a), Some(b));
    let mut first = true;
    let mut only_empty = false;
    loop {
        let (left, right) = match (a, b) {
            (None, None) => return true,
            // `/#` and `+` would have the empty topic in common, which is none (MQTT-4.7.3-1).
            (Some("#"), None) | (None, Some("#")) => return !only_empty,
            (Some("#"), Some(rest)) | (Some(rest), Some("#")) => {
                // A leading wildcard never covers a topic that begins with `$` (MQTT-4.7.2-1).
                if first && rest.starts_with('$') {
                    return false;
                }
                each(rest, first);
                return true;
            }
            (Some(left), Some(right)) => (left, right),
            _ => return false,
        };
        let (left_level, left_rest) = split_level(left);
        let (right_level, right_rest) = split_level(right);
        let level = match (left_level, right_level) {
            ("+", other) | (other, "+") if first && other.starts_with('$') => return false,
            ("+", other) | (other, "+") => other,
            (same, other) if same == other => same,
            _ => return false,
        };
        each(level, first);
        only_empty = first && level.is_empty();
        (a, b, first) = (left_rest, right_rest, false);
    }
}

/// True if every topic that matches `inner` matches `outer`, by the rule `inner` and `outer` intersect to `inner`.
pub fn is_subset(inner: &str, outer: &str) -> bool {
    let (mut inner, mut outer) = (Some(inner), Some(outer));
    let mut first = true;
    loop {
        let (x, y) = match (inner, outer) {
            (None, None | Some("#")) => return true,
            (Some(rest), Some("#")) => return !(first && rest.starts_with('$')),
            (Some("#"), _) | (_, None) | (None, _) => return false,
            (Some(x), Some(y)) => (x, y),
        };
        let (x_level, x_rest) = split_level(x);
        let (y_level, y_rest) = split_level(y);
        let covered = if y_level == "+" { !(first && x_level.starts_with('$')) } else { x_level == y_level };
        if !covered {
            return false;
        }
        (inner, outer, first) = (x_rest, y_rest, false);
    }
}

/// Leaves of `filters` only those that no other one covers; of equal ones the first. Order is kept.
pub fn reduce(filters: &mut Vec<String>) {
    let mut at = 0;
    while at < filters.len() {
        let covered = filters.iter().enumerate().any(|(other, filter)| {
            other != at && is_subset(&filters[at], filter) && (other < at || !is_subset(filter, &filters[at]))
        });
        if covered {
            filters.remove(at);
        } else {
            at += 1;
        }
    }
}

/// What a local `filter` becomes on a link that wants `topics`: the intersections, reduced.
pub fn announced(filter: &str, topics: &[String]) -> Vec<String> {
    let mut members = Vec::new();
    let mut member = String::new();
    for topic in topics {
        if intersect(filter, topic, &mut member) {
            members.push(member.clone());
        }
    }
    reduce(&mut members);
    members
}

fn split_level(filter: &str) -> (&str, Option<&str>) {
    match filter.split_once('/') {
        Some((level, rest)) => (level, Some(rest)),
        None => (filter, None),
    }
}

fn push_level(out: &mut String, level: &str, first: bool) {
    if !first {
        out.push('/');
    }
    out.push_str(level);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    fn both(a: &str, b: &str) -> Option<String> {
        let mut out = String::new();
        let forward = intersect(a, b, &mut out).then(|| out.clone());
        let backward = intersect(b, a, &mut out).then(|| out.clone());
        assert_eq!(forward, backward, "{a} and {b} must meet in the same filter from both sides");
        assert_eq!((overlaps(a, b), overlaps(b, a)), (forward.is_some(), forward.is_some()), "{a} and {b}");
        forward
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn single_intersections_follow_the_level_rules() {
        for (a, b, meet) in [
            ("t/#", "t", Some("t")),
            ("t/#", "t/#", Some("t/#")),
            ("#", "t/+/x", Some("t/+/x")),
            ("#", "$SYS/x", None),
            ("+/x", "$SYS/x", None),
            ("$SYS/#", "$SYS/x", Some("$SYS/x")),
            ("$SYS/+", "$SYS/#", Some("$SYS/+")),
            ("+/x", "m/#", Some("m/x")),
            ("+", "#", Some("+")),
            ("t/+", "t", None),
            ("/#", "+", None),
            ("/#", "/+", Some("/+")),
            ("t/+", "t/#", Some("t/+")),
            ("a/b", "a/c", None),
            ("a//b", "a/+/b", Some("a//b")),
            ("/", "+/+", Some("/")),
            ("+/+/c", "a/b/+", Some("a/b/c")),
            ("a/b/c", "a/b", None),
        ] {
            assert_eq!(both(a, b).as_deref(), meet, "{a} and {b}");
        }
    }

    #[test]
    fn announced_sets_are_those_that_were_observed() {
        for (filter, topics, expected) in [
            ("t/+/+", vec!["t/+/1/#", "t/z", "t/1/+"], vec!["t/+/1", "t/1/+"]),
            ("t/#", vec!["t/+/1/#", "t/z", "t/1/+"], vec!["t/+/1/#", "t/z", "t/1/+"]),
            ("+/x", vec!["m/#", "$SYS/x", "d/#", "r/#"], vec!["m/x", "d/x", "r/x"]),
            ("$SYS/x", vec!["m/#", "$SYS/x", "#"], vec!["$SYS/x"]),
            ("t/+/#", vec!["t/1", "t/2", "t/3"], vec!["t/1", "t/2", "t/3"]),
            ("t/+/#", vec!["t/1", "t/2", "t/+", "t/3"], vec!["t/+"]),
            ("t/+/2/3/#", vec!["t/1/+/3/#", "t/1/2/+"], vec!["t/1/2/3/#"]),
            ("q", vec!["t/#"], vec![]),
            ("q", vec![], vec![]),
        ] {
            assert_eq!(announced(filter, &strings(&topics)), strings(&expected), "{filter} in {topics:?}");
        }
    }

    #[test]
    fn reduction_keeps_the_widest_and_the_first_of_equals() {
        let mut redundant = strings(&["t/+", "g/2", "t/1", "t/+/#", "t"]);
        reduce(&mut redundant);
        assert_eq!(redundant, strings(&["g/2", "t/+/#", "t"]));
        let mut equal = strings(&["t", "t"]);
        reduce(&mut equal);
        assert_eq!(equal, strings(&["t"]));
    }

    #[test]
    fn a_topic_matches_both_filters_exactly_if_it_matches_their_intersection() {
        let mut seed = 0x5eed_0001u64;
        let mut below = move |bound: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % bound
        };
        let mut levels = |words: &[&str], hash: bool| {
            let count = 1 + below(4);
            let mut text: Vec<&str> = (0..count).map(|_| words[below(words.len() as u64) as usize]).collect();
            if hash && below(3) == 0 {
                text.push("#");
            }
            text.join("/")
        };
        let (mut meets, mut matched, mut subsets) = (0, 0, 0);
        for _ in 0..60_000 {
            let a = levels(&["a", "b", "$s", "", "+"], true);
            let b = levels(&["a", "b", "$s", "", "+"], true);
            let topic = levels(&["a", "b", "$s", ""], false);
            if a.is_empty() || b.is_empty() || topic.is_empty() {
                continue;
            }
            let meet = both(&a, &b);
            let in_both = mqtt::topic::matches(&a, &topic) && mqtt::topic::matches(&b, &topic);
            let in_meet = meet.as_deref().is_some_and(|meet| mqtt::topic::matches(meet, &topic));
            assert_eq!(in_both, in_meet, "a={a} b={b} topic={topic} meet={meet:?}");
            assert_eq!(is_subset(&a, &b), meet.as_deref() == Some(a.as_str()), "a={a} b={b} meet={meet:?}");
            meets += usize::from(meet.is_some());
            matched += usize::from(in_both);
            subsets += usize::from(is_subset(&a, &b));
        }
        assert!(
            meets > 1000 && matched > 100 && subsets > 500,
            "{meets} {matched} {subsets}: the walk found too little"
        );
    }
}
