//! Identity directories and authorities on disk, and certificates that nobody should have made.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[allow(dead_code, unreachable_pub, reason = "shared with the other tests")]
mod site;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pmu_auth::{
    AuthError, Authority, CertificateProblem, HostName, Identity, Principal, Role, UnitAddress,
    Validity,
};
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::CertificateDer;
use site::{Site, name, raw};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn p17_keys_are_for_their_owner_alone() {
    let site = Site::new();
    let directory = site.path("trainer-7");
    site.identity("trainer-7", Role::Client)
        .save(&directory)
        .unwrap();
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join("key.pem")), 0o600);
    assert_eq!(mode(&site.path("ca/ca-key.pem")), 0o600);
    let loaded = Identity::load(&directory).unwrap();
    assert_eq!(loaded.principal().to_string(), "trainer-7 (client)");

    for exposed in [0o640, 0o604, 0o660, 0o644] {
        let permissions = fs::Permissions::from_mode(exposed);
        fs::set_permissions(directory.join("key.pem"), permissions.clone()).unwrap();
        let error = Identity::load(&directory).unwrap_err();
        assert!(matches!(error, AuthError::KeyExposed { mode, .. } if mode == exposed));
        assert!(error.to_string().contains("chmod 600"), "{error}");
        fs::set_permissions(site.path("ca/ca-key.pem"), permissions).unwrap();
        let error = Authority::open(&site.path("ca")).unwrap_err();
        assert!(matches!(error, AuthError::KeyExposed { .. }), "{error:?}");
    }
}

#[test]
fn nothing_is_overwritten() {
    let site = Site::new();
    let before = fs::read(site.path("ca/ca-key.pem")).unwrap();
    let error = Authority::create(&site.path("ca"), &name("other")).unwrap_err();
    assert!(matches!(error, AuthError::Exists { .. }), "{error:?}");
    assert_eq!(fs::read(site.path("ca/ca-key.pem")).unwrap(), before);

    let identity = site.identity("trainer-7", Role::Client);
    for file in ["ca.pem", "cert.pem", "key.pem", "revoked.pem"] {
        let directory = site.path(&format!("has-{file}"));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join(file), "precious").unwrap();
        let error = identity.save(&directory).unwrap_err();
        assert!(matches!(error, AuthError::Exists { .. }), "{error:?}");
        assert_eq!(
            fs::read_dir(&directory).unwrap().count(),
            1,
            "nothing was begun"
        );
    }
}

#[test]
fn files_that_are_no_identity_say_which_and_why() {
    let site = Site::new();
    let directory = site.path("trainer-7");
    let error = Identity::load(&directory).unwrap_err();
    assert!(error.to_string().ends_with("trainer-7/key.pem"), "{error}");
    site.identity("trainer-7", Role::Client)
        .save(&directory)
        .unwrap();
    site.identity("trainer-8", Role::Client)
        .save(&site.path("trainer-8"))
        .unwrap();

    let good = fs::read(directory.join("cert.pem")).unwrap();
    fs::copy(site.path("trainer-8/cert.pem"), directory.join("cert.pem")).unwrap();
    let error = Identity::load(&directory).unwrap_err();
    assert!(
        matches!(error, AuthError::Settings { .. }),
        "key of another: {error:?}"
    );
    fs::write(directory.join("cert.pem"), "").unwrap();
    let error = Identity::load(&directory).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("cert.pem: no certificate in it"),
        "{error}"
    );
    fs::copy(site.path("ca/ca.pem"), directory.join("cert.pem")).unwrap();
    let error = Identity::load(&directory).unwrap_err();
    assert!(error.to_string().contains("is no role"), "{error}");
    fs::write(directory.join("cert.pem"), good).unwrap();
    fs::write(directory.join("revoked.pem"), "").unwrap();
    let error = Identity::load(&directory).unwrap_err();
    assert!(error.to_string().contains("no revocation list"), "{error}");
}

#[test]
fn an_authority_opens_again_and_issues_what_its_certificate_verifies() {
    let site = Site::new();
    let authority = Authority::open(&site.path("ca")).unwrap();
    let days = Validity::days(30);
    let identity = authority
        .issue(&name("unit-1"), Role::Unit, &[], days)
        .unwrap();
    assert_eq!(
        identity.principal(),
        &Principal {
            name: name("unit-1"),
            role: Role::Unit
        }
    );
    assert_eq!(
        identity.not_after().unix_timestamp(),
        days.not_after.unix_timestamp()
    );

    let other = Site::new();
    fs::copy(other.path("ca/ca.pem"), site.path("ca/ca.pem")).unwrap();
    let error = Authority::open(&site.path("ca")).unwrap_err();
    assert!(
        error.to_string().contains("not that of ca-key.pem"),
        "{error}"
    );
}

#[test]
fn an_authority_refuses_what_makes_no_sense() {
    let site = Site::new();
    let host: HostName = "a.example".parse().unwrap();
    let issue = |role, hosts: &[HostName], validity| {
        site.authority
            .issue(&name("x"), role, hosts, validity)
            .unwrap_err()
            .to_string()
    };
    let error = issue(Role::Client, std::slice::from_ref(&host), Validity::days(1));
    assert!(error.contains("hosts are for units"), "{error}");
    let error = issue(Role::Client, &[], Validity::days(100_000));
    assert!(error.contains("outlive its authority"), "{error}");
    let backwards = Validity {
        not_after: Validity::days(0).not_before,
        ..Validity::days(1)
    };
    assert!(issue(Role::Client, &[], backwards).contains("before it begins"));
    let error = site
        .authority
        .revoke(&name("nobody"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no certificate was issued to nobody"),
        "{error}"
    );
    for bad in ["", "a b", "http://a", "a/b", "a\u{1b}[31m"] {
        let error = bad.parse::<HostName>().unwrap_err().to_string();
        assert!(!error.contains('\u{1b}'), "{error}");
    }
}

fn certificate(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    change(&mut params);
    params.self_signed(&key).unwrap().into()
}

#[test]
fn p17_a_certificate_that_names_no_principal_is_a_typed_error() {
    let subject = |entries: &'static [(DnType, &str)]| {
        certificate(move |params| {
            for (kind, value) in entries {
                params.distinguished_name.push(kind.clone(), *value);
            }
        })
    };
    use DnType::{CommonName, OrganizationalUnitName as Unit};
    let good = subject(&[(CommonName, "trainer-7"), (Unit, "pmu:client")]);
    assert_eq!(
        Principal::from_certificate(&good).unwrap().to_string(),
        "trainer-7 (client)"
    );

    let bad: [(&'static [(DnType, &str)], &str); 7] = [
        (&[], "no common name"),
        (&[(CommonName, "trainer-7")], "no organizational unit"),
        (&[(Unit, "pmu:client")], "no common name"),
        (
            &[(CommonName, "a/b"), (Unit, "pmu:client")],
            "common name: a name has",
        ),
        (
            &[(CommonName, ""), (Unit, "pmu:client")],
            "common name: a name has",
        ),
        (
            &[(CommonName, "a"), (Unit, "pmu:root\u{1b}")],
            r#""pmu:root\u{1b}" is no role"#,
        ),
        (&[(CommonName, "a"), (Unit, "manager")], "is no role"),
    ];
    for (entries, expected) in bad {
        let problem = Principal::from_certificate(&subject(entries)).unwrap_err();
        assert!(
            problem.to_string().contains(expected),
            "{problem} / {expected}"
        );
    }
}

#[test]
fn p17_damaged_certificates_never_panic() {
    let site = Site::new();
    site.identity("trainer-7", Role::Client)
        .save(&site.path("c"))
        .unwrap();
    let (chain, _) = raw(&site.path("c"));
    let good = chain[0].to_vec();
    let mut malformed = 0;
    for index in 0..good.len() {
        for change in [0xff, 0x80, 0x01] {
            let mut bytes = good.clone();
            bytes[index] ^= change;
            malformed +=
                usize::from(Principal::from_certificate(&CertificateDer::from(bytes)).is_err());
        }
        let cut = CertificateDer::from(good[..index].to_vec());
        let error = Principal::from_certificate(&cut).unwrap_err();
        assert!(
            matches!(error, CertificateProblem::Malformed { .. }),
            "{error:?}"
        );
    }
    assert!(malformed > good.len() / 10);
    let mut longer = good;
    longer.push(0);
    assert!(Principal::from_certificate(&CertificateDer::from(longer)).is_err());
}

#[test]
fn addresses() {
    for good in [
        "unit-1.example:7470",
        "192.0.2.7:1",
        "[2001:db8::7]:65535",
        "localhost:80",
    ] {
        assert_eq!(good.parse::<UnitAddress>().unwrap().to_string(), good);
    }
    for bad in [
        "",
        "host",
        "host:",
        ":80",
        "host:0",
        "host:65536",
        "::1:80",
        "[::1:80",
        "a b:80",
    ] {
        let error = bad.parse::<UnitAddress>().unwrap_err().to_string();
        assert!(error.contains("is no address"), "{error}");
    }
}
