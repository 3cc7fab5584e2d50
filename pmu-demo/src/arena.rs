//! The index in memory whose contents can be frozen while it grows, and that comes back in another process at the same address.
#![allow(
    unsafe_code,
    reason = "what lies in a restored arena is taken for what it was"
)]

use std::fmt::Write as _;
use std::ptr::NonNull;
use std::sync::Arc;

use allocator_api2::boxed::Box as BoxIn;
use pmu_client::agent::Handover;
use pmu_client::snapshot::{Arena, ArenaOptions, Heap};

use crate::error::{DemoError, Result};
use crate::index::Index;

/// The index, all of whose memory is the arena's.
pub type ArenaIndex = Index<Heap<'static>>;

/// An arena for as long as the process lives, and the index in it.
pub struct Held {
    /// The arena.
    pub arena: Arc<Arena>,
    /// Its root.
    pub index: &'static mut ArenaIndex,
}

/// So much memory for an index of so many words, whose one form has so many bytes: tables and vectors double as they grow.
#[must_use]
pub fn bytes_for(words: u64, encoded_bytes: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    (2 * MIB + 384 * words + 4 * encoded_bytes).next_multiple_of(2 * MIB)
}

impl Held {
    /// A new arena with an empty index.
    ///
    /// # Errors
    /// [`DemoError::Unusable`]: no memory, or a length that is no multiple of 2 MiB.
    pub fn create(len_bytes: u64) -> Result<Self> {
        let arena = Arena::create(&options(len_bytes)).map_err(unusable)?;
        let (arena, heap) = keep(arena)?;
        let index = BoxIn::leak(BoxIn::new_in(Index::new_in(heap), heap));
        heap.set_root(NonNull::from(&mut *index))
            .map_err(unusable)?;
        Ok(Self { arena, index })
    }

    /// What another instance's newest snapshot holds; none where there is none.
    ///
    /// # Errors
    /// [`DemoError::Unusable`]: it can't be mapped where it was, or is of another program.
    pub fn restore(handover: &Handover) -> Result<Option<Self>> {
        let options = options(handover.arena.map_or(0, |arena| arena.bytes));
        let Some(restoring) = handover.restore_arena(&options).map_err(unusable)? else {
            return Ok(None);
        };
        // SAFETY: the regions are this program's alone, and both instances are the same build of it.
        let arena = unsafe { restoring.seal() }.map_err(unusable)?;
        let (arena, heap) = keep(arena)?;
        let root = heap.root::<ArenaIndex>();
        let mut root = root.ok_or_else(|| unusable("the arena has no index"))?;
        // SAFETY: `create` stored an index there, and this is the only reference to it in this process. Its pointers lead into the arena,
        // which lies where it lay and is never unmapped.
        let index = unsafe { root.as_mut() };
        Ok(Some(Self { arena, index }))
    }
}

fn options(len_bytes: u64) -> ArenaOptions {
    ArenaOptions::new(usize::try_from(len_bytes).unwrap_or(usize::MAX))
}

/// Has the arena outlive everything in it.
fn keep(arena: Arena) -> Result<(Arc<Arena>, Heap<'static>)> {
    let arena: &'static Arc<Arena> = Box::leak(Box::new(Arc::new(arena)));
    let heap = arena.heap();
    let heap = heap.ok_or_else(|| unusable("the arena has no heap"))?;
    Ok((Arc::clone(arena), heap))
}

fn unusable(error: impl std::fmt::Display) -> DemoError {
    let mut text = "the arena: ".to_owned();
    let _ = write!(text, "{error}");
    DemoError::Unusable(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_in_an_arena_is_the_same_and_fits() {
        let (mut plain, mut words_seen) = (Index::default(), 0);
        let texts: Vec<String> = (0..20_000)
            .map(|word| format!("word{}", word * 7919))
            .collect();
        let documents: Vec<Vec<(&[u8], u32)>> = (0..400)
            .map(|document| {
                let first = document * 49;
                let words = texts[first..first + 90].iter().zip(1..);
                words
                    .map(|(word, count)| (word.as_bytes(), count))
                    .collect()
            })
            .collect();
        for (number, words) in documents.iter().enumerate() {
            plain.add(number as u32, words).unwrap();
            words_seen = plain.words();
        }
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        plain.encode(&mut expected);
        let held = Held::create(bytes_for(words_seen as u64, expected.len() as u64)).unwrap();
        for (number, words) in documents.iter().enumerate() {
            held.index.add(number as u32, words).unwrap();
        }
        held.index.encode(&mut found);
        assert_eq!(found, expected);
    }
}
