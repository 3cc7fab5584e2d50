//! The documents: source files of the crates that cargo fetched, as a list that is made once.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{DemoError, Result};

const EXTENSIONS: [&str; 3] = ["rs", "md", "toml"];
/// Longer files are data in the guise of source.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// One source file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Document {
    path: PathBuf,
    length_bytes: u64,
}

/// An ordered list of documents: a document is known by its place in it.
///
/// Every process of a run works from the same saved list, and notices a file that changed since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corpus {
    root: PathBuf,
    documents: Vec<Document>,
}

impl Corpus {
    /// Lists the first `documents_max` documents below `root`, in the order of their paths' components.
    ///
    /// # Errors
    /// [`DemoError::File`]; [`DemoError::Unusable`] where there is no document.
    pub fn scan(root: &Path, documents_max: usize) -> Result<Self> {
        let mut documents = Vec::new();
        collect(root, Path::new(""), documents_max, &mut documents)?;
        if documents.is_empty() {
            let root = root.display();
            return Err(DemoError::Unusable(format!(
                "there are no .rs, .md or .toml files below {root}: run `cargo fetch`, or name another \
                 folder of sources with --sources"
            )));
        }
        Ok(Self {
            root: root.to_owned(),
            documents,
        })
    }

    /// Reads a list that [`Self::save`] wrote.
    ///
    /// # Errors
    /// [`DemoError::File`].
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read(path).map_err(DemoError::file("read", path))?;
        serde_json::from_slice(&text)
            .map_err(|error| DemoError::file("read the list of documents", path)(error.into()))
    }

    /// Writes the list to a file.
    ///
    /// # Errors
    /// [`DemoError::File`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let text =
            serde_json::to_vec(self).map_err(|e| DemoError::file("write", path)(e.into()))?;
        fs::write(path, text).map_err(DemoError::file("write", path))
    }

    /// How many documents there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(self.documents.len()).unwrap_or(u32::MAX)
    }

    /// Never true of a list that [`Self::scan`] made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// The length of all documents together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes_before(self.len())
    }

    /// The length of the first `count` documents together.
    #[must_use]
    pub fn bytes_before(&self, count: u32) -> u64 {
        self.documents
            .iter()
            .take(count as usize)
            .map(|document| document.length_bytes)
            .sum()
    }

    /// Reads a document into `text`, in place of what it held.
    ///
    /// # Errors
    /// [`DemoError::File`]; [`DemoError::Changed`]; [`DemoError::Unusable`] for a number that is not in the list.
    pub fn read(&self, number: u32, text: &mut Vec<u8>) -> Result<()> {
        let document = self
            .documents
            .get(number as usize)
            .ok_or_else(|| DemoError::Unusable(format!("there is no document {number}")))?;
        let path = self.root.join(&document.path);
        text.clear();
        let read = File::open(&path)
            .and_then(|file| file.take(DOCUMENT_BYTES_MAX + 1).read_to_end(text))
            .map_err(DemoError::file("read", &path))?;
        if read as u64 != document.length_bytes {
            let (listed_bytes, found_bytes) = (document.length_bytes, read as u64);
            return Err(DemoError::Changed {
                path,
                listed_bytes,
                found_bytes,
            });
        }
        Ok(())
    }
}

/// Depth first and each folder in order of names, so that it can stop at the limit: looking at all files of a large folder takes
/// long over a network.
fn collect(root: &Path, below: &Path, max: usize, documents: &mut Vec<Document>) -> Result<()> {
    let folder = root.join(below);
    let mut entries = fs::read_dir(&folder)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(DemoError::file("list", &folder))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if documents.len() >= max {
            return Ok(());
        }
        let kind = entry
            .file_type()
            .map_err(DemoError::file("look at", &folder))?;
        let path = below.join(entry.file_name());
        if kind.is_dir() {
            collect(root, &path, max, documents)?;
        } else if kind.is_file() && is_source(&path) {
            let metadata = entry
                .metadata()
                .map_err(DemoError::file("look at", &folder))?;
            if metadata.len() <= DOCUMENT_BYTES_MAX {
                documents.push(Document {
                    path,
                    length_bytes: metadata.len(),
                });
            }
        }
    }
    Ok(())
}

fn is_source(path: &Path) -> bool {
    path.extension()
        .is_some_and(|found| EXTENSIONS.iter().any(|extension| found == *extension))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("b-1.0/src/lib.rs", "fn b() {}"),
            ("a-1.0/src/lib.rs", "fn a() {}"),
            ("a-1.0/README.md", "# a"),
            ("a-1.0/picture.png", "no"),
            ("a-1.0/Cargo.toml", "[package]"),
        ] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn documents_are_in_the_order_of_their_paths() {
        let folder = folder();
        let corpus = Corpus::scan(folder.path(), 100).unwrap();
        let paths: Vec<_> = corpus
            .documents
            .iter()
            .map(|d| d.path.to_str().unwrap())
            .collect();
        let sorted = [
            "a-1.0/Cargo.toml",
            "a-1.0/README.md",
            "a-1.0/src/lib.rs",
            "b-1.0/src/lib.rs",
        ];
        assert_eq!(paths, sorted);
        let first = Corpus::scan(folder.path(), 3).unwrap();
        assert_eq!(first.documents, corpus.documents[..3]);
        assert_eq!(corpus.bytes_before(2), 12);
    }

    #[test]
    fn a_saved_list_reads_back_and_notices_changes() {
        let folder = folder();
        let corpus = Corpus::scan(folder.path(), 100).unwrap();
        let list = folder.path().join("list.json");
        corpus.save(&list).unwrap();
        let loaded = Corpus::load(&list).unwrap();
        assert_eq!(loaded, corpus);
        let mut text = b"old".to_vec();
        loaded.read(1, &mut text).unwrap();
        assert_eq!(text, b"# a");
        fs::write(folder.path().join("a-1.0/README.md"), "# changed").unwrap();
        assert!(matches!(
            loaded.read(1, &mut text),
            Err(DemoError::Changed { .. })
        ));
        assert!(matches!(
            loaded.read(9, &mut text),
            Err(DemoError::Unusable(_))
        ));
    }

    #[test]
    fn an_empty_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            Corpus::scan(folder.path(), 1),
            Err(DemoError::Unusable(_))
        ));
        assert!(matches!(
            Corpus::scan(&folder.path().join("none"), 1),
            Err(DemoError::File { .. })
        ));
    }
}
