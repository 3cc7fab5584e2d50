//! Registration, and what a region's keys allow.

use std::sync::Arc;

use pmu_verbs::{
    Access, FlushLevel, FlushType, MemoryRegion, QueuePairState, Status, VerbsError, WrFlags,
};

use crate::support::*;

#[test]
fn the_device_says_what_it_can() {
    let (client, _server) = connect_all();
    let context = client.id.context().unwrap();
    let attributes = context.attributes().unwrap();
    println!("{}: {attributes:?}", context.device_name());
    assert!(attributes.flush_global() && attributes.flush_persistent());
    assert!(attributes.atomic_write() && attributes.memory_window_type_2());
    assert!(attributes.soft_roce());
    assert!(attributes.max_mw() > 0 && attributes.max_qp_rd_atom() > 0);
    let port = context.port(client.id.port()).unwrap();
    assert_eq!(port.state, pmu_verbs::PortState::Active);
    let gids = context.gids(client.id.port()).unwrap();
    assert!(
        gids.iter().any(|entry| entry.gid.to_ip() == lab_ip()),
        "{gids:?}"
    );
    assert!(context.port(99).is_err());
}

#[test]
fn persistent_memory_registers_for_everything() {
    let (_client, server) = connect_all();
    let region = server.register(&Mapping::persistent(MIB), POOL).unwrap();
    assert_eq!((region.length(), region.access()), (MIB as u64, POOL));
    assert_ne!(region.rkey(), 0);
}

#[test]
fn ordinary_memory_cannot_be_flushed_to_persistence() {
    let (_client, server) = connect_all();
    let access = Access::LOCAL_WRITE | Access::FLUSH_PERSISTENT;
    let error = server
        .register(&Mapping::ordinary(MIB), access)
        .unwrap_err();
    assert_eq!(error.errno(), Some(libc::EINVAL));
    assert!(error.to_string().contains("persistent memory"), "{error}");
    let access = Access::LOCAL_WRITE | Access::FLUSH_GLOBAL;
    server
        .register(&Mapping::ordinary(MIB), access)
        .expect("global visibility is possible");
}

#[test]
fn remote_writing_without_local_writing_is_refused() {
    let (_client, server) = connect_all();
    let error = server
        .register(&Mapping::ordinary(MIB), Access::REMOTE_WRITE)
        .unwrap_err();
    assert!(error.to_string().contains("LOCAL_WRITE"), "{error}");
}

#[test]
fn a_region_goes_by_an_address_of_our_choice() {
    const IOVA: u64 = 0x1_0000_0000;
    let (mut client, server) = connect_all();
    let memory = Mapping::persistent(MIB);
    let region =
        MemoryRegion::register(&server.domain, memory.clone(), 4096, 8192, Some(IOVA), POOL)
            .unwrap();
    assert_eq!((region.start(), region.length()), (IOVA, 8192));
    let source = Mapping::ordinary(4096);
    source.write(0, b"by iova");
    let local = client.register(&source, Access::LOCAL_WRITE).unwrap();
    let local = client.queue_pair.attach(&local).unwrap();
    let element = [local.sge(0, 7).unwrap()];
    let done =
        client.run(|batch| batch.write(5, WrFlags::SIGNALED, region.rkey(), IOVA + 100, &element));
    assert_eq!((done.wr_id(), done.status()), (5, Status::Success));
    assert_eq!(memory.read(4096 + 100, 7), b"by iova");
    // The bytes' own address means nothing to the device.
    let own = memory.address(4096);
    let done = client.run(|batch| batch.write(6, WrFlags::SIGNALED, region.rkey(), own, &element));
    assert_eq!(done.status(), Status::RemoteAccess);
}

#[test]
fn work_by_iova_on_the_local_side() {
    const IOVA: u64 = 0x7000_0000_0000;
    let (mut client, server) = connect_all();
    let target = Mapping::persistent(MIB);
    let pool = server.register(&target, POOL).unwrap();
    let source = Mapping::ordinary(8192);
    source.write(4096 + 10, b"local iova");
    let region = MemoryRegion::register(
        &client.domain,
        source,
        4096,
        4096,
        Some(IOVA),
        Access::LOCAL_WRITE,
    )
    .unwrap();
    let region = client.queue_pair.attach(&region).unwrap();
    let element = [region.sge(10, 10).unwrap()];
    let done =
        client.run(|batch| batch.write(1, WrFlags::SIGNALED, pool.rkey(), pool.start(), &element));
    assert_eq!(done.status(), Status::Success);
    assert_eq!(target.read(0, 10), b"local iova");
}

#[test]
fn a_flush_only_region_flushes_and_takes_no_writes() {
    let (mut client, server) = connect_all();
    let pool = server
        .register(&Mapping::persistent(MIB), FLUSH_ONLY)
        .unwrap();
    for (kind, level) in [
        (FlushType::PERSISTENT, FlushLevel::Range),
        (FlushType::GLOBAL, FlushLevel::Range),
        (FlushType::PERSISTENT, FlushLevel::MemoryRegion),
    ] {
        let done = client.run(|batch| {
            batch.flush(
                8,
                WrFlags::SIGNALED,
                pool.rkey(),
                pool.start(),
                64,
                kind,
                level,
            )
        });
        assert_eq!(done.status(), Status::Success, "{kind:?} {level:?}");
        assert_eq!(done.opcode(), pmu_verbs::Opcode::Flush);
    }
    let source = client
        .register(&Mapping::ordinary(4096), Access::LOCAL_WRITE)
        .unwrap();
    let source = client.queue_pair.attach(&source).unwrap();
    let element = [source.sge(0, 64).unwrap()];
    let done =
        client.run(|batch| batch.write(9, WrFlags::SIGNALED, pool.rkey(), pool.start(), &element));
    assert_eq!(done.status(), Status::RemoteAccess);
    assert_eq!(client.queue_pair.state().unwrap(), QueuePairState::Error);
}

#[test]
fn a_region_without_flush_rights_is_not_flushed() {
    let (mut client, server) = connect_all();
    let access = Access::LOCAL_WRITE | READ_WRITE;
    let pool = server.register(&Mapping::persistent(MIB), access).unwrap();
    let done = client.run(|batch| {
        let (kind, level) = (FlushType::PERSISTENT, FlushLevel::Range);
        batch.flush(
            8,
            WrFlags::SIGNALED,
            pool.rkey(),
            pool.start(),
            64,
            kind,
            level,
        )
    });
    assert_eq!(done.status(), Status::RemoteAccess);
}

#[test]
fn memory_outside_of_the_region_is_refused_before_posting_and_by_the_device() {
    let (mut client, server) = connect_all();
    let pool = server.register(&Mapping::persistent(MIB), POOL).unwrap();
    let source = client
        .register(&Mapping::ordinary(4096), Access::LOCAL_WRITE)
        .unwrap();
    let source = client.queue_pair.attach(&source).unwrap();
    assert!(matches!(
        source.sge(4000, 97),
        Err(VerbsError::OutOfBounds { .. })
    ));
    let element = [source.sge(0, 64).unwrap()];
    let beyond = pool.start() + pool.length() - 63;
    let done = client.run(|batch| batch.write(1, WrFlags::SIGNALED, pool.rkey(), beyond, &element));
    assert_eq!(done.status(), Status::RemoteAccess);
}

#[test]
fn a_foreign_region_cannot_be_attached() {
    let (mut client, server) = connect_all();
    let foreign = server
        .register(&Mapping::ordinary(4096), Access::LOCAL_WRITE)
        .unwrap();
    assert!(!Arc::ptr_eq(&client.domain, &server.domain));
    assert!(matches!(
        client.queue_pair.attach(&foreign),
        Err(VerbsError::Mixed { .. })
    ));
}
