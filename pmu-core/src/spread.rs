//! Which set of a region that is spread over several units is the newest, whose it is, and when a fence of it holds.
//!
//! A writer commits in two steps. First every member's share is written and made durable, with no
//! member publishing it. Only when that has completed on at least [`Quorum::units_min`] members does
//! the writer publish on them, and only when as many have published is the set acknowledged. So:
//!
//! * A set that any member has published is whole on `units_min` members or more, whatever became of
//!   its writer between two of them. No share of it is overwritten before the next set but one.
//! * Of any [`Quorum::units_to_decide`] members at least one has published the newest acknowledged
//!   set. With fewer, nobody can tell a member that missed it from one that didn't.
//! * A fence that reached as many leaves a writer without the members for one more commit. It takes none of them back ([`Tenure`]).
//!
//! A writer that was fenced on some members can still publish on the others what it had prepared, without ever acknowledging it.
//! Therefore each writer has a **term** ([`Newest`]), and what a member has published counts only if no member that answers knows of a
//! later term.

mod log;
mod members;
mod quorum;
mod tenure;
mod term;

pub use log::cursor_of;
pub use members::{ChangeRefused, check_change};
pub use quorum::{Quorum, TooFewUnits};
pub use tenure::Tenure;
pub use term::{Newest, Stand, StandError, TermOpening};
