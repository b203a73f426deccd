//! Where UTF-8 text may be cut. Pure.

/// The longest prefix of `bytes` not longer than `max` that does not end inside a character. Bytes that
/// are not UTF-8 may be cut anywhere.
pub(super) fn floor(bytes: &[u8], max: usize) -> usize {
    if max >= bytes.len() {
        return bytes.len();
    }
    // A character has at most three continuation bytes: look that far back for its first byte.
    (max.saturating_sub(3)..=max).rev().find(|&end| !is_continuation(bytes[end])).unwrap_or(max)
}

/// How many bytes at the start of `bytes` belong to a character that began before.
pub(super) fn continuations(bytes: impl Iterator<Item = u8>) -> usize {
    bytes.take(3).take_while(|&byte| is_continuation(byte)).count()
}

fn is_continuation(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_is_never_cut_inside_a_character(text in "\\PC{0,40}", max in 0usize..100) {
            let end = floor(text.as_bytes(), max);
            prop_assert!(end <= max.max(text.len().min(max)));
            prop_assert!(text.is_char_boundary(end));
            prop_assert!(text.len() <= max || max - end < 4);
        }

        #[test]
        fn any_bytes_can_be_cut(bytes in prop::collection::vec(any::<u8>(), 0..50), max in 0usize..60) {
            prop_assert!(floor(&bytes, max) <= bytes.len());
        }
    }
}
