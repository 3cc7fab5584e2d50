//! Opening and creating what a pool lies on.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg};
use nix::sys::memfd::{self, MFdFlags};
use nix::sys::mman::{MapFlags, MmapAdvise};

use crate::error::{PmemError, Result};
use crate::mapping::Mapping;
use crate::persist::Persistence;
use crate::pool::Parts;
use crate::probe;
use crate::spec::{Medium, PoolSpec};
use crate::write_calls::WriteCalls;

/// Lengths of pools in files are multiples of this.
const LENGTH_STEP_BYTES: u64 = 4096;

/// Zeros are written in steps of this size.
const ZERO_STEP_BYTES: usize = 1 << 20;

/// Pools are read and written by their unit alone.
const FILE_MODE: u32 = 0o600;

/// How a pool's memory is created.
#[derive(Default)]
pub struct CreateOptions<'a> {
    /// Length in bytes: a multiple of 4096 (hugetlbfs: of the huge page; devdax: of the device's
    /// alignment). None stands for the whole device, and is refused for everything else.
    pub len: Option<u64>,
    /// Take a file that exists, and lose what it holds. A file in use is refused nevertheless.
    pub replace: bool,
    /// Called with the bytes done and the bytes in all, while zeros are written.
    pub progress: Option<&'a mut dyn FnMut(u64, u64)>,
}

impl std::fmt::Debug for CreateOptions<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("CreateOptions")
            .field("len", &self.len)
            .field("replace", &self.replace)
            .finish_non_exhaustive()
    }
}

/// See [`crate::PoolMemory::open`].
pub(crate) fn open(spec: &PoolSpec) -> Result<Parts> {
    let Some(path) = spec.path() else {
        return Err(PmemError::BadSpec {
            text: spec.to_string(),
            reason: "memory without a path is gone with its process: it can only be created",
        });
    };
    let target = Target::new(spec);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(target.failed("open the pool"))?;
    let file = target.lock(file)?;
    if spec.medium() == Medium::Devdax {
        return target.device(file, None);
    }
    let in_place = probe::check_file(&file, path, spec.medium())?;
    let metadata = file
        .metadata()
        .map_err(target.failed("look at the length"))?;
    // A file that was cut anywhere is mapped: what its pool says of its length tells more than we
    // could.
    let len = target.check_length(&file, metadata.len(), 1)?;
    if spec.medium() != Medium::Hugetlbfs && metadata.blocks() * 512 < len {
        // A copy may have lost its zeros. A hole is filled at the first store, where "no space" is
        // a SIGBUS.
        tracing::warn!(path = %path.display(), "pool file has holes; allocating them");
        target.allocate(&file, len)?;
    }
    let mapped = target.map(&file, len, in_place)?;
    target.populate(&mapped)?;
    Ok(target.parts(mapped, file, None))
}

/// See [`crate::PoolMemory::create`].
pub(crate) fn create(spec: &PoolSpec, mut options: CreateOptions<'_>) -> Result<Parts> {
    let target = Target::new(spec);
    match spec.path() {
        None => {
            let file = memfd::memfd_create("pmu-pool", MFdFlags::MFD_CLOEXEC)
                .map_err(|error| target.failed("make a memfd")(error.into()))?;
            let file = target.lock(File::from(file))?;
            let mapped = target.fill(&file, false, &mut options)?;
            Ok(target.parts(mapped, file, None))
        }
        Some(path) if spec.medium() == Medium::Devdax => {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .map_err(target.failed("open the device"))?;
            target.device(target.lock(file)?, options.len)
        }
        Some(path) => target.create_file(path, &mut options),
    }
}

/// A mapping, and how it becomes durable.
struct Mapped {
    mapping: Mapping,
    persistence: Persistence,
}

/// What is being opened, for the messages.
struct Target {
    path: PathBuf,
    medium: Medium,
}

impl Target {
    fn new(spec: &PoolSpec) -> Self {
        Self {
            path: spec.display_path(),
            medium: spec.medium(),
        }
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> PmemError + use<'_> {
        move |source| PmemError::Io {
            action,
            path: self.path.clone(),
            source,
        }
    }

    /// As [`Self::failed`], and says so where the reason is a want of room.
    fn failed_for_room(&self, action: &'static str, needed_bytes: u64, errno: Errno) -> PmemError {
        match errno {
            Errno::ENOSPC | Errno::EDQUOT | Errno::ENOMEM | Errno::EFBIG => PmemError::NoSpace {
                path: self.path.clone(),
                medium: self.medium,
                needed_bytes,
                source: errno.into(),
            },
            _ => self.failed(action)(errno.into()),
        }
    }

    fn bad_length<T>(&self, len_bytes: u64, reason: impl Into<String>) -> Result<T> {
        Err(PmemError::BadLength {
            path: self.path.clone(),
            len_bytes,
            reason: reason.into(),
        })
    }

    fn lock(&self, file: File) -> Result<Flock<File>> {
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => PmemError::InUse {
                path: self.path.clone(),
            },
            other => self.failed("lock the pool")(other.into()),
        })
    }

    fn create_file(&self, path: &Path, options: &mut CreateOptions<'_>) -> Result<Parts> {
        let mut how = OpenOptions::new();
        how.read(true).write(true).mode(FILE_MODE);
        // The old file isn't truncated here: another unit may have it open, the lock will tell.
        let (file, is_new) = match how.clone().create_new(true).open(path) {
            Ok(file) => (file, true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !options.replace {
                    return Err(PmemError::Exists {
                        path: path.to_owned(),
                    });
                }
                (
                    how.open(path)
                        .map_err(self.failed("open the old pool file"))?,
                    false,
                )
            }
            Err(error) => return Err(self.failed("create the pool file")(error)),
        };
        let file = self.lock(file)?;
        let made = probe::check_file(&file, path, self.medium).and_then(|in_place| {
            file.set_len(0)
                .map_err(self.failed("empty the pool file"))?;
            let mapped = self.fill(&file, in_place, options)?;
            sync_directory(path).map_err(self.failed("make the file's name durable"))?;
            Ok(mapped)
        });
        match made {
            Ok(mapped) => Ok(self.parts(mapped, file, None)),
            Err(error) => {
                // The lock is still held. A file that was there before keeps its name and owner.
                let on_medium = !matches!(error, PmemError::WrongMedium { .. });
                if is_new {
                    let _ = fs::remove_file(path);
                } else if on_medium {
                    let _ = file.set_len(0);
                }
                Err(error)
            }
        }
    }

    /// Gives an empty file its length and its zeros, and maps it.
    fn fill(&self, file: &File, in_place: bool, options: &mut CreateOptions<'_>) -> Result<Mapped> {
        let Some(len) = options.len else {
            return self.bad_length(0, "a length is needed, as only a device has one of its own");
        };
        let len = self.check_length(file, len, LENGTH_STEP_BYTES)?;
        let set_len = file.set_len(len);
        set_len.map_err(|error| {
            self.failed_for_room("give the file its length", len, errno_of(&error))
        })?;
        // Mapped before the long work, so that a file system without DAX refuses at once.
        let mapped = self.map(file, len, in_place)?;
        self.allocate(file, len)?;
        if self.medium.is_durable() {
            self.write_zeros(file, len, options)?;
        }
        self.populate(&mapped)?;
        Ok(mapped)
    }

    /// Sets up the page tables of memory whose pages are all there, so that no access faults later.
    fn populate(&self, mapped: &Mapped) -> Result<()> {
        if matches!(self.medium, Medium::Memory | Medium::Hugetlbfs) {
            mapped.mapping.populate(0, mapped.mapping.len())?;
        }
        Ok(())
    }

    /// Has the file system find room for the whole file now.
    fn allocate(&self, file: &File, len: u64) -> Result<()> {
        match nix::fcntl::fallocate(file, FallocateFlags::empty(), 0, len as i64) {
            Ok(()) => Ok(()),
            // The zeros that are written next find the room, or not.
            Err(Errno::EOPNOTSUPP) => Ok(()),
            Err(errno) => Err(self.failed_for_room("allocate the pool file", len, errno)),
        }
    }

    /// Writes zeros over the whole file and makes them durable. Allocated blocks alone would not
    /// do: they are marked "unwritten", and turning each into a written one is a change of metadata
    /// in a later persist.
    fn write_zeros(&self, file: &File, len: u64, options: &mut CreateOptions<'_>) -> Result<()> {
        let failed = |error: io::Error| {
            self.failed_for_room("write zeros to the pool file", len, errno_of(&error))
        };
        let zeros = vec![0; ZERO_STEP_BYTES];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(ZERO_STEP_BYTES as u64);
            file.write_all_at(&zeros[..step as usize], done)
                .map_err(failed)?;
            done += step;
            if let Some(progress) = &mut options.progress {
                progress(done, len);
            }
        }
        file.sync_all().map_err(failed)
    }

    /// The length if it can be mapped, and is a multiple of `step` (hugetlbfs: of the huge page).
    fn check_length(&self, file: &File, len: u64, step: u64) -> Result<u64> {
        let step = match self.medium {
            Medium::Hugetlbfs => {
                probe::huge_page_bytes(file).map_err(self.failed("ask for the huge page"))?
            }
            _ => step,
        };
        if len == 0 {
            return self.bad_length(len, "it is empty");
        }
        if !len.is_multiple_of(step) {
            return self.bad_length(len, format!("it is no multiple of {step}"));
        }
        if len > i64::MAX as u64 {
            return self.bad_length(len, "it is beyond what files can be");
        }
        Ok(len)
    }

    fn device(&self, file: Flock<File>, len: Option<u64>) -> Result<Parts> {
        let device = probe::check_device(&file, &self.path)?;
        let lock = self.lock_device(device.major, device.minor)?;
        let usable = device.len / device.align * device.align;
        let len = len.unwrap_or(usable);
        if len == 0 || len > usable {
            return self.bad_length(len, format!("the device has {usable} usable bytes"));
        }
        if !len.is_multiple_of(device.align) {
            return self.bad_length(len, format!("it is no multiple of {}", device.align));
        }
        let mapped = self.map(&file, len, false)?;
        Ok(self.parts(mapped, file, Some(lock)))
    }

    /// Holds the device by its number: two nodes of one device have two inodes, and two file locks.
    fn lock_device(&self, major: u64, minor: u64) -> Result<UnixDatagram> {
        let action = "lock the device";
        let name = format!("pmu-pool/devdax-{major}:{minor}");
        let address = SocketAddr::from_abstract_name(name).map_err(self.failed(action))?;
        UnixDatagram::bind_addr(&address).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => PmemError::InUse {
                path: self.path.clone(),
            },
            _ => self.failed(action)(error),
        })
    }

    fn map(&self, file: &File, len: u64, in_place: bool) -> Result<Mapped> {
        let persistence = Persistence::of(self.medium, in_place)?;
        // MAP_SYNC counts only together with MAP_SHARED_VALIDATE: plain MAP_SHARED ignores flags
        // that it doesn't know, and would map a file without DAX with no word about it.
        let flags = if self.medium.is_dax() {
            MapFlags::MAP_SHARED_VALIDATE | MapFlags::MAP_SYNC
        } else {
            MapFlags::MAP_SHARED
        };
        let Some(map_len) = usize::try_from(len).ok().and_then(NonZeroUsize::new) else {
            return self.bad_length(len, "this machine can't address it");
        };
        let mut mapping = Mapping::map_file(file, map_len, flags).map_err(|errno| match errno {
            Errno::EOPNOTSUPP if self.medium.is_dax() => PmemError::WrongMedium {
                path: self.path.clone(),
                medium: self.medium,
                found: "its file system or device gives no DAX mapping (MAP_SYNC)".to_owned(),
            },
            other => self.failed_for_room("map the pool", len, other),
        })?;
        if self.medium == Medium::File {
            let calls = WriteCalls::new(file).map_err(self.failed("keep the pool file"))?;
            mapping.use_write_calls(calls);
        }
        // Checkpoints don't belong into a core dump. A hint.
        let _ = mapping.advise(MmapAdvise::MADV_DONTDUMP);
        Ok(Mapped {
            mapping,
            persistence,
        })
    }

    fn parts(&self, mapped: Mapped, file: Flock<File>, device_lock: Option<UnixDatagram>) -> Parts {
        let Mapped {
            mapping,
            persistence,
        } = mapped;
        Parts {
            mapping,
            file,
            device_lock,
            path: self.path.clone(),
            persistence,
        }
    }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Makes the entry of a file in its directory durable.
fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}
