//! Compares receipts with what was recovered. Decides; reads nothing.

use crate::receipts::Line;

/// A recovered record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundRecord {
    /// Where it begins.
    pub from: u64,
    /// Where it ends.
    pub to: u64,
    /// Its writer's epoch.
    pub epoch: u64,
    /// Its number in the epoch.
    pub sequence: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// CRC-64/NVME of the payload.
    pub crc: u64,
    /// Whether a writer of this seed writes exactly this under that number.
    pub genuine: bool,
}

/// A recovered log.
#[derive(Debug, Clone, Default)]
pub struct FoundLog {
    /// Up to here it is cleared.
    pub cursor: u64,
    /// Where it ends.
    pub end: u64,
    /// All records between the two.
    pub records: Vec<FoundRecord>,
    /// Why it ends before its tail, if it does.
    pub damage: Option<String>,
}

/// A set that could be read whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundSet {
    /// Its number.
    pub number: u64,
    /// Its writer's epoch.
    pub epoch: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// CRC-64/NVME of the payload.
    pub crc: u64,
    /// Whether a writer of this seed writes exactly this under that number.
    pub genuine: bool,
}

/// The sets that were recovered.
#[derive(Debug, Clone, Default)]
pub struct FoundSets {
    /// How many the region keeps.
    pub kept: u64,
    /// The one that a recovery takes; 0 if there is none.
    pub newest: u64,
    /// The kept ones that could be read whole.
    pub sets: Vec<FoundSet>,
    /// Why others could not.
    pub damage: Vec<String>,
}

/// The first few of many.
const TOLD_MAX: usize = 20;

/// Every promise about the log that was broken.
#[must_use]
pub fn log(lines: &[Line], found: &FoundLog) -> Vec<String> {
    let mut broken: Vec<String> = found
        .damage
        .iter()
        .map(|damage| format!("log: damage: {damage}"))
        .collect();
    check_sequence(found, &mut broken);
    let (mut cleared, mut clearing) = (0, 0);
    for line in lines {
        match line {
            Line::Cleared { to } => cleared = cleared.max(*to),
            Line::Clearing { to } => clearing = clearing.max(*to),
            _ => {}
        }
    }
    if found.cursor < cleared {
        broken.push(format!(
            "log: cleared up to {cleared} with a receipt, and recovered from {}",
            found.cursor
        ));
    }
    if found.cursor > clearing.max(cleared) {
        broken.push(format!(
            "log: recovered from {}, but only up to {clearing} was anything cleared",
            found.cursor
        ));
    }
    for line in lines {
        if let Err(what) = check_log_receipt(line, found) {
            broken.push(what);
        }
    }
    shortened(broken)
}

/// Records lie one behind the other, epochs never fall, and each is what its writer wrote.
fn check_sequence(found: &FoundLog, broken: &mut Vec<String>) {
    let mut before: Option<&FoundRecord> = None;
    let mut position = found.cursor;
    for record in &found.records {
        let (from, epoch, sequence) = (record.from, record.epoch, record.sequence);
        if from != position {
            broken.push(format!("log: a record at {from}, expected at {position}"));
        }
        if !record.genuine {
            broken.push(format!("log: the record at {from} (epoch {epoch}, number {sequence}) holds what nobody wrote"));
        }
        let follows = before.is_none_or(|before| {
            (epoch == before.epoch && sequence == before.sequence + 1)
                || (epoch > before.epoch && sequence == 1)
        });
        if !follows {
            broken.push(format!(
                "log: the record at {from} (epoch {epoch}, number {sequence}) follows none"
            ));
        }
        position = record.to;
        before = Some(record);
    }
    if position != found.end {
        broken.push(format!(
            "log: records end at {position}, and the log at {}",
            found.end
        ));
    }
}

fn check_log_receipt(line: &Line, found: &FoundLog) -> Result<(), String> {
    let Line::Log {
        from,
        to,
        epoch,
        sequence,
        records,
        bytes,
        crc,
        ..
    } = line
    else {
        return Ok(());
    };
    if *to <= found.cursor {
        return Ok(());
    }
    let name = format!("log: receipt for {from}..{to} of epoch {epoch}");
    if *to > found.end {
        return Err(format!("{name}: the log ends at {}", found.end));
    }
    let first = found.records.partition_point(|record| record.from < *from);
    let there: Vec<_> = found.records[first..]
        .iter()
        .take_while(|record| record.to <= *to)
        .collect();
    if there.iter().any(|record| record.epoch != *epoch) {
        return Err(format!("{name}: another writer's records are there"));
    }
    if *from < found.cursor {
        // Cleared in part: what is left was checked one by one.
        return Ok(());
    }
    let sums = there.iter().fold((0_u64, 0_u64), |(bytes, crc), record| {
        (bytes + record.bytes, crc.wrapping_add(record.crc))
    });
    let first_sequence = there.first().map_or(0, |record| record.sequence);
    let ends = there.last().map_or(0, |record| record.to);
    if (there.len() as u64, first_sequence, ends, sums)
        != (*records, *sequence, *to, (*bytes, *crc))
    {
        return Err(format!(
            "{name}: {records} records of {bytes} bytes from number {sequence}, and there are {} of {} from {first_sequence}",
            there.len(),
            sums.0
        ));
    }
    Ok(())
}

/// Every promise about the sets that was broken.
#[must_use]
pub fn sets(lines: &[Line], found: &FoundSets) -> Vec<String> {
    let mut broken: Vec<String> = found
        .damage
        .iter()
        .map(|damage| format!("sets: {damage}"))
        .collect();
    for set in &found.sets {
        if !set.genuine {
            broken.push(format!(
                "sets: set {} of epoch {} holds what nobody wrote",
                set.number, set.epoch
            ));
        }
    }
    let oldest = (found.newest + 1).saturating_sub(found.kept).max(1);
    for number in oldest..=found.newest {
        if !found.sets.iter().any(|set| set.number == number) {
            broken.push(format!(
                "sets: set {number} should be kept beside {}, and can't be read",
                found.newest
            ));
        }
    }
    for line in lines {
        let Line::Set {
            number,
            epoch,
            bytes,
            crc,
            ..
        } = line
        else {
            continue;
        };
        if *number > found.newest {
            broken.push(format!(
                "sets: receipt for set {number}, and the newest is {}",
                found.newest
            ));
            continue;
        }
        let Some(set) = found.sets.iter().find(|set| set.number == *number) else {
            continue;
        };
        if (set.epoch, set.bytes, set.crc) != (*epoch, *bytes, *crc) {
            broken.push(format!(
                "sets: receipt for set {number} of epoch {epoch} with {bytes} bytes, and there is one of epoch {} with {}",
                set.epoch, set.bytes
            ));
        }
    }
    shortened(broken)
}

fn shortened(mut broken: Vec<String>) -> Vec<String> {
    let more = broken.len().saturating_sub(TOLD_MAX);
    broken.truncate(TOLD_MAX);
    if more > 0 {
        broken.push(format!("and {more} more"));
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(from: u64, to: u64, epoch: u64, sequence: u64) -> FoundRecord {
        FoundRecord {
            from,
            to,
            epoch,
            sequence,
            bytes: to - from - 48,
            crc: from,
            genuine: true,
        }
    }

    fn receipt(from: u64, to: u64, epoch: u64, sequence: u64, records: u64) -> Line {
        let (bytes, crc) = (to - from - 48 * records, from);
        Line::Log {
            from,
            to,
            epoch,
            sequence,
            records,
            bytes,
            crc,
            method: "native-flush".into(),
        }
    }

    fn sound_log() -> (Vec<Line>, FoundLog) {
        let records = vec![
            record(100, 200, 3, 7),
            record(200, 300, 3, 8),
            record(300, 400, 4, 1),
            record(400, 500, 4, 2),
        ];
        let found = FoundLog {
            cursor: 100,
            end: 500,
            records,
            damage: None,
        };
        let lines = vec![
            receipt(0, 100, 3, 6, 1),
            Line::Clearing { to: 100 },
            Line::Cleared { to: 100 },
            receipt(100, 200, 3, 7, 1),
            receipt(200, 300, 3, 8, 1),
            receipt(300, 400, 4, 1, 1),
        ];
        (lines, found)
    }

    fn without<T>(things: &mut Vec<T>, index: usize) {
        things.remove(index);
    }

    #[test]
    fn a_sound_log_passes_with_an_unacknowledged_record_at_its_end() {
        let (lines, found) = sound_log();
        assert_eq!(log(&lines, &found), Vec::<String>::new());
    }

    #[test]
    fn b01_every_way_to_break_a_receipt_of_the_log_is_told() {
        let damages: [fn(&mut FoundLog); 9] = [
            |found| {
                found.records.truncate(2);
                found.end = 300;
            },
            |found| found.damage = Some("x".into()),
            |found| found.records[1].genuine = false,
            |found| found.records[1].crc += 1,
            |found| without(&mut found.records, 1),
            |found| found.records[2].epoch = 3,
            |found| found.records[1].sequence = 9,
            |found| found.cursor = 0,
            |found| {
                found.cursor = 200;
                found.records.remove(0);
            },
        ];
        for (index, damage) in damages.iter().enumerate() {
            let (lines, mut found) = sound_log();
            damage(&mut found);
            assert_ne!(log(&lines, &found), Vec::<String>::new(), "damage {index}");
        }
    }

    #[test]
    fn b01_every_way_to_break_a_receipt_of_a_set_is_told() {
        let set = |number| FoundSet {
            number,
            epoch: 2,
            bytes: 10,
            crc: number,
            genuine: true,
        };
        let receipt = |number| Line::Set {
            number,
            epoch: 2,
            bytes: 10,
            crc: number,
            method: "native-flush".into(),
        };
        let lines: Vec<_> = (1..=5).map(receipt).collect();
        let sound = FoundSets {
            kept: 2,
            newest: 6,
            sets: vec![set(6), set(5)],
            damage: Vec::new(),
        };
        assert_eq!(sets(&lines, &sound), Vec::<String>::new());
        let damages: [fn(&mut FoundSets); 6] = [
            |found| {
                found.newest = 4;
                found.sets[0].number = 4;
                found.sets[1].number = 3;
            },
            |found| without(&mut found.sets, 0),
            |found| without(&mut found.sets, 1),
            |found| found.sets[1].crc = 0,
            |found| found.sets[0].genuine = false,
            |found| found.damage.push("x".into()),
        ];
        for (index, damage) in damages.iter().enumerate() {
            let mut found = sound.clone();
            damage(&mut found);
            assert_ne!(sets(&lines, &found), Vec::<String>::new(), "damage {index}");
        }
    }
}
