//! A unit: its control channel, and the opening of its regions.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmu_auth::{AuthError, Identity, PrincipalName};
use pmu_fabric::{AccessWindow, ConnectToken, FabricError, PersistenceMethod, Provider};
use pmu_format::{Epoch, Mode, Need, RegionName, Rights};
use pmu_proto::v1;
use serde::Serialize;

use crate::agent::{Epochs, Expected};
use crate::control::{Control, chain};
use crate::error::{ClientError, Result};
use crate::options::{ConnectOptions, OpenOptions, PersistenceChoice};
use crate::provider::{candidates, connect, method_from_wire, method_to_wire, to_wire};
use crate::region::{Parts, Region, RegionInfo, SessionControl};

/// The environment variable that holds a unit's address, `host:port`.
pub const UNIT_VARIABLE: &str = "PMU_UNIT";
/// The environment variable that names the directory with a person's settings.
const HOME_VARIABLE: &str = "PMU_HOME";

/// What a unit says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UnitStatus {
    /// Its name.
    pub name: String,
    /// The version of its program.
    pub version: String,
    /// True until a manager has initialised its tables.
    pub locked: bool,
}

/// What a fence did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FenceReport {
    /// The region's epoch now: every primary that opened before is of an older one.
    pub epoch: Epoch,
    /// Windows invalidated. None of their bytes lands any more.
    pub windows_invalidated: u32,
    /// Sessions that lost them.
    pub sessions_closed: u32,
    /// From the arrival of the request at the unit to the last invalidation.
    pub took: Duration,
    /// The same as this side saw it, there and back.
    pub round_trip: Duration,
}

impl FenceReport {
    /// A report as a simulator or test would make one up, of a fence that took no time.
    #[must_use]
    pub const fn new(epoch: Epoch, windows_invalidated: u32, sessions_closed: u32) -> Self {
        Self {
            epoch,
            windows_invalidated,
            sessions_closed,
            took: Duration::ZERO,
            round_trip: Duration::ZERO,
        }
    }
}

/// A persistent memory unit: the way to its regions.
///
/// Cheap to clone; clones share one control channel. Safe to use from any thread. Every call blocks, at most for the time
/// limits of [`ConnectOptions`] and [`OpenOptions`]; a small thread of its own serves the control channel, so that calls may
/// be made from inside an asynchronous runtime too (where they block their thread).
///
/// ```no_run
/// use pmu_client::{ConnectOptions, Identity, Label, OpenOptions, Unit};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let identity = Identity::load("/etc/pmu/identity".as_ref())?;
/// let unit = Unit::connect("unit-a:7710", &identity, &ConnectOptions::default())?;
/// let mut sets = unit.open_sets_primary("train", &OpenOptions::new())?;
/// let receipt = sets.commit(&[std::io::IoSlice::new(b"state of the program")], Label::default())?;
/// println!("{receipt}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Unit {
    control: Arc<Control>,
    name: Arc<str>,
    version: Arc<str>,
    /// What this process goes on from.
    epochs: Arc<Epochs>,
}

impl std::fmt::Debug for Unit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Unit")
            .field("name", &self.name)
            .field("address", &self.address())
            .finish()
    }
}

/// What a session is opened for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Purpose {
    pub(crate) role: v1::SessionRole,
    pub(crate) clear: bool,
    pub(crate) mode: Mode,
    /// Whether a member of a spread region is meant, or a region of its own.
    pub(crate) member: bool,
}

impl Unit {
    /// Connects to a unit's control service (`host:port`) and proves both sides' identity to each other.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::NotAuthenticated`], [`ClientError::Invalid`] for what is no address. A locked
    /// unit can be connected to; opening its regions is what it refuses.
    pub fn connect(address: &str, identity: &Identity, options: &ConnectOptions) -> Result<Self> {
        let expected: Option<PrincipalName> = match &options.unit_name {
            Some(name) => Some(
                name.parse()
                    .map_err(|error| ClientError::Invalid(chain(&error)))?,
            ),
            None => None,
        };
        let control = Control::connect(
            address,
            identity,
            expected.as_ref(),
            options.timeout,
            options.request_timeout,
        )?;
        let status = control.ping()?;
        Ok(Self {
            control: Arc::new(control),
            name: status.unit.into(),
            version: status.version.into(),
            epochs: Epochs::of_process(),
        })
    }

    /// As [`Self::connect`], with the address in `PMU_UNIT` and the identity where
    /// [`identity_directory`] finds it.
    ///
    /// # Errors
    /// As there; [`ClientError::Invalid`] if `PMU_UNIT` is not set; [`ClientError::Identity`].
    pub fn from_environment(options: &ConnectOptions) -> Result<Self> {
        let address = std::env::var(UNIT_VARIABLE)
            .map_err(|_| ClientError::Invalid(format!("{UNIT_VARIABLE} is not set")))?;
        let directory = identity_directory(None);
        let identity = load_identity(&directory)?;
        Self::connect(&address, &identity, options)
    }

    /// The unit's name, as it calls itself.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address that was connected to.
    #[must_use]
    pub fn address(&self) -> &str {
        self.control.address()
    }

    /// The version of the unit's program when the connection was made.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Asks the unit how it is. A locked one answers too.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::TimedOut`].
    pub fn status(&self) -> Result<UnitStatus> {
        let answer = self.control.ping()?;
        Ok(UnitStatus {
            name: answer.unit,
            version: answer.version,
            locked: answer.locked,
        })
    }

    /// What the unit tells us of a region: takes any right on it.
    ///
    /// # Errors
    /// [`ClientError::NoSuchRegion`], [`ClientError::NoGrant`], and what every request may meet.
    pub fn describe(&self, region: &str) -> Result<RegionInfo> {
        check_name(region)?;
        let answer = self.control.describe(region)?;
        let descriptor = answer
            .region
            .ok_or_else(|| ClientError::Protocol("an answer without a region".into()))?;
        let mut info = RegionInfo::from_wire(&descriptor)?;
        info.rights = Rights::from_bits_truncate(answer.rights);
        info.writer = Some(answer.writer).filter(|writer| !writer.is_empty());
        info.scrubbed_at_s = answer.scrubbed_s;
        info.is_being_scrubbed = answer.scrubbing;
        Ok(info)
    }

    /// Takes the right to write from whoever has it. When this returns, not one byte of any earlier primary lands any more.
    /// Takes the right to manage the region, or that which a primary needs.
    ///
    /// # Errors
    /// As [`Self::describe`].
    pub fn fence(&self, region: &str) -> Result<FenceReport> {
        check_name(region)?;
        let begun = Instant::now();
        let answer = self.control.fence(region)?;
        self.epochs.fenced(region, &self.name, Epoch(answer.epoch));
        Ok(FenceReport {
            epoch: Epoch(answer.epoch),
            windows_invalidated: answer.windows_invalidated,
            sessions_closed: answer.sessions_closed,
            took: Duration::from_micros(answer.took_us),
            round_trip: begun.elapsed(),
        })
    }

    /// Opens a region over the first provider that works.
    pub(crate) fn open(
        &self,
        region: &str,
        purpose: Purpose,
        options: &OpenOptions,
    ) -> Result<Region> {
        Region::new(self.open_parts(region, purpose, options)?)
    }

    pub(crate) fn open_parts(
        &self,
        region: &str,
        purpose: Purpose,
        options: &OpenOptions,
    ) -> Result<Parts> {
        check_name(region)?;
        let mut options = *options;
        options.goes_on_from = match purpose.role {
            v1::SessionRole::Primary if !purpose.member => {
                options.goes_on_from.or(self.expected(region)?)
            }
            v1::SessionRole::Primary => options.goes_on_from,
            _ => None,
        };
        let order = candidates(options.provider, self.control.host(), self.control.port());
        let (mut tried, mut unfit) = (Vec::new(), false);
        for provider in order {
            let opened = over_methods(options.persistence, |method| {
                self.open_over(region, purpose, provider, method, &mut options)
            });
            match opened {
                Ok(opened) => return Ok(opened),
                Err(Refusal::UnfitHere(_, reason)) => {
                    unfit = true;
                    tried.push(format!("{provider}: {reason}"));
                }
                Err(Refusal::Final(error)) => return Err(error),
                Err(Refusal::Unfit(reason)) => {
                    unfit = true;
                    tried.push(format!("{provider}: {reason}"));
                }
                Err(Refusal::Provider(reason)) => {
                    tracing::debug!(%provider, reason, region, "this provider does not work here");
                    tried.push(format!("{provider}: {reason}"));
                }
            }
        }
        let reason = tried.join("; ");
        if unfit {
            return Err(ClientError::UnfitPersistence {
                region: region.into(),
                reason,
            });
        }
        Err(ClientError::NoProvider {
            unit: self.address().to_owned(),
            reason,
        })
    }

    fn open_over(
        &self,
        region: &str,
        purpose: Purpose,
        provider: Provider,
        persistence: PersistenceChoice,
        options: &mut OpenOptions,
    ) -> Result<Parts, Refusal> {
        let deadline = Instant::now() + options.timeouts.open;
        let asked = persistence;
        let persistence = match asked {
            PersistenceChoice::Auto => v1::PersistenceMethod::Unspecified,
            PersistenceChoice::Forced(method) => method_to_wire(method),
        };
        let request = v1::OpenRegionRequest {
            region: region.into(),
            role: purpose.role.into(),
            wants_clear: purpose.clear,
            provider: to_wire(provider).into(),
            persistence: persistence.into(),
            goes_on_from: options.goes_on_from.map(Epoch::get),
        };
        let opened = self
            .control
            .open(request, options.timeouts.open)
            .map_err(|error| Refusal::of(self.or_superseded(error, region, options)))?;
        let session = Session {
            control: Arc::clone(&self.control),
            id: opened.session_id,
            region: region.into(),
        };
        if let Err(error) = self.check_granted(region, &opened, options) {
            session.close();
            return Err(Refusal::Final(error));
        }
        let result = self.connect_data(&session, &opened, purpose, provider, asked, deadline);
        match result {
            Ok((connection, windows, info, epoch)) => Ok(Parts {
                connection,
                windows,
                info,
                epoch,
                unit: Arc::clone(&self.name),
                control: Box::new(session),
                timeouts: options.timeouts,
                staging_bytes: options.staging_bytes_bounded(),
            }),
            Err(error) => {
                session.close();
                Err(error)
            }
        }
    }

    fn connect_data(
        &self,
        session: &Session,
        opened: &v1::OpenRegionResponse,
        purpose: Purpose,
        provider: Provider,
        persistence: PersistenceChoice,
        deadline: Instant,
    ) -> Result<DataParts, Refusal> {
        let info = self.check_opened(opened, purpose)?;
        let method = method_from_wire(opened.persistence)
            .ok_or_else(|| protocol("an unknown persistence method"))?;
        check_persistence(&info, method, persistence)?;
        let token: [u8; 32] = opened
            .connect_token
            .as_slice()
            .try_into()
            .map_err(|_| protocol("a bad connect token"))?;
        let left = deadline.saturating_duration_since(Instant::now());
        let mut failures = Vec::new();
        let mut connected = None;
        for address in opened
            .addresses
            .iter()
            .filter(|address| address.provider == to_wire(provider) as i32)
        {
            match connect(
                provider,
                &address.address,
                ConnectToken(token),
                method,
                left,
            ) {
                Ok(connection) => {
                    connected = Some(connection);
                    break;
                }
                Err(FabricError::Refused { reason }) => {
                    return Err(Refusal::Provider(format!("{}: {reason}", address.address)));
                }
                Err(error @ FabricError::UnfitPersistence { .. }) => {
                    return Err(Refusal::UnfitHere(method, chain(&error)));
                }
                Err(error) => failures.push(format!("{}: {}", address.address, chain(&error))),
            }
        }
        let Some(connection) = connected else {
            let reason = if failures.is_empty() {
                "the unit gave no address".into()
            } else {
                failures.join("; ")
            };
            return Err(Refusal::Provider(reason));
        };
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(100));
        let active = self
            .control
            .activate(session.id, &session.region, left)
            .map_err(|error| Refusal::Final(self.or_fenced(error, &info)))?;
        if method_from_wire(active.persistence) != Some(method) {
            return Err(protocol("the unit changed the persistence method"));
        }
        let windows = active.windows.iter().map(window).collect();
        Ok((connection, windows, info, Epoch(active.epoch)))
    }

    fn expected(&self, region: &str) -> Result<Option<Epoch>> {
        Ok(match self.epochs.expected(region, &self.name)? {
            Expected::Epoch(epoch) => Some(epoch),
            // A region of its own, of the same name.
            Expected::Any | Expected::NotTakenOver => None,
        })
    }

    /// What the unit refuses to who goes on from an epoch: the region has another one by now.
    fn or_superseded(
        &self,
        error: ClientError,
        region: &str,
        options: &OpenOptions,
    ) -> ClientError {
        match (error, options.goes_on_from) {
            (
                ClientError::Refused {
                    reason: "STALE_EPOCH",
                    ..
                },
                Some(own_epoch),
            ) => ClientError::Fenced {
                region: region.into(),
                epoch: self.control.epoch_soon(region).map_or(own_epoch, Epoch),
                own_epoch,
            },
            (error, _) => error,
        }
    }

    /// Whether the epoch that was granted is the next one after that which was gone on from: a unit of an earlier version doesn't look by itself.
    /// Nothing is written yet, and nobody else can write from the grant on. Another try goes on from this grant.
    fn check_granted(
        &self,
        region: &str,
        opened: &v1::OpenRegionResponse,
        options: &mut OpenOptions,
    ) -> Result<()> {
        let Some(from) = options.goes_on_from else {
            return Ok(());
        };
        let granted = opened.region.as_ref().map_or(0, |region| region.epoch);
        if from.get().checked_add(1) != Some(granted) {
            return Err(ClientError::Fenced {
                region: region.into(),
                epoch: Epoch(granted),
                own_epoch: from,
            });
        }
        options.goes_on_from = Some(Epoch(granted));
        self.epochs.granted(region, &self.name, Epoch(granted));
        Ok(())
    }

    /// A fence between opening and activating is a fence.
    fn or_fenced(&self, error: ClientError, info: &RegionInfo) -> ClientError {
        match error {
            ClientError::Refused {
                reason: "STALE_EPOCH",
                ..
            } => {
                let epoch = self
                    .control
                    .epoch_soon(&info.name)
                    .map_or(info.epoch, Epoch);
                ClientError::Fenced {
                    region: info.name.as_ref().into(),
                    epoch,
                    own_epoch: info.epoch,
                }
            }
            other => other,
        }
    }

    fn check_opened(
        &self,
        opened: &v1::OpenRegionResponse,
        purpose: Purpose,
    ) -> Result<RegionInfo, Refusal> {
        let descriptor = opened
            .region
            .as_ref()
            .ok_or_else(|| protocol("an answer without a region"))?;
        let info = RegionInfo::from_wire(descriptor).map_err(Refusal::Final)?;
        if info.mode != purpose.mode {
            return Err(Refusal::Final(ClientError::WrongMode {
                region: info.name.as_ref().into(),
                expected: purpose.mode,
                found: info.mode,
            }));
        }
        if info.membership.is_some() != purpose.member {
            let what = if purpose.member {
                "is not spread over several units"
            } else {
                "is a part of one that is spread over several units: open it as such"
            };
            let text = format!("region {} {what}", info.name);
            return Err(Refusal::Final(ClientError::Invalid(text)));
        }
        Ok(info)
    }
}

type DataParts = (
    Box<dyn pmu_fabric::Connection>,
    Vec<AccessWindow>,
    RegionInfo,
    Epoch,
);

/// Why a region wasn't opened.
enum Refusal {
    /// Another provider may work.
    Provider(String),
    /// This provider's persistence methods don't do; another's may.
    Unfit(String),
    /// The unit would have used this method, and this side's device can't: a weaker one may do.
    UnfitHere(PersistenceMethod, String),
    /// No other way would help.
    Final(ClientError),
}

impl Refusal {
    fn of(error: ClientError) -> Self {
        match error {
            ClientError::NoProvider { reason, .. } => Self::Provider(reason),
            ClientError::UnfitPersistence { reason, .. } => Self::Unfit(reason),
            other => Self::Final(other),
        }
    }
}

/// Tries with what was chosen. Where the unit chose, and this side's device can't do that, tries every durable method below,
/// strongest first. The receipts name the one that it came to.
fn over_methods<T>(
    choice: PersistenceChoice,
    mut open: impl FnMut(PersistenceChoice) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let first = open(choice);
    let (Err(Refusal::UnfitHere(refused, _)), PersistenceChoice::Auto) = (&first, choice) else {
        return first;
    };
    let below = PersistenceMethod::ALL
        .into_iter()
        .skip_while(|method| method != refused)
        .skip(1)
        .filter(|method| method.is_durable());
    for method in below {
        match open(PersistenceChoice::Forced(method)) {
            Err(Refusal::UnfitHere(..) | Refusal::Unfit(_)) => {}
            opened => return opened,
        }
    }
    first
}

fn protocol(what: &str) -> Refusal {
    Refusal::Final(ClientError::Protocol(what.into()))
}

/// Never less than the region needs, nor anything but what the caller forced: whatever the unit says.
fn check_persistence(
    info: &RegionInfo,
    method: PersistenceMethod,
    choice: PersistenceChoice,
) -> Result<(), Refusal> {
    if info.need == Need::Durable && !method.is_durable() {
        return Err(Refusal::Unfit(format!(
            "it needs to be durable, and the unit offers {method}"
        )));
    }
    match choice {
        PersistenceChoice::Forced(forced) if forced != method => Err(Refusal::Unfit(format!(
            "{forced} was asked for, and the unit offers {method}"
        ))),
        _ => Ok(()),
    }
}

pub(crate) fn window(window: &v1::Window) -> AccessWindow {
    AccessWindow {
        address: window.virtual_address,
        length: window.length_bytes,
        access_key: window.access_key,
        flush_key: window.flush_key.unwrap_or(0),
    }
}

fn check_name(region: &str) -> Result<()> {
    match region.parse::<RegionName>() {
        Ok(_) => Ok(()),
        Err(error) => Err(ClientError::Invalid(error.to_string())),
    }
}

/// Where an identity is looked for: what was given, else the directory in `PMU_IDENTITY`, else `identity` in the directory
/// `PMU_HOME`, else in `~/.config/pmu`, as the manager's command does it.
#[must_use]
pub fn identity_directory(given: Option<&Path>) -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = variable(HOME_VARIABLE)
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".config/pmu")))
        .unwrap_or_else(|| PathBuf::from("/etc/pmu"));
    Identity::directory(given, pmu_auth::IDENTITY_VARIABLE, &home.join("identity"))
}

/// Loads an identity directory, with this crate's error.
pub(crate) fn load_identity(directory: &Path) -> Result<Identity> {
    Identity::load(directory).map_err(|error: AuthError| ClientError::Identity {
        reason: chain(&error),
    })
}

/// A session of the unit's control service.
struct Session {
    control: Arc<Control>,
    id: u64,
    region: String,
}

impl SessionControl for Session {
    fn epoch_now(&self) -> Option<Epoch> {
        self.control.epoch_soon(&self.region).ok().map(Epoch)
    }

    fn close(&self) {
        self.control.close(self.id, &self.region);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was asked for, one after the other, where `fits` is what both sides can do.
    fn asked(
        choice: PersistenceChoice,
        fits: PersistenceMethod,
    ) -> (Vec<PersistenceChoice>, Result<PersistenceMethod, Refusal>) {
        let mut asked = Vec::new();
        let opened = over_methods(choice, |choice| {
            asked.push(choice);
            match choice {
                PersistenceChoice::Forced(method) if method == fits => Ok(method),
                PersistenceChoice::Forced(PersistenceMethod::ReadAfterWrite) => {
                    Err(Refusal::Unfit("not attested".into()))
                }
                PersistenceChoice::Auto | PersistenceChoice::Forced(_) => Err(Refusal::UnfitHere(
                    PersistenceMethod::NativeFlush,
                    "no FLUSH here".into(),
                )),
            }
        });
        (asked, opened)
    }

    #[test]
    fn b01_a_device_without_flush_gets_the_next_durable_method_and_never_less() {
        use PersistenceChoice::{Auto, Forced};
        use PersistenceMethod::{NativeFlush, ReadAfterWrite, ServerPersist, Volatile};
        let (tried, opened) = asked(Auto, ServerPersist);
        assert_eq!(tried, [Auto, Forced(ReadAfterWrite), Forced(ServerPersist)]);
        assert!(matches!(opened, Ok(ServerPersist)));
        let (tried, opened) = asked(Auto, Volatile);
        assert_eq!(tried, [Auto, Forced(ReadAfterWrite), Forced(ServerPersist)]);
        assert!(matches!(opened, Err(Refusal::UnfitHere(NativeFlush, _))));
        // Who forces a method gets that or nothing.
        let (tried, opened) = asked(Forced(NativeFlush), ServerPersist);
        assert_eq!(tried, [Forced(NativeFlush)]);
        assert!(opened.is_err());
    }
}
