//! Who has a file open for writing, or mapped so: as `/proc` tells.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A file, by device and inode.
pub(super) type FileId = (u64, u64);

/// Which of `files` somebody may change without opening them again.
///
/// Processes of other users are seen only with the right to look at them (root, or CAP_SYS_PTRACE): without it, a writer of another user is
/// not found, and only the signal (close, rename) and the file's times speak.
pub(super) fn being_written(files: &HashSet<FileId>) -> HashSet<FileId> {
    let mut found = HashSet::new();
    let Ok(processes) = fs::read_dir("/proc") else {
        return found;
    };
    for process in processes.flatten() {
        let is_process = process
            .file_name()
            .to_str()
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        if is_process {
            by_descriptor(&process.path(), files, &mut found);
            by_mapping(&process.path(), files, &mut found);
        }
    }
    found
}

fn by_descriptor(process: &Path, files: &HashSet<FileId>, found: &mut HashSet<FileId>) {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else {
        return;
    };
    for descriptor in descriptors.flatten() {
        // Follows the link to the open file itself, whatever it is called by now.
        let Ok(metadata) = fs::metadata(descriptor.path()) else {
            continue;
        };
        let id = (metadata.dev(), metadata.ino());
        if files.contains(&id) && !found.contains(&id) {
            let facts = process.join("fdinfo").join(descriptor.file_name());
            if opened_for_writing(&fs::read_to_string(facts).unwrap_or_default()) {
                found.insert(id);
            }
        }
    }
}

/// What the line `flags:` of `fdinfo` says, in base 8.
fn opened_for_writing(facts: &str) -> bool {
    const ACCESS: u32 = 3;
    let flags = facts.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & ACCESS != 0)
}

/// Shared mappings that may be written: the descriptor may be closed long since.
fn by_mapping(process: &Path, files: &HashSet<FileId>, found: &mut HashSet<FileId>) {
    let Ok(maps) = fs::read_to_string(process.join("maps")) else {
        return;
    };
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let shared_and_writable = fields
            .next()
            .is_some_and(|rights| rights.as_bytes().get(1) == Some(&b'w') && rights.ends_with('s'));
        if !shared_and_writable {
            continue;
        }
        let inode = fields.nth(2).and_then(|inode| inode.parse::<u64>().ok());
        // The device is told in another form than by stat: the inode alone errs on the safe side.
        let meant = files.iter().filter(|(_, wanted)| Some(*wanted) == inode);
        found.extend(meant);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r01_writers_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        let file = fs::File::create(&path).unwrap();
        let metadata = file.metadata().unwrap();
        let id = (metadata.dev(), metadata.ino());
        let asked = HashSet::from([id]);
        assert_eq!(being_written(&asked), asked);
        // A rename doesn't hide it.
        fs::rename(&path, directory.path().join("g")).unwrap();
        assert_eq!(being_written(&asked), asked);
        drop(file);
        assert!(being_written(&asked).is_empty());
        let reader = fs::File::open(directory.path().join("g")).unwrap();
        assert!(being_written(&asked).is_empty());
        drop(reader);
    }
}
