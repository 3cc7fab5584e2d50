//! The epochs that a program goes on from: those of the fence behind which its state was recovered.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use pmu_format::Epoch;

use super::handover::names;
use crate::error::{ClientError, Result};

/// The epoch of a region on one unit, or of its member there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnitEpoch {
    /// The region's name.
    pub region: String,
    /// The unit's.
    pub unit: String,
    /// What the region's state was recovered behind.
    pub epoch: Epoch,
}

impl UnitEpoch {
    /// From its parts.
    #[must_use]
    pub fn new(region: &str, unit: &str, epoch: Epoch) -> Self {
        let (region, unit) = (region.to_owned(), unit.to_owned());
        Self {
            region,
            unit,
            epoch,
        }
    }
}

/// What [`names::EPOCHS`] is set to: `REGION@UNIT=EPOCH` for each, apart by spaces.
#[must_use]
pub fn encode_epochs(epochs: &[UnitEpoch]) -> String {
    let mut text = String::new();
    for UnitEpoch {
        region,
        unit,
        epoch,
    } in epochs
    {
        let space = if text.is_empty() { "" } else { " " };
        // Writing to a string can't fail.
        let _ = write!(text, "{space}{region}@{unit}={epoch}");
    }
    text
}

fn decode_epochs(text: &str) -> Option<Vec<UnitEpoch>> {
    let one = |word: &str| {
        let (region, rest) = word.split_once('@')?;
        let (unit, epoch) = rest.rsplit_once('=')?;
        let named = !region.is_empty() && !unit.is_empty();
        let epoch = Epoch(epoch.parse().ok()?);
        named.then(|| UnitEpoch::new(region, unit, epoch))
    };
    text.split_ascii_whitespace().map(one).collect()
}

/// What a region may be opened behind on one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// As it is: nobody has said anything of the region.
    Any,
    /// This epoch and no other.
    Epoch(Epoch),
    /// The region was taken over without this unit.
    NotTakenOver,
}

/// What a process goes on from. Any thread.
#[derive(Debug, Default)]
pub(crate) struct Epochs {
    known: Mutex<BTreeMap<(String, String), Epoch>>,
    /// A unit has granted a region behind one of them.
    granted: AtomicBool,
    /// How often one was raised.
    raised: AtomicU64,
    /// What was said and not understood: then nothing is opened for writing.
    garbled: Option<String>,
}

impl Epochs {
    pub(crate) fn new(epochs: impl IntoIterator<Item = UnitEpoch>) -> Self {
        let entry = |one: UnitEpoch| ((one.region, one.unit), one.epoch);
        Self {
            known: Mutex::new(epochs.into_iter().map(entry).collect()),
            ..Self::default()
        }
    }

    /// Those of one region's units.
    pub(crate) fn behind(
        region: &str,
        fenced: impl IntoIterator<Item = (Arc<str>, Epoch)>,
    ) -> Arc<Self> {
        let fenced = fenced.into_iter();
        let named = fenced.map(|(unit, epoch)| UnitEpoch::new(region, &unit, epoch));
        Arc::new(Self::new(named))
    }

    /// Those in the environment, as it was when this was called first. All of a process share them.
    pub(crate) fn of_process() -> Arc<Self> {
        static PROCESS: LazyLock<Arc<Epochs>> =
            LazyLock::new(|| Arc::new(Epochs::said(std::env::var_os(names::EPOCHS))));
        Arc::clone(&PROCESS)
    }

    fn said(text: Option<std::ffi::OsString>) -> Self {
        let Some(text) = text else {
            return Self::default();
        };
        match text.to_str().and_then(decode_epochs) {
            Some(epochs) => Self::new(epochs),
            None => Self {
                garbled: Some(text.to_string_lossy().into_owned()),
                ..Self::default()
            },
        }
    }

    /// What the region may be opened behind on a unit.
    ///
    /// # Errors
    /// [`ClientError::Invalid`]: what was said isn't understood.
    pub(crate) fn expected(&self, region: &str, unit: &str) -> Result<Expected> {
        self.check_understood()?;
        let known = self.known.lock();
        let mut of_region = known.iter().filter(|((name, _), _)| name == region);
        let is_known = of_region.clone().next().is_some();
        let found = of_region.find(|((_, name), _)| name == unit);
        Ok(match found {
            Some((_, epoch)) => Expected::Epoch(*epoch),
            None if is_known => Expected::NotTakenOver,
            None => Expected::Any,
        })
    }

    fn check_understood(&self) -> Result<()> {
        let name = names::EPOCHS;
        match &self.garbled {
            None => Ok(()),
            Some(text) => Err(ClientError::Invalid(format!(
                "{name}: {text:?} is not REGION@UNIT=EPOCH"
            ))),
        }
    }

    /// Whether anything was said of a region.
    pub(crate) fn know(&self, region: &str) -> bool {
        self.known.lock().keys().any(|(name, _)| name == region)
    }

    /// The region was granted to this process, in an epoch that is the next one after what was expected: from now on it goes on from here.
    pub(crate) fn granted(&self, region: &str, unit: &str, epoch: Epoch) {
        if self.raise(region, unit, epoch) {
            self.granted.store(true, Ordering::Release);
        }
    }

    /// This process has fenced the region by itself, and goes on from that.
    pub(crate) fn fenced(&self, region: &str, unit: &str, epoch: Epoch) {
        self.raise(region, unit, epoch);
    }

    /// True if anything was expected of the region.
    fn raise(&self, region: &str, unit: &str, epoch: Epoch) -> bool {
        let mut known = self.known.lock();
        let is_known = known.keys().any(|(name, _)| name == region);
        if is_known {
            let before = known.insert((region.to_owned(), unit.to_owned()), epoch);
            if before != Some(epoch) {
                self.raised.fetch_add(1, Ordering::Release);
            }
        }
        is_known
    }

    /// What was said of a region, and what became of it since.
    ///
    /// # Errors
    /// As [`Self::expected`].
    pub(crate) fn of_region(&self, region: &str) -> Result<Vec<(Arc<str>, Epoch)>> {
        self.check_understood()?;
        let known = self.known.lock();
        let of_region = known.iter().filter(|((name, _), _)| name == region);
        Ok(of_region
            .map(|((_, unit), epoch)| (unit.as_str().into(), *epoch))
            .collect())
    }

    /// Grows when one is raised.
    pub(crate) fn raised(&self) -> u64 {
        self.raised.load(Ordering::Acquire)
    }

    /// Whether a unit has granted anything behind them.
    pub(crate) fn were_held_to(&self) -> bool {
        self.granted.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s05_what_a_program_goes_on_from_is_said_and_understood() {
        let said = [
            UnitEpoch::new("log", "unit-a", Epoch(7)),
            UnitEpoch::new("state", "unit-a", Epoch(3)),
            UnitEpoch::new("state", "unit-b", Epoch(9)),
        ];
        let text = encode_epochs(&said);
        assert_eq!(text, "log@unit-a=7 state@unit-a=3 state@unit-b=9");
        assert_eq!(decode_epochs(&text).unwrap(), said);
        let epochs = Epochs::said(Some(text.into()));
        let expected = |region, unit| epochs.expected(region, unit).unwrap();
        assert_eq!(expected("log", "unit-a"), Expected::Epoch(Epoch(7)));
        assert_eq!(expected("log", "unit-b"), Expected::NotTakenOver);
        assert_eq!(expected("other", "unit-a"), Expected::Any);
        // What this process was granted itself, or has fenced, it goes on from; nothing is noted of what nobody spoke of.
        epochs.fenced("other", "unit-a", Epoch(5));
        epochs.granted("other", "unit-a", Epoch(6));
        assert_eq!(expected("other", "unit-a"), Expected::Any);
        assert!(!epochs.were_held_to());
        epochs.granted("log", "unit-a", Epoch(8));
        assert_eq!(expected("log", "unit-a"), Expected::Epoch(Epoch(8)));
        assert!(epochs.were_held_to());
    }

    #[test]
    fn s05_epochs_that_are_not_understood_open_nothing() {
        for text in [
            "log",
            "log@a",
            "log@a=",
            "log@a=x",
            "@a=1",
            "log@=1",
            "log@a=1 b",
        ] {
            let error = Epochs::said(Some(text.into()))
                .expected("other", "a")
                .unwrap_err();
            let said = error.to_string();
            assert!(
                said.contains("PMU_AGENT_EPOCHS") && said.contains(text),
                "{said}"
            );
        }
        assert_eq!(
            Epochs::said(None).expected("log", "a").unwrap(),
            Expected::Any
        );
    }
}
