//! Erlang terms as trees: read from bytes with the crate's reader, and from the text that EMQX printed.

use link::etf::{self, Atoms, Limits, Reader, Token};

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Term {
    Int(i64),
    Atom(String),
    Binary(Vec<u8>),
    Tuple(Vec<Term>),
    List(Vec<Term>),
    /// Sorted by key: the order on the wire means nothing.
    Map(Vec<(Term, Term)>),
}

impl Term {
    pub fn elements(&self) -> &[Term] {
        match self {
            Term::Tuple(elements) | Term::List(elements) => elements,
            other => panic!("{other:?} has no elements"),
        }
    }

    pub fn key(&self, key: &str) -> Option<&Term> {
        let Term::Map(pairs) = self else { panic!("{self:?} is no map") };
        pairs.iter().find(|(name, _)| *name == Term::Atom(key.into())).map(|(_, value)| value)
    }
}

pub fn of_bytes(payload: &[u8]) -> Term {
    let mut scratch = Vec::new();
    let mut reader = etf::open(payload, &mut scratch, &Limits::default(), Atoms::Any).expect("a term");
    tree(&mut reader)
}

fn tree(reader: &mut Reader<'_>) -> Term {
    let many = |reader: &mut Reader<'_>, count: u32| (0..count).map(|_| tree(reader)).collect();
    match reader.token().expect("a checked term") {
        Token::Int(value) => Term::Int(value),
        Token::Atom(text) => Term::Atom(text.into()),
        Token::Binary(bytes) => Term::Binary(bytes.into()),
        Token::Bytes(bytes) => Term::List(bytes.iter().map(|byte| Term::Int(i64::from(*byte))).collect()),
        Token::Tuple(len) => Term::Tuple(many(reader, len)),
        Token::Nil => Term::List(Vec::new()),
        Token::List(len) => {
            let list = many(reader, len);
            assert_eq!(reader.token(), Ok(Token::Nil));
            Term::List(list)
        }
        Token::Map(len) => sorted((0..len).map(|_| (tree(reader), tree(reader))).collect()),
        other => panic!("no vector has {other:?}"),
    }
}

fn sorted(mut pairs: Vec<(Term, Term)>) -> Term {
    pairs.sort();
    Term::Map(pairs)
}

/// Reads what Erlang prints with `~0tp`.
pub fn of_text(text: &str) -> Term {
    let mut parser = Parser { rest: text };
    let term = parser.term();
    assert_eq!(parser.rest, "", "text after the term");
    term
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn need(&mut self, token: &str) {
        assert!(self.eat(token), "expected {token} at {}", self.rest);
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !keep(c)).unwrap_or(self.rest.len());
        let (head, rest) = self.rest.split_at(end);
        self.rest = rest;
        head
    }

    fn until(&mut self, end: &str, mut element: impl FnMut(&mut Self)) {
        if self.eat(end) {
            return;
        }
        loop {
            element(self);
            if self.eat(end) {
                return;
            }
            self.need(",");
        }
    }

    fn term(&mut self) -> Term {
        if self.eat("<<\"") {
            return self.quoted_binary();
        }
        if self.eat("<<") {
            let mut bytes = Vec::new();
            self.until(">>", |parser| {
                bytes.push(parser.take_while(|c| c.is_ascii_digit()).parse().expect("a byte"));
            });
            return Term::Binary(bytes);
        }
        if self.eat("#{") {
            let mut pairs = Vec::new();
            self.until("}", |parser| {
                let key = parser.term();
                parser.need(" => ");
                pairs.push((key, parser.term()));
            });
            return sorted(pairs);
        }
        if self.eat("{") {
            let mut elements = Vec::new();
            self.until("}", |parser| elements.push(parser.term()));
            return Term::Tuple(elements);
        }
        if self.eat("[") {
            let mut elements = Vec::new();
            self.until("]", |parser| elements.push(parser.term()));
            return Term::List(elements);
        }
        if self.eat("'") {
            let atom = self.take_while(|c| c != '\'');
            self.need("'");
            return Term::Atom(atom.into());
        }
        let word = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '@');
        assert!(!word.is_empty(), "no term at {}", self.rest);
        word.parse().map_or_else(|_| Term::Atom(word.into()), Term::Int)
    }

    fn quoted_binary(&mut self) -> Term {
        let mut bytes = Vec::new();
        loop {
            let plain = self.take_while(|c| c != '"' && c != '\\');
            bytes.extend_from_slice(plain.as_bytes());
            if self.eat("\\\"") {
                bytes.push(b'"');
            } else if self.eat("\\\\") {
                bytes.push(b'\\');
            } else if self.eat("\\n") {
                bytes.push(b'\n');
            } else {
                break;
            }
        }
        self.need("\"");
        // `/utf8` marks text beyond Latin-1; the file has it as UTF-8 either way.
        self.eat("/utf8");
        self.need(">>");
        Term::Binary(bytes)
    }
}
