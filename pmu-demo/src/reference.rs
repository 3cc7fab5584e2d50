//! The uninterrupted run, without any unit: what the answer must be.

use std::fs;
use std::path::Path;

use allocator_api2::alloc::Allocator;

use crate::cli::ReferenceArguments;
use crate::clock::now_ns;
use crate::corpus::Corpus;
use crate::error::{DemoError, Result};
use crate::event::{Event, Totals};
use crate::index::Index;
use crate::{record, words};

/// Makes the index and reports the sizes, as a run with a unit would have them.
///
/// # Errors
/// What reading documents and writing the result may meet.
pub fn run(arguments: &ReferenceArguments) -> Result<()> {
    let corpus = Corpus::load(&arguments.list)?;
    let begun_ns = now_ns();
    let (mut index, mut totals) = (Index::default(), Totals::default());
    let (mut text, mut encoded) = (Vec::new(), Vec::new());
    for document in 0..corpus.len() {
        corpus.read(document, &mut text)?;
        let words = words::count(&mut text);
        record::encode(document, &words, &mut encoded);
        index.add(document, &words)?;
        totals.records += 1;
        totals.record_bytes += encoded.len() as u64;
    }
    finish(&index, &arguments.result, totals, begun_ns)
}

/// Writes the index in its one form, and reports the end.
pub(crate) fn finish<A: Allocator + Clone>(
    index: &Index<A>,
    to: &Path,
    mut totals: Totals,
    begun_ns: u64,
) -> Result<()> {
    let mut state = Vec::new();
    index.encode(&mut state);
    fs::write(to, &state).map_err(DemoError::file("write", to))?;
    totals.run_ns = now_ns() - begun_ns;
    let (state_bytes, words) = (state.len() as u64, index.words() as u64);
    Event::Finished {
        totals,
        state_bytes,
        words,
    }
    .send()
}
