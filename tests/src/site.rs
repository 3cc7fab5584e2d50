//! Where the unit is, and how its regions are opened.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use pmu_client::{
    ConnectOptions, Identity, OpenOptions, PersistenceChoice, ProviderChoice, Timeouts, Unit,
};

use crate::failure::{Failure, Result};

/// The unit's place, and the two regions: a log and sets.
#[derive(Debug, Clone, Args)]
pub struct Site {
    /// The unit's control service, HOST:PORT.
    #[arg(long, value_name = "ADDRESS", env = "PMU_UNIT")]
    pub unit: String,
    /// Identity directory.
    #[arg(long, value_name = "DIR", env = "PMU_IDENTITY")]
    pub identity: PathBuf,
    /// The region in append mode.
    #[arg(long, value_name = "REGION")]
    pub log: String,
    /// The region in overwrite mode.
    #[arg(long, value_name = "REGION")]
    pub sets: String,
    /// Contents follow from it.
    #[arg(long, value_name = "N")]
    pub seed: u64,
    /// auto, verbs, soft-tcp or soft-unix.
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub provider: ProviderChoice,
    /// auto, native-flush, read-after-write, server-persist or volatile: this one or an error.
    #[arg(long, value_name = "METHOD", default_value = "auto")]
    pub persistence: PersistenceChoice,
    /// The longest time without any progress.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub patience_s: u64,
}

impl Site {
    /// Connects to the unit.
    ///
    /// # Errors
    /// [`Failure::Client`].
    pub fn connect(&self) -> Result<Unit> {
        let identity = Identity::load(&self.identity).map_err(|error| {
            Failure::Given(format!("identity {}: {error}", self.identity.display()))
        })?;
        let options = ConnectOptions::with_timeout(Duration::from_secs(self.patience_s));
        Unit::connect(&self.unit, &identity, &options)
            .map_err(Failure::client("connect to the unit"))
    }

    /// How regions are opened.
    #[must_use]
    pub fn options(&self) -> OpenOptions {
        let patience = Duration::from_secs(self.patience_s);
        let mut timeouts = Timeouts::default();
        timeouts.open = patience;
        timeouts.stall = patience;
        timeouts.back_pressure = patience;
        OpenOptions::new()
            .provider(self.provider)
            .persistence(self.persistence)
            .timeouts(timeouts)
    }
}
