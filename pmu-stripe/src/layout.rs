//! How a checkpoint is spread over units: [`Layout`].

use core::fmt;
use core::str::FromStr;

use thiserror::Error;

/// The most units that one layout spans, and so the most shards of a redundancy group.
pub const UNITS_MAX: usize = 32;

/// The family of a [`Layout`]. Its numbers are those on media.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LayoutKind {
    /// One unit, no redundancy.
    Single = 1,
    /// Every unit holds everything.
    Mirror = 2,
    /// Every unit holds a part, no redundancy.
    Stripe = 3,
    /// Groups with one shard of exclusive-or parity, rotating over the units.
    Parity = 4,
    /// Groups with shards of a Cauchy Reed-Solomon code, rotating over the units.
    Erasure = 5,
}

impl LayoutKind {
    const ALL: [LayoutKind; 5] = [
        LayoutKind::Single,
        LayoutKind::Mirror,
        LayoutKind::Stripe,
        LayoutKind::Parity,
        LayoutKind::Erasure,
    ];

    /// The word before the colon.
    pub const fn name(self) -> &'static str {
        match self {
            LayoutKind::Single => "single",
            LayoutKind::Mirror => "mirror",
            LayoutKind::Stripe => "stripe",
            LayoutKind::Parity => "parity",
            LayoutKind::Erasure => "erasure",
        }
    }
}

/// How a checkpoint is spread over units: `single`, `mirror:N`, `stripe:N`, `parity:K+1`,
/// `erasure:K+M`.
///
/// Every layout is a case of one scheme: groups of K data shards and M redundant ones over K+M
/// units. `single` is 1+0, `mirror:N` is 1+(N-1), `stripe:N` is N+0. A value of this type is always
/// valid: K is at least 1, K+M at most [`UNITS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    kind: LayoutKind,
    data_shards: u8,
    redundant_shards: u8,
}

impl Layout {
    /// One unit, no redundancy.
    pub const SINGLE: Layout = Layout {
        kind: LayoutKind::Single,
        data_shards: 1,
        redundant_shards: 0,
    };

    /// `units` equal copies, 2 to [`UNITS_MAX`].
    pub fn mirror(units: usize) -> Result<Layout, LayoutError> {
        if units < 2 {
            return Err(LayoutError::TooFewUnits {
                kind: LayoutKind::Mirror,
                units,
            });
        }
        Layout::checked(LayoutKind::Mirror, 1, units - 1)
    }

    /// Data over `units` units without redundancy, 2 to [`UNITS_MAX`].
    pub fn stripe(units: usize) -> Result<Layout, LayoutError> {
        if units < 2 {
            return Err(LayoutError::TooFewUnits {
                kind: LayoutKind::Stripe,
                units,
            });
        }
        Layout::checked(LayoutKind::Stripe, units, 0)
    }

    /// Groups of `data_shards` (1 to [`UNITS_MAX`] - 1) and their exclusive or.
    pub fn parity(data_shards: usize) -> Result<Layout, LayoutError> {
        if data_shards == 0 {
            return Err(LayoutError::NoDataShards {
                kind: LayoutKind::Parity,
            });
        }
        Layout::checked(LayoutKind::Parity, data_shards, 1)
    }

    /// Groups of `data_shards` and `redundant_shards`, each at least 1, together at most
    /// [`UNITS_MAX`].
    pub fn erasure(data_shards: usize, redundant_shards: usize) -> Result<Layout, LayoutError> {
        if data_shards == 0 {
            return Err(LayoutError::NoDataShards {
                kind: LayoutKind::Erasure,
            });
        }
        if redundant_shards == 0 {
            return Err(LayoutError::NoRedundancy);
        }
        Layout::checked(LayoutKind::Erasure, data_shards, redundant_shards)
    }

    fn checked(kind: LayoutKind, data: usize, redundant: usize) -> Result<Layout, LayoutError> {
        let units = data.saturating_add(redundant);
        let (Ok(data_shards), Ok(redundant_shards), true) = (
            u8::try_from(data),
            u8::try_from(redundant),
            units <= UNITS_MAX,
        ) else {
            return Err(LayoutError::TooManyUnits { kind, units });
        };
        Ok(Layout {
            kind,
            data_shards,
            redundant_shards,
        })
    }

    /// The family.
    pub const fn kind(self) -> LayoutKind {
        self.kind
    }

    /// N = K+M: how many units hold a checkpoint, 1 to [`UNITS_MAX`].
    pub const fn units(self) -> usize {
        self.data_shards as usize + self.redundant_shards as usize
    }

    /// K: how many shards of a group hold data, 1 to [`UNITS_MAX`].
    pub const fn data_shards(self) -> usize {
        self.data_shards as usize
    }

    /// M: how many shards of a group hold redundancy, 0 to [`UNITS_MAX`] - 1.
    pub const fn redundant_shards(self) -> usize {
        self.redundant_shards as usize
    }

    /// How many units may be lost, whichever they are, before data is: M.
    pub const fn tolerated_losses(self) -> usize {
        self.redundant_shards()
    }

    /// How many units must answer for a checkpoint to be read: K.
    pub const fn units_to_read(self) -> usize {
        self.data_shards()
    }

    /// How many bytes travel and are stored for one byte of data: (K+M)/K.
    pub const fn expansion(self) -> Ratio {
        let (numerator, denominator) = (self.units() as u32, self.data_shards as u32);
        let divisor = greatest_common_divisor(numerator, denominator);
        Ratio {
            numerator: numerator / divisor,
            denominator: denominator / divisor,
        }
    }

    /// The layout on media: kind, K, M. No layout is all zeros.
    pub const fn to_bytes(self) -> [u8; 3] {
        [self.kind as u8, self.data_shards, self.redundant_shards]
    }

    /// Reads what [`Self::to_bytes`] gave. The bytes may be anything; only those that a layout
    /// encodes to are taken.
    pub fn from_bytes(bytes: [u8; 3]) -> Result<Layout, LayoutError> {
        let [kind, data, redundant] = bytes;
        let Some(kind) = LayoutKind::ALL
            .into_iter()
            .find(|known| *known as u8 == kind)
        else {
            return Err(LayoutError::UnknownKindNumber { number: kind });
        };
        let (data_shards, redundant_shards) = (usize::from(data), usize::from(redundant));
        let layout = match kind {
            LayoutKind::Single => Layout::SINGLE,
            LayoutKind::Mirror => Layout::mirror(redundant_shards + 1)?,
            LayoutKind::Stripe => Layout::stripe(data_shards)?,
            LayoutKind::Parity => Layout::parity(data_shards)?,
            LayoutKind::Erasure => Layout::erasure(data_shards, redundant_shards)?,
        };
        if layout.to_bytes() != bytes {
            return Err(LayoutError::Contradiction {
                kind,
                data_shards,
                redundant_shards,
            });
        }
        Ok(layout)
    }
}

const fn greatest_common_divisor(mut larger: u32, mut smaller: u32) -> u32 {
    while smaller != 0 {
        (larger, smaller) = (smaller, larger % smaller);
    }
    larger
}

/// `single`, `mirror:N`, `stripe:N`, `parity:K+1` or `erasure:K+M`; [`FromStr`] reads it back.
impl fmt::Display for Layout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.kind.name();
        let text = match self.kind {
            LayoutKind::Single => return formatter.pad(name),
            LayoutKind::Mirror | LayoutKind::Stripe => format!("{name}:{}", self.units()),
            LayoutKind::Parity | LayoutKind::Erasure => {
                format!("{name}:{}+{}", self.data_shards, self.redundant_shards)
            }
        };
        formatter.pad(&text)
    }
}

/// Takes just what [`fmt::Display`] writes: lower case, decimal digits, no spaces, no signs, no
/// leading zeros, so that two equal layouts are equal texts.
impl FromStr for Layout {
    type Err = LayoutError;

    fn from_str(text: &str) -> Result<Layout, LayoutError> {
        let (name, numbers) = match text.split_once(':') {
            Some((name, numbers)) => (name, Some(numbers)),
            None => (text, None),
        };
        let Some(kind) = LayoutKind::ALL.into_iter().find(|kind| kind.name() == name) else {
            return Err(LayoutError::UnknownName {
                name: shortened(name),
            });
        };
        match (kind, numbers) {
            (LayoutKind::Single, None) => Ok(Layout::SINGLE),
            (LayoutKind::Single, Some(_)) => Err(LayoutError::NumbersNotExpected),
            (_, None) => Err(LayoutError::NumbersMissing { kind }),
            (LayoutKind::Mirror, Some(units)) => Layout::mirror(number(units)?),
            (LayoutKind::Stripe, Some(units)) => Layout::stripe(number(units)?),
            (LayoutKind::Parity | LayoutKind::Erasure, Some(numbers)) => {
                let Some((data, redundant)) = numbers.split_once('+') else {
                    return Err(LayoutError::PlusMissing { kind });
                };
                let (data, redundant) = (number(data)?, number(redundant)?);
                match kind {
                    LayoutKind::Parity if redundant != 1 => Err(LayoutError::ParityIsOne {
                        redundant_shards: redundant,
                    }),
                    LayoutKind::Parity => Layout::parity(data),
                    _ => Layout::erasure(data, redundant),
                }
            }
        }
    }
}

/// Numbers of more than four digits are far beyond every limit.
const DIGITS_MAX: usize = 4;

fn number(text: &str) -> Result<usize, LayoutError> {
    let not_a_number = || LayoutError::NotANumber {
        text: shortened(text),
    };
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(not_a_number());
    }
    if text.len() > 1 && text.starts_with('0') {
        return Err(LayoutError::LeadingZero {
            text: shortened(text),
        });
    }
    if text.len() > DIGITS_MAX {
        return Err(LayoutError::NumberTooLarge {
            text: shortened(text),
        });
    }
    text.parse().map_err(|_| not_a_number())
}

/// What an error repeats of a text that may be of any length.
fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

/// An exact positive ratio in lowest terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ratio {
    /// Above the line.
    pub numerator: u32,
    /// Below the line, never zero.
    pub denominator: u32,
}

impl Ratio {
    /// The nearest floating-point number.
    pub fn as_f64(self) -> f64 {
        f64::from(self.numerator) / f64::from(self.denominator)
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.numerator, self.denominator)
    }
}

/// Why a text, numbers or bytes are no layout.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The word before the colon is none of the five.
    #[error(
        "unknown layout {name:?}: expected single, mirror:N, stripe:N, parity:K+1 or erasure:K+M"
    )]
    UnknownName {
        /// The word, at most 40 characters of it.
        name: String,
    },
    /// The first byte on media is no kind.
    #[error("unknown layout number {number}")]
    UnknownKindNumber {
        /// The byte.
        number: u8,
    },
    /// Kind, K and M on media don't go together.
    #[error("layout {} can't have {data_shards} data and {redundant_shards} redundant shards", kind.name())]
    Contradiction {
        /// The kind on media.
        kind: LayoutKind,
        /// K on media.
        data_shards: usize,
        /// M on media.
        redundant_shards: usize,
    },
    /// `single` takes no number.
    #[error("layout single takes no numbers")]
    NumbersNotExpected,
    /// The colon and what belongs behind it is missing.
    #[error("layout {} needs numbers behind a colon", kind.name())]
    NumbersMissing {
        /// The kind.
        kind: LayoutKind,
    },
    /// `parity` and `erasure` take two numbers.
    #[error("layout {} needs two numbers with a plus between them, as in {}:4+1", kind.name(), kind.name())]
    PlusMissing {
        /// The kind.
        kind: LayoutKind,
    },
    /// Something else stands where digits should.
    #[error("{text:?} is not a decimal number")]
    NotANumber {
        /// The text, at most 40 characters of it.
        text: String,
    },
    /// A number starts with a zero.
    #[error("{text:?} has a leading zero")]
    LeadingZero {
        /// The text, at most 40 characters of it.
        text: String,
    },
    /// A number has too many digits to be looked at.
    #[error("{text} is too large: a layout spans at most {UNITS_MAX} units")]
    NumberTooLarge {
        /// The text, at most 40 characters of it.
        text: String,
    },
    /// More units than [`UNITS_MAX`].
    #[error("layout {} over {units} units: at most {UNITS_MAX} are possible", kind.name())]
    TooManyUnits {
        /// The kind.
        kind: LayoutKind,
        /// K+M.
        units: usize,
    },
    /// Fewer than two units; that is `single`.
    #[error("layout {} over {units} units: at least 2 are needed, one unit is layout single", kind.name())]
    TooFewUnits {
        /// The kind.
        kind: LayoutKind,
        /// N.
        units: usize,
    },
    /// K is zero.
    #[error("layout {} without data shards", kind.name())]
    NoDataShards {
        /// The kind.
        kind: LayoutKind,
    },
    /// M of `parity` isn't one.
    #[error("layout parity has 1 redundant shard, not {redundant_shards}: erasure:K+M has more")]
    ParityIsOne {
        /// M.
        redundant_shards: usize,
    },
    /// M of `erasure` is zero.
    #[error("layout erasure without redundant shards: stripe:N has none")]
    NoRedundancy,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(text: &str) -> LayoutError {
        text.parse::<Layout>().unwrap_err()
    }

    fn every_layout() -> Vec<Layout> {
        let mut layouts = vec![Layout::SINGLE];
        for first in 0..=UNITS_MAX + 1 {
            layouts.extend(Layout::mirror(first));
            layouts.extend(Layout::stripe(first));
            layouts.extend(Layout::parity(first));
            layouts.extend((0..=UNITS_MAX).flat_map(|second| Layout::erasure(first, second)));
        }
        layouts
    }

    #[test]
    fn b04_every_layout_is_read_back_from_its_text_and_from_its_bytes() {
        let layouts = every_layout();
        assert_eq!(layouts.len(), 1 + 31 + 31 + 31 + 31 * 32 / 2);
        for layout in layouts {
            assert_eq!(layout.to_string().parse(), Ok(layout));
            assert_eq!(Layout::from_bytes(layout.to_bytes()), Ok(layout));
            assert_eq!(
                layout.units(),
                layout.data_shards() + layout.redundant_shards()
            );
        }
        assert_eq!(format!("{:>8}|", Layout::SINGLE), "  single|");
    }

    #[test]
    fn d06_the_numbers_of_a_layout_follow_from_its_text() {
        let numbers = |text: &str| {
            let layout: Layout = text.parse().unwrap();
            let expansion = layout.expansion().to_string();
            (
                layout.units(),
                layout.tolerated_losses(),
                layout.units_to_read(),
                expansion,
            )
        };
        assert_eq!(numbers("single"), (1, 0, 1, "1/1".into()));
        assert_eq!(numbers("mirror:3"), (3, 2, 1, "3/1".into()));
        assert_eq!(numbers("stripe:4"), (4, 0, 4, "1/1".into()));
        assert_eq!(numbers("parity:3+1"), (4, 1, 3, "4/3".into()));
        assert_eq!(numbers("erasure:10+4"), (14, 4, 10, "7/5".into()));
        assert_eq!(Layout::parity(4).unwrap().expansion().as_f64(), 1.25);
    }

    #[test]
    fn b04_a_wrong_layout_text_says_what_is_wrong() {
        use LayoutError as E;
        let (mirror, erasure) = (LayoutKind::Mirror, LayoutKind::Erasure);
        assert_eq!(
            error("parity:3+2"),
            E::ParityIsOne {
                redundant_shards: 2
            }
        );
        assert_eq!(
            error("parity:3+0"),
            E::ParityIsOne {
                redundant_shards: 0
            }
        );
        assert_eq!(
            error("mirror:1"),
            E::TooFewUnits {
                kind: mirror,
                units: 1
            }
        );
        assert_eq!(
            error("stripe:0"),
            E::TooFewUnits {
                kind: LayoutKind::Stripe,
                units: 0
            }
        );
        assert_eq!(
            error("erasure:30+4"),
            E::TooManyUnits {
                kind: erasure,
                units: 34
            }
        );
        assert_eq!(error("erasure:0+1"), E::NoDataShards { kind: erasure });
        assert_eq!(error("erasure:4+0"), E::NoRedundancy);
        assert_eq!(error("single:1"), E::NumbersNotExpected);
        assert_eq!(error("mirror"), E::NumbersMissing { kind: mirror });
        assert_eq!(error("erasure:4"), E::PlusMissing { kind: erasure });
        assert_eq!(error("erasure:04+2"), E::LeadingZero { text: "04".into() });
        for text in [
            "mirror:",
            "mirror:-1",
            "mirror:+2",
            "mirror: 2",
            "mirror:2 ",
            "mirror:٣",
        ] {
            assert!(matches!(error(text), E::NotANumber { .. }), "{text}");
        }
        for text in [
            "erasure:4+",
            "erasure:+4",
            "erasure:4++2",
            "erasure:4+2+1",
            "erasure:4+x",
        ] {
            assert!(matches!(error(text), E::NotANumber { .. }), "{text}");
        }
        for text in [
            "mirror:18446744073709551617",
            "mirror:4294967298",
            "erasure:99999+1",
        ] {
            assert!(matches!(error(text), E::NumberTooLarge { .. }), "{text}");
        }
        for text in ["", ":", "Mirror:2", " mirror:2", "raid5:3+1", "mirror\0:2"] {
            assert!(matches!(error(text), E::UnknownName { .. }), "{text}");
        }
        assert_eq!(
            error(&"é".repeat(1000)),
            E::UnknownName {
                name: "é".repeat(40)
            }
        );
        assert_eq!(
            error("erasure:30+4").to_string(),
            "layout erasure over 34 units: at most 32 are possible"
        );
    }

    #[test]
    fn b04_bytes_from_media_are_a_layout_only_if_a_layout_encodes_to_them() {
        let mut accepted = 0;
        for kind in 0..=u8::MAX {
            for data in 0..=u8::MAX {
                for redundant in (0..=40).chain([127, 128, 254, 255]) {
                    let bytes = [kind, data, redundant];
                    if let Ok(layout) = Layout::from_bytes(bytes) {
                        assert_eq!(layout.to_bytes(), bytes);
                        accepted += 1;
                    }
                }
            }
        }
        assert_eq!(accepted, every_layout().len());
        assert_eq!(
            Layout::from_bytes([1, 2, 0]),
            Err(LayoutError::Contradiction {
                kind: LayoutKind::Single,
                data_shards: 2,
                redundant_shards: 0
            })
        );
    }

    proptest! {
        #[test]
        fn b04_no_text_panics_and_what_is_taken_is_written_the_same(
            text in "(single|mirror|stripe|parity|erasure|.{0,6})?:?[0-9+ ٣-]{0,24}",
        ) {
            if let Ok(layout) = text.parse::<Layout>() {
                prop_assert_eq!(layout.to_string(), text);
            }
        }
    }
}
