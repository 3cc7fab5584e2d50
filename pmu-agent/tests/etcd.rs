//! Leases of a real etcd. It must be installed (Debian: etcd-server).
#![cfg(feature = "etcd")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by a panic"
)]

mod support;

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pmu_agent::config::{Election, ElectionTls};
use pmu_agent::etcd::gateway::Gateway;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, date_time_ymd,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::agents::{A, Agents, B, free_port, wait_until};

/// An authority of the tests' own, as a site's other services have one.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "etcd authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn save(&self, directory: &Path, name: &str) -> PathBuf {
        write(directory, &format!("{name}.pem"), &self.pem, 0o644)
    }

    /// Certificate and key of one that may be server and client: etcd's gateway shows the server's certificate to etcd itself.
    fn issue(&self, directory: &Path, name: &str, host: &str, until: i32) -> [PathBuf; 2] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        // An etcd with users refuses certificates with a common name at its gateway: it would not take that for the user.
        params.distinguished_name = DistinguishedName::new();
        if name != NAMELESS {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        [
            write(directory, &format!("{name}.pem"), &certificate, 0o644),
            write(
                directory,
                &format!("{name}.key"),
                &key.serialize_pem(),
                0o600,
            ),
        ]
    }
}

const FAR: i32 = 2090;
const NAMELESS: &str = "nameless";

fn write(directory: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

/// What the tests over TLS have in common: the files, and an etcd that takes nobody without a certificate of the authority.
struct Secured {
    authority: Authority,
    ca: PathBuf,
    client: [PathBuf; 2],
    etcd: Etcd,
}

impl Secured {
    fn start() -> Self {
        let secured = Self::with_server("127.0.0.1", FAR);
        wait_until("etcd has a leader", || ask(&secured.election()).is_ok());
        secured
    }

    /// Of an etcd whose certificate is for this host, and good until that year.
    fn with_server(host: &str, until: i32) -> Self {
        let mut etcd = Etcd::new();
        let authority = Authority::new();
        let directory = etcd.directory.path().to_owned();
        let ca = authority.save(&directory, "ca");
        let [cert, key] = authority.issue(&directory, "server", host, until);
        let client = authority.issue(&directory, "agent", "agent.example", FAR);
        etcd.tls = Some([ca.clone(), cert, key]);
        etcd.up();
        let secured = Self {
            authority,
            ca,
            client,
            etcd,
        };
        // It listens before it serves.
        wait_until("etcd shakes hands", || {
            let asked = ask(&secured.election());
            !asked.is_err_and(|error| error.contains("no answer within"))
        });
        secured
    }

    fn directory(&self) -> &Path {
        self.etcd.directory.path()
    }

    fn tls(&self) -> ElectionTls {
        let [cert, key] = self.client.clone();
        ElectionTls {
            ca: self.ca.clone(),
            cert: Some(cert),
            key: Some(key),
        }
    }

    fn election(&self) -> Election {
        Election {
            tls: Some(self.tls()),
            ..self.etcd.election()
        }
    }

    /// Why a request with these settings fails.
    fn refused(&self, change: impl FnOnce(&mut Election)) -> String {
        let mut election = self.election();
        change(&mut election);
        ask(&election).unwrap_err()
    }
}

fn ask(election: &Election) -> Result<Value, String> {
    let gateway = Gateway::new(election).map_err(|error| error.to_string())?;
    let asked = gateway.post("/v3/lease/leases", &json!({}));
    asked.map_err(|error| error.to_string())
}

struct Etcd {
    directory: tempfile::TempDir,
    port: u16,
    peer_port: u16,
    /// Over TLS: authority, certificate, key.
    tls: Option<[PathBuf; 3]>,
    /// Its tokens are signed with this file's bytes, and bear the revision of its users.
    signs: Option<PathBuf>,
    process: Option<Child>,
}

impl Etcd {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            port: free_port(),
            peer_port: free_port(),
            tls: None,
            signs: None,
            process: None,
        }
    }

    fn start() -> Self {
        let mut etcd = Self::new();
        etcd.up();
        etcd
    }

    fn address(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    fn up(&mut self) {
        let client = self.address();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let mut command = Command::new("etcd");
        if let Some([ca, cert, key]) = &self.tls {
            command.arg("--client-cert-auth");
            command.arg("--trusted-ca-file").arg(ca);
            command.arg("--cert-file").arg(cert);
            command.arg("--key-file").arg(key);
        }
        if let Some(key) = &self.signs {
            let key = key.display();
            let how = format!("jwt,priv-key={key},sign-method=HS256,ttl=10m");
            command.args(["--auth-token", &how]);
        }
        let process = command
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

    fn election(&self) -> Election {
        Election {
            etcd: vec![self.address()],
            key: "/pmu/test".into(),
            ttl_s: 2,
            tls: None,
            user: None,
            password_file: None,
        }
    }

    fn section(&self) -> String {
        format!(
            "[election]\netcd = [{:?}]\nkey = \"/pmu/test\"\nttl_s = 2\n",
            self.address()
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
        agents.log(B).contains("etcd gives no lease")
    });
    assert_eq!(agents.status(B).unwrap().takeovers, 0);
    etcd.up();
    agents.wait_for_leader_after(before.epoch);
    agents.check();
}

#[test]
fn s05_a_leader_that_hangs_and_is_left_alone_is_relieved_with_leases_too() {
    let etcd = Etcd::start();
    let mut agents = Agents::new(4096);
    agents.watch.push_str("\nkill_hung = false");
    agents.more.push_str(&etcd.section());
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    agents.signal(before.pid.unwrap(), Signal::STOP);
    agents.wait_for_leader_after(before.epoch);
    agents.wait_for(B, "primary");
    assert!(agents.log(A).contains("giving the lease back"));
    // It wakes up, and can do nothing any more.
    agents.signal(before.pid.unwrap(), Signal::CONT);
    agents.wait_for(A, "standby");
    agents.check();
}

#[test]
fn s05_a_lease_goes_over_tls_where_etcd_wants_certificates() {
    let secured = Secured::start();
    let mut agents = Agents::new(4096);
    let ElectionTls { ca, cert, key } = secured.tls();
    let tls = format!(
        "{}[election.tls]\nca = {ca:?}\ncert = {:?}\nkey = {:?}\n",
        secured.etcd.section(),
        cert.unwrap(),
        key.unwrap()
    );
    agents.more.push_str(&tls);
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    agents.signal(before.pid.unwrap(), Signal::KILL);
    agents.wait_for_leader_after(before.epoch);
    agents.wait_for(B, "primary");
    for which in [A, B] {
        let log = agents.log(which);
        assert!(!log.contains("etcd gives no lease"), "{log}");
    }
    agents.check();
    // The key is B's, by an agent's own word over the same files.
    let gateway = Gateway::new(&secured.election()).unwrap();
    let held = gateway.post("/v3/kv/range", &json!({ "key": "L3BtdS90ZXN0" }));
    let held = held.unwrap();
    assert_eq!(held["kvs"][0]["value"], "YmFja3Vw", "{held}");
}

#[test]
fn s05_etcd_that_is_not_the_one_named_is_refused_with_the_reason() {
    let secured = Secured::start();
    let answer = ask(&secured.election());
    assert!(answer.is_ok(), "{answer:?}");
    let foreign = Authority::new().save(secured.directory(), "foreign-ca");
    let said = secured.refused(|election| election.tls.as_mut().unwrap().ca = foreign);
    assert!(
        said.contains("none of the authorities in election.tls.ca"),
        "{said}"
    );
    let port = secured.etcd.port;
    let said =
        secured.refused(|election| election.etcd = vec![format!("https://localhost:{port}")]);
    assert!(
        said.contains("is for 127.0.0.1, not for localhost"),
        "{said}"
    );
    // The peer's port speaks HTTP.
    let port = secured.etcd.peer_port;
    let said =
        secured.refused(|election| election.etcd = vec![format!("https://127.0.0.1:{port}")]);
    assert!(said.contains("does not speak TLS"), "{said}");
    let expired = Secured::with_server("127.0.0.1", 2021);
    let said = expired.refused(|_| {});
    assert!(
        said.contains("the certificate expired at 2021-01-01"),
        "{said}"
    );
    // One that answers makes up for one that doesn't, and each is named where none does.
    let mut two = secured.election();
    two.etcd.insert(0, expired.etcd.address());
    let answer = ask(&two);
    assert!(answer.is_ok(), "{answer:?}");
    two.etcd[1] = format!("https://127.0.0.1:{}", free_port());
    let said = ask(&two).unwrap_err();
    for (end, why) in [(0, "expired"), (1, "refused")] {
        assert!(
            said.contains(&two.etcd[end]) && said.contains(why),
            "{said}"
        );
    }
}

#[test]
fn s05_without_a_certificate_that_etcd_takes_there_is_no_lease_and_it_is_said() {
    let secured = Secured::start();
    // It may end the connection before its reason is read.
    let said = secured.refused(|election| {
        let tls = election.tls.as_mut().unwrap();
        (tls.cert, tls.key) = (None, None);
    });
    assert!(
        said.contains("wants a client's certificate") || said.contains("does it want a client's"),
        "{said}"
    );
    let [cert, key] = Authority::new().issue(secured.directory(), "stranger", "a.example", FAR);
    let said = secured.refused(|election| {
        let tls = election.tls.as_mut().unwrap();
        (tls.cert, tls.key) = (Some(cert), Some(key));
    });
    assert!(
        said.contains("election.tls.cert") && said.contains("refuse"),
        "{said}"
    );
    // Nor is it spoken to without TLS.
    let said = secured.refused(|election| {
        election.tls = None;
        election.etcd[0] = election.etcd[0].replace("https", "http");
    });
    assert!(said.contains("does it want https://?"), "{said}");
}

#[test]
fn s05_files_for_etcd_that_cannot_be_used_are_refused_by_their_key() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let authority = Authority::new();
    let good = ElectionTls {
        ca: authority.save(directory, "ca"),
        cert: None,
        key: None,
    };
    let client = |name: &str, until: i32| {
        let [cert, key] = authority.issue(directory, name, "a.example", until);
        ElectionTls {
            cert: Some(cert),
            key: Some(key),
            ..good.clone()
        }
    };
    let ca = |path: PathBuf| ElectionTls {
        ca: path,
        ..good.clone()
    };
    let mut mixed = client("one", FAR);
    mixed.key = client("two", FAR).key;
    let exposed = client("exposed", FAR);
    let open = std::fs::Permissions::from_mode(0o640);
    std::fs::set_permissions(exposed.key.as_ref().unwrap(), open).unwrap();
    let mut no_key = client("swapped", FAR);
    no_key.key = Some(write(directory, "no.key", &authority.pem, 0o600));
    for (tls, key, word) in [
        (
            ca(directory.join("nowhere")),
            "election.tls.ca",
            "No such file",
        ),
        (
            ca(write(directory, "empty", "", 0o644)),
            "election.tls.ca",
            "no certificate in it",
        ),
        (
            ca(directory.to_owned()),
            "election.tls.ca",
            "not a regular file",
        ),
        (
            client("old", 2021),
            "election.tls.cert",
            "expired at 2021-01-01",
        ),
        (mixed, "election.tls.key", "KeyMismatch"),
        (exposed, "election.tls.key", "chmod 600"),
        (no_key, "election.tls.key", "no private key"),
    ] {
        let election = Election {
            etcd: vec!["https://127.0.0.1:1".into()],
            key: "k".into(),
            ttl_s: 10,
            tls: Some(tls),
            user: None,
            password_file: None,
        };
        let said = ask(&election).unwrap_err();
        assert!(
            said.contains(key) && said.to_lowercase().contains(&word.to_lowercase()),
            "{word}: {said}"
        );
    }
    for (text, mode, word) in [
        ("", 0o600, "one line"),
        ("a\nb\n", 0o600, "one line"),
        ("secret\n", 0o644, "chmod 600"),
    ] {
        let election = Election {
            etcd: vec!["https://127.0.0.1:1".into()],
            key: "k".into(),
            ttl_s: 10,
            tls: Some(good.clone()),
            user: Some("agent".into()),
            password_file: Some(write(directory, "password", text, mode)),
        };
        let said = ask(&election).unwrap_err();
        assert!(
            said.contains("election.password_file") && said.contains(word),
            "{word}: {said}"
        );
    }
}

#[test]
fn s05_an_etcd_that_is_silent_in_its_handshake_is_given_up_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let tls = ElectionTls {
        ca: Authority::new().save(directory.path(), "ca"),
        cert: None,
        key: None,
    };
    for drips in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // The begin of a long record of a handshake, a byte at a time; or nothing.
            let record = [22, 3, 3, 64, 0, 2, 0, 63, 252];
            for byte in record.into_iter().chain(std::iter::repeat_n(0, 1000)) {
                std::thread::sleep(Duration::from_millis(100));
                if drips && stream.write_all(&[byte]).is_err() {
                    return;
                }
            }
        });
        let election = Election {
            etcd: vec![format!("https://127.0.0.1:{port}")],
            key: "k".into(),
            ttl_s: 10,
            tls: Some(tls.clone()),
            user: None,
            password_file: None,
        };
        let begun = Instant::now();
        let said = ask(&election).unwrap_err();
        assert!(said.contains("no answer within 1 s"), "{said}");
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
    }
}

/// Root, and one who may write the key of the tests; from then on only users may do anything.
fn make_users(root: &Gateway) {
    for (path, body) in [
        ("user/add", json!({ "name": "root", "password": "of root" })),
        ("role/add", json!({ "name": "root" })),
        ("user/grant", json!({ "user": "root", "role": "root" })),
        (
            "user/add",
            json!({ "name": "agent", "password": "let me in" }),
        ),
        ("role/add", json!({ "name": "leader" })),
        (
            "role/grant",
            json!({ "name": "leader", "perm": { "permType": "READWRITE", "key": "L3BtdS90ZXN0" } }),
        ),
        ("user/grant", json!({ "user": "agent", "role": "leader" })),
        ("enable", json!({})),
    ] {
        root.post(&format!("/v3/auth/{path}"), &body).unwrap();
    }
}

#[test]
fn s05_a_token_that_is_too_old_for_changed_users_is_got_anew() {
    let mut etcd = Etcd::new();
    let key = "sixteen bytes and more, which nobody else knows";
    etcd.signs = Some(write(etcd.directory.path(), "signs", key, 0o600));
    etcd.up();
    let nobody = Gateway::new(&etcd.election()).unwrap();
    let roles = || nobody.post("/v3/auth/role/list", &json!({}));
    wait_until("etcd has a leader", || roles().is_ok());
    make_users(&nobody);
    let login = |user: &str, password: &str| {
        let file = write(etcd.directory.path(), user, password, 0o600);
        let mut election = etcd.election();
        (election.user, election.password_file) = (Some(user.into()), Some(file));
        Gateway::new(&election).unwrap()
    };
    let (root, agent) = (login("root", "of root"), login("agent", "let me in"));
    let put = json!({ "key": "L3BtdS90ZXN0", "value": "YQ==" });
    for change in ["one", "another"] {
        agent.post("/v3/kv/put", &put).unwrap();
        // Nothing of the agent's.
        let role = json!({ "name": change });
        root.post("/v3/auth/role/add", &role).unwrap();
    }
    agent.post("/v3/kv/put", &put).unwrap();
    // What etcd refuses for another reason is not tried again, and said.
    let beyond = agent.post("/v3/kv/put", &json!({ "key": "YQ==", "value": "YQ==" }));
    let said = beyond.unwrap_err().to_string();
    assert!(said.contains("permission denied"), "{said}");
}

#[test]
fn s05_a_user_of_etcd_logs_in_with_a_password_and_again_when_etcd_has_forgotten() {
    let mut secured = Secured::start();
    let named = Gateway::new(&secured.election()).unwrap();
    let nameless = secured
        .authority
        .issue(secured.directory(), NAMELESS, "a.example", FAR);
    secured.client = nameless;
    let root = Gateway::new(&secured.election()).unwrap();
    make_users(&root);
    let put = json!({ "key": "L3BtdS90ZXN0", "value": "YQ==" });
    let said = root.post("/v3/kv/put", &put).unwrap_err().to_string();
    assert!(said.contains("user name is empty"), "{said}");
    let said = named.post("/v3/kv/put", &put).unwrap_err().to_string();
    assert!(
        said.contains("400") && said.contains("CommonName"),
        "{said}"
    );
    let as_agent = |password: &str| {
        let file = write(secured.directory(), "password", password, 0o600);
        let mut election = secured.election();
        election.user = Some("agent".into());
        election.password_file = Some(file);
        Gateway::new(&election).unwrap()
    };
    let wrong = as_agent("let me out\n").post("/v3/kv/put", &put);
    let said = wrong.unwrap_err().to_string();
    assert!(
        said.contains("agent (election.user)") && said.contains("invalid user ID or password"),
        "{said}"
    );
    let agent = as_agent("let me in\n");
    agent.post("/v3/kv/put", &put).unwrap();
    agent.post("/v3/kv/put", &put).unwrap();
    let beyond = agent.post("/v3/kv/put", &json!({ "key": "YQ==", "value": "YQ==" }));
    let said = beyond.unwrap_err().to_string();
    assert!(said.contains("permission denied"), "{said}");
    // Its tokens are gone with it.
    secured.etcd.down();
    secured.etcd.up();
    wait_until("the user is logged in anew", || {
        agent.post("/v3/kv/put", &put).is_ok()
    });
}
