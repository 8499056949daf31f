//! The configuration: `contract::config`.

use contract::config::{Loaded, SourceFile, Sources, load};

/// Lines that begin with `RINGMQ_` are the environment, the others the file. What is wrong is said with a name, what holds is
/// shown, and reading is repeatable.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (variables, lines): (Vec<&str>, Vec<&str>) = text.split('\n').partition(|line| line.starts_with("RINGMQ_"));
    let environment: Vec<(String, String)> = variables
        .iter()
        .map(|line| line.split_once('=').unwrap_or((line, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let file = SourceFile { name: "ringmq.toml", text: &lines.join("\n") };
    let sources = Sources { file: Some(file), environment: &environment, data_dir: "/var/lib/ringmq" };
    match load(&sources) {
        Ok(loaded) => holds(&loaded, &sources),
        Err(errors) => {
            assert!(!errors.is_empty());
            assert!(errors.iter().all(|error| !error.message.is_empty() && !error.to_string().is_empty()));
        }
    }
}

fn holds(loaded: &Loaded, sources: &Sources<'_>) {
    let again = load(sources).expect("it held before");
    assert_eq!(loaded.show(), again.show());
    assert!(loaded.waiting(&again).is_empty(), "nothing has changed");
    assert!(loaded.settings.iter().all(|setting| !setting.key.is_empty()));
}
