//! The manager's home: the list of units, and where identity and authority are kept by default.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use pmu_auth::{PrincipalName, UnitAddress};
use serde::{Deserialize, Serialize};

use crate::error::ManagerError;

/// The environment variable that names the home.
pub const HOME_VARIABLE: &str = "PMU_HOME";

const UNITS_FILE: &str = "units.toml";
const UNITS_FILE_HEADER: &str = "# Units and the addresses of their control services. `pmm unit add` and `pmm unit remove` change it.\n\n";

/// The manager's home directory.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

impl Home {
    /// What was given, else the environment's [`HOME_VARIABLE`], else `~/.config/pmu`.
    ///
    /// # Errors
    /// [`ManagerError::Usage`] if there is no home directory either.
    pub fn find(given: Option<&Path>) -> Result<Self, ManagerError> {
        let variable = std::env::var_os(HOME_VARIABLE).filter(|value| !value.is_empty());
        if let Some(path) = given.map(Path::to_owned).or(variable.map(PathBuf::from)) {
            return Ok(Self(path));
        }
        let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
        home.map(|home| Self(home.join(".config/pmu")))
            .ok_or_else(|| ManagerError::Usage {
                detail: format!(
                    "there is no home directory: name one with --home or {HOME_VARIABLE}"
                ),
            })
    }

    /// Where the manager's own identity is by default.
    pub fn identity(&self) -> PathBuf {
        self.0.join("identity")
    }

    /// Where the site's authority is by default.
    pub fn authority(&self) -> PathBuf {
        self.0.join("ca")
    }

    /// The list of units.
    ///
    /// # Errors
    /// [`ManagerError::File`], [`ManagerError::Config`].
    pub fn units(&self) -> Result<Units, ManagerError> {
        Units::load(&self.0.join(UNITS_FILE))
    }
}

/// One unit of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The unit's name, which its certificate must have.
    pub name: PrincipalName,
    /// Its control service.
    pub address: UnitAddress,
}

/// The list of units, in alphabetical order.
#[derive(Clone, Debug)]
pub struct Units {
    path: PathBuf,
    units: Vec<Unit>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnitsFile {
    #[serde(default)]
    unit: Vec<UnitEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnitEntry {
    name: String,
    address: String,
}

impl Units {
    fn load(path: &Path) -> Result<Self, ManagerError> {
        let config = |detail: String| ManagerError::Config {
            path: path.to_owned(),
            detail,
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(source) => {
                return Err(ManagerError::File {
                    action: "read",
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let file: UnitsFile = toml::from_str(&text).map_err(|error| config(error.to_string()))?;
        let mut list = Self {
            path: path.to_owned(),
            units: Vec::with_capacity(file.unit.len()),
        };
        for entry in file.unit {
            let name =
                PrincipalName::new(&entry.name).map_err(|error| config(error.to_string()))?;
            let address = entry
                .address
                .parse()
                .map_err(|error| config(format!("{error}")))?;
            if list.find(&name).is_some() {
                return Err(config(format!("{name} is there twice")));
            }
            list.units.push(Unit { name, address });
        }
        list.units.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Unit> {
        self.units.iter()
    }

    fn find(&self, name: &PrincipalName) -> Option<&Unit> {
        self.units.iter().find(|unit| unit.name == *name)
    }

    /// The unit of a name; without one, the only unit of the list.
    ///
    /// # Errors
    /// [`ManagerError::NoSuchUnit`]; [`ManagerError::Usage`] if no name is given and the list does not have exactly one.
    pub fn choose(&self, name: Option<&PrincipalName>) -> Result<&Unit, ManagerError> {
        match (name, &*self.units) {
            (Some(name), _) => self.find(name).ok_or_else(|| ManagerError::NoSuchUnit {
                unit: name.to_string(),
                known: self.names(),
            }),
            (None, [only]) => Ok(only),
            (None, []) => Err(ManagerError::Usage {
                detail: "no unit is known: `pmm unit add NAME ADDRESS` adds one".to_owned(),
            }),
            (None, _) => Err(ManagerError::Usage {
                detail: format!("which unit? --unit names one of {}", self.names()),
            }),
        }
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.units.iter().map(|unit| unit.name.as_str()).collect();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    }

    /// Adds a unit, or gives a known one another address if `replace`. Durable when it returns.
    ///
    /// # Errors
    /// [`ManagerError::Usage`] if it is known and `replace` is not given; [`ManagerError::File`].
    pub fn add(&mut self, unit: Unit, replace: bool) -> Result<(), ManagerError> {
        if let Some(known) = self.units.iter_mut().find(|known| known.name == unit.name) {
            if *known == unit {
                return Ok(());
            }
            if !replace {
                let detail = format!(
                    "{} is known at {}: --replace gives it another address",
                    known.name, known.address
                );
                return Err(ManagerError::Usage { detail });
            }
            known.address = unit.address;
        } else {
            self.units.push(unit);
            self.units.sort_by(|a, b| a.name.cmp(&b.name));
        }
        self.save()
    }

    /// Takes a unit from the list; the unit itself is not asked. Durable when it returns.
    ///
    /// # Errors
    /// [`ManagerError::NoSuchUnit`], [`ManagerError::File`].
    pub fn remove(&mut self, name: &PrincipalName) -> Result<Unit, ManagerError> {
        let unit = self.choose(Some(name))?.clone();
        self.units.retain(|known| known.name != *name);
        self.save()?;
        Ok(unit)
    }

    fn save(&self) -> Result<(), ManagerError> {
        let entries = self.units.iter().map(|unit| UnitEntry {
            name: unit.name.to_string(),
            address: unit.address.to_string(),
        });
        let text = toml::to_string(&UnitsFile {
            unit: entries.collect(),
        })
        .map_err(|error| self.config(error.to_string()))?;
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let file = |source| ManagerError::File {
            action: "write",
            path: self.path.clone(),
            source,
        };
        fs::create_dir_all(directory).map_err(file)?;
        let temporary = self
            .path
            .with_extension(format!("toml.{}", std::process::id()));
        let write = || {
            let mut new = fs::File::create(&temporary)?;
            new.write_all(UNITS_FILE_HEADER.as_bytes())?;
            new.write_all(text.as_bytes())?;
            new.sync_all()?;
            fs::rename(&temporary, &self.path)
        };
        write().map_err(file)
    }

    fn config(&self, detail: String) -> ManagerError {
        ManagerError::Config {
            path: self.path.clone(),
            detail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str, address: &str) -> Unit {
        Unit {
            name: PrincipalName::new(name).unwrap(),
            address: address.parse().unwrap(),
        }
    }

    #[test]
    fn units_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home(directory.path().join("new"));
        let mut units = home.units().unwrap();
        assert_eq!(units.choose(None).unwrap_err().exit_code(), 2);
        units.add(unit("b", "b.example:7400"), false).unwrap();
        assert_eq!(
            home.units().unwrap().choose(None).unwrap(),
            &unit("b", "b.example:7400")
        );
        units.add(unit("a", "[::1]:7400"), false).unwrap();
        assert!(units.add(unit("a", "a.example:7400"), false).is_err());
        units.add(unit("a", "a.example:7400"), true).unwrap();

        let again = home.units().unwrap();
        let names: Vec<_> = again.iter().map(|unit| unit.address.to_string()).collect();
        assert_eq!(names, ["a.example:7400", "b.example:7400"]);
        assert!(again.choose(None).unwrap_err().text().contains("a, b"));
        let error = again.choose(Some(&unit("c", "c:1").name)).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        units.remove(&unit("a", "a:1").name).unwrap();
        assert_eq!(
            units
                .remove(&unit("a", "a:1").name)
                .unwrap_err()
                .exit_code(),
            4
        );
        assert_eq!(home.units().unwrap().iter().count(), 1);
    }

    #[test]
    fn a_damaged_list_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home(directory.path().to_owned());
        for bad in [
            "nonsense",
            "[[unit]]\nname = \"a\"\n",
            "[[unit]]\nname = \"a/b\"\naddress = \"a:1\"\n",
            "[[unit]]\nname = \"a\"\naddress = \"a\"\n",
            "[[unit]]\nname = \"a\"\naddress = \"a:1\"\ntypo = 1\n",
            "[[unit]]\nname = \"a\"\naddress = \"a:1\"\n[[unit]]\nname = \"a\"\naddress = \"a:2\"\n",
        ] {
            fs::write(directory.path().join(UNITS_FILE), bad).unwrap();
            let error = home.units().unwrap_err();
            assert!(
                matches!(error, ManagerError::Config { .. }),
                "{bad}: {error:?}"
            );
        }
    }
}
