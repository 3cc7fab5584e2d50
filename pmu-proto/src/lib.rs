//! The control protocol between clients, managers and units: the messages, and the stubs of the services.
//! It decides nothing; the only code beside what is generated carries a [`v1::Reason`] in a gRPC status.
//!
//! The protocol is documented in `proto/pmu/v1/*.proto`, which is its source.

#![forbid(unsafe_code)]

pub mod reason;
mod redacted;

/// Package `pmu.v1`, generated from `proto/pmu/v1/*.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::semicolon_if_nothing_returned,
    clippy::doc_markdown,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("pmu.v1");
}

/// The length of `OpenRegionResponse.connect_token`.
pub const CONNECT_TOKEN_LEN_BYTES: usize = 32;
/// The length of region ids and pool ids.
pub const ID_LEN_BYTES: usize = 16;
/// The bit of `Window.access` for one-sided reads.
pub const ACCESS_READ: u32 = 1;
/// The bit of `Window.access` for one-sided writes, atomic writes included.
pub const ACCESS_WRITE: u32 = 2;
