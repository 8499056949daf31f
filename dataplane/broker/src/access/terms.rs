//! The part of Erlang's terms that EMQX's `acl.conf` is written in: tuples, lists, atoms, strings, numbers, each rule ended by a
//! dot. Bounded in depth; every term knows its line.

use alloc::{
    boxed::Box,
    format,
    string::{String, ToString},
    vec::Vec,
};

use super::RuleError;

/// How deep terms may lie in each other.
const DEPTH_MAX: usize = 16;

/// A term and the line that it begins on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Term {
    pub(super) line: u32,
    pub(super) what: What,
}

/// What a term is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum What {
    Tuple(Box<[Term]>),
    List(Box<[Term]>),
    Atom(Box<str>),
    Text(Box<str>),
    Number(u64),
}

impl Term {
    /// Something is wrong here.
    pub(super) fn wrong(&self, what: impl Into<String>) -> RuleError {
        RuleError { line: self.line, what: what.into() }
    }

    pub(super) fn atom(&self) -> Option<&str> {
        match &self.what {
            What::Atom(atom) => Some(atom),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.what {
            What::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn tuple(&self) -> Option<&[Term]> {
        match &self.what {
            What::Tuple(members) => Some(members),
            _ => None,
        }
    }

    pub(super) fn list(&self) -> Option<&[Term]> {
        match &self.what {
            What::List(members) => Some(members),
            _ => None,
        }
    }
}

/// Reads terms, each of which ends with a dot.
pub(super) struct Reader<'a> {
    rest: &'a str,
    line: u32,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Reader<'a> {
        Reader { rest: text.trim_start_matches('\u{feff}'), line: 1 }
    }

    /// The next term, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Term>, RuleError> {
        self.skip();
        if self.rest.is_empty() {
            return Ok(None);
        }
        let term = self.term(0)?;
        self.skip();
        match self.take('.') {
            true => Ok(Some(term)),
            false => Err(self.wrong("a rule ends with a dot")),
        }
    }

    fn wrong(&self, what: &str) -> RuleError {
        let seen: String = self.rest.chars().take(12).collect();
        let seen = if seen.is_empty() { "the end of the file".to_string() } else { format!("{seen:?}") };
        RuleError { line: self.line, what: format!("{what}; here is {seen}") }
    }

    /// Passes blanks and comments.
    fn skip(&mut self) {
        while let Some(c) = self.rest.chars().next() {
            if c == '%' {
                self.rest = self.rest.find('\n').map_or("", |end| &self.rest[end..]);
            } else if c.is_whitespace() {
                self.step(c);
            } else {
                return;
            }
        }
    }

    fn step(&mut self, c: char) {
        self.line += u32::from(c == '\n');
        self.rest = &self.rest[c.len_utf8()..];
    }

    fn take(&mut self, c: char) -> bool {
        let there = self.rest.starts_with(c);
        if there {
            self.step(c);
        }
        there
    }

    fn term(&mut self, depth: usize) -> Result<Term, RuleError> {
        if depth > DEPTH_MAX {
            return Err(self.wrong("terms lie too deep in each other"));
        }
        self.skip();
        let line = self.line;
        let what = match self.rest.chars().next() {
            Some('{') => What::Tuple(self.members('{', '}', depth)?),
            Some('[') => What::List(self.members('[', ']', depth)?),
            Some('"') => What::Text(self.quoted('"')?),
            Some('\'') => What::Atom(self.quoted('\'')?),
            Some('<') => What::Text(self.binary()?),
            Some(c) if c.is_ascii_digit() => What::Number(self.number()?),
            Some(c) if c.is_ascii_lowercase() => What::Atom(self.word()),
            _ => return Err(self.wrong("a term is a tuple, a list, a word, a string or a number")),
        };
        Ok(Term { line, what })
    }

    fn members(&mut self, open: char, close: char, depth: usize) -> Result<Box<[Term]>, RuleError> {
        let mut members = Vec::new();
        self.take(open);
        self.skip();
        if self.take(close) {
            return Ok(members.into());
        }
        loop {
            members.push(self.term(depth + 1)?);
            self.skip();
            if self.take(close) {
                return Ok(members.into());
            }
            if !self.take(',') {
                return Err(self.wrong("between members stands a comma"));
            }
        }
    }

    fn quoted(&mut self, quote: char) -> Result<Box<str>, RuleError> {
        let begun = self.line;
        self.take(quote);
        let mut text = String::new();
        while let Some(c) = self.rest.chars().next() {
            self.step(c);
            match c {
                c if c == quote => return Ok(text.into()),
                '\\' => {
                    let escaped = self.rest.chars().next();
                    escaped.into_iter().for_each(|c| self.step(c));
                    text.push(match escaped {
                        Some('n') => '\n',
                        Some('t') => '\t',
                        Some(c) => c,
                        None => break,
                    });
                }
                c => text.push(c),
            }
        }
        Err(RuleError { line: begun, what: "a string does not end".to_string() })
    }

    /// `<<"text">>`, `<<"text"/utf8>>`.
    fn binary(&mut self) -> Result<Box<str>, RuleError> {
        let opens = self.rest.starts_with("<<\"");
        if !opens {
            return Err(self.wrong("a binary is written <<\"text\">>"));
        }
        self.rest = &self.rest[2..];
        let text = self.quoted('"')?;
        self.rest = self.rest.strip_prefix("/utf8").unwrap_or(self.rest);
        match self.rest.strip_prefix(">>") {
            Some(rest) => self.rest = rest,
            None => return Err(self.wrong("a binary ends with >>")),
        }
        Ok(text)
    }

    fn number(&mut self) -> Result<u64, RuleError> {
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let number = self.rest[..end].parse().map_err(|_| self.wrong("a number is too large"))?;
        self.rest = &self.rest[end..];
        Ok(number)
    }

    fn word(&mut self) -> Box<str> {
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '@');
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        word.into()
    }
}
