//! Fences and epochs: what a primary of yesterday can still do (nothing), and what outlives the unit.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pmu_fabric::{CompletionStatus, Connection};
use pmu_proto::v1::{self, Reason};
use support::*;

const REGION_BYTES: usize = 1 << 20;
const STEP_BYTES: usize = 32 << 10;

/// The whole region, in pieces that fit local memory.
fn snapshot(reader: &mut Data) -> Vec<u8> {
    let pieces = (0..REGION_BYTES).step_by(REGION_BYTES / 4);
    pieces
        .flat_map(|offset| reader.read(offset as u64, REGION_BYTES / 4).unwrap())
        .collect()
}

async fn bytes_stop_landing(provider: v1::Provider) {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    let grants = vec![grant("alice", APPEND), grant("bob", APPEND | READ)];
    manager.append_region("log", grants).await;
    let mut alice = site.client(&unit, "alice").await;
    let mut bob = site.client(&unit, "bob").await;
    let via = |request| v1::OpenRegionRequest {
        provider: provider.into(),
        ..request
    };
    let mut reader = bob.attach(via(reader("log"))).await.unwrap();
    let mut last_epoch = 0;
    for round in 0..5_u8 {
        let mut writer = alice.attach(via(primary("log"))).await.unwrap();
        assert!(writer.epoch > last_epoch);
        let writes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&writes);
        let hammer = std::thread::spawn(move || {
            // Every pass writes other bytes, so that one that lands late is seen.
            for pass in 1_u8.. {
                let bytes = vec![pass.wrapping_mul(7).wrapping_add(round) | 1; STEP_BYTES];
                for offset in (0..REGION_BYTES).step_by(STEP_BYTES) {
                    match writer.write(offset as u64, &bytes) {
                        Ok(CompletionStatus::Success) => counted.fetch_add(1, Ordering::Relaxed),
                        Ok(status) => return (status, writer),
                        Err(error) => panic!("{error}"),
                    };
                }
                if pass == u8::MAX {
                    break;
                }
            }
            panic!("the fence never came");
        });
        while writes.load(Ordering::Relaxed) < 40 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let fenced = bob.fence("log").await.unwrap();
        let after = snapshot(&mut reader);
        assert_eq!((fenced.sessions_closed, fenced.windows_invalidated), (1, 1));
        assert!(fenced.epoch > last_epoch && fenced.took_us > 0);
        last_epoch = fenced.epoch;
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(
                snapshot(&mut reader) == after,
                "a byte landed after the fence"
            );
        }
        let (status, writer) = hammer.join().unwrap();
        assert_eq!(status, CompletionStatus::RemoteAccess);
        assert!(writer.connection.dead().is_some());
        refused(
            alice.activate(writer.session_id, 0).await,
            Reason::StaleEpoch,
        );
    }
    // The next primary is let in, with an epoch of its own.
    let mut next = bob.attach(via(primary("log"))).await.unwrap();
    assert!(next.epoch > last_epoch);
    assert_eq!(next.write(0, b"mine").unwrap(), CompletionStatus::Success);
    refused(alice.open(primary("log")).await, Reason::WriterExists);
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b03_after_fence_returns_no_byte_lands() {
    bytes_stop_landing(v1::Provider::SoftTcp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b03_after_fence_returns_no_byte_lands_over_unix() {
    bytes_stop_landing(v1::Provider::SoftUnix).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s05_a_primary_that_goes_on_from_an_older_epoch_is_refused_and_takes_none() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    let grants = vec![grant("alice", APPEND), grant("bob", APPEND)];
    manager.append_region("log", grants).await;
    let mut alice = site.client(&unit, "alice").await;
    let mut bob = site.client(&unit, "bob").await;
    let from = |epoch| v1::OpenRegionRequest {
        goes_on_from: Some(epoch),
        ..primary("log")
    };
    let first = alice.fence("log").await.unwrap().epoch;
    let later = bob.fence("log").await.unwrap().epoch;
    let message = refused(alice.open(from(first)).await, Reason::StaleEpoch);
    let both = [first, later].map(|epoch| format!("epoch {epoch}"));
    assert!(both.iter().all(|said| message.contains(said)), "{message}");
    // The refusal has raised nothing.
    let writer = bob.attach(from(later)).await.unwrap();
    assert_eq!(writer.epoch, later + 1);
    // Beside it, and when it is gone.
    refused(alice.open(from(later)).await, Reason::StaleEpoch);
    let close = v1::CloseSessionRequest {
        session_id: writer.session_id,
    };
    bob.session.close_session(close).await.unwrap();
    refused(alice.open(from(later)).await, Reason::StaleEpoch);
    // Who says nothing takes the region as it is.
    assert_eq!(alice.attach(primary("log")).await.unwrap().epoch, later + 2);
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b03_a_primary_that_is_not_yet_active_is_fenced_too() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    manager
        .append_region("log", vec![grant("alice", APPEND), grant("bob", APPEND)])
        .await;
    let mut alice = site.client(&unit, "alice").await;
    let mut bob = site.client(&unit, "bob").await;
    // Not connected, connected, and while Activate waits.
    let unconnected = alice.open(primary("log")).await.unwrap();
    assert_eq!(bob.fence("log").await.unwrap().sessions_closed, 1);
    assert!(data_connection(&unconnected).is_err(), "the token is void");
    refused(
        alice.activate(unconnected.session_id, 0).await,
        Reason::StaleEpoch,
    );

    let connected = alice.open(primary("log")).await.unwrap();
    let _connection = data_connection(&connected).unwrap();
    bob.fence("log").await.unwrap();
    refused(
        alice.activate(connected.session_id, 0).await,
        Reason::StaleEpoch,
    );

    let waiting = alice.open(primary("log")).await.unwrap();
    let mut other = alice.clone();
    let activate = tokio::spawn(async move { other.activate(waiting.session_id, 0).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    bob.fence("log").await.unwrap();
    refused(activate.await.unwrap(), Reason::StaleEpoch);
    bob.attach(primary("log")).await.unwrap();
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b03_fences_side_by_side_all_succeed_and_one_writer_is_left() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    let names: Vec<String> = (0..6).map(|number| format!("p{number}")).collect();
    let grants = names.iter().map(|name| grant(name, APPEND)).collect();
    manager.append_region("log", grants).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut contenders = Vec::new();
    for name in &names {
        let (mut peer, stop) = (site.client(&unit, name).await, Arc::clone(&stop));
        contenders.push(tokio::spawn(async move {
            let mut epochs = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                peer.fence("log").await.unwrap();
                if let Ok(writer) = peer.attach(primary("log")).await {
                    epochs.push(writer.epoch);
                }
            }
            epochs
        }));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop.store(true, Ordering::Relaxed);
    let mut epochs = Vec::new();
    for contender in contenders {
        epochs.extend(contender.await.unwrap());
    }
    let granted = epochs.len();
    assert!(granted > 0);
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!(epochs.len(), granted, "no epoch is given to two");
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_epoch_and_virtual_addresses_survive_a_restart() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    let grants = || vec![grant("alice", APPEND | READ)];
    // Scattered: a region between two others is deleted, and a larger one takes its place and more.
    for name in ["a", "b", "c"] {
        manager.append_region(name, grants()).await;
    }
    let delete = v1::DeleteRegionRequest {
        region: "b".into(),
        force: false,
    };
    manager.admin.delete_region(delete).await.unwrap();
    let rest = manager
        .admin
        .initialize(v1::InitializeRequest {})
        .await
        .unwrap()
        .into_inner();
    let request = v1::CreateRegionRequest {
        name: "wide".into(),
        mode: v1::Mode::Append.into(),
        room: Some(v1::create_region_request::Room::SizeBytes(
            rest.pools[0].free_bytes,
        )),
        grants: grants(),
        ..Default::default()
    };
    let wide = manager
        .admin
        .create_region(request)
        .await
        .unwrap()
        .into_inner()
        .region
        .unwrap();
    let mut alice = site.client(&unit, "alice").await;
    let mut writer = alice.attach(primary("wide")).await.unwrap();
    assert!(
        writer.active.windows.len() > 1,
        "one window for each extent"
    );
    // Across the border of two extents.
    let border = writer.active.windows[1].virtual_address - writer.base - 5;
    assert_eq!(
        writer.write(border, b"over the border").unwrap(),
        CompletionStatus::Success
    );
    let first_epoch = writer.epoch;
    let fence_epoch = alice.fence("wide").await.unwrap().epoch;
    assert_eq!(fence_epoch, first_epoch + 1);
    unit.stop().await;

    let (unit, _manager) = site.unlocked(site.config()).await;
    let mut alice = site.client(&unit, "alice").await;
    let mut next = alice.attach(primary("wide")).await.unwrap();
    assert_eq!(next.base, wide.virtual_address);
    assert_eq!(
        next.opened.region.as_ref().unwrap().region_id,
        wide.region_id
    );
    assert_eq!(next.epoch, fence_epoch + 1);
    assert_eq!(next.read(border, 15).unwrap(), b"over the border");
    unit.stop().await;
}

fn membership(generation: u64, own_index: u8, units: &[&str]) -> Vec<u8> {
    let members = units.iter().map(|unit| pmu_format::Member {
        unit: pmu_format::PrincipalName::new(unit).unwrap(),
        address: "127.0.0.1:1".into(),
    });
    let membership = pmu_format::Membership {
        id: pmu_format::SpreadId([3; 16]),
        generation,
        layout: [1, 1, 1],
        units_min: 1,
        own_index,
        subsegment_bytes: 4096,
        members: members.collect(),
    };
    membership.encode().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn d07_members_change_once_and_end_every_session() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    let request = v1::CreateRegionRequest {
        name: "part".into(),
        mode: v1::Mode::Overwrite.into(),
        sets_kept: 2,
        room: Some(v1::create_region_request::Room::SizeBytes(1 << 20)),
        need: v1::Need::Durable.into(),
        grants: vec![grant("alice", WRITE | READ), grant("bob", READ)],
        attributes: membership(4, 0, &["a", "b"]),
        ..Default::default()
    };
    manager.admin.create_region(request).await.unwrap();
    let (mut alice, mut bob) = (
        site.client(&unit, "alice").await,
        site.client(&unit, "bob").await,
    );
    let mut writer = alice.attach(primary("part")).await.unwrap();
    let mut reader = bob.attach(reader("part")).await.unwrap();
    let change = |expected_generation, attributes| v1::SetMembershipRequest {
        region: "part".into(),
        expected_generation,
        attributes,
    };
    // Another generation, the same one, an earlier one, another region, no membership: nothing changes, nobody is disturbed.
    let later = membership(5, 0, &["a", "c"]);
    let refused = manager
        .admin
        .set_membership(change(3, later.clone()))
        .await
        .unwrap_err();
    assert_eq!(
        pmu_proto::reason::of(&refused),
        Some(Reason::WrongGeneration)
    );
    let text = refused.message();
    assert!(
        text.contains("generation 4 now (a, b)") && text.contains("generation 3 was expected"),
        "{text}"
    );
    let mut other = pmu_format::Membership::decode(&later).unwrap();
    other.id.0[0] ^= 1;
    let wrong = [
        membership(4, 0, &["a", "c"]),
        membership(3, 0, &["a", "c"]),
        other.encode().unwrap(),
        b"nothing".to_vec(),
    ];
    for attributes in wrong {
        let refused = manager.admin.set_membership(change(4, attributes)).await;
        let reason = pmu_proto::reason::of(&refused.unwrap_err());
        assert_eq!(reason, Some(Reason::BadRequest));
    }
    assert_eq!(writer.write(0, &[1; 8]).unwrap(), CompletionStatus::Success);

    let changed = manager
        .admin
        .set_membership(change(4, later.clone()))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(changed.sessions_closed, 2);
    assert!(changed.epoch > writer.epoch);
    assert!(!matches!(
        writer.write(0, &[2; 8]),
        Ok(CompletionStatus::Success)
    ));
    assert!(reader.read(0, 8).is_err());
    // The second manager's expectation is of yesterday.
    let second = manager
        .admin
        .set_membership(change(4, membership(5, 0, &["a", "d"])))
        .await
        .unwrap_err();
    assert!(second.message().contains("(a, c)"), "{second}");

    // It outlives the unit.
    unit.stop().await;
    let (_unit, mut manager) = site.unlocked(site.config()).await;
    let request = v1::ShowRegionRequest {
        region: "part".into(),
    };
    let shown = manager.admin.show_region(request).await.unwrap();
    assert_eq!(shown.into_inner().region.unwrap().attributes, later);
}
