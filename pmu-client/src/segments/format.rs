//! What lies in the two logs of a prefix: records of contents in its body, and operations in its index.
//!
//! `docs/format.md` describes both. The logs' own records carry checksums; nothing here is trusted beyond them all the same.

use serde::{Deserialize, Serialize};

use super::names::SegmentName;

/// The version of records and operations that this program writes. It reads no others.
pub(super) const VERSION: u8 = 1;

const MAGIC: [u8; 6] = *b"PMUSEG";
const HEAD_BYTES: usize = 24;

/// Which contents a record belongs to: random, so that what a dead program left is never taken for somebody else's.
pub(super) type BodyId = [u8; 16];

/// A record of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// The contents begin: the name under which they were found, for whoever has lost the index.
    Begin { name: &'a str },
    /// The next bytes.
    Data(&'a [u8]),
    /// All bytes have come: how many, and their BLAKE3.
    End { bytes: u64, hash: [u8; 32] },
}

/// Puts a record together.
pub(super) fn encode_part(id: &BodyId, part: Part<'_>, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&MAGIC);
    out.push(VERSION);
    out.push(match part {
        Part::Begin { .. } => b'B',
        Part::Data(_) => b'D',
        Part::End { .. } => b'E',
    });
    out.extend_from_slice(id);
    match part {
        Part::Begin { name } => out.extend_from_slice(name.as_bytes()),
        Part::Data(bytes) => out.extend_from_slice(bytes),
        Part::End { bytes, hash } => {
            out.extend_from_slice(&bytes.to_le_bytes());
            out.extend_from_slice(&hash);
        }
    }
}

/// How long a record of so many data bytes is.
pub(super) const fn record_bytes(data_bytes: usize) -> usize {
    HEAD_BYTES + data_bytes
}

/// Takes a record apart. What is wrong with it, where it is none.
pub(super) fn decode_part(record: &[u8]) -> Result<(BodyId, Part<'_>), &'static str> {
    let (head, rest) = record
        .split_at_checked(HEAD_BYTES)
        .ok_or("a record is too short")?;
    if head[..6] != MAGIC {
        return Err("a record is none of a segment");
    }
    if head[6] != VERSION {
        return Err("a record is of another version");
    }
    let mut id = BodyId::default();
    id.copy_from_slice(&head[8..]);
    let part = match head[7] {
        b'B' => Part::Begin {
            name: std::str::from_utf8(rest).map_err(|_| "a name is no text")?,
        },
        b'D' => Part::Data(rest),
        b'E' => {
            let (bytes, hash) = rest.split_first_chunk().ok_or("an end is too short")?;
            Part::End {
                bytes: u64::from_le_bytes(*bytes),
                hash: hash.try_into().map_err(|_| "an end has another length")?,
            }
        }
        _ => return Err("a record is of an unknown kind"),
    };
    Ok((id, part))
}

/// A BLAKE3 checksum of contents, as 64 digits of base 16.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// The first digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..16].to_owned()
    }
}

impl std::fmt::Display for ContentHash {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl std::fmt::Debug for ContentHash {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{self}")
    }
}

impl From<blake3::Hash> for ContentHash {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl From<ContentHash> for String {
    fn from(hash: ContentHash) -> Self {
        hash.to_string()
    }
}

impl TryFrom<String> for ContentHash {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let hash = blake3::Hash::from_hex(&text).map_err(|error| error.to_string())?;
        Ok(hash.into())
    }
}

/// Where contents lie in a body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The region.
    pub region: String,
    /// Position of the first record.
    pub from: u64,
    /// Position of the last record.
    pub last: u64,
    /// Position behind it.
    pub to: u64,
    /// Which records between them are meant.
    pub id: String,
    /// The units that had proved it durable when the receipt was given, and each one's method.
    pub units: Vec<HeldBy>,
}

/// A unit that holds contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBy {
    /// Its name.
    pub unit: String,
    /// By which persistence method.
    pub method: String,
}

/// The file that a segment was taken from: if all of it is as it was, the file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The computer.
    pub node: String,
    /// Device and inode.
    pub device: u64,
    /// See `device`.
    pub inode: u64,
    /// Time of the last change, in nanoseconds since 1970.
    pub changed_ns: i64,
}

/// A name, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The name.
    pub name: SegmentName,
    /// The contents.
    pub hash: ContentHash,
    /// How many bytes.
    pub bytes: u64,
    /// The file's permission bits.
    pub mode: u32,
    /// When the file was modified last, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// When it was taken, in nanoseconds since 1970.
    pub taken_ns: u64,
    /// Whether every unit of the contents' receipt had proved them durable.
    pub durable: bool,
    /// The file.
    pub origin: Origin,
}

/// What an index holds: replayed in order, it says which segments there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(super) enum Operation {
    /// Contents lie here now.
    Body {
        hash: ContentHash,
        bytes: u64,
        #[serde(flatten)]
        place: Place,
    },
    /// A name stands for contents.
    Name(Named),
    /// It stands for nothing any more.
    Drop { name: SegmentName },
    /// A global storage has a copy of the segment too.
    Stored { name: SegmentName, store: String },
    /// No unit has the contents any more.
    Unloaded { hash: ContentHash },
}

#[derive(Serialize, Deserialize)]
struct Versioned {
    v: u8,
    #[serde(flatten)]
    operation: Operation,
}

/// A record of the index.
pub(super) fn encode_operation(operation: &Operation) -> Result<Vec<u8>, String> {
    let versioned = Versioned {
        v: VERSION,
        operation: operation.clone(),
    };
    serde_json::to_vec(&versioned).map_err(|error| error.to_string())
}

/// Takes a record of the index apart.
pub(super) fn decode_operation(record: &[u8]) -> Result<Operation, String> {
    #[derive(Deserialize)]
    struct Version {
        v: u8,
    }
    let Version { v } = serde_json::from_slice(record).map_err(|error| error.to_string())?;
    if v != VERSION {
        return Err(format!("an operation of version {v}"));
    }
    let versioned: Versioned = serde_json::from_slice(record).map_err(|error| error.to_string())?;
    Ok(versioned.operation)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: BodyId = *b"0123456789abcdef";

    #[test]
    fn r01_records_of_a_body_are_what_the_format_says() {
        let mut record = Vec::new();
        encode_part(&ID, Part::Begin { name: "wal/1" }, &mut record);
        assert_eq!(record, b"PMUSEG\x01B0123456789abcdefwal/1");
        encode_part(&ID, Part::Data(b"xyz"), &mut record);
        assert_eq!(record, b"PMUSEG\x01D0123456789abcdefxyz");
        assert_eq!(record.len(), record_bytes(3));
        let hash = [7; 32];
        encode_part(&ID, Part::End { bytes: 3, hash }, &mut record);
        assert_eq!(record[24..32], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decode_part(&record), Ok((ID, Part::End { bytes: 3, hash })));
        for cut in 0..record.len() {
            assert!(decode_part(&record[..cut]).is_err(), "{cut}");
        }
        record[6] = 2;
        assert_eq!(decode_part(&record), Err("a record is of another version"));
    }

    #[test]
    fn r03_operations_of_an_index_are_what_the_format_says() {
        let drop = br#"{"v":1,"op":"drop","name":"wal/1"}"#;
        let operation = decode_operation(drop).unwrap();
        assert_eq!(encode_operation(&operation).unwrap(), drop);
        let hash = ContentHash(*blake3::hash(b"").as_bytes());
        let body = format!(
            r#"{{"v":1,"op":"body","hash":"{hash}","bytes":0,"region":"s.body","from":0,"last":64,"to":128,"id":"00","units":[{{"unit":"a","method":"server-persist"}}]}}"#
        );
        let operation = decode_operation(body.as_bytes()).unwrap();
        assert_eq!(encode_operation(&operation).unwrap(), body.as_bytes());
        for wrong in [
            &br#"{"v":2,"op":"drop","name":"a"}"#[..],
            br#"{"v":1,"op":"drop","name":"../a"}"#,
            br#"{"v":1,"op":"burn","name":"a"}"#,
            b"{}",
            b"\xff",
        ] {
            assert!(decode_operation(wrong).is_err(), "{wrong:?}");
        }
    }
}
