//! Spreads a checkpoint over several units: where each byte lies, and the redundancy from which
//! lost bytes are computed again. It never does I/O: pure functions over numbers and slices, no
//! clock, thread, socket or file, and no allocation where bytes are computed.
//!
//! * [`Layout`]: `single`, `mirror:N`, `stripe:N`, `parity:K+1`, `erasure:K+M`.
//! * [`Placement`]: segment, subsegments, redundancy groups; who stores what at which offset.

#![deny(unsafe_code)]

mod layout;
mod placement;

pub use layout::{Layout, LayoutError, LayoutKind, Ratio, UNITS_MAX};
pub use placement::{
    Group, GroupIndex, Piece, Pieces, Placement, PlacementError, SEGMENT_LEN_MAX, SHARD_ALIGN,
    SUBSEGMENT_LEN_MAX, Shard, ShardIndex, UnitIndex,
};
