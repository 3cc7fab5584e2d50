//! Asking before something is destroyed.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::error::ManagerError;

/// Whoever can be asked.
pub trait Ask {
    /// Puts a question that is answered with yes or no. `None`: there is nobody to ask.
    ///
    /// # Errors
    /// The question or the answer can't get through.
    fn ask(&self, question: &str) -> io::Result<Option<bool>>;
}

/// The person at the terminal, if standard input and standard error are one.
#[derive(Clone, Copy, Debug)]
pub struct Terminal;

impl Ask for Terminal {
    fn ask(&self, question: &str) -> io::Result<Option<bool>> {
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Ok(None);
        }
        put(question, &mut io::stdin().lock(), &mut io::stderr().lock()).map(Some)
    }
}

fn put(question: &str, input: &mut dyn BufRead, output: &mut dyn Write) -> io::Result<bool> {
    write!(output, "{question} [y/N] ")?;
    output.flush()?;
    let mut answer = String::new();
    input.read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Goes on if `yes` was given or somebody says yes to `question`.
///
/// # Errors
/// [`ManagerError::Usage`] if there is nobody to ask, or the answer is no.
pub fn confirm(ask: &dyn Ask, yes: bool, question: &str) -> Result<(), ManagerError> {
    if yes {
        return Ok(());
    }
    let detail = match ask.ask(question) {
        Ok(Some(true)) => return Ok(()),
        Ok(Some(false)) => "nothing was done".to_owned(),
        Ok(None) => format!("{question} Without a terminal, say so with --yes"),
        Err(source) => return Err(ManagerError::Output { source }),
    };
    Err(ManagerError::Usage { detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Answer(Option<bool>);

    impl Ask for Answer {
        fn ask(&self, _: &str) -> io::Result<Option<bool>> {
            Ok(self.0)
        }
    }

    #[test]
    fn only_yes_goes_on() {
        assert!(confirm(&Answer(None), true, "Delete?").is_ok());
        assert!(confirm(&Answer(Some(true)), false, "Delete?").is_ok());
        assert_eq!(
            confirm(&Answer(Some(false)), false, "Delete?")
                .unwrap_err()
                .exit_code(),
            2
        );
        let nobody = confirm(&Answer(None), false, "Delete?").unwrap_err();
        assert_eq!(nobody.exit_code(), 2);
        assert!(nobody.text().contains("--yes"));
    }

    #[test]
    fn answers() {
        for (typed, expected) in [
            ("y\n", true),
            ("yes\n", true),
            ("\n", false),
            ("", false),
            ("n\n", false),
        ] {
            let mut shown = Vec::new();
            assert_eq!(
                put("Delete?", &mut typed.as_bytes(), &mut shown).unwrap(),
                expected
            );
            assert_eq!(shown, b"Delete? [y/N] ");
        }
    }
}
