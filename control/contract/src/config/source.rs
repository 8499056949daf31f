//! Where values come from: the file and the environment, flattened to one list of known keys.
//! What is unknown is named here, with the nearest known key. Later sources replace earlier ones, key by key.

use alloc::{
    borrow::Cow,
    collections::BTreeMap,
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::{fmt, ops::Range};

use toml::de::{DeTable, DeValue};

use super::{
    catalog::{self, List, Match, Scope},
    knob::{Found, Knob},
};
use crate::ids;

/// Longest file that is read; far above what a node can be told.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// What variables begin with.
const PREFIX: &str = "RINGMQ_";

/// The configuration as its operator left it.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The file, if one was named.
    pub file: Option<SourceFile<'a>>,
    /// The environment; variables that do not begin with `RINGMQ_` are ignored.
    pub environment: &'a [(String, String)],
    /// Default of `node.data_dir`.
    pub data_dir: &'a str,
}

/// A file by its name and text.
#[derive(Clone, Copy, Debug)]
pub struct SourceFile<'a> {
    /// As errors name it.
    pub name: &'a str,
    /// Its content.
    pub text: &'a str,
}

/// Who said a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nobody: it is the default.
    Default,
    /// A line of the file.
    File {
        /// As the file was named.
        name: String,
        /// Counted from 1.
        line: usize,
    },
    /// A variable.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { name, line } => write!(f, "{name}:{line}"),
            Origin::Environment(name) => f.write_str(name),
        }
    }
}

/// Something that the operator has to mend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// Who said it.
    pub origin: Origin,
    /// What is wrong, with key, bound and value.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Default => f.write_str(&self.message),
            origin => write!(f, "{origin}: {}", self.message),
        }
    }
}

impl core::error::Error for ConfigError {}

/// A value of one key, with who said it.
pub(super) struct Said<'a> {
    pub(super) found: Found<'a>,
    pub(super) origin: Origin,
    /// `None` for a list of tables.
    pub(super) knob: Option<&'static Knob>,
}

/// Everything that was said, by key.
pub(super) type Sayings<'a> = BTreeMap<String, Said<'a>>;

/// A parsed document or variable; what is said borrows from it.
pub(super) struct Parsed<'a> {
    place: Place<'a>,
    value: DeValue<'a>,
}

/// Turns spans into origins.
pub(super) enum Place<'a> {
    File { name: &'a str, line_ends: Vec<usize> },
    Variable { name: &'a str, text: &'a str, path: Vec<String> },
}

impl Place<'_> {
    pub(super) fn at(&self, span: Range<usize>) -> Origin {
        match self {
            Place::File { name, line_ends } => {
                let line = 1 + line_ends.partition_point(|end| *end < span.start);
                Origin::File { name: name.to_string(), line }
            }
            Place::Variable { name, .. } => Origin::Environment(name.to_string()),
        }
    }
}

/// Parses every source, in the order in which they replace each other.
pub(super) fn parse<'a>(sources: &Sources<'a>, errors: &mut Vec<ConfigError>) -> Vec<Parsed<'a>> {
    let mut parsed = Vec::new();
    if let Some(file) = sources.file {
        parsed.extend(parse_file(file, errors));
    }
    let mut variables: Vec<(&str, &str)> =
        sources.environment.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    // A variable for a whole section comes before the ones for its keys, so the latter win.
    variables.sort_unstable();
    for (name, text) in variables {
        let Some(key) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let path: Vec<String> = key.split("__").map(str::to_ascii_lowercase).collect();
        if path.len() == 1 && is_of_kubernetes(&path[0]) {
            continue;
        }
        let value = match DeValue::parse(text) {
            Ok(value) => value.into_inner(),
            Err(_) => DeValue::String(Cow::Borrowed(text)),
        };
        parsed.push(Parsed { place: Place::Variable { name, text, path }, value });
    }
    parsed
}

fn parse_file<'a>(file: SourceFile<'a>, errors: &mut Vec<ConfigError>) -> Option<Parsed<'a>> {
    let line_ends = file.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
    let place = Place::File { name: file.name, line_ends };
    if file.text.len() > FILE_BYTES_MAX {
        let message = format!("the file has {} bytes; at most {FILE_BYTES_MAX} are read", file.text.len());
        errors.push(ConfigError { origin: place.at(0..0), message });
        return None;
    }
    match DeTable::parse(file.text) {
        Ok(table) => Some(Parsed { place, value: DeValue::Table(table.into_inner()) }),
        Err(error) => {
            let origin = place.at(error.span().unwrap_or(0..0));
            errors.push(ConfigError { origin, message: format!("this is not TOML: {}", error.message()) });
            None
        }
    }
}

/// Kubernetes gives every container variables for a service that is named `ringmq`, such as `RINGMQ_PORT_1883_TCP`.
/// They are no misspelt keys.
fn is_of_kubernetes(name: &str) -> bool {
    name.ends_with("service_host") || name.contains("service_port") || name.split('_').any(|part| part == "port")
}

/// Flattens what was parsed.
pub(super) fn flatten<'a>(parsed: &'a [Parsed<'a>], errors: &mut Vec<ConfigError>) -> Sayings<'a> {
    let mut sayings = Sayings::new();
    for source in parsed {
        let mut walk =
            Walk { scope: Scope::Root, shown: "", place: &source.place, sayings: &mut sayings, errors: &mut *errors };
        match (&source.place, &source.value) {
            (Place::File { .. }, DeValue::Table(table)) => walk.table(&mut Vec::new(), table),
            (Place::Variable { path, .. }, value) => {
                let mut path: Vec<&str> = path.iter().map(String::as_str).collect();
                walk.value(&mut path, 0..0, value);
            }
            _ => {}
        }
    }
    sayings
}

/// What one member of a list says, by the key inside it.
pub(super) fn flatten_member<'a>(
    list: List,
    table: &'a DeTable<'a>,
    shown: &str,
    place: &'a Place<'a>,
    errors: &mut Vec<ConfigError>,
) -> Sayings<'a> {
    let mut sayings = Sayings::new();
    Walk { scope: Scope::In(list), shown, place, sayings: &mut sayings, errors }.table(&mut Vec::new(), table);
    sayings
}

/// The place that an origin came from: lists need it for the lines inside them.
pub(super) fn place_of<'a>(parsed: &'a [Parsed<'a>], origin: &Origin) -> Option<&'a Place<'a>> {
    parsed.iter().map(|source| &source.place).find(|place| match (place, origin) {
        (Place::File { .. }, Origin::File { .. }) => true,
        (Place::Variable { name, .. }, Origin::Environment(wanted)) => name == wanted,
        _ => false,
    })
}

/// One descent through a document.
struct Walk<'a, 'w> {
    scope: Scope,
    /// What errors put before the key: `cluster.links[0].`, or nothing.
    shown: &'w str,
    place: &'a Place<'a>,
    sayings: &'w mut Sayings<'a>,
    errors: &'w mut Vec<ConfigError>,
}

impl<'a> Walk<'a, '_> {
    fn table(&mut self, path: &mut Vec<&'a str>, table: &'a DeTable<'a>) {
        for (key, value) in table.iter() {
            path.push(key.get_ref().as_ref());
            self.value(path, key.span(), value.get_ref());
            path.pop();
        }
    }

    /// A value at a path. It descends only where a known key lies deeper, so the depth is bounded.
    fn value(&mut self, path: &mut Vec<&'a str>, span: Range<usize>, value: &'a DeValue<'a>) {
        let knob = match catalog::find(self.scope, path) {
            Match::Knob(knob) => Some(knob),
            Match::List => None,
            Match::Section => {
                match value {
                    DeValue::Table(table) => self.table(path, table),
                    _ => self.error(span, format!("{}{} is a section, not a value", self.shown, path.join("."))),
                }
                return;
            }
            Match::Unknown => {
                let nearest = catalog::nearest(self.scope, path, self.shown);
                self.error(span, format!("unknown key {}{}; {nearest}", self.shown, catalog::printable(path)));
                return;
            }
        };
        if let Some(name) = knob.and_then(|knob| knob.name_in(path))
            && let Err(error) = ids::check_name(name)
        {
            self.error(span, format!("{}: {error}", catalog::printable(path)));
            return;
        }
        let verbatim = match self.place {
            Place::Variable { text, path: whole, .. } if whole.len() == path.len() => Some(*text),
            _ => None,
        };
        let said = Said { found: Found { value, verbatim }, origin: self.place.at(span), knob };
        self.sayings.insert(path.join("."), said);
    }

    fn error(&mut self, span: Range<usize>, message: String) {
        self.errors.push(ConfigError { origin: self.place.at(span), message });
    }
}
