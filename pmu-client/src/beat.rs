//! The heartbeat of a primary, in the region itself: whoever watches it learns of a program that hangs, not only of one that ended.

use pmu_fabric::Chain;
use pmu_format::{BEAT_BYTES, BEAT_OFFSET, Beat, Epoch, Mode};
use pmu_proto::v1::SessionRole;

use crate::error::{ClientError, Result};
use crate::link::{Link, LinkError};
use crate::options::OpenOptions;
use crate::region::Region;
use crate::spread::{MissingUnit, Spread};
use crate::staging::Registered;
use crate::unit::{Purpose, Unit};

/// Writes beats over a primary's own connection: the unit's fence stops them with everything else.
#[derive(Debug)]
pub(crate) struct Heart {
    chain: Chain,
    count: u32,
    /// Number of the last beat's chain.
    posted: u64,
}

impl Heart {
    pub(crate) fn new() -> Self {
        Self {
            chain: Chain::with_capacity(1),
            count: 0,
            posted: 0,
        }
    }

    /// Posts a beat to `remote`, unless the one before is still on its way. Doesn't wait.
    pub(crate) fn beat(
        &mut self,
        link: &mut Link,
        remote: u64,
        epoch: Epoch,
    ) -> Result<(), LinkError> {
        link.poll()?;
        link.check_idle()?;
        if link.succeeded() < self.posted {
            return Ok(());
        }
        let beat = Beat::after(epoch, self.count);
        self.chain.clear();
        self.chain.atomic_write(remote, beat.encode());
        self.posted = link.post(&self.chain)?.last;
        self.count = beat.count;
        Ok(())
    }
}

/// Beats on members of a spread region: one that fails is left to the next commit, which knows what to do about it.
///
/// # Errors
/// Why the last one failed, where none is left.
pub(crate) fn beat_each<'a>(members: impl Iterator<Item = &'a mut Region>) -> Result<()> {
    let (mut beating, mut failed) = (0_usize, None);
    for member in members {
        match member.beat() {
            Ok(()) => beating += 1,
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if beating == 0 => Err(error),
        _ => Ok(()),
    }
}

/// What a look at a region's beat found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BeatSeen {
    /// The beat as it stands on the first unit that answers; none where nobody has ever beaten there.
    pub beat: Option<Beat>,
    /// How often this watch has seen the word of any unit change.
    pub changes: u64,
    /// Units that answered.
    pub units: usize,
}

/// Looks at the beats of a region's primary: one READ of 8 bytes on each unit. The primary doesn't know of it.
///
/// One thread uses it at a time (`&mut`); it may move between threads.
#[derive(Debug)]
pub struct BeatWatch {
    seats: Vec<std::result::Result<Seat, MissingUnit>>,
    changes: u64,
}

#[derive(Debug)]
struct Seat {
    last: Option<u64>,
    region: Region,
    registered: Registered,
    chain: Chain,
    unit: String,
}

impl Seat {
    fn open(mut region: Region, unit: &str) -> Result<Self> {
        let registered = Registered::allocate(&mut region.link, BEAT_BYTES)?;
        Ok(Self {
            last: None,
            region,
            registered,
            chain: Chain::with_capacity(1),
            unit: unit.to_owned(),
        })
    }

    fn look(&mut self) -> Result<u64> {
        self.chain.clear();
        let remote = self.region.address(BEAT_OFFSET.get());
        self.chain
            .read(remote, self.registered.slice(0, BEAT_BYTES));
        let region = &mut self.region;
        let read = region.link.post(&self.chain);
        let read = read.and_then(|posted| region.link.wait_for(posted.last));
        read.map_err(|error| region.error(error))?;
        let mut bytes = [0; BEAT_BYTES];
        self.registered.get(0, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

impl Unit {
    /// Opens a region of either mode to look at the beats of its primary: takes the right to read.
    ///
    /// # Errors
    /// As [`Unit::open_sets_reader`].
    pub fn watch_beats(
        &self,
        region: &str,
        mode: Mode,
        options: &OpenOptions,
    ) -> Result<BeatWatch> {
        let purpose = Purpose {
            role: SessionRole::Reader,
            clear: false,
            mode,
            member: false,
        };
        let seat = Seat::open(self.open(region, purpose, options)?, self.name())?;
        Ok(BeatWatch {
            seats: vec![Ok(seat)],
            changes: 0,
        })
    }
}

impl Spread {
    /// As [`Unit::watch_beats`], on every unit that answers.
    ///
    /// # Errors
    /// [`ClientError::NoGrant`]. Units that don't answer are no error as long as one does.
    pub fn watch_beats(&self, options: &OpenOptions) -> Result<BeatWatch> {
        let seats = self.open_each(SessionRole::Reader, options, |region, unit| {
            Seat::open(region, unit)
        })?;
        Ok(BeatWatch { seats, changes: 0 })
    }
}

impl BeatWatch {
    /// Reads the word. Blocks for one round trip, without an answer at most for [`crate::Timeouts::stall`]; a unit that failed is not asked again.
    ///
    /// # Errors
    /// Why the last unit failed, once none answers: open a new one.
    pub fn look(&mut self) -> Result<BeatSeen> {
        let (mut beat, mut units, mut failed) = (None, 0, None);
        for seat in &mut self.seats {
            let Ok(open) = seat else { continue };
            match open.look() {
                Ok(word) => {
                    units += 1;
                    beat = beat.or(Beat::decode(word));
                    let before = open.last.replace(word);
                    self.changes += u64::from(before.is_some_and(|before| before != word));
                }
                Err(error) => {
                    let unit = open.unit.as_str().into();
                    let reason = error.to_string();
                    *seat = Err(MissingUnit { unit, reason });
                    failed = Some(error);
                }
            }
        }
        if units == 0 {
            return Err(
                failed.unwrap_or_else(|| ClientError::Invalid("no unit answers any more".into()))
            );
        }
        Ok(BeatSeen {
            beat,
            changes: self.changes,
            units,
        })
    }

    /// The units that can't be read, and why.
    pub fn missing(&self) -> impl Iterator<Item = &MissingUnit> {
        self.seats.iter().filter_map(|seat| seat.as_ref().err())
    }
}
