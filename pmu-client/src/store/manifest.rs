//! What an object is: its manifest, a line of JSON and a line with the checksum of the first.

use serde::{Deserialize, Serialize};

use crate::segments::{ContentHash, Named};

/// The version that this program writes. It reads no others.
const VERSION: u32 = 1;
const FORMAT: &str = "pmu-object";

/// What an object is a copy of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A segment of a prefix.
    Segment,
    /// A set of a region.
    Set,
}

/// A set, as its region knew it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetFacts {
    /// Its number.
    pub number: u64,
    /// Epoch of its writer.
    pub epoch: u64,
    /// When it was committed, in nanoseconds since 1970.
    pub committed_ns: u64,
    /// What the program wanted to find again, as text.
    pub label: String,
    /// The region's id. Another region of the same name has another.
    pub region_id: String,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    version: u32,
    /// What it is a copy of.
    pub kind: Kind,
    /// The prefix, or the region.
    pub space: String,
    /// The segment's name, or the set's number.
    pub name: String,
    /// The object beside the manifest that holds the bytes.
    pub data: String,
    /// How many bytes.
    pub bytes: u64,
    /// BLAKE3 of all of them.
    pub hash: ContentHash,
    /// Bytes of each part but the last.
    pub part_bytes: u64,
    /// BLAKE3 of each part.
    pub parts: Vec<ContentHash>,
    /// When it was stored, in nanoseconds since 1970.
    pub stored_ns: u64,
    /// What is known of the segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<Named>,
    /// What is known of the set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<SetFacts>,
}

impl Manifest {
    /// Of an object about to be stored.
    pub(super) fn new(kind: Kind, space: &str, name: &str, part_bytes: u64, now_ns: u64) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            kind,
            space: space.to_owned(),
            name: name.to_owned(),
            data: String::new(),
            bytes: 0,
            hash: blake3::hash(b"").into(),
            part_bytes,
            parts: Vec::new(),
            stored_ns: now_ns,
            segment: None,
            set: None,
        }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        let mut text = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        let hash = blake3::hash(&text).to_hex();
        text.push(b'\n');
        text.extend_from_slice(hash.as_bytes());
        text.push(b'\n');
        Ok(text)
    }

    /// Checks all that can be checked without the data.
    pub(super) fn decode(text: &[u8]) -> Result<Self, String> {
        let mut lines = text.split(|byte| *byte == b'\n');
        let (line, hash) = (lines.next(), lines.next());
        let (Some(line), Some(hash)) = (line, hash) else {
            return Err("its manifest is cut".into());
        };
        if blake3::hash(line).to_hex().as_bytes() != hash {
            return Err("its manifest's checksum does not hold".into());
        }
        let manifest: Self = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        if manifest.format != FORMAT || manifest.version != VERSION {
            let (format, version) = (&manifest.format, manifest.version);
            return Err(format!(
                "its manifest is of format {format:?}, version {version}"
            ));
        }
        let parts = manifest.bytes.div_ceil(manifest.part_bytes.max(1));
        if manifest.part_bytes == 0 || parts != manifest.parts.len() as u64 {
            return Err("its manifest's parts don't make up its length".into());
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if manifest.data.is_empty() || !manifest.data.bytes().all(plain) {
            return Err("its manifest names no data".into());
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r08_a_manifest_that_was_changed_is_refused() {
        let mut manifest = Manifest::new(Kind::Set, "train", "7", 8, 1);
        manifest.data = "data-0".into();
        manifest.bytes = 9;
        manifest.parts = vec![ContentHash([1; 32]), ContentHash([2; 32])];
        let text = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&text).unwrap(), manifest);
        for index in 0..text.len() - 1 {
            let mut other = text.clone();
            other[index] ^= 1;
            assert!(Manifest::decode(&other).is_err(), "{index}");
            assert!(Manifest::decode(&text[..index]).is_err(), "{index}");
        }
        let changes: [fn(&mut Manifest); 4] = [
            |manifest| manifest.version = 2,
            |manifest| manifest.part_bytes = 0,
            |manifest| manifest.bytes = 90,
            |manifest| manifest.data = "../x".into(),
        ];
        for change in changes {
            let mut other = manifest.clone();
            change(&mut other);
            assert!(Manifest::decode(&other.encode().unwrap()).is_err());
        }
    }
}
