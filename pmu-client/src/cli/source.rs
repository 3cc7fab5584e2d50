//! Input that can be interrupted: a thread reads ahead, the command takes block after block and looks at the clock and at Ctrl-C in between.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use crate::cli::CliError;
use crate::error::ClientError;

/// Bytes read at a time.
const BLOCK_BYTES: usize = 1 << 20;
/// Blocks that wait at most: input is never held as a whole.
const BLOCKS_MAX: usize = 4;
/// How often an idle input is looked away from.
const TICK: Duration = Duration::from_millis(50);

/// How long a command has to end by itself after Ctrl-C.
const GRACE: Duration = Duration::from_secs(2);

/// Set by Ctrl-C or a request to end.
#[derive(Debug, Clone, Default)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes Ctrl-C (and SIGTERM) over. The second one ends the process at once.
    pub(super) fn install() -> Result<Self, CliError> {
        let interrupt = Self::default();
        let flag = Arc::clone(&interrupt.0);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::io("start the signal thread"))?;
        thread::Builder::new()
            .name("pmu-signals".into())
            .spawn(move || runtime.block_on(watch(&flag)))
            .map_err(ClientError::io("start the signal thread"))?;
        Ok(interrupt)
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// An error if it is set.
    pub(super) fn check(&self) -> Result<(), CliError> {
        if self.is_set() {
            Err(CliError::Interrupted)
        } else {
            Ok(())
        }
    }
}

async fn watch(flag: &AtomicBool) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        tracing::warn!("Ctrl-C can't be taken over: it ends the process at once");
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if flag.swap(true, Ordering::AcqRel) {
            std::process::exit(i32::from(super::exit::INTERRUPTED));
        }
        // What waits for a unit doesn't look: nothing that it would do afterwards is wanted.
        tokio::spawn(async {
            tokio::time::sleep(GRACE).await;
            std::process::exit(i32::from(super::exit::INTERRUPTED));
        });
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Source {
    blocks: Receiver<io::Result<Vec<u8>>>,
    used: SyncSender<Vec<u8>>,
    /// The length of a regular file.
    pub(super) length: Option<u64>,
    interrupt: Interrupt,
}

/// What came.
#[derive(Debug)]
pub(super) enum Block {
    /// Bytes; give them back with [`Source::give_back`].
    Bytes(Vec<u8>),
    /// Nothing for now.
    Idle,
    /// The end.
    End,
}

impl Source {
    /// Opens a file, or standard input for `-`.
    pub(super) fn open(path: &Path, interrupt: &Interrupt) -> Result<Self, CliError> {
        let (input, length): (Box<dyn Read + Send>, _) = if path == Path::new("-") {
            refuse_closed(0, "standard input")?;
            (Box::new(io::stdin()), None)
        } else {
            let file = File::open(path).map_err(|source| CliError::file("open", path, source))?;
            let metadata = file
                .metadata()
                .map_err(|source| CliError::file("open", path, source))?;
            if metadata.is_dir() {
                let source = io::Error::from(io::ErrorKind::IsADirectory);
                return Err(CliError::file("open", path, source));
            }
            let length = metadata.is_file().then_some(metadata.len());
            (Box::new(file), length)
        };
        let (sender, blocks) = sync_channel(BLOCKS_MAX);
        let (used, empty) = sync_channel(BLOCKS_MAX + 2);
        // The thread ends with the input, or when nobody takes its blocks any more; at standard input it may outlive the command.
        thread::Builder::new()
            .name("pmu-input".into())
            .spawn(move || read_blocks(input, &sender, &empty))
            .map_err(ClientError::io("start the input thread"))?;
        Ok(Self {
            blocks,
            used,
            length,
            interrupt: interrupt.clone(),
        })
    }

    /// The next block, or word that there is none for now.
    pub(super) fn next(&self) -> Result<Block, CliError> {
        self.interrupt.check()?;
        match self.blocks.recv_timeout(TICK) {
            Ok(Ok(bytes)) => Ok(Block::Bytes(bytes)),
            Ok(Err(error)) => Err(ClientError::io("read the input")(error).into()),
            Err(RecvTimeoutError::Timeout) => Ok(Block::Idle),
            Err(RecvTimeoutError::Disconnected) => Ok(Block::End),
        }
    }

    /// Hands over all that comes until the end, or until Ctrl-C or an error.
    pub(super) fn drain(
        &self,
        mut take: impl FnMut(&[u8]) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        loop {
            match self.next()? {
                Block::Bytes(bytes) => {
                    take(&bytes)?;
                    self.give_back(bytes);
                }
                Block::Idle => {}
                Block::End => return Ok(()),
            }
        }
    }

    /// A block's memory, to be read into again.
    pub(super) fn give_back(&self, block: Vec<u8>) {
        // With as many waiting as there can be, it is simply freed.
        let _ = self.used.try_send(block);
    }
}

/// What was closed when the process began is `/dev/null` by now, opened for both directions: payload must not come from there, or go there,
/// as if somebody had meant it. Whoever means it opens it for one direction, as a shell does.
pub(super) fn refuse_closed(descriptor: u8, name: &str) -> Result<(), CliError> {
    let path = std::fs::read_link(format!("/proc/self/fd/{descriptor}"));
    let facts = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}"));
    let (Ok(path), Ok(facts)) = (path, facts) else {
        return Ok(());
    };
    let flags = facts.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    const BOTH_DIRECTIONS: u32 = 2;
    if path == Path::new("/dev/null") && flags.is_some_and(|flags| flags & 3 == BOTH_DIRECTIONS) {
        return Err(CliError::Usage(format!(
            "{name} is closed; name a file, or /dev/null if you mean it"
        )));
    }
    Ok(())
}

fn read_blocks(
    mut input: impl Read,
    sender: &SyncSender<io::Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
) {
    loop {
        let mut block = empty.try_recv().unwrap_or_default();
        block.resize(BLOCK_BYTES, 0);
        match input.read(&mut block) {
            Ok(0) => return,
            Ok(count) => {
                block.truncate(count);
                if sender.send(Ok(block)).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let _ = sender.send(Err(error));
                return;
            }
        }
    }
}
