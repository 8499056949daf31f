//! The configuration of this process: reads the file, the environment and the files that hold secrets, and knows
//! where the data directory is when nobody says.

use std::{
    env, fs,
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use contract::config::{Config, FILE_BYTES_MAX, Loaded, Secret, SourceFile, Sources, load as load_sources};

use crate::refuse_config;

/// A password or cookie of this form is read from a file.
const SECRET_FILE: &str = "file://";
/// Longest secret in a file.
const SECRET_BYTES_MAX: u64 = 65_535;

/// Reads everything, or says what is wrong, one error per line.
pub(crate) fn load(file: Option<&Path>) -> Result<Loaded, String> {
    let text = match file {
        None => None,
        Some(path) => Some(read_file(path, FILE_BYTES_MAX as u64 + 1)?),
    };
    let name = file.map(|path| path.display().to_string()).unwrap_or_default();
    let environment = environment()?;
    let data_dir = default_data_dir();
    let sources = Sources {
        file: text.as_deref().map(|text| SourceFile { name: &name, text }),
        environment: &environment,
        data_dir: &data_dir,
    };
    let mut loaded = load_sources(&sources)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    reveal_secrets(&mut loaded.config)?;
    Ok(loaded)
}

/// As [`load`], but what is wrong goes to standard error and becomes the exit status.
pub(crate) fn load_or_explain(file: Option<&Path>) -> Result<Loaded, ExitCode> {
    load(file).map_err(|why| refuse_config(&why))
}

/// Makes the data directory, which only its owner may enter.
pub(crate) fn prepare_data_dir(config: &Config) -> Result<PathBuf, ExitCode> {
    let data_dir = PathBuf::from(&config.node.data_dir);
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&data_dir);
    match made {
        Ok(()) => Ok(data_dir),
        Err(cause) => Err(refuse_config(&format!("node.data_dir: cannot make {}: {cause}", data_dir.display()))),
    }
}

/// Our variables. One that is not UTF-8 cannot be a value, and must not be passed over in silence.
fn environment() -> Result<Vec<(String, String)>, String> {
    env::vars_os()
        .filter_map(|(name, value)| name.into_string().ok().map(|name| (name, value)))
        .filter(|(name, _)| name.starts_with("RINGMQ_"))
        .map(|(name, value)| match value.into_string() {
            Ok(value) => Ok((name, value)),
            Err(_) => Err(format!("{name}: the value is not UTF-8")),
        })
        .collect()
}

/// `$XDG_STATE_HOME/ringmq`, `~/.local/state/ringmq`, or a directory of this user's in `/tmp`.
fn default_data_dir() -> String {
    let absolute = |name: &str| env::var(name).ok().filter(|path| path.starts_with('/'));
    match (absolute("XDG_STATE_HOME"), absolute("HOME")) {
        (Some(state), _) => format!("{state}/ringmq"),
        (None, Some(home)) => format!("{home}/.local/state/ringmq"),
        (None, None) => format!("/tmp/ringmq-{}", rustix::process::getuid().as_raw()),
    }
}

fn reveal_secrets(config: &mut Config) -> Result<(), String> {
    if let Some(cookie) = &mut config.node.cookie {
        reveal("node.cookie", cookie)?;
    }
    for (index, authenticator) in config.authentication.iter_mut().enumerate() {
        if let Some(secret) = &mut authenticator.token.secret {
            reveal(&format!("authentication[{index}].secret"), secret)?;
        }
    }
    for (index, link) in config.cluster.links.iter_mut().enumerate() {
        if let Some(password) = &mut link.password {
            reveal(&format!("cluster.links[{index}].password"), password)?;
        }
    }
    Ok(())
}

fn reveal(key: &str, secret: &mut Secret) -> Result<(), String> {
    let Some(path) = secret.reveal().strip_prefix(SECRET_FILE) else {
        return Ok(());
    };
    let text = read_file(Path::new(path), SECRET_BYTES_MAX).map_err(|why| format!("{key}: {why}"))?;
    let text = text.trim_end();
    if text.is_empty() {
        return Err(format!("{key}: {path} is empty"));
    }
    *secret = Secret::new(text);
    Ok(())
}

/// A whole text file of at most so many bytes; of a longer one only these, which the caller refuses by their number.
fn read_file(path: &Path, bytes_max: u64) -> Result<String, String> {
    let read = || -> io::Result<String> {
        let mut text = String::new();
        fs::File::open(path)?.take(bytes_max).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|cause| format!("cannot read {}: {cause}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Loaded, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ringmq.toml");
        fs::write(&path, text.replace("$DIR", &dir.path().display().to_string())).unwrap();
        fs::write(dir.path().join("password"), "sesame\n").unwrap();
        fs::write(dir.path().join("empty"), "\n").unwrap();
        load(Some(&path))
    }

    fn link(password: &str) -> String {
        format!("[[cluster.links]]\nname = \"b\"\nserver = \"h\"\ntopics = []\npassword = \"{password}\"\n")
    }

    #[test]
    fn a_secret_may_stand_in_a_file_of_its_own() {
        let password = |text: &str| {
            let loaded = load_text(&link(text)).unwrap();
            loaded.config.cluster.links[0].password.as_ref().unwrap().reveal().to_owned()
        };
        assert_eq!(password("file://$DIR/password"), "sesame");
        assert_eq!(password("plain"), "plain");
        for (text, why) in [("file://$DIR/empty", "is empty"), ("file://$DIR/none", "cannot read")] {
            let said = load_text(&link(text)).map(|_| ()).unwrap_err();
            assert!(said.starts_with("cluster.links[0].password: ") && said.contains(why), "{said}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let why = load(Some(Path::new("/nonexistent.toml"))).map(|_| ()).unwrap_err();
        assert!(why.starts_with("cannot read /nonexistent.toml: "), "{why}");
        let why = load_text("bogus = 1").map(|_| ()).unwrap_err();
        assert!(why.contains("ringmq.toml:1: unknown key bogus"), "{why}");
    }

    #[test]
    fn the_data_directory_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data_dir = dir.path().join("a/b").display().to_string();
        let made = prepare_data_dir(&config).unwrap();
        assert_eq!(fs::metadata(made).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
