//! How to connect to a unit and how to open a region.

use std::str::FromStr;
use std::time::Duration;

use pmu_fabric::{PersistenceMethod, Provider};
use pmu_format::Epoch;

/// How the control channel is made. `Default` suits a local network.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectOptions {
    /// Longest time for the first connection, TLS included.
    pub timeout: Duration,
    /// Longest time for each later request.
    pub request_timeout: Duration,
    /// The name that the unit's certificate must bear. None: any unit of our authority that owns the host name.
    pub unit_name: Option<String>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self::with_timeout(Duration::from_secs(10))
    }
}

impl ConnectOptions {
    /// The same limit for the connection and for each request.
    #[must_use]
    pub fn with_timeout(timeout: Duration) -> Self {
        Self {
            timeout,
            request_timeout: timeout,
            unit_name: None,
        }
    }
}

/// Which way the data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProviderChoice {
    /// The fastest that works: verbs where the unit offers it and this machine has a device, then a Unix socket where the unit is on
    /// this machine, then TCP. What the region needs of durability is held in any case.
    #[default]
    Auto,
    /// Just this one.
    Only(Provider),
}

impl FromStr for ProviderChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "tcp" => Ok(Self::Only(Provider::SoftTcp)),
            "unix" => Ok(Self::Only(Provider::SoftUnix)),
            name => name
                .parse()
                .map(Self::Only)
                .map_err(|_| "expected auto, verbs, soft-tcp (tcp) or soft-unix (unix)".to_owned()),
        }
    }
}

/// How bytes are to be made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PersistenceChoice {
    /// The strongest method that unit, provider and medium have, and never less than the region needs.
    #[default]
    Auto,
    /// This method, or an error.
    Forced(PersistenceMethod),
}

impl FromStr for PersistenceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            name => name.parse().map(Self::Forced).map_err(|_| {
                let names = PersistenceMethod::ALL
                    .map(PersistenceMethod::name)
                    .join(", ");
                format!("expected auto, {names}")
            }),
        }
    }
}

/// Named upper bounds of every wait on the data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// Opening a region: the session and the data connection.
    pub open: Duration,
    /// The longest time without any completion while chains are in flight. Then the connection counts as lost.
    pub stall: Duration,
    /// Reading from several units: one that sends nothing for so long is done without, where the others suffice.
    pub hedge: Duration,
    /// How long an append waits for room while the log is full.
    pub back_pressure: Duration,
    /// How long a waiting call looks for its completion before it sleeps. Zero spares the processor, and costs the time that the system takes
    /// to wake a thread.
    pub spin: Duration,
}

/// The default of [`Timeouts::spin`].
const SPIN_DEFAULT: Duration = Duration::from_micros(50);

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            open: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            hedge: Duration::from_millis(500),
            back_pressure: Duration::from_secs(30),
            spin: SPIN_DEFAULT,
        }
    }
}

/// The default of [`OpenOptions::staging_bytes`].
pub const STAGING_BYTES_DEFAULT: usize = 4 << 20;
/// The least useful staging memory: smaller requests are rounded up to it.
pub const STAGING_BYTES_MIN: usize = 2 << 20;

/// How a region is opened.
///
/// ```
/// use pmu_client::{OpenOptions, PersistenceChoice, PersistenceMethod};
/// let options = OpenOptions::new().persistence(PersistenceChoice::Forced(PersistenceMethod::ServerPersist));
/// assert_eq!(options.staging_bytes, pmu_client::STAGING_BYTES_DEFAULT);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Which way the data goes.
    pub provider: ProviderChoice,
    /// How it is made durable.
    pub persistence: PersistenceChoice,
    /// Bounds of the waits.
    pub timeouts: Timeouts,
    /// Registered memory through which bytes that are not registered themselves pass. More allows more in flight; what fits the
    /// processor's cache is fastest.
    pub staging_bytes: usize,
    /// Regions over several units: how long after a primary has missed a unit it first tries to connect to it again, beside its commits;
    /// after each try twice as long, up to half a minute. A unit that was reached is taken in when the next set or record begins. None:
    /// only when the program asks for it.
    pub rejoin: Option<Duration>,
    /// Opening as the primary of a region of one unit: see [`Self::going_on_from`]. Of regions over several units each has an epoch of its own
    /// ([`crate::Spread::going_on_from`]), and this is not looked at.
    pub goes_on_from: Option<Epoch>,
}

/// The default of [`OpenOptions::rejoin`].
pub const REJOIN_DEFAULT: Duration = Duration::from_secs(1);

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            provider: ProviderChoice::default(),
            persistence: PersistenceChoice::default(),
            timeouts: Timeouts::default(),
            staging_bytes: STAGING_BYTES_DEFAULT,
            rejoin: Some(REJOIN_DEFAULT),
            goes_on_from: None,
        }
    }
}

impl OpenOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets which way the data goes.
    #[must_use]
    pub fn provider(mut self, provider: ProviderChoice) -> Self {
        self.provider = provider;
        self
    }

    /// Sets how bytes are made durable.
    #[must_use]
    pub fn persistence(mut self, persistence: PersistenceChoice) -> Self {
        self.persistence = persistence;
        self
    }

    /// Sets the bounds of the waits.
    #[must_use]
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Sets the size of the staging memory.
    #[must_use]
    pub fn staging_bytes(mut self, bytes: usize) -> Self {
        self.staging_bytes = bytes;
        self
    }

    /// Sets when units that are missing are called again, if at all.
    #[must_use]
    pub fn rejoin(mut self, first_pause: Option<Duration>) -> Self {
        self.rejoin = first_pause;
        self
    }

    /// A primary that goes on with what was recovered behind a fence says that fence's epoch: unless the region's is still this one, opening it
    /// fails with [`crate::ClientError::Fenced`], as somebody fenced or opened it since. The unit decides that in one step with granting. Without
    /// it, what the environment says counts ([`crate::agent`]), or else nothing is checked. Readers, backups and take-overs, which fence by
    /// themselves, are not concerned.
    #[must_use]
    pub fn going_on_from(mut self, epoch: Epoch) -> Self {
        self.goes_on_from = Some(epoch);
        self
    }

    /// Of who looks otherwise whether anybody came between, as a take-over, which reads behind its own fence.
    pub(crate) fn going_on_from_nothing(&self) -> Self {
        Self {
            goes_on_from: None,
            ..*self
        }
    }

    pub(crate) fn staging_bytes_bounded(&self) -> usize {
        self.staging_bytes
            .max(STAGING_BYTES_MIN)
            .next_multiple_of(4096)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read() {
        assert_eq!("tcp".parse(), Ok(ProviderChoice::Only(Provider::SoftTcp)));
        assert_eq!("verbs".parse(), Ok(ProviderChoice::Only(Provider::Verbs)));
        assert!("smoke".parse::<ProviderChoice>().is_err());
        assert_eq!("auto".parse(), Ok(PersistenceChoice::Auto));
        assert!(
            "flush"
                .parse::<PersistenceChoice>()
                .unwrap_err()
                .contains("native-flush")
        );
    }
}
