//! Records: append, read, clear, crash at every step, take over. `PMU_SEED` and `PMU_SEEDS` choose
//! other schedules.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod model;

use std::collections::VecDeque;

use model::*;
use pmu_core::ReadRequest;
use pmu_core::log::*;
use pmu_format::*;

/// A ring of two pages: it wraps often.
const REGION_BYTES: u64 = 16_384;

fn geometry() -> LogGeometry {
    LogGeometry::new(REGION_BYTES).unwrap()
}

/// What was appended: the truth that recoveries are compared with.
#[derive(Clone, Debug, PartialEq)]
struct Appended {
    position: LogPosition,
    end: LogPosition,
    epoch: Epoch,
    sequence: u64,
    payload: Vec<u8>,
    ends_batch: bool,
}

#[derive(Debug, Default)]
struct Truth {
    log: Vec<Appended>,
    acknowledged: LogPosition,
    /// Where the backup has got to, and what it has cleared for certain and perhaps.
    consumed: LogPosition,
    cleared: LogPosition,
    clearing: LogPosition,
}

/// A record as it was read, with its payload.
type Got = (Record, Vec<u8>);

/// Reads what can be read now; `true` at the end (or where the reader has caught up).
fn read_all(memory: &Memory, reader: &mut LogReader) -> Result<Vec<Got>, LogError> {
    let mut got: Vec<Got> = Vec::new();
    let mut large = Vec::new();
    loop {
        let request: ReadRequest = match reader.poll()? {
            LogStep::Read(request) => request,
            LogStep::Record { record, payload } => {
                got.push((record, payload.to_vec()));
                continue;
            }
            LogStep::LargeRecord(record) => {
                large = vec![0; record.payload_bytes as usize];
                continue;
            }
            LogStep::ReadPayload {
                request,
                payload_offset,
            } => {
                let begin = payload_offset as usize;
                let end = begin + request.length_bytes as usize;
                large[begin..end].copy_from_slice(memory.read(request));
                request
            }
            LogStep::LargeRecordWhole(record) => {
                got.push((record, std::mem::take(&mut large)));
                continue;
            }
            LogStep::CaughtUp { .. } | LogStep::End => return Ok(got),
            other => panic!("unknown step {other:?}"),
        };
        reader.feed(memory.read(request)).unwrap();
    }
}

fn recover(memory: &Memory) -> (LogReader, Result<Vec<Got>, LogError>) {
    let mut reader = LogReader::new(geometry(), REGION, LogMode::Recovery, WINDOW_MIN_BYTES);
    let got = read_all(memory, &mut reader);
    (reader, got)
}

fn open(memory: &mut Memory, opening: &LogOpening) -> Result<(), Dead> {
    for piece in opening.flush_records.iter() {
        memory.flush(piece)?;
    }
    memory.flush(opening.flush_cursor)?;
    memory.write_word(opening.tail)?;
    memory.flush(opening.flush_tail)?;
    memory.write_word(opening.epoch)?;
    memory.flush(opening.flush_epoch)
}

fn clear(memory: &mut Memory, plan: &ClearPlan) -> Result<(), Dead> {
    memory.write_word(plan.cursor)?;
    memory.flush(plan.flush_cursor)?;
    memory.write_word(plan.inverse)?;
    memory.flush(plan.flush_inverse)
}

/// Writes a record where its placement says, part by part or as one.
fn write_record(memory: &mut Memory, placed: &Placement, payload: &[u8]) -> Result<(), Dead> {
    let mut parts = vec![
        (placed.header_pieces, placed.header.to_vec()),
        (placed.payload_pieces, payload.to_vec()),
    ];
    if memory.random.chance(2) {
        let mut whole = [&placed.header[..], payload].concat();
        whole.resize(placed.record_pieces.length_bytes() as usize, 0);
        parts = vec![(placed.record_pieces, whole)];
    } else if placed.padding.length_bytes > 0 {
        let zeros = vec![0; placed.padding.length_bytes as usize];
        parts.push((
            Pieces {
                first: placed.padding,
                ..Pieces::default()
            },
            zeros,
        ));
    }
    for (pieces, bytes) in parts {
        let (first, second) = bytes.split_at(pieces.first.length_bytes as usize);
        memory.write(pieces.first.offset, first)?;
        if !second.is_empty() {
            memory.write(pieces.second.offset, second)?;
        }
    }
    Ok(())
}

fn post(memory: &mut Memory, plan: &PublishPlan) -> Result<(), Dead> {
    for piece in plan.flush.iter() {
        memory.flush(piece)?;
    }
    memory.write_word(plan.tail)?;
    memory.flush(plan.flush_tail)
}

impl Truth {
    /// What a recovery must find, and what follows from it.
    fn check(&mut self, memory: &Memory, seed: u64) -> LogRecovered {
        let (reader, got) = recover(memory);
        let got = got.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let recovered = reader.recovered().unwrap();
        let LogRecovered { cursor, end, .. } = recovered;
        assert_eq!(recovered.damage, None, "seed {seed}");
        assert!(
            end >= self.acknowledged,
            "seed {seed}: an acknowledged record is lost"
        );
        assert!(cursor >= self.cleared, "seed {seed}: a clear is lost");
        assert!(cursor <= self.clearing, "seed {seed}: cleared by nobody");
        assert!(
            cursor <= self.consumed,
            "seed {seed}: an unread record is skipped"
        );
        assert!(
            end >= self.consumed,
            "seed {seed}: a record that was read is lost"
        );
        // Exactly what was appended from the cursor to the end, in order.
        let expected: Vec<_> = self
            .log
            .iter()
            .filter(|record| record.position >= cursor && record.end <= end)
            .collect();
        assert_eq!(got.len(), expected.len(), "seed {seed}");
        for ((record, payload), appended) in got.iter().zip(&expected) {
            assert_eq!(*payload, appended.payload, "seed {seed}");
            let facts = (
                record.position,
                record.epoch,
                record.sequence,
                record.mark.position(),
            );
            let said = (
                appended.position,
                appended.epoch,
                appended.sequence,
                appended.end,
            );
            assert_eq!(facts, said, "seed {seed}");
        }
        let whole = expected
            .last()
            .is_none_or(|last| last.ends_batch && last.end == end);
        assert!(whole, "seed {seed}: half a batch");
        assert_eq!(recovered.records, got.len() as u64);
        recovered
    }

    /// A primary has taken the log over: what it found is acknowledged, the rest never was.
    fn taken_over(&mut self, end: LogPosition) {
        self.log.retain(|record| record.end <= end);
        self.acknowledged = end;
    }
}

/// A backup beside the primary: reads, checks, and clears from time to time.
fn backup(
    memory: &mut Memory,
    truth: &mut Truth,
    reader: &mut LogReader,
    clears: bool,
) -> Result<(), Dead> {
    reader.refresh();
    let got = read_all(memory, reader).unwrap();
    for (record, payload) in &got {
        let appended = truth
            .log
            .iter()
            .find(|one| one.position == record.position)
            .unwrap();
        assert_eq!(
            (&appended.payload, appended.sequence),
            (payload, record.sequence)
        );
        assert!(record.published);
        truth.consumed = truth.consumed.max(record.mark.position());
    }
    if let Some((record, _)) = got.last().filter(|_| clears)
        && let Ok(plan) = reader.clear(record.mark)
    {
        truth.clearing = truth.clearing.max(record.mark.position());
        clear(memory, &plan)?;
        truth.cleared = truth.cleared.max(record.mark.position());
    }
    Ok(())
}

fn observe_cursor(memory: &Memory, writer: &mut LogWriter) {
    let page = ReadRequest {
        offset: LOG_CURSOR_OFFSET,
        length_bytes: PAGE_PAIR_BYTES,
    };
    writer
        .cursor_observed(CursorPair::decode(memory.read(page)).unwrap())
        .unwrap();
}

/// Appends one batch; `false` where there is no room for it.
fn append(memory: &mut Memory, truth: &mut Truth, writer: &mut LogWriter) -> Result<bool, Dead> {
    let count = 1 + memory.random.below(3);
    let mut batch = Vec::new();
    for index in 0..count {
        let length = match memory.random.below(12) {
            0 => 5_000,
            1..4 => 1 + memory.random.below(1_500),
            _ => 1 + memory.random.below(100),
        };
        let payload = memory.random.bytes(length as usize);
        let ends = if index + 1 == count {
            Batch::Ends
        } else {
            Batch::Continues
        };
        match writer.reserve(Payload::of(&REGION, &payload), ends) {
            Ok(placed) => batch.push((placed, payload, ends)),
            Err(AppendError::Full { .. }) => {
                // Nothing of it was posted yet.
                writer.take_back();
                observe_cursor(memory, writer);
                return Ok(false);
            }
            Err(error) => panic!("{error}"),
        }
    }
    for (placed, payload, ends) in &batch {
        truth.log.push(Appended {
            position: placed.position,
            end: placed.end,
            epoch: writer.epoch(),
            sequence: placed.sequence,
            payload: payload.clone(),
            ends_batch: *ends == Batch::Ends,
        });
    }
    for (placed, payload, _) in &batch {
        write_record(memory, placed, payload)?;
    }
    Ok(true)
}

/// Takes the log over and appends, with a backup beside it, until it is done or dead.
fn primary(memory: &mut Memory, truth: &mut Truth, epoch: u64, turns: u64) -> Result<(), Dead> {
    let recovered = truth.check(memory, memory.random.0);
    let opening = recovered.opening(Epoch(epoch)).unwrap();
    open(memory, &opening)?;
    truth.taken_over(opening.start.tail);
    let mut writer = LogWriter::new(geometry(), Epoch(epoch), opening.start, 3);
    let mut reader = LogReader::new(geometry(), REGION, LogMode::Live, WINDOW_MIN_BYTES);
    let mut in_flight = VecDeque::new();
    for _ in 0..turns {
        if append(memory, truth, &mut writer)? {
            // With publishes in flight, the completion is noticed later than it happens.
            while writer.in_flight() > memory.random.below(3) as usize {
                let done = writer.completed(in_flight.pop_front().unwrap()).unwrap();
                truth.acknowledged = done.tail;
            }
            let plan = writer.publish().unwrap().unwrap();
            post(memory, &plan)?;
            in_flight.push_back(plan.id);
        }
        if memory.random.chance(2) {
            let clears = memory.random.chance(2);
            backup(memory, truth, &mut reader, clears)?;
        }
        if memory.random.chance(3) {
            observe_cursor(memory, &mut writer);
        }
    }
    Ok(())
}

fn schedule(seed: u64, failures: &[Option<(u64, Failure)>]) -> u64 {
    let mut memory = Memory::new(REGION_BYTES, seed);
    let mut truth = Truth::default();
    let mut steps = 0;
    for (index, failure) in failures.iter().enumerate() {
        (memory.steps, memory.failure) = (0, *failure);
        let _ = primary(&mut memory, &mut truth, index as u64 + 1, 25);
        steps = memory.steps;
        memory.failure = None;
        if index % 2 == 0 {
            // The backup reads whatever it can see after the primary's death.
            let mut reader = live_reader(WINDOW_MIN_BYTES);
            let clears = memory.random.chance(2);
            backup(&mut memory, &mut truth, &mut reader, clears).unwrap();
        }
    }
    memory.failure = None;
    truth.check(&memory, seed);
    memory.lose_power(Failure::Power);
    truth.check(&memory, seed);
    steps
}

#[test]
fn p12_p13_p14_a_crash_at_every_step_loses_nothing_acknowledged_and_skips_nothing() {
    let (first, seeds) = (number_from("PMU_SEED", 1), number_from("PMU_SEEDS", 1));
    for seed in first..first + seeds {
        println!("PMU_SEED={seed} PMU_SEEDS=1");
        let steps = schedule(seed, &[None]);
        assert!(steps > 60, "{steps} steps");
        for step in 0..steps {
            for failure in FAILURES {
                schedule(seed, &[Some((step, failure)), None]);
            }
        }
    }
}

/// What the next primary takes over was visible and perhaps not durable, and the backup has read
/// it: from the opening on nobody may lose it, wherever the power goes.
#[test]
fn p14_the_power_goes_while_the_next_primary_opens() {
    let (first, seeds) = (number_from("PMU_SEED", 1), number_from("PMU_SEEDS", 1));
    for seed in first..first + seeds {
        println!("PMU_SEED={seed} PMU_SEEDS=1");
        let steps = schedule(seed, &[None]).min(120);
        for died_at in 0..steps {
            for power_at in 0..10 {
                let power = FAILURES[1 + (died_at + power_at) as usize % 2];
                let failures = [(died_at, Failure::Client), (power_at, power)];
                // Another course of events before each of them.
                schedule(seed + (power_at << 32), &failures.map(Some));
            }
        }
    }
}

#[test]
fn p14_crashes_of_one_primary_after_the_other() {
    let (first, seeds) = (number_from("PMU_SEED", 1), number_from("PMU_SEEDS", 250));
    for seed in first..first + seeds {
        let mut random = Random(seed ^ 0xabcd);
        let failures: Vec<_> = (0..5)
            .map(|_| Some((random.below(150), FAILURES[random.below(4) as usize])))
            .collect();
        println!("PMU_SEED={seed} PMU_SEEDS=1 {failures:?}");
        schedule(seed, &failures);
    }
}

/// A log of records with these payload lengths, one batch each, none cleared.
fn log_of(lengths: &[usize]) -> (Memory, Truth, LogWriter) {
    let (mut memory, mut truth) = (Memory::new(REGION_BYTES, 9), Truth::default());
    let recovered = truth.check(&memory, 0);
    let opening = recovered.opening(Epoch(1)).unwrap();
    open(&mut memory, &opening).unwrap();
    let mut writer = LogWriter::new(geometry(), Epoch(1), opening.start, 4);
    for length in lengths {
        let payload = memory.random.bytes(*length);
        push(&mut memory, &mut truth, &mut writer, payload);
    }
    (memory, truth, writer)
}

/// Appends one record and acknowledges it.
fn push(memory: &mut Memory, truth: &mut Truth, writer: &mut LogWriter, payload: Vec<u8>) {
    let placed = writer
        .reserve(Payload::of(&REGION, &payload), Batch::Ends)
        .unwrap();
    write_record(memory, &placed, &payload).unwrap();
    let plan = writer.publish().unwrap().unwrap();
    post(memory, &plan).unwrap();
    truth.acknowledged = writer.completed(plan.id).unwrap().tail;
    truth.log.push(Appended {
        position: placed.position,
        end: placed.end,
        epoch: writer.epoch(),
        sequence: placed.sequence,
        payload,
        ends_batch: true,
    });
}

fn live_reader(window_bytes: usize) -> LogReader {
    LogReader::new(geometry(), REGION, LogMode::Live, window_bytes)
}

#[test]
fn p12_what_does_not_fit_is_refused_and_room_comes_with_the_cursor() {
    let (mut memory, mut truth, mut writer) = log_of(&[2000, 2000]);
    let payload = |length_bytes| Payload {
        length_bytes,
        checksum: 0,
    };
    assert_eq!(
        writer.reserve(payload(0), Batch::Ends).unwrap_err(),
        AppendError::Empty
    );
    let too_large = writer.reserve(payload(8145), Batch::Ends).unwrap_err();
    let payload_max_bytes = 8144;
    assert_eq!(
        too_large,
        AppendError::TooLarge {
            payload_bytes: 8145,
            payload_max_bytes
        }
    );
    let full = writer.reserve(payload(5000), Batch::Ends).unwrap_err();
    let (needed_bytes, free_bytes) = (5048, 8192 - 2 * 2048);
    assert_eq!(
        full,
        AppendError::Full {
            needed_bytes,
            free_bytes
        }
    );
    // Half a clear frees nothing.
    let mut reader = live_reader(WINDOW_DEFAULT_BYTES);
    let got = read_all(&memory, &mut reader).unwrap();
    let plan = reader.clear(got[0].0.mark).unwrap();
    let pair = |cursor, inverse| CursorPair { cursor, inverse };
    let half = writer.cursor_observed(pair(plan.cursor.value, !0)).unwrap();
    assert_eq!(half, CursorSeen::Unsettled);
    clear(&mut memory, &plan).unwrap();
    observe_cursor(&memory, &mut writer);
    assert_eq!(writer.free_bytes(), 8192 - 2048);
    truth.consumed = got[1].0.mark.position();
    truth.clearing = LogPosition(plan.cursor.value);
    truth.cleared = truth.clearing;
    let more = memory.random.bytes(5000);
    push(&mut memory, &mut truth, &mut writer, more);
    truth.check(&memory, 0);
    assert!(matches!(
        writer.cursor_observed(CursorPair::new(LogPosition(8))),
        Err(CursorError::Backwards { .. })
    ));
    assert!(matches!(
        writer.cursor_observed(CursorPair::new(LogPosition(1 << 20))),
        Err(CursorError::BehindTail { .. })
    ));
}

#[test]
fn p12_batches_publishes_and_failures_keep_their_order() {
    let start = LogStart {
        tail: LogPosition(64),
        cursor: LogPosition(64),
    };
    let mut writer = LogWriter::new(geometry(), Epoch(3), start, 2);
    assert_eq!(writer.publish(), Ok(None));
    let payload = Payload {
        length_bytes: 8,
        checksum: 0,
    };
    let first = writer.reserve(payload, Batch::Continues).unwrap();
    assert_eq!(
        (first.position.get(), first.sequence, first.end.get()),
        (64, 1, 120)
    );
    assert_eq!(writer.publish(), Err(PublishError::BatchOpen));
    writer.take_back();
    assert_eq!(writer.publish(), Ok(None));
    writer.reserve(payload, Batch::Continues).unwrap();
    writer.reserve(payload, Batch::Ends).unwrap();
    let one = writer.publish().unwrap().unwrap();
    assert_eq!(
        (one.records, one.end.get(), one.flush.length_bytes()),
        (2, 176, 112)
    );
    writer.reserve(payload, Batch::Ends).unwrap();
    let two = writer.publish().unwrap().unwrap();
    writer.reserve(payload, Batch::Ends).unwrap();
    assert_eq!(
        writer.publish(),
        Err(PublishError::TooManyInFlight { publishes_max: 2 })
    );
    assert_eq!(
        writer.completed(two.id),
        Err(UnknownPublish { found: two.id })
    );
    let done = writer.completed(one.id).unwrap();
    assert_eq!((done.tail.get(), done.records, done.sequence), (176, 2, 2));
    assert_eq!((writer.acknowledged().get(), writer.in_flight()), (176, 1));
    writer.fail();
    assert_eq!(
        writer.completed(two.id),
        Err(UnknownPublish { found: two.id })
    );
    assert_eq!(writer.publish(), Err(PublishError::InDoubt));
    assert_eq!(
        writer.reserve(payload, Batch::Ends).unwrap_err(),
        AppendError::InDoubt
    );
}

#[test]
fn b02_a_live_reader_never_looks_behind_the_tail() {
    let (mut memory, mut truth, mut writer) = log_of(&[100]);
    let mut reader = live_reader(WINDOW_MIN_BYTES);
    assert_eq!(read_all(&memory, &mut reader).unwrap().len(), 1);
    let payload = vec![7; 200];
    let placed = writer
        .reserve(Payload::of(&REGION, &payload), Batch::Ends)
        .unwrap();
    write_record(&mut memory, &placed, &payload).unwrap();
    reader.refresh();
    assert_eq!(read_all(&memory, &mut reader).unwrap(), []);
    let plan = writer.publish().unwrap().unwrap();
    post(&mut memory, &plan).unwrap();
    reader.refresh();
    let got = read_all(&memory, &mut reader).unwrap();
    assert_eq!((got.len(), &got[0].1), (1, &payload));
    truth.acknowledged = writer.completed(plan.id).unwrap().tail;
    assert_eq!(reader.position(), truth.acknowledged);
}

#[test]
fn r02_a_reader_goes_to_a_record_whose_position_was_kept() {
    let (mut memory, truth, _) = log_of(&[10, 2000, 700]);
    let mut reader = live_reader(WINDOW_MIN_BYTES);
    assert_eq!(read_all(&memory, &mut reader).unwrap().len(), 3);
    for (index, record) in truth.log.iter().enumerate() {
        reader.seek(record.position);
        let got = read_all(&memory, &mut reader).unwrap();
        let payloads: Vec<_> = got.iter().map(|(_, payload)| payload.clone()).collect();
        let expected: Vec<_> = truth.log[index..]
            .iter()
            .map(|record| record.payload.clone())
            .collect();
        assert_eq!(payloads, expected);
    }
    // To the end: nothing. Where no record begins: damage, and never bytes that only look like one.
    reader.seek(truth.acknowledged);
    assert!(read_all(&memory, &mut reader).unwrap().is_empty());
    reader.seek(LogPosition(truth.log[1].position.get() + 8));
    assert!(matches!(
        read_all(&memory, &mut reader),
        Err(LogError::Damaged { .. })
    ));
    // What somebody else cleared meanwhile, once its room was used again.
    reader.seek(truth.log[0].position);
    let mut other = live_reader(WINDOW_MIN_BYTES);
    let got = read_all(&memory, &mut other).unwrap();
    clear(&mut memory, &other.clear(got[1].0.mark).unwrap()).unwrap();
    let zeros = [0; 64];
    let first = geometry().pieces(truth.log[0].position, 64).first;
    memory.write(first.offset, &zeros).unwrap();
    let lapped = read_all(&memory, &mut reader);
    assert!(matches!(lapped, Err(LogError::Lapped { .. })), "{lapped:?}");
}

#[test]
fn p13_only_records_that_were_read_and_published_are_cleared() {
    let (memory, _, _) = log_of(&[10, 10, 10]);
    let mut reader = live_reader(WINDOW_MIN_BYTES);
    let got = read_all(&memory, &mut reader).unwrap();
    assert_eq!(reader.clear(got[1].0.mark).unwrap().cursor.value, 128);
    let cursor = LogPosition(128);
    assert_eq!(
        reader.clear(got[0].0.mark),
        Err(ClearError::Already { cursor })
    );
    let mut other = LogReader::new(geometry(), RegionId([1; 16]), LogMode::Live, 0);
    assert_eq!(other.clear(got[2].0.mark), Err(ClearError::OtherRegion));
}

#[test]
fn p14_records_behind_the_tail_count_in_whole_batches_only() {
    let (mut memory, truth, mut writer) = log_of(&[10]);
    let payload = [1; 10];
    for batch in [Batch::Continues, Batch::Ends, Batch::Continues] {
        let placed = writer
            .reserve(Payload::of(&REGION, &payload), batch)
            .unwrap();
        write_record(&mut memory, &placed, &payload).unwrap();
    }
    let (reader, got) = recover(&memory);
    let got = got.unwrap();
    let published: Vec<_> = got.iter().map(|(record, _)| record.published).collect();
    assert_eq!(published, [true, false, false]);
    let recovered = reader.recovered().unwrap();
    assert_eq!(
        (recovered.records, recovered.unacknowledged_records),
        (3, 2)
    );
    assert_eq!(
        (recovered.tail, recovered.end.get()),
        (truth.acknowledged, 192)
    );
    // What the second primary takes over, the third one finds; the half batch is gone for good.
    let opening = recovered.opening(Epoch(2)).unwrap();
    open(&mut memory, &opening).unwrap();
    let (reader, got) = recover(&memory);
    assert_eq!(got.unwrap().len(), 3);
    assert_eq!(reader.recovered().unwrap().unacknowledged_records, 0);
}

#[test]
fn p14_what_an_older_writer_left_behind_the_tail_is_never_the_continuation() {
    let (mut memory, mut truth, mut writer) = log_of(&[10]);
    // Two records of 64 bytes, the second of which is whole but not published: half a batch first.
    let payload = [1; 10];
    for batch in [Batch::Continues, Batch::Ends] {
        let placed = writer
            .reserve(Payload::of(&REGION, &payload), batch)
            .unwrap();
        if batch == Batch::Ends {
            write_record(&mut memory, &placed, &payload).unwrap();
        }
    }
    let recovered = truth.check(&memory, 0);
    let opening = recovered.opening(Epoch(2)).unwrap();
    open(&mut memory, &opening).unwrap();
    // The new writer's record ends exactly where the old one's begins.
    let mut writer = LogWriter::new(geometry(), Epoch(2), opening.start, 1);
    push(&mut memory, &mut truth, &mut writer, vec![2; 10]);
    let recovered = truth.check(&memory, 0);
    assert_eq!(
        (recovered.records, recovered.unacknowledged_records),
        (2, 0)
    );
}

/// Reads and clears all there is, and lets the writer know.
fn clear_all(memory: &mut Memory, reader: &mut LogReader, writer: &mut LogWriter) {
    reader.refresh();
    if let Some((record, _)) = read_all(memory, reader).unwrap().last() {
        let plan = reader.clear(record.mark).unwrap();
        clear(memory, &plan).unwrap();
    }
    observe_cursor(memory, writer);
}

/// A write of a former writer that lands although it was fenced (which must not happen) is not
/// believed all the same.
#[test]
fn b03_a_late_record_of_an_older_epoch_is_never_believed() {
    let (mut memory, mut truth, mut late) = log_of(&[10]);
    let recovered = truth.check(&memory, 0);
    let opening = recovered.opening(Epoch(2)).unwrap();
    open(&mut memory, &opening).unwrap();
    let placed = late
        .reserve(Payload::of(&REGION, &[6; 10]), Batch::Ends)
        .unwrap();
    write_record(&mut memory, &placed, &[6; 10]).unwrap();
    let recovered = truth.check(&memory, 0);
    assert_eq!(
        (recovered.records, recovered.unacknowledged_records),
        (1, 0)
    );
}

#[test]
fn b02_a_reader_that_somebody_else_laps_is_told() {
    let (mut memory, mut truth, mut writer) = log_of(&[2000, 2000, 2000]);
    let mut slow = live_reader(WINDOW_MIN_BYTES);
    // The slow reader knows the tail and has the first record, and the second one in its window.
    let first = loop {
        match slow.poll().unwrap() {
            LogStep::Read(request) => slow.feed(memory.read(request)).unwrap(),
            step => break matches!(step, LogStep::Record { .. }),
        }
    };
    assert!(first);
    let mut fast = live_reader(WINDOW_MIN_BYTES);
    let mark = read_all(&memory, &mut fast).unwrap()[2].0.mark;
    clear(&mut memory, &fast.clear(mark).unwrap()).unwrap();
    observe_cursor(&memory, &mut writer);
    for _ in 0..4 {
        push(&mut memory, &mut truth, &mut writer, vec![9; 2000]);
    }
    let error = read_all(&memory, &mut slow).unwrap_err();
    let cursor = mark.position();
    let lapped = matches!(error, LogError::Lapped { cursor: found, .. } if found == cursor);
    assert!(lapped, "{error}");
    // A reader that only reads goes on beside one that clears, over many laps.
    clear_all(&mut memory, &mut fast, &mut writer);
    let mut third = live_reader(WINDOW_MIN_BYTES);
    for turn in 0..40_u8 {
        third.refresh();
        let seen = read_all(&memory, &mut third).unwrap();
        assert!(turn == 0 || seen.iter().all(|(_, payload)| payload[0] == turn - 1));
        clear_all(&mut memory, &mut fast, &mut writer);
        push(&mut memory, &mut truth, &mut writer, vec![turn; 1500]);
    }
}

#[test]
fn p12_records_longer_than_the_window_are_read_in_pieces() {
    let (mut memory, mut truth, mut writer) = log_of(&[5000, 10]);
    truth.check(&memory, 0);
    let mut reader = live_reader(WINDOW_MIN_BYTES);
    let got = read_all(&memory, &mut reader).unwrap();
    clear(&mut memory, &reader.clear(got[1].0.mark).unwrap()).unwrap();
    observe_cursor(&memory, &mut writer);
    truth.consumed = got[1].0.mark.position();
    (truth.cleared, truth.clearing) = (truth.consumed, truth.consumed);
    // This one goes over the ring's end, and is not published.
    let payload = memory.random.bytes(7000);
    let placed = writer
        .reserve(Payload::of(&REGION, &payload), Batch::Ends)
        .unwrap();
    assert!(placed.payload_pieces.second.length_bytes > 0);
    write_record(&mut memory, &placed, &payload).unwrap();
    let (reader, got) = recover(&memory);
    assert_eq!(got.unwrap()[0].1, payload);
    assert_eq!(reader.recovered().unwrap().unacknowledged_records, 1);
    // Damaged, it was never there.
    memory.flip(placed.payload_pieces.second.offset.get() + 100, 3);
    assert_eq!(truth.check(&memory, 0).records, 0);
}

/// Flips each bit of everything that a log consists of: what is handed out was written, and what is
/// left out is reported.
#[test]
fn p14_no_damaged_bit_is_taken_for_data_or_goes_unnoticed() {
    // Records of 64 bytes: one damaged bit of a cursor leads to another record.
    let (mut pristine, truth, _) = log_of(&[16; 6]);
    let mut reader = live_reader(WINDOW_MIN_BYTES);
    let got = read_all(&pristine, &mut reader).unwrap();
    clear(&mut pristine, &reader.clear(got[1].0.mark).unwrap()).unwrap();
    let cursor = got[1].0.mark.position();
    let unread: Vec<_> = truth
        .log
        .iter()
        .filter(|one| one.position >= cursor)
        .collect();
    let ring = LOG_RING_OFFSET.get();
    let words = [0, 64, 4096, 4160]
        .into_iter()
        .flat_map(|word| word..word + 8);
    for offset in words.chain(ring..ring + truth.acknowledged.get()) {
        for bit in 0..8 {
            let mut memory = pristine.clone();
            memory.flip(offset, bit);
            let (mut reader, got) = {
                let mut reader =
                    LogReader::new(geometry(), REGION, LogMode::Recovery, WINDOW_MIN_BYTES);
                let mut got = Vec::new();
                let error = loop {
                    match reader.poll() {
                        Err(error) => break Err(error),
                        Ok(LogStep::End) => break Ok(()),
                        Ok(LogStep::Read(request)) => reader.feed(memory.read(request)).unwrap(),
                        Ok(LogStep::Record { record, payload }) => {
                            got.push((record, payload.to_vec()));
                        }
                        Ok(other) => panic!("{other:?}"),
                    }
                };
                (reader, (got, error))
            };
            let (records, end) = got;
            for (record, payload) in &records {
                let found = truth.log.iter().find(|one| one.position == record.position);
                assert_eq!(found.unwrap().payload, *payload, "byte {offset}, bit {bit}");
            }
            let all = unread.iter().all(|one| {
                records
                    .iter()
                    .any(|(record, _)| record.position == one.position)
            });
            assert!(
                all || end.is_err(),
                "byte {offset}, bit {bit}: a loss goes unnoticed"
            );
            let damage = reader.recovered().and_then(|recovered| recovered.damage);
            assert_eq!(
                damage.is_some(),
                end.is_err() && reader.recovered().is_some()
            );
            assert_eq!(reader.poll().is_err(), end.is_err(), "an error stays");
        }
    }
}

#[test]
fn p14_a_damaged_log_is_only_taken_over_by_who_accepts_the_loss() {
    let (mut memory, mut truth, _) = log_of(&[30, 30, 30]);
    memory.flip(LOG_RING_OFFSET.get() + truth.log[1].position.get() + 50, 0);
    let (reader, got) = recover(&memory);
    assert!(matches!(got, Err(LogError::Damaged { .. })));
    let recovered = reader.recovered().unwrap();
    assert_eq!(
        (recovered.records, recovered.end),
        (1, truth.log[1].position)
    );
    assert!(recovered.opening(Epoch(2)).is_err());
    let opening = recovered.opening_with_loss(Epoch(2));
    open(&mut memory, &opening).unwrap();
    truth.taken_over(opening.start.tail);
    let mut writer = LogWriter::new(geometry(), Epoch(2), opening.start, 1);
    push(&mut memory, &mut truth, &mut writer, vec![4; 30]);
    assert_eq!(truth.check(&memory, 0).records, 2);
}

#[test]
fn p14_damage_to_what_was_acknowledged_is_reported_even_after_a_power_failure() {
    let (mut memory, truth, _) = log_of(&[10, 10]);
    memory.lose_power(Failure::PowerLosesAll);
    // Only the tail, which is durable, tells this from an append that was cut short.
    memory.flip(LOG_RING_OFFSET.get() + truth.log[1].position.get() + 50, 0);
    assert!(matches!(recover(&memory).1, Err(LogError::Damaged { .. })));
}

#[test]
fn p14_a_record_that_was_read_outlives_the_power_although_its_tail_did_not() {
    let (mut memory, mut truth, mut writer) = log_of(&[]);
    let payload = [3; 10];
    let placed = writer
        .reserve(Payload::of(&REGION, &payload), Batch::Ends)
        .unwrap();
    write_record(&mut memory, &placed, &payload).unwrap();
    let plan = writer.publish().unwrap().unwrap();
    for piece in plan.flush.iter() {
        memory.flush(piece).unwrap();
    }
    memory.write_word(plan.tail).unwrap();
    assert_eq!(
        read_all(&memory, &mut live_reader(WINDOW_MIN_BYTES))
            .unwrap()
            .len(),
        1
    );
    memory.lose_power(Failure::PowerLosesAll);
    // The epoch in the publish page is durable since the opening, and vouches for the record.
    let (reader, got) = recover(&memory);
    assert_eq!(got.unwrap()[0].1, payload);
    truth.consumed = reader.position();
    assert_eq!(truth.consumed, placed.end);
}

/// The writer saw both words of a clear, and used the room; then the power undid the second one.
#[test]
fn p14_an_inverse_that_was_undone_does_not_lead_to_what_was_overwritten() {
    let (mut memory, mut truth, mut writer) = log_of(&[2000, 2000, 2000]);
    let mut reader = live_reader(WINDOW_MIN_BYTES);
    let got = read_all(&memory, &mut reader).unwrap();
    let plan = reader.clear(got[1].0.mark).unwrap();
    memory.write_word(plan.cursor).unwrap();
    memory.flush(plan.flush_cursor).unwrap();
    memory.write_word(plan.inverse).unwrap();
    observe_cursor(&memory, &mut writer);
    for _ in 0..2 {
        push(&mut memory, &mut truth, &mut writer, vec![5; 2000]);
    }
    memory.lose_power(Failure::PowerLosesAll);
    truth.consumed = got[2].0.mark.position();
    truth.clearing = got[1].0.mark.position();
    let recovered = truth.check(&memory, 0);
    assert!(recovered.cursor_disagreed);
    assert_eq!((recovered.cursor, recovered.records), (truth.clearing, 3));
}

#[test]
fn p14_an_opening_makes_the_cursor_that_it_found_durable() {
    let (mut memory, _, _) = log_of(&[10, 10]);
    let mut reader = live_reader(WINDOW_MIN_BYTES);
    let got = read_all(&memory, &mut reader).unwrap();
    let plan = reader.clear(got[0].0.mark).unwrap();
    memory.write_word(plan.cursor).unwrap();
    memory.flush(plan.flush_cursor).unwrap();
    // The backup dies before the inverse is durable.
    memory.write_word(plan.inverse).unwrap();
    let (reader, got) = recover(&memory);
    assert_eq!(got.unwrap().len(), 1);
    let opening = reader.recovered().unwrap().opening(Epoch(2)).unwrap();
    open(&mut memory, &opening).unwrap();
    memory.lose_power(Failure::PowerLosesAll);
    let (reader, got) = recover(&memory);
    assert_eq!(got.unwrap().len(), 1);
    let recovered = reader.recovered().unwrap();
    assert_eq!(
        (recovered.cursor, recovered.cursor_disagreed),
        (opening.start.cursor, false)
    );
}

#[test]
fn p14_a_cursor_that_was_seen_before_its_tail_was_durable() {
    let (mut memory, mut truth, mut writer) = log_of(&[10]);
    let payload = [3; 10];
    let placed = writer
        .reserve(Payload::of(&REGION, &payload), Batch::Ends)
        .unwrap();
    write_record(&mut memory, &placed, &payload).unwrap();
    let plan = writer.publish().unwrap().unwrap();
    for piece in plan.flush.iter() {
        memory.flush(piece).unwrap();
    }
    // The tail is visible, and the backup reads and clears; then the power goes.
    memory.write_word(plan.tail).unwrap();
    let mut reader = live_reader(WINDOW_MIN_BYTES);
    let got = read_all(&memory, &mut reader).unwrap();
    clear(&mut memory, &reader.clear(got[1].0.mark).unwrap()).unwrap();
    memory.lose_power(Failure::PowerLosesAll);
    truth.consumed = placed.end;
    (truth.cleared, truth.clearing) = (placed.end, placed.end);
    let (reader, got) = recover(&memory);
    assert_eq!(got.unwrap(), []);
    let recovered = reader.recovered().unwrap();
    assert_eq!((recovered.end, recovered.cursor), (placed.end, placed.end));
    assert!(recovered.tail < recovered.end && recovered.damage.is_none());
}
