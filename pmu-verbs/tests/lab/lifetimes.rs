//! Things that go away in the wrong order, at the wrong time, or while they are in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pmu_verbs::{
    Access, EventKind, MemoryRegion, QueuePairState, RegisteredMemory, Status, VerbsError, WrFlags,
};

use crate::support::*;

/// Memory that says when it is let go.
struct Watched {
    mapping: Arc<Mapping>,
    gone: Arc<AtomicBool>,
}

// SAFETY: the mapping keeps the promises.
unsafe impl RegisteredMemory for Watched {
    fn base(&self) -> std::ptr::NonNull<u8> {
        self.mapping.base()
    }
    fn length(&self) -> usize {
        self.mapping.length()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Release);
    }
}

fn watched(end: &End) -> (Arc<MemoryRegion>, Arc<AtomicBool>) {
    let gone = Arc::new(AtomicBool::new(false));
    let memory = Arc::new(Watched {
        mapping: Mapping::ordinary(4096),
        gone: Arc::clone(&gone),
    });
    let access = Access::LOCAL_WRITE;
    let region = MemoryRegion::register(&end.domain, memory, 0, 4096, None, access).unwrap();
    (region, gone)
}

#[test]
fn attached_memory_lives_as_long_as_the_queue_pair() {
    let (mut client, server) = connect_all();
    let (region, gone) = watched(&client);
    let attached = client.queue_pair.attach(&region).unwrap();
    drop(region);
    assert!(!gone.load(Ordering::Acquire));
    let pool = server.register(&Mapping::persistent(MIB), POOL).unwrap();
    let source = [attached.sge(0, 64).unwrap()];
    let done = client.run(|b| b.write(1, WrFlags::SIGNALED, pool.rkey(), pool.start(), &source));
    assert_eq!(done.status(), Status::Success);
    drop(client.queue_pair);
    assert!(gone.load(Ordering::Acquire));
}

#[test]
fn a_detached_handle_is_dead() {
    let (mut client, server) = connect_all();
    let pool = server.register(&Mapping::persistent(MIB), POOL).unwrap();
    let (region, gone) = watched(&client);
    let attached = client.queue_pair.attach(&region).unwrap();
    let source = [attached.sge(0, 64).unwrap()];
    drop(region);
    drop(client.queue_pair.detach(attached).unwrap());
    assert!(gone.load(Ordering::Acquire));
    assert_eq!(
        client.queue_pair.detach(attached).unwrap_err(),
        VerbsError::NotAttached
    );
    // Another region takes the free place; the old handle still names nothing.
    let (other, _other_gone) = watched(&client);
    let other = client.queue_pair.attach(&other).unwrap();
    let mut batch = client.queue_pair.start();
    let refused = batch.write(1, WrFlags::SIGNALED, pool.rkey(), pool.start(), &source);
    assert_eq!(refused, Err(VerbsError::NotAttached));
    batch
        .write(
            2,
            WrFlags::SIGNALED,
            pool.rkey(),
            pool.start(),
            &[other.sge(0, 8).unwrap()],
        )
        .unwrap();
    batch.post().unwrap();
    assert_eq!(one_completion(&client.queue).status(), Status::Success);
}

#[test]
fn a_handle_of_another_queue_pair_is_refused() {
    let (mut client, server) = connect_all();
    let (mut other, _other_server) = connect_all();
    let pool = server.register(&Mapping::persistent(MIB), POOL).unwrap();
    let (region, _gone) = watched(&other);
    let foreign = other.queue_pair.attach(&region).unwrap().sge(0, 8).unwrap();
    let mut batch = client.queue_pair.start();
    let refused = batch.write(1, WrFlags::SIGNALED, pool.rkey(), pool.start(), &[foreign]);
    assert_eq!(refused, Err(VerbsError::NotAttached));
    drop(batch);
    assert_eq!(
        client.queue_pair.post_recv(1, &[foreign]),
        Err(VerbsError::NotAttached)
    );
}

#[test]
fn memory_that_goes_under_posted_work_costs_an_error_and_no_more() {
    let (client, mut server) = connect_all();
    let (region, gone) = watched(&server);
    let attached = server.queue_pair.attach(&region).unwrap();
    server
        .queue_pair
        .post_recv(5, &[attached.sge(0, 64).unwrap()])
        .unwrap();
    drop(region);
    drop(server.queue_pair.detach(attached).unwrap());
    assert!(
        gone.load(Ordering::Acquire),
        "deregistered, although a receive names it"
    );
    let mut client = client;
    let sent = client.run(|b| b.send_inline(1, WrFlags::SIGNALED, b"to nowhere"));
    assert!(!sent.status().is_success(), "{sent:?}");
    let received = one_completion(&server.queue);
    // Soft-RoCE says LocalQueuePair, other devices LocalProtection.
    assert_eq!(received.wr_id(), 5);
    assert!(!received.status().is_success(), "{received:?}");
}

#[test]
fn everything_may_be_dropped_in_any_order() {
    let before = pmu_verbs::leaked_objects();
    for order in 0..4 {
        let (mut client, mut server) = connect_all();
        let pool = server.register(&Mapping::persistent(MIB), POOL).unwrap();
        let window = server.bind(&pool, pool.start(), 4096);
        let rkey = window.rkey();
        let at = pool.start();
        let done = client.run(|b| b.write_inline(1, WrFlags::SIGNALED, rkey, at, b"x"));
        assert_eq!(done.status(), Status::Success);
        let start = Instant::now();
        match order {
            0 => {
                drop(pool);
                drop(window);
                drop(server);
                drop(client);
            }
            1 => {
                drop(client);
                drop(window);
                drop(pool);
                drop(server);
            }
            2 => {
                let End {
                    queue_pair,
                    queue,
                    domain,
                    id,
                    channel,
                    ..
                } = server;
                drop((queue, domain, channel, id));
                drop(pool);
                drop(window);
                drop(queue_pair);
            }
            _ => {
                drop((server.domain, server.queue, server.channel));
                drop((window, pool, client));
                drop(server.id);
                drop(server.queue_pair);
            }
        }
        let took = start.elapsed();
        println!("order {order}: {took:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    assert_eq!(pmu_verbs::leaked_objects(), before);
}

#[test]
fn a_queue_pair_that_goes_under_a_bound_window_is_cut_off_at_once() {
    let before = pmu_verbs::leaked_objects();
    let (mut client, mut server) = connect_all();
    let pool = server.register(&Mapping::persistent(MIB), POOL).unwrap();
    let window = server.bind(&pool, pool.start(), 4096);
    let (rkey, at) = (window.rkey(), pool.start());
    let control = server.queue_pair.control();
    let start = Instant::now();
    drop(server.queue_pair);
    assert_eq!(control.state().unwrap(), QueuePairState::Error);
    expect(&client.channel, EventKind::Disconnected);
    client.id.disconnect().unwrap();
    let done = client.run(|b| b.write_inline(1, WrFlags::SIGNALED, rkey, at, b"x"));
    assert_eq!(done.status(), Status::Flushed);
    drop(window);
    assert!(
        control.state().is_err(),
        "the window was the last to hold the queue pair"
    );
    drop(pool);
    // Soft-RoCE waits for 50 s where a window is left bound.
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(pmu_verbs::leaked_objects(), before);
}

#[test]
fn events_and_ends_on_several_threads_do_not_meet() {
    let threads: Vec<_> = (0..3)
        .map(|_| {
            std::thread::spawn(|| {
                for _ in 0..5 {
                    let (client, server) = connect_all();
                    let End {
                        queue_pair,
                        id,
                        channel,
                        ..
                    } = client;
                    let dropper = std::thread::spawn(move || drop(queue_pair));
                    let _ = id.disconnect();
                    expect(&server.channel, EventKind::Disconnected);
                    dropper.join().unwrap();
                    drop(id);
                    drop(channel);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
