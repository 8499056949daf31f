//! Hashed passwords as mosquitto's files hold them: `$6$` (SHA-512), `$7$` (PBKDF2-SHA512) and `$argon2id$`. Made by
//! `ringmq passwd`, compared on the threads of [`super::pool`], never on a shard: a comparison takes milliseconds on purpose.
//! Always true: what was parsed can be compared within [`MEMORY_KIB_MAX`] and [`ROUNDS_MAX`].

use std::{fmt, num::NonZeroU32};

use argon2::{Algorithm, Argon2, Params, Version};
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use ring::{
    digest, pbkdf2,
    rand::{SecureRandom, SystemRandom},
};

/// Memory that one comparison may take.
pub const MEMORY_KIB_MAX: u32 = 1 << 20;
/// Rounds that one comparison may take.
pub const ROUNDS_MAX: u32 = 10_000_000;
/// Longest password that is hashed: as long as CONNECT can say.
pub const PASSWORD_BYTES_MAX: usize = 65_535;
/// Longest salt or hash in a file.
const PART_BYTES_MAX: usize = 256;
/// What OWASP recommends for argon2id: 19 MiB, two rounds, one lane.
const ARGON2: (u32, u32, u32) = (19_456, 2, 1);
const ARGON2_SALT_BYTES: usize = 16;
/// mosquitto 2.0 takes no other length.
const SALT_BYTES: usize = 12;
const SHA512_BYTES: usize = 64;

/// mosquitto pads, argon2's own tools do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A hashed password.
#[derive(Clone, PartialEq, Eq)]
pub struct Hashed {
    method: Method,
    salt: Box<[u8]>,
    hash: Box<[u8]>,
}

/// How a password is hashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// One round of SHA-512, mosquitto's `$6$`. Only read: it is too cheap to guess.
    Sha512,
    /// So many rounds of PBKDF2 with SHA-512, mosquitto's `$7$`.
    Pbkdf2(NonZeroU32),
    /// argon2id: KiB of memory, rounds, lanes.
    Argon2id(u32, u32, u32),
}

impl Method {
    /// What new passwords get.
    pub const ARGON2ID: Method = Method::Argon2id(ARGON2.0, ARGON2.1, ARGON2.2);
}

impl fmt::Debug for Hashed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.method)
    }
}

impl Hashed {
    /// Hashes a password with a fresh salt. Fails if the system has no randomness, or the method no such parameters.
    pub fn new(password: &[u8], method: Method) -> Result<Hashed, String> {
        let (salt_bytes, bytes) = match method {
            Method::Argon2id(..) => (ARGON2_SALT_BYTES, 32),
            _ => (SALT_BYTES, SHA512_BYTES),
        };
        let mut salt = vec![0; salt_bytes];
        SystemRandom::new().fill(&mut salt).map_err(|_| "the system gives no random bytes".to_owned())?;
        let mut hash = vec![0; bytes];
        if !method.hash(password, &salt, &mut hash) {
            return Err(format!("{method:?} cannot be computed"));
        }
        Ok(Hashed { method, salt: salt.into(), hash: hash.into() })
    }

    /// What stands behind the colon in a file, or why it is none.
    pub fn parse(text: &str) -> Result<Hashed, &'static str> {
        let mut parts = text.strip_prefix('$').ok_or("the password is not hashed; see mosquitto_passwd -U")?.split('$');
        let mut next = || parts.next().ok_or("the hash is incomplete");
        let method = match next()? {
            "6" => Method::Sha512,
            "7" => {
                let rounds = next()?.parse::<u32>().ok().filter(|rounds| *rounds <= ROUNDS_MAX);
                Method::Pbkdf2(rounds.and_then(NonZeroU32::new).ok_or("the number of rounds is out of bounds")?)
            }
            "argon2id" => {
                if next()? != "v=19" {
                    return Err("the version of argon2id must be 19");
                }
                argon2_parameters(next()?).ok_or("the parameters of argon2id are out of bounds")?
            }
            _ => return Err("the hash is none of $6$, $7$ and $argon2id$"),
        };
        let mut bytes = |bytes_min: usize| {
            let part = next()?;
            let decoded = if part.len() <= PART_BYTES_MAX { BASE64.decode(part).ok() } else { None };
            decoded
                .filter(|decoded| decoded.len() >= bytes_min)
                .ok_or("salt or hash is no base64, too short or too long")
        };
        let (salt, hash) = match method {
            Method::Argon2id(..) => (bytes(8)?, bytes(16)?),
            // mosquitto took 12 bytes of salt, and takes 64 today.
            _ => (bytes(1)?, bytes(SHA512_BYTES)?),
        };
        if next().is_ok() {
            return Err("something follows the hash");
        }
        if !matches!(method, Method::Argon2id(..)) && hash.len() != SHA512_BYTES {
            return Err("the hash is too long");
        }
        Ok(Hashed { method, salt: salt.into(), hash: hash.into() })
    }

    /// Is this the password? Takes as long if it is not.
    pub fn is(&self, password: &[u8]) -> bool {
        let mut hash = vec![0; self.hash.len()];
        let hashed = self.method.hash(password, &self.salt, &mut hash);
        let differ = hash.iter().zip(&self.hash).fold(0, |differ, (a, b)| differ | (a ^ b));
        hashed & (std::hint::black_box(differ) == 0)
    }
}

impl fmt::Display for Hashed {
    /// What stands behind the colon in a file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (salt, hash) = (BASE64.encode(&self.salt), BASE64.encode(&self.hash));
        match self.method {
            Method::Sha512 => write!(f, "$6${salt}${hash}"),
            Method::Pbkdf2(rounds) => write!(f, "$7${rounds}${salt}${hash}"),
            Method::Argon2id(memory, rounds, lanes) => {
                let (salt, hash) = (salt.trim_end_matches('='), hash.trim_end_matches('='));
                write!(f, "$argon2id$v=19$m={memory},t={rounds},p={lanes}${salt}${hash}")
            }
        }
    }
}

impl Method {
    /// Fills `out`; false if these parameters cannot be computed.
    fn hash(self, password: &[u8], salt: &[u8], out: &mut [u8]) -> bool {
        match self {
            Method::Sha512 => {
                let mut digest = digest::Context::new(&digest::SHA512);
                digest.update(password);
                digest.update(salt);
                out.copy_from_slice(digest.finish().as_ref());
                true
            }
            Method::Pbkdf2(rounds) => {
                pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, rounds, salt, password, out);
                true
            }
            Method::Argon2id(memory, rounds, lanes) => {
                let Ok(params) = Params::new(memory, rounds, lanes, Some(out.len())) else { return false };
                let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
                argon2.hash_password_into(password, salt, out).is_ok()
            }
        }
    }
}

/// `m=19456,t=2,p=1`
fn argon2_parameters(text: &str) -> Option<Method> {
    let mut parts = text.split(',');
    let mut number = |name: &str| parts.next()?.strip_prefix(name)?.strip_prefix('=')?.parse::<u32>().ok();
    let (memory, rounds, lanes) = (number("m")?, number("t")?, number("p")?);
    let bounded = memory <= MEMORY_KIB_MAX && rounds <= 1000 && lanes <= 64 && parts.next().is_none();
    let computable = Params::new(memory, rounds, lanes, None).is_ok();
    (bounded && computable).then_some(Method::Argon2id(memory, rounds, lanes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDS: Method = Method::Pbkdf2(NonZeroU32::new(101).unwrap());
    const CHEAP: Method = Method::Argon2id(8, 1, 1);

    #[test]
    fn what_was_hashed_is_recognised_also_after_it_was_written_and_read() {
        for method in [Method::Sha512, ROUNDS, CHEAP] {
            let hashed = Hashed::new("pa\u{df}word".as_bytes(), method).expect("randomness");
            let read = Hashed::parse(&hashed.to_string()).expect("we wrote it");
            assert_eq!(read, hashed);
            assert!(read.is("pa\u{df}word".as_bytes()) && !read.is(b"password") && !read.is(b""), "{method:?}");
        }
        assert_ne!(Hashed::new(b"x", ROUNDS).unwrap().to_string(), Hashed::new(b"x", ROUNDS).unwrap().to_string());
    }

    #[test]
    fn hashes_of_other_programs_are_recognised() {
        for (text, password) in [
            // The reference implementation of argon2: `echo -n password | argon2 somesalt -id -t 2 -m 16 -p 1`.
            ("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", "password"),
            // mosquitto_passwd 2.0.11.
            (
                "$7$101$HmG6Oh2kkVAPMeWn$UkA0/H6bhGmhcok95/xkqV+hSGpG9skKWwajT1G/gxQn6KuMMvVkkg+nKYjguxbrsfnj8Sa2B+BTS+aaCwyn0A==",
                "password",
            ),
            // SHA-512 of "passwordtwelve bytes", by Python's hashlib.
            (
                "$6$dHdlbHZlIGJ5dGVz$wHb5MFmBtqbXCBFo+//e6NpLGubfl7+BcAd9yO/67ZRByKOmWjvdmDsVkhR2ft12amu25NtFJqseNSuVwoufbQ==",
                "password",
            ),
        ] {
            let hashed = Hashed::parse(text).expect(text);
            assert!(hashed.is(password.as_bytes()) && !hashed.is(b"else"), "{text}");
            assert_eq!(hashed.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_hash_is_refused_with_a_reason() {
        let long = format!("$6${}$x", "A".repeat(300));
        let short = format!("$6$AAAA${}", BASE64.encode([0; 63]));
        let over = format!("$7$10000001$AAAA${}", BASE64.encode([0; 64]));
        for (text, why) in [
            ("secret", "not hashed"),
            ("$5$AAAA$AAAA", "none of"),
            ("$6$AAAA", "incomplete"),
            (long.as_str(), "no base64, too short or too long"),
            (short.as_str(), "no base64, too short or too long"),
            ("$7$0$AAAA$AAAA", "out of bounds"),
            (over.as_str(), "out of bounds"),
            ("$7$x$AAAA$AAAA", "out of bounds"),
            ("$argon2id$v=16$m=8,t=1,p=1$AAAA$AAAA", "version"),
            ("$argon2id$v=19$m=99999999,t=1,p=1$AAAA$AAAA", "out of bounds"),
            ("$argon2id$v=19$m=8,t=0,p=1$AAAA$AAAA", "out of bounds"),
            ("$argon2id$v=19$m=8,t=1$AAAA$AAAA", "out of bounds"),
        ] {
            let said = Hashed::parse(text).expect_err(text);
            assert!(said.contains(why), "{text}: {said}");
        }
    }
}
