//! Several real units in this process, on file pools, with one authority; and regions that are spread over them.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared by tests, each of which uses a part"
)]

use std::path::PathBuf;

use pmu_auth::{Authority, HostName, Identity, Role, Validity};
use pmu_client::{ConnectOptions, Layout, Spread};
use pmu_format::{Member, Membership, SHARE_TRAILER_BYTES, SpreadId};
use pmu_proto::v1::admin_client::AdminClient;
use pmu_proto::v1::create_region_request::Room;
use pmu_proto::v1::{self};
use pmu_server::cli::InitArguments;
use pmu_server::config::{ByteSize, Config};
use pmu_server::distributor::process::Process;
use pmu_server::pools;
use pmu_server::unit::{Unit as Server, UnitHandle};
use pmu_stripe::Placement;
use tokio::runtime::Runtime;

use crate::support::{APPEND, CLEAR, PATIENCE, READ, WRITE, name};

pub struct Units {
    pub directory: tempfile::TempDir,
    authority: Authority,
    runtime: Runtime,
    servers: Vec<Option<UnitHandle>>,
    pub addresses: Vec<String>,
    /// The section `[distributor]` of every unit that starts from now on, without its identity.
    pub distributor: Option<String>,
    pub subsegment_bytes: u64,
}

impl Units {
    pub fn new(count: usize, pool_bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca"), &name("site")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let mut units = Self {
            directory,
            authority,
            runtime,
            servers: Vec::new(),
            addresses: vec!["127.0.0.1:0".to_owned(); count],
            distributor: None,
            subsegment_bytes: 64 << 10,
        };
        for index in 0..count {
            let host: HostName = "127.0.0.1".parse().unwrap();
            let identity = units
                .authority
                .issue(&name(&unit(index)), Role::Unit, &[host], Validity::days(1))
                .unwrap();
            identity.save(&units.path(&unit(index))).unwrap();
            let arguments = InitArguments {
                pool: units.pool(index),
                medium: pmu_format::Medium::File,
                size: Some(ByteSize(pool_bytes)),
                table_size: ByteSize(64 << 10),
                force: false,
            };
            pools::init(&arguments, &mut |_, _| {}).unwrap();
            units.servers.push(None);
            units.start(index);
        }
        units
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn pool(&self, index: usize) -> PathBuf {
        self.path(&format!("pool-{index}"))
    }

    /// Starts a unit where it was before, and unlocks it.
    pub fn start(&mut self, index: usize) {
        let text = format!(
            "[unit]\nname = {:?}\nidentity = {:?}\n[control]\nlisten = {:?}\n\
             [[data]]\nprovider = \"soft-unix\"\npath = {:?}\n\
             [[pool]]\nname = \"main\"\nmedium = \"file\"\npath = {:?}\n",
            unit(index),
            self.path(&unit(index)),
            self.addresses[index],
            self.path(&format!("data-{index}")),
            self.pool(index),
        );
        let section = self.distributor.iter();
        let section: String = section
            .map(|keys| {
                let identity = self.path("distributor");
                format!("[distributor]\nidentity = {identity:?}\n{keys}\n")
            })
            .collect();
        let config = Config::parse(&(text + &section)).unwrap();
        let server = self.serve(&config);
        self.addresses[index] = server.control_address().to_string();
        self.servers[index] = Some(server);
        self.admin(index, |mut admin| async move {
            admin.initialize(v1::InitializeRequest {}).await.unwrap();
        });
    }

    /// A unit's port may have been taken by somebody else's connection while it was down: that is over soon.
    fn serve(&self, config: &Config) -> UnitHandle {
        for _ in 0..100 {
            match self.runtime.block_on(Server::start(config.clone())) {
                Ok(server) => return server,
                Err(error) if format!("{error:?}").contains("address is in use") => {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        panic!("the port stays taken");
    }

    /// Starts all units again, each as a distributor too, which acts as the principal `distributor`.
    pub fn distribute(&mut self, keys: &str) {
        let identity = self.identity("distributor", Role::Client);
        identity.save(&self.path("distributor")).unwrap();
        self.distributor = Some(keys.to_owned());
        for index in 0..self.servers.len() {
            self.stop(index);
            self.start(index);
        }
    }

    /// A distributor in a process of its own (run in this one), for the regions and principals that `regions` says in TOML.
    pub fn process(&self, regions: &str) -> (Runtime, Process) {
        self.process_identities();
        let config = Config::parse(&self.process_config(regions)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let process = runtime.block_on(Process::start(config, None)).unwrap();
        (runtime, process)
    }

    /// Makes them once.
    pub fn process_identities(&self) {
        if self.path("spreader").exists() {
            return;
        }
        let host: HostName = "127.0.0.1".parse().unwrap();
        let own = self
            .authority
            .issue(&name("spreader"), Role::Unit, &[host], Validity::days(1))
            .unwrap();
        own.save(&self.path("spreader")).unwrap();
        let identity = self.identity("distributor", Role::Client);
        identity.save(&self.path("spreader-client")).unwrap();
    }

    pub fn process_config(&self, regions: &str) -> String {
        format!(
            "[unit]\nname = \"spreader\"\nidentity = {:?}\n[control]\nlisten = \"127.0.0.1:0\"\n\
             [[data]]\nprovider = \"soft-tcp\"\nlisten = \"127.0.0.1:0\"\n\
             [distributor]\nidentity = {:?}\nstaging = \"1MiB\"\nunits = {:?}\n{regions}",
            self.path("spreader"),
            self.path("spreader-client"),
            self.addresses,
        )
    }

    /// Every connection of the unit ends.
    pub fn stop(&mut self, index: usize) {
        if let Some(server) = self.servers[index].take() {
            self.runtime.block_on(server.stop());
        }
    }

    pub fn admin<F: Future>(
        &self,
        index: usize,
        work: impl FnOnce(AdminClient<tonic::transport::Channel>) -> F,
    ) -> F::Output {
        let identity = self.identity("boss", Role::Manager);
        let address = self.addresses[index].parse().unwrap();
        self.runtime.block_on(async {
            let channel = pmu_auth::connect(&address, &identity, None, PATIENCE)
                .await
                .unwrap();
            work(AdminClient::new(channel)).await
        })
    }

    pub fn identity(&self, who: &str, role: Role) -> Identity {
        self.authority
            .issue(&name(who), role, &[], Validity::days(1))
            .unwrap()
    }

    /// A region over the first units, as the manager makes it.
    pub fn spread(&self, region: &str, layout: &str, units_min: u8, capacity_bytes: u64) {
        let layout: Layout = layout.parse().unwrap();
        let subsegment_bytes = self.subsegment_bytes;
        let share = Placement::new(layout, capacity_bytes, subsegment_bytes)
            .unwrap()
            .unit_len_max();
        let room = Room::CapacityBytes(SHARE_TRAILER_BYTES as u64 + share);
        let request = v1::CreateRegionRequest {
            name: region.into(),
            mode: v1::Mode::Overwrite.into(),
            sets_kept: 2,
            room: Some(room),
            ..Default::default()
        };
        self.create(layout, units_min, subsegment_bytes, READ | WRITE, &request);
    }

    /// A log over the first units, with members of this length.
    pub fn spread_log(&self, region: &str, layout: &str, units_min: u8, size_bytes: u64) {
        let request = v1::CreateRegionRequest {
            name: region.into(),
            mode: v1::Mode::Append.into(),
            room: Some(Room::SizeBytes(size_bytes)),
            ..Default::default()
        };
        let layout = layout.parse().unwrap();
        self.create(layout, units_min, 64 << 10, READ | APPEND | CLEAR, &request);
    }

    /// A log on one unit alone.
    pub fn log_on(&self, index: usize, region: &str, size_bytes: u64) {
        let grant = |principal: &str| v1::Grant {
            principal: principal.into(),
            rights: READ | APPEND | CLEAR,
        };
        let request = v1::CreateRegionRequest {
            name: region.into(),
            mode: v1::Mode::Append.into(),
            need: v1::Need::Durable.into(),
            room: Some(Room::SizeBytes(size_bytes)),
            grants: vec![grant("app"), grant("backup")],
            ..Default::default()
        };
        self.admin(index, |mut admin| async move {
            admin.create_region(request).await.unwrap();
        });
    }

    fn create(
        &self,
        layout: Layout,
        units_min: u8,
        subsegment_bytes: u64,
        rights: u32,
        request: &v1::CreateRegionRequest,
    ) {
        let members: Vec<_> = (0..layout.units())
            .map(|index| Member {
                unit: name(&unit(index)),
                address: self.addresses[index].clone(),
            })
            .collect();
        for index in 0..layout.units() {
            let membership = Membership {
                id: SpreadId(*b"one of the tests"),
                generation: 1,
                layout: layout.to_bytes(),
                units_min,
                own_index: index as u8,
                subsegment_bytes,
                members: members.clone(),
            };
            let grant = |principal: &str| v1::Grant {
                principal: principal.into(),
                rights,
            };
            let request = v1::CreateRegionRequest {
                need: v1::Need::Durable.into(),
                grants: vec![
                    grant("app"),
                    grant("backup"),
                    grant("distributor"),
                    grant("boss"),
                ],
                attributes: membership.encode().unwrap(),
                ..request.clone()
            };
            self.admin(index, |mut admin| async move {
                admin.create_region(request).await.unwrap();
            });
        }
    }

    /// Takes a principal's rights on one member away.
    pub fn revoke(&self, index: usize, region: &str, principal: &str) {
        let request = v1::RevokeGrantRequest {
            region: region.into(),
            principal: principal.into(),
        };
        self.admin(index, |mut admin| async move {
            admin.revoke_grant(request).await.unwrap();
        });
    }

    /// The region as a program finds it through any unit that answers.
    pub fn find(&self, who: &str, region: &str) -> Spread {
        let seeds: Vec<_> = self.addresses.iter().map(String::as_str).collect();
        let identity = self.identity(who, Role::Client);
        Spread::find(
            &seeds,
            region,
            &identity,
            &ConnectOptions::with_timeout(PATIENCE),
        )
        .unwrap()
    }
}

pub fn unit(index: usize) -> String {
    format!("unit-{}", index + 1)
}

impl Drop for Units {
    fn drop(&mut self) {
        for index in 0..self.servers.len() {
            self.stop(index);
        }
    }
}
