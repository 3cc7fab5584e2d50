//! Rights that are lent for a time: they end by themselves, and nothing is left of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use pmu_auth::Role;
use pmu_proto::v1::{self, Reason};
use pmu_server::unit::Unit;
use support::{APPEND, CLEAR, Data, PATIENCE, READ, Site, WRITE, grant, reader, refused, wish};
use tonic::Status;

async fn lend(peer: &mut support::Peer, rights: u32, for_ms: u32) -> Result<(), Status> {
    let request = v1::LendRightsRequest {
        region: "r".into(),
        rights,
        for_ms,
    };
    peer.admin.lend_rights(request).await.map(drop)
}

/// Whether reads end within a while.
fn is_cut_off(data: &mut Data) -> bool {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if data.read(0, 64).is_err() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn b07_lent_rights_end_by_themselves_and_take_their_sessions_along() {
    let site = Site::with_file_pool();
    let (unit, mut boss) = site.unlocked(site.config()).await;
    boss.append_region("r", vec![grant("app", READ)]).await;
    refused(boss.open(reader("r")).await, Reason::NoGrant);
    lend(&mut boss, READ, 600).await.unwrap();
    let mut data = boss.attach(reader("r")).await.unwrap();
    assert!(data.read(0, 64).is_ok());
    // Nobody renews them.
    assert!(is_cut_off(&mut data), "a session outlives what it needs");
    refused(boss.open(reader("r")).await, Reason::NoGrant);

    // Whoever renews them keeps them.
    lend(&mut boss, READ, 1000).await.unwrap();
    lend(&mut boss, READ, 60_000).await.unwrap();
    let mut data = boss.attach(reader("r")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(data.read(0, 64).is_ok());
    // And whoever gives them back has none.
    lend(&mut boss, 0, 0).await.unwrap();
    assert!(is_cut_off(&mut data));
    refused(boss.open(reader("r")).await, Reason::NoGrant);
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b07_lent_rights_are_beside_those_that_are_granted() {
    let site = Site::with_file_pool();
    let (unit, mut boss) = site.unlocked(site.config()).await;
    boss.append_region("r", vec![grant("boss", READ)]).await;
    lend(&mut boss, APPEND | CLEAR, 60_000).await.unwrap();
    let mut reads = boss.attach(reader("r")).await.unwrap();
    let mut writes = boss.attach(support::primary("r")).await.unwrap();
    // No grant of the region says so.
    let request = v1::ShowRegionRequest { region: "r".into() };
    let shown = boss.admin.show_region(request).await.unwrap().into_inner();
    assert_eq!(shown.grants, [grant("boss", READ)]);
    lend(&mut boss, 0, 0).await.unwrap();
    assert!(is_cut_off(&mut writes));
    assert!(reads.read(0, 64).is_ok(), "what it needs is granted");
    // A revocation takes both.
    lend(&mut boss, CLEAR, 60_000).await.unwrap();
    let revocation = v1::RevokeGrantRequest {
        region: "r".into(),
        principal: "boss".into(),
    };
    boss.admin.revoke_grant(revocation).await.unwrap();
    assert!(is_cut_off(&mut reads));
    refused(
        boss.open(support::clearing_backup("r")).await,
        Reason::NoGrant,
    );
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b07_nothing_is_lent_to_clients_for_ever_or_beyond_a_restart() {
    let site = Site::with_file_pool();
    let (unit, mut boss) = site.unlocked(site.config()).await;
    boss.append_region("r", Vec::new()).await;
    for (rights, for_ms) in [(READ, 0), (READ, 600_001), (1 << 20, 1000)] {
        refused(lend(&mut boss, rights, for_ms).await, Reason::BadRequest);
    }
    let mut app = site.client(&unit, "app").await;
    refused(lend(&mut app, READ, 1000).await, Reason::WrongRole);
    lend(&mut boss, READ | WRITE, 60_000).await.unwrap();
    let other = site
        .peer(&unit, "other", Role::Manager)
        .await
        .open(wish("r", v1::SessionRole::Reader))
        .await;
    refused(other, Reason::NoGrant);
    unit.stop().await;

    let unit = Unit::start(site.config()).await.unwrap();
    let mut boss = site.peer(&unit, "boss", Role::Manager).await;
    let unlock = v1::InitializeRequest {};
    boss.admin.initialize(unlock).await.unwrap();
    refused(boss.open(reader("r")).await, Reason::NoGrant);
    // A region that is gone, and one of the same name after it.
    lend(&mut boss, READ, 60_000).await.unwrap();
    let deletion = v1::DeleteRegionRequest {
        region: "r".into(),
        force: false,
    };
    boss.admin.delete_region(deletion).await.unwrap();
    refused(lend(&mut boss, READ, 1000).await, Reason::NoSuchRegion);
    boss.append_region("r", Vec::new()).await;
    refused(boss.open(reader("r")).await, Reason::NoGrant);
    unit.stop().await;
}
