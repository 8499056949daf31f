//! Password files of mosquitto and ours: `dataplane::auth`.

use dataplane::auth::{
    password::Hashed,
    password_file::{Answer, PasswordFile, check_user, edited},
    scram_file::ScramFile,
};

/// Dearer hashes are parsed and not computed: that is slow on purpose.
const ROUNDS_MAX: u32 = 20;
const MEMORY_KIB_MAX: u32 = 64;
/// Comparisons of one input.
const COMPARED_MAX: usize = 4;

/// The input is a file. What was read is written as it was read, and asking about users never does more than that.
pub fn password(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(file) = ScramFile::parse(text) {
        assert!(file.proofs().all(|(user, proof)| proof != 0 && check_user(user).is_ok()));
    }
    for line in text.lines() {
        let hash = line.split_once(':').map_or(line, |(_, hash)| hash);
        if let Ok(hashed) = Hashed::parse(hash) {
            let written = hashed.to_string();
            assert_eq!(Hashed::parse(&written).as_ref(), Ok(&hashed), "{written}");
        }
    }
    let Ok(file) = PasswordFile::parse(text) else { return };
    let users: Vec<&str> = file.proofs().map(|(user, _)| user).collect();
    assert!(file.proofs().all(|(user, proof)| proof != 0 && check_user(user).is_ok()));
    if text.lines().all(is_cheap) {
        for user in users.iter().take(COMPARED_MAX) {
            assert_ne!(file.ask(user, b"password"), Answer::Unknown);
        }
        assert_eq!(file.ask("nobody:", b"password"), Answer::Unknown, "nobody can be called so");
    }
    let cheap = Hashed::parse(
        "$6$AAAA$wHb5MFmBtqbXCBFo+//e6NpLGubfl7+BcAd9yO/67ZRByKOmWjvdmDsVkhR2ft12amu25NtFJqseNSuVwoufbQ==",
    );
    let cheap = cheap.expect("a hash");
    for user in users.iter().copied().chain(["somebody-new"]) {
        for hashed in [Some(&cheap), None] {
            let after = PasswordFile::parse(&edited(text, user, hashed.map(|hashed| hashed as _)))
                .expect("an edited file can be read");
            let known = |one: &str| after.proofs().any(|(user, _)| user == one);
            assert_eq!(known(user), hashed.is_some(), "{user:?} in {text:?}");
            assert!(users.iter().all(|other| *other == user || known(other)), "{user:?} in {text:?}");
        }
    }
}

/// Whether comparing with this line's hash costs next to nothing.
fn is_cheap(line: &str) -> bool {
    let Some((_, hash)) = line.trim_end().split_once(':') else { return true };
    let parts: Vec<&str> = hash.split('$').collect();
    match parts.get(1..) {
        Some(["6", ..]) => true,
        Some(["7", rounds, ..]) => rounds.parse::<u32>().is_ok_and(|rounds| rounds <= ROUNDS_MAX),
        Some(["argon2id", _, parameters, ..]) => parameters.split(',').all(|parameter| {
            let most = if parameter.starts_with('m') { MEMORY_KIB_MAX } else { 2 };
            parameter.split_once('=').is_some_and(|(_, n)| n.parse::<u32>().is_ok_and(|n| n <= most))
        }),
        _ => true,
    }
}
