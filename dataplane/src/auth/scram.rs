//! SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side: what is kept of a password, and the two steps of an exchange.
//! Pure but for [`Verifier::new`]: nonces and secrets are arguments. Asked on the threads of [`super::pool`].
//! Always true: who is not known costs as much as who is, and is told a salt that stays the same, until its proof fails.

use std::{fmt, num::NonZeroU32};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    digest::{SHA256, digest},
    hmac, pbkdf2,
    rand::{SecureRandom, SystemRandom},
};

/// The Authentication Method.
pub const METHOD: &str = "SCRAM-SHA-256";
/// What RFC 7677 asks for at least.
pub const ROUNDS_MIN: u32 = 4096;
/// Rounds that a client may be asked for.
pub const ROUNDS_MAX: u32 = 10_000_000;
/// Longest message of a client.
const MESSAGE_BYTES_MAX: usize = 8192;
/// Longest nonce of a client, and shortest: less would not be random.
const NONCE_BYTES: std::ops::RangeInclusive<usize> = 8..=512;
const SALT_BYTES: usize = 16;
const KEY_BYTES: usize = 32;

/// What salts of users that do not exist are made from.
pub(crate) type Secret = [u8; KEY_BYTES];

/// What is kept of a password: enough to recognise who knows it, and to show that we know it, too.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    rounds: NonZeroU32,
    salt: Box<[u8]>,
    stored_key: [u8; KEY_BYTES],
    server_key: [u8; KEY_BYTES],
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{METHOD} with {} rounds", self.rounds)
    }
}

impl fmt::Display for Verifier {
    /// As RFC 5803 and PostgreSQL write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [salt, stored, server] =
            [&self.salt[..], &self.stored_key, &self.server_key].map(|bytes| STANDARD.encode(bytes));
        write!(f, "{METHOD}${}:{salt}${stored}:{server}", self.rounds)
    }
}

impl Verifier {
    /// What to keep of a password, with a fresh salt. Fails if the system has no randomness, or the password characters
    /// that clients may write in more than one way.
    pub fn new(password: &str, rounds: NonZeroU32) -> Result<Verifier, String> {
        if !password.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            // SASLprep leaves these as they are, and needs tables for all others.
            return Err("a password for SCRAM has letters, digits, signs and blanks of ASCII only".to_owned());
        }
        let mut salt = [0; SALT_BYTES];
        SystemRandom::new().fill(&mut salt).map_err(|_| "the system gives no random bytes".to_owned())?;
        Ok(Verifier::of(password.as_bytes(), &salt, rounds))
    }

    fn of(password: &[u8], salt: &[u8], rounds: NonZeroU32) -> Verifier {
        let mut salted = [0; KEY_BYTES];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, password, &mut salted);
        let (client_key, server_key) = (signed(&salted, b"Client Key"), signed(&salted, b"Server Key"));
        Verifier { rounds, salt: salt.into(), stored_key: hashed(&client_key), server_key }
    }

    /// What stands behind the colon in a file, or why it is none.
    pub fn parse(text: &str) -> Result<Verifier, &'static str> {
        let rest = text.strip_prefix(METHOD).and_then(|rest| rest.strip_prefix('$'));
        let rest = rest.ok_or("this is no SCRAM-SHA-256$; see ringmq passwd --scram")?;
        let shape = "a line is user:SCRAM-SHA-256$rounds:salt$stored key:server key";
        let (terms, keys) = rest.split_once('$').ok_or(shape)?;
        let ((rounds, salt), (stored, server)) =
            (terms.split_once(':').ok_or(shape)?, keys.split_once(':').ok_or(shape)?);
        let rounds = rounds.parse().ok().filter(|rounds| *rounds <= ROUNDS_MAX).and_then(NonZeroU32::new);
        let rounds = rounds.ok_or("the number of rounds is out of bounds")?;
        let salt = STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty() && salt.len() <= 256);
        let salt = salt.ok_or("the salt is no base64, too short or too long")?;
        let key = |text: &str| STANDARD.decode(text).ok()?.try_into().ok();
        let keys = key(stored).zip(key(server));
        let (stored_key, server_key) = keys.ok_or("a key is no base64 of 32 bytes")?;
        Ok(Verifier { rounds, salt: salt.into(), stored_key, server_key })
    }

    /// What a user that does not exist would have, if it looked like `like`. Nobody knows a password for it.
    fn of_nobody(user: &str, secret: &Secret, like: Option<&Verifier>) -> Verifier {
        let part = |what: &str| signed(secret, format!("{what}:{user}").as_bytes());
        let salt_bytes = like.map_or(SALT_BYTES, |like| like.salt.len());
        let salt: Vec<u8> = part("salt").into_iter().cycle().take(salt_bytes).collect();
        let rounds = like.map_or(NonZeroU32::MIN.saturating_add(ROUNDS_MIN - 1), |like| like.rounds);
        Verifier { rounds, salt: salt.into(), stored_key: part("stored"), server_key: part("server") }
    }
}

/// A number for a user that does not exist, the same after a restart: it chooses whom it looks like.
pub(super) fn number(user: &str, secret: &Secret) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = signed(secret, format!("like:{user}").as_bytes());
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// The first message of a client.
pub(super) struct First<'a> {
    /// Who it says it is.
    pub(super) user: String,
    /// What it says about channel binding and about whom to act for, as it wrote it.
    header: &'a str,
    bare: &'a str,
    nonce: &'a str,
}

impl<'a> First<'a> {
    /// Reads it, or says what is wrong with it.
    pub(super) fn parse(data: &'a [u8]) -> Result<First<'a>, &'static str> {
        let text = text(data)?;
        let mut parts = text.splitn(3, ',');
        let (binding, act_for, bare) = (parts.next(), parts.next(), parts.next());
        match binding {
            Some("n" | "y") => {}
            Some(binding) if binding.starts_with("p=") => {
                return Err("SCRAM with channel binding, which is not offered here");
            }
            _ => return Err("a SCRAM message that does not begin with n, y or p="),
        }
        let (Some(act_for), Some(bare)) = (act_for, bare) else { return Err("an incomplete SCRAM message") };
        if !act_for.is_empty() {
            return Err("SCRAM for somebody else (a=), which nobody may");
        }
        let mut attributes = bare.split(',');
        let user = match attributes.next().and_then(|user| user.split_once('=')) {
            Some(("n", user)) => unescaped(user).ok_or("a SCRAM user name with a wrong escape")?,
            Some(("m", _)) => return Err("a SCRAM extension that is not known here (m=)"),
            _ => return Err("a SCRAM message without a user name"),
        };
        let nonce = attributes.next().and_then(|nonce| nonce.strip_prefix("r="));
        let nonce = nonce.filter(|nonce| nonce.bytes().all(|byte| byte.is_ascii_graphic()));
        let nonce = nonce.filter(|nonce| NONCE_BYTES.contains(&nonce.len()));
        let nonce = nonce.ok_or("a SCRAM message without a nonce of 8 to 512 bytes")?;
        let header = &text[..text.len() - bare.len()];
        Ok(First { user, header, bare, nonce })
    }
}

/// What was said to a client, until it proves that it knows the password.
pub(super) struct Challenge {
    header: String,
    nonce: String,
    /// First messages of both, and the comma behind them.
    said: String,
    verifier: Verifier,
}

impl Challenge {
    /// Answers the first message. `ours` is our part of the nonce; `known` is what is kept of the user, `like` what is
    /// kept of somebody.
    pub(super) fn new(
        first: &First<'_>,
        ours: &str,
        known: Option<&Verifier>,
        (like, secret): (Option<&Verifier>, &Secret),
    ) -> (Challenge, String) {
        let nobody = Verifier::of_nobody(&first.user, secret, like);
        let verifier = known.cloned().unwrap_or(nobody);
        let nonce = format!("{}{ours}", first.nonce);
        let answer = format!("r={nonce},s={},i={}", STANDARD.encode(&verifier.salt), verifier.rounds);
        let said = format!("{},{answer},", first.bare);
        (Challenge { header: first.header.to_owned(), nonce, said, verifier }, answer)
    }

    /// Judges the client's proof; gives ours, or says why it is none.
    pub(super) fn judge(&self, data: &[u8]) -> Result<String, &'static str> {
        let text = text(data)?;
        let (unproven, proof) = text.rsplit_once(",p=").ok_or("a SCRAM message without a proof")?;
        let mut attributes = unproven.split(',');
        let (header, nonce) = (attributes.next(), attributes.next());
        let header = header.and_then(|header| header.strip_prefix("c=")).and_then(|c| STANDARD.decode(c).ok());
        if header.as_deref() != Some(self.header.as_bytes()) {
            return Err("SCRAM channel binding has changed on the way");
        }
        if nonce.and_then(|nonce| nonce.strip_prefix("r=")) != Some(&self.nonce) {
            return Err("a SCRAM nonce that is not ours");
        }
        let proof: Option<[u8; KEY_BYTES]> = STANDARD.decode(proof).ok().and_then(|proof| proof.try_into().ok());
        let proof = proof.ok_or("a SCRAM proof that is no base64 of 32 bytes")?;
        let said = format!("{}{unproven}", self.said);
        let mut client_key = signed(&self.verifier.stored_key, said.as_bytes());
        client_key.iter_mut().zip(proof).for_each(|(key, proof)| *key ^= proof);
        let ours = hashed(&client_key);
        let differ = ours.iter().zip(&self.verifier.stored_key).fold(0, |differ, (a, b)| differ | (a ^ b));
        if std::hint::black_box(differ) != 0 {
            return Err("a SCRAM proof that is wrong: no such user, or another password");
        }
        Ok(format!("v={}", STANDARD.encode(signed(&self.verifier.server_key, said.as_bytes()))))
    }
}

fn text(data: &[u8]) -> Result<&str, &'static str> {
    let data = if data.len() <= MESSAGE_BYTES_MAX { data } else { return Err("a SCRAM message that is too long") };
    str::from_utf8(data).ok().filter(|text| !text.contains('\0')).ok_or("a SCRAM message that is no text")
}

/// `=2C` is a comma, `=3D` an equals sign, and nothing else follows an equals sign.
fn unescaped(name: &str) -> Option<String> {
    let mut parts = name.split('=');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let (sign, rest) = part.split_at_checked(2)?;
        plain.push(match sign {
            "2C" => ',',
            "3D" => '=',
            _ => return None,
        });
        plain.push_str(rest);
    }
    Some(plain)
}

fn signed(key: &[u8], text: &[u8]) -> [u8; KEY_BYTES] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
    array(tag.as_ref())
}

fn hashed(bytes: &[u8]) -> [u8; KEY_BYTES] {
    array(digest(&SHA256, bytes).as_ref())
}

/// SHA-256 makes as many.
fn array(bytes: &[u8]) -> [u8; KEY_BYTES] {
    let mut array = [0; KEY_BYTES];
    array.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Secret = [7; 32];
    /// The exchange of RFC 7677, section 3.
    const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const OURS: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                                p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn pencil() -> Verifier {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64");
        Verifier::of(b"pencil", &salt, NonZeroU32::new(4096).expect("not zero"))
    }

    fn challenge(known: Option<&Verifier>) -> (Challenge, String) {
        let first = First::parse(CLIENT_FIRST.as_bytes()).expect("it is the RFC's");
        Challenge::new(&first, OURS, known, (None, &SECRET))
    }

    #[test]
    fn the_exchange_of_the_rfc_goes_as_it_is_written_there() {
        let (challenge, answer) = challenge(Some(&pencil()));
        assert_eq!(answer, SERVER_FIRST);
        assert_eq!(challenge.judge(CLIENT_FINAL.as_bytes()), Ok(SERVER_FINAL.to_owned()));
    }

    #[test]
    fn what_is_kept_is_written_and_read_back_in_the_form_of_the_rfc() {
        let text = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                    wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        assert_eq!(pencil().to_string(), text);
        assert_eq!(Verifier::parse(text), Ok(pencil()));
        for (wrong, why) in [
            ("secret", "no SCRAM-SHA-256$"),
            ("SCRAM-SHA-256$4096", "a line is"),
            ("SCRAM-SHA-256$0:AAAA$A:B", "rounds"),
            ("SCRAM-SHA-256$99999999:AAAA$A:B", "rounds"),
            ("SCRAM-SHA-256$1:$A:B", "salt"),
            ("SCRAM-SHA-256$1:AAAA$AAAA:AAAA", "32 bytes"),
        ] {
            let said = Verifier::parse(wrong).expect_err(wrong);
            assert!(said.contains(why), "{wrong}: {said}");
        }
        assert!(
            Verifier::new("stra\u{df}e", NonZeroU32::MIN).is_err() && Verifier::new("a b", NonZeroU32::MIN).is_ok()
        );
    }

    #[test]
    fn a_proof_that_differs_in_anything_is_refused() {
        let (challenge, _) = challenge(Some(&pencil()));
        for (from, to, why) in [
            ("p=dH", "p=eH", "wrong"),
            ("c=biws", "c=eSws", "channel binding"),
            ("$k0", "$k1", "nonce"),
            (",p=", ",q=", "without a proof"),
            ("AndVQ=", "An", "base64"),
            ("c=biws,", "", "channel binding"),
        ] {
            let said = challenge.judge(CLIENT_FINAL.replace(from, to).as_bytes());
            assert!(said.is_err_and(|said| said.contains(why)), "{from} {to}");
        }
        assert!(challenge.judge(&[0xff; 10]).is_err() && challenge.judge(&[b'a'; 10_000]).is_err());
    }

    #[test]
    fn a_stranger_is_asked_like_everybody_else_and_always_with_the_same_salt() {
        let (stranger, answer) = challenge(None);
        assert_eq!(challenge(None).1, answer);
        assert!(answer.ends_with(",i=4096") && answer.len() == SERVER_FIRST.len(), "{answer}");
        assert!(stranger.judge(CLIENT_FINAL.as_bytes()).is_err_and(|said| said.contains("no such user")));
        let first = First::parse(b"n,,n=user,r=12345678").expect("well formed");
        let (_, other) = Challenge::new(&first, OURS, None, (None, &[8; 32]));
        assert_ne!(other.split(',').nth(1), answer.split(',').nth(1), "the salt depends on the secret");
    }

    #[test]
    fn first_messages_are_read_or_refused_with_a_reason() {
        let first = First::parse(b"y,,n=a=2Cb=3Dc,r=12345678,x=unknown").expect("well formed");
        assert_eq!((first.user.as_str(), first.header), ("a,b=c", "y,,"));
        for (text, why) in [
            ("p=tls-unique,,n=u,r=12345678", "channel binding"),
            ("n,a=admin,n=u,r=12345678", "somebody else"),
            ("n,,m=x,n=u,r=12345678", "extension"),
            ("n,,r=12345678", "without a user name"),
            ("n,,n=a=2X,r=12345678", "escape"),
            ("n,,n=a=2,r=12345678", "escape"),
            ("n,,n=u,r=1", "nonce"),
            ("n,,n=u", "nonce"),
            ("n,", "incomplete"),
            ("", "does not begin"),
        ] {
            let said = First::parse(text.as_bytes()).err().unwrap_or_default();
            assert!(said.contains(why), "{text}: {said}");
        }
    }
}
