//! The OCF resource agent under Debian's ocf-tester, and the unit of systemd under its verifier. They must be installed (Debian: resource-agents, systemd),
//! and libxml2-utils with them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by a panic"
)]

mod support;

use std::path::Path;
use std::process::Command;

use support::agents::{A, Agents};

#[test]
fn s05_the_resource_agent_passes_ocf_tester() {
    let mut agents = Agents::new(4096);
    agents.watch.push_str("\nautomatic = false");
    let config = agents.config(A);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("ocf-tester")
        .args(["-v", "-n", "pmu-agent"])
        .args(["-o", &format!("config={}", config.display())])
        .args(["-o", &format!("binary={}", env!("CARGO_BIN_EXE_pmu-agent"))])
        .args(["-o", &format!("log={}", agents.path("ocf.log").display())])
        .arg(root.join("packaging/ocf/pmu-agent"))
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("OCF_ROOT", "/usr/lib/ocf")
        .output()
        .expect("ocf-tester is not installed: apt-get install resource-agents");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let log = std::fs::read_to_string(agents.path("ocf.log")).unwrap_or_default();
    assert!(output.status.success(), "{said}\n{log}");
    assert!(said.contains("passed all tests"), "{said}\n{log}");
    // It was promoted on the way, so that the program has worked.
    assert!(agents.acknowledged() > 0, "{said}\n{log}");
    assert!(agents.status(A).is_none(), "it was stopped at the end");
}

#[test]
fn s05_the_unit_of_systemd_is_sound() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("packaging/pmu-agent.service")).unwrap();
    // The commands must be there, and are as they were built.
    let built = text.replace("/usr/bin/pmu-agent", env!("CARGO_BIN_EXE_pmu-agent"));
    assert_ne!(text, built);
    let folder = tempfile::tempdir().unwrap();
    let verify = |text: &str| {
        let unit = folder.path().join("pmu-agent.service");
        std::fs::write(&unit, text).unwrap();
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(unit)
            .output()
            .expect("systemd-analyze is not installed: apt-get install systemd");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    let (good, said) = verify(&built);
    assert!(good && !said.contains("pmu-agent.service"), "{said}");
    // The verifier finds what is wrong.
    let (_, said) = verify(&built.replace("KillMode=mixed", "KillMode=sometimes"));
    assert!(said.contains("pmu-agent.service"), "{said}");
}
