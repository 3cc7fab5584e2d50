//! Whether a member may replace what it keeps of who the members are.

use pmu_format::Membership;

/// Why a member keeps the membership that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeRefused {
    /// The new one is of another spread region.
    #[error("it is a part of another spread region")]
    Foreign,
    /// Somebody else has changed it.
    #[error("it has generation {found}, and generation {expected} was expected")]
    WrongGeneration {
        /// What it has.
        found: u64,
        /// What the manager took it for.
        expected: u64,
    },
    /// The new one is not later than its own.
    #[error("generation {next} is not later than {found}")]
    NotLater {
        /// What it has.
        found: u64,
        /// The new one's.
        next: u64,
    },
}

/// Whether `next` may take the place of `found`, which its manager takes for one of the generation `expected`.
///
/// # Errors
/// [`ChangeRefused`].
pub fn check_change(
    found: &Membership,
    next: &Membership,
    expected: u64,
) -> Result<(), ChangeRefused> {
    if found.id != next.id {
        return Err(ChangeRefused::Foreign);
    }
    if found.generation != expected {
        let found = found.generation;
        return Err(ChangeRefused::WrongGeneration { found, expected });
    }
    if next.generation <= found.generation {
        let (found, next) = (found.generation, next.generation);
        return Err(ChangeRefused::NotLater { found, next });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pmu_format::SpreadId;

    fn membership(id: u8, generation: u64) -> Membership {
        Membership {
            id: SpreadId([id; 16]),
            generation,
            layout: [0; 3],
            units_min: 1,
            own_index: 0,
            subsegment_bytes: 64,
            members: Vec::new(),
        }
    }

    #[test]
    fn d07_a_member_follows_one_change_after_the_other() {
        let found = membership(1, 4);
        assert_eq!(check_change(&found, &membership(1, 5), 4), Ok(()));
        assert_eq!(
            check_change(&found, &membership(2, 5), 4),
            Err(ChangeRefused::Foreign)
        );
        assert_eq!(
            check_change(&found, &membership(1, 5), 3),
            Err(ChangeRefused::WrongGeneration {
                found: 4,
                expected: 3
            })
        );
        assert_eq!(
            check_change(&found, &membership(1, 4), 4),
            Err(ChangeRefused::NotLater { found: 4, next: 4 })
        );
    }
}
