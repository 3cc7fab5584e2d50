//! Receipts: the proof that something is durable, and how it was proved.

use std::fmt;
use std::sync::Arc;

use pmu_fabric::{PersistenceMethod, Provider};
use pmu_format::{Epoch, LogPosition, SetNumber};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// What a receipt is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// A set of this number.
    Set(SetNumber),
    /// Records from `from` to (not including) `to`. Everything before `to` is durable.
    Log {
        /// Position of the first record that this receipt is about.
        from: LogPosition,
        /// Position behind the last one.
        to: LogPosition,
    },
}

/// A unit that holds the bytes, and the method that proved them durable there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitProof {
    /// The unit's name, as it calls itself.
    pub name: Arc<str>,
    /// How its connection makes bytes durable. [`PersistenceMethod::Volatile`] proves nothing beyond the unit's own life.
    pub persistence: PersistenceMethod,
}

/// Returned by every commit and append, and only after the completion that proves it.
///
/// Cloning one allocates nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The region.
    pub region: Arc<str>,
    /// What is stored.
    pub stored: Stored,
    /// Epoch of the writer.
    pub epoch: Epoch,
    /// Payload bytes.
    pub bytes: u64,
    /// Who holds it.
    pub units: Arc<[UnitProof]>,
    /// Which way the bytes went.
    pub provider: Provider,
}

impl Receipt {
    /// The set's number, for a receipt of a commit.
    #[must_use]
    pub const fn set(&self) -> Option<SetNumber> {
        match self.stored {
            Stored::Set(number) => Some(number),
            Stored::Log { .. } => None,
        }
    }

    /// The position behind the last record, for a receipt of an append.
    #[must_use]
    pub const fn position(&self) -> Option<LogPosition> {
        match self.stored {
            Stored::Log { to, .. } => Some(to),
            Stored::Set(_) => None,
        }
    }

    /// True if every unit proved durability by a method that outlives a loss of power.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.units.iter().all(|unit| unit.persistence.is_durable())
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: ", self.region)?;
        match self.stored {
            Stored::Set(number) => write!(formatter, "set {number}")?,
            Stored::Log { from, to } => write!(formatter, "log {from}..{to}")?,
        }
        let state = if self.is_durable() {
            "durable"
        } else {
            "stored, not durable,"
        };
        write!(
            formatter,
            ", {} bytes, epoch {}, {state} on",
            self.bytes, self.epoch
        )?;
        for (index, unit) in self.units.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(formatter, "{comma} {} by {}", unit.name, unit.persistence)?;
        }
        write!(formatter, " over {}", self.provider)
    }
}

impl Serialize for UnitProof {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("UnitProof", 2)?;
        fields.serialize_field("name", &*self.name)?;
        fields.serialize_field("persistence", self.persistence.name())?;
        fields.end()
    }
}

impl Serialize for Receipt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (set, log_from, log_to) = match self.stored {
            Stored::Set(number) => (Some(number.get()), None, None),
            Stored::Log { from, to } => (None, Some(from.get()), Some(to.get())),
        };
        let mut fields = serializer.serialize_struct("Receipt", 9)?;
        fields.serialize_field("region", &*self.region)?;
        fields.serialize_field("set", &set)?;
        fields.serialize_field("log_from", &log_from)?;
        fields.serialize_field("log_to", &log_to)?;
        fields.serialize_field("epoch", &self.epoch.get())?;
        fields.serialize_field("bytes", &self.bytes)?;
        fields.serialize_field("durable", &self.is_durable())?;
        fields.serialize_field("units", &*self.units)?;
        fields.serialize_field("provider", self.provider.name())?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(persistence: PersistenceMethod) -> Receipt {
        Receipt {
            region: "train".into(),
            stored: Stored::Set(SetNumber(7)),
            epoch: Epoch(3),
            bytes: 10,
            units: Arc::from([UnitProof {
                name: "unit-a".into(),
                persistence,
            }]),
            provider: Provider::SoftTcp,
        }
    }

    #[test]
    fn b01_receipt_names_method() {
        let receipt = receipt(PersistenceMethod::ServerPersist);
        assert_eq!(
            receipt.to_string(),
            "train: set 7, 10 bytes, epoch 3, durable on unit-a by server-persist over soft-tcp"
        );
        let json = serde_json::to_value(&receipt).unwrap();
        assert_eq!(json["units"][0]["persistence"], "server-persist");
        assert_eq!(json["set"], 7);
        assert_eq!(json["durable"], true);
    }

    #[test]
    fn b01_volatile_memory_is_never_called_durable() {
        let receipt = receipt(PersistenceMethod::Volatile);
        assert!(!receipt.is_durable());
        assert!(
            receipt
                .to_string()
                .contains("stored, not durable, on unit-a by volatile")
        );
    }
}
