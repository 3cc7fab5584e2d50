//! Nothing that an agent knows of etcd's users is ever logged, whatever the filter.
#![cfg(feature = "etcd")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by a panic"
)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use parking_lot::Mutex;
use pmu_agent::config::{Election, Log};
use pmu_agent::etcd::gateway::Gateway;
use serde_json::json;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, reload};

/// What would be seen of each: bytes are written down in rows of 16.
const TOKEN_ROW: &str = "TTTTTTTTTTTTTTTT";
const PASSWORD_ROW: &str = "PPPPPPPPPPPPPPPP";

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Buffer {
    fn take(&self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut *self.0.lock())).into_owned()
    }
}

/// Something that answers every request as etcd would answer a login.
fn stand_in() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut asked, mut bytes) = (Vec::new(), [0; 4096]);
            // The last bytes of each request are those of its JSON.
            while !asked.ends_with(b"}") {
                match stream.read(&mut bytes) {
                    Ok(count @ 1..) => asked.extend_from_slice(&bytes[..count]),
                    _ => break,
                }
            }
            let body = json!({ "token": TOKEN_ROW.repeat(4) }).to_string();
            let length = body.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}"
            );
            let _ = write!(stream, "{head}\r\n\r\n{body}");
        }
    });
    format!("http://{address}")
}

#[test]
fn s05_neither_password_nor_token_for_etcd_is_logged_whatever_the_filter() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, PASSWORD_ROW.repeat(4)).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let election = Election {
        etcd: vec![stand_in()],
        key: "/pmu/test".into(),
        ttl_s: 2,
        tls: None,
        user: Some("agent".into()),
        password_file: Some(file),
    };
    let buffer = Buffer::default();
    let writer = buffer.clone();
    let (filter, handle) = reload::Layer::new(EnvFilter::new("trace"));
    let lines = fmt::layer()
        .with_ansi(false)
        .with_writer(move || writer.clone());
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .init();
    let said = || {
        let gateway = Gateway::new(&election).unwrap();
        for _ in 0..2 {
            gateway.post("/v3/kv/put", &json!({ "key": "a" })).unwrap();
        }
        buffer.take()
    };
    let without = said();
    assert!(
        without.contains(TOKEN_ROW),
        "the filter has nothing to keep back"
    );
    for asked in [
        "trace",
        "trace,ureq=trace",
        "debug, ureq_proto::util=trace,ureq=debug",
    ] {
        let log = Log {
            filter: asked.into(),
            json: false,
        };
        handle.reload(EnvFilter::new(log.directives())).unwrap();
        let said = said();
        assert!(!said.contains(TOKEN_ROW), "{asked}: {said}");
        assert!(!said.contains(PASSWORD_ROW), "{asked}: {said}");
    }
    // Others are heard as before.
    let log = Log {
        filter: "trace".into(),
        json: false,
    };
    handle.reload(EnvFilter::new(log.directives())).unwrap();
    tracing::trace!("a word of the agent's");
    assert!(buffer.take().contains("a word of the agent's"));
}
