//! The OCF resource agent under Debian's ocf-tester. It must be installed (Debian: resource-agents), and libxml2-utils with it.
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
