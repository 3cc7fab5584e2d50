//! Names of segments: what a path below the watched directory is called in the cluster.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes of its text.
pub const SEGMENT_NAME_BYTES_MAX: usize = 1024;

/// The name of a segment: a relative path, as printable text.
///
/// Bytes that are no printable UTF-8, and `%` itself, stand as `%XX`. So every path has one name, each name one path, and a name can be shown
/// anywhere. No part is empty, `.` or `..`: a name never leads out of the directory that it is put into.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SegmentName(Box<str>);

/// Why something is no name of a segment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentNameError {
    /// Empty, absolute, or with an empty part, `.` or `..`.
    #[error("\"{0}\" is no relative path of plain parts")]
    NoRelativePath(String),
    /// Longer than [`SEGMENT_NAME_BYTES_MAX`].
    #[error("the name has {0} bytes, {SEGMENT_NAME_BYTES_MAX} is the most")]
    TooLong(usize),
    /// A character that must stand as `%XX`, or a `%` that begins no such thing.
    #[error(
        "\"{0}\" has a character that stands as %XX in names, or a % without two upper-case digits of base 16"
    )]
    NotPlain(String),
}

impl SegmentName {
    /// The name of a relative path.
    ///
    /// # Errors
    /// [`SegmentNameError`]: the path is absolute, empty, leads upwards, or is too long.
    pub fn of_path(path: &Path) -> Result<Self, SegmentNameError> {
        let plain = path
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        let name = encode(path.as_os_str().as_bytes());
        if !plain || name.is_empty() || name.split('/').any(str::is_empty) {
            return Err(SegmentNameError::NoRelativePath(name));
        }
        Self::checked(name)
    }

    /// The name that a person typed: as it is listed, or else as the path of a file.
    ///
    /// # Errors
    /// As [`Self::of_path`].
    pub fn typed(text: &OsStr) -> Result<Self, SegmentNameError> {
        if let Some(text) = text.to_str()
            && let Ok(name) = text.parse()
        {
            return Ok(name);
        }
        Self::of_path(Path::new(text))
    }

    fn checked(name: String) -> Result<Self, SegmentNameError> {
        if name.len() > SEGMENT_NAME_BYTES_MAX {
            return Err(SegmentNameError::TooLong(name.len()));
        }
        Ok(Self(name.into_boxed_str()))
    }

    /// The path, relative to the directory that the segment lies in.
    #[must_use]
    pub fn to_path(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(decode(&self.0).unwrap_or_default()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for SegmentName {
    type Err = SegmentNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path =
            decode(text).ok_or_else(|| SegmentNameError::NotPlain(encode(text.as_bytes())))?;
        let name = Self::of_path(Path::new(OsStr::from_bytes(&path)))?;
        if *name.0 != *text {
            return Err(SegmentNameError::NotPlain(encode(text.as_bytes())));
        }
        Ok(name)
    }
}

impl TryFrom<String> for SegmentName {
    type Error = SegmentNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SegmentName> for String {
    fn from(name: SegmentName) -> Self {
        name.0.into_string()
    }
}

fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character == '%' || character.is_control() {
                let mut buffer = [0; 4];
                escape(&mut text, character.encode_utf8(&mut buffer).as_bytes());
            } else {
                text.push(character);
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

fn escape(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string can't fail.
        let _ = write!(text, "%{byte:02X}");
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, others)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = others;
            continue;
        }
        let digits = std::str::from_utf8(others.get(..2)?).ok()?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let byte = u8::from_str_radix(digits, 16).ok()?;
        if byte == 0 {
            return None;
        }
        bytes.push(byte);
        rest = &others[2..];
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Result<SegmentName, SegmentNameError> {
        SegmentName::of_path(Path::new(OsStr::from_bytes(bytes)))
    }

    #[test]
    fn r03_each_path_has_one_name_and_each_name_one_path() {
        for path in [
            &b"wal/0001.seg"[..],
            b"a b",
            "größe".as_bytes(),
            b"100%",
            b"line\nend",
            b"\xff\xfe",
            b"%41",
        ] {
            let name = of(path).unwrap();
            assert_eq!(name.to_path().as_os_str().as_bytes(), path);
            assert_eq!(name.as_str().parse::<SegmentName>().unwrap(), name);
            assert!(!name.as_str().chars().any(char::is_control));
        }
        assert_eq!(of(b"line\nend").unwrap().as_str(), "line%0Aend");
        assert_eq!(of(b"%41").unwrap().as_str(), "%2541");
        assert_ne!(of(b"%41").unwrap(), of(b"A").unwrap());
    }

    #[test]
    fn r02_no_name_leads_out_of_its_directory() {
        for wrong in [
            &b""[..],
            b"/etc/passwd",
            b"..",
            b"a/../b",
            b"./a",
            b"a//b",
            b"a/",
        ] {
            assert!(of(wrong).is_err(), "{wrong:?}");
        }
        for wrong in [
            "%2E%2E", "a%2Fb", "%41", "%", "%4", "%zz", "%00", "a%0a", "../x", "x\ny", "",
        ] {
            assert!(wrong.parse::<SegmentName>().is_err(), "{wrong}");
        }
        let long = "x".repeat(SEGMENT_NAME_BYTES_MAX + 1);
        assert!(matches!(
            long.parse::<SegmentName>(),
            Err(SegmentNameError::TooLong(_))
        ));
    }
}
