//! Memory windows: rights given to one connection and taken away again.

use std::sync::Arc;

use pmu_verbs::{
    Access, CompletionQueue, Context, Device, FlushLevel, FlushType, MemoryRegion, MemoryWindow,
    PeerQueuePair, ProtectionDomain, QueuePair, QueuePairConfig, QueuePairState, Status,
    VerbsError, WindowBinding, WrFlags,
};

use crate::support::*;

const WINDOW_OFFSET: usize = 4096;
const WINDOW_LEN: u64 = 64 * 1024;

/// A client with a source buffer, and a server's window over persistent memory.
struct Scene {
    client: End,
    server: End,
    pool: Arc<Mapping>,
    region: Arc<MemoryRegion>,
    window: MemoryWindow,
    /// The window's first byte.
    address: u64,
    buffer: Arc<Mapping>,
    local: pmu_verbs::AttachedRegion,
}

fn scene(tune: Tune) -> Scene {
    let (mut client, mut server) = connect(tune);
    let pool = Mapping::persistent(MIB);
    let region = server.register(&pool, POOL).unwrap();
    let address = region.start() + WINDOW_OFFSET as u64;
    let window = server.bind(&region, address, WINDOW_LEN);
    let buffer = Mapping::ordinary(64 * 1024);
    let local = client.register(&buffer, Access::LOCAL_WRITE).unwrap();
    let local = client.queue_pair.attach(&local).unwrap();
    Scene {
        client,
        server,
        pool,
        region,
        window,
        address,
        buffer,
        local,
    }
}

fn everything(config: &mut QueuePairConfig) {
    config.required = config.operations;
}

#[test]
fn a_window_takes_writes_reads_and_atomic_writes() {
    let mut scene = scene(everything);
    let rkey = scene.window.rkey();
    let address = scene.address;
    scene.buffer.write(0, b"hello pmem");
    let source = [scene.local.sge(0, 10).unwrap()];
    let done = scene
        .client
        .run(|b| b.write(2, WrFlags::SIGNALED, rkey, address, &source));
    assert_eq!(done.status(), Status::Success);
    assert_eq!(scene.pool.read(WINDOW_OFFSET, 10), b"hello pmem");

    let value = 0x1122_3344_5566_7788;
    let done = scene
        .client
        .run(|b| b.atomic_write(3, WrFlags::SIGNALED, rkey, address + 64, value));
    assert_eq!(done.status(), Status::Success);
    assert_eq!(done.opcode(), pmu_verbs::Opcode::AtomicWrite);
    assert_eq!(scene.pool.read(WINDOW_OFFSET + 64, 8), value.to_ne_bytes());

    let target = [scene.local.sge(4096, 10).unwrap()];
    let done = scene
        .client
        .run(|b| b.read(4, WrFlags::SIGNALED, rkey, address, &target));
    assert_eq!(done.status(), Status::Success);
    assert_eq!(scene.buffer.read(4096, 10), b"hello pmem");
}

/// On real devices a window is as wide as it was bound. Soft-RoCE looks at the region's range only;
/// when this test fails, the kernel has learnt better, and `MemoryWindow`'s documentation with it.
#[test]
fn soft_roce_lets_a_window_reach_its_whole_region_and_no_more() {
    let mut scene = scene(everything);
    let rkey = scene.window.rkey();
    let source = [scene.local.sge(0, 10).unwrap()];
    scene.buffer.write(0, b"not meant!");
    let before = scene.address - 10;
    let done = scene
        .client
        .run(|b| b.write(1, WrFlags::SIGNALED, rkey, before, &source));
    assert_eq!(done.status(), Status::Success);
    assert_eq!(scene.pool.read(WINDOW_OFFSET - 10, 10), b"not meant!");
    let after = scene.address + WINDOW_LEN;
    let done = scene
        .client
        .run(|b| b.write(2, WrFlags::SIGNALED, rkey, after, &source));
    assert_eq!(done.status(), Status::Success);
    let outside = scene.region.start() + scene.region.length() - 9;
    let done = scene
        .client
        .run(|b| b.write(3, WrFlags::SIGNALED, rkey, outside, &source));
    assert_eq!(done.status(), Status::RemoteAccess);
}

#[test]
fn a_dropped_window_is_a_fence() {
    let mut scene = scene(everything);
    let (rkey, address) = (scene.window.rkey(), scene.address);
    let source = [scene.local.sge(0, 10).unwrap()];
    let done = scene
        .client
        .run(|b| b.write(1, WrFlags::SIGNALED, rkey, address, &source));
    assert_eq!(done.status(), Status::Success);
    drop(scene.window);
    let done = scene
        .client
        .run(|b| b.write(2, WrFlags::SIGNALED, rkey, address, &source));
    assert_eq!(done.status(), Status::RemoteAccess);
}

#[test]
fn flush_through_a_window_is_refused() {
    let mut scene = scene(everything);
    let (rkey, address) = (scene.window.rkey(), scene.address);
    let done = scene.client.run(|b| {
        let (kind, level) = (FlushType::PERSISTENT, FlushLevel::Range);
        b.flush(5, WrFlags::SIGNALED, rkey, address, 64, kind, level)
    });
    assert_eq!(done.status(), Status::RemoteAccess);
}

#[test]
fn one_doorbell_one_completion_one_durable_commit() {
    let mut scene = scene(everything);
    let flush = scene.server.register(&scene.pool, FLUSH_ONLY).unwrap();
    let (rkey, address) = (scene.window.rkey(), scene.address);
    let (persistent, range) = (FlushType::PERSISTENT, FlushLevel::Range);
    let none = WrFlags::empty();
    for round in 0..20_u64 {
        let body = vec![round as u8 + 1; 1000];
        scene.buffer.write(0, &body);
        let source = [scene.local.sge(0, 1000).unwrap()];
        let mut batch = scene.client.queue_pair.start();
        batch.write(9, none, rkey, address, &source).unwrap();
        batch
            .flush(10, none, flush.rkey(), address, 1000, persistent, range)
            .unwrap();
        batch
            .atomic_write(11, none, rkey, address + 8192, round)
            .unwrap();
        let last = WrFlags::SIGNALED;
        batch
            .flush(12, last, flush.rkey(), address + 8192, 8, persistent, range)
            .unwrap();
        assert_eq!(batch.len(), 4);
        batch.post().unwrap();
        let done = one_completion(&scene.client.queue);
        assert_eq!((done.wr_id(), done.status()), (12, Status::Success));
        assert_eq!(scene.pool.read(WINDOW_OFFSET, 1000), body);
        assert_eq!(
            scene.pool.read(WINDOW_OFFSET + 8192, 8),
            round.to_ne_bytes()
        );
    }
    no_completion(&scene.client.queue);
}

#[test]
fn local_invalidation_is_a_fence() {
    fence(everything);
}

#[test]
fn local_invalidation_is_a_fence_with_classic_posting() {
    fence(|config| config.posting = pmu_verbs::Posting::Classic);
}

fn fence(tune: Tune) {
    let mut scene = scene(tune);
    let (rkey, address) = (scene.window.rkey(), scene.address);
    let source = [scene.local.sge(0, 10).unwrap()];
    let done = scene
        .client
        .run(|b| b.write(1, WrFlags::SIGNALED, rkey, address, &source));
    assert_eq!(done.status(), Status::Success);
    let done = scene.server.invalidate(&mut scene.window);
    assert_eq!(done.status(), Status::Success);
    scene.buffer.write(0, b"too late!!");
    let done = scene
        .client
        .run(|b| b.write(3, WrFlags::SIGNALED, rkey, address, &source));
    assert_eq!(done.status(), Status::RemoteAccess);
    assert_eq!(scene.pool.read(WINDOW_OFFSET, 10), [0; 10]);
    assert_eq!(
        scene.client.queue_pair.state().unwrap(),
        QueuePairState::Error
    );
    // Everything after it is flushed, whatever it is.
    let done = scene
        .client
        .run(|b| b.write(4, WrFlags::SIGNALED, rkey, address, &source));
    assert_eq!(done.status(), Status::Flushed);
}

#[test]
fn a_window_is_bound_again_under_another_key() {
    let mut scene = scene(everything);
    let (old, address) = (scene.window.rkey(), scene.address);
    let done = scene.server.invalidate(&mut scene.window);
    assert_eq!(done.status(), Status::Success);
    assert!(!scene.window.is_bound());
    scene.window.release().unwrap();
    let new = scene.window.next_rkey();
    assert_eq!(new & !0xff, old & !0xff);
    let binding = WindowBinding {
        region: &scene.region,
        address: address + 4096,
        length: 4096,
        access: Access::REMOTE_WRITE,
    };
    let mut batch = scene.server.queue_pair.start();
    batch
        .bind_window(3, WrFlags::SIGNALED, &mut scene.window, new, &binding)
        .unwrap();
    batch.post().unwrap();
    assert_eq!(
        one_completion(&scene.server.queue).status(),
        Status::Success
    );
    let source = [scene.local.sge(0, 10).unwrap()];
    let done = scene
        .client
        .run(|b| b.write(4, WrFlags::SIGNALED, new, address + 4096, &source));
    assert_eq!(done.status(), Status::Success);
    let target = [scene.local.sge(0, 10).unwrap()];
    let done = scene
        .client
        .run(|b| b.read(5, WrFlags::SIGNALED, new, address + 4096, &target));
    assert_eq!(
        done.status(),
        Status::RemoteAccess,
        "only writing was granted"
    );
}

#[test]
fn the_old_key_of_a_window_is_dead() {
    let mut scene = scene(everything);
    let (old, address) = (scene.window.rkey(), scene.address);
    scene.server.invalidate(&mut scene.window);
    let new = scene.window.rkey_with_tag((old as u8).wrapping_add(7));
    let region = &scene.region;
    let binding = WindowBinding {
        region,
        address,
        length: WINDOW_LEN,
        access: READ_WRITE,
    };
    let mut batch = scene.server.queue_pair.start();
    batch
        .bind_window(3, WrFlags::SIGNALED, &mut scene.window, new, &binding)
        .unwrap();
    batch.post().unwrap();
    assert_eq!(
        one_completion(&scene.server.queue).status(),
        Status::Success
    );
    let source = [scene.local.sge(0, 10).unwrap()];
    let done = scene
        .client
        .run(|b| b.write(4, WrFlags::SIGNALED, old, address, &source));
    assert_eq!(done.status(), Status::RemoteAccess);
}

#[test]
fn a_window_belongs_to_the_connection_that_it_was_bound_on() {
    let mut scene = scene(everything);
    let (mut stranger, server) = connect_all();
    let stolen = (scene.window.rkey(), scene.address);
    let local = stranger
        .register(&Mapping::ordinary(4096), Access::LOCAL_WRITE)
        .unwrap();
    let local = stranger.queue_pair.attach(&local).unwrap();
    let source = [local.sge(0, 10).unwrap()];
    let done = stranger.run(|b| b.write(1, WrFlags::SIGNALED, stolen.0, stolen.1, &source));
    assert_eq!(done.status(), Status::RemoteAccess);
    drop((stranger, server));
    let source = [scene.local.sge(0, 10).unwrap()];
    let done = scene
        .client
        .run(|b| b.write(2, WrFlags::SIGNALED, stolen.0, stolen.1, &source));
    assert_eq!(done.status(), Status::Success);
}

#[test]
fn bindings_that_make_no_sense_are_refused_before_posting() {
    let mut scene = scene(everything);
    let plain = scene
        .server
        .register(&scene.pool, Access::LOCAL_WRITE)
        .unwrap();
    let foreign = scene.client.register(&scene.pool, POOL).unwrap();
    let mut window = MemoryWindow::allocate_type2(&scene.server.domain).unwrap();
    let rkey = window.next_rkey();
    let (address, length, access) = (scene.address, WINDOW_LEN, READ_WRITE);
    let region = &scene.region;
    let good = WindowBinding {
        region,
        address,
        length,
        access,
    };
    let queue_pair = &mut scene.server.queue_pair;
    let mut bind = |rkey, binding: WindowBinding<'_>| {
        queue_pair
            .start()
            .bind_window(1, WrFlags::SIGNALED, &mut window, rkey, &binding)
    };
    let error = bind(
        rkey,
        WindowBinding {
            region: &plain,
            ..good
        },
    )
    .unwrap_err();
    assert!(matches!(error, VerbsError::Invalid(_)), "{error}");
    let error = bind(
        rkey,
        WindowBinding {
            region: &foreign,
            ..good
        },
    )
    .unwrap_err();
    assert!(matches!(error, VerbsError::Mixed { .. }), "{error}");
    let error = bind(
        rkey,
        WindowBinding {
            length: u64::MAX,
            ..good
        },
    )
    .unwrap_err();
    assert!(matches!(error, VerbsError::OutOfBounds { .. }), "{error}");
    let error = bind(
        rkey,
        WindowBinding {
            address: region.start() - 1,
            ..good
        },
    )
    .unwrap_err();
    assert!(matches!(error, VerbsError::OutOfBounds { .. }), "{error}");
    let error = bind(rkey ^ 0x100, good).unwrap_err();
    assert!(matches!(error, VerbsError::Invalid(_)), "{error}");
    let mut batch = queue_pair.start();
    let error = batch
        .local_invalidate(1, WrFlags::SIGNALED, &mut window)
        .unwrap_err();
    assert!(matches!(error, VerbsError::Invalid(_)), "{error}");
}

/// Two queue pairs on one device, connected by hand.
fn by_hand() -> (
    QueuePair,
    QueuePair,
    Arc<CompletionQueue>,
    Arc<CompletionQueue>,
) {
    let verbs = verbs();
    let (context, gid) = Device::list(&verbs)
        .unwrap()
        .iter()
        .find_map(|device| {
            let context = Context::open(device).unwrap();
            let gid = context
                .gids(1)
                .unwrap()
                .into_iter()
                .find(|g| g.gid.to_ip() == lab_ip())?;
            Some((context, gid))
        })
        .expect("a device with the lab's address");
    let domain = ProtectionDomain::allocate(&context).unwrap();
    let queue = |_| CompletionQueue::new(&context, 64, None).unwrap();
    let queues = [0, 1].map(queue);
    let pairs = [0, 1].map(|i: usize| {
        let config = QueuePairConfig::new(&domain, &queues[i], &queues[i]);
        QueuePair::create(&config).unwrap()
    });
    let [a, b] = pairs;
    for (this, that) in [(&a, &b), (&b, &a)] {
        connect_by_hand(this, that, gid);
    }
    let [qa, qb] = queues;
    (a, b, qa, qb)
}

fn connect_by_hand(this: &QueuePair, that: &QueuePair, gid: pmu_verbs::GidEntry) {
    let access = READ_WRITE | FLUSH_ONLY | Access::LOCAL_WRITE;
    this.to_init(1, access).unwrap();
    let peer = PeerQueuePair {
        number: that.number(),
        gid: gid.gid,
        port: 1,
        local_gid_index: gid.index,
        responder_resources: 16,
    };
    this.to_ready_to_receive(&peer).unwrap();
    this.to_ready_to_send(16).unwrap();
    assert_eq!(this.state().unwrap(), QueuePairState::ReadyToSend);
}

#[test]
fn a_window_outlives_a_reset_of_its_queue_pair() {
    let (mut client, mut server, client_queue, server_queue) = by_hand();
    assert!(client.shares_device_with(&server));
    let context = Arc::clone(client.protection_domain().context());
    let gid = context
        .gids(1)
        .unwrap()
        .into_iter()
        .find(|g| g.gid.to_ip() == lab_ip())
        .unwrap();
    let domain = Arc::clone(server.protection_domain());
    let pool = Mapping::persistent(MIB);
    let region = MemoryRegion::register(&domain, pool.clone(), 0, MIB, None, POOL).unwrap();
    let mut window = MemoryWindow::allocate_type2(&domain).unwrap();
    let (rkey, address) = (window.next_rkey(), region.start());
    let binding = WindowBinding {
        region: &region,
        address,
        length: 4096,
        access: READ_WRITE,
    };
    let mut batch = server.start();
    batch
        .bind_window(1, WrFlags::SIGNALED, &mut window, rkey, &binding)
        .unwrap();
    batch.post().unwrap();
    assert_eq!(one_completion(&server_queue).status(), Status::Success);

    for queue_pair in [&client, &server] {
        queue_pair.to_reset().unwrap();
        assert_eq!(queue_pair.state().unwrap(), QueuePairState::Reset);
    }
    connect_by_hand(&client, &server, gid);
    connect_by_hand(&server, &client, gid);
    let mut batch = client.start();
    batch
        .write_inline(2, WrFlags::SIGNALED, rkey, address, b"still there")
        .unwrap();
    batch.post().unwrap();
    assert_eq!(one_completion(&client_queue).status(), Status::Success);
    assert_eq!(pool.read(0, 11), b"still there");
}
