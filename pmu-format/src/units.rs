//! Ids, quantities and small closed sets of words, each a type of its own so that one is never
//! taken for another.

use core::fmt;
use core::str::FromStr;

/// Why something is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id is 32 hexadecimal digits")]
pub struct IdError;

fn parse_id(text: &str) -> Result<[u8; 16], IdError> {
    let digits = text.as_bytes();
    if digits.len() != 32 {
        return Err(IdError);
    }
    let mut id = [0_u8; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| char::from(digit).to_digit(16).ok_or(IdError);
        // Two digits below 16 always fit a byte.
        *byte = (nibble(pair[0])? << 4 | nibble(pair[1])?) as u8;
    }
    Ok(id)
}

macro_rules! id_type {
    ($(#[$documentation:meta])* $name:ident) => {
        $(#[$documentation])*
        /// Prints as 32 hexadecimal digits, and parses from them.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// The bytes as they lie on media.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_id(text).map(Self)
            }
        }
    };
}

id_type! {
    /// The id of a region: random, never reused.
    RegionId
}

id_type! {
    /// The id of a pool: random.
    PoolId
}

macro_rules! number_type {
    ($(#[$documentation:meta])* $name:ident) => {
        $(#[$documentation])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The number itself.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// This number and `increment` more, `None` where 64 bits can't hold it.
            #[must_use]
            pub const fn checked_add(self, increment: u64) -> Option<Self> {
                match self.0.checked_add(increment) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, formatter)
            }
        }

        impl FromStr for $name {
            type Err = core::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

number_type! {
    /// The number of a set in its region, from 1 without gaps; 0 stands for "no set".
    SetNumber
}

number_type! {
    /// The generation of a region's writer, raised by each opening as primary and by each fence;
    /// 0 stands for "no writer yet".
    Epoch
}

number_type! {
    /// A place in a log: bytes since the log's birth. Never wraps, always a multiple of 8.
    LogPosition
}

number_type! {
    /// An address in the pool's virtual space, which a region keeps as long as it lives.
    VirtualAddress
}

number_type! {
    /// A place in a pool, in bytes from its beginning.
    PoolOffset
}

number_type! {
    /// A place in a region, in bytes from the region's beginning (its virtual offset).
    RegionOffset
}

bitflags::bitflags! {
    /// What a principal may do with a region.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Rights: u32 {
        /// Read with one-sided READ.
        const READ = 1;
        /// Write sets (overwrite mode).
        const WRITE = 2;
        /// Append records (append mode).
        const APPEND = 4;
        /// Move the cursor of a log.
        const CLEAR = 8;
        /// Change the region itself, its grants, and fence it.
        const MANAGE = 16;
    }
}

/// Why a word is none of the known ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct UnknownWord {
    /// The words that would have been right.
    pub expected: &'static str,
}

impl fmt::Display for Rights {
    /// Words with commas between them, `none` for no rights.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return formatter.write_str("none");
        }
        let mut separator = "";
        for (name, _) in self.iter_names() {
            write!(formatter, "{separator}{}", name.to_ascii_lowercase())?;
            separator = ",";
        }
        Ok(())
    }
}

impl FromStr for Rights {
    type Err = UnknownWord;

    /// Reads words with commas between them; `none` stands for no rights.
    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        if text == "none" {
            return Ok(Self::empty());
        }
        let word = |word: &str| match word.trim() {
            "read" => Ok(Self::READ),
            "write" => Ok(Self::WRITE),
            "append" => Ok(Self::APPEND),
            "clear" => Ok(Self::CLEAR),
            "manage" => Ok(Self::MANAGE),
            _ => Err(UnknownWord {
                expected: "read, write, append, clear, manage",
            }),
        };
        text.split(',')
            .try_fold(Self::empty(), |rights, next| Ok(rights | word(next)?))
    }
}

macro_rules! word_type {
    ($(#[$documentation:meta])* $name:ident: $number:ty, $expected:literal {
        $($(#[$variant_documentation:meta])* $variant:ident = $value:literal $word:literal,)*
    }) => {
        $(#[$documentation])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_documentation])* $variant = $value,)*
        }

        impl $name {
            /// All values, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The number on media.
            #[must_use]
            pub const fn to_number(self) -> $number {
                match self {
                    $(Self::$variant => $value,)*
                }
            }

            /// The value of a number on media, `None` for a number without meaning.
            #[must_use]
            pub const fn from_number(number: $number) -> Option<Self> {
                match number {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The word that people type and read.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(UnknownWord { expected: $expected }),
                }
            }
        }
    };
}

word_type! {
    /// How a region takes data.
    Mode: u8, "overwrite or append" {
        /// Whole checkpoints, the newest few of which are kept.
        Overwrite = 1 "overwrite",
        /// A log of records.
        Append = 2 "append",
    }
}

word_type! {
    /// Whether a region is in use.
    RegionState: u8, "active or erasing" {
        /// In use.
        Active = 1 "active",
        /// Deleted; its bytes are being erased before anyone else gets them.
        Erasing = 2 "erasing",
    }
}

word_type! {
    /// What a region demands of the medium and of the path to it.
    Need: u8, "durable or volatile-allowed" {
        /// Only a path that proves durability may write.
        Durable = 1 "durable",
        /// Loss with the power is accepted.
        VolatileAllowed = 2 "volatile-allowed",
    }
}

word_type! {
    /// What a pool lies on.
    Medium: u32, "devdax, fsdax, hugetlbfs, memory or file" {
        /// A devdax character device.
        Devdax = 1 "devdax",
        /// A file on a file system with direct access.
        Fsdax = 2 "fsdax",
        /// A file in hugetlbfs: volatile.
        Hugetlbfs = 3 "hugetlbfs",
        /// Anonymous memory: volatile.
        Memory = 4 "memory",
        /// A file on an ordinary file system.
        File = 5 "file",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_as_hexadecimal_and_parse_back() {
        let id = RegionId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0eff");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("00".parse::<PoolId>(), Err(IdError));
        assert_eq!(
            "zz0102030405060708090a0b0c0d0e0f".parse::<PoolId>(),
            Err(IdError)
        );
    }

    #[test]
    fn rights_print_and_parse() {
        for rights in [
            Rights::empty(),
            Rights::READ,
            Rights::READ | Rights::CLEAR,
            Rights::all(),
        ] {
            assert_eq!(rights.to_string().parse(), Ok(rights));
        }
        assert_eq!(Rights::all().to_string(), "read,write,append,clear,manage");
        assert!("read,fly".parse::<Rights>().is_err());
    }

    #[test]
    fn words_print_and_parse() {
        for medium in Medium::ALL {
            assert_eq!(medium.to_string().parse(), Ok(*medium));
            assert_eq!(Medium::from_number(medium.to_number()), Some(*medium));
        }
        assert_eq!(
            "sideways".parse::<Mode>().unwrap_err().expected,
            "overwrite or append"
        );
    }
}
