//! The program as an agent runs it: it begins with what it is handed, beats, and makes sets when the agent wants them.

use pmu_client::ClientError;
use pmu_client::agent::{Handover, Program};

use crate::arena::{ArenaIndex, Held};
use crate::cli::ProgramArguments;
use crate::clock::now_ns;
use crate::corpus::Corpus;
use crate::error::{DemoError, Result};
use crate::event::Event;
use crate::record;
use crate::work::{Keeper, Position, finish_under, place};

/// What was handed over, in numbers.
#[derive(Debug, Default)]
struct Handed {
    set_documents: u32,
    records: u64,
    bytes: u64,
}

/// Works until it is done, or told to end, or fenced.
///
/// # Errors
/// [`DemoError`]; also when it was fenced, after saying so to the agent and in an event.
pub fn run(arguments: &ProgramArguments) -> Result<()> {
    let work = &arguments.work;
    let pid = std::process::id();
    Event::Begun {
        at_ns: now_ns(),
        pid,
    }
    .send()?;
    let corpus = Corpus::load(&work.list)?;
    let handover = Handover::from_environment();
    let handover = handover.map_err(DemoError::client("read what was handed over"))?;
    let restored = match &handover {
        Some(handover) => Held::restore(handover)?,
        None => None,
    };
    let Held { arena, index } = match restored {
        Some(held) => held,
        None => Held::create(arguments.arena_bytes)?,
    };
    let handed = match &handover {
        Some(handover) => take(handover, index)?,
        None => Handed::default(),
    };
    let is_rehearsal = match handover {
        Some(handover) => {
            let is = handover.is_rehearsal;
            let given = handover.release();
            given.map_err(DemoError::client("give back what was handed over"))?;
            is
        }
        None => false,
    };
    if is_rehearsal {
        eprintln!(
            "rehearsal: {} documents, {} words",
            index.documents(),
            index.words()
        );
        return Ok(());
    }
    let mut agent = Program::from_environment();
    let place = place(work)?;
    let log = place.open_log();
    let log = log.map_err(DemoError::client("open the log"))?;
    let snapshots = place.open_snapshots(arena);
    let snapshots = snapshots.map_err(DemoError::snapshot("open the sets"))?;
    let opened_ns = now_ns();
    if let Some(agent) = &mut agent {
        agent.ready(log.epoch());
    }
    Event::Recovered {
        at_ns: now_ns(),
        documents: index.documents(),
        set_documents: handed.set_documents,
        tail_records: handed.records,
        tail_bytes: handed.bytes,
    }
    .send()?;
    let cleared = log.submitted();
    let at = Position {
        index,
        log,
        fenced_ns: pmu_client::agent::fenced_ns(),
        opened_ns,
        keeper: Keeper::Snapshots(Box::new(snapshots), None),
        // The agents clear behind sets.
        cleaner: None,
        cleared,
    };
    let done = finish_under(work, &corpus, at, agent.as_mut());
    if let Err(error) = &done
        && let Some(message) = error.fenced()
    {
        let said = message.clone();
        Event::StoppedByFence { message }.send()?;
        if let Some(agent) = &mut agent {
            agent.fenced(&said);
        }
    }
    done
}

/// The records behind the newest set: none may be missing, which the index finds out.
fn take(handover: &Handover, index: &mut ArenaIndex) -> Result<Handed> {
    let mut handed = Handed {
        set_documents: index.documents(),
        ..Handed::default()
    };
    let mut refused = None;
    let visited = handover.visit_records(|_, bytes| {
        let added = record::decode(bytes).and_then(|(document, words)| {
            let before = index.documents();
            index.add(document, &words)?;
            Ok(index.documents() > before)
        });
        match added {
            Ok(true) => {
                handed.records += 1;
                handed.bytes += bytes.len() as u64;
            }
            Ok(false) => {}
            Err(error) => {
                refused = Some(error);
                return Err(ClientError::Invalid("a record is not ours".into()));
            }
        }
        Ok(())
    });
    if let Some(error) = refused {
        return Err(error);
    }
    visited.map_err(DemoError::client("read the records handed over"))?;
    Ok(handed)
}
