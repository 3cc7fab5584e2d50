//! Every structure's bytes are pinned, decoded back, and every single damaged bit is found.
//!
//! `PMU_WRITE_GOLDEN=1 cargo test -p pmu-format --test golden` writes the images anew: only together
//! with a new version of the format.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::PathBuf;

use common::*;
use pmu_format::*;

fn check_golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("PMU_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, to_hex(bytes)).expect("write the image");
    }
    let pinned = std::fs::read_to_string(&path).expect("the image is in the repository");
    assert_eq!(
        to_hex(bytes),
        pinned,
        "{name} changed: that is a new version of the format"
    );
    assert_eq!(from_hex(&pinned), bytes);
}

/// Calls `check` with each bit of `bytes` inverted once.
fn each_bit(bytes: &[u8], mut check: impl FnMut(usize, &[u8])) {
    let mut damaged = bytes.to_vec();
    for bit in 0..bytes.len() * 8 {
        damaged[bit / 8] ^= 1 << (bit % 8);
        check(bit, &damaged);
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn checksums_are_the_published_ones() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc64_nvme(b"123456789"), 0xae8b_1486_0a79_9888);
}

#[test]
fn golden_superblock() {
    let superblock = small_superblock();
    let page = superblock.encode();
    assert!(page[SUPERBLOCK_BYTES..].iter().all(|byte| *byte == 0));
    check_golden("superblock.hex", &page[..SUPERBLOCK_BYTES]);
    assert_eq!(&page[..8], b"PMUPOOL1");
    assert_eq!(Superblock::decode(&page), Ok(superblock));
}

#[test]
fn golden_region_table() {
    check_golden("region-table.hex", &table_image());
    assert_eq!(
        RegionTable::decode(&superblock(), &table_image()),
        Ok(table())
    );
}

#[test]
fn golden_set() {
    let header = set_header();
    let bytes = header.encode(&REGION);
    check_golden("set-header.hex", &bytes);
    check_golden("chunk-table.hex", &chunk_table());
    let slot = set_geometry().slot_of(header.number);
    assert_eq!(
        SetHeader::decode(&bytes, &REGION, &set_geometry(), slot),
        Ok(header)
    );
    assert_eq!(
        header.verify_chunk_table(&chunk_table()),
        Ok(&chunk_table()[..])
    );
}

#[test]
fn golden_record() {
    let header = record();
    let bytes = header.encode();
    check_golden("record-header.hex", &bytes);
    let geometry = LogGeometry::new(1 << 16).unwrap();
    assert_eq!(
        RecordHeader::decode(&bytes, header.position, &geometry),
        Ok(header)
    );
    let mut whole = bytes.to_vec();
    whole.extend_from_slice(b"hello world\0\0\0\0\0");
    assert_eq!(whole.len() as u64, header.record_bytes());
    check_golden("record.hex", &whole);
}

#[test]
fn golden_log_words() {
    let mut page = vec![0; PAGE_PAIR_BYTES as usize];
    page[..8].copy_from_slice(&LogPosition(64).tail_word().to_le_bytes());
    page[64..].copy_from_slice(&3_u64.to_le_bytes());
    check_golden("log-publish-page.hex", &page);
    let words = LogPublishWords {
        tail: LogPosition(64),
        epoch: Epoch(3),
    };
    assert_eq!(LogPublishWords::decode(&page), Ok(words));
    let pair = CursorPair::new(LogPosition(64));
    page[..8].copy_from_slice(&pair.cursor.to_le_bytes());
    page[64..].copy_from_slice(&pair.inverse.to_le_bytes());
    check_golden("log-cursor-page.hex", &page);
    assert_eq!(
        CursorPair::decode(&page).unwrap().agreed(),
        Some(LogPosition(64))
    );
    let empty = CursorPair::decode(&[0; 72]).unwrap();
    assert_eq!(empty.agreed(), Some(LogPosition(0)));
}

#[test]
fn b07_golden_words() {
    let words = [
        SetNumber(7).publish_word(),
        SetNumber(COUNT_MAX).publish_word(),
        Term(3).term_word(),
        LogPosition(64).tail_word(),
        POSITION_MAX.tail_word(),
    ];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    check_golden("words.hex", &bytes);
    assert_eq!(SetNumber::of_publish_word(words[0]), Ok(SetNumber(7)));
    assert_eq!(Term::of_term_word(words[2]), Ok(Term(3)));
    assert_eq!(LogPosition::of_tail_word(words[3]), Ok(LogPosition(64)));
    each_bit(&bytes, |bit, damaged| {
        let at = bit / 64 * 8;
        let word = u64::from_le_bytes(damaged[at..at + 8].try_into().unwrap());
        let believed = match bit / 64 {
            0 | 1 => SetNumber::of_publish_word(word).is_ok(),
            2 => Term::of_term_word(word).is_ok(),
            _ => LogPosition::of_tail_word(word).is_ok(),
        };
        assert!(!believed, "bit {bit}");
    });
}

#[test]
fn each_damaged_bit_of_a_superblock_is_found_and_the_other_copy_used() {
    let page = small_superblock().encode();
    each_bit(&page, |bit, damaged| {
        assert!(Superblock::decode(damaged).is_err(), "bit {bit}");
        let chosen = choose_superblock(damaged, &page).unwrap();
        assert_eq!(
            (chosen.value, chosen.copy),
            (small_superblock(), CopyName::B)
        );
        assert!(
            matches!(chosen.other, OtherCopy::Faulty(CopyFault::Damaged(_))),
            "bit {bit}"
        );
    });
}

#[test]
fn each_damaged_bit_of_a_table_is_found_and_the_other_copy_used() {
    let image = table_image();
    each_bit(&image, |bit, damaged| {
        assert!(
            RegionTable::decode(&superblock(), damaged).is_err(),
            "bit {bit}"
        );
        let chosen = choose_table(&superblock(), &image, damaged).unwrap();
        assert_eq!((chosen.value, chosen.copy), (table(), CopyName::A));
        assert!(
            matches!(chosen.other, OtherCopy::Faulty(CopyFault::Damaged(_))),
            "bit {bit}"
        );
    });
}

#[test]
fn each_damaged_bit_of_a_set_header_and_chunk_table_is_found() {
    let header = set_header();
    let slot = set_geometry().slot_of(header.number);
    each_bit(&header.encode(&REGION), |bit, damaged| {
        let found = SetHeader::decode(damaged, &REGION, &set_geometry(), slot);
        assert!(found.is_err(), "bit {bit}");
    });
    each_bit(&chunk_table(), |bit, damaged| {
        assert!(header.verify_chunk_table(damaged).is_err(), "bit {bit}");
    });
}

#[test]
fn each_damaged_bit_of_a_record_is_found() {
    let header = record();
    let geometry = LogGeometry::new(1 << 16).unwrap();
    each_bit(&header.encode(), |bit, damaged| {
        let found = RecordHeader::decode(damaged, header.position, &geometry);
        assert!(found.is_err(), "bit {bit}");
    });
    each_bit(b"hello world", |bit, damaged| {
        let computed = record_payload_checksum(&REGION, damaged);
        assert!(
            header.verify_payload_checksum(computed).is_err(),
            "bit {bit}"
        );
    });
}

#[test]
fn nothing_of_another_region_slot_position_or_pool_is_believed() {
    let (header, geometry) = (set_header(), set_geometry());
    let bytes = header.encode(&REGION);
    let slot = geometry.slot_of(header.number);
    let other = RegionId([1; 16]);
    assert!(SetHeader::decode(&bytes, &other, &geometry, slot).is_err());
    let next = SlotIndex((slot.0 + 1) % 3);
    assert!(SetHeader::decode(&bytes, &REGION, &geometry, next).is_err());
    let small = SetGeometry::new(1 << 22, 500_000, 2).unwrap();
    let error = SetHeader::decode(&bytes, &REGION, &small, small.slot_of(header.number));
    assert!(matches!(
        error,
        Err(FormatError::OutOfBounds {
            length_bytes: 600_000,
            ..
        })
    ));
    let log = LogGeometry::new(1 << 16).unwrap();
    assert!(RecordHeader::decode(&record().encode(), LogPosition(8), &log).is_err());
    assert!(
        record()
            .verify_payload_checksum(crc64_nvme(b"hello world"))
            .is_err()
    );
    let foreign = Superblock::new(PoolId([9; 16]), 1 << 32, 1 << 18, 1, Medium::Memory).unwrap();
    assert!(matches!(
        RegionTable::decode(&foreign, &table_image()),
        Err(FormatError::Mismatch {
            field: "pool id (first half)",
            ..
        })
    ));
}

fn with_version(bytes: &[u8], version: u32) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    let checksum = checksum::crc32c_around(&bytes[..SUPERBLOCK_BYTES], 12).unwrap();
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn copies_missing_older_newer_and_contradicting() {
    let page = small_superblock().encode();
    let empty = [0; 4096];
    let structure = Structure::Superblock;
    assert_eq!(
        choose_superblock(&empty, &empty),
        Err(CopiesError::Missing { structure })
    );
    let chosen = choose_superblock(&empty, &page).unwrap();
    assert_eq!(chosen.other, OtherCopy::Faulty(CopyFault::Missing));
    assert_eq!(
        choose_superblock(&page, &page).unwrap().other,
        OtherCopy::Same
    );
    let newer = with_version(&page, FORMAT_VERSION + 1);
    assert_eq!(
        choose_superblock(&page, &newer),
        Err(CopiesError::Version {
            structure,
            copy: CopyName::B,
            found: FORMAT_VERSION + 1
        })
    );
    let differs = Superblock::new(PoolId([1; 16]), 1 << 20, 1 << 16, 0, Medium::Fsdax)
        .unwrap()
        .encode();
    assert_eq!(
        choose_superblock(&page, &differs),
        Err(CopiesError::Contradiction { structure })
    );
    let both = choose_superblock(&page[..100], &empty)
        .unwrap_err()
        .to_string();
    assert!(
        both.contains("copy A is damaged: superblock: 100 bytes"),
        "{both}"
    );

    let mut next = table();
    next.generation += 1;
    next.regions.pop();
    let mut image = vec![0; next.encoded_length_bytes()];
    next.encode(&superblock(), &mut image).unwrap();
    let chosen = choose_table(&superblock(), &table_image(), &image).unwrap();
    assert_eq!((chosen.value.generation, chosen.copy), (18, CopyName::B));
    assert_eq!(chosen.other, OtherCopy::Older { generation: 17 });
}

type Change<'a> = &'a dyn Fn(&mut RegionTable);

#[test]
fn p10_a_table_that_cannot_be_is_refused() {
    let superblock = superblock();
    let refused = |change: &dyn Fn(&mut RegionTable)| {
        let mut changed = table();
        change(&mut changed);
        let mut image = vec![0; 1 << 18];
        let error = changed.encode(&superblock, &mut image).unwrap_err();
        assert!(
            image.iter().all(|byte| *byte == 0),
            "nothing is written on {error}"
        );
        error.to_string()
    };
    let changes: [(Change<'_>, &str); 16] = [
        (&|table| table.generation = 0, "generation is 0"),
        (
            &|table| table.next_address = VirtualAddress(1),
            "next address",
        ),
        (
            &|table| table.next_address = VirtualAddress(1 << 16),
            "leaves the limit",
        ),
        (&|table| table.regions[1].id = REGION, "region id"),
        (
            &|table| table.regions[1].name = table.regions[0].name.clone(),
            "trainer.step-1",
        ),
        (
            &|table| table.regions[1].base = table.regions[0].base,
            "virtual ranges",
        ),
        (
            &|table| table.regions[0].base = VirtualAddress(u64::MAX - 0xffff),
            "virtual range",
        ),
        (&|table| table.regions[0].length_bytes = 0, "length is 0"),
        (&|table| table.regions[0].capacity_bytes = 1 << 22, "needs"),
        (&|table| table.regions[0].sets_kept = 0, "sets kept is 0"),
        (
            &|table| table.regions[1].sets_kept = 1,
            "sets kept in append mode",
        ),
        (
            &|table| table.regions[0].extents[0].offset = PoolOffset(0),
            "extent 0+",
        ),
        (
            &|table| table.regions[0].extents[0].offset.0 += 4096,
            "offset of an extent",
        ),
        (
            &|table| table.regions[1].extents[0].offset = table.regions[0].extents[1].offset,
            "overlap",
        ),
        (
            &|table| table.regions[0].grants[0].rights = Rights::empty(),
            "rights",
        ),
        (
            &|table| {
                let grant = table.regions[0].grants[0].clone();
                table.regions[0].grants.push(grant);
            },
            "principal primary is there twice",
        ),
    ];
    for (change, expected) in changes {
        let error = refused(change);
        assert!(error.contains(expected), "{error}: expected {expected}");
    }
    let mut full = vec![0; 100];
    assert!(matches!(
        table().encode(&superblock, &mut full),
        Err(FormatError::TooShort {
            found_bytes: 100,
            ..
        })
    ));
}

#[test]
fn p05_slots_never_overlap_and_fit_exactly() {
    for (capacity, sets_kept) in [(1, 1), (4096, 3), (300_000, 2), (1 << 28, 7)] {
        let length = SetGeometry::region_bytes_for(capacity, sets_kept).unwrap();
        let geometry = SetGeometry::new(length, capacity, sets_kept).unwrap();
        assert!(SetGeometry::new(length - 1, capacity, sets_kept).is_err());
        let mut end = PAGE_BYTES;
        for slot in (0..geometry.slot_count()).map(SlotIndex) {
            assert_eq!(geometry.header_offset(slot).get(), end);
            assert_eq!(geometry.chunk_table_offset(slot).get(), end + PAGE_BYTES);
            end += geometry.slot_bytes();
            let payload_end = geometry.payload_offset(slot).get() + capacity;
            assert!(payload_end <= end && end - payload_end < PAGE_BYTES);
        }
        assert_eq!(end, length);
    }
    assert!(SetGeometry::new(u64::MAX, 0, 1).is_err());
    assert!(SetGeometry::new(u64::MAX, u64::MAX, 1).is_err());
    assert!(SetGeometry::new(u64::MAX, 1, SETS_KEPT_MAX + 1).is_err());
    assert!(matches!(
        SetGeometry::capacity_max_bytes(1 << 14, 1),
        Err(FormatError::TooShort { .. })
    ));
}

fn membership() -> Membership {
    let member = |unit: &str, address: &str| Member {
        unit: PrincipalName::new(unit).unwrap(),
        address: address.to_owned(),
    };
    Membership {
        id: SpreadId(*b"a spread region."),
        generation: 3,
        layout: [4, 2, 1],
        units_min: 2,
        own_index: 1,
        subsegment_bytes: 65_536,
        members: vec![
            member("unit-a", "10.0.0.1:7400"),
            member("unit-b", "unit-b.example:7400"),
            member("unit-c", "[2001:db8::3]:7400"),
        ],
    }
}

fn share_trailer() -> ShareTrailer {
    ShareTrailer {
        id: SpreadId(*b"a spread region."),
        generation: 3,
        number: SetNumber(17),
        writer: *b"a random writer.",
        epoch: Epoch(9),
        attempt: 21,
        segment_bytes: 1_000_001,
        term: Term(0x1122_3344_5566_7788),
        layout: [4, 2, 1],
        own_index: 1,
        subsegment_bytes: 65_536,
    }
}

#[test]
fn d01_golden_membership_and_share_trailer() {
    let bytes = membership().encode().unwrap();
    check_golden("membership.hex", &bytes);
    assert_eq!(Membership::decode(&bytes), Ok(membership()));
    let bytes = share_trailer().encode();
    check_golden("share-trailer.hex", &bytes);
    assert_eq!(ShareTrailer::decode(&bytes), Ok(share_trailer()));
}

#[test]
fn p12_golden_record_share() {
    let id = SpreadId(*b"a spread region.");
    let share = RecordShare {
        term: Term(0x1122_3344_5566_7788),
        sequence: 12,
        record_bytes: 1001,
        record_checksum: spread_record_checksum(&id, &[7; 1001]),
        layout: [5, 4, 2],
        own_index: 3,
    };
    let bytes = share.encode();
    check_golden("record-share.hex", &bytes);
    assert_eq!(RecordShare::decode(&bytes, 56 + 251), Ok(share));
}

#[test]
fn d06_golden_term_record() {
    let start = |term, behind| TermStart {
        term: Term(term),
        behind,
    };
    let record = TermRecord {
        id: SpreadId(*b"a spread region."),
        generation: 3,
        committed: 17,
        mark: 0,
        missed: 0,
        starts: vec![start(2, 0), start(5, 16)],
    };
    let bytes = record.encode();
    check_golden("term-record.hex", &bytes);
    assert_eq!(TermRecord::decode(&bytes), Ok(record));
}

#[test]
fn d01_each_damaged_bit_of_a_membership_or_share_trailer_is_found() {
    each_bit(&membership().encode().unwrap(), |bit, damaged| {
        assert!(Membership::decode(damaged).is_err(), "bit {bit}");
    });
    each_bit(&share_trailer().encode(), |bit, damaged| {
        assert!(ShareTrailer::decode(damaged).is_err(), "bit {bit}");
    });
    let bytes = membership().encode().unwrap();
    for length in 0..bytes.len() {
        assert!(
            Membership::decode(&bytes[..length]).is_err(),
            "cut at {length}"
        );
    }
}

#[test]
fn d01_a_membership_that_makes_no_sense_is_refused() {
    let refused = |change: fn(&mut Membership)| {
        let mut changed = membership();
        change(&mut changed);
        changed.encode().unwrap_err().to_string()
    };
    assert!(refused(|m| m.members.clear()).contains("members is 0"));
    assert!(refused(|m| m.members[2] = m.members[0].clone()).contains("each unit once"));
    assert!(refused(|m| m.units_min = 4).contains("minimum of units"));
    assert!(refused(|m| m.units_min = 0).contains("minimum of units"));
    assert!(refused(|m| m.own_index = 3).contains("own index"));
    assert!(refused(|m| m.subsegment_bytes = 0).contains("subsegment"));
    assert!(refused(|m| m.members[0].address.clear()).contains("address"));
    assert!(refused(|m| m.members[0].address = "x".repeat(81)).contains("address"));
}

#[test]
fn d01_only_shares_of_one_set_go_together() {
    let share = share_trailer();
    let other_member = ShareTrailer {
        own_index: 2,
        epoch: Epoch(4),
        ..share
    };
    assert!(share.goes_with(&other_member));
    for other in [
        ShareTrailer {
            writer: [0; 16],
            ..share
        },
        ShareTrailer {
            number: SetNumber(18),
            ..share
        },
        ShareTrailer {
            generation: 4,
            ..share
        },
        ShareTrailer {
            segment_bytes: 1,
            ..share
        },
    ] {
        assert!(!share.goes_with(&other), "{other:?}");
    }
}

#[test]
fn s08_golden_snapshot_header_and_table() {
    let (header, table) = snapshot();
    let bytes = header.encode();
    check_golden("snapshot-header.hex", &bytes);
    check_golden("snapshot-table.hex", &table);
    assert_eq!(header.pages_offset(), 4096);
    let payload_bytes = 4096 + 4 * 4096;
    assert_eq!(SnapshotHeader::decode(&bytes, payload_bytes), Ok(header));
    assert_eq!(
        header.decode_table(&table).as_deref(),
        Ok(&snapshot_runs()[..])
    );
    for other in [0, 4096, payload_bytes - 1, payload_bytes + 1, u64::MAX] {
        assert!(SnapshotHeader::decode(&bytes, other).is_err());
    }
}

#[test]
fn s08_each_damaged_bit_of_a_snapshots_header_or_table_is_found() {
    let (header, table) = snapshot();
    each_bit(&header.encode(), |bit, damaged| {
        let decoded = SnapshotHeader::decode(damaged, header.payload_bytes());
        assert!(decoded.is_err(), "bit {bit}");
    });
    each_bit(&table, |bit, damaged| {
        assert!(header.decode_table(damaged).is_err(), "bit {bit}");
    });
    for length in 0..table.len() {
        assert!(header.decode_table(&table[..length]).is_err());
    }
}

#[test]
fn s08_snapshots_that_make_no_sense_are_refused() {
    let (header, _) = snapshot();
    let on = |set, root| {
        SnapshotKind::Incremental(SnapshotBase {
            set: SetNumber(set),
            root: SetNumber(root),
        })
    };
    let odd = [
        SnapshotHeader {
            generation: 0,
            ..header
        },
        SnapshotHeader {
            base_generation: 9,
            ..header
        },
        SnapshotHeader {
            base_generation: 0,
            ..header
        },
        SnapshotHeader {
            kind: SnapshotKind::Full,
            ..header
        },
        SnapshotHeader {
            kind: on(38, 41),
            ..header
        },
        SnapshotHeader {
            kind: on(38, 0),
            ..header
        },
        SnapshotHeader {
            arena_bytes: (1 << 20) + 1,
            ..header
        },
        SnapshotHeader {
            arena_bytes: 0,
            ..header
        },
        SnapshotHeader {
            arena_bytes: 1 << 45,
            ..header
        },
        SnapshotHeader {
            arena_address: u64::MAX - 4095,
            ..header
        },
        SnapshotHeader {
            page_bytes: 2048,
            ..header
        },
        SnapshotHeader {
            page_bytes: 12288,
            ..header
        },
        SnapshotHeader {
            pages: 257,
            ..header
        },
        SnapshotHeader { runs: 5, ..header },
        SnapshotHeader { runs: 0, ..header },
        SnapshotHeader {
            runs: u64::MAX,
            pages: u64::MAX,
            ..header
        },
    ];
    for odd in odd {
        let decoded = SnapshotHeader::decode(&odd.encode(), odd.payload_bytes());
        assert!(decoded.is_err(), "{odd:?}");
    }
    let run = |first_page, pages| SnapshotRun { first_page, pages };
    for runs in [
        [run(0, 2), run(1, 1), run(9, 1)],
        [run(9, 2), run(1, 1), run(20, 1)],
        [run(0, 4), run(9, 0), run(10, 0)],
        [run(0, 2), run(9, 1), run(256, 1)],
        [run(0, 2), run(9, 1), run(u32::MAX, u32::MAX)],
        [run(0, 2), run(9, 1), run(20, 2)],
    ] {
        let mut table = Vec::new();
        let table_checksum = encode_snapshot_table(runs, &mut table);
        let header = SnapshotHeader {
            table_checksum,
            ..header
        };
        assert!(header.decode_table(&table).is_err(), "{runs:?}");
    }
}

#[test]
fn s08_only_snapshots_of_one_series_make_a_chain() {
    let (header, _) = snapshot();
    let base = SnapshotHeader {
        generation: 7,
        base_generation: 0,
        kind: SnapshotKind::Full,
        ..header
    };
    assert!(header.builds_on(&base, SetNumber(41)));
    assert!(!header.builds_on(&base, SetNumber(40)));
    for other in [
        SnapshotHeader {
            series: SeriesId([0; 16]),
            ..base
        },
        SnapshotHeader {
            generation: 8,
            ..base
        },
        SnapshotHeader {
            arena_address: 0,
            ..base
        },
        SnapshotHeader {
            arena_bytes: 1 << 21,
            ..base
        },
        SnapshotHeader {
            has_heap: false,
            ..base
        },
    ] {
        assert!(!header.builds_on(&other, SetNumber(41)));
    }
}
