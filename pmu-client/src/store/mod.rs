//! Global storage: sets and segments as objects in an S3-compatible store, or below a directory.
//!
//! Each object is a **manifest** and one object of data. The data comes first and the manifest last, so that an upload that was cut short is
//! seen by nobody. The manifest says what the object is, and has a BLAKE3 checksum of each part and of the whole: what is read was verified
//! part by part before it is handed on. See `docs/segments.md`, and `docs/format.md` for the manifest.

mod config;
mod error;
mod keys;
mod manifest;
mod mover;
mod upload;

use std::sync::Arc;
use std::time::Duration;

pub use config::{MoverConfig, SegmentPolicy, SetPolicy, StoreConfig};
pub use error::{Result, StoreError};
pub use manifest::{Kind, Manifest, SetFacts};
pub(crate) use mover::set_name;
pub use mover::{MoveEvent, MoveReport, move_once};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::runtime::Runtime;
use tokio_stream::StreamExt;
pub use upload::Upload;

/// The longest manifest that is believed.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// A part that doesn't have its checksum is read so often before the object counts as damaged.
const READS_MAX: u32 = 2;

/// A global storage. Any thread; calls block, each request at most for [`StoreConfig::timeout`] and as many times more as it may be repeated.
///
/// Not from inside an asynchronous runtime: it has one of its own.
#[derive(Debug)]
pub struct Store {
    runtime: Runtime,
    objects: Arc<dyn ObjectStore>,
    root: Path,
    url: String,
    part_bytes: u64,
    /// The longest that one request may take with all its repetitions.
    patience: Duration,
}

/// An object whose manifest was read and verified; its data was not.
#[derive(Debug, Clone)]
pub struct Object {
    /// What it is.
    pub manifest: Manifest,
    directory: Path,
}

impl Object {
    /// The segment that it is a copy of, if it is one.
    #[must_use]
    pub fn named(&self) -> Option<crate::segments::Named> {
        let named = self.manifest.segment.clone()?;
        // The checksum of the whole is that of the segment, or the manifest contradicts itself.
        let same = named.hash == self.manifest.hash && named.bytes == self.manifest.bytes;
        same.then_some(named)
    }
}

impl Store {
    /// Gets ready. Nothing is sent yet; a directory must be there.
    ///
    /// # Errors
    /// [`StoreError::Config`], naming the key.
    pub fn open(config: &StoreConfig) -> Result<Self> {
        let (objects, root) = config.build()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("pmu-store")
            .enable_all()
            .build()
            .map_err(|error| StoreError::Config(format!("start a runtime: {error}")))?;
        Ok(Self {
            runtime,
            objects,
            root,
            url: config.url.clone(),
            part_bytes: config.part_size,
            patience: config.patience(),
        })
    }

    /// Where it is, as it was named.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Runs one request, for [`Self::patience`] at most.
    fn run<T>(
        &self,
        what: &str,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T> {
        let limited = async { tokio::time::timeout(self.patience, request).await };
        match self.runtime.block_on(limited) {
            Ok(done) => done.map_err(|error| StoreError::of(&self.url, what, error)),
            Err(_) => Err(self.timed_out(what)),
        }
    }

    fn timed_out(&self, what: &str) -> StoreError {
        StoreError::Unavailable {
            store: self.url.clone(),
            what: what.to_owned(),
            reason: format!("nothing happened for {} s", self.patience.as_secs()),
        }
    }

    /// Finds an object by what it is: `name` is a segment's name under the prefix `space`, or a set's number in the region `space`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Damaged`]: its manifest; what the store says.
    pub fn find(&self, kind: &Kind, space: &str, name: &str) -> Result<Object> {
        let directory = keys::directory(&self.root, *kind, space, name);
        let object = self.open_object(directory)?;
        let manifest = &object.manifest;
        if (manifest.kind, &*manifest.space, &*manifest.name) != (*kind, space, name) {
            return Err(self.damaged(&object.directory, "its manifest is that of another object"));
        }
        Ok(object)
    }

    fn open_object(&self, directory: Path) -> Result<Object> {
        let path = directory.clone().join(keys::MANIFEST);
        let text = self.run(path.as_ref(), async {
            let found = self.objects.get(&path).await?;
            if found.meta.size > MANIFEST_BYTES_MAX {
                return Ok(None);
            }
            found.bytes().await.map(Some)
        })?;
        let text = text.ok_or_else(|| self.damaged(&directory, "its manifest is too long"))?;
        let manifest = Manifest::decode(&text).map_err(|what| self.damaged(&directory, &what))?;
        Ok(Object {
            manifest,
            directory,
        })
    }

    fn damaged(&self, object: &Path, what: &str) -> StoreError {
        StoreError::Damaged {
            store: self.url.clone(),
            object: object.to_string(),
            what: what.to_owned(),
        }
    }

    /// All objects of a kind, or of one region or prefix of it, in the order of their places.
    ///
    /// # Errors
    /// What the store says. Objects whose manifests are damaged come as errors in the list.
    pub fn list(&self, kind: Kind, space: Option<&str>) -> Result<Vec<Result<Object>>> {
        let below = keys::below(&self.root, kind, space);
        let manifests = self.run(below.as_ref(), async {
            let mut found = self.objects.list(Some(&below));
            let mut manifests = Vec::new();
            while let Some(meta) = found.next().await {
                let path = meta?.location;
                if path.filename() == Some(keys::MANIFEST) {
                    manifests.push(path);
                }
            }
            Ok(manifests)
        });
        let manifests = match manifests {
            Err(StoreError::NotFound { .. }) => Vec::new(),
            other => other?,
        };
        let mut manifests = manifests;
        manifests.sort_unstable();
        let objects = manifests.into_iter().map(|path| {
            let parts = path.parts().count();
            self.open_object(path.parts().take(parts - 1).collect())
        });
        Ok(objects.collect())
    }

    /// Reads an object, and hands each part on after it was verified. Whole when this returns.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], what the store says, what the sink says.
    pub fn read<E: From<StoreError>>(
        &self,
        object: &Object,
        sink: &mut dyn FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let manifest = &object.manifest;
        let data = object.directory.clone().join(manifest.data.as_str());
        let mut whole = blake3::Hasher::new();
        let mut begin = 0;
        for expected in &manifest.parts {
            let end = (begin + manifest.part_bytes).min(manifest.bytes);
            let part = self.read_part(&data, begin..end, *expected)?;
            whole.update(&part);
            sink(&part)?;
            begin = end;
        }
        if begin != manifest.bytes || *whole.finalize().as_bytes() != manifest.hash.0 {
            return Err(self
                .damaged(&data, "the checksum of the whole does not hold")
                .into());
        }
        Ok(())
    }

    fn read_part(
        &self,
        data: &Path,
        range: std::ops::Range<u64>,
        expected: crate::segments::ContentHash,
    ) -> Result<Vec<u8>> {
        let length = range.end - range.start;
        for _ in 0..READS_MAX {
            let part = match self.run(data.as_ref(), self.objects.get_range(data, range.clone())) {
                Err(StoreError::NotFound { .. }) => {
                    return Err(self.damaged(data, "its data is not there"));
                }
                other => other?,
            };
            if part.len() as u64 == length && *blake3::hash(&part).as_bytes() == expected.0 {
                return Ok(part.into());
            }
        }
        let what = format!(
            "the bytes from {} to {} are not what was stored",
            range.start, range.end
        );
        Err(self.damaged(data, &what))
    }

    /// Reads an object for its checksums alone.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn verify(&self, object: &Object) -> Result<()> {
        self.read(object, &mut |_| Ok::<_, StoreError>(()))
    }

    /// Removes an object: first its manifest, so that nobody finds it half gone.
    ///
    /// # Errors
    /// What the store says.
    pub fn remove(&self, object: &Object) -> Result<()> {
        for part in [keys::MANIFEST, &object.manifest.data] {
            let path = object.directory.clone().join(part);
            match self.run(path.as_ref(), self.objects.delete(&path)) {
                Ok(()) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
