//! Files that hold identities: written once, never overwritten, keys for their owner alone.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::AuthError;

/// No identity file is anywhere near as long.
const FILE_BYTES_MAX: u64 = 1 << 20;

pub(crate) const SECRET: u32 = 0o600;
pub(crate) const PUBLIC: u32 = 0o644;

/// Creates a directory, and those above it, for its owner alone.
pub(crate) fn create_directory(path: &Path) -> Result<(), AuthError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| AuthError::Write {
            path: path.to_owned(),
            source,
        })
}

/// Writes a new file, durable when it returns.
pub(crate) fn create(path: &Path, mode: u32, content: &[u8]) -> Result<(), AuthError> {
    let error = |source: std::io::Error| match source.kind() {
        ErrorKind::AlreadyExists => AuthError::Exists {
            path: path.to_owned(),
        },
        _ => AuthError::Write {
            path: path.to_owned(),
            source,
        },
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(error)?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(error)
}

/// Replaces a file, atomically.
pub(crate) fn replace(path: &Path, mode: u32, content: &[u8]) -> Result<(), AuthError> {
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            return Err(AuthError::Write {
                path: temporary,
                source,
            });
        }
        _ => {}
    }
    create(&temporary, mode, content)?;
    fs::rename(&temporary, path).map_err(|source| AuthError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Refuses if any of these files exists.
pub(crate) fn refuse_existing<'a>(
    paths: impl IntoIterator<Item = &'a Path>,
) -> Result<(), AuthError> {
    match paths
        .into_iter()
        .find(|path| path.symlink_metadata().is_ok())
    {
        Some(path) => Err(AuthError::Exists {
            path: path.to_owned(),
        }),
        None => Ok(()),
    }
}

/// Reads a file of certificates.
pub(crate) fn read(path: &Path) -> Result<String, AuthError> {
    read_checked(path, false).map(|mut text| std::mem::take(&mut *text))
}

/// Reads a private key, if nobody but its owner can.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<String>, AuthError> {
    read_checked(path, true)
}

fn read_checked(path: &Path, secret: bool) -> Result<Zeroizing<String>, AuthError> {
    let error = |source| AuthError::Read {
        path: path.to_owned(),
        source,
    };
    // A pipe would be waited for.
    if !fs::metadata(path).map_err(error)?.is_file() {
        let detail = "not a regular file".to_owned();
        return Err(AuthError::Content {
            path: path.to_owned(),
            detail,
        });
    }
    let file = fs::File::open(path).map_err(error)?;
    // Of the open file, not of the path, which could be another file by then.
    let metadata = file.metadata().map_err(error)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if secret && mode & 0o077 != 0 {
        return Err(AuthError::KeyExposed {
            path: path.to_owned(),
            mode,
        });
    }
    // Room for all of it at once, so that no copy of a key is left behind by growing.
    let capacity = metadata.len().min(FILE_BYTES_MAX) as usize + 1;
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    file.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(error)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let detail = "too long to be an identity's".to_owned();
        return Err(AuthError::Content {
            path: path.to_owned(),
            detail,
        });
    }
    Ok(text)
}
