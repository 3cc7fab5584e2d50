//! Configurations that can't work are refused as a whole, before anything is opened.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by a panic"
)]

use std::process::{Command, Output};

const GOOD: &str = "identity = \"/i\"\nunits = [\"u:1\"]\nsocket = \"/s\"\nlisten = \"127.0.0.1:1\"\n\
                    [peer]\nname = \"b\"\naddress = \"b:1\"\n[regions]\nlog = \"l\"\nsets = \"s\"\n[program]\ncommand = [\"/p\"]\n";

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pmu-agent"))
        .args(arguments)
        .output()
        .unwrap()
}

fn check(text: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.toml");
    std::fs::write(&path, text).unwrap();
    let output = agent(&["check-config", "--config", path.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said)
}

#[test]
fn s05_a_good_configuration_is_good() {
    assert_eq!(check(GOOD), (Some(0), String::new()));
}

#[test]
fn s05_configurations_that_cannot_work_are_refused_by_name() {
    for (from, to, word) in [
        ("[\"u:1\"]", "[]", "units"),
        ("socket", "sockets", "sockets"),
        ("log = \"l\"", "log = \"a b\"", "regions.log"),
        ("log = \"l\"\nsets = \"s\"", "", "regions"),
        ("log = \"l\"", "beat = \"log\"", "regions.beat"),
        ("[\"/p\"]", "[]", "program.command"),
        ("[\"/p\"]", "[\"/p\"]\nstart_attempts = 0", "start_attempts"),
        ("[\"/p\"]", "[\"/p\"]\nspeaks = false", "regions.beat"),
        ("[\"/p\"]", "[\"/p\"]\n[watch]\nintervals = 1", "intervals"),
        (
            "[\"/p\"]",
            "[\"/p\"]\n[snapshot]\nevery_ms = 0",
            "snapshot.every_ms",
        ),
        ("[\"/p\"]", "[\"/p\"]\n[follow]\nevery_ms = 0", "follow"),
        ("listen = \"127.0.0.1:1\"\n", "", "listen"),
        ("name = \"b\"", "name = \"-\"", "peer.name"),
        ("socket", "transport = \"smoke\"\nsocket", "transport"),
    ] {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from}");
        let (code, said) = check(&text);
        assert_eq!(code, Some(1), "{to}: {said}");
        assert!(said.contains(word), "{to}: {said}");
    }
}

/// What follows `[election]` and a key, and the word by which it is refused; none for what is good.
#[cfg(feature = "etcd")]
const ELECTIONS: [(&str, Option<&str>); 18] = [
    ("etcd = [\"http://e:2379\", \"http://[::1]:2379/\"]", None),
    (
        "etcd = [\"https://e:2379\"]\n[election.tls]\nca = \"/c\"",
        None,
    ),
    (
        "etcd = [\"https://e:2379\"]\nuser = \"u\"\npassword_file = \"/p\"\n[election.tls]\nca = \"/c\"\ncert = \"/d\"\nkey = \"/k\"",
        None,
    ),
    ("etcd = []", Some("election")),
    ("etcd = [\"e:2379\"]", Some("election.etcd")),
    ("etcd = [\"ftp://e:2379\"]", Some("election.etcd")),
    (
        "etcd = [\"https://e\"]\n[election.tls]\nca = \"/c\"",
        Some("election.etcd"),
    ),
    (
        "etcd = [\"https://u:p@e:2379\"]\n[election.tls]\nca = \"/c\"",
        Some("election.etcd"),
    ),
    ("etcd = [\"http://e:2379/v3\"]", Some("election.etcd")),
    (
        "etcd = [\"https://e:1\", \"http://f:1\"]\n[election.tls]\nca = \"/c\"",
        Some("election.etcd"),
    ),
    ("etcd = [\"https://e:2379\"]", Some("election.tls.ca")),
    (
        "etcd = [\"http://e:2379\"]\n[election.tls]\nca = \"/c\"",
        Some("election.tls:"),
    ),
    (
        "etcd = [\"https://e:2379\"]\n[election.tls]\ncert = \"/c\"",
        Some("`ca`"),
    ),
    (
        "etcd = [\"https://e:2379\"]\n[election.tls]\nca = \"/c\"\ncert = \"/d\"",
        Some("election.tls.key"),
    ),
    (
        "etcd = [\"https://e:2379\"]\n[election.tls]\nca = \"/c\"\nkey = \"/d\"",
        Some("election.tls.cert"),
    ),
    (
        "etcd = [\"https://e:2379\"]\nuser = \"u\"\n[election.tls]\nca = \"/c\"",
        Some("election.password_file"),
    ),
    (
        "etcd = [\"https://e:2379\"]\npassword_file = \"/p\"\n[election.tls]\nca = \"/c\"",
        Some("election.user"),
    ),
    (
        "etcd = [\"http://e:2379\"]\nuser = \"u\"\npassword_file = \"/p\"",
        Some("election.user"),
    ),
];

#[cfg(feature = "etcd")]
#[test]
fn s05_elections_that_cannot_work_are_refused_by_their_key() {
    for (more, refused) in ELECTIONS {
        let (code, said) = check(&format!("{GOOD}[election]\nkey = \"/l\"\n{more}\n"));
        match refused {
            None => assert_eq!((code, said.as_str()), (Some(0), ""), "{more}"),
            Some(word) => {
                assert_eq!(code, Some(1), "{more}: {said}");
                assert!(said.contains(word), "{more}: {said}");
            }
        }
    }
}

/// Before the agent opens its socket, or connects to anything.
#[cfg(feature = "etcd")]
#[test]
fn s05_an_agent_does_not_start_with_files_for_etcd_that_are_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let authority =
        pmu_auth::Authority::create(&directory.path().join("ca"), &"site".parse().unwrap());
    let identity = authority.unwrap().issue(
        &"a".parse().unwrap(),
        pmu_auth::Role::Client,
        &[],
        pmu_auth::Validity::days(1),
    );
    let (home, socket) = (directory.path().join("a"), directory.path().join("socket"));
    identity.unwrap().save(&home).unwrap();
    let election = "[election]\nkey = \"/l\"\netcd = [\"https://e:2379\"]\n[election.tls]\nca = \"/nowhere\"\n";
    let text = GOOD.replacen("\"/i\"", &format!("{home:?}"), 1).replacen(
        "\"/s\"",
        &format!("{socket:?}"),
        1,
    );
    let path = directory.path().join("agent.toml");
    std::fs::write(&path, format!("{text}{election}")).unwrap();
    let output = agent(&[
        "run",
        "--role",
        "standby",
        "--config",
        path.to_str().unwrap(),
    ]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("election.tls.ca") && said.contains("/nowhere"),
        "{said}"
    );
    assert!(!socket.exists());
}

#[test]
fn s05_arguments_that_cannot_work_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.toml");
    std::fs::write(&path, GOOD).unwrap();
    let config = path.to_str().unwrap();
    let output = agent(&[
        "run", "--role", "standby", "--adopt", "77", "--config", config,
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("--role primary")
    );
    assert_eq!(
        agent(&["run", "--role", "king", "--config", config])
            .status
            .code(),
        Some(2)
    );
    assert_eq!(agent(&["status"]).status.code(), Some(2));
    let nobody = agent(&["status", "--socket", "/nowhere"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        String::from_utf8(nobody.stderr)
            .unwrap()
            .contains("/nowhere")
    );
}

#[test]
fn s05_a_peer_of_the_own_name_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join("ca");
    let authority = pmu_auth::Authority::create(&folder, &"site".parse().unwrap()).unwrap();
    let issue = |name: &str| {
        let home = directory.path().join(name);
        let (role, days) = (pmu_auth::Role::Client, pmu_auth::Validity::days(1));
        let identity = authority.issue(&name.parse().unwrap(), role, &[], days);
        identity.unwrap().save(&home).unwrap();
        GOOD.replacen("\"/i\"", &format!("{home:?}"), 1)
    };
    assert_eq!(check(&issue("a")), (Some(0), String::new()));
    let (text, socket) = (issue("b"), directory.path().join("socket"));
    let text = text.replacen("\"/s\"", &format!("{socket:?}"), 1);
    let (code, said) = check(&text);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("peer.name: b "), "{said}");
    let path = directory.path().join("agent.toml");
    std::fs::write(&path, text).unwrap();
    let config = path.to_str().unwrap();
    let output = agent(&["run", "--role", "standby", "--config", config]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("peer.name: b ") && !socket.exists(), "{said}");
}
