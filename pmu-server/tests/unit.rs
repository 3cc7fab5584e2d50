//! A unit in this process, reached as from outside: control over mutual TLS, data over the soft fabric.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod support;

use pmu_auth::Role;
use pmu_fabric::soft::connect;
use pmu_fabric::{
    CompletionStatus, ConnectToken, Connection, FabricError, PersistenceMethod, Provider,
};
use pmu_proto::v1::{self, Mode, Need, Reason};
use pmu_server::unit::Unit;
use support::*;

#[tokio::test(flavor = "multi_thread")]
async fn p02_manager_initialises_the_tables() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    manager
        .append_region("log", vec![grant("alice", APPEND)])
        .await;
    let again = manager
        .admin
        .initialize(v1::InitializeRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(again.was_initialized);
    assert_eq!((again.regions, again.pools.len()), (1, 1));
    assert!(again.pools[0].durable && again.pools[0].free_bytes > 0);
    let status = manager
        .admin
        .status(v1::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(!status.locked);
    assert_eq!(status.providers.len(), 2);
    unit.stop().await;

    // After a restart the tables come from the pool again.
    let unit = Unit::start(site.config()).await.unwrap();
    let mut manager = site.peer(&unit, "boss", Role::Manager).await;
    let first = manager
        .admin
        .initialize(v1::InitializeRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(!first.was_initialized);
    assert_eq!(first.regions, 1);
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p18_locked_until_initialised_and_after_restart() {
    let site = Site::with_file_pool();
    for round in 0..2 {
        let unit = Unit::start(site.config()).await.unwrap();
        let mut manager = site.peer(&unit, "boss", Role::Manager).await;
        let mut alice = site.client(&unit, "alice").await;
        let ping = alice
            .session
            .ping(v1::PingRequest {})
            .await
            .unwrap()
            .into_inner();
        assert!(ping.locked);
        let message = refused(alice.open(primary("log")).await, Reason::Locked);
        assert!(
            message.contains("a manager must initialise it"),
            "{message}"
        );
        refused(alice.activate(1, 0).await, Reason::Locked);
        refused(alice.fence("log").await, Reason::Locked);
        let close = alice
            .session
            .close_session(v1::CloseSessionRequest { session_id: 1 })
            .await;
        refused(close, Reason::Locked);
        let describe = v1::DescribeRegionRequest {
            region: "log".into(),
        };
        refused(
            alice.session.describe_region(describe).await,
            Reason::Locked,
        );
        refused(
            manager.admin.list_regions(v1::ListRegionsRequest {}).await,
            Reason::Locked,
        );
        refused(
            manager
                .create("other", Mode::Append, Need::Durable, vec![])
                .await,
            Reason::Locked,
        );
        refused(
            manager
                .admin
                .verify_pool(v1::VerifyPoolRequest::default())
                .await
                .map(|_| ()),
            Reason::Locked,
        );
        let status = manager
            .admin
            .status(v1::StatusRequest {})
            .await
            .unwrap()
            .into_inner();
        assert!(status.locked && status.pools.is_empty() && status.sessions.is_empty());
        // No data listener hands out anything.
        for (provider, address) in unit.data_addresses() {
            let token = ConnectToken::random().unwrap();
            let refused = connect(
                provider,
                &address,
                token,
                PersistenceMethod::ServerPersist,
                PATIENCE,
            );
            assert!(matches!(refused.err(), Some(FabricError::Refused { .. })));
        }
        // Only a manager may initialise.
        refused(
            alice.admin.initialize(v1::InitializeRequest {}).await,
            Reason::WrongRole,
        );
        assert!(
            alice
                .session
                .ping(v1::PingRequest {})
                .await
                .unwrap()
                .into_inner()
                .locked
        );
        manager
            .admin
            .initialize(v1::InitializeRequest {})
            .await
            .unwrap();
        if round == 0 {
            manager
                .append_region("log", vec![grant("alice", APPEND)])
                .await;
        }
        alice.attach(primary("log")).await.unwrap();
        unit.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p09_only_authenticated_requestors_get_access_information() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    manager
        .append_region("log", vec![grant("alice", APPEND | READ)])
        .await;
    // Another site's authority.
    let other = Site::new();
    let stranger = other.identity("alice", Role::Client);
    let address = unit.control_address().to_string().parse().unwrap();
    let error = pmu_auth::connect(&address, &stranger, None, PATIENCE)
        .await
        .unwrap_err();
    assert!(error.problem().is_some(), "{error}");
    // Over both providers, what was written by the primary is what the reader gets.
    let mut alice = site.client(&unit, "alice").await;
    for (provider, text) in [
        (v1::Provider::SoftTcp, b"over tcp "),
        (v1::Provider::SoftUnix, b"over unix"),
    ] {
        let request = v1::OpenRegionRequest {
            provider: provider.into(),
            ..primary("log")
        };
        let mut writer = alice.attach(request).await.unwrap();
        assert_eq!(writer.write(8192, text).unwrap(), CompletionStatus::Success);
        let request = v1::OpenRegionRequest {
            provider: provider.into(),
            ..reader("log")
        };
        let mut second = alice.attach(request).await.unwrap();
        assert_eq!(second.read(8192, text.len()).unwrap(), text);
        let close = v1::CloseSessionRequest {
            session_id: writer.session_id,
        };
        alice.session.close_session(close).await.unwrap();
    }
    let wanted = v1::OpenRegionRequest {
        provider: v1::Provider::Verbs.into(),
        ..primary("log")
    };
    let message = refused(alice.open(wanted).await, Reason::NoProvider);
    assert!(message.contains("soft-tcp, soft-unix"), "{message}");
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p15_access_information_is_kept_for_later_requestors() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    let grants = vec![grant("alice", APPEND), grant("bob", READ | CLEAR)];
    let region = manager.append_region("log", grants).await;
    let mut alice = site.client(&unit, "alice").await;
    let mut bob = site.client(&unit, "bob").await;
    let mut writer = alice.attach(primary("log")).await.unwrap();
    writer.write(8192, b"checkpoint").unwrap();
    // The later requestor names the same addresses, with windows and keys of its own.
    let mut backup = bob.attach(clearing_backup("log")).await.unwrap();
    assert_eq!(backup.base, region.virtual_address);
    assert_eq!(backup.read(8192, 10).unwrap(), b"checkpoint");
    let keys = |active: &v1::ActivateResponse| -> Vec<u32> {
        active
            .windows
            .iter()
            .map(|window| window.access_key)
            .collect()
    };
    assert!(
        keys(&backup.active)
            .iter()
            .all(|key| !keys(&writer.active).contains(key))
    );
    // Just the cursor page can be written by a backup that clears.
    let ranges: Vec<_> = backup
        .active
        .windows
        .iter()
        .map(|window| {
            (
                window.virtual_address - region.virtual_address,
                window.length_bytes,
                window.access,
            )
        })
        .collect();
    assert_eq!(
        ranges,
        [
            (0, 4096, 1),
            (4096, 4096, 3),
            (8192, region.length_bytes - 8192, 1)
        ]
    );
    assert_eq!(
        backup.write(4096, &[1; 8]).unwrap(),
        CompletionStatus::Success
    );
    assert_eq!(
        backup.write(8192, &[1; 8]).unwrap(),
        CompletionStatus::RemoteAccess
    );
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p16_token_works_once_and_windows_only_on_their_connection() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    manager
        .append_region(
            "log",
            vec![grant("alice", APPEND | READ), grant("bob", READ)],
        )
        .await;
    let mut alice = site.client(&unit, "alice").await;
    let mut bob = site.client(&unit, "bob").await;
    let opened = alice.open(primary("log")).await.unwrap();
    let connection = data_connection(&opened).unwrap();
    assert!(
        matches!(
            data_connection(&opened).err(),
            Some(FabricError::Refused { .. })
        ),
        "used twice"
    );
    // Another principal can't activate it.
    refused(
        bob.activate(opened.session_id, 0).await,
        Reason::NoSuchSession,
    );
    let active = alice.activate(opened.session_id, 0).await.unwrap();
    refused(
        alice.activate(opened.session_id, 0).await,
        Reason::BadRequest,
    );
    let mut writer = support::Data::new(opened, active, connection);
    assert_eq!(
        writer.write(8192, b"mine").unwrap(),
        CompletionStatus::Success
    );
    // The writer's windows and keys on another connection of somebody else.
    let mut thief = bob.attach(reader("log")).await.unwrap();
    thief
        .connection
        .set_windows(&access_windows(&writer.active))
        .unwrap();
    assert_eq!(
        thief.write(8192, b"his").unwrap(),
        CompletionStatus::RemoteAccess
    );
    assert_eq!(writer.read(8192, 4).unwrap(), b"mine");
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p16_a_token_that_is_not_used_in_time_is_void() {
    let site = Site::with_file_pool();
    let mut config = site.config();
    config.limits.connect_within_ms = 100;
    config.limits.activate_within_ms = 300;
    let (unit, mut manager) = site.unlocked(config).await;
    manager
        .append_region("log", vec![grant("alice", APPEND)])
        .await;
    let mut alice = site.client(&unit, "alice").await;
    let opened = alice.open(primary("log")).await.unwrap();
    refused(
        alice.activate(opened.session_id, 20).await,
        Reason::NotConnected,
    );
    // The region is held until the time is over, and no longer.
    refused(alice.open(primary("log")).await, Reason::WriterExists);
    eventually("the session expires", || {
        let mut alice = alice.clone();
        async move { alice.open(primary("log")).await.is_ok() }
    })
    .await;
    assert!(data_connection(&opened).is_err());
    refused(
        alice.activate(opened.session_id, 0).await,
        Reason::NotConnected,
    );
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p17_without_grant_nothing_is_given() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    manager
        .append_region(
            "log",
            vec![
                grant("alice", APPEND),
                grant("bob", READ),
                grant("carol", MANAGE),
            ],
        )
        .await;
    let mut alice = site.client(&unit, "alice").await;
    let mut bob = site.client(&unit, "bob").await;
    let mut carol = site.client(&unit, "carol").await;
    let mut mallory = site.client(&unit, "mallory").await;
    for request in [primary("log"), reader("log"), clearing_backup("log")] {
        refused(mallory.open(request).await, Reason::NoGrant);
    }
    let describe = || v1::DescribeRegionRequest {
        region: "log".into(),
    };
    refused(
        mallory.session.describe_region(describe()).await,
        Reason::NoGrant,
    );
    refused(mallory.fence("log").await, Reason::NoGrant);
    // Each right gives just what it is for.
    refused(bob.open(primary("log")).await, Reason::NoGrant);
    refused(bob.open(clearing_backup("log")).await, Reason::NoGrant);
    refused(bob.fence("log").await, Reason::NoGrant);
    refused(alice.open(reader("log")).await, Reason::NoGrant);
    refused(carol.open(reader("log")).await, Reason::NoGrant);
    bob.attach(reader("log")).await.unwrap();
    alice.attach(primary("log")).await.unwrap();
    carol.fence("log").await.unwrap();
    alice.fence("log").await.unwrap();
    // A manager's role is no grant.
    refused(manager.open(reader("log")).await, Reason::NoGrant);
    refused(mallory.open(reader("other")).await, Reason::NoSuchRegion);
    refused(mallory.open(reader("../etc")).await, Reason::BadName);
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p17_revoked_principals_lose_their_windows_at_once() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    manager
        .append_region(
            "log",
            vec![grant("alice", APPEND | READ), grant("bob", READ)],
        )
        .await;
    let mut alice = site.client(&unit, "alice").await;
    let mut bob = site.client(&unit, "bob").await;
    let mut writer = alice.attach(primary("log")).await.unwrap();
    let mut second = alice.attach(reader("log")).await.unwrap();
    let mut third = bob.attach(reader("log")).await.unwrap();
    // What a session needs, and no more.
    let request = v1::SetGrantRequest {
        region: "log".into(),
        grant: Some(grant("alice", APPEND | READ | MANAGE)),
    };
    assert_eq!(
        manager
            .admin
            .set_grant(request)
            .await
            .unwrap()
            .into_inner()
            .windows_invalidated,
        0
    );
    // Less than before: only the session that uses the lost right ends.
    let request = v1::SetGrantRequest {
        region: "log".into(),
        grant: Some(grant("alice", READ)),
    };
    let set = manager.admin.set_grant(request).await.unwrap().into_inner();
    assert_eq!(set.windows_invalidated, 1);
    assert_eq!(
        writer.write(8192, b"late").unwrap(),
        CompletionStatus::RemoteAccess
    );
    assert_eq!(second.read(8192, 4).unwrap(), [0; 4]);
    refused(alice.activate(writer.session_id, 0).await, Reason::NoGrant);
    let request = v1::RevokeGrantRequest {
        region: "log".into(),
        principal: "alice".into(),
    };
    let revoked = manager
        .admin
        .revoke_grant(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(revoked.windows_invalidated, 1);
    assert_eq!(
        second.read(8192, 4).unwrap_err(),
        CompletionStatus::RemoteAccess
    );
    assert_eq!(third.read(8192, 4).unwrap(), [0; 4]);
    refused(
        manager.admin.revoke_grant(request).await,
        Reason::NoSuchGrant,
    );
    refused(alice.open(primary("log")).await, Reason::NoGrant);
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_roles_are_refused() {
    let site = Site::with_file_pool();
    let (unit, _manager) = site.unlocked(site.config()).await;
    let mut alice = site.client(&unit, "alice").await;
    refused(
        alice.admin.status(v1::StatusRequest {}).await,
        Reason::WrongRole,
    );
    refused(
        alice
            .create("mine", Mode::Append, Need::Durable, vec![])
            .await,
        Reason::WrongRole,
    );
    let delete = v1::DeleteRegionRequest {
        region: "log".into(),
        force: true,
    };
    refused(alice.admin.delete_region(delete).await, Reason::WrongRole);
    let fence = v1::FenceRegionRequest {
        region: "log".into(),
    };
    refused(alice.admin.fence_region(fence).await, Reason::WrongRole);
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b01_forced_method_that_is_unfit_is_refused() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    let grants = || vec![grant("alice", APPEND)];
    manager.append_region("log", grants()).await;
    manager
        .create("loose", Mode::Append, Need::Volatile, grants())
        .await
        .unwrap();
    let mut alice = site.client(&unit, "alice").await;
    use v1::PersistenceMethod::{
        NativeFlush, ReadAfterWrite, ServerPersist, Unspecified, Volatile,
    };
    let forced = |region, method: v1::PersistenceMethod| v1::OpenRegionRequest {
        persistence: method.into(),
        ..primary(region)
    };
    for method in [NativeFlush, ReadAfterWrite, Volatile] {
        let message = refused(
            alice.open(forced("log", method)).await,
            Reason::UnfitPersistence,
        );
        assert!(
            message.contains("server-persist"),
            "it says what can be had: {message}"
        );
    }
    let message = refused(
        alice.open(forced("log", ReadAfterWrite)).await,
        Reason::UnfitPersistence,
    );
    assert!(message.contains("attest"), "{message}");
    let opened = alice.open(forced("log", ServerPersist)).await.unwrap();
    assert_eq!(opened.persistence(), ServerPersist);
    let opened = alice.open(forced("loose", Unspecified)).await.unwrap();
    assert_eq!(
        opened.persistence(),
        ServerPersist,
        "the strongest, not the weakest that is allowed"
    );
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b01_what_must_be_durable_is_never_volatile() {
    let site = Site::new();
    let (unit, mut manager) = site.unlocked(site.memory_config()).await;
    let grants = || vec![grant("alice", APPEND)];
    refused(
        manager
            .create("log", Mode::Append, Need::Durable, grants())
            .await,
        Reason::VolatilePool,
    );
    manager
        .create("loose", Mode::Append, Need::Volatile, grants())
        .await
        .unwrap();
    let mut alice = site.client(&unit, "alice").await;
    let persist = v1::PersistenceMethod::ServerPersist.into();
    refused(
        alice
            .open(v1::OpenRegionRequest {
                persistence: persist,
                ..primary("loose")
            })
            .await,
        Reason::UnfitPersistence,
    );
    let mut writer = alice.attach(primary("loose")).await.unwrap();
    assert_eq!(writer.opened.persistence(), v1::PersistenceMethod::Volatile);
    assert_eq!(writer.active.persistence(), v1::PersistenceMethod::Volatile);
    assert_eq!(
        writer.write(8192, b"gone tomorrow").unwrap(),
        CompletionStatus::Success
    );
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b03_a_second_writer_is_refused_and_told_who_holds_the_region() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    manager
        .append_region("log", vec![grant("alice", APPEND), grant("bob", APPEND)])
        .await;
    let mut alice = site.client(&unit, "alice").await;
    let mut bob = site.client(&unit, "bob").await;
    let writer = alice.attach(primary("log")).await.unwrap();
    let message = refused(bob.open(primary("log")).await, Reason::WriterExists);
    assert!(
        message.contains("alice") && message.contains("fence"),
        "{message}"
    );
    let describe = v1::DescribeRegionRequest {
        region: "log".into(),
    };
    let described = bob
        .session
        .describe_region(describe)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (described.writer.as_str(), described.rights),
        ("alice", APPEND)
    );
    // Dropping the control channel ends nothing; the data connection's end does.
    drop(alice);
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    refused(bob.open(primary("log")).await, Reason::WriterExists);
    let first_epoch = writer.epoch;
    drop(writer);
    eventually("the next writer is let in", || {
        let mut bob = bob.clone();
        async move {
            bob.open(primary("log"))
                .await
                .is_ok_and(|opened| opened.region.unwrap().epoch > first_epoch)
        }
    })
    .await;
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn regions_are_deleted_with_their_sessions_and_erased() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    let before = manager
        .append_region("log", vec![grant("alice", APPEND)])
        .await;
    let mut alice = site.client(&unit, "alice").await;
    let mut writer = alice.attach(primary("log")).await.unwrap();
    writer.write(8192, b"secret").unwrap();
    let mut delete = v1::DeleteRegionRequest {
        region: "log".into(),
        force: false,
    };
    let message = refused(
        manager.admin.delete_region(delete.clone()).await,
        Reason::InUse,
    );
    assert!(message.contains("alice"), "{message}");
    assert_eq!(
        writer.write(8192, b"still").unwrap(),
        CompletionStatus::Success
    );
    delete.force = true;
    let deleted = manager
        .admin
        .delete_region(delete.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (deleted.sessions_closed, deleted.freed_bytes),
        (1, before.length_bytes)
    );
    assert!(writer.ends());
    refused(
        manager.admin.delete_region(delete).await,
        Reason::NoSuchRegion,
    );
    refused(alice.open(primary("log")).await, Reason::NoSuchRegion);
    // The same name and the same bytes of the pool, but nothing of what was there.
    let after = manager
        .append_region("log", vec![grant("alice", APPEND | READ)])
        .await;
    assert_ne!(after.region_id, before.region_id);
    assert_ne!(after.virtual_address, before.virtual_address);
    let mut next = alice.attach(reader("log")).await.unwrap();
    assert_eq!(next.read(8192, 6).unwrap(), [0; 6]);
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused_with_their_reason() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    let good = v1::CreateRegionRequest {
        name: "r".into(),
        mode: Mode::Overwrite.into(),
        sets_kept: 1,
        room: Some(v1::create_region_request::Room::CapacityBytes(1000)),
        ..Default::default()
    };
    use v1::create_region_request::Room;
    for (request, reason) in [
        (
            v1::CreateRegionRequest {
                name: "-".into(),
                ..good.clone()
            },
            Reason::BadName,
        ),
        (
            v1::CreateRegionRequest {
                sets_kept: 0,
                ..good.clone()
            },
            Reason::BadRequest,
        ),
        (
            v1::CreateRegionRequest {
                room: None,
                ..good.clone()
            },
            Reason::BadRequest,
        ),
        (
            v1::CreateRegionRequest {
                mode: 9,
                ..good.clone()
            },
            Reason::BadRequest,
        ),
        (
            v1::CreateRegionRequest {
                mode: Mode::Append.into(),
                ..good.clone()
            },
            Reason::BadRequest,
        ),
        (
            v1::CreateRegionRequest {
                room: Some(Room::SizeBytes(1)),
                sets_kept: 100,
                ..good.clone()
            },
            Reason::TooSmall,
        ),
        (
            v1::CreateRegionRequest {
                room: Some(Room::SizeBytes(1 << 40)),
                ..good.clone()
            },
            Reason::PoolFull,
        ),
        (
            v1::CreateRegionRequest {
                room: Some(Room::SizeBytes(u64::MAX)),
                ..good.clone()
            },
            Reason::BadRequest,
        ),
        (
            v1::CreateRegionRequest {
                attributes: vec![0; 5000],
                ..good.clone()
            },
            Reason::BadRequest,
        ),
        (
            v1::CreateRegionRequest {
                pool: "none".into(),
                ..good.clone()
            },
            Reason::NoSuchPool,
        ),
        (
            v1::CreateRegionRequest {
                grants: vec![grant("a", 0)],
                ..good.clone()
            },
            Reason::BadRequest,
        ),
        (
            v1::CreateRegionRequest {
                grants: vec![grant("a", 1), grant("a", 2)],
                ..good.clone()
            },
            Reason::BadRequest,
        ),
        (
            v1::CreateRegionRequest {
                grants: vec![grant("a/b", 1)],
                ..good.clone()
            },
            Reason::BadName,
        ),
    ] {
        refused(manager.admin.create_region(request).await, reason);
    }
    manager.admin.create_region(good.clone()).await.unwrap();
    refused(
        manager.admin.create_region(good.clone()).await,
        Reason::NameTaken,
    );
    // A table that is full.
    let mut full = None;
    for number in 0..40 {
        let request = v1::CreateRegionRequest {
            name: format!("r{number}"),
            attributes: vec![1; 4096],
            ..good.clone()
        };
        if let Err(status) = manager.admin.create_region(request).await {
            full = Some(status);
            break;
        }
    }
    refused(Err::<(), _>(full.unwrap()), Reason::TableFull);
    // Too long a message.
    let request = v1::CreateRegionRequest {
        attributes: vec![0; 1 << 20],
        ..good
    };
    assert_eq!(
        manager
            .admin
            .create_region(request)
            .await
            .unwrap_err()
            .code(),
        tonic::Code::OutOfRange
    );
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold() {
    let site = Site::with_file_pool();
    let mut config = site.config();
    config.limits.sessions_max = 3;
    config.limits.sessions_per_principal_max = 2;
    config.limits.control_connections_max = 3;
    let (unit, mut manager) = site.unlocked(config).await;
    manager
        .append_region("log", vec![grant("alice", READ), grant("bob", READ)])
        .await;
    let mut alice = site.client(&unit, "alice").await;
    let mut bob = site.client(&unit, "bob").await;
    for _ in 0..2 {
        alice.open(reader("log")).await.unwrap();
    }
    let message = refused(alice.open(reader("log")).await, Reason::TooManySessions);
    assert!(message.contains("sessions_per_principal_max"), "{message}");
    bob.open(reader("log")).await.unwrap();
    let message = refused(bob.open(reader("log")).await, Reason::TooManySessions);
    assert!(message.contains("sessions_max"), "{message}");
    let address = unit.control_address().to_string().parse().unwrap();
    let carol = site.identity("carol", Role::Client);
    assert!(
        pmu_auth::connect(&address, &carol, None, PATIENCE)
            .await
            .is_err(),
        "a fourth connection"
    );
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_are_verified_while_the_unit_serves() {
    use tokio_stream::StreamExt;
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    manager.append_region("log", vec![]).await;
    let steps = manager
        .admin
        .verify_pool(v1::VerifyPoolRequest::default())
        .await
        .unwrap()
        .into_inner();
    let steps: Vec<_> = steps
        .map(|step| step.unwrap().step.unwrap())
        .collect()
        .await;
    let v1::verify_pool_response::Step::Summary(summary) = &steps[steps.len() - 1] else {
        panic!("{steps:?}")
    };
    assert_eq!((steps.len(), summary.pools, summary.regions), (1, 1, 1));
    let unknown = manager
        .admin
        .verify_pool(v1::VerifyPoolRequest {
            pool: "x\u{1b}".into(),
        })
        .await;
    refused(unknown.map(|_| ()), Reason::NoSuchPool);
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn regions_are_listed_and_shown() {
    let site = Site::with_file_pool();
    let (unit, mut manager) = site.unlocked(site.config()).await;
    manager
        .append_region("b", vec![grant("alice", APPEND)])
        .await;
    manager.append_region("a", vec![]).await;
    let mut alice = site.client(&unit, "alice").await;
    let writer = alice.attach(primary("b")).await.unwrap();
    let listed = manager
        .admin
        .list_regions(v1::ListRegionsRequest {})
        .await
        .unwrap()
        .into_inner()
        .regions;
    let rows: Vec<_> = listed
        .iter()
        .map(|row| {
            (
                row.region.as_ref().unwrap().name.as_str(),
                row.writer.as_str(),
                row.sessions,
            )
        })
        .collect();
    assert_eq!(rows, [("a", "", 0), ("b", "alice", 1)]);
    let show = v1::ShowRegionRequest { region: "b".into() };
    let shown = manager.admin.show_region(show).await.unwrap().into_inner();
    assert_eq!((shown.grants.len(), shown.writer.as_str()), (1, "alice"));
    assert_eq!(
        shown
            .extents
            .iter()
            .map(|extent| extent.length_bytes)
            .sum::<u64>(),
        1 << 20
    );
    assert!(shown.sessions[0].active && shown.sessions[0].session_id == writer.session_id);
    let (provider, _) = unit.data_addresses()[0];
    assert_eq!(provider, Provider::SoftTcp);
    assert_eq!(shown.sessions[0].provider(), v1::Provider::SoftTcp);
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_regions_of_two_pools_have_addresses_of_their_own() {
    let site = Site::with_file_pool();
    let text = site.config_text("medium = \"memory\"\nsize = \"16MiB\"");
    let second = format!(
        "[[pool]]\nname = \"second\"\nmedium = \"file\"\npath = {:?}\n",
        site.path("pool")
    );
    let config = pmu_server::config::Config::parse(&(text + &second)).unwrap();
    let (unit, mut manager) = site.unlocked(config).await;
    // The first pool is volatile: what needs to be durable goes to the second.
    let grants = || vec![grant("alice", APPEND)];
    let durable = manager.append_region("durable", grants()).await;
    let volatile = manager
        .create("volatile", Mode::Append, Need::Volatile, grants())
        .await
        .unwrap();
    let listed = manager
        .admin
        .list_regions(v1::ListRegionsRequest {})
        .await
        .unwrap()
        .into_inner()
        .regions;
    let pools: Vec<_> = listed.iter().map(|row| row.pool.as_str()).collect();
    assert_eq!(pools, ["second", "main"]);
    assert!(durable.virtual_address.abs_diff(volatile.virtual_address) >= 1 << 20);
    refused(
        manager
            .create("durable", Mode::Append, Need::Volatile, vec![])
            .await,
        Reason::NameTaken,
    );
    // What is written to one is not in the other.
    let mut alice = site.client(&unit, "alice").await;
    let mut one = alice.attach(primary("durable")).await.unwrap();
    let mut other = alice.attach(primary("volatile")).await.unwrap();
    assert_eq!(one.write(8192, b"one").unwrap(), CompletionStatus::Success);
    assert_eq!(
        other.write(8192, b"two").unwrap(),
        CompletionStatus::Success
    );
    assert_eq!(
        (one.read(8192, 3).unwrap(), other.read(8192, 3).unwrap()),
        (b"one".to_vec(), b"two".to_vec())
    );
    assert_eq!(
        one.opened.persistence(),
        v1::PersistenceMethod::ServerPersist
    );
    assert_eq!(other.opened.persistence(), v1::PersistenceMethod::Volatile);
    unit.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_with_anothers_certificate_does_not_start() {
    let site = Site::with_file_pool();
    for (folder, role) in [("unit-2", Role::Unit), ("unit-1", Role::Client)] {
        let validity = pmu_auth::Validity::days(1);
        let identity = site.authority.issue(&name(folder), role, &[], validity);
        identity.unwrap().save(&site.path("other")).unwrap();
        let mut config = site.config();
        config.unit.identity = site.path("other");
        let error = Unit::start(config).await.unwrap_err().to_string();
        assert!(
            error.contains("unit.name is unit-1") && error.contains(folder),
            "{error}"
        );
        std::fs::remove_dir_all(site.path("other")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_whose_certificate_is_over_does_not_start() {
    let site = Site::with_file_pool();
    let validity = pmu_auth::Validity::days(1);
    let span = validity.not_after - validity.not_before;
    let over = pmu_auth::Validity {
        not_before: validity.not_before - span - span,
        not_after: validity.not_before - span,
    };
    let identity = site
        .authority
        .issue(&name("unit-1"), Role::Unit, &[], over)
        .unwrap();
    identity.save(&site.path("old")).unwrap();
    let mut config = site.config();
    config.unit.identity = site.path("old");
    let error = Unit::start(config).await.unwrap_err().to_string();
    assert!(
        error.contains("unit.identity") && error.contains("issue a new one"),
        "{error}"
    );
}
