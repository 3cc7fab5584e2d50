//! Which of two copies counts, and what is wrong with the other one.

use core::fmt;

use crate::{FormatError, RegionTable, Structure, Superblock};

/// One of the two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CopyName {
    /// Copy A, which stands first.
    A,
    /// Copy B.
    B,
}

impl fmt::Display for CopyName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::A => "copy A",
            Self::B => "copy B",
        })
    }
}

/// Why a copy can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyFault {
    /// Where its header should be is nothing but zeros: never written, or erased.
    #[error("missing")]
    Missing,
    /// Something is there, and it is wrong.
    #[error("damaged: {0}")]
    Damaged(#[source] FormatError),
}

/// How the copy that was not chosen compares with the chosen one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OtherCopy {
    /// Says the same.
    Same,
    /// Valid, and of an older generation: a change was cut short between the two copies.
    Older {
        /// The other copy's generation.
        generation: u64,
    },
    /// Can't be used, and is to be repaired from the chosen one.
    Faulty(CopyFault),
}

/// The copy that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen<T> {
    /// What it says.
    pub value: T,
    /// Which copy it is.
    pub copy: CopyName,
    /// The state of the other copy; anything but [`OtherCopy::Same`] is to be repaired.
    pub other: OtherCopy,
}

/// Why neither copy can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CopiesError {
    /// Both copies are missing: nothing was ever completed here.
    #[error("{structure}: both copies are missing")]
    Missing {
        /// Of which structure.
        structure: Structure,
    },
    /// Neither copy can be used, and at least one is damaged.
    #[error("{structure}: copy A is {}; copy B is {}", faults[0], faults[1])]
    BothFaulty {
        /// Of which structure.
        structure: Structure,
        /// What is wrong with copy A and with copy B.
        faults: Box<[CopyFault; 2]>,
    },
    /// A sound copy of a version that this program doesn't know. It is not overruled by the other
    /// copy: a newer program may have written it.
    #[error("{structure}: {copy} has version {found}, which this program doesn't know")]
    Version {
        /// Of which structure.
        structure: Structure,
        /// Which copy.
        copy: CopyName,
        /// Its version.
        found: u32,
    },
    /// Both copies are valid and of the same generation, and say different things, which no
    /// sequence of completed and cut changes can lead to.
    #[error("{structure}: both copies are valid, and contradict each other")]
    Contradiction {
        /// Of which structure.
        structure: Structure,
    },
}

/// Chooses between the two copies of a superblock. Each slice is the copy's whole page.
///
/// # Errors
/// [`CopiesError`] where there is no copy to rely on.
pub fn choose_superblock(copy_a: &[u8], copy_b: &[u8]) -> Result<Chosen<Superblock>, CopiesError> {
    let read = |copy: &[u8]| (Superblock::decode(copy), is_missing(copy));
    // A superblock is written once, and has no generation.
    choose(Structure::Superblock, read(copy_a), read(copy_b), |_| 0)
}

/// Chooses the newest valid of the two copies of a region table. Each slice is the whole copy.
///
/// # Errors
/// [`CopiesError`] where there is no copy to rely on.
pub fn choose_table(
    superblock: &Superblock,
    copy_a: &[u8],
    copy_b: &[u8],
) -> Result<Chosen<RegionTable>, CopiesError> {
    let read = |copy: &[u8]| (RegionTable::decode(superblock, copy), is_missing(copy));
    choose(
        Structure::RegionTable,
        read(copy_a),
        read(copy_b),
        |table: &RegionTable| table.generation,
    )
}

/// Only where not one bit of a header is set was none ever written.
fn is_missing(copy: &[u8]) -> bool {
    copy.iter()
        .take(crate::TABLE_HEADER_BYTES)
        .all(|byte| *byte == 0)
}

type Read<T> = (Result<T, FormatError>, bool);

fn choose<T: PartialEq>(
    structure: Structure,
    copy_a: Read<T>,
    copy_b: Read<T>,
    generation: impl Fn(&T) -> u64,
) -> Result<Chosen<T>, CopiesError> {
    let a = sort_out(structure, CopyName::A, copy_a)?;
    let b = sort_out(structure, CopyName::B, copy_b)?;
    match (a, b) {
        (Ok(a), Ok(b)) => {
            let (generation_a, generation_b) = (generation(&a), generation(&b));
            if generation_a > generation_b {
                let other = OtherCopy::Older {
                    generation: generation_b,
                };
                return Ok(Chosen {
                    value: a,
                    copy: CopyName::A,
                    other,
                });
            }
            if generation_b > generation_a {
                let other = OtherCopy::Older {
                    generation: generation_a,
                };
                return Ok(Chosen {
                    value: b,
                    copy: CopyName::B,
                    other,
                });
            }
            if a != b {
                return Err(CopiesError::Contradiction { structure });
            }
            Ok(Chosen {
                value: a,
                copy: CopyName::A,
                other: OtherCopy::Same,
            })
        }
        (Ok(value), Err(fault)) => Ok(Chosen {
            value,
            copy: CopyName::A,
            other: OtherCopy::Faulty(fault),
        }),
        (Err(fault), Ok(value)) => Ok(Chosen {
            value,
            copy: CopyName::B,
            other: OtherCopy::Faulty(fault),
        }),
        (Err(CopyFault::Missing), Err(CopyFault::Missing)) => {
            Err(CopiesError::Missing { structure })
        }
        (Err(copy_a), Err(copy_b)) => Err(CopiesError::BothFaulty {
            structure,
            faults: Box::new([copy_a, copy_b]),
        }),
    }
}

/// Separates faults of one copy from what forbids to go on at all.
fn sort_out<T>(
    structure: Structure,
    copy: CopyName,
    (read, missing): Read<T>,
) -> Result<Result<T, CopyFault>, CopiesError> {
    match read {
        Ok(value) => Ok(Ok(value)),
        Err(FormatError::Version { found, .. }) => Err(CopiesError::Version {
            structure,
            copy,
            found,
        }),
        Err(_) if missing => Ok(Err(CopyFault::Missing)),
        Err(error) => Ok(Err(CopyFault::Damaged(error))),
    }
}
