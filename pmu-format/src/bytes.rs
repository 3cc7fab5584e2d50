//! Little-endian fields at fixed offsets. Every getter is total: what lies outside the slice reads
//! as `None` (or zero where the caller has checked the length before), never as a panic.

use crate::checksum::crc32c_around;
use crate::{FORMAT_VERSION, FormatError, Structure};

/// Where the CRC-32C stands in every structure that begins with magic and version.
pub(crate) const FRAME_CHECKSUM_OFFSET: usize = 12;

/// Rounds up to a multiple of `step`, `None` on overflow. `step` must not be zero.
pub(crate) const fn round_up(value: u64, step: u64) -> Option<u64> {
    value.checked_next_multiple_of(step)
}

/// The `N` bytes at `offset`, zero where the slice is shorter. Callers check the length first; the
/// zeros only keep this function total.
pub(crate) fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut array = [0_u8; N];
    if let Some(found) = offset.checked_add(N).and_then(|end| bytes.get(offset..end)) {
        array.copy_from_slice(found);
    }
    array
}

/// The u16 at `offset`.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, offset))
}

/// The u32 at `offset`.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

/// The u64 at `offset`.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

/// Writes `value` at `offset`. The caller owns a buffer of fixed size, so a field outside it is a
/// mistake of this crate.
pub(crate) fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

/// Walks over bytes that nobody has checked.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    pub(crate) fn left_bytes(&self) -> usize {
        self.rest.len()
    }

    /// The next `length_bytes` bytes, `None` where fewer are left.
    pub(crate) fn take(&mut self, length_bytes: usize) -> Option<&'a [u8]> {
        let (found, rest) = self.rest.split_at_checked(length_bytes)?;
        self.rest = rest;
        Some(found)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|found| u32_at(found, 0))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take(8).map(|found| u64_at(found, 0))
    }
}

/// Checks what every structure with a CRC-32C at offset 12 begins with: magic, checksum, version,
/// in this order. The checksum comes before the version, so that a damaged version is found as
/// damage, and only a sound structure of another version is called that.
pub(crate) fn check_frame(
    header: &[u8],
    structure: Structure,
    magic: u64,
) -> Result<(), FormatError> {
    let found = u64_at(header, 0);
    if found != magic {
        return Err(FormatError::Magic {
            structure,
            found,
            expected: magic,
        });
    }
    let stored = u32_at(header, FRAME_CHECKSUM_OFFSET);
    let computed = crc32c_around(header, FRAME_CHECKSUM_OFFSET).unwrap_or(!stored);
    if stored != computed {
        return Err(FormatError::Checksum {
            structure,
            what: "header",
            computed: computed.into(),
            stored: stored.into(),
        });
    }
    let version = u32_at(header, 8);
    if version != FORMAT_VERSION {
        return Err(FormatError::Version {
            structure,
            found: version,
            expected: FORMAT_VERSION,
        });
    }
    Ok(())
}

/// Checks that reserved bytes are zero, so that a later version can give them a meaning.
pub(crate) fn check_zero(
    bytes: &[u8],
    structure: Structure,
    field: &'static str,
) -> Result<(), FormatError> {
    match bytes.iter().find(|byte| **byte != 0) {
        Some(byte) => Err(FormatError::Field {
            structure,
            field,
            found: u64::from(*byte),
            expected: "zeros",
        }),
        None => Ok(()),
    }
}
