//! Checksums: CRC-32C for headers, CRC-64/NVME for bodies and payloads.
//!
//! Both find every single-bit and double-bit error in what they cover at our sizes, and every burst
//! that is no longer than the checksum. They are no protection against somebody who forges data.

use crc_fast::CrcAlgorithm;

/// CRC-32C (Castagnoli) of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    // The crate returns every checksum as u64; CRC-32C fills the low half only.
    (crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) & 0xffff_ffff) as u32
}

/// CRC-32C of a header without the four bytes of its own checksum, which stand at
/// `checksum_offset`. `None` where the header is too short to hold them.
#[must_use]
pub fn crc32c_around(header: &[u8], checksum_offset: usize) -> Option<u32> {
    let before = header.get(..checksum_offset)?;
    let after = header.get(checksum_offset.checked_add(4)?..)?;
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(before);
    digest.update(after);
    Some((digest.finalize() & 0xffff_ffff) as u32)
}

/// CRC-64/NVME of `bytes`.
#[must_use]
pub fn crc64_nvme(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// A CRC-64/NVME in the making, so that a copy loop can compute it while each part is in cache.
///
/// ```
/// let mut digest = pmu_format::Digest::new();
/// digest.update(b"1234");
/// digest.update(b"56789");
/// assert_eq!(digest.finish(), pmu_format::crc64_nvme(b"123456789"));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Digest {
    inner: crc_fast::Digest,
}

impl Digest {
    /// A checksum of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            inner: crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme),
        }
    }

    /// Takes in the next bytes. Does not allocate.
    pub fn update(&mut self, bytes: &[u8]) {
        self.inner.update(bytes);
    }

    /// The checksum of all bytes so far.
    #[must_use]
    pub fn finish(&self) -> u64 {
        self.inner.finalize()
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self::new()
    }
}
