//! Regions that are spread over several units: what each member knows of the others, and what stands behind its share of
//! a set.

use crate::bytes::{Cursor, array_at, check_frame, check_zero, put, u64_at};
use crate::checksum::crc32c_around;
use crate::{Epoch, FORMAT_VERSION, FormatError, PrincipalName, SetNumber, Structure, Term};

/// The first eight bytes of a membership: `PMUMEMB1`.
pub const MEMBERSHIP_MAGIC: u64 = u64::from_le_bytes(*b"PMUMEMB1");
/// The first eight bytes of a share trailer: `PMUSHAR1`.
pub const SHARE_MAGIC: u64 = u64::from_le_bytes(*b"PMUSHAR1");
/// How many bytes a share trailer has. It is the end of the payload of a member's set, behind the share.
pub const SHARE_TRAILER_BYTES: usize = 128;
/// The most members that a region can be spread over.
pub const MEMBERS_MAX: usize = 32;
/// The longest address of a member, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 80;

/// Names a spread region for good: random, the same on all members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpreadId(pub [u8; 16]);

/// A unit that holds a part of a spread region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The unit's name, as its certificate says it.
    pub unit: PrincipalName,
    /// Where its control service listened when the member was added: `host:port`, 1 to [`ADDRESS_BYTES_MAX`] bytes.
    pub address: String,
}

/// What every member keeps as its region's attributes: who the others are, and how bytes are spread over them.
///
/// ```text
///  0  magic `PMUMEMB1`     8  version    12  CRC-32C of all
/// 16  spread id           32  generation
/// 40  layout: kind, K, M  43  minimum of units    44  own index   45  members   46  zeros
/// 48  bytes of a subsegment           56  for each member: length and bytes of its unit's name and of its address
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The spread region.
    pub id: SpreadId,
    /// Counts up with each change of the members.
    pub generation: u64,
    /// Kind, data shards and redundant shards, as `pmu-stripe` encodes its layouts. Not interpreted here.
    pub layout: [u8; 3],
    /// With fewer units than this nothing is committed. 1 to the number of members.
    pub units_min: u8,
    /// Which member this is, from 0.
    pub own_index: u8,
    /// How many bytes of a segment lie together on one unit. Not 0.
    pub subsegment_bytes: u64,
    /// In the order of their indices; 1 to [`MEMBERS_MAX`], no unit twice.
    pub members: Vec<Member>,
}

const MEMBERSHIP_HEAD_BYTES: usize = 56;

impl Membership {
    /// The bytes to keep as attributes.
    ///
    /// # Errors
    /// [`FormatError::Field`] for what a member could not decode.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let mut bytes = vec![0; MEMBERSHIP_HEAD_BYTES];
        put(&mut bytes, 0, &MEMBERSHIP_MAGIC.to_le_bytes());
        put(&mut bytes, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, 16, &self.id.0);
        put(&mut bytes, 32, &self.generation.to_le_bytes());
        put(&mut bytes, 40, &self.layout);
        put(&mut bytes, 43, &[self.units_min, self.own_index]);
        put(&mut bytes, 45, &[self.members.len() as u8]);
        put(&mut bytes, 48, &self.subsegment_bytes.to_le_bytes());
        for member in &self.members {
            for text in [member.unit.as_str(), &member.address] {
                bytes.push(text.len() as u8);
                bytes.extend_from_slice(text.as_bytes());
            }
        }
        let checksum = crc32c_around(&bytes, 12).unwrap_or_default();
        put(&mut bytes, 12, &checksum.to_le_bytes());
        Ok(bytes)
    }

    /// Reads what [`Self::encode`] wrote. `bytes` may be anything.
    ///
    /// # Errors
    /// [`FormatError`]: no membership, damaged, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() < MEMBERSHIP_HEAD_BYTES {
            return Err(FormatError::TooShort {
                structure: Structure::Membership,
                found_bytes: bytes.len() as u64,
                needed_bytes: MEMBERSHIP_HEAD_BYTES as u64,
            });
        }
        check_frame(bytes, Structure::Membership, MEMBERSHIP_MAGIC)?;
        check_zero(
            &bytes[46..48],
            Structure::Membership,
            "bytes behind the count of members",
        )?;
        let mut cursor = Cursor::new(&bytes[MEMBERSHIP_HEAD_BYTES..]);
        let mut members = Vec::new();
        for _ in 0..bytes[45] {
            let unit = take_text(&mut cursor)?;
            let unit =
                PrincipalName::new(unit).map_err(|_| wrong("name of a unit", 0, "a name"))?;
            let address = take_text(&mut cursor)?.to_owned();
            members.push(Member { unit, address });
        }
        if cursor.left_bytes() > 0 {
            let found = cursor.left_bytes() as u64;
            return Err(wrong("bytes behind the members", found, "none"));
        }
        let found = Self {
            id: SpreadId(array_at(bytes, 16)),
            generation: u64_at(bytes, 32),
            layout: array_at(bytes, 40),
            units_min: bytes[43],
            own_index: bytes[44],
            subsegment_bytes: u64_at(bytes, 48),
            members,
        };
        found.check()?;
        Ok(found)
    }

    fn check(&self) -> Result<(), FormatError> {
        let count = self.members.len();
        if !(1..=MEMBERS_MAX).contains(&count) {
            return Err(wrong("members", count as u64, "1 to 32"));
        }
        if self.units_min == 0 || usize::from(self.units_min) > count {
            let found = self.units_min.into();
            return Err(wrong(
                "minimum of units",
                found,
                "1 to the number of members",
            ));
        }
        if usize::from(self.own_index) >= count {
            let found = self.own_index.into();
            return Err(wrong("own index", found, "less than the number of members"));
        }
        if self.subsegment_bytes == 0 {
            return Err(wrong("bytes of a subsegment", 0, "1 and up"));
        }
        for (index, member) in self.members.iter().enumerate() {
            let length = member.address.len();
            if !(1..=ADDRESS_BYTES_MAX).contains(&length) {
                return Err(wrong(
                    "length of an address",
                    length as u64,
                    "1 to 80 bytes",
                ));
            }
            if self.members[..index]
                .iter()
                .any(|before| before.unit == member.unit)
            {
                return Err(wrong("member", index as u64, "each unit once"));
            }
        }
        Ok(())
    }
}

fn take_text<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, FormatError> {
    let cut = || wrong("members", 0, "as many as are counted");
    let length = cursor.take(1).ok_or_else(cut)?[0];
    let bytes = cursor.take(length.into()).ok_or_else(cut)?;
    core::str::from_utf8(bytes).map_err(|_| wrong("text of a member", 0, "UTF-8"))
}

fn wrong(field: &'static str, found: u64, expected: &'static str) -> FormatError {
    FormatError::Field {
        structure: Structure::Membership,
        field,
        found,
        expected,
    }
}

/// What stands behind a member's share of a set: it says of which set, so that no share of another one is ever taken for
/// a part of it.
///
/// The bytes are part of the payload of the member's own set, and covered by its checksums too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareTrailer {
    /// The spread region.
    pub id: SpreadId,
    /// The generation of the members that the writer saw.
    pub generation: u64,
    /// The number of the set, the same on all members.
    pub number: SetNumber,
    /// The writer's term.
    pub term: Term,
    /// Drawn at random when the writer opened the region.
    pub writer: [u8; 16],
    /// Counts the writer's tries: shares of two tries never go together, and of several tries with one number only the last was ever
    /// published.
    pub attempt: u64,
    /// The writer's epoch on this member.
    pub epoch: Epoch,
    /// How many bytes the whole set has.
    pub segment_bytes: u64,
    /// Kind, data shards and redundant shards.
    pub layout: [u8; 3],
    /// Which member this is.
    pub own_index: u8,
    /// How many bytes of a segment lie together on one unit.
    pub subsegment_bytes: u64,
}

impl ShareTrailer {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SHARE_TRAILER_BYTES] {
        let mut bytes = [0; SHARE_TRAILER_BYTES];
        put(&mut bytes, 0, &SHARE_MAGIC.to_le_bytes());
        put(&mut bytes, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, 16, &self.id.0);
        put(&mut bytes, 32, &self.generation.to_le_bytes());
        put(&mut bytes, 40, &self.number.get().to_le_bytes());
        put(&mut bytes, 48, &self.writer);
        put(&mut bytes, 64, &self.epoch.get().to_le_bytes());
        put(&mut bytes, 72, &self.segment_bytes.to_le_bytes());
        put(&mut bytes, 80, &self.term.0.to_le_bytes());
        put(&mut bytes, 88, &self.layout);
        put(&mut bytes, 91, &[self.own_index]);
        put(&mut bytes, 96, &self.subsegment_bytes.to_le_bytes());
        put(&mut bytes, 104, &self.attempt.to_le_bytes());
        let checksum = crc32c_around(&bytes, 12).unwrap_or_default();
        put(&mut bytes, 12, &checksum.to_le_bytes());
        bytes
    }

    /// Reads what [`Self::encode`] wrote, from the beginning of `bytes`, which may be anything.
    ///
    /// # Errors
    /// [`FormatError`]: no share trailer, damaged, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let Some(bytes) = bytes.get(..SHARE_TRAILER_BYTES) else {
            return Err(FormatError::TooShort {
                structure: Structure::ShareTrailer,
                found_bytes: bytes.len() as u64,
                needed_bytes: SHARE_TRAILER_BYTES as u64,
            });
        };
        check_frame(bytes, Structure::ShareTrailer, SHARE_MAGIC)?;
        check_zero(
            &bytes[92..96],
            Structure::ShareTrailer,
            "bytes behind the index",
        )?;
        check_zero(&bytes[112..], Structure::ShareTrailer, "bytes at the end")?;
        Ok(Self {
            id: SpreadId(array_at(bytes, 16)),
            generation: u64_at(bytes, 32),
            number: SetNumber(u64_at(bytes, 40)),
            writer: array_at(bytes, 48),
            epoch: Epoch(u64_at(bytes, 64)),
            segment_bytes: u64_at(bytes, 72),
            term: Term(u64_at(bytes, 80)),
            layout: array_at(bytes, 88),
            own_index: bytes[91],
            subsegment_bytes: u64_at(bytes, 96),
            attempt: u64_at(bytes, 104),
        })
    }

    /// Whether both are shares of one set.
    #[must_use]
    pub fn goes_with(&self, other: &Self) -> bool {
        let own = Self {
            epoch: other.epoch,
            own_index: other.own_index,
            ..*self
        };
        own == *other
    }
}
