//! Leases of a real etcd. It must be installed (Debian: etcd-server).
#![cfg(feature = "etcd")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by a panic"
)]

mod support;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use support::agents::{A, Agents, B, wait_until};

struct Etcd {
    directory: tempfile::TempDir,
    port: u16,
    peer_port: u16,
    process: Option<Child>,
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Etcd {
    fn start() -> Self {
        let mut etcd = Self {
            directory: tempfile::tempdir().unwrap(),
            port: free_port(),
            peer_port: free_port(),
            process: None,
        };
        etcd.up();
        etcd
    }

    fn up(&mut self) {
        let client = format!("http://127.0.0.1:{}", self.port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is not installed: apt-get install etcd-server");
        self.process = Some(process);
        wait_until("etcd answers", || {
            std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    fn down(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    fn section(&self) -> String {
        format!(
            "[election]\netcd = [\"http://127.0.0.1:{}\"]\nkey = \"/pmu/test\"\nttl_s = 2\n",
            self.port
        )
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[test]
fn s05_a_lease_of_etcd_goes_over_with_the_lead() {
    let etcd = Etcd::start();
    let mut agents = Agents::new(4096);
    agents.more.push_str(&etcd.section());
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    agents.signal(before.pid.unwrap(), Signal::KILL);
    agents.wait_for_leader_after(before.epoch);
    let second = agents.wait_for(B, "primary");
    // A host that is gone gives nothing back: its lease runs out.
    agents.kill_agent(B);
    agents.signal(second.pid.unwrap(), Signal::KILL);
    let took = agents.wait_for_leader_after(second.epoch);
    eprintln!("goes on after {took:?}; a lease lives for 2 s");
    agents.check();
}

#[test]
fn s05_without_etcd_nothing_is_taken_over_and_it_is_said() {
    let mut etcd = Etcd::start();
    let mut agents = Agents::new(4096);
    agents.more.push_str(&etcd.section());
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    etcd.down();
    // The primary goes on without its lease.
    wait_until("the lost lease is said", || {
        agents.log(A).contains("the lease is lost")
    });
    let acknowledged = agents.acknowledged();
    wait_until("the program goes on", || {
        agents.acknowledged() > acknowledged + 100
    });
    agents.signal(before.pid.unwrap(), Signal::KILL);
    wait_until("it is said", || {
        agents.log(B).contains("etcd doesn't answer")
    });
    assert_eq!(agents.status(B).unwrap().takeovers, 0);
    etcd.up();
    agents.wait_for_leader_after(before.epoch);
    agents.check();
}
