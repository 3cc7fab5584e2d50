//! Who gets through to an agent, and who does not: links between two that are both clients, over real TLS connections.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[allow(dead_code, unreachable_pub, reason = "shared with the other tests")]
mod site;

use pmu_auth::{AuthError, Identity, PeerTls, Role, peer_tls};
use rustls::pki_types::ServerName;
use site::{Site, TIMEOUT, expired, name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

fn tls(identity: &Identity, peer: &str) -> PeerTls {
    peer_tls(identity, &[name(peer)], b"pmu-test/1").unwrap()
}

/// Whether a byte goes from one to the other and back, and what each of them says if not.
async fn talk(
    listening: &PeerTls,
    connecting: &PeerTls,
) -> (Result<(), String>, Result<(), String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(listening.server.clone());
    let connector = TlsConnector::from(connecting.client.clone());
    let served = async {
        let (stream, _) = listener.accept().await?;
        let mut stream = acceptor.accept(stream).await?;
        let byte = stream.read_u8().await?;
        stream.write_u8(byte + 1).await?;
        stream.shutdown().await
    };
    let asked = async {
        let stream = TcpStream::connect(address).await?;
        let anybody = ServerName::try_from("peer.invalid").unwrap();
        let mut stream = connector.connect(anybody, stream).await?;
        stream.write_u8(7).await?;
        let answer = stream.read_u8().await?;
        assert_eq!(answer, 8);
        Ok::<_, std::io::Error>(())
    };
    let both = async { tokio::join!(served, asked) };
    let (served, asked) = tokio::time::timeout(TIMEOUT, both)
        .await
        .expect("neither served nor refused");
    let said = |result: std::io::Result<()>| result.map_err(|error| error.to_string());
    (said(served), said(asked))
}

#[tokio::test]
async fn s05_two_agents_that_expect_each_other_talk() {
    let site = Site::new();
    let (one, other) = (
        site.identity("agent-1", Role::Client),
        site.identity("agent-2", Role::Client),
    );
    let done = talk(&tls(&one, "agent-2"), &tls(&other, "agent-1")).await;
    assert_eq!(done, (Ok(()), Ok(())));
}

#[tokio::test]
async fn s05_a_peer_of_another_name_is_refused_by_either_side() {
    let site = Site::new();
    let [one, other, third] =
        ["agent-1", "agent-2", "agent-3"].map(|name| site.identity(name, Role::Client));
    // The third says that it expects the first one, and is not expected there.
    let (served, asked) = talk(&tls(&one, "agent-2"), &tls(&third, "agent-1")).await;
    assert!(served.is_err() && asked.is_err(), "{served:?}, {asked:?}");
    // Whoever connects looks at who answers, too.
    let (served, asked) = talk(&tls(&third, "agent-2"), &tls(&other, "agent-1")).await;
    assert!(served.is_err() && asked.is_err(), "{served:?}, {asked:?}");
}

#[tokio::test]
async fn s05_a_peer_of_another_authority_is_refused_by_either_side() {
    let (site, foreign) = (Site::new(), Site::new());
    let one = site.identity("agent-1", Role::Client);
    let other = foreign.identity("agent-2", Role::Client);
    let (one, other) = (tls(&one, "agent-2"), tls(&other, "agent-1"));
    for (listening, connecting) in [(&one, &other), (&other, &one)] {
        let (served, asked) = talk(listening, connecting).await;
        assert!(served.is_err() && asked.is_err(), "{served:?}, {asked:?}");
    }
}

#[tokio::test]
async fn s05_an_expired_or_revoked_peer_is_refused() {
    let site = Site::new();
    let late = site.identity_with("agent-2", Role::Client, expired());
    let one = site.identity("agent-1", Role::Client);
    let (served, asked) = talk(&tls(&one, "agent-2"), &tls(&late, "agent-1")).await;
    assert!(served.is_err() && asked.is_err(), "{served:?}, {asked:?}");

    let stolen = site.identity("agent-4", Role::Client);
    site.authority.revoke(&name("agent-4")).unwrap();
    // Identities that are issued now know of it.
    let knowing = site.identity("agent-1", Role::Client);
    let (served, asked) = talk(&tls(&knowing, "agent-4"), &tls(&stolen, "agent-1")).await;
    assert!(served.is_err() && asked.is_err(), "{served:?}, {asked:?}");
}

#[tokio::test]
async fn s05_only_clients_are_peers() {
    let site = Site::new();
    for role in [Role::Unit, Role::Manager] {
        let identity = site.identity("agent-1", role);
        let refused = peer_tls(&identity, &[name("agent-2")], b"pmu-test/1");
        assert!(matches!(refused, Err(AuthError::Certificate { .. })));
    }
}
