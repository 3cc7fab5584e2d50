//! What a user would pick today, run beside us on the same file system (Ceph: measured before).

pub(crate) mod ceph;
pub(crate) mod etcd;
pub(crate) mod redis;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::measure::Failure;

/// How long a peer may take to answer after its start.
const START_WITHIN: Duration = Duration::from_secs(20);

/// A server process that ends with this value.
pub(crate) struct Server {
    child: Child,
    /// Where it listens on 127.0.0.1.
    pub(crate) port: u16,
}

impl Server {
    /// Starts a program on a free port and waits until `ready` is happy with it.
    fn start(
        program: &str,
        package: &str,
        folder: &Path,
        arguments: impl Fn(u16) -> Vec<String>,
        mut ready: impl FnMut(u16) -> bool,
    ) -> Result<Self, Failure> {
        let port = free_port()?;
        let log = std::fs::File::create(folder.join(format!("{program}.log")))?;
        let child = Command::new(program)
            .args(arguments(port))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{program}: {error} (Debian: apt-get install {package})"))?;
        let mut server = Self { child, port };
        let deadline = Instant::now() + START_WITHIN;
        while !ready(port) {
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("{program} ended at once: {status}").into());
            }
            if Instant::now() > deadline {
                return Err(format!("{program} does not answer").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
