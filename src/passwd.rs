//! `ringmq passwd`: users and hashed passwords in a file that mosquitto can read, too. The file is replaced as a whole, so a
//! node that reads it at the same time sees the old one or the new one. A password never stands on the command line.

use std::{
    fmt::Display,
    fs,
    io::{self, BufRead, IsTerminal, Write},
    num::NonZeroU32,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::ValueEnum;
use dataplane::auth::{
    password::{Hashed, Method, PASSWORD_BYTES_MAX, ROUNDS_MAX},
    password_file::{FILE_BYTES_MAX, PasswordFile, check_user, edited},
    scram::{ROUNDS_MIN, Verifier},
    scram_file::ScramFile,
};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

/// What to do with which user of which file.
#[derive(clap::Args)]
pub(crate) struct Asked {
    /// The password file; a new one is made for its owner only.
    file: PathBuf,
    /// The user name.
    user: String,
    /// Remove the user.
    #[arg(short = 'D', long)]
    delete: bool,
    /// How to hash: mosquitto before 2.1 cannot read argon2id.
    #[arg(short = 'H', long, value_enum, default_value = "argon2id")]
    hash: Hash,
    /// The file is for SCRAM-SHA-256 (`mechanism = "scram"`): it holds what proves a password, and no hash of it.
    #[arg(long, conflicts_with = "hash")]
    scram: bool,
    /// Rounds of sha512-pbkdf2, or of SCRAM (at least 4096), whose clients pay for them.
    #[arg(short = 'I', long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(ROUNDS_MAX)))]
    iterations: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Hash {
    Argon2id,
    Sha512Pbkdf2,
}

/// Reads the password from the terminal, twice, or from the first line of standard input.
pub(crate) fn run(asked: &Asked) -> ExitCode {
    match change(asked) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("ringmq: {why}");
            ExitCode::FAILURE
        }
    }
}

fn change(asked: &Asked) -> Result<(), String> {
    check_user(&asked.user).map_err(str::to_owned)?;
    let path = asked.file.display();
    let text = match fs::metadata(&asked.file) {
        Ok(found) if found.len() > FILE_BYTES_MAX => return Err(format!("{path} is too long for a password file")),
        Ok(_) => fs::read_to_string(&asked.file).map_err(|cause| format!("cannot read {path}: {cause}"))?,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound && !asked.delete => String::new(),
        Err(cause) => return Err(format!("cannot read {path}: {cause}")),
    };
    let wrong = |why| format!("{path}: {why}");
    let known = match asked.scram {
        true => ScramFile::parse(&text).map_err(wrong)?.proofs().any(|(user, _)| user == asked.user),
        false => PasswordFile::parse(&text).map_err(wrong)?.proofs().any(|(user, _)| user == asked.user),
    };
    let kept = match asked.delete {
        true if !known => return Err(format!("there is no user {:?} in {path}", asked.user)),
        true => None,
        false => Some(kept(asked)?),
    };
    replace(&asked.file, &edited(&text, &asked.user, kept.as_deref()))
        .map_err(|cause| format!("cannot write {path}: {cause}"))
}

/// What the file keeps of a password that is read now.
fn kept(asked: &Asked) -> Result<Box<dyn Display>, String> {
    let rounds = NonZeroU32::new(asked.iterations).unwrap_or(NonZeroU32::MIN);
    if asked.scram {
        if rounds.get() < ROUNDS_MIN {
            return Err(format!("SCRAM takes at least {ROUNDS_MIN} rounds"));
        }
        return Ok(Box::new(Verifier::new(&read_password()?, rounds)?));
    }
    let method = match asked.hash {
        Hash::Argon2id => Method::ARGON2ID,
        Hash::Sha512Pbkdf2 => Method::Pbkdf2(rounds),
    };
    Ok(Box::new(Hashed::new(read_password()?.as_bytes(), method)?))
}

pub(crate) fn read_password() -> Result<String, String> {
    let twice = io::stdin().is_terminal();
    let password = if twice { hidden("Password: ") } else { line() }?;
    if password.is_empty() {
        return Err("an empty password opens the door to everybody".to_owned());
    }
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(format!("a password has at most {PASSWORD_BYTES_MAX} bytes"));
    }
    if twice && hidden("Again: ")? != password {
        return Err("the two passwords differ".to_owned());
    }
    Ok(password)
}

/// A line from the terminal, which does not show it.
fn hidden(prompt: &str) -> Result<String, String> {
    let stdin = io::stdin();
    let shown = tcgetattr(&stdin).map_err(|cause| format!("cannot ask the terminal: {cause}"))?;
    let mut silent = shown.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    eprint!("{prompt}");
    // A terminal that cannot be silenced shows what is typed, which its user sees.
    let _ = tcsetattr(&stdin, OptionalActions::Flush, &silent);
    let read = line();
    let _ = tcsetattr(&stdin, OptionalActions::Flush, &shown);
    eprintln!();
    read
}

fn line() -> Result<String, String> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(|cause| format!("cannot read the password: {cause}"))?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// Whoever reads the file sees the old one or the new one. It keeps its mode; a new one is for its owner only.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mode = fs::metadata(path).map_or(0o600, |found| found.permissions().mode() & 0o777);
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let mut file = fs::File::options().write(true).create_new(true).mode(mode).open(&fresh)?;
    let written =
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        // What is half written is of no use.
        let _ = fs::remove_file(&fresh);
    }
    written
}
