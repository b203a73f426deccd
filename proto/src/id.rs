//! Ids: a UUID inside, a prefix and 25 base36 digits outside, e.g. `cl-0d9x2…`.

use std::{fmt, str::FromStr};
use uuid::Uuid;

/// Digits of an id's text form: 36^25 > 2^128.
const DIGITS: usize = 25;

/// A text that is not an id of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind} id: expected `{prefix}-` and 25 characters 0-9 a-z")]
pub struct IdError {
    kind: &'static str,
    prefix: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id, ordered by time of creation.
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id of this UUID.
            pub fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID inside.
            pub fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "-{}"), encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                text.strip_prefix(concat!($prefix, "-"))
                    .and_then(decode)
                    .map(Self)
                    .ok_or(IdError { kind: $kind, prefix: $prefix })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// A capsule.
    CapsuleId, "capsule", "cl"
);
id!(
    /// A named snapshot of a capsule.
    SnapshotId, "snapshot", "snap"
);
id!(
    /// A base image that was made of a capsule.
    ImageId, "base image", "img"
);
id!(
    /// A team: owner of keys and capsules.
    TeamId, "team", "team"
);
id!(
    /// An API key (its row, not its secret).
    KeyId, "key", "key"
);
id!(
    /// A person.
    UserId, "user", "usr"
);
id!(
    /// A host with an agent.
    HostId, "host", "host"
);
id!(
    /// One run of code.
    RunId, "run", "run"
);

fn encode(uuid: Uuid) -> String {
    let mut rest = uuid.as_u128();
    let mut digits = [b'0'; DIGITS];
    for digit in digits.iter_mut().rev() {
        let value = u8::try_from(rest % 36).expect("below 36");
        *digit = if value < 10 { b'0' + value } else { b'a' + value - 10 };
        rest /= 36;
    }
    String::from_utf8(digits.to_vec()).expect("ASCII digits")
}

fn decode(text: &str) -> Option<Uuid> {
    if text.len() != DIGITS {
        return None;
    }
    let mut value: u128 = 0;
    for byte in text.bytes() {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'z' => byte - b'a' + 10,
            _ => return None,
        };
        value = value.checked_mul(36)?.checked_add(u128::from(digit))?;
    }
    Some(Uuid::from_u128(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_uuid_survives_its_text_form(value: u128) {
            let id = CapsuleId::from_uuid(Uuid::from_u128(value));
            let text = id.to_string();
            prop_assert_eq!(text.len(), 28);
            prop_assert_eq!(text.parse::<CapsuleId>(), Ok(id));
        }

        #[test]
        fn junk_is_refused_not_a_panic(text in ".{0,40}") {
            if let Ok(id) = text.parse::<CapsuleId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }

    #[test]
    fn kinds_are_not_mixed_up() {
        let key = KeyId::new().to_string();
        assert!(key.parse::<CapsuleId>().is_err());
        // 25 times z is above 2^128.
        assert!(format!("cl-{}", "z".repeat(25)).parse::<CapsuleId>().is_err());
    }
}
