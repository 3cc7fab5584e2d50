//! Persistence methods and providers, by name.

use std::fmt;
use std::str::FromStr;

/// How a flush proves that bytes are durable. Named in every receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PersistenceMethod {
    /// RDMA FLUSH to the persistence domain, executed by the unit's NIC (IBTA 1.5, A19).
    NativeFlush,
    /// A READ behind the WRITE, on a unit that attests that inbound writes reach the medium and are not held in a volatile cache.
    ReadAfterWrite,
    /// The unit's processor writes back and answers.
    ServerPersist,
    /// The pool is volatile memory: a flush orders, and nothing outlives the unit.
    Volatile,
}

impl PersistenceMethod {
    /// All methods, strongest first.
    pub const ALL: [Self; 4] = [
        Self::NativeFlush,
        Self::ReadAfterWrite,
        Self::ServerPersist,
        Self::Volatile,
    ];

    /// The name used in options, receipts and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::NativeFlush => "native-flush",
            Self::ReadAfterWrite => "read-after-write",
            Self::ServerPersist => "server-persist",
            Self::Volatile => "volatile",
        }
    }

    /// True unless the pool is volatile.
    pub fn is_durable(self) -> bool {
        self != Self::Volatile
    }
}

impl fmt::Display for PersistenceMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is none of the known ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown name {found:?}; one of: {expected}")]
pub struct UnknownName {
    found: String,
    expected: &'static str,
}

impl FromStr for PersistenceMethod {
    type Err = UnknownName;
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|method| method.name() == name)
            .ok_or_else(|| UnknownName {
                found: name.to_owned(),
                expected: "native-flush, read-after-write, server-persist, volatile",
            })
    }
}

/// Which way the operations go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Provider {
    /// RDMA device, through libibverbs.
    Verbs,
    /// TCP socket.
    SoftTcp,
    /// Unix socket.
    SoftUnix,
}

impl Provider {
    /// The name used in options, receipts and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Verbs => "verbs",
            Self::SoftTcp => "soft-tcp",
            Self::SoftUnix => "soft-unix",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Provider {
    type Err = UnknownName;
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "verbs" => Ok(Self::Verbs),
            "soft-tcp" => Ok(Self::SoftTcp),
            "soft-unix" => Ok(Self::SoftUnix),
            _ => Err(UnknownName {
                found: name.to_owned(),
                expected: "verbs, soft-tcp, soft-unix",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b01_every_name_reads_back() {
        for method in PersistenceMethod::ALL {
            assert_eq!(method.name().parse(), Ok(method));
            assert_eq!(method.is_durable(), method != PersistenceMethod::Volatile);
        }
        for provider in [Provider::Verbs, Provider::SoftTcp, Provider::SoftUnix] {
            assert_eq!(provider.name().parse(), Ok(provider));
        }
        assert!("flush".parse::<PersistenceMethod>().is_err());
        assert!("soft".parse::<Provider>().is_err());
    }
}
