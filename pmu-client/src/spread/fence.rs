//! Fencing a region over several units.

use std::sync::Arc;

use crate::error::Result;
use crate::spread::{MissingUnit, Spread, SpreadFence, missing};
use crate::unit::FenceReport;

/// How often a fence looks whether it stands everywhere at one moment: each time somebody opened or fenced a unit meanwhile, it is fenced again.
const LOOKS_MAX: u32 = 8;

/// A fenced unit, or why it isn't.
type Fenced = std::result::Result<FenceReport, MissingUnit>;

impl Spread {
    /// Takes the right to write from whoever has it, on all units that answer. When this returns `Ok`, no earlier primary can complete a
    /// commit any more: there was a moment at which the fence stood on as many units as that takes.
    ///
    /// Blocks for two requests to all units at once, and for more where others open or fence them meanwhile.
    ///
    /// # Errors
    /// [`crate::ClientError::TooFewUnits`]: fewer were fenced than it takes; the ones that were stay fenced.
    /// [`crate::ClientError::NoGrant`].
    pub fn fence(&self) -> Result<SpreadFence> {
        let answers = self.on_each_unit(|unit| unit.fence(&self.name));
        let answers = answers.into_iter();
        let mut fenced = answers
            .map(|answer| {
                answer.map_or_else(|failed| failed.or_grant().map(Err), |done| Ok(Ok(done)))
            })
            .collect::<Result<Vec<Fenced>>>()?;
        let mut steady = 0;
        for _ in 0..LOOKS_MAX {
            let reached = fenced.iter().flatten().count();
            self.check_fenced(reached, &fenced)?;
            steady = self.fence_again(&mut fenced);
            if steady == fenced.iter().flatten().count() {
                break;
            }
        }
        self.check_fenced(steady, &fenced)?;
        Ok(self.report(fenced))
    }

    fn check_fenced(&self, reached: usize, fenced: &[Fenced]) -> Result<()> {
        let absent = fenced.iter().filter_map(|fenced| fenced.as_ref().err());
        let enough = self.quorum.check_fence(reached);
        enough.map_err(|what| self.too_few(what, absent))
    }

    /// Fences those again whose epoch is not the one that this fence has set; gives how many needed it not.
    fn fence_again(&self, fenced: &mut [Fenced]) -> usize {
        let set: Vec<_> = fenced
            .iter()
            .map(|fenced| fenced.as_ref().ok())
            .map(|report| report.map(|report| report.epoch))
            .collect();
        let again = self.on_each(|member, index| {
            let (Some(epoch), Ok(unit)) = (set[index], &self.units[index]) else {
                return None;
            };
            let now = unit
                .describe(&self.name)
                .and_then(|info| match info.epoch == epoch {
                    true => Ok(None),
                    false => unit.fence(&self.name).map(Some),
                });
            now.map_err(|error| missing(member, &error)).transpose()
        });
        let mut steady = 0;
        for (fenced, again) in fenced.iter_mut().zip(again) {
            match again {
                Some(again) => *fenced = again,
                None => steady += usize::from(fenced.is_ok()),
            }
        }
        steady
    }

    fn report(&self, fenced: Vec<Fenced>) -> SpreadFence {
        let mut report = SpreadFence {
            fenced: Vec::new(),
            missing: Vec::new(),
        };
        for (member, fenced) in self.membership.members.iter().zip(fenced) {
            match fenced {
                Ok(done) => {
                    self.epochs
                        .fenced(&self.name, member.unit.as_str(), done.epoch);
                    report.fenced.push((Arc::from(member.unit.as_str()), done));
                }
                Err(missing) => report.missing.push(missing),
            }
        }
        report
    }
}
