//! The verbs provider keeps the fabric's contract, with every persistence method. Runs in the lab only.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use pmu_fabric::contract::{Harness, POOL_BYTES, run_all};
use pmu_fabric::verbs::{VerbsUnit, VerbsUnitOptions, connect};
use pmu_fabric::{ConnectToken, Connection, FabricError, PersistenceMethod, UnitFabric};
use pmu_pmem::{CreateOptions, Medium, PoolMemory, PoolSpec};

struct Lab {
    unit: VerbsUnit,
    pool: Arc<PoolMemory>,
    method: PersistenceMethod,
}

impl Harness for Lab {
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
        Ok(Box::new(connect(
            &self.unit.address(),
            token,
            self.method,
            Duration::from_secs(20),
        )?))
    }
    fn slowness(&self) -> usize {
        16
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: this test runs in the lab (scripts/lab test)")
    })
}

fn lab(method: PersistenceMethod) -> Box<dyn Harness> {
    let unit = VerbsUnit::listen(
        &format!("{}:0", variable("PMU_LAB_ADDR0")),
        VerbsUnitOptions::default(),
    )
    .unwrap();
    let pool = if method == PersistenceMethod::Volatile {
        let options = CreateOptions {
            len: Some(POOL_BYTES),
            ..CreateOptions::default()
        };
        PoolMemory::create(&PoolSpec::memory(), options).unwrap()
    } else {
        PoolMemory::open(&PoolSpec::new(Medium::Devdax, variable("PMU_LAB_DAX0"))).unwrap()
    };
    pool.zero(0, POOL_BYTES).unwrap();
    let pool = Arc::new(pool);
    assert!(
        unit.persistence_methods(&pool).contains(&method),
        "{method} is not offered"
    );
    Box::new(Lab { unit, pool, method })
}

#[test]
fn p01_contract_with_native_flush() {
    run_all(|_| lab(PersistenceMethod::NativeFlush));
}

#[test]
fn p01_contract_with_read_after_write() {
    run_all(|_| lab(PersistenceMethod::ReadAfterWrite));
}

#[test]
fn p01_contract_with_server_persist() {
    run_all(|_| lab(PersistenceMethod::ServerPersist));
}

#[test]
fn p01_contract_on_volatile_memory() {
    run_all(|_| lab(PersistenceMethod::Volatile));
}

#[test]
fn b01_unfit_methods_are_refused() {
    let address = format!("{}:0", variable("PMU_LAB_ADDR0"));
    let unit = VerbsUnit::listen(
        &address,
        VerbsUnitOptions {
            without_flush: true,
        },
    )
    .unwrap();
    let refused = unit.expect(
        ConnectToken([1; 32]),
        PersistenceMethod::NativeFlush,
        Duration::from_secs(1),
    );
    assert!(
        matches!(refused, Err(FabricError::UnfitPersistence { .. })),
        "{refused:?}"
    );
    let devdax =
        PoolMemory::open(&PoolSpec::new(Medium::Devdax, variable("PMU_LAB_DAX0"))).unwrap();
    assert!(
        !unit
            .persistence_methods(&devdax)
            .contains(&PersistenceMethod::NativeFlush)
    );
    let options = CreateOptions {
        len: Some(POOL_BYTES),
        ..CreateOptions::default()
    };
    let memory = PoolMemory::create(&PoolSpec::memory(), options).unwrap();
    assert_eq!(
        unit.persistence_methods(&memory),
        [PersistenceMethod::Volatile]
    );
    let folder = tempfile::tempdir().unwrap();
    assert!(
        VerbsUnit::listen("127.0.0.1:0", VerbsUnitOptions::default()).is_err(),
        "no RDMA device there"
    );
    drop(folder);
}
