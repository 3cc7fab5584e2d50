//! A site for tests: an authority, identities, a real unit in this process, and programs that reach it through real TLS and the soft fabric.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared by tests, each of which uses a part"
)]

use std::path::PathBuf;
use std::time::Duration;

use pmu_auth::{Authority, HostName, Identity, PrincipalName, Role, Validity};
use pmu_client::{ConnectOptions, Unit};
use pmu_proto::v1::admin_client::AdminClient;
use pmu_proto::v1::create_region_request::Room;
use pmu_proto::v1::{self};
use pmu_server::cli::InitArguments;
use pmu_server::config::{ByteSize, Config};
use pmu_server::pools;
use pmu_server::unit::{Unit as Server, UnitHandle};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

pub mod agents;

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const READ: u32 = 1;
pub const WRITE: u32 = 2;
pub const APPEND: u32 = 4;
pub const CLEAR: u32 = 8;
pub const MANAGE: u32 = 16;
pub const ALL: u32 = READ | WRITE | APPEND | CLEAR | MANAGE;

pub fn name(text: &str) -> PrincipalName {
    PrincipalName::new(text).unwrap()
}

/// What the pool lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    Memory,
    File,
}

pub struct Site {
    pub directory: tempfile::TempDir,
    pub authority: Authority,
    pub runtime: Runtime,
    pool: Pool,
    server: Option<UnitHandle>,
    admin: Option<AdminClient<Channel>>,
}

impl Site {
    /// A unit that a manager has initialised, on both soft providers.
    pub fn new(pool: Pool, pool_bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca"), &name("site")).unwrap();
        let host: HostName = "127.0.0.1".parse().unwrap();
        let unit = authority
            .issue(&name("unit-1"), Role::Unit, &[host], Validity::days(1))
            .unwrap();
        unit.save(&directory.path().join("unit")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let mut site = Self {
            directory,
            authority,
            runtime,
            pool,
            server: None,
            admin: None,
        };
        if pool == Pool::File {
            let arguments = InitArguments {
                pool: site.path("pool"),
                medium: pmu_format::Medium::File,
                size: Some(ByteSize(pool_bytes)),
                table_size: ByteSize(64 << 10),
                force: false,
            };
            pools::init(&arguments, &mut |_, _| {}).unwrap();
        }
        site.start(pool_bytes);
        site.unlock();
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn start(&mut self, pool_bytes: u64) {
        let pool = match self.pool {
            Pool::Memory => format!("medium = \"memory\"\nsize = {pool_bytes}"),
            Pool::File => format!("medium = \"file\"\npath = {:?}", self.path("pool")),
        };
        let text = format!(
            "[unit]\nname = \"unit-1\"\nidentity = {:?}\n[control]\nlisten = \"127.0.0.1:0\"\n\
             [[data]]\nprovider = \"soft-tcp\"\nlisten = \"127.0.0.1:0\"\n\
             [[data]]\nprovider = \"soft-unix\"\npath = {:?}\n\
             [[pool]]\nname = \"main\"\n{pool}\n",
            self.path("unit"),
            self.path("data.socket"),
        );
        let config = Config::parse(&text).unwrap();
        self.server = Some(self.runtime.block_on(Server::start(config)).unwrap());
        let identity = self.identity("boss", Role::Manager);
        let address = self.address().parse().unwrap();
        let channel = self
            .runtime
            .block_on(pmu_auth::connect(&address, &identity, None, PATIENCE))
            .unwrap();
        self.admin = Some(AdminClient::new(channel));
    }

    pub fn unlock(&mut self) {
        let admin = self.admin.as_mut().unwrap();
        self.runtime
            .block_on(admin.initialize(v1::InitializeRequest {}))
            .unwrap();
    }

    /// Stops the unit: every connection ends.
    pub fn stop(&mut self) {
        self.admin = None;
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
    }

    pub fn address(&self) -> String {
        self.server.as_ref().unwrap().control_address().to_string()
    }

    pub fn identity(&self, who: &str, role: Role) -> Identity {
        self.authority
            .issue(&name(who), role, &[], Validity::days(1))
            .unwrap()
    }

    pub fn client(&self, who: &str) -> Unit {
        let identity = self.identity(who, Role::Client);
        Unit::connect(
            &self.address(),
            &identity,
            &ConnectOptions::with_timeout(PATIENCE),
        )
        .unwrap()
    }

    pub fn create(&mut self, request: v1::CreateRegionRequest) {
        let admin = self.admin.as_mut().unwrap();
        self.runtime.block_on(admin.create_region(request)).unwrap();
    }

    fn request(
        &self,
        region: &str,
        mode: v1::Mode,
        grants: &[(&str, u32)],
    ) -> v1::CreateRegionRequest {
        let need = match self.pool {
            Pool::Memory => v1::Need::Volatile,
            Pool::File => v1::Need::Durable,
        };
        let grant = |(principal, rights): &(&str, u32)| v1::Grant {
            principal: (*principal).into(),
            rights: *rights,
        };
        v1::CreateRegionRequest {
            name: region.into(),
            mode: mode.into(),
            need: need.into(),
            grants: grants.iter().map(grant).collect(),
            ..Default::default()
        }
    }

    /// An overwrite region that `app` may use.
    pub fn sets(&mut self, region: &str, sets_kept: u32, capacity_bytes: u64) {
        let request = v1::CreateRegionRequest {
            sets_kept,
            room: Some(Room::CapacityBytes(capacity_bytes)),
            ..self.request(
                region,
                v1::Mode::Overwrite,
                &[("app", READ | WRITE), ("backup", READ | WRITE)],
            )
        };
        self.create(request);
    }

    /// A log that `app` and `backup` may use.
    pub fn log(&mut self, region: &str, size_bytes: u64) {
        let rights = READ | APPEND | CLEAR;
        let request = v1::CreateRegionRequest {
            room: Some(Room::SizeBytes(size_bytes)),
            ..self.request(
                region,
                v1::Mode::Append,
                &[("app", rights), ("backup", rights)],
            )
        };
        self.create(request);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop();
    }
}
