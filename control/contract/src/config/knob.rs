//! What a knob is: one record from which parsing, bounds, `config show`, the reference file and every error
//! about it are derived. Used by both processes at start and by `ringmq config`.
//! Always true: a value that a knob accepted fits the field that it is for; the compiler checks it.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use toml::de::DeValue;

use super::{
    secret::Secret,
    units::{self, Clock},
};

/// One knob. Its key names it: `mqtt.max_packet_size`, `listeners.tcp.<name>.bind`, `cluster.links[].server`.
#[derive(Clone, Copy, Debug)]
pub struct Knob {
    /// Where it stands in the file; `<name>` stands for any name.
    pub key: &'static str,
    /// What it is for, one sentence or two.
    pub doc: &'static str,
    /// How it is written, and its bounds.
    pub kind: Kind,
    /// What it is when nobody says anything.
    pub default: Preset,
    /// When a change takes effect.
    pub apply: Apply,
    /// Another value that is allowed, as it is written in TOML.
    pub example: &'static str,
}

/// When a change of a knob takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Apply {
    /// At SIGHUP, for whatever begins after it: what a connection was promised holds until it ends.
    Live,
    /// At the next start.
    Restart,
}

/// How a knob is written, and what it may be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A number without unit.
    Count(Bounds),
    /// Bytes: `"1MB"`, or an integer.
    Size(Bounds),
    /// A time with its unit: `"15s"`. Kept as the field wants it.
    Duration(Clock, Bounds),
    /// A factor such as `1.5`, kept in percent. Bounds are percent.
    Factor(Bounds),
    /// `true` or `false`.
    Switch,
    /// A string of at most so many bytes.
    Text(usize),
    /// A string that is never shown, of at least so many bytes.
    Secret(usize),
    /// `127.0.0.1:1883`, `[::1]:1883`, or a port, which means loopback.
    Address,
    /// One of these words, kept as its place in the list.
    Choice(&'static [&'static str]),
    /// Strings: an array, or one string with commas between.
    List,
    /// Strings that may contain commas: an array.
    Array,
    /// `"auto"`, `"off"`, or an array of CPU numbers.
    Cpus,
}

/// Lowest and highest value, and a word that stands for one number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Lowest number.
    pub min: u64,
    /// Highest number.
    pub max: u64,
    /// A word beside the numbers, and the number that it means (which may lie outside).
    pub word: Option<(&'static str, u64)>,
}

/// A value that a knob accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// Nothing was said, and nothing is the default.
    Unset,
    /// Count, bytes, time, percent, or the place of a choice.
    Number(u64),
    /// Yes or no.
    Switch(bool),
    /// Text, address.
    Text(String),
    /// Text that is never shown.
    Secret(Secret),
    /// Several texts.
    List(Vec<String>),
}

/// A default, as it can be written in a constant.
#[derive(Clone, Copy, Debug)]
pub enum Preset {
    /// Nothing.
    Unset,
    /// See [`Value::Number`].
    Number(u64),
    /// See [`Value::Switch`].
    Switch(bool),
    /// See [`Value::Text`].
    Text(&'static str),
    /// See [`Value::List`].
    List(&'static [&'static str]),
}

/// A value as it was found, before a knob has judged it.
pub(super) struct Found<'a> {
    pub(super) value: &'a DeValue<'a>,
    /// The variable's own text: what a knob of text means by `RINGMQ_NODE__NAME=7`.
    pub(super) verbatim: Option<&'a str>,
}

pub(super) const fn within(min: u64, max: u64) -> Bounds {
    Bounds { min, max, word: None }
}

pub(super) const fn within_or(min: u64, max: u64, word: &'static str, means: u64) -> Bounds {
    Bounds { min, max, word: Some((word, means)) }
}

impl Preset {
    /// The same as a value.
    pub fn value(&self) -> Value {
        match self {
            Preset::Unset => Value::Unset,
            Preset::Number(number) => Value::Number(*number),
            Preset::Switch(on) => Value::Switch(*on),
            Preset::Text(text) => Value::Text((*text).into()),
            Preset::List(list) => Value::List(list.iter().map(ToString::to_string).collect()),
        }
    }
}

impl Knob {
    /// Judges what was found for `key`, which is this knob's key with names filled in.
    pub(super) fn read(&self, key: &str, found: &Found<'_>) -> Result<Value, String> {
        self.kind.read(found).map_err(|problem| match problem {
            Problem::Wants => {
                format!("{key} must be {}; got {}", self.kind.wants(), self.got(found))
            }
            Problem::Bounds(bounds) => {
                format!("{key} must be in {}; got {}", self.kind.range(&bounds), self.got(found))
            }
            Problem::Says(text) => format!("{key} {text}"),
        })
    }

    /// A value as it would be written in the file; a secret as stars.
    pub fn show(&self, value: &Value) -> String {
        match (self.kind, value) {
            (_, Value::Unset) => "unset".into(),
            (_, Value::Secret(_)) => "\"******\"".into(),
            (_, Value::Switch(on)) => on.to_string(),
            (_, Value::Text(text)) => quote(text),
            (Kind::Cpus, Value::List(list)) if list.iter().all(|cpu| cpu.parse::<u16>().is_ok()) => {
                format!("[{}]", list.join(", "))
            }
            (Kind::Cpus, Value::List(list)) => quote(&list.concat()),
            (_, Value::List(list)) => {
                let quoted: Vec<String> = list.iter().map(|text| quote(text)).collect();
                format!("[{}]", quoted.join(", "))
            }
            (kind, Value::Number(number)) => kind.number(*number),
        }
    }

    fn got(&self, found: &Found<'_>) -> String {
        if matches!(self.kind, Kind::Secret(_)) {
            return "a value that is not shown".into();
        }
        let text = match found.value {
            DeValue::String(text) => quote(text),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.to_string(),
            DeValue::Boolean(on) => on.to_string(),
            DeValue::Datetime(time) => time.to_string(),
            DeValue::Array(_) => "an array".into(),
            DeValue::Table(_) => "a table".into(),
        };
        shorten(&text)
    }
}

/// Why a value was not accepted.
enum Problem {
    Wants,
    Bounds(Bounds),
    Says(String),
}

impl Kind {
    fn read(self, found: &Found<'_>) -> Result<Value, Problem> {
        match self {
            Kind::Count(bounds) => bounded(number_of(found, &bounds, |text| text.parse().ok())?, &bounds),
            Kind::Size(bounds) => bounded(number_of(found, &bounds, units::size)?, &bounds),
            Kind::Duration(clock, bounds) => {
                if let DeValue::Integer(number) = found.value
                    && number.as_str().bytes().any(|digit| digit != b'0')
                    && bounds.word.is_none_or(|(word, _)| word != number.as_str())
                {
                    return Err(Problem::Says(format!("needs a unit, as in \"{number}s\"; got {number}")));
                }
                bounded(number_of(found, &bounds, |text| units::duration(text, clock))?, &bounds)
            }
            Kind::Factor(bounds) => bounded(percent_of(found.value).ok_or(Problem::Wants)?, &bounds),
            Kind::Switch => match found.value {
                DeValue::Boolean(on) => Ok(Value::Switch(*on)),
                _ => Err(Problem::Wants),
            },
            Kind::Text(bytes_max) => match text_of(found) {
                Some("") => Err(Problem::Says("must not be empty".into())),
                Some(text) if text.len() > bytes_max => {
                    Err(Problem::Says(format!("must have at most {bytes_max} bytes; got {}", text.len())))
                }
                Some(text) => Ok(Value::Text(text.into())),
                None => Err(Problem::Wants),
            },
            Kind::Secret(bytes_min) => match text_of(found) {
                Some(text) if text.len() < bytes_min => {
                    Err(Problem::Says(format!("must have at least {bytes_min} bytes; got {}", text.len())))
                }
                Some(text) => Ok(Value::Secret(Secret::new(text))),
                None => Err(Problem::Wants),
            },
            Kind::Address => address_of(found.value).map(Value::Text).ok_or(Problem::Wants),
            Kind::Choice(words) => match found.value {
                DeValue::String(text) => words.iter().position(|word| *word == text.as_ref()),
                _ => None,
            }
            .map(|place| Value::Number(place as u64))
            .ok_or(Problem::Wants),
            Kind::List | Kind::Array => list_of(found.value, matches!(self, Kind::List)).ok_or(Problem::Wants),
            Kind::Cpus => cpus_of(found.value).ok_or(Problem::Wants),
        }
    }

    /// What this is, for the reference.
    pub(super) fn noun(self) -> String {
        match self {
            Kind::Count(_) => "Number".into(),
            Kind::Size(_) => "Size".into(),
            Kind::Duration(..) => "Time".into(),
            Kind::Factor(_) => "Factor".into(),
            Kind::Text(bytes_max) => format!("String of at most {bytes_max} bytes"),
            Kind::Secret(bytes_min) => format!("String of at least {bytes_min} bytes, never shown"),
            Kind::Choice(_) | Kind::Address | Kind::List | Kind::Array | Kind::Cpus | Kind::Switch => {
                let mut wants = self.wants();
                if let Some(first) = wants.get_mut(..1) {
                    first.make_ascii_uppercase();
                }
                wants
            }
        }
    }

    /// What the operator should have written.
    fn wants(self) -> String {
        let beside = |bounds: &Bounds| match bounds.word {
            Some((word, _)) if word.parse::<u64>().is_err() => format!(" or \"{word}\""),
            _ => String::new(),
        };
        match self {
            Kind::Count(bounds) => format!("a number{}", beside(&bounds)),
            Kind::Size(bounds) => format!("a size such as \"64KB\" or \"1MB\"{}", beside(&bounds)),
            Kind::Duration(_, bounds) => format!("a time such as \"500ms\", \"15s\" or \"2h\"{}", beside(&bounds)),
            Kind::Factor(_) => "a factor such as 1.5".into(),
            Kind::Switch => "true or false".into(),
            Kind::Text(_) | Kind::Secret(_) => "a string".into(),
            Kind::Address => "\"address:port\" or a port, as in \"127.0.0.1:1883\", \"[::1]:1883\" or 1883".into(),
            Kind::Choice(words) => {
                let quoted: Vec<String> = words.iter().map(|word| quote(word)).collect();
                format!("one of {}", quoted.join(", "))
            }
            Kind::List => "an array of strings, or one string with commas".into(),
            Kind::Array => "an array of strings".into(),
            Kind::Cpus => "\"auto\", \"off\" or an array of CPU numbers".into(),
        }
    }

    /// The bounds as they are shown to the operator.
    pub(super) fn range(self, bounds: &Bounds) -> String {
        let mut text = format!("{}..={}", self.plain(bounds.min), self.plain(bounds.max));
        if let Some((word, _)) = bounds.word {
            text.push_str(" or ");
            text.push_str(word);
        }
        text
    }

    /// The bounds of this kind, if it has some.
    pub(super) fn bounds(self) -> Option<Bounds> {
        match self {
            Kind::Count(bounds) | Kind::Size(bounds) | Kind::Duration(_, bounds) | Kind::Factor(bounds) => Some(bounds),
            _ => None,
        }
    }

    /// A number of this kind as it is written in TOML.
    fn number(self, number: u64) -> String {
        if let Some((word, means)) = self.bounds().and_then(|bounds| bounds.word)
            && number == means
        {
            return if word.parse::<u64>().is_ok() { word.into() } else { quote(word) };
        }
        match self {
            Kind::Size(_) | Kind::Duration(..) => quote(&self.plain(number)),
            Kind::Choice(words) => words.get(number as usize).map_or_else(String::new, |word| quote(word)),
            _ => self.plain(number),
        }
    }

    fn plain(self, number: u64) -> String {
        match self {
            Kind::Size(_) => units::show_size(number),
            Kind::Duration(clock, _) => units::show_duration(number, clock),
            Kind::Factor(_) if number.is_multiple_of(100) => format!("{}.0", number / 100),
            Kind::Factor(_) => {
                let text = format!("{}.{:02}", number / 100, number % 100);
                text.trim_end_matches('0').into()
            }
            _ => number.to_string(),
        }
    }

    /// The highest number that can come out of this kind; `None` when it yields no number.
    pub(super) const fn number_max(&self) -> Option<u64> {
        match self {
            Kind::Count(bounds) | Kind::Size(bounds) | Kind::Duration(_, bounds) | Kind::Factor(bounds) => {
                match bounds.word {
                    Some((_, means)) if means > bounds.max => Some(means),
                    _ => Some(bounds.max),
                }
            }
            _ => None,
        }
    }
}

fn bounded(number: Scalar, bounds: &Bounds) -> Result<Value, Problem> {
    match number {
        Scalar::Word(means) => Ok(Value::Number(means)),
        Scalar::Number(number) if (bounds.min..=bounds.max).contains(&number) => Ok(Value::Number(number)),
        Scalar::Number(_) | Scalar::Beyond => Err(Problem::Bounds(*bounds)),
    }
}

/// A number, the word that stands for one, or a number that no field could hold.
enum Scalar {
    Number(u64),
    Word(u64),
    Beyond,
}

impl From<u64> for Scalar {
    fn from(number: u64) -> Scalar {
        Scalar::Number(number)
    }
}

fn number_of(found: &Found<'_>, bounds: &Bounds, parse: impl Fn(&str) -> Option<u64>) -> Result<Scalar, Problem> {
    let text = match found.value {
        DeValue::String(text) => text.trim(),
        DeValue::Integer(number) => {
            if bounds.word.is_none_or(|(word, _)| word != number.as_str()) {
                let digits = number.as_str();
                return Ok(u64::from_str_radix(digits, number.radix()).map_or(Scalar::Beyond, Scalar::Number));
            }
            number.as_str()
        }
        _ => return Err(Problem::Wants),
    };
    match bounds.word {
        Some((word, means)) if word == text => Ok(Scalar::Word(means)),
        _ => parse(text).map(Scalar::Number).ok_or(Problem::Wants),
    }
}

fn percent_of(value: &DeValue<'_>) -> Option<Scalar> {
    let factor: f64 = match value {
        DeValue::Float(number) => number.as_str().parse().ok()?,
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok()?,
        _ => return None,
    };
    // A float becomes an integer by saturation, and not-a-number by 0, so nothing can overflow here.
    if factor < 0.0 { Some(Scalar::Beyond) } else { Some(((factor * 100.0 + 0.5) as u64).into()) }
}

fn text_of<'a>(found: &'a Found<'_>) -> Option<&'a str> {
    match (found.value, found.verbatim) {
        (DeValue::String(text), _) => Some(text),
        (_, Some(verbatim)) => Some(verbatim),
        _ => None,
    }
}

fn address_of(value: &DeValue<'_>) -> Option<String> {
    let text = match value {
        DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
        DeValue::String(text) => text.trim(),
        _ => return None,
    };
    if let Some(address) = units::address(text) {
        return Some(address.to_string());
    }
    None
}

fn list_of(value: &DeValue<'_>, commas: bool) -> Option<Value> {
    let list = match value {
        DeValue::String(text) if commas => text.split(',').map(|part| part.trim().to_string()).collect(),
        DeValue::Array(array) => array
            .iter()
            .map(|member| match member.get_ref() {
                DeValue::String(text) => Some(text.to_string()),
                _ => None,
            })
            .collect::<Option<Vec<String>>>()?,
        _ => return None,
    };
    Some(Value::List(list))
}

fn cpus_of(value: &DeValue<'_>) -> Option<Value> {
    let list: Vec<String> = match value {
        DeValue::String(text) if matches!(text.as_ref(), "auto" | "off") => [text.to_string()].into(),
        DeValue::String(text) => text.split(',').map(|cpu| cpu.trim().to_string()).collect(),
        DeValue::Integer(number) => [number.to_string()].into(),
        DeValue::Array(array) => array
            .iter()
            .map(|member| match member.get_ref() {
                DeValue::Integer(number) => Some(number.to_string()),
                _ => None,
            })
            .collect::<Option<_>>()?,
        _ => return None,
    };
    let word = matches!(list.as_slice(), [word] if word == "auto" || word == "off");
    let numbers = !list.is_empty() && list.iter().all(|cpu| cpu.parse::<u16>().is_ok());
    (word || numbers).then_some(Value::List(list))
}

/// A string as TOML writes it.
pub(super) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// What an error message repeats of a value.
pub(super) fn shorten(text: &str) -> String {
    const SHOWN_CHARACTERS: usize = 80;
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.into(),
    }
}
