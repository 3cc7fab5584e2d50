//! Messages, both ways of posting, and waiting for completions.

use std::sync::Arc;
use std::time::Duration;

use pmu_verbs::{
    Access, CompletionChannel, CompletionQueue, ConnectionParameters, EventKind, FlushLevel,
    FlushType, Opcode, Operations, Posting, ProtectionDomain, QueuePair, QueuePairConfig, Status,
    VerbsError, WorkCompletion, WrFlags,
};

use crate::support::*;

fn classic(config: &mut QueuePairConfig) {
    config.posting = Posting::Classic;
    config.max_send_wr = 32;
}

#[test]
fn the_extended_interface_is_chosen_with_all_operations() {
    let (client, _server) = connect(|_| {});
    assert!(client.queue_pair.is_extended());
    assert_eq!(client.queue_pair.accepted(), Operations::all());
}

#[test]
fn messages_are_received_in_order() {
    messages(|_| {});
}

#[test]
fn messages_are_received_in_order_with_classic_posting() {
    messages(classic);
}

fn messages(tune: Tune) {
    let (mut client, mut server) = connect(tune);
    let inbox = Mapping::ordinary(4096);
    let region = server.register(&inbox, Access::LOCAL_WRITE).unwrap();
    let region = server.queue_pair.attach(&region).unwrap();
    for index in 0..4 {
        let element = [region.sge(index * 64, 64).unwrap()];
        server.queue_pair.post_recv(100 + index, &element).unwrap();
    }
    let outbox = Mapping::ordinary(4096);
    outbox.write(0, b"first second");
    let local = client.register(&outbox, Access::empty()).unwrap();
    let local = client.queue_pair.attach(&local).unwrap();
    let mut batch = client.queue_pair.start();
    batch
        .send(1, WrFlags::empty(), &[local.sge(0, 5).unwrap()])
        .unwrap();
    batch
        .send(2, WrFlags::SOLICITED, &[local.sge(6, 6).unwrap()])
        .unwrap();
    batch.send_inline(3, WrFlags::empty(), b"third").unwrap();
    batch.send(4, WrFlags::SIGNALED, &[]).unwrap();
    batch.post().unwrap();
    let done = one_completion(&client.queue);
    assert_eq!(
        (done.wr_id(), done.status(), done.opcode()),
        (4, Status::Success, Opcode::Send)
    );
    let mut received = Vec::new();
    let mut completions = [WorkCompletion::default(); 4];
    while received.len() < 4 {
        let count = server.queue.poll(&mut completions).unwrap();
        received.extend(
            completions[..count]
                .iter()
                .map(|c| (c.wr_id(), c.status(), c.byte_len())),
        );
    }
    let lengths = [5, 6, 5, 0];
    for (index, (wr_id, status, length)) in received.into_iter().enumerate() {
        assert_eq!((wr_id, status), (100 + index as u64, Status::Success));
        assert_eq!(length, lengths[index]);
    }
    assert_eq!(inbox.read(0, 5), b"first");
    assert_eq!(inbox.read(64, 6), b"second");
    assert_eq!(inbox.read(128, 5), b"third");
}

#[test]
fn classic_posting_writes_reads_and_has_no_flush() {
    let (mut client, server) = connect(classic);
    assert!(!client.queue_pair.is_extended());
    assert_eq!(
        client.queue_pair.accepted(),
        Operations::all() - Operations::FLUSH - Operations::ATOMIC_WRITE
    );
    let pool = Mapping::persistent(MIB);
    let region = server.register(&pool, POOL).unwrap();
    let (rkey, address) = (region.rkey(), region.start());
    let buffer = Mapping::ordinary(8192);
    buffer.write(0, b"classic");
    let local = client.register(&buffer, Access::LOCAL_WRITE).unwrap();
    let local = client.queue_pair.attach(&local).unwrap();

    let mut batch = client.queue_pair.start();
    let none = WrFlags::empty();
    let (kind, level) = (FlushType::PERSISTENT, FlushLevel::Range);
    let refused = batch
        .flush(1, none, rkey, address, 8, kind, level)
        .unwrap_err();
    assert!(
        matches!(refused, VerbsError::Unsupported { .. }),
        "{refused}"
    );
    assert!(batch.atomic_write(1, none, rkey, address, 1).is_err());
    for index in 0..8 {
        let at = address + index * 16;
        batch
            .write(index, none, rkey, at, &[local.sge(0, 7).unwrap()])
            .unwrap();
        batch
            .write_inline(index, none, rkey, at + 7, &[b'0' + index as u8])
            .unwrap();
    }
    let target = [
        local.sge(4096, 64).unwrap(),
        local.sge(4096 + 64, 64).unwrap(),
    ];
    batch
        .read(
            99,
            WrFlags::SIGNALED | WrFlags::FENCE,
            rkey,
            address,
            &target,
        )
        .unwrap();
    batch.post().unwrap();
    let done = one_completion(&client.queue);
    assert_eq!(
        (done.wr_id(), done.status(), done.opcode()),
        (99, Status::Success, Opcode::Read)
    );
    for index in 0..8 {
        let expected = [b"classic".as_slice(), &[b'0' + index as u8]].concat();
        assert_eq!(buffer.read(4096 + index * 16, 8), expected);
        assert_eq!(pool.read(index * 16, 8), expected);
    }
}

#[test]
fn what_is_required_and_not_there_is_refused() {
    let verbs = verbs();
    let (_channel, _listener, address) = listen(&verbs);
    let (_client_channel, id) = resolve(&verbs, address);
    let context = id.context().unwrap();
    let domain = ProtectionDomain::allocate(&context).unwrap();
    let queue = CompletionQueue::new(&context, 16, None).unwrap();
    let mut config = QueuePairConfig::new(&domain, &queue, &queue);
    config.posting = Posting::Classic;
    config.required = Operations::FLUSH;
    let error = QueuePair::create_on(&id, &config).unwrap_err();
    assert!(matches!(error, VerbsError::Unsupported { .. }), "{error}");
    config.required = Operations::empty();
    config.max_send_wr = u32::MAX / 2;
    let error = QueuePair::create_on(&id, &config).unwrap_err();
    assert_eq!(error.verb(), Some("rdma_create_qp_ex"), "{error}");
    config.max_send_wr = 4;
    let _queue_pair = QueuePair::create_on(&id, &config).unwrap();
    let error = QueuePair::create_on(&id, &config).unwrap_err();
    assert_eq!(
        error.errno(),
        Some(libc::EINVAL),
        "one queue pair for each identifier"
    );
}

#[test]
fn several_elements_of_equal_length_are_gathered_and_others_refused() {
    let (mut client, server) = connect_all();
    let pool = Mapping::persistent(MIB);
    let region = server.register(&pool, POOL).unwrap();
    let (rkey, address) = (region.rkey(), region.start());
    let buffer = Mapping::ordinary(4096);
    buffer.write(0, b"abcd----efgh");
    let local = client.register(&buffer, Access::LOCAL_WRITE).unwrap();
    let local = client.queue_pair.attach(&local).unwrap();
    let equal = [local.sge(0, 4).unwrap(), local.sge(8, 4).unwrap()];
    let done = client.run(|b| b.write(1, WrFlags::SIGNALED, rkey, address, &equal));
    assert_eq!(done.status(), Status::Success);
    assert_eq!(pool.read(0, 9), b"abcdefgh\0");
    let unequal = [local.sge(0, 4).unwrap(), local.sge(8, 3).unwrap()];
    let mut batch = client.queue_pair.start();
    let error = batch
        .write(2, WrFlags::SIGNALED, rkey, address, &unequal)
        .unwrap_err();
    assert!(matches!(error, VerbsError::Unsupported { .. }), "{error}");
    let many = [equal[0]; 5];
    let error = batch
        .write(3, WrFlags::SIGNALED, rkey, address, &many)
        .unwrap_err();
    assert!(matches!(error, VerbsError::TooMany { .. }), "{error}");
    drop(batch);
    let long = vec![0; client.queue_pair.inline_max() as usize + 1];
    let mut batch = client.queue_pair.start();
    let error = batch
        .write_inline(4, WrFlags::SIGNALED, rkey, address, &long)
        .unwrap_err();
    assert!(matches!(error, VerbsError::TooMany { .. }), "{error}");
    // What was refused left nothing behind: the batch is empty and does nothing.
    assert!(batch.is_empty());
    batch.post().unwrap();
    no_completion(&client.queue);
}

#[test]
fn an_abandoned_or_forgotten_batch_leaves_nothing_behind() {
    let (mut client, server) = connect_all();
    let pool = Mapping::persistent(MIB);
    let region = server.register(&pool, POOL).unwrap();
    let (rkey, address) = (region.rkey(), region.start());
    let mut batch = client.queue_pair.start();
    batch
        .write_inline(1, WrFlags::SIGNALED, rkey, address, b"never")
        .unwrap();
    drop(batch);
    let mut batch = client.queue_pair.start();
    batch
        .write_inline(2, WrFlags::SIGNALED, rkey, address, b"never")
        .unwrap();
    std::mem::forget(batch);
    let done = client.run(|b| b.write_inline(3, WrFlags::SIGNALED, rkey, address + 8, b"this"));
    assert_eq!((done.wr_id(), done.status()), (3, Status::Success));
    assert_eq!(pool.read(0, 12), b"\0\0\0\0\0\0\0\0this");
}

#[test]
fn a_batch_has_a_limit_and_so_has_the_queue() {
    let (mut client, server) = connect(|config| config.max_send_wr = 8);
    let region = server.register(&Mapping::persistent(MIB), POOL).unwrap();
    let (rkey, address) = (region.rkey(), region.start());
    let mut batch = client.queue_pair.start();
    for wr_id in 0..8 {
        let last = if wr_id == 7 {
            WrFlags::SIGNALED
        } else {
            WrFlags::empty()
        };
        batch
            .write_inline(wr_id, last, rkey, address, b"x")
            .unwrap();
    }
    let error = batch
        .write_inline(9, WrFlags::empty(), rkey, address, b"x")
        .unwrap_err();
    assert!(
        matches!(error, VerbsError::TooMany { limit: 8, .. }),
        "{error}"
    );
    batch.post().unwrap();
    assert_eq!(one_completion(&client.queue).wr_id(), 7);
}

#[test]
fn a_full_send_queue_is_an_error_and_not_a_loss() {
    let (mut client, _server) = connect(|config| config.max_send_wr = 8);
    // Nobody receives: the first message is tried again and again, and nothing gets done.
    let mut posted = 0;
    let error = loop {
        let mut batch = client.queue_pair.start();
        batch.send_inline(posted, WrFlags::SIGNALED, b"x").unwrap();
        match batch.post() {
            Ok(()) => posted += 1,
            Err(error) => break error,
        }
        assert!(posted < 10_000);
    };
    assert!(posted >= 8, "{posted}");
    assert!(error.to_string().contains("send queue is full"), "{error}");
}

#[test]
fn a_completion_wakes_the_one_who_waits() {
    let verbs = verbs();
    let (server_channel, _listener, address) = listen(&verbs);
    let (client_channel, id) = resolve(&verbs, address);
    let context = id.context().unwrap();
    let domain = ProtectionDomain::allocate(&context).unwrap();
    let channel = CompletionChannel::new(&context).unwrap();
    let queue = CompletionQueue::new(&context, 16, Some(Arc::clone(&channel))).unwrap();
    let quiet = CompletionQueue::new(&context, 16, None).unwrap();
    assert!(matches!(
        quiet.request_notification(false),
        Err(VerbsError::Invalid(_))
    ));
    let config = QueuePairConfig::new(&domain, &queue, &quiet);
    let mut client = QueuePair::create_on(&id, &config).unwrap();
    id.connect(&ConnectionParameters::default()).unwrap();
    let request = expect(&server_channel, EventKind::ConnectRequest);
    let (server_domain, _server_queue, _server) = equip(&request.id, |_| {});
    request.id.accept(&ConnectionParameters::default()).unwrap();
    expect(&client_channel, EventKind::Established);
    let memory = Mapping::persistent(MIB);
    let region =
        pmu_verbs::MemoryRegion::register(&server_domain, memory, 0, MIB, None, POOL).unwrap();

    for round in 0..5 {
        assert_eq!(channel.next_event().unwrap(), None);
        assert_eq!(
            channel.wait_event(Some(Duration::from_millis(20))).unwrap(),
            None
        );
        queue.request_notification(false).unwrap();
        let mut completions = [WorkCompletion::default(); 2];
        assert_eq!(queue.poll(&mut completions).unwrap(), 0);
        let mut batch = client.start();
        batch
            .write_inline(
                round,
                WrFlags::SIGNALED,
                region.rkey(),
                region.start(),
                b"wake",
            )
            .unwrap();
        batch.post().unwrap();
        let woken = channel.wait_event(Some(PATIENCE)).unwrap();
        assert_eq!(woken, Some(queue.identity()));
        assert_eq!(queue.poll(&mut completions).unwrap(), 1);
        assert_eq!(
            (completions[0].wr_id(), completions[0].status()),
            (round, Status::Success)
        );
    }
    assert_ne!(queue.identity(), quiet.identity());
}

#[test]
fn a_waiting_thread_is_woken_by_another_that_breaks_the_queue_pair() {
    let (_client, mut server) = connect_all();
    let region = server
        .register(&Mapping::ordinary(4096), Access::LOCAL_WRITE)
        .unwrap();
    let region = server.queue_pair.attach(&region).unwrap();
    server
        .queue_pair
        .post_recv(77, &[region.sge(0, 64).unwrap()])
        .unwrap();
    let control = server.queue_pair.control();
    let breaker = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        control.to_error().unwrap();
        control
    });
    let done = one_completion(&server.queue);
    assert_eq!((done.wr_id(), done.status()), (77, Status::Flushed));
    let control = breaker.join().unwrap();
    assert_eq!(control.state().unwrap(), pmu_verbs::QueuePairState::Error);
    drop(server);
    assert!(control.to_error().is_err(), "the queue pair is gone");
}
