//! Values that arguments are made of, and how they are shown.

use std::time::Duration;

const BINARY_UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Reads a size: `4096`, `64KiB`, `2GiB`; at least one byte.
pub(super) fn size(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "a size is a whole number with KiB, MiB, GiB, TiB or nothing";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim_start() {
        "" => 1,
        unit => BINARY_UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|found| found.1)
            .ok_or(EXPECTED)?,
    };
    let number: u64 = number.parse().map_err(|_| EXPECTED)?;
    number
        .checked_mul(factor)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| EXPECTED.to_owned())
}

/// Reads a duration: `500ms`, `10s`, `2m`, or seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str =
        "a duration is a whole number with ms, s, m or nothing (seconds), from 1ms to 1000m";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        _ => return Err(EXPECTED.to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| EXPECTED)?;
    let milliseconds = number
        .checked_mul(factor)
        .filter(|ms| (1..=60_000_000).contains(ms));
    milliseconds
        .map(Duration::from_millis)
        .ok_or_else(|| EXPECTED.to_owned())
}

/// Bytes for people.
pub(super) fn bytes_text(bytes: u64) -> String {
    let (name, factor) = BINARY_UNITS
        .iter()
        .find(|(_, factor)| bytes >= *factor)
        .copied()
        .unwrap_or(("B", 1));
    if bytes.is_multiple_of(factor) {
        format!("{} {name}", bytes / factor)
    } else {
        format!("{:.1} {name}", bytes as f64 / factor as f64)
    }
}

/// A duration for people, three digits at least.
pub(super) fn duration_text(duration: Duration) -> String {
    let us = duration.as_secs_f64() * 1e6;
    match us {
        us if us < 1e3 => format!("{us:.1} µs"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// Control characters would let a region's contents, or a unit, write anywhere on the terminal.
pub(super) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// A time in nanoseconds since 1970, in UTC.
pub(super) fn time_text(ns: u64) -> String {
    let (seconds, millis) = (ns / 1_000_000_000, ns / 1_000_000 % 1000);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date, by eras of 400 years that begin on 1 March (Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_are_read() {
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("7"), Ok(7));
        for wrong in ["", "0", "-1", "1kb", "99999999999TiB", "MiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        for wrong in ["", "0", "1h", "ms", "99999999999999999999s", "1001m"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_shown() {
        assert_eq!(time_text(0), "1970-01-01 00:00:00.000Z");
        assert_eq!(
            time_text(951_782_400_000_000_000),
            "2000-02-29 00:00:00.000Z"
        );
        assert_eq!(
            time_text(1_795_230_000_123_456_789),
            "2026-11-21 03:00:00.123Z"
        );
    }

    #[test]
    fn nothing_controls_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(bytes_text(1536), "1.5 KiB");
        assert_eq!(duration_text(Duration::from_micros(1500)), "1.50 ms");
    }
}
