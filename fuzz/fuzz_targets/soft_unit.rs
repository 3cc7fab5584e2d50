//! A live unit that gets anything from a peer with a good token.
//!
//! One window lets the peer read and write, one only read; the rest of the pool is not its business. Whatever it sends:
//! the unit doesn't panic, doesn't hang, answers in its protocol, changes nothing outside the first window, and sends
//! nothing from outside both. The encoding stands here a second time, so that an error of the library's own is found.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pmu_fabric::soft::SoftUnit;
use pmu_fabric::{
    AccessWindow, ConnectToken, ExposedExtent, ExposedRegion, PersistenceMethod, UnitFabric,
    WindowAccess,
};
use pmu_pmem::{CreateOptions, PoolMemory, PoolSpec};

const PAGE: u64 = 4096;
const POOL_BYTES: u64 = 16 * PAGE;
const BASE: u64 = 0x7000_0000_0000;
/// Which pages of the region can be written, and which can be read only.
const WRITABLE: std::ops::Range<u64> = PAGE..3 * PAGE;
const READABLE: std::ops::Range<u64> = 4 * PAGE..6 * PAGE;
/// What is outside the windows. What the peer writes is never as large.
const SECRET: u8 = 0xEE;
const SHOWN: u8 = 0x11;
const PATIENCE: Duration = Duration::from_secs(10);

struct Site {
    unit: SoftUnit,
    pool: Arc<PoolMemory>,
}

fn site() -> &'static Site {
    static SITE: OnceLock<Site> = OnceLock::new();
    SITE.get_or_init(|| {
        let socket = std::env::temp_dir().join(format!("pmu-fuzz-{}.sock", std::process::id()));
        let unit = SoftUnit::listen_unix(socket.to_str().unwrap()).unwrap();
        let options = CreateOptions {
            len: Some(POOL_BYTES),
            ..CreateOptions::default()
        };
        let pool = Arc::new(PoolMemory::create(&PoolSpec::memory(), options).unwrap());
        // Scattered: the first half of the region lies behind the second.
        let extents = vec![
            ExposedExtent {
                address: BASE,
                pool_offset: 9 * PAGE,
                length: 3 * PAGE,
            },
            ExposedExtent {
                address: BASE + 3 * PAGE,
                pool_offset: 2 * PAGE,
                length: 5 * PAGE,
            },
        ];
        let region = ExposedRegion {
            address: BASE,
            pool: Arc::clone(&pool),
            extents,
        };
        unit.expose(&region).unwrap();
        Site { unit, pool }
    })
}

fn pool_offset(offset: u64) -> u64 {
    if offset < 3 * PAGE {
        9 * PAGE + offset
    } else {
        2 * PAGE + offset - 3 * PAGE
    }
}

/// The peer's bytes as choices; zeros when there are no more.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn long(&mut self) -> u64 {
        (0..4).fold(0, |long, _| (long << 16) | u64::from(self.word()))
    }
}

fn request(
    choices: &mut Choices<'_>,
    windows: &[AccessWindow],
    serial: &mut u64,
    out: &mut Vec<u8>,
) {
    let count = 1 + choices.byte() % 6;
    let mut ops = Vec::new();
    let mut payload = 0_u64;
    for _ in 0..count {
        let kind = match choices.byte() {
            seldom @ 250.. => seldom,
            often => 1 + often % 4,
        };
        let window = &windows[usize::from(choices.byte()) % windows.len()];
        let key = match choices.byte() {
            0..160 if kind == 3 => window.flush_key,
            0..160 | 200..220 => window.access_key,
            160..200 => window.flush_key,
            _ => choices.long() as u32,
        };
        let (mut address, mut length) = match choices.byte() {
            0..200 => (
                window.address + u64::from(choices.word()) % window.length,
                u64::from(choices.word() % 2048),
            ),
            200..240 => (BASE + u64::from(choices.word()), u64::from(choices.word())),
            _ => (choices.long(), choices.long()),
        };
        if kind == 4 && choices.byte() < 240 {
            (address, length) = (address & !7, 8);
        }
        if kind == 1 {
            payload = payload.wrapping_add(length);
        }
        let value = choices.long() & 0x7f7f_7f7f_7f7f_7f7f;
        ops.extend_from_slice(&[kind, 0, 0, 0]);
        ops.extend_from_slice(&key.to_le_bytes());
        for number in [address, length, value] {
            ops.extend_from_slice(&number.to_le_bytes());
        }
    }
    let sent = payload.min(32 << 10) as usize;
    let (mut number, mut told) = (*serial, payload);
    match choices.byte() {
        255 => number = choices.long(),
        254 => told = choices.long(),
        _ => *serial += 1,
    }
    out.extend_from_slice(b"PMRQ");
    out.extend_from_slice(&u32::from(count).to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&told.to_le_bytes());
    out.extend_from_slice(&ops);
    let fill = choices.byte() & 0x7f;
    out.resize(out.len() + sent, fill);
}

/// The payloads of the answers, where the bytes hold the protocol.
fn check_answers(mut bytes: &[u8]) {
    while bytes.len() >= 24 {
        let (head, rest) = bytes.split_at(24);
        assert_eq!(&head[..4], b"PMAN", "not an answer");
        assert!(head[4] <= 4 && head[5] == 0, "an unknown status");
        let payload = u64::from_le_bytes(head[16..24].try_into().unwrap());
        // The last may be cut short: by a peer that is at its end, in the middle of what it reads.
        let payload = rest.len().min(payload as usize);
        assert!(!rest[..payload].contains(&SECRET), "bytes of somebody else");
        bytes = &rest[payload..];
    }
}

fn reset(pool: &PoolMemory) {
    pool.write_at(0, &[SECRET; POOL_BYTES as usize]).unwrap();
    for (range, byte) in [(WRITABLE, 0), (READABLE, SHOWN)] {
        for page in range.step_by(PAGE as usize) {
            pool.write_at(pool_offset(page), &[byte; PAGE as usize])
                .unwrap();
        }
    }
}

fn check_pool(pool: &PoolMemory) {
    let mut all = vec![0; POOL_BYTES as usize];
    pool.read_at(0, &mut all).unwrap();
    let page = |offset: u64| offset as usize..(offset + PAGE) as usize;
    for offset in WRITABLE.step_by(PAGE as usize) {
        all[page(pool_offset(offset))].fill(SECRET);
    }
    for offset in READABLE.step_by(PAGE as usize) {
        let shown = &mut all[page(pool_offset(offset))];
        assert!(
            shown.iter().all(|byte| *byte == SHOWN),
            "written without the right"
        );
        shown.fill(SECRET);
    }
    assert!(
        all.iter().all(|byte| *byte == SECRET),
        "written outside the windows"
    );
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Site { unit, pool } = site();
    reset(pool);
    let token = ConnectToken::random().unwrap();
    let id = unit
        .expect(token, PersistenceMethod::Volatile, PATIENCE)
        .unwrap();
    let mut peer = UnixStream::connect(unit.address()).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut hello = b"PMUSOFT1".to_vec();
    hello.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    hello.extend_from_slice(&token.0);
    peer.write_all(&hello).unwrap();
    let mut welcome = [0; 32];
    peer.read_exact(&mut welcome).unwrap();
    unit.wait_connected(id, PATIENCE).unwrap();
    let mut windows = Vec::new();
    for (range, write) in [(WRITABLE, true), (READABLE, false)] {
        let access = WindowAccess { read: true, write };
        let bound = unit.bind(
            id,
            BASE,
            BASE + range.start,
            range.end - range.start,
            access,
        );
        windows.extend(bound.unwrap());
    }

    let mut choices = Choices(data);
    let mut out = Vec::new();
    match choices.byte() {
        raw @ 240.. => out.extend_from_slice(&data[usize::from(raw == 255)..]),
        cut => {
            let mut serial = 0;
            while !choices.0.is_empty() && out.len() < 96 << 10 {
                request(&mut choices, &windows, &mut serial, &mut out);
            }
            if cut >= 200 {
                out.truncate(out.len().saturating_sub(usize::from(choices.byte()) + 1));
            }
        }
    }
    // The unit may have ended the connection before it took everything.
    let _ = peer.write_all(&out);
    let _ = peer.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    match peer.read_to_end(&mut answers) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the unit neither answers nor ends: {error}"),
    }
    check_answers(&answers);
    unit.invalidate(id).unwrap();
    unit.close(id);
    check_pool(pool);
});
