//! The primary: begins with nothing, and works until it is done, or dead, or fenced.

use crate::cli::PrimaryArguments;
use crate::clock::now_ns;
use crate::corpus::Corpus;
use crate::error::{DemoError, Result};
use crate::event::Event;
use crate::index::Index;
use crate::work::{Cleaner, Keeper, Position, finish, place};

/// Opens both regions, waits for a line on standard input, and works.
///
/// # Errors
/// [`DemoError`]; also when it was fenced, after saying so in an event.
pub fn run(arguments: &PrimaryArguments) -> Result<()> {
    let work = &arguments.work;
    let corpus = Corpus::load(&work.list)?;
    let place = place(work)?;
    let log = place.open_log();
    let log = log.map_err(DemoError::client("open the log"))?;
    let sets = place.open_sets();
    let sets = sets.map_err(DemoError::client("open the sets"))?;
    let opened_ns = now_ns();
    let cleaner = arguments
        .clear_behind_sets
        .then(|| Cleaner::Later(Box::new(place)));
    let cleared = log.submitted();
    let mut index = Index::default();
    let at = Position {
        index: &mut index,
        log,
        fenced_ns: None,
        opened_ns,
        keeper: Keeper::Sets(sets, Vec::new()),
        cleaner,
        cleared,
    };
    wait_for_go()?;
    let done = finish(work, &corpus, at);
    if let Err(error) = &done
        && let Some(message) = error.fenced()
    {
        Event::StoppedByFence { message }.send()?;
    }
    done
}

fn wait_for_go() -> Result<()> {
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(DemoError::system("wait for the word to go"))?;
    Ok(())
}
