//! Local memory, sockets, and accesses while others write.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say what they skip"
)]

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pmu_pmem::{
    AccessError, LocalMemory, LocalOptions, PIECES_MAX, PmemError, ReceivePiece, SendPiece,
    receive_pieces, send_pieces,
};
use proptest::prelude::*;

#[test]
fn allocated_memory_is_zero_and_aligned() {
    for (huge_pages, prefault) in [(false, false), (true, false), (false, true), (true, true)] {
        let options = LocalOptions {
            huge_pages,
            prefault,
        };
        let mut memory = LocalMemory::allocate_with(5_000_001, options).unwrap();
        assert_eq!(memory.len(), 5_000_001);
        assert!((memory.as_ptr() as usize).is_multiple_of(4096));
        assert!(memory.as_mut_slice().iter().all(|&byte| byte == 0));
        memory.write_at(5_000_000, &[1]).unwrap();
        assert!(
            memory.write_at(5_000_001, &[1]).is_err(),
            "not even where the page goes on"
        );
    }
}

#[test]
fn memory_that_cannot_be_had_is_an_error() {
    for len in [0, usize::MAX, usize::MAX - 4095, 1 << 60] {
        let error = LocalMemory::allocate(len).unwrap_err();
        assert!(
            matches!(error, PmemError::NoMemory { .. }),
            "{len}: {error}"
        );
    }
}

#[test]
fn adopted_bytes_come_back() {
    let bytes: Vec<u8> = (0..100).collect();
    let address = bytes.as_ptr();
    let memory = LocalMemory::adopt(bytes);
    assert_eq!(memory.as_ptr().cast_const(), address, "no copy");
    memory.write_at(3, &[200]).unwrap();
    let bytes = memory.into_bytes();
    assert_eq!((bytes.as_ptr(), bytes[3], bytes.len()), (address, 200, 100));
    let allocated = LocalMemory::allocate(3).unwrap();
    allocated.write_at(0, b"abc").unwrap();
    assert_eq!(&*allocated.into_bytes(), b"abc");
    let empty = LocalMemory::adopt(Vec::new());
    assert!(empty.is_empty());
    assert_eq!(empty.read_at(0, &mut []), Ok(()));
    assert!(empty.read_at(0, &mut [0]).is_err());
    assert!(empty.into_bytes().is_empty());
}

#[test]
fn slices_need_the_only_handle() {
    let mut memory = Arc::new(LocalMemory::allocate(4096).unwrap());
    let posted = Arc::clone(&memory);
    assert!(Arc::get_mut(&mut memory).is_none());
    drop(posted);
    let owned = Arc::get_mut(&mut memory).unwrap();
    let sum = owned.with_mut(8, 16, |bytes| {
        bytes.fill(2);
        bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>()
    });
    assert_eq!(sum, Ok(32));
    assert!(owned.with_mut(4090, 7, |_| panic!("called")).is_err());
    assert!(owned.bytes_mut(u64::MAX, 1).is_err());
}

#[test]
fn pieces_are_seen_once_and_in_order() {
    let memory = LocalMemory::adopt((0..=255).collect::<Vec<u8>>());
    let mut seen = Vec::new();
    memory
        .for_each_piece(10, 200, &mut [0; 33], |piece| seen.extend_from_slice(piece))
        .unwrap();
    assert_eq!(seen, (10..210).collect::<Vec<u8>>());
    let refused = memory.for_each_piece(0, 1, &mut [], |_| ());
    assert_eq!(refused, Err(AccessError::NoScratch));
    assert!(
        memory
            .for_each_piece(200, 57, &mut [0; 9], |_| panic!("called"))
            .is_err()
    );
}

#[test]
fn bytes_go_through_sockets() {
    let (left, right) = UnixStream::pair().unwrap();
    let source = LocalMemory::adopt((0..=255).collect::<Vec<u8>>());
    let target = LocalMemory::allocate(300).unwrap();
    assert_eq!(source.send_from(left.as_fd(), 100, 50, 0).unwrap(), 50);
    assert_eq!(target.recv_into(right.as_fd(), 7, 100, 0).unwrap(), 50);
    let mut bytes = [0; 52];
    target.read_at(6, &mut bytes).unwrap();
    assert_eq!((bytes[0], bytes[1], bytes[50], bytes[51]), (0, 100, 149, 0));

    let pieces = [
        SendPiece::Bytes(b"head"),
        SendPiece::Memory(&source, 0, 3),
        SendPiece::Bytes(b""),
        SendPiece::Memory(&source, 253, 3),
    ];
    assert_eq!(send_pieces(left.as_fd(), &pieces, 0).unwrap(), 10);
    let mut head = [0; 4];
    let mut room = [
        ReceivePiece::Bytes(&mut head),
        ReceivePiece::Memory(&target, 290, 10),
    ];
    assert_eq!(receive_pieces(right.as_fd(), &mut room, 0).unwrap(), 10);
    assert_eq!(&head, b"head");
    let mut bytes = [0; 6];
    target.read_at(290, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 1, 2, 253, 254, 255]);

    let error = target
        .recv_into(right.as_fd(), 0, 10, libc::MSG_DONTWAIT)
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    drop(left);
    assert_eq!(
        target.recv_into(right.as_fd(), 0, 10, 0).unwrap(),
        0,
        "closed"
    );
    let error = source.send_from(right.as_fd(), 0, 10, 0).unwrap_err();
    assert_eq!(
        error.kind(),
        std::io::ErrorKind::BrokenPipe,
        "an error, no signal"
    );
}

#[test]
fn sockets_never_reach_outside() {
    let (mut left, right) = UnixStream::pair().unwrap();
    let memory = LocalMemory::allocate(100).unwrap();
    left.write_all(&[1; 200]).unwrap();
    let invalid = std::io::ErrorKind::InvalidInput;
    for (offset, len) in [(0, 101), (100, 1), (u64::MAX, 2), (50, usize::MAX)] {
        let error = memory.recv_into(right.as_fd(), offset, len, 0).unwrap_err();
        assert_eq!(error.kind(), invalid);
        let error = memory.send_from(right.as_fd(), offset, len, 0).unwrap_err();
        assert_eq!(error.kind(), invalid);
        let mut pieces = [ReceivePiece::Memory(&memory, offset, len)];
        assert_eq!(
            receive_pieces(right.as_fd(), &mut pieces, 0)
                .unwrap_err()
                .kind(),
            invalid
        );
    }
    let many = [SendPiece::Bytes(b"x"); PIECES_MAX + 1];
    assert_eq!(
        send_pieces(left.as_fd(), &many, 0).unwrap_err().kind(),
        invalid
    );
    assert_eq!(
        send_pieces(right.as_fd(), &many[1..], 0).unwrap(),
        PIECES_MAX
    );
    let one = [SendPiece::Bytes(b"x")];
    let error = send_pieces(left.as_fd(), &one, libc::MSG_ZEROCOPY).unwrap_err();
    assert_eq!(error.kind(), invalid);
    let mut sent = [0; PIECES_MAX];
    left.read_exact(&mut sent).unwrap();
    assert_eq!(sent, [b'x'; PIECES_MAX]);
}

#[test]
fn a_published_word_brings_the_bytes_before_it() {
    let memory = Arc::new(LocalMemory::allocate(8192).unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (memory, stop) = (Arc::clone(&memory), Arc::clone(&stop));
        move || {
            let mut value = 0u64;
            while !stop.load(Ordering::Relaxed) {
                value += 1;
                // Bytes only ever grow, so a reader may find newer ones than the word says, never
                // older ones.
                memory.write_at(4096, &value.to_be_bytes()).unwrap();
                memory.store_u64_release(0, value).unwrap();
                memory.write_at(1024, &vec![value as u8; 2000]).unwrap();
            }
        }
    });
    let mut newest = 0;
    for _ in 0..200_000 {
        let word = memory.load_u64_acquire(0).unwrap();
        assert!(word >= newest);
        newest = word;
        let mut bytes = [0; 2000];
        memory.read_at(1024, &mut bytes).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    let mut bytes = [0; 8];
    memory.read_at(4096, &mut bytes).unwrap();
    assert_eq!(
        u64::from_be_bytes(bytes),
        memory.load_u64_acquire(0).unwrap()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The accessors against a plain vector.
    #[test]
    fn accessors_do_what_a_vector_does(
        operations in prop::collection::vec(
            (0u8..5, 0u64..2200, 0usize..300, any::<u8>()), 1..60),
    ) {
        let mut model = vec![0u8; 2000];
        let memory = LocalMemory::allocate(2000).unwrap();
        for (what, offset, len, value) in operations {
            let inside = offset as usize + len <= 2000;
            let range = if inside { offset as usize..offset as usize + len } else { 0..0 };
            let ok = match what {
                0 => {
                    model[range].fill(value);
                    memory.write_at(offset, &vec![value; len]).is_ok()
                }
                1 => {
                    model[range].fill(0);
                    memory.zero(offset, len as u64).is_ok()
                }
                2 => {
                    let mut bytes = vec![0; len];
                    let result = memory.read_at(offset, &mut bytes);
                    if inside {
                        prop_assert_eq!(&bytes, &model[range]);
                    }
                    result.is_ok()
                }
                3 => {
                    let other = LocalMemory::adopt(vec![value; len]);
                    model[range].fill(value);
                    memory.copy_from(offset, &other, 0, len).is_ok()
                }
                _ => {
                    let word = memory.store_u64_release(offset, u64::from(value));
                    let fits = offset + 8 <= 2000 && offset % 8 == 0;
                    prop_assert_eq!(word.is_ok(), fits);
                    if fits {
                        let at = offset as usize;
                        model[at..at + 8].copy_from_slice(&u64::from(value).to_le_bytes());
                    }
                    inside
                }
            };
            prop_assert_eq!(ok, inside);
        }
        let mut bytes = vec![0; 2000];
        memory.read_at(0, &mut bytes).unwrap();
        prop_assert_eq!(bytes, model);
    }
}
