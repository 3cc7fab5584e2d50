//! Connection set-up and end, and what goes wrong on the way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmu_verbs::{
    CmId, ConnectionParameters, EventChannel, EventKind, QueuePairState, Status, VerbsError,
    WrFlags,
};

use crate::support::*;

#[test]
fn private_data_arrives_on_both_sides() {
    let (client, server) = connect_all();
    assert!(
        server.greeting.starts_with(b"from client"),
        "{:?}",
        server.greeting
    );
    assert!(
        client.greeting.starts_with(b"from server"),
        "{:?}",
        client.greeting
    );
    println!(
        "padded to {} and {} bytes",
        server.greeting.len(),
        client.greeting.len()
    );
    assert_eq!(client.id.peer_addr().unwrap().ip(), lab_ip());
    assert_eq!(client.id.peer_addr(), server.id.local_addr());
    assert_eq!(client.id.local_addr(), server.id.peer_addr());
    assert_eq!(
        client.queue_pair.state().unwrap(),
        QueuePairState::ReadyToSend
    );
    assert_eq!(
        server.queue_pair.state().unwrap(),
        QueuePairState::ReadyToSend
    );
}

#[test]
fn all_bytes_of_private_data_arrive() {
    let verbs = verbs();
    let (server_channel, _listener, address) = listen(&verbs);
    let (_client_channel, id) = resolve(&verbs, address);
    let (_domain, _queue, _queue_pair) = equip(&id, |_| {});
    let data: Vec<u8> = (1..=CmId::CONNECT_DATA_MAX as u8).collect();
    id.connect(&ConnectionParameters {
        private_data: &data,
        ..Default::default()
    })
    .unwrap();
    let request = expect(&server_channel, EventKind::ConnectRequest);
    assert_eq!(request.private_data.as_bytes()[..data.len()], data);
    assert!(request.responder_resources > 0 && request.initiator_depth > 0);
    let long = [0; CmId::CONNECT_DATA_MAX + 1];
    let error = id
        .connect(&ConnectionParameters {
            private_data: &long,
            ..Default::default()
        })
        .unwrap_err();
    assert!(matches!(error, VerbsError::TooMany { .. }), "{error}");
}

#[test]
fn identifiers_on_one_device_share_a_context() {
    let (client, server) = connect_all();
    let context = client.id.context().unwrap();
    assert!(Arc::ptr_eq(&context, &server.id.context().unwrap()));
    let (other, _other_server) = connect_all();
    assert!(Arc::ptr_eq(&context, &other.id.context().unwrap()));
    assert!(!context.device_name().is_empty());
    assert_ne!(context.device_guid(), 0);
}

#[test]
fn a_context_outlives_all_identifiers() {
    let context = {
        let (client, _server) = connect_all();
        client.id.context().unwrap()
    };
    context.attributes().unwrap();
    pmu_verbs::ProtectionDomain::allocate(&context).unwrap();
}

#[test]
fn a_refusal_arrives_with_its_reason() {
    let verbs = verbs();
    let (server_channel, _listener, address) = listen(&verbs);
    let (client_channel, id) = resolve(&verbs, address);
    let (_domain, _queue, queue_pair) = equip(&id, |_| {});
    id.connect(&ConnectionParameters::default()).unwrap();
    let request = expect(&server_channel, EventKind::ConnectRequest);
    request.id.reject(b"the unit is locked").unwrap();
    let refused = expect(&client_channel, EventKind::Rejected);
    assert_eq!(refused.status, 28);
    assert!(
        refused
            .private_data
            .as_bytes()
            .starts_with(b"the unit is locked")
    );
    assert_eq!(refused.id, id);
    assert_eq!(queue_pair.state().unwrap(), QueuePairState::Error);
}

#[test]
fn a_request_that_is_dropped_is_refused() {
    let verbs = verbs();
    let (server_channel, listener, address) = listen(&verbs);
    let (client_channel, id) = resolve(&verbs, address);
    let (_domain, _queue, _queue_pair) = equip(&id, |_| {});
    id.connect(&ConnectionParameters::default()).unwrap();
    let request = expect(&server_channel, EventKind::ConnectRequest);
    assert_eq!(request.listen_id.as_ref(), Some(&listener));
    drop(request);
    expect(&client_channel, EventKind::Rejected);
}

#[test]
fn where_nobody_listens_the_connection_is_refused() {
    let verbs = verbs();
    let (channel, id) = resolve(&verbs, SocketAddr::new(lab_ip(), 1));
    let (_domain, _queue, _queue_pair) = equip(&id, |_| {});
    id.connect(&ConnectionParameters::default()).unwrap();
    let refused = expect(&channel, EventKind::Rejected);
    assert_eq!(refused.status, 8);
}

#[test]
fn an_address_without_a_way_is_an_error() {
    let verbs = verbs();
    let channel = EventChannel::new(&verbs).unwrap();
    let id = CmId::new(&channel).unwrap();
    // 192.0.2.0/24 is for documentation.
    let nowhere = "192.0.2.1:9".parse().unwrap();
    match id.resolve_addr(None, nowhere, Duration::from_secs(2)) {
        Err(error) => println!("at once: {error}"),
        Ok(()) => {
            expect(&channel, EventKind::AddressError);
        }
    }
    assert!(matches!(id.context(), Err(VerbsError::Invalid(_))));
    let error = id.connect(&ConnectionParameters::default()).unwrap_err();
    assert!(matches!(error, VerbsError::Invalid(_)), "{error}");
}

#[test]
fn a_foreign_or_taken_address_cannot_be_listened_on() {
    let verbs = verbs();
    let channel = EventChannel::new(&verbs).unwrap();
    let id = CmId::new(&channel).unwrap();
    let error = id.bind_addr("192.0.2.1:9".parse().unwrap()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no RDMA device has this address"),
        "{error}"
    );
    let (_channel, _listener, taken) = listen(&verbs);
    let id = CmId::new(&channel).unwrap();
    let refused = id.bind_addr(taken).and_then(|()| id.listen(1)).unwrap_err();
    assert_eq!(refused.errno(), Some(libc::EADDRINUSE), "{refused}");
}

#[test]
fn the_end_of_a_connection_is_heard_on_both_sides() {
    let (client, server) = connect_all();
    client.id.disconnect().unwrap();
    expect(&server.channel, EventKind::Disconnected);
    assert_eq!(
        server.queue_pair.state().unwrap(),
        QueuePairState::ReadyToSend
    );
    server.id.disconnect().unwrap();
    assert_eq!(server.queue_pair.state().unwrap(), QueuePairState::Error);
    expect(&client.channel, EventKind::Disconnected);
    assert_eq!(client.queue_pair.state().unwrap(), QueuePairState::Error);
}

#[test]
fn the_death_of_one_side_is_heard_on_the_other() {
    let (client, server) = connect_all();
    drop(client);
    let event = expect(&server.channel, EventKind::Disconnected);
    assert_eq!(event.id, server.id);
}

#[test]
fn no_event_is_no_error() {
    let verbs = verbs();
    let channel = EventChannel::new(&verbs).unwrap();
    assert!(channel.next_event().unwrap().is_none());
    assert!(
        channel
            .wait_event(Some(Duration::from_millis(10)))
            .unwrap()
            .is_none()
    );
}

#[test]
fn many_connections_of_one_listener_share_a_domain() {
    let verbs = verbs();
    let (server_channel, _listener, address) = listen(&verbs);
    let mut ends = Vec::new();
    let mut domain = None;
    for _ in 0..4 {
        let (client_channel, id) = resolve(&verbs, address);
        let client = equip(&id, |_| {});
        id.connect(&ConnectionParameters::default()).unwrap();
        let request = expect(&server_channel, EventKind::ConnectRequest);
        let context = request.id.context().unwrap();
        let domain =
            domain.get_or_insert_with(|| pmu_verbs::ProtectionDomain::allocate(&context).unwrap());
        let queue = pmu_verbs::CompletionQueue::new(&context, 16, None).unwrap();
        let config = pmu_verbs::QueuePairConfig::new(domain, &queue, &queue);
        let queue_pair = pmu_verbs::QueuePair::create_on(&request.id, &config).unwrap();
        request.id.accept(&ConnectionParameters::default()).unwrap();
        expect(&client_channel, EventKind::Established);
        expect(&server_channel, EventKind::Established);
        ends.push((client, client_channel, id, queue_pair, request));
    }
    let mut numbers: Vec<_> = ends.iter().map(|end| end.3.number()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 4);
}

#[test]
fn a_silent_peer_is_given_up_on_in_the_time_that_was_set() {
    let verbs = verbs();
    let (server_channel, _listener, address) = listen(&verbs);
    let (client_channel, id) = resolve(&verbs, address);
    let (_domain, queue, mut queue_pair) = equip(&id, |_| {});
    // 4.096 us * 2^14: 67 ms.
    id.set_ack_timeout(14).unwrap();
    assert!(matches!(
        id.set_ack_timeout(32),
        Err(VerbsError::Invalid(_))
    ));
    id.connect(&ConnectionParameters {
        retry_count: 3,
        ..Default::default()
    })
    .unwrap();
    let request = expect(&server_channel, EventKind::ConnectRequest);
    let (_server_domain, _server_queue, server) = equip(&request.id, |_| {});
    request.id.accept(&ConnectionParameters::default()).unwrap();
    expect(&client_channel, EventKind::Established);
    // The server's queue pair answers nothing any more, and nobody tells the client.
    server.to_error().unwrap();
    let start = Instant::now();
    let mut batch = queue_pair.start();
    batch.send_inline(1, WrFlags::SIGNALED, b"anyone?").unwrap();
    batch.post().unwrap();
    assert_eq!(one_completion(&queue).status(), Status::RetryExceeded);
    println!("given up after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(10));
}
