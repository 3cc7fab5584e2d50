//! The soft provider keeps the fabric's contract: over TCP and Unix sockets, on volatile memory and on a file.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use pmu_fabric::contract::{Harness, POOL_BYTES, run_all};
use pmu_fabric::soft::{SoftUnit, connect};
use pmu_fabric::{ConnectToken, Connection, FabricError, PersistenceMethod, Provider, UnitFabric};
use pmu_pmem::{CreateOptions, Medium, PoolMemory, PoolSpec};

struct Soft {
    unit: SoftUnit,
    pool: Arc<PoolMemory>,
    method: PersistenceMethod,
    _folder: tempfile::TempDir,
}

impl Harness for Soft {
    fn unit(&self) -> &dyn UnitFabric {
        &self.unit
    }
    fn pool(&self) -> &Arc<PoolMemory> {
        &self.pool
    }
    fn method(&self) -> PersistenceMethod {
        self.method
    }
    fn connect(&self, token: ConnectToken) -> Result<Box<dyn Connection>, FabricError> {
        let (provider, address) = (self.unit.provider(), self.unit.address());
        Ok(Box::new(connect(
            provider,
            &address,
            token,
            self.method,
            Duration::from_secs(10),
        )?))
    }
}

fn soft(provider: Provider, medium: Medium) -> Box<dyn Harness> {
    let folder = tempfile::tempdir().unwrap();
    let unit = match provider {
        Provider::SoftTcp => SoftUnit::listen_tcp("127.0.0.1:0").unwrap(),
        _ => SoftUnit::listen_unix(folder.path().join("unit.sock").to_str().unwrap()).unwrap(),
    };
    let spec = match medium {
        Medium::Memory => PoolSpec::memory(),
        _ => PoolSpec::new(medium, folder.path().join("pool")),
    };
    let pool = Arc::new(
        PoolMemory::create(
            &spec,
            CreateOptions {
                len: Some(POOL_BYTES),
                ..CreateOptions::default()
            },
        )
        .unwrap(),
    );
    let method = unit.persistence_methods(&pool)[0];
    Box::new(Soft {
        unit,
        pool,
        method,
        _folder: folder,
    })
}

#[test]
fn p01_contract_over_tcp_on_memory() {
    run_all(|_| soft(Provider::SoftTcp, Medium::Memory));
}

#[test]
fn p01_contract_over_unix_on_memory() {
    run_all(|_| soft(Provider::SoftUnix, Medium::Memory));
}

#[test]
fn p01_contract_over_tcp_on_a_file() {
    run_all(|_| soft(Provider::SoftTcp, Medium::File));
}

#[test]
fn p01_contract_over_unix_on_a_file() {
    run_all(|_| soft(Provider::SoftUnix, Medium::File));
}

#[test]
fn p18_a_socket_is_never_made_in_place_of_something_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool");
    std::fs::write(&path, "the only copy").unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for place in [&path, &link] {
        let error = SoftUnit::listen_unix(place.to_str().unwrap())
            .err()
            .unwrap();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("no socket"), "{error}: {source}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"the only copy");

    // At the end only its own file goes.
    let own = folder.path().join("unit.sock");
    let unit = SoftUnit::listen_unix(own.to_str().unwrap()).unwrap();
    std::fs::rename(&own, folder.path().join("moved")).unwrap();
    std::fs::write(&own, "somebody else's").unwrap();
    unit.shut_down();
    assert_eq!(std::fs::read(&own).unwrap(), b"somebody else's");
}

#[test]
fn p17_strangers_that_say_nothing_keep_nobody_out() {
    let harness = soft(Provider::SoftTcp, Medium::Memory);
    let silent: Vec<_> = (0..200)
        .map(|_| std::net::TcpStream::connect(harness.unit().address()).unwrap())
        .collect();
    for _ in 0..3 {
        let token = ConnectToken::random().unwrap();
        let id = harness
            .unit()
            .expect(token, harness.method(), Duration::from_secs(10))
            .unwrap();
        let _connection = harness.connect(token).unwrap();
        harness
            .unit()
            .wait_connected(id, Duration::from_secs(10))
            .unwrap();
    }
    drop(silent);
    harness.unit().shut_down();
}
