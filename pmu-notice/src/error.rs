//! What can go wrong with a notice. Nothing of it harms: the end of a process is then seen by its descriptor alone.

/// Result of this crate's fallible functions.
pub type Result<T, E = NoticeError> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoticeError {
    /// The system refuses.
    #[error("{action}: {source}")]
    System {
        /// What was being done, as a bare phrase.
        action: &'static str,
        /// What it said.
        #[source]
        source: std::io::Error,
    },
    /// The file is no notice: its length or its seals are wrong.
    #[error("the file is no notice of death")]
    NotOne,
    /// Another thread holds it.
    #[error("the notice is held by thread {thread}")]
    Held {
        /// Its id, as it is in its own namespace.
        thread: u32,
    },
    /// The watcher has closed it.
    #[error("nobody waits for this notice any more")]
    Closed,
    /// Before Linux 5.17 the kernel doesn't say how a process is dying.
    #[error("Linux {release} doesn't tell how a process dies: 5.17 or newer does")]
    Kernel {
        /// What runs here.
        release: String,
    },
}

impl NoticeError {
    pub(crate) fn system<E: Into<std::io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            action,
            source: source.into(),
        }
    }
}
