//! The values whose images are pinned.

// Each test file uses a part of this; helpers of tests fail like tests.
#![allow(dead_code, clippy::expect_used)]

use pmu_format::{
    Epoch, Extent, Grant, Label, LogPosition, Medium, Mode, Need, PoolId, PoolOffset,
    PrincipalName, RecordHeader, RegionEntry, RegionId, RegionName, RegionState, RegionTable,
    Rights, SeriesId, SetGeometry, SetHeader, SetNumber, SnapshotBase, SnapshotHeader,
    SnapshotKind, SnapshotRun, Superblock, VirtualAddress, crc64_nvme, encode_snapshot_table,
    put_chunk_checksum, record_payload_checksum,
};

pub(crate) fn snapshot_runs() -> [SnapshotRun; 3] {
    [(0, 2), (5, 1), (255, 1)].map(|(first_page, pages)| SnapshotRun { first_page, pages })
}

/// A header, and the table behind it.
pub(crate) fn snapshot() -> (SnapshotHeader, Vec<u8>) {
    let mut table = Vec::new();
    let table_checksum = encode_snapshot_table(snapshot_runs(), &mut table);
    let header = SnapshotHeader {
        series: SeriesId(*b"one instance of."),
        generation: 9,
        base_generation: 7,
        kind: SnapshotKind::Incremental(SnapshotBase {
            set: SetNumber(41),
            root: SetNumber(38),
        }),
        arena_address: 0x7f12_3460_0000,
        arena_bytes: 1 << 20,
        page_bytes: 4096,
        has_heap: true,
        runs: 3,
        pages: 4,
        table_checksum,
        frozen_ns: 1_763_691_236_000_000_001,
    };
    (header, table)
}

pub(crate) fn snapshot_image() -> Vec<u8> {
    let (header, table) = snapshot();
    let mut image = header.encode().to_vec();
    image.extend_from_slice(&table);
    image
}

pub(crate) const REGION: RegionId = pmu_format::fuzz_entry::REGION;

pub(crate) fn superblock() -> Superblock {
    pmu_format::fuzz_entry::superblock_of_tables().expect("a pool of 4 GiB")
}

pub(crate) fn small_superblock() -> Superblock {
    Superblock::new(
        PoolId([0xa5; 16]),
        1 << 20,
        1 << 16,
        1_763_691_236,
        Medium::Fsdax,
    )
    .expect("a pool of 1 MiB")
}

pub(crate) fn table() -> RegionTable {
    let superblock = superblock();
    let data = superblock.data_offset().get();
    let mut table = RegionTable::empty(superblock.pool_id(), VirtualAddress(1 << 30));
    table.generation = 17;
    let grant = |name: &str, rights| Grant {
        principal: PrincipalName::new(name).expect("a name"),
        rights,
    };
    table.regions.push(RegionEntry {
        id: REGION,
        name: RegionName::new("trainer.step-1").expect("a name"),
        mode: Mode::Overwrite,
        state: RegionState::Active,
        need: Need::Durable,
        sets_kept: 2,
        base: VirtualAddress(1 << 16),
        length_bytes: 1 << 22,
        capacity_bytes: 1 << 20,
        epoch: Epoch(5),
        created_seconds: 1_763_691_237,
        extents: vec![
            Extent {
                offset: PoolOffset(data + (1 << 22)),
                length_bytes: 1 << 21,
            },
            Extent {
                offset: PoolOffset(data),
                length_bytes: 1 << 21,
            },
        ],
        grants: vec![
            grant("primary", Rights::READ | Rights::WRITE),
            grant("backup-01", Rights::READ),
        ],
        attributes: b"layout=mirror".to_vec(),
    });
    table.regions.push(RegionEntry {
        id: RegionId([0x5a; 16]),
        name: RegionName::new("log").expect("a name"),
        mode: Mode::Append,
        state: RegionState::Erasing,
        need: Need::VolatileAllowed,
        sets_kept: 0,
        base: VirtualAddress(1 << 24),
        length_bytes: 1 << 16,
        capacity_bytes: 0,
        epoch: Epoch(0),
        created_seconds: 1_763_691_238,
        extents: vec![Extent {
            offset: PoolOffset(data + (1 << 23)),
            length_bytes: 1 << 16,
        }],
        grants: Vec::new(),
        attributes: Vec::new(),
    });
    table
}

pub(crate) fn table_image() -> Vec<u8> {
    let table = table();
    let mut image = vec![0; table.encoded_length_bytes()];
    table
        .encode(&superblock(), &mut image)
        .expect("a valid table");
    image
}

pub(crate) fn set_geometry() -> SetGeometry {
    SetGeometry::new(1 << 22, 1 << 20, 2).expect("three slots")
}

pub(crate) fn chunk_table() -> Vec<u8> {
    let mut table = vec![0; 24];
    for index in 0..3 {
        assert!(put_chunk_checksum(
            &mut table,
            index,
            crc64_nvme(&[index as u8; 100])
        ));
    }
    table
}

pub(crate) fn set_header() -> SetHeader {
    SetHeader {
        number: SetNumber(4711),
        epoch: Epoch(5),
        payload_bytes: 600_000,
        chunk_table_checksum: crc64_nvme(&chunk_table()),
        committed_nanoseconds: 1_763_691_237_123_456_789,
        label: Label::new("step 123").expect("a label"),
    }
}

pub(crate) fn record() -> RecordHeader {
    RecordHeader {
        continues: true,
        position: LogPosition(1_000_008),
        sequence: 42,
        epoch: Epoch(6),
        payload_bytes: 11,
        payload_checksum: record_payload_checksum(&REGION, b"hello world"),
    }
}

/// Bytes as lines of 32 hexadecimal digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| {
        line.iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    bytes.chunks(16).map(|chunk| line(chunk) + "\n").collect()
}

pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("hexadecimal digits") as u8;
    digits
        .chunks(2)
        .map(|pair| (digit(pair[0]) << 4) | digit(pair[1]))
        .collect()
}
