//! Reads sets of a spread region, with or without all of its units.

use std::io;
use std::sync::mpsc;

use pmu_core::commit::SetState;
use pmu_format::{SHARE_HEADER_BYTES, SHARE_OFFSET, SetNumber, ShareHeader};
use pmu_proto::v1::SessionRole;
use pmu_stripe::{Code, Group, Placement, Reconstruct, ShardIndex, ShardSet, UnitIndex};

use crate::error::{ClientError, Result};
use crate::options::OpenOptions;
use crate::sets::{SetChoice, SetInfo, SetReader, SetSink};
use crate::spread::shares::{CHUNKS_AHEAD, CutShort, Sender, Share};
use crate::spread::{MissingUnit, Spread, missing};

/// A set that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpreadRead {
    /// The set; its epoch is that of the writer on the first unit that was read.
    pub set: SetInfo,
    /// The units that were read.
    pub units: Vec<String>,
    /// The others, and why.
    pub missing: Vec<MissingUnit>,
    /// True if bytes of missing units were computed from those of the others.
    pub reconstructed: bool,
}

/// A set of a spread region, as its members list it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct SpreadSet {
    /// Its number.
    #[serde(serialize_with = "as_number")]
    pub number: SetNumber,
    /// When it was committed by its writer's clock, in nanoseconds since 1970.
    pub committed_ns: u64,
    /// What the program wanted to find again.
    pub label: String,
    /// False for one that no unit has published: being written, or given up.
    pub committed: bool,
    /// The units that hold a share of it.
    pub units: Vec<String>,
}

fn as_number<S: serde::Serializer>(number: &SetNumber, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(number.get())
}

/// Reads the sets of a spread region. It takes no part in writing. One thread uses it at a time.
#[derive(Debug)]
pub struct SpreadReader<'a> {
    spread: &'a Spread,
    members: Vec<std::result::Result<SetReader, MissingUnit>>,
}

impl Spread {
    /// Opens the region for reading, on all units that answer.
    ///
    /// # Errors
    /// [`ClientError::NoGrant`]. Units that don't answer are no error before something is read.
    pub fn open_reader(&self, options: &OpenOptions) -> Result<SpreadReader<'_>> {
        let opened = self.on_each_unit(|unit| {
            SetReader::open(unit.open_member(&self.name, SessionRole::Backup, options)?)
        });
        let mut members = Vec::with_capacity(opened.len());
        for opened in opened {
            members.push(match opened {
                Ok(reader) => Ok(reader),
                Err(failed) => Err(failed.or_grant()?),
            });
        }
        Ok(SpreadReader {
            spread: self,
            members,
        })
    }
}

/// What one member knows of the sets.
struct Known {
    published: SetNumber,
    sets: Vec<SetInfo>,
}

impl SpreadReader<'_> {
    /// Reads a set into a sink. Where units are missing or damaged, their bytes are computed from the others; a sink that can't begin anew
    /// fails if a unit is found damaged in the middle.
    ///
    /// [`SetChoice::Newest`] is the newest committed set, and no older one in its place.
    ///
    /// # Errors
    /// [`ClientError::TooFewUnits`]; [`ClientError::NoSuchSet`]; [`ClientError::Io`] when the sink fails.
    pub fn read(&mut self, choice: SetChoice, sink: &mut impl SetSink) -> Result<SpreadRead> {
        let known = self.look();
        let newest = self.newest(&known)?;
        let number = match choice {
            SetChoice::Newest => newest,
            SetChoice::Number(number) => number,
        };
        if number.get() == 0 || number > newest {
            return Err(ClientError::NoSuchSet {
                region: self.spread.name().to_owned(),
                what: match choice {
                    SetChoice::Newest => "committed set".to_owned(),
                    SetChoice::Number(number) => format!("set {number}"),
                },
            });
        }
        // Not given up for other sets: just not used for this one.
        let mut without: Vec<Option<String>> = known
            .iter()
            .map(|known| {
                let holds = known.as_ref()?.sets.iter().any(|set| set.number == number);
                (!holds).then(|| format!("it does not hold set {number}"))
            })
            .collect();
        loop {
            if let Some(read) = self.attempt(number, &known, &mut without, sink)? {
                return Ok(read);
            }
        }
    }

    /// Lists the sets that units hold shares of, the newest first. Nothing of them is read.
    ///
    /// # Errors
    /// [`ClientError::TooFewUnits`]: it can't be told which is the newest.
    pub fn sets(&mut self) -> Result<Vec<SpreadSet>> {
        let known = self.look();
        let newest = self.newest(&known)?;
        let mut sets: std::collections::BTreeMap<u64, SpreadSet> = Default::default();
        let members = &self.spread.membership.members;
        for (member, known) in members.iter().zip(&known) {
            for set in known.iter().flat_map(|known| &known.sets) {
                let entry = sets.entry(set.number.get()).or_insert_with(|| SpreadSet {
                    number: set.number,
                    committed_ns: set.committed_ns,
                    label: set.label.to_string(),
                    committed: set.number <= newest,
                    units: Vec::new(),
                });
                entry.units.push(member.unit.to_string());
            }
        }
        Ok(sets.into_values().rev().collect())
    }

    fn newest(&self, known: &[Option<Known>]) -> Result<SetNumber> {
        let published: Vec<_> = known
            .iter()
            .flatten()
            .map(|known| known.published)
            .collect();
        let newest = self.spread.quorum.newest(&published);
        newest.map_err(|what| self.spread.too_few(what, self.missing()))
    }

    /// Asks every member for its sets. One that fails is missing from then on.
    fn look(&mut self) -> Vec<Option<Known>> {
        let members = &self.spread.membership.members;
        let looked: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .members
                .iter_mut()
                .map(|member| scope.spawn(move || member.as_mut().ok().map(SetReader::sets)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or(None))
                .collect()
        });
        let mut known = Vec::with_capacity(looked.len());
        for (index, looked) in looked.into_iter().enumerate() {
            known.push(match looked {
                Some(Ok(catalog)) => Some(Known {
                    published: catalog.published,
                    sets: catalog.sets,
                }),
                Some(Err(error)) => {
                    self.members[index] = Err(missing(&members[index], &error));
                    None
                }
                None => None,
            });
        }
        known
    }

    /// Reads the set from the members that are not in `without`; `None` if one more had to be put there.
    fn attempt(
        &mut self,
        number: SetNumber,
        known: &[Option<Known>],
        without: &mut [Option<String>],
        sink: &mut impl SetSink,
    ) -> Result<Option<SpreadRead>> {
        let spread = self.spread;
        let usable = |index: usize| known[index].is_some() && without[index].is_none();
        let indices: Vec<_> = (0..self.members.len())
            .filter(|index| usable(*index))
            .collect();
        if let Err(what) = spread.quorum.check_read(indices.len()) {
            return Err(spread.too_few(what, &self.absent(without)));
        }
        let (assembled, failures) = std::thread::scope(|scope| {
            let mut shares: Vec<Option<Share>> = (0..self.members.len()).map(|_| None).collect();
            let mut threads = Vec::new();
            for (index, member) in self.members.iter_mut().enumerate() {
                let (Ok(reader), true) = (member, indices.contains(&index)) else {
                    continue;
                };
                let (sender, receiver) = mpsc::sync_channel(CHUNKS_AHEAD);
                shares[index] = Some(Share::new(receiver));
                let read = move || reader.read(SetChoice::Number(number), &mut Sender(sender));
                threads.push((index, scope.spawn(read)));
            }
            let assembled = Assembly::begin(spread, number, &mut shares)
                .and_then(|assembly| assembly.run(&mut shares, sink));
            drop(shares);
            let failures: Vec<_> = threads
                .into_iter()
                .filter_map(|(index, thread)| match thread.join() {
                    Ok(Ok(_)) => None,
                    // The assembly needed no more of it.
                    Ok(Err(ClientError::Io { .. })) => None,
                    Ok(Err(error)) => Some((index, error.to_string())),
                    Err(_) => Some((index, "the thread that reads it panicked".to_owned())),
                })
                .collect();
            (assembled, failures)
        });
        match assembled {
            Ok(found) => Ok(Some(self.read_of(number, &found, known, without))),
            Err(Stop::Sink(source)) => Err(ClientError::Io {
                action: "hand out the set",
                source,
            }),
            Err(Stop::TooFew(what)) => Err(spread.too_few(what, &self.absent(without))),
            Err(Stop::Member(index, reason)) => {
                let told = failures.into_iter().find(|(failed, _)| *failed == index);
                without[index] = Some(told.map_or(reason, |(_, reason)| reason));
                Ok(None)
            }
        }
    }

    fn read_of(
        &self,
        number: SetNumber,
        found: &Assembly<'_>,
        known: &[Option<Known>],
        without: &[Option<String>],
    ) -> SpreadRead {
        let members = &self.spread.membership.members;
        let mut missing = self.absent(without);
        let mut units = Vec::new();
        for (index, member) in members.iter().enumerate() {
            if found.used[index] {
                units.push(member.unit.to_string());
            } else if missing.iter().all(|one| *one.unit != *member.unit.as_str()) {
                missing.push(MissingUnit {
                    unit: member.unit.as_str().into(),
                    reason: "its share belongs to another writer's set".to_owned(),
                });
            }
        }
        let first = found.used.iter().position(|used| *used).unwrap_or(0);
        let sets = known[first].as_ref().map(|known| known.sets.as_slice());
        let set = sets
            .unwrap_or_default()
            .iter()
            .find(|set| set.number == number);
        SpreadRead {
            set: SetInfo {
                number,
                epoch: found.header.epoch,
                bytes: found.header.segment_bytes,
                committed_ns: set.map_or(0, |set| set.committed_ns),
                label: set.map(|set| set.label).unwrap_or_default(),
                state: SetState::Committed,
            },
            units,
            missing,
            reconstructed: found.reconstructed,
        }
    }

    /// The units that can't be read at all, and those that can't for this set.
    fn absent(&self, without: &[Option<String>]) -> Vec<MissingUnit> {
        let members = self.spread.membership.members.iter();
        members
            .zip(&self.members)
            .zip(without)
            .filter_map(|((member, reader), without)| match (reader, without) {
                (Err(missing), _) => Some(missing.clone()),
                (Ok(_), Some(reason)) => Some(MissingUnit {
                    unit: member.unit.as_str().into(),
                    reason: reason.clone(),
                }),
                (Ok(_), None) => None,
            })
            .collect()
    }

    /// The units that can't be read, and why.
    pub fn missing(&self) -> impl Iterator<Item = &MissingUnit> {
        self.members
            .iter()
            .filter_map(|member| member.as_ref().err())
    }
}

/// Why an assembly ended.
enum Stop {
    /// This member can't be used for this set.
    Member(usize, String),
    /// Too few members have shares that go together.
    TooFew(pmu_core::spread::TooFewUnits),
    Sink(io::Error),
}

/// Puts a set together from the shares that go together.
struct Assembly<'a> {
    spread: &'a Spread,
    number: SetNumber,
    header: ShareHeader,
    used: Vec<bool>,
    reconstructed: bool,
}

impl<'a> Assembly<'a> {
    /// Reads the header of every share, and chooses the most that go together.
    fn begin(
        spread: &'a Spread,
        number: SetNumber,
        shares: &mut [Option<Share>],
    ) -> std::result::Result<Self, Stop> {
        let mut headers: Vec<Option<ShareHeader>> = vec![None; shares.len()];
        let mut page = Vec::new();
        for (index, share) in shares.iter_mut().enumerate() {
            let Some(share) = share else { continue };
            let bad = |reason: &str| Stop::Member(index, reason.to_owned());
            share
                .take(SHARE_OFFSET as usize, &mut page)
                .map_err(|CutShort| bad("its share is cut short"))?;
            let header = ShareHeader::decode(&page[..SHARE_HEADER_BYTES])
                .map_err(|error| bad(&error.to_string()))?;
            let membership = &spread.membership;
            let ours = header.id == membership.id
                && header.number == number
                && header.layout == membership.layout
                && header.subsegment_bytes == membership.subsegment_bytes
                && usize::from(header.own_index) == index;
            if !ours {
                return Err(bad("its share is not one of this region's set"));
            }
            headers[index] = Some(header);
        }
        let together = |header: &ShareHeader| {
            let others = headers.iter().flatten();
            others.filter(|other| header.goes_with(other)).count()
        };
        let best = headers
            .iter()
            .flatten()
            .max_by_key(|header| together(header));
        let count = best.map_or(0, together);
        spread.quorum.check_read(count).map_err(Stop::TooFew)?;
        let header = *best.ok_or_else(|| Stop::Member(0, "no share".to_owned()))?;
        let used = headers
            .iter()
            .map(|other| other.is_some_and(|other| header.goes_with(&other)))
            .collect();
        Ok(Self {
            spread,
            number,
            header,
            used,
            reconstructed: false,
        })
    }

    /// Reads all groups, and hands the set out.
    fn run(
        mut self,
        shares: &mut [Option<Share>],
        sink: &mut impl SetSink,
    ) -> std::result::Result<Self, Stop> {
        let layout = self.spread.layout;
        let bytes = self.header.segment_bytes;
        let placement = Placement::new(layout, bytes, self.header.subsegment_bytes)
            .map_err(|error| Stop::Sink(io::Error::other(error.to_string())))?;
        let info = SetInfo {
            number: self.number,
            epoch: self.header.epoch,
            bytes,
            committed_ns: 0,
            label: pmu_format::Label::default(),
            state: SetState::Committed,
        };
        sink.begin(&info).map_err(Stop::Sink)?;
        let mut groups = Groups {
            code: Code::new(layout),
            plans: vec![None; layout.units()],
            shards: vec![Vec::new(); layout.units()],
        };
        for group in placement.groups() {
            let present = self.take_group(&placement, &group, shares, &mut groups.shards)?;
            self.reconstructed |= groups.complete(&placement, &group, present)?;
            groups
                .hand_out(&placement, &group, sink)
                .map_err(Stop::Sink)?;
        }
        Ok(self)
    }

    fn take_group(
        &self,
        placement: &Placement,
        group: &Group,
        shares: &mut [Option<Share>],
        shards: &mut [Vec<u8>],
    ) -> std::result::Result<ShardSet, Stop> {
        let mut present = ShardSet::EMPTY;
        for shard in placement.shards(group) {
            let UnitIndex(unit) = shard.unit;
            let bytes = &mut shards[shard.shard.0];
            bytes.clear();
            let (Some(share), true) = (&mut shares[unit], self.used[unit]) else {
                continue;
            };
            share
                .take(shard.len as usize, bytes)
                .map_err(|CutShort| Stop::Member(unit, "its share is cut short".to_owned()))?;
            present = present.with(shard.shard);
        }
        Ok(present)
    }
}

/// The shards of one group after the other.
struct Groups {
    code: Code,
    /// How to compute what is missing: placements rotate, so it repeats with the number of units.
    plans: Vec<Option<Reconstruct>>,
    shards: Vec<Vec<u8>>,
}

impl Groups {
    /// Computes the data shards that are missing; true if there were any.
    fn complete(
        &mut self,
        placement: &Placement,
        group: &Group,
        present: ShardSet,
    ) -> std::result::Result<bool, Stop> {
        let data_shards = placement.layout().data_shards();
        let wanted = ShardSet::first(data_shards).without(present);
        if wanted.is_empty() {
            return Ok(false);
        }
        let failed =
            |error: &dyn std::fmt::Display| Stop::Sink(io::Error::other(error.to_string()));
        let turn = (group.group.0 % self.plans.len() as u64) as usize;
        let plan = match &self.plans[turn] {
            Some(plan) => *plan,
            None => Reconstruct::of(&self.code, present, wanted).map_err(|error| failed(&error))?,
        };
        self.plans[turn] = Some(plan);
        for ShardIndex(index) in wanted.iter() {
            let length = placement
                .shard(group.group, ShardIndex(index))
                .map_or(0, |shard| shard.len);
            self.shards[index].resize(length as usize, 0);
        }
        let mut held = std::mem::take(&mut self.shards);
        let done = {
            let (mut sources, mut targets): (Vec<&[u8]>, Vec<&mut [u8]>) = Default::default();
            for (index, shard) in held.iter_mut().enumerate() {
                if wanted.contains(ShardIndex(index)) {
                    targets.push(shard);
                } else if plan.sources().contains(ShardIndex(index)) {
                    sources.push(shard);
                }
            }
            plan.apply(&sources, &mut targets)
        };
        self.shards = std::mem::take(&mut held);
        done.map_err(|error| failed(&error))?;
        Ok(true)
    }

    fn hand_out(
        &self,
        placement: &Placement,
        group: &Group,
        sink: &mut impl SetSink,
    ) -> io::Result<()> {
        let data_shards = placement.layout().data_shards();
        for shard in placement.shards(group).take(data_shards) {
            let bytes = &self.shards[shard.shard.0];
            if bytes.is_empty() {
                continue;
            }
            match sink.place(shard.segment.start, bytes.len()) {
                Some(place) => place.copy_from_slice(bytes),
                None => sink.chunk(shard.segment.start, bytes)?,
            }
        }
        Ok(())
    }
}
