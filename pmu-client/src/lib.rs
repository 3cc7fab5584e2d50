//! Store and recover checkpoints in persistent memory units: the library that programs link, and the command `pmu`.
//! It never knows a unit's internals, and nothing in it panics on what comes from a peer or from media.
//!
//! A [`Unit`] is connected to once, with an [`Identity`]. Its regions are opened in one of two modes, by one primary and any number of readers:
//!
//! | | the primary | the backup |
//! |---|---|---|
//! | **overwrite mode**: whole checkpoints (sets), the newest few of which are kept | [`Unit::open_sets_primary`] → [`SetPrimary`] | [`Unit::open_sets_backup`] → [`SetReader`] |
//! | **append mode**: a log of records | [`Unit::open_log_primary`] → [`LogPrimary`] | [`Unit::open_log_backup`] → [`LogBackup`] |
//!
//! Module [`snapshot`] stores a running program's memory as sets, with hardly a pause.
//!
//! When the primary has failed, the backup fences it and takes over: [`Unit::take_over_sets`], [`Unit::take_over_log`].
//!
//! ```no_run
//! use pmu_client::{ConnectOptions, Label, OpenOptions, SetChoice, Unit};
//! # fn main() -> pmu_client::Result<()> {
//! // Address and identity from PMU_UNIT and PMU_IDENTITY.
//! let unit = Unit::from_environment(&ConnectOptions::default())?;
//!
//! // The primary: durable when `commit` returns, and the receipt says by which method.
//! let mut primary = unit.open_sets_primary("train", &OpenOptions::new())?;
//! let state = vec![7; 1 << 20];
//! let receipt = primary.commit(&[std::io::IoSlice::new(&state)], Label::default())?;
//! println!("{receipt}");
//!
//! // The backup, on another machine.
//! let mut backup = unit.open_sets_backup("train", &OpenOptions::new())?;
//! let (read, bytes) = backup.read_to_vec(SetChoice::Newest)?;
//! assert_eq!(bytes, state);
//! # Ok(())
//! # }
//! ```
//!
//! # What is durable when
//! Nothing before its [`Receipt`]. A receipt is given only after the completion that proves it, and names the units and the
//! [`PersistenceMethod`] of each; on [`PersistenceMethod::Volatile`] memory (which a region must allow) it proves that the unit has it and no
//! more. An error says what became of the thing: not stored, or [`ClientError::UnknownOutcome`]. What was committed before stays.
//!
//! # Blocking, threads, futures
//! Calls block, each for a named time at most ([`Timeouts`], [`ConnectOptions`]). A [`Unit`] may be used from any threads; an open region by one at
//! a time. [`LogPrimary::submit`] and [`LogPrimary::poll_completions`] don't wait for the unit, and [`LogPrimary::event_fd`] is for reactors;
//! module [`asynchronous`] has futures that need no particular runtime.
//!
//! # Memory
//! Bytes pass through staging memory that is registered once ([`OpenOptions::staging_bytes`]), or not at all
//! ([`SetPrimary::commit_registered`]). After an open, storing allocates nothing.
#![forbid(unsafe_code)]

pub mod agent;
pub mod asynchronous;
mod beat;
#[doc(hidden)]
pub mod cli;
mod control;
#[doc(hidden)]
pub mod distributed;
mod error;
mod link;
mod log;
mod options;
mod outbox;
pub mod process;
mod provider;
mod receipt;
mod region;
#[cfg(feature = "segments")]
pub mod segments;
mod sets;
pub mod snapshot;
mod spread;
mod staging;
#[cfg(feature = "segments")]
pub mod store;
mod unit;
pub mod verify;

pub use beat::{BeatSeen, BeatWatch};
pub use distributed::{Distributed, DistributedLog, DistributedPut};
pub use error::{Attempt, ClientError, Result};
pub use log::{
    Flow, LogBackup, LogPrimary, LogRecord, LogTakeover, Record, RecordMark, Records, RecoveredLog,
    Ticket,
};
pub use options::{
    ConnectOptions, OpenOptions, PersistenceChoice, ProviderChoice, REJOIN_DEFAULT,
    STAGING_BYTES_DEFAULT, STAGING_BYTES_MIN, Timeouts,
};
pub use pmu_auth::Identity;
pub use pmu_core::commit::{Finding, SetState};
pub use pmu_core::spread::Quorum;
pub use pmu_fabric::{Counters, PersistenceMethod, Provider};
pub use pmu_format::{Beat, Epoch, Label, LogPosition, Mode, Need, RegionId, Rights, SetNumber};
pub use pmu_pmem::LocalMemory;
pub use pmu_proto::v1::SessionRole;
pub use pmu_stripe::Layout;
pub use receipt::{Receipt, Stored, UnitProof};
pub use region::{Parts, RegionInfo, SessionControl};
pub use sets::{
    FileSink, Put, RegisteredBuffer, RegisteredSlice, SET_CAPACITY_BYTES_MAX, SetCatalog,
    SetChoice, SetInfo, SetPrimary, SetRead, SetReader, SetSink, SetTakeover, StreamSink,
};
pub use spread::{
    GoingOn, MissingUnit, Network, OnProgress, Reach, ReachedUnit, RebuildProgress, Spread,
    SpreadFence, SpreadLogBackup, SpreadLogPrimary, SpreadLogTakeover, SpreadPrimary, SpreadPut,
    SpreadRead, SpreadReader, SpreadSet, SpreadTakeover,
};
pub use spread::{rebuild, scrub};
pub use unit::{FenceReport, UNIT_VARIABLE, Unit, UnitStatus, identity_directory};
