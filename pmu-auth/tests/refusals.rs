//! Who gets through to a unit, who does not, and what both are told: over real TLS connections.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[allow(dead_code, unreachable_pub, reason = "shared with the other tests")]
mod site;

use std::sync::Arc;
use std::time::Duration;

use pmu_auth::{
    AuthError, CertificateProblem, Identity, Role, UnitAddress, auth_error_in, client_tls, connect,
    server_tls,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use site::{Site, TIMEOUT, ask, expired, future, name, raw, serve};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

async fn unit(site: &Site) -> UnitAddress {
    serve(server_tls(&site.identity("unit-1", Role::Unit)).unwrap()).await
}

/// What a client gets that holds to no rule of ours: the end of its handshake and of its first read.
async fn rogue(address: &UnitAddress, config: ClientConfig) -> std::io::Result<usize> {
    let stream = TcpStream::connect((address.host(), address.port())).await?;
    let server = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config))
        .connect(server, stream)
        .await?;
    let mut buffer = [0; 64];
    let read = stream.read(&mut buffer);
    tokio::time::timeout(TIMEOUT, read)
        .await
        .expect("neither served nor refused")
}

fn rogue_config(
    site: &Site,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(site.path("ca/ca.pem")).unwrap())
        .unwrap();
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
}

#[tokio::test]
async fn p17_the_unit_sees_who_the_certificate_names() {
    let site = Site::new();
    let address = unit(&site).await;
    for (principal, role) in [("trainer-7", Role::Client), ("alice", Role::Manager)] {
        let identity = site.identity(principal, role);
        let seen = ask(&address, &identity, Some("unit-1")).await.unwrap();
        assert_eq!(seen, format!("{principal} ({role})"));
        assert_eq!(ask(&address, &identity, None).await.unwrap(), seen);
    }
}

#[tokio::test]
async fn p17_a_certificate_of_another_authority_is_refused() {
    let (site, other) = (Site::new(), Site::new());
    let address = unit(&site).await;

    let foreign = other.identity("trainer-7", Role::Client);
    let error = ask(&address, &foreign, None).await.unwrap_err();
    assert!(is_wrong_authority(&error), "{error:?}");
    assert!(matches!(error, AuthError::NotTheUnit { .. }));

    // Trusting the unit's authority does not help: the unit must trust the client's.
    foreign.save(&other.path("mixed")).unwrap();
    std::fs::copy(site.path("ca/ca.pem"), other.path("mixed/ca.pem")).unwrap();
    let mixed = Identity::load(&other.path("mixed")).unwrap();
    let error = ask(&address, &mixed, None).await.unwrap_err();
    assert!(is_wrong_authority(&error), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("refuses this identity: the certificate was signed by")
    );
}

fn is_wrong_authority(error: &AuthError) -> bool {
    error.problem() == Some(&CertificateProblem::WrongAuthority)
}

#[tokio::test]
async fn p17_a_forged_authority_of_the_same_name_is_refused() {
    let site = Site::new();
    let address = unit(&site).await;
    // The very subject of the site's authority, with another key.
    let authority = std::fs::read_to_string(site.path("ca/ca.pem")).unwrap();
    let forger = rcgen::KeyPair::generate().unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&authority, forger).unwrap();
    let own = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "alice");
    params
        .distinguished_name
        .push(rcgen::DnType::OrganizationalUnitName, "pmu:manager");
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let forged = params.signed_by(&own, &issuer).unwrap();

    site.identity("alice", Role::Manager)
        .save(&site.path("forged"))
        .unwrap();
    std::fs::write(site.path("forged/cert.pem"), forged.pem()).unwrap();
    std::fs::write(site.path("forged/key.pem"), own.serialize_pem()).unwrap();
    let forged = Identity::load(&site.path("forged")).unwrap();
    let error = ask(&address, &forged, None).await.unwrap_err();
    assert!(is_wrong_authority(&error), "{error:?}");
}

#[tokio::test]
async fn p17_one_authority_replaces_another() {
    let (old, new) = (Site::new(), Site::new());
    let stolen = old.identity("trainer-6", Role::Client);
    old.authority.revoke(&name("trainer-6")).unwrap();
    // A unit of the old authority with its list, which trusts both.
    old.identity("unit-1", Role::Unit)
        .save(&old.path("unit"))
        .unwrap();
    let both = [old.path("ca/ca.pem"), new.path("ca/ca.pem")]
        .map(|path| std::fs::read_to_string(path).unwrap())
        .concat();
    std::fs::write(old.path("unit/ca.pem"), &both).unwrap();
    let address = serve(server_tls(&Identity::load(&old.path("unit")).unwrap()).unwrap()).await;

    ask(&address, &old.identity("trainer-7", Role::Client), None)
        .await
        .unwrap();
    new.identity("trainer-7", Role::Client)
        .save(&new.path("client"))
        .unwrap();
    std::fs::write(new.path("client/ca.pem"), &both).unwrap();
    ask(
        &address,
        &Identity::load(&new.path("client")).unwrap(),
        None,
    )
    .await
    .unwrap();
    let error = ask(&address, &stolen, None).await.unwrap_err();
    assert_eq!(error.problem(), Some(&CertificateProblem::Revoked));
}

#[tokio::test]
async fn p17_an_expired_certificate_is_refused_with_its_date() {
    let site = Site::new();
    let address = unit(&site).await;
    let identity = site.identity_with("trainer-7", Role::Client, expired());
    let error = ask(&address, &identity, None).await.unwrap_err();
    let date = expired().not_after.date().to_string();
    assert!(
        error.to_string().contains(&format!("expired at {date}")),
        "{error}"
    );

    // Whoever leaves out the check of the own certificate is refused by the unit.
    identity.save(&site.path("rogue")).unwrap();
    let (chain, key) = raw(&site.path("rogue"));
    let config = rogue_config(&site)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let error = rogue(&address, config).await.unwrap_err();
    assert!(error.to_string().contains("CertificateExpired"), "{error}");
}

#[tokio::test]
async fn p17_a_certificate_that_is_not_valid_yet_is_refused() {
    let site = Site::new();
    let address = unit(&site).await;
    let identity = site.identity_with("trainer-7", Role::Client, future());
    let error = ask(&address, &identity, None).await.unwrap_err();
    assert!(error.to_string().contains("not valid before"), "{error}");
    let found = error.problem();
    assert!(matches!(
        found,
        Some(CertificateProblem::NotYetValid {
            not_before: Some(_)
        })
    ));
}

#[tokio::test]
async fn p17_no_certificate_is_refused() {
    let site = Site::new();
    let address = unit(&site).await;
    let error = rogue(&address, rogue_config(&site).with_no_client_auth())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
}

#[tokio::test]
async fn p17_a_units_certificate_is_no_clients() {
    let site = Site::new();
    let address = unit(&site).await;
    let identity = site.identity("unit-2", Role::Unit);
    let error = client_tls(&identity, None).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("has the role unit, this takes manager or client")
    );

    identity.save(&site.path("rogue")).unwrap();
    let (chain, key) = raw(&site.path("rogue"));
    let config = rogue_config(&site)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let error = rogue(&address, config).await.unwrap_err();
    assert!(
        error.to_string().contains("UnsupportedCertificate"),
        "{error}"
    );
}

#[tokio::test]
async fn p17_a_certificate_without_role_is_refused() {
    let site = Site::new();
    let address = unit(&site).await;
    let key =
        rcgen::KeyPair::from_pem(&std::fs::read_to_string(site.path("ca/ca-key.pem")).unwrap())
            .unwrap();
    let authority = std::fs::read_to_string(site.path("ca/ca.pem")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&authority, key).unwrap();
    let own = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&own, &issuer).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.serialize_der()).unwrap();
    let config = rogue_config(&site)
        .with_client_auth_cert(vec![certificate.into()], key)
        .unwrap();
    let error = rogue(&address, config).await.unwrap_err();
    assert!(error.to_string().contains("CertificateUnknown"), "{error}");
}

#[tokio::test]
async fn p17_tls_1_2_is_refused() {
    let site = Site::new();
    let address = unit(&site).await;
    let identity = site.identity("trainer-7", Role::Client);
    identity.save(&site.path("rogue")).unwrap();
    let (chain, key) = raw(&site.path("rogue"));
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(site.path("ca/ca.pem")).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let error = rogue(&address, config).await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
}

#[tokio::test]
async fn p17_a_revoked_certificate_is_refused() {
    let site = Site::new();
    let stolen = site.identity("trainer-7", Role::Client);
    let kept = site.identity("trainer-8", Role::Client);
    assert_eq!(site.authority.revoke(&name("trainer-7")).unwrap(), 1);
    let again = site.identity("trainer-7", Role::Client);

    // The list goes with every identity issued since.
    let address = unit(&site).await;
    let error = ask(&address, &stolen, None).await.unwrap_err();
    assert!(
        matches!(
            &error,
            AuthError::Refused {
                problem: CertificateProblem::Revoked,
                ..
            }
        ),
        "{error:?}"
    );
    ask(&address, &kept, None).await.unwrap();
    ask(&address, &again, None).await.unwrap();
    // A second list holds what the first one held.
    assert_eq!(site.authority.revoke(&name("trainer-8")).unwrap(), 1);
    assert_eq!(site.authority.revoke(&name("trainer-8")).unwrap(), 0);
    let address = unit(&site).await;
    for identity in [&stolen, &kept] {
        let error = ask(&address, identity, None).await.unwrap_err();
        assert_eq!(error.problem(), Some(&CertificateProblem::Revoked));
    }
    ask(&address, &again, None).await.unwrap();
}

#[tokio::test]
async fn p18_a_clients_certificate_cant_act_as_a_unit() {
    let site = Site::new();
    let identity = site.identity("trainer-7", Role::Client);
    let error = server_tls(&identity).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("has the role client, this takes unit"),
        "{error}"
    );

    identity.save(&site.path("rogue")).unwrap();
    let (chain, key) = raw(&site.path("rogue"));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let address = serve(Arc::new(config)).await;
    let manager = site.identity("alice", Role::Manager);
    let error = ask(&address, &manager, None).await.unwrap_err();
    let expected = CertificateProblem::WrongRole {
        expected: "unit",
        found: Some(Role::Client),
    };
    assert_eq!(error.problem(), Some(&expected), "{error:?}");
    assert!(
        error.to_string().contains("is not the unit it should be"),
        "{error}"
    );
}

#[tokio::test]
async fn p18_a_units_certificate_for_another_host_is_refused() {
    let site = Site::new();
    let hosts = [
        "unit-1.example".parse().unwrap(),
        "192.0.2.7".parse().unwrap(),
    ];
    let elsewhere = site
        .authority
        .issue(
            &name("unit-1"),
            Role::Unit,
            &hosts,
            pmu_auth::Validity::days(1),
        )
        .unwrap();
    let address = serve(server_tls(&elsewhere).unwrap()).await;
    let error = ask(
        &address,
        &site.identity("alice", Role::Manager),
        Some("unit-1"),
    )
    .await
    .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("for unit-1, unit-1.example, 192.0.2.7, not for 127.0.0.1"),
        "{text}"
    );
}

#[tokio::test]
async fn p18_a_unit_of_another_name_is_refused() {
    let site = Site::new();
    let address = unit(&site).await;
    let error = ask(
        &address,
        &site.identity("alice", Role::Manager),
        Some("unit-9"),
    )
    .await
    .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("the certificate belongs to unit-1, not to unit-9"),
        "{text}"
    );
}

#[tokio::test]
async fn p18_an_expired_unit_is_refused_with_its_date() {
    let site = Site::new();
    let old = site.identity_with("unit-1", Role::Unit, expired());
    let address = serve(server_tls(&old).unwrap()).await;
    let error = ask(&address, &site.identity("alice", Role::Manager), None)
        .await
        .unwrap_err();
    let date = expired().not_after.date().to_string();
    assert!(
        error.to_string().contains(&format!("expired at {date}")),
        "{error}"
    );
    assert!(matches!(error, AuthError::NotTheUnit { .. }));
}

#[tokio::test]
async fn nobody_there_and_nobody_answering_are_told_apart_from_refusals() {
    let site = Site::new();
    let identity = site.identity("alice", Role::Manager);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: UnitAddress = listener.local_addr().unwrap().to_string().parse().unwrap();
    // Connections wait in the queue of a listener that never accepts them.
    let error = connect(&address, &identity, None, Duration::from_millis(200))
        .await
        .unwrap_err();
    assert!(
        matches!(error, AuthError::TimedOut { .. }) && error.is_unreachable(),
        "{error:?}"
    );
    drop(listener);
    let error = connect(&address, &identity, None, TIMEOUT)
        .await
        .unwrap_err();
    assert!(matches!(error, AuthError::Unreachable { .. }), "{error:?}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("Connection refused"), "{source}");
}

#[tokio::test]
async fn a_peer_that_speaks_no_tls_is_no_unit() {
    let site = Site::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: UnitAddress = listener.local_addr().unwrap().to_string().parse().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"SSH-2.0-OpenSSH_9.2\r\n")
            .await
            .unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
    });
    let identity = site.identity("alice", Role::Manager);
    let error = connect(&address, &identity, None, TIMEOUT)
        .await
        .unwrap_err();
    assert!(matches!(error, AuthError::Handshake { .. }), "{error:?}");
}

#[tokio::test]
async fn a_slow_peer_holds_up_nobody() {
    let site = Site::new();
    let address = unit(&site).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(
            TcpStream::connect((address.host(), address.port()))
                .await
                .unwrap(),
        );
    }
    ask(&address, &site.identity("alice", Role::Manager), None)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_reason_is_found_in_the_error_of_a_later_call() {
    let site = Site::new();
    let settings = server_tls(&site.identity("unit-1", Role::Unit)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: UnitAddress = listener.local_addr().unwrap().to_string().parse().unwrap();
    // Accepts one connection, speaks as an HTTP/2 server would, and is gone.
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tokio_rustls::TlsAcceptor::from(settings)
            .accept(stream)
            .await
            .unwrap();
        let empty_settings_frame = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        tokio::io::AsyncWriteExt::write_all(&mut stream, &empty_settings_frame)
            .await
            .unwrap();
    });
    let identity = site.identity("alice", Role::Manager);
    let channel = connect(&address, &identity, None, TIMEOUT).await.unwrap();
    server.await.unwrap();
    let mut client = pmu_proto::v1::session_client::SessionClient::new(channel);
    let mut found = false;
    // The first calls may still fail on the old connection.
    for _ in 0..50 {
        let status = client
            .ping(pmu_proto::v1::PingRequest {})
            .await
            .unwrap_err();
        if let Some(error) = auth_error_in(&status) {
            assert!(error.is_unreachable(), "{error:?}");
            found = true;
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(found);
}
