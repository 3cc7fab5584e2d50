//! A site for tests: an authority, identities, pools, a unit in this process, and programs that reach it through real TLS
//! and the soft fabric.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by tests, each of which uses a part"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmu_auth::{Authority, HostName, Identity, PrincipalName, Role, Validity};
use pmu_fabric::soft::{SoftConnection, connect};
use pmu_fabric::{
    AccessWindow, AttachedMemory, Chain, Completion, CompletionStatus, ConnectToken, Connection,
    FabricError, LocalSlice, PersistenceMethod, Provider,
};
use pmu_pmem::LocalMemory;
use pmu_proto::v1::admin_client::AdminClient;
use pmu_proto::v1::create_region_request::Room;
use pmu_proto::v1::session_client::SessionClient;
use pmu_proto::v1::{self, Reason};
use pmu_server::cli::InitArguments;
use pmu_server::config::{ByteSize, Config};
use pmu_server::pools;
use pmu_server::unit::{Unit, UnitHandle};
use tonic::transport::Channel;
use tonic::{Response, Status};

pub const PATIENCE: Duration = Duration::from_secs(30);
pub const READ: u32 = 1;
pub const WRITE: u32 = 2;
pub const APPEND: u32 = 4;
pub const CLEAR: u32 = 8;
pub const MANAGE: u32 = 16;
/// Bytes of local memory of a program.
const LOCAL_BYTES: usize = 1 << 20;

pub struct Site {
    pub directory: tempfile::TempDir,
    pub authority: Authority,
}

pub fn name(text: &str) -> PrincipalName {
    PrincipalName::new(text).unwrap()
}

impl Site {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca"), &name("site")).unwrap();
        let host: HostName = "127.0.0.1".parse().unwrap();
        let unit = authority
            .issue(&name("unit-1"), Role::Unit, &[host], Validity::days(1))
            .unwrap();
        unit.save(&directory.path().join("unit")).unwrap();
        Self {
            directory,
            authority,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A site with a durable pool in a file.
    pub fn with_file_pool() -> Self {
        let site = Self::new();
        init_pool(&site.path("pool"), "16MiB", false).unwrap();
        site
    }

    /// A unit with a pool in a file, on both soft providers.
    pub fn config(&self) -> Config {
        self.config_of(
            "medium = \"file\"\npath = \"POOL\""
                .replace("POOL", self.path("pool").to_str().unwrap())
                .as_str(),
        )
    }

    pub fn memory_config(&self) -> Config {
        self.config_of("medium = \"memory\"\nsize = \"16MiB\"")
    }

    fn config_of(&self, pool: &str) -> Config {
        Config::parse(&self.config_text(pool)).unwrap()
    }

    pub fn config_text(&self, pool: &str) -> String {
        format!(
            "[unit]\nname = \"unit-1\"\nidentity = {:?}\n[control]\nlisten = \"127.0.0.1:0\"\n\
             [[data]]\nprovider = \"soft-tcp\"\nlisten = \"127.0.0.1:0\"\n\
             [[data]]\nprovider = \"soft-unix\"\npath = {:?}\n\
             [metrics]\nlisten = \"127.0.0.1:0\"\n\
             [[pool]]\nname = \"main\"\n{pool}\n",
            self.path("unit"),
            self.path("data.socket"),
        )
    }

    pub fn identity(&self, who: &str, role: Role) -> Identity {
        self.authority
            .issue(&name(who), role, &[], Validity::days(1))
            .unwrap()
    }

    pub async fn peer(&self, unit: &UnitHandle, who: &str, role: Role) -> Peer {
        self.peer_at(&unit.control_address().to_string(), who, role)
            .await
    }

    pub async fn peer_at(&self, address: &str, who: &str, role: Role) -> Peer {
        let identity = self.identity(who, role);
        let channel = pmu_auth::connect(
            &address.parse().unwrap(),
            &identity,
            Some(&name("unit-1")),
            PATIENCE,
        )
        .await
        .unwrap();
        Peer {
            admin: AdminClient::new(channel.clone()),
            session: SessionClient::new(channel),
        }
    }

    pub async fn client(&self, unit: &UnitHandle, who: &str) -> Peer {
        self.peer(unit, who, Role::Client).await
    }

    /// A unit that a manager has initialised, and that manager.
    pub async fn unlocked(&self, config: Config) -> (UnitHandle, Peer) {
        let unit = Unit::start(config).await.unwrap();
        let mut manager = self.peer(&unit, "boss", Role::Manager).await;
        manager
            .admin
            .initialize(v1::InitializeRequest {})
            .await
            .unwrap();
        (unit, manager)
    }
}

pub fn init_pool(
    path: &Path,
    size: &str,
    force: bool,
) -> Result<String, pmu_server::pool::PoolError> {
    let arguments = InitArguments {
        pool: path.to_owned(),
        medium: pmu_format::Medium::File,
        size: Some(size.parse().unwrap()),
        table_size: ByteSize(64 << 10),
        force,
    };
    pools::init(&arguments, &mut |_, _| {})
}

/// Somebody with a control connection.
#[derive(Clone)]
pub struct Peer {
    pub admin: AdminClient<Channel>,
    pub session: SessionClient<Channel>,
}

pub fn grant(principal: &str, rights: u32) -> v1::Grant {
    v1::Grant {
        principal: principal.into(),
        rights,
    }
}

impl Peer {
    pub async fn create(
        &mut self,
        name: &str,
        mode: v1::Mode,
        need: v1::Need,
        grants: Vec<v1::Grant>,
    ) -> Result<v1::RegionDescriptor, Status> {
        let request = v1::CreateRegionRequest {
            name: name.into(),
            mode: mode.into(),
            sets_kept: u32::from(mode == v1::Mode::Overwrite),
            room: Some(Room::SizeBytes(1 << 20)),
            need: need.into(),
            grants,
            ..Default::default()
        };
        let created = self.admin.create_region(request).await?;
        Ok(created.into_inner().region.unwrap())
    }

    pub async fn append_region(
        &mut self,
        name: &str,
        grants: Vec<v1::Grant>,
    ) -> v1::RegionDescriptor {
        self.create(name, v1::Mode::Append, v1::Need::Durable, grants)
            .await
            .unwrap()
    }

    pub async fn open(
        &mut self,
        request: v1::OpenRegionRequest,
    ) -> Result<v1::OpenRegionResponse, Status> {
        self.session
            .open_region(request)
            .await
            .map(Response::into_inner)
    }

    pub async fn activate(
        &mut self,
        session_id: u64,
        timeout_ms: u32,
    ) -> Result<v1::ActivateResponse, Status> {
        self.session
            .activate(v1::ActivateRequest {
                session_id,
                timeout_ms,
            })
            .await
            .map(Response::into_inner)
    }

    /// Opens, connects and activates.
    pub async fn attach(&mut self, request: v1::OpenRegionRequest) -> Result<Data, Status> {
        let opened = self.open(request).await?;
        // A fence may have come in between.
        let connection =
            data_connection(&opened).map_err(|error| Status::unavailable(error.to_string()))?;
        let active = self.activate(opened.session_id, 0).await?;
        Ok(Data::new(opened, active, connection))
    }

    pub async fn fence(&mut self, region: &str) -> Result<v1::FenceRegionResponse, Status> {
        let request = v1::FenceRegionRequest {
            region: region.into(),
        };
        self.session
            .fence_region(request)
            .await
            .map(Response::into_inner)
    }
}

pub fn wish(region: &str, role: v1::SessionRole) -> v1::OpenRegionRequest {
    v1::OpenRegionRequest {
        region: region.into(),
        role: role.into(),
        ..Default::default()
    }
}

pub fn primary(region: &str) -> v1::OpenRegionRequest {
    wish(region, v1::SessionRole::Primary)
}

pub fn reader(region: &str) -> v1::OpenRegionRequest {
    wish(region, v1::SessionRole::Reader)
}

pub fn clearing_backup(region: &str) -> v1::OpenRegionRequest {
    v1::OpenRegionRequest {
        wants_clear: true,
        ..wish(region, v1::SessionRole::Backup)
    }
}

pub fn token_of(opened: &v1::OpenRegionResponse) -> ConnectToken {
    ConnectToken(opened.connect_token.clone().try_into().unwrap())
}

pub fn data_connection(opened: &v1::OpenRegionResponse) -> Result<SoftConnection, FabricError> {
    let provider = match opened.addresses[0].provider() {
        v1::Provider::SoftUnix => Provider::SoftUnix,
        _ => Provider::SoftTcp,
    };
    let method = match opened.persistence() {
        v1::PersistenceMethod::Volatile => PersistenceMethod::Volatile,
        _ => PersistenceMethod::ServerPersist,
    };
    connect(
        provider,
        &opened.addresses[0].address,
        token_of(opened),
        method,
        PATIENCE,
    )
}

pub fn access_windows(active: &v1::ActivateResponse) -> Vec<AccessWindow> {
    let windows = active.windows.iter().map(|window| AccessWindow {
        address: window.virtual_address,
        length: window.length_bytes,
        access_key: window.access_key,
        flush_key: window.flush_key.unwrap_or(0),
    });
    windows.collect()
}

/// A session with its data connection.
pub struct Data {
    pub session_id: u64,
    pub epoch: u64,
    pub base: u64,
    pub opened: v1::OpenRegionResponse,
    pub active: v1::ActivateResponse,
    pub connection: SoftConnection,
    memory: Arc<LocalMemory>,
    attached: AttachedMemory,
}

impl Data {
    pub fn new(
        opened: v1::OpenRegionResponse,
        active: v1::ActivateResponse,
        mut connection: SoftConnection,
    ) -> Self {
        connection.set_windows(&access_windows(&active)).unwrap();
        let memory = Arc::new(LocalMemory::allocate(LOCAL_BYTES).unwrap());
        let attached = connection.attach(Arc::clone(&memory)).unwrap();
        Self {
            session_id: opened.session_id,
            epoch: active.epoch,
            base: opened.region.as_ref().unwrap().virtual_address,
            opened,
            active,
            connection,
            memory,
            attached,
        }
    }

    fn slice(&self, length: usize) -> LocalSlice {
        LocalSlice {
            memory: self.attached,
            offset: 0,
            length,
        }
    }

    /// Posts one chain and waits for its end.
    pub fn run(&mut self, chain: &Chain) -> Result<CompletionStatus, FabricError> {
        self.connection.post(1, chain)?;
        let mut done = [Completion {
            tag: 0,
            status: CompletionStatus::Flushed,
        }];
        let until = Instant::now() + PATIENCE;
        while self.connection.poll(&mut done)? == 0 {
            assert!(Instant::now() < until, "no completion");
            self.connection.wait(Duration::from_millis(100))?;
        }
        Ok(done[0].status)
    }

    /// Writes and flushes at an offset of the region.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<CompletionStatus, FabricError> {
        self.memory.write_at(0, bytes).unwrap();
        let mut chain = Chain::with_capacity(2);
        let local = self.slice(bytes.len());
        chain
            .write(self.base + offset, local)
            .flush(self.base + offset, bytes.len() as u64);
        self.run(&chain)
    }

    pub fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, CompletionStatus> {
        let mut chain = Chain::with_capacity(1);
        let local = self.slice(length);
        chain.read(self.base + offset, local);
        match self.run(&chain).unwrap() {
            CompletionStatus::Success => {
                let mut bytes = vec![0; length];
                self.memory.read_at(0, &mut bytes).unwrap();
                Ok(bytes)
            }
            status => Err(status),
        }
    }

    /// Whether the end of the connection is seen within a while.
    pub fn ends(&mut self) -> bool {
        let until = Instant::now() + PATIENCE;
        while self.connection.dead().is_none() && Instant::now() < until {
            let mut done = [Completion {
                tag: 0,
                status: CompletionStatus::Flushed,
            }];
            let _ = self.connection.poll(&mut done);
            let _ = self.connection.wait(Duration::from_millis(20));
        }
        self.connection.dead().is_some()
    }
}

#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, reason: Reason) -> String {
    let status = result.unwrap_err();
    assert_eq!(pmu_proto::reason::of(&status), Some(reason), "{status:?}");
    status.message().to_owned()
}

/// Asks until it is so.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let until = Instant::now() + PATIENCE;
    while !ask().await {
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
