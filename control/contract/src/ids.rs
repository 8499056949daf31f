//! Names and numbers that mean the same in both processes and on every shard.

use core::fmt;

use serde::{Deserialize, Serialize};

/// Longest name of a node, a cluster, a link or a listener.
pub const NAME_BYTES_MAX: usize = 254;

/// A shard of this node, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct ShardId(pub u16);

impl ShardId {
    /// As an index into a list with one entry per shard.
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a node: `name@host`, unique in its cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeName<'a> {
    /// What stands before the `@`.
    pub name: &'a str,
    /// What stands behind it: an address or a host name.
    pub host: &'a str,
}

/// Why a string is no name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameError {
    /// Nothing, or more than [`NAME_BYTES_MAX`] bytes.
    Length,
    /// Not exactly one `@` with something on both sides.
    At,
    /// A character that names do not have.
    Character(char),
}

impl<'a> NodeName<'a> {
    /// Checks a node name.
    pub fn parse(text: &'a str) -> Result<NodeName<'a>, NameError> {
        check_length(text)?;
        let (name, host) = text.split_once('@').ok_or(NameError::At)?;
        if name.is_empty() || host.is_empty() || host.contains('@') {
            return Err(NameError::At);
        }
        check_characters(name, "-_")?;
        check_characters(host, "-_.:[]")?;
        Ok(NodeName { name, host })
    }
}

/// Checks the name of a cluster, a link or a listener: letters, digits, `-` and `_`, not beginning with the last two.
pub fn check_name(text: &str) -> Result<(), NameError> {
    check_length(text)?;
    check_characters(text, "-_")?;
    match text.chars().next() {
        Some(first @ ('-' | '_')) => Err(NameError::Character(first)),
        _ => Ok(()),
    }
}

fn check_length(text: &str) -> Result<(), NameError> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX { Err(NameError::Length) } else { Ok(()) }
}

fn check_characters(text: &str, beside: &str) -> Result<(), NameError> {
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !beside.contains(*c)) {
        Some(wrong) => Err(NameError::Character(wrong)),
        None => Ok(()),
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Length => write!(f, "a name has 1 to {NAME_BYTES_MAX} bytes"),
            NameError::At => f.write_str("a node's name is name@host"),
            NameError::Character(wrong) => write!(f, "a name cannot contain {wrong:?} there"),
        }
    }
}

impl core::error::Error for NameError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_have_a_name_and_a_host() {
        let parsed = NodeName::parse("ringmq2@10.0.0.1").unwrap();
        assert_eq!((parsed.name, parsed.host), ("ringmq2", "10.0.0.1"));
        assert_eq!(NodeName::parse("a@[::1]").unwrap().host, "[::1]");
        for (bad, why) in [
            ("", NameError::Length),
            ("ringmq", NameError::At),
            ("@host", NameError::At),
            ("a@", NameError::At),
            ("a@b@c", NameError::At),
            ("a b@c", NameError::Character(' ')),
            ("a@b/c", NameError::Character('/')),
        ] {
            assert_eq!(NodeName::parse(bad), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn names_of_clusters_begin_with_a_letter_or_digit() {
        for good in ["a", "eu-west", "9_b", "A-"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", NameError::Length),
            ("-a", NameError::Character('-')),
            ("_a", NameError::Character('_')),
            ("a.b", NameError::Character('.')),
            ("é", NameError::Character('é')),
        ] {
            assert_eq!(check_name(bad), Err(why), "{bad:?}");
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        assert_eq!(check_name(&long), Err(NameError::Length));
        assert_eq!(check_name(&long[1..]), Ok(()));
    }
}
