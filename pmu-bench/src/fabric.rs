//! One-sided writes and reads through the fabric alone: what the transport costs.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmu_fabric::soft::{SoftUnit, connect};
use pmu_fabric::{
    AttachedMemory, Chain, Completion, CompletionStatus, ConnectToken, Connection, ExposedExtent,
    ExposedRegion, FabricError, LocalSlice, Provider, UnitFabric, WindowAccess,
};
use pmu_pmem::{CreateOptions, LocalMemory, LocalOptions, PoolMemory, PoolSpec};

use crate::measure::Failure;
use crate::stream::Socket;

const ADDRESS: u64 = 0x7000_0000_0000;
const IN_FLIGHT: usize = 16;
const WAIT: Duration = Duration::from_secs(60);

/// A unit on volatile memory in this process, and a connection to it.
pub(crate) struct Bed {
    unit: SoftUnit,
    connection: Box<dyn Connection>,
    attached: AttachedMemory,
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the unit.
    Write,
    /// From the unit.
    Read,
}

impl Bed {
    /// Sets up for operations of at most `size` bytes.
    ///
    /// # Errors
    /// The fabric's.
    pub(crate) fn new(socket: Socket, folder: &Path, size: usize) -> Result<Self, Failure> {
        let unit = match socket {
            Socket::Tcp => SoftUnit::listen_tcp("127.0.0.1:0")?,
            Socket::Unix => SoftUnit::listen_unix(&folder.join("bed.sock").to_string_lossy())?,
        };
        let length = (size as u64).next_multiple_of(64 << 10);
        let pool = Arc::new(PoolMemory::create(
            &PoolSpec::memory(),
            CreateOptions {
                len: Some(length),
                ..CreateOptions::default()
            },
        )?);
        pool.zero(0, length)?;
        let method = unit.persistence_methods(&pool)[0];
        let extents = vec![ExposedExtent {
            address: ADDRESS,
            pool_offset: 0,
            length,
        }];
        unit.expose(&ExposedRegion {
            address: ADDRESS,
            pool,
            extents,
        })?;
        let token = ConnectToken::random()?;
        let id = unit.expect(token, method, WAIT)?;
        let provider = if socket == Socket::Tcp {
            Provider::SoftTcp
        } else {
            Provider::SoftUnix
        };
        let mut connection = connect(provider, &unit.address(), token, method, WAIT)?;
        unit.wait_connected(id, WAIT)?;
        let windows = unit.bind(
            id,
            ADDRESS,
            ADDRESS,
            length,
            WindowAccess {
                read: true,
                write: true,
            },
        )?;
        connection.set_windows(&windows)?;
        let options = LocalOptions {
            prefault: true,
            ..LocalOptions::default()
        };
        let attached = connection.attach(Arc::new(LocalMemory::allocate_with(size, options)?))?;
        Ok(Self {
            unit,
            connection: Box::new(connection),
            attached,
        })
    }

    /// Moves `count` pieces of `size` bytes with several in flight; MiB/s from the first post to the last completion.
    ///
    /// # Errors
    /// The fabric's, and any completion that is not a success.
    pub(crate) fn bandwidth(
        &mut self,
        way: Way,
        size: usize,
        count: usize,
    ) -> Result<f64, Failure> {
        let mut chain = Chain::with_capacity(1);
        let local = LocalSlice {
            memory: self.attached,
            offset: 0,
            length: size,
        };
        match way {
            Way::Write => chain.write(ADDRESS, local),
            Way::Read => chain.read(ADDRESS, local),
        };
        let mut completions = [Completion {
            tag: 0,
            status: CompletionStatus::Success,
        }; IN_FLIGHT];
        let (mut posted, mut done) = (0, 0);
        let begun = Instant::now();
        while done < count {
            while posted < count && posted - done < IN_FLIGHT {
                match self.connection.post(0, &chain) {
                    Ok(()) => posted += 1,
                    Err(FabricError::QueueFull) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            let reaped = self.connection.poll(&mut completions)?;
            if let Some(bad) = completions[..reaped]
                .iter()
                .find(|one| one.status != CompletionStatus::Success)
            {
                return Err(format!("a chain ended with {:?}", bad.status).into());
            }
            done += reaped;
            if reaped == 0 {
                self.connection.wait(WAIT)?;
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        Ok((size * count) as f64 / f64::from(1 << 20) / seconds)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.unit.shut_down();
    }
}
