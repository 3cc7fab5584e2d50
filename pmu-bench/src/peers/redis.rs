//! Redis with `appendfsync always`: a write is answered when its append-only file has been synced.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use super::Server;
use crate::measure::Failure;

/// A Redis server and a connection to it.
pub(crate) struct Redis {
    _server: Server,
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

fn connect(port: u16) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Redis {
    /// Starts `redis-server` with its append-only file in `folder`.
    pub(crate) fn start(folder: &Path) -> Result<Self, Failure> {
        let dir = folder.to_string_lossy().into_owned();
        let arguments = |port: u16| {
            let port = port.to_string();
            let options = [
                "--port",
                &port,
                "--bind",
                "127.0.0.1",
                "--dir",
                &dir,
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                "--auto-aof-rewrite-percentage",
                "0",
                "--proto-max-bulk-len",
                "512mb",
            ];
            options.map(String::from).to_vec()
        };
        let server = Server::start("redis-server", "redis-server", folder, arguments, |port| {
            connect(port)
                .and_then(|mut stream| {
                    stream.write_all(b"PING\r\n")?;
                    let mut answer = [0; 7];
                    stream.read_exact(&mut answer)?;
                    if &answer == b"+PONG\r\n" {
                        Ok(())
                    } else {
                        Err("not ready".into())
                    }
                })
                .is_ok()
        })?;
        let stream = connect(server.port)?;
        let reader = BufReader::with_capacity(64 << 10, stream.try_clone()?);
        Ok(Self {
            _server: server,
            stream,
            reader,
        })
    }

    fn send_set(&mut self, key: &str, value: &[u8]) -> Result<(), Failure> {
        let head = format!(
            "*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n",
            key.len(),
            value.len()
        );
        if value.len() <= 64 << 10 {
            let mut whole = head.into_bytes();
            whole.extend_from_slice(value);
            whole.extend_from_slice(b"\r\n");
            return Ok(self.stream.write_all(&whole)?);
        }
        self.stream.write_all(head.as_bytes())?;
        self.stream.write_all(value)?;
        Ok(self.stream.write_all(b"\r\n")?)
    }

    fn expect_ok(&mut self) -> Result<(), Failure> {
        let mut answer = [0; 5];
        self.reader.read_exact(&mut answer)?;
        if &answer == b"+OK\r\n" {
            Ok(())
        } else {
            Err(format!("Redis: {:?}", String::from_utf8_lossy(&answer)).into())
        }
    }

    /// Stores `count` records, one in flight; microseconds for one.
    pub(crate) fn records_us(&mut self, value: &[u8], count: usize) -> Result<f64, Failure> {
        let begun = Instant::now();
        for index in 0..count {
            self.send_set(&format!("record:{index}"), value)?;
            self.expect_ok()?;
        }
        Ok(begun.elapsed().as_secs_f64() * 1e6 / count as f64)
    }

    /// Stores `count` records with up to `window` in flight; records per second.
    pub(crate) fn pipelined_rate(
        &mut self,
        value: &[u8],
        count: usize,
        window: usize,
    ) -> Result<f64, Failure> {
        let begun = Instant::now();
        let mut sent = 0;
        let mut batch = Vec::new();
        while sent < count {
            let now = window.min(count - sent);
            batch.clear();
            for index in sent..sent + now {
                let key = format!("record:{index}");
                write!(
                    batch,
                    "*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n",
                    key.len(),
                    value.len()
                )?;
                batch.extend_from_slice(value);
                batch.extend_from_slice(b"\r\n");
            }
            self.stream.write_all(&batch)?;
            for _ in 0..now {
                self.expect_ok()?;
            }
            sent += now;
        }
        Ok(count as f64 / begun.elapsed().as_secs_f64())
    }

    /// Stores one blob; milliseconds.
    pub(crate) fn blob_write_ms(&mut self, value: &[u8]) -> Result<f64, Failure> {
        let begun = Instant::now();
        self.send_set("blob", value)?;
        self.expect_ok()?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    /// Reads the blob back; milliseconds.
    pub(crate) fn blob_read_ms(
        &mut self,
        expected: &[u8],
        buffer: &mut Vec<u8>,
    ) -> Result<f64, Failure> {
        let begun = Instant::now();
        self.stream
            .write_all(b"*2\r\n$3\r\nGET\r\n$4\r\nblob\r\n")?;
        let mut byte = [0];
        let mut length = 0usize;
        loop {
            self.reader.read_exact(&mut byte)?;
            match byte[0] {
                b'0'..=b'9' => length = length * 10 + usize::from(byte[0] - b'0'),
                b'\n' => break,
                _ => {}
            }
        }
        buffer.resize(length + 2, 0);
        self.reader.read_exact(buffer)?;
        let ms = begun.elapsed().as_secs_f64() * 1e3;
        if &buffer[..length] == expected {
            Ok(ms)
        } else {
            Err("Redis gave back other bytes".into())
        }
    }
}
