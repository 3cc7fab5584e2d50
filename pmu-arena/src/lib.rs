//! Memory of a program, whose contents are frozen as an image while the program runs on.
//!
//! This room never learns where an image goes: it knows no regions and no network. It is one of
//! the rooms where unsafe code is allowed.
//!
//! ```
//! use allocator_api2::vec::Vec;
//! use pmu_arena::{Arena, ArenaOptions, Scope};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let arena = Arena::create(&ArenaOptions::new(4 << 20))?;
//! let heap = arena.heap().ok_or("made with one")?;
//! let mut state = Vec::new_in(heap);
//! state.extend([1, 2, 3]);
//!
//! let mut image = arena.freeze(Scope::Full)?;
//! state.push(4); // Not in the image: the page is copied aside first.
//! let mut buffer = vec![0; 64 << 10];
//! while let Some(run) = image.take(&mut buffer)? {
//!     // Pages run.first_page .. run.first_page + run.pages are in the buffer: send them.
//!     assert!(run.pages * arena.page_bytes() <= buffer.len());
//! }
//! let report = image.finish()?;
//! println!("paused for {:?}, {} pages", report.pause, report.pages);
//! # Ok(())
//! # }
//! ```
//!
//! An arena is mapped ([`Arena::create`]), registered ([`Arena::register`]) or restored
//! ([`Arena::restore`]). Its pages are write-protected when it is frozen; the first write to each
//! is noticed by a thread of the arena (or, where the program can do with that, by a signal to the
//! writer: [`ServedBy`]), which copies the page aside where the image still needs it
//! and lets the writer go on. A page stays protected until it is written, so that the next image
//! holds just what changed.

mod arena;
mod aside;
mod bits;
mod error;
mod fork;
mod frozen;
mod heap;
mod memory;
mod options;
mod scan;
mod server;
mod signal;
mod uffd;
mod watch;

pub use arena::{Arena, Restoring, Scope, Writing};
pub use error::{ArenaError, Result};
pub use frozen::{Frozen, Report, Run};
pub use heap::Heap;
pub use options::{ArenaOptions, Cpus, Method, ServedBy};
