//! Looks at strings eight bytes at a time: the checks that every received string and topic needs, in one
//! pass without a table and without `unsafe`. Called by the codec and by [`crate::topic`].
//! Always true: the answers are exact. The borrow of the subtraction may mark bytes above a hit, never
//! without one below.

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

const fn every(byte: u8) -> u64 {
    ONES * byte as u64
}

/// A bit at 0x80 of the first zero byte, and possibly of bytes above it.
#[inline(always)]
const fn zeroes(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & HIGHS
}

#[inline(always)]
fn word(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
}

/// Is there a U+0000?
#[inline]
pub(crate) fn has_nul(bytes: &[u8]) -> bool {
    any(bytes, zeroes, |byte| byte == 0)
}

/// Is there a byte that no topic has: U+0000, `+` or `#`?
#[inline]
pub(crate) fn has_wildcard_or_nul(bytes: &[u8]) -> bool {
    any(
        bytes,
        |word| zeroes(word) | zeroes(word ^ every(b'+')) | zeroes(word ^ every(b'#')),
        |byte| matches!(byte, 0 | b'+' | b'#'),
    )
}

#[inline(always)]
fn any(bytes: &[u8], in_word: impl Fn(u64) -> u64, is_it: impl Fn(u8) -> bool) -> bool {
    let Some(last) = bytes.last_chunk::<8>() else { return bytes.iter().any(|byte| is_it(*byte)) };
    // The last eight bytes overlap the chunk before them: looking twice is cheaper than a tail loop.
    let mut found = in_word(word(last));
    for chunk in bytes.chunks_exact(8) {
        if let Some(chunk) = chunk.first_chunk::<8>() {
            found |= in_word(word(chunk));
        }
    }
    found != 0
}

/// Length of the longest common prefix.
#[inline]
pub(crate) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let (mut at, len) = (0, a.len().min(b.len()));
    let (a, b) = (&a[..len], &b[..len]);
    while let (Some(x), Some(y)) = (a[at..].first_chunk::<8>(), b[at..].first_chunk::<8>()) {
        let difference = word(x) ^ word(y);
        if difference != 0 {
            return at + (difference.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    if let (Some(x), Some(y)) = (a.last_chunk::<8>(), b.last_chunk::<8>()) {
        // What overlaps is known to be equal: without a difference, 64 zeroes make this `len`.
        return len - 8 + ((word(x) ^ word(y)).trailing_zeros() / 8) as usize;
    }
    while at < len && a[at] == b[at] {
        at += 1;
    }
    at
}

/// Length up to the next `/`, or to the end.
#[inline]
pub(crate) fn level_len(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(chunk) = bytes[at..].first_chunk::<8>() {
        // The lowest bit is exact: a borrow only reaches bytes above the first hit.
        let slashes = zeroes(word(chunk) ^ every(b'/'));
        if slashes != 0 {
            return at + (slashes.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    bytes[at..].iter().position(|byte| *byte == b'/').map_or(bytes.len(), |more| at + more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{vec, vec::Vec};

    #[test]
    fn one_byte_is_found_at_every_place_of_every_length() {
        for len in 0..40 {
            let plain: Vec<u8> = (0..len).map(|at| b'a' + at % 26).collect();
            assert!(!has_wildcard_or_nul(&plain));
            for at in 0..usize::from(len) {
                for byte in 0..=u8::MAX {
                    let mut bytes = plain.clone();
                    bytes[at] = byte;
                    assert_eq!(has_nul(&bytes), byte == 0, "{byte} at {at} of {len}");
                    let expected = matches!(byte, 0 | b'+' | b'#');
                    assert_eq!(has_wildcard_or_nul(&bytes), expected, "{byte} at {at} of {len}");
                }
            }
        }
    }

    #[test]
    fn prefixes_and_levels_end_where_a_byte_loop_says() {
        for len in 0..30usize {
            for at in 0..=len {
                let a = vec![b'x'; len];
                let mut b = a.clone();
                if let Some(byte) = b.get_mut(at) {
                    *byte = b'/';
                }
                assert_eq!(common_prefix(&a, &b), at);
                assert_eq!(common_prefix(&a, &a[..at]), at);
                let longer = [&b[..], b"x"].concat();
                assert_eq!(common_prefix(&longer, &a), at);
                assert_eq!(level_len(&b), at);
                for byte in &mut b[at..] {
                    *byte = if *byte == b'x' { b'.' } else { *byte };
                }
                assert_eq!(level_len(&b), at, "0x2E beside 0x2F must not count");
            }
        }
    }
}
