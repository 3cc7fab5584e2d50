//! Dumps of what changed: CRIU's memory comes over the protocol of its page server, of which this is the server's side.
//!
//! CRIU streams only whole dumps. What a tracked one says beside memory (some kilobytes, and files that were deleted while open) goes
//! through a folder in memory (tmpfs), and from there into the set.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};

use super::ProcessError;
use super::capture::{Dumped, TICK, arguments};
use super::container::{FRAME_BYTES_MAX, FileId, Writer};
use super::criu::{Criu, Folder};
use super::pagemap::{IN_PARENT, PAGE_BYTES, PRESENT, Pagemap, Run};

/// Folders that are in memory, where there are any.
const MEMORY_FOLDERS: [&str; 3] = ["/dev/shm", "/run", "/tmp"];
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// Where the inventory of the dump before lies in the folder.
const BEFORE: &str = "before";
const INVENTORY: &str = "inventory.img";
/// Largest file beside memory: a deleted file that the program has open.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// What is known of the dump before this one.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Before {
    /// CRIU's `inventory` image: it says when the dump was.
    pub(super) inventory: Vec<u8>,
    /// The names of its pagemaps.
    pub(super) pagemaps: BTreeSet<String>,
}

/// What stays the same from round to round.
pub(super) struct Rounds<'a> {
    pub(super) criu: &'a Criu,
    pub(super) pid: u32,
    pub(super) options: &'a [OsString],
    pub(super) interrupted: &'a dyn Fn() -> bool,
}

impl Rounds<'_> {
    /// Takes the memory that has changed, while the program runs on but for a moment.
    pub(super) fn pre_dump(
        &self,
        prefix: &str,
        before: Option<&Before>,
        writer: &mut Writer<'_>,
    ) -> Result<Before, ProcessError> {
        let mut round = self.start("pre-dump", prefix, before)?;
        while !round.step(writer, self.interrupted)? {}
        round.dumped.finish()?;
        round.keep(writer, |name| name == INVENTORY)
    }

    /// Takes what has changed and everything else, up to the point where all of it is in the writer and the program is still stopped.
    pub(super) fn dump(
        &self,
        before: Option<&Before>,
        writer: &mut Writer<'_>,
    ) -> Result<(Dumped, Before), ProcessError> {
        let mut round = self.start("dump", "", before)?;
        while !round.step(writer, self.interrupted)? {}
        let now = round.keep(writer, |_| true)?;
        Ok((round.dumped, now))
    }

    fn start(
        &self,
        action: &'static str,
        prefix: &str,
        before: Option<&Before>,
    ) -> Result<Round, ProcessError> {
        let folder = Folder::create(Some(&memory_folder()?))?;
        let mut more: Vec<OsString> = ["--track-mem", "--page-server", "--ps-socket", "1"]
            .map(OsString::from)
            .into();
        if let Some(before) = before {
            let path = folder.join(BEFORE);
            fs::create_dir(&path)
                .and_then(|()| fs::write(path.join(INVENTORY), &before.inventory))
                .map_err(ProcessError::io("write CRIU's inventory"))?;
            more.extend(["--prev-images-dir".into(), BEFORE.into()]);
        }
        let is_dump = action == "dump";
        if is_dump {
            let hook = folder.hook(super::capture::COMPLETE)?;
            more.extend(["--action-script".into(), hook.into_os_string()]);
            more.extend_from_slice(self.options);
        }
        let (ours, theirs) = UnixStream::pair().map_err(ProcessError::io("make a socket"))?;
        let arguments = arguments(action, self.pid, &folder, &more);
        let dumped = Dumped::start(self.criu, folder, &arguments, OwnedFd::from(theirs).into())?;
        Ok(Round {
            dumped,
            is_dump,
            server: PageServer {
                socket: ours,
                prefix: prefix.to_owned(),
                known: before
                    .map(|before| before.pagemaps.clone())
                    .unwrap_or_default(),
                taken: BTreeSet::new(),
                next_id: 1,
                open: None,
                closed: false,
                buffer: vec![0; FRAME_BYTES_MAX],
            },
        })
    }
}

/// A folder whose files lie in memory.
fn memory_folder() -> Result<PathBuf, ProcessError> {
    let found = MEMORY_FOLDERS
        .iter()
        .map(Path::new)
        .find(|path| rustix::fs::statfs(*path).is_ok_and(|facts| facts.f_type == TMPFS_MAGIC));
    found.map(Path::to_owned).ok_or_else(|| {
        let error = io::Error::other("none of /dev/shm, /run and /tmp is a tmpfs");
        ProcessError::io("find a folder in memory")(error)
    })
}

/// One run of CRIU. Left early, its socket closes: CRIU fails then, and lets the program go on.
struct Round {
    server: PageServer,
    dumped: Dumped,
    /// A dump ends with the hook's word, a pre-dump with CRIU's end.
    is_dump: bool,
}

impl Round {
    /// Waits for something, and takes it in. True when everything is there.
    fn step(
        &mut self,
        writer: &mut Writer<'_>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<bool, ProcessError> {
        let (socket, errors) = self.wait()?;
        if socket {
            self.server.serve(writer, interrupted)?;
        }
        let complete = errors && self.dumped.hear();
        if interrupted() {
            return Err(ProcessError::Interrupted);
        }
        if self.server.closed && (complete || !self.is_dump) {
            return Ok(true);
        }
        self.dumped.check()?;
        Ok(false)
    }

    fn wait(&self) -> Result<(bool, bool), ProcessError> {
        let socket = (!self.server.closed).then(|| self.server.socket.as_fd());
        let errors = self.dumped.errors();
        let flags = PollFlags::IN;
        let mut polled: Vec<_> = [socket, errors]
            .into_iter()
            .flatten()
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, flags))
            .collect();
        match poll(&mut polled, Some(&TICK)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(ProcessError::io("wait for CRIU")(error.into())),
        }
        let mut events = polled.iter().map(|polled| !polled.revents().is_empty());
        let socket = socket.is_some() && events.next().unwrap_or(false);
        Ok((socket, errors.is_some() && events.next().unwrap_or(false)))
    }

    /// Puts the files of the folder into the set, and says what the next round needs of this one.
    fn keep(
        &self,
        writer: &mut Writer<'_>,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Before, ProcessError> {
        let folder = self.dumped.folder();
        let failed = || ProcessError::io("read CRIU's images");
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(folder).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".img") && wanted(&name) {
                names.insert(name.into_owned());
            }
        }
        let mut inventory = Vec::new();
        for name in names {
            let file = fs::File::open(folder.join(&name)).map_err(failed())?;
            let mut bytes = Vec::new();
            let count = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
            if count.map_err(failed())? as u64 > FILE_BYTES_MAX {
                let error = io::Error::other("a file beside memory has more than 1 GiB");
                return Err(failed()(error));
            }
            writer.whole(&format!("{}{name}", self.server.prefix), &bytes)?;
            if name == INVENTORY {
                inventory = bytes;
            }
        }
        if inventory.is_empty() {
            return Err(ProcessError::Protocol("there is no inventory".into()));
        }
        Ok(Before {
            inventory,
            pagemaps: self.server.taken.clone(),
        })
    }
}

/// Commands of the page server's protocol, in the lower half of a word; the flags of a pagemap's entry are in the upper one.
mod command {
    pub(super) const ADD: u32 = 1;
    pub(super) const HOLE: u32 = 2;
    pub(super) const OPEN: u32 = 4;
    pub(super) const PARENT: u32 = 5;
    pub(super) const ADD_WITH_FLAGS: u32 = 6;
    pub(super) const CLOSE: u32 = 0x1023;
    pub(super) const FORCE_CLOSE: u32 = 0x1024;
}

/// Most pagemaps of one dump, and most entries of one.
const PAGEMAPS_MAX: usize = 1 << 16;
const RUNS_MAX: usize = 1 << 24;

/// A pagemap on its way.
struct OpenMap {
    name: String,
    id: u64,
    pages: FileId,
    map: Pagemap,
}

/// The server's side.
struct PageServer {
    socket: UnixStream,
    prefix: String,
    /// Pagemaps of the dump before.
    known: BTreeSet<String>,
    taken: BTreeSet<String>,
    next_id: u32,
    open: Option<OpenMap>,
    closed: bool,
    buffer: Vec<u8>,
}

impl PageServer {
    /// Takes one command. Its bytes follow at once: CRIU does one thing at a time.
    fn serve(
        &mut self,
        writer: &mut Writer<'_>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), ProcessError> {
        let mut message = [0; 24];
        match self.socket.read_exact(&mut message) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                // Its end tells why.
                std::thread::sleep(std::time::Duration::from_millis(1));
                return Ok(());
            }
            Err(error) => return Err(ProcessError::io("hear CRIU")(error)),
        }
        let word = u32_at(&message, 0);
        let pages = u64::from(u32_at(&message, 4));
        let address = u64_at(&message, 8);
        let id = u64_at(&message, 16);
        match word & 0xffff {
            command::OPEN => self.open(id, writer),
            command::PARENT => {
                let known = i32::from(self.known.contains(&map_name(id)?));
                self.answer(&known.to_le_bytes())
            }
            command::ADD => self.add(id, address, pages, PRESENT, writer, interrupted),
            command::HOLE => self.add(id, address, pages, IN_PARENT, writer, interrupted),
            command::ADD_WITH_FLAGS => {
                self.add(id, address, pages, word >> 16, writer, interrupted)
            }
            command::CLOSE | command::FORCE_CLOSE => {
                self.end_map(writer)?;
                self.closed = true;
                self.answer(&0_i32.to_le_bytes())
            }
            other => Err(ProcessError::Protocol(format!(
                "command {other} to a page server"
            ))),
        }
    }

    fn open(&mut self, id: u64, writer: &mut Writer<'_>) -> Result<(), ProcessError> {
        self.end_map(writer)?;
        let name = map_name(id)?;
        if self.taken.len() >= PAGEMAPS_MAX || !self.taken.insert(name.clone()) {
            return Err(ProcessError::Protocol(format!("{name} comes twice")));
        }
        let known = self.known.contains(&name);
        let pages_id = self.next_id;
        self.next_id += 1;
        let pages = writer.file(&format!("{}pages-{pages_id}.img", self.prefix))?;
        let runs = Vec::new();
        self.open = Some(OpenMap {
            name,
            id,
            pages,
            map: Pagemap { pages_id, runs },
        });
        self.answer(&[u8::from(known)])
    }

    fn end_map(&mut self, writer: &mut Writer<'_>) -> Result<(), ProcessError> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        writer.end(open.pages)?;
        let name = format!("{}{}", self.prefix, open.name);
        writer.whole(&name, &open.map.encode())?;
        Ok(())
    }

    fn add(
        &mut self,
        id: u64,
        address: u64,
        pages: u64,
        flags: u32,
        writer: &mut Writer<'_>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<(), ProcessError> {
        let open = self.open.as_mut().filter(|open| open.id == id);
        let Some(open) = open.filter(|open| open.map.runs.len() < RUNS_MAX) else {
            return Err(ProcessError::Protocol("pages of no process".into()));
        };
        open.map.runs.push(Run {
            address,
            pages,
            flags,
        });
        if flags & PRESENT == 0 {
            return Ok(());
        }
        let mut left = pages * PAGE_BYTES;
        while left > 0 {
            if interrupted() {
                return Err(ProcessError::Interrupted);
            }
            let piece = left.min(self.buffer.len() as u64) as usize;
            let count = match self.socket.read(&mut self.buffer[..piece]) {
                Ok(0) => {
                    return Err(ProcessError::Protocol("its pages end too early".into()));
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ProcessError::io("read pages")(error)),
            };
            writer.data(open.pages, &self.buffer[..count])?;
            left -= count as u64;
        }
        Ok(())
    }

    fn answer(&mut self, bytes: &[u8]) -> Result<(), ProcessError> {
        self.socket
            .write_all(bytes)
            .map_err(ProcessError::io("answer CRIU"))
    }
}

/// The image that a number of the protocol stands for: a kind in the lowest byte, and the number of a process or of shared memory.
fn map_name(id: u64) -> Result<String, ProcessError> {
    match id & 0xff {
        1 => Ok(format!("pagemap-{}.img", id >> 8)),
        2 => Ok(format!("pagemap-shmem-{}.img", id >> 8)),
        kind => Err(ProcessError::Protocol(format!("pages of kind {kind}"))),
    }
}

fn u32_at(message: &[u8; 24], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&message[at..at + 4]);
    u32::from_le_bytes(bytes)
}

fn u64_at(message: &[u8; 24], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&message[at..at + 8]);
    u64::from_le_bytes(bytes)
}
