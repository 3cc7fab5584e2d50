//! Pools on every medium that the machine offers. A medium that is missing is named loudly.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say what they skip"
)]

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pmu_pmem::{
    AccessError, CreateOptions, Medium, PersistMethod, PmemError, PoolMemory, PoolSpec,
};

const LEN: u64 = 1 << 20;

fn with_len(len: u64) -> CreateOptions<'static> {
    CreateOptions {
        len: Some(len),
        ..CreateOptions::default()
    }
}

/// A directory on a disk's file system, or none.
fn disk() -> tempfile::TempDir {
    let target = std::env::var_os("CARGO_TARGET_TMPDIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    tempfile::tempdir_in(target).unwrap()
}

fn ram() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn missing(what: &str) {
    println!("\n==== SKIPPED LOUDLY: {what} ====\n");
}

/// A pool file on the disk; none where the build directory lies on a file system that no pool may
/// lie on.
fn disk_pool(name: &str) -> Option<(tempfile::TempDir, PoolSpec)> {
    let directory = disk();
    let spec = PoolSpec::new(Medium::File, directory.path().join(name));
    match PoolMemory::create(&spec, with_len(4096)) {
        Ok(pool) => {
            drop(pool);
            fs::remove_file(spec.path().unwrap()).unwrap();
            Some((directory, spec))
        }
        Err(error @ PmemError::WrongMedium { .. }) => {
            missing(&format!(
                "no durable file system below the build directory: {error}"
            ));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn write_persist_read(pool: &PoolMemory) {
    pool.write_at(5000, b"checkpoint").unwrap();
    pool.store_u64_release(0, 0x0102_0304_0506_0708).unwrap();
    pool.start_write_back(0..8192);
    pool.persist(&[5000..5010, 0..8]).unwrap();
    let mut bytes = [0; 10];
    pool.read_at(5000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"checkpoint");
    pool.read_at(0, &mut bytes[..8]).unwrap();
    assert_eq!(
        bytes[..8],
        [8, 7, 6, 5, 4, 3, 2, 1],
        "words are little-endian"
    );
    assert_eq!(pool.load_u64_acquire(0), Ok(0x0102_0304_0506_0708));
    assert_eq!(pool.failure(), None);
}

fn assert_zero(pool: &PoolMemory) {
    let mut scratch = [0; 5000];
    let mut seen = 0;
    pool.for_each_piece(0, pool.len(), &mut scratch, |piece| {
        assert!(piece.iter().all(|&byte| byte == 0));
        seen += piece.len() as u64;
    })
    .unwrap();
    assert_eq!(seen, pool.len());
}

#[test]
fn a_file_is_durable_and_opens_again() {
    let Some((_directory, spec)) = disk_pool("pool") else {
        return;
    };
    let mut steps = Vec::new();
    let mut progress = |done, total| steps.push((done, total));
    let options = CreateOptions {
        len: Some(3 * LEN + 4096),
        progress: Some(&mut progress),
        ..CreateOptions::default()
    };
    let pool = PoolMemory::create(&spec, options).unwrap();
    assert_eq!(steps.last(), Some(&(3 * LEN + 4096, 3 * LEN + 4096)));
    assert!(steps.len() >= 4 && steps.is_sorted());
    assert!(pool.medium().is_durable() && pool.persistence().is_durable());
    println!("file persists by {}", pool.persistence().method_name());
    assert_zero(&pool);
    write_persist_read(&pool);
    let metadata = fs::metadata(spec.path().unwrap()).unwrap();
    assert!(
        metadata.blocks() * 512 >= metadata.len(),
        "every block is allocated"
    );
    assert_eq!(
        metadata.mode() & 0o777,
        0o600,
        "nobody else reads checkpoints"
    );
    drop(pool);
    let pool = PoolMemory::open(&spec).unwrap();
    assert_eq!(pool.len(), 3 * LEN + 4096);
    assert_eq!(pool.load_u64_acquire(0), Ok(0x0102_0304_0506_0708));
    let mut file = fs::File::open(spec.path().unwrap()).unwrap();
    let mut bytes = [0; 10];
    file.seek(SeekFrom::Start(5000)).unwrap();
    file.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"checkpoint");
}

#[test]
fn scattered_ranges_of_a_file_are_written_back() {
    let Some((_directory, spec)) = disk_pool("pool") else {
        return;
    };
    let pool = PoolMemory::create(&spec, with_len(64 * LEN)).unwrap();
    let ranges: Vec<_> = (0..100u64)
        .rev()
        .map(|i| i * 500_000..i * 500_000 + 3)
        .collect();
    for range in &ranges {
        pool.write_at(range.start, &[1, 2, 3]).unwrap();
    }
    pool.persist(&ranges).unwrap();
    let bytes = fs::read(spec.path().unwrap()).unwrap();
    assert!(
        ranges
            .iter()
            .all(|range| bytes[range.start as usize..][..3] == [1, 2, 3])
    );
}

/// Long writes of a file go by write calls, short ones and words through the mapping: one memory.
#[test]
fn all_ways_into_a_file_meet() {
    let Some((_directory, spec)) = disk_pool("pool") else {
        return;
    };
    let pool = PoolMemory::create(&spec, with_len(4 * LEN)).unwrap();
    let len = 700_001;
    let bytes: Vec<u8> = (0..len).map(|index| (index % 249) as u8).collect();
    pool.write_at(4099, &bytes).unwrap();
    pool.store_u64_release(8192, u64::MAX).unwrap();
    pool.write_at(9000, b"short").unwrap();
    let mut expected = bytes;
    expected[8192 - 4099..][..8].fill(0xff);
    expected[9000 - 4099..][..5].copy_from_slice(b"short");
    let mut found = vec![0; len];
    pool.read_at(4099, &mut found).unwrap();
    assert!(found == expected);
    pool.copy_from(2 * LEN + 1, &pool, 4099, len).unwrap();
    let (mut writer, reader) = std::os::unix::net::UnixStream::pair().unwrap();
    let sent = expected.clone();
    let sender = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut done = 0;
    while done < len {
        let at = 3 * LEN + 3 + done as u64;
        let count = pool.recv_into(reader.as_fd(), at, len - done, 0).unwrap();
        assert!(count > 0);
        done += count;
    }
    sender.join().unwrap();
    for copy in [2 * LEN + 1, 3 * LEN + 3] {
        pool.read_at(copy, &mut found).unwrap();
        assert!(found == expected, "{copy}");
    }
    let all = 0..pool.len();
    pool.persist(std::slice::from_ref(&all)).unwrap();
    let file = fs::read(spec.path().unwrap()).unwrap();
    assert!(file[4099..][..len] == expected && file[3 * LEN as usize + 3..][..len] == expected);
    pool.zero(1, pool.len() - 2).unwrap();
    pool.zero(0, 1).unwrap();
    pool.zero(pool.len() - 1, 1).unwrap();
    assert_zero(&pool);
    assert!(pool.write_at(4 * LEN - 5000, &[1; 5001]).is_err());
    assert!(
        pool.recv_into(reader.as_fd(), 4 * LEN - 5000, 5001, 0)
            .is_err()
    );
    assert_eq!(
        fs::metadata(spec.path().unwrap()).unwrap().len(),
        4 * LEN,
        "it never grows"
    );
}

#[test]
fn tmpfs_and_memfd_are_volatile_and_say_so() {
    let directory = ram();
    let spec = PoolSpec::new(Medium::Memory, directory.path().join("pool"));
    for spec in [spec, PoolSpec::memory()] {
        let pool = PoolMemory::create(&spec, with_len(LEN)).unwrap();
        assert!(!pool.medium().is_durable());
        assert_eq!(pool.persistence().method, PersistMethod::None);
        assert_eq!(pool.persistence().method_name(), "none");
        assert_zero(&pool);
        write_persist_read(&pool);
    }
    let error = PoolMemory::open(&PoolSpec::memory()).unwrap_err();
    assert!(matches!(error, PmemError::BadSpec { .. }), "{error}");
}

#[test]
fn a_volatile_medium_is_never_taken_for_a_durable_one() {
    let directory = ram();
    let path = directory.path().join("pool");
    for medium in [Medium::File, Medium::Fsdax] {
        let spec = PoolSpec::new(medium, &path);
        let error = PoolMemory::create(&spec, with_len(LEN)).unwrap_err();
        assert!(error.to_string().contains("volatile"), "{error}");
        assert!(!path.exists(), "the refused file is gone again");
        fs::write(&path, vec![7; 8192]).unwrap();
        let error = PoolMemory::open(&spec).unwrap_err();
        assert!(
            error.to_string().contains("tmpfs, which is volatile"),
            "{error}"
        );
        let options = CreateOptions {
            replace: true,
            ..with_len(LEN)
        };
        let error = PoolMemory::create(&spec, options).unwrap_err();
        assert!(matches!(error, PmemError::WrongMedium { .. }), "{error}");
        assert_eq!(
            fs::read(&path).unwrap(),
            [7; 8192],
            "a refused file keeps its bytes"
        );
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn media_are_not_mixed_up() {
    let Some((_directory, spec)) = disk_pool("pool") else {
        return;
    };
    let path = spec.path().unwrap();
    fs::write(path, vec![0; 8192]).unwrap();
    for medium in [Medium::Memory, Medium::Hugetlbfs, Medium::Devdax] {
        let error = PoolMemory::open(&PoolSpec::new(medium, path)).unwrap_err();
        assert!(
            matches!(error, PmemError::WrongMedium { .. }),
            "{medium}: {error}"
        );
    }
    let error = PoolMemory::open(&PoolSpec::new(Medium::File, "/dev/null")).unwrap_err();
    assert!(matches!(error, PmemError::WrongMedium { .. }), "{error}");
    let error = PoolMemory::open(&PoolSpec::new(Medium::Devdax, "/dev/null")).unwrap_err();
    assert!(error.to_string().contains("no DAX device"), "{error}");
    let directory = path.parent().unwrap();
    assert!(PoolMemory::open(&PoolSpec::new(Medium::File, directory)).is_err());
}

#[test]
fn an_ordinary_file_system_is_no_fsdax() {
    let Some((_directory, spec)) = disk_pool("pool") else {
        return;
    };
    let path = spec.path().unwrap();
    let fsdax = PoolSpec::new(Medium::Fsdax, path);
    match PoolMemory::create(&fsdax, with_len(LEN)) {
        Err(error @ PmemError::WrongMedium { .. }) => {
            assert!(error.to_string().contains("no DAX mapping"), "{error}");
            assert!(!path.exists());
        }
        Ok(_) => missing("the build directory lies on a DAX file system: no refusal to test"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn huge_pages() {
    let Some(mount) = hugetlbfs() else { return };
    let spec = PoolSpec::new(
        Medium::Hugetlbfs,
        mount.join(format!("pmu-{}", std::process::id())),
    );
    match PoolMemory::create(&spec, with_len(2 << 20)) {
        Ok(pool) => {
            assert!(!pool.medium().is_durable());
            write_persist_read(&pool);
        }
        Err(error @ PmemError::NoSpace { .. }) => {
            missing(&format!("no huge page is reserved: {error}"));
            assert!(!spec.path().unwrap().exists());
        }
        Err(error) => panic!("{error}"),
    }
    let error = PoolMemory::create(&spec, with_len(4096));
    let _ = fs::remove_file(spec.path().unwrap());
    if let Err(error) = error {
        assert!(
            matches!(
                error,
                PmemError::BadLength { .. } | PmemError::Exists { .. }
            ),
            "{error}"
        );
    }
}

fn hugetlbfs() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let found = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| {
            fields.get(2) == Some(&"hugetlbfs")
                && fields.get(3).is_some_and(|how| how.starts_with("rw"))
        });
    if found.is_none() {
        missing("no hugetlbfs is mounted, so pools of huge pages are not tested here");
    }
    found.map(|fields| PathBuf::from(fields[1]))
}

#[test]
fn a_pool_has_one_unit_at_a_time() {
    let directory = ram();
    let spec = PoolSpec::new(Medium::Memory, directory.path().join("pool"));
    let pool = PoolMemory::create(&spec, with_len(LEN)).unwrap();
    pool.write_at(0, b"kept").unwrap();
    let error = PoolMemory::open(&spec).unwrap_err();
    assert!(matches!(error, PmemError::InUse { .. }), "{error}");
    assert!(
        error.to_string().contains("in use by another unit"),
        "{error}"
    );
    let options = CreateOptions {
        replace: true,
        ..with_len(LEN)
    };
    let error = PoolMemory::create(&spec, options).unwrap_err();
    assert!(
        matches!(error, PmemError::InUse { .. }),
        "replacing needs the lock: {error}"
    );
    drop(pool);
    let pool = PoolMemory::open(&spec).unwrap();
    let mut bytes = [0; 4];
    pool.read_at(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"kept");
}

#[test]
fn a_file_is_replaced_only_when_asked() {
    let directory = ram();
    let spec = PoolSpec::new(Medium::Memory, directory.path().join("pool"));
    fs::write(spec.path().unwrap(), b"somebody's").unwrap();
    let error = PoolMemory::create(&spec, with_len(LEN)).unwrap_err();
    assert!(matches!(error, PmemError::Exists { .. }), "{error}");
    assert_eq!(fs::read(spec.path().unwrap()).unwrap(), b"somebody's");
    let options = CreateOptions {
        replace: true,
        ..with_len(LEN)
    };
    assert_zero(&PoolMemory::create(&spec, options).unwrap());
}

#[test]
fn odd_lengths_are_refused() {
    let directory = ram();
    let spec = PoolSpec::new(Medium::Memory, directory.path().join("pool"));
    for len in [0, 1, 4095, 4097, u64::MAX, u64::MAX - 4095] {
        let error = PoolMemory::create(&spec, with_len(len)).unwrap_err();
        assert!(
            matches!(error, PmemError::BadLength { .. }),
            "{len}: {error}"
        );
        assert!(!spec.path().unwrap().exists(), "{len}");
    }
    assert!(PoolMemory::create(&spec, CreateOptions::default()).is_err());
    fs::write(spec.path().unwrap(), []).unwrap();
    let error = PoolMemory::open(&spec).unwrap_err();
    assert!(matches!(error, PmemError::BadLength { .. }), "{error}");
    fs::write(spec.path().unwrap(), [7; 5000]).unwrap();
    let pool = PoolMemory::open(&spec).unwrap();
    assert_eq!(
        pool.len(),
        5000,
        "a file that was cut anywhere can be looked at"
    );
    assert!(pool.write_at(4999, &[1, 2]).is_err());
    pool.persist(std::slice::from_ref(&(0..5000))).unwrap();
    drop(pool);
    fs::remove_file(spec.path().unwrap()).unwrap();
    let error = PoolMemory::open(&spec).unwrap_err();
    assert!(matches!(error, PmemError::Io { .. }), "{error}");
}

#[test]
fn a_file_larger_than_its_file_system_is_refused_and_removed() {
    let directory = ram();
    let spec = PoolSpec::new(Medium::Memory, directory.path().join("pool"));
    let error = PoolMemory::create(&spec, with_len(1 << 50)).unwrap_err();
    assert!(matches!(error, PmemError::NoSpace { .. }), "{error}");
    assert!(error.to_string().contains("no room"), "{error}");
    assert!(!spec.path().unwrap().exists());
    if let Some((_directory, spec)) = disk_pool("pool") {
        let error = PoolMemory::create(&spec, with_len(1 << 50)).unwrap_err();
        assert!(matches!(error, PmemError::NoSpace { .. }), "{error}");
        assert!(!spec.path().unwrap().exists());
    }
}

#[test]
fn a_file_that_was_cut_short_is_noticed() {
    let directory = ram();
    let spec = PoolSpec::new(Medium::Memory, directory.path().join("pool"));
    let pool = PoolMemory::create(&spec, with_len(LEN)).unwrap();
    pool.check_length().unwrap();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(spec.path().unwrap())
        .unwrap();
    file.set_len(LEN / 2).unwrap();
    let error = pool.check_length().unwrap_err();
    assert!(error.to_string().contains("pool file cut short"), "{error}");
    file.set_len(2 * LEN).unwrap();
    pool.check_length().unwrap();
}

#[test]
fn holes_of_a_copied_file_are_allocated() {
    let Some((_directory, spec)) = disk_pool("pool") else {
        return;
    };
    let mut file = fs::File::create(spec.path().unwrap()).unwrap();
    file.write_all(b"head").unwrap();
    file.set_len(LEN).unwrap();
    drop(file);
    let pool = PoolMemory::open(&spec).unwrap();
    let metadata = fs::metadata(spec.path().unwrap()).unwrap();
    assert!(
        metadata.blocks() * 512 >= LEN,
        "{} blocks",
        metadata.blocks()
    );
    let mut bytes = [9; 8];
    pool.read_at(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"head\0\0\0\0");
}

#[test]
fn accesses_stay_inside() {
    let pool = PoolMemory::create(&PoolSpec::memory(), with_len(8192)).unwrap();
    let mut byte = [0];
    let outside = |offset, len| AccessError::OutOfBounds {
        offset,
        len,
        memory_len: 8192,
    };
    assert_eq!(pool.read_at(8192, &mut byte), Err(outside(8192, 1)));
    assert_eq!(pool.read_at(u64::MAX, &mut byte), Err(outside(u64::MAX, 1)));
    assert_eq!(pool.write_at(8191, &[1, 2]), Err(outside(8191, 2)));
    assert_eq!(pool.zero(0, 8193), Err(outside(0, 8193)));
    assert_eq!(pool.zero(1, u64::MAX), Err(outside(1, u64::MAX)));
    assert_eq!(pool.load_u64_acquire(8185), Err(outside(8185, 8)));
    assert_eq!(
        pool.store_u64_release(12, 1),
        Err(AccessError::Misaligned { offset: 12 })
    );
    assert_eq!(
        pool.load_u64_acquire(1),
        Err(AccessError::Misaligned { offset: 1 })
    );
    assert_eq!(pool.populate(1, 8192), Err(outside(1, 8192)));
    assert_eq!(pool.read_at(8192, &mut []), Ok(()));
    pool.populate(4095, 2).unwrap();
    assert_zero(&pool);
}

/// A real write error: a file system on a loop device whose own file can't grow any more.
#[test]
fn a_medium_that_fails_fails_the_pool() {
    let Some(broken) = BrokenDisk::new() else {
        return;
    };
    let spec = PoolSpec::new(Medium::File, broken.mount.join("pool"));
    let pool = PoolMemory::create(&spec, with_len(8 * LEN)).unwrap();
    pool.write_at(0, &[1; 4096]).unwrap();
    pool.persist(std::slice::from_ref(&(0..4096))).unwrap();
    broken.lose();
    let failed = (0..64).find_map(|round: u8| {
        let all = 0..pool.len();
        for offset in (0..pool.len()).step_by(4096) {
            pool.write_at(offset, &[round; 4096]).unwrap();
        }
        pool.persist(std::slice::from_ref(&all)).err()
    });
    let failed = failed.expect("the disk is full behind the file system's back");
    assert!(matches!(failed, PmemError::Persist { .. }), "{failed}");
    for _ in 0..3 {
        let error = pool.persist(std::slice::from_ref(&(0..8))).unwrap_err();
        assert!(matches!(error, PmemError::PoolFailed { .. }), "{error}");
    }
    drop(pool);
}

/// ext4 on a loop device, on a sparse file, on a tmpfs that is too small for it.
struct BrokenDisk {
    directory: tempfile::TempDir,
    mount: PathBuf,
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let output = std::process::Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

impl BrokenDisk {
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let (backing, mount) = (
            directory.path().join("backing"),
            directory.path().join("mount"),
        );
        fs::create_dir_all(&backing).unwrap();
        fs::create_dir_all(&mount).unwrap();
        let disk = Self { directory, mount };
        let image = backing.join("image");
        let made = run(
            "mount",
            &["-t", "tmpfs", "-o", "size=64m", "pmu", text(&backing)],
        ) && fs::File::create(&image)
            .and_then(|file| file.set_len(48 << 20))
            .is_ok()
            && run(
                "mkfs.ext4",
                &["-q", "-F", "-E", "lazy_itable_init=0", text(&image)],
            )
            && run("mount", &["-o", "loop", text(&image), text(&disk.mount)]);
        if !made {
            missing("no loop device with ext4 here (needs root): real write errors are not tested");
            return None;
        }
        Some(disk)
    }

    /// Punches out the image's blocks and fills the tmpfs, so that a write finds no room.
    fn lose(&self) {
        let backing = self.directory.path().join("backing");
        let image = backing.join("image");
        assert!(run(
            "fallocate",
            &["-p", "-o", "0", "-l", "48MiB", text(&image)]
        ));
        let mut filler = fs::File::create(backing.join("filler")).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
    }
}

impl Drop for BrokenDisk {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.directory.path().join("backing/filler"));
        run("umount", &[text(&self.mount)]);
        run("umount", &[text(&self.directory.path().join("backing"))]);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
