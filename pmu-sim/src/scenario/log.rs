//! One unit in append mode: primaries append, others take over, backups read and clear.

pub(super) mod model;
mod programs;

use std::sync::Arc;

use parking_lot::Mutex;
use pmu_client::RegionInfo;
use pmu_format::{LogGeometry, Mode, PAGE_BYTES, RegionId, VirtualAddress};
use pmu_proto::v1::SessionRole;

use self::model::LogModel;
use crate::context::{Context, Wish};
use crate::scenario::sets::{persist, sorted};
use crate::scenario::turns::check;
use crate::unit::Unit;

const ADDRESS: VirtualAddress = VirtualAddress(0x6000_0000_0000);

/// What the programs share.
#[derive(Clone)]
struct Site {
    model: Arc<Mutex<LogModel>>,
    /// The longest payload of a record.
    record_bytes_max: u64,
    staging_bytes: usize,
}

/// See the module.
pub(crate) fn run(context: &Context) {
    let site = context.with(|state| {
        let ring_bytes = state.random.pick(&[4096, 4104, 8192, 20_480, 65_536]);
        let length = 2 * PAGE_BYTES + ring_bytes;
        let id = RegionId([9; 16]);
        let info = RegionInfo::new("sim", id, Mode::Append, ADDRESS, length);
        let extents = (0..state.random.below(3))
            .map(|_| state.random.below(length / 4096) * 4096)
            .collect();
        state
            .units
            .push(Unit::new("unit-a", info, sorted(extents), 1));
        let longest = LogGeometry::new(length).map_or(0, |geometry| geometry.payload_max_bytes());
        Site {
            model: Arc::new(Mutex::new(LogModel::default())),
            record_bytes_max: u64::from(longest),
            staging_bytes: state.random.pick(&[1024, 4096, 65_536]),
        }
    });
    let (heirs, backups) = context.draw(|random| (random.below(3), random.below(3)));
    let mut started = Vec::new();
    let first = site.clone();
    started.push(context.spawn("primary", move |context| programs::primary(context, &first)));
    for _ in 0..heirs {
        let site = site.clone();
        started.push(context.spawn("heir", move |context| programs::heir(context, &site)));
    }
    for _ in 0..backups {
        let site = site.clone();
        started.push(context.spawn("backup", move |context| programs::backup(context, &site)));
    }
    for program in started {
        context.join(program);
    }
    if !context.is_violated() {
        finish(context, &site);
    }
}

impl Site {
    const fn wish(&self, role: SessionRole, clears: bool) -> Wish {
        Wish {
            role,
            clears,
            staging_bytes: self.staging_bytes,
            goes_on_from: None,
        }
    }

    /// Tells the model, and reports what it finds wrong.
    fn check<T>(
        &self,
        context: &Context,
        work: impl FnOnce(&mut LogModel) -> Result<T, String>,
    ) -> Option<T> {
        check(context, &self.model, work)
    }
}

/// Everything works again: nothing acknowledged is lost, and the log goes on.
fn finish(context: &Context, site: &Site) {
    context.with(|state| {
        state.faults.stop();
        state.start_unit(0);
    });
    for round in 0..2 {
        if let Err(what) = persist(context, || programs::last_round(context, site)) {
            context.violate(what);
        }
        if context.is_violated() || round == 1 {
            return;
        }
        context.with(|state| {
            state.cut_power(0, None);
            state.start_unit(0);
        });
    }
}
