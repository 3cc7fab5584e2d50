//! One etcd server: a put is answered when its write-ahead log has been synced.

use std::path::Path;
use std::time::Instant;

use tonic::transport::{Channel, Endpoint};

use super::Server;
use crate::measure::Failure;

/// The two messages of etcd's KV service that are needed, by their field numbers (etcd's rpc.proto).
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct PutResponse {}

/// An etcd server and a connection to it.
pub(crate) struct Etcd {
    _server: Server,
    runtime: tokio::runtime::Runtime,
    channel: Channel,
}

impl Etcd {
    /// Starts `etcd` with its data in `folder`.
    pub(crate) fn start(folder: &Path) -> Result<Self, Failure> {
        let data = folder.join("etcd.data").to_string_lossy().into_owned();
        let peer = super::free_port()?;
        let arguments = |port: u16| {
            let client = format!("http://127.0.0.1:{port}");
            let peers = format!("http://127.0.0.1:{peer}");
            let options = [
                "--data-dir",
                &data,
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
                "--listen-peer-urls",
                &peers,
                "--initial-advertise-peer-urls",
                &peers,
                "--initial-cluster",
                &format!("default={peers}"),
                "--max-request-bytes",
                "2097152",
            ];
            options.map(String::from).to_vec()
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let server = Server::start("etcd", "etcd-server", folder, arguments, |port| {
            runtime.block_on(async {
                let Ok(endpoint) = Endpoint::from_shared(format!("http://127.0.0.1:{port}")) else {
                    return false;
                };
                match endpoint.connect().await {
                    Ok(channel) => put(channel, b"ready".to_vec(), Vec::new()).await.is_ok(),
                    Err(_) => false,
                }
            })
        })?;
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", server.port))?;
        let channel = runtime.block_on(endpoint.connect())?;
        Ok(Self {
            _server: server,
            runtime,
            channel,
        })
    }

    /// Stores `count` records, one in flight; microseconds for one.
    pub(crate) fn records_us(&mut self, value: &[u8], count: usize) -> Result<f64, Failure> {
        let channel = self.channel.clone();
        self.runtime.block_on(async move {
            let begun = Instant::now();
            for index in 0..count {
                put(
                    channel.clone(),
                    format!("record:{index}").into_bytes(),
                    value.to_vec(),
                )
                .await?;
            }
            Ok(begun.elapsed().as_secs_f64() * 1e6 / count as f64)
        })
    }
}

async fn put(channel: Channel, key: Vec<u8>, value: Vec<u8>) -> Result<(), Failure> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
    let path = "/etcdserverpb.KV/Put".parse()?;
    client
        .unary(tonic::Request::new(PutRequest { key, value }), path, codec)
        .await?;
    Ok(())
}
