//! Redundancy and reconstruction: against a textbook, against known bytes, against another
//! implementation, and every kernel against every other.

#![allow(clippy::unwrap_used)]

use pmu_stripe::{
    Code, GroupIndex, Kernel, KernelName, Layout, Placement, Reconstruct, ReconstructError,
    ShapeError, ShardIndex, ShardSet, VerifyError,
};
use proptest::prelude::*;
use reed_solomon_erasure::galois_8;

fn layout(text: &str) -> Layout {
    text.parse().unwrap()
}

/// Bytes that look random: Numerical Recipes' linear congruential generator, upper byte.
struct Bytes(u32);

impl Bytes {
    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (self.0 >> 24) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn shards(&mut self, count: usize, len: usize) -> Vec<Vec<u8>> {
        (0..count).map(|_| self.take(len)).collect()
    }
}

fn slices(shards: &[Vec<u8>]) -> Vec<&[u8]> {
    shards.iter().map(Vec::as_slice).collect()
}

fn slices_mut(shards: &mut [Vec<u8>]) -> Vec<&mut [u8]> {
    shards.iter_mut().map(Vec::as_mut_slice).collect()
}

fn encoded(code: &Code, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let len = data.iter().map(Vec::len).max().unwrap();
    let mut redundant = vec![vec![0xa5; len]; code.layout().redundant_shards()];
    code.encode(&slices(data), &mut slices_mut(&mut redundant))
        .unwrap();
    redundant
}

/// Loses what isn't present, and returns what was lost and is computed again.
fn recovered(code: &Code, shards: &[Vec<u8>], present: ShardSet) -> Vec<(ShardIndex, Vec<u8>)> {
    let plan = Reconstruct::new(code, present).unwrap();
    let sources: Vec<&[u8]> = plan
        .sources()
        .iter()
        .map(|shard| &shards[shard.0][..])
        .collect();
    let lens = plan.targets().iter().map(|shard| shards[shard.0].len());
    let mut targets: Vec<Vec<u8>> = lens.map(|len| vec![0xa5; len]).collect();
    plan.apply(&sources, &mut slices_mut(&mut targets)).unwrap();
    plan.targets().iter().zip(targets).collect()
}

fn assert_recovers(code: &Code, shards: &[Vec<u8>], present: ShardSet) {
    for (shard, bytes) in recovered(code, shards, present) {
        assert!(
            bytes == shards[shard.0],
            "{} shard {shard}, present {present}",
            code.layout()
        );
    }
}

/// All subsets of `count` shards with `len` of them.
fn subsets(count: usize, len: usize) -> impl Iterator<Item = ShardSet> {
    (0u32..1 << count)
        .filter(move |bits| bits.count_ones() as usize == len)
        .map(move |bits| {
            (0..count)
                .filter(|shard| (bits >> shard) & 1 == 1)
                .map(ShardIndex)
                .collect()
        })
}

#[test]
fn b04_parity_bytes_are_those_of_isa_l() {
    // Made with ISA-L 2.30: gf_gen_cauchy1_matrix, ec_init_tables, ec_encode_data, over shards of
    // 16 bytes from the generator above, seed 1.
    let golden: [(&str, &[u128]); 3] = [
        (
            "erasure:4+2",
            &[
                0x3705611eae3cd6634ead3da750c09a5c,
                0xde133ac78400b2da2a8be0b4c596df56,
            ],
        ),
        (
            "erasure:10+4",
            &[
                0x3eaf2d47e4b4736ba0079f4d9a73e245,
                0xd0751c82b20e490bae171451881ca652,
                0x79e18b446dcc0bbeafced5bf6abd418b,
                0x1994100336beaa867dc3667bc97a084f,
            ],
        ),
        (
            "erasure:28+4",
            &[
                0xef41580198dc71c6493f27b4ecfd7aad,
                0x9b7b467754256396bcfac6fc8448712c,
                0x3d3e7f11b918b048a3f776de5f14270f,
                0xe84f2814dec9b2e9ae2202698a19863b,
            ],
        ),
    ];
    for (text, expected) in golden {
        let layout = layout(text);
        let data = Bytes(1).shards(layout.data_shards(), 16);
        for kernel in Kernel::available() {
            let redundant = encoded(&Code::with_kernel(layout, kernel), &data);
            let expected: Vec<_> = expected.iter().map(|value| value.to_be_bytes()).collect();
            assert_eq!(redundant, expected, "{text} with {}", kernel.name());
        }
    }
}

/// One product, bit by bit: the schoolbook's multiplication and division of polynomials.
fn textbook_product(left: u8, right: u8) -> u8 {
    let mut product = 0u16;
    for bit in 0..8 {
        product ^= (u16::from(left) << bit) * u16::from((right >> bit) & 1);
    }
    for bit in (8..16).rev() {
        if product >> bit & 1 == 1 {
            product ^= 0x11d << (bit - 8);
        }
    }
    product as u8
}

fn textbook_redundancy(layout: Layout, data: &[Vec<u8>], len: usize) -> Vec<Vec<u8>> {
    let inverse = |value| {
        (1..=255)
            .find(|other| textbook_product(value, *other) == 1)
            .unwrap()
    };
    let at = |shard: &Vec<u8>, offset| shard.get(offset).copied().unwrap_or(0);
    (layout.data_shards()..layout.units())
        .map(|row| {
            let coefficients: Vec<u8> = (0..data.len())
                .map(|column| inverse((row ^ column) as u8))
                .collect();
            let sum = |offset| {
                data.iter()
                    .zip(&coefficients)
                    .fold(0, |sum, (shard, coefficient)| {
                        sum ^ textbook_product(*coefficient, at(shard, offset))
                    })
            };
            (0..len).map(sum).collect()
        })
        .collect()
}

#[test]
fn b04_every_code_is_that_of_the_textbook() {
    for units in 2..=32 {
        for data_shards in 1..units {
            let layout = Layout::erasure(data_shards, units - data_shards).unwrap();
            let data = Bytes(units as u32).shards(data_shards, 3);
            let redundant = encoded(&Code::new(layout), &data);
            assert_eq!(redundant, textbook_redundancy(layout, &data, 3), "{layout}");
        }
    }
}

#[test]
fn b04_parity_is_what_the_arithmetic_of_reed_solomon_erasure_gives() {
    let layout = layout("erasure:7+5");
    let data = Bytes(3).shards(7, 999);
    let mut expected = vec![vec![0; 999]; 5];
    for (row, expected) in expected.iter_mut().enumerate() {
        for (column, shard) in data.iter().enumerate() {
            let coefficient = galois_8::div(1, (row + 7) as u8 ^ column as u8);
            for (sum, byte) in expected.iter_mut().zip(shard) {
                *sum = galois_8::add(*sum, galois_8::mul(coefficient, *byte));
            }
        }
    }
    for kernel in Kernel::available() {
        assert_eq!(encoded(&Code::with_kernel(layout, kernel), &data), expected);
    }
}

#[test]
fn b04_what_reed_solomon_erasure_recovers_is_recovered() {
    // Its matrix is another one, so its parity differs; what is recovered mustn't.
    for (data_shards, redundant_shards) in [(1, 1), (4, 2), (10, 4), (5, 5)] {
        let layout = Layout::erasure(data_shards, redundant_shards).unwrap();
        let data = Bytes(9).shards(data_shards, 333);
        let mut ours = data.clone();
        ours.extend(encoded(&Code::new(layout), &data));
        let oracle = galois_8::ReedSolomon::new(data_shards, redundant_shards).unwrap();
        let mut theirs = data.clone();
        theirs.resize(layout.units(), vec![0; 333]);
        oracle.encode(&mut theirs).unwrap();
        for present in subsets(layout.units(), data_shards).step_by(7) {
            let mut left: Vec<Option<Vec<u8>>> = (0..layout.units())
                .map(|shard| {
                    present
                        .contains(ShardIndex(shard))
                        .then(|| theirs[shard].clone())
                })
                .collect();
            oracle.reconstruct_data(&mut left).unwrap();
            for (shard, bytes) in recovered(&Code::new(layout), &ours, present) {
                if shard.0 < data_shards {
                    assert_eq!(Some(&bytes), left[shard.0].as_ref());
                }
            }
        }
    }
}

#[test]
fn b04_shards_longer_than_what_is_computed_at_a_time_are_those_of_their_parts() {
    for text in [
        "parity:9+1",
        "mirror:6",
        "erasure:4+2",
        "erasure:10+4",
        "erasure:9+7",
    ] {
        let layout = layout(text);
        let len = 50_001;
        let mut data = Bytes(11).shards(layout.data_shards(), len);
        if data.len() > 6 {
            data[6].truncate(20_000);
            data[8].truncate(0);
        }
        let part = |shard: &Vec<u8>, start: usize| {
            shard[start.min(shard.len())..shard.len().min(start + 1000)].to_vec()
        };
        let mut expected = vec![vec![]; layout.redundant_shards()];
        let reference = Code::with_kernel(layout, Kernel::named(KernelName::Portable).unwrap());
        for start in (0..len).step_by(1000) {
            let data: Vec<Vec<u8>> = data.iter().map(|shard| part(shard, start)).collect();
            for (whole, part) in expected.iter_mut().zip(encoded(&reference, &data)) {
                whole.extend(part);
            }
        }
        for kernel in Kernel::available() {
            let code = Code::with_kernel(layout, kernel);
            let redundant = encoded(&code, &data);
            assert!(redundant == expected, "{text} with {}", kernel.name());
            let shards = [data.clone(), redundant].concat();
            let lost = layout.tolerated_losses();
            assert_recovers(&code, &shards, code.shards().without(ShardSet::first(lost)));
        }
    }
}

#[test]
fn d04_parity_is_the_exclusive_or_of_the_group() {
    let data = Bytes(4).shards(3, 1000);
    let expected: Vec<u8> = (0..1000)
        .map(|offset| data[0][offset] ^ data[1][offset] ^ data[2][offset])
        .collect();
    for kernel in Kernel::available() {
        let code = Code::with_kernel(layout("parity:3+1"), kernel);
        assert_eq!(encoded(&code, &data), [&expected[..]]);
    }
}

#[test]
fn d06_redundant_shards_of_a_mirror_are_copies() {
    let data = Bytes(5).shards(1, 777);
    for kernel in Kernel::available() {
        let code = Code::with_kernel(layout("mirror:7"), kernel);
        assert_eq!(encoded(&code, &data), vec![data[0].clone(); 6]);
    }
}

#[test]
fn d03_single_and_stripe_have_nothing_to_compute_and_nothing_to_recover_from() {
    for text in ["single", "stripe:5"] {
        let code = Code::new(layout(text));
        let shards = Bytes(6).shards(code.layout().units(), 100);
        code.encode(&slices(&shards), &mut []).unwrap();
        code.verify(&slices(&shards), &[]).unwrap();
        let all = code.shards();
        assert!(Reconstruct::new(&code, all).unwrap().targets().is_empty());
        let lost = all.without(ShardSet::first(1));
        assert!(Reconstruct::new(&code, lost).is_err());
    }
}

#[test]
fn b04_any_losses_that_a_small_layout_tolerates_are_recovered() {
    for text in [
        "mirror:2",
        "mirror:4",
        "parity:1+1",
        "parity:3+1",
        "parity:7+1",
        "erasure:1+3",
    ]
    .into_iter()
    .chain([
        "erasure:2+2",
        "erasure:4+2",
        "erasure:3+5",
        "erasure:6+3",
        "erasure:10+4",
    ]) {
        let code = Code::new(layout(text));
        let (units, needed) = (code.layout().units(), code.layout().units_to_read());
        let mut shards = Bytes(7).shards(needed, 65);
        shards.extend(encoded(&code, &shards));
        for present in (needed..=units).flat_map(|len| subsets(units, len)) {
            assert_recovers(&code, &shards, present);
        }
    }
}

#[test]
fn b04_every_loss_of_a_whole_half_of_thirty_two_is_recovered() {
    let code = Code::new(layout("erasure:16+16"));
    let mut shards = Bytes(8).shards(16, 130);
    shards.extend(encoded(&code, &shards));
    for shift in 0..32 {
        let present = (0..16)
            .map(|shard| ShardIndex((shard + shift) % 32))
            .collect();
        assert_recovers(&code, &shards, present);
    }
}

#[test]
fn b04_more_losses_than_tolerated_are_an_error_that_says_how_many_are_missing() {
    for text in ["mirror:3", "parity:4+1", "erasure:4+2", "erasure:28+4"] {
        let code = Code::new(layout(text));
        let missing: ShardSet = (0..=code.layout().tolerated_losses())
            .map(ShardIndex)
            .collect();
        let expected = ReconstructError::TooManyMissing {
            missing,
            tolerated: code.layout().tolerated_losses(),
            present: code.layout().data_shards() - 1,
            needed: code.layout().data_shards(),
        };
        let error = Reconstruct::new(&code, code.shards().without(missing)).unwrap_err();
        assert_eq!(error, expected);
    }
    let code = Code::new(layout("erasure:4+2"));
    let error = Reconstruct::new(&code, ShardSet::first(3)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "3 shards are missing (3, 4, 5), the layout tolerates 2: 3 present, 4 needed"
    );
    let error = Reconstruct::new(&code, ShardSet::first(7)).unwrap_err();
    assert_eq!(
        error,
        ReconstructError::NoSuchShard {
            shard: ShardIndex(6),
            shards: 6
        }
    );
    let error = Reconstruct::of(&code, ShardSet::first(5), ShardSet::first(1)).unwrap_err();
    assert_eq!(
        error,
        ReconstructError::NotMissing {
            shards: ShardSet::first(1)
        }
    );
}

#[test]
fn b04_shards_of_wrong_number_or_length_are_refused() {
    let code = Code::new(layout("erasure:2+2"));
    let (long, short): ([u8; 10], [u8; 9]) = ([1; 10], [1; 9]);
    let encode = |data: &[&[u8]], lens: &[usize]| {
        let mut redundant: Vec<Vec<u8>> = lens.iter().map(|len| vec![0; *len]).collect();
        code.encode(data, &mut slices_mut(&mut redundant))
            .unwrap_err()
    };
    assert_eq!(
        encode(&[&long], &[10, 10]),
        ShapeError::Count {
            expected: 2,
            given: 1
        }
    );
    assert_eq!(
        encode(&[&long, &long], &[10; 3]),
        ShapeError::Count {
            expected: 2,
            given: 3
        }
    );
    let error = encode(&[&long, &long], &[10, 9]);
    assert_eq!(error, ShapeError::LengthsDiffer { len: 10, other: 9 });
    let error = encode(&[&short, &long], &[9, 9]);
    assert_eq!(error, ShapeError::TooShort { len: 9, needed: 10 });

    let (mut first, mut second) = ([0; 10], [0; 10]);
    let mut redundant: [&mut [u8]; 2] = [&mut first, &mut second];
    let error = code
        .add(ShardIndex(2), 0, &long, &mut redundant)
        .unwrap_err();
    assert_eq!(
        error,
        ShapeError::NoSuchShard {
            shard: ShardIndex(2),
            shards: 2
        }
    );
    let error = code
        .add(ShardIndex(1), 1, &long, &mut redundant)
        .unwrap_err();
    assert_eq!(
        error,
        ShapeError::TooShort {
            len: 10,
            needed: 11
        }
    );
    let error = code
        .add(ShardIndex(1), usize::MAX, &long, &mut redundant)
        .unwrap_err();
    assert_eq!(
        error,
        ShapeError::TooShort {
            len: 10,
            needed: usize::MAX
        }
    );

    let plan = Reconstruct::new(&code, [0, 3].map(ShardIndex).into_iter().collect()).unwrap();
    let error = plan.apply(&[&long, &short], &mut redundant).unwrap_err();
    assert_eq!(error, ShapeError::TooShort { len: 9, needed: 10 });
    plan.apply(&[&short, &long], &mut redundant).unwrap();
    let error = plan
        .add(ShardIndex(1), 0, &long, &mut redundant)
        .unwrap_err();
    assert_eq!(
        error,
        ShapeError::NotASource {
            shard: ShardIndex(1),
            sources: plan.sources()
        }
    );
}

#[test]
fn b04_verify_finds_every_changed_byte() {
    let code = Code::new(layout("erasure:5+6"));
    let len = 5000;
    let mut data = Bytes(10).shards(5, len);
    data[4].truncate(2100);
    let mut redundant = encoded(&code, &data);
    code.verify(&slices(&data), &slices(&redundant)).unwrap();
    for shard in 0..6 {
        for offset in [0, 1, 2047, 2048, 4095, 4096, len - 1] {
            redundant[shard][offset] ^= 0x10;
            let error = code
                .verify(&slices(&data), &slices(&redundant))
                .unwrap_err();
            let shard_index = ShardIndex(5 + shard);
            assert_eq!(
                error,
                VerifyError::Mismatch {
                    shard: shard_index,
                    offset
                }
            );
            redundant[shard][offset] ^= 0x10;
        }
    }
    data[4][2099] ^= 1;
    let error = code
        .verify(&slices(&data), &slices(&redundant))
        .unwrap_err();
    assert_eq!(
        error,
        VerifyError::Mismatch {
            shard: ShardIndex(5),
            offset: 2099
        }
    );
}

#[test]
fn d04_empty_shards_are_encoded_and_recovered() {
    for text in ["mirror:2", "parity:3+1", "erasure:4+2"] {
        let code = Code::new(layout(text));
        let mut shards = vec![vec![]; code.layout().data_shards()];
        shards.extend(encoded(&code, &shards));
        code.verify(
            &slices(&shards[..code.layout().data_shards()]),
            &slices(&shards[code.layout().data_shards()..]),
        )
        .unwrap();
        assert_recovers(&code, &shards, code.shards().without(ShardSet::first(1)));
    }
}

#[test]
fn b04_the_kernels_of_this_processor_are_listed_and_the_best_is_taken() {
    let names: Vec<KernelName> = Kernel::available().map(Kernel::name).collect();
    println!(
        "kernels of this processor: {names:?}, untested here: {:?}",
        {
            let all = KernelName::ALL.into_iter();
            all.filter(|name| Kernel::named(*name).is_none())
                .collect::<Vec<_>>()
        }
    );
    assert_eq!(names.first(), Some(&KernelName::Portable));
    assert_eq!(names.last(), Some(&Kernel::best().name()));
    assert_eq!(Code::new(Layout::SINGLE).kernel(), Kernel::best());
}

fn any_redundant_layout() -> impl Strategy<Value = Layout> {
    prop_oneof![
        1 => (2usize..=32).prop_map(|units| Layout::mirror(units).unwrap()),
        1 => (1usize..=31).prop_map(|data| Layout::parity(data).unwrap()),
        6 => (1usize..=31, 1usize..=31).prop_filter_map("at most 32 units", |(data, redundant)| {
            Layout::erasure(data, redundant).ok()
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn b04_every_kernel_gives_the_same_bytes_at_any_length_and_alignment(
        layout in any_redundant_layout(), seed: u32, len in 0usize..700,
        lens in prop::collection::vec(0usize..700, 32), starts in prop::collection::vec(0usize..64, 32),
    ) {
        let backing = Bytes(seed).shards(layout.data_shards(), 800);
        let data: Vec<&[u8]> = backing
            .iter()
            .enumerate()
            .map(|(shard, bytes)| {
                let len = if lens[shard] % 2 == 0 { len } else { lens[shard].min(len) };
                &bytes[starts[shard]..starts[shard] + len]
            })
            .collect();
        let mut expected = None;
        for kernel in Kernel::available() {
            let code = Code::with_kernel(layout, kernel);
            let mut outputs = vec![vec![0x5a; 800]; layout.redundant_shards()];
            let mut redundant: Vec<&mut [u8]> = outputs
                .iter_mut()
                .enumerate()
                .map(|(row, output)| &mut output[starts[31 - row]..starts[31 - row] + len])
                .collect();
            code.encode(&data, &mut redundant).unwrap();
            // The whole buffers are compared: nothing is written beside the shards.
            let expected = expected.get_or_insert_with(|| outputs.clone());
            prop_assert!(&outputs == expected, "{}", kernel.name());
            let redundant: Vec<&[u8]> = outputs
                .iter()
                .enumerate()
                .map(|(row, output)| &output[starts[31 - row]..starts[31 - row] + len])
                .collect();
            prop_assert_eq!(code.verify(&data, &redundant), Ok(()));
            if len > 0 && layout.kind() == pmu_stripe::LayoutKind::Erasure {
                let data: Vec<Vec<u8>> = data.iter().map(|shard| shard.to_vec()).collect();
                let textbook = textbook_redundancy(layout, &data, len.min(5));
                for (row, textbook) in textbook.iter().enumerate() {
                    prop_assert_eq!(&redundant[row][..textbook.len()], &textbook[..]);
                }
            }
        }
    }

    #[test]
    fn b04_data_added_in_any_order_gives_the_parity_of_the_whole(
        layout in any_redundant_layout(), seed: u32, len in 1usize..500, piece_len in 1usize..200,
    ) {
        let data = Bytes(seed).shards(layout.data_shards(), len);
        for kernel in Kernel::available() {
            let code = Code::with_kernel(layout, kernel);
            let mut redundant = vec![vec![0; len]; layout.redundant_shards()];
            let mut pieces: Vec<(usize, usize)> = (0..layout.data_shards())
                .flat_map(|shard| (0..len).step_by(piece_len).map(move |offset| (shard, offset)))
                .collect();
            pieces.sort_by_key(|(shard, offset)| (shard ^ offset).wrapping_mul(seed as usize | 1));
            for (shard, offset) in pieces {
                let bytes = &data[shard][offset..len.min(offset + piece_len)];
                code.add(ShardIndex(shard), offset, bytes, &mut slices_mut(&mut redundant)).unwrap();
            }
            prop_assert_eq!(&redundant, &encoded(&code, &data));
            // A change of old bytes to new ones changes the redundancy as if encoded anew.
            let mut changed = data.clone();
            let shard = seed as usize % data.len();
            let (old, new) = (data[shard][len / 2], seed as u8);
            changed[shard][len / 2] = new;
            code.add(ShardIndex(shard), len / 2, &[old ^ new], &mut slices_mut(&mut redundant)).unwrap();
            prop_assert_eq!(redundant, encoded(&code, &changed));
        }
    }

    #[test]
    fn b04_random_losses_up_to_thirty_two_units_are_recovered_in_pieces_and_as_they_arrive(
        layout in any_redundant_layout(), seed: u32, len in 1usize..400,
        order in Just((0usize..32).collect::<Vec<_>>()).prop_shuffle(), at in 0usize..400,
    ) {
        let mut shards = Bytes(seed).shards(layout.data_shards(), len);
        // The end of a segment: a shorter last shard.
        shards[layout.data_shards() - 1].truncate(if layout.data_shards() > 1 { len / 2 } else { len });
        let code = Code::new(layout);
        shards.extend(encoded(&code, &shards));
        let present: ShardSet = order
            .into_iter()
            .filter(|shard| *shard < layout.units())
            .take(layout.data_shards())
            .map(ShardIndex)
            .collect();
        for kernel in Kernel::available() {
            let code = Code::with_kernel(layout, kernel);
            assert_recovers(&code, &shards, present);
            // The same from two pieces of each shard, added one after the other.
            let plan = Reconstruct::new(&code, present).unwrap();
            let mut targets: Vec<Vec<u8>> =
                plan.targets().iter().map(|shard| vec![0; shards[shard.0].len()]).collect();
            for source in plan.sources().iter() {
                let (first, second) = shards[source.0].split_at(at.min(shards[source.0].len()));
                plan.add(source, first.len(), second, &mut slices_mut(&mut targets)).unwrap();
                plan.add(source, 0, first, &mut slices_mut(&mut targets)).unwrap();
            }
            for (shard, target) in plan.targets().iter().zip(&targets) {
                prop_assert_eq!(target, &shards[shard.0]);
            }
        }
    }

    #[test]
    fn d02_a_segment_of_any_length_outlives_the_loss_of_as_many_units_as_its_layout_tolerates(
        layout in any_redundant_layout(), seed: u32, segment_len in 0usize..20_000,
        subsegment_len in prop_oneof![1usize..700, Just(64), Just(256)],
        order in Just((0usize..32).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let segment = Bytes(seed).take(segment_len);
        let placement = Placement::new(layout, segment_len as u64, subsegment_len as u64).unwrap();
        let code = Code::new(layout);
        let mut units = vec![vec![0; placement.unit_len_max() as usize]; layout.units()];
        for group in placement.groups() {
            let shards: Vec<_> = placement.shards(&group).collect();
            let data: Vec<Vec<u8>> = shards
                .iter()
                .filter(|shard| !shard.redundant)
                .map(|shard| segment[shard.segment.start as usize..shard.segment.end as usize].to_vec())
                .collect();
            for (shard, bytes) in shards.iter().zip(data.iter().chain(&encoded(&code, &data))) {
                let offset = shard.offset as usize;
                units[shard.unit.0][offset..offset + shard.len as usize].copy_from_slice(bytes);
            }
        }
        let lost: Vec<usize> = order
            .into_iter()
            .filter(|unit| *unit < layout.units())
            .take(layout.tolerated_losses())
            .collect();
        let mut read = vec![0; segment_len];
        for row in 0..placement.group_count() {
            let group = placement.group(GroupIndex(row)).unwrap();
            let shards: Vec<_> = placement.shards(&group).collect();
            let bytes: Vec<Vec<u8>> = shards
                .iter()
                .map(|shard| {
                    let offset = shard.offset as usize;
                    units[shard.unit.0][offset..offset + shard.len as usize].to_vec()
                })
                .collect();
            let present: ShardSet = shards
                .iter()
                .filter(|shard| !lost.contains(&shard.unit.0))
                .map(|shard| shard.shard)
                .collect();
            let computed = recovered(&code, &bytes, present);
            for shard in shards.iter().filter(|shard| !shard.redundant) {
                let found = computed.iter().find(|(computed, _)| *computed == shard.shard);
                let bytes = found.map_or(&bytes[shard.shard.0], |(_, bytes)| bytes);
                read[shard.segment.start as usize..shard.segment.end as usize].copy_from_slice(bytes);
            }
        }
        prop_assert!(read == segment);
    }
}
