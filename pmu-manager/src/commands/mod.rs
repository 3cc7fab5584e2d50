//! One function for each command: from arguments to a report.

pub mod ca;
pub mod rebuild;
pub mod region;
pub mod spread;
pub mod status;
pub mod tool;
pub mod unit;

use std::sync::Arc;
use std::time::Duration;

use pmu_auth::{Identity, PrincipalName};

use crate::cli::{Arguments, CaCommand, Command, Common, RegionCommand, UnitCommand};
use crate::config::{Home, Unit, Units};
use crate::confirm::Ask;
use crate::connect::{self, Connection};
use crate::error::{ManagerError, exit};
use crate::output::{Output, Page};
use crate::report::{Changed, Created};

/// What commands work with.
#[derive(Debug)]
pub struct Context {
    /// Where the manager keeps things.
    pub home: Home,
    /// What goes with every command.
    pub common: Common,
    /// The known units.
    pub units: Units,
}

impl Context {
    /// Reads the list of units.
    ///
    /// # Errors
    /// [`ManagerError::Usage`], [`ManagerError::File`], [`ManagerError::Config`].
    pub fn new(common: &Common) -> Result<Self, ManagerError> {
        let home = Home::find(common.home.as_deref())?;
        let units = home.units()?;
        Ok(Self {
            home,
            common: common.clone(),
            units,
        })
    }

    /// Who the manager is.
    ///
    /// # Errors
    /// [`ManagerError::NoIdentity`], [`ManagerError::Auth`].
    pub fn identity(&self) -> Result<Arc<Identity>, ManagerError> {
        connect::identity(&self.home, &self.common)
    }

    /// Connects to a unit; without a name, to the only one that is known.
    ///
    /// # Errors
    /// Those of [`Units::choose`], [`Context::identity`] and [`Connection::open`].
    pub async fn connect(&self, unit: Option<&PrincipalName>) -> Result<Connection, ManagerError> {
        let unit = self.units.choose(unit)?;
        Connection::open(unit, &*self.identity()?, self.common.timeout()).await
    }

    /// The units of these names, all that are known if there are none.
    ///
    /// # Errors
    /// Those of [`Units::choose`].
    pub fn chosen(&self, names: &[PrincipalName]) -> Result<Vec<Unit>, ManagerError> {
        if names.is_empty() {
            return Ok(self.units.iter().cloned().collect());
        }
        names
            .iter()
            .map(|name| self.units.choose(Some(name)).cloned())
            .collect()
    }

    /// How long an ordinary answer is waited for.
    pub fn timeout(&self) -> Duration {
        self.common.timeout()
    }

    /// How long to wait for what takes a unit long.
    pub fn timeout_long(&self) -> Duration {
        self.common.timeout_long()
    }
}

/// Does what the command line says, and returns the exit code.
///
/// # Errors
/// [`ManagerError`] says why it failed; [`ManagerError::exit_code`] is the exit code then.
pub async fn run(
    arguments: &Arguments,
    output: &Output,
    ask: &(dyn Ask + Sync),
) -> Result<u8, ManagerError> {
    match &arguments.command {
        Command::Completions { shell } => tool::completions(*shell, output),
        Command::Man { directory } => output.report(&tool::manual(directory)?),
        Command::Ca(command) => run_ca(command, &arguments.common, output, ask),
        Command::Unit(command) => run_unit(command, &arguments.common, output).await,
        Command::Region(command) => {
            return run_region(command, &arguments.common, output, ask).await;
        }
        Command::Status(status) => {
            let context = Context::new(&arguments.common)?;
            let report = status::status(&context, &status.names).await?;
            output.report(&report)?;
            return Ok(status::exit_code(&report));
        }
    }?;
    Ok(exit::DONE)
}

fn run_ca(
    command: &CaCommand,
    common: &Common,
    output: &Output,
    ask: &(dyn Ask + Sync),
) -> Result<(), ManagerError> {
    let home = Home::find(common.home.as_deref())?;
    match command {
        CaCommand::Init(init) => output.report(&ca::init(&home, init)?),
        CaCommand::Issue(issue) => output.report(&ca::issue(&home, issue)?),
        CaCommand::Revoke(revoke) => output.report(&ca::revoke(&home, common, revoke, ask)?),
    }
}

async fn run_unit(
    command: &UnitCommand,
    common: &Common,
    output: &Output,
) -> Result<(), ManagerError> {
    let mut context = Context::new(common)?;
    match command {
        UnitCommand::Add(add) => output.report(&unit::add(&mut context, add)?),
        UnitCommand::List => output.report(&unit::list(&context)),
        UnitCommand::Show(show) => output.report(&unit::show(&context, &show.name).await?),
        UnitCommand::Unlock(unlock) => output.report(&unit::unlock(&context, &unlock.names).await?),
        UnitCommand::Remove(remove) => output.report(&unit::remove(&mut context, &remove.name)?),
    }
}

async fn run_region(
    command: &RegionCommand,
    common: &Common,
    output: &Output,
    ask: &(dyn Ask + Sync),
) -> Result<u8, ManagerError> {
    let context = Context::new(common)?;
    let exit_code = match command {
        RegionCommand::Create(create) => {
            let report = match create.layout {
                Some(layout) => Created::Spread(spread::create(&context, create, layout).await?),
                None => Created::One(region::create(&context, create).await?),
            };
            output.report(&report)?;
            exit::DONE
        }
        RegionCommand::List(list) => {
            let list = region::list(&context, list.unit.as_ref()).await?;
            output.report(&list)?;
            list.exit_code
        }
        RegionCommand::Show(show) => {
            output.report(&region::show(&context, show).await?)?;
            exit::DONE
        }
        RegionCommand::Grant(grant) => {
            report_change(output, &region::grant(&context, grant).await?)?
        }
        RegionCommand::Revoke(revoke) => {
            report_change(output, &region::revoke(&context, revoke).await?)?
        }
        RegionCommand::Fence(fence) => {
            report_change(output, &region::fence(&context, fence, ask).await?)?
        }
        RegionCommand::Delete(delete) => {
            report_change(output, &region::delete(&context, delete, ask).await?)?
        }
        RegionCommand::Rebuild(arguments) => {
            let report = rebuild::rebuild(&context, arguments).await?;
            output.report(&report)?;
            report.exit_code
        }
        RegionCommand::Scrub(arguments) => {
            let report = rebuild::scrub(&context, arguments).await?;
            output.report(&report)?;
            report.exit_code
        }
        RegionCommand::Verify(verify) => {
            let (report, exit_code) = rebuild::verify(&context, verify).await?;
            output.report(&report)?;
            exit_code
        }
    };
    Ok(exit_code)
}

fn report_change<T>(output: &Output, change: &Changed<T>) -> Result<u8, ManagerError>
where
    Changed<T>: Page,
{
    output.report(change)?;
    Ok(match change {
        Changed::One(_) => exit::DONE,
        Changed::Spread(change) => change.exit_code,
    })
}
