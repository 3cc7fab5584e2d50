//! What fuzzers call: each function takes any bytes, decodes them as one structure, and asserts
//! that what a decoder accepts is encoded back to the same bytes. Nothing here is an API.

use crate::{
    CursorPair, LogGeometry, LogPosition, LogPublishWords, Medium, Membership, PoolId,
    RECORD_SHARE_BYTES, RecordHeader, RecordShare, RegionId, RegionTable, SET_HEADER_BYTES,
    SHARE_TRAILER_BYTES, SNAPSHOT_HEADER_BYTES, SetGeometry, SetHeader, SetNumber, ShareTrailer,
    SlotIndex, SnapshotHeader, SnapshotKind, Superblock, Term, TermRecord, choose_superblock,
    choose_table,
};

/// The pool that fuzzed tables belong to.
#[must_use]
pub fn superblock_of_tables() -> Option<Superblock> {
    Superblock::new(
        PoolId(*b"a pool to fuzz.."),
        1 << 32,
        1 << 18,
        1,
        Medium::Memory,
    )
    .ok()
}

/// The region that fuzzed sets and records belong to.
pub const REGION: RegionId = RegionId(*b"a region to fuzz");

/// A superblock, alone and as one of two copies.
pub fn superblock(data: &[u8]) {
    if let Ok(found) = Superblock::decode(data) {
        assert_eq!(Superblock::decode(&found.encode()), Ok(found));
    }
    let (copy_a, copy_b) = data.split_at(data.len() / 2);
    let _ = choose_superblock(copy_a, copy_b);
}

/// A region table, alone and as one of two copies.
pub fn table(data: &[u8]) {
    let Some(superblock) = superblock_of_tables() else {
        return;
    };
    if let Ok(found) = RegionTable::decode(&superblock, data) {
        let mut image = vec![0_u8; found.encoded_length_bytes()];
        assert_eq!(found.encode(&superblock, &mut image), Ok(image.len()));
        assert_eq!(image[..], data[..image.len()]);
    }
    let (copy_a, copy_b) = data.split_at(data.len() / 2);
    let _ = choose_table(&superblock, copy_a, copy_b);
}

/// What a member of a spread region knows of the others, and the headers of its shares of sets and records.
pub fn spread(data: &[u8]) {
    if let Ok(found) = Membership::decode(data) {
        assert_eq!(found.encode().as_deref(), Ok(data));
    }
    if let Ok(found) = TermRecord::decode(data) {
        assert_eq!(TermRecord::decode(&found.encode()), Ok(found));
    }
    if let Ok(found) = ShareTrailer::decode(data) {
        assert_eq!(found.encode()[..], data[..SHARE_TRAILER_BYTES]);
    }
    if let Ok(found) = RecordShare::decode(data, data.len() as u64) {
        assert_eq!(found.encode()[..], data[..RECORD_SHARE_BYTES]);
        assert_eq!(
            RECORD_SHARE_BYTES as u64 + found.shard_bytes(),
            data.len() as u64
        );
    }
}

/// A set header, and behind it its chunk table.
pub fn set_header(data: &[u8]) {
    let Ok(geometry) = SetGeometry::new(1 << 22, 1 << 20, 2) else {
        return;
    };
    for slot in (0..geometry.slot_count()).map(SlotIndex) {
        if let Ok(found) = SetHeader::decode(data, &REGION, &geometry, slot) {
            assert_eq!(found.encode(&REGION)[..], data[..SET_HEADER_BYTES]);
            let _ = found.verify_chunk_table(&data[SET_HEADER_BYTES..]);
        }
    }
}

/// The header of a snapshot in the payload that it names, its table, and a label.
pub fn snapshot(data: &[u8]) {
    if let Ok(text) = core::str::from_utf8(data)
        && let Some((kind, covered)) = SnapshotKind::of_label(text)
        && let Some(label) = kind.label(covered)
    {
        assert_eq!(label.to_string(), text);
    }
    let (runs, pages) = (
        crate::bytes::u64_at(data, 88),
        crate::bytes::u64_at(data, 96),
    );
    let pages_bytes = pages.saturating_mul(crate::bytes::u32_at(data, 80).into());
    let table_end = runs
        .saturating_mul(8)
        .saturating_add(SNAPSHOT_HEADER_BYTES as u64);
    let named = crate::bytes::round_up(table_end, crate::PAGE_BYTES).unwrap_or(u64::MAX);
    if let Ok(found) = SnapshotHeader::decode(data, named.saturating_add(pages_bytes)) {
        assert_eq!(found.encode()[..], data[..SNAPSHOT_HEADER_BYTES]);
        let table = &data[SNAPSHOT_HEADER_BYTES..];
        if let Ok(runs) = found.decode_table(table) {
            let mut again = Vec::new();
            let checksum = crate::encode_snapshot_table(runs, &mut again);
            assert_eq!(
                (checksum, &again[..]),
                (found.table_checksum, &table[..again.len()])
            );
        }
    }
}

/// A division into slots, from three numbers.
pub fn set_geometry(data: &[u8]) {
    let number = |offset| crate::bytes::u64_at(data, offset);
    let (region_bytes, capacity_bytes) = (number(0), number(8));
    let sets_kept = crate::bytes::u32_at(data, 16);
    if let Ok(geometry) = SetGeometry::new(region_bytes, capacity_bytes, sets_kept) {
        let last = SlotIndex(geometry.slot_count() - 1);
        assert!(geometry.payload_offset(last).get() + capacity_bytes <= region_bytes);
    }
    if let Ok(capacity_bytes) = SetGeometry::capacity_max_bytes(region_bytes, sets_kept) {
        assert!(SetGeometry::new(region_bytes, capacity_bytes, sets_kept).is_ok());
        let more = capacity_bytes + crate::PAGE_BYTES;
        assert!(SetGeometry::new(region_bytes, more, sets_kept).is_err());
    }
}

/// A record header at the position that it names, and at another.
pub fn record(data: &[u8]) {
    let Ok(geometry) = LogGeometry::new(1 << 16) else {
        return;
    };
    let named = LogPosition(crate::bytes::u64_at(data, 8));
    if let Ok(found) = RecordHeader::decode(data, named, &geometry) {
        assert_eq!(found.encode()[..], data[..found.encode().len()]);
        assert_eq!(
            geometry.pieces(named, found.record_bytes()).length_bytes(),
            found.record_bytes()
        );
    }
    let other = LogPosition(named.get().wrapping_add(8));
    assert!(RecordHeader::decode(data, other, &geometry).is_err());
}

/// The words of a log's pages.
pub fn log_words(data: &[u8]) {
    let _ = LogPublishWords::decode(data);
    if let Some(word) = data.first_chunk().map(|word| u64::from_le_bytes(*word)) {
        let set = SetNumber::of_publish_word(word).map(SetNumber::publish_word);
        let term = Term::of_term_word(word).map(Term::term_word);
        let tail = LogPosition::of_tail_word(word).map(LogPosition::tail_word);
        for again in [set, term, tail].into_iter().flatten() {
            assert_eq!(again, word);
        }
    }
    if let Ok(pair) = CursorPair::decode(data) {
        assert!(pair.agreed().is_none() || pair.agreed() == pair.cursor_word());
    }
}

/// Makes the checksums of a structure right again, so that mutations reach what stands behind them.
/// Which structure it is says its magic number; anything else is taken for a record header.
pub fn repair(data: &mut [u8]) {
    let body_bytes = crate::bytes::u64_at(data, 24);
    let body_end = body_bytes.checked_add(crate::TABLE_HEADER_BYTES as u64);
    let body = body_end
        .and_then(|end| usize::try_from(end).ok())
        .and_then(|end| data.get(crate::TABLE_HEADER_BYTES..end));
    let is_table = data.starts_with(&crate::TABLE_MAGIC.to_le_bytes());
    if let Some(checksum) = body.filter(|_| is_table).map(crate::crc64_nvme) {
        replace(data, 32, &checksum.to_le_bytes());
    }
    if data.starts_with(b"PMUSNAP1") {
        let runs_bytes = crate::bytes::u64_at(data, 88).saturating_mul(8);
        let end = usize::try_from(runs_bytes).unwrap_or(usize::MAX);
        let table = data.get(SNAPSHOT_HEADER_BYTES..SNAPSHOT_HEADER_BYTES.saturating_add(end));
        if let Some(checksum) = table.map(crate::crc64_nvme) {
            replace(data, 104, &checksum.to_le_bytes());
        }
    }
    let header_bytes = match data.get(..8) {
        Some(b"PMUTABL1") => crate::TABLE_HEADER_BYTES,
        Some(b"PMUPOOL1" | b"PMUSET01" | b"PMUSNAP1") => SET_HEADER_BYTES,
        _ => {
            let checksum = data
                .get(4..crate::RECORD_HEADER_BYTES)
                .map_or(0, crate::crc32c);
            return replace(data, 0, &checksum.to_le_bytes());
        }
    };
    let header = data.get(..header_bytes);
    if let Some(checksum) = header.and_then(|header| crate::checksum::crc32c_around(header, 12)) {
        replace(data, 12, &checksum.to_le_bytes());
    }
}

fn replace(data: &mut [u8], offset: usize, value: &[u8]) {
    if let Some(room) = data.get_mut(offset..offset + value.len()) {
        room.copy_from_slice(value);
    }
}

/// Calls `entry` with the bytes as they are and with their checksums made right.
pub fn both_ways(data: &[u8], entry: fn(&[u8])) {
    entry(data);
    let mut repaired = data.to_vec();
    repair(&mut repaired);
    entry(&repaired);
}
