//! What a path really lies on: file systems by their magic number, devices by what sysfs says.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{self, FsType};

use crate::error::{PmemError, Result};
use crate::spec::Medium;

/// File systems by what they promise of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// In RAM.
    Volatile,
    /// In RAM, huge pages.
    HugePages,
    /// fsync makes a mapped file's bytes survive a power cut (as far as its block device does).
    Durable,
    /// Likewise, and a block that was written once is overwritten in place.
    DurableInPlace,
    /// Unknown to this program, or depending on what lies below.
    Unknown,
}

/// Magic numbers that neither libc nor nix name.
const RAMFS_MAGIC: u64 = 0x8584_58f6;
const ZFS_MAGIC: u64 = 0x2fc1_2fc1;
const BCACHEFS_MAGIC: u64 = 0xca45_1a4e;
const XFS_MAGIC: u64 = 0x5846_5342;

/// The file systems that are known to keep a file's bytes once fsync has returned. What isn't here
/// is refused: overlayfs, say, may have its upper layer on tmpfs, and a FUSE server may do
/// anything.
fn promise(kind: FsType) -> (Promise, String) {
    let known = |promise, name: &str| (promise, name.to_owned());
    match kind {
        statfs::TMPFS_MAGIC => known(Promise::Volatile, "tmpfs"),
        statfs::HUGETLBFS_MAGIC => known(Promise::HugePages, "hugetlbfs"),
        statfs::EXT4_SUPER_MAGIC => known(Promise::DurableInPlace, "ext4"),
        statfs::BTRFS_SUPER_MAGIC => known(Promise::Durable, "btrfs"),
        statfs::F2FS_SUPER_MAGIC => known(Promise::Durable, "f2fs"),
        statfs::OVERLAYFS_SUPER_MAGIC => known(Promise::Unknown, "overlayfs"),
        statfs::FUSE_SUPER_MAGIC => known(Promise::Unknown, "FUSE"),
        statfs::NFS_SUPER_MAGIC => known(Promise::Unknown, "NFS"),
        FsType(other) => match other as u64 & 0xffff_ffff {
            RAMFS_MAGIC => known(Promise::Volatile, "ramfs"),
            ZFS_MAGIC => known(Promise::Durable, "ZFS"),
            BCACHEFS_MAGIC => known(Promise::Durable, "bcachefs"),
            XFS_MAGIC => known(Promise::DurableInPlace, "XFS"),
            magic => (
                Promise::Unknown,
                format!("a file system of type {magic:#x}"),
            ),
        },
    }
}

/// Refuses a file that lies on another kind of file system than its medium says.
///
/// For fsdax only what is surely wrong is refused here; whether DAX works is asked of mmap. Returns
/// whether the file system overwrites blocks in place.
///
/// # Errors
/// [`PmemError::WrongMedium`], [`PmemError::Io`].
pub(crate) fn check_file(file: &File, path: &Path, medium: Medium) -> Result<bool> {
    let failed = |action| {
        move |source: io::Error| PmemError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let refuse = |found: String| {
        Err(PmemError::WrongMedium {
            path: path.to_owned(),
            medium,
            found,
        })
    };
    let kind = file
        .metadata()
        .map_err(failed("look at the file"))?
        .file_type();
    if !kind.is_file() {
        let device = kind.is_char_device() || kind.is_block_device();
        return refuse(
            if device {
                "it is a device"
            } else {
                "it is no ordinary file"
            }
            .to_owned(),
        );
    }
    let found = statfs::fstatfs(file)
        .map_err(|error| failed("ask for the file system")(error.into()))?
        .filesystem_type();
    let (promise, name) = promise(found);
    match (medium, promise) {
        (Medium::File | Medium::Fsdax, Promise::DurableInPlace) => Ok(true),
        (Medium::File | Medium::Fsdax, Promise::Durable)
        | (Medium::Memory, Promise::Volatile)
        | (Medium::Hugetlbfs, Promise::HugePages) => Ok(false),
        (_, Promise::Volatile | Promise::HugePages) => {
            refuse(format!("it lies on {name}, which is volatile"))
        }
        (Medium::File | Medium::Fsdax, Promise::Unknown) => refuse(format!(
            "it lies on {name}, which is not known to keep its bytes over a power cut"
        )),
        _ => refuse(format!("it lies on {name}")),
    }
}

/// Bytes of a huge page of the hugetlbfs that a file lies on.
pub(crate) fn huge_page_bytes(file: &File) -> io::Result<u64> {
    Ok(statfs::fstatfs(file)?.block_size() as u64)
}

/// What sysfs says of a devdax device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DaxDevice {
    pub(crate) major: u64,
    pub(crate) minor: u64,
    pub(crate) len: u64,
    pub(crate) align: u64,
}

/// Asks sysfs about an open device, and refuses what isn't a DAX device on persistent memory.
///
/// # Errors
/// [`PmemError::WrongMedium`] for another file or device, or a DAX device over volatile memory;
/// [`PmemError::Io`].
pub(crate) fn check_device(file: &File, path: &Path) -> Result<DaxDevice> {
    let failed = |action| {
        move |source: io::Error| PmemError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let metadata = file.metadata().map_err(failed("look at the device"))?;
    if !metadata.file_type().is_char_device() {
        return Err(PmemError::WrongMedium {
            path: path.to_owned(),
            medium: Medium::Devdax,
            found: "it is no character device".to_owned(),
        });
    }
    let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    let link = PathBuf::from(format!("/sys/dev/char/{major}:{minor}"));
    let directory = fs::canonicalize(link).map_err(failed("find the device in sysfs"))?;
    let (len, align) = device_facts(&directory).map_err(|found| PmemError::WrongMedium {
        path: path.to_owned(),
        medium: Medium::Devdax,
        found,
    })?;
    Ok(DaxDevice {
        major: major.into(),
        minor: minor.into(),
        len,
        align,
    })
}

/// Length and alignment of the DAX device that a sysfs directory describes, or why it is not one to
/// trust.
fn device_facts(directory: &Path) -> Result<(u64, u64), String> {
    let subsystem = fs::canonicalize(directory.join("subsystem")).unwrap_or_default();
    if subsystem.file_name().is_none_or(|name| name != "dax") {
        return Err("it is no DAX device".to_owned());
    }
    check_region(directory)?;
    let len = number(&directory.join("size")).ok_or("its size is not in sysfs")?;
    // Kernels before 5.10 don't say; every later one does. 2 MiB is the default of theirs.
    let align = number(&directory.join("align")).unwrap_or(2 << 20);
    if len == 0 || !align.is_power_of_two() {
        return Err(format!("its size is {len} and its alignment {align}"));
    }
    Ok((len, align))
}

/// A DAX device may lie over volatile memory too (high-bandwidth or CXL memory, "dax_hmem"). One
/// over persistent memory lies below a region of the NVDIMM bus; that of virtio-pmem needs a flush
/// command that a devdax can't give.
fn check_region(directory: &Path) -> Result<(), String> {
    let bytes = |path: &Path| path.as_os_str().as_encoded_bytes().to_owned();
    if bytes(directory).windows(7).any(|part| part == b"/virtio") {
        return Err(
            "it lies over virtio-pmem, which cache-line write-back doesn't reach".to_owned(),
        );
    }
    let region = directory.ancestors().find(|ancestor| {
        let name = ancestor
            .file_name()
            .map(|name| name.as_encoded_bytes().to_owned());
        name.is_some_and(|name| name.starts_with(b"region"))
            && ancestor.parent().is_some_and(|bus| {
                bus.file_name()
                    .is_some_and(|name| name.as_encoded_bytes().starts_with(b"ndbus"))
            })
    });
    let Some(region) = region else {
        return Err("it lies over memory that is not persistent".to_owned());
    };
    if number(&region.join("read_only")) == Some(1) {
        return Err("its region is read-only".to_owned());
    }
    Ok(())
}

/// A number in a sysfs file, decimal or with 0x.
fn number(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sysfs directory of a DAX device below `parents`, in a temporary directory.
    fn device(parents: &str, size: &str) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join(parents).join("dax0.0");
        fs::create_dir_all(&directory).unwrap();
        let subsystem = root.path().join("bus/dax");
        fs::create_dir_all(&subsystem).unwrap();
        std::os::unix::fs::symlink(subsystem, directory.join("subsystem")).unwrap();
        fs::write(directory.join("size"), size).unwrap();
        fs::write(directory.join("align"), "0x1000\n").unwrap();
        (root, directory)
    }

    #[test]
    fn a_device_over_persistent_memory_is_known() {
        let (_root, directory) = device("ndbus0/region0/dax0.1", "532676608\n");
        assert_eq!(device_facts(&directory), Ok((532_676_608, 4096)));
    }

    #[test]
    fn a_device_over_volatile_memory_is_refused() {
        let (_root, directory) = device("platform/hmem.0", "4096\n");
        assert!(
            device_facts(&directory)
                .unwrap_err()
                .contains("not persistent")
        );
        let (_root, directory) = device("virtio1/ndbus0/region0/dax0.1", "4096\n");
        assert!(
            device_facts(&directory)
                .unwrap_err()
                .contains("virtio-pmem")
        );
    }

    #[test]
    fn odd_devices_are_refused() {
        let (_root, directory) = device("ndbus0/region0", "0\n");
        assert!(device_facts(&directory).is_err());
        let (_root, directory) = device("ndbus0/region0", "many\n");
        assert!(device_facts(&directory).is_err());
        fs::write(directory.join("size"), "4096").unwrap();
        fs::write(directory.join("../../region0/read_only"), "1\n").unwrap();
        assert!(device_facts(&directory).unwrap_err().contains("read-only"));
        fs::remove_file(directory.join("subsystem")).unwrap();
        assert!(
            device_facts(&directory)
                .unwrap_err()
                .contains("no DAX device")
        );
    }

    #[test]
    fn dev_null_is_no_dax_device() {
        let file = File::open("/dev/null").unwrap();
        let error = check_device(&file, Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, PmemError::WrongMedium { .. }), "{error}");
        let error = check_file(&file, Path::new("/dev/null"), Medium::File).unwrap_err();
        assert!(error.to_string().contains("device"), "{error}");
    }

    #[test]
    fn unknown_file_systems_are_not_durable() {
        assert_eq!(promise(FsType(0x0102_1997)).0, Promise::Unknown);
        assert_eq!(promise(statfs::OVERLAYFS_SUPER_MAGIC).0, Promise::Unknown);
        assert_eq!(promise(FsType(RAMFS_MAGIC as _)).0, Promise::Volatile);
    }
}
