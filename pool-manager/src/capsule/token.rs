//! The secret that opens a capsule's ports in place of a key.

use std::fmt;
use subtle::ConstantTimeEq;

/// Random bytes in a token.
const BYTES: usize = 16;

/// A capsule's access token: hex of random bytes. Kept as it is, not hashed: whoever may read the capsule reads it too.
/// Empty, and then nothing matches it, for capsules from before there were tokens.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct AccessToken(String);

impl AccessToken {
    /// A new one; none when the kernel has no randomness to give.
    pub(crate) fn random() -> Option<Self> {
        let mut bytes = [0; BYTES];
        getrandom::fill(&mut bytes).ok()?;
        Some(Self(hex::encode(bytes)))
    }

    /// From its row.
    pub(crate) fn stored(text: String) -> Self {
        Self(text)
    }

    /// For its row and its team.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether somebody has it. Takes the same time however much of it is right.
    pub(crate) fn opens(&self, offered: &str) -> bool {
        !self.0.is_empty() && bool::from(self.0.as_bytes().ct_eq(offered.as_bytes()))
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_by_itself_only_and_is_not_shown() {
        let (one, other) = (AccessToken::random().unwrap(), AccessToken::random().unwrap());
        assert_eq!(one.reveal().len(), 2 * BYTES);
        assert!(one.opens(one.reveal()));
        assert!(!one.opens(other.reveal()) && !one.opens("") && !one.opens(&one.reveal()[1..]));
        assert!(!AccessToken::default().opens(""));
        assert!(!format!("{one:?}").contains(one.reveal()));
    }
}
