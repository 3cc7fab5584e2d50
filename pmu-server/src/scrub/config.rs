//! What a unit is told about scrubbing its regions by itself.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::config::ByteSize;

/// The shortest and the longest time from one scrub to the next.
const EVERY_S: std::ops::RangeInclusive<u64> = 60..=366 * 86_400;
/// The lowest rate: below it a region of any size is never done.
const RATE_MIN: u64 = 64 << 10;

/// Scrubs the unit's regions one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScrubSection {
    /// From the end of a region's scrub to the beginning of the next.
    #[serde(default = "every")]
    pub every: Span,
    /// How fast it reads, at most.
    #[serde(default = "rate")]
    pub rate: ByteRate,
    /// Whether what is damaged of spread regions is written anew from their redundancy.
    #[serde(default = "yes")]
    pub repair: bool,
    /// The file in which the unit remembers when it scrubbed what.
    pub state: PathBuf,
    /// Directory with an identity of the role client, to reach the other members of spread regions; absent: those are left alone.
    pub identity: Option<PathBuf>,
}

const fn every() -> Span {
    Span(7 * 86_400)
}

const fn rate() -> ByteRate {
    ByteRate(ByteSize(50 << 20))
}

const fn yes() -> bool {
    true
}

/// A time in whole seconds, written as `"45s"`, `"30m"`, `"12h"` or `"7d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub u64);

impl Span {
    /// As a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "{:?} is no time: write for example 45s, 30m, 12h or 7d",
                text.escape_debug().to_string()
            )
        };
        let split = text.len().saturating_sub(1);
        let (number, unit) = text.split_at_checked(split).ok_or_else(refuse)?;
        let seconds: u64 = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(refuse()),
        };
        let number = number.trim_end();
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = match is_number {
            true => number.parse().map_err(|_| refuse())?,
            false => return Err(refuse()),
        };
        number.checked_mul(seconds).map(Self).ok_or_else(refuse)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(86_400, "d"), (3600, "h"), (60, "m")];
        let fits =
            |(seconds, _): &(u64, &str)| self.0 >= *seconds && self.0.is_multiple_of(*seconds);
        match units.into_iter().find(fits) {
            Some((seconds, unit)) => write!(formatter, "{}{unit}", self.0 / seconds),
            None => write!(formatter, "{}s", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Bytes in a second, written as `"50MiB/s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRate(pub ByteSize);

impl FromStr for ByteRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "{:?} is no rate: write for example 50MiB/s",
                text.escape_debug().to_string()
            )
        };
        let bytes = text.strip_suffix("/s").ok_or_else(refuse)?;
        bytes.trim_end().parse().map(Self).map_err(|_| refuse())
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/s", self.0)
    }
}

impl<'de> Deserialize<'de> for ByteRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl ScrubSection {
    /// What can't work.
    pub(crate) fn problems(&self, problems: &mut Vec<String>) {
        if !EVERY_S.contains(&self.every.0) {
            problems.push(format!(
                "scrub.every: {} is not between 1m and 366d",
                self.every
            ));
        }
        if self.rate.0.0 < RATE_MIN {
            problems.push(format!("scrub.rate: {} is less than 64KiB/s", self.rate));
        }
    }

    /// What it names and isn't there.
    pub(crate) fn missing_paths(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if let Some(identity) = self.identity.as_ref().filter(|path| !path.is_dir()) {
            missing.push(format!(
                "scrub.identity: {} is not a directory",
                identity.display()
            ));
        }
        let directory = self.state.parent();
        if self.state.is_dir() || !directory.is_some_and(std::path::Path::is_dir) {
            missing.push(format!(
                "scrub.state: {} is no file in a directory that is there",
                self.state.display()
            ));
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    const UNIT: &str = "[unit]\nname = \"a\"\nidentity = \"i\"\n[control]\nlisten = \"127.0.0.1:0\"\n\
        [[data]]\nprovider = \"soft-unix\"\npath = \"d\"\n[[pool]]\nname = \"m\"\nmedium = \"memory\"\nsize = \"1MiB\"\n\
        [scrub]\nstate = \"/nowhere/scrub.json\"\n";

    #[test]
    fn b07_times_and_rates_are_read_and_said() {
        for (text, seconds) in [
            ("60s", 60),
            ("30m", 1800),
            ("12 h", 43_200),
            ("7d", 604_800),
        ] {
            let span: super::Span = text.parse().unwrap();
            assert_eq!(span.0, seconds);
            assert_eq!(span.to_string().parse(), Ok(span));
        }
        for text in [
            "",
            "7",
            "d",
            "-1d",
            "+1d",
            "1.5d",
            "1w",
            "99999999999999999999d",
            "7\u{e4}",
        ] {
            assert!(text.parse::<super::Span>().is_err(), "{text}");
        }
        let rate: super::ByteRate = "50 MiB/s".parse().unwrap();
        assert_eq!((rate.0.0, rate.to_string().as_str()), (50 << 20, "50MiB/s"));
        for text in ["50MiB", "/s", "fast", "1.5MiB/s"] {
            assert!(text.parse::<super::ByteRate>().is_err(), "{text}");
        }
    }

    #[test]
    fn b07_a_section_that_cannot_work_is_named_with_its_key() {
        let config = Config::parse(UNIT).unwrap();
        assert_eq!(config.problems(), Vec::<String>::new());
        for (keys, key) in [
            ("every = \"10s\"", "scrub.every"),
            ("every = \"400d\"", "scrub.every"),
            ("rate = \"1KiB/s\"", "scrub.rate"),
        ] {
            let config = Config::parse(&format!("{UNIT}{keys}\n")).unwrap();
            let problems = config.problems();
            assert!(
                problems.iter().any(|problem| problem.starts_with(key)),
                "{problems:?}"
            );
        }
        let section = config.scrub.unwrap();
        assert!(section.missing_paths()[0].starts_with("scrub.state"));
        for keys in ["every = 7", "rate = 50", "repair = 1", "speed = 1"] {
            assert!(Config::parse(&format!("{UNIT}{keys}\n")).is_err(), "{keys}");
        }
        assert!(Config::parse(&UNIT.replace("state =", "# state =")).is_err());
    }
}
