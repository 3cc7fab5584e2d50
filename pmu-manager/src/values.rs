//! Values that arguments are made of: sizes, durations, grants.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use pmu_format::{PrincipalName, Rights};

/// A number of bytes: `4096`, `64KiB`, `512MiB`, `2GiB`, `1TiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const BINARY_UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "a size is a whole number with KiB, MiB, GiB, TiB or nothing";
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let factor = match unit.trim_start() {
            "" => 1,
            unit => BINARY_UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .map(|(_, factor)| *factor)
                .ok_or(EXPECTED)?,
        };
        let number: u64 = number.parse().map_err(|_| EXPECTED)?;
        match number.checked_mul(factor) {
            Some(0) => Err("a size is at least 1 byte".to_owned()),
            Some(bytes) => Ok(Self(bytes)),
            None => Err("more bytes than 64 bits can count".to_owned()),
        }
    }
}

impl fmt::Display for ByteSize {
    /// Rounded to a tenth of the largest unit that it has one of.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = BINARY_UNITS.iter().find(|(_, factor)| self.0 >= *factor);
        let (name, factor) = unit.copied().unwrap_or(("B", 1));
        let text = if self.0.is_multiple_of(factor) {
            format!("{} {name}", self.0 / factor)
        } else {
            format!("{:.1} {name}", self.0 as f64 / factor as f64)
        };
        formatter.pad(&text)
    }
}

/// Reads a duration: `500ms`, `10s`, `2m`, `1h`, or seconds.
///
/// # Errors
/// What a duration looks like.
pub fn duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "a duration is a whole number with ms, s, m, h or nothing for seconds";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(EXPECTED.to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| EXPECTED)?;
    match number.checked_mul(unit_ms) {
        Some(0) => Err("a duration is longer than nothing".to_owned()),
        Some(ms) => Ok(Duration::from_millis(ms)),
        None => Err("longer than 64 bits can count".to_owned()),
    }
}

/// A duration in words for people: the largest unit and the next one.
pub fn duration_text(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// What a principal is given: `PRINCIPAL:RIGHT,RIGHT...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantArgument {
    /// To whom.
    pub principal: PrincipalName,
    /// At least one.
    pub rights: Rights,
}

impl FromStr for GrantArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (principal, rights) = text
            .split_once(':')
            .ok_or("a grant is PRINCIPAL:RIGHT,RIGHT...")?;
        let principal = PrincipalName::new(principal).map_err(|error| error.to_string())?;
        let rights: Rights = rights
            .parse()
            .map_err(|_| "rights are read, write, append, clear, manage, with commas between")?;
        if rights.is_empty() {
            return Err("a grant has at least one right; `region revoke` takes them".to_owned());
        }
        Ok(Self { principal, rights })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64KiB", 65_536),
            ("64MiB", 64 << 20),
            ("2 GiB", 2 << 30),
            ("7B", 7),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in [
            "",
            "MiB",
            "64MB",
            "64mib",
            "-1",
            "1.5GiB",
            "0",
            "0KiB",
            "99999999999TiB",
            "6 4",
        ] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        let text = |bytes| ByteSize(bytes).to_string();
        assert_eq!(text(0), "0 B");
        assert_eq!(text(1023), "1023 B");
        assert_eq!(text(64 << 20), "64 MiB");
        assert_eq!(text((64 << 20) + (1 << 19)), "64.5 MiB");
        assert_eq!(text(u64::MAX), "16777216.0 TiB");
    }

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "s", "0", "10 s", "1.5s", "99999999999999999999h", "-1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(duration_text(59), "59 s");
        assert_eq!(duration_text(61), "1 min 1 s");
        assert_eq!(duration_text(7_260), "2 h 1 min");
        assert_eq!(duration_text(200_000), "2 d 7 h");
    }

    #[test]
    fn grants() {
        let grant: GrantArgument = "trainer-7:read,append".parse().unwrap();
        assert_eq!(grant.principal.as_str(), "trainer-7");
        assert_eq!(grant.rights, Rights::READ | Rights::APPEND);
        for bad in [
            "trainer-7",
            "trainer-7:",
            "trainer-7:none",
            ":read",
            "a b:read",
            "a:fly",
        ] {
            assert!(bad.parse::<GrantArgument>().is_err(), "{bad}");
        }
    }
}
