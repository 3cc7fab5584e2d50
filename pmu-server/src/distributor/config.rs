//! What a distributor is told.

use std::path::PathBuf;

use pmu_auth::UnitAddress;
use pmu_format::{PrincipalName, RegionName};
use serde::Deserialize;

use crate::config::ByteSize;

/// The least useful staging memory, and the most that one session may take.
const STAGING_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;

/// Spreads sets of programs over the units of their regions.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistributorSection {
    /// Directory with an identity of the role client. The regions' grants must let it write.
    pub identity: PathBuf,
    /// Staging memory of one session.
    #[serde(default = "staging")]
    pub staging: ByteSize,
    /// Sessions at one time.
    #[serde(default = "sessions_max")]
    pub sessions_max: u32,
    /// In a process of its own: addresses of units, through any of which each region is found.
    #[serde(default)]
    pub units: Vec<String>,
    /// In a process of its own: which regions it distributes, and for whom.
    #[serde(default)]
    pub region: Vec<DistributedRegion>,
}

/// A region that a process of its own distributes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistributedRegion {
    /// Its name.
    pub name: String,
    /// Who may have sets distributed.
    pub principals: Vec<String>,
}

const fn staging() -> ByteSize {
    ByteSize(8 << 20)
}

const fn sessions_max() -> u32 {
    8
}

impl DistributorSection {
    /// What can't work in both places.
    fn common_problems(&self, problems: &mut Vec<String>) {
        if !STAGING_BYTES.contains(&self.staging.0) || !self.staging.0.is_multiple_of(4096) {
            problems.push(format!(
                "distributor.staging: {} is not between 1MiB and 1GiB, or no multiple of 4096 bytes",
                self.staging
            ));
        }
        if self.sessions_max == 0 || self.sessions_max > 1024 {
            problems.push(format!(
                "distributor.sessions_max: {} is not between 1 and 1024",
                self.sessions_max
            ));
        }
    }

    /// What can't work in a unit.
    pub(crate) fn problems_in_unit(&self, problems: &mut Vec<String>) {
        self.common_problems(problems);
        if !self.units.is_empty() {
            problems.push("distributor.units: a unit knows its regions' members by itself".into());
        }
        if !self.region.is_empty() {
            problems.push("distributor.region: a unit goes by its regions' grants".into());
        }
    }

    /// What can't work in a process of its own.
    pub(crate) fn problems_in_process(&self, problems: &mut Vec<String>) {
        self.common_problems(problems);
        if self.units.is_empty() {
            problems.push("distributor.units: at least one address is needed".into());
        }
        for (index, address) in self.units.iter().enumerate() {
            if let Err(error) = address.parse::<UnitAddress>() {
                problems.push(format!("distributor.units[{index}]: {error}"));
            }
        }
        if self.region.is_empty() {
            problems.push(
                "distributor.region: at least one [[distributor.region]] section is needed".into(),
            );
        }
        for (index, region) in self.region.iter().enumerate() {
            let key = format!("distributor.region[{index}]");
            if let Err(error) = RegionName::new(&region.name) {
                problems.push(format!("{key}.name: {error}"));
            }
            if self.region[..index]
                .iter()
                .any(|other| other.name == region.name)
            {
                problems.push(format!("{key}.name: another section has the same"));
            }
            for principal in &region.principals {
                if let Err(error) = PrincipalName::new(principal) {
                    problems.push(format!("{key}.principals: {error}"));
                }
            }
        }
    }

    /// What it names and isn't there.
    pub(crate) fn missing_paths(&self) -> Option<String> {
        let path = self.identity.display();
        (!self.identity.is_dir())
            .then(|| format!("distributor.identity: {path} is not a directory"))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Place};

    const EXAMPLE: &str = include_str!("../../distributor.toml");

    #[test]
    fn d08_the_example_of_a_process_is_sound() {
        let config = Config::parse(EXAMPLE).unwrap();
        assert_eq!(config.place(), Place::Process);
        assert_eq!(config.problems(), Vec::<String>::new());
        let distributor = config.distributor.unwrap();
        assert_eq!(
            (distributor.staging, distributor.sessions_max),
            (super::staging(), super::sessions_max())
        );
    }

    #[test]
    fn d08_what_cannot_work_is_named_with_its_key() {
        for (from, to, key) in [
            ("8MiB", "512KiB", "distributor.staging"),
            ("8MiB", "2GiB", "distributor.staging"),
            ("8MiB", "1048577B", "distributor.staging"),
            (
                "sessions_max = 8",
                "sessions_max = 0",
                "distributor.sessions_max",
            ),
            ("unit-b:7400", "unit-b", "distributor.units[1]"),
            ("\"train\"", "\"-\"", "distributor.region[0].name"),
            ("\"trainer\"", "\"a b\"", "distributor.region[0].principals"),
            (
                "[[distributor.region]]",
                "[[distributor.region]]\nname = \"train\"\nprincipals = []\n[[distributor.region]]",
                "distributor.region[1].name",
            ),
            (
                "\n[control]",
                "\n[[pool]]\nname = \"p\"\nmedium = \"memory\"\nsize = 65536\n[control]",
                "pool",
            ),
            // Without units it would be a unit's.
            (
                "units = [\"unit-a:7400\", \"unit-b:7400\"]",
                "units = []",
                "distributor.region",
            ),
        ] {
            let config = Config::parse(&EXAMPLE.replacen(from, to, 1)).unwrap();
            let problems = config.problems();
            assert!(
                problems.iter().any(|problem| problem.starts_with(key)),
                "{key}: {problems:?}"
            );
        }
        assert!(Config::parse(&EXAMPLE.replace("staging =", "stagings =")).is_err());
    }
}
