//! `put` by way of a distributor, and how both `put` and `append` find it.

use std::time::Instant;

use serde::Serialize;

use crate::cli::arguments::{Distributor, Put};
use crate::cli::source::Source;
use crate::cli::spread::{Missing, add_missing, missing_of};
use crate::cli::values::duration_text;
use crate::cli::{CliError, Context, exit};
use crate::distributed::{Distributed, DistributedLog};
use crate::options::{ConnectOptions, OpenOptions};
use crate::receipt::Receipt;

#[derive(Serialize)]
struct PutOutput<'a> {
    #[serde(flatten)]
    receipt: &'a Receipt,
    distributor: &'a str,
    layout: String,
    units_of: usize,
    missing: Vec<Missing<'a>>,
    label: String,
    seconds: f64,
}

pub(super) fn put(
    context: &Context<'_>,
    distributor: &Distributor,
    arguments: &Put,
) -> Result<u8, CliError> {
    let source = Source::open(&arguments.file, &context.interrupt)?;
    let begun = Instant::now();
    let mut primary = open(context, distributor, &arguments.region)?;
    context.output.remark(&format!(
        "{} by way of {} over {}",
        arguments.region,
        primary.distributor(),
        primary.provider()
    ));
    let bar = context.output.progress(source.length);
    let mut put = primary.begin(source.length, arguments.label)?;
    source.drain(|bytes| {
        put.write_bytes(bytes)?;
        bar.inc(bytes.len() as u64);
        Ok(())
    })?;
    let receipt = put.finish()?;
    bar.finish_and_clear();
    let missing = missing_of(primary.missing());
    let (layout, units_of) = (primary.layout(), primary.layout().units());
    let mut text = format!(
        "{receipt}, distributed by {}: {} of {units_of} units ({layout}) in {}",
        primary.distributor(),
        receipt.units.len(),
        duration_text(begun.elapsed())
    );
    add_missing(&mut text, &missing);
    let output = PutOutput {
        receipt: &receipt,
        distributor: primary.distributor(),
        layout: layout.to_string(),
        units_of,
        missing,
        label: arguments.label.to_string(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    context.output.report(false, &output, &text)?;
    Ok(exit::DONE)
}

/// Where a distributor is.
struct Found {
    address: String,
    connect: ConnectOptions,
}

/// A unit is looked up among the members of the region; a process needs no unit that this program reaches.
fn find(context: &Context<'_>, distributor: &Distributor, region: &str) -> Result<Found, CliError> {
    let mut connect = context.connect_options();
    let name = match distributor {
        Distributor::Process(address) => {
            let address = address.clone();
            return Ok(Found { address, connect });
        }
        Distributor::Unit(name) => name,
    };
    let info = context.connect()?.describe(region)?;
    let membership = info.membership.ok_or_else(|| {
        CliError::Usage(format!(
            "region {region} lies on one unit: there is nothing to distribute"
        ))
    })?;
    let members = membership.members.iter();
    let found = members.clone().find(|member| member.unit.as_str() == name);
    let found = found.ok_or_else(|| {
        let names: Vec<_> = members.map(|member| member.unit.as_str()).collect();
        CliError::Usage(format!(
            "unit {name} is no member of region {region}; members: {}",
            names.join(", ")
        ))
    })?;
    connect.unit_name = Some(name.clone());
    Ok(Found {
        address: found.address.clone(),
        connect,
    })
}

fn open(
    context: &Context<'_>,
    distributor: &Distributor,
    region: &str,
) -> Result<Distributed, CliError> {
    let Found { address, connect } = find(context, distributor, region)?;
    let (identity, options) = (context.identity()?, context.options());
    Ok(Distributed::connect(
        &address, region, &identity, &connect, &options,
    )?)
}

pub(super) fn open_log(
    context: &Context<'_>,
    distributor: &Distributor,
    region: &str,
    options: &OpenOptions,
) -> Result<DistributedLog, CliError> {
    let Found { address, connect } = find(context, distributor, region)?;
    let identity = context.identity()?;
    Ok(DistributedLog::connect(
        &address, region, &identity, &connect, options,
    )?)
}
