//! What a program with its state in an arena is handed: from snapshots and a log that a client has written, by a real agent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by a panic"
)]

mod support;

use std::num::NonZeroU32;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use pmu_auth::Role;
use pmu_client::snapshot::{
    Arena, ArenaOptions, SnapshotOptions, SnapshotRegion, Snapshots, capacity_bytes_for,
};
use pmu_client::{LogPosition, OpenOptions, Unit};
use support::agents::wait_until;
use support::{Pool, Site};

const ARENA: usize = 2 << 20;
const PAGE: usize = 4096;
const MARKS: [u64; 2] = [0x0dd0_0000_3333_0001, 0x0dd0_0000_3333_0002];

/// A unit, on which a program has left two snapshots and four records.
struct Left {
    site: Site,
    unit: Unit,
    /// The arena's bytes at each snapshot.
    states: Vec<Vec<u8>>,
    address: usize,
    /// What each snapshot covers.
    covered: Vec<LogPosition>,
}

impl Left {
    fn new() -> Self {
        let capacity = capacity_bytes_for(ARENA as u64);
        let mut site = Site::new(Pool::File, 5 * capacity + (64 << 20));
        site.log("log", 1 << 20);
        site.sets("state", 3, capacity);
        for name in ["app", "backup"] {
            let identity = site.identity(name, Role::Client);
            identity.save(&site.path(name)).unwrap();
        }
        let unit = site.client("app");
        let mut left = Self {
            site,
            unit,
            states: Vec::new(),
            address: 0,
            covered: Vec::new(),
        };
        left.write();
        left
    }

    fn write(&mut self) {
        let open = OpenOptions::new();
        let mut log = self.unit.open_log_primary("log", &open).unwrap();
        let arena = Arc::new(Arena::create(&ArenaOptions::plain(ARENA)).unwrap());
        let region = SnapshotRegion::One {
            unit: self.unit.clone(),
            region: "state".into(),
        };
        let options = SnapshotOptions::new().full_every(NonZeroU32::new(3).unwrap());
        let snapshots = Snapshots::open(Arc::clone(&arena), region, &options).unwrap();
        for (index, mark) in MARKS.iter().enumerate() {
            for _ in 0..2 {
                log.append(format!("record {index}").as_bytes()).unwrap();
            }
            arena.store_u64((7 + index) * PAGE, *mark).unwrap();
            arena.store_u64(100 * PAGE, *mark >> 8).unwrap();
            let covered = log.submitted();
            let report = snapshots.begin_covering(covered).unwrap().wait().unwrap();
            assert_eq!(report.is_full(), index == 0);
            self.covered.push(covered);
            let words = (0..ARENA).step_by(8);
            let bytes = words.flat_map(|at| arena.load_u64(at).unwrap().to_le_bytes());
            self.states.push(bytes.collect());
        }
        self.address = arena.address();
    }

    /// Clears what the second snapshot covers.
    fn clear(&self) {
        let open = OpenOptions::new();
        let mut backup = self.unit.open_log_backup("log", true, &open).unwrap();
        assert_eq!(backup.read_unread(1 << 20).unwrap().len(), 4);
        backup.clear_handed_out().unwrap();
        assert_eq!(backup.position(), self.covered[1]);
    }

    /// Inverts a bit of the second snapshot; once more mends it.
    fn damage(&self, at: Option<u64>) -> u64 {
        let pool = self.site.path("pool");
        let at = at.unwrap_or_else(|| {
            let bytes = std::fs::read(&pool).unwrap();
            let mark = MARKS[1].to_le_bytes();
            let at = bytes.windows(8).position(|found| found == mark);
            at.unwrap() as u64
        });
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(pool)
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        at
    }

    /// An agent that takes over, and hands what it has to a program that keeps it.
    fn agent(&self, name: &str) -> Agent {
        let folder = self.site.path(name);
        std::fs::create_dir(&folder).unwrap();
        let script = format!(
            "cat $PMU_AGENT_STATE >{0}/state; cat $PMU_AGENT_TAIL >{0}/tail; env >{0}/new; mv {0}/new {0}/env; exec sleep 1000",
            folder.display()
        );
        let text = format!(
            "identity = {:?}\nunits = [{:?}]\nsocket = {:?}\nlisten = \"127.0.0.1:0\"\n\
             [peer]\nname = \"backup\"\naddress = \"127.0.0.1:9\"\n\
             [regions]\nlog = \"log\"\nsets = \"state\"\nbeat = \"none\"\n\
             [watch]\ninterval_ms = 20\nintervals = 10\n[follow]\nclear = \"nothing\"\n\
             [program]\ncommand = [\"/bin/sh\", \"-c\", {script:?}]\nspeaks = false\n",
            self.site.path("app"),
            self.site.address(),
            folder.join("socket"),
        );
        let config = folder.join("agent.toml");
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_pmu-agent"))
            .args(["run", "--role", "primary", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Agent { folder, process }
    }
}

struct Agent {
    folder: PathBuf,
    process: Child,
}

impl Agent {
    fn said(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// What the program found in its environment, and the state as it was handed over.
    fn handed(&self) -> (String, Vec<u8>, Vec<u8>) {
        let read = |name: &str| std::fs::read(self.folder.join(name)).unwrap();
        wait_until("the program has what it was handed", || {
            self.folder.join("env").exists()
        });
        let environment = String::from_utf8(read("env")).unwrap();
        (environment, read("state"), read("tail"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.said());
        }
        // It ends its program with it.
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

fn records(tail: &[u8]) -> usize {
    tail.windows(7).filter(|found| found == b"record ").count()
}

#[test]
fn s05_the_arena_is_handed_over_as_its_newest_whole_snapshot_has_it() {
    let left = Left::new();
    let place = format!("{} {ARENA} plain", left.address);
    let check = |agent: &Agent, set: usize, tail_records: usize| {
        let (environment, state, tail) = agent.handed();
        let covered = left.covered[set - 1];
        let label = ["snap full", "snap on 1 of 1"][set - 1];
        for line in [
            format!("PMU_AGENT_STATE_SET={set}\n"),
            format!("PMU_AGENT_STATE_LABEL={label} @{covered}\n"),
            format!("PMU_AGENT_STATE_ARENA={place}\n"),
        ] {
            assert!(environment.contains(&line), "{line}: {environment}");
        }
        assert!(state == left.states[set - 1], "other bytes than set {set}");
        assert_eq!(records(&tail), tail_records);
    };
    check(&left.agent("whole"), 2, 0);
    // The newest can't be read: the one before, and the records behind it.
    let at = left.damage(None);
    check(&left.agent("older"), 1, 2);
    left.damage(Some(at));
    // Cleared behind the newest: that is all there is.
    left.clear();
    check(&left.agent("cleared"), 2, 0);
}

#[test]
fn s05_no_program_is_started_where_records_behind_its_set_are_gone() {
    let left = Left::new();
    left.clear();
    let at = left.damage(None);
    let agent = left.agent("gap");
    wait_until("the takeover is refused", || {
        agent.said().contains("which is cleared up to")
    });
    let said = agent.said();
    assert!(said.contains("newest set that can be read, 1,"), "{said}");
    assert!(!agent.folder.join("env").exists(), "{said}");
    drop(agent);
    // Everything was kept.
    left.damage(Some(at));
    let (_, state, _) = left.agent("mended").handed();
    assert!(state == left.states[1]);
}
