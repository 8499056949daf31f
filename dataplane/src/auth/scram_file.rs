//! Files of users with what SCRAM-SHA-256 keeps of their passwords: `user:SCRAM-SHA-256$rounds:salt$stored key:server key` per
//! line, the form of RFC 5803, behind the name. Asked on the threads of [`super::pool`], written by `ringmq passwd --scram`.
//! Always true: a user is judged by what stands in the files at the end of its exchange, not at its beginning.

use std::io;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use broker::{
    access::Principal,
    exchange::{Judged, Memory},
};
use mqtt::types::Reason;
use ring::rand::{SecureRandom, SystemRandom};

use super::{
    password_file::Users,
    scram::{self, Challenge, First, Secret, Verifier},
};

/// Random bytes in our part of a nonce.
const NONCE_BYTES: usize = 18;

/// A file, read whole.
#[derive(Clone, Debug)]
pub struct ScramFile {
    users: Users<Verifier>,
}

impl ScramFile {
    /// Reads a file, or says which line is wrong.
    pub fn parse(text: &str) -> Result<ScramFile, String> {
        Ok(ScramFile { users: Users::parse(text, Verifier::parse)? })
    }

    /// Every user with what names its proof.
    pub fn proofs(&self) -> impl Iterator<Item = (&str, u64)> {
        self.users.proofs()
    }
}

/// What is remembered between the two messages of a client.
struct Begun {
    user: String,
    /// Names what is kept of the user; `None`: there is no such user.
    proof: Option<u64>,
    challenge: Challenge,
}

/// Judges the next message of a client by these files, of which the first that knows a user counts.
pub(super) fn judge(files: &[ScramFile], secret: &Secret, data: &[u8], memory: Option<Memory>) -> Judged {
    let refused = |why| Judged::Refused { reason: Reason::NotAuthorized, why };
    let known = |user: &str| files.iter().find_map(|file| Some((file, file.users.find(user)?)));
    let Some(memory) = memory else {
        let first = match First::parse(data) {
            Ok(first) => first,
            Err(why) => return refused(why),
        };
        let known = known(&first.user);
        let number = scram::number(&first.user, secret);
        let like = files.iter().find_map(|file| file.users.somebody(number));
        let Ok(nonce) = nonce() else { return refused("the system gives no random bytes") };
        let verifier = known.map(|(_, (_, verifier))| verifier);
        let (challenge, answer) = Challenge::new(&first, &nonce, verifier, (like, secret));
        let proof = known.map(|(file, (at, _))| file.users.proof(at));
        let begun = Begun { user: first.user, proof, challenge };
        return Judged::More { data: answer.into_bytes(), memory: Box::new(begun) };
    };
    let Ok(begun) = memory.downcast::<Begun>() else { return refused("an exchange that is not ours") };
    let answer = match begun.challenge.judge(data) {
        Ok(answer) => answer,
        Err(why) => return refused(why),
    };
    let now = known(&begun.user).map(|(file, (at, _))| file.users.proof(at));
    match begun.proof {
        Some(credential) if now == Some(credential) => {
            let principal = Principal { proven: true, credential, ..Principal::unproven(Some(&begun.user)) };
            Judged::Proven { principal, data: answer.into_bytes() }
        }
        _ => refused("its user was removed or has another password"),
    }
}

/// Our part of a nonce.
fn nonce() -> io::Result<String> {
    let mut bytes = [0; NONCE_BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("no random bytes"))?;
    Ok(STANDARD_NO_PAD.encode(bytes))
}
