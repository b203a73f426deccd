//! (pure) Text out of bytes that arrive in pieces: a character is never split over two pieces.

/// What is left of one stream of bytes.
#[derive(Debug, Default)]
pub(crate) struct Utf8 {
    /// The beginning of a character: at most three bytes.
    rest: Vec<u8>,
}

impl Utf8 {
    /// The text that is whole by now. Bytes that are no text become U+FFFD.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.rest.len());
        let mut left = self.rest.as_slice();
        loop {
            match std::str::from_utf8(left) {
                Ok(whole) => {
                    text.push_str(whole);
                    left = &[];
                }
                Err(error) => {
                    let (whole, after) = left.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(whole));
                    if let Some(wrong) = error.error_len() {
                        text.push(char::REPLACEMENT_CHARACTER);
                        left = &after[wrong..];
                        continue;
                    }
                    left = after;
                }
            }
            break;
        }
        self.rest = left.to_vec();
        text
    }

    /// What never became a character, at the end of the stream.
    pub(crate) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.rest)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_gives_the_same_text() {
        let bytes = "aé✓🦀\u{0}z".as_bytes();
        for cut in 0..=bytes.len() {
            let mut utf8 = Utf8::default();
            let text = utf8.push(&bytes[..cut]) + &utf8.push(&bytes[cut..]) + &utf8.finish();
            assert_eq!(text.as_bytes(), bytes);
        }
        let mut utf8 = Utf8::default();
        let text: String = bytes.iter().map(|byte| utf8.push(&[*byte])).collect();
        assert_eq!(text.as_bytes(), bytes);
    }

    #[test]
    fn what_is_no_text_reads_as_the_standard_library_says() {
        for bytes in
            [&b"a\xffb"[..], b"\xe2\x82", b"\xe2\x28\xa1", b"\xf0\x9f\xa6", b"\x80\x80x", b"\xed\xa0\x80"]
        {
            let mut utf8 = Utf8::default();
            let text = utf8.push(bytes) + &utf8.finish();
            assert_eq!(text, String::from_utf8_lossy(bytes));
        }
    }
}
