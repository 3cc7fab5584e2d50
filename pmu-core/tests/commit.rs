//! Sets: commit, crash at every step, recovery. `PMU_SEED` and `PMU_SEEDS` choose other schedules.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod model;

use std::collections::BTreeMap;

use model::*;
use pmu_core::FeedError;
use pmu_core::commit::*;
use pmu_format::*;

const CAPACITY: u64 = 300_000;
const SETS_KEPT: u32 = 2;

fn geometry() -> SetGeometry {
    SetGeometry::new(1 << 20, CAPACITY, SETS_KEPT).unwrap()
}

fn label(number: SetNumber) -> Label {
    Label::new(&format!("set {number}")).unwrap()
}

/// Carries out a whole put: the client's part of a commit.
fn put(memory: &mut Memory, writer: &mut SetWriter, payload: &[u8]) -> Result<CommittedSet, Dead> {
    let number = SetNumber(writer.newest().get() + 1);
    let plan = writer.begin(payload.len() as u64, label(number)).unwrap();
    assert_eq!(plan.number, number);
    // Chunks may be written in any order.
    for index in (0..plan.chunk_count).rev() {
        let place = plan.chunk(index).unwrap();
        let range = place.payload_range.start as usize..place.payload_range.end as usize;
        memory.write(place.offset, &payload[range.clone()])?;
        writer
            .chunk_written(index, crc64_nvme(&payload[range]))
            .unwrap();
    }
    let plan = writer.finish(1_000 + number.get()).unwrap();
    let flush: Vec<RegionPiece> = plan.flush_ranges().collect();
    if !plan.table.is_empty() {
        memory.write(plan.table_offset, plan.table)?;
    }
    memory.write(plan.header_offset, &plan.header)?;
    for range in flush {
        memory.flush(range)?;
    }
    memory.write_word(plan.publish)?;
    memory.flush(plan.flush_publish)?;
    Ok(writer.committed().unwrap())
}

/// Recovers as a client would; gives the payload of the recovered set.
fn recover(memory: &Memory, goal: Goal) -> (SetRecovery, Vec<u8>) {
    let mut recovery = SetRecovery::new(geometry(), REGION, goal);
    let mut buffer = vec![0; CAPACITY as usize];
    while !recovery.is_done() {
        while let Some(request) = recovery.next_read() {
            recovery.feed(request, memory.read(request)).unwrap();
        }
        while let Some(chunk) = recovery.next_chunk() {
            let bytes = memory.read(chunk.request);
            let range = chunk.payload_range.start as usize..chunk.payload_range.end as usize;
            buffer[range].copy_from_slice(bytes);
            recovery.verify_chunk(&chunk, bytes).unwrap();
        }
    }
    let length = recovery.recovered().map_or(0, |set| set.payload_bytes);
    buffer.truncate(length as usize);
    (recovery, buffer)
}

fn open(memory: &mut Memory, opening: &SetOpening) -> Result<(), Dead> {
    for range in opening.flush {
        memory.flush(range)?;
    }
    if let Some(publish) = opening.publish {
        memory.write_word(publish)?;
    }
    memory.flush(opening.flush_publish)
}

/// Everything that was ever written under a number, and what was acknowledged.
#[derive(Default)]
struct Truth {
    written: BTreeMap<u64, Vec<Vec<u8>>>,
    acknowledged: u64,
}

impl Truth {
    fn check(&self, memory: &Memory, seed: u64) -> SetRecovery {
        let (recovery, payload) = recover(memory, Goal::Newest);
        let number = recovery.recovered().map_or(0, |set| set.number.get());
        assert!(
            number >= self.acknowledged,
            "seed {seed}: an acknowledged set is lost"
        );
        assert_eq!(recovery.findings(), [], "seed {seed}: a crash is no damage");
        if number > 0 {
            assert!(
                self.written[&number].contains(&payload),
                "seed {seed}: a mixture"
            );
            assert_eq!(
                recovery.recovered().unwrap().label,
                label(SetNumber(number))
            );
        }
        let oldest = self
            .acknowledged
            .saturating_sub(u64::from(SETS_KEPT) - 1)
            .max(1);
        for kept in oldest..=self.acknowledged {
            let (one, payload) = recover(memory, Goal::Number(SetNumber(kept)));
            assert!(
                one.recovered().is_some(),
                "seed {seed}: kept set {kept} is lost"
            );
            assert!(
                self.written[&kept].contains(&payload),
                "seed {seed}: a mixture"
            );
        }
        recovery
    }
}

fn payload(random: &mut Random) -> Vec<u8> {
    // Few long ones: the model keeps account of each word.
    let length = match random.below(16) {
        0 => 0,
        1 => CHUNK_BYTES,
        2 => CAPACITY - random.below(9),
        3..7 => 1 + random.below(20),
        _ => random.below(3_000),
    };
    random.bytes(length as usize)
}

/// Opens, and puts some sets, until it is done or dead.
fn primary(memory: &mut Memory, truth: &mut Truth, epoch: u64, sets: u64) -> Result<(), Dead> {
    let recovery = truth.check(memory, memory.random.0);
    let opening = recovery.opening().unwrap();
    open(memory, &opening)?;
    // From now on the adopted set is one that nobody may lose.
    truth.acknowledged = opening.newest.get();
    let mut writer = SetWriter::new(geometry(), REGION, Epoch(epoch), opening.newest);
    for _ in 0..sets {
        let payload = payload(&mut memory.random);
        let number = writer.newest().get() + 1;
        truth
            .written
            .entry(number)
            .or_default()
            .push(payload.clone());
        if memory.random.chance(4) {
            // A put that is given up before its end leaves nothing behind.
            let plan = writer
                .begin(payload.len() as u64, Label::default())
                .unwrap();
            if let Some(place) = plan.chunk(0) {
                let length = (place.payload_range.end - place.payload_range.start) as usize;
                let other = memory.random.bytes(length);
                memory.write(place.offset, &other)?;
            }
            assert_eq!(writer.abandon(), Abandoned::Clean);
        }
        let committed = put(memory, &mut writer, &payload)?;
        assert_eq!(
            (committed.number.get(), committed.epoch.get()),
            (number, epoch)
        );
        truth.acknowledged = number;
    }
    Ok(())
}

/// Two primaries die in a row, at the given steps; what a third one finds must be right.
fn schedule(seed: u64, failures: &[Option<(u64, Failure)>]) -> u64 {
    let mut memory = Memory::new(1 << 20, seed);
    let mut truth = Truth::default();
    let mut steps = 0;
    for (index, failure) in failures.iter().enumerate() {
        (memory.steps, memory.failure) = (0, *failure);
        let _ = primary(&mut memory, &mut truth, index as u64 + 1, 4);
        steps = memory.steps;
    }
    memory.failure = None;
    truth.check(&memory, seed);
    memory.lose_power(Failure::Power);
    truth.check(&memory, seed);
    steps
}

#[test]
fn p11_a_crash_at_every_step_loses_nothing_acknowledged_and_mixes_nothing() {
    let (first, seeds) = (number_from("PMU_SEED", 1), number_from("PMU_SEEDS", 1));
    for seed in first..first + seeds {
        println!("PMU_SEED={seed} PMU_SEEDS=1");
        let steps = schedule(seed, &[None]);
        assert!(steps > 15, "{steps} steps");
        for step in 0..steps {
            for failure in FAILURES {
                schedule(seed, &[Some((step, failure))]);
            }
        }
    }
}

/// What the next primary adopts was visible and perhaps not durable: from its opening on nobody may
/// lose it, wherever the power goes.
#[test]
fn p11_the_power_goes_while_the_next_primary_opens() {
    let (first, seeds) = (number_from("PMU_SEED", 1), number_from("PMU_SEEDS", 1));
    for seed in first..first + seeds {
        println!("PMU_SEED={seed} PMU_SEEDS=1");
        let steps = schedule(seed, &[None]);
        for died_at in 0..steps {
            for power_at in 0..8 {
                let power = FAILURES[1 + (died_at + power_at) as usize % 2];
                let failures = [(died_at, Failure::Client), (power_at, power)];
                // Another course of events before each of them.
                schedule(seed + (power_at << 32), &failures.map(Some));
            }
        }
    }
}

#[test]
fn p11_crashes_of_one_primary_after_the_other() {
    let (first, seeds) = (number_from("PMU_SEED", 1), number_from("PMU_SEEDS", 60));
    for seed in first..first + seeds {
        let mut random = Random(seed ^ 0xabcd);
        let failures: Vec<_> = (0..4)
            .map(|_| Some((random.below(40), FAILURES[random.below(4) as usize])))
            .collect();
        println!("PMU_SEED={seed} PMU_SEEDS=1 {failures:?}");
        schedule(seed, &failures);
    }
}

/// A region with sets 1 to 5 of 10,000 bytes, the slots of 4 and 5 and of the expired 3 in use.
fn five_sets() -> (Memory, Truth) {
    let (mut memory, mut truth) = (Memory::new(1 << 20, 5), Truth::default());
    let mut writer = SetWriter::new(geometry(), REGION, Epoch(1), SetNumber(0));
    for number in 1..=5_u64 {
        let payload = memory.random.bytes(10_000);
        put(&mut memory, &mut writer, &payload).unwrap();
        truth.written.insert(number, vec![payload]);
        truth.acknowledged = number;
    }
    (memory, truth)
}

#[test]
fn p05_p06_all_kept_sets_are_listed_and_read_at_one_time() {
    let (memory, truth) = five_sets();
    let (list, _) = recover(&memory, Goal::List);
    let states: Vec<_> = list
        .sets()
        .iter()
        .map(|set| (set.number.get(), set.state.clone()))
        .collect();
    assert_eq!(
        states,
        [
            (5, SetState::Committed),
            (4, SetState::Committed),
            (3, SetState::BeingOverwritten)
        ]
    );
    assert_eq!((list.published().get(), list.recovered()), (5, None));
    let mut recoveries = [4_u64, 5].map(|number| {
        let goal = Goal::Number(SetNumber(number));
        (
            number,
            SetRecovery::new(geometry(), REGION, goal),
            vec![0; 10_000],
        )
    });
    while recoveries
        .iter()
        .any(|(_, recovery, _)| !recovery.is_done())
    {
        for (_, recovery, buffer) in &mut recoveries {
            if let Some(request) = recovery.next_read() {
                recovery.feed(request, memory.read(request)).unwrap();
            } else if let Some(chunk) = recovery.next_chunk() {
                buffer.copy_from_slice(memory.read(chunk.request));
                let outcome = recovery
                    .verify_checksum(&chunk, crc64_nvme(buffer))
                    .unwrap();
                assert_eq!(outcome, ChunkOutcome::Whole);
            }
        }
    }
    for (number, recovery, buffer) in &recoveries {
        assert_eq!(recovery.recovered().unwrap().number.get(), *number);
        assert_eq!(truth.written[number][0], *buffer);
    }
    let (missing, _) = recover(&memory, Goal::Number(SetNumber(2)));
    assert!(missing.recovered().is_none());
}

#[test]
fn p05_the_slot_of_the_next_set_is_never_one_that_is_kept() {
    for sets_kept in 1..6 {
        let length = SetGeometry::region_bytes_for(1, sets_kept).unwrap();
        let geometry = SetGeometry::new(length, 1, sets_kept).unwrap();
        for newest in 0..20 {
            let mut writer = SetWriter::new(geometry, REGION, Epoch(1), SetNumber(newest));
            let plan = writer.begin(1, Label::default()).unwrap();
            for behind in 0..u64::from(sets_kept).min(newest) {
                assert_ne!(geometry.slot_of(SetNumber(newest - behind)), plan.slot);
            }
        }
    }
}

#[test]
fn p11_misuse_is_refused_and_harms_nothing() {
    let mut writer = SetWriter::new(geometry(), REGION, Epoch(1), SetNumber(7));
    assert_eq!(writer.chunk_written(0, 0), Err(ChunkError::NotWriting));
    assert!(matches!(writer.finish(0), Err(FinishError::NotWriting)));
    assert_eq!(writer.committed(), Err(NotFinished));
    assert_eq!(writer.abandon(), Abandoned::Nothing);
    let too_large = BeginError::TooLarge {
        payload_bytes: CAPACITY + 1,
        capacity_bytes: CAPACITY,
    };
    assert_eq!(writer.begin(CAPACITY + 1, Label::default()), Err(too_large));
    let plan = writer.begin(CAPACITY, Label::default()).unwrap();
    assert_eq!((plan.number.get(), plan.chunk_count), (8, 2));
    let again = writer.begin(0, Label::default());
    assert_eq!(
        again,
        Err(BeginError::InProgress {
            number: SetNumber(8)
        })
    );
    writer.chunk_written(1, 5).unwrap();
    assert_eq!(
        writer.chunk_written(1, 5),
        Err(ChunkError::Twice { index: 1 })
    );
    assert_eq!(
        writer.chunk_written(2, 5),
        Err(ChunkError::Unknown {
            index: 2,
            chunk_count: 2
        })
    );
    assert!(matches!(
        writer.finish(0),
        Err(FinishError::Incomplete {
            written: 1,
            chunk_count: 2
        })
    ));
    writer.chunk_written(0, 6).unwrap();
    let header = writer.finish(77).unwrap().header;
    let slot = geometry().slot_of(SetNumber(8));
    let header = SetHeader::decode(&header, &REGION, &geometry(), slot).unwrap();
    assert_eq!(
        (header.payload_bytes, header.committed_nanoseconds),
        (CAPACITY, 77)
    );
    assert_eq!(writer.abandon(), Abandoned::InDoubt);
    let refused = writer.begin(0, Label::default());
    assert_eq!(
        refused,
        Err(BeginError::InDoubt {
            number: SetNumber(8)
        })
    );
    let mut last = SetWriter::new(geometry(), REGION, Epoch(1), SetNumber(u64::MAX));
    assert_eq!(
        last.begin(0, Label::default()),
        Err(BeginError::NumbersExhausted)
    );
}

#[test]
fn p11_bytes_nobody_waits_for_are_refused() {
    let (memory, _) = five_sets();
    let mut recovery = SetRecovery::new(geometry(), REGION, Goal::Newest);
    let request = recovery.next_read().unwrap();
    assert_eq!(recovery.next_read(), None);
    let short = recovery.feed(request, &[0; 7]);
    assert_eq!(
        short,
        Err(FeedError::Length {
            found_bytes: 7,
            needed_bytes: 8
        })
    );
    recovery.feed(request, memory.read(request)).unwrap();
    assert_eq!(
        recovery.feed(request, memory.read(request)),
        Err(FeedError::Unexpected)
    );
    while let Some(request) = recovery.next_read() {
        recovery.feed(request, memory.read(request)).unwrap();
    }
    let chunk = recovery.next_chunk().unwrap();
    assert_eq!(
        recovery.verify_checksum(&chunk, 0),
        Ok(ChunkOutcome::Rejected)
    );
    assert_eq!(
        recovery.verify_checksum(&chunk, 0),
        Err(FeedError::Unexpected)
    );
    while let Some(request) = recovery.next_read() {
        recovery.feed(request, memory.read(request)).unwrap();
    }
    // The next candidate has a chunk of the same number; bytes of the former one don't count.
    assert_eq!(recovery.candidate().unwrap().number.get(), 4);
    assert!(recovery.next_chunk().is_some());
    assert_eq!(
        recovery.verify_checksum(&chunk, 0),
        Err(FeedError::Unexpected)
    );
}

#[test]
fn p11_damage_is_reported_and_an_older_set_is_taken_while_saying_so() {
    let (pristine, truth) = five_sets();
    let slot = geometry().slot_of(SetNumber(5));
    let header = geometry().header_offset(slot).get();
    let table = geometry().chunk_table_offset(slot).get();
    let payload = geometry().payload_offset(slot).get();
    let mut random = Random(3);
    let spots = (header..header + 128)
        .chain(table..table + 8)
        .chain((0..50).map(|_| payload + random.below(10_000)));
    for offset in spots {
        let mut memory = pristine.clone();
        memory.flip(offset, offset % 8);
        let (recovery, bytes) = recover(&memory, Goal::Newest);
        let found = recovery.recovered().unwrap();
        assert_eq!(
            (found.number.get(), &bytes),
            (4, &truth.written[&4][0]),
            "byte {offset}"
        );
        let fell_back = Finding::FellBack {
            published: SetNumber(5),
            taken: SetNumber(4),
        };
        assert!(recovery.findings().contains(&fell_back), "byte {offset}");
        assert_eq!(
            recovery.findings().len(),
            2,
            "byte {offset}: {:?}",
            recovery.findings()
        );
        let (exact, _) = recover(&memory, Goal::Number(SetNumber(5)));
        assert!(exact.recovered().is_none(), "byte {offset}");
        // Set 4 survives the opening and a put that is cut short.
        let opening = recovery.opening().unwrap();
        open(&mut memory, &opening).unwrap();
        let mut writer = SetWriter::new(geometry(), REGION, Epoch(2), opening.newest);
        memory.failure = Some((memory.steps + 1, Failure::PowerKeepsAll));
        assert_eq!(put(&mut memory, &mut writer, &[1; 20_000]), Err(Dead));
        let (recovery, bytes) = recover(&memory, Goal::Newest);
        assert_eq!(
            recovery.recovered().unwrap().number.get(),
            4,
            "byte {offset}"
        );
        assert_eq!(bytes, truth.written[&4][0]);
    }
}

#[test]
fn p11_a_damaged_publish_word_never_hides_or_destroys_the_newest_set() {
    let (pristine, mut truth) = five_sets();
    for bit in 0..64 {
        let mut memory = pristine.clone();
        memory.flip(bit / 8, bit % 8);
        let (recovery, bytes) = recover(&memory, Goal::Newest);
        assert_eq!(recovery.recovered().unwrap().number.get(), 5, "bit {bit}");
        assert_eq!(bytes, truth.written[&5][0]);
        let findings = recovery.findings();
        assert!(
            matches!(findings, [Finding::PublishDamaged { .. }]),
            "bit {bit}: {findings:?}"
        );
        // Beside a live writer nobody can say which set was committed.
        let (committed, _) = recover(&memory, Goal::Committed);
        assert!(committed.recovered().is_none() && committed.findings() == findings);
        let (exact, _) = recover(&memory, Goal::Number(SetNumber(5)));
        assert!(exact.recovered().is_some(), "bit {bit}");
        let opening = recovery.opening().unwrap();
        assert_eq!(opening.newest.get(), 5, "bit {bit}");
        open(&mut memory, &opening).unwrap();
        let mut writer = SetWriter::new(geometry(), REGION, Epoch(2), opening.newest);
        put(&mut memory, &mut writer, &[6; 600]).unwrap();
        truth.written.insert(6, vec![vec![6; 600]]);
        truth.acknowledged = 6;
        truth.check(&memory, bit);
    }
}

/// A reader beside a live writer that is overtaken while it reads.
#[test]
fn p07_a_reader_that_is_overtaken_begins_anew() {
    let (mut memory, _) = five_sets();
    let mut writer = SetWriter::new(geometry(), REGION, Epoch(1), SetNumber(5));
    let mut recovery = SetRecovery::new(geometry(), REGION, Goal::Committed);
    let (mut puts, mut bytes) = (0_u8, Vec::new());
    while !recovery.is_done() {
        while let Some(request) = recovery.next_read() {
            recovery.feed(request, memory.read(request)).unwrap();
        }
        while let Some(chunk) = recovery.next_chunk() {
            // Six puts while the candidate is read, then none.
            while puts < 6 {
                puts += 1;
                put(&mut memory, &mut writer, &[puts; 9_999]).unwrap();
            }
            bytes = memory.read(chunk.request).to_vec();
            recovery.verify_chunk(&chunk, &bytes).unwrap();
        }
    }
    assert_eq!(recovery.recovered().unwrap().number.get(), 11);
    assert_eq!(bytes, [6; 9_999]);
    assert_eq!(
        recovery.findings(),
        [Finding::Overtaken {
            number: SetNumber(5)
        }]
    );
}

/// The same between the publish word and the headers, where every header is sound but too new.
#[test]
fn p07_a_reader_that_is_overtaken_before_it_reads_headers_begins_anew() {
    for puts in 1..=8_u8 {
        let (mut memory, _) = five_sets();
        let mut writer = SetWriter::new(geometry(), REGION, Epoch(1), SetNumber(5));
        let mut recovery = SetRecovery::new(geometry(), REGION, Goal::Committed);
        let request = recovery.next_read().unwrap();
        recovery.feed(request, memory.read(request)).unwrap();
        for put_number in 1..=puts {
            put(&mut memory, &mut writer, &[put_number; 9_999]).unwrap();
        }
        while !recovery.is_done() {
            while let Some(request) = recovery.next_read() {
                recovery.feed(request, memory.read(request)).unwrap();
            }
            while let Some(chunk) = recovery.next_chunk() {
                recovery
                    .verify_chunk(&chunk, memory.read(chunk.request))
                    .unwrap();
            }
        }
        let found = recovery.recovered().unwrap().number.get();
        assert!(found >= 5, "set {found} after {puts} puts");
        assert_eq!(recovery.findings(), [], "{puts} puts");
    }
}

#[test]
fn p11_an_empty_region_has_no_sets_and_a_set_of_nothing_is_one() {
    let mut memory = Memory::new(1 << 20, 1);
    for goal in [Goal::List, Goal::Opening, Goal::Newest, Goal::Committed] {
        let (recovery, _) = recover(&memory, goal);
        assert_eq!((recovery.recovered(), recovery.sets().len()), (None, 0));
        assert_eq!(recovery.findings(), []);
    }
    let opening = recover(&memory, Goal::Opening).0.opening().unwrap();
    assert_eq!((opening.newest.get(), opening.publish), (0, None));
    let mut writer = SetWriter::new(geometry(), REGION, Epoch(1), opening.newest);
    put(&mut memory, &mut writer, b"").unwrap();
    let (recovery, bytes) = recover(&memory, Goal::Newest);
    assert_eq!(
        (recovery.recovered().unwrap().number.get(), bytes.len()),
        (1, 0)
    );
}
