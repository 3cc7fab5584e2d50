//! Reads sets of a spread region, with or without all of its units.

use parking_lot::Mutex;
use pmu_core::commit::{FoundSet, SetState};
use pmu_core::spread::{Newest, Stand};
use pmu_format::{Mode, SetNumber, ShareTrailer, Term};
use pmu_proto::v1::SessionRole;
use pmu_stripe::{Code, Placement};

use crate::error::{ClientError, Result};
use crate::options::OpenOptions;
use crate::sets::{SetChoice, SetInfo, SetSink};
use crate::spread::assembly::{Assembly, Seat, Stop};
use crate::spread::share::ShareReader;
use crate::spread::{MissingUnit, Spread, missing};

/// A set that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpreadRead {
    /// The set; its epoch is that of the writer on the first unit that was read.
    pub set: SetInfo,
    /// The units that hold it and could be read.
    pub units: Vec<String>,
    /// The others, and why. One that was not told of a change of members is among them, also where it was read.
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
    /// Bytes of the shares that are listed, redundancy included.
    #[serde(skip)]
    pub bytes: u64,
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
///
/// A healthy read takes data alone, and no redundancy. Memory: the staging memory of each member, and one redundancy group.
pub struct SpreadReader<'a> {
    pub(super) spread: &'a Spread,
    pub(super) options: OpenOptions,
    pub(super) members: Vec<std::result::Result<ShareReader, MissingUnit>>,
    /// Members that were not told yet who the others are now. They don't count, and what they hold is read like any other.
    untold: Vec<Option<ShareReader>>,
    /// What each member had published when it was asked last, and in which term.
    published: Vec<Option<(Term, u64)>>,
}

impl std::fmt::Debug for SpreadReader<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SpreadReader")
            .field("spread", &self.spread)
            .finish_non_exhaustive()
    }
}

impl Spread {
    /// Opens the region for reading, on all units that answer.
    ///
    /// # Errors
    /// [`ClientError::NoGrant`]. Units that don't answer are no error before something is read.
    pub fn open_reader(&self, options: &OpenOptions) -> Result<SpreadReader<'_>> {
        self.check_mode(Mode::Overwrite)?;
        let opened = self.on_each_unit(|unit| {
            let parts = unit.open(&self.name, SessionRole::Backup, Mode::Overwrite, options)?;
            self.check_opened(&parts)?;
            ShareReader::open(parts)
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
            options: *options,
            published: vec![None; members.len()],
            untold: self.open_untold(options),
            members,
        })
    }

    fn open_untold(&self, options: &OpenOptions) -> Vec<Option<ShareReader>> {
        self.on_each(|member, index| {
            let unit = self.untold.get(index)?.as_ref()?;
            let opened = unit
                .open(&self.name, SessionRole::Backup, Mode::Overwrite, options)
                .and_then(|parts| match self.check_opened(&parts) {
                    Err(error) if !self.is_untold(member, &parts.info) => Err(error),
                    _ => ShareReader::open(parts),
                });
            opened
                .inspect_err(
                    |error| tracing::debug!(%error, unit = %member.unit, "it can't be read"),
                )
                .ok()
        })
    }
}

/// What one member says of one set: that it doesn't hold it, or what stands behind its share.
pub(super) type Held = Option<(ShareTrailer, FoundSet)>;

/// A set that counts, and who can be read for it.
pub(super) struct Chosen {
    pub(super) trailer: ShareTrailer,
    /// What each member says of it.
    pub(super) held: Vec<std::result::Result<Held, String>>,
    /// Why a member can't be read for it.
    pub(super) seats: Vec<std::result::Result<usize, String>>,
}

impl SpreadReader<'_> {
    /// Reads a set into a sink. Where units are missing, damaged or slow, their bytes are computed from the others.
    ///
    /// [`SetChoice::Newest`] is the newest committed set, and no older one in its place.
    ///
    /// # Errors
    /// [`ClientError::TooFewUnits`]; [`ClientError::NoSuchSet`]; [`ClientError::Io`] when the sink fails.
    pub fn read(&mut self, choice: SetChoice, sink: &mut impl SetSink) -> Result<SpreadRead> {
        let mut before = None;
        loop {
            let newest = self.newest()?;
            let committed = newest.set();
            match self.read_once(choice, &newest, sink) {
                Err(error @ (ClientError::TooFewUnits { .. } | ClientError::NoSuchSet { .. }))
                    if choice == SetChoice::Newest =>
                {
                    // A live writer may have overwritten it meanwhile, also while it was tried again.
                    let first = before.replace(committed) != Some(committed);
                    let overtaken = |now: Newest| now.set() != committed;
                    if !first && !self.newest().is_ok_and(overtaken) {
                        return Err(error);
                    }
                }
                read => return read,
            }
        }
    }

    fn read_once(
        &mut self,
        choice: SetChoice,
        newest: &Newest,
        sink: &mut impl SetSink,
    ) -> Result<SpreadRead> {
        let number = match choice {
            SetChoice::Newest => newest.set(),
            SetChoice::Number(number) => number,
        };
        let Some(term) = newest.term_of(number.get()) else {
            return Err(ClientError::NoSuchSet {
                region: self.spread.name().to_owned(),
                what: match choice {
                    SetChoice::Newest => "committed set".to_owned(),
                    SetChoice::Number(number) => format!("committed set {number}"),
                },
            });
        };
        let Chosen {
            trailer,
            held,
            seats,
        } = self.choose(number, term)?;
        self.assemble(&trailer, &held, seats, sink)
    }

    /// Which set of this number and term is the one that counts, and who can be read for it.
    pub(super) fn choose(&mut self, number: SetNumber, term: Term) -> Result<Chosen> {
        let mut held = self.select(number);
        for (held, untold) in held.iter_mut().zip(&mut self.untold) {
            if let Some(Ok(found @ Some(_))) = untold.as_mut().map(|untold| untold.select(number)) {
                *held = Ok(found);
            }
        }
        let ours = |trailer: &ShareTrailer, index: usize| {
            let membership = &self.spread.membership;
            trailer.id == membership.id
                && trailer.number == number
                && trailer.term == term
                && trailer.layout == membership.layout
                && trailer.subsegment_bytes == membership.subsegment_bytes
                && usize::from(trailer.own_index) == index
        };
        let tries = held.iter().enumerate().filter_map(|(index, held)| {
            let (trailer, _) = held.as_ref().ok()?.as_ref()?;
            ours(trailer, index).then_some((index, *trailer))
        });
        let tries: Vec<_> = tries.collect();
        // Who has published the set holds the try that was.
        let mut publishers = tries.iter();
        let published =
            publishers.find(|(index, _)| self.published[*index] == Some((term, number.get())));
        // Else of several tries with one number only the last one was, and whoever can't say may hold a later one.
        let last = published.or_else(|| tries.iter().max_by_key(|(_, trailer)| trailer.attempt));
        let last = last.map(|(_, trailer)| *trailer);
        let can_say = |reader: &std::result::Result<ShareReader, MissingUnit>| {
            reader.as_ref().is_ok_and(|reader| !reader.is_unclear())
        };
        let said = held.iter().zip(&self.members);
        let said = said.filter(|(held, reader)| held.is_ok() && can_say(reader));
        let decided = match published {
            Some(_) => Ok(()),
            None => self.spread.quorum.check_decide(said.count()),
        };
        let seats = self.seats(&held, number, last.as_ref());
        if let Err(what) = decided {
            return Err(self.spread.too_few(what, &self.absent(&reasons(&seats))));
        }
        let Some(trailer) = last else {
            let what = self.spread.quorum.check_read(0);
            let absent = self.absent(&reasons(&seats));
            return Err(self.or_gone(number, what, &absent));
        };
        Ok(Chosen {
            trailer,
            held,
            seats,
        })
    }

    /// What is committed.
    pub(super) fn newest(&mut self) -> Result<Newest> {
        let id = self.spread.membership.id;
        self.newest_of(|reader| reader.stand(id))
    }

    /// The same, by what every member that answers has durable when this returns: no loss of power makes an older set the newest again.
    pub(super) fn newest_durable(&mut self) -> Result<Newest> {
        let id = self.spread.membership.id;
        self.newest_of(|reader| reader.durable_stand(id))
    }

    fn newest_of(
        &mut self,
        ask: impl Fn(&mut ShareReader) -> Result<Stand> + Sync,
    ) -> Result<Newest> {
        let stands = self.each(ask);
        self.published = stands
            .iter()
            .map(|stand| stand.as_ref().map(|stand| (stand.term(), stand.published)))
            .collect();
        let newest = self.spread.quorum.newest(stands.iter().flatten());
        newest.map_err(|what| {
            let looks = self.members.iter().zip(&stands);
            let looks = looks.filter_map(|(member, stand)| match member {
                Ok(_) => stand.as_ref().map(Ok),
                Err(missing) => Some(Err(missing)),
            });
            self.spread.too_few_votes(what, looks)
        })
    }

    /// Does something with every member that can be read, at the same time where that helps. One that fails is missing from then on.
    fn each<T: Send>(
        &mut self,
        work: impl Fn(&mut ShareReader) -> Result<T> + Sync,
    ) -> Vec<Option<T>> {
        let members: Vec<_> = self.members.iter_mut().map(Mutex::new).collect();
        let done = self.spread.on_each(|member, index| {
            let mut guard = members[index].lock();
            let reader = guard.as_mut().ok()?;
            match work(reader) {
                Ok(done) => Some(done),
                Err(error) => {
                    **guard = Err(missing(member, &error));
                    None
                }
            }
        });
        drop(members);
        done
    }

    /// Gets every member ready to read its share of a set. A damaged one is no reason to give its member up.
    fn select(&mut self, number: SetNumber) -> Vec<std::result::Result<Held, String>> {
        let held = self.each(|reader| match reader.select(number) {
            Err(error @ ClientError::Damaged { .. }) => Ok(Err(error.to_string())),
            held => held.map(Ok),
        });
        held.into_iter()
            .map(|held| held.unwrap_or_else(|| Err("it can't be read".to_owned())))
            .collect()
    }

    /// Who can be read for the set that `trailer` belongs to, and why not.
    fn seats(
        &mut self,
        held: &[std::result::Result<Held, String>],
        number: SetNumber,
        trailer: Option<&ShareTrailer>,
    ) -> Vec<std::result::Result<usize, String>> {
        held.iter()
            .enumerate()
            .map(|(index, held)| match (held, trailer) {
                (Err(reason), _) => Err(reason.clone()),
                (Ok(None), _) => Err(format!("it does not hold set {number}")),
                (Ok(Some((found, _))), Some(trailer)) if trailer.goes_with(found) => Ok(index),
                _ => Err("its share belongs to another set".to_owned()),
            })
            .collect()
    }

    /// Nobody holds a share: too few units where some are missing, else the set is gone.
    fn or_gone(
        &self,
        number: SetNumber,
        what: std::result::Result<(), pmu_core::spread::TooFewUnits>,
        absent: &[MissingUnit],
    ) -> ClientError {
        match what {
            Err(what) if self.members.iter().any(std::result::Result::is_err) => {
                self.spread.too_few(what, absent)
            }
            _ => ClientError::NoSuchSet {
                region: self.spread.name().to_owned(),
                what: format!("set {number} any more"),
            },
        }
    }

    fn assemble(
        &mut self,
        trailer: &ShareTrailer,
        held: &[std::result::Result<Held, String>],
        chosen: Vec<std::result::Result<usize, String>>,
        sink: &mut impl SetSink,
    ) -> Result<SpreadRead> {
        let spread = self.spread;
        let layout = spread.layout;
        let placement = Placement::new(layout, trailer.segment_bytes, trailer.subsegment_bytes)
            .map_err(|error| ClientError::Protocol(error.to_string()))?;
        let hedge = self.options.timeouts.hedge;
        let mut seats = self.take_seats(&chosen);
        let mut assembly = Assembly {
            quorum: spread.quorum,
            placement,
            code: Code::new(layout),
            hedge,
            seats: &mut seats,
            plans: Vec::new(),
            shards: vec![Vec::new(); layout.units()],
            reconstructed: false,
        };
        let done = assembly.run(trailer.number, trailer, spread.reach.as_ref(), sink);
        let reconstructed = assembly.reconstructed;
        let reasons: Vec<_> = seats
            .iter()
            .map(|seat| seat.as_ref().err().cloned())
            .collect();
        match done {
            Ok(()) => {}
            Err(Stop::Sink(source)) => {
                return Err(ClientError::Io {
                    action: "hand out the set",
                    source,
                });
            }
            Err(Stop::TooFew(what)) => return Err(spread.too_few(what, &self.absent(&reasons))),
        }
        // A member that missed it may hold another set of this number.
        let mut ours = held.iter().flatten().flatten();
        let set = ours.find(|(found, _)| trailer.goes_with(found));
        let set = set.map(|(_, set)| set);
        let members = spread.membership.members.iter();
        Ok(SpreadRead {
            set: SetInfo {
                number: trailer.number,
                epoch: trailer.epoch,
                bytes: trailer.segment_bytes,
                committed_ns: set.map_or(0, |set| set.committed_nanoseconds),
                label: set.map(|set| set.label).unwrap_or_default(),
                state: SetState::Committed,
            },
            units: members
                .zip(&reasons)
                .zip(&self.members)
                .filter(|((_, reason), reader)| reason.is_none() && reader.is_ok())
                .map(|((member, _), _)| member.unit.to_string())
                .collect(),
            missing: self.absent(&reasons),
            reconstructed,
        })
    }

    /// Who can be read for a set, with their readers.
    pub(super) fn take_seats(
        &mut self,
        chosen: &[std::result::Result<usize, String>],
    ) -> Vec<Seat<'_>> {
        let members = self.members.iter_mut().zip(&mut self.untold);
        let seats = members.zip(chosen);
        seats
            .map(
                |((member, untold), chosen)| match (member, untold, chosen) {
                    (_, _, Err(reason)) => Err(reason.clone()),
                    (Ok(reader), _, Ok(_)) | (Err(_), Some(reader), Ok(_)) => Ok(reader),
                    (Err(missing), None, Ok(_)) => Err(missing.reason.clone()),
                },
            )
            .collect()
    }

    /// Lists the sets that units hold shares of, the newest first. Nothing of them is read.
    ///
    /// # Errors
    /// [`ClientError::TooFewUnits`]: it can't be told which is the newest.
    pub fn sets(&mut self) -> Result<Vec<SpreadSet>> {
        let newest = self.newest()?;
        let lists = self.each(ShareReader::list);
        let mut sets: std::collections::BTreeMap<u64, SpreadSet> = Default::default();
        let members = &self.spread.membership.members;
        for (member, list) in members.iter().zip(lists) {
            for set in list.into_iter().flatten() {
                let entry = sets.entry(set.number.get()).or_insert_with(|| SpreadSet {
                    number: set.number,
                    bytes: 0,
                    committed_ns: set.committed_nanoseconds,
                    label: set.label.to_string(),
                    committed: newest.term_of(set.number.get()).is_some(),
                    units: Vec::new(),
                });
                entry.bytes += set.payload_bytes;
                entry.units.push(member.unit.to_string());
            }
        }
        Ok(sets.into_values().rev().collect())
    }

    /// The units that can't be read at all, and those that can't for this set.
    pub(super) fn absent(&self, reasons: &[Option<String>]) -> Vec<MissingUnit> {
        let members = self.spread.membership.members.iter();
        members
            .zip(&self.members)
            .zip(reasons)
            .filter_map(|((member, reader), reason)| match (reader, reason) {
                (Err(missing), _) => Some(missing.clone()),
                (Ok(_), Some(reason)) => Some(MissingUnit {
                    unit: member.unit.as_str().into(),
                    reason: reason.clone(),
                }),
                (Ok(_), None) => None,
            })
            .collect()
    }

    /// Bytes that came from all units since the reader was opened.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        let members = self.members.iter().flatten();
        let all = members.chain(self.untold.iter().flatten());
        all.map(ShareReader::bytes_read).sum()
    }

    /// The units that can't be read, and why.
    pub fn missing(&self) -> impl Iterator<Item = &MissingUnit> {
        self.members
            .iter()
            .filter_map(|member| member.as_ref().err())
    }
}

fn reasons(seats: &[std::result::Result<usize, String>]) -> Vec<Option<String>> {
    seats
        .iter()
        .map(|seat| seat.as_ref().err().cloned())
        .collect()
}
