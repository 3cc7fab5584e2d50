//! `append`, `tail`, `clear`, and `recover` in append mode.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{BufWriter, Write};
use std::time::{Duration, Instant};

use pmu_format::LogPosition;
use serde::Serialize;

use crate::cli::arguments::{Append, Clear, Recover, Tail};
use crate::cli::distributed::open_log;
use crate::cli::framing::{Splitter, join};
use crate::cli::logs::{Reader, Writer};
use crate::cli::output::confirm;
use crate::cli::source::{Block, Interrupt, Source, refuse_closed};
use crate::cli::spread::{Missing, add_missing, missing_of};
use crate::cli::target::Target;
use crate::cli::values::duration_text;
use crate::cli::{CliError, Context, Way, exit};
use crate::error::{ClientError, Result};
use crate::log::{LogRecord, RecoveredLog};
use crate::options::Timeouts;
use crate::receipt::Receipt;

/// How long a full log is waited for at a time, before Ctrl-C is looked at.
const FULL_TICK: Duration = Duration::from_millis(100);
/// How often `tail --follow` looks for units that are missing.
const REJOIN_INTERVAL: Duration = Duration::from_secs(10);
/// Payload read at a time.
const READ_BYTES: usize = 1 << 20;

#[derive(Serialize)]
struct AppendOutput<'a> {
    #[serde(flatten)]
    receipt: &'a Receipt,
    records: u64,
    empty_lines_left_out: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    distributor: Option<&'a str>,
    /// For a log on several units: how many there are, and which took no part.
    units_of: Option<usize>,
    missing: Vec<Missing<'a>>,
    seconds: f64,
}

/// A primary that counts what was acknowledged.
struct Appender<'a> {
    log: Writer,
    ends: VecDeque<LogPosition>,
    acknowledged: u64,
    patience: Duration,
    interrupt: &'a Interrupt,
}

impl Appender<'_> {
    fn append(&mut self, record: &[u8]) -> Result<(), CliError> {
        let deadline = Instant::now() + self.patience;
        loop {
            self.interrupt.check()?;
            match self.log.submit(record) {
                Ok(ticket) => {
                    self.ends.push_back(ticket.end());
                    self.count();
                    return Ok(());
                }
                Err(ClientError::Full { .. }) if Instant::now() < deadline => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn count(&mut self) {
        while self
            .ends
            .front()
            .is_some_and(|end| *end <= self.log.acknowledged())
        {
            self.ends.pop_front();
            self.acknowledged += 1;
        }
    }

    fn take_all(
        &mut self,
        source: &Source,
        splitter: &mut Splitter,
        bytes: &mut dyn FnMut(u64),
    ) -> Result<(), CliError> {
        loop {
            match source.next()? {
                Block::Bytes(block) => {
                    splitter.feed(&block, |record| self.append(record))?;
                    bytes(block.len() as u64);
                    source.give_back(block);
                }
                Block::Idle => {
                    // What has gathered must not wait for more input.
                    self.log.poll_completions()?;
                    self.count();
                }
                Block::End => return splitter.finish(|record| self.append(record)),
            }
        }
    }
}

pub(super) fn append(context: &Context<'_>, arguments: &Append) -> Result<u8, CliError> {
    let source = Source::open(&arguments.file, &context.interrupt)?;
    let begun = Instant::now();
    let log = open(context, arguments)?;
    remark_way(context, &arguments.region, log.provider());
    let mut splitter = Splitter::new(arguments.framing, log.record_bytes_max());
    let bar = context.output.progress(source.length);
    let mut appender = Appender {
        log,
        ends: VecDeque::new(),
        acknowledged: 0,
        patience: arguments.full_timeout,
        interrupt: &context.interrupt,
    };
    let taken = appender.take_all(&source, &mut splitter, &mut |bytes| bar.inc(bytes));
    // Also after Ctrl-C: what was given to the unit is seen through.
    let flushed = appender.log.flush();
    appender.count();
    bar.finish_and_clear();
    let count = appender.acknowledged;
    let after = |cause: CliError| CliError::AfterRecords {
        count,
        cause: Box::new(cause),
    };
    taken.map_err(after)?;
    let receipt = flushed.map_err(|error| after(error.into()))?;
    let absent = appender.log.missing();
    let out = AppendOutput {
        receipt: &receipt,
        records: count,
        empty_lines_left_out: splitter.empty_lines,
        distributor: appender.log.distributor(),
        units_of: appender.log.units_of(),
        missing: missing_of(&absent),
        seconds: begun.elapsed().as_secs_f64(),
    };
    let mut text = format!(
        "{receipt}: {count} records in {}",
        duration_text(begun.elapsed())
    );
    if let Some(distributor) = out.distributor {
        let _ = write!(text, ", distributed by {distributor}");
    }
    if splitter.empty_lines > 0 {
        // Writing to a string can't fail.
        let _ = write!(text, "; {} empty lines left out", splitter.empty_lines);
    }
    if let Some(units_of) = out.units_of {
        let _ = write!(text, "; {} of {units_of} units", receipt.units.len());
    }
    add_missing(&mut text, &out.missing);
    context.output.report(false, &out, &text)?;
    Ok(exit::DONE)
}

fn open(context: &Context<'_>, arguments: &Append) -> Result<Writer, CliError> {
    let region = arguments.region.as_str();
    let timeouts = Timeouts {
        back_pressure: FULL_TICK,
        ..context.options().timeouts
    };
    let options = context.options().timeouts(timeouts);
    if let Some(distributor) = &arguments.place.distributor {
        let log = open_log(context, distributor, region, &options)?;
        return Ok(Writer::Distributed(Box::new(log)));
    }
    Ok(Writer::open(context.find(region)?, region, &options)?)
}

fn remark_way(context: &Context<'_>, region: &str, provider: Option<pmu_fabric::Provider>) {
    if let Some(provider) = provider {
        context.output.remark(&format!("{region} over {provider}"));
    }
}

#[derive(Serialize)]
struct RecordOutput<'a> {
    position: u64,
    end: u64,
    epoch: u64,
    sequence: u64,
    bytes: usize,
    /// The payload where it is text.
    text: Option<&'a str>,
    /// The payload where it is not.
    hex: Option<String>,
}

impl<'a> RecordOutput<'a> {
    fn of(found: &LogRecord<'a>) -> Self {
        let text = std::str::from_utf8(found.payload).ok();
        let hex = || {
            found.payload.iter().fold(
                String::with_capacity(found.payload.len() * 2),
                |mut hex, byte| {
                    let _ = write!(hex, "{byte:02x}");
                    hex
                },
            )
        };
        Self {
            position: found.record.position.get(),
            end: found.record.mark.position().get(),
            epoch: found.record.epoch.get(),
            sequence: found.record.sequence,
            bytes: found.payload.len(),
            text,
            hex: text.is_none().then(hex),
        }
    }
}

/// How records are printed.
#[derive(Clone, Copy)]
struct Form {
    json: bool,
    length_prefixed: bool,
}

impl Form {
    fn print(self, found: &LogRecord<'_>, writer: &mut impl Write) -> Result<(), CliError> {
        let written = if self.json {
            serde_json::to_writer(&mut *writer, &RecordOutput::of(found))
                .map_err(std::io::Error::from)
                .and_then(|()| writer.write_all(b"\n"))
        } else {
            join(found.payload, self.length_prefixed, writer)
        };
        written.map_err(CliError::output)
    }
}

pub(super) fn tail(context: &Context<'_>, arguments: &Tail) -> Result<u8, CliError> {
    refuse_closed(1, "standard output")?;
    let form = Form {
        json: context.output.json,
        length_prefixed: arguments.length_prefixed,
    };
    let region = arguments.region.as_str();
    let way = context.find(region)?;
    let mut backup = Reader::open(&way, region, arguments.clear, &context.options())?;
    remark_way(context, region, backup.provider());
    let mut out = BufWriter::with_capacity(READ_BYTES, std::io::stdout().lock());
    let (mut count, mut joined) = (0_u64, Instant::now());
    while !context.interrupt.is_set() {
        if arguments.follow && joined.elapsed() >= REJOIN_INTERVAL {
            backup.rejoin()?;
            joined = Instant::now();
        }
        let records = backup.read_unread(READ_BYTES)?;
        let read = records.len() as u64;
        if read == 0 {
            if !arguments.follow {
                break;
            }
            nap(arguments.interval, &context.interrupt);
            continue;
        }
        for found in records {
            form.print(&found, &mut out)?;
        }
        // What is cleared is gone: only when somebody has it.
        out.flush().map_err(CliError::output)?;
        count += read;
        if arguments.clear {
            backup.clear_handed_out()?;
        }
    }
    let position = backup.position();
    context
        .output
        .remark(&format!("{count} records, the next at {position}"));
    say_missing(context, &backup)?;
    Ok(if context.interrupt.is_set() && !arguments.follow {
        exit::INTERRUPTED
    } else {
        exit::DONE
    })
}

/// What a reader of a log on several units could not tell for certain.
fn say_missing(context: &Context<'_>, backup: &Reader) -> Result<(), CliError> {
    #[derive(Serialize)]
    struct MissingOutput<'a> {
        missing: Vec<Missing<'a>>,
        uncertain_to: Option<u64>,
    }
    let absent = backup.missing();
    let uncertain = backup.uncertain_to().filter(|_| !absent.is_empty());
    if absent.is_empty() {
        return Ok(());
    }
    let out = MissingOutput {
        missing: missing_of(&absent),
        uncertain_to: uncertain.map(LogPosition::get),
    };
    let mut text = String::new();
    if let Some(end) = uncertain {
        let _ = write!(
            text,
            "records up to {end} are on too few of the units that answer to be certain: pmu recover"
        );
    }
    add_missing(&mut text, &out.missing);
    context.output.report(true, &out, text.trim_start())
}

fn nap(interval: Duration, interrupt: &Interrupt) {
    let until = Instant::now() + interval;
    while !interrupt.is_set() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

#[derive(Serialize)]
struct ClearOutput<'a> {
    region: &'a str,
    cleared_to: u64,
    records: u64,
}

pub(super) fn clear(context: &Context<'_>, arguments: &Clear) -> Result<u8, CliError> {
    let region = arguments.region.as_str();
    let what = arguments
        .to
        .map_or("all published records".to_owned(), |to| {
            format!("the records up to {to}")
        });
    confirm(arguments.yes, &format!("Clear {what} of region {region}?"))?;
    let way = context.find(region)?;
    let mut backup = Reader::open(&way, region, true, &context.options())?;
    let (records, mark) = read_to(&mut backup, arguments.to, &context.interrupt)?;
    let cleared_to = match mark {
        Some(mark) => {
            backup.clear(mark)?;
            mark.position()
        }
        // What somebody else has begun to clear is cleared everywhere.
        None => backup.end_begun_clear()?,
    };
    let out = ClearOutput {
        region,
        cleared_to: cleared_to.get(),
        records,
    };
    let text = format!("{region}: {records} records cleared, up to {cleared_to}");
    context.output.report(false, &out, &text)?;
    Ok(exit::DONE)
}

/// Goes through the records up to a position, or to the tail: how many, and the last one's mark.
fn read_to(
    backup: &mut Reader,
    to: Option<LogPosition>,
    interrupt: &Interrupt,
) -> Result<(u64, Option<crate::log::RecordMark>), CliError> {
    let (mut count, mut mark, mut stop_at) = (0, None, to);
    loop {
        interrupt.check()?;
        let records = backup.read_unread(READ_BYTES)?;
        if records.len() == 0 {
            break;
        }
        for found in records {
            let end = found.record.mark.position();
            if stop_at.is_some_and(|to| end > to) {
                return match mark {
                    _ if found.record.position == to.unwrap_or_default() => Ok((count, mark)),
                    None if to < Some(found.record.position) => Ok((0, None)),
                    _ => Err(not_an_end(to)),
                };
            }
            count += 1;
            mark = Some(found.record.mark);
        }
        // All means what is published now, not what comes while it is read.
        stop_at = stop_at.or(Some(backup.tail()));
    }
    match (to, mark) {
        (Some(to), Some(mark)) if mark.position() != to => Err(not_an_end(Some(to))),
        (Some(to), None) if to > backup.position() => Err(not_an_end(Some(to))),
        _ => Ok((count, mark)),
    }
}

fn not_an_end(to: Option<LogPosition>) -> CliError {
    let to = to.unwrap_or_default();
    CliError::Usage(format!(
        "{to} is not the end of a record: pmu tail --json shows the ends"
    ))
}

#[derive(Serialize)]
struct RecoverOutput<'a> {
    region: &'a str,
    #[serde(flatten)]
    found: &'a RecoveredLog,
    /// For a log on several units: those that could not be read.
    missing: Vec<Missing<'a>>,
    seconds: f64,
}

pub(super) fn recover(
    context: &Context<'_>,
    way: &Way,
    arguments: &Recover,
) -> Result<u8, CliError> {
    let region = arguments.region.as_str();
    let begun = Instant::now();
    let mut backup = Reader::open(way, region, false, &context.options())?;
    let mut target = Target::open(&arguments.output)?;
    let beside_payload = target.is_standard();
    let form = Form {
        json: context.output.json,
        length_prefixed: arguments.length_prefixed,
    };
    let found = {
        let mut out = target.writer();
        let mut failed = None;
        let result = backup.recover(|found| {
            let printed = context
                .interrupt
                .check()
                .and_then(|()| form.print(&found, &mut out));
            printed.map_err(|error| {
                failed = Some(error);
                ClientError::Invalid("the output failed".into())
            })
        });
        if let Some(error) = failed {
            return Err(error);
        }
        out.flush().map_err(CliError::output)?;
        result?
    };
    target.complete(None)?;
    let mut text = format!(
        "{region}: {} records from {} to {}, {} of them without a receipt",
        found.records, found.cursor, found.end, found.unacknowledged_records
    );
    if let Some(damage) = &found.damage {
        let _ = write!(text, "\nfound: {damage}");
    }
    let absent = backup.missing();
    let missing = missing_of(&absent);
    add_missing(&mut text, &missing);
    let out = RecoverOutput {
        region,
        found: &found,
        missing,
        seconds: begun.elapsed().as_secs_f64(),
    };
    context.output.report(beside_payload, &out, &text)?;
    Ok(if found.damage.is_some() {
        exit::DAMAGED
    } else {
        exit::DONE
    })
}
