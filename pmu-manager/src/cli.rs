//! The command line. Every argument is checked here, before anything is opened.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use pmu_auth::{HostName, PrincipalName, Role, UnitAddress};
use pmu_format::{
    LogGeometry, Mode, Need, PAGE_BYTES, RegionName, Rights, SETS_KEPT_MAX, SetGeometry,
};
use pmu_stripe::Layout;

use crate::spread;
use crate::values::{ByteSize, GrantArgument, duration};

/// How many sets a region keeps unless told otherwise: the newest, and one to fall back to.
const SETS_KEPT_DEFAULT: u32 = 2;
/// How many bytes of a spread region's set lie together on one unit unless told otherwise.
const SUBSEGMENT_DEFAULT: ByteSize = ByteSize(256 << 10);
/// Groups that `region show --placement` shows unless told otherwise.
const GROUPS_DEFAULT: &str = "16";
/// How long a certificate is valid unless told otherwise.
const DAYS_DEFAULT: &str = "365";
/// No certificate is longer valid: about ten years, as the authority's own.
const DAYS_MAX: i64 = 3650;
/// How long an answer is waited for unless told otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// The same for what takes the unit long: erasing, checking.
const TIMEOUT_LONG_DEFAULT: Duration = Duration::from_secs(600);

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong arguments or not confirmed, 3 not authenticated or not authorised, 4 not found, \
5 verify found damage, 6 a unit is locked or can't be reached, 130 ended by Ctrl-C.";

/// Administer persistent memory units: certificates, units, regions.
#[derive(Debug, Parser)]
#[command(
    name = "pmm",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = EXIT_CODES
)]
pub struct Arguments {
    /// What goes with every command.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What goes with every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// Print JSON, one object, with stable field names.
    #[arg(long, global = true)]
    pub json: bool,
    /// How long to wait for a unit, as in 500ms, 10s, 2m [default: 10s; 10m for what takes long].
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// The identity to work with: a directory with ca.pem, cert.pem, key.pem [default: that of the variable PMM_IDENTITY,
    /// else HOME/identity].
    #[arg(long, global = true, value_name = "DIR")]
    pub identity: Option<PathBuf>,
    /// Where units.toml, identity/ and ca/ are [default: the variable PMU_HOME, else ~/.config/pmu].
    #[arg(long, global = true, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Don't ask before something is destroyed.
    #[arg(long, short, global = true)]
    pub yes: bool,
}

impl Common {
    /// How long an ordinary answer is waited for.
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(TIMEOUT_DEFAULT)
    }

    /// How long to wait for what takes a unit long.
    pub fn timeout_long(&self) -> Duration {
        self.timeout.unwrap_or(TIMEOUT_LONG_DEFAULT)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum Command {
    /// The site's certificate authority.
    #[command(subcommand)]
    Ca(CaCommand),
    /// The list of units, and units as a whole.
    #[command(subcommand)]
    Unit(UnitCommand),
    /// Regions of a unit.
    #[command(subcommand)]
    Region(RegionCommand),
    /// Show how all units are: one line each. Exits with 6 if one is locked or can't be reached.
    Status(StatusArguments),
    /// Print a completion script.
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Write the manual pages, one for each command.
    Man {
        /// Where to; created if need be.
        directory: PathBuf,
    },
}

/// The site's certificate authority.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum CaCommand {
    /// Make the site's authority. Guard its key: whoever has it is everybody.
    Init(CaInitArguments),
    /// Issue an identity: a directory with certificate and key.
    Issue(CaIssueArguments),
    /// Revoke all certificates of a principal, in a list for the units.
    Revoke(CaRevokeArguments),
}

/// Arguments of `ca init`.
#[derive(Debug, Args)]
pub struct CaInitArguments {
    /// The authority's name in its certificate.
    #[arg(long, value_name = "NAME", value_parser = principal_name, default_value = "pmu-site")]
    pub name: PrincipalName,
    /// The authority's directory [default: HOME/ca].
    #[arg(long, value_name = "DIR")]
    pub ca: Option<PathBuf>,
}

/// Arguments of `ca issue`.
#[derive(Debug, Args)]
pub struct CaIssueArguments {
    /// The principal's name: what grants and logs call it. A unit's own name, for a unit.
    #[arg(value_name = "NAME", value_parser = principal_name)]
    pub name: PrincipalName,
    /// What the principal is: manager, client or unit.
    #[arg(long, value_name = "ROLE")]
    pub role: Role,
    /// A DNS name or IP address at which a unit is reached, beside its own name; any number.
    #[arg(long = "host", value_name = "HOST")]
    pub hosts: Vec<HostName>,
    /// How many days the certificate is valid.
    #[arg(long, value_name = "N", default_value = DAYS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
    pub days: u32,
    /// Where to write the identity [default: a directory NAME in the current one].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The authority's directory [default: HOME/ca].
    #[arg(long, value_name = "DIR")]
    pub ca: Option<PathBuf>,
}

/// Arguments of `ca revoke`.
#[derive(Debug, Args)]
pub struct CaRevokeArguments {
    /// The principal.
    #[arg(value_name = "NAME", value_parser = principal_name)]
    pub name: PrincipalName,
    /// The authority's directory [default: HOME/ca].
    #[arg(long, value_name = "DIR")]
    pub ca: Option<PathBuf>,
}

/// The list of units, and units as a whole.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum UnitCommand {
    /// Add a unit to the list; the unit is not asked.
    Add(UnitAddArguments),
    /// List the known units; no unit is asked.
    List,
    /// Show pools, providers and sessions of a unit.
    Show(UnitArgument),
    /// Unlock units: have them initialise their protection tables. A unit serves nobody before.
    Unlock(UnitsArgument),
    /// Take a unit from the list; the unit is not asked.
    Remove(UnitArgument),
}

/// Arguments of `unit add`.
#[derive(Debug, Args)]
pub struct UnitAddArguments {
    /// The unit's name, which its certificate must have.
    #[arg(value_name = "NAME", value_parser = principal_name)]
    pub name: PrincipalName,
    /// Its control service: HOST:PORT.
    #[arg(value_name = "ADDRESS")]
    pub address: UnitAddress,
    /// Give a unit that is known another address.
    #[arg(long)]
    pub replace: bool,
}

/// One unit.
#[derive(Debug, Args)]
pub struct UnitArgument {
    /// The unit's name.
    #[arg(value_name = "NAME", value_parser = principal_name)]
    pub name: PrincipalName,
}

/// One unit or more.
#[derive(Debug, Args)]
pub struct UnitsArgument {
    /// The units' names.
    #[arg(value_name = "NAME", value_parser = principal_name, required = true)]
    pub names: Vec<PrincipalName>,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// The units' names [default: all that are known].
    #[arg(value_name = "NAME", value_parser = principal_name)]
    pub names: Vec<PrincipalName>,
}

/// Regions of a unit.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum RegionCommand {
    /// Create a region.
    Create(RegionCreateArguments),
    /// List the regions of one unit, or of all.
    List(RegionListArguments),
    /// Show a region: extents, grants, who writes; how it is spread over units, and how these are.
    Show(RegionShowArguments),
    /// Give principals rights on a region, in place of those they had; on all its units if it is spread.
    Grant(RegionGrantArguments),
    /// Take all rights on a region from a principal; its windows are void when this returns. On all units of a spread one.
    Revoke(RegionRevokeArguments),
    /// Take the right to write from the primary that has a region: not one byte of it lands after this. A spread region
    /// is fenced on all its units; exits with 0 if so many are that the primary can commit nothing more.
    Fence(RegionArgument),
    /// Delete a region and erase its bytes, on all its units if it is spread. Refused while a program has it open.
    Delete(RegionDeleteArguments),
    /// Check a region's sets or records, and its pool's tables; on all its units if it is spread, and whether their shares go together.
    /// Exits with 5 if something is damaged.
    Verify(RegionArgument),
    /// Bring the units of a spread region up to date that were away, or put a new unit in the place of one, while checkpoints (or records)
    /// go on.
    ///
    /// Whatever ends it, it can be called again, and goes on where it was. For the time of the work the manager gives itself the
    /// rights to read and write the region, and takes them back afterwards; after being killed it leaves them until it is called again
    /// or they are revoked (`pmm region revoke`).
    Rebuild(RegionRebuildArguments),
    /// Read all that the units of a spread region hold of sets or records, check every checksum and all redundancy, and repair what is
    /// damaged.
    ///
    /// Exits with 5 if something was damaged and could not be repaired, or --no-repair is given. The manager gives itself rights for the
    /// time of the work, as for rebuild.
    Scrub(RegionScrubArguments),
}

/// Which unit.
#[derive(Debug, Args)]
pub struct OnUnit {
    /// The unit; may be left out if only one is known, or the region is spread: then all its units are meant.
    #[arg(long, value_name = "NAME", value_parser = principal_name)]
    pub unit: Option<PrincipalName>,
}

/// Arguments of `region create`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("room").required(true).args(["size", "capacity"])))]
pub struct RegionCreateArguments {
    /// The region's name: 1-63 letters, digits, `.`, `_`, `-`.
    #[arg(value_name = "NAME", value_parser = region_name)]
    pub name: RegionName,
    /// Where.
    #[command(flatten)]
    pub on: OnUnit,
    /// overwrite: keeps the newest sets. append: a log.
    #[arg(long, value_name = "MODE", value_parser = mode)]
    pub mode: Mode,
    /// Length of the region, as in 64MiB; of a log with a layout: on each unit. In overwrite mode the capacity of a set follows.
    #[arg(long, value_name = "SIZE")]
    pub size: Option<ByteSize>,
    /// Overwrite mode: the largest payload of one set. The length of the region follows.
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<ByteSize>,
    /// Overwrite mode: how many committed sets are kept beside the one being written [default: 2].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(SETS_KEPT_MAX)))]
    pub sets: Option<u32>,
    /// durable: who can't prove durability is refused. volatile: memory that a loss of power empties will do.
    #[arg(long, value_name = "NEED", value_parser = need, default_value = "durable")]
    pub need: Need,
    /// Who may do what: PRINCIPAL:RIGHT,RIGHT... of read, write, append, clear, manage; any number.
    #[arg(long = "grant", value_name = "GRANT")]
    pub grants: Vec<GrantArgument>,
    /// The pool [default: one with the room and the durability].
    #[arg(long, value_name = "NAME")]
    pub pool: Option<String>,
    /// Spread the region over several units: single, mirror:N, stripe:N, parity:K+1, erasure:K+M.
    #[arg(long, value_name = "LAYOUT", value_parser = layout, requires = "units")]
    pub layout: Option<Layout>,
    /// The units of a spread region in their order, with commas between: as many as the layout has.
    #[arg(long, value_name = "NAME,NAME...", value_parser = principal_name, value_delimiter = ',', requires = "layout", conflicts_with = "unit")]
    pub units: Vec<PrincipalName>,
    /// How many bytes of a set lie together on one unit [default: 256KiB].
    #[arg(long, value_name = "SIZE", requires = "layout")]
    pub subsegment: Option<ByteSize>,
    /// With fewer units than this nothing is committed [default: more than half, and as many as are needed to read; all
    /// without redundancy].
    #[arg(long, value_name = "N", requires = "layout")]
    pub min_units: Option<u8>,
}

impl RegionCreateArguments {
    /// How many bytes of a set lie together on one unit.
    pub fn subsegment(&self) -> ByteSize {
        self.subsegment.unwrap_or(SUBSEGMENT_DEFAULT)
    }

    /// How many sets are kept; 0 in append mode.
    pub fn sets_kept(&self) -> u32 {
        match self.mode {
            Mode::Overwrite => self.sets.unwrap_or(SETS_KEPT_DEFAULT),
            Mode::Append => 0,
        }
    }
}

/// Arguments of `region list`.
#[derive(Debug, Args)]
pub struct RegionListArguments {
    /// The unit [default: all that are known].
    #[arg(long, value_name = "NAME", value_parser = principal_name)]
    pub unit: Option<PrincipalName>,
}

/// One region.
#[derive(Debug, Args)]
pub struct RegionArgument {
    /// The region.
    #[arg(value_name = "NAME", value_parser = region_name)]
    pub name: RegionName,
    /// Where.
    #[command(flatten)]
    pub on: OnUnit,
}

/// Arguments of `region show`.
#[derive(Debug, Args)]
pub struct RegionShowArguments {
    /// The region.
    #[arg(value_name = "NAME", value_parser = region_name)]
    pub name: RegionName,
    /// Show which unit holds which parts of a spread region.
    #[arg(long)]
    pub placement: bool,
    /// How many redundancy groups to show at most.
    #[arg(long, value_name = "N", default_value = GROUPS_DEFAULT, requires = "placement", value_parser = clap::value_parser!(u64).range(1..))]
    pub groups: u64,
    /// Where.
    #[command(flatten)]
    pub on: OnUnit,
}

/// Arguments of `region delete`.
#[derive(Debug, Args)]
pub struct RegionDeleteArguments {
    /// The region.
    #[arg(value_name = "NAME", value_parser = region_name)]
    pub name: RegionName,
    /// Delete it even while programs have it open: their sessions are closed.
    #[arg(long)]
    pub force: bool,
    /// Where.
    #[command(flatten)]
    pub on: OnUnit,
}

/// Arguments of `region grant`.
#[derive(Debug, Args)]
pub struct RegionGrantArguments {
    /// The region.
    #[arg(value_name = "NAME", value_parser = region_name)]
    pub name: RegionName,
    /// Who may do what: PRINCIPAL:RIGHT,RIGHT... of read, write, append, clear, manage.
    #[arg(value_name = "GRANT", required = true)]
    pub grants: Vec<GrantArgument>,
    /// Where.
    #[command(flatten)]
    pub on: OnUnit,
}

/// Arguments of `region revoke`.
#[derive(Debug, Args)]
pub struct RegionRevokeArguments {
    /// The region.
    #[arg(value_name = "NAME", value_parser = region_name)]
    pub name: RegionName,
    /// From whom.
    #[arg(value_name = "PRINCIPAL", value_parser = principal_name)]
    pub principal: PrincipalName,
    /// Where.
    #[command(flatten)]
    pub on: OnUnit,
}

/// Which unit comes in the place of which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplaceArgument {
    /// The one that goes.
    pub old: PrincipalName,
    /// The one that comes.
    pub new: PrincipalName,
}

/// Arguments of `region rebuild`.
#[derive(Debug, Args)]
pub struct RegionRebuildArguments {
    /// The region.
    #[arg(value_name = "NAME", value_parser = region_name)]
    pub name: RegionName,
    /// Put unit NEW, which must be in the list and have the room, in the place of unit OLD, dead or alive.
    #[arg(long, value_name = "OLD=NEW", value_parser = replacement)]
    pub replace: Option<ReplaceArgument>,
    /// Bring only this unit up to date [default: all that were away].
    #[arg(long, value_name = "NAME", value_parser = principal_name, conflicts_with = "replace")]
    pub unit: Option<PrincipalName>,
    /// OLD is destroyed and never answers anybody again. Needed only where so few units know of the change otherwise that OLD could be
    /// believed for what it still holds.
    #[arg(long, requires = "replace")]
    pub lost: bool,
    /// Delete the region on OLD afterwards, if OLD answers.
    #[arg(long, requires = "replace")]
    pub delete_old: bool,
    /// Write no more than so many bytes in a second, as in 100MiB.
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<ByteSize>,
}

/// Arguments of `region scrub`.
#[derive(Debug, Args)]
pub struct RegionScrubArguments {
    /// The region.
    #[arg(value_name = "NAME", value_parser = region_name)]
    pub name: RegionName,
    /// Only report what is damaged.
    #[arg(long)]
    pub no_repair: bool,
    /// Read no more than so many bytes in a second, as in 100MiB.
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<ByteSize>,
}

impl Arguments {
    /// Reads the command line and checks what no single argument shows.
    ///
    /// # Errors
    /// A usage error (or the help text that was asked for): its `exit` prints it and ends the process.
    pub fn parse_checked<I>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator,
        I::Item: Into<OsString> + Clone,
    {
        let parsed = Self::try_parse_from(arguments)?;
        let checked = match &parsed.command {
            Command::Ca(CaCommand::Issue(issue)) => check_issue(issue),
            Command::Region(RegionCommand::Create(create)) => check_create(create),
            Command::Region(RegionCommand::Grant(grant)) => check_grants(&grant.grants),
            _ => Ok(()),
        };
        match checked {
            Ok(()) => Ok(parsed),
            Err(detail) => Err(Self::command().error(ErrorKind::ValueValidation, detail)),
        }
    }
}

fn check_issue(issue: &CaIssueArguments) -> Result<(), String> {
    if issue.role != Role::Unit && !issue.hosts.is_empty() {
        return Err(format!("--host is for units; a {} has none", issue.role));
    }
    Ok(())
}

fn check_create(create: &RegionCreateArguments) -> Result<(), String> {
    check_grants(&create.grants)?;
    let sets = create.sets_kept();
    if let Some(layout) = create.layout {
        check_spread(create, layout)?;
    }
    match (create.mode, create.size, create.capacity) {
        (Mode::Append, _, Some(_)) => {
            return Err("--capacity is for overwrite mode; a log has a --size".to_owned());
        }
        (Mode::Append, _, _) if create.sets.is_some() => {
            return Err("--sets is for overwrite mode; a log has none".to_owned());
        }
        (Mode::Append, Some(size), None) => {
            // The unit rounds up to granules.
            let rounded = size
                .0
                .checked_next_multiple_of(PAGE_BYTES)
                .ok_or("--size: too long")?;
            LogGeometry::new(rounded).map_err(|error| format!("--size: {error}"))?;
        }
        (Mode::Overwrite, Some(size), _) => {
            let rounded = size
                .0
                .checked_next_multiple_of(PAGE_BYTES)
                .ok_or("--size: too long")?;
            SetGeometry::capacity_max_bytes(rounded, sets)
                .map_err(|error| format!("--size with {sets} sets: {error}"))?;
        }
        (Mode::Overwrite, None, Some(capacity)) => {
            SetGeometry::region_bytes_for(capacity.0, sets)
                .map_err(|error| format!("--capacity with {sets} sets: {error}"))?;
        }
        // clap lets neither pass.
        (_, None, None) => return Err("--size or --capacity is missing".to_owned()),
    }
    let senseless = match create.mode {
        Mode::Overwrite => Rights::APPEND | Rights::CLEAR,
        Mode::Append => Rights::WRITE,
    };
    match create
        .grants
        .iter()
        .find(|grant| grant.rights.intersects(senseless))
    {
        Some(grant) => Err(format!(
            "--grant {}: a region in {} mode has no right {}",
            grant.principal,
            create.mode,
            grant.rights & senseless
        )),
        None => Ok(()),
    }
}

fn check_spread(create: &RegionCreateArguments, layout: Layout) -> Result<(), String> {
    let (expected, found) = (layout.units(), create.units.len());
    if found != expected {
        return Err(format!(
            "--units: {layout} is spread over {expected}, not over {found}"
        ));
    }
    for (index, unit) in create.units.iter().enumerate() {
        if create.units[..index].contains(unit) {
            return Err(format!("--units: {unit} is there twice"));
        }
    }
    let possible = layout.units_to_read()..=layout.units();
    if let Some(units_min) = create.min_units
        && !possible.contains(&usize::from(units_min))
    {
        let (least, most) = possible.into_inner();
        return Err(format!(
            "--min-units {units_min}: {least} to {most} are possible with {layout}"
        ));
    }
    match create.mode {
        Mode::Overwrite => check_spread_sets(create, layout),
        Mode::Append if create.subsegment.is_some() => {
            Err("--subsegment is for overwrite mode; a record is cut into equal parts".to_owned())
        }
        Mode::Append => Ok(()),
    }
}

fn check_spread_sets(create: &RegionCreateArguments, layout: Layout) -> Result<(), String> {
    let Some(capacity) = create.capacity else {
        return Err("--size is for one unit; a spread region has a --capacity".to_owned());
    };
    if create.sets_kept() < 2 {
        // A new primary leaves one number out; with one set kept its first would lie where the last good one is.
        return Err("--sets: a spread region keeps 2 and up".to_owned());
    }
    let member_bytes = spread::member_capacity_bytes(layout, capacity.0, create.subsegment().0)
        .map_err(|error| format!("--capacity with --subsegment: {error}"))?;
    SetGeometry::region_bytes_for(member_bytes, create.sets_kept())
        .map_err(|error| format!("--capacity: each unit's part: {error}"))?;
    Ok(())
}

fn check_grants(grants: &[GrantArgument]) -> Result<(), String> {
    for (index, grant) in grants.iter().enumerate() {
        if grants[..index]
            .iter()
            .any(|earlier| earlier.principal == grant.principal)
        {
            return Err(format!("{} is granted rights twice", grant.principal));
        }
    }
    Ok(())
}

fn replacement(text: &str) -> Result<ReplaceArgument, String> {
    let (old, new) = text
        .split_once('=')
        .ok_or("a replacement is OLD=NEW, two names of units")?;
    let (old, new) = (principal_name(old)?, principal_name(new)?);
    if old == new {
        return Err(format!("{old} can't take its own place"));
    }
    Ok(ReplaceArgument { old, new })
}

fn principal_name(text: &str) -> Result<PrincipalName, String> {
    PrincipalName::new(text).map_err(|error| error.to_string())
}

fn region_name(text: &str) -> Result<RegionName, String> {
    RegionName::new(text).map_err(|error| error.to_string())
}

fn layout(text: &str) -> Result<Layout, String> {
    text.parse::<Layout>().map_err(|error| error.to_string())
}

fn mode(text: &str) -> Result<Mode, String> {
    text.parse::<Mode>().map_err(|error| error.to_string())
}

fn need(text: &str) -> Result<Need, String> {
    match text {
        "durable" => Ok(Need::Durable),
        "volatile" => Ok(Need::VolatileAllowed),
        _ => Err("expected durable or volatile".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::parse_checked(["pmm"].into_iter().chain(line.split_whitespace()))
    }

    fn refused(line: &str, expected: &str) {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        let text = error.to_string();
        assert!(text.contains(expected), "{line}: {text}");
    }

    fn create(line: &str) -> RegionCreateArguments {
        let arguments = parse(&format!("region create r {line}")).unwrap();
        match arguments.command {
            Command::Region(RegionCommand::Create(create)) => create,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn help_names_the_exit_codes() {
        let help = Arguments::command().render_long_help().to_string();
        for code in [
            "0 done",
            "3 not authenticated",
            "5 verify",
            "6 a unit is locked",
        ] {
            assert!(help.contains(code), "{help}");
        }
    }

    #[test]
    fn common_arguments_go_anywhere() {
        for line in [
            "--json --timeout 500ms -y status",
            "status --json --timeout 500ms --yes a b",
        ] {
            let common = parse(line).unwrap().common;
            assert!(common.json && common.yes);
            assert_eq!(common.timeout(), Duration::from_millis(500));
            assert_eq!(common.timeout_long(), Duration::from_millis(500));
        }
        let common = parse("unit list").unwrap().common;
        assert_eq!(common.timeout(), TIMEOUT_DEFAULT);
        assert_eq!(common.timeout_long(), TIMEOUT_LONG_DEFAULT);
        refused("status --timeout soon", "a duration is");
    }

    #[test]
    fn certificates() {
        let line = "ca issue unit-1 --role unit --host a.example --host ::1 --days 30 --out d";
        let arguments = parse(line).unwrap();
        let Command::Ca(CaCommand::Issue(issue)) = arguments.command else {
            panic!()
        };
        assert_eq!(
            (issue.role, issue.hosts.len(), issue.days),
            (Role::Unit, 2, 30)
        );
        refused(
            "ca issue alice --role client --host a.example",
            "--host is for units",
        );
        refused("ca issue alice --role root", "manager, client or unit");
        refused("ca issue a/b --role client", "a name has");
        refused(
            "ca issue unit-1 --role unit --host http://x",
            "neither a DNS name",
        );
        refused("ca issue alice --role client --days 0", "0");
        refused("ca issue alice --role client --days 4000", "4000");
        refused("ca issue alice", "--role");
    }

    #[test]
    fn units() {
        let arguments = parse("unit add unit-1 [::1]:7400").unwrap();
        let Command::Unit(UnitCommand::Add(add)) = arguments.command else {
            panic!()
        };
        assert_eq!(add.address.to_string(), "[::1]:7400");
        refused("unit add unit-1 here", "no port");
        refused("unit unlock", "NAME");
        refused("unit show", "NAME");
    }

    #[test]
    fn regions_to_create() {
        let region = create(
            "--unit u --mode overwrite --capacity 64MiB --sets 3 --grant a:read,write --grant b:read",
        );
        assert_eq!(region.capacity, Some(ByteSize(64 << 20)));
        assert_eq!((region.sets_kept(), region.grants.len()), (3, 2));
        assert_eq!(region.need, Need::Durable);
        assert_eq!(
            create("--mode overwrite --size 1MiB").sets_kept(),
            SETS_KEPT_DEFAULT
        );
        let log = create("--mode append --size 1MiB --need volatile");
        assert_eq!((log.sets_kept(), log.need), (0, Need::VolatileAllowed));
    }

    #[test]
    fn regions_that_make_no_sense() {
        let refused = |line: &str, expected: &str| {
            refused(&format!("region create r {line}"), expected);
        };
        refused(
            "--mode append --capacity 1MiB",
            "--capacity is for overwrite mode",
        );
        refused(
            "--mode append --size 1MiB --sets 2",
            "--sets is for overwrite mode",
        );
        refused("--mode append --size 4KiB", "--size");
        refused("--mode overwrite --size 4KiB", "--size with 2 sets");
        refused(
            "--mode overwrite --capacity 16777215TiB",
            "--capacity with 2 sets",
        );
        refused("--mode overwrite", "--size");
        refused(
            "--mode overwrite --size 1MiB --capacity 1MiB",
            "cannot be used with",
        );
        refused("--mode overwrite --size 1MiB --sets 0", "0");
        refused("--mode both --size 1MiB", "overwrite or append");
        refused("--mode append --size 1MiB --need it", "durable or volatile");
        refused(
            "--mode append --size 1MiB --grant a:read,write",
            "has no right write",
        );
        refused(
            "--mode overwrite --size 1MiB --grant a:append",
            "has no right append",
        );
        refused(
            "--mode append --size 1MiB --grant a:read --grant a:append",
            "granted rights twice",
        );
        refused(
            "--mode append --size 1MiB --grant a",
            "a grant is PRINCIPAL:",
        );
    }

    #[test]
    fn d01_spread_regions_that_make_no_sense() {
        let refused = |line: &str, expected: &str| {
            refused(&format!("region create r --capacity 1MiB {line}"), expected);
        };
        let good = "--mode overwrite --layout parity:3+1 --units a,b,c,d";
        assert_eq!(create(&format!("--capacity 1MiB {good}")).units.len(), 4);
        refused(
            "--mode overwrite --layout parity:3+1 --units a,b,c",
            "parity:3+1 is spread over 4, not over 3",
        );
        refused(
            "--mode overwrite --layout parity:3+1 --units a,b,c,b",
            "b is there twice",
        );
        refused("--mode overwrite --layout mirror:2", "--units");
        refused("--mode overwrite --units a,b", "--layout");
        refused(
            "--mode overwrite --layout raid:5 --units a",
            "unknown layout",
        );
        refused(&format!("{good} --unit a"), "cannot be used with");
        refused(&format!("{good} --sets 1"), "2 and up");
        refused(&format!("{good} --min-units 2"), "3 to 4 are possible");
        refused(&format!("{good} --min-units 5"), "3 to 4 are possible");
        refused(&format!("{good} --subsegment 2TiB"), "--subsegment");
        let refused = super::tests::refused;
        refused(
            "region create r --mode append --capacity 1MiB --layout mirror:2 --units a,b",
            "--capacity is for overwrite mode",
        );
        refused(
            "region create r --mode append --size 1MiB --layout mirror:2 --units a,b --subsegment 4KiB",
            "--subsegment is for overwrite mode",
        );
        refused(
            "region create r --mode append --size 1MiB --layout mirror:3 --units a,b",
            "spread over 3, not over 2",
        );
        assert!(
            parse("region create r --mode append --size 1MiB --layout mirror:2 --units a,b")
                .is_ok()
        );
        refused(
            "region create r --mode overwrite --size 1MiB --layout mirror:2 --units a,b",
            "has a --capacity",
        );
        refused("region show r --groups 3", "--placement");
    }

    #[test]
    fn grants() {
        refused("region grant r", "GRANT");
        refused("region grant r a:read a:append", "granted rights twice");
        refused("region grant r a:none", "at least one right");
        assert!(parse("region grant r a:read b:append --unit u").is_ok());
        assert!(parse("region revoke r a").is_ok());
        refused("region revoke r", "PRINCIPAL");
    }
}
