//! Names that people give: of regions and of principals.

use core::fmt;
use core::str::FromStr;

/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// How much of a refused name an error repeats.
const QUOTED_BYTES_MAX: usize = 80;

/// Why something is not a name. Quotes the input with control characters and anything beyond ASCII
/// escaped, and cut short, so that it is safe to print and to log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The empty string.
    #[error("a name has 1 to 63 bytes, this one is empty")]
    Empty,
    /// More than [`NAME_BYTES_MAX`] bytes.
    #[error("a name has 1 to 63 bytes, \"{quoted}\" has {found_bytes}")]
    TooLong {
        /// The input, escaped and cut.
        quoted: String,
        /// How many bytes it has.
        found_bytes: usize,
    },
    /// The first byte is no ASCII letter or digit.
    #[error("a name begins with a letter or a digit, unlike \"{quoted}\"")]
    FirstByte {
        /// The input, escaped and cut.
        quoted: String,
    },
    /// A byte is none of the allowed ones.
    #[error(
        "a name has ASCII letters, digits, '.', '_' and '-' only, unlike byte {index} of \"{quoted}\""
    )]
    Byte {
        /// The input, escaped and cut.
        quoted: String,
        /// Which byte, from 0.
        index: usize,
    },
}

/// Escapes and cuts what somebody gave as a name.
fn quoted(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(QUOTED_BYTES_MAX)];
    let ellipsis = if shown.len() < bytes.len() { "..." } else { "" };
    format!("{}{ellipsis}", shown.escape_ascii())
}

fn check(bytes: &[u8]) -> Result<(), NameError> {
    let Some(first) = bytes.first() else {
        return Err(NameError::Empty);
    };
    if bytes.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong {
            quoted: quoted(bytes),
            found_bytes: bytes.len(),
        });
    }
    if !first.is_ascii_alphanumeric() {
        return Err(NameError::FirstByte {
            quoted: quoted(bytes),
        });
    }
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match bytes.iter().position(|byte| !allowed(byte)) {
        Some(index) => Err(NameError::Byte {
            quoted: quoted(bytes),
            index,
        }),
        None => Ok(()),
    }
}

/// A validated name, kept as text.
fn parse(bytes: &[u8]) -> Result<Box<str>, NameError> {
    check(bytes)?;
    // Only ASCII gets past the check, so that each byte is one character.
    Ok(bytes
        .iter()
        .map(|byte| char::from(*byte))
        .collect::<String>()
        .into_boxed_str())
}

macro_rules! name_type {
    ($(#[$documentation:meta])* $name:ident) => {
        $(#[$documentation])*
        ///
        /// 1 to 63 bytes: ASCII letters, digits, `.`, `_` and `-`, the first a letter or a digit.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// Checks and takes over a name.
            ///
            /// # Errors
            /// [`NameError`] says what is wrong, quoting the name safely.
            pub fn new(name: &str) -> Result<Self, NameError> {
                parse(name.as_bytes()).map(Self)
            }

            /// Checks and takes over a name from bytes that nobody has checked.
            ///
            /// # Errors
            /// [`NameError`] says what is wrong, quoting the name safely.
            pub fn from_bytes(name: &[u8]) -> Result<Self, NameError> {
                parse(name).map(Self)
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }
    };
}

name_type! {
    /// The name of a region, unique in its pool.
    RegionName
}

impl RegionName {
    /// A valid name that a decoder holds until it reaches the true one.
    pub(crate) fn placeholder() -> Self {
        Self("0".into())
    }
}

name_type! {
    /// The name of a principal: who a client certificate was given to.
    PrincipalName
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_names() {
        for name in ["a", "0", "Job-1.shard_7", &"x".repeat(63)] {
            assert_eq!(RegionName::new(name).unwrap().as_str(), name);
            assert_eq!(name.parse::<PrincipalName>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn names_that_are_none_are_quoted_safely() {
        assert_eq!(RegionName::new(""), Err(NameError::Empty));
        assert!(matches!(
            RegionName::new(".x"),
            Err(NameError::FirstByte { .. })
        ));
        assert!(matches!(
            RegionName::new("a/b"),
            Err(NameError::Byte { index: 1, .. })
        ));
        let escape = RegionName::new("a\u{1b}[31m\u{f6}")
            .unwrap_err()
            .to_string();
        assert!(escape.is_ascii() && !escape.contains('\u{1b}'), "{escape}");
        let long = RegionName::new(&"y".repeat(100_000))
            .unwrap_err()
            .to_string();
        assert!(long.len() < 200, "{long}");
    }
}
