//! Spreads a checkpoint over several units: where each byte lies, and the redundancy from which
//! lost bytes are computed again. It never does I/O: pure functions over numbers and slices, no
//! clock, thread, socket or file, and no allocation where bytes are computed.
//!
//! * [`Layout`]: `single`, `mirror:N`, `stripe:N`, `parity:K+1`, `erasure:K+M`.
//! * [`Placement`]: segment, subsegments, redundancy groups; who stores what at which offset.
//! * [`Code`]: the redundant shards of a group, at once or while data passes by; verify.
//! * [`Reconstruct`]: missing shards from any K others.
//! * [`Kernel`]: the instructions with which bytes are computed; the best is chosen at run time.
//!
//! # Shapes
//! With K data shards and M redundant ones, N = K+M:
//!
//! | layout | K | M | coefficients | units to read | stored for a byte |
//! |---|---|---|---|---|---|
//! | `single` | 1 | 0 | | 1 | 1 |
//! | `mirror:N` | 1 | N-1 | 1 | 1 | N |
//! | `stripe:N` | N | 0 | | N | 1 |
//! | `parity:K+1` | K | 1 | 1 | K | (K+1)/K |
//! | `erasure:K+M` | K | M | 1/(i ⊕ j) | K | (K+M)/K |
//!
//! Shard `s` of group `g` lies on unit `(g + s) mod N` at offset `g` × subsegment length. Redundant
//! shard `i` is `Σ c(i, j) × data shard j`, byte by byte in GF(2^8) with the polynomial 0x11d.
//! Both are formats: what was stored with one version is read with the next.
//!
//! # Example
//! ```
//! use pmu_stripe::{Code, Layout, Placement, Reconstruct, ShardIndex};
//!
//! let layout: Layout = "erasure:4+2".parse()?;
//! let checkpoint: Vec<u8> = (0..100_000u32).map(|byte| byte as u8).collect();
//! let placement = Placement::new(layout, checkpoint.len() as u64, 4096)?;
//! let code = Code::new(layout);
//! for group in placement.groups() {
//!     let data: Vec<&[u8]> = placement
//!         .shards(&group)
//!         .filter(|shard| !shard.redundant)
//!         .map(|shard| &checkpoint[shard.segment.start as usize..shard.segment.end as usize])
//!         .collect();
//!     let mut redundant = vec![vec![0; group.shard_len as usize]; layout.redundant_shards()];
//!     let mut slices: Vec<&mut [u8]> = redundant.iter_mut().map(Vec::as_mut_slice).collect();
//!     code.encode(&data, &mut slices)?;
//!
//!     // Shards 0 and 2 are lost.
//!     let present = [1, 3, 4, 5].map(ShardIndex).into_iter().collect();
//!     let plan = Reconstruct::new(&code, present)?;
//!     let (mut first, mut third) = (vec![0; data[0].len()], vec![0; data[2].len()]);
//!     let sources = [data[1], data[3], &redundant[0], &redundant[1]];
//!     plan.apply(&sources, &mut [&mut first, &mut third])?;
//!     assert_eq!((&first[..], &third[..]), (data[0], data[2]));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(unsafe_code)]

mod code;
mod field;
mod kernel;
mod layout;
mod placement;
mod reconstruct;
mod shard_set;

pub use code::{Code, ShapeError, VerifyError};
pub use kernel::{Kernel, KernelName};
pub use layout::{Layout, LayoutError, LayoutKind, Ratio, UNITS_MAX};
pub use placement::{
    Group, GroupIndex, Piece, Pieces, Placement, PlacementError, SEGMENT_LEN_MAX, SHARD_ALIGN,
    SUBSEGMENT_LEN_MAX, Shard, ShardIndex, UnitIndex,
};
pub use reconstruct::{Reconstruct, ReconstructError};
pub use shard_set::ShardSet;
