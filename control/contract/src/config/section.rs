//! How a section of the configuration is written down: its fields and its knobs are one list, so that
//! neither can exist without the other.

use alloc::{string::String, vec::Vec};

use super::{
    knob::{Kind, Knob, Value},
    secret::Secret,
};

/// A typed section, made from the values of its knobs.
pub(super) trait Section: Sized {
    /// What the section is about.
    const TITLE: &'static str;
    /// The knobs, in the order of the fields.
    const KNOBS: &'static [Knob];
    /// Takes one value per knob, in that order.
    fn build(values: &mut dyn Iterator<Item = Value>) -> Self;

    /// What it is when nobody says anything.
    fn preset() -> Self {
        Self::build(&mut Self::KNOBS.iter().map(|knob| knob.default.value()))
    }
}

/// The type of a field. `HOLDS` says which kinds of knob may fill it, and the compiler compares.
pub(super) trait Field {
    /// What it can hold.
    const HOLDS: Holds;
    /// Takes an accepted value.
    fn take(value: Value) -> Self;
}

/// What a field can hold.
#[derive(Clone, Copy)]
pub(super) enum Holds {
    /// A number up to this one.
    Number(u64),
    /// Yes or no.
    Switch,
    /// A string.
    Text,
    /// A secret.
    Secret,
    /// Several strings.
    List,
    /// One of so many words.
    Choice(usize),
    /// CPUs.
    Cpus,
}

/// Can every value of `kind` be held? Evaluated by the compiler for each field.
pub(super) const fn fits(kind: &Kind, holds: Holds) -> bool {
    match (kind, holds) {
        (Kind::Switch, Holds::Switch)
        | (Kind::Text(_) | Kind::Address, Holds::Text)
        | (Kind::Secret(_), Holds::Secret)
        | (Kind::List | Kind::Array, Holds::List)
        | (Kind::Cpus, Holds::Cpus) => true,
        (Kind::Choice(words), Holds::Choice(choices)) => words.len() == choices,
        (kind, Holds::Number(max)) => match kind.number_max() {
            Some(highest) => highest <= max,
            None => false,
        },
        _ => false,
    }
}

macro_rules! number_fields {
    ($($number:ty),+) => {$(
        impl Field for $number {
            const HOLDS: Holds = Holds::Number(<$number>::MAX as u64);
            fn take(value: Value) -> $number {
                match value {
                    // Bounds have made it fit.
                    Value::Number(number) => number as $number,
                    _ => 0,
                }
            }
        }
    )+};
}

number_fields!(u8, u16, u32, u64);

impl Field for bool {
    const HOLDS: Holds = Holds::Switch;
    fn take(value: Value) -> bool {
        value == Value::Switch(true)
    }
}

impl Field for String {
    const HOLDS: Holds = Holds::Text;
    fn take(value: Value) -> String {
        match value {
            Value::Text(text) => text,
            _ => String::new(),
        }
    }
}

impl Field for Option<String> {
    const HOLDS: Holds = Holds::Text;
    fn take(value: Value) -> Option<String> {
        match value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl Field for Option<Secret> {
    const HOLDS: Holds = Holds::Secret;
    fn take(value: Value) -> Option<Secret> {
        match value {
            Value::Secret(secret) => Some(secret),
            _ => None,
        }
    }
}

impl Field for Vec<String> {
    const HOLDS: Holds = Holds::List;
    fn take(value: Value) -> Vec<String> {
        match value {
            Value::List(list) => list,
            _ => Vec::new(),
        }
    }
}

/// Declares a section: fields, knobs and the bridge between them.
macro_rules! section {
    (
        $(#[doc = $section_doc:literal])+
        $section:ident at $prefix:literal {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $type:ty = $key:literal, $kind:expr, $default:expr, $apply:ident, $example:literal;
            )+
        }
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
        pub struct $section {
            $($(#[doc = $doc])+ pub $field: $type,)+
        }

        $(const _: () = assert!(
            $crate::config::section::fits(&$kind, <$type as $crate::config::section::Field>::HOLDS),
            concat!("the bounds of ", $prefix, ".", $key, " must fit its field")
        );)+

        impl $crate::config::section::Section for $section {
            const TITLE: &'static str = concat!($($section_doc),+);
            const KNOBS: &'static [$crate::config::knob::Knob] = &[
                $($crate::config::knob::Knob {
                    key: concat!($prefix, ".", $key),
                    doc: concat!($($doc),+),
                    kind: $kind,
                    default: $default,
                    apply: $crate::config::knob::Apply::$apply,
                    example: $example,
                },)+
            ];

            fn build(values: &mut dyn Iterator<Item = $crate::config::knob::Value>) -> $section {
                $section {
                    $($field: <$type as $crate::config::section::Field>::take(
                        values.next().unwrap_or($crate::config::knob::Value::Unset),
                    ),)+
                }
            }
        }

        impl Default for $section {
            fn default() -> $section {
                <$section as $crate::config::section::Section>::preset()
            }
        }
    };
}

/// Declares words that a knob may be, in order.
macro_rules! choice {
    (
        $(#[doc = $choice_doc:literal])+
        $choice:ident { $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+ }
    ) => {
        $(#[doc = $choice_doc])+
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
        pub enum $choice { $($(#[doc = $doc])+ $variant,)+ }

        impl $choice {
            /// The words, in the order of the variants.
            pub const WORDS: &'static [&'static str] = &[$($word,)+];
            const ALL: &'static [$choice] = &[$($choice::$variant,)+];

            /// As the configuration writes it.
            pub fn as_str(self) -> &'static str {
                match self { $($choice::$variant => $word,)+ }
            }

            /// What [`Self::as_str`] writes; `None` for any other word.
            pub fn parse(word: &str) -> Option<$choice> {
                $choice::ALL.iter().copied().find(|choice| choice.as_str() == word)
            }
        }

        impl $crate::config::section::Field for $choice {
            const HOLDS: $crate::config::section::Holds = $crate::config::section::Holds::Choice($choice::WORDS.len());
            fn take(value: $crate::config::knob::Value) -> $choice {
                match value {
                    $crate::config::knob::Value::Number(place) => {
                        $choice::ALL.get(place as usize).copied().unwrap_or($choice::ALL[0])
                    }
                    _ => $choice::ALL[0],
                }
            }
        }
    };
}

pub(super) use {choice, section};
