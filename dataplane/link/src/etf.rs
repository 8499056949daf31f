//! Erlang's external term format, the language inside every link payload.
//!
//! Reading is a walk over borrowed bytes: [`open`] checks a whole payload once (depth, number of elements, inflated
//! size, no trailing bytes, atoms) and hands out a [`Reader`] that never allocates. Writing appends to a vector.
//! Called by `wire` on whichever shard got the payload. Always true: what [`open`] accepted has well-formed framing,
//! so a reader that walks it meets wrong types at worst, never a cut term.

use alloc::vec::Vec;
use core::fmt;

use miniz_oxide::inflate::decompress_slice_iter_to_slice;

/// Nesting that no link payload needs: a forwarded message nests five deep.
pub const DEPTH_MAX: usize = 16;
/// Elements of one payload. A route batch of EMQX has 4000 entries of at most four elements; a foreign one of
/// 10 000 was accepted by EMQX and is accepted here.
pub const ELEMENTS_MAX: u32 = 1_000_000;
/// Bytes a compressed payload may inflate to. EMQX's own packet limit is 1 MiB; ten times that is a bomb, not a batch.
pub const INFLATED_BYTES_MAX: usize = 10 << 20;

const VERSION: u8 = 131;
const COMPRESSED: u8 = 80;
const NIL: u8 = 106;

/// What is wrong with the bytes. The guilty one is whoever encoded them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EtfError {
    /// The first byte is not 131.
    NotATerm,
    /// The term ends before its own lengths say so.
    Cut,
    /// A tag that a link payload has no use for (pids, references, funs, bit strings, ...).
    UnknownTag(u8),
    /// More than [`Limits::depth_max`] levels.
    TooDeep,
    /// More than [`Limits::elements_max`] elements.
    TooManyElements,
    /// A compressed term declares more than [`Limits::inflated_bytes_max`] bytes.
    InflatedTooLarge,
    /// The zlib stream is damaged, or its length is not the declared one.
    BadZlib,
    /// Bytes after the term.
    TrailingBytes,
    /// An atom that is not text.
    BadAtom,
    /// An atom that the protocol does not have (EMQX decodes in `safe` mode and refuses those too).
    UnknownAtom,
    /// A list whose tail is not the empty list.
    ImproperList,
    /// Another type stands where this one belongs.
    Expected(&'static str),
}

impl fmt::Display for EtfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EtfError::NotATerm => f.write_str("not an external term (first byte is not 131)"),
            EtfError::Cut => f.write_str("term is cut short"),
            EtfError::UnknownTag(tag) => write!(f, "term has unknown tag {tag}"),
            EtfError::TooDeep => f.write_str("term is nested too deeply"),
            EtfError::TooManyElements => f.write_str("term has too many elements"),
            EtfError::InflatedTooLarge => f.write_str("compressed term declares too many bytes"),
            EtfError::BadZlib => f.write_str("compressed term does not inflate to its declared length"),
            EtfError::TrailingBytes => f.write_str("bytes follow the term"),
            EtfError::BadAtom => f.write_str("atom is not UTF-8 text"),
            EtfError::UnknownAtom => f.write_str("term has an unknown atom"),
            EtfError::ImproperList => f.write_str("list is improper"),
            EtfError::Expected(what) => write!(f, "term should have {what} here"),
        }
    }
}

/// Bounds of one payload.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Levels of tuples, lists and maps.
    pub depth_max: usize,
    /// Elements in total, containers counted.
    pub elements_max: u32,
    /// Bytes of a compressed payload after inflation.
    pub inflated_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { depth_max: DEPTH_MAX, elements_max: ELEMENTS_MAX, inflated_bytes_max: INFLATED_BYTES_MAX }
    }
}

/// Which atoms a payload may contain.
#[derive(Clone, Copy, Debug)]
pub enum Atoms<'s> {
    /// Every atom: we keep none, so an unknown one cannot fill a table as it would in Erlang.
    Any,
    /// Only these; anything else is [`EtfError::UnknownAtom`].
    Only(&'s [&'s str]),
}

impl Atoms<'_> {
    fn allow(&self, atom: &str) -> bool {
        match self {
            Atoms::Any => true,
            Atoms::Only(known) => known.contains(&atom),
        }
    }
}

/// One step of a walk: a scalar, or the head of a container whose elements follow.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Token<'a> {
    /// An integer that fits 64 bits.
    Int(i64),
    /// A larger integer: sign and little-endian magnitude.
    Big(bool, &'a [u8]),
    /// A floating-point number.
    Float(f64),
    /// An atom, whichever of the four encodings it had.
    Atom(&'a str),
    /// A binary.
    Binary(&'a [u8]),
    /// A list of small integers in its short form.
    Bytes(&'a [u8]),
    /// A tuple of so many elements.
    Tuple(u32),
    /// A list of so many elements, then its tail.
    List(u32),
    /// The empty list.
    Nil,
    /// A map of so many pairs.
    Map(u32),
}

/// The head of a list, to be handed to [`Reader::list_end`] after its elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListHead {
    /// Number of elements.
    pub len: u32,
    tailed: bool,
}

/// A position in a checked term.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

/// Checks `payload` as a whole and returns a reader at its term. A compressed payload is inflated into `scratch`,
/// which callers keep and lend again, so that a steady stream allocates nothing.
pub fn open<'a>(
    payload: &'a [u8],
    scratch: &'a mut Vec<u8>,
    limits: &Limits,
    atoms: Atoms<'_>,
) -> Result<Reader<'a>, EtfError> {
    let Some((&VERSION, term)) = payload.split_first() else { return Err(EtfError::NotATerm) };
    let term: &'a [u8] = match term.split_first() {
        Some((&COMPRESSED, body)) => inflate(body, scratch, limits)?,
        _ => term,
    };
    let end = scan(term, limits, atoms)?;
    if end.is_empty() { Ok(Reader { rest: term }) } else { Err(EtfError::TrailingBytes) }
}

fn inflate<'a>(body: &[u8], scratch: &'a mut Vec<u8>, limits: &Limits) -> Result<&'a [u8], EtfError> {
    let (declared, stream) = body.split_first_chunk::<4>().ok_or(EtfError::Cut)?;
    let declared = u32::from_be_bytes(*declared) as usize;
    if declared > limits.inflated_bytes_max {
        return Err(EtfError::InflatedTooLarge);
    }
    // Deflate cannot expand more than 1032 : 1, so a tiny packet cannot make us reserve the whole limit.
    if declared / 1032 > stream.len() {
        return Err(EtfError::BadZlib);
    }
    scratch.clear();
    scratch.resize(declared, 0);
    match decompress_slice_iter_to_slice(scratch, core::iter::once(stream), true, false) {
        Ok(written) if written == declared => Ok(scratch),
        _ => Err(EtfError::BadZlib),
    }
}

/// Walks one term without recursion and returns what follows it.
fn scan<'a>(term: &'a [u8], limits: &Limits, atoms: Atoms<'_>) -> Result<&'a [u8], EtfError> {
    #[derive(Clone, Copy)]
    struct Level {
        remaining: u32,
        list: bool,
    }
    let depth_max = limits.depth_max.min(DEPTH_MAX);
    let mut reader = Reader { rest: term };
    let mut stack = [Level { remaining: 0, list: false }; DEPTH_MAX];
    let mut depth = 0;
    let mut elements = 0u32;
    loop {
        let token = reader.token()?;
        elements += 1;
        let (children, list) = match token {
            Token::Atom(atom) if !atoms.allow(atom) => return Err(EtfError::UnknownAtom),
            Token::Tuple(len) => (len, false),
            Token::List(len) => (len, true),
            Token::Map(len) => (len.checked_mul(2).ok_or(EtfError::TooManyElements)?, false),
            _ => (0, false),
        };
        // An element takes at least one byte: a count beyond the bytes left is a lie, found before it is walked.
        if children as usize > reader.rest.len() {
            return Err(EtfError::Cut);
        }
        if elements > limits.elements_max || children > limits.elements_max - elements {
            return Err(EtfError::TooManyElements);
        }
        if children > 0 || list {
            if depth == depth_max {
                return Err(EtfError::TooDeep);
            }
            stack[depth] = Level { remaining: children, list };
            depth += 1;
        }
        loop {
            let Some(level) = depth.checked_sub(1).map(|top| &mut stack[top]) else { return Ok(reader.rest) };
            if level.remaining > 0 {
                level.remaining -= 1;
                break;
            }
            if level.list {
                reader.tail()?;
            }
            depth -= 1;
        }
    }
}

impl<'a> Reader<'a> {
    /// The next token of any type.
    pub fn token(&mut self) -> Result<Token<'a>, EtfError> {
        let tag = self.take::<1>()?[0];
        Ok(match tag {
            97 => Token::Int(i64::from(self.take::<1>()?[0])),
            98 => Token::Int(i64::from(i32::from_be_bytes(self.take()?))),
            110 => {
                let len = self.take::<1>()?[0];
                self.big(len as usize)?
            }
            111 => {
                let len = u32::from_be_bytes(self.take()?);
                self.big(len as usize)?
            }
            70 => Token::Float(f64::from_be_bytes(self.take()?)),
            100 | 118 => {
                let len = u16::from_be_bytes(self.take()?);
                self.atom_text(len as usize, tag == 118)?
            }
            115 | 119 => {
                let len = self.take::<1>()?[0];
                self.atom_text(len as usize, tag == 119)?
            }
            109 => {
                let len = u32::from_be_bytes(self.take()?);
                Token::Binary(self.slice(len as usize)?)
            }
            107 => {
                let len = u16::from_be_bytes(self.take()?);
                Token::Bytes(self.slice(len as usize)?)
            }
            104 => Token::Tuple(u32::from(self.take::<1>()?[0])),
            105 => Token::Tuple(u32::from_be_bytes(self.take()?)),
            108 => Token::List(u32::from_be_bytes(self.take()?)),
            NIL => Token::Nil,
            116 => Token::Map(u32::from_be_bytes(self.take()?)),
            other => return Err(EtfError::UnknownTag(other)),
        })
    }

    /// An integer.
    pub fn int(&mut self) -> Result<i64, EtfError> {
        match self.token()? {
            Token::Int(value) => Ok(value),
            _ => Err(EtfError::Expected("a 64-bit integer")),
        }
    }

    /// An atom.
    pub fn atom(&mut self) -> Result<&'a str, EtfError> {
        match self.token()? {
            Token::Atom(text) => Ok(text),
            _ => Err(EtfError::Expected("an atom")),
        }
    }

    /// A binary.
    pub fn binary(&mut self) -> Result<&'a [u8], EtfError> {
        match self.token()? {
            Token::Binary(bytes) => Ok(bytes),
            _ => Err(EtfError::Expected("a binary")),
        }
    }

    /// A binary that is UTF-8.
    pub fn text(&mut self) -> Result<&'a str, EtfError> {
        core::str::from_utf8(self.binary()?).map_err(|_| EtfError::Expected("UTF-8 text"))
    }

    /// The head of a tuple: number of elements.
    pub fn tuple(&mut self) -> Result<u32, EtfError> {
        match self.token()? {
            Token::Tuple(len) => Ok(len),
            _ => Err(EtfError::Expected("a tuple")),
        }
    }

    /// The head of a map: number of pairs.
    pub fn map(&mut self) -> Result<u32, EtfError> {
        match self.token()? {
            Token::Map(len) => Ok(len),
            _ => Err(EtfError::Expected("a map")),
        }
    }

    /// The head of a list of terms; after the elements call [`Reader::list_end`].
    pub fn list(&mut self) -> Result<ListHead, EtfError> {
        match self.token()? {
            Token::List(len) => Ok(ListHead { len, tailed: true }),
            Token::Nil => Ok(ListHead { len: 0, tailed: false }),
            _ => Err(EtfError::Expected("a list")),
        }
    }

    /// Steps over the tail of a list.
    pub fn list_end(&mut self, head: ListHead) -> Result<(), EtfError> {
        if head.tailed { self.tail() } else { Ok(()) }
    }

    /// Steps over one whole term.
    pub fn skip(&mut self) -> Result<(), EtfError> {
        self.rest = scan(self.rest, &Limits::default(), Atoms::Any)?;
        Ok(())
    }

    fn tail(&mut self) -> Result<(), EtfError> {
        match self.take::<1>()? {
            [NIL] => Ok(()),
            _ => Err(EtfError::ImproperList),
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], EtfError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(EtfError::Cut)?;
        self.rest = rest;
        Ok(*head)
    }

    fn slice(&mut self, len: usize) -> Result<&'a [u8], EtfError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(EtfError::Cut)?;
        self.rest = rest;
        Ok(head)
    }

    fn atom_text(&mut self, len: usize, utf8: bool) -> Result<Token<'a>, EtfError> {
        let bytes = self.slice(len)?;
        // The two old tags are Latin-1; every atom of the protocol is ASCII, where both agree.
        if !utf8 && !bytes.is_ascii() {
            return Err(EtfError::BadAtom);
        }
        core::str::from_utf8(bytes).map(Token::Atom).map_err(|_| EtfError::BadAtom)
    }

    fn big(&mut self, len: usize) -> Result<Token<'a>, EtfError> {
        let negative = match self.take::<1>()? {
            [0] => false,
            [1] => true,
            _ => return Err(EtfError::Expected("a sign of 0 or 1")),
        };
        let magnitude = self.slice(len)?;
        let significant = magnitude.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        if significant > 8 {
            return Ok(Token::Big(negative, magnitude));
        }
        let mut word = [0u8; 8];
        word[..significant].copy_from_slice(&magnitude[..significant]);
        let value = i128::from(u64::from_le_bytes(word));
        let signed = if negative { -value } else { value };
        Ok(i64::try_from(signed).map_or(Token::Big(negative, magnitude), Token::Int))
    }
}

/// Appends the version byte that opens every payload.
pub fn put_version(out: &mut Vec<u8>) {
    out.push(VERSION);
}

/// Appends an integer in the shortest form that Erlang itself would choose.
pub fn put_int(out: &mut Vec<u8>, value: i64) {
    if let Ok(byte) = u8::try_from(value) {
        out.extend_from_slice(&[97, byte]);
    } else if let Ok(word) = i32::try_from(value) {
        out.push(98);
        out.extend_from_slice(&word.to_be_bytes());
    } else {
        let magnitude = value.unsigned_abs().to_le_bytes();
        let len = magnitude.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        out.extend_from_slice(&[110, len as u8, u8::from(value < 0)]);
        out.extend_from_slice(&magnitude[..len]);
    }
}

/// Appends an atom of at most 255 bytes.
pub fn put_atom(out: &mut Vec<u8>, atom: &'static str) {
    assert!(atom.len() <= 255, "the atoms of the protocol are literals of this crate");
    out.extend_from_slice(&[119, atom.len() as u8]);
    out.extend_from_slice(atom.as_bytes());
}

/// Appends a binary. Longer than 4 GiB cannot happen: an MQTT packet is at most 256 MiB.
pub fn put_binary(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(109);
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Appends the head of a tuple.
pub fn put_tuple(out: &mut Vec<u8>, len: u8) {
    out.extend_from_slice(&[104, len]);
}

/// Appends the head of a map of so many pairs.
pub fn put_map(out: &mut Vec<u8>, len: u32) {
    out.push(116);
    out.extend_from_slice(&len.to_be_bytes());
}

/// Appends the head of a list of so many elements; [`put_nil`] ends it. A list of none is [`put_nil`] alone.
pub fn put_list(out: &mut Vec<u8>, len: u32) {
    out.push(108);
    out.extend_from_slice(&len.to_be_bytes());
}

/// Appends the empty list, which is also the tail of every other list.
pub fn put_nil(out: &mut Vec<u8>) {
    out.push(NIL);
}
