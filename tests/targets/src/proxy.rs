//! The header of a load balancer: `transport::proxy`.

use transport::proxy::{Header, Malformed, Proxied};

use crate::pieces::pieces;

/// First byte: cuts; the rest comes off the wire. In pieces the header says what it says in one, and takes the same bytes.
pub fn proxy(data: &[u8]) {
    let Some((&cuts, wire)) = data.split_first() else { return };
    let whole = read([wire].into_iter());
    assert_eq!(read(pieces(cuts, wire)), whole);
    let (taken, result) = whole;
    // Nothing behind the header changes what it says.
    if let Ok(Some(_)) = result {
        let longer = [wire, b"\x10\x0e"].concat();
        assert_eq!(read([&longer[..]].into_iter()), (taken, result));
    }
}

/// How many bytes were taken, and what they said.
fn read<'a>(wire: impl Iterator<Item = &'a [u8]>) -> (usize, Result<Option<Proxied>, Malformed>) {
    let mut header = Header::default();
    let mut taken = 0;
    for piece in wire {
        let mut rest = piece;
        let result = header.read(&mut rest);
        taken += piece.len() - rest.len();
        if result != Ok(None) {
            return (taken, result);
        }
    }
    (taken, Ok(None))
}
