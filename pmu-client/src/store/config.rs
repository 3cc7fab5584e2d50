//! The configuration of a global storage and of what is moved there: TOML.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use serde::{Deserialize, Deserializer, de};

use super::error::{Result, StoreError};

/// The least that S3 takes as a part of several.
const PART_BYTES_MIN: u64 = 5 << 20;
const PART_BYTES_MAX: u64 = 1 << 30;
const RETRIES_MAX: usize = 100;

/// Where a global storage is, and how it is reached. Section `[store]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// `s3://BUCKET/PREFIX`, or a directory (`/srv/pmu` or `file:///srv/pmu`), which must be there.
    pub url: String,
    /// S3: `https://HOST:PORT`; without it Amazon's own, of the region.
    pub endpoint: Option<String>,
    /// S3: the region, as `us-east-1`.
    pub region: Option<String>,
    /// S3: a TOML file with `access_key_id`, `secret_access_key` and perhaps `token`, which nobody but its owner may read. Without it
    /// `AWS_ACCESS_KEY_ID` and the like count.
    pub credentials: Option<PathBuf>,
    /// How long each request may take.
    #[serde(default = "timeout_default", deserialize_with = "duration_of")]
    pub timeout: Duration,
    /// How often a request is repeated that the store couldn't serve, at most.
    #[serde(default = "retries_default")]
    pub retries: usize,
    /// Bytes of each part of an object, at least; checksums are of parts.
    #[serde(default = "part_size_default", deserialize_with = "size_of")]
    pub part_size: u64,
}

const fn timeout_default() -> Duration {
    Duration::from_secs(30)
}

const fn retries_default() -> usize {
    3
}

const fn part_size_default() -> u64 {
    8 << 20
}

/// What `pmu store move` moves, and where to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoverConfig {
    /// The global storage.
    pub store: StoreConfig,
    /// How long the mover rests between two rounds.
    #[serde(default = "interval_default", deserialize_with = "duration_of")]
    pub interval: Duration,
    /// Segments.
    #[serde(default)]
    pub segments: Vec<SegmentPolicy>,
    /// Sets.
    #[serde(default)]
    pub sets: Vec<SetPolicy>,
}

const fn interval_default() -> Duration {
    Duration::from_secs(60)
}

/// Which segments of a prefix are loaded into the storage: those for which all that is said here holds. Section `[[segments]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentPolicy {
    /// The prefix.
    pub prefix: String,
    /// Taken so long ago at least.
    #[serde(default, deserialize_with = "some_duration")]
    pub older_than: Option<Duration>,
    /// Not among so many newest ones.
    #[serde(default)]
    pub keep_newest: usize,
    /// Once the storage has them and what it has was read back and verified, units need not hold them any more.
    #[serde(default)]
    pub unload: bool,
}

/// Which sets of a region are loaded into the storage: committed ones for which all that is said here holds. Section `[[sets]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetPolicy {
    /// The region.
    pub region: String,
    /// Every n-th, by their numbers.
    pub every: Option<u64>,
    /// Committed so long ago at least.
    #[serde(default, deserialize_with = "some_duration")]
    pub older_than: Option<Duration>,
    /// Not among so many newest ones.
    #[serde(default)]
    pub keep_newest: usize,
    /// So many stay in the storage; older ones are removed. None: all stay.
    pub keep_stored: Option<usize>,
}

impl MoverConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// [`StoreError::Config`], with the file's name and the place.
    pub fn load(path: &Path) -> Result<Self> {
        let failed = |what: String| StoreError::Config(format!("{}: {what}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let config: Self = toml::from_str(&text).map_err(|error| failed(error.to_string()))?;
        config.check().map_err(failed)?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let store = &self.store;
        if !(PART_BYTES_MIN..=PART_BYTES_MAX).contains(&store.part_size) {
            return Err("part_size is from 5MiB to 1GiB".into());
        }
        if store.retries > RETRIES_MAX {
            return Err(format!("retries is {RETRIES_MAX} at most"));
        }
        if self.sets.iter().any(|policy| policy.every == Some(0)) {
            return Err("every is 1 at least".into());
        }
        if self.sets.iter().any(|policy| policy.keep_stored == Some(0)) {
            return Err("keep_stored is 1 at least".into());
        }
        Ok(())
    }
}

impl StoreConfig {
    /// The longest that a request may take with all its repetitions.
    pub(super) fn patience(&self) -> Duration {
        let tries = u32::try_from(self.retries).unwrap_or(u32::MAX);
        self.timeout.saturating_mul(tries.saturating_add(2))
    }

    pub(super) fn build(&self) -> Result<(Arc<dyn ObjectStore>, object_store::path::Path)> {
        match self.url.strip_prefix("s3://") {
            Some(rest) => self.build_s3(rest),
            None => self.build_directory(),
        }
    }

    fn build_directory(&self) -> Result<(Arc<dyn ObjectStore>, object_store::path::Path)> {
        let path = self.url.strip_prefix("file://").unwrap_or(&self.url);
        if !path.starts_with('/') || path.contains("://") {
            let text = format!(
                "url = {:?} is neither s3://BUCKET/PREFIX nor an absolute path",
                self.url
            );
            return Err(StoreError::Config(text));
        }
        // A directory that isn't there may be one that isn't mounted.
        let objects = LocalFileSystem::new_with_prefix(path)
            .map_err(|error| StoreError::Config(format!("{path}: {error}")))?
            .with_fsync(true);
        if !Path::new(path).is_dir() {
            return Err(StoreError::Config(format!("{path} is no directory")));
        }
        Ok((Arc::new(objects), object_store::path::Path::default()))
    }

    fn build_s3(&self, rest: &str) -> Result<(Arc<dyn ObjectStore>, object_store::path::Path)> {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let invalid = |what: String| StoreError::Config(what);
        if bucket.is_empty() {
            return Err(invalid(format!("url = {:?} names no bucket", self.url)));
        }
        let root = object_store::path::Path::parse(prefix)
            .map_err(|error| invalid(format!("url = {:?}: {error}", self.url)))?;
        let client = ClientOptions::new()
            .with_timeout(self.timeout)
            .with_connect_timeout(self.timeout);
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(5),
                base: 2.0,
            },
            max_retries: self.retries,
            retry_timeout: self.patience(),
        };
        let mut builder = AmazonS3Builder::from_env()
            .with_client_options(client)
            .with_retry(retry)
            .with_bucket_name(bucket);
        if let Some(endpoint) = &self.endpoint {
            // The way without TLS is as open as the data path is; whoever names it means it.
            builder = builder
                .with_allow_http(endpoint.starts_with("http://"))
                .with_endpoint(endpoint);
        }
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        }
        builder = self.with_credentials(builder)?;
        let objects = builder
            .build()
            .map_err(|error| invalid(error.to_string()))?;
        Ok((Arc::new(objects), root))
    }

    fn with_credentials(&self, mut builder: AmazonS3Builder) -> Result<AmazonS3Builder> {
        if let Some(path) = &self.credentials {
            let keys = Credentials::load(path)?;
            builder = builder
                .with_access_key_id(keys.access_key_id)
                .with_secret_access_key(keys.secret_access_key);
            if let Some(token) = keys.token {
                builder = builder.with_token(token);
            }
        }
        let found = builder.get_config_value(&AmazonS3ConfigKey::AccessKeyId);
        if found.is_none() {
            return Err(StoreError::Config(
                "no credentials: name a file (credentials), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".into(),
            ));
        }
        Ok(builder)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Credentials {
    access_key_id: String,
    secret_access_key: String,
    token: Option<String>,
}

impl Credentials {
    fn load(path: &Path) -> Result<Self> {
        let failed = |what: &str| StoreError::Config(format!("{}: {what}", path.display()));
        let metadata = std::fs::metadata(path).map_err(|error| failed(&error.to_string()))?;
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err(failed("others than its owner may read it (chmod 600)"));
        }
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error.to_string()))?;
        // What stands in the file is not repeated: it may be a key.
        toml::from_str(&text)
            .map_err(|_| failed("expected access_key_id, secret_access_key and perhaps token"))
    }
}

fn duration_of<'de, D: Deserializer<'de>>(value: D) -> std::result::Result<Duration, D::Error> {
    let text = String::deserialize(value)?;
    duration(&text).ok_or_else(|| {
        de::Error::custom("a duration is a whole number with ms, s, m, h or d, as \"10s\"")
    })
}

fn some_duration<'de, D: Deserializer<'de>>(
    value: D,
) -> std::result::Result<Option<Duration>, D::Error> {
    duration_of(value).map(Some)
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let milliseconds = number.parse::<u64>().ok()?.checked_mul(factor)?;
    (milliseconds > 0).then(|| Duration::from_millis(milliseconds))
}

fn size_of<'de, D: Deserializer<'de>>(value: D) -> std::result::Result<u64, D::Error> {
    let text = String::deserialize(value)?;
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "MiB" => 20,
        "GiB" => 30,
        _ => {
            return Err(de::Error::custom(
                "a size is a whole number with MiB or GiB",
            ));
        }
    };
    let number: u64 = number.parse().map_err(de::Error::custom)?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| de::Error::custom("a size that large can't be"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<MoverConfig> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.toml");
        std::fs::write(&path, text).unwrap();
        MoverConfig::load(&path)
    }

    #[test]
    fn r08_a_configuration_is_read_and_its_mistakes_are_named() {
        let config = load(
            "interval = \"5m\"\n[store]\nurl = \"s3://b/p\"\ntimeout = \"2s\"\npart_size = \"16MiB\"\n\
             [[sets]]\nregion = \"train\"\nevery = 10\nkeep_stored = 3\n\
             [[segments]]\nprefix = \"wal\"\nolder_than = \"1h\"\nkeep_newest = 5\nunload = true\n",
        )
        .unwrap();
        assert_eq!(config.interval, Duration::from_secs(300));
        assert_eq!(config.store.part_size, 16 << 20);
        assert_eq!(config.sets[0].every, Some(10));
        assert_eq!(
            config.segments[0].older_than,
            Some(Duration::from_secs(3600))
        );
        for (wrong, names) in [
            ("", "store"),
            ("[store]\nurl = 3\n", "url"),
            ("[store]\nurl = \"/x\"\npart_size = \"1MiB\"\n", "part_size"),
            ("[store]\nurl = \"/x\"\nretries = 1000\n", "retries"),
            ("[store]\nurl = \"/x\"\ntimeout = \"fast\"\n", "duration"),
            ("[store]\nurl = \"/x\"\ncolour = \"red\"\n", "colour"),
            (
                "[store]\nurl = \"/x\"\n[[sets]]\nregion = \"r\"\nevery = 0\n",
                "every",
            ),
        ] {
            let error = load(wrong).unwrap_err().to_string();
            assert!(error.contains(names), "{error}");
        }
        for url in ["ftp://x", "relative", "s3://", "/nowhere/at/all"] {
            let config = load(&format!("[store]\nurl = {url:?}\n")).unwrap();
            assert!(
                matches!(config.store.build(), Err(StoreError::Config(_))),
                "{url}"
            );
        }
    }

    #[test]
    fn r08_a_file_of_credentials_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        std::fs::write(&path, "access_key_id = \"a\"\nsecret_access_key = \"hidden").unwrap();
        let load = || Credentials::load(&path).err().unwrap().to_string();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(load().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!load().contains("hidden"));
    }
}
