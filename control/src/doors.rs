//! Who may change something over HTTP: administrators with a password, programs with an API key. Kept by control in `doors.json`
//! in the data directory, for its owner only; changed over `control.sock`, whose door is the directory's. Always true: the file
//! holds no secret from which a caller could be made, and what was answered is on the disk.

use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use argon2::Argon2;
use ring::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};

use crate::replace_file;

/// Where they stand, in the data directory.
pub(crate) const DOORS_FILE: &str = "doors.json";
/// Administrators, and API keys: as many as EMQX has of the latter.
const ADMINS_MAX: usize = 100;
const KEYS_MAX: usize = 100;
/// Tokens of administrators who logged in; the oldest makes room.
const TOKENS_MAX: usize = 1000;
/// A token is good for this long.
pub(crate) const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// A file that is longer is none of ours.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest name and password.
const NAME_CHARS_MAX: usize = 64;
const PASSWORD_BYTES: std::ops::RangeInclusive<usize> = 8..=1024;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
const SECRET_BYTES: usize = 32;
const KEY_BYTES: usize = 8;

/// Administrators and keys.
pub(crate) struct Doors {
    path: PathBuf,
    book: Mutex<Book>,
    tokens: Mutex<VecDeque<Token>>,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Book {
    admins: Vec<Admin>,
    keys: Vec<Key>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Admin {
    name: String,
    /// argon2id with its default parameters (19 MiB, two rounds, one lane), both in hexadecimal.
    salt: String,
    hash: String,
}

#[derive(Clone, Serialize, Deserialize)]
struct Key {
    name: String,
    key: String,
    /// SHA-256: the secret is 32 random bytes, which nobody guesses.
    secret: String,
}

struct Token {
    digest: Digest,
    until: Instant,
}

type Digest = [u8; digest::SHA256_OUTPUT_LEN];

/// A new API key; the secret is shown this one time.
pub(crate) struct Minted {
    pub(crate) key: String,
    pub(crate) secret: String,
}

impl Doors {
    /// Reads what is kept in `data_dir`. A file that cannot be read is an error: without it every door would be another one.
    pub(crate) fn open(data_dir: &Path) -> io::Result<Doors> {
        let path = data_dir.join(DOORS_FILE);
        let book = match fs::metadata(&path) {
            Ok(found) if found.len() > FILE_BYTES_MAX => return Err(io::Error::other("it is too long")),
            Ok(_) => serde_json::from_slice(&fs::read(&path)?).map_err(io::Error::other)?,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Book::default(),
            Err(cause) => return Err(cause),
        };
        Ok(Doors { path, book: Mutex::new(book), tokens: Mutex::default() })
    }

    /// Adds an administrator, or gives one another password. Takes tens of milliseconds on purpose.
    pub(crate) fn add_admin(&self, name: &str, password: &str) -> Result<(), String> {
        check_name(name)?;
        if !PASSWORD_BYTES.contains(&password.len()) {
            let (least, most) = (PASSWORD_BYTES.start(), PASSWORD_BYTES.end());
            return Err(format!("a password has {least} to {most} bytes"));
        }
        let salt = random::<SALT_BYTES>()?;
        let hash = hash(password, &salt).ok_or("the password cannot be hashed")?;
        let admin = Admin { name: name.into(), salt: hex(&salt), hash: hex(&hash) };
        self.change(|book| {
            book.admins.retain(|known| known.name != name);
            if book.admins.len() >= ADMINS_MAX {
                return Err(format!("there are {ADMINS_MAX} administrators already"));
            }
            book.admins.push(admin);
            Ok(())
        })?;
        // Whoever knew the old password is out.
        self.tokens().clear();
        Ok(())
    }

    /// Removes an administrator, and the tokens of all.
    pub(crate) fn remove_admin(&self, name: &str) -> Result<(), String> {
        self.change(|book| {
            let before = book.admins.len();
            book.admins.retain(|known| known.name != name);
            if book.admins.len() < before { Ok(()) } else { Err(format!("there is no administrator {name:?}")) }
        })?;
        self.tokens().clear();
        Ok(())
    }

    /// Makes an API key.
    pub(crate) fn add_key(&self, name: &str) -> Result<Minted, String> {
        check_name(name)?;
        let minted = Minted { key: hex(&random::<KEY_BYTES>()?), secret: hex(&random::<SECRET_BYTES>()?) };
        let key = Key { name: name.into(), key: minted.key.clone(), secret: hex(&sha256(minted.secret.as_bytes())) };
        self.change(|book| {
            if book.keys.iter().any(|known| known.name == name) {
                return Err(format!("there is an API key {name:?} already"));
            }
            if book.keys.len() >= KEYS_MAX {
                return Err(format!("there are {KEYS_MAX} API keys already"));
            }
            book.keys.push(key);
            Ok(())
        })?;
        Ok(minted)
    }

    /// Removes an API key by its name.
    pub(crate) fn remove_key(&self, name: &str) -> Result<(), String> {
        self.change(|book| {
            let before = book.keys.len();
            book.keys.retain(|known| known.name != name);
            if book.keys.len() < before { Ok(()) } else { Err(format!("there is no API key {name:?}")) }
        })
    }

    /// Names of the administrators.
    pub(crate) fn admins(&self) -> Vec<String> {
        self.book().admins.iter().map(|admin| admin.name.clone()).collect()
    }

    /// Names and keys of the API keys.
    pub(crate) fn keys(&self) -> Vec<(String, String)> {
        self.book().keys.iter().map(|key| (key.name.clone(), key.key.clone())).collect()
    }

    /// Is this an API key with its secret? Quick.
    pub(crate) fn knows_key(&self, key: &str, secret: &str) -> bool {
        let secret = hex(&sha256(secret.as_bytes()));
        self.book().keys.iter().any(|known| known.key == key && known.secret == secret)
    }

    /// Is this an administrator with the right password? Takes tens of milliseconds, also for a name that nobody has.
    pub(crate) fn knows_admin(&self, name: &str, password: &str) -> bool {
        if password.len() > *PASSWORD_BYTES.end() {
            return false;
        }
        let admin = self.book().admins.iter().find(|known| known.name == name).cloned();
        let salt = admin.as_ref().and_then(|admin| unhex(&admin.salt)).unwrap_or_else(|| vec![0; SALT_BYTES]);
        let hashed = hash(password, &salt).map(|hash| hex(&hash));
        admin.is_some_and(|admin| hashed.as_ref() == Some(&admin.hash))
    }

    /// A token for an administrator who has just shown a password.
    pub(crate) fn token(&self) -> Result<String, String> {
        let token = hex(&random::<SECRET_BYTES>()?);
        let mut tokens = self.tokens();
        let now = Instant::now();
        tokens.retain(|known| known.until > now);
        if tokens.len() >= TOKENS_MAX {
            tokens.pop_front();
        }
        tokens.push_back(Token { digest: sha256(token.as_bytes()), until: now + TOKEN_LIFE });
        Ok(token)
    }

    /// Is this a token that is still good?
    pub(crate) fn knows_token(&self, token: &str) -> bool {
        let (digest, now) = (sha256(token.as_bytes()), Instant::now());
        self.tokens().iter().any(|known| known.digest == digest && known.until > now)
    }

    /// Changes the book, on the disk first.
    fn change(&self, change: impl FnOnce(&mut Book) -> Result<(), String>) -> Result<(), String> {
        let mut book = self.book();
        let mut fresh = book.clone();
        change(&mut fresh)?;
        let text = serde_json::to_string_pretty(&fresh).map_err(|cause| cause.to_string())?;
        let path = self.path.display();
        replace_file(&self.path, &text, 0o600).map_err(|cause| format!("cannot write {path}: {cause}"))?;
        *book = fresh;
        Ok(())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tokens(&self) -> MutexGuard<'_, VecDeque<Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that fits into `Authorization: Basic` and into one line.
fn check_name(name: &str) -> Result<(), String> {
    let odd = |c: char| c == ':' || c.is_control();
    match name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.contains(odd) {
        true => Err(format!("a name has 1 to {NAME_CHARS_MAX} characters, no colon and no control characters")),
        false => Ok(()),
    }
}

fn hash(password: &str, salt: &[u8]) -> Option<[u8; HASH_BYTES]> {
    let mut hash = [0; HASH_BYTES];
    Argon2::default().hash_password_into(password.as_bytes(), salt, &mut hash).ok().map(|()| hash)
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut out = [0; digest::SHA256_OUTPUT_LEN];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| "the system gives no random bytes".to_owned())?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks_exact(2);
    digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn administrators_and_keys_are_there_after_a_restart_and_their_secrets_are_not_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let doors = Doors::open(dir.path()).unwrap();
        doors.add_admin("ann", "correct horse").unwrap();
        let minted = doors.add_key("grafana").unwrap();
        let text = fs::read_to_string(dir.path().join(DOORS_FILE)).unwrap();
        assert!(!text.contains("correct horse") && !text.contains(&minted.secret));
        let again = Doors::open(dir.path()).unwrap();
        assert!(again.knows_admin("ann", "correct horse") && !again.knows_admin("ann", "wrong horse"));
        assert!(!again.knows_admin("bob", "correct horse"));
        assert!(again.knows_key(&minted.key, &minted.secret) && !again.knows_key(&minted.key, "other"));
        again.remove_key("grafana").unwrap();
        assert!(!again.knows_key(&minted.key, &minted.secret));
        assert_eq!((again.admins(), again.keys()), (vec!["ann".to_owned()], vec![]));
    }

    #[test]
    fn another_password_ends_the_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let doors = Doors::open(dir.path()).unwrap();
        doors.add_admin("ann", "correct horse").unwrap();
        let token = doors.token().unwrap();
        assert!(doors.knows_token(&token) && !doors.knows_token("other"));
        doors.add_admin("ann", "battery staple").unwrap();
        assert!(!doors.knows_token(&token) && !doors.knows_admin("ann", "correct horse"));
    }

    #[test]
    fn what_cannot_be_a_door_is_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let doors = Doors::open(dir.path()).unwrap();
        assert!(doors.add_admin("a:b", "correct horse").is_err_and(|why| why.contains("colon")));
        assert!(doors.add_admin("ann", "short").is_err_and(|why| why.contains("8 to 1024")));
        assert!(doors.remove_admin("ann").is_err() && doors.remove_key("none").is_err());
        doors.add_key("one").unwrap();
        assert!(doors.add_key("one").is_err_and(|why| why.contains("already")));
        fs::write(dir.path().join(DOORS_FILE), "{").unwrap();
        assert!(Doors::open(dir.path()).is_err(), "a file that is no book does not open every door");
    }
}
