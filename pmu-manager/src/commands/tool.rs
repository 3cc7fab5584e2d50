//! `pmm completions` and `pmm man`.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Arguments;
use crate::error::ManagerError;
use crate::output::Output;
use crate::report::ManualReport;

/// Writes the completion script of a shell.
///
/// # Errors
/// [`ManagerError::Output`].
pub fn completions(shell: Shell, output: &Output) -> Result<(), ManagerError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "pmm", &mut script);
    output.text(&script)
}

/// Writes the manual pages: one for `pmm`, one for each command below it.
///
/// # Errors
/// [`ManagerError::File`].
pub fn manual(directory: &Path) -> Result<ManualReport, ManagerError> {
    let file = |source| ManagerError::File {
        action: "write",
        path: directory.to_owned(),
        source,
    };
    std::fs::create_dir_all(directory).map_err(file)?;
    let mut command = Arguments::command();
    command.build();
    clap_mangen::generate_to(command.clone(), directory).map_err(file)?;
    Ok(ManualReport {
        directory: directory.display().to_string(),
        pages: pages(&command),
    })
}

fn pages(command: &clap::Command) -> usize {
    1 + command.get_subcommands().map(pages).sum::<usize>()
}
