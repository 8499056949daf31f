//! Cuts a run of bytes as a network would. Called by the targets that read streams.
//! Always true: the pieces are the bytes, in order, none of them empty; the same seed cuts alike.

/// `bytes` in pieces; seed 0: in single bytes.
pub fn pieces(seed: u8, mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut state = u32::from(seed);
    core::iter::from_fn(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Mostly short: the borders of headers are where cuts hurt.
        let longest = if seed == 0 {
            1
        } else if state >> 30 == 0 {
            300
        } else {
            8
        };
        let length = 1 + (state >> 8) as usize % longest;
        let (piece, rest) = bytes.split_at_checked(length).unwrap_or((bytes, &[]));
        bytes = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_bytes_in_order() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for seed in 0..=255 {
            assert_eq!(pieces(seed, &bytes).collect::<Vec<_>>().concat(), bytes);
        }
        assert!(pieces(0, &bytes).all(|piece| piece.len() == 1));
        assert_eq!(pieces(1, &[]).count(), 0);
    }
}
