//! Which pages of a range were ever touched, as the kernel sees it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

/// The layout of `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanCall {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vector: u64,
    vector_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The layout of `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, ScanCall);

const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
/// The page that all untouched memory shows.
const ZERO_PAGE: u64 = 1 << 5;

const REGIONS: usize = 512;

/// Visits the address ranges between `addresses` whose pages have memory of their own.
///
/// # Errors
/// What the kernel says; ENOTTY before kernel 6.7.
pub(crate) fn touched(addresses: &Range<u64>, mut visit: impl FnMut(Range<u64>)) -> io::Result<()> {
    let map = File::open("/proc/self/pagemap")?;
    let mut regions = [Region::default(); REGIONS];
    let mut start = addresses.start;
    while start < addresses.end {
        let mut call = ScanCall {
            size: size_of::<ScanCall>() as u64,
            start,
            end: addresses.end,
            vector: regions.as_mut_ptr().expose_provenance() as u64,
            vector_len: REGIONS as u64,
            category_inverted: ZERO_PAGE,
            category_mask: ZERO_PAGE,
            category_anyof_mask: PRESENT | SWAPPED,
            return_mask: PRESENT,
            ..ScanCall::default()
        };
        // SAFETY: the structure is the one of this request, and names a vector of as many regions
        // as it says, which the kernel fills before it returns. No flag asks to change pages.
        let count = unsafe { pagemap_scan(map.as_raw_fd(), &mut call) }?;
        let found = usize::try_from(count).unwrap_or(0).min(REGIONS);
        regions[..found]
            .iter()
            .for_each(|region| visit(region.start..region.end));
        if call.walk_end <= start {
            break;
        }
        start = call.walk_end;
    }
    Ok(())
}

/// Visits the pages between `addresses` that another process has, by their addresses.
///
/// # Errors
/// What the kernel says; the process is gone or not ours to look at.
pub(crate) fn present_in(
    process: i32,
    addresses: &Range<u64>,
    page_bytes: usize,
    mut visit: impl FnMut(u64),
) -> io::Result<()> {
    const ENTRY_BYTES: u64 = 8;
    const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
    let map = File::open(format!("/proc/{process}/pagemap"))?;
    let page_bytes = page_bytes as u64;
    let mut entries = vec![0; 64 << 10];
    let mut at = addresses.start;
    while at < addresses.end {
        let wanted = ((addresses.end - at) / page_bytes * ENTRY_BYTES).min(entries.len() as u64);
        let part = &mut entries[..wanted as usize];
        map.read_exact_at(part, at / page_bytes * ENTRY_BYTES)?;
        for entry in part.as_chunks::<8>().0 {
            if u64::from_ne_bytes(*entry) & PRESENT_OR_SWAPPED != 0 {
                visit(at);
            }
            at += page_bytes;
        }
    }
    Ok(())
}
