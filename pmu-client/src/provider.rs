//! Which way the data goes: the order in which providers are tried, and the data connection itself.

use std::net::{ToSocketAddrs, UdpSocket};
use std::time::Duration;

use pmu_fabric::{ConnectToken, Connection, FabricError, PersistenceMethod, Provider, soft, verbs};
use pmu_proto::v1;

use crate::options::ProviderChoice;

/// The providers to try, in order. Never empty.
pub(crate) fn candidates(choice: ProviderChoice, host: &str, port: u16) -> Vec<Provider> {
    match choice {
        ProviderChoice::Only(provider) => vec![provider],
        ProviderChoice::Auto => {
            let mut order = Vec::with_capacity(3);
            if device_is_here() {
                order.push(Provider::Verbs);
            }
            if is_this_machine(host, port) {
                order.push(Provider::SoftUnix);
            }
            order.push(Provider::SoftTcp);
            order
        }
    }
}

/// Whether the kernel of this machine (or container) knows any RDMA device.
fn device_is_here() -> bool {
    std::fs::read_dir("/sys/class/infiniband").is_ok_and(|mut devices| devices.next().is_some())
}

/// Whether the unit runs here: the way to it begins and ends at the same address. Nothing is sent.
fn is_this_machine(host: &str, port: u16) -> bool {
    let Ok(addresses) = (host, port).to_socket_addrs() else {
        return false;
    };
    addresses.into_iter().any(|remote| {
        let any = if remote.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        UdpSocket::bind(any)
            .and_then(|socket| socket.connect(remote).and_then(|()| socket.local_addr()))
            .is_ok_and(|local| local.ip() == remote.ip())
    })
}

/// Makes the data connection. Blocks at most `timeout`.
pub(crate) fn connect(
    provider: Provider,
    address: &str,
    token: ConnectToken,
    persistence: PersistenceMethod,
    timeout: Duration,
) -> Result<Box<dyn Connection>, FabricError> {
    match provider {
        Provider::Verbs => Ok(Box::new(verbs::connect(
            address,
            token,
            persistence,
            timeout,
        )?)),
        Provider::SoftTcp | Provider::SoftUnix => {
            let connection = soft::connect(provider, address, token, persistence, timeout)?;
            Ok(Box::new(connection))
        }
    }
}

pub(crate) fn to_wire(provider: Provider) -> v1::Provider {
    match provider {
        Provider::SoftTcp => v1::Provider::SoftTcp,
        Provider::SoftUnix => v1::Provider::SoftUnix,
        Provider::Verbs => v1::Provider::Verbs,
    }
}

pub(crate) fn method_to_wire(method: PersistenceMethod) -> v1::PersistenceMethod {
    match method {
        PersistenceMethod::NativeFlush => v1::PersistenceMethod::NativeFlush,
        PersistenceMethod::ReadAfterWrite => v1::PersistenceMethod::ReadAfterWrite,
        PersistenceMethod::ServerPersist => v1::PersistenceMethod::ServerPersist,
        PersistenceMethod::Volatile => v1::PersistenceMethod::Volatile,
    }
}

pub(crate) fn method_from_wire(number: i32) -> Option<PersistenceMethod> {
    match v1::PersistenceMethod::try_from(number).ok()? {
        v1::PersistenceMethod::NativeFlush => Some(PersistenceMethod::NativeFlush),
        v1::PersistenceMethod::ReadAfterWrite => Some(PersistenceMethod::ReadAfterWrite),
        v1::PersistenceMethod::ServerPersist => Some(PersistenceMethod::ServerPersist),
        v1::PersistenceMethod::Volatile => Some(PersistenceMethod::Volatile),
        v1::PersistenceMethod::Unspecified => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_unit_is_known_as_one() {
        assert!(is_this_machine("127.0.0.1", 7));
        assert!(!is_this_machine("192.0.2.1", 7));
        let order = candidates(ProviderChoice::Auto, "127.0.0.1", 7);
        assert!(
            order.ends_with(&[Provider::SoftUnix, Provider::SoftTcp]),
            "{order:?}"
        );
    }

    #[test]
    fn b01_a_named_provider_is_never_replaced() {
        let only = ProviderChoice::Only(Provider::Verbs);
        assert_eq!(candidates(only, "127.0.0.1", 7), [Provider::Verbs]);
    }

    #[test]
    fn every_method_crosses_the_wire() {
        for method in PersistenceMethod::ALL {
            assert_eq!(
                method_from_wire(method_to_wire(method) as i32),
                Some(method)
            );
        }
        assert_eq!(method_from_wire(0), None);
        assert_eq!(method_from_wire(99), None);
    }
}
