//! Staging memory of distributors: one more unit, which keeps nothing, and of which each session has a part.

use pmu_client::RegionInfo;
use pmu_fabric::AccessWindow;
use pmu_format::{Epoch, Mode, RegionId, Rights, VirtualAddress};
use pmu_proto::v1::SessionRole;

use crate::state::State;
use crate::unit::{Session, Stage, Unit, Window};
use crate::wire::{Far, Wire};

/// Its name, and that of its only region.
pub(crate) const NAME: &str = "staging";
const ADDRESS: VirtualAddress = VirtualAddress(0x4000_0000_0000);
/// Sessions that may have staging memory at one time.
const PARTS: usize = 16;

/// Part of a session, from when a data connection is expected.
#[derive(Clone, Copy, Debug)]
struct Part {
    session: u64,
    /// The distributor.
    process: usize,
    wire: Option<usize>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Staging {
    pub(crate) unit: usize,
    part_bytes: u64,
    parts: [Option<Part>; PARTS],
}

impl State {
    /// Adds staging memory behind the units, of which each session has `part_bytes`.
    pub(crate) fn add_staging(&mut self, part_bytes: u64) {
        let length = part_bytes * PARTS as u64;
        let id = RegionId([0xee; 16]);
        let info = RegionInfo::new(NAME, id, Mode::Append, ADDRESS, length);
        let weight = self.random.pick(&[1, 1, 8]);
        self.units.push(Unit::blank(NAME, info, weight));
        self.staging = Some(Staging {
            unit: self.units.len() - 1,
            part_bytes,
            parts: [None; PARTS],
        });
    }

    /// How many units there are, without the staging memory.
    pub(crate) fn units_proper(&self) -> usize {
        self.units.len() - usize::from(self.staging.is_some())
    }

    pub(crate) fn is_staging(&self, unit: usize) -> bool {
        self.staging
            .as_ref()
            .is_some_and(|staging| staging.unit == unit)
    }

    pub(crate) fn staging_part_bytes(&self) -> u64 {
        self.staging
            .as_ref()
            .map_or(0, |staging| staging.part_bytes)
    }

    /// Expects a data connection to a part of the staging memory; the session's number, by which it is known.
    pub(crate) fn expect_data(&mut self, process: usize) -> Option<u64> {
        let session = self.next_session;
        let parts = &mut self.staging.as_mut()?.parts;
        let free = parts.iter_mut().find(|part| part.is_none())?;
        *free = Some(Part {
            session,
            process,
            wire: None,
        });
        self.next_session += 1;
        Some(session)
    }

    fn part_of(&mut self, session: u64) -> Option<(usize, &mut Part)> {
        let parts = &mut self.staging.as_mut()?.parts;
        let parts = parts.iter_mut().enumerate();
        let mut parts = parts.filter_map(|(index, part)| Some((index, part.as_mut()?)));
        parts.find(|(_, part)| part.session == session)
    }

    /// The program makes the data connection that is expected; none if it isn't any more.
    pub(crate) fn connect_data(&mut self, program: usize, session: u64) -> Option<usize> {
        let unit = self.staging.as_ref()?.unit;
        let wire = self.wires.len();
        self.part_of(session)?.1.wire = Some(wire);
        let weight = self.random.pick(&[1, 4, 16]) * self.units[unit].weight;
        self.wires.push(Wire::new(program, unit, session, weight));
        Some(wire)
    }

    /// Gives the data connection of a session a window; none if there is no connection.
    pub(crate) fn bind_data(&mut self, session: u64) -> Option<AccessWindow> {
        let (unit, length) = self
            .staging
            .as_ref()
            .map(|staging| (staging.unit, staging.part_bytes))?;
        let (index, part) = self.part_of(session)?;
        let (process, wire) = (part.process, part.wire?);
        let key = self.next_key;
        self.next_key += 2;
        let access = AccessWindow {
            address: ADDRESS.get() + index as u64 * length,
            length,
            access_key: key,
            flush_key: key + 1,
        };
        let opened = Session {
            id: session,
            wire,
            process,
            role: SessionRole::Reader,
            rights: Rights::empty(),
            epoch: Epoch(0),
            stage: Stage::Active,
            windows: vec![Window {
                access,
                writes: true,
            }],
        };
        self.units[unit].sessions.insert(session, opened);
        Some(access)
    }

    /// Copies out of the ring of a session, where it has staging memory.
    pub(crate) fn copy_staging(&mut self, session: u64, position: u64, bytes: &mut [u8]) -> bool {
        let length = self.staging_part_bytes();
        let Some((index, _)) = self.part_of(session) else {
            return false;
        };
        let Some(unit) = self.staging.as_ref().map(|staging| staging.unit) else {
            return false;
        };
        let offset = index as u64 * length + position % length;
        self.units[unit].medium.read(offset, bytes, |_| true);
        true
    }

    /// Takes the window away and closes the data connection: nothing is written any more, and the part may be another's.
    pub(crate) fn withdraw_data(&mut self, session: u64) {
        let Some((index, part)) = self.part_of(session) else {
            return;
        };
        let wire = part.wire;
        if let Some(staging) = &mut self.staging {
            staging.parts[index] = None;
            self.units[staging.unit].sessions.remove(&session);
        }
        if let Some(wire) = wire {
            self.wires[wire].far = Far::Gone;
        }
    }

    /// A distributor is killed: its memory is gone.
    pub(crate) fn withdraw_data_of(&mut self, process: usize) {
        let parts = self.staging.iter().flat_map(|staging| staging.parts);
        let own = parts.flatten().filter(|part| part.process == process);
        let own: Vec<u64> = own.map(|part| part.session).collect();
        for session in own {
            self.withdraw_data(session);
        }
    }
}
