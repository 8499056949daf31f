//! Topic names and topic filters: parsed once where they enter, trusted everywhere after.
//! Borrowed views that live as long as the packet or the table they come from; used on every shard.
//! Always true: a [`Topic`] has no wildcard, a [`Filter`] has wildcards only as whole levels.

use core::fmt;

use crate::scan;

/// Most bytes of a topic or filter: its length is two bytes on the wire.
pub const TOPIC_BYTES_MAX: usize = u16::MAX as usize;

/// What every filter of a shared subscription begins with.
pub const SHARE_PREFIX: &str = "$share/";

/// A parsed topic name: 1 to 65535 bytes, no wildcards, no U+0000.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Topic<'a>(&'a str);

/// A parsed topic filter, without `$share/group/`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Filter<'a>(&'a str);

/// What a SUBSCRIBE asks for: a filter, and the share group it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct SubscribeFilter<'a> {
    /// The share group of `$share/group/filter`.
    pub group: Option<&'a str>,
    /// The filter that topics are matched with.
    pub filter: Filter<'a>,
}

/// Why a string is no topic, no filter, or no shared filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TopicError {
    /// Not one character.
    Empty,
    /// More than 65535 bytes.
    TooLong,
    /// More levels than the limit.
    TooManyLevels,
    /// U+0000.
    Nul,
    /// A wildcard in a topic name.
    WildcardInTopic,
    /// `+` or `#` beside other characters of its level, or `#` before the last level.
    WildcardPlace,
    /// `$share/` without a group, with a wildcard in it, or without a filter after it.
    ShareGroup,
}

impl<'a> Topic<'a> {
    /// Checks a topic name of at most `levels_max` levels.
    #[inline]
    pub fn parse(topic: &'a str, levels_max: usize) -> Result<Topic<'a>, TopicError> {
        check_size(topic, levels_max)?;
        if scan::has_wildcard_or_nul(topic.as_bytes()) {
            //= MQTT-4.7.3-2
            //= MQTT-4.7.0-1
            return Err(if topic.contains('\0') { TopicError::Nul } else { TopicError::WildcardInTopic });
        }
        Ok(Topic(topic))
    }

    /// The string.
    #[inline]
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// Its levels; at least one, and any of them may be empty.
    #[inline]
    pub fn levels(self) -> impl DoubleEndedIterator<Item = &'a str> + Clone {
        self.0.split('/')
    }
}

impl<'a> Filter<'a> {
    /// Checks a filter of at most `levels_max` levels.
    pub fn parse(filter: &'a str, levels_max: usize) -> Result<Filter<'a>, TopicError> {
        check_size(filter, levels_max)?;
        let mut many = false;
        for level in filter.split('/') {
            //= MQTT-4.7.1-1
            // Whatever follows `#` makes it a wrong one.
            if many {
                return Err(TopicError::WildcardPlace);
            }
            if !scan::has_wildcard_or_nul(level.as_bytes()) {
                continue;
            }
            match level {
                "#" => many = true,
                //= MQTT-4.7.1-2
                "+" => {}
                _ if level.contains('\0') => return Err(TopicError::Nul),
                _ => return Err(TopicError::WildcardPlace),
            }
        }
        Ok(Filter(filter))
    }

    /// The string.
    #[inline]
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// Does it stand for more than one topic?
    #[inline]
    pub fn has_wildcard(self) -> bool {
        scan::has_wildcard_or_nul(self.0.as_bytes())
    }

    /// Does `topic` match?
    #[inline]
    pub fn matches(self, topic: Topic<'_>) -> bool {
        matches(self.0, topic.0)
    }

    /// Its levels; at least one, and any of them may be empty.
    #[inline]
    pub fn levels(self) -> impl DoubleEndedIterator<Item = &'a str> + Clone {
        self.0.split('/')
    }
}

impl<'a> SubscribeFilter<'a> {
    /// Checks a filter as SUBSCRIBE and UNSUBSCRIBE carry it. `levels_max` counts the levels after the group.
    pub fn parse(text: &'a str, levels_max: usize) -> Result<SubscribeFilter<'a>, TopicError> {
        let Some(shared) = text.strip_prefix(SHARE_PREFIX) else {
            return Ok(SubscribeFilter { group: None, filter: Filter::parse(text, levels_max)? });
        };
        if text.len() > TOPIC_BYTES_MAX {
            return Err(TopicError::TooLong);
        }
        //= MQTT-4.8.2-1
        //= MQTT-4.8.2-2
        let (group, filter) = shared.split_once('/').ok_or(TopicError::ShareGroup)?;
        if group.contains('\0') {
            return Err(TopicError::Nul);
        }
        if group.is_empty() || filter.is_empty() || scan::has_wildcard_or_nul(group.as_bytes()) {
            return Err(TopicError::ShareGroup);
        }
        Ok(SubscribeFilter { group: Some(group), filter: Filter::parse(filter, levels_max)? })
    }
}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TopicError::Empty => "it is empty",
            TopicError::TooLong => "it has more than 65535 bytes",
            TopicError::TooManyLevels => "it has too many levels",
            TopicError::Nul => "it contains U+0000",
            TopicError::WildcardInTopic => "a topic cannot contain `+` or `#`",
            TopicError::WildcardPlace => "`+` and `#` fill a level, and `#` is the last one",
            TopicError::ShareGroup => "`$share/` needs a group without wildcards, and a filter",
        })
    }
}

impl core::error::Error for TopicError {}

/// Does `topic` match `filter`? Both are already parsed.
///
/// A topic contains no wildcard, so the first byte in which the two differ is either a wildcard of the
/// filter or the proof that they do not match: literal stretches are compared a word at a time.
#[inline]
pub fn matches(filter: &str, topic: &str) -> bool {
    let (mut filter, mut topic) = (filter.as_bytes(), topic.as_bytes());
    //= MQTT-4.7.2-1
    //= MQTT-4.7.3-4
    // Bytes are compared as they came: nothing is normalised.
    if topic.first() == Some(&b'$') && matches!(filter.first(), Some(b'+' | b'#')) {
        return false;
    }
    loop {
        let same = scan::common_prefix(filter, topic);
        (filter, topic) = (&filter[same..], &topic[same..]);
        match filter {
            [] => return topic.is_empty(),
            [b'#', ..] => return true,
            [b'+', rest @ ..] => {
                filter = rest;
                topic = &topic[scan::level_len(topic)..];
            }
            // `a/#` includes the parent `a`.
            b"/#" => return topic.is_empty(),
            _ => return false,
        }
        // After `+` both stand at a `/` or at an end, so each round consumes a byte of the filter.
    }
}

//= MQTT-4.7.3-1
//= MQTT-4.7.3-3
#[inline]
fn check_size(text: &str, levels_max: usize) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    if text.len() > TOPIC_BYTES_MAX {
        return Err(TopicError::TooLong);
    }
    // A string of n bytes has at most n + 1 levels: most need no counting.
    if text.len() >= levels_max && 1 + text.bytes().filter(|byte| *byte == b'/').count() > levels_max {
        return Err(TopicError::TooManyLevels);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::String, vec::Vec};

    const LEVELS_MAX: usize = 16;

    //= MQTT-4.7.0-1
    //= MQTT-4.7.3-1
    //= MQTT-4.7.3-2
    //= MQTT-4.7.3-3
    #[test]
    fn topics_are_whatever_has_no_wildcard_and_no_nul() {
        for good in ["a", "/", "//", " ", "a b/c", "$SYS/x", "\u{20ac}/\u{feff}", "+"] {
            let wild = good.contains('+');
            let parsed = Topic::parse(good, LEVELS_MAX).map(Topic::as_str);
            assert_eq!(parsed, if wild { Err(TopicError::WildcardInTopic) } else { Ok(good) });
        }
        for (bad, why) in [
            ("", TopicError::Empty),
            ("a/#", TopicError::WildcardInTopic),
            ("a+b", TopicError::WildcardInTopic),
            ("sports and news/#x", TopicError::WildcardInTopic),
            ("a\0", TopicError::Nul),
            ("0/1/2/3/4/5/6/7/8/9/a/b/c/d/e/f/g", TopicError::TooManyLevels),
        ] {
            assert_eq!(Topic::parse(bad, LEVELS_MAX), Err(why), "{bad}");
        }
        assert!(Topic::parse("0/1/2/3/4/5/6/7/8/9/a/b/c/d/e/f", LEVELS_MAX).is_ok());
        assert!(Topic::parse(&"x".repeat(65_535), LEVELS_MAX).is_ok());
        assert_eq!(Topic::parse(&"x".repeat(65_536), LEVELS_MAX), Err(TopicError::TooLong));
    }

    //= MQTT-4.7.1-1
    //= MQTT-4.7.1-2
    #[test]
    fn wildcards_fill_a_level_and_the_many_wildcard_is_last() {
        for good in ["#", "+", "a/#", "+/+", "+/a/#", "/+", "+/", "a//#", "/", "$SYS/#", "a/+/b"] {
            assert_eq!(Filter::parse(good, LEVELS_MAX).map(Filter::as_str), Ok(good));
            let wild = good.contains(['+', '#']);
            assert_eq!(Filter::parse(good, LEVELS_MAX).unwrap().has_wildcard(), wild);
        }
        for (bad, why) in [
            ("", TopicError::Empty),
            ("a#", TopicError::WildcardPlace),
            ("#a", TopicError::WildcardPlace),
            ("#/a", TopicError::WildcardPlace),
            ("#/", TopicError::WildcardPlace),
            ("#/#", TopicError::WildcardPlace),
            ("a+", TopicError::WildcardPlace),
            ("+a/b", TopicError::WildcardPlace),
            ("++", TopicError::WildcardPlace),
            ("a/+#", TopicError::WildcardPlace),
            ("a/\0", TopicError::Nul),
            ("////////////////", TopicError::TooManyLevels),
        ] {
            assert_eq!(Filter::parse(bad, LEVELS_MAX), Err(why), "{bad}");
        }
        assert!(Filter::parse("///////////////", LEVELS_MAX).is_ok());
        assert_eq!(Filter::parse(&"x".repeat(65_536), LEVELS_MAX), Err(TopicError::TooLong));
    }

    //= MQTT-4.8.2-1
    //= MQTT-4.8.2-2
    #[test]
    fn share_groups_are_split_off_and_checked() {
        for (text, group, filter) in [
            ("a/b", None, "a/b"),
            ("$share", None, "$share"),
            ("$shared/g/a", None, "$shared/g/a"),
            ("$share/g/a/+", Some("g"), "a/+"),
            ("$share/g//", Some("g"), "/"),
            ("$share/g/#", Some("g"), "#"),
            ("$share/\u{20ac}/$SYS/#", Some("\u{20ac}"), "$SYS/#"),
        ] {
            let parsed = SubscribeFilter::parse(text, 4).unwrap();
            assert_eq!((parsed.group, parsed.filter.as_str()), (group, filter), "{text}");
        }
        for (bad, why) in [
            ("", TopicError::Empty),
            ("$share/", TopicError::ShareGroup),
            ("$share/g", TopicError::ShareGroup),
            ("$share/g/", TopicError::ShareGroup),
            ("$share//a", TopicError::ShareGroup),
            ("$share/+/a", TopicError::ShareGroup),
            ("$share/g#/a", TopicError::ShareGroup),
            ("$share/g\0/a", TopicError::Nul),
            ("$share/g/a#", TopicError::WildcardPlace),
            ("$share/g/1/2/3/4/5", TopicError::TooManyLevels),
        ] {
            assert_eq!(SubscribeFilter::parse(bad, 4), Err(why), "{bad}");
        }
    }

    /// The rules of 4.7, level by level, without any cleverness.
    fn matches_by_levels(filter: &str, topic: &str) -> bool {
        if topic.starts_with('$') && filter.starts_with(['+', '#']) {
            return false;
        }
        let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
        loop {
            match (filter.next(), topic.next()) {
                (Some("#"), _) => return true,
                (None, None) => return true,
                (Some("+"), Some(_)) => {}
                (Some(want), Some(level)) if want == level => {}
                _ => return false,
            }
        }
    }

    //= MQTT-4.7.1-1
    //= MQTT-4.7.1-2
    //= MQTT-4.7.2-1
    //= MQTT-4.7.3-4
    #[test]
    fn filters_match_as_the_specification_shows() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/tennis/player1/#", "sport/tennis/player11", false),
            ("sport/#", "sport", true),
            ("#", "anything/at/all", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/broker", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/", true),
            ("$SYS/monitor/+", "$SYS/monitor/Clients", true),
            ("a/$x/+", "a/$x/$y", true),
            ("Accounts", "ACCOUNTS", false),
            ("caf\u{e9}", "cafe\u{301}", false),
            ("a/b", "a/b/", false),
            ("a/b/", "a/b", false),
            ("+/#", "a", true),
            ("a/+/#", "a", false),
            ("a/+/#", "a/b", true),
            ("a//#", "a", false),
            ("a//#", "a/", true),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
            assert_eq!(matches_by_levels(filter, topic), expected, "{filter} {topic}");
            let (filter, topic) =
                (Filter::parse(filter, LEVELS_MAX).unwrap(), Topic::parse(topic, LEVELS_MAX).unwrap());
            assert_eq!(filter.matches(topic), expected);
        }
    }

    #[test]
    fn random_filters_match_as_a_walk_by_levels_says() {
        let mut seed = 0x5EED_u64;
        let mut below = |bound: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % bound
        };
        let (mut yes, mut no) = (0u32, 0u32);
        for _ in 0..200_000 {
            let levels: Vec<&str> = (0..1 + below(5))
                .map(|_| ["a", "b", "", "$x", "level", "longer than a word", "longer than a worm"][below(7) as usize])
                .collect();
            let topic = levels.join("/");
            let mut wanted: Vec<&str> = levels.iter().map(|level| if below(3) == 0 { "+" } else { level }).collect();
            match below(6) {
                0 => wanted.push("#"),
                1 => wanted.extend(["a", "#"]),
                2 => _ = wanted.pop(),
                3 => wanted[0] = "level",
                4 => *wanted.last_mut().unwrap() = "#",
                _ => {}
            }
            let filter: String = wanted.join("/");
            let (Ok(filter), Ok(topic)) = (Filter::parse(&filter, 16), Topic::parse(&topic, 16)) else {
                continue;
            };
            let expected = matches_by_levels(filter.as_str(), topic.as_str());
            assert_eq!(filter.matches(topic), expected, "{filter:?} {topic:?}");
            if expected { yes += 1 } else { no += 1 }
        }
        assert!(yes > 20_000 && no > 20_000, "both answers were drawn: {yes} and {no}");
    }
}
