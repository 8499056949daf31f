//! mosquitto's password file: `user:hash` per line. Read on an ordinary thread, asked on the threads of [`super::pool`], written
//! by `ringmq passwd`. Always true: every user stands in it once; a user that is not in it costs a question as much time as one that is.

use std::{collections::HashMap, fmt::Display, hash::BuildHasher};

use contract::hash;

use super::password::Hashed;

/// Longest file that is read.
pub const FILE_BYTES_MAX: u64 = 256 << 20;
/// Longest user name: as long as CONNECT can say.
const USER_BYTES_MAX: usize = 65_535;

/// Users and their hashed passwords, in the order of the file.
#[derive(Clone, Default, Debug)]
pub struct PasswordFile {
    users: Users<Hashed>,
}

/// Lines of `user:secret`, in the order of their file.
#[derive(Clone, Debug)]
pub(super) struct Users<T> {
    lines: Vec<(Box<str>, T)>,
    by_user: HashMap<Box<str>, usize>,
}

/// What a file says about a user and a password.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It is the user's password; the number names the proof.
    Right(u64),
    /// It is not.
    Wrong,
    /// There is no such user.
    Unknown,
}

impl PasswordFile {
    /// Reads a file, or says which line is wrong.
    pub fn parse(text: &str) -> Result<PasswordFile, String> {
        Ok(PasswordFile { users: Users::parse(text, Hashed::parse)? })
    }

    /// Is this the user's password?
    pub fn ask(&self, user: &str, password: &[u8]) -> Answer {
        match self.users.find(user) {
            Some((at, hashed)) if hashed.is(password) => Answer::Right(self.users.proof(at)),
            Some(_) => Answer::Wrong,
            None => {
                let number = self.users.by_user.hasher().hash_one(user);
                if let Some(hashed) = self.users.somebody(number) {
                    std::hint::black_box(hashed.is(password));
                }
                Answer::Unknown
            }
        }
    }

    /// Every user with what names its proof.
    pub fn proofs(&self) -> impl Iterator<Item = (&str, u64)> {
        self.users.proofs()
    }
}

impl<T> Default for Users<T> {
    fn default() -> Users<T> {
        Users { lines: Vec::new(), by_user: HashMap::new() }
    }
}

impl<T: Display> Users<T> {
    /// Reads a file, or says which line is wrong.
    pub(super) fn parse(text: &str, parse: impl Fn(&str) -> Result<T, &'static str>) -> Result<Users<T>, String> {
        let mut users = Users::default();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why: &str| format!("line {}: {why}", at + 1);
            let (user, secret) = line.split_once(':').ok_or_else(|| wrong("a line is user:hash"))?;
            check_user(user).map_err(wrong)?;
            let secret = parse(secret).map_err(wrong)?;
            if users.by_user.contains_key(user) {
                return Err(wrong(&format!("user {user:?} stands in the file already")));
            }
            users.by_user.insert(user.into(), users.lines.len());
            users.lines.push((user.into(), secret));
        }
        Ok(users)
    }

    /// What stands behind a user's name, and in which place.
    pub(super) fn find(&self, user: &str) -> Option<(usize, &T)> {
        self.by_user.get(user).map(|at| (*at, &self.lines[*at].1))
    }

    /// What stands behind somebody's name. For a name that is not in the file, the number is always the same, so that it
    /// looks as if it were.
    pub(super) fn somebody(&self, number: u64) -> Option<&T> {
        let at = number as usize % self.lines.len().max(1);
        self.lines.get(at).map(|(_, secret)| secret)
    }

    /// Names what stands in a place: another number when it changes. Never 0.
    pub(super) fn proof(&self, at: usize) -> u64 {
        let (user, secret) = &self.lines[at];
        hash::stable(format!("{user}:{secret}").as_bytes()).max(1)
    }

    /// Every user with what names its proof.
    pub(super) fn proofs(&self) -> impl Iterator<Item = (&str, u64)> {
        self.lines.iter().enumerate().map(|(at, (user, _))| (&**user, self.proof(at)))
    }
}

/// The text of a file in which a user has another password, or none; everything else stays, comments too. The file was
/// checked with [`PasswordFile::parse`].
pub fn edited(text: &str, user: &str, hashed: Option<&dyn Display>) -> String {
    let fresh = hashed.map(|hashed| format!("{user}:{hashed}"));
    let of_user = |line: &str| line.split_once(':').is_some_and(|(name, _)| name == user);
    let mut lines: Vec<&str> = text.lines().collect();
    match (lines.iter().position(|line| of_user(line)), &fresh) {
        (Some(at), Some(fresh)) => lines[at] = fresh,
        (Some(at), None) => drop(lines.remove(at)),
        (None, Some(fresh)) => lines.push(fresh),
        (None, None) => {}
    }
    lines.iter().flat_map(|line| [*line, "\n"]).collect()
}

/// Can somebody be called like this in such a file?
pub fn check_user(user: &str) -> Result<(), &'static str> {
    match user {
        "" => Err("a user needs a name"),
        _ if user.len() > USER_BYTES_MAX => Err("the user name is too long"),
        _ if user.contains(':') => Err("a user name cannot contain ':'"),
        _ if user.contains(char::is_control) => Err("a user name cannot contain control characters"),
        _ if user.starts_with('#') => Err("a user name cannot begin with '#', which begins a comment"),
        _ if user.trim_end() != user => Err("a user name cannot end with a blank"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::{super::password::Method, *};

    fn hashed(password: &str) -> Hashed {
        Hashed::new(password.as_bytes(), Method::Pbkdf2(NonZeroU32::MIN)).expect("randomness")
    }

    #[test]
    fn a_file_that_is_written_is_read_back_and_knows_its_users() {
        let mut text = "# users\n\n".to_owned();
        for (user, password) in [("alice", "a"), ("bob b", "b"), ("\u{e9}ve", "c")] {
            text = edited(&text, user, Some(&hashed(password)));
        }
        let file = PasswordFile::parse(&text).expect("we wrote it");
        assert!(matches!(file.ask("alice", b"a"), Answer::Right(proof) if proof != 0));
        assert_eq!((file.ask("alice", b"b"), file.ask("\u{e9}ve", b"")), (Answer::Wrong, Answer::Wrong));
        assert_eq!(file.ask("eve", b"c"), Answer::Unknown);
        let text = edited(&edited(&text, "bob b", Some(&hashed("b"))), "alice", None);
        let after = PasswordFile::parse(&text).expect("we wrote it");
        let proof = |file: &PasswordFile, user| file.proofs().find(|(name, _)| *name == user).map(|(_, proof)| proof);
        assert_ne!(proof(&after, "bob b"), proof(&file, "bob b"), "a password that is set again is another proof");
        assert_eq!(proof(&after, "\u{e9}ve"), proof(&file, "\u{e9}ve"));
        assert_eq!(after.ask("alice", b"a"), Answer::Unknown);
        assert!(text.starts_with("# users\n\nbob b:$7$1$") && edited(&text, "nobody", None) == text);
        assert_eq!(PasswordFile::default().ask("x", b"x"), Answer::Unknown);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let good = hashed("x").to_string();
        for (text, why) in [
            ("a".to_owned(), "line 1: a line is user:hash"),
            ("\n:x".to_owned(), "line 2: a user needs a name"),
            ("a:plain".to_owned(), "line 1: the password is not hashed"),
            (format!("a:{good}\na:{good}"), "line 2: user \"a\" stands in the file already"),
            (format!("a\u{7}:{good}"), "line 1: a user name cannot contain control"),
        ] {
            let said = PasswordFile::parse(&text).map(|_| ()).expect_err(&text);
            assert!(said.starts_with(why), "{said}");
        }
    }
}
