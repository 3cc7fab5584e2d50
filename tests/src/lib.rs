//! The witness: writes what it can recognise again, keeps the receipts outside of the unit, and after a failure compares them
//! with what is recovered. It never looks at media other than as any client does.
//!
//! Every byte of a record follows from (seed, epoch, number of the record in its epoch), and of a set from (seed, epoch,
//! number of the set). So whatever is recovered can be checked without knowing what was last written: it is exactly what some
//! primary of this seed wrote there, or it is damage.
#![forbid(unsafe_code)]

pub mod audit;
pub mod content;
pub mod failure;
pub mod one_sided;
pub mod receipts;
pub mod recover;
pub mod site;
pub mod takeover;
pub mod write;
