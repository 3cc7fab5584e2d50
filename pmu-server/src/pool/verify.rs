//! Whether what lies on the medium is whole. Changes no byte.

use pmu_format::{Chosen, CopiesError, PoolId, RegionState, RegionTable, Superblock};

use super::copies;
use super::error::PoolError;
use super::finding::{Finding, Part, Severity};
use super::medium::PoolMedium;
use super::{Pool, check_durability, check_place};

/// What verifying found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The pool's id, where a superblock can be read.
    pub pool_id: Option<PoolId>,
    /// The generation of the region table, where one can be read.
    pub generation: Option<u64>,
    /// Regions in it.
    pub regions: usize,
    /// Extents of those regions.
    pub extents: usize,
    /// What was found, in the order of the pool.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst finding; none where all is well.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    fn add(&mut self, part: Part, severity: Severity, text: String) {
        self.findings.push(Finding {
            part,
            severity,
            text,
            repaired: false,
        });
    }
}

/// Verifies a pool that is not open: both copies of superblock and region table, and that the
/// extents of the regions can be. Not what programs keep in their regions. Changes no byte.
///
/// # Errors
/// [`PoolError::Memory`] where the memory can't be read. Damage is no error but a finding.
pub fn verify<M: PoolMedium>(memory: &M) -> Result<Report, PoolError> {
    look(memory).map(|(report, _)| report)
}

type Found = Option<(Superblock, Option<RegionTable>)>;

fn look<M: PoolMedium>(memory: &M) -> Result<(Report, Found), PoolError> {
    let mut report = Report {
        pool_id: None,
        generation: None,
        regions: 0,
        extents: 0,
        findings: Vec::new(),
    };
    if let Err(error) = memory.check_length() {
        // What was cut off can't be looked at.
        report.add(Part::Memory, Severity::Damaged, error.to_string());
        return Ok((report, None));
    }
    let superblock = copies::read_superblock(memory)?;
    let Some(superblock) = chosen(&mut report, Part::Superblock, superblock) else {
        return Ok((report, None));
    };
    report.pool_id = Some(superblock.pool_id());
    if let Err(error) = check_place(memory, &superblock) {
        report.add(Part::Memory, Severity::Damaged, error.to_string());
        if matches!(error, PoolError::CutShort { .. }) {
            return Ok((report, Some((superblock, None))));
        }
    }
    let table = copies::read_table(memory, &superblock)?;
    let table = chosen(&mut report, Part::Table, table);
    if let Some(table) = &table {
        look_at_regions(memory, table, &mut report);
    }
    Ok((report, Some((superblock, table))))
}

/// Notes what is wrong with the copies; the one that counts, if there is one.
fn chosen<T>(
    report: &mut Report,
    part: impl Fn(Option<pmu_format::CopyName>) -> Part,
    result: Result<Chosen<T>, CopiesError>,
) -> Option<T> {
    match result {
        Err(error) => {
            report.add(part(None), Severity::Damaged, error.to_string());
            None
        }
        Ok(found) => {
            if let Some(text) = copies::fault_of(&found.other) {
                report.add(
                    part(Some(copies::other(found.copy))),
                    Severity::Degraded,
                    text,
                );
            }
            Some(found.value)
        }
    }
}

/// That extents lie inside the pool, apart from each other, and are as long as their region, the
/// table's decoder has checked.
fn look_at_regions<M: PoolMedium>(memory: &M, table: &RegionTable, report: &mut Report) {
    report.generation = Some(table.generation);
    report.regions = table.regions.len();
    report.extents = table
        .regions
        .iter()
        .map(|region| region.extents.len())
        .sum();
    if let Err(error) = check_durability(memory, table) {
        report.add(Part::Translation, Severity::Damaged, error.to_string());
    }
    for region in table
        .regions
        .iter()
        .filter(|region| region.state == RegionState::Erasing)
    {
        let text = format!("region {} is being erased", region.name);
        report.add(Part::Translation, Severity::Note, text);
    }
}

impl<M: PoolMedium> Pool<M> {
    /// Verifies the pool while it is open: as [`verify`], and that the medium says what this
    /// process goes by. Changes no byte; changes of the pool wait meanwhile.
    ///
    /// # Errors
    /// [`PoolError::Memory`] where the memory can't be read. Damage is no error but a finding.
    pub fn verify(&self) -> Result<Report, PoolError> {
        let _no_changes = self.control.lock();
        let (mut report, found) = look(&*self.memory)?;
        let visible = self.table();
        if let Some((superblock, table)) = found {
            if superblock != self.superblock {
                let text = "differs from the one that was opened".to_owned();
                report.add(Part::Superblock(None), Severity::Damaged, text);
            }
            if table.is_some_and(|table| table != *visible) {
                let text = "the table on the medium differs from the one in use".to_owned();
                report.add(Part::Translation, Severity::Damaged, text);
            }
        }
        Ok(report)
    }

    /// Writes copies that are damaged anew, from what this process goes by; durable on return.
    /// Returns what was repaired.
    ///
    /// # Errors
    /// [`PoolError::Failed`], [`PoolError::Memory`].
    pub fn repair(&self) -> Result<Vec<Finding>, PoolError> {
        let mut control = self.control.lock();
        self.repair_copies(&mut control)
    }
}
