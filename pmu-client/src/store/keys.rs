//! Where objects lie in a store: names of their directories.

use std::fmt::Write;

use object_store::path::Path;

use super::manifest::Kind;

/// The object that says what the data beside it is.
pub(super) const MANIFEST: &str = "manifest";

/// Longer names are cut, and end with their checksum.
const PART_BYTES_MAX: usize = 180;

/// Where an object lies.
pub(super) fn directory(root: &Path, kind: Kind, space: &str, name: &str) -> Path {
    below(root, kind, Some(space)).join(part(name).as_str())
}

/// Where all objects of a kind lie, or those of a region or prefix.
pub(super) fn below(root: &Path, kind: Kind, space: Option<&str>) -> Path {
    let all = root.clone().join(match kind {
        Kind::Segment => "segments",
        Kind::Set => "sets",
    });
    match space {
        Some(space) => all.join(part(space).as_str()),
        None => all,
    }
}

/// A name as one part of a path that every store can take: other characters than letters, digits, `.`, `_` and `-` stand as `=XX`.
fn part(name: &str) -> String {
    let mut part = String::with_capacity(name.len());
    for (index, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if plain || (byte == b'.' && index > 0) {
            part.push(char::from(byte));
        } else {
            // Writing to a string can't fail.
            let _ = write!(part, "={byte:02X}");
        }
    }
    if part.len() > PART_BYTES_MAX {
        part.truncate(PART_BYTES_MAX - 66);
        let _ = write!(part, "=-{}", blake3::hash(name.as_bytes()).to_hex());
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r08_every_name_has_a_place_of_its_own() {
        let root = Path::from("a/b");
        let place = |name: &str| directory(&root, Kind::Segment, "s", name).to_string();
        assert_eq!(place("wal/1.seg"), "a/b/segments/s/wal=2F1.seg");
        assert_eq!(place(".."), "a/b/segments/s/=2E.");
        assert_ne!(place("a=2Fb"), place("a/b"));
        let (long, longer) = ("x".repeat(300), "x".repeat(301));
        assert_ne!(place(&long), place(&longer));
        assert!(place(&longer).len() < 255);
    }
}
