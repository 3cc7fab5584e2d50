//! Running the project's commands, as a newcomer would type them.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::child::{Child, Output};
use crate::error::{DemoError, Result};

/// Where the programs are, and where their logs go.
#[derive(Debug, Clone)]
pub struct Tools {
    folder: PathBuf,
    logs: PathBuf,
    timeout: Duration,
    verbose: bool,
}

impl Tools {
    /// Programs of `PMU_BIN_DIR`, or else those beside this one.
    ///
    /// # Errors
    /// [`DemoError::Unusable`] where one of them is missing.
    pub fn find(logs: PathBuf, timeout: Duration, verbose: bool) -> Result<Self> {
        let folder = match std::env::var_os("PMU_BIN_DIR") {
            Some(folder) => PathBuf::from(folder),
            None => std::env::current_exe()
                .map_err(DemoError::system("find the own program"))?
                .parent()
                .map_or_else(PathBuf::new, Path::to_owned),
        };
        for name in ["pmu-server", "pmm", "pmu-demo"] {
            if !folder.join(name).is_file() {
                let folder = folder.display();
                return Err(DemoError::Unusable(format!(
                    "there is no {name} in {folder}: build it first"
                )));
            }
        }
        Ok(Self {
            folder,
            logs,
            timeout,
            verbose,
        })
    }

    /// Makes sure that a program is there that not every run needs.
    ///
    /// # Errors
    /// [`DemoError::Unusable`] where it is missing.
    pub fn need(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        if path.is_file() {
            return Ok(path);
        }
        let folder = self.folder.display();
        Err(DemoError::Unusable(format!(
            "there is no {name} in {folder}: build it first"
        )))
    }

    /// The longest time that any step may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Starts a program. Its standard error goes into a log of the name `log`.
    ///
    /// # Errors
    /// [`DemoError::File`], [`DemoError::System`].
    pub fn start(
        &self,
        program: &str,
        arguments: &[OsString],
        log: &str,
        output: Output,
        environment: &[(&str, &OsStr)],
    ) -> Result<Child> {
        if self.verbose {
            eprintln!("    $ {}", as_typed(program, arguments));
        }
        let log = self.logs.join(format!("{log}.log"));
        Child::start(
            program,
            &self.folder.join(program),
            arguments,
            &log,
            output,
            environment,
        )
    }

    /// Runs a command to its end; what it prints goes into its log.
    ///
    /// # Errors
    /// [`DemoError::Process`] if it fails, with what it said.
    pub fn run(&self, program: &str, arguments: &[OsString]) -> Result<()> {
        let name = format!("{program}-{}", log_name(arguments));
        let mut child = self.start(program, arguments, &name, Output::Logged, &[])?;
        child.wait_for_success(self.timeout)
    }
}

/// Makes an argument list of what can be turned into arguments.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => {
        vec![$(std::ffi::OsString::from($argument)),*]
    };
}
pub(crate) use arguments;

fn log_name(arguments: &[OsString]) -> String {
    let words = arguments.iter().filter_map(|argument| argument.to_str());
    let plain = |word: &&str| {
        word.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let words: Vec<&str> = words
        .filter(|word| !word.starts_with('-'))
        .filter(plain)
        .take(3)
        .collect();
    words.join("-")
}

fn as_typed(program: &str, arguments: &[OsString]) -> String {
    let mut line = program.to_owned();
    for argument in arguments {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_named_after_the_command() {
        let arguments = arguments![
            "--home",
            "/tmp/x",
            "region",
            "create",
            "index-log",
            "--size",
            "1"
        ];
        assert_eq!(log_name(&arguments), "region-create-index-log");
        assert_eq!(as_typed("pmm", &arguments[2..4]), "pmm region create");
    }
}
