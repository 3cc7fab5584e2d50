//! Pools on emulated persistent memory, in the lab's guest: `scripts/lab run --fsdax --env
//! PMU_LAB=1 -- lab --test-threads=1` with the built test program in the guest's PATH.
//!
//! PMU_LAB_DAX0 names the devdax device (/dev/dax0.0), PMU_LAB_FSDAX the directory of the DAX file
//! system (/mnt/pmem1), PMU_LAB_HUGETLBFS that of a hugetlbfs. Outside of the lab these tests fail,
//! so that nobody believes they ran.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say what they skip"
)]

use std::path::PathBuf;

use pmu_pmem::{CreateOptions, Medium, PersistMethod, PmemError, PoolMemory, PoolSpec};

fn lab() {
    assert_eq!(
        std::env::var("PMU_LAB").as_deref(),
        Ok("1"),
        "this test runs in the lab's guest only (PMU_LAB=1 says that it is there)"
    );
}

fn path(variable: &str, usual: &str) -> PathBuf {
    lab();
    std::env::var_os(variable).map_or_else(|| PathBuf::from(usual), PathBuf::from)
}

fn devdax() -> PoolSpec {
    PoolSpec::new(Medium::Devdax, path("PMU_LAB_DAX0", "/dev/dax0.0"))
}

fn fsdax(name: &str) -> PoolSpec {
    PoolSpec::new(
        Medium::Fsdax,
        path("PMU_LAB_FSDAX", "/mnt/pmem1").join(name),
    )
}

fn with_len(len: u64) -> CreateOptions<'static> {
    CreateOptions {
        len: Some(len),
        ..CreateOptions::default()
    }
}

fn write_and_persist(pool: &PoolMemory) {
    pool.write_at(4096, &[7; 10_000]).unwrap();
    pool.store_u64_release(0, 42).unwrap();
    pool.start_write_back(4096..14_096);
    pool.persist(&[4096..14_096, 0..8]).unwrap();
    assert!(matches!(
        pool.persistence().method,
        PersistMethod::CacheLines(_)
    ));
    assert!(pool.medium().is_durable());
    println!(
        "{} persists by {}",
        pool.path().display(),
        pool.persistence().method_name()
    );
}

fn assert_written(pool: &PoolMemory) {
    let mut bytes = [0; 10_000];
    pool.read_at(4096, &mut bytes).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 7));
    assert_eq!(pool.load_u64_acquire(0), Ok(42));
}

#[test]
fn a_device_is_mapped_and_made_durable() {
    let spec = devdax();
    let pool = PoolMemory::create(&spec, CreateOptions::default()).unwrap();
    println!("{} bytes", pool.len());
    assert!(pool.len() >= 1 << 20 && pool.len().is_multiple_of(4096));
    pool.zero(0, 1 << 20).unwrap();
    write_and_persist(&pool);
    let whole = 0..pool.len();
    pool.persist(std::slice::from_ref(&whole)).unwrap();
    pool.check_length().unwrap();
    let error = PoolMemory::open(&spec).unwrap_err();
    assert!(matches!(error, PmemError::InUse { .. }), "{error}");
    drop(pool);
    assert_written(&PoolMemory::open(&spec).unwrap());
}

#[test]
fn a_device_is_no_longer_than_it_is() {
    let spec = devdax();
    let pool = PoolMemory::open(&spec).unwrap();
    let (len, mut byte) = (pool.len(), [0]);
    pool.read_at(len - 1, &mut byte).unwrap();
    assert!(pool.read_at(len, &mut byte).is_err());
    drop(pool);
    for wrong in [0, 1, len + 4096, u64::MAX] {
        let error = PoolMemory::create(&spec, with_len(wrong)).unwrap_err();
        assert!(
            matches!(error, PmemError::BadLength { .. }),
            "{wrong}: {error}"
        );
    }
}

#[test]
fn a_device_is_nothing_else() {
    let path = path("PMU_LAB_DAX0", "/dev/dax0.0");
    for medium in [Medium::File, Medium::Fsdax, Medium::Memory] {
        let error = PoolMemory::open(&PoolSpec::new(medium, &path)).unwrap_err();
        assert!(
            matches!(error, PmemError::WrongMedium { .. }),
            "{medium}: {error}"
        );
    }
}

#[test]
fn a_dax_file_is_mapped_and_made_durable() {
    let spec = fsdax("pool");
    let options = CreateOptions {
        replace: true,
        ..with_len(8 << 20)
    };
    let pool = PoolMemory::create(&spec, options).unwrap();
    write_and_persist(&pool);
    assert!(matches!(
        PoolMemory::open(&spec).unwrap_err(),
        PmemError::InUse { .. }
    ));
    drop(pool);
    let pool = PoolMemory::open(&spec).unwrap();
    assert_eq!(pool.len(), 8 << 20);
    assert_written(&pool);
    drop(pool);
    std::fs::remove_file(spec.path().unwrap()).unwrap();
}

#[test]
fn a_dax_file_system_that_is_full_is_refused() {
    let spec = fsdax("too-long");
    let error = PoolMemory::create(&spec, with_len(1 << 40)).unwrap_err();
    assert!(matches!(error, PmemError::NoSpace { .. }), "{error}");
    assert!(!spec.path().unwrap().exists());
}

#[test]
fn huge_pages_are_volatile() {
    let directory = path("PMU_LAB_HUGETLBFS", "/dev/hugepages");
    let spec = PoolSpec::new(Medium::Hugetlbfs, directory.join("pool"));
    let options = CreateOptions {
        replace: true,
        ..with_len(4 << 20)
    };
    let pool = PoolMemory::create(&spec, options).unwrap();
    assert!(!pool.medium().is_durable());
    pool.write_at(3 << 20, b"there").unwrap();
    drop(pool);
    let pool = PoolMemory::open(&spec).unwrap();
    let mut bytes = [0; 5];
    pool.read_at(3 << 20, &mut bytes).unwrap();
    assert_eq!(&bytes, b"there");
    drop(pool);
    std::fs::remove_file(spec.path().unwrap()).unwrap();
    let error = PoolMemory::create(&spec, with_len(1 << 40)).unwrap_err();
    assert!(matches!(error, PmemError::NoSpace { .. }), "{error}");
    let error = PoolMemory::create(&spec, with_len(4096)).unwrap_err();
    assert!(matches!(error, PmemError::BadLength { .. }), "{error}");
    assert!(!spec.path().unwrap().exists());
}
