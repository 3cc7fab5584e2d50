//! The pools of a unit: [`crate::pool`] under the configuration's names, its errors as refusals, its findings as messages;
//! and the commands that work on a pool without a unit.

use std::fmt::Write;
use std::sync::Arc;

use pmu_fabric::{PersistenceMethod, UnitFabric};
use pmu_format::{CopyName, Epoch, FormatError, Grant, Medium, PoolId, RegionEntry, RegionId};
use pmu_pmem::{PmemError, PoolMemory, PoolSpec};
use pmu_proto::v1::verify_pool_response::Step;
use pmu_proto::v1::{self, Reason, VerifyPoolResponse, VerifyPoolSummary};

use crate::cli::{InitArguments, VerifyArguments};
use crate::config::{ByteSize, PoolSection};
use crate::control::reasons::{Refusal, with_causes};
use crate::pool::{
    self, Finding, InitOptions, NewRegion, Part, Pool, PoolError, Severity, Space, to_pmem,
};

/// Superblocks and tables: two copies of each.
const STRUCTURES_PER_POOL: u32 = 4;

/// One pool, under the name that the configuration gives it.
pub(crate) struct UnitPool {
    pub(crate) name: String,
    pub(crate) medium: Medium,
    pub(crate) inbound_writes_reach_medium: bool,
    pool: Pool,
}

impl UnitPool {
    /// Opens the pool; one in memory without a path is made. Blocks.
    pub(crate) fn open(section: &PoolSection) -> Result<Self, PoolError> {
        let medium = to_pmem(section.medium);
        let pool = match (&section.path, section.size) {
            (Some(path), _) => Pool::open(&PoolSpec::new(medium, path))?,
            (None, size) => {
                let length_bytes = size.map(|size| size.0);
                Pool::init(
                    &PoolSpec::memory(),
                    InitOptions {
                        length_bytes,
                        ..InitOptions::default()
                    },
                )?
            }
        };
        Ok(Self {
            name: section.name.clone(),
            medium: section.medium,
            inbound_writes_reach_medium: section.inbound_writes_reach_medium,
            pool,
        })
    }

    pub(crate) fn id(&self) -> PoolId {
        self.pool.id()
    }

    pub(crate) fn memory(&self) -> Arc<PoolMemory> {
        Arc::clone(self.pool.memory())
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.pool.is_durable()
    }

    /// The medium lost something, or a change of the tables was cut short: it must be opened anew.
    pub(crate) fn has_failed(&self) -> bool {
        self.pool.has_failed() || self.pool.memory().failure().is_some()
    }

    pub(crate) fn length_bytes(&self) -> u64 {
        self.pool.superblock().length_bytes()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.pool.table().generation
    }

    pub(crate) fn space(&self) -> Space {
        self.pool.space()
    }

    /// All regions, those being erased too.
    pub(crate) fn entries(&self) -> Vec<RegionEntry> {
        self.pool.table().regions.clone()
    }

    pub(crate) fn region_count(&self) -> usize {
        self.pool.table().regions.len()
    }

    pub(crate) fn entry(&self, id: RegionId) -> Option<RegionEntry> {
        self.pool.region(id).ok()
    }

    pub(crate) fn create(&self, new: &NewRegion) -> Result<RegionEntry, Refusal> {
        self.pool.create(new).map_err(|error| self.refusal(&error))
    }

    pub(crate) fn set_epoch(&self, id: RegionId, epoch: Epoch) -> Result<(), Refusal> {
        self.pool
            .set_epoch(id, epoch)
            .map_err(|error| self.refusal(&error))
    }

    pub(crate) fn set_grants(&self, id: RegionId, grants: Vec<Grant>) -> Result<(), Refusal> {
        self.pool
            .set_grants(id, grants)
            .map_err(|error| self.refusal(&error))
    }

    pub(crate) fn set_attributes(&self, id: RegionId, attributes: Vec<u8>) -> Result<(), Refusal> {
        self.pool
            .set_attributes(id, attributes)
            .map_err(|error| self.refusal(&error))
    }

    /// Erases and frees a region on which nobody has a window, nor will get one.
    pub(crate) fn delete(&self, id: RegionId) -> Result<(), Refusal> {
        self.pool
            .delete(id, || ())
            .map_err(|error| self.refusal(&error))
    }

    /// What a listener can prove for this pool, as far as the site attests it; strongest first.
    pub(crate) fn methods(&self, fabric: &dyn UnitFabric) -> Vec<PersistenceMethod> {
        let mut methods = fabric.persistence_methods(self.pool.memory());
        methods.retain(|method| {
            *method != PersistenceMethod::ReadAfterWrite || self.inbound_writes_reach_medium
        });
        methods
    }

    fn refusal(&self, error: &PoolError) -> Refusal {
        let reason = match error {
            PoolError::NameTaken { .. } => Reason::NameTaken,
            PoolError::NoSuchRegion { .. } => Reason::NoSuchRegion,
            PoolError::BeingErased { .. } => Reason::BeingErased,
            PoolError::NeedsDurable { .. } => Reason::VolatilePool,
            PoolError::NoRoom { .. } | PoolError::AddressesUsedUp => Reason::PoolFull,
            PoolError::TableFull { .. } => Reason::TableFull,
            PoolError::BadRegion {
                source: FormatError::TooShort { .. },
                ..
            } => Reason::TooSmall,
            PoolError::BadRegion { .. } | PoolError::OutsideRegion { .. } => Reason::BadRequest,
            _ => Reason::Medium,
        };
        let hint = match reason {
            Reason::PoolFull => "; delete a region, or take another pool",
            Reason::TableFull => {
                "; delete a region or grants, or make a pool with a larger --table-size"
            }
            Reason::Medium => {
                "; look at the unit's log, stop the unit and run `pmu-server verify` on the pool"
            }
            _ => "",
        };
        Refusal::new(
            reason,
            format!("pool {}: {}{hint}", self.name, with_causes(error)),
        )
    }
}

/// Verifies open pools: the findings of each, and then one summary.
pub(crate) fn verify(pools: &[&UnitPool]) -> Result<Vec<VerifyPoolResponse>, Refusal> {
    let mut steps = Vec::new();
    let mut regions = 0;
    for pool in pools {
        let report = pool.pool.verify().map_err(|error| pool.refusal(&error))?;
        regions += report.regions;
        for finding in pool.pool.findings().iter().chain(&report.findings) {
            steps.push(Step::Finding(message(&pool.name, finding)));
        }
    }
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    steps.push(Step::Summary(VerifyPoolSummary {
        pools: count(pools.len()),
        structures_checked: count(pools.len()).saturating_mul(STRUCTURES_PER_POOL),
        regions: count(regions),
    }));
    Ok(steps
        .into_iter()
        .map(|step| VerifyPoolResponse { step: Some(step) })
        .collect())
}

fn message(pool: &str, finding: &Finding) -> v1::Finding {
    let part = match finding.part {
        Part::Superblock(Some(CopyName::B)) => v1::PoolPart::SuperblockB,
        Part::Superblock(_) => v1::PoolPart::SuperblockA,
        Part::Table(Some(CopyName::B)) => v1::PoolPart::TableB,
        Part::Table(_) => v1::PoolPart::TableA,
        Part::Translation => v1::PoolPart::Translation,
        Part::Memory => v1::PoolPart::Unspecified,
    };
    let severity = match finding.severity {
        // What opening the pool put right is only worth knowing.
        _ if finding.repaired => v1::Severity::Note,
        Severity::Note => v1::Severity::Note,
        Severity::Degraded => v1::Severity::Degraded,
        Severity::Damaged => v1::Severity::Damaged,
    };
    v1::Finding {
        pool: pool.to_owned(),
        part: part.into(),
        severity: severity.into(),
        detail: finding.to_string(),
    }
}

/// Makes a pool, as the command `init`; returns what to tell the user. Blocks while zeros are written.
///
/// # Errors
/// As [`Pool::init`].
pub fn init(
    arguments: &InitArguments,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<String, PoolError> {
    let spec = PoolSpec::new(to_pmem(arguments.medium), &arguments.pool);
    let options = InitOptions {
        length_bytes: arguments.size.map(|size| size.0),
        table_length_bytes: arguments.table_size.0,
        force: arguments.force,
        progress: Some(progress),
    };
    let made = Pool::init(&spec, options)?;
    let durability = if made.is_durable() {
        "durable"
    } else {
        "volatile: it does not survive a loss of power"
    };
    let room = ByteSize(made.space().total_bytes);
    let length = ByteSize(made.superblock().length_bytes());
    Ok(format!(
        "pool {} at {spec}: {length}, {room} of it for regions, {durability}",
        made.id()
    ))
}

/// What verifying a pool offline found.
#[derive(Debug)]
pub struct Verified {
    place: String,
    report: pool::Report,
}

/// Verifies a pool that no unit is using, as the command `verify`. Changes no byte. Blocks.
///
/// # Errors
/// The pool is in use, is not there, or can't be read.
pub fn verify_offline(arguments: &VerifyArguments) -> Result<Verified, PoolError> {
    let spec = PoolSpec::new(to_pmem(arguments.medium), &arguments.pool);
    let memory = PoolMemory::open(&spec).map_err(|error: PmemError| PoolError::Memory(error))?;
    Ok(Verified {
        place: spec.to_string(),
        report: pool::verify(&memory)?,
    })
}

impl Verified {
    /// Whether a copy, or more than that, is damaged.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.report
            .worst()
            .is_some_and(|worst| worst > Severity::Note)
    }

    fn verdict(&self) -> &'static str {
        match self.report.worst() {
            Some(Severity::Damaged) => "damaged",
            Some(Severity::Degraded) => {
                "degraded: one copy serves; starting the unit repairs the other"
            }
            Some(Severity::Note) | None => "good",
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let report = &self.report;
        let id = report
            .pool_id
            .map_or_else(|| "unreadable".to_owned(), |id| id.to_string());
        let mut text = format!(
            "pool {id} at {}: {} regions in {} extents\n",
            self.place, report.regions, report.extents
        );
        for finding in &report.findings {
            let _ = writeln!(text, "{}: {finding}", severity_name(finding.severity));
        }
        let _ = writeln!(text, "{}", self.verdict());
        text
    }

    /// One JSON object.
    #[must_use]
    pub fn json(&self) -> String {
        let findings: Vec<_> = self
            .report
            .findings
            .iter()
            .map(|finding| {
                serde_json::json!({
                    "part": finding.part.to_string(),
                    "severity": severity_name(finding.severity),
                    "text": finding.text,
                })
            })
            .collect();
        serde_json::json!({
            "place": self.place,
            "pool_id": self.report.pool_id.map(|id| id.to_string()),
            "generation": self.report.generation,
            "regions": self.report.regions,
            "extents": self.report.extents,
            "findings": findings,
            "damaged": self.is_damaged(),
        })
        .to_string()
    }
}

fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Degraded => "degraded",
        Severity::Damaged => "damaged",
    }
}
