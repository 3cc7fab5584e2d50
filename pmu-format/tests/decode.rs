//! Nothing that is decoded panics or is believed without reason: properties, and a mutator that
//! works on the golden images for `PMU_FUZZ_SECONDS` (3 unless set) from `PMU_FUZZ_SEED`.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod common;

use std::time::{Duration, Instant};

use common::*;
use pmu_format::*;
use proptest::prelude::*;

type Entry = (&'static str, fn(&[u8]));

const ENTRIES: [Entry; 7] = [
    ("superblock", fuzz_entry::superblock),
    ("table", fuzz_entry::table),
    ("set_header", fuzz_entry::set_header),
    ("set_geometry", fuzz_entry::set_geometry),
    ("record", fuzz_entry::record),
    ("log_words", fuzz_entry::log_words),
    ("snapshot", fuzz_entry::snapshot),
];

/// What mutations begin with.
fn images() -> Vec<Vec<u8>> {
    let mut set = set_header().encode(&REGION).to_vec();
    set.extend_from_slice(&chunk_table());
    let mut record = record().encode().to_vec();
    record.extend_from_slice(b"hello world\0\0\0\0\0");
    vec![
        superblock().encode().to_vec(),
        table_image(),
        set,
        record,
        snapshot_image(),
        vec![0; 72],
        [1_u64 << 22, 1 << 20, 2]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect(),
    ]
}

/// A small generator (SplitMix64), so that a seed means the same everywhere and for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    if let Some(room) = bytes.get_mut(offset..offset + value.len()) {
        room.copy_from_slice(value);
    }
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let odd = [
            0,
            1,
            7,
            8,
            63,
            64,
            0xffff,
            0x1_0000,
            u64::MAX,
            1 << 63,
            u64::from(u32::MAX),
        ];
        match random.below(7) {
            0 => put(bytes, at, &[random.next() as u8]),
            1 => put(bytes, at & !7, &odd[random.below(odd.len())].to_le_bytes()),
            2 => put(
                bytes,
                at & !3,
                &(odd[random.below(odd.len())] as u32).to_le_bytes(),
            ),
            3 => bytes.truncate(at),
            4 => bytes.extend_from_within(at..),
            5 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            _ => put(
                bytes,
                at & !7,
                &(random.next() >> random.below(64)).to_le_bytes(),
            ),
        }
        bytes.truncate(16_384);
    }
}

#[test]
fn mutated_images_never_panic() {
    let number = |name: &str, otherwise: u64| match std::env::var(name) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => otherwise,
    };
    let seed = number("PMU_FUZZ_SEED", 0x5eed_0001);
    let seconds = number("PMU_FUZZ_SECONDS", 3);
    println!("PMU_FUZZ_SEED={seed} PMU_FUZZ_SECONDS={seconds}");
    let (mut random, images) = (Random(seed), images());
    let (begin, mut runs) = (Instant::now(), 0_u64);
    while begin.elapsed() < Duration::from_secs(seconds) {
        let mut bytes = images[random.below(images.len())].clone();
        mutate(&mut bytes, &mut random);
        if !random.next().is_multiple_of(4) {
            fuzz_entry::repair(&mut bytes);
        }
        for (name, entry) in ENTRIES {
            let caught = std::panic::catch_unwind(|| entry(&bytes));
            assert!(
                caught.is_ok(),
                "{name}, run {runs}, seed {seed}:\n{}",
                to_hex(&bytes)
            );
        }
        runs += 1;
    }
    println!("{runs} runs");
    assert!(runs > 0);
}

#[test]
fn every_image_cut_anywhere_is_refused() {
    for (image, (name, _)) in images().iter().zip(ENTRIES).take(2) {
        let whole = image.len();
        for length in 0..whole {
            let cut = &image[..length];
            assert!(Superblock::decode(cut).is_err(), "{name} cut to {length}");
            assert!(
                RegionTable::decode(&superblock(), cut).is_err(),
                "{name} cut to {length}"
            );
        }
    }
}

fn any_name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
}

prop_compose! {
    fn region(index: u64)(
        name in any_name(),
        append in any::<bool>(),
        erasing in any::<bool>(),
        durable in any::<bool>(),
        sets_kept in 1_u32..5,
        cuts in prop::collection::vec(1_u64..4, 1..6),
        numbers in any::<[u64; 2]>(),
        grants in prop::collection::btree_map(any_name(), 1_u32..32, 0..4),
        attributes in prop::collection::vec(any::<u8>(), 0..100),
    ) -> RegionEntry {
        let data = superblock().data_offset().get() + index * (1 << 24);
        let mut offset = data;
        let extents: Vec<Extent> = cuts.iter().map(|granules| {
            let extent =
                Extent { offset: PoolOffset(offset), length_bytes: granules * GRANULE_BYTES };
            offset += 2 * extent.length_bytes;
            extent
        }).rev().collect();
        let length_bytes = extents.iter().map(|extent| extent.length_bytes).sum();
        let capacity = SetGeometry::capacity_max_bytes(length_bytes, sets_kept);
        let mode = match (append, capacity.is_ok()) {
            (false, true) => Mode::Overwrite,
            _ => Mode::Append,
        };
        RegionEntry {
            id: RegionId([index as u8; 16]),
            name: RegionName::new(&format!("{index}{}", &name[..name.len().min(60)])).unwrap(),
            mode,
            state: if erasing { RegionState::Erasing } else { RegionState::Active },
            need: if durable { Need::Durable } else { Need::VolatileAllowed },
            sets_kept: if mode == Mode::Append { 0 } else { sets_kept },
            base: VirtualAddress((index + 1) << 24),
            length_bytes,
            capacity_bytes: if mode == Mode::Append { 0 } else { capacity.unwrap_or(0) },
            epoch: Epoch(numbers[0]),
            created_seconds: numbers[1],
            extents,
            grants: grants.into_iter().map(|(name, rights)| Grant {
                principal: PrincipalName::new(&name).unwrap(),
                rights: Rights::from_bits(rights).unwrap(),
            }).collect(),
            attributes,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        for (_, entry) in ENTRIES {
            entry(&bytes);
        }
        for image in images() {
            let mut mixed = bytes.clone();
            put(&mut mixed, 0, &image[..16.min(image.len())]);
            fuzz_entry::repair(&mut mixed);
            for (_, entry) in ENTRIES {
                entry(&mixed);
            }
        }
    }

    #[test]
    fn superblocks_come_back(
        id in any::<[u8; 16]>(), pages in 16_u64..=4096, more in any::<u32>(),
        created in any::<u64>(), medium in 1_u32..=5,
    ) {
        let length = (64 << 20) + u64::from(more);
        let medium = Medium::from_number(medium).unwrap();
        let superblock =
            Superblock::new(PoolId(id), length, pages * 4096, created, medium).unwrap();
        prop_assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock.clone()));
        prop_assert!(superblock.data_end() >= superblock.data_offset());
    }

    #[test]
    fn tables_come_back(
        generation in 1_u64.., first in region(0), second in region(1), third in region(2),
    ) {
        let mut table = RegionTable::empty(superblock().pool_id(), VirtualAddress(1 << 40));
        table.generation = generation;
        table.regions = vec![first, second, third];
        let mut image = vec![0xee; 1 << 18];
        let length = table.encode(&superblock(), &mut image).unwrap();
        prop_assert_eq!(length, table.encoded_length_bytes());
        prop_assert_eq!(RegionTable::decode(&superblock(), &image), Ok(table.clone()));
        for region in &table.regions {
            let pieces: Vec<Extent> =
                region.translate(RegionOffset(0), region.length_bytes).collect();
            prop_assert_eq!(&pieces, &region.extents);
        }
    }

    #[test]
    fn set_headers_come_back(
        number in 1_u64.., epoch in any::<u64>(), payload in 0_u64..=1 << 20,
        checksum in any::<u64>(), time in any::<u64>(), label in any::<[u8; 32]>(),
        region in any::<[u8; 16]>(),
    ) {
        let header = SetHeader {
            number: SetNumber(number), epoch: Epoch(epoch), payload_bytes: payload,
            chunk_table_checksum: checksum, committed_nanoseconds: time,
            label: Label::from_bytes(label),
        };
        let slot = set_geometry().slot_of(header.number);
        let bytes = header.encode(&RegionId(region));
        let found = SetHeader::decode(&bytes, &RegionId(region), &set_geometry(), slot);
        prop_assert_eq!(found, Ok(header));
    }

    #[test]
    fn records_come_back(
        continues in any::<bool>(), position in 0_u64..1 << 60, sequence in 1_u64..,
        epoch in any::<u64>(), payload in 1_u32..57_000, checksum in any::<u64>(),
    ) {
        let header = RecordHeader {
            continues, position: LogPosition(position), sequence, epoch: Epoch(epoch),
            payload_bytes: payload, payload_checksum: checksum,
        };
        let geometry = LogGeometry::new(1 << 16).unwrap();
        let found = RecordHeader::decode(&header.encode(), LogPosition(position), &geometry);
        prop_assert_eq!(found, Ok(header));
        let pieces = geometry.pieces(LogPosition(position & !7), header.record_bytes());
        prop_assert_eq!(pieces.length_bytes(), header.record_bytes());
        for piece in pieces.iter() {
            prop_assert!(piece.offset >= LOG_RING_OFFSET);
            prop_assert!(piece.offset.get() + piece.length_bytes <= 1 << 16);
        }
    }

    #[test]
    fn capacities_are_the_largest_that_fit(region in 0_u64..1 << 50, sets_kept in 1_u32..=1024) {
        if let Ok(capacity) = SetGeometry::capacity_max_bytes(region, sets_kept) {
            prop_assert!(SetGeometry::new(region, capacity, sets_kept).is_ok());
            prop_assert!(SetGeometry::new(region, capacity + 1, sets_kept).is_err());
        } else {
            prop_assert!(SetGeometry::new(region, 1, sets_kept).is_err());
        }
    }

    #[test]
    fn names_are_parsed_or_quoted(text in any::<String>()) {
        match RegionName::new(&text) {
            Ok(name) => prop_assert_eq!(name.as_str(), text),
            Err(error) => prop_assert!(error.to_string().bytes().all(|byte| (32..127).contains(&byte))),
        }
    }

    #[test]
    fn digests_do_not_depend_on_the_cut(bytes in prop::collection::vec(any::<u8>(), 0..3000), cut in 0_usize..3000) {
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        let mut digest = Digest::new();
        digest.update(first);
        digest.update(second);
        prop_assert_eq!(digest.finish(), crc64_nvme(&bytes));
    }
}
