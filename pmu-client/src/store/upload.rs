//! Storing an object: parts as they come, some of them on their way at a time, and the manifest last.

use std::collections::VecDeque;

use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use tokio::task::JoinHandle;

use super::manifest::{Kind, Manifest, SetFacts};
use super::{Object, Result, Store, StoreError, keys};
use crate::segments::Named;

/// Parts on their way at most.
const PARTS_IN_FLIGHT_MAX: usize = 4;
/// More parts than this an object may not have.
const PARTS_MAX: u64 = 9000;

/// An object that is being stored. Dropped before [`Self::finish`], it is given up: nobody sees anything of it.
pub struct Upload<'a> {
    store: &'a Store,
    directory: Path,
    data: Path,
    manifest: Manifest,
    /// Begun with the second part: an object of one part is put at once.
    multipart: Option<Box<dyn MultipartUpload>>,
    in_flight: VecDeque<JoinHandle<object_store::Result<()>>>,
    part: Vec<u8>,
    hasher: blake3::Hasher,
    done: bool,
}

impl Store {
    /// Begins to store an object of `bytes` bytes. `name` is a segment's name under the prefix `space`, or a set's number in the region `space`.
    ///
    /// # Errors
    /// [`StoreError::Config`]: no random bytes.
    pub fn begin(&self, kind: Kind, space: &str, name: &str, bytes: u64) -> Result<Upload<'_>> {
        let directory = keys::directory(&self.root, kind, space, name);
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce)
            .map_err(|error| StoreError::Config(format!("no random bytes: {error}")))?;
        let data = format!("data-{:016x}", u64::from_be_bytes(nonce));
        // As many parts as a store takes; a whole number of MiB.
        let least = bytes.div_ceil(PARTS_MAX).next_multiple_of(1 << 20);
        let part_bytes = self.part_bytes.max(least);
        let mut manifest = Manifest::new(kind, space, name, part_bytes, now_ns());
        manifest.data.clone_from(&data);
        Ok(Upload {
            store: self,
            data: directory.clone().join(data.as_str()),
            directory,
            manifest,
            multipart: None,
            in_flight: VecDeque::new(),
            part: Vec::new(),
            hasher: blake3::Hasher::new(),
            done: false,
        })
    }
}

impl Upload<'_> {
    /// The next bytes.
    ///
    /// # Errors
    /// What the store says, also of earlier ones.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.manifest.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = self.manifest.part_bytes as usize - self.part.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.part.extend_from_slice(now);
            bytes = later;
            // The last part is held back: it may be the only one.
            if self.part.len() as u64 == self.manifest.part_bytes && !bytes.is_empty() {
                self.send_part()?;
            }
        }
        Ok(())
    }

    fn send_part(&mut self) -> Result<()> {
        let part = std::mem::take(&mut self.part);
        self.manifest.parts.push(blake3::hash(&part).into());
        if self.multipart.is_none() {
            let begun = self.store.objects.put_multipart(&self.data);
            self.multipart = Some(self.store.run(self.data.as_ref(), begun)?);
        }
        while self.in_flight.len() >= PARTS_IN_FLIGHT_MAX {
            self.await_part()?;
        }
        if let Some(multipart) = &mut self.multipart {
            let sent = multipart.put_part(PutPayload::from(part));
            self.in_flight.push_back(self.store.runtime.spawn(sent));
        }
        Ok(())
    }

    fn await_part(&mut self) -> Result<()> {
        let Some(sent) = self.in_flight.pop_front() else {
            return Ok(());
        };
        self.store.run(self.data.as_ref(), async { sent.await? })
    }

    /// Completes the data, and then stores the manifest: from now on the object is there. What was there of this name is replaced by it.
    ///
    /// # Errors
    /// What the store says: the object is not there then, or (where only the answer to the manifest was lost) as a whole.
    pub fn finish(mut self, segment: Option<Named>, set: Option<SetFacts>) -> Result<Object> {
        let earlier = self.store.open_object(self.directory.clone()).ok();
        self.complete_data()?;
        self.manifest.hash = self.hasher.finalize().into();
        self.manifest.segment = segment;
        self.manifest.set = set;
        let text = self.manifest.encode().map_err(StoreError::Config)?;
        let path = self.directory.clone().join(keys::MANIFEST);
        // From here on the data may be named by a manifest.
        self.done = true;
        let put = self.store.objects.put(&path, PutPayload::from(text));
        self.store.run(path.as_ref(), put)?;
        if let Some(earlier) = earlier {
            let old = self.directory.clone().join(earlier.manifest.data.as_str());
            if let Err(error) = self
                .store
                .run(old.as_ref(), self.store.objects.delete(&old))
            {
                tracing::warn!(%error, "the data of an object that was replaced stays");
            }
        }
        Ok(Object {
            manifest: self.manifest.clone(),
            directory: self.directory.clone(),
        })
    }

    fn complete_data(&mut self) -> Result<()> {
        if self.multipart.is_none() {
            if !self.part.is_empty() {
                self.manifest.parts.push(blake3::hash(&self.part).into());
            }
            let part = PutPayload::from(std::mem::take(&mut self.part));
            let put = self.store.objects.put(&self.data, part);
            return self.store.run(self.data.as_ref(), put).map(drop);
        }
        if !self.part.is_empty() {
            self.send_part()?;
        }
        while !self.in_flight.is_empty() {
            self.await_part()?;
        }
        match &mut self.multipart {
            Some(multipart) => {
                let completed = multipart.complete();
                self.store.run(self.data.as_ref(), completed).map(drop)
            }
            None => Ok(()),
        }
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.in_flight.drain(..).for_each(|sent| sent.abort());
        if let Some(multipart) = &mut self.multipart
            && let Err(error) = self.store.run(self.data.as_ref(), multipart.abort())
        {
            tracing::warn!(%error, "parts of an upload that was given up stay in the store");
        }
    }
}

fn now_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}
