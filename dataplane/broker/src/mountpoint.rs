//! The mountpoint of a listener: a prefix that all topics of its clients get on the way in and lose on the way out, so
//! that clients of two listeners do not meet. Whoever stores or routes a topic sees it with its prefix.
//! Always true: it ends with `/`, has no wildcard and does not begin with `$` (the configuration sees to it), so a
//! mounted topic is never one of the broker's own.

use alloc::{format, string::String, sync::Arc};

use mqtt::{
    codec::Connect,
    topic::{SHARE_PREFIX, Topic},
};

use crate::{Shard, surface::ConnId};

impl Shard {
    /// The mountpoint of the listener where a connection came in.
    pub(crate) fn mountpoint(&mut self, id: ConnId) -> Option<Arc<str>> {
        let listener = usize::from(self.conns.get(id)?.listener);
        self.settings.listeners.get(listener)?.mountpoint.clone()
    }

    /// Is the will of `connect` still a valid one below the mountpoint?
    pub(crate) fn fits_mounted(&self, connect: &Connect<'_>, mountpoint: Option<&str>) -> bool {
        let (Some(will), Some(mountpoint)) = (&connect.will, mountpoint) else { return true };
        Topic::parse(&self::will(mountpoint, will.topic), usize::from(self.settings.mqtt.topic_levels_max)).is_ok()
    }
}

/// The topic of a will below the mountpoint.
pub(crate) fn will(mountpoint: &str, topic: &str) -> String {
    format!("{mountpoint}{topic}")
}

/// `topic` below the mountpoint. An empty one stays what it is: invalid.
pub(crate) fn topic(mountpoint: &str, topic: &mut String) {
    if !topic.is_empty() {
        topic.insert_str(0, mountpoint);
    }
}

/// A filter of SUBSCRIBE or UNSUBSCRIBE below the mountpoint; what is invalid stays so.
pub(crate) fn filter(mountpoint: &str, filter: &str) -> String {
    let shared = filter.strip_prefix(SHARE_PREFIX).and_then(|shared| shared.split_once('/'));
    match shared {
        _ if filter.is_empty() => String::new(),
        Some((group, inner)) if !inner.is_empty() => format!("{SHARE_PREFIX}{group}/{mountpoint}{inner}"),
        _ if filter.starts_with(SHARE_PREFIX) => filter.into(),
        _ => format!("{mountpoint}{filter}"),
    }
}

/// A topic as a client below the mountpoint knows it. One that is not below it (a session that came in elsewhere
/// before) stays whole.
pub(crate) fn strip<'a>(mountpoint: &str, topic: &'a str) -> &'a str {
    topic.strip_prefix(mountpoint).unwrap_or(topic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_mounted_behind_their_group() {
        for (asked, mounted) in [
            ("t/#", "a/t/#"),
            ("#", "a/#"),
            ("$SYS/#", "a/$SYS/#"),
            ("$share/g/t/+", "$share/g/a/t/+"),
            ("", ""),
            ("$share/g", "$share/g"),
            ("$share/g/", "$share/g/"),
        ] {
            assert_eq!(filter("a/", asked), mounted);
        }
    }

    #[test]
    fn what_is_mounted_is_stripped_and_what_is_not_stays() {
        let mut mounted = String::from("t/1");
        topic("a/", &mut mounted);
        assert_eq!((mounted.as_str(), strip("a/", &mounted), strip("a/", "b/t")), ("a/t/1", "t/1", "b/t"));
        let mut empty = String::new();
        topic("a/", &mut empty);
        assert_eq!(empty, "");
    }
}
