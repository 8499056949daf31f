//! Topics, filters, shared filters, what matches what, and what two filters have in common: `mqtt::topic`, the tables of
//! `broker`, `link::intersect`. The oracle is the text of the standard, written down level by level.

use broker::{
    interest::{Dest, Interest},
    subscriptions::{Options, Subscription, Subscriptions},
    tree::LevelTree,
};
use link::intersect::{intersect, is_subset, overlaps, reduce};
use mqtt::{
    topic::{Filter, SubscribeFilter, TOPIC_BYTES_MAX, Topic},
    types::Qos,
};

const LEVELS_MAX: usize = 16;
/// So few that some filters go into the tree behind the hash tables.
const SHAPES_MAX: usize = 3;
/// Lines of an input that are looked at: the work grows with their square.
const LINES_MAX: usize = 12;

/// Each line is a topic, a filter, or neither; every one is tried as both.
pub fn filters(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines: Vec<&str> = text.split('\n').take(LINES_MAX).collect();
    let topics: Vec<&str> = lines.iter().copied().filter(|line| parsed_topic(line)).collect();
    let filters: Vec<&str> = lines.iter().copied().filter(|line| parsed_filter(line)).collect();
    lines.iter().for_each(|line| parsed_share(line));
    for filter in &filters {
        let parsed = Filter::parse(filter, LEVELS_MAX).expect("parsed before");
        assert_eq!(parsed.has_wildcard(), filter.split('/').any(|level| matches!(level, "+" | "#")));
        for topic in &topics {
            let parsed_topic = Topic::parse(topic, LEVELS_MAX).expect("parsed before");
            assert_eq!(parsed.matches(parsed_topic), matches(filter, topic), "{filter:?} {topic:?}");
        }
    }
    tables(&filters, &topics);
    in_common(&filters, &topics);
}

fn sized(text: &str) -> bool {
    !text.is_empty() && text.len() <= TOPIC_BYTES_MAX && text.split('/').count() <= LEVELS_MAX && !text.contains('\0')
}

fn parsed_topic(text: &str) -> bool {
    let good = sized(text) && !text.contains(['+', '#']);
    assert_eq!(Topic::parse(text, LEVELS_MAX).is_ok(), good, "{text:?}");
    good
}

fn parsed_filter(text: &str) -> bool {
    let levels: Vec<&str> = text.split('/').collect();
    let good = sized(text)
        && levels.iter().enumerate().all(|(at, level)| match *level {
            "#" => at + 1 == levels.len(),
            "+" => true,
            other => !other.contains(['+', '#']),
        });
    assert_eq!(Filter::parse(text, LEVELS_MAX).is_ok(), good, "{text:?}");
    good
}

fn parsed_share(text: &str) {
    let parsed = SubscribeFilter::parse(text, LEVELS_MAX);
    let mut parts = text.splitn(3, '/');
    let expected = match (parts.next(), parts.next(), parts.next()) {
        (Some("$share"), Some(group), Some(filter)) => {
            let named = !group.is_empty() && !group.contains(['+', '#', '\0']) && text.len() <= TOPIC_BYTES_MAX;
            (named && parsed_filter(filter)).then_some((Some(group), filter))
        }
        (Some("$share"), Some(_), None) => None,
        _ => parsed_filter(text).then_some((None, text)),
    };
    assert_eq!(parsed.ok().map(|parsed| (parsed.group, parsed.filter.as_str())), expected, "{text:?}");
}

/// Level by level, as section 4.7 says it.
fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (filter, topic): (Vec<&str>, Vec<&str>) = (filter.split('/').collect(), topic.split('/').collect());
    for (at, level) in filter.iter().enumerate() {
        match (*level, topic.get(at)) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (level, Some(of_topic)) if level == *of_topic => {}
            _ => return false,
        }
    }
    filter.len() == topic.len()
}

/// The tables find what matches, and are empty when everything was taken out.
fn tables(filters: &[&str], topics: &[&str]) {
    let mut subscriptions = Subscriptions::new(1, SHAPES_MAX);
    let mut interest = Interest::new(1, SHAPES_MAX);
    let mut by_filter: LevelTree<usize> = LevelTree::new(1);
    let mut by_topic: LevelTree<usize> = LevelTree::new(1);
    let dest = Dest::Shard(1);
    for (at, filter) in filters.iter().enumerate() {
        let options = Options::new(Qos::AtMostOnce, false, false);
        subscriptions.insert(filter, Subscription { session: at as u32, options, id: 0 });
        interest.add(filter, dest);
        by_filter.insert(filter, at);
    }
    for (at, topic) in topics.iter().enumerate() {
        by_topic.insert(topic, at);
    }
    for topic in topics {
        let wanted: Vec<usize> = (0..filters.len()).filter(|at| matches(filters[*at], topic)).collect();
        let mut found = Vec::new();
        subscriptions.matching(topic, &mut found);
        let mut sessions: Vec<usize> =
            found.iter().flat_map(|at| subscriptions.at(*at)).map(|one| one.session as usize).collect();
        sessions.sort_unstable();
        assert_eq!(sessions, wanted, "subscriptions of {topic:?}");
        // Keys of two filters may be the same: interest may be generous, never the other way round.
        assert!(wanted.is_empty() || !interest.wanted(topic).is_empty(), "interest in {topic:?}");
        let mut same: Vec<&str> = Vec::new();
        by_filter.filters_matching(topic, |at| same.push(filters[*at]));
        same.sort_unstable();
        let mut texts: Vec<&str> = wanted.iter().map(|at| filters[*at]).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(same, texts, "filters in the tree for {topic:?}");
    }
    for filter in filters {
        let mut found = Vec::new();
        by_topic.topics_matching(filter, |place| found.push(place));
        let mut paths: Vec<String> = Vec::new();
        for place in found.into_iter().filter(|place| by_topic.value(*place).is_some()) {
            let mut path = String::new();
            by_topic.path(place, &mut path);
            paths.push(path);
        }
        paths.sort_unstable();
        let mut wanted: Vec<&str> = topics.iter().copied().filter(|topic| matches(filter, topic)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        assert_eq!(paths, wanted, "topics in the tree for {filter:?}");
    }
    for (at, filter) in filters.iter().enumerate() {
        subscriptions.remove(filter, at as u32).expect("it is there");
        interest.remove(filter, dest);
        by_filter.remove(filter);
    }
    for topic in topics {
        by_topic.remove(topic);
    }
    assert!(subscriptions.is_empty() && interest.is_empty() && by_filter.is_empty() && by_topic.is_empty());
}

/// What two filters have in common is what matches both.
fn in_common(filters: &[&str], topics: &[&str]) {
    let mut both = String::new();
    for a in filters {
        for b in filters {
            let common = intersect(a, b, &mut both);
            assert_eq!(common, overlaps(a, b), "{a:?} {b:?}");
            assert_eq!(overlaps(a, b), overlaps(b, a), "{a:?} {b:?}");
            if common {
                Filter::parse(&both, LEVELS_MAX).expect("what two filters have in common is a filter");
                assert!(is_subset(&both, a) && is_subset(&both, b), "{both:?} of {a:?} and {b:?}");
            }
            let inside = is_subset(a, b);
            for topic in topics {
                let (of_a, of_b) = (matches(a, topic), matches(b, topic));
                assert_eq!(common && matches(&both, topic), of_a && of_b, "{a:?} {b:?} {topic:?}");
                assert!(!(inside && of_a && !of_b), "{a:?} is no part of {b:?}: {topic:?}");
            }
        }
    }
    let mut few: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
    reduce(&mut few);
    for topic in topics {
        let any = filters.iter().any(|filter| matches(filter, topic));
        assert_eq!(few.iter().any(|filter| matches(filter, topic)), any, "{filters:?} became {few:?}");
    }
}
